"""Enums, limits and operations of this package equal botocore's model of SageMaker."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_amt.service_model import service_model
from airflow_amt.tuning import ObjectiveType, TuningJobStatus, criteria, naming
from airflow_amt.tuning.history import TERMINAL_TRAINING_STATUSES
from airflow_amt.tuning.progress import TrainingJobCounters
from airflow_amt.tuning.status import TERMINAL_STATUSES


def shape(name: str) -> Any:
    return service_model().shape_for(name)


def test_statuses_and_objective_types_are_the_models() -> None:
    assert {one.value for one in TuningJobStatus} == set(shape("HyperParameterTuningJobStatus").enum)
    assert {one.value for one in ObjectiveType} == set(shape("HyperParameterTuningJobObjectiveType").enum)


def test_terminal_statuses_are_those_in_which_nothing_goes_on() -> None:
    assert set(shape("HyperParameterTuningJobStatus").enum) - TERMINAL_STATUSES == {"InProgress", "Stopping"}
    training = set(shape("TrainingJobStatus").enum)
    assert training - TERMINAL_TRAINING_STATUSES == {"InProgress", "Stopping"}


def test_limits_of_the_criteria_are_the_models() -> None:
    runtime = shape("HyperParameterTuningMaxRuntimeInSeconds").metadata
    assert runtime["min"] == criteria.MIN_RUNTIME_SECONDS
    assert runtime["max"] == criteria.MAX_RUNTIME_SECONDS
    not_improving = shape("BestObjectiveNotImproving").members["MaxNumberOfTrainingJobsNotImproving"]
    assert not_improving.metadata["min"] == criteria.MIN_NOT_IMPROVING
    name = shape("HyperParameterTuningJobName").metadata
    assert name["max"] == naming.MAX_NAME_LENGTH
    assert shape("TagValue").metadata["max"] == naming.MAX_TAG_VALUE_LENGTH


@pytest.mark.parametrize(("attribute", "path"), criteria.API_PATHS.items())
def test_every_criterion_has_its_place_in_the_model(attribute: str, path: str) -> None:
    current = service_model().operation_model("CreateHyperParameterTuningJob").input_shape
    for part in path.split("."):
        current = current.members[part]
    assert current.type_name in ("integer", "float", "string")


def test_the_convergence_flag_has_the_models_two_values() -> None:
    assert set(shape("CompleteOnConvergence").enum) == {"Enabled", "Disabled"}


def test_counters_cover_all_that_the_model_counts() -> None:
    members = set(shape("TrainingJobStatusCounters").members)
    ones = dict.fromkeys(members, 1)
    assert TrainingJobCounters.parse(ones).launched == len(members)


def test_every_call_of_the_hook_is_an_operation() -> None:
    import ast
    import inspect

    import botocore

    from airflow_amt.hooks import tuning

    known = {botocore.xform_name(name) for name in service_model().operation_names}
    called = {
        node.args[0].value
        for node in ast.walk(ast.parse(inspect.getsource(tuning)))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("_call", "_call_once", "_pages")
        and isinstance(node.args[0], ast.Constant)
    }
    assert len(called) == 9
    assert called <= known
