"""What the soak runs on, and what it sees of it from outside."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import airflow
import boto3
import psutil
import psycopg2
from botocore.exceptions import BotoCoreError, ClientError

import airflow_amt
from airflow_amt.local import RunningServer, running
from tests.system.cluster import LOOPBACK, AirflowCluster, ClusterError
from tests.system.postgres import DATABASE, USER, Postgres
from tests.system.soak_executor import WORKER
from tests.system.soak_jobs import IMAGE, TRAINER
from tests.system.soak_judge import Found, Series, decoded

ROOT = Path(__file__).parents[2]
DAGS_FOLDER = Path(__file__).parent / "soak_dags"
#: How the soak calls itself in the request log.
AGENT = "soak-itself"
REGIONS = (
    "eu-central-1",
    "eu-west-1",
    "eu-west-2",
    "eu-west-3",
    "eu-north-1",
    "us-east-1",
    "us-east-2",
    "us-west-1",
    "us-west-2",
    "ca-central-1",
    "sa-east-1",
    "ap-south-1",
)
#: AMT's quota is 100 a region; the rest is for cleared tasks, whose first job ends while the next one begins.
MOST_JOBS_OF_A_REGION = 85
TRIGGERERS = ("triggerer", "triggerer:2")
#: Default of `[triggerer] triggerer_health_check_threshold`, after which others take over.
LOST_SECONDS = 30.0

_TRANSIENT = frozenset(
    ("ThrottlingException", "InternalFailure", "InternalServerError", "ServiceUnavailable", "500", "503")
)
_Result = TypeVar("_Result")


def settings(patience: float) -> dict[str, str]:
    """Return Airflow's settings.

    :param patience: factor by which everything may take longer than on two idle cores.
    """
    return {
        "CORE__EXECUTOR": "tests.system.soak_executor.SoakExecutor",
        "CORE__PARALLELISM": "4",
        "CORE__MAX_ACTIVE_TASKS_PER_DAG": "10000",
        "SCHEDULER__MAX_DAGRUNS_PER_LOOP_TO_SCHEDULE": "50",
        "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": str(math.ceil(LOST_SECONDS * patience)),
        "SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": str(math.ceil(60 * patience)),
        "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": str(math.ceil(300 * patience)),
        "WORKERS__EXECUTION_API_TIMEOUT": str(math.ceil(60 * patience)),
    }


class Database:
    """Airflow's metadata database, read past Airflow.

    :param url: SQLAlchemy URL.
    """

    def __init__(self, url: str) -> None:
        self._connection = psycopg2.connect(
            host=LOOPBACK, port=urlsplit(url).port, user=USER, dbname=DATABASE
        )
        self._connection.autocommit = True

    def close(self) -> None:
        """Let go of it."""
        self._connection.close()

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Return what a query finds."""
        with self._connection.cursor() as cursor:
            cursor.execute(query)
            found: list[tuple[Any, ...]] = cursor.fetchall()
            return found

    def tasks(self) -> dict[tuple[str, str, str, int], tuple[str | None, int | None]]:
        """Return state and triggerer of each task instance."""
        return {
            row[:4]: row[4:]
            for row in self.rows(
                "SELECT t.dag_id, t.run_id, t.task_id, t.map_index, t.state, g.triggerer_id"
                ' FROM task_instance t LEFT JOIN "trigger" g ON g.id = t.trigger_id'
            )
        }

    def names(self) -> dict[tuple[str, str], str]:
        """Return the tuning jobs that operators have told of, by run id and task id."""
        return {
            (run_id, task_id): str(decoded(value))
            for run_id, task_id, value in self.rows(
                "SELECT run_id, task_id, value FROM xcom WHERE key = 'tuning_job_name'"
            )
        }

    def xcoms(self) -> dict[tuple[str, str, str, int], dict[str, Any]]:
        """Return all XComs of each task instance."""
        found: dict[tuple[str, str, str, int], dict[str, Any]] = defaultdict(dict)
        for *key, name, value in self.rows("SELECT dag_id, run_id, task_id, map_index, key, value FROM xcom"):
            found[key[0], key[1], key[2], key[3]][name] = decoded(value)
        return found

    def triggerers(self) -> list[int]:
        """Return the ids of all triggerers there ever were, in the order of their starts."""
        return [row[0] for row in self.rows("SELECT id FROM job WHERE job_type = 'TriggererJob' ORDER BY id")]

    def triggers(self) -> Counter[int | None]:
        """Return how many triggers each triggerer has."""
        return Counter(dict(self.rows('SELECT triggerer_id, count(*) FROM "trigger" GROUP BY triggerer_id')))


