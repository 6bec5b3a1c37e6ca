"""A disk that is full and gets room again: calls are all or nothing, what has happened is not forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from airflow_amt.local import running
from airflow_amt.local.clock import AmtClock
from airflow_amt.local.engine import Engine, EngineOptions
from airflow_amt.local.images import parse_mappings
from airflow_amt.local.operations import Operations
from airflow_amt.local.protocol import AwsError
from airflow_amt.local.store import StateNotWrittenError, Store
from tests.local.support import (
    IMAGES,
    client_of,
    create_request,
    describe,
    run_to_end,
    training_jobs,
    unique,
    wait_for_end,
    wait_until,
)

pytestmark = pytest.mark.local

REGION = "us-east-1"
PR_SET_CHILD_SUBREAPER = 36


def fill(store: Store) -> None:
    """Let SQLite find the disk full with the next page that it needs."""
    store.commit()
    pages = store._connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    store._connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    # What is free in the pages that are there goes first.
    with contextlib.suppress(StateNotWrittenError):
        for number in range(100_000):
            with store.transaction():
                store.set_tags(f"filler-{number}", {"k": "v" * 50})


def empty(store: Store) -> None:
    store._connection.rollback()
    store._connection.exec_driver_sql("PRAGMA max_page_count=1073741823")


class World:
    """An engine in this process, whose disk can be filled."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder)
        options = EngineOptions(
            state_dir=folder,
            s3_root=folder / "s3",
            images=parse_mappings([f"{image}={command}" for image, command in IMAGES.items()], Path.cwd()),
            environment=dict(os.environ),
            stop_grace=0.3,
        )
        self.engine = Engine(self.store, AmtClock(1.0, last_seen_ms=0), options)
        self.operations = Operations(self.engine)

    def call(self, operation: str, **params: Any) -> Any:
        return self.operations.call(operation, REGION, params)

    def status(self, name: str) -> str:
        described = self.call("DescribeHyperParameterTuningJob", HyperParameterTuningJobName=name)
        status: str = described["HyperParameterTuningJobStatus"]
        return status

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110 - of the state, which tells nobody
                await asyncio.sleep(0.02)


