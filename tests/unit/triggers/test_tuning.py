"""The trigger: one event, and a kill that looks before it stops."""

from __future__ import annotations

import asyncio
import threading
import time
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_amt import _compat
from airflow_amt.triggers import tuning as triggers
from airflow_amt.triggers.progress import AmtTuningProgressTrigger
from airflow_amt.triggers.tuning import AmtTuningJobTrigger
from airflow_amt.watch import polling
from tests.local.support import wait_until
from tests.unit.tasks import DENIED, OWNER, THROTTLED, UNAVAILABLE, FakeHook, fired, loud_log, use_hook

NAME = "churn-model"


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "LONGEST_BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(triggers, "_STATE_PAUSE_SECONDS", 0.01)


def trigger(hook: FakeHook, **options: Any) -> AmtTuningJobTrigger:
    made = AmtTuningJobTrigger(tuning_job_name=NAME, check_interval=0.02, **options)
    use_hook(made, hook)
    return made


def test_it_fires_once_when_the_job_is_over() -> None:
    hook = FakeHook({NAME: ["InProgress", "InProgress", "Failed"]})
    assert fired(trigger(hook, state={"known_stop": None})) == {
        "version": triggers.TRIGGER_VERSION,
        "tuning_job_name": NAME,
        "status": "Failed",
        "event": "ended",
        "error": None,
        "state": {"known_stop": None},
    }
    assert len(hook.calls) == 3


def test_it_fires_at_the_deadline_and_stops_nothing() -> None:
    hook = FakeHook({NAME: ["InProgress"]})
    deadline = (datetime.now(UTC) + timedelta(seconds=0.2)).isoformat()
    event = fired(trigger(hook, deadline=deadline))
    assert (event["event"], event["status"]) == ("deadline", "InProgress")
    assert hook.named("stop") == []


@pytest.mark.parametrize(("offset_seconds", "least_seconds"), [(3600, 0.2), (0.1, 0.05), (-60, 0)])
def test_the_first_read_waits_for_its_time_but_not_longer_than_an_interval(
    offset_seconds: float, least_seconds: float
) -> None:
    read_at: list[float] = []

    class Timed(FakeHook):
        def describe_tuning_job(self, name: str) -> dict[str, Any]:
            read_at.append(time.monotonic())
            return super().describe_tuning_job(name)

    made = AmtTuningJobTrigger(
        tuning_job_name=NAME,
        check_interval=0.2,
        first_read_at=(datetime.now(UTC) + timedelta(seconds=offset_seconds)).isoformat(),
    )
    use_hook(made, Timed({NAME: ["InProgress", "Completed"]}))
    began = time.monotonic()
    assert fired(made)["event"] == "ended"
    assert read_at[0] - began >= least_seconds
    # A triggerer that takes the trigger up later reads at once.
    made.first_read_at = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    assert made._seconds_to_first_read() == 0


def test_it_fires_with_the_error_when_reading_fails_for_good() -> None:
    event = fired(trigger(FakeHook({NAME: ["InProgress", DENIED]})))
    assert event["event"] == "error"
    assert event["error"] == {
        "operation": "DescribeHyperParameterTuningJob",
        "code": "AccessDeniedException",
        "message": "not you",
        "status_code": 400,
        "request_id": None,
    }


def test_a_connection_that_cannot_be_read_is_an_event_and_not_the_end_of_the_trigger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from airflow_amt._compat import AirflowException
    from airflow_amt.hooks.tuning import AmtHook

    def refuse(*_: Any, **__: Any) -> Any:
        raise AirflowException("the secrets backend is down")

    monkeypatch.setattr(AmtHook, "get_connection", refuse)
    log = loud_log()
    monkeypatch.setattr(AmtTuningJobTrigger, "log", log)
    event = fired(AmtTuningJobTrigger(tuning_job_name=NAME, aws_conn_id="aws_prod", state={"deadline": None}))
    assert (event["event"], event["status"], event["state"]) == ("error", None, {"deadline": None})
    assert event["error"]["code"] == "AirflowException"
    assert "the secrets backend is down (aws_conn_id 'aws_prod'" in event["error"]["message"]
    assert log.lines == [f"exception: Tuning job {NAME} cannot be watched"]


def test_a_misspelt_connection_is_an_event_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    event = fired(AmtTuningJobTrigger(tuning_job_name=NAME, aws_conn_id="aws_defualt"))
    assert event["error"]["code"] == "NoRegionError"
    assert "connection 'aws_defualt', which Airflow does not have" in event["error"]["message"]


def test_it_bears_transient_errors_up_to_its_limit() -> None:
    assert fired(trigger(FakeHook({NAME: [UNAVAILABLE, THROTTLED, "Completed"]})))["event"] == "ended"
    hook = FakeHook({NAME: [UNAVAILABLE]})
    assert fired(trigger(hook, max_failures=3))["error"]["code"] == "ServiceUnavailable"
    assert len(hook.calls) == 3


