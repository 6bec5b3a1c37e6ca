"""The short form of ``python -m tests.system.policy_races``: each race of the stop policies, twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.policy_races import RACES, campaign

pytestmark = pytest.mark.local


def test_each_race_ends_right_twice(tmp_path: Path) -> None:
    # By this seed three of the first five calls that can meet a fault do.
    figures, wrong = campaign(tmp_path, times=2, seed=11)
    assert wrong == []
    assert {name: found["right"] for name, found in figures["races"].items()} == dict.fromkeys(RACES, 2)
