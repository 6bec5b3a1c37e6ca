"""The embedded AMT's own clock: AMT time, which may run faster or slower than real time."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime

from airflow_amt.exceptions import AmtFieldError

MAX_RATE = 100_000.0


def checked_rate(rate: float) -> float:
    """Return a clock rate, or refuse one that is not a finite number in ``(0, 100 000]``.

    :param rate: AMT seconds per real second.
    :raises AmtFieldError: the rate is out of range.
    """
    if not math.isfinite(rate) or not 0 < rate <= MAX_RATE:
        raise AmtFieldError(
            "clock-rate",
            rate,
            f"AMT seconds per real second, more than 0 and at most {MAX_RATE:g}",
            "use 1 for real time, or 60 to let a minute of AMT pass in a second",
        )
    return rate


def to_datetime(milliseconds: int) -> datetime:
    """Return AMT milliseconds since the epoch as an aware UTC ``datetime``."""
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC)


def to_milliseconds(moment: datetime) -> int:
    """Return an aware ``datetime`` as whole milliseconds since the epoch."""
    return round(moment.timestamp() * 1000)


class AmtClock:
    """Tells AMT time in whole milliseconds since the epoch; never runs backwards.

    It starts at real time, or at the last AMT time that an earlier server noted where that is later.
    With a rate above 1 it runs ahead of real time and stands still while no server runs; with a rate of 1
    it is real time, so a time limit that passes while the server is down has passed.

    :param rate: AMT seconds per real second.
    :param last_seen_ms: latest AMT time that was ever recorded in the state folder, 0 if none.
    """

    def __init__(self, rate: float = 1.0, *, last_seen_ms: int = 0) -> None:
        self.rate = checked_rate(rate)
        # One millisecond later, so that a restart is never at the same moment as what went before.
        self._anchor_ms = max(round(time.time() * 1000), last_seen_ms + 1)
        self._anchor_real = time.monotonic()

    def now_ms(self) -> int:
        """Return the AMT time in milliseconds since the epoch."""
        return self._anchor_ms + math.floor((time.monotonic() - self._anchor_real) * self.rate * 1000)

    def real_seconds_until(self, moment_ms: int) -> float:
        """Return how many real seconds pass until an AMT time; 0 if it has passed.

        Half an AMT millisecond is added, so that a timer set for this long finds the moment reached.
        """
        elapsed = (time.monotonic() - self._anchor_real) * self.rate * 1000
        remaining_ms = moment_ms - self._anchor_ms - elapsed
        return max(0.0, (remaining_ms + 0.5) / 1000 / self.rate) if remaining_ms > 0 else 0.0

    def real_seconds(self, amt_seconds: float) -> float:
        """Return how many real seconds an AMT duration takes."""
        return amt_seconds / self.rate
