"""The reaper's decision: whether anybody still waits for a tuning job, by its tags and its task instance.

Every doubt keeps the job: one that runs on costs money, is bounded by its completion criteria and can still
be stopped; one that was stopped is lost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum

from airflow_amt.tuning.naming import (
    DEPLOYMENT_TAG,
    GENERATION_TAG,
    MAX_TAG_VALUE_LENGTH,
    TAG_PREFIX,
    WAITS_TAG,
    Owner,
    Waits,
    tag_value,
)

#: A tuning job with this tag, whatever its value, is never reaped: set it by hand to keep one.
KEEP_TAG = f"{TAG_PREFIX}keep"

#: Time that a tuning job gets before it can be an orphan. Within it a task that created it may not have
#: stored anything yet, and Airflow may not have noticed that a worker died.
DEFAULT_GRACE = timedelta(minutes=10)

#: States of a task instance that is coming back to its tuning job. ``awaiting_input`` is Airflow 3.3's.
ALIVE_STATES = frozenset(
    {
        "running",
        "deferred",
        "queued",
        "scheduled",
        "up_for_retry",
        "up_for_reschedule",
        "restarting",
        "awaiting_input",
    }
)
#: States of a task instance that is over, whoever ended it.
OVER_STATES = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
#: States of a DAG run whose tasks are still going to be scheduled.
ACTIVE_RUN_STATES = frozenset({"queued", "running"})

# A run id that Airflow made: type, time, sometimes a random end. All of its characters fit into a tag.
_MADE_BY_AIRFLOW = re.compile(r"[a-z_]+__\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:?\d\d)?(?:_[A-Za-z0-9]+)?")


class ReapCode(str, Enum):
    """Why a tuning job is kept or stopped; stable."""

    OPTED_OUT = "opted_out"
    OTHER_DEPLOYMENT = "other_deployment"
    FOREIGN = "foreign"
    NOT_WAITING = "not_waiting"
    LEFT = "left"
    YOUNG = "young"
    TASK_WAITS = "task_waits"
    TO_BE_SCHEDULED = "to_be_scheduled"
    UNREADABLE = "unreadable"
    TASK_OVER = "task_over"
    TASK_GONE = "task_gone"
    RUN_OVER = "run_over"
    RUN_GONE = "run_gone"
    SUPERSEDED = "superseded"

    @property
    def stops(self) -> bool:
        """Whether the job is an orphan, to be stopped."""
        return self in _STOPPING

    @property
    def needs_a_look(self) -> bool:
        """Whether the job is kept for want of knowledge: somebody should look."""
        return self in (ReapCode.FOREIGN, ReapCode.UNREADABLE)


_STOPPING = frozenset(
    {
        ReapCode.TASK_OVER,
        ReapCode.TASK_GONE,
        ReapCode.RUN_OVER,
        ReapCode.RUN_GONE,
        ReapCode.SUPERSEDED,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReapDecision:
    """Whether to keep or stop a tuning job.

    :param code: why, for programs.
    :param reason: why, for people: a clause without a full stop, as ``its task is failed``.
    """

    code: ReapCode
    reason: str

    @property
    def stop(self) -> bool:
        """Whether to stop the job."""
        return self.code.stops


@dataclass(frozen=True, slots=True, kw_only=True)
class ReapPolicy:
    """What the reaper was asked for.

    :param grace: age below which a job is kept.
    :param deployment: id of this Airflow deployment; ``None`` if it has none. With an id, only jobs that
        carry it are stopped; without, only jobs that carry none and are of DAGs that this Airflow knows.
    :param dag_ids: DAGs that somebody named, and so vouches for: their jobs may be of a DAG that is not
        known, or without the deployment's id. Never with another deployment's.
    :param include_left: stop also jobs that were to outlive a killed task (``stop_on_kill=False``).
    """

    grace: timedelta = DEFAULT_GRACE
    deployment: str | None = None
    dag_ids: frozenset[str] = frozenset()
    include_left: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedJob:
    """A tuning job in progress that carries ownership tags.

    :param name: its name.
    :param owner: the task instance in its tags.
    :param tags: all of its tags.
    :param age: time since its creation.
    :param superseded_by: name of a later tuning job in progress of the same task instance.
    """

    name: str
    owner: Owner
    tags: Mapping[str, str]
    age: timedelta
    superseded_by: str | None = None

    @property
    def generation(self) -> int | None:
        """The generation in its tags."""
        text = self.tags.get(GENERATION_TAG, "")
        return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskView:
    """What Airflow says of a task instance.

    :param found: whether it exists; ``None`` if that could not be read.
    :param state: its state; ``None`` for none.
    :param run_state: state of its DAG run; ``None`` if there is no such DAG run. Only needed where the task
        instance has no state or is not found.
    :param dag_known: whether Airflow knows its DAG; ``None`` if that could not be told.
    :param problem: what could not be read, and why.
    """

    found: bool | None
    state: str | None = None
    run_state: str | None = None
    dag_known: bool | None = None
    problem: str = ""


def owner_of(tags: Mapping[str, str]) -> Owner | None:
    """Return the task instance that the ownership tags name; ``None`` if they are missing or not whole.

    The run id is the tag's: :func:`may_be_changed` says whether the real one may differ.
    """
    names = ("dag-id", "run-id", "task-id", "map-index")
    dag_id, run_id, task_id, map_index = (tags.get(TAG_PREFIX + name) for name in names)
    if not dag_id or not run_id or not task_id or not re.fullmatch(r"-1|[0-9]{1,9}", map_index or ""):
        return None
    return Owner(dag_id=dag_id, run_id=run_id, task_id=task_id, map_index=int(map_index or -1))


def may_be_changed(run_id: str) -> bool:
    """Say whether a tag may have changed the run id that it holds: replaced a character by ``_``, or cut it.

    The ids of DAGs and tasks have only characters, and a length, that tags hold as they are.
    """
    if len(run_id) >= MAX_TAG_VALUE_LENGTH:
        return True
    return "_" in run_id and not _MADE_BY_AIRFLOW.fullmatch(run_id)


def latest_by_owner(jobs: Mapping[str, tuple[Owner, int | None]]) -> dict[str, str]:
    """Say of which jobs a later generation of the same task instance is in progress too.

    :param jobs: owner and generation by name; a job without a generation takes no part.
    :return: the name of the latest one, by the name of each earlier one.
    """
    latest: dict[Owner, tuple[int, str]] = {}
    for name, (owner, generation) in jobs.items():
        if generation is not None and (owner not in latest or generation > latest[owner][0]):
            latest[owner] = (generation, name)
    return {
        name: latest[owner][1]
        for name, (owner, generation) in jobs.items()
        if generation is not None and generation < latest[owner][0]
    }


def settled_by_tags(job: OwnedJob, policy: ReapPolicy) -> ReapDecision | None:
    """Decide by tags and age, where these are reason enough to keep a job; ``None`` where they are not."""
    if KEEP_TAG in job.tags:
        return ReapDecision(code=ReapCode.OPTED_OUT, reason=f"it has the tag {KEEP_TAG}")
    deployment = job.tags.get(DEPLOYMENT_TAG)
    ours = None if policy.deployment is None else tag_value(policy.deployment)
    if deployment is not None and deployment != ours:
        mine = "has no id" if ours is None else f"is {ours}"
        return ReapDecision(
            code=ReapCode.OTHER_DEPLOYMENT,
            reason=f"it belongs to the Airflow deployment {deployment}, and this one {mine}",
        )
    if deployment is None and ours is not None and job.owner.dag_id not in policy.dag_ids:
        return ReapDecision(
            code=ReapCode.FOREIGN,
            reason=f"it has no tag {DEPLOYMENT_TAG}, and this Airflow deployment has an id ({ours}); name "
            "its DAG to have it judged",
        )
    waits = job.tags.get(WAITS_TAG)  # without the tag a task waits
    if waits == Waits.NO.value:
        return ReapDecision(code=ReapCode.NOT_WAITING, reason="no task was ever to wait for it")
    if waits == Waits.LEAVE.value and not policy.include_left:
        return ReapDecision(code=ReapCode.LEFT, reason="it is to outlive its task (stop_on_kill=False)")
    # An age below 0 is a clock that differs from AWS's: no reason to keep where no grace is asked for.
    if policy.grace > timedelta(0) and job.age < policy.grace:
        return ReapDecision(
            code=ReapCode.YOUNG,
            reason=f"it is {max(job.age.total_seconds(), 0):.0f} s old, less than the grace of "
            f"{policy.grace.total_seconds():.0f} s",
        )
    return None


def decide(job: OwnedJob, task: TaskView, policy: ReapPolicy) -> ReapDecision:
    """Decide whether a tuning job in progress is kept or stopped."""
    settled = settled_by_tags(job, policy)
    if settled is not None:
        return settled
    if task.found is None:
        return ReapDecision(
            code=ReapCode.UNREADABLE, reason=f"its task instance cannot be read: {task.problem}"
        )
    return _of_missing(job, task, policy) if not task.found else _of_state(job, task)


def _of_state(job: OwnedJob, task: TaskView) -> ReapDecision:
    state = task.state
    if state in OVER_STATES:
        return ReapDecision(code=ReapCode.TASK_OVER, reason=f"its task is {state}")
    if state in ALIVE_STATES and job.superseded_by is not None:
        return ReapDecision(
            code=ReapCode.SUPERSEDED,
            reason=f"its task is {state}, but waits for its later tuning job {job.superseded_by}",
        )
    if state in ALIVE_STATES:
        return ReapDecision(code=ReapCode.TASK_WAITS, reason=f"its task is {state}")
    if state is not None:
        return ReapDecision(
            code=ReapCode.UNREADABLE, reason=f"its task is in a state that is not known here: {state}"
        )
    if task.run_state in ACTIVE_RUN_STATES:
        return ReapDecision(
            code=ReapCode.TO_BE_SCHEDULED,
            reason=f"its task has no state, and will be scheduled: the DAG run is {task.run_state}",
        )
    if task.run_state is None:
        return ReapDecision(
            code=ReapCode.UNREADABLE,
            reason="its task has no state, and the state of the DAG run cannot be read"
            + (f": {task.problem}" if task.problem else ""),
        )
    return ReapDecision(
        code=ReapCode.RUN_OVER,
        reason=f"its task has no state and will get none: the DAG run is {task.run_state}",
    )


def _of_missing(job: OwnedJob, task: TaskView, policy: ReapPolicy) -> ReapDecision:
    if task.run_state is not None:
        # A run that is there makes the DAG known, as far as this Airflow's own ids go.
        return ReapDecision(
            code=ReapCode.TASK_GONE,
            reason=f"its task instance is gone from the DAG run, which is {task.run_state}",
        )
    ours = DEPLOYMENT_TAG in job.tags or job.owner.dag_id in policy.dag_ids or task.dag_known is True
    if ours:
        return ReapDecision(code=ReapCode.RUN_GONE, reason="its DAG run is gone")
    how = "does not know its DAG" if task.dag_known is False else "may not know its DAG"
    because = f" ({task.problem})" if task.problem else ""
    return ReapDecision(
        code=ReapCode.FOREIGN,
        reason=f"this Airflow {how}{because}: it may be another's; name the DAG to have it judged",
    )
