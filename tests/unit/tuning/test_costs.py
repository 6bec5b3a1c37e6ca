"""What tuning jobs consume: price tables, resources, usage, sums and projections."""

from __future__ import annotations

import json
from datetime import timedelta
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_amt.exceptions import AmtRequestError
from airflow_amt.tuning.costs import (
    UNITS,
    Consumption,
    PriceTable,
    Resources,
    TrainingJobUsage,
    resources_of,
)
from airflow_amt.tuning.history import TrainingJobResult
from tests.unit.tuning.factories import at

PRICES = PriceTable(currency="EUR", per_hour={"ml.a": 3600.0, "ml.b": 7200.0}, spot_discount=0.5)
A = Resources(instances=(("ml.a", 1),))
TWO_B = Resources(instances=(("ml.b", 2),))
SPOT = Resources(instances=(("ml.a", 1),), spot=True)


def used(
    seconds: float, resources: Resources = A, *, billed: float | None = None, running: bool = False
) -> TrainingJobUsage:
    return TrainingJobUsage(
        name="one", resources=resources, training_seconds=seconds, billable_seconds=billed, running=running
    )


# --- prices ------------------------------------------------------------------------------------


def test_a_price_table_is_read_from_many_forms() -> None:
    whole = {
        "currency": "EUR",
        "per_hour": {"ml.a": "3600.0000000000", "ml.b": 7200},
        "spot_discount": "0.5",
        "source": None,
    }
    assert PriceTable.parse(whole) == PRICES
    assert PriceTable.parse(json.dumps(whole)) == PRICES
    assert PriceTable.parse(PRICES) is PRICES
    dated = PriceTable(currency="EUR", per_hour={"ml.a": 1.0}, source="price list", at="2026-11-24")
    assert PriceTable.parse(json.dumps(dated.to_dict())) == dated


@pytest.mark.parametrize(
    ("value", "fields"),
    [
        (None, ["prices"]),
        ("{", ["prices"]),
        ("[" * 100_000, ["prices"]),
        ([], ["prices"]),
        ({}, ["prices.currency", "prices.per_hour"]),
        ({"currency": " ", "per_hour": {"ml.a": 1}}, ["prices.currency"]),
        (
            {"currency": "EUR", "per_hour": {"ml.a": -1, "ml.b": "x", "ml.c": True, "ml.d": 1e13}, "spot": 1},
            ["prices.spot", *(f"prices.per_hour['ml.{one}']" for one in "abcd")],
        ),
        ({"currency": "EUR", "per_hour": {"ml.a": 1}, "spot_discount": 1}, ["prices.spot_discount"]),
        ({"currency": "EUR", "per_hour": {"ml.a": 1}, "at": 7, "source": []}, ["prices.source", "prices.at"]),
    ],
)
def test_all_that_is_wrong_with_a_price_table_is_listed(value: Any, fields: list[str]) -> None:
    with pytest.raises(AmtRequestError) as caught:
        PriceTable.parse(value)
    assert [one.field for one in caught.value.problems] == fields


def test_a_price_table_made_in_python_is_checked_too() -> None:
    with pytest.raises(AmtRequestError, match="spot_discount"):
        PriceTable(currency="EUR", per_hour={"ml.a": 1.0}, spot_discount=60)
    with pytest.raises(AmtRequestError, match="per_hour"):
        PriceTable(currency="EUR")


# --- resources and usage -----------------------------------------------------------------------


def test_resources_of_definitions() -> None:
    found = resources_of(
        {
            "TrainingJobDefinitions": [
                {
                    "DefinitionName": "one",
                    "ResourceConfig": {"InstanceType": "ml.a", "InstanceCount": 3},
                    "EnableManagedSpotTraining": True,
                    "StoppingCondition": {"MaxRuntimeInSeconds": 60},
                },
                {
                    "DefinitionName": "choice",
                    "HyperParameterTuningResourceConfig": {
                        "InstanceConfigs": [
                            {"InstanceType": "ml.b", "InstanceCount": 2},
                            {"InstanceType": "ml.a", "InstanceCount": 1},
                        ]
                    },
                },
                {
                    "DefinitionName": "mixed",
                    "ResourceConfig": {
                        "InstanceGroups": [
                            {"InstanceType": "ml.a", "InstanceCount": 1, "InstanceGroupName": "x"},
                            {"InstanceType": "ml.b", "InstanceCount": 2, "InstanceGroupName": "y"},
                        ]
                    },
                },
                {"DefinitionName": "bare"},
            ]
        }
    )
    assert found["one"] == Resources(instances=(("ml.a", 3),), spot=True, max_runtime_seconds=60)
    assert found["choice"] == Resources(instances=(("ml.b", 2),), alternatives=True)
    assert found["mixed"] == Resources(instances=(("ml.a", 1), ("ml.b", 2)))
    assert found["mixed"].count == 3
    assert found["bare"] == Resources(instances=(("", 1),))


