"""The median rule and Hyperband: readings, edges, restarts, and brute-force references."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local.early_stopping import (
    ETA,
    HyperbandRule,
    MedianRule,
    StoppingRule,
    create_stopping_rule,
    hyperband_resources,
)
from airflow_amt.tuning import request
from airflow_amt.tuning.criteria import ObjectiveType

MAXIMIZE, MINIMIZE = ObjectiveType.MAXIMIZE, ObjectiveType.MINIMIZE

# Eighths: exact in doubles, and far enough apart that rounding decides nothing.
OBJECTIVES = st.integers(-80, 80).map(lambda one: one / 8)
CURVES = st.lists(st.lists(OBJECTIVES, max_size=12), max_size=12)


def median_rule(*curves: Sequence[float], kind: ObjectiveType = MAXIMIZE) -> MedianRule:
    """A rule that has seen some training jobs end."""
    rule = MedianRule(kind)
    for number, curve in enumerate(curves):
        rule.ended(f"previous-{number}", curve)
    return rule


def hyperband_rule(
    low: int = 1, high: int = 27, *, by_itself: bool = False, kind: ObjectiveType = MAXIMIZE, seed: int = 5
) -> HyperbandRule:
    return HyperbandRule(kind, min_resource=low, max_resource=high, ends_by_itself=by_itself, seed=seed)


def names_in(rule: HyperbandRule, bracket: int, count: int) -> list[str]:
    """Names of training jobs that fall into a bracket."""
    every = (f"job-{number}" for number in range(10_000))
    return list(islice((name for name in every if rule.bracket(name) == bracket), count))


def drive(rule: StoppingRule, curves: Iterable[Sequence[float]], name: Callable[[int], str]) -> list[int]:
    """Report each curve epoch by epoch, one training job after the other; return how far each came."""
    lengths = []
    for number, curve in enumerate(curves):
        length = len(curve)
        for epoch in range(1, len(curve) + 1):
            if rule.report(name(number), curve[:epoch]):
                length = epoch
                break
        rule.ended(name(number), curve[:length])
        lengths.append(length)
    return lengths


# --- the median rule -------------------------------------------------------------------------------


def test_the_median_rule_compares_with_running_averages_up_to_the_same_epoch() -> None:
    # Averages at epoch 2: 0.3, 0.4, 0.6.
    rule = median_rule([0.2, 0.4, 9.0], [0.4, 0.4], [0.8, 0.4, -9.0])

    assert not rule.report("now", [0.0, 0.41])
    assert rule.report("now", [9.0, 0.39])
    assert not rule.report("now", [0.9, 0.4]), "being equal is not worse"


def test_the_median_rule_minimises_too() -> None:
    rule = median_rule([0.2, 0.4], [0.4, 0.4], [0.8, 0.4], kind=MINIMIZE)

    assert rule.report("now", [0.0, 0.41])
    assert not rule.report("now", [9.0, 0.39])


def test_the_median_rule_waits_for_three_previous_training_jobs_at_the_epoch() -> None:
    assert not median_rule([1.0], [1.0]).report("now", [0.0])
    assert median_rule([1.0], [1.0], [1.0]).report("now", [0.0])
    rule = median_rule([1.0, 1.0], [1.0, 1.0], [1.0])
    assert rule.report("now", [0.0])
    assert not rule.report("now", [0.0, 0.0]), "only two of them got to the second epoch"
    assert not rule.report("now", [0.0] * 9)


def test_nothing_is_stopped_before_its_first_epoch() -> None:
    assert not median_rule([1.0], [1.0], [1.0]).report("now", [])
    assert not hyperband_rule(1, 1).report("now", [])


def test_a_training_job_without_an_objective_is_no_previous_one() -> None:
    assert not median_rule([1.0], [1.0], []).report("now", [0.0])


def test_equal_curves_are_not_stopped_by_rounding() -> None:
    for kind in (MAXIMIZE, MINIMIZE):
        rule = median_rule(*[[0.1] * 1000] * 3, kind=kind)
        assert not any(rule.report("now", [0.1] * epoch) for epoch in range(1, 1001))


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", [MAXIMIZE, MINIMIZE])
def test_what_is_not_finite_is_worse_than_everything(wrong: float, kind: ObjectiveType) -> None:
    assert median_rule([-1e300], [0.0], [1e300], kind=kind).report("now", [wrong])
    # Two previous ones that went astray count as the worst.
    rule = median_rule([wrong], [wrong], [0.0], kind=kind)
    assert not rule.report("now", [0.0])
    assert not rule.report("now", [wrong]), "the median is as bad"
    # And an average stays astray.
    rule = median_rule([wrong, 0.0], [wrong, 0.0], [0.0, 0.0], kind=kind)
    assert not rule.report("now", [0.0, -5.0 if kind is MAXIMIZE else 5.0])


def test_huge_objectives_do_not_overflow() -> None:
    rule = median_rule([1e308] * 3, [1e308, -1e308, 1e308], [-1e308] * 3)

    assert rule.report("now", [0.0, 0.0, -1e308])
    assert not rule.report("now", [0.0, 0.0, 1e308])


def brute_force_median(previous: Sequence[Sequence[float]], curve: Sequence[float], maximise: bool) -> bool:
    """The guide's three sentences, word by word."""
    epoch = len(curve)
    averages = [statistics.fmean(one[:epoch]) for one in previous if len(one) >= epoch > 0]
    if len(averages) < 3:
        return False
    middle = statistics.median(averages)
    return curve[-1] < middle - 1e-7 if maximise else curve[-1] > middle + 1e-7


