"""Stop policies by example: each on its own, rules, answers of people, stored forms, and bad input."""

from __future__ import annotations

import json
import re
import sys
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pendulum
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_amt.exceptions import AmtFieldError, AmtRequestError
from airflow_amt.tuning.costs import PriceTable, Resources, TrainingJobUsage
from airflow_amt.tuning.history import TrainingJobResult
from airflow_amt.tuning.policies import (
    CHOICES,
    MAX_DEPTH,
    POLICY_CODES,
    Action,
    AllOf,
    Answer,
    AnyOf,
    Budget,
    Converged,
    Custom,
    Deadline,
    MaxFailedTrainingJobs,
    MinimumJobs,
    NotImproving,
    Plateau,
    Policy,
    Rule,
    RunTimes,
    SinglePolicy,
    Situation,
    Sla,
    Stalled,
    Step,
    TargetReached,
    decide,
    parse_policy,
    parse_sla,
)
from airflow_amt.tuning.progress import TuningProgress
from tests.unit.tuning.factories import START, at, description, results

MADRID = ZoneInfo("Europe/Madrid")
PRICES = PriceTable(currency="EUR", per_hour={"ml.m5.xlarge": 3600.0})
ONE = Resources(instances=(("ml.m5.xlarge", 1),))
TAG_SAFE = re.compile(r"[A-Za-z0-9_.:/=+@-]+")


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def running(**facts: Any) -> TuningProgress:
    return TuningProgress.from_describe(description(status="InProgress", **facts))


def usage(name: str, spent: float, *, busy: bool = False, resources: Resources = ONE) -> TrainingJobUsage:
    return TrainingJobUsage(name=name, resources=resources, training_seconds=spent, running=busy)


def situation(
    now: float = 0,
    jobs: list[TrainingJobResult] | None = None,
    usages: list[TrainingJobUsage] | None = None,
    run: RunTimes | None = None,
    **facts: Any,
) -> Situation:
    return Situation(
        progress=running(**facts),
        now=at(now),
        training_jobs=jobs,
        usages=usages,
        prices=PRICES,
        run=run or RunTimes(),
    )


def stop(*policies: Policy) -> Sla:
    return Sla(rules=tuple(Rule(policy=one) for one in policies), prices=PRICES)


# --- deadlines ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "clock", "since", "due"),
    [
        # 02:30 is skipped: taken with the offset from before, it is 03:30 in summer time.
        ("Europe/Madrid", "02:30", "2026-03-29T00:00+01:00", "2026-03-29T03:30+02:00"),
        ("Europe/Madrid", "02:30", "2026-03-29T03:30+02:00", "2026-03-30T02:30+02:00"),
        # 02:30 comes twice: the first, in summer time, and not the second.
        ("Europe/Madrid", "02:30", "2026-10-25T00:00+02:00", "2026-10-25T02:30+02:00"),
        ("Europe/Madrid", "02:30", "2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"),
        ("Europe/Madrid", "06:00", "2026-10-25T02:30+01:00", "2026-10-25T06:00+01:00"),
        ("America/New_York", "02:30", "2026-03-08T00:00-05:00", "2026-03-08T03:30-04:00"),
        # Half an hour.
        ("Australia/Lord_Howe", "02:15", "2026-10-04T00:00+10:30", "2026-10-04T02:45+11:00"),
        # Back for Ramadan, and forth again.
        ("Africa/Casablanca", "02:30", "2026-02-15T00:00+01:00", "2026-02-15T02:30+01:00"),
        ("Africa/Casablanca", "02:30", "2026-03-22T00:00+00:00", "2026-03-22T03:30+01:00"),
        # Skipped before midnight, made up for after it, and asked for in between.
        ("America/Nuuk", "23:30", "2026-03-29T00:10-01:00", "2026-03-29T00:30-01:00"),
        ("UTC", "06:00", "2026-06-01T06:00+00:00", "2026-06-02T06:00+00:00"),
    ],
)
def test_a_deadline_by_time_of_day(zone: str, clock: str, since: str, due: str) -> None:
    policy = Deadline(time_of_day=clock, timezone=zone, reference="logical_date")
    run = RunTimes(logical_date=datetime.fromisoformat(since))
    assert policy.due(situation(run=run)) == datetime.fromisoformat(due)


@pytest.mark.parametrize("reference", ["created", "logical_date", "queued_at", "data_interval_end"])
def test_a_deadline_counts_from_its_reference(reference: str) -> None:
    policy = Deadline(after=seconds(100), reference=reference, grace=seconds(20))
    run = RunTimes() if reference == "created" else RunTimes(**{reference: at(10)})
    due = at(120) if reference == "created" else at(130)
    level = policy.measure(situation(60, run=run))
    assert level.due == due
    # The share is of the time from the creation on, whatever the deadline counts from.
    assert level.share == timedelta(seconds=60) / (due - START)


def test_a_deadline_whose_reference_is_not_known_cannot_be_told() -> None:
    verdict = decide(stop(Deadline(after=seconds(1), reference="queued_at")), situation(10**6))
    assert not verdict.stops
    assert "DAG run's queued_at, which is not known" in verdict.unknown[0]


def test_a_deadline_is_breached_by_a_tuning_job_that_was_created_after_it() -> None:
    policy = Deadline(at=at(-100))
    assert decide(stop(policy), situation(0)).stops
    # A clock that went back: it is not due yet, and will be looked at when it is.
    verdict = decide(stop(policy), situation(-200))
    assert not verdict.stops
    assert verdict.next_look_at == at(-100)
    assert not decide(stop(Deadline(at=START)), situation(-1)).stops
    assert decide(stop(Deadline(at=START)), situation(0)).stops


