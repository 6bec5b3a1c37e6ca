"""Which call to AWS to make next, so that many watchers learn of their tuning jobs with few calls.

Pure: no clock and no calls. Whoever uses a :class:`Schedule` asks it for the next action, carries it out, and
tells it what came of it; it then says which watchers have something to look at.

There are two ways to read tuning jobs. ``DescribeHyperParameterTuningJob`` tells all about one of them.
``ListHyperParameterTuningJobs`` tells status and counters of a hundred (SageMaker API). A *sweep* lists the
jobs in progress; what it costs is its pages, so it is made when it spares more descriptions than that. That a
job is missing from a list proves nothing: it is described, or found in a list of those that ended. Times
given to AWS as filters are AWS's own, so that clocks may differ.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from airflow_amt.exceptions import AmtAwsError
from airflow_amt.tuning.progress import TuningProgress
from airflow_amt.tuning.rates import TokenBucket
from airflow_amt.tuning.status import TuningJobStatus

#: Summaries on a page of ``ListHyperParameterTuningJobs`` (SageMaker API, ``MaxResults``).
PAGE = 100

#: Share of its interval after which a job counts as worth a place in a sweep.
_WORTH_A_PLACE = 0.5

#: New watchers are waited for, so that one sweep serves all of a triggerer that starts: for so long after
#: the last one, and for so long at most, in seconds.
_GATHER_SECONDS = 0.1
_GATHER_AT_MOST_SECONDS = 1.0

#: For how long no sweep is made after one that was refused, or came to more pages than it spares.
_SWEEPS_REFUSED_SECONDS = 600.0

#: The same after one that failed for a reason that may pass: from, and up to, doubled each time.
_SWEEPS_FAILED_SECONDS = 2.0
_SWEEPS_FAILED_AT_MOST_SECONDS = 300.0

#: For how long the number of pages that a sweep took is taken for that of the next.
_PAGES_KNOWN_SECONDS = 600.0

#: From how many missing jobs on the lists of those that ended are read, and for how many one page may be.
_CHASE_FROM = 4
_MISSING_PER_PAGE = 10

#: Descriptions a minute beyond what is due: of jobs that just began or are about to end, and for the best
#: objective in people's logs.
_EXTRA_PER_MINUTE = 4.0

#: A job younger than this is looked at sooner: what is wrong with a request shows in the beginning.
_YOUNG_SECONDS = 120.0
_SHORTEST_EARLY_SECONDS = 5.0

#: What a list is worth for a job that waits so long to be described that it may be over, as a share of a
#: description: it tells that, and spares nothing if the job goes on.
_WORTH_BEHIND = 0.25

#: How soon it is looked again whether such a list is worthwhile, in seconds.
_BEHIND_AGAIN_SECONDS = 1.0

#: How long throttling may keep a job unread before its watchers are told, again and again.
_TELL_THROTTLING_SECONDS = 300.0

#: Calls that fail in a row, from which on it is the connection that fails, not the one job.
_OUTAGE = 3

#: Due times beyond two a job from which on those are removed that no longer hold.
_STALE_FROM = 1000

_IN_PROGRESS = TuningJobStatus.IN_PROGRESS.value
_STOPPING = TuningJobStatus.STOPPING.value

#: Statuses whose jobs are swept together.
_SWEPT = (_IN_PROGRESS, _STOPPING)

#: Where jobs that are missing from their list are looked for, and in this order.
_CHASED = (
    TuningJobStatus.COMPLETED.value,
    _STOPPING,
    TuningJobStatus.STOPPED.value,
    TuningJobStatus.FAILED.value,
)


class Need(Enum):
    """What a watcher needs to know of its job."""

    #: Status and counters, of which a list tells as much as a description.
    SUMMARY = "summary"
    DESCRIPTION = "description"


@dataclass(frozen=True, slots=True)
class Describe:
    """Describe this tuning job.

    :param name: the tuning job.
    :param is_extra: nobody waits for it: if it fails, that is nobody's failure.
    """

    name: str
    is_extra: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """List tuning jobs, the newest first, page by page, until :meth:`Schedule.page` says that it is enough.

    :param status: ``StatusEquals``.
    :param created_after: ``CreationTimeAfter``; ``None`` for none.
    :param modified_after: ``LastModifiedTimeAfter``; ``None`` for none.
    """

    status: str
    created_after: datetime | None = None
    modified_after: datetime | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """There is nothing to do until then; ``None`` for ever, until somebody watches something."""

    until: float | None


Action = Describe | Sweep | Wait


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a watcher gets to see: a tuning job at one moment, or that reading it failed.

    :param asked_at: when the call was made, by the clock of the schedule.
    :param progress: the tuning job; ``None`` if reading failed.
    :param description: the answer of ``DescribeHyperParameterTuningJob``, if it comes from that.
    :param error: why reading failed.
    """

    asked_at: float
    progress: TuningProgress | None = None
    description: Mapping[str, Any] | None = None
    error: Exception | None = None