class Held(FakeHook):
    """A hook whose reads begin when they like and end when they may."""

    def __init__(self, status: str) -> None:
        super().__init__({NAME: [status]})
        self.entered, self.leave = threading.Event(), threading.Event()

    def describe_tuning_job(self, name: str) -> dict[str, Any]:
        self.entered.set()
        assert self.leave.wait(5)
        return super().describe_tuning_job(name)


async def begin(hook: Held) -> asyncio.Task[list[Any]]:
    """Start a trigger and return once its first read is under way."""

    async def collect() -> list[Any]:
        return [event async for event in trigger(hook).run()]

    task = asyncio.create_task(collect())
    assert await asyncio.to_thread(hook.entered.wait, 5)
    return task


def test_reading_does_not_block_the_event_loop() -> None:
    hook = Held("Completed")

    async def run() -> list[Any]:
        task = await begin(hook)
        hook.leave.set()  # reached only if the loop is free while the thread reads
        return await task

    assert len(asyncio.run(run())) == 1


def test_a_users_kill_keeps_its_message_while_a_read_is_under_way() -> None:
    """Airflow 3.3 tells a kill from a shutdown by the message of the cancellation."""
    hook = Held("InProgress")

    async def run() -> None:
        task = await begin(hook)
        task.cancel("a person did it")
        try:
            await task
        finally:
            hook.leave.set()

    with pytest.raises(asyncio.CancelledError, match="a person did it"):
        asyncio.run(run())


def test_only_its_own_reads_have_the_context_by_which_airflow_finds_the_tasks_log() -> None:
    """What is read for all triggers must not be logged as the one's that happened to be the first."""
    mine: ContextVar[str] = ContextVar("mine", default="nobody's")
    seen: list[tuple[str, str]] = []

    class Looking(FakeHook):
        def describe_tuning_job(self, name: str) -> dict[str, Any]:
            seen.append(("describe", mine.get()))
            return super().describe_tuning_job(name)

        def list_training_jobs(self, name: str, *, status: str | None = None) -> Any:
            seen.append(("list", mine.get()))
            return super().list_training_jobs(name, status=status)

    watching = AmtTuningProgressTrigger(
        NAME, {"type": "not_improving", "training_jobs": 3}, check_interval=0.01
    )
    use_hook(watching, Looking({NAME: ["InProgress", "Completed"]}))

    async def run() -> None:
        mine.set("this trigger's")
        async for _ in watching.run():
            pass

    asyncio.run(run())
    assert set(seen) == {("describe", "nobody's"), ("list", "this trigger's")}


def test_arguments_of_a_newer_release_are_ignored_and_missing_ones_have_defaults() -> None:
    made = AmtTuningJobTrigger(tuning_job_name=NAME, version=99, watch_group="eu")
    assert made.serialize()[1]["version"] == triggers.TRIGGER_VERSION
    assert made.stop_on_kill is False
    use_hook(made, FakeHook({NAME: ["Completed"]}))
    assert fired(made)["event"] == "ended"


# --- kills -------------------------------------------------------------------------------------


def task_instance() -> Any:
    """What the triggerer gives a trigger."""
    return SimpleNamespace(
        dag_id=OWNER.dag_id, run_id=OWNER.run_id, task_id=OWNER.task_id, map_index=-1, id="ti", try_number=1
    )


