"""The schedule of reads, in a simulated account and time: every end is seen, in time, and with few calls."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_amt.hooks.errors import aws_error, is_transient
from airflow_amt.tuning.criteria import CompletionCriteria
from airflow_amt.tuning.progress import ObjectiveCounters, TrainingJobCounters, TuningProgress
from airflow_amt.tuning.schedule import (
    Describe,
    Need,
    Observation,
    Schedule,
    Sweep,
    Wait,
    Watcher,
    change_key,
    early_wait,
)

_Result = TypeVar("_Result")

#: What is under way: gives the seconds until it goes on.
Work = Generator[float, None, _Result]

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
THROTTLED = aws_error("List", "ThrottlingException", "Rate exceeded", 400)
DENIED = aws_error("List", "AccessDeniedException", "not you", 400)
INVALID = aws_error("List", "ValidationException", "not so", 400)
DOWN = aws_error("Describe", "ServiceUnavailable", "try again", 503)
GONE = aws_error("Describe", "ResourceNotFound", "no such job", 400)


@dataclass
class Job:
    """A tuning job in the simulated account; times in seconds since it began."""

    name: str
    created: float
    ends: float = math.inf
    status: str = "Completed"
    period: float = 30.0
    #: For how long before its end it is Stopping.
    stopping: float = 0.0
    deleted: float = math.inf

    def at(self, now: float) -> TuningProgress:
        over = now >= self.ends
        stopping = not over and now >= self.ends - self.stopping
        done = int((min(now, self.ends) - self.created) / self.period)
        changed = self.ends if over else self.ends - self.stopping if stopping else self.created
        return TuningProgress(
            name=self.name,
            status=self.status if over else "Stopping" if stopping else "InProgress",
            training_jobs=TrainingJobCounters(completed=done, in_progress=0 if over else 1),
            objectives=ObjectiveCounters(succeeded=done),
            criteria=CompletionCriteria(max_training_jobs=10_000),
            created_at=BEGAN + timedelta(seconds=self.created),
            last_modified_at=BEGAN + timedelta(seconds=changed),
            ended_at=BEGAN + timedelta(seconds=self.ends) if over else None,
        )


@dataclass
class Account:
    """AWS, as far as the schedule sees it."""

    jobs: dict[str, Job] = field(default_factory=dict)
    #: A list tells what was so many seconds ago.
    lag: float = 0.0
    #: Names that a list leaves out.
    hidden: Callable[[str], bool] = lambda name: False
    skew: timedelta = timedelta(0)

    def listed(self, sweep: Sweep, now: float) -> list[TuningProgress]:
        then = now - self.lag
        found = [
            job.at(then)
            for job in self.jobs.values()
            if job.created <= then < job.deleted and not self.hidden(job.name)
        ]
        kept = [
            one
            for one in found
            if one.status == sweep.status
            and (sweep.created_after is None or (one.created_at or BEGAN) > sweep.created_after)
            and (sweep.modified_after is None or (one.last_modified_at or BEGAN) > sweep.modified_after)
        ]
        kept.sort(key=lambda one: one.created_at or BEGAN, reverse=True)
        return [replace(one, is_summary=True) for one in kept]


class World:
    """Runs a schedule on an account: up to four calls at once, each of which takes a while.

    What a call answers is as of its beginning.
    """

    def __init__(
        self,
        account: Account,
        *,
        seconds_per_call: float = 0.1,
        page: int = 100,
        rate: float = math.inf,
        slots: int = 4,
        rng: random.Random | None = None,
    ) -> None:
        self.account = account
        self.schedule = Schedule()
        self.now = 0.0
        self.seconds_per_call = seconds_per_call
        self.page = page
        self.seconds_between_calls = 1 / rate
        self.slots = slots
        #: With it each call takes another time.
        self.rng = rng
        #: Calls under way: when they are over, and what then goes on.
        self.under_way: list[tuple[float, int, Work[None]]] = []
        self.next_call_at = 0.0
        self.calls: Counter[str] = Counter()
        self.watchers: dict[Watcher, dict[str, Any]] = {}
        self.seen: dict[Watcher, list[Observation]] = {}
        #: When each watcher saw the end of its job.
        self.ended: dict[str, float] = {}
        self.stalest = 0.0
        #: What the next calls fail with: by operation.
        self.fails: dict[str, list[Exception]] = {"describe": [], "list": []}
        self.always_fails: dict[str, Exception] = {}
        self.repeats_token = False
        #: For how long watchers wait after an error.
        self.backoff = 60.0
        #: For how long the next list hangs, or the next one of this status.
        self.hangs = 0.0
        self.hangs_in: str | None = None
        self._count = 0

    def watch(self, name: str, interval: float = 30.0, **how: Any) -> Watcher:
        watcher = self.schedule.watch(name, interval, self.now)
        self.watchers[watcher] = how
        self.seen[watcher] = []
        self.schedule.wait(watcher, due=self.now, **how)
        return watcher

    def run(self, until: float) -> World:
        while self.now < until:
            then = until
            if len(self.under_way) < self.slots:
                if self.now < self.next_call_at:
                    then = min(then, self.next_call_at)
                else:
                    action = self.schedule.next(self.now, self.wall)
                    if not isinstance(action, Wait):
                        self._go_on(
                            self._describe(action) if isinstance(action, Describe) else self._sweep(action)
                        )
                        continue
                    then = min(then, math.inf if action.until is None else action.until)
            over = self.under_way[0][0] if self.under_way else math.inf
            self.now = max(self.now, min(then, over))
            if over <= self.now:
                self._go_on(heapq.heappop(self.under_way)[2])
            self.stalest = max(self.stalest, self.schedule.staleness(self.now))
        return self

    @property
    def wall(self) -> datetime:
        return BEGAN + timedelta(seconds=self.now) + self.account.skew

    def _go_on(self, work: Work[None]) -> None:
        with suppress(StopIteration):
            self._count += 1
            heapq.heappush(self.under_way, (self.now + next(work), self._count, work))

    def _call(self, operation: str, answer: Callable[[], Any], hangs: float = 0.0) -> Work[Any]:
        while self.now < self.next_call_at:
            yield self.next_call_at - self.now
        self.next_call_at = self.now + self.seconds_between_calls
        self.calls[operation] += 1
        asked_at, answered = self.now, answer()
        if hangs:
            yield 5.0
            self.schedule.slow_sweep()
            yield hangs - 5.0
        yield self.seconds_per_call * (1.0 if self.rng is None else self.rng.uniform(0.2, 5.0))
        if operation in self.always_fails:
            return self.always_fails[operation], asked_at, answered
        return self.fails[operation].pop(0) if self.fails[operation] else None, asked_at, answered

    def _describe(self, action: Describe) -> Work[None]:
        schedule = self.schedule

        def answer() -> TuningProgress | None:
            job = self.account.jobs.get(action.name)
            return None if job is None or not job.created <= self.now < job.deleted else job.at(self.now)

        error, asked_at, progress = yield from self._call("describe", answer)
        if error is None and progress is None:
            error = GONE
        if error is THROTTLED:
            self._wake(schedule.throttled(action.name, THROTTLED, self.now))
        elif error is not None:
            transient = is_transient(error)
            if action.is_extra and transient:
                schedule.dropped(action.name)
            else:
                self._wake(schedule.failed(action.name, error, self.now, is_transient=transient))
        else:
            self._wake(schedule.described(action.name, progress, {"is": progress}, asked_at, self.now))

    def _sweep(self, sweep: Sweep) -> Work[None]:
        begin = throttled = 0
        while True:
            hangs = 0.0
            if self.hangs_in in (None, sweep.status):
                hangs, self.hangs = self.hangs, 0.0
            error, asked_at, listed = yield from self._call(
                "list", lambda: self.account.listed(sweep, self.now), hangs
            )
            if error is THROTTLED:
                throttled += 1
                self._wake(self.schedule.throttled(None, THROTTLED, self.now))
                if throttled == 5:
                    self.schedule.failed_sweep(self.now)
                    return
                continue
            if error is not None:
                if is_transient(error):
                    self._wake(self.schedule.interrupted(error, self.now))
                elif error is DENIED:
                    self.schedule.refused(self.now)
                else:
                    self.schedule.failed_sweep(self.now)
                return
            woken, go_on = self.schedule.page(listed[begin : begin + self.page], asked_at, self.now)
            self._wake(woken)
            begin += self.page
            if self.repeats_token and begin < len(listed):
                self.schedule.failed_sweep(self.now)
                return
            if not go_on or begin >= len(listed):
                self.schedule.swept(self.now, is_whole=begin >= len(listed))
                return

    def _wake(self, woken: list[Watcher]) -> None:
        for watcher in woken:
            observation = watcher.take()
            assert observation is not None
            how = self.watchers[watcher]
            self.seen[watcher].append(observation)
            if observation.error is not None:
                if observation.error is DOWN:
                    due = self.now + self.backoff
                    assert not self.schedule.wait(watcher, due=due, backed_off=True, **how)
                elif observation.error is not THROTTLED:
                    self.schedule.unwatch(watcher)
                else:
                    assert not self.schedule.wait(watcher, due=self.now + 30, **how)
                continue
            progress = observation.progress
            assert progress is not None
            if progress.is_terminal:
                self.ended[watcher.job.name] = self.now
                self.schedule.unwatch(watcher)
            else:
                due = observation.asked_at + watcher.interval
                assert not self.schedule.wait(watcher, due=due, **how)


def account_of(count: int, *, ends: Callable[[int], float] = lambda _: math.inf, **job: Any) -> Account:
    jobs = [Job(f"j{number}", created=-600.0 - number, ends=ends(number), **job) for number in range(count)]
    return Account({one.name: one for one in jobs})


def latencies(world: World) -> list[float]:
    jobs = world.account.jobs
    return [at - jobs[name].ends for name, at in world.ended.items()]


def test_one_job_is_described_at_its_interval() -> None:
    world = World(account_of(1, ends=lambda _: 285.0))
    world.watch("j0")
    world.run(400)
    assert world.calls == {"describe": 11}
    assert latencies(world)[0] <= 30.2


def test_a_thousand_jobs_cost_ten_pages_an_interval() -> None:
    world = World(account_of(1000))
    for name in world.account.jobs:
        world.watch(name)
    world.run(5)
    assert all(world.seen.values())
    assert world.calls == {"list": 10}
    world.run(300)
    assert world.calls["list"] == 10 * 10
    assert world.calls["describe"] <= 4 * 5  # those that nobody waits for
    assert world.stalest <= 31.5


def test_their_ends_are_found_in_the_list_of_those_that_completed() -> None:
    spread = random.Random(1)
    world = World(account_of(1000, ends=lambda _: spread.uniform(100, 130)))
    for name in world.account.jobs:
        world.watch(name)
    world.run(220)
    assert len(world.ended) == 1000
    assert max(latencies(world)) <= 33
    assert world.calls["describe"] <= 30


def test_what_is_due_while_the_missing_are_looked_for_is_not_forgotten() -> None:
    schedule = Schedule()
    account = account_of(12, ends=lambda number: 20.0 if number < 6 else math.inf)
    for name in account.jobs:
        schedule.wait(schedule.watch(name, 30.0, 0.0), due=2.0 if name < "j9" else 0.0)

    def sweep(at: float) -> Sweep:
        action = schedule.next(at, BEGAN)
        assert isinstance(action, Sweep)
        return action

    def listed(action: Sweep, at: float) -> None:
        for watcher in schedule.page(account.listed(action, at), at, at)[0]:
            if watcher.take().progress.is_terminal:  # type: ignore[union-attr]
                schedule.unwatch(watcher)
            else:
                schedule.wait(watcher, due=at + (1.4 if watcher.job.name == "j8" else 30.0))
        schedule.swept(at, is_whole=True)

    listed(sweep(2.0), 2.0)
    listed(sweep(32.0), 32.0)
    looking = sweep(33.0)
    assert looking.status == "Completed"
    assert isinstance(schedule.next(33.5, BEGAN), Wait)
    listed(looking, 34.0)
    assert not isinstance(schedule.next(34.0, BEGAN), Wait)


@pytest.mark.parametrize("status", ["Stopped", "Failed", "Completed"])
def test_however_they_end_together_few_calls_tell(status: str) -> None:
    world = World(account_of(300, ends=lambda _: 95.0, status=status, stopping=60.0))
    for name in world.account.jobs:
        world.watch(name)
    world.run(200)
    assert len(world.ended) == 300
    assert sum(world.calls.values()) <= 120


def test_jobs_whose_reads_are_apart_come_together() -> None:
    world = World(account_of(50))
    for number, name in enumerate(world.account.jobs):
        world.run(number * 0.6)
        world.watch(name)
    world.run(60)
    before = sum(world.calls.values())
    world.run(360)
    assert sum(world.calls.values()) - before <= 11 + 4 * 5


def test_an_account_full_of_other_peoples_jobs_is_not_listed() -> None:
    account = account_of(5)
    for number in range(2000):
        account.jobs[f"other{number}"] = Job(f"other{number}", created=-100.0)
    world = World(account)
    for number in range(5):
        world.watch(f"j{number}")
    world.run(600)
    assert world.calls["list"] <= 5
    assert world.calls["describe"] <= 5 * 21 + 40
    assert world.stalest <= 32


def test_the_time_of_creation_keeps_other_peoples_older_jobs_out() -> None:
    account = account_of(5)
    for number in range(2000):
        account.jobs[f"other{number}"] = Job(f"other{number}", created=-5000.0)
    world = World(account)
    for number in range(5):
        world.watch(f"j{number}")
    world.run(300)
    assert world.calls["list"] <= 12
    assert world.calls["describe"] <= 5 + 25


def test_short_and_long_intervals_do_not_pay_for_each_other() -> None:
    world = World(account_of(401))
    world.watch("j0", interval=5)
    for number in range(1, 401):
        world.watch(f"j{number}", interval=300)
    world.run(600)
    assert sum(world.calls.values()) <= 120 + 5 * 5 + 45


def test_a_shorter_interval_of_another_watcher_of_the_job_counts() -> None:
    world = World(account_of(1, ends=lambda _: 102.0))
    world.watch("j0", interval=100)
    world.watch("j0", interval=5)
    world.run(130)
    assert world.ended["j0"] <= 107.2
    assert all(one[-1].progress.is_terminal for one in world.seen.values() if one[-1].progress)


# --- what only a description tells ---------------------------------------------------------------


NEEDY: dict[str, Any] = {"need": Need.DESCRIPTION, "ends_by_summary": True}


@pytest.mark.parametrize("needy", [4, 2, 1], ids=["a quarter", "half", "all"])
@pytest.mark.parametrize("status", ["Completed", "Stopped", "Failed"])
def test_ends_that_are_only_handed_on_do_not_wait_for_their_turn_to_be_described(
    status: str, needy: int
) -> None:
    # An interval is worth 60 calls, and each job that needs a description needs one in each.
    world = World(account_of(1000, ends=lambda _: 130.0, status=status, stopping=15.0), rate=2.0)
    for number, name in enumerate(world.account.jobs):
        world.watch(name, **(NEEDY if number % needy == 0 else {}))
    world.run(129)
    described = world.calls["describe"]
    assert described >= 100
    world.run(260)
    assert len(world.ended) == 1000
    assert max(latencies(world)) <= 90
    assert world.calls["describe"] - described <= 150


def test_others_jobs_do_not_cost_those_their_turn_that_wait_for_it() -> None:
    account = account_of(100)
    for number in range(2000):
        account.jobs[f"other{number}"] = Job(f"other{number}", created=-100.0)
    world = World(account, rate=2.0)
    for number in range(100):
        world.watch(f"j{number}", **NEEDY)
    world.run(1500)
    assert world.calls["describe"] >= 2800
    assert world.calls["list"] <= 100


@pytest.mark.parametrize("gone", ["not listed", "deleted"])
def test_those_that_no_list_has_do_not_cost_the_others_their_turn(gone: str) -> None:
    account = account_of(120)
    lost = {f"j{number}" for number in range(20)}
    if gone == "deleted":
        for name in lost:
            account.jobs[name].deleted = 150.0
    else:
        account.hidden = lost.__contains__
    world = World(account, rate=2.0)
    watchers = {name: world.watch(name, **NEEDY) for name in account.jobs}
    world.run(900)
    assert world.calls["describe"] >= 1500
    if gone == "deleted":
        assert all(world.seen[watchers[name]][-1].error is GONE for name in lost)
        assert world.schedule.watchers == 100


def test_ends_one_by_one_do_not_wait_for_their_turn_either() -> None:
    world = World(
        account_of(200, ends=lambda number: 100.0 + 40.0 * number if number < 20 else math.inf), rate=1.0
    )
    for name in world.account.jobs:
        world.watch(name, **NEEDY)
    world.run(1000)
    assert len(world.ended) == 20
    assert max(latencies(world)) <= 70


def test_a_list_for_those_that_wait_that_is_too_long_leaves_the_other_lists_alone() -> None:
    account = account_of(140)
    for number in range(1500):
        account.jobs[f"other{number}"] = Job(f"other{number}", created=-5000.0)
    account.jobs["long over"] = Job("long over", created=-9000.0, ends=-8000.0)
    world = World(account, rate=1.0)
    for number in range(140):
        world.watch(f"j{number}", **({} if number < 80 else NEEDY))
    world.run(200)
    world.watch("long over", **NEEDY)
    world.run(900)
    assert world.ended.keys() == {"long over"}
    read = [one for number, one in enumerate(world.seen.values()) if number < 80]
    assert min(len(one) for one in read) >= 8
    assert world.schedule.staleness(world.now) <= 120


def test_a_list_for_those_that_wait_that_was_too_long_once_is_made_when_more_wait() -> None:
    world = World(account_of(400, ends=lambda _: 400.0), rate=20.0)
    for name in world.account.jobs:
        world.watch(name, **NEEDY)
    world.run(150)
    world.seconds_between_calls = 0.5
    world.run(600)
    assert len(world.ended) == 400
    assert max(latencies(world)) <= 70


def test_ends_are_looked_for_among_all_that_came_after_each_was_seen() -> None:
    # Others' jobs come and go, so that the lists of the young show ever newer changes.
    account = account_of(200, ends=lambda number: 1010.0 if number < 150 else math.inf)
    for number in range(100):
        account.jobs[f"young{number}"] = Job(f"young{number}", created=-60.0)
    for number in range(60):
        account.jobs[f"other{number}"] = Job(f"other{number}", created=-50.0, ends=20.0 * number)
    world = World(account, rate=1.0)
    for number in range(200):
        world.watch(f"j{number}", interval=300.0, **NEEDY)
    for number in range(100):
        world.watch(f"young{number}")
    world.run(1009)
    described = world.calls["describe"]
    world.run(1500)
    assert len(world.ended) == 150
    assert max(latencies(world)) <= 330
    # Those found in the list of the completed are not described.
    assert world.calls["describe"] - described <= 460


@pytest.mark.parametrize("strangers", [1500, 2500])
def test_those_that_wait_for_their_turn_make_no_list_for_others_longer(strangers: int) -> None:
    def gap(**how: Any) -> tuple[float, int]:
        account = account_of(50)
        for number in range(strangers):
            account.jobs[f"other{number}"] = Job(f"other{number}", created=-300.0)
        for number in range(20):
            account.jobs[f"young{number}"] = Job(f"young{number}", created=-60.0, period=1.0)
        world = World(account, rate=1.0)
        young = [world.watch(f"young{number}") for number in range(20)]
        for number in range(50):
            world.watch(f"j{number}", **how)
        world.run(600)
        at = [[0.0, *(seen.asked_at for seen in world.seen[one]), 600.0] for one in young]
        return max(b - a for each in at for a, b in pairwise(each)), world.calls["list"]

    longest, lists = gap(**NEEDY)
    as_before, lists_before = gap(need=Need.DESCRIPTION)
    assert longest <= as_before + 10.0
    assert lists <= lists_before + 60


@pytest.mark.parametrize("first", ["described only", "in no list"])
def test_those_at_the_front_that_no_list_helps_do_not_keep_lists_from_the_others(first: str) -> None:
    account = account_of(300, ends=lambda number: 700.0 if number >= 250 else math.inf)
    how: dict[str, Any] = {"need": Need.DESCRIPTION}
    if first == "in no list":
        account.hidden = {f"j{number}" for number in range(250)}.__contains__
        how = NEEDY
    world = World(account, rate=2.0)
    for number in range(300):
        world.watch(f"j{number}", **(how if number < 250 else NEEDY))
        if number == 249:
            world.run(2.0)
    world.run(1000)
    assert len(world.ended) == 50
    assert max(latencies(world)) <= 80


def test_one_that_was_never_read_does_not_make_the_list_as_long_as_the_account() -> None:
    account = account_of(60, ends=lambda number: 300.0 + 20.0 * number)
    for number in range(1500):
        account.jobs[f"other{number}"] = Job(f"other{number}", created=-5000.0)
    for number in range(15):
        account.jobs[f"new{number}"] = Job(f"new{number}", created=100.0 * number)
    world = World(account, rate=0.5)
    for number in range(60):
        world.watch(f"j{number}", **NEEDY)
    for number in range(15):
        world.run(100.0 * number + 1)
        world.watch(f"new{number}", **NEEDY)
    world.run(1700)
    assert len(world.ended) == 60
    assert max(latencies(world)) <= 90


@pytest.mark.parametrize("known", [4, 200])
def test_those_that_were_never_read_are_listed_too(known: int) -> None:
    # A triggerer takes over the triggers of another one, half of whose jobs are over.
    account = account_of(known + 300, ends=lambda number: 90.0 if number >= known + 150 else math.inf)
    world = World(account, rate=1.0)
    for number in range(known):
        world.watch(f"j{number}", **NEEDY)
    world.run(100)
    for number in range(known, known + 300):
        world.watch(f"j{number}", **NEEDY)
    world.run(300)
    assert len(world.ended) == 150
    assert max(world.ended.values()) <= 170


def test_lists_for_those_that_wait_leave_most_of_the_rate_to_descriptions() -> None:
    account = account_of(120)
    for number in range(2000):
        account.jobs[f"other{number}"] = Job(f"other{number}", created=-100.0)
    world = World(account, rate=1.0)
    for number in range(120):
        world.watch(f"j{number}", **NEEDY)
    world.run(500)
    assert world.calls["list"] <= 0.35 * sum(world.calls.values())


def test_those_that_stop_slowly_are_looked_for_where_they_are_listed_now() -> None:
    account = account_of(240)
    for number in range(40):
        account.jobs[f"j{number}"].ends = 200.0 + 5.0 * number
        account.jobs[f"j{number}"].stopping = 100.0
    world = World(account, rate=1.0)
    for name in account.jobs:
        world.watch(name, **NEEDY)
    world.run(700)
    assert len(world.ended) == 40
    # For the last four a list would not pay.
    assert sorted(latencies(world))[-5] <= 60


def test_those_that_are_in_no_list_are_not_preferred() -> None:
    account = account_of(120)
    account.hidden = {f"j{number}" for number in range(100)}.__contains__
    world = World(account, rate=2.0)
    watchers = {name: world.watch(name, **NEEDY) for name in account.jobs}
    world.run(600)
    seen = {name: len(world.seen[one]) for name, one in watchers.items()}
    assert min(seen.values()) >= max(seen.values()) - 4


def test_a_description_that_a_list_overtook_is_asked_for_again_if_that_shows_a_change() -> None:
    account = account_of(9, period=10.0)
    schedule = Schedule()
    watcher = schedule.watch("j0", 30.0, 0.0)
    schedule.wait(watcher, due=0.0, **NEEDY)
    assert schedule.next(2.0, BEGAN) == Describe("j0")
    for number in range(1, 9):
        schedule.wait(schedule.watch(f"j{number}", 30.0, 2.0), due=2.0)
    sweep = schedule.next(13.0, BEGAN)
    assert isinstance(sweep, Sweep)
    schedule.page(account.listed(sweep, 13.0), 13.0, 13.1)
    then = account.jobs["j0"].at(2.0)
    assert schedule.described("j0", then, {"is": then}, 2.0, 13.5) == []
    assert schedule.next(13.5, BEGAN) == Describe("j0")


def test_a_description_that_a_list_overtook_counts_if_that_shows_the_job_no_different() -> None:
    account = account_of(2)
    schedule = Schedule()
    watcher = schedule.watch("j0", 30.0, 0.0)
    schedule.wait(watcher, due=0.0, **NEEDY)
    other = schedule.watch("j1", 30.0, 0.0)
    schedule.wait(other, due=math.inf)
    assert schedule.next(2.0, BEGAN) == Describe("j0")
    for number in range(2, 9):
        schedule.wait(schedule.watch(f"j{number}", 30.0, 2.0), due=2.0)
    sweep = schedule.next(3.0, BEGAN)
    assert isinstance(sweep, Sweep)
    schedule.page(account.listed(sweep, 3.0), 3.0, 3.1)
    then = account.jobs["j0"].at(2.0)
    assert schedule.described("j0", then, {"is": then}, 2.0, 3.5) == [watcher]
    assert watcher.take() == Observation(asked_at=3.0, progress=then, description={"is": then})


def test_who_needs_a_description_gets_nothing_else() -> None:
    world = World(account_of(200, ends=lambda number: 100.0 + number / 10))
    for number in range(200):
        world.watch(f"j{number}", need=Need.DESCRIPTION if number % 2 else Need.SUMMARY)
    world.run(200)
    for watcher, seen in world.seen.items():
        if world.watchers[watcher]["need"] is Need.DESCRIPTION:
            assert all(one.description is not None for one in seen)
    assert len(world.ended) == 200


def test_a_change_that_nobody_waits_for_wakes_nobody_before_its_time() -> None:
    world = World(account_of(100, period=1.0))
    watchers = [world.watch(name, wake_from=200.0) for name in world.account.jobs]
    world.run(190)
    assert all(len(world.seen[one]) == 1 for one in watchers)
    world.run(260)
    assert all(len(world.seen[one]) >= 2 for one in watchers)


def test_what_does_not_change_wakes_nobody() -> None:
    world = World(account_of(100, period=1e9))
    for name in world.account.jobs:
        world.watch(name)
    world.run(300)
    assert sum(len(seen) for seen in world.seen.values()) <= 100 + 4 * 5


def test_from_its_deadline_on_any_observation_is_one() -> None:
    world = World(account_of(50, period=1e9))
    watcher = world.watch("j0", wake_by=47.0)
    for number in range(1, 50):
        world.watch(f"j{number}")
    world.run(48)
    assert any(47.0 <= one.asked_at <= 47.2 for one in world.seen[watcher])


def test_what_was_seen_long_ago_is_seen_again_and_no_read_is_made_for_it() -> None:
    world = World(account_of(50, period=1e9))
    watcher = world.watch("j0", stale_from=100.0)
    for number in range(1, 50):
        world.watch(f"j{number}")
    world.run(130)
    assert [round(one.asked_at / 30) for one in world.seen[watcher] if one.description is None] == [0, 4]
    assert world.calls["list"] == 5


def test_the_curious_get_a_description_now_and_then() -> None:
    world = World(account_of(300, period=20.0))
    for name in world.account.jobs:
        world.watch(name, curious=True)
    world.run(300)
    described = [one for seen in world.seen.values() for one in seen if one.description is not None]
    assert 10 <= len(described) <= 30
    assert world.calls["describe"] <= 30


def test_the_curious_are_not_forgotten_where_the_rate_is_too_low_for_all() -> None:
    world = World(account_of(320, ends=lambda number: math.inf if number else 400.0, period=10.0), rate=5)
    for number, name in enumerate(world.account.jobs):
        world.watch(name, need=Need.SUMMARY if number < 20 else Need.DESCRIPTION, curious=number < 20)
    world.run(500)
    assert latencies(world)[0] <= 60


def test_one_that_was_suspect_before_is_freed_when_it_is_found() -> None:
    schedule, account = Schedule(), account_of(10, ends=lambda number: 20.0 if number < 5 else math.inf)
    watchers = [schedule.watch(name, 30.0, 0.0) for name in account.jobs]
    for watcher in watchers:
        schedule.wait(watcher, due=25.0 if watcher.job.name < "j5" else 20.0)
        # Described in vain some time before.
        watcher.job.suspect = watcher.job.name < "j5"
        watcher.job.as_of = 1.0
    statuses: list[str] = []
    while isinstance(action := schedule.next(22.0, BEGAN), Sweep):
        statuses.append(action.status)
        for watcher in schedule.page(account.listed(action, 22.0), 22.0, 22.0)[0]:
            observation = watcher.take()
            assert observation is not None
            # What ended is in doubt.
            schedule.wait(
                watcher, due=22.0, need=Need.DESCRIPTION if watcher in watchers[:5] else Need.SUMMARY
            )
        schedule.swept(22.0, is_whole=True)
    assert statuses[:2] == ["InProgress", "Completed"]
    described = {action.name} if isinstance(action, Describe) else set()
    while isinstance(action := schedule.next(22.0, BEGAN), Describe):
        described.add(action.name)
    assert described == {f"j{number}" for number in range(5)}


# --- lists that lie ------------------------------------------------------------------------------


def test_a_job_that_no_list_shows_is_described_and_goes_on() -> None:
    account = account_of(20, ends=lambda _: 200.0)
    account.hidden = lambda name: name in ("j3", "j7")
    world = World(account)
    for name in account.jobs:
        world.watch(name)
    world.run(150)
    assert not world.ended
    world.run(300)
    assert len(world.ended) == 20


def test_a_list_that_is_an_hour_old_ends_nothing_and_hides_nothing_for_ever() -> None:
    account = account_of(20, ends=lambda _: 200.0)
    account.lag = 60.0
    world = World(account)
    for name in account.jobs:
        world.watch(name)
    world.run(400)
    assert len(world.ended) == 20
    assert max(latencies(world)) <= 60 + 32


def test_a_list_that_lags_takes_nothing_back() -> None:
    account = account_of(3, period=5.0)
    world = World(account)
    watchers = [world.watch(name) for name in account.jobs]
    world.run(100)
    account.lag = 90.0
    world.run(150)
    for watcher in watchers:
        launched = [one.progress.training_jobs.launched for one in world.seen[watcher] if one.progress]
        assert launched == sorted(launched)


def test_a_repeated_token_ends_the_sweep_and_not_the_watch() -> None:
    account = account_of(250, ends=lambda _: 150.0)
    world = World(account)
    world.repeats_token = True
    for name in account.jobs:
        world.watch(name)
    world.run(300)
    assert len(world.ended) == 250
    assert world.calls["list"] <= 20


@pytest.mark.parametrize("skew", [-7200, 7200])
def test_a_clock_that_is_wrong_changes_nothing(skew: int) -> None:
    account = account_of(120, ends=lambda number: 100.0 + number / 4)
    account.skew = timedelta(seconds=skew)
    world = World(account)
    for name in account.jobs:
        world.watch(name)
    world.run(200)
    assert len(world.ended) == 120
    assert max(latencies(world)) <= 32


# --- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "tried"), [(DENIED, 1), (INVALID, 8)], ids=["denied", "invalid"])
def test_without_lists_each_is_described(error: Exception, tried: int) -> None:
    world = World(account_of(30, ends=lambda _: 100.0))
    world.always_fails["list"] = error
    for name in world.account.jobs:
        world.watch(name)
    world.run(200)
    assert len(world.ended) == 30
    assert 1 <= world.calls["list"] <= tried


@pytest.mark.parametrize("error", [INVALID, DOWN], ids=["invalid", "down"])
def test_a_list_that_fails_once_makes_nobody_late(error: Exception) -> None:
    world = World(account_of(1000, ends=lambda number: 200.0 + number % 300), rate=5)
    for name in world.account.jobs:
        world.watch(name)
    world.run(210)
    world.fails["list"] = [error]
    world.run(600)
    assert len(world.ended) == 1000
    assert max(latencies(world)) <= 60


def test_a_deleted_job_fails_its_own_watchers_alone() -> None:
    account = account_of(50)
    account.jobs["j9"] = Job("j9", created=-600.0, deleted=40.0)
    world = World(account)
    watchers = {name: world.watch(name) for name in account.jobs}
    twin = world.watch("j9")
    world.run(200)
    assert world.seen[watchers["j9"]][-1].error is GONE
    assert world.seen[twin][-1].error is GONE
    others = [one for name, watcher in watchers.items() if name != "j9" for one in world.seen[watcher]]
    assert all(one.error is None for one in others)


def test_an_outage_costs_few_calls_and_everybody_hears_of_it() -> None:
    world = World(account_of(500, ends=lambda _: 400.0))
    watchers = [world.watch(name) for name in world.account.jobs]
    world.run(20)
    before = sum(world.calls.values())
    world.always_fails = {"describe": DOWN, "list": DOWN}
    world.run(300)
    assert sum(world.calls.values()) - before <= 40
    assert all(any(one.error is DOWN for one in world.seen[watcher]) for watcher in watchers)
    world.always_fails = {}
    world.run(500)
    assert len(world.ended) == 500


def test_whoever_heard_of_an_outage_does_not_hear_it_again_from_a_call_that_was_under_way() -> None:
    schedule = Schedule()
    watchers = [schedule.watch(f"j{number}", 30.0, 0.0) for number in range(4)]
    for watcher in watchers:
        schedule.wait(watcher, due=0.0, need=Need.DESCRIPTION)
    names = []
    while isinstance(action := schedule.next(1.0, BEGAN), Describe):
        names.append(action.name)
    assert len(names) == 4
    for name in names[:3]:
        for watcher in schedule.failed(name, DOWN, 2.0, is_transient=True):
            assert watcher.take() is not None
            schedule.wait(watcher, due=60.0, need=Need.DESCRIPTION, backed_off=True)
    assert schedule.failed(names[3], DOWN, 2.1, is_transient=True) == []


def test_whoever_waits_out_an_outage_does_not_hear_what_is_for_others_of_the_job() -> None:
    schedule = Schedule()
    patient, other = schedule.watch("j", 300.0, 0.0), schedule.watch("j", 10.0, 0.0)
    elsewhere = [schedule.watch(f"e{number}", 10.0, 0.0) for number in range(3)]
    assert isinstance(schedule.next(2.0, BEGAN), Wait)
    schedule.wait(patient, due=500.0, backed_off=True)
    for watcher in (other, *elsewhere):
        schedule.wait(watcher, due=3.0, need=Need.DESCRIPTION)
    told = [
        watcher
        for one in elsewhere
        for watcher in schedule.failed(one.job.name, DOWN, 4.0, is_transient=True)
    ]
    assert set(told) == {other, *elsewhere}


def test_a_list_that_works_again_first_leaves_the_relief_to_descriptions() -> None:
    schedule, account = Schedule(), account_of(8)
    watchers = [schedule.watch(name, 30.0, 0.0) for name in account.jobs]
    for number, watcher in enumerate(watchers):
        schedule.wait(watcher, due=0.0, need=Need.SUMMARY if number > 3 else Need.DESCRIPTION)
    described = watchers[:4]
    sweep = schedule.next(2.0, BEGAN)
    assert isinstance(sweep, Sweep)
    for watcher in described:
        for one in schedule.failed(watcher.job.name, DOWN, 3.0, is_transient=True):
            one.take()
            schedule.wait(one, due=300.0, need=one.need, backed_off=True)
    schedule.page(account.listed(sweep, 4.0), 4.0, 4.0)
    schedule.swept(4.0, is_whole=True)
    assert {one.due for one in described} == {300.0}
    name = described[0].job.name
    schedule.described(name, account.jobs[name].at(5.0), {}, 5.0, 5.0)
    assert {one.due for one in described[1:]} == {35.0}


def test_a_missing_job_that_cannot_be_described_is_not_described_again_at_once() -> None:
    world = World(account_of(20, ends=lambda number: 100.0 if number == 3 else math.inf))
    watchers = {name: world.watch(name) for name in world.account.jobs}
    world.run(95)
    world.always_fails = {"describe": DOWN}
    world.run(250)
    told = [one for one in world.seen[watchers["j3"]] if one.error is DOWN]
    assert 2 <= len(told) <= 4
    world.always_fails = {}
    world.run(350)
    assert world.ended["j3"] <= 320


def test_what_ended_during_an_outage_is_found_after_it() -> None:
    world = World(account_of(6, ends=lambda _: 60.0))
    for name in world.account.jobs:
        world.watch(name)
    world.run(20)
    world.always_fails = {"describe": DOWN, "list": DOWN}
    world.run(110)
    world.always_fails = {}
    world.run(400)
    assert len(world.ended) == 6
    assert sum(world.calls.values()) <= 100


def test_throttling_is_nobodys_failure_until_it_lasts() -> None:
    world = World(account_of(100), seconds_per_call=1.0)
    watchers = [world.watch(name) for name in world.account.jobs]
    world.run(10)
    world.always_fails = {"describe": THROTTLED, "list": THROTTLED}
    world.run(250)
    assert all(one.error is None for watcher in watchers for one in world.seen[watcher])
    world.run(400)
    told = [sum(one.error is THROTTLED for one in world.seen[watcher]) for watcher in watchers]
    assert set(told) == {1}


def test_a_failure_of_an_extra_read_is_nobodys() -> None:
    account = Account({"young": Job("young", created=0.0), "other": Job("other", created=-600.0)})
    world = World(account)
    watchers = [world.watch(name, interval=60.0) for name in account.jobs]
    world.run(3)
    world.fails["describe"] = [DOWN]
    world.run(50)
    assert world.calls["describe"] >= 1
    assert all(one.error is None for watcher in watchers for one in world.seen[watcher])


def test_lists_that_work_do_not_hasten_descriptions_that_fail() -> None:
    world = World(account_of(20))
    for name in world.account.jobs:
        world.watch(name, need=Need.DESCRIPTION if name in ("j1", "j2", "j3", "j4") else Need.SUMMARY)
    world.run(20)
    world.always_fails = {"describe": DOWN}
    before = world.calls["describe"]
    world.backoff = 300.0
    world.run(920)
    assert world.calls["describe"] - before <= 4 * 3


@pytest.mark.parametrize("ends", [95.0, math.inf], ids=["while it hangs", "later"])
def test_a_list_that_hangs_makes_nobody_late(ends: float) -> None:
    """Five minutes long, as botocore's attempts of a minute each may be."""
    world = World(account_of(40, ends=lambda number: ends + number), rate=5)
    for name in world.account.jobs:
        world.watch(name)
    world.run(80)
    world.hangs = 300.0
    world.run(500)
    assert world.hangs == 0.0
    # Eight seconds are what it takes to describe them all, five those that the list was waited for.
    assert world.stalest <= 30 + 8 + 5 + 1
    assert len(world.ended) == (40 if ends < math.inf else 0)
    before = world.calls["describe"]
    world.run(800)
    assert world.calls["describe"] - before <= 5 * 4 + 4


