"""Finding the tuning jobs that ended: each one once, none left out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_amt.exceptions import AmtAwsError
from airflow_amt.watch import ended
from airflow_amt.watch.ended import EndedJobsReader, JobFilter
from tests.unit.tasks import ARN, THROTTLED, loud_log

ALL = frozenset({"Completed", "Failed", "Stopped"})
START = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    """Stands for ``datetime`` in the module: only ``now`` is other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_is = START
        clock = self

        class Fake(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
                return clock.now_is

        monkeypatch.setattr(ended, "datetime", Fake)

    def pass_minutes(self, minutes: float) -> None:
        self.now_is += timedelta(minutes=minutes)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Account:
    """Tuning jobs of one account, listed as AWS lists them."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.tags_of: dict[str, dict[str, str] | None] = {}
        self.asked: list[Mapping[str, Any]] = []
        self.tags_asked: list[str] = []
        self.failure: AmtAwsError | None = None

    def end(self, name: str, at: datetime, status: str = "Completed", **fields: Any) -> None:
        self.jobs[name] = {
            "HyperParameterTuningJobName": name,
            "HyperParameterTuningJobArn": ARN + name,
            "HyperParameterTuningJobStatus": status,
            "CreationTime": START - timedelta(hours=1),
            "LastModifiedTime": at,
            "HyperParameterTuningEndTime": at,
            **fields,
        }

    def list(self, **filters: Any) -> Iterator[dict[str, Any]]:
        self.asked.append(filters)
        for job in self.jobs.values():
            if job["LastModifiedTime"] > filters["LastModifiedTimeAfter"]:
                yield job
        if self.failure is not None:
            raise self.failure

    def tags(self, arn: str) -> dict[str, str] | None:
        self.tags_asked.append(arn)
        return self.tags_of.get(arn.removeprefix(ARN), {})

    def reader(self, wanted: JobFilter | None = None, **options: Any) -> EndedJobsReader:
        return EndedJobsReader(
            self.list,
            self.tags,
            wanted or JobFilter(statuses=ALL),
            **{"log": loud_log(), "since": START, **options},
        )


def names(reader: EndedJobsReader) -> list[str]:
    return [job.name for job in reader.read()]


def test_each_job_is_found_once_in_the_order_of_their_ends(clock: Clock) -> None:
    account = Account()
    reader = account.reader()
    account.end("late", START + timedelta(minutes=2))
    account.end("early", START + timedelta(minutes=1))
    account.end("before", START - timedelta(seconds=1))
    account.end("running", START + timedelta(minutes=1), "InProgress")
    clock.pass_minutes(3)
    assert names(reader) == ["early", "late"]
    for _ in range(3):
        clock.pass_minutes(10)
        assert names(reader) == []
    clock.pass_minutes(10)
    account.end("last", clock.now_is)
    assert names(reader) == ["last"]
    # The list is asked for what changed lately, and does not grow with the account's history.
    assert account.asked[-1]["LastModifiedTimeAfter"] == clock.now_is - timedelta(minutes=10) - ended.OVERLAP
    assert json.loads(json.dumps(reader.state))["found"] == {"last": clock.now_is.isoformat()}


def test_what_is_listed_late_or_timed_by_another_clock_is_found(clock: Clock) -> None:
    account = Account()
    reader = account.reader(since=START - timedelta(hours=1))
    clock.pass_minutes(5)
    assert names(reader) == []
    account.end("slow", START - timedelta(minutes=8))
    account.end("fast", START + timedelta(days=2))
    assert names(reader) == ["slow", "fast"]
    for _ in range(3):
        clock.pass_minutes(60)
        assert names(reader) == []


def test_a_read_that_fails_is_as_if_it_had_not_been_made(clock: Clock) -> None:
    account = Account()
    reader = account.reader()
    clock.pass_minutes(30)
    account.end("one", START + timedelta(minutes=1))
    account.failure = THROTTLED
    before = reader.state
    with pytest.raises(AmtAwsError):
        reader.read()
    assert reader.state == before
    account.failure = None
    assert names(reader) == ["one"]


def test_another_reader_goes_on_from_the_state(clock: Clock) -> None:
    account = Account()
    first = account.reader()
    clock.pass_minutes(1)
    account.end("seen", START + timedelta(seconds=30))
    assert names(first) == ["seen"]
    clock.pass_minutes(60 * 24 * 3)
    account.end("meanwhile", START + timedelta(days=1))
    second = account.reader(since=clock.now_is, state=json.loads(json.dumps(first.state)))
    assert names(second) == ["meanwhile"]
    # Without the state it is missed: the test above can fail.
    assert names(account.reader(since=clock.now_is)) == []


def test_a_state_of_long_ago_does_not_bring_all_of_its_jobs(clock: Clock) -> None:
    account = Account()
    state = account.reader().state
    clock.pass_minutes(60 * 24 * 30)
    account.end("last-month", START + timedelta(days=1))
    account.end("this-week", START + timedelta(days=25))
    assert names(account.reader(state=state)) == ["this-week"]


def test_a_name_that_is_used_again_is_another_job(clock: Clock) -> None:
    account = Account()
    reader = account.reader()
    account.end("nightly", START + timedelta(minutes=1))
    clock.pass_minutes(2)
    assert names(reader) == ["nightly"]
    account.end("nightly", START + timedelta(minutes=5))
    clock.pass_minutes(4)
    assert names(reader) == ["nightly"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"name_prefix": "churn"}, ["churn-a", "churn-b"]),
        ({"name_contains": "URN-B"}, ["churn-b"]),
        ({"name_prefix": "churn-", "name_contains": "b"}, ["churn-b"]),
        ({"name_prefix": "Churn"}, []),
        ({"statuses": frozenset({"Failed"})}, ["churn-b"]),
        ({"created_after": START}, ["new"]),
        ({"tags": {"team": "ml"}}, ["churn-a"]),
    ],
)
def test_filters(clock: Clock, wanted: dict[str, Any], found: list[str]) -> None:
    account = Account()
    account.end("churn-a", START + timedelta(seconds=1))
    account.end("churn-b", START + timedelta(seconds=2), "Failed")
    account.end("new", START + timedelta(seconds=3), CreationTime=START)
    account.tags_of = {"churn-a": {"team": "ml", "cost": "1"}, "churn-b": {"team": "ads"}}
    clock.pass_minutes(1)
    reader = account.reader(JobFilter(**{"statuses": ALL, **wanted}))
    assert names(reader) == found
    assert names(reader) == []
    if "tags" in wanted:
        assert len(account.tags_asked) == 3  # once a job, not once a read
    (asked, _) = account.asked
    assert asked["SortBy"] == "CreationTime"
    longest = max(wanted.get("name_prefix", ""), wanted.get("name_contains", ""), key=len)
    assert asked.get("NameContains", "") == longest
    assert asked.get("StatusEquals") == ("Failed" if "statuses" in wanted else None)


def test_jobs_whose_tags_may_not_be_read_are_held_back_until_they_may(clock: Clock) -> None:
    account = Account()
    log = loud_log()
    reader = account.reader(JobFilter(statuses=ALL, tags={"team": "ml"}), log=log)
    account.end("churn", START + timedelta(minutes=1))
    account.tags_of["churn"] = None
    for _ in range(5):
        clock.pass_minutes(60)
        assert names(reader) == []
    assert "sagemaker:ListTags" in log.lines[0]
    account.tags_of["churn"] = {"team": "ml"}
    assert names(reader) == ["churn"]
