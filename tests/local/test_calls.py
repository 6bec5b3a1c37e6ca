"""Calls over HTTP: listing, paging, tags, and what is refused and how."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ClientError
from starlette.applications import Starlette

from airflow_amt.local import RunningServer, running, s3_view
from airflow_amt.local.s3 import Place, Places
from tests.local.support import (
    IMAGES,
    client_of,
    create_request,
    describe,
    run_to_end,
    training_jobs,
    training_processes,
    unique,
    wait_for_end,
    wait_until,
)

pytestmark = pytest.mark.local


def post(
    server: RunningServer,
    operation: str,
    body: Any,
    *,
    target: str | None = None,
    region: str | None = None,
    method: str = "POST",
) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Send a raw request, past every check of a client; return status, headers and the answer."""
    headers = {"Content-Type": "application/x-amz-json-1.1"}
    if target != "":
        headers["X-Amz-Target"] = target or f"SageMaker.{operation}"
    connection = http.client.HTTPConnection(urlsplit(server.endpoint).netloc, timeout=20)
    try:
        data = body if isinstance(body, (bytes, str)) else json.dumps(body)
        sent = data if isinstance(data, bytes) else data.encode()
        signed = server.signed(method, "/", sent, headers, region or "us-east-1")
        connection.request(method, "/", body=sent, headers=signed)
        response = connection.getresponse()
        content = response.read()
        received = {key.lower(): value for key, value in response.getheaders()}
        is_json = "json" in received.get("content-type", "")
        return response.status, received, json.loads(content or b"{}") if is_json else {}
    finally:
        connection.close()


def refused(server: RunningServer, body: Any, operation: str = "CreateHyperParameterTuningJob") -> str:
    """Send a request that must be refused as invalid; return the message."""
    status, headers, answer = post(server, operation, body)
    assert status == 400, answer
    assert answer["__type"] == "ValidationException", answer
    assert headers["x-amzn-requestid"]
    return str(answer["message"])


# --- what is malformed -----------------------------------------------------------------------------


def without(request: dict[str, Any], path: str) -> dict[str, Any]:
    changed = deepcopy(request)
    *parents, last = path.split(".")
    holder: Any = changed
    for key in parents:
        holder = holder[int(key)] if key.isdigit() else holder[key]
    del holder[last]
    return changed


