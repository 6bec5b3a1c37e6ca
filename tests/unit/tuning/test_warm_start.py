from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from airflow_amt.tuning import check_warm_start, prior_evaluations
from airflow_amt.tuning.warm_start import check_training_job_limit, launched_training_jobs
from tests.unit.requests import create_request, set_path

CONFIG = "HyperParameterTuningJobConfig"
DEFINITION = "TrainingJobDefinition"
RANGES = f"{CONFIG}.ParameterRanges"
PARENTS = "WarmStartConfig.ParentHyperParameterTuningJobs"
CHANNEL = {
    "ChannelName": "train",
    "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://data/one"}},
}


def child(*parents: str, kind: str = "TransferLearning", **changes: Any) -> dict[str, Any]:
    return create_request(
        WarmStartConfig={
            "ParentHyperParameterTuningJobs": [{"HyperParameterTuningJobName": name} for name in parents],
            "WarmStartType": kind,
        },
        **{"TrainingJobDefinition__InputDataConfig": [CHANNEL], **changes},
    )


def parent(**changes: Any) -> dict[str, Any]:
    """What Describe answers for a parent that fits :func:`child`, with what AMT adds."""
    description = create_request(TrainingJobDefinition__InputDataConfig=[CHANNEL])
    description["HyperParameterTuningJobStatus"] = "Completed"
    description[DEFINITION]["StaticHyperParameters"]["_tuning_objective_metric"] = "accuracy"
    for path, value in changes.items():
        set_path(description, path.replace("__", "."), value)
    return description


def fields(request: Mapping[str, Any], parents: Mapping[str, Any]) -> list[str]:
    found = check_warm_start(request, parents)
    assert all(problem.limit and problem.fix for problem in found)
    return [problem.field for problem in found]


@pytest.mark.parametrize("kind", ["TransferLearning", "IdenticalDataAndAlgorithm"])
@pytest.mark.parametrize("status", ["Completed", "Stopped", "Failed"])
def test_a_parent_that_fits(kind: str, status: str) -> None:
    assert check_warm_start(child("p", kind=kind), {"p": parent(HyperParameterTuningJobStatus=status)}) == []


def test_without_warm_start_there_is_nothing_to_check() -> None:
    assert check_warm_start(create_request(), {}) == []


@pytest.mark.parametrize("parents", [{"p": None}, {}])
def test_a_parent_that_does_not_exist(parents: dict[str, Any]) -> None:
    assert fields(child("p"), parents) == [f"{PARENTS}[0].HyperParameterTuningJobName"]


@pytest.mark.parametrize("status", ["InProgress", "Stopping", "Deleting", "DeleteFailed"])
def test_a_parent_that_is_not_over(status: str) -> None:
    parents = {"good": parent(), "p": parent(HyperParameterTuningJobStatus=status)}
    (problem,) = check_warm_start(child("good", "p"), parents)
    assert problem.field == f"{PARENTS}[1].HyperParameterTuningJobName"
    assert status in str(problem.value)


def test_a_parent_of_several_definitions() -> None:
    definition = parent()[DEFINITION]
    description = parent(TrainingJobDefinition=None)
    description["TrainingJobDefinitions"] = [definition, definition]
    assert fields(child("p"), {"p": description}) == [f"{PARENTS}[0].HyperParameterTuningJobName"]


def test_a_parent_with_a_list_of_one_definition() -> None:
    description = parent(TrainingJobDefinition=None)
    definition = parent()[DEFINITION]
    description["TrainingJobDefinitions"] = [
        {
            **definition,
            "DefinitionName": "a",
            "TuningObjective": description[CONFIG].pop("HyperParameterTuningJobObjective"),
            "HyperParameterRanges": description[CONFIG].pop("ParameterRanges"),
        }
    ]
    assert check_warm_start(child("p"), {"p": description}) == []


def test_parents_that_the_request_names_wrongly() -> None:
    request = child("p", "P")
    request["WarmStartConfig"]["ParentHyperParameterTuningJobs"].append({})
    assert fields(request, {"p": parent(), "P": parent()}) == [
        f"{PARENTS}[1].HyperParameterTuningJobName",
        f"{PARENTS}[2].HyperParameterTuningJobName",
    ]
    names = list("abcdef")
    assert fields(child(*names), {name: parent() for name in names}) == [PARENTS]