def in_world(folder: Path, play: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        world = World(folder)
        world.engine.start()
        try:
            await play(world)
        finally:
            empty(world.store)
            await world.engine.close()
            world.store.close()

    before = resource.getrlimit(resource.RLIMIT_RTTIME)
    try:
        asyncio.run(run())
    finally:
        # The engine has made this process a server, which adopts orphans and tags its children.
        resource.setrlimit(resource.RLIMIT_RTTIME, before)
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def refused(world: World, operation: str, **params: Any) -> str:
    with pytest.raises(AwsError) as refusal:
        world.call(operation, **params)
    assert (refusal.value.code, refusal.value.status) == ("ServiceUnavailable", 503)
    assert "full" in refusal.value.message
    assert "Free some space" in refusal.value.message
    return refusal.value.message


LARGE = {"static": {f"note-{number}": "x" * 2500 for number in range(20)}}


def test_a_call_that_the_disk_refuses_leaves_nothing(tmp_path: Path) -> None:
    async def play(world: World) -> None:
        request = create_request("all-or-nothing", tags={"owner": "me"}, **LARGE)  # type: ignore[arg-type]
        arn = f"arn:aws:sagemaker:{REGION}:000000000000:hyper-parameter-tuning-job/all-or-nothing"
        fill(world.store)

        refused(world, "CreateHyperParameterTuningJob", **request)

        assert world.store.tuning_job(REGION, "all-or-nothing") is None
        assert world.store.tags_of(arn) == {}
        assert world.engine.trainings == {}
        assert world.call("ListHyperParameterTuningJobs")["HyperParameterTuningJobSummaries"] == []

        empty(world.store)
        world.call("CreateHyperParameterTuningJob", **request)
        assert world.store.tags_of(arn) == {"owner": "me"}
        await world.until(lambda: world.status("all-or-nothing") == "Completed")

    in_world(tmp_path, play)


def test_tags_and_training_jobs_are_all_or_nothing_too(tmp_path: Path) -> None:
    async def play(world: World) -> None:
        world.call("CreateHyperParameterTuningJob", **create_request("tagged", most=1, tags={"a": "1"}))
        await world.until(lambda: world.status("tagged") == "Completed")
        arn = world.store.tuning_job(REGION, "tagged")["arn"]  # type: ignore[index]
        fill(world.store)
        many = [{"Key": f"key-{number}", "Value": "v" * 250} for number in range(45)]
        refused(world, "AddTags", ResourceArn=arn, Tags=many)
        assert world.store.tags_of(arn) == {"a": "1"}
        definition = create_request(**LARGE)["TrainingJobDefinition"]  # type: ignore[arg-type]
        own = {key: value for key, value in definition.items() if key != "StaticHyperParameters"}
        own |= {"TrainingJobName": "alone", "HyperParameters": definition["StaticHyperParameters"]}
        refused(world, "CreateTrainingJob", **own)
        assert world.store.training_job(REGION, "alone") is None
        assert world.engine.trainings == {}

        empty(world.store)
        world.call("AddTags", ResourceArn=arn, Tags=many)
        assert len(world.store.tags_of(arn)) == 46
        world.call("CreateTrainingJob", **own)
        await world.until(lambda: world.engine.trainings == {})

    in_world(tmp_path, play)


def test_what_ends_while_the_disk_is_full_is_written_when_there_is_room(tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    async def play(world: World) -> None:
        world.engine.options.images["gated:1"] = [  # type: ignore[index]
            "sh", "-c", f"while [ ! -e {gate} ]; do sleep 0.05; done; echo objective=0.5", "x",
        ]  # fmt: skip
        request = create_request("ends", image="gated:1", most=4, parallel=2)
        world.call("CreateHyperParameterTuningJob", **request)
        await world.until(lambda: len(world.engine.trainings) == 2)
        await world.until(lambda: all(one.process for one in world.engine.trainings.values()))
        # Rows that grow do not find room in their pages, by a statement or by its commit.
        fill(world.store)
        break_writes(world.store)
        gate.touch()

        await world.until(lambda: world.engine.trainings == {})
        described = world.call("DescribeHyperParameterTuningJob", HyperParameterTuningJobName="ends")
        assert described["TrainingJobStatusCounters"]["Completed"] == 2
        assert described["HyperParameterTuningJobStatus"] == "InProgress", "nothing is launched unrecorded"
        assert world.store.is_behind

        mend_writes(world.store)
        empty(world.store)
        await world.until(lambda: world.status("ends") == "Completed")
        assert not world.store.is_behind

    in_world(tmp_path / "state", play)

    again = Store(tmp_path / "state")
    row = again.tuning_job(REGION, "ends")
    assert row is not None
    assert (row["status"], row["training_completed"], row["training_in_progress"]) == ("Completed", 4, 0)
    assert {job["status"] for job in again.training_jobs_of(row["id"])} == {"Completed"}
    again.close()


def break_writes(store: Store) -> None:
    """Let every statement that writes fail as on a full disk."""
    store.commit()
    store._connection.exec_driver_sql("PRAGMA query_only=ON")
    store._connection.rollback()


def mend_writes(store: Store) -> None:
    store._connection.rollback()
    store._connection.exec_driver_sql("PRAGMA query_only=OFF")
    store._connection.rollback()


def test_a_stop_and_a_time_limit_work_while_the_disk_is_full(tmp_path: Path) -> None:
    async def play(world: World) -> None:
        for name in ("stopped", "own"):
            request = create_request(name, sequence="hang", most=5)
            world.call("CreateHyperParameterTuningJob", **request)
        await world.until(lambda: len(world.engine.trainings) == 2)
        await world.until(lambda: all(one.process for one in world.engine.trainings.values()))
        break_writes(world.store)

        world.call("StopHyperParameterTuningJob", HyperParameterTuningJobName="stopped")
        await world.until(lambda: world.status("stopped") == "Stopped")
        assert world.status("own") == "InProgress"

        mend_writes(world.store)
        world.call("StopHyperParameterTuningJob", HyperParameterTuningJobName="own")
        await world.until(lambda: world.status("own") == "Stopped")

    in_world(tmp_path, play)


def test_a_statement_that_fails_by_itself_is_not_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(OverflowError):
        store.update_tuning_job(1, {"seed": 2**70})
    store.set_meta("key", "value")
    break_writes(store)
    store.set_meta("key", "other")
    store.commit()
    assert store.is_behind
    mend_writes(store)
    store.commit(at_once=True)
    assert (store.is_behind, store.get_meta("key")) == (False, "other")
    store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m,mode=0700", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_real_disk_that_was_full_suffices_again(small_disk: Path) -> None:
    with running(small_disk / "state", images=IMAGES, clock_rate=200) as server, client_of(server) as client:
        assert (
            run_to_end(client, create_request(unique(), most=1))["HyperParameterTuningJobStatus"]
            == "Completed"
        )
        going_on = unique("going-on")
        client.create_hyper_parameter_tuning_job(**create_request(going_on, seconds="0.2", most=200))
        filler = small_disk / "filler"
        descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT)
        with contextlib.suppress(OSError):
            while True:
                os.write(descriptor, b"x" * 4096)
        os.close(descriptor)

        def error() -> str | None:
            try:
                client.create_hyper_parameter_tuning_job(**create_request(unique("full"), most=1))
            except ClientError as refusal:
                return str(refusal.response["Error"]["Code"])
            return None

        wait_until(lambda: error() == "ServiceUnavailable", "the refusal")
        describe(client, going_on)
        assert server.is_running

        filler.unlink()
        shutil.rmtree(small_disk / "state" / "training-jobs", ignore_errors=True)
        wait_until(lambda: error() is None, "calls that are carried out again")
        client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=going_on)
        ended = wait_for_end(client, going_on)
        counters = ended["TrainingJobStatusCounters"]
        listed = training_jobs(client, going_on)
        assert len(listed) == sum(counters.values())
        assert counters["InProgress"] == 0
        assert "This is a bug" not in server.log
