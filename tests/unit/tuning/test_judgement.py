"""How an outcome is judged: default, names of reasons, quality, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_amt.exceptions import AmtRequestError
from airflow_amt.tuning import infer_outcome
from airflow_amt.tuning.judgement import Ending, OutcomePolicy
from tests.unit.tasks import describe

STOPPED = {"airflow-amt:stopped-by": "policy"}


def ending(policy: OutcomePolicy, status: str = "Completed", **options: Any) -> Ending:
    tags = options.pop("tags", {})
    return policy.judge(infer_outcome(describe(status=status, **options), tags=tags)).ending


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("Completed", Ending.SUCCEED),
        ("Stopped", Ending.FAIL),
        ("Failed", Ending.FAIL),
        ("Deleting", Ending.FAIL),
        ("DeleteFailed", Ending.FAIL),
    ],
)
def test_without_a_policy_a_jobs_own_end_is_the_success(status: str, expected: Ending) -> None:
    assert ending(OutcomePolicy(), status) is expected


def test_named_reasons_stand_in_place_of_the_default() -> None:
    policy = OutcomePolicy.parse(fail_on="max_training_jobs")
    assert ending(policy) is Ending.FAIL
    assert ending(policy, "Stopped", tags=STOPPED) is Ending.SUCCEED
    assert ending(policy, "Failed") is Ending.FAIL


def test_a_failed_job_is_no_success_whatever_is_left_out() -> None:
    assert ending(OutcomePolicy.parse(fail_on=[]), "Failed") is Ending.FAIL
    assert ending(OutcomePolicy.parse(skip_on=["failed"]), "Failed") is Ending.SKIP


def test_one_kind_of_stop_is_more_specific_than_all() -> None:
    policy = OutcomePolicy.parse(fail_on=["stopped_by_provider"], skip_on=["stopped_by_provider:policy"])
    assert ending(policy, "Stopped", tags=STOPPED) is Ending.SKIP
    assert ending(policy, "Stopped", tags={"airflow-amt:stopped-by": "operator"}) is Ending.FAIL


def test_no_model_is_a_reason_of_its_own() -> None:
    policy = OutcomePolicy.parse(skip_on=["no_model"])
    assert ending(policy, BestTrainingJob=None) is Ending.SKIP
    assert ending(policy) is Ending.SUCCEED


@pytest.mark.parametrize(("floor", "expected"), [(0.9, Ending.SUCCEED), (0.91, Ending.FAIL)])
def test_a_stopped_job_with_a_good_enough_model_succeeds(floor: float, expected: Ending) -> None:
    policy = OutcomePolicy.parse(good_enough=str(floor))
    assert ending(policy, "Stopped", tags=STOPPED) is expected
    assert ending(policy, "Failed") is Ending.FAIL


@pytest.mark.parametrize("floor", [0.9, 0.91])
def test_good_enough_heeds_the_direction(floor: float) -> None:
    config = describe()["HyperParameterTuningJobConfig"]
    config["HyperParameterTuningJobObjective"]["Type"] = "Minimize"
    policy = OutcomePolicy.parse(good_enough=floor)
    assert ending(policy, "Stopped", HyperParameterTuningJobConfig=config) is Ending.SUCCEED


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"fail_on": "max_jobs"}, "fail_on"),
        ({"skip_on": ["stopped_by_provider:nobody"]}, "skip_on"),
        ({"fail_on": ["failed"], "skip_on": ["failed"]}, "skip_on"),
        ({"good_enough": "high"}, "good_enough"),
        ({"good_enough": float("nan")}, "good_enough"),
        ({"good_enough": True}, "good_enough"),
        ({"skip_on": [["failed"]]}, "skip_on"),
    ],
)
def test_what_is_not_known_is_refused(options: dict[str, Any], field: str) -> None:
    with pytest.raises(AmtRequestError) as caught:
        OutcomePolicy.parse(**options)
    assert [problem.field for problem in caught.value.problems] == [field]
