from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_amt.tuning import CompletionCriteria, ObjectiveType, SatisfactoryProgress, TuningProgress
from tests.unit.tuning.factories import at, description, results


def test_a_full_description() -> None:
    progress = TuningProgress.from_describe(
        description(
            status="InProgress",
            limits={"MaxNumberOfTrainingJobs": 20, "MaxRuntimeInSeconds": 3600},
            completion={
                "TargetObjectiveMetricValue": 0.95,
                "BestObjectiveNotImproving": {"MaxNumberOfTrainingJobsNotImproving": 5},
            },
            completed=6,
            failed=2,
            stopped=2,
            best=0.91,
            not_improving=3,
            runtime=500,
        )
    )
    assert progress.training_jobs.ended == 10
    assert progress.training_jobs.failed == 2
    assert progress.best_objective == 0.91
    assert progress.objective_type is ObjectiveType.MAXIMIZE
    assert progress.not_improving_count == 3
    assert progress.mean_training_job_duration == timedelta(seconds=100)
    assert progress.estimated_remaining == timedelta(seconds=500)
    assert not progress.is_terminal
    assert progress.log_line() == (
        "Tuning job churn-model: InProgress, training jobs 10/20 ended, 2 failed, best accuracy 0.91 "
        "(target 0.95), not improving 3/5, runtime 500/3600 s, about 500 s left"
    )


def test_the_rest_of_the_runtime_bounds_the_remaining_time() -> None:
    progress = TuningProgress.from_describe(
        description(
            status="InProgress",
            limits={"MaxNumberOfTrainingJobs": 100, "MaxRuntimeInSeconds": 600},
            completed=10,
            runtime=500,
        )
    )
    assert progress.estimated_remaining == timedelta(seconds=100)


def test_nothing_is_known_of_an_empty_answer() -> None:
    progress = TuningProgress.from_describe({})
    assert progress.status == "Unknown"
    assert progress.training_jobs.launched == 0
    assert progress.estimated_remaining is None
    assert progress.mean_training_job_duration is None
    assert progress.best is None
    assert "Unknown" in progress.log_line()


def test_a_list_summary() -> None:
    progress = TuningProgress.from_list_summary(
        {
            "HyperParameterTuningJobName": "churn-model",
            "HyperParameterTuningJobStatus": "Completed",
            "Strategy": "Bayesian",
            "CreationTime": at(0),
            "HyperParameterTuningEndTime": at(90),
            "TrainingJobStatusCounters": {"Completed": 3},
            "ObjectiveStatusCounters": {"Succeeded": 3},
            "ResourceLimits": {"MaxNumberOfTrainingJobs": 3, "MaxParallelTrainingJobs": 1},
        }
    )
    assert progress.is_terminal
    assert progress.runtime == timedelta(seconds=90)
    assert progress.criteria.max_training_jobs == 3
    assert progress.mean_training_job_duration == timedelta(seconds=30)
    assert progress.estimated_remaining == timedelta(0)
    assert progress.best is None


def test_criteria_that_aws_accepted_but_we_would_refuse_leave_the_others_legible() -> None:
    progress = TuningProgress.from_describe(
        description(
            limits={"MaxNumberOfTrainingJobs": 7, "MaxRuntimeInSeconds": 60},
            completion={"TargetObjectiveMetricValue": 0.5},
        )
    )
    assert progress.criteria.max_training_jobs == 7
    assert progress.criteria.max_runtime is None
    assert progress.criteria.target_objective_value == 0.5


def test_the_objective_of_several_definitions() -> None:
    answer = description()
    del answer["HyperParameterTuningJobConfig"]["HyperParameterTuningJobObjective"]
    del answer["TrainingJobDefinition"]
    answer["TrainingJobDefinitions"] = [
        {"DefinitionName": "a", "TuningObjective": {"Type": "Minimize", "MetricName": "loss"}}
    ]
    progress = TuningProgress.from_describe(answer)
    assert progress.objective_type is ObjectiveType.MINIMIZE
    assert progress.objective_metric == "loss"


