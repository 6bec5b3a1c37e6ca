"""One table of outcomes, seen by operator and sensor, waiting and deferred: the same answers in all four.

On a live scheduler and triggerer. The tuning jobs are real ones of the embedded AMT; their training scripts
are told what to come to, so that each has one certain end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from airflow_amt.local import RunningServer
from airflow_amt.tuning import CompletionCriteria
from tests.system.cluster import AirflowCluster
from tests.system.conftest import REGION
from tests.system.dags.scripted import SCENARIOS, request

pytestmark = pytest.mark.system

WAYS = {
    "operator_sync": "running",
    "operator_deferred": "deferred",
    "sensor_poke": "running",
    "sensor_deferred": "deferred",
}
REASONS = tuple(reason for reason in SCENARIOS if reason != "endless")

_LIMITS = "HyperParameterTuningJobConfig.ResourceLimits"
_CRITERIA = "HyperParameterTuningJobConfig.TuningJobCompletionCriteria"


def _exactly(value: Any) -> Callable[[Any], bool]:
    return lambda observed: bool(observed == value)


def _is_a_runtime_from(least: float) -> Callable[[Any], bool]:
    # Its training jobs are stopped first: some seconds more of AMT's clock, which runs fast here.
    return lambda observed: least <= observed < least + 400


def _is_a_time(observed: Any) -> bool:
    return datetime.fromisoformat(observed).tzinfo is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What everybody who waited for the tuning job must say; `evidence` without what was observed."""

    task_state: str
    status: str
    evidence: Mapping[str, Any]
    observed: Callable[[Any], bool] | None
    training_jobs: Mapping[str, int]
    best: float | None
    failures: Mapping[str, int] = field(default_factory=dict)


