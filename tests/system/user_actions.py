"""What becomes of a tuning job when somebody, or Airflow itself, ends the task that waits for it.

The rows are what a person does through the REST API, what a limit does when its time is over, and what a
signal does to a process; each is tried with a task that waits on a worker and with one that is deferred,
on live Airflow processes. What became of the job is read from the embedded AMT and from the operating
system's list of processes, never from the provider.

`python -m tests.system.user_actions --airflow 3.1|3.2|3.3 [--only ROW]` makes an environment of that minor
if it is not the installed one, tries all rows, prints a table and keeps it in `tests/system/results`.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import airflow
import psutil
from botocore.exceptions import ClientError
from packaging.version import Version

from airflow_amt.local import RunningServer, running
from tests.system.cluster import TASK_TERMINAL, AirflowCluster, ClusterError

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
DAGS_FOLDER = Path(__file__).parent / "dags"
REGION = "eu-central-1"
CLOCK_RATE = 20.0

#: How long a stop may take. Airflow tells a worker's task within about 9 s and a trigger within 2 s; the rest
#: is for a busy machine.
STOP_SECONDS = 240.0
#: How long a job that shall run on is watched after all that happens to its task has happened, and one that
#: shall be stopped: the first is an observation, the second a limit.
WATCH_SECONDS = 15.0
SETTLE_SECONDS = 90.0
#: Each waits for a process to start and import Airflow, on a machine with two cores.
START_SECONDS = 300.0
#: Rows that are tried at the same time.
PARALLEL = 8
POLL_SECONDS = 0.5

#: Airflow notices lost triggerers and workers in seconds instead of minutes.
SETTINGS: Mapping[str, str] = {
    "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "WORKERS__MIN_HEARTBEAT_INTERVAL": "2",
}


class Fate(str, Enum):
    """What became of the tuning job."""

    STOPPED = "stopped"
    RUNS_ON = "runs on"
    ADOPTED = "adopted by the next try"
    REPLACED = "stopped, the next try started another"


@dataclass(frozen=True, slots=True)
class Started:
    """A task that waits for a tuning job of two endless training jobs.

    :param settle_seconds: how long the job is watched after all that happens to its task has happened.
    """

    mode: str
    dag_id: str
    run_id: str
    job: str
    path: Path
    processes: tuple[psutil.Process, ...]
    settle_seconds: float


@dataclass(slots=True)
class Observed:
    """What became of the tuning job and of the task.

    :param seconds: from the action (or the end of the limit) until the job was stopped.
    :param task_state: the task's last state; None if it is gone or has none.
    :param notes: what else was seen.
    """

    fate: Fate
    seconds: float | None = None
    task_state: str | None = None
    stopped_by: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)


class Stage:
    """A cluster and an embedded AMT, and what the rows do with them."""

    def __init__(self, cluster: AirflowCluster, amt: RunningServer, folder: Path) -> None:
        self.cluster = cluster
        self.amt = amt
        self.folder = folder
        self.client = amt.client(REGION)
        # The DAG run of every tuning job seen: its tag never changes.
        self._run_of: dict[str, str | None] = {}

    def start(self, dag: str, mode: str, settle_seconds: float) -> Started:
        """Start a DAG run and wait until its task waits, and its training processes run."""
        dag_id = f"{dag}_{mode}"
        path = Path(tempfile.mkdtemp(prefix=f"{dag_id}-", dir=self.folder))
        run_id = self.cluster.trigger_dag(dag_id, {"gate": str(path / "gate"), "fail": str(path / "fail")})
        states = {"deferred"} if mode == "deferred" else {"running"}
        self.cluster.wait_task(dag_id, run_id, "tune", states=states, timeout_seconds=START_SECONDS)
        name = self.cluster.wait_xcom(
            dag_id, run_id, "tune", "tuning_job_name", timeout_seconds=START_SECONDS
        )
        if mode == "deferred":
            self.wait_watched(dag_id, run_id, name)
        processes = self.wait_processes(name)
        return Started(mode, dag_id, run_id, name, path, tuple(processes), settle_seconds)

    def wait_watched(self, dag_id: str, run_id: str, name: str) -> None:
        """Wait until the trigger of the latest try has read the tuning job.

        It is told once before the task defers and once by the trigger. Until a triggerer has taken the
        trigger up, within about a second, Airflow deletes it without a call to anybody.
        """
        line = f"Tuning job {name}: InProgress"
        self.cluster.wait_task_log(dag_id, run_id, "tune", line, times=2, timeout_seconds=START_SECONDS)

    def wait_processes(self, name: str, number: int = 2) -> list[psutil.Process]:
        """Wait until the job has so many training processes."""
        found: list[psutil.Process] = []

        def reached() -> bool:
            nonlocal found
            found = training_processes(self.amt, name)
            return bool(len(found) == number)

        self.wait(reached, lambda: f"{name} has {len(found)} training processes", START_SECONDS)
        return found

    def status(self, name: str) -> str:
        """Return the tuning job's status, from AMT."""
        return str(self.describe(name)["HyperParameterTuningJobStatus"])

    def describe(self, name: str) -> dict[str, Any]:
        """Return the tuning job's description, from AMT."""
        answer: dict[str, Any] = self.client.describe_hyper_parameter_tuning_job(
            HyperParameterTuningJobName=name
        )
        return answer

    def tags(self, name: str) -> dict[str, str]:
        """Return the tuning job's tags."""
        arn = self.describe(name)["HyperParameterTuningJobArn"]
        return {tag["Key"]: tag["Value"] for tag in self.client.list_tags(ResourceArn=arn)["Tags"]}

    def jobs_of(self, run_id: str) -> dict[str, str]:
        """Return name and status of every tuning job that a DAG run started."""
        pages = self.client.get_paginator("list_hyper_parameter_tuning_jobs").paginate()
        statuses = {
            one["HyperParameterTuningJobName"]: one["HyperParameterTuningJobStatus"]
            for page in pages
            for one in page["HyperParameterTuningJobSummaries"]
        }
        for name in statuses.keys() - self._run_of.keys():
            # Other tests' jobs, made without Airflow, belong to no run.
            self._run_of[name] = self.tags(name).get("airflow-amt:run-id")
        return {name: status for name, status in statuses.items() if self._run_of[name] == run_id}

    def task_state(self, started: Started, task_id: str = "tune") -> str | None:
        """Return the task's state; None if it has none, or is gone."""
        path = f"/dags/{started.dag_id}/dagRuns/{started.run_id}/taskInstances/{task_id}"
        answer = self.cluster.request("GET", path, allow_missing=True)
        return None if answer is None else answer["state"]

    def watch(self, started: Started, *, until: Collection[str | None] | None, within: float) -> Observed:
        """See whether the job is stopped.

        :param until: states of the task, after which the job is watched only as long as it settles.
        :param within: seconds after which the job counts as one that runs on, whatever the task does.
        """
        began = time.monotonic()
        settled: float | None = None
        state: str | None = None
        while True:
            now = time.monotonic()
            status = self.status(started.job)
            if status == "Stopped":
                return self.stopped(started, now - began)
            state = self.task_state(started)
            if settled is None and until is not None and state in until:
                settled = now
            over = now - began > within or (settled is not None and now - settled > started.settle_seconds)
            # A stop that has begun is no job that runs on.
            if over and status == "InProgress":
                if until is not None and settled is None:
                    raise AssertionError(f"the task is {state} after {within:g} s, not one of {until}")
                alive = [process for process in started.processes if process.is_running()]
                if len(alive) != len(started.processes):
                    raise AssertionError(f"{started.job} is in progress with {len(alive)} training processes")
                return Observed(Fate.RUNS_ON, task_state=state)
            if now - began > within + STOP_SECONDS:
                raise AssertionError(f"{started.job} is {status} for {now - began:.0f} s")
            time.sleep(POLL_SECONDS)

    def stopped(self, started: Started, seconds: float) -> Observed:
        """Return what is to be said of a job that was stopped, and check that nothing of it is left."""
        left = training_processes(self.amt, started.job)
        left += [process for process in started.processes if process.is_running()]
        if left:
            raise AssertionError(f"{started.job} is stopped, but these processes are left: {left}")
        tags = self.tags(started.job)
        detail = tags.get("airflow-amt:stopped-by-detail")
        return Observed(
            Fate.STOPPED,
            seconds=round(seconds, 1),
            stopped_by=f"{tags.get('airflow-amt:stopped-by')}: {detail}",
        )

    def next_try(self, started: Started) -> Observed:
        """Wait until the second try waits for a tuning job, and say for which."""
        waiting = "deferred" if started.mode == "deferred" else "running"
        instance: dict[str, Any] = {}
        name: str | None = None
        jobs: dict[str, str] = {}

        def reached() -> bool:
            nonlocal instance, name, jobs
            instance = self.cluster.task_instance(started.dag_id, started.run_id, "tune")
            if instance["try_number"] != 2 or instance["state"] != waiting:
                return False
            try:
                name = self.cluster.xcom(started.dag_id, started.run_id, "tune", "tuning_job_name")
            except KeyError:
                return False
            jobs = self.jobs_of(started.run_id)
            # The name may still be the one that the first try pushed.
            return [job for job, status in jobs.items() if status != "Stopped"] == [name]

        def describe() -> str:
            return f"try {instance['try_number']} is {instance['state']} and waits for {name}; jobs: {jobs}"

        self.wait(reached, describe, START_SECONDS)
        if started.mode == "deferred":
            self.wait_watched(started.dag_id, started.run_id, str(name))
        # It must stay so: a late kill of the first try would stop the job now.
        since = time.monotonic()

        def stays_so() -> bool:
            nonlocal since
            if not reached():
                since = time.monotonic()
            return time.monotonic() - since > WATCH_SECONDS

        self.wait(stays_so, describe, START_SECONDS)
        return Observed(
            Fate.ADOPTED if name == started.job else Fate.REPLACED,
            task_state=instance["state"],
            notes={"jobs": len(jobs)},
        )

    def still_watched(self, started: Started) -> None:
        """Show that somebody still waits for the job: stopped by another hand, its task ends."""
        if self.status(started.job) == "InProgress":
            self.stop(started.job)
        self.cluster.wait_task(
            started.dag_id, started.run_id, "tune", states={"failed"}, timeout_seconds=START_SECONDS
        )
        outcome = self.cluster.xcom(started.dag_id, started.run_id, "tune", "outcome")
        if outcome["reason"] != "stopped_externally":
            raise AssertionError(outcome)

    def end(self, started: Started) -> None:
        """Leave nothing of a row behind."""
        if self.task_state(started) in ("running", "deferred", "queued", "scheduled", "up_for_retry"):
            self.cluster.set_task_state(started.dag_id, started.run_id, "tune", "failed")
        for name, status in self.jobs_of(started.run_id).items():
            if status == "InProgress":
                self.stop(name)

    def stop(self, name: str) -> None:
        """Stop a tuning job, unless somebody else is quicker."""
        try:
            self.client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
        except ClientError as error:
            if error.response["Error"]["Code"] != "ValidationException" or self.status(name) == "InProgress":
                raise

    def process_of(self, started: Started) -> psutil.Process:
        """Return the process on a worker that runs the task."""
        instance = self.cluster.task_instance(started.dag_id, started.run_id, "tune")
        return psutil.Process(int(instance["pid"]))

    @staticmethod
    def wait(reached: Callable[[], bool], describe: Callable[[], str], seconds: float) -> None:
        """Wait for a condition.

        :raises AssertionError: it did not come true in time.
        """
        deadline = time.monotonic() + seconds
        while not reached():
            if time.monotonic() > deadline:
                raise AssertionError(f"after {seconds:g} s: {describe()}")
            time.sleep(POLL_SECONDS)


