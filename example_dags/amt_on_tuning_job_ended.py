"""Start a DAG run when a tuning job has ended, whoever made it: a notebook, another team, another DAG.

A watcher in the triggerer looks for tuning jobs whose name begins with ``nightly-`` and that ended. Each is
an event of the asset, and the asset schedules this DAG. Airflow may start one run for several events, and an
event may come twice (after a restart of the triggerer): so each run takes all of its events, and each tuning
job once.

To run it on AWS, let the connection ``aws_default`` point to your account; the triggerer needs it as well.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

from airflow.sdk import Asset, AssetWatcher, dag, task

from airflow_amt.operators.best import AmtBestTrainingJobOperator
from airflow_amt.triggers.ended import AmtTuningJobEndedTrigger

log = logging.getLogger(__name__)

NIGHTLY = Asset(
    "nightly_tuning_jobs",
    watchers=[
        AssetWatcher(
            name="tuning_job_ended",
            trigger=AmtTuningJobEndedTrigger(name_prefix="nightly-", check_interval=10),
        )
    ],
)


@dag(
    dag_id="amt_on_tuning_job_ended",
    schedule=[NIGHTLY],
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    tags=["airflow-amt", "example"],
    doc_md=__doc__,
)
def amt_on_tuning_job_ended() -> None:
    """Say why each tuning job ended, and hand its best model on if it has one."""

    @task
    def ended_jobs(triggering_asset_events: Any = None) -> list[str]:
        """Return the names of the tuning jobs that this run is about."""
        payloads = [event.extra["payload"] for event in triggering_asset_events[NIGHTLY]]
        by_arn = {payload["tuning_job_arn"]: payload["tuning_job_name"] for payload in payloads}
        return sorted(by_arn.values())

    @task(map_index_template="{{ task.op_kwargs['tuning_job_name'] }}")
    def why_it_ended(tuning_job_name: str) -> str:
        """Read the outcome of a tuning job that this DAG did not make."""
        from airflow_amt.hooks.tuning import AmtHook

        outcome = AmtHook().outcome(tuning_job_name)
        log.info("%s", outcome.explanation)
        return outcome.reason.value

    @task
    def hand_on(best: Any) -> str:
        """Take the best training job of a tuning job, as a deployment would."""
        (training_job,) = best["training_jobs"]
        log.info("%s: %s", training_job["name"], training_job["model_artifact"])
        return str(training_job["model_artifact"])

    names = ended_jobs()
    why_it_ended.expand(tuning_job_name=names)
    best = AmtBestTrainingJobOperator.partial(
        task_id="best",
        on_missing="skip",
        map_index_template="{{ task.tuning_job_name }}",
    ).expand(tuning_job_name=names)
    hand_on.expand(best=best.output)


on_tuning_job_ended = amt_on_tuning_job_ended()
