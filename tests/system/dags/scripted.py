"""Tuning jobs whose end is certain, one for each reason: requests for `tests/system/trainers/scripted.py`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRAINERS = Path(__file__).parents[1] / "trainers"

DAY_SECONDS = 86_400
LEARNING_RATES: Mapping[str, Any] = {
    "ContinuousParameterRanges": [{"Name": "lr", "MinValue": "0.001", "MaxValue": "0.1"}]
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One tuning job: its completion criteria and what its training jobs come to, in order."""

    criteria: Mapping[str, Any]
    results: Sequence[float | str]
    ranges: Mapping[str, Any] | None = None
    parallel: int = 1


def _criteria(**changes: Any) -> dict[str, Any]:
    """All five criteria, none of which is met by itself, with `changes`."""
    return {
        "max_training_jobs": 60,
        "max_training_jobs_not_improving": 50,
        "max_runtime": DAY_SECONDS,
        "target_objective_value": 0.99,
        "complete_on_convergence": True,
        **changes,
    }


SCENARIOS: Mapping[str, Scenario] = {
    "max_training_jobs": Scenario(criteria=_criteria(max_training_jobs=4), results=[0.1, 0.2, 0.3, 0.4]),
    "not_improving": Scenario(
        criteria=_criteria(max_training_jobs_not_improving=3), results=[0.5, 0.4, 0.3, 0.2]
    ),
    "max_runtime": Scenario(criteria=_criteria(max_runtime=1800), results=[0.3, "wait"]),
    "target_reached": Scenario(criteria=_criteria(target_objective_value=0.9), results=[0.5, 0.7, 0.95]),
    "converged": Scenario(criteria=_criteria(), results=[0.1, 0.3, 0.5]),
    "search_space_exhausted": Scenario(
        criteria=_criteria(),
        results=[0.1, 0.2, 0.3],
        ranges={"CategoricalParameterRanges": [{"Name": "booster", "Values": ["tree", "linear", "dart"]}]},
    ),
    "stopped_by_provider": Scenario(criteria=_criteria(), results=[0.4, "wait"]),
    "stopped_externally": Scenario(criteria=_criteria(), results=[0.4, "wait"]),
    "failed": Scenario(criteria=_criteria(), results=["fail"]),
    # For tests that end the job themselves: two training processes that never end.
    "endless": Scenario(criteria=_criteria(), results=["wait"], parallel=2),
}


def request(scenario: Scenario, *, gate: str) -> dict[str, Any]:
    """Return a create request without name and criteria.

    :param gate: path that must exist before a training job has a result.
    """
    return {
        "HyperParameterTuningJobConfig": {
            "Strategy": "Random",
            "RandomSeed": 1,
            "HyperParameterTuningJobObjective": {"Type": "Maximize", "MetricName": "objective"},
            "ResourceLimits": {"MaxParallelTrainingJobs": scenario.parallel},
            "ParameterRanges": dict(scenario.ranges or LEARNING_RATES),
        },
        "TrainingJobDefinition": {
            "StaticHyperParameters": {
                "sagemaker_program": "scripted.py",
                "sagemaker_submit_directory": str(TRAINERS),
                "results": json.dumps(list(scenario.results)),
                "gate": gate,
            },
            "AlgorithmSpecification": {
                "TrainingImage": "scripted",
                "TrainingInputMode": "File",
                "MetricDefinitions": [{"Name": "objective", "Regex": "objective=([0-9.]+);"}],
            },
            "RoleArn": "arn:aws:iam::000000000000:role/sagemaker",
            "OutputDataConfig": {"S3OutputPath": "s3://models/scripted"},
            "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 10},
            "StoppingCondition": {"MaxRuntimeInSeconds": DAY_SECONDS},
        },
    }
