"""Misbehaviour on purpose: what boto3 sees of it, and that nothing else goes wrong."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError

from airflow_amt.cli.main import main
from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local import RunningServer, running
from airflow_amt.local.faults import DropConnectionError, FaultInjector, Faults
from airflow_amt.local.protocol import AwsError
from tests.local.support import (
    CLOCK_RATE,
    IMAGES,
    client_of,
    create_request,
    describe,
    run_to_end,
    training_jobs,
    wait_for_end,
    wait_until,
)

CREATE = "CreateHyperParameterTuningJob"
DESCRIBE = "DescribeHyperParameterTuningJob"
LIST = "ListHyperParameterTuningJobs"
REGION = "us-east-1"


def rules(*given: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    return {"seed": seed, "rules": list(given)}


class Clock:
    """Real seconds, as a test says."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def injector(*given: dict[str, Any], seed: int = 0, clock: Clock | None = None) -> FaultInjector:
    return FaultInjector(Faults.parse(rules(*given, seed=seed)), clock or Clock())


def throttled(one: FaultInjector, operation: str, region: str = REGION) -> bool:
    try:
        one.before(operation, region)
    except AwsError as error:
        return (error.code, error.message, error.status) == ("ThrottlingException", "Rate exceeded", 400)
    return False


# --- the setting ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "field"),
    [
        ([], "faults"),
        ({"rule": []}, "faults.rule"),
        ({"seed": -1}, "faults.seed"),
        ({"seed": True}, "faults.seed"),
        ({"rules": {}}, "faults.rules"),
        ({"rules": "throttle"}, "faults.rules"),
        (rules({"kind": "chaos"}), "faults.rules[0].kind"),
        ({"rules": ["drop"]}, "faults.rules[0].kind"),
        ({"rules": [{"kind": ["drop"]}]}, "faults.rules[0].kind"),
        (rules({"kind": "drop"}, {}), "faults.rules[1].kind"),
        (rules({"kind": "throttle"}), "faults.rules[0].rate"),
        (rules({"kind": "throttle", "rate": 0}), "faults.rules[0].rate"),
        (rules({"kind": "throttle", "rate": float("nan")}), "faults.rules[0].rate"),
        (rules({"kind": "throttle", "rate": 1, "burst": 0}), "faults.rules[0].burst"),
        (rules({"kind": "throttle", "rate": 1, "shared": 1}), "faults.rules[0].shared"),
        (rules({"kind": "latency"}), "faults.rules[0].seconds"),
        (rules({"kind": "latency", "seconds": "1"}), "faults.rules[0].seconds"),
        (rules({"kind": "latency", "seconds": 1, "jitter": -1}), "faults.rules[0].jitter"),
        (rules({"kind": "latency", "seconds": 1, "rate": 2}), "faults.rules[0].rate"),
        (rules({"kind": "stale", "seconds": 100_000}), "faults.rules[0].seconds"),
        (rules({"kind": "error", "status": 200}), "faults.rules[0].status"),
        (rules({"kind": "error", "code": ""}), "faults.rules[0].code"),
        (rules({"kind": "error", "code": "A\r\nB: c"}), "faults.rules[0].code"),
        (rules({"kind": "drop", "when": "during"}), "faults.rules[0].when"),
        (rules({"kind": "drop", "probability": 1.1}), "faults.rules[0].probability"),
        (rules({"kind": "drop", "every": 0}), "faults.rules[0].every"),
        (rules({"kind": "drop", "every": 2, "first": 2}), "faults.rules[0].first"),
        (rules({"kind": "drop", "operations": "Describe*"}), "faults.rules[0].operations"),
        (rules({"kind": "drop", "operations": []}), "faults.rules[0].operations"),
        (rules({"kind": "drop", "operations": ["List*", "describe*"]}), "faults.rules[0].operations[1]"),
        (rules({"kind": "fail_training", "operations": ["*"]}), "faults.rules[0].operations"),
        (rules({"kind": "fail_training", "names": [1]}), "faults.rules[0].names[0]"),
        (
            rules({"kind": "fail_training", "retryable": True, "reason": "AlgorithmError: no"}),
            "faults.rules[0].reason",
        ),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused_by_name(setting: Any, field: str) -> None:
    with pytest.raises(AmtFieldError) as caught:
        Faults.parse(setting)

    assert caught.value.field == field


def test_a_setting_reads_back(tmp_path: Path) -> None:
    setting = rules(
        {"kind": "throttle", "operations": ["Describe*", LIST], "rate": 2.5, "burst": 5, "shared": True},
        {"kind": "latency", "seconds": 0.5, "jitter": 1.0, "probability": 0.5},
        {"kind": "error", "code": "ServiceUnavailable", "first": 3, "when": "after"},
        {"kind": "fail_training", "names": ["*-001-*"], "retryable": True, "every": 2},
        seed=7,
    )
    parsed = Faults.parse(setting)
    file = tmp_path / "faults.json"
    file.write_text(json.dumps(setting))

    assert Faults.parse(parsed.as_dict()) == parsed
    assert Faults.from_text(json.dumps(setting)) == parsed
    assert Faults.from_text(str(file)) == parsed
    for number, rule in enumerate(setting["rules"]):
        assert rule.items() <= parsed.as_dict()["rules"][number].items()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "valid JSON"),
        (__file__, "valid JSON"),
        ("missing.json", "missing.json"),
        ('{"rules": [{"kind": "drop", "when": 1}]}', "faults.rules[0].when"),
    ],
)
def test_the_command_line_refuses_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, named: str
) -> None:
    assert main(["local", "serve", "--state-dir", str(tmp_path), "--faults", text]) == 2
    assert named in capsys.readouterr().err


