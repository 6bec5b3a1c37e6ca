"""What the soak's tasks and tuning jobs must have come to, by what the server and Airflow's database say."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from tests.system.soak_jobs import (
    CONDITIONAL,
    GUARDED,
    OBJECTIVES,
    OPERATORS,
    OVER,
    POLICY_TARGET,
    STOPS_ON_KILL,
    TARGET,
    Job,
    Waiter,
)

STOPPED_BY = "airflow-amt:stopped-by"
STOPPED_FOR = "airflow-amt:stopped-for"
#: Seconds by which two readings of a runtime may differ.
_RUNTIME_TOLERANCE = 2.0


@dataclass(frozen=True, kw_only=True)
class Found:
    """A tuning job as the server has it, or had it before it was deleted."""

    region: str
    description: Mapping[str, Any]
    tags: Mapping[str, str]
    deleted: bool = False

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.description["HyperParameterTuningJobName"])

    @property
    def status(self) -> str:
        """Its status."""
        return str(self.description["HyperParameterTuningJobStatus"])

    @property
    def stopped_by(self) -> str | None:
        """Who of the provider stopped it."""
        return self.tags.get(STOPPED_BY)

    @property
    def best(self) -> float | None:
        """Its best objective."""
        best = self.description.get("BestTrainingJob") or {}
        metric = best.get("FinalHyperParameterTuningJobObjectiveMetric") or {}
        return metric.get("Value")

    @property
    def with_objective(self) -> int:
        """How many of its training jobs have an objective."""
        return int(self.description["ObjectiveStatusCounters"]["Succeeded"])

    @property
    def runtime(self) -> float:
        """Seconds from its creation to its end."""
        end = self.description.get("HyperParameterTuningEndTime") or self.description["LastModifiedTime"]
        return float((end - self.description["CreationTime"]).total_seconds())

    def __str__(self) -> str:
        by = f" by {self.stopped_by}" if self.stopped_by else ""
        return f"{self.name} in {self.region} {self.status}{by}{', deleted' if self.deleted else ''}"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task as Airflow has it at the end.

    :param xcoms: by key.
    :param log: its log, when it is asked for.
    """

    state: str | None
    xcoms: Mapping[str, Any]
    log: Callable[[], str]


@dataclass(kw_only=True)
class Verdict:
    """What a judgement came to.

    :param wrong: what must not be.
    :param outcomes: how many tasks came to what: by way, outcome and state.
    """

    wrong: list[str] = field(default_factory=list)
    outcomes: dict[str, int] = field(default_factory=dict)

    def count(self, what: str) -> None:
        """Count a task that came to this."""
        self.outcomes[what] = self.outcomes.get(what, 0) + 1


class _WrongError(Exception):
    """Something is not as it must be."""


def _must(condition: object, otherwise: str) -> None:
    if not condition:
        raise _WrongError(otherwise)


def met(condition: Mapping[str, Any], found: Found) -> bool | None:
    """Whether a condition is met by a description; `None` if it is too close to tell."""
    kind = condition["type"]
    if kind == "first_usable_model":
        return found.best is not None
    if kind == "target_reached":
        return found.best is not None and found.best >= float(condition["value"])
    if kind == "training_jobs_done":
        return found.with_objective >= int(condition["count"])
    if kind == "runtime_above":
        limit = float(condition["runtime_seconds"])
        if abs(found.runtime - limit) <= _RUNTIME_TOLERANCE:
            return None
        return found.runtime > limit
    raise ValueError(f"no such condition in the soak: {condition}")


def holds(condition: Mapping[str, Any], snapshot: Mapping[str, Any]) -> bool:
    """Whether a condition is met by the snapshot that a task handed on."""
    best = (snapshot["best_training_job"] or {}).get("objective")
    kind = condition["type"]
    if kind == "first_usable_model":
        return best in OBJECTIVES
    if kind == "target_reached":
        return best in OBJECTIVES and best >= condition["value"]
    if kind == "training_jobs_done":
        return bool(snapshot["objective_counters"]["Succeeded"] >= condition["count"])
    if kind == "runtime_above":
        return bool(snapshot["runtime_seconds"] >= condition["runtime_seconds"] - _RUNTIME_TOLERANCE)
    raise ValueError(f"no such condition in the soak: {condition}")


def judge_tasks(
    tasks: Mapping[Waiter, Task],
    jobs: Mapping[tuple[str, str], Found],
    of_tasks: Mapping[tuple[str, str], Sequence[Found]],
) -> Verdict:
    """Judge all tasks.

    :param tasks: what they came to.
    :param jobs: all tuning jobs by region and name.
    :param of_tasks: the tuning jobs that operators created, oldest first, by run id and task id.
    """
    verdict = Verdict()
    for waiter, task in tasks.items():
        try:
            if waiter.way in OPERATORS:
                own = of_tasks.get((waiter.run_id, waiter.task_id), ())
                _judge_own(waiter, own)
                found = own[-1]
            else:
                found = _watched(waiter.job, jobs)
            what = _judge_task(waiter, task, found)
        except _WrongError as wrong:
            verdict.wrong.append(f"{waiter.label}: {wrong}; its log ends:\n{task.log()[-1500:]}")
            what = "WRONG"
        verdict.count(f"{waiter.way}: {what}")
    return verdict