def test_a_list_of_those_that_ended_that_hangs_hides_no_end() -> None:
    world = World(account_of(40, ends=lambda _: 95.0))
    for name in world.account.jobs:
        world.watch(name)
    world.run(100)
    world.hangs_in = "Completed"
    world.hangs = 300.0
    world.run(500)
    assert world.hangs == 0.0
    assert len(world.ended) == 40
    assert max(latencies(world)) <= 32 + 5 + 4


def test_how_many_pages_there_were_is_not_believed_for_ever() -> None:
    account = account_of(20, ends=lambda number: 50.0 if number < 10 else math.inf)
    for number in range(100):
        account.jobs[f"other{number}"] = Job(f"other{number}", created=-100.0, ends=100.0)
    world = World(account, page=10)
    for name in [f"j{number}" for number in range(20)]:
        world.watch(name)
    world.run(1200)
    before = sum(world.calls.values())
    world.run(1500)
    assert sum(world.calls.values()) - before <= 2 * 11


def test_short_and_long_intervals_together_pile_up_nothing() -> None:
    world = World(account_of(100))
    for number, name in enumerate(world.account.jobs):
        world.watch(name, interval=5 if number < 10 else 3600)
    world.run(1000)
    assert len(world.schedule._heap) <= 1200


# --- adapting ------------------------------------------------------------------------------------


