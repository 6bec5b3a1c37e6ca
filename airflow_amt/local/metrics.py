"""Metrics of a training job, read from its log with the regular expressions of ``MetricDefinitions``.

SageMaker takes the *latest* value that a training job emitted as the final one (developer guide, "Define
metrics and environment variables"). A value that is not a finite number is no value: if the latest one is
``nan``, the training job has no such metric.
"""

from __future__ import annotations

import functools
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local.files import open_regular

#: Only this much of the end of a log is searched; a metric that was last emitted before it is not found.
SEARCHED_BYTES = 64 * 1024 * 1024
#: Of longer lines only the end is searched: the latest value is there, and a regular expression that
#: backtracks could take for ever.
LONGEST_LINE = 2 * 1024
#: Longest real time of one search of a log; what is not found by then is not found.
SEARCH_SECONDS = 5.0

_BLOCK = 256 * 1024
_LONG_LINE = re.compile(rb"[^\n]{%d}" % (LONGEST_LINE + 1))
#: So much of a log that grows is read at a time, on the event loop.
_FOLLOWED_BYTES = 32 * 1024


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
    deadline = time.monotonic() + SEARCH_SECONDS
    found: dict[str, float] = {}
    if not definitions:
        return {}
    handle = open_regular(log)
    if handle is None:
        return {}
    with handle:
        end = handle.seek(0, os.SEEK_END)
        stop = max(0, end - (SEARCHED_BYTES if most is None else most))
        missing = dict(definitions)
        rest = b""
        while end > stop and missing and time.monotonic() < deadline:
            start = max(stop, end - _BLOCK)
            handle.seek(start)
            block = handle.read(end - start) + rest
            end = start
            # The first line may have begun in the block before; a line that fills whole blocks is cut.
            if start > 0:
                first, _, block = block.partition(b"\n")
                rest = first[-_BLOCK:]
            else:
                rest = b""
            if _may_match(missing.values(), block):
                _search(block.split(b"\n"), missing, found)
        if rest and missing:
            _search([rest], missing, found)
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _search(lines: Sequence[bytes], missing: dict[str, re.Pattern[str]], found: dict[str, float]) -> None:
    """Move every metric that these lines hold from ``missing`` to ``found``, with its latest value."""
    for line in reversed(lines):
        text = _text(line)
        for name in list(missing):
            value = _latest_in(missing[name], text)
            if value is not None:
                found[name] = value
                del missing[name]
        if not missing:
            return


def _text(line: bytes) -> str:
    """Return a line as text; of a long one the end."""
    return line[-LONGEST_LINE:].decode("utf-8", errors="replace").rstrip("\r")


def _may_match(patterns: Iterable[re.Pattern[str]], block: bytes) -> bool:
    """Say quickly, in one search each, whether it is worth looking at each line of a block."""
    if _LONG_LINE.search(block):
        # Whole lines of this length may take a regular expression very long.
        return True
    text = block.replace(b"\r", b"\n").decode("utf-8", errors="replace")
    return any(quick is None or quick.search(text) for quick in map(_quick, patterns))


@functools.lru_cache(maxsize=256)
def _quick(pattern: re.Pattern[str]) -> re.Pattern[str] | None:
    """Return a pattern that matches a text of several lines if the given one matches any line of it.

    ``None`` where that is not certain: what is anchored to the ends of the whole text, or looks at what is
    not there.
    """
    if any(part in pattern.pattern for part in (r"\A", r"\Z", "(?!", "(?<!", r"\b", r"\B", "(?(")):
        return None
    return re.compile(pattern.pattern, pattern.flags | re.MULTILINE)


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

    def read(self, most: int = _FOLLOWED_BYTES) -> list[float]:
        """Return the values of the lines that were completed since the last call.

        :param most: bytes to read at the most; the rest is left for the next call.
        """
        if self._pattern is None:
            return []
        handle = open_regular(self._log)
        if handle is None:
            return []
        with handle:
            handle.seek(self._position)
            block = handle.read(most)
        self._position += len(block)
        whole, _, rest = (self._rest + block).replace(b"\r", b"\n").rpartition(b"\n")
        self._rest = rest[-LONGEST_LINE:]
        return self._values(whole)

    def read_all(self, most: int = SEARCHED_BYTES) -> list[float]:
        """Return all values that are left, of a last line without an end too: the log grows no more."""
        values: list[float] = []
        deadline = time.monotonic() + SEARCH_SECONDS
        while most > 0 and time.monotonic() < deadline:
            before = self._position
            values += self.read(_BLOCK)
            if self._position == before:
                break
            most -= self._position - before
        values += self._values(self._rest)
        self._rest = b""
        return values

    def _values(self, block: bytes) -> list[float]:
        if self._pattern is None or not _may_match([self._pattern], block):
            return []
        return [value for line in block.split(b"\n") for value in _values_in(self._pattern, _text(line))]
