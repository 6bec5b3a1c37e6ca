"""What people read about a tuning job: complete where much is known, sensible where little is."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_amt.text import JOINERS
from airflow_amt.tuning.message import (
    MAX_LINE,
    MAX_SUBJECT,
    MAX_TEXT,
    as_html,
    as_mrkdwn,
    compact_message,
    duration_text,
    money_text,
    number_text,
)

REPORT: dict[str, Any] = {
    "tuning_job_name": "churn",
    "tuning_job_arn": "arn:aws:sagemaker:eu-west-1:000000000000:hyper-parameter-tuning-job/churn",
    "status": "Stopped",
    "action": "stop",
    "rule": "budget",
    "code": "budget",
    "share": 0.624,
    "reason": "31.2 EUR of 50 are spent.",
    "evidence": {"spent": 31.2},
    "best_objective": 0.9312345678,
    "objective_metric": "validation:auc",
    "training_jobs": {"launched": 44, "ended": 40, "failed": 3, "limit": 200},
    "consumed": {"spent": 31.2, "limit": 50, "unit": "money", "currency": "EUR"},
    "saving": {"training_jobs": 160, "cost": 112.0, "currency": "EUR"},
    "dag_id": "nightly",
    "run_id": "scheduled__2026-11-24",
    "task_id": "tune",
    "console_url": "https://eu-west-1.console.aws.amazon.com/x",
    "airflow_url": "https://airflow.example.com/dags/nightly",
}
OUTCOME: dict[str, Any] = {
    "version": 1,
    "tuning_job_name": "churn",
    "status": "Completed",
    "reason": "max_training_jobs",
    "certain": True,
    "explanation": "200 training jobs were launched; the limit is 200.",
    "evidence": {
        "field": "HyperParameterTuningJobConfig.ResourceLimits.MaxNumberOfTrainingJobs",
        "limit": 200,
        "observed": 200,
    },
    "best_training_job": {"name": "churn-007", "objective": 0.75, "hyperparameters": {"lr": "0.1"}},
    "objective_metric": "accuracy",
    "training_job_counters": {"Completed": 195, "NonRetryableError": 4, "Stopped": 1},
    "runtime_seconds": 12_003.4,
    "training_job_failure_reasons": [{"reason": "OutOfMemory", "count": 4}],
}


def test_a_policy_report_is_told_in_a_few_lines() -> None:
    message = compact_message(REPORT)
    assert message.subject == "Tuning job churn stopped by policy budget"
    assert message.text.splitlines() == [
        "Tuning job churn stopped by policy budget: €31.20 of €50 spent.",
        "Best validation:auc 0.931235 after 40 of 200 training jobs, 3 failed.",
        "Saved about 160 training jobs (€112).",
        "Task tune of DAG nightly, run scheduled__2026-11-24.",
        "AWS console: https://eu-west-1.console.aws.amazon.com/x",
        "Airflow: https://airflow.example.com/dags/nightly",
    ]


def test_an_outcome_is_told_in_a_few_lines() -> None:
    message = compact_message({**OUTCOME, "dag_id": "nightly", "task_id": "tune", "task_state": "success"})
    assert message.subject == "Tuning job churn completed: max training jobs"
    assert message.text.splitlines() == [
        "Tuning job churn completed: 200 training jobs were launched; the limit is 200.",
        "Best accuracy 0.75 after 200 of 200 training jobs, 4 failed (OutOfMemory).",
        "It ran for 3 h 20 min.",
        "Task tune of DAG nightly succeeded.",
    ]


@pytest.mark.parametrize(
    ("action", "status", "line"),
    [
        ("warn", "InProgress", "Tuning job churn has used 62 % of the limit of policy stalled: Slow."),
        ("ask", "InProgress", "Tuning job churn waits for an answer to policy stalled: Slow."),
        ("stop", "InProgress", "Tuning job churn is being stopped by policy stalled: Slow."),
        ("stop", "Stopped", "Tuning job churn stopped by policy stalled: Slow."),
        ("stop", None, "Tuning job churn stopped by policy stalled: Slow."),
        (
            "stop_and_fail",
            "Stopping",
            "Tuning job churn is being stopped by policy stalled, which fails the task: Slow.",
        ),
    ],
)
def test_each_action_has_its_words(action: str, status: str | None, line: str) -> None:
    report = {**REPORT, "action": action, "status": status, "rule": "stalled", "code": "stalled"}
    first, *others = compact_message({**report, "reason": "Slow"}).text.splitlines()
    assert first == line
    # Of another policy than a budget, what was spent is told beside.
    assert "€31.20 of €50 spent. Saved about 160 training jobs (€112)." in others


def test_a_failed_task_is_told_with_its_try_and_error() -> None:
    facts = {
        "dag_id": "nightly",
        "run_id": "r",
        "task_id": "tune",
        "map_index": 3,
        "task_state": "up_for_retry",
        "try_number": 1,
        "max_tries": 3,
        "exception": "Rate exceeded\n  at once",
        "tuning_job_name": "churn",
    }
    message = compact_message(facts)
    assert message.subject == "Task tune[3] of DAG nightly failed and will be retried (try 1 of 3)"
    assert message.text.splitlines() == [
        f"{message.subject}, tuning job churn: Rate exceeded at once.",
        "Run r.",
    ]


def test_an_error_beside_an_outcome_is_told_too() -> None:
    facts = {**OUTCOME, "task_id": "tune", "task_state": "failed", "exception": "disk full", "run_id": "r"}
    assert compact_message(facts).text.splitlines()[-1] == "Task tune failed, run r: disk full."


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({"run_reason": "task_failure"}, "DAG nightly ended: task failure, run r."),
        ({"run_reason": "success"}, "DAG nightly succeeded, run r."),
        (
            {"missed_deadline": "2026-11-24T06:00:00+00:00"},
            "DAG nightly missed its deadline of 2026-11-24T06:00:00+00:00, run r.",
        ),
    ],
)
def test_the_end_of_a_dag_run_is_told(facts: dict[str, Any], line: str) -> None:
    run = {"dag_id": "nightly", "run_id": "r", **facts}
    assert compact_message(run).text == line
    assert compact_message({**OUTCOME, **run}).text.splitlines()[-1] == line


def test_a_failed_tuning_job_is_not_said_to_fail_twice() -> None:
    failed = {**OUTCOME, "status": "Failed", "reason": "failed", "best_training_job": None}
    message = compact_message({**failed, "explanation": "The tuning job failed: no role."})
    assert message.subject == "Tuning job churn failed"
    assert message.text.splitlines()[:2] == [
        "Tuning job churn failed: no role.",
        "No objective after 200 of 200 training jobs, 4 failed (OutOfMemory).",
    ]


def test_billed_time_is_a_time_span() -> None:
    consumed = {"spent": 12_000, "limit": 20_000.0, "unit": "billable_seconds", "currency": None}
    text = compact_message({**REPORT, "consumed": consumed, "saving": {"billable_seconds": 7200}}).text
    assert "3 h 20 min of 5 h 33 min of billed compute spent." in text
    assert "Saved about 2 h of billed compute." in text


def test_nothing_known_is_said_as_such() -> None:
    assert compact_message({}).text == "A tuning job has news, and nothing is known about it."
    assert compact_message({"status": None, "exception": "None"}) == compact_message({})


@pytest.mark.parametrize("url", ["javascript:alert(1)", "https://a b", "https://x/\nAirflow: y", 7, "h" * 9])
def test_only_addresses_are_links(url: Any) -> None:
    assert "Airflow:" not in compact_message({"status": "Completed", "airflow_url": url}).text


def test_html_and_mrkdwn_escape_what_others_wrote() -> None:
    evil = {"tuning_job_name": "a", "status": "Failed", "explanation": "<!channel> & <b>"}
    text = compact_message({**evil, "airflow_url": "https://x/?a=1&b=2"}).text
    assert as_mrkdwn(text).splitlines()[0] == "Tuning job a failed: &lt;!channel&gt; &amp; &lt;b&gt;."
    assert as_html(text) == (
        "Tuning job a failed: &lt;!channel&gt; &amp; &lt;b&gt;.<br>\n"
        'Airflow: <a href="https://x/?a=1&amp;b=2">https://x/?a=1&amp;b=2</a>'
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.25, "0.25 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (3599.9, "1 h"),
        (12_000, "3 h 20 min"),
        (86_399, "1 d"),
        (90_000, "1 d 1 h"),
        (86_400 * 2 - 1, "2 d"),
        (-1, ""),
        (math.nan, ""),
        (None, ""),
        (True, ""),
        ("3", ""),
    ],
)
def test_durations(seconds: Any, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [
        (31.2, "EUR", "€31.20"),
        (50, "usd", "$50"),
        (1234.5, "GBP", "£1,234.50"),
        (12_345.67, "CHF", "12,346 CHF"),
        (1_234_567.8, "EUR", "€1,234,570"),
        (0.0042, "EUR", "€0.0042"),
        (0, "EUR", "€0"),
        (-3.5, "EUR", "-€3.50"),
        (-0.001, None, "-0.001"),
        (5000, "JPY", "5,000 JPY"),
        (9.999, None, "10"),
        (1e300, "EUR", "€1e+300"),
        (math.inf, "EUR", ""),
        ("5", "EUR", ""),
        (10**400, "EUR", ""),
    ],
)
def test_money(amount: Any, currency: Any, text: str) -> None:
    assert money_text(amount, currency) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.93123456, "0.931235"), (1.0, "1"), (-2500, "-2,500"), (1e9, "1e+09"), (1e-9, "1e-09"), (None, "")],
)
def test_numbers(value: Any, text: str) -> None:
    assert number_text(value) == text


_ALL = {**OUTCOME, **REPORT, "task_state": "failed", "try_number": 2, "max_tries": 3, "exception": "Boom"}
_ALL |= {"run_reason": "timed_out", "missed_deadline": "2026-11-24", "map_index": 0}
_NESTED = ("training_jobs", "consumed", "saving", "evidence", "best_training_job", "training_job_counters")
#: What may stand at any key: nothing, numbers of all kinds, text of any length, and the wrong type.
_JUNK = st.one_of(
    st.none(),
    st.floats(),
    st.integers(),
    st.booleans(),
    st.text().filter(lambda text: "None" not in text),
    st.sampled_from(
        ["x" * 5000, "a\nb\r\nc\u2028d\x00", "\ud800", [], {}, [None], [[]], "https://x/" + "y" * 2000]
    ),
)


@st.composite
def _facts(draw: st.DrawFn) -> dict[str, Any]:
    facts = {
        key: draw(st.one_of(st.just(value), _JUNK)) for key, value in _ALL.items() if draw(st.booleans())
    }
    for key in _NESTED:
        if isinstance(facts.get(key), dict):
            facts[key] = {
                inner: draw(st.one_of(st.just(value), _JUNK))
                for inner, value in facts[key].items()
                if draw(st.booleans())
            }
    return facts


@given(facts=_facts())
def test_any_subset_of_facts_gives_a_short_message_without_none(facts: dict[str, Any]) -> None:
    message = compact_message(facts)
    lines = message.text.split("\n")
    assert 1 <= len(lines) <= 6
    assert len(message.text.splitlines()) == len(lines)  # no other line break either
    assert all(line == line.strip() != "" for line in lines)
    assert all(len(line) <= MAX_LINE for line in lines if "https://" not in line)
    assert len(message.text) <= MAX_TEXT
    assert 1 <= len(message.subject) <= MAX_SUBJECT
    assert message.subject.translate(dict.fromkeys(map(ord, JOINERS))).isprintable()
    for text in (message.subject, message.text):
        assert "None" not in text
        assert "nan" not in text.split()
        text.encode()  # halves of surrogate pairs cannot be sent
    as_html(message.text).encode()
    as_mrkdwn(message.text).encode()
