"""The operator that starts a tuning job: what it sends, adopts, publishes, and how it ends."""

from __future__ import annotations

import inspect
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest
from airflow.sdk import Asset
from airflow.sdk.execution_time.context import OutletEventAccessors

try:
    from airflow.sdk.exceptions import TaskDeferred
except ImportError:  # Airflow 3.1
    from airflow.exceptions import TaskDeferred  # type: ignore[no-redef]

from airflow_amt import _compat
from airflow_amt.exceptions import (
    AmtAccessDeniedError,
    AmtAwsError,
    AmtJobExistsError,
    AmtRequestError,
    AmtResourceInUseError,
    AmtResourceLimitExceededError,
    AmtResourceNotFoundError,
    AmtUnknownOwnerError,
)
from airflow_amt.hooks.errors import aws_error
from airflow_amt.operators.tuning import AmtTuningJobOperator
from airflow_amt.task_exceptions import (
    AmtOwnJobEndedError,
    AmtTaskKilled,
    AmtTuningJobFailed,
    AmtTuningJobStopped,
    AmtTuningJobTimeout,
)
from airflow_amt.tuning import CompletionCriteria, Owner, derive_job_name
from airflow_amt.tuning.naming import own_tags, request_digest, task_label
from airflow_amt.watch import polling
from tests.unit.requests import create_request, set_path
from tests.unit.tasks import (
    ARN,
    DENIED,
    OWNER,
    THROTTLED,
    UNAVAILABLE,
    FakeHook,
    describe,
    loud_log,
    not_found,
    run_task,
    task_context,
    use_hook,
)

