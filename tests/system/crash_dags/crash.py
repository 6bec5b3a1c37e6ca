"""The tuning job of the crash matrix: waiting or deferred, retried by Airflow or not.

Run configuration: `results`, what the training jobs come to, as JSON; `gate`, a path that must exist before
they have a result.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG

from airflow_amt.operators.tuning import AmtTuningJobOperator
from tests.system.dags.scripted import Scenario, request

MOST_TRAINING_JOBS = 3
TARGET = 0.9
SCENARIO = Scenario(
    criteria={"max_training_jobs": MOST_TRAINING_JOBS, "target_objective_value": TARGET}, results=[]
)

config = request(SCENARIO, gate="{{ dag_run.conf['gate'] }}")
config["TrainingJobDefinition"]["StaticHyperParameters"]["results"] = "{{ dag_run.conf['results'] }}"

for mode in ("sync", "deferred"):
    for retries in (0, 3):
        with DAG(dag_id=f"crash_{mode}_{retries}", schedule=None, max_active_runs=64):
            AmtTuningJobOperator(
                task_id="tune",
                config=config,
                criteria=SCENARIO.criteria,
                # Airflow fails a task that resumes before its scheduler has heard of the deferral.
                check_interval=1 if mode == "sync" else 4,
                deferrable=mode == "deferred",
                retries=retries,
                retry_delay=timedelta(seconds=1),
            )