def training_processes(amt: RunningServer, tuning_job_name: str) -> list[psutil.Process]:
    """Return the living training processes of a tuning job, from the operating system's own list."""
    found = []
    for process in psutil.Process(amt.pid).children(recursive=True):
        try:
            if process.environ().get("TRAINING_JOB_NAME", "").startswith(f"{tuning_job_name}-"):
                found.append(process)
        except psutil.NoSuchProcess:
            continue  # it ended between the listing and the question
    return found


# -- the rows ---------------------------------------------------------------------------------------------

#: Does what the row is about, and sees what becomes of the job.
Play = Callable[[Stage, Started], Observed]

ENDED = ("failed", "success", "skipped", "removed", None)


def _mark(state: str) -> Play:
    def play(stage: Stage, started: Started) -> Observed:
        stage.cluster.set_task_state(started.dag_id, started.run_id, "tune", state)
        return _ended(stage, started, state)

    return play


def _ended(stage: Stage, started: Started, *states: str | None) -> Observed:
    """Watch a job whose task was ended; the task must stay as it was marked."""
    observed = stage.watch(started, until=states, within=STOP_SECONDS)
    stage.wait(
        lambda: stage.task_state(started) in states,
        lambda: f"the task is {stage.task_state(started)}, not one of {states}",
        STOP_SECONDS,
    )
    observed.task_state = stage.task_state(started)
    return observed


