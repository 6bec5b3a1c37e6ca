"""The operator that asks a person about a tuning job."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.sdk import BaseNotifier

from airflow_amt import _compat
from airflow_amt.exceptions import AmtRequestError, AmtResourceNotFoundError
from airflow_amt.operators.ask import AmtAskOperator
from airflow_amt.watch import polling
from tests.unit.people import AT, FakePeople, RefusedError, install
from tests.unit.tasks import THROTTLED, FakeHook, describe, run_task, task_context, use_hook

try:
    from airflow.sdk.exceptions import TaskDeferred
except ImportError:  # Airflow 3.1
    from airflow.exceptions import TaskDeferred  # type: ignore[no-redef]

NAME = "churn-model"
PRICES = {"currency": "EUR", "per_hour": {"ml.m5.large": 36.0}}


@pytest.fixture
def people(monkeypatch: pytest.MonkeyPatch) -> FakePeople:
    monkeypatch.setattr(polling, "LONGEST_BACKOFF_SECONDS", 0.01)
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "http://airflow.example")
    return install(monkeypatch)


def operator(**options: Any) -> AmtAskOperator:
    return AmtAskOperator(task_id="ask", **{"tuning_job_name": NAME, "limit": 50, **options})


def defer(hook: FakeHook, context: Any, **options: Any) -> TaskDeferred:
    task = operator(**options)
    use_hook(task, hook)
    with pytest.raises(TaskDeferred) as caught:
        task.execute(context)
    return caught.value


def resume(hook: FakeHook, context: Any, deferral: TaskDeferred, event: Any, **options: Any) -> Any:
    task = operator(**options)
    use_hook(task, hook)
    return task.resume_execution(deferral.method_name, {**(deferral.kwargs or {}), "event": event}, context)


def airflows_event(*chosen: str, by: str | None = "Ada", **params: Any) -> dict[str, Any]:
    """What Airflow 3.3 resumes a deferred task with when somebody answers."""
    return {
        "chosen_options": list(chosen),
        "params_input": params,
        "responded_at": AT,
        "responded_by_user": None if by is None else {"id": "7", "name": by},
        "timedout": False,
    }


def test_who_stops_it_is_kept(people: FakePeople) -> None:
    hook, context = FakeHook({NAME: ["InProgress"]}), task_context(task_id="ask")
    deferral = defer(hook, context)
    people.answer(context["ti"].id, "Stop and use the best")
    assert resume(hook, context, deferral, airflows_event("Stop and use the best")) == {
        "version": 1,
        "tuning_job_name": NAME,
        "choice": "stop",
        "raise_by": None,
        "by": "Ada",
        "timed_out": False,
        "stopped": True,
    }
    assert hook.named("stop") == [(NAME, "operator", "Ada chose to stop it in Airflow")]
    assert context["ti"].xcom["tuning_job_name"] == NAME
    question = context["ti"].xcom["question"]
    assert question["subject"].startswith("churn-model: best 0.9 after 2 of 4, limit 50.00: continue")
    assert question["url"].startswith("http://airflow.example/dags/churn/runs/")
    assert people.question(context["ti"].id).subject == question["subject"]


@pytest.mark.parametrize(
    ("event", "choice", "raise_by"),
    [
        (airflows_event("Continue"), "continue", None),
        (airflows_event("Raise the limit", raise_by_percent=75), "raise", 0.75),
    ],
)
def test_other_answers_leave_the_job_alone(
    people: FakePeople, event: Any, choice: str, raise_by: float | None
) -> None:
    hook, context = FakeHook({NAME: ["InProgress"]}), task_context(task_id="ask")
    result = resume(hook, context, defer(hook, context), event)
    assert (result["choice"], result["raise_by"], result["stopped"]) == (choice, raise_by, False)
    assert hook.named("stop") == []


def test_without_an_answer_the_default_is_taken(people: FakePeople) -> None:
    hook, context = FakeHook({NAME: ["InProgress"]}), task_context(task_id="ask")
    result, payloads = run_task(
        lambda: operator(response_timeout=timedelta(seconds=1)), context, hook, most_deferrals=1
    )
    assert (result["choice"], result["by"], result["timed_out"]) == ("stop", None, True)
    assert hook.named("stop") == [(NAME, "operator", "nobody answered in time in Airflow")]
    assert payloads[0]["event"] == "answered"
    assert "Without an answer by" in people.question(context["ti"].id).body


def test_continue_can_be_the_default(people: FakePeople) -> None:
    hook, context = FakeHook({NAME: ["InProgress"]}), task_context(task_id="ask")
    people.unreadable = True  # as in dag.test()
    result, _ = run_task(lambda: operator(response_timeout="1", default="continue"), context, hook)
    assert (result["choice"], result["timed_out"], result["stopped"]) == ("continue", True, False)


@pytest.mark.parametrize("status", ["Completed", "Stopping", "Stopped", "Failed"])
def test_a_job_that_does_not_run_is_not_asked_about(people: FakePeople, status: str) -> None:
    hook, context = FakeHook({NAME: [status]}), task_context(task_id="ask")
    result, _ = run_task(operator, context, hook)
    assert (result["choice"], result["by"], result["timed_out"]) == (None, None, False)
    assert people.asked == []


def test_a_job_that_is_over_when_somebody_stops_it_was_not_stopped_here(people: FakePeople) -> None:
    hook, context = FakeHook({NAME: ["InProgress"]}), task_context(task_id="ask")
    deferral = defer(hook, context)
    hook.script[NAME] = ["Completed"]
    result = resume(hook, context, deferral, airflows_event("Stop and use the best"))
    assert (result["choice"], result["stopped"]) == ("stop", False)


def test_an_answer_that_is_none_is_asked_again_until_the_same_time(people: FakePeople) -> None:
    hook, context = FakeHook({NAME: ["InProgress"]}), task_context(task_id="ask")
    first = defer(hook, context, response_timeout=3600)
    people.answer(context["ti"].id, "Raise the limit", raise_by_percent=5000)
    with pytest.raises(TaskDeferred) as caught:
        resume(hook, context, first, airflows_event("Raise the limit", raise_by_percent=5000))
    again = caught.value
    assert people.details[str(context["ti"].id)]["answer"] is None
    assert again.trigger.serialize() == first.trigger.serialize()
    assert resume(hook, context, again, airflows_event("Continue"))["choice"] == "continue"


def test_an_answer_that_cannot_be_read_fails_the_task(people: FakePeople) -> None:
    hook, context = FakeHook({NAME: ["InProgress"]}), task_context(task_id="ask")
    deferral = defer(hook, context)
    event = {"event": "error", "error": "gone", "answer": None, "state": None}
    with pytest.raises(_compat.AirflowException, match=r"churn-model cannot be read: gone"):
        resume(hook, context, deferral, event)
    assert hook.named("stop") == []


def test_an_event_of_another_task_is_no_answer(people: FakePeople) -> None:
    hook, context = FakeHook({NAME: ["InProgress"]}), task_context(task_id="ask")
    first = defer(hook, context)
    other = {
        "event": "answered",
        "ti_id": "01a20de5-40b1-7e66-889b-6d3ec6b53e23",
        "answer": {"chosen": ["Stop and use the best"], "by": "Ada"},
        "state": None,
    }
    with pytest.raises(TaskDeferred) as caught:
        resume(hook, context, first, other)
    assert caught.value.trigger.serialize() == first.trigger.serialize()
    assert people.asked == ["CreateHITLDetailPayload"]
    assert hook.named("stop") == []


def test_resumed_without_an_event_it_asks_anew(people: FakePeople) -> None:
    hook, context = FakeHook({NAME: ["InProgress"]}), task_context(task_id="ask")
    with pytest.raises(TaskDeferred):
        resume(hook, context, defer(hook, context), None)
    assert people.asked == ["CreateHITLDetailPayload"] * 2


def test_what_it_has_cost_is_told(people: FakePeople) -> None:
    started = datetime(2026, 1, 1, tzinfo=UTC)
    job = describe()
    job["TrainingJobDefinition"] = {
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 2, "VolumeSizeInGB": 1}
    }
    summary = {
        "TrainingJobName": "a",
        "TrainingJobStatus": "Completed",
        "TrainingStartTime": started,
        "TrainingEndTime": started + timedelta(minutes=6),
    }
    hook = FakeHook({NAME: [job]}, training_jobs_of={NAME: [summary]})
    context = task_context(task_id="ask")
    defer(hook, context, prices=PRICES)
    assert "7.20 of 50.00 EUR spent" in people.question(context["ti"].id).subject


def test_without_the_price_no_cost_is_told(people: FakePeople) -> None:
    hook, context = FakeHook({NAME: ["InProgress"]}), task_context(task_id="ask")
    defer(hook, context, prices=PRICES)
    seen = people.question(context["ti"].id)
    assert "spent" not in seen.subject
    assert "Consumed" not in seen.body


def test_without_a_limit_nobody_can_raise_it(people: FakePeople) -> None:
    hook, context = FakeHook({NAME: ["InProgress"]}), task_context(task_id="ask")
    defer(hook, context, limit="None", reason="because")
    seen = people.question(context["ti"].id)
    assert seen.options == ["Continue", "Stop and use the best"]
    assert seen.body.startswith("because")
    other = task_context(task_id="ask")
    defer(hook, other, limit="one night")
    assert "limit one night" in people.question(other["ti"].id).subject
    assert "Raise the limit" in people.question(other["ti"].id).options
    third = task_context(task_id="ask")
    defer(hook, third, limit=None, raisable=True)
    assert "Raise the limit" in people.question(third["ti"].id).options


class Told(BaseNotifier):
    """Notes what it was told."""

    template_fields = ("message",)

    def __init__(self, messages: list[str], fails: bool = False) -> None:
        super().__init__()
        self.message = "{{ question.subject }} {{ question.url }}"
        self.messages = messages
        self.fails = fails

    def notify(self, context: Any) -> None:
        if self.fails:
            raise RuntimeError("nobody at home")
        self.messages.append(self.message)


def test_notifiers_are_told_once_and_may_fail(people: FakePeople) -> None:
    hook, context = FakeHook({NAME: ["InProgress"]}), task_context(task_id="ask")
    messages: list[str] = []
    options = {"notifiers": [Told(messages, fails=True), Told(messages)]}
    deferral = defer(hook, context, **options)
    question = context["ti"].xcom["question"]
    assert messages == [f"{question['subject']} {question['url']}"]
    with pytest.raises(TaskDeferred):
        resume(hook, context, deferral, airflows_event("nonsense"), **options)
    assert len(messages) == 1
    defer(hook, task_context(task_id="ask"), notifiers=Told(messages))
    assert len(messages) == 2


def test_everything_wrong_is_told_at_once_and_aws_is_not_asked(people: FakePeople) -> None:
    hook = FakeHook({NAME: ["InProgress"]})
    task = operator(default="raise", prices="{}", limit=-1, assigned_users=[7])
    use_hook(task, hook)
    with pytest.raises(AmtRequestError) as caught:
        task.execute(task_context(task_id="ask"))
    assert [one.field for one in caught.value.problems] == [
        "default",
        "assigned_users[0]",
        "prices.currency",
        "prices.per_hour",
        "limit",
    ]
    assert hook.calls == []
    assert people.asked == []


@pytest.mark.parametrize(
    "options",
    [
        {"tuning_job_name": "not a name"},
        {"response_timeout": 0},
        {"response_timeout": "soon"},
        {"answer_interval": 0.5},
        {"default": None},
    ],
)
def test_arguments_are_checked(people: FakePeople, options: dict[str, Any]) -> None:
    with pytest.raises(AmtRequestError):
        operator(**options).execute(task_context(task_id="ask"))


def test_transient_errors_are_borne_and_others_are_not(people: FakePeople) -> None:
    hook, context = FakeHook({NAME: [THROTTLED, "InProgress"]}), task_context(task_id="ask")
    deferral = defer(hook, context)
    hook.script[NAME] = [THROTTLED, "InProgress"]
    assert resume(hook, context, deferral, airflows_event("Stop and use the best"))["stopped"] is True
    with pytest.raises(AmtResourceNotFoundError):
        run_task(operator, task_context(task_id="ask"), FakeHook())


def test_a_question_that_cannot_be_raised_fails_the_task(people: FakePeople) -> None:
    people.broken = [RefusedError(500)]
    with pytest.raises(RefusedError):
        run_task(operator, task_context(task_id="ask"), FakeHook({NAME: ["InProgress"]}))
