"""One watch of tuning jobs per connection for all triggers of a process.

Triggers subscribe with the name of a job. The watch makes the calls, in few threads of its own and with one
client, and lets :mod:`airflow_amt.tuning.schedule` decide which; it ends with its last subscriber.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

from airflow_amt import _compat
from airflow_amt.exceptions import AmtAccessDeniedError, AmtAwsError, AmtFieldError, AmtThrottledError
from airflow_amt.hooks.errors import is_transient
from airflow_amt.hooks.metering import Meter, meter_of
from airflow_amt.tuning import TuningProgress
from airflow_amt.tuning.schedule import Describe, Need, Observation, Schedule, Sweep, Wait, Watcher
from airflow_amt.tuning.values import parse_number

if TYPE_CHECKING:
    from airflow_amt.hooks.tuning import AmtHook

_Result = TypeVar("_Result")

log = logging.getLogger(__name__)

#: ``[amt] watch_calls_per_second`` and ``watch_calls_burst``, where they are not set. AWS publishes no limit
#: of these calls; a handful a second is what accounts were seen to get.
DEFAULT_CALLS_PER_SECOND = 5.0
DEFAULT_BURST = 10.0

#: Calls at once. A call takes 50 to 200 ms; one that hangs must not hold up the others.
_CALLS_AT_ONCE = 4

#: Subscribers that are woken in one go, before others have their turn on the event loop.
_WOKEN_AT_ONCE = 10

#: Between two reports in log and metrics.
_REPORT_SECONDS = 60.0

#: How often is looked whether the connection was edited, and how soon after a refusal a new hook is tried.
_LOOK_AT_CONNECTION_SECONDS = 300.0
_NEW_HOOK_SECONDS = 30.0

#: A page of a sweep is tried so often while it is throttled; then the sweep begins anew later.
_PAGE_ATTEMPTS = 5

#: A page of a sweep that takes longer is no longer waited for: what is due is described meanwhile.
_SLOW_PAGE_SECONDS = 5.0

#: For how long no other hook is built after one that could not be.
_NO_HOOK_SECONDS = 1.0

#: How far reads are made before their time at most, as a share of the interval: triggerers that were started
#: together shall come apart, and none shall be late.
_SPREAD = 0.1


#: How long after a deadline the last read may take.
_LAST_READ_SECONDS = 10.0


def early() -> float:
    """Return a factor for the time until a read, a little below 1."""
    return 1 - _SPREAD * random.random()  # noqa: S311 - no secret, only spread


class Connection(Protocol):
    """What subscribers have a connection by: :class:`airflow_amt._lazy_hook.LazyHook`."""

    aws_conn_id: str | None

    def connection_arguments(self) -> dict[str, Any]:
        """Return its arguments; those of the same arguments share a watch."""

    def new_hook(self) -> AmtHook:
        """Return a hook of this connection as it is now."""


class _NoHookError(Exception):
    """No call can be made: the hook cannot be built.

    :param cause: what it failed of.
    """

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Subscription:
    """One subscriber's view of its tuning job; made by :func:`subscribe`."""

    def __init__(self, watch: SharedWatch, watcher: Watcher) -> None:
        self._watch = watch
        self._watcher = watcher

    async def next(
        self,
        *,
        due: float,
        need: Need = Need.SUMMARY,
        until_deadline: float | None = None,
        is_timely: bool = False,
        quiet_for: float = 0.0,
        stale_in: float = math.inf,
        curious: bool = False,
        ends_by_summary: bool = False,
        backed_off: bool = False,
    ) -> Observation | None:
        """Wait for the next observation of the job, or of a failure to read it.

        :param due: when it is to be read at the latest, by the clock of :func:`time.monotonic`.
        :param need: what is needed.
        :param until_deadline: seconds until any observation counts, also one that says nothing new;
            ``None`` to wait for news.
        :param is_timely: it is not to be read much before it is due.
        :param quiet_for: seconds until a change of counters is news.
        :param stale_in: seconds until any observation is news, though none is read for that.
        :param curious: a description would be better than a summary, if one is to be had cheaply.
        :param ends_by_summary: a summary will do that tells that the job is over, whatever else is needed.
        :param backed_off: reading failed, so it may be due later than an interval from now.
        :return: ``None`` if none came in some seconds after the deadline.
        """
        now = time.monotonic()
        wake_by = math.inf if until_deadline is None else now + until_deadline
        # A wait that is cut short before a deadline would end in a run of ever shorter ones.
        is_timely = is_timely or backed_off or due >= wake_by - _LAST_READ_SECONDS
        return await self._watch.wait(
            self._watcher,
            at_most=None if until_deadline is None else max(0.0, until_deadline) + _LAST_READ_SECONDS,
            due=due if is_timely else now + (due - now) * early(),
            need=need,
            wake_from=now + quiet_for,
            wake_by=wake_by,
            stale_from=now + stale_in,
            curious=curious,
            ends_by_summary=ends_by_summary,
            backed_off=backed_off,
        )

    def hook(self) -> AmtHook:
        """Return the watch's hook, for other calls about this job; blocking.

        :raises Exception: it cannot be built: whatever Airflow or boto3 raises then.
        """
        return self._watch.hook()


