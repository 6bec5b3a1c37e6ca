"""What operators and sensors that hold their tuning job to an SLA share.

The deciding is elsewhere (:mod:`airflow_amt.tuning.policies`), and so is the acting
(:class:`airflow_amt.hooks.guard.Guard`); here is what needs Airflow: the task's arguments, the callbacks, and
the questions to people.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow_amt import tuning
from airflow_amt.exceptions import AmtFieldError, AmtRequestError

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_amt.hooks.guard import Guard, Memory
    from airflow_amt.hooks.sla import SlaSource
    from airflow_amt.hooks.tuning import AmtHook
    from airflow_amt.tuning import TuningOutcome
    from airflow_amt.tuning.asking import HumanAnswer, Question
    from airflow_amt.tuning.policies import Due, RunTimes, Sla
    from airflow_amt.watch.polling import Reading

#: Key of the context under which callbacks find what a policy has to tell.
POLICY_KEY = "policy"

Callbacks = Callable[..., Any] | Sequence[Callable[..., Any]] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AskSettings:
    """How people are asked.

    :param timeout: how long they have; ``None`` for as long as the tuning job runs.
    :param default: what counts if nobody answers: ``stop`` or ``continue``.
    :param assigned_users: who may answer, as :func:`airflow_amt.tuning.asking.parse_users` takes it.
    """

    timeout: timedelta | None = timedelta(hours=1)
    default: str = "stop"
    assigned_users: Any = None


class Policing:
    """Holds the tuning job of one task to an SLA.

    :param source: the SLA, or where it is kept.
    :param sla: it, as it is now.
    :param context: the task's.
    :param callbacks: called with the context, in which ``policy`` holds the report.
    :param ask: how people are asked.
    :param deferrable: whether the task waits in the triggerer; only then people can answer.
    :param log: the task's.
    """

    def __init__(
        self,
        source: SlaSource,
        sla: Sla,
        *,
        context: Context,
        callbacks: Callbacks,
        ask: AskSettings,
        deferrable: bool,
        log: Any,
    ) -> None:
        from airflow_amt.hooks.guard import asks
        from airflow_amt.hooks.sla import run_times

        self._source = source
        self.sla = sla
        self._callbacks = _listed(callbacks)
        self._ask = ask
        self._deferrable = deferrable
        self.log = log
        self.requested_by = tuning.naming.task_label(context["ti"])
        self._run: RunTimes = run_times(context)
        #: Whether a worker has to tell people something while the job runs, or may have to: an
        #: SLA that Airflow keeps can change.
        self.tells = bool(self._callbacks) or asks(sla) or source.sla is None

    @classmethod
    def of(
        cls,
        given: Any,
        *,
        context: Context,
        callbacks: Callbacks,
        ask: AskSettings,
        deferrable: bool,
        log: Any,
        memory: Mapping[str, Any] | None = None,
        last: Sla | None = None,
    ) -> Policing | None:
        """Check what a task was given; ``None`` if that is no SLA.

        :param memory: what is known of earlier looks, of a task that goes on.
        :param last: the SLA that this process has read before, if it did.
        :raises AmtRequestError: it is not well formed, is not where it should be kept, or does not go with
            the task.
        """
        from airflow_amt.hooks.guard import Memory

        last = Memory.parse(memory).sla or last
        found = checked_sla(given, ask=ask, deferrable=deferrable, log=log, last=last)
        if found is None:
            return None
        source, sla = found
        return cls(source, sla, context=context, callbacks=callbacks, ask=ask, deferrable=deferrable, log=log)

    def guard(self, hook: Callable[[], AmtHook], name: str, memory: Memory | None = None) -> Guard:
        """Return what looks at the tuning job in this process."""
        from airflow_amt.hooks.guard import Guard
        from airflow_amt.hooks.sla import SlaReader

        return Guard(
            hook,
            name,
            SlaReader(self._source, log=self.log, last=(memory and memory.sla) or self.sla),
            log=self.log,
            requested_by=self.requested_by,
            run=self._run,
            memory=memory,
            tells=self.tells,
        )

    def resumed_guard(self, hook: Callable[[], AmtHook], name: str, state: dict[str, Any]) -> Guard:
        """Return what looks at the tuning job of a task that may have looked at it before.

        :param state: what the task went on with; a person's answer is taken out of it.
        """
        from airflow_amt.hooks.guard import Memory
        from airflow_amt.tuning.asking import HumanAnswer

        guard = self.guard(hook, name, Memory.parse(state.get("memory")))
        answer = state.pop("answer", None)
        if answer is not None:
            self.answer_of(HumanAnswer.from_dict(answer), guard)
        return guard

    def trigger_arguments(self, guard: Guard) -> dict[str, Any]:
        """Return what a trigger needs to look at the tuning job with the same eyes."""
        return {
            "sla": self._source.to_dict(),
            "run": self._run.to_dict(),
            "memory": guard.memory.to_dict(),
            "requested_by": self.requested_by,
            "tells": self.tells,
        }

    def tell(self, context: Context, reading: Reading, guard: Guard) -> None:
        """Tell people what they have not been told: by the callbacks, and by a question of Airflow's."""
        look, progress = reading.look, reading.progress
        if look is None or progress is None:
            return
        asked = None
        for due in look.news:
            report = self._with_task(context, look.reports[due.id])
            self.log.warning("Tuning job %s, policy %s: %s", report["tuning_job_name"], due.rule, due.reason)
            if due.action.value == "ask" and not self._deferrable:
                # The SLA was changed while the task waited; from its beginning on that is refused.
                self.log.error("A task that waits on a worker cannot ask people: set deferrable=True.")
            elif due.action.value == "ask":
                asked = self._ask_people(context, due, report, guard)
            self._call(context, report)
        guard.told(progress.arn, [one.id for one in look.news], asked)

    def tell_report(self, context: Context, report: Mapping[str, Any]) -> None:
        """Call the callbacks with the report of a step that is due, or was done."""
        self._call(context, self._with_task(context, report))

    def tell_stop(self, context: Context, outcome: TuningOutcome) -> None:
        """Call the callbacks if this task stopped the job by policy."""
        # What is read back from a tag is not always what was written.
        by_this_task = (self.requested_by, tuning.naming.tag_value(self.requested_by))
        if outcome.policy is None or outcome.evidence.get("requested_by") not in by_this_task:
            return
        self._call(context, self._with_task(context, tuning.report.stop_report(outcome)))

    def answer_of(self, human: HumanAnswer, guard: Guard) -> None:
        """Hand an answer that Airflow resumed the task with to the guard."""
        from airflow_amt.hooks.guard import understood
        from airflow_amt.tuning.asking import Question

        asked = guard.memory.asked
        if asked is None:
            self.log.warning(
                "Somebody answered (%s) when no question was open; it changes nothing.",
                ", ".join(human.chosen) or "nothing",
            )
        else:
            guard.given = understood(human, Question.from_dict(asked.shown), asked.rule, self.log)

    def _ask_people(self, context: Context, due: Due, report: Mapping[str, Any], guard: Guard) -> Any:
        from airflow_amt import _human
        from airflow_amt.hooks.guard import Asked
        from airflow_amt.links.tuning import console_url
        from airflow_amt.tuning.asking import AskFacts, build_question

        now = datetime.now(UTC)
        until = None if self._ask.timeout is None else now + self._ask.timeout
        consumed = report.get("consumed") or {}
        jobs = report["training_jobs"]
        until_due = due.evidence.get("due")
        sla = guard.memory.sla or self.sla
        rule = next((r for t, r in zip(sla.titles, sla.rules, strict=True) if t == due.rule), None)
        question = build_question(
            AskFacts(
                tuning_job_name=report["tuning_job_name"],
                now=now,
                objective=report.get("objective_metric"),
                best_objective=report.get("best_objective"),
                launched=jobs["launched"],
                max_training_jobs=jobs["limit"],
                consumed=consumed.get("spent"),
                limit=consumed.get("limit"),
                unit=consumed.get("unit") or "money",
                currency=consumed.get("currency"),
                due=datetime.fromisoformat(until_due) if isinstance(until_due, str) else None,
                reason=due.reason,
                url=console_url(report["tuning_job_arn"]),
            ),
            default=self._ask.default,
            answer_until=until,
            raisable=rule is None or rule.raisable,
            assigned_users=self._ask.assigned_users,
        )
        shown: Question = question
        try:
            shown = _human.raise_question(context["ti"].id, question)
        except Exception:
            # Whatever the supervisor raises: the job must not run on without its task because of it.
            self.log.exception(
                "The question cannot be put to people: %s, without an answer it is %s.",
                "there is no time limit, so the job goes on" if until is None else f"at {until.isoformat()}",
                self._ask.default,
            )
        else:
            url = _human.question_url(context["ti"])
            self.log.info("People are asked%s: %s", f" at {url}" if url else "", shown.subject)
        return Asked(
            question=due.id,
            rule=due.rule,
            number=len(guard.memory.answers),
            until=until,
            shown={**question.to_dict(), "options": list(shown.options), "body": ""},
        )

    def _with_task(self, context: Context, report: Mapping[str, Any]) -> dict[str, Any]:
        ti = context["ti"]
        return {**report, "dag_id": ti.dag_id, "run_id": ti.run_id, "task_id": ti.task_id}

    def _call(self, context: Context, report: Mapping[str, Any]) -> None:
        for callback in self._callbacks:
            try:
                callback({**context, POLICY_KEY: dict(report)})
            except Exception:
                # As Airflow does with its own callbacks: who is told decides nothing about the job.
                self.log.exception("The policy callback %s failed", callback)


