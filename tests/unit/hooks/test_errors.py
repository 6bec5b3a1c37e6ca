"""AWS's errors become the package's tree in one place."""

from __future__ import annotations

import json

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from airflow_amt import exceptions
from airflow_amt.exceptions import AmtAwsError
from airflow_amt.hooks.errors import (
    aws_error,
    from_client_error,
    from_connection_error,
    from_payload,
    is_transient,
    to_payload,
)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("ResourceNotFound", exceptions.AmtResourceNotFoundError),
        ("ResourceInUse", exceptions.AmtResourceInUseError),
        ("ResourceLimitExceeded", exceptions.AmtResourceLimitExceededError),
        ("ThrottlingException", exceptions.AmtThrottledError),
        ("Throttling", exceptions.AmtThrottledError),
        ("TooManyRequestsException", exceptions.AmtThrottledError),
        ("ValidationException", exceptions.AmtValidationError),
        ("AccessDeniedException", exceptions.AmtAccessDeniedError),
        ("ExpiredTokenException", exceptions.AmtAccessDeniedError),
        ("UnrecognizedClientException", exceptions.AmtAccessDeniedError),
        ("InternalFailure", AmtAwsError),
    ],
)
def test_each_code_has_its_class(code: str, kind: type[AmtAwsError]) -> None:
    answer = {
        "Error": {"Code": code, "Message": "as AWS says"},
        "ResponseMetadata": {"HTTPStatusCode": 400, "RequestId": "id-1"},
    }
    error = from_client_error("StopHyperParameterTuningJob", ClientError(answer, "whatever"))
    assert type(error) is kind
    assert (error.operation, error.code, error.message, error.status_code, error.request_id) == (
        "StopHyperParameterTuningJob",
        code,
        "as AWS says",
        400,
        "id-1",
    )


def test_rate_exceeded_is_throttling_whatever_the_code() -> None:
    assert type(aws_error("Any", "ValidationException", "Rate exceeded")) is exceptions.AmtThrottledError
    assert type(aws_error("Any", "Unknown", "Rate exceeded")) is exceptions.AmtThrottledError


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (aws_error("Any", "ThrottlingException", "Rate exceeded", 400), True),
        (aws_error("Any", "InternalFailure", "oops", 500), True),
        (aws_error("Any", "ServiceUnavailable", "later", 503), True),
        (aws_error("Any", "ResourceNotFound", "no", 400), False),
        (aws_error("Any", "AccessDeniedException", "no", 400), False),
        (aws_error("Any", "ValidationException", "no", 400), False),
        (from_connection_error("Any", EndpointConnectionError(endpoint_url="http://127.0.0.1:1")), True),
        (AmtAwsError("Any", "SSLError", "bad certificate"), False),
    ],
    ids=lambda value: value.code if isinstance(value, AmtAwsError) else str(value),
)
def test_only_what_may_pass_is_transient(error: AmtAwsError, transient: bool) -> None:
    assert is_transient(error) is transient


def test_a_payload_gives_the_same_error_back() -> None:
    error = aws_error("Describe", "AccessDeniedException", "not you", 400, "id-2")
    again = from_payload(json.loads(json.dumps(to_payload(error))))
    assert type(again) is type(error)
    assert again.args == error.args


def test_a_payload_of_another_release_may_lack_fields() -> None:
    error = from_payload({})
    assert (error.code, error.operation) == ("Unknown", "DescribeHyperParameterTuningJob")
