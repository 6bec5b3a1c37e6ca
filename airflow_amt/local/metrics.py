"""Metrics of a training job, read from its log with the regular expressions of ``MetricDefinitions``.

SageMaker takes the *latest* value that a training job emitted as the final one (developer guide, "Define
metrics and environment variables"). A value that is not a finite number is no value: if the latest one is
``nan``, the training job has no such metric.

A regular expression can take for ever on a line. These are Python's by syntax and meaning, but the engine of
the package ``regex`` runs them: it ends in time, and lets other threads run meanwhile.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import regex

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local.files import open_regular

logger = logging.getLogger(__name__)

#: Only this much of the end of a log is searched; a metric that was last emitted before it is not found.
SEARCHED_BYTES = 64 * 1024 * 1024
#: Of longer lines only the end is searched: the latest value is there, and a regular expression that
#: backtracks could take for ever.
LONGEST_LINE = 2 * 1024
#: Longest real time of one search of a log; what is not found by then is not found.
SEARCH_SECONDS = 5.0
#: A metric whose regular expression takes longer on one line fails the training job. The engine counts the
#: CPU time of the whole process, so a machine that is busy with other things does not use it up.
LINE_SECONDS = 1.0
#: The same on the event loop, which answers nobody meanwhile: of one line, and of one metric in one call.
LIVE_SECONDS = 0.2
#: Most steps of a compiled regular expression: the engine lays out repeats ``{n}`` and ``+``, so nested ones
#: multiply. 10,000 take 20 ms and 20 MB.
LONGEST_COMPILED = 10_000

_BLOCK = 256 * 1024
#: So much of a log that grows is read at a time, on the event loop.
_FOLLOWED_BYTES = 32 * 1024
#: Lines that take longer are searched without the interpreter's lock; to let go of it and wait for it again
#: would cost all others more than that.
_LOCKED_SECONDS = 0.01
#: The look whether a whole block is worth a look at each line gets this share of the time for one line.
_BLOCK_SHARE = 0.25
#: Characters of a regular expression that an error shows.
_SHOWN = 200

_TOKEN = re.compile(
    r"""
    (?P<escape> \\N\{[^}]*\} | \\. )
    | (?P<set> \[ \^? \]? (?: \\. | [^\]\\] )* \] )
    | (?P<repeat> [*+?] | \{ (?!\}) (?P<least>\d*) (?P<more>,\d*)? \} )
    | (?P<nothing> \s | \(\?\#(?: \\. | [^)\\] )*\) )
    | (?P<open> \( )
    | (?P<close> \) )
    | (?P<other> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_IS_VERBOSE = re.compile(r"\(\?[a-zA-Z-]*x")


class SlowMetricError(Exception):
    """The regular expression of a metric takes too long on a line of the log.

    :param metric: the metric.
    :param found: the metrics that were found all the same.
    """

    def __init__(self, metric: Metric, found: Mapping[str, float] | None = None) -> None:
        shown = metric.regex if len(metric.regex) <= _SHOWN else f"{metric.regex[:_SHOWN]}..."
        super().__init__(
            f"metric {metric.name!r}: its regular expression {shown!r} takes too long on a line of the log; "
            "write it without repeats that can match the same text in many ways"
        )
        self.metric = metric
        self.found = found or {}


class Metric:
    """A metric and the regular expression that finds it in a line.

    :param name: its name.
    :param pattern: the regular expression; the first group is the value (the whole match without a group).
    :raises re.error: it is none.
    :raises ValueError: it cannot be compiled by the engine.
    """

    def __init__(self, name: str, pattern: str) -> None:
        self.name = name
        self.regex = pattern
        #: Whether it has taken too long on the event loop, and is left to the end of the training job.
        self.is_slow = False
        # What Python refuses is refused in its words; the engine itself takes more. Python may need a second
        # for the sets of one expression, so these are left to the engine.
        re.compile(_TOKEN.sub(_without_set, pattern))
        self._text, size = _for_engine(pattern)
        if size > LONGEST_COMPILED:
            raise ValueError(f"its repeats make it longer than {LONGEST_COMPILED} steps")
        self._pattern = regex.compile(self._text, regex.VERSION0)

    @functools.cached_property
    def _quick(self) -> regex.Pattern[str] | None:
        """A pattern that matches a text of several lines if the metric's matches any line of it.

        ``None`` where that is not certain: what is anchored to the ends of the whole text, or looks at what
        is not there.
        """
        if any(part in self.regex for part in (r"\A", r"\Z", "(?!", "(?<!", r"\b", r"\B", "(?(")):
            return None
        return regex.compile(self._text, regex.VERSION0 | regex.MULTILINE)

    def may_be_in(self, text: str, seconds: float) -> bool:
        """Say quickly, in one search, whether it is worth looking at each line of a text."""
        try:
            return self._quick is None or bool(self._quick.search(text, timeout=seconds, concurrent=True))
        except TimeoutError:
            return True

    def note_slow(self) -> None:
        """Note that it takes too long for the event loop."""
        self.is_slow = True
        logger.warning("Metric %r is looked for only when its training jobs have ended: too slow", self.name)

    def values_in(self, line: str, seconds: float) -> list[float]:
        """Return the values in a line; those that are no numbers are passed over.

        :raises SlowMetricError: it takes longer than ``seconds``.
        """
        for limit, concurrent in ((_LOCKED_SECONDS, False), (seconds, True)):
            values = []
            try:
                for match in self._pattern.finditer(line, timeout=limit, concurrent=concurrent):
                    captured = match.group(1) if self._pattern.groups else match.group(0)
                    try:
                        values.append(float(captured))
                    except (TypeError, ValueError):
                        continue
                return values
            except TimeoutError:
                continue
        raise SlowMetricError(self)


def _for_engine(pattern: str) -> tuple[str, int]:
    """Return a regular expression of Python's as the engine writes it, and at most how many steps it makes.

    The engine reads more into some braces (``a{e}`` allows errors) and into brackets within a set
    (``[[:alpha:]]``); to Python both are plain characters.
    """
    tokens = list(_TOKEN.finditer(pattern))
    if _IS_VERBOSE.search(pattern):
        # Comments may hold anything; no more than this can come of what is not in them.
        text = re.sub(r"[\[\](]", " ", pattern)
        return pattern, len(pattern) * math.prod(map(_factor, _TOKEN.finditer(text)))
    written = []
    # For each open group, the steps so far; and those of the last item, which a repeat multiplies.
    sums = [0]
    last = 0
    for token in tokens:
        word, kind = token.group(), token.lastgroup
        if kind == "repeat":
            factor = _factor(token)
            sums[-1] += last * (factor - 1)
            last *= factor
        elif kind == "nothing":
            # It separates no repeat from its item, or is an item of one step.
            sums[-1] += 1
            last = max(last, 1)
            if word[0] == "(":
                # The engine ends a comment at an escaped bracket, Python does not.
                word = "(?#)"
        elif kind == "open":
            sums.append(0)
            last = 0
        else:
            last = sums.pop() + 1 if kind == "close" else 1
            sums[-1] += last
            if kind == "set":
                word = "[" + re.sub(r"\\.|\[", _escaped, word[1:], flags=re.DOTALL)
            elif word == "{":
                word = r"\{"
        written.append(word)
    return "".join(written), sums[0]


def _without_set(token: re.Match[str]) -> str:
    return "[" + "a" * (len(token.group()) - 2) + "]" if token.lastgroup == "set" else token.group()


def _factor(token: re.Match[str]) -> int:
    """Return how often the engine lays out what a repeat repeats; 1 for what is no repeat."""
    least = 1 if token.group() == "+" else int(token["least"] or 0)
    return max(1, least + (token["more"] is not None or token.group() == "+"))


def _escaped(found: re.Match[str]) -> str:
    return r"\[" if found.group() == "[" else found.group()


def compile_definitions(definitions: Sequence[Mapping[str, Any]], path: str) -> dict[str, Metric]:
    """Compile ``MetricDefinitions``; the last of several definitions of one name counts.

    :param path: where they are in the request, for errors.
    :raises AmtFieldError: a regular expression is not one, or its repeats are too many.
    """
    compiled = {}
    for position, definition in enumerate(definitions):
        try:
            compiled[definition["Name"]] = Metric(definition["Name"], definition["Regex"])
        except (re.error, regex.error, ValueError, OverflowError, RecursionError) as error:
            raise AmtFieldError(
                f"{path}[{position}].Regex",
                definition["Regex"],
                f"a regular expression; this one cannot be compiled: {error}",
                "correct it; the value is what its first group captures",
            ) from None
    return compiled


def read_final_metrics(log: Path, metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Return the latest value of each metric that the log of an ended training job holds.

    The log is read from its end, block by block, until every metric is found.

    :param log: the training job's log, in any encoding that is a superset of ASCII; may be missing.
    :param metrics: metrics by name.
    :raises SlowMetricError: a regular expression takes too long; what the others found is in it.
    """
    search = _Search(metrics.values(), LINE_SECONDS, SEARCH_SECONDS)
    found = search.latest(log, SEARCHED_BYTES)
    if search.slow:
        raise SlowMetricError(search.slow[0], found)
    return found


def read_live_metrics(log: Path, metrics: Mapping[str, Metric], *, most: int) -> dict[str, float]:
    """Return the latest values so far, without metrics that take too long; made for the event loop.

    :param log: the training job's log; may be missing.
    :param metrics: metrics by name.
    :param most: bytes at the end of the log that are searched.
    """
    search = _Search([one for one in metrics.values() if not one.is_slow], LIVE_SECONDS, LIVE_SECONDS)
    found = search.latest(log, most)
    for metric in search.slow or search.slowest():
        metric.note_slow()
    return found


class _Search:
    """One search of a log for the latest values of metrics.

    :param line_seconds: longest time of one regular expression on one line.
    :param seconds: longest real time of it all; what is not found by then is not found.
    """

    def __init__(self, metrics: Collection[Metric], line_seconds: float, seconds: float) -> None:
        self._missing = list(metrics)
        self._line_seconds = line_seconds
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._used: dict[Metric, float] = {}
        #: The metrics that took too long on one line.
        self.slow: list[Metric] = []

    def slowest(self) -> list[Metric]:
        """Return the metric that took longest, if they have used up all the time together."""
        if sum(self._used.values()) < self._seconds:
            return []
        return [max(self._used, key=self._used.__getitem__)]

    def latest(self, log: Path, most: int) -> dict[str, float]:
        """Return the latest value of each metric, from the end of a log backwards; finite ones only."""
        found: dict[str, float] = {}
        for block in _blocks(log, most) if self._missing else ():
            for metric in list(self._missing):
                began = time.thread_time()
                try:
                    value = self._latest_in(block, metric)
                    if value is not None:
                        found[metric.name] = value
                        self._missing.remove(metric)
                except SlowMetricError:
                    self.slow.append(metric)
                    self._missing.remove(metric)
                # Of this thread: that the machine is busy is no metric's fault.
                self._used[metric] = self._used.get(metric, 0.0) + time.thread_time() - began
            if not self._missing or self._is_over():
                break
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def _latest_in(self, block: _Block, metric: Metric) -> float | None:
        if self._is_over() or not block.may_hold(metric, self._line_seconds):
            return None
        for line in reversed(block.lines):
            if self._is_over():
                return None
            values = metric.values_in(line, self._line_seconds)
            if values:
                return values[-1]
        return None

    def _is_over(self) -> bool:
        return time.monotonic() >= self._deadline


class _Block:
    """Some whole lines of a log."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._lines = content.split(b"\n")

    @functools.cached_property
    def lines(self) -> list[str]:
        """Its lines as text; of a long one the end."""
        return [line[-LONGEST_LINE:].decode("utf-8", errors="replace").rstrip("\r") for line in self._lines]

    @functools.cached_property
    def _text(self) -> str | None:
        # Whole lines of this length may take a regular expression very long.
        if max(map(len, self._lines)) > LONGEST_LINE:
            return None
        return self._content.replace(b"\r", b"\n").decode("utf-8", errors="replace")

    def may_hold(self, metric: Metric, line_seconds: float) -> bool:
        """Say quickly whether it is worth looking at each line for a metric."""
        return self._text is None or metric.may_be_in(self._text, line_seconds * _BLOCK_SHARE)


def _blocks(log: Path, most: int) -> Iterator[_Block]:
    """Read the end of a log backwards, in blocks of whole lines."""
    handle = open_regular(log)
    if handle is None:
        return
    with handle:
        end = handle.seek(0, os.SEEK_END)
        stop = max(0, end - most)
        rest = b""
        while end > stop:
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
            yield _Block(block)
        if rest:
            yield _Block(rest)


class LogFollower:
    """Reads the values of one metric from a log that grows, each once and in order.

    A value counts once its line is complete. NaN and infinities are values here.

    :param log: the log; need not exist yet.
    :param metric: the metric; ``None`` for one that has no definition, which never has a value.
    :param start_at_end: leave out what the log holds by now.
    """

    def __init__(self, log: Path, metric: Metric | None, *, start_at_end: bool = False) -> None:
        self._log = log
        self._metric = metric
        self._position = 0
        self._rest = b""
        if start_at_end and log.exists():
            self._position = log.stat().st_size

    def read(self) -> list[float]:
        """Return the values of lines that were completed since the last call; made for the event loop.

        A metric that is too slow for this is left to :meth:`read_all`.
        """
        if self._metric is None or self._metric.is_slow:
            return []
        position, rest = self._position, self._rest
        began = time.thread_time()
        try:
            values = []
            for line in self._lines(self._metric, _FOLLOWED_BYTES, LIVE_SECONDS):
                values += self._metric.values_in(line, LIVE_SECONDS)
                if time.thread_time() - began > LIVE_SECONDS:
                    raise SlowMetricError(self._metric)
        except SlowMetricError:
            self._metric.note_slow()
            self._position, self._rest = position, rest
            return []
        return values

    def read_all(self) -> list[float]:
        """Return all values that are left, of a last line without an end too: the log grows no more.

        :raises SlowMetricError: its regular expression takes too long on one line.
        """
        values: list[float] = []
        if self._metric is None:
            return values
        deadline = time.monotonic() + SEARCH_SECONDS
        most = SEARCHED_BYTES
        while most > 0:
            before = self._position
            lines = self._lines(self._metric, _BLOCK, LINE_SECONDS)
            most -= self._position - before
            if self._position == before:
                lines, most = _Block(self._rest).lines, 0
                self._rest = b""
            for line in lines:
                if time.monotonic() >= deadline:
                    return values
                values += self._metric.values_in(line, LINE_SECONDS)
        return values

    def _lines(self, metric: Metric, most: int, line_seconds: float) -> list[str]:
        """Return the next complete lines, none if the metric is not in them."""
        handle = open_regular(self._log)
        if handle is None:
            return []
        with handle:
            handle.seek(self._position)
            content = handle.read(most)
        self._position += len(content)
        whole, _, rest = (self._rest + content).replace(b"\r", b"\n").rpartition(b"\n")
        self._rest = rest[-LONGEST_LINE:]
        block = _Block(whole)
        return block.lines if block.may_hold(metric, line_seconds) else []
