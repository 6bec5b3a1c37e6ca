"""Force each race of the stop policies, many times, and judge from outside how it ended.

``python -m tests.system.policy_races [--times 50] [--seed N] [--race NAME] [--json]``

Real operators, sensors, triggers and hooks work on real tuning jobs of an embedded AMT. Each of them has an
address of its own at a door (:mod:`tests.system.gate`) that holds or loses single calls, so that a race is
won or lost by whom it has to be; throttling, errors and delays come from the embedded AMT's own faults; a
triggerer that dies is a process that is killed. What is judged is what the server says (how many stop calls
it carried out, whose, the end, the tags) beside what the tasks said: their outcome, and how often they told
people. Exit code 0 only if every race ended right each time.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

from botocore.exceptions import ClientError

from airflow_amt.local import RunningServer, running
from tests.local.support import create_request, describe, wait_until
from tests.system.gate import Call, Conductor, Gate, Hold, Script
from tests.system.trigger_process import TriggerProcess, prepare

REGION = "eu-west-1"
TRAINER = Path(__file__).parent / "trainers" / "races.sh"
IMAGE = "races:1"
#: Seconds between SIGTERM and SIGKILL: what a stubborn training job holds up the end of its tuning job.
GRACE_SECONDS = 4.0
INTERVAL = 0.3
#: Longest time for one step of a race; none takes a tenth of it on an idle machine.
STEP_SECONDS = 240.0
THREADS = 20
OVER = ("Completed", "Stopped", "Failed")

WAYS = ("operator_sync", "operator_deferred", "sensor_poke", "sensor_deferred")


class WrongError(AssertionError):
    """A race did not end right."""


def must(condition: object, otherwise: str) -> None:
    """Fail the race unless a condition holds."""
    if not condition:
        raise WrongError(otherwise)


@dataclass
class Played:
    """What an enforcing task came to.

    :param label: who it is in the record of a stop.
    :param outcome: as it is in XCom.
    :param reports: how often, and with what, it told people.
    :param error: what it raised.
    :param claims: whether it says that it stopped the job.
    """

    label: str
    outcome: dict[str, Any] = field(default_factory=dict)
    reports: list[dict[str, Any]] = field(default_factory=list)
    error: BaseException | None = None
    claims: bool = False


class Stage:
    """What all races share.

    :param server: the embedded AMT.
    :param gate: the door in front of it.
    :param folder: for pipes.
    """

    def __init__(self, server: RunningServer, gate: Gate, folder: Path) -> None:
        self.server = server
        self.gate = gate
        self.folder = folder
        self.client = server.client(REGION, max_pool_connections=THREADS * 2)
        #: Their environment variables stay until the end: others go through all variables meanwhile.
        self.connections: list[str] = []
        self._log_lock = Lock()
        self._log_at = 0
        self._calls: dict[str, list[dict[str, Any]]] = defaultdict(list)

    def client_at(self, actor: str) -> Any:
        """Return a plain client of boto3 that comes to the door as this actor."""
        import boto3

        return boto3.session.Session().client(
            "sagemaker",
            endpoint_url=self.gate.address(actor),
            region_name=REGION,
            aws_access_key_id=self.server.credentials.access_key_id,
            aws_secret_access_key=self.server.credentials.secret_access_key,
        )

    def calls(self, job: str, operation: str) -> list[dict[str, Any]]:
        """Return the calls about a tuning job that the server has seen, in their order."""
        path = self.server.request_log
        if path is None:
            raise ValueError("the server keeps no request log")
        with self._log_lock:
            with path.open("rb") as log:
                log.seek(self._log_at)
                for line in log:
                    if not line.endswith(b"\n"):
                        break
                    self._log_at += len(line)
                    call = json.loads(line)
                    self._calls[call["tuning_job"]].append(call)
            return [one for one in self._calls[job] if one["operation"] == operation]


class Scene:
    """One run of one race, with a tuning job of its own.

    :param number: which run; variants take turns by it.
    """

    def __init__(self, stage: Stage, race: str, number: int, seed: int) -> None:
        self.stage = stage
        self.number = number
        self.name = f"{race}-{number:03d}"[:32]
        self.random = random.Random(f"{seed}/{race}/{number}")
        self._pool = ThreadPoolExecutor(4)
        self._environment: dict[str, str] = {}
        self._pipe = stage.folder / self.name
        self.request: dict[str, Any] = {}
        #: Actors whose stop call AWS accepted, as the door saw it.
        self.accepted: list[str] = []
        self.processes: list[TriggerProcess] = []

    @property
    def environment(self) -> dict[str, str]:
        """Its connections, for another process."""
        return dict(self._environment)

    def close(self) -> None:
        """Let go of everything."""
        for process in self.processes:
            process.close()
        self._pool.shutdown(wait=False)

    def turn(self, choices: Sequence[Any]) -> Any:
        """Return one of the choices, in turn."""
        return choices[self.number % len(choices)]

    def connect(self, actor: str, script: Script | None = None) -> str:
        """Return a connection for an actor; its calls pass the door with this script."""
        address = f"{self.name}-{actor}"
        asked = script or Script()

        def after(call: Call) -> None:
            if call.kind == "Stop" and call.status == 200:
                self.accepted.append(actor)
            asked.after(_as(call, actor))

        self.stage.gate.script(
            address, Script(before=lambda call: asked.before(_as(call, actor)), after=after)
        )
        connection = f"race_{self.name}_{actor}".replace("-", "_")
        key = f"AIRFLOW_CONN_{connection.upper()}"
        self._environment[key] = self.stage.server.connection(
            REGION, endpoint_url=self.stage.gate.address(address)
        )
        os.environ[key] = self._environment[key]
        self.stage.connections.append(key)
        return connection

    def plan(self, sequence: str, *, most: int = 50, target: float | None = None) -> None:
        """Say what the tuning job will be like."""
        static = {"sequence": sequence, "release": str(self._pipe)}
        if "await:" in sequence:
            os.mkfifo(self._pipe)
        self.request = create_request(self.name, image=IMAGE, most=most, target=target, static=static)

    def create(self) -> None:
        """Create the tuning job, as somebody else."""
        self.stage.client.create_hyper_parameter_tuning_job(**self.request)

    def release(self) -> None:
        """Let the training job that waits go on."""

        def opened() -> bool:
            with suppress(OSError):
                os.close(os.open(self._pipe, os.O_WRONLY | os.O_NONBLOCK))
                return True
            return False

        wait_until(opened, f"a training job of {self.name} that waits", STEP_SECONDS)

    def describe(self) -> dict[str, Any]:
        """Describe the tuning job, past the door."""
        return describe(self.stage.client, self.name)

    def wait_for_status(self, *statuses: str) -> str:
        """Wait until the tuning job has one of these."""

        def reached() -> str | None:
            status = str(self.describe()["HyperParameterTuningJobStatus"])
            return status if status in statuses else None

        return str(wait_until(_slowly(reached), f"{self.name} to be {statuses}", STEP_SECONDS))

    def wait_for_objective(self) -> None:
        """Wait until the tuning job is there and has a best training job."""

        def there() -> bool:
            try:
                return "BestTrainingJob" in self.describe()
            except ClientError as error:
                must(error.response["Error"]["Code"] == "ResourceNotFound", f"describing it failed: {error}")
                return False

        wait_until(_slowly(there), f"an objective of {self.name}", STEP_SECONDS)

    def tags(self) -> dict[str, str]:
        """Return its tags."""
        arn = self.describe()["HyperParameterTuningJobArn"]
        listed = self.stage.client.list_tags(ResourceArn=arn, MaxResults=50)["Tags"]
        return {one["Key"]: one["Value"] for one in listed}

    def start(self, call: Callable[..., Any], *args: Any) -> Future[Any]:
        """Run something beside this."""
        return self._pool.submit(call, *args)

    def task(self, way: str, actor: str, sla: Any, connection: str) -> Task:
        """Return a task that holds the tuning job to an SLA."""
        return Task(self, way, actor, sla, connection)


class Task:
    """An operator that creates the tuning job, or a sensor that watches it, held to an SLA."""

    def __init__(self, scene: Scene, way: str, actor: str, sla: Any, connection: str) -> None:
        from airflow_amt.tuning.naming import task_label
        from tests.unit import tasks

        self._deferred_error: type[Any] = vars(tasks)["TaskDeferred"]
        self._scene = scene
        self._way = way
        self.actor = actor
        self.context = tasks.task_context(dag_id=f"dag_{actor}", task_id=f"{scene.name}-{actor}")
        self.played = Played(label=task_label(self.context["ti"]))
        self._options: dict[str, Any] = {
            "aws_conn_id": connection,
            "policies": sla,
            "on_policy_callback": lambda context: self.played.reports.append(context["policy"]),
            "deferrable": way.endswith("deferred"),
        }

    def make(self) -> Any:
        """Build it, as each process of Airflow does."""
        from airflow_amt.operators.tuning import AmtTuningJobOperator
        from airflow_amt.sensors.tuning import AmtTuningJobSensor

        if self._way.startswith("operator"):
            return AmtTuningJobOperator(
                task_id="tune", config=self._scene.request, check_interval=INTERVAL, **self._options
            )
        return AmtTuningJobSensor(
            task_id="wait",
            tuning_job_name=self._scene.name,
            poke_interval=INTERVAL,
            timeout=STEP_SECONDS,
            **self._options,
        )

    def run(self) -> Played:
        """Run it to its end, in this thread."""
        from tests.unit.tasks import fired, stored

        def run() -> None:
            run_step: Callable[[], Any] = lambda: self.make().execute(self.context)  # noqa: E731
            while True:
                try:
                    run_step()
                    return
                except self._deferred_error as deferred:
                    payload = fired(stored(deferred.trigger))
                run_step = partial(
                    self.make().resume_execution, "execute_complete", {"event": payload}, self.context
                )

        self._end(run)
        return self.played

    def defer(self) -> tuple[str, dict[str, Any]]:
        """Run it until it defers; return the trigger, as the metadata database stores it."""
        try:
            self.make().execute(self.context)
        except self._deferred_error as deferred:
            path, arguments = deferred.trigger.serialize()
            return path, json.loads(json.dumps(arguments))
        raise WrongError("the task has not deferred")

    def resume(self, payload: Mapping[str, Any]) -> Played:
        """Go on with the event of its trigger, to its end."""
        self._end(
            lambda: self.make().resume_execution("execute_complete", {"event": dict(payload)}, self.context)
        )
        return self.played

    def _end(self, run: Callable[[], Any]) -> None:
        try:
            run()
        except Exception as error:  # noqa: BLE001 - judged later
            self.played.error = error
        self.played.outcome = self.context["ti"].xcom.get("outcome") or {}
        self.played.claims = bool(self.played.reports)


def enforce(scene: Scene, actor: str, sla: Any, connection: str) -> Played:
    """Hold the tuning job to an SLA once, as a plain task does, and look at the outcome at its end."""
    from airflow_amt.hooks.sla import AmtSlaHook

    hook = AmtSlaHook(sla, aws_conn_id=connection, requested_by=f"hook {actor}")
    played = Played(label=f"hook {actor}")
    look = hook.look(scene.name)
    must(look.verdict.stops or scene.wait_for_status("Stopping", *OVER), "the hook saw no breach")
    played.claims = look.stop is not None
    if look.stop is not None:
        played.reports = [dict(one) for one in look.reports.values()]
    scene.wait_for_status(*OVER)
    with _persistent():
        played.outcome = hook.outcome(scene.name).to_dict()
    return played


@contextmanager
def _persistent() -> Iterator[None]:
    import logging

    from airflow_amt.hooks.patience import bearing, persistent

    with bearing(persistent(logging.getLogger(__name__))):
        yield


def good_enough(**options: Any) -> Any:
    """The SLA that is broken by the first training job of a job that begins with 0.4."""
    from airflow_amt.tuning.policies import Rule, Sla, TargetReached

    return Sla(rules=(Rule.of(TargetReached(0.35), **options),))


# --- judging ----------------------------------------------------------------------------------------


def judge(scene: Scene, played: Sequence[Played], *, by: Played | None, code: str = "target_reached") -> None:
    """Judge how a race about a stop ended.

    :param played: all enforcing tasks.
    :param by: the one that stopped the job; ``None`` if that was somebody else.
    """
    for one in played:
        must(by is None or one.error is None, f"{one.label} failed: {one.error!r}")
    status = scene.describe()["HyperParameterTuningJobStatus"]
    must(status == "Stopped", f"the job is {status}")
    judge_stops(scene, max(1, len(set(scene.accepted))))
    claims = [one.label for one in played if one.claims]
    must(claims == ([] if by is None else [by.label]), f"who says that he stopped it: {claims}")
    reports = [report for one in played for report in one.reports]
    must(len(reports) == (by is not None), f"people were told {len(reports)} times")
    for one in played:
        must(one.outcome, f"{one.label} has no outcome, but {one.error!r}")
        if by is not None:
            judge_policy(one.outcome, by, code)
    if by is None:
        return
    report = reports[0]
    must((report["code"], report["action"]) == (code, "stop"), f"the report is {report}")
    tags = scene.tags()
    must(tags.get("airflow-amt:stopped-by") == "policy", f"the record is {tags}")
    must(tags.get("airflow-amt:stopped-for") == by.label, f"the record is {tags}")
    must(f"code={code}" in tags["airflow-amt:policy"].split(), f"the record is {tags}")


def judge_policy(outcome: Mapping[str, Any], by: Played, code: str) -> None:
    """An outcome says that this task stopped the job by policy, with the evidence of that moment."""
    evidence = outcome["evidence"]
    found = (outcome["reason"], outcome["certain"], evidence.get("stopped_by"), evidence.get("policy"))
    must(found == ("stopped_by_provider", True, "policy", code), f"the outcome is {found}, {evidence}")
    must(evidence["requested_by"] == by.label, f"it was stopped by {by.label}: {evidence}")
    must(evidence["share"] >= 1 and evidence["detail"], f"evidence is missing: {evidence}")
    must(evidence["evidence"]["launched"] in (1, 2), f"evidence is missing: {evidence}")
    must(outcome["best_training_job"]["objective"] == 0.4, "the best was not kept")


def judge_stops(scene: Scene, expected: int) -> None:
    """AWS carried out so many stop calls, and no more.

    Where answers get lost, calls are repeated, and AMT carries out a second one while the job is Stopping.
    """
    calls = scene.stage.calls(scene.name, "StopHyperParameterTuningJob")
    done = sum(call["carried_out"] for call in calls)
    lost = any(call["faults"] for call in calls)
    must(done == expected or (lost and expected <= done), f"{done} stop calls were carried out: {calls}")


def same_outcomes(played: Sequence[Played]) -> None:
    """All tasks tell the same."""
    told = [
        {key: one.outcome[key] for key in ("status", "reason", "certain", "evidence", "explanation")}
        for one in played
    ]
    must(all(one == told[0] for one in told), f"outcomes differ: {told}")


# --- races ------------------------------------------------------------------------------------------

#: A race: its run, and what it was like in a word, for the figures.
Run = Callable[[Scene], str]

ENDINGS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "max_training_jobs": ("0.4 await:0.3", {"most": 2}),
    "target_reached": ("0.4 await:0.95", {"target": 0.9}),
}


def _ends_by_itself(scene: Scene, hold: Hold) -> str:
    """The job completes while the call of a task that stops it is held."""
    way: str = scene.turn(WAYS)
    reason = list(ENDINGS)[scene.number // len(WAYS) % len(ENDINGS)]
    sequence, limits = ENDINGS[reason]
    scene.plan(sequence, **limits)
    if way.startswith("sensor"):
        scene.create()
    task = scene.task(way, "a", good_enough(), scene.connect("a", hold.script()))
    running_task = scene.start(task.run)
    must(hold.held.wait(STEP_SECONDS), f"{hold.kind} was never called")
    scene.release()
    scene.wait_for_status("Completed")
    hold.release()
    played: Played = running_task.result(STEP_SECONDS)
    judge_stops(scene, 0)
    must(played.error is None, f"the task failed: {played.error!r}")
    found = (played.outcome["status"], played.outcome["reason"], played.outcome["certain"])
    must(found == ("Completed", reason, True), f"the outcome is {found}")
    must(not played.reports, f"people were told {played.reports}")
    must("airflow-amt:stopped-by" not in scene.tags(), "a stop is on record")
    return way


def ends_before_intent(scene: Scene) -> str:
    """It ends after the decision, before or while the intent is written."""
    kind, moment = scene.random.choice([("Tags", "before"), ("Tags", "after"), ("Intent", "before")])
    return _ends_by_itself(scene, Hold(kind, moment))


def ends_before_stop(scene: Scene) -> str:
    """It ends after the intent is written, before the stop call comes; which may be lost, and repeated."""
    kind, moment, lost = scene.random.choice(
        [("Intent", "after", False), ("Stop", "before", False), ("Stop", "before", True)]
    )
    return _ends_by_itself(scene, Hold(kind, moment, lost=lost))


def two_policies(scene: Scene) -> str:
    """Two rules are broken in one look; the first is the reason."""
    from airflow_amt.tuning.policies import MinimumJobs, Rule, Sla, TargetReached

    way: str = scene.turn(WAYS)
    rules = [Rule.of(TargetReached(0.35)), Rule.of(MinimumJobs(1))]
    scene.random.shuffle(rules)
    scene.plan("0.4 hang")
    if way.startswith("sensor"):
        scene.create()
    task = scene.task(way, "a", Sla(rules=tuple(rules)), scene.connect("a"))
    played = scene.start(task.run).result(STEP_SECONDS)
    judge(scene, [played], by=played, code=rules[0].policy.code)
    return way


#: Two that enforce on one job: an operator creates it, whoever else finds it.
PAIRS = (
    ("operator_deferred", "sensor_deferred"),
    ("operator_sync", "sensor_poke"),
    ("sensor_deferred", "sensor_deferred"),
    ("operator_deferred", "enforce"),
    ("sensor_deferred", "enforce"),
    ("sensor_poke", "sensor_deferred"),
)


def _winner(scene: Scene, played: Sequence[Played]) -> Played:
    """Return who has stopped the job: who is on record, of those whose call was accepted."""
    accepted = {played["ab".index(actor)].label: played["ab".index(actor)] for actor in scene.accepted}
    recorded = scene.tags().get("airflow-amt:stopped-for", "nobody")
    must(recorded in accepted, f"accepted were {list(accepted)}, on record is {recorded}")
    return accepted[recorded]


def _enforcers(scene: Scene, pair: Sequence[str], script: Script) -> list[Played]:
    """Let two enforce on one job, side by side; return both."""
    # A job that is Stopping for long may be stopped again: AMT accepts that.
    scene.plan(scene.random.choice(["0.4 hang", "0.4 stubborn"]))
    if not pair[0].startswith("operator"):
        scene.create()
        scene.wait_for_objective()
    running_tasks = []
    for actor, way in zip("ab", pair, strict=True):
        connection = scene.connect(actor, script)
        if way == "enforce":
            running_tasks.append(scene.start(enforce, scene, actor, good_enough(), connection))
        else:
            running_tasks.append(scene.start(scene.task(way, actor, good_enough(), connection).run))
        if actor == "a":
            scene.wait_for_objective()
    return [one.result(STEP_SECONDS) for one in running_tasks]


def two_dags(scene: Scene) -> str:
    """Two have decided; from then on their calls are carried out in any order there is."""
    pair = scene.turn(PAIRS)
    conductor = Conductor({"a": "Tags", "b": "Tags"}, scene.random.choices("ab", k=24))
    played = _enforcers(scene, pair, conductor.script())
    must(conductor.complete, f"not both decided to stop it: {conductor.played}")
    try:
        judge(scene, played, by=_winner(scene, played))
        same_outcomes(played)
    except WrongError as error:
        error.add_note(f"in the order {conductor.played}")
        raise
    return f"{'+'.join(pair)}: {len(set(scene.accepted))} accepted"


def two_dags_delayed(scene: Scene) -> str:
    """Two enforce while each of their calls is late, each by another time."""
    pair = scene.turn(PAIRS)
    played = _enforcers(scene, pair, Script())
    judge(scene, played, by=_winner(scene, played))
    same_outcomes(played)
    return "+".join(pair)


def policy_and_stop_operator(scene: Scene) -> str:
    """A policy and the operator that stops want to stop a job at the same moment."""
    from airflow_amt.operators.stop import AmtStopTuningJobOperator
    from tests.unit.tasks import run_task, task_context

    way: str = scene.turn(WAYS)
    conductor = Conductor({"a": "Tags", "b": "Describe"}, scene.random.choices("ab", k=24))
    scene.plan("0.4 hang")
    if way.startswith("sensor"):
        scene.create()
    policy = scene.start(scene.task(way, "a", good_enough(), scene.connect("a", conductor.script())).run)
    scene.wait_for_objective()
    connection = scene.connect("b", conductor.script())
    context = task_context(dag_id="dag_b", task_id=f"{scene.name}-b")

    def stop() -> Any:
        return run_task(
            lambda: AmtStopTuningJobOperator(
                task_id="stop",
                tuning_job_name=scene.name,
                aws_conn_id=connection,
                check_interval=INTERVAL,
                deferrable=way.endswith("deferred"),
            ),
            context,
        )

    result, _ = scene.start(stop).result(STEP_SECONDS)
    played = policy.result(STEP_SECONDS)
    must(conductor.complete, f"not both wanted to stop it: {conductor.played}")
    # Of two that were accepted, the one on record.
    winner = "b" if scene.tags().get("airflow-amt:stopped-by") == "operator" else "a"
    must(winner in scene.accepted, f"accepted were {scene.accepted}, on record is {winner}")
    try:
        must(result["stopped"] is (winner == "b"), f"the operator says {result['stopped']}: {winner}")
        judge(scene, [played], by=played if winner == "a" else None)
        outcome = context["ti"].xcom["outcome"]
        same_outcomes([played, Played(label="b", outcome=outcome)])
        if winner == "b":
            evidence = outcome["evidence"]
            must(
                (outcome["reason"], outcome["certain"], evidence["stopped_by"])
                == ("stopped_by_provider", True, "operator"),
                f"the operator stopped it: {outcome['reason']}, {evidence}",
            )
            must(scene.tags()["airflow-amt:stopped-by"] == "operator", "the record is another's")
            must(played.error is not None, "the policy's task succeeded")
    except WrongError as error:
        error.add_note(f"in the order {conductor.played}")
        raise
    return f"{way}: {'policy' if winner == 'a' else 'operator'}"


def policy_and_console(scene: Scene) -> str:
    """A policy and a person at the console stop a job at the same moment."""
    way: str = scene.turn(WAYS)
    conductor = Conductor(
        {"a": "Tags", "console": "Stop"},
        [*scene.random.choices("a", k=scene.random.randrange(6)), "console", *["a"] * 20],
    )
    scene.plan(scene.random.choice(["0.4 hang", "0.4 stubborn"]))
    if way.startswith("sensor"):
        scene.create()
    policy = scene.start(scene.task(way, "a", good_enough(), scene.connect("a", conductor.script())).run)
    scene.wait_for_objective()
    scene.connect("console", conductor.script())
    client = scene.stage.client_at(f"{scene.name}-console")
    refused = False
    try:
        client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=scene.name)
    except ClientError as error:
        refused = error.response["Error"]["Code"] == "ValidationException"
        must(refused, f"the console got {error}")
    finally:
        client.close()
    played = policy.result(STEP_SECONDS)
    must(conductor.complete, f"not both wanted to stop it: {conductor.played}")
    must(refused is ("console" not in scene.accepted), f"accepted were {scene.accepted}")
    # AMT may accept both, and tells nobody which came first: then the policy has stopped it as well.
    ours = "a" in scene.accepted
    try:
        judge(scene, [played], by=played if ours else None)
        if not ours:
            found = (played.outcome["reason"], played.outcome["certain"])
            must(found == ("stopped_externally", True), f"the outcome is {found}")
            left = [key for key in scene.tags() if key.startswith("airflow-amt:stop")]
            must(not left, f"the tags say something else: {left}")
    except WrongError as error:
        error.add_note(f"in the order {conductor.played}")
        raise
    return f"{way}: {' and '.join(sorted({'a': 'policy'}.get(one, one) for one in set(scene.accepted)))}"


def _killed(scene: Scene, hold: Hold) -> str:
    """The process of the trigger is killed while a call of it is held; another one takes over."""
    way: str = scene.turn(("sensor_deferred", "operator_deferred"))
    scene.plan("await:0.4 hang")
    if way.startswith("sensor"):
        scene.create()
    connection = scene.connect("a")
    task = scene.task(way, "a", good_enough(), connection)
    stored = task.defer()
    scene.connect("a", hold.script())
    first = TriggerProcess(stored, scene.environment)
    scene.processes.append(first)
    scene.release()
    must(hold.held.wait(STEP_SECONDS), f"{hold.kind} was never called")
    must(first.is_running, "the trigger ended by itself")
    first.kill()
    hold.release()
    second = TriggerProcess(stored, scene.environment)
    scene.processes.append(second)
    played = task.resume(second.payload(STEP_SECONDS))
    judge(scene, [played], by=played)
    return f"{way}: {hold.moment} {hold.kind}"


def killed_before_stop(scene: Scene) -> str:
    """It dies after it has decided, before AWS has got the stop call."""
    kind, moment = scene.random.choice(
        [("Tags", "after"), ("Intent", "before"), ("Intent", "after"), ("Stop", "before")]
    )
    return _killed(scene, Hold(kind, moment, lost=True))


def killed_in_flight(scene: Scene) -> str:
    """It dies when AWS has accepted the stop, before it reads the answer."""
    return _killed(scene, Hold("Stop", "after", lost=True))


def killed_before_record(scene: Scene) -> str:
    """It dies when it knows that it has stopped the job, before that is on record."""
    return _killed(scene, Hold("Record", scene.random.choice(["before", "after"]), lost=True))


def faulty(scene: Scene) -> str:
    """A policy stops a job while the embedded AMT's faults are on."""
    way: str = scene.turn(WAYS)
    scene.plan("0.4 hang")
    if way.startswith("sensor"):
        scene.create()
    task = scene.task(way, "a", good_enough(), scene.connect("a"))
    played = scene.start(task.run).result(STEP_SECONDS)
    judge(scene, [played], by=played)
    return way


