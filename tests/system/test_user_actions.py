"""The rows of the table of user actions that matter most, on the installed Airflow.

All rows on all supported versions: `python -m tests.system.user_actions`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import pytest

from airflow_amt.local import RunningServer
from tests.system.cluster import AirflowCluster
from tests.system.user_actions import Cell, Result, Stage, play_all

pytestmark = pytest.mark.system

#: What people do most, both limits, and the signal that is no kill; rows that leave the triggerer alone.
CELLS = (
    Cell("mark_failed", "sync"),
    Cell("mark_failed", "deferred"),
    Cell("mark_success", "deferred"),
    Cell("clear", "sync"),
    Cell("clear", "deferred"),
    Cell("delete_run", "deferred"),
    Cell("execution_timeout", "sync"),
    Cell("execution_timeout", "deferred"),
    Cell("fail_fast", "deferred"),
    Cell("term_task", "sync"),
    Cell("term_task_retry", "sync"),
    Cell("teardown_failed", "deferred"),
    Cell("leave", "deferred"),
)


@pytest.fixture(scope="module")
def results(
    cluster: AirflowCluster, amt: RunningServer, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[Cell, Result]:
    """Try all of them at the same time."""

    def say(line: str) -> None:
        sys.stderr.write(line + "\n")

    stage = Stage(cluster, amt, tmp_path_factory.mktemp("user-actions"))
    return {Cell(one.row, one.mode): one for one in play_all(stage, CELLS, say)}


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.row}-{cell.mode}")
def test_the_table_holds(results: Mapping[Cell, Result], cell: Cell) -> None:
    problem = results[cell].problem
    assert problem is None, problem