def test_an_absolute_deadline_needs_no_creation_time() -> None:
    progress = TuningProgress(name="churn", status="InProgress")
    sla = Sla(
        rules=(Rule.of(Deadline(at=at(100)), warn_at=0.5), Rule.of(Deadline(at=at(100)), warn_at=seconds(30)))
    )
    early = decide(sla, Situation(progress=progress, now=at(50)))
    assert early.action is None
    assert early.next_look_at == at(70)
    assert len(early.unknown) == 1, "which share has passed cannot be told"
    assert decide(sla, Situation(progress=progress, now=at(100))).stops


def test_times_in_a_time_zone_are_not_subtracted_by_the_clock_on_the_wall() -> None:
    # One and the same zone object in all of them, across the change to summer time: one hour, not two.
    created = datetime(2026, 3, 29, 1, 30, tzinfo=MADRID)
    now = datetime(2026, 3, 29, 3, 30, tzinfo=MADRID)
    job = TrainingJobResult(name="one", status="Completed", objective=0.5, ended_at=created)
    looked_at = Situation(
        progress=TuningProgress.from_describe(description(status="InProgress", CreationTime=created)),
        now=now,
        training_jobs=[job],
        run=RunTimes(queued_at=created),
    )
    for policy in (
        Deadline(after=timedelta(hours=2)),
        Deadline(at=datetime(2026, 3, 29, 4, 30, tzinfo=MADRID)),
        Stalled(timedelta(hours=2)),
        NotImproving(duration=timedelta(hours=2)),
    ):
        assert policy.measure(looked_at).share == 0.5, policy
    measured = TrainingJobUsage.from_result(
        TrainingJobResult(name="one", status="InProgress", started_at=created), ONE, now=now
    )
    assert measured.training_seconds == 3600


def test_times_of_pendulum_are_taken_as_any_other() -> None:
    now = pendulum.datetime(2026, 3, 29, 10, tz="Europe/Madrid")
    run = RunTimes(logical_date=pendulum.datetime(2026, 3, 29, 0, tz="Europe/Madrid"))
    looked_at = Situation(progress=running(), now=now, run=run)
    verdict = decide(
        stop(Deadline(time_of_day="12:00", timezone="Europe/Madrid", reference="logical_date")), looked_at
    )
    assert type(looked_at.now) is datetime
    assert verdict.next_look_at == datetime(2026, 3, 29, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Situation(progress=running(), now=datetime(2026, 1, 1)),  # noqa: DTZ001 - it is refused
        lambda: RunTimes(queued_at=datetime(2026, 1, 1)),  # noqa: DTZ001 - it is refused
        lambda: Deadline(at=datetime(2026, 1, 1)),  # noqa: DTZ001 - it is refused
        lambda: parse_policy({"type": "deadline", "at": "2026-01-01T06:00:00"}),
        lambda: Deadline(at=datetime(9999, 12, 31, tzinfo=UTC)),
        lambda: Deadline(time_of_day="06:00+01:00", timezone="UTC"),
        lambda: Deadline(time_of_day="06:00"),
        lambda: Deadline(timezone="UTC", after=seconds(1)),
        lambda: Deadline(time_of_day="06:00", timezone="Europe/Nowhere"),
        lambda: Deadline(time_of_day="06:00", timezone="../etc"),
        lambda: Deadline(after=seconds(0)),
        Deadline,
        lambda: Deadline(after=seconds(1), at=at(1)),
        lambda: Deadline(after=seconds(1), reference="started"),
    ],
)
def test_bad_times_are_refused(make: Any) -> None:
    with pytest.raises(AmtFieldError):
        make()


def test_a_warning_before_a_deadline_moves_with_it() -> None:
    rule = Rule.of(Deadline(after=seconds(100)), warn_at=seconds(10), ask_at=0.5)
    sla = Sla(rules=(rule,))
    assert [one.id for one in decide(sla, situation(90)).due] == ["deadline:ask@0.5", "deadline:warn@-10s"]
    longer = [Answer("deadline", "raise", 1.0)]
    assert decide(sla, situation(90), answers=longer).next_look_at == at(100)
    assert [one.id for one in decide(sla, situation(100), answers=longer).due] == ["deadline:ask@0.5x2"]
    assert [one.id for one in decide(sla, situation(190), answers=longer).due] == [
        "deadline:ask@0.5x2",
        "deadline:warn@-10sx2",
    ]
    assert decide(sla, situation(200), answers=longer).stops


# --- budgets -----------------------------------------------------------------------------------


def test_a_budget_is_stopped_while_what_running_training_jobs_still_consume_is_left() -> None:
    policy = Budget(1000, stopping=seconds(100))
    two = [usage("a", 390, busy=True), usage("b", 400, busy=True)]
    level = policy.measure(situation(usages=two))
    assert level.share == round(790 / 800, 12)
    assert level.evidence["after_stop"] == 990
    two[0] = usage("a", 400, busy=True)
    verdict = decide(stop(policy), situation(usages=two))
    assert verdict.stops
    assert "800 of 1000 EUR are spent, up to 1000 if stopped now" in verdict.reason


