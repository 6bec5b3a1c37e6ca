"""The operator that starts a tuning job, waits for it and says why it ended."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from random import uniform
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from airflow.sdk import BaseOperator

from airflow_amt import _compat, tuning, watch
from airflow_amt._tasks import (
    CONNECTION_FIELDS,
    NAME_KEY,
    OUTCOME_KEY,
    TuningJobTask,
    check_policies,
    event_of,
    optional_seconds,
    parse_seconds,
    policies_argument,
    policing_of,
    resumed_state,
    resumption,
    sla_to_json,
)
from airflow_amt.exceptions import (
    AmtAwsError,
    AmtFieldError,
    AmtRequestError,
    AmtResourceLimitExceededError,
    AmtResourceNotFoundError,
)
from airflow_amt.links.tuning import AmtTuningJobLink
from airflow_amt.task_exceptions import (
    AmtTaskKilled,
    AmtTuningJobFailed,
    AmtTuningJobStopped,
    AmtTuningJobTimeout,
)

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_amt._claim import Claimed, Store
    from airflow_amt._policing import Policing
    from airflow_amt.tuning import CompletionCriteria, Owner
    from airflow_amt.tuning.custody import IfExists, KillDecision
    from airflow_amt.tuning.judgement import OutcomePolicy
    from airflow_amt.tuning.naming import Waits
    from airflow_amt.tuning.policies import Sla
    from airflow_amt.watch.polling import Verdict

#: Version of the dict that the operator returns when it does not wait.
STARTED_VERSION = 1

_Result = TypeVar("_Result")

_NAME = "HyperParameterTuningJobName"
_CREATE = "CreateHyperParameterTuningJob"
_CONFIG = "HyperParameterTuningJobConfig"
_S3_OPERATIONS = "S3Operations"

#: How long ``on_kill`` holds up the process. Airflow kills it 5 s after it asked, and while this waits, the
#: waiting loop cannot give back what the other thread may need.
_ON_KILL_SECONDS = 2.5
_ON_KILL_REST_SECONDS = 20.0

#: Waits between two attempts to create a job while a quota is used up: the first, and the longest.
_QUOTA_WAIT_SECONDS = 30.0
_QUOTA_LONGEST_WAIT_SECONDS = 600.0

#: Attempts to write a tag when a task is all but over: with their waits about 15 s of a worker slot.
_RECORD_ATTEMPTS = 5

#: What is kept of ``execution_timeout`` for stopping the job and reading its outcome, where the task waits on
#: a worker: Airflow ends that in the middle of anything. AMT gives training jobs 120 s to end.
_TIMEOUT_MARGIN = timedelta(seconds=150)
_TIMEOUT_MARGIN_SHARE = 0.2

#: Names a mapped task instance in the UI. Airflow refuses an empty name.
_MAP_INDEX_TEMPLATE = "{{ task.job_name_prefix }}"


class WaitingOperator(TuningJobTask, BaseOperator):
    """Base of the operators that wait for a tuning job to be over: in a loop or deferred.

    A subclass sets ``check_interval`` and ``deferrable`` and defines ``execute_complete``.
    """

    check_interval: Any
    deferrable: bool
    # Set by on_kill, which a signal handler calls in the middle of anything.
    _killed: bool = False

    def __init__(self, **kwargs: Any) -> None:
        # Without this one, Airflow 3.3 takes BaseOperator's for ours when a task is mapped, gives the task
        # None for inlets and outlets, and fails on them.
        super().__init__(**kwargs)

    def wait(
        self,
        context: Context,
        name: str,
        *,
        deadline: datetime | None,
        stop_on_kill: bool,
        state: dict[str, Any],
        policing: Policing | None = None,
    ) -> Verdict:
        """Wait until the tuning job is over or the deadline is; deferrable tasks defer after one read.

        :param state: what ``execute_complete`` needs, JSON-safe; name and deadline are added, and
            ``known_stop`` of a stop that a policy made.
        :param policing: holds the job to an SLA; ``None`` for none.
        :raises AmtTaskKilled: the task was killed meanwhile.
        :raises AmtAwsError: the job cannot be read.
        """
        interval = self._interval()
        guard = None if policing is None else policing.resumed_guard(lambda: self.hook, name, state)
        reader = watch.polling.TuningJobReader(
            lambda: self.hook.describe_tuning_job(name),
            interval_seconds=interval,
            deadline=deadline,
            log=self.log,
            guard=guard,
        )
        while True:
            reading = reader.read()
            if reading.progress is not None:
                self.publish_link(context, reading.progress.arn)
            if guard is not None and guard.stop is not None:
                state["known_stop"] = guard.stop.tags()
            if guard is not None and policing is not None and reading.verdict is watch.polling.Verdict.POLICY:
                self.raise_if_killed(name)
                policing.tell(context, reading, guard)
                continue
            if reading.verdict is not watch.polling.Verdict.WAIT:
                return reading.verdict
            if self.deferrable:
                self.before_deferral()
                # No timeout here: when it expires, Airflow fails the task without asking the operator,
                # and the job runs on. The deadline travels with the trigger instead.
                trigger = self.build_trigger(
                    name,
                    check_interval=interval,
                    deadline=deadline,
                    reading=reading,
                    stop_on_kill=stop_on_kill,
                    state=state,
                    guarded=None if policing is None or guard is None else policing.trigger_arguments(guard),
                )
                self.defer(
                    trigger=trigger,
                    method_name="execute_complete",
                    kwargs=resumption(name, trigger, guard),
                )
            self._sleep(reading.delay_seconds)
            self.raise_if_killed(name)

    def patiently(self, call: Callable[[], _Result], name: str | None = None) -> _Result:
        """Make a call to AWS until it succeeds; a kill of the task ends the waiting between two attempts.

        :raises AmtAwsError: the call failed for good.
        :raises AmtTaskKilled: the task was killed meanwhile.
        """

        def sleep(seconds: float) -> None:
            self._sleep(seconds)
            self.raise_if_killed(name)

        return watch.polling.patiently(call, interval_seconds=self._interval(), log=self.log, sleep=sleep)

    def raise_if_killed(self, name: str | None) -> None:
        """Stop waiting after ``on_kill``; Airflow's SIGTERM alone would let the task poll on."""
        if self._killed:
            raise AmtTaskKilled(name, self.after_kill())

    def before_deferral(self) -> None:
        """Do what has to be done before the task's process ends with a deferral."""

    def after_kill(self) -> str:
        """Say what was done about the tuning job."""
        return "the tuning job is left as it is"

    def on_kill(self) -> None:
        """End the waiting."""
        self._killed = True

    def _interval(self) -> float:
        return parse_seconds("check_interval", self.check_interval, at_least=0.1)

    def _sleep(self, seconds: float) -> None:
        # In slices: a signal handler's flag does not wake a longer sleep.
        until = time.monotonic() + seconds
        while not self._killed and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.5))


