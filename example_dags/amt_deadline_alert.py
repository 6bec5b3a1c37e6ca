"""Tune overnight, with the model due at a deadline of the DAG run: what is best by then is used.

If the run is not over six hours after it was queued, Airflow's ``DeadlineAlert`` calls back in the triggerer,
which stops the run's tuning jobs and no other. The task that tunes sees that, succeeds with the best training
job so far, and the run goes on: the model is late, but there is one. An hour before, the progress is logged.

Airflow 3.1 has no such deadlines: the DAG runs there without. To run it on AWS, replace the training image,
the role and the output path, and let the connection ``aws_default`` point to your account; the triggerer
needs it as well.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import dag, task

from airflow_amt.callbacks import tuning_deadline
from airflow_amt.operators.tuning import AmtTuningJobOperator

log = logging.getLogger(__name__)

#: When the run is due, from the moment on that it was queued.
DUE = timedelta(hours=6)

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
        "OutputDataConfig": {"S3OutputPath": "s3://models/deadline"},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 10},
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
    },
}


def deadlines() -> list[Any]:
    """Return the deadlines of a run: a warning first, then the end of its tuning jobs."""
    try:
        from airflow.sdk import DeadlineReference  # type: ignore[attr-defined]  # not in Airflow's own stub
    except ImportError:  # Airflow 3.1
        return []
    queued = DeadlineReference.DAGRUN_QUEUED_AT
    return [
        tuning_deadline(queued, DUE - timedelta(hours=1), action="warn", name="nightly-warning"),
        tuning_deadline(queued, DUE, detail="the model is due in the morning", name="nightly"),
    ]


@dag(
    dag_id="amt_deadline_alert",
    schedule="0 22 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    deadline=deadlines() or None,
    tags=["airflow-amt", "example"],
    doc_md=__doc__,
    params={"max_training_jobs": 500},
)
def amt_deadline_alert() -> None:
    """Tune until the criteria are met or the run is due, then use the best model."""
    tune = AmtTuningJobOperator(
        task_id="tune",
        config=REQUEST,
        criteria={"max_training_jobs": "{{ params.max_training_jobs }}", "complete_on_convergence": True},
        check_interval=10,
        deferrable=True,
    )

    @task
    def use(outcome: Any) -> str:
        """Take the best model, and say whether the deadline cut the search short."""
        cut_short = outcome["evidence"].get("policy") == "deadline_alert"
        best = outcome["best_training_job"]
        log.info("%s%s", best["name"], " (the deadline ended the search)" if cut_short else "")
        return str(best["name"])

    use(tune.output)


deadline_alert = amt_deadline_alert()
