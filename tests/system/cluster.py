"""A real Airflow for tests: API server, scheduler, DAG processor and triggerer as processes of their own.

Nothing here is simulated: tests act through the public REST API as a person would, and read what Airflow
stored. Everything listens on 127.0.0.1 and lives below one throw-away AIRFLOW_HOME.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import httpx
import psutil

from airflow_amt.local import RunningServer

LOOPBACK = "127.0.0.1"
POLL_SECONDS = 0.25
TAIL_LINES = 20
TAIL_WIDTH = 300
# A triggerer gives its runner 10 s before it ends itself; nobody needs that order when all is thrown away.
STOP_GRACE_SECONDS = 15.0
CLOSE_GRACE_SECONDS = 4.0
#: How often a component that ended by itself is started again: more is a crash loop, which fails a test.
REVIVALS = 5

# Fields that name the task instance whose log it is, or the line of Airflow that wrote it.
_LOG_NOISE = frozenset(
    (
        "timestamp",
        "event",
        "level",
        "logger",
        "filename",
        "lineno",
        "dag_id",
        "run_id",
        "task_id",
        "map_index",
        "ti_id",
        "ti",
        "try_number",
    )
)

RUN_TERMINAL = frozenset({"success", "failed"})
TASK_TERMINAL = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})

# One core each is all that tests have, so every loop that decides how fast something is noticed is shortened
# and every loop that only costs (usage data, statistics, re-parsing of unchanged files) is lengthened.
SETTINGS: Mapping[str, str] = {
    "CORE__EXECUTOR": "LocalExecutor",
    "CORE__LOAD_EXAMPLES": "False",
    "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
    "CORE__PARALLELISM": "32",
    "CORE__MAX_ACTIVE_TASKS_PER_DAG": "64",
    "CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL": "0",
    # The default asks the resolver for the machine's full name, which can take seconds without a network.
    "CORE__HOSTNAME_CALLABLE": "socket.gethostname",
    # The cluster migrates the database itself, and starts its slowest parts meanwhile.
    "DATABASE__CHECK_MIGRATIONS": "False",
    "API__WORKERS": "1",
    "API__ENABLE_SWAGGER_UI": "False",
    "SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
    "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
    "SCHEDULER__JOB_HEARTBEAT_SEC": "2",
    "SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "2",
    "SCHEDULER__MAX_TIS_PER_QUERY": "64",
    "TRIGGERER__JOB_HEARTBEAT_SEC": "1",
    "DAG_PROCESSOR__REFRESH_INTERVAL": "2",
    "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "60",
    "DAG_PROCESSOR__PARSING_PROCESSES": "2",
    "DAG_PROCESSOR__PRINT_STATS_INTERVAL": "0",
    # On a busy machine a task's call to the API server may wait for other tasks' imports.
    "WORKERS__EXECUTION_API_TIMEOUT": "30",
    "LOGGING__COLORED_CONSOLE_LOG": "False",
    "USAGE_DATA_COLLECTION__ENABLED": "False",
}

# Two API servers, one for people and one for tasks. In one process, Airflow's audit log (written by people's
# calls on the event loop) can wait for SQLite's write lock while the holder, a task's call, waits for that
# event loop: seen on 3.3.2 as marking a task failed that hung until the lock's timeout.
API_SERVERS = ("api-server", "task-api")
COMPONENTS = (*API_SERVERS, "scheduler", "dag-processor", "triggerer")


class ClusterError(AssertionError):
    """The cluster did not do in time what a test waits for; the message carries the tails of its logs."""


@dataclass(frozen=True, slots=True)
class Component:
    """A running part of the cluster: its process (leader of its own process group) and its log file."""

    name: str
    process: subprocess.Popen[bytes]
    log_path: Path
    started_at: float


def free_port() -> int:
    """Return a TCP port that was free on the loopback interface a moment ago."""
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def _tail(path: Path, lines: int = TAIL_LINES) -> str:
    if not path.exists():
        return "(no log)"
    text = path.read_text(encoding="utf-8", errors="replace")
    # Most lines of the API servers say that somebody polled.
    kept = [line for line in text.splitlines() if "[http.access]" not in line]
    return "\n".join(line[:TAIL_WIDTH] for line in kept[-lines:])


class AirflowCluster:
    """Start a whole Airflow on entry, and leave no process of it on exit.

    A component that ends by itself once all are healthy is started again, as in production by systemd or
    Kubernetes: Airflow's own scheduler (seen with 3.1.8 and 3.3.2) may die when a DAG run is deleted while it
    schedules it. ``revived`` says which were. What a test stopped or killed stays so until it starts it.

    :param home: directory for AIRFLOW_HOME; must not exist yet or be empty.
    :param dags_folder: directory whose DAG files are served.
    :param amt: an embedded AMT; given, the connection `aws_default` points there.
    :param region_name: region of that connection.
    :param database_url: SQLAlchemy URL of an empty metadata database; SQLite below `home` if omitted.
    :param settings: further settings as `SECTION__KEY`, over those of `SETTINGS`.
    :param environment: further environment variables for every component.
    :param passwords: passwords of people, all administrators, who then have to log in; the calls here are
        made as the first of them. ``None`` lets everybody in.
    :param start_timeout_seconds: how long all components may take to become healthy.
    :param revivals: how often each component is started again; ``None`` for any number.
    """

    def __init__(
        self,
        *,
        home: Path,
        dags_folder: Path,
        amt: RunningServer | None = None,
        region_name: str = "eu-central-1",
        database_url: str | None = None,
        settings: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        passwords: Mapping[str, str] | None = None,
        start_timeout_seconds: float = 120.0,
        revivals: int | None = REVIVALS,
    ) -> None:
        self.home = home
        self.dags_folder = dags_folder
        self._ports = {name: free_port() for name in API_SERVERS}
        self.start_timeout_seconds = start_timeout_seconds
        self.revivals = revivals
        #: Names of the components that ended or hung by themselves and were started again, in that order.
        self.revived: list[str] = []
        self._revived_told = 0
        self._components: dict[str, Component] = {}
        # Held while components are started, taken out to be stopped, or looked after.
        self._changing = threading.RLock()
        self._over = threading.Event()
        self._keeper: threading.Thread | None = None
        self._client: httpx.Client | None = None
        self._writing = threading.Lock()
        self.passwords = dict(passwords or {})
        self._environment = self._build_environment(
            # Four processes write: wait for the lock, where the default gives up after 5 s.
            database_url=database_url or f"sqlite:///{home / 'airflow.db'}?timeout=60",
            settings=settings or {},
            extra=environment or {},
        )
        if amt is not None:
            self._environment["AIRFLOW_CONN_AWS_DEFAULT"] = amt.connection(region_name)

    def _build_environment(
        self, *, database_url: str, settings: Mapping[str, str], extra: Mapping[str, str]
    ) -> dict[str, str]:
        inherited = {
            key: value
            for key, value in os.environ.items()
            # The caller's Airflow, AWS account and proxies must not leak into the cluster.
            if not key.upper().startswith(("AIRFLOW", "_AIRFLOW", "AWS_"))
            and not key.upper().endswith("_PROXY")
        }
        config = {
            **SETTINGS,
            "CORE__DAGS_FOLDER": str(self.dags_folder),
            "CORE__EXECUTION_API_SERVER_URL": f"{self._url('task-api')}/execution/",
            "CORE__FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "DATABASE__SQL_ALCHEMY_CONN": database_url,
            "API__BASE_URL": self.base_url,
            "API__SECRET_KEY": secrets.token_hex(32),
            "API_AUTH__JWT_SECRET": secrets.token_hex(32),
            **self._login_settings(),
            **settings,
        }
        return {
            **inherited,
            **{f"AIRFLOW__{key}": value for key, value in config.items()},
            "AIRFLOW_HOME": str(self.home),
            "HOME": str(self.home),
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_COLOR": "1",
            "PYTHONUNBUFFERED": "1",
            **extra,
        }

    def _login_settings(self) -> dict[str, str]:
        if not self.passwords:
            return {}
        return {
            "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
            "CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{name}:admin" for name in self.passwords),
            "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self.home / "passwords.json"),
        }

    # -- life cycle ---------------------------------------------------------------------------------------

    @property
    def base_url(self) -> str:
        """Return the URL of the API server for people, without a slash at the end."""
        return self._url("api-server")

    def _url(self, server: str) -> str:
        return f"http://{LOOPBACK}:{self._ports[server]}"

    @property
    def components(self) -> Mapping[str, Component]:
        """Return the components that were started and not stopped, by name."""
        with self._changing:
            return dict(self._components)

    def __enter__(self) -> Self:
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / "component-logs").mkdir()
        if self.passwords:
            (self.home / "passwords.json").write_text(json.dumps(self.passwords))
        try:
            # They take longest to start, and ask the database nothing until their first request.
            for name in API_SERVERS:
                self.start_component(name)
            self._migrate()
            for name in COMPONENTS:
                if name not in API_SERVERS:
                    self.start_component(name)
            # Until now, a component that ends fails the start at once.
            self.wait_healthy()
            self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
            self._keeper.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            print(self.log_tails(), file=sys.stderr)
        self.close()

    def close(self) -> None:
        """Stop every component: SIGTERM, then SIGKILL for whatever of its processes is left."""
        self._over.set()
        if self._keeper is not None:
            self._keeper.join()
            self._keeper = None
        if self._client is not None:
            self._client.close()
            self._client = None
        with self._changing:
            components = list(self._components.values())
            self._components.clear()
        _stop(components, grace_seconds=CLOSE_GRACE_SECONDS)

    def _log_path(self, name: str) -> Path:
        return self.home / "component-logs" / f"{name}.log"

    def _migrate(self) -> None:
        with self._log_path("db-migrate").open("ab") as log:
            finished = subprocess.run(
                [sys.executable, "-m", "airflow", "db", "migrate"],
                env=self._environment,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=self.start_timeout_seconds,
                check=False,
            )
        if finished.returncode != 0:
            raise ClusterError(f"airflow db migrate ended with {finished.returncode}\n{self.log_tails()}")

    def _command(self, name: str) -> tuple[str, ...]:
        if name in API_SERVERS:
            apps = "core" if name == "api-server" else "execution"
            return ("api-server", "--apps", apps, "--host", LOOPBACK, "--port", str(self._ports[name]))
        # "triggerer:2" is one more triggerer.
        kind = name.partition(":")[0]
        # Logs are read from the files below AIRFLOW_HOME: nobody needs the servers of log files.
        return (kind,) if kind == "dag-processor" else (kind, "--skip-serve-logs")

    def start_component(self, name: str) -> Component:
        """Start one component; its log is appended to if it ran before.

        :param name: one of `COMPONENTS`, with a suffix (`triggerer:2`) for one more of its kind.

        :raises ValueError: if it runs already.
        """
        with self._changing:
            if name in self._components:
                raise ValueError(f"{name} is already running")
            log_path = self._log_path(name)
            log: IO[bytes]
            with log_path.open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "airflow", *self._command(name)],
                    env=self._environment,
                    cwd=self.home,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # A group of its own: a Ctrl-C at the terminal reaches the test, which then stops the
                    # cluster.
                    start_new_session=True,
                )
            component = Component(name=name, process=process, log_path=log_path, started_at=time.monotonic())
            self._components[name] = component
            return component

    def _take_out(self, name: str) -> Component:
        """Return a component that shall end, which nobody looks after from now on."""
        with self._changing:
            return self._components.pop(name)

    def stop_component(self, name: str, *, grace_seconds: float = STOP_GRACE_SECONDS) -> None:
        """Stop one component; a grace time of 0 kills it at once, as a lost machine would."""
        _stop([self._take_out(name)], grace_seconds=grace_seconds)

    def kill_component(self, name: str) -> None:
        """Kill all processes of a component as if at once: none sees another one's end."""
        component = self._take_out(name)
        _signal(_processes([component]), signal.SIGSTOP)
        _stop([component], grace_seconds=0)

    def signal_component(self, name: str, number: signal.Signals) -> None:
        """Send a signal to every process of a component: SIGSTOP freezes it, SIGCONT thaws it."""
        _signal(_processes([self.components[name]]), number)

    def revive(self, sick_seconds: float) -> list[str]:
        """Start components again that ended, and a scheduler that sends no heartbeats; return their names.

        Those that ended are started again without this call, too; it returns all since the last call.

        :param sick_seconds: age of the scheduler's last heartbeat beyond which it is killed.
        """
        self._check_alive()
        scheduler = self.components.get("scheduler")
        if scheduler is not None and time.monotonic() - scheduler.started_at > sick_seconds:
            heartbeat = self._scheduler_heartbeat()
            with self._changing:
                # Somebody may have stopped or started it meanwhile.
                if (
                    heartbeat is not None
                    and (datetime.now(UTC) - heartbeat).total_seconds() > sick_seconds
                    and self._components.get("scheduler") is scheduler
                ):
                    self._start_again("scheduler")
        with self._changing:
            told, self._revived_told = self._revived_told, len(self.revived)
            return self.revived[told:]

    def _scheduler_heartbeat(self) -> datetime | None:
        """Return when the scheduler last gave a sign of life; ``None`` if the API server cannot say."""
        try:
            answer = httpx.get(f"{self.base_url}/api/v2/monitor/health", timeout=30.0).json()
        except httpx.TransportError:
            return None  # it was just started again itself
        return datetime.fromisoformat(answer["scheduler"]["latest_scheduler_heartbeat"])

    def _start_again(self, name: str) -> None:
        self.kill_component(name)
        self.start_component(name)
        self.revived.append(name)

    def _keep(self) -> None:
        """Look after the components until the cluster is closed."""
        while not self._over.wait(POLL_SECONDS):
            # A crash loop is told to whoever waits for the cluster, in a thread that can fail a test.
            with contextlib.suppress(ClusterError):
                self._check_alive()

    def wait_healthy(self, timeout_seconds: float | None = None) -> None:
        """Wait until the API server answers people and tasks, and reports all other components healthy.

        :raises ClusterError: if a component exits or the time is over.
        """
        health: dict[str, Any] = {}

        def healthy() -> bool:
            nonlocal health
            self._check_alive()
            try:
                # The API for tasks is built at its first request, for seconds: not at the cost of a task.
                httpx.get(f"{self._url('task-api')}/execution/health", timeout=60.0).raise_for_status()
                response = httpx.get(f"{self.base_url}/api/v2/monitor/health", timeout=10.0)
            except httpx.TransportError as error:
                health = {"api_server": repr(error)}
                return False
            health = response.json() if response.status_code == 200 else {"api_server": response.text}
            parts = ("metadatabase", "scheduler", "dag_processor", "triggerer")
            return all((health.get(part) or {}).get("status") == "healthy" for part in parts)

        self._wait_for(
            healthy,
            timeout_seconds=timeout_seconds or self.start_timeout_seconds,
            describe=lambda: f"the cluster is not healthy: {health}",
        )

    def _check_alive(self) -> None:
        """Start components again that ended by themselves.

        :raises ClusterError: if one ended while the cluster starts, or has been started again often enough.
        """
        with self._changing:
            problems = []
            counted = Counter(self.revived)
            for component in list(self._components.values()):
                code = component.process.poll()
                if code is None:
                    continue
                if self._keeper is None:
                    problems.append(f"{component.name} ended with exit code {code}")
                elif self.revivals is not None and counted[component.name] >= self.revivals:
                    problems.append(
                        f"{component.name} ended with exit code {code} after it had been started again "
                        f"{self.revivals} times"
                    )
                else:
                    self._start_again(component.name)
        if problems:
            raise ClusterError("\n".join([*problems, self.log_tails()]))

    def run_command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a Python program in the cluster's environment, beside its components."""
        return subprocess.run(
            [sys.executable, *arguments],
            env=self._environment,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=self.start_timeout_seconds,
            check=False,
        )

    # -- REST ---------------------------------------------------------------------------------------------

    def _api(self) -> httpx.Client:
        if self._client is None:
            address = f"{self.base_url}/auth/token"
            if self.passwords:
                name, password = next(iter(self.passwords.items()))
                body = {"username": name, "password": password}
                response = httpx.post(address, json=body, timeout=30.0)
            else:
                # With all users administrators, the simple auth manager hands its JWT to anybody who asks.
                response = httpx.get(address, timeout=30.0)
            response.raise_for_status()
            self._client = httpx.Client(
                base_url=f"{self.base_url}/api/v2",
                headers={"Authorization": f"Bearer {response.json()['access_token']}"},
                timeout=60.0,
            )
        return self._client

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int | bool] | None = None,
        body: Mapping[str, Any] | None = None,
        allow_missing: bool = False,
    ) -> Any:
        """Call the public REST API (`/api/v2`) and return the decoded answer.

        None stands for an answer without content and for an allowed 404.

        :param allow_missing: take a 404 for no answer.
        :raises ClusterError: on any answer that is not a success, and if a component does not stay alive.
        """
        # One writing call at a time: two of people's calls hold each other up as described at API_SERVERS.
        with contextlib.nullcontext() if method == "GET" else self._writing:
            response = self._send(method, path, params=params, json=body)
        if allow_missing and response.status_code == 404:
            return None
        if not response.is_success:
            raise ClusterError(f"{method} {path} answered {response.status_code}: {response.text}")
        return response.json() if response.content else None

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        deadline = time.monotonic() + self.start_timeout_seconds
        while True:
            self._check_alive()
            try:
                return self._api().request(method, path, **options)
            except httpx.ConnectError:
                # Nothing was sent: the API server is being started again.
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_SECONDS)

    def wait_dag(self, dag_id: str, timeout_seconds: float = 60.0) -> None:
        """Wait until the DAG is parsed and stored.

        :raises ClusterError: at once if a DAG file can't be imported; or when the time is over.
        """

        def known() -> bool:
            self._check_alive()
            if self.request("GET", f"/dags/{dag_id}", allow_missing=True) is not None:
                return True
            errors = self.request("GET", "/importErrors")["import_errors"]
            if errors:
                raise ClusterError("\n".join(f"{e['filename']}:\n{e['stack_trace']}" for e in errors))
            return False

        self._wait_for(known, timeout_seconds=timeout_seconds, describe=lambda: f"no DAG {dag_id!r}")

    def trigger_dag(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        """Wait until the DAG is known, start a run of it and return the run's id."""
        self.wait_dag(dag_id)
        body = {"logical_date": None, "conf": dict(conf or {})}
        run_id: str = self.request("POST", f"/dags/{dag_id}/dagRuns", body=body)["dag_run_id"]
        return run_id

    def run_state(self, dag_id: str, run_id: str) -> str:
        """Return the state of a DAG run."""
        state: str = self.request("GET", f"/dags/{dag_id}/dagRuns/{run_id}")["state"]
        return state

    def wait_run(
        self,
        dag_id: str,
        run_id: str,
        *,
        states: Collection[str] = RUN_TERMINAL,
        timeout_seconds: float = 120.0,
    ) -> str:
        """Wait until a DAG run is in one of `states` (by default: over) and return the state.

        :raises ClusterError: when the time is over; the message lists the state of every task.
        """
        state = ""

        def reached() -> bool:
            nonlocal state
            self._check_alive()
            state = self.run_state(dag_id, run_id)
            return state in states

        self._wait_for(
            reached,
            timeout_seconds=timeout_seconds,
            describe=lambda: (
                f"run {run_id} of {dag_id} is {state!r}, not one of {sorted(states)}; "
                f"tasks: {self.task_states(dag_id, run_id)}"
            ),
        )
        return state

    def _task_path(self, dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
        return path if map_index < 0 else f"{path}/{map_index}"

    def task_instance(self, dag_id: str, run_id: str, task_id: str, *, map_index: int = -1) -> dict[str, Any]:
        """Return a task instance as the REST API gives it."""
        answer: dict[str, Any] = self.request("GET", self._task_path(dag_id, run_id, task_id, map_index))
        return answer

    def task_state(self, dag_id: str, run_id: str, task_id: str, *, map_index: int = -1) -> str | None:
        """Return the state of a task instance, None while it has none."""
        state: str | None = self.task_instance(dag_id, run_id, task_id, map_index=map_index)["state"]
        return state

    def task_states(self, dag_id: str, run_id: str) -> dict[str, str | None]:
        """Return the state of every task instance of a run by `task_id`, or `task_id[map_index]`."""
        states: dict[str, str | None] = {}
        while True:
            page = self.request(
                "GET",
                f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances",
                params={"limit": 100, "offset": len(states)},
            )
            for one in page["task_instances"]:
                index = one["map_index"]
                states[one["task_id"] + (f"[{index}]" if index >= 0 else "")] = one["state"]
            if not page["task_instances"] or len(states) >= page["total_entries"]:
                return states

    def wait_task(
        self,
        dag_id: str,
        run_id: str,
        task_id: str,
        *,
        states: Collection[str] = TASK_TERMINAL,
        map_index: int = -1,
        timeout_seconds: float = 120.0,
    ) -> str:
        """Wait until a task instance is in one of `states` (by default: over) and return the state.

        :raises ClusterError: at once if the task is over in another state; or when the time is over.
        """
        state: str | None = None

        def describe() -> str:
            return (
                f"task {task_id} of run {run_id} of {dag_id} is {state!r}, not one of {sorted(states)}\n"
                f"{self.task_log(dag_id, run_id, task_id, map_index=map_index)}"
            )

        def reached() -> bool:
            nonlocal state
            self._check_alive()
            state = self.task_state(dag_id, run_id, task_id, map_index=map_index)
            if state in TASK_TERMINAL and state not in states:
                raise ClusterError(describe())
            return state in states

        self._wait_for(reached, timeout_seconds=timeout_seconds, describe=describe)
        return state or ""

    def set_task_state(
        self, dag_id: str, run_id: str, task_id: str, state: str, *, map_index: int = -1
    ) -> None:
        """Mark a task instance `success`, `failed` or `skipped`, as a person does in the UI."""
        self.request("PATCH", self._task_path(dag_id, run_id, task_id, map_index), body={"new_state": state})

    def clear(self, dag_id: str, run_id: str, task_ids: Collection[str]) -> None:
        """Clear task instances of one run whatever their state, as a person does in the UI."""
        self.request(
            "POST",
            f"/dags/{dag_id}/clearTaskInstances",
            body={
                "dry_run": False,
                "dag_run_id": run_id,
                "task_ids": list(task_ids),
                "only_failed": False,
                "reset_dag_runs": True,
            },
        )

    def set_run_state(self, dag_id: str, run_id: str, state: str) -> None:
        """Mark a DAG run `success` or `failed`, as a person does in the UI."""
        self.request("PATCH", f"/dags/{dag_id}/dagRuns/{run_id}", body={"state": state})

    def delete_run(self, dag_id: str, run_id: str) -> None:
        """Delete a DAG run with all that is stored about it."""
        self.request("DELETE", f"/dags/{dag_id}/dagRuns/{run_id}")

    def pause(self, dag_id: str, paused: bool = True) -> None:
        """Pause a DAG, so that nothing more of it is scheduled, or let it go on."""
        self.request("PATCH", f"/dags/{dag_id}", body={"is_paused": paused})

    def xcom(
        self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", *, map_index: int = -1
    ) -> Any:
        """Return an XCom's value as stored (JSON).

        :raises KeyError: if the task did not push that key.
        """
        answer = self.request(
            "GET",
            f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}",
            params={"map_index": map_index},
            allow_missing=True,
        )
        if answer is None:
            raise KeyError(f"{dag_id}.{task_id} of {run_id} has no XCom {key!r}")
        return answer["value"]

    def wait_xcom(
        self,
        dag_id: str,
        run_id: str,
        task_id: str,
        key: str = "return_value",
        *,
        map_index: int = -1,
        timeout_seconds: float = 60.0,
    ) -> Any:
        """Wait until a task has pushed an XCom and return its value as stored (JSON).

        :raises ClusterError: when the time is over.
        """
        value: Any = None

        def pushed() -> bool:
            nonlocal value
            self._check_alive()
            try:
                value = self.xcom(dag_id, run_id, task_id, key, map_index=map_index)
            except KeyError:
                return False
            return True

        self._wait_for(
            pushed, timeout_seconds=timeout_seconds, describe=lambda: f"{dag_id}.{task_id} pushed no {key!r}"
        )
        return value

    def wait_task_log(
        self,
        dag_id: str,
        run_id: str,
        task_id: str,
        text: str,
        *,
        times: int = 1,
        map_index: int = -1,
        timeout_seconds: float = 60.0,
    ) -> None:
        """Wait until the log of a task's latest try, its trigger's included, contains `text` so many times.

        :raises ClusterError: when the time is over; the message has the log.
        """
        log = ""

        def logged() -> bool:
            nonlocal log
            self._check_alive()
            log = self.task_log(dag_id, run_id, task_id, map_index=map_index)
            return log.count(text) >= times

        self._wait_for(
            logged,
            timeout_seconds=timeout_seconds,
            describe=lambda: f"{text!r} is not {times} times in the log of {dag_id}.{task_id}:\n{log}",
        )

    def wait_deferral_known(
        self, dag_id: str, run_id: str, task_id: str, *, times: int = 1, timeout_seconds: float = 60.0
    ) -> None:
        """Wait until the scheduler has heard that the worker of a task ended, so often.

        Before that, Airflow (3.1 to 3.3) fails a deferred task that is resumed: it takes the end of the first
        worker for that of the second.

        :raises ClusterError: when the time is over.
        """
        key = f"TaskInstanceKey(dag_id='{dag_id}', task_id='{task_id}', run_id='{run_id}'"

        def heard() -> bool:
            self._check_alive()
            lines = self._log_path("scheduler").read_text(encoding="utf-8", errors="replace").splitlines()
            return sum("Received executor event" in line and key in line for line in lines) >= times

        self._wait_for(
            heard, timeout_seconds=timeout_seconds, describe=lambda: f"the scheduler has not heard of {key}"
        )

    def task_log(
        self, dag_id: str, run_id: str, task_id: str, *, map_index: int = -1, try_number: int | None = None
    ) -> str:
        """Return the text of one try's log (by default: the latest), one line an event."""
        if try_number is None:
            instance = self.task_instance(dag_id, run_id, task_id, map_index=map_index)
            try_number = max(1, instance["try_number"])
        answer = self.request(
            "GET",
            f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}",
            params={"full_content": True, "map_index": map_index},
            allow_missing=True,
        )
        if answer is None:
            return ""
        return "\n".join(_log_line(event) for event in answer["content"])

    # -- waiting and diagnosis ----------------------------------------------------------------------------

    def _wait_for(
        self, reached: Callable[[], bool], *, timeout_seconds: float, describe: Callable[[], str]
    ) -> None:
        deadline = time.monotonic() + timeout_seconds
        while not reached():
            if time.monotonic() >= deadline:
                raise ClusterError(f"after {timeout_seconds:g} s: {describe()}\n{self.log_tails()}")
            time.sleep(POLL_SECONDS)

    def log_tails(self, lines: int = TAIL_LINES) -> str:
        """Return the last lines of every component's log, with headings."""
        paths = sorted((self.home / "component-logs").glob("*.log"))
        parts = [f"---- {path.stem} ----\n{_tail(path, lines)}" for path in paths]
        if self.revived:
            parts.insert(0, f"Ended by themselves and started again: {', '.join(self.revived)}")
        return "\n".join(parts)

    def remove_home(self) -> None:
        """Delete AIRFLOW_HOME; only after `close`.

        :raises ValueError: while components run.
        """
        if self._components:
            raise ValueError("the cluster still runs")
        shutil.rmtree(self.home)


def _log_line(event: Any) -> str:
    if not isinstance(event, dict):
        return str(event)
    fields = {key: value for key, value in event.items() if key not in _LOG_NOISE}
    rest = f" {json.dumps(fields, default=str)}" if fields else ""
    return f"{event.get('timestamp') or ''} {event.get('level') or ''} {event.get('event') or ''}{rest}"


def _processes(components: Collection[Component]) -> list[psutil.Process]:
    """Return every living process in the components' sessions.

    Executor workers and task processes may lead groups of their own, and outlive a leader that crashed; none
    of them leaves the session that `start_component` opened.
    """
    sessions = {component.process.pid for component in components}
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) in sessions and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue  # it ended between the listing and the question
    return found


def _signal(processes: Collection[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue  # it ended between the listing and the call


def _stop(components: Collection[Component], *, grace_seconds: float) -> None:
    if grace_seconds > 0:
        for component in components:
            if component.process.poll() is None:
                component.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + grace_seconds
        while _processes(components) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
    # Killed processes may have been about to start others: look again until none is left.
    while left := _processes(components):
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue  # it ended between the listing and the call
        psutil.wait_procs(left, timeout=1.0)
    for component in components:
        component.process.wait()
