"""The loop of the embedded AMT: decide a combination, train it, look at the result, decide again.

The engine owns what all tuning jobs share: state, clock, options, the thread of the search, and the care
that no process is left behind. Everything runs on one event loop. The exit of a training process wakes its
tuning job (:mod:`airflow_amt.local.tuning_run`) at once; nothing polls for results.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local import processes, trainer, training_run
from airflow_amt.local.clock import AmtClock
from airflow_amt.local.faults import FaultInjector
from airflow_amt.local.fork_server import ForkServer
from airflow_amt.local.metrics import compile_definitions
from airflow_amt.local.s3 import Places
from airflow_amt.local.search import Prior
from airflow_amt.local.storage import FolderStorage, Storage
from airflow_amt.local.store import GOING_ON, DamagedRowError, Row, Store
from airflow_amt.local.training_run import TrainingPlan, TrainingRun
from airflow_amt.local.tuning_run import DefinitionRun, TuningRun, objective_of, plan_of

logger = logging.getLogger(__name__)

#: Longest real time that training processes get to end by themselves when the server ends.
_CLOSING_GRACE_SECONDS = 2.0
#: Longest real time that the results of ended training jobs are waited for when the server ends.
_CLOSING_PATIENCE_SECONDS = 10.0
_HOUSEKEEPING_SECONDS = 1.0
PREPARE_THREAD, CONCLUDE_THREAD = "prepare", "conclude"
#: How often logs are read for objectives by which a training job may be stopped early.
_FOLLOW_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How the engine works.

    :param state_dir: the folder that holds everything.
    :param s3_root: the folder that stands for S3, unless ``storage`` says otherwise.
    :param storage: where ``s3://`` is; ``s3_root`` if left out.
    :param roots: folders of this machine that callers may reach beside ``s3_root``.
    :param link_channels: give training jobs links to the files of their channels in place of copies.
    :param images: commands that stand for training images.
    :param account: 12-digit AWS account id, for ARNs.
    :param stop_grace: most real seconds between SIGTERM and SIGKILL (AMT's 120 s where that is less).
    :param log_limit: bytes; a training job whose log grows beyond it is failed.
    :param fork_server: modules that a fork server imports for Python training scripts; none starts none.
    :param environment: variables that all training processes have in common.
    :param faults: what is to go wrong; it says of each training job whether it fails on purpose.
    """

    state_dir: Path
    s3_root: Path
    images: Mapping[str, Sequence[str]]
    account: str = "000000000000"
    stop_grace: float = 10.0
    log_limit: int = 256 * 1024 * 1024
    fork_server: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    faults: FaultInjector = field(default_factory=FaultInjector)
    storage: Storage | None = None
    roots: tuple[Path, ...] = ()
    link_channels: bool = False


