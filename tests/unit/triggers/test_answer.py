"""The trigger that waits for a person's answer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from airflow_amt import _human
from airflow_amt.triggers.answer import AmtAnswerTrigger
from airflow_amt.tuning.asking import AskFacts, build_question
from tests.unit.people import FakePeople, RefusedError, install
from tests.unit.tasks import fired, stored

TI_ID = uuid4()
QUESTION = build_question(AskFacts(tuning_job_name="churn-model", now=datetime(2026, 1, 1, tzinfo=UTC)))
STATE = {"tuning_job_name": "churn-model"}


@pytest.fixture
def people(monkeypatch: pytest.MonkeyPatch) -> FakePeople:
    people = install(monkeypatch)
    _human.raise_question(TI_ID, QUESTION)
    people.asked.clear()
    return people


def trigger(**options: Any) -> Any:
    return stored(
        AmtAnswerTrigger(
            ti_id=str(TI_ID), question=QUESTION.to_dict(), check_interval=0.01, state=STATE, **options
        )
    )


def in_seconds(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def test_an_answer_is_handed_on(people: FakePeople) -> None:
    people.answer(TI_ID, "Continue")
    payload = fired(trigger())
    assert (payload["event"], payload["state"], payload["error"]) == ("answered", STATE, None)
    assert payload["answer"]["chosen"] == ["Continue"]
    assert payload["answer"]["by"] == "Ada"


def test_it_looks_until_somebody_answers(people: FakePeople, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    read = _human.read_answer

    def third_time(ti_id: Any) -> Any:
        looked.append(1)
        if len(looked) == 3:
            people.answer(TI_ID, "Continue")
        return read(ti_id)

    monkeypatch.setattr(_human, "read_answer", third_time)
    assert fired(trigger(until=in_seconds(3600)))["answer"]["chosen"] == ["Continue"]
    assert len(looked) == 3


def test_when_the_time_is_over_the_default_is_taken_and_stored(people: FakePeople) -> None:
    payload = fired(trigger(until=in_seconds(0.05)))
    assert (payload["event"], payload["answer"]["chosen"]) == ("answered", ["Stop and use the best"])
    assert payload["answer"]["by"] is None
    assert people.asked[-1] == "UpdateHITLDetail"
    assert _human.read_answer(TI_ID) is not None


def test_an_answer_in_the_last_moment_counts(people: FakePeople) -> None:
    people.answer(TI_ID, "Continue")
    assert fired(trigger(until=in_seconds(-60)))["answer"]["by"] == "Ada"


def test_where_nobody_can_answer_the_default_is_taken_in_time(people: FakePeople) -> None:
    people.unreadable = True
    payload = fired(trigger(until=in_seconds(0.05)))
    assert (payload["event"], payload["answer"]["chosen"]) == ("answered", ["Stop and use the best"])


def test_errors_that_pass_are_borne(people: FakePeople) -> None:
    people.answer(TI_ID, "Continue")
    people.broken = [RefusedError(500), RefusedError(500)]
    assert fired(trigger())["answer"]["by"] == "Ada"


def test_an_error_that_stays_is_told(people: FakePeople) -> None:
    people.broken = [RefusedError(500)] * 20
    payload = fired(trigger())
    assert (payload["event"], payload["answer"]) == ("error", None)
    assert payload["error"] == "RefusedError: 500"
    assert len(people.asked) == 5


def test_arguments_of_a_newer_release_are_borne(people: FakePeople) -> None:
    people.answer(TI_ID, "Continue")
    path, arguments = trigger().serialize()
    assert path == "airflow_amt.triggers.answer.AmtAnswerTrigger"
    assert fired(AmtAnswerTrigger(**arguments, colour="red"))["event"] == "answered"
