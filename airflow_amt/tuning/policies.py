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
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from enum import Enum
from functools import cached_property
from importlib import import_module
from typing import Any, ClassVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.tuning.convergence import NoSignificantImprovement
from airflow_amt.tuning.costs import STOP_SECONDS, UNITS, Consumption, PriceTable, TrainingJobUsage
from airflow_amt.tuning.history import TrainingJobResult, ended_in_order, iso
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

    @property
    def stops(self) -> bool:
        """Whether it ends the tuning job."""
        return self in (Action.STOP, Action.STOP_AND_FAIL)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTimes:
    """The times of a DAG run that a deadline may count from; all aware, ``None`` where there is none."""

    logical_date: datetime | None = None
    queued_at: datetime | None = None
    data_interval_end: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Situation:
    """All that policies look at, at one moment.

    :param progress: the tuning job.
    :param now: the time (aware).
    :param training_jobs: its training jobs; ``None`` if they were not listed.
    :param usages: what they have consumed; ``None`` if that was not asked for.
    :param prices: what instances cost.
    :param run: times of the DAG run.
    """

    progress: TuningProgress
    now: datetime
    training_jobs: Sequence[TrainingJobResult] | None = None
    usages: Sequence[TrainingJobUsage] | None = None
    prices: PriceTable | None = None
    run: RunTimes = field(default_factory=RunTimes)

    @cached_property
    def consumption(self) -> Consumption | None:
        """What all training jobs have consumed."""
        return None if self.usages is None else Consumption.measure(self.usages, self.prices)

    def consumption_since(self, moment: datetime) -> Consumption | None:
        """What the training jobs have consumed that ended after a moment, or still run."""
        if self.usages is None or self.training_jobs is None:
            return None
        before = {
            one.name for one in self.training_jobs if one.ended_at is not None and one.ended_at <= moment
        }
        return Consumption.measure([one for one in self.usages if one.name not in before], self.prices)

    @property
    def launches_left(self) -> int | None:
        """Training jobs that AMT may still launch; ``None`` without a limit."""
        most = self.progress.criteria.max_training_jobs
        return None if most is None else max(0, most - self.progress.training_jobs.launched)


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """How much of a policy's limit is used.

    :param code: the policy's stable code.
    :param share: 1 and more is a breach; ``None`` if it cannot be told.
    :param reason: what was observed and what the limit is, a sentence for people.
    :param evidence: the numbers behind it; JSON-safe.
    :param per_second: by how much the share grows in a second if nothing happens but time.
    :param due: the moment of the breach, of a policy that knows it.
    :param because: codes of the single policies that decided it.
    :param parts: of a combination, the levels of its parts.
    :param combined: how the parts are combined: ``max`` or ``min`` of them.
    """

    code: str
    share: float | None
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    per_second: float = 0.0
    due: datetime | None = None
    because: tuple[str, ...] = ()
    parts: tuple[Level, ...] = ()
    combined: Callable[[Iterable[float]], float] | None = None

    def seconds_until(self, share: float) -> float | None:
        """Return when a share is reached if nothing happens but time; ``None`` for never, or not known."""
        if self.combined is not None:
            waits = [one.seconds_until(share) for one in self.parts]
            if self.combined is _HIGHEST:
                return min((wait for wait in waits if wait is not None), default=None)
            return None if any(wait is None for wait in waits) else max(w for w in waits if w is not None)
        if self.share is None:
            return None
        if self.share >= share:
            return 0.0
        return (share - self.share) / self.per_second if self.per_second > 0 else None


def _highest(shares: Iterable[float]) -> float:
    return max(shares)


def _lowest(shares: Iterable[float]) -> float:
    return min(shares)


_HIGHEST, _LOWEST = _highest, _lowest


class Policy(ABC):
    """Base of all policies."""

    __slots__ = ()

    #: Stable code: the type in the stored dict, and what verdicts name.
    code: ClassVar[str]

    @abstractmethod
    def measure(self, situation: Situation) -> Level:
        """Say how much of the limit is used."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return it as a JSON-safe dict, without a version; :func:`parse_policy` reads it back."""

    @property
    def parts(self) -> tuple[Policy, ...]:
        """The single policies that it consists of."""
        return (self,)

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