def _clear(stage: Stage, started: Started) -> Observed:
    stage.cluster.clear(started.dag_id, started.run_id, ["tune"])
    return stage.next_try(started)


def _delete_run(stage: Stage, started: Started) -> Observed:
    try:
        stage.cluster.delete_run(started.dag_id, started.run_id)
    except ClusterError as refused:
        if "cannot be deleted in running state" not in str(refused):
            raise
    else:
        raise AssertionError("a running DAG run could be deleted")
    stage.cluster.set_run_state(started.dag_id, started.run_id, "failed")
    stage.cluster.delete_run(started.dag_id, started.run_id)
    return _ended(stage, started, None)


def _fail_run(stage: Stage, started: Started) -> Observed:
    stage.cluster.set_run_state(started.dag_id, started.run_id, "failed")
    return _ended(stage, started, "failed", "skipped")


def _let_pass(*states: str) -> Play:
    def play(stage: Stage, started: Started) -> Observed:
        observed = _ended(stage, started, *states)
        if observed.fate is Fate.STOPPED and started.dag_id.startswith(("task_limit", "job_limit")):
            outcome = stage.cluster.wait_xcom(started.dag_id, started.run_id, "tune", "outcome")
            observed.notes = {"outcome": outcome["reason"], "best": outcome["best_training_job"]}
        return observed

    return play


