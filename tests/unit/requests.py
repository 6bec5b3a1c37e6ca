"""A complete, correct create request for tests to break."""

from __future__ import annotations

from typing import Any


def create_request(**changes: Any) -> dict[str, Any]:
    """A request that both checkers accept; ``changes`` are dotted paths, with ``__`` for the dots."""
    request: dict[str, Any] = {
        "HyperParameterTuningJobName": "churn-model",
        "HyperParameterTuningJobConfig": {
            "Strategy": "Random",
            "HyperParameterTuningJobObjective": {"Type": "Maximize", "MetricName": "accuracy"},
            "ResourceLimits": {"MaxNumberOfTrainingJobs": 4, "MaxParallelTrainingJobs": 2},
            "ParameterRanges": {
                "ContinuousParameterRanges": [{"Name": "lr", "MinValue": "0.001", "MaxValue": "0.1"}],
                "IntegerParameterRanges": [{"Name": "depth", "MinValue": "1", "MaxValue": "9"}],
                "CategoricalParameterRanges": [{"Name": "booster", "Values": ["tree", "linear"]}],
            },
        },
        "TrainingJobDefinition": {
            "StaticHyperParameters": {"epochs": "5"},
            "AlgorithmSpecification": {
                "TrainingImage": "000000000000.dkr.ecr.eu-west-1.amazonaws.com/churn:1",
                "TrainingInputMode": "File",
                "MetricDefinitions": [{"Name": "accuracy", "Regex": "accuracy=([0-9.]+)"}],
            },
            "RoleArn": "arn:aws:iam::000000000000:role/sagemaker",
            "OutputDataConfig": {"S3OutputPath": "s3://models/churn"},
            "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 10},
            "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
        },
    }
    for path, value in changes.items():
        set_path(request, path.replace("__", "."), value)
    return request


def set_path(request: Any, path: str, value: Any) -> None:
    """Set, or with ``None`` remove, the field at a dotted path; numbers are list positions."""
    *parents, last = path.split(".")
    for key in parents:
        request = request[int(key)] if key.isdigit() else request.setdefault(key, {})
    if value is None:
        request.pop(last, None)
    else:
        request[last] = value
