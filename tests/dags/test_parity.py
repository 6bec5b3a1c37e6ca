"""One table of outcomes through operator and sensor, waiting and deferred: the same answers in all four.

In this process: a deferral runs the trigger, sent through its stored form, and resumes a new task object. The
tuning jobs are real ones of the embedded AMT; the expected values are written by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from airflow_amt.hooks.tuning import AmtHook
from airflow_amt.operators.tuning import AmtTuningJobOperator
from airflow_amt.sensors.tuning import AmtTuningJobSensor
from airflow_amt.task_exceptions import AmtTuningJobError, AmtTuningJobFailed, AmtTuningJobStopped
from tests.local.support import create_request, describe, training_processes, unique, wait_until
from tests.unit.tasks import run_task, task_context

pytestmark = pytest.mark.local

_LIMITS = "HyperParameterTuningJobConfig.ResourceLimits"
_CRITERIA = "HyperParameterTuningJobConfig.TuningJobCompletionCriteria"
WAYS = ("operator_sync", "operator_deferred", "sensor_poke", "sensor_deferred")

#: By reason: the tuning job, its final status, its training jobs, its best objective, its evidence without
#: what was observed, and what was observed (``None``: looked at below).
TABLE: dict[str, tuple[dict[str, Any], str, dict[str, int], float | None, dict[str, Any], Any]] = {
    "max_training_jobs": (
        {"sequence": "0.1 0.3 0.2", "most": 3},
        "Completed",
        {"Completed": 3},
        0.3,
        {"field": f"{_LIMITS}.MaxNumberOfTrainingJobs", "limit": 3},
        3,
    ),
    "not_improving": (
        {"sequence": "0.1 0.5 0.4 0.5 0.3", "most": 50, "not_improving": 3},
        "Completed",
        {"Completed": 5},
        0.5,
        {
            "field": f"{_CRITERIA}.BestObjectiveNotImproving.MaxNumberOfTrainingJobsNotImproving",
            "limit": 3,
        },
        3,
    ),
    "max_runtime": (
        {"sequence": "0.1 hang", "most": 50, "runtime": 400},
        "Completed",
        {"Completed": 1, "Stopped": 1},
        0.1,
        {"field": f"{_LIMITS}.MaxRuntimeInSeconds", "limit": 400},
        None,
    ),
    "target_reached": (
        {"sequence": "0.1 0.95 0.2", "most": 50, "target": 0.9},
        "Completed",
        {"Completed": 2},
        0.95,
        {"field": f"{_CRITERIA}.TargetObjectiveMetricValue", "limit": 0.9},
        0.95,
    ),
    "converged": (
        {"sequence": "0.5", "most": 50, "convergence": True},
        "Completed",
        {"Completed": 40},
        0.5,
        {"field": f"{_CRITERIA}.ConvergenceDetected.CompleteOnConvergence", "limit": "Enabled"},
        None,
    ),
    "search_space_exhausted": (
        {
            "sequence": "0.1 0.2",
            "most": None,
            "ranges": {"CategoricalParameterRanges": [{"Name": "x", "Values": ["a", "b"]}]},
        },
        "Completed",
        {"Completed": 2},
        0.2,
        {"field": "ParameterRanges", "limit": 2},
        2,
    ),
    "failed": (
        {"sequence": "fail", "most": 50},
        "Failed",
        {"NonRetryableError": 5},
        None,
        {
            "failure_reason": "No training job succeeded after 5 attempts. Please take a look at the "
            "training job failures to get more details."
        },
        None,
    ),
    "stopped_externally": (
        {"sequence": "0.4 hang", "most": 50},
        "Stopped",
        {"Completed": 1, "Stopped": 1},
        0.4,
        {"stopped_by": None, "detail": None},
        None,
    ),
    "stopped_by_provider": (
        {"sequence": "0.4 hang", "most": 50},
        "Stopped",
        {"Completed": 1, "Stopped": 1},
        0.4,
        {"stopped_by": "policy", "detail": "the table"},
        None,
    ),
}
ERRORS: dict[str, type[AmtTuningJobError]] = {
    "failed": AmtTuningJobFailed,
    "stopped_externally": AmtTuningJobStopped,
    "stopped_by_provider": AmtTuningJobStopped,
}


def operator(request: dict[str, Any], deferrable: bool) -> Callable[[], Any]:
    return lambda: AmtTuningJobOperator(
        task_id="tune", config=request, check_interval=0.1, deferrable=deferrable
    )


def sensor(request: dict[str, Any], deferrable: bool) -> Callable[[], Any]:
    return lambda: AmtTuningJobSensor(
        task_id="wait",
        tuning_job_name=request["HyperParameterTuningJobName"],
        poke_interval=0.1,
        timeout=60,
        deferrable=deferrable,
    )


def wait_for_second_training_job(client: Any, name: str) -> None:
    """Wait until the first training job has its result and the second one runs."""
    wanted = {"Completed": 1, "InProgress": 1}

    def there() -> bool:
        counters = describe(client, name)["TrainingJobStatusCounters"]
        return bool({key: counters[key] for key in wanted} == wanted)

    def exists() -> bool:
        try:
            return there()
        except client.exceptions.ResourceNotFound:
            return False

    wait_until(exists, f"the second training job of {name}")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reason", TABLE)
def test_the_answer_is_the_tables(reason: str, way: str, client: Any, connection: str) -> None:
    options, status, counters, best, evidence, observed = TABLE[reason]
    name = unique("parity")
    request = create_request(name, **options)
    deferrable = way.endswith("deferred")
    if way.startswith("sensor"):
        client.create_hyper_parameter_tuning_job(**request)
        make = sensor(request, deferrable)
    else:
        make = operator(request, deferrable)
    context = task_context(task_id=name)

    def stop() -> None:
        wait_for_second_training_job(client, name)
        if reason == "stopped_by_provider":
            assert AmtHook(aws_conn_id=connection).stop_tuning_job(
                name, stopped_by="policy", detail="the table"
            )
        else:
            client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)

    with ThreadPoolExecutor(1) as other:
        stopping = other.submit(stop) if reason.startswith("stopped") else None
        if reason in ERRORS:
            with pytest.raises(ERRORS[reason]) as caught:
                run_task(make, context)
            returned = caught.value.outcome
        else:
            returned, _ = run_task(make, context)
        if stopping is not None:
            stopping.result(0)

    outcome = context["ti"].xcom["outcome"]
    assert returned == outcome
    assert (outcome["reason"], outcome["status"], outcome["certain"]) == (reason, status, True)
    assert {key: count for key, count in outcome["training_job_counters"].items() if count} == counters
    assert (outcome["best_training_job"] or {}).get("objective") == best
    found = dict(outcome["evidence"])
    seen = found.pop("observed", None)
    assert found == evidence
    if reason == "max_runtime":
        assert 400 <= seen < 700
    elif reason == "converged":
        assert seen == outcome["convergence_detected_at"] is not None
    else:
        assert seen == observed
    assert training_processes(name) == []
