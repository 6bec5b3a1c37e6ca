"""What is refused because of what there is, or is not: names, states, resources."""

from __future__ import annotations

from typing import Any

import pytest

from tests.local.conformance.shapes import model
from tests.local.conformance.wire import (
    DEFINITION,
    OPERATIONS,
    Wire,
    training_request,
    tuning_request,
)

pytestmark = pytest.mark.local

TUNING_JOB = {"HyperParameterTuningJobName": "nobody"}
TRAINING_JOB = {"TrainingJobName": "nobody"}
HANGS = {f"{DEFINITION}__StaticHyperParameters": {"sequence": "hang"}}


def arn(wire: Wire) -> str:
    return f"arn:aws:sagemaker:{wire.region}:000000000000:hyper-parameter-tuning-job/nobody"


# --- what does not exist ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "operation",
    [
        "DescribeHyperParameterTuningJob",
        "ListTrainingJobsForHyperParameterTuningJob",
        "StopHyperParameterTuningJob",
        "DeleteHyperParameterTuningJob",
    ],
)
def test_a_tuning_job_that_does_not_exist(wire: Wire, operation: str) -> None:
    """ResourceNotFound is what the model lists, but for Delete, for which it lists nothing.

    AWS's Kubernetes operator knows the error by the beginning of its message, and of SageMaker's other
    operations Delete answers like Describe; HashiCorp's AWS provider expects this code of Delete.
    """
    refusal = wire.refusal(operation, TUNING_JOB)

    assert (refusal.status, refusal.code) == (400, "ResourceNotFound")
    assert refusal.message.startswith("Amazon SageMaker can't find a tuning job")
    assert "nobody" in refusal.message


@pytest.mark.parametrize("operation", ["DescribeTrainingJob", "StopTrainingJob"])
def test_a_training_job_that_does_not_exist(wire: Wire, operation: str) -> None:
    """The model lists ResourceNotFound, but AWS answers ValidationException (aws/aws-sdk issue 165).

    Clients live by that: the Amazon provider's SageMakerTrainingOperator takes any other code for a failure
    of its look whether a job exists; AWS's Kubernetes operator knows the beginning of the message.
    """
    refusal = wire.refusal(operation, TRAINING_JOB)

    assert (refusal.status, refusal.code) == (400, "ValidationException")
    assert refusal.message.startswith("Requested resource not found")
    assert "nobody" in refusal.message


@pytest.mark.parametrize(
    ("operation", "params"),
    [
        ("AddTags", {"Tags": [{"Key": "a", "Value": "b"}]}),
        ("ListTags", {}),
        ("DeleteTags", {"TagKeys": ["a"]}),
    ],
)
def test_a_resource_that_does_not_exist(wire: Wire, operation: str, params: dict[str, Any]) -> None:
    refusal = wire.refusal(operation, {"ResourceArn": arn(wire), **params})

    assert (refusal.status, refusal.code) == (400, "ValidationException")
    assert "ResourceArn" in refusal.message
    assert arn(wire) in refusal.message


def test_jobs_of_another_region_do_not_exist(wire: Wire) -> None:
    wire.tune(tuning_request("here"))
    training_job = wire.training_jobs("here")[0]["TrainingJobName"]
    wire.region += "-other"

    assert wire("ListHyperParameterTuningJobs")["HyperParameterTuningJobSummaries"] == []
    assert wire("ListTrainingJobs")["TrainingJobSummaries"] == []
    wire.refusal("DescribeHyperParameterTuningJob", {"HyperParameterTuningJobName": "here"})
    wire.refusal("DescribeTrainingJob", {"TrainingJobName": training_job})
    assert wire.tune(tuning_request("here"))["HyperParameterTuningJobStatus"] == "Completed"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_errors_are_those_that_the_model_lists_or_common_ones(wire: Wire, operation: str) -> None:
    """One refusal of each operation: its code is listed for it, or a common one of all of AWS."""
    params: dict[str, dict[str, Any]] = {
        "ListHyperParameterTuningJobs": {"NextToken": "never given out"},
        "ListTrainingJobs": {"NextToken": "never given out"},
        "AddTags": {"ResourceArn": arn(wire), "Tags": []},
        "ListTags": {"ResourceArn": arn(wire)},
        "DeleteTags": {"ResourceArn": arn(wire), "TagKeys": ["a"]},
        "CreateHyperParameterTuningJob": {},
        "CreateTrainingJob": {},
    }
    is_training_job = operation in ("DescribeTrainingJob", "StopTrainingJob")
    refusal = wire.refusal(operation, params.get(operation, TRAINING_JOB if is_training_job else TUNING_JOB))

    listed = {shape.name for shape in model().operation_model(operation).error_shapes}
    if operation == "DeleteHyperParameterTuningJob":
        listed.add("ResourceNotFound")
    assert refusal.code in listed | {"ValidationException"}


