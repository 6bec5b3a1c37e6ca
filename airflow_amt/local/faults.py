"""Misbehaviour on purpose: what a user's tests want the embedded AMT to do wrong, off by default.

A list of rules says which calls or training jobs suffer what: ``throttle``, ``latency``, ``error``, ``drop``
(the connection), ``stale`` (reads) and ``fail_training``. :class:`Faults` are the checked rules,
:class:`FaultInjector` applies them while the server runs. Chances come from a seed, so that the same calls
in the same order meet the same faults. All seconds here are real ones, as those are what clients wait for.
"""

from __future__ import annotations

import fnmatch
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local import json_text
from airflow_amt.local.protocol import AwsError
from airflow_amt.service_model import service_model

LONGEST_SECONDS = 3600.0
#: Longest setting, as JSON; most rules in it, and most names or patterns in one of these.
LARGEST_SETTING = 64 * 1024
MOST_RULES = MOST_PATTERNS = 100

#: HTTP status that goes with an error code of AWS; others are answered with 400.
_STATUSES = {"InternalFailure": 500, "InternalServerError": 500, "ServiceUnavailable": 503}
_MESSAGES = {
    "InternalFailure": "The request processing has failed because of an unknown error, exception or failure.",
    "ServiceUnavailable": "The request has failed due to a temporary failure of the server.",
    "ThrottlingException": "Rate exceeded",
}
#: Half of a character, which no database takes.
_SURROGATE = re.compile("[\ud800-\udfff]")
_RETRYABLE = "InternalServerError"
_REASONS = {
    False: "AlgorithmError: this training job failed on purpose (faults)",
    True: f"{_RETRYABLE}: We encountered an internal error. Please try again.",
}


class DropConnectionError(Exception):
    """The connection is to be closed without an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What all rules have. At most one of the three chances is given; without one, a rule always applies.

    :param probability: share of the calls (or training jobs) that suffer, drawn from the seed.
    :param every: each so-many-th one suffers: 3 means the third, the sixth, ...
    :param first: the first so many suffer, and no later one.
    """

    probability: float | None = None
    every: int | None = None
    first: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRule(Rule):
    """A rule about calls.

    :param operations: names of operations, or patterns of names as ``Describe*``.
    """

    operations: tuple[str, ...] = ("*",)

    def covers(self, operation: str) -> bool:
        """Whether the rule is about this operation."""
        return any(fnmatch.fnmatchcase(operation, pattern) for pattern in self.operations)


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttle(CallRule):
    """``ThrottlingException`` beyond a rate: a token bucket for each region and operation.

    :param rate: calls per second in the long run.
    :param burst: calls at once after a rest.
    :param shared: one bucket for all operations of the rule (still one for each region).
    """

    rate: float
    burst: int = 1
    shared: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency(CallRule):
    """A wait before the call is carried out.

    :param seconds: the shortest wait.
    :param jitter: what is added to it at most, evenly spread.
    """

    seconds: float
    jitter: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Error(CallRule):
    """An error in place of an answer.

    :param code: AWS's error code.
    :param status: HTTP status; that of the code if left out.
    :param message: its text.
    :param when: ``before`` the call is carried out, in place of that, or ``after``.
    """

    code: str = "InternalFailure"
    status: int | None = None
    message: str | None = None
    when: str = "before"

    def error(self) -> AwsError:
        """Return what is answered."""
        message = self.message or _MESSAGES.get(self.code, "This error was asked for (faults)")
        return AwsError(self.code, message, self.status or _STATUSES.get(self.code, 400))


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop(CallRule):
    """The connection is closed without an answer.

    :param when: ``before`` the call is carried out, so that nothing happened, or ``after``, so that it did.
    """

    when: str = "before"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stale(CallRule):
    """Describe and List answer from the state as it was, as if what was written had not arrived yet.

    :param seconds: age of that state: at least this and at most a tenth more, but no older than the rule.
    """

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FailTraining(Rule):
    """Training jobs fail.

    :param names: names of training jobs, or patterns of names.
    :param retryable: the failure is AMT's own (``InternalServerError``), which a ``RetryStrategy`` retries.
    :param reason: the ``FailureReason``.
    """

    names: tuple[str, ...] = ("*",)
    retryable: bool = False
    reason: str | None = None

    def failure_reason(self) -> str:
        """Return the ``FailureReason``."""
        return self.reason or _REASONS[self.retryable]