def _watched(job: Job, jobs: Mapping[tuple[str, str], Found]) -> Found:
    found = jobs.get((job.region, job.name or ""))
    if found is None:
        raise _WrongError(f"the server has no tuning job {job.name} in {job.region}")
    return found


def _judge_own(waiter: Waiter, own: Sequence[Found]) -> None:
    """An operator has one job; one more for each time that it was cleared, the first ones over by then."""
    _must(own, "it has no tuning job")
    names = [str(one) for one in own]
    _must(len(own) <= 1 + waiter.cleared, f"cleared {waiter.cleared} times, it has {names}")
    for before in own[:-1]:
        _must(
            before.status == "Stopped" and before.stopped_by == "on_kill",
            f"cleared, it left {before} behind: {names}",
        )


def _judge_task(waiter: Waiter, task: Task, found: Found) -> str:
    """Judge a task; return what it came to."""
    if waiter.marked is not None:
        _must(task.state == waiter.marked, f"marked {waiter.marked}, it is {task.state}")
        _judge_killed(waiter, found)
        return f"marked {waiter.marked}"
    if found.deleted and task.state == "failed" and _outcome_of(waiter, task) is None:
        _must("ResourceNotFound" in task.log(), f"{found}: it failed without AWS's error")
        return "deleted, failed"
    expected = _expected(waiter, task, found)
    _must(
        task.state in expected,
        f"{found}, best {found.best}: the task is {task.state}, not {' or '.join(sorted(expected))}",
    )
    if waiter.way in CONDITIONAL:
        return _judge_evidence(waiter, task, found)
    if waiter.way == "stop":
        result = task.xcoms.get("return_value") or {}
        _must(
            (result.get("tuning_job_name"), result.get("status")) == (found.name, found.status),
            f"{found}: it returned {result}",
        )
        return f"{found.status}, {task.state}"
    outcome = _outcome_of(waiter, task) or {}
    _must(
        (outcome.get("tuning_job_name"), outcome.get("status")) == (found.name, found.status),
        f"{found}: its outcome is {outcome.get('tuning_job_name')} {outcome.get('status')}",
    )
    by = f" by {found.stopped_by}" if found.stopped_by else ""
    return f"{found.status}{by}, {task.state}"


def _outcome_of(waiter: Waiter, task: Task) -> Mapping[str, Any] | None:
    """Return what the task said about the job's end, or its progress; `None` for nothing."""
    value = task.xcoms.get("progress" if waiter.way in CONDITIONAL else "outcome")
    return value if isinstance(value, Mapping) else None


def _judge_killed(waiter: Waiter, found: Found) -> None:
    if waiter.way in STOPS_ON_KILL:
        _must(
            found.status == "Stopped" and found.stopped_by == "on_kill",
            f"a person marked it {waiter.marked}, and its job is {found}",
        )
    elif len(waiter.job.waiters) == 1:
        _must(
            waiter.job.left_alone is not False,
            f"a person marked it {waiter.marked}, and its job was not left alone: {found}",
        )


def _expected(waiter: Waiter, task: Task, found: Found) -> set[str]:
    """Return the states that the task may have, by the documentation of its way."""
    if waiter.way == "stop":
        return {"success"}
    if waiter.way in CONDITIONAL and waiter.condition is not None:
        is_met = met(waiter.condition, found)
        if is_met is None:
            # By what the task itself saw.
            snapshot = _outcome_of(waiter, task) or {}
            is_met = snapshot.get("fired") == "condition"
        if is_met:
            return {"success"}
        if waiter.on_end == "succeed":
            return {"failed" if found.status == "Failed" else "success"}
        return {"failed" if waiter.on_end == "fail" else "skipped"}
    if found.status == "Completed":
        return {"success"}
    if found.status == "Stopped":
        if found.stopped_by == "policy":
            return {"failed" if found.best is None else "success"}
        if found.stopped_by is None and found.best is not None and found.best >= TARGET:
            # Stopped in the moment in which its target was reached: the criterion is named.
            return {"success"}
        return {"failed"}
    return {"failed"}


def _judge_evidence(waiter: Waiter, task: Task, found: Found) -> str:
    snapshot = _outcome_of(waiter, task)
    if snapshot is None or waiter.condition is None:
        raise _WrongError(f"{found}: it is {task.state}, and handed no progress on")
    _must(snapshot["tuning_job_name"] == found.name, f"its progress is that of {snapshot['tuning_job_name']}")
    fired = snapshot["fired"]
    if fired == "condition":
        _must(
            task.state == "success" and snapshot["condition"]["met"] == "yes",
            f"it is {task.state} with {snapshot['condition']}",
        )
        _must(holds(waiter.condition, snapshot), f"the condition is not met by what it handed on: {snapshot}")
        return "condition met, success"
    _must(
        snapshot["status"] == found.status and met(waiter.condition, found) is not True,
        f"{found}: its progress says {snapshot['status']}, {snapshot['condition']}",
    )
    return f"{found.status}, on_end={waiter.on_end}, {task.state}"


