"""Deadlines of DAG runs: what Airflow says of one that was missed, and which tuning jobs belong to its run.

The tuning jobs are told by their ownership tags alone: a callback of Airflow's ``DeadlineAlert`` gets no task
instance, and in the executor it cannot read XCom. Every doubt leaves a job alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from itertools import product
from typing import Any, Literal, get_args

from airflow_amt.exceptions import AmtFieldError, AmtRequestError
from airflow_amt.tuning.naming import (
    DEPLOYMENT_TAG,
    STOPPED_BY_TAG,
    Owner,
    generation_of,
    tag_value,
)
from airflow_amt.tuning.reaping import KEEP_TAG, may_be_changed, owner_of
from airflow_amt.tuning.stops import DEADLINE_ALERT, PolicyStop, Stop

#: What to do about the tuning jobs of a DAG run that missed its deadline.
DeadlineAction = Literal["stop", "warn", "stop_and_fail"]
DEADLINE_ACTIONS: tuple[DeadlineAction, ...] = get_args(DeadlineAction)

#: How far the clocks of Airflow and AWS may be apart.
CLOCK_MARGIN = timedelta(minutes=15)

# As a rule's name: it stands among others in a tag.
_NAME = re.compile(r"[A-Za-z0-9_.+/@-]{1,40}")

# Each one of a run id doubles the ids that have its tag; with more, derived names are not looked at.
_MOST_UNDERSCORES = 12

# Times of a DAG run, as Airflow's API names them. A clear sets the first two anew, and a task that is cleared
# goes on with the tuning job it had: hence the third, which stays.
_RUN_TIMES = ("queued_at", "start_date", "run_after")


@dataclass(frozen=True, slots=True, kw_only=True)
class MissedDeadline:
    """A deadline that a DAG run missed.

    :param dag_id: DAG id.
    :param run_id: DAG run id.
    :param due: when the run should have been over.
    :param began: a time before which the run had no tuning job.
    :param deadline_id: Airflow's id of the deadline.
    :param name: what people call it.
    """

    dag_id: str
    run_id: str
    due: datetime
    began: datetime
    deadline_id: str = ""
    name: str = ""

    @classmethod
    def from_context(cls, context: Any, name: str | None = None) -> MissedDeadline:
        """Read the context that Airflow gives a callback of a ``DeadlineAlert``.

        :param context: ``{"dag_run": {"dag_id", "dag_run_id", "run_after", ...}, "deadline": {"id",
            "deadline_time"}}``; times as ``datetime`` or ISO 8601 text.
        :param name: name of the deadline, which the context does not have.
        :raises AmtRequestError: it is no such context.
        """
        problems: list[AmtFieldError] = []
        given = context if isinstance(context, Mapping) else {}
        run, deadline = (
            _mapping(f"context.{key}", given.get(key), problems) for key in ("dag_run", "deadline")
        )
        ids = {
            key: _text(f"context.dag_run.{key}", run.get(key), problems) for key in ("dag_id", "dag_run_id")
        }
        due = _time("context.deadline.deadline_time", deadline.get("deadline_time"), problems)
        times = [
            _time(f"context.dag_run.{key}", run[key], problems)
            for key in _RUN_TIMES
            if run.get(key) is not None
        ]
        if not times:
            _time("context.dag_run.run_after", None, problems)
        if problems:
            raise AmtRequestError(problems)
        return cls(
            dag_id=ids["dag_id"],
            run_id=ids["dag_run_id"],
            due=due,
            began=min(times),
            deadline_id=str(deadline.get("id") or ""),
            name=name or "",
        )

    @property
    def requested_by(self) -> str:
        """Who asks for a stop: the same whenever this deadline is acted on."""
        return f"deadline of {self.dag_id} {self.run_id}"

    @property
    def created_after(self) -> datetime:
        """A time before which no tuning job of the run was created, also by AWS's clock."""
        return self.began - CLOCK_MARGIN

    @property
    def stopped_after(self) -> datetime:
        """A time before which this deadline stopped nothing, also by AWS's clock."""
        return self.due - CLOCK_MARGIN

    def detail(self, detail: str | None = None) -> str:
        """Return why, for people: their own words, or a sentence."""
        return detail or f"the DAG run was due at {self.due.astimezone(UTC).isoformat()}"

    def policy_stop(self, action: DeadlineAction) -> PolicyStop:
        """Return the record of a stop that this deadline demands."""
        evidence = {"due": self.due.astimezone(UTC).isoformat(), "deadline_id": self.deadline_id}
        return PolicyStop(
            code=DEADLINE_ALERT,
            rule=self.name,
            action=action,
            evidence={key: value for key, value in evidence.items() if value},
        )


