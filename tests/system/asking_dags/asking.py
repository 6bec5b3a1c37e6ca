"""Questions to people as steps of their own, about the tuning job that the run's configuration names.

Run configuration: `watched`, the name of the tuning job.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, BaseNotifier

from airflow_amt.operators.ask import AmtAskOperator

WATCHED = "{{ dag_run.conf['watched'] }}"


class XComNotifier(BaseNotifier):
    """Leaves what it was told in XCom."""

    template_fields = ("message",)

    def __init__(self, message: str) -> None:
        super().__init__()
        self.message = message

    def notify(self, context: Any) -> None:
        """Push the rendered message."""
        context["ti"].xcom_push(key="notified", value=self.message)


class BrokenNotifier(BaseNotifier):
    """Fails."""

    def notify(self, context: Any) -> None:
        """Fail."""
        raise RuntimeError("nobody is at home")


with DAG(dag_id="asking", schedule=None):
    AmtAskOperator(
        task_id="ask",
        tuning_job_name=WATCHED,
        prices={"currency": "EUR", "per_hour": {"ml.m5.large": 36.0}},
        limit=50,
        reason="80 % of the *budget* are used.",
        response_timeout=3600,
        notifiers=[BrokenNotifier(), XComNotifier("{{ question.subject }} -> {{ question.url }}")],
    )

with DAG(dag_id="asking_ada", schedule=None):
    AmtAskOperator(task_id="ask", tuning_job_name=WATCHED, assigned_users="ada")

with DAG(dag_id="asking_in_vain", schedule=None):
    AmtAskOperator(task_id="ask", tuning_job_name=WATCHED, response_timeout=8)
