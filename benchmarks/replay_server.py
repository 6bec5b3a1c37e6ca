"""SageMaker's tuning API, replayed: jobs that are computed from the clock and nothing that trains.

``python -m benchmarks.replay_server [--port 0] [--limit CALLS] [--delay SECONDS]``

A process of its own beside the client that is measured; its first line of output is its port as JSON. It
speaks JSON 1.1 over HTTP/1.1 with keep-alive: DescribeHyperParameterTuningJob, ListHyperParameterTuningJobs,
ListTrainingJobsForHyperParameterTuningJob and ListTags. Each access key is an account (:func:`access_key`),
with tuning jobs of its own and, under ``--limit``, a token bucket of its own: above it the answer is a
ThrottlingException.

Counters of a job, and the objective of its best training job, change once per interval at a phase of its own,
until the job ends at a planned moment. Moments are told by this machine's clock.

``POST /control`` steers it, with a JSON body whose ``do`` is one of:

``configure``
    ``accounts``, ``jobs`` (in all; job *i* is number ``i // accounts`` of account ``i % accounts``),
    ``interval``, ``others`` (finished jobs of other people in each account), ``spare_ends_in`` (seconds until
    the spare job of account 0, named ``spare``, ends).
``plan``
    ``begin``, ``over``, ``seed``, ``objectives``: all jobs end, in a shuffled order, evenly spread over that
    time. With ``objectives``, half of them (:func:`waits_for_objective`) reach :data:`TARGET` instead and
    run on.
``seen``
    how many jobs have not yet been in any answer, and when the last one first was.
``statistics``
    calls since the last ``reset``: by operation, of each account, throttled, and of the busiest second.
``reset``
    begins the statistics anew.
``moments``
    the planned moment of each job, in the order of *i*.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import json
import math
import random
import re
import signal
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

#: Best objective that a job reaches at its planned moment, and no earlier.
TARGET = 0.9

SPARE = "spare"

_REACHED = 0.95
_PARALLEL = 2
_MOST_TRAINING_JOBS = 500
_LONGEST_PAGE = 100
_DEFAULT_PAGE = 10
_NEVER = math.inf

_IN_PROGRESS = "InProgress"
_STATUSES = ("Completed", _IN_PROGRESS, "Failed", "Stopped", "Stopping", "Deleting", "DeleteFailed")

_CREDENTIAL = re.compile(rb"Credential=([^/,\s]+)/")
_TARGET_HEADER = re.compile(rb"\r\nx-amz-target:\s*SageMaker\.([^\r\n]+)", re.IGNORECASE)
_LENGTH_HEADER = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_CLOSE_HEADER = re.compile(rb"\r\nconnection:\s*close", re.IGNORECASE)

_CONFIG = {
    "Strategy": "Bayesian",
    "HyperParameterTuningJobObjective": {"Type": "Maximize", "MetricName": "validation:auc"},
    "ResourceLimits": {
        "MaxNumberOfTrainingJobs": _MOST_TRAINING_JOBS,
        "MaxParallelTrainingJobs": _PARALLEL,
    },
    "ParameterRanges": {
        "IntegerParameterRanges": [
            {"Name": "max_depth", "MinValue": "2", "MaxValue": "12", "ScalingType": "Auto"}
        ],
        "ContinuousParameterRanges": [
            {"Name": "eta", "MinValue": "0.01", "MaxValue": "0.5", "ScalingType": "Logarithmic"},
            {"Name": "subsample", "MinValue": "0.5", "MaxValue": "1", "ScalingType": "Linear"},
        ],
        "CategoricalParameterRanges": [],
    },
    "TrainingJobEarlyStoppingType": "Off",
}

_DEFINITION = {
    "StaticHyperParameters": {"_tuning_objective_metric": "validation:auc", "num_round": "200"},
    "AlgorithmSpecification": {
        "TrainingImage": "123456789012.dkr.ecr.us-east-1.amazonaws.com/trainer:1",
        "TrainingInputMode": "File",
        "MetricDefinitions": [{"Name": "validation:auc", "Regex": "auc:([0-9.]+)"}],
    },
    "RoleArn": "arn:aws:iam::123456789012:role/trainer",
    "InputDataConfig": [
        {
            "ChannelName": "train",
            "DataSource": {
                "S3DataSource": {
                    "S3DataType": "S3Prefix",
                    "S3Uri": "s3://bucket/train",
                    "S3DataDistributionType": "FullyReplicated",
                }
            },
            "ContentType": "text/csv",
            "CompressionType": "None",
            "RecordWrapperType": "None",
        }
    ],
    "OutputDataConfig": {"KmsKeyId": "", "S3OutputPath": "s3://bucket/models"},
    "ResourceConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 30},
    "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
    "EnableNetworkIsolation": False,
    "EnableInterContainerTrafficEncryption": False,
    "EnableManagedSpotTraining": False,
}

# What no clock changes of an answer of Describe, without the braces around it.
_FIXED_PART = json.dumps({"HyperParameterTuningJobConfig": _CONFIG, "TrainingJobDefinition": _DEFINITION})[
    1:-1
]
_LIMITS = json.dumps(_CONFIG["ResourceLimits"])


def access_key(account: int) -> str:
    """Return the access key of an account."""
    return f"ACCOUNT{account:04d}"


def job_name(number: int) -> str:
    """Return the name of a job, by its number in its account."""
    return f"tuning-{number:05d}"


def waits_for_objective(index: int, accounts: int) -> bool:
    """Whether a job is of the half that reaches an objective, in each account alike."""
    return (index % accounts + index // accounts) % 2 == 1


class ApiError(Exception):
    """An answer with status 400.

    :param code: the error's code.
    :param message: its message.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(slots=True)
