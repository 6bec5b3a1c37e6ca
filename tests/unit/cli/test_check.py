"""``airflow-amt check``: what the operator would refuse, from a file, with the exit code to act on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_amt.cli.main import main
from tests.unit.requests import create_request

ROOT = Path(__file__).parents[3]
CONFIG = "HyperParameterTuningJobConfig"

_DAG = """
import json
from datetime import datetime, UTC
from airflow.sdk import DAG, task
from airflow_amt.operators.tuning import AmtTuningJobOperator
from airflow_amt.tuning import *

REQUEST = json.loads({request!r})

def changed(**config):
    tuning = {{**REQUEST["HyperParameterTuningJobConfig"], **config}}
    return {{**REQUEST, "HyperParameterTuningJobConfig": tuning}}

with DAG("churn", params={{"jobs": 4, "nothing": 0}}, render_template_as_native_obj={native}) as dag:
{tasks}
"""


def dag_file(folder: Path, tasks: str, *, native: bool = False) -> Path:
    path = folder / "churn_dag.py"
    lines = "\n".join(f"    {line}" for line in tasks.strip().splitlines())
    path.write_text(_DAG.format(request=json.dumps(create_request()), tasks=lines, native=native))
    return path


def request_file(folder: Path, **changes: Any) -> Path:
    path = folder / "request.json"
    path.write_text(json.dumps(create_request(**changes)))
    return path


def checked(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[dict[str, Any]]]:
    """Return the exit code and the findings."""
    exit_code = main(["check", str(path), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert (report["version"], report["file"]) == (1, str(path))
    assert report["ok"] is (exit_code == 0)
    return exit_code, report["checked"]


def fields_of(findings: dict[str, Any]) -> list[str]:
    return [problem["field"] for problem in findings["problems"]]


def test_the_command_as_it_is_typed(tmp_path: Path) -> None:
    """One process for a DAG file with problems: they are on standard output, and nothing else is."""
    path = dag_file(
        tmp_path, 'print("noise")\nAmtTuningJobOperator(task_id="tune", config=changed(Strategy="X"))'
    )
    done = subprocess.run(
        [sys.executable, "-m", "airflow_amt.cli.main", "check", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines() == [
        "churn.tune: 1 problem",
        f"  1. {CONFIG}.Strategy: 'X' is not accepted: it must be one of Bayesian, Random, Hyperband, Grid. "
        "Fix: choose one of Bayesian, Random, Hyperband, Grid.",
    ]
    assert "Traceback" not in done.stderr


def test_a_good_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = request_file(tmp_path)
    assert main(["check", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: no problem\n"


def test_all_problems_of_a_request_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = request_file(
        tmp_path,
        HyperParameterTuningJobName="a" * 33,
        HyperParameterTuningJobConfig__ResourceLimits__MaxRuntimeInSeconds=60,
        TrainingJobDefinition__EnableManagedSpotTraining=True,
    )
    exit_code, (found,) = checked(path, capsys)
    assert exit_code == 1
    assert fields_of(found) == [
        "HyperParameterTuningJobName",
        f"{CONFIG}.ResourceLimits.MaxRuntimeInSeconds",
        "TrainingJobDefinition.StoppingCondition.MaxWaitTimeInSeconds",
    ]
    assert found["problems"][1]["value"] == 60
    assert all(problem["limit"] and problem["fix"] for problem in found["problems"])


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("request.json", "{", "valid JSON"),
        ("request.yaml", "a: b", ".json or .py"),
        ("dag.py", "import no_such_module_here", "no_such_module_here"),
        ("dag.py", "def", "SyntaxError"),
    ],
)
def test_what_cannot_be_read(
    name: str, content: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert main(["check", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if line.startswith("airflow-amt: ")]
    assert named in line


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "request.json")]) == 2
    assert "a file that exists" in capsys.readouterr().err


def test_a_request_that_is_no_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "request.json"
    path.write_text("[]")
    exit_code, (found,) = checked(path, capsys)
    assert (exit_code, fields_of(found)) == (1, ["config"])


def test_what_a_typed_request_refuses_is_told_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = dag_file(tmp_path, "IntegerRange('depth', True, 9).to_request()")
    assert main(["check", str(path)]) == 2
    assert "MinValue: True is not accepted" in capsys.readouterr().err


def test_operators_of_a_dag_with_their_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = dag_file(
        tmp_path,
        """
AmtTuningJobOperator(task_id="good", config=REQUEST)
AmtTuningJobOperator(task_id="bad", config=REQUEST, check_interval=0, criteria={"max_training_jobs": 5},
    on_quota="perhaps", job_name_prefix="x")
AmtTuningJobOperator(task_id="typed", config=TuningJobRequest.from_request(REQUEST))
""",
    )
    exit_code, found = checked(path, capsys)
    assert exit_code == 1
    assert {one["where"]: fields_of(one) for one in found} == {
        "churn.good": [],
        "churn.bad": [
            f"{CONFIG}.ResourceLimits.MaxNumberOfTrainingJobs",
            "job_name_prefix",
            "check_interval",
            "on_quota",
        ],
        "churn.typed": [],
    }


def test_templates_are_rendered_with_the_parameters_defaults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = """
AmtTuningJobOperator(task_id="good", config=changed(
    ResourceLimits={"MaxNumberOfTrainingJobs": "{{ params.jobs }}", "MaxParallelTrainingJobs": 1}))