NAME = "churn-model"
DERIVED = derive_job_name(OWNER)
LABEL = task_label(OWNER)
WAYS = pytest.mark.parametrize("deferrable", [False, True], ids=["sync", "deferred"])


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits after errors are tested on their own; here they would only take time."""
    monkeypatch.setattr(polling, "LONGEST_BACKOFF_SECONDS", 0.01)


def operator(config: dict[str, Any] | None = None, **options: Any) -> AmtTuningJobOperator:
    options = {"check_interval": 0.1, "deferrable": False, **options}
    return AmtTuningJobOperator(
        task_id="tune", config=create_request() if config is None else config, **options
    )


def unnamed() -> dict[str, Any]:
    config = create_request()
    del config["HyperParameterTuningJobName"]
    return config


def run(hook: FakeHook, config: dict[str, Any] | None = None, **options: Any) -> tuple[Any, Any]:
    """Run the operator; return its result and its XCom."""
    context = task_context()
    result, _ = run_task(lambda: operator(config, **options), context, hook)
    return result, context["ti"].xcom


# --- what is sent ------------------------------------------------------------------------------


def test_the_request_is_sent_as_it_is_with_ownership_tags() -> None:
    hook = FakeHook({NAME: ["Completed"]})
    config = create_request(Tags=[{"Key": "team", "Value": "ml"}])
    context = task_context()
    run_task(lambda: operator(config), context, hook)
    (sent,) = hook.named("create")
    tags = {tag["Key"]: tag["Value"] for tag in sent.pop("Tags")}
    expected = create_request()
    assert sent == expected
    assert tags == {
        "team": "ml",
        "airflow-amt:dag-id": "churn",
        "airflow-amt:run-id": "manual__2026-01-01",
        "airflow-amt:task-id": "tune",
        "airflow-amt:map-index": "-1",
        "airflow-amt:generation": "1",
        "airflow-amt:try": "1",
        "airflow-amt:try-id": str(context["ti"].id),
        "airflow-amt:waits": "yes",
        "airflow-amt:request": request_digest(expected),
    }
    assert config == create_request(Tags=[{"Key": "team", "Value": "ml"}]), "the config was changed"


def test_without_a_name_one_is_derived_from_the_task_instance() -> None:
    hook = FakeHook({DERIVED: ["Completed"]})
    result, xcom = run(hook, unnamed())
    assert result["tuning_job_name"] == xcom["tuning_job_name"] == DERIVED


def test_a_mapped_task_gets_names_of_its_own_and_a_prefix_shows() -> None:
    owner = Owner(dag_id=OWNER.dag_id, run_id=OWNER.run_id, task_id=OWNER.task_id, map_index=3)
    name = derive_job_name(owner, prefix="churn eu")
    hook = FakeHook({name: ["Completed"]})
    context = task_context(map_index=3)
    run_task(lambda: operator(unnamed(), job_name_prefix="churn eu"), context, hook)
    assert context["ti"].xcom["tuning_job_name"] == name
    assert name.startswith("churn-eu-")


def test_criteria_go_to_their_places_in_the_request() -> None:
    hook = FakeHook({NAME: ["Completed"]})
    criteria = CompletionCriteria(max_training_jobs_not_improving=3, max_runtime=timedelta(hours=1))
    run(hook, criteria=criteria)
    config = hook.named("create")[0]["HyperParameterTuningJobConfig"]
    assert config["ResourceLimits"] == {
        "MaxNumberOfTrainingJobs": 4,
        "MaxParallelTrainingJobs": 2,
        "MaxRuntimeInSeconds": 3600,
    }
    assert config["TuningJobCompletionCriteria"] == {
        "BestObjectiveNotImproving": {"MaxNumberOfTrainingJobsNotImproving": 3}
    }


def render(task: AmtTuningJobOperator, **values: Any) -> AmtTuningJobOperator:
    context: Any = {**task_context(), **values}
    task.render_template_fields(context, jinja_env=jinja2.Environment(autoescape=False))
    return task


def test_what_templates_rendered_is_turned_back() -> None:
    config = create_request(
        HyperParameterTuningJobName="churn-{{ day }}",
        HyperParameterTuningJobConfig__ResourceLimits__MaxNumberOfTrainingJobs="{{ most }}",
    )
    hook = FakeHook({"churn-7": ["Completed"]})

    def make() -> AmtTuningJobOperator:
        task = operator(
            config,
            criteria={"max_runtime": "{{ hours * 3600 }}", "complete_on_convergence": "{{ converge }}"},
            check_interval="{{ pause }}",
            max_ingestion_time="{{ limit }}",
            job_name_prefix=None,
            region_name="{{ region }}",
        )
        render(task, day=7, most=20, hours=2, converge=True, pause=0.2, limit=None, region="eu-west-1")
        assert task.region_name == "eu-west-1"
        return task

    run_task(make, task_context(), hook)
    limits = hook.named("create")[0]["HyperParameterTuningJobConfig"]
    assert limits["ResourceLimits"]["MaxNumberOfTrainingJobs"] == 20
    assert limits["ResourceLimits"]["MaxRuntimeInSeconds"] == 7200
    assert limits["TuningJobCompletionCriteria"]["ConvergenceDetected"] == {
        "CompleteOnConvergence": "Enabled"
    }


def test_criteria_as_an_object_survive_rendering() -> None:
    criteria = CompletionCriteria(max_training_jobs=4)
    assert render(operator(criteria=criteria)).criteria == criteria


def test_role_names_become_arns_in_every_definition() -> None:
    config = create_request(TrainingJobDefinition__RoleArn="sagemaker-role")
    hook = FakeHook({NAME: ["Completed"]})
    run(hook, config)
    assert hook.named("create")[0]["TrainingJobDefinition"]["RoleArn"] == (
        "arn:aws:iam::000000000000:role/service/sagemaker-role"
    )
    several = create_request()
    first = several.pop("TrainingJobDefinition")
    objective = several["HyperParameterTuningJobConfig"].pop("HyperParameterTuningJobObjective")
    ranges = several["HyperParameterTuningJobConfig"].pop("ParameterRanges")
    first |= {"TuningObjective": objective, "HyperParameterRanges": ranges}
    several["TrainingJobDefinitions"] = [
        {**first, "DefinitionName": "one", "RoleArn": "role-one"},
        {**first, "DefinitionName": "two", "RoleArn": "arn:aws:iam::000000000000:role/two"},
    ]
    hook = FakeHook({NAME: ["Completed"]})
    run(hook, several)
    assert [one["RoleArn"] for one in hook.named("create")[0]["TrainingJobDefinitions"]] == [
        "arn:aws:iam::000000000000:role/service/role-one",
        "arn:aws:iam::000000000000:role/two",
    ]


def test_s3_operations_of_the_amazon_providers_config_are_run_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from airflow.providers.amazon.aws.hooks.sagemaker import SageMakerHook

    done: list[Any] = []
    monkeypatch.setattr(SageMakerHook, "configure_s3_resources", lambda _, config: done.append(config))
    operations = {"S3CreateBucket": [{"Bucket": "models"}]}
    hook = FakeHook()
    hook.script[NAME] = [not_found(NAME), "Completed"]
    run(hook, {**create_request(), "S3Operations": operations})
    assert done == [{"S3Operations": operations}]
    assert "S3Operations" not in hook.named("create")[0]


def test_s3_operations_are_not_repeated_for_an_adopted_job(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.providers.amazon.aws.hooks.sagemaker import SageMakerHook

    monkeypatch.setattr(SageMakerHook, "configure_s3_resources", lambda *_: pytest.fail("run twice"))
    hook = FakeHook({NAME: ["InProgress", "InProgress", "Completed"]}, {NAME: OWNER.tags()})
    run(hook, {**create_request(), "S3Operations": {"S3CreateBucket": [{"Bucket": "models"}]}})


# --- what is refused before any call -----------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("HyperParameterTuningJobConfig", None, "HyperParameterTuningJobConfig"),
        ("HyperParameterTuningJobConfig.Strategy", None, "HyperParameterTuningJobConfig.Strategy"),
        ("HyperParameterTuningJobName", "n" * 33, "HyperParameterTuningJobName"),
        ("HyperParameterTuningJobName", "no_underscore", "HyperParameterTuningJobName"),
        ("HyperParameterTuningJobConfig.Strategy", "Guess", "HyperParameterTuningJobConfig.Strategy"),
        (
            "HyperParameterTuningJobConfig.ResourceLimits.MaxRuntimeInSeconds",
            60,
            "HyperParameterTuningJobConfig.ResourceLimits.MaxRuntimeInSeconds",
        ),
        ("TrainingJobDefinition.RoleArn", "not a role", "TrainingJobDefinition.RoleArn"),
        ("TrainingJobDefinition.RoleArn", None, "TrainingJobDefinition.RoleArn"),
        ("Unknown", 1, "Unknown"),
        ("Tags", "team=ml", "Tags"),
    ],
)
def test_a_malformed_request_is_refused_without_a_call(path: str, value: Any, field: str) -> None:
    config = create_request()
    set_path(config, path, value)
    hook = FakeHook()
    with pytest.raises(AmtRequestError) as caught:
        run(hook, config)
    assert field in [problem.field for problem in caught.value.problems]
    assert hook.calls == []


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"config": "{{ nothing }}"}, "config"),
        ({"criteria": {"max_training_jobs": "many"}}, "max_training_jobs"),
        ({"criteria": {"max_jobs": 3}}, "criteria.max_jobs"),
        ({"criteria": 3}, "criteria"),
        (
            {"criteria": CompletionCriteria(max_training_jobs=5)},
            "HyperParameterTuningJobConfig.ResourceLimits.MaxNumberOfTrainingJobs",
        ),
        ({"check_interval": "soon"}, "check_interval"),
        ({"check_interval": 0}, "check_interval"),
        ({"check_interval": True}, "check_interval"),
        ({"max_ingestion_time": "-1"}, "max_ingestion_time"),
        ({"max_ingestion_time": float("nan")}, "max_ingestion_time"),
        ({"job_name_prefix": "other"}, "job_name_prefix"),
    ],
)
def test_malformed_arguments_are_refused_without_a_call(options: dict[str, Any], field: str) -> None:
    hook = FakeHook()
    with pytest.raises(AmtRequestError) as caught:
        run(hook, **options)
    assert [problem.field for problem in caught.value.problems] == [field]
    assert hook.calls == []


def test_all_problems_are_listed_at_once_and_each_field_once() -> None:
    config = create_request(
        HyperParameterTuningJobConfig__Strategy="Guess",
        HyperParameterTuningJobConfig__ResourceLimits__MaxNumberOfTrainingJobs=0,
        TrainingJobDefinition__RoleArn=None,
    )
    criteria = {"max_training_jobs": 5, "max_runtime": None}
    options = {"check_interval": "soon", "max_ingestion_time": -1, "job_name_prefix": "other"}
    hook = FakeHook()
    with pytest.raises(AmtRequestError, match="6 fields are wrong") as caught:
        run(hook, config, criteria=criteria, **options)
    problems = {problem.field: problem for problem in caught.value.problems}
    number = "HyperParameterTuningJobConfig.ResourceLimits.MaxNumberOfTrainingJobs"
    assert set(problems) == {
        number,
        "HyperParameterTuningJobConfig.Strategy",
        "TrainingJobDefinition.RoleArn",
        "check_interval",
        "max_ingestion_time",
        "job_name_prefix",
    }
    assert "criteria.max_training_jobs says 5" in problems[number].limit
    assert hook.calls == []


def test_criteria_that_cannot_be_parsed_do_not_hide_the_other_problems() -> None:
    config = create_request(TrainingJobDefinition__RoleArn=None)
    with pytest.raises(AmtRequestError) as caught:
        run(FakeHook(), config, criteria={"max_training_jobs": "many", "max_runtime": 5})
    assert [problem.field for problem in caught.value.problems] == [
        "max_training_jobs",
        "max_runtime",
        "TrainingJobDefinition.RoleArn",
    ]
    options: dict[str, Any] = {"config": "{{ x }}", "criteria": {"max_jobs": 3}, "check_interval": 0}
    with pytest.raises(AmtRequestError) as caught:
        run(FakeHook(), **options)
    assert [problem.field for problem in caught.value.problems] == [
        "config",
        "criteria.max_jobs",
        "check_interval",
    ]


# --- what is warned of -------------------------------------------------------------------------


def warnings_of(hook: FakeHook, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[str]:
    log = loud_log()
    monkeypatch.setattr(AmtTuningJobOperator, "log", log)
    run(hook, **options)
    # Airflow itself warns of an operator that is executed outside of a task.
    return [line for line in log.lines if line.startswith("warning: ") and "Task Runner" not in line]


LIMITS = "HyperParameterTuningJobConfig__ResourceLimits__"


@pytest.mark.parametrize(
    ("changes", "criteria", "warned"),
    [
        ({}, None, True),
        ({}, {"target_objective_value": 0.9, "complete_on_convergence": True}, True),
        ({}, {"max_runtime": 3600}, False),
        ({}, {"max_training_jobs": 5}, False),
        ({f"{LIMITS}MaxNumberOfTrainingJobs": 5}, None, False),
        ({f"{LIMITS}MaxRuntimeInSeconds": 3600}, None, False),
        ({"Autotune": {"Mode": "Enabled"}}, None, False),
    ],
)
def test_a_job_that_may_never_end_is_warned_of_once(
    changes: dict[str, Any], criteria: Any, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = create_request(**{f"{LIMITS}MaxNumberOfTrainingJobs": None, **changes})
    hook = FakeHook({NAME: ["Completed"]})
    lines = warnings_of(hook, monkeypatch, config=config, criteria=criteria)
    assert len(lines) == warned
    if warned:
        assert "Neither max_training_jobs nor max_runtime limits" in lines[0]


def test_a_grid_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    config = create_request(**{f"{LIMITS}MaxNumberOfTrainingJobs": None})
    config["HyperParameterTuningJobConfig"]["Strategy"] = "Grid"
    ranges = config["HyperParameterTuningJobConfig"]["ParameterRanges"]
    del ranges["ContinuousParameterRanges"], ranges["IntegerParameterRanges"]
    assert warnings_of(FakeHook({NAME: ["Completed"]}), monkeypatch, config=config) == []


@pytest.mark.parametrize("best", [False, True])
def test_an_end_without_any_objective_is_warned_of(best: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    final = describe(status="Completed")
    if not best:
        del final["BestTrainingJob"]
    lines = warnings_of(FakeHook({NAME: [final]}), monkeypatch)
    expected = (
        f"warning: Tuning job {NAME}: no training job gave an objective; check MetricDefinitions' Regex or "
        "the training jobs' failures."
    )
    assert lines == ([] if best else [expected])


# --- names that are taken ----------------------------------------------------------------------


def test_a_retry_adopts_its_own_job() -> None:
    hook = FakeHook({DERIVED: ["InProgress", "InProgress", "Completed"]}, {DERIVED: OWNER.tags()})
    result, xcom = run(hook, unnamed())
    assert len(hook.named("create")) == 1
    assert result["reason"] == "max_training_jobs"
    assert xcom["tuning_job_name"] == DERIVED


def test_a_retry_adopts_a_job_with_a_derived_name_whose_tags_cannot_be_read() -> None:
    hook = FakeHook({DERIVED: ["InProgress", "Completed"]}, {DERIVED: None})
    assert run(hook, unnamed())[0]["tuning_job_name"] == DERIVED


DELIVERED = {"airflow-amt:delivered": "2026-01-01T00:00:00+00:00"}
REPORTED = {"airflow-amt:reported": "2026-01-01T00:00:00+00:00"}


@pytest.mark.parametrize(
    ("status", "tags"),
    [
        (["Completed"], DELIVERED),
        (["Failed"], {}),
        (["Stopped"], {}),
        (["Stopped"], REPORTED),
        (["Stopped"], {"airflow-amt:stopped-by": "on_kill"}),
        (["Stopping", "Stopping", "Stopped"], {"airflow-amt:stopped-by": "on_kill"}),
    ],
    ids=["delivered", "failed", "stopped", "reported", "killed", "stopping"],
)
def test_after_an_own_job_whose_result_is_not_owed_the_next_generation_is_started(
    status: list[str], tags: dict[str, str]
) -> None:
    second = derive_job_name(OWNER, generation=2)
    hook = FakeHook({DERIVED: list(status), second: ["Completed"]}, {DERIVED: {**OWNER.tags(), **tags}})
    result, _ = run(hook, unnamed())
    assert result["tuning_job_name"] == second
    sent = {tag["Key"]: tag["Value"] for tag in hook.named("create")[1]["Tags"]}
    assert sent["airflow-amt:generation"] == "2"


def test_a_result_that_was_never_delivered_is() -> None:
    hook = FakeHook({DERIVED: ["Completed"]}, {DERIVED: OWNER.tags()})
    result, _ = run(hook, unnamed())
    assert result["tuning_job_name"] == DERIVED
    assert len(hook.named("create")) == 1


def test_a_stop_at_the_deadline_that_was_never_reported_is_reported_once() -> None:
    hook = FakeHook({DERIVED: ["Stopped"]}, {DERIVED: {**OWNER.tags(), "airflow-amt:stopped-by": "deadline"}})
    with pytest.raises(AmtTuningJobTimeout):
        run(hook, unnamed())
    assert "airflow-amt:reported" in (hook.tags_of[DERIVED] or {})
    second = derive_job_name(OWNER, generation=2)
    hook.script[second] = ["Completed"]
    assert run(hook, unnamed())[0]["tuning_job_name"] == second


def test_a_later_try_asks_for_the_latest_generation_whatever_its_prefix() -> None:
    third = derive_job_name(OWNER, prefix="another", generation=3)
    names = [derive_job_name(OWNER, prefix="another", generation=number) for number in (1, 2, 3)]
    hook = FakeHook(
        {names[0]: ["Failed"], names[1]: ["Stopped"], third: ["InProgress", "Completed"]},
        dict.fromkeys(names, OWNER.tags()),
    )
    context = task_context(try_number=3)
    result, _ = run_task(lambda: operator(unnamed()), context, hook)
    assert result["tuning_job_name"] == third
    assert hook.named("create") == []
    assert hook.named("add_tags")[0] == (third, {"airflow-amt:try": "3"})


def test_the_task_state_store_spares_the_search() -> None:
    store: dict[str, Any] = {}
    first, second = task_context(), task_context(try_number=2)
    for context in (first, second):
        context["task_state_store"] = SimpleNamespace(get=store.get, set=store.__setitem__)
    hook = FakeHook({DERIVED: ["InProgress", "Completed"]})
    run_task(lambda: operator(unnamed()), first, hook)
    assert store == {
        "airflow_amt_tuning_job": {"version": 1, "name": DERIVED, "generation": 1, "delivered": False}
    }
    hook.calls.clear()
    result, _ = run_task(lambda: operator(unnamed()), second, hook)
    assert result["tuning_job_name"] == DERIVED
    assert hook.named("create") == []
    assert hook.named("list") == []


@pytest.mark.parametrize("active", [True, False])
def test_if_exists_new_leaves_one_active_job(active: bool) -> None:
    second = derive_job_name(OWNER, generation=2)
    hook = FakeHook(
        {DERIVED: ["InProgress" if active else "Completed"], second: ["Completed"]},
        {DERIVED: OWNER.tags()},
    )
    result, _ = run(hook, unnamed(), if_exists="new")
    assert result["tuning_job_name"] == second
    assert [name for name, _, _ in hook.named("stop")] == ([DERIVED] if active else [])


def test_if_exists_fail_fails() -> None:
    hook = FakeHook({DERIVED: ["InProgress"]}, {DERIVED: OWNER.tags()})
    with pytest.raises(AmtOwnJobEndedError, match="InProgress"):
        run(hook, unnamed(), if_exists="fail")


def test_another_request_than_that_of_the_adopted_job_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = FakeHook({DERIVED: ["InProgress", "Completed"]})
    hook.create_tuning_job({"HyperParameterTuningJobName": DERIVED})
    hook.tags_of[DERIVED] = {**OWNER.tags(), "airflow-amt:request": "other"}
    lines = warnings_of(hook, monkeypatch, config=unnamed())
    assert any("created from another request" in line for line in lines)


def test_a_given_name_of_an_own_job_that_is_over_is_an_error_that_says_so() -> None:
    hook = FakeHook({NAME: ["Completed"]}, {NAME: {**OWNER.tags(), **DELIVERED}})
    with pytest.raises(AmtOwnJobEndedError, match=r"earlier try of this very task started it.*Completed"):
        run(hook)


def test_a_given_name_whose_owner_cannot_be_told_is_an_error_that_says_what_is_missing() -> None:
    with pytest.raises(AmtUnknownOwnerError, match="allow sagemaker:ListTags"):
        run(FakeHook({NAME: ["InProgress"]}, {NAME: None}))


def test_a_name_that_is_taken_by_nothing_is_an_error_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_amt._claim.MOST_VANISHED", 2)

    class Taken(FakeHook):
        def create_tuning_job(self, request: Any) -> str:
            self.calls.append(("create", None))
            raise aws_error("CreateHyperParameterTuningJob", "ResourceInUse", "it is taken", 400)

    hook = Taken()
    with pytest.raises(AmtResourceInUseError, match="it is taken"):
        run(hook)
    assert len(hook.named("create")) == 3


@pytest.mark.parametrize(("if_exists", "second"), [("adopt", 2), ("new", 2), ("fail", None)])
def test_a_dag_run_that_was_deleted_and_made_anew_has_a_job_of_its_own(
    if_exists: str, second: int | None
) -> None:
    """Its first try has the number of the one that is gone, but not its id."""
    hook = FakeHook({DERIVED: ["InProgress"]})
    run(hook, unnamed(), wait_for_completion=False)
    hook.stop_tuning_job(DERIVED, stopped_by="on_kill")
    hook.tags_of[DERIVED]["airflow-amt:stopped-by"] = "on_kill"  # type: ignore[index]
    if second is None:
        with pytest.raises(AmtOwnJobEndedError):
            run(hook, unnamed(), if_exists=if_exists)
        return
    started, _ = run(hook, unnamed(), if_exists=if_exists, wait_for_completion=False)
    assert started["tuning_job_name"] == derive_job_name(OWNER, generation=second)


def test_if_exists_new_is_refused_beside_a_given_name() -> None:
    hook = FakeHook()
    with pytest.raises(AmtRequestError, match=r"if_exists: 'new'.*config gives a name \(churn-model\)"):
        run(hook, if_exists="new")
    assert hook.calls == []


def test_tags_must_leave_room_for_all_that_the_job_will_get() -> None:
    room = 50 - len(own_tags())
    tags = [{"Key": f"team-{number}", "Value": "ml"} for number in range(room + 1)]
    run(FakeHook({NAME: ["Completed"]}), {**create_request(), "Tags": tags[:-1]})
    with pytest.raises(AmtRequestError, match=rf"Tags: '{room + 1} tags' is not accepted: at most {room}"):
        run(FakeHook(), {**create_request(), "Tags": tags})


@pytest.mark.parametrize("tags", [{}, {"airflow-amt:dag-id": "other"}])
def test_a_given_name_of_somebody_elses_job_is_an_error_with_both_owners(tags: dict[str, str]) -> None:
    hook = FakeHook({NAME: ["InProgress"]}, {NAME: tags})
    with pytest.raises(AmtJobExistsError, match="belongs to somebody else") as caught:
        run(hook)
    assert caught.value.ours == OWNER.tags()
    assert caught.value.theirs == tags


# --- how it ends -------------------------------------------------------------------------------


@WAYS
def test_success_returns_and_publishes_the_outcome(deferrable: bool) -> None:
    hook = FakeHook({NAME: ["InProgress", "InProgress", "InProgress", "Completed"]})
    context = task_context()
    result, events = run_task(lambda: operator(deferrable=deferrable), context, hook)
    assert result["reason"] == "max_training_jobs"
    assert context["ti"].xcom == {
        "tuning_job_name": NAME,
        "_link_AmtTuningJobLink": (
            "https://eu-west-1.console.aws.amazon.com/sagemaker/home?region=eu-west-1"
            "#/hyper-tuning-jobs/churn-model"
        ),
        "outcome": result,
    }
    assert [event["event"] for event in events] == (["ended"] if deferrable else [])


@WAYS
def test_a_job_that_is_over_never_defers(deferrable: bool) -> None:
    hook = FakeHook({NAME: ["Completed"]})
    result, events = run_task(lambda: operator(deferrable=deferrable), task_context(), hook)
    assert (result["status"], events) == ("Completed", [])


@WAYS
@pytest.mark.parametrize(
    ("final", "error"),
    [
        (describe(status="Failed", FailureReason="no capacity"), AmtTuningJobFailed),
        ("Stopped", AmtTuningJobStopped),
        ("Deleting", AmtTuningJobFailed),
    ],
    ids=["Failed", "Stopped", "Deleting"],
)
def test_a_job_that_does_not_succeed_fails_the_task_and_still_leaves_its_outcome(
    deferrable: bool, final: Any, error: type[Exception]
) -> None:
    hook = FakeHook({NAME: ["InProgress", "InProgress", final]})
    context = task_context()
    with pytest.raises(error) as caught:
        run_task(lambda: operator(deferrable=deferrable), context, hook)
    outcome = context["ti"].xcom["outcome"]
    assert getattr(caught.value, "outcome", None) == outcome
    assert outcome["explanation"] in str(caught.value)
    assert "churn-model-001" in str(caught.value)


def test_an_error_message_carries_the_training_jobs_failure_reasons() -> None:
    outcome = {
        "tuning_job_name": NAME,
        "explanation": "The tuning job failed.",
        "best_training_job": None,
        "training_job_failure_reasons": [{"reason": "AlgorithmError: out of memory", "count": 5}],
    }
    assert str(AmtTuningJobFailed(outcome)) == (
        "Tuning job 'churn-model': The tuning job failed. No training job gave an objective. "
        "Failed training jobs: 5 x AlgorithmError: out of memory."
    )


@WAYS
def test_transient_errors_while_waiting_do_not_fail_the_task(deferrable: bool) -> None:
    hook = FakeHook({NAME: ["InProgress", UNAVAILABLE, THROTTLED, UNAVAILABLE, "Completed"]})
    result, _ = run_task(lambda: operator(deferrable=deferrable), task_context(), hook)
    assert result["reason"] == "max_training_jobs"


@WAYS
@pytest.mark.parametrize("error", [DENIED, not_found(NAME)], ids=["denied", "not-found"])
def test_permanent_errors_while_waiting_fail_it_at_once(deferrable: bool, error: Exception) -> None:
    hook = FakeHook({NAME: ["InProgress", error]})
    with pytest.raises((AmtAccessDeniedError, AmtResourceNotFoundError)) as caught:
        run_task(lambda: operator(deferrable=deferrable), task_context(), hook)
    assert caught.value.args == error.args
    assert len(hook.named("describe")) <= 3


@WAYS
def test_too_many_transient_errors_in_a_row_fail_it(
    deferrable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = FakeHook({NAME: ["InProgress", UNAVAILABLE]})
    with pytest.raises(AmtAwsError, match="try again"):
        run_task(lambda: operator(deferrable=deferrable), task_context(), hook)
    assert len(hook.named("describe")) in (1 + 20, 1 + 20 + 1)


def test_what_the_triggerer_may_not_read_but_the_worker_can_is_no_failure_once_it_is_over() -> None:
    """The event is a hint: the triggerer was denied, the resumed task reads a job that is over."""
    hook = FakeHook({NAME: ["InProgress", DENIED, "Completed"]})
    result, events = run_task(lambda: operator(deferrable=True), task_context(), hook)
    assert events[0]["event"] == "error"
    assert result["reason"] == "max_training_jobs"


def test_an_event_that_lies_is_not_believed() -> None:
    hook = FakeHook({NAME: ["InProgress", "Completed"]}, {NAME: OWNER.tags()})
    task = operator()
    use_hook(task, hook)
    event = {"version": 1, "tuning_job_name": NAME, "event": "ended", "status": "Completed"}
    assert task.execute_complete(task_context(), event)["reason"] == "max_training_jobs"
    assert hook.named("describe").count(NAME) == 3


@WAYS
def test_without_waiting_it_returns_what_was_started(deferrable: bool) -> None:
    context = task_context()
    result, events = run_task(
        lambda: operator(wait_for_completion=False, deferrable=deferrable), context, FakeHook()
    )
    assert result == {
        "version": 1,
        "tuning_job_name": NAME,
        "tuning_job_arn": ARN + NAME,
        "status": "InProgress",
    }
    assert events == []
    assert set(context["ti"].xcom) == {"tuning_job_name", "_link_AmtTuningJobLink"}


# --- the deadline ------------------------------------------------------------------------------


@WAYS
def test_after_max_ingestion_time_the_job_is_stopped_and_waited_for(deferrable: bool) -> None:
    hook = FakeHook(stop_takes_effect="Stopping")

    class Stopping(FakeHook):
        def stop_tuning_job(self, name: str, **options: Any) -> bool:
            stopped = super().stop_tuning_job(name, **options)
            self.script[name] = ["Stopping", "Stopping", "Stopping", "Stopped"]
            return stopped

    hook = Stopping()
    context = task_context()
    with pytest.raises(AmtTuningJobTimeout) as caught:
        run_task(lambda: operator(deferrable=deferrable, max_ingestion_time=0.3), context, hook)
    assert hook.named("stop") == [(NAME, "deadline", "max_ingestion_time of 0.3 s is over")]
    outcome = context["ti"].xcom["outcome"]
    assert caught.value.outcome == outcome
    assert outcome["status"] == "Stopped"
    assert outcome["evidence"] == {
        "stopped_by": "deadline",
        "detail": "max_ingestion_time of 0.3 s is over",
        "requested_by": LABEL,
    }


@WAYS
def test_a_job_that_completes_before_the_stop_reaches_it_succeeds(deferrable: bool) -> None:
    hook = FakeHook(stop_takes_effect="Completed")
    result, _ = run_task(
        lambda: operator(deferrable=deferrable, max_ingestion_time=0.2), task_context(), hook
    )
    assert result["reason"] == "max_training_jobs"


@WAYS
def test_the_deadline_of_an_adopted_job_counts_from_its_creation(deferrable: bool) -> None:
    created = describe(CreationTime=datetime.now(UTC) - timedelta(hours=2))
    hook = FakeHook({NAME: [created, created, created, "Completed"]}, {NAME: OWNER.tags()})
    with pytest.raises(AmtTuningJobTimeout):
        run_task(lambda: operator(deferrable=deferrable, max_ingestion_time=3600), task_context(), hook)


# --- kills -------------------------------------------------------------------------------------


@pytest.fixture
def killed() -> Iterator[list[AmtTuningJobOperator]]:
    """Calls on_kill of the operators put into it, from another thread, after a moment."""
    tasks: list[AmtTuningJobOperator] = []

    def kill() -> None:
        until = time.monotonic() + 5
        while not (tasks and tasks[0]._job_name) and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.2)
        tasks[0].on_kill()

    thread = threading.Thread(target=kill)
    thread.start()
    yield tasks
    thread.join()


@pytest.fixture
def state_of_the_task(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the supervisor answers for the task's state; nobody can be asked here."""
    states: list[Any] = ["failed"]

    def read(*key: Any) -> Any:
        assert key == (OWNER.dag_id, OWNER.run_id, OWNER.task_id, -1)
        if isinstance(states[0], Exception):
            raise states[0]
        return states[0]

    monkeypatch.setattr(_compat, "read_task_state", read)
    return states


