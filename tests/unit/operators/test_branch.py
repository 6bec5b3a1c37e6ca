"""The branching operator: what it goes on with, what it skips, and what it refuses."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator, TaskGroup

from airflow_amt.exceptions import AmtFieldError, AmtRequestError
from airflow_amt.operators.branch import AmtOutcomeBranchOperator
from airflow_amt.tuning import infer_outcome
from airflow_amt.watch import polling
from tests.unit.tasks import THROTTLED, FakeHook, describe, task_context, use_hook

try:
    from airflow.sdk.exceptions import DownstreamTasksSkipped
except ImportError:  # Airflow 3.1
    from airflow.exceptions import DownstreamTasksSkipped  # type: ignore[no-redef]

NAME = "churn-model"
OUTCOME = infer_outcome(describe(status="Completed")).to_dict()
BRANCHES = {"succeeded": "deploy", "failed": "alerts", "stopped": ["deploy", "report"]}


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "LONGEST_BACKOFF_SECONDS", 0.01)


def branch(hook: FakeHook | None = None, **options: Any) -> tuple[Any, list[str], dict[str, Any]]:
    """Run the operator in a DAG with three ways on; return its value, what it skipped, and its XCom."""
    options = {"branches": BRANCHES, **options}
    with DAG("churn", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)):
        chooser = AmtOutcomeBranchOperator(task_id="choose", **options)
        with TaskGroup("alerts"):
            page = BaseOperator(task_id="page")
            BaseOperator(task_id="mail").set_upstream(page)
        for task_id in ("deploy", "report"):
            chooser >> BaseOperator(task_id=task_id)
        chooser >> page
    if hook is not None:
        use_hook(chooser, hook)
    context = task_context(task_id="choose")
    context["ti"].task = chooser
    skipped: list[str] = []
    try:
        value = chooser.execute(context)
    except DownstreamTasksSkipped as skip:
        skipped = [one if isinstance(one, str) else one[0] for one in skip.tasks]
        value = None
    return value, sorted(skipped), context["ti"].xcom


def test_it_skips_what_it_does_not_go_on_with() -> None:
    _, skipped, xcom = branch(outcome=OUTCOME)
    assert skipped == ["alerts.page", "report"]
    assert xcom["skipmixin_key"] == {"followed": ["deploy"]}


def test_a_task_group_stands_for_its_first_tasks() -> None:
    _, skipped, _ = branch(outcome={**OUTCOME, "status": "Failed", "reason": "failed"})
    assert skipped == ["deploy", "report"]


def test_several_ways_and_none() -> None:
    stopped = {**OUTCOME, "status": "Stopped", "reason": "stopped_externally"}
    assert branch(outcome=stopped)[1] == ["alerts.page"]
    every = ["alerts.page", "deploy", "report"]
    assert branch(outcome=OUTCOME, branches={"failed": "report"})[1] == every
    assert branch(outcome=OUTCOME, branches={"failed": "report"}, default="deploy")[1] == [
        "alerts.page",
        "report",
    ]


def test_it_returns_where_it_goes_if_nothing_is_skipped() -> None:
    value, skipped, _ = branch(
        outcome=OUTCOME, branches={"good_enough": ["deploy", "report", "alerts"]}, good_enough="0.9"
    )
    assert (value, skipped) == (["deploy", "report", "alerts"], [])


def test_the_outcome_of_a_job_is_read_from_aws_and_published() -> None:
    hook = FakeHook({NAME: [THROTTLED, "Failed"]})
    _, skipped, xcom = branch(hook, tuning_job_name=NAME)
    assert skipped == ["deploy", "report"]
    assert xcom["outcome"]["reason"] == "failed"


def test_a_job_that_is_not_over_has_no_outcome() -> None:
    with pytest.raises(AmtFieldError, match="AmtTuningJobSensor"):
        branch(FakeHook({NAME: ["InProgress"]}), tuning_job_name=NAME)


def test_bad_branches_are_refused_while_the_dag_is_parsed() -> None:
    with pytest.raises(AmtRequestError, match="target-reached"):
        AmtOutcomeBranchOperator(task_id="choose", outcome=OUTCOME, branches={"target-reached": "a"})


@pytest.mark.parametrize("given", [{}, {"outcome": OUTCOME, "tuning_job_name": NAME}])
def test_exactly_one_source_of_the_outcome(given: dict[str, Any]) -> None:
    with pytest.raises(AmtRequestError, match="give one of the two"):
        AmtOutcomeBranchOperator(task_id="choose", branches=BRANCHES, **given)


def test_a_task_that_left_no_outcome_is_an_error_at_run_time_only() -> None:
    with pytest.raises(AmtFieldError, match="has not left"):
        branch(outcome="None")


def test_what_is_no_name_is_refused_without_a_call() -> None:
    hook = FakeHook()
    with pytest.raises(AmtRequestError, match="tuning_job_name"):
        branch(hook, tuning_job_name="no_underscore")
    assert hook.calls == []
