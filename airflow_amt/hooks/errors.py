"""The one place where AWS's errors become the package's error tree.

Codes: SageMaker API reference, "Common Errors" and the errors of each operation; throttling codes also from
botocore's standard retry mode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_amt.exceptions import (
    AmtAccessDeniedError,
    AmtAwsError,
    AmtResourceInUseError,
    AmtResourceLimitExceededError,
    AmtResourceNotFoundError,
    AmtThrottledError,
    AmtValidationError,
)
from airflow_amt.text import shown_lines

if TYPE_CHECKING:
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

_ERROR_CLASSES: Mapping[str, type[AmtAwsError]] = {
    "ResourceNotFound": AmtResourceNotFoundError,
    "ResourceNotFoundException": AmtResourceNotFoundError,
    "ResourceInUse": AmtResourceInUseError,
    "ResourceLimitExceeded": AmtResourceLimitExceededError,
    "ValidationException": AmtValidationError,
    "ValidationError": AmtValidationError,
    "ParamValidationError": AmtValidationError,
    **dict.fromkeys(
        (
            "Throttling",
            "ThrottlingException",
            "ThrottledException",
            "RequestThrottled",
            "RequestThrottledException",
            "RequestLimitExceeded",
            "TooManyRequests",
            "TooManyRequestsException",
            "SlowDown",
        ),
        AmtThrottledError,
    ),
    **dict.fromkeys(
        (
            "AccessDenied",
            "AccessDeniedException",
            "NotAuthorized",
            "UnauthorizedOperation",
            "OptInRequired",
            "UnrecognizedClientException",
            "InvalidClientTokenId",
            "MissingAuthenticationToken",
            "IncompleteSignature",
            "InvalidSignatureException",
            "SignatureDoesNotMatch",
            "ExpiredToken",
            "ExpiredTokenException",
        ),
        AmtAccessDeniedError,
    ),
}

#: HTTP status from which on the fault is AWS's own.
_SERVER_FAULT = 500

# Names of botocore's exceptions, because a trigger's event carries a name and no class.

#: No answer came, or none that could be read.
_NO_ANSWER = frozenset(
    {
        "ConnectionError",
        "EndpointConnectionError",
        "ConnectTimeoutError",
        "ProxyConnectionError",
        "SSLError",
        "HTTPClientError",
        "ConnectionClosedError",
        "ReadTimeoutError",
        "ResponseStreamingError",
        "IncompleteReadError",
        "ResponseParserError",
    }
)

#: What gives out the credentials (instance metadata, a process, a token service) failed.
_NO_CREDENTIALS_RETRIEVED = frozenset(
    {"CredentialRetrievalError", "MetadataRetrievalError", "TokenRetrievalError"}
)

_TRANSIENT = (_NO_ANSWER | _NO_CREDENTIALS_RETRIEVED) - {"SSLError"}

_FIXES: Mapping[str, str] = {
    "SSLError": "give `verify` the CA bundle that signed the endpoint's certificate",
    **dict.fromkeys(
        _NO_CREDENTIALS_RETRIEVED,
        "see whether the source of the credentials (instance metadata, process, token service) works",
    ),
    **dict.fromkeys(
        ("NoRegionError", "InvalidRegionError", "UnknownRegionError", "UnknownEndpointError"),
        "give region_name, or `region_name` in the extra of the connection",
    ),
    **dict.fromkeys(
        ("NoCredentialsError", "PartialCredentialsError", "NoAuthTokenError"),
        "give the connection an access key and its secret (login and password) or a role, or this process "
        "an environment that has credentials",
    ),
    "ParamValidationError": "correct the parameters named here",
}
_OTHER_FIX = "check the extra of the connection, botocore_config, and the AWS configuration of this process"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSource:
    """With what a call was to be made; only for messages.

    :param conn_id: id of the Airflow connection; ``None`` for none.
    :param conn_found: whether Airflow has this connection.
    :param region: AWS region, if one is known.
    :param service: the service's name in the connection's ``service_config``.
    """

    conn_id: str | None
    conn_found: bool
    region: str | None
    service: str = "sagemaker"

    @property
    def conn_missing(self) -> bool:
        """Whether a connection is named that Airflow does not have."""
        return self.conn_id is not None and not self.conn_found

    def __str__(self) -> str:
        connection = "no Airflow connection" if self.conn_id is None else f"connection {self.conn_id!r}"
        missing = ", which Airflow does not have" if self.conn_missing else ""
        return f"{connection}{missing}; {f'region {self.region}' if self.region else 'no region'}"


def aws_error(
    operation: str,
    code: str,
    message: str,
    status_code: int | None = None,
    request_id: str | None = None,
) -> AmtAwsError:
    """Return the error of the tree that fits an AWS error code."""
    kind = _ERROR_CLASSES.get(code, AmtAwsError)
    if kind in (AmtAwsError, AmtValidationError) and "Rate exceeded" in message:
        kind = AmtThrottledError
    return kind(operation, code, message, status_code, request_id)


def from_client_error(operation: str, error: ClientError) -> AmtAwsError:
    """Turn botocore's ``ClientError`` (AWS answered with an error) into the tree."""
    details = error.response.get("Error") or {}
    metadata = error.response.get("ResponseMetadata") or {}
    return aws_error(
        operation,
        str(details.get("Code") or "Unknown"),
        str(details.get("Message") or details.get("message") or error),
        metadata.get("HTTPStatusCode"),
        metadata.get("RequestId"),
    )