def run_killed(hook: FakeHook, killed: list[AmtTuningJobOperator], *, tries: int = 0, **options: Any) -> str:
    def make() -> AmtTuningJobOperator:
        killed.append(operator(check_interval=60, **options))
        return killed[0]

    began = time.monotonic()
    with pytest.raises(AmtTaskKilled) as caught:
        run_task(make, task_context(max_tries=tries), hook)
    assert time.monotonic() - began < 5, "the kill did not end the wait"
    return str(caught.value)


@pytest.mark.parametrize("state", ["failed", "success", "skipped", None])
def test_a_kill_by_a_person_stops_the_job_and_ends_the_polling(
    killed: list[AmtTuningJobOperator], state_of_the_task: list[Any], state: str | None
) -> None:
    state_of_the_task[0] = state
    hook = FakeHook()
    assert "is being stopped" in run_killed(hook, killed)
    assert hook.named("stop") == [
        (NAME, "on_kill", f"the task was killed, its state is {state or 'cleared'}")
    ]


@pytest.mark.parametrize("tries", [0, 1])
def test_a_worker_that_is_shut_down_leaves_the_job_to_the_next_try(
    killed: list[AmtTuningJobOperator], state_of_the_task: list[Any], tries: int
) -> None:
    state_of_the_task[0] = "running"
    hook = FakeHook()
    said = run_killed(hook, killed, tries=tries)
    assert ("the next try adopts it" in said) == (tries == 1)
    assert len(hook.named("stop")) == (1 if tries == 0 else 0)