@given(previous=CURVES, curve=st.lists(OBJECTIVES, max_size=12), maximise=st.booleans())
def test_the_median_rule_agrees_with_its_definition(
    previous: list[list[float]], curve: list[float], maximise: bool
) -> None:
    rule = median_rule(*previous, kind=MAXIMIZE if maximise else MINIMIZE)

    assert rule.report("now", curve) == brute_force_median(previous, curve, maximise)


@given(curves=CURVES)
def test_the_direction_only_mirrors_the_median_rule(curves: list[list[float]]) -> None:
    mirrored = [[-one for one in curve] for curve in curves]

    assert drive(MedianRule(MAXIMIZE), curves, str) == drive(MedianRule(MINIMIZE), mirrored, str)


# --- Hyperband -------------------------------------------------------------------------------------


def test_rungs_lie_between_the_resources() -> None:
    assert hyperband_rule(1, 27).rungs == [1, 3, 9]
    assert hyperband_rule(1, 28).rungs == [1, 3, 9, 27]
    assert hyperband_rule(2, 20).rungs == [2, 6, 18]
    assert hyperband_rule(5, 5).rungs == []
    assert hyperband_rule(1, 20_000).rungs[-1] == 19_683


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nothing_is_stopped_before_min_resource(seed: int) -> None:
    rule = hyperband_rule(4, 40, seed=seed)
    for number in range(200):
        assert not any(rule.report(f"job-{number}", [-float(number)] * epoch) for epoch in range(1, 4))


def test_a_training_job_is_stopped_at_max_resource() -> None:
    rule = hyperband_rule(1, 9)
    (name,) = names_in(rule, bracket=2, count=1)

    assert not rule.report(name, [0.0] * 8)
    assert rule.report(name, [0.0] * 9)
    assert rule.report(name, [0.0] * 11), "also if epochs came faster than they were read"


def test_a_trainer_that_ends_by_itself_is_left_to() -> None:
    rule = hyperband_rule(1, 9, by_itself=True)
    (name,) = names_in(rule, bracket=2, count=1)

    assert not rule.report(name, [0.0] * 9)
    assert not rule.report(name, [0.0] * 11)


def test_the_best_third_goes_on() -> None:
    rule = hyperband_rule(1, 27)
    names = names_in(rule, bracket=0, count=8)

    stopped = [
        rule.report(name, [value]) for name, value in zip(names, [5, 4, 6, 3, 5.5, 5, 7, 6], strict=True)
    ]
    # The first is alone; with up to five there, the best one goes on; from six on, two do; equals go on.
    assert stopped == [False, True, False, True, True, True, False, False]


def test_what_is_not_finite_is_the_worst_on_its_rung() -> None:
    rule = hyperband_rule(1, 27)
    names = names_in(rule, bracket=0, count=4)

    assert not rule.report(names[0], [math.nan]), "alone, and so the best"
    assert not rule.report(names[1], [-1e300])
    assert rule.report(names[2], [math.inf])
    assert rule.report(names[3], [math.nan])


def test_a_rung_is_judged_once_and_by_the_objective_there() -> None:
    rule = hyperband_rule(1, 27)
    first, second = names_in(rule, bracket=0, count=2)

    assert not rule.report(first, [1.0])
    assert not rule.report(second, [2.0])
    # The first is now the worse one of two, but was judged when it came.
    assert not rule.report(first, [1.0, 0.0])
    assert not rule.report(first, [1.0, 0.0, 5.0])
    # Two epochs at once: what counts is the objective on the third, not the last one.
    assert rule.report(second, [2.0, 2.0, 4.0, 9.0])


def test_brackets_begin_a_rung_later_each() -> None:
    rule = hyperband_rule(1, 27)
    for number in range(30):
        rule.ended(f"good-{number}", [1.0] * 26)
    for bracket in range(4):
        (name,) = names_in(rule, bracket, count=1)
        lengths = [epoch for epoch in range(1, 27) if rule.report(name, [0.0] * epoch)]
        # Every later rung would stop it as well.
        assert lengths == [1, 3, 9][bracket:]


