"""Stopping, failing and everything that a training process can do to the server."""

from __future__ import annotations

import os
import signal
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from airflow_amt.local import RunningServer, launcher, running
from tests.local.support import (
    IMAGES,
    RANGES,
    client_of,
    create_request,
    describe,
    run_to_end,
    training_jobs,
    training_processes,
    unique,
    wait_for_end,
    wait_until,
)

pytestmark = pytest.mark.local


def start(client: Any, request: dict[str, Any], running_jobs: int) -> str:
    """Create a tuning job and wait until so many of its training jobs run."""
    name: str = request["HyperParameterTuningJobName"]
    client.create_hyper_parameter_tuning_job(**request)
    wait_until(
        lambda: describe(client, name)["TrainingJobStatusCounters"]["InProgress"] == running_jobs,
        f"{running_jobs} running training jobs",
    )
    wait_until(lambda: len(training_processes(name)) >= running_jobs, "their processes")
    return name


def stop(client: Any, name: str) -> dict[str, Any]:
    client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    return wait_for_end(client, name)


def test_stop(client: Any) -> None:
    name = start(client, create_request(sequence="hang", most=50, parallel=3), 3)
    before = training_processes(name)
    assert len(before) >= 3

    client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    assert describe(client, name)["HyperParameterTuningJobStatus"] in ("Stopping", "Stopped")
    description = wait_for_end(client, name)

    assert description["HyperParameterTuningJobStatus"] == "Stopped"
    assert description["TrainingJobStatusCounters"]["Stopped"] == 3
    assert description["ObjectiveStatusCounters"] == {"Succeeded": 0, "Pending": 0, "Failed": 3}
    assert training_processes(name) == []
    training_job = client.describe_training_job(
        TrainingJobName=training_jobs(client, name)[0]["TrainingJobName"]
    )
    assert training_job["TrainingJobStatus"] == training_job["SecondaryStatus"] == "Stopped"
    assert [step["Status"] for step in training_job["SecondaryStatusTransitions"]] == [
        "Starting",
        "Training",
        "Stopping",
        "Stopped",
    ]


def test_a_stopped_training_job_keeps_the_objective_it_had(amt: RunningServer, client: Any) -> None:
    name = start(client, create_request(sequence="last", most=1), 1)
    (log,) = amt.state_dir.glob(f"training-jobs/*/{name}-001-*/log")
    wait_until(lambda: "waits to be stopped" in log.read_text(), "the trainer's trap")

    description = stop(client, name)

    assert description["BestTrainingJob"]["FinalHyperParameterTuningJobObjectiveMetric"]["Value"] == 0.99


def test_stop_is_idempotent_while_stopping_and_refused_when_over(client: Any) -> None:
    name = start(client, create_request(image="stubborn:1", most=5), 1)
    wait_until(lambda: len(training_processes(name)) >= 4, "the stubborn processes")

    client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    assert describe(client, name)["HyperParameterTuningJobStatus"] == "Stopping"
    statuses = [job["TrainingJobStatus"] for job in training_jobs(client, name)]
    assert statuses == ["Stopping"]
    assert wait_for_end(client, name)["HyperParameterTuningJobStatus"] == "Stopped"

    with pytest.raises(ClientError, match="is already in status Stopped") as refusal:
        client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    assert refusal.value.response["Error"]["Code"] == "ValidationException"


def test_processes_that_ignore_sigterm_or_leave_their_session_are_killed(client: Any) -> None:
    name = start(client, create_request(image="stubborn:1", most=5), 1)
    wait_until(lambda: len(training_processes(name)) >= 4, "the stubborn processes")

    description = stop(client, name)

    assert description["TrainingJobStatusCounters"]["Stopped"] == 1
    wait_until(lambda: not training_processes(name), "the end of all stubborn processes", 5)


def test_what_a_finished_training_job_leaves_behind_is_killed(client: Any) -> None:
    description = run_to_end(client, create_request(image="daemon:1", most=2))

    assert description["TrainingJobStatusCounters"]["Completed"] == 2
    name = description["HyperParameterTuningJobName"]
    wait_until(lambda: not training_processes(name), "the end of the daemons", 5)


