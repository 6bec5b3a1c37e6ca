"""``--with-aws``: S3 over the folder, STS, IAM and CloudWatch Logs beside SageMaker, at one endpoint."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import psutil
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from airflow_amt.cli import local as command_line
from airflow_amt.cli.main import main
from airflow_amt.local import RunningServer, running
from airflow_amt.local.aws.logs import GROUP, LONGEST_EVENT, LogsError, TrainingLogs
from tests.local.raw_http import Request, exchange
from tests.local.support import (
    IMAGES,
    client_of,
    create_request,
    run_to_end,
    training_jobs,
    training_processes,
    unique,
    wait_until,
)

OPTIONS = ("--with-aws", "--stop-grace", "0.3")
REGION = "eu-west-1"


class Aws:
    """The services of one server, and the folder that stands for S3."""

    def __init__(self, server: RunningServer) -> None:
        self.server = server
        self.root = server.state_dir / "s3"
        self.s3, self.sts, self.iam, self.logs, self.sagemaker = (
            self.client(name) for name in ("s3", "sts", "iam", "logs", "sagemaker")
        )

    def client(self, service: str) -> Any:
        return boto3.session.Session().client(
            service,
            endpoint_url=self.server.endpoint,
            region_name=REGION,
            aws_access_key_id=self.server.credentials.access_key_id,
            aws_secret_access_key=self.server.credentials.secret_access_key,
            config=Config(retries={"total_max_attempts": 1}),
        )

    def bucket(self) -> str:
        name = unique("bucket")
        self.s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
        return name

    def keys(self, bucket: str, **options: Any) -> list[str]:
        return [one["Key"] for one in self.s3.list_objects_v2(Bucket=bucket, **options).get("Contents", ())]

    def get(self, bucket: str, key: str, **options: Any) -> bytes:
        body: bytes = self.s3.get_object(Bucket=bucket, Key=key, **options)["Body"].read()
        return body

    def close(self) -> None:
        for client in (self.s3, self.sts, self.iam, self.logs, self.sagemaker):
            client.close()


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with running(tmp_path_factory.mktemp("aws"), images=IMAGES, options=OPTIONS) as server:
        services = Aws(server)
        yield services
        services.close()
        assert "Traceback" not in server.log, server.log


def signing_for(s3: RunningServer) -> dict[str, str]:
    """The environment of a server whose ``s3://`` is another embedded AMT."""
    return {**os.environ, **s3.environment()}


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def code_of(error: pytest.ExceptionInfo[ClientError]) -> str:
    code: str = error.value.response["Error"]["Code"]
    return code


# --- one endpoint ----------------------------------------------------------------------------------


def test_one_endpoint_serves_all(aws: Aws) -> None:
    assert aws.sts.get_caller_identity()["Account"] == "000000000000"
    assert aws.sagemaker.list_hyper_parameter_tuning_jobs()["HyperParameterTuningJobSummaries"] is not None
    assert isinstance(aws.s3.list_buckets()["Buckets"], list)
    assert [one["logGroupName"] for one in aws.logs.describe_log_groups()["logGroups"]] == [GROUP]


def test_other_services_are_refused(aws: Aws) -> None:
    client = aws.client("dynamodb")
    with pytest.raises(
        ClientError, match=r"does not offer dynamodb. It offers sagemaker, iam, logs, s3, sts"
    ):
        client.list_tables()
    client.close()


def test_the_account_is_the_servers(tmp_path: Path) -> None:
    with running(tmp_path, options=(*OPTIONS, "--account", "123456789012")) as server:
        aws = Aws(server)
        assert aws.sts.get_caller_identity()["Account"] == "123456789012"
        assert aws.iam.get_role(RoleName="any")["Role"]["Arn"] == "arn:aws:iam::123456789012:role/any"
        bucket = aws.bucket()
        aws.s3.head_bucket(Bucket=bucket, ExpectedBucketOwner="123456789012")
        aws.close()