def _fail_sibling(stage: Stage, started: Started) -> Observed:
    (started.path / "fail").touch()
    return _ended(stage, started, "failed", "skipped")


def _pause(stage: Stage, started: Started) -> Observed:
    stage.cluster.pause(started.dag_id)
    observed = stage.watch(started, until=None, within=WATCH_SECONDS)
    if started.mode == "deferred":
        # Its trigger goes on watching, but a paused DAG's task is not resumed.
        stage.stop(started.job)
        stage.wait(
            lambda: stage.task_state(started) == "scheduled",
            lambda: f"the job is over and the task {stage.task_state(started)}",
            START_SECONDS,
        )
        time.sleep(WATCH_SECONDS)
        observed.notes = {"resumed while paused": stage.task_state(started) != "scheduled"}
        stage.cluster.pause(started.dag_id, False)
    stage.still_watched(started)
    return observed


def _term(*, parent: bool, retried: bool) -> Play:
    def play(stage: Stage, started: Started) -> Observed:
        process = stage.process_of(started)
        (process.parent() if parent else process).send_signal(signal.SIGTERM)  # type: ignore[union-attr]
        if retried:
            return stage.next_try(started)
        if parent and Version(minor()) < Version("3.3"):
            # The supervisor of LocalExecutor is a child of the scheduler and has its handler, which does
            # nothing in a child.
            observed = stage.watch(started, until=None, within=WATCH_SECONDS)
            stage.still_watched(started)
            return observed
        return _ended(stage, started, "failed")

    return play


def _with_teardown(press: Callable[[Stage, Started], None]) -> Play:
    """Press something and see whether the teardown beside the task runs, and what becomes of the job."""

    def play(stage: Stage, started: Started) -> Observed:
        press(stage, started)
        state = ""
        began = time.monotonic()

        def over() -> bool:
            nonlocal state
            state = str(stage.task_state(started, "stop"))
            return state in TASK_TERMINAL

        stage.wait(over, lambda: f"the teardown is {state}", START_SECONDS)
        observed = stage.watch(started, until=ENDED, within=STOP_SECONDS)
        if observed.seconds is not None:
            observed.seconds = round(time.monotonic() - began, 1)
        observed.task_state = stage.task_state(started)
        observed.notes = {"teardown": state}
        if state == "success":
            told = stage.cluster.xcom(started.dag_id, started.run_id, "stop")
            observed.notes["name"] = told["tuning_job_name"] == started.job
        return observed

    return play


