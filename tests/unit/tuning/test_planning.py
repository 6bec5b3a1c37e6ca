"""The plan against a brute-force tuning loop: no run consumes more, and the worst one consumes just that."""

from __future__ import annotations

import json
import math
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_amt.exceptions import AmtRequestError
from airflow_amt.tuning import policies
from airflow_amt.tuning.costs import STOP_SECONDS, PriceTable
from airflow_amt.tuning.planning import Plan, check_plan, instance_types, plan, planned, unpriced
from airflow_amt.tuning.request import estimated_max_compute
from tests.unit.requests import create_request, set_path

CONFIG = "HyperParameterTuningJobConfig"
LIMITS = f"{CONFIG}.ResourceLimits"
DEFINITION = "TrainingJobDefinition"
PRICES = PriceTable(
    currency="EUR", per_hour={"ml.m5.large": 0.36, "ml.c5.xlarge": 7.2, "ml.p3.2xlarge": 36.0}
)


def request_of(**changes: Any) -> dict[str, Any]:
    """A request with short names for what the plan looks at."""
    paths = {
        "jobs": f"{LIMITS}.MaxNumberOfTrainingJobs",
        "parallel": f"{LIMITS}.MaxParallelTrainingJobs",
        "runtime": f"{LIMITS}.MaxRuntimeInSeconds",
        "seconds": f"{DEFINITION}.StoppingCondition.MaxRuntimeInSeconds",
        "wait": f"{DEFINITION}.StoppingCondition.MaxWaitTimeInSeconds",
        "spot": f"{DEFINITION}.EnableManagedSpotTraining",
        "instances": f"{DEFINITION}.ResourceConfig.InstanceCount",
        "strategy": f"{CONFIG}.Strategy",
        "not_improving": (
            f"{CONFIG}.TuningJobCompletionCriteria.BestObjectiveNotImproving.MaxNumberOfTrainingJobsNotImproving"
        ),
    }
    request = create_request()
    for name, value in changes.items():
        set_path(request, paths.get(name, name.replace("__", ".")), value)
    return request


def codes(made: Plan) -> list[str]:
    return [one.code for one in made.warnings]


# --- the brute-force tuning loop ---------------------------------------------------------------------


@dataclass
class Run:
    """One training job of a simulated run.

    :param seconds: how long it would train, left alone.
    :param stop: how long it takes to stop.
    :param kind: index of its definition.
    :param choice: index of its instances among the alternatives.
    """

    seconds: float
    stop: float = STOP_SECONDS
    kind: int = 0
    choice: int = 0


@dataclass
class Simulated:
    """What a simulated tuning job consumed: wall clock, and the training time of each training job."""

    ended: float = 0.0
    trained: list[tuple[Run, float]] = field(default_factory=list)


def simulate(
    jobs: int, parallel: int, runtime: float | None, limits: list[float], next_run: Callable[[float], Run]
) -> Simulated:
    """Launch training jobs as places become free until the number or the time is over; stop those left."""
    places = [0.0] * parallel
    done = Simulated()
    for _ in range(jobs):
        place = places.index(min(places))
        start = places[place]
        if runtime is not None and start >= runtime:
            break
        run = next_run(start)
        limit = limits[run.kind]
        seconds = run.seconds if run.seconds <= limit else min(run.seconds, limit + run.stop)
        end = start + seconds
        if runtime is not None and end > runtime:
            end = min(end, runtime + run.stop)
        places[place] = end
        done.trained.append((run, end - start))
    done.ended = max(places)
    return done


TYPES = st.sampled_from(sorted(PRICES.per_hour))
COUNTS = st.integers(1, 4)


