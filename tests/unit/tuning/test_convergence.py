"""The convergence rule on plain lists of objectives."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_amt.tuning import ObjectiveType, ProportionalPatience, converged, converged_after

MAXIMIZE, MINIMIZE = ObjectiveType.MAXIMIZE, ObjectiveType.MINIMIZE
OTHER = {MAXIMIZE: MINIMIZE, MINIMIZE: MAXIMIZE}
directions = st.sampled_from([MAXIMIZE, MINIMIZE])
#: Of both signs, of one, and with many equals.
objectives: st.SearchStrategy[list[float]] = st.sampled_from(
    [(-1000, 1000), (1, 1000), (-1000, -1), (0, 1000), (-1000, 0), (95, 100), (-3, 3)]
).flatmap(lambda limits: st.lists(st.integers(*limits).map(float), max_size=70))
rules = st.builds(
    ProportionalPatience,
    patience=st.sampled_from([0.5, 1.0, 2.0, 3.0]),
    threshold=st.sampled_from([0.0, 0.01, 0.25]),
    minimum=st.integers(1, 50),
)


def reference(rule: ProportionalPatience, values: list[float], direction: ObjectiveType) -> bool:
    """Say it in the words of the documentation, one result at a time."""
    if len(values) < rule.minimum:
        return False
    ordered = sorted(map(Fraction, values), reverse=direction is MAXIMIZE)
    best, good = ordered[0], ordered[len(values) // 4]
    crosses = min(best, good) < 0 < max(best, good)
    unit = abs(best - good) if crosses else max(abs(best), abs(best - good) / 10_000)
    for needed in range(1, len(values) + 1):
        # 0.01 is a little more than a hundredth as a float.
        if abs(Fraction(values[needed - 1]) - best) <= Fraction(str(rule.threshold)) * unit:
            return len(values) - needed >= rule.patience * needed
    raise AssertionError("the best is as good as itself")


@given(rules, objectives.filter(bool), directions)
def test_the_rule_is_what_its_documentation_says(
    rule: ProportionalPatience, values: list[float], direction: ObjectiveType
) -> None:
    assert rule.converged(values, direction) is reference(rule, values, direction)


@given(
    rules, objectives, directions, st.one_of(st.floats(1e-6, 1e6), st.sampled_from([3.0, 100.0, 2.0**-60]))
)
def test_the_scale_of_the_objective_does_not_matter(
    rule: ProportionalPatience, values: list[float], direction: ObjectiveType, factor: float
) -> None:
    scaled = [value * factor for value in values]
    assert converged_after(scaled, direction, rule=rule) == converged_after(values, direction, rule=rule)


@given(rules, objectives, directions)
def test_negated_objectives_in_the_other_direction_are_the_same(
    rule: ProportionalPatience, values: list[float], direction: ObjectiveType
) -> None:
    negated = [-value for value in values]
    assert converged_after(negated, OTHER[direction], rule=rule) == converged_after(
        values, direction, rule=rule
    )


@pytest.mark.parametrize("penalty", [-20.0, -1e6, -1.7e308])
@pytest.mark.parametrize("direction", [MAXIMIZE, MINIMIZE])
def test_losses_that_stand_for_failures_end_nothing(penalty: float, direction: ObjectiveType) -> None:
    """Two of three training jobs report a huge loss instead of failing; the third ones get ever better."""
    sign = 1 if direction is MAXIMIZE else -1
    values = [sign * value for number in range(100) for value in (penalty, penalty, 0.1 + 0.02 * number)]
    assert converged_after(values, direction) is None


def test_exactly_one_per_cent_is_no_significant_improvement() -> None:
    rule = ProportionalPatience(minimum=1, threshold=0.5)
    assert rule.needed([0.5, 1.0], MAXIMIZE) == 1
    assert rule.needed([0.4999, 1.0], MAXIMIZE) == 2
    assert rule.needed([1.5, 1.0], MINIMIZE) == 1
    assert rule.needed([1.5001, 1.0], MINIMIZE) == 2
    for scale in (1, 3, 7, 100, 0.001):
        assert ProportionalPatience().needed([0.495 * scale, 0.5 * scale], MAXIMIZE) == 1


def test_losses_of_which_most_are_large_are_told_apart() -> None:
    """1 % is of the best, not of the others, however far these are."""
    assert ProportionalPatience().needed([500.0, 900.0, 0.5, 700.0, 0.4, 800.0], MINIMIZE) == 5


@given(st.data(), objectives, directions)
def test_training_jobs_without_an_objective_count_for_nothing(
    data: st.DataObject, values: list[float], direction: ObjectiveType
) -> None:
    with_failures: list[float | None] = []
    for value in values:
        with_failures += data.draw(
            st.lists(st.sampled_from([None, math.nan, math.inf, -math.inf]), max_size=2)
        )
        with_failures.append(value)
    rule = ProportionalPatience(minimum=10)
    assert converged(with_failures, direction, rule=rule) is converged(values, direction, rule=rule)
    after = converged_after(with_failures, direction, rule=rule)
    if after is None:
        assert converged_after(values, direction, rule=rule) is None
    else:
        seen = [one for one in with_failures[:after] if one in values]
        assert len(seen) == converged_after(values, direction, rule=rule)
        assert seen[-1] == with_failures[after - 1]


@given(objectives, directions)
def test_what_was_detected_depends_on_what_came_before_alone(
    values: list[float], direction: ObjectiveType
) -> None:
    rule = ProportionalPatience(minimum=5)
    after = converged_after(values, direction, rule=rule)
    asked = [converged(values[:number], direction, rule=rule) for number in range(1, len(values) + 1)]
    assert after == (asked.index(True) + 1 if True in asked else None)


@pytest.mark.parametrize("direction", ["Maximize", "Minimize"])
@pytest.mark.parametrize("constant", [0.0, 1.0, -3.5, 1e-300, 1.7e308, -1.7e308, 5e-324])
def test_constants_converge_as_soon_as_anything_may(constant: float, direction: str) -> None:
    assert converged_after([constant] * 100, direction) == ProportionalPatience().minimum
    assert not converged([constant] * 39, direction)


@pytest.mark.parametrize("direction", ["Maximize", "Minimize"])
@pytest.mark.parametrize("values", [[], [0.5], [None], [math.nan] * 100, [None] * 100])
def test_nothing_to_judge_is_not_converged(values: list[float | None], direction: str) -> None:
    assert not converged(values, direction)
    assert converged_after(values, direction) is None


def test_huge_objectives_of_both_signs_overflow_nowhere() -> None:
    values = [1.7e308, -1.7e308] * 30
    assert converged_after(values, "Maximize") == 40
    assert converged_after([-1.7e308, 1.7e308] * 30, "Maximize") == 40


def test_steady_progress_never_converges() -> None:
    assert converged_after([1.02**number for number in range(300)], "Maximize") is None
    assert converged_after([0.98**number for number in range(300)], "Minimize") is None
    assert converged_after([-(0.98**number) for number in range(300)], "Maximize") is None


def test_it_takes_three_times_as_many_results_again() -> None:
    climb = [0.5 + number / 100 for number in range(30)]
    # 0.79 is the best; 0.79 less 1 % is reached by the 30th.
    assert converged_after([*climb, *[0.6] * 200], "Maximize") == 4 * 30
    assert converged_after([*climb, *[0.6] * 40, 0.797, *[0.6] * 200], "Maximize") == 4 * 30
    assert converged_after([*climb, *[0.6] * 40, 0.81, *[0.6] * 300], "Maximize") == 4 * 71


def test_near_zero_one_per_cent_is_of_what_good_results_differ_by() -> None:
    """Where zero is nothing but a number between others, an improvement from 0.001 to 0.002 is none."""
    generator = random.Random(1)
    noise = [generator.uniform(-5.0, -0.5) for _ in range(80)]
    rare = [0.00005 * number if number % 10 == 0 else one for number, one in enumerate(noise)]
    assert converged_after(rare, "Maximize") is not None
    assert converged_after([-one for one in rare], "Minimize") == converged_after(rare, "Maximize")


def test_losses_near_zero_are_the_same_where_good_ones_are_far_larger() -> None:
    tiny = [0.5 ** (20 + number) if number % 10 == 0 else 1.0 for number in range(120)]
    assert ProportionalPatience().needed(tiny, MINIMIZE) == 1


def test_other_settings_save_more_or_less() -> None:
    values = [0.5, 0.6, 0.7, *[0.65] * 60]
    patient, hasty = ProportionalPatience(patience=10.0), ProportionalPatience(patience=1.0, minimum=5)
    assert converged_after(values, "Maximize", rule=hasty) == 6
    assert converged_after(values, "Maximize", rule=patient) == 40
    assert converged_after(values, "Maximize", rule=ProportionalPatience(patience=19.0)) == 60


@pytest.mark.parametrize(
    "settings",
    [
        {"patience": 0.0},
        {"patience": -1.0},
        {"patience": math.nan},
        {"patience": math.inf},
        {"threshold": -0.01},
        {"threshold": 1.01},
        {"threshold": math.nan},
        {"minimum": 0},
        {"minimum": 1.5},
        {"minimum": math.nan},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        ProportionalPatience(**settings)  # type: ignore[arg-type]


def test_text_is_no_objective() -> None:
    with pytest.raises(TypeError, match="not the text"):
        converged(["0.5"], "Maximize")  # type: ignore[list-item]


def test_a_direction_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="Maximise"):
        converged([1.0], "Maximise")
