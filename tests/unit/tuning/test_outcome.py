from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from airflow_amt.tuning import CompletionReason, TrainingJobResult, TuningOutcome, infer_outcome
from tests.unit.tuning.factories import at, description, results, summary

FIVE: dict[str, Any] = {
    "limits": {"MaxNumberOfTrainingJobs": 20, "MaxRuntimeInSeconds": 3600},
    "completion": {
        "TargetObjectiveMetricValue": 0.95,
        "BestObjectiveNotImproving": {"MaxNumberOfTrainingJobsNotImproving": 5},
        "ConvergenceDetected": {"CompleteOnConvergence": "Enabled"},
    },
}
STOP_TAGS = {"airflow-amt:stopped-by": "operator", "airflow-amt:stopped-by-detail": "dag/run/stop"}
COLOURS = {"CategoricalParameterRanges": [{"Name": "colour", "Values": ["red", "green", "blue"]}]}


def outcome(
    tags: Mapping[str, str] | None = None, training_jobs: list[TrainingJobResult] | None = None, **given: Any
) -> TuningOutcome:
    return infer_outcome(
        description(**{**FIVE, **given}), training_jobs=training_jobs or (), tags={} if tags is None else tags
    )


# reason, certain, also, succeeded, and what AMT reports: written by hand, one line a case.
TABLE: list[tuple[str, bool, list[str], bool, dict[str, Any]]] = [
    ("max_training_jobs", True, [], True, {"completed": 18, "failed": 2, "best": 0.9}),
    ("target_reached", True, [], True, {"completed": 6, "best": 0.95}),
    ("target_reached", True, ["max_training_jobs"], True, {"completed": 20, "best": 0.96}),
    ("not_improving", True, [], True, {"completed": 9, "best": 0.9, "not_improving": 5}),
    ("converged", True, [], True, {"completed": 9, "best": 0.9, "converged_at": at(80), "runtime": 90}),
    ("max_runtime", True, [], True, {"completed": 9, "best": 0.9, "runtime": 3601}),
    ("max_runtime", False, [], True, {"completed": 9, "best": 0.9, "runtime": 3555}),
    ("unknown", False, [], True, {"completed": 9, "best": 0.9, "runtime": 3000}),
    ("search_space_exhausted", True, [], True, {"completed": 3, "best": 0.9, "ranges": COLOURS}),
    (
        "failed",
        True,
        [],
        False,
        {"status": "Failed", "failed": 5, "FailureReason": "No training job succeeded"},
    ),
    ("failed", True, [], False, {"status": "Failed", "failed": 5}),
    ("stopped_externally", True, [], False, {"status": "Stopped", "completed": 4, "best": 0.9}),
    (
        "not_improving",
        False,
        ["stopped_externally"],
        True,
        {"status": "Stopped", "completed": 9, "best": 0.9, "not_improving": 6},
    ),
    ("stopped_by_provider", True, [], False, {"status": "Stopped", "completed": 4, "tags": STOP_TAGS}),
    (
        "stopped_by_provider",
        True,
        ["target_reached"],
        False,
        {"status": "Stopped", "completed": 4, "best": 0.97, "tags": STOP_TAGS},
    ),
    # Our stop came too late: the job had ended by itself.
    ("target_reached", True, [], True, {"completed": 4, "best": 0.97, "tags": STOP_TAGS}),
    ("unknown", False, [], False, {"status": "Deleting"}),
]


@pytest.mark.parametrize(("reason", "certain", "also", "succeeded", "given"), TABLE)
def test_the_reason_is_inferred(
    reason: str, certain: bool, also: list[str], succeeded: bool, given: dict[str, Any]
) -> None:
    found = outcome(**given)
    assert found.reason.value == reason
    assert found.certain is certain
    assert [one.value for one in found.also] == also
    assert found.succeeded is succeeded
    assert found.explanation
    plain = found.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_the_evidence_names_field_limit_and_observation() -> None:
    assert outcome(completed=9, best=0.9, not_improving=5).evidence == {
        "field": (
            "HyperParameterTuningJobConfig.TuningJobCompletionCriteria.BestObjectiveNotImproving."
            "MaxNumberOfTrainingJobsNotImproving"
        ),
        "limit": 5,
        "observed": 5,
    }
    assert outcome(status="Stopped", tags=STOP_TAGS).evidence == {
        "stopped_by": "operator",
        "detail": "dag/run/stop",
    }
    assert outcome(completed=3, ranges=COLOURS).evidence["limit"] == 3


def test_unreadable_tags_leave_the_stop_uncertain() -> None:
    found = infer_outcome(description(status="Stopped"), tags=None)
    assert found.reason is CompletionReason.STOPPED_EXTERNALLY
    assert not found.certain
    assert found.also == (CompletionReason.STOPPED_BY_PROVIDER,)


