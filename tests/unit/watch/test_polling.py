"""The one polling helper: what is borne, for how long, and what is told."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_amt.exceptions import AmtAccessDeniedError, AmtAwsError, AmtThrottledError
from airflow_amt.tuning import Converged, TuningProgress
from airflow_amt.watch import polling
from airflow_amt.watch.polling import (
    LONGEST_BACKOFF_SECONDS,
    MAX_FAILURES_IN_A_ROW,
    Patience,
    TuningJobReader,
    Verdict,
    patiently,
)
from tests.unit.tasks import DENIED, THROTTLED, describe, loud_log


def reader_of(*answers: Any, log: Any = None, **options: Any) -> TuningJobReader:
    remaining = list(answers)

    def answer() -> dict[str, Any]:
        one = remaining.pop(0)
        if isinstance(one, Exception):
            raise one
        return one if isinstance(one, dict) else describe(status=one)

    return TuningJobReader(answer, interval_seconds=30, log=log or loud_log(), **options)


@pytest.mark.parametrize("status", ["Completed", "Failed", "Stopped", "Deleting", "DeleteFailed"])
def test_a_job_that_is_over_is_told_at_once(status: str) -> None:
    reading = reader_of(status).read()
    assert reading.verdict is Verdict.ENDED
    assert reading.progress is not None
    assert reading.progress.status == status


@pytest.mark.parametrize("status", ["InProgress", "Stopping"])
def test_a_job_that_goes_on_is_read_again_after_the_interval(status: str) -> None:
    reading = reader_of(status).read()
    assert (reading.verdict, reading.delay_seconds) == (Verdict.WAIT, 30)


def test_one_line_is_logged_only_when_something_changed() -> None:
    log = loud_log()
    more = describe(TrainingJobStatusCounters={"Completed": 3})
    reader = reader_of("InProgress", "InProgress", more, more, "Completed", log=log)
    for _ in range(5):
        reader.read()
    assert [line.split(", ")[1] for line in log.lines] == [
        "training jobs 2/4 ended",
        "training jobs 3/4 ended",
        "training jobs 4/4 ended",
    ]


def test_transient_errors_are_borne_with_growing_waits_and_a_success_starts_anew() -> None:
    reader = reader_of(THROTTLED, THROTTLED, THROTTLED, "InProgress", THROTTLED)
    readings = [reader.read() for _ in range(5)]
    assert [reading.delay_seconds for reading in readings] == [30, 60, 120, 30, 30]
    assert all(reading.verdict is Verdict.WAIT for reading in readings)


def test_patience_has_an_end_and_a_longest_wait() -> None:
    log = loud_log()
    patience = Patience(interval_seconds=30, log=log)
    delays = [patience.bear(THROTTLED) for _ in range(MAX_FAILURES_IN_A_ROW - 1)]
    assert max(delays) == LONGEST_BACKOFF_SECONDS
    assert delays == sorted(delays)
    with pytest.raises(AmtThrottledError):
        patience.bear(THROTTLED)
    assert log.lines[-1].startswith("error: Giving up")


def test_what_waiting_does_not_mend_is_raised_at_once() -> None:
    with pytest.raises(AmtAccessDeniedError):
        reader_of(DENIED).read()


def test_the_deadline_is_told_though_the_reads_fail() -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    reading = reader_of(THROTTLED, deadline=past).read()
    assert (reading.verdict, reading.progress) == (Verdict.DEADLINE, None)


def test_a_job_that_ended_before_the_deadline_was_seen_counts_as_ended() -> None:
    past = datetime.now(UTC) - timedelta(hours=1)
    assert reader_of("Completed", deadline=past).read().verdict is Verdict.ENDED


def test_no_wait_goes_beyond_the_deadline() -> None:
    reading = reader_of("InProgress", deadline=datetime.now(UTC) + timedelta(seconds=5)).read()
    assert 4 < reading.delay_seconds <= 5


def test_a_call_is_made_until_it_succeeds() -> None:
    answers: list[Any] = [THROTTLED, THROTTLED, "done"]
    waits: list[float] = []

    def call() -> str:
        one = answers.pop(0)
        if isinstance(one, AmtAwsError):
            raise one
        return str(one)

    assert patiently(call, interval_seconds=2, log=loud_log(), sleep=waits.append) == "done"
    assert waits == [2, 4]


# --- what a summary leaves open ------------------------------------------------------------------


def summary_and_description() -> tuple[TuningProgress, dict[str, Any]]:
    description = describe(status="InProgress")
    return replace(TuningProgress.from_describe(description), is_summary=True), description


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The reader's clock, which stands still but for what a test sets as ``now``."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(polling, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_a_description_stands_the_longer_the_longer_nothing_came_after_it(clock: SimpleNamespace) -> None:
    reader = reader_of(condition=Converged())
    summary, description = summary_and_description()
    described_at: list[float] = []
    for seconds in range(0, 1201, 5):
        clock.now = seconds
        if reader.take(summary).is_in_doubt:
            described_at.append(seconds)
            reader.take(TuningProgress.from_describe(description), description)
    # By the interval of 30 s, of which a read may come a fifth early.
    assert described_at == [0, 25, 50, 100, 200, 400, 700, 1000]


def test_convergence_that_is_told_late_is_seen_though_no_counter_changed(clock: SimpleNamespace) -> None:
    reader = reader_of(condition=Converged())
    summary, description = summary_and_description()
    reader.take(TuningProgress.from_describe(description), description)
    clock.now = 30.0
    assert reader.take(summary).is_in_doubt
    late = describe(
        status="InProgress",
        TuningJobCompletionDetails={"ConvergenceDetectedTime": datetime(2026, 1, 1, tzinfo=UTC)},
    )
    assert reader.take(TuningProgress.from_describe(late), late).verdict is Verdict.CONDITION


def test_summaries_do_not_make_up_for_descriptions_that_fail() -> None:
    reader = reader_of(condition=Converged())
    summary, _ = summary_and_description()
    delays: list[float] = []
    for _ in range(MAX_FAILURES_IN_A_ROW - 1):
        assert reader.take(summary).is_in_doubt
        delays.append(reader.fail(THROTTLED).delay_seconds)
    assert delays[:3] == [30, 60, 120]
    with pytest.raises(AmtThrottledError):
        reader.fail(THROTTLED)


@pytest.mark.parametrize("hands_on_end", [True, False])
def test_an_end_that_is_only_handed_on_needs_no_description(hands_on_end: bool) -> None:
    reader = reader_of(condition=Converged(), hands_on_end=hands_on_end)
    summary = replace(TuningProgress.from_describe(describe(status="Completed")), is_summary=True)
    reading = reader.take(summary)
    if hands_on_end:
        assert (reading.verdict, reading.progress, reading.result) == (Verdict.ENDED, summary, None)
    else:
        assert (reading.verdict, reading.is_in_doubt) == (Verdict.WAIT, True)
    assert reader.ends_by_summary is hands_on_end