def having(request: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    changed = deepcopy(request)
    *parents, last = path.split(".")
    holder: Any = changed
    for key in parents:
        holder = holder[int(key)] if key.isdigit() else holder.setdefault(key, {})
    holder[int(last) if last.isdigit() else last] = value
    return changed


CONFIG = "HyperParameterTuningJobConfig"
DEFINITION = "TrainingJobDefinition"
CONTINUOUS = f"{CONFIG}.ParameterRanges.ContinuousParameterRanges.0"


@pytest.mark.parametrize(
    "path",
    [
        "HyperParameterTuningJobName",
        CONFIG,
        f"{CONFIG}.Strategy",
        f"{CONFIG}.ResourceLimits",
        f"{CONFIG}.ResourceLimits.MaxParallelTrainingJobs",
        f"{CONFIG}.HyperParameterTuningJobObjective",
        f"{CONFIG}.HyperParameterTuningJobObjective.Type",
        f"{CONFIG}.HyperParameterTuningJobObjective.MetricName",
        f"{CONTINUOUS}.Name",
        f"{CONTINUOUS}.MinValue",
        f"{CONTINUOUS}.MaxValue",
        DEFINITION,
        f"{DEFINITION}.AlgorithmSpecification",
        f"{DEFINITION}.AlgorithmSpecification.TrainingInputMode",
        f"{DEFINITION}.AlgorithmSpecification.TrainingImage",
        f"{DEFINITION}.AlgorithmSpecification.MetricDefinitions",
        f"{DEFINITION}.RoleArn",
        f"{DEFINITION}.OutputDataConfig",
        f"{DEFINITION}.OutputDataConfig.S3OutputPath",
        f"{DEFINITION}.ResourceConfig",
        f"{DEFINITION}.StoppingCondition",
    ],
)
def test_each_required_field(amt: RunningServer, path: str) -> None:
    message = refused(amt, without(create_request(), path))

    field = path.rsplit(".", 1)[-1]
    if field == "MetricDefinitions":
        field = "MetricName"  # the objective that then has no definition
    assert field.lower() in message.lower()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("HyperParameterTuningJobName", "a" * 33),
        ("HyperParameterTuningJobName", ""),
        ("HyperParameterTuningJobName", "under_score"),
        ("HyperParameterTuningJobName", 7),
        (f"{CONFIG}.Strategy", "Genetic"),
        (f"{CONFIG}.RandomSeed", -1),
        (f"{CONFIG}.ResourceLimits.MaxParallelTrainingJobs", 0),
        (f"{CONFIG}.ResourceLimits.MaxParallelTrainingJobs", "2"),
        (f"{CONFIG}.ResourceLimits.MaxParallelTrainingJobs", True),
        (f"{CONFIG}.ResourceLimits.MaxNumberOfTrainingJobs", 0),
        (f"{CONFIG}.ResourceLimits.MaxRuntimeInSeconds", 60),
        (f"{CONFIG}.ResourceLimits.MaxRuntimeInSeconds", 15_768_001),
        (f"{CONFIG}.ResourceLimits.MaxRuntimes", 600),
        (f"{CONFIG}.HyperParameterTuningJobObjective.Type", "maximize"),
        (f"{CONFIG}.HyperParameterTuningJobObjective.MetricName", "other"),
        (f"{CONFIG}.HyperParameterTuningJobObjective.MetricName", "m" * 256),
        (
            f"{CONFIG}.TuningJobCompletionCriteria.BestObjectiveNotImproving"
            ".MaxNumberOfTrainingJobsNotImproving",
            -1,
        ),
        (
            f"{CONFIG}.TuningJobCompletionCriteria.BestObjectiveNotImproving"
            ".MaxNumberOfTrainingJobsNotImproving",
            2,
        ),
        (f"{CONFIG}.TuningJobCompletionCriteria.ConvergenceDetected.CompleteOnConvergence", "Yes"),
        (f"{CONFIG}.TuningJobCompletionCriteria.TargetObjectiveMetricValue", "high"),
        (f"{CONTINUOUS}.MinValue", "2"),
        (f"{CONTINUOUS}.MaxValue", "many"),
        (f"{CONTINUOUS}.ScalingType", "Logarithmic"),
        (f"{CONTINUOUS}.ScalingType", "Quadratic"),
        (f"{CONFIG}.ParameterRanges.CategoricalParameterRanges", [{"Name": "k", "Values": []}]),
        (f"{CONFIG}.ParameterRanges.ContinuousParameterRanges", []),
        (f"{DEFINITION}.RoleArn", "arn:aws:iam::12:role/x"),
        (f"{DEFINITION}.OutputDataConfig.S3OutputPath", "/somewhere/out"),
        (f"{DEFINITION}.StoppingCondition.MaxRuntimeInSeconds", 0),
        (f"{DEFINITION}.ResourceConfig.InstanceType", "ml.enormous"),
        (f"{DEFINITION}.InputDataConfig", []),
        (f"{DEFINITION}.StaticHyperParameters.x", "1"),
        (f"{DEFINITION}.AlgorithmSpecification.MetricDefinitions.0.Regex", "("),
        (f"{DEFINITION}.AlgorithmSpecification.TrainingInputMode", "Mail"),
        ("Tags", [{"Key": "k"}]),
        ("Tags", [{"Key": "k" * 129, "Value": ""}]),
        ("Tags", [{"Key": "k", "Value": "a"}, {"Key": "k", "Value": "b"}]),
        ("Tags", [{"Key": "aws:own", "Value": "a"}]),
    ],
)
def test_each_limit(amt: RunningServer, path: str, value: Any) -> None:
    message = refused(amt, having(create_request(), path, value))

    field = [part for part in path.split(".") if not part.isdigit()][-1]
    if path == f"{CONTINUOUS}.ScalingType" and value == "Logarithmic":
        field = "MinValue"  # it is the bound that does not fit
    if path.endswith("ContinuousParameterRanges"):
        field = "ParameterRanges"
    assert field.lower() in message.lower()


