"""Why a tuning job ended, and the evidence for it.

No field of the API names the completion criterion that fired. It is inferred from the description (limits
beside what was observed), from the tags that this provider sets before it stops a job and, where the
training jobs are known, from the order in which they ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow_amt.text import MOST_MESSAGE, bounded, shown
from airflow_amt.tuning.criteria import API_PATHS, CompletionReason, ObjectiveType
from airflow_amt.tuning.history import ATTRIBUTE_OF, TrainingJobResult, iso
from airflow_amt.tuning.progress import TuningProgress
from airflow_amt.tuning.ranking import rank_training_jobs
from airflow_amt.tuning.request import estimated_max_compute, search_space_size
from airflow_amt.tuning.saving import Saving, saving_at_end
from airflow_amt.tuning.status import TuningJobStatus
from airflow_amt.tuning.stops import Stop

#: Version of the dict that :meth:`TuningOutcome.to_dict` returns; readers may rely on it in XCom.
OUTCOME_VERSION = 1

#: How far below its limit a runtime may lie and still be the limit: the developer guide notes that the
#: actual duration "may deviate slightly" and gives no figure.
_RUNTIME_TOLERANCE = timedelta(seconds=60)
_RUNTIME_TOLERANCE_SHARE = 0.01

_MOST_REASONS = 3
_MOST_RANKED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningOutcome:
    """How a tuning job ended.

    :param name: tuning job name.
    :param arn: its ARN.
    :param status: final ``HyperParameterTuningJobStatus``.
    :param reason: why it ended.
    :param certain: whether status and evidence agree on the reason. ``False``: it is the best explanation,
        but something contradicts it or is missing (said in ``explanation``).
    :param also: other reasons that fit as well.
    :param explanation: the reason in a sentence, for people.
    :param evidence: what the reason rests on: ``field`` (API path of the limit), ``limit``, ``observed``;
        for a stop ``stopped_by``, ``detail`` and ``requested_by``, and of a stop by policy ``policy`` (its
        code), ``rule``, ``action``, ``share`` and ``evidence``; for a failure ``failure_reason``. JSON-safe.
    :param progress: the final snapshot.
    :param estimated_max_compute_seconds: the guide's estimate of the most compute, in instance-seconds.
    :param training_seconds: training time of all ended training jobs in seconds; ``None`` if not listed.
    :param progressing: whether the job still gained objective for what it consumed, at the end.
    :param failure_reasons: the training jobs' most frequent failure reasons, each with its count.
    :param ranking: the three training jobs with the best objectives, if they were listed.
    :param saving: what it has not used because it ended before its last training job.
    """

    name: str
    arn: str
    status: str
    reason: CompletionReason
    certain: bool
    also: tuple[CompletionReason, ...]
    explanation: str
    evidence: Mapping[str, Any]
    progress: TuningProgress
    estimated_max_compute_seconds: int | None = None
    training_seconds: float | None = None
    progressing: bool | None = None
    failure_reasons: tuple[tuple[str, int], ...] = field(default=())
    ranking: tuple[TrainingJobResult, ...] = field(default=())
    saving: Saving | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the tuning job came to its own end: a criterion, an exhausted space, or plain Completed.

        Or a stop policy with the action ``stop`` ended it, which keeps the best training job, and there is
        one. A job that was stopped otherwise, by whomever, or that failed did not. The same rule decides the
        task's state in every operator and sensor, synchronous or deferred.
        """
        if self.reason.is_criterion or self.reason is CompletionReason.SEARCH_SPACE_EXHAUSTED:
            return True
        if self.policy is not None:
            return self.evidence.get("action") == "stop" and self.progress.best_objective is not None
        return self.reason is CompletionReason.UNKNOWN and self.status == TuningJobStatus.COMPLETED.value

    @property
    def policy(self) -> str | None:
        """Code of the stop policy that ended the job; ``None`` if none did."""
        code = self.evidence.get("policy")
        return str(code) if self.reason is CompletionReason.STOPPED_BY_PROVIDER and code else None

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as a small JSON-safe dict: what XCom carries.

        Times are ISO 8601 in UTC or ``*_seconds``; absent facts are ``None``.
        """
        facts = self.progress.to_dict()
        return {
            "version": OUTCOME_VERSION,
            "tuning_job_name": self.name,
            "tuning_job_arn": self.arn,
            "status": self.status,
            "reason": self.reason.value,
            "certain": self.certain,
            "also": [reason.value for reason in self.also],
            "explanation": self.explanation,
            "evidence": dict(self.evidence),
            **{key: facts[key] for key in _FACTS},
            "training_seconds": self.training_seconds,
            "estimated_max_compute_seconds": self.estimated_max_compute_seconds,
            "progressing": self.progressing,
            "saving": None if self.saving is None else self.saving.to_dict(),
            "failure_reason": bounded(self.progress.failure_reason),
            "training_job_failure_reasons": [
                {"reason": reason, "count": count} for reason, count in self.failure_reasons
            ],
        }


#: What an outcome's dict takes over from its final snapshot.
_FACTS = (
    "best_training_job",
    "objective_metric",
    "objective_type",
    "training_job_counters",
    "objective_counters",
    "not_improving",
    "convergence_detected_at",
    "created_at",
    "ended_at",
    "runtime_seconds",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Met:
    """A criterion whose limit is met at the end, and when that happened if it is known."""

    reason: CompletionReason
    at: datetime | None
    limit: Any
    observed: Any


def infer_outcome(
    description: Mapping[str, Any],
    *,
    training_jobs: Iterable[TrainingJobResult] = (),
    tags: Mapping[str, str] | None = None,
) -> TuningOutcome:
    """Infer why a tuning job ended.

    How it works: a ``Failed`` job failed. A ``Stopped`` job with this provider's stop tag was stopped by
    it; without the tag, a criterion that is met is named though not certain, otherwise somebody else
    stopped it. A ``Completed`` job ended by the criterion whose limit is met. Where several are met, the
    training jobs' end times tell which came first; without them the most specific is named first (target,
    converged, not improving, number of training jobs, runtime) and the others are in ``also``.

    What it does not do: it never recomputes AMT's own numbers. AMT's not-improving count and convergence
    time are taken from the description as they are.

    :param description: answer of ``DescribeHyperParameterTuningJob``.
    :param training_jobs: its training jobs, in any order, if they were listed.
    :param tags: the tuning job's tags; ``None`` if they could not be read.
    """
    jobs = list(training_jobs)
    progress = TuningProgress.from_describe(description)
    met = _met_criteria(progress, jobs)
    reason, certain, also, evidence, explanation = _decide(progress, met, description, tags)
    satisfactory = progress.satisfactory(jobs) if jobs else None
    return TuningOutcome(
        name=progress.name,
        arn=progress.arn,
        status=progress.status,
        reason=reason,
        certain=certain,
        also=also,
        explanation=shown(explanation, MOST_MESSAGE),
        evidence=evidence,
        progress=progress,
        estimated_max_compute_seconds=estimated_max_compute(description),
        training_seconds=satisfactory.training_seconds if satisfactory else None,
        progressing=satisfactory.progressing if satisfactory else None,
        failure_reasons=_failure_reasons(jobs),
        ranking=_ranking(jobs, progress.objective_type),
        saving=saving_at_end(progress, description, jobs, evidence),
    )


_Decision = tuple[CompletionReason, bool, tuple[CompletionReason, ...], dict[str, Any], str]


def _decide(
    progress: TuningProgress,
    met: list[_Met],
    description: Mapping[str, Any],
    tags: Mapping[str, str] | None,
) -> _Decision:
    if progress.status == TuningJobStatus.FAILED.value:
        why = bounded(progress.failure_reason) or "AMT gave no reason"
        return (
            CompletionReason.FAILED,
            True,
            (),
            {"failure_reason": bounded(progress.failure_reason)},
            f"The tuning job failed: {why}",
        )
    if progress.status == TuningJobStatus.STOPPED.value:
        return _decide_stopped(met, tags)
    if progress.status == TuningJobStatus.COMPLETED.value:
        return _decide_completed(progress, met, description)
    return (
        CompletionReason.UNKNOWN,
        False,
        (),
        {"status": progress.status},
        f"The tuning job is {progress.status}: it has no outcome that could be told.",
    )


def _decide_stopped(met: list[_Met], tags: Mapping[str, str] | None) -> _Decision:
    stop = Stop.from_tags(tags or {})
    if stop is not None:
        return (
            CompletionReason.STOPPED_BY_PROVIDER,
            stop.confirmed,
            tuple(one.reason for one in met),
            _stop_evidence(stop),
            _stop_sentence(stop),
        )
    unread = tags is None
    if met:
        first, *others = met
        suspects: tuple[CompletionReason, ...] = (CompletionReason.STOPPED_EXTERNALLY,)
        record = "no stop by this provider is recorded"
        if unread:
            suspects = (*suspects, CompletionReason.STOPPED_BY_PROVIDER)
            record = "its tags, which would tell of a stop by this provider, could not be read"
        return (
            first.reason,
            False,
            (*_simultaneous(first, others), *suspects),
            _evidence(first),
            f"{_sentence(first)} Yet its status is Stopped, not Completed, and {record}: it may have been "
            "stopped at that moment.",
        )
    return (
        CompletionReason.STOPPED_EXTERNALLY,
        not unread,
        (CompletionReason.STOPPED_BY_PROVIDER,) if unread else (),
        {"stopped_by": None, "detail": None},
        "The tuning job was stopped, and not by this provider: by the console, the API or another tool."
        if not unread
        else "The tuning job was stopped; by whom is open, because its tags could not be read.",
    )


def _stop_evidence(stop: Stop) -> dict[str, Any]:
    evidence: dict[str, Any] = {"stopped_by": stop.stopped_by, "detail": stop.detail}
    if stop.requested_by is not None:
        evidence["requested_by"] = stop.requested_by
    return evidence if stop.policy is None else {**evidence, **stop.policy.to_dict()}


def _stop_sentence(stop: Stop) -> str:
    by = stop.stopped_by if stop.policy is None else f"policy {stop.policy.rule or stop.policy.code}"
    told = f"The tuning job was stopped from Airflow ({by}{': ' + stop.detail if stop.detail else ''})."
    return (
        told
        if stop.confirmed
        else f"{told} That is what its tags said it was about to do; that AWS accepted it is not recorded."
    )


def _decide_completed(progress: TuningProgress, met: list[_Met], description: Mapping[str, Any]) -> _Decision:
    size = search_space_size(description)
    exhausted = size is not None and progress.training_jobs.launched >= size
    if met:
        first, *others = met
        also = _simultaneous(first, others)
        if exhausted:
            also = (*also, CompletionReason.SEARCH_SPACE_EXHAUSTED)
        return first.reason, True, also, _evidence(first), _sentence(first) + _no_objective(progress)
    if exhausted:
        return (
            CompletionReason.SEARCH_SPACE_EXHAUSTED,
            True,
            (),
            {"field": "ParameterRanges", "limit": size, "observed": progress.training_jobs.launched},
            f"All {size} combinations of the search space were tried.{_no_objective(progress)}",
        )
    limit, runtime = progress.criteria.max_runtime, progress.runtime
    if limit is not None and runtime is not None:
        tolerance = max(_RUNTIME_TOLERANCE, limit * _RUNTIME_TOLERANCE_SHARE)
        # Half the limit as a floor: with the shortest limits the tolerance would explain nearly anything.
        if runtime >= max(limit - tolerance, limit / 2):
            near = _Met(
                reason=CompletionReason.MAX_RUNTIME,
                at=None,
                limit=limit.total_seconds(),
                observed=runtime.total_seconds(),
            )
            return (
                CompletionReason.MAX_RUNTIME,
                False,
                (),
                _evidence(near),
                f"Nothing else explains the end, and its runtime of {runtime.total_seconds():g} s is "
                f"close to the limit of {limit.total_seconds():g} s, which AMT may miss slightly.",
            )
    return (
        CompletionReason.UNKNOWN,
        False,
        (),
        {},
        "The tuning job completed, and none of its completion criteria is met by what AMT reports.",
    )


def _met_criteria(progress: TuningProgress, jobs: list[TrainingJobResult]) -> list[_Met]:
    """List the criteria whose limits are met, the first to be met first, then the most specific first."""
    criteria = progress.criteria
    times = _times(progress, jobs)
    found: list[_Met] = []

    def add(reason: CompletionReason, limit: Any, observed: Any) -> None:
        found.append(_Met(reason=reason, at=times.get(reason), limit=limit, observed=observed))

    target, best = criteria.target_objective_value, progress.best_objective
    if (
        target is not None
        and best is not None
        and progress.objective_type is not None
        and progress.objective_type.attains(best, target)
    ):
        add(CompletionReason.TARGET_REACHED, target, best)
    if criteria.complete_on_convergence and progress.convergence_detected_at is not None:
        add(CompletionReason.CONVERGED, "Enabled", iso(progress.convergence_detected_at))
    patience, count = criteria.max_training_jobs_not_improving, progress.not_improving_count
    if patience is not None and count is not None and count >= patience:
        add(CompletionReason.NOT_IMPROVING, patience, count)
    most = criteria.max_training_jobs
    if most is not None and progress.training_jobs.launched >= most:
        add(CompletionReason.MAX_TRAINING_JOBS, most, progress.training_jobs.launched)
    if criteria.max_runtime is not None and progress.runtime is not None:
        seconds = progress.runtime.total_seconds()
        if progress.runtime >= criteria.max_runtime:
            add(CompletionReason.MAX_RUNTIME, criteria.max_runtime_seconds, seconds)
    if any(one.at is None for one in found):
        # By our reading one of them was never met, by AMT's own count it was: the order is not known.
        return [replace(one, at=None) for one in found]
    return sorted(found, key=lambda one: one.at or datetime.min.replace(tzinfo=UTC))


def _times(progress: TuningProgress, jobs: list[TrainingJobResult]) -> dict[CompletionReason, datetime]:
    """Return when each criterion was met, as far as the training jobs and AMT's own times tell."""
    report = progress.replay(jobs) if jobs else None
    if report is None:
        return {}
    times = {reason: fired.at for reason, fired in report.by_reason.items() if fired is not None}
    # AMT's convergence is its own prediction: its time counts, never ours.
    times.pop(CompletionReason.CONVERGED, None)
    if progress.convergence_detected_at is not None:
        times[CompletionReason.CONVERGED] = progress.convergence_detected_at
    return times


