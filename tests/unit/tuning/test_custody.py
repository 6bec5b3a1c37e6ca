"""Who looks after a tuning job: kills, and jobs that a try finds."""

from __future__ import annotations

from itertools import product

import pytest

from airflow_amt.tuning.custody import (
    UNREADABLE,
    Existing,
    IfExists,
    Place,
    decide_existing,
    decide_on_kill,
)
from airflow_amt.tuning.judgement import Ending
from airflow_amt.tuning.naming import DELIVERED_TAG, REPORTED_TAG, STOPPED_BY_TAG


@pytest.mark.parametrize("place", list(Place))
@pytest.mark.parametrize("state", ["failed", "success", "skipped", "removed", "queued", "scheduled", None])
def test_a_person_who_ends_a_task_ends_its_job(place: Place, state: str | None) -> None:
    assert decide_on_kill(state, place=place, retry_left=True).stop


@pytest.mark.parametrize("place", list(Place))
@pytest.mark.parametrize("state", ["deferred", "up_for_retry", "up_for_reschedule", UNREADABLE])
def test_who_comes_back_or_cannot_be_asked_keeps_it(place: Place, state: str) -> None:
    assert not decide_on_kill(state, place=place).stop


def test_a_running_task_was_not_killed_by_a_person() -> None:
    assert not decide_on_kill("running", place=Place.TRIGGERER).stop
    assert not decide_on_kill("running", place=Place.WORKER, retry_left=True).stop
    assert not decide_on_kill("running", place=Place.WORKER, superseded=True).stop
    assert decide_on_kill("running", place=Place.WORKER).stop


STATUSES = ("InProgress", "Stopping", "Completed", "Failed", "Stopped", "Deleting", "DeleteFailed")
TAGS = (
    {},
    {DELIVERED_TAG: "now"},
    {REPORTED_TAG: "now"},
    *({STOPPED_BY_TAG: who} for who in ("on_kill", "reaper", "deadline", "operator", "policy")),
)


@pytest.mark.parametrize(("status", "tags"), list(product(STATUSES, TAGS)))
def test_never_two_active_jobs_and_no_result_is_lost(status: str, tags: dict[str, str]) -> None:
    for if_exists, ending, delivered in product(IfExists, Ending, (True, False)):
        decision = decide_existing(status, tags, if_exists=if_exists, ending=ending, delivered=delivered)
        over = status not in ("InProgress", "Stopping")
        if decision.action is Existing.NEXT:
            assert over, "another job may only be started when this one is over"
        if decision.action is Existing.REFUSE:
            assert if_exists is IfExists.FAIL
        owed = (
            over
            and ending is not Ending.FAIL
            and not delivered
            and not tags.keys() & {DELIVERED_TAG, REPORTED_TAG}
            and not (status == "Stopped" and tags.get(STOPPED_BY_TAG) in ("on_kill", "reaper"))
        )
        if owed and if_exists is IfExists.ADOPT:
            assert decision.action is Existing.ADOPT


@pytest.mark.parametrize(("status", "if_exists"), list(product(STATUSES, IfExists)))
def test_what_this_very_try_created_is_its_own_however_it_came_out(status: str, if_exists: IfExists) -> None:
    decision = decide_existing(status, {}, if_exists=if_exists, ending=Ending.FAIL, same_try=True)
    assert decision.action is Existing.ADOPT


@pytest.mark.parametrize(
    ("status", "tags", "ending", "expected"),
    [
        ("InProgress", {DELIVERED_TAG: "now"}, None, Existing.ADOPT),
        ("Completed", {}, Ending.FAIL, Existing.NEXT),
        ("Stopped", {STOPPED_BY_TAG: "deadline"}, Ending.FAIL, Existing.ADOPT),
        ("Stopped", {STOPPED_BY_TAG: "deadline", REPORTED_TAG: "now"}, Ending.FAIL, Existing.NEXT),
        ("Stopped", {}, Ending.FAIL, Existing.NEXT),
        ("Stopped", {STOPPED_BY_TAG: "policy"}, Ending.SUCCEED, Existing.ADOPT),
    ],
)
def test_what_a_try_does_about_an_earlier_ones_job(
    status: str, tags: dict[str, str], ending: Ending | None, expected: Existing
) -> None:
    assert decide_existing(status, tags, ending=ending).action is expected
