"""The guard: what one look at a tuning job comes to, on a hook in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_amt.exceptions import AmtAwsError, AmtRequestError
from airflow_amt.hooks.errors import aws_error
from airflow_amt.hooks.guard import Asked, Guard, Look, Memory, flat
from airflow_amt.hooks.sla import SlaReader, SlaSource
from airflow_amt.tuning.naming import (
    MAX_TAG_VALUE_LENGTH,
    POLICY_ANSWERS_TAG,
    POLICY_TOLD_TAG,
)
from airflow_amt.tuning.policies import (
    Action,
    Answer,
    Budget,
    Deadline,
    MaxFailedTrainingJobs,
    Policy,
    Rule,
    RunTimes,
    Sla,
    Stalled,
    parse_sla,
)
from airflow_amt.tuning.progress import TuningProgress
from airflow_amt.tuning.stops import PolicyStop, Stop
from tests.unit.tasks import ARN, CREATED_AT, FakeHook, describe, loud_log

NAME = "churn-model"
NOW = CREATED_AT + timedelta(hours=1)
WHO = "watch manual__1 enforce"


def training_job(number: int, *, minutes: float = 10, status: str = "Completed") -> dict[str, Any]:
    """A summary: one training job after the other from the tuning job's creation on."""
    start = CREATED_AT + timedelta(minutes=minutes * (number - 1))
    ended = {} if status == "InProgress" else {"TrainingEndTime": start + timedelta(minutes=minutes)}
    return {
        "TrainingJobName": f"{NAME}-{number:03d}",
        "TrainingJobStatus": status,
        "CreationTime": start,
        "TrainingStartTime": start,
        **ended,
    }


def described(number: int, *, billable: float, status: str = "Completed") -> dict[str, Any]:
    """The description of a training job."""
    return {
        **training_job(number, status=status),
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1},
        "TrainingTimeInSeconds": 600,
        "BillableTimeInSeconds": billable,
    }


def in_progress(completed: int = 2, failed: int = 0, *, most: int = 200) -> dict[str, Any]:
    return describe(
        NAME,
        HyperParameterTuningJobConfig={
            "Strategy": "Random",
            "HyperParameterTuningJobObjective": {"Type": "Maximize", "MetricName": "accuracy"},
            "ResourceLimits": {"MaxNumberOfTrainingJobs": most, "MaxParallelTrainingJobs": 1},
        },
        TrainingJobDefinition={
            "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1},
            "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
        },
        TrainingJobStatusCounters={"Completed": completed, "NonRetryableError": failed},
        ObjectiveStatusCounters={"Succeeded": completed, "Failed": failed},
    )


class Watch:
    """One process that looks at a tuning job."""

    def __init__(self, hook: FakeHook, sla: Any, **options: Any) -> None:
        self.hook = hook
        self.log = loud_log()
        self.now = NOW
        give = sla if callable(sla) else SlaReader(SlaSource.parse(sla), log=self.log)
        self.guard = Guard(
            lambda: hook,  # type: ignore[arg-type, return-value]
            NAME,
            give,
            log=self.log,
            requested_by=WHO,
            clock=lambda: self.now,
            **options,
        )

    def look(self) -> Look:
        description = self.hook.describe_tuning_job(NAME)
        return self.guard.look(description, TuningProgress.from_describe(description))


def job(*descriptions: Any, **options: Any) -> FakeHook:
    options.setdefault("tags_of", {NAME: {}})
    return FakeHook(script={NAME: list(descriptions or [in_progress()])}, **options)


def failures(count: int, **options: Any) -> Rule:
    return Rule.of(MaxFailedTrainingJobs(count=count), **options)


# --- stops -------------------------------------------------------------------------------------


