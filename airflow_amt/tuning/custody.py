"""Who looks after a tuning job: what becomes of it when its task is killed, and when a try finds it again.

Pure decisions, shared by operator, sensor and trigger, so that a task that waits on a worker and one that is
deferred do the same. States are Airflow's task instance states as strings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from airflow_amt.tuning.judgement import Ending
from airflow_amt.tuning.naming import DELIVERED_TAG, REPORTED_TAG
from airflow_amt.tuning.status import TERMINAL_STATUSES, TuningJobStatus
from airflow_amt.tuning.stops import Stop

#: Stands for a state that could not be read; a state that is none (cleared, or gone) is ``None``.
UNREADABLE = "<unreadable>"

#: States in which somebody comes back for the tuning job, whoever reported a kill.
COMES_BACK_STATES = frozenset({"deferred", "up_for_retry", "up_for_reschedule"})

#: Who stops a job because nobody waits for it any more: its result is not owed to anybody.
_ABANDONED_BY = frozenset({"on_kill", "reaper"})


class Place(str, Enum):
    """Where a task was killed."""

    WORKER = "worker"
    TRIGGERER = "triggerer"


@dataclass(frozen=True, slots=True, kw_only=True)
class KillDecision:
    """What to do about the tuning job of a killed task.

    :param stop: whether to stop it.
    :param reason: why, as a clause for people.
    """

    stop: bool
    reason: str


def decide_on_kill(
    state: str | None, *, place: Place, retry_left: bool = False, superseded: bool = False
) -> KillDecision:
    """Decide whether a kill ends the tuning job.

    Airflow reports more kills than people make: a worker is shut down by the same signal that ends a task
    that was marked failed, and a triggerer that was frozen reports kills of healthy tasks when it wakes up
    (measured with Airflow 3.3.2). The task instance's state tells them apart.

    :param state: state of the task instance now: ``None`` if it has none or is gone, or :data:`UNREADABLE`.
    :param place: where the kill was reported.
    :param retry_left: whether the task instance has another try; counts on a worker only.
    :param superseded: whether a later try of the task instance has adopted the job; the same.
    """
    if state == UNREADABLE:
        # A job that runs on costs money and can still be stopped; a stopped one cannot go on.
        return KillDecision(stop=False, reason="the task's state cannot be read to confirm the kill")
    if state in COMES_BACK_STATES:
        return KillDecision(stop=False, reason=f"the task is {state} and comes back for it")
    if state == "running":
        if place is Place.TRIGGERER:
            return KillDecision(stop=False, reason="the task is running on")
        if superseded:
            return KillDecision(stop=False, reason="a later try of the task has adopted it")
        if retry_left:
            return KillDecision(
                stop=False, reason="nobody changed the task's state, so the next try adopts it"
            )
        return KillDecision(stop=True, reason="the task's last try was terminated")
    return KillDecision(stop=True, reason=f"the task was killed, its state is {state or 'cleared'}")


class IfExists(str, Enum):
    """What a task does about a tuning job that an earlier try of it has started."""

    ADOPT = "adopt"
    NEW = "new"
    FAIL = "fail"


class Existing(str, Enum):
    """What to do about an existing tuning job of one's own."""

    ADOPT = "adopt"
    #: It is being stopped: wait for that, then decide again.
    WAIT = "wait"
    #: Stop it, wait for that, then start another one.
    REPLACE = "replace"
    #: It is over and nothing is owed from it: start another one.
    NEXT = "next"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExistingDecision:
    """What to do about an existing tuning job of one's own, and why.

    :param action: what to do.
    :param reason: why, as a clause for people.
    """

    action: Existing
    reason: str


def decide_existing(
    status: str,
    tags: Mapping[str, str],
    *,
    if_exists: IfExists = IfExists.ADOPT,
    ending: Ending | None = None,
    delivered: bool = False,
    same_try: bool = False,
) -> ExistingDecision:
    """Decide what a try does about a tuning job that an earlier try of its task instance started.

    In doubt it is adopted: a second job costs money, an old result can be thrown away.

    :param status: its ``HyperParameterTuningJobStatus``.
    :param tags: its tags; empty if they cannot be read.
    :param if_exists: what the author of the DAG wants.
    :param ending: how its outcome is judged; needed once it is over.
    :param delivered: whether another record than the tags says that Airflow accepted its result.
    :param same_try: whether it is this very try that created it: the answer of its create call was lost.
    """
    if same_try and not tags.keys() & {DELIVERED_TAG, REPORTED_TAG}:
        return ExistingDecision(action=Existing.ADOPT, reason="this try created it")
    if if_exists is IfExists.FAIL:
        return ExistingDecision(action=Existing.REFUSE, reason="if_exists is 'fail'")
    if status == TuningJobStatus.STOPPING.value:
        return ExistingDecision(action=Existing.WAIT, reason="it is being stopped")
    if status not in TERMINAL_STATUSES:
        if if_exists is IfExists.NEW:
            return ExistingDecision(action=Existing.REPLACE, reason="if_exists is 'new'")
        return ExistingDecision(action=Existing.ADOPT, reason="it is in progress")
    if if_exists is IfExists.NEW:
        return ExistingDecision(action=Existing.NEXT, reason="if_exists is 'new'")
    if delivered or DELIVERED_TAG in tags:
        return ExistingDecision(action=Existing.NEXT, reason="its result was delivered")
    if REPORTED_TAG in tags:
        return ExistingDecision(action=Existing.NEXT, reason="its failure was reported")
    stop = Stop.from_tags(tags)
    stopped_by = None if stop is None else stop.stopped_by
    if status == TuningJobStatus.STOPPED.value and stopped_by in _ABANDONED_BY:
        return ExistingDecision(action=Existing.NEXT, reason=f"it was abandoned (stopped by {stopped_by})")
    if ending is not Ending.FAIL:
        return ExistingDecision(action=Existing.ADOPT, reason="its result was never delivered")
    if status == TuningJobStatus.STOPPED.value and stopped_by is not None:
        # A decision of this provider, taken by a try that could not say so any more.
        return ExistingDecision(
            action=Existing.ADOPT, reason=f"that it was stopped ({stopped_by}) was never reported"
        )
    return ExistingDecision(action=Existing.NEXT, reason="it did not succeed")