def _press_task(state: str) -> Callable[[Stage, Started], None]:
    return lambda stage, started: stage.cluster.set_task_state(started.dag_id, started.run_id, "tune", state)


def _press_run(stage: Stage, started: Started) -> None:
    stage.cluster.set_run_state(started.dag_id, started.run_id, "failed")


def _press_sibling(stage: Stage, started: Started) -> None:
    (started.path / "fail").touch()


def _restart_triggerer(stage: Stage, started: Started) -> Observed:
    stage.cluster.stop_component("triggerer")
    stage.cluster.start_component("triggerer")
    stage.cluster.wait_healthy()
    observed = stage.watch(started, until=None, within=WATCH_SECONDS)
    stage.still_watched(started)
    return observed


def _triggerer_of(stage: Stage, started: Started) -> int | None:
    trigger = stage.cluster.task_instance(started.dag_id, started.run_id, "tune")["trigger"]
    return None if trigger is None else trigger["triggerer_id"]


@contextmanager
def _second_triggerer(stage: Stage) -> Iterator[None]:
    """Have one more triggerer; afterwards there is one, named `triggerer`."""
    second = stage.cluster.start_component("triggerer:2")
    try:
        stage.wait(
            lambda: (
                "triggerer" in second.log_path.read_text(errors="replace").lower()
                and _living_triggerers(stage) >= 2
            ),
            lambda: "the second triggerer does not come up",
            START_SECONDS,
        )
        yield
    finally:
        if "triggerer" not in stage.cluster.components:
            stage.cluster.start_component("triggerer")
            stage.cluster.wait_healthy()
        stage.cluster.stop_component("triggerer:2")


def _living_triggerers(stage: Stage) -> int:
    jobs = stage.cluster.request("GET", "/jobs", params={"job_type": "TriggererJob", "is_alive": True})
    return int(jobs["total_entries"])


def _wait_taken_over(stage: Stage, started: Started, before: int | None) -> None:
    stage.wait(
        lambda: _triggerer_of(stage, started) not in (before, None),
        lambda: f"no triggerer has taken the trigger over from {before}",
        START_SECONDS,
    )


def _kill_triggerer(stage: Stage, started: Started) -> Observed:
    before = _triggerer_of(stage, started)
    with _second_triggerer(stage):
        stage.cluster.stop_component("triggerer", grace_seconds=0)
        _wait_taken_over(stage, started, before)
        observed = stage.watch(started, until=None, within=WATCH_SECONDS)
        stage.still_watched(started)
        return observed


