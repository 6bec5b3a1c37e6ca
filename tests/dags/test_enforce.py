"""Stop policies for tuning jobs created elsewhere: operator and hook in DAGs, on the embedded AMT."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from airflow_amt.hooks.tuning import AmtHook
from airflow_amt.tuning import CompletionReason
from tests.dags.conftest import REGION, DagTest
from tests.dags.test_flows import states, xcom
from tests.local.support import create_request, describe, unique, wait_until

pytestmark = [
    pytest.mark.dags,
    pytest.mark.local,
    # Airflow's own components run in this process and warn of what is not ours to change.
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("error:::airflow_amt"),
]

#: Starts an endless tuning job of whose training jobs so many failed; returns its name.
Start = Callable[..., str]

TWO_FAILURES = {"rules": [{"type": "max_failed_training_jobs", "count": 2}]}


FLOWS = Path(__file__).parent / "enforcing_flows.py"


@pytest.fixture
def dag_test(airflow_db: Path, connection: str) -> DagTest:
    """Run a DAG of ``enforcing_flows.py`` to its end."""
    folder = airflow_db / "dags"
    shutil.copy(FLOWS, folder)

    def run(dag_id: str, conf: dict[str, Any]) -> Any:
        try:
            from airflow.dag_processing.dagbag import DagBag
        except ImportError:  # Airflow 3.1
            from airflow.models.dagbag import DagBag  # type: ignore[no-redef]

        bag = DagBag(str(folder))
        assert bag.import_errors == {}
        return bag.dags[dag_id].test(run_conf=conf)

    return run


@pytest.fixture
def start(client: Any) -> Iterator[Start]:
    """Tuning jobs created with boto3, which are stopped at the end of the test."""
    names: list[str] = []

    def start(prefix: str, *, failures: int = 0, **tags: str) -> str:
        name = unique(prefix)
        sequence = " ".join(["0.5", *["fail"] * failures, "hang"])
        request = create_request(name, sequence=sequence, most=9, tags=tags)
        client.create_hyper_parameter_tuning_job(**request)
        names.append(name)
        wait_until(partial(_hangs, client, name, failures), f"{failures} failures of {name}")
        return name

    yield start
    for name in names:
        if describe(client, name)["HyperParameterTuningJobStatus"] == "InProgress":
            client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    for name in names:
        wait_until(lambda name=name: status(client, name) == "Stopped", f"the end of {name}")  # type: ignore[misc]


def _hangs(client: Any, name: str, failures: int) -> bool:
    counters = describe(client, name)["TrainingJobStatusCounters"]
    return bool(
        counters["Completed"] == 1
        and counters["NonRetryableError"] == failures
        and counters["InProgress"] == 1
    )


def status(client: Any, name: str) -> str:
    return str(describe(client, name)["HyperParameterTuningJobStatus"])


def tags_of(client: Any, name: str) -> dict[str, str]:
    arn = describe(client, name)["HyperParameterTuningJobArn"]
    return {one["Key"]: one["Value"] for one in client.list_tags(ResourceArn=arn)["Tags"]}


def by_name(result: dict[str, Any]) -> dict[str, Any]:
    return {one["tuning_job_name"]: one for one in result["jobs"]}


def test_of_three_jobs_the_one_that_breaks_a_rule_is_stopped(
    dag_test: DagTest, start: Start, client: Any, connection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_VAR_TUNING_SLA", json.dumps(TWO_FAILURES))
    prefix = unique("night")
    bad, good = start(prefix, failures=2, team="a"), start(prefix, failures=1, team="a")
    start(prefix, failures=2, team="b"), start(unique("other"), failures=2, team="a")
    conf = {"prefix": prefix, "tags": {"team": "a"}, "enforce": False}
    looked = dag_test("enforce", conf)
    assert states(looked) == {"enforce": "success"}
    result = xcom(looked, "enforce")
    assert [result[key] for key in ("dry_run", "matched", "breached", "stopped")] == [True, 2, 1, 0]
    assert status(client, bad) == "InProgress"

    run = dag_test("enforce", {**conf, "enforce": True})

    assert states(run) == {"enforce": "success"}
    result = xcom(run, "enforce")
    assert [result[key] for key in ("matched", "breached", "stopped", "kept", "errors")] == [2, 1, 1, 1, 0]
    assert by_name(result)[bad] == {
        "tuning_job_name": bad,
        "action": "stop",
        "rule": "max_failed_training_jobs",
        "code": "max_failed_training_jobs",
        "share": 1.0,
        "reason": "2 of 3 training jobs that ended have failed; the limit is 2.",
        "stopped": True,
    }
    assert by_name(result)[good]["action"] is None
    wait_until(lambda: status(client, bad) == "Stopped", f"the end of {bad}")
    listed = client.list_hyper_parameter_tuning_jobs(StatusEquals="InProgress", MaxResults=100)
    running = {one["HyperParameterTuningJobName"] for one in listed["HyperParameterTuningJobSummaries"]}
    assert len({name for name in running if name.startswith(prefix)}) == 2  # the good one, and team b's
    outcome = AmtHook(aws_conn_id=connection, region_name=REGION).outcome(bad)
    assert (outcome.reason, outcome.policy) == (
        CompletionReason.STOPPED_BY_PROVIDER,
        "max_failed_training_jobs",
    )
    assert outcome.evidence["requested_by"] == f"enforce {run.run_id} enforce"


def test_stop_and_fail_fails_the_task_and_leaves_its_result(
    dag_test: DagTest, start: Start, client: Any
) -> None:
    sla = {"rules": [{"type": "max_failed_training_jobs", "count": 1, "action": "stop_and_fail"}]}
    name = start("fail", failures=1)
    run = dag_test("enforce_names", {"names": [name, "nobodys"], "sla": sla})
    assert states(run) == {"enforce": "failed"}
    result = xcom(run, "enforce")
    assert (by_name(result)[name]["stopped"], result["missing"]) == (True, ["nobodys"])
    assert status(client, name) in ("Stopping", "Stopped")


def test_a_warning_is_told_once_by_all_runs(dag_test: DagTest, start: Start, client: Any) -> None:
    sla = {"rules": [{"type": "max_failed_training_jobs", "count": 2, "warn_at": 0.5}]}
    name = start("warn", failures=1)
    told = []
    for _ in range(2):
        run = dag_test("enforce_names", {"names": [name], "sla": sla})
        result = xcom(run, "enforce")
        assert (result["warned"], result["stopped"]) == (1, 0)
        told.append(xcom(run, "enforce", "told"))
    assert told == ["warn max_failed_training_jobs", None]
    assert tags_of(client, name)["airflow-amt:policy-told"] == "max_failed_training_jobs:warn@0.5"


@pytest.mark.parametrize("place", ["code", "variable", "extra"])
def test_a_plain_task_stops_a_breaching_job_and_returns_its_verdict(
    dag_test: DagTest, start: Start, client: Any, monkeypatch: pytest.MonkeyPatch, amt: Any, place: str
) -> None:
    name = start("task", failures=2)
    given: Any = {"code": TWO_FAILURES, "variable": "variable:tuning_sla", "extra": None}[place]
    if place == "variable":
        monkeypatch.setenv("AIRFLOW_VAR_TUNING_SLA", json.dumps(TWO_FAILURES))
    if place == "extra":
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", amt.connection(REGION, amt_sla=TWO_FAILURES))
    run = dag_test("hook", {"name": name, "sla": given})
    assert states(run) == {"look": "success", "read": "success"}
    verdict, report = xcom(run, "look"), xcom(run, "read")
    assert (verdict["action"], verdict["code"]) == ("stop", "max_failed_training_jobs")
    assert verdict["evidence"] == {"failed": 2, "ended": 3}
    assert report["verdict"]["action"] is None  # it is being stopped
    assert report["rules"][0]["share"] == 1.0
    wait_until(lambda: status(client, name) == "Stopped", f"the end of {name}")
    tags = tags_of(client, name)
    assert tags["airflow-amt:stopped-by"] == "policy"
    assert tags["airflow-amt:stopped-for"].startswith("hook manual__")
    assert tags["airflow-amt:stopped-for"].endswith(" look")


def test_deadlines_in_a_plain_task_count_from_its_dag_run(
    dag_test: DagTest, start: Start, client: Any
) -> None:
    name = start("run")
    late = {"rules": [{"type": "deadline", "after_seconds": 86400, "reference": "queued_at"}]}
    verdict = xcom(dag_test("hook", {"name": name, "sla": late}), "look")
    assert (verdict["action"], verdict["unknown"]) == (None, [])
    assert verdict["next_look_at"] is not None
    assert status(client, name) == "InProgress"
