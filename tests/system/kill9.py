"""Kill an embedded AMT with SIGKILL at random moments, restart it, and see whether anything is lost.

``python -m tests.system.kill9 [--kills 50] [--seed N] [--json] [--keep DIR]``

A server runs several tuning jobs; clients create and stop more. Again and again it is killed: while it
starts, right after, while it trains, while create and stop calls are under way, while it ends. After each
restart on the same folder, and once more at the end, when all tuning jobs are over, everything that clients
can see is compared with what they were told before, with itself, and with a replay of the criteria.

The choices depend on the seed, which is printed: what is created, when and how the server is killed. The
moments themselves depend on the machine too. The exit code is 1 after a violation; the state folder is kept.

To add a kind of tuning job, add a :class:`Mix` to :data:`MIXES`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from botocore.config import Config
from botocore.exceptions import ClientError, EndpointConnectionError, HTTPClientError
from botocore.session import get_session

from airflow_amt.local.credentials import Credentials, of_state_folder
from airflow_amt.local.launcher import READY
from airflow_amt.local.processes import MARKER
from airflow_amt.tuning.criteria import CompletionCriteria, CompletionReason, ObjectiveType
from airflow_amt.tuning.history import ReplayReport, TrainingJobResult, replay
from tests.local.support import (
    TRAINERS,
    best_of,
    create_request,
    training_jobs,
    training_processes,
    wait_until,
)

ROOT = Path(__file__).parents[2]
CLOCK_RATE = 20.0
#: Tuning jobs that are kept going at a time, and most in all.
AT_A_TIME = 6
#: Tuning jobs that are over and are looked at again after a restart; all are at the end.
_OVER_AT_A_TIME = 8
#: What a client gets instead of an answer from a server that is killed.
LOST = (HTTPClientError, EndpointConnectionError)
OVER = ("Completed", "Failed", "Stopped")
IMAGES = {
    "survey:1": f"sh {TRAINERS / 'survey.sh'}",
    "survey-py:1": f"{sys.executable} {TRAINERS / 'survey.py'}",
}


class ViolationError(Exception):
    """Something that must not happen did."""


# --- what is tuned ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Mix:
    """A kind of tuning job.

    :param name: short; part of the tuning jobs' names.
    :param options: what :func:`tests.local.support.create_request` gets, drawn anew for each tuning job.
    :param change: changes the whole request, for what has no option; gets the names of the tuning jobs of
        the same mix that are over.
    :param every_end: ends that the tuning job may come to, besides ``Stopped`` if it was stopped.
    :param reproducible: whether the same combinations come in the same order without any kill.
    """

    name: str
    options: Callable[[random.Random], dict[str, Any]]
    change: Callable[[dict[str, Any], random.Random, Sequence[str]], None] | None = None
    every_end: tuple[str, ...] = ("Completed",)
    reproducible: bool = False
    exhaustible: bool = False


def _survey(draw: random.Random, behaviour: str = "plain", **more: Any) -> dict[str, Any]:
    """Return options for a trainer that takes a part of a second."""
    image = "survey-py:1" if behaviour == "plain" and draw.random() < 0.4 else "survey:1"
    return {
        "image": image,
        "static": {"seconds": f"{draw.uniform(0.02, 0.5):.2f}", "behaviour": behaviour},
        "parallel": draw.randint(1, 4),
        "most": draw.randint(4, 14),
        "objective_type": draw.choice(["Maximize", "Minimize"]),
        "tags": {"number": str(draw.random()), "team": "red"},
        **more,
    }


def _stop_early(request: dict[str, Any], draw: random.Random, parents: Sequence[str]) -> None:
    request["HyperParameterTuningJobConfig"]["TrainingJobEarlyStoppingType"] = "Auto"


def _hyperband(request: dict[str, Any], draw: random.Random, parents: Sequence[str]) -> None:
    resources = {"MinResource": 1, "MaxResource": 4}
    request["HyperParameterTuningJobConfig"]["StrategyConfig"] = {"HyperbandStrategyConfig": resources}


def _warm_start(request: dict[str, Any], draw: random.Random, parents: Sequence[str]) -> None:
    """Learn from up to two tuning jobs of the same mix, once there are some."""
    if parents:
        chosen = draw.sample(sorted(parents), min(2, len(parents)))
        request["WarmStartConfig"] = {
            "ParentHyperParameterTuningJobs": [{"HyperParameterTuningJobName": name} for name in chosen],
            "WarmStartType": draw.choice(["IdenticalDataAndAlgorithm", "TransferLearning"]),
        }


def _several(request: dict[str, Any], draw: random.Random, parents: Sequence[str]) -> None:
    """Share the budget between two definitions."""
    config, definition = request["HyperParameterTuningJobConfig"], request.pop("TrainingJobDefinition")
    objective, ranges = config.pop("HyperParameterTuningJobObjective"), config.pop("ParameterRanges")
    request["TrainingJobDefinitions"] = [
        {**definition, "DefinitionName": name, "TuningObjective": objective, "HyperParameterRanges": ranges}
        for name in ("first", "second")
    ]


def _retry(request: dict[str, Any], draw: random.Random, parents: Sequence[str]) -> None:
    request["TrainingJobDefinition"]["RetryStrategy"] = {"MaximumRetryAttempts": draw.randint(1, 5)}


MIXES: tuple[Mix, ...] = (
    Mix(name="random", options=_survey, reproducible=True),
    Mix(name="bayes", options=lambda draw: _survey(draw, strategy="Bayesian")),
    Mix(
        name="target",
        options=lambda draw: _survey(draw, most=60, target=0.9, objective_type="Maximize"),
        reproducible=True,
    ),
    Mix(name="patience", options=lambda draw: _survey(draw, most=60, not_improving=draw.randint(3, 6))),
    Mix(name="converge", options=lambda draw: _survey(draw, most=70, convergence=True, strategy="Bayesian")),
    Mix(name="clock", options=lambda draw: _survey(draw, most=200, runtime=draw.randint(120, 240))),
    Mix(name="fails", options=lambda draw: _survey(draw, "fails"), every_end=("Completed", "Failed")),
    Mix(name="nan", options=lambda draw: _survey(draw, "nan"), every_end=("Completed", "Failed")),
    Mix(name="hopeless", options=lambda draw: _survey(draw, "hopeless"), every_end=("Failed",)),
    Mix(name="silent", options=lambda draw: _survey(draw, "silent"), every_end=("Failed",)),
    Mix(name="stubborn", options=lambda draw: _survey(draw, "stubborn", most=4)),
    Mix(name="family", options=lambda draw: _survey(draw, "family", most=8)),
    Mix(
        name="finite",
        options=lambda draw: _survey(
            draw,
            most=40,
            strategy=draw.choice(["Random", "Bayesian"]),
            ranges={"IntegerParameterRanges": [{"Name": "x", "MinValue": "1", "MaxValue": "7"}]},
        ),
        exhaustible=True,
    ),
    Mix(
        name="grid",
        options=lambda draw: _survey(
            draw,
            most=6,
            strategy="Grid",
            ranges={
                "CategoricalParameterRanges": [
                    {"Name": "x", "Values": [f"0.{digit}" for digit in range(1, 7)]}
                ]
            },
        ),
        exhaustible=True,
    ),
    Mix(
        name="early",
        options=lambda draw: _survey(draw, "epochs", strategy="Bayesian", parallel=3),
        change=_stop_early,
    ),
    Mix(
        name="hyperband",
        options=lambda draw: _survey(draw, "epochs", strategy="Hyperband"),
        change=_hyperband,
    ),
    Mix(
        name="warm",
        options=lambda draw: _survey(
            draw,
            strategy="Bayesian",
            # Parents have to have the same of these.
            image="survey:1",
            static={"seconds": "0.1", "behaviour": "warm"},
            objective_type="Maximize",
        ),
        change=_warm_start,
    ),
    Mix(name="several", options=_survey, change=_several),
    Mix(name="retry", options=lambda draw: _survey(draw, most=8), change=_retry),
)


@dataclass(kw_only=True)
class Job:
    """A tuning job as its client knows it."""

    name: str
    mix: Mix
    request: dict[str, Any]
    #: Whether the answer to the create call, and to a stop call, arrived.
    created: bool = False
    stop_asked: bool = False
    stopped: bool = False
    over: bool = False
    #: Found missing after its create call was not answered: it never was there.
    missing: bool = False
    #: What was read of it last: the description once it was over, and training jobs that were over.
    description: dict[str, Any] | None = None
    ended: dict[str, dict[str, Any]] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    @property
    def parallel(self) -> int:
        """Most training jobs at a time."""
        limits = self.request["HyperParameterTuningJobConfig"]["ResourceLimits"]
        return int(limits["MaxParallelTrainingJobs"])

    @property
    def most(self) -> int:
        """Most training jobs in all."""
        limits = self.request["HyperParameterTuningJobConfig"]["ResourceLimits"]
        return int(limits["MaxNumberOfTrainingJobs"])


@dataclass(kw_only=True)
class Alone:
    """A training job of its own as its client knows it."""

    request: dict[str, Any]
    created: bool = False
    missing: bool = False
    stop_asked: bool = False
    stopped: bool = False
    #: What was read of it once it was over.
    description: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.request["TrainingJobName"])


# --- the server ------------------------------------------------------------------------------------


class Server:
    """A server on the campaign's folder, started without waiting."""

    def __init__(self, folder: Path, *options: str) -> None:
        command = [sys.executable, "-m", "airflow_amt.cli.main", "local", "serve", "--until-stdin-closes"]
        command += ["--state-dir", str(folder), "--clock-rate", str(CLOCK_RATE), "--stop-grace", "0.3"]
        for image, trainer in IMAGES.items():
            command += ["--image", f"{image}={trainer}"]
        self.folder = folder
        self._log = (folder.parent / f"{folder.name}.log").open("ab")
        self.process = subprocess.Popen(
            [*command, *options],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )
        self.pid = self.process.pid

    @property
    def credentials(self) -> Credentials:
        """What its clients sign with: those of its folder."""
        return of_state_folder(self.folder)

    def client(self) -> Any:
        """Wait until it is ready, and return a client."""
        output = self.process.stdout
        line = b"" if output is None else output.readline()
        if not line.startswith(READY.encode()):
            raise ViolationError(f"the server did not start; see {self._log.name}")
        return get_session().create_client(
            "sagemaker",
            endpoint_url=line.decode().removeprefix(READY).strip(),
            region_name="us-east-1",
            aws_access_key_id=self.credentials.access_key_id,
            aws_secret_access_key=self.credentials.secret_access_key,
            config=Config(retries={"total_max_attempts": 1}, read_timeout=30, max_pool_connections=20),
        )

    def end(self, number: signal.Signals, wait: float = 60.0) -> int:
        """Send a signal, wait for the end, and return the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(wait)
        for stream in (self.process.stdin, self.process.stdout, self._log):
            if stream is not None:
                stream.close()
        return code


# --- the campaign ----------------------------------------------------------------------------------


class Campaign:
    """Kills a server again and again and looks for what must not be.

    :param folder: of its own; gets the state folder and the servers' logs.
    :param seed: of all choices.
    :param most: tuning jobs in all.
    :param say: gets a line for each kill.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        *,
        most: int = 60,
        mixes: Sequence[Mix] = MIXES,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.folder = folder
        self.seed = seed
        self.jobs: dict[str, Job] = {}
        self.alone: dict[str, Alone] = {}
        self.kills: Counter[str] = Counter()
        self.survivors = 0
        self.lost_answers = 0
        self._most = most
        self._mixes = mixes
        self._say = say
        self._state = folder / "state"
        self._draw = random.Random(f"{seed}/campaign")
        self._lock = threading.Lock()
        # Not only names: markers of other campaigns on this machine must not match.
        self._prefix = f"k{random.SystemRandom().randrange(16**5):05x}"

    def run(self, kills: int) -> None:
        """Kill so often, let all tuning jobs end, and check everything.

        :raises ViolationError: something that must not be.
        """
        moments = [self.starting, self.at_once, self.training, self.creating, self.stopping, self.closing]
        for number in range(kills):
            # Each moment comes up as often as the others.
            if number % len(moments) == 0:
                self._draw.shuffle(moments)
            moment = moments[number % len(moments)]
            began = time.monotonic()
            server = self._serve()
            with contextlib.ExitStack() as stack:
                stack.callback(self._bury, server)
                try:
                    moment(server)
                except (ViolationError, AssertionError, ClientError) as problem:
                    raise ViolationError(f"kill {number + 1} ({moment.__name__}): {problem}") from problem
            self.kills[moment.__name__] += 1
            self._say(
                f"kill {number + 1}/{kills} {moment.__name__}, {time.monotonic() - began:.1f} s, "
                f"{len(self.jobs)} tuning jobs, {len(self._going_on())} go on"
            )
        self._finish()

    def _serve(self) -> Server:
        options = ("--fork-server", "json") if self._draw.random() < 0.5 else ()
        return Server(self._state, *options)

    def _bury(self, server: Server) -> None:
        if server.process.returncode is None:
            server.end(signal.SIGKILL)
        # What lives on until the next server ends it.
        self.survivors += len(training_processes(f"us-east-1/{self._prefix}"))

    # --- the moments -----------------------------------------------------------------------------

    def starting(self, server: Server) -> None:
        """While it starts: imports, opens the database, cleans up, begins."""
        time.sleep(self._draw.uniform(0.2, 1.6))
        server.end(signal.SIGKILL)

    def at_once(self, server: Server) -> None:
        """Right after it said that it is ready."""
        server.client()
        time.sleep(self._draw.uniform(0, 0.05))
        server.end(signal.SIGKILL)

    def training(self, server: Server) -> None:
        """While it trains, and clients only look."""
        client = self._ready(server)
        self._top_up(client)
        until = time.monotonic() + self._draw.uniform(0.1, 2.5)
        while time.monotonic() < until:
            self._watch(client, server)
        server.end(signal.SIGKILL)

    def creating(self, server: Server) -> None:
        """While create calls are under way, whose answers are lost."""
        client = self._ready(server)
        known = len(self.jobs)
        calls = [partial(create, client) for create in (self._create, self._create_alone)] * 3
        with self._in_threads(calls):
            # Some answers, or none, and then a moment in which the server works on the others.
            answers = self._draw.randint(0, 3)
            deadline = time.monotonic() + 1
            while time.monotonic() < deadline and self._answers_after(known) < answers:
                time.sleep(0.001)
            time.sleep(self._draw.uniform(0, 0.03))
            server.end(signal.SIGKILL)

    def _answers_after(self, known: int) -> int:
        with self._lock:
            return sum(job.created for job in list(self.jobs.values())[known:])

    def stopping(self, server: Server) -> None:
        """While stop calls are under way, or their training jobs are ending."""
        client = self._ready(server)
        self._top_up(client)
        time.sleep(self._draw.uniform(0, 0.4))
        going_on = sorted(job.name for job in self._going_on())
        chosen = self._draw.sample(going_on, min(2, len(going_on)))
        alone = [job.name for job in self._alone_going_on()][:1]
        calls: list[Callable[[], object]] = [partial(self._stop, client, name) for name in chosen]
        calls += [partial(self._stop_alone, client, name) for name in alone]
        with self._in_threads(calls):
            time.sleep(self._draw.uniform(0, 0.5))
            server.end(signal.SIGKILL)

    def closing(self, server: Server) -> None:
        """While it ends because of a SIGTERM."""
        client = self._ready(server)
        self._top_up(client)
        time.sleep(self._draw.uniform(0, 0.5))
        server.process.send_signal(signal.SIGTERM)
        time.sleep(self._draw.uniform(0, 0.6))
        server.end(signal.SIGKILL)

    # --- what clients do -------------------------------------------------------------------------

    def _ready(self, server: Server) -> Any:
        client = server.client()
        self._check_processes(server)
        self._check_all(client)
        return client

    def _top_up(self, client: Any) -> None:
        while len(self._going_on()) < AT_A_TIME and self._create(client):
            pass
        if len(self._alone_going_on()) < 2:
            self._create_alone(client)

    def _going_on(self) -> list[Job]:
        return [job for job in self.jobs.values() if not job.over and not job.missing]

    def _alone_going_on(self) -> list[Alone]:
        return [job for job in self.alone.values() if job.description is None and not job.missing]

    def _create_alone(self, client: Any) -> None:
        with self._lock:
            number = len(self.alone)
            draw = random.Random(f"{self.seed}/alone/{number}")
            job = Alone(request=self._alone_request(draw, f"{self._prefix}-alone-{number:03d}-x"))
            self.alone[job.name] = job
        try:
            client.create_training_job(**job.request)
            job.created = True
        except LOST:
            self.lost_answers += 1

    @staticmethod
    def _alone_request(draw: random.Random, name: str) -> dict[str, Any]:
        definition = create_request("any", **_survey(draw))["TrainingJobDefinition"]
        static = definition.pop("StaticHyperParameters")
        retries = draw.choice([0, 0, 5])
        return {
            "TrainingJobName": name,
            "HyperParameters": {**static, "seconds": f"{draw.uniform(0.1, 3):.2f}", "x": "0.5"},
            "Tags": [{"Key": "number", "Value": str(draw.random())}],
            **({"RetryStrategy": {"MaximumRetryAttempts": retries}} if retries else {}),
            **definition,
        }

    def _stop_alone(self, client: Any, name: str) -> None:
        job = self.alone[name]
        job.stop_asked = True
        try:
            client.stop_training_job(TrainingJobName=name)
            job.stopped = True
        except LOST:
            self.lost_answers += 1
        except ClientError as error:
            if error.response["Error"]["Code"] != "ValidationException":
                raise

    def _create(self, client: Any) -> bool:
        """Create a tuning job, unless there have been enough; say whether."""
        with self._lock:
            number = len(self.jobs)
            if number >= self._most:
                return False
            draw = random.Random(f"{self.seed}/job/{number}")
            mix = self._mixes[number % len(self._mixes)]
            name = f"{self._prefix}-{number:03d}-{mix.name}"
            job = Job(name=name, mix=mix, request=self._request(draw, name, mix))
            self.jobs[name] = job
        try:
            client.create_hyper_parameter_tuning_job(**job.request)
            job.created = True
        except LOST:
            self.lost_answers += 1
        return True

    def _request(self, draw: random.Random, name: str, mix: Mix) -> dict[str, Any]:
        request = create_request(name, **mix.options(draw))
        request["HyperParameterTuningJobConfig"]["RandomSeed"] = draw.randrange(1000)
        if mix.change is not None:
            parents = [one.name for one in self.jobs.values() if one.mix.name == mix.name and one.over]
            mix.change(request, draw, parents)
        return request

    def _stop(self, client: Any, name: str) -> None:
        job = self.jobs[name]
        job.stop_asked = True
        try:
            client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
            job.stopped = True
        except LOST:
            self.lost_answers += 1
        except ClientError as error:
            # It may have ended meanwhile.
            if error.response["Error"]["Code"] != "ValidationException":
                raise

    @contextlib.contextmanager
    def _in_threads(self, calls: Sequence[Callable[[], object]]) -> Iterator[None]:
        problems: list[BaseException] = []

        def run(call: Callable[[], object]) -> None:
            try:
                call()
            except BaseException as problem:  # noqa: BLE001 - raised below, in the main thread
                problems.append(problem)

        threads = [threading.Thread(target=run, args=[call]) for call in calls]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            for thread in threads:
                thread.join()
        if problems:
            raise ViolationError(f"a call failed: {problems[0]!r}") from problems[0]

    # --- what must be ----------------------------------------------------------------------------

    def _check_processes(self, server: Server) -> None:
        """Only this server's descendants may be left of the training processes."""

        def strangers() -> list[psutil.Process]:
            return [one for one in training_processes(self._identity()) if not _descends(one, server.pid)]

        try:
            wait_until(lambda: not strangers(), "the end of what earlier servers left", 10)
        except AssertionError as late:
            raise ViolationError(
                f"{late}: {[one.as_dict(['pid', 'cmdline']) for one in strangers()]}"
            ) from None

    def _identity(self) -> str:
        with contextlib.closing(
            sqlite3.connect(f"file:{self._state / 'amt.sqlite3'}?mode=ro", uri=True)
        ) as one:
            (value,) = one.execute("SELECT value FROM meta WHERE key = 'identity'").fetchone()
        return f"{value}/"

    def _check_all(self, client: Any) -> None:
        for job in list(self.jobs.values()):
            if not job.over:
                self._check(client, job)
        for alone in list(self.alone.values()):
            if alone.description is None:
                self._check_alone(client, alone)
        over = [job for job in self.jobs.values() if job.over]
        for job in self._draw.sample(over, min(_OVER_AT_A_TIME, len(over))):
            self._check(client, job)

    def _watch(self, client: Any, server: Server) -> None:
        """Look at one tuning job and at the processes."""
        going_on = self._going_on()
        if going_on:
            self._check(client, self._draw.choice(going_on))
        self._check_parallel(server)

    def _check_parallel(self, server: Server) -> None:
        """Count the training processes of each tuning job that were alive at one and the same moment."""
        found = []
        for process in training_processes(f"us-east-1/{self._prefix}"):
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                # One that ends while it is looked at has no environment any more.
                marker = process.environ().get(MARKER)
                if marker and process.ppid() == server.pid and os.getsid(process.pid) == process.pid:
                    found.append((marker, process))
        leaders: dict[str, set[str]] = {}
        for marker, process in found:
            # Whoever was alive when it was found and still is, was alive together with the others.
            with contextlib.suppress(psutil.Error):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    training_job = marker.rpartition("/")[2]
                    leaders.setdefault(training_job.rsplit("-", 2)[0], set()).add(training_job)
        for name, training in leaders.items():
            job = self.jobs.get(name)
            if job is None:
                # A training job of its own.
                continue
            _must(len(training) <= job.parallel, f"{name} has {sorted(training)} at once, not {job.parallel}")

    def _check(self, client: Any, job: Job) -> None:
        """Compare what the server says about a tuning job with what it said and with itself."""
        before = self._describe(client, job)
        if before is None:
            _must(not job.created, f"{job.name} was created and is gone")
            job.missing = True
            return
        _must(not job.missing, f"{job.name} was not there and appeared")
        # One that was not answered, but is there, has to be there wholly, and to stay.
        job.created = True
        while True:
            summaries = training_jobs(client, job.name)
            description = self._describe(client, job)
            if description is None:
                raise ViolationError(f"{job.name} is gone")
            if description == before:
                break
            before = description
        if job.over:
            _must(
                description == job.description,
                f"{job.name} was over and changed: {job.description}, now {description}",
            )
            there = {one["TrainingJobName"]: one for one in summaries}
            _must(there == job.ended, f"{job.name} was over, and its training jobs changed: {there}")
            return
        _check_request(client, job, description)
        _check_training_jobs(job, description, summaries)
        report = _replay(description, summaries)
        _check_figures(job, description, summaries, report)
        if description["HyperParameterTuningJobStatus"] in OVER:
            _check_end(job, description, summaries, report)
            job.description = description
            job.over = True
        elif job.stopped:
            _must(
                description["HyperParameterTuningJobStatus"] == "Stopping",
                f"{job.name} was stopped and is {description['HyperParameterTuningJobStatus']}",
            )

    def _check_alone(self, client: Any, job: Alone) -> None:
        """Compare what the server says about a training job of its own with what it said and with itself."""
        try:
            description = client.describe_training_job(TrainingJobName=job.name)
        except ClientError as error:
            # SageMaker has no error of its own for a training job that is not there.
            if "not found" not in error.response["Error"]["Message"]:
                raise
            _must(not job.created, f"{job.name} was created and is gone")
            job.missing = True
            return
        _must(not job.missing, f"{job.name} was not there and appeared")
        job.created = True
        del description["ResponseMetadata"]
        _must(
            job.description in (None, description),
            f"{job.name} was over and changed: {job.description}, now {description}",
        )
        _must(description["HyperParameters"] == job.request["HyperParameters"], f"{job.name} differs")
        tags = client.list_tags(ResourceArn=description["TrainingJobArn"])["Tags"]
        _must(tags == job.request["Tags"], f"{job.name}: the tags are {tags}")
        moments = [description.get(key) for key in ("CreationTime", "TrainingStartTime", "TrainingEndTime")]
        known = [moment for moment in moments if moment is not None]
        _must(known == sorted(known), f"{job.name}: times are {known}")
        phases = [phase["StartTime"] for phase in description["SecondaryStatusTransitions"]]
        _must(phases == sorted(phases), f"{job.name}: its phases began at {phases}")
        status, reason = description["TrainingJobStatus"], description.get("FailureReason", "")
        if status not in OVER:
            _must(not job.stopped or status == "Stopping", f"{job.name} was stopped and is {status}")
            return
        job.description = description
        _must("TrainingEndTime" in description, f"{job.name} is over but has no end")
        _must(status != "Stopped" or job.stop_asked, f"nobody stopped {job.name}")
        _must(not job.stopped or status == "Stopped", f"{job.name} was stopped and is {status}")
        # The server's own end is the only thing that can fail it.
        _must(status != "Failed" or reason.startswith("InternalServerError"), f"{job.name} failed: {reason}")
        if status == "Completed":
            (metric,) = description["FinalMetricDataList"]
            _must(metric["Value"] == 0.5, f"{job.name} has the metric {metric}")

    def _describe(self, client: Any, job: Job) -> dict[str, Any] | None:
        try:
            description: dict[str, Any] = client.describe_hyper_parameter_tuning_job(
                HyperParameterTuningJobName=job.name
            )
        except ClientError as error:
            if error.response["Error"]["Code"] == "ResourceNotFound":
                return None
            raise
        for changing in ("ResponseMetadata", "ConsumedResources"):
            description.pop(changing, None)
        return description

    # --- the end ---------------------------------------------------------------------------------

    def _finish(self) -> None:
        server = self._serve()
        with contextlib.ExitStack() as stack:
            stack.callback(self._bury, server)
            client = self._ready(server)

            def over() -> bool:
                self._watch(client, server)
                for alone in self._alone_going_on():
                    self._check_alone(client, alone)
                return not self._going_on() and not self._alone_going_on()

            wait_until(over, "the end of all tuning jobs", 240)
            for job in self.jobs.values():
                self._check(client, job)
            for alone in self.alone.values():
                self._check_alone(client, alone)
            names = [name for job in self.jobs.values() for name in job.ended]
            _must(len(names) == len(set(names)), "a training job belongs to two tuning jobs")
            identity = self._identity()
            code = server.end(signal.SIGTERM)
            _must(code == 0, f"the last server ended with {code}")
            left = training_processes(identity)
            _must(not left, f"processes are left: {left}")
        self._check_reproducible()
        log = (self.folder / "state.log").read_text(encoding="utf-8", errors="replace")
        _must("Traceback" not in log, f"an error in the log:\n{log[log.find('Traceback') - 500 :][:4000]}")

    def _check_reproducible(self) -> None:
        """Run the Random searches again, without a kill: they have to try the same combinations."""
        chosen = [job for job in self.jobs.values() if job.mix.reproducible and job.created]
        if not chosen:
            return
        server = Server(self.folder / "reference")
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: server.process.returncode is None and server.end(signal.SIGKILL))
            client = server.client()
            for job in chosen:
                request = json.loads(json.dumps(job.request))
                config = request["HyperParameterTuningJobConfig"]
                config["ResourceLimits"].update(
                    MaxParallelTrainingJobs=4, MaxNumberOfTrainingJobs=len(job.ended)
                )
                config.pop("TuningJobCompletionCriteria", None)
                request["TrainingJobDefinition"]["StaticHyperParameters"]["seconds"] = "0"
                if not job.ended:
                    continue
                client.create_hyper_parameter_tuning_job(**request)
                wait_until(partial(_is_over, client, job.name), f"the reference of {job.name}")
                expected = [one["TunedHyperParameters"] for one in training_jobs(client, job.name)]
                tried = [job.ended[name]["TunedHyperParameters"] for name in sorted(job.ended)]
                _must(tried == expected, f"{job.name} tried {tried}, without kills {expected}")
            server.end(signal.SIGTERM)

    def figures(self) -> dict[str, Any]:
        """Return what happened."""
        ended = [job for job in self.jobs.values() if job.description is not None]
        training = [one for job in ended for one in job.ended.values()]
        return {
            "seed": self.seed,
            "kills": dict(sorted(self.kills.items())),
            "tuning_jobs": len(ended),
            "tuning_job_ends": dict(
                sorted(
                    Counter(
                        str((job.description or {})["HyperParameterTuningJobStatus"]) for job in ended
                    ).items()
                )
            ),
            "tuning_jobs_that_were_never_there": sum(job.missing for job in self.jobs.values()),
            "lost_answers": self.lost_answers,
            "training_jobs": len(training),
            "training_job_ends": dict(sorted(Counter(one["TrainingJobStatus"] for one in training).items())),
            "training_jobs_interrupted": sum(
                "InternalServerError" in one.get("FailureReason", "") for one in training
            ),
            "training_jobs_of_their_own": dict(
                sorted(
                    Counter(
                        str(one.description["TrainingJobStatus"])
                        for one in self.alone.values()
                        if one.description is not None
                    ).items()
                )
            ),
            "processes_that_outlived_a_server": self.survivors,
        }


