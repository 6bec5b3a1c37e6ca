"""Bearing transient errors one call at a time.

What reads several things, as :meth:`airflow_amt.hooks.tuning.AmtHook.outcome` does, must not begin anew when
its last call fails: where half of all calls fail, that multiplies the calls, and a fault that comes back
regularly would never let it end. So whoever bears errors (:func:`airflow_amt.watch.polling.patiently`) says
so here, and the hook repeats just the call that failed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from logging import Logger
from typing import TYPE_CHECKING, TypeVar

from airflow_amt.exceptions import AmtAwsError
from airflow_amt.hooks.errors import is_transient

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

_Result = TypeVar("_Result")

#: Waits of :func:`persistent` in seconds, beside botocore's own: half a minute in all.
_WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True, slots=True)
class Bearer:
    """What to do about the answers of single calls.

    :param bear: waits before the next attempt, or raises the error.
    :param relieved: is told of each success.
    """

    bear: Callable[[AmtAwsError], None]
    relieved: Callable[[], None]


# A context variable: other threads, as that of on_kill, make their calls on the same hook without patience.
_bearer: ContextVar[Bearer | None] = ContextVar("airflow_amt_bearer", default=None)


def persistent(
    log: Logger | FilteringBoundLogger, *, sleep: Callable[[float], object] = time.sleep
) -> Bearer:
    """Return what bears transient errors for half a minute, where nobody comes back to try again."""
    waits = list(_WAITS)

    def bear(error: AmtAwsError) -> None:
        if not waits or not is_transient(error):
            raise error
        delay = waits.pop(0)
        log.warning("A call to AWS failed; next attempt in %.0f s: %s", delay, error)
        sleep(delay)

    return Bearer(bear=bear, relieved=lambda: waits.__setitem__(slice(None), _WAITS))


@contextmanager
def bearing(bearer: Bearer | None) -> Iterator[None]:
    """Let calls of hooks in this thread be repeated as the bearer says; with ``None`` they are made once."""
    token = _bearer.set(bearer)
    try:
        yield
    finally:
        _bearer.reset(token)


@contextmanager
def bearing_briefly(log: Logger | FilteringBoundLogger) -> Iterator[None]:
    """Let whoever bears errors bear those of what is done for the record only for half a minute.

    What the record is about has happened; its task has more to do than to wait an hour for a tag, and must
    not find its own patience spent on it.
    """
    with bearing(persistent(log) if _bearer.get() else None):
        yield


def attempt(call: Callable[[], _Result]) -> _Result:
    """Make one call, again and again if somebody bears its errors.

    :raises AmtAwsError: nobody does, or not any longer.
    """
    bearer = _bearer.get()
    while True:
        try:
            result = call()
        except AmtAwsError as error:
            if bearer is None:
                raise
            bearer.bear(error)
        else:
            if bearer is not None:
                bearer.relieved()
            return result
