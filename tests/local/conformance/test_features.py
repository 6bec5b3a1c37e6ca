"""What the features of the API do when a tuning job really runs: strategies, warm start, early stopping."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from tests.local.conformance.shapes import MISSING, disagreements
from tests.local.conformance.wire import (
    CONFIG,
    DEFINITION,
    ENDLESS,
    OBJECTIVE,
    Wire,
    several,
    training_request,
    tuning_request,
    warm_start,
)

pytestmark = pytest.mark.local

LIMITS = f"{CONFIG}__ResourceLimits"
RANGES = f"{CONFIG}__ParameterRanges"
STATIC = f"{DEFINITION}__StaticHyperParameters"


def final(summary: dict[str, Any]) -> float | None:
    """Return the final objective of a training job, if it has one."""
    metric = summary.get("FinalHyperParameterTuningJobObjectiveMetric")
    return None if metric is None else float(metric["Value"])


def tried(wire: Wire, name: str) -> list[dict[str, str]]:
    """Return the combinations of a tuning job's training jobs, in the order they were made."""
    return [one["TunedHyperParameters"] for one in wire.training_jobs(name, SortBy="CreationTime")]


def check_invariants(wire: Wire, name: str) -> dict[str, Any]:
    """Hold a description against the list of its training jobs; return it."""
    description = wire("DescribeHyperParameterTuningJob", HyperParameterTuningJobName=name)
    assert disagreements("DescribeHyperParameterTuningJob", description) == []
    jobs = wire.training_jobs(name)
    counters = description["TrainingJobStatusCounters"]
    of_status: dict[str, int] = {}
    for job in jobs:
        of_status[job["TrainingJobStatus"]] = of_status.get(job["TrainingJobStatus"], 0) + 1
    assert counters["Completed"] == of_status.get("Completed", 0)
    assert counters["Stopped"] == of_status.get("Stopped", 0)
    assert counters["NonRetryableError"] + counters["RetryableError"] == of_status.get("Failed", 0)
    assert counters["InProgress"] == of_status.get("InProgress", 0) + of_status.get("Stopping", 0)
    objectives = [value for job in jobs if (value := final(job)) is not None]
    assert description["ObjectiveStatusCounters"]["Succeeded"] == len(objectives)
    objective = (
        description[CONFIG].get("HyperParameterTuningJobObjective")
        or (description["TrainingJobDefinitions"][0]["TuningObjective"])
    )
    best = max(objectives) if objective["Type"] == "Maximize" else min(objectives)
    assert final(description["BestTrainingJob"]) == best
    return description


# --- strategies and ranges -------------------------------------------------------------------------


@pytest.mark.parametrize("given", [True, False])
def test_grid_tries_each_combination_once(wire: Wire, given: bool) -> None:
    colours, sizes = ["red", "blue", "green"], ["1", "2"]
    ranges = {
        "CategoricalParameterRanges": [
            {"Name": "colour", "Values": colours},
            {"Name": "size", "Values": sizes},
        ]
    }
    limits = {"MaxParallelTrainingJobs": 3, **({"MaxNumberOfTrainingJobs": 6} if given else {})}
    ended = wire.tune(
        tuning_request("grid", **{f"{CONFIG}__Strategy": "Grid", RANGES: ranges, LIMITS: limits})
    )

    assert ended["HyperParameterTuningJobStatus"] == "Completed"
    combinations = sorted((one["colour"], one["size"]) for one in tried(wire, "grid"))
    assert combinations == sorted(product(colours, sizes))
    check_invariants(wire, "grid")


