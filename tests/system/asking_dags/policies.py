"""Tuning jobs that are held to an SLA that asks people.

Run configuration: `gate`, a path that must exist before the scripted training jobs have a result.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG

from airflow_amt.operators.tuning import AmtTuningJobOperator
from airflow_amt.tuning.policies import MaxFailedTrainingJobs, Rule
from tests.system.dags.scripted import Scenario, request


def remember(context: Any) -> None:
    """Keep what a policy told in XCom."""
    report = context["policy"]
    context["ti"].xcom_push(key=f"told-{report['action']}-{report.get('id') or 'end'}", value=report)


CRITERIA = {"max_training_jobs": 60}
COMMON: dict[str, Any] = {
    "config": request(
        Scenario(criteria=CRITERIA, results=[0.4, "fail", "fail", "wait"]),
        gate="{{ dag_run.conf['gate'] }}",
    ),
    "criteria": CRITERIA,
    "policies": Rule.of(MaxFailedTrainingJobs(count=10), ask_at=0.11),
    "on_policy_callback": remember,
    "check_interval": 5,
    "deferrable": True,
}

with DAG(dag_id="policy_asks", schedule=None):
    AmtTuningJobOperator(task_id="tune", **COMMON)

with DAG(dag_id="policy_asks_in_vain", schedule=None):
    AmtTuningJobOperator(task_id="tune", ask_timeout=8, **COMMON)