class Belongs(str, Enum):
    """Whose a tuning job is, seen from a DAG run; stable."""

    #: The run's, and to be acted on.
    MINE = "mine"
    #: The run's, with the tag that keeps it from being stopped.
    KEPT = "kept"
    #: The run's, of a task that is not meant.
    OTHER_TASK = "other_task"
    #: Of a run of the same ids in another Airflow.
    OTHER_DEPLOYMENT = "other_deployment"
    #: Anything else.
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunJobs:
    """Tells the tuning jobs of one DAG run from all others.

    :param dag_id: DAG id.
    :param run_id: DAG run id, as Airflow has it.
    :param deployment: id of this Airflow deployment; ``None`` if it has none.
    :param task_ids: only of these tasks; ``None`` for all.
    """

    dag_id: str
    run_id: str
    deployment: str | None = None
    task_ids: frozenset[str] | None = None

    def judge(self, name: str, tags: Mapping[str, str]) -> Belongs:
        """Say whose a tuning job is.

        How it works: the ownership tags must name the DAG and the run, and the deployment if there is one. A
        tag holds a run's id with ``_`` in place of ``~``; a derived name has a digest of the real one, which
        tells two such runs apart.

        Known limitation: of a tuning job with a name of its own, the tags alone tell.
        """
        owner = owner_of(tags)
        if owner is None or (owner.dag_id, owner.run_id) != (tag_value(self.dag_id), tag_value(self.run_id)):
            return Belongs.OTHER
        deployment = None if self.deployment is None else tag_value(self.deployment)
        if tags.get(DEPLOYMENT_TAG) != deployment:
            return Belongs.OTHER_DEPLOYMENT
        if self._is_of_a_similar_run(name, owner):
            return Belongs.OTHER
        if self.task_ids is not None and owner.task_id not in {tag_value(one) for one in self.task_ids}:
            return Belongs.OTHER_TASK
        return Belongs.KEPT if KEEP_TAG in tags else Belongs.MINE

    def _is_of_a_similar_run(self, name: str, owner: Owner) -> bool:
        """Whether the name was derived from another run's id that becomes the same tag."""
        if not may_be_changed(owner.run_id):
            return False
        real = replace(owner, dag_id=self.dag_id, deployment=self.deployment)
        return any(
            generation_of(name, replace(real, run_id=run_id)) is not None
            for run_id in _same_tag(self.run_id)
            if run_id != self.run_id
        )


def _same_tag(run_id: str) -> Iterator[str]:
    """Yield the run ids whose tag is that of this one.

    Of the characters that Airflow allows in a run id (``[scheduler] allowed_run_id_pattern``), ``~`` alone is
    none of a tag's.
    """
    parts = tag_value(run_id).split("_")
    if len(parts) > _MOST_UNDERSCORES:
        return
    for between in product("_~", repeat=len(parts) - 1):
        yield "".join(part + sign for part, sign in zip(parts, (*between, ""), strict=True))


def is_unsettled(tags: Mapping[str, str], requested_by: str) -> bool:
    """Whether a job that was stopped has an intent of this requester, and no record of who stopped it.

    So it is if the process ended between the two, as when a triggerer is restarted.
    """
    return STOPPED_BY_TAG not in tags and any(
        intended.requested_by == requested_by for intended in Stop.intents(tags)
    )


def check_arguments(
    *, action: Any = "stop", task_ids: Any = None, detail: Any = None, name: Any = None, **connection: Any
) -> dict[str, Any]:
    """Check the arguments of a callback, and return them as they are kept: JSON-safe.

    :param connection: the arguments of the AWS connection.
    :raises AmtRequestError: lists all that cannot be used.
    """
    problems: list[AmtFieldError] = []
    if action not in DEADLINE_ACTIONS:
        known = ", ".join(DEADLINE_ACTIONS)
        problems.append(AmtFieldError("action", action, f"known are {known}", "choose one of them"))
    ids = _task_ids(task_ids, problems)
    if detail is not None and (not isinstance(detail, str) or not detail.strip()):
        problems.append(AmtFieldError("detail", detail, "text", "give it as text, or leave it out"))
    if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
        problems.append(
            AmtFieldError(
                "name",
                name,
                "at most 40 letters, digits and _.+/@-",
                "shorten it, without spaces, or leave it out",
            )
        )
    given = {"action": action, "task_ids": ids, "detail": detail, "name": name}
    for field, value in connection.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            problems.append(
                AmtFieldError(
                    field, value, "what JSON can hold", "it is kept in Airflow's database until then"
                )
            )
    if problems:
        raise AmtRequestError(problems)
    # No connection, None, is not the default one.
    return {**{key: value for key, value in given.items() if value is not None}, **connection}


def _task_ids(given: Any, problems: list[AmtFieldError]) -> list[str] | None:
    if given is None:
        return None
    ids = [given] if isinstance(given, str) else given
    if not isinstance(ids, Iterable) or isinstance(ids, Mapping):
        ids = [given]
    found = list(ids)
    bad = [one for one in found if not isinstance(one, str) or not one]
    if bad or not found:
        problems.append(
            AmtFieldError(
                "task_ids",
                bad[0] if bad else given,
                "ids of tasks, at least one",
                "give a list of ids (with task groups: group.task), or leave it out for all tasks",
            )
        )
        return None
    return sorted(set(found))


def _mapping(field: str, value: Any, problems: list[AmtFieldError]) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    problems.append(AmtFieldError(field, value, "a mapping", _CONTEXT_FIX))
    return {}


def _text(field: str, value: Any, problems: list[AmtFieldError]) -> str:
    if not isinstance(value, str) or not value:
        problems.append(AmtFieldError(field, value, "text", _CONTEXT_FIX))
    return str(value)


def _time(field: str, value: Any, problems: list[AmtFieldError]) -> datetime:
    time = value
    if isinstance(value, str):
        try:
            time = datetime.fromisoformat(value)
        except ValueError:
            time = None
    if not isinstance(time, datetime) or time.tzinfo is None:
        problems.append(AmtFieldError(field, value, "a time with its zone", _CONTEXT_FIX))
        return datetime.min.replace(tzinfo=UTC)
    return time


_CONTEXT_FIX = "let Airflow call it: as the callback of a DeadlineAlert"
