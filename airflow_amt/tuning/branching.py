"""Which way to go on after a tuning job: from its outcome to the ids of the tasks that follow.

Nothing here knows Airflow: :func:`branch_on_outcome` is called inside ``@task.branch``, and by
``AmtOutcomeBranchOperator``.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from airflow_amt.exceptions import AmtFieldError, AmtRequestError
from airflow_amt.tuning.criteria import CompletionReason, ObjectiveType
from airflow_amt.tuning.history import finite
from airflow_amt.tuning.judgement import known_names, names_of_reason
from airflow_amt.tuning.status import TuningJobStatus
from airflow_amt.tuning.values import parse_number

#: What follows: one task (or task group) id or several.
Branch = str | Sequence[str]


class OutcomeGroup(str, Enum):
    """Keys of branches that several reasons share. The values are stable codes, as the reasons are."""

    NO_OUTCOME = "no_outcome"
    NO_MODEL = "no_model"
    GOOD_ENOUGH = "good_enough"
    NOT_GOOD_ENOUGH = "not_good_enough"
    SUCCEEDED = "succeeded"
    STOPPED = "stopped"
    FAILED = "failed"


#: All keys that branches may have, the reasons first.
BRANCH_KEYS: tuple[str, ...] = tuple(
    dict.fromkeys([*known_names(), *(group.value for group in OutcomeGroup)])
)

_QUALITY = (OutcomeGroup.GOOD_ENOUGH.value, OutcomeGroup.NOT_GOOD_ENOUGH.value)


def branch_on_outcome(
    outcome: Any,
    branches: Mapping[str, Branch],
    default: Branch | None = None,
    *,
    good_enough: float | str | None = None,
) -> list[str]:
    """Return the ids of the tasks to go on with after a tuning job; for use inside ``@task.branch``.

    How it works: the first key that fits and has a branch decides, the most specific one first (see
    :func:`outcome_keys`); if none has, the default does.

    :param outcome: the outcome as in XCom, or its text as JSON or as a Python literal (what a template
        renders); ``None`` if the task left none, which fits ``"no_outcome"`` only.
    :param branches: a task id, or several, for each reason or group.
    :param default: where to go if no key has a branch; ``None`` skips all that follow.
    :param good_enough: the objective from which on a model is good enough: at least that where the objective
        is maximised, at most that where it is minimised.
    :return: task ids, none twice; empty to skip all that follow.
    :raises AmtRequestError: branches or ``good_enough`` are not well formed.
    :raises AmtFieldError: the outcome is none, or there is none and ``"no_outcome"`` has no branch.
    """
    check_branches(branches, default, good_enough)
    keys = outcome_keys(outcome, good_enough=good_enough)
    for key in keys:
        if key in branches:
            return task_ids(branches[key])
    if keys == (OutcomeGroup.NO_OUTCOME.value,):
        raise AmtFieldError(
            "outcome",
            None,
            "the outcome of a tuning job, which the task has not left",
            "look at the task's log (it may have failed before its tuning job began), or give the branch "
            '"no_outcome"',
        )
    return [] if default is None else task_ids(default)


def outcome_keys(outcome: Any, *, good_enough: float | str | None = None) -> tuple[str, ...]:
    """Return the keys of branches that fit an outcome, the most specific one first.

    In this order: which policy stopped it (``stopped_by_provider:policy:budget``); who did
    (``stopped_by_provider:operator``, ``:policy``, ``:deadline``, ...); the reason; ``no_model`` if no
    training job has an objective; ``good_enough`` or ``not_good_enough`` if that was asked for and there is a
    model; and one of ``succeeded`` (the tuning job came to its own end, or a policy stopped it and kept its
    best), ``stopped`` (by whomever) and ``failed`` (all else).

    :param outcome: as in :func:`branch_on_outcome`.
    :param good_enough: as in :func:`branch_on_outcome`.
    :raises AmtFieldError: it is no outcome, or its objective has no direction to be judged in.
    """
    facts = parse_outcome(outcome)
    if facts is None:
        return (OutcomeGroup.NO_OUTCOME.value,)
    evidence = facts.get("evidence") or {}
    keys = names_of_reason(str(facts["reason"]), evidence.get("stopped_by"), evidence.get("policy"))
    bar = _bar(good_enough)
    objective = finite((facts.get("best_training_job") or {}).get("objective"))
    if objective is None:
        keys.append(OutcomeGroup.NO_MODEL.value)
    elif bar is not None:
        reaches = _direction(facts).reaches(objective, bar)
        keys.append((OutcomeGroup.GOOD_ENOUGH if reaches else OutcomeGroup.NOT_GOOD_ENOUGH).value)
    keys.append(_group(facts).value)
    return tuple(dict.fromkeys(keys))


def parse_outcome(outcome: Any) -> dict[str, Any] | None:
    """Return an outcome of XCom as a dict, also from the text that a template made of it.

    :return: ``None`` if there is none (``None``, or its text).
    :raises AmtFieldError: it is something else.
    """
    found = outcome
    if isinstance(found, str):
        text = found.strip()
        found = None if text in ("", "None", "null") else _literal(text)
    if found is None:
        return None
    if (
        not isinstance(found, Mapping)
        or not isinstance(found.get("reason"), str)
        or not isinstance(found.get("status"), str)
    ):
        raise AmtFieldError(
            "outcome",
            outcome,
            "the outcome of one tuning job, a dict with reason and status as AmtTuningJobOperator leaves it "
            'under the XCom key "outcome"',
            'pass tune.output["outcome"]; of a mapped task, one of its outcomes',
        )
    return dict(found)


def check_branches(
    branches: Any,
    default: Branch | None = None,
    good_enough: float | str | None = None,
) -> None:
    """Check branches before anything runs.

    :raises AmtRequestError: there is none; a key is no reason and no group; what follows is no task id; a
        quality is a key and ``good_enough`` is not given, or is no number. All problems are listed.
    """
    problems: list[AmtFieldError] = []
    if not isinstance(branches, Mapping) or not branches:
        problems.append(
            AmtFieldError(
                "branches",
                branches,
                "a mapping with at least one key",
                'give for example {"succeeded": "deploy", "failed": "alert"}',
            )
        )
        branches = {}
    for key, branch in branches.items():
        if key not in BRANCH_KEYS:
            problems.append(
                AmtFieldError(
                    f"branches[{key!r}]",
                    key,
                    "no reason for which a tuning job ends and no group of them",
                    f"choose from {', '.join(BRANCH_KEYS)}",
                )
            )
        elif key in _QUALITY and good_enough is None:
            problems.append(
                AmtFieldError(
                    "good_enough",
                    None,
                    f"the branch {key!r} needs it",
                    "give the objective from which on a model is good enough",
                )
            )
        _check_task_ids(problems, f"branches[{key!r}]", branch)
    if default is not None:
        _check_task_ids(problems, "default", default)
    # A template is not rendered yet while a DAG is parsed.
    if not (isinstance(good_enough, str) and "{" in good_enough):
        try:
            _bar(good_enough)
        except AmtFieldError as problem:
            problems.append(problem)
    if problems:
        raise AmtRequestError(problems)


def task_ids(branch: Branch) -> list[str]:
    """Return the ids of a branch as a list, none twice."""
    return [branch] if isinstance(branch, str) else list(dict.fromkeys(branch))


def _check_task_ids(problems: list[AmtFieldError], field: str, branch: Any) -> None:
    one = [branch] if isinstance(branch, str) else branch
    if (
        not isinstance(one, Sequence)
        or not one
        or any(not isinstance(task_id, str) or not task_id.strip() for task_id in one)
    ):
        problems.append(
            AmtFieldError(
                field,
                branch,
                "a task id or a list of task ids",
                "name the task or task group that shall run; leave the key out for none",
            )
        )


def _bar(good_enough: float | str | None) -> float | None:
    return None if good_enough is None else parse_number("good_enough", good_enough)


def _direction(facts: Mapping[str, Any]) -> ObjectiveType:
    try:
        return ObjectiveType(facts.get("objective_type"))
    except ValueError:
        raise AmtFieldError(
            "outcome.objective_type",
            facts.get("objective_type"),
            "Maximize or Minimize, without which no objective is good or bad",
            "leave good_enough out for this tuning job",
        ) from None


def _group(facts: Mapping[str, Any]) -> OutcomeGroup:
    """Judge as :attr:`airflow_amt.tuning.TuningOutcome.succeeded` does."""
    try:
        reason = CompletionReason(facts["reason"])
    except ValueError:
        # Of a newer release: its status still tells the group.
        reason = CompletionReason.UNKNOWN
    completed = facts["status"] == TuningJobStatus.COMPLETED.value
    if (
        reason.is_criterion
        or reason is CompletionReason.SEARCH_SPACE_EXHAUSTED
        or (reason is CompletionReason.UNKNOWN and completed)
        or _kept_by_policy(reason, facts)
    ):
        return OutcomeGroup.SUCCEEDED
    return OutcomeGroup.STOPPED if facts["status"] == TuningJobStatus.STOPPED.value else OutcomeGroup.FAILED


def _kept_by_policy(reason: CompletionReason, facts: Mapping[str, Any]) -> bool:
    evidence = facts.get("evidence") or {}
    has_model = finite((facts.get("best_training_job") or {}).get("objective")) is not None
    return (
        reason is CompletionReason.STOPPED_BY_PROVIDER
        and bool(evidence.get("policy"))
        and evidence.get("action") == "stop"
        and has_model
    )


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
