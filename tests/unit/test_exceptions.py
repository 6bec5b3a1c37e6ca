from __future__ import annotations

import pickle

import pytest

from airflow_amt import exceptions
from airflow_amt.exceptions import (
    AmtAwsError,
    AmtDeadlineError,
    AmtError,
    AmtFieldError,
    AmtJobExistsError,
    AmtRequestError,
    AmtUnknownOwnerError,
)

AWS_ERRORS: list[type[AmtAwsError]] = [AmtAwsError, *AmtAwsError.__subclasses__()]
FIELD = AmtFieldError("a.b", "x" * 500, "short", "cut it")
EXAMPLES: list[AmtError] = [
    FIELD,
    AmtRequestError([FIELD, AmtFieldError("c", None, "required", "add it")]),
    AmtJobExistsError("churn", {"airflow-amt:dag-id": "mine"}, {}, "InProgress"),
    AmtDeadlineError("One was stopped.", ["another was refused", "a third timed out"]),
    AmtUnknownOwnerError("churn", {"airflow-amt:dag-id": "mine"}, {}, "InProgress"),
    *(
        kind("DescribeHyperParameterTuningJob", "ResourceNotFound", "gone", 400, "id-1")
        for kind in AWS_ERRORS
    ),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_errors_pickle_with_their_fields(error: AmtError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert {key: str(value) for key, value in vars(copy).items()} == {
        key: str(value) for key, value in vars(error).items()
    }


def test_every_public_error_has_an_example() -> None:
    assert {type(error).__name__ for error in EXAMPLES} | {"AmtError"} == set(exceptions.__all__)


def test_messages_name_field_value_limit_and_fix() -> None:
    assert str(EXAMPLES[1]).startswith("Nothing was done; 2 fields are wrong:\n  1. a.b: 'xxx")
    assert str(EXAMPLES[1]).endswith("2. c: a missing value is not accepted: required. Fix: add it.")
    assert "airflow-amt:dag-id=mine" in str(EXAMPLES[2])
    assert "no airflow-amt ownership tags" in str(EXAMPLES[2])