@st.composite
def resources(draw: st.DrawFn) -> tuple[dict[str, Any], list[list[tuple[str, int]]]]:
    """A definition's resources as the API has them, and what they may come to."""
    shape = draw(st.sampled_from(["plain", "groups", "alternatives", "preferences"]))
    groups = draw(st.lists(st.tuples(TYPES, COUNTS), min_size=1, max_size=3))
    listed = [{"InstanceType": kind, "InstanceCount": count} for kind, count in groups]
    if shape == "plain":
        return {"ResourceConfig": {**listed[0], "VolumeSizeInGB": 1}}, [groups[:1]]
    if shape == "groups":
        return {"ResourceConfig": {"InstanceGroups": listed, "VolumeSizeInGB": 1}}, [groups]
    each = [[one] for one in groups]
    if shape == "preferences":
        return {"ResourceConfig": {"InstancePreferences": listed, "VolumeSizeInGB": 1}}, each
    return {"HyperParameterTuningResourceConfig": {"InstanceConfigs": listed}}, each


@given(data=st.data())
def test_no_simulated_run_consumes_more_than_the_upper_bound(data: st.DataObject) -> None:
    draw = data.draw
    drawn = draw(st.lists(st.tuples(resources(), st.integers(1, 900), st.booleans()), min_size=1, max_size=3))
    jobs, parallel = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    runtime = draw(st.none() | st.integers(120, 2500))
    discount = draw(st.sampled_from([0.0, 0.25, 0.6]))
    prices = PriceTable(currency="EUR", per_hour=PRICES.per_hour, spot_discount=discount)
    request = request_of(jobs=jobs, parallel=parallel, runtime=runtime, TrainingJobDefinition=None)
    request["TrainingJobDefinitions"] = [
        {
            **config,
            "DefinitionName": f"d{number}",
            "StoppingCondition": {"MaxRuntimeInSeconds": seconds},
            "EnableManagedSpotTraining": spot,
        }
        for number, ((config, _), seconds, spot) in enumerate(drawn)
    ]

    def next_run(_: float) -> Run:
        kind = draw(st.integers(0, len(drawn) - 1))
        return Run(
            seconds=draw(st.integers(1, 2000)),
            stop=draw(st.integers(0, int(STOP_SECONDS))),
            kind=kind,
            choice=draw(st.integers(0, len(drawn[kind][0][1]) - 1)),
        )

    done = simulate(jobs, parallel, runtime, [float(seconds) for _, seconds, _ in drawn], next_run)
    compute = billable = cost = 0.0
    for run, seconds in done.trained:
        (_, choices), _, spot = drawn[run.kind]
        billed = seconds * (1 - discount if spot else 1)
        compute += seconds * sum(count for _, count in choices[run.choice])
        billable += billed * sum(count for _, count in choices[run.choice])
        cost += billed * sum(prices.per_hour[kind] * count for kind, count in choices[run.choice]) / 3600
    made = plan(request, prices=prices)
    slack = 1 + 1e-9
    for bound, consumed in (
        (made.training_jobs, len(done.trained)),
        (made.compute_seconds, compute),
        (made.billable_seconds, billable),
        (made.cost, cost),
        (made.wall_clock_seconds, done.ended),
    ):
        assert bound.value is not None
        assert consumed <= bound.value * slack, bound


def worst(jobs: int, parallel: int, runtime: int | None, limit: int) -> Iterator[Simulated]:
    """Yield runs whose training jobs take as long as they can, or until just before the job's limit."""
    longest = limit + STOP_SECONDS
    for fills in product([False, True], repeat=jobs):
        pattern = iter(fills)

        def next_run(start: float, pattern: Iterator[bool] = pattern) -> Run:
            to_the_end = math.inf if runtime is None else runtime - 1 - start
            return Run(seconds=to_the_end if next(pattern) and 0 < to_the_end < longest else longest)

        yield simulate(jobs, parallel, runtime, [float(limit)], next_run)


