from __future__ import annotations

from typing import Any

import pytest

from airflow_amt.tuning import check_documented_rules, estimated_max_compute, search_space_size
from airflow_amt.tuning.request import hyperband_resources, objective, tag_problems
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


def hyperband(static: dict[str, str] | None = None, **resources: Any) -> dict[str, Any]:
    return {
        "HyperParameterTuningJobConfig__Strategy": "Hyperband",
        "HyperParameterTuningJobConfig__StrategyConfig": {"HyperbandStrategyConfig": resources},
        "TrainingJobDefinition__StaticHyperParameters": static or {},
    }


def warm_start(*parents: str | None) -> dict[str, Any]:
    named = [{} if parent is None else {"HyperParameterTuningJobName": parent} for parent in parents]
    return {
        "WarmStartConfig": {
            "ParentHyperParameterTuningJobs": named,
            "WarmStartType": "TransferLearning",
        }
    }


def several(*changes: dict[str, Any]) -> dict[str, Any]:
    """A request with definitions a, b, ... that are correct but for the changes of each."""
    request = create_request(
        TrainingJobDefinition=None,
        HyperParameterTuningJobConfig__HyperParameterTuningJobObjective=None,
        HyperParameterTuningJobConfig__ParameterRanges=None,
    )
    request["TrainingJobDefinitions"] = [
        {
            **create_request()["TrainingJobDefinition"],
            "DefinitionName": chr(ord("a") + position),
            "TuningObjective": {"Type": "Maximize", "MetricName": "accuracy"},
            "HyperParameterRanges": CATEGORICAL,
            **own,
        }
        for position, own in enumerate(changes)
    ]
    return request


HYPERBAND = f"{CONFIG}.StrategyConfig.HyperbandStrategyConfig"
PARENTS = "WarmStartConfig.ParentHyperParameterTuningJobs"
INSTANCE = {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 10}


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        (f"{HYPERBAND}.MaxResource", hyperband()),
        (f"{HYPERBAND}.MaxResource", hyperband({"epochs": "many", "rounds": "7"})),
        (f"{HYPERBAND}.MaxResource", hyperband({"epochs": "0"})),
        (f"{HYPERBAND}.MaxResource", hyperband(MaxResource=20_001)),
        (f"{HYPERBAND}.MinResource", hyperband(MinResource=20_001, MaxResource=30)),
        (f"{HYPERBAND}.MinResource", hyperband(MinResource=30, MaxResource=30)),
        (f"{HYPERBAND}.MinResource", hyperband({"n_epochs": '"30"'}, MinResource=30)),
        (f"{DEFINITION}.StaticHyperParameters.epochs", hyperband({"epochs": "20001"})),
        (f"{PARENTS}[1].HyperParameterTuningJobName", warm_start("one", "ONE")),
        (f"{PARENTS}[0].HyperParameterTuningJobName", warm_start(None)),
        (PARENTS, warm_start("a", "b", "c", "d", "e", "f")),
        (
            f"{RANGES}.AutoParameters",
            {
                "HyperParameterTuningJobConfig__ParameterRanges": {
                    "AutoParameters": [{"Name": "lr", "ValueHint": "0.1"}]
                }
            },
        ),
        (
            RANGES,
            {
                "Autotune": {"Mode": "Enabled"},
                "HyperParameterTuningJobConfig__ParameterRanges": {
                    **CATEGORICAL,
                    "AutoParameters": [{"Name": "booster", "ValueHint": "tree"}],
                },
            },
        ),
        (
            f"{DEFINITION}.StaticHyperParameters",
            {"TrainingJobDefinition__StaticHyperParameters": {f"p{number}": "1" for number in range(97)}},
        ),
        (
            f"{DEFINITION}.StoppingCondition.MaxRuntimeInSeconds",
            {"TrainingJobDefinition__StoppingCondition__MaxRuntimeInSeconds": 28 * 86_400 + 1},
        ),
        (
            f"{DEFINITION}.HyperParameterTuningResourceConfig.InstanceCount",
            {
                "TrainingJobDefinition__ResourceConfig": None,
                "TrainingJobDefinition__HyperParameterTuningResourceConfig": {
                    "InstanceCount": 1,
                    "InstanceConfigs": [INSTANCE],
                },
            },
        ),
        ("Tags[1].Key", {"Tags": [{"Key": "k", "Value": "a"}, {"Key": "k", "Value": "b"}]}),
        ("Tags[0].Key", {"Tags": [{"Key": "AWS:own", "Value": ""}]}),
        (f"{RANGES}.ContinuousParameterRanges[0].MaxValue", lr(MaxValue="1_0")),
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
        ("WarmStartConfig", {**hyperband(MaxResource=9), **warm_start("parent")}),
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


