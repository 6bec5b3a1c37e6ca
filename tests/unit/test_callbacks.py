"""The callbacks of DeadlineAlert: which tuning jobs they stop, and what becomes of errors on the way."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_amt import _compat, callbacks
from airflow_amt.callbacks import stop_tuning_jobs, stop_tuning_jobs_sync, tuning_deadline
from airflow_amt.exceptions import AmtAwsError, AmtDeadlineError, AmtFieldError, AmtRequestError
from airflow_amt.hooks.errors import aws_error
from airflow_amt.tuning.naming import Owner, derive_job_name
from airflow_amt.tuning.reaping import KEEP_TAG
from airflow_amt.tuning.stops import Stop
from tests.unit.tasks import ARN, DENIED, THROTTLED, FakeHook, not_found

RUN_ID = "manual__2026-01-01T00:00:00+00:00"
DUE = datetime(2026, 1, 1, 6, tzinfo=UTC)
CONTEXT = {
    "dag_run": {
        "dag_id": "churn",
        "dag_run_id": RUN_ID,
        "queued_at": "2026-01-01T00:00:01Z",
        "start_date": None,
        "run_after": "2026-01-01T00:00:00Z",
    },
    "deadline": {"id": "an-id", "deadline_time": DUE},
}
HAS_DEADLINES = _compat.deadline_classes() is not None


def owner(task_id: str, run_id: str = RUN_ID, **changes: Any) -> Owner:
    return Owner(dag_id="churn", run_id=run_id, task_id=task_id, **changes)


class Account(FakeHook):
    """Tuning jobs of several DAG runs; each call can fail, once for each error that is given."""

    def __init__(self) -> None:
        super().__init__()
        self.fails: dict[tuple[str, str], list[AmtAwsError]] = {}
        self.on_stop: Any = None

    def add(self, one: Owner, status: str = "InProgress", name: str | None = None, **tags: str) -> str:
        name = name or derive_job_name(one)
        self.script[name] = [status]
        self.tags_of[name] = {**one.tags(), **tags}
        return name

    def _fail(self, call: str, about: str) -> None:
        errors = self.fails.get((call, about))
        if errors:
            raise errors.pop(0)

    def list_tuning_jobs(self, **filters: Any) -> Iterator[dict[str, Any]]:
        self._fail("list", filters["StatusEquals"])
        yield from super().list_tuning_jobs(**filters)

    def tags(self, arn: str) -> dict[str, str] | None:
        self.calls.append(("tags", arn.removeprefix(ARN)))
        self._fail("tags", arn.removeprefix(ARN))
        return super().tags(arn)

    def stop_tuning_job(self, name: str, **about: Any) -> bool:
        self._fail("stop", name)
        if self.on_stop is not None:
            self.on_stop(name)
        return super().stop_tuning_job(name, **about)

    @property
    def stopped(self) -> list[str]:
        return [about[0] for about in self.named("stop")]


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Account:
    account = Account()
    monkeypatch.setattr(callbacks, "_hook", lambda arguments: account)
    return account


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that the synchronous callback makes, without making them."""
    made: list[float] = []
    enforce = callbacks._enforce
    monkeypatch.setattr(
        callbacks, "_enforce", lambda *given, **options: enforce(*given, **{"sleep": made.append, **options})
    )
    return made


def call(way: str, **options: Any) -> str:
    """Call it as Airflow does: with what went through the database as JSON, and the context."""
    kwargs = json.loads(json.dumps(options))
    if way == "async":
        return asyncio.run(stop_tuning_jobs(**kwargs, context=CONTEXT))
    return stop_tuning_jobs_sync(**kwargs, context=CONTEXT)


WAYS = pytest.mark.parametrize("way", ["async", "sync"])