class Job:
    """A tuning job: what it looks like is computed from the time.

    :param name: its name.
    :param created: when it was created.
    :param interval: seconds between two changes of its counters.
    :param phase: how long before the first one it was created.
    :param end: when it ends.
    :param final: the status that it then has.
    :param reach: when its objective reaches the target.
    :param watched: whether the client that is measured waits for it.
    :param seen: when it was first in an answer.
    """

    name: str
    created: float
    interval: float
    phase: float
    end: float = _NEVER
    final: str = "Completed"
    reach: float = _NEVER
    watched: bool = False
    seen: float = 0.0

    def status(self, now: float) -> str:
        """Return its status."""
        return _IN_PROGRESS if now < self.end else self.final

    def modified(self, now: float) -> float:
        """Return its LastModifiedTime.

        Only the status moves it here. What else does is not documented, so nobody can rely on more; the real
        service may well move it with the counters.
        """
        return self.created if now < self.end else self.end

    def results(self, now: float) -> int:
        """Return how many training jobs completed."""
        until = min(now, self.end)
        # What the target is reached with is one more.
        count = int((until - self.created + self.phase) / self.interval) + (until >= self.reach)
        return count if now < self.end else count + _PARALLEL

    def objective(self, now: float) -> float:
        """Return the best objective, which rises with each result."""
        if min(now, self.end) >= self.reach:
            return _REACHED
        return 0.5 + 0.35 * (1 - 1 / (1 + self.results(now)))

    @property
    def arn(self) -> str:
        """Its ARN."""
        return f"arn:aws:sagemaker:us-east-1:123456789012:hyper-parameter-tuning-job/{self.name}"

    def summary(self, now: float) -> str:
        """Return what Describe and List have in common, as the inside of a JSON object."""
        results = self.results(now)
        running = _PARALLEL if now < self.end else 0
        ended = "" if now < self.end else f'"HyperParameterTuningEndTime":{self.end:.3f},'
        return (
            f'"HyperParameterTuningJobName":"{self.name}","HyperParameterTuningJobArn":"{self.arn}",'
            f'"HyperParameterTuningJobStatus":"{self.status(now)}","CreationTime":{self.created:.3f},{ended}'
            f'"LastModifiedTime":{self.modified(now):.3f},"TrainingJobStatusCounters":{{"Completed":{results},'
            f'"InProgress":{running},"RetryableError":0,"NonRetryableError":0,"Stopped":0}},'
            f'"ObjectiveStatusCounters":{{"Succeeded":{results},"Pending":{running},"Failed":0}}'
        )

    def training_job(self, number: int, now: float) -> dict[str, Any]:
        """Return the summary of a training job; the last that completed is the best."""
        results = self.results(now)
        over = self.created - self.phase + (number + 1) * self.interval
        begun = max(self.created, over - self.interval)
        name = f"{self.name}-{number:03d}"
        summary: dict[str, Any] = {
            "TrainingJobName": name,
            "TrainingJobArn": f"arn:aws:sagemaker:us-east-1:123456789012:training-job/{name}",
            "CreationTime": round(begun, 3),
            "TrainingStartTime": round(begun, 3),
            "TrainingJobStatus": _IN_PROGRESS,
            "TunedHyperParameters": {"max_depth": "6", "eta": "0.1", "subsample": "0.8"},
        }
        if number < results:
            best = number == results - 1
            value = self.objective(now) if best else 0.5 + 0.35 * (1 - 1 / (2 + number))
            summary |= {
                "TrainingEndTime": round(min(over, now), 3),
                "TrainingJobStatus": "Completed",
                "FinalHyperParameterTuningJobObjectiveMetric": {
                    "MetricName": "validation:auc",
                    "Value": value,
                },
                "ObjectiveStatus": "Succeeded",
            }
        return summary

    def description(self, now: float) -> str:
        """Return the answer of Describe."""
        results = self.results(now)
        best = f'"BestTrainingJob":{json.dumps(self.training_job(results - 1, now))},' if results else ""
        runtime = int(min(now, self.end) - self.created)
        return (
            f"{{{self.summary(now)},{_FIXED_PART},{best}"
            f'"TuningJobCompletionDetails":{{"NumberOfTrainingJobsObjectiveNotImproving":0}},'
            f'"ConsumedResources":{{"RuntimeInSeconds":{runtime}}}}}'
        )


