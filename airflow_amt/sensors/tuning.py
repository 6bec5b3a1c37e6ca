"""The sensor that waits for a tuning job to be over, and what all sensors of tuning jobs share."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from airflow.sdk import BaseSensorOperator, PokeReturnValue

from airflow_amt import _compat, tuning, watch
from airflow_amt._tasks import (
    CONNECTION_FIELDS,
    TuningJobTask,
    check_policies,
    event_of,
    policies_argument,
    policing_of,
    require_name,
    resumed_state,
    resumption,
)
from airflow_amt.exceptions import AmtAwsError, AmtError
from airflow_amt.links.tuning import AmtTuningJobLink
from airflow_amt.task_exceptions import AmtAwaitedJobFailed, AmtAwaitedJobStopped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import Context

    from airflow_amt._policing import Policing
    from airflow_amt.hooks.guard import Guard
    from airflow_amt.triggers.tuning import AmtTuningJobTrigger
    from airflow_amt.tuning.policies import Sla
    from airflow_amt.watch.polling import Reading, TuningJobReader


class WatchingSensor(TuningJobTask, BaseSensorOperator):
    """Base of the sensors: reads one tuning job in every mode (poke, reschedule, deferrable).

    A subclass says what is read (:meth:`new_reader`), with which trigger a deferred task waits
    (:meth:`new_trigger`), and what the last reading comes to (:meth:`finish`).

    :param tuning_job_name: the tuning job (templated).
    :param aws_conn_id: connection (templated).
    :param region_name: AWS region (templated).
    :param verify: as for boto3 (templated).
    :param botocore_config: as for ``botocore.config.Config``.
    :param deferrable: wait in the triggerer; default ``[operators] default_deferrable``. ``poke_interval``
        and ``timeout`` hold there as well.
    """

    template_fields: Sequence[str] = ("tuning_job_name", *CONNECTION_FIELDS)
    operator_extra_links = (AmtTuningJobLink(),)
    ui_color = "#ededed"
    #: What the job is not yet when the sensor times out, for people.
    awaited = "over"

    def __init__(
        self,
        *,
        tuning_job_name: str,
        aws_conn_id: str | None = "aws_default",
        region_name: str | None = None,
        verify: bool | str | None = None,
        botocore_config: dict[str, Any] | None = None,
        deferrable: bool = _compat.default_deferrable(),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.tuning_job_name = tuning_job_name
        self.aws_conn_id = aws_conn_id
        self.region_name = region_name
        self.verify = verify
        self.botocore_config = botocore_config
        self.deferrable = deferrable
        self._reader: TuningJobReader | None = None
        # What a task goes on with that was deferred.
        self._state: dict[str, Any] = {}

    def finish(self, context: Context, reading: Reading) -> dict[str, Any]:
        """Return what the task returns, or raise, now that there is nothing more to wait for."""
        raise NotImplementedError

    def new_trigger(self, deadline: datetime | None, reading: Reading) -> AmtTuningJobTrigger:
        """Return the trigger that waits while the task is deferred.

        :param reading: what the task has just read.
        """
        raise NotImplementedError

    def new_reader(self, deadline: datetime | None, **options: Any) -> TuningJobReader:
        """Return what reads the tuning job.

        :param options: more options of the reader.
        """
        name = require_name("tuning_job_name", self.tuning_job_name)
        return watch.polling.TuningJobReader(
            lambda: self.hook.describe_tuning_job(name),
            interval_seconds=self.interval,
            deadline=deadline,
            log=self.log,
            **options,
        )

    def execute(self, context: Context) -> Any:
        """Poke, or read once and defer."""
        if not self.deferrable:
            return super().execute(context)
        deadline = datetime.now(UTC) + timedelta(seconds=self.timeout)
        return self.wait_deferred(context, deadline)

    def execute_complete(
        self,
        context: Context,
        event: Mapping[str, Any] | None = None,
        resume: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Go on after the trigger fired; AWS is read again, whatever the event says.

        Without an event it begins anew, as
        :meth:`airflow_amt.operators.tuning.AmtTuningJobOperator.execute_complete` does.
        """
        event = event_of(event, resume)
        if not event:
            return dict(self.execute(context))
        name, deadline, self._state = resumed_state(event)
        error = self.watch_error(name, event)
        if error is not None:
            self.give_up(error)
        return self.wait_deferred(context, deadline)

    def poke(self, context: Context) -> PokeReturnValue:
        """Read once."""
        reading = self.read(context)
        if reading.verdict is watch.polling.Verdict.WAIT:
            return PokeReturnValue(is_done=False)
        return PokeReturnValue(is_done=True, xcom_value=self.finish(context, reading))

    def wait_deferred(self, context: Context, deadline: datetime | None) -> dict[str, Any]:
        """Read once; defer if there is something to wait for, otherwise end the task."""
        reading = self.read(context, deadline)
        if reading.verdict is watch.polling.Verdict.WAIT:
            trigger = self.new_trigger(deadline, reading)
            self.defer(
                trigger=trigger,
                method_name="execute_complete",
                kwargs=resumption(self.tuning_job_name, trigger, self.guard),
            )
        if reading.verdict is not watch.polling.Verdict.DEADLINE:
            return self.finish(context, reading)
        message = (
            f"Sensor has timed out: tuning job {self.tuning_job_name} is not {self.awaited} after "
            f"{self.timeout:g} seconds. It runs on."
        )
        if self.soft_fail:
            raise _compat.AirflowSkipException(message)
        raise _compat.AirflowSensorTimeout(message)

    def read(self, context: Context, deadline: datetime | None = None) -> Reading:
        """Read once, with one reader for all reads of this process."""
        if self._reader is None:
            self._reader = self.start_reader(context, deadline)
        try:
            reading = self._reader.read()
            while self.tell(context, reading):
                reading = self._reader.read()
        except AmtAwsError as error:
            self.give_up(error)
        if reading.progress is not None:
            self.publish_link(context, reading.progress.arn)
        return reading

    def start_reader(self, context: Context, deadline: datetime | None) -> TuningJobReader:
        """Return what reads the tuning job in this process."""
        return self.new_reader(deadline)

    def tell(self, context: Context, reading: Reading) -> bool:
        """Tell people what a stop policy has to say; return whether there was something."""
        return False

    @property
    def guard(self) -> Guard | None:
        """What holds the job to an SLA in this process; ``None`` for nothing."""
        return None if self._reader is None else self._reader.guard

    def give_up(self, error: AmtError) -> NoReturn:
        """End the task with an error, or skip it where ``soft_fail`` or ``never_fail`` asks for that."""
        # Airflow itself heeds these two for some errors only: not for the same ones when it pokes as when it
        # resumes, and for none on the first read of a deferrable sensor.
        if self.soft_fail or self.never_fail:
            # Airflow logs no reason for a skip.
            self.log.warning("Skipping, as soft_fail or never_fail asks: %s", error)
            raise _compat.AirflowSkipException(str(error)) from error
        raise error

    @property
    def interval(self) -> float:
        """Seconds between two reads."""
        return max(float(self.poke_interval), 0.1)