def test_a_minimised_target() -> None:
    given: dict[str, Any] = {"completed": 3, "objective_type": "Minimize", "best": 0.9}
    assert outcome(**given).reason is CompletionReason.TARGET_REACHED
    assert outcome(**{**given, "best": 0.99}).reason is CompletionReason.UNKNOWN


def test_the_training_jobs_tell_which_of_two_came_first() -> None:
    """A training job that was being stopped still reached the target: that did not end the job."""
    jobs = results([0.9, 0.8, 0.8, 0.8, 0.8, 0.8, 0.97])
    given: dict[str, Any] = {"completed": 6, "stopped": 1, "best": 0.97, "not_improving": 5, "runtime": 75}
    without = outcome(**given)
    assert without.reason is CompletionReason.TARGET_REACHED
    assert without.also == (CompletionReason.NOT_IMPROVING,)
    with_jobs = outcome(**given, training_jobs=jobs)
    assert with_jobs.reason is CompletionReason.NOT_IMPROVING
    assert with_jobs.also == ()
    assert with_jobs.certain


def test_a_runtime_that_was_exceeded_while_stopping_is_not_the_reason() -> None:
    jobs = results([0.5, 0.96], every=1795)
    found = outcome(completed=2, best=0.96, runtime=3610, training_jobs=jobs)
    assert found.reason is CompletionReason.TARGET_REACHED
    assert found.also == ()


def test_an_unknown_order_is_not_invented() -> None:
    """AMT counts an improvement below 1 % as none; by our reading the job improved every time."""
    jobs = results([0.9 + step / 10_000 for step in range(20)])
    given: dict[str, Any] = {"completed": 20, "best": jobs[-1].objective, "not_improving": 5}
    with_jobs, without = outcome(**given, training_jobs=jobs), outcome(**given)
    assert with_jobs.reason is without.reason is CompletionReason.NOT_IMPROVING
    assert with_jobs.also == without.also == (CompletionReason.MAX_TRAINING_JOBS,)


def test_targets_and_objectives_are_compared_in_the_apis_width() -> None:
    found = outcome(completed=3, best=0.949999988079071)  # 0.95 in 32 bits
    assert found.reason is CompletionReason.TARGET_REACHED
    assert outcome(completed=3, best=0.9499).reason is CompletionReason.UNKNOWN
    huge = outcome(completed=3, best=1e300, completion={"TargetObjectiveMetricValue": 1.7e308})
    assert huge.reason is CompletionReason.UNKNOWN


def test_a_stopped_job_with_unreadable_tags_may_have_been_stopped_by_us() -> None:
    found = infer_outcome(description(status="Stopped", completed=9, best=0.96, **FIVE), tags=None)
    assert found.reason is CompletionReason.TARGET_REACHED
    assert not found.certain
    assert found.also == (CompletionReason.STOPPED_EXTERNALLY, CompletionReason.STOPPED_BY_PROVIDER)
    assert "could not be read" in found.explanation


def test_an_end_without_any_objective_says_so() -> None:
    assert "None of the 20 training jobs" in outcome(failed=20).explanation
    assert "None of" not in outcome(completed=20, best=0.5).explanation


def test_the_most_frequent_failure_reasons_are_counted() -> None:
    jobs = [
        TrainingJobResult(name=str(number), status="Failed", ended_at=at(number), failure_reason=why)
        for number, why in enumerate(["memory", "memory", "data", None, "memory", "data", "disk", "fire"])
    ]
    found = outcome(status="Failed", failed=8, training_jobs=jobs)
    assert found.failure_reasons == (("memory", 3), ("data", 2), ("no reason given", 1))
    assert found.to_dict()["training_job_failure_reasons"][0] == {"reason": "memory", "count": 3}


def test_the_dict_carries_compute_and_times() -> None:
    plain = outcome(completed=2, best=0.96, runtime=30, training_jobs=results([0.5, 0.96])).to_dict()
    assert plain["estimated_max_compute_seconds"] == 3600 * 2 * 3
    assert plain["training_seconds"] == 20
    assert plain["runtime_seconds"] == 30
    assert plain["progressing"] is True
    assert plain["created_at"] == "2026-03-29T00:30:00+00:00"
    assert plain["best_training_job"]["objective"] == 0.96


def test_nothing_known_is_no_crash() -> None:
    found = infer_outcome({}, training_jobs=[], tags=None)
    assert found.reason is CompletionReason.UNKNOWN
    assert not found.certain
    assert json.dumps(found.to_dict())


def test_summaries_round_trip_into_the_outcome() -> None:
    jobs = [TrainingJobResult.from_summary(summary(job)) for job in results([0.5, None])]
    assert outcome(completed=1, failed=1, training_jobs=jobs).failure_reasons[0][1] == 1
    assert timedelta(seconds=10).total_seconds() == jobs[0].training_seconds