_MOMENT = Kind(
    accepts=lambda value: isinstance(value, datetime) and value.tzinfo is not None,
    limit="an aware datetime, or ISO 8601 with an offset",
    fix="give for example 2026-11-24T06:00:00+01:00",
    read=_moment_from,
    write=lambda value: value.isoformat(),
)
_MONEY = Kind(
    accepts=NUMBER.accepts,
    limit="a number above 0",
    fix="give the most that may be consumed, in the unit of the budget",
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

    def level(self, share: float | None, reason: str, **facts: Any) -> Level:
        """Return a level of this policy."""
        return Level(code=self.code, share=share, reason=reason, because=(self.code,), **facts)

    def unknown(self, reason: str) -> Level:
        """Return that it cannot be told."""
        return self.level(None, reason)


@dataclass(frozen=True, slots=True)
class Deadline(SinglePolicy):
    """The tuning job must be over by a time.

    One of: ``at``, an absolute time; ``time_of_day`` in ``timezone``, the first such time after the
    reference; or ``after`` the reference. The reference is the job's creation, or a time of the DAG run. A
    time of day that a change to summer time skips is taken with the offset from before it; of one that comes
    twice the first is meant.

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

    def due(self, situation: Situation) -> datetime | None:
        """Return when the tuning job must be over, the grace time counted in; ``None`` if not known."""
        due = self.at
        if due is None:
            since = self._since(situation)
            if since is None:
                return None
            due = since + self.after if self.after is not None else self._next_time_of_day(since)
        return due + (self.grace or timedelta(0))

    def _since(self, situation: Situation) -> datetime | None:
        if self.reference == "created":
            return situation.progress.created_at
        moment: datetime | None = getattr(situation.run, self.reference)
        return moment

    def _next_time_of_day(self, since: datetime) -> datetime:
        zone = ZoneInfo(str(self.timezone))
        clock = time.fromisoformat(str(self.time_of_day))
        day = since.astimezone(zone).date()
        while True:
            # To UTC and back: of a time that does not exist this makes the one that the clock shows then.
            moment = datetime.combine(day, clock, zone).astimezone(UTC)
            if moment > since:
                return moment
            day += timedelta(days=1)

    def measure(self, situation: Situation) -> Level:
        """See :meth:`Policy.measure`."""
        due = self.due(situation)
        if due is None:
            what = "creation" if self.reference == "created" else self.reference
            return self.unknown(f"The deadline counts from its {what}, which is not known.")
        start = situation.progress.created_at or self._since(situation) or situation.now
        whole, gone = due - start, situation.now - start
        if situation.now >= due:
            share = max(1.0, gone / whole) if whole > timedelta(0) else 1.0
        else:
            share = max(0.0, gone / whole)
        left = (due - situation.now).total_seconds()
        told = f"{left:.0f} s are left" if left > 0 else f"it was {-left:.0f} s ago"
        return self.level(
            share,
            f"The tuning job is to be over by {due.isoformat(timespec='seconds')}; {told}.",
            evidence={"due": iso(due), "seconds_left": left},
            per_second=1 / whole.total_seconds() if whole > timedelta(0) else 0.0,
            due=due,
        )


@dataclass(frozen=True, slots=True)
class Budget(SinglePolicy):
    """The training jobs may consume so much.

    What is compared with the limit is what will have been consumed if the tuning job is stopped now: what was
    consumed, and what the running training jobs consume until they end. So it is stopped before the limit,
    not after.

    :param limit: in the unit.
    :param unit: ``money`` (needs prices), ``billable_seconds`` or ``compute_seconds`` (both times instances).
    :param counting: ``spent``, or ``projected``: what will have been consumed when the tuning job comes to
        its own end, which can be told when a first training job has ended and there is a limit of them.
    :param stopping: how long training jobs are expected to consume after a stop, and before it is noticed.
    """

    code: ClassVar[str] = "budget"
    limit: float = field(metadata={"kind": _MONEY})
    unit: str = field(default="money", metadata={"kind": one_of(*UNITS)})
    counting: str = field(default="spent", metadata={"kind": one_of("spent", "projected")})
    stopping: timedelta = field(default=timedelta(seconds=STOP_SECONDS), metadata={"kind": DURATION})

    def check(self) -> None:
        """See :meth:`SinglePolicy.check`."""
        if self.limit <= 0:
            raise AmtFieldError("budget.limit", self.limit, _MONEY.limit, _MONEY.fix)

    @property
    def uses_training_jobs(self) -> bool:
        """See :attr:`Policy.uses_training_jobs`."""
        return True

    @property
    def uses_costs(self) -> bool:
        """See :attr:`Policy.uses_costs`."""
        return True

    def measure(self, situation: Situation) -> Level:
        """See :meth:`Policy.measure`."""
        consumed = situation.consumption
        spent = None if consumed is None else consumed.of(self.unit)
        if consumed is None or spent is None:
            missing = ", ".join(consumed.unpriced) if consumed is not None else ""
            why = f"there is no price of {missing}" if missing else "it is not known what was consumed"
            return self.unknown(f"Whether the budget is kept cannot be told: {why}.")
        unit = consumed.currency or "" if self.unit == "money" else self.unit.replace("_", " ")
        seconds = self.stopping.total_seconds()
        after_stop = consumed.after_stop(self.unit, seconds) or spent
        projected = consumed.at_completion(self.unit, situation.launches_left)
        counted = after_stop
        if self.counting == "projected" and projected is not None:
            counted = max(after_stop, projected)
        rate = consumed.rate_of(self.unit) or 0.0
        told = "" if projected is None else f", about {projected:.6g} at its end"
        return self.level(
            counted / self.limit,
            f"{spent:.6g} of {self.limit:g} {unit} are spent, {after_stop:.6g} if it is stopped now{told}.",
            evidence={
                "limit": self.limit,
                "unit": self.unit,
                "currency": consumed.currency,
                "spent": spent,
                "after_stop": after_stop,
                "projected": projected,
                "per_hour": rate * 3600,
            },
            per_second=0.0 if self.counting == "projected" and counted > after_stop else rate / self.limit,
        )


@dataclass(frozen=True, slots=True)
class MaxFailedTrainingJobs(SinglePolicy):
    """So many training jobs have failed, or such a share of those that ended.

    :param count: how many.
    :param share: from 0 to 1; counts when ``minimum_ended`` training jobs have ended.
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

    def measure(self, situation: Situation) -> Level:
        """See :meth:`Policy.measure`."""
        failed, ended = situation.progress.training_jobs.failed, situation.progress.training_jobs.ended
        shares, limits = [0.0], []
        if self.count is not None:
            shares.append(failed / self.count)
            limits.append(f"{self.count}")
        if self.share is not None:
            limits.append(f"{self.share:.1%} of those that ended, from {self.minimum_ended} on")
            if ended >= self.minimum_ended:
                shares.append(failed / ended / self.share)
        return self.level(
            max(shares),
            f"{failed} of {ended} training jobs that ended have failed; the limit is {' or '.join(limits)}.",
            evidence={"failed": failed, "ended": ended},
        )


@dataclass(frozen=True, slots=True)
class Stalled(SinglePolicy):
    """No training job has ended for so long; before the first, since the tuning job was created.

    :param duration: for how long.
    """

    code: ClassVar[str] = "stalled"
    duration: timedelta = field(metadata={"kind": DURATION})

    @property
    def uses_training_jobs(self) -> bool:
        """See :attr:`Policy.uses_training_jobs`."""
        return True

    def measure(self, situation: Situation) -> Level:
        """See :meth:`Policy.measure`."""
        if situation.training_jobs is None:
            return self.unknown("When a training job ended last is not known.")
        ends = [one.ended_at for one in situation.training_jobs if one.ended_at is not None]
        last = max(ends, default=situation.progress.created_at)
        if last is None:
            return self.unknown("When the tuning job was created is not known.")
        gone = max(timedelta(0), situation.now - last)
        return self.level(
            gone / self.duration,
            f"No training job has ended for {gone.total_seconds():.0f} s; the limit is "
            f"{self.duration.total_seconds():g} s.",
            evidence={"last_ended_at": iso(last), "seconds": gone.total_seconds()},
            per_second=1 / self.duration.total_seconds(),
        )


@dataclass(frozen=True, slots=True)
class NotImproving(SinglePolicy):
    """The best objective has not improved for so many training jobs, for so long, or for so much consumption.

    Exactly one limit. Counted as :class:`airflow_amt.tuning.history.CriteriaTracker` does, also for tuning
    jobs that were created without that criterion.

    :param training_jobs: results in a row that were not better.
    :param duration: time since the best training job ended; before the first, since the job's creation.
    :param consumed: in the unit, by training jobs that ended later than the best one, or still run.
    :param unit: as of :class:`Budget`.
    """

    code: ClassVar[str] = "not_improving"
    training_jobs: int | None = field(default=None, metadata={"kind": COUNT})
    duration: timedelta | None = field(default=None, metadata={"kind": DURATION})
    consumed: float | None = field(default=None, metadata={"kind": _MONEY})
    unit: str = field(default="money", metadata={"kind": one_of(*UNITS)})

    def check(self) -> None:
        """See :meth:`SinglePolicy.check`."""
        given = [one for one in (self.training_jobs, self.duration, self.consumed) if one is not None]
        if len(given) != 1 or (self.consumed is not None and self.consumed <= 0):
            raise AmtFieldError(
                f"{self.code}.training_jobs",
                self.training_jobs,
                "exactly one of training_jobs, duration and consumed, above 0",
                "give one of the three",
            )

    @property
    def uses_training_jobs(self) -> bool:
        """See :attr:`Policy.uses_training_jobs`."""
        return True

    @property
    def uses_costs(self) -> bool:
        """See :attr:`Policy.uses_costs`."""
        return self.consumed is not None

    def measure(self, situation: Situation) -> Level:
        """See :meth:`Policy.measure`."""
        progress = situation.progress
        if situation.training_jobs is None or progress.objective_type is None or progress.created_at is None:
            return self.unknown("Since when the best objective has not improved is not known.")
        count, since = 0, progress.created_at
        best: float | None = None
        for job in ended_in_order(situation.training_jobs):
            if job.objective is None or job.ended_at is None:
                continue
            if progress.objective_type.better(job.objective, best):
                best, since, count = job.objective, job.ended_at, 0
            else:
                count += 1
        evidence = {"best_objective": best, "since": iso(since), "training_jobs": count}
        if self.training_jobs is not None:
            return self.level(
                count / self.training_jobs,
                f"{count} training jobs in a row did not improve on the best objective; the limit is "
                f"{self.training_jobs}.",
                evidence=evidence,
            )
        if self.duration is not None:
            gone = max(timedelta(0), situation.now - since)
            return self.level(
                gone / self.duration,
                f"The best objective has not improved for {gone.total_seconds():.0f} s; the limit is "
                f"{self.duration.total_seconds():g} s.",
                evidence={**evidence, "seconds": gone.total_seconds()},
                per_second=1 / self.duration.total_seconds(),
            )
        limit = self.consumed or 1.0
        used = situation.consumption_since(since)
        spent = None if used is None else used.of(self.unit)
        if used is None or spent is None:
            return self.unknown("What was consumed since the best objective improved is not known.")
        return self.level(
            spent / limit,
            f"{spent:.6g} {used.currency if self.unit == 'money' else self.unit.replace('_', ' ')} were "
            f"consumed since the best objective improved; the limit is {limit:g}.",
            evidence={**evidence, "spent": spent},
            per_second=(used.rate_of(self.unit) or 0.0) / limit,
        )


@dataclass(frozen=True, slots=True)
class Plateau(SinglePolicy):
    """The last results improved on the best before them by a share of it at the most.

    The rule of :class:`airflow_amt.tuning.convergence.NoSignificantImprovement`.

    :param window: how many results.
    :param threshold: the share.
    :param minimum: fewest results before it counts.
    """

    code: ClassVar[str] = "plateau"
    window: int = field(default=20, metadata={"kind": COUNT})
    threshold: float = field(default=0.01, metadata={"kind": SHARE})
    minimum: int = field(default=25, metadata={"kind": COUNT})

    @property
    def uses_training_jobs(self) -> bool:
        """See :attr:`Policy.uses_training_jobs`."""
        return True

    def measure(self, situation: Situation) -> Level:
        """See :meth:`Policy.measure`."""
        direction = situation.progress.objective_type
        if situation.training_jobs is None or direction is None:
            return self.unknown("The objectives of the training jobs are not known.")
        objectives = [
            job.objective for job in ended_in_order(situation.training_jobs) if job.objective is not None
        ]
        rule = NoSignificantImprovement(self.window, self.threshold, self.minimum)
        met = rule.converged(objectives, direction)
        return self.level(
            1.0 if met else 0.0,
            f"The last {self.window} of {len(objectives)} results "
            f"{'improved' if met else 'may still improve'} on the best before them by "
            f"{self.threshold:.1%}{' at the most' if met else ' and more'}.",
            evidence={"results": len(objectives)},
        )


@dataclass(frozen=True, slots=True)
class TargetReached(SinglePolicy):
    """The best objective is as good as a value; a target, or the floor of another policy.

    ``NotImproving(training_jobs=20) & TargetReached(0.8)`` gives up only when the model is good enough.

    :param value: the objective, in the tuning job's own direction.
    """

    code: ClassVar[str] = "target_reached"
    value: float = field(metadata={"kind": NUMBER})

    def measure(self, situation: Situation) -> Level:
        """See :meth:`Policy.measure`."""
        best, direction = situation.progress.best_objective, situation.progress.objective_type
        if best is None and situation.progress.objectives.succeeded == 0:
            return self.level(0.0, "No training job has given an objective yet.")
        if best is None or direction is None:
            return self.unknown("The best objective, or its direction, is not known.")
        reached = direction.reaches(best, self.value)
        return self.level(
            1.0 if reached else 0.0,
            f"The best objective, {best:.6g}, {'is' if reached else 'is not'} as good as {self.value:g}.",
            evidence={"best_objective": best},
        )


@dataclass(frozen=True, slots=True)
class MinimumJobs(SinglePolicy):
    """So many training jobs have given an objective: a guard for other policies, combined with ``&``.

    :param count: how many.
    """

    code: ClassVar[str] = "minimum_jobs"
    count: int = field(metadata={"kind": COUNT})

    def measure(self, situation: Situation) -> Level:
        """See :meth:`Policy.measure`."""
        done = situation.progress.objectives.succeeded
        return self.level(
            done / self.count,
            f"{done} training jobs have given an objective; waited for are {self.count}.",
            evidence={"with_objective": done},
        )


@dataclass(frozen=True, slots=True)
class Custom(SinglePolicy):
    """A policy of one's own, by import path: a function that takes a :class:`Situation` and the arguments.

    It returns the share of its limit that is used (``None`` if it cannot tell), or that and a sentence. It
    must be importable where the DAG is parsed, on workers and in triggerers, and must not block.

    :param path: as ``"my_company.policies.too_hot"``.
    :param arguments: keyword arguments, JSON-safe.
    """

    code: ClassVar[str] = "custom"
    path: str = field(
        metadata={
            "kind": Kind(
                accepts=lambda value: isinstance(value, str) and value.count(".") > 0,
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
                accepts=lambda value: isinstance(value, Mapping),
                limit="a mapping of keyword arguments",
                fix='give for example {"limit": 3}',
                read=lambda value: value,
                write=dict,
            )
        },
    )

    def check(self) -> None:
        """Import it, so that a wrong path is told while the DAG is parsed."""
        self._function()

    def _function(self) -> Callable[..., Any]:
        module, _, name = self.path.rpartition(".")
        try:
            found = getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise AmtFieldError(
                "custom.path", self.path, f"the import path of a function ({error})", "correct the path"
            ) from None
        if not callable(found):
            raise AmtFieldError("custom.path", self.path, "the path of a function", "correct the path")
        function: Callable[..., Any] = found
        return function

    @property
    def uses_training_jobs(self) -> bool:
        """See :attr:`Policy.uses_training_jobs`: nobody knows, so it gets them."""
        return True

    def measure(self, situation: Situation) -> Level:
        """See :meth:`Policy.measure`."""
        answer = self._function()(situation, **self.arguments)
        share, reason = answer if isinstance(answer, tuple) else (answer, "")
        told = "nothing" if share is None else f"{share:.2f} of its limit"
        return self.level(None if share is None else float(share), reason or f"{self.path} measured {told}.")


# --- combinations ------------------------------------------------------------------------------


class _Combination(Policy):
    """Base of what consists of other policies."""

    __slots__ = ()

    of: tuple[Policy, ...]
    combined: ClassVar[Callable[[Iterable[float]], float]]

    def __post_init__(self) -> None:
        if not self.of or any(not isinstance(one, Policy) for one in self.of):
            raise AmtFieldError(
                f"{self.code}.of", self.of, "one or more policies", "combine policies with & and |"
            )
        if len(self.parts) > MAX_POLICIES:
            raise AmtFieldError(
                f"{self.code}.of", len(self.parts), f"at most {MAX_POLICIES} policies", "combine fewer"
            )

    @property
    def parts(self) -> tuple[Policy, ...]:
        """See :attr:`Policy.parts`."""
        return tuple(part for one in self.of for part in one.parts)

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

    def _combine(self, levels: Sequence[Level], share: float | None) -> Level:
        deciding = [one for one in levels if one.share == share] or list(levels)
        return Level(
            code=self.code,
            share=share,
            reason=" ".join(dict.fromkeys(one.reason for one in deciding)),
            evidence={key: value for one in deciding for key, value in one.evidence.items()},
            because=tuple(dict.fromkeys(code for one in deciding for code in one.because)),
            parts=tuple(levels),
            combined=type(self).combined,
        )


@dataclass(frozen=True, slots=True)
class AnyOf(_Combination):
    """Breached if one of its policies is: as much is used as of the one that is used most."""

    code: ClassVar[str] = "any"
    combined: ClassVar[Callable[[Iterable[float]], float]] = _highest
    of: tuple[Policy, ...]

    def measure(self, situation: Situation) -> Level:
        """See :meth:`Policy.measure`; a part that cannot be told does not hide a breach of another."""
        levels = [one.measure(situation) for one in self.of]
        shares = [one.share for one in levels if one.share is not None]
        known = len(shares) == len(levels) or any(share >= 1 for share in shares)
        return self._combine(levels, max(shares) if shares and known else None)


@dataclass(frozen=True, slots=True)
class AllOf(_Combination):
    """Breached if all of its policies are: as much is used as of the one that is used least."""

    code: ClassVar[str] = "all"
    combined: ClassVar[Callable[[Iterable[float]], float]] = _lowest
    of: tuple[Policy, ...]

    def measure(self, situation: Situation) -> Level:
        """See :meth:`Policy.measure`; a part that cannot be told does not hide that another is kept."""
        levels = [one.measure(situation) for one in self.of]
        shares = [one.share for one in levels if one.share is not None]
        known = len(shares) == len(levels) or any(share < 1 for share in shares)
        return self._combine(levels, min(shares) if shares and known else None)


def _operands(kind: type[AnyOf] | type[AllOf], policy: Policy) -> tuple[Policy, ...]:
    return policy.of if isinstance(policy, kind) else (policy,)


# --- rules -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What is done when a share of a policy's limit is used, or so long before its deadline.

    :param action: what is done.
    :param at: the share, above 0.
    :param before: time before a deadline; then ``at`` does not count.
    """

    action: Action
    at: float = 1.0
    before: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A policy, and what is done at which of its shares.

    :param policy: what is measured.
    :param steps: what is done; by default, stop at the limit.
    :param name: for people and records; by default the policy's code.
    """

    policy: Policy
    steps: tuple[Step, ...] = (Step(action=Action.STOP),)
    name: str = ""

    def __post_init__(self) -> None:
        if not self.steps:
            raise AmtFieldError("steps", self.steps, "one or more steps", "say what is done at which share")
        for one in self.steps:
            if one.before is not None and not isinstance(self.policy, Deadline):
                raise AmtFieldError(
                    "steps.before", one.before, "only for a deadline", "give a share with at instead"
                )

    @property
    def title(self) -> str:
        """How people and records name it."""
        return self.name or self.policy.code


@dataclass(frozen=True, slots=True, kw_only=True)
class Sla:
    """The rules that a tuning job has to keep, and what instances cost.

    :param rules: the rules, the most important first: of two that are breached at once with actions of the
        same severity, the first is the reason.
    :param prices: needed by budgets in money.
    """

    rules: tuple[Rule, ...]
    prices: PriceTable | None = None

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
            "rules": [_rule_to_dict(one) for one in self.rules],
            **({} if self.prices is None else {"prices": self.prices.to_dict()}),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is to be done about a tuning job now, and why.

    :param action: the most severe action that is due; ``None`` for nothing.
    :param rule: name of the rule that asks for it.
    :param code: the policy's stable code.
    :param share: how much of the limit is used.
    :param reason: why, for people.
    :param evidence: the numbers; JSON-safe.
    :param next_look_at: when a step can be due without anything but time passing; ``None`` for never.
    :param also: names of other rules that ask for the same action.
    :param warnings: reasons of all rules of which a mere warning is due.
    :param unknown: reasons of the rules that cannot be told.
    """

    action: Action | None = None
    rule: str | None = None
    code: str | None = None
    share: float | None = None
    reason: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    next_look_at: datetime | None = None
    also: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

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
            "warnings": list(self.warnings),
            "unknown": list(self.unknown),
        }


def decide(sla: Sla, situation: Situation) -> Verdict:
    """Judge a tuning job by an SLA.

    A tuning job that is over, or is being stopped, is left alone.
    """
    if situation.progress.is_terminal or situation.progress.status == "Stopping":
        return Verdict(reason=f"The tuning job is {situation.progress.status}.")
    due: list[tuple[Action, Rule, Level]] = []
    looks: list[datetime] = []
    unknown: list[str] = []
    for rule in sla.rules:
        level = rule.policy.measure(situation)
        if level.share is None:
            unknown.append(f"{rule.title}: {level.reason}")
        met = [step.action for step in rule.steps if _is_due(step, level, situation.now)]
        if met:
            due.append((max(met, key=lambda action: action.severity), rule, level))
        looks += _next_looks(rule, level, situation.now)
    next_look_at = min(looks, default=None)
    if not due:
        return Verdict(reason="Every rule is kept.", next_look_at=next_look_at, unknown=tuple(unknown))
    action, rule, level = max(due, key=lambda one: one[0].severity)  # the first of the most severe
    return Verdict(
        action=action,
        rule=rule.title,
        code=level.because[0] if len(level.because) == 1 else level.code,
        share=level.share,
        reason=level.reason,
        evidence=level.evidence,
        next_look_at=next_look_at,
        also=tuple(one.title for act, one, _ in due if act is action and one is not rule),
        warnings=tuple(f"{one.title}: {seen.reason}" for act, one, seen in due if act is Action.WARN),
        unknown=tuple(unknown),
    )


def _is_due(step: Step, level: Level, now: datetime) -> bool:
    if step.before is not None:
        return level.due is not None and now >= level.due - step.before
    return level.share is not None and level.share >= step.at


def _next_looks(rule: Rule, level: Level, now: datetime) -> Iterator[datetime]:
    for step in rule.steps:
        if _is_due(step, level, now):
            continue
        if step.before is not None:
            if level.due is not None:
                yield level.due - step.before
            continue
        seconds = level.seconds_until(step.at)
        if seconds is not None and seconds < 1e9:
            yield now + timedelta(seconds=seconds)


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
        TargetReached,
        MinimumJobs,
        Custom,
    )
}
_SEVERAL: Mapping[str, type[AnyOf] | type[AllOf]] = {AnyOf.code: AnyOf, AllOf.code: AllOf}

#: Codes of all types of policies.
POLICY_CODES: tuple[str, ...] = (*_SINGLE, *_SEVERAL)


def parse_policy(value: Any, *, path: str = "policy", depth_left: int = MAX_DEPTH) -> Policy:
    """Accept a policy as an object or as its dict.

    :raises AmtFieldError: it is none.
    """
    if isinstance(value, Policy):
        return value
    if not isinstance(value, Mapping):
        raise AmtFieldError(
            path, value, "a policy or its dict", 'pass {"type": "stalled", "duration_seconds": 3600}'
        )
    if depth_left == 0:
        raise AmtFieldError(path, value, f"at most {MAX_DEPTH} deep", "combine fewer policies")
    body = {str(key): given for key, given in value.items() if key != "version"}
    code = body.pop("type", None)
    if isinstance(code, str) and code in _SINGLE:
        return parse_parameters(_SINGLE[code], body, path)
    if not isinstance(code, str) or code not in _SEVERAL:
        raise AmtFieldError(
            f"{path}.type", code, f"one of {', '.join(POLICY_CODES)}", "check the type of the policy"
        )
    inner = body.pop("of", None)
    refuse_unknown(body, ("of",), path)
    if not isinstance(inner, Sequence) or isinstance(inner, str) or not inner:
        raise AmtFieldError(f"{path}.of", inner, "a list of one or more policies", "list what to combine")
    return _SEVERAL[code](
        tuple(
            parse_policy(one, path=f"{path}.of[{position}]", depth_left=depth_left - 1)
            for position, one in enumerate(inner)
        )
    )


def parse_sla(value: Any, *, path: str = "sla") -> Sla:
    """Accept an SLA, or what one can be made of.

    :param value: an SLA, its dict or the JSON text of that, a policy, or a list of policies or rules.
    :raises AmtFieldError: it is none.
    """
    if isinstance(value, Sla):
        return value
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise AmtFieldError(
                path, value, "an SLA, its dict or the JSON text of that", "see the guide for its form"
            ) from None
    if isinstance(value, Policy | Rule) or (isinstance(value, Mapping) and "type" in value):
        value = [value]
    if isinstance(value, Mapping):
        refuse_unknown(value, ("version", "rules", "prices"), path)
        version = value.get("version", POLICY_VERSION)
        if version != POLICY_VERSION:
            raise AmtFieldError(
                f"{path}.version", version, f"{POLICY_VERSION}", "upgrade airflow-provider-amt"
            )
        prices = value.get("prices")
        table = None if prices is None else PriceTable.parse(prices, path=f"{path}.prices")
        rules = value.get("rules")
    else:
        table, rules = None, value
    if not isinstance(rules, Sequence) or isinstance(rules, str) or not rules:
        raise AmtFieldError(f"{path}.rules", rules, "a list of one or more rules", "list what must hold")
    sla = Sla(
        rules=tuple(_parse_rule(one, f"{path}.rules[{position}]") for position, one in enumerate(rules)),
        prices=table,
    )
    needs_prices = any(
        getattr(part, "unit", None) == "money" and part.uses_costs
        for rule in sla.rules
        for part in rule.policy.parts
    )
    if needs_prices and table is None:
        raise AmtFieldError(
            f"{path}.prices",
            None,
            "prices, for a budget in money",
            'give {"currency": "EUR", "per_hour": {"ml.m5.xlarge": 0.26}}, or use billable_seconds',
        )
    return sla


def _parse_rule(value: Any, path: str) -> Rule:
    if isinstance(value, Rule):
        return value
    if isinstance(value, Policy):
        return Rule(policy=value)
    if not isinstance(value, Mapping):
        raise AmtFieldError(path, value, "a rule, a policy or the dict of one", "see the guide for its form")
    if "type" in value:
        return Rule(policy=parse_policy(value, path=path))
    refuse_unknown(value, ("policy", "steps", "name"), path)
    steps = value.get("steps")
    policy = parse_policy(value.get("policy"), path=f"{path}.policy")
    if steps is None:
        return Rule(policy=policy, name=str(value.get("name") or ""))
    if not isinstance(steps, Sequence) or isinstance(steps, str):
        raise AmtFieldError(f"{path}.steps", steps, "a list of steps", 'give [{"action": "stop", "at": 1}]')
    return Rule(
        policy=policy,
        steps=tuple(_parse_step(one, f"{path}.steps[{position}]") for position, one in enumerate(steps)),
        name=str(value.get("name") or ""),
    )


def _parse_step(value: Any, path: str) -> Step:
    if isinstance(value, Step):
        return value
    if not isinstance(value, Mapping):
        raise AmtFieldError(path, value, "a step", 'give {"action": "stop", "at": 1}')
    refuse_unknown(value, ("action", "at", "before_seconds"), path)
    try:
        action = Action(value.get("action"))
    except ValueError:
        raise AmtFieldError(
            f"{path}.action",
            value.get("action"),
            f"one of {', '.join(one.value for one in Action)}",
            "check the spelling",
        ) from None
    at = NUMBER.read(value.get("at", 1.0))
    if not NUMBER.accepts(at) or at <= 0:
        raise AmtFieldError(f"{path}.at", value.get("at"), "a share above 0", "give 0.8 for 80 %")
    before = value.get("before_seconds")
    span = None if before is None else DURATION.read(before)
    if span is not None and not DURATION.accepts(span):
        raise AmtFieldError(f"{path}.before_seconds", before, DURATION.limit, DURATION.fix)
    return Step(action=action, at=float(at), before=span)


def _rule_to_dict(rule: Rule) -> dict[str, Any]:
    return {
        "policy": rule.policy.to_dict(),
        "steps": [
            {
                "action": one.action.value,
                **({"at": one.at} if one.before is None else {"before_seconds": one.before.total_seconds()}),
            }
            for one in rule.steps
        ],
        **({"name": rule.name} if rule.name else {}),
    }
