"""Kill parts of a live Airflow at named points of a tuning job's life: is there ever more than one job?

``python -m tests.system.crash_matrix [--runs 200] [--seed N] [--shard I/N] [--resume] [--json]``

A scheduler with its workers, a triggerer, a DAG processor and two API servers run on PostgreSQL, against an
embedded AMT. A *run* is one DAG run with one tuning job. It is held up at its point (see `POINTS`; the code
of `airflow_amt` is not changed, see `tests/system/stop_points`); then a victim is killed with SIGKILL, and
either Airflow retries the task or a person clears it: the cell of the run. Many runs share one kill, and
differ in mode, retries, in what the tuning job comes to and when. A *round* is one kill with all its runs.

What must hold is judged from the embedded AMT's request log and state, the operating system's list of
processes and Airflow's REST API, never from what the provider says:

- a task instance never has two active tuning jobs, or training processes of two;
- it has one tuning job in all; two only if a person cleared the task when its result had been delivered (AWS
  had been told so by a tag), or while it was alive, and the first had been stopped for that;
- it ends in success, with the result that its last tuning job certainly comes to; whoever lives on records
  that this was delivered;
- at the end nothing trains.

Then one of two triggerers is frozen and thawed (``--frozen-seconds``), which must stop no tuning job.

Results are appended to a file, a line a run; ``--resume`` goes on with it. The exit code is 0 only if all
held and each cell was hit often enough (of a shard: its share). ``--without-adoption`` takes the adoption of
tuning jobs out, which must be noticed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from airflow_amt.local import RunningServer, running
from tests.system.cluster import RUN_TERMINAL, AirflowCluster, ClusterError
from tests.system.crash_dags.crash import TARGET
from tests.system.postgres import Postgres

ROOT = Path(__file__).parents[2]
DAGS_FOLDER = Path(__file__).parent / "crash_dags"
HOOKS_FOLDER = Path(__file__).parent / "stop_points"
REGION = "eu-central-1"
CLOCK_RATE = 20.0
TASK_ID = "tune"
MODES = ("sync", "deferred")
RETRIES = 3

#: In the order of a task's life. Names of `tests/system/stop_points`, but `waiting`: seen from outside.
POINTS = (
    "before_create",  # nothing was sent
    "unanswered",  # AWS has created the tuning job, the answer has not been read
    "answered",  # nothing has been stored
    "waiting",  # deferred; of a waiting task: between two polls
    "resumed",  # execute_complete begins
    "returning",  # the outcome has been read, Airflow has not accepted the success
    "accepted",  # it has, nobody has recorded that the result was delivered
)
VICTIMS = ("worker", "triggerer", "scheduler")
FOLLOWS = ("retry", "clear")
HITS = 5

#: Reached only when the tuning job is over.
_LATE = frozenset({"resumed", "returning", "accepted"})

#: Seconds after which Airflow takes something for lost: longer than a machine with two cores to itself holds
#: anybody up, shorter than the defaults of 30 s and 5 minutes.
_LOST_SECONDS = 12.0
#: An import of Airflow's operators takes so long on such a machine; where it takes longer, all waits do.
_IMPORT_SECONDS = 3.0


def settings(patience: float) -> dict[str, str]:
    """Return Airflow's settings.

    :param patience: factor by which everything may take longer.
    """
    lost = str(math.ceil(patience * _LOST_SECONDS))
    return {
        "CORE__PARALLELISM": "48",
        "SCHEDULER__TASK_INSTANCE_HEARTBEAT_SEC": "2",
        "WORKERS__MIN_HEARTBEAT_INTERVAL": "2",
        "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": lost,
        "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
        "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "3",
        "SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": lost,
        "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": lost,
        "WORKERS__EXECUTION_API_TIMEOUT": str(math.ceil(patience * 30)),
    }


def measured_patience() -> float:
    """Measure how much slower than two idle cores this machine is now; 1 if it is not."""
    command = [
        sys.executable,
        "-c",
        "import airflow.sdk.bases.operator, airflow.sdk.execution_time.task_runner",
    ]
    began = time.monotonic()
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return min(10.0, max(1.0, (time.monotonic() - began) / _IMPORT_SECONDS))


#: How this campaign calls itself in the request log.
_AGENT = "crash-matrix"
#: How long the scheduler or a triggerer may be without a heartbeat before it is started again.
SICK_SECONDS = 30.0
REACH_SECONDS = 150.0
END_SECONDS = 240.0
#: Between a success and the record that its result was delivered.
DELIVERY_SECONDS = 8.0
#: After a thaw: the triggerer notices within two heartbeats, and a kill that it reports takes 30 s at most.
THAW_SECONDS = 15.0
_POLL_SECONDS = 0.5
_LOOK_SECONDS = 3.0


class ViolationError(Exception):
    """Something that must not happen did."""


# --- what is planned -------------------------------------------------------------------------------


@dataclass(frozen=True, order=True, slots=True)
class Cell:
    """Where the run is, what is killed then, and what follows."""

    point: str
    victim: str
    follow: str

    def __str__(self) -> str:
        return f"{self.point}/{self.victim}/{self.follow}"


CELLS = tuple(Cell(point, victim, follow) for point in POINTS for victim in VICTIMS for follow in FOLLOWS)


@dataclass(kw_only=True)
class Run:
    """One DAG run.

    :param kill_supervisor: a worker's supervisor is killed with it, as by the loss of a machine; otherwise it
        is there to report the end.
    :param clear_when: `at once` after the kill, or when the task is `over`.
    :param gate_seconds: when the training jobs may end, after the kill; those of a late point may at once.
    """

    cell: Cell
    number: int
    mode: str
    retries: int
    results: list[float]
    reason: str
    stop_point: str
    kill_supervisor: bool
    clear_when: str
    gate_seconds: float
    #: Whether a try may adopt the tuning job of an earlier one.
    adoption: bool = True
    run_id: str = ""
    #: State of the task instance when the kill came and when it was cleared; the monotonic time of that.
    killed_state: str | None = None
    cleared_state: str | None = None
    cleared_at: float | None = None
    #: Whether AWS knew by then that the result had been delivered.
    delivered_before: bool = False
    violations: list[str] = field(default_factory=list)
    jobs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def dag_id(self) -> str:
        """The DAG that has its mode and retries."""
        return f"crash_{self.mode}_{self.retries}"

    @property
    def records_delivery(self) -> bool:
        """Whether the process that brought the success lived to record the delivery."""
        killed = self.cell.point == "accepted" and self.cell.victim in ("worker", "scheduler")
        return not killed or self.cleared_at is not None

    @property
    def best(self) -> float:
        """The objective of its best training job."""
        return max(self.results)


def draw_run(draw: random.Random, cell: Cell, number: int) -> Run:
    """Choose everything about a run that its cell leaves open."""
    mode = draw.choice(MODES)
    if cell.point == "resumed" or cell.victim == "triggerer":
        mode = "deferred"
    elif cell.point == "waiting" and cell.victim == "worker":
        # A deferred task has no worker.
        mode = "sync"
    # No two runs have the same, so that no result can be taken for another one's.
    unique = round(0.5 + number / 10_000, 4)
    if draw.random() < 0.5:
        results, reason = [0.1, 0.2, unique], "max_training_jobs"
    else:
        results, reason = [0.3, round(TARGET + number / 100_000, 5)], "target_reached"
    return Run(
        cell=cell,
        number=number,
        mode=mode,
        # After a kill Airflow must not act when a person is to; a scheduler's end is mended without a retry.
        retries=RETRIES if cell.follow == "retry" else draw.choice((0, RETRIES)),
        results=results,
        reason=reason,
        stop_point=draw.choice(("returning_result", "returning"))
        if cell.point == "returning"
        else cell.point,
        kill_supervisor=draw.random() < 0.5,
        clear_when=draw.choice(("at once", "over")),
        gate_seconds=draw.choice((0.0, 0.0, draw.uniform(0, 25))),
    )


def draw_cells(draw: random.Random, hits: Mapping[Cell, int], most: int, victim: str) -> list[Cell]:
    """Choose the cells of a round: those of the victim, first the ones hit least often, at random."""
    cells = [cell for cell in CELLS if cell.victim == victim]
    order = sorted(cells, key=lambda cell: (hits[cell], draw.random()))
    return [order[index % len(order)] for index in range(most)]


# --- the world -------------------------------------------------------------------------------------


class World:
    """PostgreSQL, an embedded AMT and a live Airflow, for the time of a `with` block.

    :param folder: gets everything; must be empty.
    :param patience: factor by which everything may take longer than on two idle cores.
    """

    def __init__(self, folder: Path, patience: float) -> None:
        self.folder = folder
        self.stop_points = folder / "stop-points"
        self.patience = patience
        self._stack = contextlib.ExitStack()
        self.amt: RunningServer
        self.cluster: AirflowCluster
        self.client: Any
        #: Components that ended or hung without being killed, and were started again.
        self.revived: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._calls_read = 0
        self._looked_at = 0.0

    def __enter__(self) -> Self:
        self.stop_points.mkdir(parents=True)
        with contextlib.ExitStack() as stack:
            postgres = stack.enter_context(Postgres())
            self.amt = stack.enter_context(
                running(
                    self.folder / "amt",
                    clock_rate=CLOCK_RATE,
                    request_log=self.folder / "requests.jsonl",
                    roots=[ROOT],
                )
            )
            self.client = self.amt.client(REGION, user_agent_extra=_AGENT)
            stack.callback(self.client.close)
            environment = {
                "PYTHONPATH": os.pathsep.join((str(HOOKS_FOLDER), str(ROOT))),
                "AMT_STOP_POINTS": str(self.stop_points),
            }
            self.cluster = stack.enter_context(
                AirflowCluster(
                    home=self.folder / "airflow",
                    dags_folder=DAGS_FOLDER,
                    amt=self.amt,
                    region_name=REGION,
                    database_url=postgres.url,
                    settings=settings(self.patience),
                    start_timeout_seconds=self.patience * 120,
                    # A campaign takes hours, and counts them itself.
                    revivals=None,
                    environment=environment,
                )
            )
            for mode in MODES:
                for retries in (0, RETRIES):
                    self.cluster.wait_dag(f"crash_{mode}_{retries}", self.patience * 60)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def calls(self) -> list[dict[str, Any]]:
        """Return the calls of the request log, but for this campaign's own."""
        with (self.folder / "requests.jsonl").open("rb") as file:
            file.seek(self._calls_read)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # it is being written
                self._calls_read += len(line)
                call = json.loads(line)
                if _AGENT not in (call["user_agent"] or ""):
                    self._calls.append(call)
        return self._calls

    def tuning_jobs(self, since: datetime | None = None) -> dict[str, list[dict[str, Any]]]:
        """Return the descriptions of tuning jobs with their tags, oldest first, by DAG run id.

        :param since: only those created later, by the embedded AMT's clock.
        """
        found: dict[str, list[dict[str, Any]]] = {}
        options = {} if since is None else {"CreationTimeAfter": since}
        pages = self.client.get_paginator("list_hyper_parameter_tuning_jobs").paginate(
            SortBy="CreationTime", SortOrder="Ascending", MaxResults=100, **options
        )
        for summary in (one for page in pages for one in page["HyperParameterTuningJobSummaries"]):
            arn = summary["HyperParameterTuningJobArn"]
            tags = {tag["Key"]: tag["Value"] for tag in self.client.list_tags(ResourceArn=arn)["Tags"]}
            description = self.client.describe_hyper_parameter_tuning_job(
                HyperParameterTuningJobName=summary["HyperParameterTuningJobName"]
            )
            found.setdefault(tags["airflow-amt:run-id"], []).append({**description, "tags": tags})
        return found

    def newest(self) -> datetime | None:
        """Return when the newest tuning job was created."""
        summaries = self.client.list_hyper_parameter_tuning_jobs(
            SortBy="CreationTime", SortOrder="Descending", MaxResults=1
        )["HyperParameterTuningJobSummaries"]
        return summaries[0]["CreationTime"] if summaries else None

    def revive(self) -> None:
        """Start what ended or hangs again, as whatever looks after an Airflow in production does."""
        if time.monotonic() < self._looked_at + _LOOK_SECONDS:
            return
        self._looked_at = time.monotonic()
        self.revived += self.cluster.revive(self.patience * SICK_SECONDS)

    def training_processes(self) -> dict[str, str]:
        """Return the living training processes' training job names, and the tuning jobs' names of these."""
        found = {}
        for process in psutil.Process(self.amt.pid).children(recursive=True):
            try:
                name = process.environ().get("TRAINING_JOB_NAME", "")
                if name and process.status() != psutil.STATUS_ZOMBIE:
                    found[name] = name.rsplit("-", 2)[0]
            except psutil.Error:
                continue  # it ended between the listing and the question
        return found