EXPECTED: Mapping[str, Expected] = {
    "max_training_jobs": Expected(
        task_state="success",
        status="Completed",
        evidence={"field": f"{_LIMITS}.MaxNumberOfTrainingJobs", "limit": 4},
        observed=_exactly(4),
        training_jobs={"Completed": 4},
        best=0.4,
    ),
    "not_improving": Expected(
        task_state="success",
        status="Completed",
        evidence={
            "field": f"{_CRITERIA}.BestObjectiveNotImproving.MaxNumberOfTrainingJobsNotImproving",
            "limit": 3,
        },
        observed=_exactly(3),
        training_jobs={"Completed": 4},
        best=0.5,
    ),
    "max_runtime": Expected(
        task_state="success",
        status="Completed",
        evidence={"field": f"{_LIMITS}.MaxRuntimeInSeconds", "limit": 1800},
        observed=_is_a_runtime_from(1800),
        training_jobs={"Completed": 1, "Stopped": 1},
        best=0.3,
    ),
    "target_reached": Expected(
        task_state="success",
        status="Completed",
        evidence={"field": f"{_CRITERIA}.TargetObjectiveMetricValue", "limit": 0.9},
        observed=_exactly(0.95),
        training_jobs={"Completed": 3},
        best=0.95,
    ),
    "converged": Expected(
        task_state="success",
        status="Completed",
        evidence={"field": f"{_CRITERIA}.ConvergenceDetected.CompleteOnConvergence", "limit": "Enabled"},
        observed=_is_a_time,
        training_jobs={"Completed": 40},
        best=0.5,
    ),
    "search_space_exhausted": Expected(
        task_state="success",
        status="Completed",
        evidence={"field": "ParameterRanges", "limit": 3},
        observed=_exactly(3),
        training_jobs={"Completed": 3},
        best=0.3,
    ),
    "stopped_by_provider": Expected(
        task_state="failed",
        status="Stopped",
        evidence={"stopped_by": "operator", "detail": "the table"},
        observed=None,
        training_jobs={"Completed": 1, "Stopped": 1},
        best=0.4,
    ),
    "stopped_externally": Expected(
        task_state="failed",
        status="Stopped",
        evidence={"stopped_by": None, "detail": None},
        observed=None,
        training_jobs={"Completed": 1, "Stopped": 1},
        best=0.4,
    ),
    "failed": Expected(
        task_state="failed",
        status="Failed",
        evidence={
            "failure_reason": "No training job succeeded after 5 attempts. Please take a look at the "
            "training job failures to get more details."
        },
        observed=None,
        training_jobs={"NonRetryableError": 5},
        best=None,
        failures={"AlgorithmError: the script failed on purpose, exit code: 1": 5},
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one task left behind: state, log and, where there is one, outcome and return value in XCom."""

    state: str | None
    outcome: dict[str, Any] | None
    returned: dict[str, Any] | None
    log: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The answers by reason and way, and the state and return value of each task that stopped a job."""

    answers: Mapping[tuple[str, str], Answer]
    stops: Mapping[str, tuple[str | None, dict[str, Any] | None]]


def _read(cluster: AirflowCluster, dag_id: str, run_id: str, task_id: str, key: str) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = cluster.xcom(dag_id, run_id, task_id, key)
    except KeyError:
        return None
    return value


def _create_watched(client: Any, reason: str, gate: Path) -> str:
    """Create the tuning job that the sensors wait for, as somebody else than Airflow would."""
    scenario = SCENARIOS[reason]
    body = request(scenario, gate=str(gate))
    criteria = CompletionCriteria.parse(scenario.criteria)
    body["HyperParameterTuningJobConfig"] = criteria.merge_into(body["HyperParameterTuningJobConfig"])
    name = f"watched-{reason.replace('_', '-')}"
    client.create_hyper_parameter_tuning_job(HyperParameterTuningJobName=name, **body)
    return name


def _wait_until_second_training(client: Any, name: str, timeout_seconds: float = 60.0) -> None:
    """Wait until the first training job has its result and the second one runs."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        job = client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
        counters = job["TrainingJobStatusCounters"]
        if counters["Completed"] == 1 and counters["InProgress"] == 1:
            return
        assert time.monotonic() < deadline, f"{name} after {timeout_seconds} s: {counters}"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def table(cluster: AirflowCluster, amt: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Table:
    """Run the whole table: nine DAG runs side by side."""
    client = amt.client(REGION)
    gates = tmp_path_factory.mktemp("gates")
    closed, opened = gates / "closed", gates
    runs: dict[str, str] = {}
    watched: dict[str, str] = {}

    def start(reason: str) -> None:
        # Those that somebody or the clock ends need no gate: their second training job waits for ever.
        gate = opened if "wait" in SCENARIOS[reason].results else closed
        cluster.wait_dag(f"outcome_{reason}")
        watched[reason] = _create_watched(client, reason, gate)
        conf = {"gate": str(gate), "watched": watched[reason]}
        runs[reason] = cluster.trigger_dag(f"outcome_{reason}", conf)

    def wait_until_all_wait(*reasons: str) -> None:
        for reason in reasons:
            for way, state in WAYS.items():
                cluster.wait_task(f"outcome_{reason}", runs[reason], way, states={state})
                if state == "deferred":
                    cluster.wait_deferral_known(f"outcome_{reason}", runs[reason], way)

    # Its clock runs from the start: everybody must wait before others make the machine busy.
    start("max_runtime")
    wait_until_all_wait("max_runtime")
    others = [reason for reason in REASONS if reason != "max_runtime"]
    for reason in others:
        start(reason)
    wait_until_all_wait(*others)
    closed.touch()

    def names(reason: str) -> list[str]:
        operators = ("operator_sync", "operator_deferred")
        return [
            *(
                cluster.wait_xcom(f"outcome_{reason}", runs[reason], way, "tuning_job_name")
                for way in operators
            ),
            watched[reason],
        ]

    for name in names("stopped_externally"):
        _wait_until_second_training(client, name)
        client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    to_stop = names("stopped_by_provider")
    for name in to_stop:
        _wait_until_second_training(client, name)
    stop_run = cluster.trigger_dag("stop", {"names": to_stop})

    cluster.wait_run("stop", stop_run)
    answers = {}
    for reason in REASONS:
        dag_id, run_id = f"outcome_{reason}", runs[reason]
        cluster.wait_run(dag_id, run_id)
        for way in WAYS:
            answers[reason, way] = Answer(
                state=cluster.task_state(dag_id, run_id, way),
                outcome=_read(cluster, dag_id, run_id, way, "outcome"),
                returned=_read(cluster, dag_id, run_id, way, "return_value"),
                log=cluster.task_log(dag_id, run_id, way),
            )
    stops = {
        task_id: (state, _read(cluster, "stop", stop_run, task_id, "return_value"))
        for task_id, state in cluster.task_states("stop", stop_run).items()
    }
    return Table(answers=answers, stops=stops)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reason", REASONS)
def test_outcome(table: Table, reason: str, way: str) -> None:
    expected, answer = EXPECTED[reason], table.answers[reason, way]
    outcome = answer.outcome
    assert outcome is not None, f"{answer.state} without an outcome:\n{answer.log}"

    assert (outcome["reason"], outcome["certain"], outcome["also"]) == (reason, True, [])
    assert (outcome["status"], answer.state) == (expected.status, expected.task_state)
    evidence = dict(outcome["evidence"])
    if expected.observed is not None:
        observed = evidence.pop("observed")
        assert expected.observed(observed), observed
    # The task that stopped it, beside its words for it.
    stopper = evidence.pop("requested_by", None)
    assert (stopper is not None) == (reason == "stopped_by_provider")
    assert stopper is None or stopper.split()[-1].startswith("stop_")
    assert evidence == expected.evidence
    assert {key: count for key, count in outcome["training_job_counters"].items() if count} == (
        expected.training_jobs
    )
    best = outcome["best_training_job"]
    assert (None if best is None else best["objective"]) == expected.best
    failures = {one["reason"]: one["count"] for one in outcome["training_job_failure_reasons"]}
    assert failures == expected.failures
    # A task returns the outcome if and only if it succeeds.
    assert answer.returned == (outcome if expected.task_state == "success" else None)


@pytest.mark.parametrize("reason", REASONS)
def test_both_sensors_say_the_same_word_for_word(table: Table, reason: str) -> None:
    poke, deferred = (table.answers[reason, way].outcome for way in ("sensor_poke", "sensor_deferred"))

    assert poke == deferred


@pytest.mark.parametrize("task_id", ["stop_sync", "stop_deferred"])
def test_stopping_returns_the_best_training_job_so_far(table: Table, task_id: str) -> None:
    state, returned = table.stops[task_id]

    assert state == "success"
    assert returned is not None
    assert (returned["status"], returned["stopped"], returned["reason"]) == (
        "Stopped",
        True,
        "stopped_by_provider",
    )
    assert returned["best_training_job"]["objective"] == 0.4


def test_stopping_without_waiting(table: Table) -> None:
    state, returned = table.stops["stop_without_waiting"]

    assert state == "success"
    assert returned is not None
    assert returned["stopped"] is True
    assert returned["status"] in {"Stopping", "Stopped"}
