"""Questions to people as Airflow keeps them: raised, read and closed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from airflow_amt import _compat, _human
from airflow_amt.tuning.asking import AskFacts, HumanAnswer, build_question
from tests.unit.people import AT, FakePeople, RefusedError, install

TI_ID = uuid4()
QUESTION = build_question(
    AskFacts(tuning_job_name="churn-model", now=datetime(2026, 1, 1, tzinfo=UTC)), assigned_users="ada"
)


@pytest.fixture
def people(monkeypatch: pytest.MonkeyPatch) -> FakePeople:
    return install(monkeypatch)


def test_people_see_what_was_raised(people: FakePeople) -> None:
    assert _human.raise_question(TI_ID, QUESTION) == QUESTION
    seen = people.question(TI_ID)
    assert (seen.subject, seen.body) == (QUESTION.subject, QUESTION.body)
    assert (seen.options, seen.defaults) == (list(QUESTION.options), list(QUESTION.defaults))
    assert [(user.id, user.name) for user in seen.assigned_users] == [("ada", "ada")]
    value = seen.params["raise_by_percent"]
    assert (value["value"] if _compat.questions_describe_params() else value) == 50


def test_before_3_1_3_the_fields_have_values_alone(
    people: FakePeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_compat, "questions_describe_params", lambda: False)
    assert _human.raise_question(TI_ID, QUESTION) == QUESTION
    assert people.question(TI_ID).params == {"raise_by_percent": 50}


def test_raised_again_the_answer_goes_and_the_first_text_stays(people: FakePeople) -> None:
    _human.raise_question(TI_ID, QUESTION)
    people.answer(TI_ID, "Continue")
    assert _human.raise_question(TI_ID, replace(QUESTION, subject="newer")) == QUESTION
    assert _human.read_answer(TI_ID) is None


def test_an_answer_is_read_once_it_is_there(people: FakePeople) -> None:
    _human.raise_question(TI_ID, QUESTION)
    assert _human.read_answer(TI_ID) is None
    people.answer(TI_ID, "Raise the limit", raise_by_percent=75)
    assert _human.read_answer(TI_ID) == HumanAnswer(
        chosen=("Raise the limit",), params={"raise_by_percent": 75}, by="Ada", at=AT
    )


def test_closing_takes_the_default_in_nobodys_name(people: FakePeople) -> None:
    _human.raise_question(TI_ID, QUESTION)
    closed = _human.close_question(TI_ID, QUESTION)
    assert (closed.chosen, closed.params) == (("Stop and use the best",), {"raise_by_percent": 50})
    assert closed.timed_out
    assert closed.at == AT


def test_who_was_faster_than_the_default_counts(people: FakePeople) -> None:
    _human.raise_question(TI_ID, QUESTION)
    people.answer(TI_ID, "Continue")
    assert _human.close_question(TI_ID, QUESTION).by == "Ada"


def test_an_error_of_closing_is_raised_while_nobody_answered(people: FakePeople) -> None:
    _human.raise_question(TI_ID, QUESTION)
    people.broken = [RefusedError(500)]
    with pytest.raises(RefusedError):
        _human.close_question(TI_ID, QUESTION)


def test_a_question_without_a_default_cannot_be_closed(people: FakePeople) -> None:
    with pytest.raises(ValueError, match="default"):
        _human.close_question(TI_ID, replace(QUESTION, defaults=()))
    assert people.asked == []


def test_where_nobody_can_answer_that_is_said(people: FakePeople) -> None:
    people.unreadable = True
    with pytest.raises(_human.UnreadableAnswerError):
        _human.read_answer(TI_ID)
    with pytest.raises(_human.UnreadableAnswerError):
        _human.close_question(TI_ID, QUESTION)


def test_airflows_own_event_is_an_answer() -> None:
    event = {
        "chosen_options": ["Continue"],
        "params_input": {"raise_by_percent": 50},
        "responded_at": AT,
        "responded_by_user": {"id": "7", "name": "Ada"},
        "timedout": False,
    }
    assert _human.resumed_answer(event) == HumanAnswer(
        chosen=("Continue",), params={"raise_by_percent": 50}, by="Ada", at=AT
    )
    assert _human.resumed_answer({**event, "responded_by_user": None}) == HumanAnswer(
        chosen=("Continue",), params={"raise_by_percent": 50}, at=AT
    )
    assert _human.resumed_answer({"event": "ended"}) is None
    assert _human.resumed_answer(None) is None


@pytest.mark.parametrize(
    ("state", "answered", "resumed"),
    [
        ("scheduled", True, True),
        ("queued", True, True),
        ("running", True, True),
        ("queued", False, False),
        ("failed", True, False),
        ("success", True, False),
        (None, True, False),
    ],
)
def test_the_end_of_a_trigger_is_no_kill_if_somebody_answered(
    people: FakePeople, state: str | None, answered: bool, resumed: bool
) -> None:
    _human.raise_question(TI_ID, QUESTION)
    if answered:
        people.answer(TI_ID, "Continue")
    assert _human.was_answered(TI_ID, state) is resumed


def test_a_cleared_task_was_not_answered(people: FakePeople) -> None:
    assert _human.was_answered(TI_ID, "scheduled") is False
    people.unreadable = True
    assert _human.was_answered(TI_ID, "scheduled") is False
    people.broken = [RefusedError(500)]
    with pytest.raises(RefusedError):
        _human.was_answered(TI_ID, "scheduled")


@pytest.mark.parametrize(
    ("map_index", "path"),
    [
        (-1, "/dags/a/runs/manual__2026%2B00%3A00/tasks/ask/required_actions"),
        (None, "/dags/a/runs/manual__2026%2B00%3A00/tasks/ask/required_actions"),
        (3, "/dags/a/runs/manual__2026%2B00%3A00/tasks/ask/mapped/3/required_actions"),
    ],
)
def test_people_are_led_to_the_question(
    monkeypatch: pytest.MonkeyPatch, map_index: int | None, path: str
) -> None:
    ti: Any = SimpleNamespace(dag_id="a", run_id="manual__2026+00:00", task_id="ask", map_index=map_index)
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example/prefix/")
    assert _human.question_url(ti) == f"https://airflow.example/prefix{path}"
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "")
    assert _human.question_url(ti) is None
