"""botocore's SageMaker service model, used to check requests and to turn rendered strings back.

botocore's own client checks required members, types and minima only; a 40-character name, an unknown enum
value or a runtime over its maximum would travel to AWS first (measured with botocore 1.44.5). The check
here covers all that the model states: required, unknown members, types, minima, maxima, patterns, enums
and unions. The hook runs it before any call, the embedded AMT runs it on what arrives.

The model is loaded once per process, on first use (about half a second).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import islice
from typing import Any

import botocore.loaders
import botocore.model

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.text import MOST_PROBLEMS, amount, listed, shown, shown_value
from airflow_amt.tuning.criteria import LARGEST_FLOAT
from airflow_amt.tuning.history import finite
from airflow_amt.tuning.request import check_documented_rules

SERVICE = "sagemaker"

_INTEGERS = frozenset({"integer", "long"})
_FLOATS = frozenset({"float", "double"})
_WIDTHS = {"integer": 2**31, "long": 2**63}
_LARGEST = {"float": LARGEST_FLOAT, "double": sys.float_info.max}
#: Characters that are matched with a pattern: beyond, what is too long is refused for its length alone.
_MOST_MATCHED = 10_000


@cache
def service_model() -> botocore.model.ServiceModel:
    """Return botocore's model of SageMaker."""
    # botocore's classes are partly annotated, which mypy's strict mode does not let one call.
    loaders: Any = botocore.loaders
    models: Any = botocore.model
    description = loaders.Loader().load_service_model(SERVICE, "service-2")
    model: botocore.model.ServiceModel = models.ServiceModel(description, SERVICE)
    return model


@cache
def operation_names() -> frozenset[str]:
    """Return the names of all operations of SageMaker."""
    return frozenset(service_model().operation_names)


@cache
def input_shape(operation: str) -> botocore.model.StructureShape | None:
    """Return the shape of an operation's parameters; ``None`` if it has none.

    :raises botocore.exceptions.OperationNotFoundError: the API has no such operation.
    """
    shape: botocore.model.StructureShape | None = service_model().operation_model(operation).input_shape
    return shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One way in which a request disagrees with the service model.

    :param path: where, as the API spells it: ``TrainingJobDefinition.StoppingCondition.MaxRuntimeInSeconds``,
        with ``[2]`` for list positions.
    :param kind: ``required``, ``unknown``, ``type``, ``min``, ``max``, ``min_length``, ``max_length``,
        ``pattern``, ``enum`` or ``union``.
    :param value: what was found; ``None`` if nothing was.
    :param limit: the bound of the model: a number, a pattern, the enum's values, or a type's name.
    """

    path: str
    kind: str
    value: Any
    limit: Any

    def constraint(self) -> str:
        """Say, in the words AWS uses in a ``ValidationException``, what is required of the value."""
        return _CONSTRAINTS[self.kind](self.limit)

    def as_error(self) -> AmtFieldError:
        """Return the error that is raised before a call: field, value, limit, fix."""
        limit, fix = _ADVICE[self.kind](self.limit)
        return AmtFieldError(self.path, self.value, limit, fix)


_CONSTRAINTS: Mapping[str, Callable[[Any], str]] = {
    "required": lambda _: "Member must not be null",
    "unknown": lambda limit: f"Member is not known; known members: [{listed(limit)}]",
    "type": lambda limit: f"Member must be of type {limit}",
    "min": lambda limit: f"Member must have value greater than or equal to {limit}",
    "max": lambda limit: f"Member must have value less than or equal to {limit}",
    "min_length": lambda limit: f"Member must have length greater than or equal to {limit}",
    "max_length": lambda limit: f"Member must have length less than or equal to {limit}",
    "pattern": lambda limit: f"Member must satisfy regular expression pattern: {limit}",
    "enum": lambda limit: f"Member must satisfy enum value set: [{listed(limit)}]",
    "union": lambda limit: f"Member must have exactly one of [{listed(limit)}]",
}

_ADVICE: Mapping[str, Callable[[Any], tuple[str, str]]] = {
    "required": lambda limit: ("this field is required", f"add it ({limit})"),
    "unknown": lambda limit: (
        f"the API knows {listed(limit)} here",
        "check the spelling and the place of this field, or update botocore if the field is new",
    ),
    "type": lambda limit: (f"it must be of type {limit}", f"give a value of type {limit}"),
    "min": lambda limit: (f"it must be {limit} or more", f"set it to {limit} or more"),
    "max": lambda limit: (f"it must be {limit} or less", f"set it to {limit} or less"),
    "min_length": lambda limit: (f"its length must be {limit} or more", "give more"),
    "max_length": lambda limit: (f"its length must be {limit} or less", f"shorten it to {limit} or less"),
    "pattern": lambda limit: (f"it must match {limit}", "use only what this pattern allows"),
    "enum": lambda limit: (f"it must be one of {listed(limit)}", f"choose one of {listed(limit)}"),
    "union": lambda limit: (f"exactly one of {listed(limit)} must be set", "set one of them"),
}


def validate(operation: str, params: Any) -> list[Problem]:
    """List every way in which the parameters of an operation disagree with the service model.

    :param operation: API operation, as ``CreateHyperParameterTuningJob``.
    :param params: its parameters, as boto3 takes them; members that are ``None`` count as missing.
    :return: problems in the order of the model, one more than are ever listed at the most; empty if the
        request is well formed.
    """
    shape = input_shape(operation)
    if shape is None:
        return []
    return list(islice(_check(shape, params, ""), MOST_PROBLEMS + 1))


def check_create_request(request: Mapping[str, Any]) -> list[AmtFieldError]:
    """List everything wrong with a ``CreateHyperParameterTuningJob`` request, before it is sent.

    The service model's rules first, then the documented ones; a field is named once.
    """
    found = [problem.as_error() for problem in validate("CreateHyperParameterTuningJob", request)]
    named = {problem.field for problem in found}
    return found + [problem for problem in check_documented_rules(request) if problem.field not in named]


def aws_message(problems: Sequence[Problem]) -> str:
    """Say the problems in the form that AWS gives its ``ValidationException`` messages.

    AWS spells fields in lower camel case there; the path as the API documents it is appended to each.
    """
    return listed_as_aws_does(
        f"Value {_aws_value(problem.value)} at '{shown(_aws_path(problem.path))}' "
        f"failed to satisfy constraint: {problem.constraint()} ({shown(problem.path)})"
        for problem in problems
    )


def listed_as_aws_does(problems: Iterable[Any]) -> str:
    """Say problems in one line, as a ``ValidationException`` does; only the first of very many."""
    some = list(islice(problems, MOST_PROBLEMS + 1))
    text = "; ".join(str(problem) for problem in some[:MOST_PROBLEMS])
    more = "; and more" if len(some) > MOST_PROBLEMS else ""
    return f"{amount(some)} validation error{'' if len(some) == 1 else 's'} detected: {text}{more}"


def coerce(operation: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return a deep copy with scalars in the types of the service model, where that loses nothing.

    Templates render to strings (``"20"`` for an integer) or, with ``render_template_as_native_obj``, to
    numbers where the API wants strings (the bounds of a range, static hyperparameters). Both are turned
    back. What cannot be turned stays as it is, for :func:`validate` to report. Members that are ``None``
    are left out, as boto3 would refuse them.

    :param operation: API operation whose input gives the types.
    :param params: its parameters.
    """
    shape = input_shape(operation)
    coerced = _coerce(shape, params) if shape is not None else dict(params)
    return dict(coerced)


