"""The enforcing operator, and its look over tuning jobs, on a hook in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from airflow_amt._compat import AirflowFailException
from airflow_amt.exceptions import AmtRequestError
from airflow_amt.hooks.errors import aws_error
from airflow_amt.operators.enforce import AmtEnforcePolicyOperator
from airflow_amt.task_exceptions import AmtEnforceError, AmtPolicyBroken
from airflow_amt.tuning.naming import POLICY_TOLD_TAG
from airflow_amt.tuning.policies import Custom, MaxFailedTrainingJobs, Rule
from airflow_amt.tuning.stops import PolicyStop, Stop
from airflow_amt.watch import polling
from airflow_amt.watch.enforcing import EnforceReport, Selection
from tests.unit.tasks import ARN, DENIED, THROTTLED, FakeHook, describe, task_context, use_hook

SLA = Rule.of(MaxFailedTrainingJobs(count=4), warn_at=0.5)
FAILS = Rule.of(MaxFailedTrainingJobs(count=4), action="stop_and_fail")


def failed(name: str, count: int, **fields: Any) -> dict[str, Any]:
    """A job in progress of whose training jobs so many failed."""
    return describe(name, TrainingJobStatusCounters={"Completed": 1, "NonRetryableError": count}, **fields)


class Told:
    """A policy callback."""

    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []

    def __call__(self, context: Mapping[str, Any]) -> None:
        json.dumps(context["policy"])
        self.reports.append(context["policy"])

    @property
    def about(self) -> list[tuple[str, str]]:
        return [(one["tuning_job_name"], one["action"]) for one in self.reports]


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits before calls are repeated."""
    found: list[float] = []

    def patiently(call: Callable[[], Any], **options: Any) -> Any:
        return polling.patiently(call, **{**options, "sleep": found.append})

    monkeypatch.setattr("airflow_amt.watch.enforcing.patiently", patiently)
    return found


def operator(hook: Any = None, **options: Any) -> AmtEnforcePolicyOperator:
    task = AmtEnforcePolicyOperator(
        task_id="enforce", **{"policies": SLA, "name_prefix": "nightly", **options}
    )
    if hook is not None:
        use_hook(task, hook)
    return task


class Jobs(FakeHook):
    """Lists the jobs whose next description is in progress, or an error."""

    def list_tuning_jobs(self, **filters: Any) -> Iterator[dict[str, Any]]:
        self.calls.append(("list", filters))
        assert filters["StatusEquals"] == "InProgress"
        for name, (answer, *_) in sorted(self.script.items()):
            now = answer["HyperParameterTuningJobStatus"] if isinstance(answer, dict) else answer
            # As AWS, which does not tell upper from lower case in names.
            if filters.get("NameContains", "").lower() in name and (
                now == "InProgress" or isinstance(now, Exception)
            ):
                yield {"HyperParameterTuningJobName": name, "HyperParameterTuningJobArn": ARN + name}


def jobs(**scripts: Any) -> Jobs:
    """Tuning jobs: by ``_`` for ``-`` in their names, what describing them answers."""
    named = {name.replace("_", "-"): answer for name, answer in scripts.items()}
    return Jobs(
        script={name: answer if isinstance(answer, list) else [answer] for name, answer in named.items()},
        tags_of={name: {} for name in named},
    )


def three() -> Jobs:
    return jobs(
        nightly_bad=failed("nightly-bad", 4),
        nightly_good=failed("nightly-good", 0),
        nightly_warn=failed("nightly-warn", 2),
        nightly_over="Completed",
        my_nightly_bad=failed("my-nightly-bad", 9),
    )


# --- one look over all -------------------------------------------------------------------------


