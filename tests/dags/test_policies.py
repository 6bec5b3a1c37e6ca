"""Each stop policy ends a real tuning job, with the stated reason, whether its task waits or is deferred.

The tuning jobs are real ones of an embedded AMT whose clock is the clock: policies are about seconds. They
run side by side, since they mostly wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from airflow_amt.exceptions import AmtError
from airflow_amt.local import RunningServer, running
from airflow_amt.operators.tuning import AmtTuningJobOperator
from airflow_amt.sensors.tuning import AmtTuningJobSensor
from airflow_amt.task_exceptions import AmtTuningJobStopped
from airflow_amt.tuning.costs import PriceTable
from airflow_amt.tuning.naming import from_tag_list, task_label
from airflow_amt.tuning.policies import (
    Budget,
    Converged,
    Custom,
    Deadline,
    MaxFailedTrainingJobs,
    MinimumJobs,
    NotImproving,
    Plateau,
    Rule,
    Sla,
    Stalled,
    TargetReached,
)
from tests.local.support import IMAGES, create_request, describe, unique
from tests.unit.tasks import run_task, task_context

pytestmark = pytest.mark.local

REGION = "eu-west-1"
WAYS = ("operator_sync", "operator_deferred", "sensor_poke", "sensor_deferred")
PRICES = PriceTable(currency="EUR", per_hour={"ml.m5.large": 3600.0})  # 1 EUR a second
SECOND = timedelta(seconds=1)


def launched_two(situation: Any, *, most: int) -> tuple[float, str]:
    """A policy of a user's own."""
    launched = situation.progress.training_jobs.launched
    return launched / most, f"{launched} training jobs were launched"


@dataclass(frozen=True)
class Row:
    """A tuning job, what it is held to, and what is expected of its end."""

    sla: Any
    sequence: str = "0.4 0.3 hang"
    code: str = ""
    best: float | None = 0.4
    action: str = "stop"
    evidence: dict[str, Any] = field(default_factory=dict)


TABLE: dict[str, Row] = {
    "deadline": Row(Deadline(after=3 * SECOND)),
    "budget-money": Row(
        Sla(rules=(Rule(policy=Budget(6.0, stopping=SECOND)),), prices=PRICES),
        code="budget",
        evidence={"limit": 6, "unit": "money", "currency": "EUR"},
    ),
    "budget-compute": Row(
        Budget(6.0, unit="compute_seconds", stopping=SECOND),
        code="budget",
        evidence={"limit": 6, "unit": "compute_seconds"},
    ),
    "budget-billable": Row(
        Budget(6.0, unit="billable_seconds", stopping=SECOND),
        code="budget",
        evidence={"limit": 6, "unit": "billable_seconds"},
    ),
    "max_failed_training_jobs": Row(
        MaxFailedTrainingJobs(count=2), sequence="0.4 fail fail hang", evidence={"failed": 2, "ended": 3}
    ),
    "stalled": Row(Stalled(2 * SECOND)),
    "not_improving-count": Row(
        NotImproving(training_jobs=2), sequence="0.4 0.3 0.2 hang", code="not_improving"
    ),
    "not_improving-time": Row(NotImproving(duration=2 * SECOND), code="not_improving"),
    "not_improving-compute": Row(NotImproving(consumed=2.0, unit="compute_seconds"), code="not_improving"),
    "plateau": Row(Plateau(window=3, minimum=4), sequence="0.4 0.4 0.4 0.4 hang"),
    "converged": Row(Converged(patience=2.0, minimum=5), sequence="0.4 0.5 0.4 0.4 0.4 0.4 hang", best=0.5),
    "target_reached": Row(TargetReached(0.9), sequence="0.4 0.95 hang", best=0.95),
    "minimum_jobs": Row(MinimumJobs(2)),
    "guarded": Row(
        MinimumJobs(2) & NotImproving(training_jobs=1), sequence="0.4 0.3 hang", code="not_improving"
    ),
    "either": Row(Stalled(timedelta(hours=1)) | TargetReached(0.35), code="target_reached"),
    "custom": Row(Custom("tests.dags.test_policies.launched_two", {"most": 2})),
    "stop_and_fail": Row(
        Rule.of(TargetReached(0.35), action="stop_and_fail", name="too_good"),
        code="target_reached",
        action="stop_and_fail",
    ),
    # The best is kept only if there is one.
    "nothing_to_keep": Row(Stalled(2 * SECOND), sequence="hang", code="stalled", best=None),
}


