"""Training jobs that no tuning job launched, and what all training jobs have in common."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from airflow_amt.local.launcher import start
from tests.local.support import (
    IMAGES,
    METRICS,
    client_of,
    create_request,
    describe,
    training_jobs,
    training_processes,
    unique,
    wait_for_end,
    wait_until,
)

pytestmark = pytest.mark.local


def training_request(name: str | None = None, *, sequence: str = "0.5", **changes: Any) -> dict[str, Any]:
    """Return the parameters of a CreateTrainingJob call whose process plays one outcome."""
    return {
        "TrainingJobName": name or f"{unique('alone')}-1-x",
        "HyperParameters": {"sequence": sequence},
        "AlgorithmSpecification": {
            "TrainingImage": "play:1",
            "TrainingInputMode": "File",
            "MetricDefinitions": METRICS,
        },
        "RoleArn": "arn:aws:iam::000000000000:role/training",
        "OutputDataConfig": {"S3OutputPath": "s3://models/alone"},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
        "StoppingCondition": {"MaxRuntimeInSeconds": 86_400},
        **changes,
    }


def wait_for_training(client: Any, name: str) -> dict[str, Any]:
    """Wait until a training job is over and return its description."""

    def over() -> dict[str, Any] | None:
        found: dict[str, Any] = client.describe_training_job(TrainingJobName=name)
        return None if found["TrainingJobStatus"] in ("InProgress", "Stopping") else found

    ended: dict[str, Any] = wait_until(over, f"the end of {name}")
    return ended


def train(client: Any, request: dict[str, Any]) -> dict[str, Any]:
    client.create_training_job(**request)
    return wait_for_training(client, request["TrainingJobName"])


def phases(description: dict[str, Any]) -> list[str]:
    return [phase["Status"] for phase in description["SecondaryStatusTransitions"]]


def test_a_training_job_of_its_own(client: Any) -> None:
    request = training_request(
        Tags=[{"Key": "team", "Value": "blue"}], Environment={"MODE": "fast"}, EnableNetworkIsolation=True
    )
    description = train(client, request)

    assert description["TrainingJobStatus"] == description["SecondaryStatus"] == "Completed"
    assert phases(description) == ["Starting", "Training", "Uploading", "Completed"]
    assert "TuningJobArn" not in description
    assert description["HyperParameters"] == {"sequence": "0.5"}
    (metric,) = description["FinalMetricDataList"]
    assert (metric["MetricName"], metric["Value"]) == ("objective", 0.5)
    assert description["ModelArtifacts"]["S3ModelArtifacts"].startswith("s3://models/alone/")
    assert description["BillableTimeInSeconds"] == description["TrainingTimeInSeconds"] >= 1
    assert description["Environment"] == {"MODE": "fast"}
    assert description["EnableNetworkIsolation"] is True
    assert description["ResourceConfig"] == request["ResourceConfig"]
    assert description["CreationTime"] <= description["TrainingStartTime"] <= description["TrainingEndTime"]
    assert client.list_tags(ResourceArn=description["TrainingJobArn"])["Tags"] == request["Tags"]


def test_failure_and_its_reason(client: Any) -> None:
    description = train(client, training_request(sequence="fail"))

    assert description["TrainingJobStatus"] == description["SecondaryStatus"] == "Failed"
    assert description["FailureReason"] == "AlgorithmError: play: told to fail, exit code: 3"


def test_names_are_unique_among_all_training_jobs(client: Any) -> None:
    request = training_request(sequence="hang")
    name = request["TrainingJobName"]
    client.create_training_job(**request)
    tuned = create_request(sequence="hang")
    client.create_hyper_parameter_tuning_job(**tuned)
    tuning_job = tuned["HyperParameterTuningJobName"]
    (job,) = wait_until(lambda: training_jobs(client, tuning_job), "a tuned training job")
    for taken in (name, name.upper(), job["TrainingJobName"]):
        with pytest.raises(ClientError) as refusal:
            client.create_training_job(**training_request(taken))
        assert refusal.value.response["Error"]["Code"] == "ResourceInUse"
    client.stop_training_job(TrainingJobName=name)
    client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=tuning_job)
    wait_for_training(client, name)
    wait_for_end(client, tuning_job)


def test_stop(client: Any) -> None:
    request = training_request(sequence="hang")
    name = request["TrainingJobName"]
    client.create_training_job(**request)
    wait_until(lambda: training_processes(name), "the process")
    client.stop_training_job(TrainingJobName=name)
    description = wait_for_training(client, name)

    assert description["TrainingJobStatus"] == description["SecondaryStatus"] == "Stopped"
    assert phases(description) == ["Starting", "Training", "Stopping", "Stopped"]
    assert training_processes(name) == []
    with pytest.raises(ClientError, match="is in status Stopped") as refusal:
        client.stop_training_job(TrainingJobName=name)
    assert refusal.value.response["Error"]["Code"] == "ValidationException"


def test_a_training_job_of_a_tuning_job_can_be_stopped(client: Any) -> None:
    request = create_request(sequence="hang 0.4", most=2)
    name = request["HyperParameterTuningJobName"]
    client.create_hyper_parameter_tuning_job(**request)
    wait_until(lambda: training_processes(name), "the first process")
    (job,) = training_jobs(client, name)
    client.stop_training_job(TrainingJobName=job["TrainingJobName"])
    description = wait_for_end(client, name)

    assert description["HyperParameterTuningJobStatus"] == "Completed"
    assert description["TrainingJobStatusCounters"]["Stopped"] == 1
    assert description["TrainingJobStatusCounters"]["Completed"] == 1


def test_the_time_limit(client: Any) -> None:
    description = train(
        client, training_request(sequence="hang", StoppingCondition={"MaxRuntimeInSeconds": 100})
    )

    assert (description["TrainingJobStatus"], description["SecondaryStatus"]) == (
        "Stopped",
        "MaxRuntimeExceeded",
    )


def test_metrics_are_read_while_it_runs(client: Any) -> None:
    name = f"{unique('live')}-1-x"
    request = training_request(
        name,
        HyperParameters={"curves": "0.1,0.2,0.3,hang"},
        AlgorithmSpecification={
            "TrainingImage": "epochs:1",
            "TrainingInputMode": "File",
            "MetricDefinitions": METRICS,
        },
    )
    client.create_training_job(**request)

    def latest() -> bool:
        found = client.describe_training_job(TrainingJobName=name)
        return [one["Value"] for one in found.get("FinalMetricDataList", ())] == [pytest.approx(0.3)]

    wait_until(latest, "the third objective")
    client.stop_training_job(TrainingJobName=name)
    assert wait_for_training(client, name)["FinalMetricDataList"][0]["Value"] == pytest.approx(0.3)


def test_input_data_are_a_phase_of_their_own(client: Any) -> None:
    channel = {
        "ChannelName": "train",
        "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://nowhere/data"}},
    }
    description = train(client, training_request(InputDataConfig=[channel]))

    assert phases(description) == ["Starting", "Downloading", "Failed"]
    assert "TrainingStartTime" not in description
    assert "TrainingTimeInSeconds" not in description
    assert "Data download failed" in description["FailureReason"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (
            {"AlgorithmSpecification": {"TrainingImage": "unknown:1", "TrainingInputMode": "File"}},
            "TrainingImage",
        ),
        ({"AlgorithmSpecification": {"TrainingInputMode": "File"}}, "TrainingImage"),
        (
            {
                "AlgorithmSpecification": {
                    "TrainingImage": "play:1",
                    "TrainingInputMode": "File",
                    "MetricDefinitions": [{"Name": "m", "Regex": "("}],
                }
            },
            "AlgorithmSpecification.MetricDefinitions[0].Regex",
        ),
        ({"EnableManagedSpotTraining": True}, "StoppingCondition.MaxWaitTimeInSeconds"),
        ({"Tags": [{"Key": "aws:x", "Value": "y"}]}, "Tags"),
    ],
)
def test_what_cannot_be_trained_is_refused(client: Any, changes: dict[str, Any], field: str) -> None:
    request = training_request(**changes)
    with pytest.raises(ClientError) as refusal:
        client.create_training_job(**request)

    assert refusal.value.response["Error"]["Code"] == "ValidationException"
    assert field in str(refusal.value)
    with pytest.raises(ClientError):
        client.describe_training_job(TrainingJobName=request["TrainingJobName"])


def test_listing(client: Any) -> None:
    prefix = unique("listed")
    names = [f"{prefix}-{letter}" for letter in "bac"]
    descriptions = [train(client, training_request(name, sequence="0.1")) for name in names]
    tuned = create_request(f"{prefix}-t", most=1)
    client.create_hyper_parameter_tuning_job(**tuned)
    wait_for_end(client, f"{prefix}-t")

    def listed(**options: Any) -> list[str]:
        pages = client.get_paginator("list_training_jobs").paginate(
            NameContains=prefix, PaginationConfig={"PageSize": 2}, **options
        )
        return [one["TrainingJobName"] for page in pages for one in page["TrainingJobSummaries"]]

    found = listed(SortBy="Name")
    # Those of tuning jobs are listed too.
    assert found[:3] == sorted(names)
    assert len(found) == 4
    assert listed(SortBy="CreationTime")[:3] == names
    assert listed(SortBy="CreationTime", SortOrder="Descending")[1:] == names[::-1]
    assert listed(StatusEquals="Failed") == []
    middle = descriptions[1]["CreationTime"]
    assert listed(CreationTimeAfter=middle + timedelta(milliseconds=1))[0] == names[2]
    assert listed(CreationTimeBefore=middle) == names[:1]
    assert len(listed(LastModifiedTimeAfter=descriptions[2]["LastModifiedTime"])) == 1
    (summary,) = client.list_training_jobs(NameContains=names[0])["TrainingJobSummaries"]
    for member in (
        "TrainingJobArn",
        "CreationTime",
        "TrainingEndTime",
        "LastModifiedTime",
        "TrainingJobStatus",
    ):
        assert summary[member] == descriptions[0][member]
    assert listed(WarmPoolStatusEquals="Available") == []


def test_a_training_job_outlives_its_server(tmp_path: Path) -> None:
    lost, retried = f"{unique('lost')}-1-x", f"{unique('retried')}-1-x"
    first = start(tmp_path, images=IMAGES)
    with client_of(first) as client:
        client.create_training_job(**training_request(lost, sequence="hang"))
        client.create_training_job(
            **training_request(
                retried,
                HyperParameters={"hangs": "1"},
                AlgorithmSpecification={"TrainingImage": "checkpoint:1", "TrainingInputMode": "File"},
                RetryStrategy={"MaximumRetryAttempts": 1},
            )
        )
        wait_until(lambda: training_processes(lost) and training_processes(retried), "both processes")
        wait_until(lambda: list(tmp_path.glob("training-jobs/*/*/checkpoints/attempts")), "the first attempt")
    first.kill()

    second = start(tmp_path, images=IMAGES)
    with client_of(second) as client:
        ended = wait_for_training(client, lost)
        done = wait_for_training(client, retried)
    assert second.stop() == 0

    assert ended["TrainingJobStatus"] == "Failed"
    assert ended["FailureReason"].startswith("InternalServerError: ")
    assert done["TrainingJobStatus"] == "Completed"
    assert phases(done) == ["Starting", "Training", "Restarting", "Training", "Uploading", "Completed"]
    assert training_processes(lost) == []


def test_several_instances_are_one_process_and_the_log_says_so(amt: Any, client: Any) -> None:
    request = create_request(
        most=1, ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 2, "VolumeSizeInGB": 1}
    )
    client.create_hyper_parameter_tuning_job(**request)
    name = request["HyperParameterTuningJobName"]
    assert wait_for_end(client, name)["HyperParameterTuningJobStatus"] == "Completed"
    (job,) = training_jobs(client, name)
    detail = client.describe_training_job(TrainingJobName=job["TrainingJobName"])
    log = amt.state_dir / "training-jobs" / "us-east-1" / job["TrainingJobName"] / "log"

    assert detail["ResourceConfig"]["InstanceCount"] == 2
    assert "InstanceCount" in log.read_text()
    assert describe(client, name)["TrainingJobDefinition"]["ResourceConfig"]["InstanceCount"] == 2