def test_it_stops_what_breaks_a_rule_warns_once_and_keeps_the_rest() -> None:
    hook, told = three(), Told()
    result = operator(hook, on_policy_callback=told).execute(task_context())
    assert json.loads(json.dumps(result)) == result
    reasons = [one.pop("reason") for one in result["jobs"]]
    assert reasons[0] == "4 of 5 training jobs that ended have failed; the limit is 4."
    assert reasons[2] == "Every rule is kept."
    code = "max_failed_training_jobs"
    assert result == {
        "version": 1,
        "dry_run": False,
        "in_progress": 4,
        "matched": 3,
        "breached": 1,
        "stopped": 1,
        "warned": 1,
        "kept": 1,
        "jobs": [
            {
                "tuning_job_name": name,
                "action": action,
                "rule": rule,
                "code": rule,
                "share": share,
                "stopped": action == "stop",
            }
            for name, action, rule, share in (
                ("nightly-bad", "stop", code, 1.0),
                ("nightly-warn", "warn", code, 0.5),
                ("nightly-good", None, None, None),
            )
        ],
        "jobs_not_listed": 0,
        "missing": [],
        "errors": 0,
    }
    (stop,) = hook.stops
    assert (stop.stopped_by, stop.requested_by) == ("policy", "churn manual__2026-01-01 tune")
    assert told.about == [("nightly-bad", "stop"), ("nightly-warn", "warn")]
    assert {(one["dag_id"], one["run_id"], one["task_id"]) for one in told.reports} == {
        ("churn", "manual__2026-01-01", "tune")
    }
    assert hook.named("list") == [
        {
            "StatusEquals": "InProgress",
            "SortBy": "CreationTime",
            "SortOrder": "Ascending",
            "NameContains": "nightly",
        }
    ]
    again = operator(hook, on_policy_callback=told).execute(task_context(run_id="the next one"))
    assert (again["matched"], again["stopped"], again["warned"]) == (2, 0, 1)
    assert len(told.reports) == 2


def test_without_a_callback_warnings_are_logged_and_told() -> None:
    hook = three()
    operator(hook).execute(task_context())
    assert hook.tags_of["nightly-warn"] == {POLICY_TOLD_TAG: "max_failed_training_jobs:warn@0.5"}


def test_a_callback_that_fails_changes_nothing() -> None:
    def fail(context: Any) -> None:
        raise ValueError("no network")

    hook = three()
    result = operator(hook, on_policy_callback=fail).execute(task_context())
    assert (result["stopped"], result["errors"]) == (1, 0)


@pytest.mark.parametrize("enforce", [False, "False", " false "])
def test_a_dry_run_only_judges(enforce: Any) -> None:
    hook, told = three(), Told()
    result = operator(hook, enforce=enforce, on_policy_callback=told, policies=FAILS).execute(task_context())
    assert [result[key] for key in ("dry_run", "breached", "stopped", "kept")] == [True, 1, 0, 2]
    assert (result["jobs"][0]["action"], result["jobs"][0]["stopped"]) == ("stop_and_fail", False)
    assert told.reports == []
    assert {name for name, _ in hook.calls} == {"list", "describe"}


@pytest.mark.parametrize(
    ("selection", "names"),
    [
        ({"name_prefix": "NIGHTLY-"}, {"nightly-a", "nightly-b"}),
        ({"name_contains": "-b"}, {"nightly-b", "my-nightly-b"}),
        ({"name_prefix": "nightly", "name_contains": "-b"}, {"nightly-b"}),
        ({"tags": {"team": "churn"}}, {"nightly-a"}),
        ({"tags": {"team": None}}, {"nightly-a", "my-nightly-b"}),
        ({"tags": '{"team": null, "env": "prod"}'}, {"my-nightly-b"}),
        ({"tags": {"team": "churn"}, "name_prefix": "my"}, set()),
        ({"tuning_job_names": "nightly-a"}, {"nightly-a"}),
        ({"tuning_job_names": "nightly-a, nightly-b, Nightly-A"}, {"nightly-a", "nightly-b"}),
        ({"tuning_job_names": '["nightly-a"]'}, {"nightly-a"}),
        ({"tuning_job_names": ("nightly-a", "nightly-b"), "tags": {"team": None}}, {"nightly-a"}),
        ({"tuning_job_names": ["nightly-a", "my-nightly-b"], "name_prefix": "my"}, {"my-nightly-b"}),
        ({"tuning_job_names": [], "name_prefix": "nightly"}, set()),
        ({"tuning_job_names": "[]"}, set()),
        ({"tuning_job_names": "None", "tags": "None", "name_prefix": "nightly"}, {"nightly-a", "nightly-b"}),
    ],
)
def test_all_selectors_that_are_given_must_hold(selection: dict[str, Any], names: set[str]) -> None:
    hook = jobs(
        nightly_a=failed("nightly-a", 0),
        nightly_b=failed("nightly-b", 0),
        my_nightly_b=failed("my-nightly-b", 0),
    )
    hook.tags_of["nightly-a"] = {"team": "churn"}
    hook.tags_of["my-nightly-b"] = {"team": "fraud", "env": "prod"}
    result = operator(hook, **{"name_prefix": None, **selection}).execute(task_context())
    assert {one["tuning_job_name"] for one in result["jobs"]} == names
    assert result["matched"] == result["kept"] == len(names)


def test_tags_are_read_only_of_jobs_whose_names_fit() -> None:
    hook = three()
    read: list[str] = []
    original = hook.tags

    def tags(arn: str) -> dict[str, str] | None:
        read.append(arn.removeprefix(ARN))
        return original(arn)

    hook.tags = tags  # type: ignore[method-assign]
    operator(hook, tags={"team": None}).execute(task_context())
    assert read == ["nightly-bad", "nightly-good", "nightly-warn"]