@contextmanager
def subscribe(connection: Connection, name: str, interval: float) -> Iterator[Subscription]:
    """Subscribe to a tuning job, from a coroutine of the event loop that runs.

    :param connection: the AWS connection.
    :param name: the tuning job.
    :param interval: longest time between two reads, in seconds.
    """
    watch = SharedWatch.of(connection)
    watcher = watch.watch(name, interval)
    try:
        yield Subscription(watch, watcher)
    finally:
        watch.unwatch(watcher)


_watches: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, SharedWatch]] = WeakKeyDictionary()


class SharedWatch:
    """Watches the tuning jobs of one connection for all its subscribers in one event loop.

    It begins with its first subscriber and ends with its last one, with its task, threads and sockets.

    :param connection: the AWS connection.
    :param key: by which it is found.
    """

    def __init__(self, connection: Connection, key: str) -> None:
        self._key = key
        self._loop = asyncio.get_running_loop()
        self._schedule = Schedule(spread=early)
        self._waiting: dict[Watcher, asyncio.Future[None]] = {}
        self._threads = ThreadPoolExecutor(max_workers=_CALLS_AT_ONCE, thread_name_prefix="airflow-amt-watch")
        self._source = _HookSource(connection)
        self._awake = asyncio.Event()
        self._asleep_until = -math.inf
        self._running: set[asyncio.Task[None]] = set()
        self._defect: Exception | None = None
        self._has_ended = False
        self._told_refused = False
        self._report = _Report(connection.aws_conn_id, time.monotonic())
        # An empty context: Airflow takes what is logged in a trigger's context for that trigger's.
        self._task = self._loop.create_task(
            self._run(), name="airflow-amt-watch", context=contextvars.Context()
        )

    @classmethod
    def of(cls, connection: Connection) -> SharedWatch:
        """Return the watch of a connection in the event loop that runs; begin it if there is none."""
        watches = _watches.setdefault(asyncio.get_running_loop(), {})
        key = json.dumps(connection.connection_arguments(), sort_keys=True, default=repr)
        watch = watches.get(key)
        if watch is None:
            watch = watches[key] = cls(connection, key)
        return watch

    # --- subscribers ---------------------------------------------------------------------------

    def watch(self, name: str, interval: float) -> Watcher:
        """Begin to watch a tuning job."""
        return self._schedule.watch(name, interval, time.monotonic())

    def unwatch(self, watcher: Watcher) -> None:
        """Leave off; the last one ends the watch."""
        self._schedule.unwatch(watcher)
        if self._schedule.jobs == 0:
            self._end()

    async def wait(self, watcher: Watcher, *, at_most: float | None, **how: Any) -> Observation | None:
        """Wait for the next observation.

        :param at_most: seconds after which it is waited no longer.
        :param how: as for :meth:`airflow_amt.tuning.schedule.Schedule.wait`.
        """
        if (failure := self._failure()) is not None:
            return failure
        if not self._schedule.wait(watcher, **how):
            future = self._waiting[watcher] = self._loop.create_future()
            pushed = watcher.job.pushed
            if watcher.job.busy or pushed is None or pushed < self._asleep_until:
                self._awake.set()
            try:
                # Not wait_for: Python 3.11's loses a cancellation that comes with the result.
                async with asyncio.timeout(at_most):
                    await future
            except TimeoutError:
                pass  # nothing came, which the caller is told
            finally:
                self._waiting.pop(watcher, None)
        return watcher.take() or self._failure()

    def _failure(self) -> Observation | None:
        """What everybody gets to see once there is no watching any more."""
        return None if self._defect is None else Observation(asked_at=time.monotonic(), error=self._defect)

    def hook(self) -> AmtHook:
        """Return the hook that reads; blocking."""
        try:
            return self._source.get()
        except _NoHookError as error:
            raise error.cause from None

    # --- its own task --------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while True:
                self._awake.clear()
                if self._defect is not None:
                    raise self._defect
                now = time.monotonic()
                until: float | None = None
                if len(self._running) < _CALLS_AT_ONCE:
                    gate = self._source.seconds_to_call()
                    if gate <= 0:
                        action = self._schedule.next(now, datetime.now(UTC))
                        if not isinstance(action, Wait):
                            self._start(action)
                            continue
                        until = action.until
                    else:
                        until = now + gate
                report_at = self._report.next_at
                self._asleep_until = report_at if until is None else min(until, report_at)
                await self._sleep(self._asleep_until - now)
                if time.monotonic() >= report_at:
                    self._tell()
        except Exception as error:
            # A defect here must not leave thousands of tasks waiting for ever: each resumes, and looks.
            log.exception("Watching tuning jobs failed; their tasks resume")
            self._defect = error
            self._forget()
            self._let_all_go()
        except asyncio.CancelledError:
            if not self._has_ended:
                # Somebody else cancelled it, and its subscribers would wait for ever.
                self._defect = RuntimeError("the watch of tuning jobs was cancelled")
                self._forget()
                self._let_all_go()
            raise
        finally:
            self._has_ended = True
            self._asleep_until = math.inf
            for task in self._running:
                task.cancel()
            self._report.end()
            self._threads.submit(self._source.close)
            self._threads.shutdown(wait=False)

    async def _sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._awake.wait()

    def _let_all_go(self) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_result(None)

    def _end(self) -> None:
        self._has_ended = True
        self._forget()
        self._task.cancel()

    def _forget(self) -> None:
        watches = _watches.get(self._loop, {})
        if watches.get(self._key) is self:
            del watches[self._key]

    def _start(self, action: Describe | Sweep) -> None:
        work: Coroutine[Any, Any, None] = (
            self._describe(action) if isinstance(action, Describe) else self._sweep(action)
        )
        task = self._loop.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if task.cancelled():
            if not self._has_ended:
                # Its job would never be read again.
                self._defect = RuntimeError("a call of the watch of tuning jobs was cancelled")
        elif isinstance(error := task.exception(), Exception):
            self._defect = error
        self._awake.set()

    async def _wake(self, watchers: Sequence[Watcher]) -> None:
        for number, watcher in enumerate(watchers, start=1):
            future = self._waiting.get(watcher)
            if future is not None and not future.done():
                future.set_result(None)
            if number % _WOKEN_AT_ONCE == 0:
                await asyncio.sleep(0)

    # --- calls ---------------------------------------------------------------------------------

    async def _describe(self, action: Describe) -> None:
        name, asked_at = action.name, time.monotonic()

        def call(hook: AmtHook) -> tuple[TuningProgress, dict[str, Any]]:
            description = hook.describe_tuning_job(name)
            return TuningProgress.from_describe(description), description

        try:
            progress, description = await self._call(call)
        except AmtThrottledError as error:
            self._source.throttled()
            woken = self._schedule.throttled(name, error, time.monotonic())
        except _NoHookError as error:
            woken = self._schedule.unable(name, error.cause, time.monotonic())
        except Exception as error:  # noqa: BLE001 - each of its watchers is told
            # Whatever it is, it is this job's.
            transient = isinstance(error, AmtAwsError) and is_transient(error)
            if action.is_extra and transient:
                self._schedule.dropped(name)
                return
            woken = self._schedule.failed(name, error, time.monotonic(), is_transient=transient)
        else:
            woken = self._schedule.described(name, progress, description, asked_at, time.monotonic())
        await self._wake(woken)

    async def _sweep(self, sweep: Sweep) -> None:
        filters: dict[str, Any] = {
            "StatusEquals": sweep.status,
            "SortBy": "CreationTime",
            "SortOrder": "Descending",
        }
        if sweep.created_after is not None:
            filters["CreationTimeAfter"] = sweep.created_after
        if sweep.modified_after is not None:
            filters["LastModifiedTimeAfter"] = sweep.modified_after
        token: str | None = None
        seen: set[str] = set()
        throttled = 0
        while True:
            asked_at = time.monotonic()
            try:
                summaries, following = await self._list(token, filters)
            except AmtThrottledError as error:
                throttled += 1
                self._source.throttled()
                woken = self._schedule.throttled(None, error, time.monotonic())
                if throttled >= _PAGE_ATTEMPTS:
                    self._schedule.failed_sweep(time.monotonic())
                await self._wake(woken)
                if throttled >= _PAGE_ATTEMPTS:
                    return
                await asyncio.sleep(max(self._source.seconds_to_call(), 0.0))
                continue
            except _NoHookError as error:
                await self._wake(self._schedule.unable(None, error.cause, time.monotonic()))
                return
            except Exception as error:  # noqa: BLE001 - it is told, or its jobs are described
                await self._wake(self._abandon(error))
                return
            throttled = 0
            woken, go_on = self._schedule.page(summaries, asked_at, time.monotonic())
            # It may ask for descriptions.
            self._awake.set()
            await self._wake(woken)
            if following is not None and following in seen:
                log.warning("AWS repeats a page when tuning jobs are listed; they are described for a while.")
                self._schedule.failed_sweep(time.monotonic())
                return
            if not go_on or following is None:
                self._schedule.swept(time.monotonic(), is_whole=following is None)
                return
            token = following
            seen.add(following)
            await asyncio.sleep(max(self._source.seconds_to_call(), 0.0))

    async def _list(
        self, token: str | None, filters: dict[str, Any]
    ) -> tuple[list[TuningProgress], str | None]:
        slow = self._loop.call_later(_SLOW_PAGE_SECONDS, self._go_on_without_page)
        try:
            return await self._call(partial(_page, token=token, filters=filters))
        finally:
            slow.cancel()

    def _go_on_without_page(self) -> None:
        self._schedule.slow_sweep()
        self._awake.set()

    def _abandon(self, error: Exception) -> list[Watcher]:
        if isinstance(error, AmtAwsError) and is_transient(error):
            return self._schedule.interrupted(error, time.monotonic())
        if not isinstance(error, AmtAccessDeniedError):
            # Odd, or in the middle of a list a token may have become too old.
            log.warning("Tuning jobs cannot be listed now; they are described for a while: %s", error)
            self._schedule.failed_sweep(time.monotonic())
            return []
        if not self._told_refused:
            # What it means for a job, its own description will tell.
            self._told_refused = True
            log.warning(
                "Tuning jobs cannot be listed (connection %r), so each is described, which takes more calls: "
                "%s. Fix: permit sagemaker:ListHyperParameterTuningJobs.",
                self._source.conn_id,
                error,
            )
        self._schedule.refused(time.monotonic())
        return []

    async def _call(self, call: Callable[[AmtHook], _Result]) -> _Result:
        return await _compat.in_thread(lambda: self._source.call(call), threads=self._threads)

    def _tell(self) -> None:
        self._report.tell(
            time.monotonic(),
            jobs=self._schedule.jobs,
            subscribers=self._schedule.watchers,
            staleness=self._schedule.staleness(time.monotonic()),
            meter=self._source.meter,
            region=self._source.region,
        )


