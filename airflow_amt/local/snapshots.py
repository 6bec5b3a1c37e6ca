"""The state as it was: what reads are answered from when they are to be stale (see ``faults``)."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from airflow_amt.local.store import Snapshot, Store

#: So many snapshots are taken in the time that the oldest one lasts: reads are a tenth too old at most.
_SNAPSHOTS = 10


class Snapshots:
    """Keeps snapshots of a store for a while; needs a running event loop.

    :param store: the present state.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._taken: deque[tuple[float, Snapshot]] = deque()
        self._longest = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def keep(self, longest: float) -> None:
        """Begin anew, with a first snapshot now.

        :param longest: greatest age in real seconds that will be asked for; 0 keeps none.
        """
        self.close()
        self._longest = longest
        if longest:
            self._take()

    def aged(self, seconds: float) -> Snapshot:
        """Return the youngest snapshot that is so old, or the oldest one if none is yet.

        :raises LookupError: none is kept.
        """
        if not self._taken:
            raise LookupError("no snapshots are kept")
        latest = time.monotonic() - seconds
        found = self._taken[0][1]
        for taken_at, snapshot in self._taken:
            if taken_at > latest:
                break
            found = snapshot
        return found

    def close(self) -> None:
        """Drop all snapshots, and take no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._taken:
            self._taken.pop()[1].close()

    def _take(self) -> None:
        now = time.monotonic()
        self._timer = asyncio.get_running_loop().call_later(self._longest / _SNAPSHOTS, self._take)
        self._taken.append((now, Snapshot(self._store)))
        # The second one is old enough for all that is asked: nobody needs the first any more.
        while len(self._taken) > 1 and self._taken[1][0] <= now - self._longest:
            self._taken.popleft()[1].close()