def test_names_that_are_missing_or_over_are_told() -> None:
    hook = three()
    names = ["nightly-gone", "nightly-over", "nightly-bad"]
    result = operator(hook, tuning_job_names=names).execute(task_context())
    assert [result[key] for key in ("in_progress", "matched", "stopped", "errors")] == [1, 1, 1, 0]
    assert result["missing"] == ["nightly-gone"]
    assert hook.named("list") == []


def test_a_missing_name_can_be_an_error_and_the_others_are_looked_at() -> None:
    hook = three()
    task = operator(hook, tuning_job_names=["nightly-gone", "nightly-over", "nightly-bad"], on_missing="fail")
    with pytest.raises(AmtEnforceError) as caught:
        task.execute(task_context())
    assert caught.value.errors == ("There is no tuning job nightly-gone.",)
    assert (caught.value.result["stopped"], len(hook.stops)) == (1, 1)


def test_a_result_lists_fifty_jobs_those_that_break_a_rule_first() -> None:
    hook = jobs(
        **{f"nightly_{number:02d}": failed(f"nightly-{number:02d}", number % 5) for number in range(60)}
    )
    result = operator(hook).execute(task_context())
    assert (len(result["jobs"]), result["jobs_not_listed"], result["matched"]) == (50, 10, 60)
    assert [one["action"] for one in result["jobs"]] == ["stop"] * 12 + ["warn"] * 24 + [None] * 14
    assert result["jobs"][0]["tuning_job_name"] == "nightly-04"


# --- how the task ends -------------------------------------------------------------------------


def test_stop_and_fail_fails_the_task_after_all_jobs_without_a_retry() -> None:
    hook, told = three(), Told()
    hook.script["nightly-zzz"] = [failed("nightly-zzz", 5)]
    hook.script["nightly-aaa"] = [DENIED]
    context = task_context()
    with pytest.raises(AmtPolicyBroken) as caught:
        operator(hook, policies=FAILS, on_policy_callback=told).execute(context)
    assert isinstance(caught.value, AirflowFailException)
    assert [one["tuning_job_name"] for one in caught.value.jobs] == ["nightly-bad", "nightly-zzz"]
    assert caught.value.result == context["ti"].xcom["return_value"]
    assert [caught.value.result[key] for key in ("matched", "stopped", "kept", "errors")] == [5, 2, 2, 1]
    assert len(caught.value.errors) == 1
    assert told.about == [("nightly-bad", "stop_and_fail"), ("nightly-zzz", "stop_and_fail")]


def test_somebody_elses_stop_does_not_fail_the_task() -> None:
    # Described in progress; when it is to be stopped, it is being stopped already.
    hook, told = jobs(nightly=[failed("nightly", 5), "Stopping"]), Told()
    result = operator(hook, policies=FAILS, on_policy_callback=told).execute(task_context())
    assert [result[key] for key in ("matched", "breached", "stopped", "kept")] == [1, 1, 0, 0]
    assert (result["jobs"][0]["action"], result["jobs"][0]["stopped"]) == ("stop_and_fail", False)
    assert told.reports == []


def test_a_job_that_ended_before_it_was_described_is_kept() -> None:
    class Ends(Jobs):
        def list_tuning_jobs(self, **filters: Any) -> Any:
            listed = list(super().list_tuning_jobs(**filters))
            self.script = {"nightly-a": ["Completed"]}
            return iter(listed)

    hook = Ends(script={"nightly-a": ["InProgress"], "nightly-b": ["InProgress"]})
    result = operator(hook).execute(task_context())
    assert [result[key] for key in ("in_progress", "matched", "kept", "errors")] == [2, 1, 1, 0]
    assert result["jobs"][0]["reason"] == "The tuning job is Completed."


def test_errors_of_one_job_do_not_keep_the_others_from_being_looked_at() -> None:
    hook = three()
    hook.script["nightly-aaa"] = [DENIED]
    hook.script["nightly-bbb"] = [describe("nightly-bbb", TrainingJobStatusCounters="garbled")]
    context = task_context()
    with pytest.raises(
        AmtEnforceError, match=r"Of 5 tuning jobs, 1 were stopped; 2 errors:\n  1\. Tuning job"
    ) as caught:
        operator(hook).execute(context)
    assert not isinstance(caught.value, AirflowFailException)
    assert context["ti"].xcom["return_value"] == caught.value.result
    assert [caught.value.result[key] for key in ("matched", "stopped", "warned", "kept")] == [5, 1, 1, 1]
    listed = [one["tuning_job_name"] for one in caught.value.result["jobs"]]
    assert listed == ["nightly-bad", "nightly-warn", "nightly-aaa", "nightly-bbb", "nightly-good"]
    assert "not you" in caught.value.result["jobs"][2]["reason"]


