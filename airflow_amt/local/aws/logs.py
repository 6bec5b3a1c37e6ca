"""CloudWatch Logs of training jobs: group ``/aws/sagemaker/TrainingJobs``, read from their log files.

A stream is called ``<training job>/algo-1-<epoch>``, as SageMaker calls it. Nothing is copied: a log of any
size costs no memory, and is there again after a restart. Lines of a log have no times of their own: they get
the time at which the log was last written to when somebody first looked at them, and keep it (the file
``log.times`` beside the log).
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from botocore.loaders import Loader
from botocore.model import ServiceModel
from botocore.validate import ParamValidator
from moto.backends import get_backend

from airflow_amt.local import json_text
from airflow_amt.text import MOST_MESSAGE, shown

GROUP = "/aws/sagemaker/TrainingJobs"

#: Limits of GetLogEvents and FilterLogEvents (CloudWatch Logs API reference).
MOST_EVENTS = 10_000
LARGEST_PAGE = 1024 * 1024
LONGEST_EVENT = 256 * 1024
MOST_STREAMS = 50

#: A last line without an end is held back for so long: more of it may be coming.
_SETTLED_SECONDS = 1.0
_REGION = re.compile(r"[a-z0-9-]{1,32}")
#: Names of training jobs, and so of their folders.
_JOB = re.compile(r"[A-Za-z0-9-]{1,63}")
#: Longest filter pattern (CloudWatch Logs API reference).
_LONGEST_PATTERN = 1024


class LogsError(Exception):
    """A call is refused.

    :param code: AWS's error code.
    :param message: what is wrong and how to mend it.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stream:
    """The log of one training job.

    :param name: name of the stream.
    :param created_ms: when the training job was started; milliseconds since the epoch.
    :param log: its log.
    """

    name: str
    created_ms: int
    log: Path

    @property
    def size(self) -> int:
        """Bytes of the log that can be shown."""
        try:
            status = self.log.stat()
        except FileNotFoundError:
            return 0
        if time.time() - status.st_mtime > _SETTLED_SECONDS:
            return status.st_size
        with self.log.open("rb") as handle:
            start = max(0, status.st_size - LONGEST_EVENT)
            handle.seek(start)
            tail = handle.read(status.st_size - start)
        end = tail.rfind(b"\n")
        return start + end + 1 if end >= 0 or start == 0 else status.st_size


@dataclass(frozen=True, slots=True, kw_only=True)
class _Event:
    """One line of a log.

    :param start: where it begins in the file.
    :param end: where the next one begins.
    """

    start: int
    end: int
    timestamp: int
    message: str


