"""The trigger that watches one tuning job until it is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_amt import _compat
from airflow_amt._lazy_hook import LazyHook
from airflow_amt.exceptions import AmtAwsError
from airflow_amt.hooks.errors import to_payload
from airflow_amt.tuning.custody import UNREADABLE, Place, decide_on_kill
from airflow_amt.tuning.naming import task_label
from airflow_amt.tuning.schedule import Need, Observation
from airflow_amt.watch.polling import MAX_FAILURES_IN_A_ROW, Reading, TuningJobReader, Verdict, patiently
from airflow_amt.watch.shared import Subscription, subscribe

if TYPE_CHECKING:
    from airflow_amt.hooks.tuning import AmtHook

#: Version of the stored arguments and of the event.
TRIGGER_VERSION = 2

#: Airflow gives ``on_kill`` 30 seconds (``[triggerer] on_kill_timeout``); ours must be over before.
_ON_KILL_SECONDS = 25.0
_STATE_ATTEMPTS = 3
_STOP_ATTEMPTS = 5
_STATE_PAUSE_SECONDS = 2.0


class EventKind(str, Enum):
    """Why a trigger fired. Only a hint: the resumed task reads AWS again."""

    ENDED = "ended"
    DEADLINE = "deadline"
    CONDITION = "condition"
    #: A stop policy has something to tell people, which a worker does.
    POLICY = "policy"
    ERROR = "error"
    #: The trigger cannot use its own arguments; the task resumes to look at them.
    UNUSABLE = "unusable"


class AmtTuningJobTrigger(LazyHook, BaseTrigger):
    """Watch one tuning job; fire once, when it is over, when the deadline is, or when reading fails.

    How it works: it subscribes to the watch that all triggers of this process and connection share
    (:mod:`airflow_amt.watch.shared`), which reads the job at least once an interval, alone or with others.
    Transient errors are borne as in :class:`airflow_amt.watch.polling.Patience`; throttling only slows the
    watch down. The event is ``{"version", "tuning_job_name", "status",
    "event", "error", "state"}``.

    What it does not do: it takes no decision and stops nothing, except when a person kills the task (see
    :meth:`on_kill`).

    Known limitation: a triggerer that is down, or has not yet taken the trigger up, hears of no kill.

    :param tuning_job_name: the tuning job.
    :param check_interval: longest time between two reads, in seconds.
    :param deadline: when to fire though the job goes on: ISO 8601 with an offset; ``None`` for never.
    :param first_read_at: when to read first: ISO 8601 with an offset, one interval away at most; ``None`` for
        at once. A task that has just read the job sets it. It also keeps the task deferred for that long:
        one that resumes before the scheduler has heard of its deferral is failed by Airflow ("finished with
        state success, but the task instance's state attribute is queued"; seen with 3.3.2, whose scheduler
        was busy for 2 s). Later reads, also those after a restart of the triggerer, are not delayed by it.
    :param stop_on_kill: whether a kill of the task stops the tuning job.
    :param state: what the task needs when it resumes, JSON-safe; handed back in the event. The arguments of
        ``defer`` would do, but ``dag.test()`` drops them (Airflow 3.1 to 3.3).
    :param aws_conn_id: connection; its secrets stay out of the stored arguments.
    :param region_name: AWS region.
    :param verify: as for boto3.
    :param botocore_config: as for ``botocore.config.Config``; stored in the metadata database as it is.
    :param max_failures: reads that may fail in a row.
    :param version: version of the stored arguments.
    :param newer: arguments that a newer release stored and this one does not know; they are logged.
    """

    def __init__(
        self,
        tuning_job_name: str,
        check_interval: float = 30.0,
        deadline: str | None = None,
        first_read_at: str | None = None,
        stop_on_kill: bool = False,
        state: dict[str, Any] | None = None,
        aws_conn_id: str | None = "aws_default",
        region_name: str | None = None,
        verify: bool | str | None = None,
        botocore_config: dict[str, Any] | None = None,
        max_failures: int = MAX_FAILURES_IN_A_ROW,
        version: int = TRIGGER_VERSION,
        **newer: Any,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tuning_job_name = tuning_job_name
        self.check_interval = check_interval
        self.deadline = deadline
        self.first_read_at = first_read_at
        self.stop_on_kill = stop_on_kill
        self.state = state
        self.aws_conn_id = aws_conn_id
        self.region_name = region_name
        self.verify = verify
        self.botocore_config = botocore_config
        self.max_failures = max_failures
        self.version = version
        self._newer = newer
        # Between the begin of run and its event.
        self._watching = False
        self._subscription: Subscription | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the stored arguments: plain, JSON-safe, without secrets."""
        return (
            "airflow_amt.triggers.tuning.AmtTuningJobTrigger",
            {
                "version": TRIGGER_VERSION,
                "tuning_job_name": self.tuning_job_name,
                "check_interval": self.check_interval,
                "deadline": self.deadline,
                "first_read_at": self.first_read_at,
                "stop_on_kill": self.stop_on_kill,
                "state": self.state,
                **self.connection_arguments(),
                "max_failures": self.max_failures,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Watch the tuning job and yield one event."""
        self._watching = True
        event = await self._watch()
        self._watching = False
        yield event

    async def _watch(self) -> TriggerEvent:
        if self._newer:
            self.log.warning(
                "A newer release of airflow-provider-amt stored this trigger (version %s); not known here "
                "and ignored: %s",
                self.version,
                ", ".join(sorted(self._newer)),
            )
        try:
            reader = self.new_reader()
        except Exception as error:
            # What is stored may be of another release, or name a function that this triggerer has not.
            self.log.exception("Tuning job %s cannot be watched", self.tuning_job_name)
            return await self.event(EventKind.ERROR, None, self._not_read(error))
        await asyncio.sleep(self._seconds_to_first_read())
        try:
            with subscribe(self, self.tuning_job_name, self.check_interval) as subscription:
                self._subscription = subscription
                reading = await self._read_on(reader, subscription)
        except AmtAwsError as error:
            return await self.event(EventKind.ERROR, None, error)
        except Exception as error:
            # Building the hook can raise anything (Airflow: no such connection). Raised from here it
            # would make Airflow fail the task unasked; this way the worker looks for itself.
            self.log.exception("Tuning job %s cannot be watched", self.tuning_job_name)
            return await self.event(EventKind.ERROR, None, self._not_read(error))
        finally:
            self._subscription = None
        return await self.event(EventKind(reading.verdict.value), reading, None)

    async def _read_on(self, reader: TuningJobReader, subscription: Subscription) -> Reading:
        """Judge what the watch reads, until there is more to do than to wait."""
        reading: Reading | None = None
        asked_at = time.monotonic()
        in_doubt = False
        while reading is None or reading.verdict is Verdict.WAIT:
            if reading is not None:
                # A description that failed is still what is needed; no summary makes it due sooner.
                in_doubt = reading.is_in_doubt or (in_doubt and reading.has_failed)
            delay = 0.0 if reading is None else reading.delay_seconds
            observation = await subscription.next(
                due=asked_at + delay,
                need=Need.DESCRIPTION if in_doubt else reader.need,
                until_deadline=reader.seconds_left,
                # A wait cut short is for what a policy has to look at then.
                is_timely=reader.guard is not None,
                quiet_for=reader.quiet_seconds,
                stale_in=reader.seconds_described,
                curious=reader.is_curious,
                ends_by_summary=reader.ends_by_summary,
                backed_off=reading is not None and reading.has_failed,
            )
            if observation is None:
                asked_at = time.monotonic()
                reading = reader.give_up()
                continue
            asked_at = observation.asked_at
            reading = await self._judge(reader, observation)
        return reading

    async def _judge(self, reader: TuningJobReader, observation: Observation) -> Reading:
        error, progress = observation.error, observation.progress
        if isinstance(error, AmtAwsError):
            return reader.fail(error)
        if error is not None or progress is None:
            raise error or ValueError("nothing was read, and nothing failed")
        if reader.makes_calls(progress):
            return await _compat.in_thread(lambda: reader.take(progress, observation.description))
        return reader.take(progress, observation.description)

    @property
    def reading_hook(self) -> AmtHook:
        """The hook for further reads: the watch's, so that they count with its calls; blocking."""
        return self.hook if self._subscription is None else self._subscription.hook()

    def _seconds_to_first_read(self) -> float:
        if self.first_read_at is None:
            return 0.0
        left = (datetime.fromisoformat(self.first_read_at) - datetime.now(UTC)).total_seconds()
        # The worker's clock may be another one.
        return min(max(0.0, left), self.check_interval)

    def new_reader(self, **options: Any) -> TuningJobReader:
        """Return what reads the tuning job.

        :param options: more options of the reader.
        """
        return TuningJobReader(
            lambda: self.reading_hook.describe_tuning_job(self.tuning_job_name),
            interval_seconds=self.check_interval,
            deadline=None if self.deadline is None else datetime.fromisoformat(self.deadline),
            log=self.log,
            most_failures=self.max_failures,
            **options,
        )

    async def on_kill(self) -> None:
        """Stop the tuning job, because a person marked the deferred task failed or successful, or cleared it.

        Airflow 3.3 also calls this when a triggerer that had been frozen wakes up and finds its triggers
        given to another one, though nobody touched the tasks (measured with 3.3.2). So the task instance's
        real state is asked for first: while it is deferred, running or up for retry, the job is left alone.
        The same holds if the state cannot be read: a job that runs on costs money and can still be stopped;
        one that was stopped is lost.

        Returns after 25 seconds at most. What takes longer goes on in its thread: a triggerer's first
        question about a task makes Airflow build its API in the process, which took 40 s on a busy machine.
        """
        if not self.stop_on_kill:
            self.log.info(
                "The trigger was ended; tuning job %s runs on (stop_on_kill is off).", self.tuning_job_name
            )
            return
        try:
            await asyncio.wait_for(
                _compat.in_thread(self._stop_if_killed, urgent=True), timeout=_ON_KILL_SECONDS
            )
        except TimeoutError:
            self.log.error(
                "Stopping tuning job %s takes longer than %.0f s; it goes on as long as this triggerer runs.",
                self.tuning_job_name,
                _ON_KILL_SECONDS,
            )

    async def cleanup(self) -> None:
        """Do what ``on_kill`` does where Airflow (before 3.3) does not call that.

        Airflow calls this whenever the trigger ends: also when its triggerer is stopped, or gave it to
        another one. The task's state tells these from a kill, as in :meth:`on_kill`. A trigger that has
        fired leaves the job to its task.
        """
        if self._watching and self.stop_on_kill and not _compat.triggers_hear_of_kills():
            await self.on_kill()

    def _stop_if_killed(self) -> None:
        state = self._task_state()
        if self.is_resumed(state):
            self.log.info("The task goes on (%s): a person answered its question, as far as known.", state)
            return
        decision = decide_on_kill(state, place=Place.TRIGGERER)
        if not decision.stop:
            self.log.warning(
                "Tuning job %s is not stopped with its trigger: %s. If the task was killed, stop the job "
                "with AmtStopTuningJobOperator or `airflow-amt reap`.",
                self.tuning_job_name,
                decision.reason,
            )
            return
        try:
            patiently(
                lambda: self.hook.stop_tuning_job(
                    self.tuning_job_name,
                    stopped_by="on_kill",
                    detail=decision.reason,
                    requested_by=self.task_label(),
                ),
                interval_seconds=1.0,
                log=self.log,
                most=_STOP_ATTEMPTS,
            )
        except Exception:
            # Whatever it is, nobody else hears of it: Airflow suppresses what a cleanup raises.
            self.log.exception(
                "Tuning job %s could not be stopped and may run on. Stop it with AmtStopTuningJobOperator or "
                "`airflow-amt reap`.",
                self.tuning_job_name,
            )
        finally:
            self.close_hook()

    def is_resumed(self, state: str | None) -> bool:
        """Whether the trigger is ended because its task goes on, though nobody fired an event.

        :param state: the task instance's state now.
        """
        return False

    def task_label(self) -> str | None:
        """Return the task instance that waits, in one line; ``None`` if Airflow did not say which."""
        return None if self.task_instance is None else task_label(self.task_instance)

    def _task_state(self) -> str | None:
        """Return the task instance's state, ``None`` if it has none or is gone, or ``UNREADABLE``."""
        ti = self.task_instance
        if ti is None:
            return UNREADABLE
        for attempt in range(1, _STATE_ATTEMPTS + 1):
            try:
                return _compat.read_task_state(ti.dag_id, ti.run_id, ti.task_id, ti.map_index)
            except Exception:
                # Whatever the supervisor raises, it means the same here: not known. It is logged.
                self.log.exception("Reading the task's state failed (%d of %d)", attempt, _STATE_ATTEMPTS)
            if attempt < _STATE_ATTEMPTS:
                time.sleep(_STATE_PAUSE_SECONDS)
        return UNREADABLE

    def _not_read(self, error: Exception) -> AmtAwsError:
        return AmtAwsError(
            "DescribeHyperParameterTuningJob",
            type(error).__name__,
            f"the triggerer could not read the tuning job: {error} (aws_conn_id {self.aws_conn_id!r}, "
            f"region_name {self.region_name!r}). Fix: see the trigger's log, and whether the triggerer has "
            "this connection and what it needs.",
        )

    async def event(
        self, kind: EventKind, reading: Reading | None, error: AmtAwsError | None
    ) -> TriggerEvent:
        """Return the event to fire."""
        return TriggerEvent(self.payload(kind, reading, error))  # type: ignore[no-untyped-call]

    def payload(self, kind: EventKind, reading: Reading | None, error: AmtAwsError | None) -> dict[str, Any]:
        """Return the event's payload, JSON-safe."""
        progress = reading.progress if reading else None
        return {
            "version": TRIGGER_VERSION,
            "tuning_job_name": self.tuning_job_name,
            "status": progress.status if progress else None,
            "event": kind.value,
            "error": to_payload(error) if error else None,
            "state": self.state,
        }
