"""The short form of ``python -m tests.system.faults``: half of all calls go wrong, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.faults import SHARE_OF_FAULTS, campaign

pytestmark = pytest.mark.local


def test_outcomes_and_calls_with_half_of_all_calls_faulty(tmp_path: Path) -> None:
    figures, wrong = campaign(tmp_path, jobs=10, seed=1, least_calls=60)
    assert wrong == []
    # Else the faults were not there.
    assert abs(figures["share_of_faults"] - SHARE_OF_FAULTS) < 0.2
    assert figures["calls_with_faults"] > figures["calls_without_faults"]
