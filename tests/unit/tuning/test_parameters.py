"""Kinds of parameters, and reading and writing them, on a class of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.tuning.parameters import (
    COUNT,
    DURATION,
    NUMBER,
    SHARE,
    SHARE_BELOW_ONE,
    Kind,
    check_parameters,
    kind_of,
    one_of,
    parse_parameters,
    refuse_unknown,
    write_parameters,
)

_TABLE = Kind(
    accepts=lambda value: isinstance(value, Mapping),
    limit="a mapping",
    fix="give one",
    read=lambda value: value,
)


@dataclass(frozen=True)
class Thing:
    count: int = field(metadata={"kind": COUNT})
    wait: timedelta | None = field(default=None, metadata={"kind": DURATION})
    part: float = field(default=0.5, metadata={"kind": SHARE})
    word: str = field(default="red", metadata={"kind": one_of("red", "blue")})
    table: Mapping[str, Any] = field(default_factory=dict, metadata={"kind": _TABLE})

    def __post_init__(self) -> None:
        check_parameters(self, "thing")


@pytest.mark.parametrize(
    ("kind", "value", "accepted"),
    [
        (NUMBER, 0, True),
        (NUMBER, float("inf"), False),
        (NUMBER, True, False),
        (NUMBER, 10**400, False),
        (NUMBER, "1", False),
        (COUNT, 1, True),
        (COUNT, 0, False),
        (COUNT, 1.0, False),
        (COUNT, True, False),
        (COUNT, 2**31, False),
        (SHARE, 1.0, True),
        (SHARE, 0.0, False),
        (SHARE, 1.01, False),
        (SHARE_BELOW_ONE, 0.0, True),
        (SHARE_BELOW_ONE, 1.0, False),
        (DURATION, timedelta(microseconds=1), True),
        (DURATION, timedelta(0), False),
        (DURATION, timedelta(seconds=1e9), False),
        (DURATION, 60, False),
        (one_of("a", "b"), "a", True),
        (one_of("a", "b"), "c", False),
        (one_of("a", "b"), ["a"], False),
    ],
)
def test_kinds(kind: Kind, value: Any, accepted: bool) -> None:
    assert kind.accepts(value) is accepted


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (NUMBER, " 0.5 ", 0.5),
        (NUMBER, "much", "much"),
        (COUNT, "3", 3),
        (COUNT, "3.5", "3.5"),
        (COUNT, "9" * 5000, "9" * 5000),
        (DURATION, "90", timedelta(seconds=90)),
        (DURATION, 90, timedelta(seconds=90)),
        (DURATION, float("nan"), None),
        (DURATION, 1e300, 1e300),
        (one_of("a"), " a ", "a"),
    ],
)
def test_text_as_templates_leave_it(kind: Kind, text: Any, value: Any) -> None:
    read = kind.read(text)
    assert read == value if value is not None else not kind.accepts(read)


def test_what_is_left_out_or_empty_has_its_default() -> None:
    body = {"count": "3", "wait_seconds": "None", "part": "", "word": None}
    assert parse_parameters(Thing, body, "thing") == Thing(3)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "there.count"),
        ({"count": None}, "there.count"),
        ({"count": 0}, "there.count"),
        ({"count": 1, "wait_seconds": "soon"}, "there.wait_seconds"),
        ({"count": 1, "wait": 3}, "there.wait"),
        ({"count": 1, "word": {"red": 1}}, "there.word"),
        ({"count": 1, "table": []}, "there.table"),
    ],
)
def test_errors_name_the_key_of_the_dict(body: dict[str, Any], path: str) -> None:
    with pytest.raises(AmtFieldError) as caught:
        parse_parameters(Thing, body, "there")
    assert caught.value.field == path


def test_errors_of_the_class_name_its_attribute() -> None:
    with pytest.raises(AmtFieldError) as caught:
        Thing(1, wait=timedelta(0))
    assert (caught.value.field, caught.value.value) == ("thing.wait", timedelta(0))


@given(
    st.builds(
        Thing,
        st.integers(1, 2**31 - 1),
        st.one_of(st.none(), st.timedeltas(timedelta(microseconds=1), timedelta(days=300))),
        st.floats(1e-9, 1),
        st.sampled_from(["red", "blue"]),
        st.dictionaries(st.text(), st.integers()),
    )
)
def test_what_is_written_is_read_back(thing: Thing) -> None:
    assert parse_parameters(Thing, write_parameters(thing), "thing") == thing


def test_unknown_keys_are_refused() -> None:
    refuse_unknown({"a": 1}, ("a", "b"), "here")
    with pytest.raises(AmtFieldError, match="known: a, b") as caught:
        refuse_unknown({"c": 1}, ("a", "b"), "here")
    assert caught.value.field == "here.c"
    with pytest.raises(AmtFieldError, match="nothing but its type"):
        refuse_unknown({"c": 1}, (), "here")


def test_the_kind_of_a_field() -> None:
    assert kind_of(Thing.__dataclass_fields__["count"]) is COUNT
