"""Asking a person about a tuning job: the words of the question, and what the answer means.

Who does not answer has agreed to nothing, so the default of a question is to stop: AMT keeps the best
training job, and what is lost is more search, not the model. ``continue`` is the better default where a
later step stops the job anyhow (asked at 80 % of a budget that stops at 100 %). To raise a limit is never a
default: that would spend because nobody answered.

Airflow keeps one text of a question for each task instance, for good: asked again, also in a later try,
people see the first text (measured with 3.1.8, 3.2.2 and 3.3.2). So the text says of which moment its figures
are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from airflow_amt.exceptions import AmtFieldError, AmtRequestError
from airflow_amt.text import MOST_REASON, shown
from airflow_amt.tuning.costs import UNITS, Consumption
from airflow_amt.tuning.history import aware
from airflow_amt.tuning.progress import TuningProgress
from airflow_amt.tuning.values import parse_number

#: By how many percent a limit may be raised at once.
RAISE_DEFAULT_PERCENT = 50.0
RAISE_LEAST_PERCENT = 1.0
RAISE_MOST_PERCENT = 1000.0

#: The question's parameter.
RAISE_FIELD = "raise_by_percent"

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~!])")

#: What people see for the units of a consumption that is no money.
_UNIT_WORDS = {"compute_seconds": "of compute", "billable_seconds": "of billed compute"}


class Choice(str, Enum):
    """What a person can choose."""

    CONTINUE = "continue"
    STOP = "stop"
    RAISE = "raise"

    @property
    def label(self) -> str:
        """The button."""
        return _LABELS[self]


_LABELS = {
    Choice.CONTINUE: "Continue",
    Choice.STOP: "Stop and use the best",
    Choice.RAISE: "Raise the limit",
}
_BY_LABEL = {label: choice for choice, label in _LABELS.items()}

#: What may be taken if nobody answers.
DEFAULTS = (Choice.STOP.value, Choice.CONTINUE.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question to people, as Airflow's human-in-the-loop request holds it.

    :param subject: one line.
    :param body: Markdown.
    :param options: the buttons.
    :param defaults: those of them that are taken if nobody answers.
    :param params: fields to fill in, by name: ``{"value", "description", "schema"}`` each.
    :param assigned_users: who may answer, ``{"id", "name"}`` each; everybody if empty.
    """

    subject: str
    body: str
    options: tuple[str, ...]
    defaults: tuple[str, ...] = ()
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    assigned_users: tuple[Mapping[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it as a JSON-safe dict; :meth:`from_dict` reads it back."""
        return {
            "subject": self.subject,
            "body": self.body,
            "options": list(self.options),
            "defaults": list(self.defaults),
            "params": {name: dict(value) for name, value in self.params.items()},
            "assigned_users": [dict(user) for user in self.assigned_users],
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Question:
        """Read what :meth:`to_dict` returned; keys that are not known here do not matter."""
        return cls(
            subject=str(value.get("subject") or ""),
            body=str(value.get("body") or ""),
            options=tuple(value.get("options") or ()),
            defaults=tuple(value.get("defaults") or ()),
            params=dict(value.get("params") or {}),
            assigned_users=tuple(value.get("assigned_users") or ()),
        )

    @property
    def default_answer(self) -> HumanAnswer:
        """What is recorded if nobody answers; it has no time yet."""
        return HumanAnswer(
            chosen=self.defaults, params={name: one.get("value") for name, one in self.params.items()}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HumanAnswer:
    """What was answered, unchecked: Airflow's API lets everything through.

    :param chosen: options.
    :param params: what was filled in.
    :param by: who; ``None`` if nobody did and the default was taken.
    :param at: when (aware).
    """

    chosen: tuple[str, ...]
    params: Mapping[str, Any] = field(default_factory=dict)
    by: str | None = None
    at: datetime | None = None

    @property
    def timed_out(self) -> bool:
        """Whether the default was taken because nobody answered in time."""
        return self.by is None

    def to_dict(self) -> dict[str, Any]:
        """Return it as a JSON-safe dict; :meth:`from_dict` reads it back."""
        return {
            "chosen": list(self.chosen),
            "params": dict(self.params),
            "by": self.by,
            "at": None if self.at is None else self.at.isoformat(),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> HumanAnswer:
        """Read what :meth:`to_dict` returned."""
        at = value.get("at")
        return cls(
            chosen=tuple(value.get("chosen") or ()),
            params=dict(value.get("params") or {}),
            by=value.get("by"),
            at=datetime.fromisoformat(at) if isinstance(at, str) else aware(at),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What an answer comes to.

    :param choice: what was chosen.
    :param raise_by: by which share the limit is raised, 0.5 for half as much again; ``None`` unless it is.
    :param by: who; ``None`` if the default was taken.
    """

    choice: Choice
    raise_by: float | None = None
    by: str | None = None

    @property
    def timed_out(self) -> bool:
        """Whether the default was taken because nobody answered in time."""
        return self.by is None


@dataclass(frozen=True, slots=True, kw_only=True)
class AskFacts:
    """What people are told about a tuning job; what is ``None`` is left out.

    :param tuning_job_name: the tuning job.
    :param now: of which moment the figures are (aware).
    :param objective: name of the objective.
    :param best_objective: the best so far.
    :param launched: training jobs launched so far.
    :param max_training_jobs: how many there may be.
    :param consumed: what was consumed so far, in ``unit``; an estimate.
    :param limit: how much of that may be consumed, as a number, or in words.
    :param unit: ``money``, ``compute_seconds`` or ``billable_seconds`` (instance-seconds).
    :param currency: of money.
    :param due: the deadline (aware).
    :param reason: why people are asked, a sentence.
    :param url: page of the tuning job.
    """

    tuning_job_name: str
    now: datetime
    objective: str | None = None
    best_objective: float | None = None
    launched: int | None = None
    max_training_jobs: int | None = None
    consumed: float | None = None
    limit: float | str | None = None
    unit: str = "money"
    currency: str | None = None
    due: datetime | None = None
    reason: str | None = None
    url: str | None = None

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise AmtFieldError("unit", self.unit, f"one of {', '.join(UNITS)}", "check the spelling")
        for name in ("now", "due"):
            moment = getattr(self, name)
            if moment is not None and moment.tzinfo is None:
                raise AmtFieldError(name, moment, "an aware datetime", "give it with its time zone")

    @classmethod
    def of(
        cls,
        progress: TuningProgress,
        *,
        now: datetime,
        consumption: Consumption | None = None,
        unit: str = "money",
        **more: Any,
    ) -> AskFacts:
        """Take the facts from a tuning job's progress and what it has consumed.

        :param more: ``limit``, ``due``, ``reason`` and ``url``.
        """
        return cls(
            tuning_job_name=progress.name,
            now=now,
            objective=progress.objective_metric,
            best_objective=progress.best_objective,
            launched=progress.training_jobs.launched,
            max_training_jobs=progress.criteria.max_training_jobs,
            consumed=None if consumption is None else consumption.of(unit),
            unit=unit,
            currency=None if consumption is None else consumption.currency,
            **more,
        )


def build_question(
    facts: AskFacts,
    *,
    default: Choice | str | None = Choice.STOP,
    answer_until: datetime | None = None,
    raisable: bool = True,
    assigned_users: Any = None,
) -> Question:
    """Put the facts of a tuning job into a question: continue, stop, or raise the limit.

    :param facts: what people are told.
    :param default: what is taken if nobody answers in time: ``stop`` or ``continue``; ``None`` for nothing.
    :param answer_until: until when an answer counts; ``None`` for no end.
    :param raisable: whether there is a limit to raise.
    :param assigned_users: as for :func:`parse_users`.
    :raises AmtFieldError: the default is none of these, or a time without a default.
    :raises AmtRequestError: the users are none.
    """
    taken = parse_default(default)
    if answer_until is not None and taken is None:
        raise AmtFieldError(
            "default",
            default,
            "stop or continue, as there is a timeout",
            "say what is done if nobody answers",
        )
    choices = [one for one in Choice if raisable or one is not Choice.RAISE]
    return Question(
        subject=_subject(facts, raisable),
        body=_body(facts, choices, taken, answer_until),
        options=tuple(one.label for one in choices),
        defaults=() if taken is None else (taken.label,),
        params={RAISE_FIELD: _raise_field()} if raisable else {},
        assigned_users=parse_users(assigned_users),
    )


def parse_default(value: Any, *, field_name: str = "default") -> Choice | None:
    """Return what is done if nobody answers, ``None`` for nothing.

    :raises AmtFieldError: it is neither ``stop`` nor ``continue``.
    """
    if value is None:
        return None
    text = str(value.value if isinstance(value, Choice) else value).strip()
    if text not in DEFAULTS:
        raise AmtFieldError(
            field_name,
            value,
            f"one of {', '.join(DEFAULTS)}",
            "a limit is not raised because nobody answered: give stop, or continue"
            if text == Choice.RAISE.value
            else "check the spelling",
        )
    return Choice(text)


def parse_users(value: Any, *, field_name: str = "assigned_users") -> tuple[dict[str, str], ...]:
    """Return who may answer, ``{"id", "name"}`` each.

    :param value: one or several of: such a dict, or an id, which is then the name, too;
        ``None`` for everybody.
    :raises AmtRequestError: some are neither.
    """
    if value is None:
        return ()
    several = [value] if isinstance(value, (str, Mapping)) else value
    users: list[dict[str, str]] = []
    problems: list[AmtFieldError] = []
    for place, one in enumerate(several if isinstance(several, Iterable) else [several]):
        given = {"id": one, "name": one} if isinstance(one, str) else one
        user = given if isinstance(given, Mapping) else {}
        who, name = user.get("id"), user.get("name", user.get("id"))
        if (
            not isinstance(who, str)
            or not who.strip()
            or not isinstance(name, str)
            or set(user) - {"id", "name"}
        ):
            problems.append(
                AmtFieldError(
                    f"{field_name}[{place}]",
                    one,
                    "the id of a user, or a dict of id and name, as text",
                    'give {"id": "7", "name": "Ada"}; the id is what the auth manager knows',
                )
            )
            continue
        users.append({"id": who, "name": name})
    if problems:
        raise AmtRequestError(problems)
    return tuple(users)


def read_answer(answer: HumanAnswer, question: Question) -> Decision:
    """Say what an answer comes to.

    Airflow checks options from 3.3 on and parameters never, so both are checked here.

    :raises AmtRequestError: an option that there is not, none or several, or a raise that cannot be.
    """
    known = [one for one in answer.chosen if one in question.options and one in _BY_LABEL]
    if len(answer.chosen) != 1 or not known:
        raise AmtRequestError(
            [
                AmtFieldError(
                    "chosen_options",
                    list(answer.chosen),
                    f"one of {', '.join(question.options)}",
                    "answer with one of the buttons",
                )
            ]
        )
    choice = _BY_LABEL[known[0]]
    raise_by = None
    if choice is Choice.RAISE:
        try:
            percent = parse_number(
                RAISE_FIELD,
                answer.params.get(RAISE_FIELD, RAISE_DEFAULT_PERCENT),
                at_least=RAISE_LEAST_PERCENT,
                at_most=RAISE_MOST_PERCENT,
            )
        except AmtFieldError as error:
            raise AmtRequestError([error]) from error
        raise_by = percent / 100
    return Decision(choice=choice, raise_by=raise_by, by=answer.by)


def explain(decision: Decision) -> str:
    """Return a decision in a few words, with who took it: for logs and tags."""
    who = "nobody answered in time; the default was taken" if decision.by is None else shown(decision.by)
    if decision.choice is Choice.RAISE and decision.raise_by is not None:
        return f"{who}: raise the limit by {_number(decision.raise_by * 100)} %"
    return f"{who}: {decision.choice.label.lower()}"


# --- the text ----------------------------------------------------------------------------------


def _subject(facts: AskFacts, raisable: bool) -> str:
    parts = []
    if facts.best_objective is not None:
        jobs = _jobs(facts)
        parts.append(f"best {_number(facts.best_objective)}{f' after {jobs}' if jobs else ''}")
    elif facts.launched is not None:
        parts.append(f"no model yet after {_jobs(facts)}")
    spent = _spent(facts)
    if spent is not None:
        parts.append(spent)
    if facts.due is not None:
        parts.append(_time_left(facts.due, facts.now))
    told = f": {', '.join(parts)}" if parts else ""
    asked = "continue, stop, or raise the limit?" if raisable else "continue or stop?"
    return " ".join(f"{shown(facts.tuning_job_name)}{told}: {asked}".split())


def _body(
    facts: AskFacts, choices: list[Choice], default: Choice | None, answer_until: datetime | None
) -> str:
    lines = [] if not facts.reason else [escaped(facts.reason), ""]
    # No code spans: Airflow 3.1 shows each as a block of its own.
    name = escaped(facts.tuning_job_name)
    lines.append(f"- Tuning job: {name if facts.url is None else f'[{name}]({facts.url})'}")
    if facts.best_objective is not None:
        metric = f" ({escaped(facts.objective)})" if facts.objective else ""
        lines.append(f"- Best objective so far: **{_number(facts.best_objective)}**{metric}")
    elif facts.launched is not None:
        lines.append("- No training job has given an objective yet")
    if facts.launched is not None:
        lines.append(f"- Training jobs launched: {_jobs(facts)}")
    if facts.consumed is not None:
        lines.append(f"- Consumed: about {escaped(_amount(facts.consumed, facts))}")
    if facts.limit is not None:
        lines.append(f"- Limit: {escaped(_limit(facts))}")
    if facts.due is not None:
        lines.append(f"- Deadline: {_moment(facts.due)}, {_time_left(facts.due, facts.now)}")
    lines += [
        "",
        f"As of {_moment(facts.now)}. The tuning job goes on while you think. If this is asked again, the "
        "figures here stay those of this moment; newer ones are in the task's log.",
        "",
    ]
    lines += [f"- **{choice.label}**: {_MEANINGS[choice]}" for choice in choices]
    if answer_until is not None and default is not None:
        lines += ["", f"Without an answer by {_moment(answer_until)}: **{default.label}**."]
    return "\n".join(lines)


_MEANINGS = {
    Choice.CONTINUE: "the tuning job goes on as it is.",
    Choice.STOP: "the tuning job ends now; its best training job is kept and used.",
    Choice.RAISE: "the limit grows by the percentage below, and the tuning job goes on.",
}


def _raise_field() -> dict[str, Any]:
    return {
        "value": RAISE_DEFAULT_PERCENT,
        "description": f'By how many percent "{Choice.RAISE.label}" raises the limit; else not used.',
        "schema": {
            "type": "number",
            "title": "Raise the limit by (%)",
            "minimum": RAISE_LEAST_PERCENT,
            "maximum": RAISE_MOST_PERCENT,
        },
    }


def escaped(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return _MARKDOWN.sub(r"\\\1", shown(" ".join(text.split()), MOST_REASON))


def _jobs(facts: AskFacts) -> str:
    if facts.launched is None:
        return ""
    return f"{facts.launched}" + ("" if facts.max_training_jobs is None else f" of {facts.max_training_jobs}")


def _spent(facts: AskFacts) -> str | None:
    if facts.consumed is None:
        return None if facts.limit is None else f"limit {_limit(facts)}"
    if facts.limit is None:
        return f"{_amount(facts.consumed, facts)} spent"
    if facts.unit == "money" and not isinstance(facts.limit, str):
        # The currency once: 31.00 of 50.00 EUR.
        return f"{facts.consumed:,.2f} of {_limit(facts)} spent"
    return f"{_amount(facts.consumed, facts)} of {_limit(facts)} spent"


def _limit(facts: AskFacts) -> str:
    if isinstance(facts.limit, str):
        return " ".join(facts.limit.split())
    return _amount(facts.limit or 0.0, facts)


def _amount(value: float, facts: AskFacts) -> str:
    if facts.unit == "money":
        return f"{value:,.2f}{f' {facts.currency}' if facts.currency else ''}"
    return f"{_span(value)} {_UNIT_WORDS[facts.unit]}"


def _number(value: float) -> str:
    return f"{value:.6g}"


def _moment(value: datetime) -> str:
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _time_left(due: datetime, now: datetime) -> str:
    # In UTC: two times in one time zone subtract as clocks on a wall do.
    seconds = (due.astimezone(UTC) - now.astimezone(UTC)).total_seconds()
    return f"{_span(seconds)} left" if seconds > 0 else f"{_span(-seconds)} late"


def _span(seconds: float) -> str:
    """Return a time span in its two largest units: 2 d 3 h, 2 h 10 min, 5 min, 40 s."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = whole // 60
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h" + (f" {minutes} min" if minutes else "")
    days, hours = divmod(hours, 24)
    return f"{days} d" + (f" {hours} h" if hours else "")