def test_only_a_change_worth_a_line_changes_the_key() -> None:
    first = TuningProgress.from_describe(description(status="InProgress", completed=3, runtime=10))
    later = TuningProgress.from_describe(description(status="InProgress", completed=3, runtime=40))
    more = TuningProgress.from_describe(description(status="InProgress", completed=4, runtime=40))
    assert first.change_key() == later.change_key() != more.change_key()


_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.just("text") | st.datetimes()


def _nulled(draw: st.DrawFn, value: Any) -> Any:
    """The answer with some fields missing, null or odd, and never of another structure."""
    if isinstance(value, dict):
        kept = {}
        for key, item in value.items():
            choice = draw(st.integers(0, 5))
            if choice == 0:
                continue
            kept[key] = None if choice == 1 else _nulled(draw, item)
        return kept
    if isinstance(value, list):
        return [_nulled(draw, item) for item in value]
    if isinstance(value, (str, datetime)):
        return value
    return draw(st.just(value) | _LEAVES)


@st.composite
def odd_descriptions(draw: st.DrawFn) -> dict[str, Any]:
    full = description(
        status="InProgress",
        limits={"MaxNumberOfTrainingJobs": 20, "MaxRuntimeInSeconds": 3600},
        completion={
            "TargetObjectiveMetricValue": 0.95,
            "BestObjectiveNotImproving": {"MaxNumberOfTrainingJobsNotImproving": 5},
            "ConvergenceDetected": {"CompleteOnConvergence": "Enabled"},
        },
        completed=6,
        best=0.9,
        not_improving=2,
        converged_at=at(50),
        runtime=70,
    )
    nulled: dict[str, Any] = _nulled(draw, full)
    return nulled


@given(odd_descriptions())
def test_missing_null_and_odd_fields_never_raise(answer: dict[str, Any]) -> None:
    progress = TuningProgress.from_describe(answer)
    assert progress.log_line()
    assert progress.training_jobs.launched >= 0
    assert progress.estimated_remaining is None or progress.estimated_remaining >= timedelta(0)


def test_satisfactory_progress() -> None:
    jobs = results([0.5, 0.6, None, 0.7, 0.7, 0.7, 0.65])
    still = SatisfactoryProgress.measure(jobs, ObjectiveType.MAXIMIZE, window=4)
    assert still.training_seconds == 70
    assert still.gain == pytest.approx(0.2)
    assert still.recent_gain == pytest.approx(0.1)
    assert still.gain_per_second == pytest.approx(0.2 / 70)
    assert still.recent_gain_per_second == pytest.approx(0.1 / 40)
    assert still.progressing is True
    flat = SatisfactoryProgress.measure(jobs, ObjectiveType.MAXIMIZE, window=3)
    assert flat.recent_gain == 0
    assert flat.progressing is False
    falling = SatisfactoryProgress.measure(results([3.0, 2.0, 1.0]), ObjectiveType.MINIMIZE, window=1)
    assert falling.progressing is True
    unknown = SatisfactoryProgress.measure(results([None, 0.5]), ObjectiveType.MAXIMIZE)
    assert unknown.progressing is None
    progress = TuningProgress.from_describe(description())
    assert progress.satisfactory(jobs, window=4) == still
    assert TuningProgress.from_describe({}).satisfactory(jobs) is None
    limited = TuningProgress.from_describe(description(limits={"MaxNumberOfTrainingJobs": 2}))
    replayed = limited.replay(jobs)
    assert replayed is not None
    assert replayed.finished == 2
    other = limited.replay(jobs, CompletionCriteria(target_objective_value=0.7))
    assert other is not None
    assert [fired.reason.value for fired in other.first] == ["target_reached"]
    assert TuningProgress.from_describe({}).replay(jobs) is None
    nothing = SatisfactoryProgress.measure([], ObjectiveType.MAXIMIZE)
    assert nothing.gain_per_second is None
    with pytest.raises(ValueError, match="window"):
        SatisfactoryProgress.measure(jobs, ObjectiveType.MAXIMIZE, window=0)