@WAYS
def test_the_runs_jobs_alone_are_stopped_with_a_record(account: Account, way: str) -> None:
    mine = [
        account.add(owner("tune")),
        account.add(owner("tune", map_index=2)),
        account.add(owner("b"), name="own"),
    ]
    kept = account.add(owner("kept"), **{KEEP_TAG: "x"})
    account.add(owner("tune", run_id="manual__2026-01-02T00:00:00+00:00"))
    account.add(Owner(dag_id="other", run_id=RUN_ID, task_id="tune"))
    account.add(owner("tune", deployment="test"), name="of-test")
    account.add(owner("over"), "Completed")
    account.script["nobodys"] = ["InProgress"]
    said = call(way, name="nightly", detail="too late")
    assert sorted(account.stopped) == sorted(mine)
    assert account.stops[0] == Stop(
        stopped_by="policy",
        detail="too late",
        requested_by=f"deadline of churn {RUN_ID}",
        policy=account.stops[0].policy,
    )
    assert {json.dumps(stop.policy and stop.policy.to_dict()) for stop in account.stops} == {
        json.dumps(
            {
                "policy": "deadline_alert",
                "rule": "nightly",
                "action": "stop",
                "share": None,
                "evidence": {"due": DUE.isoformat(), "deadline_id": "an-id"},
            }
        )
    }
    assert said == (
        f"DAG run {RUN_ID} of churn missed its deadline nightly (2026-01-01T06:00:00+00:00); tuning jobs "
        f"stopped: {', '.join(sorted(mine))}; kept by their tag: {kept}; left alone: of-test."
    )
    filters = account.named("list")[0]
    assert filters["CreationTimeAfter"] < datetime(2026, 1, 1, tzinfo=UTC)


@WAYS
def test_a_warning_stops_nothing(account: Account, way: str, caplog: pytest.LogCaptureFixture) -> None:
    name = account.add(owner("tune"))
    assert call(way, action="warn").endswith(f"tuning jobs running on, with a warning: {name}.")
    assert account.stopped == []
    assert [filters["StatusEquals"] for filters in account.named("list")] == ["InProgress"]
    assert f"the DAG run was due at {DUE.isoformat()}: Tuning job {name}: InProgress" in caplog.text


def test_only_the_tasks_that_are_meant(account: Account) -> None:
    mine = account.add(owner("group.tune"))
    other = account.add(owner("tune"))
    said = call("sync", task_ids=["group.tune"], action="stop_and_fail")
    assert account.stopped == [mine]
    policy = account.stops[0].policy
    assert policy is not None
    assert policy.action == "stop_and_fail"
    assert f"left alone: {other}" in said


