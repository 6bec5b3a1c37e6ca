"""The training jobs of one tuning job, in order, and the one implementation of the five criteria.

:class:`CriteriaTracker` is fed result by result (the embedded AMT does that while it tunes);
:func:`replay` runs it over a finished list and says where and why each criterion would have ended the job.
Where AMT's documentation is silent or contradicts itself, the reading taken is written down in
``docs/adr/0002-reading-of-the-completion-criteria.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from airflow_amt.tuning.convergence import DEFAULT_RULE, ConvergenceRule
from airflow_amt.tuning.criteria import (
    CRITERIA_REASONS,
    CompletionCriteria,
    CompletionReason,
    ObjectiveType,
)

#: Statuses of a training job that has ended (SageMaker API, ``TrainingJobStatus``).
TERMINAL_TRAINING_STATUSES = frozenset({"Completed", "Failed", "Stopped", "Deleting"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJobResult:
    """What one training job of a tuning job came to.

    :param name: training job name.
    :param status: ``TrainingJobStatus`` of the API.
    :param objective: final objective, finite, or ``None`` if there is none (failed, not emitted, NaN).
    :param created_at: when it was launched (aware).
    :param started_at: when training started; ``None`` if it never did.
    :param ended_at: when it ended; ``None`` while it runs.
    :param tuned_hyperparameters: the combination that was tried, as strings.
    :param failure_reason: why it failed, if it did.
    :param definition_name: its training job definition, of a tuning job with several.
    """

    name: str
    status: str
    objective: float | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    tuned_hyperparameters: Mapping[str, str] = field(default_factory=dict)
    failure_reason: str | None = None
    definition_name: str | None = None

    @classmethod
    def from_summary(cls, summary: Mapping[str, Any]) -> TrainingJobResult:
        """Parse a ``HyperParameterTrainingJobSummary``; missing and null fields become ``None``."""
        metric = summary.get("FinalHyperParameterTuningJobObjectiveMetric") or {}
        return cls(
            name=summary.get("TrainingJobName") or "",
            status=summary.get("TrainingJobStatus") or "",
            objective=finite(metric.get("Value")),
            created_at=aware(summary.get("CreationTime")),
            started_at=aware(summary.get("TrainingStartTime")),
            ended_at=aware(summary.get("TrainingEndTime")),
            tuned_hyperparameters=dict(summary.get("TunedHyperParameters") or {}),
            failure_reason=summary.get("FailureReason"),
            definition_name=summary.get("TrainingJobDefinitionName"),
        )

    @property
    def has_ended(self) -> bool:
        """Whether the training job is over."""
        return self.status in TERMINAL_TRAINING_STATUSES

    @property
    def training_seconds(self) -> float | None:
        """Seconds between start and end of training, ``None`` unless both are known."""
        if self.started_at is None or self.ended_at is None:
            return None
        return max(0.0, (self.ended_at - self.started_at).total_seconds())


@dataclass(frozen=True, slots=True, kw_only=True)
class CriterionFired:
    """One criterion that is met: which, when, and on what evidence.

    :param reason: one of the five criteria.
    :param at: when it was met (the end of the training job that met it, or the time limit itself).
    :param index: 0-based position, among the training jobs in the order they ended, of the one that met
        it; ``None`` for the time limit.
    :param limit: the limit that was set: a count, seconds, an objective, or ``"Enabled"``.
    :param observed: what was seen: a count, seconds, an objective, or the time of convergence.
    """

    reason: CompletionReason
    at: datetime
    index: int | None
    limit: Any
    observed: Any


class CriteriaTracker:
    """Decides, result by result, whether one of the five criteria ends a tuning job.

    Feed :meth:`observe` each training job as it ends, in order, and :meth:`advance` the passing time. The
    first call that meets a criterion returns all that are met at that moment; from then on
    :attr:`fired` is set, and later results change neither it nor the counts (they came too late to
    matter). Only the time limit depends on :meth:`advance`; results at the very moment of the time limit
    are counted before it.

    How it reads the criteria:

    - *max training jobs*: that many launched training jobs have ended, with whatever status.
    - *not improving*: that many results in a row are not strictly better than the best before them. A
      training job without an objective is no result: it neither counts nor interrupts.
    - *target*: a result is as good as the target, or better.
    - *converged*: the rule says so; the time is noted also when the criterion is off.
    - *max runtime*: wall clock since the tuning job was created.

    :param criteria: what ends the tuning job.
    :param objective_type: which direction of the objective is better.
    :param started_at: when the tuning job was created (aware).
    :param rule: the convergence rule.
    :raises ValueError: ``started_at`` is naive, or the objective type is none.
    """

    def __init__(
        self,
        criteria: CompletionCriteria,
        objective_type: ObjectiveType,
        *,
        started_at: datetime,
        rule: ConvergenceRule = DEFAULT_RULE,
    ) -> None:
        if started_at.tzinfo is None:
            raise ValueError(f"started_at must be aware, as the API's times are, not {started_at!r}")
        self.criteria = criteria
        self.objective_type = ObjectiveType(objective_type)
        self.started_at = started_at
        self.fired: tuple[CriterionFired, ...] = ()
        self.finished = 0
        self.not_improving_count = 0
        self.best: TrainingJobResult | None = None
        self.convergence_detected_at: datetime | None = None
        self._rule = rule
        self._objectives: list[float] = []

    @property
    def next_deadline(self) -> datetime | None:
        """When the time limit is met, or ``None`` if there is none or something fired already."""
        if self.criteria.max_runtime is None or self.fired:
            return None
        return self.started_at + self.criteria.max_runtime

    def observe(self, result: TrainingJobResult) -> tuple[CriterionFired, ...]:
        """Take in one training job that has ended; return the criteria that it meets.

        :raises ValueError: the training job has no end time.
        """
        if result.ended_at is None:
            raise ValueError(f"training job {result.name!r} has not ended: it cannot be observed yet")
        if self.fired:
            return ()
        deadline = self.next_deadline
        if deadline is not None and result.ended_at > deadline:
            return self.advance(result.ended_at)
        index = self.finished
        self.finished += 1
        objective = finite(result.objective)
        if objective is not None:
            self._note_objective(result, objective, result.ended_at)
        self.fired = self._met(result.ended_at, index, objective)
        return self.fired

    def advance(self, now: datetime) -> tuple[CriterionFired, ...]:
        """Let time pass; return the time limit if it is met by now."""
        deadline = self.next_deadline
        if deadline is None or now < deadline or self.criteria.max_runtime is None:
            return ()
        self.fired = (
            CriterionFired(
                reason=CompletionReason.MAX_RUNTIME,
                at=deadline,
                index=None,
                limit=self.criteria.max_runtime_seconds,
                observed=(deadline - self.started_at).total_seconds(),
            ),
        )
        return self.fired

    def _note_objective(self, result: TrainingJobResult, value: float, ended_at: datetime) -> None:
        """Update the best training job, the not-improving count and the time of convergence."""
        if self.objective_type.better(value, self.best.objective if self.best else None):
            self.best = result
            self.not_improving_count = 0
        else:
            self.not_improving_count += 1
        self._objectives.append(value)
        if self.convergence_detected_at is None and self._rule.converged(
            self._objectives, self.objective_type
        ):
            self.convergence_detected_at = ended_at

    def _met(self, at: datetime, index: int, objective: float | None) -> tuple[CriterionFired, ...]:
        criteria = self.criteria
        met: dict[CompletionReason, tuple[Any, Any]] = {}
        target = criteria.target_objective_value
        if target is not None and objective is not None and self.objective_type.reaches(objective, target):
            met[CompletionReason.TARGET_REACHED] = (target, objective)
        if criteria.complete_on_convergence and self.convergence_detected_at is not None:
            met[CompletionReason.CONVERGED] = ("Enabled", self.convergence_detected_at)
        patience = criteria.max_training_jobs_not_improving
        if patience is not None and self.not_improving_count >= patience:
            met[CompletionReason.NOT_IMPROVING] = (patience, self.not_improving_count)
        if criteria.max_training_jobs is not None and self.finished >= criteria.max_training_jobs:
            met[CompletionReason.MAX_TRAINING_JOBS] = (criteria.max_training_jobs, self.finished)
        return tuple(
            CriterionFired(reason=reason, at=at, index=index, limit=met[reason][0], observed=met[reason][1])
            for reason in CRITERIA_REASONS
            if reason in met
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayReport:
    """Where each criterion, alone, would have ended a tuning job, and what ends it when all are combined.

    :param first: the criteria that end the job first, most specific first; more than one if a single
        training job met several; empty if none is met.
    :param by_reason: each criterion that was asked for, alone, and where it fired; ``None`` if it never
        did within the results.
    :param finished: training jobs counted up to the end (all of them if nothing fired).
    :param best: best training job up to the end.
    :param not_improving_count: results in a row, up to the end, that were not better than the best.
    :param convergence_detected_at: when convergence was detected within these results, with the
        criterion on or off.
    """

    first: tuple[CriterionFired, ...]
    by_reason: Mapping[CompletionReason, CriterionFired | None]
    finished: int
    best: TrainingJobResult | None
    not_improving_count: int
    convergence_detected_at: datetime | None


def ended_in_order(results: Iterable[TrainingJobResult]) -> list[TrainingJobResult]:
    """Return the training jobs that have ended, in the order they ended; ties keep their given order."""
    ended = [(result.ended_at, result) for result in results if result.ended_at is not None]
    return [result for _, result in sorted(ended, key=lambda pair: pair[0])]


def replay(
    results: Iterable[TrainingJobResult],
    criteria: CompletionCriteria,
    objective_type: ObjectiveType,
    *,
    started_at: datetime,
    until: datetime | None = None,
    rule: ConvergenceRule = DEFAULT_RULE,
) -> ReplayReport:
    """Say where and why each of the criteria would have ended a tuning job with these results.

    :param results: training jobs in any order; those that have not ended are left out.
    :param criteria: the criteria to try; need not be those the job really had.
    :param objective_type: which direction of the objective is better.
    :param started_at: creation time of the tuning job (aware).
    :param until: how far the clock ran, at least to the last result; a time limit after it did not fire.
    :param rule: the convergence rule.
    """
    ordered = ended_in_order(results)

    def run(tried: CompletionCriteria) -> CriteriaTracker:
        tracker = CriteriaTracker(tried, objective_type, started_at=started_at, rule=rule)
        for result in ordered:
            tracker.observe(result)
        if until is not None:
            tracker.advance(until)
        return tracker

    together = run(criteria)
    alone: dict[CompletionReason, CriterionFired | None] = {}
    for reason in CRITERIA_REASONS:
        attribute = ATTRIBUTE_OF[reason]
        limit = getattr(criteria, attribute)
        if limit is None or limit is False:  # by identity: a target of 0.0 equals False
            continue
        single = replace(CompletionCriteria(), **{attribute: limit})
        fired = run(single).fired
        alone[reason] = fired[0] if fired else None
    return ReplayReport(
        first=together.fired,
        by_reason=alone,
        finished=together.finished,
        best=together.best,
        not_improving_count=together.not_improving_count,
        convergence_detected_at=together.convergence_detected_at,
    )


#: The attribute of :class:`CompletionCriteria` behind each of the five reasons.
ATTRIBUTE_OF: Mapping[CompletionReason, str] = {
    CompletionReason.TARGET_REACHED: "target_objective_value",
    CompletionReason.CONVERGED: "complete_on_convergence",
    CompletionReason.NOT_IMPROVING: "max_training_jobs_not_improving",
    CompletionReason.MAX_TRAINING_JOBS: "max_training_jobs",
    CompletionReason.MAX_RUNTIME: "max_runtime",
}


def finite(value: Any) -> float | None:
    """Return a number as a float, or ``None`` for anything that is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:  # an int too large for a double
        return None
    return number if math.isfinite(number) else None


def aware(value: Any) -> datetime | None:
    """Return an aware datetime, or ``None`` for anything else; a naive one is UTC, as in all of the API."""
    if not isinstance(value, datetime):
        return None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def iso(moment: datetime | None) -> str | None:
    """Return a time as ISO 8601 in UTC."""
    return None if moment is None else moment.astimezone(UTC).isoformat()
