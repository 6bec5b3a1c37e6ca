"""Foreign text where people read it: on one line, without what a terminal obeys, and not too much."""

from __future__ import annotations

import json
import logging
import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_amt import text
from airflow_amt.cli.main import main
from airflow_amt.cli.reap import _print_table
from airflow_amt.exceptions import (
    AmtAwsError,
    AmtDeadlineError,
    AmtFieldError,
    AmtJobExistsError,
    AmtRequestError,
)
from airflow_amt.hooks.errors import to_payload
from airflow_amt.local.log_lines import CONTINUED, LineFormatter
from airflow_amt.service_model import aws_message, check_create_request, validate
from airflow_amt.task_exceptions import AmtTuningJobFailed
from airflow_amt.tuning import TuningProgress, infer_outcome
from airflow_amt.tuning.history import TrainingJobResult
from airflow_amt.tuning.naming import Owner
from airflow_amt.tuning.reaping import OwnedJob, ReapCode, ReapDecision
from airflow_amt.tuning.report import outcome_table
from airflow_amt.watch.reaping import Judged, ReapReport

HOSTILE = {
    "line feed": "job\n2026-01-01 00:00:00,000 INFO root: forged",
    "carriage return": "job\rforged",
    "ansi": "\x1b[2J\x1b[1;31mjob",
    "c1 csi": "\x9b31mjob",
    "nul": "job\0",
    "delete": "job\x7f",
    "line separator": "job\u2028forged",
    "next line": "job\x85forged",
    "direction": "job\u202egpj.exe",
    "isolate": "\u2066job",
    "surrogate": "job\ud800",
    "bell": "job\x07",
    "title": "\x1b]0;title\x07job",
    "five megabytes": "x" * 5_000_000,
}
hostile = pytest.mark.parametrize("given", HOSTILE.values(), ids=HOSTILE)


def assert_harmless(told: str, *, lines: int = 1, most: int = 10_000) -> None:
    told.encode()  # nothing that cannot be written to a terminal
    assert len(told) <= most
    assert len(told.splitlines()) == lines
    assert all(line.isprintable() for line in told.split("\n")), told


@hostile
def test_shown(given: str) -> None:
    assert_harmless(text.shown(given), most=250)
    assert_harmless(text.shown_value(given), most=250)
    assert_harmless(text.shown_value({"a": [given, {given: 1}]}), most=250)


def test_shown_says_what_was_there_and_how_much_is_missing() -> None:
    assert text.shown("a\n\x1b[1m\u202e") == r"a\n\x1b[1m\u202e"
    families = "Grüße, 日本語, 👨\u200d👩\u200d👧, a\u200cb"
    assert text.shown(families) == families
    assert text.shown("x" * 200) == "x" * 200
    assert text.shown("x" * 1200) == "x" * 200 + "… (1,000 more characters)"
    # An escape is shown whole or not at all.
    assert text.shown("\0" * 200) == r"\x00" * 50 + "… (150 more characters)"


def test_values_of_any_size_and_depth_are_shown_soon() -> None:
    deep: Any = 1
    for _ in range(800):
        deep = [deep]
    for value in (
        10**5000,
        deep,
        list(range(1_000_000)),
        {str(n): n for n in range(300_000)},
        b"x" * 5_000_000,
    ):
        began = time.process_time()
        assert_harmless(text.shown_value(value), most=250)
        assert time.process_time() - began < 1.0
    assert text.shown_value({"b": 1, "a": None}) == "{'b': 1, 'a': None}"


@hostile
def test_errors(given: str) -> None:
    assert_harmless(
        str(AmtFieldError(given, given, f"text ({given})", "correct it")),
        most=5000,
        lines=1 + ("\n" in given),
    )
    assert_harmless(str(AmtAwsError("Describe", given, given, 400, given)), most=5000)
    assert len(to_payload(AmtAwsError("Describe", "Code", given, 400))["message"]) < 5000
    assert_harmless(str(AmtDeadlineError("One.", [given])), lines=2 + ("\n" in given))
    assert_harmless(str(AmtJobExistsError(given, {"dag-id": given}, {"dag-id": given}, given)))
    assert_harmless(str(AmtTuningJobFailed({"tuning_job_name": given, "explanation": given})), most=5000)


def _description(given: str) -> dict[str, Any]:
    return {
        "HyperParameterTuningJobName": given,
        "HyperParameterTuningJobStatus": "Failed",
        "FailureReason": given,
        "CreationTime": datetime(2026, 1, 1, tzinfo=UTC),
        "BestTrainingJob": {
            "TrainingJobName": given,
            "TrainingJobStatus": "Completed",
            "FinalHyperParameterTuningJobObjectiveMetric": {
                "Type": "Maximize",
                "MetricName": given,
                "Value": 1.0,
            },
        },
    }


