"""The SageMaker JSON 1.1 protocol, on both sides of an operation: read a request, write an answer.

Operations, members, types and limits come from botocore's service model; nothing is spelled out here.
Answers are written by functions that are compiled from the model, one a shape, on first use: walking the
model for each answer took most of the time of a call. They check while they write: an answer that the model
does not allow is a bug, and raises.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from json.encoder import encode_basestring_ascii
from typing import Any

import botocore.model

from airflow_amt.local import json_text
from airflow_amt.service_model import aws_message, input_shape, operation_names, service_model, validate
from airflow_amt.text import shown_value

CONTENT_TYPE = "application/x-amz-json-1.1"
TARGET_PREFIX = "SageMaker."


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


def operation_of(target: str) -> str:
    """Return the operation that an ``X-Amz-Target`` header names.

    :raises AwsError: SageMaker has no such operation.
    """
    name = target.removeprefix(TARGET_PREFIX)
    if name == target or name not in operation_names():
        raise AwsError(
            "UnknownOperationException",
            f"The X-Amz-Target header {shown_value(target)} names no operation of SageMaker; it must be "
            f"'{TARGET_PREFIX}' and the operation's name",
        )
    return name


def read_request(operation: str, body: bytes) -> dict[str, Any]:
    """Return the parameters of a request, checked against the service model; times as ``datetime``.

    :raises AwsError: ``SerializationException`` for what is not a JSON object, ``ValidationException``
        with every field that the model does not allow.
    """
    shape = input_shape(operation)
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

    :param result: members by name; ``None`` means absent; times as aware ``datetime``; any part may be
        :class:`Encoded` already.
    :raises TypeError: the result does not have the operation's output shape, which is a bug.
    """
    shape = _output_shape(operation)
    if shape is None:
        return b""
    try:
        return _writer(shape)(result).encode("ascii")
    except _MisfitError as misfit:
        raise TypeError(f"{operation}{misfit}") from None


@dataclass(frozen=True, slots=True)
class Encoded:
    """A part of an answer that has been written before.

    :param shape: name of the shape it was written for; it fits nowhere else.
    :param text: its JSON.
    """

    shape: str
    text: str


def encode(shape: str, value: Any) -> Encoded:
    """Write a part of answers, to be used in several.

    :param shape: name of its shape in the service model.
    :raises TypeError: the value does not have the shape, which is a bug.
    """
    try:
        return Encoded(shape, _writer(shape)(value))
    except _MisfitError as misfit:
        raise TypeError(f"{shape}{misfit}") from None


def _parse(body: bytes) -> dict[str, Any]:
    try:
        params = json_text.read(body or b"{}")
    except ValueError as error:
        raise AwsError("SerializationException", f"The request is not valid JSON: {error}") from None
    if not isinstance(params, dict):
        raise AwsError("SerializationException", "The request must be a JSON object")
    return params


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


_Writer = Callable[[Any], str]


