"""Where SLAs are kept, how they are read again, and the hook that holds tuning jobs to them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_amt import _compat
from airflow_amt.exceptions import AmtAwsError, AmtRequestError
from airflow_amt.hooks import patience, sla
from airflow_amt.hooks.guard import Look
from airflow_amt.hooks.sla import AmtSlaHook, SlaReader, SlaSource, run_times
from airflow_amt.tuning.naming import POLICY_TOLD_TAG
from airflow_amt.tuning.policies import (
    Action,
    Deadline,
    MaxFailedTrainingJobs,
    Rule,
    RunTimes,
    Stalled,
    parse_sla,
)
from tests.unit.hooks.test_guard import NAME, failures, in_progress, job
from tests.unit.tasks import CREATED_AT, THROTTLED, FakeHook, loud_log

STRICT = parse_sla(failures(1))
LOOSE = parse_sla(failures(9))


# --- where it is kept --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "source"),
    [
        (STRICT, SlaSource(sla=STRICT)),
        (MaxFailedTrainingJobs(count=1), SlaSource(sla=STRICT)),
        ([failures(1)], SlaSource(sla=STRICT)),
        (STRICT.to_dict(), SlaSource(sla=STRICT)),
        (json.dumps(STRICT.to_dict()), SlaSource(sla=STRICT)),
        (SlaSource(sla=STRICT), SlaSource(sla=STRICT)),
        (" variable: nightly ", SlaSource(variable="nightly")),
        ("connection:aws_ml", SlaSource(connection="aws_ml")),
        ({"variable": "nightly"}, SlaSource(variable="nightly")),
        ({"connection": "aws_ml"}, SlaSource(connection="aws_ml")),
    ],
)
def test_sources(given: Any, source: SlaSource) -> None:
    found = SlaSource.parse(given)
    assert found == source
    assert SlaSource.parse(json.loads(json.dumps(found.to_dict()))) == source


@pytest.mark.parametrize("given", ["variable:", "connection: ", {"variable": 7}, "nightly", None, {}, 3])
def test_what_is_no_source_is_refused_with_a_fix(given: Any) -> None:
    with pytest.raises(AmtRequestError) as caught:
        SlaSource.parse(given, path="sla")
    assert all(one.field.startswith("sla") and one.fix for one in caught.value.problems)


def test_a_variable_holds_an_sla(monkeypatch: pytest.MonkeyPatch) -> None:
    source = SlaSource.parse("variable:nightly")
    monkeypatch.setenv("AIRFLOW_VAR_NIGHTLY", json.dumps(STRICT.to_dict()))
    assert source.load() == STRICT
    monkeypatch.setenv("AIRFLOW_VAR_NIGHTLY", "{")
    with pytest.raises(AmtRequestError, match="Variable 'nightly'"):
        source.load()


def test_a_connections_extra_holds_an_sla(monkeypatch: pytest.MonkeyPatch) -> None:
    def keep(extra: dict[str, Any]) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_AWS_ML", json.dumps({"conn_type": "aws", "extra": extra}))

    source = SlaSource.parse("connection:aws_ml")
    keep({"region_name": "eu-west-1", "amt_sla": STRICT.to_dict()})
    assert source.load() == STRICT
    keep({"amt_sla": json.dumps(STRICT.to_dict())})  # as it comes from the form of a connection
    assert source.load() == STRICT
    keep({"region_name": "eu-west-1"})
    with pytest.raises(AmtRequestError, match="connection 'aws_ml', extra 'amt_sla'"):
        source.load()


# --- reading it again --------------------------------------------------------------------------


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(sla, "time", SimpleNamespace(monotonic=lambda: self.now))


class Kept:
    """A Variable that operations change, and that may be out of reach."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
        self.text = text
        self.error: Exception | None = None
        self.reads = 0
        monkeypatch.setattr(_compat, "read_variable", self._read)

    def _read(self, key: str) -> str | None:
        assert key == "nightly"
        self.reads += 1
        if self.error is not None:
            raise self.error
        return self.text


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    return Kept(monkeypatch, json.dumps(LOOSE.to_dict()))


SOURCE = SlaSource(variable="nightly")


def test_it_is_read_again_now_and_then(clock: Clock, kept: Kept) -> None:
    log = loud_log()
    reader = SlaReader(SOURCE, log=log)
    assert (reader.changeable, reader(), reader(), kept.reads) == (True, LOOSE, LOOSE, 1)
    kept.text = json.dumps(STRICT.to_dict())
    assert reader() == LOOSE
    clock.now += 31
    assert (reader(), kept.reads) == (STRICT, 2)
    (line,) = log.lines
    assert line.startswith("info: The SLA has changed (Variable 'nightly'): {")