def from_botocore_error(
    operation: str, error: BotoCoreError | ResponseParserError, source: CallSource
) -> AmtAwsError:
    """Turn an error of botocore itself into the tree: the call was not sent, or no answer came.

    The code is the name of botocore's class; the message names connection, region and a fix.
    """
    code = type(error).__name__
    text = str(error).rstrip(".")
    if code in _NO_ANSWER:
        fix = _FIXES.get(
            code,
            "see whether the endpoint is up and can be reached from here, and whether "
            f"`service_config.{source.service}.endpoint_url` of the connection, if set, is right",
        )
    else:
        text = f"the call was not sent: {text}"
        fix = _FIXES.get(code, _OTHER_FIX)
        if source.conn_missing:
            fix = f"correct aws_conn_id or create the connection {source.conn_id!r}; otherwise {fix}"
    return aws_error(operation, code, f"{text} ({source}). Fix: {fix}.")


def is_transient(error: AmtAwsError) -> bool:
    """Say whether the same call may well succeed later.

    It may if it was throttled, AWS's own fault, or got no answer, or if credentials could not be retrieved.
    A refused TLS certificate gives no answer either, but waiting does not mend it.
    """
    if isinstance(error, AmtThrottledError):
        return True
    if error.status_code is None:
        return error.code in _TRANSIENT
    return error.status_code >= _SERVER_FAULT


def is_refusal(error: AmtAwsError) -> bool:
    """Say whether AWS answered that it did not do what the call asked for."""
    return error.status_code is not None and error.status_code < _SERVER_FAULT


def to_payload(error: AmtAwsError) -> dict[str, Any]:
    """Return the error's fields, JSON-safe, for a trigger's event."""
    return {
        "operation": error.operation,
        "code": error.code,
        "message": shown_lines(error.message),
        "status_code": error.status_code,
        "request_id": error.request_id,
    }


def from_payload(payload: Mapping[str, Any]) -> AmtAwsError:
    """Return the error of a trigger's event; fields that an older or newer release lacks may be missing."""
    return aws_error(
        str(payload.get("operation") or "DescribeHyperParameterTuningJob"),
        str(payload.get("code") or "Unknown"),
        str(payload.get("message") or "the trigger gave no message"),
        payload.get("status_code"),
        payload.get("request_id"),
    )