@pytest.mark.parametrize(
    ("field", "changes", "kind"),
    [
        (
            f"{CONFIG}.HyperParameterTuningJobObjective.MetricName",
            {"HyperParameterTuningJobConfig__HyperParameterTuningJobObjective__MetricName": "loss"},
            "TransferLearning",
        ),
        (
            f"{CONFIG}.HyperParameterTuningJobObjective.Type",
            {"HyperParameterTuningJobConfig__HyperParameterTuningJobObjective__Type": "Minimize"},
            "TransferLearning",
        ),
        (
            f"{DEFINITION}.StaticHyperParameters",
            {"TrainingJobDefinition__StaticHyperParameters__more": "1"},
            "TransferLearning",
        ),
        (
            f"{DEFINITION}.StaticHyperParameters",
            {"TrainingJobDefinition__StaticHyperParameters__epochs": None},
            "TransferLearning",
        ),
        (
            f"{DEFINITION}.AlgorithmSpecification.TrainingImage",
            {"TrainingJobDefinition__AlgorithmSpecification__TrainingImage": "churn:2"},
            "IdenticalDataAndAlgorithm",
        ),
        (
            f"{DEFINITION}.InputDataConfig",
            {"TrainingJobDefinition__InputDataConfig": None},
            "IdenticalDataAndAlgorithm",
        ),
        (
            f"{DEFINITION}.InputDataConfig",
            {
                "TrainingJobDefinition__InputDataConfig__0__DataSource__S3DataSource__S3Uri": "s3://data/two",
            },
            "IdenticalDataAndAlgorithm",
        ),
    ],
)
def test_a_parent_that_does_not_fit(field: str, changes: dict[str, Any], kind: str) -> None:
    description = parent()
    for path, value in changes.items():
        # A copy of the channel, which all requests here share.
        description[DEFINITION]["InputDataConfig"] = [
            {
                "ChannelName": "train",
                "DataSource": {"S3DataSource": dict(CHANNEL["DataSource"]["S3DataSource"])},  # type: ignore[index]
            }
        ]
        set_path(description, path.replace("__", "."), value)
    assert fields(child("p", kind=kind), {"p": description}) == [field]
    if kind == "IdenticalDataAndAlgorithm":
        assert check_warm_start(child("p"), {"p": description}) == []


def test_how_data_are_delivered_may_change() -> None:
    described = {**CHANNEL, "CompressionType": "None", "ContentType": "text/csv"}
    description = parent(TrainingJobDefinition__InputDataConfig=[described])
    assert check_warm_start(child("p", kind="IdenticalDataAndAlgorithm"), {"p": description}) == []


def test_a_tuned_hyperparameter_keeps_its_type() -> None:
    request = child("p")
    ranges = request[CONFIG]["ParameterRanges"]
    ranges["ContinuousParameterRanges"].append({"Name": "depth", "MinValue": "1", "MaxValue": "9"})
    del ranges["IntegerParameterRanges"]
    (problem,) = check_warm_start(request, {"p": parent()})
    assert problem.field == f"{RANGES}.ContinuousParameterRanges"
    assert problem.value == "depth"
    assert "IntegerParameterRanges" in problem.limit


def test_names_of_script_mode_are_nobodys_hyperparameters() -> None:
    request = child("p")
    request[DEFINITION]["StaticHyperParameters"]["sagemaker_submit_directory"] = '"s3://code/2.tar.gz"'
    request[DEFINITION]["StaticHyperParameters"]["sagemaker_program"] = '"train.py"'
    description = parent()
    description[DEFINITION]["StaticHyperParameters"]["sagemaker_submit_directory"] = '"s3://code/1.tar.gz"'
    assert check_warm_start(request, {"p": description}) == []


def moved(
    request: dict[str, Any], *, tuned: Mapping[str, list[str]], static: Mapping[str, str]
) -> dict[str, Any]:
    """Give a request these categorical and these static hyperparameters, and no others."""
    request[CONFIG]["ParameterRanges"] = {
        "CategoricalParameterRanges": [{"Name": name, "Values": values} for name, values in tuned.items()]
    }
    request[DEFINITION]["StaticHyperParameters"] = dict(static)
    return request


@pytest.mark.parametrize(
    ("before", "now", "changes"),
    [
        # The guide's two examples: red and blue tuned, then static; static red, then static blue.
        ({"tuned": {"c": ["red", "blue"]}}, {"static": {"c": "red"}}, 2),
        ({"static": {"c": "red"}}, {"static": {"c": "blue"}}, 2),
        ({"static": {"c": "red"}}, {"static": {"c": '"red"'}}, 2),
        ({"static": {"c": "0.1"}}, {"static": {"c": "0.2"}}, 1),
        ({"static": {"c": "red"}}, {"static": {"c": "red"}}, 0),
        ({"static": {"c": "red"}}, {"tuned": {"c": ["red", "blue"]}}, 0),
        ({"tuned": {"c": ["red", "blue"]}}, {"tuned": {"c": ["red", "green"]}}, 0),
    ],
)
def test_the_count_of_changes(before: dict[str, Any], now: dict[str, Any], changes: int) -> None:
    """Numbers that changed fill up to 10 changes, which pass, and then to 11, which do not."""
    for total, accepted in ((10, True), (11, False)):
        filler = {f"n{number}": "1" for number in range(total - changes)}
        changed = dict.fromkeys(filler, "2")
        description = moved(
            parent(), tuned=before.get("tuned", {}), static={**filler, **before.get("static", {})}
        )
        request = moved(child("p"), tuned=now.get("tuned", {}), static={**changed, **now.get("static", {})})
        found = check_warm_start(request, {"p": description})
        assert [problem.field for problem in found] == (
            [] if accepted else [f"{DEFINITION}.StaticHyperParameters"]
        )
        assert accepted or "11 changes" in str(found[0].value)