# --- S3 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["plain", "a/b/c.txt", "with space+plus", "ä/ü%2F.txt", "tilde~'(x)'=&?#"])
def test_what_is_put_is_a_file_and_comes_back(aws: Aws, key: str) -> None:
    bucket = aws.bucket()
    aws.s3.put_object(Bucket=bucket, Key=key, Body=b"content", ContentType="text/x", Metadata={"own": "1"})

    assert files(aws.root / bucket) == {key: b"content"}
    assert aws.get(bucket, key) == b"content"
    head = aws.s3.head_object(Bucket=bucket, Key=key)
    assert head["ContentLength"] == 7
    assert head["ETag"] == '"9a0364b9e99bb480dd25e1f0284c8555"'
    assert (head["ContentType"], head["Metadata"]) == ("text/x", {"own": "1"})
    assert aws.keys(bucket) == [key]


def test_what_is_signed_cannot_be_changed_by_headers_with_underscores(aws: Aws) -> None:
    """WSGI has one name for x-amz-copy-source and x_amz_copy_source; only the former is looked for."""
    bucket = aws.bucket()
    aws.s3.put_object(Bucket=bucket, Key="secret", Body=b"secret")
    address = aws.s3.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "up"})
    for name in ("X_Amz_Copy_Source", "X-Amz_Copy-Source"):
        request = urllib.request.Request(
            address, data=b"own", method="PUT", headers={name: f"{bucket}/secret"}
        )
        request.add_header("Content-Type", "")
        urllib.request.urlopen(request).close()
        assert aws.get(bucket, "up") == b"own"


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_an_upload_is_no_form_whatever_its_type_says(aws: Aws, kind: str) -> None:
    bucket = aws.bucket()
    aws.s3.put_object(Bucket=bucket, Key="rows.csv", Body=b"a=1&b=2\n", ContentType=kind)
    assert aws.get(bucket, "rows.csv") == b"a=1&b=2\n"


def test_an_upload_that_is_cut_off_or_refused_leaves_the_object_as_it_was(aws: Aws) -> None:
    bucket = aws.bucket()
    aws.s3.put_object(Bucket=bucket, Key="kept", Body=b"old")
    address = urlsplit(aws.s3.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "kept"}))
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        head = f"PUT {address.path}?{address.query} HTTP/1.1\r\nHost: {address.netloc}\r\n"
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n".encode())
    with pytest.raises(ClientError):
        aws.s3.put_object(Bucket=bucket, Key="kept", Body=b"new", Tagging="aws:reserved=1")
    assert aws.get(bucket, "kept") == b"old"
    assert (aws.root / bucket / "kept").read_bytes() == b"old"


def test_what_is_put_into_the_folder_is_an_object(aws: Aws) -> None:
    bucket = unique("folder")
    (aws.root / bucket / "deep").mkdir(parents=True)
    path = aws.root / bucket / "deep" / "file"
    path.write_bytes(b"first")
    assert bucket in [one["Name"] for one in aws.s3.list_buckets()["Buckets"]]
    assert aws.keys(bucket, Prefix="deep/") == ["deep/file"]
    assert aws.get(bucket, "deep/file") == b"first"
    path.write_bytes(b"second one")
    assert aws.get(bucket, "deep/file") == b"second one"
    assert aws.s3.head_object(Bucket=bucket, Key="deep/file")["ContentLength"] == 10
    path.unlink()
    assert aws.keys(bucket) == []
    with pytest.raises(ClientError) as error:
        aws.get(bucket, "deep/file")
    assert code_of(error) == "NoSuchKey"


def test_large_objects_in_parts_and_in_ranges(aws: Aws) -> None:
    bucket = aws.bucket()
    content = os.urandom(20_000_000)
    aws.s3.upload_fileobj(io.BytesIO(content), bucket, "large")  # boto3 makes several parts of it
    assert (aws.root / bucket / "large").read_bytes() == content
    again = io.BytesIO()
    aws.s3.download_fileobj(bucket, "large", again)
    assert again.getvalue() == content
    assert aws.get(bucket, "large", Range="bytes=10-19") == content[10:20]


