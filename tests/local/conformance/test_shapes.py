"""The suite's own reader of answers and maker of requests: they must see what is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from tests.local.conformance.shapes import MISSING, BadCase, bad_cases, disagreements

SUMMARY = {
    "TrainingJobName": "a",
    "TrainingJobArn": "arn:aws:sagemaker:us-east-1:000000000000:training-job/a",
    "CreationTime": 1_700_000_000.5,
    "TrainingJobStatus": "Completed",
}


def test_a_good_answer_has_no_disagreement() -> None:
    assert disagreements("ListTrainingJobs", {"TrainingJobSummaries": [SUMMARY]}) == []
    assert disagreements("StopTrainingJob", {}) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"TrainingJobName": MISSING}, "lacks TrainingJobName"),
        ({"TrainingJobName": None}, "TrainingJobName must be string, not null"),
        ({"TrainingJobName": "under_score"}, "must match"),
        ({"TrainingJobName": "a" * 64}, "must be 63 or less"),
        ({"TrainingJobArn": "training-job/a"}, "must match"),
        ({"CreationTime": "2026-01-01"}, "must be timestamp"),
        ({"CreationTime": 1_700_000_000_500}, "seconds since 1970"),
        ({"CreationTime": True}, "must be timestamp"),
        ({"TrainingJobStatus": "Done"}, "must be one of"),
        ({"Status": "Completed"}, "has no member Status"),
        ({"WarmPoolStatus": {"ResourceRetainedBillableTimeInSeconds": 1.0, "Status": "InUse"}}, "integer"),
        ({"WarmPoolStatus": []}, "must be structure"),
    ],
)
def test_a_bad_answer_is_seen(changes: dict[str, Any], said: str) -> None:
    summary = {key: value for key, value in {**SUMMARY, **changes}.items() if value is not MISSING}
    (found,) = [
        one
        for one in disagreements("ListTrainingJobs", {"TrainingJobSummaries": [SUMMARY, summary]})
        if said in one
    ]
    assert found.startswith("ListTrainingJobs.TrainingJobSummaries[1]")


def test_an_answer_where_there_is_none() -> None:
    assert disagreements("StopTrainingJob", {"TrainingJobArn": "a"})


def test_bad_cases_reach_what_is_nested() -> None:
    cases = {(case.path, case.kind): case for case in bad_cases("CreateHyperParameterTuningJob", {})}

    below = cases["HyperParameterTuningJobConfig.ResourceLimits.MaxRuntimeInSeconds", "below min"]
    assert below.value == 119
    assert below.constraint == "greater than or equal to 120"
    assert ("TrainingJobDefinitions[0].InputDataConfig[0].ChannelName", "pattern") in cases
    assert ("TrainingJobDefinition.Environment.a", "wrong type") in cases
    assert ("TrainingJobDefinition.StaticHyperParameters." + "a" * 257, "key too long") in cases


def test_a_case_is_put_into_a_copy_and_what_is_missing_is_made() -> None:
    request = {"HyperParameterTuningJobName": "a", "Tags": [{"Key": "k", "Value": "v"}]}
    nested = BadCase(("TrainingJobDefinition", "VpcConfig", "Subnets", 0), 7, "wrong type")

    changed = nested.apply("CreateHyperParameterTuningJob", request)

    assert changed["TrainingJobDefinition"]["VpcConfig"]["Subnets"] == [7]
    assert set(changed["TrainingJobDefinition"]) >= {"AlgorithmSpecification", "RoleArn", "VpcConfig"}
    assert "TrainingJobDefinition" not in request
    key = BadCase(("Tags", 0, "Key"), MISSING, "left out")
    assert key.apply("CreateHyperParameterTuningJob", request)["Tags"] == [{"Value": "v"}]
