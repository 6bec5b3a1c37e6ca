"""The crash matrix's own judgement and choices: it sees what must not be."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.system.crash_matrix import (
    CELLS,
    FOLLOWS,
    POINTS,
    VICTIMS,
    Cell,
    Results,
    Run,
    ViolationError,
    draw_cells,
    draw_run,
    judge_jobs,
)

START = datetime(2026, 1, 1, tzinfo=UTC)


def a_run(follow: str = "retry", **changes: Any) -> Run:
    run = draw_run(random.Random(1), Cell("answered", "worker", follow), 1)
    for key, value in changes.items():
        assert hasattr(run, key)
        setattr(run, key, value)
    return run


def a_job(
    name: str, began: float, ended: float | None, status: str = "Completed", **tags: str
) -> dict[str, Any]:
    times = {"CreationTime": START + timedelta(seconds=began)}
    if ended is not None:
        times["HyperParameterTuningEndTime"] = START + timedelta(seconds=ended)
    return {
        "HyperParameterTuningJobName": name,
        "HyperParameterTuningJobStatus": status,
        "tags": {f"airflow-amt:{key}": value for key, value in tags.items()},
        **times,
    }


def a_call(operation: str, job: str, at: float = 0.0, *, carried_out: bool = True) -> dict[str, Any]:
    return {
        "operation": f"{operation}HyperParameterTuningJob",
        "tuning_job": job,
        "monotonic": at,
        "carried_out": carried_out,
    }


def judged(run: Run, jobs: Sequence[dict[str, Any]], *calls: dict[str, Any]) -> str:
    created = [a_call("Create", job["HyperParameterTuningJobName"]) for job in jobs]
    try:
        judge_jobs(run, jobs, [*created, *calls])
    except ViolationError as violation:
        return str(violation)
    return ""


def test_one_tuning_job_is_right() -> None:
    refused = a_call("Create", "one", carried_out=False)

    assert judged(a_run(), [a_job("one", 0, 9)], refused) == ""
    assert judged(a_run("clear", cleared_at=5.0, cleared_state="failed"), [a_job("one", 0, 9)]) == ""


def test_two_at_once_are_seen() -> None:
    run = a_run("clear", cleared_at=5.0, cleared_state="success")
    first = a_job("one", 0, 9, delivered="now")

    assert "active at once" in judged(run, [first, a_job("two", 8.999, 20)])
    assert judged(run, [first, a_job("two", 9, 20)]) == ""


def test_a_second_one_is_seen_though_the_first_was_over() -> None:
    assert "nobody cleared it" in judged(a_run(), [a_job("one", 0, 9), a_job("two", 9, 20)])


@pytest.mark.parametrize("state", ["success", "failed", "running", "deferred"])
def test_after_a_clear_a_second_one_needs_a_delivery_or_a_stop(state: str) -> None:
    run = a_run("clear", cleared_at=5.0, cleared_state=state)

    assert "it was cleared when" in judged(run, [a_job("one", 0, 9), a_job("two", 9, 20)])


def test_a_stop_counts_only_for_a_clear_of_a_living_task_and_after_it() -> None:
    jobs = [a_job("one", 0, 9, "Stopped"), a_job("two", 9, 20)]
    alive = a_run("clear", cleared_at=5.0, cleared_state="running")
    ended = a_run("clear", cleared_at=5.0, cleared_state="failed")

    assert judged(alive, jobs, a_call("Stop", "one", 6.0)) == ""
    assert "it was cleared when" in judged(alive, jobs, a_call("Stop", "one", 4.0))
    assert "it was cleared when" in judged(alive, jobs, a_call("Stop", "one", 6.0, carried_out=False))
    assert "it was cleared when" in judged(ended, jobs, a_call("Stop", "one", 6.0))


def test_a_delivered_task_that_was_cleared_must_have_another() -> None:
    run = a_run("clear", cleared_at=5.0, cleared_state="success", delivered_before=True)

    assert "one tuning job only" in judged(run, [a_job("one", 0, 9, delivered="now")])


def test_three_are_too_many() -> None:
    run = a_run("clear", cleared_at=5.0, cleared_state="success")
    jobs = [a_job(name, 10 * at, 10 * at + 5, delivered="now") for at, name in enumerate("abc")]

    assert "one clear" in judged(run, jobs)


def test_one_that_is_not_over_and_one_that_nobody_created_are_seen() -> None:
    assert "is InProgress at the end" in judged(a_run(), [a_job("one", 0, None, "InProgress")])
    assert "has no tuning job" in judged(a_run(), [])
    with pytest.raises(ViolationError, match="calls created"):
        judge_jobs(a_run(), [a_job("one", 0, 9)], [])


def test_every_cell_is_drawn_before_any_is_drawn_again() -> None:
    draw, hits = random.Random(1), Counter[Cell]()
    assert len(CELLS) == len(POINTS) * len(VICTIMS) * len(FOLLOWS) == 42
    for _ in range(2 * 5):
        for victim in VICTIMS:
            hits.update(draw_cells(draw, hits, 7, victim))

    assert set(hits) == set(CELLS)
    assert set(hits.values()) == {5}


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_run_fits_its_cell(cell: Cell) -> None:
    draw = random.Random(1)
    runs = [draw_run(draw, cell, number) for number in range(1, 300)]

    assert len({run.best for run in runs}) == len(runs)
    modes = {run.mode for run in runs}
    if cell.point == "resumed" or cell.victim == "triggerer":
        assert modes == {"deferred"}
    elif (cell.point, cell.victim) == ("waiting", "worker"):
        assert modes == {"sync"}
    else:
        assert modes == {"sync", "deferred"}
    assert cell.follow == "clear" or {run.retries for run in runs} == {3}
    assert {run.reason for run in runs} == {"max_training_jobs", "target_reached"}


def test_results_go_on_after_half_a_line(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    results = Results(file)
    results.add([a_run(), a_run(violations=["two at once"], number=2)])
    with file.open("a") as half:
        half.write('{"kind": "run", "cell"')

    again = Results(file)

    assert again.hits == Counter({Cell("answered", "worker", "retry"): 2})
    assert again.next_number == 3
    assert len(again.violations) == 1
    assert "two at once" in again.violations[0]
    again.add([a_run(number=3)])
    assert len(Results(file).runs) == 3