# --- names -----------------------------------------------------------------------------------------


def test_the_name_of_a_tuning_job_is_unique_in_any_case_even_after_its_end(wire: Wire) -> None:
    wire.tune(tuning_request("Taken"))
    for name in ("Taken", "tAKEN"):
        refusal = wire.refusal("CreateHyperParameterTuningJob", tuning_request(name))
        assert (refusal.status, refusal.code) == (400, "ResourceInUse")
        assert "hyper-parameter-tuning-job/taken" in refusal.message
    found = wire("DescribeHyperParameterTuningJob", HyperParameterTuningJobName="TAKEN")
    assert found["HyperParameterTuningJobName"] == "Taken"


def test_the_name_of_a_training_job_is_unique_also_among_tuned_ones(wire: Wire) -> None:
    wire.send("CreateTrainingJob", training_request("taken"))
    wire.tune(tuning_request("tuned"))
    for name in ("taken", wire.training_jobs("tuned")[0]["TrainingJobName"]):
        refusal = wire.refusal("CreateTrainingJob", training_request(name))
        assert (refusal.status, refusal.code) == (400, "ResourceInUse")
        assert "Training job names must be unique within an AWS account and region" in refusal.message
    wire.training_job_over("taken")


# --- stopping and deleting -------------------------------------------------------------------------


def test_a_tuning_job_that_is_over_cannot_be_stopped(wire: Wire) -> None:
    wire.tune(tuning_request("over"))

    refusal = wire.refusal("StopHyperParameterTuningJob", {"HyperParameterTuningJobName": "over"})

    assert (refusal.status, refusal.code) == (400, "ValidationException")
    assert "status Completed" in refusal.message


def test_a_training_job_that_is_over_cannot_be_stopped(wire: Wire) -> None:
    """AWS's words (awslabs/benchmark-ai issue 928), which AWS's notebook scheduler looks for."""
    wire.send("CreateTrainingJob", training_request("over"))
    wire.training_job_over("over")

    refusal = wire.refusal("StopTrainingJob", {"TrainingJobName": "over"})

    assert (refusal.status, refusal.code) == (400, "ValidationException")
    assert "The request was rejected because the training job is in status Completed" in refusal.message


def test_a_tuned_training_job_can_be_stopped_alone(wire: Wire) -> None:
    wire.send("CreateHyperParameterTuningJob", tuning_request("goes-on", **HANGS))
    first = wire.training_job_starts("goes-on")["TrainingJobName"]

    wire("StopTrainingJob", TrainingJobName=first)

    assert wire.training_job_over(first)["TrainingJobStatus"] == "Stopped"
    described = wire("DescribeHyperParameterTuningJob", HyperParameterTuningJobName="goes-on")
    assert described["HyperParameterTuningJobStatus"] == "InProgress"
    wire("StopHyperParameterTuningJob", HyperParameterTuningJobName="goes-on")
    stopped = wire.tuning_job_over("goes-on")
    assert stopped["TrainingJobStatusCounters"]["Stopped"] == len(wire.training_jobs("goes-on"))


def test_only_a_tuning_job_that_is_over_can_be_deleted(wire: Wire) -> None:
    """HashiCorp's AWS provider looks for these words in AWS's refusal, and stops the tuning job then."""
    wire.send("CreateHyperParameterTuningJob", tuning_request("runs", **HANGS))
    wire.training_job_starts("runs")

    refusal = wire.refusal("DeleteHyperParameterTuningJob", {"HyperParameterTuningJobName": "runs"})

    assert (refusal.status, refusal.code) == (400, "ValidationException")
    assert "not in a terminal state" in refusal.message
    assert "InProgress" in refusal.message
    wire("StopHyperParameterTuningJob", HyperParameterTuningJobName="runs")
    wire.tuning_job_over("runs")
    wire("DeleteHyperParameterTuningJob", HyperParameterTuningJobName="runs")


