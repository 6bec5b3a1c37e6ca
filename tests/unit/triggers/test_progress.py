"""The trigger of conditions: what it fires, how it ends a task by itself, and what it reads for that."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.triggers.base import TaskSkippedEvent, TaskSuccessEvent

from airflow_amt import _compat
from airflow_amt.triggers.progress import PROGRESS_TRIGGER_VERSION, AmtTuningProgressTrigger
from airflow_amt.tuning import (
    BudgetShareUsed,
    Condition,
    Converged,
    FirstUsableModel,
    NotImproving,
    TrainingJobsDone,
)
from airflow_amt.watch import polling
from tests.unit.tasks import (
    DENIED,
    THROTTLED,
    UNAVAILABLE,
    FakeHook,
    describe,
    fired,
    loud_log,
    stored,
    use_hook,
)
from tests.unit.tuning.factories import results, summary

NAME = "churn-model"


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "LONGEST_BACKOFF_SECONDS", 0.01)


def running(done: int, **more: Any) -> dict[str, Any]:
    """A tuning job in progress of which so many training jobs are done."""
    return describe(
        TrainingJobStatusCounters={"Completed": done, "InProgress": 1},
        ObjectiveStatusCounters={"Succeeded": done},
        **more,
    )


def trigger(hook: FakeHook, condition: Any, **options: Any) -> AmtTuningProgressTrigger:
    given = condition.to_dict() if isinstance(condition, Condition) else condition
    made = stored(
        AmtTuningProgressTrigger(
            **{"tuning_job_name": NAME, "condition": given, "check_interval": 0.02, **options}
        )
    )
    assert isinstance(made, AmtTuningProgressTrigger)
    use_hook(made, hook)
    return made


async def the_event_of(made: AmtTuningProgressTrigger) -> Any:
    (event,) = [event async for event in made.run()]
    return event


def event_of(made: AmtTuningProgressTrigger) -> Any:
    return asyncio.run(the_event_of(made))


def test_it_fires_while_the_job_runs_with_the_evidence() -> None:
    hook = FakeHook({NAME: [running(0), running(1), running(2), running(3)]})
    payload = fired(trigger(hook, TrainingJobsDone(2), state={"mine": 1}))
    result = payload.pop("result")
    assert payload == {
        "version": PROGRESS_TRIGGER_VERSION,
        "tuning_job_name": NAME,
        "status": "InProgress",
        "event": "condition",
        "error": None,
        "state": {"mine": 1, "deadline": None},
    }
    assert result["fired"] == "condition"
    assert result["training_job_counters"]["Completed"] == 2
    assert result["condition"]["because"] == ["training_jobs_done"]
    assert [kind for kind, _ in hook.calls] == ["describe"] * 3


def test_it_fires_when_the_job_is_over_though_the_condition_is_not_met() -> None:
    payload = fired(trigger(FakeHook({NAME: ["InProgress", "Completed"]}), Converged()))
    assert (payload["event"], payload["result"]["fired"]) == ("ended", "end")


@pytest.mark.parametrize("end_from_trigger", [False, True])
def test_it_tells_an_end_as_a_list_tells_it_if_a_worker_looks_at_it_anyhow(
    end_from_trigger: bool, published: Published
) -> None:
    names = [f"job-{number}" for number in range(8)]
    hook = FakeHook({name: ["InProgress"] for name in names})

    async def run() -> list[Any]:
        made = [
            trigger(
                hook,
                Converged(),
                tuning_job_name=name,
                check_interval=0.3,
                on_end="fail",
                end_from_trigger=end_from_trigger,
            )
            for name in names
        ]
        tasks = [asyncio.create_task(the_event_of(one)) for one in made]
        await asyncio.sleep(0.6)
        hook.calls.clear()
        for name in names:
            hook.script[name] = ["Completed"]
        return [event.payload for event in await asyncio.gather(*tasks)]

    payloads = asyncio.run(run())
    assert {(one["event"], one["status"]) for one in payloads} == {("ended", "Completed")}
    described = [call for call in hook.calls if call[0] == "describe"]
    if end_from_trigger:
        assert all(one["result"]["fired"] == "end" for one in payloads)
        assert len(described) >= len(names)
    else:
        assert len([one for one in payloads if one["result"] is None]) >= 4
        assert len(described) <= 4


def test_it_fires_at_its_deadline() -> None:
    deadline = (datetime.now(UTC) + timedelta(seconds=0.1)).isoformat()
    payload = fired(trigger(FakeHook({NAME: ["InProgress"]}), Converged(), deadline=deadline))
    assert (payload["event"], payload["state"]) == ("deadline", {"deadline": deadline})


@pytest.mark.parametrize("zone", [UTC, None], ids=["aware", "naive"])
def test_without_a_deadline_it_takes_airflows_own_time_limit(zone: Any) -> None:
    made = trigger(FakeHook({NAME: ["InProgress"]}), Converged(), seconds_before_timeout=60.0)
    end = datetime.now(UTC) + timedelta(seconds=60.1)
    made.timeout_after = end.replace(tzinfo=zone)
    payload = fired(made)
    assert payload["event"] == "deadline"
    assert payload["state"] == {"deadline": (end - timedelta(seconds=60)).isoformat()}


def test_errors_are_those_of_the_other_trigger() -> None:
    assert fired(trigger(FakeHook({NAME: [DENIED]}), Converged()))["event"] == "error"
    hook = FakeHook({NAME: [THROTTLED, "Completed"]})
    assert fired(trigger(hook, Converged()))["event"] == "ended"


@pytest.mark.parametrize(
    ("condition", "on_end"),
    [({"type": "nonsense"}, "succeed"), ("{'type': 'converged'}", "fail"), ({"type": "converged"}, "x")],
)
def test_arguments_that_it_cannot_use_are_left_to_a_worker(
    condition: Any, on_end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = loud_log()
    monkeypatch.setattr(AmtTuningProgressTrigger, "log", log)
    hook = FakeHook({NAME: ["InProgress"]})
    payload = fired(trigger(hook, condition, on_end=on_end, state={"mine": 1}))
    assert (payload["event"], payload["state"]["mine"]) == ("unusable", 1)
    assert hook.calls == []
    assert log.lines == ["exception: The trigger cannot use its arguments; a worker looks at them"]


# --- the list of training jobs -----------------------------------------------------------------


def listed(*objectives: float | None) -> list[dict[str, Any]]:
    return [summary(one) for one in results(objectives)]


def test_the_list_is_not_read_for_what_the_snapshot_says() -> None:
    details = {"TuningJobCompletionDetails": {"NumberOfTrainingJobsObjectiveNotImproving": 3}}
    hook = FakeHook({NAME: [running(4), running(4, **details)]}, lists={NAME: [listed(1, 0, 0, 0)]})
    assert fired(trigger(hook, NotImproving(3)))["event"] == "condition"
    assert hook.named("list_training_jobs") == [NAME]  # only for the first snapshot, which lacks AMT's number
    assert fired(trigger(hook, FirstUsableModel() | NotImproving(99)))["event"] == "condition"
    assert hook.named("list_training_jobs") == [NAME]


def test_the_list_is_read_again_only_when_the_counters_changed() -> None:
    answers = [running(2), running(2), running(2), running(3), running(3), running(4)]
    hook = FakeHook({NAME: answers}, lists={NAME: [listed(1, 0), listed(1, 0, 0), listed(1, 0, 0, 0)]})
    assert fired(trigger(hook, NotImproving(3)))["event"] == "condition"
    assert [kind for kind, _ in hook.calls] == [
        "describe",
        "list_training_jobs",
        "describe",
        "describe",
        "describe",
        "list_training_jobs",
        "describe",
        "describe",
        "list_training_jobs",
    ]


def test_a_list_that_lags_behind_the_counters_is_read_again() -> None:
    hook = FakeHook({NAME: [running(4)]}, lists={NAME: [listed(1, 0), listed(1, 0, 0, 0)]})
    assert fired(trigger(hook, NotImproving(3)))["event"] == "condition"
    assert len(hook.named("list_training_jobs")) == 2


def test_errors_of_the_list_are_errors_of_reading() -> None:
    condition = BudgetShareUsed(1, of="training_time", training_time=timedelta(seconds=30))
    hook = FakeHook({NAME: [running(3)]}, lists={NAME: [THROTTLED, listed(1, 2, 3)]})
    assert fired(trigger(hook, condition))["event"] == "condition"
    hook = FakeHook({NAME: [running(3)]}, lists={NAME: [DENIED]})
    assert fired(trigger(hook, condition))["error"]["code"] == "AccessDeniedException"


# --- ending the task ---------------------------------------------------------------------------


def test_lists_do_not_hasten_descriptions_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "LONGEST_BACKOFF_SECONDS", 300.0)

    class Failing(FakeHook):
        """Its lists work, and of its descriptions only the first of each job."""

        def describe_tuning_job(self, name: str) -> dict[str, Any]:
            if name in self.named("describe"):
                self.calls.append(("describe", name))
                raise UNAVAILABLE
            return super().describe_tuning_job(name)

    names = [f"job-{number}" for number in range(10)]
    hook = Failing({name: ["InProgress"] for name in names})

    async def run() -> None:
        made = [trigger(hook, Converged() if name < "job-5" else TrainingJobsDone(9)) for name in names]
        for one, name in zip(made, names, strict=True):
            one.tuning_job_name = name
            one.check_interval = 0.1
        tasks = [asyncio.ensure_future(anext(one.run())) for one in made]
        await asyncio.sleep(2.0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())
    assert len(hook.named("list_page")) >= 5
    # After the first failure a second passes until the next attempt, and then two.
    counts = Counter(hook.named("describe"))
    assert max(counts[name] for name in names[:5]) <= 3
    assert sum(counts[name] for name in names[:5]) > 5


def test_convergence_that_is_told_late_is_seen_though_no_counter_changed() -> None:
    hook = FakeHook({NAME: ["InProgress"], "other": ["InProgress"], "third": ["InProgress"]})
    late = {"ConvergenceDetectedTime": datetime(2026, 1, 1, tzinfo=UTC)}

    async def run() -> Any:
        others = [trigger(hook, TrainingJobsDone(9)) for _ in range(2)]
        for one, name in zip(others, ("other", "third"), strict=True):
            one.tuning_job_name = name
        running = [asyncio.ensure_future(anext(one.run())) for one in others]
        waiting = asyncio.ensure_future(anext(trigger(hook, Converged()).run()))
        await asyncio.sleep(0.3)
        hook.script[NAME] = [describe(NAME, "InProgress", TuningJobCompletionDetails=late)]
        began = asyncio.get_running_loop().time()
        async with asyncio.timeout(5):
            event = await waiting
        assert asyncio.get_running_loop().time() - began < 1.0
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        return event

    payload = asyncio.run(run()).payload
    assert payload["event"] == "condition"
    assert hook.named("list_page")


class Published(dict[str, Any]):
    """The XComs that a trigger pushed; ``error`` is raised instead."""

    error: Exception | None = None


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Published:
    """Take what a trigger pushes, at the boundary to the triggerer's supervisor."""
    made = Published()

    def push(ti: Any, values: Any) -> None:
        if made.error is not None:
            raise made.error
        json.dumps(values)
        made.update(values)

    monkeypatch.setattr(_compat, "push_xcoms", push)
    return made