def test_a_file_system_is_refused_and_not_ignored(amt: RunningServer) -> None:
    source = {
        "FileSystemId": "fs-12345678901",
        "FileSystemAccessMode": "ro",
        "FileSystemType": "EFS",
        "DirectoryPath": "/data",
    }
    channel = {"ChannelName": "train", "DataSource": {"FileSystemDataSource": source}}
    message = refused(amt, having(create_request(), f"{DEFINITION}.InputDataConfig", [channel]))

    assert f"{DEFINITION}.InputDataConfig[0].DataSource" in message
    assert "mounts no file system" in message


def test_an_image_without_a_command_says_how_to_map_it(amt: RunningServer) -> None:
    message = refused(amt, create_request(image="somebody/else:3"))

    assert "TrainingJobDefinition.AlgorithmSpecification.TrainingImage" in message
    assert "--image 'somebody/else:3=COMMAND'" in message


@pytest.mark.parametrize("strategy", ["Random", "Bayesian"])
def test_a_range_that_is_too_wide_is_refused_at_once(amt: RunningServer, strategy: str) -> None:
    request = having(create_request(strategy=strategy), f"{CONTINUOUS}.MinValue", "-1.7e308")

    message = refused(amt, having(request, f"{CONTINUOUS}.MaxValue", "1.7e308"))

    assert f"{CONFIG}.ParameterRanges.ContinuousParameterRanges[0].MaxValue" in message
    assert "closer together" in message


def test_several_problems_are_told_at_once(amt: RunningServer) -> None:
    request = having(create_request(), "HyperParameterTuningJobName", "a" * 33)
    request = having(request, f"{CONFIG}.ResourceLimits.MaxRuntimeInSeconds", 60)

    message = refused(amt, request)

    assert message.startswith("3 validation errors detected: ")  # the name breaks its pattern too
    assert "Value '60' at 'hyperParameterTuningJobConfig.resourceLimits.maxRuntimeInSeconds'" in message


def test_a_refused_request_leaves_nothing(amt: RunningServer, client: Any) -> None:
    name = unique("refused")
    refused(amt, having(create_request(name), f"{CONFIG}.Strategy", "Genetic"))

    with pytest.raises(ClientError) as missing:
        describe(client, name)
    assert missing.value.response["Error"]["Code"] == "ResourceNotFound"


def test_null_members_count_as_missing(amt: RunningServer, client: Any) -> None:
    name = unique("nulls")
    request = having(create_request(name, most=1), "WarmStartConfig", None)
    request = having(request, f"{CONFIG}.TuningJobCompletionCriteria", None)

    status, _, answer = post(amt, "CreateHyperParameterTuningJob", request)

    assert status == 200, answer
    assert wait_for_end(client, name)["HyperParameterTuningJobStatus"] == "Completed"


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'"text"', b"\xff\xfe", b'{"MaxResults": NaN}', b"[" * 100_000]
)
def test_what_is_not_a_json_object(amt: RunningServer, body: bytes) -> None:
    status, _, answer = post(amt, "ListHyperParameterTuningJobs", body)

    assert (status, answer["__type"]) == (400, "SerializationException")


def test_a_request_that_is_far_too_large(amt: RunningServer) -> None:
    status, _, answer = post(amt, "ListHyperParameterTuningJobs", b" " * (5 * 1024 * 1024))

    assert (status, answer["__type"]) == (413, "RequestEntityTooLarge")


@pytest.mark.parametrize("target", ["", "SageMaker.MakeCoffee", "CreateHyperParameterTuningJob", "EC2.Run"])
def test_operations_that_do_not_exist(amt: RunningServer, target: str) -> None:
    status, _, answer = post(amt, "", {}, target=target)

    assert (status, answer["__type"]) == (400, "UnknownOperationException")


