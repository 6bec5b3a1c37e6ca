"""DAGs whose tuning job never ends by itself: what a person, Airflow or a signal does to their task decides.

Run configuration: `gate`, a path that does not exist (the training jobs wait for it), and `fail`, a path
whose appearance fails the sibling task of the fail-fast DAGs.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, get_current_context, task

from airflow_amt.operators.stop import AmtStopTuningJobOperator
from airflow_amt.operators.tuning import AmtTuningJobOperator
from tests.system.dags.scripted import SCENARIOS, request

#: Seconds of the limits that are to pass: long enough for the training processes to be there before.
TASK_LIMIT_SECONDS = float(os.environ.get("AMT_TEST_LIMIT_SECONDS", "75"))
RUN_LIMIT_SECONDS = 30.0 + TASK_LIMIT_SECONDS

MODES = {"sync": False, "deferred": True}


def tune(mode: str, **options: Any) -> AmtTuningJobOperator:
    """Return the task under test."""
    return AmtTuningJobOperator(
        task_id="tune",
        config=request(SCENARIOS["endless"], gate="{{ dag_run.conf['gate'] }}"),
        criteria=SCENARIOS["endless"].criteria,
        check_interval=1,
        deferrable=MODES[mode],
        retry_delay=timedelta(seconds=1),
        **options,
    )


@task
def fail_when_told() -> None:
    """Wait for the path in the run's configuration, then fail."""
    path = Path((get_current_context()["dag_run"].conf or {})["fail"])
    while not path.exists():
        time.sleep(0.2)
    raise ValueError("failed on purpose")


for mode in MODES:
    with DAG(dag_id=f"plain_{mode}", schedule=None):
        tune(mode)
    with DAG(dag_id=f"retry_{mode}", schedule=None):
        tune(mode, retries=1)
    with DAG(dag_id=f"leave_{mode}", schedule=None):
        tune(mode, stop_on_kill=False)
    with DAG(dag_id=f"pause_{mode}", schedule=None):
        tune(mode)
    with DAG(dag_id=f"task_limit_{mode}", schedule=None):
        tune(mode, execution_timeout=timedelta(seconds=TASK_LIMIT_SECONDS))
    with DAG(dag_id=f"job_limit_{mode}", schedule=None):
        tune(mode, max_ingestion_time=TASK_LIMIT_SECONDS)
    with DAG(dag_id=f"run_limit_{mode}", schedule=None, dagrun_timeout=timedelta(seconds=RUN_LIMIT_SECONDS)):
        tune(mode)
    with DAG(dag_id=f"fail_fast_{mode}", schedule=None, fail_fast=True, default_args={"retries": 0}):
        tune(mode)
        fail_when_told()
    for kind in ("teardown", "teardown_of_setup", "teardown_fail_fast"):
        with DAG(dag_id=f"{kind}_{mode}", schedule=None, fail_fast=kind == "teardown_fail_fast"):
            tuned = tune(mode)
            stop = AmtStopTuningJobOperator(
                task_id="stop",
                tuning_job_name="{{ ti.xcom_pull(task_ids='tune', key='tuning_job_name') }}",
                reason="the DAG run is over",
                # Airflow fails a task that resumes before its scheduler has heard of the deferral.
                check_interval=5,
                deferrable=True,
            )
            if kind == "teardown_of_setup":
                tuned >> stop.as_teardown(setups=tuned)
            else:
                tuned >> stop.as_teardown()
            if kind == "teardown_fail_fast":
                fail_when_told()