def test_a_deleted_tuning_job_is_gone_and_its_training_jobs_are_not(wire: Wire) -> None:
    """API, ``DeleteHyperParameterTuningJob``: "deletes only the tuning job entry"."""
    described = wire.tune(tuning_request("gone"))
    names = [summary["TrainingJobName"] for summary in wire.training_jobs("gone")]

    wire("DeleteHyperParameterTuningJob", HyperParameterTuningJobName="gone")

    for operation in (
        "DescribeHyperParameterTuningJob",
        "ListTrainingJobsForHyperParameterTuningJob",
        "StopHyperParameterTuningJob",
        "DeleteHyperParameterTuningJob",
    ):
        assert wire.refusal(operation, {"HyperParameterTuningJobName": "gone"}).code == "ResourceNotFound"
    assert wire("ListHyperParameterTuningJobs")["HyperParameterTuningJobSummaries"] == []
    tags = {"ResourceArn": described["HyperParameterTuningJobArn"]}
    assert wire.refusal("ListTags", tags).code == "ValidationException"
    for name in names:
        training_job = wire("DescribeTrainingJob", TrainingJobName=name)
        assert training_job["TuningJobArn"] == described["HyperParameterTuningJobArn"]
    listed = wire("ListTrainingJobs")["TrainingJobSummaries"]
    assert sorted(summary["TrainingJobName"] for summary in listed) == sorted(names)


def test_the_name_of_a_deleted_tuning_job_is_free_again(wire: Wire) -> None:
    wire.tune(tuning_request("again"))
    before = {summary["TrainingJobName"] for summary in wire.training_jobs("again")}
    wire("DeleteHyperParameterTuningJob", HyperParameterTuningJobName="again")

    assert wire.tune(tuning_request("again"))["HyperParameterTuningJobStatus"] == "Completed"

    after = {summary["TrainingJobName"] for summary in wire.training_jobs("again")}
    assert len(before) == len(after) == 2
    assert not before & after


# --- limits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("strategy", "limit"), [("Random", 10_000), ("Bayesian", 750)])
def test_the_quota_of_training_jobs(wire: Wire, strategy: str, limit: int) -> None:
    """Developer guide, quotas. A job at the limit is accepted, and stopped at once."""
    limits = "HyperParameterTuningJobConfig__ResourceLimits__MaxNumberOfTrainingJobs"
    changes = {"HyperParameterTuningJobConfig__Strategy": strategy, **HANGS}
    refusal = wire.refusal(
        "CreateHyperParameterTuningJob", tuning_request("much", **changes, **{limits: limit + 1})
    )
    assert refusal.code == "ResourceLimitExceeded"
    assert str(limit) in refusal.message
    wire.send("CreateHyperParameterTuningJob", tuning_request("much", **changes, **{limits: limit}))
    wire("StopHyperParameterTuningJob", HyperParameterTuningJobName="much")
    wire.tuning_job_over("much")


def test_the_quota_of_parallel_training_jobs(wire: Wire) -> None:
    limits = "HyperParameterTuningJobConfig__ResourceLimits__MaxParallelTrainingJobs"
    refusal = wire.refusal("CreateHyperParameterTuningJob", tuning_request("wide", **{limits: 101}))
    assert refusal.code == "ResourceLimitExceeded"
    assert "100" in refusal.message


def test_a_resource_has_fifty_tags_at_most(wire: Wire) -> None:
    described = wire.tune(tuning_request("tagged"))
    resource = {"ResourceArn": described["HyperParameterTuningJobArn"]}
    fifty = [{"Key": f"k{number}", "Value": ""} for number in range(50)]
    wire.send("AddTags", {**resource, "Tags": fifty})
    wire.send("AddTags", {**resource, "Tags": [{"Key": "k1", "Value": "another"}]})

    refusal = wire.refusal("AddTags", {**resource, "Tags": [{"Key": "one more", "Value": ""}]})

    assert (refusal.status, refusal.code) == (400, "ValidationException")
    assert "50" in refusal.message
    assert wire.send("ListTags", resource)["Tags"][1] == {"Key": "k1", "Value": "another"}


@pytest.mark.parametrize(
    "tags",
    [
        [{"Key": "aws:own", "Value": ""}],
        [{"Key": "AWS:own", "Value": ""}],
        [{"Key": "k", "Value": "a"}, {"Key": "k", "Value": "b"}],
    ],
)
def test_tags_that_cannot_be_added(wire: Wire, tags: list[dict[str, str]]) -> None:
    arn_of = wire.tune(tuning_request("tags"))["HyperParameterTuningJobArn"]
    for operation, params in (
        ("AddTags", {"ResourceArn": arn_of, "Tags": tags}),
        ("CreateHyperParameterTuningJob", tuning_request("more", Tags=tags)),
        ("CreateTrainingJob", training_request("more", Tags=tags)),
    ):
        refusal = wire.refusal(operation, params)
        assert (refusal.status, refusal.code) == (400, "ValidationException")
        assert "Tags" in refusal.message
        assert tags[0]["Key"] in refusal.message
