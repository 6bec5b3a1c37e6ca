"""What a tuning job did not use because it ended before its last training job."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from airflow_amt.tuning.costs import Consumption, Resources, TrainingJobUsage, resources_of
from airflow_amt.tuning.history import TrainingJobResult
from airflow_amt.tuning.progress import TuningProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """Training jobs that were not launched, and what they would have consumed.

    The estimate is that each would have consumed as much as one that ended did on average.

    :param training_jobs: how many.
    :param compute_seconds: instance-seconds; ``None`` before a first training job ended.
    :param cost: money; ``None`` without prices.
    :param currency: of the money.
    """

    training_jobs: int
    compute_seconds: float | None = None
    cost: float | None = None
    currency: str | None = None

    @classmethod
    def of(cls, progress: TuningProgress, consumption: Consumption | None) -> Saving | None:
        """Return what is saved if it ends now; ``None`` if there is no limit to tell it by."""
        most = progress.criteria.max_training_jobs
        if most is None:
            return None
        left = max(0, most - progress.training_jobs.launched)
        mean = None if consumption is None else consumption.mean
        if mean is None:
            return cls(training_jobs=left)
        cost = None if mean[2] is None else mean[2] * left
        return cls(
            training_jobs=left,
            compute_seconds=mean[0] * left,
            cost=cost,
            currency=None if cost is None or consumption is None else consumption.currency,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-safe."""
        return {
            "training_jobs": self.training_jobs,
            "compute_seconds": self.compute_seconds,
            "cost": self.cost,
            "currency": self.currency,
        }


def usages_of(
    description: Mapping[str, Any],
    training_jobs: Iterable[TrainingJobResult],
    *,
    now: datetime,
) -> list[TrainingJobUsage]:
    """Estimate what training jobs have consumed from their summaries alone.

    :param description: of the tuning job; says what the training jobs of a definition run on.
    :param training_jobs: its training jobs.
    :param now: aware.
    """
    resources = resources_of(description)
    other = next(iter(resources.values()), Resources(instances=(("", 1),)))
    return [
        TrainingJobUsage.from_result(one, resources.get(one.definition_name, other), now=now)
        for one in training_jobs
    ]


def saving_at_end(
    progress: TuningProgress,
    description: Mapping[str, Any],
    training_jobs: Iterable[TrainingJobResult],
    evidence: Mapping[str, Any],
) -> Saving | None:
    """Return what a tuning job that is over has not used; ``None`` if it used all, or failed.

    :param evidence: of the outcome; a stop by policy has left the cost in it.
    """
    jobs = list(training_jobs)
    if not progress.is_terminal or progress.status == "Failed" or progress.ended_at is None:
        return None
    usages = usages_of(description, jobs, now=progress.ended_at)
    saving = Saving.of(progress, Consumption.measure(usages) if jobs else None)
    if saving is None or saving.training_jobs == 0:
        return None
    known = evidence.get("evidence") or {}
    cost, launches = known.get("saved_cost"), known.get("saved_training_jobs")
    if not isinstance(cost, (int, float)) or not isinstance(launches, int) or launches < 1:
        return saving
    # Between the stop and the end no training job is launched; the rest is rounding.
    return Saving(
        training_jobs=saving.training_jobs,
        compute_seconds=saving.compute_seconds,
        cost=cost * saving.training_jobs / launches,
        currency=known.get("currency"),
    )