def _freeze_triggerer(stage: Stage, started: Started) -> Observed:
    before = _triggerer_of(stage, started)
    with _second_triggerer(stage):
        stage.cluster.signal_component("triggerer", signal.SIGSTOP)
        _wait_taken_over(stage, started, before)
        stage.cluster.signal_component("triggerer", signal.SIGCONT)
        observed = stage.watch(started, until=None, within=WATCH_SECONDS)
        stage.still_watched(started)
        return observed


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of the table.

    :param what: the event, for people.
    :param dag: which DAG of `tests/system/dags/killed.py`, without its mode.
    :param sync: what becomes of the job of a task on a worker, by oldest Airflow minor; None, or no minor
        that is old enough: no such case.
    :param deferred: the same of a deferred task.
    :param alone: it disturbs the others.
    """

    what: str
    dag: str
    play: Play
    sync: Mapping[str, Collection[Fate]] | None = None
    deferred: Mapping[str, Collection[Fate]] | None = None
    alone: bool = False

    def expected(self, mode: str, minor: str) -> Collection[Fate] | None:
        """Return what may become of the job on this minor."""
        column = self.sync if mode == "sync" else self.deferred
        if column is None:
            return None
        known = [Version(one) for one in column if Version(one) <= Version(minor)]
        return column[str(max(known))] if known else None


def _always(*fates: Fate) -> Mapping[str, Collection[Fate]]:
    return {"3.1": fates}


_NEXT_TRY = _always(Fate.ADOPTED, Fate.REPLACED)

ROWS: Mapping[str, Row] = {
    "mark_failed": Row(
        what="mark failed",
        dag="plain",
        play=_mark("failed"),
        sync=_always(Fate.STOPPED),
        deferred=_always(Fate.STOPPED),
    ),
    "mark_success": Row(
        what="mark success",
        dag="plain",
        play=_mark("success"),
        sync=_always(Fate.STOPPED),
        deferred=_always(Fate.STOPPED),
    ),
    "mark_failed_retry_left": Row(
        what="mark failed, a retry left",
        dag="retry",
        play=_mark("failed"),
        sync=_always(Fate.STOPPED),
        deferred=_always(Fate.STOPPED),
    ),
    "clear": Row(what="clear", dag="retry", play=_clear, sync=_NEXT_TRY, deferred=_NEXT_TRY),
    "delete_run": Row(
        what="mark the DAG run failed and delete it at once",
        dag="plain",
        play=_delete_run,
        sync=_always(Fate.STOPPED),
        deferred=_always(Fate.STOPPED),
    ),
    "fail_run": Row(
        what="mark the DAG run failed",
        dag="plain",
        play=_fail_run,
        sync=_always(Fate.STOPPED),
        deferred=_always(Fate.STOPPED),
    ),
    "execution_timeout": Row(
        what="execution_timeout",
        dag="task_limit",
        play=_let_pass("failed"),
        sync=_always(Fate.STOPPED),
        deferred=_always(Fate.STOPPED),
    ),
    "max_ingestion_time": Row(
        what="max_ingestion_time",
        dag="job_limit",
        play=_let_pass("failed"),
        sync=_always(Fate.STOPPED),
        deferred=_always(Fate.STOPPED),
    ),
    "dagrun_timeout": Row(
        what="dagrun_timeout",
        dag="run_limit",
        play=_let_pass("skipped", "failed"),
        sync=_always(Fate.STOPPED),
        deferred=_always(Fate.STOPPED),
    ),
    "fail_fast": Row(
        what="fail_fast: a sibling fails",
        dag="fail_fast",
        play=_fail_sibling,
        sync=_always(Fate.STOPPED),
        deferred=_always(Fate.STOPPED),
    ),
    "pause": Row(
        what="pause the DAG",
        dag="pause",
        play=_pause,
        sync=_always(Fate.RUNS_ON),
        deferred=_always(Fate.RUNS_ON),
    ),
    "term_task": Row(
        what="SIGTERM of the task's process, no retry left",
        dag="plain",
        play=_term(parent=False, retried=False),
        sync=_always(Fate.STOPPED),
    ),
    "term_task_retry": Row(
        what="SIGTERM of the task's process, a retry left",
        dag="retry",
        play=_term(parent=False, retried=True),
        sync=_always(Fate.ADOPTED),
    ),
    "term_supervisor": Row(
        what="SIGTERM of the task's supervisor, no retry left",
        dag="plain",
        play=_term(parent=True, retried=False),
        sync={"3.1": (Fate.RUNS_ON,), "3.3": (Fate.STOPPED,)},
    ),
    "term_supervisor_retry": Row(
        what="SIGTERM of the task's supervisor, a retry left",
        dag="retry",
        play=_term(parent=True, retried=True),
        sync={"3.3": (Fate.ADOPTED,)},
    ),
    "leave": Row(
        what="mark failed, stop_on_kill=False",
        dag="leave",
        play=_mark("failed"),
        sync=_always(Fate.RUNS_ON),
        deferred=_always(Fate.RUNS_ON),
    ),
    "teardown_failed": Row(
        what="mark failed, a stop operator as teardown",
        dag="teardown",
        play=_with_teardown(_press_task("failed")),
        sync=_always(Fate.STOPPED),
        deferred=_always(Fate.STOPPED),
    ),
    "teardown_success": Row(
        what="mark success, a stop operator as teardown",
        dag="teardown",
        play=_with_teardown(_press_task("success")),
        sync=_always(Fate.STOPPED),
        deferred=_always(Fate.STOPPED),
    ),
    "teardown_fail_run": Row(
        what="mark the DAG run failed, a stop operator as teardown",
        dag="teardown",
        play=_with_teardown(_press_run),
        sync=_always(Fate.STOPPED),
        deferred=_always(Fate.STOPPED),
    ),
    "teardown_fail_fast": Row(
        what="fail_fast: a sibling fails, a stop operator as teardown",
        dag="teardown_fail_fast",
        play=_with_teardown(_press_sibling),
        sync=_always(Fate.STOPPED),
        deferred=_always(Fate.STOPPED),
    ),
    "teardown_of_setup": Row(
        what="mark failed, a stop operator as teardown of the task as its setup",
        dag="teardown_of_setup",
        play=_with_teardown(_press_task("failed")),
        sync=_always(Fate.STOPPED),
        deferred=_always(Fate.STOPPED),
    ),
    "triggerer_restart": Row(
        what="SIGTERM of the triggerer, restart",
        dag="plain",
        play=_restart_triggerer,
        deferred=_always(Fate.RUNS_ON),
        alone=True,
    ),
    "triggerer_kill": Row(
        what="kill -9 of the triggerer, a second one takes over",
        dag="plain",
        play=_kill_triggerer,
        deferred=_always(Fate.RUNS_ON),
        alone=True,
    ),
    "triggerer_frozen": Row(
        what="triggerer frozen, a second one takes over, the first goes on",
        dag="plain",
        play=_freeze_triggerer,
        deferred=_always(Fate.RUNS_ON),
        alone=True,
    ),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One row in one mode."""

    row: str
    mode: str


