from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_amt.exceptions import AmtRequestError
from airflow_amt.tuning.deadlines import (
    CLOCK_MARGIN,
    Belongs,
    MissedDeadline,
    RunJobs,
    check_arguments,
    is_unsettled,
)
from airflow_amt.tuning.judgement import known_names
from airflow_amt.tuning.naming import STOPPED_BY_TAG, Owner, derive_job_name
from airflow_amt.tuning.reaping import KEEP_TAG
from airflow_amt.tuning.stops import Stop

RUN_ID = "scheduled__2026-03-29T00:30:00+00:00"
RUN = {
    "dag_id": "churn",
    "dag_run_id": RUN_ID,
    "queued_at": "2026-03-29T01:00:02Z",
    "start_date": "2026-03-29T01:00:03+00:00",
    "run_after": "2026-03-29T01:00:00Z",
    "logical_date": None,
}
DUE = datetime(2026, 3, 29, 7, tzinfo=UTC)
ID = "01a20e0a-b070-7c69-8182-ecb18b68c6a8"
OWNER = Owner(dag_id="churn", run_id=RUN_ID, task_id="tune")
JOBS = RunJobs(dag_id="churn", run_id=RUN_ID)


def context(**run: Any) -> dict[str, Any]:
    return {"dag_run": {**RUN, **run}, "deadline": {"id": ID, "deadline_time": DUE}}


def judge(owner: Owner, jobs: RunJobs = JOBS, name: str | None = None, **tags: str) -> Belongs:
    return jobs.judge(name or derive_job_name(owner), {**owner.tags(), **tags})


@pytest.mark.parametrize("due", [DUE, DUE.astimezone(timezone(timedelta(hours=2))), "2026-03-29T07:00:00Z"])
@pytest.mark.parametrize("deadline_id", [ID, UUID(ID)])
def test_the_context_as_triggerer_and_executors_get_it(due: Any, deadline_id: Any) -> None:
    given = {**context(), "deadline": {"id": deadline_id, "deadline_time": due}}
    missed = MissedDeadline.from_context(given, "nightly")
    assert missed == MissedDeadline(
        dag_id="churn",
        run_id=RUN_ID,
        due=DUE,
        began=datetime(2026, 3, 29, 1, tzinfo=UTC),
        deadline_id=ID,
        name="nightly",
    )
    assert missed.policy_stop("stop_and_fail").to_dict() == {
        "policy": "deadline_alert",
        "rule": "nightly",
        "action": "stop_and_fail",
        "share": None,
        "evidence": {"due": "2026-03-29T07:00:00+00:00", "deadline_id": ID},
    }
    assert missed.detail() == "the DAG run was due at 2026-03-29T07:00:00+00:00"
    assert missed.detail("costs") == "costs"


def test_a_cleared_run_still_began_when_it_did() -> None:
    later = "2026-04-02T12:00:00Z"
    missed = MissedDeadline.from_context(context(queued_at=later, start_date=later))
    assert missed.created_after == datetime(2026, 3, 29, 1, tzinfo=UTC) - CLOCK_MARGIN


def test_a_run_that_never_started_has_one_time() -> None:
    missed = MissedDeadline.from_context(context(queued_at=None, start_date=None))
    assert missed.began == datetime(2026, 3, 29, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        (None, ["context.dag_run", "context.deadline"]),
        ("a task", ["context.dag_run", "context.deadline"]),
        ({"dag_run": {}}, ["context.deadline"]),
        ({**context(), "deadline": {}}, ["context.deadline.deadline_time"]),
        (
            {**context(), "deadline": {"deadline_time": "2026-01-01T00:00:00"}},
            ["context.deadline.deadline_time"],
        ),
        (context(dag_id=None), ["context.dag_run.dag_id"]),
        (context(run_after="soon"), ["context.dag_run.run_after"]),
        (context(run_after=None, queued_at=None, start_date=None), ["context.dag_run.run_after"]),
    ],
)
def test_another_context_is_refused(given: Any, fields: list[str]) -> None:
    with pytest.raises(AmtRequestError) as caught:
        MissedDeadline.from_context(given)
    named = [problem.field for problem in caught.value.problems]
    assert set(fields) <= set(named)
    assert all(field.startswith("context.") for field in named)