def test_a_young_job_is_looked_at_sooner() -> None:
    account = Account({"young": Job("young", created=-1.0, ends=6.0, status="Failed")})
    world = World(account)
    world.watch("young", interval=300)
    world.run(60)
    assert world.ended["young"] <= 16


def progress_of(age: float, *, ended: int = 0, **criteria: Any) -> TuningProgress:
    return TuningProgress(
        name="j",
        status="InProgress",
        created_at=BEGAN - timedelta(seconds=age),
        training_jobs=TrainingJobCounters(completed=ended),
        criteria=CompletionCriteria(**criteria),
    )


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (progress_of(4), 5.0),
        (progress_of(60), 30.0),
        (progress_of(600), None),
        (progress_of(-50), None),
        (progress_of(1000, ended=9, max_training_jobs=10), pytest.approx(111.1, abs=0.1)),
        (progress_of(1000, ended=10, max_training_jobs=10), 5.0),
        (progress_of(1000, max_runtime=timedelta(seconds=1060)), 60.0),
        (progress_of(1000, max_runtime=timedelta(seconds=900)), 5.0),
        (replace(progress_of(4), created_at=None), None),
    ],
)
def test_how_soon_there_may_be_news(progress: TuningProgress, expected: float | None) -> None:
    assert early_wait(progress, BEGAN) == expected


