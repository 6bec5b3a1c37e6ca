"""One tuning job that goes on: launch training jobs, take in their results, decide when it is over.

How a tuning job ends:

- a criterion fires: no training job is launched any more, those that run are stopped, and once they are
  gone the status is ``Completed``;
- a finite search space has no untried combination left, or, without a maximum of its own, as many training
  jobs were launched as the quota of its strategy allows: ``Completed`` after the running ones;
- it is stopped by a call: ``Stopping`` while its training jobs are stopped, then ``Stopped``;
- five training jobs have ended, and none has an objective: ``Failed``, as AMT does. Those that were stopped
  and those that the server itself failed (``InternalServerError``) are not counted;
- it would end as ``Completed``, but no training job has an objective, and none was stopped: ``Failed``.

The five completion criteria are not decided here but in
:class:`airflow_amt.tuning.history.CriteriaTracker`, the same code that replays finished tuning jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import shutil
import signal
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_amt.local import processes, trainer
from airflow_amt.local.clock import to_datetime, to_milliseconds
from airflow_amt.local.metrics import compile_definitions
from airflow_amt.local.search import MAX_TRAINING_JOBS, Evaluation, Search, Space, create_search
from airflow_amt.local.store import Row
from airflow_amt.tuning.criteria import CompletionCriteria, ObjectiveType
from airflow_amt.tuning.history import CriteriaTracker, TrainingJobResult
from airflow_amt.tuning.request import parameter_ranges

if TYPE_CHECKING:
    from airflow_amt.local.engine import Engine

logger = logging.getLogger(__name__)

#: Seconds between SIGTERM and SIGKILL in SageMaker ("Stop" of the developer guide's training contract).
AMT_STOP_GRACE_SECONDS = 120
#: Time limit of a training job whose StoppingCondition sets none (API: StoppingCondition).
DEFAULT_MAX_TRAINING_SECONDS = 86_400
#: So many ended training jobs without one objective fail the tuning job.
ATTEMPTS_WITHOUT_SUCCESS = 5
NO_SUCCESS_REASON = (
    f"No training job succeeded after {ATTEMPTS_WITHOUT_SUCCESS} attempts. "
    "Please take a look at the training job failures to get more details."
)
ALL_FAILED_REASON = (
    "All training jobs failed. Please take a look at the training job failures to get more details."
)
INTERRUPTED_REASON = "InternalServerError: the embedded AMT was stopped while this training job was running."
BROKEN_REASON = (
    "InternalServerError: the embedded AMT failed; its log says why. This is a bug of the embedded AMT."
)

_PAUSE_AFTER_FAILED_START = 0.05

#: Columns of a tuning job that count its training jobs.
COUNTERS = (
    "training_in_progress",
    "training_completed",
    "training_stopped",
    "training_retryable",
    "training_non_retryable",
    "objective_succeeded",
    "objective_pending",
    "objective_failed",
)
_COUNTER_OF_STATUS = {"Completed": "training_completed", "Stopped": "training_stopped"}


def no_objective_reason(training_jobs: int) -> str:
    """Return why a tuning job failed of which some training jobs completed, but none gave an objective."""
    return (
        f"No objective metrics found after running {training_jobs} training jobs. Please ensure that the "
        "custom algorithm is emitting the objective metric as defined by the regular expression provided."
    )


def objective_of(config: Mapping[str, Any], definition: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the objective that a definition is tuned for: its own, or that of the tuning job's config."""
    objective: Mapping[str, Any] = (
        definition.get("TuningObjective") or config["HyperParameterTuningJobObjective"]
    )
    return objective


def space_of(config: Mapping[str, Any], definition: Mapping[str, Any], path: str) -> Space:
    """Return the search space of a definition.

    :param path: where the definition is in the request, for errors.
    :raises AmtFieldError: a range is not one.
    """
    where, ranges = parameter_ranges({"HyperParameterTuningJobConfig": config}, definition, path)
    return Space.from_ranges(ranges, where)


