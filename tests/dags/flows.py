"""DAGs of the tests; what they tune comes with the DAG run's configuration."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow.providers.amazon.aws.operators.sagemaker import SageMakerTuningOperator
from airflow.providers.amazon.aws.sensors.sagemaker import SageMakerTuningSensor
from airflow.sdk import DAG, task

from airflow_amt import AmtAskOperator, AmtStopTuningJobOperator, AmtTuningJobOperator, AmtTuningJobSensor
from airflow_amt.notifications.email import AmtSmtpNotifier

DEFAULTS: dict[str, Any] = {
    "schedule": None,
    "start_date": datetime(2026, 1, 1, tzinfo=UTC),
    "catchup": False,
    "render_template_as_native_obj": True,
}
NAME = "{{ ti.xcom_pull(task_ids='start', key='tuning_job_name') }}"


@task
def see(outcome: dict[str, Any]) -> str:
    """Take the outcome from XCom, as a downstream task does."""
    return f"{outcome['reason']} {outcome['best_training_job']['objective']}"


for way in ("sync", "deferred"):
    with DAG(f"tune_{way}", **DEFAULTS):
        tune = AmtTuningJobOperator(
            task_id="tune",
            config="{{ params.request }}",
            criteria={"max_training_jobs": "{{ params.most }}"},
            check_interval=0.2,
            deferrable=way == "deferred",
        )
        see(tune.output)  # type: ignore[arg-type]

MIGRATED = {
    "HyperParameterTuningJobName": "{{ params.prefix }}-{{ ti.task_id }}",
    "HyperParameterTuningJobConfig": "{{ params.request.HyperParameterTuningJobConfig }}",
    "TrainingJobDefinition": "{{ params.request.TrainingJobDefinition }}",
}

# The same request, and no argument that only one of the two knows: what migrating comes down to.
with DAG("migrate", **DEFAULTS):
    for kind in (SageMakerTuningOperator, AmtTuningJobOperator):
        kind(
            task_id="theirs" if kind is SageMakerTuningOperator else "ours",
            config=MIGRATED,
            aws_conn_id="aws_default",
            region_name="eu-west-1",
            wait_for_completion=True,
            check_interval=1,
            max_ingestion_time=120,
            deferrable=False,
        )

# Nothing of ours: the Amazon provider alone, with all of AWS at one endpoint.
with DAG("theirs_alone", **DEFAULTS):
    theirs = SageMakerTuningOperator(
        task_id="start",
        config=MIGRATED,
        aws_conn_id="aws_default",
        wait_for_completion=False,
        check_interval=1,
        deferrable=False,
    )
    theirs >> SageMakerTuningSensor(
        task_id="watch",
        job_name="{{ params.prefix }}-start",
        aws_conn_id="aws_default",
        poke_interval=0.5,
        timeout=60,
    )

with DAG("watch", **DEFAULTS):
    start = AmtTuningJobOperator(
        task_id="start",
        config="{{ params.request }}",
        wait_for_completion=False,
    )
    for way in ("poke", "reschedule", "deferred"):
        start >> AmtTuningJobSensor(
            task_id=way,
            tuning_job_name=NAME,
            poke_interval=0.2,
            timeout=60,
            mode="reschedule" if way == "reschedule" else "poke",
            deferrable=way == "deferred",
        )

with DAG("teardown", **DEFAULTS):
    start = AmtTuningJobOperator(
        task_id="start",
        config="{{ params.request }}",
        wait_for_completion=False,
    )

    @task
    def work() -> None:
        """Fail beside the tuning job."""
        raise ValueError("the work beside the tuning job failed")

    stop = AmtStopTuningJobOperator(
        task_id="stop",
        tuning_job_name=NAME,
        reason="the DAG run is over",
        check_interval=0.2,
        deferrable=True,
    ).as_teardown(setups=start)
    start >> work() >> stop

with DAG("deadline", **DEFAULTS):
    for way in ("sync", "deferred"):
        AmtTuningJobOperator(
            task_id=way,
            config="{{ params.request }}",
            check_interval=0.2,
            max_ingestion_time="{{ params.limit }}",
            deferrable=way == "deferred",
        )


@task
def requests(**context: Any) -> list[dict[str, Any]]:
    """Hand on what is to be tuned, for mapped tasks."""
    given: list[dict[str, Any]] = context["params"]["requests"]
    return given


# One notifier for everything, as in default_args.
tell = AmtSmtpNotifier(to="team@example.com")
with DAG("tell", **DEFAULTS, on_failure_callback=tell, on_success_callback=tell):
    configs = requests()
    for way in ("sync", "deferred"):
        AmtTuningJobOperator.partial(
            task_id=way,
            check_interval=0.2,
            skip_on=["target_reached"],
            deferrable=way == "deferred",
            on_success_callback=tell,
            on_failure_callback=tell,
            on_skipped_callback=tell,
        ).expand(config=configs)

with DAG("ask", **DEFAULTS):
    AmtTuningJobOperator(
        task_id="start", config="{{ params.request }}", wait_for_completion=False
    ) >> AmtAskOperator(task_id="ask", tuning_job_name=NAME, response_timeout=2, answer_interval=1)
