"""Act while a tuning job still runs: on its first usable model, and once more when it is good enough.

One task starts the tuning job and does not wait. Two sensors watch it: ``first_model`` fires as soon as any
training job gave a model, ``good_enough`` when the accuracy reached the target or the job stopped improving.
Downstream tasks take the best training job from the sensors' results while the tuning job goes on; when it
is good enough, it is stopped, so that nothing is paid for that nobody needs.

The sensors wait without a worker on Airflow 3.3. Before, and with ``dag.test()``, they begin on one and
defer.

To run it on AWS, replace the training image, the role and the output path, and let the connection
``aws_default`` point to your account.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

from airflow.sdk import dag, task

from airflow_amt.operators.stop import AmtStopTuningJobOperator
from airflow_amt.operators.tuning import AmtTuningJobOperator
from airflow_amt.sensors.progress import AmtTuningProgressSensor
from airflow_amt.tuning import FirstUsableModel

log = logging.getLogger(__name__)

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
        "OutputDataConfig": {"S3OutputPath": "s3://models/wait-for-condition"},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 10},
        "StoppingCondition": {"MaxRuntimeInSeconds": 600},
    },
}


@dag(
    dag_id="amt_wait_for_condition",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    tags=["airflow-amt", "example"],
    doc_md=__doc__,
    params={"max_training_jobs": 200, "target_accuracy": 0.95, "patience": 20},
)
def amt_wait_for_condition() -> None:
    """Start a tuning job, act on it while it runs, and stop it when it is good enough."""
    start = AmtTuningJobOperator(
        task_id="start",
        config=REQUEST,
        criteria={"max_training_jobs": "{{ params.max_training_jobs }}"},
        wait_for_completion=False,
    )
    name: Any = start.output["tuning_job_name"]  # type: ignore[index]

    first_model = AmtTuningProgressSensor(
        task_id="first_model",
        tuning_job_name=name,
        condition=FirstUsableModel(),
        on_end="fail",  # a job without any model
        poke_interval=2,
        start_from_trigger=True,
    )
    good_enough = AmtTuningProgressSensor(
        task_id="good_enough",
        tuning_job_name=name,
        # A dict, because its values are templates: the same as TargetReached(...) | NotImproving(...).
        condition={
            "type": "any",
            "of": [
                {"type": "target_reached", "value": "{{ params.target_accuracy }}"},
                {"type": "not_improving", "training_jobs": "{{ params.patience }}"},
            ],
        },
        poke_interval=2,
        start_from_trigger=True,
    )

    @task
    def act(progress: Any, purpose: str) -> str:
        """Do something with the best training job so far, whether or not the tuning job goes on."""
        best = progress["best_training_job"]
        log.info(
            "For %s: %s with %s %s, the tuning job is %s (%s)",
            purpose,
            best["name"],
            progress["objective_metric"],
            best["objective"],
            progress["status"],
            progress["condition"]["reason"],
        )
        return str(best["name"])

    smoke_test = act.override(task_id="smoke_test")(first_model.output, "a smoke test")
    hand_on = act.override(task_id="hand_on")(good_enough.output, "handing on")
    stop = AmtStopTuningJobOperator(
        task_id="stop",
        tuning_job_name=name,
        reason="the model is good enough",
        check_interval=2,
        deferrable=True,
    )
    first_model >> good_enough >> stop
    smoke_test >> stop
    hand_on >> stop


wait_for_condition = amt_wait_for_condition()