def test_usage_of_a_description() -> None:
    ended = TrainingJobUsage.from_describe(
        {
            "TrainingJobName": "one",
            "TrainingJobStatus": "Completed",
            "TrainingStartTime": at(0),
            "TrainingEndTime": at(100),
            "TrainingTimeInSeconds": 90,
            "BillableTimeInSeconds": 30,
            "ResourceConfig": {"InstanceType": "ml.a", "InstanceCount": 1},
            "EnableManagedSpotTraining": True,
        },
        now=at(500),
    )
    assert (ended.training_seconds, ended.billable_seconds, ended.running) == (90, 30, False)
    assert ended.billed_seconds(0.5) == 30, "what was billed is known, discount and all"
    busy = TrainingJobUsage.from_describe(
        {
            "TrainingJobName": "one",
            "TrainingJobStatus": "Stopping",
            "TrainingStartTime": at(0),
            "ResourceConfig": {"InstanceType": "ml.a", "InstanceCount": 1},
            "EnableManagedSpotTraining": True,
            "StoppingCondition": {"MaxRuntimeInSeconds": 250},
        },
        now=at(200),
    )
    assert (busy.training_seconds, busy.running, busy.seconds_left) == (200, True, 50)
    assert busy.billed_seconds(0.5) == 100
    assert TrainingJobUsage.from_describe({}, now=at(0)).training_seconds == 0


@pytest.mark.parametrize(
    ("job", "seconds", "running"),
    [
        (TrainingJobResult(name="x", status="InProgress"), 0, True),
        (TrainingJobResult(name="x", status="InProgress", started_at=at(40)), 60, True),
        (TrainingJobResult(name="x", status="InProgress", started_at=at(140)), 0, True),
        (TrainingJobResult(name="x", status="Failed"), 0, False),
        (TrainingJobResult(name="x", status="Stopped", started_at=at(40)), 0, False),
        (TrainingJobResult(name="x", status="Stopped", started_at=at(40), ended_at=at(50)), 10, False),
    ],
)
def test_usage_of_a_summary(job: TrainingJobResult, seconds: float, running: bool) -> None:
    found = TrainingJobUsage.from_result(job, A, now=at(100).astimezone(ZoneInfo("Europe/Madrid")))
    assert (found.training_seconds, found.running) == (seconds, running)


# --- sums --------------------------------------------------------------------------------------


def test_money_needs_prices() -> None:
    assert Consumption.measure([]).of("money") is None
    assert Consumption.measure([], PRICES).of("money") == 0
    assert Consumption.measure([used(5)]).of("money") is None
    odd = Consumption.measure([used(5), used(5, Resources(instances=(("ml.c", 1),)))], PRICES)
    assert odd.of("money") is None
    assert odd.after_stop("money") is None
    assert odd.at_completion("money", 3) is None
    assert odd.cost_at_least == 5
    assert odd.unpriced == ("ml.c",)
    assert odd.of("compute_seconds") == 10


def test_spot_is_cheaper_until_the_bill_is_known() -> None:
    busy = Consumption.measure([used(10, SPOT, running=True)], PRICES)
    assert [busy.of(unit) for unit in UNITS] == [10, 5, 5]
    assert [busy.rate_of(unit) for unit in UNITS] == [1, 0.5, 0.5]
    billed = Consumption.measure([used(10, SPOT, billed=3)], PRICES)
    assert [billed.of(unit) for unit in UNITS] == [10, 3, 3]


def test_instances_multiply() -> None:
    found = Consumption.measure([used(10, TWO_B, running=True), used(3)], PRICES)
    assert [found.of(unit) for unit in UNITS] == [23, 23, 43]
    assert [found.rate_of(unit) for unit in UNITS] == [2, 2, 4]
    assert found.after_stop("money", 5) == 63


def test_projections() -> None:
    jobs = [used(10), used(20), used(0), used(4, running=True), used(40, running=True)]
    found = Consumption.measure(jobs, PRICES)
    # 74 so far; 15 on average of those that trained: 11 more of the first that runs, none of the second.
    assert found.at_completion("money", 2) == 74 + 11 + 30
    assert found.at_completion("money", 0) == 85
    assert found.at_completion("money", None) is None
    assert found.at_completion("money", None, seconds_left=10) == 74 + 20
    assert found.at_completion("money", None, seconds_left=10, slots=3) == 74 + 30
    assert found.at_completion("money", 2, seconds_left=10) == 94
    assert Consumption.measure(jobs[3:], PRICES).at_completion("money", 2) is None, "none has ended"
    idle = Consumption.measure(jobs[:2], PRICES)
    assert idle.at_completion("money", None, seconds_left=10, slots=2) == 50, "slots are filled again"


@given(
    st.lists(
        st.tuples(
            st.integers(0, 100),
            st.sampled_from([A, TWO_B, SPOT]),
            st.none() | st.integers(0, 99),
            st.booleans(),
        ),
        max_size=8,
    ),
    st.integers(0, 50),
)
def test_sums_are_those_of_an_independent_count(raw: list[Any], wait: int) -> None:
    usages = [used(seconds, kind, billed=billed, running=busy) for seconds, kind, billed, busy in raw]
    found = Consumption.measure(usages, PRICES)
    totals = {unit: Fraction(0) for unit in UNITS}
    later = {unit: Fraction(0) for unit in UNITS}
    for seconds, kind, billed, busy in raw:
        count, price = (2, 2) if kind is TWO_B else (1, 1)
        share = Fraction(1, 2) if kind is SPOT else Fraction(1)
        paid = Fraction(billed) if billed is not None and not busy else seconds * share
        for unit, amount, rate in (
            ("compute_seconds", Fraction(seconds * count), Fraction(count)),
            ("billable_seconds", paid * count, count * share),
            ("money", paid * count * price, count * price * share),
        ):
            totals[unit] += amount
            later[unit] += amount + (rate * wait if busy else 0)
    for unit in UNITS:
        assert found.of(unit) == totals[unit]
        assert found.after_stop(unit, wait) == later[unit]


def test_a_stop_takes_two_minutes_by_default() -> None:
    assert (
        Consumption.measure([used(1, running=True)]).after_stop("compute_seconds")
        == 1 + timedelta(minutes=2).total_seconds()
    )
