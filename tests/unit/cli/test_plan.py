"""``airflow-amt plan``: the plan of a request, with the exit code to act on."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_amt.cli.main import main
from airflow_amt.tuning.costs import PriceTable
from airflow_amt.tuning.planning import plan
from tests.unit.requests import create_request

ROOT = Path(__file__).parents[3]
CONFIG = "HyperParameterTuningJobConfig"
LIMITS = f"{CONFIG}__ResourceLimits"
TABLE = {"currency": "EUR", "per_hour": {"ml.m5.large": 0.36}, "spot_discount": 0.5}


def request_file(folder: Path, **changes: Any) -> str:
    path = folder / "request.json"
    path.write_text(json.dumps(create_request(**changes)))
    return str(path)


def price_file(folder: Path, **changes: Any) -> str:
    path = folder / "prices.json"
    path.write_text(json.dumps({**TABLE, "source": "by hand", "at": "2026-01-01T00:00:00+00:00", **changes}))
    return str(path)


def test_it_prints_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", request_file(tmp_path), "--prices", price_file(tmp_path)]
    assert main([*arguments, "--expected-training-time", "600"]) == 0
    shown = capsys.readouterr()
    expected = plan(create_request(), prices=PriceTable.parse(TABLE), expected_training_seconds=600)
    assert shown.out == f"{expected}\n"
    assert "at most 1.49 EUR" in shown.out
    assert "2,400 instance-seconds" in shown.out
    assert shown.err == ""


def test_json_is_the_plan_and_whether_it_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = request_file(tmp_path)
    assert main(["plan", path, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"version": 1, "ok": True, "problems": [], "plan": plan(create_request()).to_dict()}
    assert main(["plan", path, "--json", "--max-compute-seconds", "3720"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["plan"]["compute_seconds"]["at_most"]) == (False, 14_880)
    assert [problem["field"] for problem in told["problems"]] == ["compute_seconds"]
    assert "to at most 1, or" in told["problems"][0]["fix"]


def test_a_limit_that_is_exceeded_is_refused_with_the_fix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, prices = request_file(tmp_path), price_file(tmp_path)
    keeps = ["--max-cost", "1.49", "--max-billable-seconds", "14880", "--max-compute-seconds", "14880"]
    assert main(["plan", path, "--prices", prices, *keeps]) == 0
    capsys.readouterr()
    assert main(["plan", path, "--prices", prices, "--max-cost", "1", "--max-billable-seconds", "100"]) == 1
    shown = capsys.readouterr()
    assert "compute" in shown.out  # the plan is shown all the same
    assert "refused: 2 problems" in shown.err
    assert "max_cost allows 1.00 EUR" in shown.err
    assert "MaxNumberOfTrainingJobs) to at most 2, or" in shown.err


def test_a_cost_limit_without_the_price_of_a_type_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prices = price_file(tmp_path, per_hour={"ml.c5.xlarge": 1})
    assert main(["plan", request_file(tmp_path), "--prices", prices, "--max-cost", "100"]) == 1
    assert "add ml.m5.large to the price table" in capsys.readouterr().err


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given = io.TextIOWrapper(io.BytesIO(json.dumps(create_request()).encode()))
    monkeypatch.setattr(sys, "stdin", given)
    assert main(["plan", "-"]) == 0
    assert "14,880 instance-seconds" in capsys.readouterr().out


def test_what_templates_left_as_text_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = request_file(tmp_path, **{f"{LIMITS}__MaxNumberOfTrainingJobs": "9"})
    assert main(["plan", path]) == 0
    assert "at most 9:" in capsys.readouterr().out


def test_what_the_operator_sees_to_is_no_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = request_file(
        tmp_path,
        HyperParameterTuningJobName=None,
        TrainingJobDefinition__RoleArn="sagemaker-training",
        S3Operations={"S3CreateBucket": []},
    )
    assert main(["plan", path]) == 0
    assert "(name to be derived)" in capsys.readouterr().out


def test_all_that_is_wrong_with_the_request_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = request_file(
        tmp_path,
        HyperParameterTuningJobName="churn_model",
        TrainingJobDefinition__RoleArn="not a role",
        **{f"{CONFIG}__Strategy": "Bayes", f"{LIMITS}__MaxRuntimeInSeconds": 5},
    )
    assert main(["plan", path]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "4 problems" in shown.err
    for field in ("HyperParameterTuningJobName", "Strategy", "MaxRuntimeInSeconds", "RoleArn"):
        assert field in shown.err
    assert main(["plan", path, "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["plan"], len(told["problems"])) == (False, None, 4)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--max-cost", "0"], "--max-cost"),
        (["--max-cost", "nan"], "--max-cost"),
        (["--max-compute-seconds", "-1"], "--max-compute-seconds"),
        (["--max-billable-seconds", "inf"], "--max-billable-seconds"),
        (["--expected-training-time", "0"], "--expected-training-time"),
    ],
)
def test_an_option_that_cannot_be_used_is_named(
    options: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["plan", request_file(tmp_path), "--prices", price_file(tmp_path), *options]
    assert main(arguments) == 2
    assert f"{named}: " in capsys.readouterr().err


def test_a_cost_limit_without_prices_is_no_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", request_file(tmp_path), "--max-cost", "5"]) == 2
    assert "--prices" in capsys.readouterr().err


def test_a_price_table_that_is_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prices = price_file(tmp_path, currency="", per_hour={"ml.m5.large": -1})
    assert main(["plan", request_file(tmp_path), "--prices", prices]) == 2
    shown = capsys.readouterr().err
    assert "currency" in shown
    assert "per_hour['ml.m5.large']" in shown


@pytest.mark.parametrize("content", [None, b"{", b"[1, 2]", b"\xff\xfe{", b"[" * 100_000])
def test_a_file_that_cannot_be_read_is_named(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "request.json"
    if content is not None:
        path.write_bytes(content)
    assert main(["plan", str(path)]) == 2
    assert capsys.readouterr().err.startswith("airflow-amt: REQUEST.json: ")


def test_it_needs_neither_airflow_nor_a_network(tmp_path: Path) -> None:
    code = (
        "import sys; from airflow_amt.cli.main import main; code = main(sys.argv[1:]);"
        "assert not {'airflow', 'boto3'} & set(sys.modules), 'too much was imported'; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "plan", request_file(tmp_path), "--max-compute-seconds", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    assert "14,880 instance-seconds" in done.stdout
