"""What the fork server saves: the bundled scikit-learn trainer, started fresh and forked.

``python -m benchmarks.fork_server [--training-jobs 20] [--json]``

Both sides run the same tuning job, one training job at a time, on an embedded AMT of their own, one side
after the other. ``seconds_per_training_job`` is the tuning job's wall clock over its training jobs;
``import_s`` is what the fork server's start costs, once; ``fork_server_mib`` is the memory it keeps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from airflow_amt.local import running
from airflow_amt.local.processes import MARKER
from benchmarks.record import save

IMAGE = "airflow-amt.local/sklearn-digits:latest"
MODULES = "sklearn.datasets,sklearn.model_selection,sklearn.svm"


def measure(state: Path, training_jobs: int, *options: str) -> dict[str, float]:
    """Return what a tuning job takes on a server with these options."""
    begin = time.perf_counter()
    with running(state_dir=state, options=options) as amt:
        ready = time.perf_counter() - begin
        client = amt.client()
        client.create_hyper_parameter_tuning_job(**request(training_jobs))
        while True:
            description = client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName="fork")
            if description["HyperParameterTuningJobStatus"] != "InProgress":
                break
            time.sleep(0.1)
        summaries = client.list_training_jobs_for_hyper_parameter_tuning_job(
            HyperParameterTuningJobName="fork", MaxResults=100
        )["TrainingJobSummaries"]
        memory = sum(
            child.memory_info().rss
            for child in psutil.Process(amt.pid).children()
            if "/fork-server/" in child.environ().get(MARKER, "")
        )
        if options and "Not every training process can be forked" in amt.log:
            raise RuntimeError(f"not all training processes were forked:\n{amt.log}")
    if description["TrainingJobStatusCounters"]["Completed"] != training_jobs:
        raise RuntimeError(f"not all training jobs completed: {description['TrainingJobStatusCounters']}")
    wall_clock = description["HyperParameterTuningEndTime"] - description["CreationTime"]
    each = [
        (summary["TrainingEndTime"] - summary["TrainingStartTime"]).total_seconds() for summary in summaries
    ]
    return {
        "seconds_per_training_job": round(wall_clock.total_seconds() / training_jobs, 4),
        "median_training_s": round(statistics.median(each), 4),
        "server_ready_s": round(ready, 2),
        "fork_server_mib": round(memory / 2**20, 1),
    }


def request(training_jobs: int) -> dict[str, Any]:
    """Return a Random search for the bundled trainer of handwritten digits."""
    return {
        "HyperParameterTuningJobName": "fork",
        "HyperParameterTuningJobConfig": {
            "Strategy": "Random",
            "HyperParameterTuningJobObjective": {"Type": "Maximize", "MetricName": "accuracy"},
            "ResourceLimits": {"MaxNumberOfTrainingJobs": training_jobs, "MaxParallelTrainingJobs": 1},
            "ParameterRanges": {
                "ContinuousParameterRanges": [
                    {"Name": "C", "MinValue": "1", "MaxValue": "100"},
                    {"Name": "gamma", "MinValue": "0.0005", "MaxValue": "0.001"},
                ]
            },
            # The same combinations on both sides.
            "RandomSeed": 1,
        },
        "TrainingJobDefinition": {
            "AlgorithmSpecification": {
                "TrainingImage": IMAGE,
                "TrainingInputMode": "File",
                "MetricDefinitions": [{"Name": "accuracy", "Regex": "validation accuracy: ([0-9.]+)"}],
            },
            "RoleArn": "arn:aws:iam::000000000000:role/benchmark",
            "OutputDataConfig": {"S3OutputPath": "s3://benchmark/fork"},
            "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
            "StoppingCondition": {"MaxRuntimeInSeconds": 600},
        },
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure both sides and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fork_server", description=__doc__)
    parser.add_argument("--training-jobs", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="print the figures as the last line")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="airflow-amt-benchmark-") as folder:
        fresh = measure(Path(folder) / "fresh", options.training_jobs)
        forked = measure(Path(folder) / "forked", options.training_jobs, "--fork-server", MODULES)
    figures = {
        "training_jobs": options.training_jobs,
        "imported": MODULES,
        "fresh": fresh,
        "forked": forked,
        "import_s": round(forked["server_ready_s"] - fresh["server_ready_s"], 2),
        "ratio": {
            "seconds_per_training_job": round(
                forked["seconds_per_training_job"] / fresh["seconds_per_training_job"], 4
            )
        },
    }
    command = f"python -m benchmarks.fork_server --training-jobs {options.training_jobs}"
    save("fork_server", command, ["airflow-provider-amt", "scikit-learn"], figures)
    sys.stdout.write(json.dumps(figures, indent=None if options.json else 2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
