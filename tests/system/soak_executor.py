"""LocalExecutor for the soak, whose hundreds of tasks each would import Airflow for seconds."""

from __future__ import annotations

import os
from importlib import import_module

from airflow.executors.local_executor import LocalExecutor

#: How workers call themselves in the server's request log; triggerers do not.
WORKER = "soak-worker"

_MODULES = (
    "airflow.sdk.execution_time.task_runner",
    "airflow_amt.operators.stop",
    "airflow_amt.operators.tuning",
    "airflow_amt.sensors.progress",
    "airflow_amt.triggers.guarded",
    "airflow_amt.triggers.progress",
    "boto3.session",
)


class SoakExecutor(LocalExecutor):  # type: ignore[misc, unused-ignore]
    """Import what all tasks need before the worker processes are forked."""

    def start(self) -> None:
        """Start the worker processes."""
        for module in _MODULES:
            import_module(module)
        # Part of botocore's User-Agent.
        os.environ["AWS_EXECUTION_ENV"] = WORKER
        super().start()