@given(
    jobs=st.integers(1, 7),
    parallel=st.integers(1, 4),
    runtime=st.none() | st.integers(120, 1500),
    limit=st.integers(1, 700),
    instances=st.integers(1, 3),
)
def test_the_worst_run_of_one_definition_consumes_just_the_upper_bound(
    jobs: int, parallel: int, runtime: int | None, limit: int, instances: int
) -> None:
    request = request_of(jobs=jobs, parallel=parallel, runtime=runtime, seconds=limit, instances=instances)
    made = plan(request, prices=PRICES)
    runs = list(worst(jobs, parallel, runtime, limit))
    most = max(sum(seconds for _, seconds in run.trained) for run in runs)
    assert made.compute_seconds.value == made.billable_seconds.value == most * instances
    assert made.cost.value == pytest.approx(most * instances * 0.36 / 3600)
    assert made.wall_clock_seconds.value == max(run.ended for run in runs)
    limited_by = made.compute_seconds.limited_by
    assert (limited_by == "training_jobs") == (most == jobs * min(limit + 120, (runtime or math.inf) + 120))


@given(
    seconds=st.lists(st.integers(1, 500), min_size=2, max_size=4),
    jobs=st.integers(1, 9),
    parallel=st.integers(1, 3),
)
def test_of_several_definitions_all_training_jobs_may_be_of_the_dearest(
    seconds: list[int], jobs: int, parallel: int
) -> None:
    request = request_of(jobs=jobs, parallel=parallel, TrainingJobDefinition=None)
    request["TrainingJobDefinitions"] = [
        {
            "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": number + 1},
            "StoppingCondition": {"MaxRuntimeInSeconds": limit},
        }
        for number, limit in enumerate(seconds)
    ]
    most = max((limit + 120) * (number + 1) for number, limit in enumerate(seconds))
    assert plan(request).compute_seconds.value == jobs * most


@given(
    jobs=st.integers(1, 9),
    parallel=st.integers(1, 4),
    runtime=st.none() | st.integers(120, 1500),
    each=st.integers(1, 400),
)
def test_what_is_expected_is_what_a_run_of_such_training_jobs_consumes(
    jobs: int, parallel: int, runtime: int | None, each: int
) -> None:
    request = request_of(jobs=jobs, parallel=parallel, runtime=runtime, seconds=3600, instances=2)
    made = plan(request, prices=PRICES, expected_training_seconds=each)
    done = simulate(jobs, parallel, runtime, [3600.0], lambda _: Run(seconds=each, stop=0))
    assert made.expected is not None
    assert made.expected.training_jobs == len(done.trained)
    assert made.expected.compute_seconds == 2 * sum(seconds for _, seconds in done.trained)
    assert made.expected.wall_clock_seconds == done.ended
    cut = runtime is not None and not_all(done, jobs, each)
    assert made.first == ("max_runtime" if cut else "max_training_jobs")


def not_all(done: Simulated, jobs: int, each: int) -> bool:
    """Whether the runtime kept a training job from being launched, or from coming to its end."""
    return len(done.trained) < jobs or any(seconds < each for _, seconds in done.trained)


# --- limits ------------------------------------------------------------------------------------------

_WAYS = {
    "jobs": r"MaxNumberOfTrainingJobs\) to at most (\d+)",
    "runtime": r"MaxRuntimeInSeconds\) to at most (\d+) s",
    "seconds": r"training jobs to at most (\d+)",
}


@given(
    jobs=st.integers(1, 60),
    parallel=st.integers(1, 5),
    runtime=st.none() | st.integers(120, 20_000),
    seconds=st.integers(1, 5000),
    share=st.floats(0.001, 1.2),
    unit=st.sampled_from(["compute_seconds", "billable_seconds", "cost"]),
)
def test_a_fix_keeps_the_limit_and_is_the_largest_that_does(
    jobs: int, parallel: int, runtime: int | None, seconds: int, share: float, unit: str
) -> None:
    given_: dict[str, Any] = {"jobs": jobs, "parallel": parallel, "runtime": runtime, "seconds": seconds}
    made = plan(request_of(**given_), prices=PRICES)
    bound = getattr(made, unit).value
    limit = {f"max_{unit}": bound * share}
    problems = check_plan(made, **limit)
    if share >= 1:
        assert problems == []
        return
    [problem] = problems
    assert problem.field == unit
    fixes = {name: re.search(pattern, problem.fix) for name, pattern in _WAYS.items()}
    for name, found in fixes.items():
        least = 120 if name == "runtime" else 1
        if found is None:
            # It does not help, however low.
            now = given_[name]
            if now is None or now > least:
                assert check_plan(plan(request_of(**{**given_, name: least}), prices=PRICES), **limit)
            continue
        number = int(found[1])
        assert check_plan(plan(request_of(**{**given_, name: number}), prices=PRICES), **limit) == []
        if name != "runtime" or number < 15_768_000:
            more = plan(request_of(**{**given_, name: number + 1}), prices=PRICES)
            assert check_plan(more, **limit), name
    if not any(fixes.values()):
        assert "fewer or smaller instances" in problem.fix


