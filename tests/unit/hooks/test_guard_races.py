"""The guard when its stop meets somebody else's, or is not heard of: one stop, one record, one report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest

from airflow_amt.exceptions import AmtThrottledError
from airflow_amt.hooks.guard import Guard, Memory
from airflow_amt.hooks.sla import SlaReader, SlaSource
from airflow_amt.tuning.naming import STOPPED_BY_TAG
from airflow_amt.tuning.policies import TargetReached
from airflow_amt.tuning.progress import TuningProgress
from airflow_amt.tuning.stops import PolicyStop, Stop
from tests.unit.tasks import THROTTLED, FakeHook, describe, loud_log

NAME = "churn-model"
WHO = "churn run-1 tune"


@dataclass
class Aws(FakeHook):
    """A hook whose stops and records may fail."""

    stop_answers: list[Any] = field(default_factory=list)
    record_errors: list[Exception] = field(default_factory=list)

    def stop_tuning_job(
        self,
        name: str,
        *,
        stopped_by: str,
        detail: str | None = None,
        requested_by: str | None = None,
        policy: PolicyStop | None = None,
    ) -> bool:
        self.calls.append(("stop", (name, stopped_by, detail)))
        answer = self.stop_answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return bool(answer)

    def record_stop(self, arn: str, stop: Stop) -> None:
        super().record_stop(arn, stop)
        if self.record_errors:
            raise self.record_errors.pop(0)


def guard(hook: Aws, memory: Memory | None = None) -> Guard:
    log = loud_log()
    source = SlaSource.parse(TargetReached(0.5))
    amt: Any = hook
    return Guard(lambda: amt, NAME, SlaReader(source, log=log), log=log, requested_by=WHO, memory=memory)


def look(one: Guard, status: str) -> Any:
    description: Mapping[str, Any] = describe(NAME, status)
    return one.look(description, TuningProgress.from_describe(description))


def records(hook: Aws) -> list[Stop]:
    return [stop for _, stop in hook.named("record_stop")]


def test_a_stop_is_recorded_once_more_while_the_job_is_stopping_and_never_made_again() -> None:
    hook = Aws(stop_answers=[True], record_errors=[THROTTLED])
    one = guard(hook)
    made = look(one, "InProgress").stop
    assert made is not None
    with pytest.raises(AmtThrottledError):
        look(one, "Stopping")
    # The record is tried until it is there, and then no more.
    assert [look(one, status).stop for status in ("Stopping", "Stopping", "Stopped")] == [None] * 3
    assert [stop.tags() for stop in records(hook)] == [made.tags(), made.tags()]
    assert len(hook.named("stop")) == 1


def test_a_stop_is_recorded_by_the_process_that_goes_on() -> None:
    hook = Aws(stop_answers=[True])
    first = guard(hook)
    made = look(first, "InProgress").stop
    assert made is not None
    stored = json.loads(json.dumps(first.memory.to_dict()))
    second = guard(hook, Memory.parse(stored))
    assert look(second, "Stopping").stop is None
    assert look(second, "Stopped").stop is None
    assert [stop.tags() for stop in records(hook)] == [made.tags()]
    assert len(hook.named("stop")) == 1
    third = guard(hook, Memory.parse(second.memory.to_dict()))
    assert third.memory.unrecorded is None


def test_a_stop_that_somebody_else_makes_is_not_recorded() -> None:
    hook = Aws(stop_answers=[False])
    one = guard(hook)
    assert look(one, "InProgress").stop is None
    assert look(one, "Stopping").stop is None
    assert look(one, "Stopped").stop is None
    assert (records(hook), one.stop) == ([], None)
    assert len(hook.named("stop")) == 1


def test_a_stop_whose_answer_was_lost_is_settled_from_what_was_intended() -> None:
    intended = Stop(
        stopped_by="policy",
        requested_by=WHO,
        detail="as good as 0.5",
        policy=PolicyStop(code="target_reached", evidence={"launched": 2}),
    )
    hook = Aws(stop_answers=[THROTTLED, True], tags_of={NAME: intended.tags()}, record_errors=[THROTTLED])
    one = guard(hook)
    with pytest.raises(AmtThrottledError):
        look(one, "InProgress")
    with pytest.raises(AmtThrottledError):
        look(one, "Stopping")
    look(one, "Stopped")
    assert one.stop is not None
    assert one.stop.policy == intended.policy
    assert len(hook.named("stop")) == 2
    assert [stop.requested_by for stop in records(hook)] == [WHO, WHO]


def test_each_stopper_has_an_intent_of_its_own() -> None:
    stops = [Stop(stopped_by="policy", requested_by=who) for who in ("a", "b", "c")]
    stops.append(Stop(stopped_by="operator", requested_by="a"))
    tags = {key: value for one in stops for key, value in one.intent().items()}
    assert [one.own_intent(tags).requested_by for one in stops] == ["a", "b", "c", "a"]  # type: ignore[union-attr]
    read = list(Stop.intents(tags))
    assert len(read) == 4
    assert all(one.precedes(two) for one, two in pairwise(read))
    assert Stop.intended(tags) == read[0]
    # One that withdraws takes nobody else's with it.
    for key in stops[0].intent_keys():
        del tags[key]
    assert stops[0].own_intent(tags) is None
    assert len(list(Stop.intents(tags))) == 3
    # The record counts before all of them.
    assert Stop.from_tags({**tags, STOPPED_BY_TAG: "reaper"}) == Stop(stopped_by="reaper")


@pytest.mark.parametrize("who", ["churn run-1 tune", None])
def test_the_same_stopper_is_known_by_its_record(who: str | None) -> None:
    stop = Stop(stopped_by="policy", requested_by=who, detail="now")
    assert stop.recorded_in(Stop(stopped_by="policy", requested_by=who, detail="earlier").tags())
    assert not stop.recorded_in(Stop(stopped_by="policy", requested_by="another").tags())
    assert not stop.recorded_in(Stop(stopped_by="operator", requested_by=who).tags())