def _page(
    hook: AmtHook, *, token: str | None, filters: dict[str, Any]
) -> tuple[list[TuningProgress], str | None]:
    summaries, following = hook.list_tuning_jobs_page(token, **filters)
    return [TuningProgress.from_list_summary(one) for one in summaries], following


class _HookSource:
    """The hook of a watch: built in a thread when it is first needed, and anew when the connection changed.

    :param connection: the AWS connection.
    """

    def __init__(self, connection: Connection) -> None:
        self.conn_id = connection.aws_conn_id
        self.meter: Meter | None = None
        self.region: str | None = None
        self._new_hook = connection.new_hook
        self._lock = threading.Lock()
        self._hook: AmtHook | None = None
        self._built_at = -math.inf
        self._looked_at = -math.inf
        #: When a hook could not be built, and why.
        self._failed: tuple[float, Exception] | None = None

    def seconds_to_call(self) -> float:
        """Return the seconds until a call may be made."""
        return 0.0 if self.meter is None else self.meter.wait()

    def throttled(self) -> None:
        """Take note that a call came to nothing because it was throttled."""
        if self.meter is not None:
            self.meter.throttled()

    def get(self) -> AmtHook:
        """Return the hook; blocking.

        :raises _NoHookError: it cannot be built.
        """
        with self._lock:
            now = time.monotonic()
            if self._hook is None:
                return self._build(now)
            if now - self._looked_at >= _LOOK_AT_CONNECTION_SECONDS:
                self._looked_at = now
                if self._is_edited(self._hook):
                    log.info(
                        "Connection %r was edited; tuning jobs are read by it as it is now.", self.conn_id
                    )
                    self._close(self._hook)
                    self._hook = None
                    return self._build(now)
            return self._hook

    def call(self, call: Callable[[AmtHook], _Result]) -> _Result:
        """Make a call; blocking. If it is refused, once more with a hook of new credentials.

        :raises _NoHookError: the hook cannot be built.
        :raises AmtAwsError: the call failed.
        """
        hook = self.get()
        try:
            return call(hook)
        except AmtAccessDeniedError:
            if not self._renew(hook):
                raise
            return call(self.get())

    def close(self) -> None:
        """Close the hook's connections to AWS."""
        with self._lock:
            self._close(self._hook)
            self._hook = None

    def _renew(self, refused: AmtHook) -> bool:
        """Build a new hook in place of one that was refused; return whether there is a newer one."""
        with self._lock:
            now = time.monotonic()
            if self._hook is not refused:
                return self._hook is not None
            if now - self._built_at < _NEW_HOOK_SECONDS:
                return False
            try:
                self._build(now)
            except _NoHookError as error:
                log.warning("No new credentials can be had for connection %r: %s", self.conn_id, error.cause)
                return False
            return True

    def _build(self, now: float) -> AmtHook:
        if self._failed is not None and now - self._failed[0] < _NO_HOOK_SECONDS:
            raise _NoHookError(self._failed[1])
        self._built_at = self._looked_at = now
        rate, burst = configured_rate()
        try:
            hook = self._new_hook()
            hook.build()
            meter = meter_of(hook, rate, burst)
        except Exception as error:
            # Airflow raises anything if it has no such connection, botocore if it finds no credentials.
            self._failed = now, error
            raise _NoHookError(error) from error
        self._failed = None
        self._close(self._hook)
        self._hook, self.meter, self.region = hook, meter, hook.conn.meta.region_name
        return hook

    def _close(self, hook: AmtHook | None) -> None:
        if hook is not None:
            hook.close()

    def _is_edited(self, hook: AmtHook) -> bool:
        try:
            return not hook.has_connection_of(self._new_hook())
        except Exception:
            # Whatever the supervisor or a secrets backend raises; the hook that there is works on.
            log.warning("Whether connection %r was edited cannot be told", self.conn_id, exc_info=True)
            return False


