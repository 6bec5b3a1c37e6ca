"""A DAG that is scheduled on "a tuning job ended": live watcher, live scheduler, a job made by boto3."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_amt.local import RunningServer
from airflow_amt.tuning import CompletionCriteria
from tests.system.cluster import AirflowCluster
from tests.system.conftest import REGION
from tests.system.dags.scripted import SCENARIOS, request

pytestmark = pytest.mark.system

DAG_ID = "amt_on_tuning_job_ended"
PATIENCE_SECONDS = 180.0


def create(client: Any, name: str, scenario: str, gate: Path) -> None:
    body = request(SCENARIOS[scenario], gate=str(gate))
    criteria = CompletionCriteria.parse(SCENARIOS[scenario].criteria)
    body["HyperParameterTuningJobConfig"] = criteria.merge_into(body["HyperParameterTuningJobConfig"])
    client.create_hyper_parameter_tuning_job(HyperParameterTuningJobName=name, **body)


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.5)
    return found


def handled(cluster: AirflowCluster) -> dict[str, list[str]]:
    """Return the names of tuning jobs that each finished run was about."""
    runs = cluster.request("GET", f"/dags/{DAG_ID}/dagRuns")["dag_runs"]
    return {
        run["dag_run_id"]: cluster.xcom(DAG_ID, run["dag_run_id"], "ended_jobs")
        for run in runs
        if run["state"] in ("success", "failed")
    }


def test_the_dag_runs_when_a_tuning_job_ends_and_for_no_other_job_and_across_a_triggerer_that_is_lost(
    cluster: AirflowCluster, amt: RunningServer, tmp_path: Path
) -> None:
    client = amt.client(REGION)
    gate = tmp_path / "gate"
    cluster.wait_dag(DAG_ID)
    create(client, "daily-one", "max_training_jobs", tmp_path)  # not its prefix; its gate is open
    create(client, "nightly-one", "max_training_jobs", gate)
    assert handled(cluster) == {}
    gate.touch()
    first = wait_for(lambda: handled(cluster), "no run for nightly-one")
    assert list(first.values()) == [["nightly-one"]]
    (run_id,) = first
    run = cluster.request("GET", f"/dags/{DAG_ID}/dagRuns/{run_id}")
    assert (run["state"], run["run_type"]) == ("success", "asset_triggered")
    assert cluster.xcom(DAG_ID, run_id, "why_it_ended", map_index=0) == "max_training_jobs"
    best = client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName="nightly-one")[
        "BestTrainingJob"
    ]
    artifact = cluster.xcom(DAG_ID, run_id, "hand_on", map_index=0)
    assert artifact.endswith(f"/{best['TrainingJobName']}/output/model.tar.gz")

    # Ends while nobody looks.
    cluster.stop_component("triggerer", grace_seconds=0)
    create(client, "nightly-two", "failed", tmp_path)
    wait_for(
        lambda: (
            client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName="nightly-two")[
                "HyperParameterTuningJobStatus"
            ]
            == "Failed"
        ),
        "nightly-two does not end",
    )
    client.close()
    cluster.start_component("triggerer")

    def both() -> dict[str, list[str]] | None:
        found = handled(cluster)
        return found if any("nightly-two" in names for names in found.values()) else None

    runs = wait_for(both, "no run for nightly-two")
    # At least once: Airflow before 3.3 may deliver nightly-one again; no other job at all.
    assert {name for names in runs.values() for name in names} == {"nightly-one", "nightly-two"}
    (run_id, names), *_ = [(run_id, names) for run_id, names in runs.items() if "nightly-two" in names]
    index = names.index("nightly-two")
    assert cluster.xcom(DAG_ID, run_id, "why_it_ended", map_index=index) == "failed"
    assert cluster.task_state(DAG_ID, run_id, "best", map_index=index) == "skipped"
