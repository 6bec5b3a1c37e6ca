"""The hyperparameters that are tuned: their ranges, scales and values as strings.

``Auto`` scaling is read as: logarithmic where the range is positive and spans a factor of 100 or more, else
linear. AMT does not publish its own choice.
"""

from __future__ import annotations

import math
import random
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from airflow_amt.exceptions import AmtFieldError

#: From this factor between the bounds of a positive range on, ``Auto`` means logarithmic.
AUTO_LOGARITHMIC_FACTOR = 100.0

#: How far a range that Autotune chooses reaches from its hint, as a factor each way.
AUTOTUNE_INTEGER_FACTOR = 4
AUTOTUNE_FACTOR = 10.0

#: Values have 256 characters at most in the API.
_WHOLE = r"[+-]?[0-9]{1,300}"

Combination = Mapping[str, str]
Key = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerParameter:
    """Whole numbers from ``low`` to ``high``, both included."""

    name: str
    low: int
    high: int
    logarithmic: bool

    @property
    def size(self) -> int:
        """How many values there are."""
        return self.high - self.low + 1

    def at(self, position: int) -> str:
        """Return the value at a 0-based position."""
        return str(self.low + position)

    def draw(self, generator: random.Random) -> str:
        """Draw a value, evenly on the parameter's scale."""
        if not self.logarithmic:
            return str(generator.randint(self.low, self.high))
        # The upper edge is high + 1, so that the last whole number gets its share of the scale.
        drawn = math.exp(generator.uniform(math.log(self.low), math.log(self.high + 1)))
        return str(min(max(math.floor(drawn), self.low), self.high))

    def read(self, text: str) -> str | None:
        """Return a value as this range writes it, ``None`` if it is none of its whole numbers."""
        text = _unquoted(text)
        if not re.fullmatch(_WHOLE, text):
            number = _finite(text)
            if number is None or number != math.floor(number):
                return None
            text = str(int(number))
        return str(int(text)) if self.low <= int(text) <= self.high else None

    def position(self, text: str) -> float:
        """Return where a value lies on the parameter's scale, 0 to 1: the middle of its share."""
        value = int(text)
        if not self.logarithmic:
            return (2 * (value - self.low) + 1) / (2 * self.size)
        low, high = math.log(self.low), math.log(self.high + 1)
        return (math.log(value + 0.5) - low) / (high - low)

    def value(self, position: float) -> str:
        """Return the value at a place on the parameter's scale, 0 to 1."""
        if not self.logarithmic:
            # Exact: the size may be more than a double holds.
            value = self.low + math.floor(Fraction(position) * self.size)
        else:
            low, high = math.log(self.low), math.log(self.high + 1)
            value = math.floor(math.exp(low + position * (high - low)))
        return str(min(max(value, self.low), self.high))


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinuousParameter:
    """Real numbers from ``low`` to ``high``; ``scaling`` is Linear, Logarithmic or ReverseLogarithmic."""

    name: str
    low: float
    high: float
    scaling: str

    @property
    def size(self) -> int | None:
        """``1`` for a range of one point, else ``None``: not countable."""
        return 1 if self.low == self.high else None

    def at(self, position: int) -> str:
        """Return the only value of a range of one point."""
        return repr(self.low)

    def draw(self, generator: random.Random) -> str:
        """Draw a value, evenly on the parameter's scale."""
        return self._bounded(self._off_scale(generator.uniform(*self._edges())))

    def read(self, text: str) -> str | None:
        """Return a value as this range writes it, ``None`` if it is no number within."""
        number = _finite(_unquoted(text))
        return None if number is None or not self.low <= number <= self.high else repr(number)

    def position(self, text: str) -> float:
        """Return where a value lies on the parameter's scale, 0 to 1."""
        low, high = self._edges()
        if low == high:
            return 0.5
        return min(max((self._on_scale(float(text)) - low) / (high - low), 0.0), 1.0)

    def value(self, position: float) -> str:
        """Return the value at a place on the parameter's scale, 0 to 1."""
        low, high = self._edges()
        return self._bounded(self._off_scale(low + position * (high - low)))

    def _edges(self) -> tuple[float, float]:
        first, second = self._on_scale(self.low), self._on_scale(self.high)
        return min(first, second), max(first, second)

    def _on_scale(self, value: float) -> float:
        if self.scaling == "Logarithmic":
            return math.log(value)
        return math.log(1 - value) if self.scaling == "ReverseLogarithmic" else value

    def _off_scale(self, value: float) -> float:
        if self.scaling == "Logarithmic":
            return math.exp(value)
        return 1 - math.exp(value) if self.scaling == "ReverseLogarithmic" else value

    def _bounded(self, value: float) -> str:
        return repr(min(max(value, self.low), self.high))


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoricalParameter:
    """One of some strings."""

    name: str
    values: tuple[str, ...]

    @property
    def size(self) -> int:
        """How many values there are."""
        return len(self.values)

    def at(self, position: int) -> str:
        """Return the value at a 0-based position."""
        return self.values[position]

    def draw(self, generator: random.Random) -> str:
        """Draw one of the values, all equally likely."""
        return self.values[generator.randrange(len(self.values))]

    def read(self, text: str) -> str | None:
        """Return a value as this range writes it, ``None`` if it is none of them."""
        return next((one for one in (text, _unquoted(text), f'"{text}"') if one in self.values), None)

    def position(self, text: str) -> float:
        """Return the middle of a value's share of 0 to 1."""
        return (self.values.index(text) + 0.5) / self.size

    def value(self, position: float) -> str:
        """Return the value whose share of 0 to 1 a position lies in."""
        return self.values[min(int(position * self.size), self.size - 1)]


