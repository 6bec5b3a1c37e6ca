"""What operators and sensors share: the hook, the trigger, what is published, and how a task ends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow_amt import watch
from airflow_amt._lazy_hook import LazyHook
from airflow_amt.exceptions import AmtAwsError, AmtFieldError, AmtRequestError
from airflow_amt.hooks.errors import from_payload
from airflow_amt.links.tuning import URL_ATTRIBUTE, AmtTuningJobLink, console_url

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_amt._policing import AskSettings, Policing
    from airflow_amt.hooks.guard import Guard
    from airflow_amt.triggers.tuning import AmtTuningJobTrigger
    from airflow_amt.tuning import TuningOutcome
    from airflow_amt.tuning.policies import Sla
    from airflow_amt.watch.polling import Reading

#: XCom keys. The outcome is there also when the task fails.
NAME_KEY = "tuning_job_name"
OUTCOME_KEY = "outcome"

#: Template fields of everything that talks to AWS, as the Amazon provider has them.
CONNECTION_FIELDS = ("aws_conn_id", "region_name", "verify")


#: Shortest time for which a task that is held to an SLA stays deferred, in seconds, unless its interval is
#: shorter: a step can be due at once, but Airflow fails a task that resumes before its scheduler has heard of
#: the deferral (see ``first_read_at`` of the trigger).
_SHORTEST_DEFERRAL_SECONDS = 10.0


def next_read_at(reading: Reading, *, at_least: float = 0.0) -> str:
    """Return when a trigger is to read first what the task has just read; ISO 8601.

    :param at_least: seconds from now.
    """
    return (datetime.now(UTC) + timedelta(seconds=max(reading.delay_seconds, at_least))).isoformat()


class TuningJobTask(LazyHook):
    """Mixin of operators and sensors: one AWS connection, one tuning job at a time."""

    # From BaseOperator; a logger of structlog or of the standard library.
    log: Any

    def build_trigger(
        self,
        name: str,
        *,
        check_interval: float,
        deadline: datetime | None,
        reading: Reading,
        stop_on_kill: bool,
        state: dict[str, Any] | None = None,
        guarded: dict[str, Any] | None = None,
    ) -> AmtTuningJobTrigger:
        """Return the trigger that watches the tuning job with this task's connection.

        :param reading: what the task has just read.
        :param state: what the task needs when it resumes (:func:`resumed_state`); JSON-safe.
        :param guarded: of a job that is held to an SLA, what the trigger needs for that.
        """
        # Airflow's triggers are no part of parsing a DAG.
        from airflow_amt.triggers.tuning import AmtTuningJobTrigger

        kind: Any = AmtTuningJobTrigger
        at_least = 0.0
        if guarded is not None:
            at_least = min(check_interval, _SHORTEST_DEFERRAL_SECONDS)
            from airflow_amt.triggers.guarded import AmtGuardedTuningJobTrigger

            kind = AmtGuardedTuningJobTrigger
        trigger: AmtTuningJobTrigger = kind(
            tuning_job_name=name,
            check_interval=check_interval,
            deadline=None if deadline is None else deadline.isoformat(),
            first_read_at=next_read_at(reading, at_least=at_least),
            stop_on_kill=stop_on_kill,
            state={**(state or {}), "deadline": None if deadline is None else deadline.isoformat()},
            **self.connection_arguments(),
            **(guarded or {}),
        )
        return trigger

    def publish_link(self, context: Context, arn: str) -> None:
        """Push the console link, unless it was pushed before, and log it."""
        url = console_url(arn)
        if url is None or getattr(self, URL_ATTRIBUTE, None) == url:
            return
        setattr(self, URL_ATTRIBUTE, url)
        context["ti"].xcom_push(key=AmtTuningJobLink().xcom_key, value=url)
        endpoint = self.hook.other_endpoint
        if endpoint is None:
            self.log.info("AWS console: %s", url)
        else:
            self.log.info(
                "Look at it with: aws sagemaker describe-hyper-parameter-tuning-job "
                "--hyper-parameter-tuning-job-name %s --endpoint-url %s",
                arn.rsplit("/", 1)[-1],
                endpoint,
            )

    def read_outcome(
        self,
        context: Context,
        name: str,
        *,
        interval_seconds: float,
        known_stop: Mapping[str, str] | None = None,
    ) -> TuningOutcome:
        """Infer why the tuning job ended, publish that to XCom and log it."""
        outcome = watch.polling.patiently(
            lambda: self.hook.outcome(name, known_stop=known_stop),
            interval_seconds=interval_seconds,
            log=self.log,
        )
        self.publish_link(context, outcome.arn)
        context["ti"].xcom_push(key=OUTCOME_KEY, value=outcome.to_dict())
        self.log.info(
            "Tuning job %s ended as %s, reason %s%s: %s",
            name,
            outcome.status,
            outcome.reason.value,
            "" if outcome.certain else " (not certain)",
            outcome.explanation,
        )
        if outcome.progress.best_objective is None:
            self.log.warning(
                "Tuning job %s: no training job gave an objective; check MetricDefinitions' Regex or the "
                "training jobs' failures.",
                name,
            )
        return outcome

    def watch_error(self, name: str, event: Mapping[str, Any] | None) -> AmtAwsError | None:
        """Return the error with which the trigger gave up watching, if it did and the job is not over.

        The event is a hint: the triggerer may have had another role or network than this worker.
        """
        from airflow_amt.triggers.tuning import EventKind
        from airflow_amt.tuning import TuningProgress

        if not event or event.get("event") != EventKind.ERROR.value:
            return None
        error = from_payload(event.get("error") or {})
        try:
            progress = TuningProgress.from_describe(self.hook.describe_tuning_job(name))
        except AmtAwsError as again:
            self.log.warning("Reading it again failed too: %s", again)
            return error
        return None if progress.is_terminal else error


def policies_argument(given: Any) -> Any:
    """Return an SLA, as a DAG's author gave it, in a form in which Airflow can render, show and store it."""
    if given is None or isinstance(given, (str, dict, type)):
        return given
    return sla_to_json(given)


