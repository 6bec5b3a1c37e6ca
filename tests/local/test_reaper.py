"""The reaper against an embedded AMT that changes and fails under its hands; Airflow is scripted."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import timedelta
from typing import Any

import pytest

from airflow_amt.hooks.tuning import AmtHook
from airflow_amt.local import RunningServer
from airflow_amt.tuning.naming import Owner
from airflow_amt.tuning.reaping import (
    KEEP_TAG,
    OwnedJob,
    ReapCode,
    ReapDecision,
    ReapPolicy,
    TaskView,
)
from airflow_amt.watch.reaping import Judged, Reaper, ReapReport
from tests.local.support import create_request, describe, unique, wait_until
from tests.unit.tasks import loud_log

pytestmark = pytest.mark.local

#: A region of its own: no jobs of other tests.
REGION = "eu-north-1"
FAILED = TaskView(found=True, state="failed")
WAITING = TaskView(found=True, state="deferred")


class ScriptedTasks:
    """Answers about task instances by run id; what is to happen before an answer is done first."""

    def __init__(self, views: Mapping[str, list[TaskView]], before: Callable[[int], object]) -> None:
        self._views = {run_id: list(answers) for run_id, answers in views.items()}
        self._before = before
        self.asked = 0

    def read(self, owners: Collection[Owner]) -> dict[Owner, TaskView]:
        self.asked += 1
        self._before(self.asked)
        return {one: self._next(one.run_id) for one in owners}

    def _next(self, run_id: str) -> TaskView:
        answers = self._views[run_id]
        return answers.pop(0) if len(answers) > 1 else answers[0]


@pytest.fixture
def client(amt: RunningServer) -> Iterator[Any]:
    client = amt.client(REGION)
    yield client
    client.close()


@pytest.fixture
def hook(amt: RunningServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[AmtHook]:
    monkeypatch.setenv("AIRFLOW_CONN_AMT_REAPER", amt.connection(REGION))
    hook = AmtHook(aws_conn_id="amt_reaper", config={"retries": {"total_max_attempts": 1}})
    yield hook
    amt.set_faults(None)
    hook.conn.close()


@pytest.fixture
def jobs(client: Any) -> Iterator[Callable[[int], list[str]]]:
    """Start so many endless tuning jobs, whose run ids are run-0, run-1, ...; over after the test."""
    names: list[str] = []

    def jobs(number: int) -> list[str]:
        for index in range(number):
            owner = Owner(dag_id="churn", run_id=f"run-{index}", task_id="tune")
            request = create_request(unique("reaper"), sequence="hang", most=1, tags=owner.tags())
            client.create_hyper_parameter_tuning_job(**request)
            names.append(request["HyperParameterTuningJobName"])
        return names

    yield jobs
    for name in names:
        if status(client, name) == "InProgress":
            client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    wait_until(lambda: all(status(client, one) == "Stopped" for one in names), "the end of all jobs")


def status(client: Any, name: str) -> str:
    return str(describe(client, name)["HyperParameterTuningJobStatus"])


def reap(
    hook: AmtHook,
    views: Mapping[str, list[TaskView]],
    *,
    before: Callable[[int], object] = lambda asked: None,
    **options: Any,
) -> tuple[ReapReport, list[str]]:
    """Run the reaper, without waiting between attempts; return its report and log."""
    log = loud_log()
    policy = options.pop("policy", ReapPolicy(grace=timedelta(0)))
    reaper = Reaper(
        hook,
        ScriptedTasks(views, before),
        log=log,
        sleep=lambda seconds: None,
        **{"policy": policy, "dry_run": False, **options},
    )
    return reaper.run(), log.lines


def test_a_task_that_came_back_since_the_look_keeps_its_job(
    hook: AmtHook, client: Any, jobs: Callable[[int], list[str]]
) -> None:
    names = jobs(2)
    report, lines = reap(hook, {"run-0": [FAILED, WAITING], "run-1": [FAILED]})
    assert [one.decision.code for one in report.judged] == [ReapCode.TASK_WAITS, ReapCode.TASK_OVER]
    assert [status(client, name) == "InProgress" for name in names] == [True, False]
    assert f"warning: Tuning job {names[0]} is kept after all: its task is deferred (task_waits)." in lines
    assert report.to_dict()["stopped"] == 1


def test_a_tag_set_since_the_look_keeps_the_job(
    hook: AmtHook, client: Any, jobs: Callable[[int], list[str]]
) -> None:
    (name,) = jobs(1)
    arn = describe(client, name)["HyperParameterTuningJobArn"]

    def tag(asked: int) -> None:
        client.add_tags(ResourceArn=arn, Tags=[{"Key": KEEP_TAG, "Value": "debugging"}])

    report, _ = reap(hook, {"run-0": [FAILED]}, before=tag)
    assert [one.decision.code for one in report.judged] == [ReapCode.OPTED_OUT]
    assert status(client, name) == "InProgress"


def test_a_job_that_ended_since_the_look_is_no_error(
    hook: AmtHook, client: Any, jobs: Callable[[int], list[str]]
) -> None:
    (name,) = jobs(1)

    def stop(asked: int) -> None:
        if asked == 2:
            client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)

    report, _ = reap(hook, {"run-0": [FAILED]}, before=stop)
    assert (report.ended, report.errors) == ([name], [])
    assert report.to_dict()["stopped"] == 0


def test_a_stop_whose_answer_is_lost_counts(
    hook: AmtHook, amt: RunningServer, client: Any, jobs: Callable[[int], list[str]]
) -> None:
    jobs(1)
    lost = {"kind": "drop", "operations": ["StopHyperParameterTuningJob"], "when": "after", "first": 1}
    amt.set_faults({"seed": 1, "rules": [lost]})
    report, _ = reap(hook, {"run-0": [FAILED]})
    assert amt.faults()["applied"] == [1]
    assert (report.to_dict()["stopped"], report.ended, report.errors) == (1, [], [])


def test_an_error_on_one_job_keeps_no_other_from_being_stopped(
    hook: AmtHook, amt: RunningServer, client: Any, jobs: Callable[[int], list[str]]
) -> None:
    names = jobs(3)
    denied = {
        "kind": "error",
        "operations": ["StopHyperParameterTuningJob"],
        "code": "AccessDeniedException",
        "status": 400,
        "first": 1,
    }
    amt.set_faults({"seed": 1, "rules": [denied]})
    report, lines = reap(hook, {key: [FAILED] for key in ("run-0", "run-1", "run-2")})
    assert [one.stopped for one in report.judged] == [False, True, True]
    (error,) = report.errors
    assert error.startswith(f"Tuning job {names[0]} is an orphan and could not be stopped: ")
    assert "AccessDeniedException" in error
    assert f"error: {error}" in lines


def test_half_of_the_calls_failing_changes_nothing(
    hook: AmtHook, amt: RunningServer, client: Any, jobs: Callable[[int], list[str]]
) -> None:
    names = jobs(4)
    rule = {"kind": "error", "probability": 0.3, "code": "ThrottlingException", "status": 400}
    rules = [rule, {"kind": "drop", "probability": 0.2}]
    amt.set_faults({"seed": 4, "rules": rules})
    views = {"run-0": [FAILED], "run-1": [WAITING], "run-2": [FAILED], "run-3": [WAITING]}
    report, _ = reap(hook, views)
    applied = amt.faults()["applied"]
    amt.set_faults(None)
    assert report.errors == []
    assert all(applied)
    assert [status(client, name) == "InProgress" for name in names] == [False, True, False, True]
    assert report.to_dict()["stopped"] == 2


def test_where_aws_does_not_answer_the_rest_is_left(
    hook: AmtHook, amt: RunningServer, client: Any, jobs: Callable[[int], list[str]]
) -> None:
    names = jobs(3)
    amt.set_faults({"seed": 1, "rules": [{"kind": "drop", "operations": ["ListTags"]}]})
    report, _ = reap(hook, {})
    assert amt.faults()["applied"] == [6]  # attempts for the first job, and none for the others
    amt.set_faults(None)
    (error,) = report.errors
    assert error.startswith("Given up, the rest is left to the next run: ListTags")
    assert report.judged == []
    assert [status(client, name) for name in names] == ["InProgress"] * 3


def test_tags_that_may_not_be_read_are_an_error_and_keep_the_job(
    hook: AmtHook, amt: RunningServer, client: Any, jobs: Callable[[int], list[str]]
) -> None:
    names = jobs(2)
    denied = {"kind": "error", "operations": ["ListTags"], "code": "AccessDeniedException", "status": 400}
    amt.set_faults({"seed": 1, "rules": [{**denied, "first": 1}]})
    report, _ = reap(hook, {"run-1": [FAILED]})
    amt.set_faults(None)
    assert report.errors == [
        f"The tags of tuning job {names[0]} may not be read, it is kept. Fix: allow sagemaker:ListTags."
    ]
    assert [one.job.name for one in report.judged if one.stopped] == [names[1]]


def test_task_instances_that_cannot_be_read_are_an_error_and_keep_their_jobs(
    hook: AmtHook, client: Any, jobs: Callable[[int], list[str]]
) -> None:
    names = jobs(2)
    report, _ = reap(hook, {"run-0": [TaskView(found=None, problem="no answer")], "run-1": [FAILED]})
    assert report.errors == ["Task instances cannot be read, their tuning jobs are kept: no answer"]
    assert [status(client, name) == "InProgress" for name in names] == [True, False]


def test_a_kill_ends_it_between_two_jobs(
    hook: AmtHook, client: Any, jobs: Callable[[int], list[str]]
) -> None:
    names = jobs(3)
    killed: list[int] = []
    report, _ = reap(
        hook,
        {key: [FAILED] for key in ("run-0", "run-1", "run-2")},
        before=lambda asked: killed.append(asked) if asked == 2 else None,
        cancelled=lambda: bool(killed),
    )
    assert [one.stopped for one in report.judged] == [True]
    assert [status(client, name) == "InProgress" for name in names] == [False, True, True]


def test_only_jobs_that_are_asked_for_are_listed(
    hook: AmtHook, client: Any, jobs: Callable[[int], list[str]]
) -> None:
    names = jobs(2)
    views = {key: [FAILED] for key in ("run-0", "run-1")}
    # The embedded AMT's clock has run ahead of ours, so that its jobs are younger than any grace.
    assert reap(hook, views, policy=ReapPolicy())[0].in_progress == 0
    one, _ = reap(hook, views, dry_run=True, name_contains=names[1].upper())
    assert [judged.job.name for judged in one.judged] == [names[1]]
    none, _ = reap(
        hook, views, policy=ReapPolicy(grace=timedelta(0), dag_ids=frozenset({"another"})), dry_run=True
    )
    assert (none.in_progress, none.judged) == (2, [])


def test_a_result_lists_fifty_and_counts_all() -> None:
    owner = Owner(dag_id="churn", run_id="run", task_id="tune")
    job = OwnedJob(name="a", owner=owner, tags={}, age=timedelta(hours=1))
    decision = ReapDecision(code=ReapCode.TASK_OVER, reason="its task is failed")
    report = ReapReport(dry_run=False, in_progress=70)
    report.judged = [Judged(job=job, decision=decision, stopped=True)] * 60
    result = report.to_dict()
    assert (len(result["orphans"]), result["orphans_not_listed"], result["stopped"]) == (50, 10, 60)
    assert len(json.dumps(result)) < 16_384
    assert "60 orphans, 60 of them stopped" in report.summary()