class Sampler:
    """Looks at the triggerers' processes all the time.

    :param seconds: between two looks.
    """

    def __init__(self, world: World, seconds: float) -> None:
        self._world = world
        self._seconds = seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="sampler", daemon=True)
        self._database = Database(world.database_url)
        self._port = urlsplit(world.amt.endpoint).port
        #: By process id of the triggerer; and its id in the database.
        self._series: dict[int, Series] = {}
        self._ids: dict[int, int] = {}
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
        self._over.set()
        self._thread.join()
        self._database.close()
        if self.error is not None and exc is None:
            raise self.error

    @property
    def series(self) -> list[Series]:
        """What was seen of each triggerer, in the order of their starts."""
        return list(self._series.values())

    def said_to_end(self, name: str, how: str) -> None:
        """Take note of how the triggerer of this name is going to end."""
        component = self._world.cluster.components.get(name)
        if component is not None and component.process.pid in self._series:
            self._series[component.process.pid].ended = how

    def triggerer_id(self, name: str) -> int | None:
        """Return the id in the database of the triggerer that has this name now, once it is known."""
        component = self._world.cluster.components.get(name)
        return None if component is None else self._ids.get(component.process.pid)

    def sockets(self) -> Counter[str]:
        """Return how many connections to the server all triggerers have, by status."""
        return Counter(
            link.status
            for name, component in self._world.cluster.components.items()
            if name.startswith("triggerer")
            for process in family(component.process.pid)
            for link in process.net_connections("tcp")
            if bool(link.raddr) and link.raddr.port == self._port
        )

    def _look(self) -> None:
        try:
            while not self._over.wait(self._seconds):
                triggers = self._database.triggers()
                new = [one for one in self._database.triggerers() if one not in self._ids.values()]
                for pid, sample in self._looks().items():
                    # They are started one after the other.
                    if pid not in self._ids and new:
                        self._ids[pid] = new.pop(0)
                    sample["triggers"] = triggers[self._ids.get(pid)] if pid in self._ids else 0
                    self._series[pid].samples.append(sample)
        except BaseException as error:  # noqa: BLE001 - raised where the sampler ends
            self.error = error

    def _looks(self) -> dict[int, dict[str, float]]:
        found = {}
        for name, component in self._world.cluster.components.items():
            if not name.startswith("triggerer"):
                continue
            pid = component.process.pid
            sample: dict[str, float] = {"at": time.monotonic()}
            try:
                members = family(pid)
                sample["rss_mb"] = sum(one.memory_info().rss for one in members) / 1e6
                # Without the supervisor.
                sample["runner_mb"] = sum(one.memory_info().rss for one in members[1:]) / 1e6
                sample["runner_threads"] = sum(one.num_threads() for one in members[1:])
                sample["threads"] = sum(one.num_threads() for one in members)
                sample["descriptors"] = sum(one.num_fds() for one in members)
                sample["sockets"] = sum(
                    bool(link.raddr) and link.raddr.port == self._port
                    for one in members
                    for link in one.net_connections("tcp")
                )
            except (psutil.Error, OSError):
                continue  # it ends just now
            self._series.setdefault(pid, Series(name=f"{name}, process {len(self._series) + 1}"))
            found[pid] = sample
        return found


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all that it has started."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


