"""A DAG whose tuning job becomes an orphan, one whose job does not, and the one that reaps.

Run configuration of the first two: `gate`, a path that never exists; of the last: `stop_orphans`.
"""

from __future__ import annotations

from airflow.sdk import DAG

from airflow_amt.operators.reap import AmtReapTuningJobsOperator
from airflow_amt.operators.tuning import AmtTuningJobOperator
from tests.system.dags.scripted import SCENARIOS, request

with DAG(dag_id="reaped", schedule=None):
    AmtTuningJobOperator(
        task_id="tune",
        config=request(SCENARIOS["endless"], gate="{{ dag_run.conf['gate'] }}"),
        criteria=SCENARIOS["endless"].criteria,
        check_interval=1,
        deferrable=True,
    )

with DAG(dag_id="reaper", schedule=None):
    AmtReapTuningJobsOperator(
        task_id="reap",
        stop_orphans="{{ dag_run.conf['stop_orphans'] }}",
        # The embedded AMT's clock runs ahead of Airflow's.
        grace=0,
        # Other tests leave jobs behind.
        dag_ids=["reaped"],
    )
