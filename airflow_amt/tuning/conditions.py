"""What one can wait for while a tuning job runs: conditions over one snapshot of its progress.

A condition is a frozen object. ``&``, ``|`` and ``~`` combine them::

    (FirstUsableModel() & RuntimeAbove(timedelta(minutes=30))) | TargetReached(0.95)

An evaluation says yes, no or unknown: unknown where AMT's answer lacks the fact (the logic is Kleene's, so
``~`` of unknown stays unknown and is not met). Conditions are stored, and written in DAGs, as plain dicts::

    {"type": "any", "of": [{"type": "target_reached", "value": 0.95}, {"type": "converged"}]}

The sensor in a worker and the trigger in a triggerer evaluate with this same code.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from typing import Any, ClassVar

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.tuning.history import TrainingJobResult
from airflow_amt.tuning.parameters import (
    COUNT,
    DURATION,
    NUMBER,
    SHARE,
    SHARE_BELOW_ONE,
    check_parameters,
    one_of,
    parse_parameters,
    refuse_unknown,
    write_parameters,
)
from airflow_amt.tuning.progress import TuningProgress
from airflow_amt.tuning.status import TuningJobStatus

#: Version of the dict that :meth:`Condition.to_dict` returns; triggers store it.
CONDITION_VERSION = 1

#: How deep conditions may be nested and how many may be combined: what a person can still read in a log.
MAX_DEPTH = 16
MAX_CONDITIONS = 64


class Met(str, Enum):
    """Whether a condition is met."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionResult:
    """One evaluation of a condition.

    :param met: yes, no or unknown.
    :param code: the condition's stable code.
    :param reason: what was observed and what the limit is, for people: of a combination, the sentences of
        the parts that decided it.
    :param because: codes of the single conditions that decided it.
    """

    met: Met
    code: str
    reason: str
    because: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as a JSON-safe dict."""
        return {
            "met": self.met.value,
            "code": self.code,
            "reason": self.reason,
            "because": list(self.because),
        }


class Condition(ABC):
    """Base of all conditions."""

    __slots__ = ()

    #: Stable code: the type in the stored dict, and what results name.
    code: ClassVar[str]

    @abstractmethod
    def evaluate(
        self, progress: TuningProgress, training_jobs: Sequence[TrainingJobResult] | None = None
    ) -> ConditionResult:
        """Evaluate it on one snapshot.

        :param progress: the tuning job at one moment.
        :param training_jobs: its training jobs, if they were listed; see :meth:`needs_training_jobs`.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return it as a JSON-safe dict with its version; :func:`parse_condition` reads it back."""

    def needs_training_jobs(self, progress: TuningProgress) -> bool:
        """Say whether only the list of training jobs can tell whether it is met on this snapshot."""
        return self.uses_training_jobs(progress) and self.evaluate(progress).met is Met.UNKNOWN

    @abstractmethod
    def uses_training_jobs(self, progress: TuningProgress) -> bool:
        """Say whether the list of training jobs holds a fact that it looks at and the snapshot lacks."""

    @property
    @abstractmethod
    def changes_with_time(self) -> bool:
        """Whether it may come to be met though status and counters of the tuning job stay as they are."""

    @property
    @abstractmethod
    def depth(self) -> int:
        """How deep it is nested; 1 for a single condition."""

    @property
    @abstractmethod
    def size(self) -> int:
        """How many single conditions it consists of."""

    def __and__(self, other: Condition) -> Condition:
        if not isinstance(other, Condition):
            return NotImplemented
        return AllOf((*_operands(AllOf, self), *_operands(AllOf, other)))

    def __or__(self, other: Condition) -> Condition:
        if not isinstance(other, Condition):
            return NotImplemented
        return AnyOf((*_operands(AnyOf, self), *_operands(AnyOf, other)))

    def __invert__(self) -> Condition:
        return self.of if isinstance(self, Negation) else Negation(self)

    def __bool__(self) -> bool:
        # `a and b` would silently be b alone.
        raise TypeError("combine conditions with &, | and ~, not with and, or and not")


# --- single conditions -------------------------------------------------------------------------


class SingleCondition(Condition):
    """Base of the conditions that look at one fact; a subclass is a frozen dataclass of its parameters."""

    __slots__ = ()

    def __post_init__(self) -> None:
        check_parameters(self, self.code)

    @property
    def changes_with_time(self) -> bool:
        """See :attr:`Condition.changes_with_time`."""
        return False

    @property
    def depth(self) -> int:
        """See :attr:`Condition.depth`."""
        return 1

    @property
    def size(self) -> int:
        """See :attr:`Condition.size`."""
        return 1

    def to_dict(self) -> dict[str, Any]:
        """See :meth:`Condition.to_dict`."""
        return {"version": CONDITION_VERSION, **_body(self)}

    def uses_training_jobs(self, progress: TuningProgress) -> bool:
        """See :meth:`Condition.uses_training_jobs`."""
        return False

    def evaluate(
        self, progress: TuningProgress, training_jobs: Sequence[TrainingJobResult] | None = None
    ) -> ConditionResult:
        """See :meth:`Condition.evaluate`."""
        met, reason = self.judge(progress, training_jobs)
        return ConditionResult(
            met=met if isinstance(met, Met) else Met.YES if met else Met.NO,
            code=self.code,
            reason=reason,
            because=(self.code,),
        )

    @abstractmethod
    def judge(
        self, progress: TuningProgress, training_jobs: Sequence[TrainingJobResult] | None
    ) -> tuple[Met | bool, str]:
        """Return whether it is met, and the sentence that says why."""


@dataclass(frozen=True, slots=True)
class TargetReached(SingleCondition):
    """The best objective reached a target.

    :param value: the target; ``None`` takes the tuning job's own (``TargetObjectiveMetricValue``).
    """

    code: ClassVar[str] = "target_reached"
    value: float | None = field(default=None, metadata={"kind": NUMBER})

    def judge(
        self, progress: TuningProgress, training_jobs: Sequence[TrainingJobResult] | None
    ) -> tuple[Met | bool, str]:
        """See :meth:`SingleCondition.judge`."""
        target = progress.criteria.target_objective_value if self.value is None else self.value
        if target is None:
            return Met.UNKNOWN, "The condition names no target, and neither does the tuning job."
        best, direction = progress.best_objective, progress.objective_type
        if best is None:
            return _no_best(progress, f"The target is {target:g}.")
        if direction is None:
            return Met.UNKNOWN, "AMT's answer does not say whether the objective is to be high or low."
        if direction.attains(best, target):
            return True, f"The best objective, {best:.6g}, reached the target of {target:g}."
        return False, f"The best objective, {best:.6g}, has not reached the target of {target:g}."


@dataclass(frozen=True, slots=True)
class FirstUsableModel(SingleCondition):
    """There is a best training job with an objective: a first model that can be used."""

    code: ClassVar[str] = "first_usable_model"

    def judge(
        self, progress: TuningProgress, training_jobs: Sequence[TrainingJobResult] | None
    ) -> tuple[Met | bool, str]:
        """See :meth:`SingleCondition.judge`."""
        best = progress.best
        if best is None or best.objective is None:
            return _no_best(progress, "There is no usable model.")
        metric = progress.objective_metric or "objective"
        return True, f"There is a usable model: {best.name}, {metric} {best.objective:.6g}."


@dataclass(frozen=True, slots=True)
class TrainingJobsDone(SingleCondition):
    """At least so many training jobs are done.

    :param count: how many, at least 1.
    :param counting: ``"with_objective"`` counts those that gave an objective (``Succeeded`` of
        ``ObjectiveStatusCounters``), ``"ended"`` all that are over, failed and stopped ones too.
    """

    code: ClassVar[str] = "training_jobs_done"
    count: int = field(metadata={"kind": COUNT})
    counting: str = field(default="with_objective", metadata={"kind": one_of("with_objective", "ended")})

    def judge(
        self, progress: TuningProgress, training_jobs: Sequence[TrainingJobResult] | None
    ) -> tuple[Met | bool, str]:
        """See :meth:`SingleCondition.judge`."""
        if self.counting == "ended":
            done, what = progress.training_jobs.ended, "have ended"
        else:
            done, what = progress.objectives.succeeded, "have an objective"
        return done >= self.count, f"{done} training jobs {what}; waited for are {self.count}."


@dataclass(frozen=True, slots=True)
class NotImproving(SingleCondition):
    """So many results in a row brought nothing better than the best before them.

    AMT's own count (``NumberOfTrainingJobsObjectiveNotImproving``) where it gives one; otherwise it is
    counted from the training jobs, by the reading of ADR 2.

    :param training_jobs: how many in a row, at least 1.
    """

    code: ClassVar[str] = "not_improving"
    training_jobs: int = field(metadata={"kind": COUNT})

    def uses_training_jobs(self, progress: TuningProgress) -> bool:
        """See :meth:`Condition.uses_training_jobs`."""
        return progress.not_improving_count is None

    def judge(
        self, progress: TuningProgress, training_jobs: Sequence[TrainingJobResult] | None
    ) -> tuple[Met | bool, str]:
        """See :meth:`SingleCondition.judge`."""
        from airflow_amt.tuning.criteria import CompletionCriteria

        count, source = progress.not_improving_count, ""
        if count is None and training_jobs is not None:
            report = progress.replay(training_jobs, CompletionCriteria())
            count = None if report is None else report.not_improving_count
            source = " (counted from the training jobs)"
        if count is None:
            return Met.UNKNOWN, "AMT's answer does not say how many training jobs did not improve."
        return (
            count >= self.training_jobs,
            f"{count} training jobs in a row did not improve on the best objective{source}; waited for are "
            f"{self.training_jobs}.",
        )


@dataclass(frozen=True, slots=True)
class Converged(SingleCondition):
    """AMT detected convergence; it tracks that also where it does not end the tuning job."""

    code: ClassVar[str] = "converged"

    def judge(
        self, progress: TuningProgress, training_jobs: Sequence[TrainingJobResult] | None
    ) -> tuple[Met | bool, str]:
        """See :meth:`SingleCondition.judge`."""
        at = progress.convergence_detected_at
        if at is not None:
            return True, f"AMT detected convergence at {at.isoformat()}."
        if progress.is_summary:
            return Met.UNKNOWN, "A list of tuning jobs does not say whether they converged."
        return False, "AMT has not detected convergence."


@dataclass(frozen=True, slots=True)
class RuntimeAbove(SingleCondition):
    """The tuning job has run for so long (AMT's own ``RuntimeInSeconds``).

    :param runtime: wall clock.
    """

    code: ClassVar[str] = "runtime_above"
    runtime: timedelta = field(metadata={"kind": DURATION})

    @property
    def changes_with_time(self) -> bool:
        """See :attr:`Condition.changes_with_time`."""
        return True

    def judge(
        self, progress: TuningProgress, training_jobs: Sequence[TrainingJobResult] | None
    ) -> tuple[Met | bool, str]:
        """See :meth:`SingleCondition.judge`."""
        if progress.runtime is None:
            return Met.UNKNOWN, "AMT's answer does not say for how long the tuning job has run."
        return (
            progress.runtime >= self.runtime,
            f"The tuning job has run for {progress.runtime.total_seconds():g} s; waited for are "
            f"{self.runtime.total_seconds():g} s.",
        )


@dataclass(frozen=True, slots=True)
class BudgetShareUsed(SingleCondition):
    """A share of a budget is used up.

    :param share: above 0, at most 1.
    :param of: which budget:

        - ``"training_jobs"``: launched training jobs of ``MaxNumberOfTrainingJobs``;
        - ``"runtime"``: the tuning job's runtime of ``MaxRuntimeInSeconds``;
        - ``"estimated_compute"``: training time of the guide's estimate of the most compute,
          ``MaxRuntimeInSeconds`` * ``MaxParallelTrainingJobs`` (the number of instances, a factor of both,
          cancels out);
        - ``"training_time"``: training time of ``training_time``.

        The last two add up the training jobs that have ended and need their list.
    :param training_time: the budget of ``"training_time"``, and of nothing else.
    """

    code: ClassVar[str] = "budget_share_used"
    share: float = field(metadata={"kind": SHARE})
    of: str = field(
        default="training_jobs",
        metadata={"kind": one_of("training_jobs", "runtime", "estimated_compute", "training_time")},
    )
    training_time: timedelta | None = field(default=None, metadata={"kind": DURATION})

    def __post_init__(self) -> None:
        SingleCondition.__post_init__(self)
        if (self.of == "training_time") is (self.training_time is None):
            raise AmtFieldError(
                f"{self.code}.training_time",
                self.training_time,
                f"needed with of='training_time' and with nothing else; of is {self.of!r}",
                "give the budget, as timedelta(hours=10)" if self.training_time is None else "leave it out",
            )

    @property
    def changes_with_time(self) -> bool:
        """See :attr:`Condition.changes_with_time`; training time counts once a training job has ended."""
        return self.of == "runtime"

    def uses_training_jobs(self, progress: TuningProgress) -> bool:
        """See :meth:`Condition.uses_training_jobs`."""
        return self.of in ("estimated_compute", "training_time") and self._budget(progress) is not None

    def judge(
        self, progress: TuningProgress, training_jobs: Sequence[TrainingJobResult] | None
    ) -> tuple[Met | bool, str]:
        """See :meth:`SingleCondition.judge`."""
        budget, used = self._budget(progress), self._used(progress, training_jobs)
        what, unit = _BUDGETS[self.of]
        if budget is None:
            return Met.UNKNOWN, f"The tuning job has no budget of {what} that AMT's answer would name."
        if used is None:
            return Met.UNKNOWN, f"How much of the budget of {what} is used is not known."
        return (
            used >= self.share * budget,
            f"{used:g} of {budget:g}{unit} of the budget of {what} are used ({used / budget:.1%}); waited "
            f"for are {self.share:.1%}.",
        )

    def _budget(self, progress: TuningProgress) -> float | None:
        criteria, parallel = progress.criteria, progress.max_parallel_training_jobs
        if self.of == "training_jobs":
            return criteria.max_training_jobs
        if self.of == "training_time":
            return None if self.training_time is None else self.training_time.total_seconds()
        runtime = criteria.max_runtime_seconds
        if self.of == "runtime" or runtime is None:
            return runtime
        return None if not parallel else runtime * parallel

    def _used(
        self, progress: TuningProgress, training_jobs: Sequence[TrainingJobResult] | None
    ) -> float | None:
        if self.of == "training_jobs":
            return progress.training_jobs.launched
        if self.of == "runtime":
            return None if progress.runtime is None else progress.runtime.total_seconds()
        if training_jobs is None:
            return None
        return sum(job.training_seconds or 0.0 for job in training_jobs)


_BUDGETS: Mapping[str, tuple[str, str]] = {
    "training_jobs": ("training jobs", ""),
    "runtime": ("runtime", " s"),
    "estimated_compute": ("compute", " s of training"),
    "training_time": ("training time", " s"),
}


@dataclass(frozen=True, slots=True)
class FailureShareAbove(SingleCondition):
    """More than a share of the training jobs that ended have failed.

    :param share: from 0 to below 1.
    :param minimum_ended: training jobs that must have ended before the share counts at all; until then the
        condition is not met.
    """

    code: ClassVar[str] = "failure_share_above"
    share: float = field(metadata={"kind": SHARE_BELOW_ONE})
    minimum_ended: int = field(default=5, metadata={"kind": COUNT})

    def judge(
        self, progress: TuningProgress, training_jobs: Sequence[TrainingJobResult] | None
    ) -> tuple[Met | bool, str]:
        """See :meth:`SingleCondition.judge`."""
        failed, ended = progress.training_jobs.failed, progress.training_jobs.ended
        limit = f"the limit is {self.share:.1%}"
        if ended < self.minimum_ended:
            return False, (
                f"{failed} of {ended} training jobs that ended have failed; {limit}, from "
                f"{self.minimum_ended} on."
            )
        return (
            failed > self.share * ended,
            f"{failed} of {ended} training jobs that ended have failed ({failed / ended:.1%}); {limit}.",
        )


@dataclass(frozen=True, slots=True)
class EstimatedTimeLeftBelow(SingleCondition):
    """The estimated time left (:attr:`TuningProgress.estimated_remaining`) is below a limit.

    The estimate can rise again; it needs a limit of training jobs or of runtime in the request.

    :param time_left: the limit.
    """

    code: ClassVar[str] = "estimated_time_left_below"
    time_left: timedelta = field(metadata={"kind": DURATION})

    @property
    def changes_with_time(self) -> bool:
        """See :attr:`Condition.changes_with_time`."""
        return True

    def judge(
        self, progress: TuningProgress, training_jobs: Sequence[TrainingJobResult] | None
    ) -> tuple[Met | bool, str]:
        """See :meth:`SingleCondition.judge`."""
        left = progress.estimated_remaining
        if left is None:
            return Met.UNKNOWN, "The time left cannot be estimated."
        return (
            left < self.time_left,
            f"An estimated {left.total_seconds():.0f} s are left; the limit is "
            f"{self.time_left.total_seconds():g} s.",
        )


def _no_best(progress: TuningProgress, rest: str) -> tuple[Met | bool, str]:
    if progress.objectives.succeeded == 0:
        return False, f"No training job has given an objective yet. {rest}"
    return Met.UNKNOWN, f"AMT's answer does not name the best training job. {rest}"


# --- combinations ------------------------------------------------------------------------------


class _Combination(Condition):
    """Base of what consists of other conditions."""

    __slots__ = ()

    @property
    @abstractmethod
    def parts(self) -> tuple[Condition, ...]:
        """The conditions that it consists of."""

    def __post_init__(self) -> None:
        if not self.parts:
            raise AmtFieldError(
                f"{self.code}.of", self.parts, "one or more conditions", "combine them with &, | and ~"
            )
        for one in self.parts:
            if not isinstance(one, Condition):
                raise AmtFieldError(
                    f"{self.code}.of", one, "a condition", "combine objects such as TargetReached(0.9)"
                )
        if self.depth > MAX_DEPTH or self.size > MAX_CONDITIONS:
            raise _too_large(f"{self.code}.of", f"{self.size} conditions, {self.depth} deep")

    @property
    def changes_with_time(self) -> bool:
        """See :attr:`Condition.changes_with_time`."""
        return any(one.changes_with_time for one in self.parts)

    @property
    def depth(self) -> int:
        """See :attr:`Condition.depth`."""
        return 1 + max(one.depth for one in self.parts)

    @property
    def size(self) -> int:
        """See :attr:`Condition.size`."""
        return sum(one.size for one in self.parts)

    def uses_training_jobs(self, progress: TuningProgress) -> bool:
        """See :meth:`Condition.uses_training_jobs`."""
        return any(one.uses_training_jobs(progress) for one in self.parts)

    def to_dict(self) -> dict[str, Any]:
        """See :meth:`Condition.to_dict`."""
        return {"version": CONDITION_VERSION, **_body(self)}


class _Several(_Combination):
    """Base of what combines several conditions by the strongest answer among them."""

    __slots__ = ()

    strongest_first: ClassVar[tuple[Met, ...]]
    of: tuple[Condition, ...]

    @property
    def parts(self) -> tuple[Condition, ...]:
        """The conditions that it consists of."""
        return self.of

    def evaluate(
        self, progress: TuningProgress, training_jobs: Sequence[TrainingJobResult] | None = None
    ) -> ConditionResult:
        """See :meth:`Condition.evaluate`; the parts that gave the strongest answer say why."""
        results = [one.evaluate(progress, training_jobs) for one in self.of]
        met = min((result.met for result in results), key=self.strongest_first.index)
        deciding = [result for result in results if result.met is met]
        return ConditionResult(
            met=met,
            code=self.code,
            reason=" ".join(dict.fromkeys(result.reason for result in deciding)),
            because=tuple(dict.fromkeys(name for result in deciding for name in result.because)),
        )


@dataclass(frozen=True, slots=True)
class AllOf(_Several):
    """Met if all of its conditions are, not met if one of them is not."""

    code: ClassVar[str] = "all"
    strongest_first: ClassVar[tuple[Met, ...]] = (Met.NO, Met.UNKNOWN, Met.YES)
    of: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class AnyOf(_Several):
    """Met if one of its conditions is, not met if none of them is."""

    code: ClassVar[str] = "any"
    strongest_first: ClassVar[tuple[Met, ...]] = (Met.YES, Met.UNKNOWN, Met.NO)
    of: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Negation(_Combination):
    """Met if its condition is not, not met if it is; unknown stays unknown."""

    code: ClassVar[str] = "not"
    of: Condition

    @property
    def parts(self) -> tuple[Condition, ...]:
        """The condition that it negates."""
        return (self.of,)

    def evaluate(
        self, progress: TuningProgress, training_jobs: Sequence[TrainingJobResult] | None = None
    ) -> ConditionResult:
        """See :meth:`Condition.evaluate`."""
        inner = self.of.evaluate(progress, training_jobs)
        met = {Met.YES: Met.NO, Met.NO: Met.YES, Met.UNKNOWN: Met.UNKNOWN}[inner.met]
        # The sentences say what was observed: they hold with the answer turned round, too.
        return ConditionResult(met=met, code=self.code, reason=inner.reason, because=inner.because)


def _operands(kind: type[AllOf] | type[AnyOf], condition: Condition) -> tuple[Condition, ...]:
    return condition.of if isinstance(condition, kind) else (condition,)


def _too_large(path: str, value: Any) -> AmtFieldError:
    return AmtFieldError(
        path,
        value,
        f"at most {MAX_CONDITIONS} single conditions, nested {MAX_DEPTH} deep",
        "wait for less at once",
    )


# --- to and from dicts -------------------------------------------------------------------------

_SINGLE: Mapping[str, type[SingleCondition]] = {
    kind.code: kind
    for kind in (
        TargetReached,
        FirstUsableModel,
        TrainingJobsDone,
        NotImproving,
        Converged,
        RuntimeAbove,
        BudgetShareUsed,
        FailureShareAbove,
        EstimatedTimeLeftBelow,
    )
}
_SEVERAL: Mapping[str, type[AllOf] | type[AnyOf]] = {AllOf.code: AllOf, AnyOf.code: AnyOf}

#: Codes of all types of conditions.
CONDITION_CODES: tuple[str, ...] = (*_SINGLE, *_SEVERAL, Negation.code)


def parse_condition(value: Condition | Mapping[str, Any] | str, *, path: str = "condition") -> Condition:
    """Accept a condition as an object, as its dict, or as the JSON text of that.

    Numbers may be strings, as templates leave them; an optional parameter may be ``None``, ``""`` or
    ``"None"``. ``version`` may be left out.

    :param value: what was given.
    :param path: how errors name it.
    :raises AmtFieldError: it is no condition: unknown type or parameter, a value out of range, a version
        that this release does not know.
    """
    if isinstance(value, Condition):
        return value
    if isinstance(value, str):
        value = _from_json(value, path)
    condition = _parse(value, path, MAX_DEPTH)
    if condition.size > MAX_CONDITIONS:
        raise _too_large(path, f"{condition.size} conditions")
    return condition


def _from_json(text: str, path: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise AmtFieldError(
            path,
            text,
            "a condition, its dict, or the JSON text of its dict",
            "pass TargetReached(0.9) or {'type': 'target_reached', 'value': 0.9}; a template that stands for "
            "the whole dict needs the filter tojson or render_template_as_native_obj=True",
        ) from None


def _parse(value: Any, path: str, depth_left: int) -> Condition:
    if not isinstance(value, Mapping):
        raise AmtFieldError(
            path, value, "a condition or its dict", "pass {'type': 'target_reached', 'value': 0.9}"
        )
    if depth_left == 0:
        raise _too_large(path, f"more than {MAX_DEPTH} deep")
    body = {str(key): given for key, given in value.items()}
    version = body.pop("version", CONDITION_VERSION)
    if isinstance(version, bool) or version != CONDITION_VERSION:
        raise AmtFieldError(
            f"{path}.version",
            version,
            f"{CONDITION_VERSION}",
            "leave it out, or upgrade airflow-provider-amt",
        )
    code = body.pop("type", None)
    if isinstance(code, str) and code in _SINGLE:
        return parse_parameters(_SINGLE[code], body, path)
    if not isinstance(code, str) or (code not in _SEVERAL and code != Negation.code):
        raise AmtFieldError(
            f"{path}.type", code, f"one of {', '.join(CONDITION_CODES)}", "check the type of the condition"
        )
    inner = body.pop("of", None)
    refuse_unknown(body, ("of",), path)
    if code == Negation.code:
        return Negation(_parse(inner, f"{path}.of", depth_left - 1))
    if not isinstance(inner, Sequence) or isinstance(inner, str) or not inner:
        raise AmtFieldError(f"{path}.of", inner, "a list of one or more conditions", "list what to combine")
    if len(inner) > MAX_CONDITIONS:
        raise _too_large(f"{path}.of", f"{len(inner)} conditions")
    return _SEVERAL[code](
        tuple(_parse(one, f"{path}.of[{index}]", depth_left - 1) for index, one in enumerate(inner))
    )


def _body(condition: Condition) -> dict[str, Any]:
    """Return a condition's dict without its version, which only the outermost one carries."""
    if isinstance(condition, Negation):
        return {"type": condition.code, "of": _body(condition.of)}
    if isinstance(condition, _Several):
        return {"type": condition.code, "of": [_body(one) for one in condition.of]}
    body: dict[str, Any] = {"type": condition.code}
    if isinstance(condition, SingleCondition):
        body |= write_parameters(condition)
    return body


# --- the end of the tuning job -----------------------------------------------------------------


class OnEnd(str, Enum):
    """What becomes of a waiting task when the tuning job ends and the condition is not met."""

    SUCCEED = "succeed"
    FAIL = "fail"
    SKIP = "skip"

    @classmethod
    def parse(cls, value: Any) -> OnEnd:
        """Return the member of this value.

        :raises AmtFieldError: there is none.
        """
        try:
            return cls(value)
        except ValueError:
            raise AmtFieldError(
                "on_end", value, f"one of {', '.join(one.value for one in cls)}", "check the spelling"
            ) from None


#: Statuses of a tuning job that is over and has nothing to show for it.
_LOST = frozenset(
    {TuningJobStatus.FAILED.value, TuningJobStatus.DELETING.value, TuningJobStatus.DELETE_FAILED.value}
)


def end_decision(progress: TuningProgress, result: ConditionResult, on_end: OnEnd) -> OnEnd:
    """Decide about a task that waited for a condition of a tuning job that is now over.

    A condition that the final snapshot meets is success, however the job ended. Otherwise ``on_end`` says
    it, except that a job that failed, or is being deleted, is no success: ``succeed`` is ``fail`` then.

    :param progress: the final snapshot.
    :param result: the condition, evaluated on it.
    :param on_end: what the author of the DAG asked for.
    """
    if result.met is Met.YES:
        return OnEnd.SUCCEED
    if on_end is OnEnd.SUCCEED and progress.status in _LOST:
        return OnEnd.FAIL
    return on_end


def progress_result(progress: TuningProgress, result: ConditionResult) -> dict[str, Any]:
    """Return what a task that waited for a condition hands on: the progress, and what fired and why.

    :return: :meth:`TuningProgress.to_dict` with ``fired``, ``"condition"`` or ``"end"``, and ``condition``,
        :meth:`ConditionResult.to_dict`; JSON-safe.
    """
    return {
        **progress.to_dict(),
        "fired": "condition" if result.met is Met.YES else "end",
        "condition": result.to_dict(),
    }
