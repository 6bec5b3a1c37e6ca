"""The words of a question to people, and what their answers mean."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_amt.exceptions import AmtFieldError, AmtRequestError
from airflow_amt.tuning import TuningProgress
from airflow_amt.tuning.asking import (
    AskFacts,
    Choice,
    HumanAnswer,
    Question,
    build_question,
    explain,
    parse_users,
    read_answer,
)
from airflow_amt.tuning.costs import Consumption, PriceTable, Resources, TrainingJobUsage

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
FACTS = AskFacts(
    tuning_job_name="churn-model",
    now=NOW,
    objective="accuracy",
    best_objective=0.93,
    launched=40,
    max_training_jobs=200,
    consumed=31.004,
    limit=50.0,
    currency="EUR",
    due=NOW + timedelta(hours=2, minutes=10),
    reason="80 % of the budget are used.",
)
QUESTION = build_question(FACTS)


def test_all_facts_are_told() -> None:
    assert QUESTION.subject == (
        "churn-model: best 0.93 after 40 of 200, 31.00 of 50.00 EUR spent, 2 h 10 min left: "
        "continue, stop, or raise the limit?"
    )
    for text in (
        "80 % of the budget are used.",
        "Best objective so far: **0.93** (accuracy)",
        "Training jobs launched: 40 of 200",
        "Consumed: about 31.00 EUR",
        "Limit: 50.00 EUR",
        "Deadline: 2026-01-01 14:10 UTC, 2 h 10 min left",
        "As of 2026-01-01 12:00 UTC.",
    ):
        assert text in QUESTION.body
    assert "Without an answer" not in QUESTION.body
    assert QUESTION.options == ("Continue", "Stop and use the best", "Raise the limit")
    assert QUESTION.defaults == ("Stop and use the best",)


@pytest.mark.parametrize(
    ("gone", "subject", "missing"),
    [
        ({"best_objective": None}, "no model yet after 40 of 200", "Best objective so far"),
        ({"best_objective": None, "launched": None}, "churn-model: 31.00 of 50.00 EUR", "launched"),
        ({"launched": None}, "best 0.93, 31.00", "launched"),
        ({"max_training_jobs": None}, "after 40, ", " of 200"),
        ({"consumed": None}, "limit 50.00 EUR", "Consumed"),
        ({"limit": None}, "31.00 EUR spent", "Limit"),
        ({"limit": "one night"}, "31.00 EUR of one night spent", "50"),
        ({"currency": None}, "31.00 of 50.00 spent", "EUR"),
        ({"unit": "compute_seconds"}, "31 s of compute of 50 s of compute spent", "EUR"),
        ({"due": None}, "EUR spent: continue", "Deadline"),
        ({"due": NOW - timedelta(days=3)}, "3 d late", "left"),
        ({"reason": None}, "best 0.93", "80 %"),
    ],
)
def test_what_is_missing_is_left_out(gone: dict[str, Any], subject: str, missing: str) -> None:
    question = build_question(replace(FACTS, **gone))
    assert subject in question.subject
    assert missing not in question.body
    assert "None" not in question.subject + question.body


def test_nothing_but_a_name_makes_a_question() -> None:
    question = build_question(AskFacts(tuning_job_name="a", now=NOW), raisable=False)
    assert question.subject == "a: continue or stop?"
    assert question.options == ("Continue", "Stop and use the best")
    assert question.params == {}
    assert "Raise" not in question.body


def test_the_facts_are_taken_from_progress_and_consumption() -> None:
    progress = TuningProgress.from_describe(
        {
            "HyperParameterTuningJobName": "churn-model",
            "HyperParameterTuningJobStatus": "InProgress",
            "HyperParameterTuningJobConfig": {
                "HyperParameterTuningJobObjective": {"Type": "Maximize", "MetricName": "accuracy"},
                "ResourceLimits": {"MaxNumberOfTrainingJobs": 9},
            },
            "TrainingJobStatusCounters": {"Completed": 2, "InProgress": 1},
            "BestTrainingJob": {
                "TrainingJobName": "a",
                "TrainingJobStatus": "Completed",
                "FinalHyperParameterTuningJobObjectiveMetric": {"MetricName": "accuracy", "Value": 0.9},
            },
        }
    )
    usage = TrainingJobUsage(
        name="a", resources=Resources(instances=(("ml.m5.large", 2),)), training_seconds=3600.0
    )
    prices = PriceTable(currency="USD", per_hour={"ml.m5.large": 0.5})
    facts = AskFacts.of(progress, now=NOW, consumption=Consumption.measure([usage], prices), limit=3.0)
    assert facts == AskFacts(
        tuning_job_name="churn-model",
        now=NOW,
        objective="accuracy",
        best_objective=0.9,
        launched=3,
        max_training_jobs=9,
        consumed=1.0,
        limit=3.0,
        currency="USD",
    )


def test_free_text_does_not_become_markup() -> None:
    question = build_question(replace(FACTS, reason="*a* [b](http://c)\n# <d>", objective="valid`:_auc"))
    assert r"\*a\* \[b\](http://c) \# \<d\>" in question.body
    assert r"(valid\`:\_auc)" in question.body


def test_the_time_to_answer_is_told_with_what_happens_then() -> None:
    question = build_question(FACTS, default="continue", answer_until=NOW + timedelta(hours=1))
    assert "Without an answer by 2026-01-01 13:00 UTC: **Continue**." in question.body
    assert question.defaults == ("Continue",)


@pytest.mark.parametrize(
    ("default", "until"), [("raise", None), ("yes", None), ("", None), (3, None), (None, NOW)]
)
def test_a_default_that_cannot_be_is_refused(default: Any, until: datetime | None) -> None:
    with pytest.raises(AmtFieldError, match="default"):
        build_question(FACTS, default=default, answer_until=until)


def test_naive_times_and_unknown_units_are_refused() -> None:
    with pytest.raises(AmtFieldError, match="now"):
        replace(FACTS, now=datetime(2026, 1, 1))  # noqa: DTZ001 - that is the point
    with pytest.raises(AmtFieldError, match="unit"):
        replace(FACTS, unit="minutes")


def test_users_are_named_by_id_or_by_both() -> None:
    assert parse_users(None) == ()
    assert parse_users("ada") == ({"id": "ada", "name": "ada"},)
    assert parse_users({"id": "7", "name": "Ada"}) == ({"id": "7", "name": "Ada"},)
    assert parse_users(["ada", {"id": "7"}]) == ({"id": "ada", "name": "ada"}, {"id": "7", "name": "7"})


def test_all_users_that_are_none_are_listed() -> None:
    with pytest.raises(AmtRequestError) as caught:
        parse_users([7, {"name": "Ada"}, "", {"id": "7", "role": "admin"}, "ada"])
    assert [one.field for one in caught.value.problems] == [f"assigned_users[{place}]" for place in range(4)]
    with pytest.raises(AmtRequestError):
        parse_users(7)


def answer(*chosen: str, by: str | None = "ada", **params: Any) -> HumanAnswer:
    return HumanAnswer(chosen=chosen, params=params, by=by, at=NOW)


@pytest.mark.parametrize(
    ("given_answer", "choice", "raise_by"),
    [
        (answer("Continue"), "continue", None),
        (answer("Stop and use the best", raise_by_percent="nonsense"), "stop", None),
        (answer("Raise the limit", raise_by_percent=75), "raise", 0.75),
        (answer("Raise the limit", raise_by_percent=" 1000 "), "raise", 10.0),
        (answer("Raise the limit"), "raise", 0.5),
    ],
)
def test_answers_come_to_decisions(given_answer: HumanAnswer, choice: str, raise_by: float | None) -> None:
    decision = read_answer(given_answer, QUESTION)
    assert (decision.choice.value, decision.raise_by, decision.by) == (choice, raise_by, "ada")
    assert not decision.timed_out


@pytest.mark.parametrize(
    "given_answer",
    [
        answer(),
        answer("nonsense"),
        answer("Continue", "Stop and use the best"),
        *(
            answer("Raise the limit", raise_by_percent=percent)
            for percent in (0, 0.5, 1000.1, -5, None, "much", True, float("nan"), [50])
        ),
    ],
)
def test_what_is_no_answer_is_refused(given_answer: HumanAnswer) -> None:
    with pytest.raises(AmtRequestError):
        read_answer(given_answer, QUESTION)


def test_a_limit_that_there_is_not_cannot_be_raised() -> None:
    with pytest.raises(AmtRequestError, match="Raise the limit"):
        read_answer(answer("Raise the limit"), build_question(FACTS, raisable=False))


def test_the_default_is_nobodys_answer() -> None:
    decision = read_answer(QUESTION.default_answer, QUESTION)
    assert (decision.choice, decision.timed_out) == (Choice.STOP, True)
    assert explain(decision) == ("nobody answered in time; the default was taken: stop and use the best")
    assert explain(read_answer(answer("Raise the limit", raise_by_percent=75), QUESTION)) == (
        "ada: raise the limit by 75 %"
    )


def test_question_and_answer_go_through_json() -> None:
    question = build_question(FACTS, assigned_users="ada")
    assert Question.from_dict(json.loads(json.dumps(question.to_dict()))) == question
    given_answer = answer("Continue", raise_by_percent=50)
    assert HumanAnswer.from_dict(json.loads(json.dumps(given_answer.to_dict()))) == given_answer
    assert HumanAnswer.from_dict({"chosen": ["Continue"], "at": NOW}).at == NOW


@given(
    st.builds(
        AskFacts,
        tuning_job_name=st.just("a"),
        now=st.datetimes(timezones=st.just(UTC)),
        objective=st.none() | st.text(),
        best_objective=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        launched=st.none() | st.integers(0, 10**6),
        max_training_jobs=st.none() | st.integers(1, 10**6),
        consumed=st.none() | st.floats(0, 1e12),
        limit=st.none() | st.floats(0, 1e12) | st.text(),
        unit=st.sampled_from(["money", "compute_seconds", "billable_seconds"]),
        currency=st.none() | st.text(),
        due=st.none() | st.datetimes(timezones=st.just(UTC)),
        reason=st.none() | st.text(),
    )
)
def test_whatever_is_known_makes_a_question_of_one_line(facts: AskFacts) -> None:
    question = build_question(facts)
    assert len(question.subject.splitlines()) == 1
    json.dumps(question.to_dict())
