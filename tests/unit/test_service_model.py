from __future__ import annotations

from typing import Any

import pytest
from botocore.model import Shape

from airflow_amt.service_model import (
    aws_message,
    check_create_request,
    coerce,
    compiled_pattern,
    service_model,
    validate,
)
from airflow_amt.tuning.criteria import MAX_RUNTIME_SECONDS, MIN_NOT_IMPROVING, MIN_RUNTIME_SECONDS
from tests.unit.requests import create_request, set_path

CREATE = "CreateHyperParameterTuningJob"
LIMITS = "HyperParameterTuningJobConfig.ResourceLimits"
CRITERIA = "HyperParameterTuningJobConfig.TuningJobCompletionCriteria"


def required_paths(shape: Shape, value: Any, path: str = "") -> list[str]:
    """Every required member inside what a request holds."""
    if shape.type_name == "list":
        return [
            found
            for n, item in enumerate(value)
            for found in required_paths(shape.member, item, f"{path}.{n}")
        ]
    if shape.type_name != "structure":
        return []
    paths = [f"{path}.{key}".lstrip(".") for key in shape.required_members]
    for key, item in value.items():
        paths += required_paths(shape.members[key], item, f"{path}.{key}".lstrip("."))
    return paths


REQUIRED = required_paths(service_model().operation_model(CREATE).input_shape, create_request())


def test_the_good_request_is_good() -> None:
    assert check_create_request(create_request()) == []
    assert len(REQUIRED) > 15


@pytest.mark.parametrize("path", REQUIRED)
def test_each_required_field_is_missed_by_name(path: str) -> None:
    request = create_request()
    set_path(request, path, None)
    named = [problem.field for problem in check_create_request(request)]
    expected = ".".join(part for part in path.split(".") if not part.isdigit())
    assert expected in [field.replace("[0]", "") for field in named]


@pytest.mark.parametrize(
    ("path", "value", "kind"),
    [
        ("HyperParameterTuningJobName", "a" * 33, "max_length"),
        ("HyperParameterTuningJobName", "-a", "pattern"),
        ("HyperParameterTuningJobName", "under_score", "pattern"),
        ("HyperParameterTuningJobName", "", "min_length"),
        ("HyperParameterTuningJobName", 5, "type"),
        ("HyperParameterTuningJobConfig.Strategy", "Annealing", "enum"),
        (f"{LIMITS}.MaxRuntimeInSeconds", 60, "min"),
        (f"{LIMITS}.MaxRuntimeInSeconds", 15_768_001, "max"),
        (f"{LIMITS}.MaxNumberOfTrainingJobs", 0, "min"),
        (f"{LIMITS}.MaxNumberOfTrainingJobs", True, "type"),
        (f"{LIMITS}.MaxNumberOfTrainingJobs", 2**31, "type"),
        (f"{LIMITS}.MaxParallelTrainingJobs", 0, "min"),
        (f"{LIMITS}.MaxTrainingJobs", 5, "unknown"),
        (f"{CRITERIA}.BestObjectiveNotImproving.MaxNumberOfTrainingJobsNotImproving", -1, "min"),
        (f"{CRITERIA}.BestObjectiveNotImproving.MaxNumberOfTrainingJobsNotImproving", 2, "min"),
        (f"{CRITERIA}.TargetObjectiveMetricValue", float("inf"), "type"),
        (f"{CRITERIA}.TargetObjectiveMetricValue", 1e300, "type"),
        (f"{CRITERIA}.ConvergenceDetected.CompleteOnConvergence", "Yes", "enum"),
        ("HyperParameterTuningJobConfig.RandomSeed", -1, "min"),
        ("TrainingJobDefinition.RoleArn", "sagemaker-role-name-only", "pattern"),
        ("TrainingJobDefinition.ResourceConfig.InstanceType", "ml.m5.tiny", "enum"),
        ("TrainingJobDefinition.InputDataConfig", [], "min_length"),
        ("TrainingJobDefinition.StaticHyperParameters", {str(n): "x" for n in range(101)}, "max_length"),
        ("TrainingJobDefinition.OutputDataConfig.S3OutputPath", "models", "pattern"),
        ("Tags", [{"Key": "k", "Value": "v"}] * 51, "max_length"),
        ("Tags", {"k": "v"}, "type"),
    ],
)
def test_each_limit_is_missed_by_name(path: str, value: Any, kind: str) -> None:
    request = create_request()
    set_path(request, path, value)
    found = [(problem.path, problem.kind) for problem in validate(CREATE, request)]
    assert (path, kind) in found
    assert path in [problem.field for problem in check_create_request(request)]
    spelled = ".".join(part[0].lower() + part[1:] for part in path.split("."))
    assert f"({path})" in aws_message(validate(CREATE, request))
    assert f"at '{spelled}' failed to satisfy constraint: Member " in aws_message(validate(CREATE, request))