def test_objects_cost_no_memory_for_their_content(aws: Aws) -> None:
    bucket = aws.bucket()
    process = psutil.Process(aws.server.pid)

    def upload(numbers: range) -> int:
        for number in numbers:
            aws.s3.put_object(Bucket=bucket, Key=str(number), Body=bytes(4_000_000))
            aws.get(bucket, str(number))
        return process.memory_info().rss

    # What the first ones take is buffers of the threads, which are used again.
    before = upload(range(12))
    assert upload(range(12, 72)) - before < 100_000_000, "240 MB were uploaded"


def test_copying_and_deleting_are_done_in_the_folder(aws: Aws) -> None:
    bucket, other = aws.bucket(), aws.bucket()
    for key in ("a/1", "a/2", "b/3", "lone"):
        aws.s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    (aws.root / other / "by hand").write_bytes(b"hand")
    aws.s3.copy_object(Bucket=bucket, Key="copied", CopySource={"Bucket": other, "Key": "by hand"})
    aws.s3.delete_object(Bucket=bucket, Key="lone")
    aws.s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "a/1"}, {"Key": "a/2"}]})

    assert files(aws.root / bucket) == {"b/3": b"b/3", "copied": b"hand"}
    assert not (aws.root / bucket / "a").exists()
    with pytest.raises(ClientError) as error:
        aws.s3.delete_bucket(Bucket=bucket)
    assert code_of(error) == "BucketNotEmpty"
    aws.s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "b/3"}, {"Key": "copied"}]})
    aws.s3.delete_bucket(Bucket=bucket)
    assert not (aws.root / bucket).exists()
    with pytest.raises(ClientError):
        aws.s3.head_bucket(Bucket=bucket)


@pytest.mark.parametrize("key", ["used/below", "a//b", "../outside", "a/./b", "x" * 300, "folder"])
def test_keys_that_cannot_be_files_are_refused_and_leave_nothing(aws: Aws, key: str) -> None:
    bucket = aws.bucket()
    aws.s3.put_object(Bucket=bucket, Key="used", Body=b"1")
    aws.s3.put_object(Bucket=bucket, Key="folder/x", Body=b"2")
    with pytest.raises(ClientError, match="cannot be stored as a file") as error:
        aws.s3.put_object(Bucket=bucket, Key=key, Body=b"3")
    assert code_of(error) == "InvalidRequest"
    assert aws.keys(bucket) == ["folder/x", "used"]
    assert files(aws.root / bucket) == {"used": b"1", "folder/x": b"2"}
    assert not (aws.root / "outside").exists()


def test_an_empty_folder_as_consoles_make_it(aws: Aws) -> None:
    bucket = aws.bucket()
    aws.s3.put_object(Bucket=bucket, Key="empty/", Body=b"")
    assert (aws.root / bucket / "empty").is_dir()
    assert aws.keys(bucket) == ["empty/"]


def test_versions(aws: Aws) -> None:
    bucket = aws.bucket()
    aws.s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    first = aws.s3.put_object(Bucket=bucket, Key="x", Body=b"1")["VersionId"]
    aws.s3.put_object(Bucket=bucket, Key="x", Body=b"2")
    assert files(aws.root / bucket) == {"x": b"2"}
    aws.s3.delete_object(Bucket=bucket, Key="x")
    assert files(aws.root / bucket) == {}
    assert aws.keys(bucket) == []
    assert first


def test_a_presigned_address_needs_no_header(aws: Aws) -> None:
    bucket = aws.bucket()
    (aws.root / bucket / "x").write_bytes(b"signed")
    address = aws.s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "x"})
    with urllib.request.urlopen(address) as answer:
        assert answer.read() == b"signed"


@pytest.mark.local
def test_after_a_restart_all_is_there_again(tmp_path: Path) -> None:
    with running(tmp_path, images=IMAGES, options=OPTIONS) as server:
        aws = Aws(server)
        bucket = aws.bucket()
        aws.s3.put_object(Bucket=bucket, Key="a/b", Body=b"kept")
        name = unique("kept")
        run_to_end(aws.sagemaker, create_request(name, most=1))
        (training,) = training_jobs(aws.sagemaker, name)
        before = _events(aws, training["TrainingJobName"])
        assert [one["message"] for one in before] == ["objective=0.5"]
        aws.close()
    with running(tmp_path, images=IMAGES, options=OPTIONS) as server:
        aws = Aws(server)
        assert aws.keys(bucket) == ["a/b"]
        assert aws.get(bucket, "a/b") == b"kept"
        assert _events(aws, training["TrainingJobName"]) == before
        aws.close()