@pytest.mark.parametrize("broken", ["text", "gone", "unreachable"])
def test_the_last_good_one_counts_on(clock: Clock, kept: Kept, broken: str) -> None:
    log = loud_log()
    reader = SlaReader(SOURCE, log=log)
    reader()
    good = kept.text
    kept.text = {"text": "{typing error", "gone": None}.get(broken, good)
    kept.error = ConnectionError("the API server is away") if broken == "unreachable" else None
    clock.now += 31
    assert reader() == reader() == LOOSE
    assert (kept.reads, len(log.lines)) == (2, 1)  # not with each look
    assert "the last one counts on" in log.lines[0]
    kept.text, kept.error = json.dumps(STRICT.to_dict()), None
    clock.now += 31
    assert reader() == STRICT


def test_the_last_good_one_of_another_process_counts_on(kept: Kept, clock: Clock) -> None:
    kept.text = "{"
    assert SlaReader(SOURCE, log=loud_log(), last=STRICT)() == STRICT


def test_without_any_good_one_it_is_an_error(kept: Kept, clock: Clock) -> None:
    kept.text = None
    with pytest.raises(AmtRequestError, match="Variable 'nightly'"):
        SlaReader(SOURCE, log=loud_log())()
    kept.error = ConnectionError("the API server is away")
    with pytest.raises(AmtRequestError, match="ConnectionError: the API server is away"):
        SlaReader(SOURCE, log=loud_log())()


def test_one_in_the_code_is_never_read() -> None:
    reader = SlaReader(SlaSource(sla=STRICT), log=loud_log(), last=LOOSE)
    assert (reader.changeable, reader()) == (False, STRICT)


# --- the hook ----------------------------------------------------------------------------------


