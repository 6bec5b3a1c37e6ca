"""The reaping operator: its arguments, and what it makes of the execution API's answers."""

from __future__ import annotations

import pickle
from datetime import timedelta
from typing import Any

import pytest

from airflow_amt import _compat
from airflow_amt.exceptions import AmtRequestError
from airflow_amt.operators.reap import AmtReapTuningJobsOperator, WorkerTasks
from airflow_amt.task_exceptions import AmtReapError
from airflow_amt.tuning.naming import Owner, tag_value
from airflow_amt.tuning.reaping import ReapPolicy, TaskView
from airflow_amt.watch.reaping import ReapReport
from tests.unit.tasks import loud_log, task_context

RUN = "manual__2026-01-01T00:00:00+00:00"


def operator(**options: Any) -> AmtReapTuningJobsOperator:
    return AmtReapTuningJobsOperator(task_id="reap", **options)


@pytest.mark.parametrize(
    ("options", "policy", "stop"),
    [
        ({}, {}, False),
        ({"stop_orphans": "True"}, {}, True),
        ({"stop_orphans": " false ", "dag_ids": "None", "name_contains": "None"}, {}, False),
        ({"grace": "0"}, {"grace": timedelta(0)}, False),
        ({"grace": timedelta(hours=1)}, {"grace": timedelta(hours=1)}, False),
        ({"dag_ids": "a, b"}, {"dag_ids": frozenset({"a", "b"})}, False),
        (
            {"dag_ids": ["a"], "include_left": True},
            {"dag_ids": frozenset({"a"}), "include_left": True},
            False,
        ),
    ],
)
def test_arguments_may_be_templates(options: dict[str, Any], policy: dict[str, Any], stop: bool) -> None:
    assert operator(**options)._checked() == (ReapPolicy(**policy), stop, None)


def test_the_deployment_comes_from_airflows_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__AMT__DEPLOYMENT", " prod ")
    assert operator(name_contains="churn")._checked() == (ReapPolicy(deployment="prod"), False, "churn")


def test_all_bad_arguments_are_named_before_any_call() -> None:
    task = operator(
        stop_orphans="maybe", grace="soon", dag_ids=["ok", 7], name_contains="a b", include_left=None
    )
    with pytest.raises(AmtRequestError) as caught:
        task.execute(task_context())
    assert [problem.field for problem in caught.value.problems] == [
        "grace",
        "stop_orphans",
        "include_left",
        "dag_ids",
        "name_contains",
    ]
    assert all(problem.fix for problem in caught.value.problems)


def test_an_operators_dry_run_method_is_left_alone() -> None:
    assert callable(operator().dry_run)


def test_errors_fail_the_task_after_its_result_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    report = ReapReport(dry_run=True, errors=["one", "two"])
    monkeypatch.setattr(AmtReapTuningJobsOperator, "_reap", lambda self: report)
    context = task_context()
    with pytest.raises(AmtReapError, match=r"2 errors:\n  1\. one\n  2\. two") as caught:
        operator().execute(context)
    assert context["ti"].xcom["return_value"] == caught.value.result == report.to_dict()
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.errors, again.result) == (("one", "two"), report.to_dict())