# --- the rules --------------------------------------------------------------------------------------


def test_a_bucket_gives_a_burst_and_then_a_rate() -> None:
    clock = Clock()
    one = injector({"kind": "throttle", "rate": 2, "burst": 3}, clock=clock)

    assert [throttled(one, DESCRIBE) for _ in range(5)] == [False, False, False, True, True]
    clock.now += 0.5
    assert [throttled(one, DESCRIBE) for _ in range(2)] == [False, True]
    clock.now += 3600
    assert [throttled(one, DESCRIBE) for _ in range(4)] == [False, False, False, True]
    assert one.applied == [4]


def test_each_region_and_operation_has_a_bucket_of_its_own_unless_shared() -> None:
    own = injector({"kind": "throttle", "rate": 1})
    shared = injector({"kind": "throttle", "rate": 1, "shared": True, "operations": [DESCRIBE, LIST]})

    assert [throttled(own, name) for name in (DESCRIBE, LIST, DESCRIBE)] == [False, False, True]
    assert not throttled(own, DESCRIBE, "eu-west-1")
    assert [throttled(shared, name) for name in (DESCRIBE, LIST, CREATE)] == [False, True, False]
    assert not throttled(shared, LIST, "eu-west-1")


def dropped(one: FaultInjector, calls: int) -> str:
    """Say which of so many calls lose their connection, as ``.x.x``."""
    text = ""
    for _ in range(calls):
        try:
            one.before(DESCRIBE, REGION)
            text += "."
        except DropConnectionError:
            text += "x"
    return text


def test_every_first_and_always() -> None:
    assert dropped(injector({"kind": "drop", "every": 3}), 7) == "..x..x."
    assert dropped(injector({"kind": "drop", "first": 2}), 4) == "xx.."
    assert dropped(injector({"kind": "drop"}), 3) == "xxx"
    assert dropped(injector({"kind": "drop", "when": "after"}), 3) == "..."
    assert dropped(injector({"kind": "drop", "operations": ["List*"]}), 3) == "..."


def test_chances_come_from_the_seed_and_not_from_other_rules() -> None:
    rule = {"kind": "drop", "probability": 0.3}
    never = {"kind": "error", "probability": 0, "operations": [LIST]}

    first = dropped(injector(rule, never, seed=1), 400)

    assert first == dropped(injector(rule, seed=1), 400)
    assert first != dropped(injector(rule, seed=2), 400)
    assert 80 <= first.count("x") <= 160
    assert dropped(injector({"kind": "drop", "probability": 0}), 50) == "." * 50
    assert dropped(injector({"kind": "drop", "probability": 1}), 50) == "x" * 50


