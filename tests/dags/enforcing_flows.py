"""DAGs that hold tuning jobs created elsewhere to stop policies."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow.sdk import DAG, task

from airflow_amt import AmtEnforcePolicyOperator, AmtSlaHook

DEFAULTS: dict[str, Any] = {
    "schedule": None,
    "start_date": datetime(2026, 1, 1, tzinfo=UTC),
    "catchup": False,
    "render_template_as_native_obj": True,
}


def push_what_was_told(context: Any) -> None:
    """Leave in XCom what a policy callback is told."""
    report = context["policy"]
    context["ti"].xcom_push(key="told", value=f"{report['action']} {report['rule']}")


with DAG("enforce", **DEFAULTS):
    AmtEnforcePolicyOperator(
        task_id="enforce",
        policies="variable:tuning_sla",
        name_prefix="{{ params.prefix }}",
        tags="{{ params.tags }}",
        enforce="{{ params.enforce }}",
    )

with DAG("enforce_names", **DEFAULTS):
    AmtEnforcePolicyOperator(
        task_id="enforce",
        policies="{{ params.sla }}",
        tuning_job_names="{{ params.names }}",
        on_policy_callback=push_what_was_told,
    )

with DAG("hook", **DEFAULTS):

    @task
    def look(params: Any = None) -> dict[str, Any]:
        """Hold a tuning job to an SLA with the hook alone."""
        return AmtSlaHook(params["sla"]).enforce(params["name"]).to_dict()

    @task
    def read(params: Any = None) -> dict[str, Any]:
        """Judge it rule by rule."""
        return AmtSlaHook(params["sla"]).report(params["name"])

    look() >> read()
