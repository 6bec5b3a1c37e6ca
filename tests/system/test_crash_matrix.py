"""The short form of the crash matrix: a few kills, and that a missing adoption would be noticed."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from itertools import count

import pytest

from tests.system.crash_matrix import (
    CELLS,
    Cell,
    Results,
    Round,
    Run,
    World,
    draw_cells,
    draw_run,
    frozen_triggerer,
    measured_patience,
)
from tests.system.postgres import PostgresMissingError, programs

pytestmark = pytest.mark.system

#: Runs of one world have numbers of their own.
_numbers = count(1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A live Airflow on PostgreSQL."""
    try:
        programs()
    except PostgresMissingError as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))
    with World(tmp_path_factory.mktemp("crash"), measured_patience()) as started:
        yield started


def play(world: World, cells: list[Cell], seed: int, *, adoption: bool = True) -> list[Run]:
    draw = random.Random(seed)
    runs = [draw_run(draw, cell, next(_numbers)) for cell in cells]
    for run in runs:
        run.adoption = adoption
    Round(world, draw, runs).play()
    return runs


def violations(runs: list[Run]) -> list[str]:
    return [f"{run.run_id} {run.cell} {run.mode}: {what}" for run in runs for what in run.violations]


def test_a_killed_scheduler_leaves_one_tuning_job_a_task(world: World) -> None:
    cells = [cell for cell in CELLS if cell.victim == "scheduler" and cell.follow == "retry"]
    assert len(cells) == 7

    assert violations(play(world, cells, 1)) == []


def test_killed_workers_leave_one_tuning_job_a_task_that_is_retried_or_cleared(world: World) -> None:
    cells = draw_cells(random.Random(2), Results(None).hits, 14, "worker")
    assert set(cells) == {cell for cell in CELLS if cell.victim == "worker"}

    assert violations(play(world, cells, 2)) == []


def test_a_missing_adoption_is_noticed(world: World) -> None:
    cells = [Cell(point, "worker", "retry") for point in ("unanswered", "answered", "waiting", "returning")]

    runs = play(world, cells, 3, adoption=False)

    assert [run.run_id for run in runs if not run.violations] == []


def test_a_triggerer_that_was_frozen_stops_no_tuning_job(world: World) -> None:
    results = Results(None)

    frozen_triggerer(world, results, runs=3, seconds=20, first=1000)

    assert results.violations == []