def test_a_rule_that_is_broken_stops_the_job_with_reason_and_evidence() -> None:
    hook = job(in_progress(4, 3))
    watch = Watch(hook, failures(3, name="few-failures", action="stop_and_fail"))
    look = watch.look()
    assert (look.verdict.action, look.verdict.rule) == (Action.STOP_AND_FAIL, "few-failures")
    (stop,) = hook.stops
    assert stop == look.stop == watch.guard.stop
    assert (stop.stopped_by, stop.requested_by, stop.detail) == ("policy", WHO, look.verdict.reason)
    assert stop.policy == PolicyStop(
        code="max_failed_training_jobs",
        rule="few-failures",
        action="stop_and_fail",
        share=1.0,
        evidence={
            "failed": 3,
            "ended": 7,
            "launched": 7,
            "best_objective": 0.9,
            "saved_training_jobs": 193,
        },
    )
    (report,) = look.reports.values()
    assert json.loads(json.dumps(report)) == report
    assert (report["rule"], report["action"], report["status"]) == (
        "few-failures",
        "stop_and_fail",
        "InProgress",
    )
    assert report["saving"]["training_jobs"] == 193
    assert look.news == ()
    assert any("is stopped by policy few-failures" in line for line in watch.log.lines)


@pytest.mark.parametrize("status", ["Completed", "Failed", "Deleting"])
def test_a_job_that_is_over_is_left_alone(status: str) -> None:
    hook = job(status)
    look = Watch(hook, failures(1)).look()
    assert (look.verdict.action, look.stop, look.news) == (None, None, ())
    assert look.verdict.reason == f"The tuning job is {status}."
    assert hook.named("stop") == hook.named("add_tags") == []


def test_a_job_that_ended_before_the_stop_is_nobodys_stop() -> None:
    hook = job(in_progress(2, 3), "Completed")
    watch = Watch(hook, failures(3))
    look = watch.look()
    assert look.verdict.stops
    assert (look.stop, watch.guard.stop, hook.stops) == (None, None, [])


class RefusesOnce(FakeHook):
    """The first stop call is throttled."""

    def stop_tuning_job(self, name: str, **options: Any) -> bool:
        if not self.named("refused"):
            self.calls.append(("refused", name))
            raise aws_error("StopHyperParameterTuningJob", "ThrottlingException", "Rate exceeded", 400)
        return super().stop_tuning_job(name, **options)


def test_a_stop_that_was_refused_is_decided_again() -> None:
    hook = RefusesOnce(script={NAME: [in_progress(1, 3)]}, tags_of={NAME: {}})
    watch = Watch(hook, failures(3))
    with pytest.raises(AmtAwsError):
        watch.look()
    assert hook.stops == []
    look = watch.look()
    assert (len(hook.stops), look.stop) == (1, hook.stops[0])


class LosesTheAnswer(FakeHook):
    """AWS accepts the first stop call, and its answer is lost; the hook then finds its own intent."""

    def stop_tuning_job(self, name: str, **options: Any) -> bool:
        if self.stops:
            self.calls.append(("settle", options))
            mine = self.stops[0]
            tags = self.tags_of[name]
            if (
                tags is None
                or options["requested_by"] != mine.requested_by
                or "airflow-amt:stopped-by" in tags
            ):
                return False
            tags.update(mine.tags())
            return True
        super().stop_tuning_job(name, **options)
        raise aws_error("StopHyperParameterTuningJob", "InternalFailure", "what was that?", 500)


@pytest.mark.parametrize("same_process", [True, False])
def test_a_stop_whose_answer_was_lost_is_found_once(same_process: bool) -> None:
    hook = LosesTheAnswer(
        script={NAME: [in_progress(1, 3)]}, tags_of={NAME: {}}, stop_takes_effect="Stopping"
    )
    watch = Watch(hook, failures(3))
    with pytest.raises(AmtAwsError):
        watch.look()
    if not same_process:
        watch = Watch(hook, failures(3))
    look = watch.look()
    assert look.stop is not None
    assert look.stop.policy is not None
    assert (look.stop.requested_by, look.stop.policy.code) == (WHO, "max_failed_training_jobs")
    assert watch.guard.stop == look.stop
    assert watch.look().stop is None
    assert len(hook.named("settle")) == 1


def test_somebody_elses_stop_is_not_ours() -> None:
    hook = LosesTheAnswer(script={NAME: ["Stopping"]}, tags_of={NAME: {}})
    hook.stops.append(Stop(stopped_by="policy", requested_by="another task"))
    watch = Watch(hook, failures(1))
    assert (watch.look().stop, watch.guard.stop) == (None, None)


