"""The operator that stops a tuning job."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_amt.exceptions import AmtAccessDeniedError, AmtRequestError, AmtResourceNotFoundError
from airflow_amt.operators.stop import AmtStopTuningJobOperator
from airflow_amt.watch import polling
from tests.unit.tasks import ARN, DENIED, THROTTLED, FakeHook, describe, run_task, task_context, use_hook

NAME = "churn-model"
WAYS = pytest.mark.parametrize("deferrable", [False, True], ids=["sync", "deferred"])


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "LONGEST_BACKOFF_SECONDS", 0.01)


class SlowlyStopping(FakeHook):
    """Stopping takes a few reads, as on AWS."""

    def stop_tuning_job(self, name: str, **options: Any) -> bool:
        stopped = super().stop_tuning_job(name, **options)
        if stopped:
            self.script[name] = ["Stopping", "Stopping", "Stopped"]
        return stopped


def run(hook: FakeHook, **options: Any) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Run the operator; return its result, its XCom, and the events of its triggers."""
    context = task_context(task_id="stop")
    options = {"tuning_job_name": NAME, "check_interval": 0.1, **options}
    result, events = run_task(lambda: AmtStopTuningJobOperator(task_id="stop", **options), context, hook)
    return result, context["ti"].xcom, events


@WAYS
def test_it_stops_waits_and_returns_the_best_so_far(deferrable: bool) -> None:
    hook = SlowlyStopping({NAME: ["InProgress"]})
    result, xcom, events = run(hook, deferrable=deferrable, reason="budget is gone")
    assert result == {
        "version": 1,
        "tuning_job_name": NAME,
        "tuning_job_arn": ARN + NAME,
        "status": "Stopped",
        "reason": "stopped_by_provider",
        "explanation": "The tuning job was stopped from Airflow (operator: budget is gone).",
        "stopped": True,
        "best_training_job": {
            "name": "churn-model-001",
            "status": "Completed",
            "objective": 0.9,
            "hyperparameters": {"lr": "0.1"},
        },
        "objective_metric": "accuracy",
    }
    assert hook.named("stop") == [(NAME, "operator", "budget is gone")]
    assert xcom["outcome"]["reason"] == "stopped_by_provider"
    assert "_link_AmtTuningJobLink" in xcom
    assert len(events) == (1 if deferrable else 0)


def test_without_a_reason_the_task_is_named() -> None:
    hook = SlowlyStopping({NAME: ["InProgress"]})
    run(hook)
    assert hook.named("stop") == [(NAME, "operator", "task stop of DAG churn")]


@WAYS
@pytest.mark.parametrize("status", ["Completed", "Failed", "Stopped"])
def test_a_job_that_is_over_is_reported_and_left_alone(deferrable: bool, status: str) -> None:
    result, _, events = run(FakeHook({NAME: [status]}), deferrable=deferrable)
    assert (result["status"], result["stopped"], events) == (status, False, [])
    assert result["best_training_job"]["name"] == "churn-model-001"


@WAYS
def test_a_job_that_is_stopping_already_is_waited_for(deferrable: bool) -> None:
    hook = FakeHook({NAME: ["Stopping", "Stopping", "Stopping", "Stopped"]})
    result, _, _ = run(hook, deferrable=deferrable)
    assert (result["status"], result["stopped"]) == ("Stopped", False)
    assert result["reason"] == "stopped_externally"


def test_a_job_that_completes_meanwhile_is_reported_as_it_ended() -> None:
    hook = FakeHook({NAME: ["InProgress"]}, stop_takes_effect="Completed")
    result, _, _ = run(hook)
    assert (result["status"], result["reason"]) == ("Completed", "max_training_jobs")


def test_without_waiting_it_returns_at_once() -> None:
    hook = SlowlyStopping({NAME: ["InProgress"]})
    result, xcom, _ = run(hook, wait_for_completion=False)
    assert (result["status"], result["reason"], result["stopped"]) == ("Stopping", None, True)
    assert "outcome" not in xcom
    result, xcom, _ = run(FakeHook({NAME: ["Completed"]}), wait_for_completion=False)
    assert (result["status"], result["reason"]) == ("Completed", "max_training_jobs")


def test_a_job_that_is_not_there_is_a_clear_error() -> None:
    with pytest.raises(AmtResourceNotFoundError, match="no job churn-model"):
        run(FakeHook())


