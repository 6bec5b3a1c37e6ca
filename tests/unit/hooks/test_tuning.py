"""The hook against botocore's Stubber: which calls it makes, and what it makes of the answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.exceptions import ConnectTimeoutError
from botocore.stub import Stubber

from airflow_amt.exceptions import (
    AmtAccessDeniedError,
    AmtAwsError,
    AmtResourceInUseError,
    AmtResourceNotFoundError,
    AmtThrottledError,
    AmtValidationError,
)
from airflow_amt.hooks import tuning as hooks
from airflow_amt.hooks.patience import Bearer, bearing
from airflow_amt.hooks.tuning import AmtHook
from airflow_amt.tuning import CompletionReason
from airflow_amt.tuning.naming import to_tag_list
from airflow_amt.tuning.stops import Stop
from airflow_amt.watch.polling import Patience
from tests.unit.requests import create_request
from tests.unit.tasks import ARN, CREATED_AT, describe, loud_log

NAME = "churn-model"
REQUIRED = {
    "LastModifiedTime": CREATED_AT,
}


@pytest.fixture(scope="module")
def session() -> boto3.session.Session:
    """One for all: it reads the service model, which takes a quarter of a second, only once."""
    return boto3.session.Session()


@pytest.fixture
def hook(session: boto3.session.Session) -> AmtHook:
    hook = AmtHook(aws_conn_id=None, region_name="eu-west-1")
    vars(hook)["conn"] = session.client("sagemaker", region_name="eu-west-1")
    return hook


@pytest.fixture
def aws(hook: AmtHook) -> Iterator[Stubber]:
    with Stubber(hook.conn) as stubber:
        yield stubber
        stubber.assert_no_pending_responses()


def answer_describe(aws: Stubber, status: str, **fields: Any) -> None:
    aws.add_response(
        "describe_hyper_parameter_tuning_job",
        _valid(describe(NAME, status, **fields)),
        {"HyperParameterTuningJobName": NAME},
    )


def _valid(description: dict[str, Any]) -> dict[str, Any]:
    """The Stubber wants what the API requires in summaries."""
    best = description.get("BestTrainingJob")
    if best:
        best.setdefault("TrainingJobArn", "arn:aws:sagemaker:eu-west-1:000000000000:training-job/one")
        best.setdefault("CreationTime", CREATED_AT)
        best.setdefault("ObjectiveStatus", "Succeeded")
    return description


def training_job(number: int) -> dict[str, Any]:
    return {
        "TrainingJobName": f"{NAME}-{number:03}",
        "TrainingJobArn": "arn:aws:sagemaker:eu-west-1:000000000000:training-job/one",
        "CreationTime": CREATED_AT,
        "TrainingJobStatus": "Failed",
        "TunedHyperParameters": {},
        "FailureReason": "AlgorithmError: out of memory",
    }


def test_create_returns_the_arn(hook: AmtHook, aws: Stubber) -> None:
    request = create_request()
    aws.add_response("create_hyper_parameter_tuning_job", {"HyperParameterTuningJobArn": ARN + NAME}, request)
    assert hook.create_tuning_job(request) == ARN + NAME


def test_a_taken_name_is_a_typed_error(hook: AmtHook, aws: Stubber) -> None:
    aws.add_client_error("create_hyper_parameter_tuning_job", "ResourceInUse", "it is taken", 400)
    with pytest.raises(AmtResourceInUseError, match="it is taken") as caught:
        hook.create_tuning_job(create_request())
    assert caught.value.operation == "CreateHyperParameterTuningJob"


def test_no_answer_is_a_typed_error(hook: AmtHook, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise ConnectTimeoutError(endpoint_url="http://127.0.0.1:1")

    monkeypatch.setattr(hook.conn, "describe_hyper_parameter_tuning_job", fail)
    with pytest.raises(AmtAwsError) as caught:
        hook.describe_tuning_job(NAME)
    assert (caught.value.code, caught.value.status_code) == ("ConnectTimeoutError", None)


MISSPELT = "connection 'aws_defualt', which Airflow does not have"


def test_a_misspelt_connection_is_named_when_there_is_no_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(AmtAwsError, match=rf"{MISSPELT}; no region\)\. Fix: correct aws_conn_id") as caught:
        AmtHook(aws_conn_id="aws_defualt").describe_tuning_job(NAME)
    assert (caught.value.operation, caught.value.code) == (
        "DescribeHyperParameterTuningJob",
        "NoRegionError",
    )


def test_a_misspelt_connection_is_named_when_there_are_no_credentials(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    hook = AmtHook(aws_conn_id="aws_defualt", region_name="eu-north-1")
    with pytest.raises(AmtAwsError, match=f"{MISSPELT}; region eu-north-1") as caught:
        hook.create_tuning_job(create_request())
    assert (caught.value.operation, caught.value.code) == (
        "CreateHyperParameterTuningJob",
        "NoCredentialsError",
    )


def test_what_botocore_refuses_to_send_is_a_validation_error(hook: AmtHook) -> None:
    with pytest.raises(AmtValidationError, match="Missing required parameter") as caught:
        hook.create_tuning_job({})
    assert caught.value.code == "ParamValidationError"


def test_a_role_that_cannot_be_looked_up_for_want_of_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "AIRFLOW_CONN_AMT_TEST",
        '{"conn_type": "aws", "extra": {"service_config": {"iam": {"endpoint_url": "http://127.0.0.1:1"}}}}',
    )
    hook = AmtHook(aws_conn_id="AMT_TEST", config={"retries": {"max_attempts": 0}})
    with pytest.raises(AmtAwsError, match=r"GetRole got no answer.*`service_config\.iam\.endpoint_url`"):
        hook.expand_role("trainer")


def test_training_jobs_of_all_pages_are_listed_lazily(hook: AmtHook, aws: Stubber) -> None:
    common = {"HyperParameterTuningJobName": NAME, "MaxResults": 100, "StatusEquals": "Failed"}
    method = "list_training_jobs_for_hyper_parameter_tuning_job"
    aws.add_response(
        method, {"TrainingJobSummaries": [training_job(1), training_job(2)], "NextToken": "two"}, common
    )
    aws.add_response(method, {"TrainingJobSummaries": [training_job(3)]}, {**common, "NextToken": "two"})
    listed = hook.list_training_jobs(NAME, status="Failed")
    assert next(listed)["TrainingJobName"] == f"{NAME}-001"
    assert [one["TrainingJobName"] for one in listed] == [f"{NAME}-002", f"{NAME}-003"]


def test_tuning_jobs_are_listed_with_the_apis_own_filters(hook: AmtHook, aws: Stubber) -> None:
    aws.add_response(
        "list_hyper_parameter_tuning_jobs",
        {"HyperParameterTuningJobSummaries": []},
        {"MaxResults": 100, "NameContains": "churn", "StatusEquals": "InProgress"},
    )
    assert list(hook.list_tuning_jobs(NameContains="churn", StatusEquals="InProgress")) == []


def test_tags_come_as_a_dict(hook: AmtHook, aws: Stubber) -> None:
    aws.add_response(
        "list_tags",
        {"Tags": [{"Key": "team", "Value": "ml"}], "NextToken": "two"},
        {"ResourceArn": ARN + NAME, "MaxResults": 100},
    )
    aws.add_response(
        "list_tags",
        {"Tags": [{"Key": "cost", "Value": ""}]},
        {"ResourceArn": ARN + NAME, "MaxResults": 100, "NextToken": "two"},
    )
    assert hook.tags(ARN + NAME) == {"team": "ml", "cost": ""}


def test_tags_that_may_not_be_read_are_none_and_other_errors_are_raised(hook: AmtHook, aws: Stubber) -> None:
    aws.add_client_error("list_tags", "AccessDeniedException", "no sagemaker:ListTags", 400)
    assert hook.tags(ARN + NAME) is None
    aws.add_client_error("list_tags", "ThrottlingException", "Rate exceeded", 400)
    with pytest.raises(AmtThrottledError):
        hook.tags(ARN + NAME)


STOP = Stop(stopped_by="deadline", detail="too long; really", requested_by="churn run-1 tune")
CALL: dict[str, Any] = {
    "stopped_by": STOP.stopped_by,
    "detail": STOP.detail,
    "requested_by": STOP.requested_by,
}


def expect_tags(aws: Stubber, tags: dict[str, str]) -> None:
    aws.add_response("add_tags", {"Tags": []}, {"ResourceArn": ARN + NAME, "Tags": to_tag_list(tags)})


def expect_intent(aws: Stubber) -> None:
    expect_tags(aws, STOP.intent())
    answer_describe(aws, "InProgress")


def answer_tags(aws: Stubber, tags: dict[str, str]) -> None:
    aws.add_response("list_tags", {"Tags": to_tag_list(tags)}, {"ResourceArn": ARN + NAME, "MaxResults": 100})


def expect_stop(aws: Stubber) -> None:
    aws.add_response("stop_hyper_parameter_tuning_job", {}, {"HyperParameterTuningJobName": NAME})


def refuse_stop(aws: Stubber, code: str = "ValidationException", status: int = 400) -> None:
    aws.add_client_error("stop_hyper_parameter_tuning_job", code, "no stop", status)


def test_stop_leaves_its_intent_before_it_stops_and_the_record_afterwards(
    hook: AmtHook, aws: Stubber
) -> None:
    answer_describe(aws, "InProgress")
    expect_intent(aws)
    expect_stop(aws)
    answer_tags(aws, STOP.intent())
    expect_tags(
        aws,
        {
            "airflow-amt:stopped-by": "deadline",
            "airflow-amt:stopped-by-detail": "too long - really",
            "airflow-amt:stopped-for": "churn run-1 tune",
        },
    )
    assert hook.stop_tuning_job(NAME, **CALL) is True


@pytest.mark.parametrize("code", ["AccessDeniedException", "ThrottlingException"])
def test_a_job_is_stopped_though_it_cannot_be_tagged(hook: AmtHook, aws: Stubber, code: str) -> None:
    answer_describe(aws, "InProgress")
    aws.add_client_error("add_tags", code, "not allowed", 400)
    expect_stop(aws)
    answer_tags(aws, {})
    aws.add_client_error("add_tags", code, "not allowed", 400)
    assert hook.stop_tuning_job(NAME, stopped_by="operator") is True


@pytest.mark.parametrize("status", ["Completed", "Failed"])
def test_a_job_that_came_to_its_end_is_left_alone(hook: AmtHook, aws: Stubber, status: str) -> None:
    answer_describe(aws, status)
    assert hook.stop_tuning_job(NAME, **CALL) is False


@pytest.mark.parametrize("status", ["Stopped", "Stopping"])
@pytest.mark.parametrize(
    ("tags", "ours"),
    [
        ({}, False),
        ({"airflow-amt:stopped-by": "reaper"}, False),
        (STOP.intent(), True),
        # What it was stopped for is what was known then, not what is known now.
        (Stop(stopped_by="deadline", detail="earlier", requested_by=STOP.requested_by).intent(), True),
        (Stop(stopped_by="deadline", requested_by="another task").intent(), False),
        (Stop(stopped_by="policy", requested_by=STOP.requested_by).intent(), False),
        ({**STOP.intent(), "airflow-amt:stopped-by": "reaper"}, False),
    ],
)
def test_a_job_that_is_being_stopped_was_stopped_by_us_if_only_our_intent_is_there(
    hook: AmtHook, aws: Stubber, status: str, tags: dict[str, str], ours: bool
) -> None:
    answer_describe(aws, status)
    answer_tags(aws, tags)
    if ours:
        # Once more, by the claim.
        intended = Stop.intended(tags)
        assert intended is not None
        answer_tags(aws, tags)
        expect_tags(aws, intended.tags())
    assert hook.stop_tuning_job(NAME, **CALL) is ours


def test_a_job_that_ends_under_our_hands_is_not_an_error(hook: AmtHook, aws: Stubber) -> None:
    answer_describe(aws, "InProgress")
    expect_intent(aws)
    refuse_stop(aws)
    answer_describe(aws, "Completed")
    aws.add_response("delete_tags", {}, REMOVED)
    assert hook.stop_tuning_job(NAME, **CALL) is False


def test_a_job_that_somebody_else_stops_under_our_hands_is_not_put_down_to_us(
    hook: AmtHook, aws: Stubber
) -> None:
    answer_describe(aws, "InProgress")
    expect_intent(aws)
    refuse_stop(aws)
    answer_describe(aws, "Stopping")
    aws.add_response("delete_tags", {}, REMOVED)
    assert hook.stop_tuning_job(NAME, **CALL) is False


@pytest.mark.parametrize("status", ["Stopping", "Stopped", "Completed"])
def test_a_job_that_is_no_longer_in_progress_after_the_intent_is_not_stopped(
    hook: AmtHook, aws: Stubber, status: str
) -> None:
    answer_describe(aws, "InProgress")
    expect_tags(aws, STOP.intent())
    answer_describe(aws, status)
    aws.add_response("delete_tags", {}, REMOVED)
    assert hook.stop_tuning_job(NAME, **CALL) is False


def test_an_intent_is_withdrawn_if_the_job_cannot_be_read_after_it(hook: AmtHook, aws: Stubber) -> None:
    answer_describe(aws, "InProgress")
    expect_tags(aws, STOP.intent())
    aws.add_client_error("describe_hyper_parameter_tuning_job", "ThrottlingException", "Rate exceeded", 400)
    aws.add_response("delete_tags", {}, REMOVED)
    with pytest.raises(AmtThrottledError):
        hook.stop_tuning_job(NAME, **CALL)


FIRST, SECOND = sorted(
    (STOP, Stop(stopped_by="policy", requested_by="another task")), key=lambda one: one.slot
)


def call_of(stop: Stop) -> dict[str, Any]:
    return {"stopped_by": stop.stopped_by, "detail": stop.detail, "requested_by": stop.requested_by}


def accept(aws: Stubber, stop: Stop) -> None:
    answer_describe(aws, "InProgress")
    expect_tags(aws, stop.intent())
    answer_describe(aws, "InProgress")
    expect_stop(aws)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr(hooks, "time", SimpleNamespace(sleep=waited.append))
    return waited


def test_of_two_that_were_accepted_the_one_that_precedes_is_on_record(
    hook: AmtHook, aws: Stubber, waits: list[float]
) -> None:
    accept(aws, FIRST)
    answer_tags(aws, {**FIRST.intent(), **SECOND.intent()})
    expect_tags(aws, FIRST.tags())
    assert hook.stop_tuning_job(NAME, **call_of(FIRST)) is True
    accept(aws, SECOND)
    answer_tags(aws, {**FIRST.intent(), **SECOND.intent()})
    answer_tags(aws, {**FIRST.intent(), **SECOND.intent(), **FIRST.tags()})
    aws.add_response("delete_tags", {}, {"ResourceArn": ARN + NAME, "TagKeys": list(SECOND.intent_keys())})
    assert hook.stop_tuning_job(NAME, **call_of(SECOND)) is False
    assert waits == [hooks._CLAIM_WAITS[0]]


def test_one_that_precedes_and_withdraws_leaves_the_record_to_the_other(
    hook: AmtHook, aws: Stubber, waits: list[float]
) -> None:
    accept(aws, SECOND)
    answer_tags(aws, {**FIRST.intent(), **SECOND.intent()})
    answer_tags(aws, SECOND.intent())
    expect_tags(aws, SECOND.tags())
    assert hook.stop_tuning_job(NAME, **call_of(SECOND)) is True


def test_one_that_precedes_and_died_is_not_waited_for_for_ever(
    hook: AmtHook, aws: Stubber, waits: list[float]
) -> None:
    accept(aws, SECOND)
    for _ in range(len(hooks._CLAIM_WAITS) + 1):
        answer_tags(aws, {**FIRST.intent(), **SECOND.intent()})
    expect_tags(aws, SECOND.tags())
    assert hook.stop_tuning_job(NAME, **call_of(SECOND)) is True
    assert waits == list(hooks._CLAIM_WAITS)


def test_a_record_is_written_once_and_is_not_given_up(hook: AmtHook, aws: Stubber) -> None:
    answer_tags(aws, STOP.intent())
    aws.add_client_error("add_tags", "ThrottlingException", "Rate exceeded", 400)
    with pytest.raises(AmtThrottledError):
        hook.record_stop(ARN + NAME, STOP)
    answer_tags(aws, STOP.intent())
    expect_tags(aws, STOP.tags())
    hook.record_stop(ARN + NAME, STOP)
    answer_tags(aws, STOP.tags())
    hook.record_stop(ARN + NAME, STOP)


REMOVED = {
    "ResourceArn": ARN + NAME,
    "TagKeys": list(STOP.intent_keys()),
}


@pytest.mark.parametrize(
    ("code", "kind"),
    [("ValidationException", AmtValidationError), ("AccessDeniedException", AmtAccessDeniedError)],
)
def test_a_refused_stop_of_a_running_job_is_an_error_and_leaves_no_tags(
    hook: AmtHook, aws: Stubber, code: str, kind: type[AmtAwsError]
) -> None:
    answer_describe(aws, "InProgress")
    expect_intent(aws)
    refuse_stop(aws, code)
    if kind is AmtValidationError:
        answer_describe(aws, "InProgress")
    aws.add_response("delete_tags", {}, REMOVED)
    with pytest.raises(kind):
        hook.stop_tuning_job(NAME, **CALL)


def test_tags_that_cannot_be_removed_do_not_hide_why_the_stop_failed(
    hook: AmtHook, aws: Stubber, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = loud_log()
    monkeypatch.setattr(AmtHook, "log", log)
    answer_describe(aws, "InProgress")
    expect_intent(aws)
    refuse_stop(aws, "AccessDeniedException")
    aws.add_client_error("delete_tags", "AccessDeniedException", "no sagemaker:DeleteTags", 400)
    with pytest.raises(AmtAccessDeniedError, match="no stop"):
        hook.stop_tuning_job(NAME, **CALL)
    (line,) = log.lines
    assert line.startswith(f"warning: Tuning job {NAME} was not stopped")
    assert "no sagemaker:DeleteTags" in line


def test_tags_that_were_not_written_are_not_removed(hook: AmtHook, aws: Stubber) -> None:
    answer_describe(aws, "InProgress")
    aws.add_client_error("add_tags", "AccessDeniedException", "no", 400)
    refuse_stop(aws, "AccessDeniedException")
    with pytest.raises(AmtAccessDeniedError, match="no stop"):
        hook.stop_tuning_job(NAME, stopped_by="operator")


def test_a_stop_without_an_answer_may_have_been_made_so_its_tags_stay(hook: AmtHook, aws: Stubber) -> None:
    answer_describe(aws, "InProgress")
    expect_intent(aws)
    refuse_stop(aws, "InternalFailure", 500)
    with pytest.raises(AmtAwsError, match="no stop"):
        hook.stop_tuning_job(NAME, **CALL)


@pytest.mark.parametrize("recorded", [False, True])
def test_a_refusal_after_a_lost_answer_is_the_echo_of_our_own_stop(
    hook: AmtHook, aws: Stubber, recorded: bool
) -> None:
    answer_describe(aws, "InProgress")
    expect_intent(aws)
    refuse_stop(aws, "InternalFailure", 500)
    refuse_stop(aws)
    answer_describe(aws, "Stopping")
    answer_tags(aws, {"airflow-amt:stopped-by": "reaper"} if recorded else STOP.intent())
    if recorded:
        aws.add_response("delete_tags", {}, REMOVED)
    else:
        expect_tags(aws, STOP.tags())
    patience = Patience(interval_seconds=1, log=loud_log())

    def bear(error: AmtAwsError) -> None:
        patience.bear(error)

    with bearing(Bearer(bear=bear, relieved=patience.relieved)):
        assert hook.stop_tuning_job(NAME, **CALL) is not recorded


def test_stopping_what_is_not_there_says_so(hook: AmtHook, aws: Stubber) -> None:
    aws.add_client_error("describe_hyper_parameter_tuning_job", "ResourceNotFound", "no such job", 400)
    with pytest.raises(AmtResourceNotFoundError, match="no such job"):
        hook.stop_tuning_job(NAME, stopped_by="operator")


def answer_for_outcome(aws: Stubber, status: str, tags: list[dict[str, str]] | None) -> None:
    answer_describe(aws, status)
    if tags is None:
        aws.add_client_error("list_tags", "AccessDeniedException", "no", 400)
    else:
        aws.add_response("list_tags", {"Tags": tags}, {"ResourceArn": ARN + NAME, "MaxResults": 100})
    aws.add_response(
        "list_training_jobs_for_hyper_parameter_tuning_job",
        {"TrainingJobSummaries": [training_job(1), training_job(2)]},
        {"HyperParameterTuningJobName": NAME, "MaxResults": 100},
    )


def test_the_outcome_rests_on_description_tags_and_training_jobs(hook: AmtHook, aws: Stubber) -> None:
    answer_for_outcome(aws, "Stopped", [{"Key": "airflow-amt:stopped-by", "Value": "policy"}])
    outcome = hook.outcome(NAME)
    assert outcome.reason is CompletionReason.STOPPED_BY_PROVIDER
    assert outcome.evidence["stopped_by"] == "policy"
    assert outcome.failure_reasons == (("AlgorithmError: out of memory", 2),)


def test_what_the_caller_knows_of_the_stop_counts_without_tags(hook: AmtHook, aws: Stubber) -> None:
    answer_for_outcome(aws, "Stopped", None)
    outcome = hook.outcome(NAME, known_stop=Stop(stopped_by="deadline", detail="over").tags())
    assert outcome.reason is CompletionReason.STOPPED_BY_PROVIDER
    assert outcome.evidence == {"stopped_by": "deadline", "detail": "over"}


def test_an_outcome_without_permission_to_list_training_jobs(hook: AmtHook, aws: Stubber) -> None:
    answer_describe(aws, "Completed")
    aws.add_response("list_tags", {"Tags": []}, {"ResourceArn": ARN + NAME, "MaxResults": 100})
    aws.add_client_error(
        "list_training_jobs_for_hyper_parameter_tuning_job", "AccessDeniedException", "no", 400
    )
    assert hook.outcome(NAME).reason is CompletionReason.MAX_TRAINING_JOBS


def test_the_connection_is_the_amazon_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "AIRFLOW_CONN_AMT_TEST",
        '{"conn_type": "aws", "login": "embedded", "password": "embedded-secret", "extra": {"region_name": '
        '"cn-north-1", "service_config": {"sagemaker": {"endpoint_url": "http://127.0.0.1:9"}}}}',
    )
    hook = AmtHook(aws_conn_id="AMT_TEST", config={"retries": {"max_attempts": 1}})
    assert AmtHook.conn_type == "aws"
    assert hook.conn.meta.endpoint_url == "http://127.0.0.1:9"
    assert hook.conn_region_name == "cn-north-1"


def test_the_service_models_are_shared_by_those_that_look_for_them_at_the_same_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_AMT_TEST", '{"conn_type": "aws", "login": "a", "password": "b"}')

    def loader() -> Any:
        session = AmtHook(aws_conn_id="AMT_TEST", region_name="eu-west-1").get_session()
        return session._session.get_component("data_loader")

    shared = loader()
    assert loader() is shared
    monkeypatch.setenv("AWS_DATA_PATH", str(tmp_path))
    assert loader() is not shared
    assert str(tmp_path) in loader().search_paths