@pytest.mark.parametrize("denied", [False, True])
def test_evidence_fits_its_tags_and_the_intent(denied: bool) -> None:
    rules = Rule(policy=_many(6), name="a" * 40)
    hook = job(in_progress(1, 9), tags_of={NAME: None if denied else {}})
    look = Watch(hook, rules).look()
    assert look.stop is not None
    tags = {**look.stop.tags(), **look.stop.intent()}
    assert max(len(value) for value in tags.values()) <= MAX_TAG_VALUE_LENGTH
    again = Stop.from_tags(look.stop.tags())
    assert again is not None
    assert again.policy is not None
    assert (again.policy.rule, again.policy.action) == ("a" * 40, "stop")


def _many(count: int) -> Policy:
    found: Policy = MaxFailedTrainingJobs(count=1)
    for number in range(2, count + 2):
        found = found & MaxFailedTrainingJobs(count=number)
    return found


def test_the_evidence_of_several_policies_is_flat() -> None:
    parts = [
        {"code": "budget", "share": 1.0, "evidence": {"spent": 5.0}},
        {"code": "stalled", "share": 2.0, "evidence": {"seconds": 9.0}},
    ]
    assert flat({"parts": parts}) == {"budget.spent": 5.0, "stalled.seconds": 9.0}
    assert flat({"spent": 1}) == {"spent": 1}


# --- warnings ----------------------------------------------------------------------------------


WARNING = failures(4, warn_at=0.5)


def test_a_warning_is_told_once_also_across_processes() -> None:
    hook = job(in_progress(1, 2))
    first = Watch(hook, WARNING)
    assert first.look().news == ()  # it was logged
    assert len([line for line in first.log.lines if line.startswith("warning")]) == 1
    assert hook.tags_of[NAME] == {POLICY_TOLD_TAG: "max_failed_training_jobs:warn@0.5"}
    first.look()
    second = Watch(hook, WARNING)
    look = second.look()
    assert (look.verdict.action, look.news) == (Action.WARN, ())
    assert len([line for line in (*first.log.lines, *second.log.lines) if line.startswith("warning")]) == 1
    assert len(hook.named("add_tags")) == 1


def test_whoever_tells_says_so() -> None:
    hook = job(in_progress(1, 2))
    watch = Watch(hook, WARNING, tells=True)
    look = watch.look()
    (news,) = look.news
    assert look.reports[news.id]["action"] == "warn"
    assert watch.look().news == look.news  # not told yet
    assert hook.named("add_tags") == []
    watch.guard.told(ARN + NAME, [news.id])
    assert watch.look().news == ()
    assert Watch(hook, WARNING, tells=True).look().news == ()


def test_what_was_told_is_in_the_memory_where_tags_are_denied() -> None:
    hook = job(in_progress(1, 2), tags_of={NAME: None})
    watch = Watch(hook, WARNING)
    watch.look()
    watch.look()
    assert len([line for line in watch.log.lines if line.startswith("warning")]) == 1
    memory = Memory.parse(json.loads(json.dumps(watch.guard.memory.to_dict())))
    later = Watch(hook, WARNING, memory=memory)
    later.look()
    assert later.log.lines == []


def test_more_warnings_than_a_tag_holds_are_told_once_all_the_same() -> None:
    rules = [
        Rule.of(
            MaxFailedTrainingJobs(count=100),
            action="warn",
            warn_at=0.01 + number / 1000,
            name=f"rule-{number:02d}-{'x' * 30}",
        )
        for number in range(25)
    ]
    hook = job(in_progress(1, 10))
    first = Watch(hook, rules, tells=True)
    look = first.look()
    assert len(look.news) == 25
    first.guard.told(ARN + NAME, [one.id for one in look.news])
    tags = hook.tags_of[NAME]
    assert tags is not None
    assert len(tags[POLICY_TOLD_TAG]) <= MAX_TAG_VALUE_LENGTH
    second = Watch(hook, rules, tells=True)
    assert second.look().news == ()
    hook.script[NAME] = [in_progress(1, 100)]
    fresh = second.look().news  # their last steps are due now
    assert len(fresh) == 25
    second.guard.told(ARN + NAME, [one.id for one in fresh])
    assert len(tags[POLICY_TOLD_TAG]) <= MAX_TAG_VALUE_LENGTH
    assert second.look().news == ()


def test_a_stop_is_not_put_off_by_a_warning() -> None:
    hook = job(in_progress(1, 4))
    look = Watch(hook, WARNING, tells=True).look()
    assert look.stop is not None
    assert (look.news, hook.named("add_tags")) == ((), [])


