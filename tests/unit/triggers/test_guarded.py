"""The trigger that holds its tuning job to an SLA: what it does itself, what it hands to a worker."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from airflow_amt import _compat
from airflow_amt.hooks.guard import Asked, Memory
from airflow_amt.triggers import guarded
from airflow_amt.triggers.guarded import AmtGuardedTuningJobTrigger
from airflow_amt.tuning.asking import AskFacts, build_question
from airflow_amt.tuning.policies import Answer, MinimumJobs, Rule, Sla
from airflow_amt.watch import polling
from tests.unit.people import AT, FakePeople, RefusedError, install
from tests.unit.tasks import ARN, THROTTLED, FakeHook, fired, stored, use_hook

NAME = "churn-model"
LABEL = "churn manual tune"
QUESTION = build_question(AskFacts(tuning_job_name=NAME, now=AT), raisable=True)
ASK = Sla(rules=(Rule.of(MinimumJobs(4), ask_at=0.5, name="half"),))
NOW = Sla(rules=(Rule(policy=MinimumJobs(2)),))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "LONGEST_BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(guarded, "_ANSWER_PAUSE_SECONDS", 0.0)


@pytest.fixture
def people(monkeypatch: pytest.MonkeyPatch) -> FakePeople:
    return install(monkeypatch)


def asked(until: Any = None, number: int = 0) -> Asked:
    return Asked(question="half:ask@0.5", rule="half", number=number, until=until, shown=QUESTION.to_dict())


def trigger(sla: Sla, hook: FakeHook, memory: Memory | None = None, **options: Any) -> Any:
    made = stored(
        AmtGuardedTuningJobTrigger(
            tuning_job_name=NAME,
            sla=options.pop("source", {"sla": sla.to_dict()}),
            memory=None if memory is None else memory.to_dict(),
            requested_by=LABEL,
            **{"check_interval": 0.01, "tells": True, **options},
        )
    )
    made.task_instance = SimpleNamespace(
        id=uuid4(), dag_id="churn", run_id="manual", task_id="tune", map_index=-1
    )
    use_hook(made, hook)
    return made


def with_question(made: Any, people: FakePeople) -> Any:
    from airflow_amt import _human

    _human.raise_question(made.task_instance.id, QUESTION)
    return made


def in_progress(*then: Any) -> FakeHook:
    return FakeHook(script={NAME: ["InProgress", *then]})


def test_it_stops_the_job_and_watches_it_end() -> None:
    hook = in_progress()
    event = fired(trigger(NOW, hook))
    assert (event["event"], event["status"]) == ("ended", "Stopped")
    (stop,) = hook.stops
    assert (stop.stopped_by, stop.requested_by) == ("policy", LABEL)
    assert event["state"]["known_stop"] == stop.tags()


def test_a_stop_that_is_throttled_is_made_at_the_next_look() -> None:
    hook = in_progress()
    stop, errors = hook.stop_tuning_job, [THROTTLED, THROTTLED]

    def throttled(name: str, **options: Any) -> bool:
        if errors:
            raise errors.pop()
        return stop(name, **options)

    hook.stop_tuning_job = throttled  # type: ignore[method-assign]
    assert fired(trigger(NOW, hook))["status"] == "Stopped"
    assert errors == []


def test_a_question_is_for_a_worker() -> None:
    event = fired(trigger(ASK, in_progress()))
    assert event["event"] == "policy"
    assert event["state"]["memory"]["told"] == []


def test_what_nobody_tells_is_logged_and_told() -> None:
    hook = in_progress("InProgress", "Completed")
    warn = Sla(rules=(Rule.of(MinimumJobs(4), warn_at=0.5, name="half"),))
    event = fired(trigger(warn, hook, tells=False))
    assert (event["event"], event["state"]["memory"]["told"]) == ("ended", ["half:warn@0.5"])


@pytest.mark.parametrize("choice", ["Continue", "Stop and use the best", "Raise the limit", "nonsense"])
def test_an_answer_is_taken_at_the_next_read(people: FakePeople, choice: str) -> None:
    hook = in_progress("InProgress", "InProgress", "Completed")
    hook.tags_of[NAME] = {}
    made = with_question(trigger(ASK, hook, Memory(told=("half:ask@0.5",), asked=asked())), people)
    people.answer(made.task_instance.id, choice, raise_by_percent=100)
    event = fired(made)
    (answer,) = event["state"]["memory"]["answers"]
    # What is no choice counts as the default.
    expected = {"Continue": "continue", "Raise the limit": "raise"}.get(choice, "stop")
    assert answer["choice"] == expected
    assert event["status"] == ("Stopped" if expected == "stop" else "Completed")
    assert hook.tags(ARN + NAME) == {"airflow-amt:policy-answers": Answer.parse(answer).encode()}


def test_an_answer_that_a_process_before_noted_counts_once(people: FakePeople) -> None:
    hook = in_progress("InProgress", "Completed")
    hook.tags_of[NAME] = {"airflow-amt:policy-answers": "half=raise:0.5:Ada"}
    made = with_question(trigger(ASK, hook, Memory(told=("half:ask@0.5",), asked=asked())), people)
    people.answer(made.task_instance.id, "Raise the limit", raise_by_percent=50)
    event = fired(made)
    assert len(event["state"]["memory"]["answers"]) == 1


def test_nobody_is_asked_in_dag_test_and_the_default_counts(people: FakePeople) -> None:
    people.unreadable = True
    hook = in_progress()
    fired(trigger(ASK, hook, Memory(told=("half:ask@0.5",), asked=asked(until=AT))))
    assert "Nobody answered in time" in str(hook.stops[0].detail)


def test_an_answer_that_cannot_be_read_is_read_again(people: FakePeople) -> None:
    hook = in_progress(*["InProgress"] * 4, "Completed")
    made = with_question(trigger(ASK, hook, Memory(told=("half:ask@0.5",), asked=asked())), people)
    people.answer(made.task_instance.id, "Continue")
    people.broken = [RefusedError(500), RefusedError(500)]
    event = fired(made)
    assert [one["choice"] for one in event["state"]["memory"]["answers"]] == ["continue"]


def test_the_sla_that_counted_last_goes_on_when_its_variable_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compat, "read_variable", lambda key: "{")
    hook = in_progress()
    made = trigger(NOW, hook, Memory(sla=NOW), source={"variable": "nightly"})
    assert fired(made)["status"] == "Stopped"
    assert len(hook.stops) == 1


def test_an_sla_that_this_triggerer_cannot_read_is_told_to_the_task() -> None:
    """As a function of the DAG's own that only workers have: raised, Airflow would fail the task unasked."""
    missing = {"type": "custom", "path": "nowhere.at_all", "arguments": {}}
    made = trigger(NOW, in_progress(), source={"sla": {"rules": [missing]}}, memory=Memory(told=("x",)))
    event = fired(made)
    assert event["event"] == "error"
    assert "nowhere.at_all" in json.dumps(event["error"])
    assert event["state"]["memory"]["told"] == ["x"]