def _stream(aws: Aws, training_job: str) -> str:
    (stream,) = aws.logs.describe_log_streams(logGroupName=GROUP, logStreamNamePrefix=f"{training_job}/")[
        "logStreams"
    ]
    name: str = stream["logStreamName"]
    return name


def _events(aws: Aws, training_job: str) -> list[dict[str, Any]]:
    stream = _stream(aws, training_job)
    events: list[dict[str, Any]] = aws.logs.get_log_events(
        logGroupName=GROUP, logStreamName=stream, startFromHead=True
    )["events"]
    return events


# --- training --------------------------------------------------------------------------------------


@pytest.mark.local
def test_data_from_s3_a_model_in_s3_and_a_log_in_cloudwatch(aws: Aws) -> None:
    bucket = aws.bucket()
    aws.s3.put_object(Bucket=bucket, Key="train/rows.csv", Body=b"1,2\n")
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://{bucket}/train"}}
    name = unique("aws")
    run_to_end(
        aws.sagemaker,
        create_request(
            name,
            most=1,
            InputDataConfig=[{"ChannelName": "train", "DataSource": source}],
            OutputDataConfig={"S3OutputPath": f"s3://{bucket}/out"},
        ),
    )
    (training,) = training_jobs(aws.sagemaker, name)
    described = aws.sagemaker.describe_training_job(TrainingJobName=training["TrainingJobName"])
    model = described["ModelArtifacts"]["S3ModelArtifacts"].removeprefix(f"s3://{bucket}/")
    assert model in aws.keys(bucket)
    assert aws.get(bucket, model)[:2] == b"\x1f\x8b"
    (event,) = _events(aws, training["TrainingJobName"])
    assert event["message"] == "objective=0.5"
    started = described["TrainingStartTime"].timestamp() * 1000
    assert abs(event["timestamp"] - started) < 60_000
    assert all("StatusMessage" in one for one in described["SecondaryStatusTransitions"])


@pytest.mark.local
def test_training_scripts_find_the_services(aws: Aws) -> None:
    name = unique("environment")
    run_to_end(aws.sagemaker, create_request(name, image="echo:1", most=1))
    (training,) = training_jobs(aws.sagemaker, name)
    variables = [one["message"] for one in _events(aws, training["TrainingJobName"])]
    assert f"AWS_ENDPOINT_URL={aws.server.endpoint}" in variables
    assert f"AWS_REGION={REGION}" in variables


@pytest.mark.local
def test_a_log_can_be_followed_while_it_grows(aws: Aws) -> None:
    name = unique("follow")
    aws.sagemaker.create_hyper_parameter_tuning_job(
        **create_request(name, sequence="last", most=1, static={"seconds": "600"})
    )
    wait_until(lambda: training_processes(name), "the training process")
    (training,) = training_jobs(aws.sagemaker, name)
    stream = _stream(aws, training["TrainingJobName"])

    def first() -> Any:
        found = aws.logs.get_log_events(logGroupName=GROUP, logStreamName=stream, startFromHead=True)
        return found if found["events"] else None

    page = wait_until(first, "the first event")
    assert [one["message"] for one in page["events"]] == ["play: waits to be stopped"]
    aws.sagemaker.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)

    def more() -> Any:
        return aws.logs.get_log_events(
            logGroupName=GROUP, logStreamName=stream, nextToken=page["nextForwardToken"]
        )["events"]

    assert [one["message"] for one in wait_until(more, "an event")] == ["objective=0.99"]


