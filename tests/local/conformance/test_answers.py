"""What each operation answers to a good request, held against its output in the service model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from airflow_amt.local import RunningServer
from tests.local.conformance.shapes import disagreements, model
from tests.local.conformance.wire import (
    CONFIG,
    DEFINITION,
    GOING_ON,
    OPERATIONS,
    Wire,
    connected,
    several,
    training_request,
    tuning_request,
)
from tests.local.support import wait_until

pytestmark = pytest.mark.local

RUNNING = {f"{DEFINITION}__StaticHyperParameters": {"sequence": "hang"}}
CHANNEL = {
    "ChannelName": "train",
    "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://data/train"}},
}
#: What has no effect here, but must come back.
CARRIED: dict[str, Any] = {
    "EnableManagedSpotTraining": True,
    "StoppingCondition": {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 7200},
    "CheckpointConfig": {"S3Uri": "s3://checkpoints/here", "LocalPath": "/opt/ml/checkpoints"},
    "RetryStrategy": {"MaximumRetryAttempts": 3},
    "EnableNetworkIsolation": True,
    "EnableInterContainerTrafficEncryption": True,
    "VpcConfig": {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]},
    "Environment": {"COLOUR": "red"},
    "InputDataConfig": [CHANNEL],
}


@pytest.fixture(scope="module")
def world(server: RunningServer) -> Iterator[Wire]:
    """A region with jobs of every kind.

    Tuning jobs ``over``, ``failed`` and ``running``; training jobs ``trained``, ``broken-1-a`` and
    ``trains-1-a`` (the trainer reads the number in a name).
    """
    data = server.state_dir / "s3" / "data" / "train"
    data.mkdir(parents=True, exist_ok=True)
    (data / "rows.csv").write_text("1,2\n")
    with connected(server, "world-1") as wire:
        carried = {f"{DEFINITION}__{name}": value for name, value in CARRIED.items()}
        tags = [{"Key": "team", "Value": "blue"}]
        wire.tune(tuning_request("over", Tags=tags, **carried))
        wire.tune(tuning_request("failed", **{f"{DEFINITION}__StaticHyperParameters": {"sequence": "fail"}}))
        wire.send("CreateHyperParameterTuningJob", tuning_request("running", **RUNNING))
        wire.send("CreateTrainingJob", training_request("trained", Tags=tags, **CARRIED))
        broken = training_request("broken-1-a", "play:1", HyperParameters={"sequence": "fail"})
        wire.send("CreateTrainingJob", broken)
        wire.send(
            "CreateTrainingJob",
            training_request("trains-1-a", "play:1", HyperParameters={"sequence": "hang"}),
        )
        wire.training_job_over("trained")
        wire.training_job_over("broken-1-a")
        wire.training_job_starts("running")
        yield wire
        wire("StopHyperParameterTuningJob", HyperParameterTuningJobName="running")
        wire("StopTrainingJob", TrainingJobName="trains-1-a")
        wire.tuning_job_over("running")
        wire.training_job_over("trains-1-a")


def answered(wire: Wire, operation: str, **params: Any) -> dict[str, Any]:
    """Make a call and hold its answer against the model."""
    answer = wire(operation, **params)
    assert disagreements(operation, answer) == []
    return answer


def test_every_operation_is_one_of_the_model() -> None:
    assert set(OPERATIONS) <= set(model().operation_names)


@pytest.mark.parametrize(
    ("name", "status"), [("over", "Completed"), ("failed", "Failed"), ("running", "InProgress")]
)
def test_the_description_of_a_tuning_job(world: Wire, name: str, status: str) -> None:
    answer = answered(world, "DescribeHyperParameterTuningJob", HyperParameterTuningJobName=name)

    assert answer["HyperParameterTuningJobStatus"] == status
    assert answer["HyperParameterTuningJobArn"].endswith(f":hyper-parameter-tuning-job/{name}")
    assert ("HyperParameterTuningEndTime" in answer) == (status != "InProgress")
    assert ("FailureReason" in answer) == (status == "Failed")
    assert ("BestTrainingJob" in answer) == (status == "Completed")
    assert "OverallBestTrainingJob" not in answer
    assert "WarmStartConfig" not in answer
    jobs = world.training_jobs(name)
    assert sum(answer["TrainingJobStatusCounters"].values()) == len(jobs)
    assert sum(answer["ObjectiveStatusCounters"].values()) == len(jobs)
    assert answer["ConsumedResources"]["RuntimeInSeconds"] >= 0


def test_the_description_repeats_the_request(world: Wire) -> None:
    answer = answered(world, "DescribeHyperParameterTuningJob", HyperParameterTuningJobName="over")
    request = tuning_request("over")

    assert answer[CONFIG] == request[CONFIG]
    described = answer[DEFINITION]
    for name in ("AlgorithmSpecification", "RoleArn", "ResourceConfig"):
        assert described[name] == request[DEFINITION][name]
    for name, value in CARRIED.items():
        assert described[name] == value
    assert request[DEFINITION]["OutputDataConfig"].items() <= described["OutputDataConfig"].items()
    # The SageMaker SDK finds the objective of a job that it attaches to in there.
    static = described["StaticHyperParameters"]
    assert static == {"sequence": "0.5", "_tuning_objective_metric": "objective"}


def test_the_description_of_a_tuned_training_job(world: Wire) -> None:
    summary = world.training_jobs("over")[0]
    answer = answered(world, "DescribeTrainingJob", TrainingJobName=summary["TrainingJobName"])

    assert answer["TrainingJobStatus"] == answer["SecondaryStatus"] == "Completed"
    assert answer["TuningJobArn"].endswith(":hyper-parameter-tuning-job/over")
    assert answer["TrainingJobArn"] == summary["TrainingJobArn"]
    assert summary["TunedHyperParameters"].items() <= answer["HyperParameters"].items()
    assert answer["HyperParameters"]["sequence"] == "0.5"
    for name, value in CARRIED.items():
        assert answer[name] == value
    check_a_completed_training_job(answer, {"objective": 0.5})


def check_a_completed_training_job(answer: dict[str, Any], metrics: dict[str, float]) -> None:
    final = {one["MetricName"]: one["Value"] for one in answer["FinalMetricDataList"]}
    assert final == metrics
    name = re.escape(answer["TrainingJobName"])
    artifacts = answer["ModelArtifacts"]["S3ModelArtifacts"]
    assert re.fullmatch(rf"s3://models/out/{name}/output/model\.tar\.gz", artifacts)
    assert answer["BillableTimeInSeconds"] >= 1
    assert answer["TrainingTimeInSeconds"] >= 1
    assert (
        answer["CreationTime"]
        <= answer["TrainingStartTime"]
        <= answer["TrainingEndTime"]
        <= answer["LastModifiedTime"]
    )
    transitions = answer["SecondaryStatusTransitions"]
    statuses = [one["Status"] for one in transitions]
    assert statuses[0] == "Starting"
    assert statuses[-1] == "Completed"
    assert "Training" in statuses
    for earlier, later in pairwise(transitions):
        assert earlier["EndTime"] == later["StartTime"] >= earlier["StartTime"]


def test_the_description_of_a_training_job_of_its_own(world: Wire) -> None:
    answer = answered(world, "DescribeTrainingJob", TrainingJobName="trained")

    assert "TuningJobArn" not in answer
    assert answer["HyperParameters"] == {"x": "0.5"}
    for name, value in CARRIED.items():
        assert answer[name] == value
    check_a_completed_training_job(answer, {"objective": 0.5})


def test_the_description_of_a_training_job_that_failed(world: Wire) -> None:
    answer = answered(world, "DescribeTrainingJob", TrainingJobName="broken-1-a")

    assert answer["TrainingJobStatus"] == answer["SecondaryStatus"] == "Failed"
    assert answer["SecondaryStatusTransitions"][-1]["Status"] == "Failed"
    assert "told to fail" in answer["FailureReason"] or "exit" in answer["FailureReason"].lower()


def test_the_description_of_a_training_job_that_runs(world: Wire) -> None:
    def training() -> dict[str, Any] | None:
        answer = answered(world, "DescribeTrainingJob", TrainingJobName="trains-1-a")
        return answer if answer["SecondaryStatus"] == "Training" else None

    answer = wait_until(training, "training of trains")

    assert answer["TrainingJobStatus"] == "InProgress"
    assert "TrainingEndTime" not in answer
    assert "BillableTimeInSeconds" not in answer
    assert "EndTime" not in answer["SecondaryStatusTransitions"][-1]


@pytest.mark.parametrize(
    ("operation", "params", "member", "count"),
    [
        ("ListHyperParameterTuningJobs", {}, "HyperParameterTuningJobSummaries", 3),
        (
            "ListTrainingJobsForHyperParameterTuningJob",
            {"HyperParameterTuningJobName": "over"},
            "TrainingJobSummaries",
            2,
        ),
        (
            "ListTrainingJobsForHyperParameterTuningJob",
            {"HyperParameterTuningJobName": "failed"},
            "TrainingJobSummaries",
            2,
        ),
        (
            "ListTrainingJobsForHyperParameterTuningJob",
            {"HyperParameterTuningJobName": "running"},
            "TrainingJobSummaries",
            1,
        ),
        ("ListTrainingJobs", {}, "TrainingJobSummaries", 8),
    ],
)
def test_lists(world: Wire, operation: str, params: dict[str, Any], member: str, count: int) -> None:
    answer = answered(world, operation, **params)

    assert len(answer[member]) == count
    assert "NextToken" not in answer


def test_a_page_has_the_token_of_the_next(world: Wire) -> None:
    for operation in ("ListHyperParameterTuningJobs", "ListTrainingJobs"):
        assert answered(world, operation, MaxResults=1)["NextToken"]


@pytest.mark.parametrize("kind", ["HyperParameterTuningJob", "TrainingJob"])
def test_tags(world: Wire, kind: str) -> None:
    name = {"HyperParameterTuningJob": "over", "TrainingJob": "trained"}[kind]
    arn = world(f"Describe{kind}", **{f"{kind}Name": name})[f"{kind}Arn"]

    assert answered(world, "ListTags", ResourceArn=arn)["Tags"] == [{"Key": "team", "Value": "blue"}]
    more = [{"Key": "cost", "Value": ""}]
    assert len(answered(world, "AddTags", ResourceArn=arn, Tags=more)["Tags"]) == 2
    assert answered(world, "DeleteTags", ResourceArn=arn, TagKeys=["cost"]) == {}
    assert answered(world, "ListTags", ResourceArn=arn, MaxResults=50)["Tags"] == [
        {"Key": "team", "Value": "blue"}
    ]


def test_training_jobs_have_the_tags_of_their_tuning_job(world: Wire) -> None:
    """API, ``CreateHyperParameterTuningJob``, ``Tags``."""
    for summary in world.training_jobs("over"):
        answer = answered(world, "ListTags", ResourceArn=summary["TrainingJobArn"])
        assert answer["Tags"] == [{"Key": "team", "Value": "blue"}]


def test_create_stop_and_delete(wire: Wire) -> None:
    answer = answered(wire, "CreateHyperParameterTuningJob", **tuning_request("one", **RUNNING))
    arn = answer["HyperParameterTuningJobArn"]
    assert arn == f"arn:aws:sagemaker:{wire.region}:000000000000:hyper-parameter-tuning-job/one"
    wire.training_job_starts("one")
    assert answered(wire, "StopHyperParameterTuningJob", HyperParameterTuningJobName="one") == {}
    stopped = wire.tuning_job_over("one")
    assert disagreements("DescribeHyperParameterTuningJob", stopped) == []
    assert stopped["HyperParameterTuningJobStatus"] == "Stopped"
    assert answered(wire, "DeleteHyperParameterTuningJob", HyperParameterTuningJobName="one") == {}

    hang = training_request("alone-1-a", "play:1", HyperParameters={"sequence": "hang"})
    created = answered(wire, "CreateTrainingJob", **hang)["TrainingJobArn"]
    assert created == f"arn:aws:sagemaker:{wire.region}:000000000000:training-job/alone-1-a"
    assert answered(wire, "StopTrainingJob", TrainingJobName="alone-1-a") == {}
    over = wire.training_job_over("alone-1-a")
    assert disagreements("DescribeTrainingJob", over) == []
    assert over["TrainingJobStatus"] == over["SecondaryStatus"] == "Stopped"
    assert "Stopping" in [one["Status"] for one in over["SecondaryStatusTransitions"]]


def test_several_definitions_come_back_as_several(wire: Wire) -> None:
    request = tuning_request("several", **several({}, {}))
    description = wire.tune(request)

    assert disagreements("DescribeHyperParameterTuningJob", description) == []
    assert DEFINITION not in description
    described = description["TrainingJobDefinitions"]
    assert [one["DefinitionName"] for one in described] == ["a", "b"]
    for one, wanted in zip(described, request["TrainingJobDefinitions"], strict=True):
        assert one["TuningObjective"] == wanted["TuningObjective"]
        assert one["HyperParameterRanges"] == wanted["HyperParameterRanges"]
    assert description["HyperParameterTuningJobStatus"] not in GOING_ON
