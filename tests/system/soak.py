"""Let hundreds of tasks wait for tuning jobs while all kinds of things happen: is every outcome right?

``python -m tests.system.soak [--tasks 500] [--minutes 30] [--triggerers 2] [--seed N] [--json]``

A scheduler with its workers, triggerers, a DAG processor and two API servers run on PostgreSQL, against an
embedded AMT over HTTP whose training processes are shells that block until they are let go. So many tasks are
deferred at all times, of all ways there are (`tests/system/soak_dags`): as one ends, another one comes with a
tuning job of its own. Once all wait, a seeded stream of actions begins: training jobs are let go, tuning jobs
end by themselves, fail, are stopped by boto3 or by a task, and deleted; people mark tasks failed and
successful, and clear them; calls are throttled (some or all), answered with 500s, dropped, slow, or from an
old list; triggerers are ended, killed and frozen. In the end nothing is done any more, all tuning jobs come
to their ends, and it is judged from outside (`tests/system/soak_judge.py`), by the server's state and request
log, Airflow's database and the operating system's list of processes:

- every task has the outcome that its tuning job, or the person that ended it, asks for;
- no task is left deferred, no trigger in the database, no tuning job running, no connection open;
- a tuning job was stopped only by whom it had to be; those that were to be left alone were;
- the triggerers' memory, threads, descriptors and connections are as they were.

The figures go to ``--results``. The exit code is 0 only if all of that holds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from tests.system.cluster import ClusterError
from tests.system.crash_matrix import measured_patience
from tests.system.soak_jobs import (
    CONDITIONAL,
    GUARDED,
    ON_ENDS,
    OPERATORS,
    OVER,
    SENSORS,
    SIZES,
    STOPS_ON_KILL,
    Job,
    Waiter,
    request,
)
from tests.system.soak_judge import Found, Task, judge_jobs, judge_series, judge_tasks
from tests.system.soak_world import (
    LOST_SECONDS,
    MOST_JOBS_OF_A_REGION,
    TRIGGERERS,
    Sampler,
    World,
    calls,
    crashed,
    environment_versions,
    is_transient,
    trigger_troubles,
    triggerer_troubles,
)

RESULTS = Path(__file__).parent / "results" / "soak.json"

#: How often each way is drawn.
WAYS: Mapping[str, int] = {
    "light": 30,
    "sensor": 20,
    "mapped": 10,
    "progress": 10,
    "operator": 14,
    "guarded": 6,
    "leaving": 5,
    "guarded_sensor": 5,
}
#: How often each action is.
ACTIONS: Mapping[str, int] = {
    "release": 5,
    "complete": 4,
    "stop": 2,
    "stop_by_task": 2,
    "mark_failed": 2,
    "mark_success": 1,
    "clear": 2,
    "delete": 1,
    "complete_and_stop": 1,
}
#: Those that make calls themselves.
_CALLING = frozenset(("stop", "delete", "complete_and_stop"))
FAULTS = (
    "throttled",
    "partly_throttled",
    "slowly_filled_bucket",
    "server_errors",
    "dropped",
    "old_lists",
    "slow",
)
DISRUPTIONS = ("kill", "term", "freeze")
SHARE_OF_FAILING = 0.15
SHARE_OF_SECOND_WATCHERS = 0.12
#: Tasks that may be on their way to a worker, so that none waits there for minutes.
MOST_PENDING = 24
#: How long a tuning job that is to be left alone is watched.
ALONE_SECONDS = 20.0
#: And one that is to be stopped, until that is wrong.
KILL_SECONDS = 90.0
#: A triggerer does not hear of what a person did before it has taken a trigger up (known limitation).
TAKEN_UP_SECONDS = 10.0
#: Nothing goes wrong before some tasks were killed, whose triggers take this long at the most to be taken up.
_MOST_UNTIL_KILLS = 60.0
#: And it can give up stopping a tuning job while too many calls fail.
_MOST_OF_A_SOFT_FAULT = 0.5
_LIVES: frozenset[str | None] = frozenset(
    (None, "scheduled", "queued", "running", "deferred", "up_for_retry")
)


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a soak is.

    :param tasks: tasks that wait at the same time.
    :param seconds: of actions.
    :param pause: mean seconds between two actions.
    :param interval: seconds between two reads of a tuning job.
    :param sampling: seconds between two looks at the triggerers.
    :param at_least: seconds that a triggerer must have been watched for to be judged.
    :param windows: what goes wrong first, in this order; then all of it, shuffled.
    :param scale: factor of the lengths of what goes wrong.
    :param warming: seconds after its start that do not count for a triggerer: Airflow and boto3 load much of
        themselves when they are first asked.
    :param slack: factor of the amounts by which a triggerer may grow. A short soak ends
        while they warm up.
    """

    tasks: int
    seconds: float
    pause: float
    interval: float
    sampling: float
    at_least: float
    triggerers: int = 2
    windows: Sequence[str] = ()
    scale: float = 1.0
    warming: float = 60.0
    slack: float = 1.0

    @classmethod
    def of(cls, tasks: int, minutes: float, triggerers: int) -> Size:
        """Return what fits a number of tasks and a time."""
        long = minutes >= 10
        return cls(
            tasks=tasks,
            seconds=minutes * 60,
            pause=4.0 if long else 2.0,
            interval=15.0 if long else 8.0,
            sampling=10.0 if long else 3.0,
            at_least=300.0 if long else 30.0,
            triggerers=triggerers,
            windows=() if long else ("partly_throttled", "kill", "old_lists", "throttled"),
            scale=1.0 if long else 0.4,
            warming=60.0 if long else 0.0,
            slack=1.0 if long else 25.0,
        )