def test_a_budget_reckons_with_training_jobs_that_are_launched_before_the_stop() -> None:
    policy = Budget(1000, stopping=seconds(100))
    # Two slots, one of them free, and AMT may fill it at any moment.
    one = [usage("a", 400, busy=True), usage("b", 400)]
    verdict = decide(stop(policy), situation(usages=one))
    assert verdict.stops
    assert (verdict.evidence["after_stop"], verdict.evidence["reserve"]) == (900, 200)
    # There is nothing left to launch.
    last = situation(usages=one, completed=2, limits={"MaxNumberOfTrainingJobs": 2})
    assert not decide(stop(policy), last).stops


def test_a_budget_too_small_for_a_stop_lasts_to_its_half() -> None:
    policy = Budget(100, stopping=seconds(100))
    assert policy.measure(situation(usages=[usage("a", 0, busy=True)])).share == 0
    assert decide(stop(policy), situation(usages=[usage("a", 49.9, busy=True)])).action is None
    assert decide(stop(policy), situation(usages=[usage("a", 50, busy=True)])).stops


def test_a_training_job_consumes_no_longer_than_its_own_time_limit() -> None:
    short = Resources(instances=(("ml.m5.xlarge", 1),), max_runtime_seconds=60)
    level = Budget(1000).measure(situation(usages=[usage("a", 50, busy=True, resources=short)]))
    assert level.evidence["after_stop"] == 60


def test_a_budget_needs_prices_of_everything_unless_the_rest_is_too_much_already() -> None:
    odd = Resources(instances=(("ml.odd", 1),))
    low = decide(stop(Budget(100)), situation(usages=[usage("a", 50), usage("b", 1, resources=odd)]))
    assert not low.stops
    assert "no price of ml.odd; 50 of 100 are spent at least" in low.unknown[0]
    high = decide(stop(Budget(100)), situation(usages=[usage("a", 100), usage("b", 1, resources=odd)]))
    assert high.stops
    assert high.share == 1
    assert high.unknown == ()


def test_a_projection_counts_when_enough_training_jobs_have_ended() -> None:
    policy = Budget(100, counting="projected", minimum_ended=2, stopping=seconds(1e-6))
    limits = {"MaxNumberOfTrainingJobs": 10}
    jobs = [usage("a", 12), usage("b", 12)]
    assert policy.measure(situation(usages=jobs, completed=1, limits=limits)).share == pytest.approx(0.24)
    level = policy.measure(situation(usages=jobs, completed=2, limits=limits))
    assert level.share == 1.2
    assert level.evidence["projected"] == 120
    assert policy.measure(situation(usages=jobs, completed=2)).share == pytest.approx(0.24), (
        "no limit: no end to project to"
    )
    # By the time limit: two slots for 20 s more.
    by_time = policy.measure(
        situation(usages=jobs, now=100, completed=2, limits={"MaxRuntimeInSeconds": 120, **limits})
    )
    assert by_time.evidence["projected"] == 64


def test_consumption_since_the_best_training_job() -> None:
    jobs = results([0.5, 0.9, 0.1])
    usages = [usage("job-000", 10), usage("job-001", 10), usage("job-002", 10), usage("more", 5, busy=True)]
    level = NotImproving(consumed=15).measure(situation(35, jobs, usages))
    assert level.share == 1
    assert level.evidence["spent"] == 15


# --- failures, guards, floors ------------------------------------------------------------------


def test_failed_training_jobs_count_by_number_and_by_share() -> None:
    policy = MaxFailedTrainingJobs(count=4, share=0.5, minimum_ended=4)
    assert policy.measure(situation(failed=3)).share == 0.75
    assert policy.measure(situation(failed=2, completed=2)).share == 1.0
    assert policy.measure(situation(failed=1, completed=3)).share == 0.5
    with pytest.raises(AmtFieldError, match="at least one of count and share"):
        MaxFailedTrainingJobs()


def test_a_guard_holds_another_policy_back_and_is_not_the_reason() -> None:
    sla = stop(MaxFailedTrainingJobs(count=1) & MinimumJobs(3) & TargetReached(0.8))
    assert sla.titles == ("max_failed_training_jobs",)
    assert not decide(sla, situation(failed=1, completed=2, best=0.9)).stops
    assert not decide(sla, situation(failed=1, completed=3, best=0.7)).stops
    verdict = decide(sla, situation(failed=1, completed=3, best=0.8))
    assert verdict.stops
    assert verdict.code == "max_failed_training_jobs"
    assert verdict.evidence["failed"] == 1
    assert [one["code"] for one in verdict.evidence["parts"]] == [
        "max_failed_training_jobs",
        "minimum_jobs",
        "target_reached",
    ]
    assert verdict.reason.startswith("1 of 4 training jobs that ended have failed")


def test_to_raise_a_limit_leaves_its_guards_alone() -> None:
    policy = MaxFailedTrainingJobs(count=2) & TargetReached(0.8)
    raised = [Answer("max_failed_training_jobs", "raise", 0.5)]
    assert not decide(stop(policy), situation(failed=2, completed=1, best=0.9), answers=raised).stops
    assert decide(stop(policy), situation(failed=3, completed=1, best=0.9), answers=raised).stops


def test_several_policies_together_go_by_their_combination() -> None:
    every = decide(stop(MaxFailedTrainingJobs(count=1) & Stalled(seconds(10))), situation(20, [], failed=1))
    assert every.code == every.rule == "all"
    either = decide(stop(MaxFailedTrainingJobs(count=1) | Stalled(seconds(10))), situation(20, []))
    assert (either.rule, either.code) == ("any", "stalled")
    assert either.reason.startswith("No training job has ended for 20 s")