@pytest.mark.local
def test_another_server_is_the_s3_of_a_server(aws: Aws, tmp_path: Path) -> None:
    """``AWS_ENDPOINT_URL_S3``: what it trains on is downloaded, and its models are uploaded."""
    bucket = aws.bucket()
    aws.s3.put_object(Bucket=bucket, Key="train/rows.csv", Body=b"1,2\n")
    aws.s3.put_object(Bucket=bucket, Key="code/train.sh", Body=b'echo "objective=$(cat $SM_CHANNEL_TRAIN/*)"')
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://{bucket}/train"}}
    request = create_request(
        unique("remote"),
        most=1,
        static={"sagemaker_program": "train.sh", "sagemaker_submit_directory": f"s3://{bucket}/code"},
        InputDataConfig=[{"ChannelName": "train", "DataSource": source}],
        OutputDataConfig={"S3OutputPath": f"s3://{bucket}/out"},
    )
    request["TrainingJobDefinition"]["AlgorithmSpecification"]["MetricDefinitions"] = [
        {"Name": "objective", "Regex": r"objective=(\d),2"}
    ]
    environment = {**signing_for(aws.server), "AWS_ENDPOINT_URL_S3": aws.server.endpoint}
    with running(tmp_path / "a", environment=environment) as server, client_of(server) as client:
        ended = run_to_end(client, request)
        assert ended["BestTrainingJob"]["FinalHyperParameterTuningJobObjectiveMetric"]["Value"] == 1
        assert not (tmp_path / "a" / "s3").exists()
    assert [key for key in aws.keys(bucket) if key.endswith("/output/model.tar.gz")]
    # A folder that was asked for counts more than the environment.
    with (
        running(
            tmp_path / "b", environment=environment, options=("--s3-root", str(tmp_path / "s3"))
        ) as server,
        client_of(server) as client,
    ):
        ended = run_to_end(client, {**request, "HyperParameterTuningJobName": unique("folder")})
        assert ended["HyperParameterTuningJobStatus"] == "Failed"


@pytest.mark.local
def test_an_s3_server_that_refuses_fails_the_training_job(aws: Aws, tmp_path: Path) -> None:
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://no-such-bucket/train"}}
    name = unique("refused")
    request = create_request(name, most=1, InputDataConfig=[{"ChannelName": "train", "DataSource": source}])
    options = ("--s3-endpoint", aws.server.endpoint)
    with (
        running(tmp_path, images=IMAGES, options=options, environment=signing_for(aws.server)) as server,
        client_of(server) as client,
    ):
        run_to_end(client, request)
        (training,) = training_jobs(client, name)
    assert training["FailureReason"].startswith(
        "ClientError: Data download failed for channel 'train': s3://no-such-bucket/train: An error occurred "
        "(NoSuchBucket)"
    )


# --- IAM -------------------------------------------------------------------------------------------


def test_any_role_exists_trusts_sagemaker_and_may_do_everything(aws: Aws) -> None:
    role = aws.iam.get_role(RoleName="somebody")["Role"]
    assert role["Arn"] == "arn:aws:iam::000000000000:role/somebody"
    (statement,) = role["AssumeRolePolicyDocument"]["Statement"]
    assert statement["Principal"] == {"Service": "sagemaker.amazonaws.com"}
    pages = aws.iam.get_paginator("simulate_principal_policy").paginate(
        PolicySourceArn="arn:aws:iam::000000000000:role/path/another",
        ActionNames=["s3:GetObject", "logs:PutLogEvents"],
    )
    results = [one for page in pages for one in page["EvaluationResults"]]
    assert [(one["EvalActionName"], one["EvalDecision"]) for one in results] == [
        ("s3:GetObject", "allowed"),
        ("logs:PutLogEvents", "allowed"),
    ]
    assert aws.iam.list_attached_role_policies(RoleName="third")["AttachedPolicies"] == []


def test_roles_that_are_made_are_as_they_were_made(aws: Aws) -> None:
    policy = '{"Version": "2012-10-17", "Statement": []}'
    aws.iam.create_role(RoleName="made", AssumeRolePolicyDocument=policy)
    assert aws.iam.get_role(RoleName="made")["Role"]["AssumeRolePolicyDocument"]["Statement"] == []
    with pytest.raises(ClientError) as error:
        aws.iam.delete_role(RoleName="never-made")
    assert code_of(error) == "NoSuchEntity"


# --- CloudWatch Logs -------------------------------------------------------------------------------


