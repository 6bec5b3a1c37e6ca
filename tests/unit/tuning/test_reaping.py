"""The reaper's decision."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_amt.tuning.naming import DEPLOYMENT_TAG, GENERATION_TAG, WAITS_TAG, Owner, tag_value
from airflow_amt.tuning.reaping import (
    ALIVE_STATES,
    KEEP_TAG,
    OVER_STATES,
    OwnedJob,
    ReapCode,
    ReapPolicy,
    TaskView,
    decide,
    latest_by_owner,
    may_be_changed,
    owner_of,
    settled_by_tags,
)

OWNER = Owner(dag_id="churn", run_id="manual__2026-01-01T00:00:00+00:00", task_id="tune")
HOUR = timedelta(hours=1)
FAILED = TaskView(found=True, state="failed", dag_known=True)


def job(age: timedelta = HOUR, superseded_by: str | None = None, **tags: str) -> OwnedJob:
    named = {f"airflow-amt:{name}": value for name, value in tags.items()}
    return OwnedJob(
        name="tune-1",
        owner=OWNER,
        tags={**OWNER.tags(), **named},
        age=age,
        superseded_by=superseded_by,
    )


def gone(**changes: object) -> TaskView:
    return dataclasses.replace(TaskView(found=False, dag_known=True), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("state", sorted(ALIVE_STATES))
def test_a_task_that_comes_back_keeps_its_job(state: str) -> None:
    decision = decide(job(), TaskView(found=True, state=state), ReapPolicy())
    assert (decision.stop, decision.code, decision.reason) == (
        False,
        ReapCode.TASK_WAITS,
        f"its task is {state}",
    )


@pytest.mark.parametrize("state", sorted(OVER_STATES))
def test_a_task_that_is_over_does_not(state: str) -> None:
    decision = decide(job(), TaskView(found=True, state=state), ReapPolicy())
    assert (decision.stop, decision.code, decision.reason) == (
        True,
        ReapCode.TASK_OVER,
        f"its task is {state}",
    )


def test_every_state_of_airflow_is_one_or_the_other() -> None:
    from airflow.utils.state import TaskInstanceState

    assert ALIVE_STATES.isdisjoint(OVER_STATES)
    assert {state.value for state in TaskInstanceState} <= ALIVE_STATES | OVER_STATES


@pytest.mark.parametrize(
    ("task", "code"),
    [
        (TaskView(found=True, run_state="running"), ReapCode.TO_BE_SCHEDULED),
        (TaskView(found=True, run_state="queued"), ReapCode.TO_BE_SCHEDULED),
        (TaskView(found=True, run_state="failed"), ReapCode.RUN_OVER),
        (TaskView(found=True, run_state="success"), ReapCode.RUN_OVER),
        (TaskView(found=True, run_state=None), ReapCode.UNREADABLE),
        (TaskView(found=True, state="on_the_moon", run_state="running"), ReapCode.UNREADABLE),
        (TaskView(found=None, problem="no answer"), ReapCode.UNREADABLE),
        (gone(run_state="running"), ReapCode.TASK_GONE),
        (gone(run_state="failed"), ReapCode.TASK_GONE),
        (gone(), ReapCode.RUN_GONE),
        (gone(dag_known=False), ReapCode.FOREIGN),
        (gone(dag_known=None, problem="3.1"), ReapCode.FOREIGN),
    ],
)
def test_a_task_without_a_state_or_that_is_gone(task: TaskView, code: ReapCode) -> None:
    decision = decide(job(), task, ReapPolicy())
    assert decision.code is code
    assert task.problem in decision.reason


@pytest.mark.parametrize(
    ("tags", "policy", "code"),
    [
        ({"keep": ""}, {}, ReapCode.OPTED_OUT),
        ({"keep": "no", "deployment": "b"}, {}, ReapCode.OPTED_OUT),
        ({"waits": "no"}, {"include_left": True}, ReapCode.NOT_WAITING),
        ({"waits": "leave"}, {}, ReapCode.LEFT),
        ({"waits": "leave"}, {"include_left": True}, ReapCode.TASK_OVER),
        ({"waits": "yes"}, {}, ReapCode.TASK_OVER),
        ({"deployment": "b"}, {}, ReapCode.OTHER_DEPLOYMENT),
        ({"deployment": "b"}, {"deployment": "a"}, ReapCode.OTHER_DEPLOYMENT),
        ({"deployment": "b"}, {"dag_ids": frozenset({"churn"})}, ReapCode.OTHER_DEPLOYMENT),
        ({"deployment": "a_b"}, {"deployment": "a*b"}, ReapCode.TASK_OVER),
        ({}, {"deployment": "a"}, ReapCode.FOREIGN),
        ({}, {"deployment": "a", "dag_ids": frozenset({"churn"})}, ReapCode.TASK_OVER),
        ({}, {"grace": 2 * HOUR}, ReapCode.YOUNG),
        ({}, {"grace": HOUR}, ReapCode.TASK_OVER),
    ],
)
def test_what_tags_and_age_say(tags: dict[str, str], policy: dict[str, object], code: ReapCode) -> None:
    assert decide(job(**tags), FAILED, ReapPolicy(**policy)).code is code  # type: ignore[arg-type]


def test_a_deployment_of_ours_or_a_name_vouches_for_a_dag_that_is_not_known() -> None:
    unknown = gone(dag_known=False)
    assert decide(job(deployment="a"), unknown, ReapPolicy(deployment="a")).code is ReapCode.RUN_GONE
    assert decide(job(), unknown, ReapPolicy(dag_ids=frozenset({"churn"}))).code is ReapCode.RUN_GONE


def test_without_grace_a_clock_that_differs_does_not_matter() -> None:
    assert decide(job(age=-HOUR), FAILED, ReapPolicy(grace=timedelta(0))).stop
    young = decide(job(age=-HOUR), FAILED, ReapPolicy(grace=timedelta(seconds=1)))
    assert (young.code, young.reason) == (ReapCode.YOUNG, "it is 0 s old, less than the grace of 1 s")


def test_a_job_that_a_later_one_replaced_is_not_waited_for() -> None:
    later = job(superseded_by="tune-2")
    running = TaskView(found=True, state="running")
    decision = decide(later, running, ReapPolicy())
    assert decision.code is ReapCode.SUPERSEDED
    assert "tune-2" in decision.reason
    # Whoever is to be scheduled may still come back to either.
    assert not decide(later, TaskView(found=True, run_state="queued"), ReapPolicy()).stop


def test_the_latest_generation_of_each_task_instance() -> None:
    other = dataclasses.replace(OWNER, map_index=0)
    jobs = {
        "a": (OWNER, 1),
        "b": (OWNER, 3),
        "c": (OWNER, 2),
        "no-tag": (OWNER, None),
        "other": (other, 1),
    }
    assert latest_by_owner(jobs) == {"a": "b", "c": "b"}


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "9" * 12])
def test_a_generation_that_is_no_number_is_none(text: str) -> None:
    tagged = dataclasses.replace(job(), tags={GENERATION_TAG: text})
    assert tagged.generation is None
    assert dataclasses.replace(job(), tags={GENERATION_TAG: "12"}).generation == 12


@pytest.mark.parametrize("missing", sorted(OWNER.tags()))
def test_half_an_owner_is_none(missing: str) -> None:
    tags = OWNER.tags()
    assert owner_of(tags) == OWNER
    assert owner_of({**tags, missing: ""}) is None
    del tags[missing]
    assert owner_of(tags) is None


@pytest.mark.parametrize("map_index", ["x", "-2", "1 ", "--1", "٣"])
def test_a_map_index_that_is_none(map_index: str) -> None:
    assert owner_of({**OWNER.tags(), "airflow-amt:map-index": map_index}) is None


@pytest.mark.parametrize(
    "run_id",
    [
        "manual__2026-01-01T00:00:00+00:00",
        "scheduled__2026-01-01T00:00:00.123456+00:00",
        "asset_triggered__2026-01-01T00:00:00+00:00_aB3dEf78",
        "manual__2026-01-01T00:00:00Z",
        "nightly-7",
    ],
)
def test_run_ids_that_a_tag_holds_as_they_are(run_id: str) -> None:
    assert tag_value(run_id) == run_id
    assert not may_be_changed(run_id)


@given(run_id=st.text(min_size=1, max_size=300))
def test_a_changed_run_id_is_always_noticed(run_id: str) -> None:
    tag = tag_value(run_id)
    assert tag == run_id or may_be_changed(tag)


_TAGS = st.dictionaries(
    st.sampled_from([KEEP_TAG, WAITS_TAG, DEPLOYMENT_TAG, GENERATION_TAG]),
    st.sampled_from(["", "no", "leave", "yes", "a", "b", "1", "2"]),
)
_STATES = st.sampled_from([None, "on_the_moon", *sorted(ALIVE_STATES | OVER_STATES)])


@given(
    tags=_TAGS,
    age=st.integers(min_value=-100, max_value=10_000),
    superseded_by=st.sampled_from([None, "tune-2"]),
    found=st.sampled_from([None, False, True]),
    state=_STATES,
    run_state=st.sampled_from([None, "queued", "running", "success", "failed"]),
    dag_known=st.sampled_from([None, False, True]),
    deployment=st.sampled_from([None, "a"]),
    named=st.booleans(),
    include_left=st.booleans(),
)
def test_nothing_is_stopped_that_may_be_waited_for(
    tags: dict[str, str],
    age: int,
    superseded_by: str | None,
    found: bool | None,
    state: str | None,
    run_state: str | None,
    dag_known: bool | None,
    deployment: str | None,
    named: bool,
    include_left: bool,
) -> None:
    policy = ReapPolicy(
        deployment=deployment,
        dag_ids=frozenset({OWNER.dag_id} if named else ()),
        include_left=include_left,
    )
    task = TaskView(found=found, state=state if found else None, run_state=run_state, dag_known=dag_known)
    judged = OwnedJob(
        name="tune-1", owner=OWNER, tags=tags, age=timedelta(seconds=age), superseded_by=superseded_by
    )
    decision = decide(judged, task, policy)
    assert decision.reason
    assert not decision.reason.endswith(".")
    settled = settled_by_tags(judged, policy)
    assert settled is None or (settled == decision and not settled.stop)
    if not decision.stop:
        return
    assert KEEP_TAG not in tags
    assert tags.get(WAITS_TAG) != "no"
    assert tags.get(WAITS_TAG) != "leave" or include_left
    assert tags.get(DEPLOYMENT_TAG) == deployment or (DEPLOYMENT_TAG not in tags and named)
    assert age >= 600
    assert found is not None
    if found:
        assert state in OVER_STATES or superseded_by or (state is None and run_state in ("success", "failed"))
    else:
        assert run_state or dag_known or named or tags.get(DEPLOYMENT_TAG) == deployment is not None