def test_a_call_is_repeated_and_a_busy_aws_is_left_to_the_next_run(waits: list[float]) -> None:
    busy = {f"nightly_{letter}": THROTTLED for letter in "abcdef"}
    hook = jobs(**busy)
    with pytest.raises(AmtEnforceError) as caught:
        operator(hook).execute(task_context())
    assert (
        caught.value.errors[-1]
        == "AWS gives no answers: 3 tuning jobs were not looked at, the next run does."
    )
    assert (len(caught.value.errors), caught.value.result["matched"]) == (4, 3)
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0] * 3
    hook = jobs(nightly=[THROTTLED, failed("nightly", 4)])
    assert operator(hook).execute(task_context())["stopped"] == 1


def test_one_busy_moment_between_answers_gives_up_nothing() -> None:
    scripts = {
        f"nightly_{number}": THROTTLED if number % 3 else failed(f"nightly-{number}", 0)
        for number in range(9)
    }
    with pytest.raises(AmtEnforceError) as caught:
        operator(jobs(**scripts)).execute(task_context())
    assert [caught.value.result[key] for key in ("matched", "kept", "errors")] == [9, 3, 6]


def test_a_list_that_fails_is_an_error() -> None:
    class Broken(Jobs):
        def list_tuning_jobs(self, **filters: Any) -> Any:
            raise aws_error("ListHyperParameterTuningJobs", "AccessDeniedException", "not you", 400)

    with pytest.raises(AmtEnforceError, match=r"The tuning jobs cannot be listed: .*not you"):
        operator(Broken()).execute(task_context())


def test_jobs_whose_tags_may_not_be_read_are_left_alone() -> None:
    hook = three()
    hook.tags_of["nightly-bad"] = None
    with pytest.raises(AmtEnforceError, match="The tags of tuning job nightly-bad may not be read") as caught:
        operator(hook, tags={"team": None}).execute(task_context())
    assert (hook.stops, caught.value.result["matched"]) == ([], 0)


def test_a_killed_task_ends_after_the_job_that_it_looks_at() -> None:
    hook = three()
    task = operator(hook)
    task.on_policy_callback = lambda context: task.on_kill()
    with pytest.raises(AmtEnforceError, match="The task is being ended: 2 tuning jobs were not looked at"):
        task.execute(task_context())
    assert len(hook.stops) == 1


def test_a_stop_whose_answer_was_lost_is_told_from_its_record() -> None:
    policy = PolicyStop(code="budget", rule="money", action="stop_and_fail", share=1.0, evidence={"spent": 5})
    stop = Stop(stopped_by="policy", detail="5 of 5 EUR are spent.", requested_by="me", policy=policy)

    class Lost(Jobs):
        def list_tuning_jobs(self, **filters: Any) -> Any:
            listed = list(super().list_tuning_jobs(**filters))
            self.script = {"nightly": ["Stopping"]}
            return iter(listed)

        def stop_tuning_job(self, name: str, **options: Any) -> bool:
            self.tags_of[name] = stop.tags()
            return True

    told = Told()
    with pytest.raises(AmtPolicyBroken) as caught:
        operator(Lost(script={"nightly": ["InProgress"]}), on_policy_callback=told).execute(task_context())
    assert caught.value.jobs == (
        {
            "tuning_job_name": "nightly",
            "action": "stop_and_fail",
            "rule": "money",
            "code": "budget",
            "share": 1.0,
            "reason": "5 of 5 EUR are spent.",
            "stopped": True,
        },
    )
    assert told.about == [("nightly", "stop_and_fail")]
    assert (told.reports[0]["rule"], told.reports[0]["evidence"]) == ("money", {"spent": 5})


# --- arguments ---------------------------------------------------------------------------------


def fields(task: AmtEnforcePolicyOperator) -> list[str]:
    with pytest.raises(AmtRequestError) as caught:
        task.execute(task_context())
    assert all(one.fix for one in caught.value.problems)
    return [one.field for one in caught.value.problems]