class TrainingRun:
    """One training job whose process runs.

    :param job_id: its id in the store.
    :param spec: what it does.
    :param tuned: the combination it tries.
    :param process: its process.
    """

    def __init__(
        self,
        *,
        job_id: int,
        spec: trainer.TrainingSpec,
        tuned: Mapping[str, str],
        created_ms: int,
        started_ms: int,
        process: processes.TrainingProcess,
    ) -> None:
        self.job_id = job_id
        self.spec = spec
        self.tuned = tuned
        self.created_ms = created_ms
        self.started_ms = started_ms
        self.process = process
        #: Secondary status that it is stopped with, once it is being stopped.
        self.stopping: str | None = None
        #: Why it is being failed from outside, if it is.
        self.failing: str | None = None
        self.timers: list[asyncio.TimerHandle] = []

    def terminate(self, grace: float) -> None:
        """Ask the process group to end; kill it after a grace time of real seconds."""
        self.process.signal(signal.SIGTERM)
        self.timers.append(asyncio.get_running_loop().call_later(grace, self.process.signal, signal.SIGKILL))

    def cancel_timers(self) -> None:
        """Forget the time limits: the process is over."""
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()


class TuningRun:
    """One tuning job that goes on: its statistics, its search, and its running training jobs.

    :param engine: the engine it belongs to.
    :param row: the tuning job as the store has it.
    :param command: the command that stands for its image; ``None`` in script mode.
    """

    def __init__(self, engine: Engine, row: Row, command: Sequence[str] | None) -> None:
        config, definition = row["config"], row["definition"]
        objective = objective_of(config, definition)
        specification = definition["AlgorithmSpecification"]
        self._engine = engine
        self._id: int = row["id"]
        self._region: str = row["region"]
        self._name: str = row["name"]
        self._arn: str = row["arn"]
        self._status: str = row["status"]
        self._ending: str | None = row["ending"]
        self._failure_reason: str | None = row["failure_reason"]
        self._definition: Mapping[str, Any] = definition
        self._static: Mapping[str, str] = definition["StaticHyperParameters"]
        self._command = command
        self._metric: str = objective["MetricName"]
        self._metric_definitions: Mapping[str, re.Pattern[str]] = compile_definitions(
            specification.get("MetricDefinitions") or (), "MetricDefinitions"
        )
        self._max_training_seconds: int = (
            definition["StoppingCondition"].get("MaxRuntimeInSeconds") or DEFAULT_MAX_TRAINING_SECONDS
        )
        self._criteria = CompletionCriteria.from_request(config)
        #: Most training jobs to launch. The quota is no criterion: nothing fires when it is reached.
        self._most: int = self._criteria.max_training_jobs or MAX_TRAINING_JOBS[row["strategy"]]
        self._parallel: int = config["ResourceLimits"]["MaxParallelTrainingJobs"]
        objective_type = ObjectiveType(objective["Type"])
        self._search: Search = create_search(
            row["strategy"],
            space_of(config, definition, "TrainingJobDefinition"),
            objective_type,
            row["seed"],
        )
        self._tracker = CriteriaTracker(
            self._criteria, objective_type, started_at=to_datetime(row["created_ms"])
        )
        self._counters = dict.fromkeys(COUNTERS, 0)
        self.running: dict[str, TrainingRun] = {}
        self._history: list[Evaluation] = []
        self._launched = 0
        self._last_ended_ms: int = row["created_ms"]
        self._exhausted = False
        self._changed = asyncio.Event()
        self._finishing: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._deadline_timer: asyncio.TimerHandle | None = None

    # --- life ------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Take up what the store has of this tuning job, and go on from there."""
        rows = self._engine.store.training_jobs_of(self._id)
        self._launched = len(rows)
        ended = [row for row in rows if row["ended_ms"] is not None]
        for row in sorted(ended, key=lambda one: (one["ended_ms"], one["id"])):
            self._count_ended(row)
            self._tracker.observe(_result(row))
        for row in rows:
            if row["ended_ms"] is None:
                self._record_interrupted(row)
        if rows:
            self._save()
        if self._tracker.fired and self._ending is None:
            self._end("Completed")
        self._watch_time()
        self._task = asyncio.get_running_loop().create_task(self._go_on(), name=f"tuning job {self._name}")

    def stop(self) -> None:
        """Stop it as ``StopHyperParameterTuningJob`` says."""
        if self._status == "Stopping":
            return
        self._status = "Stopping"
        self._end("Stopped")

    def interrupt(self) -> None:
        """End its processes because the server ends; the tuning job itself goes on with the next server."""
        if self._task is not None:
            self._task.cancel()
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
        for training in self.running.values():
            training.process.signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill its processes."""
        for training in self.running.values():
            training.process.signal(signal.SIGKILL)

    async def wait_for_processes(self) -> None:
        """Return when none of its training processes runs and the end of each is recorded."""
        if self._task is not None:
            await asyncio.wait([self._task])
        # A training process may have been started by the very last step of the task.
        for training in self.running.values():
            training.process.signal(signal.SIGTERM)
        await self._drain()

    async def _drain(self) -> None:
        while self.running or self._finishing:
            self._changed.clear()
            await self._changed.wait()

    async def _go_on(self) -> None:
        """Launch, wait, and end: the whole life of the tuning job."""
        try:
            while not self._is_over():
                if self._may_launch():
                    await self._launch_next()
                else:
                    self._changed.clear()
                    await self._changed.wait()
                self._check_time()
            self._finalise()
        except Exception:
            logger.exception("Tuning job %s broke", self._name)
            self._break()
            await self._drain()
            self._finalise()

    def _is_over(self) -> bool:
        if self.running or self._finishing:
            return False
        return self._ending is not None or self._exhausted or self._launched >= self._most

    def _may_launch(self) -> bool:
        return (
            self._ending is None
            and not self._exhausted
            and len(self.running) < self._parallel
            and self._launched < self._most
        )

    def _watch_time(self) -> None:
        """Wake up at the time limit; a timer that fires early only sets the next one."""
        deadline = self._tracker.next_deadline
        if deadline is None:
            return
        wait = self._engine.clock.real_seconds_until(to_milliseconds(deadline))
        if wait > 0:
            self._deadline_timer = asyncio.get_running_loop().call_later(wait, self._watch_time)
        else:
            self._changed.set()

    def _check_time(self) -> None:
        if self._ending is None and self._tracker.advance(to_datetime(self._engine.clock.now_ms())):
            self._end("Completed")

    def _end(self, status: str, failure_reason: str | None = None) -> None:
        """Decide how the tuning job ends; stop its training jobs; the rest follows when they are gone."""
        self._ending = status
        self._failure_reason = failure_reason
        for training in list(self.running.values()):
            self._stop_training(training, "Stopped")
        self._save()
        self._changed.set()

    def _finalise(self) -> None:
        now = max(self._engine.clock.now_ms(), self._last_ended_ms)
        if self._ending in (None, "Completed") and self._came_to_nothing():
            self._ending = "Failed"
            some_completed = self._counters["training_completed"] > 0
            self._failure_reason = (
                no_objective_reason(self._launched) if some_completed else ALL_FAILED_REASON
            )
        self._status = self._ending or "Completed"
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
        self._save(ended_ms=now, modified_ms=now)
        self._engine.forget(self._id)
        logger.info("Tuning job %s is %s after %d training jobs", self._name, self._status, self._launched)

    def _break(self) -> None:
        """Fail the tuning job after an error of the engine itself, which is in the server's log."""
        self.kill()
        self._ending = "Failed"
        self._failure_reason = BROKEN_REASON
        self._changed.set()

    # --- training jobs ---------------------------------------------------------------------------

    async def _launch_next(self) -> None:
        pending = [training.tuned for training in self.running.values()]
        if self._search.slow:
            tuned = await asyncio.get_running_loop().run_in_executor(
                self._engine.search_thread, self._search.propose, list(self._history), pending
            )
        else:
            tuned = self._search.propose(self._history, pending)
        if tuned is None:
            self._exhausted = True
            return
        # The tuning job may have ended while the search was thinking.
        if self._may_launch():
            await self._launch(tuned)

    async def _launch(self, tuned: Mapping[str, str]) -> None:
        engine = self._engine
        created = engine.clock.now_ms()
        spec = self._spec(tuned)
        try:
            if self._command is None and not trainer.is_script_mode(self._static):
                raise trainer.CannotStartError(
                    "ClientError: no command stands for the training image since the server was restarted; "
                    "start it with the same --image options"
                )
            command, environment = await asyncio.to_thread(trainer.prepare, spec)
            if self._ending is not None:
                shutil.rmtree(spec.folder)
                return
            process = processes.start(command, environment=environment, folder=spec.code, log=spec.log)
        except (trainer.CannotStartError, OSError, ValueError) as error:
            # ValueError: a NUL character in an argument.
            reason = str(error)
            if not isinstance(error, trainer.CannotStartError):
                reason = f"ClientError: the training process cannot be started: {error}"
            self._record_not_started(spec, tuned, created, reason)
            # Without a pause a cause that stays (a full disk) would fill the state folder with failures.
            await asyncio.sleep(_PAUSE_AFTER_FAILED_START)
            return
        self._launched += 1
        self._counters["training_in_progress"] += 1
        self._counters["objective_pending"] += 1
        started = max(engine.clock.now_ms(), created)
        training = TrainingRun(
            job_id=engine.store.insert_training_job(
                {
                    **self._identity_of(spec, tuned),
                    "status": "InProgress",
                    "created_ms": created,
                    "started_ms": started,
                    "modified_ms": started,
                    "objective_status": "Pending",
                    "pid": process.pid,
                    "pid_started": processes.start_time(process.pid),
                }
            ),
            spec=spec,
            tuned=tuned,
            created_ms=created,
            started_ms=started,
            process=process,
        )
        # As AMT documents: training jobs get the tags that the tuning job has when they are launched.
        tags = engine.store.tags_of(self._arn)
        if tags:
            engine.store.set_tags(spec.arn, tags)
        self.running[spec.name] = training
        loop = asyncio.get_running_loop()
        processes.when_exited(process.pid, lambda: self._exited(training), loop=loop)
        limit = engine.clock.real_seconds(self._max_training_seconds)
        training.timers.append(loop.call_later(limit, self._stop_training, training, "MaxRuntimeExceeded"))
        self._save(modified_ms=started)

    def _spec(self, tuned: Mapping[str, str]) -> trainer.TrainingSpec:
        engine = self._engine
        name = f"{self._name}-{self._launched + 1:03d}-{secrets.token_hex(4)}"
        return trainer.TrainingSpec(
            name=name,
            arn=f"arn:aws:sagemaker:{self._region}:{engine.options.account}:training-job/{name.lower()}",
            region=self._region,
            definition=self._definition,
            hyperparameters={**self._static, **tuned},
            folder=engine.options.state_dir / "training-jobs" / self._region / name,
            storage=engine.storage,
            command=self._command,
            marker=processes.marker_value(engine.identity, f"{self._region}/{name}"),
        )

    def _identity_of(self, spec: trainer.TrainingSpec, tuned: Mapping[str, str]) -> dict[str, Any]:
        return {
            "tuning_job_id": self._id,
            "region": self._region,
            "name": spec.name,
            "arn": spec.arn,
            "hyperparameters": dict(tuned),
        }

    def _stop_training(self, training: TrainingRun, secondary_status: str) -> None:
        """Ask a training job to end; ``secondary_status`` says why, in the API's words."""
        if training.stopping is not None or training.process.exit_status is not None:
            return
        engine = self._engine
        training.stopping = secondary_status
        now = engine.clock.now_ms()
        engine.store.update_training_job(
            training.job_id, {"status": "Stopping", "stopping_ms": now, "modified_ms": now}
        )
        engine.commit_soon()
        training.terminate(min(engine.options.stop_grace, engine.clock.real_seconds(AMT_STOP_GRACE_SECONDS)))

    def check_logs(self) -> None:
        """Fail training jobs whose log floods the disk."""
        limit = self._engine.options.log_limit
        for training in self.running.values():
            with contextlib.suppress(FileNotFoundError):
                if training.failing is None and training.spec.log.stat().st_size > limit:
                    training.failing = f"ClientError: its log grew beyond {limit // 1024 // 1024} MiB"
                    training.process.signal(signal.SIGKILL)

    def _exited(self, training: TrainingRun) -> None:
        """Take up the exit of a training process; called by the event loop, once."""
        training.cancel_timers()
        status = training.process.reap()
        task = asyncio.get_running_loop().create_task(self._finish(training, status))
        self._finishing.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._finishing.discard(task)
        self._changed.set()
        if not task.cancelled() and task.exception() is not None:
            logger.error("The end of a training job of %s broke", self._name, exc_info=task.exception())
            self._break()

    async def _finish(self, training: TrainingRun, exit_status: int) -> None:
        try:
            await self._record_end(training, exit_status)
        finally:
            self.running.pop(training.spec.name, None)

    async def _record_end(self, training: TrainingRun, exit_status: int) -> None:
        if self._engine.closing and training.stopping is None:
            conclusion = trainer.Conclusion(status="Failed", metrics={}, failure_reason=INTERRUPTED_REASON)
        else:
            conclusion = await asyncio.to_thread(self._conclude, training, exit_status)
        del self.running[training.spec.name]
        self._counters["training_in_progress"] -= 1
        self._counters["objective_pending"] -= 1
        objective = conclusion.metrics.get(self._metric) if conclusion.status != "Failed" else None
        ended = self._next_end()
        values = {
            "status": conclusion.status,
            "ended_ms": ended,
            "modified_ms": ended,
            "secondary_status": training.stopping if conclusion.status == "Stopped" else conclusion.status,
            "objective": objective,
            "objective_status": "Failed" if objective is None else "Succeeded",
            "metrics": dict(conclusion.metrics),
            "failure_reason": conclusion.failure_reason,
        }
        self._engine.store.update_training_job(training.job_id, values)
        self._take_in(
            {
                **values,
                "name": training.spec.name,
                "hyperparameters": training.tuned,
                "created_ms": training.created_ms,
                "started_ms": training.started_ms,
            }
        )
        if not self._engine.closing:
            self._engine.check_orphans()

    def _conclude(self, training: TrainingRun, exit_status: int) -> trainer.Conclusion:
        """Decide how a training job ended; runs in a thread, as it may read and pack a lot."""
        try:
            conclusion = trainer.conclude(
                training.spec, self._metric_definitions, exit_status, stopped=training.stopping is not None
            )
        except Exception as error:
            logger.exception("The end of training job %s cannot be evaluated", training.spec.name)
            reason = f"InternalServerError: its result cannot be evaluated: {error!r}"
            return trainer.Conclusion(
                status="Failed", metrics={}, failure_reason=reason[: trainer.LONGEST_REASON]
            )
        if training.failing is not None:
            return trainer.Conclusion(
                status="Failed", metrics=conclusion.metrics, failure_reason=training.failing
            )
        return conclusion

    def _record_not_started(
        self, spec: trainer.TrainingSpec, tuned: Mapping[str, str], created: int, reason: str
    ) -> None:
        self._launched += 1
        ended = self._next_end()
        values = {
            **self._identity_of(spec, tuned),
            "status": "Failed",
            "secondary_status": "Failed",
            "created_ms": created,
            "started_ms": None,
            "ended_ms": ended,
            "modified_ms": ended,
            "objective": None,
            "objective_status": "Failed",
            "failure_reason": reason[: trainer.LONGEST_REASON],
        }
        self._engine.store.insert_training_job(values)
        self._take_in(values)

    def _record_interrupted(self, row: Row) -> None:
        """Record the end of a training job whose process an earlier server left: it failed, or it stopped."""
        ended = self._next_end()
        status = "Stopped" if row["status"] == "Stopping" else "Failed"
        values = {
            "status": status,
            "secondary_status": status,
            "ended_ms": ended,
            "modified_ms": ended,
            "objective": None,
            "objective_status": "Failed",
            "failure_reason": INTERRUPTED_REASON if status == "Failed" else None,
        }
        self._engine.store.update_training_job(row["id"], values)
        self._take_in({**row, **values})

    def _next_end(self) -> int:
        """Return the end time of a training job that has just ended: later than that of any other."""
        self._last_ended_ms = max(self._engine.clock.now_ms(), self._last_ended_ms + 1)
        return self._last_ended_ms

    def _take_in(self, row: Row) -> None:
        """Update the statistics with a training job that has just ended; end the tuning job if it is time."""
        self._count_ended(row)
        fired = self._tracker.observe(_result(row))
        self._save(modified_ms=row["ended_ms"])
        if self._ending is not None:
            return
        reason = self._hopeless()
        if reason is not None:
            self._end("Failed", reason)
        elif fired:
            self._end("Completed")

    def _hopeless(self) -> str | None:
        """Return why the tuning job is not worth going on with, ``None`` as long as it may be."""
        completed, failed = self._counters["training_completed"], self._counters["training_non_retryable"]
        if self._counters["objective_succeeded"] or completed + failed < ATTEMPTS_WITHOUT_SUCCESS:
            return None
        return no_objective_reason(completed + failed) if completed else NO_SUCCESS_REASON

    def _came_to_nothing(self) -> bool:
        """Whether all training jobs have ended by themselves, and none has an objective."""
        counters = self._counters
        return (
            self._launched > 0 and counters["objective_succeeded"] == 0 and counters["training_stopped"] == 0
        )

    def _count_ended(self, row: Row) -> None:
        self._last_ended_ms = max(self._last_ended_ms, row["ended_ms"])
        if row["status"] == "Failed":
            retryable = (row["failure_reason"] or "").startswith("InternalServerError")
            self._counters["training_retryable" if retryable else "training_non_retryable"] += 1
        else:
            self._counters[_COUNTER_OF_STATUS[row["status"]]] += 1
        self._counters["objective_failed" if row["objective"] is None else "objective_succeeded"] += 1
        self._history.append(Evaluation(hyperparameters=row["hyperparameters"], objective=row["objective"]))

    def _save(self, **values: Any) -> None:
        """Write the tuning job's state; committed at the end of this turn of the event loop."""
        tracker = self._tracker
        converged = tracker.convergence_detected_at
        self._engine.store.update_tuning_job(
            self._id,
            {
                "status": self._status,
                "ending": self._ending,
                "failure_reason": self._failure_reason,
                "best": tracker.best.name if tracker.best else None,
                "not_improving": tracker.not_improving_count,
                "converged_ms": None if converged is None else to_milliseconds(converged),
                "modified_ms": self._engine.clock.now_ms(),
                **self._counters,
                **values,
            },
        )
        self._engine.commit_soon()


def _result(row: Row) -> TrainingJobResult:
    """Return a training job that has ended in the form that the criteria are decided on."""
    started = row["started_ms"]
    return TrainingJobResult(
        name=row["name"],
        status=row["status"],
        objective=row["objective"],
        created_at=to_datetime(row["created_ms"]),
        started_at=None if started is None else to_datetime(started),
        ended_at=to_datetime(row["ended_ms"]),
        tuned_hyperparameters=row["hyperparameters"],
        failure_reason=row["failure_reason"],
    )
