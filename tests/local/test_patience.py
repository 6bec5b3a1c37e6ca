"""Several calls in one, where some fail: just those are made again."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from airflow_amt.exceptions import AmtAwsError
from airflow_amt.hooks.tuning import AmtHook
from airflow_amt.local import RunningServer
from airflow_amt.watch.polling import patiently
from tests.local.support import create_request, describe, run_to_end, shared_server, unique
from tests.unit.tasks import loud_log

pytestmark = pytest.mark.local

REGION = "eu-west-1"
#: Counts the calls: applied to each, before any other rule, and too short to notice.
COUNTER = {"kind": "latency", "seconds": 1e-9}
EVERY_SECOND = {"kind": "error", "every": 2}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with shared_server(tmp_path_factory.mktemp("patience")) as running:
        yield running
        running.set_faults(None)


@pytest.fixture
def hook(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[AmtHook]:
    """A hook whose botocore tries once, so that all patience is ours."""
    server.set_faults(None)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", server.connection(REGION))
    hook = AmtHook(config={"retries": {"total_max_attempts": 1}})
    yield hook
    hook.close()


@pytest.fixture
def no_collection() -> Iterator[None]:
    """What nothing refers to is freed, and nothing else is."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def connections(server: RunningServer) -> int:
    port = urlsplit(server.endpoint).port
    links = psutil.Process().net_connections("tcp")
    return sum(bool(one.raddr) and one.raddr.port == port for one in links)


@pytest.mark.usefixtures("no_collection")
def test_a_hook_that_is_closed_leaves_no_connection_whatever_failed_before(
    server: RunningServer, hook: AmtHook, ended: str
) -> None:
    with ThreadPoolExecutor(4) as threads:

        def call(_: int) -> bool:
            try:
                hook.describe_tuning_job(ended)
            except AmtAwsError:
                return False
            return True

        server.set_faults({"rules": [{"kind": "drop", "when": "after", "every": 3}]})
        assert set(threads.map(call, range(24))) == {True, False}
        server.set_faults(None)
        assert set(threads.map(call, range(8))) == {True}
        assert connections(server) > 0
        hook.close()
        assert connections(server) == 0
        assert call(0)
        hook.close()
    assert connections(server) == 0


@pytest.fixture(scope="module")
def ended(server: RunningServer) -> str:
    client = server.client(REGION)
    name = unique("patience")
    run_to_end(client, create_request(name, sequence="0.5", most=2))
    client.close()
    return name


def test_an_outcome_takes_one_more_call_for_each_that_failed(
    server: RunningServer, hook: AmtHook, ended: str
) -> None:
    """If all were read anew, a fault of every second call would never let it end."""
    waits: list[float] = []
    server.set_faults({"rules": [COUNTER, EVERY_SECOND]})
    outcome = patiently(lambda: hook.outcome(ended), interval_seconds=1, log=loud_log(), sleep=waits.append)
    assert outcome.reason.value == "max_training_jobs"
    calls, failed = server.faults()["applied"]
    assert (calls, failed) == (5, 2)  # a Describe, and twice for tags and training jobs
    assert waits == [1, 1]  # each success starts anew


def test_without_patience_each_call_is_made_once(server: RunningServer, hook: AmtHook, ended: str) -> None:
    server.set_faults({"rules": [COUNTER, {"kind": "error", "first": 1}]})
    with pytest.raises(AmtAwsError):
        hook.outcome(ended)
    assert server.faults()["applied"] == [1, 1]


def test_pages_that_came_are_not_read_again(
    server: RunningServer, hook: AmtHook, ended: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_amt.hooks.tuning._PAGE", 1)
    server.set_faults({"rules": [COUNTER, EVERY_SECOND]})
    found: list[Any] = patiently(
        lambda: list(hook.list_training_jobs(ended)), interval_seconds=1, log=loud_log(), sleep=lambda _: None
    )
    assert len({one["TrainingJobName"] for one in found}) == len(found) == 2
    calls, failed = server.faults()["applied"]
    assert calls - failed in (2, 3)  # two pages of one; an empty one may follow


def test_a_stop_is_made_though_its_tags_are_refused(
    server: RunningServer, hook: AmtHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For its record half a minute is borne, and nothing of the patience of the task that stops."""
    waits: list[float] = []
    slept: list[float] = []
    monkeypatch.setattr("airflow_amt.hooks.patience._WAITS", (0.1, 0.2))
    with closing(server.client(REGION)) as client:
        name = unique("patience")
        client.create_hyper_parameter_tuning_job(**create_request(name, sequence="hang"))
        server.set_faults({"rules": [{"kind": "error", "operations": ["AddTags"]}]})

        def stop() -> bool:
            began = time.monotonic()
            stopped = hook.stop_tuning_job(name, stopped_by="policy")
            slept.append(time.monotonic() - began)
            return stopped

        assert patiently(stop, interval_seconds=1, log=loud_log(), sleep=waits.append)
        assert server.faults()["applied"] == [4]  # the intent once, the record three times
        assert waits == []
        assert slept[0] >= 0.3
        assert describe(client, name)["HyperParameterTuningJobStatus"] in ("Stopping", "Stopped")


def test_without_patience_the_record_is_tried_once(server: RunningServer, hook: AmtHook) -> None:
    """Whoever has seconds, as ``on_kill`` has, does not spend them on a tag."""
    with closing(server.client(REGION)) as client:
        name = unique("patience")
        client.create_hyper_parameter_tuning_job(**create_request(name, sequence="hang"))
        server.set_faults({"rules": [{"kind": "error", "operations": ["AddTags"]}]})
        assert hook.stop_tuning_job(name, stopped_by="on_kill")
        assert server.faults()["applied"] == [2]


def test_patience_ends_with_the_error(
    server: RunningServer, hook: AmtHook, ended: str, tmp_path: Path
) -> None:
    waits: list[float] = []
    server.set_faults({"rules": [COUNTER, {"kind": "error", "operations": ["ListTags"]}]})
    with pytest.raises(AmtAwsError):
        patiently(lambda: hook.outcome(ended), interval_seconds=1, log=loud_log(), sleep=waits.append)
    assert server.faults()["applied"] == [21, 20]  # the Describe once
    assert len(waits) == 19
