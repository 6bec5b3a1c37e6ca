"""The example of scheduled retraining, on three dates in the past and with few training jobs."""

from __future__ import annotations

from datetime import UTC, datetime

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
    params={**PARAMS, "max_training_jobs": 2, "check_interval_seconds": 1, "good_enough_accuracy": 0.05},
)(retrain)()
