"""One training job that goes on: provide its input, run its process, watch it, and conclude.

The same code runs the training jobs of tuning jobs and those that were created by a call of their own; who
started one is told of its end. A training job that fails through a fault of the server itself
(``InternalServerError``) is started again as often as its ``RetryStrategy`` says, in the same folder: its
checkpoints stay.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local import processes, trainer
from airflow_amt.local.metrics import LogFollower, Metric, SlowMetricError
from airflow_amt.local.store import Row
from airflow_amt.tuning.request import DEFAULT_MAX_TRAINING_SECONDS

if TYPE_CHECKING:
    from airflow_amt.local.early_stopping import StoppingRule
    from airflow_amt.local.engine import Engine

logger = logging.getLogger(__name__)

#: Seconds between SIGTERM and SIGKILL in SageMaker ("Stop" of the developer guide's training contract).
AMT_STOP_GRACE_SECONDS = 120
INTERNAL_ERROR = "InternalServerError"
INTERRUPTED_REASON = f"{INTERNAL_ERROR}: the embedded AMT was stopped while this training job was running."
BROKEN_REASON = (
    f"{INTERNAL_ERROR}: the embedded AMT failed; its log says why. This is a bug of the embedded AMT."
)
#: Most epochs of a training job that early stopping looks at (API: HyperbandStrategyConfig.MaxResource).
MOST_EPOCHS = 20_000

_PAUSE_AFTER_FAILED_START = 0.05
#: The end of one that had produced nothing when it was stopped.
_STOPPED = trainer.Conclusion(status="Stopped", metrics={})


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """What all training jobs of one definition have in common.

    :param definition: the API's ``HyperParameterTrainingJobDefinition``, or the parameters of
        ``CreateTrainingJob``.
    :param path: where it is in the request.
    :param command: the command that stands for its image; ``None`` in script mode.
    :param unusable: why nothing can be started, if so.
    :param metrics: the metrics by name.
    :param objective_metric: name of the objective metric; ``None`` outside a tuning job.
    """

    definition: Mapping[str, Any]
    path: str
    command: Sequence[str] | None
    unusable: str | None = None
    metrics: Mapping[str, Metric]
    objective_metric: str | None

    @property
    def max_seconds(self) -> int:
        """Most AMT seconds that a training job may take, all its attempts together."""
        condition = self.definition.get("StoppingCondition") or {}
        return condition.get("MaxRuntimeInSeconds") or DEFAULT_MAX_TRAINING_SECONDS

    @property
    def max_retries(self) -> int:
        """How often a training job is started again after a fault of the server itself."""
        strategy = self.definition.get("RetryStrategy") or {}
        retries: int = strategy.get("MaximumRetryAttempts") or 0
        return retries


class TrainingRun:
    """One training job that has not ended.

    :param engine: the engine it belongs to.
    :param plan: what it shares with others.
    :param spec: what is its own.
    :param tuned: the combination it tries.
    :param rule: what may stop it early, from its objectives so far.
    :param on_end: told how it ended; records that.
    """

    def __init__(
        self,
        engine: Engine,
        plan: TrainingPlan,
        spec: trainer.TrainingSpec,
        *,
        tuned: Mapping[str, str],
        on_end: Callable[[TrainingRun, trainer.Conclusion], None],
        rule: StoppingRule | None = None,
    ) -> None:
        self._engine = engine
        self.plan = plan
        self.spec = spec
        self.tuned = tuned
        self._rule = rule
        self._on_end = on_end
        self.job_id = 0
        self.created_ms = 0
        self.started_ms: int | None = None
        self.retries = 0
        self.transitions: list[list[Any]] = []
        self.process: processes.TrainingProcess | None = None
        #: Secondary status that it is stopped with, once it is being stopped.
        self.stopping: str | None = None
        #: The objective after each epoch, as far as it was read; kept up to date if there is a rule.
        self.curve: list[float] = []
        self._failing: str | None = None
        #: Set when it is told to end: what cannot be interrupted is not waited for any longer.
        self._told_to_end = asyncio.Event()
        self._follower = self._new_follower() if rule is not None else None
        self._provided = False  # whether its folder may hold what only the training process needs
        self._timers: list[asyncio.TimerHandle] = []
        self.task: asyncio.Task[None] | None = None

    @property
    def is_stopping(self) -> bool:
        """Whether it was asked to end."""
        return self.stopping is not None

    # --- life ------------------------------------------------------------------------------------

    def record(self, values: Mapping[str, Any]) -> None:
        """Record a new training job, which is then to be started.

        :param values: columns that the store is to have besides those that all training jobs have.
        :raises StateNotWrittenError: the disk refuses.
        """
        self.created_ms = self._engine.clock.now_ms()
        self._enter("Starting", self.created_ms)
        if self.plan.definition.get("InputDataConfig"):
            self._enter("Downloading", self.created_ms)
        self.job_id = self._engine.store.insert_training_job(
            {
                "region": self.spec.region,
                "name_key": self.spec.name.lower(),
                "name": self.spec.name,
                "arn": self.spec.arn,
                "status": "InProgress",
                "hyperparameters": dict(self.tuned),
                "created_ms": self.created_ms,
                "modified_ms": self.created_ms,
                "transitions": self.transitions,
                **values,
            }
        )

    def resume(self, row: Row) -> None:
        """Start a training job again that an earlier server left unfinished."""
        self.job_id = row["id"]
        self.created_ms = row["created_ms"]
        self.started_ms = row["started_ms"]
        self.retries = row["retries"]
        self.transitions = list(row["transitions"])
        self._prepare_retry()
        self.start()

    def start(self) -> None:
        """Start one that is recorded."""
        self._engine.trainings[self.job_id] = self
        self._engine.commit_soon()
        self.task = asyncio.get_running_loop().create_task(self._go_on(), name=f"training {self.spec.name}")

    async def _go_on(self) -> None:
        try:
            conclusion = await self._attempt()
            while self._may_retry(conclusion):
                if self._engine.closing:
                    # Left unfinished for the next server, which starts it again.
                    self._engine.trainings.pop(self.job_id)
                    return
                self._prepare_retry()
                conclusion = await self._attempt()
        except Exception:
            logger.exception("Training job %s broke", self.spec.name)
            self._signal(signal.SIGKILL)
            conclusion = trainer.Conclusion(status="Failed", metrics={}, failure_reason=BROKEN_REASON)
        loop = asyncio.get_running_loop()
        if self._provided:
            if not self._engine.closing:
                self._engine.check_orphans()
            await loop.run_in_executor(self._engine.conclude_threads, trainer.clean_up, self.spec.folder)
        self._engine.trainings.pop(self.job_id)
        self._on_end(self, conclusion)
        if not self._engine.closing:
            self._engine.check_orphans()

    def _may_retry(self, conclusion: trainer.Conclusion) -> bool:
        # Told to end because the server ends, it has its attempts left for the next one.
        return (
            (self._engine.closing or not self._told_to_end.is_set())
            and is_internal_error(conclusion.failure_reason)
            and self.retries < self.plan.max_retries
        )

    def _prepare_retry(self) -> None:
        """Make ready for another attempt: an empty model and output folder, checkpoints as they are."""
        self.retries += 1
        self.process = None
        self._failing = None
        self.curve.clear()
        if self._follower is not None:
            # What an earlier attempt had written is in the log too; it is no part of this one.
            self._follower = self._new_follower(start_at_end=True)
        for folder in ("model", "output", "code"):
            shutil.rmtree(self.spec.folder / folder, ignore_errors=True)
        now = self._engine.clock.now_ms()
        self._enter("Restarting", now)
        self._update(retries=self.retries, modified_ms=now, pid=None, pid_started=None)

    def _new_follower(self, *, start_at_end: bool = False) -> LogFollower:
        metric = self.plan.metrics.get(self.plan.objective_metric or "")
        return LogFollower(self.spec.log, metric, start_at_end=start_at_end)

    # --- one attempt -----------------------------------------------------------------------------

    async def _attempt(self) -> trainer.Conclusion:
        engine = self._engine
        try:
            if self.plan.unusable is not None:
                raise trainer.CannotStartError(self.plan.unusable)
            on_purpose = engine.options.faults.training_failure(self.spec.name)
            if on_purpose is not None:
                raise trainer.CannotStartError(on_purpose)
            prepared = await self._prepared()
            if self.is_stopping:
                return _STOPPED
            if prepared is None or engine.closing:
                return _failure(INTERRUPTED_REASON)
            command, environment = prepared
            process = engine.start_process(
                command, environment=environment, folder=self.spec.code, log=self.spec.log
            )
        except (trainer.CannotStartError, OSError, ValueError) as error:
            # ValueError: a NUL character in an argument.
            reason = str(error)
            if not isinstance(error, trainer.CannotStartError):
                reason = f"ClientError: the training process cannot be started: {error}"
            # Without a pause a cause that stays (a full disk) would fill the state folder with failures.
            await asyncio.sleep(_PAUSE_AFTER_FAILED_START)
            if self.is_stopping:
                return _STOPPED
            return _failure(reason)
        self.process = process
        self._note_start(process)
        exited = asyncio.Event()
        loop = asyncio.get_running_loop()
        processes.when_exited(process.pid, exited.set, loop=loop)
        self._watch_time(loop)
        await exited.wait()
        self._cancel_timers()
        status = process.reap()
        # Looked up anew: much may have happened since the process was started.
        if self._engine.closing and not self.is_stopping:
            return _failure(INTERRUPTED_REASON)
        ended = engine.clock.now_ms()
        conclusion = await loop.run_in_executor(engine.conclude_threads, self._conclude, status)
        if conclusion.status == "Completed":
            self._enter("Uploading", ended)
        return conclusion

    async def _prepared(self) -> tuple[list[str], dict[str, str]] | None:
        """Provide input and script in a thread; ``None`` if it is told to end before that is done.

        A download that hangs holds up neither a stop nor the end of the server.
        """
        loop = asyncio.get_running_loop()
        preparing = loop.run_in_executor(self._engine.prepare_threads, self._prepare)
        told = loop.create_task(self._told_to_end.wait())
        waited: set[asyncio.Future[Any]] = {preparing, told}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        if preparing.done():
            return preparing.result()
        # Whatever comes of it, nobody waits for it any more.
        preparing.add_done_callback(lambda future: future.cancelled() or future.exception())
        return None

    def _prepare(self) -> tuple[list[str], dict[str, str]]:
        """Lay out its folder; if nobody waits for that any more, take away again what was provided."""
        prepared = None
        self._provided = True
        try:
            prepared = trainer.prepare(self.spec)
            return prepared
        finally:
            if prepared is None or self._told_to_end.is_set():
                self._provided = not trainer.clean_up(self.spec.folder)

    def _note_start(self, process: processes.TrainingProcess) -> None:
        started = max(self._engine.clock.now_ms(), self.created_ms)
        if self.started_ms is None:
            self.started_ms = started
        self._enter("Training", started)
        self._update(
            started_ms=self.started_ms,
            modified_ms=started,
            pid=process.pid,
            pid_started=processes.start_time(process.pid),
        )

    def _watch_time(self, loop: asyncio.AbstractEventLoop) -> None:
        """Set the time limit: of all attempts together, as StoppingCondition documents."""
        if self.started_ms is None:
            raise RuntimeError(f"training job {self.spec.name} is watched before it has started")
        limit = self.started_ms + self.plan.max_seconds * 1000
        wait = self._engine.clock.real_seconds_until(limit)
        self._timers.append(loop.call_later(wait, self.stop, "MaxRuntimeExceeded"))

    def _conclude(self, exit_status: int) -> trainer.Conclusion:
        """Decide how it ended; runs in a thread, as it may read and pack a lot."""
        slow = None
        if self._follower is not None and self._failing is None:
            try:
                self._note_epochs(self._follower.read_all())
            except SlowMetricError as error:
                slow = f"ClientError: {error}"
        try:
            conclusion = trainer.conclude(
                self.spec,
                # What is failed for its log is not searched for metrics: the log is too large, or gone.
                {} if self._failing is not None else self.plan.metrics,
                exit_status,
                stopped=self.stopping is not None,
            )
            # Once more: a process that it left behind may have written there meanwhile.
            self._provided = not trainer.clean_up(self.spec.folder)
        except Exception as error:
            logger.exception("The end of training job %s cannot be evaluated", self.spec.name)
            return _failure(f"{INTERNAL_ERROR}: its result cannot be evaluated: {error!r}")
        failing = self._failing or (slow if conclusion.status == "Completed" else None)
        if failing is not None:
            return trainer.Conclusion(status="Failed", metrics=conclusion.metrics, failure_reason=failing)
        return conclusion

    # --- while it runs ---------------------------------------------------------------------------

    def follow(self) -> None:
        """Read what its log has gained; stop it if the rule says so."""
        if self._follower is None or self._rule is None or self.stopping is not None:
            return
        if self.process is None or self.process.exit_status is not None:
            return
        for value in self._follower.read():
            self._note_epochs([value])
            if self._rule.report(rule_key(self.spec.name), self.curve):
                logger.info(
                    "Training job %s is stopped early after %d epochs", self.spec.name, len(self.curve)
                )
                self.stop("Stopped")
                return

    def _note_epochs(self, values: Sequence[float]) -> None:
        self.curve.extend(values[: MOST_EPOCHS - len(self.curve)])

    def stop(self, secondary_status: str) -> None:
        """Ask it to end; ``secondary_status`` says why, in the API's words."""
        self._told_to_end.set()
        if self.stopping is not None or (self.process is not None and self.process.exit_status is not None):
            return
        engine = self._engine
        self.stopping = secondary_status
        now = engine.clock.now_ms()
        self._enter("Stopping", now)
        self._update(status="Stopping", modified_ms=now)
        if self.process is not None:
            self._signal(signal.SIGTERM)
            grace = min(engine.options.stop_grace, engine.clock.real_seconds(AMT_STOP_GRACE_SECONDS))
            self._timers.append(asyncio.get_running_loop().call_later(grace, self._signal, signal.SIGKILL))

    def interrupt(self) -> None:
        """Ask its process to end because the server ends."""
        if self.process is None:
            self._told_to_end.set()
        self._signal(signal.SIGTERM)

    def abandon(self) -> None:
        """End it at once, because its tuning job broke."""
        self.stopping = self.stopping or "Stopped"
        self._told_to_end.set()
        self._signal(signal.SIGKILL)

    def kill(self) -> None:
        """Kill its process."""
        self._signal(signal.SIGKILL)

    def check_log(self) -> None:
        """Fail it if its log floods the disk, or could do so without being seen."""
        if self._failing is not None or self.process is None or self.process.exit_status is not None:
            return
        limit = self._engine.options.log_limit
        try:
            found = self.spec.log.stat()
            if stat.S_ISREG(found.st_mode):
                if found.st_size <= limit:
                    return
                self._failing = f"ClientError: its log grew beyond {limit // 1024 // 1024} MiB"
            else:
                self._failing = "ClientError: its log was replaced by something else while it ran"
        except FileNotFoundError:
            self._failing = "ClientError: its log was deleted while it ran"
        self._signal(signal.SIGKILL)

    # --- helpers ---------------------------------------------------------------------------------

    def _signal(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.signal(number)

    def _cancel_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _enter(self, status: str, at_ms: int) -> None:
        # A new list: the store may still hold the last one.
        self.transitions = [*self.transitions, [status, at_ms]]

    def _update(self, **values: Any) -> None:
        self._engine.store.update_training_job(self.job_id, {"transitions": self.transitions, **values})
        self._engine.commit_soon()


def end_values(
    transitions: Sequence[Sequence[Any]],
    conclusion: trainer.Conclusion,
    ended_ms: int,
    *,
    stopping: str | None,
) -> dict[str, Any]:
    """Return the columns that record the end of a training job, but for its objective.

    :param transitions: its phases so far.
    :param ended_ms: when it ended.
    :param stopping: secondary status it was stopped with, if it was stopped.
    """
    stopped = conclusion.status == "Stopped"
    secondary = (stopping or "Stopped") if stopped else conclusion.status
    return {
        "status": conclusion.status,
        "secondary_status": secondary,
        "ended_ms": ended_ms,
        "modified_ms": ended_ms,
        "transitions": [*transitions, [secondary, ended_ms]],
        "metrics": dict(conclusion.metrics),
        "failure_reason": conclusion.failure_reason,
    }


def interrupted(row: Row) -> trainer.Conclusion:
    """Return how a training job ended whose process an earlier server left: it failed, or it stopped."""
    if row["status"] == "Stopping":
        return _STOPPED
    return _failure(INTERRUPTED_REASON)


def may_resume(row: Row, plan: TrainingPlan) -> bool:
    """Whether a training job that an earlier server left unfinished is started again."""
    return bool(row["status"] == "InProgress" and row["retries"] < plan.max_retries)


def rule_key(name: str) -> str:
    """Return the part of a training job's name by which a stopping rule knows it: its number.

    Neither the name of the tuning job nor the random part: a rule that draws is reproducible under a seed.
    """
    return name.split("-")[-2]


def is_internal_error(failure_reason: str | None) -> bool:
    """Whether a training job failed through a fault of the server itself, which alone is retried."""
    return (failure_reason or "").startswith(INTERNAL_ERROR)


def script_or_command(
    static: Mapping[str, str],
    specification: Mapping[str, Any],
    images: Mapping[str, Sequence[str]],
    path: str,
) -> Sequence[str] | None:
    """Return the command that stands for an algorithm, ``None`` in script mode.

    :param static: hyperparameters that say what script to run, if any does.
    :param specification: the API's ``AlgorithmSpecification``.
    :param images: commands by training image or algorithm name.
    :param path: where the specification is in the request, for errors.
    :raises AmtFieldError: no command stands for the image.
    """
    if trainer.is_script_mode(static):
        return None
    member = "TrainingImage" if specification.get("TrainingImage") else "AlgorithmName"
    image = specification.get(member)
    command = images.get(image) if image else None
    if command is None:
        known = ", ".join(sorted(images)) or "none"
        raise AmtFieldError(
            f"{path}.{member}",
            image,
            "an image that a command stands for, as the embedded AMT runs no containers "
            f"(known here: {known})",
            f"start the server with --image '{image or 'IMAGE'}=COMMAND', or use script mode: the "
            f"hyperparameters {trainer.PROGRAM} and {trainer.SUBMIT_DIRECTORY}",
        )
    return command


def _failure(reason: str) -> trainer.Conclusion:
    return trainer.Conclusion(status="Failed", metrics={}, failure_reason=reason[: trainer.LONGEST_REASON])