class Watcher:
    """One who watches a tuning job; made by :meth:`Schedule.watch`.

    :param job: its tuning job.
    :param interval: longest time between two reads, in seconds.
    :param since: from when on it watches.
    """

    __slots__ = (
        "backed_off",
        "curious",
        "due",
        "ends_by_summary",
        "interval",
        "job",
        "need",
        "seen",
        "since",
        "stale_from",
        "told_at",
        "unseen",
        "waiting",
        "wake_by",
        "wake_from",
    )

    def __init__(self, job: _Job, interval: float, since: float) -> None:
        self.job = job
        self.interval = interval
        self.since = since
        self.need = Need.SUMMARY
        self.due = since
        self.waiting = False
        self.wake_from = since
        self.wake_by = math.inf
        self.stale_from = math.inf
        self.curious = False
        self.ends_by_summary = False
        self.backed_off = False
        self.told_at = since
        self.seen: tuple[Any, ...] | None = None
        self.unseen: Observation | None = None

    def take(self) -> Observation | None:
        """Return what there is to look at, once; ``None`` for nothing."""
        observation, self.unseen = self.unseen, None
        if observation is not None and observation.progress is not None:
            self.seen = change_key(observation.progress)
        self.waiting = False
        return observation

    @property
    def is_hungry(self) -> bool:
        """Whether it waits, and has nothing to look at."""
        return self.waiting and self.unseen is None


@dataclass(slots=True, eq=False)
class _Job:
    """A tuning job that somebody watches."""

    name: str
    watchers: list[Watcher] = field(default_factory=list)
    progress: TuningProgress | None = None
    created_at: datetime | None = None
    as_of: float | None = None
    #: Its due time in the heap, if it is there.
    pushed: float | None = None
    #: In a queue, in a call, or put off until a sweep is over.
    busy: bool = False
    #: Of these: put off until a sweep is over.
    postponed: bool = False
    #: It waits its turn to be described because its read is due; a sweep that comes first will do.
    queued: bool = False
    #: Its latest place in a queue; earlier ones no longer hold.
    place: int = 0
    #: A description may tell what the list could not: it is missing there.
    suspect: bool = False
    #: It was in no list, and was described as going on: until then no list is asked for it.
    unlisted_until: float = -math.inf
    #: When it was read last, AWS had told of changes up to then: it ends later.
    ends_after: datetime | None = None

    @property
    def due(self) -> float | None:
        times = [min(one.due, one.wake_by) for one in self.watchers if one.is_hungry]
        return min(times, default=None)

    @property
    def interval(self) -> float:
        return min(one.interval for one in self.watchers)

    @property
    def unread_since(self) -> float:
        """When it was read, or first watched."""
        return min(one.since for one in self.watchers) if self.as_of is None else self.as_of

    @property
    def group(self) -> str:
        """The status with which it is listed."""
        return _IN_PROGRESS if self.progress is None else self.progress.status

    @property
    def takes_summaries(self) -> bool:
        return any(one.waiting and one.need is Need.SUMMARY for one in self.watchers)

    def may_be_listed(self, now: float) -> bool:
        """Whether it waits its turn to be described, and a list that tells its end would do."""
        return (
            self.queued
            and now >= self.unlisted_until
            and any(one.is_hungry and one.ends_by_summary for one in self.watchers)
        )

    def is_behind(self, now: float) -> bool:
        """Whether it waits to be described for so long that a list should tell if it is over."""
        return self.may_be_listed(now) and now - self.unread_since >= self.interval

    def needs_description(self, now: float) -> bool:
        return any(
            one.is_hungry and one.need is Need.DESCRIPTION and min(one.due, one.wake_by) <= now
            for one in self.watchers
        )


#: Jobs, with the place that each had when it came.
_Queue = deque[tuple[_Job, int]]


#: A kind of list: its status, whether it is for those that wait for their turn, and whether of them for those
#: that were never read.
_Kind = tuple[str, bool, bool]


@dataclass(slots=True, kw_only=True)
class _Sweeping:
    """A sweep that is under way."""

    status: str
    began: float
    wanted: set[str]
    #: Whose end it may tell by the way.
    hoped: set[str] = field(default_factory=set)
    #: It ended before its time, so that others had not to wait.
    is_cut: bool = False
    most_pages: int
    #: ``None`` for one in which those are looked for that are missing from another.
    kind: _Kind | None
    found: set[str] = field(default_factory=set)
    pages: int = 0
    newest: datetime | None = None
    postponed: list[_Job] = field(default_factory=list)
    #: A call of it takes long: nobody waits for it any more.
    is_slow: bool = False

    @property
    def catches_up(self) -> bool:
        """Whether it is for those that wait for their turn to be described, and for nobody else."""
        return self.kind is not None and self.kind[1]


