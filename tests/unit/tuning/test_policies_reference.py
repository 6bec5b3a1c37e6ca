"""Stop policies against a brute-force reference.

The reference is written from the docstrings: it walks through raw training jobs second by second, in exact
fractions, and knows nothing of how the package computes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import pendulum
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_amt.tuning.convergence import NoSignificantImprovement
from airflow_amt.tuning.costs import PriceTable, TrainingJobUsage
from airflow_amt.tuning.criteria import CompletionCriteria, ObjectiveType
from airflow_amt.tuning.history import TrainingJobResult, replay
from airflow_amt.tuning.policies import (
    Action,
    Answer,
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
    Situation,
    Sla,
    Stalled,
    Step,
    TargetReached,
    decide,
)
from airflow_amt.tuning.progress import TuningProgress

START = datetime(2026, 3, 28, 23, 59, 30, tzinfo=UTC)  # the clocks of Madrid change 61 minutes later
HORIZON = 60

QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
MANY = settings(QUICK, max_examples=400)
SOME = settings(QUICK, max_examples=200)
FEW = settings(QUICK, max_examples=40)

Raw = dict[str, Any]


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


# --- worlds ------------------------------------------------------------------------------------

TYPES = {
    "ml.big": 3600.0,
    "ml.small": 1800.0,
}  # an hour's price: whole numbers a second, so that sums are exact
DISCOUNT = 0.5
PRICES = PriceTable(currency="EUR", per_hour=TYPES, spot_discount=DISCOUNT)

TRAINING_JOBS = st.fixed_dictionaries(
    {
        "start": st.integers(0, 40),
        "length": st.integers(0, 30),
        "status": st.sampled_from(["Completed", "Completed", "Completed", "Failed", "Stopped"]),
        "objective": st.one_of(st.none(), st.integers(0, 5)),
        "count": st.integers(1, 3),
        "type": st.sampled_from(sorted(TYPES)),
        "spot": st.booleans(),
        "billed": st.integers(0, 30),
        "limit": st.sampled_from([None, 5, 20, 1000]),
    }
)
WORLDS = st.fixed_dictionaries(
    {
        "jobs": st.lists(TRAINING_JOBS, max_size=7),
        "direction": st.sampled_from(["Maximize", "Minimize"]),
        "most": st.sampled_from([None, 3, 8]),
        "slots": st.integers(1, 3),
    }
)
LOOKS = st.lists(st.integers(0, HORIZON), min_size=1, max_size=4)


def ended(job: Raw, seen: int) -> bool:
    return bool(job["start"] + job["length"] <= seen)


def known(world: Raw, seen: int) -> list[Raw]:
    return [job for job in world["jobs"] if job["start"] <= seen]


def situation(world: Raw, seen: int, now: float | None = None) -> Situation:
    """What the API says at second ``seen``, judged at second ``now``: nothing happened in between."""
    moment = at(seen if now is None else now)
    jobs = known(world, seen)
    summaries, descriptions = [], []
    for position, job in enumerate(jobs):
        done = ended(job, seen)
        name = f"job-{world['jobs'].index(job)}-{position}"
        times = {"TrainingStartTime": at(job["start"])}
        if done:
            times["TrainingEndTime"] = at(job["start"] + job["length"])
        status = job["status"] if done else "InProgress"
        summary = {"TrainingJobName": name, "TrainingJobStatus": status, **times}
        if done and job["objective"] is not None:
            summary["FinalHyperParameterTuningJobObjectiveMetric"] = {"Value": float(job["objective"])}
        summaries.append(summary)
        described = {
            "TrainingJobName": name,
            "TrainingJobStatus": status,
            "ResourceConfig": {"InstanceType": job["type"], "InstanceCount": job["count"]},
            "EnableManagedSpotTraining": job["spot"],
            **times,
        }
        if job["limit"] is not None:
            described["StoppingCondition"] = {"MaxRuntimeInSeconds": job["limit"]}
        if done:
            described["BillableTimeInSeconds"] = min(job["billed"], job["length"])
        descriptions.append(described)
    over = [job for job in jobs if ended(job, seen)]
    results = [TrainingJobResult.from_summary(one) for one in summaries]
    progress = TuningProgress.from_describe(
        {
            "HyperParameterTuningJobName": "churn",
            "HyperParameterTuningJobStatus": "InProgress",
            "CreationTime": START,
            "HyperParameterTuningJobConfig": {
                "HyperParameterTuningJobObjective": {"Type": world["direction"], "MetricName": "loss"},
                "ResourceLimits": {
                    "MaxParallelTrainingJobs": world["slots"],
                    **({} if world["most"] is None else {"MaxNumberOfTrainingJobs": world["most"]}),
                },
            },
            "TrainingJobStatusCounters": {
                "Completed": sum(job["status"] == "Completed" for job in over),
                "NonRetryableError": sum(job["status"] == "Failed" for job in over),
                "Stopped": sum(job["status"] == "Stopped" for job in over),
                "InProgress": len(jobs) - len(over),
            },
            "ObjectiveStatusCounters": {"Succeeded": sum(job["objective"] is not None for job in over)},
        }
    )
    return Situation(
        progress=progress,
        now=moment,
        training_jobs=results,
        usages=[TrainingJobUsage.from_describe(one, now=moment) for one in descriptions],
        prices=PRICES,
    )


# --- the reference -----------------------------------------------------------------------------


def in_order(world: Raw, seen: int) -> list[Raw]:
    return [
        job
        for second in range(seen + 1)
        for job in known(world, seen)
        if job["start"] + job["length"] == second
    ]


def per_second(job: Raw, unit: str, *, billed: bool = True) -> Fraction:
    worth = Fraction(job["count"])
    if unit != "compute_seconds" and job["spot"] and billed:
        worth *= 1 - Fraction(DISCOUNT)
    if unit == "money":
        worth *= Fraction(TYPES[job["type"]]) / 3600
    return worth


def used_by(job: Raw, unit: str, seen: int, now: int) -> Fraction:
    if ended(job, seen) and unit != "compute_seconds":
        return per_second(job, unit, billed=False) * int(min(job["billed"], job["length"]))
    total = Fraction(0)
    for second in range(job["start"], now):
        if not (ended(job, seen) and second >= job["start"] + job["length"]):
            total += per_second(job, unit)
    return total


def reserve_of(job: Raw, unit: str, stopping: int, age: int) -> Fraction:
    """What a training job consumes that is so many seconds old when it is stopped."""
    total = Fraction(0)
    for second in range(age, age + stopping):
        if job["limit"] is None or second < job["limit"]:
            total += per_second(job, unit)
    return total


def budget_share(policy: Budget, world: Raw, seen: int, now: int, raised: Fraction) -> Fraction:
    limit = Fraction(policy.limit) * raised
    spent = sum((used_by(job, policy.unit, seen, now) for job in known(world, seen)), Fraction(0))
    stopping = int(policy.stopping.total_seconds())
    busy = [job for job in known(world, seen) if not ended(job, seen)]
    reserve = sum((reserve_of(job, policy.unit, stopping, now - job["start"]) for job in busy), Fraction(0))
    free = max(0, world["slots"] - len(busy))
    if world["most"] is not None:
        free = min(free, max(0, world["most"] - len(known(world, seen))))
    like = [reserve_of(job, policy.unit, stopping, 0) for job in busy or known(world, seen)]
    reserve += max(like, default=Fraction(0)) * int(free)
    share = spent / (limit - min(reserve, limit / 2))
    over = [job for job in known(world, seen) if ended(job, seen)]
    trained = [job for job in over if job["length"] > 0]
    if (
        policy.counting == "projected"
        and len(over) >= policy.minimum_ended
        and trained
        and world["most"] is not None
    ):
        mean = sum((used_by(job, policy.unit, seen, now) for job in trained), Fraction(0)) / len(trained)
        at_end = spent + mean * int(max(0, world["most"] - len(known(world, seen))))
        for job in known(world, seen):
            if not ended(job, seen):
                at_end += max(Fraction(0), mean - used_by(job, policy.unit, seen, now))
        share = max(share, at_end / limit)
    return share


def better(world: Raw, one: int, other: int | None) -> bool:
    if other is None:
        return True
    return one > other if world["direction"] == "Maximize" else one < other


def since_best(world: Raw, seen: int) -> tuple[int, int | None, list[Raw]]:
    """Results in a row that were not better, the second of the best one, and the training jobs up to it."""
    best, count, second, until = None, 0, None, -1
    for job in in_order(world, seen):
        if job["objective"] is None:
            continue
        if better(world, job["objective"], best):
            best, count, second = job["objective"], 0, job["start"] + job["length"]
            until = second
        else:
            count += 1
    before = [job for job in known(world, seen) if ended(job, seen) and job["start"] + job["length"] <= until]
    return count, second, before


def span(policy_span: timedelta | None) -> Fraction:
    assert policy_span is not None
    return Fraction(int(policy_span.total_seconds()))


def reference(policy: Policy, world: Raw, seen: int, now: int, raised: Fraction = Fraction(1)) -> Fraction:
    """Return the share, from the docstring of the policy."""
    over = [job for job in known(world, seen) if ended(job, seen)]
    failed = sum(job["status"] == "Failed" for job in over)
    results = [job["objective"] for job in in_order(world, seen) if job["objective"] is not None]
    if isinstance(policy, Deadline):
        return Fraction(now) / ((span(policy.after) + (span(policy.grace) if policy.grace else 0)) * raised)
    if isinstance(policy, Budget):
        return budget_share(policy, world, seen, now, raised)
    if isinstance(policy, MaxFailedTrainingJobs):
        shares = [Fraction(0)]
        if policy.count is not None:
            shares.append(Fraction(failed) / (policy.count * raised))
        if policy.share is not None and len(over) >= policy.minimum_ended:
            shares.append(Fraction(failed, len(over)) / (Fraction(str(policy.share)) * raised))
        return max(shares)
    if isinstance(policy, Stalled):
        last = max((job["start"] + job["length"] for job in over), default=0)
        return Fraction(now - last) / (span(policy.duration) * raised)
    if isinstance(policy, NotImproving):
        count, second, before = since_best(world, seen)
        if policy.training_jobs is not None:
            return Fraction(count) / (policy.training_jobs * raised)
        if policy.duration is not None:
            return Fraction(now - (second or 0)) / (span(policy.duration) * raised)
        assert policy.consumed is not None
        used = sum(
            (used_by(job, policy.unit, seen, now) for job in known(world, seen) if job not in before),
            Fraction(0),
        )
        return used / (Fraction(policy.consumed) * raised)
    if isinstance(policy, TargetReached):
        return Fraction(any(not better(world, int(policy.value), one) for one in results))
    if isinstance(policy, MinimumJobs):
        return Fraction(len(results), policy.count)
    if isinstance(policy, Converged):
        return patience_used(policy, world, results, raised)
    assert isinstance(policy, Plateau)
    return Fraction(plateau(policy, world, results))


def patience_used(policy: Converged, world: Raw, results: list[int], raised: Fraction) -> Fraction:
    if not results:
        return Fraction(0)
    ordered = sorted(results, reverse=world["direction"] == "Maximize")
    best, good = ordered[0], ordered[len(ordered) // 4]
    # On one side of zero the distance counts for next to nothing.
    crosses = min(best, good) < 0 < max(best, good)
    unit = (
        Fraction(abs(best - good)) if crosses else max(Fraction(abs(best)), Fraction(abs(best - good), 10**4))
    )
    margin = Fraction(policy.threshold) * unit
    needed = next(number for number, one in enumerate(results, start=1) if abs(one - best) <= margin)
    used = Fraction(len(results) - needed) / (Fraction(policy.patience) * needed)
    return min(used, Fraction(len(results), policy.minimum)) / raised


def middle_of(results: list[int]) -> Fraction:
    middle = Fraction(sum(sorted(results)[(len(results) - 1) // 2 : len(results) // 2 + 1]))
    return middle / (1 + (len(results) % 2 == 0))


def plateau(policy: Plateau, world: Raw, results: list[int]) -> bool:
    if len(results) < policy.minimum or len(results) <= policy.window:
        return False
    middle = middle_of(results)
    off = sorted(abs(one - middle) for one in results)
    spread = sum(off[(len(off) - 1) // 2 : len(off) // 2 + 1], Fraction(0)) / (1 + (len(off) % 2 == 0))
    pick = max if world["direction"] == "Maximize" else min
    before, latest = pick(results[: -policy.window]), pick(results[-policy.window :])
    gain = latest - before if world["direction"] == "Maximize" else before - latest
    return gain <= Fraction(policy.threshold) * max(Fraction(abs(before)), spread)


# --- policies ----------------------------------------------------------------------------------

SPANS = st.integers(1, 50).map(lambda seconds: timedelta(seconds=seconds))
UNIT = st.sampled_from(["compute_seconds", "billable_seconds", "money"])
LIMITS = st.integers(1, 150)

TIMED: st.SearchStrategy[Policy] = st.one_of(
    st.builds(Deadline, after=SPANS, grace=st.one_of(st.none(), SPANS)),
    st.builds(Stalled, SPANS),
    st.builds(NotImproving, duration=SPANS),
    st.builds(Budget, LIMITS, unit=UNIT, stopping=SPANS),
    st.builds(NotImproving, consumed=LIMITS, unit=UNIT),
)
POLICIES: st.SearchStrategy[Policy] = st.one_of(
    TIMED,
    st.builds(Budget, LIMITS, UNIT, st.just("projected"), SPANS, st.integers(1, 3)),
    st.builds(MaxFailedTrainingJobs, count=st.integers(1, 4)),
    st.builds(
        MaxFailedTrainingJobs,
        count=st.one_of(st.none(), st.integers(1, 4)),
        share=st.sampled_from([0.1, 0.3, 0.5, 0.75, 1.0]),
        minimum_ended=st.integers(1, 4),
    ),
    st.builds(NotImproving, training_jobs=st.integers(1, 4)),
    st.builds(TargetReached, st.integers(0, 5)),
    st.builds(MinimumJobs, st.integers(1, 5)),
    st.builds(Plateau, st.integers(1, 3), st.sampled_from([0.25, 0.5, 1.0]), st.integers(1, 4)),
    st.builds(Converged, st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([0.25, 0.5]), st.integers(1, 4)),
)
SHARES = st.sampled_from([0.25, 0.5, 0.8, 1.0, 1.5])
#: Exact as a fraction and as a float.
RAISES = st.sampled_from([0.25, 0.5, 1.0])


@MANY
@given(POLICIES, SHARES, WORLDS, LOOKS)
def test_a_policy_fires_exactly_when_it_is_due(
    policy: Policy, share: float, world: Raw, looks: list[int]
) -> None:
    sla = Sla(rules=(Rule(policy=policy, steps=(Step(action=Action.STOP, at=share),)),), prices=PRICES)
    for look in looks:
        verdict = decide(sla, situation(world, look))
        expected = reference(policy, world, look, look)
        if abs(expected - Fraction(str(share))) < Fraction(1, 10**9) and expected != Fraction(str(share)):
            continue
        assert verdict.stops is (expected >= Fraction(str(share))), (look, expected, verdict)
        assert not verdict.unknown
        json.dumps(verdict.to_dict(), allow_nan=False)


@SOME
@given(POLICIES, st.lists(RAISES, max_size=3), WORLDS, LOOKS)
def test_a_raised_limit_is_that_much_larger(
    policy: Policy, raises: list[float], world: Raw, looks: list[int]
) -> None:
    rule = Rule(policy=policy, steps=(Step(action=Action.WARN, at=0.5), Step(action=Action.ASK, at=0.8)))
    sla = Sla(rules=(rule,), prices=PRICES)
    answers = [Answer(rule.title, "raise", one) for one in raises]
    factor = Fraction(1)
    for one in raises if policy.raisable else ():
        factor *= 1 + Fraction(one)
    for look in looks:
        verdict = decide(sla, situation(world, look), answers=answers)
        expected = reference(policy, world, look, look, factor)
        assert bool(verdict.warnings) is (expected >= Fraction(1, 2))
        # Where there is nothing to raise, whoever raised wants to go on.
        asked = expected >= Fraction("0.8") and (policy.raisable or not raises)
        assert bool(verdict.questions) is asked


@MANY
@given(st.lists(POLICIES, min_size=1, max_size=3), SHARES, WORLDS, st.integers(0, HORIZON), st.booleans())
def test_the_next_look_is_never_too_late(
    policies: list[Policy], share: float, world: Raw, seen: int, every: bool
) -> None:
    policy = policies[0]
    for other in policies[1:]:
        policy = policy & other if every else policy | other
    sla = Sla(rules=(Rule(policy=policy, steps=(Step(action=Action.STOP, at=share),)),), prices=PRICES)
    verdict = decide(sla, situation(world, seen))
    if verdict.stops:
        return
    first = None
    pick = min if every else max
    for second in range(seen + 1, seen + 120):
        if pick(reference(one, world, seen, second) for one in policies) >= Fraction(str(share)):
            first = second
            break
    if first is not None:
        assert verdict.next_look_at is not None
        assert verdict.next_look_at <= at(first)
    if verdict.next_look_at is not None:
        assert verdict.next_look_at > at(seen)


@SOME
@given(TIMED, SHARES, WORLDS, st.integers(0, HORIZON))
def test_the_next_look_is_not_idle(policy: Policy, share: float, world: Raw, seen: int) -> None:
    # The reserve of a budget shrinks as training jobs come near to their own time limit: a bound, no date.
    world = {**world, "jobs": [{**job, "limit": None} for job in world["jobs"]]}
    sla = Sla(rules=(Rule(policy=policy, steps=(Step(action=Action.STOP, at=share),)),), prices=PRICES)
    verdict = decide(sla, situation(world, seen))
    if verdict.stops or verdict.next_look_at is None:
        return
    wait = (verdict.next_look_at - START).total_seconds()
    assert decide(sla, situation(world, seen, wait + 0.001)).stops
    assert not decide(sla, situation(world, seen, wait - 0.001)).stops


@FEW
@given(
    st.integers(1, 4),
    st.lists(st.integers(3, 30), min_size=1, max_size=20),
    st.lists(st.integers(0, 4), min_size=1, max_size=30),
    st.integers(2, 20),
    st.integers(0, 60),
    st.integers(1, 2),
)
def test_a_budget_is_stopped_before_the_money_is_gone(
    slots: int, lengths: list[int], pauses: list[int], stopping: int, more: int, count: int
) -> None:
    """A tuning job goes on for ever; it is looked at every second, and takes as long to stop as allowed."""
    limit = 2 * slots * count * stopping + more
    sla = Sla(rules=(Rule.of(Budget(limit, unit="compute_seconds", stopping=timedelta(seconds=stopping))),))
    raw = {"status": "Completed", "objective": 1, "count": count, "type": "ml.big"}
    raw |= {"spot": False, "billed": 0, "limit": None}
    world: Raw = {"jobs": [], "direction": "Maximize", "most": None, "slots": slots}
    free_at = [0] * slots
    for second in range(10**4):
        for slot in range(slots):
            if free_at[slot] <= second:
                number = len(world["jobs"])
                length = lengths[number % len(lengths)]
                world["jobs"].append({**raw, "start": second, "length": length})
                free_at[slot] = second + length + pauses[number % len(pauses)]
        # Before half of the limit can be spent there is nothing to see.
        if second * slots * count * 2 >= limit and decide(sla, situation(world, second)).stops:
            break
    spent = sum(min(second - job["start"], job["length"]) * count for job in world["jobs"])
    # It is noticed a second late, and then all go on until they are killed.
    busy = sum(not ended(job, second) for job in world["jobs"])
    assert spent + busy * count * (stopping - 1) <= limit
    assert spent >= limit - slots * count * stopping, "and not before it has to be"


@SOME
@given(WORLDS, st.integers(0, HORIZON))
def test_not_improving_counts_as_the_criteria_do(world: Raw, look: int) -> None:
    now = situation(world, look)
    assert now.training_jobs is not None
    report = replay(
        now.training_jobs, CompletionCriteria(), ObjectiveType(world["direction"]), started_at=START
    )
    level = NotImproving(training_jobs=1).measure(now)
    assert level.evidence["training_jobs"] == report.not_improving_count
    assert level.evidence["best_objective"] == (report.best.objective if report.best else None)


@SOME
@given(
    st.lists(st.integers(-8, 8), max_size=30),
    st.sampled_from(["Maximize", "Minimize"]),
    st.integers(1, 6),
    st.integers(1, 8),
)
def test_a_plateau_is_that_of_the_convergence_rule(
    objectives: list[int], direction: str, window: int, minimum: int
) -> None:
    policy = Plateau(window, 0.25, minimum)
    found = NoSignificantImprovement(window, 0.25, minimum).converged(objectives, ObjectiveType(direction))
    assert plateau(policy, {"direction": direction}, objectives) is found


# --- logic -------------------------------------------------------------------------------------


def fixed(_: Situation, share: float | None) -> float | None:
    return share


PATH = f"{__name__}.fixed"
VALUES = st.sampled_from([None, 0.0, 0.3, 0.5, 0.8, 1.0, 1.2])
Tree = Any
TREES: st.SearchStrategy[Tree] = st.recursive(
    VALUES,
    lambda inner: st.tuples(st.sampled_from("&|"), st.lists(inner, min_size=1, max_size=3)),
    max_leaves=8,
)
NOWHERE = Situation(progress=TuningProgress(name="churn", status="InProgress"), now=START)


def built(tree: Tree) -> Policy:
    if not isinstance(tree, tuple):
        return Custom(PATH, {"share": tree})
    sign, (first, *others) = tree[0], tree[1]
    policy = built(first)
    for one in others:
        policy = policy & built(one) if sign == "&" else policy | built(one)
    return policy


def kleene(tree: Tree, threshold: float) -> bool | None:
    if not isinstance(tree, tuple):
        return None if tree is None else bool(tree >= threshold)
    answers = [kleene(one, threshold) for one in tree[1]]
    if tree[0] == "&":
        return False if False in answers else (None if None in answers else True)
    return True if True in answers else (None if None in answers else False)


def negated(tree: Tree) -> Tree:
    """Swap the signs: what is left to negate are the leaves."""
    return (
        (tree[0].translate(str.maketrans("&|", "|&")), [negated(x) for x in tree[1]])
        if isinstance(tree, tuple)
        else tree
    )


def opposite(answer: bool | None) -> bool | None:
    return None if answer is None else not answer


def kleene_of_negated_leaves(tree: Tree, threshold: float) -> bool | None:
    if not isinstance(tree, tuple):
        return opposite(kleene(tree, threshold))
    answers = [kleene_of_negated_leaves(one, threshold) for one in tree[1]]
    if tree[0] == "&":
        return False if False in answers else (None if None in answers else True)
    return True if True in answers else (None if None in answers else False)


@MANY
@given(TREES, SHARES)
def test_combinations_obey_three_valued_logic(tree: Tree, threshold: float) -> None:
    policy = built(tree)
    answer = policy.measure(NOWHERE).reached(threshold)
    assert answer is kleene(tree, threshold)
    # De Morgan: it is so just if the swapped combination of the opposites is not.
    assert answer is opposite(kleene_of_negated_leaves(negated(tree), threshold))
    sla = Sla(rules=(Rule(policy=policy, steps=(Step(action=Action.STOP, at=threshold),)),))
    verdict = decide(sla, NOWHERE)
    assert verdict.stops is (answer is True)
    assert bool(verdict.unknown) is (answer is None)
    json.dumps(verdict.to_dict(), allow_nan=False)


@QUICK
@given(TREES, TREES, TREES, SHARES)
def test_combinations_are_associative_and_distributive(a: Tree, b: Tree, c: Tree, threshold: float) -> None:
    one, two, three = built(a), built(b), built(c)

    def reached(policy: Policy) -> bool | None:
        return policy.measure(NOWHERE).reached(threshold)

    assert reached(one & two) is reached(two & one)
    assert reached(one & (two & three)) is reached((one & two) & three)
    assert reached(one & (two | three)) is reached((one & two) | (one & three))
    assert reached(one | (two & three)) is reached((one | two) & (one | three))
    assert reached(one | (one & two)) is reached(one)


# --- the order of a verdict --------------------------------------------------------------------

SEVERITY = {"warn": 0, "ask": 1, "stop": 2, "stop_and_fail": 3}
STEPS = st.lists(
    st.tuples(st.sampled_from(sorted(SEVERITY)), SHARES), min_size=1, max_size=4, unique_by=lambda step: step
)


@MANY
@given(
    st.lists(st.tuples(VALUES, STEPS), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, 6), st.sampled_from(["continue", "stop"])), max_size=4),
)
def test_a_verdict_names_the_most_severe_step_of_the_first_rule(
    raw: list[tuple[float | None, list[tuple[str, float]]]], said: list[tuple[int, str]]
) -> None:
    sla = Sla(
        rules=tuple(
            Rule(
                policy=Custom(PATH, {"share": share}),
                steps=tuple(Step(action=Action(action), at=threshold) for action, threshold in steps),
                name=f"rule{number}",
            )
            for number, (share, steps) in enumerate(raw)
        )
    )
    verdict = decide(sla, NOWHERE, answers=[Answer(f"rule{number}", choice) for number, choice in said])

    expected: list[tuple[int, int, str]] = []
    for number, (share, steps) in enumerate(raw):
        if (number, "stop") in said:
            expected.append((-SEVERITY["stop"], number, f"rule{number}:stop@answer"))
        for action, threshold in steps:
            if (
                share is not None
                and share >= threshold
                and (action != "ask" or (number, "continue") not in said)
            ):
                expected.append((-SEVERITY[action], number, f"rule{number}:{action}@{threshold:g}"))
    expected.sort(key=lambda one: one[:2])
    assert [one.id for one in verdict.due] == [one[2] for one in expected]
    if not expected:
        assert verdict.action is None
        return
    assert verdict.action is not None
    assert SEVERITY[verdict.action.value] == -expected[0][0]
    assert verdict.rule == f"rule{expected[0][1]}"
    same = {number for severity, number, _ in expected if severity == expected[0][0]}
    assert set(verdict.also) == {f"rule{number}" for number in same - {expected[0][1]}}
    assert [one.id for one in verdict.warnings] == [one[2] for one in expected if one[0] == 0]
    assert [one.id for one in verdict.questions] == [one[2] for one in expected if one[0] == -1]


# --- the calendar ------------------------------------------------------------------------------

#: Days on which clocks change; in Nuuk shortly before midnight.
CHANGES = {
    "Europe/Madrid": ["2026-03-29", "2026-10-25"],
    "America/New_York": ["2026-03-08", "2026-11-01"],
    "Australia/Lord_Howe": ["2026-04-05", "2026-10-04"],
    "Africa/Casablanca": ["2026-02-15", "2026-03-22"],
    "America/Nuuk": ["2026-03-28", "2026-10-24"],
    "UTC": ["2026-06-01"],
}
QUARTER = timedelta(minutes=15)


def wall(moment: datetime, zone: str) -> datetime:
    return pendulum.instance(moment).in_timezone(zone).naive()


def times_of_day(zone: str, clock: str, start: datetime, days: int) -> Iterator[datetime]:
    """Walk through the quarters of an hour and look at the clock on the wall."""
    hour, minute = (int(part) for part in clock.split(":"))
    moment = start
    while moment < start + timedelta(days=days):
        before, here = wall(moment - QUARTER, zone), wall(moment, zone)
        wanted = here.replace(hour=hour, minute=minute)
        if here == wanted and not any(wall(moment - back * QUARTER, zone) == here for back in range(1, 13)):
            yield moment
        elif here - before > QUARTER:  # a part of the day is left out
            for day in (before, here):
                skipped = day.replace(hour=hour, minute=minute)
                if before + QUARTER <= skipped < here:
                    yield moment - QUARTER + (skipped - before)
                    break
        moment += QUARTER


@SOME
@given(
    st.sampled_from([(zone, day) for zone, days in CHANGES.items() for day in days]),
    st.integers(-150, 150),
    st.integers(0, 95),
    st.integers(-30, 30),
)
def test_a_time_of_day_is_that_of_the_clock_on_the_wall(
    change: tuple[str, str], quarters: int, quarter: int, off: int
) -> None:
    zone, day = change
    clock = f"{quarter // 4:02d}:{quarter % 4 * 15:02d}"
    since = datetime.fromisoformat(day).replace(tzinfo=UTC) + quarters * QUARTER
    expected = next(one for one in times_of_day(zone, clock, since - timedelta(days=1), 4) if one > since)
    policy = Deadline(time_of_day=clock, timezone=zone, reference="logical_date")
    progress = TuningProgress(name="churn", status="InProgress", created_at=since)
    looked_at = Situation(
        progress=progress,
        now=expected + timedelta(seconds=off),
        run=RunTimes(logical_date=pendulum.instance(since).in_timezone(zone)),
    )
    assert policy.due(looked_at) == expected
    assert decide(Sla(rules=(Rule(policy=policy),)), looked_at).stops is (off >= 0)


@SOME
@given(POLICIES, WORLDS, st.integers(0, HORIZON), st.integers(-(10**6), 10**6))
def test_a_clock_that_jumps_breaks_nothing(policy: Policy, world: Raw, seen: int, jump: int) -> None:
    now = situation(world, seen, seen + jump)
    level = policy.measure(now)
    assert level.share is not None
    assert level.share >= 0
    sla = Sla(rules=(Rule(policy=policy),), prices=PRICES)
    verdict = decide(sla, now)
    assert verdict == decide(sla, situation(world, seen, seen + jump))
    assert verdict.next_look_at is None or verdict.next_look_at > now.now
    json.dumps(verdict.to_dict(), allow_nan=False)
