"""The training jobs of one tuning job in the order of their worth."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from airflow_amt.tuning.criteria import ObjectiveType
from airflow_amt.tuning.history import TrainingJobResult

_NEVER = datetime.max.replace(tzinfo=UTC)


def rank_training_jobs(
    results: Iterable[TrainingJobResult], objective_type: ObjectiveType | None
) -> list[tuple[int | None, TrainingJobResult]]:
    """Rank training jobs by their objective, the best one first.

    Of equal objectives the one that ended first is better, as AMT's best training job is: a later one has to
    beat it. Training jobs without an objective follow, in the order of their creation, without a rank.

    :param results: in any order.
    :param objective_type: which direction is better; ``None`` (not known) ranks none.
    :return: pairs of rank, from 1 on without gaps, and training job.
    """
    jobs = list(results)
    ranked: list[TrainingJobResult] = []
    if objective_type is not None:
        sign = -1.0 if objective_type is ObjectiveType.MAXIMIZE else 1.0
        scored = [(job.objective * sign, job) for job in jobs if job.objective is not None]
        scored.sort(key=lambda pair: (pair[0], pair[1].ended_at or _NEVER, pair[1].name))
        ranked = [job for _, job in scored]
    # By identity: two training jobs of no name (a malformed answer) are still two.
    taken = {id(job) for job in ranked}
    rest = sorted(
        (job for job in jobs if id(job) not in taken), key=lambda job: (job.created_at or _NEVER, job.name)
    )
    return [*enumerate(ranked, 1), *((None, job) for job in rest)]
