"""What notifiers make of the contexts that Airflow calls them back with."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, BaseNotifier

from airflow_amt import AmtConditionNotMet, AmtTaskKilled, AmtTuningJobFailed, infer_outcome
from airflow_amt.notifications.base import AmtNotifier, message_facts
from tests.unit.tasks import ARN, describe

OUTCOME = infer_outcome(describe(status="Completed")).to_dict()
REPORT = {"tuning_job_name": "churn-model", "action": "warn", "rule": "stalled", "share": 0.8}
CONSOLE = "https://eu-west-1.console.aws.amazon.com/sagemaker/home?region=eu-west-1#/hyper-tuning-jobs/"


class TaskInstance(SimpleNamespace):
    """A task instance with these XComs; notes how they were pulled."""

    def __init__(self, xcoms: Mapping[str, Any] | None = None, **fields: Any) -> None:
        known = {
            "dag_id": "nightly",
            "run_id": "run",
            "task_id": "tune",
            "map_index": -1,
            "state": "success",
            "try_number": 1,
            "max_tries": 0,
            "log_url": "https://airflow.example.com/log",
        }
        super().__init__(xcoms=xcoms or {}, pulls=[], **{**known, **fields})

    def xcom_pull(self, *, task_ids: str, key: str, map_indexes: int | None) -> Any:
        self.pulls.append((task_ids, map_indexes))
        value = self.xcoms.get(key)
        if isinstance(value, Exception):
            raise value
        return value


class Sent(BaseNotifier):
    """A notifier of another provider, as far as Airflow's interface goes."""

    template_fields = ("text", "subject")
    sent: list[tuple[str, str]]

    def __init__(self, *, text: str, subject: str = "{{ amt.subject }}") -> None:
        super().__init__()
        self.text = text
        self.subject = subject
        self.sent = []

    def notify(self, context: Any) -> None:
        self.sent.append((self.subject, self.text))

    async def async_notify(self, context: Any) -> None:
        self.sent.append((self.subject, self.text))


class Notifier(AmtNotifier, Sent):
    """Ours over it."""

    def __init__(self, *, text: str = "{{ amt.text }}", **arguments: Any) -> None:
        super().__init__(text=text, **arguments)


def told(context: dict[str, Any], **arguments: Any) -> str:
    notifier = Notifier(**arguments)
    notifier(context)
    ((_, text),) = notifier.sent
    return text


def test_a_policys_report_comes_first_and_asks_no_xcom() -> None:
    ti = TaskInstance({"outcome": OUTCOME}, state="running")
    assert told({"ti": ti, "policy": REPORT}).splitlines() == [
        "Tuning job churn-model has used 80 % of the limit of policy stalled.",
        "Task tune of DAG nightly, run run.",
        "Airflow: https://airflow.example.com/log",
    ]
    assert ti.pulls == []


@pytest.mark.parametrize(("map_index", "asked"), [(-1, None), (0, 0), (3, 3)])
def test_the_outcome_of_this_very_task_instance_is_told(map_index: int, asked: int | None) -> None:
    ti = TaskInstance({"outcome": OUTCOME}, map_index=map_index)
    name = "tune" if asked is None else f"tune[{asked}]"
    assert told({"ti": ti}).splitlines() == [
        "Tuning job churn-model completed: 4 training jobs were launched; the limit is 4.",
        "Best accuracy 0.9 after 4 of 4 training jobs.",
        f"Task {name} of DAG nightly succeeded, run run.",
        f"AWS console: {CONSOLE}churn-model",
        "Airflow: https://airflow.example.com/log",
    ]
    assert ti.pulls == [("tune", asked)]


def test_an_error_brings_its_outcome_and_is_not_told_twice() -> None:
    failed = infer_outcome(describe(status="Failed", FailureReason="no role")).to_dict()
    ti = TaskInstance(state="failed")
    text = told({"ti": ti, "exception": AmtTuningJobFailed(failed)})
    assert text.count("no role") == 1
    assert "Task tune of DAG nightly failed, run run." in text
    assert ti.pulls == []


def test_another_error_is_told_beside_the_outcome() -> None:
    ti = TaskInstance({"outcome": OUTCOME}, state="failed")
    text = told({"ti": ti, "exception": OSError("disk full")})
    assert text.startswith("Tuning job churn-model completed")
    assert "Task tune of DAG nightly failed, run run: disk full." in text


def test_a_sensor_tells_its_progress() -> None:
    progress = {"tuning_job_name": "churn-model", "status": "InProgress", "condition": {"reason": "Good."}}
    assert told({"ti": TaskInstance({"progress": progress})}).startswith(
        "Tuning job churn-model is running: Good.\n"
    )
    error = AmtConditionNotMet({**progress, "status": "Stopped", "condition": {"reason": "Too bad."}})
    text = told({"ti": TaskInstance(state="failed"), "exception": error})
    assert text.startswith("Tuning job churn-model was stopped: Too bad.\nTask tune of DAG nightly failed")
    assert text.count("Too bad") == 1