def test_a_target_is_compared_as_amt_reports_it() -> None:
    # AMT reports 32 bits: 0.9 comes back as this.
    assert decide(stop(TargetReached(0.9)), situation(completed=1, best=0.8999999761581421)).stops
    assert decide(stop(TargetReached(0.9)), situation(0, results([0.95]))).stops, "the list has it already"
    assert not decide(stop(TargetReached(0.9)), situation(completed=1, best=0.89)).stops
    assert decide(stop(TargetReached(0.9)), situation(completed=1)).unknown


def test_what_was_not_listed_cannot_be_told() -> None:
    for policy in (
        Stalled(seconds(1)),
        NotImproving(training_jobs=1),
        Plateau(),
        Converged(),
        Budget(1),
        NotImproving(consumed=1),
    ):
        level = policy.measure(situation(10**6))
        assert level.share is None, policy
    assert TargetReached(1).measure(situation()).share == 0


def test_plateau() -> None:
    policy = Plateau(window=2, threshold=0.01, minimum=4)
    assert "can be told from 4 on" in policy.measure(situation(0, results([1, 1, 1]))).reason
    assert policy.measure(situation(0, results([1, 2, 2, 2]))).share == 1
    better = policy.measure(situation(0, results([1, 2, 2, 3])))
    assert better.share == 0
    assert "by more than 1.0%" in better.reason


def test_converged() -> None:
    policy = Converged(patience=2.0, threshold=0.01, minimum=4)
    assert policy.measure(situation(0, [])).share == 0
    assert policy.measure(situation(0, results([1, 1, 1]))).share == 0.75, "at least 4 in all"
    level = policy.measure(situation(0, results([1, 2, 1, 1, 1])))
    assert level.share == 0.75, "3 of 4 more, as it took 2"
    assert level.evidence == {"results": 5, "needed": 2}
    assert "After result 2 of 5 none was better by more than 1.0%" in level.reason
    assert policy.measure(situation(0, results([1, 2, 1, 1, 1, 1]))).share == 1
    assert policy.measure(situation(0, results([1, 2, 1, 1, 1, 1])), raised=2).share == 0.5
    raised = policy.measure(situation(0, results([1, 1, 1, 1])), raised=2)
    assert raised.share == 0.5, "also where it is the least number of results that counts"
    assert "at least 8 in all" in raised.reason
    assert policy.measure(situation(0, results([1, 2, 1, 1, 1, 3]))).share == 0
    with pytest.raises(AmtFieldError, match="how many times as many"):
        Converged(patience=0)


def test_a_tuning_job_that_ends_is_left_alone() -> None:
    for status in ("Stopping", "Stopped", "Completed", "Failed", "Deleting", "DeleteFailed"):
        looked_at = Situation(
            progress=TuningProgress(name="churn", status=status, created_at=START), now=at(10**6)
        )
        verdict = decide(stop(Stalled(seconds(1))), looked_at, answers=[Answer("stalled", "stop")])
        assert verdict.action is None
        assert status in verdict.reason


# --- custom policies ---------------------------------------------------------------------------


def told(_: Situation, answer: Any = None, *, times: int = 1) -> Any:
    return answer * times if isinstance(answer, float) else answer


def broken(_: Situation) -> float:
    raise KeyError("too_hot")


def odd(_: Situation, which: str) -> Any:
    return {"nan": float("nan"), "inf": float("inf"), "three": (1.0, "a", "b"), "number": (1.0, 2)}[which]


async def later(_: Situation) -> float:
    return 1.0


def dear(situation: Situation) -> float:
    return 0.0 if situation.consumption is None else situation.consumption.compute_seconds


dear.uses_costs = True  # type: ignore[attr-defined]
NOT_A_FUNCTION = 3


@pytest.mark.parametrize(
    ("answer", "share"), [(0.5, 0.5), (1, 1.0), (True, 1.0), (False, 0.0), ([0.5, "x"], None), (None, None)]
)
def test_a_custom_policy(answer: Any, share: float | None) -> None:
    level = Custom(f"{__name__}.told", {"answer": answer}).measure(situation())
    assert level.share == share


@pytest.mark.parametrize("answer", [-0.1, "0.5", [], {}, [0.5, "x"]])
def test_a_custom_policy_that_returns_something_else_cannot_be_told(answer: Any) -> None:
    level = Custom(f"{__name__}.told", {"answer": answer}).measure(situation())
    assert level.share is None
    assert f"{__name__}.told returned {answer!r}, which is neither" in level.reason


@pytest.mark.parametrize("which", ["nan", "inf", "three", "number", "missing"])
def test_a_custom_policy_with_odd_numbers_cannot_be_told(which: str) -> None:
    verdict = decide(stop(Custom(f"{__name__}.odd", {"which": which})), situation())
    assert not verdict.stops
    assert len(verdict.unknown) == 1
    json.dumps(verdict.to_dict(), allow_nan=False)


def test_a_custom_policy_that_raises_does_not_keep_the_others_from_judging() -> None:
    verdict = decide(stop(Custom(f"{__name__}.broken"), Stalled(seconds(1))), situation(10, []))
    assert verdict.stops
    assert verdict.rule == "stalled"
    assert verdict.unknown == (f"custom: {__name__}.broken raised KeyError: 'too_hot'",)


def test_a_custom_policy_says_whether_it_looks_at_costs() -> None:
    assert Custom(f"{__name__}.dear").uses_costs
    assert not Custom(f"{__name__}.broken").uses_costs
    assert Custom(f"{__name__}.broken").uses_training_jobs


