"""The sensor that holds a tuning job to stop policies, in every mode."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_amt import _compat
from airflow_amt._compat import AirflowSkipException
from airflow_amt.exceptions import AmtRequestError
from airflow_amt.sensors.tuning import AmtTuningJobSensor
from airflow_amt.task_exceptions import AmtAwaitedJobStopped
from airflow_amt.tuning.policies import MinimumJobs, Rule
from airflow_amt.watch import polling
from tests.unit.people import AT, FakePeople, install
from tests.unit.tasks import DENIED, FakeHook, describe, fired, run_task, stored, task_context, use_hook

try:
    from airflow.sdk.exceptions import AirflowRescheduleException, TaskDeferred
except ImportError:  # Airflow 3.1
    from airflow.exceptions import (  # type: ignore[no-redef]
        AirflowRescheduleException,
        TaskDeferred,
    )

NAME = "churn-model"
TOLD = "airflow-amt:policy-told"
WAYS = pytest.mark.parametrize("deferrable", [False, True], ids=["poke", "deferred"])
NOW = MinimumJobs(2)
WARN = Rule.of(MinimumJobs(4), warn_at=0.5, name="half")
ASK = Rule.of(MinimumJobs(4), ask_at=0.5, name="half")


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "LONGEST_BACKOFF_SECONDS", 0.01)


def sensor(**options: Any) -> AmtTuningJobSensor:
    options = {"tuning_job_name": NAME, "poke_interval": 0.05, "timeout": 60, **options}
    return AmtTuningJobSensor(task_id="wait", **options)


def hook_of(*script: Any) -> FakeHook:
    return FakeHook(script={NAME: list(script) or ["InProgress"]}, tags_of={NAME: {}})


def run(hook: FakeHook, context: Any = None, **options: Any) -> tuple[Any, list[dict[str, Any]]]:
    return run_task(lambda: sensor(**options), context or task_context(task_id="wait"), hook)


@WAYS
@pytest.mark.parametrize("map_index", [-1, 3])
def test_a_breach_stops_the_job_and_the_best_is_a_success(deferrable: bool, map_index: int) -> None:
    hook, heard = hook_of(), []
    result, _ = run(
        hook,
        task_context(task_id="wait", map_index=map_index),
        policies=NOW,
        deferrable=deferrable,
        on_policy_callback=lambda context: heard.append(context["policy"]),
    )
    assert result["evidence"]["policy"] == "minimum_jobs"
    assert [one.stopped_by for one in hook.stops] == ["policy"]
    assert [one["task_id"] for one in heard] == ["wait"]


@WAYS
def test_without_a_best_training_job_it_fails(deferrable: bool) -> None:
    nothing = describe(BestTrainingJob={})
    hook = hook_of(nothing, nothing, nothing)
    hook.training_jobs_of[NAME] = []
    stop = hook.stop_tuning_job

    def stopped(name: str, **options: Any) -> bool:
        accepted = stop(name, **options)
        hook.script[name] = [describe(status="Stopped", BestTrainingJob={})]
        return accepted

    hook.stop_tuning_job = stopped  # type: ignore[method-assign]
    with pytest.raises(AmtAwaitedJobStopped):
        run(hook, policies=NOW, deferrable=deferrable)


@WAYS
def test_soft_fail_skips_what_a_policy_failed(deferrable: bool) -> None:
    with pytest.raises(AirflowSkipException):
        run(
            hook_of(),
            policies=Rule.of(NOW, action="stop_and_fail"),
            deferrable=deferrable,
            soft_fail=True,
        )


@WAYS
def test_people_are_told_of_a_warning_once(deferrable: bool) -> None:
    hook, heard = hook_of(*["InProgress"] * 5, "Completed"), []
    run(
        hook,
        policies=WARN,
        deferrable=deferrable,
        on_policy_callback=lambda context: heard.append(context["policy"]["id"]),
    )
    assert heard == ["half:warn@0.5"]
    assert hook.tags_of[NAME] == {TOLD: "half:warn@0.5"}


def test_each_reschedule_knows_by_the_tags_what_was_told() -> None:
    hook, heard = hook_of(), []
    for _ in range(3):
        task = sensor(
            policies=WARN,
            mode="reschedule",
            on_policy_callback=lambda context: heard.append(context["policy"]["id"]),
        )
        use_hook(task, hook)
        context = task_context(task_id="wait")
        context["ti"].get_first_reschedule_date = lambda context: None
        with pytest.raises(AirflowRescheduleException):
            task.execute(context)
    assert heard == ["half:warn@0.5"]


@WAYS
def test_a_missing_permission_to_tag_ends_no_sensor(deferrable: bool) -> None:
    hook, heard = hook_of(*["InProgress"] * 5, "Completed"), []

    def denied(arn: str, tags: Any) -> bool:
        raise DENIED

    hook.add_tags = denied  # type: ignore[method-assign]
    run(
        hook,
        policies=WARN,
        deferrable=deferrable,
        on_policy_callback=lambda context: heard.append(context["policy"]["id"]),
    )
    assert heard == ["half:warn@0.5"]


def test_airflow_resumes_it_with_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    people: FakePeople = install(monkeypatch)
    hook, context = hook_of(), task_context(task_id="wait")
    task = sensor(policies=ASK, deferrable=True)
    use_hook(task, hook)
    with pytest.raises(TaskDeferred) as caught:
        task.execute(context)
    assert "Continue" in people.question(context["ti"].id).options
    event = {
        "chosen_options": ["Stop and use the best"],
        "params_input": {},
        "responded_at": AT,
        "responded_by_user": {"id": "7", "name": "Ada"},
        "timedout": False,
    }
    task = sensor(policies=ASK, deferrable=True)
    use_hook(task, hook)
    with pytest.raises(TaskDeferred) as again:
        task.resume_execution("execute_complete", {**(caught.value.kwargs or {}), "event": event}, context)
    assert [one.stopped_by for one in hook.stops] == ["policy"]
    # The stop travels on.
    trigger = stored(again.value.trigger)
    trigger.first_read_at = None
    use_hook(trigger, hook)
    payload = fired(trigger)
    assert payload["state"]["known_stop"]["airflow-amt:stopped-by"] == "policy"


@pytest.mark.parametrize("mode", ["poke", "reschedule"])
def test_a_sensor_on_a_worker_cannot_ask(mode: str) -> None:
    with pytest.raises(AmtRequestError, match="deferrable"):
        run(hook_of(), policies=ASK, mode=mode)


@WAYS
@pytest.mark.parametrize("policies", [50, "budget", "variable:none", {"rules": []}])
def test_a_bad_sla_fails_before_anything_is_read(
    policies: Any, deferrable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_compat, "read_variable", lambda key: None)
    hook = hook_of()
    with pytest.raises(AmtRequestError):
        run(hook, policies=policies, deferrable=deferrable)
    assert hook.calls == []


@WAYS
def test_an_sla_of_a_variable_that_breaks_counts_on(
    deferrable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [json.dumps({"rules": [NOW.to_dict()]})]
    monkeypatch.setattr(_compat, "read_variable", lambda key: texts.pop() if texts else "{")
    before = describe(TrainingJobStatusCounters={"Completed": 1}, ObjectiveStatusCounters={"Succeeded": 1})
    hook = hook_of(before, before, "InProgress")
    result, _ = run(hook, policies="variable:nightly", deferrable=deferrable)
    assert result["evidence"]["policy"] == "minimum_jobs"
