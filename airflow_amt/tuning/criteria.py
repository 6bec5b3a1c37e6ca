"""The five completion criteria of a tuning job: typed, validated, to and from the API.

Source of names, places and limits: SageMaker API, ``CreateHyperParameterTuningJob`` with ``ResourceLimits``,
``TuningJobCompletionCriteria``, ``BestObjectiveNotImproving`` and ``ConvergenceDetected``.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, fields
from datetime import timedelta
from enum import Enum
from typing import Any, TypeGuard

from airflow_amt.exceptions import AmtFieldError, AmtRequestError

#: The API's floats are 32 bits wide: the largest one.
LARGEST_FLOAT = 3.4028234663852886e38

MIN_NOT_IMPROVING = 3
MIN_RUNTIME_SECONDS = 120
MAX_RUNTIME_SECONDS = 15_768_000

_LIMITS = "HyperParameterTuningJobConfig.ResourceLimits"
_CRITERIA = "HyperParameterTuningJobConfig.TuningJobCompletionCriteria"


class ObjectiveType(str, Enum):
    """Which direction of the objective is better; values as in the API."""

    MAXIMIZE = "Maximize"
    MINIMIZE = "Minimize"

    def better(self, value: float, than: float | None) -> bool:
        """Say whether ``value`` is strictly better than ``than`` (anything beats ``None``)."""
        if than is None:
            return True
        return value > than if self is ObjectiveType.MAXIMIZE else value < than

    def reaches(self, value: float, target: float) -> bool:
        """Say whether ``value`` meets ``target``; being equal is enough."""
        return value >= target if self is ObjectiveType.MAXIMIZE else value <= target

    def attains(self, value: float, target: float) -> bool:
        """Say whether a value that AMT reported meets ``target``: as 32 bits, the API's width, if need be."""
        return self.reaches(value, target) or _float32(value) == _float32(target)


class CompletionReason(str, Enum):
    """Why a tuning job ended. The values are stable codes: XCom, logs and the command line use them."""

    MAX_TRAINING_JOBS = "max_training_jobs"
    NOT_IMPROVING = "not_improving"
    MAX_RUNTIME = "max_runtime"
    TARGET_REACHED = "target_reached"
    CONVERGED = "converged"
    SEARCH_SPACE_EXHAUSTED = "search_space_exhausted"
    STOPPED_BY_PROVIDER = "stopped_by_provider"
    STOPPED_EXTERNALLY = "stopped_externally"
    FAILED = "failed"
    UNKNOWN = "unknown"

    @property
    def is_criterion(self) -> bool:
        """Whether this is one of AMT's five completion criteria."""
        return self in CRITERIA_REASONS


#: The five criteria, most specific first: the order in which simultaneous ones are named.
CRITERIA_REASONS: tuple[CompletionReason, ...] = (
    CompletionReason.TARGET_REACHED,
    CompletionReason.CONVERGED,
    CompletionReason.NOT_IMPROVING,
    CompletionReason.MAX_TRAINING_JOBS,
    CompletionReason.MAX_RUNTIME,
)

#: Where each attribute of :class:`CompletionCriteria` lives in the request.
API_PATHS: Mapping[str, str] = {
    "max_training_jobs": f"{_LIMITS}.MaxNumberOfTrainingJobs",
    "max_runtime": f"{_LIMITS}.MaxRuntimeInSeconds",
    "target_objective_value": f"{_CRITERIA}.TargetObjectiveMetricValue",
    "max_training_jobs_not_improving": (
        f"{_CRITERIA}.BestObjectiveNotImproving.MaxNumberOfTrainingJobsNotImproving"
    ),
    "complete_on_convergence": f"{_CRITERIA}.ConvergenceDetected.CompleteOnConvergence",
}