Parameter = IntegerParameter | ContinuousParameter | CategoricalParameter


class Space:
    """The hyperparameters that are tuned, and their ranges.

    :param parameters: the ranges; their names differ.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self.parameters = tuple(parameters)
        size: int | None = 1
        for parameter in self.parameters:
            size = None if size is None or parameter.size is None else size * parameter.size
        #: Number of combinations; ``None`` if there is a continuous range.
        self.size = size

    @classmethod
    def from_ranges(cls, ranges: Mapping[str, Any], path: str) -> Space:
        """Read the API's ``ParameterRanges``.

        :param path: where they are in the request, for errors.
        :raises AmtFieldError: a bound is not a number of its kind, bounds are the wrong way round or too
            far apart, or a scale does not fit them.
        """
        parameters: list[Parameter] = []
        for position, one in enumerate(ranges.get("IntegerParameterRanges") or ()):
            parameters.append(_integer(one, f"{path}.IntegerParameterRanges[{position}]"))
        for position, one in enumerate(ranges.get("ContinuousParameterRanges") or ()):
            parameters.append(_continuous(one, f"{path}.ContinuousParameterRanges[{position}]"))
        for one in ranges.get("CategoricalParameterRanges") or ():
            # A value that is listed twice is still one value.
            values = tuple(dict.fromkeys(one["Values"]))
            parameters.append(CategoricalParameter(name=one["Name"], values=values))
        parameters.extend(around(one["Name"], one["ValueHint"]) for one in ranges.get("AutoParameters") or ())
        return cls(parameters)

    def read(self, combination: Combination) -> dict[str, str] | None:
        """Return the tuned part of a combination as this space writes it, ``None`` if it lies outside.

        Values may stand in JSON's quotes, as the SageMaker SDK writes static hyperparameters.
        """
        found: dict[str, str] = {}
        for one in self.parameters:
            value = one.read(combination[one.name]) if one.name in combination else None
            if value is None:
                return None
            found[one.name] = value
        return found

    def draw(self, generator: random.Random) -> dict[str, str]:
        """Draw a combination; each hyperparameter evenly on its scale."""
        return {parameter.name: parameter.draw(generator) for parameter in self.parameters}

    def key(self, combination: Combination) -> Key:
        """Return what tells a combination from another one: its values of the tuned hyperparameters."""
        return tuple(combination[parameter.name] for parameter in self.parameters)

    def at(self, number: int) -> dict[str, str]:
        """Return a combination of a finite space by its 0-based number."""
        combination = {}
        for parameter in self.parameters:
            number, position = divmod(number, parameter.size or 1)
            combination[parameter.name] = parameter.at(position)
        return combination


def around(name: str, hint: str) -> Parameter:
    """Return the range that Autotune chooses for a hyperparameter (``AutoParameters``).

    AMT does not publish how it chooses. The reading here:

    ======================= =================================================================
    ``ValueHint``           range
    ======================= =================================================================
    whole number above 0    integer, a quarter to four times the hint, at least 1, logarithmic
    0                       integer, 0 to 10
    whole number below 0    integer, four times to a quarter of the hint, at most -1
    decimal below 0.1       continuous, a tenth to ten times the hint, logarithmic
    decimal, 0.1 to 0.9     continuous, halfway to 0 and halfway to 1
    decimal, 0.9 to 1       continuous, a tenth to ten times its distance from 1, reverse logarithmic
    decimal from 1 on       continuous, a tenth to ten times the hint, logarithmic
    0.0                     continuous, 0 to 1
    decimal below 0         continuous, ten times to a tenth of the hint, linear
    true, false             categorical, both, in the hint's spelling
    anything else           categorical, the hint alone
    ======================= =================================================================

    A decimal is any other number, ``1e3`` and ``2.0`` too. Quotes around a number, as the SageMaker SDK
    writes them, do not count.

    :param name: the hyperparameter.
    :param hint: an example of its value.
    """
    text = _unquoted(hint)
    if re.fullmatch(_WHOLE, text):
        return _around_integer(name, int(text))
    number = _finite(text)
    if number is not None:
        return _around_decimal(name, number)
    for yes, no in (("true", "false"), ("True", "False"), ("TRUE", "FALSE")):
        for quote in ("", '"'):
            both = (f"{quote}{yes}{quote}", f"{quote}{no}{quote}")
            if hint in both:
                return CategoricalParameter(name=name, values=both)
    return CategoricalParameter(name=name, values=(hint,))


def _around_integer(name: str, hint: int) -> IntegerParameter:
    if hint == 0:
        return IntegerParameter(name=name, low=0, high=10, logarithmic=False)
    near = max(abs(hint) // AUTOTUNE_INTEGER_FACTOR, 1)
    far = abs(hint) * AUTOTUNE_INTEGER_FACTOR
    if hint < 0:
        return IntegerParameter(name=name, low=-far, high=-near, logarithmic=False)
    return IntegerParameter(name=name, low=near, high=far, logarithmic=True)


def _around_decimal(name: str, hint: float) -> ContinuousParameter:
    scaling = "Linear"
    if hint == 0:
        low, high = 0.0, 1.0
    elif 0.1 <= hint <= 0.9:
        low, high = hint / 2, (1 + hint) / 2
    elif 0.9 < hint < 1:
        scaling = "ReverseLogarithmic"
        low, high = 1 - (1 - hint) * AUTOTUNE_FACTOR, 1 - (1 - hint) / AUTOTUNE_FACTOR
        # Next to 1 the doubles run out.
        high = min(high, math.nextafter(1.0, 0.0))
    else:
        # Within the normal doubles, where the hint is.
        size = abs(hint)
        near = min(size, max(size / AUTOTUNE_FACTOR, sys.float_info.min))
        # A linear range, below 0, needs a width that is a normal double.
        least = 0.0 if hint > 0 else near + 1e3 * sys.float_info.min
        far = max(size, min(size * AUTOTUNE_FACTOR, sys.float_info.max / 4), least)
        low, high = (near, far) if hint > 0 else (-far, -near)
        scaling = "Logarithmic" if hint > 0 else "Linear"
    return ContinuousParameter(name=name, low=low, high=high, scaling=scaling)


def _scaling(one: Mapping[str, Any], low: float, high: float, path: str, allowed: Sequence[str]) -> str:
    scaling: str = one.get("ScalingType") or "Auto"
    if scaling == "Auto":
        return "Logarithmic" if low > 0 and high / low >= AUTO_LOGARITHMIC_FACTOR else "Linear"
    field = f"{path}.ScalingType"
    if scaling not in allowed:
        raise AmtFieldError(field, scaling, f"one of {', '.join(allowed)}", "choose another scale")
    if scaling == "Logarithmic" and low <= 0:
        raise AmtFieldError(field, scaling, "a logarithmic scale needs MinValue above 0", "raise MinValue")
    if scaling == "ReverseLogarithmic" and not (low >= 0 and high < 1):
        raise AmtFieldError(
            field, scaling, "a reverse logarithmic scale needs 0 <= x < 1", "change the range or the scale"
        )
    return scaling


def _integer(one: Mapping[str, Any], path: str) -> IntegerParameter:
    low, high = (_whole_number(one, key, path) for key in ("MinValue", "MaxValue"))
    _check_order(low, high, one, path)
    scaling = _scaling(one, low, high, path, ("Auto", "Linear", "Logarithmic"))
    return IntegerParameter(name=one["Name"], low=low, high=high, logarithmic=scaling == "Logarithmic")


def _continuous(one: Mapping[str, Any], path: str) -> ContinuousParameter:
    low, high = (_number(one, key, path) for key in ("MinValue", "MaxValue"))
    _check_order(low, high, one, path)
    scaling = _scaling(one, low, high, path, ("Auto", "Linear", "Logarithmic", "ReverseLogarithmic"))
    # Only a linear scale needs the difference; both searches compute with it, in doubles.
    if scaling == "Linear" and low < high and not sys.float_info.min <= high - low <= sys.float_info.max:
        raise AmtFieldError(
            f"{path}.MaxValue",
            one["MaxValue"],
            f"a range whose width (MaxValue - MinValue, {one['MinValue']}) is a double: "
            f"{sys.float_info.min:.2g} to {sys.float_info.max:.2g}",
            "bring the bounds closer together" if high - low > 1 else "bring the bounds further apart",
        )
    return ContinuousParameter(name=one["Name"], low=low, high=high, scaling=scaling)


def _whole_number(one: Mapping[str, Any], key: str, path: str) -> int:
    number = _number(one, key, path)
    if re.fullmatch(_WHOLE, one[key].strip()):
        # Exact, also where doubles no longer tell whole numbers apart.
        return int(one[key])
    if number != math.floor(number):
        raise AmtFieldError(f"{path}.{key}", one[key], "a whole number", "round it")
    return int(number)


def _number(one: Mapping[str, Any], key: str, path: str) -> float:
    number = _finite(one[key])
    if number is None:
        raise AmtFieldError(f"{path}.{key}", one[key], "a finite number, as a string", "give a number")
    return number


def _unquoted(text: str) -> str:
    return text.strip().strip('"').strip()


def _finite(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _check_order(low: float, high: float, one: Mapping[str, Any], path: str) -> None:
    if low > high:
        raise AmtFieldError(
            f"{path}.MinValue", one["MinValue"], f"at most MaxValue ({one['MaxValue']})", "swap the bounds"
        )
