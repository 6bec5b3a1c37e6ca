"""The convergence rule on plain lists of objectives."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_amt.tuning import ObjectiveType, ProportionalPatience, converged, converged_after

MAXIMIZE, MINIMIZE = ObjectiveType.MAXIMIZE, ObjectiveType.MINIMIZE
OTHER = {MAXIMIZE: MINIMIZE, MINIMIZE: MAXIMIZE}
directions = st.sampled_from([MAXIMIZE, MINIMIZE])
#: Whole numbers, so that what they are multiplied by leaves no rounding.
objectives = st.lists(st.integers(-1000, 1000).map(float), max_size=70)
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
    best = max(values) if direction is MAXIMIZE else min(values)
    ordered = sorted(values)
    middle = (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2
    crosses = ordered[0] < 0 < ordered[-1]
    unit = max(abs(best), abs(best - middle) * (1 if crosses else 1e-4))
    for needed in range(1, len(values) + 1):
        if abs(values[needed - 1] - best) <= rule.threshold * unit:
            return len(values) - needed >= rule.patience * needed
    raise AssertionError("the best is as good as itself")


@given(rules, objectives.filter(bool), directions)
def test_the_rule_is_what_its_documentation_says(
    rule: ProportionalPatience, values: list[float], direction: ObjectiveType
) -> None:
    # Whole numbers times 1 % are not exact, so results just at the margin are kept away from it.
    assert rule.converged(values, direction) is reference(
        ProportionalPatience(rule.patience, rule.threshold + 1e-12, rule.minimum), values, direction
    )


@given(rules, objectives, directions, st.integers(-60, 60))
def test_the_scale_of_the_objective_does_not_matter(
    rule: ProportionalPatience, values: list[float], direction: ObjectiveType, power: int
) -> None:
    scaled = [value * 2.0**power for value in values]
    assert converged_after(scaled, direction, rule=rule) == converged_after(values, direction, rule=rule)


@given(rules, objectives, directions)
def test_negated_objectives_in_the_other_direction_are_the_same(
    rule: ProportionalPatience, values: list[float], direction: ObjectiveType
) -> None:
    negated = [-value for value in values]
    assert converged_after(negated, OTHER[direction], rule=rule) == converged_after(
        values, direction, rule=rule
    )


@given(objectives, directions, st.integers(2, 7))
def test_a_bad_result_changes_nothing_but_the_number_of_results(
    values: list[float], direction: ObjectiveType, times: int
) -> None:
    """No outlier may end a tuning job: it is none of the best, however bad it is."""
    positive = [abs(value) + 1 for value in values]
    worst = 1e-3 if direction is MAXIMIZE else 1e6
    spoilt = [*positive, worst] if positive else []
    worse = [*positive, worst / 10 if direction is MAXIMIZE else worst * 10**times] if positive else []
    rule = ProportionalPatience(minimum=5)
    # Among objectives of one sign the median counts for a ten thousandth: too little to matter here.
    assert rule.converged(spoilt, direction) is rule.converged(worse, direction)


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
        seen = [one for one in with_failures[:after] if one is not None and math.isfinite(one)]
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


def test_it_takes_three_times_as_long_as_to_get_there() -> None:
    climb = [0.5 + number / 100 for number in range(30)]
    # 0.79 is the best; 0.79 less 1 % is reached by the 30th.
    assert converged_after([*climb, *[0.6] * 200], "Maximize") == 90
    assert converged_after([*climb, *[0.6] * 40, 0.797, *[0.6] * 200], "Maximize") == 90
    later = converged_after([*climb, *[0.6] * 40, 0.81, *[0.6] * 200], "Maximize")
    assert later == 3 * 71


def test_near_zero_one_per_cent_is_of_what_the_objectives_differ_by() -> None:
    """Where zero is nothing but a number between others, an improvement from 0.001 to 0.005 is none."""
    generator = random.Random(1)
    noise = [generator.uniform(-5.0, -1.0) for _ in range(60)]
    creeping = [0.0001 * number for number in range(1, 61)]
    mixed = [value for pair in zip(noise, creeping, strict=True) for value in pair]
    assert converged_after(mixed, "Maximize") is not None
    # Losses of a millionth and less are all the same where most are 1.
    tiny = [loss for number in range(60) for loss in (0.5 ** (20 + number), 1.0)]
    assert converged_after([*tiny, 1.0], "Minimize") == 40


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
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        ProportionalPatience(**settings)  # type: ignore[arg-type]


def test_a_direction_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="Maximise"):
        converged([1.0], "Maximise")