def _is_over(client: Any, name: str) -> bool:
    description = client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    return description["HyperParameterTuningJobStatus"] in OVER


def _must(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ViolationError(otherwise)


def _descends(process: psutil.Process, ancestor: int) -> bool:
    try:
        return any(one.pid == ancestor for one in process.parents())
    except psutil.NoSuchProcess:
        return True


def _check_request(client: Any, job: Job, description: Mapping[str, Any]) -> None:
    """What was asked for is there wholly: configuration, definition, tags."""
    config = description["HyperParameterTuningJobConfig"]
    _must(config == job.request["HyperParameterTuningJobConfig"], f"{job.name}: the configuration differs")
    for asked, there in zip(_definitions(job.request), _definitions(description), strict=True):
        static = {**asked["StaticHyperParameters"], "_tuning_objective_metric": "objective"}
        for key, value in {**asked, "StaticHyperParameters": static}.items():
            said = there.get(key)
            if key == "OutputDataConfig":
                # SageMaker adds an empty key.
                said = {one: there[key][one] for one in value}
            _must(said == value, f"{job.name}: {key} is {said}, not {value}")
    warm_start = job.request.get("WarmStartConfig")
    _must(description.get("WarmStartConfig") == warm_start, f"{job.name}: the warm start differs")
    tags = client.list_tags(ResourceArn=description["HyperParameterTuningJobArn"])["Tags"]
    _must(tags == job.request["Tags"], f"{job.name}: the tags are {tags}")


def _definitions(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the training job definitions of a request or a description."""
    one = request.get("TrainingJobDefinition")
    return list(request["TrainingJobDefinitions"]) if one is None else [one]


def _check_training_jobs(
    job: Job, description: Mapping[str, Any], summaries: Sequence[Mapping[str, Any]]
) -> None:
    """Names, limits, times; and whoever was there or over before, still is."""
    names = [one["TrainingJobName"] for one in summaries]
    _must(len(set(names)) == len(names), f"{job.name} lists a training job twice: {names}")
    _must(job.seen <= set(names), f"{job.name} has lost {sorted(job.seen - set(names))}")
    job.seen.update(names)
    _must(len(names) <= job.most, f"{job.name} has {len(names)} training jobs, not {job.most}")
    running = [one for one in summaries if one["TrainingJobStatus"] in ("InProgress", "Stopping")]
    _must(len(running) <= job.parallel, f"{job.name} runs {len(running)} at once, not {job.parallel}")
    created, tuning_end = description["CreationTime"], description.get("HyperParameterTuningEndTime")
    for one in summaries:
        moments = [
            created,
            one["CreationTime"],
            one.get("TrainingStartTime"),
            one.get("TrainingEndTime"),
            tuning_end,
        ]
        known = [moment for moment in moments if moment is not None]
        _must(known == sorted(known), f"{job.name}: times of {one['TrainingJobName']} are {known}")
        if one["TrainingJobStatus"] in OVER:
            name = one["TrainingJobName"]
            _must("TrainingEndTime" in one, f"{name} is {one['TrainingJobStatus']} but has no end")
            _must(job.ended.setdefault(name, dict(one)) == one, f"{name} was over and changed: {one}")
            if (
                one["TrainingJobStatus"] == "Completed"
                and "FinalHyperParameterTuningJobObjectiveMetric" in one
            ):
                value = one["FinalHyperParameterTuningJobObjectiveMetric"]["Value"]
                x = float(one["TunedHyperParameters"]["x"])
                # The model's shape of the value is a 32-bit float.
                _must(abs(value - x) <= 1e-6 * abs(x), f"{name} has the objective {value} for x = {x}")


def _objective(description: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the objective; with several definitions that of the first: they have one type."""
    shared = description["HyperParameterTuningJobConfig"].get("HyperParameterTuningJobObjective")
    found: Mapping[str, Any] = shared or _definitions(description)[0]["TuningObjective"]
    return found


def _replay(description: Mapping[str, Any], summaries: Sequence[Mapping[str, Any]]) -> ReplayReport:
    config = description["HyperParameterTuningJobConfig"]
    return replay(
        [TrainingJobResult.from_summary(one) for one in summaries],
        CompletionCriteria.from_request(config),
        ObjectiveType(_objective(description)["Type"]),
        started_at=description["CreationTime"],
        until=description.get("HyperParameterTuningEndTime"),
    )


def _check_figures(
    job: Job,
    description: Mapping[str, Any],
    summaries: Sequence[Mapping[str, Any]],
    report: ReplayReport,
) -> None:
    """Counters and best are those of the training jobs listed; the state of the criteria is the replay's."""
    status = Counter(one["TrainingJobStatus"] for one in summaries)
    failed = [one for one in summaries if one["TrainingJobStatus"] == "Failed"]
    retryable = sum(one["FailureReason"].startswith("InternalServerError") for one in failed)
    expected = {
        "Completed": status["Completed"],
        "InProgress": status["InProgress"] + status["Stopping"],
        "RetryableError": retryable,
        "NonRetryableError": len(failed) - retryable,
        "Stopped": status["Stopped"],
    }
    counters = description["TrainingJobStatusCounters"]
    _must(counters == expected, f"{job.name} counts {counters}, lists {expected}")
    objectives = Counter(one["ObjectiveStatus"] for one in summaries)
    expected = {one: objectives[one] for one in ("Succeeded", "Pending", "Failed")}
    counters = description["ObjectiveStatusCounters"]
    _must(counters == expected, f"{job.name} counts objectives {counters}, lists {expected}")
    best = (description.get("BestTrainingJob") or {}).get("TrainingJobName")
    expected_best = best_of(summaries, _objective(description)["Type"])
    _must(best == expected_best, f"{job.name} has the best {best}, of those listed it is {expected_best}")
    details = description.get("TuningJobCompletionDetails") or {}
    not_improving = details.get("NumberOfTrainingJobsObjectiveNotImproving")
    _must(
        not_improving in (None, report.not_improving_count),
        f"{job.name}: {not_improving} not improving, replay {report.not_improving_count}",
    )
    converged = details.get("ConvergenceDetectedTime")
    _must(
        converged == report.convergence_detected_at,
        f"{job.name} converged at {converged}, replay {report.convergence_detected_at}",
    )


def _objectives_before_hope_ended(summaries: Sequence[Mapping[str, Any]]) -> int:
    """Count objectives up to the fifth attempt, which fails a tuning job that has none by then.

    Those that were running are stopped then, and may still bring one. With fewer attempts all count.
    """
    ended = sorted(summaries, key=lambda one: one["TrainingEndTime"])
    attempts = [
        one
        for one in ended
        if one["TrainingJobStatus"] != "Stopped"
        and not one.get("FailureReason", "").startswith("InternalServerError")
    ]
    if len(attempts) >= 5:
        ended = [one for one in ended if one["TrainingEndTime"] <= attempts[4]["TrainingEndTime"]]
    return sum(one["ObjectiveStatus"] == "Succeeded" for one in ended)


def _check_end(
    job: Job,
    description: Mapping[str, Any],
    summaries: Sequence[Mapping[str, Any]],
    report: ReplayReport,
) -> None:
    """The end agrees with the criteria, with what was asked, and nothing was launched after it."""
    status = description["HyperParameterTuningJobStatus"]
    _must("HyperParameterTuningEndTime" in description, f"{job.name} is {status} but has no end")
    _must(all(one["TrainingJobStatus"] in OVER for one in summaries), f"{job.name} is over but trains")
    if job.stopped:
        # Unless it was over when the call came, which the call would have said.
        _must(status == "Stopped", f"{job.name} was stopped and is {status}")
    if status == "Stopped":
        _must(job.stop_asked, f"nobody stopped {job.name}")
        return
    # The kills alone may have failed all training jobs of a small tuning job, which then came to nothing.
    unlucky = status == "Failed" and all(
        one.get("FailureReason", "").startswith("InternalServerError") for one in summaries
    )
    _must(status in job.mix.every_end or unlucky, f"{job.name} is {status}")
    if status == "Failed":
        early = _objectives_before_hope_ended(summaries)
        _must(early == 0, f"{job.name} is Failed with {early} objectives")
        _must(bool(description.get("FailureReason")), f"{job.name} is Failed without a reason")
        return
    _must(bool(report.first) or job.mix.exhaustible, f"{job.name} is Completed and no criterion fired")
    if report.first:
        # A launch that was being decided when the time ran out may follow it.
        first = report.first[0]
        slack = timedelta(seconds=2 * CLOCK_RATE if first.reason is CompletionReason.MAX_RUNTIME else 0)
        late = [one["TrainingJobName"] for one in summaries if one["CreationTime"] > first.at + slack]
        _must(not late, f"{job.name} launched {late} after {first.reason} at {first.at}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a campaign and say what happened."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.system.kill9", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=None, help="of all choices (default: a random one)")
    parser.add_argument("--json", action="store_true", help="print what happened as one line")
    parser.add_argument("--keep", type=Path, default=None, metavar="DIR", help="work in this new folder")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    folder = options.keep or Path(tempfile.mkdtemp(prefix="airflow-amt-kill9-"))
    folder.mkdir(parents=True, exist_ok=True)
    sys.stderr.write(f"seed {seed}, in {folder}\n")

    def say(line: str) -> None:
        sys.stderr.write(line + "\n")

    campaign = Campaign(folder, seed, most=max(12, 4 * options.kills), say=say)
    try:
        campaign.run(options.kills)
    except (ViolationError, AssertionError, ClientError) as violation:
        sys.stderr.write(f"seed {seed}: {violation}\nEverything is kept in {folder}\n")
        return 1
    figures = campaign.figures()
    sys.stdout.write(json.dumps(figures, indent=None if options.json else 2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