def test_it_ends_the_task_when_the_condition_is_met(published: Published) -> None:
    hook = FakeHook({NAME: [running(1)]})
    event = event_of(trigger(hook, FirstUsableModel(), end_from_trigger=True, on_end="fail"))
    assert isinstance(event, TaskSuccessEvent)
    # Airflow would store what is in the event as text within text.
    assert event.xcoms is None
    result = published["return_value"]
    assert published["progress"] == result
    assert (result["fired"], result["status"]) == ("condition", "InProgress")
    assert published["_link_AmtTuningJobLink"].endswith(f"/{NAME}")


@pytest.mark.parametrize("status", ["Completed", "Stopped"])
def test_the_end_of_the_job_ends_the_task_as_on_end_says(status: str, published: Published) -> None:
    def event(on_end: str) -> Any:
        published.clear()
        hook = FakeHook({NAME: [status]})
        return event_of(trigger(hook, Converged(), end_from_trigger=True, on_end=on_end))

    assert isinstance(event("succeed"), TaskSuccessEvent)
    assert published["return_value"]["fired"] == "end"
    assert isinstance(event("skip"), TaskSkippedEvent)
    assert set(published) == {"progress", "_link_AmtTuningJobLink"}
    failed = event("fail")
    assert not isinstance(failed, (TaskSuccessEvent, TaskSkippedEvent))
    assert (failed.payload["event"], published) == ("ended", {})


