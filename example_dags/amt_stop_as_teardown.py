"""Start a tuning job, check its data meanwhile, and leave no tuning job running however the DAG run ends.

The last task is a teardown: it runs when everything before it is over, whether that succeeded, failed, or
was marked failed or successful by a person. A tuning job that is over by then is left alone and reported; one
that still runs is stopped. If no tuning job was created, there is nothing to stop, and that is a success.

A teardown is the safety net where nobody can tell the task itself that it was killed: while its triggerer is
down, for example. It does not run when the DAG run itself times out (``dagrun_timeout`` skips every task that
is not over) or is deleted; ``AmtReapTuningJobsOperator`` finds what is left then.

To see it stop one, start the DAG with ``--conf '{"data_is_good": false}'``.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

from airflow.sdk import dag, get_current_context, task

from airflow_amt.operators.stop import AmtStopTuningJobOperator
from airflow_amt.operators.tuning import AmtTuningJobOperator
from airflow_amt.sensors.tuning import AmtTuningJobSensor

log = logging.getLogger(__name__)

REQUEST: dict[str, Any] = {
    "HyperParameterTuningJobConfig": {
        "Strategy": "Random",
        "HyperParameterTuningJobObjective": {"Type": "Maximize", "MetricName": "validation:accuracy"},
        "ResourceLimits": {"MaxParallelTrainingJobs": 2},
        "ParameterRanges": {
            "ContinuousParameterRanges": [
                {"Name": "C", "MinValue": "0.001", "MaxValue": "1000", "ScalingType": "Logarithmic"},
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
        "OutputDataConfig": {"S3OutputPath": "s3://models/stop-as-teardown"},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 10},
        "StoppingCondition": {"MaxRuntimeInSeconds": 86400},
    },
}

# A template, not `start.output["tuning_job_name"]`: that fails the task if nothing was pushed.
NAME = "{{ ti.xcom_pull(task_ids='start', key='tuning_job_name') }}"


@dag(
    dag_id="amt_stop_as_teardown",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    tags=["airflow-amt", "example"],
    doc_md=__doc__,
    params={"data_is_good": True, "max_training_jobs": 4},
)
def amt_stop_as_teardown() -> None:
    """Start, check, wait; stop in any case."""
    start = AmtTuningJobOperator(
        task_id="start",
        config=REQUEST,
        criteria={"max_training_jobs": "{{ params.max_training_jobs }}"},
        wait_for_completion=False,
    )

    @task
    def check_data() -> None:
        """Look at the data that the tuning job trains on; it is not worth its money if they are bad."""
        params = get_current_context()["params"]
        if not params["data_is_good"]:
            raise ValueError("the training data is not good")
        log.info("The training data is good.")

    wait = AmtTuningJobSensor(task_id="wait", tuning_job_name=NAME, poke_interval=2, deferrable=True)
    stop = AmtStopTuningJobOperator(
        task_id="stop",
        tuning_job_name=NAME,
        reason="the DAG run is over",
        check_interval=2,
        deferrable=True,
    )
    # Without `setups=start`: a teardown of a setup does not run if the setup did not succeed, and clearing
    # a task between the two would clear, and so repeat, the setup as well.
    start >> check_data() >> wait >> stop.as_teardown()


stop_as_teardown = amt_stop_as_teardown()
