"""Conditions: each on its own, combined, and stored; a brute-force reference beside the logic."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.tuning.conditions import (
    CONDITION_CODES,
    MAX_CONDITIONS,
    MAX_DEPTH,
    AllOf,
    AnyOf,
    BudgetShareUsed,
    Condition,
    Converged,
    EstimatedTimeLeftBelow,
    FailureShareAbove,
    FirstUsableModel,
    Met,
    Negation,
    NotImproving,
    OnEnd,
    RuntimeAbove,
    TargetReached,
    TrainingJobsDone,
    end_decision,
    parse_condition,
    progress_result,
)
from airflow_amt.tuning.history import TrainingJobResult
from airflow_amt.tuning.progress import TuningProgress
from tests.unit.tuning.factories import at, description, results

YES, NO, UNKNOWN = Met.YES, Met.NO, Met.UNKNOWN


def progress(**facts: Any) -> TuningProgress:
    return TuningProgress.from_describe(description(status="InProgress", **facts))


def minutes(count: float) -> timedelta:
    return timedelta(minutes=count)


LIST = results([0.5, 0.6, 0.4, None, 0.3])  # 10 s each; the best is the second
TARGET = {"TargetObjectiveMetricValue": 0.9}
RUNTIME = {"MaxRuntimeInSeconds": 1000}
JOBS = {"MaxNumberOfTrainingJobs": 10}

#: Condition, facts, training jobs, what is expected, and what the sentence must say.
CASES: list[tuple[Condition, dict[str, Any], list[TrainingJobResult] | None, Met, str]] = [
    (TargetReached(0.9), {"completed": 1, "best": 0.91}, None, YES, "0.91, reached the target of 0.9"),
    (TargetReached(0.9), {"completed": 1, "best": 0.9}, None, YES, "reached"),
    (TargetReached(0.9), {"completed": 1, "best": 0.89999}, None, NO, "0.89999, has not reached"),
    (TargetReached(0.1), {"completed": 1, "best": 0.05, "objective_type": "Minimize"}, None, YES, "reached"),
    (
        TargetReached(0.1),
        {"completed": 1, "best": 0.2, "objective_type": "Minimize"},
        None,
        NO,
        "not reached",
    ),
    # AMT reports 32 bits: 0.9 comes back as this.
    (TargetReached(0.9), {"completed": 1, "best": 0.8999999761581421}, None, YES, "reached"),
    (TargetReached(), {"completed": 1, "best": 0.95, "completion": TARGET}, None, YES, "target of 0.9"),
    (TargetReached(), {"completed": 1, "best": 0.95}, None, UNKNOWN, "no target"),
    (TargetReached(0.9), {}, None, NO, "No training job has given an objective yet"),
    (TargetReached(0.9), {"completed": 3}, None, UNKNOWN, "does not name the best"),
    (FirstUsableModel(), {"completed": 1, "best": 0.5}, None, YES, "job-000, accuracy 0.5"),
    (FirstUsableModel(), {"failed": 3}, None, NO, "No training job"),
    (FirstUsableModel(), {"completed": 3}, None, UNKNOWN, "does not name"),
    (TrainingJobsDone(3), {"completed": 3}, None, YES, "3 training jobs have an objective"),
    (TrainingJobsDone(3), {"completed": 2, "failed": 1}, None, NO, "2 training jobs"),
    (
        TrainingJobsDone(4, counting="ended"),
        {"completed": 2, "failed": 1, "stopped": 1},
        None,
        YES,
        "4 train",
    ),
    (NotImproving(3), {"not_improving": 3}, None, YES, "3 training jobs in a row"),
    (NotImproving(3), {"not_improving": 2}, None, NO, "2 training jobs in a row"),
    # AMT's own number counts, whatever the list would say.
    (NotImproving(2), {"not_improving": 0}, LIST, NO, "0 training jobs"),
    (
        NotImproving(2),
        {},
        LIST,
        YES,
        "2 training jobs in a row did not improve on the best objective (counted",
    ),
    (NotImproving(3), {}, LIST, NO, "2 training jobs"),
    (NotImproving(3), {}, None, UNKNOWN, "does not say"),
    (Converged(), {"converged_at": at(5)}, None, YES, "convergence at 2026-03-29"),
    (Converged(), {}, None, NO, "not detected"),
    (RuntimeAbove(minutes(1)), {"runtime": 60}, None, YES, "60 s; waited for are 60 s"),
    (RuntimeAbove(minutes(1)), {"runtime": 59}, None, NO, "59 s"),
    (RuntimeAbove(minutes(1)), {}, None, UNKNOWN, "does not say"),
    (BudgetShareUsed(0.5), {"completed": 5, "limits": JOBS}, None, YES, "5 of 10 of the budget"),
    (BudgetShareUsed(0.5), {"completed": 4, "limits": JOBS}, None, NO, "40.0%"),
    (BudgetShareUsed(0.5), {"completed": 4}, None, UNKNOWN, "no budget of training jobs"),
    (BudgetShareUsed(0.5, of="runtime"), {"runtime": 500, "limits": RUNTIME}, None, YES, "500 of 1000 s"),
    (BudgetShareUsed(0.5, of="runtime"), {"runtime": 499, "limits": RUNTIME}, None, NO, "49.9%"),
    (BudgetShareUsed(0.5, of="runtime"), {"limits": RUNTIME}, None, UNKNOWN, "not known"),
    (BudgetShareUsed(0.5, of="runtime"), {"runtime": 500}, None, UNKNOWN, "no budget of runtime"),
    # 50 s of training of 1000 s * 2 parallel training jobs.
    (BudgetShareUsed(0.025, of="estimated_compute"), {"limits": RUNTIME}, LIST, YES, "50 of 2000 s"),
    (BudgetShareUsed(0.026, of="estimated_compute"), {"limits": RUNTIME}, LIST, NO, "2.5%"),
    (BudgetShareUsed(0.026, of="estimated_compute"), {"limits": RUNTIME}, None, UNKNOWN, "not known"),
    (BudgetShareUsed(0.026, of="estimated_compute"), {}, LIST, UNKNOWN, "no budget of compute"),
    (
        BudgetShareUsed(1, of="training_time", training_time=timedelta(seconds=50)),
        {},
        LIST,
        YES,
        "50 of 50 s",
    ),
    (BudgetShareUsed(1, of="training_time", training_time=timedelta(seconds=51)), {}, LIST, NO, "50 of 51 s"),
    (FailureShareAbove(0.5), {"completed": 2, "failed": 3}, None, YES, "3 of 5 training jobs"),
    (FailureShareAbove(0.6), {"completed": 2, "failed": 3}, None, NO, "60.0%"),
    (FailureShareAbove(0.5), {"completed": 1, "failed": 3}, None, NO, "from 5 on"),
    (FailureShareAbove(0, minimum_ended=1), {"failed": 1}, None, YES, "1 of 1"),
    # 100 s for 4 of 10: 25 s each, 150 s left.
    (
        EstimatedTimeLeftBelow(minutes(3)),
        {"completed": 4, "runtime": 100, "limits": JOBS},
        None,
        YES,
        "An estimated 150 s are left; the limit is 180 s",
    ),
    (EstimatedTimeLeftBelow(minutes(2)), {"completed": 4, "runtime": 100, "limits": JOBS}, None, NO, "150 s"),
    (EstimatedTimeLeftBelow(minutes(2)), {"completed": 4, "runtime": 100}, None, UNKNOWN, "cannot"),
]


@pytest.mark.parametrize(("condition", "facts", "jobs", "met", "said"), CASES)
def test_a_single_condition(
    condition: Condition, facts: dict[str, Any], jobs: list[TrainingJobResult] | None, met: Met, said: str
) -> None:
    result = condition.evaluate(progress(**facts), jobs)
    assert (result.met, result.code, result.because) == (met, condition.code, (condition.code,))
    assert said in result.reason
    assert result.reason[0].isupper() or result.reason[0].isdigit()
    assert result.reason.endswith(".")
    assert json.loads(json.dumps(result.to_dict()))["met"] == met.value


def test_every_type_of_condition_has_a_case() -> None:
    assert {case[0].code for case in CASES} | {"all", "any", "not"} == set(CONDITION_CODES)


@pytest.mark.parametrize("condition", [Converged(), FirstUsableModel(), TargetReached(0.5), NotImproving(3)])
def test_a_list_of_tuning_jobs_leaves_out_what_these_need(condition: Condition) -> None:
    summary = {
        "HyperParameterTuningJobName": "churn-model",
        "HyperParameterTuningJobStatus": "InProgress",
        "ObjectiveStatusCounters": {"Succeeded": 3},
    }
    assert condition.evaluate(TuningProgress.from_list_summary(summary)).met is UNKNOWN


@pytest.mark.parametrize(
    ("condition", "facts", "needs"),
    [
        (NotImproving(3), {}, True),
        (NotImproving(3), {"not_improving": 1}, False),
        (BudgetShareUsed(0.5, of="estimated_compute"), {"limits": RUNTIME}, True),
        (BudgetShareUsed(0.5, of="estimated_compute"), {}, False),  # no list can give the budget
        (BudgetShareUsed(0.5, of="training_time", training_time=minutes(1)), {}, True),
        (BudgetShareUsed(0.5), {}, False),
        (TargetReached(), {}, False),  # unknown, and no list can help
        (~NotImproving(3), {}, True),
        (NotImproving(3) & Converged(), {}, False),  # decided without it
        (NotImproving(3) & Converged(), {"converged_at": at(1)}, True),
        (NotImproving(3) | Converged(), {"converged_at": at(1)}, False),
        (NotImproving(3) | Converged(), {}, True),
    ],
)
def test_the_list_is_needed_only_where_it_decides(
    condition: Condition, facts: dict[str, Any], needs: bool
) -> None:
    assert condition.needs_training_jobs(progress(**facts)) is needs


# --- bad parameters ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: TargetReached(math.nan), "target_reached.value"),
        (lambda: TargetReached(True), "target_reached.value"),
        (lambda: TrainingJobsDone(0), "training_jobs_done.count"),
        (lambda: TrainingJobsDone(1.5), "training_jobs_done.count"),  # type: ignore[arg-type]
        (lambda: TrainingJobsDone(1, counting="all"), "training_jobs_done.counting"),
        (lambda: NotImproving(0), "not_improving.training_jobs"),
        (lambda: RuntimeAbove(timedelta(0)), "runtime_above.runtime"),
        (lambda: RuntimeAbove(60), "runtime_above.runtime"),  # type: ignore[arg-type]
        (lambda: BudgetShareUsed(0), "budget_share_used.share"),
        (lambda: BudgetShareUsed(1.01), "budget_share_used.share"),
        (lambda: BudgetShareUsed(0.5, of="money"), "budget_share_used.of"),
        (lambda: BudgetShareUsed(0.5, of="training_time"), "budget_share_used.training_time"),
        (lambda: BudgetShareUsed(0.5, training_time=minutes(1)), "budget_share_used.training_time"),
        (lambda: FailureShareAbove(1), "failure_share_above.share"),
        (lambda: FailureShareAbove(-0.1), "failure_share_above.share"),
        (lambda: FailureShareAbove(0.1, minimum_ended=0), "failure_share_above.minimum_ended"),
        (lambda: EstimatedTimeLeftBelow(minutes(-1)), "estimated_time_left_below.time_left"),
        (lambda: AllOf(()), "all.of"),
        (lambda: Negation("x"), "not.of"),  # type: ignore[arg-type]
    ],
)
def test_a_bad_parameter_is_named(make: Callable[[], Any], field: str) -> None:
    with pytest.raises(AmtFieldError) as caught:
        make()
    assert caught.value.field == field
    assert caught.value.limit
    assert caught.value.fix


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"type": "target"}, "condition.type"),
        ({}, "condition.type"),
        ({"type": ["any"]}, "condition.type"),
        ({"type": "converged", "value": 1}, "condition.value"),
        ({"type": "runtime_above"}, "condition.runtime_seconds"),
        ({"type": "runtime_above", "runtime": 60}, "condition.runtime"),
        ({"type": "runtime_above", "runtime_seconds": "soon"}, "condition.runtime_seconds"),
        ({"type": "runtime_above", "runtime_seconds": ""}, "condition.runtime_seconds"),
        ({"type": "budget_share_used", "share": "150%"}, "condition.share"),
        (
            {"type": "budget_share_used", "share": 0.5, "of": "training_time"},
            "condition.training_time_seconds",
        ),
        ({"type": "any", "of": []}, "condition.of"),
        ({"type": "any", "of": "converged"}, "condition.of"),
        ({"type": "any"}, "condition.of"),
        ({"type": "any", "of": [{"type": "converged"}, {"type": "nope"}]}, "condition.of[1].type"),
        ({"type": "any", "of": [{"type": "not", "of": None}]}, "condition.of[0].of"),
        ({"type": "not", "of": {"type": "converged"}, "also": 1}, "condition.also"),
        ({"type": "converged", "version": 2}, "condition.version"),
        ({"type": "converged", "version": True}, "condition.version"),
        ({"type": "any", "of": [{"type": "converged"}] * (MAX_CONDITIONS + 1)}, "condition.of"),
        ("converged", "condition"),
        ("[1]", "condition"),
        ("[" * 100_000, "condition"),
        (None, "condition"),
        (3, "condition"),
    ],
)
def test_a_bad_dict_is_refused_with_the_path_to_what_is_wrong(given: Any, field: str) -> None:
    with pytest.raises(AmtFieldError) as caught:
        parse_condition(given)
    assert caught.value.field == field


def test_what_nobody_could_read_is_refused() -> None:
    nested: Any = {"type": "converged"}
    for _ in range(MAX_DEPTH):
        nested = {"type": "not", "of": nested}
    with pytest.raises(AmtFieldError, match="nested 16 deep"):
        parse_condition(nested)
    assert parse_condition(nested["of"]).depth == MAX_DEPTH
    condition: Condition = Converged()
    for _ in range(MAX_CONDITIONS - 1):
        condition = condition | Converged()
    with pytest.raises(AmtFieldError, match="at most 64"):
        condition | Converged()


def test_words_of_python_are_refused() -> None:
    with pytest.raises(TypeError, match=r"with &, \| and ~"):
        Converged() and FirstUsableModel()
    with pytest.raises(TypeError):
        Converged() | "converged"  # type: ignore[operator]
    with pytest.raises(TypeError):
        1 & Converged()  # type: ignore[operator]


def test_what_templates_leave_is_read() -> None:
    given = {
        "type": "all",
        "of": [
            {"type": "target_reached", "value": " 0.9 "},
            {"type": "target_reached", "value": "None"},
            {"type": "training_jobs_done", "count": "7", "counting": " ended "},
            {"type": "runtime_above", "runtime_seconds": "90.5"},
        ],
    }
    expected = (
        TargetReached(0.9)
        & TargetReached()
        & TrainingJobsDone(7, counting="ended")
        & RuntimeAbove(timedelta(seconds=90.5))
    )
    assert parse_condition(given) == parse_condition(json.dumps(given)) == expected
    assert parse_condition(expected) is expected


# --- combinations ------------------------------------------------------------------------------

shares = st.floats(0.01, 0.99)
counts = st.integers(1, 20)
durations = st.floats(1, 1e6).map(lambda seconds: timedelta(seconds=round(seconds)))
singles: st.SearchStrategy[Condition] = st.one_of(
    st.builds(TargetReached, st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False))),
    st.just(FirstUsableModel()),
    st.builds(TrainingJobsDone, counts, st.sampled_from(["with_objective", "ended"])),
    st.builds(NotImproving, counts),
    st.just(Converged()),
    st.builds(RuntimeAbove, durations),
    st.builds(BudgetShareUsed, shares, of=st.sampled_from(["training_jobs", "runtime", "estimated_compute"])),
    st.builds(BudgetShareUsed, shares, of=st.just("training_time"), training_time=durations),
    st.builds(FailureShareAbove, shares, counts),
    st.builds(EstimatedTimeLeftBelow, durations),
)
conditions: st.SearchStrategy[Condition] = st.recursive(
    singles,
    lambda inner: st.one_of(
        st.builds(lambda a, b: a & b, inner, inner),
        st.builds(lambda a, b: a | b, inner, inner),
        st.builds(lambda a: ~a, inner),
        st.builds(Negation, inner),
        st.lists(inner, min_size=1, max_size=3).map(lambda some: AllOf(tuple(some))),
    ),
    max_leaves=8,
)


@st.composite
def snapshots(draw: st.DrawFn) -> TuningProgress:
    facts: dict[str, Any] = {
        "completed": draw(st.integers(0, 12)),
        "failed": draw(st.integers(0, 12)),
        "best": draw(st.one_of(st.none(), st.floats(-5, 5))),
        "not_improving": draw(st.one_of(st.none(), st.integers(0, 12))),
        "converged_at": draw(st.sampled_from([None, at(1)])),
        "runtime": draw(st.one_of(st.none(), st.integers(0, 2000))),
        "limits": draw(st.sampled_from([{}, JOBS, RUNTIME, {**JOBS, **RUNTIME}])),
        "completion": draw(st.sampled_from([None, TARGET])),
        "objective_type": draw(st.sampled_from(["Maximize", "Minimize"])),
    }
    return progress(**facts)


lists = st.one_of(st.none(), st.lists(st.one_of(st.none(), st.floats(-5, 5)), max_size=6).map(results))


@given(conditions)
def test_a_condition_survives_its_dict(condition: Condition) -> None:
    stored = json.loads(json.dumps(condition.to_dict()))
    assert stored["version"] == 1
    assert parse_condition(stored) == condition
    assert parse_condition(stored).to_dict() == stored


@given(conditions, conditions, snapshots(), lists)
def test_de_morgan_and_double_negation(a: Condition, b: Condition, now: TuningProgress, jobs: Any) -> None:
    def met(condition: Condition) -> Met:
        return condition.evaluate(now, jobs).met

    assert met(~(a & b)) is met(~a | ~b)
    assert met(~(a | b)) is met(~a & ~b)
    assert met(~~a) is met(Negation(Negation(a))) is met(a)
    assert met(a & b) is met(b & a)
    assert met(a | b) is met(b | a)


def reference(condition: Condition, met: Callable[[Condition], set[bool]]) -> set[bool]:
    """All answers that are possible if each unknown single condition may be either: not Kleene's rules."""
    if isinstance(condition, Negation):
        return {not one for one in reference(condition.of, met)}
    if isinstance(condition, (AllOf, AnyOf)):
        joined = all if isinstance(condition, AllOf) else any
        possible: set[tuple[bool, ...]] = {()}
        for part in condition.of:
            possible = {(*before, one) for before in possible for one in reference(part, met)}
        return {joined(one) for one in possible}
    return met(condition)