def test_an_operation_of_sagemaker_that_is_not_offered(client: Any) -> None:
    with pytest.raises(ClientError, match="does not offer CreateModel") as refusal:
        client.create_model(ModelName="m", ExecutionRoleArn="arn:aws:iam::000000000000:role/x")
    assert refusal.value.response["Error"]["Code"] == "UnknownOperationException"


def test_other_methods_are_not_answered(amt: RunningServer) -> None:
    status, _, _ = post(amt, "ListHyperParameterTuningJobs", b"", method="GET")

    assert status == 405


JUNK: tuple[Any, ...] = (
    None,
    True,
    -1,
    1e400,
    "",
    "\x00",
    "é" * 9,
    [],
    [[]],
    {},
    {"X": 1},
    2**70,
    "s3://../..",
)


def paths_in(value: Any, path: str = "") -> Iterator[str]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield f"{path}{key}"
        yield from paths_in(item, f"{path}{key}.")


def test_junk_anywhere_is_refused_or_works_but_never_breaks_the_server(amt: RunningServer) -> None:
    """Every place of a request gets every kind of junk; the shared server's log must stay clean."""
    channel = {
        "ChannelName": "train",
        "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://data/none"}},
    }
    request = create_request(most=1, tags={"a": "b"}, InputDataConfig=[channel], Environment={"A": "b"})
    request[CONFIG]["ParameterRanges"] = {
        "IntegerParameterRanges": [{"Name": "i", "MinValue": "1", "MaxValue": "2", "ScalingType": "Auto"}],
        **request[CONFIG]["ParameterRanges"],
        "CategoricalParameterRanges": [{"Name": "c", "Values": ["a", "b"]}],
    }
    statuses: Counter[str] = Counter()
    for path in paths_in(request):
        for junk in JUNK:
            changed = having(request, path, junk)
            if path != "HyperParameterTuningJobName":
                changed["HyperParameterTuningJobName"] = unique("junk")
            body = json.dumps(changed).replace("Infinity", "1e400")
            status, _, answer = post(amt, "CreateHyperParameterTuningJob", body, region="sa-east-1")
            assert status in (200, 400), (path, junk, answer)
            statuses[answer.get("__type", "accepted")] += 1

    assert set(statuses) <= {"accepted", "ValidationException", "ResourceInUse", "ResourceLimitExceeded"}
    assert statuses["ValidationException"] > 300, statuses


def test_a_hundred_tuning_jobs_at_once_are_the_limit(tmp_path: Path) -> None:
    with running(tmp_path, images=IMAGES, options=("--stop-grace", "0")) as server:
        with client_of(server) as client:
            for number in range(100):
                client.create_hyper_parameter_tuning_job(
                    **create_request(f"n{number}", sequence="hang", most=1)
                )
            with pytest.raises(ClientError, match="concurrent hyperparameter tuning jobs is 100") as refusal:
                client.create_hyper_parameter_tuning_job(**create_request("one-more"))
            assert refusal.value.response["Error"]["Code"] == "ResourceLimitExceeded"

            stopped = run_stop(client, "n7")
            assert stopped["HyperParameterTuningJobStatus"] == "Stopped"
            client.create_hyper_parameter_tuning_job(**create_request("one-more", most=1))
            assert wait_for_end(client, "one-more")["HyperParameterTuningJobStatus"] == "Completed"
        assert server.stop() == 0
        assert training_processes("us-east-1/n") == []


def run_stop(client: Any, name: str) -> dict[str, Any]:
    client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    return wait_for_end(client, name)


# --- names and regions -----------------------------------------------------------------------------


def test_a_name_is_taken_whatever_its_case(client: Any) -> None:
    name = unique("Case")
    run_to_end(client, create_request(name, most=1))

    with pytest.raises(ClientError) as taken:
        client.create_hyper_parameter_tuning_job(**create_request(name.upper(), most=1))

    assert taken.value.response["Error"]["Code"] == "ResourceInUse"
    arn = describe(client, name)["HyperParameterTuningJobArn"]
    assert arn == f"arn:aws:sagemaker:us-east-1:000000000000:hyper-parameter-tuning-job/{name.lower()}"
    assert arn in str(taken.value)