class SlaHook(AmtSlaHook):
    """The hook, its calls to AWS answered in memory."""

    def __init__(self, aws: FakeHook, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.aws = aws
        for name in ("describe_tuning_job", "list_training_jobs", "tags", "add_tags", "stop_tuning_job"):
            setattr(self, name, self._patient(getattr(aws, name)))

    @staticmethod
    def _patient(method: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            found = method(*given, **named)
            # Of a generator, errors come while it is read.
            return list(found) if isinstance(found, Iterator) else found

        return lambda *given, **named: patience.attempt(lambda: call(*given, **named))


def test_enforcing_stops_what_breaks_a_rule_and_returns_the_verdict() -> None:
    hook = SlaHook(job(in_progress(1, 3)), failures(3))
    verdict = hook.enforce(NAME)
    assert (verdict.stops, verdict.code) == (True, "max_failed_training_jobs")
    (stop,) = hook.aws.stops
    assert (stop.stopped_by, stop.requested_by) == ("policy", "AmtSlaHook")
    assert json.loads(json.dumps(verdict.to_dict()))["action"] == "stop"


def test_enforcing_names_who_asks() -> None:
    hook = SlaHook(job(in_progress(1, 3)), failures(3), requested_by="the budget review")
    hook.enforce(NAME)
    assert hook.aws.stops[0].requested_by == "the budget review"


def test_in_a_task_it_is_the_task_that_asks_and_its_dag_runs_times_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = SimpleNamespace(logical_date=None, run_after=CREATED_AT, data_interval_end=None)
    ti = SimpleNamespace(dag_id="watch", run_id="manual__1", task_id="enforce", map_index=3)
    monkeypatch.setattr(_compat, "current_context", lambda: {"ti": ti, "dag_run": run})
    hook = SlaHook(job(), Deadline(after=timedelta(hours=1), reference="queued_at"))
    assert hook.enforce(NAME).stops
    assert hook.aws.stops[0].requested_by == "watch manual__1 enforce[3]"
    given = RunTimes(queued_at=CREATED_AT + timedelta(days=36500))
    other = SlaHook(job(), Deadline(after=timedelta(hours=1), reference="queued_at"), run=given)
    assert not other.enforce(NAME).stops


def test_evaluating_and_reporting_do_nothing() -> None:
    hook = SlaHook(
        job(in_progress(1, 3)), [failures(3, name="failures"), Rule.of(Stalled(timedelta(hours=1)))]
    )
    assert hook.evaluate(NAME).stops
    report = hook.report(NAME)
    assert json.loads(json.dumps(report)) == report
    assert (report["tuning_job_name"], report["status"]) == (NAME, "InProgress")
    assert report["verdict"]["action"] == "stop"
    assert [(one["rule"], one["code"], one["due"]) for one in report["rules"]] == [
        ("failures", "max_failed_training_jobs", ["failures:stop@1"]),
        ("stalled", "stalled", ["stalled:stop@1"]),
    ]
    assert report["rules"][0]["share"] == 1.0
    assert hook.aws.named("stop") == hook.aws.named("add_tags") == []


def test_reporting_on_a_job_that_is_over_still_measures() -> None:
    report = SlaHook(job("Completed"), failures(4)).report(NAME)
    assert (report["status"], report["verdict"]["action"], report["rules"][0]["due"]) == (
        "Completed",
        None,
        [],
    )


def test_news_are_logged_or_handed_to_whoever_tells() -> None:
    hook = SlaHook(job(in_progress(1, 2)), failures(4, warn_at=0.5))
    told: list[Look] = []
    look = hook.look(NAME, on_news=told.append)
    assert told == [look]
    (news,) = look.news
    assert look.reports[news.id]["reason"] == news.reason
    assert hook.aws.tags_of[NAME] == {POLICY_TOLD_TAG: news.id}
    hook.look(NAME, on_news=told.append)
    assert len(told) == 1


def test_what_could_not_be_told_is_told_again() -> None:
    hook = SlaHook(job(in_progress(1, 2)), failures(4, warn_at=0.5))

    def fail(look: Look) -> None:
        raise ValueError("no network")

    with pytest.raises(ValueError, match="no network"):
        hook.look(NAME, on_news=fail)
    assert hook.aws.tags_of[NAME] == {}
    assert len(hook.look(NAME, tells=True).news) == 1


def test_a_question_is_only_told(caplog: pytest.LogCaptureFixture) -> None:
    hook = SlaHook(job(in_progress(1, 2)), failures(4, ask_at=0.5))
    verdict = hook.enforce(NAME)
    assert (verdict.action, hook.aws.stops) == (Action.ASK, [])


@pytest.mark.parametrize("method", ["evaluate", "enforce", "report"])
def test_every_call_is_repeated_when_aws_is_busy(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    waits: list[float] = []
    monkeypatch.setattr(sla, "persistent", lambda log: patience.persistent(log, sleep=waits.append))
    jobs: list[dict[str, Any]] = []
    hook = SlaHook(
        job(THROTTLED, in_progress(2), lists={NAME: [THROTTLED, THROTTLED, jobs]}),
        Stalled(timedelta(hours=1)),
    )
    getattr(hook, method)(NAME)
    assert waits == [1.0, 1.0, 2.0]


def test_a_refusal_is_raised_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(sla, "persistent", lambda log: patience.persistent(log, sleep=waits.append))
    with pytest.raises(AmtAwsError, match="no job"):
        SlaHook(FakeHook(), failures(4)).enforce("nobodys")
    assert waits == []


def test_by_default_the_connections_own_extra_holds_the_sla(monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"region_name": "eu-west-1", "amt_sla": STRICT.to_dict()}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_ML", json.dumps({"conn_type": "aws", "extra": extra}))
    hook = SlaHook(job(in_progress(1, 1)), aws_conn_id="aws_ml")
    assert hook.sla == SlaSource(connection="aws_ml")
    assert hook.enforce(NAME).stops


@pytest.mark.parametrize("connection", [None, ""])
def test_without_a_connection_an_sla_has_to_be_given(connection: str | None) -> None:
    with pytest.raises(AmtRequestError, match="no connection that could hold one"):
        SlaHook(job(), aws_conn_id=connection).enforce(NAME)


def test_the_last_good_sla_counts_on_for_the_next_job(kept: Kept, clock: Clock) -> None:
    kept.text = json.dumps(STRICT.to_dict())
    hook = SlaHook(job(in_progress(1, 1)), "variable:nightly")
    assert hook.evaluate(NAME).stops
    kept.text = "{"
    clock.now += 31
    assert hook.enforce(NAME).stops
    assert kept.reads == 2


# --- helpers -----------------------------------------------------------------------------------


def test_the_times_of_a_run() -> None:
    run = SimpleNamespace(
        logical_date=CREATED_AT,
        run_after=CREATED_AT + timedelta(hours=1),
        data_interval_end=CREATED_AT + timedelta(hours=2),
    )
    assert run_times({"dag_run": run}) == RunTimes(
        logical_date=run.logical_date, queued_at=run.run_after, data_interval_end=run.data_interval_end
    )
    assert run_times({}) == RunTimes()
