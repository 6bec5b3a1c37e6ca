"""Retrain every day: each tuning job starts from the last good one, and why it ended decides what follows.

``warm_start_from_previous`` lets a run's tuning job start from the one of the last successful run, so that it
needs fewer training jobs of its own. The best model is handed on if it is good enough; a run without a good
model keeps the one that is in use, and one that failed raises an alarm.

To run it on AWS, replace the training image, the role and the output path, and let the connection
``aws_default`` point to your account.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

from airflow.sdk import dag, task

from airflow_amt.operators.best import AmtBestTrainingJobOperator
from airflow_amt.operators.branch import AmtOutcomeBranchOperator
from airflow_amt.operators.tuning import AmtTuningJobOperator

log = logging.getLogger(__name__)

REQUEST: dict[str, Any] = {
    "HyperParameterTuningJobConfig": {
        "Strategy": "Bayesian",
        "HyperParameterTuningJobObjective": {"Type": "Maximize", "MetricName": "validation:accuracy"},
        "ResourceLimits": {"MaxParallelTrainingJobs": "{{ params.max_parallel_training_jobs }}"},
        "ParameterRanges": {
            "ContinuousParameterRanges": [
                {"Name": "C", "MinValue": "0.001", "MaxValue": "1000", "ScalingType": "Logarithmic"},
                {"Name": "gamma", "MinValue": "0.000001", "MaxValue": "1", "ScalingType": "Logarithmic"},
            ],
        },
        "RandomSeed": 7,
    },
    "TrainingJobDefinition": {
        "AlgorithmSpecification": {
            "TrainingImage": "airflow-amt.local/sklearn-digits:latest",
            "TrainingInputMode": "File",
            "MetricDefinitions": [
                {"Name": "validation:accuracy", "Regex": "validation accuracy: ([0-9.]+)"},
            ],
        },
        "RoleArn": "arn:aws:iam::000000000000:role/sagemaker-training",
        "OutputDataConfig": {"S3OutputPath": "s3://models/retraining"},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 10},
        "StoppingCondition": {"MaxRuntimeInSeconds": 7200},
    },
}

PARAMS = {
    "max_training_jobs": 20,
    "max_training_jobs_not_improving": 8,
    "max_parallel_training_jobs": 2,
    "good_enough_accuracy": 0.9,
    "check_interval_seconds": 30,
}


def retrain() -> None:
    """Tune from where the last good run ended, then act on the outcome."""
    tune = AmtTuningJobOperator(
        task_id="tune",
        config=REQUEST,
        criteria={
            "max_training_jobs": "{{ params.max_training_jobs }}",
            "max_training_jobs_not_improving": "{{ params.max_training_jobs_not_improving }}",
        },
        warm_start_from_previous=True,
        check_interval="{{ params.check_interval_seconds }}",
        deferrable=True,
    )
    tuned: Any = tune.output
    decide = AmtOutcomeBranchOperator(
        task_id="decide",
        outcome=tuned["outcome"],
        branches={
            "failed": "raise_alarm",
            "no_model": "raise_alarm",
            "good_enough": "best_model",
            "not_good_enough": "keep_current_model",
        },
        good_enough="{{ params.good_enough_accuracy }}",
        default="raise_alarm",
        trigger_rule="all_done",
    )
    best_model = AmtBestTrainingJobOperator(task_id="best_model", tuning_job_name=tuned["tuning_job_name"])
    best: Any = best_model.output

    @task
    def deploy(model_artifact: Any) -> str:
        """Hand the model to whatever serves it."""
        log.info("Deploying %s.", model_artifact)
        return str(model_artifact)

    @task
    def keep_current_model() -> None:
        """Change nothing."""
        log.info("No better model was found: the one in use stays.")

    @task
    def raise_alarm() -> None:
        """Fail the run, so that somebody looks and the next run does not start from this one."""
        raise RuntimeError("the tuning job gave no model")

    decide >> [best_model, keep_current_model(), raise_alarm()]
    deploy(best["model_artifact"])


scheduled_retraining = dag(
    dag_id="amt_scheduled_retraining",
    schedule="@daily",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    default_args={"retries": 1},  # a retry takes its own tuning job up again
    max_active_runs=1,  # each run starts from the one before
    tags=["airflow-amt", "example"],
    doc_md=__doc__,
    params=PARAMS,
)(retrain)()
