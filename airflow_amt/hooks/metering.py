"""Keeping the calls of a process to AWS below a rate, per connection and region.

It works on the events of botocore's clients, so that each attempt counts, also those that botocore repeats
by itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from airflow_amt.exceptions import AmtThrottledError
from airflow_amt.hooks.errors import aws_error
from airflow_amt.tuning.rates import TokenBucket

if TYPE_CHECKING:
    from airflow_amt.hooks.tuning import AmtHook

#: These are not kept waiting, they only count: a stop saves money, and its record belongs to it.
_URGENT = ("StopHyperParameterTuningJob", "AddTags", "DeleteTags", "CreateHyperParameterTuningJob")


class Meter:
    """Counts the calls of clients, and keeps their reads below a rate.

    Safe in several threads. A call that has to wait waits in its own thread.

    :param rate: calls per second, above 0.
    :param burst: calls at once, at least 1.
    :param clock: seconds that do not go back.
    :param sleep: waits.
    """

    def __init__(
        self,
        rate: float,
        burst: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._bucket = TokenBucket(rate, burst, clock())
        self.calls = 0
        self.throttles = 0

    def attach(self, client: Any) -> None:
        """Count the calls of a client of boto3, once however often this is called."""
        client.meta.events.register("before-send.sagemaker", self._on_send, unique_id=f"amt-meter-{id(self)}")
        client.meta.events.register(
            "needs-retry.sagemaker", self._on_answer, unique_id=f"amt-meter-answer-{id(self)}"
        )

    def wait(self) -> float:
        """Return the seconds until a read can be made without waiting."""
        with self._lock:
            return self._bucket.wait(self._clock())

    def throttled(self) -> None:
        """Slow down."""
        with self._lock:
            self._bucket.throttled(self._clock())

    @property
    def rate(self) -> float:
        """Calls per second that are made at most now."""
        with self._lock:
            return self._bucket.rate(self._clock())

    def _on_send(self, event_name: str = "", **_: Any) -> None:
        urgent = event_name.rpartition(".")[2] in _URGENT
        with self._lock:
            self.calls += 1
            if urgent:
                self._bucket.spend(self._clock())
                return
            wait = self._bucket.reserve(self._clock())
        if wait > 0:
            self._sleep(wait)

    def _on_answer(self, response: Any = None, **_: Any) -> None:
        if response is None:
            return
        error = (response[1] or {}).get("Error") or {}
        found = aws_error("", str(error.get("Code") or ""), str(error.get("Message") or ""))
        if isinstance(found, AmtThrottledError):
            with self._lock:
                self.throttles += 1
            self.throttled()


_meters: WeakValueDictionary[tuple[str | None, str | None], Meter] = WeakValueDictionary()
_meters_lock = threading.Lock()


def meter_of(hook: AmtHook, rate: float, burst: float) -> Meter:
    """Return what this process meters a connection and region by, attached to the hook's client.

    :param rate: as for :class:`Meter`, if there is none yet.
    :param burst: the same.
    """
    client = hook.conn
    key = (hook.aws_conn_id, client.meta.region_name)
    with _meters_lock:
        meter = _meters.get(key)
        if meter is None:
            meter = _meters[key] = Meter(rate, burst)
    meter.attach(client)
    return meter
