"""The request log: what was asked for, what came of it, and that it is there before the answer."""

from __future__ import annotations

import contextlib
import http.client
import logging
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError

from airflow_amt.cli.main import main
from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local import RunningServer, running
from airflow_amt.local.request_log import Call, RequestLog, read, tuning_job_of
from tests.local.support import CLOCK_RATE, IMAGES, client_of, create_request, describe

CREATE = "CreateHyperParameterTuningJob"
DESCRIBE = "DescribeHyperParameterTuningJob"


@pytest.mark.local
def test_has_each_call_and_what_came_of_it(tmp_path: Path) -> None:
    log = tmp_path / "requests.jsonl"
    began, began_at = time.monotonic(), datetime.now(UTC)
    with (
        running(tmp_path / "state", clock_rate=CLOCK_RATE, images=IMAGES, request_log=log) as amt,
        client_of(amt, user_agent_extra="the-test") as client,
    ):
        assert amt.requests() == []

        arn = client.create_hyper_parameter_tuning_job(**create_request("one"))["HyperParameterTuningJobArn"]
        client.list_tags(ResourceArn=arn)
        with pytest.raises(ClientError):
            describe(client, "other")
        client.list_hyper_parameter_tuning_jobs()
        # Each is there as soon as its answer is.
        calls = amt.requests()

        assert [(one["operation"], one["tuning_job"]) for one in calls] == [
            (CREATE, "one"),
            ("ListTags", "one"),
            (DESCRIBE, "other"),
            ("ListHyperParameterTuningJobs", None),
        ]
        assert [one["status"] for one in calls] == [200, 200, 400, 200]
        assert [one["error"] for one in calls] == [None, None, "ResourceNotFound", None]
        assert [one["carried_out"] for one in calls] == [True, True, False, True]
        assert {one["region"] for one in calls} == {"us-east-1"}
        assert all(one["faults"] == [] and "the-test" in one["user_agent"] for one in calls)
        moments = [one["monotonic"] for one in calls]
        assert moments == sorted(moments)
        assert began < moments[0] <= moments[-1] < time.monotonic()
        assert all(0 <= one["seconds"] < 60 for one in calls)
        stamps = [datetime.fromisoformat(one["time"]) for one in calls]
        assert began_at < stamps[0] < datetime.now(UTC)
        assert stamps[0].utcoffset() == timedelta(0)


@pytest.mark.local
def test_tells_a_lost_answer_from_a_call_that_was_not_carried_out(tmp_path: Path) -> None:
    with (
        running(
            tmp_path / "state", clock_rate=CLOCK_RATE, images=IMAGES, request_log=tmp_path / "log"
        ) as amt,
        client_of(amt) as client,
    ):
        amt.set_faults({"rules": [{"kind": "drop", "operations": [CREATE]}]})
        with pytest.raises(ConnectionClosedError):
            client.create_hyper_parameter_tuning_job(**create_request("one"))
        amt.set_faults({"rules": [{"kind": "drop", "operations": [CREATE], "when": "after"}]})
        with pytest.raises(ConnectionClosedError):
            client.create_hyper_parameter_tuning_job(**create_request("one"))
        amt.set_faults(
            {
                "rules": [
                    {"kind": "latency", "seconds": 0.05},
                    {"kind": "error", "code": "ServiceUnavailable", "when": "after"},
                ]
            }
        )
        with pytest.raises(ClientError):
            describe(client, "one")
        amt.set_faults({"rules": [{"kind": "throttle", "rate": 0.001}]})
        describe(client, "one")
        with pytest.raises(ClientError):
            describe(client, "one")

        assert [
            (one["carried_out"], one["status"], one["error"], one["faults"]) for one in amt.requests()
        ] == [
            (False, None, None, ["drop"]),
            (True, None, None, ["drop"]),
            (True, 503, "ServiceUnavailable", ["latency", "error"]),
            (True, 200, None, []),
            (False, 400, "ThrottlingException", ["throttle"]),
        ]
        assert amt.requests()[2]["seconds"] >= 0.05


@pytest.mark.local
def test_has_requests_that_cannot_be_read_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running(tmp_path / "state", request_log=log) as amt:
        for target, body in (
            ("Nonsense", b"{}"),
            ("SageMaker.ListTags", b"{"),
            (f"SageMaker.{DESCRIBE}", b"[]"),
        ):
            _post(amt, target, body)
    with running(tmp_path / "state", request_log=log) as amt:
        _post(amt, "SageMaker.ListHyperParameterTuningJobs", b"{}")

        assert [(one["operation"], one["error"]) for one in amt.requests()] == [
            ("unknown", "UnknownOperationException"),
            ("ListTags", "SerializationException"),
            (DESCRIBE, "SerializationException"),
            ("ListHyperParameterTuningJobs", None),
        ]


def _post(amt: RunningServer, target: str, body: bytes) -> None:
    connection = http.client.HTTPConnection(urlsplit(amt.endpoint).netloc, timeout=20)
    with contextlib.closing(connection):
        connection.request(
            "POST", "/", body=body, headers=amt.signed("POST", "/", body, {"X-Amz-Target": target})
        )
        connection.getresponse().read()


@pytest.mark.local
def test_is_not_kept_unless_asked_for(tmp_path: Path) -> None:
    with running(tmp_path / "state") as amt, pytest.raises(AmtFieldError, match="request_log"):
        amt.requests()


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"HyperParameterTuningJobName": "one"}', "one"),
        (
            b'{"ResourceArn": "arn:aws:sagemaker:eu-west-1:000000000000:hyper-parameter-tuning-job/one"}',
            "one",
        ),
        (b'{"ResourceArn": "arn:aws:sagemaker:eu-west-1:000000000000:training-job/one"}', None),
        (b'{"HyperParameterTuningJobName": 7}', None),
        (b'{"ResourceArn": null}', None),
        (b"[]", None),
        (b"\xff", None),
        (b"[" * 100_000, None),
    ],
)
def test_the_tuning_job_is_taken_from_name_or_arn(body: bytes, name: str | None) -> None:
    assert tuning_job_of(body) == name


def test_a_line_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "log"
    log = RequestLog(file)
    log.write(Call(user_agent=None, operation="ListTags"))
    log.close()
    with file.open("ab") as half:
        half.write(b'{"time": "2026')

    assert [one["operation"] for one in read(file)] == ["ListTags"]
    assert read(tmp_path / "none") == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_said_in_the_servers_log(caplog: pytest.LogCaptureFixture) -> None:
    log = RequestLog(Path("/dev/full"))
    with caplog.at_level(logging.ERROR):
        log.write(Call(user_agent=None, operation="ListTags"))
    log.close()

    assert "The request log lacks" in caplog.text
    assert "ListTags" in caplog.text


def test_a_file_that_cannot_be_written_starts_no_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["local", "serve", "--state-dir", str(tmp_path / "state")]
    assert main([*arguments, "--request-log", str(tmp_path)]) == 2

    assert "request-log" in capsys.readouterr().err
