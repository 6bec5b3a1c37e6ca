"""Clients that nobody here wrote, unmodified, each in a virtual environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from airflow_amt.local import RunningServer, running
from tests.environments import Environments, client_environment, closed_port
from tests.unit.requests import create_request

pytestmark = pytest.mark.foreign

IMAGE = "foreign.local/trainer:1"


@pytest.fixture(scope="module")
def amt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("foreign")
    script = folder / "train.sh"
    script.write_text("sleep 0.2\necho accuracy=0.5\n")
    with running(folder / "state", images={IMAGE: f"sh {script}"}) as server:
        yield server


def request(name: str, **changes: Any) -> dict[str, Any]:
    return create_request(
        HyperParameterTuningJobName=name,
        TrainingJobDefinition__AlgorithmSpecification__TrainingImage=IMAGE,
        **changes,
    )


@pytest.fixture(scope="module")
def aws(amt: RunningServer, environment: Environments) -> Any:
    """Run the AWS CLI's ``sagemaker`` commands against the embedded AMT."""
    programs = environment("awscli")

    def run(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(programs / "aws"), "sagemaker", command, "--endpoint-url", amt.endpoint, *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, **amt.environment("eu-west-1"), "AWS_PAGER": ""},
            timeout=60,
        )

    return run


def describe(aws: Any, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        aws("describe-hyper-parameter-tuning-job", "--hyper-parameter-tuning-job-name", name).stdout
    )
    return found


