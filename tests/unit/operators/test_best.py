"""The best training jobs: which ones count, and what is said of them."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from airflow_amt._compat import AirflowSkipException
from airflow_amt.exceptions import AmtRequestError, AmtResourceNotFoundError
from airflow_amt.operators.best import AmtBestTrainingJobOperator
from airflow_amt.task_exceptions import AmtNoUsableTrainingJob
from airflow_amt.watch import polling
from tests.unit.tasks import CREATED_AT, THROTTLED, FakeHook, describe, task_context, use_hook

NAME = "churn-model"


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "LONGEST_BACKOFF_SECONDS", 0.01)


def summary(number: int, objective: float | None, status: str = "Completed") -> dict[str, Any]:
    return {
        "TrainingJobName": f"{NAME}-{number:03}",
        "TrainingJobStatus": status,
        "CreationTime": CREATED_AT,
        "TrainingEndTime": CREATED_AT + timedelta(minutes=number),
        "TunedHyperParameters": {"lr": f"0.{number}"},
        "FinalHyperParameterTuningJobObjectiveMetric": {"MetricName": "accuracy", "Value": objective},
    }


def described(number: int, status: str = "Completed") -> dict[str, Any]:
    return {
        "TrainingJobName": f"{NAME}-{number:03}",
        "TrainingJobArn": f"arn:aws:sagemaker:eu-west-1:000000000000:training-job/{NAME}-{number:03}",
        "TrainingJobStatus": status,
        "ModelArtifacts": {"S3ModelArtifacts": f"s3://models/{number}/output/model.tar.gz"},
        "AlgorithmSpecification": {"TrainingImage": "churn:1", "TrainingInputMode": "File"},
        "RoleArn": "arn:aws:iam::000000000000:role/sagemaker",
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1},
        "HyperParameters": {"lr": f"0.{number}", "epochs": "5", "_tuning_objective_metric": "accuracy"},
        "FinalMetricDataList": [
            {"MetricName": "accuracy", "Value": 0.5, "Timestamp": CREATED_AT},
            {"MetricName": "loss", "Value": float("nan"), "Timestamp": CREATED_AT},
        ],
        "TrainingTimeInSeconds": 61,
        "BillableTimeInSeconds": 31,
        "CreationTime": CREATED_AT,
        "TrainingEndTime": CREATED_AT + timedelta(minutes=number),
    }


SUMMARIES = [
    summary(1, 0.7),
    summary(2, 0.9),
    summary(3, 0.95, "Stopped"),
    summary(4, None, "Failed"),
    summary(5, 0.9),
    summary(6, 0.99, "InProgress"),
]


def hook_of(*summaries: dict[str, Any], status: str = "Completed", **fields: Any) -> FakeHook:
    found = list(summaries or SUMMARIES)
    return FakeHook(
        {NAME: [describe(status=status, **fields)]},
        training_jobs_of={NAME: found},
        described={
            f"{NAME}-{number:03}": described(number, "Stopped" if number == 3 else "Completed")
            for number in range(1, 7)
        },
    )


def run(hook: FakeHook, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    task = AmtBestTrainingJobOperator(task_id="best", **{"tuning_job_name": NAME, **options})
    use_hook(task, hook)
    context = task_context(task_id="best")
    result = task.execute(context)
    json.dumps(result, allow_nan=False)
    return result, context["ti"].xcom


def names(result: dict[str, Any]) -> list[tuple[int, str]]:
    return [(one["rank"], one["name"][-3:]) for one in result["training_jobs"]]


def test_the_best_that_completed_is_returned_with_all_that_its_model_needs() -> None:
    hook = hook_of()
    result, xcom = run(hook)
    (best,) = result.pop("training_jobs")
    assert result == {
        "version": 1,
        "tuning_job_name": NAME,
        "tuning_job_arn": describe()["HyperParameterTuningJobArn"],
        "objective_metric": "accuracy",
        "objective_type": "Maximize",
    }
    assert best == {
        "rank": 1,
        "name": "churn-model-002",
        "arn": "arn:aws:sagemaker:eu-west-1:000000000000:training-job/churn-model-002",
        "status": "Completed",
        "objective": 0.9,
        "model_artifact": "s3://models/2/output/model.tar.gz",
        "image": "churn:1",
        "algorithm": None,
        "role": "arn:aws:iam::000000000000:role/sagemaker",
        "instance_type": "ml.m5.large",
        "hyperparameters": {"lr": "0.2", "epochs": "5"},
        "tuned_hyperparameters": {"lr": "0.2"},
        "metrics": {"accuracy": 0.5, "loss": None},
        "training_seconds": 61,
        "billable_seconds": 31,
        "created_at": "2026-01-01T00:00:00+00:00",
        "started_at": None,
        "ended_at": "2026-01-01T00:02:00+00:00",
    }
    assert {
        key: xcom[key] for key in ("training_job_name", "tuning_job_name", "model_artifact", "image")
    } == {
        "training_job_name": "churn-model-002",
        "tuning_job_name": NAME,
        "model_artifact": "s3://models/2/output/model.tar.gz",
        "image": "churn:1",
    }
    assert xcom["hyperparameters"] == {"lr": "0.2", "epochs": "5"}
    # Only the one that is returned is described.
    assert hook.named("describe_training_job") == ["churn-model-002"]


def test_several_of_the_best_come_in_order() -> None:
    assert names(run(hook_of(), top_k="2")[0]) == [(1, "002"), (2, "005")]
    assert names(run(hook_of(), top_k=20)[0]) == [(1, "002"), (2, "005"), (3, "001")]


def test_the_direction_of_the_objective_counts() -> None:
    config = describe()["HyperParameterTuningJobConfig"]
    config["HyperParameterTuningJobObjective"]["Type"] = "Minimize"
    hook = hook_of(HyperParameterTuningJobConfig=config)
    assert names(run(hook)[0]) == [(1, "001")]
    assert names(run(hook, require_objective=0.8, top_k=5)[0]) == [(1, "001")]


def test_stopped_ones_count_only_when_asked_for() -> None:
    result, _ = run(hook_of(), include_stopped=True)
    assert names(result) == [(1, "003")]
    assert result["training_jobs"][0]["status"] == "Stopped"


def test_the_best_of_the_parents_of_a_warm_start() -> None:
    parents = {**summary(1, 0.97), "TrainingJobName": "parent-001"}
    hook = hook_of(OverallBestTrainingJob=parents)
    hook.described["parent-001"] = described(1)
    assert run(hook, overall=True)[0]["training_jobs"][0]["name"] == "parent-001"
    assert names(run(hook)[0]) == [(1, "002")]
    assert names(run(hook_of(), overall=True)[0]) == [(1, "002")]


@pytest.mark.parametrize(
    ("hook", "options", "match"),
    [
        (
            hook_of(summary(4, None, "Failed"), status="Failed", BestTrainingJob=None),
            {},
            "none completed with an obj",
        ),
        (hook_of(), {"require_objective": "0.91"}, "objective of 0.91 or better; the best accuracy is 0.9"),
        (hook_of(summary(3, 0.95, "Stopped")), {}, "none completed"),
    ],
)
def test_without_a_usable_one_the_task_fails_or_is_skipped(
    hook: FakeHook, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(AmtNoUsableTrainingJob, match=match):
        run(hook, **options)
    with pytest.raises(AirflowSkipException, match=match):
        run(hook, on_missing="skip", **options)
    assert hook.named("describe_training_job") == []


def test_transient_errors_are_borne() -> None:
    hook = hook_of()
    hook.script[NAME].insert(0, THROTTLED)
    assert names(run(hook)[0]) == [(1, "002")]


def test_a_job_that_is_not_there_is_a_clear_error() -> None:
    with pytest.raises(AmtResourceNotFoundError):
        run(FakeHook())


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"tuning_job_name": "no_underscore"}, ["tuning_job_name"]),
        ({"top_k": 0}, ["top_k"]),
        ({"top_k": 21}, ["top_k"]),
        ({"top_k": "1.5"}, ["top_k"]),
        ({"top_k": True}, ["top_k"]),
        ({"require_objective": "high", "on_missing": "ignore"}, ["require_objective", "on_missing"]),
        ({"top_k": 2, "overall": True}, ["top_k"]),
    ],
)
def test_bad_arguments_are_all_named_without_a_call(options: dict[str, Any], fields: list[str]) -> None:
    hook = hook_of()
    with pytest.raises(AmtRequestError) as caught:
        run(hook, **options)
    assert [problem.field for problem in caught.value.problems] == fields
    assert hook.calls == []
