"""The documented rules that the service model lacks: each with a request that keeps it and one that does not.

Every bad request is a good one with one change, so that it is this change that is refused. A good one is
created for real.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.local.conformance.shapes import MISSING
from tests.local.conformance.wire import (
    CONFIG,
    DEFINITION,
    OBJECTIVE,
    Wire,
    X,
    definition,
    several,
    training_request,
    tuning_request,
    warm_start,
    with_changes,
)

pytestmark = pytest.mark.local

LIMITS = f"{CONFIG}__ResourceLimits"
RANGES = f"{CONFIG}__ParameterRanges"
STATIC = f"{DEFINITION}__StaticHyperParameters"
HYPERBAND = f"{CONFIG}__StrategyConfig__HyperbandStrategyConfig"
METRICS = f"{DEFINITION}__AlgorithmSpecification__MetricDefinitions"
STOPPING = f"{DEFINITION}__StoppingCondition"
TUNING_RESOURCES = f"{DEFINITION}__HyperParameterTuningResourceConfig"
INSTANCE = {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1}
COLOURS = {"CategoricalParameterRanges": [{"Name": "c", "Values": ["red", "blue"]}]}
GRID = {f"{CONFIG}__Strategy": "Grid", RANGES: COLOURS, f"{LIMITS}__MaxNumberOfTrainingJobs": MISSING}


@dataclass(frozen=True)
class Rule:
    """A rule of the API's documentation.

    :param name: what it is about.
    :param named: what the refusal must name: the field's path and, of its limit, a few words.
    :param bad: changes that break it.
    :param good: changes that make a request that keeps it.
    """

    name: str
    named: tuple[str, ...]
    bad: dict[str, Any]
    good: dict[str, Any] = field(default_factory=dict)


def continuous(least: str, most: str, scaling: str = "Auto") -> dict[str, Any]:
    one = {"Name": "x", "MinValue": least, "MaxValue": most, "ScalingType": scaling}
    return {RANGES: {"ContinuousParameterRanges": [one]}}


def integer(least: str, most: str, scaling: str = "Auto") -> dict[str, Any]:
    one = {"Name": "x", "MinValue": least, "MaxValue": most, "ScalingType": scaling}
    return {RANGES: {"IntegerParameterRanges": [one]}}


def hyperband(static: dict[str, str] | None = None, **resources: int) -> dict[str, Any]:
    return {
        f"{CONFIG}__Strategy": "Hyperband",
        **({HYPERBAND: resources} if resources else {}),
        STATIC: {"sequence": "0.5", **(static or {})},
    }


def many_static(count: int) -> dict[str, Any]:
    return {STATIC: {"sequence": "0.5", **{f"p{number}": "1" for number in range(count - 1)}}}


def integers(count: int) -> dict[str, Any]:
    return {
        "IntegerParameterRanges": [
            {"Name": f"x{number}", "MinValue": "1", "MaxValue": "2"} for number in range(count)
        ]
    }


def environment(count: int) -> dict[str, str]:
    return {f"V{number}": "1" for number in range(count)}


MINIMIZE = {**OBJECTIVE, "Type": "Minimize"}
CONTINUOUS_0 = "HyperParameterTuningJobConfig.ParameterRanges.ContinuousParameterRanges[0]"
INTEGER_0 = "HyperParameterTuningJobConfig.ParameterRanges.IntegerParameterRanges[0]"

RULES = [
    # --- objective ---
    Rule(
        "the objective is one of the metrics",
        ("HyperParameterTuningJobConfig.HyperParameterTuningJobObjective.MetricName", "MetricDefinitions"),
        {f"{CONFIG}__HyperParameterTuningJobObjective__MetricName": "loss"},
    ),
    Rule(
        "a custom algorithm has metrics",
        ("HyperParameterTuningJobObjective.MetricName", "MetricDefinitions"),
        {METRICS: MISSING},
    ),
    Rule(
        "an objective is given",
        ("HyperParameterTuningJobConfig.HyperParameterTuningJobObjective", "required"),
        {f"{CONFIG}__HyperParameterTuningJobObjective": MISSING},
    ),
    Rule(
        "the regex of a metric captures its value",
        ("MetricDefinitions[0].Regex", "group"),
        {f"{METRICS}__0__Regex": "objective=.*"},
        {f"{METRICS}__0__Regex": "objective=([0-9.]+)"},
    ),
    # --- ranges ---
    Rule("bounds in order", (f"{CONTINUOUS_0}.MinValue",), continuous("2", "1"), continuous("1", "1")),
    Rule(
        "bounds are numbers", (f"{CONTINUOUS_0}.MaxValue",), continuous("0", "many"), continuous("-1", "1e-3")
    ),
    Rule("bounds are finite", (f"{CONTINUOUS_0}.MaxValue",), continuous("0", "inf"), continuous("0", "1e9")),
    Rule("integer bounds are whole", (f"{INTEGER_0}.MinValue",), integer("0.5", "3"), integer("-3", "3")),
    Rule(
        "logarithmic continuous ranges are positive",
        (f"{CONTINUOUS_0}.MinValue", "above 0"),
        continuous("0", "1", "Logarithmic"),
        continuous("0.0001", "1", "Logarithmic"),
    ),
    Rule(
        "logarithmic integer ranges are positive",
        (f"{INTEGER_0}.MinValue", "above 0"),
        integer("0", "9", "Logarithmic"),
        integer("1", "9", "Logarithmic"),
    ),
    Rule(
        "reverse logarithmic ranges are below 1",
        (f"{CONTINUOUS_0}.MaxValue", "below 1"),
        continuous("0", "1", "ReverseLogarithmic"),
        continuous("0", "0.999", "ReverseLogarithmic"),
    ),
    Rule(
        "reverse logarithmic ranges are not negative",
        (f"{CONTINUOUS_0}.MinValue", "from 0"),
        continuous("-0.1", "0.5", "ReverseLogarithmic"),
        continuous("0.5", "0.9", "ReverseLogarithmic"),
    ),
    Rule(
        "reverse logarithmic scaling is for continuous ranges",
        (f"{INTEGER_0}.ScalingType", "continuous"),
        integer("0", "1", "ReverseLogarithmic"),
        integer("0", "1", "Linear"),
    ),
    Rule(
        "something is tuned",
        ("HyperParameterTuningJobConfig.ParameterRanges", "at least one"),
        {RANGES: MISSING},
        {"Autotune": {"Mode": "Enabled"}},
    ),
    Rule(
        "a hyperparameter has one range",
        ("HyperParameterTuningJobConfig.ParameterRanges", "one range"),
        {RANGES: {"ContinuousParameterRanges": [X, X]}},
        {RANGES: {"ContinuousParameterRanges": [X, {**X, "Name": "y"}]}},
    ),
    Rule(
        "a category is given once",
        ("CategoricalParameterRanges[0].Values", "once"),
        {f"{RANGES}__CategoricalParameterRanges": [{"Name": "c", "Values": ["red", "red"]}]},
        {f"{RANGES}__CategoricalParameterRanges": [{"Name": "c", "Values": ["red", "Red"]}]},
    ),
    Rule(
        "static or tuned",
        ("TrainingJobDefinition.StaticHyperParameters.x", "static or tuned"),
        {f"{STATIC}__x": "1"},
        {f"{STATIC}__X": "1"},
    ),
    Rule(
        "at most 30 are tuned",
        ("HyperParameterTuningJobConfig.ParameterRanges", "30"),
        {f"{RANGES}__IntegerParameterRanges": integers(30)["IntegerParameterRanges"]},
        {f"{RANGES}__IntegerParameterRanges": integers(29)["IntegerParameterRanges"]},
    ),
    Rule(
        "at most 100 hyperparameters, AMT's own among them",
        ("TrainingJobDefinition.StaticHyperParameters", "100"),
        many_static(99),
        many_static(98),
    ),
    Rule(
        "auto parameters are for Autotune",
        ("HyperParameterTuningJobConfig.ParameterRanges.AutoParameters", "Autotune"),
        {f"{RANGES}__AutoParameters": [{"Name": "a", "ValueHint": "0.1"}]},
        {
            f"{RANGES}__AutoParameters": [{"Name": "a", "ValueHint": "0.1"}],
            "Autotune": {"Mode": "Enabled"},
        },
    ),
    # --- strategies ---
    Rule(
        "Hyperband stops early by itself",
        ("HyperParameterTuningJobConfig.TrainingJobEarlyStoppingType", "Off"),
        {**hyperband(MaxResource=9), f"{CONFIG}__TrainingJobEarlyStoppingType": "Auto"},
        {**hyperband(MaxResource=9), f"{CONFIG}__TrainingJobEarlyStoppingType": "Off"},
    ),
    Rule(
        "a strategy config is for Hyperband",
        ("HyperParameterTuningJobConfig.StrategyConfig", "Hyperband"),
        {HYPERBAND: {"MaxResource": 9}},
        hyperband(MaxResource=9),
    ),
    Rule(
        "Hyperband knows the most resources",
        ("HyperbandStrategyConfig.MaxResource", "inferred"),
        hyperband(),
        hyperband({"epochs": "9"}),
    ),
    Rule(
        "the most resources are inferred from a number",
        ("HyperbandStrategyConfig.MaxResource", "inferred"),
        hyperband({"n-epochs": "many"}),
        hyperband({"n-epochs": '"9"'}),
    ),
    *(
        Rule(
            f"the most resources are inferred from {key}",
            ("HyperbandStrategyConfig.MaxResource", "inferred"),
            hyperband({f"{key}s": "9"}),
            hyperband({key: "9"}),
        )
        for key in ("numepochs", "n_epochs", "num_epochs")
    ),
    Rule(
        "Hyperband's most resources",
        ("HyperbandStrategyConfig.MaxResource", "20000"),
        hyperband(MaxResource=20_001),
        hyperband(MaxResource=20_000),
    ),
    Rule(
        "Hyperband's least resources are below the most",
        ("HyperbandStrategyConfig.MinResource", "below"),
        hyperband(MinResource=9, MaxResource=9),
        hyperband(MinResource=8, MaxResource=9),
    ),
    Rule(
        "Hyperband's least resources are below those inferred",
        ("HyperbandStrategyConfig.MinResource", "below"),
        hyperband({"epochs": "9"}, MinResource=10),
        hyperband({"epochs": "9"}, MinResource=3),
    ),
    Rule(
        "Grid takes categories",
        ("HyperParameterTuningJobConfig.ParameterRanges.ContinuousParameterRanges", "categorical"),
        {**GRID, RANGES: {**COLOURS, "ContinuousParameterRanges": [X]}},
        GRID,
    ),
    Rule(
        "Grid takes no integer ranges",
        ("HyperParameterTuningJobConfig.ParameterRanges.IntegerParameterRanges", "categorical"),
        {**GRID, RANGES: integers(1)},
        GRID,
    ),
    Rule(
        "Grid tries each combination",
        ("HyperParameterTuningJobConfig.ResourceLimits.MaxNumberOfTrainingJobs", "2"),
        {**GRID, f"{LIMITS}__MaxNumberOfTrainingJobs": 3},
        {**GRID, f"{LIMITS}__MaxNumberOfTrainingJobs": 2},
    ),
    # --- times ---
    Rule(
        "a training job's time",
        ("TrainingJobDefinition.StoppingCondition.MaxRuntimeInSeconds", "2419200"),
        {f"{STOPPING}__MaxRuntimeInSeconds": 28 * 86_400 + 1},
        {f"{STOPPING}__MaxRuntimeInSeconds": 28 * 86_400},
    ),
    Rule(
        "spot waits",
        ("TrainingJobDefinition.StoppingCondition.MaxWaitTimeInSeconds",),
        {f"{DEFINITION}__EnableManagedSpotTraining": True},
        {f"{DEFINITION}__EnableManagedSpotTraining": True, f"{STOPPING}__MaxWaitTimeInSeconds": 86_400},
    ),
    Rule(
        "spot waits as long as it trains",
        ("TrainingJobDefinition.StoppingCondition.MaxWaitTimeInSeconds", "86400"),
        {f"{DEFINITION}__EnableManagedSpotTraining": True, f"{STOPPING}__MaxWaitTimeInSeconds": 86_399},
        {
            f"{DEFINITION}__EnableManagedSpotTraining": True,
            f"{STOPPING}__MaxWaitTimeInSeconds": 90_000,
            f"{DEFINITION}__CheckpointConfig": {"S3Uri": "s3://checkpoints/here"},
        },
    ),
    # --- what trains ---
    Rule(
        "one definition or several",
        ("TrainingJobDefinitions", "exactly one"),
        {"TrainingJobDefinitions": [definition(DefinitionName="a")]},
    ),
    Rule("a definition is given", ("TrainingJobDefinition", "exactly one"), {DEFINITION: MISSING}),
    Rule(
        "an image or an algorithm",
        ("TrainingJobDefinition.AlgorithmSpecification.TrainingImage", "exactly one"),
        {f"{DEFINITION}__AlgorithmSpecification__AlgorithmName": "churn"},
    ),
    Rule(
        "an image",
        ("TrainingJobDefinition.AlgorithmSpecification.TrainingImage", "exactly one"),
        {f"{DEFINITION}__AlgorithmSpecification__TrainingImage": MISSING},
    ),
    Rule(
        "resources",
        ("TrainingJobDefinition.ResourceConfig", "exactly one"),
        {f"{DEFINITION}__ResourceConfig": MISSING},
    ),
    Rule(
        "resources of one kind",
        ("TrainingJobDefinition.ResourceConfig", "exactly one"),
        {TUNING_RESOURCES: INSTANCE},
        {TUNING_RESOURCES: INSTANCE, f"{DEFINITION}__ResourceConfig": MISSING},
    ),
    Rule(
        "instances of one kind",
        ("TrainingJobDefinition.HyperParameterTuningResourceConfig.InstanceType", "InstanceConfigs"),
        {
            TUNING_RESOURCES: {"InstanceType": "ml.m5.large", "InstanceConfigs": [INSTANCE]},
            f"{DEFINITION}__ResourceConfig": MISSING,
        },
        {
            TUNING_RESOURCES: {"InstanceConfigs": [INSTANCE], "AllocationStrategy": "Prioritized"},
            f"{DEFINITION}__ResourceConfig": MISSING,
        },
    ),
    # --- several definitions ---
    *(
        Rule(
            f"each of several definitions has {member}",
            (f"TrainingJobDefinitions[1].{member}", "required"),
            several({}, {member: MISSING}),
            several({}, {}),
        )
        for member in ("DefinitionName", "TuningObjective", "HyperParameterRanges")
    ),
    Rule(
        "names of definitions differ",
        ("TrainingJobDefinitions", "unique"),
        several({}, {"DefinitionName": "a"}),
        several({}, {"DefinitionName": "A1"}),
    ),
    Rule(
        "definitions agree on what is better",
        ("TrainingJobDefinitions[1].TuningObjective.Type", "Maximize"),
        several({}, {"TuningObjective": MINIMIZE}),
        several({"TuningObjective": MINIMIZE}, {"TuningObjective": MINIMIZE}),
    ),
    Rule(
        "the objective of each of several definitions is one of its metrics",
        ("TrainingJobDefinitions[1].TuningObjective.MetricName", "MetricDefinitions"),
        several({}, {"TuningObjective": {**OBJECTIVE, "MetricName": "loss"}}),
        several(
            {},
            {
                "TuningObjective": {**OBJECTIVE, "MetricName": "loss"},
                "AlgorithmSpecification__MetricDefinitions__0__Name": "loss",
            },
        ),
    ),
    Rule(
        "no early stopping of several definitions",
        ("HyperParameterTuningJobConfig.TrainingJobEarlyStoppingType", "several"),
        {**several({}, {}), f"{CONFIG}__TrainingJobEarlyStoppingType": "Auto"},
        {**several({}, {}), f"{CONFIG}__TrainingJobEarlyStoppingType": "Off"},
    ),
    Rule(
        "environments of several definitions",
        ("TrainingJobDefinitions", "48"),
        several({"Environment": environment(24)}, {"Environment": environment(25)}),
        several({"Environment": environment(24)}, {"Environment": environment(24)}),
    ),
    # --- tags ---
    Rule(
        "tags of AWS",
        ("Tags[1].Key", "aws:"),
        {"Tags": [{"Key": "a", "Value": ""}, {"Key": "aws:b", "Value": ""}]},
        {"Tags": [{"Key": "a", "Value": ""}, {"Key": "b:aws:", "Value": ""}]},
    ),
    Rule(
        "tags once",
        ("Tags[1].Key", "once"),
        {"Tags": [{"Key": "a", "Value": ""}, {"Key": "a", "Value": ""}]},
        {"Tags": [{"Key": "a", "Value": ""}, {"Key": "A", "Value": ""}]},
    ),
]
NAMES = [rule.name for rule in RULES]


def refused(wire: Wire, changes: dict[str, Any], named: tuple[str, ...]) -> None:
    """Send a request that must be refused by field and limit, with advice, and leave nothing behind."""
    refusal = wire.refusal("CreateHyperParameterTuningJob", tuning_request("bad", **changes))
    assert (refusal.status, refusal.code) == (400, "ValidationException"), refusal.message
    assert named[0] in refusal.message
    for words in named:
        assert words in refusal.message
    assert "Fix: " in refusal.message
    left = wire.refusal("DescribeHyperParameterTuningJob", {"HyperParameterTuningJobName": "bad"})
    assert left.code == "ResourceNotFound"


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_a_request_that_breaks_a_rule_is_refused(wire: Wire, rule: Rule) -> None:
    refused(wire, rule.bad, rule.named)


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_a_request_that_keeps_it_is_accepted(wire: Wire, rule: Rule) -> None:
    request = tuning_request("good", **rule.good)
    assert wire.send("CreateHyperParameterTuningJob", request)["HyperParameterTuningJobArn"]


def test_names_of_rules_are_different() -> None:
    assert len(set(NAMES)) == len(NAMES)


def test_every_broken_rule_is_told(wire: Wire) -> None:
    changes = {
        **continuous("2", "1"),
        f"{STATIC}__x": "1",
        f"{DEFINITION}__EnableManagedSpotTraining": True,
    }
    for name in (f"{CONTINUOUS_0}.MinValue", f"{DEFINITION}.StaticHyperParameters.x", "MaxWaitTimeInSeconds"):
        refused(wire, changes, (name,))


# --- warm start ------------------------------------------------------------------------------------


def test_the_parents_of_a_warm_start(wire: Wire) -> None:
    """One parent, and what may and may not start from it."""
    hangs = {STATIC: {"sequence": "hang"}}
    wire.tune(tuning_request("parent"))
    wire.send("CreateHyperParameterTuningJob", tuning_request("runs", **hangs))
    wire.tune(tuning_request("two", **several({}, {})))
    first = "WarmStartConfig.ParentHyperParameterTuningJobs[0].HyperParameterTuningJobName"
    second = "WarmStartConfig.ParentHyperParameterTuningJobs[1].HyperParameterTuningJobName"
    identical = {"kind": "IdenticalDataAndAlgorithm"}
    cases: list[tuple[tuple[str, ...], dict[str, Any]]] = [
        ((first, "nobody"), warm_start("nobody")),
        ((second, "nobody"), warm_start("parent", "nobody")),
        ((first, "Completed, Stopped or Failed"), warm_start("runs")),
        ((first, "one training job definition"), warm_start("two")),
        ((second, "once"), warm_start("parent", "PARENT")),
        (("WarmStartConfig", "several"), {**several({}, {}), **warm_start("parent")}),
        (("WarmStartConfig", "Bayesian and Random"), {**GRID, **warm_start("parent")}),
        (("WarmStartConfig", "Bayesian and Random"), {**hyperband(MaxResource=9), **warm_start("parent")}),
        (
            ("HyperParameterTuningJobObjective.Type", "Maximize"),
            {f"{CONFIG}__HyperParameterTuningJobObjective__Type": "Minimize", **warm_start("parent")},
        ),
        (
            ("HyperParameterTuningJobObjective.MetricName", "objective"),
            {
                f"{CONFIG}__HyperParameterTuningJobObjective__MetricName": "loss",
                f"{METRICS}__0__Name": "loss",
                **warm_start("parent"),
            },
        ),
        (
            ("TrainingJobDefinition.StaticHyperParameters", "added: more"),
            {f"{STATIC}__more": "1", **warm_start("parent")},
        ),
        (
            ("TrainingJobDefinition.StaticHyperParameters", "missing: sequence"),
            {STATIC: MISSING, **warm_start("parent")},
        ),
        (("IntegerParameterRanges", "type"), {**integer("0", "9"), **warm_start("parent")}),
        (
            ("TrainingJobDefinition.AlgorithmSpecification.TrainingImage", "IdenticalDataAndAlgorithm"),
            {
                f"{DEFINITION}__AlgorithmSpecification__TrainingImage": "echo:1",
                **warm_start("parent", **identical),
            },
        ),
    ]
    for named, changes in cases:
        refused(wire, changes, named)

    kept = [
        warm_start("parent"),
        warm_start("PARENT", **identical),
        {f"{DEFINITION}__AlgorithmSpecification__TrainingImage": "echo:1", **warm_start("parent")},
        {**continuous("-3", "3", "Linear"), **warm_start("parent", **identical)},
        {f"{STATIC}__sequence": "0.25", **warm_start("parent", **identical)},
        {f"{CONFIG}__Strategy": "Bayesian", **warm_start("parent")},
    ]
    for number, changes in enumerate(kept):
        ended = wire.tune(tuning_request(f"kept-{number}", **changes))
        assert ended["HyperParameterTuningJobStatus"] == "Completed"
    wire("StopHyperParameterTuningJob", HyperParameterTuningJobName="runs")
    wire.tuning_job_over("runs")
    # Stopped, it may be a parent.
    assert wire.tune(tuning_request("after", **warm_start("runs", "parent")))


def test_a_warm_start_changes_ten_values_at_most(wire: Wire) -> None:
    static = {f"n{number}": "1" for number in range(11)}
    wire.tune(tuning_request("parent", **{STATIC: {"sequence": "0.5", **static}}))

    def child(changed: int) -> dict[str, Any]:
        values = {name: "2" if position < changed else "1" for position, name in enumerate(static)}
        return {STATIC: {"sequence": "0.5", **values}, **warm_start("parent")}

    refused(wire, child(11), ("TrainingJobDefinition.StaticHyperParameters", "at most 10 changes"))
    assert wire.tune(tuning_request("child", **child(10)))["HyperParameterTuningJobStatus"] == "Completed"


# --- CreateTrainingJob -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "changes"),
    [
        ("AlgorithmSpecification.TrainingImage", {"AlgorithmSpecification__TrainingImage": MISSING}),
        ("AlgorithmSpecification.TrainingImage", {"AlgorithmSpecification__AlgorithmName": "churn"}),
        (
            "AlgorithmSpecification.MetricDefinitions[0].Regex",
            {"AlgorithmSpecification__MetricDefinitions__0__Regex": "("},
        ),
        (
            "StoppingCondition.MaxRuntimeInSeconds",
            {"StoppingCondition__MaxRuntimeInSeconds": 28 * 86_400 + 1},
        ),
        ("StoppingCondition.MaxWaitTimeInSeconds", {"EnableManagedSpotTraining": True}),
        ("StoppingCondition.MaxWaitTimeInSeconds", {"StoppingCondition__MaxWaitTimeInSeconds": 60}),
        ("Tags", {"Tags": [{"Key": "aws:b", "Value": ""}]}),
    ],
)
def test_a_training_job_that_breaks_a_rule(wire: Wire, named: str, changes: dict[str, Any]) -> None:
    refusal = wire.refusal("CreateTrainingJob", training_request("bad", **changes))

    assert (refusal.status, refusal.code) == (400, "ValidationException")
    assert named in refusal.message
    assert wire("ListTrainingJobs")["TrainingJobSummaries"] == []


def test_changes_make_what_is_missing() -> None:
    """The helper that all of the above rests on."""
    assert with_changes({"a": {"b": [1]}}, {"a__b__0": 2, "c__d": 3, "a__x": MISSING}) == {
        "a": {"b": [2]},
        "c": {"d": 3},
    }