def wait_for(aws: Any, name: str, status: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while (found := describe(aws, name))["HyperParameterTuningJobStatus"] != status:
        assert time.monotonic() < deadline, found
    return found


def test_the_aws_cli_creates_describes_and_lists(aws: Any) -> None:
    created = aws("create-hyper-parameter-tuning-job", "--cli-input-json", json.dumps(request("cli-job")))
    assert json.loads(created.stdout)["HyperParameterTuningJobArn"].endswith("/cli-job"), created.stderr
    ended = wait_for(aws, "cli-job", "Completed")
    assert ended["TrainingJobStatusCounters"]["Completed"] == 4
    assert ended["BestTrainingJob"]["FinalHyperParameterTuningJobObjectiveMetric"]["Value"] == 0.5
    listed = json.loads(aws("list-hyper-parameter-tuning-jobs", "--name-contains", "cli-job").stdout)
    assert [one["HyperParameterTuningJobName"] for one in listed["HyperParameterTuningJobSummaries"]] == [
        "cli-job"
    ]
    trained = aws(
        "list-training-jobs-for-hyper-parameter-tuning-job",
        *("--hyper-parameter-tuning-job-name", "cli-job", "--page-size", "3"),
    )
    assert len(json.loads(trained.stdout)["TrainingJobSummaries"]) == 4


def test_the_aws_cli_stops(aws: Any) -> None:
    endless = request(
        "cli-stop",
        HyperParameterTuningJobConfig__ResourceLimits__MaxNumberOfTrainingJobs=500,
    )
    aws("create-hyper-parameter-tuning-job", "--cli-input-json", json.dumps(endless))
    stopped = aws("stop-hyper-parameter-tuning-job", "--hyper-parameter-tuning-job-name", "cli-stop")
    assert stopped.returncode == 0, stopped.stderr
    assert wait_for(aws, "cli-stop", "Stopped")["TrainingJobStatusCounters"]["InProgress"] == 0


def test_the_aws_cli_shows_the_servers_errors(aws: Any) -> None:
    missing = aws("describe-hyper-parameter-tuning-job", "--hyper-parameter-tuning-job-name", "nobody")
    assert missing.returncode != 0
    assert "(ResourceNotFound) when calling the DescribeHyperParameterTuningJob" in missing.stderr
    bad = request("cli-bad", HyperParameterTuningJobConfig__ResourceLimits__MaxRuntimeInSeconds=15_768_001)
    refused = aws("create-hyper-parameter-tuning-job", "--cli-input-json", json.dumps(bad))
    assert "(ValidationException) when calling the CreateHyperParameterTuningJob" in refused.stderr
    assert "maxRuntimeInSeconds" in refused.stderr


# What another person would write with aiobotocore: one session, calls awaited beside each other.
AIO_CLIENT = """
import asyncio, json, sys
from aiobotocore.session import get_session

async def until(client, name, status):
    while True:
        found = await client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
        if found["HyperParameterTuningJobStatus"] == status:
            return found
        await asyncio.sleep(0.1)

async def main(endpoint, short, endless):
    async with get_session().create_client("sagemaker", endpoint_url=endpoint) as client:
        created = await asyncio.gather(
            client.create_hyper_parameter_tuning_job(**short),
            client.create_hyper_parameter_tuning_job(**endless),
        )
        names = [one["HyperParameterTuningJobName"] for one in (short, endless)]
        ended = await until(client, names[0], "Completed")
        pages = client.get_paginator("list_training_jobs_for_hyper_parameter_tuning_job").paginate(
            HyperParameterTuningJobName=names[0], PaginationConfig={"PageSize": 3}
        )
        trained = [[one["TrainingJobStatus"] for one in page["TrainingJobSummaries"]] async for page in pages]
        await client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=names[1])
        stopped = await until(client, names[1], "Stopped")
        try:
            await client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName="nobody")
        except client.exceptions.ResourceNotFound as error:
            missing = error.response["Error"]["Code"]
    answers = {
        "arns": [one["HyperParameterTuningJobArn"] for one in created],
        "ended": ended,
        "trained": trained,
        "stopped": stopped,
        "missing": missing,
    }
    print(json.dumps(answers, default=str))

asyncio.run(asyncio.wait_for(main(sys.argv[1], *map(json.loads, sys.argv[2:])), 60))
"""


def test_aiobotocore_creates_describes_lists_and_stops(amt: RunningServer, environment: Environments) -> None:
    # In an environment of its own, because it pins another botocore than boto3 here needs.
    programs = environment("aiobotocore")
    endless = request("aio-stop", HyperParameterTuningJobConfig__ResourceLimits__MaxNumberOfTrainingJobs=500)
    done = subprocess.run(
        [
            *(str(programs / "python"), "-W", "error::ResourceWarning", "-c", AIO_CLIENT, amt.endpoint),
            *(json.dumps(request("aio-job")), json.dumps(endless)),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, **amt.environment("eu-west-1")},
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "something was not closed"
    answers = json.loads(done.stdout)
    assert [arn.rsplit("/")[-1] for arn in answers["arns"]] == ["aio-job", "aio-stop"]
    assert answers["ended"]["TrainingJobStatusCounters"]["Completed"] == 4
    assert answers["ended"]["BestTrainingJob"]["FinalHyperParameterTuningJobObjectiveMetric"]["Value"] == 0.5
    assert answers["trained"] == [["Completed"] * 3, ["Completed"]]
    assert answers["stopped"]["TrainingJobStatusCounters"]["InProgress"] == 0
    assert answers["missing"] == "ResourceNotFound"


# --- all services at one endpoint -------------------------------------------------------------------

CLIENTS = Path(__file__).parent / "clients"
CODE = CLIENTS / "code"
REGION = "eu-west-1"


class Client:
    """Runs programs of an environment that find all of AWS at one endpoint, and nothing beside it."""

    def __init__(self, programs: Path, folder: Path, variables: Mapping[str, str]) -> None:
        self._programs = programs
        self._folder = folder
        self._variables = variables

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self._programs / program), *arguments],
            capture_output=True,
            text=True,
            cwd=self._folder,
            env=self._variables,
            timeout=240,
        )

    def answer(self, script: str, *arguments: str, after: tuple[str, ...] = ()) -> dict[str, Any]:
        """Run a script of ``clients`` and return what it found out."""
        result = self._folder / "answer.json"
        result.unlink(missing_ok=True)
        done = self.run("python", str(CLIENTS / script), *arguments, str(result), *after)
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        answer: dict[str, Any] = {**json.loads(result.read_text()), "output": done.stdout}
        return answer


@pytest.fixture(scope="module")
def all_of_aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """An embedded AMT with S3, STS, IAM and CloudWatch Logs; no image is mapped."""
    with running(tmp_path_factory.mktemp("aws") / "state", options=("--with-aws",)) as server:
        yield server
        assert "Traceback" not in server.log, server.log


@pytest.fixture(scope="module")
def client_of_all(
    all_of_aws: RunningServer, environment: Environments, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Client]]:
    with closed_port() as port:

        def client(*packages: str) -> Client:
            folder = tmp_path_factory.mktemp("client")
            variables = client_environment(all_of_aws, folder, port, REGION)
            return Client(environment(*packages), folder, variables)

        yield client


