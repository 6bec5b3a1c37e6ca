"""The example DAGs, each as a process of its own against the embedded AMT, as a user would run it."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from airflow_amt.local import RunningServer, running

pytestmark = [pytest.mark.dags, pytest.mark.local]

ROOT = Path(__file__).parents[2]
REGION = "us-east-1"
TIMEOUT_SECONDS = 900


@pytest.fixture(scope="module")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """An embedded AMT with its bundled trainers."""
    with running(tmp_path_factory.mktemp("examples") / "amt") as server:
        yield server


@pytest.fixture(scope="module")
def registry() -> Iterator[Any]:
    """A client of moto's server, which has what SageMaker is beside tuning: here the model registry."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.session.Session().client(
        "sagemaker",
        endpoint_url=f"http://{host}:{port}",
        region_name=REGION,
        aws_access_key_id="registry",
        aws_secret_access_key="registry",
    )
    yield client
    client.close()
    server.stop()


def run_example(
    airflow_db: Path, folder: Path, name: str, task_id: str, *, conf: dict[str, Any], **connections: str
) -> dict[str, Any]:
    """Run an example DAG; return the states of run and task, and the task's return value."""
    output = folder / "result.json"
    # It has to lie in the DAGs folder, and any path may be one.
    environment = {
        **os.environ,
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "example_dags"),
        **{f"AIRFLOW_CONN_{key.upper()}": given for key, given in connections.items()},
    }
    done = subprocess.run(
        [
            *(sys.executable, "-m", "airflow_amt.cli.dag_run"),
            *("--dag-file", str(ROOT / "example_dags" / f"{name}.py"), "--dag-id", name),
            *("--conf", json.dumps(conf), "--task-id", task_id, "--xcom-key", "return_value"),
            *("--output", str(output)),
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    assert output.exists(), done.stdout[-5000:] + done.stderr[-5000:]
    result: dict[str, Any] = json.loads(output.read_text())
    # Shown by pytest if the test fails.
    print(done.stdout[-20_000:], done.stderr[-5000:])
    return result


def test_fan_out_compares_the_models_of_three_tuning_jobs(
    airflow_db: Path, tmp_path: Path, trainers: RunningServer
) -> None:
    result = run_example(
        airflow_db,
        tmp_path,
        "amt_fan_out",
        "pick_winner",
        conf={"max_training_jobs": 2},
        aws_default=trainers.connection(REGION),
    )
    assert result["dag_run_state"] == "success"
    client = trainers.client(REGION)
    jobs = client.list_hyper_parameter_tuning_jobs()["HyperParameterTuningJobSummaries"]
    bests = {
        job["HyperParameterTuningJobName"]: client.describe_hyper_parameter_tuning_job(
            HyperParameterTuningJobName=job["HyperParameterTuningJobName"]
        )["BestTrainingJob"]
        for job in jobs
        if job["HyperParameterTuningJobStatus"] == "Completed"
    }
    client.close()
    assert len(bests) == 3
    objectives = {
        name: best["FinalHyperParameterTuningJobObjectiveMetric"]["Value"] for name, best in bests.items()
    }
    # Two kernels may do equally well.
    winner = result["value"]["tuning_job"]
    assert objectives[winner] == max(objectives.values()) == result["value"]["objective"]
    assert result["value"]["training_job"] == bests[winner]["TrainingJobName"]


@pytest.mark.parametrize(
    ("variable", "task_id", "action"),
    [
        (None, "enforce", None),  # the default in the example
        ({"rules": [{"type": "deadline", "after_seconds": 1}]}, "enforce", "stop"),
        (None, "look_at_one", None),
    ],
)
def test_tuning_jobs_of_others_are_held_to_what_a_variable_says(
    airflow_db: Path,
    tmp_path: Path,
    trainers: RunningServer,
    monkeypatch: pytest.MonkeyPatch,
    variable: dict[str, Any] | None,
    task_id: str,
    action: str | None,
) -> None:
    if variable is not None:
        monkeypatch.setenv("AIRFLOW_VAR_TUNING_SLA", json.dumps(variable))
    client = trainers.client(REGION)
    name = f"nightly-{task_id.replace('_', '-')}-{action}"
    client.create_hyper_parameter_tuning_job(
        HyperParameterTuningJobName=name,
        HyperParameterTuningJobConfig={
            "Strategy": "Random",
            "HyperParameterTuningJobObjective": {"Type": "Maximize", "MetricName": "validation:accuracy"},
            "ResourceLimits": {"MaxNumberOfTrainingJobs": 500, "MaxParallelTrainingJobs": 1},
            "ParameterRanges": {
                "ContinuousParameterRanges": [{"Name": "C", "MinValue": "0.001", "MaxValue": "1000"}]
            },
        },
        TrainingJobDefinition={
            "AlgorithmSpecification": {
                "TrainingImage": "airflow-amt.local/sklearn-digits:latest",
                "TrainingInputMode": "File",
                "MetricDefinitions": [
                    {"Name": "validation:accuracy", "Regex": "validation accuracy: ([0-9.]+)"}
                ],
            },
            "RoleArn": "arn:aws:iam::000000000000:role/sagemaker-training",
            "OutputDataConfig": {"S3OutputPath": "s3://models/enforced"},
            "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 10},
            "StoppingCondition": {"MaxRuntimeInSeconds": 86400},
        },
    )
    try:
        result = run_example(
            airflow_db,
            tmp_path,
            "amt_enforce_policies",
            task_id,
            conf={"prefix": name, "tuning_job_name": name},
            aws_default=trainers.connection(REGION),
        )
        description = client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    finally:
        with contextlib.suppress(client.exceptions.ClientError):  # it is being stopped already
            client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
        client.close()
    assert (result["dag_run_state"], result["task_state"]) == ("success", "success")
    if task_id == "enforce":
        (looked,) = result["value"]["jobs"]
        assert (looked["tuning_job_name"], looked["stopped"]) == (name, action == "stop")
    else:
        looked = result["value"]
    assert looked["action"] == action
    stopped = description["HyperParameterTuningJobStatus"] in ("Stopping", "Stopped")
    assert stopped is (action == "stop")


@pytest.mark.parametrize(
    ("conf", "task_id", "approval"),
    [
        # Any classifier reaches it with the first training job or soon after.
        ({"target_accuracy": 0.05, "good_enough": 0.05}, "approve", "Approved"),
        ({"target_accuracy": 0.99999, "good_enough": 0.05}, "register", "PendingManualApproval"),
        ({"target_accuracy": 0.99999, "good_enough": 0.99999}, "reject", None),
    ],
    ids=["target-reached", "good-enough", "not-good-enough"],
)
def test_platform_registers_what_is_good_enough_and_approves_what_reached_its_target(
    airflow_db: Path,
    tmp_path: Path,
    trainers: RunningServer,
    registry: Any,
    conf: dict[str, Any],
    task_id: str,
    approval: str | None,
) -> None:
    report = tmp_path / "report" / "jobs.csv"
    group = f"digits-{task_id}"
    result = run_example(
        airflow_db,
        tmp_path,
        "amt_platform",
        task_id,
        conf={**conf, "max_training_jobs": 2, "package_group": group, "report": report.as_uri()},
        aws_default=trainers.connection(REGION),
        models=json.dumps(
            {
                "conn_type": "aws",
                "login": "registry",
                "password": "registry",
                "extra": {"region_name": REGION, "endpoint_url": registry.meta.endpoint_url},
            }
        ),
    )
    assert (result["dag_run_state"], result["task_state"]) == ("success", "success")
    rows = list(csv.DictReader(report.read_text().splitlines()))
    # A training job that was stopped when another one reached the target may have no objective, and no rank.
    ranks = [row["rank"] for row in rows if row["rank"]]
    assert ranks in (["1"], ["1", "2"])
    if approval is None:
        groups = registry.list_model_package_groups()["ModelPackageGroupSummaryList"]
        assert group not in {one["ModelPackageGroupName"] for one in groups}
        return
    package = registry.describe_model_package(ModelPackageName=result["value"])
    assert package["ModelApprovalStatus"] == approval
    (container,) = package["InferenceSpecification"]["Containers"]
    # One that was stopped may rank higher, and its model is not to be used.
    best = next(row["name"] for row in rows if row["status"] == "Completed")
    assert container["ModelDataUrl"] == f"s3://models/platform/{best}/output/model.tar.gz"
    assert container["Image"] == "airflow-amt.local/sklearn-digits:latest"


def test_a_run_in_time_knows_nothing_of_its_deadline(
    airflow_db: Path, tmp_path: Path, trainers: RunningServer
) -> None:
    result = run_example(
        airflow_db,
        tmp_path,
        "amt_deadline_alert",
        "use",
        conf={"max_training_jobs": 2},
        aws_default=trainers.connection(REGION),
    )
    assert (result["dag_run_state"], result["task_state"]) == ("success", "success")
    assert "-00" in result["value"]


@pytest.mark.parametrize(
    ("policy", "conf"),
    [
        # About 70 s of training are spent first, of jobs that take seconds: there is a model by then.
        ("budget", {"budget": 0.01, "floor": 2.0}),
        # Each result can be better than the one before for a while, but not 500 times in a row.
        ("not_improving", {"patience": 1, "minimum_jobs": 2, "floor": 0.05}),
    ],
)
def test_a_stop_policy_ends_the_search_and_keeps_the_model(
    airflow_db: Path, tmp_path: Path, trainers: RunningServer, policy: str, conf: dict[str, Any]
) -> None:
    # Far away in Madrid, too, whenever the test runs.
    due = (datetime.now(UTC) + timedelta(hours=12)).strftime("%H:%M")
    result = run_example(
        airflow_db,
        tmp_path,
        "amt_stop_policies",
        "use",
        conf={"due": due, "check_interval_seconds": 1, **conf},
        aws_default=trainers.connection(REGION),
    )
    assert (result["dag_run_state"], result["task_state"]) == ("success", "success")
    assert result["value"]["policy"] == policy
    assert result["value"]["saved_training_jobs"] > 0
    assert 0 < result["value"]["objective"] <= 1