class Engine:
    """Runs all tuning jobs of one state folder.

    :param store: the state; closed by the caller.
    :param clock: AMT time.
    :param options: see :class:`EngineOptions`.
    """

    def __init__(self, store: Store, clock: AmtClock, options: EngineOptions) -> None:
        self.store = store
        self.clock = clock
        self.options = options
        #: What callers may reach of this machine.
        self.places = Places(s3_root=options.s3_root, roots=options.roots, state_dir=options.state_dir)
        self.storage: Storage = options.storage or FolderStorage(self.places, link=options.link_channels)
        self.identity = store.identity
        self.closing = False
        self._runs: dict[int, TuningRun] = {}
        #: All training jobs that have not ended, by their id in the store.
        self.trainings: dict[int, TrainingRun] = {}
        self._commit_scheduled = False
        self._orphan_check: asyncio.TimerHandle | None = None
        self._housekeeper: asyncio.TimerHandle | None = None
        self._follower: asyncio.TimerHandle | None = None
        self._fork_server: ForkServer | None = None
        #: Children that are no training processes: those that a shell had before it became this server.
        self._bystanders: frozenset[int] = frozenset()
        # One thread: a search is not made for being asked twice at once.
        self.search_thread = ThreadPoolExecutor(1, thread_name_prefix="search")
        # Two pools, so that downloads that hang do not keep ended training jobs from being concluded.
        self.prepare_threads = ThreadPoolExecutor(128, thread_name_prefix=PREPARE_THREAD)
        self.conclude_threads = ThreadPoolExecutor(16, thread_name_prefix=CONCLUDE_THREAD)

    # --- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Clean up after an earlier server and go on with its tuning jobs; needs a running event loop.

        :raises AmtFieldError: the fork server that the options ask for cannot be started.
        """
        self._bystanders = frozenset(processes.children())
        if not processes.become_reaper():
            logger.info("Orphans of training processes cannot be adopted on this platform")
        unfinished = self.store.unfinished_training_jobs()
        for row in unfinished:
            try:
                if row["pid"] is not None and processes.kill_leftover(row["pid"], row["pid_started"]):
                    logger.warning(
                        "Killed the training process of %s, left by an earlier server", row["name"]
                    )
            except DamagedRowError as error:
                logger.error("Its process is looked for by its marks alone: %s", error)
        # Again until none is found: what is being killed may have started more.
        while killed := processes.kill_marked(self.identity):
            logger.warning("Killed %d processes left by an earlier server", killed)
            time.sleep(0.01)
        for row in unfinished:
            try:
                # What the earlier server had copied for it.
                trainer.clean_up(self._folder(row["region"], row["name"]))
            except DamagedRowError as error:
                logger.error("Copies of its channels may be left: %s", error)
        processes.tag_descendants(self.identity)
        if self.options.fork_server:
            log = self.options.state_dir / "fork-server.log"
            home = self.options.state_dir / "fork-server-home"
            home.mkdir(exist_ok=True)
            self._fork_server = ForkServer(
                self.options.fork_server,
                environment={"HOME": str(home), **self.options.environment},
                identity=self.identity,
                log=log,
            )
            self._fork_server.watch(asyncio.get_running_loop())
        for row in self.store.unfinished_tuning_jobs():
            try:
                self._begin(row)
            except Exception as error:  # noqa: BLE001 - logged, and the others go on
                self._set_aside_tuning_job(row, error)
        for row in self.store.unfinished_training_jobs():
            try:
                if row["tuning_job_id"] is None:
                    self._take_up_training_job(row)
            except Exception as error:  # noqa: BLE001 - logged, and the others go on
                self._set_aside_training_job(row, error)
        self.store.commit()
        self._housekeeping()

    async def close(self) -> None:
        """End all training processes, note that they were interrupted, and leave no process behind."""
        self.closing = True
        for timer in (self._housekeeper, self._follower):
            if timer is not None:
                timer.cancel()
        for run in self._runs.values():
            run.interrupt()
        trainings = list(self.trainings.values())
        for training in trainings:
            training.interrupt()
        tasks = [training.task for training in trainings if training.task is not None]
        if tasks:
            grace = min(self.options.stop_grace, _CLOSING_GRACE_SECONDS)
            _, alive = await asyncio.wait(tasks, timeout=grace)
            patience = asyncio.get_running_loop().time() + _CLOSING_PATIENCE_SECONDS
            while alive and asyncio.get_running_loop().time() < patience:
                # Again and again: one that was about to start is only now there to be killed.
                for training in self.trainings.values():
                    training.kill()
                _, alive = await asyncio.wait(alive, timeout=_FOLLOW_SECONDS)
            for task in alive:
                # Its process is gone, but storing its results hangs; the next server records its end.
                logger.warning("%s is left unfinished: its results could not be stored", task.get_name())
                task.cancel()
        if self._orphan_check is not None:
            self._orphan_check.cancel()
        if self._fork_server is not None:
            self._fork_server.close()
        # What a killed process had started is adopted when that process is gone.
        while True:
            if not processes.kill_orphans(known=self._bystanders):
                break
            await asyncio.sleep(0.01)
        self.search_thread.shutdown(cancel_futures=True)
        for threads in (self.prepare_threads, self.conclude_threads):
            threads.shutdown(wait=False, cancel_futures=True)
        self.store.set_meta("last_seen_ms", str(self.clock.now_ms()))
        self.store.commit()

    # --- what calls do ---------------------------------------------------------------------------

    def check(
        self,
        config: Mapping[str, Any],
        definitions: Sequence[tuple[str, Mapping[str, Any]]],
        prior: Prior | None = None,
    ) -> None:
        """Refuse a tuning job that could not run here.

        :param definitions: its training job definitions, each with its path in the request.
        :param prior: what the parents of its warm start had tried.
        :raises AmtFieldError: the first thing that stands in the way.
        """
        for index, (path, definition) in enumerate(definitions):
            plan = plan_of(config, definition, path, self.options.images)
            DefinitionRun(index, config, plan, config.get("RandomSeed") or 0, prior)

    def create(
        self,
        *,
        region: str,
        name: str,
        arn: str,
        tags: Mapping[str, str],
        config: Mapping[str, Any],
        definitions: Sequence[Mapping[str, Any]],
        values: Mapping[str, Any],
    ) -> None:
        """Record a checked tuning job and start it.

        :param tags: its tags.
        :param values: columns of the store about things that the engine does not need.
        :raises StateNotWrittenError: the disk refuses.
        """
        now = self.clock.now_ms()
        seed = config.get("RandomSeed")
        with self.store.transaction():
            self.store.set_tags(arn, tags)
            self.store.insert_tuning_job(
                {
                    "region": region,
                    "name_key": name.lower(),
                    "name": name,
                    "arn": arn,
                    "status": "InProgress",
                    "strategy": config["Strategy"],
                    "config": dict(config),
                    "definitions": [_with_objective(config, definition) for definition in definitions],
                    "seed": random.SystemRandom().randrange(2**31) if seed is None else seed,
                    "created_ms": now,
                    "modified_ms": now,
                    **values,
                }
            )
        row = self.store.tuning_job(region, name)
        if row is None:
            raise RuntimeError(f"tuning job {name!r} vanished while it was created")
        self._begin(row)

    def stop(self, row: Row) -> None:
        """Stop a tuning job that has not ended."""
        run = self._runs.get(row["id"])
        if run is None:
            raise RuntimeError(f"tuning job {row['name']!r} is {row['status']} but is not running")
        run.stop()
        self.store.commit()

    def training_plan(self, request: Mapping[str, Any]) -> TrainingPlan:
        """Return how a training job is run that is created by a call of its own.

        :param request: the parameters of ``CreateTrainingJob``.
        :raises AmtFieldError: it cannot be run here.
        """
        specification = request.get("AlgorithmSpecification") or {}
        return TrainingPlan(
            definition=request,
            path="",
            command=training_run.script_or_command(
                request.get("HyperParameters") or {},
                specification,
                self.options.images,
                "AlgorithmSpecification",
            ),
            metrics=compile_definitions(
                specification.get("MetricDefinitions") or (), "AlgorithmSpecification.MetricDefinitions"
            ),
            objective_metric=None,
        )

    def create_training_job(self, region: str, plan: TrainingPlan, tags: Mapping[str, str]) -> str:
        """Record and start a training job of its own; return its ARN.

        :param tags: its tags.
        :raises StateNotWrittenError: the disk refuses.
        """
        request = plan.definition
        training = self._own_training(region, request["TrainingJobName"], plan)
        with self.store.transaction():
            self.store.set_tags(training.spec.arn, tags)
            training.record({"request": dict(request)})
        training.start()
        return training.spec.arn

    def stop_training_job(self, row: Row) -> None:
        """Stop a training job that has not ended."""
        training = self.trainings.get(row["id"])
        if training is None:
            raise RuntimeError(f"training job {row['name']!r} is {row['status']} but is not running")
        training.stop("Stopped")
        self.store.commit()

    # --- jobs that an earlier server left damaged -------------------------------------------------

    def _set_aside_tuning_job(self, row: Row, error: Exception) -> None:
        """Fail a tuning job that cannot be gone on with, so that the others can."""
        reason = _reason(error)
        _log_damage("tuning job", row, error)
        run = self._runs.pop(row["id"], None)
        if run is not None:
            run.give_up()
        for job in self.store.training_jobs_of(row["id"]):
            if job.get("status") in GOING_ON:
                self._fail_damaged(self.store.update_training_job, job, reason)
        self._fail_damaged(self.store.update_tuning_job, row, reason)

    def _set_aside_training_job(self, row: Row, error: Exception) -> None:
        _log_damage("training job", row, error)
        self._fail_damaged(self.store.update_training_job, row, _reason(error))

    def _fail_damaged(self, update: Callable[[int, Mapping[str, Any]], None], row: Row, reason: str) -> None:
        now = self.clock.now_ms()
        update(row["id"], {"status": "Failed", "failure_reason": reason, "ended_ms": now, "modified_ms": now})

    # --- training jobs of their own --------------------------------------------------------------

    def _take_up_training_job(self, row: Row) -> None:
        """Go on with a training job that an earlier server left unfinished, or record its end."""
        request = row["request"]
        plan = self._plan_again(lambda: self.training_plan(request), row["name"], request, "", None)
        if training_run.may_resume(row, plan):
            self._own_training(row["region"], row["name"], plan).resume(row)
        else:
            conclusion = training_run.interrupted(row)
            ended = max(self.clock.now_ms(), row["modified_ms"])
            values = training_run.end_values(row["transitions"], conclusion, ended, stopping=None)
            self.store.update_training_job(row["id"], values)

    def _own_training(self, region: str, name: str, plan: TrainingPlan) -> TrainingRun:
        hyperparameters = dict(plan.definition.get("HyperParameters") or {})
        spec = self.spec(region, name, plan, hyperparameters)
        return TrainingRun(self, plan, spec, tuned={}, on_end=self._training_ended)

    def _training_ended(self, training: TrainingRun, conclusion: trainer.Conclusion) -> None:
        ended = max(self.clock.now_ms(), training.created_ms)
        values = training_run.end_values(training.transitions, conclusion, ended, stopping=training.stopping)
        self.store.update_training_job(training.job_id, values)
        self.commit_soon()
        logger.info("Training job %s is %s", training.spec.name, conclusion.status)

    # --- what tuning jobs need -------------------------------------------------------------------

    def commit_soon(self) -> None:
        """Commit at the end of this turn of the event loop, once for all that was written in it."""
        if not self._commit_scheduled:
            self._commit_scheduled = True
            asyncio.get_running_loop().call_soon(self._commit)

    def _commit(self) -> None:
        self._commit_scheduled = False
        self.store.commit()

    def start_process(
        self, command: Sequence[str], *, environment: Mapping[str, str], folder: Path, log: Path
    ) -> processes.TrainingProcess:
        """Start a training process, forked from the fork server where there is one that can.

        The parameters are those of :func:`airflow_amt.local.processes.start`.

        :raises OSError: the command cannot be executed.
        """
        if self._fork_server is not None:
            forked = self._fork_server.start(command, environment=environment, folder=folder, log=log)
            if forked is not None:
                return forked
        return processes.start(command, environment=environment, folder=folder, log=log)

    def forget(self, job_id: int) -> None:
        """Take note that a tuning job has ended."""
        del self._runs[job_id]

    def check_orphans(self) -> None:
        """Kill what an ended training job left behind; once more a little later.

        What a killed process had started is adopted only when that process is really gone.
        """
        self._kill_orphans()
        if self._orphan_check is None:
            self._orphan_check = asyncio.get_running_loop().call_later(0.2, self._check_orphans_again)

    def _check_orphans_again(self) -> None:
        self._orphan_check = None
        if self._kill_orphans():
            self.check_orphans()

    def _kill_orphans(self) -> int:
        running = [
            (one.spec.marker, one.process.pid)
            for one in self.trainings.values()
            if one.process is not None and one.process.exit_status is None
        ]
        markers = {marker for marker, _ in running}
        leaders = {pid for _, pid in running}
        known = self._bystanders | leaders
        if self._fork_server is not None:
            known |= {self._fork_server.pid}
        return processes.kill_orphans(lambda marker: marker not in markers, known=known, leaders=leaders)

    def spec(
        self, region: str, name: str, plan: TrainingPlan, hyperparameters: Mapping[str, str]
    ) -> trainer.TrainingSpec:
        """Return what one training job is to do.

        :param hyperparameters: all of them.
        """
        return trainer.TrainingSpec(
            name=name,
            arn=training_job_arn(region, self.options.account, name),
            region=region,
            definition=plan.definition,
            hyperparameters=hyperparameters,
            folder=self._folder(region, name),
            storage=self.storage,
            places=self.places,
            command=plan.command,
            marker=processes.marker_value(self.identity, f"{region}/{name}"),
            environment=self.options.environment,
        )

    def _folder(self, region: str, name: str) -> Path:
        return self.options.state_dir / "training-jobs" / region / name

    def _begin(self, row: Row) -> None:
        config = row["config"]
        several = row["definition_as_list"]
        plans = []
        for index, definition in enumerate(row["definitions"]):
            path = f"TrainingJobDefinitions[{index}]" if several else "TrainingJobDefinition"
            plans.append(
                self._plan_again(
                    functools.partial(plan_of, config, definition, path, self.options.images),
                    row["name"],
                    definition,
                    path,
                    objective_of(config, definition)["MetricName"],
                )
            )
        run = TuningRun(self, row, plans)
        self._runs[row["id"]] = run
        run.begin()
        if run.stops_early and self._follower is None:
            self._follow()

    def _plan_again(
        self,
        make: Callable[[], TrainingPlan],
        name: str,
        definition: Mapping[str, Any],
        path: str,
        objective_metric: str | None,
    ) -> TrainingPlan:
        """Return a plan that was checked when its job was created, perhaps by an earlier server.

        A server that was restarted without the mapping that the job was created with fails its training
        jobs with this reason, and after five of them the tuning job.
        """
        try:
            return make()
        except AmtFieldError as error:
            logger.error("%s cannot train: %s", name, error)
            return TrainingPlan(
                definition=definition,
                path=path,
                command=None,
                unusable="ClientError: no command stands for the training image since the server was "
                "restarted; start it with the same --image options",
                metrics={},
                objective_metric=objective_metric,
            )

    def _follow(self) -> None:
        """Look for new objectives of the training jobs that may be stopped early, again and again."""
        self._follower = None
        if any(run.stops_early for run in self._runs.values()):
            self._follower = asyncio.get_running_loop().call_later(_FOLLOW_SECONDS, self._follow)
        for training in list(self.trainings.values()):
            training.follow()

    def _housekeeping(self) -> None:
        # Scheduled first: an error in it, which the event loop logs, must not be its last run.
        self._housekeeper = asyncio.get_running_loop().call_later(_HOUSEKEEPING_SECONDS, self._housekeeping)
        for training in self.trainings.values():
            training.check_log()
        if self._runs or self.trainings:
            if not self.store.is_behind:
                self.store.set_meta("last_seen_ms", str(self.clock.now_ms()))
            self._kill_orphans()
        self.store.commit()


def _log_damage(what: str, row: Row, error: Exception) -> None:
    name = row.get("name")
    if isinstance(error, DamagedRowError):
        logger.error("The %s %s cannot go on: %s", what, name, error)
    else:
        logger.error("The %s %s (row %s of the state) cannot go on", what, name, row["id"], exc_info=error)


def _reason(error: Exception) -> str:
    reason = f"{training_run.INTERNAL_ERROR}: the embedded AMT cannot go on with it: {error}"
    return reason[: trainer.LONGEST_REASON]


def training_job_arn(region: str, account: str, name: str) -> str:
    """Return the ARN of a training job."""
    return f"arn:aws:sagemaker:{region}:{account}:training-job/{name.lower()}"


def _with_objective(config: Mapping[str, Any], definition: Mapping[str, Any]) -> dict[str, Any]:
    """Return a definition with the static hyperparameter that AMT adds to it.

    The SageMaker SDK reads it back from the description.
    """
    static = dict(definition.get("StaticHyperParameters") or {})
    static[trainer.TUNING_OBJECTIVE] = objective_of(config, definition)["MetricName"]
    return {**definition, "StaticHyperParameters": static}
