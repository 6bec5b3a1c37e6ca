"""Tune several models side by side, one mapped task each, and pick the one that came out best.

Each model has a search space of its own, so each gets a tuning job of its own; Airflow's dynamic task
mapping makes the tasks. A model whose tuning job fails does not keep the others from being compared.

To run it on AWS, replace the training image, the role and the output path, and let the connection
``aws_default`` point to your account.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

from airflow.sdk import dag, task

from airflow_amt.operators.tuning import AmtTuningJobOperator

log = logging.getLogger(__name__)

_C = {"Name": "C", "MinValue": "0.001", "MaxValue": "1000", "ScalingType": "Logarithmic"}
_GAMMA = {"Name": "gamma", "MinValue": "0.000001", "MaxValue": "1", "ScalingType": "Logarithmic"}
_DEGREE = {"Name": "degree", "MinValue": "2", "MaxValue": "5", "ScalingType": "Linear"}

#: The hyperparameters to tune of each kernel of the classifier.
SEARCH_SPACES: dict[str, dict[str, list[dict[str, str]]]] = {
    "rbf": {"ContinuousParameterRanges": [_C, _GAMMA]},
    "poly": {"ContinuousParameterRanges": [_GAMMA], "IntegerParameterRanges": [_DEGREE]},
    "sigmoid": {"ContinuousParameterRanges": [_C, _GAMMA]},
}


def tuning_request(kernel: str) -> dict[str, Any]:
    """Return what boto3's ``create_hyper_parameter_tuning_job`` takes, for one kernel."""
    return {
        "HyperParameterTuningJobConfig": {
            "Strategy": "Bayesian",
            "HyperParameterTuningJobObjective": {"Type": "Maximize", "MetricName": "validation:accuracy"},
            "ResourceLimits": {
                "MaxParallelTrainingJobs": "{{ params.max_parallel_training_jobs }}",
                "MaxNumberOfTrainingJobs": "{{ params.max_training_jobs }}",
            },
            "ParameterRanges": SEARCH_SPACES[kernel],
            "RandomSeed": 7,
        },
        "TrainingJobDefinition": {
            "StaticHyperParameters": {"kernel": kernel},
            "AlgorithmSpecification": {
                "TrainingImage": "airflow-amt.local/sklearn-digits:latest",
                "TrainingInputMode": "File",
                "MetricDefinitions": [
                    {"Name": "validation:accuracy", "Regex": "validation accuracy: ([0-9.]+)"},
                ],
            },
            "RoleArn": "arn:aws:iam::000000000000:role/sagemaker-training",
            "OutputDataConfig": {"S3OutputPath": "s3://models/fan-out"},
            "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 10},
            "StoppingCondition": {"MaxRuntimeInSeconds": 600},
        },
    }


@dag(
    dag_id="amt_fan_out",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    tags=["airflow-amt", "example"],
    doc_md=__doc__,
    params={"max_training_jobs": 6, "max_parallel_training_jobs": 1},
)
def amt_fan_out() -> None:
    """Tune each model, then compare."""
    tune = AmtTuningJobOperator.partial(
        task_id="tune",
        check_interval=2,
        deferrable=True,
        map_index_template="{{ task.config['TrainingJobDefinition']['StaticHyperParameters']['kernel'] }}",
    ).expand(config=[tuning_request(kernel) for kernel in SEARCH_SPACES])

    # Those that failed leave no return value.
    @task(trigger_rule="all_done")
    def pick_winner(outcomes: Any) -> dict[str, Any]:
        """Return the best training job of all tuning jobs."""
        candidates = [
            {
                "tuning_job": outcome["tuning_job_name"],
                "training_job": outcome["best_training_job"]["name"],
                "objective": outcome["best_training_job"]["objective"],
                "hyperparameters": outcome["best_training_job"]["hyperparameters"],
            }
            for outcome in outcomes
            if outcome["best_training_job"] is not None
        ]
        if not candidates:
            raise ValueError("no tuning job found a model")
        for one in candidates:
            log.info("%s: %s", one["training_job"], one["objective"])
        # All maximise the same metric, or their objectives could not be compared.
        return max(candidates, key=lambda one: one["objective"])

    pick_winner(tune.output)


fan_out = amt_fan_out()
