"""Callbacks for Airflow's ``DeadlineAlert``: a DAG run that is late stops its tuning jobs, or warns of them.

Airflow 3.2 and later have ``DeadlineAlert``; the module can be imported on 3.1, too.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, get_args

from airflow_amt import _compat, tuning
from airflow_amt.exceptions import AmtFieldError, AmtRequestError

if TYPE_CHECKING:
    from airflow.sdk.definitions.deadline import DeadlineAlert

    from airflow_amt.hooks.tuning import AmtHook
    from airflow_amt.tuning.deadlines import DeadlineAction

log = logging.getLogger(__name__)

#: Where a callback runs.
RunIn = Literal["triggerer", "executor"]
_RUN_IN: tuple[RunIn, ...] = get_args(RunIn)


async def stop_tuning_jobs(
    *,
    context: Mapping[str, Any] | None = None,
    action: DeadlineAction = "stop",
    task_ids: Sequence[str] | None = None,
    detail: str | None = None,
    name: str | None = None,
    aws_conn_id: str | None = "aws_default",
    region_name: str | None = None,
    verify: bool | str | None = None,
    botocore_config: dict[str, Any] | None = None,
) -> str:
    """Stop the tuning jobs of the DAG run that missed its deadline: for ``AsyncCallback``, in the triggerer.

    How it works: the tuning jobs in progress of the connection's account and region are listed, and those
    stopped whose ownership tags name the DAG run of the callback's context, in this Airflow deployment
    (``[amt] deployment``). Each carries ``airflow-amt:stopped-by = policy`` and the policy
    ``deadline_alert`` with what was due when. The task that waits for such a job sees it stopped and, with
    ``stop``, succeeds with the best training job so far, if there is one; with ``stop_and_fail`` it fails.
    Throttling and lost connections are waited out; a job that cannot be stopped does not keep the others
    from being stopped.

    What it does not do: it never touches a tuning job of another DAG run, without ownership tags, or with the
    tag ``airflow-amt:keep``. It acts once: a tuning job that the run creates later runs on.

    Build the alert with :func:`tuning_deadline`, which checks the arguments while the DAG is parsed.

    :param context: Airflow's: ``dag_run`` and ``deadline``.
    :param action: ``stop`` (the best training job is kept), ``stop_and_fail``, or ``warn``, which logs the
        progress of each tuning job and stops none.
    :param task_ids: only tuning jobs of these tasks; ``None`` for all.
    :param detail: why, for people; goes into tags and outcome.
    :param name: name of the deadline, for tags and log.
    :param aws_conn_id: connection.
    :param region_name: AWS region.
    :param verify: as for boto3.
    :param botocore_config: as for ``botocore.config.Config``.
    :return: what was done, one sentence; Airflow keeps it with the callback.
    :raises AmtRequestError: an argument cannot be used.
    :raises AmtDeadlineError: some tuning jobs could not be judged or stopped; all others were.
    """
    over = threading.Event()

    def pause(seconds: float) -> None:
        # A thread that sleeps would hold up a triggerer that is shut down.
        if over.wait(seconds):
            raise _CancelledError

    def check() -> None:
        if over.is_set():
            raise _CancelledError

    connection = _connection(aws_conn_id, region_name, verify, botocore_config)
    arguments = {"action": action, "task_ids": task_ids, "detail": detail, "name": name, **connection}
    try:
        return await _compat.in_thread(
            lambda: _enforce(context, arguments, sleep=pause, check=check), lasting=True
        )
    finally:
        over.set()


def stop_tuning_jobs_sync(
    *,
    context: Mapping[str, Any] | None = None,
    action: DeadlineAction = "stop",
    task_ids: Sequence[str] | None = None,
    detail: str | None = None,
    name: str | None = None,
    aws_conn_id: str | None = "aws_default",
    region_name: str | None = None,
    verify: bool | str | None = None,
    botocore_config: dict[str, Any] | None = None,
) -> str:
    """Do what :func:`stop_tuning_jobs` does, and take the same: for ``SyncCallback``, in an executor.

    Known limitation: as ``run_in`` of :func:`tuning_deadline`.
    """
    connection = _connection(aws_conn_id, region_name, verify, botocore_config)
    arguments = {"action": action, "task_ids": task_ids, "detail": detail, "name": name, **connection}
    return _enforce(context, arguments)


def tuning_deadline(
    reference: Any,
    interval: timedelta,
    *,
    action: DeadlineAction = "stop",
    task_ids: Sequence[str] | None = None,
    detail: str | None = None,
    name: str | None = None,
    aws_conn_id: str | None = "aws_default",
    region_name: str | None = None,
    verify: bool | str | None = None,
    botocore_config: dict[str, Any] | None = None,
    run_in: RunIn = "triggerer",
    executor: str | None = None,
) -> DeadlineAlert:
    """Return a ``DeadlineAlert`` that stops the tuning jobs of a DAG run that is late, or warns of them.

    ``DAG(deadline=tuning_deadline(DeadlineReference.DAGRUN_QUEUED_AT, timedelta(hours=6)))``; a list of
    alerts, others among them, does as well.

    :param reference: from when on: one of Airflow's ``DeadlineReference``.
    :param interval: how long after that the run is due; a ``timedelta``, or Airflow's ``VariableInterval``.
    :param action: as for :func:`stop_tuning_jobs`, like all that follow; none of them is a template.
    :param name: name of the deadline, also in Airflow's UI (3.3).
    :param run_in: ``triggerer`` or ``executor``. The latter has limits of Airflow's: 3.3.2 gives it no
        connection of its database, and 3.2.2's scheduler, on a database without UUIDs, dies when it is done.
    :param executor: which one, where there are several; with ``run_in="executor"``.
    :raises AmtFieldError: this Airflow is 3.1.
    :raises AmtRequestError: lists the arguments that cannot be used.
    """
    parts = _compat.deadline_classes()
    if parts is None:
        raise AmtFieldError(
            "Airflow",
            _compat.airflow_version(),
            "DeadlineAlert, for deadlines of DAG runs, exists from Airflow 3.2",
            "upgrade Airflow, or limit the task: max_ingestion_time, or a Deadline in its sla",
        )
    connection = _connection(aws_conn_id, region_name, verify, botocore_config)
    problems: list[AmtFieldError] = []
    arguments: dict[str, Any] = {}
    try:
        arguments = tuning.deadlines.check_arguments(
            action=action, task_ids=task_ids, detail=detail, name=name, **connection
        )
    except AmtRequestError as error:
        problems.extend(error.problems)
    if isinstance(reference, type) or not hasattr(reference, "serialize_reference"):
        problems.append(
            AmtFieldError(
                "reference",
                reference,
                "a reference of Airflow's DeadlineReference",
                "give DeadlineReference.DAGRUN_QUEUED_AT or another one",
            )
        )
    if not isinstance(interval, parts.intervals):
        problems.append(
            AmtFieldError("interval", interval, "a timedelta", "give the time until the run is due as one")
        )
    if run_in not in _RUN_IN:
        problems.append(
            AmtFieldError("run_in", run_in, f"known are {', '.join(_RUN_IN)}", "choose one of them")
        )
    elif executor is not None and run_in != "executor":
        problems.append(
            AmtFieldError("executor", executor, "the callback runs in the triggerer", 'add run_in="executor"')
        )
    if problems:
        raise AmtRequestError(problems)
    callback = (
        parts.asynchronous(stop_tuning_jobs, kwargs=arguments)
        if run_in == "triggerer"
        else parts.synchronous(stop_tuning_jobs_sync, kwargs=arguments, executor=executor)
    )
    alert: DeadlineAlert = parts.alert(reference=reference, interval=interval, callback=callback, name=name)
    return alert


def _connection(
    aws_conn_id: str | None,
    region_name: str | None,
    verify: bool | str | None,
    botocore_config: dict[str, Any] | None,
) -> dict[str, Any]:
    return {
        "aws_conn_id": aws_conn_id,
        "region_name": region_name,
        "verify": verify,
        "botocore_config": botocore_config,
    }


def _enforce(
    context: Mapping[str, Any] | None,
    arguments: dict[str, Any],
    *,
    sleep: Callable[[float], object] = time.sleep,
    check: Callable[[], object] = lambda: None,
) -> str:
    from airflow_amt.watch.deadlines import DeadlineEnforcer

    given = tuning.deadlines.check_arguments(**arguments)
    missed = tuning.deadlines.MissedDeadline.from_context(context, given.get("name"))
    task_ids = given.get("task_ids")
    jobs = tuning.deadlines.RunJobs(
        dag_id=missed.dag_id,
        run_id=missed.run_id,
        deployment=_compat.deployment_id(),
        task_ids=None if task_ids is None else frozenset(task_ids),
    )
    return DeadlineEnforcer(
        _hook(given),
        missed,
        jobs,
        action=given["action"],
        detail=given.get("detail"),
        log=log,
        sleep=sleep,
        check=check,
    ).run()


def _hook(arguments: Mapping[str, Any]) -> AmtHook:
    from airflow_amt.hooks.tuning import AmtHook

    conn_id = arguments["aws_conn_id"]
    hook = AmtHook(
        aws_conn_id=conn_id,
        region_name=arguments["region_name"],
        verify=arguments["verify"],
        config=arguments["botocore_config"],
    )
    try:
        found = bool(hook.conn_config)
    except PermissionError as error:  # AirflowSecretsBackendAccessDenied
        raise AmtFieldError(
            "aws_conn_id",
            conn_id,
            "Airflow 3.3 gives a callback in an executor no connection of its database",
            _CONNECTION_FIX,
        ) from error
    if not found and conn_id not in (None, "", "aws_default"):
        # Without it the calls would go to whatever account the machine itself belongs to.
        raise AmtFieldError(
            "aws_conn_id", conn_id, "it cannot be found where the callback runs", _CONNECTION_FIX
        )
    return hook


_CONNECTION_FIX = (
    'let the callback run in the triggerer (run_in="triggerer"), or give the connection to the executor by '
    "environment variable (AIRFLOW_CONN_...) or secrets backend, or use the machine's own role "
    "(aws_conn_id=None)"
)


class _CancelledError(Exception):
    """Airflow ended the callback; it runs it anew."""
