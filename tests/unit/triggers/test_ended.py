"""The event trigger: it never ends, never dies of AWS, and knows after a restart where it was."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import Asset, AssetWatcher

from airflow_amt import _compat
from airflow_amt.exceptions import AmtRequestError
from airflow_amt.hooks.metering import meter_of
from airflow_amt.triggers import ended
from airflow_amt.triggers.ended import AmtTuningJobEndedTrigger
from tests.unit.tasks import ARN, DENIED, THROTTLED, FakeHook, loud_log, use_hook


class Account:
    """A hook over tuning jobs in memory; ``failures`` are raised first."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.jobs: list[dict[str, Any]] = []
        self.lists = 0
        self.aws_conn_id = "aws_default"
        self.conn = FakeHook().conn

    def build(self, operation: str) -> None:
        assert operation == "ListHyperParameterTuningJobs"

    def end(self, name: str, ago: float = 0.0) -> None:
        at = datetime.now(UTC) - timedelta(seconds=ago)
        self.jobs.append(
            {
                "HyperParameterTuningJobName": name,
                "HyperParameterTuningJobArn": ARN + name,
                "HyperParameterTuningJobStatus": "Completed",
                "CreationTime": datetime(2026, 1, 1, tzinfo=UTC),
                "HyperParameterTuningEndTime": at,
                "LastModifiedTime": at,
            }
        )

    def list_tuning_jobs(self, **filters: Any) -> Iterator[dict[str, Any]]:
        self.lists += 1
        if self.failures:
            raise self.failures.pop(0)
        return iter([job for job in self.jobs if job["LastModifiedTime"] > filters["LastModifiedTimeAfter"]])