@pytest.mark.parametrize("strategy", ["Random", "Bayesian"])
def test_values_are_of_their_ranges(wire: Wire, strategy: str) -> None:
    def numeric(name: str, least: str, most: str, scaling: str) -> dict[str, str]:
        return {"Name": name, "MinValue": least, "MaxValue": most, "ScalingType": scaling}

    ranges: dict[str, list[dict[str, Any]]] = {
        "ContinuousParameterRanges": [
            numeric("linear", "-1", "1", "Linear"),
            numeric("log", "0.0001", "1", "Logarithmic"),
            numeric("reverse", "0", "0.9999", "ReverseLogarithmic"),
            numeric("auto", "1e-6", "1", "Auto"),
        ],
        "IntegerParameterRanges": [
            numeric("count", "-2", "2", "Linear"),
            numeric("many", "1", "100000", "Logarithmic"),
        ],
        "CategoricalParameterRanges": [{"Name": "colour", "Values": ["red", "blue"]}],
    }
    wire.tune(
        tuning_request(
            "ranges",
            **{
                f"{CONFIG}__Strategy": strategy,
                RANGES: ranges,
                LIMITS: {"MaxNumberOfTrainingJobs": 8, "MaxParallelTrainingJobs": 4},
            },
        )
    )

    combinations = tried(wire, "ranges")
    assert len(combinations) == 8
    for combination in combinations:
        assert set(combination) == {"linear", "log", "reverse", "auto", "count", "many", "colour"}
        assert combination["colour"] in ("red", "blue")
        for one in (*ranges["ContinuousParameterRanges"], *ranges["IntegerParameterRanges"]):
            value = combination[one["Name"]]
            assert float(one["MinValue"]) <= float(value) <= float(one["MaxValue"])
        assert str(int(combination["count"])) == combination["count"]
        assert str(int(combination["many"])) == combination["many"]
    assert len({one["linear"] for one in combinations}) == 8


def test_a_random_seed_is_reproducible(wire: Wire) -> None:
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        wire.tune(tuning_request(name, **{f"{CONFIG}__RandomSeed": seed}))

    assert tried(wire, "a") == tried(wire, "b")
    assert tried(wire, "a") != tried(wire, "c")


def test_hyperband_stops_a_training_job_at_the_most_resources(wire: Wire) -> None:
    """API, ``HyperbandStrategyConfig``: "Once a job reaches the MaxResource value, it is stopped."."""
    ended = wire.tune(
        tuning_request(
            "hyperband",
            "curve:1",
            **{
                f"{CONFIG}__Strategy": "Hyperband",
                f"{CONFIG}__StrategyConfig__HyperbandStrategyConfig": {"MinResource": 1, "MaxResource": 3},
                LIMITS: {"MaxNumberOfTrainingJobs": 4, "MaxParallelTrainingJobs": 2},
                STATIC: {"curves": f"x:{ENDLESS}", "pause": "0.1"},
            },
        )
    )

    assert ended["HyperParameterTuningJobStatus"] == "Completed"
    jobs = wire.training_jobs("hyperband")
    assert 0 < len(jobs) <= 4
    assert {job["TrainingJobStatus"] for job in jobs} == {"Stopped"}
    check_invariants(wire, "hyperband")


def test_hyperband_gives_the_best_the_most(wire: Wire) -> None:
    """Training jobs that end by themselves, after as many epochs as Hyperband may give one."""
    ended = wire.tune(
        tuning_request(
            "hyperband",
            "curve:1",
            **{
                f"{CONFIG}__Strategy": "Hyperband",
                LIMITS: {"MaxNumberOfTrainingJobs": 6, "MaxParallelTrainingJobs": 2},
                STATIC: {"curves": "x:3", "pause": "0.1", "epochs": "3"},
            },
        )
    )

    assert ended["HyperParameterTuningJobStatus"] == "Completed"
    description = check_invariants(wire, "hyperband")
    assert sum(description["TrainingJobStatusCounters"].values()) <= 6
    assert description["TrainingJobStatusCounters"]["NonRetryableError"] == 0