KINDS: Mapping[str, type[Rule]] = {
    "throttle": Throttle,
    "latency": Latency,
    "error": Error,
    "drop": Drop,
    "stale": Stale,
    "fail_training": FailTraining,
}
_NAMES: Mapping[type[Rule], str] = {kind: name for name, kind in KINDS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """The rules, in the order in which they apply; the first one that ends a call is the last.

    :param seed: seed of all chances.
    :param rules: none: nothing is done wrong.
    """

    seed: int = 0
    rules: tuple[Rule, ...] = ()

    @classmethod
    def parse(cls, setting: Any) -> Faults:
        """Check a setting as it comes from JSON: ``{"seed": 0, "rules": [{"kind": "latency", ...}]}``.

        :raises AmtFieldError: the first thing in it that cannot be used.
        """
        _check_object("faults", setting, ("seed", "rules"))
        seed = _whole(0)("faults.seed", setting.get("seed", 0))
        rules = setting.get("rules", [])
        if not isinstance(rules, Sequence) or isinstance(rules, str) or len(rules) > MOST_RULES:
            raise AmtFieldError(
                "faults.rules",
                rules,
                f"a list of {MOST_RULES} rules or less",
                "give a list, if of one rule only",
            )
        parsed = tuple(_rule(f"faults.rules[{number}]", rule) for number, rule in enumerate(rules))
        return cls(seed=seed, rules=parsed)

    @classmethod
    def from_json(cls, text: str | bytes) -> Faults:
        """Check a setting given as JSON.

        :raises AmtFieldError: it is no JSON, or cannot be used.
        """
        if len(text) > LARGEST_SETTING:
            raise AmtFieldError(
                "faults", text, f"JSON of {LARGEST_SETTING} bytes or less", "say it in fewer rules"
            )
        try:
            setting = json_text.read(text)
        except ValueError as error:
            raise AmtFieldError("faults", text, f"valid JSON ({error})", "correct it") from None
        return cls.parse(setting)

    @classmethod
    def from_text(cls, text: str) -> Faults:
        """Check a setting given as JSON, or as the path of a file with it.

        :raises AmtFieldError: it cannot be read or used.
        """
        if text.lstrip().startswith("{"):
            return cls.from_json(text)
        try:
            with Path(text).open("rb") as file:
                content = file.read(LARGEST_SETTING + 1)
        except (OSError, ValueError) as error:
            raise AmtFieldError(
                "faults", text, f"JSON, or a file that can be read ({error})", "check the path"
            ) from None
        return cls.from_json(content)

    def as_dict(self) -> dict[str, Any]:
        """Return the setting, with defaults filled in, as :meth:`parse` takes it."""
        rules = [
            {
                "kind": _NAMES[type(rule)],
                **{
                    field.name: list(value) if isinstance(value, tuple) else value
                    for field in fields(rule)
                    if (value := getattr(rule, field.name)) is not None
                },
            }
            for rule in self.rules
        ]
        return {"seed": self.seed, "rules": rules}


# --- checks -----------------------------------------------------------------------------------------

_Check = Callable[[str, Any], Any]


def _check_object(path: str, value: Any, known: Sequence[str]) -> None:
    if not isinstance(value, Mapping):
        raise AmtFieldError(path, value, "a JSON object", f"give an object with {', '.join(known)}")
    for key in value:
        if key not in known:
            raise AmtFieldError(
                f"{path}.{key}",
                value[key],
                f"one of {', '.join(known)}",
                "correct the spelling or leave it out",
            )


def _number(low: float, high: float, *, above: bool = False) -> _Check:
    def check(path: str, value: Any) -> float:
        # A comparison, which is right for numbers of any size and false for NaN.
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not low <= value <= high or (above and value == low):
            bounds = f"{'more than' if above else 'from'} {low:g} {'and at most' if above else 'to'} {high:g}"
            raise AmtFieldError(path, value, f"a number {bounds}", "set it within these bounds")
        return float(value)

    return check


def _whole(low: int, high: int = 2**31 - 1) -> _Check:
    def check(path: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise AmtFieldError(path, value, f"a whole number from {low} to {high}", f"set it to {low}")
        return value

    return check


def _flag(path: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise AmtFieldError(path, value, "true or false", "set it to true or false")
    return value


def _text(path: str, value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 1024 or _SURROGATE.search(value):
        raise AmtFieldError(path, value, "text of 1 to 1024 characters", "give a text or leave it out")
    return value


def _code(path: str, value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9.]{1,128}", value):
        raise AmtFieldError(path, value, "an error code as AWS has them", "use letters, digits and dots only")
    return value


def _moment(path: str, value: Any) -> str:
    if value not in ("before", "after"):
        raise AmtFieldError(
            path, value, "before or after the call is carried out", "set it to before or after"
        )
    return str(value)


def _patterns(path: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not 1 <= len(value) <= MOST_PATTERNS:
        raise AmtFieldError(
            path, value, f"a list of 1 to {MOST_PATTERNS} names or patterns", 'give a list, as ["Describe*"]'
        )
    return tuple(_text(f"{path}[{number}]", pattern) for number, pattern in enumerate(value))


def _operations(path: str, value: Any) -> tuple[str, ...]:
    patterns = _patterns(path, value)
    for number, pattern in enumerate(patterns):
        if not fnmatch.filter(service_model().operation_names, pattern):
            raise AmtFieldError(
                f"{path}[{number}]",
                pattern,
                "the name of an operation of SageMaker, or a pattern that some match",
                "spell it as the API does: CreateHyperParameterTuningJob, Describe*",
            )
    return patterns


_CHECKS: Mapping[str, _Check] = {
    "probability": _number(0, 1),
    "every": _whole(1),
    "first": _whole(1),
    "operations": _operations,
    "rate": _number(0, 1e6, above=True),
    "burst": _whole(1),
    "shared": _flag,
    "seconds": _number(0, LONGEST_SECONDS, above=True),
    "jitter": _number(0, LONGEST_SECONDS),
    "code": _code,
    "status": _whole(400, 599),
    "message": _text,
    "when": _moment,
    "names": _patterns,
    "retryable": _flag,
    "reason": _text,
}


def _rule(path: str, setting: Any) -> Rule:
    """Check one rule.

    :raises AmtFieldError: the first thing in it that cannot be used.
    """
    kind = setting.get("kind") if isinstance(setting, Mapping) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise AmtFieldError(f"{path}.kind", kind, f"one of {', '.join(KINDS)}", "say what the rule does")
    of_kind = {field.name: field for field in fields(KINDS[kind])}
    _check_object(path, setting, ("kind", *of_kind))
    values = {key: value for key, value in setting.items() if key != "kind"}
    chances = [key for key in ("probability", "every", "first") if key in values]
    if len(chances) > 1:
        raise AmtFieldError(
            f"{path}.{chances[1]}",
            values[chances[1]],
            "at most one of probability, every and first",
            f"leave it out, or leave {chances[0]} out",
        )
    for required in {"throttle": ("rate",), "latency": ("seconds",), "stale": ("seconds",)}.get(kind, ()):
        if required not in values:
            raise AmtFieldError(f"{path}.{required}", None, f"{kind} needs it", "add it")
    rule = KINDS[kind](**{key: _CHECKS[key](f"{path}.{key}", value) for key, value in values.items()})
    if isinstance(rule, FailTraining) and rule.retryable and not rule.failure_reason().startswith(_RETRYABLE):
        raise AmtFieldError(
            f"{path}.reason",
            rule.reason,
            f"a reason that begins with {_RETRYABLE}, as only those are retried",
            "change its beginning, leave it out, or set retryable to false",
        )
    return rule


# --- at work ----------------------------------------------------------------------------------------


class _Bucket:
    """Tokens that come back at a rate."""

    def __init__(self, rule: Throttle, now: float) -> None:
        self._rule = rule
        self._tokens = float(rule.burst)
        self._at = now

    def take(self, now: float) -> bool:
        self._tokens = min(self._rule.burst, self._tokens + (now - self._at) * self._rule.rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class FaultInjector:
    """Applies the rules while the server runs; they may be changed at any time.

    :param faults: the rules to begin with.
    :param monotonic: tells real seconds.
    """

    def __init__(self, faults: Faults | None = None, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self.faults = Faults()
        self.set(faults or Faults())

    def set(self, faults: Faults) -> None:
        """Replace the rules; counts, chances and buckets begin anew."""
        self.faults = faults
        self._random = [random.Random(f"{faults.seed}/{number}") for number in range(len(faults.rules))]
        self._buckets: dict[tuple[int, str, str], _Bucket] = {}
        self._seen: Counter[int] = Counter()
        self._applied: Counter[int] = Counter()

    @property
    def applied(self) -> list[int]:
        """How often each rule was applied, in the order of the rules."""
        return [self._applied[number] for number in range(len(self.faults.rules))]

    def before(self, operation: str, region: str, met: list[str] | None = None) -> float:
        """Apply what comes before a call is carried out.

        :param met: gets the kind of each rule that applied.
        :return: real seconds to wait before going on.
        :raises AwsError: the call is answered with this error instead.
        :raises DropConnectionError: the connection is to be closed instead.
        """
        wait = 0.0
        for number, rule in self._about(operation):
            if isinstance(rule, Latency):
                if self._meets(number, rule, met):
                    wait += rule.seconds + self._random[number].uniform(0, rule.jitter)
            elif isinstance(rule, Throttle):
                self._throttle(number, rule, operation, region, met)
            elif isinstance(rule, (Error, Drop)) and rule.when == "before":
                self._end(number, rule, met)
        return wait

    def after(self, operation: str, met: list[str] | None = None) -> None:
        """Apply what comes after a call was carried out, in place of its answer.

        :param met: gets the kind of each rule that applied.
        :raises AwsError: the call is answered with this error instead.
        :raises DropConnectionError: the connection is to be closed instead.
        """
        for number, rule in self._about(operation):
            if isinstance(rule, (Error, Drop)) and rule.when == "after":
                self._end(number, rule, met)

    def staleness(self, operation: str, met: list[str] | None = None) -> float | None:
        """Return the age of the state that a call is answered from; ``None``: the present state.

        :param met: gets the kind of each rule that applied.
        """
        if not operation.startswith(("Describe", "List")):
            return None
        for number, rule in self._about(operation):
            if isinstance(rule, Stale) and self._meets(number, rule, met):
                return rule.seconds
        return None

    @property
    def longest_staleness(self) -> float:
        """The greatest age that any rule asks for, 0 if none does."""
        return max((rule.seconds for rule in self.faults.rules if isinstance(rule, Stale)), default=0.0)

    def training_failure(self, training_job_name: str) -> str | None:
        """Say whether a training job is to fail; asked once for each time that one is run.

        :return: its ``FailureReason``, ``None`` if it is left alone. One that begins with
            ``InternalServerError`` is for ``RetryStrategy`` to retry.
        """
        for number, rule in enumerate(self.faults.rules):
            if not isinstance(rule, FailTraining):
                continue
            named = any(fnmatch.fnmatchcase(training_job_name, pattern) for pattern in rule.names)
            if named and self._meets(number, rule):
                return rule.failure_reason()
        return None

    def _about(self, operation: str) -> list[tuple[int, CallRule]]:
        return [
            (number, rule)
            for number, rule in enumerate(self.faults.rules)
            if isinstance(rule, CallRule) and rule.covers(operation)
        ]

    def _meets(self, number: int, rule: Rule, met: list[str] | None = None) -> bool:
        """Decide whether a rule applies this time, and count."""
        self._seen[number] += 1
        if rule.probability is not None:
            meets = self._random[number].random() < rule.probability
        elif rule.every is not None:
            meets = self._seen[number] % rule.every == 0
        else:
            meets = rule.first is None or self._seen[number] <= rule.first
        self._applied[number] += meets
        if meets and met is not None:
            met.append(_NAMES[type(rule)])
        return meets

    def _throttle(
        self, number: int, rule: Throttle, operation: str, region: str, met: list[str] | None
    ) -> None:
        now = self._monotonic()
        key = (number, region, "" if rule.shared else operation)
        bucket = self._buckets.setdefault(key, _Bucket(rule, now))
        if not bucket.take(now) and self._meets(number, rule, met):
            raise AwsError("ThrottlingException", _MESSAGES["ThrottlingException"])

    def _end(self, number: int, rule: Error | Drop, met: list[str] | None) -> None:
        if self._meets(number, rule, met):
            raise rule.error() if isinstance(rule, Error) else DropConnectionError