class ExecutionApi:
    """Task instances as the execution API has them: by DAG, task and run id, then map index."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.states: dict[tuple[str, str], dict[str, dict[int, str | None]]] = {}
        self.runs: dict[tuple[str, str], str] = {}
        self.dags: dict[str, bool | None] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.broken: set[str] = set()
        monkeypatch.setattr(_compat, "read_task_states", self.read_task_states)
        monkeypatch.setattr(_compat, "read_run_state", self.read_run_state)
        monkeypatch.setattr(_compat, "read_dag_known", lambda dag_id: self.dags.get(dag_id, False))

    def read_task_states(
        self, dag_id: str, task_id: str, run_ids: list[str] | None = None
    ) -> dict[str, dict[int, str | None]]:
        self.calls.append((dag_id, task_id, None if run_ids is None else len(run_ids)))
        if dag_id in self.broken:
            raise RuntimeError("the API server is away")
        found = self.states.get((dag_id, task_id), {})
        return {run: dict(one) for run, one in found.items() if run_ids is None or run in run_ids}

    def read_run_state(self, dag_id: str, run_id: str) -> str | None:
        if run_id in self.broken:
            raise RuntimeError("the API server is away")
        return self.runs.get((dag_id, run_id))


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> ExecutionApi:
    return ExecutionApi(monkeypatch)


def owner(run_id: str = RUN, dag_id: str = "churn", map_index: int = -1) -> Owner:
    return Owner(dag_id=dag_id, run_id=run_id, task_id="tune", map_index=map_index)


def read(*owners: Owner) -> list[TaskView]:
    views = WorkerTasks(loud_log()).read(owners)
    return [views[one] for one in owners]


def test_one_call_reads_all_map_indexes_of_25_runs(api: ExecutionApi) -> None:
    runs = [f"nightly-{number}" for number in range(60)]
    api.states["churn", "tune"] = {run: {0: "running", 1: "failed"} for run in runs}
    views = read(*(owner(run, map_index=index) for run in runs for index in (0, 1)))
    assert [view.state for view in views] == ["running", "failed"] * 60
    assert api.calls == [("churn", "tune", 25), ("churn", "tune", 25), ("churn", "tune", 10)]


def test_what_is_missing_is_looked_for_step_by_step(api: ExecutionApi) -> None:
    api.states["churn", "tune"] = {"cleared": {-1: None}, "mapped": {0: "success"}}
    api.runs = {("churn", "cleared"): "queued", ("churn", "mapped"): "success"}
    api.dags = {"churn": True, "old": None}
    assert read(
        owner("cleared"), owner("mapped", map_index=7), owner("gone"), owner(dag_id="old"), owner(dag_id="x")
    ) == [
        TaskView(found=True, run_state="queued", dag_known=True),
        TaskView(found=False, run_state="success", dag_known=True),
        TaskView(found=False, dag_known=True),
        TaskView(
            found=False,
            dag_known=None,
            problem="it has no DAG run, and Airflow 3.1 tells a worker no more",
        ),
        TaskView(found=False, dag_known=False),
    ]


def test_what_cannot_be_read_does_not_hide_the_rest(api: ExecutionApi) -> None:
    api.states["churn", "tune"] = {"a": {-1: "deferred"}, "b": {-1: None}}
    api.broken = {"down", "b"}
    good, no_run, down = read(owner("a"), owner("b"), owner(dag_id="down"))
    assert good.state == "deferred"
    assert (no_run.found, no_run.problem) == (None, "churn b: RuntimeError: the API server is away")
    assert (down.found, down.problem) == (None, "down tune: RuntimeError: the API server is away")


def test_a_run_id_that_a_tag_changed_is_found(api: ExecutionApi) -> None:
    long = "x" * 300
    api.states["churn", "tune"] = {"by~hand": {-1: "deferred"}, long: {-1: "failed"}}
    changed, cut = read(owner(tag_value("by~hand")), owner(tag_value(long)))
    assert (changed.state, cut.state) == ("deferred", "failed")


def test_a_tag_of_two_runs_decides_nothing(api: ExecutionApi) -> None:
    api.states["churn", "tune"] = {"by~hand": {-1: "deferred"}, "by_hand": {-1: "failed"}}
    (view,) = read(owner("by_hand"))
    assert view.found is None
    assert "'by~hand', 'by_hand'" in view.problem


def test_no_run_is_looked_for_where_the_tag_says_all(api: ExecutionApi) -> None:
    api.dags = {"churn": True}
    assert read(owner()) == [TaskView(found=False, dag_known=True)]
    assert api.calls == [("churn", "tune", 1)]
