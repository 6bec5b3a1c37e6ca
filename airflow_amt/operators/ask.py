"""The operator that asks a person about a tuning job, as a step of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from airflow.sdk import BaseOperator

from airflow_amt import _compat, watch
from airflow_amt._tasks import (
    CONNECTION_FIELDS,
    NAME_KEY,
    TuningJobTask,
    optional_seconds,
    parse_seconds,
    require_name,
)
from airflow_amt.exceptions import AmtFieldError, AmtRequestError
from airflow_amt.links.tuning import AmtTuningJobLink, console_url
from airflow_amt.text import shown

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_amt.tuning.asking import Decision, Question

#: Version of the dict that the operator returns.
ASK_VERSION = 1

#: XCom keys: the question with its newest figures, and the page on which it is answered.
QUESTION_KEY = "question"

#: Seconds before a read of AWS that failed is made again, the first time.
_PAUSE_SECONDS = 5.0


class AmtAskOperator(TuningJobTask, BaseOperator):
    """Ask a person about a tuning job: to continue, to stop and use the best, or to raise the limit.

    How it works: the job is read once and the question raised as Airflow's human-in-the-loop request, which
    people answer under Required Actions; the task waits in the triggerer, on every supported Airflow. On
    "Stop and use the best" it stops the job and leaves in its tags who chose that. What "Raise the limit"
    means is up to what follows: this task only returns by how much. A job that is over, or being stopped, is
    not asked about.

    What it does not do: while it waits it watches nothing. The job goes on, and may end meanwhile; then a
    stop does nothing. To be asked by a policy while a task watches the job, see the stop policies' action
    ``ask``.

    Returns ``{"version", "tuning_job_name", "choice", "raise_by", "by", "timed_out", "stopped"}``: ``choice``
    is ``continue``, ``stop`` or ``raise``, and ``None`` if nobody was asked; ``raise_by`` is a share, 0.5 for
    half as much again; ``by`` is who answered, ``None`` if the default was taken; ``stopped`` says whether
    this task stopped the job. The question itself, with its newest figures and its ``url``, is in XCom
    ``question``.

    Known limitation: Airflow shows the first text of a task instance for good. A task that is retried or
    cleared asks again in the old words; the newest figures are in its log and in XCom.

    In ``dag.test()`` nobody can answer: with a ``response_timeout`` the default is taken, else it waits for
    ever.

    :param tuning_job_name: the tuning job (templated).
    :param prices: what instances cost, to say what was spent: a price table, its dict or JSON
        (:meth:`airflow_amt.tuning.costs.PriceTable.parse`; templated). An estimate, from training times.
    :param limit: the limit that the question names: a number of the prices' currency, or a text
        (templated). Without one, or with ``raisable=False``, nobody can raise it.
    :param raisable: whether raising is offered; default: if there is a limit.
    :param reason: why people are asked, a sentence (templated).
    :param default: what is done if nobody answers in time: ``stop`` or ``continue`` (templated). Who does not
        answer has not agreed to pay more.
    :param response_timeout: how long people have to answer: a timedelta, or seconds (templated); ``None`` for
        no limit.
    :param assigned_users: who may answer: ``{"id", "name"}`` or an id, one or several; ``None`` for everybody
        who may.
    :param notifiers: one or several of Airflow's notifiers, called when the question is raised, with
        ``question`` (``subject``, ``body``, ``url``) in their context. One that fails is logged.
    :param answer_interval: seconds between two looks for an answer, 1 at least (templated).
    :param aws_conn_id: connection (templated).
    :param region_name: AWS region (templated).
    :param verify: as for boto3 (templated).
    :param botocore_config: as for ``botocore.config.Config``.
    :raises AmtRequestError: something of this is not accepted.
    :raises AmtResourceNotFoundError: there is no such tuning job.
    """

    template_fields: Sequence[str] = (
        "tuning_job_name",
        "prices",
        "limit",
        "reason",
        "default",
        "response_timeout",
        "answer_interval",
        *CONNECTION_FIELDS,
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"prices": "json"}
    operator_extra_links = (AmtTuningJobLink(),)
    ui_color = "#ededed"

    def __init__(
        self,
        *,
        tuning_job_name: str,
        prices: Any = None,
        limit: float | str | None = None,
        raisable: bool | None = None,
        reason: str | None = None,
        default: str = "stop",
        response_timeout: timedelta | float | str | None = None,
        assigned_users: Any = None,
        notifiers: Any = None,
        answer_interval: float | str = 5,
        aws_conn_id: str | None = "aws_default",
        region_name: str | None = None,
        verify: bool | str | None = None,
        botocore_config: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.tuning_job_name = tuning_job_name
        self.prices = prices
        self.limit = limit
        self.raisable = raisable
        self.reason = reason
        self.default = default
        self.response_timeout = response_timeout
        self.assigned_users = assigned_users
        self.notifiers = notifiers
        self.answer_interval = answer_interval
        self.aws_conn_id = aws_conn_id
        self.region_name = region_name
        self.verify = verify
        self.botocore_config = botocore_config

    def execute(self, context: Context) -> dict[str, Any]:
        """Raise the question and wait for the answer."""
        name = require_name("tuning_job_name", self.tuning_job_name)
        # Before AWS is asked: whatever is wrong with the arguments is said at once.
        parse_seconds("answer_interval", self.answer_interval, at_least=1)
        timeout = optional_seconds("response_timeout", self.response_timeout, at_least=1)
        self._check()
        now = datetime.now(UTC)
        until = None if timeout is None else now + timedelta(seconds=timeout)
        question = self._question(context, name, now, until)
        context["ti"].xcom_push(key=NAME_KEY, value=name)
        if question is None:
            return _result(name, None, stopped=False)
        self._raise(context, question, first=True)
        return self._wait(context, name, question, until)

    def execute_complete(
        self,
        context: Context,
        event: Mapping[str, Any] | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Act on the answer.

        :param event: of the trigger, or Airflow's own: 3.3 resumes a task itself when somebody answers.
        :param state: what was given when the task was deferred; ``dag.test()`` drops it, the event has it.
        """
        from airflow_amt import _human
        from airflow_amt.tuning.asking import HumanAnswer, Question, explain, read_answer

        if not event:
            # A task that is cleared in the moment in which it defers is resumed by Airflow in its next try.
            return self.execute(context)
        known = dict(state or event.get("state") or {})
        name = require_name("tuning_job_name", known.get("tuning_job_name"))
        question = Question.from_dict(known.get("question") or {})
        until = None if known.get("until") is None else datetime.fromisoformat(known["until"])
        if event.get("ti_id") not in (None, str(context["ti"].id)):
            # SQLite gives the ids of deleted triggers anew, and Airflow finds tasks by them: the late event
            # of a trigger that was overtaken by Airflow's own resumption may come here.
            self.log.warning("An event of another task came here, and is ignored: %s", dict(event))
            return self._wait(context, name, question, until)
        if event.get("event") == "error":
            error = shown(event.get("error"))
            raise _compat.AirflowException(
                f"The answer to the question about tuning job {name} cannot be read: {error}. "
                "The tuning job runs on. Fix: see the trigger's log; clear the task to ask again."
            )
        answer = _human.resumed_answer(event) or HumanAnswer.from_dict(event.get("answer") or {})
        try:
            decision = read_answer(answer, question)
        except AmtRequestError as error:
            # The task must not fail on it: the job runs on, and somebody wants to say something.
            self.log.warning(
                "The answer of %s is no answer, so it is asked again: %s", shown(answer.by), error
            )
            self._raise(context, question, first=False)
            return self._wait(context, name, question, until)
        self.log.info("Tuning job %s: %s.", name, explain(decision))
        stopped = False
        if decision.choice.value == "stop":
            stopped = watch.polling.patiently(
                lambda: self.hook.stop_tuning_job(name, stopped_by="operator", detail=_detail(decision)),
                interval_seconds=_PAUSE_SECONDS,
                log=self.log,
            )
        return _result(name, decision, stopped=stopped)

    def _check(self) -> None:
        from airflow_amt.tuning.asking import parse_default, parse_users

        problems: list[AmtFieldError] = []
        try:
            if parse_default(self.default) is None:
                raise AmtFieldError(
                    "default", None, "one of stop, continue", "say what is done without answer"
                )
        except AmtFieldError as error:
            problems.append(error)
        for check in (lambda: parse_users(self.assigned_users), self._price_table):
            try:
                check()
            except AmtRequestError as error:
                problems.extend(error.problems)
        try:
            self._limit()
        except AmtFieldError as error:
            problems.append(error)
        if problems:
            raise AmtRequestError(problems)

    def _price_table(self) -> Any:
        from airflow_amt.tuning.costs import PriceTable

        if self.prices is None or (isinstance(self.prices, str) and self.prices.strip() in ("", "None")):
            return None
        return PriceTable.parse(self.prices)

    def _limit(self) -> float | str | None:
        """Return the limit: a number, or the text in which it is told."""
        from airflow_amt.tuning.values import parse_number

        given = self.limit
        if given is None or (isinstance(given, str) and given.strip() in ("", "None")):
            return None
        try:
            return parse_number("limit", given, at_least=0)
        except AmtFieldError:
            if not isinstance(given, str):
                raise
            return given

    def _question(
        self, context: Context, name: str, now: datetime, until: datetime | None
    ) -> Question | None:
        """Read the tuning job and put its facts into words; ``None`` if it is over or being stopped."""
        from airflow_amt.tuning import TuningProgress
        from airflow_amt.tuning.asking import AskFacts, build_question
        from airflow_amt.tuning.status import TuningJobStatus

        description = self._patiently(lambda: self.hook.describe_tuning_job(name))
        progress = TuningProgress.from_describe(description)
        self.publish_link(context, progress.arn)
        if progress.status != TuningJobStatus.IN_PROGRESS.value:
            self.log.info("Tuning job %s is %s: there is nothing to ask.", name, progress.status)
            return None
        limit = self._limit()
        facts = AskFacts.of(
            progress,
            now=now,
            consumption=self._consumption(name, description, now),
            limit=limit,
            reason=self.reason,
            url=None if self.hook.other_endpoint else console_url(progress.arn),
        )
        return build_question(
            facts,
            default=self.default,
            answer_until=until,
            raisable=limit is not None if self.raisable is None else self.raisable,
            assigned_users=self.assigned_users,
        )

    def _consumption(self, name: str, description: Mapping[str, Any], now: datetime) -> Any:
        prices = self._price_table()
        if prices is None:
            return None
        from airflow_amt.tuning import TrainingJobResult
        from airflow_amt.tuning.costs import Consumption, Resources, TrainingJobUsage, resources_of

        resources = resources_of(description)
        unknown = Resources(instances=(("an unknown instance type", 1),))
        summaries = self._patiently(lambda: list(self.hook.list_training_jobs(name)))
        consumption = Consumption.measure(
            [
                TrainingJobUsage.from_result(
                    TrainingJobResult.from_summary(one),
                    resources.get(one.get("TrainingJobDefinitionName"), resources.get(None, unknown)),
                    now=now,
                )
                for one in summaries
            ],
            prices,
        )
        if consumption.unpriced:
            self.log.warning(
                "What tuning job %s has cost cannot be told: there is no price for %s.",
                name,
                ", ".join(consumption.unpriced),
            )
        return consumption

    def _patiently(self, call: Any) -> Any:
        return watch.polling.patiently(call, interval_seconds=_PAUSE_SECONDS, log=self.log)

    def _raise(self, context: Context, question: Question, *, first: bool) -> None:
        # The words and the domain behind them are no part of parsing a DAG.
        from airflow_amt import _human

        ti = context["ti"]
        shown = _human.raise_question(ti.id, question)
        url = _human.question_url(ti)
        asked = {"subject": question.subject, "body": question.body, "url": url}
        ti.xcom_push(key=QUESTION_KEY, value=asked)
        self.log.info(
            "People are asked%s:\n%s\n\n%s", f" at {url}" if url else "", question.subject, question.body
        )
        if shown.subject != question.subject:
            self.log.warning(
                "Airflow goes on showing the words in which this task first asked: %s", shown.subject
            )
        if not first:
            return
        for notifier in self._notifiers():
            try:
                notifier({**context, "question": asked})
            except Exception:
                # The question is raised; that somebody was not told of it must not end the task.
                self.log.exception("Notifier %s failed", type(notifier).__name__)

    def _notifiers(self) -> list[Any]:
        if self.notifiers is None:
            return []
        return list(self.notifiers) if isinstance(self.notifiers, (list, tuple)) else [self.notifiers]

    def _wait(self, context: Context, name: str, question: Question, until: datetime | None) -> NoReturn:
        # Airflow's triggers are no part of parsing a DAG.
        from airflow_amt.triggers.answer import AmtAnswerTrigger

        state: dict[str, Any] = {
            "tuning_job_name": name,
            "question": question.to_dict(),
            "until": None if until is None else until.isoformat(),
        }
        self.defer(
            trigger=AmtAnswerTrigger(
                ti_id=str(context["ti"].id),
                question=state["question"],
                until=state["until"],
                check_interval=parse_seconds("answer_interval", self.answer_interval, at_least=1),
                state=state,
            ),
            method_name="execute_complete",
            # Airflow 3.3 resumes the task itself when somebody answers, and keeps only this.
            kwargs={"state": state},
        )


def _detail(decision: Decision) -> str:
    if decision.by is None:
        return "nobody answered in time in Airflow"
    return f"{decision.by} chose to stop it in Airflow"


def _result(name: str, decision: Decision | None, *, stopped: bool) -> dict[str, Any]:
    return {
        "version": ASK_VERSION,
        "tuning_job_name": name,
        "choice": None if decision is None else decision.choice.value,
        "raise_by": None if decision is None else decision.raise_by,
        "by": None if decision is None else decision.by,
        "timed_out": decision is not None and decision.timed_out,
        "stopped": stopped,
    }
