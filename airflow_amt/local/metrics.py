"""Metrics of a training job, read from its log with the regular expressions of ``MetricDefinitions``.

SageMaker takes the *latest* value that a training job emitted as the final one (developer guide, "Define
metrics and environment variables"). A value that is not a finite number is no value: if the latest one is
``nan``, the training job has no such metric.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from airflow_amt.exceptions import AmtFieldError

#: Only this much of the end of a log is searched; a metric that was last emitted before it is not found.
SEARCHED_BYTES = 64 * 1024 * 1024
#: Of longer lines only the end is searched: the latest value is there, and a regular expression that
#: backtracks could take for ever.
LONGEST_LINE = 16 * 1024

_BLOCK = 256 * 1024


def compile_definitions(definitions: Sequence[Mapping[str, Any]], path: str) -> dict[str, re.Pattern[str]]:
    """Compile ``MetricDefinitions``; the last of several definitions of one name counts.

    :param path: where they are in the request, for errors.
    :raises AmtFieldError: a regular expression is not one.
    """
    compiled = {}
    for position, definition in enumerate(definitions):
        try:
            compiled[definition["Name"]] = re.compile(definition["Regex"])
        except (re.error, OverflowError, RecursionError) as error:
            raise AmtFieldError(
                f"{path}[{position}].Regex",
                definition["Regex"],
                f"a regular expression; this one cannot be compiled: {error}",
                "correct it; the value is what its first group captures",
            ) from None
    return compiled


def read_final_metrics(
    log: Path, definitions: Mapping[str, re.Pattern[str]], *, most: int | None = None
) -> dict[str, float]:
    """Return the latest value of each metric that the log holds.

    The log is read from its end, block by block, until every metric is found.

    :param log: the training job's log, in any encoding that is a superset of ASCII; may be missing.
    :param definitions: metric names and their regular expressions; the first group is the value (the
        whole match if there is no group).
    :param most: bytes at the end of the log that are searched; :data:`SEARCHED_BYTES` if left out.
    """
    found: dict[str, float] = {}
    if not definitions:
        return {}
    try:
        handle = log.open("rb")
    except FileNotFoundError:
        return {}
    with handle:
        end = handle.seek(0, os.SEEK_END)
        stop = max(0, end - (SEARCHED_BYTES if most is None else most))
        missing = dict(definitions)
        rest = b""
        while end > stop and missing:
            start = max(stop, end - _BLOCK)
            handle.seek(start)
            block = handle.read(end - start) + rest
            end = start
            lines = block.split(b"\n")
            # The first line may have begun in the block before; a line that fills whole blocks is cut.
            rest = b"" if start == 0 else lines.pop(0)[-_BLOCK:]
            _search(lines, missing, found)
        if rest and missing:
            _search([rest], missing, found)
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _search(lines: Sequence[bytes], missing: dict[str, re.Pattern[str]], found: dict[str, float]) -> None:
    """Move every metric that these lines hold from ``missing`` to ``found``, with its latest value."""
    for line in reversed(lines):
        text = line[-LONGEST_LINE:].decode("utf-8", errors="replace").rstrip("\r")
        for name in list(missing):
            value = _latest_in(missing[name], text)
            if value is not None:
                found[name] = value
                del missing[name]
        if not missing:
            return


def _latest_in(pattern: re.Pattern[str], text: str) -> float | None:
    latest = None
    for value in _values_in(pattern, text):
        latest = value
    return latest


def _values_in(pattern: re.Pattern[str], text: str) -> Iterator[float]:
    for match in pattern.finditer(text):
        captured = match.group(1) if pattern.groups else match.group(0)
        try:
            yield float(captured)
        except (TypeError, ValueError):
            continue


class LogFollower:
    """Reads the values of one metric from a log that grows, each once and in order.

    A value counts once its line is complete. NaN and infinities are values here.

    :param log: the log; need not exist yet.
    :param pattern: the metric's regular expression; ``None`` for a metric that has none, which never has a
        value.
    :param start_at_end: leave out what the log holds by now.
    """

    def __init__(self, log: Path, pattern: re.Pattern[str] | None, *, start_at_end: bool = False) -> None:
        self._log = log
        self._pattern = pattern
        self._position = 0
        self._rest = b""
        if start_at_end and log.exists():
            self._position = log.stat().st_size

    def read(self, most: int = _BLOCK) -> list[float]:
        """Return the values of the lines that were completed since the last call.

        :param most: bytes to read at the most; the rest is left for the next call.
        """
        if self._pattern is None:
            return []
        try:
            with self._log.open("rb") as handle:
                handle.seek(self._position)
                block = handle.read(most)
        except FileNotFoundError:
            return []
        self._position += len(block)
        lines = (self._rest + block).replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop()[-LONGEST_LINE:]
        return self._values(lines)

    def read_all(self, most: int = SEARCHED_BYTES) -> list[float]:
        """Return all values that are left, of a last line without an end too: the log grows no more."""
        values: list[float] = []
        while most > 0:
            before = self._position
            values += self.read()
            if self._position == before:
                break
            most -= self._position - before
        values += self._values([self._rest])
        self._rest = b""
        return values

    def _values(self, lines: Sequence[bytes]) -> list[float]:
        if self._pattern is None:
            return []
        return [
            value
            for line in lines
            for value in _values_in(self._pattern, line[-LONGEST_LINE:].decode("utf-8", errors="replace"))
        ]