def test_jobs_of_the_run_are_told_from_all_others() -> None:
    assert judge(OWNER) is Belongs.MINE
    assert judge(OWNER, name="named-by-hand") is Belongs.MINE
    mapped = Owner(dag_id="churn", run_id=RUN_ID, task_id="tune", map_index=3)
    assert judge(mapped) is Belongs.MINE
    for other in (
        Owner(dag_id="churn2", run_id=RUN_ID, task_id="tune"),
        Owner(dag_id="churn", run_id=RUN_ID.replace("29T", "30T"), task_id="tune"),
    ):
        assert judge(other) is Belongs.OTHER
    assert JOBS.judge("a-job", {}) is Belongs.OTHER
    assert JOBS.judge("a-job", {"airflow-amt:dag-id": "churn", "airflow-amt:run-id": RUN_ID}) is Belongs.OTHER


def test_tags_and_tasks_that_keep_a_job() -> None:
    assert judge(OWNER, JOBS, None, **{KEEP_TAG: ""}) is Belongs.KEPT
    only = RunJobs(dag_id="churn", run_id=RUN_ID, task_ids=frozenset({"tune_too", "group.tune"}))
    assert judge(OWNER, only) is Belongs.OTHER_TASK
    assert judge(Owner(dag_id="churn", run_id=RUN_ID, task_id="group.tune"), only) is Belongs.MINE


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ("prod", "prod", Belongs.MINE),
        ("prod (eu)", "prod (eu)", Belongs.MINE),
        ("prod", "test", Belongs.OTHER_DEPLOYMENT),
        ("prod", None, Belongs.OTHER_DEPLOYMENT),
        (None, "test", Belongs.OTHER_DEPLOYMENT),
    ],
)
def test_jobs_of_another_airflow_are_not_touched(
    ours: str | None, theirs: str | None, expected: Belongs
) -> None:
    jobs = RunJobs(dag_id="churn", run_id=RUN_ID, deployment=ours)
    owner = Owner(dag_id="churn", run_id=RUN_ID, task_id="tune", deployment=theirs)
    assert judge(owner, jobs) is expected


_RUN_IDS = st.text("ab_~", min_size=1, max_size=8) | st.from_regex(
    r"[A-Za-z0-9_.~:+-]{1,300}", fullmatch=True
)


@given(_RUN_IDS, _RUN_IDS, st.integers(1, 12))
def test_no_two_runs_share_a_job_with_a_derived_name(mine: str, other: str, generation: int) -> None:
    jobs = RunJobs(dag_id="churn", run_id=mine)
    for run_id in {mine, other}:
        owner = Owner(dag_id="churn", run_id=run_id, task_id="tune")
        name = derive_job_name(owner, generation=generation)
        assert judge(owner, jobs, name) is (Belongs.MINE if run_id == mine else Belongs.OTHER)


def test_a_name_given_by_hand_is_no_reason_to_leave_a_job() -> None:
    owner = Owner(dag_id="churn", run_id="by~hand_1", task_id="tune")
    jobs = RunJobs(dag_id="churn", run_id="by~hand_1")
    assert judge(owner, jobs, "tune-retraining") is Belongs.MINE


def test_a_stop_without_a_record_is_told() -> None:
    stop = Stop(stopped_by="policy", requested_by="deadline of churn x")
    assert is_unsettled(stop.intent(), "deadline of churn x")
    assert not is_unsettled(stop.intent(), "deadline of churn y")
    assert not is_unsettled({**stop.intent(), STOPPED_BY_TAG: "operator"}, "deadline of churn x")
    assert not is_unsettled({}, "deadline of churn x")


def test_arguments_are_kept_as_json() -> None:
    connection: dict[str, Any] = {"aws_conn_id": None, "botocore_config": {"retries": {"max_attempts": 2}}}
    kept = check_arguments(action="warn", task_ids=("b", "a", "b"), name="nightly", **connection)
    assert kept == {"action": "warn", "task_ids": ["a", "b"], "name": "nightly", **connection}
    assert json.loads(json.dumps(kept)) == kept
    assert check_arguments(task_ids="tune") == {"action": "stop", "task_ids": ["tune"]}


def test_all_bad_arguments_are_named() -> None:
    with pytest.raises(AmtRequestError) as caught:
        check_arguments(action="halt", task_ids=[], detail=" ", name=7, botocore_config={"a": object()})
    assert [problem.field for problem in caught.value.problems] == [
        "action",
        "task_ids",
        "detail",
        "name",
        "botocore_config",
    ]


@pytest.mark.parametrize("task_ids", [7, {"a": 1}, ["a", None], ["", "a"], ()])
def test_task_ids_are_ids(task_ids: Any) -> None:
    with pytest.raises(AmtRequestError, match="task_ids"):
        check_arguments(task_ids=task_ids)


def test_outcomes_can_be_judged_by_the_deadline() -> None:
    assert "stopped_by_provider:policy:deadline_alert" in known_names()