def test_all_bad_arguments_are_named_before_any_call() -> None:
    hook = three()
    task = operator(
        hook,
        policies=[{"type": "budget"}, {"type": "nonsense"}],
        tuning_job_names=["ok", "not ok", 7],
        name_prefix="a b",
        name_contains="-" * 99,
        tags={"": "a", "b" * 129: "c", "d": 3, "e": "f" * 257},
        enforce="perhaps",
        on_missing="shrug",
    )
    assert fields(task) == [
        "enforce",
        "on_missing",
        "tuning_job_names[1]",
        "tuning_job_names[2]",
        "name_prefix",
        "name_contains",
        "tags",
        "tags",
        "tags['d']",
        "tags['e']",
        "policies.rules[0].limit",
        "policies.rules[1].type",
    ]
    assert hook.calls == []


@pytest.mark.parametrize("nothing", [None, "", " ", "None"])
def test_at_least_one_selector_is_needed(nothing: Any) -> None:
    task = operator(
        three(), tuning_job_names=nothing, name_prefix=nothing, name_contains=nothing, tags=nothing
    )
    assert fields(task) == ["tuning_job_names"]


@pytest.mark.parametrize("names", [3, {"a": 1}, "['a', 'b']", '["a"', [["a"]]])
def test_names_are_text_or_a_list(names: Any) -> None:
    assert fields(operator(three(), tuning_job_names=names))[0].startswith("tuning_job_names")


@pytest.mark.parametrize("tags", ["team", ["team"], '["team"]', 3])
def test_tags_are_a_dict(tags: Any) -> None:
    assert fields(operator(three(), tags=tags)) == ["tags"]


@pytest.mark.parametrize("policies", [None, "None", "nonsense", {}, []])
def test_an_sla_is_needed(policies: Any) -> None:
    assert all(one.startswith("policies") for one in fields(operator(three(), policies=policies)))


def test_a_rule_that_asks_is_refused_and_named() -> None:
    hook = three()
    task = operator(hook, policies=[SLA, Rule.of(MaxFailedTrainingJobs(count=9), ask_at=0.5, name="people")])
    with pytest.raises(
        AmtRequestError, match=r"policies, rule people: 'ask' is not accepted.*AmtTuningJobOperator"
    ):
        task.execute(task_context())
    assert hook.calls == []


def test_an_sla_in_a_variable_is_read_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_VAR_NIGHTLY_SLA", json.dumps({"rules": [SLA.to_dict()]}))
    assert operator(three(), policies="variable:nightly_sla").execute(task_context())["stopped"] == 1
    monkeypatch.delenv("AIRFLOW_VAR_NIGHTLY_SLA")
    assert fields(operator(three(), policies="variable:nightly_sla")) == ["Variable 'nightly_sla'"]


def test_an_sla_in_a_connections_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"amt_sla": {"rules": [SLA.to_dict()]}}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_ML", json.dumps({"conn_type": "aws", "extra": extra}))
    assert operator(three(), policies="connection:aws_ml").execute(task_context())["stopped"] == 1


def test_a_policy_of_ones_own_that_fails_is_not_known_to_be_broken() -> None:
    rule = Rule.of(Custom("json.loads"))  # takes no situation
    result = operator(three(), policies=[rule, SLA]).execute(task_context())
    assert (result["stopped"], result["errors"]) == (1, 0)


def test_it_can_be_stored_and_its_sla_is_shown_as_json() -> None:
    task = operator()
    assert json.loads(json.dumps(task.policies)) == SLA.to_dict()
    assert set(task.template_fields) >= {"policies", "tags", "aws_conn_id", "region_name", "verify"}
    assert callable(task.dry_run)


# --- pure parts --------------------------------------------------------------------------------


def test_a_selection_filters_by_its_longest_part() -> None:
    assert Selection(prefix="ab", contains="abc").part == "abc"
    assert Selection(tags={"a": None}).part == ""
    assert Selection(prefix="ab", contains="c").fits_name("AB-C")
    assert not Selection(prefix="ab").fits_name("xab")


def test_a_report_in_one_line() -> None:
    report = EnforceReport(dry_run=True, in_progress=3)
    assert report.summary() == (
        "3 tuning jobs in progress, 0 of them selected: 0 break a rule, would be stopped (dry run); 0 with a "
        "warning, 0 keep every rule; 0 errors."
    )


def test_a_stop_that_is_refused_is_an_error() -> None:
    class Refuses(Jobs):
        def stop_tuning_job(self, name: str, **options: Any) -> bool:
            raise aws_error("StopHyperParameterTuningJob", "AccessDeniedException", "not you", 400)

    hook = Refuses(script={"nightly": [failed("nightly", 4)]}, tags_of={"nightly": {}})
    with pytest.raises(AmtEnforceError, match="StopHyperParameterTuningJob was refused") as caught:
        operator(hook).execute(task_context())
    assert caught.value.result["stopped"] == 0
