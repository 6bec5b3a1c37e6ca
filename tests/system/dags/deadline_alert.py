"""DAGs whose runs have a deadline, far away until a test moves it; two tuning jobs each that end by nobody.

Run configuration: `gate`, a path that exists. Airflow 3.1 has no such deadlines: there are no DAGs then.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG

from airflow_amt import _compat
from airflow_amt.callbacks import tuning_deadline
from airflow_amt.operators.tuning import AmtTuningJobOperator
from tests.system.dags.scripted import SCENARIOS, request

#: In Airflow's database alone, where a component has to ask for it. The other one is in the environment:
#: Airflow 3.3 gives a callback in an executor no connection of its database.
CONNECTION = "deadlines"

#: Airflow 3.2.2's scheduler dies of the news of such a callback, if its database is SQLite.
IN_EXECUTOR = not _compat.airflow_version().startswith("3.2.")

ALERTS: dict[str, dict[str, Any]] = {
    "deadline_async": {"action": "stop", "name": "nightly", "aws_conn_id": CONNECTION},
    "deadline_sync": {
        "action": "stop_and_fail",
        "detail": "the morning report needs the machines",
        "task_ids": ["tune"],
        "run_in": "executor" if IN_EXECUTOR else "triggerer",
    },
}


def tune(task_id: str) -> None:
    """Wait for a tuning job that has a best training job, and one that runs for ever."""
    AmtTuningJobOperator(
        task_id=task_id,
        config=request(SCENARIOS["stopped_by_provider"], gate="{{ dag_run.conf['gate'] }}"),
        criteria=SCENARIOS["stopped_by_provider"].criteria,
        check_interval=1,
        deferrable=True,
    )


if _compat.deadline_classes() is not None:
    from airflow.sdk.definitions.deadline import DeadlineReference

    for dag_id, options in ALERTS.items():
        alert = tuning_deadline(DeadlineReference.DAGRUN_QUEUED_AT, timedelta(days=1), **options)
        with DAG(dag_id=dag_id, schedule=None, deadline=alert):
            tune("tune")
            tune("tune_too")
