"""The five completion criteria, alone and combined, with real training processes.

Each test also compares with the replay of what ListTrainingJobs shows: the criteria must agree.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from airflow_amt.tuning import CompletionCriteria, CompletionReason, ObjectiveType, TrainingJobResult, replay
from airflow_amt.tuning.history import ReplayReport
from tests.local.support import best_of, create_request, run_to_end, training_jobs

pytestmark = pytest.mark.local


def replayed(client: Any, description: dict[str, Any]) -> ReplayReport:
    config = description["HyperParameterTuningJobConfig"]
    results = [
        TrainingJobResult.from_summary(summary)
        for summary in training_jobs(client, description["HyperParameterTuningJobName"])
    ]
    return replay(
        results,
        CompletionCriteria.from_request(config),
        ObjectiveType(config["HyperParameterTuningJobObjective"]["Type"]),
        started_at=description["CreationTime"],
        until=description["HyperParameterTuningEndTime"],
    )


def check_agreement(client: Any, description: dict[str, Any]) -> ReplayReport:
    """What the engine says equals what the replay says."""
    report = replayed(client, description)
    details = description["TuningJobCompletionDetails"]
    assert details["NumberOfTrainingJobsObjectiveNotImproving"] == report.not_improving_count
    assert details.get("ConvergenceDetectedTime") == report.convergence_detected_at
    listed = training_jobs(client, description["HyperParameterTuningJobName"])
    objective = description["HyperParameterTuningJobConfig"]["HyperParameterTuningJobObjective"]
    best = description.get("BestTrainingJob")
    assert (best and best["TrainingJobName"]) == best_of(listed, objective["Type"])
    return report


def completed(client: Any, request: dict[str, Any]) -> tuple[dict[str, Any], ReplayReport]:
    description = run_to_end(client, request)
    assert description["HyperParameterTuningJobStatus"] == "Completed", description
    assert "FailureReason" not in description
    return description, check_agreement(client, description)


def test_max_training_jobs(client: Any) -> None:
    description, report = completed(client, create_request(sequence="0.1 0.3 0.2", most=3))

    assert [fired.reason for fired in report.first] == [CompletionReason.MAX_TRAINING_JOBS]
    assert description["TrainingJobStatusCounters"] == {
        "Completed": 3,
        "InProgress": 0,
        "RetryableError": 0,
        "NonRetryableError": 0,
        "Stopped": 0,
    }
    assert description["ObjectiveStatusCounters"] == {"Succeeded": 3, "Pending": 0, "Failed": 0}
    best = description["BestTrainingJob"]
    assert best["FinalHyperParameterTuningJobObjectiveMetric"] == {
        "Type": "Maximize",
        "MetricName": "objective",
        "Value": 0.3,
    }


def test_launches_no_more_than_the_maximum_in_parallel(client: Any) -> None:
    description, _ = completed(client, create_request(sequence="0.5", most=5, parallel=4))

    assert description["TrainingJobStatusCounters"]["Completed"] == 5


def test_not_improving(client: Any) -> None:
    """The developer guide's example in small: three in a row show nothing above the best."""
    description, report = completed(
        client, create_request(sequence="0.1 0.9 0.8 0.9 0.7 0.6", most=50, not_improving=3)
    )

    assert [fired.reason for fired in report.first] == [CompletionReason.NOT_IMPROVING]
    assert report.first[0].index == 4
    assert description["TuningJobCompletionDetails"]["NumberOfTrainingJobsObjectiveNotImproving"] == 3
    assert description["TrainingJobStatusCounters"]["Completed"] == 5


def test_failures_neither_count_as_not_improving_nor_interrupt(client: Any) -> None:
    description, report = completed(
        client, create_request(sequence="0.9 0.8 fail none nan 0.7 0.6 0.5", most=50, not_improving=3)
    )

    assert report.first[0].index == 6
    assert description["ObjectiveStatusCounters"] == {"Succeeded": 4, "Pending": 0, "Failed": 3}
    assert description["TrainingJobStatusCounters"]["NonRetryableError"] == 1


def test_target_reached_maximising(client: Any) -> None:
    description, report = completed(client, create_request(sequence="0.1 0.95 0.2", most=50, target=0.95))

    assert [fired.reason for fired in report.first] == [CompletionReason.TARGET_REACHED]
    assert description["TrainingJobStatusCounters"]["Completed"] == 2


def test_target_reached_minimising(client: Any) -> None:
    description, report = completed(
        client, create_request(sequence="0.9 0.5 0.05 0.01", most=50, target=0.1, objective_type="Minimize")
    )

    assert report.first[0].observed == 0.05
    assert description["TrainingJobStatusCounters"]["Completed"] == 3


def test_running_training_jobs_are_stopped_when_the_target_is_reached(client: Any) -> None:
    description, _ = completed(client, create_request(sequence="hang 0.95", most=50, parallel=2, target=0.9))

    assert description["TrainingJobStatusCounters"]["Stopped"] >= 1
    assert description["TrainingJobStatusCounters"]["InProgress"] == 0
    jobs = training_jobs(client, description["HyperParameterTuningJobName"])
    assert [job["TrainingJobStatus"] for job in jobs][:2] == ["Stopped", "Completed"]
    assert description["HyperParameterTuningEndTime"] >= max(job["TrainingEndTime"] for job in jobs)