def test_the_first_bracket_is_the_largest() -> None:
    rule = hyperband_rule(1, 27)
    count = Counter(rule.bracket(f"job-{number}") for number in range(6000))

    # Hyperband's own proportions for four brackets: 27, 12, 6, 4.
    for bracket, share in enumerate((27, 12, 6, 4)):
        assert count[bracket] / 6000 == pytest.approx(share / 49, abs=0.03)


def test_brackets_depend_on_seed_and_name_alone() -> None:
    names = [f"job-{number}" for number in range(50)]
    once, again, other = (hyperband_rule(1, 81, seed=seed) for seed in (5, 5, 6))
    again.ended("something", [1.0])

    assert [once.bracket(name) for name in names] == [again.bracket(name) for name in names]
    assert [once.bracket(name) for name in names] != [other.bracket(name) for name in names]


class BruteForce:
    """Hyperband's definition again, with everything recomputed from the curves."""

    def __init__(
        self, rungs: Sequence[int], high: int, bracket: Callable[[str], int], maximise: bool
    ) -> None:
        self.rungs, self.high, self.bracket = rungs, high, bracket
        self.sign = 1.0 if maximise else -1.0
        self.curves: dict[str, Sequence[float]] = {}

    def report(self, name: str, curve: Sequence[float]) -> bool:
        before = len(self.curves.get(name, ()))
        self.ended(name, curve)
        if len(curve) >= self.high:
            return True
        new = [rung for rung in self.rungs if before < rung <= len(curve)]
        if not new or self.rungs.index(new[-1]) < self.bracket(name):
            return False
        there = sorted(
            (self.sign * one[new[-1] - 1] for one in self.curves.values() if len(one) >= new[-1]),
            reverse=True,
        )
        top = there[: max(1, len(there) // ETA)]
        return self.sign * curve[new[-1] - 1] < top[-1]

    def ended(self, name: str, curve: Sequence[float]) -> None:
        self.curves[name] = curve


@given(data=st.data(), low=st.integers(1, 4), high=st.integers(4, 30), maximise=st.booleans())
def test_hyperband_agrees_with_its_definition(
    data: st.DataObject, low: int, high: int, maximise: bool
) -> None:
    """Several training jobs run at once, and report one or several epochs in any order."""
    rule = hyperband_rule(low, high, kind=MAXIMIZE if maximise else MINIMIZE)
    reference = BruteForce(rule.rungs, high, rule.bracket, maximise)
    curves: dict[str, list[float]] = {}
    for _ in range(data.draw(st.integers(0, 40))):
        name = f"job-{data.draw(st.integers(0, 9))}"
        curve = curves.setdefault(name, [])
        curve.extend(data.draw(st.lists(OBJECTIVES, min_size=1, max_size=5)))
        stopped = rule.report(name, tuple(curve))
        assert stopped == reference.report(name, tuple(curve))
        if len(curve) < low:
            assert not stopped


@given(curves=CURVES, low=st.integers(1, 3))
def test_the_direction_only_mirrors_hyperband(curves: list[list[float]], low: int) -> None:
    mirrored = [[-one for one in curve] for curve in curves]

    up, down = hyperband_rule(low, 10, kind=MAXIMIZE), hyperband_rule(low, 10, kind=MINIMIZE)
    assert drive(up, curves, str) == drive(down, mirrored, str)


def test_hyperband_saves_most_epochs_and_keeps_the_best() -> None:
    """A hundred training jobs whose order is clear from the start: most are stopped, the best one is not."""
    rule = hyperband_rule(1, 81)
    quality = [(37 * number % 100) / 100 for number in range(100)]
    curves = [[one * (1 - 0.9**epoch) for epoch in range(1, 82)] for one in quality]
    lengths = drive(rule, curves, lambda number: f"job-{number}")

    assert lengths[quality.index(0.99)] == 81
    assert sum(lengths) < 0.4 * 81 * 100
    assert sum(length == 81 for length in lengths) >= 5


# --- both ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [lambda: MedianRule(MAXIMIZE), lambda: hyperband_rule(1, 10)], ids=["median", "hyperband"]
)
@given(curves=CURVES, more=CURVES)
def test_replaying_the_ends_restores_a_rule(
    make: Callable[[], StoppingRule], curves: list[list[float]], more: list[list[float]]
) -> None:
    before = make()
    lengths = drive(before, curves, lambda number: f"old-{number}")
    after = make()
    for number, (curve, length) in enumerate(zip(curves, lengths, strict=True)):
        after.ended(f"old-{number}", curve[:length])

    def new(number: int) -> str:
        return f"new-{number}"

    assert drive(before, more, new) == drive(after, more, new)


def config(strategy: str, early: str | None = None) -> dict[str, Any]:
    return {"Strategy": strategy, **({"TrainingJobEarlyStoppingType": early} if early else {})}


def hyperband(**resources: int) -> dict[str, Any]:
    given = config("Hyperband")
    if resources:
        given["StrategyConfig"] = {"HyperbandStrategyConfig": resources}
    return given


def test_which_rule_a_tuning_job_asks_for() -> None:
    def rule(config: dict[str, Any], **static: str) -> StoppingRule | None:
        return create_stopping_rule(config, static, MAXIMIZE, 1)

    assert rule(config("Bayesian")) is None
    assert rule(config("Random", "Off")) is None
    assert isinstance(rule(config("Bayesian", "Auto")), MedianRule)
    assert isinstance(rule(hyperband(MaxResource=9)), HyperbandRule)
    assert isinstance(rule(config("Hyperband", "Off"), epochs="9"), HyperbandRule)


@pytest.mark.parametrize(
    ("static", "resources", "ends_by_itself"),
    [
        ({}, {"MaxResource": 9}, False),
        ({"epochs": "9"}, {"MaxResource": 9}, True),
        ({"epochs": "10"}, {"MaxResource": 9}, False),
        ({"num_epochs": '"9"'}, {}, True),
        ({"epochs": "many"}, {"MaxResource": 9}, False),
        ({"epochs": "auto", "n_epochs": "9"}, {}, True),
        ({"epochs": "auto", "n_epochs": "9"}, {"MaxResource": 9}, True),
    ],
)
def test_max_resource_stops_unless_the_trainer_ends_there_itself(
    static: dict[str, str], resources: dict[str, int], ends_by_itself: bool
) -> None:
    rule = create_stopping_rule(hyperband(**resources), static, MAXIMIZE, 1)

    assert rule is not None
    assert rule.report("only", [0.5] * 9) is not ends_by_itself


def test_resources_are_given_or_inferred() -> None:
    assert hyperband_resources(hyperband(MinResource=2, MaxResource=20_000), {}) == (2, 20_000)
    assert hyperband_resources(hyperband(MaxResource=7), {"epochs": "100"}) == (1, 7)
    for name in ("epochs", "numepochs", "n-epochs", "n_epochs", "num_epochs"):
        assert hyperband_resources(hyperband(), {name: "12"}) == (1, 12)
        assert hyperband_resources(hyperband(MinResource=3), {name: '"12"'}) == (3, 12)


@pytest.mark.parametrize(
    "static",
    [
        {"epochs": "auto", "n_epochs": "10"},
        {"epochs": "0", "num_epochs": '"10"'},
        {"epochs": "2.5", "numepochs": "10.0", "n_epochs": "11"},
        {"n_epochs": "12", "n-epochs": "1_0"},
    ],
)
def test_resources_are_inferred_as_requests_are_checked(static: dict[str, str]) -> None:
    config = hyperband()
    checked = request.hyperband_resources(
        {"HyperParameterTuningJobConfig": config}, {"StaticHyperParameters": static}
    )

    assert checked is not None
    assert hyperband_resources(config, static) == checked


@pytest.mark.parametrize(
    ("resources", "static", "field", "value"),
    [
        ({}, {}, "MaxResource", None),
        ({"MinResource": 1}, {"epoch": "10"}, "MaxResource", None),
        ({"MaxResource": 20_001}, {}, "MaxResource", 20_001),
        ({"MaxResource": 0}, {"epochs": "5"}, "MaxResource", 0),
        ({"MinResource": 0, "MaxResource": 5}, {}, "MinResource", 0),
        ({"MinResource": 6, "MaxResource": 5}, {}, "MinResource", 6),
        ({"MinResource": 6}, {"epochs": "5"}, "MinResource", 6),
        ({}, {"epochs": "20001"}, "StaticHyperParameters.epochs", "20001"),
        ({}, {"n_epochs": "0"}, "StaticHyperParameters.n_epochs", "0"),
        ({}, {"epochs": "2.5"}, "StaticHyperParameters.epochs", "2.5"),
        ({}, {"epochs": "1e999"}, "StaticHyperParameters.epochs", "1e999"),
        ({}, {"epochs": "ten"}, "StaticHyperParameters.epochs", "ten"),
        ({}, {"epochs": "auto", "n_epochs": "20001"}, "StaticHyperParameters.n_epochs", "20001"),
    ],
)
def test_resources_that_are_refused(
    resources: dict[str, int], static: dict[str, str], field: str, value: object
) -> None:
    with pytest.raises(AmtFieldError) as refusal:
        create_stopping_rule(hyperband(**resources), static, MAXIMIZE, 1)

    assert refusal.value.field.endswith(field)
    assert refusal.value.value == value