def checked_sla(
    given: Any, *, ask: AskSettings, deferrable: bool, log: Any, last: Sla | None = None, read: bool = True
) -> tuple[SlaSource, Sla] | None:
    """Check the SLA of a task, and what goes with it; ``None`` if there is none.

    :param last: the one that counted last, of a task that goes on.
    :param read: whether one that Airflow keeps is read; otherwise only its place is checked.
    :raises AmtRequestError: it is not well formed, is not where it should be kept, or does not go with the
        task.
    """
    if not tuning.values.is_given(given):
        return None
    from airflow_amt.hooks.guard import asks
    from airflow_amt.hooks.sla import SlaReader, SlaSource
    from airflow_amt.tuning.asking import parse_default, parse_users

    source = SlaSource.parse(given)
    problems: list[AmtFieldError] = []
    try:
        if parse_default(ask.default, field_name="ask_default") is None:
            problems.append(
                AmtFieldError(
                    "ask_default", ask.default, "stop or continue", "say what counts without an answer"
                )
            )
    except AmtFieldError as error:
        problems.append(error)
    try:
        parse_users(ask.assigned_users, field_name="ask_assigned_users")
    except AmtRequestError as error:
        problems.extend(error.problems)
    if source.sla is None and not read:
        _raise(problems)
        return None
    sla = SlaReader(source, log=log, last=last)()
    if asks(sla) and not deferrable:
        problems.append(
            AmtFieldError(
                "deferrable",
                deferrable,
                "an SLA that asks people needs a task that waits in the triggerer: only there Airflow shows "
                "them the question and tells the answer",
                "set deferrable=True, or use warn in place of ask",
            )
        )
    _raise(problems)
    return source, sla


def checked_callbacks(callbacks: Any) -> None:
    """Check what is to be called.

    :raises AmtRequestError: some of it is nothing that can be called.
    """
    several = callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]
    _raise(
        [
            AmtFieldError(
                "on_policy_callback",
                one,
                "a function that takes the context, a notifier, or a list of them",
                "give the function itself, not its name",
            )
            for one in several
            if one is not None and not callable(one)
        ]
    )


def _raise(problems: Sequence[AmtFieldError]) -> None:
    if problems:
        raise AmtRequestError(problems)


def _listed(callbacks: Callbacks) -> list[Callable[..., Any]]:
    if callbacks is None:
        return []
    return [callbacks] if callable(callbacks) else list(callbacks)
