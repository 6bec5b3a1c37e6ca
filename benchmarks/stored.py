"""Tuning jobs for servers that are measured with many of them stored: all created by calls, none by hand."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.engine import request

#: Trains for an instant, or for a second.
INSTANT = "benchmark.local/instant:latest"
SECOND = "benchmark.local/second:latest"


def images(folder: Path) -> dict[str, str]:
    """Write the training scripts; return what is mapped to them."""
    mapped = {}
    for image, seconds in ((INSTANT, 0), (SECOND, 1)):
        script = folder / f"train-{seconds}.sh"
        wait = f"sleep {seconds}\n" if seconds else ""
        # An objective that differs from one process to the next, so that there is something to search.
        script.write_text(f"{wait}echo objective=0.$$\n")
        mapped[image] = f"sh {script}"
    return mapped


def tuning_job(
    name: str, image: str, *, training_jobs: int = 1, parallel: int = 1, strategy: str = "Random"
) -> dict[str, Any]:
    """Return a request: the one of ``benchmarks.engine``, with this name, image and strategy."""
    made = request(training_jobs, parallel)
    made["HyperParameterTuningJobName"] = name
    made["HyperParameterTuningJobConfig"]["Strategy"] = strategy
    made["TrainingJobDefinition"]["AlgorithmSpecification"]["TrainingImage"] = image
    return made


def names(count: int) -> list[str]:
    """Return names of so many tuning jobs."""
    return [f"stored-{number:05d}" for number in range(count)]


def store(client: Any, requests: list[dict[str, Any]]) -> None:
    """Create tuning jobs, as many at once as the server takes, and wait until all have ended."""
    for wanted in requests:
        while True:
            try:
                client.create_hyper_parameter_tuning_job(**wanted)
                break
            except client.exceptions.ResourceLimitExceeded:
                time.sleep(0.05)
    while client.list_hyper_parameter_tuning_jobs(StatusEquals="InProgress")[
        "HyperParameterTuningJobSummaries"
    ]:
        time.sleep(0.2)