def judge_jobs(
    jobs: Sequence[Job], found: Mapping[tuple[str, str], Found], owners: Mapping[str, Job]
) -> list[str]:
    """Judge all tuning jobs: they are over, and whoever stopped them was asked to.

    :param owners: the soak's jobs by the names of the server's.
    """
    wrong = []
    for one in found.values():
        job = owners.get(one.name)
        if job is None:
            wrong.append(f"nobody asked for {one}")
            continue
        ways = {waiter.way for waiter in job.waiters}
        killed = any(waiter.marked or waiter.cleared for waiter in job.waiters)
        if one.status not in OVER:
            wrong.append(f"{one} is left running")
        elif one.status == "Stopped" and one.stopped_by == "on_kill":
            if not (killed and ways & set(STOPS_ON_KILL)):
                wrong.append(f"{one}, and nobody ended its task")
        elif one.status == "Stopped" and one.stopped_by == "policy":
            if not ways & set(GUARDED) or (one.best or 0) < POLICY_TARGET:
                wrong.append(f"{one}, with a best objective of {one.best} and tasks {sorted(ways)}")
        elif one.status == "Stopped" and one.stopped_by == "operator":
            if "operator" not in job.stops:
                wrong.append(f"{one}, and no task was to stop it")
        elif one.status == "Stopped" and "soak" not in job.stops:
            wrong.append(f"{one}, and nobody stopped it")
        elif one.status == "Failed" and not job.failing:
            wrong.append(f"{one}: {one.description.get('FailureReason')}")
    wrong += [f"{job.name or job.key} was not left alone" for job in jobs if job.left_alone is False]
    return wrong


# --- what a triggerer consumes ---------------------------------------------------------------------

#: What is measured of a triggerer: the share and the amount by which it may grow, and the amount for each
#: trigger more (Airflow has a log file and a coroutine for each). The runner is the process in which triggers
#: run. Its supervisor builds Airflow's API when a trigger first asks for something, as for a task's state
#: when it is killed: some 80 MB and 25 threads at once, seen with Airflow 3.3.2.
MEASURES: Mapping[str, tuple[float, float, float]] = {
    "runner_mb": (0.05, 10.0, 0.2),
    "runner_threads": (0.10, 4.0, 0.0),
    "rss_mb": (0.05, 110.0, 0.5),
    "threads": (0.10, 40.0, 0.0),
    "descriptors": (0.10, 16.0, 2.0),
    "sockets": (0.10, 8.0, 1.0),
}


@dataclass(kw_only=True)
class Series:
    """Samples of one triggerer from its start to its end.

    :param ended: how it ended; `None` at the end of the soak.
    """

    name: str
    samples: list[dict[str, float]] = field(default_factory=list)
    ended: str | None = None

    @property
    def began(self) -> float:
        """When it was first looked at."""
        return self.samples[0]["at"] if self.samples else 0.0

    def figures(self, *, since: float, until: float, at_least: float) -> dict[str, Any]:
        """Return the medians of the second and the last quarter of the samples of a time.

        :param at_least: seconds that samples must be apart to tell anything.
        """
        inside = [one for one in self.samples if since <= one["at"] <= until]
        seconds = inside[-1]["at"] - inside[0]["at"] if inside else 0.0
        figures: dict[str, Any] = {
            "triggerer": self.name,
            "ended": self.ended,
            "seconds": round(seconds),
            "samples": len(inside),
        }
        if seconds < at_least or len(inside) < 8:
            return figures
        # For people: some thirty of them.
        for name in ("rss_mb", "runner_mb"):
            figures[f"{name}_over_time"] = [round(one[name]) for one in inside[:: max(1, len(inside) // 30)]]
        quarter = len(inside) // 4
        second, last = inside[quarter : 2 * quarter], inside[-quarter:]
        for name in (*MEASURES, "triggers"):
            figures[name] = [round(median(one[name] for one in part), 1) for part in (second, last)]
            figures[f"{name}_most"] = round(max(one[name] for one in inside), 1)
        return figures


def judge_series(figures: Mapping[str, Any], slack: float = 1.0) -> list[str]:
    """Say what of a triggerer is not flat; nothing of one that was watched too shortly.

    :param slack: factor of the amounts by which it may grow.
    """
    if "triggers" not in figures:
        return []
    before, after = figures["triggers"]
    # One that has taken over what another one watched consumes more.
    more = max(0.0, after - before)
    wrong = []
    for name, (share, amount, each) in MEASURES.items():
        second, last = figures[name]
        most = second * (1 + share) + amount * slack + more * each
        if last > most:
            wrong.append(
                f"{figures['triggerer']}: {name} grew from {second} to {last} with {before:g} and "
                f"{after:g} triggers ({figures['seconds']} s)"
            )
    return wrong


def decoded(value: Any) -> Any:
    """Return an XCom's value: Airflow stores JSON as text within JSON."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
