"""Holds one tuning job to an SLA: reads what its policies look at, decides, and makes the decision true.

No waiting here: whoever watches the job looks at intervals. A trigger, a task on a worker, the
SLA hook and the enforcing operator look with this same code. Nothing has to survive between two looks: what
was told and answered is in the job's tags, and a stop that was decided is decided again until AWS shows it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from logging import Logger
from typing import TYPE_CHECKING, Any, Protocol

from airflow_amt import _compat
from airflow_amt.exceptions import (
    AmtAccessDeniedError,
    AmtAwsError,
    AmtFieldError,
    AmtRequestError,
    AmtValidationError,
)
from airflow_amt.hooks.errors import is_transient
from airflow_amt.tuning.asking import HumanAnswer, Question, explain, read_answer
from airflow_amt.tuning.costs import TrainingJobUsage
from airflow_amt.tuning.history import TrainingJobResult, iso
from airflow_amt.tuning.naming import MAX_TAG_VALUE_LENGTH, POLICY_ANSWERS_TAG, POLICY_TOLD_TAG
from airflow_amt.tuning.policies import (
    NOBODY,
    Action,
    Answer,
    Due,
    Level,
    RunTimes,
    Situation,
    Sla,
    Verdict,
    decide,
    parse_sla,
    raised_by,
)
from airflow_amt.tuning.progress import TuningProgress
from airflow_amt.tuning.report import policy_report
from airflow_amt.tuning.saving import Saving, usages_of
from airflow_amt.tuning.status import TuningJobStatus
from airflow_amt.tuning.stops import PolicyStop, Stop

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from airflow_amt.hooks.tuning import AmtHook

#: Version of the dict of a memory; triggers store it.
MEMORY_VERSION = 1

#: Training jobs that are described in one look, so that a look stays short; a decision waits for all of them.
_MOST_DESCRIBED = 25

STOPPED_BY = "policy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question that people were asked and have not answered.

    :param question: id of the step that is due.
    :param rule: title of its rule.
    :param number: how many answers there were before.
    :param until: when the default counts as the answer; ``None`` for never.
    :param shown: the question as people see it (:meth:`airflow_amt.tuning.asking.Question.to_dict`).
    """

    question: str
    rule: str
    number: int
    until: datetime | None
    shown: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-safe; :meth:`parse` reads it back."""
        return {
            "question": self.question,
            "rule": self.rule,
            "number": self.number,
            "until": iso(self.until),
            "shown": dict(self.shown),
        }

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> Asked:
        """Read what :meth:`to_dict` wrote."""
        until = value.get("until")
        return cls(
            question=str(value["question"]),
            rule=str(value["rule"]),
            number=int(value.get("number") or 0),
            until=None if until is None else datetime.fromisoformat(until),
            shown=dict(value.get("shown") or {}),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What is known of earlier looks.

    :param told: ids of the warnings and questions that people were told.
    :param answers: what people answered.
    :param asked: the question that is open.
    :param sla: the SLA that counted last, where it can be changed meanwhile.
    :param unrecorded: the record of a stop that AWS accepted, as long as it is not known to be in the tags.
    """

    told: tuple[str, ...] = ()
    answers: tuple[Answer, ...] = ()
    asked: Asked | None = None
    sla: Sla | None = None
    unrecorded: Mapping[str, str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-safe; :meth:`parse` reads it back."""
        return {
            "version": MEMORY_VERSION,
            "told": list(self.told),
            "answers": [one.to_dict() for one in self.answers],
            "asked": None if self.asked is None else self.asked.to_dict(),
            "sla": None if self.sla is None else self.sla.to_dict(),
            "unrecorded": None if self.unrecorded is None else dict(self.unrecorded),
        }

    @classmethod
    def parse(cls, value: Mapping[str, Any] | None) -> Memory:
        """Read what :meth:`to_dict` wrote; ``None`` is an empty one."""
        if not value:
            return cls()
        asked, sla = value.get("asked"), value.get("sla")
        return cls(
            told=tuple(value.get("told") or ()),
            answers=tuple(Answer.parse(one) for one in value.get("answers") or ()),
            asked=None if asked is None else Asked.parse(asked),
            sla=None if sla is None else parse_sla(sla),
            unrecorded=value.get("unrecorded"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What one look came to.

    :param verdict: the decision.
    :param stop: the stop that this guard made, if AWS has just accepted it (or is seen to have accepted it).
    :param news: warnings and questions of which nobody was told.
    :param reports: for each of the news, and for the verdict's action, what there is to tell people;
        JSON-safe, by the id of the step.
    """

    verdict: Verdict
    stop: Stop | None = None
    news: tuple[Due, ...] = ()
    reports: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class SlaGiver(Protocol):
    """Gives the rules at each look."""

    @property
    def changeable(self) -> bool:
        """Whether they may be others at the next look."""

    def __call__(self) -> Sla:
        """Return them.

        :raises AmtRequestError: there have never been any that could be used.
        """


class AnswerSource(Protocol):
    """Reads what people answered."""

    def __call__(self, asked: Asked) -> Answer | None:
        """Return the answer to an open question, or the default once its time is over; else ``None``."""


class Guard:
    """Holds one tuning job to an SLA.

    :param hook: the account and region.
    :param name: the tuning job.
    :param sla: gives the rules; asked at each look, as they may be changed meanwhile.
    :param log: where decisions are told.
    :param requested_by: who enforces: a task instance in one line.
    :param run: times of the DAG run.
    :param memory: what is known of earlier looks.
    :param answers: reads what people answered; ``None`` where that cannot be read.
    :param tells: whether somebody else tells people the news (:meth:`told` is called then); otherwise the
        guard logs them, and that is it.
    :param clock: the time.
    """

    def __init__(
        self,
        hook: Callable[[], AmtHook],
        name: str,
        sla: SlaGiver,
        *,
        log: Logger | FilteringBoundLogger,
        requested_by: str | None = None,
        run: RunTimes | None = None,
        memory: Memory | None = None,
        answers: AnswerSource | None = None,
        tells: bool = False,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._hook = hook
        self._name = name
        self._give_sla = sla
        self._log = log
        self._requested_by = requested_by
        self._run = run or RunTimes()
        self.memory = memory or Memory()
        self._answers = answers
        self.tells = tells
        self._clock = clock
        self._listed: tuple[tuple[Any, ...], list[TrainingJobResult]] | None = None
        self._usages: dict[str, TrainingJobUsage] = {}
        self._may_describe = True
        self._may_list = True
        self._read_tags = False
        # What is known and not yet in the job's tags.
        self._unsaved: dict[str, str] = {}
        # Steps of which this guard has told.
        self._said: set[str] = set()
        self._settled = False
        self._last_unknown: tuple[str, ...] = ()
        #: An answer that Airflow resumed the task with; the next look takes it.
        self.given: Answer | None = None
        #: The stop that this guard made.
        self.stop: Stop | None = None

    def _sla(self) -> Sla:
        sla = self._give_sla()
        if self._give_sla.changeable:
            self.memory = replace(self.memory, sla=sla)
        return sla

    def evaluate(self, description: Mapping[str, Any], progress: TuningProgress) -> Verdict:
        """Decide, and do nothing.

        :param description: the job, as ``DescribeHyperParameterTuningJob`` answers.
        :param progress: the same, parsed.
        """
        sla = self._sla()
        situation = self._situation(sla, description, progress)
        verdict, _ = self._decide(sla, description, situation)
        return verdict

    def evaluate_rules(
        self, description: Mapping[str, Any], progress: TuningProgress
    ) -> tuple[Verdict, list[tuple[str, Level]]]:
        """Decide, do nothing, and return beside it how much of each rule's limit is used, by its title."""
        sla = self._sla()
        situation = self._situation(sla, description, progress)
        verdict, situation = self._decide(sla, description, situation)
        levels = [
            (title, rule.policy.measure(situation, raised=raised_by(rule, title, self.memory.answers)))
            for title, rule in zip(sla.titles, sla.rules, strict=True)
        ]
        return verdict, levels

    def look(self, description: Mapping[str, Any], progress: TuningProgress) -> Look:
        """Decide, stop the job if that is due, and say what else there is to tell people.

        :raises AmtAwsError: AWS cannot be read, or refused the stop; the next look decides anew.
        :raises AmtRequestError: there is no SLA that could be used.
        """
        if progress.status in (TuningJobStatus.STOPPING.value, TuningJobStatus.STOPPED.value):
            return self._settle(progress)
        if progress.is_terminal:
            return Look(verdict=Verdict(reason=f"The tuning job is {progress.status}."))
        self._save(progress.arn, {})
        sla = self._sla()
        situation = self._situation(sla, description, progress)
        self._take_answer(sla, progress.arn)
        verdict, situation = self._decide(sla, description, situation)
        self._tell_unknown(verdict)
        saving = Saving.of(progress, situation.consumption)
        if verdict.stops:
            stop = self._stop(verdict, progress, saving)
            report = policy_report(verdict.due[0], situation, saving=saving)
            return Look(verdict=verdict, stop=stop, reports={verdict.due[0].id: report})
        news = self._news(verdict)
        look = Look(
            verdict=verdict,
            news=news,
            reports={one.id: policy_report(one, situation, saving=saving) for one in news},
        )
        if news and not self.tells:
            for one in news:
                self._log.warning("Tuning job %s, policy %s: %s", self._name, one.rule, one.reason)
            self.told(progress.arn, [one.id for one in news])
            return replace(look, news=())
        return look

    def told(self, arn: str, ids: Iterable[str], asked: Asked | None = None) -> None:
        """Take note, also in the job's tags, that people were told of steps that are due.

        :param arn: the tuning job.
        :param ids: the steps.
        :param asked: the question that is open now.
        """
        told = tuple(dict.fromkeys([*self.memory.told, *ids]))
        self._said.update(ids)
        self.memory = replace(self.memory, told=told, asked=asked or self.memory.asked)
        self._save(arn, {POLICY_TOLD_TAG: _told_words(told)})

    def _save(self, arn: str, tags: Mapping[str, str]) -> None:
        """Write what is known into the job's tags; what cannot be written now is tried at the next look."""
        self._unsaved.update(tags)
        if not self._unsaved:
            return
        try:
            self._hook().add_tags(arn, self._unsaved)
        except AmtAwsError as error:
            # Whoever goes on with the task gets the same from this process; deciding does not wait for it.
            self._log.warning(
                "The tags %s cannot be written, which is tried again: %s", ", ".join(self._unsaved), error
            )
            if is_transient(error):
                return
        self._unsaved = {}

    def _take_answer(self, sla: Sla, arn: str) -> None:
        """Take what people answered to the open question, if they did, and note it in the job's tags."""
        asked = self.memory.asked
        if asked is None:
            return
        answer = self.given
        if answer is None and self._answers is not None:
            answer = self._answers(asked)
        if answer is None:
            return
        self.given = None
        self._load_tags(arn)
        known = self.memory.answers
        if len(known) > asked.number:
            # An earlier process has read it and ended.
            self.memory = replace(self.memory, asked=None)
            return
        answers = (*known, answer)
        self.memory = replace(self.memory, answers=answers, asked=None)
        self._log.info(
            "Tuning job %s, policy %s: the answer is %s.", self._name, answer.rule, answer.encode()
        )
        if answer.rule not in sla.titles:
            self._log.warning(
                "The SLA has no rule %s any more, so this answer changes nothing: its rules are %s.",
                answer.rule,
                ", ".join(sla.titles),
            )
        self._save(arn, {POLICY_ANSWERS_TAG: _answer_words(answers)})

    def _decide(
        self, sla: Sla, description: Mapping[str, Any], situation: Situation
    ) -> tuple[Verdict, Situation]:
        """Decide; what is due is decided again once all is known that could change it."""
        verdict = decide(sla, situation, answers=self.memory.answers)
        # A person's decision to stop counts also when the rule is kept again.
        if not verdict.due and not asks(sla):
            return verdict, situation
        arn = situation.progress.arn
        known = self.memory.answers
        self._load_tags(arn)
        # A stop for another reason does not wait for what training jobs are billed for.
        reasons = {verdict.rule} if verdict.stops else {one.rule for one in verdict.due}
        if _uses_billing(sla, among=reasons):
            situation = self._situation(sla, description, situation.progress, all_of_them=True)
        elif known == self.memory.answers:
            return verdict, situation
        return decide(sla, situation, answers=self.memory.answers), situation

    def _situation(
        self,
        sla: Sla,
        description: Mapping[str, Any],
        progress: TuningProgress,
        *,
        all_of_them: bool = False,
    ) -> Situation:
        now = self._clock()
        jobs: Sequence[TrainingJobResult] | None = None
        usages: Sequence[TrainingJobUsage] | None = None
        if sla.uses_training_jobs or sla.uses_costs:
            jobs = self._listable_training_jobs(progress)
        if jobs is not None:
            usages = self._consumed(sla, description, jobs, now, all_of_them=all_of_them)
        return Situation(
            progress=progress,
            now=now,
            training_jobs=jobs,
            usages=usages,
            prices=sla.prices,
            run=self._run,
        )

    def _listable_training_jobs(self, progress: TuningProgress) -> list[TrainingJobResult] | None:
        """Return the training jobs; ``None`` if that is not permitted: other rules still count."""
        if not self._may_list:
            return None
        try:
            return self._training_jobs(progress)
        except AmtAccessDeniedError as error:
            self._may_list = False
            self._log.warning("Training jobs cannot be listed, which some rules need: %s", error)
            return None

    def _training_jobs(self, progress: TuningProgress) -> list[TrainingJobResult]:
        counters = (progress.training_jobs, progress.objectives)
        if self._listed is not None and self._listed[0] == counters:
            return self._listed[1]
        jobs = [TrainingJobResult.from_summary(one) for one in self._hook().list_training_jobs(self._name)]
        # A list that lags behind the counters, or a job that has not begun to train, is read again.
        complete = sum(one.has_ended for one in jobs) >= progress.training_jobs.ended and all(
            one.has_ended or one.started_at is not None for one in jobs
        )
        self._listed = (counters, jobs) if complete else None
        return jobs

    def _consumed(
        self,
        sla: Sla,
        description: Mapping[str, Any],
        jobs: Sequence[TrainingJobResult],
        now: datetime,
        *,
        all_of_them: bool,
    ) -> list[TrainingJobUsage]:
        estimates = usages_of(description, jobs, now=now)
        if not _uses_billing(sla):
            return estimates
        estimated = {one.name: one for one in estimates}
        missing = [
            one
            for one in jobs
            if one.has_ended and one.training_seconds is not None and one.name not in self._usages
        ]
        # The newest first: of the others an estimate was good enough up to now.
        for job in reversed(missing if all_of_them else missing[-_MOST_DESCRIBED:]):
            if not self._may_describe:
                break
            try:
                told = self._hook().describe_training_job(job.name)
            except AmtAccessDeniedError as error:
                self._may_describe = False
                self._log.warning(
                    "Training jobs cannot be described, so what they are billed for is estimated from their "
                    "training time: %s",
                    error,
                )
            except AmtValidationError as error:
                # Of what was deleted meanwhile, the estimate stays.
                self._log.info("Training job %s cannot be described: %s", job.name, error)
                self._usages[job.name] = estimated[job.name]
            except AmtAwsError as error:
                if all_of_them or not is_transient(error):
                    raise
                self._log.info("What training jobs are billed for is estimated for now: %s", error)
                break
            else:
                self._usages[job.name] = TrainingJobUsage.from_describe(told, now=now)
        return [self._usages.get(one.name, one) for one in estimates]

    def _news(self, verdict: Verdict) -> tuple[Due, ...]:
        told = self.memory.told
        news = [one for one in verdict.warnings if one.id not in told and _digest(one.id) not in told]
        if self.memory.asked is None:
            # One at a time: people see one question of a task.
            news += [one for one in verdict.questions if not self._was_asked(one)][:1]
        return tuple(news)

    def _was_asked(self, due: Due) -> bool:
        """Whether people were asked and have answered; the question of a try that ended is asked again."""
        if due.id not in self.memory.told:
            return False
        if due.id in self._said:
            return True  # whether or not anybody can answer here
        asked = sum(one.startswith(f"{due.rule}:{Action.ASK.value}@") for one in self.memory.told)
        return asked <= sum(one.rule == due.rule for one in self.memory.answers)

    def _stop(self, verdict: Verdict, progress: TuningProgress, saving: Saving | None) -> Stop | None:
        policy = PolicyStop(
            code=verdict.code or "",
            rule=verdict.rule or "",
            action=(verdict.action or Action.STOP).value,
            share=verdict.share,
            evidence={**flat(verdict.evidence), **_known_then(progress, saving)},
        )
        stop = Stop(
            stopped_by=STOPPED_BY, detail=verdict.reason, requested_by=self._requested_by, policy=policy
        )
        self._settled = False
        accepted = self._hook().stop_tuning_job(
            self._name,
            stopped_by=stop.stopped_by,
            detail=stop.detail,
            requested_by=stop.requested_by,
            policy=policy,
        )
        self._settled = True
        if not accepted:
            return None
        self._take_note(stop)
        saved = "" if saving is None else f" {saving.training_jobs} training jobs are not launched."
        self._log.warning(
            "Tuning job %s is stopped by policy %s (%s): %s%s",
            self._name,
            verdict.rule,
            policy.action,
            verdict.reason,
            saved,
        )
        return stop

    def _ensure_record(self, arn: str) -> None:
        stop = Stop.from_tags(self.memory.unrecorded or {})
        if stop is not None:
            self._hook().record_stop(arn, stop)
            self.memory = replace(self.memory, unrecorded=None)

    def _take_note(self, stop: Stop) -> None:
        self.stop = stop
        self.memory = replace(self.memory, unrecorded=stop.tags())
        code = "" if stop.policy is None else stop.policy.code
        _compat.count("amt.tuning_jobs.stopped_by_policy", {"policy": code})

    def _settle(self, progress: TuningProgress) -> Look:
        """See, once, whether a stop of ours whose answer was lost is why the job is being stopped.

        A stop of ours that AWS accepted, also one that an earlier process made, is then put on record if it
        could not be before.
        """
        verdict = Verdict(reason=f"The tuning job is {progress.status}.")
        if self._settled or self.memory.unrecorded is not None:
            self._settled = True
            self._ensure_record(progress.arn)
            return Look(verdict=verdict)
        accepted = self._hook().stop_tuning_job(
            self._name, stopped_by=STOPPED_BY, requested_by=self._requested_by
        )
        self._settled = True
        stop = None
        if accepted:
            stop = Stop.from_tags(self._hook().tags(progress.arn) or {})
        if stop is not None:
            self._take_note(stop)
            self._ensure_record(progress.arn)
        return Look(verdict=verdict, stop=stop)

    def _load_tags(self, arn: str) -> None:
        """Read, once, what other processes have told people, and what people answered them."""
        if self._read_tags:
            return
        tags = self._hook().tags(arn) or {}
        self._read_tags = True
        told = tags.get(POLICY_TOLD_TAG, "").split()
        answers: list[Answer] = []
        for text in tags.get(POLICY_ANSWERS_TAG, "").split():
            try:
                answers.append(Answer.decode(text))
            except AmtFieldError as error:
                self._log.warning("The tag %s holds what is no answer: %s", POLICY_ANSWERS_TAG, error)
        if len(answers) < len(self.memory.answers):
            answers = list(self.memory.answers)
        self.memory = replace(
            self.memory,
            told=tuple(dict.fromkeys([*self.memory.told, *told])),
            answers=tuple(answers),
        )

    def _tell_unknown(self, verdict: Verdict) -> None:
        if verdict.unknown and verdict.unknown != self._last_unknown:
            self._log.warning(
                "Tuning job %s: whether these rules are kept cannot be told: %s",
                self._name,
                "; ".join(verdict.unknown),
            )
        self._last_unknown = verdict.unknown


def understood(
    human: HumanAnswer, question: Question, rule: str, log: Logger | FilteringBoundLogger
) -> Answer:
    """Return what people answered about a rule; what cannot be used counts as the default."""
    try:
        decision = read_answer(human, question)
    except AmtRequestError as error:
        log.warning("The answer cannot be used, so the default counts: %s", error)
        decision = read_answer(question.default_answer, question)
    log.info("%s", explain(decision))
    return Answer(
        rule=rule,
        choice=decision.choice.value,
        raise_by=decision.raise_by or 0.0,
        by=decision.by or NOBODY,
    )


def asks(sla: Sla) -> bool:
    """Whether a rule of it asks people."""
    return any(step.action is Action.ASK for rule in sla.rules for step in rule.steps)


def _uses_billing(sla: Sla, *, among: Collection[str | None] | None = None) -> bool:
    """Whether what training jobs are billed for matters.

    :param among: titles of the rules that count; all by default.
    """
    return any(
        part.uses_costs and getattr(part, "unit", "") != "compute_seconds"
        for title, rule in zip(sla.titles, sla.rules, strict=True)
        if among is None or title in among
        for part in rule.policy.parts
    )


def flat(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """Return evidence without nesting: of several policies, each one's under its code."""
    found = {key: value for key, value in evidence.items() if key != "parts"}
    for part in evidence.get("parts") or ():
        for key, value in (part.get("evidence") or {}).items():
            found.setdefault(f"{part.get('code')}.{key}", value)
    return found


def _known_then(progress: TuningProgress, saving: Saving | None) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "launched": progress.training_jobs.launched,
        "best_objective": progress.best_objective,
    }
    if saving is not None:
        facts |= {
            "saved_training_jobs": saving.training_jobs,
            "saved_compute_seconds": saving.compute_seconds,
            "saved_cost": saving.cost,
            "currency": saving.currency,
        }
    return {key: value for key, value in facts.items() if value is not None}


def _told_words(ids: Sequence[str]) -> str:
    """Return ids of steps as a tag's value; where it cannot hold them, those of warnings as digests.

    One that did not fit would be told again by each process that looks.
    """
    if len(" ".join(ids)) > MAX_TAG_VALUE_LENGTH:
        # Questions stay as they are: of a rule they are counted.
        ids = tuple(dict.fromkeys(one if f":{Action.ASK.value}@" in one else _digest(one) for one in ids))
    return _fitting(ids)


def _digest(told: str) -> str:
    """Return a step's id in six letters, a digest as it is."""
    if ":" not in told:
        return told
    return base64.b32encode(hashlib.sha256(told.encode()).digest()).decode().lower()[:6]


def _answer_words(answers: Sequence[Answer]) -> str:
    """Return answers as a tag's value; where it cannot hold them, the first ones without who gave them.

    What was answered counts on: a limit that people raised must stay raised.
    """
    words = [one.encode() for one in answers]
    for position, one in enumerate(answers):
        if len(" ".join(words)) <= MAX_TAG_VALUE_LENGTH:
            break
        words[position] = replace(one, by="").encode()
    return _fitting(words)


def _fitting(words: Sequence[str]) -> str:
    """Return words, separated by spaces, as many of the last ones as a tag's value holds."""
    text = ""
    for word in reversed(words):
        longer = f"{word} {text}" if text else word
        if len(longer) > MAX_TAG_VALUE_LENGTH:
            break
        text = longer
    return text