def test_a_try_whose_job_a_later_one_has_adopted_leaves_it_alone(
    killed: list[AmtTuningJobOperator], state_of_the_task: list[Any]
) -> None:
    state_of_the_task[0] = "running"

    class Adopted(FakeHook):
        def tags(self, arn: str) -> dict[str, str] | None:
            return {**(super().tags(arn) or {}), "airflow-amt:try": "2"}

    hook = Adopted()
    assert "a later try" in run_killed(hook, killed)
    assert hook.named("stop") == []


def test_a_kill_that_cannot_be_confirmed_stops_nothing(
    killed: list[AmtTuningJobOperator], state_of_the_task: list[Any]
) -> None:
    state_of_the_task[0] = RuntimeError("no supervisor")
    hook = FakeHook()
    assert "cannot be read" in run_killed(hook, killed)
    assert hook.named("stop") == []


def test_a_kill_leaves_the_job_alone_when_told_so(killed: list[AmtTuningJobOperator]) -> None:
    hook = FakeHook()
    assert "left as it is" in run_killed(hook, killed, stop_on_kill=False)
    assert hook.named("stop") == []


def test_a_kill_during_the_create_call_stops_the_job_that_it_created(state_of_the_task: list[Any]) -> None:
    class Slow(FakeHook):
        def create_tuning_job(self, request: Any) -> str:
            task.on_kill()  # as a signal handler does, in the middle of the call
            return super().create_tuning_job(request)

    hook = Slow()
    task = operator()
    use_hook(task, hook)
    with pytest.raises(AmtTaskKilled, match="is being stopped"):
        task.execute(task_context())
    assert [name for name, _, _ in hook.named("stop")] == [NAME, NAME]