@dataclass(slots=True)
class Bucket:
    """A token bucket that holds one second's worth.

    :param rate: tokens per second; ``None`` for no limit.
    """

    rate: float | None
    tokens: float = 0.0
    at: float = 0.0

    def take(self, now: float) -> bool:
        """Whether there was a token to take."""
        if self.rate is None:
            return True
        if self.at == 0.0:
            self.tokens = self.rate
        else:
            self.tokens = min(self.rate, self.tokens + (now - self.at) * self.rate)
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Account:
    """The tuning jobs of one account.

    :param bucket: its rate limit.
    :param jobs: its jobs.
    """

    def __init__(self, bucket: Bucket, jobs: list[Job]) -> None:
        self.bucket = bucket
        self.calls = 0
        self.by_name = {job.name: job for job in jobs}
        # Jobs come and go by control calls alone, so a place in one of these lists is a stable page token.
        self._orders: dict[tuple[str, bool, bool], list[Job]] = {}
        unfinished = [job for job in jobs if job.end == _NEVER or job.watched or job.name == SPARE]
        keys: dict[str, Callable[[Job], Any]] = {
            "Name": lambda job: job.name,
            "CreationTime": lambda job: (job.created, job.name),
        }
        for sort_by, key in keys.items():
            for only_unfinished, chosen in ((False, jobs), (True, unfinished)):
                ordered = sorted(chosen, key=key)
                self._orders[sort_by, False, only_unfinished] = ordered
                self._orders[sort_by, True, only_unfinished] = ordered[::-1]

    def find(self, name: Any) -> Job:
        """Return a job."""
        try:
            return self.by_name[name]
        except (KeyError, TypeError):
            raise ApiError("ResourceNotFound", f"The tuning job {name!r} does not exist.") from None

    def ordered(self, sort_by: str, descending: bool, status: str | None, now: float) -> list[Job]:
        """Return the jobs in an order; only some that cannot have a status are left out."""
        if sort_by == "Status":
            return sorted(
                self.by_name.values(), key=lambda job: (job.status(now), job.name), reverse=descending
            )
        # Those of other people ended long ago: a search for active ones must not cost more with each.
        return self._orders[sort_by, descending, status == _IN_PROGRESS]


@dataclass(slots=True)
class Statistics:
    """Calls since the last reset."""

    begun: float = field(default_factory=time.time)
    operations: Counter[str] = field(default_factory=Counter)
    throttled: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    seconds: Counter[int] = field(default_factory=Counter)
    accounts: Counter[int] = field(default_factory=Counter)