def test_groups_of_others_are_motos(aws: Aws) -> None:
    group = "/somebody/else"
    aws.logs.create_log_group(logGroupName=group)
    aws.logs.create_log_stream(logGroupName=group, logStreamName="s")
    event = {"timestamp": int(time.time() * 1000), "message": "hello"}
    aws.logs.put_log_events(logGroupName=group, logStreamName="s", logEvents=[event])
    found = aws.logs.get_log_events(logGroupName=group, logStreamName="s")["events"]
    assert [one["message"] for one in found] == ["hello"]
    aws.logs.delete_log_group(logGroupName=group)


@pytest.mark.parametrize(
    "body",
    [
        "[" * 100_000,
        "[]",
        "NaN",
        '{"logGroupName": ["/aws/sagemaker/TrainingJobs"]}',
        *(
            f'{{"logGroupName": "{GROUP}", "logStreamName": "a/algo-1-1", {member}}}'
            for member in (
                '"limit": "5"',
                '"limit": -1',
                '"limit": 1.5',
                '"limit": true, "startTime": "0"',
                '"startTime": ' + "9" * 5000,
                '"nextToken": "f/' + "9" * 5000 + '"',
                '"nextToken": "f/²"',
                '"logStreamName": "\\u0000/algo-1-1"',
                '"logStreamName": "' + "x" * 5000 + '/algo-1-1"',
                '"logStreamName": "\\ud800/algo-1-1"',
                '"logStreamName": {}',
            )
        ),
    ],
    ids=range(15),
)
def test_odd_requests_for_logs_are_refused(aws: Aws, body: str) -> None:
    headers = {"X-Amz-Target": "Logs_20140328.GetLogEvents", "Content-Type": "application/x-amz-json-1.1"}
    status, content = exchange(aws.server, Request(service="logs", headers=headers, body=body.encode()), 60)
    assert status == 400
    assert json.loads(content)["__type"] in (
        "SerializationException",
        "InvalidParameterException",
        "ResourceNotFoundException",
    )
    assert len(content) < 5000


@pytest.mark.parametrize("values", [["n", -5], ["n", 2**70], ["n", True], ["n"], "n", ["s", 1]])
def test_a_token_of_junk_is_refused(aws: Aws, values: Any) -> None:
    token = base64.urlsafe_b64encode(json.dumps(values).encode()).decode()
    with pytest.raises(ClientError, match="nextToken is invalid"):
        aws.logs.describe_log_streams(logGroupName=GROUP, nextToken=token)


def test_what_moto_fails_at_is_refused_on_one_line_of_the_log(aws: Aws) -> None:
    body = b"Action=%0A2026-01-01%20forged&Version=1"
    for service, request in (
        ("s3", Request(service="s3", method="PATCH", target="/bucket/key")),
        ("sts", None),
    ):
        status, content = exchange(aws.server, request or Request(service="sts", body=body), 60)
        assert status == 400
        told = f"<Message>moto, which stands for {service} here, cannot answer this request"
        assert told.encode() in content
    assert not any(line.startswith("2026-01-01 forged") for line in aws.server.log.splitlines())


def test_a_request_beside_sagemaker_is_limited_and_read_whole(aws: Aws) -> None:
    large = Request(service="logs", body=b"x" * (4 * 1024 * 1024 + 1))
    status, content = exchange(aws.server, large, 60)
    assert (status, b"larger than 4194304 bytes" in content) == (413, True)


def test_missing_streams(aws: Aws) -> None:
    assert aws.logs.describe_log_streams(logGroupName=GROUP, logStreamNamePrefix="no/")["logStreams"] == []
    with pytest.raises(ClientError) as error:
        aws.logs.get_log_events(logGroupName=GROUP, logStreamName="nobody/algo-1-1")
    assert code_of(error) == "ResourceNotFoundException"


class Job:
    """The folder of a training job, and the calls about its log."""

    def __init__(self, root: Path, name: str) -> None:
        self.logs = TrainingLogs(root, "000000000000")
        self.folder = root / REGION / name
        (self.folder / "input" / "config").mkdir(parents=True)
        started = self.folder / "input" / "config" / "hyperparameters.json"
        started.write_text("{}")
        os.utime(started, (1000.5, 1000.5))
        self.stream = f"{name}/algo-1-1000"

    def write(self, content: bytes, moment: float = 2000.0) -> None:
        log = self.folder / "log"
        with log.open("ab") as handle:
            handle.write(content)
        os.utime(log, (moment, moment))

    def call(self, operation: str, **params: Any) -> dict[str, Any]:
        return self.logs.call(operation, REGION, {"logGroupName": GROUP, **params})

    def events(self, **params: Any) -> dict[str, Any]:
        return self.call("GetLogEvents", logStreamName=self.stream, **params)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path, "job-1")