def test_changes_add_up_over_parents() -> None:
    tuned = {"c": ["a", "b", "c", "d", "e", "f"]}
    request = moved(child("p", "q"), tuned={}, static={"c": "a"})
    parents = {name: moved(parent(), tuned=tuned, static={}) for name in ("p", "q")}
    assert fields(request, parents) == [f"{DEFINITION}.StaticHyperParameters"]
    assert check_warm_start(moved(child("p"), tuned={}, static={"c": "a"}), {"p": parents["p"]}) == []


# --- what the parents found out --------------------------------------------------------------------


def summary(value: Any, **tuned: str) -> dict[str, Any]:
    return {
        "TunedHyperParameters": tuned,
        "FinalHyperParameterTuningJobObjectiveMetric": {"MetricName": "accuracy", "Value": value},
    }


TUNED = {"lr": "0.01", "depth": "3", "booster": "tree"}


def test_prior_evaluations_are_those_with_an_objective() -> None:
    summaries = [
        summary(0.5, **TUNED),
        summary(float("nan"), **TUNED),
        {"TunedHyperParameters": TUNED},
        summary(0.25, **{**TUNED, "lr": "7"}),  # outside the range of now
    ]
    assert prior_evaluations(child("p"), [(parent(), summaries)]) == [
        (TUNED, 0.5),
        ({**TUNED, "lr": "7"}, 0.25),
    ]


def test_what_was_static_in_a_parent_completes_its_combinations() -> None:
    description = parent(TrainingJobDefinition__StaticHyperParameters={"depth": '"4"', "epochs": "5"})
    tuned = {"lr": "0.01", "booster": "linear"}
    other = parent()
    found = prior_evaluations(
        child("p", "q"), [(description, [summary(0.5, **tuned)]), (other, [summary(1, **TUNED)])]
    )
    assert found == [({**tuned, "depth": "4"}, 0.5), (TUNED, 1.0)]


def test_what_is_static_now_is_left_out() -> None:
    description = parent()
    assert prior_evaluations(child("p"), [(description, [summary(0.5, **TUNED, extra="1")])]) == [
        (TUNED, 0.5)
    ]


@pytest.mark.parametrize("static", [{}, {"depth": "auto"}, {"depth": "2.5"}])
def test_a_combination_without_a_usable_value_is_left_out(static: dict[str, str]) -> None:
    description = parent(TrainingJobDefinition__StaticHyperParameters=static)
    assert prior_evaluations(child("p"), [(description, [summary(0.5, lr="0.01", booster="tree")])]) == []


def test_training_jobs_that_a_parent_has_launched() -> None:
    assert launched_training_jobs({}) == 0
    counters = {"Completed": 3, "InProgress": 0, "RetryableError": 1, "NonRetryableError": 2, "Stopped": 4}
    assert launched_training_jobs({"TrainingJobStatusCounters": counters}) == 10


@pytest.mark.parametrize(
    ("strategy", "wanted", "launched", "most"),
    [
        ("Bayesian", 350, [400], None),
        ("Bayesian", 351, [400], 350),
        ("Bayesian", 10, [400, 400], 0),
        ("Random", 9_000, [1_000], None),
        ("Random", 9_001, [1_000], 9_000),
        ("Bayesian", None, [700], None),
    ],
)
def test_training_jobs_of_parents_count_towards_the_limit(
    strategy: str, wanted: int | None, launched: list[int], most: int | None
) -> None:
    limits = {} if wanted is None else {"MaxNumberOfTrainingJobs": wanted}
    request = {"HyperParameterTuningJobConfig": {"Strategy": strategy, "ResourceLimits": limits}}
    parents = {
        f"parent-{position}": {"TrainingJobStatusCounters": {"Completed": count}}
        for position, count in enumerate(launched)
    }
    problems = check_training_job_limit(request, parents)
    assert [problem.limit.partition(":")[0] for problem in problems] == (
        [] if most is None else [f"at most {most}"]
    )
