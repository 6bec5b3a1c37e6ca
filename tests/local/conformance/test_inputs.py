"""Each member of each operation's input, broken in each way that the service model knows."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.validate import ParamValidator

from airflow_amt.text import shown
from tests.local.conformance.shapes import BadCase, bad_cases, example, model
from tests.local.conformance.wire import OPERATIONS, Wire, training_request, tuning_request

pytestmark = pytest.mark.local

ARN = "arn:aws:sagemaker:us-east-1:000000000000:training-job/nobody"
TUNING_JOB = {"HyperParameterTuningJobName": "nobody"}
TRAINING_JOB = {"TrainingJobName": "nobody"}
#: A good request of each operation, to break in one place.
GOOD: dict[str, dict[str, Any]] = {
    "CreateHyperParameterTuningJob": tuning_request("broken", Tags=[{"Key": "a", "Value": "b"}]),
    "DescribeHyperParameterTuningJob": TUNING_JOB,
    "ListHyperParameterTuningJobs": {},
    "ListTrainingJobsForHyperParameterTuningJob": TUNING_JOB,
    "StopHyperParameterTuningJob": TUNING_JOB,
    "DeleteHyperParameterTuningJob": TUNING_JOB,
    "CreateTrainingJob": training_request("broken", Tags=[{"Key": "a", "Value": "b"}]),
    "DescribeTrainingJob": TRAINING_JOB,
    "ListTrainingJobs": {},
    "StopTrainingJob": TRAINING_JOB,
    "AddTags": {"ResourceArn": ARN, "Tags": [{"Key": "a", "Value": "b"}]},
    "ListTags": {"ResourceArn": ARN},
    "DeleteTags": {"ResourceArn": ARN, "TagKeys": ["a"]},
}
CASES = {operation: bad_cases(operation, GOOD[operation]) for operation in OPERATIONS}
MEMBERS = [
    (operation, member)
    for operation in OPERATIONS
    for member in dict.fromkeys(str(case.parts[0]) for case in CASES[operation])
]


def invalid(operation: str, request: dict[str, Any]) -> bool:
    """Whether botocore's own check, which knows types, required members and minima, finds a mistake."""
    validator: Any = ParamValidator()
    report = validator.validate(request, model().operation_model(operation).input_shape)
    return bool(report.has_errors())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_requests_that_are_broken_here_are_good(operation: str) -> None:
    assert not invalid(operation, GOOD[operation])
    shape = model().operation_model(operation).input_shape
    everything = {name: example(member) for name, member in shape.members.items()}
    assert not invalid(operation, everything)


def test_there_is_a_case_for_every_member() -> None:
    assert sum(len(cases) for cases in CASES.values()) > 2_500
    for operation in OPERATIONS:
        members = model().operation_model(operation).input_shape.members
        assert {member for of, member in MEMBERS if of == operation} == set(members)


@pytest.mark.parametrize(("operation", "member"), MEMBERS)
def test_a_broken_member_is_refused_by_name(wire: Wire, operation: str, member: str) -> None:
    failures = []
    for case in CASES[operation]:
        if case.parts[0] == member:
            failure = not_refused_well(wire, operation, case)
            if failure:
                failures.append(f"{case.path} {case.kind} ({str(case.value)[:60]}): {failure}")
    assert not failures, f"{len(failures)} failures:\n" + "\n".join(failures[:50])


def not_refused_well(wire: Wire, operation: str, case: BadCase) -> str | None:
    """Send a broken request; return what is wrong with the refusal."""
    refusal = wire.refusal(operation, case.apply(operation, GOOD[operation]))
    if (refusal.status, refusal.code) != (400, "ValidationException"):
        return f"{refusal.status} {refusal.code}: {refusal.message[:200]}"
    # A long key is cut.
    if f"({shown(case.path)})" not in refusal.message:
        return f"not named in {refusal.message[:300]}"
    if case.constraint not in refusal.message:
        return f"{case.constraint!r} not in {refusal.message[:300]}"
    return None


@pytest.mark.parametrize("key", ["!", "a\nb", "semi;colon", "*"])
def test_characters_of_tags(wire: Wire, key: str) -> None:
    """Their pattern is in Java's dialect, which the cases above leave out."""
    for tag in ({"Key": key, "Value": "b"}, {"Key": "a", "Value": key}):
        refusal = wire.refusal("AddTags", {"ResourceArn": ARN, "Tags": [tag]})
        assert (refusal.status, refusal.code) == (400, "ValidationException")
        assert "regular expression pattern" in refusal.message
        assert "Tags[0]." in refusal.message
