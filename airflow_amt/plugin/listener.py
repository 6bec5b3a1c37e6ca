"""The listener that records that a tuning job's result was delivered.

Airflow calls it in the task's own process, after the task's end was reported. It is loaded into every Airflow
process, so it imports nothing of this package: a task that has something to record says so by a method.
"""

from __future__ import annotations

from typing import Any

from airflow.listeners import hookimpl


@hookimpl
def on_task_instance_success(task_instance: Any) -> None:
    """Let the task record that its success was accepted."""
    _record(task_instance, "success")


@hookimpl
def on_task_instance_skipped(task_instance: Any) -> None:
    """Let the task record that its skip was accepted."""
    _record(task_instance, "skipped")


def _record(task_instance: Any, state: str) -> None:
    # A person's marking calls listeners in the API server, with a task instance that has no operator.
    record = getattr(getattr(task_instance, "task", None), "record_delivered", None)
    if callable(record):
        record(task_instance, state)
