"""botocore's model of SageMaker as a source of tests: bad requests, and a strict reader of answers.

This reads the model by itself, so that a mistake in :mod:`airflow_amt.service_model` does not hide here too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import botocore.loaders
import botocore.model

#: Stands for "leave the member out".
MISSING = object()
#: Longer strings and lists are not sent, only to be refused.
LONGEST = 10_000

#: Tried in this order for a string that the model allows.
GOOD_TEXTS = (
    "a",
    "1",
    "arn:aws:iam::000000000000:role/training",
    "s3://bucket/key",
    "arn:aws:sagemaker:us-east-1:000000000000:training-job/some-name",
    "arn:aws:sagemaker:us-east-1:000000000000:training-plan/some-plan",
    "arn:aws:sagemaker:us-east-1:000000000000:hub-content/hub/DataSet/name/1.0.0",
    "arn:aws:sagemaker:us-east-1:000000000000:hub-content/hub/Model/name/1.0.0",
    "arn:aws:sagemaker:us-east-1:000000000000:mlflow-app/name",
    "arn:aws:sagemaker:us-east-1:000000000000:model-package-group/name",
    "a" * 21,
    "fs-0123456789abcdef0",
)
#: Tried in this order for a string that a pattern does not allow.
BAD_TEXTS = ("!", "a b", "é€", "-", "\x00", "a" * 40)


@cache
def model() -> Any:
    """Return botocore's model of SageMaker."""
    loaders: Any = botocore.loaders
    models: Any = botocore.model
    return models.ServiceModel(loaders.Loader().load_service_model("sagemaker", "service-2"), "sagemaker")


@cache
def pattern_of(shape: Any) -> re.Pattern[str] | None:
    """Return the pattern of a string; ``None`` without one, or for one in a dialect that is not Python's."""
    try:
        return re.compile(shape.metadata["pattern"], re.DOTALL) if "pattern" in shape.metadata else None
    except re.error:
        return None