class Store:
    """The state store of one asset (Airflow 3.3)."""

    def __init__(self, failures: int = 0) -> None:
        self.kept: dict[str, Any] = {}
        self.failures = failures

    async def aget(self, key: str) -> Any:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("the supervisor does not answer")
        return self.kept.get(key)

    async def aset(self, key: str, value: Any) -> None:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("the supervisor does not answer")
        self.kept[key] = json.loads(json.dumps(value))


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ended, "LONGEST_BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(ended, "_STATE_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(ended, "_SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(ended, "_APART_SECONDS", 0.0)


def watch(
    account: Account,
    *,
    until: Callable[[list[dict[str, Any]]], bool],
    stores: list[Store] | None = None,
    monkeypatch: pytest.MonkeyPatch,
    **options: Any,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Run a trigger until its events are what is waited for, then cancel it as a triggerer does."""
    monkeypatch.setattr(_compat, "asset_state_stores", lambda trigger: stores or [])
    trigger = AmtTuningJobEndedTrigger(**options)
    trigger.check_interval = 0.01
    use_hook(trigger, account)
    log = loud_log()
    monkeypatch.setattr(AmtTuningJobEndedTrigger, "log", log, raising=False)
    events: list[dict[str, Any]] = []

    async def collect() -> None:
        async for event in trigger.run():
            events.append(event.payload)

    async def run() -> None:
        task = asyncio.create_task(collect())
        async with asyncio.timeout(60):
            while not until(events):
                assert not task.done(), task.exception()
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(run())
    return events, log.lines


def test_it_leaves_no_connection_behind() -> None:
    closed: list[bool] = []
    trigger = AmtTuningJobEndedTrigger()
    asyncio.run(trigger.cleanup())  # no hook was built
    use_hook(trigger, SimpleNamespace(close=lambda: closed.append(True)))
    asyncio.run(trigger.cleanup())
    assert closed == [True]


def test_an_event_says_what_a_dag_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    account = Account()
    account.end("churn", ago=60)
    account.end("long-ago", ago=3600)
    events, _ = watch(account, until=lambda seen: account.lists >= 5, monkeypatch=monkeypatch)
    assert events == [
        {
            "version": 1,
            "tuning_job_name": "churn",
            "tuning_job_arn": ARN + "churn",
            "status": "Completed",
            "created_at": "2026-01-01T00:00:00+00:00",
            "ended_at": account.jobs[0]["HyperParameterTuningEndTime"].isoformat(),
        }
    ]


@pytest.mark.parametrize(
    "failures", [[THROTTLED] * 30, [DENIED, DENIED], [RuntimeError("no such connection")]]
)
def test_no_error_ends_it(failures: list[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    account = Account(*failures)
    account.end("churn")
    events, lines = watch(account, until=bool, monkeypatch=monkeypatch)
    assert [event["tuning_job_name"] for event in events] == ["churn"]
    assert len([line for line in lines if "failed" in line]) == len(failures)


def test_a_restart_goes_on_where_the_state_store_says(monkeypatch: pytest.MonkeyPatch) -> None:
    account, stores = Account(), [Store(), Store()]
    account.end("first")
    options: dict[str, Any] = {"lookback": 60, "name_prefix": None, "monkeypatch": monkeypatch}
    events, _ = watch(
        account,
        stores=stores,
        until=lambda seen: all("first" in str(store.kept) for store in stores),
        **options,
    )
    assert [event["tuning_job_name"] for event in events] == ["first"]
    (state,) = stores[0].kept.values()
    # Three hours without a triggerer.
    for store in stores:
        (key,) = store.kept
        for field in ("since", "floor"):
            early = datetime.fromisoformat(state[field]) - timedelta(hours=3)
            store.kept[key] = {**store.kept[key], field: early.isoformat()}
    account.end("meanwhile", ago=7200)
    restarted = account.lists
    events, _ = watch(account, stores=stores, until=lambda seen: account.lists >= restarted + 5, **options)
    assert [event["tuning_job_name"] for event in events] == ["meanwhile"]
    # Another watcher of the same assets does not take it for its own state.
    other = {**options, "name_prefix": "mean"}
    restarted = account.lists
    events, _ = watch(account, stores=stores, until=lambda seen: account.lists >= restarted + 5, **other)
    assert events == []


def test_where_it_began_is_kept_though_nothing_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    account, store = Account(), Store()
    watch(account, stores=[store], until=lambda seen: account.lists >= 2, monkeypatch=monkeypatch)
    (state,) = store.kept.values()
    assert state["found"] == {}


def test_what_is_not_surely_stored_yet_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ended, "_SETTLE_SECONDS", 3600.0)
    account, store = Account(), Store()
    account.end("churn")
    for _ in range(2):
        events, _ = watch(account, stores=[store], until=bool, monkeypatch=monkeypatch)
        assert [event["tuning_job_name"] for event in events] == ["churn"]


def test_a_state_store_that_fails_is_told_and_does_not_stop_it(monkeypatch: pytest.MonkeyPatch) -> None:
    account = Account()
    account.end("churn")
    events, lines = watch(account, stores=[Store(failures=5)], until=bool, monkeypatch=monkeypatch)
    assert [event["tuning_job_name"] for event in events] == ["churn"]
    assert any("cannot be read: it begins with" in line for line in lines)
    assert any("cannot be written" in line for line in lines)


def test_it_watches_an_asset_and_looks_the_same_at_every_parse() -> None:
    def made() -> AmtTuningJobEndedTrigger:
        return AmtTuningJobEndedTrigger(
            statuses={"Failed", "Completed"},
            tags={"b": "1", "a": "2"},
            created_after=datetime(2026, 1, 1, tzinfo=UTC),
            lookback=timedelta(minutes=5),
        )

    asset = Asset("tuned", watchers=[AssetWatcher(name="ended", trigger=made())])
    assert asset.watchers[0].trigger.serialize() == made().serialize()
    assert made().state_key == made().state_key
    assert made().state_key != AmtTuningJobEndedTrigger().state_key


def test_arguments_of_a_newer_release_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    account = Account()
    _, lines = watch(
        account, until=lambda seen: account.lists > 0, monkeypatch=monkeypatch, version=3, regions=["eu"]
    )
    assert "regions" in lines[0]


@pytest.mark.parametrize(
    ("tags", "config"),
    [
        # As version 1 was stored, also by Airflow 3.2.2.
        ({"team": "ml"}, {"retries": {"max": 3}, "proxies": [1, 2]}),
        (
            {"Encoding.VAR": {"team": "ml"}, "Encoding.TYPE": "dict"},
            {
                "Encoding.VAR": {
                    "retries": {"Encoding.VAR": {"max": 3}, "Encoding.TYPE": "dict"},
                    "proxies": {"Encoding.VAR": [1, 2], "Encoding.TYPE": "tuple"},
                },
                "Encoding.TYPE": "dict",
            },
        ),
        ({"__var": {"team": "ml"}, "__type": "dict"}, '{"proxies": [1, 2], "retries": {"max": 3}}'),
        ([["team", "ml"]], {"retries": {"max": 3}, "proxies": (1, 2)}),
        ([("team", "ml")], {"proxies": [1, 2], "retries": {"max": 3}}),
    ],
)
def test_every_form_of_stored_arguments_is_understood(tags: Any, config: Any) -> None:
    trigger = AmtTuningJobEndedTrigger(tags=tags, botocore_config=config, version=1)
    assert trigger.tags == {"team": "ml"}
    assert trigger.botocore_config == {"retries": {"max": 3}, "proxies": [1, 2]}
    _, kwargs = trigger.serialize()
    assert kwargs["tags"] == [["team", "ml"]]
    assert kwargs["botocore_config"] == '{"proxies": [1, 2], "retries": {"max": 3}}'


def test_no_tags_are_none_in_every_stored_form() -> None:
    forms: tuple[Any, ...] = ({}, None, [], {"Encoding.VAR": {}, "Encoding.TYPE": "dict"})
    for tags in forms:
        trigger = AmtTuningJobEndedTrigger(tags=tags, version=1)
        assert (trigger.tags, trigger.serialize()[1]["tags"]) == ({}, None)


WEIRD: tuple[Any, ...] = (
    None,
    True,
    7,
    -1e300,
    float("nan"),
    "",
    "no_name" * 20,
    "0001-01-01T00:00:00+14:00",
    [],
    [None],
    [["a"]],
    [{}],
    {},
    {"a": {}},
    {"Encoding.VAR": [7], "Encoding.TYPE": "dict"},
    {"__type": [], "__var": None},
)


@pytest.mark.parametrize("field", sorted(AmtTuningJobEndedTrigger().serialize()[1]))
def test_no_stored_argument_makes_the_constructor_raise(field: str) -> None:
    """Airflow 3.2.2's triggerer ends, with all its triggers, when one cannot be made."""
    for value in WEIRD:
        stored: dict[str, Any] = {"version": 1, field: value}
        trigger = AmtTuningJobEndedTrigger(**stored)
        json.dumps(trigger.serialize())
        assert trigger.state_key.startswith("airflow-amt-ended-")


def test_stored_arguments_that_cannot_be_used_are_told_again_and_again_and_end_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ended, "_REMIND_SECONDS", 0.01)
    account = Account()
    account.end("churn")
    log = loud_log()
    monkeypatch.setattr(AmtTuningJobEndedTrigger, "log", log, raising=False)
    stored: dict[str, Any] = {"version": 1, "tags": {"team": 7}, "statuses": ["Gone"]}
    trigger = AmtTuningJobEndedTrigger(**stored)
    use_hook(trigger, account)

    async def collect() -> None:
        async for _ in trigger.run():
            pass

    async def run() -> None:
        task = asyncio.create_task(collect())
        async with asyncio.timeout(60):
            while len(log.lines) < 3:
                assert not task.done()
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(run())
    assert account.lists == 0
    assert all(part in line for line in log.lines for part in ("watches nothing", "tags: ", "statuses: "))


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"name_prefix": "no_underscore"}, ["name_prefix"]),
        ({"name_contains": "", "statuses": []}, ["name_contains", "statuses"]),
        ({"statuses": ["InProgress"]}, ["statuses"]),
        ({"statuses": "Completed"}, ["statuses"]),
        ({"tags": {"team": 7}}, ["tags"]),
        ({"tags": "team"}, ["tags"]),
        ({"botocore_config": {"signature_version": object()}}, ["botocore_config"]),
        ({"botocore_config": "[]"}, ["botocore_config"]),
        ({"created_after": datetime(2026, 1, 1)}, ["created_after"]),  # noqa: DTZ001 - naive on purpose
        ({"created_after": "yesterday"}, ["created_after"]),
        ({"check_interval": 0.5, "lookback": -1}, ["check_interval", "lookback"]),
    ],
)
def test_bad_arguments_are_all_named_while_the_dag_is_parsed(
    options: dict[str, Any], fields: list[str]
) -> None:
    with pytest.raises(AmtRequestError) as caught:
        AmtTuningJobEndedTrigger(**options)
    assert [problem.field for problem in caught.value.problems] == fields


def test_events_of_one_look_do_not_come_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow may lose the run of an event that comes while it makes the run of another one."""
    monkeypatch.setattr(ended, "_APART_SECONDS", 0.3)
    account = Account()
    account.end("one", ago=60)
    account.end("two", ago=50)
    began = time.monotonic()
    watch(account, until=lambda seen: len(seen) == 2, monkeypatch=monkeypatch)
    assert time.monotonic() - began >= 0.3


def test_its_calls_count_with_those_of_the_watch_of_its_connection() -> None:
    account = Account()
    made = AmtTuningJobEndedTrigger()
    use_hook(made, account)
    meter = meter_of(account, 5.0, 10.0)  # type: ignore[arg-type]
    assert list(made._list_jobs(LastModifiedTimeAfter=datetime(2026, 1, 1, tzinfo=UTC))) == []
    assert made._meter is meter