def test_failure_reason_names_the_end_of_the_log_and_the_exit_code(client: Any) -> None:
    description = run_to_end(client, create_request(sequence="fail 0.5", most=2))

    assert description["HyperParameterTuningJobStatus"] == "Completed"
    failed, succeeded = training_jobs(client, description["HyperParameterTuningJobName"])
    assert failed["TrainingJobStatus"] == "Failed"
    assert failed["FailureReason"] == "AlgorithmError: play: told to fail, exit code: 3"
    assert failed["ObjectiveStatus"] == "Failed"
    assert "FinalHyperParameterTuningJobObjectiveMetric" not in failed
    assert succeeded["TrainingJobStatus"] == "Completed"


def test_five_failures_without_a_success_fail_the_tuning_job(client: Any) -> None:
    description = run_to_end(client, create_request(sequence="fail", most=50, parallel=2))

    assert description["HyperParameterTuningJobStatus"] == "Failed"
    assert description["FailureReason"].startswith("No training job succeeded after 5 attempts.")
    assert description["TrainingJobStatusCounters"]["NonRetryableError"] >= 5
    assert "HyperParameterTuningEndTime" in description


def test_one_success_keeps_the_tuning_job_going(client: Any) -> None:
    description = run_to_end(client, create_request(sequence="fail fail fail fail 0.5 fail", most=9))

    assert description["HyperParameterTuningJobStatus"] == "Completed"
    assert description["TrainingJobStatusCounters"]["NonRetryableError"] == 8


ALL_FAILED = "All training jobs failed. Please take a look at the training job failures to get more details."


def no_objective(training_jobs: int) -> str:
    return (
        f"No objective metrics found after running {training_jobs} training jobs. Please ensure that the "
        "custom algorithm is emitting the objective metric as defined by the regular expression provided."
    )


@pytest.mark.parametrize(
    "sequence", ["none", "nan", "fail fail none fail fail fail", "fail fail fail fail none"]
)
def test_five_training_jobs_without_an_objective_fail_the_tuning_job(client: Any, sequence: str) -> None:
    description = run_to_end(client, create_request(sequence=sequence, most=50))

    assert description["HyperParameterTuningJobStatus"] == "Failed"
    assert description["FailureReason"] == no_objective(5)
    counters = description["TrainingJobStatusCounters"]
    assert counters["Completed"] + counters["NonRetryableError"] == 5
    assert description["ObjectiveStatusCounters"] == {"Succeeded": 0, "Pending": 0, "Failed": 5}


def test_one_objective_keeps_the_tuning_job_going(client: Any) -> None:
    description = run_to_end(client, create_request(sequence="none none fail none 0.5 none", most=8))

    assert description["HyperParameterTuningJobStatus"] == "Completed"
    assert description["TrainingJobStatusCounters"]["Completed"] == 7


THREE = {"CategoricalParameterRanges": [{"Name": "kind", "Values": ["a", "b", "c"]}]}


@pytest.mark.parametrize(
    ("sequence", "ranges", "reason"),
    [
        ("fail", RANGES, ALL_FAILED),
        ("none", RANGES, no_objective(3)),
        ("fail none fail", RANGES, no_objective(3)),
        ("fail", THREE, ALL_FAILED),
        ("nan fail", THREE, no_objective(3)),
    ],
)
def test_a_tuning_job_that_comes_to_nothing_is_failed(
    client: Any, sequence: str, ranges: dict[str, Any], reason: str
) -> None:
    """At its own end, the maximum or an exhausted space, with fewer than five training jobs."""
    most = 3 if ranges is RANGES else 50
    description = run_to_end(client, create_request(sequence=sequence, most=most, ranges=ranges))

    assert description["HyperParameterTuningJobStatus"] == "Failed"
    assert description["FailureReason"] == reason
    assert sum(description["TrainingJobStatusCounters"].values()) == 3


def test_stopped_training_jobs_are_no_failures(client: Any) -> None:
    """Four fail, then two are stopped at their own time limit: no fifth attempt, and not all failed."""
    request = create_request(sequence="fail fail fail fail hang", most=6, parallel=2, training_seconds=600)
    description = run_to_end(client, request)

    assert description["HyperParameterTuningJobStatus"] == "Completed"
    assert description["TrainingJobStatusCounters"]["NonRetryableError"] == 4
    assert description["TrainingJobStatusCounters"]["Stopped"] == 2


def test_the_time_limit_completes_a_tuning_job_without_an_objective(client: Any) -> None:
    description = run_to_end(client, create_request(sequence="fail none hang", most=50, runtime=600))

    assert description["HyperParameterTuningJobStatus"] == "Completed"
    assert description["TrainingJobStatusCounters"]["Stopped"] == 1
    assert "FailureReason" not in description


