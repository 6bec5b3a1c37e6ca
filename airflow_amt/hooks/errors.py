"""The one place where AWS's errors become the package's error tree.

Codes: SageMaker API reference, "Common Errors" and the errors of each operation; throttling codes also from
botocore's standard retry mode.
"""

from __future__ import annotations

from collections.abc import Mapping
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

if TYPE_CHECKING:
    from botocore.exceptions import BotoCoreError, ClientError

_ERROR_CLASSES: Mapping[str, type[AmtAwsError]] = {
    "ResourceNotFound": AmtResourceNotFoundError,
    "ResourceNotFoundException": AmtResourceNotFoundError,
    "ResourceInUse": AmtResourceInUseError,
    "ResourceLimitExceeded": AmtResourceLimitExceededError,
    "ValidationException": AmtValidationError,
    "ValidationError": AmtValidationError,
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


def from_connection_error(operation: str, error: BotoCoreError | Exception) -> AmtAwsError:
    """Turn a connection that failed (no answer came) into the tree; the code is botocore's class name."""
    return AmtAwsError(operation, type(error).__name__, str(error))


def is_transient(error: AmtAwsError) -> bool:
    """Say whether the same call may well succeed later: throttled, AWS's own fault, or no answer.

    A refused TLS certificate gives no answer either, but waiting does not mend it.
    """
    if isinstance(error, AmtThrottledError):
        return True
    if error.status_code is None:
        return error.code != "SSLError"
    return error.status_code >= _SERVER_FAULT


def to_payload(error: AmtAwsError) -> dict[str, Any]:
    """Return the error's fields, JSON-safe, for a trigger's event."""
    return {
        "operation": error.operation,
        "code": error.code,
        "message": error.message,
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
