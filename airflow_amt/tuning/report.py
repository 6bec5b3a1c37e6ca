"""A tuning job's outcome as a short table for a log."""

from __future__ import annotations

from airflow_amt.tuning.outcome import TuningOutcome

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
        shown = list(job.tuned_hyperparameters.items())[:_SHOWN_HYPERPARAMETERS]
        values = ", ".join(f"{name}={value}" for name, value in shown)
        more = len(job.tuned_hyperparameters) - len(shown)
        rows.append(
            (
                f"no. {rank}",
                f"{progress.objective_metric or 'objective'} {job.objective:g}  {job.name}  {values}"
                f"{f' and {more} more' if more else ''}",
            )
        )
    width = max(len(label) for label, _ in rows)
    lines = [f"  {label:<{width}}  {text}" for label, text in rows]
    return "\n".join([f"Tuning job {outcome.name}", *lines])