class World:
    """PostgreSQL, an embedded AMT and a live Airflow, for the time of a `with` block.

    :param folder: gets everything; must be empty.
    :param tasks: how many tasks are to wait at the same time.
    :param interval: seconds between two reads of a task's tuning job.
    :param patience: factor by which everything may take longer than on two idle cores.
    """

    def __init__(self, folder: Path, *, tasks: int, interval: float, patience: float) -> None:
        self.folder = folder
        self.patience = patience
        self.regions = REGIONS[: math.ceil(tasks * 1.1 / MOST_JOBS_OF_A_REGION) + 1]
        if len(self.regions) * MOST_JOBS_OF_A_REGION < tasks * 1.1:
            raise ValueError(f"{tasks} tasks are too many for {len(REGIONS)} regions")
        self._interval = interval
        self._stack = contextlib.ExitStack()
        self.amt: RunningServer
        self.cluster: AirflowCluster
        self.database: Database
        self.database_url: str
        self.clients: dict[str, Any] = {}

    @property
    def request_log(self) -> Path:
        """The server's request log."""
        return self.folder / "requests.jsonl"

    def __enter__(self) -> Self:
        (self.folder / "pipes").mkdir(parents=True)
        with contextlib.ExitStack() as stack:
            postgres = stack.enter_context(Postgres())
            self.database_url = postgres.url
            self.amt = stack.enter_context(
                running(
                    self.folder / "amt",
                    images={IMAGE: f"sh {TRAINER}"},
                    request_log=self.request_log,
                )
            )
            for region in self.regions:
                self.clients[region] = self.amt.client(
                    region, user_agent_extra=AGENT, retries={"total_max_attempts": 1}
                )
                stack.callback(self.clients[region].close)
            self.cluster = stack.enter_context(
                AirflowCluster(
                    home=self.folder / "airflow",
                    dags_folder=DAGS_FOLDER,
                    amt=self.amt,
                    region_name=self.regions[0],
                    database_url=postgres.url,
                    settings=settings(self.patience),
                    start_timeout_seconds=self.patience * 120,
                    # They are counted here.
                    revivals=None,
                    environment={"PYTHONPATH": str(ROOT), "AMT_SOAK_INTERVAL": repr(self._interval)},
                )
            )
            self.cluster.wait_dag("soak_mapped", self.patience * 60)
            self.database = Database(postgres.url)
            stack.callback(self.database.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def insist(self, call: Callable[[], _Result], seconds: float = 120.0) -> _Result:
        """Make a call until faults let it pass.

        :raises ClientError: the server refuses it.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                return call()
            except (ClientError, BotoCoreError) as error:
                if not is_transient(error) or time.monotonic() > deadline:
                    raise
            time.sleep(0.3)

    def statuses(self, region: str) -> dict[str, str]:
        """Return the statuses of all tuning jobs of a region by name."""
        pages = (
            self.clients[region].get_paginator("list_hyper_parameter_tuning_jobs").paginate(MaxResults=100)
        )
        return {
            one["HyperParameterTuningJobName"]: one["HyperParameterTuningJobStatus"]
            for page in pages
            for one in page["HyperParameterTuningJobSummaries"]
        }

    def describe(self, region: str, name: str) -> dict[str, Any]:
        """Describe a tuning job."""
        answer: dict[str, Any] = self.insist(
            lambda: self.clients[region].describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
        )
        return answer

    def found(self, region: str, name: str) -> Found:
        """Return a tuning job with its tags."""
        description = self.describe(region, name)
        arn = description["HyperParameterTuningJobArn"]
        listed = self.insist(lambda: self.clients[region].list_tags(ResourceArn=arn, MaxResults=50))
        tags = {one["Key"]: one["Value"] for one in listed["Tags"]}
        return Found(region=region, description=description, tags=tags)

    def all_jobs(self) -> Iterator[Found]:
        """Return all tuning jobs that the server has."""
        for region in self.regions:
            for name in self.statuses(region):
                yield self.found(region, name)


def is_transient(error: ClientError | BotoCoreError) -> bool:
    """Whether an error is one of those that the soak itself asked for."""
    if isinstance(error, ClientError):
        return error.response["Error"]["Code"] in _TRANSIENT
    return True


# --- what is in the logs -------------------------------------------------------------------------------


def calls(log: Path, since: datetime, until: datetime) -> dict[str, Any]:
    """Return the calls that the server saw between two times, without the soak's own."""
    per_minute: dict[str, Counter[int]] = {"triggerers": Counter(), "workers": Counter()}
    operations: dict[str, Counter[str]] = {"triggerers": Counter(), "workers": Counter()}
    faults: Counter[str] = Counter()
    minutes = (until - since).total_seconds() / 60
    with log.open("rb") as file:
        for line in file:
            call = json.loads(line)
            if AGENT in (call["user_agent"] or ""):
                continue
            at = datetime.fromisoformat(call["time"])
            if not since <= at <= until:
                continue
            who = "workers" if WORKER in (call["user_agent"] or "") else "triggerers"
            per_minute[who][int((at - since).total_seconds() // 60)] += 1
            operations[who][call["operation"]] += 1
            faults.update(call["faults"])
    return {
        who: {
            "calls": counted.total(),
            "per_minute": round(counted.total() / minutes, 1),
            "most_per_minute": max(counted.values(), default=0),
            "operations": dict(operations[who].most_common()),
        }
        for who, counted in per_minute.items()
    } | {"faults": dict(faults)}


_MASKS = (
    (re.compile(r"\x1b\[[0-9;]*m"), ""),
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f-]{27}\b"), "<uuid>"),
    (re.compile(r"(?<![A-Za-z])/[^\s'\"]+"), "<path>"),
    (re.compile(r"\d+(\.\d+)?"), "<n>"),
)


def masked(text: str) -> str:
    """Return a line of a log without what differs between equal ones."""
    for pattern, substitute in _MASKS:
        text = pattern.sub(substitute, text)
    return text.strip()[:160]


def triggerer_troubles(home: Path) -> dict[str, Any]:
    """Count errors, warnings and tracebacks in the triggerers' own logs."""
    troubles: Counter[str] = Counter()
    blocked: list[float] = []
    tracebacks = 0
    for path in sorted((home / "component-logs").glob("triggerer*.log")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            tracebacks += "Traceback (most recent call last)" in line
            if found := re.search(r"thread was blocked for ([0-9.]+) seconds", line):
                blocked.append(float(found[1]))
            elif re.search(r"\[(error|critical|warning) *\]|Error\b|never awaited|was destroyed", line):
                troubles[masked(line)] += 1
    return {
        "tracebacks": tracebacks,
        "blocked": {"times": len(blocked), "longest_seconds": max(blocked, default=0.0)},
        "lines": dict(troubles.most_common(25)),
    }


def trigger_troubles(home: Path) -> dict[str, Any]:
    """Count errors and tracebacks in the logs of single triggers."""
    troubles: Counter[str] = Counter()
    tracebacks = 0
    for path in (home / "logs").rglob("*.trigger.*.log"):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if not isinstance(event, Mapping):
                continue
            tracebacks += bool(event.get("error_detail"))
            if event.get("level") in ("error", "critical"):
                troubles[masked(str(event.get("event")))] += 1
    return {"tracebacks": tracebacks, "lines": dict(troubles.most_common(25))}


def crashed(cluster: AirflowCluster) -> Sequence[str]:
    """Return the components that ended or hung by themselves, and were started again."""
    with contextlib.suppress(ClusterError):
        cluster.revive(cluster.start_timeout_seconds)
    return cluster.revived


def environment_versions(database: Database) -> dict[str, str]:
    """Return the versions that a result is about."""
    return {
        "airflow": airflow.__version__,
        "airflow_amt": airflow_amt.__version__,
        "boto3": boto3.__version__,
        "postgresql": str(database.rows("SHOW server_version")[0][0]).split()[0],
        "python": platform.python_version(),
        "cores": str(os.cpu_count()),
    }
