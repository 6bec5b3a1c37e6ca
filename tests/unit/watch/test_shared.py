"""The watch that all triggers of a process share: few calls, each answer for its own, nothing left of it."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import CancelledError
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from airflow_amt import _compat
from airflow_amt.exceptions import AmtAccessDeniedError
from airflow_amt.hooks.errors import aws_error
from airflow_amt.tuning.schedule import Observation, Schedule
from airflow_amt.watch import shared
from airflow_amt.watch.shared import SharedWatch, configured_rate, subscribe
from tests.unit.tasks import DENIED, THROTTLED, UNAVAILABLE, FakeHook

NO_CREDENTIALS = aws_error("DescribeHyperParameterTuningJob", "NoCredentialsError", "none found")
EXPIRED = aws_error("DescribeHyperParameterTuningJob", "ExpiredTokenException", "too old", 400)


class Connection:
    """An AWS connection whose hooks are given here."""

    def __init__(self, *hooks: Any, aws_conn_id: str | None = "aws_default") -> None:
        self.aws_conn_id = aws_conn_id
        self.hooks = list(hooks)
        self.built = 0

    def connection_arguments(self) -> dict[str, Any]:
        return {"aws_conn_id": self.aws_conn_id}

    def new_hook(self) -> Any:
        self.built += 1
        hook = self.hooks.pop(0) if len(self.hooks) > 1 else self.hooks[0]
        if isinstance(hook, Exception):
            raise hook
        return hook


async def watch_to_the_end(connection: Any, name: str, interval: float = 0.2) -> Observation:
    """Watch as a trigger does, until the job is over or reading fails."""
    with subscribe(connection, name, interval) as subscription:
        due = time.monotonic()
        while True:
            observation = await subscription.next(due=due)
            assert observation is not None
            if observation.progress is None or observation.progress.is_terminal:
                return observation
            due = observation.asked_at + interval


def error_of(observation: Observation) -> BaseException | None:
    return observation.error


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 5
    while any(one.name.startswith("airflow-amt-watch") for one in threading.enumerate()):
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.01)


class Unlisted(FakeHook):
    """A hook that may describe and not list."""

    def list_tuning_jobs_page(self, token: str | None = None, **filters: Any) -> Any:
        super().list_tuning_jobs_page(token, **filters)
        raise DENIED


def names(count: int) -> list[str]:
    return [f"job-{number}" for number in range(count)]


def test_a_thousand_subscribers_cost_a_few_pages_and_no_thread_each() -> None:
    hook = FakeHook({name: ["InProgress"] for name in names(1000)})
    connection = Connection(hook)
    threads: list[int] = []

    async def run() -> None:
        tasks = [asyncio.create_task(watch_to_the_end(connection, name, 1.0)) for name in names(1000)]
        await asyncio.sleep(1.6)
        threads.append(sum(one.name.startswith("airflow-amt-watch") for one in threading.enumerate()))
        for name in names(1000):
            hook.script[name] = ["Completed"]
        ended = await asyncio.gather(*tasks)
        assert {one.progress.status for one in ended if one.progress} == {"Completed"}

    asyncio.run(run())
    calls = Counter(kind for kind, _ in hook.calls)
    assert connection.built == 1
    assert threads[0] <= 4
    assert calls["list_page"] <= 60
    assert calls["describe"] <= 10


def test_ten_thousand_subscribers_are_let_go_at_once() -> None:
    hook = FakeHook({name: ["InProgress"] for name in names(10_000)})

    async def run() -> weakref.ref[SharedWatch]:
        tasks = [asyncio.create_task(watch_to_the_end(Connection(hook), name, 30)) for name in names(10_000)]
        await asyncio.sleep(0.5)
        (watch,) = shared._watches[asyncio.get_running_loop()].values()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.05)
        assert len(asyncio.all_tasks()) == 1
        assert not shared._watches[asyncio.get_running_loop()]
        return weakref.ref(watch)

    watch = asyncio.run(run())
    gc.collect()
    assert watch() is None


def test_the_last_one_closes_the_clients_connections() -> None:
    closed = threading.Event()
    hook = FakeHook({"a": ["Completed"]})
    hook.conn.close = closed.set
    asyncio.run(watch_to_the_end(Connection(hook), "a"))
    assert closed.wait(5)


def test_one_that_is_cancelled_while_its_call_is_under_way_leaves_the_others_alone() -> None:
    entered, leave = threading.Event(), threading.Event()

    class Slow(FakeHook):
        def describe_tuning_job(self, name: str) -> dict[str, Any]:
            entered.set()
            assert leave.wait(5)
            return super().describe_tuning_job(name)

    connection = Connection(Slow({"a": ["Completed"]}))

    async def run() -> Observation:
        first = asyncio.create_task(watch_to_the_end(connection, "a"))
        assert await asyncio.to_thread(entered.wait, 5)
        second = asyncio.create_task(watch_to_the_end(connection, "a"))
        await asyncio.sleep(0)
        first.cancel()
        leave.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        return await asyncio.wait_for(second, 5)

    progress = asyncio.run(run()).progress
    assert progress is not None
    assert progress.status == "Completed"


def test_a_new_watch_begins_while_a_call_of_the_old_one_hangs() -> None:
    leave = threading.Event()

    class Hanging(FakeHook):
        def describe_tuning_job(self, name: str) -> dict[str, Any]:
            if name == "hangs":
                leave.wait(5)
            return super().describe_tuning_job(name)

    connection = Connection(Hanging({"hangs": ["InProgress"], "b": ["Completed"]}))

    async def run() -> None:
        first = asyncio.create_task(watch_to_the_end(connection, "hangs"))
        await asyncio.sleep(0.3)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        began = time.monotonic()
        await watch_to_the_end(connection, "b")
        assert time.monotonic() - began < 2

    try:
        asyncio.run(run())
    finally:
        leave.set()


def test_a_slow_consumer_holds_nobody_up_and_sees_the_latest() -> None:
    hook = FakeHook({"slow": ["InProgress"], "quick": ["InProgress"]})
    connection = Connection(hook)

    async def slow() -> Observation | None:
        with subscribe(connection, "slow", 0.1) as subscription:
            await subscription.next(due=time.monotonic())
            await asyncio.sleep(1.0)
            return await subscription.next(due=time.monotonic())

    async def run() -> None:
        slowly = asyncio.create_task(slow())
        quickly = asyncio.create_task(watch_to_the_end(connection, "quick", 0.1))
        await asyncio.sleep(0.5)
        hook.script["quick"] = hook.script["slow"] = ["Completed"]
        began = time.monotonic()
        await quickly
        assert time.monotonic() - began < 0.45
        last = await slowly
        assert last is not None
        assert last.progress is not None
        assert last.progress.status == "Completed"

    asyncio.run(run())


# --- who hears of what ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [FakeHook, Unlisted])
def test_a_deleted_job_fails_its_own_subscribers_alone(kind: type[FakeHook]) -> None:
    hook = kind({"a": ["InProgress"], "c": ["InProgress"]})
    connection = Connection(hook)

    async def run() -> None:
        tasks = {
            name: asyncio.create_task(watch_to_the_end(connection, name)) for name in (*hook.script, "gone")
        }
        await asyncio.sleep(1.0)
        assert "ResourceNotFound" in str(error_of(await tasks["gone"]))
        assert not tasks["a"].done()
        hook.script["a"] = hook.script["c"] = ["Completed"]
        assert (await tasks["a"]).error is None
        assert (await tasks["c"]).error is None

    asyncio.run(run())


def test_lists_that_are_not_permitted_are_told_once_and_each_job_is_described(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hook = Unlisted({name: ["InProgress", "Completed"] for name in names(5)})

    async def run() -> None:
        await asyncio.gather(*(watch_to_the_end(Connection(hook), name, 0.2) for name in names(5)))

    asyncio.run(run())
    assert len(hook.named("list_page")) == 1
    told = [one.getMessage() for one in caplog.records if one.name == shared.__name__]
    assert len([one for one in told if "sagemaker:ListHyperParameterTuningJobs" in one]) == 1


def test_a_hook_that_cannot_be_built_is_everybodys_error() -> None:
    connection = Connection(ValueError("no such connection"))

    async def run() -> list[Observation]:
        return await asyncio.gather(*(watch_to_the_end(connection, name) for name in names(20)))

    assert {str(error_of(one)) for one in asyncio.run(run())} == {"no such connection"}
    assert connection.built <= 3


@pytest.mark.parametrize("error", [DENIED, UNAVAILABLE, NO_CREDENTIALS], ids=["denied", "down", "none"])
def test_so_it_is_if_aws_has_something_against_it(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    connection = Connection(error)

    async def run() -> list[Observation]:
        return await asyncio.gather(*(watch_to_the_end(connection, name) for name in names(200)))

    assert {error_of(one) for one in asyncio.run(run())} == {error}
    assert connection.built == 1
    # A permission to list would not help.
    assert "ListHyperParameterTuningJobs" not in caplog.text


def test_whoever_asks_for_the_hook_gets_the_error_itself() -> None:
    async def run() -> None:
        with (
            subscribe(Connection(DENIED), "a", 30) as subscription,
            pytest.raises(AmtAccessDeniedError) as caught,
        ):
            subscription.hook()
        assert caught.value is DENIED

    asyncio.run(run())


def test_throttling_is_waited_out() -> None:
    hook = FakeHook({"a": [THROTTLED, THROTTLED, "Completed"]})
    assert error_of(asyncio.run(watch_to_the_end(Connection(hook), "a"))) is None


def test_an_error_that_may_pass_is_told() -> None:
    assert (
        error_of(asyncio.run(watch_to_the_end(Connection(FakeHook({"a": [UNAVAILABLE]})), "a")))
        is UNAVAILABLE
    )


def test_a_defect_of_the_watch_ends_nobodys_waiting_in_silence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hook = FakeHook({name: ["InProgress"] for name in names(10)})

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a defect")

    monkeypatch.setattr(Schedule, "page", broken)

    async def run() -> list[Observation]:
        return await asyncio.gather(*(watch_to_the_end(Connection(hook), name) for name in names(10)))

    assert {str(error_of(one)) for one in asyncio.run(run())} == {"a defect"}
    assert "Watching tuning jobs failed" in caplog.text


def test_a_defect_while_a_page_is_told_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = FakeHook({name: ["InProgress"] for name in names(200)})
    wake = SharedWatch._wake

    async def broken(watch: SharedWatch, watchers: Any) -> None:
        if watch._defect is None:
            await wake(watch, watchers[:50])
            raise RuntimeError("a defect")
        await wake(watch, watchers)

    monkeypatch.setattr(SharedWatch, "_wake", broken)

    async def run() -> list[Observation]:
        async with asyncio.timeout(5):
            return await asyncio.gather(*(watch_to_the_end(Connection(hook), name) for name in names(200)))

    assert {str(error_of(one)) for one in asyncio.run(run())} == {"a defect"}


def test_a_watch_that_somebody_cancels_tells_its_subscribers() -> None:
    connection = Connection(FakeHook({name: ["InProgress"] for name in names(20)}))

    async def run() -> list[Observation]:
        tasks = [asyncio.create_task(watch_to_the_end(connection, name, 30)) for name in names(20)]
        await asyncio.sleep(0.5)
        (task,) = [one for one in asyncio.all_tasks() if one.get_name() == "airflow-amt-watch"]
        task.cancel()
        async with asyncio.timeout(5):
            ended = await asyncio.gather(*tasks)
        assert not shared._watches[asyncio.get_running_loop()]
        return ended

    assert {str(error_of(one)) for one in asyncio.run(run())} == {"the watch of tuning jobs was cancelled"}


@pytest.mark.parametrize("error", [asyncio.CancelledError, CancelledError])
def test_a_call_that_is_cancelled_is_told(error: type[BaseException]) -> None:
    class Cancelled(FakeHook):
        def describe_tuning_job(self, name: str) -> dict[str, Any]:
            raise error

    async def run() -> Observation:
        async with asyncio.timeout(5):
            return await watch_to_the_end(Connection(Cancelled()), "a")

    assert "was cancelled" in str(error_of(asyncio.run(run())))


def test_a_list_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_SLOW_PAGE_SECONDS", 0.3)
    leave = threading.Event()

    class Hanging(FakeHook):
        def list_tuning_jobs_page(self, token: str | None = None, **filters: Any) -> Any:
            if self.named("list_page"):
                leave.wait(20)
            return super().list_tuning_jobs_page(token, **filters)

    hook = Hanging({name: ["InProgress"] for name in names(5)})

    async def run() -> None:
        tasks = [asyncio.create_task(watch_to_the_end(Connection(hook), name)) for name in names(5)]
        await asyncio.sleep(0.5)
        hook.script = {name: ["Completed"] for name in names(5)}
        async with asyncio.timeout(5):
            assert all(one.error is None for one in await asyncio.gather(*tasks))
        # What waited for the list has gone on; the thread that hangs is still in its call.
        assert len(hook.named("list_page")) == 1

    try:
        asyncio.run(run())
    finally:
        leave.set()


# --- the deadline --------------------------------------------------------------------------------


def test_the_job_is_read_at_the_deadline() -> None:
    hook = FakeHook({"a": ["InProgress"]})

    async def run() -> None:
        with subscribe(Connection(hook), "a", 60) as subscription:
            first = await subscription.next(due=time.monotonic())
            assert first is not None
            began = time.monotonic()
            second = await subscription.next(due=first.asked_at + 60, until_deadline=0.4)
            assert second is not None
            assert second.asked_at - began >= 0.39

    asyncio.run(run())
    assert len(hook.named("describe")) == 2


def test_a_read_that_does_not_come_is_not_waited_for_much_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_LAST_READ_SECONDS", 0.2)
    leave = threading.Event()

    class Hanging(FakeHook):
        def describe_tuning_job(self, name: str) -> dict[str, Any]:
            leave.wait(5)
            return super().describe_tuning_job(name)

    async def run() -> Observation | None:
        with subscribe(Connection(Hanging({"a": ["InProgress"]})), "a", 60) as subscription:
            return await subscription.next(due=time.monotonic(), until_deadline=0.2)

    assert asyncio.run(run()) is None
    leave.set()


# --- the connection ------------------------------------------------------------------------------


def test_expired_credentials_are_renewed_and_nobody_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_NEW_HOOK_SECONDS", 0.0)
    old, new = FakeHook({"a": ["InProgress", EXPIRED]}), FakeHook({"a": ["Completed"]})
    closed = threading.Event()
    old.conn.close = closed.set
    connection = Connection(old, new)
    assert error_of(asyncio.run(watch_to_the_end(connection, "a"))) is None
    assert closed.is_set()


def test_credentials_that_cannot_be_renewed_leave_the_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_NEW_HOOK_SECONDS", 0.0)
    connection = Connection(FakeHook({"a": ["InProgress", EXPIRED]}), NO_CREDENTIALS)
    assert error_of(asyncio.run(watch_to_the_end(connection, "a"))) is EXPIRED


def test_a_connection_that_was_edited_badly_fails_all_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_LOOK_AT_CONNECTION_SECONDS", 0.5)
    hook = FakeHook({name: ["InProgress"] for name in names(20)})

    class Edited(Connection):
        """What is there can be looked at, and no client be made of it."""

        def new_hook(self) -> Any:
            if not self.built:
                return super().new_hook()
            new = FakeHook()
            new.build = Mock(side_effect=NO_CREDENTIALS)  # type: ignore[method-assign]
            return new

    connection = Edited(hook)

    async def run() -> list[Observation]:
        async with asyncio.timeout(10):
            return await asyncio.gather(*(watch_to_the_end(connection, name) for name in names(20)))

    assert {error_of(one) for one in asyncio.run(run())} == {NO_CREDENTIALS}


def test_a_refusal_is_not_answered_with_ever_new_hooks() -> None:
    connection = Connection(Unlisted({"a": [DENIED], "b": [DENIED], "c": [DENIED]}))

    async def run() -> list[Observation]:
        return await asyncio.gather(*(watch_to_the_end(connection, name) for name in "abc"))

    assert {error_of(one) for one in asyncio.run(run())} == {DENIED}
    assert connection.built == 1


def test_an_edited_connection_is_picked_up(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    caplog.set_level(logging.INFO, logger=shared.__name__)
    monkeypatch.setattr(shared, "_LOOK_AT_CONNECTION_SECONDS", 0.3)
    old, new = FakeHook({"a": ["InProgress"]}), FakeHook({"a": ["Completed"]})
    assert error_of(asyncio.run(watch_to_the_end(Connection(old, new), "a"))) is None
    assert "was edited" in caplog.text


def test_a_connection_that_cannot_be_looked_at_goes_on_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_LOOK_AT_CONNECTION_SECONDS", 0.1)
    hook = FakeHook({"a": ["InProgress"] * 5 + ["Completed"]})
    connection = Connection(hook, ConnectionError("no secrets backend"))
    assert error_of(asyncio.run(watch_to_the_end(connection, "a", 0.1))) is None


def test_connections_do_not_share_a_watch() -> None:
    one, two = (
        Connection(FakeHook({"a": ["Completed"]})),
        Connection(FakeHook({"a": ["Failed"]}), aws_conn_id="b"),
    )

    async def run() -> list[Observation]:
        return list(await asyncio.gather(watch_to_the_end(one, "a"), watch_to_the_end(two, "a")))

    assert [found.progress.status for found in asyncio.run(run()) if found.progress] == [
        "Completed",
        "Failed",
    ]


# --- settings and reports ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected", "told"),
    [
        ((None, None), (5.0, 10.0), None),
        (("2.5", " 4 "), (2.5, 4.0), None),
        (("", ""), (5.0, 10.0), None),
        (("fast", "10"), (5.0, 10.0), "watch_calls_per_second"),
        (("0", "0"), (5.0, 10.0), "watch_calls_burst"),
        (("nan", "-1"), (5.0, 10.0), "watch_calls_per_second"),
    ],
)
def test_settings_that_are_none_are_told_and_the_default_taken(
    given: tuple[Any, Any],
    expected: tuple[float, float],
    told: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(_compat, "watch_rate", lambda: given)
    assert configured_rate() == expected
    assert (told in caplog.text) if told else not caplog.records


def test_the_settings_are_airflows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__AMT__WATCH_CALLS_PER_SECOND", "0.5")
    assert configured_rate() == (0.5, 10.0)


def test_once_a_minute_it_tells_what_it_does(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    caplog.set_level(logging.INFO, logger=shared.__name__)
    monkeypatch.setattr(shared, "_REPORT_SECONDS", 0.3)
    gauges: dict[str, list[Any]] = {}
    monkeypatch.setattr(
        _compat,
        "gauge",
        lambda metric, value, tags: gauges.setdefault(metric, []).append((value, *tags.values())),
    )
    hook = FakeHook({name: ["InProgress"] for name in names(3)})

    async def run() -> None:
        tasks = [asyncio.create_task(watch_to_the_end(Connection(hook), name)) for name in names(3)]
        await asyncio.sleep(1.0)
        hook.script.update({name: ["Completed"] for name in names(3)})
        await asyncio.gather(*tasks)

    asyncio.run(run())
    told = [one.getMessage() for one in caplog.records]
    assert 1 <= len([one for one in told if "Watching 3 tuning jobs for 3 triggers" in one]) <= 6
    kinds = ("jobs", "subscribers", "calls", "throttles", "staleness")
    assert set(gauges) == {f"amt.watch.{kind}" for kind in kinds}
    assert gauges["amt.watch.jobs"][0] == (3, "aws_default", "eu-west-1")
    assert gauges["amt.watch.jobs"][-1] == (0, "aws_default", "eu-west-1")


def test_metrics_reach_airflow(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []
    stats = SimpleNamespace(gauge=lambda metric, value, tags: seen.append((metric, value, tags)), incr=None)
    monkeypatch.setattr(_compat, "_stats", lambda: stats)
    _compat.gauge("amt.watch.jobs", 3, {"connection": "a"})
    assert seen == [("amt.watch.jobs", 3, {"connection": "a"})]
    monkeypatch.undo()
    assert callable(_compat._stats().gauge)


# --- cancellations -------------------------------------------------------------------------------


@pytest.mark.parametrize("ticks", range(4))
def test_a_watch_that_ends_as_it_is_woken_does_end(ticks: int) -> None:
    connection = Connection(FakeHook({"a": ["InProgress"]}))

    async def run() -> None:
        with subscribe(connection, "a", 60) as subscription:
            await subscription.next(due=time.monotonic())
            await asyncio.sleep(0.05)
            subscription._watch._awake.set()
            for _ in range(ticks):
                await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        assert subscription._watch._task.done()

    asyncio.run(run())


def test_a_subscriber_that_is_cancelled_as_it_is_woken_is_cancelled() -> None:
    connection = Connection(FakeHook({"a": ["InProgress"]}))

    async def run() -> None:
        with subscribe(connection, "a", 60) as subscription:
            await subscription.next(due=time.monotonic())
            again = asyncio.create_task(subscription.next(due=time.monotonic() + 60, until_deadline=60))
            await asyncio.sleep(0.05)
            subscription._watch._waiting[subscription._watcher].set_result(None)
            again.cancel()
            with pytest.raises(asyncio.CancelledError):
                await again

    asyncio.run(run())