_CONVERGENCE_FLAG = {"Enabled": True, "Disabled": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionCriteria:
    """When AMT shall end a tuning job by itself; any one criterion that is met ends it.

    :param max_training_jobs: most training jobs that may be launched, at least 1.
    :param max_training_jobs_not_improving: end after this many training jobs in a row whose objective is
        not better than the best one before them, at least 3.
    :param max_runtime: wall-clock limit of the whole tuning job, 120 s to 15 768 000 s, whole seconds.
    :param target_objective_value: end once a training job's objective reaches this finite number.
    :param complete_on_convergence: end once AMT detects convergence. ``None`` leaves the field out,
        ``False`` sends ``Disabled``.
    :raises AmtRequestError: one or more values are out of range; every bad field is listed.
    """

    max_training_jobs: int | None = None
    max_training_jobs_not_improving: int | None = None
    max_runtime: timedelta | None = None
    target_objective_value: float | None = None
    complete_on_convergence: bool | None = None

    def __post_init__(self) -> None:
        problems: list[AmtFieldError] = []
        _check_count(problems, "max_training_jobs", self.max_training_jobs, 1)
        _check_count(
            problems,
            "max_training_jobs_not_improving",
            self.max_training_jobs_not_improving,
            MIN_NOT_IMPROVING,
        )
        _check_runtime(problems, self.max_runtime)
        _check_target(problems, self.target_objective_value)
        _check_flag(problems, self.complete_on_convergence)
        if problems:
            raise AmtRequestError(problems)

    @property
    def is_empty(self) -> bool:
        """Whether nothing here would ever end a tuning job (``complete_on_convergence=False`` does not)."""
        return not any(
            (
                self.max_training_jobs is not None,
                self.max_training_jobs_not_improving is not None,
                self.max_runtime is not None,
                self.target_objective_value is not None,
                self.complete_on_convergence,
            )
        )

    @property
    def max_runtime_seconds(self) -> int | None:
        """``max_runtime`` in whole seconds, as the API takes it."""
        return None if self.max_runtime is None else round(self.max_runtime.total_seconds())

    @classmethod
    def from_request(cls, config: Mapping[str, Any] | None) -> CompletionCriteria:
        """Read the criteria out of a ``HyperParameterTuningJobConfig`` (of a request or a description).

        Unknown siblings are ignored; missing parts, and those that are no structure, mean "not set".

        :raises AmtRequestError: a value is out of range, named by its path in the API.
        """
        limits = _part(config, "ResourceLimits")
        completion = _part(config, "TuningJobCompletionCriteria")
        not_improving = _part(completion, "BestObjectiveNotImproving")
        convergence = _part(completion, "ConvergenceDetected")
        runtime = limits.get("MaxRuntimeInSeconds")
        flag = convergence.get("CompleteOnConvergence")
        values: dict[str, Any] = {
            "max_training_jobs": limits.get("MaxNumberOfTrainingJobs"),
            "max_training_jobs_not_improving": not_improving.get("MaxNumberOfTrainingJobsNotImproving"),
            "max_runtime": timedelta(seconds=runtime) if _is_seconds(runtime) else runtime,
            "target_objective_value": completion.get("TargetObjectiveMetricValue"),
            "complete_on_convergence": _CONVERGENCE_FLAG.get(flag, flag) if isinstance(flag, str) else flag,
        }
        try:
            return cls(**values)
        except AmtRequestError as error:
            raise AmtRequestError(
                AmtFieldError(
                    API_PATHS[problem.field],
                    runtime if problem.field == "max_runtime" else problem.value,
                    "'Enabled' or 'Disabled'"
                    if problem.field == "complete_on_convergence"
                    else problem.limit,
                    problem.fix,
                )
                for problem in error.problems
            ) from None

    def merge_into(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy of a ``HyperParameterTuningJobConfig`` with these criteria in their places.

        A criterion that is ``None`` here leaves what the config says. ``MaxParallelTrainingJobs`` and all
        other fields stay untouched.

        :raises AmtRequestError: a criterion is set here and, with another value, in the config.
        """
        merged = deepcopy(dict(config))
        problems: list[AmtFieldError] = []
        for attribute, value in self._api_values().items():
            path = API_PATHS[attribute].split(".")[1:]
            parent = merged
            for key in path[:-1]:
                if not isinstance(parent.get(key), dict):
                    parent[key] = {}
                parent = parent[key]
            present = parent.get(path[-1])
            if present is not None and present != value:
                problems.append(
                    AmtFieldError(
                        API_PATHS[attribute],
                        present,
                        f"criteria.{attribute} says {value!r}",
                        "state this criterion once: in `criteria` or in the request",
                    )
                )
            parent[path[-1]] = value
        if problems:
            raise AmtRequestError(problems)
        return merged

    def to_request(self) -> dict[str, Any]:
        """Return the two API structures that carry the criteria: only what is set.

        :return: ``{"ResourceLimits": {...}, "TuningJobCompletionCriteria": {...}}``; a structure without
            content is left out. ``MaxParallelTrainingJobs``, which is not a criterion, is never in it.
        """
        return self.merge_into({})

    def _api_values(self) -> dict[str, Any]:
        values = {
            "max_training_jobs": self.max_training_jobs,
            "max_runtime": self.max_runtime_seconds,
            "target_objective_value": self.target_objective_value,
            "max_training_jobs_not_improving": self.max_training_jobs_not_improving,
            "complete_on_convergence": {True: "Enabled", False: "Disabled", None: None}[
                self.complete_on_convergence
            ],
        }
        return {attribute: value for attribute, value in values.items() if value is not None}

    @classmethod
    def parse(cls, value: CompletionCriteria | Mapping[str, Any]) -> CompletionCriteria:
        """Accept criteria as an object or as a mapping of its attributes, as a template leaves them.

        Numbers and booleans may be strings (``"20"``, ``"0.93"``, ``"true"``); ``max_runtime`` may be a
        number of seconds; an empty string or ``"None"`` means "not set".

        :raises AmtRequestError: an unknown attribute, or a value that is not of its type or range.
        """
        if isinstance(value, CompletionCriteria):
            return value
        if not isinstance(value, Mapping):
            raise AmtRequestError(
                [
                    AmtFieldError(
                        "criteria",
                        value,
                        "CompletionCriteria or a mapping of its attributes",
                        "pass CompletionCriteria(max_training_jobs=20, ...)",
                    )
                ]
            )
        known = [field.name for field in fields(cls)]
        problems = [
            AmtFieldError(
                f"criteria.{key}", given, f"one of {', '.join(known)}", "check the spelling of the criterion"
            )
            for key, given in value.items()
            if key not in known
        ]
        if problems:
            raise AmtRequestError(problems)
        return cls(**{key: _from_text(key, given) for key, given in value.items()})


def _part(parent: Mapping[str, Any] | None, key: str) -> Mapping[str, Any]:
    """Return a structure within a structure, empty if it is missing or none."""
    part = parent.get(key) if isinstance(parent, Mapping) else None
    return part if isinstance(part, Mapping) else {}


def _from_text(attribute: str, value: Any) -> Any:
    """Turn what a template rendered into the attribute's type; what cannot be turned stays for the check."""
    if isinstance(value, str):
        text = value.strip()
        if text in ("", "None"):
            return None
        if attribute == "complete_on_convergence":
            return {"true": True, "false": False, "enabled": True, "disabled": False}.get(text.lower(), value)
        try:
            value = float(text) if attribute in ("target_objective_value", "max_runtime") else int(text)
        except ValueError:
            return value
    if attribute == "max_runtime" and _is_seconds(value):
        return timedelta(seconds=value)
    return value


def _is_seconds(value: Any) -> TypeGuard[float]:
    """Whether a number can be a ``timedelta``'s seconds (finite and not absurdly large)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 8e13


def _check_count(problems: list[AmtFieldError], field: str, value: Any, least: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        problems.append(
            AmtFieldError(
                field,
                value,
                f"a whole number, at least {least}",
                f"set it to {least} or more, or leave it out",
            )
        )


def _check_runtime(problems: list[AmtFieldError], value: Any) -> None:
    if value is None:
        return
    limit = f"{MIN_RUNTIME_SECONDS} to {MAX_RUNTIME_SECONDS} seconds, in whole seconds"
    fix = "pass a timedelta in this range, as timedelta(hours=1), or leave it out"
    if not isinstance(value, timedelta):
        problems.append(AmtFieldError("max_runtime", value, f"a timedelta of {limit}", fix))
        return
    seconds = value.total_seconds()
    if not MIN_RUNTIME_SECONDS <= seconds <= MAX_RUNTIME_SECONDS or seconds != int(seconds):
        problems.append(AmtFieldError("max_runtime", value, limit, fix))


def _check_target(problems: list[AmtFieldError], value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _is_finite(value):
        problems.append(
            AmtFieldError(
                "target_objective_value",
                value,
                "a finite number",
                "give the objective's value that is good enough, or leave it out",
            )
        )


def _check_flag(problems: list[AmtFieldError], value: Any) -> None:
    if value is not None and not isinstance(value, bool):
        problems.append(
            AmtFieldError(
                "complete_on_convergence",
                value,
                "True, False or None",
                "pass True to end the tuning job when AMT detects convergence",
            )
        )


def _float32(value: float) -> float:
    rounded: float = struct.unpack("f", struct.pack("f", value))[0] if abs(value) <= LARGEST_FLOAT else value
    return rounded


def _is_finite(value: float) -> bool:
    # Comparing works for any int, also one that is too large for a double; NaN compares as false.
    return abs(value) <= sys.float_info.max
