"""One DAG a reason: the same tuning job seen by both operators and by both sensors; and DAGs that stop them.

Run configuration: `gate`, a path that must exist before the scripted training jobs have a result, and
`watched`, the name of the tuning job that the sensors wait for.
"""

from __future__ import annotations

from airflow.sdk import DAG

from airflow_amt.operators.stop import AmtStopTuningJobOperator
from airflow_amt.operators.tuning import AmtTuningJobOperator
from airflow_amt.sensors.tuning import AmtTuningJobSensor
from airflow_amt.tuning import CompletionCriteria
from tests.system.dags.scripted import SCENARIOS, request

GATE = "{{ dag_run.conf['gate'] }}"
WATCHED = "{{ dag_run.conf['watched'] }}"

for reason, scenario in SCENARIOS.items():
    if reason == "endless":
        continue
    with DAG(dag_id=f"outcome_{reason}", schedule=None):
        AmtTuningJobOperator(
            task_id="operator_sync",
            config=request(scenario, gate=GATE),
            criteria=CompletionCriteria.parse(scenario.criteria),
            check_interval=1,
            deferrable=False,
        )
        AmtTuningJobOperator(
            task_id="operator_deferred",
            config=request(scenario, gate=GATE),
            criteria=scenario.criteria,
            check_interval=1,
            deferrable=True,
        )
        AmtTuningJobSensor(
            task_id="sensor_poke", tuning_job_name=WATCHED, poke_interval=1, timeout=600, deferrable=False
        )
        AmtTuningJobSensor(
            task_id="sensor_deferred", tuning_job_name=WATCHED, poke_interval=1, timeout=600, deferrable=True
        )

with DAG(dag_id="stop", schedule=None):
    AmtStopTuningJobOperator(
        task_id="stop_sync",
        tuning_job_name="{{ dag_run.conf['names'][0] }}",
        reason="the table",
        check_interval=0.5,
        deferrable=False,
    )
    AmtStopTuningJobOperator(
        task_id="stop_deferred",
        tuning_job_name="{{ dag_run.conf['names'][1] }}",
        reason="the table",
        # Airflow fails a task that resumes before its scheduler has heard of the deferral.
        check_interval=5,
        deferrable=True,
    )
    AmtStopTuningJobOperator(
        task_id="stop_without_waiting",
        tuning_job_name="{{ dag_run.conf['names'][2] }}",
        reason="the table",
        wait_for_completion=False,
    )