def configured_rate() -> tuple[float, float]:
    """Return ``[amt] watch_calls_per_second`` and ``watch_calls_burst``.

    A value that is none is logged, and the default taken: a slip there shall not end every task that waits.
    """
    rate, burst = _compat.watch_rate()
    return (
        _setting("watch_calls_per_second", rate, DEFAULT_CALLS_PER_SECOND, at_least=0.01),
        _setting("watch_calls_burst", burst, DEFAULT_BURST, at_least=1.0),
    )


def _setting(option: str, value: str | None, default: float, *, at_least: float) -> float:
    if value is None or not str(value).strip():
        return default
    try:
        return parse_number(f"[amt] {option}", value, at_least=at_least, at_most=10_000)
    except AmtFieldError as error:
        log.error("%s The default of %g is taken.", error, default)
        return default


class _Report:
    """What a watch tells of itself once a minute, in one line of the log and as metrics.

    :param conn_id: the connection.
    :param now: when the watch began.
    """

    def __init__(self, conn_id: str | None, now: float) -> None:
        self._tags = {"connection": conn_id or "none", "region": "unknown"}
        self._calls = self._throttles = 0
        self._told = False
        self.next_at = now + _REPORT_SECONDS

    def tell(
        self,
        now: float,
        *,
        jobs: int,
        subscribers: int,
        staleness: float,
        meter: Meter | None,
        region: str | None,
    ) -> None:
        """Write the report."""
        self._tags["region"] = region or "unknown"
        self.next_at = now + _REPORT_SECONDS
        calls, throttles = (0, 0) if meter is None else (meter.calls, meter.throttles)
        new_calls, new_throttles = max(0, calls - self._calls), max(0, throttles - self._throttles)
        self._calls, self._throttles = calls, throttles
        log.info(
            "Watching %d tuning jobs for %d triggers (connection %s, region %s): %d calls to AWS in the last "
            "minute, %d of them throttled; the oldest answer is %.0f s old.",
            jobs,
            subscribers,
            self._tags["connection"],
            self._tags["region"],
            new_calls,
            new_throttles,
            staleness,
        )
        self._gauges(jobs, subscribers, new_calls, new_throttles, staleness)

    def end(self) -> None:
        """Set the metrics to nothing: there is no watch any more."""
        if self._told:
            self._gauges(0, 0, 0, 0, 0.0)

    def _gauges(self, jobs: int, subscribers: int, calls: int, throttles: int, staleness: float) -> None:
        self._told = True
        for name, value in (
            ("jobs", jobs),
            ("subscribers", subscribers),
            ("calls", calls),
            ("throttles", throttles),
            ("staleness", staleness),
        ):
            _compat.gauge(f"amt.watch.{name}", value, self._tags)