class Replay:
    """The accounts, and what is answered.

    :param limit: calls per second of each account; ``None`` for no limit.
    """

    def __init__(self, limit: float | None) -> None:
        self._limit = limit
        self._accounts: list[Account] = []
        self._account_of: dict[bytes, int] = {}
        self._watched: list[Job] = []
        self._unseen = 0
        self._last_seen = 0.0
        self._statistics = Statistics()

    def control(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a control call."""
        does: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
            "configure": self._configure,
            "plan": self._plan,
            "seen": lambda _: {"unseen": self._unseen, "last_seen_at": self._last_seen},
            "statistics": lambda _: self._statistics_now(),
            "reset": lambda _: self._reset(),
            "moments": lambda _: {"moments": [_planned(job) for job in self._watched]},
        }
        return does[request["do"]](request)

    def _configure(self, request: Mapping[str, Any]) -> dict[str, Any]:
        now = time.time()
        generator = random.Random(7)
        interval = float(request["interval"])
        accounts = int(request["accounts"])
        self._watched = []
        jobs: list[list[Job]] = [[] for _ in range(accounts)]
        for index in range(int(request["jobs"])):
            job = Job(
                name=job_name(index // accounts),
                created=now - generator.uniform(1.0, 2.0),
                interval=interval,
                phase=generator.uniform(0.0, interval),
                watched=True,
            )
            jobs[index % accounts].append(job)
            self._watched.append(job)
        for of_account in jobs:
            of_account.extend(_others(int(request.get("others", 0)), now, generator))
        jobs[0].append(Job(SPARE, now - 2.0, 1.0, 0.0, end=now + float(request.get("spare_ends_in", 0.0))))
        self._accounts = [Account(Bucket(self._limit), of_account) for of_account in jobs]
        self._account_of = {access_key(number).encode(): number for number in range(accounts)}
        self._unseen = len(self._watched)
        return self._reset()

    def _plan(self, request: Mapping[str, Any]) -> dict[str, Any]:
        order = list(range(len(self._watched)))
        random.Random(request["seed"]).shuffle(order)
        for place, index in enumerate(order):
            moment = request["begin"] + request["over"] * (place + 0.5) / len(order)
            job = self._watched[index]
            if request.get("objectives") and waits_for_objective(index, len(self._accounts)):
                job.reach = moment
            else:
                job.end = moment
        return {}

    def _reset(self) -> dict[str, Any]:
        self._statistics = Statistics()
        return {}

    def _statistics_now(self) -> dict[str, Any]:
        of = self._statistics
        return {
            "seconds": time.time() - of.begun,
            "calls": sum(of.operations.values()),
            "operations": dict(of.operations),
            "throttled": sum(of.throttled.values()),
            "throttled_operations": dict(of.throttled),
            "refused": dict(of.refused),
            "busiest_second": max(of.seconds.values(), default=0),
            "accounts": [of.accounts[number] for number in range(len(self._accounts))],
        }

    def answer(self, head: bytes, body: bytes) -> tuple[int, str]:
        """Answer a call of SageMaker's API.

        :param head: request line and headers.
        :param body: the body.
        :return: status and body.
        """
        now = time.time()
        target = _TARGET_HEADER.search(head)
        operation = target.group(1).decode() if target else "Unknown"
        statistics = self._statistics
        statistics.operations[operation] += 1
        statistics.seconds[int(now)] += 1
        try:
            credential = _CREDENTIAL.search(head)
            number = self._account_of.get(credential.group(1)) if credential else None
            if number is None:
                raise ApiError("UnrecognizedClientException", "The security token is invalid.")
            statistics.accounts[number] += 1
            account = self._accounts[number]
            if not account.bucket.take(now):
                statistics.throttled[operation] += 1
                return 400, '{"__type":"ThrottlingException","message":"Rate exceeded"}'
            return 200, self._perform(account, operation, _parsed(body), now)
        except ApiError as error:
            statistics.refused[f"{operation}: {error.code}"] += 1
            return 400, json.dumps({"__type": error.code, "message": error.message})

    def _perform(self, account: Account, operation: str, params: Mapping[str, Any], now: float) -> str:
        if operation == "DescribeHyperParameterTuningJob":
            job = account.find(params.get("HyperParameterTuningJobName"))
            self._see(job, now)
            return job.description(now)
        if operation == "ListHyperParameterTuningJobs":
            return self._list(account, params, now)
        if operation == "ListTrainingJobsForHyperParameterTuningJob":
            return _list_training_jobs(account.find(params.get("HyperParameterTuningJobName")), params, now)
        if operation == "ListTags":
            return '{"Tags":[]}'
        raise ApiError("ValidationException", f"This server does not know {operation}.")

    def _see(self, job: Job, now: float) -> None:
        if job.watched and not job.seen:
            job.seen = self._last_seen = now
            self._unseen -= 1

    def _list(self, account: Account, params: Mapping[str, Any], now: float) -> str:
        most = _page_length(params)
        sort_by = _one_of(params, "SortBy", ("Name", "Status", "CreationTime"), "Name")
        descending = _one_of(params, "SortOrder", ("Ascending", "Descending"), "Ascending") == "Descending"
        status = params.get("StatusEquals")
        if status is not None and status not in _STATUSES:
            raise ApiError("ValidationException", f"StatusEquals cannot be {status!r}.")
        jobs = account.ordered(sort_by, descending, status, now)
        page: list[Job] = []
        token = ""
        first = _first_place(params, jobs, now) if params.get("NextToken") else 0
        for place in range(first, len(jobs)):
            job = jobs[place]
            if not _is_wanted(job, params, status, now):
                continue
            if len(page) == most:
                token = f',"NextToken":"{_token(place, job, params, now)}"'
                break
            page.append(job)
            self._see(job, now)
        summaries = ",".join(
            f'{{{job.summary(now)},"Strategy":"Bayesian","ResourceLimits":{_LIMITS}}}' for job in page
        )
        return f'{{"HyperParameterTuningJobSummaries":[{summaries}]{token}}}'


def _planned(job: Job) -> float | None:
    moment = min(job.end, job.reach)
    return None if moment == _NEVER else moment


def _others(count: int, now: float, generator: random.Random) -> Iterator[Job]:
    for number in range(count):
        created = now - generator.uniform(2 * 3600.0, 90 * 86400.0)
        yield Job(
            # All over the alphabet, so that no order has the watched ones together.
            name=f"{generator.choice('abcdefghijklmnopqrstuvwxyz')}{generator.getrandbits(24):06x}-{number:07d}",
            created=created,
            interval=60.0,
            phase=0.0,
            end=created + 3600.0,
            final=generator.choice(("Completed", "Completed", "Failed", "Stopped")),
        )


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(body or b"{}")
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise ApiError("SerializationException", "The body is no JSON object.")
    return parsed


def _page_length(params: Mapping[str, Any]) -> int:
    most = params.get("MaxResults", _DEFAULT_PAGE)
    if not isinstance(most, int) or not 1 <= most <= _LONGEST_PAGE:
        raise ApiError("ValidationException", f"MaxResults must be 1 to {_LONGEST_PAGE}, not {most!r}.")
    return most


def _one_of(params: Mapping[str, Any], name: str, choices: tuple[str, ...], default: str) -> str:
    chosen = params.get(name, default)
    if chosen not in choices:
        raise ApiError("ValidationException", f"{name} must be one of {', '.join(choices)}, not {chosen!r}.")
    return str(chosen)


def _is_wanted(job: Job, params: Mapping[str, Any], status: str | None, now: float) -> bool:
    if status is not None and job.status(now) != status:
        return False
    name = params.get("NameContains")
    if name is not None and name not in job.name:
        return False
    return _is_between(job.created, params, "CreationTime") and _is_between(
        job.modified(now), params, "LastModifiedTime"
    )


def _is_between(moment: float, params: Mapping[str, Any], name: str) -> bool:
    after = params.get(f"{name}After", -_NEVER)
    before = params.get(f"{name}Before", _NEVER)
    if not isinstance(after, int | float) or not isinstance(before, int | float):
        raise ApiError("SerializationException", f"{name}After and {name}Before are numbers.")
    return after < moment < before


def _filters(params: Mapping[str, Any]) -> int:
    given = {name: value for name, value in params.items() if name not in ("NextToken", "MaxResults")}
    return zlib.crc32(json.dumps(given, sort_keys=True).encode())


def _token(place: int, job: Job, params: Mapping[str, Any], now: float) -> str:
    """Return where the next page begins: a place or, where that changes, what is at it."""
    where = f"{job.status(now)} {job.name}" if params.get("SortBy") == "Status" else str(place)
    return f"{_filters(params):08x}-{where.encode().hex()}"


def _first_place(params: Mapping[str, Any], jobs: list[Job], now: float) -> int:
    given = str(params["NextToken"])
    try:
        filters, _, where = given.partition("-")
        if int(filters, 16) != _filters(params):
            raise ValueError
        decoded = bytes.fromhex(where).decode()
        if params.get("SortBy") != "Status":
            return int(decoded)
    except ValueError:
        raise ApiError("ValidationException", "NextToken is not one of this list.") from None
    status, _, name = decoded.partition(" ")
    keys = [(job.status(now), job.name) for job in jobs]
    if params.get("SortOrder") != "Descending":
        return bisect.bisect_left(keys, (status, name))
    return len(keys) - bisect.bisect_right(keys[::-1], (status, name))


def _list_training_jobs(job: Job, params: Mapping[str, Any], now: float) -> str:
    most = _page_length(params)
    begin = int(params.get("NextToken") or 0)
    running = _PARALLEL if now < job.end else 0
    numbers = range(job.results(now) + running)
    summaries = [job.training_job(number, now) for number in numbers]
    status = params.get("StatusEquals")
    wanted = [one for one in summaries if status is None or one["TrainingJobStatus"] == status]
    if _one_of(params, "SortOrder", ("Ascending", "Descending"), "Ascending") == "Descending":
        wanted.reverse()
    answer: dict[str, Any] = {"TrainingJobSummaries": wanted[begin : begin + most]}
    if begin + most < len(wanted):
        answer["NextToken"] = str(begin + most)
    return json.dumps(answer)


class Connection(asyncio.Protocol):
    """One client's connection.

    :param replay: what answers.
    :param delay: seconds that each answer of the API takes, as the way to AWS and back would.
    """

    def __init__(self, replay: Replay, delay: float) -> None:
        self._replay = replay
        self._delay = delay
        self._received = b""
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what is written to."""
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each complete request."""
        self._received += data
        while True:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._received[:end]
            found = _LENGTH_HEADER.search(head)
            length = int(found.group(1)) if found else 0
            begin = end + 4
            if len(self._received) < begin + length:
                return
            body = self._received[begin : begin + length]
            self._received = self._received[begin + length :]
            if head.startswith(b"POST /control "):
                self._send(200, json.dumps(self._replay.control(json.loads(body))), head)
            elif self._delay:
                status, text = self._replay.answer(head, body)
                asyncio.get_running_loop().call_later(self._delay, self._send, status, text, head)
            else:
                self._send(*self._replay.answer(head, body), head)

    def _send(self, status: int, text: str, head: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        body = text.encode()
        self._transport.write(
            b"HTTP/1.1 %d %s\r\nContent-Type: application/x-amz-json-1.1\r\n"
            b"x-amzn-RequestId: 00000000-0000-0000-0000-000000000000\r\nContent-Length: %d\r\n\r\n"
            % (status, b"OK" if status == 200 else b"Bad Request", len(body))
            + body
        )
        if _CLOSE_HEADER.search(head):
            self._transport.close()


async def serve(port: int, limit: float | None, delay: float) -> None:
    """Serve until the process is told to end."""
    loop = asyncio.get_running_loop()
    replay = Replay(limit)
    # A thousand clients may connect in the same moment.
    server = await loop.create_server(lambda: Connection(replay, delay), "127.0.0.1", port, backlog=4096)
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    sys.stdout.write(json.dumps({"port": server.sockets[0].getsockname()[1]}) + "\n")
    sys.stdout.flush()
    await over.wait()
    server.close()


def main(arguments: list[str] | None = None) -> int:
    """Serve."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay_server", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--limit", type=float, help="calls per second of each account")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that each answer takes")
    options = parser.parse_args(arguments)
    asyncio.run(serve(options.port, options.limit, options.delay))
    return 0


if __name__ == "__main__":
    sys.exit(main())