@pytest.mark.parametrize("strategy", ["Random", "Bayesian"])
def test_without_a_maximum_the_quota_ends_the_tuning_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    """The server's quotas are lowered: 750 training processes would take minutes."""
    lowered = "from airflow_amt.local import search; search.MAX_TRAINING_JOBS.update(Random=7, Bayesian=6); "
    main = launcher._MAIN.replace("from airflow_amt.cli", lowered + "from airflow_amt.cli")
    monkeypatch.setattr(launcher, "_MAIN", main)
    with running(tmp_path, images=IMAGES) as server, client_of(server) as client:
        request = create_request(
            sequence="0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8",
            most=None,
            runtime=90_000,
            parallel=3,
            strategy=strategy,
        )
        description = run_to_end(client, request)

        assert description["HyperParameterTuningJobStatus"] == "Completed"
        quota = {"Random": 7, "Bayesian": 6}[strategy]
        assert description["TrainingJobStatusCounters"]["Completed"] == quota
        assert sum(description["TrainingJobStatusCounters"].values()) == quota
        assert "MaxNumberOfTrainingJobs" not in description["HyperParameterTuningJobConfig"]["ResourceLimits"]


def test_training_time_limit_is_in_amt_seconds(client: Any) -> None:
    description = run_to_end(client, create_request(sequence="hang", most=1, training_seconds=60))

    assert description["HyperParameterTuningJobStatus"] == "Completed"
    (job,) = training_jobs(client, description["HyperParameterTuningJobName"])
    assert job["TrainingJobStatus"] == "Stopped"
    details = client.describe_training_job(TrainingJobName=job["TrainingJobName"])
    assert details["SecondaryStatus"] == "MaxRuntimeExceeded"
    assert 60 <= details["TrainingTimeInSeconds"] < 6000


def test_missing_input_data_fails_the_training_job(client: Any) -> None:
    channel = {
        "ChannelName": "train",
        "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://data/nothing/here"}},
    }
    description = run_to_end(client, create_request(most=1, InputDataConfig=[channel]))

    (job,) = training_jobs(client, description["HyperParameterTuningJobName"])
    assert job["TrainingJobStatus"] == "Failed"
    assert "'train'" in job["FailureReason"]
    assert "s3://data/nothing/here" in job["FailureReason"]
    assert "TrainingStartTime" not in job


def test_input_data_output_data_and_model(amt: RunningServer, client: Any, tmp_path: Path) -> None:
    """Script mode from a folder: reads its channel, writes a model, and both kinds of output."""
    source = amt.state_dir / "s3" / "data" / "numbers"
    source.mkdir(parents=True)
    (source / "one.txt").write_text("0.25")
    script = tmp_path / "code"
    script.mkdir()
    (script / "train.py").write_text(
        "import argparse, os, pathlib\n"
        "parser = argparse.ArgumentParser()\n"
        "parser.add_argument('-x', type=float)\n"
        "parser.add_argument('--depth', type=int)\n"
        "parsed = parser.parse_args()\n"
        "value = pathlib.Path(os.environ['SM_CHANNEL_TRAIN'], 'one.txt').read_text()\n"
        "pathlib.Path(os.environ['SM_MODEL_DIR'], 'model.txt').write_text(value)\n"
        "pathlib.Path(os.environ['SM_OUTPUT_DATA_DIR'], 'notes.txt').write_text(os.environ['GREETING'])\n"
        "print('objective=' + str(float(value) + parsed.depth))\n"
    )
    channel = {
        "ChannelName": "train",
        "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://data/numbers/"}},
    }
    request = create_request(
        image="any:image",
        most=1,
        static={
            "sagemaker_program": '"train.py"',
            "sagemaker_submit_directory": str(script),
            "depth": "3",
        },
        InputDataConfig=[channel],
        Environment={"GREETING": "hello"},
    )

    description = run_to_end(client, request)

    (job,) = training_jobs(client, description["HyperParameterTuningJobName"])
    assert job["FinalHyperParameterTuningJobObjectiveMetric"]["Value"] == 3.25, job
    details = client.describe_training_job(TrainingJobName=job["TrainingJobName"])
    uri = details["ModelArtifacts"]["S3ModelArtifacts"]
    assert uri == f"s3://models/out/{job['TrainingJobName']}/output/model.tar.gz"
    output = amt.state_dir / "s3" / "models" / "out" / job["TrainingJobName"] / "output"
    with tarfile.open(output / "model.tar.gz") as archive:
        member = archive.extractfile("model.txt")
        assert member is not None
        assert member.read() == b"0.25"
    with tarfile.open(output / "output.tar.gz") as archive:
        assert archive.getnames() == ["notes.txt"]
    assert details["HyperParameters"]["_tuning_objective_metric"] == "objective"
    assert details["FinalMetricDataList"][0]["Value"] == 3.25
    assert details["Environment"] == {"GREETING": "hello"}


