"""Parameters of conditions and policies: what each may be, and its form in a stored dict.

A condition or policy is a frozen dataclass; the metadata of each of its fields names the kind of parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from datetime import timedelta
from difflib import get_close_matches
from typing import Any, TypeVar

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.tuning.history import finite


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of parameter: what is accepted, and its form in the stored dict."""

    accepts: Callable[[Any], bool]
    limit: str
    fix: str
    read: Callable[[Any], Any]
    write: Callable[[Any], Any] = lambda value: value
    suffix: str = ""


def _number_from(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return float(value.strip())
    except ValueError:
        return value


def _count_from(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return int(value.strip())
    except ValueError:
        return value


def _duration_from(value: Any) -> Any:
    seconds = finite(_number_from(value))
    return timedelta(seconds=seconds) if seconds is not None and abs(seconds) < _LONGEST else value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31


def _is_duration(value: Any) -> bool:
    return isinstance(value, timedelta) and 0 < value.total_seconds() < _LONGEST


def _is_share(value: Any, *, least: float, most: float) -> bool:
    number = finite(value)
    return number is not None and least <= number <= most


#: How alike two words are of which one is taken for the other, misspelt (:mod:`difflib`).
_SIMILAR = 0.75

#: Seconds: a tuning job may run for half a year.
_LONGEST = 1e9

NUMBER = Kind(
    accepts=lambda value: finite(value) is not None,
    limit="a finite number",
    fix="give the objective's value, or leave it out to use the tuning job's own target",
    read=_number_from,
)
COUNT = Kind(
    accepts=_is_count, limit="a whole number, at least 1", fix="give how many training jobs", read=_count_from
)
SHARE = Kind(
    accepts=lambda value: _is_share(value, least=1e-9, most=1.0),
    limit="a share above 0, at most 1",
    fix="give 0.5 for one half",
    read=_number_from,
)
SHARE_BELOW_ONE = Kind(
    accepts=lambda value: _is_share(value, least=0.0, most=1 - 1e-9),
    limit="a share from 0 to below 1",
    fix="give 0.5 for one half",
    read=_number_from,
)
DURATION = Kind(
    accepts=_is_duration,
    limit=f"a timedelta above 0 and below {_LONGEST:g} seconds",
    fix="pass a timedelta, as timedelta(minutes=30); in a dict, a number of seconds",
    read=_duration_from,
    write=lambda value: value.total_seconds(),
    suffix="_seconds",
)


def one_of(*words: str) -> Kind:
    """Return the kind of a parameter that is one of these words."""
    return Kind(
        accepts=lambda value: isinstance(value, str) and value in words,
        limit=f"one of {', '.join(words)}",
        fix="check the spelling",
        read=lambda value: value.strip() if isinstance(value, str) else value,
    )


def kind_of(parameter: Field[Any]) -> Kind:
    """Return the kind of a parameter."""
    kind: Kind = parameter.metadata["kind"]
    return kind


_Parametrised = TypeVar("_Parametrised")


def check_parameters(instance: Any, path: str) -> None:
    """Check all parameters of a dataclass instance.

    :raises AmtFieldError: the first that is not accepted.
    """
    for one in _parameters(type(instance)):
        value, kind = getattr(instance, one.name), kind_of(one)
        if (value is not None or one.default is not None) and not kind.accepts(value):
            raise AmtFieldError(f"{path}.{one.name}", value, kind.limit, kind.fix)


def write_parameters(instance: Any) -> dict[str, Any]:
    """Return all parameters that are not ``None`` in their stored form."""
    return {
        one.name + kind_of(one).suffix: kind_of(one).write(value)
        for one in _parameters(type(instance))
        if (value := getattr(instance, one.name)) is not None
    }


def parse_parameters(
    kind: type[_Parametrised], body: Mapping[str, Any], path: str, *, beside: Iterable[str] = ()
) -> _Parametrised:
    """Build an instance from its stored parameters; numbers may be strings, as templates leave them.

    :param beside: keys that were taken out of the body before; an error about a misspelt one names them.
    :raises AmtFieldError: a parameter is not known, missing or not accepted.
    """
    known = {one.name + kind_of(one).suffix: one for one in _parameters(kind)}
    refuse_unknown(body, (*known, *beside), path)
    values: dict[str, Any] = {}
    for key, one in known.items():
        given = body.get(key)
        if isinstance(given, str) and given.strip() in ("", "None"):
            given = None
        if given is not None:
            values[one.name] = kind_of(one).read(given)
        elif one.default is MISSING and one.default_factory is MISSING:
            raise AmtFieldError(f"{path}.{key}", None, kind_of(one).limit, kind_of(one).fix)
    try:
        return kind(**values)
    except AmtFieldError as error:
        name = error.field.rpartition(".")[2]
        key = next(key for key, one in known.items() if one.name == name)
        raise AmtFieldError(f"{path}.{key}", body.get(key), error.limit, error.fix) from None


def refuse_unknown(body: Mapping[str, Any], known: Iterable[str], path: str) -> None:
    """Refuse keys that are not known.

    :raises AmtFieldError: there is one.
    """
    names = list(known)
    for key, given in body.items():
        if key not in names:
            allowed = ", ".join(names) or "nothing but its type"
            # "duration" first of all stands for "duration_seconds".
            close = [one for one in names if one.startswith(f"{key}_")] or get_close_matches(
                str(key), names, 1, _SIMILAR
            )
            fix = f"write {close[0]}" if close else "leave it out"
            raise AmtFieldError(f"{path}.{key}", given, f"not known here; known: {allowed}", fix)


def _parameters(kind: type[Any]) -> Iterator[Field[Any]]:
    # Every kind of condition or policy is a dataclass.
    yield from fields(kind)
