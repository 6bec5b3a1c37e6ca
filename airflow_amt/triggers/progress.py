"""The trigger that watches one tuning job until a condition is met or the job is over."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.triggers.base import TaskSkippedEvent, TaskSuccessEvent, TriggerEvent

from airflow_amt import _compat
from airflow_amt.exceptions import AmtAwsError, AmtFieldError
from airflow_amt.links.tuning import AmtTuningJobLink, console_url
from airflow_amt.triggers.tuning import AmtTuningJobTrigger, EventKind
from airflow_amt.tuning.conditions import OnEnd, end_decision, parse_condition, progress_result
from airflow_amt.watch.polling import MAX_FAILURES_IN_A_ROW, Reading, TuningJobReader

#: Version of the stored arguments and of the event.
PROGRESS_TRIGGER_VERSION = 2

#: XCom keys: what the sensor hands on however it ends, and where Airflow keeps what a task returns.
PROGRESS_KEY = "progress"
_RETURN_KEY = "return_value"


class AmtTuningProgressTrigger(AmtTuningJobTrigger):
    """Watch one tuning job; fire once, when a condition is met or as :class:`AmtTuningJobTrigger` does.

    How it works: the condition is evaluated on each snapshot by the code that the sensor itself uses
    (:mod:`airflow_amt.tuning.conditions`). The event is that of :class:`AmtTuningJobTrigger` with
    ``result`` beside it (:func:`airflow_amt.tuning.conditions.progress_result`): the evidence, because a
    condition may have ceased to hold by the time the task resumes. It is ``None`` where a list told that the
    job is over: nothing changes after that, and the task reads it.

    Why a class of its own: its stored arguments differ, and what older releases stored for
    :class:`AmtTuningJobTrigger` stays untouched by what is added here; the watching is inherited.

    Started by the scheduler (``start_from_trigger``, Airflow 3.3), it gets its arguments as the DAG was
    parsed: ``tuning_job_name``, ``condition`` and the connection may be templates then, which Airflow renders
    into the attributes of the same names before :meth:`run`. No task has computed a deadline; it is derived
    from ``timeout_after``, the absolute time that the scheduler set and that survives a restart.

    What it does not do: it never ends a task as failed. Airflow would retry that, or lose its reason,
    depending on its version: a worker says what failed and why.

    :param tuning_job_name: the tuning job.
    :param condition: the condition's dict (:meth:`airflow_amt.tuning.conditions.Condition.to_dict`).
    :param on_end: what becomes of the task when the job ends and the condition is not met: ``succeed``,
        ``fail``, ``skip``.
    :param end_from_trigger: end the task from here, without a worker, where it succeeds or is skipped.
    :param check_interval: longest time between two reads, in seconds.
    :param deadline: when to fire though the job goes on: ISO 8601 with an offset; ``None`` for never.
    :param first_read_at: as for :class:`AmtTuningJobTrigger`.
    :param seconds_before_timeout: without a ``deadline``: fire so long before ``timeout_after``.
    :param state: what the task needs when it resumes, JSON-safe; handed back with the deadline.
    :param aws_conn_id: connection; its secrets stay out of the stored arguments.
    :param region_name: AWS region.
    :param verify: as for boto3.
    :param botocore_config: as for ``botocore.config.Config``; stored in the metadata database as it is.
    :param max_failures: reads that may fail in a row.
    :param version: version of the stored arguments.
    :param newer: arguments that a newer release stored and this one does not know; they are logged.
    """

    #: When Airflow itself ends the deferral; the triggerer sets it.
    timeout_after: datetime | None = None

    def __init__(
        self,
        tuning_job_name: str,
        condition: Mapping[str, Any] | str,
        on_end: str = OnEnd.SUCCEED.value,
        end_from_trigger: bool = False,
        check_interval: float = 30.0,
        deadline: str | None = None,
        first_read_at: str | None = None,
        seconds_before_timeout: float | None = None,
        state: dict[str, Any] | None = None,
        aws_conn_id: str | None = "aws_default",
        region_name: str | None = None,
        verify: bool | str | None = None,
        botocore_config: dict[str, Any] | None = None,
        max_failures: int = MAX_FAILURES_IN_A_ROW,
        version: int = PROGRESS_TRIGGER_VERSION,
        **newer: Any,
    ) -> None:
        super().__init__(
            tuning_job_name=tuning_job_name,
            check_interval=check_interval,
            deadline=deadline,
            first_read_at=first_read_at,
            state=state,
            aws_conn_id=aws_conn_id,
            region_name=region_name,
            verify=verify,
            botocore_config=botocore_config,
            max_failures=max_failures,
            version=version,
            **newer,
        )
        self.condition = condition
        self.on_end = on_end
        self.end_from_trigger = end_from_trigger
        self.seconds_before_timeout = seconds_before_timeout

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the stored arguments: plain, JSON-safe, without secrets."""
        return (
            "airflow_amt.triggers.progress.AmtTuningProgressTrigger",
            {
                "version": PROGRESS_TRIGGER_VERSION,
                "tuning_job_name": self.tuning_job_name,
                "condition": self.condition,
                "on_end": self.on_end,
                "end_from_trigger": self.end_from_trigger,
                "check_interval": self.check_interval,
                "deadline": self.deadline,
                "first_read_at": self.first_read_at,
                "seconds_before_timeout": self.seconds_before_timeout,
                "state": self.state,
                **self.connection_arguments(),
                "max_failures": self.max_failures,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Watch the tuning job and yield one event."""
        if (
            self.deadline is None
            and self.seconds_before_timeout is not None
            and self.timeout_after is not None
        ):
            end = self.timeout_after
            end = end if end.tzinfo else end.replace(tzinfo=UTC)
            self.deadline = (end - timedelta(seconds=self.seconds_before_timeout)).isoformat()
        try:
            parse_condition(self.condition)
            OnEnd.parse(self.on_end)
        except AmtFieldError:
            # A worker renders templates with all that the DAG defines, and says what is wrong if it still is.
            self.log.exception("The trigger cannot use its arguments; a worker looks at them")
            yield await self.event(EventKind.UNUSABLE, None, None)
            return
        async for event in super().run():
            yield event

    def new_reader(self, **options: Any) -> TuningJobReader:
        """Return what reads the tuning job and judges its progress."""
        return super().new_reader(
            condition=parse_condition(self.condition),
            hands_on_end=not self.end_from_trigger,
            list_training_jobs=lambda: self.reading_hook.list_training_jobs(self.tuning_job_name),
            **options,
        )

    async def event(
        self, kind: EventKind, reading: Reading | None, error: AmtAwsError | None
    ) -> TriggerEvent:
        """Return the event to fire: to resume the task or, where that is asked for, to end it."""
        if self.end_from_trigger and reading and kind in (EventKind.CONDITION, EventKind.ENDED):
            end = await self._end(reading)
            if end is not None:
                return end
        return await super().event(kind, reading, error)

    def payload(self, kind: EventKind, reading: Reading | None, error: AmtAwsError | None) -> dict[str, Any]:
        """Return the event's payload, JSON-safe."""
        payload = super().payload(kind, reading, error)
        return {
            **payload,
            "version": PROGRESS_TRIGGER_VERSION,
            "state": {**(self.state or {}), "deadline": self.deadline},
            "result": _result(reading),
        }

    async def _end(self, reading: Reading) -> TriggerEvent | None:
        """Return the event that ends the task from here; ``None`` if a worker has to."""
        progress, condition = reading.judged()
        decision = end_decision(progress, condition, OnEnd.parse(self.on_end))
        if decision is OnEnd.FAIL:
            return None
        result = progress_result(progress, condition)
        values: dict[str, Any] = {PROGRESS_KEY: result}
        if decision is OnEnd.SUCCEED:
            values[_RETURN_KEY] = result
        url = console_url(progress.arn)
        if url is not None:
            values[AmtTuningJobLink().xcom_key] = url
        ti = self.task_instance
        try:
            # Not with the event: Airflow 3.1 to 3.3 store its XComs as JSON text within JSON, and the next
            # task would get a string where it gets a dict from a worker.
            await _compat.in_thread(lambda: _compat.push_xcoms(ti, values))
        except Exception:
            # Whatever it is, a worker can still publish the result, and end the task.
            self.log.exception("The result cannot be published from the triggerer; a worker does it")
            return None
        if decision is OnEnd.SKIP:
            self.log.info("Skipping, as on_end asks: %s", condition.reason)
            return TaskSkippedEvent()
        return TaskSuccessEvent()


def _result(reading: Reading | None) -> dict[str, Any] | None:
    if reading is None or reading.progress is None or reading.result is None:
        return None
    return progress_result(*reading.judged())
