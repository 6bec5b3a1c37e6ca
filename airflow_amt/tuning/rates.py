"""How fast calls may be made: a token bucket that slows down when throttled. Pure: no clock in it."""

from __future__ import annotations

#: How often at most a throttled call halves the rate: calls that were under way together tell one thing.
_HALVED_AT_MOST_EVERY_SECONDS = 1.0

#: In what time the whole rate is back after the last throttled call.
_RECOVERY_SECONDS = 60.0

#: Slowest rate, in calls per second: what is throttled must be tried to be seen to recover.
_SLOWEST = 0.2

#: What rounding may take from a token: whoever waited for it must not have to wait for so much again.
_ROUNDING = 1e-6


class TokenBucket:
    """Calls per second, with a burst; a throttled call halves the rate, which grows back within a minute.

    Additive increase and multiplicative decrease, as TCP does it: clients that share a limit, and do not know
    of each other, come to share it evenly.

    :param rate: calls per second in the long run, above 0.
    :param burst: calls at once, at least 1.
    :param now: seconds of any clock that does not go back.
    """

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._full = rate
        self._slowest = min(rate, _SLOWEST)
        self._burst = burst
        self._tokens = burst
        self._at = now
        # The rate at a moment from which on it grows.
        self._base = rate
        self._base_at = now
        self._halved_at: float | None = None

    def rate(self, now: float) -> float:
        """Return the calls per second that may be made now."""
        grown = (self._full - self._slowest) * max(0.0, now - self._base_at) / _RECOVERY_SECONDS
        return min(self._full, self._base + grown)

    def wait(self, now: float) -> float:
        """Return the seconds until a call may be made; 0 if it may be now."""
        self._fill(now)
        lacking = 1 - self._tokens
        return 0.0 if lacking <= _ROUNDING else lacking / self.rate(now)

    def spend(self, now: float) -> None:
        """Take note of a call that is made now, whether it may be or not.

        However many of them there are, later calls wait no longer than a burst takes to come back.
        """
        self._fill(now)
        self._tokens = min(self._tokens, max(self._tokens - 1, -self._burst))

    def reserve(self, now: float) -> float:
        """Take note of a call, and return the seconds after which it may be made."""
        wait = self.wait(now)
        self._tokens -= 1
        return wait

    def throttled(self, now: float) -> None:
        """Take note of a call that was throttled."""
        self._fill(now)
        # What is saved up was saved up at a rate that is too high.
        self._tokens = min(self._tokens, 0.0)
        if self._halved_at is not None and now - self._halved_at < _HALVED_AT_MOST_EVERY_SECONDS:
            return
        self._base = max(self._slowest, self.rate(now) / 2)
        self._base_at = self._halved_at = now

    def _fill(self, now: float) -> None:
        if now <= self._at:
            return
        # The rate grows evenly: its mean is that of both ends, or less where it is whole before the end.
        mean = (self.rate(self._at) + self.rate(now)) / 2
        self._tokens = min(self._burst, self._tokens + mean * (now - self._at))
        self._at = now