# --- people ------------------------------------------------------------------------------------

ASKS = failures(4, ask_at=0.5, action="warn")
ASK_ID = "max_failed_training_jobs:ask@0.5"


def asked(number: int = 0) -> Asked:
    return Asked(question=ASK_ID, rule="max_failed_training_jobs", number=number, until=None)


def test_people_are_asked_once_and_their_answer_counts_in_every_process() -> None:
    hook = job(in_progress(1, 2))
    watch = Watch(hook, ASKS, tells=True)
    (question,) = watch.look().news
    assert (question.id, question.action) == (ASK_ID, Action.ASK)
    watch.guard.told(ARN + NAME, [question.id], asked())
    assert watch.look().news == ()
    watch.guard.given = Answer("max_failed_training_jobs", "raise", 1.0, "alice")
    assert watch.look().verdict.action is None  # 2 of 8
    assert hook.tags_of[NAME] == {
        POLICY_TOLD_TAG: ASK_ID,
        POLICY_ANSWERS_TAG: "max_failed_training_jobs=raise:1.0:alice",
    }
    assert watch.guard.memory.asked is None
    assert Watch(hook, ASKS, tells=True).look().verdict.action is None


def test_a_person_stops_the_job() -> None:
    hook = job(in_progress(1, 2))
    watch = Watch(
        hook,
        ASKS,
        memory=Memory(told=(ASK_ID,), asked=asked()),
        answers=lambda _: Answer("max_failed_training_jobs", "stop", by="bob"),
    )
    look = watch.look()
    assert look.stop is not None
    assert look.stop.detail is not None
    assert look.stop.detail.startswith("bob decided to stop it.")
    assert look.stop.policy is not None
    assert look.stop.policy.evidence["decided_by"] == "bob"


def test_an_open_question_stays_open_until_it_is_answered() -> None:
    hook = job(in_progress(1, 2))
    questions: list[Asked] = []
    watch = Watch(
        hook, ASKS, tells=True, memory=Memory(told=(ASK_ID,), asked=asked()), answers=questions.append
    )
    assert (watch.look().news, watch.guard.memory.asked) == ((), asked())
    assert questions == [asked()]


def test_the_question_of_a_process_that_ended_is_asked_again() -> None:
    hook = job(in_progress(1, 2), tags_of={NAME: {POLICY_TOLD_TAG: ASK_ID}})
    assert [one.id for one in Watch(hook, ASKS, tells=True).look().news] == [ASK_ID]


def test_an_answer_that_another_process_took_is_not_taken_twice() -> None:
    text = "max_failed_training_jobs=raise:1.0:alice"
    hook = job(in_progress(1, 2), tags_of={NAME: {POLICY_ANSWERS_TAG: text}})
    watch = Watch(
        hook,
        ASKS,
        memory=Memory(told=(ASK_ID,), asked=asked()),
        answers=lambda _: Answer("max_failed_training_jobs", "raise", 1.0, "alice"),
    )
    watch.look()
    assert [one.encode() for one in watch.guard.memory.answers] == [text]
    assert (watch.guard.memory.asked, hook.named("add_tags")) == (None, [])


def test_what_is_no_answer_is_told_and_left_out() -> None:
    hook = job(
        in_progress(1, 4),
        tags_of={NAME: {POLICY_ANSWERS_TAG: "nonsense max_failed_training_jobs=raise:1.0"}},
    )
    watch = Watch(hook, failures(4))
    assert watch.look().stop is None  # 4 of 8
    assert any("holds what is no answer" in line for line in watch.log.lines)


def test_raised_limits_stay_raised_where_the_tag_is_too_short_for_all_names() -> None:
    rule = "max_failed_training_jobs"
    hook = job(in_progress(1, 2))
    answers = [Answer(rule, "raise", 1.0, f"{'somebody' * 6}{number}") for number in range(5)]
    watch = Watch(hook, ASKS, tells=True)
    for number, answer in enumerate(answers):
        hook.script[NAME] = [in_progress(1, 2 * 2**number)]
        (question,) = watch.look().news
        watch.guard.told(ARN + NAME, [question.id], asked(number))
        watch.guard.given = answer
        watch.look()
    tags = hook.tags_of[NAME]
    assert tags is not None
    assert len(tags[POLICY_ANSWERS_TAG]) <= MAX_TAG_VALUE_LENGTH
    other = Watch(hook, ASKS)
    other.look()
    hook.script[NAME] = [in_progress(1, 70)]  # half of the limit of 128, so the tags are read
    other.look()
    assert [(one.choice, one.raise_by) for one in other.guard.memory.answers] == [("raise", 1.0)] * 5
    assert other.guard.memory.answers[-1].by.endswith("4")


