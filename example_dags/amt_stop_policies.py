"""Retrain every night within a budget and by six in the morning, and know what ended the search.

AMT's own criteria know nothing of money, of the time of day or of training jobs that keep failing. Stop
policies do: the task looks at them while it waits, and ends the tuning job when one is broken. The best
training job so far is kept, so the task succeeds; only training jobs that keep failing fail it.

What people may want to change for one night (budget, deadline, patience, floor) are parameters of the DAG
run. The same dict can lie in an Airflow Variable instead (``policies="variable:nightly_sla"``), without
templates; it can then be changed while the tuning job runs.

To run it on AWS, replace the training image, the role and the output path, refresh the prices
(``airflow-amt prices --region eu-west-1 --instance-type ml.m5.xlarge``), and let the connection
``aws_default`` point to your account.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

from airflow.sdk import dag, task

from airflow_amt.operators.tuning import AmtTuningJobOperator

log = logging.getLogger(__name__)

#: What an hour of one instance costs. A budget in money is refused without its prices.
PRICES: dict[str, Any] = {"currency": "EUR", "per_hour": {"ml.m5.xlarge": 0.26}}

#: The rules, the most important first: of two that are broken at once the first one is the reason.
SLA: dict[str, Any] = {
    "prices": PRICES,
    "rules": [
        # Stopped before the money is gone: what training jobs still use after a stop is kept back.
        {"type": "budget", "limit": "{{ params.budget }}", "warn_at": 0.8},
        # The first six o'clock after the run was due, also where a retry begins late: by "created", the
        # default, a tuning job that is created at half past six would have a whole day.
        {
            "type": "deadline",
            "time_of_day": "{{ params.due }}",
            "timezone": "Europe/Madrid",
            "reference": "queued_at",
            "warn_before_seconds": 1800,
        },
        # Something is wrong with the data or the code: no model of such a night is to be used.
        {"type": "max_failed_training_jobs", "count": 5, "action": "stop_and_fail"},
        # Give up early, but only with a model that can be used, and after a fair number of attempts. In
        # Python, where numbers are no templates:
        # Rule.of(NotImproving(training_jobs=15) & MinimumJobs(10) & TargetReached(0.9), name="no_progress")
        {
            "name": "no_progress",
            "type": "all",
            "of": [
                {"type": "not_improving", "training_jobs": "{{ params.patience }}"},
                {"type": "minimum_jobs", "count": "{{ params.minimum_jobs }}"},
                {"type": "target_reached", "value": "{{ params.floor }}"},
            ],
        },
    ],
}

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
        "OutputDataConfig": {"S3OutputPath": "s3://models/policies"},
        "ResourceConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 10},
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
    },
}


def tell(context: Any) -> None:
    """Tell people what a policy has to say: at a warning, and when a tuning job that it stopped is over.

    ``AmtSlackNotifier`` and its kin of ``airflow_amt.notifications`` do the same as messages.
    """
    from airflow_amt.tuning.message import compact_message

    log.warning("%s", compact_message(context["policy"]).text)


@dag(
    dag_id="amt_stop_policies",
    schedule="0 22 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    default_args={"retries": 1},  # a retry takes its own tuning job up again
    max_active_runs=1,
    tags=["airflow-amt", "example"],
    doc_md=__doc__,
    params={
        "budget": 3.0,
        "due": "06:00",
        "patience": 15,
        "minimum_jobs": 10,
        "floor": 0.9,
        "check_interval_seconds": 30,
    },
)
def amt_stop_policies() -> None:
    """Tune within the policies, then use the model, whatever ended the search."""
    tune = AmtTuningJobOperator(
        task_id="tune",
        config=REQUEST,
        criteria={"max_training_jobs": 500, "max_runtime": 8 * 3600},
        policies=SLA,
        on_policy_callback=tell,
        # Before anything is created: a request that could cost more than this, as with a nought too many in
        # MaxParallelTrainingJobs, is refused.
        plan_limits={"max_cost": 5.0, "prices": PRICES},
        check_interval="{{ params.check_interval_seconds }}",
        deferrable=True,
    )

    @task
    def use(outcome: Any) -> dict[str, Any]:
        """Take the best model, and keep on record what ended the search and what that saved."""
        policy = outcome["evidence"].get("policy")  # None if AMT's own criteria, or people, ended it
        saving = outcome["saving"] or {}  # None if every training job was launched
        log.info("Ended by %s: %s", policy or outcome["reason"], outcome["explanation"])
        if saving.get("cost") is not None:
            log.info(
                "%s training jobs, about %.2f %s, were saved.",
                saving["training_jobs"],
                saving["cost"],
                saving["currency"],
            )
        return {
            "model": outcome["best_training_job"]["name"],
            "objective": outcome["best_training_job"]["objective"],
            "policy": policy,
            "saved_training_jobs": saving.get("training_jobs", 0),
        }

    use(tune.output)


stop_policies = amt_stop_policies()