def test_planned_returns_the_plan_or_refuses_with_every_limit() -> None:
    request = request_of()
    made = planned(request, prices=PRICES, max_cost=2.0, max_compute_seconds=14_880)
    assert made.compute_seconds.value == 4 * 3720
    with pytest.raises(AmtRequestError) as refused:
        planned(request, prices=PRICES, max_cost=1.0, max_compute_seconds=1, max_billable_seconds=7440)
    assert [one.field for one in refused.value.problems] == ["compute_seconds", "billable_seconds", "cost"]
    assert "to at most 2, or" in refused.value.problems[1].fix
    assert "at most 1.49 EUR" in str(refused.value)
    assert "Nothing was done" in str(refused.value)


def test_a_cost_limit_without_the_prices_is_a_refusal() -> None:
    with pytest.raises(AmtRequestError, match="give a price table"):
        planned(request_of(), max_cost=1000)
    other = PriceTable(currency="EUR", per_hour={"ml.c5.xlarge": 1.0})
    with pytest.raises(AmtRequestError, match=r"add ml\.m5\.large to the price table"):
        planned(request_of(), prices=other, max_cost=1000)


@pytest.mark.parametrize("limit", [0, -1, math.nan, math.inf, "much", True])
@pytest.mark.parametrize("name", ["max_cost", "max_compute_seconds", "max_billable_seconds"])
def test_a_limit_that_is_no_positive_number_is_named(name: str, limit: Any) -> None:
    with pytest.raises(AmtRequestError) as refused:
        planned(request_of(), prices=PRICES, **{name: limit})
    assert [one.field for one in refused.value.problems] == [name]


# --- what is read from the request -------------------------------------------------------------------


def test_the_runtime_bound_is_the_guides_estimate_and_the_time_to_stop() -> None:
    request = request_of(jobs=None, runtime=7200, parallel=5, instances=3)
    made = plan(request)
    guide = estimated_max_compute(request)
    assert guide == made.estimated_max_compute_seconds == 7200 * 5 * 3
    assert made.compute_seconds.value == guide + 120 * 5 * 3
    assert made.compute_seconds.limited_by == "runtime"
    assert (
        made.compute_seconds.because
        == "(7200 s of max_runtime + 120 s to stop) x 5 in parallel x 3 instances"
    )
    [warning] = [one for one in made.warnings if one.code == "overshoot"]
    assert "1,800 instance-seconds" in warning.text


def test_a_training_job_without_a_limit_may_take_a_day() -> None:
    made = plan(request_of(seconds=None))
    assert made.compute_seconds.value == 4 * (86_400 + 120)
    assert codes(made) == ["default_training_limit"]
    made = plan(request_of(TrainingJobDefinition__StoppingCondition=None))
    assert made.compute_seconds.value == 4 * (86_400 + 120)


def test_retries_of_a_training_job_share_its_limit() -> None:
    request = request_of(TrainingJobDefinition__RetryStrategy={"MaximumRetryAttempts": 30})
    assert plan(request).compute_seconds.value == 4 * 3720


