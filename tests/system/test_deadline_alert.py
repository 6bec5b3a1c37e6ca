"""Airflow's DeadlineAlert on a live Airflow: the tuning jobs of a late DAG run are stopped, and no other."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_amt import _compat
from airflow_amt.local import RunningServer
from airflow_amt.tuning.naming import from_tag_list
from airflow_amt.tuning.reaping import KEEP_TAG
from tests.system.cluster import AirflowCluster
from tests.system.conftest import REGION
from tests.system.dags.deadline_alert import ALERTS, CONNECTION

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        _compat.deadline_classes() is None, reason="Airflow 3.1 has no deadlines of DAG runs to rely on"
    ),
]

TASKS = ("tune", "tune_too")
WAIT_SECONDS = 120.0


def _until(reached: Callable[[], bool], what: Callable[[], Any]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not reached():
        assert time.monotonic() < deadline, what()
        time.sleep(0.2)


class Database:
    """The cluster's metadata database: what of deadlines no API shows, or lets one change."""

    def __init__(self, cluster: AirflowCluster) -> None:
        self._path = cluster.home / "airflow.db"

    def _execute(self, sql: str, *values: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self._path, timeout=60)) as connection, connection:
            return connection.execute(sql, values).fetchall()

    def let_pass(self, run_id: str) -> datetime:
        """Move the deadline of a DAG run into the past, and return it.

        That a run is late when its tuning jobs run then hangs on no clock.
        """
        due = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=1)
        self._execute(
            "UPDATE deadline SET deadline_time = ? "
            "WHERE dagrun_id = (SELECT id FROM dag_run WHERE run_id = ?)",
            due.strftime("%Y-%m-%d %H:%M:%S.%f"),
            run_id,
        )
        return due

    def callback(self, run_id: str) -> tuple[str, str, str | None, str]:
        """Return kind, state and output of the callback of a run's only deadline, and the deadline's id."""
        rows = self._execute(
            "SELECT callback.type, callback.state, callback.output, deadline.id FROM callback "
            "JOIN deadline ON deadline.callback_id = callback.id "
            "JOIN dag_run ON dag_run.id = deadline.dagrun_id WHERE dag_run.run_id = ?",
            run_id,
        )
        assert len(rows) == 1, rows
        return rows[0]


@dataclass
class Run:
    """A DAG run, both of its tuning jobs with a best training job and another one that runs."""

    dag_id: str
    run_id: str
    jobs: dict[str, str]


@pytest.fixture(scope="module")
def client(amt: RunningServer) -> Iterator[Any]:
    made = amt.client(REGION)
    yield made
    made.close()


@pytest.fixture(scope="module")
def runs(
    cluster: AirflowCluster, amt: RunningServer, client: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Run]:
    """Two runs of each DAG, all of whose tasks wait."""
    connection = amt.connection(REGION)
    created = cluster.run_command(
        "-m", "airflow", "connections", "add", CONNECTION, "--conn-json", connection
    )
    assert created.returncode == 0, created.stderr
    gate = tmp_path_factory.mktemp("gate")
    found: dict[tuple[str, str], Run] = {}
    for dag_id in ALERTS:
        for which in ("late", "other"):
            run_id = cluster.trigger_dag(dag_id, {"gate": str(gate)})
            found[dag_id, which] = Run(dag_id, run_id, {})
    for run in found.values():
        for task_id in TASKS:
            run.jobs[task_id] = cluster.wait_xcom(run.dag_id, run.run_id, task_id, "tuning_job_name")
            cluster.wait_task(run.dag_id, run.run_id, task_id, states={"deferred"})
            cluster.wait_deferral_known(run.dag_id, run.run_id, task_id)
    for run in found.values():
        for name in run.jobs.values():
            _until(lambda name=name: _has_best(client, name), lambda name=name: _describe(client, name))  # type: ignore[misc]
    return found


def _describe(client: Any, name: str) -> dict[str, Any]:
    description: dict[str, Any] = client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    return description


def _has_best(client: Any, name: str) -> bool:
    job = _describe(client, name)
    counters = job["TrainingJobStatusCounters"]
    return "BestTrainingJob" in job and (counters["Completed"], counters["InProgress"]) == (1, 1)


