"""How a tuning job's outcome is judged: whether its task succeeds, fails or is skipped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from airflow_amt.exceptions import AmtFieldError, AmtRequestError
from airflow_amt.tuning.criteria import CompletionReason
from airflow_amt.tuning.status import TuningJobStatus
from airflow_amt.tuning.stops import DEADLINE_ALERT, STOPPERS
from airflow_amt.tuning.values import is_given, parse_number

if TYPE_CHECKING:
    from airflow_amt.tuning.outcome import TuningOutcome

#: Stands, beside the reasons, for a job that ended without an objective.
NO_MODEL = "no_model"


class Ending(str, Enum):
    """What becomes of the task."""

    SUCCEED = "succeed"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """An ending and the rule that led to it.

    :param ending: what becomes of the task.
    :param because: the rule, as a clause for people.
    """

    ending: Ending
    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomePolicy:
    """By which reasons of a tuning job's end its task fails or is skipped.

    Without any of it, a task succeeds if the job came to its own end
    (:attr:`airflow_amt.tuning.TuningOutcome.succeeded`) and fails otherwise. Names are those of
    :class:`airflow_amt.tuning.CompletionReason`, ``stopped_by_provider:<who>`` for one kind of stop
    (``operator``, ``policy``, ``deadline``, ``on_kill``, ``reaper``) or, of those by policy, for one policy
    (``stopped_by_provider:policy:budget``), and ``no_model`` for any end without
    an objective.

    How it decides: ``skip_on``, then ``fail_on``, each the more specific name first; a stopped job whose best
    objective is as good as ``good_enough`` succeeds in place of failing. A job that failed or is being
    deleted fails the task unless ``skip_on`` names it.

    :param fail_on: the reasons that fail the task, in place of the default; all others succeed.
    :param skip_on: the reasons that skip it.
    :param good_enough: objective from which on (in the job's own direction) a stopped job is a success.
    """

    fail_on: frozenset[str] | None = None
    skip_on: frozenset[str] = frozenset()
    good_enough: float | None = None

    @classmethod
    def parse(cls, *, fail_on: Any = None, skip_on: Any = None, good_enough: Any = None) -> OutcomePolicy:
        """Build one from what a DAG's author gave.

        :raises AmtRequestError: a name is not known, is given twice, or the objective is no number.
        """
        problems: list[AmtFieldError] = []
        fails = _names("fail_on", fail_on, problems)
        skips = _names("skip_on", skip_on, problems) or frozenset()
        for name in sorted((fails or frozenset()) & skips):
            problems.append(
                AmtFieldError("skip_on", name, "fail_on names it too", "keep it in one of the two")
            )
        enough = _number("good_enough", good_enough, problems)
        if problems:
            raise AmtRequestError(problems)
        return cls(fail_on=fails, skip_on=skips, good_enough=enough)

    def judge(self, outcome: TuningOutcome) -> Judgement:
        """Judge an outcome."""
        names = _names_of(outcome)
        for name in names:
            if name in self.skip_on:
                return Judgement(ending=Ending.SKIP, because=f"skip_on names {name}")
        failing = self._fails(outcome, names)
        if failing is None:
            return Judgement(ending=Ending.SUCCEED, because=f"{outcome.reason.value} is a success")
        best, direction = outcome.progress.best_objective, outcome.progress.objective_type
        if (
            self.good_enough is not None
            and best is not None
            and direction is not None
            and outcome.status == TuningJobStatus.STOPPED.value
            and direction.reaches(best, self.good_enough)
        ):
            return Judgement(
                ending=Ending.SUCCEED,
                because=f"its best objective, {best}, is good enough ({self.good_enough})",
            )
        return Judgement(ending=Ending.FAIL, because=failing)

    def _fails(self, outcome: TuningOutcome, names: Iterable[str]) -> str | None:
        if outcome.status not in (TuningJobStatus.COMPLETED.value, TuningJobStatus.STOPPED.value):
            return f"it is {outcome.status}"
        if self.fail_on is None:
            return None if outcome.succeeded else f"{outcome.reason.value} is no success"
        for name in names:
            if name in self.fail_on:
                return f"fail_on names {name}"
        return None


def names_of_reason(reason: str, stopped_by: Any, policy: Any = None) -> list[str]:
    """Return the names of a reason, the more specific first.

    :param reason: the code of a :class:`CompletionReason`, also of one that a newer release knows.
    :param stopped_by: who stopped the job, if this provider did.
    :param policy: code of the stop policy, if one did.
    """
    if reason == CompletionReason.STOPPED_BY_PROVIDER.value:
        by_policy = [f"{reason}:{stopped_by}:{policy}"] if policy else []
        return [*by_policy, f"{reason}:{stopped_by}", reason]
    return [reason]


def _names_of(outcome: TuningOutcome) -> list[str]:
    """Return the names that fit an outcome, the most specific first."""
    names = names_of_reason(outcome.reason.value, outcome.evidence.get("stopped_by"), outcome.policy)
    if outcome.progress.best_objective is None:
        names.append(NO_MODEL)
    return names


def known_names() -> tuple[str, ...]:
    """Return every name that ``fail_on`` and ``skip_on`` may hold."""
    from airflow_amt.tuning.policies import POLICY_CODES

    provider = CompletionReason.STOPPED_BY_PROVIDER.value
    stops = (f"{provider}:{who}" for who in STOPPERS)
    policies = (f"{provider}:policy:{code}" for code in (*POLICY_CODES, DEADLINE_ALERT))
    return (*(reason.value for reason in CompletionReason), *stops, *policies, NO_MODEL)


def _names(field: str, given: Any, problems: list[AmtFieldError]) -> frozenset[str] | None:
    if given is None:
        return None
    if isinstance(given, str) or not isinstance(given, Iterable):
        given = [given]
    names = [one.value if isinstance(one, CompletionReason) else one for one in given]
    known = known_names()
    for name in names:
        if name not in known:
            problems.append(
                AmtFieldError(field, name, f"known are {', '.join(known)}", "name reasons of a job's end")
            )
    return frozenset(name for name in names if name in known)


def _number(field: str, given: Any, problems: list[AmtFieldError]) -> float | None:
    if not is_given(given):
        return None
    try:
        return parse_number(field, given)
    except AmtFieldError as problem:
        problems.append(problem)
        return None
