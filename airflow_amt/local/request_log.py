"""The request log: one line of JSON for each call of SageMaker's API that reached the embedded AMT.

It is the server's own word about who asked for what and what came of it, whatever the client believes: for
tests that count calls, or that kill clients in the middle of them.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local import json_text

logger = logging.getLogger(__name__)

#: Longest user agent and name in a line; both are the client's own.
_MOST = 512
_TUNING_JOB_ARN = ":hyper-parameter-tuning-job/"


@dataclass(slots=True, kw_only=True)
class Call:
    """A call while it is answered.

    :param user_agent: the client's ``User-Agent``, which botocore fills with its version and what it runs in.
    :param operation: ``unknown`` if the request names none.
    :param region: the region it was signed for, ``None`` if the request was refused before that was read.
    :param tuning_job: name of the tuning job that the request is about, by name or ARN; ``None`` if of none.
    :param carried_out: whether the operation was carried out, even if the answer got lost.
    :param faults: kinds of the faults that applied to it, in order.
    :param status: HTTP status of the answer, ``None`` if there was none: dropped, or the client had gone.
    :param error: AWS's error code in the answer.
    """

    user_agent: str | None
    operation: str = "unknown"
    region: str | None = None
    tuning_job: str | None = None
    carried_out: bool = False
    faults: list[str] = field(default_factory=list)
    status: int | None = None
    error: str | None = None
    _at: datetime = field(default_factory=lambda: datetime.now(UTC))
    _monotonic: float = field(default_factory=time.monotonic)

    def line(self) -> bytes:
        """Return the line of the log, as of now."""
        entry = {
            "time": self._at.isoformat(timespec="microseconds"),
            "monotonic": round(self._monotonic, 6),
            "seconds": round(time.monotonic() - self._monotonic, 6),
            "operation": self.operation,
            "region": self.region,
            "tuning_job": _cut(self.tuning_job),
            "carried_out": self.carried_out,
            "status": self.status,
            "error": self.error,
            "faults": self.faults,
            "user_agent": _cut(self.user_agent),
        }
        return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


class RequestLog:
    """Appends calls to a file; a line is there before the client has its answer.

    :param path: the file; made if it is not there.
    :raises AmtFieldError: it cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise AmtFieldError(
                "request-log",
                str(path),
                f"a file that can be written ({error.strerror})",
                "choose another path, or leave it out",
            ) from None

    def write(self, call: Call) -> None:
        """Append a call; what cannot be written (a full disk) is said in the log of the server."""
        line = call.line()
        try:
            # One write a line, unbuffered: whatever happens to this process, lines are whole.
            if os.write(self._descriptor, line) != len(line):
                logger.error("The request log lacks a part of %r", line)
        except OSError:
            logger.exception("The request log lacks %r", line)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def tuning_job_of(body: bytes) -> str | None:
    """Return the name of the tuning job that a request is about, ``None`` if it is about none."""
    try:
        params = json_text.read(body)
    except ValueError:
        return None
    if not isinstance(params, dict):
        return None
    name = params.get("HyperParameterTuningJobName")
    arn = params.get("ResourceArn")
    if name is None and isinstance(arn, str) and _TUNING_JOB_ARN in arn:
        name = arn.partition(_TUNING_JOB_ARN)[2]
    return name if isinstance(name, str) else None


def _cut(text: str | None) -> str | None:
    return text if text is None or len(text) <= _MOST else f"{text[: _MOST - 1]}…"


def read(path: Path) -> list[dict[str, Any]]:
    """Return the calls of a request log in the order of their ends; none if the file is not there."""
    return list(_entries(path)) if path.exists() else []


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for line in file:
            # The last line may be being written.
            if line.endswith(b"\n"):
                yield json.loads(line)
