"""What stop policies measure: deadlines, budgets, failures, and the rest, alone and combined.

A *policy* measures, on one :class:`Situation`, which share of its limit is used (1 and more is a breach).
``&`` and ``|`` combine policies: all of them breached, one of them breached. What is done about it is said in
:mod:`airflow_amt.tuning.policies`, which has these names, too.
"""

from __future__ import annotations

import inspect
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from fractions import Fraction
from functools import cached_property
from importlib import import_module
from numbers import Real
from typing import Any, ClassVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.tuning.convergence import NoSignificantImprovement, ProportionalPatience
from airflow_amt.tuning.costs import STOP_SECONDS, UNITS, Consumption, PriceTable, TrainingJobUsage
from airflow_amt.tuning.criteria import ObjectiveType
from airflow_amt.tuning.history import TrainingJobResult, ended_in_order, finite, iso
from airflow_amt.tuning.parameters import (
    COUNT,
    DURATION,
    NUMBER,
    SHARE,
    Kind,
    check_parameters,
    one_of,
    parse_parameters,
    refuse_unknown,
    write_parameters,
)
from airflow_amt.tuning.progress import TuningProgress

#: Version of the dict of a policy, a rule and an SLA; triggers, connections and Variables store it.
POLICY_VERSION = 1

MAX_POLICIES = 64
MAX_DEPTH = 16


def utc(moment: datetime) -> datetime:
    """Return an aware time as a plain datetime in UTC.

    Two times in the same time zone subtract as clocks on a wall do, an hour wrong across a change to summer
    time, and times of pendulum subtract to something else than a timedelta: decisions use neither.
    """
    there = moment.astimezone(UTC)
    return datetime(
        there.year,
        there.month,
        there.day,
        there.hour,
        there.minute,
        there.second,
        there.microsecond,
        tzinfo=UTC,
    )


def _is_aware(value: Any) -> bool:
    return isinstance(value, datetime) and value.utcoffset() is not None


