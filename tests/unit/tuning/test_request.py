from __future__ import annotations

from typing import Any

import pytest

from airflow_amt.tuning import check_documented_rules, estimated_max_compute, search_space_size
from tests.unit.requests import create_request

CONFIG = "HyperParameterTuningJobConfig"
DEFINITION = "TrainingJobDefinition"
RANGES = f"{CONFIG}.ParameterRanges"
CATEGORICAL = {"CategoricalParameterRanges": [{"Name": "booster", "Values": ["tree", "linear"]}]}


def test_a_good_request_has_no_problem() -> None:
    assert check_documented_rules(create_request()) == []


def lr(**bounds: str) -> dict[str, Any]:
    return {
        "HyperParameterTuningJobConfig__ParameterRanges": {
            "ContinuousParameterRanges": [{"Name": "lr", "MinValue": "0.1", "MaxValue": "0.5", **bounds}]
        }
    }


def depth(**bounds: str) -> dict[str, Any]:
    return {
        "HyperParameterTuningJobConfig__ParameterRanges": {
            "IntegerParameterRanges": [{"Name": "depth", "MinValue": "1", "MaxValue": "9", **bounds}]
        }
    }


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        (
            f"{CONFIG}.ResourceLimits.MaxRuntimeInSeconds",
            {"HyperParameterTuningJobConfig__ResourceLimits__MaxRuntimeInSeconds": 60},
        ),
        (
            f"{CONFIG}.TuningJobCompletionCriteria.BestObjectiveNotImproving.MaxNumberOfTrainingJobsNotImproving",
            {
                "HyperParameterTuningJobConfig__TuningJobCompletionCriteria": {
                    "BestObjectiveNotImproving": {"MaxNumberOfTrainingJobsNotImproving": -1}
                }
            },
        ),
        (
            f"{CONFIG}.TuningJobCompletionCriteria.TargetObjectiveMetricValue",
            {
                "HyperParameterTuningJobConfig__TuningJobCompletionCriteria": {
                    "TargetObjectiveMetricValue": float("nan")
                }
            },
        ),
        (f"{RANGES}.ContinuousParameterRanges[0].MinValue", lr(MinValue="0.6")),
        (f"{RANGES}.ContinuousParameterRanges[0].MinValue", lr(MinValue="low")),
        (f"{RANGES}.ContinuousParameterRanges[0].MaxValue", lr(MaxValue="inf")),
        (f"{RANGES}.ContinuousParameterRanges[0].MinValue", lr(MinValue="0", ScalingType="Logarithmic")),
        (
            f"{RANGES}.ContinuousParameterRanges[0].MaxValue",
            lr(MaxValue="1", ScalingType="ReverseLogarithmic"),
        ),
        (
            f"{RANGES}.ContinuousParameterRanges[0].MinValue",
            lr(MinValue="-1", ScalingType="ReverseLogarithmic"),
        ),
        (f"{RANGES}.IntegerParameterRanges[0].MinValue", depth(MinValue="1.5")),
        (f"{RANGES}.IntegerParameterRanges[0].ScalingType", depth(ScalingType="ReverseLogarithmic")),
        (
            f"{RANGES}.CategoricalParameterRanges[0].Values",
            {
                "HyperParameterTuningJobConfig__ParameterRanges": {
                    "CategoricalParameterRanges": [{"Name": "booster", "Values": ["tree", "tree"]}]
                }
            },
        ),
        (RANGES, {"HyperParameterTuningJobConfig__ParameterRanges": None}),
        (
            RANGES,
            {
                "HyperParameterTuningJobConfig__ParameterRanges": {
                    "IntegerParameterRanges": [{"Name": "a", "MinValue": "1", "MaxValue": "2"}] * 2
                }
            },
        ),
        (
            RANGES,
            {
                "HyperParameterTuningJobConfig__ParameterRanges": {
                    "IntegerParameterRanges": [
                        {"Name": f"p{number}", "MinValue": "1", "MaxValue": "2"} for number in range(31)
                    ]
                }
            },
        ),
        (
            f"{DEFINITION}.StaticHyperParameters.lr",
            {"TrainingJobDefinition__StaticHyperParameters": {"lr": "1"}},
        ),
        (DEFINITION, {"TrainingJobDefinition": None}),
        (
            f"{DEFINITION}.AlgorithmSpecification.TrainingImage",
            {"TrainingJobDefinition__AlgorithmSpecification__TrainingImage": None},
        ),
        (
            f"{DEFINITION}.AlgorithmSpecification.TrainingImage",
            {"TrainingJobDefinition__AlgorithmSpecification__AlgorithmName": "churn"},
        ),
        (
            f"{DEFINITION}.AlgorithmSpecification.MetricDefinitions[0].Regex",
            {
                "TrainingJobDefinition__AlgorithmSpecification__MetricDefinitions": [
                    {"Name": "accuracy", "Regex": "("}
                ]
            },
        ),
        (
            f"{DEFINITION}.AlgorithmSpecification.MetricDefinitions[0].Regex",
            {
                "TrainingJobDefinition__AlgorithmSpecification__MetricDefinitions": [
                    {"Name": "accuracy", "Regex": "a=.*"}
                ]
            },
        ),
        (
            f"{CONFIG}.HyperParameterTuningJobObjective.MetricName",
            {"HyperParameterTuningJobConfig__HyperParameterTuningJobObjective__MetricName": "loss"},
        ),
        (
            f"{CONFIG}.HyperParameterTuningJobObjective",
            {"HyperParameterTuningJobConfig__HyperParameterTuningJobObjective": None},
        ),
        (f"{DEFINITION}.ResourceConfig", {"TrainingJobDefinition__ResourceConfig": None}),
        (
            f"{DEFINITION}.StoppingCondition.MaxWaitTimeInSeconds",
            {"TrainingJobDefinition__EnableManagedSpotTraining": True},
        ),
        (
            f"{DEFINITION}.StoppingCondition.MaxWaitTimeInSeconds",
            {"TrainingJobDefinition__StoppingCondition__MaxWaitTimeInSeconds": 60},
        ),
        (
            f"{CONFIG}.TrainingJobEarlyStoppingType",
            {
                "HyperParameterTuningJobConfig__Strategy": "Hyperband",
                "HyperParameterTuningJobConfig__TrainingJobEarlyStoppingType": "Auto",
            },
        ),
        (
            f"{CONFIG}.StrategyConfig",
            {"HyperParameterTuningJobConfig__StrategyConfig": {"HyperbandStrategyConfig": {}}},
        ),
        (
            f"{CONFIG}.StrategyConfig.HyperbandStrategyConfig.MinResource",
            {
                "HyperParameterTuningJobConfig__Strategy": "Hyperband",
                "HyperParameterTuningJobConfig__StrategyConfig": {
                    "HyperbandStrategyConfig": {"MinResource": 9, "MaxResource": 3}
                },
            },
        ),
        (
            "WarmStartConfig",
            {
                "HyperParameterTuningJobConfig__Strategy": "Hyperband",
                "WarmStartConfig": {"WarmStartType": "TransferLearning"},
            },
        ),
        (
            f"{CONFIG}.ResourceLimits.MaxNumberOfTrainingJobs",
            {
                "HyperParameterTuningJobConfig__Strategy": "Grid",
                "HyperParameterTuningJobConfig__ParameterRanges": CATEGORICAL,
            },
        ),
    ],
)
def test_one_broken_rule_is_named(field: str, changes: dict[str, Any]) -> None:
    found = check_documented_rules(create_request(**changes))
    assert [problem.field for problem in found] == [field]
    assert all(problem.limit and problem.fix for problem in found)