# --- ended by Airflow --------------------------------------------------------------------------


def killed(made: Any, monkeypatch: pytest.MonkeyPatch, state: str | None) -> list[Any]:
    made.stop_on_kill = True
    monkeypatch.setattr(_compat, "read_task_state", lambda *key: state)
    asyncio.run(made.on_kill())
    return [one.stopped_by for one in made.hook.stops]


@pytest.mark.parametrize("state", ["scheduled", "queued", "running"])
@pytest.mark.parametrize("knows", [True, False], ids=["asked", "asked by an earlier try"])
def test_an_answer_is_no_kill(
    people: FakePeople, monkeypatch: pytest.MonkeyPatch, state: str, knows: bool
) -> None:
    made = with_question(trigger(ASK, in_progress(), Memory(asked=asked()) if knows else None), people)
    people.answer(made.task_instance.id, "Continue")
    assert killed(made, monkeypatch, state) == []


@pytest.mark.parametrize("state", ["failed", "success", None, "queued"])
def test_a_kill_with_an_open_question_stops_the_job(
    people: FakePeople, monkeypatch: pytest.MonkeyPatch, state: str | None
) -> None:
    made = with_question(trigger(ASK, in_progress(), Memory(asked=asked())), people)
    assert killed(made, monkeypatch, state) == ["on_kill"]


def test_a_cleared_task_has_no_question_any_more(people: FakePeople, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trigger(ASK, in_progress(), Memory(asked=asked()))
    assert killed(made, monkeypatch, "scheduled") == ["on_kill"]


def test_whether_people_answered_is_asked_again(people: FakePeople, monkeypatch: pytest.MonkeyPatch) -> None:
    made = with_question(trigger(ASK, in_progress(), Memory(asked=asked())), people)
    people.broken = [RefusedError(500)]
    assert killed(made, monkeypatch, "queued") == ["on_kill"]


def test_the_job_is_left_alone_if_nobody_can_say_whether_people_answered(
    people: FakePeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = with_question(trigger(ASK, in_progress(), Memory(asked=asked())), people)
    people.broken = [RefusedError(500)] * 3
    assert killed(made, monkeypatch, "queued") == []


def test_without_people_a_kill_asks_nobody(people: FakePeople, monkeypatch: pytest.MonkeyPatch) -> None:
    assert killed(trigger(NOW, in_progress(), tells=False), monkeypatch, "queued") == ["on_kill"]
    assert people.asked == []
