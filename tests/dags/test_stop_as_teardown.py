"""The example of a stop operator as teardown, in DAG runs that Airflow runs itself (``dag.test()``)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.dags.conftest import DagTest
from tests.dags.test_flows import states, xcom
from tests.local.support import describe, training_processes

pytestmark = [
    pytest.mark.dags,
    pytest.mark.local,
    # Airflow's own components run in this process and warn of what is not ours to change.
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("error:::airflow_amt"),
]

EXAMPLE = Path(__file__).parents[2] / "example_dags" / "amt_stop_as_teardown.py"


@pytest.fixture
def run_example(airflow_db: Path, dag_test: DagTest) -> DagTest:
    """Run the example."""
    shutil.copy(EXAMPLE, airflow_db / "dags")
    return dag_test


def test_it_stops_the_tuning_job_of_a_run_that_fails(run_example: DagTest, client: Any) -> None:
    run = run_example("amt_stop_as_teardown", {"data_is_good": False, "max_training_jobs": 400})
    assert run.state == "failed"
    assert states(run) == {
        "start": "success",
        "check_data": "failed",
        "wait": "upstream_failed",
        "stop": "success",
    }
    name = xcom(run, "start")["tuning_job_name"]
    stopped = xcom(run, "stop")
    assert (stopped["tuning_job_name"], stopped["stopped"], stopped["reason"]) == (
        name,
        True,
        "stopped_by_provider",
    )
    assert describe(client, name)["HyperParameterTuningJobStatus"] == "Stopped"
    assert training_processes(name) == []


def test_it_leaves_a_tuning_job_alone_that_is_over(run_example: DagTest, client: Any) -> None:
    run = run_example("amt_stop_as_teardown", {"max_training_jobs": 2})
    assert run.state == "success"
    assert set(states(run).values()) == {"success"}
    stopped = xcom(run, "stop")
    assert (stopped["stopped"], stopped["status"], stopped["reason"]) == (
        False,
        "Completed",
        "max_training_jobs",
    )
    assert stopped["best_training_job"]["objective"] > 0


def test_it_has_nothing_to_stop_if_no_tuning_job_was_created(run_example: DagTest) -> None:
    # Refused before any call: nothing is pushed to XCom.
    run = run_example("amt_stop_as_teardown", {"max_training_jobs": 0})
    assert run.state == "failed"
    assert states(run) == {
        "start": "failed",
        "check_data": "upstream_failed",
        "wait": "upstream_failed",
        "stop": "success",
    }
    assert xcom(run, "stop")["tuning_job_name"] is None
