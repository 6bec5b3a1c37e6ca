"""The SageMaker JSON 1.1 protocol, on both sides of an operation: read a request, write an answer.

Operations, members, types and limits come from botocore's service model; nothing is spelled out here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn

import botocore.model

from airflow_amt.service_model import aws_message, service_model, validate

CONTENT_TYPE = "application/x-amz-json-1.1"
TARGET_PREFIX = "SageMaker."
DEFAULT_REGION = "us-east-1"

_PYTHON_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "long": (int,),
    "boolean": (bool,),
    "float": (int, float),
    "double": (int, float),
}

_SCOPE = re.compile(r"Credential=[^/,\s]+/\d{8}/([a-z0-9-]{1,32})/sagemaker/aws4_request")


class AwsError(Exception):
    """An error that is answered to the client.

    :param code: AWS's error code, as ``ValidationException``.
    :param message: what is wrong and how to mend it.
    :param status: HTTP status.
    """

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(code, message, status)
        self.code = code
        self.message = message
        self.status = status

    def body(self) -> bytes:
        """Return the error as the protocol writes it.

        The modelled exceptions of SageMaker call their text ``Message``, the common ones ``message``;
        botocore reads either, so both are there.
        """
        return json.dumps({"__type": self.code, "message": self.message, "Message": self.message}).encode()


def region_of(authorization: str | None) -> str:
    """Return the region that a request was signed for, ``us-east-1`` if it is not signed.

    :param authorization: the request's ``Authorization`` header. The signature is not checked.
    """
    match = _SCOPE.search(authorization or "")
    return match.group(1) if match else DEFAULT_REGION


def operation_of(target: str | None) -> str:
    """Return the operation that an ``X-Amz-Target`` header names.

    :raises AwsError: SageMaker has no such operation.
    """
    name = (target or "").removeprefix(TARGET_PREFIX)
    if not target or name == target or name not in service_model().operation_names:
        raise AwsError(
            "UnknownOperationException",
            f"The X-Amz-Target header {target!r} names no operation of SageMaker; it must be "
            f"'{TARGET_PREFIX}' and the operation's name",
        )
    return name


def read_request(operation: str, body: bytes) -> dict[str, Any]:
    """Return the parameters of a request, checked against the service model; times as ``datetime``.

    :raises AwsError: ``SerializationException`` for what is not a JSON object, ``ValidationException``
        with every field that the model does not allow.
    """
    shape = service_model().operation_model(operation).input_shape
    params = _parse(body)
    if shape is None:
        return {}
    converted = _from_wire(shape, params)
    problems = validate(operation, converted)
    if problems:
        raise AwsError("ValidationException", aws_message(problems))
    return dict(converted)


def write_answer(operation: str, result: Mapping[str, Any]) -> bytes:
    """Return the JSON of an operation's result.

    :param result: members by name; ``None`` means absent; times as aware ``datetime``.
    :raises TypeError: the result does not have the operation's output shape, which is a bug.
    """
    shape = service_model().operation_model(operation).output_shape
    if shape is None:
        return b""
    return json.dumps(_to_wire(shape, result, operation), separators=(",", ":")).encode()


def _parse(body: bytes) -> dict[str, Any]:
    try:
        params = json.loads(body or b"{}", parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise AwsError("SerializationException", f"The request is not valid JSON: {error}") from None
    if not isinstance(params, dict):
        raise AwsError("SerializationException", "The request must be a JSON object")
    return params


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _from_wire(shape: botocore.model.Shape, value: Any) -> Any:
    """Leave out null members and turn times into ``datetime``; whatever does not fit stays as it is."""
    if shape.type_name == "structure" and isinstance(value, dict):
        return {
            key: _from_wire(shape.members[key], item) if key in shape.members else item
            for key, item in value.items()
            if item is not None
        }
    if shape.type_name == "list" and isinstance(value, list):
        return [_from_wire(shape.member, item) for item in value]
    if shape.type_name == "map" and isinstance(value, dict):
        return {key: _from_wire(shape.value, item) for key, item in value.items() if item is not None}
    if shape.type_name == "timestamp" and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return datetime.fromtimestamp(value, tz=UTC)
        except (OverflowError, ValueError, OSError):
            return [value]  # of no use as a time: validation names it
    return value


def _to_wire(shape: botocore.model.Shape, value: Any, path: str) -> Any:
    kind = shape.type_name
    if kind == "structure":
        return _structure_to_wire(shape, value, path)
    if kind == "list":
        return [_to_wire(shape.member, item, f"{path}[]") for item in value]
    if kind == "map":
        return {key: _to_wire(shape.value, item, f"{path}.{key}") for key, item in value.items()}
    if kind == "timestamp":
        return round(value.timestamp(), 3)
    if not isinstance(value, _PYTHON_TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        raise TypeError(f"{path} must be {kind}, not {value!r}")
    if kind == "string" and shape.enum and value not in shape.enum:
        raise TypeError(f"{path} must be one of {', '.join(shape.enum)}, not {value!r}")
    return value


def _structure_to_wire(shape: botocore.model.StructureShape, value: Mapping[str, Any], path: str) -> Any:
    unknown = set(value) - set(shape.members)
    if unknown:
        raise TypeError(f"{path} has no members {sorted(unknown)}")
    missing = [name for name in shape.required_members if value.get(name) is None]
    if missing:
        raise TypeError(f"{path} lacks {missing}")
    return {
        name: _to_wire(shape.members[name], item, f"{path}.{name}")
        for name, item in value.items()
        if item is not None
    }