def test_waits_add_up_and_the_first_rule_that_ends_a_call_is_the_last() -> None:
    slow = injector(
        {"kind": "latency", "seconds": 1}, {"kind": "latency", "seconds": 0.5, "jitter": 0.25, "every": 2}
    )
    assert slow.before(DESCRIBE, REGION) == 1.0
    assert 1.5 <= slow.before(DESCRIBE, REGION) <= 1.75

    refusing = injector({"kind": "error", "code": "ServiceUnavailable", "first": 1}, {"kind": "drop"})
    with pytest.raises(AwsError) as caught:
        refusing.before(DESCRIBE, REGION)
    assert (caught.value.code, caught.value.status) == ("ServiceUnavailable", 503)
    assert refusing.applied == [1, 0]
    with pytest.raises(DropConnectionError):
        refusing.before(DESCRIBE, REGION)


def test_only_reads_are_stale() -> None:
    one = injector(
        {"kind": "stale", "seconds": 5, "operations": ["*TuningJob*"]}, {"kind": "stale", "seconds": 9}
    )

    assert one.staleness(DESCRIBE) == 5
    assert one.staleness("ListTags") == 9
    assert one.staleness(CREATE) is None
    assert one.longest_staleness == 9
    assert injector({"kind": "drop"}).longest_staleness == 0


def test_which_training_jobs_fail_and_why() -> None:
    one = injector(
        {"kind": "fail_training", "names": ["a-*"], "first": 1, "retryable": True},
        {"kind": "fail_training", "names": ["a-*", "b-?"], "every": 2, "reason": "AlgorithmError: enough"},
        {"kind": "fail_training", "names": ["c"]},
    )

    asked = [one.training_failure(name) for name in ("a-1", "a-1", "b-1", "b-22", "c")]

    assert asked[0] is not None
    assert asked[0].startswith("InternalServerError")
    assert asked[1:4] == [None, "AlgorithmError: enough", None]
    assert asked[4] is not None
    assert asked[4].startswith("AlgorithmError")
    assert one.applied == [1, 1, 1]
    assert injector({"kind": "drop"}).training_failure("a-1") is None


# --- what boto3 sees --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("faults")
    with running(folder, clock_rate=CLOCK_RATE, images=IMAGES, options=("--stop-grace", "0.3")) as server:
        yield server
        # What was asked for is no error of the server's own.
        assert "Traceback" not in server.log, server.log
        assert " ERROR " not in server.log, server.log


@pytest.fixture
def amt(server: RunningServer) -> Iterator[RunningServer]:
    yield server
    server.set_faults(None)


@pytest.fixture
def once(amt: RunningServer) -> Iterator[Any]:
    """A client that does not retry."""
    with client_of(amt) as client:
        yield client


def retrying(server: RunningServer, mode: str) -> Any:
    return server.client(retries={"mode": mode, "total_max_attempts": 8})


def exists(client: Any, name: str) -> bool:
    try:
        describe(client, name)
    except client.exceptions.ResourceNotFound:
        return False
    return True


@pytest.mark.local
def test_nothing_goes_wrong_unless_asked_for(amt: RunningServer, once: Any) -> None:
    assert amt.faults() == {"seed": 0, "rules": [], "applied": []}
    assert run_to_end(once, create_request())["HyperParameterTuningJobStatus"] == "Completed"


@pytest.mark.local
def test_a_throttled_call_as_aws_answers_it(amt: RunningServer, once: Any) -> None:
    amt.set_faults(rules({"kind": "throttle", "rate": 0.001}))
    once.list_hyper_parameter_tuning_jobs()

    with pytest.raises(ClientError) as caught:
        once.list_hyper_parameter_tuning_jobs()

    response = caught.value.response
    assert response["Error"] == {"Code": "ThrottlingException", "Message": "Rate exceeded"}
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 400
    assert response["ResponseMetadata"]["HTTPHeaders"]["x-amzn-errortype"] == "ThrottlingException"
    assert amt.faults()["applied"] == [1]


