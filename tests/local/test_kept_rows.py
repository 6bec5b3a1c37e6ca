"""Rows that the store keeps in memory: never older than the database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from airflow_amt.local import store as module
from airflow_amt.local.store import Row, Snapshot, Store, derived, tuning_jobs

REGION = "eu-west-1"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path)
    yield opened
    opened.close()


def add(store: Store, name: str, **changes: Any) -> int:
    """Add a tuning job; columns without a default get what fits their type."""
    values: dict[str, Any] = {}
    for column in tuning_jobs.columns:
        if column.primary_key or column.nullable or column.default is not None:
            continue
        is_text = isinstance(column.type, sa.String)
        values[column.name] = "x" if is_text else {} if isinstance(column.type, sa.JSON) else False
    values["definitions"] = []
    fixed = {"region": REGION, "name": name, "name_key": name.lower(), "created_ms": 1, "modified_ms": 1}
    return store.insert_tuning_job({**values, **fixed, "status": "InProgress", **changes})


def status(store: Store, name: str) -> str | None:
    row = store.tuning_job(REGION, name)
    return None if row is None else row["status"]


def page(store: Store, limit: int = 10) -> list[str]:
    rows = store.list_tuning_jobs([tuning_jobs.c.region == REGION], [tuning_jobs.c.name.asc()], limit)
    return [f"{row['name']} {row['status']}" for row in rows]


def test_a_row_is_read_once_until_it_changes(store: Store) -> None:
    job = add(store, "Churn")

    first = store.tuning_job(REGION, "churn")
    assert store.tuning_job(REGION, "CHURN") is first
    assert store.tuning_job_by_id(job) is first
    store.update_tuning_job(job, {"status": "Stopped"})

    assert status(store, "churn") == "Stopped"
    assert store.tuning_job_by_id(job)["status"] == "Stopped"
    assert first is not None
    assert first["status"] == "InProgress"


def test_a_change_of_one_row_leaves_the_others(store: Store) -> None:
    job = add(store, "a")
    add(store, "b")
    other = store.tuning_job(REGION, "b")
    assert page(store) == ["a InProgress", "b InProgress"]

    store.update_tuning_job(job, {"status": "Failed"})

    assert page(store) == ["a Failed", "b InProgress"]
    assert store.tuning_job(REGION, "b") is other


def test_statements_that_name_no_row_are_noticed_too(store: Store) -> None:
    add(store, "a")
    add(store, "b")
    page(store)

    store._connection.execute(sa.update(tuning_jobs).values(status="Completed"))
    assert page(store) == ["a Completed", "b Completed"]

    store._connection.execute(sa.delete(tuning_jobs).where(tuning_jobs.c.name == "a"))
    assert status(store, "a") is None
    assert page(store) == ["b Completed"]


def test_a_rollback_is_noticed(store: Store) -> None:
    job = add(store, "a")
    store.commit()
    store.update_tuning_job(job, {"status": "Failed"})
    assert status(store, "a") == "Failed"

    store._connection.rollback()

    assert status(store, "a") == "InProgress"


def test_a_name_that_is_given_free_finds_nothing(store: Store) -> None:
    job = add(store, "a")
    assert status(store, "a") == "InProgress"

    store.update_tuning_job(job, {"name_key": f"{job}/a"})

    assert store.tuning_job_by_id(job)["name"] == "a"
    assert status(store, "a") is None
    again = add(store, "a", status="Completed", arn="y")
    assert again != job
    assert status(store, "a") == "Completed"


def test_no_more_rows_are_kept_than_allowed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT_ROWS", 3)
    names = [f"job-{number}" for number in range(6)]
    for name in names:
        add(store, name)
    # A page that is larger than what is kept is whole and in order all the same.
    assert page(store) == [f"{name} InProgress" for name in names]

    latest = store.tuning_job(REGION, "job-5")
    for name in names[3:]:
        status(store, name)

    assert store.tuning_job(REGION, "job-5") is latest
    assert len(store._kept["tuning_jobs"]._rows) == 3
    assert len(store._kept["tuning_jobs"]._ids) == 3


def test_what_is_derived_from_a_row_lives_as_long_as_the_row(store: Store) -> None:
    job = add(store, "a")
    made: list[str] = []

    def make(row: Row) -> str:
        made.append(row["status"])
        return f"made of {row['status']}"

    for _ in range(2):
        assert derived(store.tuning_job_by_id(job), "text", make) == "made of InProgress"
    store.update_tuning_job(job, {"status": "Stopped"})

    assert derived(store.tuning_job_by_id(job), "text", make) == "made of Stopped"
    assert made == ["InProgress", "Stopped"]
    assert derived({"status": "a plain mapping"}, "text", make) == "made of a plain mapping"


def test_a_snapshot_stays_as_it_was(store: Store) -> None:
    job = add(store, "a")
    snapshot = Snapshot(store)
    try:
        store.update_tuning_job(job, {"status": "Stopped"})
        add(store, "b")
        store.commit()

        assert page(snapshot) == ["a InProgress"]
        assert page(store) == ["a Stopped", "b InProgress"]
        with pytest.raises(sa.exc.OperationalError, match="readonly"):
            snapshot.update_tuning_job(job, {"status": "Failed"})
    finally:
        snapshot.close()
    assert status(store, "a") == "Stopped"