def test_a_warm_start_does_not_count_the_training_jobs_of_its_parents() -> None:
    parents = [{"HyperParameterTuningJobName": "before"}]
    request = request_of(
        WarmStartConfig={"ParentHyperParameterTuningJobs": parents, "WarmStartType": "TransferLearning"}
    )
    assert plan(request).training_jobs.value == 4


def test_hyperband_is_not_counted_on_to_stop_training_jobs() -> None:
    assert plan(request_of(strategy="Hyperband")).compute_seconds.value == 4 * 3720


@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({"strategy": "Random"}, 10_000),
        ({"strategy": "Bayesian"}, 750),
        ({"strategy": "Hyperband"}, 750),
        ({"strategy": "Bayesian", "Autotune": {"Mode": "Enabled"}}, 10_000),
    ],
)
def test_without_a_number_of_training_jobs_the_quota_is_the_bound(changes: dict[str, Any], most: int) -> None:
    made = plan(request_of(jobs=None, **changes))
    assert made.training_jobs.value == most
    assert made.first == "quota"
    # With Autotune AMT sets the limits itself.
    assert ("endless" in codes(made)) == ("Autotune" not in changes)


def grid(**changes: Any) -> dict[str, Any]:
    ranges = {
        "CategoricalParameterRanges": [
            {"Name": "booster", "Values": ["tree", "linear"]},
            {"Name": "depth", "Values": ["1", "2", "3"]},
        ]
    }
    return request_of(**{"strategy": "Grid", "jobs": None, f"{CONFIG}__ParameterRanges": ranges, **changes})


@pytest.mark.parametrize("jobs", [None, 6])
def test_a_grid_has_its_combinations(jobs: int | None) -> None:
    made = plan(grid(jobs=jobs), prices=PRICES)
    assert made.training_jobs.value == 6
    assert made.first == "search_space_exhausted"
    assert "endless" not in codes(made)
    [problem] = check_plan(made, max_compute_seconds=10_000)
    # The number of combinations is not to be chosen.
    assert "max_training_jobs" not in problem.fix
    assert "training jobs to at most 1546" in problem.fix  # 6 x (1546 + 120) = 9996


def test_of_a_grid_each_definition_has_its_own_combinations() -> None:
    request = grid(TrainingJobDefinition=None)
    definitions = []
    for name, values, instances in (("a", ["1", "2"], 5), ("b", ["1", "2", "3"], 1)):
        definitions.append(
            {
                "DefinitionName": name,
                "HyperParameterRanges": {"CategoricalParameterRanges": [{"Name": "x", "Values": values}]},
                "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": instances},
                "StoppingCondition": {"MaxRuntimeInSeconds": 80},
            }
        )
    request["TrainingJobDefinitions"] = definitions
    made = plan(request)
    assert made.training_jobs.value == 5
    assert made.compute_seconds.value == 200 * (2 * 5 + 3 * 1)


def test_alternatives_count_as_the_dearest_of_each_unit() -> None:
    configs = [
        {"InstanceType": "ml.m5.large", "InstanceCount": 4, "VolumeSizeInGB": 1},
        {"InstanceType": "ml.p3.2xlarge", "InstanceCount": 1, "VolumeSizeInGB": 1},
    ]
    request = request_of(
        TrainingJobDefinition__ResourceConfig=None,
        TrainingJobDefinition__HyperParameterTuningResourceConfig={"InstanceConfigs": configs},
    )
    made = plan(request, prices=PRICES, expected_training_seconds=3600)
    assert made.compute_seconds.value == 4 * 3720 * 4
    assert made.cost.value == pytest.approx(4 * 3720 * 36.0 / 3600)
    assert made.expected is not None
    assert made.expected.cost == pytest.approx(4 * 4 * 0.36)  # AMT's favourite is the first one
    assert instance_types(request) == ("ml.m5.large", "ml.p3.2xlarge")