def test_a_failure_is_left_to_a_worker(published: Published) -> None:
    event = event_of(trigger(FakeHook({NAME: ["Failed"]}), Converged(), end_from_trigger=True))
    assert (event.payload["event"], published) == ("ended", {})


@pytest.mark.parametrize("answers", [["InProgress"], [DENIED]], ids=["deadline", "error"])
def test_a_deadline_and_an_error_are_left_to_a_worker(answers: list[Any], published: Published) -> None:
    deadline = (datetime.now(UTC) + timedelta(seconds=0.05)).isoformat()
    made = trigger(FakeHook({NAME: answers}), Converged(), end_from_trigger=True, deadline=deadline)
    assert event_of(made).payload["event"] in ("deadline", "error")
    assert published == {}


def test_a_result_that_cannot_be_published_is_left_to_a_worker(published: Published) -> None:
    published.error = RuntimeError("the API server is away")
    made = trigger(FakeHook({NAME: [running(1)]}), FirstUsableModel(), end_from_trigger=True)
    payload = event_of(made).payload
    assert (payload["event"], payload["result"]["fired"]) == ("condition", "condition")


def test_outside_of_a_triggerer_it_leaves_the_end_to_a_worker() -> None:
    made = trigger(FakeHook({NAME: [running(1)]}), FirstUsableModel(), end_from_trigger=True)
    assert event_of(made).payload["event"] == "condition"


def test_an_arn_without_a_link_ends_the_task_too(published: Published) -> None:
    hook = FakeHook({NAME: [running(1, HyperParameterTuningJobArn="")]})
    event_of(trigger(hook, FirstUsableModel(), end_from_trigger=True))
    assert set(published) == {"progress", "return_value"}


def test_a_kill_of_the_task_leaves_the_job_alone() -> None:
    hook = FakeHook({NAME: ["InProgress"]})
    asyncio.run(trigger(hook, Converged()).on_kill())
    assert hook.calls == []
