"""Answers as they are written: what the service model allows, and nothing else."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import botocore.parsers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_amt.local.protocol import Encoded, encode, write_answer
from airflow_amt.service_model import service_model

DESCRIBE = "DescribeHyperParameterTuningJob"
LIST = "ListHyperParameterTuningJobs"
ARN = "arn:aws:sagemaker:eu-west-1:000000000000:hyper-parameter-tuning-job/churn"
NOW = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
LIMITS = {"MaxNumberOfTrainingJobs": 4, "MaxParallelTrainingJobs": 2}


def description(**changes: Any) -> dict[str, Any]:
    return {
        "HyperParameterTuningJobName": "churn",
        "HyperParameterTuningJobArn": ARN,
        "HyperParameterTuningJobConfig": {"Strategy": "Random", "ResourceLimits": LIMITS},
        "HyperParameterTuningJobStatus": "InProgress",
        "CreationTime": NOW,
        "TrainingJobStatusCounters": {"Completed": 1},
        "ObjectiveStatusCounters": {"Succeeded": 1},
        **changes,
    }


def best(**changes: Any) -> dict[str, Any]:
    return {
        "TrainingJobName": "churn-001",
        "TrainingJobArn": "arn:aws:sagemaker:eu-west-1:000000000000:training-job/churn-001",
        "CreationTime": NOW,
        "TrainingJobStatus": "Completed",
        "TunedHyperParameters": {"x": "0.5"},
        **changes,
    }


def parsed(operation: str, body: bytes) -> dict[str, Any]:
    """Read an answer as botocore's clients do."""
    parser = botocore.parsers.create_parser("json")
    shape = service_model().operation_model(operation).output_shape
    answer: dict[str, Any] = parser.parse({"status_code": 200, "headers": {}, "body": body}, shape)
    del answer["ResponseMetadata"]
    return answer


def test_an_answer_reads_back_as_it_was_meant() -> None:
    answer = description(
        BestTrainingJob=best(
            FinalHyperParameterTuningJobObjectiveMetric={"MetricName": "auc", "Value": 1e-7},
            TunedHyperParameters={'grün\n"': "\u2028\\", "x": "1"},
        ),
        FailureReason=None,
        TrainingJobDefinitions=[],
    )

    body = write_answer(DESCRIBE, answer)

    del answer["FailureReason"]
    assert parsed(DESCRIBE, body) == answer
    assert body.isascii()


@given(st.text(), st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**31), 2**31 - 1))
def test_any_text_and_number_is_valid_json(text: str, value: float, count: int) -> None:
    body = write_answer(
        DESCRIBE,
        description(
            BestTrainingJob=best(
                FinalHyperParameterTuningJobObjectiveMetric={"MetricName": text, "Value": value},
                TunedHyperParameters={text: text},
            ),
            TrainingJobStatusCounters={"Completed": count},
        ),
    )

    answer = json.loads(body)
    assert answer["BestTrainingJob"]["TunedHyperParameters"] == {text: text}
    assert answer["BestTrainingJob"]["FinalHyperParameterTuningJobObjectiveMetric"]["Value"] == value
    assert answer["TrainingJobStatusCounters"]["Completed"] == count


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Surprise": 1}, "has no member 'Surprise'"),
        ({"CreationTime": None}, "lacks 'CreationTime'"),
        ({"HyperParameterTuningJobName": 7}, "HyperParameterTuningJobName must be string, not 7"),
        ({"HyperParameterTuningJobStatus": "Done"}, "HyperParameterTuningJobStatus must be one of Completed"),
        ({"CreationTime": datetime(2026, 1, 1)}, "CreationTime must be a time with a time zone"),  # noqa: DTZ001
        ({"CreationTime": 1.5}, "CreationTime must be a time with a time zone"),
        (
            {"TrainingJobStatusCounters": {"Completed": True}},
            "TrainingJobStatusCounters.Completed must be integer",
        ),
        (
            {"TrainingJobStatusCounters": {"Completed": 1.0}},
            "TrainingJobStatusCounters.Completed must be integer",
        ),
        ({"TrainingJobStatusCounters": []}, "TrainingJobStatusCounters must be a structure"),
        ({"TrainingJobDefinitions": {}}, "TrainingJobDefinitions must be a list"),
        ({"TrainingJobDefinitions": [{}]}, "TrainingJobDefinitions[] lacks"),
        (
            {"BestTrainingJob": best(TunedHyperParameters={"x": 1})},
            "BestTrainingJob.TunedHyperParameters.x must be",
        ),
        (
            {"BestTrainingJob": best(TunedHyperParameters="x")},
            "BestTrainingJob.TunedHyperParameters must be a map",
        ),
        (
            {
                "BestTrainingJob": best(
                    FinalHyperParameterTuningJobObjectiveMetric={"MetricName": "m", "Value": float("nan")}
                )
            },
            "FinalHyperParameterTuningJobObjectiveMetric.Value must be float, finite, not nan",
        ),
        ({"ConsumedResources": Encoded("ResourceLimits", "{}")}, "not what was written for a ResourceLimits"),
    ],
)
def test_an_answer_that_breaks_the_model_raises(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError) as caught:
        write_answer(DESCRIBE, description(**changes))

    assert str(caught.value).startswith(DESCRIBE)
    assert message in str(caught.value)


def test_a_part_is_written_once_and_used_in_several_answers() -> None:
    summary = {
        "HyperParameterTuningJobName": "churn",
        "HyperParameterTuningJobArn": ARN,
        "HyperParameterTuningJobStatus": "Completed",
        "Strategy": "Grid",
        "CreationTime": NOW,
        "TrainingJobStatusCounters": {},
        "ObjectiveStatusCounters": {},
    }
    part = encode("HyperParameterTuningJobSummary", summary)

    assert write_answer(LIST, {"HyperParameterTuningJobSummaries": [part, summary]}) == write_answer(
        LIST, {"HyperParameterTuningJobSummaries": [summary, summary], "NextToken": None}
    )


def test_a_part_that_breaks_the_model_raises_too() -> None:
    with pytest.raises(TypeError, match=r"^ResourceLimits\.MaxParallelTrainingJobs must be integer"):
        encode("ResourceLimits", {"MaxParallelTrainingJobs": "2"})


def test_an_operation_without_a_result() -> None:
    assert write_answer("StopHyperParameterTuningJob", {}) == b""