def messages(page: dict[str, Any]) -> list[str]:
    return [one["message"] for one in page["events"]]


def test_pages_forwards_and_backwards(job: Job) -> None:
    job.write(b"".join(b"line %d\n" % number for number in range(10)))
    forwards, token = [], None
    while True:
        page = job.events(startFromHead=True, limit=4, **({"nextToken": token} if token else {}))
        if not page["events"]:
            break
        forwards.append(messages(page))
        token = page["nextForwardToken"]
    assert [len(one) for one in forwards] == [4, 4, 2]
    assert list(chain(*forwards)) == [f"line {number}" for number in range(10)]
    # At the end the token stays the same, as CloudWatch documents.
    assert page["nextForwardToken"] == token
    backwards, token = [], None
    while True:
        page = job.events(limit=4, **({"nextToken": token} if token else {}))
        if not page["events"]:
            break
        backwards.append(messages(page))
        token = page["nextBackwardToken"]
    assert list(chain(*reversed(backwards))) == list(chain(*forwards))
    with pytest.raises(LogsError, match="nextToken"):
        job.events(nextToken="x")


def test_a_line_keeps_the_time_it_was_first_seen_with(job: Job) -> None:
    job.write(b"one\n", 2000.0)
    job.write(b"two\n", 2001.0)
    first = job.events(startFromHead=True)["events"]
    assert [one["timestamp"] for one in first] == [2_001_000, 2_001_000]
    job.write(b"three\n", 3000.0)
    again = job.events(startFromHead=True)["events"]
    assert again[:2] == first
    assert again[2]["timestamp"] == 3_000_000
    # As the SDK goes on: from the last time it saw, leaving out what it had.
    assert messages(job.events(startFromHead=True, startTime=2_001_001)) == ["three"]
    assert messages(job.events(startFromHead=True, endTime=2_001_001)) == ["one", "two"]
    assert messages(Job.events(job, startTime=4_000_000, startFromHead=True)) == []


def test_odd_lines(job: Job) -> None:
    job.write(b"\n10%\r20%\r\n\xff\n" + b"y" * (LONGEST_EVENT + 5) + b"\nlast, without an end")
    assert messages(job.events(startFromHead=True)) == [
        "10%\r20%",
        "�",
        "y" * LONGEST_EVENT,
        "y" * 5,
        "last, without an end",
    ]


def test_a_line_that_is_being_written_is_held_back(job: Job) -> None:
    job.write(b"done\nhal", time.time())
    assert messages(job.events(startFromHead=True)) == ["done"]
    job.write(b"f\n", time.time())
    assert messages(job.events(startFromHead=True)) == ["done", "half"]


def test_a_log_larger_than_a_page(job: Job) -> None:
    lines = [f"{number:06d} " + "z" * 90 for number in range(30_000)]
    job.write("\n".join(lines).encode())
    found, token = [], None
    while True:
        page = job.events(startFromHead=True, **({"nextToken": token} if token else {}))
        if not page["events"]:
            break
        assert len(page["events"]) <= 10_000
        found += messages(page)
        token = page["nextForwardToken"]
    assert found == lines
    assert messages(job.events())[-1] == lines[-1]