def kill(hook: FakeHook, state: Any, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[Any]:
    """Kill the trigger of a task in a state (or whose state raises); return what was asked for."""
    asked: list[Any] = []

    def read(*about: Any) -> Any:
        asked.append(about)
        if isinstance(state, Exception):
            raise state
        return state

    monkeypatch.setattr(_compat, "read_task_state", read)
    made = trigger(hook, **{"stop_on_kill": True, **options})
    made.task_instance = task_instance()
    asyncio.run(made.on_kill())
    return asked


@pytest.mark.parametrize(
    "state", ["failed", "success", "skipped", "removed", "scheduled", "queued", "restarting", None]
)
def test_a_kill_stops_the_job(state: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = FakeHook({NAME: ["InProgress"]})
    closed: list[bool] = []
    hook.conn.close = lambda: closed.append(True)
    asked = kill(hook, state, monkeypatch)
    assert closed == [True]
    assert asked == [(OWNER.dag_id, OWNER.run_id, OWNER.task_id, -1)]
    assert hook.named("stop") == [
        (NAME, "on_kill", f"the task was killed, its state is {state or 'cleared'}")
    ]


@pytest.mark.parametrize("state", ["deferred", "running", "up_for_retry"])
def test_a_false_kill_does_not(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = FakeHook({NAME: ["InProgress"]})
    kill(hook, state, monkeypatch)
    assert hook.calls == []


def test_a_kill_that_cannot_be_confirmed_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = FakeHook({NAME: ["InProgress"]})
    assert len(kill(hook, RuntimeError("no answer"), monkeypatch)) == 3
    assert hook.calls == []


def test_a_kill_leaves_the_job_alone_when_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = FakeHook({NAME: ["InProgress"]})
    assert kill(hook, "failed", monkeypatch, stop_on_kill=False) == []
    assert hook.calls == []


class Stubborn(FakeHook):
    """A hook whose stops are throttled so often."""

    refusals = 0

    def stop_tuning_job(self, name: str, **options: Any) -> bool:
        if self.refusals:
            self.refusals -= 1
            raise THROTTLED
        return super().stop_tuning_job(name, **options)


def test_a_stop_that_is_throttled_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = Stubborn({NAME: ["InProgress"]})
    hook.refusals = 2
    kill(hook, "failed", monkeypatch)
    assert len(hook.named("stop")) == 1


def test_a_stop_that_fails_is_told_with_the_jobs_name(monkeypatch: pytest.MonkeyPatch) -> None:
    log = loud_log()
    monkeypatch.setattr(AmtTuningJobTrigger, "log", log)
    hook = Stubborn({NAME: ["InProgress"]})
    hook.refusals = 100
    kill(hook, "failed", monkeypatch)
    assert hook.refusals == 95
    assert log.lines[-1].startswith(f"exception: Tuning job {NAME} could not be stopped and may run on.")


def test_a_kill_outside_of_a_triggerer_does_not_stop_the_job() -> None:
    hook = FakeHook({NAME: ["InProgress"]})
    asyncio.run(trigger(hook, stop_on_kill=True).on_kill())
    assert hook.calls == []


def test_a_kill_is_over_in_time_though_the_task_cannot_be_read_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(triggers, "_ON_KILL_SECONDS", 0.2)
    leave = threading.Event()
    monkeypatch.setattr(_compat, "read_task_state", lambda *_: leave.wait(10) and "failed")
    hook = FakeHook({NAME: ["InProgress"]})
    made = trigger(hook, stop_on_kill=True)
    made.task_instance = task_instance()

    async def run() -> float:
        began = time.monotonic()
        await made.on_kill()
        took = time.monotonic() - began
        assert hook.calls == []
        leave.set()
        return took

    assert asyncio.run(run()) < 2
    # What was not done in time is done nevertheless.
    wait_until(lambda: len(hook.named("stop")) == 1, "the job to be stopped")


def cleaned_up(hook: Held, state: str | None, monkeypatch: pytest.MonkeyPatch, *, told: bool) -> None:
    """Cancel a trigger that watches, as Airflow does; its cleanup runs, as in Airflow."""
    monkeypatch.setattr(_compat, "read_task_state", lambda *_: state)
    monkeypatch.setattr(_compat, "triggers_hear_of_kills", lambda: told)
    made = trigger(hook, stop_on_kill=True)
    made.task_instance = task_instance()

    async def run() -> None:
        watching = asyncio.ensure_future(anext(aiter(made.run())))
        await asyncio.to_thread(hook.entered.wait, 10)
        hook.leave.set()
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching
        await made.cleanup()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("state", "told", "stopped"),
    [("failed", False, True), (None, False, True), ("deferred", False, False), ("failed", True, False)],
)
def test_where_nobody_tells_of_kills_the_cleanup_looks_for_itself(
    state: str | None, told: bool, stopped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = Held("InProgress")
    cleaned_up(hook, state, monkeypatch, told=told)
    assert bool(hook.named("stop")) is stopped


def test_the_cleanup_of_a_trigger_that_fired_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compat, "read_task_state", lambda *_: "scheduled")
    monkeypatch.setattr(_compat, "triggers_hear_of_kills", lambda: False)
    hook = FakeHook({NAME: ["InProgress"]})
    made = trigger(hook, stop_on_kill=True, deadline="2026-01-01T00:00:00+00:00")
    made.task_instance = task_instance()

    async def run() -> None:
        assert [event.payload["event"] async for event in made.run()] == ["deadline"]
        await made.cleanup()

    asyncio.run(run())
    assert hook.named("stop") == []


def test_the_state_of_a_mapped_task_is_found_under_its_own_key(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    answer = {"run": {"tune_3": "failed", "tune": "deferred"}}
    monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", staticmethod(lambda **_: answer))
    assert _compat.read_task_state("dag", "run", "tune", 3) == "failed"
    assert _compat.read_task_state("dag", "run", "tune", -1) == "deferred"
    assert _compat.read_task_state("dag", "run", "gone", -1) is None
    assert _compat.read_task_state("dag", "other run", "tune", -1) is None
