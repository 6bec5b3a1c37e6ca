"""The four strategies: ranges, scales, seeds, finite spaces, auto ranges, and warm starts."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local import search as search_module
from airflow_amt.local.search import (
    MAX_TRAINING_JOBS,
    STRATEGIES,
    CategoricalParameter,
    ContinuousParameter,
    Evaluation,
    IntegerParameter,
    Prior,
    RandomSearch,
    Search,
    Space,
    create_search,
)
from airflow_amt.local.search.bayesian import BayesianSearch
from airflow_amt.tuning.criteria import ObjectiveType

ALL_KINDS = {
    "IntegerParameterRanges": [
        {"Name": "layers", "MinValue": "1", "MaxValue": "4", "ScalingType": "Linear"},
        {"Name": "units", "MinValue": "8", "MaxValue": "4096", "ScalingType": "Logarithmic"},
    ],
    "ContinuousParameterRanges": [
        {"Name": "rate", "MinValue": "1e-6", "MaxValue": "1e-1", "ScalingType": "Logarithmic"},
        {"Name": "momentum", "MinValue": "0.5", "MaxValue": "0.9999", "ScalingType": "ReverseLogarithmic"},
        {"Name": "dropout", "MinValue": "0", "MaxValue": "0.5", "ScalingType": "Linear"},
        {"Name": "decay", "MinValue": "0.001", "MaxValue": "1"},
    ],
    "CategoricalParameterRanges": [{"Name": "kind", "Values": ["sgd", "adam", "adam"]}],
}
GRID = {
    "CategoricalParameterRanges": [
        {"Name": "kind", "Values": ["a", "b", "c"]},
        {"Name": "flag", "Values": ["true", "false", "true"]},
    ]
}
LINE = {"ContinuousParameterRanges": [{"Name": "x", "MinValue": "0", "MaxValue": "1"}]}
FINITE = {
    "IntegerParameterRanges": [{"Name": "n", "MinValue": "-1", "MaxValue": "2"}],
    "ContinuousParameterRanges": [{"Name": "fixed", "MinValue": "0.5", "MaxValue": "0.5"}],
    "CategoricalParameterRanges": [{"Name": "kind", "Values": ["a", "b", "c"]}],
}


def make(
    strategy: str, ranges: dict[str, Any] = ALL_KINDS, seed: int = 3, prior: Prior | None = None
) -> Search:
    space = Space.from_ranges(ranges, "ranges")
    return create_search(strategy, space, ObjectiveType.MAXIMIZE, seed, prior=prior)


def tried(combination: dict[str, str], objective: float | None) -> Evaluation:
    return Evaluation(hyperparameters=combination, objective=objective)


def run(search: Search, count: int, parallel: int = 1) -> list[dict[str, str]]:
    """Propose and evaluate; the objective is best at the lowest rate."""
    history: list[Evaluation] = []
    pending: list[dict[str, str]] = []
    proposed: list[dict[str, str]] = []
    while len(proposed) < count:
        if len(pending) == parallel:
            done = pending.pop(0)
            history.append(Evaluation(hyperparameters=done, objective=-float(done.get("rate", "0"))))
        combination = search.propose(history, pending)
        if combination is None:
            break
        proposed.append(combination)
        pending.append(combination)
    return proposed


@pytest.mark.parametrize("strategy", ["Random", "Bayesian", "Hyperband"])
def test_proposals_are_strings_within_their_ranges(strategy: str) -> None:
    for combination in run(make(strategy), 40, parallel=3):
        assert set(combination) == {"layers", "units", "rate", "momentum", "dropout", "decay", "kind"}
        assert all(isinstance(value, str) for value in combination.values())
        assert int(combination["layers"]) in range(1, 5)
        assert int(combination["units"]) in range(8, 4097)
        assert 1e-6 <= float(combination["rate"]) <= 1e-1
        assert 0.5 <= float(combination["momentum"]) <= 0.9999
        assert 0 <= float(combination["dropout"]) <= 0.5
        assert combination["kind"] in ("sgd", "adam")


def test_random_draws_are_even_on_the_scale() -> None:
    drawn = run(make("Random"), 2000)

    def below(name: str, bound: float) -> float:
        return sum(float(one[name]) < bound for one in drawn) / len(drawn)

    assert below("layers", 2.5) == pytest.approx(0.5, abs=0.05)
    assert below("units", 181) == pytest.approx(0.5, abs=0.05)  # sqrt(8 * 4096)
    assert below("rate", 10**-3.5) == pytest.approx(0.5, abs=0.05)
    assert below("momentum", 1 - (0.5 * 0.0001) ** 0.5) == pytest.approx(0.5, abs=0.05)
    assert below("dropout", 0.25) == pytest.approx(0.5, abs=0.05)
    assert sum(one["kind"] == "sgd" for one in drawn) / len(drawn) == pytest.approx(0.5, abs=0.05)


def test_auto_scaling_is_logarithmic_from_a_factor_of_a_hundred_on() -> None:
    def scaling(low: str, high: str) -> str:
        space = Space.from_ranges(
            {"ContinuousParameterRanges": [{"Name": "x", "MinValue": low, "MaxValue": high}]}, "ranges"
        )
        (parameter,) = space.parameters
        assert isinstance(parameter, ContinuousParameter)
        return parameter.scaling

    assert scaling("0.01", "1") == "Logarithmic"
    assert scaling("0.011", "1") == "Linear"
    assert scaling("0", "1000") == "Linear"
    assert scaling("-1", "1000") == "Linear"


def test_a_seed_gives_the_same_combinations_whatever_the_timing() -> None:
    assert run(make("Random"), 20, parallel=1) == run(make("Random"), 20, parallel=7)
    assert run(make("Random"), 5) != run(make("Random", seed=4), 5)


def test_random_goes_on_after_a_restart_where_it_was() -> None:
    whole = run(make("Random"), 10)
    history = [Evaluation(hyperparameters=one, objective=None) for one in whole[:6]]

    assert make("Random").propose(history, []) == whole[6]


@pytest.mark.parametrize("strategy", ["Random", "Bayesian", "Hyperband"])
@pytest.mark.parametrize("parallel", [1, 5])
def test_a_finite_space_is_tried_once_and_then_exhausted(strategy: str, parallel: int) -> None:
    proposed = run(make(strategy, FINITE), 100, parallel=parallel)

    assert len(proposed) == 12
    assert len({tuple(sorted(one.items())) for one in proposed}) == 12
    assert {one["fixed"] for one in proposed} == {"0.5"}


@pytest.mark.parametrize("strategy", ["Random", "Bayesian"])
def test_what_was_tried_before_a_restart_is_not_tried_again(strategy: str) -> None:
    before = run(make("Random", FINITE, seed=8), 7)
    history = [
        Evaluation(hyperparameters=one, objective=None if position % 3 == 0 else float(position))
        for position, one in enumerate(before[:5])
    ]
    search = make(strategy, FINITE)
    rest = []
    while (combination := search.propose(history, before[5:])) is not None:
        rest.append(combination)
        history.append(Evaluation(hyperparameters=combination, objective=0.5))

    assert len(rest) == 5
    assert not any(one in before for one in rest)


def test_a_lopsided_scale_still_reaches_every_combination() -> None:
    """On a log scale 1000 is drawn rarely; the last few are found all the same."""
    ranges = {
        "IntegerParameterRanges": [
            {"Name": "n", "MinValue": "1", "MaxValue": "1000", "ScalingType": "Logarithmic"}
        ]
    }
    proposed = run(make("Random", ranges), 2000)

    assert sorted(int(one["n"]) for one in proposed) == list(range(1, 1001))


def test_hyperband_draws_like_random() -> None:
    assert run(make("Hyperband"), 20, parallel=3) == run(make("Random"), 20)


# --- Grid ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parallel", [1, 4])
def test_a_grid_is_gone_through_in_order(parallel: int) -> None:
    combinations = [(one["kind"], one["flag"]) for one in run(make("Grid", GRID), 100, parallel)]

    assert combinations == [
        ("a", "true"),
        ("b", "true"),
        ("c", "true"),
        ("a", "false"),
        ("b", "false"),
        ("c", "false"),
    ]


@given(st.randoms(use_true_random=False), st.integers(0, 6), st.integers(0, 6))
def test_a_grid_goes_on_after_a_restart_whatever_ended_first(
    generator: random.Random, launched: int, ended: int
) -> None:
    whole = run(make("Grid", GRID), 100)
    before = whole[:launched]
    generator.shuffle(before)
    history = [tried(one, None) for one in before[:ended]]
    search = make("Grid", GRID)
    rest = []
    while (combination := search.propose(history, before[ended:])) is not None:
        rest.append(combination)
        history.append(tried(combination, 1.0))

    assert rest == whole[launched:]


def test_a_grid_does_not_list_its_space() -> None:
    ranges = {
        "CategoricalParameterRanges": [
            {"Name": f"p{number}", "Values": [str(value) for value in range(30)]} for number in range(30)
        ]
    }
    assert len(run(make("Grid", ranges), 50)) == 50


@pytest.mark.parametrize("ranges", [LINE, FINITE])
def test_a_grid_is_of_categories_alone(ranges: dict[str, Any]) -> None:
    with pytest.raises(AmtFieldError, match="categorical") as refusal:
        make("Grid", ranges)
    assert refusal.value.field == "HyperParameterTuningJobConfig.Strategy"


def test_every_strategy_has_a_quota() -> None:
    assert set(MAX_TRAINING_JOBS) == set(STRATEGIES) == {"Bayesian", "Random", "Grid", "Hyperband"}
    assert MAX_TRAINING_JOBS["Bayesian"] == MAX_TRAINING_JOBS["Hyperband"] == 750
    assert MAX_TRAINING_JOBS["Random"] == 10_000


# --- Bayesian --------------------------------------------------------------------------------------


def test_bayesian_search_learns() -> None:
    """After its random start it looks where the objective is good: at the low end of the rate."""

    def late_median(strategy: str) -> float:
        rates = sorted(float(one["rate"]) for one in run(make(strategy), 60, parallel=2)[-30:])
        return rates[15]

    assert late_median("Bayesian") < late_median("Random") / 5


def test_bayesian_search_minimises_too() -> None:
    space = Space.from_ranges(
        {"ContinuousParameterRanges": [{"Name": "x", "MinValue": "-5", "MaxValue": "5"}]}, "ranges"
    )
    search = BayesianSearch(space, ObjectiveType.MINIMIZE, 1)
    history: list[Evaluation] = []
    for _ in range(40):
        combination = search.propose(history, [])
        assert combination is not None
        loss = (float(combination["x"]) - 2) ** 2
        history.append(Evaluation(hyperparameters=combination, objective=loss))

    assert min(one.objective for one in history[-10:] if one.objective is not None) < 0.05


def test_failed_training_jobs_do_not_disturb_bayesian_search() -> None:
    search = make("Bayesian")
    history: list[Evaluation] = []
    for _ in range(25):
        combination = search.propose(history, [])
        assert combination is not None
        history.append(Evaluation(hyperparameters=combination, objective=None))


@pytest.mark.parametrize("ranges", [ALL_KINDS, FINITE, GRID])
def test_bayesian_proposals_follow_from_seed_and_history(ranges: dict[str, Any]) -> None:
    """Also those of a search that was made after a restart."""
    search = make("Bayesian", ranges)
    history: list[Evaluation] = []
    pending: list[dict[str, str]] = []
    differs = False
    for number in range(12):
        combination = search.propose(history, pending)
        assert combination == make("Bayesian", ranges).propose(history, pending)
        differs |= combination != make("Bayesian", ranges, seed=4).propose(history, pending)
        if combination is None:
            break
        pending.append(combination)
        if number >= 3:
            history.append(tried(pending.pop(0), None if number == 5 else float(number % 4)))

    assert differs


@pytest.mark.parametrize("seed", [1, 2])
def test_bayesian_search_begins_in_the_middle(seed: int) -> None:
    first, *others = run(make("Bayesian", LINE, seed=seed), 4, parallel=4)

    assert first == {"x": "0.5"}
    assert first not in others


def test_pending_training_jobs_are_not_proposed_again() -> None:
    """Four at once spread out: none lies where another one is."""
    history = [tried({"x": str(x)}, -((x - 0.4) ** 2)) for x in (0.05, 0.2, 0.5, 0.75, 0.95)]
    pending: list[dict[str, str]] = []
    search = make("Bayesian", LINE)
    for _ in range(4):
        combination = search.propose(history, pending)
        assert combination is not None
        pending.append(combination)

    places = sorted(float(one["x"]) for one in pending)
    assert min(after - before for before, after in pairwise(places)) > 0.005


def test_the_scale_of_the_objective_does_not_matter_to_bayesian_search() -> None:
    points = [0.05, 0.2, 0.33, 0.5, 0.75, 0.95]
    proposals = [
        make("Bayesian", LINE).propose([tried({"x": str(x)}, factor * math.exp(5 * x)) for x in points], [])
        for factor in (1.0, 1e-200, 1e200)
    ]

    assert proposals[0] == proposals[1] == proposals[2]


@pytest.mark.parametrize("objective", [0.0, 1e308, 5e-324])
def test_equal_objectives_do_not_disturb_bayesian_search(objective: float) -> None:
    search = make("Bayesian")
    history: list[Evaluation] = []
    for _ in range(15):
        combination = search.propose(history, [])
        assert combination is not None
        history.append(tried(combination, objective))

    assert len({tuple(one.hyperparameters.values()) for one in history}) == 15


def test_bayesian_search_keeps_away_from_where_training_jobs_fail() -> None:
    search = make("Bayesian", LINE)
    history: list[Evaluation] = []
    for _ in range(30):
        combination = search.propose(history, [])
        assert combination is not None
        x = float(combination["x"])
        history.append(tried(combination, None if x > 0.6 else x))

    late = [float(one.hyperparameters["x"]) for one in history[10:]]
    assert sum(x > 0.6 for x in late) < len(late) / 2
    assert max(x for x in late if x <= 0.6) > 0.55


def test_bayesian_search_with_a_long_history_models_a_part_of_it() -> None:
    """It keeps the best, finds them again, and does not slow down with the rest."""
    generator = random.Random(1)
    history = []
    for _ in range(750):
        x = generator.random()
        history.append(tried({"x": repr(x)}, -abs(x - 0.7)))
    combination = make("Bayesian", LINE).propose(history, [])

    assert combination is not None
    assert float(combination["x"]) == pytest.approx(0.7, abs=0.05)


@pytest.mark.parametrize("seed", [-5, 0, 2**31 - 1, 10**30])
@pytest.mark.parametrize("strategy", ["Random", "Bayesian"])
def test_any_whole_number_is_a_seed(strategy: str, seed: int) -> None:
    assert len(run(make(strategy, seed=seed), 8)) == 8


# --- warm start ------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["Random", "Bayesian"])
def test_what_identical_parents_tried_is_not_tried_again(strategy: str) -> None:
    before = run(make("Random", FINITE, seed=8), 7)
    evaluations = [tried(one, None if number == 2 else float(number)) for number, one in enumerate(before)]
    proposed = run(make(strategy, FINITE, prior=Prior(evaluations=evaluations, transfer=False)), 100)

    assert len(proposed) == 5
    assert not any(one in before for one in proposed)


@pytest.mark.parametrize("strategy", ["Random", "Bayesian"])
def test_what_other_parents_tried_may_be_tried_again(strategy: str) -> None:
    before = run(make("Random", FINITE, seed=8), 7)
    evaluations = [tried(one, float(number)) for number, one in enumerate(before)]
    proposed = run(make(strategy, FINITE, prior=Prior(evaluations=evaluations, transfer=True)), 100)

    assert len(proposed) == 12


def parents(best: float, transfer: bool, scale: float = 1.0) -> Prior:
    """Twenty training jobs on a line whose objective is best at one place."""
    places = [number / 20 for number in range(21)]
    evaluations = [tried({"x": str(x)}, scale * -abs(x - best)) for x in places]
    return Prior(evaluations=evaluations, transfer=transfer)


def test_identical_parents_count_as_own_results() -> None:
    """So the very first combination is near their best one."""
    combination = make("Bayesian", LINE, prior=parents(0.62, transfer=False)).propose([], [])

    assert combination is not None
    assert float(combination["x"]) == pytest.approx(0.62, abs=0.06)
    history = parents(0.62, transfer=False).evaluations
    ours = make("Bayesian", LINE, prior=parents(0.62, transfer=False))
    alone = make("Bayesian", LINE)
    assert combination is not None
    after = [tried(combination, -0.01)]
    one, other = ours.propose(after, []), alone.propose([*history, *after], [])
    assert one is not None
    assert other is not None
    assert float(one["x"]) == pytest.approx(float(other["x"]), abs=0.06)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_other_parents_guide_the_start_whatever_their_scale(scale: float) -> None:
    prior = parents(0.62, transfer=True, scale=scale)
    search = make("Bayesian", LINE, prior=prior)
    places = [float(one["x"]) for one in run(search, 5, parallel=5)]

    assert places[::2] == [0.6, 0.65, 0.55], "their three best, in turn with evenly spread ones"


def test_own_results_outweigh_those_of_other_parents() -> None:
    """The parents were best at one end, this tuning job is at the other."""
    search = make("Bayesian", LINE, prior=parents(0.9, transfer=True))
    history: list[Evaluation] = []
    for _ in range(25):
        combination = search.propose(history, [])
        assert combination is not None
        history.append(tried(combination, -abs(float(combination["x"]) - 0.1)))

    late = sorted(float(one.hyperparameters["x"]) for one in history[-10:])
    assert late[5] == pytest.approx(0.1, abs=0.1)


@pytest.mark.parametrize("transfer", [False, True])
@pytest.mark.parametrize("strategy", ["Random", "Bayesian", "Grid", "Hyperband"])
def test_parents_outside_the_new_ranges_are_left_out(strategy: str, transfer: bool) -> None:
    outside = [
        {"kind": "d", "flag": "true"},
        {"kind": "a", "flag": "maybe"},
        {"kind": "a"},
        {},
    ]
    prior = Prior(evaluations=[tried(one, 9.0) for one in outside], transfer=transfer)
    assert len(run(make(strategy, GRID, prior=prior), 100)) == 6
    wide = {"x": "1.5"}, {"x": "-0.1"}, {"x": "word"}, {"x": "nan"}
    prior = Prior(evaluations=[tried(dict(one), 9.0) for one in wide], transfer=transfer)
    if strategy != "Grid":
        assert all(0 <= float(one["x"]) <= 1 for one in run(make(strategy, LINE, prior=prior), 12))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", "3"),
        ('"3"', "3"),
        ("3.0", "3"),
        ("+3", "3"),
        ("3.5", None),
        ("11", None),
        ("x", None),
        ("inf", None),
    ],
)
def test_integers_of_parents_are_read(text: str, expected: str | None) -> None:
    assert IntegerParameter(name="n", low=1, high=10, logarithmic=False).read(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1e-1", "0.1"), ('"0.1"', "0.1"), ("1", "1.0"), ("1.1", None), ("nan", None), ("", None)],
)
def test_numbers_of_parents_are_read(text: str, expected: str | None) -> None:
    assert ContinuousParameter(name="x", low=0.0, high=1.0, scaling="Linear").read(text) == expected


def test_categories_of_parents_are_read() -> None:
    parameter = CategoricalParameter(name="c", values=("a", '"b"'))

    assert [parameter.read(text) for text in ("a", '"a"', "b", '"b"', "c")] == ["a", "a", '"b"', '"b"', None]


# --- what else -------------------------------------------------------------------------------------


def test_bayesian_search_without_its_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "bayesian_available", lambda: False)

    with pytest.raises(AmtFieldError, match=r"airflow-provider-amt\[local\]"):
        make("Bayesian")
    make("Random")


def test_random_search_needs_the_standard_library_only() -> None:
    code = (
        "import sys\n"
        "from airflow_amt.local.search import Space, create_search\n"
        "from airflow_amt.tuning.criteria import ObjectiveType\n"
        "space = Space.from_ranges({'CategoricalParameterRanges': [{'Name': 'k', 'Values': ['a']}]}, '')\n"
        "assert create_search('Random', space, ObjectiveType.MAXIMIZE, 1).propose([], []) == {'k': 'a'}\n"
        "print(sorted({'numpy', 'optuna', 'scipy', 'airflow', 'torch'} & set(sys.modules)))\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("ranges", "field"),
    [
        ({"IntegerParameterRanges": [{"Name": "n", "MinValue": "1.5", "MaxValue": "3"}]}, "MinValue"),
        ({"IntegerParameterRanges": [{"Name": "n", "MinValue": "1", "MaxValue": "x"}]}, "MaxValue"),
        ({"ContinuousParameterRanges": [{"Name": "n", "MinValue": "nan", "MaxValue": "1"}]}, "MinValue"),
        ({"ContinuousParameterRanges": [{"Name": "n", "MinValue": "1", "MaxValue": "inf"}]}, "MaxValue"),
        ({"ContinuousParameterRanges": [{"Name": "n", "MinValue": "2", "MaxValue": "1"}]}, "MinValue"),
        (
            {
                "ContinuousParameterRanges": [
                    {"Name": "n", "MinValue": "0", "MaxValue": "1", "ScalingType": "Logarithmic"}
                ]
            },
            "ScalingType",
        ),
        (
            {
                "ContinuousParameterRanges": [
                    {"Name": "n", "MinValue": "0", "MaxValue": "1", "ScalingType": "ReverseLogarithmic"}
                ]
            },
            "ScalingType",
        ),
        (
            {
                "IntegerParameterRanges": [
                    {"Name": "n", "MinValue": "1", "MaxValue": "2", "ScalingType": "ReverseLogarithmic"}
                ]
            },
            "ScalingType",
        ),
    ],
)
def test_ranges_that_are_none(ranges: dict[str, Any], field: str) -> None:
    with pytest.raises(AmtFieldError) as refusal:
        Space.from_ranges(ranges, "Ranges")
    kind = next(iter(ranges))
    assert refusal.value.field == f"Ranges.{kind}[0].{field}"


@pytest.mark.parametrize("strategy", ["Random", "Bayesian"])
@pytest.mark.parametrize(
    ("low", "high", "scaling"),
    [
        ("-8.9e307", "8.9e307", "Linear"),
        ("0", "1.7e308", "Auto"),
        ("5e-324", "1.7e308", "Logarithmic"),
        ("5e-324", "1e-323", "Logarithmic"),
        ("0", "2.3e-308", "Linear"),
    ],
)
def test_the_widest_and_the_narrowest_ranges_are_searched(
    strategy: str, low: str, high: str, scaling: str
) -> None:
    one = {"Name": "rate", "MinValue": low, "MaxValue": high, "ScalingType": scaling}
    proposed = [
        float(found["rate"]) for found in run(make(strategy, {"ContinuousParameterRanges": [one]}), 25)
    ]

    assert all(float(low) <= value <= float(high) for value in proposed)
    assert len(set(proposed)) > 1


@pytest.mark.parametrize("strategy", ["Random", "Bayesian"])
@pytest.mark.parametrize(
    ("low", "high", "scaling"),
    [
        ("9007199254740993", "9007199254740995", "Linear"),
        ("-1" + "0" * 250, "1" + "0" * 250, "Linear"),
        ("1", "1" + "0" * 250, "Logarithmic"),
        ("-1e308", "1e308", "Auto"),
    ],
)
def test_the_widest_integer_ranges_are_searched(strategy: str, low: str, high: str, scaling: str) -> None:
    one = {"Name": "n", "MinValue": low, "MaxValue": high, "ScalingType": scaling}
    proposed = [int(found["n"]) for found in run(make(strategy, {"IntegerParameterRanges": [one]}), 12)]

    edge = {bound: int(float(bound)) if "e" in bound else int(bound) for bound in (low, high)}
    assert all(edge[low] <= value <= edge[high] for value in proposed)
    assert len(set(proposed)) == len(proposed) == min(12, edge[high] - edge[low] + 1)


@pytest.mark.parametrize(
    ("low", "high", "fix"),
    [("-1.7e308", "1.7e308", "closer together"), ("0", "5e-324", "further apart")],
)
@pytest.mark.parametrize("scaling", ["Linear", "Auto"])
def test_ranges_whose_width_is_no_double(low: str, high: str, scaling: str, fix: str) -> None:
    one = {"Name": "x", "MinValue": low, "MaxValue": high, "ScalingType": scaling}
    with pytest.raises(AmtFieldError, match=fix) as refusal:
        Space.from_ranges({"ContinuousParameterRanges": [one]}, "Ranges")

    assert refusal.value.field == "Ranges.ContinuousParameterRanges[0].MaxValue"
    assert refusal.value.value == high


def test_strategies_that_are_not_offered() -> None:
    with pytest.raises(AmtFieldError, match="Grid"):
        make("Guess")


def test_the_size_of_a_space() -> None:
    integer = IntegerParameter(name="i", low=1, high=3, logarithmic=False)
    category = CategoricalParameter(name="c", values=("a", "b"))
    real = ContinuousParameter(name="r", low=0.0, high=1.0, scaling="Linear")

    assert Space([integer, category]).size == 6
    assert Space([integer, real]).size is None
    assert Space([]).size == 1
    assert RandomSearch(Space([]), 1).propose([], []) == {}
    numbered = [Space([integer, category]).at(number) for number in range(6)]
    assert len({tuple(one.items()) for one in numbered}) == 6


# --- Autotune --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        ("100", IntegerParameter(name="p", low=25, high=400, logarithmic=True)),
        ('"100"', IntegerParameter(name="p", low=25, high=400, logarithmic=True)),
        ("3", IntegerParameter(name="p", low=1, high=12, logarithmic=True)),
        ("1", IntegerParameter(name="p", low=1, high=4, logarithmic=True)),
        ("0", IntegerParameter(name="p", low=0, high=10, logarithmic=False)),
        ("-8", IntegerParameter(name="p", low=-32, high=-2, logarithmic=False)),
        ("0.5", ContinuousParameter(name="p", low=0.25, high=0.75, scaling="Linear")),
        ("0.0", ContinuousParameter(name="p", low=0.0, high=1.0, scaling="Linear")),
        ("-2.0", ContinuousParameter(name="p", low=-20.0, high=-0.2, scaling="Linear")),
        ("1e3", ContinuousParameter(name="p", low=100.0, high=10_000.0, scaling="Logarithmic")),
        ("true", CategoricalParameter(name="p", values=("true", "false"))),
        ("False", CategoricalParameter(name="p", values=("True", "False"))),
        ('"true"', CategoricalParameter(name="p", values=('"true"', '"false"'))),
        ("adam", CategoricalParameter(name="p", values=("adam",))),
        ("nan", CategoricalParameter(name="p", values=("nan",))),
        ("", CategoricalParameter(name="p", values=("",))),
    ],
)
def test_ranges_that_autotune_chooses(hint: str, expected: object) -> None:
    space = Space.from_ranges({"AutoParameters": [{"Name": "p", "ValueHint": hint}]}, "ranges")

    assert space.parameters == (expected,)


@pytest.mark.parametrize(
    ("hint", "low", "high", "scaling"),
    [("0.01", 0.001, 0.1, "Logarithmic"), ("0.99", 0.9, 0.999, "ReverseLogarithmic")],
)
def test_autotune_near_an_end_of_0_to_1(hint: str, low: float, high: float, scaling: str) -> None:
    space = Space.from_ranges({"AutoParameters": [{"Name": "p", "ValueHint": hint}]}, "ranges")
    (parameter,) = space.parameters

    assert isinstance(parameter, ContinuousParameter)
    assert (parameter.low, parameter.high) == pytest.approx((low, high))
    assert parameter.scaling == scaling


@given(
    st.integers(-(10**30), 10**30).map(str)
    | st.floats(allow_nan=False, allow_infinity=False).map(repr)
    | st.floats(0, 1, exclude_min=True, exclude_max=True).map(repr)
    | st.text(max_size=20)
)
def test_autotune_chooses_around_the_hint_and_its_range_can_be_searched(hint: str) -> None:
    ranges = {"AutoParameters": [{"Name": "p", "ValueHint": hint}]}
    (parameter,) = Space.from_ranges(ranges, "ranges").parameters
    text = hint if isinstance(parameter, CategoricalParameter) else hint.strip().strip('"').strip()

    assert parameter.read(text) is not None
    if isinstance(parameter, ContinuousParameter) and 0 < float(text) < 1:
        assert 0 < parameter.low <= parameter.high < 1
    for strategy in ("Random", "Bayesian"):
        (combination,) = run(make(strategy, ranges), 1)
        assert parameter.read(combination["p"]) == combination["p"]
    if not isinstance(parameter, CategoricalParameter):
        # What Autotune chose is a range that a user could have written.
        kind = "Integer" if isinstance(parameter, IntegerParameter) else "Continuous"
        bounds = {"Name": "p", "MinValue": str(parameter.low), "MaxValue": str(parameter.high)}
        scaling = (
            parameter.scaling
            if isinstance(parameter, ContinuousParameter)
            else ("Logarithmic" if parameter.logarithmic else "Linear")
        )
        written = {f"{kind}ParameterRanges": [{**bounds, "ScalingType": scaling}]}
        assert Space.from_ranges(written, "ranges").parameters == (parameter,)


# --- places on a scale -----------------------------------------------------------------------------


@given(st.integers(-1000, 1000), st.integers(0, 5000), st.booleans(), st.data())
def test_every_whole_number_has_its_place(
    low: int, width: int, logarithmic: bool, data: st.DataObject
) -> None:
    parameter = IntegerParameter(name="n", low=low, high=low + width, logarithmic=logarithmic and low > 0)
    value = str(data.draw(st.integers(low, low + width)))

    assert 0 < parameter.position(value) < 1
    assert parameter.value(parameter.position(value)) == value
    assert parameter.value(0.0) == str(low)
    assert parameter.value(1.0) == str(low + width)


@given(
    st.sampled_from(["Linear", "Logarithmic", "ReverseLogarithmic"]),
    st.floats(0.001, 0.9),
    st.floats(0.0, 0.09),
    st.floats(0, 1),
)
def test_every_number_has_its_place(scaling: str, low: float, width: float, share: float) -> None:
    parameter = ContinuousParameter(name="x", low=low, high=low + width, scaling=scaling)
    value = min(low + share * width, parameter.high)

    assert 0 <= parameter.position(repr(value)) <= 1
    assert float(parameter.value(parameter.position(repr(value)))) == pytest.approx(value, abs=1e-9)


def test_every_category_has_its_place() -> None:
    parameter = CategoricalParameter(name="c", values=("a", "b", "c"))

    assert [parameter.value(parameter.position(value)) for value in parameter.values] == ["a", "b", "c"]
    assert [parameter.value(place) for place in (0.0, 0.34, 1.0)] == ["a", "b", "c"]
