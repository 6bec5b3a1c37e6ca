"""A state folder in which something is damaged: it is named, the job is set aside, the rest goes on."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local import RunningServer, running
from airflow_amt.local.server import open_state
from airflow_amt.local.state_folder import DATABASE
from airflow_amt.local.store import Store
from tests.local.support import (
    IMAGES,
    client_of,
    create_request,
    describe,
    run_to_end,
    wait_for_end,
    wait_until,
)

pytestmark = pytest.mark.local


def damage(folder: Path, statement: str, *values: Any) -> None:
    with closing(sqlite3.connect(folder / DATABASE)) as database, database:
        assert database.execute(statement, values).rowcount > 0


@contextmanager
def server_on(folder: Path) -> Iterator[tuple[RunningServer, Any]]:
    with running(folder, images=IMAGES, clock_rate=200) as server, client_of(server) as client:
        yield server, client


def state_with_jobs(folder: Path) -> None:
    """Two tuning jobs that go on, one that has ended, and a training job of its own that goes on."""
    with server_on(folder) as (server, client):
        run_to_end(client, create_request("ended", most=1))
        for name in ("hurt", "well"):
            client.create_hyper_parameter_tuning_job(**create_request(name, sequence="hang", most=9))
        definition = create_request(sequence="hang")["TrainingJobDefinition"]
        hyperparameters = definition.pop("StaticHyperParameters")
        client.create_training_job(TrainingJobName="alone", HyperParameters=hyperparameters, **definition)
        wait_until(
            lambda: all(
                describe(client, name)["TrainingJobStatusCounters"]["InProgress"] for name in ("hurt", "well")
            ),
            "the training jobs",
        )
        server.kill()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("config", '{"Strategy": '),
        ("config", "[]"),
        ("config", "{}"),
        ("definitions", "\x00"),
        ("definitions", "[{}]"),
        ("created_ms", "yesterday"),
        ("seed", "x"),
        ("config", 7),
    ],
)
def test_a_damaged_tuning_job_is_named_and_set_aside(tmp_path: Path, column: str, value: Any) -> None:
    state_with_jobs(tmp_path)
    damage(tmp_path, f"UPDATE tuning_jobs SET {column} = ? WHERE name = 'hurt'", value)
    with server_on(tmp_path) as (server, client):
        assert "tuning job hurt" in server.log
        listed = client.list_hyper_parameter_tuning_jobs(SortBy="Name")["HyperParameterTuningJobSummaries"]
        names = {one["HyperParameterTuningJobName"]: one["HyperParameterTuningJobStatus"] for one in listed}
        assert set(names) >= {"ended", "well"}
        assert names.get("hurt", "Failed") == "Failed"
        client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName="well")
        assert wait_for_end(client, "well")["HyperParameterTuningJobStatus"] == "Stopped"
        trained = client.list_training_jobs(NameContains="hurt-")["TrainingJobSummaries"]
        assert {one["TrainingJobStatus"] for one in trained} <= {"Failed", "Stopped"}
        client.delete_hyper_parameter_tuning_job(HyperParameterTuningJobName="hurt")
        with pytest.raises(ClientError, match="ResourceNotFound"):
            describe(client, "hurt")
        assert (
            run_to_end(client, create_request("hurt", most=1))["HyperParameterTuningJobStatus"] == "Completed"
        )


def test_what_was_resumed_of_a_damaged_tuning_job_writes_nothing_more(tmp_path: Path) -> None:
    with server_on(tmp_path) as (server, client):
        request = create_request(
            "hurt", sequence="hang", most=9, parallel=3, RetryStrategy={"MaximumRetryAttempts": 3}
        )
        client.create_hyper_parameter_tuning_job(**request)
        wait_until(lambda: describe(client, "hurt")["TrainingJobStatusCounters"]["InProgress"] == 3, "three")
        server.kill()
    damage(tmp_path, "UPDATE training_jobs SET hyperparameters = '{' WHERE name LIKE 'hurt-002-%'")
    with server_on(tmp_path) as (_, client):
        for _ in range(20):
            assert describe(client, "hurt")["HyperParameterTuningJobStatus"] == "Failed"
        client.delete_hyper_parameter_tuning_job(HyperParameterTuningJobName="hurt")


@pytest.mark.parametrize("name", ["hurt", "ended"])
def test_a_text_that_is_no_utf_8_hurts_nobody_else(tmp_path: Path, name: str) -> None:
    state_with_jobs(tmp_path)
    damage(tmp_path, f"UPDATE tuning_jobs SET arn = CAST(x'61ff62' AS TEXT) WHERE name = '{name}'")
    with server_on(tmp_path) as (_, client):
        listed = client.list_hyper_parameter_tuning_jobs()["HyperParameterTuningJobSummaries"]
        assert {"hurt", "well", "ended"} - {one["HyperParameterTuningJobName"] for one in listed} == {name}
        with pytest.raises(ClientError, match="column arn"):
            describe(client, name)


def test_describing_a_damaged_job_names_the_row_and_what_to_do(tmp_path: Path) -> None:
    state_with_jobs(tmp_path)
    damage(tmp_path, "UPDATE tuning_jobs SET config = '{' WHERE name = 'ended'")
    with server_on(tmp_path) as (_, client):
        with pytest.raises(ClientError) as refused:
            describe(client, "ended")
        text = str(refused.value)
        for part in (
            "tuning_jobs",
            DATABASE,
            "job ended",
            "config",
            "not valid JSON",
            "Restore a backup",
            "Delete",
        ):
            assert part in text
        assert "bug" not in text


@pytest.mark.parametrize(
    ("column", "value"), [("hyperparameters", "{"), ("transitions", "7"), ("started_ms", "x")]
)
def test_a_damaged_training_job_sets_aside_its_tuning_job_alone(
    tmp_path: Path, column: str, value: str
) -> None:
    state_with_jobs(tmp_path)
    damage(tmp_path, f"UPDATE training_jobs SET {column} = ? WHERE name LIKE 'hurt-%'", value)
    with server_on(tmp_path) as (_, client):
        described = describe(client, "hurt")
        assert described["HyperParameterTuningJobStatus"] == "Failed"
        assert f"column {column}" in described["FailureReason"]
        assert describe(client, "well")["HyperParameterTuningJobStatus"] == "InProgress"


@pytest.mark.parametrize(
    ("column", "value"), [("request", "{"), ("request", "{}"), ("pid", "x"), ("transitions", "")]
)
def test_a_damaged_training_job_of_its_own_is_set_aside(tmp_path: Path, column: str, value: str) -> None:
    state_with_jobs(tmp_path)
    damage(tmp_path, f"UPDATE training_jobs SET {column} = ? WHERE name = 'alone'", value)
    with server_on(tmp_path) as (server, client):
        assert describe(client, "well")["HyperParameterTuningJobStatus"] == "InProgress"
        assert "alone" in server.log
        client.list_training_jobs()


def test_the_time_of_a_damaged_row_does_not_count(tmp_path: Path) -> None:
    state_with_jobs(tmp_path)
    damage(tmp_path, "UPDATE tuning_jobs SET modified_ms = 'x' WHERE name = 'ended'")
    damage(tmp_path, "INSERT OR REPLACE INTO meta VALUES ('last_seen_ms', 'x')")
    with server_on(tmp_path) as (_, client):
        assert describe(client, "well")["HyperParameterTuningJobStatus"] == "InProgress"


@pytest.mark.parametrize("how", ["truncated", "overwritten", "empty-page", "text"])
def test_a_damaged_database_is_told_as_what_it_is(tmp_path: Path, how: str) -> None:
    store = Store(tmp_path)
    with store.transaction():
        for number in range(300):
            store.set_tags(f"arn-{number}", {"key": "v" * 200})
    store.close()
    database = tmp_path / DATABASE
    content = database.read_bytes()
    database.write_bytes(
        {
            "truncated": content[: len(content) // 2],
            "overwritten": content[:4096] + b"\x07" * (len(content) - 4096),
            "empty-page": content[:-8192] + bytes(8192),
            "text": b"not a database at all, but long enough to be read as one" * 100,
        }[how]
    )
    with pytest.raises(AmtFieldError) as refused:
        open_state(tmp_path)
    text = str(refused.value)
    assert str(database) in text
    assert "damaged" in text
    assert "restore a backup" in text


def test_a_database_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / DATABASE).mkdir()
    with pytest.raises(AmtFieldError, match="unable to open database file"):
        open_state(tmp_path)
