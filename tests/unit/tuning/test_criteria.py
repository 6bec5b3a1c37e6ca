from __future__ import annotations

import math
import pickle
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_amt.exceptions import AmtRequestError
from airflow_amt.tuning import CompletionCriteria

ALL = CompletionCriteria(
    max_training_jobs=20,
    max_training_jobs_not_improving=5,
    max_runtime=timedelta(hours=2),
    target_objective_value=0.93,
    complete_on_convergence=True,
)


def test_each_criterion_has_its_place_in_the_api() -> None:
    assert ALL.to_request() == {
        "ResourceLimits": {"MaxNumberOfTrainingJobs": 20, "MaxRuntimeInSeconds": 7200},
        "TuningJobCompletionCriteria": {
            "TargetObjectiveMetricValue": 0.93,
            "BestObjectiveNotImproving": {"MaxNumberOfTrainingJobsNotImproving": 5},
            "ConvergenceDetected": {"CompleteOnConvergence": "Enabled"},
        },
    }


def test_merging_keeps_what_is_not_a_criterion_and_leaves_the_original() -> None:
    config = {"Strategy": "Random", "ResourceLimits": {"MaxParallelTrainingJobs": 2}}
    merged = CompletionCriteria(max_training_jobs=4).merge_into(config)
    assert merged == {
        "Strategy": "Random",
        "ResourceLimits": {"MaxParallelTrainingJobs": 2, "MaxNumberOfTrainingJobs": 4},
    }
    assert config["ResourceLimits"] == {"MaxParallelTrainingJobs": 2}


def test_a_criterion_stated_twice_with_two_values_is_refused() -> None:
    config = {"ResourceLimits": {"MaxParallelTrainingJobs": 2, "MaxNumberOfTrainingJobs": 9}}
    with pytest.raises(AmtRequestError) as caught:
        CompletionCriteria(max_training_jobs=4).merge_into(config)
    (problem,) = caught.value.problems
    assert problem.field == "HyperParameterTuningJobConfig.ResourceLimits.MaxNumberOfTrainingJobs"
    assert problem.value == 9
    assert CompletionCriteria(max_training_jobs=9).merge_into(config)["ResourceLimits"] == {
        "MaxParallelTrainingJobs": 2,
        "MaxNumberOfTrainingJobs": 9,
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_training_jobs", 0),
        ("max_training_jobs", -1),
        ("max_training_jobs", True),
        ("max_training_jobs", 1.0),
        ("max_training_jobs", "20"),
        ("max_training_jobs_not_improving", 2),
        ("max_training_jobs_not_improving", -1),
        ("max_training_jobs_not_improving", False),
        ("max_runtime", timedelta(seconds=60)),
        ("max_runtime", timedelta(seconds=119, milliseconds=999)),
        ("max_runtime", timedelta(seconds=120, milliseconds=1)),
        ("max_runtime", timedelta(seconds=15_768_001)),
        ("max_runtime", timedelta(seconds=-1)),
        ("max_runtime", 3600),
        ("target_objective_value", math.nan),
        ("target_objective_value", math.inf),
        ("target_objective_value", -math.inf),
        ("target_objective_value", True),
        ("target_objective_value", "0.9"),
        ("target_objective_value", 10**400),
        ("complete_on_convergence", 1),
        ("complete_on_convergence", "Enabled"),
    ],
)
def test_bad_values_are_refused_by_field_value_limit_and_fix(field: str, value: Any) -> None:
    with pytest.raises(AmtRequestError) as caught:
        CompletionCriteria(**{field: value})
    (problem,) = caught.value.problems
    assert problem.field == field
    assert problem.value is value
    assert problem.limit
    assert problem.fix
    assert field in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).problems[0].limit == problem.limit


def test_all_bad_values_are_named_at_once() -> None:
    with pytest.raises(AmtRequestError) as caught:
        CompletionCriteria(max_training_jobs=0, max_training_jobs_not_improving=1, complete_on_convergence=0)  # type: ignore[arg-type]
    assert [problem.field for problem in caught.value.problems] == [
        "max_training_jobs",
        "max_training_jobs_not_improving",
        "complete_on_convergence",
    ]


def test_a_bad_request_is_named_by_its_api_path() -> None:
    with pytest.raises(AmtRequestError) as caught:
        CompletionCriteria.from_request(
            {
                "ResourceLimits": {"MaxRuntimeInSeconds": 60},
                "TuningJobCompletionCriteria": {"ConvergenceDetected": {"CompleteOnConvergence": "Maybe"}},
            }
        )
    runtime, flag = caught.value.problems
    assert (runtime.field, runtime.value) == (
        "HyperParameterTuningJobConfig.ResourceLimits.MaxRuntimeInSeconds",
        60,
    )
    assert flag.value == "Maybe"
    assert "Enabled" in flag.limit


@pytest.mark.parametrize("junk", [None, {}, {"ResourceLimits": "x", "TuningJobCompletionCriteria": []}])
def test_what_is_no_structure_sets_nothing(junk: Any) -> None:
    assert CompletionCriteria.from_request(junk) == CompletionCriteria()


def test_rendered_strings_are_turned_back() -> None:
    parsed = CompletionCriteria.parse(
        {
            "max_training_jobs": "20",
            "max_training_jobs_not_improving": " 5 ",
            "max_runtime": "7200",
            "target_objective_value": "0.93",
            "complete_on_convergence": "True",
        }
    )
    assert parsed == ALL
    assert CompletionCriteria.parse(ALL) is ALL
    assert CompletionCriteria.parse({"max_training_jobs": "", "max_runtime": "None"}).is_empty


@pytest.mark.parametrize("value", [{"max_jobs": 3}, {"max_training_jobs": "many"}, "20", 20])
def test_what_cannot_be_parsed_is_refused(value: Any) -> None:
    with pytest.raises(AmtRequestError):
        CompletionCriteria.parse(value)


def test_disabled_convergence_is_sent_and_ends_nothing() -> None:
    criteria = CompletionCriteria(complete_on_convergence=False)
    assert criteria.is_empty
    flag = criteria.to_request()["TuningJobCompletionCriteria"]["ConvergenceDetected"]
    assert flag == {"CompleteOnConvergence": "Disabled"}


@given(
    st.builds(
        CompletionCriteria,
        max_training_jobs=st.none() | st.integers(1, 2**31 - 1),
        max_training_jobs_not_improving=st.none() | st.integers(3, 2**31 - 1),
        max_runtime=st.none() | st.integers(120, 15_768_000).map(lambda seconds: timedelta(seconds=seconds)),
        target_objective_value=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        complete_on_convergence=st.none() | st.booleans(),
    )
)
def test_to_and_from_the_request_loses_nothing(criteria: CompletionCriteria) -> None:
    assert CompletionCriteria.from_request(criteria.to_request()) == criteria


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "max_training_jobs",
                "max_training_jobs_not_improving",
                "max_runtime",
                "target_objective_value",
                "complete_on_convergence",
            ]
        ),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers()),
    )
)
def test_any_junk_is_parsed_or_refused_clearly(junk: dict[str, Any]) -> None:
    try:
        CompletionCriteria.parse(junk)
    except AmtRequestError as error:
        assert all(problem.field and problem.limit and problem.fix for problem in error.problems)  # noqa: PT017
