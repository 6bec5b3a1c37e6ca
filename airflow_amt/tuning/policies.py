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