def _check(shape: botocore.model.Shape, value: Any, path: str) -> Iterator[Problem]:
    kind = shape.type_name
    if kind == "structure":
        yield from _check_structure(shape, value, path)
    elif kind == "list":
        if not isinstance(value, (list, tuple)):
            yield Problem(path=path, kind="type", value=value, limit="list")
            return
        yield from _check_length(shape, value, path)
        for position, item in enumerate(() if _is_too_long(shape, value) else value):
            yield from _check(shape.member, item, f"{path}[{position}]")
    elif kind == "map":
        if not isinstance(value, Mapping):
            yield Problem(path=path, kind="type", value=value, limit="map")
            return
        yield from _check_length(shape, value, path)
        for key, item in () if _is_too_long(shape, value) else value.items():
            yield from _check(shape.key, key, f"{path}.{key}")
            yield from _check(shape.value, item, f"{path}.{key}")
    else:
        yield from _check_scalar(shape, value, path)


def _check_structure(shape: botocore.model.StructureShape, value: Any, path: str) -> Iterator[Problem]:
    if not isinstance(value, Mapping):
        yield Problem(path=path or shape.name, kind="type", value=value, limit="structure")
        return
    prefix = f"{path}." if path else ""
    for key in value:
        if key not in shape.members:
            yield Problem(path=f"{prefix}{key}", kind="unknown", value=value[key], limit=tuple(shape.members))
    present = [key for key in shape.members if value.get(key) is not None]
    for key in shape.required_members:
        if value.get(key) is None:
            yield Problem(
                path=f"{prefix}{key}", kind="required", value=None, limit=shape.members[key].type_name
            )
    if shape.is_tagged_union and len(present) != 1:
        yield Problem(path=path, kind="union", value=dict(value), limit=tuple(shape.members))
    for key in present:
        yield from _check(shape.members[key], value[key], f"{prefix}{key}")