def sla_to_json(given: Any) -> Any:
    """Return the dict of an SLA, a policy or a rule; of anything else, the same with those within it so."""
    if isinstance(given, (list, tuple)):
        return [sla_to_json(one) for one in given]
    return given.to_dict() if hasattr(given, "to_dict") and not isinstance(given, type) else given


def policing_of(
    task: Any, context: Context, memory: Mapping[str, Any] | None, last: Sla | None = None
) -> Policing | None:
    """Return what holds a task's tuning job to its SLA; ``None`` without one.

    :param task: has ``policies``, ``on_policy_callback``, ``ask_timeout``, ``ask_default``,
        ``ask_assigned_users``, ``deferrable`` and ``log``.
    :param memory: what is known of earlier looks, of a task that goes on.
    :param last: the SLA that this process has read before, if it did.
    :raises AmtRequestError: the SLA cannot be used.
    """
    from airflow_amt._policing import Policing

    return Policing.of(
        task.policies,
        context=context,
        callbacks=task.on_policy_callback,
        ask=ask_settings(task),
        deferrable=task.deferrable,
        log=task.log,
        memory=memory,
        last=last,
    )


def ask_settings(task: Any) -> AskSettings:
    """Return how a task asks people.

    :raises AmtRequestError: its ``ask_timeout`` is no time span.
    """
    from airflow_amt._policing import AskSettings

    timeout = optional_seconds("ask_timeout", task.ask_timeout, at_least=1)
    return AskSettings(
        timeout=None if timeout is None else timedelta(seconds=timeout),
        default=task.ask_default,
        assigned_users=task.ask_assigned_users,
    )


