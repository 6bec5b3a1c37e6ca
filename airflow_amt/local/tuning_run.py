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

Several training job definitions share one budget: each has a search of its own, and the next training job
is of the definition that has launched fewest.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_amt.local import trainer, training_run
from airflow_amt.local.clock import to_datetime, to_milliseconds
from airflow_amt.local.early_stopping import StoppingRule, create_stopping_rule
from airflow_amt.local.metrics import compile_definitions
from airflow_amt.local.search import MAX_TRAINING_JOBS, Evaluation, Prior, Search, Space, create_search
from airflow_amt.local.store import Row, StateNotWrittenError
from airflow_amt.local.training_run import BROKEN_REASON, TrainingPlan, TrainingRun
from airflow_amt.tuning.criteria import CompletionCriteria, ObjectiveType
from airflow_amt.tuning.history import CriteriaTracker, TrainingJobResult
from airflow_amt.tuning.request import parameter_ranges

if TYPE_CHECKING:
    from airflow_amt.local.engine import Engine

logger = logging.getLogger(__name__)

#: How long a tuning job waits for a disk that is full before it tries to launch again.
_FULL_DISK_SECONDS = 1.0
#: So many ended training jobs without one objective fail the tuning job.
ATTEMPTS_WITHOUT_SUCCESS = 5
NO_SUCCESS_REASON = (
    f"No training job succeeded after {ATTEMPTS_WITHOUT_SUCCESS} attempts. "
    "Please take a look at the training job failures to get more details."
)
ALL_FAILED_REASON = (
    "All training jobs failed. Please take a look at the training job failures to get more details."
)

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


def prior_of(row: Row) -> Prior | None:
    """Return what the parents of a tuning job's warm start had tried, ``None`` without a warm start."""
    if row["warm_start"] is None:
        return None
    return Prior(
        evaluations=[
            Evaluation(hyperparameters=combination, objective=objective)
            for combination, objective in row["prior"] or ()
        ],
        transfer=row["warm_start"]["WarmStartType"] == "TransferLearning",
    )


def plan_of(
    config: Mapping[str, Any],
    definition: Mapping[str, Any],
    path: str,
    images: Mapping[str, Sequence[str]],
) -> TrainingPlan:
    """Return how the training jobs of a definition are run.

    :param config: the API's ``HyperParameterTuningJobConfig``.
    :param path: where the definition is in the request, for errors.
    :param images: commands by training image.
    :raises AmtFieldError: it cannot be run here.
    """
    where = f"{path}.AlgorithmSpecification"
    specification = definition["AlgorithmSpecification"]
    return TrainingPlan(
        definition=definition,
        path=path,
        command=training_run.script_or_command(
            definition.get("StaticHyperParameters") or {}, specification, images, where
        ),
        metrics=compile_definitions(
            specification.get("MetricDefinitions") or (), f"{where}.MetricDefinitions"
        ),
        objective_metric=objective_of(config, definition)["MetricName"],
    )


class DefinitionRun:
    """One training job definition of a tuning job: how it trains, what it searches, and what it has tried.

    :param index: its position among the definitions.
    :param config: the API's ``HyperParameterTuningJobConfig``.
    :param plan: how its training jobs are run.
    :param seed: seed of the tuning job.
    :param prior: what the parents of a warm start had tried.
    """

    def __init__(
        self,
        index: int,
        config: Mapping[str, Any],
        plan: TrainingPlan,
        seed: int,
        prior: Prior | None = None,
    ) -> None:
        self.index = index
        self.plan = plan
        # Definitions with the same ranges shall not try the same combinations.
        seed += 1_000_003 * index
        objective_type = ObjectiveType(objective_of(config, plan.definition)["Type"])
        self.static: Mapping[str, str] = plan.definition.get("StaticHyperParameters") or {}
        self.search: Search = create_search(
            config["Strategy"],
            space_of(config, plan.definition, plan.path),
            objective_type,
            seed,
            prior=prior,
        )
        self.rule: StoppingRule | None = create_stopping_rule(config, self.static, objective_type, seed)
        self.history: list[Evaluation] = []
        self.launched = 0
        self.exhausted = False