@pytest.mark.local
@pytest.mark.parametrize("mode", ["legacy", "standard", "adaptive"])
def test_throttled_calls_are_retried_and_succeed(amt: RunningServer, mode: str) -> None:
    client = retrying(amt, mode)
    amt.set_faults(rules({"kind": "throttle", "rate": 4, "operations": [LIST]}))
    retries = 0
    try:
        # On a machine that stands still in between, a call may find that its token is there.
        while retries < 2:
            answer = client.list_hyper_parameter_tuning_jobs(MaxResults=1)
            retries += answer["ResponseMetadata"]["RetryAttempts"]
    finally:
        client.close()

    assert amt.faults()["applied"] == [retries]


@pytest.mark.local
@pytest.mark.parametrize("mode", ["legacy", "standard"])
@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "error", "first": 2},
        {"kind": "error", "code": "ServiceUnavailable", "first": 2},
        {"kind": "drop", "first": 2},
        {"kind": "drop", "first": 2, "when": "after"},
    ],
)
def test_a_passing_failure_is_retried(amt: RunningServer, mode: str, fault: dict[str, Any]) -> None:
    client = retrying(amt, mode)
    amt.set_faults(rules(fault))
    try:
        answer = client.list_hyper_parameter_tuning_jobs(MaxResults=1)
    finally:
        client.close()

    assert answer["ResponseMetadata"]["RetryAttempts"] == 2
    assert amt.faults()["applied"] == [2]


@pytest.mark.local
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_connection_is_dropped_before_or_after_the_job_is_created(
    amt: RunningServer, once: Any, when: str
) -> None:
    request = create_request()
    amt.set_faults(rules({"kind": "drop", "when": when, "operations": [CREATE], "first": 1}))

    with pytest.raises(ConnectionClosedError):
        once.create_hyper_parameter_tuning_job(**request)

    name = request["HyperParameterTuningJobName"]
    assert exists(once, name) is (when == "after")
    if when == "after":
        assert wait_for_end(once, name)["TrainingJobStatusCounters"]["Completed"] == 3
    else:
        assert run_to_end(once, request)["HyperParameterTuningJobStatus"] == "Completed"


@pytest.mark.local
@pytest.mark.parametrize("fault", [{"kind": "drop"}, {"kind": "error"}])
def test_a_retry_of_a_create_that_was_carried_out_meets_its_own_job(
    amt: RunningServer, fault: dict[str, Any]
) -> None:
    client = retrying(amt, "standard")
    request = create_request()
    amt.set_faults(rules({**fault, "when": "after", "operations": [CREATE], "first": 1}))
    try:
        with pytest.raises(client.exceptions.ResourceInUse) as caught:
            client.create_hyper_parameter_tuning_job(**request)
        assert caught.value.response["ResponseMetadata"]["RetryAttempts"] == 1
        wait_for_end(client, request["HyperParameterTuningJobName"])
        assert len(training_jobs(client, request["HyperParameterTuningJobName"])) == 3
    finally:
        client.close()


@pytest.mark.local
def test_an_error_of_ones_own(amt: RunningServer, once: Any) -> None:
    amt.set_faults(
        rules(
            {"kind": "error", "code": "ResourceLimitExceeded", "message": "No more", "operations": [CREATE]}
        )
    )

    with pytest.raises(once.exceptions.ResourceLimitExceeded, match="No more"):
        once.create_hyper_parameter_tuning_job(**create_request())


@pytest.mark.local
def test_a_slow_answer(amt: RunningServer) -> None:
    amt.set_faults(rules({"kind": "latency", "seconds": 0.4, "operations": [LIST]}))
    with client_of(amt, read_timeout=60) as patient:
        begin = time.monotonic()
        patient.list_hyper_parameter_tuning_jobs()
        assert time.monotonic() - begin >= 0.4

    amt.set_faults(rules({"kind": "latency", "seconds": 30, "operations": [LIST]}))
    with client_of(amt, read_timeout=0.2) as impatient, pytest.raises(ReadTimeoutError):
        impatient.list_hyper_parameter_tuning_jobs()