def test_a_custom_policy_that_is_gone_where_it_runs_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    sla = stop(Custom(f"{__name__}.dear"), Stalled(seconds(1)))
    monkeypatch.delattr(sys.modules[__name__], "dear")
    assert not sla.uses_costs
    verdict = decide(sla, situation(10, []))
    assert verdict.rule == "stalled"
    assert "has no attribute 'dear'" in verdict.unknown[0]


@pytest.mark.parametrize(
    ("path", "arguments", "field"),
    [
        ("nowhere.at_all", {}, "path"),
        (f"{__name__}.missing", {}, "path"),
        (f"{__name__}.NOT_A_FUNCTION", {}, "path"),
        (f"{__name__}.later", {}, "path"),
        ("told", {}, "path"),
        ("..", {}, "path"),
        (".told", {}, "path"),
        (7, {}, "path"),
        (f"{__name__}.odd", {}, "arguments"),
        (f"{__name__}.odd", {"which": "nan", "other": 1}, "arguments"),
        (f"{__name__}.told", {"answer": {1, 2}}, "arguments"),
        (f"{__name__}.told", {"answer": float("nan")}, "arguments"),
        (f"{__name__}.told", {1: 2}, "arguments"),
        (f"{__name__}.told", [], "arguments"),
    ],
)
def test_a_custom_policy_is_checked_when_it_is_made(path: Any, arguments: Any, field: str) -> None:
    with pytest.raises(AmtFieldError) as caught:
        Custom(path, arguments)
    assert caught.value.field == f"custom.{field}"
    with pytest.raises(AmtRequestError) as listed:
        parse_sla([{"type": "custom", "path": path, "arguments": arguments}])
    assert listed.value.problems[0].field == f"sla.rules[0].{field}"


# --- rules -------------------------------------------------------------------------------------


def test_a_rule_by_one_line() -> None:
    rule = Rule.of(Budget(50), action="stop_and_fail", warn_at=0.8, ask_at=0.9, name="team")
    assert rule == Rule(
        policy=Budget(50),
        steps=(
            Step(action=Action.WARN, at=0.8),
            Step(action=Action.ASK, at=0.9),
            Step(action=Action.STOP_AND_FAIL),
        ),
        name="team",
    )
    assert Rule.of(Budget(50)) == Rule(policy=Budget(50))
    assert Rule.of(Budget(50), action=Action.WARN).steps == (Step(action=Action.WARN),)
    assert Rule.of(Budget(50), action="ask", ask_at=1.0).steps == (Step(action=Action.ASK),)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Rule.of(Budget(5), warn_at=seconds(5)), "rule.steps[0].before"),
        (lambda: Rule.of(Budget(5), warn_at=0), "rule.warn_at"),
        (lambda: Rule.of(Budget(5), warn_at=True), "rule.warn_at"),
        (lambda: Rule.of(Budget(5), ask_at=float("nan")), "rule.ask_at"),
        (lambda: Rule.of(Deadline(after=seconds(5)), warn_at=seconds(-5)), "rule.warn_at"),
        # The tuning job is stopped by then.
        (lambda: Rule.of(Budget(5), warn_at=80), "rule.warn_at"),
        (lambda: Rule.of(Budget(5), ask_at=1.0), "rule.ask_at"),
        (lambda: Rule.of(Budget(5), action="pause"), "rule.action"),
        (lambda: Rule.of(Budget(5), name="a b"), "rule.name"),
        (lambda: Rule.of(Budget(5), name="a:b"), "rule.name"),
        (lambda: Rule.of(Budget(5), name="x" * 41), "rule.name"),
        (lambda: Rule(policy=Budget(5), steps=()), "rule.steps"),
        (
            lambda: Rule(policy=Budget(5), steps=(Step(action=Action.ASK), Step(action=Action.ASK))),
            "rule.steps[1]",
        ),
        (lambda: Rule(policy="budget"), "rule.policy"),  # type: ignore[arg-type]
        (lambda: Step(action=Action.WARN, before=seconds(-1)), "step.before"),
        (lambda: AllOf(()), "all.of"),
        (lambda: AnyOf(("budget",)), "any.of"),  # type: ignore[arg-type]
        (lambda: AnyOf((Budget(5),) * 65), "any.of"),
    ],
)
def test_bad_rules_are_refused(make: Any, field: str) -> None:
    with pytest.raises(AmtFieldError) as caught:
        make()
    assert caught.value.field == field


@pytest.mark.parametrize("action", ["stop", "stop_and_fail"])
def test_a_warning_after_the_stop_is_refused_in_the_flat_dict_too(action: str) -> None:
    flat = {"type": "stalled", "duration_seconds": 60, "action": action}
    with pytest.raises(AmtRequestError) as caught:
        parse_sla({**flat, "warn_at": "80"})
    (problem,) = caught.value.problems
    assert (problem.field, problem.value) == ("sla.rules[0].warn_at", "80")
    assert action in problem.limit
    # What only warns may warn again.
    assert parse_sla({**flat, "action": "warn", "warn_at": 2}).rules[0].steps[0].at == 2.0


def test_titles_are_unique() -> None:
    sla = Sla(
        rules=(
            Rule.of(Stalled(seconds(1))),
            Rule.of(Stalled(seconds(2))),
            Rule.of(Stalled(seconds(3)), name="stalled"),
            Rule.of(Stalled(seconds(4)), name="stalled-2"),
        )
    )
    assert sla.titles == ("stalled-3", "stalled-4", "stalled", "stalled-2")
    verdict = decide(sla, situation(10, []))
    assert verdict.rule == "stalled-3"
    assert verdict.also == ("stalled-4", "stalled", "stalled-2")
    ids = [one.id for one in verdict.due]
    assert len(set(ids)) == 4
    assert all(TAG_SAFE.fullmatch(one) for one in ids)
    with pytest.raises(AmtRequestError, match="a name of its own"):
        Sla(rules=(Rule.of(Stalled(seconds(1)), name="a"), Rule.of(Stalled(seconds(1)), name="a")))


