"""Stop policies: for which reasons of a business a tuning job is ended, beside AMT's own five criteria.

A *policy* measures, on one :class:`Situation`, which share of its limit is used (1 and more is a breach).
``&`` and ``|`` combine policies: all of them breached, one of them breached. A *rule* says what is done at
which share (warn at 0.8, stop at 1), and an *SLA* is a list of rules. :func:`decide` gives one
:class:`Verdict`: the most severe action that is due, why, the evidence, and when to look again.

Nothing here reads a clock or AWS: the situation brings the time. A task on a worker, a trigger, the SLA hook
and callbacks of deadlines decide with this same code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, TypeVar

from airflow_amt.exceptions import AmtFieldError, AmtRequestError
from airflow_amt.tuning.costs import PriceTable
from airflow_amt.tuning.history import finite, iso
from airflow_amt.tuning.limits import (
    MAX_DEPTH,
    MAX_POLICIES,
    POLICY_CODES,
    POLICY_VERSION,
    REFERENCES,
    AllOf,
    AnyOf,
    Budget,
    Converged,
    Custom,
    Deadline,
    Level,
    MaxFailedTrainingJobs,
    MinimumJobs,
    NotImproving,
    Plateau,
    Policy,
    RunTimes,
    SinglePolicy,
    Situation,
    Stalled,
    TargetReached,
    check_version,
    parse_policy,
    refuse_foreign,
    utc,
)
from airflow_amt.tuning.parameters import (
    DURATION,
    NUMBER,
    Kind,
    refuse_unknown,
)
from airflow_amt.tuning.status import TuningJobStatus

__all__ = [
    "CHOICES",
    "MAX_DEPTH",
    "MAX_NAME_LENGTH",
    "MAX_POLICIES",
    "MAX_RAISE",
    "MAX_RULES",
    "MAX_STEPS",
    "POLICY_CODES",
    "POLICY_VERSION",
    "REFERENCES",
    "Action",
    "AllOf",
    "Answer",
    "AnyOf",
    "Budget",
    "Converged",
    "Custom",
    "Deadline",
    "Due",
    "Level",
    "MaxFailedTrainingJobs",
    "MinimumJobs",
    "NotImproving",
    "Plateau",
    "Policy",
    "Rule",
    "RunTimes",
    "SinglePolicy",
    "Situation",
    "Sla",
    "Stalled",
    "Step",
    "TargetReached",
    "Verdict",
    "decide",
    "parse_policy",
    "parse_sla",
    "utc",
]


class Action(str, Enum):
    """What is done about a tuning job, the mildest first."""

    WARN = "warn"
    ASK = "ask"
    STOP = "stop"
    STOP_AND_FAIL = "stop_and_fail"

    @property
    def severity(self) -> int:
        """Rank among the actions, 0 for the mildest."""
        return list(Action).index(self)

    @classmethod
    def parse(cls, value: Any, *, path: str = "action") -> Action:
        """Return the member of this value.

        :raises AmtFieldError: there is none.
        """
        try:
            return cls(value)
        except ValueError:
            raise AmtFieldError(
                path, value, f"one of {', '.join(one.value for one in cls)}", "check the spelling"
            ) from None

    @property
    def stops(self) -> bool:
        """Whether it ends the tuning job."""
        return self in (Action.STOP, Action.STOP_AND_FAIL)


# --- rules -------------------------------------------------------------------------------------

MAX_RULES = 32
MAX_STEPS = 16
MAX_NAME_LENGTH = 40

#: No colon and no equals sign, although tags allow them: they part the text forms of ids and answers.
_NAME = re.compile(r"[A-Za-z0-9_.+/@-]+")

#: Shares, and times before a deadline, of which there can be a step.
_STEP_SHARE = Kind(
    accepts=lambda value: (number := finite(value)) is not None and 1e-9 <= number <= 1000,
    limit="a share above 0, at most 1000",
    fix="give 0.8 for 80 %",
    read=NUMBER.read,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What is done when a share of a policy's limit is used, or so long before its deadline.

    :param action: what is done.
    :param at: the share, above 0.
    :param before: time before a deadline; then ``at`` does not count.
    :raises AmtFieldError: one of them is not accepted.
    """

    action: Action
    at: float = 1.0
    before: timedelta | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "action", Action.parse(self.action, path="step.action"))
        if not _STEP_SHARE.accepts(self.at):
            raise AmtFieldError("step.at", self.at, _STEP_SHARE.limit, _STEP_SHARE.fix)
        object.__setattr__(self, "at", 1.0 if self.before is not None else float(self.at))
        if self.before is not None and not DURATION.accepts(self.before):
            raise AmtFieldError("step.before", self.before, DURATION.limit, DURATION.fix)

    @property
    def key(self) -> str:
        """Short text that tells it from the other steps of its rule, as ``warn@0.8`` or ``warn@-1800s``."""
        when = f"{self.at:.12g}" if self.before is None else f"-{self.before.total_seconds():.12g}s"
        return f"{self.action.value}@{when}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as a JSON-safe dict."""
        when = {"at": self.at} if self.before is None else {"before_seconds": self.before.total_seconds()}
        return {"action": self.action.value, **when}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A policy, and what is done at which of its shares.

    :param policy: what is measured.
    :param steps: what is done; by default, stop at the limit.
    :param name: for people and records; by default the policy's code, with a number if there are several.
        At most 40 letters, digits and ``_.+/@-``.
    :raises AmtFieldError: one of them is not accepted, or they do not go together.
    """

    policy: Policy
    steps: tuple[Step, ...] = (Step(action=Action.STOP),)
    name: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.policy, Policy):
            raise AmtFieldError("rule.policy", self.policy, "a policy", "give one, as Budget(50)")
        _check_name("rule.name", self.name)
        steps: Any = self.steps
        if isinstance(steps, list):
            object.__setattr__(self, "steps", tuple(steps))
        if (
            not isinstance(steps, list | tuple)
            or not 1 <= len(steps) <= MAX_STEPS
            or any(not isinstance(one, Step) for one in steps)
        ):
            raise AmtFieldError(
                "rule.steps", self.steps, f"one to {MAX_STEPS} steps", "say what is done at which share"
            )
        for position, one in enumerate(self.steps):
            if one.before is not None and not isinstance(self.policy, Deadline):
                raise AmtFieldError(
                    f"rule.steps[{position}].before",
                    one.before,
                    "only for a deadline",
                    "give a share with at instead",
                )
            if one.key in {other.key for other in self.steps[:position]}:
                raise AmtFieldError(
                    f"rule.steps[{position}]", one.key, "each step once", "leave out the second one"
                )

    @classmethod
    def of(
        cls,
        policy: Policy,
        *,
        action: Action | str = Action.STOP,
        warn_at: float | timedelta | None = None,
        ask_at: float | timedelta | None = None,
        name: str = "",
    ) -> Rule:
        """Return a rule with an action at the limit, and a warning or a question before.

        :param policy: what is measured.
        :param action: what is done at the limit.
        :param warn_at: when to warn: a share, as 0.8, or a time span before a deadline.
        :param ask_at: when to ask people, likewise.
        :param name: see :class:`Rule`.
        :raises AmtFieldError: one of them is not accepted.
        """
        last = Step(action=Action.parse(action, path="rule.action"))
        steps = [
            _step_before(last, kind, when, path, shown=when, timed=isinstance(when, timedelta))
            for kind, when, path in (
                (Action.WARN, warn_at, "rule.warn_at"),
                (Action.ASK, ask_at, "rule.ask_at"),
            )
            if when is not None
        ]
        if last not in steps:
            steps.append(last)
        return cls(policy=policy, steps=tuple(steps), name=name)

    @property
    def title(self) -> str:
        """How people and records name it; within an SLA :attr:`Sla.titles` counts."""
        return self.name or self.policy.label

    @property
    def raisable(self) -> bool:
        """Whether people can raise its limit."""
        return self.policy.raisable

    def to_dict(self) -> dict[str, Any]:
        """Return it as a JSON-safe dict."""
        return {
            "policy": self.policy.to_dict(),
            "steps": [one.to_dict() for one in self.steps],
            **({"name": self.name} if self.name else {}),
        }


def _step_before(last: Step, action: Action, when: Any, path: str, *, shown: Any, timed: bool) -> Step:
    """Return a step of the short form, in which the last one is at the limit.

    :param when: a share, or a time span before a deadline.
    :param shown: the same as it was given.
    :param timed: which of the two.
    :raises AmtFieldError: it is none, or would come too late: a tuning job that is stopped warns no more.
    """
    if timed:
        if not DURATION.accepts(when):
            raise AmtFieldError(path, shown, DURATION.limit, DURATION.fix)
        return Step(action=action, before=when)
    if not _STEP_SHARE.accepts(when):
        raise AmtFieldError(path, shown, _STEP_SHARE.limit, _STEP_SHARE.fix)
    if last.action.stops and when >= last.at:
        limit = f"a share below 1, as the tuning job is stopped at 1 ({last.action.value})"
        raise AmtFieldError(path, shown, limit, _STEP_SHARE.fix)
    return Step(action=action, at=when)


def _check_name(path: str, name: Any) -> None:
    if not isinstance(name, str) or len(name) > MAX_NAME_LENGTH or (name and not _NAME.fullmatch(name)):
        raise AmtFieldError(
            path,
            name,
            f"at most {MAX_NAME_LENGTH} letters, digits and _.+/@-",
            "shorten it, or leave it out",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sla:
    """The rules that a tuning job has to keep, and what instances cost.

    :param rules: the rules, the most important first: of two that are breached at once with actions of the
        same severity, the first is the reason.
    :param prices: needed by budgets in money.
    :raises AmtRequestError: they are not accepted; all that is wrong is listed.
    """

    rules: tuple[Rule, ...]
    prices: PriceTable | None = None

    def __post_init__(self) -> None:
        rules: Any = self.rules
        if isinstance(rules, list):
            object.__setattr__(self, "rules", tuple(rules))
        problems = _sla_problems(self.rules, self.prices)
        if problems:
            raise AmtRequestError(problems)

    @property
    def titles(self) -> tuple[str, ...]:
        """How people and records name the rules, in their order; each only once.

        A rule without a name goes by the code of its policy, and from the second such rule on with a number:
        ``budget``, ``budget-2``.
        """
        taken = {one.name for one in self.rules if one.name}
        titles = []
        for one in self.rules:
            title, number = one.title, 1
            while not one.name and title in taken:
                number += 1
                title = f"{one.title}-{number}"
            taken.add(title)
            titles.append(title)
        return tuple(titles)

    @property
    def uses_training_jobs(self) -> bool:
        """Whether a policy looks at the list of training jobs."""
        return any(one.policy.uses_training_jobs for one in self.rules)

    @property
    def uses_costs(self) -> bool:
        """Whether a policy looks at what they consumed."""
        return any(one.policy.uses_costs for one in self.rules)

    def to_dict(self) -> dict[str, Any]:
        """Return it as a JSON-safe dict with its version; :func:`parse_sla` reads it back."""
        return {
            "version": POLICY_VERSION,
            "rules": [one.to_dict() for one in self.rules],
            **({} if self.prices is None else {"prices": self.prices.to_dict()}),
        }


def _sla_problems(rules: Any, prices: Any, path: str = "sla") -> list[AmtFieldError]:
    if (
        not isinstance(rules, tuple)
        or not 1 <= len(rules) <= MAX_RULES
        or any(not isinstance(one, Rule) for one in rules)
    ):
        return [
            AmtFieldError(f"{path}.rules", rules, f"a list of 1 to {MAX_RULES} rules", "list what must hold")
        ]
    problems = []
    seen: set[str] = set()
    for position, one in enumerate(rules):
        if one.name and one.name in seen:
            problems.append(
                AmtFieldError(
                    f"{path}.rules[{position}].name", one.name, "a name of its own", "give another name"
                )
            )
        seen.add(one.name)
    if prices is not None and not isinstance(prices, PriceTable):
        problems.append(
            AmtFieldError(f"{path}.prices", prices, "a price table", "give PriceTable.parse({...})")
        )
    in_money = [
        part
        for one in rules
        for part in one.policy.parts
        if part.uses_costs and getattr(part, "unit", None) == "money"
    ]
    if in_money and prices is None:
        problems.append(
            AmtFieldError(
                f"{path}.prices",
                None,
                "prices, for a budget in money",
                'give {"currency": "EUR", "per_hour": {"ml.m5.xlarge": 0.26}}, or use billable_seconds',
            )
        )
    return problems


# --- what people answered ----------------------------------------------------------------------

#: What a person can answer when asked.
CHOICES = ("continue", "stop", "raise")
#: Most by which a limit is raised at once: a hundred times itself.
MAX_RAISE = 100.0
_LARGEST_FACTOR = 1e6

#: Who answered where nobody did in time, and the default counts.
NOBODY = "timeout"

_MAX_BY_LENGTH = 120
_BY_SAFE = re.compile(r"[A-Za-z0-9_.@/-]")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a person answered when asked about a rule.

    - ``continue``: nothing more is asked about that rule; its other steps stay.
    - ``stop``: the tuning job is to be stopped.
    - ``raise``: the limit counts as ``1 + raise_by`` times as large, for all steps of the rule; several
      raises multiply. Of a rule without a limit to raise (:attr:`Rule.raisable`) it is ``continue``.

    :param rule: the rule's title (:attr:`Sla.titles`).
    :param choice: one of the three.
    :param raise_by: of ``raise``, above 0, at most 100; of the others it does not count, and is 0.
    :param by: who; cut where it is longer than a tag has room for.
    :raises AmtFieldError: one of them is not accepted.
    """

    rule: str
    choice: str
    raise_by: float = 0.0
    by: str = ""

    def __post_init__(self) -> None:
        if not self.rule:
            raise AmtFieldError("answer.rule", self.rule, "the title of a rule", "say which rule it is about")
        _check_name("answer.rule", self.rule)
        if self.choice not in CHOICES:
            raise AmtFieldError(
                "answer.choice", self.choice, f"one of {', '.join(CHOICES)}", "check the spelling"
            )
        by_how_much = finite(self.raise_by)
        if self.choice != "raise":
            by_how_much = 0.0
        elif by_how_much is None or not 0 < by_how_much <= MAX_RAISE:
            raise AmtFieldError(
                "answer.raise_by",
                self.raise_by,
                f"a number above 0, at most {MAX_RAISE:g}",
                "give 0.5 for half as much again",
            )
        object.__setattr__(self, "raise_by", by_how_much)
        if not isinstance(self.by, str):
            raise AmtFieldError("answer.by", self.by, "who answered, as text", "give a name, or leave it out")
        by = self.by
        while len(_escaped(by)) > _MAX_BY_LENGTH:
            by = by[:-1]
        object.__setattr__(self, "by", by)

    def to_dict(self) -> dict[str, Any]:
        """Return it as a JSON-safe dict; :meth:`parse` reads it back."""
        return {
            "version": POLICY_VERSION,
            "rule": self.rule,
            "choice": self.choice,
            "raise_by": self.raise_by,
            "by": self.by,
        }

    @classmethod
    def parse(cls, value: Any) -> Answer:
        """Read an answer from itself, its dict or its text; keys that are not known here do not matter.

        :raises AmtFieldError: it is none.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return cls.decode(value)
        if not isinstance(value, Mapping):
            raise AmtFieldError("answer", value, "an answer, its dict or its text", "see Answer.to_dict")
        raise_by = NUMBER.read(value.get("raise_by"))
        by = value.get("by")
        return cls(
            rule=value.get("rule") or "",
            choice=value.get("choice") or "",
            raise_by=0.0 if raise_by is None else raise_by,
            by="" if by is None else by,
        )

    def encode(self) -> str:
        """Return it as short text that a tag can hold, as ``budget=raise:0.5:alice``."""
        parts = [self.choice, *([repr(self.raise_by)] if self.choice == "raise" else [])]
        return f"{self.rule}={':'.join([*parts, *([_escaped(self.by)] if self.by else [])])}"

    @classmethod
    def decode(cls, text: str) -> Answer:
        """Read what :meth:`encode` wrote; more parts than known here do not matter.

        :raises AmtFieldError: it is no answer.
        """
        rule, found, rest = text.partition("=")
        choice, *parts = rest.split(":")
        raise_by, by = 0.0, ""
        try:
            if choice == "raise":
                raise_by = float(parts.pop(0))
            by = _unescaped(parts[0]) if parts else by
        except (IndexError, ValueError):
            found = ""
        if not found:
            raise AmtFieldError("answer", text, "the text of an answer", "give budget=raise:0.5:alice")
        return cls(rule=rule, choice=choice, raise_by=raise_by, by=by)


def _escaped(text: str) -> str:
    return "".join(
        sign
        if _BY_SAFE.fullmatch(sign)
        else "".join(f"+{byte:02x}" for byte in sign.encode(errors="replace"))
        for sign in text
    )


def _unescaped(text: str) -> str:
    found = bytearray()
    position = 0
    while position < len(text):
        if text[position] == "+":
            found.append(int(text[position + 1 : position + 3], 16))
            position += 3
        else:
            found += text[position].encode()
            position += 1
    return found.decode()


# --- the decision ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """One step of a rule that is due.

    :param id: stable, short, unique in the SLA, and safe in a tag: ``budget:warn@0.8``, and, since a raised
        limit may be used up a second time, ``budget:warn@0.8x1.5`` of a limit that was raised by a half. Of
        a person's decision to stop, ``budget:stop@answer``.
    :param rule: title of the rule.
    :param code: the policy's stable code.
    :param action: what is to be done.
    :param share: how much of the limit is used, at least.
    :param reason: why, for people.
    :param evidence: the numbers; JSON-safe.
    """

    id: str
    rule: str
    code: str
    action: Action
    share: float
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return it as a JSON-safe dict."""
        return {
            "id": self.id,
            "rule": self.rule,
            "code": self.code,
            "action": self.action.value,
            "share": self.share,
            "reason": self.reason,
            "evidence": dict(self.evidence),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is to be done about a tuning job now, and why.

    :param action: the most severe action that is due; ``None`` for nothing.
    :param rule: title of the rule that asks for it.
    :param code: the policy's stable code.
    :param share: how much of the limit is used.
    :param reason: why, for people.
    :param evidence: the numbers; JSON-safe.
    :param next_look_at: when a step can be due without anything but time passing; ``None`` for never.
    :param also: titles of other rules that ask for the same action.
    :param due: all steps that are due, the most severe first, then in the order of the rules.
    :param unknown: titles and reasons of the rules of which a step may be due or not: that cannot be told.
    """

    action: Action | None = None
    rule: str | None = None
    code: str | None = None
    share: float | None = None
    reason: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    next_look_at: datetime | None = None
    also: tuple[str, ...] = ()
    due: tuple[Due, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def stops(self) -> bool:
        """Whether the tuning job is to be ended."""
        return self.action is not None and self.action.stops

    @property
    def warnings(self) -> tuple[Due, ...]:
        """The steps that are due and warn."""
        return tuple(one for one in self.due if one.action is Action.WARN)

    @property
    def questions(self) -> tuple[Due, ...]:
        """The steps that are due and ask people."""
        return tuple(one for one in self.due if one.action is Action.ASK)

    def to_dict(self) -> dict[str, Any]:
        """Return it as a JSON-safe dict."""
        return {
            "version": POLICY_VERSION,
            "action": None if self.action is None else self.action.value,
            "rule": self.rule,
            "code": self.code,
            "share": self.share,
            "reason": self.reason,
            "evidence": dict(self.evidence),
            "next_look_at": iso(self.next_look_at),
            "also": list(self.also),
            "due": [one.to_dict() for one in self.due],
            "unknown": list(self.unknown),
        }


def decide(sla: Sla, situation: Situation, *, answers: Sequence[Answer] = ()) -> Verdict:
    """Judge a tuning job by an SLA.

    A tuning job that is over, or is being stopped, is left alone. The verdict depends on nothing but what is
    given: looked at twice, the same situation is judged the same.

    :param sla: the rules.
    :param situation: the tuning job, now.
    :param answers: what people answered so far; those about rules that there are not do not matter.
    """
    status = situation.progress.status
    if situation.progress.is_terminal or status == TuningJobStatus.STOPPING.value:
        return Verdict(reason=f"The tuning job is {status}.")
    due: list[Due] = []
    looks: list[datetime] = []
    unknown: list[str] = []
    for title, rule in zip(sla.titles, sla.rules, strict=True):
        said = [one for one in answers if one.rule == title]
        factor, muted = _raised(rule, said)
        level = rule.policy.measure(situation, raised=factor)
        due += [_stopped_by(one.by, title, level) for one in said if one.choice == "stop"][:1]
        steps = [one for one in rule.steps if not (muted and one.action is Action.ASK)]
        met = [_is_due(step, level, situation.now) for step in steps]
        due += [_due(title, step, level, factor) for step, yes in zip(steps, met, strict=True) if yes]
        if None in met:
            unknown.append(f"{title}: {level.reason}")
        looks += [
            look
            for step, yes in zip(steps, met, strict=True)
            if not yes and (look := _look(step, level, situation.now)) is not None
        ]
    due.sort(key=lambda one: -one.action.severity)  # stable: rules stay in their order
    next_look_at = min(looks, default=None)
    if not due:
        kept = "No rule is known to be broken." if unknown else "Every rule is kept."
        return Verdict(reason=kept, next_look_at=next_look_at, unknown=tuple(unknown))
    first = due[0]
    others = [one.rule for one in due if one.action is first.action and one.rule != first.rule]
    return Verdict(
        action=first.action,
        rule=first.rule,
        code=first.code,
        share=first.share,
        reason=first.reason,
        evidence=first.evidence,
        next_look_at=next_look_at,
        also=tuple(dict.fromkeys(others)),
        due=tuple(due),
        unknown=tuple(unknown),
    )


def raised_by(rule: Rule, title: str, answers: Iterable[Answer]) -> float:
    """Return how many times as large people made a rule's limit."""
    return _raised(rule, [one for one in answers if one.rule == title])[0]


def _raised(rule: Rule, said: Iterable[Answer]) -> tuple[float, bool]:
    """Return how many times as large people made a rule's limit, and whether they are asked no more."""
    factor, muted = 1.0, False
    for one in said:
        if one.choice == "raise" and rule.raisable:
            factor = min(factor * (1 + one.raise_by), _LARGEST_FACTOR)
        elif one.choice != "stop":
            muted = True
    return factor, muted


def _is_due(step: Step, level: Level, now: datetime) -> bool | None:
    if step.before is None:
        return level.reached(step.at)
    return None if level.due is None else now >= level.due - step.before


def _look(step: Step, level: Level, now: datetime) -> datetime | None:
    if step.before is None:
        return level.moment_of(step.at, now)
    return None if level.due is None else level.due - step.before


def _due(title: str, step: Step, level: Level, factor: float) -> Due:
    raised = "" if factor == 1.0 else f"x{factor:.6g}"
    # Before a deadline no share need be reached, and it has no parts.
    deciding = level.deciding(step.at)
    return Due(
        id=f"{title}:{step.key}{raised}",
        rule=title,
        code=_code(level, deciding),
        action=step.action,
        share=level.low,
        reason=_reason(deciding),
        evidence=_evidence(deciding),
    )


def _stopped_by(by: str, title: str, level: Level) -> Due:
    deciding = level.deciding(level.low)
    return Due(
        id=f"{title}:{Action.STOP.value}@answer",
        rule=title,
        code=_code(level, deciding),
        action=Action.STOP,
        share=level.low,
        reason=f"{_who_stops(by)} {_reason(deciding)}",
        evidence={**_evidence(deciding), "decided_by": by or None},
    )


def _who_stops(by: str) -> str:
    if by == NOBODY:
        return "Nobody answered in time, so it is stopped."
    return f"{by or 'A person'} decided to stop it."


def _code(level: Level, deciding: Sequence[Level]) -> str:
    own = _own(deciding)
    return own[0].code if len(own) == 1 else level.code


def _own(deciding: Sequence[Level]) -> Sequence[Level]:
    """Leave out the guards, unless there is nothing else."""
    return [one for one in deciding if not one.guard] or deciding


def _reason(deciding: Sequence[Level]) -> str:
    return " ".join(dict.fromkeys(one.reason for one in [*_own(deciding), *deciding]))


def _evidence(deciding: Sequence[Level]) -> dict[str, Any]:
    """Return the numbers of the one policy that decided, and where there are several, those of each."""
    own = _own(deciding)
    found = dict(own[0].evidence) if len(own) == 1 else {}
    if len(deciding) > 1:
        found["parts"] = [
            {"code": one.code, "share": one.share, "evidence": dict(one.evidence)} for one in deciding
        ]
    return found


# --- to and from dicts -------------------------------------------------------------------------


def parse_sla(value: Any, *, path: str = "sla") -> Sla:
    """Accept an SLA, or what one can be made of.

    A rule's dict is ``{"policy": ..., "steps": [...], "name": ...}``, or that of its policy with what is done
    beside its own keys: ``{"type": "budget", "limit": 50, "warn_at": 0.8, "action": "stop_and_fail"}``. Such
    keys are ``action``, ``warn_at`` and ``ask_at`` (shares), ``warn_before_seconds`` and
    ``ask_before_seconds`` (of a deadline), and ``name``.

    :param value: an SLA, its dict or the JSON text of that, a policy or rule, or a list of them.
    :param path: how errors name it.
    :raises AmtRequestError: it is none; what is wrong with each rule is listed.
    """
    if isinstance(value, Sla):
        return value
    problems: list[AmtFieldError] = []
    rules, prices = _rules_and_prices(value, path, problems)
    parsed = [_parse_rule(one, f"{path}.rules[{position}]", problems) for position, one in enumerate(rules)]
    table = None
    if prices is not None:
        try:
            table = PriceTable.parse(prices, path=f"{path}.prices")
        except AmtRequestError as error:
            problems += error.problems
    found = tuple(one for one in parsed if one is not None)
    if not problems:
        problems += _sla_problems(found, table, path)
    if problems:
        raise AmtRequestError(problems)
    return Sla(rules=found, prices=table)


def _rules_and_prices(value: Any, path: str, problems: list[AmtFieldError]) -> tuple[Sequence[Any], Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            problems.append(
                AmtFieldError(
                    path,
                    value,
                    f"an SLA, its dict or the JSON text of that ({error})",
                    'give {"rules": [{"type": "budget", "limit": 50}], "prices": {...}}',
                )
            )
            return (), None
    prices = None
    if isinstance(value, Policy | Rule) or (
        isinstance(value, Mapping) and ("type" in value or "policy" in value)
    ):
        rules: Any = [value]
    elif isinstance(value, Mapping):
        _collect(problems, check_version, value, path)
        _collect(problems, refuse_unknown, value, ("version", "rules", "prices"), path)
        rules, prices = value.get("rules"), value.get("prices")
    elif isinstance(value, list | tuple):
        rules = value
    else:
        problems.append(
            AmtFieldError(
                path,
                value,
                "an SLA, a policy, a rule, a list of them, or the dict or JSON text of one",
                'give for example {"type": "stalled", "duration_seconds": 3600}',
            )
        )
        return (), None
    if not isinstance(rules, list | tuple) or not 1 <= len(rules) <= MAX_RULES:
        problems.append(
            AmtFieldError(f"{path}.rules", rules, f"a list of 1 to {MAX_RULES} rules", "list what must hold")
        )
        return (), prices
    return rules, prices


_T = TypeVar("_T")


def _collect(
    problems: list[AmtFieldError], parse: Callable[..., _T], *arguments: Any, **named: Any
) -> _T | None:
    """Call it; if it does not accept its arguments, note why and return ``None``."""
    try:
        return parse(*arguments, **named)
    except AmtFieldError as error:
        problems.append(error)
        return None


#: The keys beside a policy's own in the flat dict of a rule, and the steps that they stand for.
_FLAT_STEPS: Mapping[str, tuple[Action, str]] = {
    "warn_at": (Action.WARN, "at"),
    "warn_before_seconds": (Action.WARN, "before_seconds"),
    "ask_at": (Action.ASK, "at"),
    "ask_before_seconds": (Action.ASK, "before_seconds"),
}
_FLAT = ("action", "name", *_FLAT_STEPS)


def _parse_rule(value: Any, path: str, problems: list[AmtFieldError]) -> Rule | None:
    if isinstance(value, Rule):
        _collect(problems, refuse_foreign, value.policy, f"{path}.policy")
        return value
    if isinstance(value, Policy):
        value = {"policy": value}
    if not isinstance(value, Mapping):
        problems.append(
            AmtFieldError(
                path, value, "a rule, a policy or the dict of one", 'give {"type": "budget", "limit": 50}'
            )
        )
        return None
    before = len(problems)
    flat = "type" in value
    body = {str(key): given for key, given in value.items()}
    name = body.pop("name", None)
    name = "" if name is None else name
    _collect(problems, _check_name, f"{path}.name", name)
    if flat:
        beside = {key: body.pop(key) for key in _FLAT if key in body}
        policy = _collect(problems, parse_policy, body, path=path, beside=_FLAT)
        steps = _flat_steps(beside, path, problems)
    else:
        _collect(problems, refuse_unknown, body, ("policy", "steps", "version"), path)
        policy = _collect(problems, parse_policy, body.get("policy"), path=f"{path}.policy")
        given = body.get("steps")
        if given is None:
            given = [{"action": Action.STOP.value}]
        if not isinstance(given, list | tuple) or not 1 <= len(given) <= MAX_STEPS:
            problems.append(
                AmtFieldError(
                    f"{path}.steps",
                    given,
                    f"a list of 1 to {MAX_STEPS} steps",
                    'give [{"action": "stop", "at": 1}]',
                )
            )
            given = ()
        steps = [
            _collect(problems, _parse_step, one, f"{path}.steps[{position}]")
            for position, one in enumerate(given)
        ]
    if len(problems) > before or policy is None:
        return None
    try:
        return Rule(policy=policy, steps=tuple(one for one in steps if one is not None), name=name)
    except AmtFieldError as error:
        field_path = path + error.field.removeprefix("rule")
        problems.append(AmtFieldError(field_path, error.value, error.limit, error.fix))
        return None


def _flat_steps(beside: Mapping[str, Any], path: str, problems: list[AmtFieldError]) -> list[Step | None]:
    action = beside.get("action")
    wrong_action: list[AmtFieldError] = []
    last = _collect(wrong_action, _parse_step, {"action": Action.STOP if action is None else action}, path)
    steps: list[Step | None] = []
    for key, (kind, when) in _FLAT_STEPS.items():
        given = beside.get(key)
        if given is None:
            continue
        reads = DURATION.read if when == "before_seconds" else _STEP_SHARE.read
        found = _collect(
            problems,
            _step_before,
            # With a wrong action nobody knows what is too late.
            last or Step(action=Action.WARN),
            kind,
            reads(given),
            f"{path}.{key}",
            shown=given,
            timed=when == "before_seconds",
        )
        steps.append(found)
    problems += wrong_action
    return steps if last in steps else [*steps, last]


def _parse_step(value: Any, path: str) -> Step:
    if isinstance(value, Step):
        return value
    if not isinstance(value, Mapping):
        raise AmtFieldError(path, value, "a step", 'give {"action": "stop", "at": 1}')
    refuse_unknown(value, ("action", "at", "before_seconds"), path)
    action = Action.parse(value.get("action"), path=f"{path}.action")
    at, before = value.get("at"), value.get("before_seconds")
    if at is not None and before is not None:
        raise AmtFieldError(f"{path}.before_seconds", before, "either at or before_seconds", "give one")
    if before is not None:
        span = DURATION.read(before)
        if not DURATION.accepts(span):
            raise AmtFieldError(f"{path}.before_seconds", before, DURATION.limit, DURATION.fix)
        return Step(action=action, before=span)
    share = 1.0 if at is None else _STEP_SHARE.read(at)
    if not _STEP_SHARE.accepts(share):
        raise AmtFieldError(f"{path}.at", at, _STEP_SHARE.limit, _STEP_SHARE.fix)
    return Step(action=action, at=share)