def test_a_deployment_with_an_id_stops_its_own_jobs(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__AMT__DEPLOYMENT", "prod")
    mine = account.add(owner("tune", deployment="prod"))
    account.add(owner("tune"), name="without")
    call("sync")
    assert account.stopped == [mine]


def test_without_tuning_jobs_there_is_nothing_to_do(account: Account) -> None:
    assert call("sync").endswith("tuning jobs in progress: none.")


@WAYS
def test_what_is_refused_keeps_no_other_from_being_stopped(account: Account, way: str) -> None:
    names = sorted(account.add(owner(f"tune{number}")) for number in range(4))
    denied = aws_error("StopHyperParameterTuningJob", "AccessDeniedException", "not you", 400)
    account.fails = {("stop", names[0]): [denied], ("tags", names[1]): [DENIED]}
    account.tags_of[names[2]] = None
    with pytest.raises(AmtDeadlineError) as caught:
        call(way)
    assert account.stopped == [names[3]]
    assert [names[number] in error for number, error in enumerate(caught.value.errors)] == [True, True, True]
    assert "sagemaker:ListTags" in caught.value.errors[2]
    assert f"stopped: {names[3]}" in str(caught.value)


def test_a_job_that_is_throttled_waits_until_the_others_had_their_turn(
    account: Account, pauses: list[float]
) -> None:
    first, second = sorted(account.add(owner(f"tune{number}")) for number in range(2))
    account.fails["stop", first] = [THROTTLED] * 4
    said = call("sync")
    assert account.stopped == [second, first]
    assert f"stopped: {second}, {first}" in said
    # Three attempts, then all others, then a longer pause and the second round.
    assert pauses == [1.0, 2.0, 5.0, 1.0]


def test_who_is_throttled_for_ever_is_told(account: Account, pauses: list[float]) -> None:
    first, second = sorted(account.add(owner(f"tune{number}")) for number in range(2))
    account.fails["stop", first] = [THROTTLED] * 1000
    with pytest.raises(AmtDeadlineError, match=rf"stopped: {second}\. 1 errors:\n  1\. Tuning job {first}"):
        call("sync")
    assert sum(pauses) > 3600


def test_lists_are_tried_again_and_one_that_is_refused_does_not_hide_the_rest(
    account: Account, pauses: list[float]
) -> None:
    name = account.add(owner("tune"))
    account.fails = {("list", "InProgress"): [THROTTLED] * 3, ("list", "Stopping"): [DENIED]}
    with pytest.raises(AmtDeadlineError, match="that are Stopping cannot be listed"):
        call("sync")
    assert account.stopped == [name]
    assert pauses == [5.0, 10.0, 20.0]


def test_a_job_that_ends_or_goes_meanwhile_is_no_error(account: Account) -> None:
    ended, gone = account.add(owner("ended")), account.add(owner("gone"))
    account.fails["tags", gone] = [not_found(gone)]
    account.script[ended] = ["InProgress", "Completed"]
    # The list looks, then the stop: over by then.
    account.on_stop = lambda name: account.script.update({name: ["Completed"]})
    assert call("sync").endswith(f"ended before they could be stopped: {ended}.")
    assert account.stops == []


def test_a_stop_of_an_earlier_process_gets_its_record(account: Account) -> None:
    intent = Stop(stopped_by="policy", requested_by=f"deadline of churn {RUN_ID}").intent()
    other = Stop(stopped_by="operator", requested_by="churn x stop").intent()
    unsettled = account.add(owner("a"), "Stopped", **intent)
    stopping = account.add(owner("b"), "Stopping", **intent)
    account.add(owner("c"), "Stopped", **intent, **{"airflow-amt:stopped-by": "policy"})
    account.add(owner("d"), "Stopped", **other)
    account.add(owner("e", run_id="manual__2026-01-02T00:00:00+00:00"), "Stopped", **intent)
    call("sync")
    # The hook decides what to record; it is asked about these two.
    assert sorted(account.stopped) == sorted([unsettled, stopping])
    lately = [filters for filters in account.named("list") if filters["StatusEquals"] != "InProgress"]
    assert all(filters["LastModifiedTimeAfter"] < DUE for filters in lately)
    assert len(lately) == 2


def test_a_job_is_stopped_once_though_it_is_listed_twice(account: Account) -> None:
    account.stop_takes_effect = "Stopping"
    name = account.add(owner("tune"))
    call("sync")
    assert account.stopped == [name]
    assert account.named("tags") == [name]


def test_a_cancelled_callback_ends_between_two_jobs(account: Account) -> None:
    for number in range(3):
        account.add(owner(f"tune{number}"))
    stopping, go_on = threading.Event(), threading.Event()

    def wait(name: str) -> None:
        stopping.set()
        assert go_on.wait(30)

    account.on_stop = wait
    threads: list[threading.Thread] = []

    async def cancel() -> None:
        task = asyncio.create_task(stop_tuning_jobs(context=CONTEXT))
        await asyncio.to_thread(stopping.wait, 30)
        threads.extend(one for one in threading.enumerate() if one.name.startswith("airflow-amt-callback"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()

    asyncio.run(cancel())
    assert threads
    # The thread takes the next call when it is done with this one.
    asyncio.run(_compat.in_thread(lambda: None, lasting=True))
    _compat._threads("airflow-amt-callback").shutdown(wait=True)
    _compat._threads.cache_clear()
    assert len(account.stopped) == 1


@WAYS
def test_bad_arguments_and_contexts_are_refused_before_any_call(account: Account, way: str) -> None:
    with pytest.raises(AmtRequestError, match="action"):
        call(way, action="halt")
    with pytest.raises(AmtRequestError, match=r"context\.dag_run"):
        stop_tuning_jobs_sync()
    with pytest.raises(AmtRequestError, match=r"context\.dag_run"):
        asyncio.run(stop_tuning_jobs())
    assert account.calls == []


def test_a_connection_that_is_not_there_is_an_error_not_another_account() -> None:
    with pytest.raises(AmtFieldError, match=r"'nowhere' is not accepted: it cannot be found"):
        call("sync", aws_conn_id="nowhere")


def test_a_connection_that_airflow_refuses_to_an_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_amt.hooks.tuning import AmtHook

    def refuse(self: Any, conn_id: str) -> Any:
        raise PermissionError(f"Access denied for connection {conn_id!r} by Execution API")

    monkeypatch.setattr(AmtHook, "get_connection", refuse)
    with pytest.raises(AmtFieldError, match=r'in an executor no connection.*run_in="triggerer"'):
        call("sync")


# -- the alert ------------------------------------------------------------------------------------------


@pytest.mark.skipif(not HAS_DEADLINES, reason="Airflow 3.1 has no DeadlineAlert to rely on")
class TestAlert:
    def _reference(self) -> Any:
        from airflow.sdk.definitions.deadline import DeadlineReference

        return DeadlineReference.DAGRUN_QUEUED_AT

    def test_it_calls_back_in_the_triggerer(self) -> None:
        alert = tuning_deadline(
            self._reference(), timedelta(hours=6), task_ids=("tune",), name="nightly", aws_conn_id=None
        )
        assert type(alert.callback).__name__ == "AsyncCallback"
        assert alert.callback.path == "airflow_amt.callbacks.stop_tuning_jobs"
        assert alert.callback.kwargs == {
            "action": "stop",
            "task_ids": ["tune"],
            "name": "nightly",
            "aws_conn_id": None,
            "region_name": None,
            "verify": None,
            "botocore_config": None,
        }
        assert getattr(alert, "name", "nightly") == "nightly"
        assert alert.interval == timedelta(hours=6)

    def test_or_in_an_executor(self) -> None:
        alert = tuning_deadline(
            self._reference(), timedelta(hours=6), run_in="executor", executor="LocalExecutor"
        )
        assert type(alert.callback).__name__ == "SyncCallback"
        assert alert.callback.path == "airflow_amt.callbacks.stop_tuning_jobs_sync"
        assert getattr(alert.callback, "executor", None) == "LocalExecutor"

    def test_a_dag_with_it_is_serialised(self) -> None:
        from airflow.sdk import DAG
        from airflow.serialization.serialized_objects import DagSerialization

        alert = tuning_deadline(
            self._reference(), timedelta(hours=6), botocore_config={"retries": {"max_attempts": 2}}
        )
        dag = DAG(dag_id="late", schedule=None, deadline=alert)
        assert "airflow_amt.callbacks.stop_tuning_jobs" in json.dumps(DagSerialization.to_dict(dag))

    def test_all_bad_arguments_are_named(self) -> None:
        with pytest.raises(AmtRequestError) as caught:
            tuning_deadline("queued", 3600, action="halt", run_in="worker")  # type: ignore[arg-type]
        assert [problem.field for problem in caught.value.problems] == [
            "action",
            "reference",
            "interval",
            "run_in",
        ]
        with pytest.raises(AmtRequestError, match="executor"):
            tuning_deadline(self._reference(), timedelta(hours=6), executor="LocalExecutor")


def test_airflow_3_1_is_told_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compat, "deadline_classes", lambda: None)
    with pytest.raises(AmtFieldError, match=r"exists from Airflow 3\.2"):
        tuning_deadline(None, timedelta(hours=6))
