"""That the soak's judgement notices what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.system.soak_jobs import Job, Waiter
from tests.system.soak_judge import Found, Series, Task, judge_jobs, judge_series, judge_tasks

NAME = "churn"
FIRST_MODEL = {"type": "first_usable_model"}


def found(status: str, *, best: float | None = None, stopped_by: str | None = None, **more: Any) -> Found:
    created = datetime(2026, 1, 1, tzinfo=UTC)
    description: dict[str, Any] = {
        "HyperParameterTuningJobName": NAME,
        "HyperParameterTuningJobStatus": status,
        "CreationTime": created,
        "HyperParameterTuningEndTime": created + timedelta(seconds=60),
        "ObjectiveStatusCounters": {"Succeeded": 0 if best is None else 1},
    }
    if best is not None:
        description["BestTrainingJob"] = {"FinalHyperParameterTuningJobObjectiveMetric": {"Value": best}}
    tags = {} if stopped_by is None else {"airflow-amt:stopped-by": stopped_by}
    return Found(region="r", description=description, tags=tags, **more)


def waiter(way: str, **more: Any) -> Waiter:
    job = Job(key=NAME, name=NAME, region="r", failing=False, pipe=Path("pipe"))
    made = Waiter(way=way, job=job, dag_id="d", run_id="run", task_id="t", **more)
    job.waiters.append(made)
    return made


def wrong(one: Waiter, state: str | None, job: Found, xcoms: Mapping[str, Any] | None = None) -> bool:
    task = Task(state=state, xcoms=xcoms or {}, log=lambda: "ResourceNotFound")
    return bool(judge_tasks({one: task}, {("r", NAME): job}, {("run", "t"): [job]}).wrong)


def outcome(status: str) -> dict[str, Any]:
    return {"outcome": {"tuning_job_name": NAME, "status": status}}


@pytest.mark.parametrize("way", ["sensor", "operator"])
def test_a_task_must_end_as_its_tuning_job(way: str) -> None:
    one = waiter(way)

    assert not wrong(one, "success", found("Completed"), outcome("Completed"))
    assert not wrong(one, "failed", found("Stopped"), outcome("Stopped"))
    assert wrong(one, "failed", found("Completed"), outcome("Completed"))
    assert wrong(one, "success", found("Stopped"), outcome("Stopped"))
    assert wrong(one, "deferred", found("Completed"))
    assert wrong(one, None, found("Completed"))
    assert wrong(one, "success", found("Completed"), outcome("Stopped"))


def test_a_stop_by_policy_is_a_success_with_a_model_only() -> None:
    one = waiter("guarded")

    assert not wrong(one, "success", found("Stopped", best=0.6, stopped_by="policy"), outcome("Stopped"))
    assert wrong(one, "success", found("Stopped", stopped_by="policy"), outcome("Stopped"))


def test_a_condition_needs_evidence() -> None:
    one = waiter("light", condition=FIRST_MODEL, on_end="fail")
    snapshot = {
        "tuning_job_name": NAME,
        "status": "InProgress",
        "fired": "condition",
        "condition": {"met": "yes"},
        "best_training_job": {"objective": 0.3},
    }

    assert not wrong(one, "success", found("Stopped", best=0.3), {"progress": snapshot})
    assert wrong(one, "success", found("Stopped", best=0.3), {})
    assert wrong(
        one, "success", found("Stopped", best=0.3), {"progress": {**snapshot, "best_training_job": None}}
    )
    assert wrong(one, "success", found("Stopped"), {"progress": snapshot})
    assert not wrong(
        one, "failed", found("Stopped"), {"progress": {**snapshot, "fired": "end", "status": "Stopped"}}
    )


def test_a_deleted_tuning_job_fails_its_task_with_the_error_of_aws() -> None:
    one = waiter("sensor")
    deleted = found("Stopped", deleted=True)

    assert not wrong(one, "failed", deleted)
    assert wrong(one, "success", deleted)
    task = Task(state="failed", xcoms={}, log=lambda: "something else")
    assert judge_tasks({one: task}, {("r", NAME): deleted}, {}).wrong


def test_a_person_has_the_last_word_and_the_tuning_job_ends_with_its_task() -> None:
    stopped = found("Stopped", stopped_by="on_kill")

    assert not wrong(waiter("operator", marked="success"), "success", stopped)
    assert wrong(waiter("operator", marked="success"), "failed", stopped)
    assert wrong(waiter("operator", marked="failed"), "failed", found("Stopped"))
    assert wrong(waiter("operator", marked="failed"), "failed", found("InProgress"))
    left = waiter("leaving", marked="failed")
    left.job.left_alone = True
    assert not wrong(left, "failed", found("Stopped"))
    left.job.left_alone = False
    assert wrong(left, "failed", found("Stopped"))


@pytest.mark.parametrize(
    ("job", "is_wrong"),
    [
        (found("Completed"), False),
        (found("InProgress"), True),
        (found("Failed"), True),
        (found("Stopped"), True),
        (found("Stopped", stopped_by="on_kill"), True),
        (found("Stopped", stopped_by="operator"), True),
        (found("Stopped", stopped_by="policy", best=0.6), True),
    ],
    ids=str,
)
def test_nothing_runs_on_or_is_stopped_by_itself(job: Found, is_wrong: bool) -> None:
    owner = waiter("operator").job

    assert bool(judge_jobs([owner], {("r", NAME): job}, {NAME: owner})) is is_wrong
    assert judge_jobs([], {("r", NAME): job}, {})


@pytest.mark.parametrize(
    ("megabytes", "more_triggers", "is_wrong"),
    [(0.0, 0, False), (0.05, 0, False), (1.0, 0, True), (0.5, 100, False), (2.0, 100, True)],
)
def test_memory_must_be_flat(megabytes: float, more_triggers: int, is_wrong: bool) -> None:
    series = Series(name="triggerer")
    for number in range(101):
        series.samples.append(
            {
                "at": number * 10.0,
                # What the supervisor loads when it is first asked for something.
                "rss_mb": 300 + number * megabytes + (80 if number > 40 else 0),
                "runner_mb": 200 + number * megabytes,
                "threads": 10.0 + (25 if number > 40 else 0),
                "runner_threads": 5.0,
                "descriptors": 50.0,
                "sockets": 2.0,
                "triggers": 100.0 + (more_triggers if number > 60 else 0),
            }
        )

    assert bool(judge_series(series.figures(since=0, until=1e6, at_least=300))) is is_wrong
    assert judge_series(series.figures(since=0, until=200, at_least=300)) == []
