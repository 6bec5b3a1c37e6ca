"""The tasks of the soak: DAGs of some tasks of one way each.

Run configuration: `tasks`, for each task of the run a dict of what its way needs (`name`, `region`,
`condition` as JSON text, `sequence`, `release`).
"""

from __future__ import annotations

import os
from typing import Any

from airflow.sdk import DAG, task

from airflow_amt.operators.stop import AmtStopTuningJobOperator
from airflow_amt.operators.tuning import AmtTuningJobOperator
from airflow_amt.sensors.progress import AmtTuningProgressSensor
from airflow_amt.sensors.tuning import AmtTuningJobSensor
from airflow_amt.tuning.policies import Rule, TargetReached
from tests.system.soak_jobs import ON_ENDS, POLICY_TARGET, SIZES, request

INTERVAL = float(os.environ["AMT_SOAK_INTERVAL"])
TIMEOUT = 4 * 3600


def given(index: int, key: str) -> str:
    """Return the template of what a task of the run is given."""
    return f"{{{{ dag_run.conf['tasks'][{index}]['{key}'] }}}}"


def sensor(index: int, **options: Any) -> None:
    """Wait for the end."""
    AmtTuningJobSensor(
        task_id=f"t{index}",
        tuning_job_name=given(index, "name"),
        region_name=given(index, "region"),
        poke_interval=INTERVAL,
        timeout=TIMEOUT,
        deferrable=True,
        **options,
    )


def progress(index: int, **options: Any) -> None:
    """Wait for a condition."""
    AmtTuningProgressSensor(
        task_id=f"t{index}",
        tuning_job_name=given(index, "name"),
        region_name=given(index, "region"),
        condition=given(index, "condition"),
        on_end=ON_ENDS[index % len(ON_ENDS)],
        poke_interval=INTERVAL,
        timeout=TIMEOUT,
        **options,
    )


def operator(index: int, **options: Any) -> None:
    """Create and wait."""
    AmtTuningJobOperator(
        task_id=f"t{index}",
        config=request(sequence=given(index, "sequence"), release=given(index, "release")),
        region_name=given(index, "region"),
        check_interval=INTERVAL,
        deferrable=True,
        **options,
    )


def stop(index: int) -> None:
    """Stop and wait."""
    AmtStopTuningJobOperator(
        task_id=f"t{index}",
        tuning_job_name=given(index, "name"),
        region_name=given(index, "region"),
        check_interval=INTERVAL,
        deferrable=True,
    )


POLICY = Rule.of(TargetReached(POLICY_TARGET))

WAYS: dict[str, Any] = {
    "sensor": sensor,
    "guarded_sensor": lambda index: sensor(index, policies=POLICY),
    "progress": lambda index: progress(index, deferrable=True),
    "light": lambda index: progress(index, start_from_trigger=True, end_from_trigger=True),
    "operator": lambda index: operator(index, stop_on_kill=True),
    "leaving": lambda index: operator(index, stop_on_kill=False),
    "guarded": lambda index: operator(index, stop_on_kill=True, policies=POLICY),
}

MANY: dict[str, Any] = {"schedule": None, "max_active_runs": 10_000, "max_active_tasks": 10_000}

for way, build in WAYS.items():
    for size in SIZES:
        with DAG(dag_id=f"soak_{way}_{size}", **MANY):
            for number in range(size):
                build(number)

with DAG(dag_id="soak_stop_1", **MANY):
    stop(0)

with DAG(dag_id="soak_mapped", **MANY):

    @task
    def listed(dag_run: Any = None) -> list[dict[str, str]]:
        """Return the arguments of each task."""
        return [
            {"tuning_job_name": one["name"], "region_name": one["region"]} for one in dag_run.conf["tasks"]
        ]

    AmtTuningJobSensor.partial(
        task_id="mapped", poke_interval=INTERVAL, timeout=TIMEOUT, deferrable=True
    ).expand_kwargs(listed())
