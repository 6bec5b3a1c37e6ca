"""The operator that hands the best training jobs of a tuning job on to the next task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.sdk import BaseOperator

from airflow_amt import _compat, tuning, watch
from airflow_amt._tasks import CONNECTION_FIELDS, NAME_KEY, TuningJobTask, require_name
from airflow_amt.exceptions import AmtFieldError, AmtRequestError
from airflow_amt.links.tuning import AmtTuningJobLink
from airflow_amt.task_exceptions import AmtNoUsableTrainingJob

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_amt.tuning import TrainingJobResult, TuningProgress

_Result = TypeVar("_Result")

#: Version of the dict that the operator returns.
BEST_VERSION = 1

#: Most training jobs that go into one XCom: each is described by a call, and takes about a kilobyte.
MOST_TRAINING_JOBS = 20

#: Hyperparameter that AMT adds to each training job; no algorithm takes it when trained again.
_AMT_HYPERPARAMETER = "_tuning_objective_metric"

#: Seconds before a read of AWS that failed is made again, the first time.
_PAUSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """The arguments of the operator, checked."""

    name: str
    top_k: int
    floor: float | None


class AmtBestTrainingJobOperator(TuningJobTask, BaseOperator):
    """Find the best training jobs of a tuning job, and return what a next task needs to use their models.

    How it works: training jobs are ranked by their objective, in the direction of the tuning job; of equal
    ones the first to end is better. Only those that completed count, unless ``include_stopped``. Each of the
    best is described. The task returns ``{"version", "tuning_job_name", "tuning_job_arn",
    "objective_metric", "objective_type", "training_jobs"}``, and each training job is ``{"rank", "name",
    "arn", "status", "objective", "model_artifact", "image", "algorithm", "role", "instance_type",
    "hyperparameters", "tuned_hyperparameters", "metrics", "training_seconds", "billable_seconds",
    "created_at", "started_at", "ended_at"}``: ``hyperparameters`` are all of them, as strings, and
    ``metrics`` the final values. Of the best one ``training_job_name``, ``model_artifact``,
    ``hyperparameters``, ``objective``, ``image`` and ``role`` are XComs of their own as well:
    ``best.output["model_artifact"]``.

    What it does not do: it does not look whether the artifact is in S3. SageMaker uploads it before a
    training job is ``Completed``; of one that was stopped the API names only the place where it would be,
    and whether the algorithm saved anything on SIGTERM is its own affair.

    :param tuning_job_name: the tuning job; one that still runs has a best training job so far (templated).
    :param top_k: how many of the best to return, 1 to 20; fewer if there are fewer (templated).
    :param require_objective: the objective that a training job must reach at least (at most, where it is
        minimised) to count (templated).
    :param include_stopped: let training jobs that were stopped count too.
    :param overall: for a warm start with identical data and algorithm: the best one of this tuning job and
        its parents (``OverallBestTrainingJob``). Other tuning jobs have none; their own best one is taken.
        Only with ``top_k=1``.
    :param on_missing: ``"fail"`` the task, or ``"skip"`` it, if no training job counts.
    :param aws_conn_id: connection (templated).
    :param region_name: AWS region (templated).
    :param verify: as for boto3 (templated).
    :param botocore_config: as for ``botocore.config.Config``.
    :raises AmtRequestError: an argument is not well formed; nothing was sent.
    :raises AmtNoUsableTrainingJob: no training job counts.
    :raises AmtResourceNotFoundError: there is no such tuning job.
    """

    template_fields: Sequence[str] = ("tuning_job_name", "top_k", "require_objective", *CONNECTION_FIELDS)
    operator_extra_links = (AmtTuningJobLink(),)
    ui_color = "#ededed"

    def __init__(
        self,
        *,
        tuning_job_name: str,
        top_k: int | str = 1,
        require_objective: float | str | None = None,
        include_stopped: bool = False,
        overall: bool = False,
        on_missing: str = "fail",
        aws_conn_id: str | None = "aws_default",
        region_name: str | None = None,
        verify: bool | str | None = None,
        botocore_config: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.tuning_job_name = tuning_job_name
        self.top_k = top_k
        self.require_objective = require_objective
        self.include_stopped = include_stopped
        self.overall = overall
        self.on_missing = on_missing
        self.aws_conn_id = aws_conn_id
        self.region_name = region_name
        self.verify = verify
        self.botocore_config = botocore_config

    def execute(self, context: Context) -> dict[str, Any]:
        """Rank, describe and return the best training jobs."""
        wanted = self._checked()
        ti = context["ti"]
        ti.xcom_push(key=NAME_KEY, value=wanted.name)
        description = self._read(lambda: self.hook.describe_tuning_job(wanted.name))
        progress = tuning.TuningProgress.from_describe(description)
        self.publish_link(context, progress.arn)
        if not progress.is_terminal:
            self.log.warning(
                "Tuning job %s is %s: its best training job is the best one so far.",
                wanted.name,
                progress.status,
            )
        best = self._best(wanted, progress, description)
        if not best:
            return self._missing(wanted, progress)
        jobs = [self._facts(rank, job) for rank, job in best]
        first = jobs[0]
        ti.xcom_push(key="training_job_name", value=first["name"])
        for key in ("model_artifact", "hyperparameters", "objective", "image", "role"):
            ti.xcom_push(key=key, value=first[key])
        self.log.info(
            "Tuning job %s: best training job %s (%s %s), artifact %s",
            wanted.name,
            first["name"],
            progress.objective_metric or "objective",
            first["objective"],
            first["model_artifact"],
        )
        return {
            "version": BEST_VERSION,
            "tuning_job_name": progress.name,
            "tuning_job_arn": progress.arn,
            "objective_metric": progress.objective_metric,
            "objective_type": progress.objective_type.value if progress.objective_type else None,
            "training_jobs": jobs,
        }

    def _checked(self) -> _Wanted:
        problems: list[AmtFieldError] = []
        name, top_k, floor = "", 1, None
        try:
            name = require_name("tuning_job_name", self.tuning_job_name)
        except AmtRequestError as error:
            problems += error.problems
        try:
            top_k = int(
                tuning.values.parse_number(
                    "top_k", self.top_k, at_least=1, at_most=MOST_TRAINING_JOBS, whole=True
                )
            )
        except AmtFieldError as problem:
            problems.append(problem)
        if self.require_objective is not None:
            try:
                floor = tuning.values.parse_number("require_objective", self.require_objective)
            except AmtFieldError as problem:
                problems.append(problem)
        if self.on_missing not in ("fail", "skip"):
            problems.append(
                AmtFieldError("on_missing", self.on_missing, "'fail' or 'skip'", "choose one of the two")
            )
        if self.overall and top_k > 1:
            problems.append(
                AmtFieldError(
                    "top_k",
                    self.top_k,
                    "AWS names one overall best training job",
                    "leave top_k or overall out",
                )
            )
        if problems:
            raise AmtRequestError(problems)
        return _Wanted(name=name, top_k=top_k, floor=floor)

    def _best(
        self, wanted: _Wanted, progress: TuningProgress, description: Mapping[str, Any]
    ) -> list[tuple[int, TrainingJobResult]]:
        overall = description.get("OverallBestTrainingJob") if self.overall else None
        if overall:
            jobs = [tuning.TrainingJobResult.from_summary(overall)]
        else:
            jobs = self._read(
                lambda: [
                    tuning.TrainingJobResult.from_summary(one)
                    for one in self.hook.list_training_jobs(wanted.name)
                ]
            )
        usable = ("Completed", "Stopped") if self.include_stopped else ("Completed",)
        ranked = tuning.rank_training_jobs(
            (job for job in jobs if job.status in usable), progress.objective_type
        )
        return [
            (rank, job)
            for rank, job in ranked
            if rank is not None and rank <= wanted.top_k and self._reaches(job, wanted.floor, progress)
        ]

    def _reaches(self, job: TrainingJobResult, floor: float | None, progress: TuningProgress) -> bool:
        if floor is None:
            return True
        return (
            job.objective is not None
            and progress.objective_type is not None
            and progress.objective_type.reaches(job.objective, floor)
        )

    def _missing(self, wanted: _Wanted, progress: TuningProgress) -> dict[str, Any]:
        which = "completed or was stopped" if self.include_stopped else "completed"
        metric = progress.objective_metric or "objective"
        detail = f"none {which} with an objective"
        if wanted.floor is not None:
            detail += f" of {wanted.floor:g} or better"
        best = progress.best_objective
        detail += "" if best is None else f"; the best {metric} is {best:g}"
        detail += f" (tuning job {progress.status}, {progress.training_jobs.ended} training jobs ended)."
        if self.on_missing == "skip":
            raise _compat.AirflowSkipException(f"Tuning job {wanted.name!r}: {detail}")
        raise AmtNoUsableTrainingJob(wanted.name, detail)

    def _facts(self, rank: int, job: TrainingJobResult) -> dict[str, Any]:
        described = self._read(lambda: self.hook.describe_training_job(job.name))
        algorithm = described.get("AlgorithmSpecification") or {}
        return {
            "rank": rank,
            "name": job.name,
            "arn": described.get("TrainingJobArn"),
            "status": described.get("TrainingJobStatus") or job.status,
            "objective": job.objective,
            "model_artifact": (described.get("ModelArtifacts") or {}).get("S3ModelArtifacts"),
            "image": algorithm.get("TrainingImage"),
            "algorithm": algorithm.get("AlgorithmName"),
            "role": described.get("RoleArn"),
            "instance_type": (described.get("ResourceConfig") or {}).get("InstanceType"),
            "hyperparameters": {
                key: value
                for key, value in (described.get("HyperParameters") or {}).items()
                if key != _AMT_HYPERPARAMETER
            },
            "tuned_hyperparameters": dict(job.tuned_hyperparameters),
            "metrics": {
                one["MetricName"]: tuning.history.finite(one.get("Value"))
                for one in described.get("FinalMetricDataList") or ()
                if one.get("MetricName")
            },
            "training_seconds": described.get("TrainingTimeInSeconds"),
            "billable_seconds": described.get("BillableTimeInSeconds"),
            "created_at": _time(described, "CreationTime"),
            "started_at": _time(described, "TrainingStartTime"),
            "ended_at": _time(described, "TrainingEndTime"),
        }

    def _read(self, call: Callable[[], _Result]) -> _Result:
        return watch.polling.patiently(call, interval_seconds=_PAUSE_SECONDS, log=self.log)


def _time(described: Mapping[str, Any], key: str) -> str | None:
    return tuning.history.iso(tuning.history.aware(described.get(key)))