# --- what was consumed -------------------------------------------------------------------------


def budget(seconds: float, **options: Any) -> Rule:
    return Rule.of(
        Budget(seconds, unit="billable_seconds", stopping=timedelta(seconds=1)), name="budget", **options
    )


def test_a_budget_counts_what_is_billed_and_describes_each_training_job_once() -> None:
    names = [f"{NAME}-{number:03d}" for number in (1, 2)]
    hook = job(
        in_progress(2),
        training_jobs_of={NAME: [training_job(1), training_job(2), training_job(3, status="InProgress")]},
        described={name: described(number, billable=100) for number, name in enumerate(names, 1)},
    )
    # By their training time, two are 1 200 s; billed (spot) are 200 s, and the third runs for 40 minutes.
    watch = Watch(hook, budget(2700))
    assert watch.look().verdict.action is None
    watch.look()
    assert sorted(hook.named("describe_training_job")) == names
    assert len(hook.named("list_training_jobs")) == 1  # the counters are the same
    watch.now = NOW + timedelta(minutes=2)
    look = watch.look()
    assert look.stop is not None
    assert look.stop.policy is not None
    assert look.stop.policy.evidence["spent"] == 200 + 42 * 60


def test_what_is_due_by_estimates_is_decided_by_all_that_is_billed() -> None:
    numbers = range(1, 61)
    hook = job(
        in_progress(60),
        training_jobs_of={NAME: [training_job(number, minutes=1) for number in numbers]},
        described={f"{NAME}-{number:03d}": described(number, billable=10) for number in numbers},
    )
    # 25 described and 35 estimated are 250 + 2 100 s; all of them are billed for 600 s.
    watch = Watch(hook, budget(2000))
    assert watch.look().verdict.action is None
    assert len(hook.named("describe_training_job")) == 60
    assert hook.stops == []


def test_without_the_permission_to_describe_estimates_count() -> None:
    hook = job(
        in_progress(2),
        training_jobs_of={NAME: [training_job(1), training_job(2)]},
        described={f"{NAME}-002": aws_error("DescribeTrainingJob", "AccessDeniedException", "not you", 400)},
    )
    watch = Watch(hook, budget(1100))
    assert watch.look().stop is not None
    assert hook.named("describe_training_job") == [f"{NAME}-002"]
    assert any("cannot be described" in line for line in watch.log.lines)


def test_a_training_job_that_was_deleted_is_estimated_and_not_asked_for_again() -> None:
    gone = aws_error("DescribeTrainingJob", "ValidationException", "Requested resource not found.", 400)
    hook = job(
        in_progress(2),
        training_jobs_of={NAME: [training_job(1), training_job(2)]},
        described={f"{NAME}-001": gone, f"{NAME}-002": described(2, billable=100)},
    )
    watch = Watch(hook, budget(2000, warn_at=0.3))
    look = watch.look()
    assert look.verdict.action is Action.WARN
    assert look.verdict.evidence["spent"] == 700
    watch.look()
    assert len(hook.named("describe_training_job")) == 2


def test_compute_seconds_need_no_descriptions() -> None:
    hook = job(in_progress(2), training_jobs_of={NAME: [training_job(1), training_job(2)]})
    rule = Rule.of(Budget(1000, unit="compute_seconds", stopping=timedelta(seconds=1)))
    assert Watch(hook, rule).look().stop is not None
    assert hook.named("describe_training_job") == []


def test_a_list_that_lags_behind_the_counters_is_read_again() -> None:
    complete = [training_job(1), training_job(2)]
    hook = job(in_progress(2), lists={NAME: [complete[:1], complete]})
    watch = Watch(hook, Stalled(timedelta(minutes=45)))
    # By the first list nothing ended for 50 minutes... which it says once the tags are read, too.
    assert watch.look().stop is not None
    lagging = job(in_progress(2), lists={NAME: [complete[:1], complete]})
    patient = Watch(lagging, Stalled(timedelta(minutes=55)))
    patient.look()
    patient.look()
    patient.look()
    assert len(lagging.named("list_training_jobs")) == 2