class TuningRun:
    """One tuning job that goes on: its statistics, its searches, and its running training jobs.

    :param engine: the engine it belongs to.
    :param row: the tuning job as the store has it.
    :param plans: how the training jobs of each definition are run.
    """

    def __init__(self, engine: Engine, row: Row, plans: Sequence[TrainingPlan]) -> None:
        config = row["config"]
        self._engine = engine
        self._id: int = row["id"]
        self._region: str = row["region"]
        self._name: str = row["name"]
        self._arn: str = row["arn"]
        self._status: str = row["status"]
        self._ending: str | None = row["ending"]
        self._failure_reason: str | None = row["failure_reason"]
        self._definitions = [
            DefinitionRun(index, config, plan, row["seed"], prior_of(row)) for index, plan in enumerate(plans)
        ]
        self._criteria = CompletionCriteria.from_request(config)
        #: Most training jobs to launch. The quota is no criterion: nothing fires when it is reached.
        self._most: int = self._criteria.max_training_jobs or MAX_TRAINING_JOBS[row["strategy"]]
        self._parallel: int = config["ResourceLimits"]["MaxParallelTrainingJobs"]
        objective = objective_of(config, row["definitions"][0])
        self._tracker = CriteriaTracker(
            self._criteria, ObjectiveType(objective["Type"]), started_at=to_datetime(row["created_ms"])
        )
        self._objective_type = ObjectiveType(objective["Type"])
        #: The best of all its training jobs, of those that ended after a criterion had fired too.
        self._best: Row | None = None
        self._counters = dict.fromkeys(COUNTERS, 0)
        self.running: dict[str, TrainingRun] = {}
        self._launched = 0
        self._last_ended_ms: int = row["created_ms"]
        self._given_up = False
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._deadline_timer: asyncio.TimerHandle | None = None

    @property
    def stops_early(self) -> bool:
        """Whether its training jobs have to be followed epoch by epoch."""
        return any(definition.rule is not None for definition in self._definitions)

    # --- life ------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Take up what the store has of this tuning job, and go on from there."""
        # Copy all rows first: a damaged row raises before any training job starts.
        rows = [dict(row) for row in self._engine.store.training_jobs_of(self._id)]
        self._launched = len(rows)
        for row in rows:
            self._definitions[row["definition_index"]].launched += 1
        ended = [row for row in rows if row["ended_ms"] is not None]
        for row in sorted(ended, key=lambda one: (one["ended_ms"], one["id"])):
            self._count_ended(row)
            self._tracker.observe(_result(row))
        unfinished = [row for row in rows if row["ended_ms"] is None]
        resumed = []
        for row in unfinished:
            plan = self._definitions[row["definition_index"]].plan
            if self._ending is None and training_run.may_resume(row, plan):
                resumed.append(row)
            else:
                self._record_end(row, training_run.interrupted(row), curve=None)
        if self._tracker.fired and self._ending is None:
            self._end("Completed")
        # The time limit may have passed while no server ran.
        self._check_time()
        for row in resumed:
            # What has ended by now is not to start anything again.
            if self._ending is None:
                self._resume(row)
            else:
                self._record_end(row, training_run.interrupted(row), curve=None)
        if rows:
            self._save()
        self._watch_time()
        self._task = asyncio.get_running_loop().create_task(self._go_on(), name=f"tuning job {self._name}")

    def stop(self) -> None:
        """Stop it as ``StopHyperParameterTuningJob`` says."""
        if self._status == "Stopping":
            return
        self._status = "Stopping"
        self._end("Stopped")

    def interrupt(self) -> None:
        """Launch nothing more because the server ends; the tuning job itself goes on with the next server."""
        if self._task is not None:
            self._task.cancel()
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()

    def give_up(self) -> None:
        """End its training jobs, and record nothing more."""
        self._given_up = True
        self.interrupt()
        for training in list(self.running.values()):
            training.abandon()

    async def _go_on(self) -> None:
        """Launch, wait, and end: the whole life of the tuning job."""
        try:
            while not self._is_over():
                definition = self._next_definition()
                if definition is not None:
                    await self._launch_next(definition)
                else:
                    self._changed.clear()
                    await self._changed.wait()
                self._check_time()
            self._finalise()
        except Exception:
            logger.exception("Tuning job %s broke", self._name)
            self._break()
            while self.running:
                self._changed.clear()
                await self._changed.wait()
            self._finalise()

    def _is_over(self) -> bool:
        if self.running:
            return False
        return self._ending is not None or self._exhausted or self._launched >= self._most

    @property
    def _exhausted(self) -> bool:
        return all(definition.exhausted for definition in self._definitions)

    def _may_launch(self) -> bool:
        return self._ending is None and len(self.running) < self._parallel and self._launched < self._most

    def _next_definition(self) -> DefinitionRun | None:
        """Return the definition whose turn it is, ``None`` if nothing is to be launched now."""
        if not self._may_launch():
            return None
        open_ones = [definition for definition in self._definitions if not definition.exhausted]
        return min(open_ones, key=lambda one: (one.launched, one.index), default=None)

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
            training.stop("Stopped")
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
        for training in self.running.values():
            training.abandon()
        self._ending = "Failed"
        self._failure_reason = BROKEN_REASON
        self._changed.set()

    # --- training jobs ---------------------------------------------------------------------------

    async def _launch_next(self, definition: DefinitionRun) -> None:
        search = definition.search
        pending = [one.tuned for one in self.running.values() if one.plan is definition.plan]
        if search.slow:
            tuned = await asyncio.get_running_loop().run_in_executor(
                self._engine.search_thread, search.propose, list(definition.history), pending
            )
        else:
            tuned = search.propose(definition.history, pending)
        if tuned is None:
            definition.exhausted = True
            return
        # The tuning job may have ended while the search was thinking.
        while self._may_launch():
            try:
                self._launch(definition, tuned)
                return
            except StateNotWrittenError:
                # No training job runs that no server would find again. The store logs why.
                await asyncio.sleep(_FULL_DISK_SECONDS)
                self._check_time()

    def _launch(self, definition: DefinitionRun, tuned: Mapping[str, str]) -> None:
        name = f"{self._name}-{self._launched + 1:03d}-{secrets.token_hex(4)}"
        training = self._training(definition, name, tuned)
        # As AMT documents: training jobs get the tags that the tuning job has when they are launched.
        tags = self._engine.store.tags_of(self._arn)
        with self._engine.store.transaction():
            training.record(
                {
                    "tuning_job_id": self._id,
                    "definition_index": definition.index,
                    "objective_status": "Pending",
                }
            )
            if tags:
                self._engine.store.set_tags(training.spec.arn, tags)
        training.start()
        self._launched += 1
        definition.launched += 1
        self._count_running(training)
        self._save(modified_ms=training.created_ms)

    def _resume(self, row: Row) -> None:
        definition = self._definitions[row["definition_index"]]
        training = self._training(definition, row["name"], row["hyperparameters"])
        self._count_running(training)
        training.resume(row)

    def _count_running(self, training: TrainingRun) -> None:
        self.running[training.spec.name] = training
        self._counters["training_in_progress"] += 1
        self._counters["objective_pending"] += 1

    def _training(self, definition: DefinitionRun, name: str, tuned: Mapping[str, str]) -> TrainingRun:
        spec = self._engine.spec(self._region, name, definition.plan, {**definition.static, **tuned})
        return TrainingRun(
            self._engine, definition.plan, spec, tuned=tuned, on_end=self._ended, rule=definition.rule
        )

    def _ended(self, training: TrainingRun, conclusion: trainer.Conclusion) -> None:
        """Take up the end of a training job."""
        del self.running[training.spec.name]
        self._counters["training_in_progress"] -= 1
        self._counters["objective_pending"] -= 1
        self._changed.set()
        if self._given_up:
            return
        try:
            row = self._engine.store.training_job_by_id(training.job_id)
            row = {**row, "transitions": training.transitions}
            self._record_end(
                row,
                conclusion,
                stopping=training.stopping,
                curve=training.curve if self.stops_early else None,
            )
        except Exception:
            logger.exception("The end of training job %s broke its tuning job", training.spec.name)
            self._break()

    def _record_end(
        self,
        row: Row,
        conclusion: trainer.Conclusion,
        *,
        stopping: str | None = None,
        curve: Sequence[float] | None,
    ) -> None:
        definition = self._definitions[row["definition_index"]]
        objective = None
        if conclusion.status != "Failed":
            objective = conclusion.metrics.get(definition.plan.objective_metric or "")
        # Later than the end of any other.
        ended = max(self._engine.clock.now_ms(), self._last_ended_ms + 1)
        values = {
            **training_run.end_values(row["transitions"], conclusion, ended, stopping=stopping),
            "objective": objective,
            "objective_status": "Failed" if objective is None else "Succeeded",
            # JSON has no NaN.
            "curve": None if curve is None else [one if math.isfinite(one) else None for one in curve],
        }
        self._engine.store.update_training_job(row["id"], values)
        self._take_in({**row, **values})

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
            retryable = training_run.is_internal_error(row["failure_reason"])
            self._counters["training_retryable" if retryable else "training_non_retryable"] += 1
        else:
            self._counters[_COUNTER_OF_STATUS[row["status"]]] += 1
        self._counters["objective_failed" if row["objective"] is None else "objective_succeeded"] += 1
        if row["objective"] is not None and self._objective_type.better(
            row["objective"], None if self._best is None else self._best["objective"]
        ):
            self._best = row
        definition = self._definitions[row["definition_index"]]
        definition.history.append(
            Evaluation(hyperparameters=row["hyperparameters"], objective=row["objective"])
        )
        if definition.rule is not None:
            curve = [math.nan if one is None else one for one in row["curve"] or ()]
            definition.rule.ended(training_run.rule_key(row["name"]), curve)

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
                "best": None if self._best is None else self._best["name"],
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