class Watch:
    """Looks all the time for training processes of two tuning jobs of one owner."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch")
        self._client = world.amt.client(REGION, user_agent_extra=_AGENT)
        self._owners: dict[str, str] = {}
        self.violations: dict[str, str] = {}
        self.error: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._client.close()
        if self.error is not None and exc is None:
            raise self.error

    def _look(self) -> None:
        try:
            while not self._stop.wait(0.7):
                training: dict[str, set[str]] = {}
                for job in self._world.training_processes().values():
                    training.setdefault(self._owner(job), set()).add(job)
                for owner, jobs in training.items():
                    if len(jobs) > 1:
                        self.violations[owner] = f"at the same time processes train for {sorted(jobs)}"
        except BaseException as error:  # noqa: BLE001 - raised where the watch ends
            self.error = error

    def _owner(self, job: str) -> str:
        if job not in self._owners:
            arn = self._client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=job)[
                "HyperParameterTuningJobArn"
            ]
            tags = self._client.list_tags(ResourceArn=arn)["Tags"]
            self._owners[job] = next(tag["Value"] for tag in tags if tag["Key"] == "airflow-amt:run-id")
        return self._owners[job]


# --- a round ---------------------------------------------------------------------------------------


class Round:
    """One kill and the runs that share it."""

    def __init__(self, world: World, draw: random.Random, runs: Sequence[Run]) -> None:
        self._world = world
        self._cluster = world.cluster
        self._draw = draw
        self.runs = runs
        self.victim = runs[0].cell.victim
        self._killed_at = 0.0
        self._since: datetime | None = None
        self._succeeded_at: dict[str, float] = {}

    def play(self, strike: Callable[[], None] | None = None) -> None:
        """Start all runs, kill, let follow what follows, and judge; violations are noted in the runs.

        :param strike: what happens instead of the kill.
        :raises ViolationError: the runs did not come to their points.
        """
        self._since = self._world.newest()
        with Watch(self._world) as watch:
            self._start()
            self._wait(
                self._all_there, self._world.patience * REACH_SECONDS, "not all runs reached their points"
            )
            time.sleep(self._draw.uniform(0, 1))
            for run_id, state in self._states().items():
                next(run for run in self.runs if run.run_id == run_id).killed_state = state
            (strike or self._kill)()
            self._killed_at = time.monotonic()
            self._follow()
        for run in self.runs:
            if run.run_id in watch.violations:
                run.violations.append(watch.violations[run.run_id])
        self._judge()

    def _folder(self, run: Run) -> Path:
        return self._world.stop_points / run.run_id

    def _gate(self, run: Run) -> Path:
        return self._world.folder / f"gate-{run.number}"

    def _start(self) -> None:
        for run in self.runs:
            run.run_id = f"crash-{run.number}"
            self._folder(run).mkdir()
            if not run.adoption:
                (self._folder(run) / "without-adoption").touch()
            if run.cell.point != "waiting":
                (self._folder(run) / "plan").write_text(run.stop_point)
            if run.cell.point in _LATE and run.cell.point != "resumed":
                self._gate(run).touch()
            conf = {"results": json.dumps(run.results), "gate": str(self._gate(run))}
            self._cluster.request(
                "POST",
                f"/dags/{run.dag_id}/dagRuns",
                body={"logical_date": None, "dag_run_id": run.run_id, "conf": conf},
            )

    def _states(self) -> dict[str, str | None]:
        """Return the states of all task instances of the round by run id, in one request."""
        answer = self._cluster.request(
            "POST",
            "/dags/~/dagRuns/~/taskInstances/list",
            body={"dag_run_ids": [run.run_id for run in self.runs], "page_limit": 100},
        )
        return {one["dag_run_id"]: one["state"] for one in answer["task_instances"]}

    def _wait(self, reached: Callable[[], bool], seconds: float, otherwise: str) -> None:
        deadline = time.monotonic() + seconds
        while not reached():
            self._world.revive()
            if time.monotonic() > deadline:
                states = self._states()
                details = ", ".join(
                    f"{one.run_id} {one.cell} {one.mode} {states.get(one.run_id)}" for one in self.runs
                )
                raise ViolationError(f"{otherwise} within {seconds:g} s: {details}")
            time.sleep(_POLL_SECONDS)

    def _all_there(self) -> bool:
        described: Counter[str] = Counter()
        if any(run.cell.point == "waiting" for run in self.runs):
            names = self._names()
            for call in self._world.calls():
                if call["operation"] == "DescribeHyperParameterTuningJob" and call["status"] == 200:
                    described[names.get(call["tuning_job"], "")] += 1
        states = self._states()
        for run in self.runs:
            # A tuning job that ended before its task had deferred would never resume one.
            if run.cell.point == "resumed" and states.get(run.run_id) == "deferred":
                self._gate(run).touch()
        return all(self._is_there(run, described[run.run_id], states.get(run.run_id)) for run in self.runs)

    def _names(self) -> dict[str, str]:
        """Return the run ids by the names of their tuning jobs."""
        return {
            job["HyperParameterTuningJobName"]: run_id
            for run_id, jobs in self._world.tuning_jobs(self._since).items()
            for job in jobs
        }

    def _is_there(self, run: Run, described: int, state: str | None) -> bool:
        if run.cell.point != "waiting":
            return (self._folder(run) / "reached").exists()
        # The first is that of the first poll.
        if run.mode == "deferred":
            return state == "deferred"
        return described >= 2 and state == "running"

    # -- the kill -------------------------------------------------------------------------------------

    def _kill(self) -> None:
        if self.victim == "worker":
            for run in self.runs:
                self._kill_worker(run)
            return
        for run in self.runs:
            self._check_held(run)
        self._cluster.kill_component(self.victim)
        time.sleep(self._draw.choice((0.0, self._draw.uniform(0, 3))))
        self._cluster.start_component(self.victim)

    def _check_held(self, run: Run) -> psutil.Process | None:
        """Return the task process that is held up at its point; a run that waits has none."""
        if run.cell.point == "waiting":
            return None
        said = json.loads((self._folder(run) / "reached").read_text())
        try:
            process = psutil.Process(said["pid"])
        except psutil.NoSuchProcess:
            raise ViolationError(f"{run.run_id} {run.cell}: its process ended before the kill") from None
        return process

    def _kill_worker(self, run: Run) -> None:
        process = self._check_held(run) or self._task_process(run)
        supervisor = process.parent() if run.kill_supervisor else None
        victims = [one for one in (supervisor, process) if one is not None]
        for one in victims:
            one.suspend()
        for one in victims:
            one.kill()

    def _task_process(self, run: Run) -> psutil.Process:
        """Return the process of a task that waits: its supervisor has this run's log open."""
        scheduler = self._cluster.components["scheduler"].process.pid
        for process in psutil.Process(scheduler).children(recursive=True):
            try:
                if (
                    any(f"run_id={run.run_id}/" in one.path for one in process.open_files())
                    and process.children()
                ):
                    return process.children()[0]
            except psutil.Error:
                continue  # it ended between the listing and the question
        raise ViolationError(f"{run.run_id} {run.cell}: no process of it is there")

    # -- what follows ---------------------------------------------------------------------------------

    def _follow(self) -> None:
        for run in self.runs:
            (self._folder(run) / "release").touch()
        deadline = self._killed_at + self._world.patience * END_SECONDS
        waiting = list(self.runs)
        while waiting:
            self._world.revive()
            now, states = time.monotonic(), self._states()
            if now > deadline:
                for run in waiting:
                    log = self._cluster.task_log(run.dag_id, run.run_id, TASK_ID)
                    run.violations.append(
                        f"{now - self._killed_at:.0f} s after the kill its task is "
                        f"{states.get(run.run_id)!r}; log:\n{log[-3000:]}"
                    )
                return
            for run in waiting:
                if now >= self._killed_at + run.gate_seconds:
                    self._gate(run).touch()
            waiting = [run for run in waiting if not self._is_over(run, states.get(run.run_id))]
            time.sleep(_POLL_SECONDS)

    def _is_over(self, run: Run, state: str | None) -> bool:
        if run.cell.follow == "retry":
            return state in _OVER
        if run.cleared_at is not None:
            if state is None and self._clear_was_lost(run):
                self._cluster.clear(run.dag_id, run.run_id, [TASK_ID])
            return state in _OVER
        if run.clear_when == "at once" or state == "failed" or (state == "success" and self._settled(run)):
            self._clear(run, state)
        return False

    def _clear_was_lost(self, run: Run) -> bool:
        """Whether the DAG run is over though its only task was cleared.

        Seen with 3.3.2: the scheduler had looked at the task before the clear, and ended the DAG run after
        it. A person would clear once more.
        """
        return self._cluster.run_state(run.dag_id, run.run_id) in RUN_TERMINAL

    def _clear(self, run: Run, state: str | None) -> None:
        run.delivered_before = any(_DELIVERED_TAG in job["tags"] for job in self._jobs(run))
        began = time.monotonic()
        try:
            self._cluster.clear(run.dag_id, run.run_id, [TASK_ID])
        except ClusterError as error:
            # PostgreSQL found Airflow's own transactions in a deadlock and undid this one: asked for again.
            if "Database error" not in str(error):
                raise
            return
        run.cleared_state, run.cleared_at = state, began

    def _settled(self, run: Run) -> bool:
        """Whether whatever comes after a success has been done, or will not be done any more."""
        if run.run_id not in self._succeeded_at:
            self._succeeded_at[run.run_id] = time.monotonic()
        if time.monotonic() - self._succeeded_at[run.run_id] > self._world.patience * DELIVERY_SECONDS:
            return True
        return any(_DELIVERED_TAG in job["tags"] for job in self._jobs(run))

    def _jobs(self, run: Run) -> list[dict[str, Any]]:
        return self._world.tuning_jobs(self._since).get(run.run_id, [])

    # -- the judgement --------------------------------------------------------------------------------

    def _wait_for_deliveries(self) -> None:
        """Wait until all that lived to record the delivery of their results have done so."""
        owing = [run for run in self.runs if run.records_delivery]
        deadline = time.monotonic() + self._world.patience * DELIVERY_SECONDS
        while owing and time.monotonic() < deadline:
            everything = self._world.tuning_jobs(self._since)
            owing = [
                run for run in owing if _DELIVERED_TAG not in everything.get(run.run_id, _NONE)[-1]["tags"]
            ]
            time.sleep(_POLL_SECONDS)
        for run in owing:
            run.violations.append("it succeeded, and nobody recorded that its result was delivered")

    def _judge(self) -> None:
        self._wait_for_deliveries()
        everything = self._world.tuning_jobs(self._since)
        calls = self._world.calls()
        for run in self.runs:
            run.jobs = [_summary(job) for job in everything.get(run.run_id, [])]
            try:
                judge_jobs(run, everything.get(run.run_id, []), calls)
                self._judge_result(run, everything.get(run.run_id, []))
            except ViolationError as violation:
                run.violations.append(str(violation))
        left = self._world.training_processes()
        for run in self.runs:
            for training, job in left.items():
                if any(one["name"] == job for one in run.jobs):
                    run.violations.append(f"the training process of {training} is left")

    def _judge_result(self, run: Run, jobs: Sequence[Mapping[str, Any]]) -> None:
        state = self._cluster.task_state(run.dag_id, run.run_id, TASK_ID)
        _must(
            state == "success",
            f"the task is {state!r}; log:\n{self._cluster.task_log(run.dag_id, run.run_id, TASK_ID)[-2500:]}",
        )
        last = jobs[-1]
        result = self._cluster.xcom(run.dag_id, run.run_id, TASK_ID)
        outcome = json.loads(result) if isinstance(result, str) else result
        best = (outcome["best_training_job"] or {}).get("objective")
        _must(
            (outcome["tuning_job_name"], outcome["reason"], outcome["status"])
            == (last["HyperParameterTuningJobName"], run.reason, "Completed")
            and best is not None
            and math.isclose(best, run.best, rel_tol=1e-6),
            f"its result is {outcome['tuning_job_name']} {outcome['status']} {outcome['reason']} {best}, not "
            f"{last['HyperParameterTuningJobName']} Completed {run.reason} {run.best}",
        )
        counters = last["TrainingJobStatusCounters"]
        _must(
            last["HyperParameterTuningJobStatus"] == "Completed"
            and counters["Completed"] == len(run.results),
            f"its last tuning job is {_summary(last)} with {counters}",
        )