def test_a_preference_without_a_count_has_that_of_the_config() -> None:
    config = {"InstancePreferences": [{"InstanceType": "ml.m5.large"}], "InstanceCount": 3}
    made = plan(request_of(TrainingJobDefinition__ResourceConfig=config))
    assert made.compute_seconds.value == 4 * 3720 * 3


def test_spot_counts_the_discount_of_the_table_and_says_what_it_is_without() -> None:
    request = request_of(spot=True, wait=7200)
    made = plan(request, prices=PriceTable(currency="EUR", per_hour={"ml.m5.large": 0.36}, spot_discount=0.5))
    assert made.compute_seconds.value == 4 * 3720
    assert made.billable_seconds.value == 2 * 3720
    assert made.billable_seconds.because == f"{made.compute_seconds.because}, less the spot discount"
    assert made.cost.value == pytest.approx(0.744)
    [warning] = made.warnings
    assert warning.code == "spot_discount_not_promised"
    assert "without it at most 1.49 EUR" in warning.text
    # Waiting for spot capacity takes time, but no compute.
    assert made.wall_clock_seconds.value == 2 * (7200 + 120)
    assert codes(plan(request, prices=PRICES)) == ["spot_without_discount"]
    assert codes(plan(request)) == []


def test_a_missing_price_is_named_and_there_is_no_cost() -> None:
    made = plan(request_of(), prices=PriceTable(currency="EUR", per_hour={"ml.c5.xlarge": 1.0}))
    assert made.cost.value is None
    assert made.unpriced == ("ml.m5.large",)
    assert codes(made) == ["no_price"]
    assert "ml.m5.large" in made.cost.because


# --- what ends it ------------------------------------------------------------------------------------


def test_without_an_expectation_the_break_even_is_told() -> None:
    made = plan(request_of(jobs=20, parallel=2, runtime=7200))
    assert made.first is None
    assert "720 s on average" in made.first_because
    assert [one.code for one in made.endings] == ["max_training_jobs", "max_runtime"]
    made = plan(request_of(jobs=2, parallel=2, runtime=7200))
    assert made.first == "max_training_jobs"
    assert "even if each" in made.first_because


@pytest.mark.parametrize(("each", "first"), [(719, "max_training_jobs"), (721, "max_runtime")])
def test_with_an_expectation_it_is_decided(each: int, first: str) -> None:
    made = plan(request_of(jobs=20, parallel=2, runtime=7200), expected_training_seconds=each)
    assert made.first == first


def test_an_expectation_above_the_limit_of_training_jobs_is_cut_and_warned_about() -> None:
    made = plan(request_of(), expected_training_seconds=5000)
    assert made.expected is not None
    assert made.expected.training_seconds == 3600
    assert codes(made) == ["training_limit_too_short"]


def test_criteria_on_objectives_are_not_predicted_but_bounded() -> None:
    criteria = {
        "TargetObjectiveMetricValue": 0.9,
        "BestObjectiveNotImproving": {"MaxNumberOfTrainingJobsNotImproving": 5},
        "ConvergenceDetected": {"CompleteOnConvergence": "Enabled"},
    }
    request = request_of(jobs=20, **{f"{CONFIG}__TuningJobCompletionCriteria": criteria})
    endings = {one.code: one for one in plan(request, expected_training_seconds=100).endings}
    assert list(endings) == ["max_training_jobs", "not_improving", "target_reached", "converged"]
    assert endings["not_improving"].earliest_seconds == 300  # 6 training jobs, 2 in parallel
    assert endings["not_improving"].latest_seconds is None
    for code in ("not_improving", "target_reached", "converged"):
        assert "cannot be predicted" in endings[code].explanation
        assert endings[code].expected_seconds is None


def test_a_criterion_that_cannot_fire_is_warned_about() -> None:
    assert codes(plan(request_of(jobs=5, not_improving=4))) == ["cannot_fire"]
    assert codes(plan(request_of(jobs=6, not_improving=4))) == []
    late = request_of(jobs=60, not_improving=20, runtime=3600)
    assert "cannot_fire" in codes(plan(late, expected_training_seconds=1800))
    assert "cannot_fire" not in codes(plan(late, expected_training_seconds=100))