def _checked(name: str, value: Any) -> datetime:
    if not _is_aware(value):
        raise AmtFieldError(name, value, "an aware datetime", "give it with its time zone")
    return utc(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTimes:
    """The times of a DAG run that a deadline may count from; all aware, ``None`` where there is none.

    :raises AmtFieldError: one is naive.
    """

    logical_date: datetime | None = None
    queued_at: datetime | None = None
    data_interval_end: datetime | None = None

    def __post_init__(self) -> None:
        for name in ("logical_date", "queued_at", "data_interval_end"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, _checked(name, value))

    def to_dict(self) -> dict[str, str | None]:
        """Return them JSON-safe; :meth:`parse` reads them back."""
        return {
            "logical_date": iso(self.logical_date),
            "queued_at": iso(self.queued_at),
            "data_interval_end": iso(self.data_interval_end),
        }

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> RunTimes:
        """Read what :meth:`to_dict` wrote; keys that are not known here do not matter."""
        names = ("logical_date", "queued_at", "data_interval_end")
        return cls(
            **{name: datetime.fromisoformat(value[name]) for name in names if value.get(name) is not None}
        )


@dataclass(frozen=True, kw_only=True)
class Situation:
    """All that policies look at, at one moment.

    :param progress: the tuning job.
    :param now: the time (aware).
    :param training_jobs: its training jobs; ``None`` if they were not listed.
    :param usages: what they have consumed; ``None`` if that was not asked for.
    :param prices: what instances cost.
    :param run: times of the DAG run.
    :raises AmtFieldError: ``now`` is naive.
    """

    progress: TuningProgress
    now: datetime
    training_jobs: Sequence[TrainingJobResult] | None = None
    usages: Sequence[TrainingJobUsage] | None = None
    prices: PriceTable | None = None
    run: RunTimes = field(default_factory=RunTimes)

    def __post_init__(self) -> None:
        object.__setattr__(self, "now", _checked("now", self.now))

    @cached_property
    def created_at(self) -> datetime | None:
        """When the tuning job was created, in UTC."""
        return None if self.progress.created_at is None else utc(self.progress.created_at)

    @cached_property
    def results(self) -> tuple[tuple[float, datetime], ...] | None:
        """Objectives, and when they were there, in the order in which training jobs ended."""
        if self.training_jobs is None:
            return None
        return tuple(
            (objective, utc(job.ended_at))
            for job in ended_in_order(self.training_jobs)
            if job.ended_at is not None and (objective := finite(job.objective)) is not None
        )

    @cached_property
    def last_ended_at(self) -> datetime | None:
        """When a training job ended last, in UTC; ``None`` if none has, or if that is not known."""
        ends = [one.ended_at for one in self.training_jobs or () if one.ended_at is not None]
        return utc(max(ends)) if ends else None

    @cached_property
    def consumption(self) -> Consumption | None:
        """What all training jobs have consumed."""
        return None if self.usages is None else Consumption.measure(self.usages, self.prices)

    def consumption_since(self, moment: datetime | None) -> Consumption | None:
        """What the training jobs have consumed that ended after a moment, or still run."""
        if self.usages is None or self.training_jobs is None:
            return None
        before = {
            one.name
            for one in self.training_jobs
            if moment is not None and one.ended_at is not None and one.ended_at <= moment
        }
        return Consumption.measure([one for one in self.usages if one.name not in before], self.prices)

    @property
    def launches_left(self) -> int | None:
        """Training jobs that AMT may still launch; ``None`` without a limit."""
        most = self.progress.criteria.max_training_jobs
        return None if most is None else max(0, most - self.progress.training_jobs.launched)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until AMT's own time limit; ``None`` without one, or if it cannot be told."""
        limit = self.progress.criteria.max_runtime
        if limit is None or self.created_at is None:
            return None
        return max(0.0, (self.created_at + limit - self.now).total_seconds())


#: A share is never shown as more than this, so that it stays a number in JSON.
_LARGEST_SHARE = 1e12
_DECIMALS = 12
_TICK = timedelta(microseconds=1)
_BELOW_ONE = math.nextafter(1.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """How much of a policy's limit is used.

    What is not known wholly is known between bounds: a combination of a policy that is breached with one that
    cannot be told is breached (``|``), or cannot be told (``&``). For each share this is the three-valued
    logic of Kleene.

    :param code: the policy's stable code.
    :param share: 1 and more is a breach; ``None`` if it cannot be told.
    :param reason: what was observed and what the limit is, a sentence for people.
    :param evidence: the numbers behind it; JSON-safe.
    :param timed: of a share that only time makes: since when, and the time span that is a share of 1.
    :param per_second: by how much any other share grows in a second, at most, if nothing happens but time.
    :param due: the moment of the breach, of a policy that knows it.
    :param at_least: lower bound of a share that cannot be told.
    :param at_most: upper bound of a share that cannot be told; ``None`` for none.
    :param guard: whether the policy is a condition on others rather than a reason of its own.
    :param parts: of a combination, the levels of its parts.
    :param every: of a combination, whether all of its parts have to be breached.
    """

    code: str
    share: float | None
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    timed: tuple[datetime, timedelta] | None = None
    per_second: float = 0.0
    due: datetime | None = None
    at_least: float = 0.0
    at_most: float | None = None
    guard: bool = False
    parts: tuple[Level, ...] = ()
    every: bool = False

    @property
    def low(self) -> float:
        """The share, or what it is at least."""
        return self.at_least if self.share is None else self.share

    @property
    def high(self) -> float:
        """The share, or what it is at most."""
        if self.share is not None:
            return self.share
        return math.inf if self.at_most is None else self.at_most

    def reached(self, share: float) -> bool | None:
        """Say whether a share is used; ``None`` if that cannot be told."""
        if self.low >= share:
            return True
        return False if self.high < share else None

    def moment_of(self, share: float, now: datetime) -> datetime | None:
        """Return the first moment at which a share can be reached if nothing happens but time.

        :param share: above 0.
        :param now: the moment at which this was measured.
        :return: never later than that moment; ``now`` if it is reached, ``None`` for never, or not known.
        """
        if self.parts:
            moments = [one.moment_of(share, now) for one in self.parts]
            known = [moment for moment in moments if moment is not None]
            if self.every:
                return max(known) if len(known) == len(moments) else None
            return min(known, default=None)
        if self.low >= share:
            return now
        if self.timed is not None:
            return _first_moment(*self.timed, share)
        if self.due is not None:
            return self.due if share <= 1 else None
        if self.share is None or self.per_second <= 0:
            return None
        # Rather a little early than late: shares are rounded, and so are times.
        seconds = (share - self.share - 10**-_DECIMALS) / self.per_second
        return None if seconds > 1e9 else now + max(_TICK, timedelta(seconds=seconds) - _TICK)

    def deciding(self, share: float) -> tuple[Level, ...]:
        """Return the levels of the single policies because of which a share is reached."""
        if not self.parts:
            return (self,)
        chosen = self.parts if self.every else [one for one in self.parts if one.reached(share)]
        return tuple(leaf for one in chosen or self.parts for leaf in one.deciding(share))


def _first_moment(since: datetime, span: timedelta, share: float) -> datetime | None:
    """Return the first microsecond at which ``(now - since) / span``, as computed, is a share."""
    whole = span // _TICK
    ticks = math.ceil(Fraction(share) * whole)
    # A quotient just below the share may be rounded up to it.
    while ticks > 0 and (ticks - 1) / whole >= share:
        ticks -= 1
    try:
        return since + ticks * _TICK
    except OverflowError:
        return None


class Policy(ABC):
    """Base of all policies."""

    __slots__ = ()

    #: Stable code: the type in the stored dict, and what verdicts name.
    code: ClassVar[str]

    @abstractmethod
    def measure(self, situation: Situation, *, raised: float = 1.0) -> Level:
        """Say how much of the limit is used.

        :param raised: how many times as large the limit is, because people raised it.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return it as a JSON-safe dict, without a version; :func:`parse_policy` reads it back."""

    @property
    def parts(self) -> tuple[SinglePolicy, ...]:
        """The single policies that it consists of."""
        return ()

    @property
    def depth(self) -> int:
        """How deep it is nested, 1 for a single policy."""
        return 1

    @property
    def label(self) -> str:
        """The code, or that of the one policy of a combination that is more than a guard."""
        return self.code

    @property
    def raisable(self) -> bool:
        """Whether it has a limit that people can raise."""
        return False

    @property
    def uses_training_jobs(self) -> bool:
        """Whether it looks at the list of training jobs."""
        return False

    @property
    def uses_costs(self) -> bool:
        """Whether it looks at what they consumed."""
        return False

    def __and__(self, other: Policy) -> Policy:
        if not isinstance(other, Policy):
            return NotImplemented
        return AllOf((*_operands(AllOf, self), *_operands(AllOf, other)))

    def __or__(self, other: Policy) -> Policy:
        if not isinstance(other, Policy):
            return NotImplemented
        return AnyOf((*_operands(AnyOf, self), *_operands(AnyOf, other)))

    def __bool__(self) -> bool:
        # `a and b` would silently be b alone.
        raise TypeError("combine policies with & and |, not with and and or")


# --- kinds of parameters -----------------------------------------------------------------------


def _moment_from(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return datetime.fromisoformat(value.strip())
    except ValueError:
        return value


def _is_moment(value: Any) -> bool:
    # So far from the ends of the calendar that no time zone or grace time leaves it.
    return _is_aware(value) and 1970 < value.year < 3000


_MOMENT = Kind(
    accepts=_is_moment,
    limit="an aware datetime from 1971 to 2999, or ISO 8601 with an offset",
    fix="give for example 2026-11-24T06:00:00+01:00",
    read=_moment_from,
    write=lambda value: value.isoformat(),
)
_AMOUNT = Kind(
    accepts=lambda value: (number := finite(value)) is not None and 1e-9 <= number <= 1e15,
    limit="a number above 0 (1e-9 to 1e15)",
    fix="give the most that may be consumed, in the unit of the budget",
    read=NUMBER.read,
)
_PATIENCE = Kind(
    accepts=_AMOUNT.accepts,
    limit=_AMOUNT.limit,
    fix="give how many times as many results have to follow",
    read=NUMBER.read,
)
_OBJECTIVE = Kind(
    accepts=NUMBER.accepts,
    limit=NUMBER.limit,
    fix="give the objective's value, as 0.93",
    read=NUMBER.read,
)


def _is_time_of_day(value: Any) -> bool:
    try:
        return isinstance(value, str) and time.fromisoformat(value).tzinfo is None
    except ValueError:
        return False


_TIME_OF_DAY = Kind(
    accepts=_is_time_of_day, limit="a time of day", fix='give for example "06:00"', read=lambda value: value
)


def _is_zone(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(ZoneInfo(value))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False


_ZONE = Kind(
    accepts=_is_zone,
    limit="a time zone of the IANA database",
    fix='give for example "Europe/Madrid"',
    read=lambda value: value,
)

#: What a relative deadline may count from.
REFERENCES = ("created", "logical_date", "queued_at", "data_interval_end")


# --- single policies ---------------------------------------------------------------------------


class SinglePolicy(Policy):
    """Base of the policies with one limit; a subclass is a frozen dataclass of its parameters."""

    __slots__ = ()

    #: Whether, combined with ``&``, it is a condition on the others rather than a reason of its own.
    guard: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_parameters(self, self.code)
        self.check()

    def check(self) -> None:
        """Check what parameters mean together.

        :raises AmtFieldError: they do not go together.
        """

    def to_dict(self) -> dict[str, Any]:
        """See :meth:`Policy.to_dict`."""
        return {"type": self.code, **write_parameters(self)}

    @property
    def parts(self) -> tuple[SinglePolicy, ...]:
        """See :attr:`Policy.parts`."""
        return (self,)

    def level(
        self, share: float | None, reason: str, *, evidence: Mapping[str, Any] | None = None, **facts: Any
    ) -> Level:
        """Return a level of this policy; numbers that JSON has no form for are left out."""
        if share is not None and "timed" not in facts:
            # So that 0.1 + 0.2 of 0.3 is all of it. Times are whole microseconds, and exact.
            share = round(min(share, _LARGEST_SHARE), _DECIMALS)
        return Level(
            code=self.code,
            share=None if share is None else min(share, _LARGEST_SHARE),
            reason=reason,
            evidence={key: _json_safe(value) for key, value in (evidence or {}).items()},
            guard=self.guard,
            **facts,
        )

    def unknown(self, reason: str, **facts: Any) -> Level:
        """Return that it cannot be told."""
        return self.level(None, reason, **facts)


def _json_safe(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True, slots=True)
class Deadline(SinglePolicy):
    """The tuning job must be over by a time.

    One of: ``at``, an absolute time; ``time_of_day`` in ``timezone``, the first such time after the
    reference; or ``after`` the reference. The reference is the job's creation, or a time of the DAG run. A
    time of day that a change to summer time skips is taken with the offset from before it; of one that comes
    twice the first is meant.

    Its share is how much has passed of the time from the tuning job's creation (if that is not known, from
    the reference) to the deadline, never below 0. It is breached from the deadline on, also for a tuning job
    that was created after it. To raise it is to lengthen that time; a deadline that lies before the creation
    cannot be raised.

    :param at: absolute time.
    :param time_of_day: as ``"06:00"``.
    :param timezone: of the time of day.
    :param after: time span.
    :param reference: ``created``, ``logical_date``, ``queued_at`` or ``data_interval_end``.
    :param grace: how much later than that is still in time.
    """

    code: ClassVar[str] = "deadline"
    at: datetime | None = field(default=None, metadata={"kind": _MOMENT})
    time_of_day: str | None = field(default=None, metadata={"kind": _TIME_OF_DAY})
    timezone: str | None = field(default=None, metadata={"kind": _ZONE})
    after: timedelta | None = field(default=None, metadata={"kind": DURATION})
    reference: str = field(default="created", metadata={"kind": one_of(*REFERENCES)})
    grace: timedelta | None = field(default=None, metadata={"kind": DURATION})

    def check(self) -> None:
        """See :meth:`SinglePolicy.check`."""
        given = [name for name in ("at", "time_of_day", "after") if getattr(self, name) is not None]
        if len(given) != 1:
            raise AmtFieldError(
                "deadline.at", self.at, "exactly one of at, time_of_day and after", "give one of the three"
            )
        if (self.time_of_day is None) is not (self.timezone is None):
            raise AmtFieldError(
                "deadline.timezone",
                self.timezone,
                "time_of_day and timezone belong together",
                'give both, as "06:00" and "Europe/Madrid"',
            )

    @property
    def raisable(self) -> bool:
        """See :attr:`Policy.raisable`."""
        return True

    def due(self, situation: Situation) -> datetime | None:
        """Return when the tuning job must be over, the grace time counted in; ``None`` if not known."""
        since = self._since(situation)
        if self.at is not None:
            due = utc(self.at)
        elif since is None:
            return None
        else:
            due = since + self.after if self.after is not None else self._next_time_of_day(since)
        return due + (self.grace or timedelta(0))

    def _since(self, situation: Situation) -> datetime | None:
        if self.reference == "created":
            return situation.created_at
        moment: datetime | None = getattr(situation.run, self.reference)
        return moment

    def _next_time_of_day(self, since: datetime) -> datetime:
        zone = ZoneInfo(str(self.timezone))
        clock = time.fromisoformat(str(self.time_of_day))
        # The day before, too: a time before midnight that is skipped is made up for after midnight.
        day = since.astimezone(zone).date() - timedelta(days=1)
        while True:
            moment = datetime.combine(day, clock, zone).astimezone(UTC)
            if moment > since:
                return moment
            day += timedelta(days=1)

    def measure(self, situation: Situation, *, raised: float = 1.0) -> Level:
        """See :meth:`Policy.measure`."""
        due, now = self.due(situation), situation.now
        if due is None:
            what = "tuning job's creation" if self.reference == "created" else f"DAG run's {self.reference}"
            return self.unknown(f"The deadline counts from the {what}, which is not known.")
        start = situation.created_at or self._since(situation)
        if raised != 1.0 and start is not None and due > start:
            due = _stretched(start, due, raised)
        whole = None if start is None or due <= start else due - start
        left = (due - now).total_seconds()
        told = f"{left:.0f} s are left" if left > 0 else f"it was {-left:.0f} s ago"
        facts: dict[str, Any] = {
            "reason": f"The tuning job is to be over by {due.isoformat(timespec='seconds')}; {told}.",
            "evidence": {"due": iso(due), "seconds_left": left},
            "due": due,
        }
        if start is None and now < due:
            return self.unknown(**facts, at_most=_BELOW_ONE)
        if start is None or whole is None:
            return self.level(1.0 if now >= due else 0.0, **facts)
        return self.level(max(0.0, (now - start) / whole), timed=(start, whole), **facts)


def _stretched(start: datetime, due: datetime, factor: float) -> datetime:
    try:
        return start + (due - start) * factor
    except OverflowError:
        return _LAST_MOMENT


#: Later than any deadline, and far enough from the calendar's end to be written in any time zone.
_LAST_MOMENT = datetime(9998, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Budget(SinglePolicy):
    """The training jobs may consume so much.

    A stop takes a while, and running training jobs consume until they have ended; until the stop, AMT fills
    slots that are free with new ones. This *reserve* (what training jobs in all slots consume in the time of
    ``stopping``, but not after their own time limit) is taken off the limit, though never more than half of
    it: the share is what is spent of the rest. So the tuning job is stopped before the money is gone, not
    after, if it is looked at in time. A limit below twice the reserve cannot be kept for sure; then it is
    stopped when half is spent, rather than at once.

    ``counting="projected"`` also looks at what will have been spent when the tuning job comes to its own end
    (:meth:`airflow_amt.tuning.costs.Consumption.at_completion`), from ``minimum_ended`` ended training jobs
    on and if there is a limit of training jobs or of time: the share is the larger one of that projection's
    share of the whole limit and the share above. Best with ``warn`` and ``ask``.

    :param limit: in the unit.
    :param unit: ``money`` (needs prices), ``billable_seconds`` or ``compute_seconds`` (both times instances).
    :param counting: ``spent`` or ``projected``.
    :param stopping: how long training jobs are expected to consume after a stop, and before it is noticed.
    :param minimum_ended: training jobs that must have ended before a projection counts.
    """

    code: ClassVar[str] = "budget"
    limit: float = field(metadata={"kind": _AMOUNT})
    unit: str = field(default="money", metadata={"kind": one_of(*UNITS)})
    counting: str = field(default="spent", metadata={"kind": one_of("spent", "projected")})
    stopping: timedelta = field(default=timedelta(seconds=STOP_SECONDS), metadata={"kind": DURATION})
    minimum_ended: int = field(default=5, metadata={"kind": COUNT})

    @property
    def raisable(self) -> bool:
        """See :attr:`Policy.raisable`."""
        return True

    @property
    def uses_training_jobs(self) -> bool:
        """See :attr:`Policy.uses_training_jobs`."""
        return True

    @property
    def uses_costs(self) -> bool:
        """See :attr:`Policy.uses_costs`."""
        return True

    def measure(self, situation: Situation, *, raised: float = 1.0) -> Level:
        """See :meth:`Policy.measure`."""
        consumed = situation.consumption
        if consumed is None:
            return self.unknown("Whether the budget is kept cannot be told: what was consumed is not known.")
        limit = self.limit * raised
        seconds = self.stopping.total_seconds()
        spent, after_stop = consumed.of(self.unit), consumed.after_stop(self.unit, seconds)
        reserve = consumed.reserve(
            self.unit,
            seconds,
            slots=situation.progress.max_parallel_training_jobs,
            launches_left=situation.launches_left,
        )
        if spent is None or after_stop is None or reserve is None:
            kinds = ", ".join(consumed.unpriced)
            why = f"there is no price of {kinds}" if kinds else "there are no prices"
            return self.unknown(
                f"Whether the budget is kept cannot be told: {why}; {consumed.cost_at_least:.6g} of "
                f"{limit:.6g} are spent at least.",
                evidence={"limit": limit, "unit": self.unit, "spent_at_least": consumed.cost_at_least},
                at_least=min(consumed.cost_at_least / limit, _LARGEST_SHARE),
            )
        may_be_spent = limit - min(reserve, limit / 2)
        share = spent / may_be_spent
        projected = consumed.at_completion(
            self.unit,
            launches_left=situation.launches_left,
            seconds_left=situation.seconds_left,
            slots=situation.progress.max_parallel_training_jobs,
        )
        if (
            self.counting == "projected"
            and projected is not None
            and situation.progress.training_jobs.ended >= self.minimum_ended
        ):
            share = max(share, projected / limit)
        rate = consumed.rate_of(self.unit) or 0.0
        unit = (consumed.currency or "") if self.unit == "money" else self.unit.replace("_", " ")
        told = "" if projected is None else f", about {projected:.6g} at its own end"
        return self.level(
            share,
            f"{spent:.6g} of {limit:.6g} {unit} are spent, up to {after_stop:.6g} if stopped now{told}.",
            evidence={
                "limit": limit,
                "unit": self.unit,
                "currency": consumed.currency,
                "spent": spent,
                "after_stop": after_stop,
                "reserve": reserve,
                "projected": projected,
                "per_hour": rate * 3600,
            },
            # A projection grows with time by less: not at all while training jobs take as long as expected.
            per_second=rate / may_be_spent,
        )


@dataclass(frozen=True, slots=True)
class MaxFailedTrainingJobs(SinglePolicy):
    """So many training jobs have failed, or such a share of those that ended.

    :param count: how many.
    :param share: above 0, at most 1; counts when ``minimum_ended`` training jobs have ended.
    :param minimum_ended: see ``share``.
    """

    code: ClassVar[str] = "max_failed_training_jobs"
    count: int | None = field(default=None, metadata={"kind": COUNT})
    share: float | None = field(default=None, metadata={"kind": SHARE})
    minimum_ended: int = field(default=5, metadata={"kind": COUNT})

    def check(self) -> None:
        """See :meth:`SinglePolicy.check`."""
        if self.count is None and self.share is None:
            raise AmtFieldError(
                f"{self.code}.count", None, "at least one of count and share", "give one of the two"
            )

    @property
    def raisable(self) -> bool:
        """See :attr:`Policy.raisable`."""
        return True

    def measure(self, situation: Situation, *, raised: float = 1.0) -> Level:
        """See :meth:`Policy.measure`."""
        failed, ended = situation.progress.training_jobs.failed, situation.progress.training_jobs.ended
        shares, limits = [0.0], []
        if self.count is not None:
            shares.append(failed / (self.count * raised))
            limits.append(f"{self.count * raised:.6g}")
        if self.share is not None:
            limits.append(f"{self.share * raised:.1%} of those that ended, from {self.minimum_ended} on")
            if ended >= self.minimum_ended:
                shares.append(failed / (ended * self.share * raised))
        return self.level(
            max(shares),
            f"{failed} of {ended} training jobs that ended have failed; the limit is {' or '.join(limits)}.",
            evidence={"failed": failed, "ended": ended},
        )


@dataclass(frozen=True, slots=True)
class Stalled(SinglePolicy):
    """No training job has ended for so long; before the first, since the tuning job was created.

    Every end counts, also of a training job that failed or was stopped.

    :param duration: for how long.
    """

    code: ClassVar[str] = "stalled"
    duration: timedelta = field(metadata={"kind": DURATION})

    @property
    def raisable(self) -> bool:
        """See :attr:`Policy.raisable`."""
        return True

    @property
    def uses_training_jobs(self) -> bool:
        """See :attr:`Policy.uses_training_jobs`."""
        return True

    def measure(self, situation: Situation, *, raised: float = 1.0) -> Level:
        """See :meth:`Policy.measure`."""
        if situation.training_jobs is None:
            return self.unknown("When a training job ended last is not known.")
        last = situation.last_ended_at or situation.created_at
        if last is None:
            return self.unknown("When the tuning job was created is not known.")
        limit = self.duration * raised
        gone = max(timedelta(0), situation.now - last)
        return self.level(
            gone / limit,
            f"No training job has ended for {gone.total_seconds():.0f} s; the limit is "
            f"{limit.total_seconds():g} s.",
            evidence={"last_ended_at": iso(last), "seconds": gone.total_seconds()},
            timed=(last, limit),
        )


@dataclass(frozen=True, slots=True)
class NotImproving(SinglePolicy):
    """The best objective has not improved for so many training jobs, for so long, or for so much consumption.

    Exactly one limit. Counted as :class:`airflow_amt.tuning.history.CriteriaTracker` does, also for tuning
    jobs that were created without that criterion: strictly better is an improvement, and a training job
    without an objective neither counts nor interrupts.

    :param training_jobs: results in a row that were not better.
    :param duration: time since the best training job ended; before the first, since the job's creation.
    :param consumed: in the unit, by training jobs that ended later than the best one, or still run.
    :param unit: as of :class:`Budget`.
    """

    code: ClassVar[str] = "not_improving"
    training_jobs: int | None = field(default=None, metadata={"kind": COUNT})
    duration: timedelta | None = field(default=None, metadata={"kind": DURATION})
    consumed: float | None = field(default=None, metadata={"kind": _AMOUNT})
    unit: str = field(default="money", metadata={"kind": one_of(*UNITS)})

    def check(self) -> None:
        """See :meth:`SinglePolicy.check`."""
        given = [one for one in (self.training_jobs, self.duration, self.consumed) if one is not None]
        if len(given) != 1:
            raise AmtFieldError(
                f"{self.code}.training_jobs",
                self.training_jobs,
                "exactly one of training_jobs, duration and consumed",
                "give one of the three",
            )

    @property
    def raisable(self) -> bool:
        """See :attr:`Policy.raisable`."""
        return True

    @property
    def uses_training_jobs(self) -> bool:
        """See :attr:`Policy.uses_training_jobs`."""
        return True

    @property
    def uses_costs(self) -> bool:
        """See :attr:`Policy.uses_costs`."""
        return self.consumed is not None

    def measure(self, situation: Situation, *, raised: float = 1.0) -> Level:
        """See :meth:`Policy.measure`."""
        direction = situation.progress.objective_type
        if situation.results is None or direction is None:
            return self.unknown("Since when the best objective has not improved is not known.")
        count, since = 0, situation.created_at
        best: float | None = None
        for objective, ended_at in situation.results:
            if direction.better(objective, best):
                best, since, count = objective, ended_at, 0
            else:
                count += 1
        evidence = {"best_objective": best, "since": iso(since), "training_jobs": count}
        if self.training_jobs is not None:
            most = self.training_jobs * raised
            return self.level(
                count / most,
                f"{count} training jobs in a row did not improve on the best objective; the limit is "
                f"{most:.6g}.",
                evidence=evidence,
            )
        if self.duration is not None:
            if since is None:
                return self.unknown("When the tuning job was created is not known.", evidence=evidence)
            limit = self.duration * raised
            gone = max(timedelta(0), situation.now - since)
            return self.level(
                gone / limit,
                f"The best objective has not improved for {gone.total_seconds():.0f} s; the limit is "
                f"{limit.total_seconds():g} s.",
                evidence={**evidence, "seconds": gone.total_seconds()},
                timed=(since, limit),
            )
        return self._by_consumption(situation, None if best is None else since, evidence, raised)

    def _by_consumption(
        self, situation: Situation, since: datetime | None, evidence: Mapping[str, Any], raised: float
    ) -> Level:
        limit = (self.consumed or 1.0) * raised
        used = situation.consumption_since(since)
        spent = None if used is None else used.of(self.unit)
        if used is None or spent is None:
            return self.unknown("What was consumed since the best objective improved is not known.")
        return self.level(
            spent / limit,
            f"{spent:.6g} {used.currency if self.unit == 'money' else self.unit.replace('_', ' ')} were "
            f"consumed since the best objective improved; the limit is {limit:.6g}.",
            evidence={**evidence, "spent": spent},
            per_second=(used.rate_of(self.unit) or 0.0) / limit,
        )


class _ResultsPolicy(SinglePolicy):
    """Base of the policies on the objectives alone, in the order in which training jobs ended."""

    __slots__ = ()

    @property
    def uses_training_jobs(self) -> bool:
        """See :attr:`Policy.uses_training_jobs`."""
        return True

    def measure(self, situation: Situation, *, raised: float = 1.0) -> Level:
        """See :meth:`Policy.measure`."""
        direction = situation.progress.objective_type
        if situation.results is None or direction is None:
            return self.unknown("The objectives of the training jobs are not known.")
        return self.judge([objective for objective, _ in situation.results], direction, raised)

    @abstractmethod
    def judge(self, objectives: Sequence[float], direction: ObjectiveType, raised: float) -> Level:
        """Say how much of the limit is used."""


@dataclass(frozen=True, slots=True)
class Plateau(_ResultsPolicy):
    """The last results improved on the best before them by a share of it at the most.

    The rule of :class:`airflow_amt.tuning.convergence.NoSignificantImprovement`. It is breached or not: its
    share is 1 or 0, and nobody can raise it.

    :param window: how many results.
    :param threshold: the share.
    :param minimum: fewest results before it counts.
    """

    code: ClassVar[str] = "plateau"
    window: int = field(default=20, metadata={"kind": COUNT})
    threshold: float = field(default=0.01, metadata={"kind": SHARE})
    minimum: int = field(default=25, metadata={"kind": COUNT})

    def judge(self, objectives: Sequence[float], direction: ObjectiveType, raised: float) -> Level:
        """See :meth:`_ResultsPolicy.judge`."""
        rule = NoSignificantImprovement(self.window, self.threshold, self.minimum)
        met = rule.converged(objectives, direction)
        enough = max(self.minimum, self.window + 1)
        if met:
            reason = (
                f"The last {self.window} of {len(objectives)} results improved on the best before them by "
                f"{self.threshold:.1%} at the most."
            )
        elif len(objectives) < enough:
            reason = f"There are {len(objectives)} results; a plateau can be told from {enough} on."
        else:
            reason = (
                f"The last {self.window} of {len(objectives)} results improved on the best before them by "
                f"more than {self.threshold:.1%}."
            )
        return self.level(1.0 if met else 0.0, reason, evidence={"results": len(objectives)})


#: The defaults of the rule are those of the policy.
_PATIENT = ProportionalPatience()


@dataclass(frozen=True, slots=True)
class Converged(_ResultsPolicy):
    """The best objective is unlikely to improve any more: the convergence rule of this package.

    The rule of :class:`airflow_amt.tuning.convergence.ProportionalPatience`, which the embedded AMT and
    replays use, also for tuning jobs that were created without ``CompleteOnConvergence``. What AMT itself
    detected is another matter: that is the condition of the same name.

    Its share is how much of the patience is used, and no more than the share of the ``minimum`` that is
    there. To raise it is to raise both.

    :param patience: results without a significant improvement, in multiples of those that it took to get
        there.
    :param threshold: what is significant, as a share.
    :param minimum: fewest results before it counts.
    """

    code: ClassVar[str] = "converged"
    patience: float = field(default=_PATIENT.patience, metadata={"kind": _PATIENCE})
    threshold: float = field(default=_PATIENT.threshold, metadata={"kind": SHARE})
    minimum: int = field(default=_PATIENT.minimum, metadata={"kind": COUNT})

    @property
    def raisable(self) -> bool:
        """See :attr:`Policy.raisable`."""
        return True

    def judge(self, objectives: Sequence[float], direction: ObjectiveType, raised: float) -> Level:
        """See :meth:`_ResultsPolicy.judge`."""
        if not objectives:
            return self.level(0.0, "There is no result yet.", evidence={"results": 0})
        rule = ProportionalPatience(self.patience, self.threshold, self.minimum)
        number, needed = len(objectives), rule.needed(objectives, direction)
        return self.level(
            min((number - needed) / (self.patience * needed), number / self.minimum) / raised,
            f"After result {needed} of {number} none was better by more than {self.threshold:.1%}; the limit "
            f"is {self.patience * raised:.6g} times as many results again, and at least "
            f"{self.minimum * raised:.6g} in all.",
            evidence={"results": number, "needed": needed},
        )


@dataclass(frozen=True, slots=True)
class TargetReached(SinglePolicy):
    """The best objective is as good as a value; a target, or the quality floor of another policy.

    ``NotImproving(training_jobs=20) & TargetReached(0.8)`` gives up only when the model is good enough. It is
    breached or not: its share is 1 or 0, and nobody can raise it. As AMT reports objectives in 32 bits, a
    value that is equal in these is as good.

    :param value: the objective, in the tuning job's own direction.
    """

    code: ClassVar[str] = "target_reached"
    guard: ClassVar[bool] = True
    value: float = field(metadata={"kind": _OBJECTIVE})

    def measure(self, situation: Situation, *, raised: float = 1.0) -> Level:
        """See :meth:`Policy.measure`."""
        best, direction = situation.progress.best_objective, situation.progress.objective_type
        if direction is not None:
            # The list may be newer than AMT's own best, and is all there is beside List's summary.
            for objective, _ in situation.results or ():
                best = objective if direction.better(objective, best) else best
        if best is None and situation.progress.objectives.succeeded == 0:
            return self.level(0.0, "No training job has given an objective yet.")
        if best is None or direction is None:
            return self.unknown("The best objective, or its direction, is not known.")
        reached = direction.attains(best, self.value)
        return self.level(
            1.0 if reached else 0.0,
            f"The best objective, {best:.6g}, {'is' if reached else 'is not'} as good as {self.value:g}.",
            evidence={"best_objective": best},
        )


@dataclass(frozen=True, slots=True)
class MinimumJobs(SinglePolicy):
    """So many training jobs have given an objective: a guard for other policies, combined with ``&``.

    Nobody can raise it: to raise the limit of ``Budget(50) & MinimumJobs(10)`` is to raise the budget.

    :param count: how many.
    """

    code: ClassVar[str] = "minimum_jobs"
    guard: ClassVar[bool] = True
    count: int = field(metadata={"kind": COUNT})

    def measure(self, situation: Situation, *, raised: float = 1.0) -> Level:
        """See :meth:`Policy.measure`."""
        done = situation.progress.objectives.succeeded
        return self.level(
            done / self.count,
            f"{done} training jobs have given an objective; waited for are {self.count}.",
            evidence={"with_objective": done},
        )


def _is_json_object(value: Any) -> bool:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return False
    try:
        json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


@dataclass(frozen=True, slots=True)
class Custom(SinglePolicy):
    """A policy of one's own, by import path: a function that takes a :class:`Situation` and the arguments.

    It returns the share of its limit that is used (``None`` if it cannot tell; ``True`` is 1, ``False`` 0),
    or that and a sentence. What raises, or returns anything else, cannot be told. It must be importable where
    the DAG is parsed, on workers and in triggerers, and must not block. If it looks at
    :attr:`Situation.consumption`, it has an attribute ``uses_costs`` that is ``True``. To raise its limit is
    to divide its share.

    :param path: as ``"my_company.policies.too_hot"``.
    :param arguments: keyword arguments, JSON-safe.
    """

    code: ClassVar[str] = "custom"
    path: str = field(
        metadata={
            "kind": Kind(
                accepts=lambda value: isinstance(value, str) and all(value.split(".")) and "." in value,
                limit="an import path",
                fix='give for example "my_company.policies.too_hot"',
                read=lambda value: value,
            )
        }
    )
    arguments: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={
            "kind": Kind(
                accepts=_is_json_object,
                limit="a mapping of keyword arguments that JSON has a form for",
                fix='give for example {"limit": 3}',
                read=lambda value: value,
                write=dict,
            )
        },
    )

    def check(self) -> None:
        """Import it and compare arguments, so that a mistake is told while the DAG is parsed."""
        function = self._function()
        if inspect.iscoroutinefunction(function):
            raise AmtFieldError(
                "custom.path", self.path, "a plain function", "write it with def, not async def"
            )
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):
            return  # of some functions that are not written in Python nobody can tell
        try:
            signature.bind(None, **self.arguments)
        except TypeError as error:
            raise AmtFieldError(
                "custom.arguments",
                dict(self.arguments),
                f"arguments of {self.path}{signature}, the situation first ({error})",
                "correct the arguments",
            ) from None

    def _function(self) -> Callable[..., Any]:
        module, _, name = self.path.rpartition(".")
        try:
            found = getattr(import_module(module), name)
        except Exception as error:  # whatever the module raises while it is imported
            raise AmtFieldError(
                "custom.path",
                self.path,
                f"the import path of a function ({type(error).__name__}: {error})",
                "correct the path",
            ) from error
        if not callable(found):
            raise AmtFieldError("custom.path", self.path, "the path of a function", "correct the path")
        function: Callable[..., Any] = found
        return function

    @property
    def raisable(self) -> bool:
        """See :attr:`Policy.raisable`."""
        return True

    @property
    def uses_training_jobs(self) -> bool:
        """See :attr:`Policy.uses_training_jobs`: nobody knows, so it gets them."""
        return True

    @property
    def uses_costs(self) -> bool:
        """See :attr:`Policy.uses_costs`: as its function says."""
        try:
            return getattr(self._function(), "uses_costs", False) is True
        except AmtFieldError:
            return False  # it is not there any more: :meth:`measure` says so

    def measure(self, situation: Situation, *, raised: float = 1.0) -> Level:
        """See :meth:`Policy.measure`."""
        try:
            answer = self._function()(situation, **self.arguments)
        except Exception as error:  # noqa: BLE001 - its mistake must not keep the other rules from judging
            return self.unknown(f"{self.path} raised {type(error).__name__}: {error}")
        share, reason = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, "")
        if share is None and isinstance(reason, str):
            return self.unknown(reason or f"{self.path} cannot tell.")
        number = _share_of(share)
        if number is None or not isinstance(reason, str):
            return self.unknown(
                f"{self.path} returned {answer!r:.120}, which is neither a share of at least 0 nor that "
                "and a sentence."
            )
        return self.level(number / raised, reason or f"{self.path} measured {number:.6g} of its limit.")


def _share_of(value: Any) -> float | None:
    """Return a share that somebody else's function measured; ``None`` if it is none."""
    try:
        number = float(value) if isinstance(value, Real) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


# --- combinations ------------------------------------------------------------------------------


class _Combination(Policy):
    """Base of what consists of other policies."""

    __slots__ = ()

    of: tuple[Policy, ...]
    every: ClassVar[bool]

    def __post_init__(self) -> None:
        path = f"{self.code}.of"
        of: Any = self.of
        if isinstance(of, list):
            object.__setattr__(self, "of", tuple(of))
        if not isinstance(of, list | tuple) or not of or any(not isinstance(one, Policy) for one in of):
            raise AmtFieldError(path, self.of, "one or more policies", "combine policies with & and |")
        if len(self.parts) > MAX_POLICIES:
            raise AmtFieldError(
                path, len(self.parts), f"at most {MAX_POLICIES} policies", "combine fewer policies"
            )
        if self.depth > MAX_DEPTH:
            raise AmtFieldError(path, self.depth, f"at most {MAX_DEPTH} deep", "combine fewer policies")

    @property
    def parts(self) -> tuple[SinglePolicy, ...]:
        """See :attr:`Policy.parts`."""
        return tuple(part for one in self.of for part in one.parts)

    @property
    def depth(self) -> int:
        """See :attr:`Policy.depth`."""
        return 1 + max(one.depth for one in self.of)

    @property
    def label(self) -> str:
        """See :attr:`Policy.label`."""
        own = [one for one in self.parts if not one.guard]
        return own[0].code if self.every and len(own) == 1 else self.code

    @property
    def raisable(self) -> bool:
        """See :attr:`Policy.raisable`."""
        return any(one.raisable for one in self.of)

    @property
    def uses_training_jobs(self) -> bool:
        """See :attr:`Policy.uses_training_jobs`."""
        return any(one.uses_training_jobs for one in self.of)

    @property
    def uses_costs(self) -> bool:
        """See :attr:`Policy.uses_costs`."""
        return any(one.uses_costs for one in self.of)

    def to_dict(self) -> dict[str, Any]:
        """See :meth:`Policy.to_dict`."""
        return {"type": self.code, "of": [one.to_dict() for one in self.of]}

    def measure(self, situation: Situation, *, raised: float = 1.0) -> Level:
        """See :meth:`Policy.measure`."""
        levels = tuple(one.measure(situation, raised=raised) for one in self.of)
        pick = min if self.every else max
        low, high = pick(one.low for one in levels), pick(one.high for one in levels)
        return Level(
            code=self.label,
            share=low if low == high else None,
            reason=" ".join(dict.fromkeys(one.reason for one in levels)),
            at_least=low,
            at_most=None if math.isinf(high) else high,
            parts=levels,
            every=self.every,
        )


@dataclass(frozen=True, slots=True)
class AnyOf(_Combination):
    """Breached if one of its policies is: as much is used as of the one that is used most."""

    code: ClassVar[str] = "any"
    every: ClassVar[bool] = False
    of: tuple[Policy, ...]


@dataclass(frozen=True, slots=True)
class AllOf(_Combination):
    """Breached if all of its policies are: as much is used as of the one that is used least."""

    code: ClassVar[str] = "all"
    every: ClassVar[bool] = True
    of: tuple[Policy, ...]


def _operands(kind: type[AnyOf] | type[AllOf], policy: Policy) -> tuple[Policy, ...]:
    return policy.of if isinstance(policy, kind) else (policy,)


# --- to and from dicts -------------------------------------------------------------------------

_SINGLE: Mapping[str, type[SinglePolicy]] = {
    kind.code: kind
    for kind in (
        Deadline,
        Budget,
        MaxFailedTrainingJobs,
        Stalled,
        NotImproving,
        Plateau,
        Converged,
        TargetReached,
        MinimumJobs,
        Custom,
    )
}
_SEVERAL: Mapping[str, type[AnyOf] | type[AllOf]] = {AnyOf.code: AnyOf, AllOf.code: AllOf}

#: Codes of all types of policies.
POLICY_CODES: tuple[str, ...] = (*_SINGLE, *_SEVERAL)


def parse_policy(
    value: Any, *, path: str = "policy", depth_left: int = MAX_DEPTH, beside: Sequence[str] = ()
) -> Policy:
    """Accept a policy as an object or as its dict.

    :param beside: keys that its dict may have had beside its own; errors name them, too.
    :raises AmtFieldError: it is none.
    """
    if isinstance(value, Policy):
        refuse_foreign(value, path)
        return value
    if not isinstance(value, Mapping):
        raise AmtFieldError(
            path, value, "a policy or its dict", 'pass {"type": "stalled", "duration_seconds": 3600}'
        )
    if depth_left == 0:
        raise AmtFieldError(path, "more policies", f"at most {MAX_DEPTH} deep", "combine fewer policies")
    body = {str(key): given for key, given in value.items() if key != "version"}
    check_version(value, path)
    code = body.pop("type", None)
    if isinstance(code, str) and code in _SINGLE:
        return parse_parameters(_SINGLE[code], body, path, beside=beside)
    if not isinstance(code, str) or code not in _SEVERAL:
        raise AmtFieldError(
            f"{path}.type", code, f"one of {', '.join(POLICY_CODES)}", "check the type of the policy"
        )
    inner = body.pop("of", None)
    refuse_unknown(body, ("of", *beside), path)
    if not isinstance(inner, list | tuple) or not 1 <= len(inner) <= MAX_POLICIES:
        raise AmtFieldError(
            f"{path}.of", inner, f"a list of 1 to {MAX_POLICIES} policies", "list what to combine"
        )
    policies = tuple(
        parse_policy(one, path=f"{path}.of[{position}]", depth_left=depth_left - 1)
        for position, one in enumerate(inner)
    )
    try:
        return _SEVERAL[code](policies)
    except AmtFieldError as error:
        raise AmtFieldError(f"{path}.of", error.value, error.limit, error.fix) from None


def refuse_foreign(policy: Policy, path: str) -> None:
    """Refuse a policy that triggers and Variables could not store, because it would not be read back.

    :raises AmtFieldError: it is one.
    """
    kinds = {*_SINGLE.values(), *_SEVERAL.values()}
    for one in (policy, *policy.parts):
        if type(one) not in kinds:
            raise AmtFieldError(
                path, one, "a policy of this package", "write a function, and name it with Custom"
            )


def check_version(value: Mapping[Any, Any], path: str) -> None:
    """Refuse a dict of a later version.

    :raises AmtFieldError: it has one.
    """
    version = value.get("version", POLICY_VERSION)
    if isinstance(version, bool) or version != POLICY_VERSION:
        raise AmtFieldError(f"{path}.version", version, f"{POLICY_VERSION}", "upgrade airflow-provider-amt")