@pytest.mark.local
def test_a_server_that_holds_calls_up_ends_all_the_same(tmp_path: Path) -> None:
    setting = rules({"kind": "latency", "seconds": 600, "operations": [LIST]})
    with running(tmp_path, faults=setting) as amt:
        connection = http.client.HTTPConnection(urlsplit(amt.endpoint).netloc, timeout=60)
        with contextlib.closing(connection):
            headers = amt.signed("POST", "/", b"{}", {"X-Amz-Target": f"SageMaker.{LIST}"})
            connection.request("POST", "/", body=b"{}", headers=headers)
            wait_until(lambda: amt.faults()["applied"] == [1], "the wait")

            assert amt.stop() == 0

            with pytest.raises(ConnectionError):
                connection.getresponse()
        assert "Traceback" not in amt.log


@pytest.mark.local
def test_reads_are_answered_from_an_older_state(amt: RunningServer, once: Any) -> None:
    old, new = create_request(sequence="hang"), create_request(sequence="hang")
    once.create_hyper_parameter_tuning_job(**old)
    amt.set_faults(rules({"kind": "stale", "seconds": 60}))

    once.create_hyper_parameter_tuning_job(**new)
    once.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=old["HyperParameterTuningJobName"])

    # Writes work on the present state: the name is taken, the job can be stopped. No read shows it yet.
    name = new["HyperParameterTuningJobName"]
    assert describe(once, old["HyperParameterTuningJobName"])["HyperParameterTuningJobStatus"] == "InProgress"
    assert not exists(once, name)
    assert once.list_hyper_parameter_tuning_jobs(NameContains=name)["HyperParameterTuningJobSummaries"] == []
    with pytest.raises(once.exceptions.ResourceInUse):
        once.create_hyper_parameter_tuning_job(**new)
    once.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)

    amt.set_faults(None)
    for request in (old, new):
        ended = wait_for_end(once, request["HyperParameterTuningJobName"])
        assert ended["HyperParameterTuningJobStatus"] == "Stopped"


@pytest.mark.local
def test_what_was_written_arrives_in_the_end(amt: RunningServer, once: Any) -> None:
    amt.set_faults(rules({"kind": "stale", "seconds": 1.5}))
    begin = time.monotonic()
    request = create_request()
    once.create_hyper_parameter_tuning_job(**request)

    wait_until(lambda: exists(once, request["HyperParameterTuningJobName"]), "the arrival")

    assert time.monotonic() - begin >= 1.5
    assert wait_for_end(once, request["HyperParameterTuningJobName"])["BestTrainingJob"]


@pytest.mark.local
def test_faults_from_the_start_and_by_plain_http(tmp_path: Path) -> None:
    setting = rules({"kind": "error", "operations": [LIST]}, seed=3)
    file = tmp_path / "faults.json"
    file.write_text("{}")
    with running(tmp_path, images=IMAGES, faults=setting) as amt, client_of(amt) as client:
        with pytest.raises(ClientError, match="InternalFailure"):
            client.list_hyper_parameter_tuning_jobs()
        assert amt.faults()["seed"] == 3

        with pytest.raises(AmtFieldError) as caught:
            amt.set_faults(rules({"kind": "error", "first": 0}))
        assert caught.value.field == "faults.rules[0].first"
        for body, named in (
            (b'{"rules": [{"kind": "dorp"}]}', "faults.rules[0].kind"),
            (b"\xff{", "valid JSON"),
            (b"[" * 60_000, "nested too deeply"),
            (b"[" * 100_000, "larger than 65536 bytes"),
            # A path is for those who start the server, not for those who reach it.
            (str(file).encode(), "valid JSON"),
        ):
            connection = http.client.HTTPConnection(urlsplit(amt.endpoint).netloc, timeout=20)
            with contextlib.closing(connection):
                headers = amt.signed("PUT", "/_amt/faults", body)
                connection.request("PUT", "/_amt/faults", body=body, headers=headers)
                response = connection.getresponse()
                answer = json.loads(response.read())
            assert response.status == 400
            assert named in answer["message"]
        # What cannot be used changes nothing.
        assert amt.faults()["applied"] == [1]

        amt.set_faults(None)
        assert client.list_hyper_parameter_tuning_jobs()["HyperParameterTuningJobSummaries"] == []


def test_faults_that_cannot_be_used_start_no_server(tmp_path: Path) -> None:
    with pytest.raises(AmtFieldError, match=r"faults\.rules"), running(tmp_path, faults={"rules": 1}):
        pass
    assert not (tmp_path / "amt.sqlite3").exists()
