"""Random and Bayesian search: ranges, scales, seeds, and finite spaces."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local import search as search_module
from airflow_amt.local.search import (
    CategoricalParameter,
    ContinuousParameter,
    Evaluation,
    IntegerParameter,
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
FINITE = {
    "IntegerParameterRanges": [{"Name": "n", "MinValue": "-1", "MaxValue": "2"}],
    "ContinuousParameterRanges": [{"Name": "fixed", "MinValue": "0.5", "MaxValue": "0.5"}],
    "CategoricalParameterRanges": [{"Name": "kind", "Values": ["a", "b", "c"]}],
}


def make(strategy: str, ranges: dict[str, Any] = ALL_KINDS, seed: int = 3) -> Search:
    return create_search(strategy, Space.from_ranges(ranges, "ranges"), ObjectiveType.MAXIMIZE, seed)


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


@pytest.mark.parametrize("strategy", ["Random", "Bayesian"])
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


@pytest.mark.parametrize("strategy", ["Random", "Bayesian"])
@pytest.mark.parametrize("parallel", [1, 5])
def test_a_finite_space_is_tried_once_and_then_exhausted(strategy: str, parallel: int) -> None:
    proposed = run(make(strategy, FINITE), 100, parallel=parallel)

    assert len(proposed) == 12
    assert len({tuple(sorted(one.items())) for one in proposed}) == 12
    assert {one["fixed"] for one in proposed} == {"0.5"}


@pytest.mark.parametrize("strategy", ["Random", "Bayesian"])
def test_what_was_tried_before_a_restart_is_not_tried_again(strategy: str) -> None:
    tried = run(make("Random", FINITE, seed=8), 7)
    history = [
        Evaluation(hyperparameters=one, objective=None if position % 3 == 0 else float(position))
        for position, one in enumerate(tried[:5])
    ]
    search = make(strategy, FINITE)
    rest = []
    while (combination := search.propose(history, tried[5:])) is not None:
        rest.append(combination)
        history.append(Evaluation(hyperparameters=combination, objective=0.5))

    assert len(rest) == 5
    assert not any(one in tried for one in rest)


def test_a_lopsided_scale_still_reaches_every_combination() -> None:
    """On a log scale 1000 is drawn rarely; the last few are found all the same."""
    ranges = {
        "IntegerParameterRanges": [
            {"Name": "n", "MinValue": "1", "MaxValue": "1000", "ScalingType": "Logarithmic"}
        ]
    }
    proposed = run(make("Random", ranges), 2000)

    assert sorted(int(one["n"]) for one in proposed) == list(range(1, 1001))


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
