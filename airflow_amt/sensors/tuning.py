"""The sensor that waits for a tuning job to be over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseSensorOperator, PokeReturnValue

from airflow_amt import _compat
from airflow_amt._tasks import CONNECTION_FIELDS, TuningJobTask, require_name, resumed_state
from airflow_amt.exceptions import AmtAwsError, AmtError
from airflow_amt.links.tuning import AmtTuningJobLink
from airflow_amt.task_exceptions import AmtAwaitedJobFailed, AmtAwaitedJobStopped
from airflow_amt.tuning import TuningJobStatus
from airflow_amt.watch.polling import Reading, TuningJobReader, Verdict

if TYPE_CHECKING:
    from airflow.sdk import Context


class AmtTuningJobSensor(TuningJobTask, BaseSensorOperator):
    """Wait until a tuning job is over; succeed if it came to its own end.

    The decision is the operator's: the outcome is pushed to XCom as ``outcome`` and, if it is a success,
    returned; a job that failed or was stopped fails the task without a retry, or skips it with
    ``soft_fail``. An error of AWS that waiting does not mend (not found, not permitted) fails it with
    retries, or skips it with ``soft_fail`` or ``never_fail``. All modes (poke, reschedule, deferrable)
    answer the same.

    What it does not do: it never stops the tuning job, also not when it times out or is killed.

    Known limitations: with ``mode="reschedule"`` every poke is a new process, so transient errors are not
    counted and only ``timeout`` bounds them. ``silent_fail`` has no effect on a deferrable sensor.

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

    def execute(self, context: Context) -> Any:
        """Poke, or read once and defer."""
        if not self.deferrable:
            return super().execute(context)
        deadline = datetime.now(UTC) + timedelta(seconds=self.timeout)
        return self._wait_deferred(context, deadline)

    def execute_complete(
        self,
        context: Context,
        event: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Go on after the trigger fired; AWS is read again, whatever the event says."""
        name, deadline, _ = resumed_state(event)
        error = self.watch_error(name, event)
        if error is not None:
            self._give_up(error)
        return self._wait_deferred(context, deadline)

    def poke(self, context: Context) -> PokeReturnValue:
        """Read once."""
        reading = self._read(context)
        if reading.verdict is not Verdict.ENDED:
            return PokeReturnValue(is_done=False)
        return PokeReturnValue(is_done=True, xcom_value=self._finish(context))

    def _wait_deferred(self, context: Context, deadline: datetime | None) -> dict[str, Any]:
        reading = self._read(context, deadline)
        if reading.verdict is Verdict.WAIT:
            self.defer(
                trigger=self.build_trigger(
                    self.tuning_job_name, check_interval=self._interval, deadline=deadline, stop_on_kill=False
                ),
                method_name="execute_complete",
            )
        if reading.verdict is Verdict.ENDED:
            return self._finish(context)
        message = (
            f"Sensor has timed out: tuning job {self.tuning_job_name} is not over after "
            f"{self.timeout:g} seconds. It runs on."
        )
        if self.soft_fail:
            raise _compat.AirflowSkipException(message)
        raise _compat.AirflowSensorTimeout(message)

    def _read(self, context: Context, deadline: datetime | None = None) -> Reading:
        if self._reader is None:
            name = require_name("tuning_job_name", self.tuning_job_name)
            self._reader = TuningJobReader(
                lambda: self.hook.describe_tuning_job(name),
                interval_seconds=self._interval,
                deadline=deadline,
                log=self.log,
            )
        try:
            reading = self._reader.read()
        except AmtAwsError as error:
            self._give_up(error)
        if reading.progress is not None:
            self.publish_link(context, reading.progress.arn)
        return reading

    def _finish(self, context: Context) -> dict[str, Any]:
        try:
            outcome = self.read_outcome(context, self.tuning_job_name, interval_seconds=self._interval)
        except AmtAwsError as error:
            self._give_up(error)
        result = outcome.to_dict()
        if not outcome.succeeded:
            stopped = outcome.status == TuningJobStatus.STOPPED.value
            self._give_up(AmtAwaitedJobStopped(result) if stopped else AmtAwaitedJobFailed(result))
        return result

    def _give_up(self, error: AmtError) -> NoReturn:
        # Airflow itself heeds these two for some errors only: not for the same ones when it pokes as when it
        # resumes, and for none on the first read of a deferrable sensor.
        if self.soft_fail or self.never_fail:
            # Airflow logs no reason for a skip.
            self.log.warning("Skipping, as soft_fail or never_fail asks: %s", error)
            raise _compat.AirflowSkipException(str(error)) from error
        raise error

    @property
    def _interval(self) -> float:
        return max(float(self.poke_interval), 0.1)
