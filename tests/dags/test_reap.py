"""The reaper in Airflow: operator and command against one embedded AMT and one metadata database."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from airflow_amt.cli.main import main
from airflow_amt.tuning import Owner
from airflow_amt.tuning.naming import TAG_PREFIX
from tests.dags.conftest import DagTest
from tests.local.support import create_request, describe, unique, wait_until

pytestmark = [
    pytest.mark.dags,
    pytest.mark.local,
    # Airflow's own components run in this process and warn of what is not ours to change.
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("error:::airflow_amt"),
]

EXAMPLE = Path(__file__).parents[2] / "example_dags" / "amt_reaper.py"

#: Starts an endless tuning job with the ownership tags of a task instance, and others; returns its name.
Start = Callable[..., str]


@pytest.fixture
def start(client: Any) -> Iterator[Start]:
    """Tuning jobs of two endless trainings, stopped at the end of the test."""
    names: list[str] = []

    def start(owner: Owner | None, **tags: str) -> str:
        given = {**(owner.tags() if owner else {}), **{key.replace("_", "-"): v for key, v in tags.items()}}
        request = create_request(
            unique("reap"),
            sequence="hang",
            most=2,
            tags={(key if ":" in key else TAG_PREFIX + key): value for key, value in given.items()},
        )
        client.create_hyper_parameter_tuning_job(**request)
        names.append(request["HyperParameterTuningJobName"])
        return names[-1]

    yield start
    for name in names:
        if describe(client, name)["HyperParameterTuningJobStatus"] == "InProgress":
            client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    for name in names:
        wait_until(partial(_is_stopped, client, name), f"the end of {name}")


@pytest.fixture
def reap(airflow_db: Path, connection: str) -> Callable[..., dict[str, Any]]:
    """Run the example DAG; return what its task returned."""
    folder = airflow_db / "dags"
    shutil.copy(EXAMPLE, folder)

    def reap(**params: Any) -> dict[str, Any]:
        try:
            from airflow.dag_processing.dagbag import DagBag
        except ImportError:  # Airflow 3.1
            from airflow.models.dagbag import DagBag  # type: ignore[no-redef]

        bag = DagBag(str(folder))
        assert bag.import_errors == {}
        run = bag.dags["amt_reaper"].test(run_conf={"grace_seconds": 0, **params})
        assert str(run.state) == "success"
        result: dict[str, Any] = run.get_task_instance("reap").xcom_pull(task_ids="reap")
        return result

    return reap


def _is_stopped(client: Any, name: str) -> bool:
    return bool(describe(client, name)["HyperParameterTuningJobStatus"] == "Stopped")


def owner_of(run: Any, task_id: str, map_index: int = -1) -> Owner:
    return Owner(dag_id=run.dag_id, run_id=run.run_id, task_id=task_id, map_index=map_index)


def set_states(run: Any, task_states: dict[str, str | None], run_state: str = "running") -> None:
    """Put task instances and their DAG run into these states, as the scheduler or a person would."""
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import update

    with create_session() as session:
        for task_id, state in task_states.items():
            ours = (TaskInstance.dag_id == run.dag_id, TaskInstance.run_id == run.run_id)
            session.execute(
                update(TaskInstance).where(*ours, TaskInstance.task_id == task_id).values(state=state)
            )
        session.execute(update(DagRun).where(DagRun.id == run.id).values(state=run_state))


def delete(run: Any) -> None:
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    with create_session() as session:
        session.delete(session.get(DagRun, run.id))


def command(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, Any]]:
    """Run ``airflow-amt reap --json``; return its exit code and what it wrote."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        # As a process of its own, which the command is, it has no task's context.
        patch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")
        code = main(["reap", "--json", "--grace", "0", *options])
    return code, json.loads(capsys.readouterr().out)


def of(names: dict[str, str], result: dict[str, Any]) -> dict[str, str]:
    """Return the codes of orphans by what the test calls their jobs."""
    called = {name: key for key, name in names.items()}
    return {called[one["tuning_job_name"]]: one["code"] for one in result["orphans"]}


def test_operator_and_command_find_the_same_orphans_and_one_stops_them(
    dag_test: DagTest,
    reap: Callable[..., dict[str, Any]],
    start: Start,
    client: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    request = create_request(most=1)
    del request["HyperParameterTuningJobName"]
    conf = {"request": request}
    states = {"start": "deferred", "poke": "failed", "reschedule": None, "deferred": "running"}
    active = dag_test("watch", conf)
    set_states(active, states)
    over = dag_test("watch", conf)
    set_states(over, {"start": "upstream_failed", "poke": None}, run_state="failed")
    gone = dag_test("watch", conf)
    delete(gone)
    names = {
        "waiting": start(owner_of(active, "start"), generation="2"),
        "superseded": start(owner_of(active, "start"), generation="1"),
        "failed": start(owner_of(active, "poke")),
        "kept by hand": start(owner_of(active, "poke"), keep=""),
        "never waited for": start(owner_of(active, "poke"), waits="no"),
        "left": start(owner_of(active, "poke"), waits="leave"),
        "another deployment's": start(owner_of(active, "poke"), deployment="prod"),
        "will be scheduled": start(owner_of(active, "reschedule")),
        "no such index": start(owner_of(active, "poke", 3)),
        "upstream failed": start(owner_of(over, "start")),
        "will not be scheduled": start(owner_of(over, "poke")),
        "run deleted": start(owner_of(gone, "start")),
        "unknown DAG": start(Owner(dag_id="nobodys", run_id=gone.run_id, task_id="start")),
        "nobody's": start(None),
        "half an owner": start(None, dag_id="watch"),
    }
    orphans = {
        "superseded": "superseded",
        "failed": "task_over",
        "no such index": "task_gone",
        "upstream failed": "task_over",
        "will not be scheduled": "run_over",
        "run deleted": "run_gone",
    }
    looked = reap(stop_orphans=False)
    code, told = command(capsys)
    assert code == 3
    assert of(names, looked) == of(names, told) == orphans
    assert looked["by_code"] == told["by_code"]
    assert (looked["dry_run"], looked["stopped"]) == (True, 0)
    assert {one: describe(client, name)["HyperParameterTuningJobStatus"] for one, name in names.items()} == (
        dict.fromkeys(names, "InProgress")
    )

    done = reap()

    assert of(names, done) == orphans
    assert done["stopped"] == len(orphans)
    for one, name in names.items():
        description = describe(client, name)
        if one not in orphans:
            assert description["HyperParameterTuningJobStatus"] == "InProgress", one
            continue
        assert description["HyperParameterTuningJobStatus"] in ("Stopping", "Stopped"), one
        tags = client.list_tags(ResourceArn=description["HyperParameterTuningJobArn"])["Tags"]
        tags = {tag["Key"]: tag["Value"] for tag in tags}
        assert tags["airflow-amt:stopped-by"] == "reaper"
        assert tags["airflow-amt:stopped-by-detail"].startswith(f"{orphans[one]}: its ")
    # Nothing is left but the job that is to outlive its task, and that of an unknown DAG: if asked for.
    assert command(capsys, "--stop")[0] == 0
    assert of(names, command(capsys, "--include-left", "--stop")[1]) == {"left": "task_over"}
    assert of(names, command(capsys, "--dag-id", "nobodys", "--stop")[1]) == {"unknown DAG": "run_gone"}
    assert describe(client, names["waiting"])["HyperParameterTuningJobStatus"] == "InProgress"