class AmtTuningJobSensor(WatchingSensor):
    """Wait until a tuning job is over; succeed if it came to its own end.

    The decision is the operator's: the outcome is pushed to XCom as ``outcome`` and, if it is a success,
    returned; a job that failed or was stopped fails the task without a retry, or skips it with
    ``soft_fail``. An error of AWS that waiting does not mend (not found, not permitted) fails it with
    retries, or skips it with ``soft_fail`` or ``never_fail``. All modes (poke, reschedule, deferrable)
    answer the same.

    With ``policies`` it holds the job, whoever created it, to stop policies while it waits, and stops it when
    one demands that; a job that a policy stopped with ``stop`` is a success if there is a best training job.

    What it does not do: without ``policies`` it never stops the tuning job, also not when it times out or is
    killed.

    Known limitations: with ``mode="reschedule"`` every poke is a new process, so transient errors are not
    counted and only ``timeout`` bounds them; nothing but the job's tags tells a poke what people were told
    before, so without the permission to read and write these they are told at each poke. ``silent_fail`` has
    no effect on a deferrable sensor.

    :param tuning_job_name: the tuning job (templated).
    :param aws_conn_id: connection (templated).
    :param region_name: AWS region (templated).
    :param verify: as for boto3 (templated).
    :param botocore_config: as for ``botocore.config.Config``.
    :param deferrable: wait in the triggerer; default ``[operators] default_deferrable``. ``poke_interval``
        and ``timeout`` hold there as well.
    :param policies: stop policies, as of :class:`airflow_amt.operators.tuning.AmtTuningJobOperator`
        (templated); ``on_policy_callback``, ``ask_timeout``, ``ask_default`` and ``ask_assigned_users``
        likewise.
    """

    template_fields: Sequence[str] = (*WatchingSensor.template_fields, "policies", "ask_timeout")
    template_fields_renderers: ClassVar[dict[str, str]] = {"policies": "json"}

    def __init__(
        self,
        *,
        policies: Any = None,
        on_policy_callback: Any = None,
        ask_timeout: float | str | timedelta | None = timedelta(hours=1),
        ask_default: str = "stop",
        ask_assigned_users: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.policies = policies_argument(policies)
        self.on_policy_callback = on_policy_callback
        self.ask_timeout = ask_timeout
        self.ask_default = ask_default
        self.ask_assigned_users = ask_assigned_users
        self._policing: Policing | None = None
        self._sla: Sla | None = None

    def execute(self, context: Context) -> Any:
        """Poke, or read once and defer."""
        try:
            self._sla = check_policies(self)
        except AmtError as error:
            self.give_up(error)
        return super().execute(context)

    def start_reader(self, context: Context, deadline: datetime | None) -> TuningJobReader:
        """Return what reads the tuning job in this process, and holds it to the SLA."""
        if self.policies is None:
            return self.new_reader(deadline)
        self._policing = policing_of(self, context, self._state.get("memory"), self._sla)
        if self._policing is None:
            return self.new_reader(deadline)
        guard = self._policing.resumed_guard(lambda: self.hook, self.tuning_job_name, self._state)
        return self.new_reader(deadline, guard=guard)

    def tell(self, context: Context, reading: Reading) -> bool:
        """Tell people what a stop policy has to say; return whether there was something."""
        policing, guard = self._policing, self.guard
        if policing is None or guard is None or reading.verdict is not watch.polling.Verdict.POLICY:
            return False
        policing.tell(context, reading, guard)
        return True

    def new_trigger(self, deadline: datetime | None, reading: Reading) -> AmtTuningJobTrigger:
        """Return the trigger that waits for the job's end."""
        guarded = None
        if self._policing is not None and self.guard is not None:
            guarded = self._policing.trigger_arguments(self.guard)
        return self.build_trigger(
            self.tuning_job_name,
            check_interval=self.interval,
            deadline=deadline,
            reading=reading,
            stop_on_kill=False,
            state={"known_stop": self._known_stop},
            guarded=guarded,
        )

    @property
    def _known_stop(self) -> dict[str, str] | None:
        """Tags of a stop that a policy made from here."""
        if self.guard is not None and self.guard.stop is not None:
            return self.guard.stop.tags()
        return self._state.get("known_stop")

    def finish(self, context: Context, reading: Reading) -> dict[str, Any]:
        """Judge the outcome."""
        try:
            outcome = self.read_outcome(
                context,
                self.tuning_job_name,
                interval_seconds=self.interval,
                known_stop=self._known_stop,
            )
        except AmtAwsError as error:
            self.give_up(error)
        if self._policing is not None:
            self._policing.tell_stop(context, outcome)
        result = outcome.to_dict()
        if not outcome.succeeded:
            stopped = outcome.status == tuning.TuningJobStatus.STOPPED.value
            self.give_up(AmtAwaitedJobStopped(result) if stopped else AmtAwaitedJobFailed(result))
        return result