@hostile
def test_progress_outcome_and_report(given: str) -> None:
    progress = TuningProgress.from_describe(_description(given))
    assert_harmless(progress.log_line())
    assert progress.name == given  # what calls are made with
    job = TrainingJobResult(
        name=given, status="Failed", failure_reason=given, tuned_hyperparameters={given: given}
    )
    done = TrainingJobResult(
        name=given, status="Completed", objective=1.0, tuned_hyperparameters={given: given}
    )
    outcome = infer_outcome(_description(given), training_jobs=[job, done])
    assert_harmless(outcome.explanation, most=1200)
    table = outcome_table(outcome)
    assert_harmless(table, lines=len(table.split("\n")))
    told = outcome.to_dict()
    assert len(told["failure_reason"]) <= text.MOST_REASON
    assert all(len(one["reason"]) <= text.MOST_REASON for one in told["training_job_failure_reasons"])
    # Read by programs too: bounded, but not rewritten.
    assert told["failure_reason"][:20] == given[:20]
    assert job.failure_reason == given


@hostile
def test_the_command_line(given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"HyperParameterTuningJobName": given, given: [given]}))
    for command in ("check", "plan"):
        assert main([command, str(request)]) != 0
        told = capsys.readouterr()
        for line in (told.out + told.err).splitlines():
            assert_harmless(line, most=5000)
        assert "forged" not in [line.partition(" ")[0] for line in told.out.splitlines()]


@hostile
def test_the_table_of_the_reaper(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    owner = Owner(dag_id=given, run_id=given, task_id=given, map_index=3)
    job = OwnedJob(name=given, owner=owner, tags={}, age=timedelta(seconds=60))
    decision = ReapDecision(code=ReapCode.TASK_OVER, reason=f"[bold red]{given}[/bold red]")
    judged = Judged(job=job, decision=decision)
    _print_table(ReapReport(dry_run=True, judged=[judged], errors=[given]))
    told = capsys.readouterr()
    for line in (told.out + told.err).splitlines():
        assert_harmless(line, most=5000)
    assert "[bold" in told.out  # text, and no markup


def test_problems_are_listed_up_to_a_limit_and_looked_for_up_to_it() -> None:
    request = {f"key-{number}": number for number in range(200_000)}
    began = time.process_time()
    problems = validate("CreateHyperParameterTuningJob", request)
    message = aws_message(problems)
    told = str(AmtRequestError(check_create_request(request)))
    assert time.process_time() - began < 5.0
    assert len(problems) == text.MOST_PROBLEMS + 1
    assert message.startswith("more than 20 validation errors detected: Value '0' at 'key-0'")
    assert message.endswith("; and more")
    assert message.count("failed to satisfy") == text.MOST_PROBLEMS
    assert len(message) < 30_000
    assert told.startswith("Nothing was done; more than 20 fields are wrong:\n  1. key-0: 0 is not accepted")
    assert told.endswith("\n  … and more")
    assert len(told) < 30_000


def test_lists_of_what_is_known_are_cut() -> None:
    request = {"TrainingJobName": "a", "ResourceConfig": {"InstanceType": "ml.x", "VolumeSizeInGB": 1}}
    (problem,) = [one for one in validate("CreateTrainingJob", request) if one.kind == "enum"]
    assert len(problem.limit) > 100
    assert re.search(r"ml\.\S+ and \d+ more\]", aws_message([problem]))
    assert len(aws_message([problem])) < 1500
    assert text.listed(range(45)) == ", ".join(map(str, range(40))) + " and 5 more"


def _formatted(message: str, *arguments: object, error: BaseException | None = None) -> str:
    information = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord("root", logging.INFO, __file__, 1, message, arguments, information)
    return LineFormatter("%(levelname)s %(name)s: %(message)s").format(record)


@hostile
def test_a_record_of_the_servers_log_is_one_line(given: str) -> None:
    assert_harmless(_formatted("%s refused: %s: %s", "Create", "ValidationException", given), most=4200)


@hostile
def test_a_traceback_in_the_servers_log_passes_for_no_record(given: str) -> None:
    try:
        raise ValueError(given)
    except ValueError as error:
        first, *others = _formatted("failed", error=error).split("\n")
    assert first == "INFO root: failed"
    assert f"{CONTINUED}Traceback (most recent call last):" in others
    assert all(line.startswith(CONTINUED) for line in others)
    for line in others:
        assert_harmless(line, most=4200)
