"""Run operators and sensors against an embedded AMT half of whose calls go wrong, and count the calls.

``python -m tests.system.faults [--jobs 120] [--calls 1000] [--seed N] [--json]``

The same tasks run twice: with nothing wrong, and with 50 % of all calls throttled, answered with a 5xx, or
dropped before or after they were carried out. Tasks are operators and sensors, waiting and deferred, and the
operator that stops; a deferral runs the trigger, sent through its stored form, and resumes a new task object.
All outcomes must be what the tuning jobs were made for, all tasks must come to an end in time, and the server
must have seen, botocore's own retries included, at least ``--calls`` calls and at most 2.5 times as many as
without faults. Exit code 0 only if all of that holds.

The calls are counted by the server: a rule that comes before all others applies to each (a latency too short
to notice), and ``GET /_amt/faults`` says how often.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_amt.local import RunningServer
from tests.local.support import create_request, shared_server

REGION = "eu-west-1"
MOST_FACTOR = 2.5
SHARE_OF_FAULTS = 0.5
THREADS = 16
#: A task that waits longer than this, without faults some seconds, waits for ever.
TASK_SECONDS = 900.0

WAYS = ("operator_waiting", "operator_deferred", "sensor_poking", "sensor_deferred", "stop")
#: By reason: how the tuning job is made, and whether the task succeeds.
MADE: Mapping[str, tuple[Mapping[str, Any], bool]] = {
    "max_training_jobs": ({"sequence": "0.1 0.3 0.2", "most": 3}, True),
    "target_reached": ({"sequence": "0.1 0.95 0.2", "most": 50, "target": 0.9}, True),
    "not_improving": ({"sequence": "0.5 0.4 0.5 0.3", "most": 50, "not_improving": 3}, True),
    "failed": ({"sequence": "fail", "most": 50}, False),
}
#: What the stop operator is given, and what it must find in the end.
STOPPED: Mapping[str, Any] = {"sequence": "0.4 hang", "most": 50}

_COUNTER = {"kind": "latency", "seconds": 1e-9}


def half_of_all_calls(seed: int) -> dict[str, Any]:
    """Return faults that half of all calls meet, in equal shares of four kinds."""
    each = 1 - (1 - SHARE_OF_FAULTS) ** 0.25
    return {
        "seed": seed,
        "rules": [
            _COUNTER,
            {"kind": "error", "code": "ThrottlingException", "probability": each},
            {"kind": "error", "code": "ServiceUnavailable", "probability": each},
            {"kind": "drop", "when": "before", "probability": each},
            {"kind": "drop", "when": "after", "probability": each},
        ],
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task: how it waits, and for what."""

    way: str
    reason: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What came of running all tasks once.

    :param wrong: what is not as it must be, one line each.
    :param calls: calls that the server saw.
    :param faults: calls that met a fault.
    :param seconds: real time.
    """

    wrong: list[str]
    calls: int
    faults: int
    seconds: float


def tasks(count: int, prefix: str) -> list[Task]:
    """Return so many tasks, all ways and reasons in turn."""
    reasons = list(MADE)
    made = []
    for number in range(count):
        way = WAYS[number % len(WAYS)]
        reason = "stopped_by_provider" if way == "stop" else reasons[(number // len(WAYS)) % len(reasons)]
        made.append(Task(way=way, reason=reason, name=f"{prefix}-{number:04d}"))
    return made


def run_all(server: RunningServer, count: int, faults: Mapping[str, Any], prefix: str) -> Run:
    """Run all tasks with these faults; none may take longer than :data:`TASK_SECONDS`."""
    todo = tasks(count, prefix)
    client = server.client(REGION)
    began = time.monotonic()
    server.set_faults(None)
    for task in todo:
        # The jobs that sensors and the stop operator find are there before anything goes wrong.
        if not task.way.startswith("operator"):
            client.create_hyper_parameter_tuning_job(**_request(task))
    client.close()
    server.set_faults(faults)
    wrong: list[str] = []
    with ThreadPoolExecutor(THREADS) as pool:
        running: dict[Future[str | None], Task] = {pool.submit(_judged, task): task for task in todo}
        _, left = wait(running, timeout=TASK_SECONDS)
        for future, task in running.items():
            if future in left:
                future.cancel()
                wrong.append(f"{task}: did not end within {TASK_SECONDS:g} s")
            elif (verdict := future.result()) is not None:
                wrong.append(f"{task}: {verdict}")
        applied = server.faults()["applied"]
        # What still waits may end now.
        server.set_faults(None)
    return Run(wrong=wrong, calls=applied[0], faults=sum(applied[1:]), seconds=time.monotonic() - began)


def _request(task: Task) -> dict[str, Any]:
    options = STOPPED if task.way == "stop" else MADE[task.reason][0]
    return create_request(task.name, **options)


def _judged(task: Task) -> str | None:
    """Run one task; return what is wrong about how it ended."""
    from airflow_amt.operators.stop import AmtStopTuningJobOperator
    from airflow_amt.operators.tuning import AmtTuningJobOperator
    from airflow_amt.sensors.tuning import AmtTuningJobSensor
    from airflow_amt.task_exceptions import AmtTuningJobError
    from tests.unit.tasks import run_task, task_context

    deferrable = task.way.endswith("deferred")
    make: Callable[[], Any]
    if task.way == "stop":
        make = lambda: AmtStopTuningJobOperator(  # noqa: E731 - one of three factories
            task_id="stop", tuning_job_name=task.name, check_interval=1
        )
    elif task.way.startswith("operator"):
        make = lambda: AmtTuningJobOperator(  # noqa: E731
            task_id="tune", config=_request(task), check_interval=1, deferrable=deferrable
        )
    else:
        make = lambda: AmtTuningJobSensor(  # noqa: E731
            task_id="wait",
            tuning_job_name=task.name,
            poke_interval=1,
            timeout=TASK_SECONDS,
            deferrable=deferrable,
        )
    context = task_context(task_id=task.name)
    succeeds = task.way == "stop" or MADE[task.reason][1]
    try:
        run_task(make, context)
        succeeded = True
    except AmtTuningJobError:
        succeeded = False
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the campaign's finding
        return f"{type(error).__name__}: {error}"
    if succeeded is not succeeds:
        return f"the task {'succeeded' if succeeded else 'failed'}"
    if task.way == "stop":
        return None
    outcome = context["ti"].xcom["outcome"]
    found = (outcome["reason"], outcome["certain"])
    return None if found == (task.reason, True) else f"the outcome is {found}"


@contextmanager
def connected(server: RunningServer) -> Iterator[None]:
    """Let the connection ``aws_default`` lead to the server."""
    key = "AIRFLOW_CONN_AWS_DEFAULT"
    before = os.environ.get(key)
    os.environ[key] = server.connection(REGION)
    try:
        yield
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before


def campaign(folder: Path, *, jobs: int, seed: int, least_calls: int) -> tuple[dict[str, Any], list[str]]:
    """Run everything twice; return the figures, and what does not hold."""
    with shared_server(folder) as server, connected(server):
        plain = run_all(server, jobs, {"rules": [_COUNTER]}, "plain")
        faulty = run_all(server, jobs, half_of_all_calls(seed), "faulty")
        ended = Counter(
            one["HyperParameterTuningJobStatus"]
            for page in server.client(REGION).get_paginator("list_hyper_parameter_tuning_jobs").paginate()
            for one in page["HyperParameterTuningJobSummaries"]
        )
    factor = faulty.calls / plain.calls
    wrong = [f"without faults: {one}" for one in plain.wrong] + [
        f"with faults: {one}" for one in faulty.wrong
    ]
    if faulty.calls < least_calls:
        wrong.append(f"{faulty.calls} calls with faults are fewer than {least_calls}: give more --jobs")
    if factor > MOST_FACTOR:
        wrong.append(f"{faulty.calls} calls with faults are {factor:.2f} times the {plain.calls} without")
    if ended.total() != 2 * jobs or ended["InProgress"] or ended["Stopping"]:
        wrong.append(f"tuning jobs were doubled, lost or left running: {dict(ended)}")
    figures = {
        "seed": seed,
        "tasks": jobs,
        "calls_without_faults": plain.calls,
        "calls_with_faults": faulty.calls,
        "share_of_faults": round(faulty.faults / faulty.calls, 3),
        "factor": round(factor, 3),
        "seconds_without_faults": round(plain.seconds, 1),
        "seconds_with_faults": round(faulty.seconds, 1),
        "tuning_jobs": dict(ended),
        "wrong": wrong,
    }
    return figures, wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a campaign and say what happened."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.system.faults", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--jobs", type=int, default=120, help="tasks, each with a tuning job (default: 120)")
    parser.add_argument("--calls", type=int, default=1000, help="least calls with faults (default: 1000)")
    parser.add_argument("--seed", type=int, default=None, help="of the faults (default: a random one)")
    parser.add_argument("--json", action="store_true", help="print what happened as one line")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    with tempfile.TemporaryDirectory(prefix="airflow-amt-faults-") as folder:
        figures, wrong = campaign(Path(folder), jobs=options.jobs, seed=seed, least_calls=options.calls)
    for one in wrong:
        sys.stderr.write(f"seed {seed}: {one}\n")
    sys.stdout.write(json.dumps(figures, indent=None if options.json else 2) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
