"""The sensor: the operator's decision in every mode, and what soft_fail and its kin make of it."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import pytest

try:
    from airflow.sdk.exceptions import AirflowRescheduleException
except ImportError:  # Airflow 3.1
    from airflow.exceptions import AirflowRescheduleException

from airflow_amt._compat import AirflowFailException, AirflowSensorTimeout, AirflowSkipException
from airflow_amt.exceptions import (
    AmtAccessDeniedError,
    AmtAwsError,
    AmtRequestError,
    AmtResourceNotFoundError,
)
from airflow_amt.sensors.tuning import AmtTuningJobSensor
from airflow_amt.task_exceptions import AmtAwaitedJobFailed, AmtAwaitedJobStopped
from airflow_amt.watch import polling
from tests.unit.tasks import (
    DENIED,
    THROTTLED,
    UNAVAILABLE,
    FakeHook,
    describe,
    loud_log,
    not_found,
    run_task,
    task_context,
    use_hook,
)

NAME = "churn-model"
WAYS = pytest.mark.parametrize("deferrable", [False, True], ids=["poke", "deferred"])


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "LONGEST_BACKOFF_SECONDS", 0.01)


def sensor(**options: Any) -> AmtTuningJobSensor:
    options = {"tuning_job_name": NAME, "poke_interval": 0.05, "timeout": 60, **options}
    return AmtTuningJobSensor(task_id="wait", **options)


def run(hook: FakeHook, **options: Any) -> tuple[Any, dict[str, Any], list[dict[str, Any]]]:
    """Run the sensor; return its result, its XCom, and the events of its triggers."""
    context = task_context(task_id="wait")
    result, events = run_task(lambda: sensor(**options), context, hook)
    return result, context["ti"].xcom, events


@WAYS
def test_success_returns_and_publishes_the_outcome(deferrable: bool) -> None:
    hook = FakeHook({NAME: ["InProgress", "InProgress", "InProgress", "Completed"]})
    result, xcom, events = run(hook, deferrable=deferrable)
    assert result["reason"] == "max_training_jobs"
    assert xcom["outcome"] == result
    assert xcom["_link_AmtTuningJobLink"].endswith("/churn-model")
    assert [event["event"] for event in events] == (["ended"] if deferrable else [])


@WAYS
def test_a_job_that_is_over_never_waits(deferrable: bool) -> None:
    result, _, events = run(FakeHook({NAME: ["Completed"]}), deferrable=deferrable, poke_interval=3600)
    assert (result["status"], events) == ("Completed", [])


@WAYS
def test_an_end_without_any_objective_is_warned_of(deferrable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    log = loud_log()
    monkeypatch.setattr(AmtTuningJobSensor, "log", log)
    final = describe(status="Completed")
    del final["BestTrainingJob"]
    run(FakeHook({NAME: [final]}), deferrable=deferrable)
    assert sum("warning: " in line and "no training job gave an objective" in line for line in log.lines) == 1


FINAL: dict[str, tuple[Any, type[Exception]]] = {
    "Failed": (describe(status="Failed", FailureReason="no capacity"), AmtAwaitedJobFailed),
    "Stopped": (describe(status="Stopped"), AmtAwaitedJobStopped),
}


@WAYS
@pytest.mark.parametrize("late", [False, True], ids=["at-once", "later"])
@pytest.mark.parametrize("final", FINAL)
class TestAJobThatDidNotSucceed:
    def hook(self, final: str, late: bool) -> FakeHook:
        answers = ["InProgress", "InProgress"] if late else []
        return FakeHook({NAME: [*answers, FINAL[final][0]]})

    def test_fails_without_a_retry(self, final: str, late: bool, deferrable: bool) -> None:
        context = task_context()
        with pytest.raises(FINAL[final][1]) as caught:
            run_task(lambda: sensor(deferrable=deferrable), context, self.hook(final, late))
        assert isinstance(caught.value, AirflowFailException)
        assert context["ti"].xcom["outcome"]["status"] == final

    @pytest.mark.parametrize("option", ["soft_fail", "never_fail"])
    def test_skips_when_told_so(self, final: str, late: bool, deferrable: bool, option: str) -> None:
        with pytest.raises(AirflowSkipException):
            run(self.hook(final, late), deferrable=deferrable, **{option: True})

    def test_silent_fail_does_not_poke_for_ever(self, final: str, late: bool, deferrable: bool) -> None:
        with pytest.raises(FINAL[final][1]):
            run(self.hook(final, late), deferrable=deferrable, silent_fail=True)


@WAYS
@pytest.mark.parametrize("late", [False, True], ids=["at-once", "later"])
@pytest.mark.parametrize("error", [DENIED, not_found(NAME)], ids=["denied", "not-found"])
class TestAnErrorThatWaitingDoesNotMend:
    def hook(self, error: AmtAwsError, late: bool) -> FakeHook:
        return FakeHook({NAME: [*(["InProgress"] if late else []), error]})

    def test_fails_the_task(self, error: AmtAwsError, late: bool, deferrable: bool) -> None:
        with pytest.raises((AmtAccessDeniedError, AmtResourceNotFoundError)) as caught:
            run(self.hook(error, late), deferrable=deferrable)
        assert caught.value.args == error.args

    @pytest.mark.parametrize("option", ["soft_fail", "never_fail"])
    def test_skips_when_told_so(self, error: AmtAwsError, late: bool, deferrable: bool, option: str) -> None:
        with pytest.raises(AirflowSkipException):
            run(self.hook(error, late), deferrable=deferrable, **{option: True})


@WAYS
def test_transient_errors_are_borne(deferrable: bool) -> None:
    hook = FakeHook({NAME: ["InProgress", UNAVAILABLE, THROTTLED, "Completed"]})
    assert run(hook, deferrable=deferrable)[0]["status"] == "Completed"


@WAYS
def test_too_many_of_them_are_not(deferrable: bool) -> None:
    with pytest.raises(AmtAwsError, match="try again"):
        run(FakeHook({NAME: ["InProgress", UNAVAILABLE]}), deferrable=deferrable, poke_interval=0.001)


@WAYS
@pytest.mark.parametrize(
    ("options", "error"),
    [({}, AirflowSensorTimeout), ({"soft_fail": True}, AirflowSkipException)],
    ids=["fails", "skips"],
)
def test_a_timeout_is_a_timeout_and_the_job_runs_on(
    deferrable: bool, options: dict[str, Any], error: type[Exception]
) -> None:
    hook = FakeHook({NAME: ["InProgress"]})
    began = time.monotonic()
    with pytest.raises(error):
        run(hook, deferrable=deferrable, timeout=0.5, **options)
    assert 0.4 < time.monotonic() - began < 5
    assert hook.named("stop") == []


@WAYS
def test_a_timeout_on_the_first_read_skips_too(deferrable: bool) -> None:
    with pytest.raises(AirflowSkipException, match="timed out"):
        run(FakeHook({NAME: ["InProgress"]}), deferrable=deferrable, timeout=0, soft_fail=True)


def test_a_deadline_is_absolute_however_often_the_task_resumes() -> None:
    deadline = datetime(2026, 1, 1, tzinfo=UTC).isoformat()
    task = sensor(deferrable=True)
    use_hook(task, FakeHook({NAME: ["InProgress"]}))
    event = {"tuning_job_name": NAME, "event": "ended", "state": {"deadline": deadline}}
    with pytest.raises(AirflowSensorTimeout):
        task.execute_complete(task_context(), event)


def test_rescheduling_pokes_once_and_leaves() -> None:
    task = sensor(mode="reschedule")
    hook = FakeHook({NAME: ["InProgress", "Completed"]})
    use_hook(task, hook)
    context = task_context()
    context["ti"].get_first_reschedule_date = lambda _: None
    with pytest.raises(AirflowRescheduleException):
        task.execute(context)
    again = sensor(mode="reschedule")
    use_hook(again, hook)
    assert again.execute(context)["reason"] == "max_training_jobs"


@WAYS
def test_what_cannot_be_a_name_is_refused_without_a_call(deferrable: bool) -> None:
    hook = FakeHook()
    with pytest.raises(AmtRequestError):
        run(hook, deferrable=deferrable, tuning_job_name="no_underscore")
    assert hook.calls == []


def test_a_resumption_without_an_event_begins_anew() -> None:
    waiting = sensor(deferrable=True)
    use_hook(waiting, FakeHook({NAME: ["Completed"]}))
    assert waiting.execute_complete(task_context(task_id="wait"), {})["status"] == "Completed"
