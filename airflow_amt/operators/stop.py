"""The operator that stops a tuning job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from airflow_amt import _compat, tuning, watch
from airflow_amt._tasks import CONNECTION_FIELDS, NAME_KEY, require_name, resumed_state
from airflow_amt.exceptions import AmtFieldError, AmtRequestError, AmtResourceNotFoundError
from airflow_amt.links.tuning import AmtTuningJobLink
from airflow_amt.operators.tuning import WaitingOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_amt.tuning import TuningOutcome

#: Version of the dict that the operator returns.
STOP_VERSION = 1

#: What to do about a tuning job that is not there.
OnMissing = Literal["fail", "succeed"]
_ON_MISSING: tuple[OnMissing, ...] = get_args(OnMissing)


class AmtStopTuningJobOperator(WaitingOperator):
    """Stop a tuning job by name, wait until it is over, and return its best training job so far.

    A job that is over already is left alone and reported; one that is stopping already is waited for. Fit
    for a teardown task and for any trigger rule: it needs nothing but the name.

    Returns ``{"version", "tuning_job_name", "tuning_job_arn", "status", "reason", "explanation",
    "stopped", "best_training_job", "objective_metric"}``: ``stopped`` says whether this task stopped the
    job; ``reason``, ``explanation`` and ``best_training_job`` are those of the outcome, which is pushed to
    XCom as ``outcome``. Without waiting, the reason is ``None`` while the job is not over. If there is no
    job and that is a success, everything but ``version``, ``tuning_job_name`` and ``stopped`` is ``None``.

    Known limitation: if the task is retried after AWS had answered its stop call, ``stopped`` of the retry is
    ``False``.

    :param tuning_job_name: the tuning job (templated). ``None``, also as a template renders it, and an empty
        name stand for no job: a task that was ended before it created one has pushed no name to XCom.
    :param on_missing: what to do if there is no such job, or no name: ``fail`` or ``succeed``; default:
        ``succeed`` as a teardown, whose setup may not have come to create a job, else ``fail``.
    :param reason: why, for people; kept in a tag of the job (templated).
    :param aws_conn_id: connection (templated).
    :param region_name: AWS region (templated).
    :param verify: as for boto3 (templated).
    :param botocore_config: as for ``botocore.config.Config``.
    :param wait_for_completion: wait until the job is over.
    :param check_interval: seconds between two reads, 0.1 at least (templated).
    :param deferrable: wait in the triggerer; default ``[operators] default_deferrable``.
    :raises AmtRequestError: the name cannot be one of a tuning job, or ``on_missing`` is none of its values.
    :raises AmtResourceNotFoundError: there is no such tuning job, and that is a failure.
    """

    template_fields: Sequence[str] = ("tuning_job_name", "reason", "check_interval", *CONNECTION_FIELDS)
    operator_extra_links = (AmtTuningJobLink(),)
    ui_color = "#ededed"

    def __init__(
        self,
        *,
        tuning_job_name: str | None,
        on_missing: OnMissing | None = None,
        reason: str | None = None,
        aws_conn_id: str | None = "aws_default",
        region_name: str | None = None,
        verify: bool | str | None = None,
        botocore_config: dict[str, Any] | None = None,
        wait_for_completion: bool = True,
        check_interval: float | str = 30,
        deferrable: bool = _compat.default_deferrable(),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.tuning_job_name = tuning_job_name
        self.on_missing = on_missing
        self.reason = reason
        self.aws_conn_id = aws_conn_id
        self.region_name = region_name
        self.verify = verify
        self.botocore_config = botocore_config
        self.wait_for_completion = wait_for_completion
        self.check_interval = check_interval
        self.deferrable = deferrable

    def execute(self, context: Context) -> dict[str, Any]:
        """Stop the tuning job and wait for its end."""
        interval = self._interval()
        missing_is_success = self._missing_is_success()
        if missing_is_success and not tuning.values.is_given(self.tuning_job_name):
            self.log.info("No name of a tuning job was given: there is nothing to stop.")
            return _nothing(None)
        name = require_name("tuning_job_name", self.tuning_job_name)
        ti = context["ti"]
        stop = tuning.stops.Stop(
            stopped_by="operator",
            detail=self.reason or f"task {ti.task_id} of DAG {ti.dag_id}",
            requested_by=tuning.naming.task_label(ti),
        )
        try:
            stopped = watch.polling.patiently(
                lambda: self.hook.stop_tuning_job(
                    name, stopped_by=stop.stopped_by, detail=stop.detail, requested_by=stop.requested_by
                ),
                interval_seconds=interval,
                log=self.log,
            )
        except AmtResourceNotFoundError:
            if not missing_is_success:
                raise
            self.log.info("There is no tuning job %s: there is nothing to stop.", name)
            return _nothing(name)
        ti.xcom_push(key=NAME_KEY, value=name)
        return self._follow(context, name, stopped=stopped, known_stop=stop.tags() if stopped else None)

    def execute_complete(
        self,
        context: Context,
        event: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Go on after the trigger fired; AWS is read again, whatever the event says.

        Without an event it begins anew, as :meth:`AmtTuningJobOperator.execute_complete` does.
        """
        if not event:
            return self.execute(context)
        name, _, state = resumed_state(event)
        error = self.watch_error(name, event)
        if error is not None:
            raise error
        return self._follow(
            context, name, stopped=bool(state.get("stopped")), known_stop=state.get("known_stop")
        )

    def _missing_is_success(self) -> bool:
        if self.on_missing not in (None, *_ON_MISSING):
            raise AmtRequestError(
                [
                    AmtFieldError(
                        "on_missing",
                        self.on_missing,
                        f"one of {', '.join(_ON_MISSING)}, or None",
                        "leave it out for a success as a teardown and a failure otherwise",
                    )
                ]
            )
        return self.is_teardown if self.on_missing is None else self.on_missing == "succeed"

    def _follow(
        self, context: Context, name: str, *, stopped: bool, known_stop: dict[str, str] | None
    ) -> dict[str, Any]:
        if self.wait_for_completion:
            state = {"stopped": stopped, "known_stop": known_stop}
            self.wait(context, name, deadline=None, stop_on_kill=False, state=state)
        else:
            description = watch.polling.patiently(
                lambda: self.hook.describe_tuning_job(name), interval_seconds=self._interval(), log=self.log
            )
            now = tuning.infer_outcome(description)
            if not now.progress.is_terminal:
                self.publish_link(context, now.arn)
                return {**_result(now, stopped), "reason": None, "explanation": None}
        outcome = self.read_outcome(context, name, interval_seconds=self._interval(), known_stop=known_stop)
        return _result(outcome, stopped)


def _nothing(name: str | None) -> dict[str, Any]:
    return {
        "version": STOP_VERSION,
        "tuning_job_name": name,
        "tuning_job_arn": None,
        "status": None,
        "reason": None,
        "explanation": None,
        "stopped": False,
        "best_training_job": None,
        "objective_metric": None,
    }


def _result(outcome: TuningOutcome, stopped: bool) -> dict[str, Any]:
    facts = outcome.to_dict()
    return {
        "version": STOP_VERSION,
        "tuning_job_name": facts["tuning_job_name"],
        "tuning_job_arn": facts["tuning_job_arn"],
        "status": facts["status"],
        "reason": facts["reason"],
        "explanation": facts["explanation"],
        "stopped": stopped,
        "best_training_job": facts["best_training_job"],
        "objective_metric": facts["objective_metric"],
    }
