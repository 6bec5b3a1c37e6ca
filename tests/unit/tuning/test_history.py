from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_amt.tuning import (
    CompletionCriteria,
    CompletionReason,
    CriteriaTracker,
    ObjectiveType,
    TrainingJobResult,
    replay,
)
from tests.unit.tuning.factories import START, at, results, summary

MAXIMIZE, MINIMIZE = ObjectiveType.MAXIMIZE, ObjectiveType.MINIMIZE


def first_reason(
    objectives: Sequence[float | None], criteria: CompletionCriteria, objective_type: ObjectiveType = MAXIMIZE
) -> tuple[list[str], int | None]:
    report = replay(results(objectives), criteria, objective_type, started_at=START)
    return [fired.reason.value for fired in report.first], report.first[0].index if report.first else None


def test_the_guides_example_of_not_improving() -> None:
    criteria = CompletionCriteria(max_training_jobs_not_improving=10)
    assert first_reason([0.5, 0.9, *[0.9] * 9], criteria) == ([], None)
    assert first_reason([0.5, 0.9, *[0.9] * 10], criteria) == (["not_improving"], 11)
    # One result above 90 % starts the count anew.
    assert first_reason([0.5, 0.9, *[0.8] * 9, 0.901, *[0.8] * 9], criteria) == ([], None)
    assert first_reason([0.5, 0.9, *[0.8] * 9, 0.901, *[0.8] * 10], criteria) == (["not_improving"], 21)


def test_a_failed_training_job_is_no_result_for_not_improving() -> None:
    criteria = CompletionCriteria(max_training_jobs_not_improving=3)
    assert first_reason([0.9, None, 0.8, None, 0.8, None], criteria) == ([], None)
    assert first_reason([0.9, None, 0.8, None, 0.8, None, 0.8], criteria) == (["not_improving"], 6)
    assert first_reason([None] * 9, criteria) == ([], None)


def test_training_jobs_of_any_status_count_against_their_maximum() -> None:
    assert first_reason([None, 0.1, None], CompletionCriteria(max_training_jobs=3)) == (
        ["max_training_jobs"],
        2,
    )


@pytest.mark.parametrize(
    ("objective_type", "objectives", "index"),
    [(MAXIMIZE, [0.1, 0.93, 0.99], 1), (MINIMIZE, [1.5, 0.94, 0.93], 2), (MINIMIZE, [-1.0, 0.0], 0)],
)
def test_being_equal_to_the_target_reaches_it(
    objective_type: ObjectiveType, objectives: list[float], index: int
) -> None:
    criteria = CompletionCriteria(target_objective_value=0.93)
    assert first_reason(objectives, criteria, objective_type) == (["target_reached"], index)


def test_the_time_limit_fires_between_results_and_with_the_clock() -> None:
    criteria = CompletionCriteria(max_runtime=timedelta(seconds=120), target_objective_value=0.99)
    late = replay(results([0.1] * 12 + [0.99]), criteria, MAXIMIZE, started_at=START)
    assert [fired.reason for fired in late.first] == [CompletionReason.MAX_RUNTIME]
    assert late.first[0].at == at(120)
    assert late.finished == 12
    on_time = replay(results([0.1] * 11 + [0.99]), criteria, MAXIMIZE, started_at=START)
    assert [fired.reason for fired in on_time.first] == [CompletionReason.TARGET_REACHED]
    running = replay(results([0.1]), criteria, MAXIMIZE, started_at=START, until=at(119.9))
    assert running.first == ()
    over = replay(results([0.1]), criteria, MAXIMIZE, started_at=START, until=at(120))
    assert over.first[0].reason is CompletionReason.MAX_RUNTIME


def test_all_criteria_met_by_one_training_job_are_named_most_specific_first() -> None:
    criteria = CompletionCriteria(
        max_training_jobs=4, max_training_jobs_not_improving=3, target_objective_value=0.2
    )
    report = replay(results([0.3, 0.2, 0.1, 0.1]), criteria, MINIMIZE, started_at=START)
    assert [fired.reason.value for fired in report.first] == ["target_reached"]
    report = replay(results([0.9, 0.9, 0.9, 0.9]), criteria, MINIMIZE, started_at=START)
    assert [fired.reason.value for fired in report.first] == ["not_improving", "max_training_jobs"]
    assert report.by_reason[CompletionReason.TARGET_REACHED] is None


def test_results_after_the_end_change_nothing() -> None:
    tracker = CriteriaTracker(
        CompletionCriteria(max_training_jobs_not_improving=3), MAXIMIZE, started_at=START
    )
    for result in results([0.5, 0.4, 0.4, 0.4, 0.9, None]):
        tracker.observe(result)
    assert tracker.finished == 4
    assert tracker.not_improving_count == 3
    assert tracker.best is not None
    assert tracker.best.objective == 0.5
    assert tracker.next_deadline is None


def test_convergence_is_noted_also_when_the_criterion_is_off() -> None:
    objectives = [0.5, 0.6, 0.7, 0.75, 0.8, *[0.8] * 35]
    off = replay(results(objectives), CompletionCriteria(), MAXIMIZE, started_at=START)
    assert off.first == ()
    assert off.convergence_detected_at is not None
    on = replay(
        results(objectives), CompletionCriteria(complete_on_convergence=True), MAXIMIZE, started_at=START
    )
    assert [fired.reason.value for fired in on.first] == ["converged"]
    assert on.first[0].observed == off.convergence_detected_at == on.first[0].at