#: Each policy through the operator, and some through the sensor, which decides by the same code.
RUNS = [
    (row, way)
    for row in TABLE
    for way in WAYS
    if way.startswith("operator") or row in ("deadline", "budget-money", "stop_and_fail", "nothing_to_keep")
]


@dataclass(frozen=True)
class Ran:
    """What a task came to."""

    outcome: dict[str, Any]
    error: BaseException | None
    reports: list[dict[str, Any]]
    label: str
    tags: dict[str, str]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], Future[Ran]]]:
    """All rows, all ways, at once."""
    folder = tmp_path_factory.mktemp("amt")
    with running(folder, images=IMAGES) as server, pytest.MonkeyPatch.context() as patch:
        _connect(server, patch)
        with ThreadPoolExecutor(12) as pool:
            yield {(row, way): pool.submit(_run, row, way, server) for row, way in RUNS}
        assert "Traceback" not in server.log, server.log


def _connect(server: RunningServer, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("AIRFLOW_CONN_AWS_POLICIES", server.connection(REGION))


def _run(key: str, way: str, server: RunningServer) -> Ran:
    row = TABLE[key]
    name = unique("policy")
    client = server.client(REGION)
    request = create_request(name, sequence=row.sequence, most=50)
    reports: list[dict[str, Any]] = []
    common: dict[str, Any] = {
        "aws_conn_id": "aws_policies",
        "policies": row.sla,
        "on_policy_callback": lambda context: reports.append(context["policy"]),
        "deferrable": way.endswith("deferred"),
    }
    make: Callable[[], Any]
    if way.startswith("sensor"):
        client.create_hyper_parameter_tuning_job(**request)
        make = lambda: AmtTuningJobSensor(  # noqa: E731
            task_id="wait", tuning_job_name=name, poke_interval=0.3, timeout=120, **common
        )
    else:
        make = lambda: AmtTuningJobOperator(  # noqa: E731
            task_id="tune", config=request, check_interval=0.3, **common
        )
    context = task_context(task_id=name)
    error: BaseException | None = None
    try:
        run_task(make, context)
    except AmtError as raised:
        error = raised
    arn = describe(client, name)["HyperParameterTuningJobArn"]
    tags = from_tag_list(client.list_tags(ResourceArn=arn, MaxResults=50)["Tags"])
    client.close()
    return Ran(
        outcome=context["ti"].xcom.get("outcome") or {},
        error=error,
        reports=reports,
        label=task_label(context["ti"]),
        tags=tags,
    )


@pytest.mark.parametrize(("key", "way"), RUNS)
def test_the_policy_ends_the_job(key: str, way: str, ran: dict[tuple[str, str], Future[Ran]]) -> None:
    row, one = TABLE[key], ran[key, way].result(120)
    code = row.code or key
    if row.action == "stop" and row.best is not None:
        assert one.error is None
    elif way.startswith("operator"):
        assert isinstance(one.error, AmtTuningJobStopped)
    else:
        assert one.error is not None
    outcome = one.outcome
    assert (outcome["reason"], outcome["status"]) == ("stopped_by_provider", "Stopped")
    assert outcome["certain"] is True
    assert (outcome["best_training_job"] or {}).get("objective") == row.best
    evidence = outcome["evidence"]
    assert (evidence["stopped_by"], evidence["policy"], evidence["action"]) == ("policy", code, row.action)
    assert evidence["requested_by"] == one.label
    assert evidence["share"] >= 1
    assert evidence["detail"]
    for fact, value in row.evidence.items():
        assert evidence["evidence"][fact] == value
    # The record is in the tags, whole.
    assert one.tags["airflow-amt:stopped-by"] == "policy"
    assert f"code={code}" in one.tags["airflow-amt:policy"].split()
    assert one.tags["airflow-amt:stopped-for"] == one.label
    # People were told once, when it was over.
    (report,) = one.reports
    assert (report["code"], report["action"], report["outcome"]["status"]) == (code, row.action, "Stopped")
    launched = outcome["training_job_counters"]["Completed"] + outcome["training_job_counters"]["Stopped"]
    launched += outcome["training_job_counters"]["NonRetryableError"]
    assert outcome["saving"]["training_jobs"] == 50 - launched
