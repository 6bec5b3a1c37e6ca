"""How much memory the embedded AMT takes, with 1,000 tuning jobs stored and four running.

``python -m benchmarks.memory [--jobs 1000] [--running 4] [--training-jobs 30] [--json]``

Figures are the server process's resident memory in MB (10^6 bytes), without that of its training processes:
on an empty folder; after the tuning jobs were created and trained there; by a new server on the same folder,
before and after every job was described and listed, so that what the server keeps in memory is there; then
with four Bayesian tuning jobs running, each of which has seen ``--training-jobs`` training jobs end, so that
the search is loaded and has a past to look at. ``peak`` is the highest the second server ever was. Aim: below
200 MB.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from airflow_amt.local import RunningServer, running
from benchmarks import stored
from benchmarks.record import save

AIM_MB = 200.0


def resident(server: RunningServer) -> float:
    """Return the resident memory of a server in MB."""
    return round(psutil.Process(server.pid).memory_info().rss / 1e6, 1)


def peak(server: RunningServer) -> float | None:
    """Return the highest resident memory of a server so far in MB, if this system says."""
    try:
        lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return None
    kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return round(kilobytes * 1024 / 1e6, 1)


def read_everything(client: Any, names: list[str]) -> None:
    """Describe and list all tuning jobs, and list their training jobs."""
    for page in client.get_paginator("list_hyper_parameter_tuning_jobs").paginate(MaxResults=100):
        if not page["HyperParameterTuningJobSummaries"]:
            raise RuntimeError("a page was empty")
    for name in names:
        client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
        client.list_training_jobs_for_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)


def wait_for_training_jobs(client: Any, names: list[str], count: int) -> None:
    """Wait until each of these tuning jobs has seen so many training jobs end."""
    for name in names:
        while True:
            found = client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
            if found["HyperParameterTuningJobStatus"] != "InProgress":
                raise RuntimeError(f"{name} is {found['HyperParameterTuningJobStatus']}")
            if found["TrainingJobStatusCounters"]["Completed"] >= count:
                break
            time.sleep(0.5)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, float | None]:
    """Fill a server, start another one on its folder, and look at both."""
    names = stored.names(options.jobs)
    bayesian = [f"running-{number}" for number in range(options.running)]
    images = stored.images(folder)
    figures: dict[str, float | None] = {}
    with running(folder / "state", images=images) as amt:
        client = amt.client()
        client.list_hyper_parameter_tuning_jobs()
        figures["empty"] = resident(amt)
        stored.store(client, [stored.tuning_job(name, stored.INSTANT) for name in names])
        figures["after_storing"] = resident(amt)
    with running(folder / "state", images=images) as amt:
        client = amt.client()
        client.list_hyper_parameter_tuning_jobs()
        figures["restarted"] = resident(amt)
        read_everything(client, names)
        figures["all_read"] = resident(amt)
        for name in bayesian:
            client.create_hyper_parameter_tuning_job(
                **stored.tuning_job(name, stored.SECOND, training_jobs=750, parallel=2, strategy="Bayesian")
            )
        wait_for_training_jobs(client, bayesian, options.training_jobs)
        read_everything(client, names)
        figures["all_read_and_running"] = resident(amt)
        figures["peak"] = peak(amt)
    return figures


def main(arguments: list[str] | None = None) -> int:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--running", type=int, default=4)
    parser.add_argument("--training-jobs", type=int, default=30)
    parser.add_argument("--json", action="store_true", help="print the figures as the last line")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="airflow-amt-benchmark-") as folder:
        resident_mb = measure(options, Path(folder))
    figures = {
        "tuning_jobs": options.jobs,
        "running": options.running,
        "training_jobs_seen_by_each": options.training_jobs,
        "aim_mb": AIM_MB,
        "resident_mb": resident_mb,
    }
    command = (
        f"python -m benchmarks.memory --jobs {options.jobs} --running {options.running} "
        f"--training-jobs {options.training_jobs}"
    )
    packages = ["airflow-provider-amt", "botocore", "uvicorn", "SQLAlchemy", "optuna"]
    save("memory", command, packages, figures)
    sys.stdout.write(json.dumps(figures, indent=None if options.json else 2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