def test_a_budget_in_money_needs_prices() -> None:
    with pytest.raises(AmtRequestError, match="prices, for a budget in money"):
        Sla(rules=(Rule.of(Stalled(seconds(1)) | Budget(5)),))
    Sla(rules=(Rule.of(NotImproving(training_jobs=3)), Rule.of(Budget(5, unit="compute_seconds"))))


def test_policies_are_not_combined_with_and_and_or() -> None:
    with pytest.raises(TypeError, match=r"with & and \|"):
        bool(Budget(5))
    with pytest.raises(TypeError):
        Budget(5) & 3  # type: ignore[operator]
    assert (Budget(1) & Budget(2) & Budget(3)) == AllOf((Budget(1), Budget(2), Budget(3)))
    assert (Budget(1) | Budget(2) | Budget(3)) == AnyOf((Budget(1), Budget(2), Budget(3)))


def test_nesting_has_an_end_so_that_what_is_written_can_be_read() -> None:
    policy: Policy = Stalled(seconds(1))
    for _ in range(MAX_DEPTH - 1):
        policy = AnyOf((policy,))
    assert parse_policy(policy.to_dict()) == policy
    with pytest.raises(AmtFieldError, match=f"at most {MAX_DEPTH} deep"):
        AnyOf((policy,))
    with pytest.raises(AmtFieldError, match=f"at most {MAX_DEPTH} deep"):
        parse_policy({"type": "any", "of": [policy.to_dict()]})


# --- answers -----------------------------------------------------------------------------------

ASKING = Sla(rules=(Rule.of(MaxFailedTrainingJobs(count=10), ask_at=0.5, warn_at=0.5, name="failures"),))


def test_continue_mutes_the_question_and_nothing_else() -> None:
    assert decide(ASKING, situation(failed=5)).questions[0].id == "failures:ask@0.5"
    verdict = decide(ASKING, situation(failed=5), answers=[Answer("failures", "continue", by="ann")])
    assert verdict.questions == ()
    assert [one.id for one in verdict.warnings] == ["failures:warn@0.5"]
    assert decide(ASKING, situation(failed=10), answers=[Answer("failures", "continue")]).stops


def test_raise_moves_all_steps_and_may_ask_again() -> None:
    once = [Answer("failures", "raise", 0.5)]
    assert decide(ASKING, situation(failed=7), answers=once).action is None
    assert decide(ASKING, situation(failed=8), answers=once).questions[0].id == "failures:ask@0.5x1.5"
    assert not decide(ASKING, situation(failed=14), answers=once).stops
    assert decide(ASKING, situation(failed=15), answers=once).stops
    twice = [*once, Answer("failures", "raise", 1.0)]
    assert not decide(ASKING, situation(failed=29), answers=twice).stops
    assert decide(ASKING, situation(failed=30), answers=twice).stops
    muted = [Answer("failures", "continue"), *once]
    assert decide(ASKING, situation(failed=8), answers=muted).questions == ()


def test_stop_stops_with_the_rule_as_the_reason() -> None:
    verdict = decide(ASKING, situation(failed=5), answers=[Answer("failures", "stop", by="ann")])
    assert verdict.action is Action.STOP
    assert (verdict.rule, verdict.code, verdict.share) == ("failures", "max_failed_training_jobs", 0.5)
    assert verdict.reason.startswith("ann decided to stop it. 5 of 5 training jobs")
    assert verdict.evidence["decided_by"] == "ann"
    assert verdict.due[0].id == "failures:stop@answer"
    assert decide(ASKING, situation(), answers=[Answer("failures", "stop")]).reason.startswith(
        "A person decided"
    )
    # A more severe breach goes before what a person decided.
    severe = Sla(rules=(*ASKING.rules, Rule.of(Stalled(seconds(1)), action="stop_and_fail")))
    assert decide(severe, situation(9, []), answers=[Answer("failures", "stop")]).rule == "stalled"


def test_answers_about_other_rules_do_not_matter() -> None:
    other = [Answer("budget", choice, 0.5) for choice in CHOICES]
    assert decide(ASKING, situation(failed=5), answers=other) == decide(ASKING, situation(failed=5))


def test_many_raises_stay_numbers() -> None:
    answers = [Answer("deadline", "raise", 100.0)] * 400
    sla = Sla(rules=(Rule.of(Deadline(at=datetime(2999, 1, 1, tzinfo=UTC)), warn_at=seconds(5)),))
    verdict = decide(sla, situation(1), answers=answers)
    assert verdict.action is None
    json.dumps(verdict.to_dict(), allow_nan=False)


ANSWERS = st.builds(
    Answer,
    st.from_regex(r"\A[A-Za-z0-9_.+/@-]{1,40}\Z"),
    st.sampled_from(CHOICES),
    st.floats(1e-6, 100),
    st.text(max_size=200),
)


@given(ANSWERS)
def test_answers_are_read_back(answer: Answer) -> None:
    text = answer.encode()
    assert Answer.decode(text) == answer
    assert Answer.decode(text + (":" if answer.by else "::") + "new") == answer
    assert TAG_SAFE.fullmatch(text)
    assert len(text) <= 256
    stored = json.loads(json.dumps({**answer.to_dict(), "version": 2, "new": 1}))
    assert Answer.parse(stored) == answer
    assert Answer.parse(text) == answer
    assert Answer.parse(answer) is answer