def test_without_an_outcome_the_task_is_told() -> None:
    ti = TaskInstance({"tuning_job_name": "churn-model"}, state="up_for_retry", max_tries=2)
    line, *_ = told({"ti": ti, "exception": ValueError()}).splitlines()
    said = "Task tune of DAG nightly failed and will be retried (try 1 of 3), tuning job churn-model"
    assert line == f"{said}: ValueError."
    killed = AmtTaskKilled("churn-model", "it was stopped")
    assert "tuning job churn-model: The task was killed" in told(
        {"ti": TaskInstance(state=None), "exception": killed}
    )


@pytest.mark.parametrize("outcome", ["won", 3, {"result": 1}, [OUTCOME]])
def test_another_tasks_xcom_of_that_name_is_no_outcome(outcome: Any) -> None:
    assert told({"ti": TaskInstance({"outcome": outcome})}).startswith(
        "Task tune of DAG nightly succeeded.\n"
    )


def test_an_xcom_that_cannot_be_read_does_not_keep_the_message_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ti = TaskInstance({"outcome": RuntimeError("API gone"), "tuning_job_name": "churn-model"})
    assert told({"ti": ti}).startswith("Task tune of DAG nightly succeeded.")
    assert caplog.text.count("XCom could not be read") == len(ti.pulls) == 1
    assert "API gone" in caplog.text


def test_a_dags_callback_tells_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.com/")
    with DAG("nightly", schedule=None) as dag:
        pass
    bare = {"dag": dag, "run_id": "manual__1+0", "reason": "timed_out"}
    assert told(bare).splitlines() == [
        "DAG nightly ended: timed out, run manual__1+0.",
        "Airflow: https://airflow.example.com/dags/nightly/runs/manual__1%2B0",
    ]
    ti = TaskInstance({"outcome": OUTCOME}, run_id="manual__1+0")
    lines = told({**bare, "ti": ti, "reason": "success"}).splitlines()
    assert lines[0].startswith("Tuning job churn-model completed")
    assert lines[2] == "DAG nightly succeeded, run manual__1+0."
    assert lines[4] == "Airflow: https://airflow.example.com/dags/nightly/runs/manual__1%2B0"


def test_a_dag_that_cannot_render_templates_is_no_obstacle() -> None:
    context = {"dag": SimpleNamespace(dag_id="nightly"), "run_id": "run", "reason": "task_failure"}
    assert told(context).startswith("DAG nightly ended: task failure, run run.")
    assert "dag" in context


