"""A person kills a task while it is deferred: the tuning job is stopped, and no training process is left."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import airflow
import psutil
import pytest
from packaging.version import Version

from airflow_amt.local import RunningServer
from tests.system.cluster import AirflowCluster
from tests.system.conftest import REGION

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        Version(airflow.__version__) < Version("3.3"),
        reason="before Airflow 3.3 nobody calls a trigger's on_kill",
    ),
]

#: Airflow cancels the trigger within 2 s and AMT's processes end at once; the rest is for a busy machine.
STOP_SECONDS = 60.0


def _training_processes(amt: RunningServer, tuning_job_name: str) -> list[psutil.Process]:
    """Return the living training processes of a tuning job, from the operating system's own list."""
    found = []
    for process in psutil.Process(amt.pid).children(recursive=True):
        try:
            if process.environ().get("TRAINING_JOB_NAME", "").startswith(f"{tuning_job_name}-"):
                found.append(process)
        except psutil.NoSuchProcess:
            continue  # it ended between the listing and the question
    return found


def _describe(client: Any, name: str) -> dict[str, Any]:
    answer: dict[str, Any] = client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    return answer


def _wait_for_status(client: Any, name: str, status: str) -> dict[str, Any]:
    deadline = time.monotonic() + STOP_SECONDS
    while (job := _describe(client, name))["HyperParameterTuningJobStatus"] != status:
        assert time.monotonic() < deadline, job
        time.sleep(0.2)
    return job


def _defer(
    cluster: AirflowCluster, amt: RunningServer, dag_id: str, gate: Path
) -> tuple[str, str, list[psutil.Process]]:
    """Start a tuning job of two endless training jobs and wait until its trigger watches it.

    :return: run id, name of the tuning job, its training processes.
    """
    run_id = cluster.trigger_dag(dag_id, {"gate": str(gate)})
    cluster.wait_task(dag_id, run_id, "tune", states={"deferred"})
    name = cluster.wait_xcom(dag_id, run_id, "tune", "tuning_job_name")
    # Told once before the task deferred and once by the trigger. Until a triggerer has taken the trigger up,
    # within about a second, Airflow deletes it without a call to anybody.
    cluster.wait_task_log(dag_id, run_id, "tune", f"Tuning job {name}: InProgress", times=2)
    deadline = time.monotonic() + STOP_SECONDS
    while len(processes := _training_processes(amt, name)) != 2:
        assert time.monotonic() < deadline, processes
        time.sleep(0.2)
    return run_id, name, processes


@pytest.mark.parametrize("state", ["failed", "success"])
def test_marking_a_deferred_task_stops_the_tuning_job(
    cluster: AirflowCluster, amt: RunningServer, tmp_path: Path, state: str
) -> None:
    client = amt.client(REGION)
    run_id, name, processes = _defer(cluster, amt, "kill", tmp_path)
    assert _describe(client, name)["HyperParameterTuningJobStatus"] == "InProgress"

    cluster.set_task_state("kill", run_id, "tune", state)

    job = _wait_for_status(client, name, "Stopped")
    assert job["TrainingJobStatusCounters"]["Stopped"] == 2
    tags = {
        tag["Key"]: tag["Value"]
        for tag in client.list_tags(ResourceArn=job["HyperParameterTuningJobArn"])["Tags"]
    }
    assert tags["airflow-amt:stopped-by"] == "on_kill"
    assert state in tags["airflow-amt:stopped-by-detail"]
    assert tags["airflow-amt:run-id"] == run_id
    assert _training_processes(amt, name) == []
    assert [process for process in processes if process.is_running()] == []
    assert cluster.task_state("kill", run_id, "tune") == state


def test_clearing_a_deferred_task_leaves_one_tuning_job_and_a_task_that_watches_it(
    cluster: AirflowCluster, amt: RunningServer, tmp_path: Path
) -> None:
    client = amt.client(REGION)
    run_id, first, processes = _defer(cluster, amt, "kill", tmp_path)

    cluster.clear("kill", run_id, ["tune"])

    # The new try adopts the job, or starts another one if the kill of the first try was quicker.
    second = _wait_for_second_try(cluster, run_id)
    if second != first:
        _wait_for_status(client, first, "Stopped")
        assert [process for process in processes if process.is_running()] == []
    assert _describe(client, second)["HyperParameterTuningJobStatus"] == "InProgress"

    cluster.set_task_state("kill", run_id, "tune", "failed")

    _wait_for_status(client, second, "Stopped")
    assert _training_processes(amt, second) == []


def _wait_for_second_try(cluster: AirflowCluster, run_id: str) -> str:
    """Wait until the trigger of the second try watches a tuning job; return its name."""
    deadline = time.monotonic() + STOP_SECONDS
    while (instance := cluster.task_instance("kill", run_id, "tune"))["try_number"] != 2 or (
        instance["state"] != "deferred"
    ):
        assert time.monotonic() < deadline, instance
        time.sleep(0.2)
    name: str = cluster.wait_xcom("kill", run_id, "tune", "tuning_job_name")
    cluster.wait_task_log("kill", run_id, "tune", f"Tuning job {name}: InProgress", times=2)
    return name


def test_the_tuning_job_runs_on_where_that_is_asked_for(
    cluster: AirflowCluster, amt: RunningServer, tmp_path: Path
) -> None:
    client = amt.client(REGION)
    run_id, name, processes = _defer(cluster, amt, "kill_but_leave", tmp_path)

    cluster.set_task_state("kill_but_leave", run_id, "tune", "failed")

    cluster.wait_task_log("kill_but_leave", run_id, "tune", f"tuning job {name} runs on")
    assert _describe(client, name)["HyperParameterTuningJobStatus"] == "InProgress"
    assert all(process.is_running() for process in processes)

    client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    _wait_for_status(client, name, "Stopped")
