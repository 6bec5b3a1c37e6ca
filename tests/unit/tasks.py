"""What the tests of operators and sensors need: a task context, a hook in memory, an inline triggerer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

try:
    from airflow.sdk.exceptions import TaskDeferred
except ImportError:  # Airflow 3.1
    from airflow.exceptions import TaskDeferred  # type: ignore[no-redef]

from botocore.hooks import HierarchicalEmitter

from airflow_amt.exceptions import AmtAwsError
from airflow_amt.hooks.errors import aws_error
from airflow_amt.tuning import Owner, TuningOutcome, infer_outcome
from airflow_amt.tuning.naming import from_tag_list
from airflow_amt.tuning.stops import PolicyStop, Stop

ARN = "arn:aws:sagemaker:eu-west-1:000000000000:hyper-parameter-tuning-job/"
CREATED_AT = datetime(2026, 1, 1, tzinfo=UTC)
OWNER = Owner(dag_id="churn", run_id="manual__2026-01-01", task_id="tune")


def describe(name: str = "churn-model", status: str = "InProgress", **fields: Any) -> dict[str, Any]:
    """A description: two of at most four training jobs done, or all four when completed."""
    done = 4 if status == "Completed" else 2
    return {
        "HyperParameterTuningJobName": name,
        "HyperParameterTuningJobArn": ARN + name,
        "HyperParameterTuningJobStatus": status,
        "HyperParameterTuningJobConfig": {
            "Strategy": "Random",
            "HyperParameterTuningJobObjective": {"Type": "Maximize", "MetricName": "accuracy"},
            "ResourceLimits": {"MaxNumberOfTrainingJobs": 4, "MaxParallelTrainingJobs": 1},
        },
        "CreationTime": CREATED_AT,
        "TrainingJobStatusCounters": {"Completed": done},
        "ObjectiveStatusCounters": {"Succeeded": done},
        "BestTrainingJob": {
            "TrainingJobName": f"{name}-001",
            "TrainingJobStatus": "Completed",
            "TunedHyperParameters": {"lr": "0.1"},
            "FinalHyperParameterTuningJobObjectiveMetric": {"MetricName": "accuracy", "Value": 0.9},
        },
        **fields,
    }


def not_found(name: str) -> AmtAwsError:
    return aws_error("DescribeHyperParameterTuningJob", "ResourceNotFound", f"no job {name}", 400)


THROTTLED = aws_error("DescribeHyperParameterTuningJob", "ThrottlingException", "Rate exceeded", 400)
UNAVAILABLE = aws_error("DescribeHyperParameterTuningJob", "ServiceUnavailable", "try again", 503)
DENIED = aws_error("DescribeHyperParameterTuningJob", "AccessDeniedException", "not you", 400)


#: What a summary of ``ListHyperParameterTuningJobs`` has of a description.
_SUMMARY = (
    "HyperParameterTuningJobName",
    "HyperParameterTuningJobArn",
    "HyperParameterTuningJobStatus",
    "CreationTime",
    "HyperParameterTuningEndTime",
    "LastModifiedTime",
    "TrainingJobStatusCounters",
    "ObjectiveStatusCounters",
)


@dataclass
class FakeHook:
    """Tuning jobs in memory, at the hook's boundary: what is scripted is answered, what is asked is noted.

    ``script[name]`` lists answers of describe (a status, a description or an error); the last one stays.
    ``lists[name]`` does so for the training jobs: each a list of summaries, or an error.
    """

    script: dict[str, list[Any]] = field(default_factory=dict)
    tags_of: dict[str, dict[str, str] | None] = field(default_factory=dict)
    calls: list[tuple[str, Any]] = field(default_factory=list)
    stop_takes_effect: str = "Stopped"
    lists: dict[str, list[Any]] = field(default_factory=dict)
    training_jobs_of: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    described: dict[str, Any] = field(default_factory=dict)
    other_endpoint: str | None = None
    page_size: int = 100
    #: Stops that took effect.
    stops: list[Stop] = field(default_factory=list)
    aws_conn_id: str | None = "aws_default"
    #: Its client, as far as a meter and a watch use it.
    conn: Any = field(
        default_factory=lambda: SimpleNamespace(
            meta=SimpleNamespace(events=HierarchicalEmitter(), region_name="eu-west-1"), close=lambda: None
        )
    )

    def build(self) -> None:
        pass

    def close(self) -> None:
        self.conn.close()

    def has_connection_of(self, other: FakeHook) -> bool:
        return other is self

    def describe_tuning_job(self, name: str) -> dict[str, Any]:
        self.calls.append(("describe", name))
        answers = self.script.get(name)
        if not answers:
            raise not_found(name)
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return describe(name, answer) if isinstance(answer, str) else deepcopy(answer)

    def list_training_jobs(self, name: str, *, status: str | None = None) -> Iterator[dict[str, Any]]:
        self.calls.append(("list_training_jobs", name))
        answers = self.lists.get(name)
        if answers:
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
        else:
            answer = self.training_jobs_of.get(name, [describe(name)["BestTrainingJob"]])
        if isinstance(answer, Exception):
            raise answer
        for summary in answer:
            if status in (None, summary.get("TrainingJobStatus")):
                yield deepcopy(dict(summary))

    def describe_training_job(self, name: str) -> dict[str, Any]:
        self.calls.append(("describe_training_job", name))
        answer = self.described[name]
        if isinstance(answer, Exception):
            self.described[name] = {}
            raise answer
        return deepcopy(dict(answer))

    def create_tuning_job(self, request: Mapping[str, Any]) -> str:
        name = str(request["HyperParameterTuningJobName"])
        self.calls.append(("create", deepcopy(dict(request))))
        if name in self.tags_of:
            raise aws_error("CreateHyperParameterTuningJob", "ResourceInUse", f"{name} is taken", 400)
        self.tags_of[name] = from_tag_list(request.get("Tags") or [])
        self.script.setdefault(name, ["InProgress"])
        return ARN + name

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
        stop = Stop(stopped_by=stopped_by, detail=detail, requested_by=requested_by, policy=policy)
        if self.describe_tuning_job(name)["HyperParameterTuningJobStatus"] != "InProgress":
            return False
        self.script[name] = [self.stop_takes_effect]
        self.stops.append(stop)
        return True

    def record_stop(self, arn: str, stop: Stop) -> None:
        self.calls.append(("record_stop", (arn.removeprefix(ARN), stop)))

    def add_tags(self, arn: str, tags: Mapping[str, str]) -> bool:
        self.calls.append(("add_tags", (arn.removeprefix(ARN), dict(tags))))
        known = self.tags_of.get(arn.removeprefix(ARN))
        if known is not None:
            known.update(tags)
        return True

    def list_tuning_jobs(self, **filters: Any) -> Iterator[dict[str, Any]]:
        self.calls.append(("list", filters))
        for name in sorted({*self.script, *self.tags_of}):
            wanted = filters.get("StatusEquals")
            if wanted and wanted != self._status(name):
                continue
            if filters.get("NameContains", "").lower() in name.lower():
                yield {"HyperParameterTuningJobName": name, "HyperParameterTuningJobArn": ARN + name}

    def list_tuning_jobs_page(
        self, token: str | None = None, **filters: Any
    ) -> tuple[list[dict[str, Any]], str | None]:
        self.calls.append(("list_page", filters))
        wanted = filters["StatusEquals"]
        names = [name for name in self.script if self._status(name) == wanted]
        begin = int(token or 0)
        page = [
            {key: value for key, value in self._now(name).items() if key in _SUMMARY}
            for name in names[begin : begin + self.page_size]
        ]
        end = begin + self.page_size
        return page, str(end) if end < len(names) else None

    def _now(self, name: str) -> dict[str, Any]:
        now = self.script[name][0]
        return now if isinstance(now, dict) else describe(name, self._status(name) or "InProgress")

    def _status(self, name: str) -> str | None:
        """The status that is to be described next; an error counts as in progress, which is listed."""
        now = (self.script.get(name) or [None])[0]
        if isinstance(now, Exception):
            return "InProgress"
        return str(now["HyperParameterTuningJobStatus"]) if isinstance(now, dict) else now

    def tags(self, arn: str) -> dict[str, str] | None:
        return self.tags_of.get(arn.removeprefix(ARN), {})

    def outcome(self, name: str, *, known_stop: Mapping[str, str] | None = None) -> TuningOutcome:
        self.calls.append(("outcome", name))
        tags = self.tags(ARN + name)
        return infer_outcome(
            self.describe_tuning_job(name), tags={**(tags or {}), **known_stop} if known_stop else tags
        )

    def expand_role(self, role: str, region_name: str | None = None) -> str:
        self.calls.append(("expand_role", role))
        return f"arn:aws:iam::000000000000:role/service/{role}"

    def named(self, kind: str) -> list[Any]:
        """What the calls of one kind were about."""
        return [about for name, about in self.calls if name == kind]


@dataclass
class FakeTaskInstance:
    """A task instance that keeps its XCom."""

    dag_id: str = OWNER.dag_id
    run_id: str = OWNER.run_id
    task_id: str = OWNER.task_id
    map_index: int | None = -1
    try_number: int = 1
    max_tries: int = 0
    id: UUID = field(default_factory=uuid4)
    xcom: dict[str, Any] = field(default_factory=dict)

    def xcom_push(self, key: str, value: Any) -> None:
        json.dumps(value)  # what is not JSON-safe must not get into XCom
        self.xcom[key] = value


def task_context(**changes: Any) -> Any:
    """A task context with nothing but a task instance."""
    return {"ti": FakeTaskInstance(**changes)}


def use_hook(task: Any, hook: Any) -> None:
    """Give a task or trigger a hook in place of its own."""
    vars(task).update(hook=hook, new_hook=lambda: hook)


def fired(trigger: Any) -> dict[str, Any]:
    """Run a trigger to its end and return the payload of its only event."""

    async def collect() -> list[Any]:
        return [event async for event in trigger.run()]

    (event,) = asyncio.run(collect())
    json.dumps(event.payload)
    payload: dict[str, Any] = event.payload
    return payload


def stored(trigger: Any) -> Any:
    """Send a trigger through its serialised form, as the metadata database does."""
    path, arguments = trigger.serialize()
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)(**json.loads(json.dumps(arguments)))


def run_task(
    make: Callable[[], Any], context: Any, hook: Any = None, *, most_deferrals: int = 5
) -> tuple[Any, list[dict[str, Any]]]:
    """Run a task as Airflow does: each time it resumes it is a new object, in another process.

    :param make: builds the task.
    :param hook: stands for the hook of task and trigger, if given.
    :return: what it returned, and the payloads of the triggers that it waited for.
    """
    payloads: list[dict[str, Any]] = []
    method: str | None = None
    while True:
        task = make()
        if hook is not None:
            use_hook(task, hook)
        try:
            if method is None:
                return task.execute(context), payloads
            return task.resume_execution(method, {"event": payloads[-1]}, context), payloads
        except TaskDeferred as deferral:
            deferred = deferral
        assert deferred.timeout is None
        assert len(payloads) < most_deferrals, payloads
        trigger = stored(deferred.trigger)
        if hasattr(trigger, "first_read_at"):
            # The task has just read the job.
            until = datetime.fromisoformat(trigger.first_read_at) - datetime.now(UTC)
            assert until.total_seconds() <= trigger.check_interval
            trigger.first_read_at = None
        if hasattr(trigger, "check_interval"):
            trigger.check_interval = min(trigger.check_interval, 0.01)  # shorter than users may: these wait
        if hook is not None:
            use_hook(trigger, hook)
        payloads.append(fired(trigger))
        method = deferred.method_name


def loud_log() -> Any:
    """A logger that keeps its lines as text."""
    lines: list[str] = []

    def write(level: str) -> Callable[..., None]:
        return lambda message, *values: lines.append(f"{level}: {message % values if values else message}")

    return SimpleNamespace(
        lines=lines,
        info=write("info"),
        warning=write("warning"),
        error=write("error"),
        exception=write("exception"),
    )