@given(conditions, snapshots(), lists)
def test_the_logic_agrees_with_trying_all_possible_answers(
    condition: Condition, now: TuningProgress, jobs: Any
) -> None:
    def met(single: Condition) -> set[bool]:
        answer = single.evaluate(now, jobs).met
        return {True, False} if answer is UNKNOWN else {answer is YES}

    expected = reference(condition, met)
    result = condition.evaluate(now, jobs)
    assert result.met is (UNKNOWN if len(expected) == 2 else YES if expected == {True} else NO)
    # Those that are named decided it: they are among its single conditions, and there is one at least.
    assert result.because
    assert set(result.because) <= set(CONDITION_CODES)


@given(conditions, snapshots(), lists.filter(lambda jobs: jobs is not None))
def test_the_list_never_turns_an_answer_round(condition: Condition, now: TuningProgress, jobs: Any) -> None:
    without, within = condition.evaluate(now).met, condition.evaluate(now, jobs).met
    assert within is without or without is UNKNOWN
    if not condition.needs_training_jobs(now):
        assert within is without


def test_a_combination_names_what_decided_it() -> None:
    now = progress(completed=3, best=0.95, runtime=30)
    fired = (TargetReached(0.9) | TrainingJobsDone(2) | Converged()).evaluate(now)
    assert (fired.met, fired.code) == (YES, "any")
    assert fired.because == ("target_reached", "training_jobs_done")
    assert fired.reason == (
        "The best objective, 0.95, reached the target of 0.9. "
        "3 training jobs have an objective; waited for are 2."
    )
    held_up = (TargetReached(0.9) & ~TrainingJobsDone(2) & Converged()).evaluate(now)
    assert (held_up.met, held_up.because) == (NO, ("training_jobs_done", "converged"))


