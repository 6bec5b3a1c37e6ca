"""The example of scheduled retraining, on three dates in the past and with few training jobs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import dag

from example_dags.amt_scheduled_retraining import PARAMS, retrain

dag(
    dag_id="retraining",
    schedule="@daily",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    end_date=datetime(2026, 1, 3, tzinfo=UTC),
    catchup=True,
    max_active_runs=1,
    is_paused_upon_creation=True,
    # On a busy machine Airflow may fail a task that is resumed a second after its deferral, before the
    # executor has reported that; a retry takes the tuning job up again.
    default_args={"retries": 5, "retry_delay": timedelta(seconds=2)},
    params={**PARAMS, "max_training_jobs": 2, "check_interval_seconds": 1, "good_enough_accuracy": 0.05},
)(retrain)()