def draw_fault(draw: random.Random, kind: str, scale: float) -> tuple[list[dict[str, Any]], float, bool]:
    """Return rules of the embedded AMT, how long they hold, and whether they are too hard for a kill."""
    seconds = draw.uniform(10, 60) * scale
    share = round(draw.uniform(0.3, 0.8), 2)
    if kind == "throttled":
        return [{"kind": "error", "code": "ThrottlingException"}], draw.uniform(10, 30) * scale, True
    if kind == "partly_throttled":
        rule = {"kind": "error", "code": "ThrottlingException", "probability": share}
        return [rule], seconds, share > _MOST_OF_A_SOFT_FAULT
    if kind == "slowly_filled_bucket":
        rate = round(draw.uniform(3, 10), 1)
        return [{"kind": "throttle", "rate": rate, "burst": 10, "shared": True}], seconds, True
    if kind == "server_errors":
        rules = [
            {"kind": "error", "code": "InternalFailure", "probability": share / 2},
            {"kind": "error", "code": "ServiceUnavailable", "when": "after", "probability": share / 2},
        ]
        return rules, seconds, share > _MOST_OF_A_SOFT_FAULT
    if kind == "dropped":
        rules = [{"kind": "drop", "when": when, "probability": share / 3} for when in ("before", "after")]
        return rules, seconds, False
    if kind == "old_lists":
        # Not what is described: a job that was just created would not be there.
        operations = ["ListHyperParameterTuningJobs", "ListTrainingJobsForHyperParameterTuningJob"]
        return (
            [{"kind": "stale", "seconds": round(draw.uniform(3, 20), 1), "operations": operations}],
            seconds,
            False,
        )
    if kind == "slow":
        return [{"kind": "latency", "seconds": 0.2, "jitter": 1.0}], seconds, True
    raise ValueError(kind)


class Deck:
    """Draws from what there is, each as often as it is in there, before any comes again.

    :param first: comes before all others.
    """

    def __init__(self, draw: random.Random, weights: Mapping[str, int], first: Sequence[str] = ()) -> None:
        self._draw = draw
        self._weights = weights
        self._cards = list(reversed(first))

    def next(self) -> str:
        """Return the next one."""
        if not self._cards:
            self._cards = [name for name, weight in self._weights.items() for _ in range(weight)]
            self._draw.shuffle(self._cards)
        return self._cards.pop()


@dataclass(kw_only=True)
class Window:
    """Something that goes wrong for a while.

    :param hard: too hard for what a kill of a task has to do.
    :param end: what ends it.
    """

    kind: str
    until: float
    hard: bool
    end: Callable[[], None]


@dataclass(kw_only=True)
class Times:
    """When what began, by the monotonic clock; and the actions, by the wall clock."""

    acting: float = 0.0
    over: float = 0.0
    acting_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    over_at: datetime = field(default_factory=lambda: datetime.now(UTC))