def test_a_result_that_comes_after_the_end_may_be_the_best_but_changes_no_reason(client: Any) -> None:
    """A training job that is being stopped still prints a better objective."""
    description, report = completed(
        client, create_request(sequence="last 0.95", seconds="1.5", most=2, parallel=2, target=0.9)
    )

    late, first = training_jobs(client, description["HyperParameterTuningJobName"])
    assert late["TrainingJobStatus"] == "Stopped"
    assert late["FinalHyperParameterTuningJobObjectiveMetric"]["Value"] == 0.99
    assert late["TrainingEndTime"] > first["TrainingEndTime"]
    assert description["BestTrainingJob"]["TrainingJobName"] == late["TrainingJobName"]
    assert report.first[0].index == 0


def test_the_time_limit_leaves_the_best_of_those_that_it_stops(client: Any) -> None:
    description, _ = completed(client, create_request(sequence="last last", most=9, parallel=2, runtime=600))

    assert description["ObjectiveStatusCounters"]["Succeeded"] == 2
    assert description["BestTrainingJob"]["FinalHyperParameterTuningJobObjectiveMetric"]["Value"] == 0.99


def test_max_runtime(client: Any) -> None:
    description, report = completed(client, create_request(sequence="hang", most=50, parallel=2, runtime=120))

    assert [fired.reason for fired in report.first] == [CompletionReason.MAX_RUNTIME]
    assert report.first[0].at == description["CreationTime"] + timedelta(seconds=120)
    assert description["ConsumedResources"]["RuntimeInSeconds"] >= 120
    assert description["TrainingJobStatusCounters"]["Stopped"] == 2
    assert "BestTrainingJob" not in description


def test_convergence(client: Any) -> None:
    description, report = completed(
        client, create_request(sequence="0.1 0.5 0.9 0.901", most=60, parallel=2, convergence=True)
    )

    assert [fired.reason for fired in report.first] == [CompletionReason.CONVERGED]
    assert description["TuningJobCompletionDetails"]["ConvergenceDetectedTime"] == report.first[0].at
    assert description["TrainingJobStatusCounters"]["Completed"] < 60


def test_convergence_is_noted_when_it_does_not_end_the_job(client: Any) -> None:
    description, report = completed(client, create_request(sequence="0.1 0.9", most=42, parallel=2))

    assert [fired.reason for fired in report.first] == [CompletionReason.MAX_TRAINING_JOBS]
    assert description["TuningJobCompletionDetails"]["ConvergenceDetectedTime"] is not None


@pytest.mark.parametrize(
    ("sequence", "runtime", "reason"),
    [
        ("0.1 0.2 0.99", 12_000, CompletionReason.TARGET_REACHED),
        ("0.3 0.2", 12_000, CompletionReason.NOT_IMPROVING),
        ("0.01 0.02 0.03 0.04 0.05 0.06 0.07 0.08 0.09", 12_000, CompletionReason.MAX_TRAINING_JOBS),
        ("0.1 hang", 400, CompletionReason.MAX_RUNTIME),
    ],
)
def test_all_five_at_once(client: Any, sequence: str, runtime: int, reason: CompletionReason) -> None:
    request = create_request(
        sequence=sequence, most=9, runtime=runtime, target=0.95, not_improving=4, convergence=True
    )
    _, report = completed(client, request)

    assert [fired.reason for fired in report.first] == [reason]
    assert len(report.by_reason) == 5


def test_two_criteria_met_by_one_result(client: Any) -> None:
    _, report = completed(client, create_request(sequence="0.1 0.2 0.97", most=3, target=0.95))

    assert [fired.reason for fired in report.first] == [
        CompletionReason.TARGET_REACHED,
        CompletionReason.MAX_TRAINING_JOBS,
    ]


def test_search_space_exhausted(client: Any) -> None:
    ranges = {"CategoricalParameterRanges": [{"Name": "kind", "Values": ["a", "b", "c"]}]}
    description, report = completed(
        client, create_request(most=None, runtime=90_000, parallel=2, ranges=ranges)
    )

    assert report.first == ()
    assert description["TrainingJobStatusCounters"]["Completed"] == 3
    tried = [
        job["TunedHyperParameters"]["kind"]
        for job in training_jobs(client, description["HyperParameterTuningJobName"])
    ]
    assert sorted(tried) == ["a", "b", "c"]


def test_bayesian_with_a_list_of_one_definition(client: Any) -> None:
    request = create_request(sequence="0.1 0.2 0.3", most=4, parallel=2, strategy="Bayesian")
    config = request["HyperParameterTuningJobConfig"]
    definition = request.pop("TrainingJobDefinition")
    definition |= {
        "DefinitionName": "only",
        "TuningObjective": config.pop("HyperParameterTuningJobObjective"),
        "HyperParameterRanges": config.pop("ParameterRanges"),
    }
    request["TrainingJobDefinitions"] = [definition]

    description = run_to_end(client, request)

    assert description["HyperParameterTuningJobStatus"] == "Completed"
    assert "TrainingJobDefinition" not in description
    assert [one["DefinitionName"] for one in description["TrainingJobDefinitions"]] == ["only"]
    jobs = training_jobs(client, description["HyperParameterTuningJobName"])
    assert {job["TrainingJobDefinitionName"] for job in jobs} == {"only"}
    assert len({job["TunedHyperParameters"]["x"] for job in jobs}) == 4