def judge_jobs(run: Run, jobs: Sequence[Mapping[str, Any]], calls: Sequence[Mapping[str, Any]]) -> None:
    """Judge the tuning jobs of a run.

    :param run: the run, over.
    :param jobs: descriptions of all its tuning jobs with their `tags`, oldest first.
    :param calls: the request log.
    :raises ViolationError: there was more than one when there must not be, or one is not over.
    """
    names = [job["HyperParameterTuningJobName"] for job in jobs]
    created = [
        call["tuning_job"]
        for call in calls
        if call["operation"] == "CreateHyperParameterTuningJob"
        and call["carried_out"]
        and call["tuning_job"] in names
    ]
    _must(created == names, f"calls created {created}, there are {names}")
    _must(bool(jobs), "it has no tuning job")
    for job in jobs:
        _must(
            job["HyperParameterTuningJobStatus"] in ("Completed", "Stopped", "Failed"),
            f"{job['HyperParameterTuningJobName']} is {job['HyperParameterTuningJobStatus']} at the end",
        )
    for before, after in pairwise(jobs):
        _must(
            before["HyperParameterTuningEndTime"] <= after["CreationTime"],
            f"two are active at once: {[_summary(one) for one in (before, after)]}",
        )
    if run.cleared_at is None:
        _must(len(jobs) == 1, f"nobody cleared it, yet it has {[_summary(one) for one in jobs]}")
        return
    first = names[0]
    stopped = [
        call
        for call in calls
        if call["operation"] == "StopHyperParameterTuningJob"
        and call["tuning_job"] == first
        and call["carried_out"]
    ]
    _must(len(jobs) <= 2, f"one clear, yet it has {[_summary(one) for one in jobs]}")
    if len(jobs) == 1:
        _must(
            not run.delivered_before,
            "it was cleared when its result was delivered, yet it has one tuning job only",
        )
        return
    # The state may have changed between the look at it and the clear; the tag comes only after success.
    for_that = (
        jobs[0]["HyperParameterTuningJobStatus"] == "Stopped"
        and any(call["monotonic"] >= run.cleared_at for call in stopped)
        and run.cleared_state not in _OVER
    )
    _must(
        for_that or _DELIVERED_TAG in jobs[0]["tags"],
        f"it was cleared when it was {run.cleared_state!r}, yet it has {[_summary(one) for one in jobs]}",
    )


