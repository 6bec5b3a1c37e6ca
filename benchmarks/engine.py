"""What the embedded AMT's engine costs: the same commands under ``xargs -P``, and as training jobs.

``python -m benchmarks.engine [--training-jobs 200] [--parallel 2] [--seconds 1] [--json]``

Both sides run the same shell script (sleep, print an objective) equally often and equally parallel, one
side after the other. ``ratio.wall_clock`` is ours over the peer's (aim: at most 1.05);
``engine_cpu_ms_per_training_job`` is the server process's own CPU time, without that of the training
processes, divided by the training jobs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from airflow_amt.local import running
from benchmarks.record import save

IMAGE = "benchmark.local/sleep:latest"


def measure_xargs(script: Path, training_jobs: int, parallel: int) -> float:
    """Return the seconds that bare ``xargs`` takes."""
    numbers = "".join(f"{number}\n" for number in range(training_jobs))
    begin = time.perf_counter()
    subprocess.run(
        ["xargs", f"-P{parallel}", "-n1", "sh", str(script)],
        input=numbers.encode(),
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - begin


def measure_embedded(script: Path, state: Path, training_jobs: int, parallel: int) -> dict[str, float]:
    """Return the seconds that a tuning job takes, and the engine's CPU seconds meanwhile."""
    with running(state_dir=state, images={IMAGE: f"sh {script}"}) as amt:
        server = psutil.Process(amt.pid)
        client = amt.client()
        before = server.cpu_times()
        begin = time.perf_counter()
        client.create_hyper_parameter_tuning_job(**request(training_jobs, parallel))
        while True:
            description = client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName="engine")
            if description["HyperParameterTuningJobStatus"] != "InProgress":
                break
            time.sleep(0.25)
        observed = time.perf_counter() - begin
        after = server.cpu_times()
    if description["TrainingJobStatusCounters"]["Completed"] != training_jobs:
        raise RuntimeError(f"not all training jobs completed: {description['TrainingJobStatusCounters']}")
    clock = description["HyperParameterTuningEndTime"] - description["CreationTime"]
    return {
        "wall_clock_s": clock.total_seconds(),
        "observed_by_client_s": observed,
        "engine_cpu_s": (after.user + after.system) - (before.user + before.system),
    }


def request(training_jobs: int, parallel: int) -> dict[str, Any]:
    """Return a Random search over one continuous hyperparameter."""
    return {
        "HyperParameterTuningJobName": "engine",
        "HyperParameterTuningJobConfig": {
            "Strategy": "Random",
            "HyperParameterTuningJobObjective": {"Type": "Maximize", "MetricName": "objective"},
            "ResourceLimits": {
                "MaxNumberOfTrainingJobs": training_jobs,
                "MaxParallelTrainingJobs": parallel,
            },
            "ParameterRanges": {
                "ContinuousParameterRanges": [{"Name": "x", "MinValue": "0", "MaxValue": "1"}]
            },
        },
        "TrainingJobDefinition": {
            "AlgorithmSpecification": {
                "TrainingImage": IMAGE,
                "TrainingInputMode": "File",
                "MetricDefinitions": [{"Name": "objective", "Regex": "objective=([0-9.]+)"}],
            },
            "RoleArn": "arn:aws:iam::000000000000:role/benchmark",
            "OutputDataConfig": {"S3OutputPath": "s3://benchmark/engine"},
            "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
            "StoppingCondition": {"MaxRuntimeInSeconds": 600},
        },
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure both sides and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--training-jobs", type=int, default=200)
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--json", action="store_true", help="print the figures as the last line")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="airflow-amt-benchmark-") as folder:
        script = Path(folder) / "train.sh"
        script.write_text(f"sleep {options.seconds}\necho objective=0.5\n")
        peer = measure_xargs(script, options.training_jobs, options.parallel)
        ours = measure_embedded(script, Path(folder) / "state", options.training_jobs, options.parallel)
    figures = {
        "training_jobs": options.training_jobs,
        "parallel": options.parallel,
        "seconds_each": options.seconds,
        "peer": {"name": f"xargs -P{options.parallel}", "wall_clock_s": round(peer, 3)},
        "ours": {key: round(value, 3) for key, value in ours.items()},
        "ratio": {
            "wall_clock": round(ours["wall_clock_s"] / peer, 4),
            "observed_by_client": round(ours["observed_by_client_s"] / peer, 4),
        },
        "engine_cpu_ms_per_training_job": round(1000 * ours["engine_cpu_s"] / options.training_jobs, 2),
    }
    command = (
        f"python -m benchmarks.engine --training-jobs {options.training_jobs} "
        f"--parallel {options.parallel} --seconds {options.seconds:g}"
    )
    save(
        "engine", command, ["airflow-provider-amt", "botocore", "starlette", "uvicorn", "SQLAlchemy"], figures
    )
    if options.json:
        sys.stdout.write(json.dumps(figures) + "\n")
    else:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
