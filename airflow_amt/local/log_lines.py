"""The lines of the server's log: one a record, whatever the texts in it hold."""

from __future__ import annotations

import logging
from typing import Any

from airflow_amt.text import MOST_MESSAGE, shown

#: Stands before each line of a traceback, so that none of them passes for a record.
CONTINUED = "  | "
_MOST_LINES = 200


class LineFormatter(logging.Formatter):
    """Writes a record as one line, and a traceback below it as lines that begin with :data:`CONTINUED`.

    Messages hold what callers wrote. A line feed in one would forge a record, and an escape sequence would
    move the cursor of the terminal that shows the log.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name of the base class
        """Return the line of a record."""
        record.message = shown(record.message, MOST_MESSAGE)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - as above
        """Return a traceback, its lines marked."""
        return _marked(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802 - as above
        """Return a stack, its lines marked."""
        return _marked(super().formatStack(stack_info))


def _marked(text: str) -> str:
    lines = [CONTINUED + shown(line, MOST_MESSAGE) for line in text.split("\n")]
    if len(lines) > _MOST_LINES:
        half = _MOST_LINES // 2
        lines[half:-half] = [f"{CONTINUED}… ({len(lines) - 2 * half} more lines)"]
    return "\n".join(lines)
