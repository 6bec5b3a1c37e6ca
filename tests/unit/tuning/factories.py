"""Training jobs and descriptions for the tests of the domain."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow_amt.tuning.history import TrainingJobResult

START = datetime(2026, 3, 29, 0, 30, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def results(objectives: Iterable[float | None], *, every: float = 10.0) -> list[TrainingJobResult]:
    """One training job after the other, each ``every`` seconds long; ``None`` is a failed one."""
    return [
        TrainingJobResult(
            name=f"job-{position:03d}",
            status="Failed" if objective is None else "Completed",
            objective=objective,
            created_at=at(position * every),
            started_at=at(position * every),
            ended_at=at((position + 1) * every),
            failure_reason="AlgorithmError: exit code 1" if objective is None else None,
        )
        for position, objective in enumerate(objectives)
    ]


def summary(job: TrainingJobResult) -> dict[str, Any]:
    """The API's form of a training job."""
    found: dict[str, Any] = {
        "TrainingJobName": job.name,
        "TrainingJobArn": f"arn:aws:sagemaker:eu-west-1:000000000000:training-job/{job.name}",
        "CreationTime": job.created_at,
        "TrainingStartTime": job.started_at,
        "TrainingEndTime": job.ended_at,
        "TrainingJobStatus": job.status,
        "TunedHyperParameters": dict(job.tuned_hyperparameters),
    }
    if job.objective is not None:
        found["FinalHyperParameterTuningJobObjectiveMetric"] = {
            "Type": "Maximize",
            "MetricName": "accuracy",
            "Value": job.objective,
        }
    if job.failure_reason:
        found["FailureReason"] = job.failure_reason
    return found


def description(
    *,
    status: str = "Completed",
    limits: dict[str, Any] | None = None,
    completion: dict[str, Any] | None = None,
    completed: int = 0,
    failed: int = 0,
    stopped: int = 0,
    best: float | None = None,
    not_improving: int | None = None,
    converged_at: datetime | None = None,
    runtime: int | None = None,
    objective_type: str = "Maximize",
    ranges: dict[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """An answer of DescribeHyperParameterTuningJob, with just what is given."""
    details: dict[str, Any] = {}
    if not_improving is not None:
        details["NumberOfTrainingJobsObjectiveNotImproving"] = not_improving
    if converged_at is not None:
        details["ConvergenceDetectedTime"] = converged_at
    answer: dict[str, Any] = {
        "HyperParameterTuningJobName": "churn-model",
        "HyperParameterTuningJobArn": (
            "arn:aws:sagemaker:eu-west-1:000000000000:hyper-parameter-tuning-job/churn-model"
        ),
        "HyperParameterTuningJobConfig": {
            "Strategy": "Random",
            "HyperParameterTuningJobObjective": {"Type": objective_type, "MetricName": "accuracy"},
            "ResourceLimits": {"MaxParallelTrainingJobs": 2, **(limits or {})},
            "ParameterRanges": ranges
            or {"ContinuousParameterRanges": [{"Name": "lr", "MinValue": "0", "MaxValue": "1"}]},
            **({"TuningJobCompletionCriteria": completion} if completion else {}),
        },
        "TrainingJobDefinition": {"ResourceConfig": {"InstanceCount": 3}},
        "HyperParameterTuningJobStatus": status,
        "CreationTime": START,
        "TrainingJobStatusCounters": {
            "Completed": completed,
            "InProgress": 0,
            "RetryableError": 0,
            "NonRetryableError": failed,
            "Stopped": stopped,
        },
        "ObjectiveStatusCounters": {"Succeeded": completed, "Pending": 0, "Failed": failed},
        "TuningJobCompletionDetails": details,
        **more,
    }
    if runtime is not None:
        answer["ConsumedResources"] = {"RuntimeInSeconds": runtime}
        answer["HyperParameterTuningEndTime"] = at(runtime)
    if best is not None:
        answer["BestTrainingJob"] = summary(results([best])[0])
    return answer


def values(items: Sequence[Any]) -> list[str]:
    return [item.value for item in items]
