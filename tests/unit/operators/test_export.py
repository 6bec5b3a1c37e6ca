"""The export: what is in the file, how it gets there, and what is refused."""

from __future__ import annotations

import csv
import io
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import ObjectStoragePath

from airflow_amt.exceptions import AmtRequestError
from airflow_amt.operators import export
from airflow_amt.operators.export import AmtExportTrainingJobsOperator, to_csv
from airflow_amt.tuning import TrainingJobResult
from airflow_amt.watch import polling
from tests.unit.tasks import CREATED_AT, THROTTLED, FakeHook, describe, task_context, use_hook

NAME = "churn-model"
SUMMARIES: list[dict[str, Any]] = [
    {
        "TrainingJobName": "churn-model-001",
        "TrainingJobDefinitionName": "small",
        "TrainingJobStatus": "Completed",
        "CreationTime": CREATED_AT,
        "TrainingStartTime": CREATED_AT + timedelta(seconds=5),
        "TrainingEndTime": CREATED_AT + timedelta(seconds=65),
        "TunedHyperParameters": {"rank": "8", "shift": "-1e-05"},
        "FinalHyperParameterTuningJobObjectiveMetric": {"MetricName": "accuracy", "Value": 0.5},
    },
    {
        "TrainingJobName": "churn-model-002",
        "TrainingJobStatus": "Failed",
        "CreationTime": CREATED_AT,
        "TunedHyperParameters": {"rank": "4", "booster": "=tree"},
        "FailureReason": '=HYPERLINK("http://evil"), see\nthe "log"',
    },
    {
        "TrainingJobName": "churn-model-003",
        "TrainingJobStatus": "Completed",
        "CreationTime": CREATED_AT,
        "TunedHyperParameters": {"rank": "2", "shift": "0.5"},
        "FinalHyperParameterTuningJobObjectiveMetric": {"MetricName": "accuracy", "Value": 0.75},
    },
]


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "LONGEST_BACKOFF_SECONDS", 0.01)


def run(destination: Any, hook: FakeHook | None = None, **options: Any) -> dict[str, Any]:
    hook = hook or FakeHook({NAME: ["Completed"]}, training_jobs_of={NAME: SUMMARIES})
    options = {"tuning_job_name": NAME, "destination": destination, **options}
    task = AmtExportTrainingJobsOperator(task_id="export", **options)
    use_hook(task, hook)
    result = task.execute(task_context(task_id="export"))
    json.dumps(result)
    return result


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_one_row_each_the_best_first(tmp_path: Path) -> None:
    place = tmp_path / "new" / "jobs.csv"
    result = run(place.as_uri())
    assert result == {
        "version": 1,
        "tuning_job_name": NAME,
        "path": place.as_uri(),
        "rows": 3,
        "ranked": 2,
        "statuses": {"Completed": 2, "Failed": 1},
    }
    found = rows(place.read_bytes().decode())
    assert [(row["rank"], row["name"][-3:], row["objective"]) for row in found] == [
        ("1", "003", "0.75"),
        ("2", "001", "0.5"),
        ("", "002", ""),
    ]
    assert found[1] == {
        "rank": "2",
        "name": "churn-model-001",
        "status": "Completed",
        "objective": "0.5",
        "created_at": "2026-01-01T00:00:00+00:00",
        "started_at": "2026-01-01T00:00:05+00:00",
        "ended_at": "2026-01-01T00:01:05+00:00",
        "training_seconds": "60.0",
        "definition": "small",
        "failure_reason": "",
        "hyperparameter_booster": "",
        "hyperparameter_rank": "8",
        "hyperparameter_shift": "-1e-05",
    }
    assert found[2]["failure_reason"] == '\'=HYPERLINK("http://evil"), see\nthe "log"'
    assert found[2]["hyperparameter_booster"] == "'=tree"
    assert [path.name for path in place.parent.iterdir()] == ["jobs.csv"]


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-cmd", "@SUM(A1)", "\tx", "\r=x", "\n=x"])
def test_formulas_are_disarmed_and_numbers_are_not(text: str) -> None:
    job = TrainingJobResult(
        name="a", status="Failed", failure_reason=text, tuned_hyperparameters={text: "-1"}
    )
    (row,) = rows(to_csv([(None, job)], {}))
    assert row["failure_reason"] == f"'{text}"
    assert row[f"hyperparameter_{text}"] == "-1"
    (row,) = rows(to_csv([(None, job)], {}, escape_formulas=False))
    assert row["failure_reason"] == text


def test_a_tuning_job_without_training_jobs_gives_the_heading_alone(tmp_path: Path) -> None:
    place = tmp_path / "jobs.csv"
    assert run(place.as_uri(), FakeHook({NAME: ["Failed"]}))["rows"] == 0
    assert place.read_bytes() == (",".join(export.COLUMNS) + "\r\n").encode()


def test_another_store_than_a_folder() -> None:
    from airflow.sdk.io import attach
    from fsspec.implementations.memory import MemoryFileSystem

    # Airflow knows no file system for it by itself.
    attach("memory", fs=MemoryFileSystem())
    result = run("memory://exports/jobs.csv")
    assert result["rows"] == 3
    assert len(rows(ObjectStoragePath("memory://exports/jobs.csv").read_bytes().decode())) == 3


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "jobs.csv"
    place.write_text("old")

    def full(_: int) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("airflow_amt.operators.export.os.fsync", full)
        with pytest.raises(OSError, match="no space"):
            run(place.as_uri())
    assert place.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["jobs.csv"]
    with pytest.raises(FileExistsError, match="overwrite is off"):
        run(place.as_uri(), overwrite=False)
    assert place.read_text() == "old"
    run(place.as_uri())
    assert place.read_text().startswith("rank,name")


def test_transient_errors_are_borne(tmp_path: Path) -> None:
    hook = FakeHook({NAME: [THROTTLED, "Completed"]}, training_jobs_of={NAME: SUMMARIES})
    assert run((tmp_path / "jobs.csv").as_uri(), hook)["rows"] == 3


def test_without_a_direction_nothing_is_ranked(tmp_path: Path) -> None:
    description = describe(status="Completed", HyperParameterTuningJobConfig={})
    hook = FakeHook({NAME: [description]}, training_jobs_of={NAME: SUMMARIES})
    assert run((tmp_path / "jobs.csv").as_uri(), hook)["ranked"] == 0


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"tuning_job_name": ""}, ["tuning_job_name"]),
        ({"destination": ""}, ["destination"]),
        ({"destination": "s3://bucket/folder/"}, ["destination"]),
        ({"destination": None, "tuning_job_name": 7}, ["tuning_job_name", "destination"]),
        ({"destination": "nosuchstore://bucket/jobs.csv"}, ["destination"]),
    ],
)
def test_bad_arguments_are_all_named_without_a_call(options: dict[str, Any], fields: list[str]) -> None:
    hook = FakeHook({NAME: ["Completed"]})
    with pytest.raises(AmtRequestError) as caught:
        run(options.pop("destination", "file:///nowhere/b.csv"), hook, **options)
    assert list(dict.fromkeys(problem.field for problem in caught.value.problems)) == fields
    assert hook.calls == []
