"""The sensor of conditions: the same answers in every mode, and how it begins and ends without a worker."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk import DAG, XComArg

try:
    from airflow.sdk.exceptions import AirflowRescheduleException
except ImportError:  # Airflow 3.1
    from airflow.exceptions import AirflowRescheduleException

from airflow_amt import _compat
from airflow_amt._compat import AirflowFailException, AirflowSensorTimeout, AirflowSkipException
from airflow_amt.exceptions import AmtAccessDeniedError, AmtAwsError, AmtFieldError, AmtRequestError
from airflow_amt.sensors.progress import AmtTuningProgressSensor
from airflow_amt.task_exceptions import AmtConditionNotMet
from airflow_amt.tuning import (
    Condition,
    Converged,
    EstimatedTimeLeftBelow,
    FirstUsableModel,
    TargetReached,
    TrainingJobsDone,
)
from airflow_amt.watch import polling
from tests.unit.tasks import (
    DENIED,
    THROTTLED,
    UNAVAILABLE,
    FakeHook,
    describe,
    loud_log,
    run_task,
    task_context,
    use_hook,
)

NAME = "churn-model"
WAYS = pytest.mark.parametrize("deferrable", [False, True], ids=["poke", "deferred"])
STARTS = pytest.mark.skipif(
    not _compat.can_start_from_trigger(), reason="before Airflow 3.3 every task begins on a worker"
)


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "LONGEST_BACKOFF_SECONDS", 0.01)


def running(done: int, **more: Any) -> dict[str, Any]:
    """A tuning job in progress of which so many training jobs are done."""
    counters = {
        "TrainingJobStatusCounters": {"Completed": done, "InProgress": 1},
        "ObjectiveStatusCounters": {"Succeeded": done},
    }
    return describe(**{**counters, **more})


def sensor(**options: Any) -> AmtTuningProgressSensor:
    given = {"tuning_job_name": NAME, "condition": TrainingJobsDone(3), "poke_interval": 0.05, "timeout": 60}
    return AmtTuningProgressSensor(task_id="wait", **{**given, **options})


def run(hook: FakeHook, **options: Any) -> tuple[Any, dict[str, Any], list[dict[str, Any]]]:
    """Run the sensor; return its result, its XCom, and the events of its triggers."""
    context = task_context(task_id="wait")
    result, events = run_task(lambda: sensor(**options), context, hook)
    return result, context["ti"].xcom, events


@WAYS
def test_it_fires_while_the_job_runs(deferrable: bool) -> None:
    hook = FakeHook({NAME: [running(1), running(2), running(3)]})
    result, xcom, events = run(hook, deferrable=deferrable)
    assert (result["fired"], result["status"]) == ("condition", "InProgress")
    assert result["training_job_counters"]["Completed"] == 3
    assert result["condition"]["reason"] == "3 training jobs have an objective; waited for are 3."
    assert xcom["progress"] == result
    assert xcom["_link_AmtTuningJobLink"].endswith("/churn-model")
    assert [event["event"] for event in events] == (["condition"] if deferrable else [])


@WAYS
def test_what_is_met_already_never_waits(deferrable: bool) -> None:
    result, _, events = run(FakeHook({NAME: [running(3)]}), deferrable=deferrable, poke_interval=3600)
    assert (result["fired"], events) == ("condition", [])


@WAYS
@pytest.mark.parametrize(
    "condition",
    [
        {"type": "any", "of": [{"type": "converged"}, {"type": "training_jobs_done", "count": "3"}]},
        '{"type": "training_jobs_done", "count": 3}',
        TrainingJobsDone(3) | Converged(),
    ],
    ids=["dict", "json", "object"],
)
def test_a_condition_may_be_an_object_a_dict_or_json(condition: Any, deferrable: bool) -> None:
    hook = FakeHook({NAME: [running(1), running(3)]})
    result, _, _ = run(hook, condition=condition, deferrable=deferrable)
    assert result["condition"]["because"] == ["training_jobs_done"]


# --- the end of the job ------------------------------------------------------------------------

ENDS = {
    "succeed": {"Completed": "success", "Stopped": "success", "Failed": "failed", "DeleteFailed": "failed"},
    "fail": {"Completed": "failed", "Stopped": "failed", "Failed": "failed", "DeleteFailed": "failed"},
    "skip": {"Completed": "skipped", "Stopped": "skipped", "Failed": "skipped", "DeleteFailed": "skipped"},
}


@WAYS
@pytest.mark.parametrize("late", [False, True], ids=["at-once", "later"])
@pytest.mark.parametrize("status", ENDS["fail"])
@pytest.mark.parametrize("on_end", ENDS)
class TestTheEndOfTheJob:
    def hook(self, status: str, late: bool) -> FakeHook:
        return FakeHook({NAME: [*([running(1), running(1)] if late else []), status]})

    def test_without_the_condition(self, on_end: str, status: str, late: bool, deferrable: bool) -> None:
        context = task_context(task_id="wait")

        def wait(**options: Any) -> Any:
            options = {"on_end": on_end, "deferrable": deferrable, "condition": Converged(), **options}
            return run_task(lambda: sensor(**options), context, self.hook(status, late))[0]

        expected = ENDS[on_end][status]
        if expected == "success":
            assert wait()["fired"] == "end"
        elif expected == "skipped":
            with pytest.raises(AirflowSkipException, match=f"is {status}"):
                wait()
        else:
            with pytest.raises(AmtConditionNotMet, match=f"is {status}.*has not detected") as caught:
                wait()
            assert isinstance(caught.value, AirflowFailException)
            for option in ("soft_fail", "never_fail"):
                with pytest.raises(AirflowSkipException):
                    wait(**{option: True})
        assert context["ti"].xcom["progress"]["status"] == status

    def test_with_the_condition_is_success(
        self, on_end: str, status: str, late: bool, deferrable: bool
    ) -> None:
        options = {"on_end": on_end, "deferrable": deferrable, "condition": TrainingJobsDone(2)}
        result, _, _ = run(self.hook(status, late), **options)
        assert (result["fired"], result["status"]) == ("condition", status)


def test_the_reason_of_a_failed_job_is_told() -> None:
    error = AmtConditionNotMet(
        {
            "tuning_job_name": NAME,
            "status": "Failed",
            "failure_reason": "no training job succeeded",
            "condition": {"reason": "AMT has not detected convergence."},
        }
    )
    assert str(error) == (
        "Tuning job 'churn-model' is Failed (no training job succeeded), and the condition is not met: AMT "
        "has not detected convergence."
    )


# --- errors and timeouts -----------------------------------------------------------------------


@WAYS
@pytest.mark.parametrize("late", [False, True], ids=["at-once", "later"])
def test_an_error_that_waiting_does_not_mend(late: bool, deferrable: bool) -> None:
    def hook() -> FakeHook:
        return FakeHook({NAME: [*([running(1)] if late else []), DENIED]})

    with pytest.raises(AmtAccessDeniedError):
        run(hook(), deferrable=deferrable)
    for option in ("soft_fail", "never_fail"):
        with pytest.raises(AirflowSkipException):
            run(hook(), deferrable=deferrable, **{option: True})


@WAYS
def test_transient_errors_are_borne(deferrable: bool) -> None:
    hook = FakeHook({NAME: [running(1), UNAVAILABLE, THROTTLED, running(3)]})
    assert run(hook, deferrable=deferrable)[0]["fired"] == "condition"


@WAYS
@pytest.mark.parametrize(
    ("options", "error"),
    [({}, AirflowSensorTimeout), ({"soft_fail": True}, AirflowSkipException)],
    ids=["fails", "skips"],
)
def test_a_timeout_is_a_timeout(deferrable: bool, options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        run(FakeHook({NAME: [running(1)]}), deferrable=deferrable, timeout=0.3, **options)


def test_rescheduling_pokes_once_and_leaves() -> None:
    hook = FakeHook({NAME: [running(1), running(3)]})
    context = task_context()
    context["ti"].get_first_reschedule_date = lambda _: None
    task, again = sensor(mode="reschedule"), sensor(mode="reschedule")
    use_hook(task, hook)
    use_hook(again, hook)
    with pytest.raises(AirflowRescheduleException):
        task.execute(context)
    assert again.execute(context)["fired"] == "condition"


@WAYS
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"tuning_job_name": "no_underscore"}, AmtRequestError),
        ({"condition": {"type": "nonsense"}}, AmtFieldError),
        ({"condition": "{{ not rendered }}"}, AmtFieldError),
        ({"condition": None}, AmtFieldError),
    ],
)
def test_bad_arguments_are_refused_without_a_call(
    options: dict[str, Any], error: type[Exception], deferrable: bool
) -> None:
    hook = FakeHook()
    with pytest.raises(error):
        run(hook, deferrable=deferrable, **options)
    assert hook.calls == []


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"on_end": "ignore"}, "on_end"),
        ({"end_from_trigger": True}, "end_from_trigger"),
        ({"end_from_trigger": True, "deferrable": True, "outlets": ["s3://model"]}, "end_from_trigger"),
    ],
)
def test_what_no_template_can_change_is_refused_while_the_dag_is_parsed(
    options: dict[str, Any], field: str
) -> None:
    from airflow.sdk import Asset

    if "outlets" in options:
        options = {**options, "outlets": [Asset(one) for one in options["outlets"]]}
    with pytest.raises(AmtFieldError) as caught:
        sensor(**{"deferrable": False, **options})
    assert caught.value.field == field


# --- what the trigger saw ----------------------------------------------------------------------

SHORT = {"ConsumedResources": {"RuntimeInSeconds": 30}}
LONG = {"ConsumedResources": {"RuntimeInSeconds": 3000}}


def test_a_condition_that_held_once_has_fired(monkeypatch: pytest.MonkeyPatch) -> None:
    log = loud_log()
    monkeypatch.setattr(AmtTuningProgressSensor, "log", log)
    # One of four is left: 10 s in the trigger's eyes, 1,000 s when the task resumes.
    hook = FakeHook({NAME: [running(1, **LONG), running(3, **SHORT), running(3, **LONG)]})
    result, xcom, _ = run(hook, condition=EstimatedTimeLeftBelow(timedelta(seconds=60)), deferrable=True)
    assert result["fired"] == "condition"
    assert result["estimated_remaining_seconds"] == 10.0
    assert xcom["progress"] == result
    assert any("met when the trigger fired, which counts: An estimated 10 s" in line for line in log.lines)


def test_what_holds_still_is_reported_as_of_now() -> None:
    hook = FakeHook({NAME: [running(1), running(3), running(4)]})
    result, _, _ = run(hook, deferrable=True)
    assert result["training_job_counters"]["Completed"] == 4


@pytest.mark.parametrize("error", [DENIED, THROTTLED])
def test_what_the_trigger_saw_counts_where_the_worker_cannot_read(error: AmtAwsError) -> None:
    hook = FakeHook({NAME: [running(1), running(3), error]})
    result, _, _ = run(hook, deferrable=True)
    assert result["training_job_counters"]["Completed"] == 3


def test_the_job_may_have_ended_meanwhile() -> None:
    hook = FakeHook({NAME: [running(1), running(3), describe(status="Failed")]})
    result, _, _ = run(hook, deferrable=True, on_end="fail")
    assert (result["fired"], result["status"]) == ("condition", "InProgress")


def test_a_worker_takes_over_what_the_trigger_cannot_use() -> None:
    """As where a triggerer renders a dict to text and a worker to a dict."""
    task = sensor(deferrable=True)
    hook = FakeHook({NAME: [running(3)]})
    use_hook(task, hook)
    event = {"event": "unusable", "tuning_job_name": "{{ x }}", "state": {"deadline": None}, "result": None}
    assert task.execute_complete(task_context(), event)["fired"] == "condition"


def test_the_bare_state_that_dag_test_resumes_with_is_looked_through() -> None:
    task = sensor(deferrable=True, end_from_trigger=True)
    use_hook(task, FakeHook({NAME: [running(3)]}))
    assert task.execute_complete(task_context(), "success")["fired"] == "condition"


# --- beginning in the triggerer ----------------------------------------------------------------


def started(**options: Any) -> AmtTuningProgressSensor:
    return sensor(start_from_trigger=True, **options)


def test_beginning_in_the_triggerer_implies_deferring() -> None:
    assert started().deferrable is True
    assert started().start_from_trigger is _compat.can_start_from_trigger()


def test_a_class_starts_nothing_so_that_a_mapped_task_begins_on_a_worker() -> None:
    assert AmtTuningProgressSensor.start_trigger_args is None
    with DAG("mapped", schedule=None):
        mapped = AmtTuningProgressSensor.partial(
            task_id="wait", condition=Converged().to_dict(), start_from_trigger=True
        ).expand(tuning_job_name=["a", "b"])
    assert mapped.start_trigger_args is None


@STARTS
def test_the_scheduler_gets_what_the_trigger_takes() -> None:
    from airflow_amt.triggers.progress import AmtTuningProgressTrigger

    task = started(
        tuning_job_name="{{ params.name }}",
        condition=TargetReached(0.9),
        on_end="skip",
        region_name="eu-west-1",
    )
    arguments = task.start_trigger_args
    assert arguments is not None
    assert arguments.trigger_kwargs is not None
    assert (arguments.next_method, arguments.timeout) == ("execute_complete", timedelta(seconds=3660))
    made = AmtTuningProgressTrigger(**arguments.trigger_kwargs)
    assert made.serialize() == (arguments.trigger_cls, arguments.trigger_kwargs)
    assert made.tuning_job_name == "{{ params.name }}"
    assert made.condition == {"version": 1, "type": "target_reached", "value": 0.9}
    assert (made.on_end, made.region_name, made.seconds_before_timeout) == ("skip", "eu-west-1", 3600.0)
    # What the operator has as template fields is rendered into attributes of these names.
    for name in task.template_fields:
        assert hasattr(made, name)
        assert name in arguments.trigger_kwargs


@STARTS
@pytest.mark.parametrize(("limit", "before"), [(600, 540), (60, 0), (30, 0), (10_000, 3600)])
def test_an_execution_timeout_cuts_airflows_time_limit(limit: int, before: float) -> None:
    arguments = started(execution_timeout=timedelta(seconds=limit)).start_trigger_args
    assert arguments is not None
    assert arguments.trigger_kwargs is not None
    assert arguments.trigger_kwargs["seconds_before_timeout"] == before


@STARTS
def test_a_reference_to_another_task_becomes_a_template() -> None:
    with DAG("chain", schedule=None):
        first = sensor()
        name = XComArg(first, key="tuning_job_name")
        task = AmtTuningProgressSensor(
            task_id="next",
            tuning_job_name=name,  # type: ignore[arg-type]
            condition={"type": "any", "of": [{"type": "target_reached", "value": XComArg(first)}]},
            start_from_trigger=True,
        )
    assert task.upstream_task_ids == {"wait"}
    arguments = task.start_trigger_args
    assert arguments is not None
    assert arguments.trigger_kwargs is not None
    # With a map index: without it, the triggerer of Airflow 3.3.2 never answers.
    pull = "task_instance.xcom_pull(task_ids='wait', dag_id='chain', key='{}', map_indexes=-1)"
    assert arguments.trigger_kwargs["tuning_job_name"] == "{{ " + pull.format("tuning_job_name") + " }}"
    value = arguments.trigger_kwargs["condition"]["of"][0]["value"]
    assert value == "{{ " + pull.format("return_value") + " }}"


@pytest.mark.parametrize("which", ["mapped", "whole", "own xcom", "output", "previous"])
def test_what_a_triggerer_cannot_render_begins_on_a_worker(which: str) -> None:
    with DAG("chain", schedule=None):
        first = XComArg(sensor())
        cases: dict[str, dict[str, Any]] = {
            "mapped": {"tuning_job_name": first.map(str)},
            "whole": {"condition": first},
            "own xcom": {"tuning_job_name": "{{ ti.xcom_pull(task_ids='wait') }}"},
            "output": {"tuning_job_name": f"{first}"},
            "previous": {"region_name": "{{ prev_start_date_success }}"},
        }
        changes = cases[which]
        given: dict[str, Any] = {"tuning_job_name": NAME, "condition": Converged(), **changes}
        task = AmtTuningProgressSensor(task_id="next", start_from_trigger=True, **given)
    assert task.start_from_trigger is False
    assert task.start_trigger_args is None
    assert task.deferrable is True


@STARTS
def test_airflow_can_store_a_dag_with_it() -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    with DAG("stored", schedule=None) as dag:
        started(condition=FirstUsableModel() | ~Converged(), botocore_config={"read_timeout": 5})
    stored = DagSerialization.from_dict(DagSerialization.to_dict(dag)).get_task("wait")
    assert stored.start_from_trigger is True
    assert stored.start_trigger_args is not None
    assert stored.start_trigger_args.trigger_cls.endswith("AmtTuningProgressTrigger")


def test_the_condition_is_kept_as_a_dict() -> None:
    condition: Condition = FirstUsableModel() & Converged()
    assert sensor(condition=condition).condition == condition.to_dict()