_OVER = frozenset({"success", "failed"})
_DELIVERED_TAG = "airflow-amt:delivered"
#: Stands for the tuning jobs of a run that has none.
_NONE: Sequence[Mapping[str, Any]] = ({"tags": {}},)


def _must(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ViolationError(otherwise)


def _summary(job: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": job["HyperParameterTuningJobName"],
        "status": job["HyperParameterTuningJobStatus"],
        "created": job["CreationTime"].isoformat(),
        "ended": job["HyperParameterTuningEndTime"].isoformat()
        if "HyperParameterTuningEndTime" in job
        else None,
        "tags": {
            key.partition(":")[2]: value
            for key, value in job["tags"].items()
            if key.rpartition(":")[2] in ("generation", "try", "delivered", "stopped-by")
        },
    }


# --- the campaign ----------------------------------------------------------------------------------


class Results:
    """The lines of a results file: one for each run that was judged."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self.lines: list[dict[str, Any]] = []
        if file is not None and file.exists():
            # A campaign that was cut off may have left half a line.
            text = file.read_text(encoding="utf-8")
            whole = text[: text.rfind("\n") + 1]
            if whole != text:
                file.write_text(whole, encoding="utf-8")
            self.lines = [json.loads(line) for line in whole.splitlines()]

    def add(self, runs: Sequence[Run]) -> None:
        """Append the runs of a round."""
        self._append([{"kind": "run", **asdict(run), "ok": not run.violations} for run in runs])

    def add_frozen(self, runs: Sequence[Run], seconds: float) -> None:
        """Append what came of a frozen triggerer."""
        violations = [f"{run.run_id}: {what}" for run in runs for what in run.violations]
        said = {"runs": len(runs), "seconds": seconds, "violations": violations, "ok": not violations}
        self._append([{"kind": "frozen", "number": max(run.number for run in runs), **said}])

    def _append(self, new: Sequence[dict[str, Any]]) -> None:
        self.lines += new
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in new)

    @property
    def runs(self) -> list[dict[str, Any]]:
        """The lines of runs."""
        return [line for line in self.lines if line["kind"] == "run"]

    @property
    def frozen(self) -> list[dict[str, Any]]:
        """The lines of frozen triggerers."""
        return [line for line in self.lines if line["kind"] == "frozen"]

    @property
    def revived(self) -> dict[str, int]:
        """Components that had to be started again though nobody had killed them, and how often."""
        return dict(
            Counter(name for line in self.lines if line["kind"] == "revived" for name in line["names"])
        )

    def add_revived(self, names: Sequence[str]) -> None:
        """Append which components had to be started again though nobody had killed them."""
        if names:
            self._append([{"kind": "revived", "number": self.next_number - 1, "names": list(names)}])

    @property
    def next_number(self) -> int:
        """The number of the next run."""
        return 1 + max((line["number"] for line in self.lines), default=0)

    @property
    def hits(self) -> Counter[Cell]:
        """How often each cell was hit."""
        return Counter(Cell(**line["cell"]) for line in self.runs)

    @property
    def violations(self) -> list[str]:
        """What must not be."""
        return [
            f"{line['run_id']} {Cell(**line['cell'])} {line['mode']}: {what}"
            for line in self.runs
            for what in line["violations"]
        ] + [f"frozen triggerer: {what}" for line in self.frozen for what in line["violations"]]

    def figures(self) -> dict[str, Any]:
        """Return what happened, in short."""
        jobs = Counter(len(line["jobs"]) for line in self.runs)
        return {
            "runs": len(self.runs),
            "violations": self.violations,
            "cells": {str(cell): self.hits[cell] for cell in CELLS},
            "fewest_hits": min(self.hits[cell] for cell in CELLS),
            "modes": dict(sorted(Counter(line["mode"] for line in self.runs).items())),
            "tuning_jobs": sum(count * number for count, number in jobs.items()),
            "runs_by_tuning_jobs": {str(count): number for count, number in sorted(jobs.items())},
            "components_that_ended_by_themselves": self.revived,
            "frozen": [{key: line[key] for key in ("runs", "seconds", "ok")} for line in self.frozen],
        }


def campaign(
    world: World,
    results: Results,
    *,
    runs: int,
    hits: int,
    seed: int,
    at_a_time: int,
    victims: Sequence[str] = VICTIMS,
    adoption: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Play rounds until there are enough runs, and hits of each cell of these victims.

    :raises ViolationError: the campaign itself could not go on; what a run violates is in its result.
    """
    cells = [cell for cell in CELLS if cell.victim in victims]
    while (missing := _missing(results, cells, runs, hits)) > 0:
        # A campaign that goes on draws anew, not the same again.
        draw = random.Random(f"{seed}/{results.next_number}")
        sums = {one: sum(results.hits[cell] for cell in cells if cell.victim == one) for one in victims}
        victim = draw.choice([one for one in victims if sums[one] == min(sums.values())])
        drawn = draw_cells(draw, results.hits, min(at_a_time, missing), victim)
        first = results.next_number
        planned = [draw_run(draw, cell, first + index) for index, cell in enumerate(drawn)]
        for run in planned:
            run.adoption = adoption
        began = time.monotonic()
        Round(world, draw, planned).play()
        results.add(planned)
        results.add_revived(world.revived)
        world.revived.clear()
        say(
            f"{victim} killed under {len(planned)} runs in {time.monotonic() - began:.0f} s; "
            f"{len(results.runs)} runs, each cell {min(results.hits[cell] for cell in cells)} times or more, "
            f"{len(results.violations)} violations"
        )
        _say_violations(planned, say)


def _missing(results: Results, cells: Sequence[Cell], runs: int, hits: int) -> int:
    """Return how many runs are missing yet."""
    return max(runs - len(results.runs), sum(max(0, hits - results.hits[cell]) for cell in cells))


def _say_violations(runs: Sequence[Run], say: Callable[[str], None]) -> None:
    for run in runs:
        for violation in run.violations:
            about = f"{run.cell} {run.mode}, retries {run.retries}, cleared {run.cleared_state}"
            say(f"  {run.run_id} {about}: {violation}")


def frozen_triggerer(
    world: World,
    results: Results,
    *,
    runs: int,
    seconds: float,
    first: int,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Freeze one of two triggerers until its triggers are given to the other, and thaw it.

    Airflow (3.3) then reports a kill to triggers of tasks that nobody touched: their tuning jobs must go on.

    :param first: number of the first run; no other run of this world has these.
    """
    draw = random.Random(first)
    cell = Cell("waiting", "triggerer", "retry")
    planned = [draw_run(draw, cell, first + index) for index in range(runs)]
    for run in planned:
        # Nothing may end before the triggerer has been thawed.
        run.gate_seconds = world.patience * THAW_SECONDS
    cluster = world.cluster
    # The other triggerer must have had the time to take its triggers over.
    seconds = max(seconds, world.patience * _LOST_SECONDS + 10)

    def freeze() -> None:
        cluster.start_component("triggerer:2")
        cluster.signal_component("triggerer", signal.SIGSTOP)
        time.sleep(seconds)
        cluster.signal_component("triggerer", signal.SIGCONT)

    try:
        Round(world, draw, planned).play(freeze)
    finally:
        if "triggerer:2" in cluster.components:
            cluster.stop_component("triggerer:2", grace_seconds=0)
    stopped = {
        call["tuning_job"] for call in world.calls() if call["operation"] == "StopHyperParameterTuningJob"
    }
    for run in planned:
        run.violations += [
            f"the healthy {job['name']} was stopped" for job in run.jobs if job["name"] in stopped
        ]
    results.add_frozen(planned, seconds)
    say(f"a triggerer was frozen for {seconds:g} s under {runs} runs; {len(results.violations)} violations")
    _say_violations(planned, say)


def _shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with 1 <= I <= N, as 2/3")
    return int(number), int(count)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a campaign and say what happened."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.system.crash_matrix", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--runs", type=int, default=200, help="in all shards together (default: 200)")
    parser.add_argument(
        "--hits", type=int, default=HITS, help=f"of each cell, in all shards (default: {HITS})"
    )
    parser.add_argument("--at-a-time", type=int, default=14, metavar="N", help="runs that share a kill")
    parser.add_argument("--victim", action="append", choices=VICTIMS, help="kill only these; may be repeated")
    parser.add_argument(
        "--patience",
        type=float,
        metavar="X",
        help="factor by which everything may take longer than on two idle cores (default: measured)",
    )
    parser.add_argument("--seed", type=int, help="of all choices (default: a random one)")
    parser.add_argument("--shard", type=_shard, default=(1, 1), metavar="I/N", help="a part of the runs only")
    parser.add_argument("--results", type=Path, metavar="FILE", help="where a line is appended for each run")
    parser.add_argument("--resume", action="store_true", help="go on with the results file")
    parser.add_argument(
        "--frozen-seconds", type=float, default=40.0, metavar="S", help="0: freeze no triggerer"
    )
    parser.add_argument("--without-adoption", action="store_true", help="take adoption out: must not succeed")
    parser.add_argument("--json", action="store_true", help="print what happened as one line")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in this new folder and keep it")
    options = parser.parse_args(arguments)
    shard, shards = options.shard
    file = options.results or Path(f"crash-matrix-{shard}-of-{shards}.jsonl")
    if file.exists() and not options.resume:
        parser.error(
            f"{file} exists: --resume goes on with it; otherwise remove it or choose other --results"
        )
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    folder = options.keep or Path(tempfile.mkdtemp(prefix="airflow-amt-crash-"))

    def say(line: str) -> None:
        sys.stderr.write(f"{time.strftime('%H:%M:%S', time.gmtime())} {line}\n")

    patience = options.patience or measured_patience()
    say(f"seed {seed}, patience {patience:.1f}, in {folder}, results in {file}")
    results = Results(file)
    victims = options.victim or VICTIMS
    runs, hits = math.ceil(options.runs / shards), math.ceil(options.hits / shards)
    try:
        with World(folder / "world", patience) as world:
            campaign(
                world,
                results,
                runs=runs,
                hits=hits,
                seed=seed + 1000 * shard,
                at_a_time=options.at_a_time,
                victims=victims,
                adoption=not options.without_adoption,
                say=say,
            )
            if options.frozen_seconds and shard == 1 and not results.frozen:
                frozen_triggerer(
                    world, results, runs=8, seconds=options.frozen_seconds, first=results.next_number, say=say
                )
            left = world.training_processes()
            if left:
                raise ViolationError(f"at the end these train: {sorted(left)}")
    except (ViolationError, ClusterError) as violation:
        say(f"{violation}\nEverything is kept in {folder}; --resume goes on")
        return 1
    sys.stdout.write(json.dumps(results.figures(), indent=None if options.json else 2) + "\n")
    if results.violations:
        say(f"{len(results.violations)} violations; everything is kept in {folder}")
        return 1
    if options.keep is None:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