def test_early_stopping_stops_what_is_worse_than_the_median(wire: Wire) -> None:
    """Four training jobs reach 0.9, the fifth goes on at 0.1 until it is stopped."""
    ended = wire.tune(
        tuning_request(
            "early",
            "curve:1",
            **{
                f"{CONFIG}__TrainingJobEarlyStoppingType": "Auto",
                LIMITS: {"MaxNumberOfTrainingJobs": 5, "MaxParallelTrainingJobs": 1},
                STATIC: {"curves": f"0.9:6 0.9:6 0.9:6 0.9:6 0.1:{ENDLESS}", "pause": "0.05"},
            },
        )
    )

    assert ended["HyperParameterTuningJobStatus"] == "Completed"
    jobs = wire.training_jobs("early", SortBy="CreationTime")
    assert [job["TrainingJobStatus"] for job in jobs] == ["Completed"] * 4 + ["Stopped"]
    assert final(jobs[-1]) == 0.1
    description = check_invariants(wire, "early")
    assert description[CONFIG]["TrainingJobEarlyStoppingType"] == "Auto"


def test_early_stopping_leaves_what_is_better(wire: Wire) -> None:
    ended = wire.tune(
        tuning_request(
            "early",
            "curve:1",
            **{
                f"{CONFIG}__TrainingJobEarlyStoppingType": "Auto",
                LIMITS: {"MaxNumberOfTrainingJobs": 5, "MaxParallelTrainingJobs": 1},
                STATIC: {"curves": "0.1:6 0.2:6 0.3:6 0.4:6 0.5:6", "pause": "0.02"},
            },
        )
    )

    assert ended["TrainingJobStatusCounters"]["Completed"] == 5
    check_invariants(wire, "early")


def test_autotune_finds_a_range_for_a_hint(wire: Wire) -> None:
    autotune = {"Mode": "Enabled"}
    hints = {"AutoParameters": [{"Name": "rate", "ValueHint": "0.1"}]}
    ended = wire.tune(tuning_request("auto", **{"Autotune": autotune, RANGES: hints}))

    assert ended["HyperParameterTuningJobStatus"] == "Completed"
    assert ended["Autotune"] == autotune
    assert ended[CONFIG]["ParameterRanges"]["AutoParameters"] == hints["AutoParameters"]
    assert all(float(one["rate"]) > 0 for one in tried(wire, "auto"))


# --- several definitions ---------------------------------------------------------------------------


def test_several_definitions_share_one_budget(wire: Wire) -> None:
    ended = wire.tune(
        tuning_request(
            "several",
            **several(
                {"StaticHyperParameters": {"sequence": "0.25"}},
                {"StaticHyperParameters": {"sequence": "0.75"}},
            ),
            **{LIMITS: {"MaxNumberOfTrainingJobs": 6, "MaxParallelTrainingJobs": 2}},
        )
    )

    assert ended["HyperParameterTuningJobStatus"] == "Completed"
    jobs = wire.training_jobs("several")
    assert len(jobs) == 6
    for job in jobs:
        assert final(job) == {"a": 0.25, "b": 0.75}[job["TrainingJobDefinitionName"]]
    assert {job["TrainingJobDefinitionName"] for job in jobs} == {"a", "b"}
    description = check_invariants(wire, "several")
    assert description["BestTrainingJob"]["TrainingJobDefinitionName"] == "b"


def test_the_smaller_is_better_in_several_definitions(wire: Wire) -> None:
    minimize = {**OBJECTIVE, "Type": "Minimize"}
    wire.tune(
        tuning_request(
            "several",
            **several(
                {"StaticHyperParameters": {"sequence": "0.25"}, "TuningObjective": minimize},
                {"StaticHyperParameters": {"sequence": "0.75"}, "TuningObjective": minimize},
            ),
            **{LIMITS: {"MaxNumberOfTrainingJobs": 4, "MaxParallelTrainingJobs": 2}},
        )
    )

    assert check_invariants(wire, "several")["BestTrainingJob"]["TrainingJobDefinitionName"] == "a"