class AmtTuningJobOperator(WaitingOperator):
    """Start a tuning job, wait until it is over, and return why it ended.

    Purpose: a drop-in for the Amazon provider's ``SageMakerTuningOperator`` (its arguments and its
    ``config=`` work as they are) that adds typed completion criteria, a reason, and safe retries.

    How it works: the whole request is checked before any call. The job's name is derived from the task
    instance unless ``config`` gives one, and the job is tagged with its owner. A try that finds a job of an
    earlier try adopts it if it is active or if its result was never delivered, and starts a new one after a
    failure or when a person cleared a finished task (:func:`airflow_amt.tuning.custody.decide_existing`).
    That a result was delivered is recorded, in a tag, after Airflow accepted the task's success. Name (XCom
    ``tuning_job_name``) and console link are published as soon as the job exists. However the job ends, its
    outcome is pushed to XCom as ``outcome``; whether the task then succeeds, fails or is skipped is decided
    by ``fail_on``, ``skip_on`` and ``good_enough``
    (:class:`airflow_amt.tuning.judgement.OutcomePolicy`). Each asset in ``outlets`` gets the outcome's main
    facts as the extra of its event.

    What it does not do: it does not look at the S3 URIs of ``InputDataConfig``; AMT does.

    Known limitation: Airflow does not enforce ``execution_timeout`` while a task is deferred; this operator
    does, as a deadline of the try, in both modes. Where it waits on a worker it acts a little earlier (a
    fifth of the time, 150 s at most), because Airflow ends the process at the timeout itself.

    :param config: the ``CreateHyperParameterTuningJob`` request (templated), or an object with a
        ``to_request()`` that returns it; strings that a template rendered are turned into the API's types.
        ``RoleArn`` may be a role's name. The Amazon provider's ``S3Operations`` are run first, by that
        provider's hook.
    :param criteria: when AMT shall end the job: :class:`airflow_amt.tuning.CompletionCriteria` or a mapping
        of its attributes (templated). What it sets goes to its place in ``config``.
    :param aws_conn_id: connection (templated).
    :param region_name: AWS region (templated).
    :param verify: as for boto3 (templated).
    :param botocore_config: as for ``botocore.config.Config``. A deferred task stores it in the metadata
        database: keep secrets in the connection.
    :param wait_for_completion: ``False`` returns as soon as the job is created: version,
        ``tuning_job_name``, ``tuning_job_arn`` and ``status``.
    :param check_interval: seconds between two reads, 0.1 at least (templated).
    :param max_ingestion_time: seconds from the job's creation after which it is stopped and the task ends
        with the result so far: as :class:`airflow_amt.task_exceptions.AmtTuningJobTimeout`, unless
        ``fail_on``, ``skip_on`` or ``good_enough`` say otherwise; ``None`` for no limit (templated).
    :param deferrable: wait in the triggerer; default ``[operators] default_deferrable``.
    :param stop_on_kill: stop the tuning job when the task is killed (marked failed or successful, cleared,
        timed out).
    :param job_name_prefix: start of the derived name, and the label of a mapped task instance in the UI once
        it is over; default: the task id (templated). It should be the same in every try.
    :param if_exists: what to do about a job of an earlier try of this very task instance: ``adopt`` as above;
        ``new`` stops it if it is active and starts another one; ``fail`` fails (templated).
    :param fail_on: reasons of the job's end that fail the task, in place of the default.
    :param skip_on: reasons that skip it.
    :param good_enough: objective from which on a stopped job is a success (templated).
    :param on_quota: what to do when AWS answers ``ResourceLimitExceeded``: ``fail``, or ``wait`` and try
        again (deferred if ``deferrable``), after 30 s and then ever longer, 10 minutes at most.
    :param quota_timeout: seconds after which a task that waits for a quota fails; default a day (templated).
    :param warm_start_from_previous: start from the tuning job that this task created in the last successful
        run of this DAG, if there is one that can be started from: ``True`` for ``IdenticalDataAndAlgorithm``,
        or the ``WarmStartType`` (templated).
    :param description_path: where the job's full description and the list of its training jobs are written
        as JSON when it is over: a path or URI of Airflow's object storage, ``<name>.json`` is added to one
        that ends in ``/`` (templated).
    :param policies: stop policies (:mod:`airflow_amt.tuning.policies`) that the job is held to while the task
        waits: an :class:`~airflow_amt.tuning.policies.Sla`, a policy, a rule, a list of them, their dict or
        JSON, or where Airflow keeps it: ``"variable:<key>"``, ``"connection:<id>"`` (extra ``amt_sla``;
        templated). A job that a policy stops with ``stop`` is a success if there is a best training job.
    :param on_policy_callback: a callable, a notifier or a list of them, called like Airflow's callbacks, with
        the context, in which ``policy`` holds a report: on each warning and question, once each, and when a
        job that a policy stopped is over.
    :param ask_timeout: seconds that people have to answer a question of a policy; ``None`` for no end
        (templated).
    :param ask_default: what counts if nobody answers: ``stop`` or ``continue``.
    :param ask_assigned_users: who may answer: ids of users, or dicts of ``id`` and ``name``; default: all.
    :param plan_limits: refuse to create a job that may consume more, at the most, than ``max_cost``,
        ``max_billable_seconds`` or ``max_compute_seconds`` (any of them); money by the ``prices`` in here, or
        by those of the SLA (templated).
    :raises AmtRequestError: request, criteria or arguments are not well formed; every bad field is named,
        nothing was sent.
    :raises AmtJobExistsError: the name is somebody else's.
    :raises AmtTuningJobError: the job's outcome is no success; carries the outcome.
    :raises AmtAwsError: AWS refused a call.
    """

    template_fields: Sequence[str] = (
        "config",
        "criteria",
        "check_interval",
        "max_ingestion_time",
        "job_name_prefix",
        "if_exists",
        "good_enough",
        "quota_timeout",
        "warm_start_from_previous",
        "description_path",
        "policies",
        "ask_timeout",
        "plan_limits",
        *CONNECTION_FIELDS,
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"config": "json", "policies": "json"}
    operator_extra_links = (AmtTuningJobLink(),)
    ui_color = "#ededed"

    def __init__(
        self,
        *,
        config: Any,
        criteria: CompletionCriteria | Mapping[str, Any] | None = None,
        aws_conn_id: str | None = "aws_default",
        region_name: str | None = None,
        verify: bool | str | None = None,
        botocore_config: dict[str, Any] | None = None,
        wait_for_completion: bool = True,
        check_interval: float | str = 30,
        max_ingestion_time: float | str | None = None,
        deferrable: bool = _compat.default_deferrable(),
        stop_on_kill: bool = True,
        job_name_prefix: str | None = None,
        if_exists: str = "adopt",
        fail_on: Sequence[str] | str | None = None,
        skip_on: Sequence[str] | str | None = None,
        good_enough: float | str | None = None,
        on_quota: str = "fail",
        quota_timeout: float | str | timedelta = timedelta(days=1),
        warm_start_from_previous: bool | str = False,
        description_path: str | None = None,
        policies: Any = None,
        on_policy_callback: Any = None,
        ask_timeout: float | str | timedelta | None = timedelta(hours=1),
        ask_default: str = "stop",
        ask_assigned_users: Any = None,
        plan_limits: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # Airflow calls these in the task's process after its end was accepted. No listener of a plugin: where
        # one is installed, Airflow refuses every task of every DAG that sets end_from_trigger.
        self.on_success_callback = [_record_success, *self.on_success_callback]
        self.on_skipped_callback = [_record_skip, *self.on_skipped_callback]
        # At once: Airflow renders templates in a dict, not inside an object.
        self.config = config.to_request() if hasattr(config, "to_request") else config
        self.criteria = criteria
        self.aws_conn_id = aws_conn_id
        self.region_name = region_name
        self.verify = verify
        self.botocore_config = botocore_config
        self.wait_for_completion = wait_for_completion
        self.check_interval = check_interval
        self.max_ingestion_time = max_ingestion_time
        self.deferrable = deferrable
        self.stop_on_kill = stop_on_kill
        self.job_name_prefix = job_name_prefix
        self.if_exists = if_exists
        self.fail_on = fail_on
        self.skip_on = skip_on
        self.good_enough = good_enough
        self.on_quota = on_quota
        self.quota_timeout = quota_timeout
        self.warm_start_from_previous = warm_start_from_previous
        self.description_path = description_path
        self.policies = policies_argument(policies)
        self.on_policy_callback = on_policy_callback
        self.ask_timeout = ask_timeout
        self.ask_default = ask_default
        self.ask_assigned_users = ask_assigned_users
        self.plan_limits = (
            {name: sla_to_json(value) for name, value in plan_limits.items()}
            if isinstance(plan_limits, dict)
            else plan_limits
        )
        self._job_name: str | None = None
        self._job_arn: str | None = None
        self._task_key = ("", "", "", -1)
        self._label = ""
        # As it was before the job was created: not to be read may not end the task then.
        self._sla: Sla | None = None
        self._store: Store | None = None
        self._try_number = 1
        self._try_id = ""
        self._retry_left = False
        self._killer: threading.Thread | None = None
        self._kill_report: str | None = None
        # The name that the report is about.
        self._killed_job: str | None = None

    # -- the task -----------------------------------------------------------------------------------------

    def execute(self, context: Context) -> dict[str, Any]:
        """Check the request, create or adopt the tuning job, and wait for it."""
        return self._start(context, _Begun.now(self.execution_timeout, self.deferrable))

    def execute_complete(
        self,
        context: Context,
        event: Mapping[str, Any] | None = None,
        resume: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Go on after a trigger fired; AWS is read again, whatever the event says.

        Without an event it begins anew: a task that is cleared in the moment in which it defers is resumed by
        Airflow in its next try, though no trigger has fired (seen with 3.3.2).
        """
        event = event_of(event, resume)
        if not event:
            return self.execute(context)
        state = dict(event.get("state") or {})
        if state.get("waits_for") == "quota":
            return self._start(context, _Begun.from_state(state))
        name, deadline, state = resumed_state(event)
        self._take_up(context, name)
        error = self.watch_error(name, event)
        if error is not None:
            raise error
        return self._follow(context, name, deadline=deadline, state=state)

    def _start(self, context: Context, begun: _Begun) -> dict[str, Any]:
        owner = _owner(context)
        while True:
            self._take_up(context, None)
            checked = self._checked(owner)
            self._warn_if_endless(checked.request)
            try:
                claimed = self._claim(context, owner, checked, begun)
            except AmtResourceLimitExceededError as error:
                refusal = error
            else:
                return self._go_on(context, claimed, begun.deadline(claimed.created_at, checked.limit))
            begun = self._wait_for_quota(begun, checked, refusal)

    def _go_on(
        self, context: Context, claimed: Claimed, ends: tuple[datetime | None, str | None]
    ) -> dict[str, Any]:
        """Publish the job and, if that is wanted, wait for its end.

        :param ends: the deadline, and the argument that set it.
        """
        self._job_arn = claimed.arn
        self.raise_if_killed(claimed.name)
        context["ti"].xcom_push(key=NAME_KEY, value=claimed.name)
        self.publish_link(context, claimed.arn)
        if not self.wait_for_completion:
            description = self.patiently(lambda: self.hook.describe_tuning_job(claimed.name), claimed.name)
            return {
                "version": STARTED_VERSION,
                "tuning_job_name": claimed.name,
                "tuning_job_arn": claimed.arn,
                "status": tuning.TuningProgress.from_describe(description).status,
            }
        deadline, limit = ends
        return self._follow(context, claimed.name, deadline=deadline, state={"limit": limit})

    def _take_up(self, context: Context, name: str | None) -> None:
        """Remember what on_kill and record_delivered need to know of this try."""
        ti = context["ti"]
        self._job_name = name
        self._store = context.get("task_state_store")
        if self.job_name_prefix and _map_index(ti) >= 0 and context.get("map_index_template") is None:
            context["map_index_template"] = _MAP_INDEX_TEMPLATE
        self._task_key = (ti.dag_id, ti.run_id, ti.task_id, _map_index(ti))
        self._label = tuning.naming.task_label(ti)
        self._try_number = ti.try_number
        self._try_id = str(getattr(ti, "id", "") or "")
        self._retry_left = ti.try_number <= (getattr(ti, "max_tries", None) or 0)

    def _follow(
        self, context: Context, name: str, *, deadline: datetime | None, state: dict[str, Any]
    ) -> dict[str, Any]:
        """Wait until the job is over, stopping it at the deadline, and end the task.

        :param state: ``limit``, the name of the argument that set the deadline, and ``known_stop``, the tags
            of a stop that this task made.
        """
        state = {key: state.get(key) for key in ("limit", "known_stop", "memory", "answer")}
        policing = self._policing(context, state["memory"])
        while True:
            verdict = self.wait(
                context,
                name,
                deadline=deadline,
                stop_on_kill=self.stop_on_kill,
                state=state,
                policing=policing,
            )
            if verdict is watch.polling.Verdict.ENDED:
                return self._finish(context, name, state["known_stop"], policing)
            # Where a policy has stopped it in the same moment, that is what counts.
            state["known_stop"] = self._stop_at_deadline(name, state["limit"]) or state["known_stop"]
            deadline = None

    def _stop_at_deadline(self, name: str, limit: str | None) -> dict[str, str] | None:
        limit = limit or "max_ingestion_time"
        value = getattr(self, limit)
        seconds = value.total_seconds() if isinstance(value, timedelta) else value
        detail = f"{limit} of {seconds} s is over"
        self.log.warning("Tuning job %s: %s; it is stopped.", name, detail)
        stop = tuning.stops.Stop(stopped_by="deadline", detail=detail, requested_by=self._label)
        stopped = self.patiently(
            lambda: self.hook.stop_tuning_job(
                name, stopped_by=stop.stopped_by, detail=stop.detail, requested_by=stop.requested_by
            ),
            name,
        )
        return stop.tags() if stopped else None

    def _policing(self, context: Context, memory: Mapping[str, Any] | None = None) -> Policing | None:
        """Return what holds the job to its SLA; ``None`` without one.

        :param memory: what is known of earlier looks, of a task that goes on.
        :raises AmtRequestError: the SLA cannot be used.
        """
        return None if self.policies is None else policing_of(self, context, memory, self._sla)

    def _finish(
        self,
        context: Context,
        name: str,
        known_stop: dict[str, str] | None,
        policing: Policing | None = None,
    ) -> dict[str, Any]:
        outcome = self.read_outcome(context, name, interval_seconds=self._interval(), known_stop=known_stop)
        self._job_arn = outcome.arn
        result = outcome.to_dict()
        self.log.info("%s", tuning.report.outcome_table(outcome))
        _compat.count("amt.tuning_jobs.ended", {"reason": outcome.reason.value, "status": outcome.status})
        if self.description_path:
            result["description_path"] = self._write_description(name)
            context["ti"].xcom_push(key=OUTCOME_KEY, value=result)
        if policing is not None:
            policing.tell_stop(context, outcome)
        judgement = self._policy().judge(outcome)
        self.log.info("The task is to %s: %s.", judgement.ending.value, judgement.because)
        if judgement.ending is tuning.judgement.Ending.SUCCEED:
            self._tell_outlets(context, result)
            return result
        if judgement.ending is tuning.judgement.Ending.SKIP:
            raise _compat.AirflowSkipException(f"{outcome.explanation} ({judgement.because})")
        # Before the task fails: the next try shall start another job, not report this one again.
        self._record(outcome.arn, tuning.naming.REPORTED_TAG)
        if outcome.status != tuning.TuningJobStatus.STOPPED.value:
            raise AmtTuningJobFailed(result)
        timed_out = outcome.evidence.get("stopped_by") == "deadline"
        raise AmtTuningJobTimeout(result) if timed_out else AmtTuningJobStopped(result)

    def _tell_outlets(self, context: Context, result: Mapping[str, Any]) -> None:
        from airflow.sdk import Asset

        best = result["best_training_job"] or {}
        extra = {
            "tuning_job_name": result["tuning_job_name"],
            "tuning_job_arn": result["tuning_job_arn"],
            "status": result["status"],
            "reason": result["reason"],
            "best_training_job": best.get("name"),
            "objective_metric": result["objective_metric"],
            "objective": best.get("objective"),
        }
        for outlet in self.outlets:
            if isinstance(outlet, Asset):
                context["outlet_events"][outlet].extra.update(extra)

    def _write_description(self, name: str) -> str:
        from airflow.sdk import ObjectStoragePath

        path = ObjectStoragePath(
            f"{self.description_path}{name}.json"
            if str(self.description_path).endswith("/")
            else str(self.description_path)
        )
        description = self.patiently(lambda: self.hook.describe_tuning_job(name), name)
        description.pop("ResponseMetadata", None)
        training_jobs = self.patiently(lambda: list(self.hook.list_training_jobs(name)), name)
        whole = {"tuning_job": description, "training_jobs": training_jobs}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(whole, default=_json_safe, indent=1))
        return str(path)

    # -- ownership ----------------------------------------------------------------------------------------

    def record_delivered(self, ti: Any, expected_state: str) -> None:
        """Record that Airflow accepted the result, so that a cleared task starts another job.

        Called by a callback after the task's process reported its end. Airflow calls that also when the
        report was refused (a person had marked the task meanwhile), so its state is asked for first. What is
        not recorded is delivered once more, which costs nothing.
        """
        from airflow_amt._claim import STORE_KEY

        name, arn = self._job_name, self._job_arn
        if name is None or arn is None:
            return
        state = _compat.read_task_state(ti.dag_id, ti.run_id, ti.task_id, _map_index(ti))
        if state != expected_state:
            self.log.warning(
                "The task is %s, not %s: the result of %s is not taken as delivered.",
                state,
                expected_state,
                name,
            )
            return
        self._record(arn, tuning.naming.DELIVERED_TAG)
        kept = None if self._store is None else self._store.get(STORE_KEY)
        if self._store is not None and isinstance(kept, Mapping) and kept.get("name") == name:
            # It is empty by now if Airflow clears it on success.
            self._store.set(STORE_KEY, {**kept, "delivered": True})

    def _record(self, arn: str, tag: str) -> None:
        """Write a tag with the time; what cannot be written is told and costs one more delivery."""
        try:
            watch.polling.patiently(
                lambda: self.hook.add_tags(arn, {tag: _now()}),
                interval_seconds=1.0,
                log=self.log,
                most=_RECORD_ATTEMPTS,
            )
        except AmtAwsError as error:
            self.log.warning(
                "The tag %s of %s cannot be written: a later try may take its result for undelivered, and "
                "adopt it again (if_exists='new' does not): %s",
                tag,
                arn,
                error,
            )

    def _claim(self, context: Context, owner: Owner, checked: _Checked, begun: _Begun) -> Claimed:
        """Create the job, or find the one that an earlier try created."""
        request = checked.request
        self._expand_roles(request)
        if checked.warm_start is not None:
            self._warm_start(context, owner, request, checked.warm_start)
        s3_operations: list[Any] = [] if checked.s3_operations is None else [checked.s3_operations]

        def before_create() -> None:
            self.raise_if_killed(self._job_name)
            if begun.timeout_at is not None and datetime.now(UTC) >= begun.timeout_at:
                since = "" if begun.quota_since is None else f", a quota used up since {begun.quota_since}"
                raise _compat.AirflowTaskTimeout(
                    f"execution_timeout is over{since}: no tuning job is created"
                )
            if s3_operations and self._describe_or_none(str(request[_NAME])) is None:
                self._run_s3_operations(s3_operations.pop())

        from airflow_amt._claim import Claim

        claim = Claim(
            hook=lambda: self.hook,
            owner=owner,
            try_number=self._try_number,
            try_id=self._try_id,
            request=request,
            derived=checked.derived,
            prefix=self.job_name_prefix,
            if_exists=checked.if_exists,
            policy=self._policy(),
            waits=self._waits(),
            store=self._store,
            patiently=lambda call: self.patiently(call, self._job_name),
            pause=self._pause,
            on_name=self._set_name,
            before_create=before_create,
            log=self.log,
        )
        claimed = claim.settle(datetime.now(UTC))
        if not claimed.adopted:
            self._log_created(claimed, request)
        _compat.count(f"amt.tuning_jobs.{'adopted' if claimed.adopted else 'created'}")
        return claimed

    def _set_name(self, name: str) -> None:
        self._job_name = name
        self.raise_if_killed(name)

    def _pause(self) -> None:
        self._sleep(self._interval())
        self.raise_if_killed(self._job_name)

    def _waits(self) -> Waits:
        if not self.wait_for_completion:
            return tuning.naming.Waits.NO
        waits = tuning.naming.Waits
        return waits.YES if self.stop_on_kill else waits.LEAVE

    def _policy(self) -> OutcomePolicy:
        return tuning.judgement.OutcomePolicy.parse(
            fail_on=self.fail_on, skip_on=self.skip_on, good_enough=self.good_enough
        )

    def _warm_start(self, context: Context, owner: Owner, request: dict[str, Any], kind: str) -> None:
        """Let the job start from the last good run's, if that is possible."""
        from airflow_amt._previous_run import PreviousRun

        run = context.get("dag_run")
        parent = PreviousRun(
            hook=lambda: self.hook,
            ti=context["ti"],
            owner=owner,
            prefix=self.job_name_prefix,
            name_key=NAME_KEY,
            patiently=lambda call: self.patiently(call, None),
            log=self.log,
        ).tuning_job(has_logical_date=getattr(run, "logical_date", None) is not None)
        if parent is None:
            self.log.info("No tuning job of an earlier successful run: it starts without a warm start.")
            return
        name = str(parent[_NAME])
        warm = {
            "WarmStartType": kind,
            "ParentHyperParameterTuningJobs": [{"HyperParameterTuningJobName": name}],
        }
        warmed = {**request, "WarmStartConfig": warm}
        problems = [
            *tuning.check_warm_start(warmed, {name: parent}),
            *tuning.warm_start.check_training_job_limit(warmed, {name: parent}),
        ]
        if problems:
            # A changed request is no reason for a scheduled run to fail: it begins anew, and says why.
            self.log.warning(
                "Tuning job %s of the last successful run cannot be started from, so this one starts without "
                "a warm start: %s",
                name,
                " ".join(str(problem) for problem in problems),
            )
            return
        request["WarmStartConfig"] = warm
        self.log.info("It starts from tuning job %s of the last successful run (%s).", name, kind)

    # -- quota --------------------------------------------------------------------------------------------

    def _wait_for_quota(
        self, begun: _Begun, checked: _Checked, error: AmtResourceLimitExceededError
    ) -> _Begun:
        """Wait until it is time to try again, or defer until then.

        :raises AmtResourceLimitExceededError: that is not wanted, or the time for it is over.
        """
        if checked.quota_timeout is None:
            raise error
        now = datetime.now(UTC)
        since = begun.quota_since or now
        wait = min(_QUOTA_WAIT_SECONDS * 2.0**begun.quota_attempts, _QUOTA_LONGEST_WAIT_SECONDS)
        wait *= uniform(0.8, 1.2)  # noqa: S311 - tasks that were refused together shall not come together again
        ends = [(since + checked.quota_timeout, "quota_timeout")]
        if begun.timeout_at is not None:
            ends.append((begun.timeout_at, "execution_timeout"))
        end, limit = min(ends)
        left = (end - now).total_seconds()
        if left <= 0:
            self.log.error("The quota has been used up since %s, and %s is over: giving up.", since, limit)
            raise error
        wait = min(wait, left)
        begun = begun.refused(since)
        self.log.warning("A quota is used up; next attempt in %.0f s: %s", wait, error)
        if self.deferrable:
            from airflow_amt.triggers.quota import AmtQuotaTrigger

            self.defer(
                trigger=AmtQuotaTrigger(
                    moment=(now + timedelta(seconds=wait)).isoformat(), state=begun.to_state()
                ),
                method_name="execute_complete",
            )
        self._sleep(wait)
        self.raise_if_killed(None)
        return begun

    # -- kill ---------------------------------------------------------------------------------------------

    def on_kill(self) -> None:
        """Stop the tuning job if a person ended the task or its time is over, and end the waiting.

        A worker that is shut down sends the same signal as a person's kill; then the next try takes the job
        over (:func:`airflow_amt.tuning.custody.decide_on_kill`).
        """
        super().on_kill()
        if not self.stop_on_kill or self._job_name is None or self._killer is not None:
            return
        # Airflow calls this within its handler of the timeout's exception.
        timed_out = isinstance(sys.exc_info()[1], _compat.AirflowTaskTimeout)
        # In a thread: a signal handler may have interrupted this one while it held a lock that the calls
        # below need. What is not done in time goes on beside the waiting loop, which then ends.
        self._killer = threading.Thread(
            target=self._settle_kill, args=(timed_out,), name="airflow-amt-on-kill"
        )
        self._killer.start()
        self._killer.join(_ON_KILL_REST_SECONDS if timed_out else _ON_KILL_SECONDS)

    def after_kill(self) -> str:
        """Say what was done about the tuning job."""
        if not self.stop_on_kill:
            return super().after_kill()
        if self._killer is not None:
            self._killer.join(_ON_KILL_REST_SECONDS)
            if self._killer.is_alive():
                return "stopping the tuning job hangs"
        if self._kill_report is None or self._killed_job != self._job_name:
            # When the signal came there was none, or an earlier try's, and one may have been created since.
            self._settle_kill(False)
        return self._kill_report or "no tuning job was created"

    def before_deferral(self) -> None:
        """Wait for the thread of a kill that came just now: it would die with this process."""
        if self._killer is not None:
            self._killer.join(_ON_KILL_REST_SECONDS)

    def _settle_kill(self, timed_out: bool) -> None:
        name = self._job_name
        if name is None:
            return
        self._killed_job, self._kill_report = name, None
        if timed_out:
            decision = tuning.custody.KillDecision(stop=True, reason="execution_timeout is over")
        else:
            decision = self._decide_kill(name)
        if not decision.stop:
            self._kill_report = f"the tuning job runs on, because {decision.reason}"
            self.log.warning("Tuning job %s is not stopped: %s.", name, decision.reason)
            return
        try:
            stopped = self.hook.stop_tuning_job(
                name,
                stopped_by="deadline" if timed_out else "on_kill",
                detail=decision.reason,
                requested_by=self._label,
            )
            self._kill_report = (
                f"the tuning job is being stopped, because {decision.reason}"
                if stopped
                else "the tuning job was over, or being stopped, already"
            )
        except AmtResourceNotFoundError:
            self.log.info("Tuning job %s was not created yet.", name)
        except AmtAwsError as error:
            self._kill_report = f"the tuning job could not be stopped and may run on: {error}"
            self.log.exception("Tuning job %s could not be stopped and may run on.", name)

    def _decide_kill(self, name: str) -> KillDecision:
        state: str | None
        try:
            state = _compat.read_task_state(*self._task_key)
        except Exception:
            # Whatever the supervisor raises, it means the same here: not known. It is logged.
            self.log.exception("The task's state cannot be read")
            state = tuning.custody.UNREADABLE
        superseded = False
        if state == "running" and not self._retry_left:
            try:
                superseded = self._superseded(name)
            except AmtAwsError as error:
                self.log.warning("The tuning job's tags cannot be read: %s", error)
        custody = tuning.custody
        return custody.decide_on_kill(
            state,
            place=custody.Place.WORKER,
            # A next try that adopts nothing does not come back for this job.
            retry_left=self._retry_left and self.if_exists != "fail",
            superseded=superseded,
        )

    def _superseded(self, name: str) -> bool:
        arn = tuning.TuningProgress.from_describe(self.hook.describe_tuning_job(name)).arn
        found = (self.hook.tags(arn) or {}).get(tuning.naming.TRY_TAG, "")
        return found.isdigit() and int(found) > self._try_number

    # -- checks -------------------------------------------------------------------------------------------
    def _checked(self, owner: Owner, *, read_policies: bool = True) -> _Checked:
        """Check all arguments, and list all problems at once.

        :param read_policies: whether an SLA that Airflow keeps is read.
        """
        problems: list[AmtFieldError] = []
        request, s3_operations = self._request(owner, problems)
        _collect(problems, self._interval)
        _collect(problems, self._policy)
        self._sla = _collect(problems, lambda: check_policies(self, read=read_policies))
        if tuning.values.is_given(self.policies) and not self.wait_for_completion:
            problems.append(
                AmtFieldError(
                    "policies",
                    self.policies,
                    "only for a task that waits: with wait_for_completion=False nobody looks at the job",
                    "leave wait_for_completion out, or hold the job to them by AmtTuningJobSensor",
                )
            )
        if request:
            if self._sla is not None:
                problems += tuning.planning.unpriced(request, self._sla)
            _collect(problems, lambda: self._plan(request))
        limit = _collect(
            problems, lambda: optional_seconds("max_ingestion_time", self.max_ingestion_time, at_least=0)
        )
        quota_timeout = _collect(problems, self._parsed_quota_timeout)
        if_exists = _choice(
            "if_exists", self.if_exists, [one.value for one in tuning.custody.IfExists], problems
        )
        if if_exists == "new" and self._given().get(_NAME) is not None:
            problems.append(
                AmtFieldError(
                    "if_exists",
                    if_exists,
                    f"config gives a name ({self._given()[_NAME]}), which no second tuning job can have",
                    f"leave {_NAME} out of config; job_name_prefix gives a derived name its start",
                )
            )
        warm_start = self._parsed_warm_start(request, problems)
        # Two checks may find fault with one field; the first to do so is the more specific one.
        by_field: dict[str, AmtFieldError] = {}
        for problem in problems:
            by_field.setdefault(problem.field, problem)
        if by_field:
            raise AmtRequestError(by_field.values())
        return _Checked(
            request=request,
            derived=self._given().get(_NAME) is None,
            s3_operations=s3_operations,
            limit=None if limit is None else timedelta(seconds=limit),
            quota_timeout=quota_timeout,
            if_exists=tuning.custody.IfExists(if_exists),
            warm_start=warm_start,
        )

    def _plan(self, request: Mapping[str, Any]) -> None:
        """Log what the job may consume at the most, and refuse it if that is above a limit.

        :raises AmtRequestError: it is, or a limit is none.
        """
        limits = self.plan_limits
        if limits is None:
            return
        if not isinstance(limits, Mapping) or not limits or set(limits) - {*_PLAN_LIMITS, "prices"}:
            raise AmtRequestError(
                [
                    AmtFieldError(
                        "plan_limits",
                        limits,
                        f"a dict of {', '.join(_PLAN_LIMITS)}, and prices",
                        'give {"max_compute_seconds": 360000}',
                    )
                ]
            )
        most = {
            name: None if (value := limits.get(name)) is None else _number(f"plan_limits.{name}", value)
            for name in _PLAN_LIMITS
        }
        prices = limits.get("prices")
        if prices is not None:
            prices = tuning.costs.PriceTable.parse(prices, path="plan_limits.prices")
        elif self._sla is not None:
            prices = self._sla.prices
        if prices is None and self._sla is None and tuning.values.is_given(self.policies):
            # The SLA cannot be used, which is told, or Airflow keeps it and it is not read here.
            most["max_cost"] = None
        if prices is None and most["max_cost"] is not None:
            raise AmtRequestError(
                [
                    AmtFieldError(
                        "plan_limits.prices",
                        None,
                        "prices, for a limit in money",
                        'give {"currency": "EUR", "per_hour": {"ml.m5.xlarge": 0.26}}, or an SLA with prices',
                    )
                ]
            )
        plan = tuning.planning.planned(request, prices=prices, **most)
        self.log.info("%s", plan.summary())

    def _given(self) -> Mapping[str, Any]:
        """Return the request that the author of the DAG gave; empty if it is none."""
        return self.config if isinstance(self.config, Mapping) else {}

    def _parsed_quota_timeout(self) -> timedelta | None:
        """Return how long to wait for a quota; ``None`` for not at all."""
        problems: list[AmtFieldError] = []
        on_quota = _choice("on_quota", self.on_quota, ["fail", "wait"], problems)
        if problems:
            raise AmtRequestError(problems)
        seconds = parse_seconds("quota_timeout", self.quota_timeout, at_least=0)
        return timedelta(seconds=seconds) if on_quota == "wait" else None

    def _parsed_warm_start(self, request: Mapping[str, Any], problems: list[AmtFieldError]) -> str | None:
        """Return the warm start's type; ``None`` for none."""
        given = self.warm_start_from_previous
        if given in (None, False, "", "False", "None"):
            return None
        types = ["IdenticalDataAndAlgorithm", "TransferLearning"]
        kind = types[0] if given in (True, "True") else str(given)
        field = "warm_start_from_previous"
        if kind not in types:
            problems.append(
                AmtFieldError(field, given, f"True, False or one of {', '.join(types)}", "give one")
            )
        if request.get("WarmStartConfig") is not None:
            problems.append(
                AmtFieldError(field, given, "config has a WarmStartConfig already", "give one of the two")
            )
        if request.get("TrainingJobDefinitions") is not None:
            problems.append(
                AmtFieldError(
                    field,
                    given,
                    "a warm start takes one training job definition",
                    "give TrainingJobDefinition, or no warm start",
                )
            )
        strategy = (request.get(_CONFIG) or {}).get("Strategy") if request else None
        if strategy in ("Grid", "Hyperband"):
            problems.append(
                AmtFieldError(
                    field,
                    given,
                    f"{strategy} takes no warm start",
                    "use Bayesian or Random, or leave it out",
                )
            )
        return kind

    def _request(self, owner: Owner, problems: list[AmtFieldError]) -> tuple[dict[str, Any], Any]:
        """Return the request and the S3 operations beside it; add what is wrong to the problems."""
        from airflow_amt import service_model

        given = self._given()
        if not isinstance(self.config, Mapping):
            problems.append(
                AmtFieldError(
                    "config",
                    self.config,
                    "a mapping, or an object with to_request()",
                    "pass a dict; a template that stands for the whole of it needs "
                    "render_template_as_native_obj=True",
                )
            )
            self._parsed_criteria(problems)
            return {}, None
        config = dict(given)
        s3_operations = config.pop(_S3_OPERATIONS, None)
        request = service_model.coerce(_CREATE, config)
        criteria = self._parsed_criteria(problems)
        tuning_config = request.get(_CONFIG)
        if criteria is not None and (tuning_config is None or isinstance(tuning_config, Mapping)):
            merged = _collect(problems, lambda: criteria.merge_into(tuning_config or {}))
            if merged is not None:
                request[_CONFIG] = merged
        prefix = self.job_name_prefix
        if request.get(_NAME) is None:
            request[_NAME] = tuning.derive_job_name(owner, prefix=prefix)
        elif prefix is not None:
            problems.append(
                AmtFieldError(
                    "job_name_prefix",
                    prefix,
                    f"config gives the name already ({request[_NAME]})",
                    "give one of the two",
                )
            )
        if request.get("Tags") is None or isinstance(request["Tags"], list):
            tags = request.get("Tags") or []
            problems += tuning.naming.check_room_for_tags(tags)
            request["Tags"] = tuning.naming.with_tags(
                tags, {**owner.tags(), tuning.naming.GENERATION_TAG: "1"}
            )
        problems += service_model.check_create_request(_with_sample_roles(request))
        return request, s3_operations

    def _parsed_criteria(self, problems: list[AmtFieldError]) -> CompletionCriteria | None:
        given = self.criteria
        return None if given is None else _collect(problems, lambda: tuning.CompletionCriteria.parse(given))

    def _warn_if_endless(self, request: Mapping[str, Any]) -> None:
        if not tuning.request.is_endless(request):
            return
        self.log.warning(
            "Neither max_training_jobs nor max_runtime limits this tuning job: other criteria may never be "
            "met, and it may run, and cost, until AWS's quotas end it. Set one of the two in criteria."
        )

    def _describe_or_none(self, name: str) -> dict[str, Any] | None:
        try:
            return self.hook.describe_tuning_job(name)
        except AmtResourceNotFoundError:
            return None

    def _run_s3_operations(self, operations: Any) -> None:
        from airflow.providers.amazon.aws.hooks.sagemaker import SageMakerHook

        self.log.info("Running the S3 operations of the config.")
        SageMakerHook(  # type: ignore[no-untyped-call]
            aws_conn_id=self.aws_conn_id,
            region_name=self.region_name,
            verify=self.verify,
            config=self.botocore_config,
        ).configure_s3_resources({_S3_OPERATIONS: deepcopy(operations)})

    def _expand_roles(self, request: dict[str, Any]) -> None:
        for definition in _definitions(request):
            role = definition.get("RoleArn")
            if isinstance(role, str) and _is_role_name(role):
                definition["RoleArn"] = self.hook.expand_role(role)

    def _log_created(self, claimed: Claimed, request: Mapping[str, Any]) -> None:
        self.log.info("Created tuning job %s (%s).", claimed.name, claimed.arn)
        compute = tuning.estimated_max_compute(request)
        if compute is not None:
            self.log.info("It may consume %s instance-seconds at most, by the guide's estimate.", compute)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked:
    """What an operator was asked for, checked.

    :param request: the request, roles still unexpanded.
    :param derived: whether the job's name is derived.
    :param s3_operations: the S3 operations beside the request.
    :param limit: ``max_ingestion_time``.
    :param quota_timeout: how long to wait for a quota; ``None`` for not at all.
    :param if_exists: what to do about an earlier try's job.
    :param warm_start: ``WarmStartType``; ``None`` for no warm start.
    """

    request: dict[str, Any]
    derived: bool
    s3_operations: Any
    limit: timedelta | None
    quota_timeout: timedelta | None
    if_exists: IfExists
    warm_start: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begun:
    """What a try knows from its beginning on, also after it waited for a quota.

    :param timeout_at: when ``execution_timeout`` demands that the job is stopped.
    :param quota_since: when a quota was first found used up.
    :param quota_attempts: how often.
    """

    timeout_at: datetime | None
    quota_since: datetime | None = None
    quota_attempts: int = 0

    @classmethod
    def now(cls, execution_timeout: timedelta | None, deferrable: bool) -> _Begun:
        if execution_timeout is None:
            return cls(timeout_at=None)
        margin = timedelta(0)
        if not deferrable:
            margin = min(_TIMEOUT_MARGIN, execution_timeout * _TIMEOUT_MARGIN_SHARE)
        return cls(timeout_at=datetime.now(UTC) + execution_timeout - margin)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> _Begun:
        timeout_at, since = state.get("timeout_at"), state.get("quota_since")
        return cls(
            timeout_at=None if timeout_at is None else datetime.fromisoformat(timeout_at),
            quota_since=None if since is None else datetime.fromisoformat(since),
            quota_attempts=int(state.get("quota_attempts") or 0),
        )

    def to_state(self) -> dict[str, Any]:
        return {
            "waits_for": "quota",
            "timeout_at": None if self.timeout_at is None else self.timeout_at.isoformat(),
            "quota_since": None if self.quota_since is None else self.quota_since.isoformat(),
            "quota_attempts": self.quota_attempts,
        }

    def refused(self, since: datetime) -> _Begun:
        return replace(self, quota_since=since, quota_attempts=self.quota_attempts + 1)

    def deadline(self, created_at: datetime, limit: timedelta | None) -> tuple[datetime | None, str | None]:
        """Return when the job is to be stopped, and the argument that says so."""
        ends = [] if self.timeout_at is None else [(self.timeout_at, "execution_timeout")]
        if limit is not None:
            ends.append((created_at + limit, "max_ingestion_time"))
        return min(ends) if ends else (None, None)


_PLAN_LIMITS = ("max_cost", "max_billable_seconds", "max_compute_seconds")

#: Stands for a role that is given by name while the request is checked: the API wants an ARN.
_SAMPLE_ROLE = "arn:aws:iam::000000000000:role/"


def _collect(problems: list[AmtFieldError], check: Callable[[], _Result]) -> _Result | None:
    """Return what the check returns; add the problems that it raises to the list."""
    try:
        return check()
    except AmtRequestError as error:
        problems.extend(error.problems)
        return None


def _number(field: str, value: Any) -> float:
    try:
        return tuning.values.parse_number(field, value)
    except AmtFieldError as error:
        raise AmtRequestError([error]) from error


def _choice(field: str, given: Any, choices: Sequence[str], problems: list[AmtFieldError]) -> str:
    """Return the choice that was given; add a problem and return the first if it is none."""
    text = given.value if isinstance(given, Enum) else given
    if text in choices:
        return str(text)
    problems.append(AmtFieldError(field, given, f"one of {', '.join(choices)}", "give one of them"))
    return choices[0]


def _record_success(context: Context) -> None:
    _record_of(context, "success")


def _record_skip(context: Context) -> None:
    _record_of(context, "skipped")


def _record_of(context: Context, state: str) -> None:
    # The task of the context is the copy that Airflow ran, not the one that was given the callback.
    task = context["task"]
    if isinstance(task, AmtTuningJobOperator):
        task.record_delivered(context["ti"], state)


def _owner(context: Context) -> Owner:
    ti = context["ti"]
    return tuning.Owner(
        dag_id=ti.dag_id,
        run_id=ti.run_id,
        task_id=ti.task_id,
        map_index=_map_index(ti),
        deployment=_compat.deployment_id(),
    )


def _map_index(ti: Any) -> int:
    return -1 if ti.map_index is None else int(ti.map_index)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _json_safe(value: Any) -> str:
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else str(value)


def _definitions(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [one for _, one in tuning.request.training_job_definitions(request) if isinstance(one, dict)]


def _is_role_name(role: Any) -> bool:
    """Whether a role is given by its name: an ARN always has a slash (as in the Amazon provider)."""
    return isinstance(role, str) and role != "" and "/" not in role and ":" not in role


def _with_sample_roles(request: Mapping[str, Any]) -> dict[str, Any]:
    sample = deepcopy(dict(request))
    for definition in _definitions(sample):
        if _is_role_name(definition.get("RoleArn")):
            definition["RoleArn"] = _SAMPLE_ROLE + definition["RoleArn"]
    return sample