def check_policies(task: Any, *, read: bool = True) -> Sla | None:
    """Check a task's SLA, and what goes with it; return it.

    :param read: whether one that Airflow keeps is read; it is ``None`` otherwise.
    :raises AmtRequestError: it cannot be used.
    """
    if task.policies is not None or task.on_policy_callback is not None:
        from airflow_amt._policing import AskSettings, checked_callbacks, checked_sla

        problems: list[AmtFieldError] = []
        found = None
        try:
            checked_callbacks(task.on_policy_callback)
        except AmtRequestError as error:
            problems.extend(error.problems)
        try:
            ask = ask_settings(task)
        except AmtRequestError as error:
            problems.extend(error.problems)
            ask = AskSettings(default=task.ask_default, assigned_users=task.ask_assigned_users)
        try:
            found = checked_sla(task.policies, ask=ask, deferrable=task.deferrable, log=task.log, read=read)
        except AmtRequestError as error:
            problems.extend(error.problems)
        if problems:
            raise AmtRequestError(problems)
        return None if found is None else found[1]
    return None


def resumption(name: str, trigger: AmtTuningJobTrigger, guard: Guard | None) -> dict[str, Any] | None:
    """Return what a task gets when Airflow itself resumes it, without its trigger's event.

    Airflow 3.3 does so when a person answers the question of a deferred task, also the question of a try
    before. ``None`` if there can be none.
    """
    if guard is None or not guard.tells:
        return None
    state = {**(trigger.state or {}), "memory": guard.memory.to_dict()}
    return {"resume": {"tuning_job_name": name, "state": state}}


def event_of(event: Mapping[str, Any] | None, resume: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the event with which a task goes on: its trigger's, or one of Airflow's with a person's answer.

    :param resume: what :func:`resumption` returned.
    """
    from airflow_amt import _human

    human = _human.resumed_answer(event) if resume else None
    if human is None or resume is None:
        return event
    return {**resume, "state": {**resume["state"], "answer": human.to_dict()}}


def resumed_state(event: Mapping[str, Any] | None) -> tuple[str, datetime | None, dict[str, Any]]:
    """Return what a task needs to go on, from the event of the trigger that it deferred to.

    :return: name of the tuning job, deadline, and all of the state.
    :raises AmtFieldError: there is no event, or it names no tuning job.
    """
    event = event or {}
    name = event.get("tuning_job_name")
    if not isinstance(name, str):
        raise AmtFieldError(
            "event", dict(event), "an event of its trigger", "resume with execute_complete only"
        )
    state = dict(event.get("state") or {})
    deadline = state.get("deadline")
    return name, None if deadline is None else datetime.fromisoformat(deadline), state


def parse_seconds(field: str, value: Any, *, at_least: float) -> float:
    """Return a duration in seconds from a number, a timedelta or what a template rendered.

    :raises AmtRequestError: it is none of these, not finite, or below ``at_least``.
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, str):
        try:
            seconds = float(seconds.strip())
        except ValueError:
            seconds = math.nan
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not at_least <= seconds < 1e9:
        raise AmtRequestError(
            [
                AmtFieldError(
                    field,
                    value,
                    f"a number of seconds, at least {at_least:g}",
                    f"give {field} in seconds",
                )
            ]
        )
    return float(seconds)


def optional_seconds(field: str, value: Any, *, at_least: float) -> float | None:
    """Return a duration as :func:`parse_seconds`; ``None`` for none, also as a template renders it."""
    if value is None or (isinstance(value, str) and value.strip() in ("", "None")):
        return None
    return parse_seconds(field, value, at_least=at_least)


def require_name(field: str, value: Any) -> str:
    """Return the name of a tuning job that a person gave, if it can be one.

    :raises AmtRequestError: it does not match the API's pattern and length.
    """
    from airflow_amt import service_model

    problems: Iterable[AmtFieldError] = (
        AmtFieldError(field, problem.value, advice.limit, advice.fix)
        for problem in service_model.validate(
            "DescribeHyperParameterTuningJob", {"HyperParameterTuningJobName": value}
        )
        for advice in (problem.as_error(),)
    )
    found = list(problems)
    if found:
        raise AmtRequestError(found)
    return str(value)
