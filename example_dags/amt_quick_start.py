"""Tune a scikit-learn classifier until one of five completion criteria is met, and read why it ended.

The five criteria come from the DAG run's parameters, so the same DAG can be started with others: in the
Airflow UI, or with ``airflow dags trigger amt_quick_start --conf '{"target_accuracy": 0.97}'``.

``airflow-amt demo`` runs this DAG against the embedded AMT. To run it on AWS, replace the training image,
the role and the output path, and let the connection ``aws_default`` point to your account.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

from airflow.sdk import dag, task

from airflow_amt.operators.tuning import AmtTuningJobOperator

log = logging.getLogger(__name__)

REQUEST: dict[str, Any] = {
    "HyperParameterTuningJobConfig": {
        "Strategy": "{{ params.strategy }}",
        "HyperParameterTuningJobObjective": {"Type": "Maximize", "MetricName": "validation:accuracy"},
        "ResourceLimits": {"MaxParallelTrainingJobs": "{{ params.max_parallel_training_jobs }}"},
        "ParameterRanges": {
            "ContinuousParameterRanges": [
                {"Name": "C", "MinValue": "0.001", "MaxValue": "1000", "ScalingType": "Logarithmic"},
                {"Name": "gamma", "MinValue": "0.00001", "MaxValue": "10", "ScalingType": "Logarithmic"},
            ],
        },
        "RandomSeed": "{{ params.random_seed }}",
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
        "OutputDataConfig": {"S3OutputPath": "s3://models/quick-start"},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 10},
        "StoppingCondition": {"MaxRuntimeInSeconds": 600},
    },
}


@dag(
    dag_id="amt_quick_start",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    tags=["airflow-amt", "example"],
    doc_md=__doc__,
    params={
        "strategy": "Bayesian",
        "max_parallel_training_jobs": 2,
        "max_training_jobs": 30,
        "max_training_jobs_not_improving": 10,
        "max_runtime_seconds": 3600,
        "target_accuracy": 0.98,
        "complete_on_convergence": True,
        "random_seed": 7,
    },
)
def amt_quick_start() -> None:
    """Tune, then report."""
    tune = AmtTuningJobOperator(
        task_id="tune",
        config=REQUEST,
        criteria={
            "max_training_jobs": "{{ params.max_training_jobs }}",
            "max_training_jobs_not_improving": "{{ params.max_training_jobs_not_improving }}",
            "max_runtime": "{{ params.max_runtime_seconds }}",
            "target_objective_value": "{{ params.target_accuracy }}",
            "complete_on_convergence": "{{ params.complete_on_convergence }}",
        },
        check_interval=2,
        deferrable=True,
    )

    @task
    def report(outcome: Any) -> str:
        """Log why the tuning job ended, and pass the best training job on."""
        log.info("%s (%s)", outcome["explanation"], outcome["reason"])
        best = outcome["best_training_job"]
        if best is None:  # the time limit can end a job before its first result
            return "none"
        log.info("Best: %s with %s %s", best["name"], outcome["objective_metric"], best["objective"])
        return str(best["name"])

    report(tune.output)


quick_start = amt_quick_start()