def _simultaneous(first: _Met, others: Iterable[_Met]) -> tuple[CompletionReason, ...]:
    """Return the other reasons that may have ended the job too: met by then, or nobody knows when."""
    return tuple(one.reason for one in others if one.at is None or first.at is None or one.at <= first.at)


def _no_objective(progress: TuningProgress) -> str:
    """Say, behind the reason, that there is no model to show for it."""
    ended = progress.training_jobs.ended
    if progress.best_objective is not None or ended == 0:
        return ""
    return (
        f" None of the {ended} training jobs that ended has an objective: look at their failures, and at "
        "the Regex of the MetricDefinitions."
    )


def _evidence(met: _Met) -> dict[str, Any]:
    return {
        "field": API_PATHS[ATTRIBUTE_OF[met.reason]],
        "limit": met.limit,
        "observed": met.observed,
    }


_SENTENCES: Mapping[CompletionReason, str] = {
    CompletionReason.TARGET_REACHED: "The best objective, {observed}, reached the target of {limit}.",
    CompletionReason.CONVERGED: "AMT detected convergence at {observed}.",
    CompletionReason.NOT_IMPROVING: (
        "{observed} training jobs did not improve on the best objective; the limit is {limit}."
    ),
    CompletionReason.MAX_TRAINING_JOBS: "{observed} training jobs were launched; the limit is {limit}.",
    CompletionReason.MAX_RUNTIME: "The tuning job ran for {observed:g} s; the limit is {limit} s.",
}


def _sentence(met: _Met) -> str:
    return _SENTENCES[met.reason].format(observed=met.observed, limit=met.limit)


def _failure_reasons(jobs: Iterable[TrainingJobResult]) -> tuple[tuple[str, int], ...]:
    reasons = Counter(
        bounded(job.failure_reason) or "no reason given" for job in jobs if job.status == "Failed"
    )
    return tuple(reasons.most_common(_MOST_REASONS))


def _ranking(
    jobs: Iterable[TrainingJobResult], objective_type: ObjectiveType | None
) -> tuple[TrainingJobResult, ...]:
    ranked = rank_training_jobs(jobs, objective_type)[:_MOST_RANKED]
    return tuple(job for rank, job in ranked if rank is not None)
