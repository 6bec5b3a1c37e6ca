"""Runs that the scheduler makes: each tuning job starts from the one of the run before."""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any

import pytest

from airflow_amt.local import RunningServer
from tests.system.cluster import AirflowCluster
from tests.system.conftest import REGION

pytestmark = pytest.mark.system

RUNS = 3
TIMEOUT_SECONDS = 420.0


def _finished_runs(cluster: AirflowCluster) -> list[dict[str, Any]]:
    """Wait for the three runs and return them in the order of their dates."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while True:
        runs: list[dict[str, Any]] = cluster.request("GET", "/dags/retraining/dagRuns")["dag_runs"]
        states = {run["dag_run_id"]: run["state"] for run in runs}
        if len(runs) == RUNS and set(states.values()) <= {"success", "failed"}:
            return sorted(runs, key=lambda run: run["logical_date"])
        assert time.monotonic() < deadline, states
        time.sleep(0.5)


def test_scheduled_retraining_starts_from_the_run_before(cluster: AirflowCluster, amt: RunningServer) -> None:
    cluster.wait_dag("retraining")
    cluster.request("PATCH", "/dags/retraining", body={"is_paused": False})

    runs = _finished_runs(cluster)

    tasks = [cluster.task_states("retraining", run["dag_run_id"]) for run in runs]
    assert [run["state"] for run in runs] == ["success"] * RUNS, tasks
    assert [run["run_type"] for run in runs] == ["scheduled"] * RUNS
    names, parents = [], []
    with closing(amt.client(REGION)) as client:
        for run in runs:
            name = cluster.xcom("retraining", run["dag_run_id"], "tune", "tuning_job_name")
            job = client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
            warm_start = job.get("WarmStartConfig") or {}
            names.append(name)
            parents.append(
                [
                    parent["HyperParameterTuningJobName"]
                    for parent in warm_start.get("ParentHyperParameterTuningJobs") or ()
                ]
            )
            artifact = cluster.xcom("retraining", run["dag_run_id"], "deploy")
            assert artifact.startswith("s3://models/retraining/")
            assert artifact.endswith("model.tar.gz")
    assert parents == [[], [names[0]], [names[1]]]
