"""Operators and sensors in DAGs that Airflow runs itself (``dag.test()``), against the embedded AMT."""

from __future__ import annotations

from typing import Any

import pytest

from tests.dags.conftest import DagTest
from tests.local.support import create_request, describe, training_processes

pytestmark = [
    pytest.mark.dags,
    pytest.mark.local,
    # Airflow's own components run in this process and warn of what is not ours to change.
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("error:::airflow_amt"),
]


def unnamed(**changes: Any) -> dict[str, Any]:
    request = create_request(most=None, **changes)
    del request["HyperParameterTuningJobName"]
    return request


def states(run: Any) -> dict[str, str]:
    return {ti.task_id: str(ti.state) for ti in run.get_task_instances()}


def xcom(run: Any, task_id: str, key: str = "return_value") -> Any:
    return run.get_task_instance(task_id).xcom_pull(task_ids=task_id, key=key)


@pytest.mark.parametrize("way", ["sync", "deferred"])
def test_a_dag_tunes_and_hands_the_outcome_on(dag_test: DagTest, way: str) -> None:
    run = dag_test(f"tune_{way}", {"request": unnamed(sequence="0.1 0.7 0.3"), "most": 3})
    assert states(run) == {"tune": "success", "see": "success"}
    assert xcom(run, "see") == "max_training_jobs 0.7"
    outcome = xcom(run, "tune")
    assert outcome == xcom(run, "tune", "outcome")
    assert xcom(run, "tune", "tuning_job_name") == outcome["tuning_job_name"]
    assert xcom(run, "tune", "_link_AmtTuningJobLink").endswith(f"/{outcome['tuning_job_name']}")


@pytest.mark.parametrize("way", ["sync", "deferred"])
def test_a_job_that_fails_fails_the_dag_and_leaves_its_outcome(dag_test: DagTest, way: str) -> None:
    run = dag_test(f"tune_{way}", {"request": unnamed(sequence="fail"), "most": 9})
    assert states(run) == {"tune": "failed", "see": "upstream_failed"}
    outcome = xcom(run, "tune", "outcome")
    assert (outcome["status"], outcome["reason"]) == ("Failed", "failed")
    assert outcome["training_job_failure_reasons"][0]["count"] == 5
    assert xcom(run, "tune") is None


def test_sensors_of_every_mode_give_the_same_answer(dag_test: DagTest) -> None:
    run = dag_test("watch", {"request": unnamed(sequence="0.1 0.95 0.3", seconds="0.3", target=0.9)})
    assert set(states(run).values()) == {"success"}
    started = xcom(run, "start")
    assert started["status"] == "InProgress"
    answers = [xcom(run, way) for way in ("poke", "reschedule", "deferred")]
    assert answers[0] == answers[1] == answers[2]
    assert (answers[0]["reason"], answers[0]["evidence"]["observed"]) == ("target_reached", 0.95)
    assert answers[0]["tuning_job_name"] == started["tuning_job_name"]


def test_a_teardown_stops_the_job_after_a_failure(dag_test: DagTest, client: Any) -> None:
    run = dag_test("teardown", {"request": unnamed(sequence="0.4 hang")})
    assert states(run) == {"start": "success", "work": "failed", "stop": "success"}
    stopped = xcom(run, "stop")
    assert (stopped["stopped"], stopped["status"], stopped["reason"]) == (
        True,
        "Stopped",
        "stopped_by_provider",
    )
    name = xcom(run, "start")["tuning_job_name"]
    assert describe(client, name)["HyperParameterTuningJobStatus"] == "Stopped"
    assert training_processes(name) == []


def test_the_deadline_stops_the_job_in_both_ways(dag_test: DagTest, client: Any) -> None:
    run = dag_test("deadline", {"request": unnamed(sequence="0.4 hang"), "limit": 1})
    assert states(run) == {"sync": "failed", "deferred": "failed"}
    for way in ("sync", "deferred"):
        outcome = xcom(run, way, "outcome")
        assert outcome["status"] == "Stopped"
        assert outcome["evidence"]["stopped_by"] == "deadline"
        assert training_processes(outcome["tuning_job_name"]) == []


def test_where_nobody_can_answer_the_default_is_taken(dag_test: DagTest, client: Any) -> None:
    run = dag_test("ask", {"request": unnamed(sequence="0.4 hang")})
    assert states(run) == {"start": "success", "ask": "success"}
    asked = xcom(run, "ask")
    assert (asked["choice"], asked["timed_out"], asked["stopped"]) == ("stop", True, True)
    status = describe(client, asked["tuning_job_name"])["HyperParameterTuningJobStatus"]
    assert status in {"Stopping", "Stopped"}