def test_each_region_has_names_of_its_own(amt: RunningServer, client: Any) -> None:
    name = unique("region")
    run_to_end(client, create_request(name, most=1))
    with client_of(amt, region="eu-west-1") as other:
        with pytest.raises(ClientError, match="can't find"):
            describe(other, name)
        description = run_to_end(other, create_request(name, most=1))
        assert description["HyperParameterTuningJobArn"].startswith("arn:aws:sagemaker:eu-west-1:")


def test_an_unsigned_call_is_of_the_default_region(amt: RunningServer) -> None:
    status, _, answer = post(
        amt, "ListHyperParameterTuningJobs", {"NameContains": "region", "MaxResults": 100}
    )
    signed = post(
        amt, "ListHyperParameterTuningJobs", {"NameContains": "region", "MaxResults": 100}, region="us-east-1"
    )

    assert status == 200
    assert answer == signed[2]


def test_quotas(amt: RunningServer) -> None:
    for path, value in (("MaxParallelTrainingJobs", 101), ("MaxNumberOfTrainingJobs", 10_001)):
        request = having(create_request(), f"{CONFIG}.ResourceLimits.{path}", value)
        status, _, answer = post(amt, "CreateHyperParameterTuningJob", request)
        assert (status, answer["__type"]) == (400, "ResourceLimitExceeded")
        assert str(value) in answer["message"]


# --- listing ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def listed(amt: RunningServer) -> Any:
    """Seven tuning jobs in a region of their own, oldest first: c0 to c6; c6 is stopped."""
    with client_of(amt, region="ap-south-1") as client:
        for number in range(6):
            run_to_end(client, create_request(f"c{number}", most=1))
        client.create_hyper_parameter_tuning_job(**create_request("c6", sequence="hang", most=1))
        client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName="c6")
        wait_for_end(client, "c6")
        yield client