@pytest.mark.parametrize("base_url", ["", "/"])
def test_an_airflow_without_an_address_gets_no_link(base_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", base_url)
    run = {"dag_run": {"dag_id": "nightly", "dag_run_id": "run"}, "reason": "success"}
    assert told(run) == "DAG nightly succeeded, run run."


@pytest.mark.parametrize("due", ["2026-11-24T06:00:00+00:00", datetime(2026, 11, 24, 6, tzinfo=UTC)])
def test_a_deadline_tells_which_run_missed_it(due: Any) -> None:
    """Its context holds the DAG run as the REST API gives it, and no task instance."""
    context = {
        "dag_run": {"dag_id": "nightly", "dag_run_id": "run"},
        "deadline": {"id": "1", "deadline_time": due},
    }
    notifier = Notifier(context=context)

    async def send() -> None:
        await notifier

    asyncio.run(send())
    assert notifier.sent[0][1].startswith(
        "DAG nightly missed its deadline of 2026-11-24T06:00:00+00:00, run run."
    )


def test_one_notifier_serves_many_tasks_and_leaves_their_context_alone() -> None:
    """Airflow's own notifiers keep the text of the first call, and write their fields into the context."""
    notifier = Notifier()
    context = {"ti": TaskInstance({"outcome": OUTCOME})}
    notifier(context)
    notifier({"ti": TaskInstance(task_id="other")})
    assert list(context) == ["ti"]
    assert [subject for subject, _ in notifier.sent] == [
        "Tuning job churn-model completed: max training jobs",
        "Task other of DAG nightly succeeded",
    ]


def test_called_directly_it_composes_its_message_too() -> None:
    notifier = Notifier()
    notifier.notify({"policy": REPORT})  # type: ignore[typeddict-unknown-key]
    asyncio.run(notifier.async_notify({"policy": REPORT}))  # type: ignore[typeddict-unknown-key]
    assert [subject for subject, _ in notifier.sent] == [
        "Tuning job churn-model has used 80 % of the limit of policy stalled"
    ] * 2


def test_awaited_with_a_task_instance_it_reads_xcom_in_a_thread() -> None:
    import threading

    threads: list[str] = []

    class Watched(TaskInstance):
        def xcom_pull(self, **asked: Any) -> Any:
            threads.append(threading.current_thread().name)
            return super().xcom_pull(**asked)

    notifier = Notifier(context={"ti": Watched({"outcome": OUTCOME})})

    async def send() -> None:
        await notifier

    asyncio.run(send())
    assert notifier.sent[0][0] == "Tuning job churn-model completed: max training jobs"
    assert threads
    assert "MainThread" not in threads


def test_an_error_of_the_provider_reaches_airflow() -> None:
    class Broken(Notifier):
        async def async_notify(self, context: Any) -> None:
            raise OSError("no route")

        def notify(self, context: Any) -> None:
            raise OSError("no route")

    notifier = Broken(context={"policy": REPORT})

    async def send() -> None:
        await notifier

    with pytest.raises(OSError, match="no route"):
        asyncio.run(send())
    with pytest.raises(OSError, match="no route"):
        notifier({"policy": REPORT})


def test_a_text_of_ones_own_may_use_the_message_and_the_facts() -> None:
    text = (
        "{{ amt.text.splitlines()[0] }} Look, {{ ti.task_id }}: {{ amt.facts.best_training_job.objective }}"
    )
    assert told({"ti": TaskInstance({"outcome": OUTCOME})}, text=text) == (
        "Tuning job churn-model completed: 4 training jobs were launched; the limit is 4. Look, tune: 0.9"
    )


def test_braces_in_an_error_are_no_template() -> None:
    context = {"ti": TaskInstance(state="failed"), "exception": ValueError("{{ 1 + 1 }} {% raw")}
    assert "{{ 1 + 1 }} {% raw" in told(context)


def test_a_password_in_an_error_stays_in_airflow() -> None:
    from airflow.sdk.log import mask_secret

    mask_secret("correct-horse-battery")
    context = {"ti": TaskInstance(state="failed"), "exception": OSError("no login: correct-horse-battery")}
    assert told(context).splitlines()[0].endswith("failed: no login: ***.")


def test_a_dag_that_renders_native_objects_gets_text() -> None:
    with DAG("nightly", schedule=None, render_template_as_native_obj=True) as dag:
        pass
    text = told({"dag": dag, "ti": TaskInstance({"outcome": OUTCOME})})
    assert text.startswith("Tuning job churn-model completed")


def test_the_facts_carry_the_console_link_of_the_arn() -> None:
    facts = message_facts({"policy": {**REPORT, "tuning_job_arn": f"{ARN}churn-model"}})
    assert facts["console_url"] == f"{CONSOLE}churn-model"
    assert "console_url" not in message_facts({"policy": {**REPORT, "tuning_job_arn": "arn:other:x"}})
    kept = message_facts({"policy": {**REPORT, "tuning_job_arn": f"{ARN}x", "console_url": "https://mine"}})
    assert kept["console_url"] == "https://mine"


def test_only_the_notifier_of_aws_imports_boto() -> None:
    modules = ", ".join(f"airflow_amt.notifications.{module}" for module in ("base", "slack", "email"))
    code = (
        f"import sys, {modules}; "
        "print([one for one in sys.modules if one.split('.')[0] in ('boto3', 'botocore')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]"


_WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == {missing!r} or name.startswith({missing!r} + "."):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
try:
    import {module}
except ImportError as error:
    print(error)
from airflow.providers_manager import _correctness_check
print(_correctness_check("airflow-provider-amt", {notifier!r}, None))
"""


@pytest.mark.parametrize(
    ("missing", "module", "notifier", "extra"),
    [
        ("airflow.providers.slack.notifications", "slack", "AmtSlackNotifier", "slack"),
        ("airflow.providers.smtp.notifications", "email", "AmtSmtpNotifier", "smtp"),
    ],
)
def test_without_its_provider_a_notifier_names_the_extra(
    missing: str, module: str, notifier: str, extra: str
) -> None:
    """The package with its notifiers is missing: its entry point, which Airflow loads, is in another one."""
    module = f"airflow_amt.notifications.{module}"
    code = _WITHOUT.format(missing=missing, module=module, notifier=f"{module}.{notifier}")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert f"No module named '{missing}" in done.stdout
    assert f"pip install 'airflow-provider-amt[{extra}]'" in done.stdout
    # Airflow goes on without it, and takes that for an optional feature.
    assert done.stdout.splitlines()[-1] == "None"
    assert "Exception when importing" not in done.stdout + done.stderr