def test_a_kill_before_there_is_a_name_creates_nothing(state_of_the_task: list[Any]) -> None:
    class Slow(FakeHook):
        def expand_role(self, role: str, region_name: str | None = None) -> str:
            task.on_kill()
            return super().expand_role(role)

    hook = Slow()
    config = create_request()
    set_path(config, "TrainingJobDefinition.RoleArn", "training")
    task = operator(config)
    use_hook(task, hook)
    with pytest.raises(AmtTaskKilled, match="no tuning job was created"):
        task.execute(task_context())
    assert hook.named("create") == []


def test_a_kill_while_an_earlier_job_is_looked_at_starts_no_other(state_of_the_task: list[Any]) -> None:
    class Slow(FakeHook):
        def outcome(self, name: str, **options: Any) -> Any:
            task.on_kill()
            return super().outcome(name, **options)

    hook = Slow({DERIVED: ["Failed"]}, {DERIVED: {**OWNER.tags(), "airflow-amt:try": "1"}})
    task = operator(unnamed())
    use_hook(task, hook)
    with pytest.raises(AmtTaskKilled, match="no tuning job was created"):
        task.execute(task_context(try_number=2))
    assert hook.named("create") == []


def test_a_kill_while_the_next_job_is_created_stops_that_one(state_of_the_task: list[Any]) -> None:
    class Slow(FakeHook):
        def create_tuning_job(self, request: Any) -> str:
            if request["HyperParameterTuningJobName"] == second:
                task.on_kill()
            return super().create_tuning_job(request)

    second = derive_job_name(OWNER, generation=2)
    hook = Slow({DERIVED: ["Failed"]}, {DERIVED: {**OWNER.tags(), "airflow-amt:try": "1"}})
    task = operator(unnamed())
    use_hook(task, hook)
    with pytest.raises(AmtTaskKilled, match="is being stopped"):
        task.execute(task_context(try_number=2))
    assert hook.describe_tuning_job(second)["HyperParameterTuningJobStatus"] == "Stopped"


