"""What a tuning job can be beyond one definition: several, warm-started, stopped early, retried, deleted."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from airflow_amt.local import RunningServer
from airflow_amt.local.launcher import start
from tests.local.support import (
    IMAGES,
    client_of,
    create_request,
    describe,
    run_to_end,
    training_jobs,
    training_processes,
    unique,
    wait_for_end,
    wait_until,
)

pytestmark = pytest.mark.local

CONFIG = "HyperParameterTuningJobConfig"


def several(
    request: dict[str, Any], *names: str, static: dict[str, dict[str, str]] | None = None
) -> dict[str, Any]:
    """Turn a request with one definition into one with several like it."""
    single = request.pop("TrainingJobDefinition")
    config = request[CONFIG]
    objective = config.pop("HyperParameterTuningJobObjective")
    ranges = config.pop("ParameterRanges")
    request["TrainingJobDefinitions"] = [
        {
            **single,
            "DefinitionName": name,
            "TuningObjective": objective,
            "HyperParameterRanges": ranges,
            "StaticHyperParameters": {**single["StaticHyperParameters"], **((static or {}).get(name) or {})},
        }
        for name in names
    ]
    return request


def final(job: dict[str, Any]) -> float:
    value: float = job["FinalHyperParameterTuningJobObjectiveMetric"]["Value"]
    return value


# --- several definitions ----------------------------------------------------------------------------


def test_several_definitions_share_one_budget(client: Any) -> None:
    request = several(
        create_request(most=7, parallel=2),
        "first",
        "second",
        "third",
        static={"second": {"sequence": "0.9"}, "third": {"sequence": "0.7"}},
    )
    description = run_to_end(client, request)
    jobs = training_jobs(client, description["HyperParameterTuningJobName"])

    assert description["HyperParameterTuningJobStatus"] == "Completed"
    assert "TrainingJobDefinition" not in description
    assert [one["DefinitionName"] for one in description["TrainingJobDefinitions"]] == [
        "first",
        "second",
        "third",
    ]
    names = [job["TrainingJobDefinitionName"] for job in jobs]
    assert sorted(names.count(name) for name in ("first", "second", "third")) == [2, 2, 3]
    assert names[:3] == ["first", "second", "third"]
    best = description["BestTrainingJob"]
    assert (best["TrainingJobDefinitionName"], final(best)) == ("second", 0.9)
    # Definitions with the same ranges do not try the same combinations.
    assert len({job["TunedHyperParameters"]["x"] for job in jobs}) == 7
    one = client.describe_training_job(TrainingJobName=best["TrainingJobName"])
    assert one["HyperParameters"]["sequence"] == "0.9"
    assert one["HyperParameters"]["_tuning_objective_metric"] == "objective"


def test_definitions_have_metrics_of_their_own(client: Any) -> None:
    request = several(create_request(most=2), "plain", "other")
    other = request["TrainingJobDefinitions"][1]
    other["TuningObjective"] = {"Type": "Maximize", "MetricName": "score"}
    other["AlgorithmSpecification"] = {
        **other["AlgorithmSpecification"],
        "MetricDefinitions": [{"Name": "score", "Regex": r"objective=0\.(\d+)"}],
    }
    description = run_to_end(client, request)
    jobs = training_jobs(client, description["HyperParameterTuningJobName"])

    assert [final(job) for job in jobs] == [0.5, 5]
    assert description["BestTrainingJob"]["TrainingJobDefinitionName"] == "other"
    assert (
        description["BestTrainingJob"]["FinalHyperParameterTuningJobObjectiveMetric"]["MetricName"] == "score"
    )


def test_a_definition_without_combinations_leaves_the_budget_to_the_others(client: Any) -> None:
    request = several(create_request(most=8), "small", "large")
    request["TrainingJobDefinitions"][0]["HyperParameterRanges"] = {
        "CategoricalParameterRanges": [{"Name": "kind", "Values": ["a", "b"]}]
    }
    description = run_to_end(client, request)
    names = [
        job["TrainingJobDefinitionName"]
        for job in training_jobs(client, description["HyperParameterTuningJobName"])
    ]

    assert (names.count("small"), names.count("large")) == (2, 6)


# --- Grid -------------------------------------------------------------------------------------------


def test_grid_tries_every_combination_once(client: Any) -> None:
    ranges = {
        "CategoricalParameterRanges": [
            {"Name": "kind", "Values": ["a", "b", "c"]},
            {"Name": "size", "Values": ["1", "2"]},
        ]
    }
    description = run_to_end(client, create_request(strategy="Grid", ranges=ranges, most=None, parallel=3))
    tried = {
        (job["TunedHyperParameters"]["kind"], job["TunedHyperParameters"]["size"])
        for job in training_jobs(client, description["HyperParameterTuningJobName"])
    }

    assert description["HyperParameterTuningJobStatus"] == "Completed"
    assert description["TrainingJobStatusCounters"]["Completed"] == 6
    assert tried == set(itertools.product("abc", "12"))


def test_a_grid_larger_than_the_quota_is_refused(client: Any) -> None:
    ranges = {
        "CategoricalParameterRanges": [
            {"Name": name, "Values": [str(value) for value in range(30)]} for name in ("one", "two")
        ]
    }
    with pytest.raises(ClientError, match="750") as refusal:
        client.create_hyper_parameter_tuning_job(**create_request(strategy="Grid", ranges=ranges, most=None))
    assert refusal.value.response["Error"]["Code"] == "ResourceLimitExceeded"


def test_training_jobs_of_parents_count_against_the_quota(client: Any) -> None:
    parent = run_to_end(client, create_request(most=2, strategy="Bayesian"))["HyperParameterTuningJobName"]
    request = warm(create_request(most=749, strategy="Bayesian"), "TransferLearning", parent)
    with pytest.raises(ClientError, match="current utilization of 2 ") as refusal:
        client.create_hyper_parameter_tuning_job(**request)
    assert refusal.value.response["Error"]["Code"] == "ResourceLimitExceeded"


# --- Autotune ---------------------------------------------------------------------------------------


def test_autotune_chooses_ranges_around_the_hints(client: Any) -> None:
    ranges = {
        "AutoParameters": [{"Name": "rate", "ValueHint": "0.01"}, {"Name": "depth", "ValueHint": "6"}],
        "CategoricalParameterRanges": [{"Name": "kind", "Values": ["a", "b"]}],
    }
    request = {**create_request(strategy="Bayesian", ranges=ranges, most=4), "Autotune": {"Mode": "Enabled"}}
    description = run_to_end(client, request)
    jobs = training_jobs(client, description["HyperParameterTuningJobName"])

    assert description["Autotune"] == {"Mode": "Enabled"}
    assert description[CONFIG]["ParameterRanges"]["AutoParameters"] == ranges["AutoParameters"]
    for job in jobs:
        assert 0 < float(job["TunedHyperParameters"]["rate"]) < 1
        assert int(job["TunedHyperParameters"]["depth"]) >= 1
    assert len({job["TunedHyperParameters"]["rate"] for job in jobs}) == 4


# --- warm start -------------------------------------------------------------------------------------


def warm(request: dict[str, Any], kind: str, *parents: str) -> dict[str, Any]:
    request["WarmStartConfig"] = {
        "ParentHyperParameterTuningJobs": [{"HyperParameterTuningJobName": name} for name in parents],
        "WarmStartType": kind,
    }
    return request


def test_identical_data_reports_the_overall_best_and_repeats_nothing(client: Any) -> None:
    ranges = {"CategoricalParameterRanges": [{"Name": "kind", "Values": list("abcde")}]}
    options: dict[str, Any] = {"strategy": "Bayesian", "ranges": ranges}
    parent = run_to_end(client, create_request(sequence="0.2 0.8 0.1", most=3, **options))
    parent_name = parent["HyperParameterTuningJobName"]
    tried = {job["TunedHyperParameters"]["kind"] for job in training_jobs(client, parent_name)}

    request = create_request(sequence="0.2 0.8 0.1", most=9, **options)
    request = warm(request, "IdenticalDataAndAlgorithm", parent_name)
    request["TrainingJobDefinition"]["StaticHyperParameters"]["sequence"] = "0.3 0.4"
    child = run_to_end(client, request)
    new = [
        job["TunedHyperParameters"]["kind"]
        for job in training_jobs(client, child["HyperParameterTuningJobName"])
    ]

    assert child["WarmStartConfig"] == request["WarmStartConfig"]
    assert sorted([*new, *tried]) == list("abcde")
    assert final(child["BestTrainingJob"]) == 0.4
    assert final(child["OverallBestTrainingJob"]) == 0.8
    assert child["OverallBestTrainingJob"]["TuningJobName"] == parent_name
    # The parents' training jobs are none of its own.
    assert sum(child["TrainingJobStatusCounters"].values()) == 2


def test_the_overall_best_may_be_its_own_and_outlives_its_parent(client: Any) -> None:
    parent = run_to_end(client, create_request(sequence="0.2", most=1))
    parent_name = parent["HyperParameterTuningJobName"]
    better = warm(create_request(sequence="0.2", most=1), "IdenticalDataAndAlgorithm", parent_name)
    better["TrainingJobDefinition"]["StaticHyperParameters"]["sequence"] = "0.6"
    worse = warm(create_request(sequence="0.2", most=1), "IdenticalDataAndAlgorithm", parent_name)
    worse["TrainingJobDefinition"]["StaticHyperParameters"]["sequence"] = "0.1"
    own, theirs = run_to_end(client, better), run_to_end(client, worse)
    client.delete_hyper_parameter_tuning_job(HyperParameterTuningJobName=parent_name)

    assert own["OverallBestTrainingJob"] == own["BestTrainingJob"]
    kept = describe(client, theirs["HyperParameterTuningJobName"])["OverallBestTrainingJob"]
    assert (kept["TuningJobName"], final(kept)) == (parent_name, 0.2)


def test_transfer_learning_has_no_overall_best(client: Any) -> None:
    parent = run_to_end(client, create_request(sequence="0.2 0.8", most=2, strategy="Bayesian"))
    request = create_request(sequence="0.2 0.8", most=3, strategy="Bayesian")
    child = run_to_end(client, warm(request, "TransferLearning", parent["HyperParameterTuningJobName"]))

    assert child["HyperParameterTuningJobStatus"] == "Completed"
    assert "OverallBestTrainingJob" not in child


def test_parents_that_cannot_be(client: Any) -> None:
    running = create_request(sequence="hang")
    client.create_hyper_parameter_tuning_job(**running)
    name = running["HyperParameterTuningJobName"]
    for parent, word in (("nobody", "nobody"), (name, "InProgress")):
        request = warm(create_request(), "TransferLearning", parent)
        with pytest.raises(ClientError, match=word) as refusal:
            client.create_hyper_parameter_tuning_job(**request)
        assert refusal.value.response["Error"]["Code"] == "ValidationException"
        assert "WarmStartConfig.ParentHyperParameterTuningJobs" in str(refusal.value)
    client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    wait_for_end(client, name)


# --- early stopping and Hyperband -------------------------------------------------------------------


def curves(*lists: str) -> dict[str, str]:
    return {"curves": ";".join(lists)}


def test_early_stopping_ends_what_is_worse_than_the_median(client: Any) -> None:
    good = "0.5,0.6,0.7"
    request = create_request(
        image="epochs:1", static=curves(good, good, good, "0.5,0.1,hang", "0.6,0.7,0.8"), most=5
    )
    request[CONFIG]["TrainingJobEarlyStoppingType"] = "Auto"
    description = run_to_end(client, request)
    jobs = training_jobs(client, description["HyperParameterTuningJobName"])

    assert [job["TrainingJobStatus"] for job in jobs] == [*["Completed"] * 3, "Stopped", "Completed"]
    assert final(jobs[3]) == 0.1
    assert description["HyperParameterTuningJobStatus"] == "Completed"
    assert description["TrainingJobStatusCounters"]["Stopped"] == 1
    assert description["ObjectiveStatusCounters"] == {"Succeeded": 5, "Pending": 0, "Failed": 0}
    stopped = client.describe_training_job(TrainingJobName=jobs[3]["TrainingJobName"])
    assert [phase["Status"] for phase in stopped["SecondaryStatusTransitions"]] == [
        "Starting",
        "Training",
        "Stopping",
        "Stopped",
    ]


def test_nothing_is_stopped_early_unless_asked(client: Any) -> None:
    good = "0.5,0.6,0.7"
    description = run_to_end(
        client, create_request(image="epochs:1", static=curves(good, good, good, "0.5,0.1,0.1"), most=4)
    )

    assert description["TrainingJobStatusCounters"]["Completed"] == 4


def test_early_stopping_remembers_over_a_restart(tmp_path: Path) -> None:
    good = "0.5,0.6,0.7"
    request = create_request(
        image="epochs:1", static=curves(good, good, good, "hang", "0.5,0.1,hang"), most=5
    )
    request[CONFIG]["TrainingJobEarlyStoppingType"] = "Auto"
    name = request["HyperParameterTuningJobName"]
    first = start(tmp_path, images=IMAGES, options=("--stop-grace", "0.3"))
    with client_of(first) as client:
        client.create_hyper_parameter_tuning_job(**request)
        wait_until(
            lambda: describe(client, name)["TrainingJobStatusCounters"]["Completed"] == 3, "three ends"
        )
        wait_until(lambda: training_processes(f"{name}-004"), "the fourth training job")
    first.kill()

    second = start(tmp_path, images=IMAGES, options=("--stop-grace", "0.3"))
    with client_of(second) as client:
        description = wait_for_end(client, name)
        jobs = training_jobs(client, name)
    assert second.stop() == 0

    assert description["HyperParameterTuningJobStatus"] == "Completed"
    assert [job["TrainingJobStatus"] for job in jobs] == [*["Completed"] * 3, "Failed", "Stopped"]


def test_hyperband_stops_at_its_most_resource_and_what_is_worse(client: Any) -> None:
    # Rungs at 1 and 3 epochs; whoever reaches 9 is stopped.
    best = ",".join(f"0.{9 - step}" for step in range(8)) + ",0.05,hang"
    request = create_request(
        image="epochs:1",
        strategy="Hyperband",
        objective_type="Minimize",
        # A little better with each epoch, so that the last value tells how far it got.
        static=curves(best, "0.99,0.98,0.97,0.96,0.95,0.94,0.93,0.92,0.91,hang"),
        most=8,
        parallel=2,
    )
    request[CONFIG]["StrategyConfig"] = {"HyperbandStrategyConfig": {"MinResource": 1, "MaxResource": 9}}
    description = run_to_end(client, request)
    jobs = training_jobs(client, description["HyperParameterTuningJobName"])

    assert description["HyperParameterTuningJobStatus"] == "Completed"
    assert {job["TrainingJobStatus"] for job in jobs} == {"Stopped"}
    assert final(description["BestTrainingJob"]) == 0.05
    # Brackets are drawn from the seed: some of the bad ones are judged at the first rung.
    assert sum(final(job) > 0.93 for job in jobs[1:]) >= 3


# --- retries ----------------------------------------------------------------------------------------


def retrying(hangs: int, attempts: int, **options: Any) -> dict[str, Any]:
    return create_request(
        image="checkpoint:1",
        static={"hangs": str(hangs)},
        most=1,
        RetryStrategy={"MaximumRetryAttempts": attempts},
        **options,
    )


def serve(folder: Path) -> RunningServer:
    return start(folder, images=IMAGES, options=("--stop-grace", "0.3"))


@pytest.mark.parametrize("orderly", [True, False])
def test_an_interrupted_training_job_is_started_again_with_its_checkpoints(
    tmp_path: Path, orderly: bool
) -> None:
    request = retrying(hangs=1, attempts=2)
    name = request["HyperParameterTuningJobName"]
    first = serve(tmp_path)
    with client_of(first) as client:
        client.create_hyper_parameter_tuning_job(**request)
        wait_until(lambda: list(tmp_path.glob("training-jobs/*/*/checkpoints/attempts")), "the first attempt")
    if orderly:
        assert first.stop() == 0
    else:
        first.kill()

    second = serve(tmp_path)
    with client_of(second) as client:
        description = wait_for_end(client, name)
        (job,) = training_jobs(client, name)
        detail = client.describe_training_job(TrainingJobName=job["TrainingJobName"])
    assert second.stop() == 0

    assert description["HyperParameterTuningJobStatus"] == "Completed"
    assert description["TrainingJobStatusCounters"] == {
        "Completed": 1,
        "InProgress": 0,
        "RetryableError": 0,
        "NonRetryableError": 0,
        "Stopped": 0,
    }
    assert final(job) == 0.2
    assert detail["RetryStrategy"] == {"MaximumRetryAttempts": 2}
    assert [phase["Status"] for phase in detail["SecondaryStatusTransitions"]] == [
        "Starting",
        "Training",
        "Restarting",
        "Training",
        "Uploading",
        "Completed",
    ]
    assert detail["TrainingStartTime"] == detail["SecondaryStatusTransitions"][1]["StartTime"]


def test_retries_come_to_an_end(tmp_path: Path) -> None:
    request = retrying(hangs=9, attempts=1)
    name = request["HyperParameterTuningJobName"]
    for _ in range(2):
        server = serve(tmp_path)
        with client_of(server) as client:
            if not (tmp_path / "training-jobs").exists():
                client.create_hyper_parameter_tuning_job(**request)
            wait_until(lambda: training_processes(name), "an attempt")
        server.kill()
    server = serve(tmp_path)
    with client_of(server) as client:
        description = wait_for_end(client, name)
        (job,) = training_jobs(client, name)
    assert server.stop() == 0

    assert description["TrainingJobStatusCounters"]["RetryableError"] == 1
    assert job["FailureReason"].startswith("InternalServerError: ")
    assert training_processes(name) == []


def test_failures_on_purpose(tmp_path: Path) -> None:
    """The first two launches fail: one is retried, the training job after it fails for good."""
    server = start(
        tmp_path,
        images=IMAGES,
        faults={
            "rules": [
                {"kind": "fail_training", "names": ["retried-*"], "first": 1, "retryable": True},
                {
                    "kind": "fail_training",
                    "names": ["plain-*"],
                    "first": 1,
                    "reason": "AlgorithmError: bad luck",
                },
            ]
        },
    )
    with client_of(server) as client:
        retried = run_to_end(
            client, create_request("retried", most=1, RetryStrategy={"MaximumRetryAttempts": 1})
        )
        plain = run_to_end(client, create_request("plain", most=2))
        first, _ = training_jobs(client, "plain")
        (job,) = training_jobs(client, "retried")
        detail = client.describe_training_job(TrainingJobName=job["TrainingJobName"])
        applied = server.faults()["applied"]
    assert server.stop() == 0

    assert retried["TrainingJobStatusCounters"]["Completed"] == 1
    assert [phase["Status"] for phase in detail["SecondaryStatusTransitions"]][:2] == [
        "Starting",
        "Restarting",
    ]
    assert plain["TrainingJobStatusCounters"]["NonRetryableError"] == 1
    assert first["FailureReason"] == "AlgorithmError: bad luck"
    assert applied == [1, 1]


# --- delete -----------------------------------------------------------------------------------------


def test_delete_takes_the_tuning_job_and_leaves_its_training_jobs(client: Any) -> None:
    request = create_request(sequence="0.4", most=1, tags={"team": "blue"})
    name = request["HyperParameterTuningJobName"]
    ended = run_to_end(client, request)
    (job,) = training_jobs(client, name)
    before = client.describe_training_job(TrainingJobName=job["TrainingJobName"])

    client.delete_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)

    for call in ("describe", "stop", "delete"):
        with pytest.raises(ClientError) as missing:
            getattr(client, f"{call}_hyper_parameter_tuning_job")(HyperParameterTuningJobName=name)
        assert missing.value.response["Error"]["Code"] == "ResourceNotFound"
    listed = client.list_hyper_parameter_tuning_jobs(NameContains=name)["HyperParameterTuningJobSummaries"]
    assert [one for one in listed if one["HyperParameterTuningJobName"] == name] == []
    with pytest.raises(ClientError):
        client.list_tags(ResourceArn=ended["HyperParameterTuningJobArn"])
    after = client.describe_training_job(TrainingJobName=job["TrainingJobName"])
    del before["ResponseMetadata"], after["ResponseMetadata"]
    assert after == before

    # The name is free again.
    again = run_to_end(client, create_request(name, sequence="0.6", most=1))
    assert final(again["BestTrainingJob"]) == 0.6
    assert client.list_tags(ResourceArn=again["HyperParameterTuningJobArn"])["Tags"] == []


def test_a_tuning_job_that_goes_on_is_not_deleted(client: Any) -> None:
    name = unique("deleted")
    client.create_hyper_parameter_tuning_job(**create_request(name, sequence="hang"))
    with pytest.raises(ClientError, match="InProgress") as refusal:
        client.delete_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    assert refusal.value.response["Error"]["Code"] == "ValidationException"
    client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    wait_for_end(client, name)
