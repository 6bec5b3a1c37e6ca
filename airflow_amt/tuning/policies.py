"""Stop policies: for which reasons of a business a tuning job is ended, beside AMT's own five criteria.

A *policy* measures, on one :class:`Situation`, which share of its limit is used (1 and more is a breach). ``&``
and ``|`` combine policies: all of them breached, one of them breached. A *rule* says what is done at which
share (warn at 0.8, stop at 1), and an *SLA* is a list of rules. :func:`decide` gives one :class:`Verdict`: the
most severe action that is due, why, the evidence, and when to look again.

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
    reference; or ``after`` the reference. The reference is the job's creation, or a time of the DAG run. A time
    of day that a change to summer time skips is taken with the offset from before it; of one that comes twice
    the first is meant.

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
    :param counting: ``spent``, or ``projected``: what will have been consumed when the tuning job comes to its
        own end, which can be told when a first training job has ended and there is a limit of training jobs.
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

    Exactly one limit. Counted as :class:`airflow_amt.tuning.history.CriteriaTracker` does, also for tuning jobs
    that were created without that criterion.

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