MISSING = {
    "version": 1,
    "tuning_job_arn": None,
    "status": None,
    "reason": None,
    "explanation": None,
    "stopped": False,
    "best_training_job": None,
    "objective_metric": None,
}


@pytest.mark.parametrize("name", [None, "", " ", "None", NAME])
def test_nothing_to_stop_is_a_success_where_that_is_asked_for(name: str | None) -> None:
    hook = FakeHook()
    result, xcom, _ = run(hook, tuning_job_name=name, on_missing="succeed")
    assert result == {**MISSING, "tuning_job_name": NAME if name == NAME else None}
    assert xcom == {}
    assert hook.named("stop") == ([(NAME, "operator", "task stop of DAG churn")] if name == NAME else [])


def test_as_a_teardown_it_succeeds_without_a_job_unless_told_otherwise() -> None:
    def stop(**options: Any) -> dict[str, Any]:
        task = AmtStopTuningJobOperator(task_id="stop", check_interval=0.1, **options).as_teardown()
        use_hook(task, FakeHook())
        result: dict[str, Any] = task.execute(task_context(task_id="stop"))
        return result

    assert stop(tuning_job_name=NAME)["stopped"] is False
    assert stop(tuning_job_name=None)["tuning_job_name"] is None
    with pytest.raises(AmtResourceNotFoundError):
        stop(tuning_job_name=NAME, on_missing="fail")
    with pytest.raises(AmtRequestError, match="tuning_job_name"):
        stop(tuning_job_name=None, on_missing="fail")


def test_other_errors_fail_also_where_a_missing_job_is_a_success() -> None:
    with pytest.raises(AmtAccessDeniedError):
        run(FakeHook({NAME: [DENIED]}), on_missing="succeed")
    with pytest.raises(AmtRequestError, match="tuning_job_name"):
        run(FakeHook(), tuning_job_name="no_underscore", on_missing="succeed")


def test_on_missing_is_checked_before_any_call() -> None:
    hook = FakeHook({NAME: ["InProgress"]})
    with pytest.raises(AmtRequestError, match=r"on_missing.*'ignore'.*fail, succeed"):
        run(hook, on_missing="ignore")
    assert hook.calls == []


@pytest.mark.parametrize("name", ["", "n" * 33, "no_underscore", None, 7])
def test_what_cannot_be_a_name_is_refused_without_a_call(name: Any) -> None:
    hook = FakeHook()
    with pytest.raises(AmtRequestError) as caught:
        run(hook, tuning_job_name=name)
    assert {problem.field for problem in caught.value.problems} == {"tuning_job_name"}
    assert hook.calls == []


@WAYS
def test_transient_errors_are_borne_and_others_fail(deferrable: bool) -> None:
    hook = FakeHook({NAME: [THROTTLED, "InProgress"]})
    assert run(hook, deferrable=deferrable)[0]["stopped"] is True
    hook = FakeHook({NAME: ["Stopping", "Stopping", DENIED]})
    with pytest.raises(AmtAccessDeniedError):
        run(hook, deferrable=deferrable)


def test_the_trigger_of_a_stop_never_stops_again() -> None:
    from airflow_amt.triggers.tuning import AmtTuningJobTrigger

    made: list[AmtTuningJobTrigger] = []

    class Kept(AmtStopTuningJobOperator):
        def build_trigger(self, *args: Any, **options: Any) -> AmtTuningJobTrigger:
            made.append(super().build_trigger(*args, **options))
            return made[-1]

    hook = FakeHook({NAME: ["InProgress", describe(NAME, "Stopping"), "Stopping", "Stopped"]})
    hook.stop_takes_effect = "Stopping"

    def make() -> AmtStopTuningJobOperator:
        return Kept(task_id="stop", tuning_job_name=NAME, check_interval=0.1, deferrable=True)

    class Ending(SlowlyStopping):
        pass

    run_task(make, task_context(), Ending({NAME: ["InProgress"]}))
    assert [trigger.stop_on_kill for trigger in made] == [False]


def test_a_resumption_without_an_event_begins_anew() -> None:
    hook = FakeHook({NAME: ["InProgress"]})
    task = AmtStopTuningJobOperator(task_id="stop", tuning_job_name=NAME, check_interval=0.1)
    use_hook(task, hook)
    assert task.execute_complete(task_context(task_id="stop"), None)["stopped"] is True