def test_one_and_several_definitions_exclude_each_other() -> None:
    found = check_documented_rules(create_request(TrainingJobDefinitions=[{}]))
    assert found[0].field == "TrainingJobDefinitions"
    assert "exactly one" in found[0].limit


def test_grid_takes_categorical_ranges_only() -> None:
    found = check_documented_rules(create_request(HyperParameterTuningJobConfig__Strategy="Grid"))
    assert [problem.field for problem in found] == [
        f"{RANGES}.IntegerParameterRanges",
        f"{RANGES}.ContinuousParameterRanges",
    ]


def test_several_definitions() -> None:
    request = create_request(
        TrainingJobDefinition=None, HyperParameterTuningJobConfig__TrainingJobEarlyStoppingType="Auto"
    )
    definition = create_request()["TrainingJobDefinition"]
    own = {
        "TuningObjective": {"Type": "Maximize", "MetricName": "accuracy"},
        "HyperParameterRanges": CATEGORICAL,
    }
    request["TrainingJobDefinitions"] = [
        {**definition, **own, "DefinitionName": "a"},
        {**definition, **own, "DefinitionName": "a"},
        {**definition, **own},
    ]
    assert [problem.field for problem in check_documented_rules(request)] == [
        "TrainingJobDefinitions[2].DefinitionName",
        "TrainingJobDefinitions",
        f"{CONFIG}.TrainingJobEarlyStoppingType",
    ]
    assert search_space_size(request) == 6


def test_metrics_of_builtin_algorithms_need_no_definitions() -> None:
    request = create_request(TrainingJobDefinition__AlgorithmSpecification__MetricDefinitions=None)
    assert check_documented_rules(request) == []
    (problem,) = check_documented_rules(request, builtin_algorithms=False)
    assert problem.field == f"{CONFIG}.HyperParameterTuningJobObjective.MetricName"


@pytest.mark.parametrize(
    "junk", [{}, {"TrainingJobDefinition": 3, CONFIG: "x"}, {CONFIG: {"ResourceLimits": []}}]
)
def test_wrong_structures_are_left_to_the_service_model(junk: dict[str, Any]) -> None:
    assert all(problem.field for problem in check_documented_rules(junk))


def test_the_search_space() -> None:
    assert search_space_size(create_request()) is None
    assert search_space_size(create_request(HyperParameterTuningJobConfig__ParameterRanges=CATEGORICAL)) == 2
    both = {**CATEGORICAL, "IntegerParameterRanges": [{"Name": "d", "MinValue": "1", "MaxValue": "9"}]}
    assert search_space_size(create_request(HyperParameterTuningJobConfig__ParameterRanges=both)) == 18
    assert search_space_size({}) is None


def test_estimated_max_compute_is_the_guides_formula() -> None:
    assert estimated_max_compute(create_request()) is None
    request = create_request(HyperParameterTuningJobConfig__ResourceLimits__MaxRuntimeInSeconds=3600)
    assert estimated_max_compute(request) == 3600 * 2 * 1
    request["TrainingJobDefinition"]["ResourceConfig"]["InstanceCount"] = 4
    assert estimated_max_compute(request) == 3600 * 2 * 4
    del request["TrainingJobDefinition"]
    request["TrainingJobDefinitions"] = [
        {"ResourceConfig": {"InstanceGroups": [{"InstanceCount": 2}, {"InstanceCount": 3}]}},
        {
            "HyperParameterTuningResourceConfig": {
                "InstanceConfigs": [{"InstanceCount": 1}, {"InstanceCount": 4}]
            }
        },
        {},
    ]
    assert estimated_max_compute(request) == 3600 * 2 * 5