AmtTuningJobOperator(task_id="bad", config=REQUEST,
    criteria={"max_training_jobs_not_improving": "{{ params.nothing }}"})
"""
    for native in (False, True):
        exit_code, found = checked(dag_file(tmp_path, tasks, native=native), capsys)
        assert exit_code == 1
        assert [fields_of(one) for one in found] == [[], ["max_training_jobs_not_improving"]]
        assert [one["not_checked"] for one in found] == [{}, {}]


def test_other_templates_are_not_checked_and_no_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = dag_file(
        tmp_path,
        """
@task
def names():
    return {"metric": "accuracy", "role": "x"}

given = names()
AmtTuningJobOperator(task_id="tune", check_interval="{{ var.value.interval }}", config={
    **changed(Strategy="{{ ds }}", TrainingJobEarlyStoppingType="Sometimes", StrategyConfig={}),
    "TrainingJobDefinition": {**REQUEST["TrainingJobDefinition"], "RoleArn": given["role"]},
})
AmtTuningJobOperator(task_id="whole", config="{{ params.missing }}")
""",
    )
    exit_code, found = checked(path, capsys)
    assert exit_code == 1
    tune, whole = [one for one in found if not one["where"].endswith("names")]
    assert fields_of(tune) == [f"{CONFIG}.TrainingJobEarlyStoppingType"]
    assert set(tune["not_checked"]) == {
        f"{CONFIG}.Strategy",
        "TrainingJobDefinition.RoleArn",
        "check_interval",
    }
    assert tune["not_checked"][f"{CONFIG}.Strategy"] == "{{ ds }}"
    assert "xcom_pull" in tune["not_checked"]["TrainingJobDefinition.RoleArn"]
    assert (whole["problems"], whole["not_checked"]) == ([], {"config": "{{ params.missing }}"})


def test_mapped_operators(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = dag_file(
        tmp_path,
        """
@task
def requests():
    return [REQUEST]

AmtTuningJobOperator.partial(task_id="listed").expand(config=[REQUEST, changed(Strategy="X")])
AmtTuningJobOperator.partial(task_id="unknown", check_interval=0).expand(config=requests())
AmtTuningJobOperator.partial(task_id="dicts").expand_kwargs([{"config": REQUEST, "on_quota": "?"}])
AmtTuningJobOperator.partial(task_id="given").expand_kwargs(requests())
""",
    )
    exit_code, found = checked(path, capsys)
    assert exit_code == 1
    assert {one["where"]: fields_of(one) for one in found} == {
        "churn.listed[0]": [],
        "churn.listed[1]": [f"{CONFIG}.Strategy"],
        "churn.unknown[0]": ["check_interval"],
        "churn.dicts[0]": ["on_quota"],
        "churn.given[0]": [],
    }


@pytest.mark.parametrize(
    ("arguments", "warned"),
    [
        ("config=changed(ResourceLimits={'MaxParallelTrainingJobs': 1})", True),
        ("config=changed(ResourceLimits={'MaxParallelTrainingJobs': '{{ ds }}'})", True),
        (
            "config=changed(ResourceLimits={'MaxParallelTrainingJobs': 1}), "
            "criteria={'max_training_jobs': '{{ ds }}'}",
            False,
        ),
        ("config=changed(ResourceLimits={'MaxParallelTrainingJobs': 1}, Strategy='{{ ds }}')", False),
        ("config=REQUEST", False),
    ],
)
def test_an_endless_tuning_job_is_warned_about(
    arguments: str, warned: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exit_code, (found,) = checked(
        dag_file(tmp_path, f"AmtTuningJobOperator(task_id='tune', {arguments})"), capsys
    )
    assert exit_code == 0
    assert bool(found["warnings"]) is warned


def test_a_dag_without_tuning_operators(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = dag_file(tmp_path, "pass")
    assert main(["check", str(path)]) == 0
    assert "no AmtTuningJobOperator found" in capsys.readouterr().out


def test_the_example_dags_have_no_problem(capsys: pytest.CaptureFixture[str]) -> None:
    examples = sorted((ROOT / "example_dags").glob("*.py"))
    assert examples
    for path in examples:
        exit_code, found = checked(path, capsys)
        assert (exit_code, [one["problems"] for one in found if one["problems"]]) == (0, [])


def test_an_sla_that_airflow_keeps_is_named_as_not_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = dag_file(
        tmp_path,
        """
AmtTuningJobOperator(task_id="kept", config=REQUEST, policies="variable:nightly_sla")
AmtTuningJobOperator(task_id="misspelt", config=REQUEST, policies="varible:nightly_sla")
AmtTuningJobOperator(task_id="wrong", config=REQUEST, policies={"type": "stalled", "duration": 5})
""",
    )
    exit_code, (kept, misspelt, wrong) = checked(path, capsys)
    assert exit_code == 1
    assert (kept["problems"], kept["not_checked"]) == ([], {"policies": "variable:nightly_sla"})
    assert fields_of(misspelt) == ["policies"]
    assert fields_of(wrong) == ["policies.rules[0].duration"]
    assert main(["check", str(path)]) == 1
    assert "not checked, kept in Airflow: policies: variable:nightly_sla" in capsys.readouterr().out