def test_a_deferral_waits_for_the_thread_of_a_kill() -> None:
    """The process ends with the deferral, and the thread with it."""
    task = operator(deferrable=True)
    use_hook(task, FakeHook())
    task._killer = threading.Thread(target=time.sleep, args=(0.3,))
    task._killer.start()
    with pytest.raises(TaskDeferred):
        task.execute(task_context())
    assert not task._killer.is_alive()


def test_a_next_try_that_adopts_nothing_is_no_reason_to_leave_the_job(
    killed: list[AmtTuningJobOperator], state_of_the_task: list[Any]
) -> None:
    state_of_the_task[0] = "running"
    hook = FakeHook()
    run_killed(hook, killed, tries=1, if_exists="fail")
    assert len(hook.named("stop")) == 1


def test_the_end_of_execution_timeout_stops_the_job(state_of_the_task: list[Any]) -> None:
    """As Airflow calls it: in its handler of the timeout, while the task's state is still running."""
    state_of_the_task[0] = "running"
    hook = FakeHook({NAME: ["InProgress"]})
    task = operator()
    use_hook(task, hook)
    task._job_name = NAME
    try:
        raise _compat.AirflowTaskTimeout
    except _compat.AirflowTaskTimeout:
        task.on_kill()
    assert hook.named("stop") == [(NAME, "deadline", "execution_timeout is over")]