def test_boto3_uploads_tunes_a_script_and_reads_log_and_model(client_of_all: Callable[..., Client]) -> None:
    answer = client_of_all("boto3").answer("plain.py", str(CODE))
    assert answer["status"] == "Completed"
    assert answer["counters"]["Completed"] == 3
    assert answer["model"] == ["model.txt"]
    assert answer["log"][0].startswith("trained on 3 rows; accuracy=")
    assert answer["stopped"] == "Stopped"
    assert answer["account"] == "000000000000"


def test_the_aws_cli_copies_and_reads_logs(client_of_all: Callable[..., Client], tmp_path: Path) -> None:
    client = client_of_all("awscli")

    def aws(*arguments: str) -> str:
        done = client.run("aws", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    aws("s3", "mb", "s3://command-line")
    aws("s3", "sync", str(CODE), "s3://command-line/code")
    (tmp_path / "rows.csv").write_text("1\n")
    aws("s3", "cp", str(tmp_path / "rows.csv"), "s3://command-line/data/rows.csv")
    assert "train.py" in aws("s3", "ls", "s3://command-line/code/")
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://command-line/data/"}}
    tuning = create_request(
        HyperParameterTuningJobName="command-line",
        HyperParameterTuningJobConfig__ParameterRanges={
            "ContinuousParameterRanges": [{"Name": "rate", "MinValue": "0", "MaxValue": "1"}]
        },
        TrainingJobDefinition__InputDataConfig=[{"ChannelName": "train", "DataSource": source}],
        TrainingJobDefinition__OutputDataConfig__S3OutputPath="s3://command-line/out",
        TrainingJobDefinition__StaticHyperParameters={
            "sagemaker_program": "train.py",
            "sagemaker_submit_directory": "s3://command-line/code",
            "note": "two words",
            "kernel": "tree",
        },
    )
    aws("sagemaker", "create-hyper-parameter-tuning-job", "--cli-input-json", json.dumps(tuning))
    deadline = time.monotonic() + 60
    while True:
        name = ("--hyper-parameter-tuning-job-name", "command-line")
        found = json.loads(aws("sagemaker", "describe-hyper-parameter-tuning-job", *name))
        if found["HyperParameterTuningJobStatus"] != "InProgress":
            break
        assert time.monotonic() < deadline, found
    assert found["TrainingJobStatusCounters"]["Completed"] == 4, found
    best = found["BestTrainingJob"]["TrainingJobName"]
    aws("s3", "cp", f"s3://command-line/out/{best}/output/model.tar.gz", str(tmp_path / "model.tar.gz"))
    assert (tmp_path / "model.tar.gz").read_bytes()[:2] == b"\x1f\x8b"
    group = ("--log-group-name", "/aws/sagemaker/TrainingJobs")
    events = json.loads(aws("logs", "filter-log-events", *group, "--log-stream-name-prefix", best))["events"]
    assert events[0]["message"].startswith("trained on 1 rows; accuracy=")


# --- the SageMaker Python SDK 2 --------------------------------------------------------------------


@pytest.fixture(scope="module")
def sdk2(client_of_all: Callable[..., Client]) -> Client:
    return client_of_all("sagemaker>=2,<3")


@pytest.fixture(scope="module")
def tuned_by_sdk2(sdk2: Client) -> dict[str, Any]:
    return sdk2.answer("sdk2.py", "tune", str(CODE))


def test_sdk2_tunes_a_script_that_it_uploads(tuned_by_sdk2: dict[str, Any]) -> None:
    answer = tuned_by_sdk2
    assert answer["status"] == "Completed"
    assert answer["statuses"] == ["Completed"]
    assert len(answer["values"]) == 4
    assert all(0 < value <= 1 for value in answer["values"])
    assert {"rate", "kernel", "FinalObjectiveValue", "TrainingJobName"} <= set(answer["columns"])
    assert answer["best"] == answer["best_of_frame"]
    assert answer["model"] == f"s3://sdk-two/{answer['best']}/output/model.tar.gz"


def test_sdk2_attaches(tuned_by_sdk2: dict[str, Any]) -> None:
    """It reads ``_tuning_objective_metric``, ``ResourceConfig`` and ``KmsKeyId`` without looking."""
    answer = tuned_by_sdk2
    assert answer["attached_best"] == answer["best"]
    assert answer["attached_rows"] == 4
    assert answer["attached_metric"] == "accuracy"
    assert answer["hyperparameters"]["_tuning_objective_metric"] == "accuracy"


def test_sdk2_quotes_hyperparameters_and_the_script_gets_them_plain(tuned_by_sdk2: dict[str, Any]) -> None:
    # The script of clients/code fails on any other note than: two words
    assert tuned_by_sdk2["hyperparameters"]["note"] == '"two words"'
    assert tuned_by_sdk2["statuses"] == ["Completed"]


def test_sdk2_goes_on_with_an_attached_tuner(sdk2: Client, tuned_by_sdk2: dict[str, Any]) -> None:
    answer = sdk2.answer("sdk2.py", "attach", str(CODE), after=(tuned_by_sdk2["name"],))
    assert answer["second"] == "sdk2-again"
    assert answer["best"].startswith("sdk2-again-")


def test_sdk2_warm_starts_from_a_parent(sdk2: Client, tuned_by_sdk2: dict[str, Any]) -> None:
    parent = tuned_by_sdk2["name"]
    answer = sdk2.answer("sdk2.py", "warm_start", str(CODE), after=(parent,))
    assert answer["status"] == answer["twin_status"] == "Completed"
    parents = [{"HyperParameterTuningJobName": parent}]
    assert answer["config"] == {
        "ParentHyperParameterTuningJobs": parents,
        "WarmStartType": "TransferLearning",
    }
    assert answer["twin"] == {
        "ParentHyperParameterTuningJobs": parents,
        "WarmStartType": "IdenticalDataAndAlgorithm",
    }
    assert answer["overall_best"]["Value"] >= max(tuned_by_sdk2["values"])


def test_sdk2_streams_the_log_of_a_training_job(tuned_by_sdk2: dict[str, Any]) -> None:
    output = tuned_by_sdk2["output"]
    assert "trained on 3 rows; accuracy=" in output
    assert "Training job completed" in output
    assert "Billable seconds: " in output


def test_sdk2_stops(sdk2: Client) -> None:
    assert sdk2.answer("sdk2.py", "stop", str(CODE))["status"] == "Stopped"


def test_without_a_default_bucket_sdk2_asks_sts_at_a_fixed_address(sdk2: Client) -> None:
    """The reason for ``Session(default_bucket=...)``; and these clients cannot leave loopback."""
    code = (
        "import logging, os, sys; os.environ['AWS_MAX_ATTEMPTS'] = '1'\n"
        "import sagemaker\n"
        "endpoint = logging.getLogger('botocore.endpoint'); endpoint.setLevel('DEBUG')\n"
        "endpoint.addHandler(logging.StreamHandler(sys.stdout))\n"
        "from botocore.exceptions import ProxyConnectionError\n"
        "try:\n"
        "    sagemaker.Session().default_bucket()\n"
        "except ProxyConnectionError as error:\n"
        "    print(error)\n"
    )
    done = sdk2.run("python", "-c", code)
    assert f"https://sts.{REGION}.amazonaws.com" in done.stdout, done.stderr
    assert 'Failed to connect to proxy URL: "http://127.0.0.1:' in done.stdout


# --- the SageMaker Python SDK 3 --------------------------------------------------------------------


@pytest.fixture(scope="module")
def sdk3(client_of_all: Callable[..., Client]) -> Client:
    return client_of_all("sagemaker>=3")


def test_sdk3_tunes_a_script_that_it_uploads(sdk3: Client) -> None:
    """It looks the role up by its name, and reads its trust policy and permissions, before it creates."""
    answer = sdk3.answer("sdk3.py", "tune", str(CODE), "training")
    assert answer["status"] == "Completed"
    assert answer["completed"] == answer["rows"] == 4
    assert answer["best"].startswith(f"{answer['name']}-")
    assert answer["hyperparameters"]["note"] == "two words"
    assert 0 < answer["value"] <= 1


def test_sdk3_stops(sdk3: Client) -> None:
    role = "arn:aws:iam::000000000000:role/service-role/training"
    assert sdk3.answer("sdk3.py", "stop", str(CODE), role)["status"] == "Stopped"
