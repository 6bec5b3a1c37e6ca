"""Clients that nobody here wrote, unmodified, each in a virtual environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_amt.local import RunningServer, running
from tests.unit.requests import create_request

pytestmark = pytest.mark.foreign

IMAGE = "foreign.local/trainer:1"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "eu-west-1"}


@pytest.fixture(scope="module")
def amt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("foreign")
    script = folder / "train.sh"
    script.write_text("sleep 0.2\necho accuracy=0.5\n")
    with running(folder / "state", images={IMAGE: f"sh {script}"}) as server:
        yield server


def environment(folder: Path, *packages: str) -> Path:
    """Make a virtual environment with these packages, and return its folder of programs."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    programs = folder / "bin"
    subprocess.run([str(programs / "pip"), "install", "--quiet", *packages], check=True)
    return programs


def request(name: str, **changes: Any) -> dict[str, Any]:
    return create_request(
        HyperParameterTuningJobName=name,
        TrainingJobDefinition__AlgorithmSpecification__TrainingImage=IMAGE,
        **changes,
    )


@pytest.fixture(scope="module")
def aws(amt: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run the AWS CLI's ``sagemaker`` commands against the embedded AMT."""
    programs = environment(tmp_path_factory.mktemp("awscli"), "awscli")

    def run(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(programs / "aws"), "sagemaker", command, "--endpoint-url", amt.endpoint, *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, **CREDENTIALS, "AWS_PAGER": ""},
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


def test_aiobotocore_creates_describes_lists_and_stops(amt: RunningServer, tmp_path: Path) -> None:
    # In an environment of its own, because it pins another botocore than boto3 here needs.
    programs = environment(tmp_path / "aiobotocore", "aiobotocore")
    endless = request("aio-stop", HyperParameterTuningJobConfig__ResourceLimits__MaxNumberOfTrainingJobs=500)
    done = subprocess.run(
        [
            *(str(programs / "python"), "-W", "error::ResourceWarning", "-c", AIO_CLIENT, amt.endpoint),
            *(json.dumps(request("aio-job")), json.dumps(endless)),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, **CREDENTIALS},
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