# --- requests -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BadCase:
    """One way to break one member of a request.

    :param parts: where, as keys and list positions.
    :param value: what to put there; :data:`MISSING` leaves it out.
    :param kind: what is wrong with it.
    :param constraint: AWS's words about it, of which the message must have these; empty if there are none.
    """

    parts: tuple[str | int, ...]
    value: Any
    kind: str
    constraint: str = ""

    @property
    def path(self) -> str:
        """The member's path, as the API documents it."""
        path = ""
        for part in self.parts:
            path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
        return path

    def apply(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        """Return a copy of a good request with this in it; what it lies in is made up where it is missing."""
        changed = deepcopy(request)
        holder: Any = changed
        shape = model().operation_model(operation).input_shape
        for part in self.parts[:-1]:
            shape = _inner(shape, part)
            if isinstance(part, int):
                holder = holder[part]
                continue
            if part not in holder:
                holder[part] = example(shape)
            if not holder[part] and shape.type_name in ("list", "map"):
                holder[part] = _one(shape)
            holder = holder[part]
        if self.value is MISSING:
            holder.pop(self.parts[-1], None)
        else:
            holder[self.parts[-1]] = self.value
        return changed


def bad_cases(operation: str, request: dict[str, Any]) -> list[BadCase]:
    """Return every case for every member, nested ones too, that an operation's input has in the model.

    :param request: a good request of this operation; keys of its maps are used.
    """
    shape = model().operation_model(operation).input_shape
    return list(_structure_cases(shape, (), request, ()))


def example(shape: Any) -> Any:
    """Return a value that the model allows: the least that is required."""
    kind = shape.type_name
    bounds = shape.metadata
    if kind == "structure":
        return {name: example(shape.members[name]) for name in shape.required_members}
    if kind == "list":
        return [example(shape.member) for _ in range(bounds.get("min", 0))]
    if kind == "map":
        return {}
    if kind == "string":
        return _good_text(shape)
    if kind in ("integer", "long"):
        return max(1, bounds.get("min", 1))
    return {"float": 0.5, "double": 0.5, "boolean": True, "timestamp": 1_700_000_000}[kind]


def _one(shape: Any) -> Any:
    """Return a list or map with one element."""
    return [example(shape.member)] if shape.type_name == "list" else {_map_key(shape): example(shape.value)}


def _inner(shape: Any, part: str | int) -> Any:
    if shape.type_name == "structure":
        return shape.members[part]
    return shape.member if shape.type_name == "list" else shape.value


def _map_key(shape: Any) -> str:
    return _good_text(shape.key)


def _good_text(shape: Any) -> str:
    if shape.enum:
        return str(shape.enum[0])
    pattern = pattern_of(shape)
    least, most = shape.metadata.get("min", 0), shape.metadata.get("max", LONGEST)
    for text in GOOD_TEXTS:
        if least <= len(text) <= most and (pattern is None or pattern.fullmatch(text)):
            return text
    raise LookupError(f"none of GOOD_TEXTS fits {shape.name}: {shape.metadata}")


def _structure_cases(
    shape: Any, parts: tuple[str | int, ...], present: Any, outer: tuple[str, ...]
) -> Iterator[BadCase]:
    if shape.name in outer:  # a shape within itself: once is enough
        return
    for name, member in shape.members.items():
        where = (*parts, name)
        if name in shape.required_members:
            yield BadCase(where, MISSING, "left out", "Member must not be null")
            yield BadCase(where, None, "null", "Member must not be null")
        inside = present.get(name) if isinstance(present, dict) else None
        yield from _cases(member, where, inside, (*outer, shape.name))


def _cases(
    shape: Any, parts: tuple[str | int, ...], present: Any, outer: tuple[str, ...]
) -> Iterator[BadCase]:
    kind = shape.type_name
    for value in _WRONG_TYPES[kind]:
        yield BadCase(parts, value, "wrong type")
    if kind == "structure":
        yield from _structure_cases(shape, parts, present, outer)
        return
    bounds = shape.metadata
    if kind in ("list", "map"):
        yield from _container_cases(shape, parts, present, outer)
    elif kind == "string":
        yield from _text_cases(shape, parts)
    elif kind in ("integer", "long", "float", "double"):
        if "min" in bounds:
            yield BadCase(parts, bounds["min"] - 1, "below min", f"greater than or equal to {bounds['min']}")
        if "max" in bounds:
            yield BadCase(parts, bounds["max"] + 1, "above max", f"less than or equal to {bounds['max']}")


def _container_cases(
    shape: Any, parts: tuple[str | int, ...], present: Any, outer: tuple[str, ...]
) -> Iterator[BadCase]:
    bounds = shape.metadata
    is_list = shape.type_name == "list"
    if bounds.get("min", 0) > 0:
        empty: Any = [] if is_list else {}
        yield BadCase(parts, empty, "too short", f"length greater than or equal to {bounds['min']}")
    if bounds.get("max", LONGEST) < LONGEST:
        count = bounds["max"] + 1
        many: Any = (
            [example(shape.member)] * count
            if is_list
            else {f"{_map_key(shape)}{number}": example(shape.value) for number in range(count)}
        )
        yield BadCase(parts, many, "too long", f"length less than or equal to {bounds['max']}")
    if is_list:
        inside = present[0] if present else None
        yield from _cases(shape.member, (*parts, 0), inside, outer)
        return
    key = next(iter(present), None) if present else None
    yield from _cases(shape.value, (*parts, key or _map_key(shape)), None, outer)
    for case in _text_cases(shape.key, (*parts, "key")):
        if case.value:
            yield BadCase((*parts, case.value), example(shape.value), f"key {case.kind}", case.constraint)


def _text_cases(shape: Any, parts: tuple[str | int, ...]) -> Iterator[BadCase]:
    bounds = shape.metadata
    if bounds.get("min", 0) > 0:
        yield BadCase(
            parts, "a" * (bounds["min"] - 1), "too short", f"length greater than or equal to {bounds['min']}"
        )
    if bounds.get("max", LONGEST) < LONGEST:
        yield BadCase(
            parts, "a" * (bounds["max"] + 1), "too long", f"length less than or equal to {bounds['max']}"
        )
    if shape.enum:
        yield BadCase(parts, "no-such-value", "enum", "Member must satisfy enum value set")
    pattern = pattern_of(shape)
    if pattern is not None:
        for text in BAD_TEXTS:
            if not pattern.fullmatch(text):
                yield BadCase(parts, text, "pattern", "Member must satisfy regular expression pattern")
                break


_WRONG_TYPES: dict[str, tuple[Any, ...]] = {
    "structure": ("text", [], 7),
    "list": ("text", {"a": 1}, 7),
    "map": ("text", ["a"], 7),
    "string": (7, True, ["a"], {"a": "b"}),
    "integer": ("7", True, 1.5, [7], 2**31),
    "long": ("7", True, 1.5, [7], 2**63),
    "float": ("0.5", True, [0.5]),
    "double": ("0.5", True, [0.5]),
    "boolean": ("true", 1, []),
    "timestamp": ({}, [], True),
}


# --- answers --------------------------------------------------------------------------------------------


def disagreements(operation: str, answer: Any) -> list[str]:
    """List how the JSON of an answer disagrees with the output of an operation in the model."""
    shape = model().operation_model(operation).output_shape
    if shape is None:
        return [] if answer == {} else [f"{operation} has no output, not {answer!r}"]
    return list(_disagreements(shape, answer, operation))


def _disagreements(shape: Any, value: Any, path: str) -> Iterator[str]:
    kind = shape.type_name
    if not _is_json_of(kind, value):
        yield f"{path} must be {kind}, not {json.dumps(value)}"
        return
    bounds = shape.metadata
    if kind == "structure":
        for name in shape.required_members:
            if name not in value:
                yield f"{path} lacks {name}"
        for name, item in value.items():
            if name in shape.members:
                yield from _disagreements(shape.members[name], item, f"{path}.{name}")
            else:
                yield f"{path} has no member {name}"
    elif kind == "list":
        for position, item in enumerate(value):
            yield from _disagreements(shape.member, item, f"{path}[{position}]")
    elif kind == "map":
        for key, item in value.items():
            yield from _disagreements(shape.key, key, f"{path}.{key} (key)")
            yield from _disagreements(shape.value, item, f"{path}.{key}")
    elif kind == "string":
        pattern = pattern_of(shape)
        if shape.enum and value not in shape.enum:
            yield f"{path} must be one of {shape.enum}, not {value!r}"
        if pattern is not None and not pattern.fullmatch(value):
            yield f"{path} must match {pattern.pattern}, not {value!r}"
    elif kind == "timestamp" and not 946_684_800 < value < 4_102_444_800:
        yield f"{path} must be seconds since 1970, not {value!r}"
    size = len(value) if kind in ("string", "list", "map") else value
    if kind not in ("structure", "boolean", "timestamp"):
        if "min" in bounds and size < bounds["min"]:
            yield f"{path} must be {bounds['min']} or more, not {size}"
        if "max" in bounds and size > bounds["max"]:
            yield f"{path} must be {bounds['max']} or less, not {size}"


def _is_json_of(kind: str, value: Any) -> bool:
    return isinstance(value, _JSON_TYPES[kind]) and isinstance(value, bool) == (kind == "boolean")


_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "structure": (dict,),
    "list": (list,),
    "map": (dict,),
    "string": (str,),
    "integer": (int,),
    "long": (int,),
    "float": (int, float),
    "double": (int, float),
    "boolean": (bool,),
    "timestamp": (int, float),
}
