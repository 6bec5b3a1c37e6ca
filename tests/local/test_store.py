"""The clock and the state folder."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local.clock import AmtClock, to_datetime, to_milliseconds
from airflow_amt.local.store import StateFolderInUseError, Store, training_jobs

ROOT = Path(__file__).parents[2]


def tuning_job(name: str = "Name", region: str = "us-east-1", **values: object) -> dict[str, object]:
    return {
        "region": region,
        "name_key": name.lower(),
        "name": name,
        "arn": f"arn:{region}:{name.lower()}",
        "status": "InProgress",
        "strategy": "Random",
        "config": {"a": [1, 2.5, None, "ü"]},
        "definitions": [{}],
        "definition_as_list": False,
        "seed": 1,
        "created_ms": 1000,
        "modified_ms": 1000,
        **values,
    }


def test_the_clock_runs_at_its_rate() -> None:
    clock = AmtClock(1000.0)
    before = time.monotonic()
    began = clock.now_ms()
    middle = time.monotonic()
    time.sleep(0.05)
    least = time.monotonic() - middle
    elapsed = clock.now_ms() - began
    most = time.monotonic() - before

    assert least * 1_000_000 - 1 <= elapsed <= most * 1_000_000 + 1


def test_the_clock_at_rate_one_is_real_time() -> None:
    assert AmtClock().now_ms() == pytest.approx(time.time() * 1000, abs=2000)


def test_the_clock_goes_on_after_what_it_last_saw() -> None:
    ahead = round(time.time() * 1000) + 10_000_000

    assert AmtClock(last_seen_ms=ahead).now_ms() > ahead
    assert AmtClock(last_seen_ms=5).now_ms() > time.time() * 1000 - 1000


def test_a_timer_for_a_moment_finds_it_reached() -> None:
    clock = AmtClock(50.0)
    moment = clock.now_ms() + 3000
    time.sleep(clock.real_seconds_until(moment))

    assert moment <= clock.now_ms() < moment + 100_000
    assert clock.real_seconds_until(moment) == 0
    assert clock.real_seconds(100) == 2


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), 1e9])
def test_rates_that_no_clock_has(rate: float) -> None:
    with pytest.raises(AmtFieldError, match="clock-rate"):
        AmtClock(rate)


def test_milliseconds_survive_the_way_to_a_datetime_and_back() -> None:
    for milliseconds in (0, 1_799_999_999_999, 1_795_000_000_001, 1_795_000_000_123):
        assert to_milliseconds(to_datetime(milliseconds)) == milliseconds
    assert to_datetime(0) == datetime(1970, 1, 1, tzinfo=UTC)


def test_what_is_committed_is_there_after_opening_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    job_id = store.insert_tuning_job(tuning_job())
    store.update_tuning_job(job_id, {"status": "Completed", "modified_ms": 2000})
    store.set_tags("arn", {"b": "1", "a": "2"})
    identity = store.identity
    store.close()

    store = Store(tmp_path)
    row = store.tuning_job("us-east-1", "NAME")
    assert row is not None
    assert (row["id"], row["status"], row["config"]) == (job_id, "Completed", {"a": [1, 2.5, None, "ü"]})
    assert list(store.tags_of("arn").items()) == [("b", "1"), ("a", "2")]
    assert store.last_seen_ms() == 2000
    assert store.identity == identity
    assert store.tuning_job("eu-west-1", "name") is None
    store.close()


def test_names_are_unique_in_a_region_whatever_their_case(tmp_path: Path) -> None:
    store = Store(tmp_path)
    try:
        store.insert_tuning_job(tuning_job("Name"))
        store.insert_tuning_job(tuning_job("Name", "eu-west-1"))
        with pytest.raises(sa.exc.IntegrityError):
            store.insert_tuning_job(tuning_job("nAME"))
    finally:
        store.close()


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    store = Store(tmp_path)
    try:
        with pytest.raises(StateFolderInUseError, match=r"the process with id \d+ uses"):
            Store(tmp_path)
    finally:
        store.close()
    Store(tmp_path).close()


def test_the_lock_goes_with_its_process(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib\n"
        "from airflow_amt.local.store import Store\n"
        "store = Store(pathlib.Path(sys.argv[1]))\n"
        "store.set_meta('seen', 'yes'); store.commit(); store.set_meta('lost', 'yes')\n"
        "os._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False, timeout=60)
    assert done.returncode == 9

    store = Store(tmp_path)
    assert store.get_meta("seen") == "yes"
    assert store.get_meta("lost") is None
    store.close()


def test_a_folder_of_another_layout_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.set_meta("schema", "99")
    store.close()

    with pytest.raises(AmtFieldError, match="layout 99"):
        Store(tmp_path)


def test_unfinished_training_jobs(tmp_path: Path) -> None:
    store = Store(tmp_path)
    job_id = store.insert_tuning_job(tuning_job())
    common = {
        "tuning_job_id": job_id,
        "region": "us-east-1",
        "hyperparameters": {},
        "created_ms": 1,
        "modified_ms": 1,
        "objective_status": "Pending",
        "transitions": [["Starting", 1]],
    }
    for name, status in (("a", "InProgress"), ("b", "Completed"), ("c", "Stopping")):
        store.insert_training_job(
            {**common, "name": name, "name_key": name, "arn": f"arn:{name}", "status": status}
        )

    assert [row["name"] for row in store.unfinished_training_jobs()] == ["a", "c"]
    assert [row["name"] for row in store.training_jobs_of(job_id)] == ["a", "b", "c"]
    found = store.list_training_jobs([training_jobs.c.status == "Completed"], [training_jobs.c.id], 5)
    assert [row["name"] for row in found] == ["b"]
    assert store.count_unfinished("us-east-1") == 1
    store.close()
