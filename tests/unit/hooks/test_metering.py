"""Calls to AWS are kept below a rate, each attempt of them, for all clients of a connection and region."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import boto3
import pytest
from botocore.config import Config

from airflow_amt.exceptions import AmtThrottledError
from airflow_amt.hooks.errors import from_client_error
from airflow_amt.hooks.metering import Meter, meter_of
from tests.unit.tasks import FakeHook


class Clock:
    """A clock that only waiting moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


def meter(rate: float = 2.0, burst: float = 1.0) -> tuple[Meter, Clock]:
    clock = Clock()
    return Meter(rate, burst, clock=lambda: clock.now, sleep=clock.sleep), clock


def client(answers: list[tuple[int, bytes]], *, mode: str = "legacy") -> Any:
    """A real client whose requests are answered here, before any connection is made."""
    made = boto3.session.Session().client(
        "sagemaker",
        region_name="eu-west-1",
        aws_access_key_id="any",
        aws_secret_access_key="any",
        config=Config(retries={"mode": mode, "max_attempts": 3}),
    )

    class Answer:
        def __init__(self, status: int, content: bytes) -> None:
            self.status_code, self.content = status, content
            self.headers = {"content-type": "application/x-amz-json-1.1"}
            self.text = content.decode()

    def answer(**_: Any) -> Any:
        status, content = answers.pop(0) if len(answers) > 1 else answers[0]
        return Answer(status, content)

    made.meta.events.register_last("before-send.sagemaker", answer)
    return made


OK = (200, b'{"HyperParameterTuningJobSummaries": []}')
THROTTLED = (400, b'{"__type": "ThrottlingException", "message": "Rate exceeded"}')
INVALID = (400, b'{"__type": "ValidationException", "message": "no"}')


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _: None)


def test_reads_wait_for_their_turn() -> None:
    metered, clock = meter()
    sagemaker = client([OK])
    metered.attach(sagemaker)
    metered.attach(sagemaker)
    for _ in range(4):
        sagemaker.list_hyper_parameter_tuning_jobs()
    assert clock.waits == [0.5, 0.5, 0.5]
    assert metered.calls == 4
    assert metered.wait() == 0.5


def test_a_stop_and_its_record_do_not_wait_but_count() -> None:
    metered, clock = meter()
    sagemaker = client([(200, b"{}")])
    metered.attach(sagemaker)
    for _ in range(3):
        sagemaker.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName="a")
    sagemaker.add_tags(ResourceArn="arn:aws:sagemaker:eu-west-1:000000000000:x/y", Tags=[])
    assert clock.waits == []
    assert metered.wait() == pytest.approx(1.0)


def test_thousands_of_stops_do_not_end_the_reading() -> None:
    metered, _ = meter(rate=5.0, burst=10.0)
    sagemaker = client([(200, b"{}")])
    metered.attach(sagemaker)
    for _ in range(200):
        sagemaker.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName="a")
    assert metered.wait() == pytest.approx(11 / 5)


@pytest.mark.parametrize("mode", ["legacy", "standard"])
def test_each_attempt_of_botocore_counts_and_throttles_slow_down(mode: str) -> None:
    metered, clock = meter(rate=10.0, burst=10.0)
    sagemaker = client([THROTTLED, THROTTLED, OK], mode=mode)
    metered.attach(sagemaker)
    sagemaker.list_hyper_parameter_tuning_jobs()
    assert (metered.calls, metered.throttles) == (3, 2)
    assert metered.rate < 10
    assert clock.waits  # what was saved up is gone


def test_another_400_is_no_throttle() -> None:
    metered, _ = meter(rate=10.0, burst=10.0)
    sagemaker = client([INVALID])
    metered.attach(sagemaker)
    with pytest.raises(sagemaker.exceptions.ClientError) as caught:
        sagemaker.list_hyper_parameter_tuning_jobs()
    assert not isinstance(from_client_error("List", caught.value), AmtThrottledError)
    assert (metered.throttles, metered.rate) == (0, 10.0)


def test_hooks_of_one_connection_and_region_share_a_meter_as_long_as_somebody_uses_it() -> None:
    def share() -> weakref.ref[Meter]:
        first, second, other = (FakeHook(aws_conn_id=name) for name in ("mine", "mine", "other"))
        shared = meter_of(first, 5, 10)  # type: ignore[arg-type]
        same = meter_of(second, 1, 1)  # type: ignore[arg-type]
        another = meter_of(other, 5, 10)  # type: ignore[arg-type]
        second.conn.meta.region_name = "us-east-1"
        elsewhere = meter_of(second, 5, 10)  # type: ignore[arg-type]
        assert same is shared
        assert shared not in (another, elsewhere)
        return weakref.ref(shared)

    unused = share()
    gc.collect()
    assert unused() is None


def test_threads_together_keep_to_the_rate() -> None:
    metered = Meter(200.0, 1.0)
    sagemaker = client([OK])
    metered.attach(sagemaker)

    def call() -> None:
        for _ in range(10):
            sagemaker.list_hyper_parameter_tuning_jobs()

    threads = [threading.Thread(target=call) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert metered.calls == 40
