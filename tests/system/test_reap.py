"""A DAG run is deleted while no triggerer lives to stop its tuning job: the reaper finds and stops it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from airflow_amt.local import RunningServer
from tests.system.cluster import AirflowCluster
from tests.system.conftest import REGION

pytestmark = pytest.mark.system

STOP_SECONDS = 60.0


def _status(client: Any, name: str) -> str:
    answer = client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    return str(answer["HyperParameterTuningJobStatus"])


def _defer(cluster: AirflowCluster, gate: Path) -> tuple[str, str]:
    """Start a tuning job and wait until its task is deferred; return run id and name of the job."""
    run_id = cluster.trigger_dag("reaped", {"gate": str(gate)})
    cluster.wait_task("reaped", run_id, "tune", states={"deferred"})
    return run_id, cluster.wait_xcom("reaped", run_id, "tune", "tuning_job_name")


def _reap(cluster: AirflowCluster, *, stop_orphans: bool) -> dict[str, Any]:
    run_id = cluster.trigger_dag("reaper", {"stop_orphans": stop_orphans})
    cluster.wait_task("reaper", run_id, "reap", states={"success"})
    result: dict[str, Any] = cluster.xcom("reaper", run_id, "reap")
    return result


def _command(cluster: AirflowCluster) -> tuple[int, dict[str, Any]]:
    done = cluster.run_command(
        "-m", "airflow_amt.cli.main", "reap", "--json", "--grace", "0", "--dag-id", "reaped"
    )
    assert done.returncode in (0, 3), done.stderr
    return done.returncode, json.loads(done.stdout)


def test_the_job_of_a_deleted_dag_run_is_stopped_and_another_left_alone(
    cluster: AirflowCluster, amt: RunningServer, tmp_path: Path
) -> None:
    client = amt.client(REGION)
    run_id, orphan = _defer(cluster, tmp_path / "never")
    healthy_run, healthy = _defer(cluster, tmp_path / "never")

    cluster.stop_component("triggerer", grace_seconds=0)
    try:
        # A DAG run that runs cannot be deleted: a person fails it first.
        cluster.request("PATCH", f"/dags/reaped/dagRuns/{run_id}", body={"state": "failed"})
        cluster.request("DELETE", f"/dags/reaped/dagRuns/{run_id}")
    finally:
        cluster.start_component("triggerer")
    cluster.wait_healthy()
    assert _status(client, orphan) == "InProgress"

    code, told = _command(cluster)
    looked = _reap(cluster, stop_orphans=False)
    for result in (told, looked):
        assert [(one["tuning_job_name"], one["code"]) for one in result["orphans"]] == [(orphan, "run_gone")]
        assert result["orphans"][0]["run_id"] == run_id
        assert result["by_code"] == {"run_gone": 1, "task_waits": 1}
    assert code == 3
    assert _status(client, orphan) == "InProgress"

    done = _reap(cluster, stop_orphans=True)

    assert (done["stopped"], done["errors"]) == (1, 0)
    deadline = time.monotonic() + STOP_SECONDS
    while _status(client, orphan) != "Stopped":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert cluster.task_state("reaped", healthy_run, "tune") == "deferred"
    assert _status(client, healthy) == "InProgress"
    assert _command(cluster)[0] == 0

    client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=healthy)
    cluster.wait_run("reaped", healthy_run, states={"failed"})
