"""Sensors that wait for a condition on a live scheduler and triggerer: with and without a worker."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import airflow
import pytest
from packaging.version import Version

from airflow_amt.local import RunningServer
from tests.system.cluster import AirflowCluster
from tests.system.conftest import REGION
from tests.system.dags.conditions import WAYS
from tests.system.dags.scripted import SCENARIOS, request

pytestmark = pytest.mark.system

STARTS_FROM_TRIGGER = Version(airflow.__version__) >= Version("3.3")

#: What only a worker writes into the log of a task.
ON_A_WORKER = "DAG bundles loaded"


def _create(client: Any, name: str, gate: Path) -> str:
    """Create a tuning job: its first training job comes to 0.4, its second one never ends."""
    body = request(SCENARIOS["stopped_externally"], gate=str(gate))
    body["HyperParameterTuningJobConfig"]["ResourceLimits"]["MaxNumberOfTrainingJobs"] = 9
    client.create_hyper_parameter_tuning_job(HyperParameterTuningJobName=name, **body)
    return name


def _describe(client: Any, name: str) -> dict[str, Any]:
    answer: dict[str, Any] = client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    return answer


def _stop(client: Any, name: str) -> None:
    client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    deadline = time.monotonic() + 60
    while _describe(client, name)["HyperParameterTuningJobStatus"] != "Stopped":
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _workers(cluster: AirflowCluster, dag_id: str, run_id: str, task_id: str) -> int:
    """Return how often a worker took the task up."""
    return cluster.task_log(dag_id, run_id, task_id).count(ON_A_WORKER)


def test_every_way_of_waiting_fires_while_the_job_runs(
    cluster: AirflowCluster, amt: RunningServer, tmp_path: Path
) -> None:
    client = amt.client(REGION)
    gate = tmp_path / "gate"
    name = _create(client, "progress-running", gate)
    run_id = cluster.trigger_dag("progress", {"watched": name, "target": 0.4})
    for way in WAYS:
        waiting = {"poke": "running", "reschedule": "up_for_reschedule"}.get(way, "deferred")
        cluster.wait_task("progress", run_id, way, states={waiting})

    gate.touch()

    results = {}
    for way in WAYS:
        cluster.wait_task("progress", run_id, way, states={"success"})
        results[way] = cluster.xcom("progress", run_id, way)
        assert cluster.xcom("progress", run_id, way, "progress") == results[way]
    assert _describe(client, name)["HyperParameterTuningJobStatus"] == "InProgress"
    for result in results.values():
        assert (result["fired"], result["status"]) == ("condition", "InProgress")
        assert result["best_training_job"]["objective"] == 0.4
        assert result["condition"] == {
            "met": "yes",
            "code": "target_reached",
            "reason": "The best objective, 0.4, reached the target of 0.4.",
            "because": ["target_reached"],
        }
    workers = {way: _workers(cluster, "progress", run_id, way) for way in WAYS}
    if STARTS_FROM_TRIGGER:
        assert workers["deferred"] == 2, workers
        assert workers["started"] == 1, workers
        assert workers["without_a_worker"] == 0, workers
    else:
        assert workers["deferred"] == workers["started"] == 2, workers
        assert workers["without_a_worker"] == 1, workers
    _stop(client, name)


def test_the_end_of_the_job_ends_the_waiting(
    cluster: AirflowCluster, amt: RunningServer, tmp_path: Path
) -> None:
    client = amt.client(REGION)
    name = _create(client, "progress-end", tmp_path)
    run_id = cluster.trigger_dag("progress_end", {"watched": name})
    tasks = [f"{end}_{way}" for end in ("succeed", "fail", "skip") for way in ("started", "without_a_worker")]
    for task_id in tasks:
        cluster.wait_task("progress_end", run_id, task_id, states={"deferred"})
        if not STARTS_FROM_TRIGGER:  # each began on a worker
            cluster.wait_deferral_known("progress_end", run_id, task_id)

    _stop(client, name)

    for task_id in tasks:
        expected = {"succeed": "success", "fail": "failed", "skip": "skipped"}[task_id.partition("_")[0]]
        cluster.wait_task("progress_end", run_id, task_id, states={expected})
        result = cluster.xcom("progress_end", run_id, task_id, "progress")
        assert (result["fired"], result["status"]) == ("end", "Stopped")
        assert result["condition"]["met"] == "no"
        # A job that is over stays so: no retry.
        assert cluster.task_instance("progress_end", run_id, task_id)["try_number"] == 1
    if STARTS_FROM_TRIGGER:
        workers = {task_id: _workers(cluster, "progress_end", run_id, task_id) for task_id in tasks}
        assert workers == {
            "succeed_started": 1,
            "succeed_without_a_worker": 0,
            "fail_started": 1,
            "fail_without_a_worker": 1,
            "skip_started": 1,
            "skip_without_a_worker": 0,
        }


def test_a_mapped_sensor_begins_on_a_worker(
    cluster: AirflowCluster, amt: RunningServer, tmp_path: Path
) -> None:
    client = amt.client(REGION)
    gate = tmp_path / "gate"
    name = _create(client, "progress-mapped", gate)
    run_id = cluster.trigger_dag("progress_mapped", {"watched": name})
    cluster.wait_task("progress_mapped", run_id, "mapped", map_index=0, states={"deferred"})
    cluster.wait_deferral_known("progress_mapped", run_id, "mapped")
    gate.touch()
    cluster.wait_task("progress_mapped", run_id, "mapped", map_index=0, states={"success"})
    result = cluster.xcom("progress_mapped", run_id, "mapped", map_index=0)
    assert result["condition"]["code"] == "first_usable_model"
    _stop(client, name)


def test_a_timeout_holds_where_no_worker_began(
    cluster: AirflowCluster, amt: RunningServer, tmp_path: Path
) -> None:
    client = amt.client(REGION)
    name = _create(client, "progress-timeout", tmp_path)
    run_id = cluster.trigger_dag("progress_timeout", {"watched": name})
    cluster.wait_run("progress_timeout", run_id)
    assert cluster.task_state("progress_timeout", run_id, "started") == "failed"
    log = cluster.task_log("progress_timeout", run_id, "started")
    assert "Sensor has timed out" in log
    assert _describe(client, name)["HyperParameterTuningJobStatus"] == "InProgress"
    _stop(client, name)
