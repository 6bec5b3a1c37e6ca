"""The short form of the soak: 30 tasks, 90 seconds of actions, a triggerer that is killed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.system.crash_matrix import measured_patience
from tests.system.postgres import PostgresMissingError, programs
from tests.system.soak import Size, soak

# Not in CI yet: how long it takes, and that it holds ten times of ten, is not measured.
pytestmark = [pytest.mark.system, pytest.mark.long]


def test_every_task_ends_as_its_tuning_job_asks_for_whatever_happens_meanwhile(tmp_path: Path) -> None:
    try:
        programs()
    except PostgresMissingError as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))

    def say(line: str) -> None:
        sys.stderr.write(line + "\n")

    size = Size.of(tasks=30, minutes=1.5, triggerers=2)
    figures = soak(tmp_path / "soak", size, 1, measured_patience(), say)

    assert figures["wrong"] == []
    assert figures["tasks"] > size.tasks
    assert figures["done"]["kill"] >= 1