def slow_stopping(scene: Scene) -> str:
    """The job is Stopping for long, as a training job does not heed that it is to end."""
    way: str = scene.turn(WAYS)
    scene.plan("0.4 stubborn")
    if way.startswith("sensor"):
        scene.create()
    task = scene.task(way, "a", good_enough(), scene.connect("a"))
    played = scene.start(task.run).result(STEP_SECONDS)
    judge(scene, [played], by=played)
    calls = scene.stage.calls(scene.name, "StopHyperParameterTuningJob")
    must(len(calls) == 1, f"stop was called {len(calls)} times")
    reads = scene.stage.calls(scene.name, "DescribeHyperParameterTuningJob")
    waited = reads[-1]["monotonic"] - calls[0]["monotonic"]
    must(waited >= GRACE_SECONDS, f"the task waited for {waited} s only")
    return way


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """A race, and the faults of the embedded AMT while it runs."""

    run: Run
    faults: tuple[dict[str, Any], ...] = ()


_STOPPING = ["StopHyperParameterTuningJob", "AddTags"]

RACES: Mapping[str, Race] = {
    "ends-before-intent": Race(run=ends_before_intent),
    "ends-before-stop": Race(run=ends_before_stop),
    "two-policies": Race(run=two_policies),
    "two-dags": Race(run=two_dags),
    "two-dags-delayed": Race(
        run=two_dags_delayed,
        faults=(
            {
                "kind": "latency",
                "operations": ["Describe*", "ListTags", "DeleteTags", *_STOPPING],
                "seconds": 0.02,
                "jitter": 0.8,
            },
        ),
    ),
    "policy-and-stop-operator": Race(run=policy_and_stop_operator),
    "policy-and-console": Race(run=policy_and_console),
    "killed-before-stop": Race(run=killed_before_stop),
    "killed-in-flight": Race(run=killed_in_flight),
    "killed-before-record": Race(run=killed_before_record),
    "throttled": Race(
        run=faulty,
        faults=(
            {
                "kind": "error",
                "code": "ThrottlingException",
                "operations": _STOPPING,
                "probability": 0.75,
            },
        ),
    ),
    "errors-before": Race(
        run=faulty,
        faults=(
            {"kind": "error", "code": "InternalFailure", "operations": _STOPPING, "probability": 0.5},
            {"kind": "drop", "when": "before", "operations": _STOPPING, "probability": 0.3},
        ),
    ),
    "errors-after": Race(
        run=faulty,
        faults=(
            {
                "kind": "error",
                "code": "InternalFailure",
                "when": "after",
                "operations": _STOPPING,
                "probability": 0.5,
            },
            {"kind": "drop", "when": "after", "operations": _STOPPING, "probability": 0.3},
        ),
    ),
    "slow-stopping": Race(run=slow_stopping),
}


