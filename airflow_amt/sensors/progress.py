"""The sensor that waits for a condition of a running tuning job."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import XComArg
from airflow.sdk.definitions.xcom_arg import PlainXComArg

from airflow_amt import _compat, tuning
from airflow_amt._tasks import next_read_at, resumed_state
from airflow_amt.exceptions import AmtAwsError, AmtFieldError
from airflow_amt.sensors.tuning import WatchingSensor
from airflow_amt.task_exceptions import AmtConditionNotMet

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.triggers.base import StartTriggerArgs

    from airflow_amt.triggers.progress import AmtTuningProgressTrigger
    from airflow_amt.tuning.conditions import Condition
    from airflow_amt.watch.polling import Reading, TuningJobReader

#: How long after the sensor's own timeout Airflow ends a deferral that the scheduler began; only a triggerer
#: that is down that long lets it come to this.
_BACKSTOP = timedelta(hours=1)


class AmtTuningProgressSensor(WatchingSensor):
    """Wait until a condition of a tuning job is met, while it runs, or until the job is over.

    Returns the progress at that moment, and what fired and why
    (:func:`airflow_amt.tuning.conditions.progress_result`); the same is pushed to XCom as ``progress``
    however the task ends, except by an error or a timeout.

    A condition that held once has fired: when a deferred task resumes it reads AWS again, and if the
    condition has ceased to hold meanwhile (the estimated time left rose again), what the trigger saw is
    returned. When the job is over:

    ===================================  ================  =======================  ================
    the final snapshot                   on_end="succeed"  on_end="fail"            on_end="skip"
    ===================================  ================  =======================  ================
    meets the condition                  success           success                  success
    does not, Completed or Stopped       success           AmtConditionNotMet       skipped
    does not, Failed or being deleted    AmtConditionNotMet  AmtConditionNotMet     skipped
    ===================================  ================  =======================  ================

    ``AmtConditionNotMet`` fails the task without a retry, or skips it with ``soft_fail``. Errors of AWS and
    timeouts are as in :class:`airflow_amt.sensors.tuning.AmtTuningJobSensor`. All modes (poke, reschedule,
    deferrable) answer the same.

    Waiting without a worker (Airflow 3.3): with ``start_from_trigger`` the scheduler hands the task to a
    triggerer at once, and a worker only ends it; with ``end_from_trigger`` as well there is no worker at
    all where the task succeeds or is skipped (a failure goes to one). Airflow 3.1 and 3.2 begin on a
    worker, and so do, in every version, a mapped task and arguments that a triggerer cannot render (templates
    with ``xcom_pull``, ``prev_...`` or asset events; the output of a mapped task or one with ``map`` or
    ``zip``; ``task.output`` itself is fine): the task defers from there, and answers the same.

    What it does not do: it never stops the tuning job. Without a worker Airflow runs no ``pre_execute`` and
    no ``on_execute_callback``, shows the link to the console only at the end, and updates no asset: outlets
    are refused with ``end_from_trigger``.

    Known limitations: ``timeout`` is measured from the deferral where no worker began, and with an
    ``execution_timeout`` shorter than it Airflow ends the deferral first. With ``mode="reschedule"`` every
    poke is a new process: a condition that needs the list of training jobs reads it at each poke.

    :param tuning_job_name: the tuning job (templated).
    :param condition: what to wait for: an object of :mod:`airflow_amt.tuning.conditions`, its dict (values
        may be templates), or the JSON text of its dict (templated).
    :param on_end: what becomes of the task when the job ends and the condition is not met: ``"succeed"``,
        ``"fail"`` or ``"skip"``.
    :param start_from_trigger: begin in the triggerer; implies ``deferrable``.
    :param end_from_trigger: end in the triggerer; only for a deferrable sensor.
    :param aws_conn_id: connection (templated).
    :param region_name: AWS region (templated).
    :param verify: as for boto3 (templated).
    :param botocore_config: as for ``botocore.config.Config``.
    :param deferrable: wait in the triggerer; default ``[operators] default_deferrable``. ``poke_interval``
        and ``timeout`` hold there as well.
    :raises AmtFieldError: the condition is none, or ``on_end`` or ``end_from_trigger`` cannot be used so.
    """

    template_fields: Sequence[str] = (*WatchingSensor.template_fields, "condition")
    awaited = "over, and the condition not met,"

    def __init__(
        self,
        *,
        tuning_job_name: str,
        condition: Condition | Mapping[str, Any] | str,
        on_end: str = "succeed",
        start_from_trigger: bool = False,
        end_from_trigger: bool = False,
        deferrable: bool = _compat.default_deferrable(),
        **kwargs: Any,
    ) -> None:
        super().__init__(
            tuning_job_name=tuning_job_name, deferrable=deferrable or start_from_trigger, **kwargs
        )
        # As a dict: the UI shows it as such, and Airflow asks for the truth of a templated value.
        self.condition = (
            condition.to_dict() if isinstance(condition, tuning.conditions.Condition) else condition
        )
        self.on_end = tuning.conditions.OnEnd.parse(on_end).value
        self.end_from_trigger = end_from_trigger
        if end_from_trigger:
            self._check_end_from_trigger()
        if start_from_trigger and _compat.can_start_from_trigger():
            self.start_trigger_args = self._start_trigger_args()
            self.start_from_trigger = self.start_trigger_args is not None

    def new_reader(self, deadline: datetime | None, **options: Any) -> TuningJobReader:
        """Return what reads the tuning job and judges its progress."""
        condition = tuning.conditions.parse_condition(self.condition)
        return super().new_reader(
            deadline,
            condition=condition,
            list_training_jobs=lambda: self.hook.list_training_jobs(self.tuning_job_name),
            **options,
        )

    def new_trigger(self, deadline: datetime | None, reading: Reading) -> AmtTuningProgressTrigger:
        """Return the trigger that waits for the condition."""
        from airflow_amt.triggers.progress import AmtTuningProgressTrigger

        return AmtTuningProgressTrigger(
            tuning_job_name=self.tuning_job_name,
            condition=tuning.conditions.parse_condition(self.condition).to_dict(),
            deadline=None if deadline is None else deadline.isoformat(),
            first_read_at=next_read_at(reading),
            **self._common_arguments(),
            **self.connection_arguments(),
        )

    def execute_complete(
        self,
        context: Context,
        event: Mapping[str, Any] | str | None = None,
        resume: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Go on after the trigger fired; AWS is read again, the event is evidence of what was before."""
        from airflow_amt.triggers.tuning import EventKind

        if isinstance(event, str):
            # dag.test() resumes with the bare state also after an event that ends a task (3.1 to 3.3).
            return dict(self.execute(context))
        kind, result = (event or {}).get("event"), (event or {}).get("result")
        if kind == EventKind.CONDITION.value and isinstance(result, Mapping):
            return self._fired(context, dict(result))
        if kind == EventKind.UNUSABLE.value:
            _, deadline, _ = resumed_state(event)
            return self.wait_deferred(context, deadline)
        return super().execute_complete(context, event, resume)

    def finish(self, context: Context, reading: Reading) -> dict[str, Any]:
        """Return the progress, or end the task as ``on_end`` says."""
        progress, condition = reading.judged()
        result = tuning.conditions.progress_result(progress, condition)
        self._publish(context, result)
        decision = tuning.conditions.OnEnd.SUCCEED
        if progress.is_terminal:
            decision = tuning.conditions.end_decision(
                progress, condition, tuning.conditions.OnEnd.parse(self.on_end)
            )
        if decision is tuning.conditions.OnEnd.FAIL:
            self.give_up(AmtConditionNotMet(result))
        if decision is tuning.conditions.OnEnd.SKIP:
            message = str(AmtConditionNotMet(result))
            self.log.info("Skipping, as on_end asks: %s", message)
            raise _compat.AirflowSkipException(message)
        return result

    def _fired(self, context: Context, evidence: dict[str, Any]) -> dict[str, Any]:
        """Return the progress of now, if the condition still holds, or that of the trigger's event."""
        try:
            reading = self.new_reader(None).read()
        except AmtAwsError as error:
            self.log.warning("Reading AWS again failed; what the trigger saw counts: %s", error)
        else:
            if reading.result is not None and reading.result.met is tuning.conditions.Met.YES:
                return self.finish(context, reading)
            if reading.result is not None:
                self.log.info(
                    "The condition was met when the trigger fired, which counts: %s",
                    (evidence.get("condition") or {}).get("reason"),
                )
        self._publish(context, evidence)
        return evidence

    def _publish(self, context: Context, result: Mapping[str, Any]) -> None:
        from airflow_amt.triggers.progress import PROGRESS_KEY

        self.publish_link(context, str(result.get("tuning_job_arn") or ""))
        context["ti"].xcom_push(key=PROGRESS_KEY, value=result)

    def _common_arguments(self) -> dict[str, Any]:
        return {
            "on_end": self.on_end,
            "end_from_trigger": self.end_from_trigger,
            "check_interval": self.interval,
        }

    def _check_end_from_trigger(self) -> None:
        if not self.deferrable:
            raise AmtFieldError(
                "end_from_trigger",
                True,
                "only for a sensor that waits in the triggerer",
                "set deferrable=True or start_from_trigger=True",
            )
        if self.outlets:
            raise AmtFieldError(
                "end_from_trigger",
                True,
                "only without outlets: Airflow updates no asset when a trigger ends a task",
                "leave end_from_trigger or outlets out",
            )

    def _start_trigger_args(self) -> StartTriggerArgs | None:
        """Return what the scheduler starts the trigger with; ``None`` if a worker has to begin."""
        from airflow.triggers.base import StartTriggerArgs

        from airflow_amt.triggers.progress import AmtTuningProgressTrigger

        if isinstance(self.condition, XComArg):
            return None  # a triggerer renders to text only
        try:
            templates = {name: _as_template(getattr(self, name)) for name in self.template_fields}
        except _NotInTriggererError:
            return None
        timeout = timedelta(seconds=self.timeout) + _BACKSTOP
        # The scheduler takes the shorter one of the two.
        until_timeout = timeout if self.execution_timeout is None else min(timeout, self.execution_timeout)
        classpath, arguments = AmtTuningProgressTrigger(
            **templates,
            botocore_config=self.botocore_config,
            seconds_before_timeout=max(0.0, until_timeout.total_seconds() - self.timeout),
            **self._common_arguments(),
        ).serialize()
        return StartTriggerArgs(
            trigger_cls=classpath,
            trigger_kwargs=arguments,
            next_method="execute_complete",
            timeout=timeout,
        )