def _status(client: Any, name: str) -> str:
    return str(_describe(client, name)["HyperParameterTuningJobStatus"])


def _tags(client: Any, name: str) -> dict[str, str]:
    arn = _describe(client, name)["HyperParameterTuningJobArn"]
    return from_tag_list(client.list_tags(ResourceArn=arn)["Tags"])


def test_a_late_run_alone_has_its_tuning_jobs_stopped(
    cluster: AirflowCluster, client: Any, runs: dict[tuple[str, str], Run]
) -> None:
    database = Database(cluster)
    late_async, late_sync = runs["deadline_async", "late"], runs["deadline_sync", "late"]
    kept = late_async.jobs["tune_too"]
    client.add_tags(
        ResourceArn=_describe(client, kept)["HyperParameterTuningJobArn"],
        Tags=[{"Key": KEEP_TAG, "Value": "for the comparison"}],
    )
    due = {run.dag_id: database.let_pass(run.run_id) for run in (late_async, late_sync)}
    states = {
        run.dag_id: (ALERTS[run.dag_id].get("run_in", "triggerer"), "success")
        for run in (late_async, late_sync)
    }
    for run in (late_async, late_sync):
        _until(
            lambda run=run: (
                database.callback(run.run_id)[:2] == states[run.dag_id]  # type: ignore[misc]
                and _status(client, run.jobs["tune"]) != "InProgress"
            ),
            lambda run=run: (database.callback(run.run_id), cluster.log_tails()),  # type: ignore[misc]
        )
    called = {run.dag_id: database.callback(run.run_id) for run in (late_async, late_sync)}
    output = called["deadline_async"][2]
    assert f"stopped: {late_async.jobs['tune']}; kept by their tag: {kept}." in str(output)

    expected = {
        "deadline_async": ("success", "nightly", "stop", None),
        "deadline_sync": ("failed", "", "stop_and_fail", "the morning report needs the machines"),
    }
    for run in (late_async, late_sync):
        state, rule, action, detail = expected[run.dag_id]
        was_due, requested_by = due[run.dag_id].isoformat(), f"deadline of {run.dag_id} {run.run_id}"
        assert cluster.wait_task(run.dag_id, run.run_id, "tune", states={state}) == state
        outcome = cluster.xcom(run.dag_id, run.run_id, "tune", "outcome")
        assert (outcome["status"], outcome["reason"], outcome["certain"]) == (
            "Stopped",
            "stopped_by_provider",
            True,
        )
        assert outcome["best_training_job"]["objective"] == 0.4
        evidence = dict(outcome["evidence"])
        assert evidence["evidence"].pop("deadline_id").replace("-", "") == called[run.dag_id][3]
        assert evidence == {
            "stopped_by": "policy",
            "detail": detail or f"the DAG run was due at {was_due}",
            "requested_by": requested_by,
            "policy": "deadline_alert",
            "rule": rule,
            "action": action,
            "share": None,
            "evidence": {"due": was_due},
        }
        tags = _tags(client, run.jobs["tune"])
        assert (tags["airflow-amt:stopped-by"], tags["airflow-amt:stopped-for"]) == ("policy", requested_by)

    # All others run on: of late runs one with a tag and one of another task, and all of the other runs.
    others = [
        (run, task_id)
        for (_, which), run in runs.items()
        for task_id in TASKS
        if (which, task_id) != ("late", "tune")
    ]
    assert len(others) == 6
    for run, task_id in others:
        assert _status(client, run.jobs[task_id]) == "InProgress"
        assert not {key for key in _tags(client, run.jobs[task_id]) if "stop" in key}
        assert cluster.task_state(run.dag_id, run.run_id, task_id) == "deferred"

    for run, task_id in others:
        client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=run.jobs[task_id])
    for run in runs.values():
        cluster.wait_run(run.dag_id, run.run_id, states={"failed"})
    for run, task_id in others:
        assert cluster.xcom(run.dag_id, run.run_id, task_id, "outcome")["reason"] == "stopped_externally"
