"""What the soak's tuning jobs and tasks are like; shared by its DAGs, its command and its judgement."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.local.support import create_request

TRAINER = Path(__file__).parent / "trainers" / "soak.sh"
IMAGE = "soak:1"

#: Objectives of the training jobs, one after the other: the last one ends the tuning job.
OBJECTIVES = (0.3, 0.6, 0.95)
TARGET = 0.9
#: Reached by the second training job.
POLICY_TARGET = 0.5
GOOD = " ".join(f"await:{one}" for one in OBJECTIVES)
#: AMT gives up after five failures.
FAILING = "await:fail fail"

#: Tasks of a DAG run: of the first ones, and of those that come later.
SIZES = (12, 3)
ON_ENDS = ("succeed", "fail", "skip")

#: Ways of waiting for a tuning job that somebody else has created.
SENSORS = ("sensor", "guarded_sensor", "progress", "light", "mapped")
OPERATORS = ("operator", "leaving", "guarded")
CONDITIONAL = ("progress", "light")
GUARDED = ("guarded", "guarded_sensor")
STOPS_ON_KILL = ("operator", "guarded")

OVER = frozenset({"Completed", "Failed", "Stopped"})


def request(name: str | None = None, *, sequence: str, release: str) -> dict[str, Any]:
    """Return a create request; without a name, one for the operator, which derives it.

    :param sequence: what the training jobs come to (`trainers/soak.sh`).
    :param release: the pipe that they wait at.
    """
    made = create_request(
        name, image=IMAGE, most=50, target=TARGET, static={"sequence": sequence, "release": release}
    )
    if name is None:
        del made["HyperParameterTuningJobName"]
    return made


@dataclass(kw_only=True, eq=False)
class Job:
    """A tuning job, or all the tuning jobs of one operator task, which share pipe and plan.

    :param key: names it in the soak.
    :param name: its name, once it is known.
    :param failing: whether its training jobs fail.
    :param pipe: where its training jobs wait.
    """

    key: str
    region: str
    failing: bool
    pipe: Path
    name: str | None = None
    waiters: list[Waiter] = field(default_factory=list)
    #: Training jobs that were let go.
    released: int = 0
    #: It is to end by itself: all its training jobs are let go.
    ending: bool = False
    #: Who was asked to stop it: `soak` by boto3, `operator` by a task.
    stops: set[str] = field(default_factory=set)
    #: It is to be deleted, once it is over.
    deleting: bool = False
    deleted: bool = False
    #: It is to be looked at then, whether it was left alone.
    look_at: float | None = None
    left_alone: bool | None = None
    over: bool = False

    @property
    def sequence(self) -> str:
        """What its training jobs come to."""
        return FAILING if self.failing else GOOD

    @property
    def steps(self) -> int:
        """How many training jobs have to be let go until it ends by itself."""
        return 1 if self.failing else len(OBJECTIVES)

    @property
    def is_let_be(self) -> bool:
        """Whether nobody has done anything yet that ends it."""
        return not (self.ending or self.stops or self.deleting or self.over)

    def release(self) -> bool:
        """Let a training job go; `False` if none waits just now."""
        try:
            descriptor = os.open(self.pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return False
        os.close(descriptor)
        self.released += 1
        return True


@dataclass(kw_only=True, eq=False)
class Waiter:
    """A task that waits for a tuning job.

    :param way: how it waits; `stop` for one that stops it.
    :param condition: of a progress sensor, what it waits for.
    :param on_end: of a progress sensor, what becomes of it if the job ends before.
    """

    way: str
    job: Job
    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1
    condition: Mapping[str, Any] | None = None
    on_end: str | None = None
    #: What a person marked it as.
    marked: str | None = None
    #: When, by the monotonic clock; 0 for never.
    killed_at: float = 0.0
    #: How often a person cleared it.
    cleared: int = 0
    state: str | None = None
    #: Since when it has been deferred with a trigger that a triggerer has taken; monotonic.
    deferred_since: float | None = None

    @property
    def key(self) -> tuple[str, str, str, int]:
        """Its key in Airflow's tables."""
        return self.dag_id, self.run_id, self.task_id, self.map_index

    @property
    def label(self) -> str:
        """What it is, for people."""
        index = f"[{self.map_index}]" if self.map_index >= 0 else ""
        about = f" {dict(self.condition)} on_end={self.on_end}" if self.condition else ""
        return f"{self.dag_id}/{self.run_id}/{self.task_id}{index}{about} ({self.job.name or self.job.key})"