@dataclass(slots=True)
class Result:
    """How one cell came out.

    :param problem: why it does not hold; None if it does.
    """

    row: str
    mode: str
    expected: list[str]
    observed: Observed | None
    problem: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return what is kept."""
        kept = asdict(self)
        if self.observed is not None:
            kept["observed"]["fate"] = self.observed.fate.value
        return kept


def minor() -> str:
    """Return the minor release of the installed Airflow."""
    version = Version(airflow.__version__)
    return f"{version.major}.{version.minor}"


def cells(only: Collection[str] = ()) -> list[Cell]:
    """Return all cells of the table, or those of some rows."""
    return [
        Cell(name, mode)
        for name, row in ROWS.items()
        if not only or name in only
        for mode in ("sync", "deferred")
        if row.expected(mode, minor()) is not None
    ]


def play(stage: Stage, cell: Cell) -> Result:
    """Try one cell of the table; whatever goes wrong is its problem."""
    row = ROWS[cell.row]
    expected = row.expected(cell.mode, minor()) or ()
    observed: Observed | None = None
    problem: str | None = None
    started: Started | None = None
    try:
        settle = SETTLE_SECONDS if set(expected) == {Fate.STOPPED} else WATCH_SECONDS
        started = stage.start(row.dag, cell.mode, settle)
        observed = row.play(stage, started)
        if observed.fate not in expected:
            problem = f"the tuning job: {observed.fate.value}"
    except Exception as error:  # noqa: BLE001 - one cell that breaks must not hide how the others came out
        problem = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
    try:
        if started is not None:
            stage.end(started)
    except Exception as error:  # noqa: BLE001 - as above
        problem = f"{problem or ''}afterwards {type(error).__name__}: {error}\n{traceback.format_exc()}"
    return Result(cell.row, cell.mode, [fate.value for fate in expected], observed, problem)


def play_all(stage: Stage, chosen: Iterable[Cell], say: Callable[[str], None]) -> list[Result]:
    """Try cells: those that disturb nobody at the same time, the others one after the other."""
    chosen = list(chosen)
    began = time.monotonic()
    results: list[Result] = []

    def tell(result: Result) -> None:
        outcome = result.observed.fate.value if result.observed else "-"
        held = "holds" if result.problem is None else f"DOES NOT HOLD: {result.problem.partition(chr(10))[0]}"
        say(f"{time.monotonic() - began:5.0f} s  {result.row} ({result.mode}): {outcome}; {held}")
        results.append(result)

    for cell in chosen:
        stage.cluster.wait_dag(f"{ROWS[cell.row].dag}_{cell.mode}")
    with ThreadPoolExecutor(PARALLEL) as pool:
        together = [pool.submit(play, stage, cell) for cell in chosen if not ROWS[cell.row].alone]
        for one in as_completed(together):
            tell(one.result())
    for cell in chosen:
        if ROWS[cell.row].alone:
            tell(play(stage, cell))
    return sorted(results, key=lambda result: chosen.index(Cell(result.row, result.mode)))


# -- the command ------------------------------------------------------------------------------------------


def environment(version: str) -> Path:
    """Return a Python with this Airflow minor and what the tests need; made at the first call."""
    folder = ROOT / f".venv-airflow-{version}"
    python = folder / "bin" / "python"
    uv = [sys.executable, "-m", "uv", "--quiet"]
    if not python.exists():
        subprocess.run(
            [*uv, "venv", "--no-python-downloads", "--python", sys.executable, folder], check=True, cwd=ROOT
        )
    options = ["--system-certs", "--python", str(python), "-c", f"constraints/airflow-{version}.txt"]
    subprocess.run(
        [*uv, "pip", "install", *options, "-e", ".[local]", "--group", "test"], check=True, cwd=ROOT
    )
    return python


def table(results: Iterable[Result]) -> str:
    """Return the results as a table for people."""
    lines = ["| event | task waits | the tuning job | after | task | holds |", "|---|---|---|---|---|---|"]
    for result in results:
        seen = result.observed
        after = "" if seen is None or seen.seconds is None else f"{seen.seconds:.1f} s"
        cells = (
            ROWS[result.row].what,
            "on a worker" if result.mode == "sync" else "deferred",
            seen.fate.value if seen else "",
            after,
            str(seen.task_state) if seen and seen.task_state else "",
            "yes" if result.problem is None else "NO",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def keep(results: Iterable[Result], revived: Iterable[str], *, whole: bool) -> None:
    """Write the results of this minor to the folder of results, in place of those of the same cells.

    :param revived: components of Airflow that ended by themselves and were started again.
    :param whole: whether these are all of them.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"user-actions-{minor()}.json"
    before = {} if whole or not path.exists() else json.loads(path.read_text())
    kept: dict[str, Any] = before.get("rows", {})
    kept |= {f"{result.row}/{result.mode}": result.to_dict() for result in results}
    order = [f"{cell.row}/{cell.mode}" for cell in cells()]
    ordered = {key: kept[key] for key in order if key in kept}
    whole_file = {
        "airflow": airflow.__version__,
        "components_that_ended_by_themselves": [
            *before.get("components_that_ended_by_themselves", []),
            *revived,
        ],
        "rows": ordered,
    }
    path.write_text(json.dumps(whole_file, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """Try the rows on one Airflow minor; 0 if all hold."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.system.user_actions", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--airflow", choices=("3.1", "3.2", "3.3"), default=minor())
    parser.add_argument("--only", action="append", default=[], choices=tuple(ROWS), metavar="ROW")
    parser.add_argument("--keep", type=Path, default=None, metavar="DIR", help="work in this new folder")
    parser.add_argument(
        "--limit",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="of the rows whose time runs out; the task must have begun to wait before",
    )
    options = parser.parse_args(arguments)
    if options.airflow != minor():
        again = list(sys.argv[1:] if arguments is None else arguments)
        python = environment(options.airflow)
        return subprocess.run([python, "-m", "tests.system.user_actions", *again], cwd=ROOT).returncode

    def say(line: str) -> None:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()

    folder = options.keep or Path(tempfile.mkdtemp(prefix="airflow-amt-actions-"))
    folder.mkdir(parents=True, exist_ok=True)
    say(f"Airflow {airflow.__version__}, in {folder}")
    with (
        running(folder / "amt", clock_rate=CLOCK_RATE) as amt,
        AirflowCluster(
            home=folder / "airflow",
            dags_folder=DAGS_FOLDER,
            amt=amt,
            region_name=REGION,
            settings=SETTINGS,
            environment={"PYTHONPATH": str(ROOT), "AMT_TEST_LIMIT_SECONDS": str(options.limit)},
        ) as cluster,
    ):
        results = play_all(Stage(cluster, amt, folder), cells(options.only), say)
    sys.stdout.write(f"Airflow {airflow.__version__}\n\n{table(results)}\n")
    if cluster.revived:
        say(f"Ended by themselves and started again: {', '.join(cluster.revived)}")
    keep(results, cluster.revived, whole=not options.only)
    return 0 if all(result.problem is None for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
