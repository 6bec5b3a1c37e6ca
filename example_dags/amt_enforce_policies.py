"""Every five minutes, hold the tuning jobs of a team to its SLA, whoever created them.

The SLA lives in the Variable ``tuning_sla``, so that operations can change it without a deploy; until there
is one, the default below counts. For example, at most ten hours with a warning two hours before, and no
more than a fifth of failed training jobs::

    {"rules": [{"type": "deadline", "after_seconds": 36000, "warn_before_seconds": 7200},
               {"type": "max_failed_training_jobs", "share": 0.2}]}

The second task looks at one tuning job that is named, with the hook alone, and returns the verdict. To see
what would be stopped, start a run with ``{"enforce": false}``.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import dag, get_current_context, task

from airflow_amt.hooks.sla import AmtSlaHook
from airflow_amt.operators.enforce import AmtEnforcePolicyOperator

log = logging.getLogger(__name__)

#: As JSON, because the Variable is text.
SLA = """{{ var.value.get('tuning_sla', '{"rules": [
    {"type": "max_failed_training_jobs", "count": 5, "warn_at": 0.6},
    {"type": "stalled", "duration_seconds": 7200}
]}') }}"""


def tell(context: dict[str, Any]) -> None:
    """Tell people; a notifier, as ``AmtSlackNotifier(channel="#models")``, does this better."""
    report = context["policy"]
    log.warning(
        "%s: %s by %s, %s", report["tuning_job_name"], report["action"], report["rule"], report["reason"]
    )


@dag(
    dag_id="amt_enforce_policies",
    schedule=timedelta(minutes=5),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    tags=["airflow-amt", "example"],
    doc_md=__doc__,
    params={"enforce": True, "prefix": "nightly-", "tuning_job_name": ""},
)
def amt_enforce_policies() -> None:
    """Look at all tuning jobs of the team, and at the one that is named."""
    AmtEnforcePolicyOperator(
        task_id="enforce",
        policies=SLA,
        name_prefix="{{ params.prefix }}",
        enforce="{{ params.enforce }}",
        on_policy_callback=tell,
        execution_timeout=timedelta(minutes=4),
    )

    @task
    def look_at_one() -> dict[str, Any] | None:
        """Stop the tuning job that is named if no training job of it ended for two hours."""
        params = get_current_context()["params"]
        if not params["tuning_job_name"]:
            return None
        hook = AmtSlaHook({"type": "stalled", "duration_seconds": 7200, "action": "stop"})
        judge = hook.enforce if params["enforce"] else hook.evaluate
        # XCom takes its dict.
        return judge(params["tuning_job_name"]).to_dict()

    look_at_one()


enforce_policies = amt_enforce_policies()