class _MisfitError(Exception):
    """A value does not have its shape; the way to it is put together from the inside out."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self._what = what
        self._path: list[str] = []

    def inside(self, step: str) -> _MisfitError:
        self._path.append(step)
        return self

    def __str__(self) -> str:
        return "".join(reversed(self._path)) + f" {self._what}"


@cache
def _output_shape(operation: str) -> str | None:
    shape = service_model().operation_model(operation).output_shape
    return None if shape is None else str(shape.name)


@cache
def _writer(shape_name: str) -> _Writer:
    """Compile what writes values of a shape."""
    shape = service_model().shape_for(shape_name)
    write = _WRITERS[shape.type_name](shape)

    def write_or_take(value: Any) -> str:
        if type(value) is not Encoded:
            return write(value)
        if value.shape != shape_name:
            raise _MisfitError(f"must be a {shape_name}, not what was written for a {value.shape}")
        return value.text

    # Scalars are never written in advance, and are most of an answer.
    return write if shape.type_name in _SCALARS else write_or_take


class _Members(dict[str, tuple[str, _Writer]]):
    """What to write for each member of a structure, compiled when it occurs: its key, and its writer."""

    def __init__(self, shape: botocore.model.StructureShape) -> None:
        super().__init__()
        self._shape = shape

    def __missing__(self, name: str) -> tuple[str, _Writer]:
        if name not in self._shape.members:
            raise _MisfitError(f"has no member {name!r}")
        entry = (f"{encode_basestring_ascii(name)}:", _writer(self._shape.members[name].name))
        self[name] = entry
        return entry


def _structure_writer(shape: botocore.model.StructureShape) -> _Writer:
    members = _Members(shape)
    required = tuple(shape.required_members)

    def write(value: Any) -> str:
        if not isinstance(value, Mapping):
            raise _MisfitError(f"must be a structure, not {value!r}")
        parts = []
        for name, item in value.items():
            key, write_item = members[name]
            if item is None:
                continue
            try:
                parts.append(key + write_item(item))
            except _MisfitError as misfit:
                raise misfit.inside(f".{name}") from None
        for name in required:
            if value.get(name) is None:
                raise _MisfitError(f"lacks {name!r}")
        return "{" + ",".join(parts) + "}"

    return write


def _list_writer(shape: botocore.model.ListShape) -> _Writer:
    write_item = _writer(shape.member.name)

    def write(value: Any) -> str:
        if not isinstance(value, (list, tuple)):
            raise _MisfitError(f"must be a list, not {value!r}")
        try:
            return "[" + ",".join([write_item(item) for item in value]) + "]"
        except _MisfitError as misfit:
            raise misfit.inside("[]") from None

    return write


def _map_writer(shape: botocore.model.MapShape) -> _Writer:
    write_key = _writer(shape.key.name)
    write_item = _writer(shape.value.name)

    def write(value: Any) -> str:
        if not isinstance(value, Mapping):
            raise _MisfitError(f"must be a map, not {value!r}")
        parts = []
        for key, item in value.items():
            try:
                parts.append(f"{write_key(key)}:{write_item(item)}")
            except _MisfitError as misfit:
                raise misfit.inside(f".{key}") from None
        return "{" + ",".join(parts) + "}"

    return write


def _string_writer(shape: botocore.model.StringShape) -> _Writer:
    values = frozenset(shape.enum)

    def write(value: Any) -> str:
        if not isinstance(value, str):
            raise _MisfitError(f"must be string, not {value!r}")
        if values and value not in values:
            raise _MisfitError(f"must be one of {', '.join(shape.enum)}, not {value!r}")
        return encode_basestring_ascii(value)

    return write


def _integer_writer(shape: botocore.model.Shape) -> _Writer:
    def write(value: Any) -> str:
        if not isinstance(value, int) or isinstance(value, bool):
            raise _MisfitError(f"must be {shape.type_name}, not {value!r}")
        return int.__repr__(value)

    return write


def _float_writer(shape: botocore.model.Shape) -> _Writer:
    def write(value: Any) -> str:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise _MisfitError(f"must be {shape.type_name}, finite, not {value!r}")
        return repr(float(value))

    return write


def _boolean_writer(_: botocore.model.Shape) -> _Writer:
    def write(value: Any) -> str:
        if not isinstance(value, bool):
            raise _MisfitError(f"must be boolean, not {value!r}")
        return "true" if value else "false"

    return write


def _timestamp_writer(_: botocore.model.Shape) -> _Writer:
    def write(value: Any) -> str:
        if not isinstance(value, datetime) or value.tzinfo is None:
            raise _MisfitError(f"must be a time with a time zone, not {value!r}")
        return repr(round(value.timestamp(), 3))

    return write


_SCALARS: Mapping[str, Callable[[Any], _Writer]] = {
    "string": _string_writer,
    "integer": _integer_writer,
    "long": _integer_writer,
    "float": _float_writer,
    "double": _float_writer,
    "boolean": _boolean_writer,
    "timestamp": _timestamp_writer,
}
_WRITERS: Mapping[str, Callable[[Any], _Writer]] = {
    **_SCALARS,
    "structure": _structure_writer,
    "list": _list_writer,
    "map": _map_writer,
}