# --- warm start ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("child", "best_of"), [("0.25", "parent"), ("0.75", "child")])
def test_the_overall_best_training_job(wire: Wire, child: str, best_of: str) -> None:
    wire.tune(tuning_request("parent"))
    start = warm_start("parent", kind="IdenticalDataAndAlgorithm")
    ended = wire.tune(tuning_request("child", **{STATIC: {"sequence": child}, **start}))

    assert disagreements("DescribeHyperParameterTuningJob", ended) == []
    assert ended["WarmStartConfig"] == start["WarmStartConfig"]
    assert final(ended["BestTrainingJob"]) == float(child)
    overall = ended["OverallBestTrainingJob"]
    assert final(overall) == max(0.5, float(child))
    assert overall["TuningJobName"] == best_of
    assert len(wire.training_jobs("child")) == 2


def test_transfer_learning_has_no_overall_best(wire: Wire) -> None:
    """API, ``DescribeHyperParameterTuningJob``: only with IdenticalDataAndAlgorithm."""
    wire.tune(tuning_request("parent"))
    start = warm_start("parent")
    ended = wire.tune(tuning_request("child", **start))

    assert ended["WarmStartConfig"] == start["WarmStartConfig"]
    assert "OverallBestTrainingJob" not in ended


def test_a_warm_start_from_several_parents_with_what_was_static(wire: Wire) -> None:
    """x is static in one parent; the child tunes it, and the other hyperparameter too."""
    y = {"ContinuousParameterRanges": [{"Name": "y", "MinValue": "0", "MaxValue": "1"}]}
    wire.tune(tuning_request("one", **{f"{STATIC}__y": "0.5"}))
    wire.tune(tuning_request("two", **{f"{STATIC}__x": "0.5", RANGES: y}))
    both = {
        "ContinuousParameterRanges": [
            {"Name": "x", "MinValue": "0", "MaxValue": "1"},
            {"Name": "y", "MinValue": "0", "MaxValue": "1"},
        ]
    }
    ended = wire.tune(
        tuning_request(
            "child",
            **{f"{CONFIG}__Strategy": "Bayesian", RANGES: both, **warm_start("one", "two")},
        )
    )

    assert ended["HyperParameterTuningJobStatus"] == "Completed"
    assert all(set(one) == {"x", "y"} for one in tried(wire, "child"))


# --- training jobs ---------------------------------------------------------------------------------


def test_a_training_job_ends_at_its_time_limit(wire: Wire) -> None:
    request = training_request(
        "slow-1-a",
        "play:1",
        HyperParameters={"sequence": "hang"},
        StoppingCondition={"MaxRuntimeInSeconds": 60},
    )
    wire.send("CreateTrainingJob", request)

    over = wire.training_job_over("slow-1-a")

    assert over["TrainingJobStatus"] == "Stopped"
    assert over["SecondaryStatus"] == "MaxRuntimeExceeded"
    assert over["SecondaryStatusTransitions"][-1]["Status"] == "MaxRuntimeExceeded"


def test_a_training_job_without_hyperparameters(wire: Wire) -> None:
    wire.send("CreateTrainingJob", training_request("bare", HyperParameters=MISSING))

    over = wire.training_job_over("bare")

    assert disagreements("DescribeTrainingJob", over) == []
    assert over["TrainingJobStatus"] == "Completed"
    assert over["FinalMetricDataList"][0]["MetricName"] == "objective"


def test_the_last_value_of_a_metric_is_final(wire: Wire) -> None:
    metrics = [
        {"Name": "objective", "Regex": r"objective=(\S+)"},
        {"Name": "epoch", "Regex": r"epoch=(\d+)"},
    ]
    request = training_request(
        "curve-1-a",
        "curve:1",
        HyperParameters={"curves": "0.25:3"},
        AlgorithmSpecification__MetricDefinitions=metrics,
    )
    wire.send("CreateTrainingJob", request)

    found = wire.training_job_over("curve-1-a")["FinalMetricDataList"]

    assert {one["MetricName"]: one["Value"] for one in found} == {"objective": 0.25, "epoch": 3}