# --- the end of the job ------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["Completed", "Stopped", "Failed", "Deleting", "DeleteFailed"])
@pytest.mark.parametrize("on_end", list(OnEnd))
def test_the_end_is_decided_by_one_table(status: str, on_end: OnEnd) -> None:
    now = TuningProgress.from_describe(description(status=status, completed=1, best=0.5))
    met, unmet, unknown = (one.evaluate(now) for one in (TrainingJobsDone(1), Converged(), TargetReached()))
    assert end_decision(now, met, on_end) is OnEnd.SUCCEED
    lost = status not in ("Completed", "Stopped")
    expected = OnEnd.FAIL if lost and on_end is OnEnd.SUCCEED else on_end
    assert end_decision(now, unmet, on_end) is end_decision(now, unknown, on_end) is expected


def test_an_unknown_word_for_the_end_is_refused() -> None:
    with pytest.raises(AmtFieldError, match="one of succeed, fail, skip"):
        OnEnd.parse("ignore")


def test_the_result_is_the_progress_and_what_fired() -> None:
    now = progress(completed=4, best=0.5, runtime=100, limits=JOBS, not_improving=2)
    result = json.loads(json.dumps(progress_result(now, TrainingJobsDone(4).evaluate(now))))
    assert result == {
        "version": 1,
        "tuning_job_name": "churn-model",
        "tuning_job_arn": "arn:aws:sagemaker:eu-west-1:000000000000:hyper-parameter-tuning-job/churn-model",
        "status": "InProgress",
        "best_training_job": {
            "name": "job-000",
            "status": "Completed",
            "objective": 0.5,
            "hyperparameters": {},
        },
        "objective_metric": "accuracy",
        "objective_type": "Maximize",
        "training_job_counters": {
            "Completed": 4,
            "InProgress": 0,
            "RetryableError": 0,
            "NonRetryableError": 0,
            "Stopped": 0,
        },
        "objective_counters": {"Succeeded": 4, "Pending": 0, "Failed": 0},
        "not_improving": 2,
        "convergence_detected_at": None,
        "created_at": "2026-03-29T00:30:00+00:00",
        "ended_at": result["ended_at"],
        "runtime_seconds": 100.0,
        "estimated_remaining_seconds": 150.0,
        "max_training_jobs": 10,
        "max_runtime_seconds": None,
        "target_objective_value": None,
        "failure_reason": None,
        "fired": "condition",
        "condition": {
            "met": "yes",
            "code": "training_jobs_done",
            "reason": "4 training jobs have an objective; waited for are 4.",
            "because": ["training_jobs_done"],
        },
    }
    assert progress_result(now, Converged().evaluate(now))["fired"] == "end"