@pytest.mark.parametrize(
    "changes",
    [
        hyperband(MaxResource=20_000),
        hyperband(MinResource=1, MaxResource=2),
        hyperband({"epochs": "5"}),
        hyperband({"num_epochs": '"5"'}, MinResource=4),
        {
            "HyperParameterTuningJobConfig__Strategy": "Hyperband",
            "HyperParameterTuningJobConfig__TrainingJobEarlyStoppingType": "Off",
        },
        warm_start("a", "b", "c", "d", "e"),
        lr(MinValue="0.1", MaxValue="0.1"),
        lr(MinValue="1e-9", MaxValue="1", ScalingType="Logarithmic"),
        lr(MinValue="0", MaxValue="0.99999", ScalingType="ReverseLogarithmic"),
        depth(MinValue="-3", MaxValue="4", ScalingType="Linear"),
        depth(MinValue="1", MaxValue="4", ScalingType="Logarithmic"),
        {
            "Autotune": {"Mode": "Enabled"},
            "HyperParameterTuningJobConfig__ParameterRanges": {
                "AutoParameters": [{"Name": "lr", "ValueHint": "0.1"}]
            },
        },
        {"Autotune": {"Mode": "Enabled"}, "HyperParameterTuningJobConfig__ParameterRanges": None},
        {"HyperParameterTuningJobConfig__ResourceLimits__MaxNumberOfTrainingJobs": None},
        {"HyperParameterTuningJobConfig__ResourceLimits__MaxParallelTrainingJobs": 9},
        {"HyperParameterTuningJobConfig__TrainingJobEarlyStoppingType": "Auto"},
        {
            "HyperParameterTuningJobConfig__Strategy": "Grid",
            "HyperParameterTuningJobConfig__ParameterRanges": CATEGORICAL,
            "HyperParameterTuningJobConfig__ResourceLimits__MaxNumberOfTrainingJobs": 2,
        },
        {
            "HyperParameterTuningJobConfig__Strategy": "Grid",
            "HyperParameterTuningJobConfig__ParameterRanges": CATEGORICAL,
            "HyperParameterTuningJobConfig__ResourceLimits__MaxNumberOfTrainingJobs": None,
        },
        {"TrainingJobDefinition__StaticHyperParameters": {f"p{number}": "1" for number in range(96)}},
        {
            "TrainingJobDefinition__EnableManagedSpotTraining": True,
            "TrainingJobDefinition__StoppingCondition__MaxWaitTimeInSeconds": 3600,
            "TrainingJobDefinition__CheckpointConfig": {"S3Uri": "s3://checkpoints/churn"},
            "TrainingJobDefinition__RetryStrategy": {"MaximumRetryAttempts": 30},
        },
        {"TrainingJobDefinition__StoppingCondition__MaxRuntimeInSeconds": 28 * 86_400},
        {
            "TrainingJobDefinition__ResourceConfig": None,
            "TrainingJobDefinition__HyperParameterTuningResourceConfig": {"InstanceConfigs": [INSTANCE]},
        },
        {"Tags": [{"Key": "k", "Value": "a"}, {"Key": "K", "Value": "a"}, {"Key": "my-aws:k", "Value": ""}]},
    ],
)
def test_what_the_documentation_allows_passes(changes: dict[str, Any]) -> None:
    assert check_documented_rules(create_request(**changes), builtin_algorithms=False) == []


def test_an_algorithm_resource_brings_its_metrics() -> None:
    request = create_request(
        TrainingJobDefinition__AlgorithmSpecification={"AlgorithmName": "churn", "TrainingInputMode": "File"}
    )
    assert check_documented_rules(request, builtin_algorithms=False) == []


def test_the_resources_of_hyperband() -> None:
    def resources(**changes: Any) -> tuple[int, int] | None:
        request = create_request(**changes)
        return hyperband_resources(request, request["TrainingJobDefinition"])

    assert resources(**hyperband()) is None
    assert resources(**hyperband(MinResource=2, MaxResource=9)) == (2, 9)
    assert resources(**hyperband({"epochs": "7"}, MaxResource=9)) == (1, 9)
    assert resources(**hyperband({"num_epochs": "7"}, MinResource=2)) == (2, 7)
    assert resources(**hyperband({"epochs": "as many", "numepochs": '"8"', "n-epochs": "9"})) == (1, 8)


def test_tags_are_named_where_they_are() -> None:
    (problem,) = tag_problems([{"Key": "a", "Value": ""}, {"Key": "aws:b", "Value": ""}], "X.Tags")
    assert problem.field == "X.Tags[1].Key"


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


def test_several_correct_definitions() -> None:
    request = several({}, {})
    assert check_documented_rules(request) == []
    path, wanted = objective(request, request["TrainingJobDefinitions"][1], "TrainingJobDefinitions[1]")
    assert path == "TrainingJobDefinitions[1].TuningObjective"
    assert wanted["MetricName"] == "accuracy"


def test_a_list_of_one_definition_is_one_algorithm() -> None:
    request = several({})
    request[CONFIG]["TrainingJobEarlyStoppingType"] = "Auto"
    request.update(warm_start("parent"))
    assert check_documented_rules(request) == []


@pytest.mark.parametrize(
    ("field", "second"),
    [
        (
            "TrainingJobDefinitions[1].TuningObjective.Type",
            {"TuningObjective": {"Type": "Minimize", "MetricName": "accuracy"}},
        ),
        ("TrainingJobDefinitions", {"DefinitionName": "a"}),
        ("TrainingJobDefinitions[1].TuningObjective", {"TuningObjective": None}),
        ("TrainingJobDefinitions", {"Environment": {f"V{number}": "" for number in range(49)}}),
        (
            "TrainingJobDefinitions[1].HyperParameterRanges.IntegerParameterRanges[0].MinValue",
            {
                "HyperParameterRanges": {
                    "IntegerParameterRanges": [{"Name": "n", "MinValue": "x", "MaxValue": "1"}]
                }
            },
        ),
    ],
)
def test_one_of_several_definitions_is_wrong(field: str, second: dict[str, Any]) -> None:
    assert [problem.field for problem in check_documented_rules(several({}, second))] == [field]


def test_hyperband_needs_the_most_resources_of_each_definition() -> None:
    request = several({}, {"StaticHyperParameters": {}})
    request[CONFIG]["Strategy"] = "Hyperband"
    (problem,) = check_documented_rules(request)
    assert problem.field == f"{HYPERBAND}.MaxResource"
    assert "TrainingJobDefinitions[1].StaticHyperParameters" in problem.limit


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