@pytest.mark.parametrize("level", [1000.0, 1.0, 0.0, -1.0])
@pytest.mark.parametrize("objective_type", [MAXIMIZE, MINIMIZE])
def test_convergence_at_any_level_of_the_objective(level: float, objective_type: ObjectiveType) -> None:
    sign = 1 if objective_type is MAXIMIZE else -1
    flat = [level + sign * gain for gain in (-0.5, -0.3, -0.2, -0.1, 0.0)] + [level - sign * 0.05] * 35
    steady = [level + sign * 0.1 * max(1.0, abs(level)) * step for step in range(50)]
    criteria = CompletionCriteria(complete_on_convergence=True)
    assert first_reason(flat, criteria, objective_type)[0] == ["converged"]
    assert first_reason(steady, criteria, objective_type) == ([], None)


def test_a_training_job_that_runs_cannot_be_observed() -> None:
    tracker = CriteriaTracker(CompletionCriteria(), MAXIMIZE, started_at=START)
    with pytest.raises(ValueError, match="has not ended"):
        tracker.observe(TrainingJobResult(name="running", status="InProgress"))


def test_times_must_be_aware_and_the_direction_known() -> None:
    with pytest.raises(ValueError, match="aware"):
        CriteriaTracker(CompletionCriteria(), MAXIMIZE, started_at=START.replace(tzinfo=None))
    plain = CriteriaTracker(CompletionCriteria(), "Minimize", started_at=START)  # type: ignore[arg-type]
    assert plain.objective_type is MINIMIZE


def test_summaries_parse_with_nothing_but_a_name() -> None:
    parsed = TrainingJobResult.from_summary({"TrainingJobName": "only"})
    assert parsed == TrainingJobResult(name="only", status="")
    assert not parsed.has_ended
    assert parsed.training_seconds is None
    assert TrainingJobResult.from_summary(dict.fromkeys(summary(results([0.5])[0]), None)).objective is None
    odd = {"FinalHyperParameterTuningJobObjectiveMetric": {"Value": math.nan}}
    assert TrainingJobResult.from_summary(odd).objective is None
    (job,) = results([0.5])
    assert TrainingJobResult.from_summary(summary(job)) == job


# --- against a reference that is as plain as the guide's sentences -----------------------------------

objectives_strategy = st.lists(
    st.none() | st.sampled_from([0.0, 0.25, 0.5, 0.5000001, 0.75, 1.0, -1.0]) | st.floats(-2, 2), max_size=40
)


def reference(
    objectives: Sequence[float | None], criteria: CompletionCriteria, objective_type: ObjectiveType
) -> tuple[set[str], int] | None:
    """The first four criteria, from the whole prefix anew at each training job."""
    sign = 1 if objective_type is MAXIMIZE else -1
    for end in range(1, len(objectives) + 1):
        seconds = end * 10.0
        limit = criteria.max_runtime
        if limit is not None and seconds > limit.total_seconds():
            return {"max_runtime"}, end - 1
        scores = [sign * value for value in objectives[:end] if value is not None]
        met = set()
        if criteria.max_training_jobs is not None and end >= criteria.max_training_jobs:
            met.add("max_training_jobs")
        target = criteria.target_objective_value
        if target is not None and any(score >= sign * target for score in scores):
            met.add("target_reached")
        patience = criteria.max_training_jobs_not_improving
        if (
            patience is not None
            and len(scores) > patience
            and max(scores[-patience:]) <= max(scores[:-patience])
        ):
            met.add("not_improving")
        if met:
            return met, end
    return None


@given(
    objectives_strategy,
    st.builds(
        CompletionCriteria,
        max_training_jobs=st.none() | st.integers(1, 45),
        max_training_jobs_not_improving=st.none() | st.integers(3, 12),
        max_runtime=st.none() | st.integers(120, 450).map(lambda seconds: timedelta(seconds=seconds)),
        target_objective_value=st.none() | st.sampled_from([0.5, 0.75, 1.0, -1.0]) | st.floats(-2, 2),
    ),
    st.sampled_from(ObjectiveType),
)
def test_replay_agrees_with_the_reference(
    objectives: list[float | None], criteria: CompletionCriteria, objective_type: ObjectiveType
) -> None:
    report = replay(results(objectives), criteria, objective_type, started_at=START)
    expected = reference(objectives, criteria, objective_type)
    if expected is None:
        assert report.first == ()
        assert report.finished == len(objectives)
    else:
        assert {fired.reason.value for fired in report.first} == expected[0]
        assert report.finished == expected[1]
    # Alone, no criterion fires before the combination did, and the earliest alone is the combination.
    if report.first:
        alone = [fired.at for fired in report.by_reason.values() if fired is not None]
        assert min(alone) == report.first[0].at


@given(objectives_strategy, st.randoms(use_true_random=False))
def test_the_given_order_does_not_matter(objectives: list[float | None], random: object) -> None:
    criteria = CompletionCriteria(max_training_jobs_not_improving=3, complete_on_convergence=True)
    ordered = results(objectives)
    shuffled = list(ordered)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert replay(shuffled, criteria, MAXIMIZE, started_at=START) == replay(
        ordered, criteria, MAXIMIZE, started_at=START
    )