class Soak:
    """One soak in a world of its own."""

    def __init__(self, world: World, size: Size, seed: int, say: Callable[[str], None]) -> None:
        self._world = world
        self._size = size
        self._draw = random.Random(seed)
        self._say = say
        self._ways = Deck(self._draw, WAYS, first=tuple(WAYS))
        self._actions = Deck(self._draw, ACTIONS)
        self._windows = Deck(self._draw, dict.fromkeys((*FAULTS, *DISRUPTIONS), 1), [*size.windows])
        self.jobs: list[Job] = []
        self.waiters: list[Waiter] = []
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.times = Times()
        self.fewest_waiting = size.tasks
        #: Those that were left at the end, by their status.
        self.connections: Counter[str] = Counter()
        self._runs = 0
        self._window: Window | None = None
        #: Until then no task is killed whose tuning job a triggerer has to stop.
        self._calm_at = 0.0
        self._killed: list[tuple[Waiter, float]] = []
        #: Something is to go wrong as soon as that is settled.
        self._waits_for_kills = False
        self._deleted: dict[tuple[str, str], Found] = {}
        self._looked_at = 0.0
        self._told_at = 0.0
        self._sampler: Sampler

    # --- the whole ---------------------------------------------------------------------------------

    def play(self) -> dict[str, Any]:
        """Play it and judge it; return the figures."""
        world, size = self._world, self._size
        with Sampler(world, size.sampling) as self._sampler:
            for name in TRIGGERERS[1 : size.triggerers]:
                world.cluster.start_component(name)
            self._calm_at = time.monotonic() + TAKEN_UP_SECONDS
            self._fill()
            self._act()
            self._drain()
            left = self._left()
        return self._judge(left)

    def _fill(self) -> None:
        """Create tasks until all wait."""
        began = time.monotonic()
        deadline = began + self._world.patience * (180 + 4 * self._size.tasks)
        while sum(one.deferred_since is not None for one in self._live()) <= self._size.tasks - SIZES[-1]:
            if time.monotonic() > deadline:
                states = Counter(str(one.state) for one in self._live())
                raise ClusterError(f"not all tasks wait: {dict(states)}\n{self._world.cluster.log_tails()}")
            self._tick()
            # Runs of few tasks where not all ways would be there otherwise.
            self._replenish(SIZES[0] if self._size.tasks >= len(WAYS) * SIZES[0] else SIZES[-1])
        self._say(f"all wait after {time.monotonic() - began:.0f} s")

    def _act(self) -> None:
        times, size = self.times, self._size
        times.acting, times.acting_at = time.monotonic(), datetime.now(UTC)
        end = times.acting + size.seconds
        next_action = times.acting
        next_window = times.acting + self._draw.uniform(5, 15) * size.scale
        # On a slow machine what a short soak is about may come late.
        while (now := time.monotonic()) < end or (
            now < end + size.seconds and not all(self.done[kind] for kind in size.windows[:2])
        ):
            self._tick()
            self._replenish(SIZES[-1])
            waiting = sum(one.state == "deferred" for one in self._live())
            self.fewest_waiting = min(self.fewest_waiting, waiting)
            if self._window is not None and now >= self._window.until:
                self._end_window()
                next_window = time.monotonic() + self._draw.uniform(5, 25) * size.scale
            self._waits_for_kills = self._has_killed and self._window is None and now >= next_window
            if not self._has_killed and now < times.acting + _MOST_UNTIL_KILLS:
                self._mark("failed", STOPS_ON_KILL)
            elif self._waits_for_kills and not self._killed:
                self._begin_window((now - times.acting) / size.seconds)
            if now >= next_action:
                self._perform(self._actions.next())
                next_action = now + self._draw.expovariate(1 / size.pause)
        self._end_window()
        times.over, times.over_at = time.monotonic(), datetime.now(UTC)

    def _drain(self) -> None:
        """Do nothing any more but let everything end."""
        self._world.amt.set_faults(None)
        began = time.monotonic()
        limit = self._world.patience * (300 + 3 * self._size.tasks)
        while self._live(every=True) or any(not job.over for job in self.jobs):
            if time.monotonic() - began > limit:
                self.wrong.append(f"not everything was over after {limit:.0f} s")
                return
            self._tick()
            pending = sum(one.state in ("scheduled", "queued", "running") for one in self._live(every=True))
            letting = [job for job in self.jobs if job.is_let_be and _awaited(job) and job.look_at is None]
            for job in letting[: max(0, MOST_PENDING // 3 - pending)]:
                job.ending = True
        self._say(f"all is over after {time.monotonic() - began:.0f} s")

    def _left(self) -> dict[str, Any]:
        """Return what is left when everything is over, after some time to tidy up."""
        deadline = time.monotonic() + self._world.patience * 60
        while True:
            left = {
                "triggers": sum(self._world.database.triggers().values()),
                "connections": self._sampler.sockets().total(),
                "deferred": self._world.database.rows(
                    "SELECT count(*) FROM task_instance WHERE state = 'deferred'"
                )[0][0],
            }
            if not any(left.values()) or time.monotonic() > deadline:
                self.connections = self._sampler.sockets()
                return left
            time.sleep(1)

    @property
    def _has_killed(self) -> bool:
        """Whether some tasks were ended whose tuning jobs have to be stopped for that."""
        return sum(bool(one.marked) for one in self.waiters if one.way in STOPS_ON_KILL) >= 2

    @property
    def _unreachable(self) -> bool:
        """Whether no call succeeds."""
        return self._window is not None and self._window.kind == "throttled"

    # --- looking -------------------------------------------------------------------------------------

    def _live(self, *, every: bool = False) -> list[Waiter]:
        """Return the tasks that are not over; without those that stop, unless all are wanted."""
        return [one for one in self.waiters if one.state in _LIVES and (every or one.way != "stop")]

    def _tick(self) -> None:
        began = time.monotonic()
        self._look()
        self._pump()
        self._retire()
        if began - self._told_at > 30:
            self._told_at = began
            states = Counter(str(one.state) for one in self._live(every=True))
            self._say(f"{len(self.waiters)} tasks so far, {dict(states)}, {len(self._killed)} being killed")
            self._world.cluster.revive(self._world.patience * 90)
        time.sleep(max(0.1, 1.0 - (time.monotonic() - began)))

    def _look(self) -> None:
        """Read the states of tasks and, more rarely, of tuning jobs."""
        now = time.monotonic()
        tasks = self._world.database.tasks()
        for waiter in self.waiters:
            waiter.state, triggerer = tasks.get(waiter.key, (None, None))
            if waiter.state != "deferred" or triggerer is None:
                waiter.deferred_since = None
            elif waiter.deferred_since is None:
                waiter.deferred_since = now
        if now - self._looked_at < 4:
            return
        self._looked_at = now
        names = self._world.database.names()
        for waiter in self.waiters:
            name = names.get((waiter.run_id, waiter.task_id))
            if waiter.way in OPERATORS and name is not None and name != waiter.job.name:
                # Of a task that was cleared, the next one.
                waiter.job.name, waiter.job.released, waiter.job.ending = name, 0, False
        try:
            statuses = {region: self._world.statuses(region) for region in self._world.regions}
        except (ClientError, BotoCoreError) as error:
            if not is_transient(error):
                raise
            return
        for job in self.jobs:
            job.over = job.deleted or statuses[job.region].get(job.name or "") in OVER
        # The tuning job of one that was cleared may have been adopted instead.
        self._killed = [
            (one, at)
            for one, at in self._killed
            if not (one.job.over or (one.cleared and one.deferred_since)) and now - at < 60
        ]

    def _pump(self) -> None:
        """Go on with what takes several steps."""
        for job in self.jobs:
            # However often that was: one that still had the pipe open may have taken two for one.
            if job.ending and not job.over:
                job.release()
            if job.deleting and not job.deleted and job.name is not None and not self._unreachable:
                self._try_to_delete(job, job.name)

    def _try_to_delete(self, job: Job, name: str) -> None:
        found = self._deleted.get((job.region, name))
        try:
            found = self._world.found(job.region, name)
            if found.status in OVER:
                client = self._world.clients[job.region]
                self._world.insist(
                    lambda: client.delete_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
                )
        except ClientError as error:
            # Its answer got lost the first time.
            if error.response["Error"]["Code"] != "ResourceNotFound" or found is None:
                raise
        if found.status in OVER:
            self._deleted[job.region, name] = Found(
                region=found.region, description=found.description, tags=found.tags, deleted=True
            )
            job.deleted = job.over = True

    def _retire(self) -> None:
        """End the tuning jobs that nobody waits for any more."""
        if self._unreachable:
            return
        now = time.monotonic()
        for job in self.jobs:
            if job.over or job.name is None or _awaited(job):
                continue
            if job.look_at is not None:
                if now < job.look_at:
                    continue
                job.left_alone = self._world.describe(job.region, job.name)[
                    "HyperParameterTuningJobStatus"
                ] not in ("Stopping", "Stopped")
                job.look_at = None
            killed_at = max(one.killed_at for one in job.waiters if one.way != "stop")
            if killed_at > 0 and any(one.way in STOPS_ON_KILL for one in job.waiters):
                if job.stops or now - killed_at < self._world.patience * KILL_SECONDS:
                    continue
                self.wrong.append(f"{job.name} runs {KILL_SECONDS:g} s after its task was ended by a person")
                self._stop(job)
            elif job.is_let_be:
                if self._draw.random() < 0.5:
                    job.ending = True
                else:
                    self._stop(job)

    # --- creating ------------------------------------------------------------------------------------

    def _replenish(self, size: int) -> None:
        live = self._live()
        pending = sum(one.state != "deferred" for one in live)
        if len(live) + size > self._size.tasks or pending + size > MOST_PENDING:
            # The last ones of a few.
            size = SIZES[-1]
            if len(live) + size > self._size.tasks or pending + size > MOST_PENDING:
                return
        if self._unreachable:
            return
        self._create(self._ways.next(), size)

    def _create(self, way: str, size: int) -> None:
        used = self._used()
        if sum(max(0, MOST_JOBS_OF_A_REGION - used[region]) for region in self._world.regions) < size:
            return
        run_id = self._next_run()
        mapped = way == "mapped"
        dag_id = "soak_mapped" if mapped else f"soak_{way}_{size}"
        waiters = []
        for index in range(size):
            job = self._job_for(way)
            waiters.append(
                Waiter(
                    way=way,
                    job=job,
                    dag_id=dag_id,
                    run_id=run_id,
                    task_id="mapped" if mapped else f"t{index}",
                    map_index=index if mapped else -1,
                    condition=self._condition() if way in CONDITIONAL else None,
                    on_end=ON_ENDS[index % len(ON_ENDS)] if way in CONDITIONAL else None,
                )
            )
            job.waiters.append(waiters[-1])
        self._start(dag_id, run_id, waiters)

    def _start(self, dag_id: str, run_id: str, waiters: Sequence[Waiter]) -> None:
        given = [
            {
                "name": one.job.name,
                "region": one.job.region,
                "condition": json.dumps(one.condition),
                "sequence": one.job.sequence,
                "release": str(one.job.pipe),
            }
            for one in waiters
        ]
        self.waiters += waiters
        self._world.cluster.request(
            "POST",
            f"/dags/{dag_id}/dagRuns",
            body={"logical_date": None, "dag_run_id": run_id, "conf": {"tasks": given}},
        )

    def _next_run(self) -> str:
        self._runs += 1
        return f"soak-{self._runs:05d}"

    def _used(self) -> Counter[str]:
        """Return how many tuning jobs are not over, by region."""
        return Counter(job.region for job in self.jobs if not job.over)

    def _job_for(self, way: str) -> Job:
        """Return a tuning job for a task: one of its own, or for some sensors one that another one has."""
        if way in SENSORS and self._draw.random() < SHARE_OF_SECOND_WATCHERS:
            shared = [
                job
                for job in self.jobs
                if job.is_let_be
                and job.name is not None
                and job.look_at is None
                and len(job.waiters) == 1
                and job.waiters[0].way in SENSORS
                and _awaited(job)
            ]
            if shared:
                return self._draw.choice(shared)
        used = self._used()
        region = min(self._world.regions, key=lambda one: (used[one], self._draw.random()))
        key = f"soak-{len(self.jobs) + 1:05d}"
        job = Job(
            key=key,
            region=region,
            failing=self._draw.random() < SHARE_OF_FAILING,
            pipe=self._world.folder / "pipes" / key,
        )
        os.mkfifo(job.pipe)
        if way in SENSORS:
            self._create_job(job, key)
        self.jobs.append(job)
        return job

    def _create_job(self, job: Job, name: str) -> None:
        client = self._world.clients[job.region]
        made = request(name, sequence=job.sequence, release=str(job.pipe))
        try:
            self._world.insist(lambda: client.create_hyper_parameter_tuning_job(**made))
        except ClientError as error:
            # Its answer got lost the first time.
            if error.response["Error"]["Code"] != "ResourceInUse":
                raise
        job.name = name

    def _condition(self) -> Mapping[str, Any]:
        return self._draw.choices(
            (
                {"version": 1, "type": "first_usable_model"},
                {"version": 1, "type": "target_reached", "value": 0.5},
                {"version": 1, "type": "training_jobs_done", "count": 2, "counting": "with_objective"},
                {
                    "version": 1,
                    "type": "runtime_above",
                    "runtime_seconds": round(self._draw.uniform(100, 900) * self._size.scale, 1),
                },
            ),
            weights=(3, 3, 3, 2),
        )[0]

    # --- acting --------------------------------------------------------------------------------------

    def _perform(self, action: str) -> None:
        if self._unreachable and action in _CALLING:
            self.refused[action] += 1
            return
        done = {
            "release": self._release,
            "complete": self._complete,
            "stop": lambda: self._with_job(self._stop),
            "stop_by_task": self._stop_by_task,
            "mark_failed": lambda: self._mark("failed"),
            "mark_success": lambda: self._mark("success"),
            "clear": self._clear,
            "delete": self._delete,
            "complete_and_stop": self._complete_and_stop,
        }[action]()
        (self.done if done else self.refused)[action] += 1

    def _candidates(self) -> list[Waiter]:
        """Return the tasks that really wait for a tuning job that nothing has happened to."""
        now = time.monotonic()
        return [
            one
            for one in self._live()
            if one.deferred_since is not None
            and now - one.deferred_since > TAKEN_UP_SECONDS
            and one.job.name is not None
            and one.job.look_at is None
            and one.job.is_let_be
            and not any(killed.job is one.job for killed, _ in self._killed)
        ]

    def _with_job(self, act: Callable[[Job], None]) -> bool:
        found = self._candidates()
        if not found:
            return False
        act(self._draw.choice(found).job)
        return True

    def _release(self) -> bool:
        """Let some training jobs go that do not end their tuning jobs."""
        found = [one.job for one in self._candidates() if one.job.released < one.job.steps - 1]
        return sum(job.release() for job in self._draw.sample(found, min(len(found), 4))) > 0

    def _complete(self) -> bool:
        def end(job: Job) -> None:
            job.ending = True

        return self._with_job(end)

    def _stop(self, job: Job) -> None:
        job.stops.add("soak")
        client, name = self._world.clients[job.region], job.name
        try:
            self._world.insist(
                lambda: client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
            )
        except ClientError as error:
            # It is over, or was stopped by a call whose answer got lost.
            if error.response["Error"]["Code"] != "ValidationException":
                raise

    def _stop_by_task(self) -> bool:
        def stop(job: Job) -> None:
            job.stops.add("operator")
            run_id = self._next_run()
            waiter = Waiter(way="stop", job=job, dag_id="soak_stop_1", run_id=run_id, task_id="t0")
            job.waiters.append(waiter)
            self._start("soak_stop_1", run_id, [waiter])

        return self._with_job(stop)

    def _delete(self) -> bool:
        def delete(job: Job) -> None:
            self._stop(job)
            job.deleting = True

        return self._with_job(delete)

    def _complete_and_stop(self) -> bool:
        def race(job: Job) -> None:
            # Its last training job ends when the stop comes.
            deadline = time.monotonic() + 10
            while job.released < job.steps and time.monotonic() < deadline:
                if not job.release():
                    time.sleep(0.05)
            time.sleep(self._draw.uniform(0, 0.1))
            self._stop(job)

        return self._with_job(race)

    def _killable(self) -> list[Waiter]:
        """Return the tasks that people may end now, and nothing else ends just then."""
        now = time.monotonic()
        hard = self._waits_for_kills or (self._window is not None and self._window.hard)
        soft = now >= self._calm_at and not hard
        found = []
        for one in self._candidates():
            if one.way in STOPS_ON_KILL and not soft:
                continue
            if one.way in GUARDED and one.job.released >= 2:
                continue
            if one.condition is not None and (
                one.condition["type"] == "runtime_above"
                or one.job.released >= (1 if one.condition["type"] == "first_usable_model" else 2)
            ):
                continue
            found.append(one)
        return found

    def _mark(self, state: str, ways: Collection[str] = tuple(WAYS)) -> bool:
        """Let a person mark a task, of one of these ways."""
        found = [one for one in self._killable() if one.way in ways]
        if not found:
            return False
        # Each way as often as any other.
        way = self._draw.choice(sorted({one.way for one in found}))
        waiter = self._draw.choice([one for one in found if one.way == way])
        try:
            self._world.cluster.set_task_state(
                waiter.dag_id, waiter.run_id, waiter.task_id, state, map_index=waiter.map_index
            )
        except ClusterError as error:
            self._say(f"refused: {str(error)[:300]}")
            return False
        waiter.marked = state
        self._note_kill(waiter)
        return True

    def _note_kill(self, waiter: Waiter) -> None:
        if waiter.marked:
            waiter.killed_at = time.monotonic()
        if waiter.way in STOPS_ON_KILL:
            self._killed.append((waiter, time.monotonic()))
        elif waiter.marked and len(waiter.job.waiters) == 1:
            waiter.job.look_at = time.monotonic() + ALONE_SECONDS

    def _clear(self) -> bool:
        found = [one for one in self._killable() if one.way != "mapped"]
        if not found:
            return False
        way = self._draw.choice(sorted({one.way for one in found}))
        waiter = self._draw.choice([one for one in found if one.way == way])
        try:
            self._world.cluster.clear(waiter.dag_id, waiter.run_id, [waiter.task_id])
        except ClusterError as error:
            self._say(f"refused: {str(error)[:300]}")
            return False
        waiter.cleared += 1
        waiter.deferred_since = None
        self._note_kill(waiter)
        return True

    # --- what goes wrong -----------------------------------------------------------------------------

    def _begin_window(self, share: float) -> None:
        """Begin with the next thing that goes wrong.

        :param share: of the time that is over.
        """
        kind = self._windows.next()
        if kind in DISRUPTIONS:
            self._window = self._disrupt(kind, share)
        else:
            rules, seconds, hard = draw_fault(self._draw, kind, self._size.scale)
            self._world.amt.set_faults({"seed": self._draw.randrange(10**6), "rules": rules})
            # By itself: whoever makes a call here may be waiting for that.
            timer = threading.Timer(seconds, self._world.amt.set_faults, [None])
            timer.start()
            self._window = Window(kind=kind, until=time.monotonic() + seconds, hard=hard, end=timer.join)
        self.done[kind] += 1
        self._say(f"{kind} for {self._window.until - time.monotonic():.0f} s")

    def _end_window(self) -> None:
        if self._window is not None:
            self._window.end()
            self._window = None

    def _disrupt(self, kind: str, share: float) -> Window:
        """Do something to a triggerer; the first one runs on from a quarter of the time, to be measured."""
        cluster, names = self._world.cluster, TRIGGERERS[: self._size.triggerers]
        if kind == "freeze":
            # Shorter than the time after which others take its triggers over.
            name, seconds = self._draw.choice(names), self._draw.uniform(4, 12)
            cluster.signal_component(name, signal.SIGSTOP)

            def thaw() -> None:
                cluster.signal_component(name, signal.SIGCONT)
                self._calm_at = max(self._calm_at, time.monotonic() + TAKEN_UP_SECONDS)

            return Window(kind=kind, until=time.monotonic() + seconds, hard=True, end=thaw)
        name = names[-1] if share > 0.25 else self._draw.choice(names)
        self._sampler.said_to_end(name, kind)
        if kind == "kill":
            cluster.kill_component(name)
        else:
            cluster.stop_component(name)

        def start() -> None:
            cluster.start_component(name)
            # By then others, or it itself, have its triggers.
            lost = 2 * LOST_SECONDS * self._world.patience
            self._calm_at = max(self._calm_at, time.monotonic() + lost)

        seconds = self._draw.choice((0.0, self._draw.uniform(0, 15))) * self._size.scale
        return Window(kind=kind, until=time.monotonic() + seconds, hard=True, end=start)

    # --- the judgement -------------------------------------------------------------------------------

    def _judge(self, left: Mapping[str, Any]) -> dict[str, Any]:
        world, size, times = self._world, self._size, self.times
        found = {(one.region, one.name): one for one in world.all_jobs()} | self._deleted
        of_tasks: dict[tuple[str, str], list[Found]] = {}
        for one in sorted(found.values(), key=lambda one: one.description["CreationTime"]):
            run_id = one.tags.get("airflow-amt:run-id")
            if run_id is not None:
                of_tasks.setdefault((run_id, one.tags["airflow-amt:task-id"]), []).append(one)
        owners = {job.name: job for job in self.jobs if job.name is not None}
        for waiter in self.waiters:
            if waiter.way in OPERATORS:
                owners |= dict.fromkeys(
                    (one.name for one in of_tasks.get((waiter.run_id, waiter.task_id), ())), waiter.job
                )
        states, xcoms = world.database.tasks(), world.database.xcoms()
        tasks = {
            waiter: Task(
                state=states.get(waiter.key, (None, None))[0],
                xcoms=xcoms.get(waiter.key, {}),
                log=lambda waiter=waiter: world.cluster.task_log(  # type: ignore[misc]
                    waiter.dag_id, waiter.run_id, waiter.task_id, map_index=waiter.map_index
                ),
            )
            for waiter in self.waiters
        }
        verdict = judge_tasks(tasks, found, of_tasks)
        wrong = [*self.wrong, *verdict.wrong, *judge_jobs(self.jobs, found, owners)]
        wrong += [f"{count} {what} are left" for what, count in left.items() if count]
        series = [
            one.figures(
                since=max(times.acting, one.began + size.warming), until=times.over, at_least=size.at_least
            )
            for one in self._sampler.series
        ]
        wrong += [what for one in series for what in judge_series(one, size.slack)]
        if not any("triggers" in one for one in series):
            wrong.append("no triggerer was watched long enough to tell whether its memory is flat")
        ended = Counter(crashed(world.cluster))
        wrong += [f"{name} ended by itself" for name in ended if name.startswith("triggerer")]
        return {
            "seconds": round(times.over - times.acting),
            "tasks": len(self.waiters),
            "fewest_waiting": self.fewest_waiting,
            "tuning_jobs": dict(Counter(one.status for one in found.values())),
            "deleted_tuning_jobs": len(self._deleted),
            "left_alone": sum(job.left_alone is True for job in self.jobs),
            "done": dict(sorted(self.done.items())),
            "not_possible": dict(sorted(self.refused.items())),
            "outcomes": dict(sorted(verdict.outcomes.items())),
            "left": dict(left),
            "left_connections": dict(self.connections),
            "triggerers": series,
            "calls": calls(world.request_log, times.acting_at, times.over_at),
            "triggerer_logs": triggerer_troubles(world.cluster.home),
            "trigger_logs": trigger_troubles(world.cluster.home),
            "components_that_ended_by_themselves": dict(ended),
            "wrong": wrong,
        }


def _awaited(job: Job) -> bool:
    return any(one.state in _LIVES for one in job.waiters)


def soak(folder: Path, size: Size, seed: int, patience: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Play a soak of this size; return its figures.

    :param folder: gets everything; must be empty.
    """
    with World(folder, tasks=size.tasks, interval=size.interval, patience=patience) as world:
        figures = Soak(world, size, seed, say).play()
        return {**environment_versions(world.database), **figures}


def main(arguments: Sequence[str] | None = None) -> int:
    """Play a soak and say what happened."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="python -m tests.system.soak", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--tasks", type=int, default=500, help="that wait at the same time (default: 500)")
    parser.add_argument("--minutes", type=float, default=30.0, help="of actions (default: 30)")
    parser.add_argument("--triggerers", type=int, choices=(1, 2), default=2, help="(default: 2)")
    parser.add_argument("--seed", type=int, help="of all choices (default: a random one)")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="where figures go")
    parser.add_argument("--json", action="store_true", help="print what happened as one line")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in this new folder and keep it")
    parser.add_argument(
        "--patience",
        type=float,
        metavar="X",
        help="factor by which everything may take longer than on two idle cores (default: measured)",
    )
    options = parser.parse_args(given)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    folder = options.keep or Path(tempfile.mkdtemp(prefix="airflow-amt-soak-"))

    def say(line: str) -> None:
        sys.stderr.write(f"{time.strftime('%H:%M:%S', time.gmtime())} {line}\n")
        sys.stderr.flush()

    # Ended from outside, it leaves no process behind either.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    patience = options.patience or measured_patience()
    say(f"seed {seed}, patience {patience:.1f}, in {folder}")
    size = Size.of(options.tasks, options.minutes, options.triggerers)
    try:
        figures = soak(folder / "world", size, seed, patience, say)
    except ClusterError as error:
        say(f"{error}\nEverything is kept in {folder}")
        return 1
    shown = " ".join(["python -m tests.system.soak", *_shown(given, seed)])
    figures = {"command": shown, "seed": seed, "tasks_at_a_time": size.tasks, **figures}
    options.results.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    for one in figures["wrong"]:
        say(one)
    sys.stdout.write(json.dumps(figures, indent=None if options.json else 2) + "\n")
    if figures["wrong"]:
        say(f"{len(figures['wrong'])} things are wrong; everything is kept in {folder}")
        return 1
    if options.keep is None:
        shutil.rmtree(folder)
    return 0


def _shown(given: Sequence[str], seed: int) -> list[str]:
    """Return the arguments without names of files, with the seed."""
    shown: list[str] = []
    skip = False
    for one in given:
        if not skip and one not in ("--results", "--keep", "--seed", "--patience"):
            shown.append(one)
        skip = one in ("--results", "--keep", "--seed", "--patience")
    return [*shown, "--seed", str(seed)]


if __name__ == "__main__":
    sys.exit(main())