#: What a template may not ask for in a triggerer: Airflow 3.3.2 never answers there, and the trigger would
#: hang for ever. XComs are among it, except those of one map index.
_UNANSWERED = re.compile(r"xcom|prev_|_events")


class _NotInTriggererError(Exception):
    """An argument that a triggerer cannot render."""


def _as_template(value: Any) -> Any:
    """Return a value with the templates that read other tasks' XComs in place of references to these.

    :raises _NotInTriggererError: it holds what a triggerer cannot render.
    """
    if isinstance(value, PlainXComArg) and not value.operator.is_mapped:
        task = value.operator
        if next(task.iter_mapped_task_groups(), None) is None:
            # map_indexes is what makes the difference: see _UNANSWERED.
            return (
                f"{{{{ task_instance.xcom_pull(task_ids={task.task_id!r}, dag_id={task.dag_id!r}, "
                f"key={value.key!r}, map_indexes=-1) }}}}"
            )
    if isinstance(value, XComArg) or (
        isinstance(value, str) and _TEMPLATE.search(value) and _UNANSWERED.search(value)
    ):
        raise _NotInTriggererError
    if isinstance(value, Mapping):
        return {key: _as_template(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_template(one) for one in value]
    return value


_TEMPLATE = re.compile(r"\{\{|\{%")