def test_filtering_over_streams(tmp_path: Path) -> None:
    jobs = [Job(tmp_path, f"job-{number}") for number in (1, 2, 3)]
    for number, one in enumerate(jobs):
        one.write(b"loss=%d\nother words\n" % number)

    def found(**params: Any) -> list[tuple[str, str]]:
        events, token = [], None
        while True:
            more: dict[str, Any] = {"nextToken": token} if token else {}
            page = jobs[0].call("FilterLogEvents", **params, **more)
            events += [(one["logStreamName"], one["message"]) for one in page["events"]]
            token = page.get("nextToken")
            if token is None:
                return events

    losses = [(one.stream, f"loss={number}") for number, one in enumerate(jobs)]
    assert found(filterPattern="loss") == losses
    assert found(filterPattern="loss", limit=1) == losses
    assert found(filterPattern='"other words"', logStreamNames=[jobs[1].stream]) == [
        (jobs[1].stream, "other words")
    ]
    assert found(filterPattern="-loss", logStreamNamePrefix="job-3") == [(jobs[2].stream, "other words")]
    assert len(found(limit=1)) == 6
    with pytest.raises(LogsError, match="filterPattern"):
        found(filterPattern="{ $.x = 1 }")


def test_describing_streams_in_pages(tmp_path: Path) -> None:
    jobs = [Job(tmp_path, f"job-{number}") for number in (1, 2, 3)]
    jobs[0].write(b"x\n", 9000.0)
    jobs[1].write(b"x\n", 8000.0)
    page = jobs[0].call("DescribeLogStreams", limit=2)
    assert [one["logStreamName"] for one in page["logStreams"]] == [one.stream for one in jobs[:2]]
    last = jobs[0].call("DescribeLogStreams", limit=2, nextToken=page["nextToken"])
    assert [one["logStreamName"] for one in last["logStreams"]] == [jobs[2].stream]
    newest = jobs[0].call("DescribeLogStreams", orderBy="LastEventTime", descending=True)["logStreams"]
    assert [one["logStreamName"] for one in newest] == [jobs[0].stream, jobs[1].stream, jobs[2].stream]
    assert newest[0]["lastEventTimestamp"] == 9_000_000
    assert "lastEventTimestamp" not in newest[2]


@pytest.mark.parametrize("prefix", ["../", "../x", "..", "./"])
def test_prefixes_stay_in_the_folder(job: Job, prefix: str) -> None:
    assert job.call("DescribeLogStreams", logStreamNamePrefix=prefix)["logStreams"] == []
    assert job.logs.call("DescribeLogStreams", "../x", {"logGroupName": GROUP})["logStreams"] == []


# --- the option ------------------------------------------------------------------------------------


def test_without_the_option_none_of_it_is_imported() -> None:
    # a2wsgi is not asked for: uvicorn imports it where it is installed.
    code = (
        "import sys; import airflow_amt.cli.local, airflow_amt.local.server, airflow_amt.local.engine\n"
        "print([name for name in ('moto', 'flask', 'boto3') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_without_the_extra_the_option_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_spec(name: str, *arguments: Any) -> Any:
        return None if name in ("moto", "flask_cors") else found(name, *arguments)

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    assert main(["local", "serve", "--state-dir", str(tmp_path / "state"), "--with-aws"]) == 2
    line = capsys.readouterr().err.strip()
    assert "with-aws: 'moto, flask_cors'" in line
    assert "pip install 'airflow-provider-amt[local-aws]'" in line


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--with-aws", "--s3-endpoint", "http://127.0.0.1:9"], "--with-aws"),
        (["--s3-root", "somewhere", "--s3-endpoint", "http://127.0.0.1:9"], "--s3-root"),
        (["--s3-endpoint", "127.0.0.1:9"], "http://127.0.0.1:9000"),
    ],
)
def test_where_s3_is_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], named: str
) -> None:
    assert main(["local", "serve", "--state-dir", str(tmp_path / "state"), *options]) == 2
    line = capsys.readouterr().err.strip()
    assert line.count("\n") == 0
    assert "s3-endpoint" in line
    assert named in line


def test_the_modules_of_the_extra_are_those_that_are_imported() -> None:
    """A package that the extra does not install would be found missing only when it is used."""
    source = "".join(
        path.read_text() for path in (Path(command_line.__file__).parents[1] / "local" / "aws").glob("*.py")
    )
    imported = {
        line.split()[1].partition(".")[0]
        for line in source.splitlines()
        if line.startswith(("from ", "import ")) and "airflow_amt" not in line
    }
    # The embedded AMT itself needs these two.
    assert imported - set(sys.stdlib_module_names) <= {*command_line.AWS_MODULES, "botocore", "starlette"}
