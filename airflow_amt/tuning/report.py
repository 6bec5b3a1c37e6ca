"""What people are told of a tuning job: its outcome as a short table for a log, a policy's report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_amt.text import MOST_REASON, shown
from airflow_amt.tuning.outcome import TuningOutcome

if TYPE_CHECKING:
    from airflow_amt.tuning.policies import Due, Situation
    from airflow_amt.tuning.saving import Saving

#: Version of the dict of a policy's report.
REPORT_VERSION = 1

_SHOWN_HYPERPARAMETERS = 6


def outcome_table(outcome: TuningOutcome) -> str:
    """Return the outcome in a few aligned lines, the best training jobs at the end."""
    progress = outcome.progress
    jobs = progress.training_jobs
    rows = [
        ("ended", f"{outcome.status}, {outcome.reason.value}{'' if outcome.certain else ' (not certain)'}"),
        ("because", outcome.explanation),
        (
            "training jobs",
            f"{jobs.launched} launched: {jobs.completed} completed, {jobs.failed} failed, "
            f"{jobs.stopped} stopped",
        ),
    ]
    if progress.runtime is not None:
        rows.append(("runtime", f"{progress.runtime.total_seconds():.0f} s"))
    if outcome.training_seconds is not None:
        rows.append(("training time", f"{outcome.training_seconds:.0f} s"))
    for reason, count in outcome.failure_reasons:
        rows.append(("failed", f"{count} x {reason}"))
    for rank, job in enumerate(outcome.ranking, 1):
        first = list(job.tuned_hyperparameters.items())[:_SHOWN_HYPERPARAMETERS]
        values = ", ".join(f"{name}={value}" for name, value in first)
        more = len(job.tuned_hyperparameters) - len(first)
        rows.append(
            (
                f"no. {rank}",
                f"{progress.objective_metric or 'objective'} {job.objective:g}  {job.name}  {values}"
                f"{f' and {more} more' if more else ''}",
            )
        )
    width = max(len(label) for label, _ in rows)
    lines = [f"  {label:<{width}}  {shown(text, MOST_REASON)}" for label, text in rows]
    return "\n".join([f"Tuning job {shown(outcome.name)}", *lines])


def policy_report(due: Due, situation: Situation, *, saving: Saving | None = None) -> dict[str, Any]:
    """Return what there is to tell people about a step of a stop policy that is due; JSON-safe.

    :param due: the step.
    :param situation: in which it is due.
    :param saving: what is not used if the tuning job ends now.
    """
    progress = situation.progress
    consumed = situation.consumption
    jobs = progress.training_jobs
    spent: dict[str, Any] | None = None
    if {"spent", "limit", "unit"} <= due.evidence.keys():
        spent = {key: due.evidence.get(key) for key in ("spent", "limit", "unit", "currency")}
    elif consumed is not None:
        unit = "compute_seconds" if consumed.cost is None else "money"
        spent = {"spent": consumed.of(unit), "limit": None, "unit": unit, "currency": consumed.currency}
    return {
        "version": REPORT_VERSION,
        "tuning_job_name": progress.name,
        "tuning_job_arn": progress.arn,
        "status": progress.status,
        "at": situation.now.isoformat(timespec="seconds"),
        **due.to_dict(),
        "best_objective": progress.best_objective,
        "objective_metric": progress.objective_metric,
        "training_jobs": {
            "launched": jobs.launched,
            "ended": jobs.ended,
            "failed": jobs.failed,
            "limit": progress.criteria.max_training_jobs,
        },
        "consumed": spent,
        "saving": None if saving is None else saving.to_dict(),
    }


def stop_report(outcome: TuningOutcome) -> dict[str, Any]:
    """Return what there is to tell people about a tuning job that a stop policy ended; JSON-safe.

    The same keys as :func:`policy_report`, with ``outcome`` beside them.
    """
    facts = outcome.to_dict()
    evidence = outcome.evidence.get("evidence") or {}
    jobs = outcome.progress.training_jobs
    spent = None
    if {"spent", "limit", "unit"} <= evidence.keys():
        spent = {key: evidence.get(key) for key in ("spent", "limit", "unit", "currency")}
    return {
        "version": REPORT_VERSION,
        "tuning_job_name": outcome.name,
        "tuning_job_arn": outcome.arn,
        "status": outcome.status,
        "at": facts["ended_at"],
        "rule": outcome.evidence.get("rule"),
        "code": outcome.policy,
        "action": outcome.evidence.get("action"),
        "share": outcome.evidence.get("share"),
        "reason": outcome.evidence.get("detail"),
        "evidence": evidence,
        "best_objective": outcome.progress.best_objective,
        "objective_metric": outcome.progress.objective_metric,
        "training_jobs": {
            "launched": jobs.launched,
            "ended": jobs.ended,
            "failed": jobs.failed,
            "limit": outcome.progress.criteria.max_training_jobs,
        },
        "consumed": spent,
        "saving": facts["saving"],
        "outcome": facts,
    }
