"""Tune, register the best model in the model registry, and let the outcome decide whether it is promoted.

The gate has three ways. A tuning job that reached its target: the model is registered and approved at once.
One that ended otherwise, yet with a model that is good enough: it is registered, and waits for a person to
approve it. No model that is good enough, or none at all: nothing is registered, and the run says why. All
training jobs are written to a CSV file however the tuning job ended.

Registering is the Amazon provider's own operator. It has a connection of its own here (``models``), because
the registry is often another account's; with everything in one account, use ``aws_default`` for both.

To run it on AWS, replace the training image, the role and the output path.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

from airflow.providers.amazon.aws.operators.sagemaker import SageMakerRegisterModelVersionOperator
from airflow.sdk import dag, task

from airflow_amt.operators.best import AmtBestTrainingJobOperator
from airflow_amt.operators.branch import AmtOutcomeBranchOperator
from airflow_amt.operators.export import AmtExportTrainingJobsOperator
from airflow_amt.operators.tuning import AmtTuningJobOperator

log = logging.getLogger(__name__)

MODELS_CONNECTION = "models"

#: Both are in XCom also when the task that tuned failed.
TUNING_JOB = "{{ ti.xcom_pull(task_ids='tune', key='tuning_job_name') }}"
OUTCOME = "{{ ti.xcom_pull(task_ids='tune', key='outcome') }}"

REQUEST: dict[str, Any] = {
    "HyperParameterTuningJobConfig": {
        "Strategy": "Bayesian",
        "HyperParameterTuningJobObjective": {"Type": "Maximize", "MetricName": "validation:accuracy"},
        "ResourceLimits": {"MaxParallelTrainingJobs": 2},
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
        "OutputDataConfig": {"S3OutputPath": "s3://models/platform"},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 10},
        "StoppingCondition": {"MaxRuntimeInSeconds": 600},
    },
}


@dag(
    dag_id="amt_platform",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    tags=["airflow-amt", "example"],
    doc_md=__doc__,
    params={
        "max_training_jobs": 20,
        "target_accuracy": 0.98,
        "good_enough": 0.9,
        "package_group": "digits",
        "report": "file:///tmp/amt_platform.csv",
    },
)
def amt_platform() -> None:
    """Tune, judge, register, promote."""
    tune = AmtTuningJobOperator(
        task_id="tune",
        config=REQUEST,
        criteria={
            "max_training_jobs": "{{ params.max_training_jobs }}",
            "target_objective_value": "{{ params.target_accuracy }}",
        },
        check_interval=2,
        deferrable=True,
    )
    export = AmtExportTrainingJobsOperator(
        task_id="export",
        tuning_job_name=TUNING_JOB,
        destination="{{ params.report }}",
        trigger_rule="all_done",
    )
    judge = AmtOutcomeBranchOperator(
        task_id="judge",
        outcome=OUTCOME,
        branches={"failed": "reject", "no_outcome": "reject", "good_enough": "best"},
        default="reject",
        good_enough="{{ params.good_enough }}",
        trigger_rule="all_done",
    )
    best = AmtBestTrainingJobOperator(
        task_id="best",
        tuning_job_name=TUNING_JOB,
        require_objective="{{ params.good_enough }}",
    )
    register = SageMakerRegisterModelVersionOperator(
        task_id="register",
        image_uri="{{ ti.xcom_pull(task_ids='best', key='image') }}",
        model_url="{{ ti.xcom_pull(task_ids='best', key='model_artifact') }}",
        package_group_name="{{ params.package_group }}",
        package_desc="{{ ti.xcom_pull(task_ids='best', key='training_job_name') }}",
        aws_conn_id=MODELS_CONNECTION,
    )
    gate = AmtOutcomeBranchOperator(
        task_id="gate",
        outcome=OUTCOME,
        branches={"target_reached": "approve"},
        default="ask_a_person",
    )

    @task
    def approve(model_package_arn: Any) -> str:
        """Promote the model: what watches the registry deploys what is approved."""
        from airflow_amt.hooks.tuning import AmtHook

        AmtHook(aws_conn_id=MODELS_CONNECTION).conn.update_model_package(
            ModelPackageArn=model_package_arn,
            ModelApprovalStatus="Approved",
            ApprovalDescription="The tuning job reached its target.",
        )
        return str(model_package_arn)

    @task
    def ask_a_person(model_package_arn: Any) -> None:
        """Leave the approval to whoever reads this."""
        log.warning("%s is registered and waits for an approval.", model_package_arn)

    @task
    def reject(ti: Any = None) -> None:
        """Say why there is nothing to register."""
        outcome = ti.xcom_pull(task_ids="tune", key="outcome")
        log.error("No model is registered: %s", outcome["explanation"] if outcome else "no tuning job ran.")

    tune >> [export, judge]
    judge >> [best, reject()]
    best >> register >> gate >> [approve(register.output), ask_a_person(register.output)]


platform = amt_platform()
