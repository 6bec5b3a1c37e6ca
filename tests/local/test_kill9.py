"""The short form of the kill -9 campaign; the long one is ``python -m tests.system.kill9``."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.system.kill9 import MIXES, Campaign

pytestmark = pytest.mark.local

#: Mixes that are over within seconds.
QUICK = ("random", "bayes", "target", "patience", "fails", "hopeless", "family", "finite")


def test_five_kills_lose_nothing(tmp_path: Path) -> None:
    """With another seed on each day; to repeat a failure, set KILL9_SEED to the one in its message."""
    seed = int(os.environ.get("KILL9_SEED") or random.SystemRandom().randrange(10**6))
    mixes = [mix for mix in MIXES if mix.name in QUICK]
    campaign = Campaign(tmp_path, seed, most=10, mixes=mixes)

    try:
        campaign.run(5)
    except BaseException as problem:
        problem.add_note(f"KILL9_SEED={seed}")
        raise

    figures = campaign.figures()
    assert sum(figures["kills"].values()) == 5
    assert figures["tuning_jobs"] >= 4