class TrainingLogs:
    """Answers calls about the logs of training jobs.

    :param folder: the folder of all training jobs' folders, a folder per region in it.
    :param account: 12-digit AWS account id.
    """

    def __init__(self, folder: Path, account: str) -> None:
        self._folder = folder
        self._account = account
        self._lock = threading.Lock()
        self._operations: Mapping[str, Callable[[str, Mapping[str, Any]], dict[str, Any]]] = {
            "DescribeLogStreams": self._describe_streams,
            "GetLogEvents": self._get_events,
            "FilterLogEvents": self._filter_events,
        }

    def offers(self, operation: str) -> bool:
        """Whether an operation is answered here; moto answers the others."""
        return operation in self._operations

    def create_group(self, region: str) -> None:
        """Let moto list the log group."""
        with self._lock:
            backend = get_backend("logs")[self._account][region]
            if GROUP not in backend.groups:
                backend.create_log_group(GROUP, tags={})

    def call(self, operation: str, region: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out an operation.

        :raises LogsError: the call is refused.
        """
        shape = _service_model().operation_model(operation).input_shape
        report = ParamValidator().validate(params, shape)
        if report.has_errors():
            raise LogsError("InvalidParameterException", shown(report.generate_report(), MOST_MESSAGE))
        return self._operations[operation](region, params)

    # --- operations ------------------------------------------------------------------------------

    def _describe_streams(self, region: str, params: Mapping[str, Any]) -> dict[str, Any]:
        by_time = params.get("orderBy") == "LastEventTime"
        prefix = params.get("logStreamNamePrefix") or ""
        if by_time and prefix:
            raise LogsError(
                "InvalidParameterException", "Cannot order by LastEventTime with a logStreamNamePrefix."
            )
        streams = [self._described(region, stream) for stream in self._streams(region, prefix)]
        if by_time:
            streams.sort(key=lambda one: (one.get("lastEventTimestamp", 0), one["logStreamName"]))
        if params.get("descending"):
            streams.reverse()
        limit = min(int(params.get("limit") or MOST_STREAMS), MOST_STREAMS)
        (first,) = _read_token(params, "n", 0)
        answer: dict[str, Any] = {"logStreams": streams[first : first + limit]}
        if first + limit < len(streams):
            answer["nextToken"] = _write_token("n", first + limit)
        return answer

    def _described(self, region: str, stream: _Stream) -> dict[str, Any]:
        size = stream.size
        described: dict[str, Any] = {
            "logStreamName": stream.name,
            "creationTime": stream.created_ms,
            "arn": f"arn:aws:logs:{region}:{self._account}:log-group:{GROUP}:log-stream:{stream.name}",
            "storedBytes": 0,
        }
        if size:
            times = self._times(stream, size)
            described["firstEventTimestamp"] = times[0][1]
            described["lastEventTimestamp"] = described["lastIngestionTime"] = times[-1][1]
        return described

    def _get_events(self, region: str, params: Mapping[str, Any]) -> dict[str, Any]:
        name = params.get("logStreamName") or ""
        stream = next(iter(self._streams(region, name, exact=True)), None)
        if stream is None:
            raise LogsError("ResourceNotFoundException", "The specified log stream does not exist.")
        limit = min(int(params.get("limit") or MOST_EVENTS), MOST_EVENTS)
        size = stream.size
        token = params.get("nextToken") or ("f/0" if params.get("startFromHead") else f"b/{size}")
        direction, _, text = token.partition("/")
        if direction not in ("f", "b") or not re.fullmatch(r"[0-9]{1,18}", text):
            raise LogsError("InvalidParameterException", "The specified nextToken is invalid.")
        position = min(int(text), size)
        wanted = _window(params)
        if direction == "f":
            events = self._forward(stream, position, size, limit, wanted)
        else:
            events = self._backward(stream, position, size, limit, wanted)
        start = events[0].start if events else position
        end = events[-1].end if events else (size if direction == "f" else position)
        return {
            "events": [
                {"timestamp": one.timestamp, "message": one.message, "ingestionTime": one.timestamp}
                for one in events
            ],
            "nextForwardToken": f"f/{end}",
            "nextBackwardToken": f"b/{start}",
        }

    def _filter_events(self, region: str, params: Mapping[str, Any]) -> dict[str, Any]:
        names = set(params.get("logStreamNames") or ())
        streams = self._streams(region, params.get("logStreamNamePrefix") or "")
        if names:
            streams = [one for one in streams if one.name in names]
        matches = _pattern(params.get("filterPattern") or "")
        limit = min(int(params.get("limit") or MOST_EVENTS), MOST_EVENTS)
        wanted = _window(params)
        after, position = _read_token(params, "s", "", 0)
        found: list[dict[str, Any]] = []
        read = 0
        for stream in streams:
            if stream.name < after:
                continue
            position = position if stream.name == after else 0
            size = stream.size
            while position < size:
                events = self._forward(stream, position, size, limit - len(found), wanted)
                position = events[-1].end if events else size
                read += sum(len(one.message) for one in events)
                found += [_filtered(stream, one) for one in events if matches(one.message)]
                if len(found) >= limit or read >= LARGEST_PAGE:
                    return {"events": found, "nextToken": _write_token("s", stream.name, position)}
        return {"events": found}

    # --- streams and lines -----------------------------------------------------------------------

    def _streams(self, region: str, prefix: str, *, exact: bool = False) -> list[_Stream]:
        """Return the streams whose name begins with a prefix, in the order of their names."""
        if not _REGION.fullmatch(region):
            return []
        job = prefix.partition("/")[0]
        folder = self._folder / region
        if not folder.is_dir():
            return []
        if "/" in prefix:
            folders = [folder / job] if _JOB.fullmatch(job) else []
        else:
            folders = [one for one in folder.iterdir() if one.name.startswith(job)]
        streams = []
        for one in folders:
            try:
                # Written once, when the training job is prepared.
                started = (one / "input" / "config" / "hyperparameters.json").stat().st_mtime
            except (FileNotFoundError, NotADirectoryError):
                continue
            name = f"{one.name}/algo-1-{int(started)}"
            if name == prefix if exact else name.startswith(prefix):
                streams.append(_Stream(name=name, created_ms=int(started * 1000), log=one / "log"))
        return sorted(streams, key=lambda stream: stream.name)

    def _times(self, stream: _Stream, size: int) -> list[tuple[int, int]]:
        """Return up to which byte of a log what time counts, after noting the time of what is new."""
        path = stream.log.with_name("log.times")
        with self._lock:
            try:
                lines = path.read_text(encoding="ascii").splitlines()
            except FileNotFoundError:
                lines = []
            times = [(int(end), int(moment)) for end, moment in (line.split() for line in lines)]
            last_end, last_moment = times[-1] if times else (0, stream.created_ms)
            if last_end < size:
                written = int(stream.log.stat().st_mtime * 1000)
                times.append((size, max(last_moment, written)))
                with path.open("a", encoding="ascii") as handle:
                    handle.write(f"{size} {times[-1][1]}\n")
        return times

    def _forward(
        self, stream: _Stream, position: int, size: int, limit: int, wanted: Callable[[int], bool]
    ) -> list[_Event]:
        """Return events from a position on; at least one if there is any."""
        while position < size:
            with stream.log.open("rb") as handle:
                handle.seek(position)
                content = handle.read(min(size - position, LARGEST_PAGE))
            if position + len(content) < size and b"\n" in content:
                content = content[: content.rfind(b"\n") + 1]
            events = [one for one in self._events(stream, position, content, size) if wanted(one.timestamp)]
            if events:
                return events[:limit]
            position += len(content)
            if not content:
                break
        return []

    def _backward(
        self, stream: _Stream, position: int, size: int, limit: int, wanted: Callable[[int], bool]
    ) -> list[_Event]:
        """Return the last events before a position."""
        while position > 0:
            start = max(0, position - LARGEST_PAGE)
            with stream.log.open("rb") as handle:
                handle.seek(start)
                content = handle.read(position - start)
            if start > 0 and b"\n" in content[:-1]:
                cut = content.find(b"\n") + 1
                start, content = start + cut, content[cut:]
            events = [one for one in self._events(stream, start, content, size) if wanted(one.timestamp)]
            if events:
                return events[-limit:]
            position = start
        return []

    def _events(self, stream: _Stream, position: int, content: bytes, size: int) -> list[_Event]:
        times = self._times(stream, size)
        number = 0
        events = []
        for line in _lines(content):
            for offset in range(0, len(line), LONGEST_EVENT):
                piece = line[offset : offset + LONGEST_EVENT]
                start, position = position, position + len(piece)
                while times[number][0] <= start and number + 1 < len(times):
                    number += 1
                message = piece.decode("utf-8", errors="replace").rstrip("\r\n")
                # CloudWatch has no empty events.
                if message:
                    events.append(
                        _Event(start=start, end=position, timestamp=times[number][1], message=message)
                    )
        return events


@cache
def _service_model() -> Any:
    # botocore's classes are partly annotated, which mypy's strict mode does not let one call.
    loader: Any = Loader()
    model: Any = ServiceModel
    return model(loader.load_service_model("logs", "service-2"), "logs")


def _lines(content: bytes) -> list[bytes]:
    """Split at line feeds only: a progress bar that goes back to the start of its line is one event."""
    lines = [line + b"\n" for line in content.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return [line for line in lines if line]


def _window(params: Mapping[str, Any]) -> Callable[[int], bool]:
    start, end = params.get("startTime"), params.get("endTime")
    return lambda moment: (start is None or moment >= start) and (end is None or moment < end)


def _filtered(stream: _Stream, event: _Event) -> dict[str, Any]:
    return {
        "logStreamName": stream.name,
        "timestamp": event.timestamp,
        "message": event.message,
        "ingestionTime": event.timestamp,
        "eventId": f"{stream.name}:{event.start}",
    }


def _pattern(pattern: str) -> Callable[[str], bool]:
    """Return what a filter pattern of plain terms matches: all of them, none of those after ``-``.

    :raises LogsError: the pattern is of another kind.
    """
    if len(pattern) > _LONGEST_PATTERN:
        raise LogsError("InvalidParameterException", f"filterPattern: {_LONGEST_PATTERN} characters at most")
    terms = re.findall(r'-?"[^"]*"|\S+', pattern)
    if any(term[0] in "{[?%" for term in terms):
        raise LogsError(
            "InvalidParameterException",
            f"filterPattern: the embedded AMT knows terms ('word', '\"two words\"', '-without') only, "
            f"not {shown(pattern)}",
        )
    without = [term[1:].strip('"') for term in terms if term.startswith("-")]
    needed = [term.strip('"') for term in terms if not term.startswith("-")]
    return lambda message: (
        all(one in message for one in needed) and not any(one in message for one in without)
    )


def _write_token(kind: str, *values: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps([kind, *values]).encode()).decode()


def _read_token(params: Mapping[str, Any], kind: str, *default: Any) -> list[Any]:
    token = params.get("nextToken")
    if not token:
        return list(default)
    values: list[Any]
    try:
        given, *values = json_text.read(base64.urlsafe_b64decode(str(token).encode("ascii")))
        if given != kind or [type(one) for one in values] != [type(one) for one in default]:
            raise ValueError
        if any(isinstance(one, int) and not 0 <= one < 2**63 for one in values):
            raise ValueError
    except (ValueError, TypeError):
        raise LogsError("InvalidParameterException", "The specified nextToken is invalid.") from None
    return values