def test_the_text_of_an_answer() -> None:
    assert Answer("budget", "raise", 0.5, "alice").encode() == "budget=raise:0.5:alice"
    assert Answer("budget", "continue", 0.5, "o'neil@x.org").encode() == "budget=continue:o+27neil@x.org"
    assert Answer.decode("budget=stop") == Answer("budget", "stop")


@pytest.mark.parametrize(
    "junk",
    ["", "=", "budget", "budget=", "budget=pause", "=stop", "budget=raise", "budget=raise:x",
     "budget=raise:0", "budget=raise:nan", "budget=raise:101", "a b=stop", "budget=stop:+zz",
     "budget=stop:+ff", 3, None, [], {}, {"rule": "budget"}, {"rule": ["budget"], "choice": "stop"},
     {"rule": "budget", "choice": ["stop"]}, {"rule": "budget", "choice": "stop", "by": 7},
     {"rule": "budget", "choice": "raise", "raise_by": "much"}],
)  # fmt: skip
def test_what_is_no_answer_is_refused(junk: Any) -> None:
    with pytest.raises(AmtFieldError, match="answer"):
        Answer.parse(junk)


# --- stored forms ------------------------------------------------------------------------------

SPANS = st.floats(0.001, 1e6).map(seconds)
AMOUNTS = st.floats(1e-3, 1e6)
COUNTS = st.integers(1, 1000)
SINGLE: st.SearchStrategy[Policy] = st.one_of(
    st.builds(
        Deadline,
        at=st.datetimes(
            datetime(1972, 1, 1),  # noqa: DTZ001 - the zone is drawn
            datetime(2900, 1, 1),  # noqa: DTZ001 - the zone is drawn
            timezones=st.timezones(),
        ),
    ),
    st.builds(
        Deadline,
        time_of_day=st.times().map(lambda one: one.isoformat()),
        timezone=st.timezone_keys(),
        reference=st.sampled_from(["created", "logical_date", "queued_at", "data_interval_end"]),
        grace=st.one_of(st.none(), SPANS),
    ),
    st.builds(Deadline, after=SPANS),
    st.builds(
        Budget,
        AMOUNTS,
        st.sampled_from(["money", "billable_seconds"]),
        st.sampled_from(["spent", "projected"]),
        SPANS,
    ),
    st.builds(MaxFailedTrainingJobs, count=COUNTS, share=st.floats(0.01, 1), minimum_ended=COUNTS),
    st.builds(Stalled, SPANS),
    st.builds(NotImproving, training_jobs=COUNTS),
    st.builds(NotImproving, duration=SPANS),
    st.builds(NotImproving, consumed=AMOUNTS),
    st.builds(Plateau, COUNTS, st.floats(0.01, 1), COUNTS),
    st.builds(Converged, AMOUNTS, st.floats(0.01, 1), COUNTS),
    st.builds(TargetReached, st.floats(allow_nan=False, allow_infinity=False)),
    st.builds(MinimumJobs, COUNTS),
    st.builds(Custom, st.just(f"{__name__}.told"), st.fixed_dictionaries({"answer": st.floats(0, 2)})),
    st.just(Custom(f"{__name__}.broken")),
)
POLICIES: st.SearchStrategy[Policy] = st.recursive(
    SINGLE,
    lambda inner: st.lists(inner, min_size=1, max_size=3).flatmap(
        lambda of: st.sampled_from([AnyOf(tuple(of)), AllOf(tuple(of))])
    ),
    max_leaves=4,
)
STEPS = st.lists(
    st.builds(Step, action=st.sampled_from(Action), at=st.floats(0.01, 10)),
    min_size=1,
    max_size=3,
    unique_by=lambda s: s.key,
)
RULES = st.one_of(
    st.builds(Rule, policy=POLICIES, steps=STEPS.map(tuple)),
    st.builds(Rule.of, st.builds(Deadline, after=SPANS), warn_at=SPANS),
)
SLAS = st.builds(
    lambda rules: Sla(rules=tuple(rules), prices=PRICES), st.lists(RULES, min_size=1, max_size=3)
)


@settings(deadline=None)
@given(SLAS)
def test_slas_are_read_back(sla: Sla) -> None:
    text = json.dumps(sla.to_dict(), allow_nan=False)
    read = parse_sla(text)
    assert read.to_dict() == sla.to_dict()
    assert read.titles == sla.titles
    assert parse_sla(json.loads(text)) == read
    assert parse_sla(read) is read
    json.dumps(decide(sla, situation(10, results([0.1]), [])).to_dict(), allow_nan=False)


def test_the_flat_form_of_a_rule() -> None:
    sla = parse_sla(
        {
            "rules": [
                {"type": "budget", "limit": "50", "warn_at": "0.8", "action": "stop_and_fail",
                 "name": "team"},
                {"type": "deadline", "after_seconds": 60, "warn_before_seconds": 10, "ask_before_seconds": 5},
                {"type": "stalled", "duration_seconds": 60, "action": "warn"},
                {"type": "stalled", "duration_seconds": 90, "action": "ask", "ask_at": None},
                {"type": "all", "ask_at": 0.5,
                 "of": [{"type": "minimum_jobs", "count": 3}, {"type": "target_reached", "value": 1}]},
                {"policy": {"type": "stalled", "duration_seconds": 5}},
            ],
            "prices": {"currency": "EUR", "per_hour": {"ml.m5.xlarge": "3600"}},
        }
    )  # fmt: skip
    assert sla.rules == (
        Rule.of(Budget(50.0), warn_at=0.8, action="stop_and_fail", name="team"),
        Rule.of(Deadline(after=seconds(60)), warn_at=seconds(10), ask_at=seconds(5)),
        Rule.of(Stalled(seconds(60)), action="warn"),
        Rule.of(Stalled(seconds(90)), action="ask"),
        Rule.of(AllOf((MinimumJobs(3), TargetReached(1))), ask_at=0.5),
        Rule.of(Stalled(seconds(5))),
    )
    assert sla.prices == PRICES
    assert (
        parse_sla({"type": "minimum_jobs", "count": 3})
        == parse_sla([MinimumJobs(3)])
        == parse_sla(MinimumJobs(3))
    )