def test_killed_twice_it_stops_once(state_of_the_task: list[Any]) -> None:
    hook = FakeHook({NAME: ["InProgress"]})
    task = operator()
    use_hook(task, hook)
    task._job_name, task._task_key = NAME, (OWNER.dag_id, OWNER.run_id, OWNER.task_id, -1)
    task.on_kill()
    task.on_kill()
    assert len(hook.named("stop")) == 1


@pytest.mark.parametrize("error", [DENIED, not_found(NAME)], ids=["denied", "not-found"])
def test_a_kill_that_cannot_stop_the_job_does_not_raise(
    error: Exception, state_of_the_task: list[Any]
) -> None:
    task = operator()
    use_hook(task, FakeHook({NAME: [error]}))
    task._job_name, task._task_key = NAME, (OWNER.dag_id, OWNER.run_id, OWNER.task_id, -1)
    task.on_kill()


def test_a_kill_before_there_is_a_job_does_nothing() -> None:
    hook = FakeHook()
    task = operator()
    use_hook(task, hook)
    task.on_kill()
    assert hook.calls == []


# --- what a DAG author sees --------------------------------------------------------------------


def test_the_amazon_operators_arguments_are_taken_as_they_are() -> None:
    import inspect

    from airflow.providers.amazon.aws.operators.sagemaker import SageMakerTuningOperator

    theirs = {
        name
        for kind in SageMakerTuningOperator.__mro__
        if kind.__module__.startswith("airflow.providers.amazon")
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    ours = set(inspect.signature(AmtTuningJobOperator).parameters)
    assert theirs - ours == {"region"}, "all but their deprecated alias of region_name"
    assert {"config", "aws_conn_id", "verify"} <= theirs


def test_the_default_of_deferrable_is_airflows() -> None:
    from airflow_amt._compat import default_deferrable

    assert default_deferrable() is False
    assert AmtTuningJobOperator(task_id="tune", config={}).deferrable is False


def test_init_stores_and_checks_nothing() -> None:
    task = AmtTuningJobOperator(task_id="tune", config={"Nonsense": 1}, criteria={"x": 1}, check_interval="?")
    assert task.config == {"Nonsense": 1}
    assert "hook" not in vars(task)


# --- judging, delivering, waiting for a quota ---------------------------------------------------


@WAYS
@pytest.mark.parametrize(
    ("options", "ending"),
    [
        ({"fail_on": ["max_training_jobs"]}, "fail"),
        ({"skip_on": ["max_training_jobs"]}, "skip"),
        ({}, "succeed"),
    ],
)
def test_the_policy_decides_in_both_modes(deferrable: bool, options: dict[str, Any], ending: str) -> None:
    hook = FakeHook({NAME: ["InProgress", "InProgress", "Completed"]})
    context = task_context()
    expected = {"fail": AmtTuningJobFailed, "skip": _compat.AirflowSkipException}.get(ending)
    if expected is None:
        run_task(lambda: operator(deferrable=deferrable, **options), context, hook)
    else:
        with pytest.raises(expected):
            run_task(lambda: operator(deferrable=deferrable, **options), context, hook)
    assert context["ti"].xcom["outcome"]["reason"] == "max_training_jobs"
    assert ("airflow-amt:reported" in (hook.tags_of[NAME] or {})) == (ending == "fail")


def test_a_stopped_job_with_a_good_enough_model_is_a_success() -> None:
    hook = FakeHook({NAME: ["InProgress", "Stopped"]})
    assert run(hook, good_enough="0.9")[0]["status"] == "Stopped"


def accept(task: AmtTuningJobOperator, context: Any, kind: str = "on_success_callback") -> None:
    """Call the callbacks as Airflow does once it has accepted the end of the task."""
    context["task"] = task
    for callback in getattr(task, kind):
        callback(context)


def test_callbacks_of_a_dags_author_are_called_too() -> None:
    called: list[Any] = []
    task = operator(on_success_callback=called.append)
    accept(task, context := task_context())
    assert called == [context]


def test_a_skip_is_delivered_too(state_of_the_task: list[Any]) -> None:
    state_of_the_task[0] = "skipped"
    hook = FakeHook({NAME: ["Completed"]})
    context = task_context()
    task = operator(skip_on=["max_training_jobs"])
    use_hook(task, hook)
    with pytest.raises(_compat.AirflowSkipException):
        task.execute(context)
    accept(task, context, "on_skipped_callback")
    assert "airflow-amt:delivered" in (hook.tags_of[NAME] or {})


@pytest.mark.parametrize(("state", "recorded"), [("success", True), ("failed", False)])
def test_a_result_counts_as_delivered_once_airflow_has_accepted_it(
    state_of_the_task: list[Any], state: str, recorded: bool
) -> None:
    state_of_the_task[0] = state
    hook = FakeHook({NAME: ["Completed"]})
    context = task_context()
    task = operator()
    use_hook(task, hook)
    task.execute(context)
    accept(task, context)
    assert ("airflow-amt:delivered" in (hook.tags_of[NAME] or {})) == recorded


@pytest.mark.parametrize("cleared", [True, False])
def test_the_task_state_store_too_knows_what_was_delivered(
    state_of_the_task: list[Any], cleared: bool
) -> None:
    """Airflow empties it on success, unless ``clear_on_success`` is off."""
    state_of_the_task[0] = "success"
    store: dict[str, Any] = {}
    hook = FakeHook({DERIVED: ["Completed"]})
    context = task_context()
    context["task_state_store"] = SimpleNamespace(get=store.get, set=store.__setitem__)
    task = operator(unnamed())
    use_hook(task, hook)
    task.execute(context)
    if cleared:
        store.clear()
    accept(task, context)
    assert [one["delivered"] for one in store.values()] == ([] if cleared else [True])
    again = task_context(try_number=2)
    again["task_state_store"] = context["task_state_store"]
    started, _ = run_task(lambda: operator(unnamed(), wait_for_completion=False), again, hook)
    assert started["tuning_job_name"] == derive_job_name(OWNER, generation=2)


LIMIT = aws_error("CreateHyperParameterTuningJob", "ResourceLimitExceeded", "100 tuning jobs run", 400)


class Full(FakeHook):
    """An account whose quota is used up for so many create calls."""

    refusals = 0

    def create_tuning_job(self, request: Any) -> str:
        if self.refusals > 0:
            self.refusals -= 1
            raise LIMIT
        return super().create_tuning_job(request)


@WAYS
def test_a_used_up_quota_is_waited_for(deferrable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_amt.operators.tuning._QUOTA_WAIT_SECONDS", 0.01)
    hook = Full({NAME: ["Completed"]})
    hook.refusals = 3
    context = task_context()
    result, events = run_task(lambda: operator(on_quota="wait", deferrable=deferrable), context, hook)
    assert result["tuning_job_name"] == NAME
    assert [event["event"] for event in events] == (["quota"] * 3 if deferrable else [])


@WAYS
@pytest.mark.parametrize(
    ("limit", "error", "message"),
    [
        ({"quota_timeout": 0.2}, AmtResourceLimitExceededError, "100 tuning jobs run"),
        (
            {"execution_timeout": timedelta(seconds=0.3)},
            _compat.AirflowTaskTimeout,
            "execution_timeout is over, a quota used up since",
        ),
    ],
    ids=["quota_timeout", "execution_timeout"],
)
def test_a_quota_is_not_waited_for_longer_than_asked(
    limit: dict[str, Any],
    error: type[BaseException],
    message: str,
    deferrable: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("airflow_amt.operators.tuning._QUOTA_WAIT_SECONDS", 0.01)
    hook = Full()
    hook.refusals = 1000
    with pytest.raises(error, match=message):
        run_task(
            lambda: operator(on_quota="wait", deferrable=deferrable, **limit),
            task_context(),
            hook,
            most_deferrals=50,
        )


def test_no_job_is_created_after_execution_timeout() -> None:
    hook = FakeHook()
    state = {"waits_for": "quota", "timeout_at": "2026-01-01T00:00:00+00:00", "quota_attempts": 1}
    task = operator(on_quota="wait", deferrable=True, execution_timeout=timedelta(hours=1))
    use_hook(task, hook)
    with pytest.raises(_compat.AirflowTaskTimeout, match="no tuning job is created"):
        task.execute_complete(task_context(), {"event": "quota", "state": state})
    assert hook.named("create") == []


def test_waiting_for_a_quota_on_a_worker_does_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_amt.operators.tuning._QUOTA_WAIT_SECONDS", 0.0)
    depths: list[int] = []

    class Deep(Full):
        def create_tuning_job(self, request: Any) -> str:
            depths.append(len(inspect.stack(0)))
            return super().create_tuning_job(request)

    hook = Deep({NAME: ["Completed"]})
    hook.refusals = 20
    run(hook, on_quota="wait")
    assert len(depths) == 21
    assert len(set(depths)) == 1


def test_the_log_says_which_rule_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    log = loud_log()
    monkeypatch.setattr(AmtTuningJobOperator, "log", log)
    with pytest.raises(AmtTuningJobFailed):
        run(FakeHook({NAME: ["Failed"]}))
    assert "info: The task is to fail: it is Failed." in log.lines


def test_by_default_a_used_up_quota_fails_the_task() -> None:
    hook = Full()
    hook.refusals = 1
    with pytest.raises(AmtResourceLimitExceededError):
        run(hook)


@WAYS
def test_execution_timeout_is_a_deadline_in_both_modes(deferrable: bool) -> None:
    hook = FakeHook()
    with pytest.raises(AmtTuningJobTimeout, match=r"execution_timeout of 0\.4 s is over"):
        run_task(
            lambda: operator(deferrable=deferrable, execution_timeout=timedelta(seconds=0.4)),
            task_context(),
            hook,
        )
    assert [by for _, by, _ in hook.named("stop")] == ["deadline"]


def test_the_full_description_goes_to_object_storage(tmp_path: Path) -> None:
    hook = FakeHook({NAME: ["Completed"]}, training_jobs_of={NAME: [describe()["BestTrainingJob"]]})
    result, _ = run(hook, description_path=f"file://{tmp_path}/jobs/")
    written = json.loads((tmp_path / "jobs" / f"{NAME}.json").read_text())
    assert result["description_path"].endswith(f"/jobs/{NAME}.json")
    assert written["tuning_job"]["CreationTime"] == "2026-01-01T00:00:00+00:00"
    assert len(written["training_jobs"]) == 1


def test_each_outlet_asset_is_told_the_outcome() -> None:
    hook = FakeHook({NAME: ["Completed"]})
    context = task_context()
    model = Asset("model")
    context["outlet_events"] = OutletEventAccessors()
    result, _ = run_task(lambda: operator(outlets=[model]), context, hook)
    assert context["outlet_events"][model].extra == {
        "tuning_job_name": NAME,
        "tuning_job_arn": result["tuning_job_arn"],
        "status": "Completed",
        "reason": "max_training_jobs",
        "best_training_job": "churn-model-001",
        "objective_metric": "accuracy",
        "objective": 0.9,
    }


def test_a_failure_that_cannot_be_recorded_is_reported_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_amt.operators.tuning._RECORD_ATTEMPTS", 2)

    class Untaggable(FakeHook):
        def add_tags(self, arn: str, tags: Any) -> bool:
            raise THROTTLED

    with pytest.raises(AmtTuningJobFailed):
        run(Untaggable({NAME: [describe(status="Failed")]}))


def test_a_typed_request_is_taken_as_its_dict() -> None:
    hook = FakeHook({NAME: ["Completed"]})
    typed = SimpleNamespace(to_request=create_request)
    run(hook, typed)  # type: ignore[arg-type]
    (sent,) = hook.named("create")
    del sent["Tags"]
    assert sent == create_request()


def test_a_job_that_failed_before_its_lost_create_answer_was_asked_for_again_is_this_trys_failure() -> None:
    class Lost(FakeHook):
        def create_tuning_job(self, request: Any) -> str:
            first = NAME not in self.tags_of
            arn = super().create_tuning_job(request)
            if first:
                raise THROTTLED
            return arn

    hook = Lost({NAME: [describe(status="Failed")]})
    with pytest.raises(AmtTuningJobFailed):
        run(hook)
    assert len(hook.named("create")) == 2


@pytest.mark.parametrize(
    ("map_index", "prefix", "given", "label"),
    [
        (3, "churn", None, "churn"),
        (3, None, None, None),
        (-1, "churn", None, None),
        (3, "churn", "own", "own"),
    ],
)
def test_a_mapped_task_instance_is_labelled_with_the_prefix(
    map_index: int, prefix: str | None, given: str | None, label: str | None
) -> None:
    hook = FakeHook()
    context = task_context(map_index=map_index)
    context["map_index_template"] = given
    task = operator(unnamed(), job_name_prefix=prefix, wait_for_completion=False)
    use_hook(task, hook)
    task.execute(context)
    template = context["map_index_template"]
    assert (template and jinja2.Template(template).render(task=task)) == label


@pytest.mark.parametrize("event", [None, {}])
def test_a_resumption_without_an_event_begins_anew(event: dict[str, Any] | None) -> None:
    """Airflow 3.3 resumes the next try of a task that was cleared in the moment in which it deferred."""
    hook = FakeHook({DERIVED: ["InProgress", "Completed"]}, {DERIVED: OWNER.tags()})
    task = operator(unnamed())
    use_hook(task, hook)
    result = task.execute_complete(task_context(try_number=2), event)
    assert (result["tuning_job_name"], result["status"]) == (DERIVED, "Completed")
    assert hook.named("create") == []