def test_a_field_is_named_once() -> None:
    request = create_request()
    set_path(request, f"{LIMITS}.MaxRuntimeInSeconds", 60)
    assert [problem.field for problem in check_create_request(request)] == [f"{LIMITS}.MaxRuntimeInSeconds"]


def test_list_positions_and_unions() -> None:
    problems = validate(
        "AddTags",
        {
            "ResourceArn": "arn:aws:sagemaker:eu-west-1:000000000000:hyper-parameter-tuning-job/x",
            "Tags": [{"Key": "a", "Value": "b"}, {"Key": "a"}],
        },
    )
    assert [problem.path for problem in problems] == ["Tags[1].Value"]
    assert "at 'tags.2.member.value'" in aws_message(problems)


def test_rendered_scalars_are_turned_back() -> None:
    request = create_request()
    rendered = create_request()
    set_path(rendered, f"{LIMITS}.MaxNumberOfTrainingJobs", "4")
    set_path(rendered, f"{LIMITS}.MaxParallelTrainingJobs", " 2 ")
    set_path(rendered, "TrainingJobDefinition.StoppingCondition.MaxRuntimeInSeconds", "3600")
    set_path(rendered, "TrainingJobDefinition.StaticHyperParameters.epochs", 5)
    set_path(
        rendered, "HyperParameterTuningJobConfig.ParameterRanges.ContinuousParameterRanges.0.MinValue", 0.001
    )
    set_path(rendered, "TrainingJobDefinition.VpcConfig", None)
    rendered["WarmStartConfig"] = None
    assert coerce(CREATE, rendered) == request
    set_path(rendered, f"{CRITERIA}.TargetObjectiveMetricValue", "0.93")
    set_path(rendered, "TrainingJobDefinition.EnableManagedSpotTraining", "False")
    coerced = coerce(CREATE, rendered)
    assert coerced["HyperParameterTuningJobConfig"]["TuningJobCompletionCriteria"] == {
        "TargetObjectiveMetricValue": 0.93
    }
    assert coerced["TrainingJobDefinition"]["EnableManagedSpotTraining"] is False


def test_what_cannot_be_turned_back_stays_for_the_check() -> None:
    request = create_request()
    set_path(request, f"{LIMITS}.MaxNumberOfTrainingJobs", "4.5")
    assert coerce(CREATE, request) == request
    assert [problem.kind for problem in validate(CREATE, request)] == ["type"]


def test_limits_in_the_domain_equal_the_service_model() -> None:
    shapes = service_model()
    assert shapes.shape_for("MaxNumberOfTrainingJobsNotImproving").metadata["min"] == MIN_NOT_IMPROVING
    runtime = shapes.shape_for("HyperParameterTuningMaxRuntimeInSeconds").metadata
    assert (runtime["min"], runtime["max"]) == (MIN_RUNTIME_SECONDS, MAX_RUNTIME_SECONDS)


def patterns_of(shape: Shape, seen: set[str]) -> set[str]:
    if shape.name in seen:
        return set()
    seen.add(shape.name)
    found = {shape.metadata["pattern"]} if "pattern" in shape.metadata else set()
    if shape.type_name == "structure":
        children = list(shape.members.values())
    elif shape.type_name == "list":
        children = [shape.member]
    elif shape.type_name == "map":
        children = [shape.key, shape.value]
    else:
        children = []
    for child in children:
        found |= patterns_of(child, seen)
    return found


@pytest.mark.parametrize(
    "operation",
    [
        CREATE,
        "DescribeHyperParameterTuningJob",
        "ListHyperParameterTuningJobs",
        "ListTrainingJobsForHyperParameterTuningJob",
        "StopHyperParameterTuningJob",
        "DescribeTrainingJob",
        "AddTags",
        "ListTags",
        "DeleteTags",
    ],
)
def test_every_pattern_of_a_tuning_operation_is_checked(operation: str) -> None:
    patterns = patterns_of(service_model().operation_model(operation).input_shape, set())
    assert all(compiled_pattern(pattern) is not None for pattern in patterns)
