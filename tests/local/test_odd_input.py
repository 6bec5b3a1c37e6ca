"""Requests and files that are too large, too deep or no text: refused briefly, on one line of the log."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local import RunningServer, config, json_text, request_log
from airflow_amt.local.faults import LARGEST_SETTING, MOST_RULES, Faults
from airflow_amt.local.images import parse_mappings
from tests.local.raw_http import Request, exchange
from tests.local.support import shared_server

DESCRIBE = {"X-Amz-Target": "SageMaker.DescribeHyperParameterTuningJob"}
CREATE = {"X-Amz-Target": "SageMaker.CreateHyperParameterTuningJob"}
#: A record of the log, or a line that belongs to one.
RECORD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ [a-z_.]+: .*|  \| .*")
FORGED = "2026-01-01 00:00:00,000"
DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with shared_server(tmp_path_factory.mktemp("amt")) as server:
        yield server


def post(server: RunningServer, headers: dict[str, str], body: bytes) -> tuple[int | None, dict[str, Any]]:
    status, content = exchange(server, Request(headers=headers, body=body), 60)
    return status, json.loads(content)


@pytest.mark.local
def test_a_request_with_200000_unknown_keys_gets_a_short_answer(server: RunningServer) -> None:
    before = len(server.log)
    status, answer = post(server, CREATE, json.dumps({f"k{n}": n for n in range(200_000)}).encode())
    assert status == 400
    assert answer["__type"] == "ValidationException"
    assert answer["message"].startswith("more than 20 validation errors detected")
    assert len(answer["message"]) < 30_000
    assert len(server.log) - before < 10_000


@pytest.mark.local
@pytest.mark.parametrize(
    ("body", "told"),
    [
        (DEEP.encode(), "nested too deeply"),
        (b'{"a":' * 50_000, "nested too deeply"),
        (b'{"HyperParameterTuningJobName": ' + b"9" * 5000 + b"}", "4300 digits"),
        (b'{"HyperParameterTuningJobName": "\\ud800"}', "lone surrogate"),
        (b'{"HyperParameterTuningJobName": "\xed\xa0\x80"}', "utf-8"),
        ('{"HyperParameterTuningJobName": "\\ud800"}'.encode("utf-16"), "utf-8"),
        (b'{"HyperParameterTuningJobName": NaN}', "NaN"),
        (b'{"HyperParameterTuningJobName": "a\\u0000"}', r"Value 'a\x00' at"),
        (json.dumps({"HyperParameterTuningJobName": "x" * 1_000_000}).encode(), "more characters)"),
        (json.dumps({"x" * 1_000_000: 1}).encode(), "more characters)"),
    ],
)
def test_odd_json_is_refused_briefly(server: RunningServer, body: bytes, told: str) -> None:
    status, answer = post(server, DESCRIBE, body)
    assert (status, answer["__type"]) in ((400, "SerializationException"), (400, "ValidationException"))
    assert told in answer["message"]
    assert len(answer["message"]) < 5000


@pytest.mark.local
@pytest.mark.parametrize(
    "forged", ["a\n2026-01-01 00:00:00,000 INFO root: forged", "\x1b[2J", "\u2028x", "\x85x"]
)
def test_a_name_forges_no_line_of_the_log(server: RunningServer, forged: str) -> None:
    status, _ = post(server, DESCRIBE, json.dumps({"HyperParameterTuningJobName": forged}).encode())
    assert status == 400
    # What is printed for whoever starts the server is no record.
    lines = [line for line in server.log.splitlines() if not line.startswith("credentials for clients: ")]
    assert [line for line in lines if not RECORD.fullmatch(line)] == []
    assert not any(line.startswith(FORGED) for line in lines)
    assert all(line.isprintable() for line in lines)


@pytest.mark.local
@pytest.mark.parametrize("moment", ["0001-01-01", "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59"])
def test_the_first_and_the_last_time_are_times(server: RunningServer, moment: str) -> None:
    headers = {"X-Amz-Target": "SageMaker.ListTrainingJobs"}
    status, answer = post(server, headers, json.dumps({"CreationTimeAfter": moment}).encode())
    assert (status, answer["TrainingJobSummaries"]) == (200, [])


@pytest.mark.local
def test_faults_are_limited(server: RunningServer) -> None:
    def put(body: bytes) -> tuple[int | None, str]:
        status, content = exchange(server, Request(method="PUT", target="/_amt/faults", body=body), 60)
        return status, content.decode()

    assert put(b" " * LARGEST_SETTING + b"{}")[0] == 400
    status, told = put(json.dumps({"seed": "x" * 60_000}).encode())
    assert status == 400
    assert len(told) < 1000


@pytest.mark.parametrize(
    ("setting", "field"),
    [
        ({"rules": [{"kind": "latency", "seconds": 1}] * (MOST_RULES + 1)}, "faults.rules"),
        ({"rules": [{"kind": "drop", "operations": ["*"] * 101}]}, "faults.rules[0].operations"),
        ({"rules": [{"kind": "latency", "seconds": 10**400}]}, "faults.rules[0].seconds"),
        ({"rules": [{"kind": "latency", "seconds": float("nan")}]}, "faults.rules[0].seconds"),
        ({"rules": [{"kind": "fail_training", "reason": "\ud800"}]}, "faults.rules[0].reason"),
        ({"seed": 10**4000}, "faults.seed"),
    ],
)
def test_odd_faults(setting: dict[str, Any], field: str) -> None:
    with pytest.raises(AmtFieldError) as caught:
        Faults.parse(setting)
    assert caught.value.field == field
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("seed", [DEEP, DEEP[:50_000], '"\\ud800"', "NaN", "9" * 5000])
def test_faults_that_are_no_json(seed: str) -> None:
    with pytest.raises(AmtFieldError, match=r"valid JSON|65536 bytes"):
        Faults.from_text('{"seed": ' + seed + "}")


@pytest.mark.parametrize(
    "text",
    [
        "port = " + "1" * 5000,
        "port = 0x" + "f" * 6000,
        "clock-rate = 0x" + "f" * 6000,
        "port = " + DEEP,
        "[faults]\nseed = 0x" + "f" * 6000,
        'host = "a\\u0000"',
        'state-dir = "a\\u0000"',
        "x" * 2_000_000,
        '[images]\n"a" = "sh \\u0000"',
    ],
    ids=range(9),
)
def test_odd_configuration_files(tmp_path: Path, text: str) -> None:
    file = tmp_path / "amt.toml"
    file.write_text(text)
    with pytest.raises(AmtFieldError) as caught:
        config.settle({}, file, tmp_path)
    assert len(str(caught.value)) < 5000


def test_a_time_in_the_faults_of_a_configuration_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "amt.toml"
    file.write_text("[faults]\nseed = 2026-01-01\n")
    with pytest.raises(AmtFieldError, match=r"faults\.seed: '2026-01-01'"):
        Faults.from_text(config.settle({}, file, tmp_path).faults or "")


def test_odd_images(tmp_path: Path) -> None:
    with pytest.raises(AmtFieldError):
        parse_mappings(["a=sh \0"], tmp_path)
    with pytest.raises(AmtFieldError, match="each image once"):
        parse_mappings(["a=sh", " a =sh"], tmp_path)
    long = "x" * 100_000
    assert parse_mappings([f"a=sh -c {long}"], tmp_path)["a"][1:] == ["-c", long]


def test_json_is_read_strictly() -> None:
    assert json_text.read(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00", "a": 1}') == {"a": 1}
    for bad in (b"\xff", b"[Infinity]", DEEP, '"\ud800"', b"", b"9" * 5000):
        with pytest.raises(ValueError):  # noqa: PT011 - the kind is all that callers rely on
            json_text.read(bad)


def test_lines_of_the_request_log_are_short() -> None:
    call = request_log.Call(user_agent="x" * 60_000)
    call.tuning_job = request_log.tuning_job_of(
        json.dumps({"HyperParameterTuningJobName": "y" * 10**6}).encode()
    )
    entry = json.loads(call.line())
    assert (len(entry["user_agent"]), len(entry["tuning_job"])) == (512, 512)
    assert request_log.tuning_job_of(DEEP.encode()) is None
    assert request_log.tuning_job_of(b'{"ResourceArn": ["a:hyper-parameter-tuning-job/b"]}') is None
