from __future__ import annotations

import importlib
import pickle

import pytest

from airflow_amt import task_exceptions
from airflow_amt._compat import AirflowException, AirflowFailException
from airflow_amt.exceptions import AmtError
from airflow_amt.task_exceptions import (
    AmtConditionNotMet,
    AmtEnforceError,
    AmtNoUsableTrainingJob,
    AmtOwnJobEndedError,
    AmtPolicyBroken,
    AmtReapError,
    AmtTaskKilled,
    AmtTuningJobError,
)

OUTCOME = {
    "tuning_job_name": "churn-model",
    "status": "Failed",
    "explanation": "The tuning job failed: no capacity",
    "best_training_job": {"name": "churn-model-001", "objective": 0.9},
    "objective_metric": "accuracy",
    "training_job_failure_reasons": [{"reason": "AlgorithmError", "count": 2}],
}
EXAMPLES: list[AirflowException] = [
    *(
        kind(OUTCOME)
        for kind in vars(task_exceptions).values()
        if isinstance(kind, type) and issubclass(kind, AmtTuningJobError)
    ),
    AmtTaskKilled("churn-model", "the tuning job is being stopped"),
    AmtConditionNotMet({**OUTCOME, "condition": {"reason": "The target is not reached."}}),
    AmtReapError(["churn-model could not be stopped"], {"owned": 2, "stopped": 1}),
    AmtEnforceError(["churn-model could not be stopped"], {"matched": 2, "stopped": 1}),
    AmtPolicyBroken(
        [{"tuning_job_name": "churn-model", "rule": "budget", "reason": "51 of 50 EUR are spent."}],
        ["other could not be read"],
        {"matched": 2, "stopped": 1},
    ),
    AmtNoUsableTrainingJob("churn-model", "none completed with an objective."),
    AmtOwnJobEndedError("churn-model", {"airflow-amt:dag-id": "mine"}, {}, "Completed"),
]
each = pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)


def test_every_class_has_an_example() -> None:
    assert {type(error).__name__ for error in EXAMPLES} == set(task_exceptions.__all__)


@each
def test_they_are_the_packages_and_airflows_and_pickle(error: AirflowException) -> None:
    assert isinstance(error, AmtError)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


@each
def test_airflows_own_serialisation_gives_them_back(error: AirflowException) -> None:
    path, args, kwargs = error.serialize()  # type: ignore[no-untyped-call]
    module, _, name = path.rpartition(".")
    copy = getattr(importlib.import_module(module), name)(*args, **kwargs)
    assert (type(copy), str(copy)) == (type(error), str(error))


@each
def test_only_errors_about_a_job_that_is_over_forbid_a_retry(error: AirflowException) -> None:
    final = type(error).__name__.startswith(
        ("AmtAwaited", "AmtConditionNotMet", "AmtNoUsable", "AmtPolicyBroken")
    )
    assert isinstance(error, AirflowFailException) is final
