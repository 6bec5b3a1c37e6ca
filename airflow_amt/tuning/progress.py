"""One frozen snapshot of a tuning job's progress, parsed in one place from Describe and from List.

Every number is AMT's own where AMT gives one; what is derived here (durations, remaining time, gain) says
so. Missing and null fields never raise: the API leaves most of them out at times.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from airflow_amt.text import MOST_MESSAGE, bounded, shown
from airflow_amt.tuning.criteria import CompletionCriteria, ObjectiveType
from airflow_amt.tuning.history import (
    ReplayReport,
    TrainingJobResult,
    aware,
    ended_in_order,
    finite,
    iso,
    replay,
)
from airflow_amt.tuning.status import TERMINAL_STATUSES

#: Version of the dict that :meth:`TuningProgress.to_dict` returns; readers may rely on it in XCom.
PROGRESS_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJobCounters:
    """Launched training jobs by status (API: ``TrainingJobStatusCounters``); a missing one is 0."""

    completed: int = 0
    in_progress: int = 0
    retryable_error: int = 0
    non_retryable_error: int = 0
    stopped: int = 0

    @classmethod
    def parse(cls, counters: Mapping[str, Any] | None) -> TrainingJobCounters:
        """Parse the API's structure."""
        counters = counters or {}
        return cls(
            completed=_count(counters.get("Completed")),
            in_progress=_count(counters.get("InProgress")),
            retryable_error=_count(counters.get("RetryableError")),
            non_retryable_error=_count(counters.get("NonRetryableError")),
            stopped=_count(counters.get("Stopped")),
        )

    @property
    def ended(self) -> int:
        """Training jobs that are over, however they ended."""
        return self.completed + self.failed + self.stopped

    @property
    def failed(self) -> int:
        """Training jobs that failed, retryable or not."""
        return self.retryable_error + self.non_retryable_error

    @property
    def launched(self) -> int:
        """All training jobs launched so far."""
        return self.ended + self.in_progress

    def to_dict(self) -> dict[str, int]:
        """Return the counters under the API's names."""
        return {
            "Completed": self.completed,
            "InProgress": self.in_progress,
            "RetryableError": self.retryable_error,
            "NonRetryableError": self.non_retryable_error,
            "Stopped": self.stopped,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveCounters:
    """Launched training jobs by their objective (API: ``ObjectiveStatusCounters``); a missing one is 0."""

    succeeded: int = 0
    pending: int = 0
    failed: int = 0

    @classmethod
    def parse(cls, counters: Mapping[str, Any] | None) -> ObjectiveCounters:
        """Parse the API's structure."""
        counters = counters or {}
        return cls(
            succeeded=_count(counters.get("Succeeded")),
            pending=_count(counters.get("Pending")),
            failed=_count(counters.get("Failed")),
        )

    def to_dict(self) -> dict[str, int]:
        """Return the counters under the API's names."""
        return {"Succeeded": self.succeeded, "Pending": self.pending, "Failed": self.failed}


@dataclass(frozen=True, slots=True, kw_only=True)
class SatisfactoryProgress:
    """Whether a tuning job still gains objective for the training time it consumes.

    The developer guide tells users to compare consumed resources with the best training job, and with the
    training jobs' list, "to assess if your tuning job is making satisfactory progress"; this is that
    comparison, per training second.

    :param training_seconds: training time of all ended training jobs, in seconds.
    :param recent_training_seconds: the same, of those in the recent window.
    :param gain: how much the best objective improved from the first result to now, 0 or more.
    :param recent_gain: how much of it came in the recent window.
    :param gain_per_second: ``gain / training_seconds``; ``None`` if no training time is known.
    :param recent_gain_per_second: the same of the recent window.
    :param progressing: whether the recent window improved the best objective at all; ``None`` if there
        are fewer results than would tell (two, or one window).
    """

    training_seconds: float
    recent_training_seconds: float
    gain: float
    recent_gain: float
    gain_per_second: float | None
    recent_gain_per_second: float | None
    progressing: bool | None

    @classmethod
    def measure(
        cls,
        training_jobs: Iterable[TrainingJobResult],
        objective_type: ObjectiveType,
        *,
        window: int = 10,
    ) -> SatisfactoryProgress:
        """Measure it over the training jobs of one tuning job.

        :param training_jobs: in any order; those that have not ended are left out.
        :param objective_type: which direction is better.
        :param window: how many of the latest results count as recent, at least 1.
        :raises ValueError: ``window`` is below 1.
        """
        if window < 1:
            raise ValueError(f"window must be at least 1 training job, not {window}")
        ended = ended_in_order(training_jobs)
        scores = [
            (position, value if objective_type is ObjectiveType.MAXIMIZE else -value)
            for position, value in enumerate(finite(job.objective) for job in ended)
            if value is not None
        ]
        total = sum(job.training_seconds or 0.0 for job in ended)
        recent_from = scores[-window][0] if len(scores) >= window else 0
        recent = sum(job.training_seconds or 0.0 for job in ended[recent_from:])
        gain = max(score for _, score in scores) - scores[0][1] if scores else 0.0
        before = [score for position, score in scores if position < recent_from]
        latest = [score for position, score in scores if position >= recent_from]
        if before:
            recent_gain = max(0.0, max(latest) - max(before))
            progressing: bool | None = recent_gain > 0
        else:
            recent_gain = gain
            progressing = True if gain > 0 else (False if len(scores) >= max(2, window) else None)
        return cls(
            training_seconds=total,
            recent_training_seconds=recent,
            gain=gain,
            recent_gain=recent_gain,
            gain_per_second=gain / total if total > 0 else None,
            recent_gain_per_second=recent_gain / recent if recent > 0 else None,
            progressing=progressing,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningProgress:
    """A tuning job at one moment.

    :param name: tuning job name.
    :param arn: its ARN, ``""`` if the answer had none.
    :param status: ``HyperParameterTuningJobStatus`` of the API; ``"Unknown"`` if the answer had none.
    :param training_jobs: counters of launched training jobs by status.
    :param objectives: counters of launched training jobs by objective.
    :param criteria: the completion criteria of the request; from List only the two resource limits.
    :param max_parallel_training_jobs: how many train at once, if known.
    :param strategy: search strategy, if known.
    :param objective_type: direction of the objective, if known.
    :param objective_metric: name of the objective, if known.
    :param best: best training job so far with its objective; never known from List.
    :param consumed_runtime: AMT's own wall-clock runtime of the tuning job; never known from List.
    :param not_improving_count: AMT's own ``NumberOfTrainingJobsObjectiveNotImproving``.
    :param convergence_detected_at: AMT's own ``ConvergenceDetectedTime``.
    :param created_at: creation time.
    :param ended_at: end time.
    :param last_modified_at: last change.
    :param failure_reason: AMT's reason, if the job failed.
    :param is_summary: whether it comes from List, which leaves much out: what is missing is not known then.
    """

    name: str
    arn: str = ""
    status: str = "Unknown"
    training_jobs: TrainingJobCounters = field(default_factory=TrainingJobCounters)
    objectives: ObjectiveCounters = field(default_factory=ObjectiveCounters)
    criteria: CompletionCriteria = field(default_factory=CompletionCriteria)
    max_parallel_training_jobs: int | None = None
    strategy: str | None = None
    objective_type: ObjectiveType | None = None
    objective_metric: str | None = None
    best: TrainingJobResult | None = None
    consumed_runtime: timedelta | None = None
    not_improving_count: int | None = None
    convergence_detected_at: datetime | None = None
    created_at: datetime | None = None
    ended_at: datetime | None = None
    last_modified_at: datetime | None = None
    failure_reason: str | None = None
    is_summary: bool = False

    @classmethod
    def from_describe(cls, description: Mapping[str, Any]) -> TuningProgress:
        """Parse the answer of ``DescribeHyperParameterTuningJob``."""
        config = description.get("HyperParameterTuningJobConfig") or {}
        details = description.get("TuningJobCompletionDetails") or {}
        consumed = (description.get("ConsumedResources") or {}).get("RuntimeInSeconds")
        best = description.get("BestTrainingJob")
        metric, objective_type = _objective(description)
        not_improving = details.get("NumberOfTrainingJobsObjectiveNotImproving")
        return cls(
            **_common(description, config.get("ResourceLimits")),
            criteria=_criteria(config),
            strategy=config.get("Strategy"),
            objective_type=objective_type,
            objective_metric=metric,
            best=TrainingJobResult.from_summary(best) if best else None,
            consumed_runtime=_span(finite(consumed)),
            not_improving_count=None if not_improving is None else _count(not_improving),
            convergence_detected_at=aware(details.get("ConvergenceDetectedTime")),
            failure_reason=description.get("FailureReason"),
        )

    @classmethod
    def from_list_summary(cls, summary: Mapping[str, Any]) -> TuningProgress:
        """Parse one ``HyperParameterTuningJobSummary`` of ``ListHyperParameterTuningJobs``."""
        limits = summary.get("ResourceLimits")
        return cls(
            **_common(summary, limits),
            criteria=_criteria({"ResourceLimits": limits}),
            strategy=summary.get("Strategy"),
            is_summary=True,
        )

    @property
    def is_terminal(self) -> bool:
        """Whether the tuning job is over: nothing trains any more and nothing will."""
        return self.status in TERMINAL_STATUSES

    @property
    def best_objective(self) -> float | None:
        """Objective of the best training job so far."""
        return self.best.objective if self.best else None

    @property
    def runtime(self) -> timedelta | None:
        """AMT's consumed runtime or, where that is missing and the job is over, end minus creation."""
        if self.consumed_runtime is not None:
            return self.consumed_runtime
        if self.created_at is None or self.ended_at is None:
            return None
        return max(timedelta(0), self.ended_at - self.created_at)

    @property
    def mean_training_job_duration(self) -> timedelta | None:
        """Estimated mean duration of a training job.

        From the guide's hint (objective counters and the total runtime): runtime * parallel training jobs
        / training jobs that ended. ``None`` before the first one ended. An estimate: it counts the idle
        time between training jobs in.
        """
        per_job = self._runtime_per_training_job
        if per_job is None:
            return None
        return _span(per_job * max(1, min(self.max_parallel_training_jobs or 1, self.training_jobs.launched)))

    @property
    def estimated_remaining(self) -> timedelta | None:
        """Estimated time until the two resource limits end the job; ``None`` if neither is set or known.

        The smaller of: training jobs left * runtime per ended training job, and the rest of the maximum
        runtime. The other three criteria can end the job earlier at any time.
        """
        if self.is_terminal:
            return timedelta(0)
        estimates: list[float] = []
        per_job, most = self._runtime_per_training_job, self.criteria.max_training_jobs
        if most is not None and per_job is not None:
            estimates.append(per_job * max(0, most - self.training_jobs.ended))
        if self.criteria.max_runtime is not None and self.runtime is not None:
            left = self.criteria.max_runtime - self.runtime
            estimates.append(max(0.0, left.total_seconds()))
        return _span(min(estimates, default=None))

    @property
    def _runtime_per_training_job(self) -> float | None:
        """Seconds of runtime per training job that ended."""
        if self.runtime is None or self.training_jobs.ended == 0:
            return None
        return self.runtime.total_seconds() / self.training_jobs.ended

    def satisfactory(
        self, training_jobs: Iterable[TrainingJobResult], *, window: int = 10
    ) -> SatisfactoryProgress | None:
        """Say whether the tuning job still progresses for what it consumes; ``None`` without an objective.

        :param training_jobs: its training jobs (``ListTrainingJobsForHyperParameterTuningJob``).
        :param window: as in :meth:`SatisfactoryProgress.measure`.
        """
        if self.objective_type is None:
            return None
        return SatisfactoryProgress.measure(training_jobs, self.objective_type, window=window)

    def replay(
        self, training_jobs: Iterable[TrainingJobResult], criteria: CompletionCriteria | None = None
    ) -> ReplayReport | None:
        """Replay criteria over this job's training jobs; see :func:`airflow_amt.tuning.history.replay`.

        :param training_jobs: its training jobs, in any order.
        :param criteria: the criteria to try; the job's own if left out.
        :return: ``None`` if creation time or direction of the objective is not known.
        """
        if self.created_at is None or self.objective_type is None:
            return None
        return replay(
            training_jobs,
            self.criteria if criteria is None else criteria,
            self.objective_type,
            started_at=self.created_at,
            until=self.ended_at,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the snapshot as a small JSON-safe dict, for XCom.

        Times are ISO 8601 in UTC or ``*_seconds``; absent facts are ``None``.
        """
        best = self.best
        return {
            "version": PROGRESS_VERSION,
            "tuning_job_name": self.name,
            "tuning_job_arn": self.arn,
            "status": self.status,
            "best_training_job": None
            if best is None
            else {
                "name": best.name,
                "status": best.status,
                "objective": best.objective,
                "hyperparameters": dict(best.tuned_hyperparameters),
            },
            "objective_metric": self.objective_metric,
            "objective_type": self.objective_type.value if self.objective_type else None,
            "training_job_counters": self.training_jobs.to_dict(),
            "objective_counters": self.objectives.to_dict(),
            "not_improving": self.not_improving_count,
            "convergence_detected_at": iso(self.convergence_detected_at),
            "created_at": iso(self.created_at),
            "ended_at": iso(self.ended_at),
            "runtime_seconds": _seconds(self.runtime),
            "estimated_remaining_seconds": _seconds(self.estimated_remaining),
            "max_training_jobs": self.criteria.max_training_jobs,
            "max_runtime_seconds": self.criteria.max_runtime_seconds,
            "target_objective_value": self.criteria.target_objective_value,
            "failure_reason": bounded(self.failure_reason),
        }

    def log_line(self) -> str:
        """Say the progress in one readable line, each counter beside its limit."""
        jobs = self.training_jobs
        parts = [self.status, f"training jobs {_of(jobs.ended, self.criteria.max_training_jobs)} ended"]
        if jobs.in_progress:
            parts.append(f"{jobs.in_progress} running")
        if jobs.failed:
            parts.append(f"{jobs.failed} failed")
        if self.objectives.failed > jobs.failed:
            parts.append(f"{self.objectives.failed} without objective")
        if self.best_objective is not None:
            target = self.criteria.target_objective_value
            metric = self.objective_metric or "objective"
            goal = "" if target is None else f" (target {target:g})"
            parts.append(f"best {metric} {self.best_objective:.6g}{goal}")
        if self.not_improving_count is not None:
            limit = self.criteria.max_training_jobs_not_improving
            parts.append(f"not improving {_of(self.not_improving_count, limit)}")
        if self.convergence_detected_at is not None:
            parts.append("converged")
        if self.runtime is not None:
            limit_seconds = self.criteria.max_runtime_seconds
            parts.append(f"runtime {_of(round(self.runtime.total_seconds()), limit_seconds)} s")
        remaining = self.estimated_remaining
        if remaining is not None and not self.is_terminal:
            parts.append(f"about {round(remaining.total_seconds())} s left")
        return shown(f"Tuning job {self.name}: " + ", ".join(parts), MOST_MESSAGE)

    def change_key(self) -> tuple[Any, ...]:
        """Return what must differ from an earlier snapshot for the change to be worth a log line."""
        return (
            self.status,
            self.training_jobs,
            self.best_objective,
            self.not_improving_count,
            self.convergence_detected_at,
        )


def _common(answer: Mapping[str, Any], limits: Mapping[str, Any] | None) -> dict[str, Any]:
    parallel = (limits or {}).get("MaxParallelTrainingJobs")
    return {
        "name": answer.get("HyperParameterTuningJobName") or "",
        "arn": answer.get("HyperParameterTuningJobArn") or "",
        "status": answer.get("HyperParameterTuningJobStatus") or "Unknown",
        "training_jobs": TrainingJobCounters.parse(answer.get("TrainingJobStatusCounters")),
        "objectives": ObjectiveCounters.parse(answer.get("ObjectiveStatusCounters")),
        "max_parallel_training_jobs": _count(parallel) or None,
        "created_at": aware(answer.get("CreationTime")),
        "ended_at": aware(answer.get("HyperParameterTuningEndTime")),
        "last_modified_at": aware(answer.get("LastModifiedTime")),
    }


def _criteria(config: Mapping[str, Any]) -> CompletionCriteria:
    """Read the criteria of a description; one that AWS accepted but we would refuse is left out."""
    try:
        return CompletionCriteria.from_request(config)
    except ValueError:
        # Only one of them is odd: keep the others.
        return _legible_criteria(config)


def _legible_criteria(config: Mapping[str, Any]) -> CompletionCriteria:
    whole = {
        "ResourceLimits": dict(config.get("ResourceLimits") or {}),
        "TuningJobCompletionCriteria": dict(config.get("TuningJobCompletionCriteria") or {}),
    }
    kept: dict[str, dict[str, Any]] = {"ResourceLimits": {}, "TuningJobCompletionCriteria": {}}
    for part, members in whole.items():
        for key, value in members.items():
            attempt = {**kept, part: {**kept[part], key: value}}
            try:
                CompletionCriteria.from_request(attempt)
            except ValueError:
                continue
            kept = attempt
    return CompletionCriteria.from_request(kept)


def _objective(description: Mapping[str, Any]) -> tuple[str | None, ObjectiveType | None]:
    """Find the objective: of the config or, with several definitions, the one that they share."""
    config = description.get("HyperParameterTuningJobConfig") or {}
    objectives = [config.get("HyperParameterTuningJobObjective")]
    objectives += [
        definition.get("TuningObjective")
        for definition in [
            description.get("TrainingJobDefinition"),
            *(description.get("TrainingJobDefinitions") or ()),
        ]
        if definition
    ]
    best = description.get("BestTrainingJob") or {}
    objectives.append(best.get("FinalHyperParameterTuningJobObjectiveMetric"))
    for objective in objectives:
        if objective and objective.get("Type") in ObjectiveType._value2member_map_:
            return objective.get("MetricName"), ObjectiveType(objective["Type"])
    return None, None


def _count(value: Any) -> int:
    """Return a counter, 0 for anything that is not one (the API's counters are 32-bit integers)."""
    number = finite(value)
    return int(number) if number is not None and 0 <= number < 2**31 else 0


def _span(seconds: float | None) -> timedelta | None:
    """Return seconds as a time span, or ``None`` for what is no sensible span (negative, over 300 years)."""
    return timedelta(seconds=seconds) if seconds is not None and 0 <= seconds < 1e10 else None


def _seconds(span: timedelta | None) -> float | None:
    return None if span is None else span.total_seconds()


def _of(count: int, limit: int | None) -> str:
    return str(count) if limit is None else f"{count}/{limit}"
