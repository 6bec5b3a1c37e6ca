"""What hangs or takes long (downloads, logs, regular expressions) holds up nothing else."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from airflow_amt.local.launcher import running, start
from airflow_amt.local.metrics import LogFollower, Metric, read_final_metrics
from tests.local.support import (
    GOING_ON,
    IMAGES,
    METRICS,
    client_of,
    create_request,
    describe,
    training_jobs,
    training_processes,
    wait_for_end,
    wait_until,
)
from tests.local.test_training_jobs import training_request, wait_for_training


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """Give the address of an S3 server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def channel() -> list[dict[str, Any]]:
    source = {"S3DataType": "S3Prefix", "S3Uri": "s3://silent/data"}
    return [{"ChannelName": "train", "DataSource": {"S3DataSource": source}}]


@pytest.mark.local
def test_downloads_that_hang_hold_up_neither_others_nor_a_stop_nor_the_end(tmp_path: Path) -> None:
    with silent_server() as silent:
        server = start(tmp_path, images=IMAGES, options=("--s3-endpoint", silent, "--stop-grace", "0.3"))
        with client_of(server) as client:
            hanging = create_request("hanging", most=20, parallel=20, InputDataConfig=channel())
            client.create_hyper_parameter_tuning_job(**hanging)
            wait_until(lambda: len(training_jobs(client, "hanging")) == 20, "20 downloads")
            other = training_request(sequence="fail")
            client.create_training_job(**other)
            failed = wait_for_training(client, other["TrainingJobName"])
            client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName="hanging")
            stopped = wait_for_end(client, "hanging", 20)
            statuses = {job["TrainingJobStatus"] for job in training_jobs(client, "hanging")}
            client.create_training_job(**training_request(InputDataConfig=channel()))
        began = time.monotonic()
        assert server.stop() == 0
        took = time.monotonic() - began

    assert failed["TrainingJobStatus"] == "Failed"
    assert stopped["HyperParameterTuningJobStatus"] == "Stopped"
    assert statuses == {"Stopped"}
    # A download alone would take a minute to give up, and is tried again.
    assert took < 25


@pytest.mark.local
def test_a_download_that_the_end_of_the_server_interrupts_has_its_attempts_left(tmp_path: Path) -> None:
    request = training_request(InputDataConfig=channel(), RetryStrategy={"MaximumRetryAttempts": 2})
    name = request["TrainingJobName"]
    phases: list[str] = []
    with silent_server() as silent:
        for _ in range(2):
            server = start(tmp_path, images=IMAGES, options=("--s3-endpoint", silent))
            with client_of(server) as client:
                if not phases:
                    client.create_training_job(**request)
                found = client.describe_training_job(TrainingJobName=name)
            assert server.stop() == 0
            assert found["TrainingJobStatus"] == "InProgress"
            phases = [phase["Status"] for phase in found["SecondaryStatusTransitions"]]

    assert phases == ["Starting", "Downloading", "Restarting"]


@pytest.mark.local
def test_a_training_job_that_is_stopped_before_its_input_is_there_is_stopped(client: Any) -> None:
    """Its channel does not exist; that is found out after the stop, and matters no more."""
    request = training_request(InputDataConfig=channel())
    client.create_training_job(**request)
    with contextlib.suppress(ClientError):  # it may have failed by then
        client.stop_training_job(TrainingJobName=request["TrainingJobName"])
        ended = wait_for_training(client, request["TrainingJobName"])
        assert ended["TrainingJobStatus"] == "Stopped"


@pytest.mark.local
def test_the_end_of_a_log_of_sixty_million_bytes_is_soon_searched(client: Any) -> None:
    request = create_request(image="yes:1", most=1)
    client.create_hyper_parameter_tuning_job(**request)
    name = request["HyperParameterTuningJobName"]
    ended = wait_for_end(client, name, 60)

    assert ended["BestTrainingJob"]["FinalHyperParameterTuningJobObjectiveMetric"]["Value"] == 0.5


@pytest.mark.local
def test_a_slow_regular_expression_on_long_lines_does_not_block_the_server(client: Any) -> None:
    slow = [{"Name": "objective", "Regex": ".*objective=([0-9.]+).*"}]
    request = training_request(
        AlgorithmSpecification={
            "TrainingImage": "long-lines:1",
            "TrainingInputMode": "File",
            "MetricDefinitions": slow,
        }
    )
    name = request["TrainingJobName"]
    client.create_training_job(**request)
    time.sleep(1)
    answered: list[float] = []

    def ask() -> None:
        began = time.monotonic()
        client.describe_training_job(TrainingJobName=name)
        answered.append(time.monotonic() - began)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(30)
    client.stop_training_job(TrainingJobName=name)
    wait_for_training(client, name)
    # It was 6.6 s with lines of 16 kB; generous, as the machine may be busy.
    assert answered
    assert answered[0] < 5


def test_a_block_without_the_metric_is_passed_over_at_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"objective=0.25\n" + b"y\n" * 10_000_000)
    metric = Metric("objective", r"^objective=(\S+)$")

    assert read_final_metrics(log, {"objective": metric}) == {"objective": 0.25}
    assert LogFollower(log, metric).read_all() == [0.25]


