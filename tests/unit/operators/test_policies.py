"""The operator that holds its tuning job to stop policies: waiting on a worker, and deferred."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import Any, cast

import pytest
from airflow.sdk import DAG

from airflow_amt import _compat
from airflow_amt.exceptions import AmtRequestError
from airflow_amt.hooks.errors import aws_error
from airflow_amt.operators.tuning import AmtTuningJobOperator
from airflow_amt.task_exceptions import AmtTuningJobStopped
from airflow_amt.tuning.costs import PriceTable
from airflow_amt.tuning.policies import Budget, Deadline, MaxFailedTrainingJobs, MinimumJobs, Rule, Sla
from airflow_amt.watch import polling
from tests.unit.people import FakePeople, RefusedError, install
from tests.unit.requests import create_request
from tests.unit.tasks import (
    ARN,
    CREATED_AT,
    DENIED,
    OWNER,
    THROTTLED,
    FakeHook,
    describe,
    fired,
    run_task,
    stored,
    task_context,
    use_hook,
)

try:
    from airflow.sdk.exceptions import TaskDeferred
except ImportError:  # Airflow 3.1
    from airflow.exceptions import TaskDeferred  # type: ignore[no-redef]

NAME = "churn-model"
TOLD = "airflow-amt:policy-told"
WAYS = pytest.mark.parametrize("deferrable", [False, True], ids=["sync", "deferred"])
TOO_MANY_TAGS = aws_error("AddTags", "ValidationException", "too many tags", 400)
#: Two of at most four training jobs have ended, so at share 0.5 it is due, at 1 not.
HALF = MinimumJobs(4)
WARN = Rule.of(HALF, warn_at=0.5, name="half")
ASK = Rule(policy=HALF, steps=Rule.of(HALF, ask_at=0.5).steps, name="half")
NOW = MinimumJobs(2)


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "LONGEST_BACKOFF_SECONDS", 0.01)


@pytest.fixture
def people(monkeypatch: pytest.MonkeyPatch) -> FakePeople:
    return install(monkeypatch)


def operator(**options: Any) -> AmtTuningJobOperator:
    options = {"check_interval": 0.1, "deferrable": False, "config": create_request(), **options}
    return AmtTuningJobOperator(task_id="tune", **options)


class Tagging(FakeHook):
    """A hook whose AddTags fails as scripted."""

    def __init__(self, *errors: Exception, **fields: Any) -> None:
        super().__init__(**fields)
        self.errors = list(errors)

    def add_tags(self, arn: str, tags: Mapping[str, str]) -> bool:
        if self.errors:
            error = self.errors.pop(0) if len(self.errors) > 1 else self.errors[0]
            if error is not OK:
                raise error
        return super().add_tags(arn, tags)


OK = Exception("let it through")


def run(hook: FakeHook, context: Any = None, **options: Any) -> tuple[Any, list[dict[str, Any]]]:
    return run_task(lambda: operator(**options), context or task_context(), hook)


def stopped(hook: FakeHook) -> list[tuple[str, str | None]]:
    return [(one.stopped_by, None if one.policy is None else one.policy.rule) for one in hook.stops]


class Callback:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []

    def __call__(self, context: Any) -> None:
        json.dumps(context["policy"], allow_nan=False)
        assert context["ti"].task_id == "tune"
        self.reports.append(context["policy"])


# --- stopping ----------------------------------------------------------------------------------


@WAYS
def test_a_breach_stops_the_job_and_keeps_the_best(deferrable: bool) -> None:
    hook, heard = FakeHook(), Callback()
    result, _ = run(hook, policies=NOW, deferrable=deferrable, on_policy_callback=heard)
    assert stopped(hook) == [("policy", "minimum_jobs")]
    assert result["reason"] == "stopped_by_provider"
    assert result["evidence"]["policy"] == "minimum_jobs"
    (report,) = heard.reports
    assert (report["rule"], report["action"], report["task_id"]) == ("minimum_jobs", "stop", "tune")
    assert report["outcome"]["status"] == "Stopped"


@WAYS
def test_stop_and_fail_fails_the_task_and_tells_once(deferrable: bool) -> None:
    hook, heard = FakeHook(), Callback()
    with pytest.raises(AmtTuningJobStopped):
        run(
            hook,
            policies=Rule.of(NOW, action="stop_and_fail"),
            deferrable=deferrable,
            on_policy_callback=[heard],
        )
    assert [one["action"] for one in heard.reports] == ["stop_and_fail"]


@WAYS
def test_a_mapped_task_hears_of_its_stop(deferrable: bool) -> None:
    # The brackets of its label are no characters of a tag's value.
    hook, heard = FakeHook(), Callback()
    run(
        hook,
        task_context(map_index=3),
        policies=NOW,
        deferrable=deferrable,
        on_policy_callback=heard,
        config=create_request(),
    )
    assert len(heard.reports) == 1


def test_a_stop_of_another_task_is_not_told() -> None:
    hook, heard = FakeHook(), Callback()
    run(hook, policies=NOW)
    (stop,) = hook.stops
    theirs = {**stop.tags(), "airflow-amt:stopped-for": "another run task"}
    hook = FakeHook(script={NAME: ["Stopped"]})
    create = hook.create_tuning_job

    def created(request: Mapping[str, Any]) -> str:
        arn = create(request)
        hook.add_tags(arn, theirs)
        return arn

    hook.create_tuning_job = created  # type: ignore[method-assign]
    result, _ = run(hook, policies=NOW, on_policy_callback=heard)
    assert result["evidence"]["policy"] == "minimum_jobs"
    assert heard.reports == []


def test_in_the_triggerer_the_stop_needs_no_worker() -> None:
    later = describe(TrainingJobStatusCounters={"Completed": 3}, ObjectiveStatusCounters={"Succeeded": 3})
    # Create and first read by the worker, then two reads by the trigger.
    hook = FakeHook(script={NAME: ["InProgress", "InProgress", "InProgress", later, later]})
    result, events = run(hook, policies=MinimumJobs(3), deferrable=True)
    assert [one["event"] for one in events] == ["ended"]
    assert events[0]["state"]["known_stop"]["airflow-amt:stopped-by"] == "policy"
    # Nothing was written into tags; the trigger's word is enough.
    assert result["evidence"]["policy"] == "minimum_jobs"


def test_the_deadline_of_the_task_does_not_hide_a_stop_by_policy() -> None:
    """Both in one read: the policy stopped it, so the deadline has nothing more to stop."""
    hook, heard = FakeHook(), Callback()
    result, _ = run(hook, policies=NOW, max_ingestion_time=0, on_policy_callback=heard)
    assert stopped(hook) == [("policy", "minimum_jobs")]
    assert result["evidence"].get("policy") == "minimum_jobs"
    assert len(heard.reports) == 1


# --- warning -----------------------------------------------------------------------------------


@WAYS
def test_people_are_told_of_a_warning_once(deferrable: bool) -> None:
    hook = FakeHook(script={NAME: [*["InProgress"] * 5, "Completed"]})
    heard = Callback()
    _, events = run(hook, policies=WARN, deferrable=deferrable, on_policy_callback=heard)
    assert [one["id"] for one in heard.reports] == ["half:warn@0.5"]
    assert (hook.tags(ARN + NAME) or {})[TOLD] == "half:warn@0.5"
    assert [one["event"] for one in events] == (["ended"] if deferrable else [])


def test_the_trigger_fires_for_a_warning_and_a_worker_tells_it() -> None:
    half = describe()
    before = describe(TrainingJobStatusCounters={"Completed": 1}, ObjectiveStatusCounters={"Succeeded": 1})
    hook = FakeHook(script={NAME: [before, before, half, half, half, half, "Completed"]})
    heard = Callback()
    _, events = run(hook, policies=WARN, deferrable=True, on_policy_callback=heard)
    assert [one["event"] for one in events] == ["policy", "ended"]
    assert [one["id"] for one in heard.reports] == ["half:warn@0.5"]


def test_a_callback_that_fails_decides_nothing() -> None:
    def broken(context: Any) -> None:
        raise ValueError("no mail server")

    heard = Callback()
    hook = FakeHook(script={NAME: [*["InProgress"] * 3, "Completed"]})
    run(hook, policies=WARN, on_policy_callback=[broken, heard])
    assert len(heard.reports) == 1


@WAYS
@pytest.mark.parametrize("error", [THROTTLED, TOO_MANY_TAGS, DENIED], ids=["throttled", "full", "denied"])
def test_tags_that_cannot_be_written_end_no_task(error: Exception, deferrable: bool) -> None:
    heard = Callback()
    hook = Tagging(error, script={NAME: [*["InProgress"] * 6, "Completed"]})
    run(hook, policies=WARN, deferrable=deferrable, on_policy_callback=heard)
    assert [one["id"] for one in heard.reports] == ["half:warn@0.5"]


def test_tags_that_were_throttled_are_written_at_the_next_look() -> None:
    hook = Tagging(THROTTLED, OK, script={NAME: [*["InProgress"] * 6, "Completed"]})
    run(hook, policies=WARN, on_policy_callback=Callback())
    assert (hook.tags(ARN + NAME) or {})[TOLD] == "half:warn@0.5"


# --- what is missing ---------------------------------------------------------------------------


@WAYS
def test_other_rules_count_where_training_jobs_may_not_be_listed(deferrable: bool) -> None:
    hook = FakeHook(lists={NAME: [DENIED]})
    result, _ = run(
        hook,
        policies=Sla(rules=(Rule(policy=Budget(1e6, unit="compute_seconds")), Rule(policy=NOW))),
        deferrable=deferrable,
    )
    assert result["evidence"]["policy"] == "minimum_jobs"


def many(count: int) -> list[dict[str, Any]]:
    """Training jobs that ended, each after an hour on one instance."""
    return [
        {
            "TrainingJobName": f"{NAME}-{number:03}",
            "TrainingJobStatus": "Completed",
            "CreationTime": CREATED_AT,
            "TrainingStartTime": CREATED_AT,
            "TrainingEndTime": CREATED_AT + timedelta(hours=1),
            "FinalHyperParameterTuningJobObjectiveMetric": {"MetricName": "accuracy", "Value": 0.9},
        }
        for number in range(count)
    ]


def ended(count: int) -> dict[str, Any]:
    return describe(
        TrainingJobStatusCounters={"Completed": count}, ObjectiveStatusCounters={"Succeeded": count}
    )


def billed(name: str, seconds: int = 60) -> dict[str, Any]:
    return {
        "TrainingJobName": name,
        "TrainingJobStatus": "Completed",
        "BillableTimeInSeconds": seconds,
        "TrainingTimeInSeconds": 3600,
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1},
    }


BILLED = Rule(policy=Budget(750 * 3600.0 * 0.9, unit="billable_seconds", counting="spent"), name="billed")


def test_a_budget_is_decided_by_what_all_training_jobs_are_billed_for() -> None:
    """By their estimates it would be used up; that is told from the bill, read once for each."""
    hook = FakeHook(script={NAME: [*[ended(750)] * 4, "Completed"]}, training_jobs_of={NAME: many(750)})
    hook.described = {one["TrainingJobName"]: billed(one["TrainingJobName"]) for one in many(750)}
    run(hook, policies=BILLED)
    assert hook.stops == []
    described = hook.named("describe_training_job")
    assert len(described) == len(set(described)) == 750


def test_a_stop_for_another_reason_waits_for_no_bill() -> None:
    hook = FakeHook(script={NAME: [ended(750)]}, training_jobs_of={NAME: many(750)})
    hook.described = {one["TrainingJobName"]: billed(one["TrainingJobName"]) for one in many(750)}
    run(hook, policies=Sla(rules=(Rule(policy=NOW), BILLED)))
    assert stopped(hook) == [("policy", "minimum_jobs")]
    assert len(hook.named("describe_training_job")) == 25


def test_a_bill_that_is_throttled_keeps_no_other_rule_from_counting() -> None:
    hook = FakeHook(script={NAME: [ended(3)]}, training_jobs_of={NAME: many(3)})
    hook.described = dict.fromkeys([one["TrainingJobName"] for one in many(3)], THROTTLED)
    result, _ = run(hook, policies=Sla(rules=(Rule(policy=NOW), BILLED)))
    assert result["evidence"]["policy"] == "minimum_jobs"
    assert len(hook.named("describe_training_job")) == 1


def test_the_name_of_a_rule_stays_as_it_is() -> None:
    hook = FakeHook()
    result, _ = run(hook, policies=Rule(policy=NOW, name="007"), deferrable=True)
    assert result["evidence"]["rule"] == "007"


def test_a_job_that_is_over_is_not_listed_for_its_policies() -> None:
    hook = FakeHook(script={NAME: ["Completed"]})
    run(hook, policies=Budget(1.0, unit="compute_seconds"))
    assert hook.named("list_training_jobs") == []


# --- asking ------------------------------------------------------------------------------------


def defer(hook: FakeHook, context: Any, **options: Any) -> TaskDeferred:
    task = operator(**{"deferrable": True, "policies": ASK, **options})
    use_hook(task, hook)
    with pytest.raises(TaskDeferred) as caught:
        task.execute(context)
    return caught.value


def resume(hook: FakeHook, context: Any, deferral: TaskDeferred, event: Any, **options: Any) -> Any:
    task = operator(deferrable=True, policies=ASK, **options)
    use_hook(task, hook)
    return task.resume_execution(deferral.method_name, {**(deferral.kwargs or {}), "event": event}, context)


def watched(hook: FakeHook, context: Any, deferral: TaskDeferred) -> Any:
    trigger = stored(deferral.trigger)
    trigger.first_read_at = None
    trigger.task_instance = context["ti"]
    use_hook(trigger, hook)
    return trigger


def airflows_event(*chosen: str, **params: Any) -> dict[str, Any]:
    return {
        "chosen_options": list(chosen),
        "params_input": params,
        "responded_at": datetime(2026, 1, 1, tzinfo=UTC),
        "responded_by_user": {"id": "7", "name": "Ada"},
        "timedout": False,
    }


def test_people_are_asked_and_the_trigger_takes_their_answer(people: FakePeople) -> None:
    hook, context, heard = FakeHook(), task_context(), Callback()
    deferral = defer(hook, context, on_policy_callback=heard)
    question = people.question(context["ti"].id)
    assert "Stop and use the best" in question.options
    assert [one["action"] for one in heard.reports] == ["ask"]
    people.answer(context["ti"].id, "Stop and use the best")
    event = fired(watched(hook, context, deferral))
    assert stopped(hook) == [("policy", "half")]
    result = resume(hook, context, deferral, event, on_policy_callback=heard)
    assert "Ada" in result["evidence"]["detail"]
    assert [one["action"] for one in heard.reports] == ["ask", "stop"]


@pytest.mark.parametrize("answer", ["Stop and use the best", "Continue"])
def test_airflow_resumes_the_task_with_the_answer(people: FakePeople, answer: str) -> None:
    hook, context = FakeHook(), task_context()
    deferral = defer(hook, context)
    with pytest.raises(TaskDeferred) as again:
        resume(hook, context, deferral, airflows_event(answer))
    memory = again.value.trigger.serialize()[1]["memory"]
    assert memory["asked"] is None
    assert [one["choice"] for one in memory["answers"]] == ["continue" if answer == "Continue" else "stop"]
    assert stopped(hook) == ([] if answer == "Continue" else [("policy", "half")])
    if answer != "Continue":
        event = fired(watched(hook, context, again.value))
        result = resume(hook, context, again.value, event)
        assert "Ada" in result["evidence"]["detail"]


def test_an_answer_to_the_question_of_an_earlier_try_ends_no_task(people: FakePeople) -> None:
    """A try that has not asked (yet) is resumed by Airflow 3.3 when the question before it is answered."""
    before = describe(TrainingJobStatusCounters={"Completed": 1}, ObjectiveStatusCounters={"Succeeded": 1})
    hook, context = FakeHook(script={NAME: [before]}), task_context()
    deferral = defer(hook, context)
    assert people.details == {}
    with pytest.raises(TaskDeferred):
        resume(hook, context, deferral, airflows_event("Continue"))


def test_the_next_try_asks_again(people: FakePeople) -> None:
    hook, first = FakeHook(), task_context()
    defer(hook, first)
    # A try that ended left word of what was told and answered, and no memory.
    hook.add_tags(ARN + NAME, {TOLD: "half:ask@0.5", "airflow-amt:policy-answers": "other=continue:Ada"})
    second = task_context(try_number=2)
    memory = defer(hook, second).trigger.serialize()[1]["memory"]
    assert memory["asked"]["number"] == 1
    assert set(people.details) == {str(first["ti"].id), str(second["ti"].id)}


def test_the_next_try_stops_as_a_person_decided_though_the_rule_is_kept_again(people: FakePeople) -> None:
    before = describe(TrainingJobStatusCounters={"Completed": 1}, ObjectiveStatusCounters={"Succeeded": 1})
    hook = FakeHook(script={NAME: [before]})
    context = task_context()
    defer(hook, context)
    hook.add_tags(ARN + NAME, {"airflow-amt:policy-answers": "half=stop:Ada"})
    defer(hook, task_context(try_number=2))
    assert stopped(hook) == [("policy", "half")]


def test_nobody_answers_and_the_default_counts(people: FakePeople, monkeypatch: pytest.MonkeyPatch) -> None:
    hook, context = FakeHook(), task_context()
    deferral = defer(hook, context, ask_timeout=1)
    trigger = watched(hook, context, deferral)
    assert trigger.memory["asked"]["until"] is not None
    trigger.memory["asked"]["until"] = datetime(2026, 1, 1, tzinfo=UTC).isoformat()
    event = fired(trigger)
    assert people.details[str(context["ti"].id)]["answer"].responded_by_user is None
    result = resume(hook, context, deferral, event)
    assert "Nobody answered in time" in result["evidence"]["detail"]


def test_a_question_that_cannot_be_put_gets_its_default_in_time(people: FakePeople) -> None:
    people.broken = [RefusedError(500)]
    hook, context = FakeHook(), task_context()
    deferral = defer(hook, context)
    trigger = watched(hook, context, deferral)
    trigger.memory["asked"]["until"] = datetime(2026, 1, 1, tzinfo=UTC).isoformat()
    fired(trigger)
    assert stopped(hook) == [("policy", "half")]


def test_an_answer_about_a_rule_that_is_gone_ends_nothing(
    people: FakePeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {"sla": json.dumps({"rules": [ASK.to_dict()]})}
    monkeypatch.setattr(_compat, "read_variable", kept.__getitem__)
    hook, context = FakeHook(), task_context()
    task = operator(deferrable=True, policies="variable:sla")
    use_hook(task, hook)
    with pytest.raises(TaskDeferred) as caught:
        task.execute(context)
    kept["sla"] = json.dumps({"rules": [{"type": "minimum_jobs", "count": 100, "name": "other"}]})
    people.answer(context["ti"].id, "Stop and use the best")
    hook.script[NAME] = ["InProgress", "InProgress", "Completed"]
    event = fired(watched(hook, context, caught.value))
    assert (event["event"], hook.stops) == ("ended", [])
    assert event["state"]["memory"]["asked"] is None


def test_a_task_on_a_worker_cannot_come_to_ask(monkeypatch: pytest.MonkeyPatch, people: FakePeople) -> None:
    """The SLA begins without a question, and gets one while the task waits."""
    texts = [json.dumps({"rules": [WARN.to_dict()]})] * 3 + [json.dumps({"rules": [ASK.to_dict()]})]
    monkeypatch.setattr("airflow_amt.hooks.sla._KEPT_SECONDS", 0.0)
    monkeypatch.setattr(_compat, "read_variable", lambda key: texts.pop(0) if len(texts) > 1 else texts[0])
    hook = FakeHook(script={NAME: [*["InProgress"] * 8, "Completed"]})
    run(hook, policies="variable:sla")
    assert people.details == {}
    # Told once, not at each look.
    told = [tags[TOLD] for _, tags in hook.named("add_tags") if TOLD in tags]
    assert told == ["half:warn@0.5", "half:warn@0.5 half:ask@0.5"]


# --- what an author can get wrong --------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"policies": Budget}, "policies"),
        ({"policies": 50}, "policies"),
        ({"policies": "budget"}, "policies"),
        ({"policies": "variable:"}, "policies"),
        ({"policies": {"budget": 50}}, "policies.budget"),
        ({"policies": []}, "policies.rules"),
        ({"policies": Budget(50)}, "policies.prices"),
        ({"policies": {"type": "budgett", "limit": 5}}, "policies.rules[0].type"),
        ({"policies": {"type": "deadline", "by": "06:00"}}, "policies.rules[0]"),
        ({"policies": ASK}, "deferrable"),
        ({"policies": ASK, "deferrable": True, "ask_default": "raise"}, "ask_default"),
        ({"policies": ASK, "deferrable": True, "ask_timeout": "1h"}, "ask_timeout"),
        ({"policies": ASK, "deferrable": True, "ask_assigned_users": [7]}, "ask_assigned_users[0]"),
        ({"policies": NOW, "on_policy_callback": "mail"}, "on_policy_callback"),
        ({"policies": NOW, "on_policy_callback": [print, 5]}, "on_policy_callback"),
        ({"policies": NOW, "wait_for_completion": False}, "policies"),
        ({"plan_limits": 50}, "plan_limits"),
        ({"plan_limits": {"max_price": 5}}, "plan_limits"),
        ({"plan_limits": {"max_cost": "dear"}}, "plan_limits.max_cost"),
        ({"plan_limits": {"max_cost": 5}}, "plan_limits.prices"),
        ({"plan_limits": {"max_cost": 5, "prices": 3}}, "plan_limits.prices"),
    ],
)
def test_a_mistake_is_named_before_a_job_is_created(options: dict[str, Any], field: str) -> None:
    hook = FakeHook()
    with pytest.raises(AmtRequestError) as caught:
        run(hook, **options)
    assert any(one.field.startswith(field) for one in caught.value.problems), str(caught.value)
    assert hook.named("create") == []


def test_a_price_table_may_be_an_object() -> None:
    prices = PriceTable(currency="EUR", per_hour={"ml.m5.large": 1e9, "ml.m5.xlarge": 1e9})
    task = operator(plan_limits={"max_cost": "{{ most }}", "prices": prices})
    json.dumps(task.plan_limits)
    task.render_template_fields(cast("Any", {"most": 1}))
    with pytest.raises(AmtRequestError, match="EUR"):
        task._checked(OWNER)


def test_all_mistakes_are_named_at_once() -> None:
    wrong = {"ask_default": "yes", "ask_timeout": "1h", "ask_assigned_users": [7], "on_policy_callback": "f"}
    with pytest.raises(AmtRequestError) as caught:
        run(FakeHook(), policies=ASK, **wrong)
    fields = {one.field for one in caught.value.problems}
    assert fields == {*wrong, "deferrable", "ask_assigned_users[0]"} - {"ask_assigned_users"}


def test_a_plan_in_money_waits_for_prices_that_airflow_keeps() -> None:
    """`airflow-amt check` reads no Variable."""
    task = operator(policies="variable:nightly", plan_limits={"max_cost": 1})
    task._checked(OWNER, read_policies=False)


def test_a_task_stays_deferred_until_the_scheduler_has_heard_of_it(people: FakePeople) -> None:
    """A step that is due in a second would resume it before."""
    soon = Deadline(after=datetime.now(UTC) - CREATED_AT + timedelta(seconds=2))
    task = operator(deferrable=True, policies=soon, check_interval=30)
    use_hook(task, FakeHook())
    before = datetime.now(UTC)
    with pytest.raises(TaskDeferred) as caught:
        task.execute(task_context())
    first_read_at = caught.value.trigger.serialize()[1]["first_read_at"]
    assert (datetime.fromisoformat(first_read_at) - before).total_seconds() >= 10


@pytest.mark.parametrize("form", ["object", "dict", "json", "variable"])
def test_a_plan_takes_its_prices_from_the_sla_in_any_form(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prices = PriceTable(currency="EUR", per_hour={"ml.m5.large": 1e9, "ml.m5.xlarge": 1e9})
    sla = Sla(rules=(Rule(policy=NOW),), prices=prices)
    monkeypatch.setattr(_compat, "read_variable", lambda key: json.dumps(sla.to_dict()))
    given = {
        "object": sla,
        "dict": sla.to_dict(),
        "json": json.dumps(sla.to_dict()),
        "variable": "variable:sla",
    }[form]
    with pytest.raises(AmtRequestError) as caught:
        run(FakeHook(), policies=given, plan_limits={"max_cost": 1})
    assert "EUR" in str(caught.value)


# --- DAGs --------------------------------------------------------------------------------------


def test_the_sla_can_be_kept_in_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compat, "read_variable", lambda key: json.dumps({"rules": [NOW.to_dict()]}))
    for deferrable in (False, True):
        result, _ = run(FakeHook(), policies="variable:nightly", deferrable=deferrable)
        assert result["evidence"]["policy"] == "minimum_jobs"


@WAYS
def test_an_sla_that_cannot_be_read_any_more_counts_on(
    deferrable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [json.dumps({"rules": [NOW.to_dict()]})]

    def read(key: str) -> str:
        if not texts:
            raise RefusedError(500)
        return texts.pop()

    monkeypatch.setattr(_compat, "read_variable", read)
    result, _ = run(FakeHook(), policies="variable:nightly", deferrable=deferrable)
    assert result["evidence"]["policy"] == "minimum_jobs"


def test_templates_within_an_sla_are_rendered() -> None:
    task = operator(policies={"type": "minimum_jobs", "count": "{{ two }}"})
    task.render_template_fields(cast("Any", {"two": 2}))
    hook = FakeHook()
    use_hook(task, hook)
    assert task.execute(task_context())["evidence"]["policy"] == "minimum_jobs"


@pytest.mark.parametrize("rendered", ["", "None", None])
def test_an_sla_that_renders_to_nothing_is_none(rendered: str | None) -> None:
    hook = FakeHook(script={NAME: ["InProgress", "InProgress", "Completed"]})
    result, _ = run(hook, policies=rendered, wait_for_completion=True)
    assert result["status"] == "Completed"


def test_dags_with_policies_are_stored_and_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def call(context: Any) -> None:
        pass

    # Its name is DagSerialization from Airflow 3.2 on.
    module = import_module("airflow.serialization.serialized_objects")
    store = getattr(module, "DagSerialization", None) or module.SerializedDAG
    sla = Sla(
        rules=(Rule.of(Deadline(after=timedelta(hours=5)) | MaxFailedTrainingJobs(count=3), warn_at=0.8),)
    )
    with DAG("policies", schedule=None) as dag:
        AmtTuningJobOperator(
            task_id="one", config=create_request(), policies=sla, on_policy_callback=[call], plan_limits=None
        )
        AmtTuningJobOperator.partial(task_id="many", policies=sla, on_policy_callback=call).expand(
            config=[create_request()]
        )
        AmtTuningJobOperator.partial(task_id="each", config=create_request()).expand(policies=[sla, NOW])
    again = store.from_dict(json.loads(json.dumps(store.to_dict(dag))))
    assert set(again.task_dict) == {"one", "many", "each"}
    assert again.get_task("one").policies == sla.to_dict()