def names(client: Any, **options: Any) -> list[str]:
    pages = client.get_paginator("list_hyper_parameter_tuning_jobs").paginate(**options)
    return [
        summary["HyperParameterTuningJobName"]
        for page in pages
        for summary in page["HyperParameterTuningJobSummaries"]
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("sort_by", ["Name", "CreationTime"])
def test_pages_have_every_job_once(listed: Any, size: int, sort_by: str) -> None:
    expected = [f"c{number}" for number in range(7)]
    options = {"SortBy": sort_by, "PaginationConfig": {"PageSize": size}}

    assert names(listed, **options) == expected
    assert names(listed, SortOrder="Descending", **options) == expected[::-1]


def test_pages_have_every_job_once_where_the_sorted_values_are_equal(listed: Any) -> None:
    found = names(listed, SortBy="Status", PaginationConfig={"PageSize": 2})

    assert sorted(found) == [f"c{number}" for number in range(7)]
    assert found[-1] == "c6"


def test_filters(listed: Any) -> None:
    assert names(listed, StatusEquals="Stopped") == ["c6"]
    assert names(listed, StatusEquals="InProgress") == []
    assert names(listed, NameContains="C4") == ["c4"]

    def between(key: str, first: str, second: str) -> datetime:
        """Moments of the two are far apart by the server's clock; some clients send whole seconds."""
        earlier, later = describe(listed, first)[key], describe(listed, second)[key]
        assert later - earlier > timedelta(seconds=4)
        middle: datetime = earlier + (later - earlier) / 2
        return middle.replace(microsecond=0)

    created = between("CreationTime", "c3", "c4")
    assert names(listed, CreationTimeAfter=created) == ["c4", "c5", "c6"]
    assert names(listed, CreationTimeBefore=created) == ["c0", "c1", "c2", "c3"]
    modified = between("LastModifiedTime", "c0", "c1")
    assert names(listed, LastModifiedTimeBefore=modified) == ["c0"]
    assert names(listed, LastModifiedTimeAfter=modified, CreationTimeBefore=created) == ["c1", "c2", "c3"]


def test_time_filters_are_exclusive(amt: RunningServer, listed: Any) -> None:
    moment = describe(listed, "c2")["CreationTime"].timestamp()

    def found(**filters: float) -> list[str]:
        body = {"SortBy": "CreationTime", **filters}
        _, _, answer = post(amt, "ListHyperParameterTuningJobs", body, region="ap-south-1")
        return [one["HyperParameterTuningJobName"] for one in answer["HyperParameterTuningJobSummaries"]]

    assert found(CreationTimeAfter=moment) == ["c3", "c4", "c5", "c6"]
    assert found(CreationTimeBefore=moment) == ["c0", "c1"]
    assert found(CreationTimeAfter=moment - 0.001, CreationTimeBefore=moment + 0.001) == ["c2"]


def test_summaries_agree_with_descriptions(listed: Any) -> None:
    (summary,) = listed.list_hyper_parameter_tuning_jobs(NameContains="c5")[
        "HyperParameterTuningJobSummaries"
    ]
    description = describe(listed, "c5")

    for key in (
        "HyperParameterTuningJobArn",
        "HyperParameterTuningJobStatus",
        "CreationTime",
        "HyperParameterTuningEndTime",
        "LastModifiedTime",
        "TrainingJobStatusCounters",
        "ObjectiveStatusCounters",
    ):
        assert summary[key] == description[key]
    assert summary["ResourceLimits"] == description[CONFIG]["ResourceLimits"]
    assert summary["Strategy"] == "Random"


@pytest.mark.parametrize("token", ["nonsense", "AAAA", "WzEsMiwzXQ=="])
def test_tokens_that_were_never_given_out(listed: Any, token: str) -> None:
    with pytest.raises(ClientError, match="NextToken") as refusal:
        listed.list_hyper_parameter_tuning_jobs(NextToken=token)
    assert refusal.value.response["Error"]["Code"] == "ValidationException"


def test_a_token_belongs_to_its_query(listed: Any) -> None:
    token = listed.list_hyper_parameter_tuning_jobs(MaxResults=1)["NextToken"]

    with pytest.raises(ClientError, match="same filters"):
        listed.list_hyper_parameter_tuning_jobs(MaxResults=1, NextToken=token, SortBy="CreationTime")


def test_the_default_page_has_ten(client: Any) -> None:
    name = run_to_end(client, create_request(most=12, parallel=4))["HyperParameterTuningJobName"]

    page = client.list_training_jobs_for_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)

    assert len(page["TrainingJobSummaries"]) == 10
    assert "NextToken" in page
    assert len(training_jobs(client, name)) == 12


def test_training_jobs_by_objective_and_status(client: Any) -> None:
    request = create_request(sequence="0.2 fail 0.9 none 0.5", most=5)
    name = run_to_end(client, request)["HyperParameterTuningJobName"]

    def objectives(**options: Any) -> list[float]:
        return [
            job["FinalHyperParameterTuningJobObjectiveMetric"]["Value"]
            for job in training_jobs(client, name, SortBy="FinalObjectiveMetricValue", **options)
        ]

    assert objectives() == [0.2, 0.5, 0.9]
    assert objectives(SortOrder="Descending") == [0.9, 0.5, 0.2]
    assert len(training_jobs(client, name, StatusEquals="Failed")) == 1
    assert len(training_jobs(client, name, StatusEquals="Completed")) == 4
    created = [job["CreationTime"] for job in training_jobs(client, name, SortBy="CreationTime")]
    assert created == sorted(created)


def test_a_running_job(client: Any) -> None:
    name = unique("running")
    client.create_hyper_parameter_tuning_job(**create_request(name, sequence="hang", most=2, tags={"a": "b"}))
    (job,) = wait_until(lambda: training_jobs(client, name), "the training job")

    description = describe(client, name)
    assert description["HyperParameterTuningJobStatus"] == "InProgress"
    assert description["ObjectiveStatusCounters"]["Pending"] == 1
    assert "HyperParameterTuningEndTime" not in description
    assert job["ObjectiveStatus"] == "Pending"
    assert "TrainingEndTime" not in job

    def details() -> dict[str, Any]:
        answer: dict[str, Any] = client.describe_training_job(TrainingJobName=job["TrainingJobName"])
        assert answer["TrainingJobStatus"] == "InProgress"
        return answer

    # It is listed from its launch on, when its process is being started.
    wait_until(lambda: details()["SecondaryStatus"] == "Training", "the training job to train")
    # Tags of the tuning job are those of the training jobs it launches.
    assert client.list_tags(ResourceArn=job["TrainingJobArn"])["Tags"] == [{"Key": "a", "Value": "b"}]
    client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    wait_for_end(client, name)