_MODULES = (
    "airflow_amt.hooks.sla",
    "airflow_amt.operators.stop",
    "airflow_amt.operators.tuning",
    "airflow_amt.sensors.tuning",
    "airflow_amt.triggers.guarded",
    "tests.unit.tasks",
)


# --- the campaign -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """One run of a race.

    :param race: its name.
    :param variant: what it was like.
    :param wrong: what is not right; ``None`` if all is.
    """

    race: str
    variant: str
    wrong: str | None


def run_once(stage: Stage, race: str, number: int, seed: int) -> Ended:
    """Run one race once."""
    scene = Scene(stage, race, number, seed)
    try:
        return Ended(race=race, variant=RACES[race].run(scene), wrong=None)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the campaign's finding
        trace = "" if isinstance(error, WrongError) else traceback.format_exc()
        notes = " ".join(getattr(error, "__notes__", ()))
        wrong = f"{race} {number} ({scene.name}): {type(error).__name__}: {error} {notes} {trace}"
        return Ended(race=race, variant="wrong", wrong=wrong)
    finally:
        scene.close()


def campaign(
    folder: Path,
    *,
    times: int,
    seed: int,
    races: Sequence[str] = tuple(RACES),
    say: Callable[[str], None] = lambda line: None,
) -> tuple[dict[str, Any], list[str]]:
    """Run races so many times each; return the figures, and what does not hold."""
    began = time.monotonic()
    ended: list[Ended] = []
    faults: dict[str, int] = {}
    (folder / "pipes").mkdir(parents=True)
    # Airflow is not made for being imported by several threads at once.
    for module in _MODULES:
        import_module(module)
    gc.freeze()
    prepare()
    with (
        running(
            folder / "amt",
            images={IMAGE: f"sh {TRAINER}"},
            request_log=folder / "requests.jsonl",
            options=("--stop-grace", f"{GRACE_SECONDS:g}"),
        ) as server,
        Gate(server) as gate,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        stage = Stage(server, gate, folder / "pipes")
        # Faults are for all calls of the server: races with faults have it for themselves.
        plain = [name for name in races if not RACES[name].faults]
        for names in [plain, *([name] for name in races if RACES[name].faults)]:
            if not names:
                continue
            at = time.monotonic()
            rules = [rule for name in names for rule in RACES[name].faults]
            server.set_faults({"seed": seed, "rules": rules} if rules else None)
            todo = [(name, number) for number in range(times) for name in names]
            found = list(pool.map(lambda one: run_once(stage, one[0], one[1], seed), todo))
            if rules:
                faults[names[0]] = sum(server.faults()["applied"])
            ended += found
            wrong_here = sum(one.wrong is not None for one in found)
            say(f"{', '.join(names)}: {wrong_here} wrong of {len(found)}, {time.monotonic() - at:.0f} s")
        server.set_faults(None)
        left = _left(stage)
        log = server.log
        stage.client.close()
        for key in stage.connections:
            os.environ.pop(key, None)
    wrong = [one.wrong for one in ended if one.wrong is not None]
    wrong += [f"{name} met {count} faults only" for name, count in faults.items() if count < times]
    if left:
        wrong.append(f"tuning jobs are left running: {left}")
    if "Traceback" in log:
        wrong.append(f"an error in the server's log: {log[log.find('Traceback') :][:2000]}")
    figures = {
        "seed": seed,
        "times": times,
        "races": {
            name: {
                "right": sum(one.race == name and one.wrong is None for one in ended),
                "wrong": sum(one.race == name and one.wrong is not None for one in ended),
                **({"faults": faults[name]} if name in faults else {}),
                "variants": dict(sorted(Counter(one.variant for one in ended if one.race == name).items())),
            }
            for name in races
        },
        "tuning_jobs": len(ended),
        "seconds": round(time.monotonic() - began, 1),
        "load": round(os.getloadavg()[1], 1),
        "wrong": wrong,
    }
    return figures, wrong


def _left(stage: Stage) -> list[str]:
    pages = stage.client.get_paginator("list_hyper_parameter_tuning_jobs").paginate(MaxResults=100)
    return [
        one["HyperParameterTuningJobName"]
        for page in pages
        for one in page["HyperParameterTuningJobSummaries"]
        if one["HyperParameterTuningJobStatus"] not in OVER
    ]


def _as(call: Call, actor: str) -> Call:
    return Call(actor, call.kind, call.number, call.status)


def _slowly(condition: Callable[[], Any]) -> Callable[[], Any]:
    """Ask no more than ten times a second: the machine has the race to run."""

    def asked() -> Any:
        result = condition()
        if not result:
            time.sleep(0.1)
        return result

    return asked


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a campaign and say what happened."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.system.policy_races", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--times", type=int, default=50, help="runs of each race (default: 50)")
    parser.add_argument("--seed", type=int, default=None, help="of all choices (default: a random one)")
    parser.add_argument("--race", action="append", choices=list(RACES), help="only this one; may be repeated")
    parser.add_argument("--json", action="store_true", help="print what happened as one line")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed

    def say(line: str) -> None:
        sys.stderr.write(line + "\n")

    # Each client of boto3 is many small objects; looking through them all took half of the time.
    gc.set_threshold(100_000, 50, 100)
    folder = Path(tempfile.mkdtemp(prefix="airflow-amt-races-"))
    with _output_to(folder / "tasks.log"):
        figures, wrong = campaign(
            folder, times=options.times, seed=seed, races=options.race or tuple(RACES), say=say
        )
    if wrong:
        sys.stderr.write(f"Everything is kept in {folder}\n")
    else:
        shutil.rmtree(folder)
    for one in wrong:
        sys.stderr.write(f"seed {seed}: {one}\n")
    sys.stdout.write(json.dumps(figures, indent=None if options.json else 2) + "\n")
    return 1 if wrong else 0


@contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Send standard output to a file, as processes that are started here too: Airflow logs there."""
    sys.stdout.flush()
    kept = os.dup(1)
    with path.open("wb") as log:
        os.dup2(log.fileno(), 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


if __name__ == "__main__":
    sys.exit(main())
