"""AWS's errors become the package's tree in one place."""

from __future__ import annotations

import json

import botocore.exceptions
import pytest
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    SSLError,
)

from airflow_amt import exceptions
from airflow_amt.exceptions import AmtAwsError
from airflow_amt.hooks.errors import (
    CallSource,
    aws_error,
    from_botocore_error,
    from_client_error,
    from_payload,
    is_refusal,
    is_transient,
    to_payload,
)

SOURCE = CallSource(conn_id="aws_prod", conn_found=True, region="eu-west-1")
DOWN = EndpointConnectionError(endpoint_url="http://127.0.0.1:1")
NO_ROLE = CredentialRetrievalError(provider="iam-role", error_msg="timed out")


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
        (from_botocore_error("Any", DOWN, SOURCE), True),
        (from_botocore_error("Any", NO_ROLE, SOURCE), True),
        (from_botocore_error("Any", NoRegionError(), SOURCE), False),
        (from_botocore_error("Any", NoCredentialsError(), SOURCE), False),
        (from_botocore_error("Any", ParamValidationError(report="no name"), SOURCE), False),
        (AmtAwsError("Any", "SSLError", "bad certificate"), False),
        (AmtAwsError("Any", "AirflowNotFoundException", "no such connection"), False),
    ],
    ids=lambda value: value.code if isinstance(value, AmtAwsError) else str(value),
)
def test_only_what_may_pass_is_transient(error: AmtAwsError, transient: bool) -> None:
    assert is_transient(error) is transient


def test_every_way_in_which_no_answer_comes_is_transient_but_a_refused_certificate() -> None:
    ways = [
        kind
        for kind in vars(botocore.exceptions).values()
        if isinstance(kind, type)
        and issubclass(kind, (botocore.exceptions.ConnectionError, botocore.exceptions.HTTPClientError))
    ]
    assert len(ways) > 5
    for kind in ways:
        assert is_transient(AmtAwsError("Any", kind.__name__, "")) is (kind is not SSLError), kind


def test_only_an_answer_is_a_refusal() -> None:
    assert is_refusal(aws_error("Any", "AccessDeniedException", "no", 400))
    assert is_refusal(aws_error("Any", "ThrottlingException", "Rate exceeded", 400))
    assert not is_refusal(aws_error("Any", "InternalFailure", "oops", 500))
    assert not is_refusal(from_botocore_error("Any", DOWN, SOURCE))


@pytest.mark.parametrize(
    ("error", "source", "text"),
    [
        (
            DOWN,
            SOURCE,
            "Describe got no answer: EndpointConnectionError: Could not connect to the endpoint URL: "
            "\"http://127.0.0.1:1\" (connection 'aws_prod'; region eu-west-1). Fix: see whether the endpoint "
            "is up and can be reached from here, and whether `service_config.sagemaker.endpoint_url` of the "
            "connection, if set, is right.",
        ),
        (
            NoRegionError(),
            CallSource(conn_id="aws_typo", conn_found=False, region=None),
            "Describe got no answer: NoRegionError: the call was not sent: You must specify a region "
            "(connection 'aws_typo', which Airflow does not have; no region). Fix: correct aws_conn_id or "
            "create the connection 'aws_typo'; otherwise give region_name, or `region_name` in the extra of "
            "the connection.",
        ),
        (
            NoCredentialsError(),
            CallSource(conn_id=None, conn_found=False, region="eu-west-1"),
            "Describe got no answer: NoCredentialsError: the call was not sent: Unable to locate credentials "
            "(no Airflow connection; region eu-west-1). Fix: give the connection an access key and its "
            "secret (login and password) or a role, or this process an environment that has credentials.",
        ),
    ],
    ids=["down", "misspelt", "no-credentials"],
)
def test_an_error_without_an_answer_names_connection_region_and_fix(
    error: BotoCoreError, source: CallSource, text: str
) -> None:
    assert str(from_botocore_error("Describe", error, source)) == text


def test_parameters_that_botocore_refuses_are_a_validation_error() -> None:
    error = from_botocore_error("Any", ParamValidationError(report="no name"), SOURCE)
    assert type(error) is exceptions.AmtValidationError
    assert "no name" in str(error)


def test_a_payload_gives_the_same_error_back() -> None:
    error = aws_error("Describe", "AccessDeniedException", "not you", 400, "id-2")
    again = from_payload(json.loads(json.dumps(to_payload(error))))
    assert type(again) is type(error)
    assert again.args == error.args


def test_a_payload_of_another_release_may_lack_fields() -> None:
    error = from_payload({})
    assert (error.code, error.operation) == ("Unknown", "DescribeHyperParameterTuningJob")
