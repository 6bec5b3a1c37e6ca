"""Requests and waiting for the tests of the embedded AMT."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psutil

from airflow_amt.local import RunningServer, running
from airflow_amt.local.processes import MARKER

TRAINERS = Path(__file__).parent / "trainers"
IMAGES = {
    "play:1": f"sh {TRAINERS / 'play.sh'}",
    "stubborn:1": f"sh {TRAINERS / 'stubborn.sh'}",
    "daemon:1": f"sh {TRAINERS / 'daemon.sh'}",
    "epochs:1": f"sh {TRAINERS / 'epochs.sh'}",
    "checkpoint:1": f"sh {TRAINERS / 'checkpoint.sh'}",
    "yes:1": "sh -c 'echo objective=0.5; yes | head -c 60000000'",
    "long-lines:1": f"sh {TRAINERS / 'long_lines.sh'}",
    "flood:1": f"sh {TRAINERS / 'flood.sh'}",
    "echo:1": "sh -c 'env; echo \"objective=0.5\"'",
}
CLOCK_RATE = 200.0
RANGES: Mapping[str, Any] = {
    "ContinuousParameterRanges": [{"Name": "x", "MinValue": "0", "MaxValue": "1", "ScalingType": "Linear"}]
}
METRICS = [{"Name": "objective", "Regex": r"objective=(\S+)"}]

_numbers = count(1)


@contextmanager
def shared_server(folder: Path) -> Iterator[RunningServer]:
    """Run an embedded AMT with a fast clock and these trainers; no call may break it.

    Training processes get AMT's 120 s to end, which are 0.6 s by this clock.
    """
    # The folders of the tests lie beside that of the server.
    with running(folder, clock_rate=CLOCK_RATE, images=IMAGES, roots=[folder.parent]) as server:
        yield server
        assert "Traceback" not in server.log, server.log


def unique(prefix: str = "job") -> str:
    """Return a name that no other test of this run uses."""
    return f"{prefix}-{next(_numbers)}"


def create_request(
    name: str | None = None,
    *,
    image: str = "play:1",
    sequence: str = "0.5",
    seconds: str = "",
    most: int | None = 3,
    parallel: int = 1,
    runtime: int | None = None,
    target: float | None = None,
    not_improving: int | None = None,
    convergence: bool | None = None,
    objective_type: str = "Maximize",
    strategy: str = "Random",
    ranges: Mapping[str, Any] = RANGES,
    static: Mapping[str, str] | None = None,
    training_seconds: int = 86_400,
    tags: Mapping[str, str] | None = None,
    **definition: Any,
) -> dict[str, Any]:
    """Return the parameters of a CreateHyperParameterTuningJob call."""
    limits: dict[str, Any] = {"MaxParallelTrainingJobs": parallel}
    if most is not None:
        limits["MaxNumberOfTrainingJobs"] = most
    if runtime is not None:
        limits["MaxRuntimeInSeconds"] = runtime
    completion: dict[str, Any] = {}
    if target is not None:
        completion["TargetObjectiveMetricValue"] = target
    if not_improving is not None:
        completion["BestObjectiveNotImproving"] = {"MaxNumberOfTrainingJobsNotImproving": not_improving}
    if convergence is not None:
        flag = "Enabled" if convergence else "Disabled"
        completion["ConvergenceDetected"] = {"CompleteOnConvergence": flag}
    config: dict[str, Any] = {
        "Strategy": strategy,
        "HyperParameterTuningJobObjective": {"Type": objective_type, "MetricName": "objective"},
        "ResourceLimits": limits,
        "ParameterRanges": dict(ranges),
        "RandomSeed": 1,
    }
    if completion:
        config["TuningJobCompletionCriteria"] = completion
    play = {"sequence": sequence, **({"seconds": seconds} if seconds else {})} if image == "play:1" else {}
    request: dict[str, Any] = {
        "HyperParameterTuningJobName": name or unique(),
        "HyperParameterTuningJobConfig": config,
        "TrainingJobDefinition": {
            "StaticHyperParameters": {**play, **(static or {})},
            "AlgorithmSpecification": {
                "TrainingImage": image,
                "TrainingInputMode": "File",
                "MetricDefinitions": METRICS,
            },
            "RoleArn": "arn:aws:iam::000000000000:role/training",
            "OutputDataConfig": {"S3OutputPath": "s3://models/out"},
            "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
            "StoppingCondition": {"MaxRuntimeInSeconds": training_seconds},
            **definition,
        },
    }
    if tags:
        request["Tags"] = [{"Key": key, "Value": value} for key, value in tags.items()]
    return request


def describe(client: Any, name: str) -> dict[str, Any]:
    """Return the description of a tuning job."""
    description: dict[str, Any] = client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    return description


def training_jobs(client: Any, name: str, **options: Any) -> list[dict[str, Any]]:
    """Return all training job summaries of a tuning job, in the order of their names."""
    pages = client.get_paginator("list_training_jobs_for_hyper_parameter_tuning_job").paginate(
        HyperParameterTuningJobName=name, MaxResults=100, **options
    )
    return [summary for page in pages for summary in page["TrainingJobSummaries"]]


def best_of(summaries: Sequence[Mapping[str, Any]], objective_type: str) -> str | None:
    """Return the name of the best of some training jobs; of equals the one that ended first."""
    ended = [one for one in summaries if "FinalHyperParameterTuningJobObjectiveMetric" in one]
    sign = 1 if objective_type == "Minimize" else -1
    best = min(
        ended,
        key=lambda one: (
            sign * one["FinalHyperParameterTuningJobObjectiveMetric"]["Value"],
            one["TrainingEndTime"],
        ),
        default=None,
    )
    return None if best is None else best["TrainingJobName"]


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """Wait until a condition holds and return what it returned."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        result = condition()
        if result:
            return result
        time.sleep(0.02)
    raise AssertionError(f"{what} did not happen within {seconds} s")


def wait_for_end(client: Any, name: str, seconds: float = 90.0) -> dict[str, Any]:
    """Wait until a tuning job is over and return its description."""

    def over() -> dict[str, Any] | None:
        description = describe(client, name)
        return description if description["HyperParameterTuningJobStatus"] not in GOING_ON else None

    ended: dict[str, Any] = wait_until(over, f"the end of {name}", seconds)
    return ended


GOING_ON = ("InProgress", "Stopping")


def run_to_end(client: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Create a tuning job, wait until it is over, and return its description."""
    client.create_hyper_parameter_tuning_job(**request)
    return wait_for_end(client, request["HyperParameterTuningJobName"])


def training_processes(part_of_marker: str = "") -> list[psutil.Process]:
    """Return the living processes that carry a training job's marker."""
    found = []
    for process in psutil.process_iter():
        try:
            marker = process.environ().get(MARKER)
            if marker is not None and part_of_marker in marker and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


@contextmanager
def client_of(server: Any, **options: Any) -> Iterator[Any]:
    """Give a client whose connections are closed at the end."""
    client = server.client(retries={"total_max_attempts": 1}, **options)
    try:
        yield client
    finally:
        client.close()
