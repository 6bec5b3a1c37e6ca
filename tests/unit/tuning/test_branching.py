"""From an outcome to the tasks that follow."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_amt.exceptions import AmtFieldError, AmtRequestError
from airflow_amt.tuning import CompletionReason, branch_on_outcome, infer_outcome
from airflow_amt.tuning.branching import BRANCH_KEYS, outcome_keys
from tests.unit.tasks import describe


def outcome(reason: str = "max_training_jobs", **changes: Any) -> dict[str, Any]:
    """An outcome of XCom, from a real one."""
    facts = infer_outcome(describe(status="Completed")).to_dict()
    assert facts["reason"] == "max_training_jobs"
    return {**facts, "reason": reason, **changes}


STOPPED = outcome(
    "stopped_by_provider", status="Stopped", evidence={"stopped_by": "deadline", "detail": None}
)


@pytest.mark.parametrize(
    ("facts", "good_enough", "keys"),
    [
        (outcome(), None, ("max_training_jobs", "succeeded")),
        (outcome("search_space_exhausted"), None, ("search_space_exhausted", "succeeded")),
        (outcome("unknown"), None, ("unknown", "succeeded")),
        (outcome("unknown", status="Deleting"), None, ("unknown", "failed")),
        # Named after a criterion, though AWS says Stopped: a success, as for the operator.
        (outcome("target_reached", status="Stopped"), None, ("target_reached", "succeeded")),
        (outcome("stopped_externally", status="Stopped"), None, ("stopped_externally", "stopped")),
        (STOPPED, None, ("stopped_by_provider:deadline", "stopped_by_provider", "stopped")),
        (outcome("failed", status="Failed"), None, ("failed",)),
        (outcome(best_training_job=None), 0.5, ("max_training_jobs", "no_model", "succeeded")),
        (outcome(), 0.9, ("max_training_jobs", "good_enough", "succeeded")),
        (outcome(), "0.91", ("max_training_jobs", "not_good_enough", "succeeded")),
        (outcome(objective_type="Minimize"), 0.8, ("max_training_jobs", "not_good_enough", "succeeded")),
        (outcome(objective_type="Minimize"), 0.9, ("max_training_jobs", "good_enough", "succeeded")),
        (outcome("of_next_year"), None, ("of_next_year", "succeeded")),
        (None, 0.9, ("no_outcome",)),
    ],
)
def test_the_most_specific_key_comes_first(
    facts: dict[str, Any] | None, good_enough: Any, keys: tuple[str, ...]
) -> None:
    assert outcome_keys(facts, good_enough=good_enough) == keys
    for form in (json.dumps(facts), repr(facts)):
        assert outcome_keys(form, good_enough=good_enough) == keys
    # Each of them decides if no earlier one has a branch.
    for position, key in enumerate(keys):
        branches = {later: later for later in keys[position:] if later in BRANCH_KEYS}
        if key in branches:
            assert branch_on_outcome(facts, branches, good_enough=good_enough) == [key]


@pytest.mark.parametrize("reason", list(CompletionReason))
def test_the_groups_agree_with_the_operators_judgement(reason: CompletionReason) -> None:
    for status in ("Completed", "Stopped", "Failed", "Deleting", "DeleteFailed"):
        facts = infer_outcome(describe(status=status))
        object.__setattr__(facts, "reason", reason)
        assert ("succeeded" in outcome_keys(facts.to_dict())) is facts.succeeded


def test_several_tasks_and_the_default() -> None:
    branches = {"max_training_jobs": ["a", "b", "a"]}
    assert branch_on_outcome(outcome(), branches) == ["a", "b"]
    assert branch_on_outcome(outcome("converged"), branches, "c") == ["c"]
    assert branch_on_outcome(outcome("converged"), branches) == []


def test_no_outcome_is_an_error_unless_it_has_a_branch() -> None:
    assert branch_on_outcome(" None ", {"no_outcome": "alert"}) == ["alert"]
    # Not even the default takes it: a task that failed early shall not look like an odd reason.
    with pytest.raises(AmtFieldError, match="no_outcome"):
        branch_on_outcome(None, {"failed": "alert"}, "c")


@pytest.mark.parametrize("junk", [7, "{", "hello", [outcome()], {"reason": "failed"}, {"status": "Failed"}])
def test_what_is_no_outcome_is_refused(junk: Any) -> None:
    with pytest.raises(AmtFieldError, match="the outcome of one tuning job"):
        branch_on_outcome(junk, {"failed": "alert"})


def test_an_objective_without_a_direction_cannot_be_judged() -> None:
    with pytest.raises(AmtFieldError, match="objective_type"):
        branch_on_outcome(outcome(objective_type=None), {"good_enough": "a"}, good_enough=1)


@pytest.mark.parametrize(
    ("branches", "more", "fields"),
    [
        ({}, {}, ["branches"]),
        (["failed"], {}, ["branches"]),
        (
            {"target-reached": "a", "convergd": "b"},
            {},
            ["branches['target-reached']", "branches['convergd']"],
        ),
        ({"failed": ""}, {}, ["branches['failed']"]),
        ({"failed": []}, {}, ["branches['failed']"]),
        ({"failed": ["a", 7]}, {}, ["branches['failed']"]),
        ({"failed": 7}, {"default": []}, ["branches['failed']", "default"]),
        ({"good_enough": "a"}, {}, ["good_enough"]),
        ({"failed": "a"}, {"good_enough": "lots"}, ["good_enough"]),
        ({"failed": "a"}, {"good_enough": float("nan")}, ["good_enough"]),
    ],
)
def test_all_problems_of_branches_are_named(branches: Any, more: dict[str, Any], fields: list[str]) -> None:
    with pytest.raises(AmtRequestError) as caught:
        branch_on_outcome(outcome(), branches, **more)
    assert [problem.field for problem in caught.value.problems] == fields