def test_idle_places_and_warm_pools_are_warned_about() -> None:
    assert codes(plan(request_of(parallel=9))) == ["idle_parallelism"]
    kept = request_of(TrainingJobDefinition__ResourceConfig__KeepAlivePeriodInSeconds=600)
    assert codes(plan(kept)) == ["warm_pool"]


# --- what it says ------------------------------------------------------------------------------------


def test_the_plan_as_dict_is_json_and_as_text_a_table() -> None:
    request = request_of(jobs=20, runtime=7200, not_improving=5)
    made = plan(request, prices=PRICES, expected_training_seconds=300)
    told = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert told["version"] == 1
    assert told["compute_seconds"]["at_most"] == made.compute_seconds.value
    assert told["cost"]["currency"] == "EUR"
    assert told["first"] == "max_training_jobs"
    assert {one["code"] for one in told["endings"]} == {"max_training_jobs", "max_runtime", "not_improving"}
    title, *rows = made.lines()
    assert title == "Plan of tuning job churn-model (Random)"
    assert str(made) == "\n".join([title, *rows])
    starts = {len(row) - len(row[2:].lstrip()[row[2:].index("  ") :].lstrip()) for row in rows}
    assert len(starts) == 1, "the second column is not aligned"
    assert "\n" not in made.summary()
    assert made.summary().startswith("Plan: at most 1.46 EUR, 14,640 instance-seconds = 4.1 h of compute")
    assert pickle.loads(pickle.dumps(made)) == made


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"parallel": None}, [f"{LIMITS}.MaxParallelTrainingJobs"]),
        ({"parallel": True}, [f"{LIMITS}.MaxParallelTrainingJobs"]),
        (
            {"jobs": 0, "parallel": 0},
            [f"{LIMITS}.MaxNumberOfTrainingJobs", f"{LIMITS}.MaxParallelTrainingJobs"],
        ),
        ({"seconds": "an hour"}, [f"{DEFINITION}.StoppingCondition.MaxRuntimeInSeconds"]),
        ({"TrainingJobDefinition__StoppingCondition": 5}, [f"{DEFINITION}.StoppingCondition"]),
        ({"TrainingJobDefinition__ResourceConfig": None}, [f"{DEFINITION}.ResourceConfig"]),
        ({"TrainingJobDefinition": None}, [DEFINITION]),
        ({CONFIG: None}, [f"{LIMITS}.MaxParallelTrainingJobs"]),
    ],
)
def test_what_the_plan_cannot_do_without_is_named(changes: dict[str, Any], fields: list[str]) -> None:
    with pytest.raises(AmtRequestError) as refused:
        plan(request_of(**changes))
    assert [one.field for one in refused.value.problems] == fields


@pytest.mark.parametrize("seconds", [0, -5, math.nan, math.inf, "10", True])
def test_an_expectation_that_is_no_time_is_refused(seconds: Any) -> None:
    with pytest.raises(AmtRequestError, match="expected_training_seconds"):
        plan(request_of(), expected_training_seconds=seconds)


@pytest.mark.parametrize(
    ("per_hour", "unit", "told"),
    [
        ({"ml.m5.large": 0.1}, "money", False),
        ({"ml.c5.large": 0.1}, "money", True),
        ({"ml.c5.large": 0.1}, "billable_seconds", False),
    ],
)
def test_a_budget_in_money_needs_a_price_of_each_instance_type(
    per_hour: dict[str, float], unit: str, told: bool
) -> None:
    sla = policies.Sla(
        rules=(policies.Rule(policy=policies.Budget(5, unit=unit)),),
        prices=PriceTable(currency="EUR", per_hour=per_hour),
    )
    found = unpriced(create_request(), sla)
    assert bool(found) is told
    for problem in found:
        assert problem.field == "policies.prices.per_hour"
        assert "ml.m5.large" in problem.limit