# --- properties ----------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 60),
    lag=st.sampled_from([0.0, 5.0]),
    page=st.sampled_from([3, 10, 100]),
    strangers=st.integers(0, 60),
    faults=st.booleans(),
)
def test_every_end_is_seen_whatever_happens(
    seed: int, count: int, lag: float, page: int, strangers: int, faults: bool
) -> None:
    """Random jobs, intervals, needs, lists that lie and calls that fail: nobody waits in vain."""
    rng = random.Random(seed)
    account = Account(lag=lag)
    for number in range(count):
        account.jobs[f"j{number}"] = Job(
            f"j{number}",
            created=-rng.uniform(0, 900),
            ends=rng.uniform(10, 300),
            status=rng.choice(["Completed", "Stopped", "Failed"]),
            period=rng.uniform(5, 60),
            stopping=rng.choice([0.0, 0.0, 20.0]),
        )
    for number in range(strangers):
        account.jobs[f"s{number}"] = Job(f"s{number}", created=-rng.uniform(0, 900))
    hidden = {name for name in account.jobs if rng.random() < 0.05}
    account.hidden = hidden.__contains__
    rate = rng.choice([math.inf, 5.0])
    world = World(account, seconds_per_call=rng.choice([0.02, 0.2, 1.0]), page=page, rng=rng, rate=rate)
    if faults:
        world.fails = {
            "describe": rng.choices([DOWN, THROTTLED], k=rng.randrange(8)),
            "list": rng.choices([DOWN, THROTTLED, INVALID], k=rng.randrange(6)),
        }
    names = [f"j{number}" for number in range(count)]
    for name in names:
        world.run(world.now + rng.choice([0.0, 0.0, 0.0, 2.0]))
        need = rng.choice([Need.SUMMARY, Need.SUMMARY, Need.DESCRIPTION])
        curious = need is Need.SUMMARY and rng.random() < 0.5
        ends_by_summary = need is Need.DESCRIPTION and rng.random() < 0.5
        world.watch(
            name,
            interval=rng.choice([10.0, 30.0, 60.0]),
            need=need,
            curious=curious,
            ends_by_summary=ends_by_summary,
        )
    world.run(900)
    assert set(world.ended) == set(names)
    assert world.schedule.jobs == 0
    assert world.schedule.watchers == 0


def test_nothing_is_left_of_watchers_that_leave_off() -> None:
    world = World(account_of(200))
    watchers = [world.watch(name) for name in world.account.jobs]
    world.run(45)
    for watcher in watchers:
        world.schedule.unwatch(watcher)
        world.schedule.unwatch(watcher)
    assert (world.schedule.jobs, world.schedule.watchers) == (0, 0)
    calls = sum(world.calls.values())
    world.run(500)
    assert sum(world.calls.values()) == calls


def test_the_key_of_a_change_is_what_a_list_tells_too() -> None:
    job = Job("j", created=0.0)
    assert change_key(replace(job.at(50), is_summary=True)) == change_key(job.at(50))