def change_key(progress: TuningProgress) -> tuple[Any, ...]:
    """Return what must differ for a summary to be news to whoever has seen an earlier one."""
    return (progress.status, progress.training_jobs, progress.objectives)


class Schedule:
    """Decides which call comes next.

    :param spread: returns a factor, at most 1, for the time until the next read: so that triggerers that
        started together come apart.
    """

    def __init__(self, *, spread: Callable[[], float] = lambda: 1.0) -> None:
        self._spread = spread
        #: The time of day, as of the last action.
        self._wall: datetime
        self._jobs: dict[str, _Job] = {}
        self._heap: list[tuple[float, int, _Job]] = []
        self._early: list[tuple[float, int, _Job, float]] = []
        self._count = 0
        self._suspects: _Queue = deque()
        self._queue: _Queue = deque()
        self._extras: _Queue = deque()
        self._sweeping: _Sweeping | None = None
        self._chase: deque[str] = deque()
        self._missing: dict[str, _Job] = {}
        self._behind_again_at = -math.inf
        #: Pages that a kind of list had, and when.
        self._pages: dict[_Kind, tuple[int, float]] = {}
        self._no_sweep_before: dict[str, float] = {}
        #: Sweeps that failed in a row.
        self._sweeps_failed: dict[str, int] = {}
        #: Newest change by AWS's clock in any sweep so far.
        self._newest: datetime | None = None
        self._watched_at = -math.inf
        self._gather_from: float | None = None
        self._failures = 0
        #: Descriptions failed so that all who waited were told, and none has succeeded since.
        self._descriptions_out = False
        self._extra = TokenBucket(_EXTRA_PER_MINUTE / 60, _EXTRA_PER_MINUTE, 0.0)

    # --- watchers ------------------------------------------------------------------------------

    def watch(self, name: str, interval: float, now: float) -> Watcher:
        """Begin to watch a tuning job, as one more watcher of it."""
        job = self._jobs.get(name)
        if job is None:
            job = self._jobs[name] = _Job(name)
        watcher = Watcher(job, interval, now)
        job.watchers.append(watcher)
        self._watched_at = now
        if self._gather_from is None:
            self._gather_from = now
        return watcher

    def unwatch(self, watcher: Watcher) -> None:
        """Forget a watcher."""
        watcher.waiting = False
        job = watcher.job
        if watcher in job.watchers:
            job.watchers.remove(watcher)
        if not job.watchers and self._jobs.get(job.name) is job:
            del self._jobs[job.name]
            job.pushed = None

    def wait(
        self,
        watcher: Watcher,
        *,
        due: float,
        need: Need = Need.SUMMARY,
        wake_from: float = -math.inf,
        wake_by: float = math.inf,
        stale_from: float = math.inf,
        curious: bool = False,
        ends_by_summary: bool = False,
        backed_off: bool = False,
    ) -> bool:
        """Let a watcher wait for the next observation.

        :param due: when its job is to be read at the latest, unless it is read before.
        :param need: what it needs.
        :param wake_from: until then a change of counters is no news to it.
        :param wake_by: from then on any observation is, even without a change, and the job is read then.
        :param stale_from: from then on any observation is, whenever there is one.
        :param curious: a description would be better than a summary, if one is to be had cheaply.
        :param ends_by_summary: a summary will do that tells that the job is over, whatever else is needed.
        :param backed_off: it waits longer than its interval, because reading failed.
        :return: whether there is something to look at already.
        """
        watcher.waiting = True
        watcher.due = due
        watcher.need = need
        watcher.wake_from = wake_from
        watcher.wake_by = wake_by
        watcher.stale_from = stale_from
        watcher.curious = curious
        watcher.ends_by_summary = ends_by_summary
        watcher.backed_off = backed_off
        job = watcher.job
        if watcher.unseen is not None:
            return True
        if job.suspect and not job.busy and not backed_off:
            self._enqueue(self._suspects, job)
        self._push(job)
        return False

    @property
    def jobs(self) -> int:
        """How many tuning jobs are watched."""
        return len(self._jobs)

    @property
    def watchers(self) -> int:
        """How many watch them."""
        return sum(len(job.watchers) for job in self._jobs.values())

    def staleness(self, now: float) -> float:
        """Return how long ago the job that was not read for the longest time was read, in seconds."""
        return max(
            (now - job.unread_since for job in self._jobs.values() if job.due is not None),
            default=0.0,
        )

    # --- what to do next -----------------------------------------------------------------------

    def next(self, now: float, wall: datetime) -> Action:
        """Return what to do now.

        :param now: the schedule's clock.
        :param wall: the time of day, aware; only to tell young jobs from old ones.
        """
        self._wall = wall
        if self._sweeping is None and self._chase:
            sweep = self._next_chase(now)
            if sweep is not None:
                return sweep
        sweep = self._take_due(now)
        if sweep is not None:
            return sweep
        if (suspect := self._pop(self._suspects)) is not None:
            return Describe(suspect.name)
        # Before what is due: they are few, and the queue may never be empty.
        if (extra := self._next_extra(now)) is not None:
            return Describe(extra.name, is_extra=True)
        if (sweep := self._catch_up(now)) is not None:
            return sweep
        if (queued := self._pop(self._queue, due_by=now)) is not None:
            return Describe(queued.name)
        return Wait(self._next_moment(now))

    def _next_moment(self, now: float) -> float | None:
        """Return when there is something to do at the earliest, but for what no longer holds."""
        while self._heap and self._heap[0][2].pushed != self._heap[0][0]:
            heapq.heappop(self._heap)
        while self._early and self._early[0][2].as_of != self._early[0][3]:
            heapq.heappop(self._early)
        times = [self._heap[0][0]] if self._heap else []
        if self._early:
            times.append(max(self._early[0][0], now + self._extra.wait(now)))
        return min(times, default=None)

    def _take_due(self, now: float) -> Sweep | None:
        due: dict[str, list[_Job]] = {}
        for job in self._pop_due(now):
            if job.suspect or job.needs_description(now):
                self._enqueue(self._queue, job)
            else:
                due.setdefault(job.group, []).append(job)
        sweep: Sweep | None = None
        for status, jobs in due.items():
            sweep = self._sweep_or_queue(status, jobs, now) or sweep
        return sweep

    def _pop_due(self, now: float) -> Iterator[_Job]:
        gather_until = self._gathering_until()
        late: list[_Job] = []
        while self._heap and self._heap[0][0] <= now:
            due, _, job = heapq.heappop(self._heap)
            if job.pushed != due:
                continue
            job.pushed = None
            if job.busy or job.due is None:
                continue
            if job.as_of is None and now < gather_until:
                late.append(job)
                continue
            yield job
        for job in late:
            self._push_at(job, gather_until)
        if now >= gather_until:
            self._gather_from = None

    def _gathering_until(self) -> float:
        if self._gather_from is None:
            return -math.inf
        return min(self._watched_at + _GATHER_SECONDS, self._gather_from + _GATHER_AT_MOST_SECONDS)

    def _sweep_or_queue(self, status: str, jobs: list[_Job], now: float) -> Sweep | None:
        if status in _SWEPT and self._sweeping is not None and not self._sweeping.is_slow:
            # One sweep at a time; the other group has its turn after it.
            self._postpone(jobs)
            return None
        sweep = self._worthwhile_sweep(status, now) if self._sweeping is None else None
        if sweep is None:
            for job in jobs:
                self._enqueue(self._queue, job)
        else:
            self._postpone(jobs)
        return sweep

    def _catch_up(self, now: float) -> Sweep | None:
        """Begin a sweep if the rate is too low for what waits to be described: some may be over."""
        if self._sweeping is not None or not self._queue or now < self._behind_again_at:
            return None
        self._behind_again_at = now + _BEHIND_AGAIN_SECONDS
        # Those that were never read apart: their list is as long as the account has jobs.
        behind: dict[tuple[str, bool], dict[str, _Job]] = {}
        for job, place in self._queue:
            if place == job.place and self._may_sweep(job.group, now) and job.is_behind(now):
                behind.setdefault((job.group, job.created_at is None), {})[job.name] = job
        # First those of which one was not read for the longest time.
        for (status, _), jobs in sorted(
            behind.items(), key=lambda one: min(job.unread_since for job in one[1].values())
        ):
            sweep = self._sweep_if_worthwhile(status, jobs, _WORTH_BEHIND * len(jobs), now, catches_up=True)
            if sweep is not None:
                return sweep
        return None

    def _worthwhile_sweep(self, status: str, now: float) -> Sweep | None:
        """Begin a sweep of the jobs of a status, if it costs less than to describe them."""
        if not self._may_sweep(status, now):
            # Asked for each that is due where lists are refused: without looking at all jobs.
            return None
        wanted = {
            name: job for name, job in self._jobs.items() if job.group == status and job.takes_summaries
        }
        worth = sum(
            job.due is not None and job.due <= now + _WORTH_A_PLACE * job.interval
            for job in wanted.values()
            if job.queued or not job.busy
        )
        return self._sweep_if_worthwhile(status, wanted, worth, now, catches_up=False)

    def _may_sweep(self, status: str, now: float) -> bool:
        return status in _SWEPT and now >= self._no_sweep_before.get(status, -math.inf)

    def _sweep_if_worthwhile(
        self, status: str, wanted: Mapping[str, _Job], worth: float, now: float, *, catches_up: bool
    ) -> Sweep | None:
        created = [job.created_at for job in wanted.values()]
        oldest = None if None in created else min((one for one in created if one is not None), default=None)
        others = {
            name: job
            for name, job in self._jobs.items()
            if job.group == status
            and name not in wanted
            and (oldest is None or (job.created_at is not None and job.created_at >= oldest))
        }
        kind = status, catches_up, catches_up and oldest is None
        pages, as_of = self._pages.get(kind, (0, -math.inf))
        if now - as_of >= _PAGES_KNOWN_SECONDS:
            pages = math.ceil((len(wanted) + len(others)) / PAGE)
        if pages >= worth:
            return None
        self._sweeping = _Sweeping(
            status=status,
            began=now,
            wanted=set(wanted),
            hoped={name for name, job in others.items() if job.as_of is not None and job.may_be_listed(now)},
            # More than that, and describing them is cheaper.
            most_pages=math.ceil(worth),
            kind=kind,
        )
        # Whether the filter includes its limit is not documented; times may be rounded.
        return Sweep(status=status, created_after=None if oldest is None else oldest - timedelta(seconds=1))

    def _next_chase(self, now: float) -> Sweep | None:
        """Return the next list in which those that are missing are looked for; suspects are left over."""
        while self._chase:
            status = self._chase.popleft()
            missing = {name: job for name, job in self._missing.items() if self._jobs.get(name) is job}
            self._missing = missing
            if len(missing) < _CHASE_FROM or now < self._no_sweep_before.get(status, -math.inf):
                continue
            self._sweeping = _Sweeping(
                status=status,
                began=now,
                wanted=set(missing),
                most_pages=max(1, len(missing) // _MISSING_PER_PAGE),
                kind=None,
            )
            # Where that is not known of one, it may be described.
            known = (job.ends_after for job in missing.values() if job.ends_after is not None)
            after = min(known, default=None)
            return Sweep(
                status=status,
                modified_after=None if after is None or status == _STOPPING else after - timedelta(seconds=1),
            )
        self._suspect_missing()
        return None

    def _suspect_missing(self) -> None:
        self._chase.clear()
        missing, self._missing = self._missing, {}
        for name, job in missing.items():
            if self._jobs.get(name) is job:
                job.busy = False
                job.suspect = True
                self._enqueue(self._suspects, job)

    def _next_extra(self, now: float) -> _Job | None:
        if (job := self._pop(self._extras)) is not None:
            return job
        while self._early and self._early[0][0] <= now:
            _, _, job, as_of = heapq.heappop(self._early)
            # What was read since has said anew when to look.
            if self._jobs.get(job.name) is not job or job.busy or job.as_of != as_of or job.due is None:
                continue
            if self._take_extra(now):
                job.busy = True
                return job
        return None

    def _take_extra(self, now: float) -> bool:
        if self._extra.wait(now) > 0:
            return False
        self._extra.spend(now)
        return True

    # --- what came of it -----------------------------------------------------------------------

    def described(
        self, name: str, progress: TuningProgress, description: Mapping[str, Any], asked_at: float, now: float
    ) -> list[Watcher]:
        """Take note of the answer of a Describe; return who has something to look at."""
        job = self._jobs.get(name)
        self._succeeded(now, Need.DESCRIPTION)
        if job is None:
            return []
        if job.suspect:
            job.suspect = False
            if progress.status == job.group:
                job.unlisted_until = now + _SWEEPS_REFUSED_SECONDS
        woken = self._observe(job, progress, description, asked_at, now)
        self._free(job)
        if not woken and job.needs_description(now):
            # A list overtook it, and tells something else: its turn is not over.
            self._enqueue(self._queue, job, first=True)
        return woken

    def failed(self, name: str, error: Exception, now: float, *, is_transient: bool) -> list[Watcher]:
        """Take note that a Describe failed; return who has to hear of it.

        Of errors in a row that any call can have, whoever waits for a read that is due hears: a call for
        each of them would tell them the same.
        """
        self._failures = self._failures + 1 if is_transient else 0
        told = self._tell_of_job(name, error, now, is_transient=is_transient)
        if self._failures >= _OUTAGE:
            self._descriptions_out = True
            told += self._tell_due(error, now)
        return told

    def dropped(self, name: str) -> None:
        """Take note that a Describe failed that nobody waits for."""
        job = self._jobs.get(name)
        if job is not None:
            self._free(job)

    def unable(self, name: str | None, error: Exception, now: float) -> list[Watcher]:
        """Take note that no call can be made at all; return who has to hear of it: all whose read is due.

        :param name: the job that was to be described; ``None`` for a sweep.
        """
        if name is None:
            self._stop_sweep(now)
            return self._tell_due(error, now, is_transient=False)
        return self._tell_of_job(name, error, now) + self._tell_due(error, now, is_transient=False)

    def throttled(self, name: str | None, error: AmtAwsError, now: float) -> list[Watcher]:
        """Take note that a call was throttled, which is nobody's failure.

        :param name: the job that was to be described; ``None`` for a sweep.
        :return: who has to hear of it, because it lasts.
        """
        job = None if name is None else self._jobs.get(name)
        if job is not None:
            job.busy = False
            if job.suspect:
                self._enqueue(self._suspects, job)
            else:
                self._push(job)
        return self._tell_due(error, now, unread_for=_TELL_THROTTLING_SECONDS)

    def page(
        self, summaries: Sequence[TuningProgress], asked_at: float, now: float
    ) -> tuple[list[Watcher], bool]:
        """Take note of a page of the sweep; return who has something to look at, and whether to go on."""
        self._succeeded(now, Need.SUMMARY)
        sweep = self._sweep
        sweep.pages += 1
        woken: list[Watcher] = []
        changes = (one.last_modified_at for one in summaries)
        sweep.newest = max(filter(None, (sweep.newest, self._newest, *changes)), default=None)
        for progress in summaries:
            sweep.found.add(progress.name)
            job = self._jobs.get(progress.name)
            if job is None:
                continue
            woken += self._observe(job, progress, None, asked_at, now)
        if sweep.catches_up and sweep.postponed:
            # Those that are due come first.
            sweep.is_cut = True
        is_enough = sweep.is_cut or sweep.pages >= sweep.most_pages or sweep.wanted <= sweep.found
        return woken, not is_enough

    def swept(self, now: float, *, is_whole: bool) -> None:
        """Take note that a sweep is over.

        :param is_whole: whether there was no further page.
        """
        sweep = self._sweep
        self._sweeping = None
        found_all = sweep.wanted <= sweep.found
        if found_all or is_whole:
            self._sweeps_failed.pop(sweep.status, None)
        if sweep.kind is None:
            self._free_found(sweep)
            self._resume(sweep)
            return
        self._newest = sweep.newest or self._newest
        if found_all or is_whole:
            self._pages[sweep.kind] = max(1, sweep.pages), now
        elif not sweep.catches_up:
            # It came to more pages than it spares: others have many jobs here.
            self._no_sweep_before[sweep.status] = now + _SWEEPS_REFUSED_SECONDS
        elif not sweep.is_cut:
            # It has more than that: it is tried again when twice as many are worthwhile.
            self._pages[sweep.kind] = 2 * sweep.pages, now
        if sweep.catches_up:
            # Three times as long nothing but descriptions, and lists that are due.
            self._behind_again_at = now + max(_BEHIND_AGAIN_SECONDS, 3 * (now - sweep.began))
        if is_whole and not sweep.wanted | sweep.hoped <= sweep.found:
            self._chase_missing(sweep)
        self._resume(sweep)

    def refused(self, now: float) -> None:
        """Take note that the sweep is not permitted: its jobs are described for long."""
        self._stop_sweep(now + _SWEEPS_REFUSED_SECONDS)

    def failed_sweep(self, now: float) -> None:
        """Take note that the sweep came to nothing: its jobs are described until it is tried again, soon."""
        status = self._sweep.status
        failed = self._sweeps_failed[status] = self._sweeps_failed.get(status, 0) + 1
        self._stop_sweep(
            now + min(_SWEEPS_FAILED_SECONDS * 2.0 ** min(failed - 1, 16), _SWEEPS_FAILED_AT_MOST_SECONDS)
        )

    def interrupted(self, error: AmtAwsError, now: float) -> list[Watcher]:
        """Take note that the sweep failed for a reason that may pass; return who has to hear of it."""
        self._failures += 1
        self.failed_sweep(now)
        return self._tell_due(error, now) if self._failures >= _OUTAGE else []

    def slow_sweep(self) -> None:
        """Take note that a call of the sweep takes long: meanwhile what is due is described.

        What the call tells at last still counts; until then no other sweep begins.
        """
        sweep = self._sweep
        sweep.is_slow = True
        if sweep.kind is None:
            self._chase.clear()
            self._free_found(sweep)
        self._resume(sweep)

    @property
    def _sweep(self) -> _Sweeping:
        if self._sweeping is None:
            raise ValueError("no sweep is under way")
        return self._sweeping

    def _stop_sweep(self, not_before: float) -> None:
        sweep = self._sweep
        self._sweeping = None
        self._no_sweep_before[sweep.status] = not_before
        if sweep.kind is None:
            self._free_found(sweep)
        self._resume(sweep)

    def _free_found(self, sweep: _Sweeping) -> None:
        for name in sweep.found & self._missing.keys():
            job = self._missing.pop(name)
            if not job.suspect:
                self._free(job)
        if not self._chase:
            self._suspect_missing()

    def _chase_missing(self, sweep: _Sweeping) -> None:
        """Look for those that should have been listed, and were not."""
        for name in (sweep.wanted | sweep.hoped) - sweep.found:
            job = self._jobs.get(name)
            # One that somebody began to watch meanwhile may be newer than the list.
            if (
                job is None
                or (job.busy and not job.postponed and not job.may_be_listed(sweep.began))
                or (job.as_of is not None and job.as_of >= sweep.began)
                or not any(
                    # One that failed just now is tried again when that is due, and then it is.
                    one.is_hungry
                    and one.since <= sweep.began
                    and (not one.backed_off or min(one.due, one.wake_by) <= sweep.began)
                    for one in job.watchers
                )
            ):
                continue
            # It may be so from an earlier time: only what this search tells counts.
            job.busy, job.postponed, job.queued, job.suspect = True, False, False, False
            job.place += 1
            self._missing[name] = job
        self._chase = deque(status for status in _CHASED if status != sweep.status)
        if len(self._missing) < _CHASE_FROM:
            self._suspect_missing()

    def _resume(self, sweep: _Sweeping) -> None:
        postponed, sweep.postponed = sweep.postponed, []
        for job in postponed:
            # Unless it has been queued meanwhile.
            if job.postponed:
                self._free(job)

    # --- observations --------------------------------------------------------------------------

    def _observe(
        self,
        job: _Job,
        progress: TuningProgress,
        description: Mapping[str, Any] | None,
        asked_at: float,
        now: float,
    ) -> list[Watcher]:
        if job.as_of is not None and job.as_of > asked_at:
            if (
                description is None
                or job.progress is None
                or change_key(progress) != change_key(job.progress)
            ):
                return []
            # A list that was asked for later shows it no different.
            asked_at = job.as_of
        if description is None and job.progress is not None:
            if _is_older(progress.status, job.progress.status):
                return []
            if (
                progress.status == job.progress.status
                and progress.training_jobs.launched < job.progress.training_jobs.launched
            ):
                # A list that lags: that the job goes on is all that it tells.
                progress = replace(job.progress, is_summary=True)
        job.progress = progress
        job.as_of = asked_at
        if description is None:
            job.ends_after = self._sweep.newest
            job.unlisted_until = -math.inf
        else:
            job.ends_after = self._newest
        job.created_at = progress.created_at or job.created_at
        woken: list[Watcher] = []
        spread = self._spread()
        next_at = asked_at + job.interval * spread
        for watcher in job.watchers:
            if self._is_news(watcher, progress, description, asked_at, now):
                watcher.unseen = Observation(asked_at=asked_at, progress=progress, description=description)
                if watcher.waiting:
                    woken.append(watcher)
            elif watcher.need is Need.SUMMARY:
                watcher.due = asked_at + watcher.interval * spread
        if not progress.is_terminal:
            early = early_wait(progress, self._wall)
            if early is not None and asked_at + early < next_at - _SHORTEST_EARLY_SECONDS:
                self._count += 1
                heapq.heappush(self._early, (asked_at + early, self._count, job, asked_at))
        if not job.busy:
            self._push(job)
        return woken

    def _is_news(
        self,
        watcher: Watcher,
        progress: TuningProgress,
        description: Mapping[str, Any] | None,
        asked_at: float,
        now: float,
    ) -> bool:
        job = watcher.job
        will_do = description is not None or (watcher.ends_by_summary and progress.is_terminal)
        if watcher.need is Need.DESCRIPTION and not will_do:
            if progress.is_terminal and not job.suspect:
                # What it waits for has come; only a description tells what.
                job.suspect = True
                self._enqueue(self._suspects, job)
            return False
        if (
            watcher.need is Need.DESCRIPTION
            or progress.is_terminal
            or watcher.seen is None
            # It counts failures in a row.
            or watcher.backed_off
            or asked_at >= min(watcher.wake_by, watcher.stale_from)
            or (description is not None and asked_at >= watcher.due)
        ):
            return True
        if change_key(progress) == watcher.seen or asked_at < watcher.wake_from:
            return False
        if description is not None:
            return True
        if watcher.curious and (job.postponed or not job.busy) and self._take_extra(now):
            self._enqueue(self._extras, job)
            # If nothing comes of it, the next summary will do.
            watcher.curious = False
            return False
        return True

    def _tell_of_job(
        self, name: str, error: Exception, now: float, *, is_transient: bool = False
    ) -> list[Watcher]:
        """Tell those who watch a job that its Describe failed."""
        job = self._jobs.get(name)
        if job is None:
            return []
        told = self._tell(job, error, now, is_transient=is_transient)
        self._free(job)
        return told

    def _tell(self, job: _Job, error: Exception, now: float, *, is_transient: bool = False) -> list[Watcher]:
        told: list[Watcher] = []
        for watcher in job.watchers:
            watcher.told_at = now
            if is_transient and watcher.backed_off and now < min(watcher.due, watcher.wake_by):
                # It was told of this outage while the call was under way, and counts its failures.
                continue
            if watcher.is_hungry:
                watcher.unseen = Observation(asked_at=now, error=error)
                told.append(watcher)
        return told

    def _tell_due(
        self, error: Exception, now: float, *, unread_for: float = 0.0, is_transient: bool = True
    ) -> list[Watcher]:
        told: list[Watcher] = []
        for job in self._jobs.values():
            due = job.due
            if due is None or due > now:
                continue
            since = max(-math.inf if job.as_of is None else job.as_of, *(one.told_at for one in job.watchers))
            if now - since >= unread_for:
                told += self._tell(job, error, now, is_transient=is_transient)
        return told

    def _succeeded(self, now: float, what: Need) -> None:
        was_out = self._failures >= _OUTAGE
        self._failures = 0
        if what is Need.DESCRIPTION:
            was_out = was_out or self._descriptions_out
            self._descriptions_out = False
        if not was_out:
            return
        # It is over: those who wait long because of it need not any more.
        for job in self._jobs.values():
            for watcher in job.watchers:
                if watcher.waiting and watcher.backed_off and what in (watcher.need, Need.DESCRIPTION):
                    watcher.due = min(watcher.due, now + watcher.interval * self._spread())
            if not job.busy:
                self._push(job)

    # --- queues --------------------------------------------------------------------------------

    def _push(self, job: _Job) -> None:
        due = job.due
        if due is not None and not job.busy:
            self._push_at(job, due if job.as_of is not None else max(due, self._gathering_until()))

    def _push_at(self, job: _Job, at: float) -> None:
        if job.pushed == at:
            return
        job.pushed = at
        self._count += 1
        heapq.heappush(self._heap, (at, self._count, job))
        if len(self._heap) > _STALE_FROM + 2 * len(self._jobs):
            # Times that no longer hold: each sweep for those of short intervals puts the others off.
            self._heap = [one for one in self._heap if one[2].pushed == one[0]]
            heapq.heapify(self._heap)

    def _enqueue(self, queue: _Queue, job: _Job, *, first: bool = False) -> None:
        job.busy, job.postponed = True, False
        job.queued = queue is self._queue
        job.place += 1
        if first:
            queue.appendleft((job, job.place))
        else:
            queue.append((job, job.place))

    def _pop(self, queue: _Queue, *, due_by: float = math.inf) -> _Job | None:
        while queue:
            job, place = queue.popleft()
            if place != job.place:
                continue
            job.queued = False
            if self._jobs.get(job.name) is not job:
                continue
            due = job.due
            if due is None or due > due_by:
                # Whoever it was for has seen something meanwhile.
                self._free(job)
                continue
            return job
        return None

    def _postpone(self, jobs: Iterable[_Job]) -> None:
        sweep = self._sweep
        for job in jobs:
            job.busy = job.postponed = True
            sweep.postponed.append(job)

    def _free(self, job: _Job) -> None:
        job.busy = job.postponed = False
        self._push(job)


def _is_older(status: str, than: str) -> bool:
    """Whether a status must be from before another one: a tuning job never goes back."""
    ranks = {_IN_PROGRESS: 0, _STOPPING: 1}
    return ranks.get(status, 2) < ranks.get(than, 2)


def early_wait(progress: TuningProgress, wall: datetime) -> float | None:
    """Return in how many seconds a job may well have news, if it is young or near a limit of its own.

    :param progress: the job.
    :param wall: the time of day, aware. A clock that is wrong costs a few calls, or none is made.
    """
    if progress.created_at is None:
        return None
    age = (wall - progress.created_at).total_seconds()
    if age < 0:
        return None
    waits: list[float] = []
    if age < _YOUNG_SECONDS:
        waits.append(age / 2)
    ended, criteria = progress.training_jobs.ended, progress.criteria
    if criteria.max_training_jobs is not None and ended:
        waits.append(age / ended * max(0, criteria.max_training_jobs - ended))
    if criteria.max_runtime_seconds is not None:
        waits.append(criteria.max_runtime_seconds - age)
    return None if not waits else max(_SHORTEST_EARLY_SECONDS, min(waits))
