"""Every ten minutes, stop the tuning jobs for which no task waits any more.

The safety net of a deployment: whatever killed a task without its tuning job (a triggerer that was down,
Airflow before 3.3, a deleted DAG run), the job is found by its ownership tags. What is kept, and why, is
in the log. To look before anything is stopped, start a run with ``{"stop_orphans": false}``, or run
``airflow-amt reap`` where the ``airflow`` command runs.

Where several Airflow deployments share an AWS account, give each a name first: ``[amt] deployment``.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG

from airflow_amt.operators.reap import AmtReapTuningJobsOperator

with DAG(
    dag_id="amt_reaper",
    schedule=timedelta(minutes=10),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    tags=["airflow-amt", "example"],
    doc_md=__doc__,
    params={"stop_orphans": True, "grace_seconds": 600},
):
    AmtReapTuningJobsOperator(
        task_id="reap",
        stop_orphans="{{ params.stop_orphans }}",
        grace="{{ params.grace_seconds }}",
        execution_timeout=timedelta(minutes=9),
    )