@pytest.mark.parametrize(
    "regex", [r"\Aobjective=(\S+)", r"objective=(\S+)\Z", r"(?<!\n)objective=(\S+)", r"\bobjective=(\S+)"]
)
def test_anchors_are_those_of_a_line(tmp_path: Path, regex: str) -> None:
    log = tmp_path / "log"
    log.write_text("first\nobjective=0.5\nlast\n")

    assert read_final_metrics(log, {"m": Metric("m", regex)}) == {"m": 0.5}


def test_a_named_pipe_in_place_of_the_log_holds_nothing_up(tmp_path: Path) -> None:
    log = tmp_path / "log"
    os.mkfifo(log)
    metric = Metric("objective", r"objective=(\S+)")

    assert read_final_metrics(log, {"objective": metric}) == {}
    assert LogFollower(log, metric).read_all() == []


@pytest.mark.local
def test_no_training_job_is_started_again_when_the_time_limit_has_passed(tmp_path: Path) -> None:
    """Two training jobs are interrupted, one may be retried, and the time limit passes meanwhile."""
    request = create_request("late", sequence="hang", most=4, parallel=2, runtime=120)
    single = request.pop("TrainingJobDefinition")
    config = request["HyperParameterTuningJobConfig"]
    ranges, objective = config.pop("ParameterRanges"), config.pop("HyperParameterTuningJobObjective")
    request["TrainingJobDefinitions"] = [
        {
            **single,
            "DefinitionName": name,
            "TuningObjective": objective,
            "HyperParameterRanges": ranges,
            **({"RetryStrategy": {"MaximumRetryAttempts": 3}} if name == "retried" else {}),
        }
        for name in ("plain", "retried")
    ]
    first = start(tmp_path, images=IMAGES)
    with client_of(first) as client:
        client.create_hyper_parameter_tuning_job(**request)
        wait_until(lambda: len(training_jobs(client, "late")) == 2, "two training jobs")
    first.kill()
    # As if two minutes had passed meanwhile.
    with contextlib.closing(sqlite3.connect(tmp_path / "amt.sqlite3")) as database, database:
        database.execute("UPDATE tuning_jobs SET created_ms = created_ms - 120000")
    second = start(tmp_path, images=IMAGES)
    with client_of(second) as client:
        ended = wait_for_end(client, "late", 20)
        jobs = training_jobs(client, "late")
    assert second.stop() == 0

    assert ended["HyperParameterTuningJobStatus"] in ("Completed", "Failed")
    assert [job["TrainingJobStatus"] for job in jobs] == ["Failed", "Failed"]


SLOW = r"loss=(a|a)+$"


@pytest.mark.local
def test_a_metric_that_takes_too_long_fails_its_training_job_alone(tmp_path: Path) -> None:
    """The server answers all the while: one is followed for early stopping, another described."""
    images = {"slow:1": f"sh -c 'echo loss={'a' * 46}!; echo objective=0.5; sleep $SM_HP_SECONDS'"}
    definitions = [*METRICS, {"Name": "slow", "Regex": SLOW}]
    answered: list[float] = []
    with running(tmp_path, images=images) as server, client_of(server) as client:
        followed = create_request("followed", image="slow:1", most=1, static={"seconds": "2"})
        config = followed["HyperParameterTuningJobConfig"]
        config["HyperParameterTuningJobObjective"]["MetricName"] = "slow"
        config["TrainingJobEarlyStoppingType"] = "Auto"
        described = create_request("described", image="slow:1", most=1, static={"seconds": "600"})
        ending = create_request("ending", image="slow:1", most=1, static={"seconds": "0"})
        for request in (followed, described, ending):
            request["TrainingJobDefinition"]["AlgorithmSpecification"]["MetricDefinitions"] = definitions
            client.create_hyper_parameter_tuning_job(**request)

        def is_over(name: str) -> bool:
            began = time.monotonic()
            client.list_hyper_parameter_tuning_jobs()
            status = describe(client, name)["HyperParameterTuningJobStatus"]
            answered.append(time.monotonic() - began)
            return status not in GOING_ON

        for name in ("followed", "ending"):
            wait_until(partial(is_over, name), f"the end of {name}")
            (training,) = training_jobs(client, name)
            assert training["TrainingJobStatus"] == "Failed"
            assert training["FailureReason"].startswith(
                "ClientError: metric 'slow': its regular expression 'loss="
            )
            assert not training_processes(f"{name}-")
        (training,) = training_jobs(client, "described")
        found: dict[str, Any] = {}
        for _ in range(20):
            found = client.describe_training_job(TrainingJobName=training["TrainingJobName"])
        assert found["TrainingJobStatus"] == "InProgress"
        assert [one["MetricName"] for one in found["FinalMetricDataList"]] == ["objective"]
        assert server.stop() == 0
        assert "Traceback" not in server.log
    # Two searches of 0.2 s at the most hold it up, once each; generous, as the machine may be busy.
    assert max(answered) < 5
