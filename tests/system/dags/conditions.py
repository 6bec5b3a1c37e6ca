"""Sensors that wait for a condition of a running tuning job, one a way of waiting.

Run configuration: `watched`, the name of the tuning job that they wait for.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, task

from airflow_amt.sensors.progress import AmtTuningProgressSensor
from airflow_amt.tuning.conditions import FirstUsableModel

WATCHED = "{{ dag_run.conf['watched'] }}"

#: By task id: how the sensor waits.
WAYS: dict[str, dict[str, Any]] = {
    "poke": {"deferrable": False},
    # Not every second: a scheduler that hears of the end of one poke after the start of the next one takes
    # the task for killed (3.3.2, on a busy machine).
    "reschedule": {"deferrable": False, "mode": "reschedule", "poke_interval": 15},
    # Nor this: Airflow fails a task that resumes before its scheduler has heard of the deferral.
    "deferred": {"deferrable": True, "poke_interval": 5},
    "started": {"start_from_trigger": True},
    "without_a_worker": {"start_from_trigger": True, "end_from_trigger": True},
}

with DAG(dag_id="progress", schedule=None):

    @task
    def name(dag_run: Any = None) -> str:
        """Hand the name on by XCom, as the task that starts a tuning job does."""
        return str(dag_run.conf["watched"])

    named = name()
    for way, options in WAYS.items():
        AmtTuningProgressSensor(
            task_id=way,
            tuning_job_name=named,  # type: ignore[arg-type]
            condition={"type": "target_reached", "value": "{{ dag_run.conf['target'] }}"},
            **{"poke_interval": 1, "timeout": 600, **options},
        )

# The condition is never met: the job ends before.
with DAG(dag_id="progress_end", schedule=None):
    for on_end in ("succeed", "fail", "skip"):
        for end_from_trigger in (False, True):
            AmtTuningProgressSensor(
                task_id=f"{on_end}_{'without_a_worker' if end_from_trigger else 'started'}",
                tuning_job_name=WATCHED,
                condition={"type": "target_reached", "value": 0.99},
                on_end=on_end,
                # As above: before Airflow 3.3 it begins on a worker and defers.
                poke_interval=5,
                timeout=600,
                start_from_trigger=True,
                end_from_trigger=end_from_trigger,
                retries=1,
            )

with DAG(dag_id="progress_mapped", schedule=None):
    AmtTuningProgressSensor.partial(
        task_id="mapped",
        condition=FirstUsableModel().to_dict(),
        poke_interval=5,
        timeout=600,
        start_from_trigger=True,
        end_from_trigger=True,
    ).expand(tuning_job_name=[WATCHED])

with DAG(dag_id="progress_timeout", schedule=None):
    AmtTuningProgressSensor(
        task_id="started",
        tuning_job_name=WATCHED,
        condition={"type": "target_reached", "value": 0.99},
        poke_interval=1,
        timeout=5,
        start_from_trigger=True,
    )
