"""Numbers that people give, or that templates render."""

from __future__ import annotations

from typing import Any

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.tuning.history import finite


def parse_number(
    field: str,
    value: Any,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    whole: bool = False,
) -> float:
    """Return a finite number, also from the text that a template rendered.

    :param field: name of the argument, for the error.
    :param at_least: smallest number that is accepted.
    :param at_most: largest number that is accepted.
    :param whole: whether only whole numbers are.
    :raises AmtFieldError: it is something else.
    """
    number: Any = value
    if isinstance(number, str):
        try:
            number = float(number.strip())
        except ValueError:
            number = None
    number = finite(number)
    if (
        number is None
        or (whole and not float(number).is_integer())
        or (at_least is not None and number < at_least)
        or (at_most is not None and number > at_most)
    ):
        kind = "a whole number" if whole else "a finite number"
        low = "" if at_least is None else f" from {at_least:g}"
        high = "" if at_most is None else f" to {at_most:g}"
        raise AmtFieldError(field, value, f"{kind}{low}{high}", f"give {field} as such a number")
    return float(number)


def is_given(value: Any) -> bool:
    """Whether an argument was given: neither ``None`` nor what a template renders where there is none."""
    return value is not None and not (isinstance(value, str) and value.strip() in ("", "None"))