@pytest.mark.parametrize(
    ("call", "parameters", "code"),
    [
        (
            "describe_hyper_parameter_tuning_job",
            {"HyperParameterTuningJobName": "nobody"},
            "ResourceNotFound",
        ),
        ("stop_hyper_parameter_tuning_job", {"HyperParameterTuningJobName": "nobody"}, "ResourceNotFound"),
        (
            "list_training_jobs_for_hyper_parameter_tuning_job",
            {"HyperParameterTuningJobName": "nobody"},
            "ResourceNotFound",
        ),
        ("describe_training_job", {"TrainingJobName": "nobody"}, "ValidationException"),
    ],
)
def test_what_does_not_exist(client: Any, call: str, parameters: dict[str, str], code: str) -> None:
    with pytest.raises(ClientError) as missing:
        getattr(client, call)(**parameters)
    assert missing.value.response["Error"]["Code"] == code
    assert "nobody" in str(missing.value)


# --- tags ------------------------------------------------------------------------------------------


def test_tags(client: Any) -> None:
    description = run_to_end(client, create_request(most=1, tags={"team": "blue", "cost": "7"}))
    arn = description["HyperParameterTuningJobArn"]

    added = client.add_tags(
        ResourceArn=arn, Tags=[{"Key": "team", "Value": "red"}, {"Key": "new", "Value": ""}]
    )
    expected = [
        {"Key": "team", "Value": "red"},
        {"Key": "cost", "Value": "7"},
        {"Key": "new", "Value": ""},
    ]
    assert added["Tags"] == expected
    assert client.list_tags(ResourceArn=arn)["Tags"] == expected

    client.delete_tags(ResourceArn=arn, TagKeys=["cost", "never there"])
    assert [tag["Key"] for tag in client.list_tags(ResourceArn=arn)["Tags"]] == ["team", "new"]


def test_a_resource_has_fifty_tags_at_most(client: Any) -> None:
    many = {f"key{number}": "value" for number in range(50)}
    arn = run_to_end(client, create_request(most=1, tags=many))["HyperParameterTuningJobArn"]

    client.add_tags(ResourceArn=arn, Tags=[{"Key": "key0", "Value": "changed"}])
    with pytest.raises(ClientError, match="50 tags at most"):
        client.add_tags(ResourceArn=arn, Tags=[{"Key": "one too many", "Value": ""}])
    assert len(client.list_tags(ResourceArn=arn)["Tags"]) == 50


def test_tags_of_what_does_not_exist(client: Any) -> None:
    arn = "arn:aws:sagemaker:us-east-1:000000000000:hyper-parameter-tuning-job/nobody"
    calls: dict[str, dict[str, Any]] = {
        "list_tags": {},
        "add_tags": {"Tags": [{"Key": "a", "Value": "b"}]},
        "delete_tags": {"TagKeys": ["a"]},
    }
    for call, parameters in calls.items():
        with pytest.raises(ClientError, match="could not find") as missing:
            getattr(client, call)(ResourceArn=arn, **parameters)
        assert missing.value.response["Error"]["Code"] == "ValidationException"


# --- the read-only view of S3 ----------------------------------------------------------------------


@pytest.fixture
def storage(amt: RunningServer) -> Iterator[Any]:
    """An S3 client of the shared server, with a bucket that has files."""
    import boto3

    folder = amt.state_dir / "s3" / "view"
    (folder / "a" / "b").mkdir(parents=True, exist_ok=True)
    for key in ("a/1.csv", "a/2.csv", "a/b/3 & <4>.csv", "top"):
        (folder / key).write_text(f"content of {key}")
    client = boto3.client(
        "s3",
        endpoint_url=amt.endpoint,
        region_name="us-east-1",
        aws_access_key_id=amt.credentials.access_key_id,
        aws_secret_access_key=amt.credentials.secret_access_key,
    )
    yield client
    client.close()


