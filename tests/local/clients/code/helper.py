"""A module beside the training script: it comes along only if all of the source folder was uploaded."""

from __future__ import annotations

import time


def score(rate: float, seconds: float) -> float:
    """Return a value that is best at 0.3."""
    time.sleep(seconds)
    return round(1 - abs(rate - 0.3), 6)