def _check_scalar(shape: botocore.model.Shape, value: Any, path: str) -> Iterator[Problem]:
    kind = shape.type_name
    if not _is_of_type(kind, value):
        yield Problem(path=path, kind="type", value=value, limit=kind)
        return
    bounds = shape.metadata
    if kind == "string":
        yield from _check_length(shape, value, path)
        if shape.enum and value not in shape.enum:
            yield Problem(path=path, kind="enum", value=value, limit=tuple(shape.enum))
        pattern = bounds.get("pattern")
        if pattern and len(value) <= _MOST_MATCHED and not _matches(pattern, value):
            yield Problem(path=path, kind="pattern", value=value, limit=pattern)
    elif kind in _INTEGERS or kind in _FLOATS:
        if kind in _INTEGERS and not -_WIDTHS[kind] <= value < _WIDTHS[kind]:
            yield Problem(path=path, kind="type", value=value, limit=kind)
        if "min" in bounds and value < bounds["min"]:
            yield Problem(path=path, kind="min", value=value, limit=bounds["min"])
        if "max" in bounds and value > bounds["max"]:
            yield Problem(path=path, kind="max", value=value, limit=bounds["max"])


def _check_length(shape: botocore.model.Shape, value: Any, path: str) -> Iterator[Problem]:
    bounds = shape.metadata
    if "min" in bounds and len(value) < bounds["min"]:
        yield Problem(path=path, kind="min_length", value=value, limit=bounds["min"])
    if _is_too_long(shape, value):
        yield Problem(path=path, kind="max_length", value=value, limit=bounds["max"])


def _is_too_long(shape: botocore.model.Shape, value: Any) -> bool:
    """Whether a value has more items than the model allows; these are not looked at then."""
    return "max" in shape.metadata and len(value) > shape.metadata["max"]


def _is_of_type(kind: str, value: Any) -> bool:
    if kind == "string":
        return isinstance(value, str)
    if kind == "boolean":
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    if kind in _INTEGERS:
        return isinstance(value, int)
    if kind in _FLOATS:
        return isinstance(value, (int, float)) and abs(value) <= _LARGEST[kind]
    if kind == "timestamp":
        return isinstance(value, (datetime, str)) or finite(value) is not None
    if kind == "blob":
        return isinstance(value, (bytes, bytearray, str))
    raise ValueError(f"the service model has a type that is not handled: {kind!r}")


#: Unicode's separators; unlike ``\\s``, no tabs and line ends, which are control characters.
_SEPARATORS = r" \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
#: Java's Unicode classes in the patterns of the model, in the nearest terms of Python's ``re``.
_JAVA_CLASSES = {r"\p{L}": r"\w", r"\p{N}": r"\d", r"\p{Z}": _SEPARATORS, r"\p{Alnum}": "a-zA-Z0-9"}


@cache
def compiled_pattern(pattern: str) -> re.Pattern[str] | None:
    """Compile a pattern of the model, or return ``None`` for one that Python cannot express.

    Of the 252 patterns in botocore 1.44.5, six cannot be; none of them occurs in a tuning operation. A
    value with such a pattern is left to AWS.
    """
    for java, python in _JAVA_CLASSES.items():
        pattern = pattern.replace(java, python)
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error:
        return None


def _matches(pattern: str, value: str) -> bool:
    compiled = compiled_pattern(pattern)
    return compiled is None or compiled.fullmatch(value) is not None


def _coerce(shape: botocore.model.Shape, value: Any) -> Any:
    kind = shape.type_name
    if kind == "structure" and isinstance(value, Mapping):
        return {
            key: _coerce(shape.members[key], item) if key in shape.members else item
            for key, item in value.items()
            if item is not None
        }
    if kind == "list" and isinstance(value, (list, tuple)):
        return [_coerce(shape.member, item) for item in value]
    if kind == "map" and isinstance(value, Mapping):
        return {_coerce(shape.key, key): _coerce(shape.value, item) for key, item in value.items()}
    if kind == "string" and isinstance(value, (int, float)) and not isinstance(value, bool):
        return repr(value)
    if isinstance(value, str):
        return _from_text(kind, value)
    return value


def _from_text(kind: str, text: str) -> Any:
    stripped = text.strip()
    if kind in _INTEGERS and re.fullmatch(r"[+-]?\d{1,19}", stripped):
        return int(stripped)
    if kind in _FLOATS:
        try:
            return float(stripped)
        except ValueError:
            return text
    if kind == "boolean" and stripped.lower() in ("true", "false"):
        return stripped.lower() == "true"
    return text


def _aws_path(path: str) -> str:
    """Spell a path as AWS does in messages: members in lower camel case, list positions from 1."""
    parts = []
    for part in path.split("."):
        name, bracket, rest = part.partition("[")
        lowered = name[:1].lower() + name[1:]
        position = f".{int(rest.rstrip(']')) + 1}.member" if bracket and rest.rstrip("]").isdigit() else ""
        parts.append(lowered + position)
    return ".".join(parts)


def _aws_value(value: Any) -> str:
    if value is None:
        return "null"
    return f"'{shown(value) if isinstance(value, str) else shown_value(value)}'"