def test_s3_objects_can_be_looked_up_and_fetched(storage: Any) -> None:
    storage.head_bucket(Bucket="view")
    assert storage.head_object(Bucket="view", Key="a/1.csv")["ContentLength"] == len("content of a/1.csv")
    body = storage.get_object(Bucket="view", Key="a/b/3 & <4>.csv")["Body"]
    assert body.read() == b"content of a/b/3 & <4>.csv"

    for call, parameters in (
        ("head_bucket", {"Bucket": "no-such-bucket"}),
        ("head_object", {"Bucket": "view", "Key": "a"}),
        ("head_object", {"Bucket": "view", "Key": "missing"}),
        ("get_object", {"Bucket": "view", "Key": "a/"}),
    ):
        with pytest.raises(ClientError) as missing:
            getattr(storage, call)(**parameters)
        assert missing.value.response["ResponseMetadata"]["HTTPStatusCode"] == 404


def test_s3_listing(storage: Any) -> None:
    def keys(**options: Any) -> tuple[list[str], list[str]]:
        pages = list(storage.get_paginator("list_objects_v2").paginate(Bucket="view", **options))
        found = [one["Key"] for page in pages for one in page.get("Contents", [])]
        folded = [one["Prefix"] for page in pages for one in page.get("CommonPrefixes", [])]
        return found, folded

    everything = ["a/1.csv", "a/2.csv", "a/b/3 & <4>.csv", "top"]
    assert keys() == (everything, [])
    assert keys(PaginationConfig={"PageSize": 1}) == (everything, [])
    assert keys(Prefix="a/", Delimiter="/") == (["a/1.csv", "a/2.csv"], ["a/b/"])
    assert keys(Prefix="a/2") == (["a/2.csv"], [])
    assert keys(Prefix="nothing") == ([], [])


def test_a_listing_does_not_hold_up_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk through the folder goes on only once the event loop has done something else meanwhile."""
    (tmp_path / "bucket").mkdir()
    walking, elsewhere = threading.Event(), threading.Event()
    keys = s3_view.keys
    held_up: list[bool] = []

    def walk(place: Place, **options: str) -> Iterator[tuple[str, Path]]:
        walking.set()
        held_up.append(not elsewhere.wait(5))
        return keys(place, **options)

    monkeypatch.setattr(s3_view, "keys", walk)
    routes = s3_view.routes(Places(s3_root=tmp_path))
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    async def do_something_else() -> None:
        await asyncio.to_thread(walking.wait, 5)
        elsewhere.set()

    async def list_bucket() -> None:
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/bucket",
            "query_string": b"list-type=2",
            "headers": [],
        }
        await asyncio.gather(
            Starlette(routes=routes)(scope, receive, send),
            do_something_else(),
        )

    asyncio.run(list_bucket())

    assert held_up == [False]
    assert sent[0]["status"] == 200
    assert b"<KeyCount>0</KeyCount>" in sent[1]["body"]


def test_s3_cannot_be_written_or_left(amt: RunningServer, storage: Any) -> None:
    with pytest.raises(ClientError) as refusal:
        storage.put_object(Bucket="view", Key="new", Body=b"x")
    assert refusal.value.response["ResponseMetadata"]["HTTPStatusCode"] == 405
    assert not (amt.state_dir / "s3" / "view" / "new").exists()
    for path in ("/view/../../amt.sqlite3", "/view/%2e%2e/%2e%2e/amt.sqlite3", "/%2e%2e/amt.sqlite3"):
        connection = http.client.HTTPConnection(urlsplit(amt.endpoint).netloc, timeout=20)
        connection.request("GET", path, headers=amt.signed("GET", path, b""))
        assert connection.getresponse().status in (400, 403, 404)
        connection.close()