def test_a_trainer_killed_by_a_signal(client: Any) -> None:
    name = start(client, create_request(sequence="hang 0.5", most=2), 1)
    (process,) = training_processes(name)

    os.kill(process.pid, signal.SIGKILL)

    wait_for_end(client, name)
    killed = training_jobs(client, name)[0]
    assert killed["TrainingJobStatus"] == "Failed"
    assert killed["FailureReason"].endswith("exit code: 137 (ended by SIGKILL)")


def test_a_flooding_log_fails_the_training_job_and_leaves_nothing(tmp_path: Path) -> None:
    options = ("--log-limit", "4", "--stop-grace", "0.3")
    with running(tmp_path, images=IMAGES, options=options) as server, client_of(server) as client:
        description = run_to_end(client, create_request(image="flood:1", most=1))

        (job,) = training_jobs(client, description["HyperParameterTuningJobName"])
        assert job["TrainingJobStatus"] == "Failed"
        assert job["FailureReason"] == "ClientError: its log grew beyond 4 MiB"
        assert training_processes(job["TrainingJobName"]) == []


def test_a_command_that_cannot_be_executed(tmp_path: Path) -> None:
    program = tmp_path / "broken"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    images = {"broken:1": str(program)}
    with running(tmp_path / "state", images=images) as server, client_of(server) as client:
        description = run_to_end(client, create_request(image="broken:1", most=50))

        assert description["HyperParameterTuningJobStatus"] == "Failed"
        reasons = {
            job["FailureReason"] for job in training_jobs(client, description["HyperParameterTuningJobName"])
        }
        assert len(reasons) == 1
        assert "cannot be started" in reasons.pop()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ending_the_server_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    with running(tmp_path, images=IMAGES) as server, client_of(server) as client:
        first = start(client, create_request(unique("hang"), sequence="hang", most=9, parallel=2), 2)
        second = start(client, create_request(unique("stub"), image="stubborn:1", most=9), 1)
        wait_until(lambda: len(training_processes(second)) >= 4, "the stubborn processes")
        began = time.monotonic()

        exit_code = server.stop(number)

        assert exit_code == 0
        assert time.monotonic() - began < 25
        assert training_processes(first) == []
        assert training_processes(second) == []
        assert "Traceback" not in server.log


def test_the_bundled_trainer_learns(client: Any) -> None:
    request = create_request(
        image="airflow-amt.local/sklearn-digits:latest",
        most=2,
        parallel=2,
        ranges={
            "ContinuousParameterRanges": [
                {"Name": "C", "MinValue": "1", "MaxValue": "100"},
                {"Name": "gamma", "MinValue": "0.0005", "MaxValue": "0.001"},
            ]
        },
    )
    algorithm = request["TrainingJobDefinition"]["AlgorithmSpecification"]
    algorithm["MetricDefinitions"] = [{"Name": "objective", "Regex": r"validation accuracy: ([0-9.]+)"}]

    description = run_to_end(client, request)

    best = description["BestTrainingJob"]["FinalHyperParameterTuningJobObjectiveMetric"]["Value"]
    assert best > 0.95, training_jobs(client, description["HyperParameterTuningJobName"])


def test_the_other_bundled_trainer_learns(client: Any) -> None:
    request = create_request(
        image="airflow-amt.local/sklearn-breast-cancer:latest",
        most=1,
        objective_type="Minimize",
        ranges={
            "ContinuousParameterRanges": [{"Name": "learning-rate", "MinValue": "0.1", "MaxValue": "0.2"}],
            "IntegerParameterRanges": [{"Name": "max-depth", "MinValue": "2", "MaxValue": "3"}],
        },
    )
    algorithm = request["TrainingJobDefinition"]["AlgorithmSpecification"]
    algorithm["MetricDefinitions"] = [{"Name": "objective", "Regex": r"validation logloss: ([0-9.]+)"}]

    description = run_to_end(client, request)

    best = description["BestTrainingJob"]["FinalHyperParameterTuningJobObjectiveMetric"]["Value"]
    assert 0.02 < best < 0.25