def test_a_training_job_that_has_not_begun_to_train_is_read_again() -> None:
    waiting = {**training_job(3, status="InProgress")}
    del waiting["TrainingStartTime"]
    jobs = [training_job(1), training_job(2)]
    hook = job(
        in_progress(2), lists={NAME: [[*jobs, waiting], [*jobs, training_job(3, status="InProgress")]]}
    )
    watch = Watch(hook, Stalled(timedelta(hours=5)))
    for _ in range(3):
        watch.look()
    assert len(hook.named("list_training_jobs")) == 2


def test_nothing_is_listed_that_no_rule_looks_at() -> None:
    hook = job()
    assert Watch(hook, failures(9)).look().verdict.action is None
    assert {name for name, _ in hook.calls} == {"describe"}


# --- the rules ---------------------------------------------------------------------------------


class Changing:
    """Rules that operations change; each look gets the next ones."""

    changeable = True

    def __init__(self, slas: Sequence[Sla]) -> None:
        self.slas = list(slas)

    def __call__(self) -> Sla:
        return self.slas.pop(0)


def test_rules_that_change_count_from_the_next_look_on() -> None:
    slas = [parse_sla(failures(count)) for count in (9, 2)]
    hook = job(in_progress(1, 3))
    watch = Watch(hook, Changing(slas))
    assert watch.look().verdict.action is None
    assert watch.guard.memory.sla == slas[0]
    assert watch.look().stop is not None
    assert watch.guard.memory.sla == slas[1]


def test_rules_of_the_code_are_not_kept_in_the_memory() -> None:
    watch = Watch(job(), failures(9))
    watch.look()
    assert watch.guard.memory.sla is None


def test_a_look_without_any_rules_is_an_error() -> None:
    def none() -> Sla:
        raise AmtRequestError([])

    none.changeable = True  # type: ignore[attr-defined]
    with pytest.raises(AmtRequestError):
        Watch(job(), none).look()


def test_what_cannot_be_told_is_told_once() -> None:
    watch = Watch(job(), Rule.of(Deadline(after=timedelta(hours=1), reference="queued_at")))
    watch.look()
    watch.look()
    (line,) = watch.log.lines
    assert "cannot be told: deadline: The deadline counts from the DAG run's queued_at" in line


def test_deadlines_count_from_the_times_of_the_dag_run() -> None:
    run = RunTimes(queued_at=CREATED_AT - timedelta(hours=3))
    watch = Watch(job(), Rule.of(Deadline(after=timedelta(hours=4), reference="queued_at")), run=run)
    watch.now = NOW - timedelta(seconds=1)
    look = watch.look()
    assert (look.stop, look.verdict.next_look_at) == (None, NOW)
    watch.now = NOW
    assert watch.look().stop is not None


# --- judging only ------------------------------------------------------------------------------


def test_evaluating_does_nothing() -> None:
    hook = job(in_progress(1, 4), tags_of={NAME: {POLICY_ANSWERS_TAG: "max_failed_training_jobs=raise:0.5"}})
    watch = Watch(hook, failures(4, warn_at=0.5))
    description = hook.describe_tuning_job(NAME)
    progress = TuningProgress.from_describe(description)
    assert watch.guard.evaluate(description, progress).action is Action.WARN
    verdict, levels = watch.guard.evaluate_rules(description, progress)
    assert verdict.action is Action.WARN
    ((title, level),) = levels
    assert title == "max_failed_training_jobs"
    assert level.share == pytest.approx(4 / 6)
    assert hook.named("stop") == hook.named("add_tags") == []


def test_the_memory_survives_its_dict() -> None:
    shown: Mapping[str, Any] = {"subject": "continue?"}
    memory = Memory(
        told=("a:warn@1",),
        answers=(Answer("a", "raise", 0.5, "alice"),),
        asked=Asked(
            question="a:ask@1", rule="a", number=1, until=datetime(2026, 1, 1, tzinfo=UTC), shown=shown
        ),
        sla=parse_sla(Budget(5, unit="compute_seconds")),
    )
    assert Memory.parse(json.loads(json.dumps(memory.to_dict()))) == memory
    assert Memory.parse(None) == Memory.parse({}) == Memory()