def test_all_that_is_wrong_is_listed() -> None:
    with pytest.raises(AmtRequestError) as caught:
        parse_sla(
            {
                "version": 7,
                "rule": [],
                "rules": [
                    {"type": "budget", "limit": -1, "warn_at": 0, "action": "pause", "name": "a b"},
                    {"type": "nothing"},
                    {
                        "policy": {"type": "stalled"},
                        "steps": [{"action": "warn", "at": "x"}, {"at": 1}],
                        "more": 1,
                    },
                    {"type": "stalled", "duration_seconds": 5, "warn_before_seconds": 1},
                    7,
                ],
                "prices": {"currency": ""},
            }
        )
    assert [one.field for one in caught.value.problems] == [
        "sla.version",
        "sla.rule",
        "sla.rules[0].name",
        "sla.rules[0].limit",
        "sla.rules[0].warn_at",
        "sla.rules[0].action",
        "sla.rules[1].type",
        "sla.rules[2].more",
        "sla.rules[2].policy.duration_seconds",
        "sla.rules[2].steps[0].at",
        "sla.rules[2].steps[1].action",
        "sla.rules[3].steps[0].before",
        "sla.rules[4]",
        "sla.prices.currency",
        "sla.prices.per_hour",
    ]


class Foreign(SinglePolicy):
    code = "foreign"

    def measure(self, situation: Situation, *, raised: float = 1.0) -> Any:
        raise NotImplementedError


def test_a_policy_that_could_not_be_read_back_is_refused() -> None:
    policy = Foreign.__new__(Foreign)
    for value in (policy, Rule(policy=policy), Rule(policy=AnyOf((Stalled(seconds(1)), policy)))):
        with pytest.raises(AmtRequestError, match="a policy of this package"):
            parse_sla(value)


KEYS = st.sampled_from(
    ["version", "rules", "prices", "type", "of", "policy", "steps", "name", "action", "at",
     "before_seconds", "warn_at", "ask_before_seconds", "limit", "unit", "duration_seconds", "path",
     "arguments", "currency", "per_hour", "time_of_day", "timezone", "count", "value"]
)  # fmt: skip
WORDS = st.sampled_from(
    [*POLICY_CODES, "stop", "warn", "money", "06:00", "UTC", "json.dumps", "os.path.join", "1e400"]
)
JUNK = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), WORDS, st.text(max_size=5),
        st.binary(max_size=2), st.just({1, 2}), st.just(10**400),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(KEYS, st.integers()), inner, max_size=4)
    ),
    max_leaves=12,
)  # fmt: skip


def parsed(value: Any) -> Sla | AmtRequestError:
    try:
        return parse_sla(value)
    except AmtRequestError as error:
        return error


@settings(max_examples=800, deadline=None)
@given(JUNK)
def test_junk_gives_a_clear_error(junk: Any) -> None:
    found = parsed(junk)
    if isinstance(found, AmtRequestError):
        assert found.problems
        assert str(found)
    else:
        assert parse_sla(found.to_dict()) == found


@st.composite
def damaged(draw: st.DrawFn) -> Any:
    """The dict of an SLA with junk somewhere in it."""
    whole = draw(SLAS).to_dict()
    holder: Any = whole
    while True:
        key = draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
        inner = holder[key]
        if not isinstance(inner, dict | list) or not inner or draw(st.booleans()):
            break
        holder = inner
    holder[draw(KEYS) if isinstance(holder, dict) and draw(st.booleans()) else key] = draw(JUNK)
    return whole


@settings(max_examples=200, deadline=None)
@given(damaged())
def test_damage_gives_a_clear_error(whole: Any) -> None:
    found = parsed(whole)
    if isinstance(found, AmtRequestError):
        assert str(found)
    else:
        assert parse_sla(found.to_dict()) == found
        decide(found, situation(10, results([0.1]), []))


@pytest.mark.parametrize(
    "junk",
    ["", "{", "[" * 100_000, "7", "null", "[]", [], {}, None, 7, b"x", {"rules": []}, {"rules": "ab"}, [[]],
     [None],
     {"rules": [{"type": "stalled", "duration_seconds": 5}] * 33},
     {"rules": [{"type": ["stalled"]}]}, {"rules": [{"type": "any", "of": []}]},
     {"version": True, "rules": []},
     {"rules": [{"policy": {"type": "stalled", "duration_seconds": 5}, "steps": []}]},
     {"rules": [{"type": "stalled", "duration_seconds": 5, "version": 2}]},
     {"rules": [{"policy": {"type": "deadline", "after_seconds": 5},
                 "steps": [{"action": "warn", "at": 0.5, "before_seconds": 5}]}]}],
)  # fmt: skip
def test_what_is_no_sla_is_refused(junk: Any) -> None:
    with pytest.raises(AmtRequestError):
        parse_sla(junk)
