"""The operations that the embedded AMT offers: from checked parameters to a result in the API's terms."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local import channels
from airflow_amt.local import store as tables
from airflow_amt.local.clock import to_datetime, to_milliseconds
from airflow_amt.local.engine import Engine
from airflow_amt.local.protocol import AwsError
from airflow_amt.local.search import MAX_TRAINING_JOBS
from airflow_amt.local.store import Row
from airflow_amt.local.trainer import model_uri, resource_config_of
from airflow_amt.local.tuning_run import objective_of
from airflow_amt.tuning.request import check_documented_rules, training_job_definitions

#: Quotas of an AWS account (developer guide, "Resource limits for automatic model tuning"), at what they
#: can be raised to.
MAX_CONCURRENT_TUNING_JOBS = 100
MAX_PARALLEL_TRAINING_JOBS = 100
MAX_TAGS = 50
DEFAULT_PAGE = 10

_TRAINING_COUNTERS = {
    "Completed": "training_completed",
    "InProgress": "training_in_progress",
    "RetryableError": "training_retryable",
    "NonRetryableError": "training_non_retryable",
    "Stopped": "training_stopped",
}
_OBJECTIVE_COUNTERS = {
    "Succeeded": "objective_succeeded",
    "Pending": "objective_pending",
    "Failed": "objective_failed",
}

_STATUS_MESSAGES = {
    "Starting": "Preparing the training process",
    "Training": "Training in progress",
    "Stopping": "Stopping the training job",
    "Completed": "Training job completed",
    "Failed": "Training job failed",
    "Stopped": "Training job stopped",
    "MaxRuntimeExceeded": "Training job stopped: it ran longer than MaxRuntimeInSeconds",
}


class Operations:
    """Answers calls.

    :param engine: what runs the tuning jobs.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._store = engine.store
        self._handlers: Mapping[str, Callable[[str, Mapping[str, Any]], Mapping[str, Any]]] = {
            "CreateHyperParameterTuningJob": self._create_tuning_job,
            "DescribeHyperParameterTuningJob": self._describe_tuning_job,
            "ListHyperParameterTuningJobs": self._list_tuning_jobs,
            "StopHyperParameterTuningJob": self._stop_tuning_job,
            "ListTrainingJobsForHyperParameterTuningJob": self._list_training_jobs,
            "DescribeTrainingJob": self._describe_training_job,
            "AddTags": self._add_tags,
            "ListTags": self._list_tags,
            "DeleteTags": self._delete_tags,
        }

    @property
    def names(self) -> list[str]:
        """The operations that are offered."""
        return list(self._handlers)

    def call(self, operation: str, region: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """Carry out an operation.

        :param operation: one of :attr:`names`.
        :param region: the region that the request was signed for.
        :param params: parameters that fit the service model.
        :raises AwsError: the call is refused.
        """
        return self._handlers[operation](region, params)

    # --- tuning jobs -----------------------------------------------------------------------------

    def _create_tuning_job(self, region: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        problems = check_documented_rules(params, builtin_algorithms=False) or _not_offered(params)
        if problems:
            raise AwsError("ValidationException", _listed(problems))
        name, config = params["HyperParameterTuningJobName"], params["HyperParameterTuningJobConfig"]
        path, definition = training_job_definitions(params)[0]
        try:
            self._engine.check(config, definition, path)
        except AmtFieldError as error:
            raise AwsError("ValidationException", _listed([error])) from None
        tags = _new_tags({}, params.get("Tags") or [])
        existing = self._store.tuning_job(region, name)
        if existing is not None:
            raise AwsError(
                "ResourceInUse",
                "Hyperparameter tuning job names must be unique within an AWS account and region, but "
                f"{existing['arn']} exists already ({existing['status']})",
            )
        self._check_quotas(region, config)
        account = self._engine.options.account
        arn = f"arn:aws:sagemaker:{region}:{account}:hyper-parameter-tuning-job/{name.lower()}"
        self._store.set_tags(arn, tags)
        self._engine.create(
            region=region,
            name=name,
            arn=arn,
            config=config,
            definition=definition,
            definition_as_list=params.get("TrainingJobDefinitions") is not None,
        )
        return {"HyperParameterTuningJobArn": arn}

    def _check_quotas(self, region: str, config: Mapping[str, Any]) -> None:
        limits = config["ResourceLimits"]
        strategy = config["Strategy"]
        for what, limit, used, requested in (
            (
                "parallel training jobs per hyperparameter tuning job",
                MAX_PARALLEL_TRAINING_JOBS,
                0,
                limits["MaxParallelTrainingJobs"],
            ),
            (
                f"training jobs per hyperparameter tuning job with the {strategy} strategy",
                MAX_TRAINING_JOBS[strategy],
                0,
                limits.get("MaxNumberOfTrainingJobs") or 0,
            ),
            (
                "concurrent hyperparameter tuning jobs",
                MAX_CONCURRENT_TUNING_JOBS,
                self._store.count_unfinished(region),
                1,
            ),
        ):
            if used + requested > limit:
                raise AwsError(
                    "ResourceLimitExceeded",
                    f"The account-level service limit for {what} is {limit}, with current utilization of "
                    f"{used} and a request delta of {requested}",
                )

    def _describe_tuning_job(self, region: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        row = self._tuning_job(region, params)
        definition = _described_definition(row["definition"])
        ended = row["ended_ms"]
        now = self._engine.clock.now_ms()
        best = self._store.training_job(region, row["best"]) if row["best"] else None
        return {
            "HyperParameterTuningJobName": row["name"],
            "HyperParameterTuningJobArn": row["arn"],
            "HyperParameterTuningJobConfig": row["config"],
            "TrainingJobDefinition": None if row["definition_as_list"] else definition,
            "TrainingJobDefinitions": [definition] if row["definition_as_list"] else None,
            "HyperParameterTuningJobStatus": row["status"],
            "CreationTime": to_datetime(row["created_ms"]),
            "HyperParameterTuningEndTime": _time(ended),
            "LastModifiedTime": to_datetime(row["modified_ms"]),
            "TrainingJobStatusCounters": _counters(row, _TRAINING_COUNTERS),
            "ObjectiveStatusCounters": _counters(row, _OBJECTIVE_COUNTERS),
            "BestTrainingJob": None if best is None else _training_summary(best, row),
            "FailureReason": row["failure_reason"] if row["status"] == "Failed" else None,
            "TuningJobCompletionDetails": {
                "NumberOfTrainingJobsObjectiveNotImproving": row["not_improving"],
                "ConvergenceDetectedTime": _time(row["converged_ms"]),
            },
            "ConsumedResources": {
                "RuntimeInSeconds": ((now if ended is None else ended) - row["created_ms"]) // 1000
            },
        }

    def _list_tuning_jobs(self, region: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        table = tables.tuning_jobs
        conditions: list[sa.ColumnElement[bool]] = [table.c.region == region]
        if params.get("NameContains"):
            conditions.append(sa.func.instr(table.c.name_key, params["NameContains"].lower()) > 0)
        if params.get("StatusEquals"):
            conditions.append(table.c.status == params["StatusEquals"])
        for prefix, column in (
            ("CreationTime", table.c.created_ms),
            ("LastModifiedTime", table.c.modified_ms),
        ):
            after, before = params.get(f"{prefix}After"), params.get(f"{prefix}Before")
            if after is not None:
                conditions.append(column > _wire_ms(after))
            if before is not None:
                conditions.append(column < _wire_ms(before))
        column = {"Name": table.c.name, "Status": table.c.status, "CreationTime": table.c.created_ms}[
            params.get("SortBy") or "Name"
        ]
        rows, token = self._page(params, region, column, table.c.id, conditions, self._store.list_tuning_jobs)
        return {
            "HyperParameterTuningJobSummaries": [_tuning_summary(row) for row in rows],
            "NextToken": token,
        }

    def _stop_tuning_job(self, region: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        row = self._tuning_job(region, params)
        if row["status"] not in ("InProgress", "Stopping"):
            raise AwsError(
                "ValidationException",
                f"The request was rejected because the hyperparameter tuning job {row['name']} is in status "
                f"{row['status']}: only one that is InProgress can be stopped",
            )
        self._engine.stop(row)
        return {}

    def _tuning_job(self, region: str, params: Mapping[str, Any]) -> Row:
        name = params["HyperParameterTuningJobName"]
        row = self._store.tuning_job(region, name)
        if row is None:
            raise AwsError(
                "ResourceNotFound",
                f"Amazon SageMaker can't find a tuning job with the name {name} in region {region}",
            )
        return row

    # --- training jobs ---------------------------------------------------------------------------

    def _list_training_jobs(self, region: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        tuning_job = self._tuning_job(region, params)
        table = tables.training_jobs
        conditions: list[sa.ColumnElement[bool]] = [table.c.tuning_job_id == tuning_job["id"]]
        if params.get("StatusEquals"):
            conditions.append(table.c.status == params["StatusEquals"])
        sort_by = params.get("SortBy") or "Name"
        if sort_by == "FinalObjectiveMetricValue":
            # As documented: training jobs without an objective are not listed then.
            conditions.append(table.c.objective.is_not(None))
        column = {
            "Name": table.c.name,
            "CreationTime": table.c.created_ms,
            "Status": table.c.status,
            "FinalObjectiveMetricValue": table.c.objective,
        }[sort_by]
        rows, token = self._page(
            params, region, column, table.c.id, conditions, self._store.list_training_jobs
        )
        return {
            "TrainingJobSummaries": [_training_summary(row, tuning_job) for row in rows],
            "NextToken": token,
        }

    def _describe_training_job(self, region: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        name = params["TrainingJobName"]
        row = self._store.training_job(region, name)
        if row is None:
            raise AwsError(
                "ResourceNotFound", f"Requested resource not found: training job {name} in {region}"
            )
        tuning_job = self._store.tuning_job_by_id(row["tuning_job_id"])
        return _training_description(row, tuning_job)

    # --- tags ------------------------------------------------------------------------------------

    def _add_tags(self, region: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        arn = self._existing_arn(params)
        tags = _new_tags(self._store.tags_of(arn), params["Tags"])
        self._store.set_tags(arn, tags)
        self._store.commit()
        return {"Tags": _tag_list(tags)}

    def _list_tags(self, region: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        if params.get("NextToken"):
            # A page holds at least 50 tags and a resource has 50 at most: no token was ever given out.
            raise AwsError("ValidationException", "NextToken: this token was not given out by ListTags")
        return {"Tags": _tag_list(self._store.tags_of(self._existing_arn(params)))}

    def _delete_tags(self, region: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        arn = self._existing_arn(params)
        gone = set(params["TagKeys"])
        kept = {key: value for key, value in self._store.tags_of(arn).items() if key not in gone}
        self._store.set_tags(arn, kept)
        self._store.commit()
        return {}

    def _existing_arn(self, params: Mapping[str, Any]) -> str:
        arn: str = params["ResourceArn"]
        found = self._store.tuning_job_by_arn(arn) or self._store.training_job_by_arn(arn)
        if found is None:
            raise AwsError("ValidationException", f"ResourceArn: could not find the resource {arn}")
        return str(found["arn"])

    # --- pages -----------------------------------------------------------------------------------

    def _page(
        self,
        params: Mapping[str, Any],
        region: str,
        column: sa.Column[Any],
        key: sa.Column[Any],
        conditions: list[sa.ColumnElement[bool]],
        fetch: Callable[[Sequence[Any], Sequence[Any], int], list[Row]],
    ) -> tuple[list[Row], str | None]:
        """Return one page and the token of the next; pages stay exact while rows are added."""
        size = params.get("MaxResults") or DEFAULT_PAGE
        descending = params.get("SortOrder") == "Descending"
        query = _fingerprint(params, region)
        if params.get("NextToken"):
            value, last = _read_token(params["NextToken"], query)
            if descending:
                after = sa.or_(column < value, sa.and_(column == value, key < last))
            else:
                after = sa.or_(column > value, sa.and_(column == value, key > last))
            conditions = [*conditions, after]
        order = [column.desc(), key.desc()] if descending else [column.asc(), key.asc()]
        rows = fetch(conditions, order, size + 1)
        if len(rows) <= size:
            return rows, None
        rows = rows[:size]
        return rows, _write_token(query, rows[-1][column.name], rows[-1]["id"])


def _fingerprint(params: Mapping[str, Any], region: str) -> str:
    """Return what identifies a query whose pages belong together."""
    relevant = {
        key: str(value) for key, value in sorted(params.items()) if key not in ("NextToken", "MaxResults")
    }
    return hashlib.sha256(json.dumps([region, relevant]).encode()).hexdigest()[:16]


def _write_token(query: str, value: Any, key: int) -> str:
    return base64.urlsafe_b64encode(json.dumps([query, value, key]).encode()).decode()


def _read_token(token: str, query: str) -> tuple[Any, int]:
    try:
        decoded = json.loads(base64.urlsafe_b64decode(token.encode("ascii")))
        of_query, value, key = decoded
        if of_query != query or not isinstance(value, (str, int, float)) or not isinstance(key, int):
            raise ValueError
    except (ValueError, TypeError, binascii.Error):
        raise AwsError(
            "ValidationException",
            "NextToken: this token was not given out for this query; use the token of the page before, and "
            "the same filters and order",
        ) from None
    return value, key


def _not_offered(params: Mapping[str, Any]) -> list[AmtFieldError]:
    """List what AMT offers and the embedded AMT does not: refused, because ignoring it would mislead."""
    problems = []

    def refuse(field: str, value: Any, fix: str) -> None:
        problems.append(AmtFieldError(field, value, "the embedded AMT does not offer this yet", fix))

    config = params["HyperParameterTuningJobConfig"]
    for field in ("WarmStartConfig", "Autotune"):
        if params.get(field) is not None:
            refuse(field, params[field], "leave it out")
    if config.get("TrainingJobEarlyStoppingType") == "Auto":
        refuse(
            "HyperParameterTuningJobConfig.TrainingJobEarlyStoppingType",
            "Auto",
            "set it to Off or leave it out",
        )
    if config["Strategy"] not in MAX_TRAINING_JOBS:
        offered = " or ".join(MAX_TRAINING_JOBS)
        refuse("HyperParameterTuningJobConfig.Strategy", config["Strategy"], f"set it to {offered}")
    definitions = training_job_definitions(params)
    if len(definitions) > 1:
        refuse("TrainingJobDefinitions", f"{len(definitions)} definitions", "give one")
    for path, definition in definitions:
        if definition["AlgorithmSpecification"].get("AlgorithmName"):
            name = definition["AlgorithmSpecification"]["AlgorithmName"]
            refuse(f"{path}.AlgorithmSpecification.AlgorithmName", name, "give a TrainingImage")
        resources = resource_config_of(definition)
        if (resources.get("InstanceCount") or 1) > 1 or resources.get("InstanceGroups"):
            refuse(f"{path}.ResourceConfig", resources, "train on one instance: InstanceCount 1")
        if definition.get("RetryStrategy") is not None:
            refuse(f"{path}.RetryStrategy", definition["RetryStrategy"], "leave it out")
        problems += channels.problems(definition, path)
    return problems


def _listed(problems: Sequence[AmtFieldError]) -> str:
    count = f"{len(problems)} validation error{'s' if len(problems) > 1 else ''} detected: "
    return count + "; ".join(str(problem) for problem in problems)


def _new_tags(present: Mapping[str, str], added: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the tags after some were added.

    :raises AwsError: reserved keys, a key twice in one call, or too many tags.
    """
    keys = [tag["Key"] for tag in added]
    for key in keys:
        if key.lower().startswith("aws:"):
            raise AwsError("ValidationException", f"Tags: the key {key!r} is reserved: it begins with 'aws:'")
        if keys.count(key) > 1:
            raise AwsError("ValidationException", f"Tags: the key {key!r} is given more than once")
    merged = {**present, **{tag["Key"]: tag["Value"] for tag in added}}
    if len(merged) > MAX_TAGS:
        raise AwsError(
            "ValidationException",
            f"Tags: a resource has {MAX_TAGS} tags at most; this would be {len(merged)}",
        )
    return merged


def _tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def _time(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else to_datetime(milliseconds)


def _wire_ms(moment: datetime | str) -> int:
    """Return a time of a request in milliseconds; the protocol says a number, some clients send text."""
    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment)
        except ValueError:
            raise AwsError("SerializationException", f"{moment!r} is not a time") from None
    return to_milliseconds(moment)


def _counters(row: Row, columns: Mapping[str, str]) -> dict[str, int]:
    return {name: row[column] for name, column in columns.items()}


def _described_definition(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Return a definition as AWS describes it.

    With an empty ``KmsKeyId``, and a ``ResourceConfig`` also where ``HyperParameterTuningResourceConfig`` was
    given: the SageMaker SDK 2 reads both, and gives the latter.
    """
    described = {**definition, "OutputDataConfig": {"KmsKeyId": "", **definition["OutputDataConfig"]}}
    resources = resource_config_of(definition)
    if resources:
        described["ResourceConfig"] = resources
    return described


def _tuning_summary(row: Row) -> dict[str, Any]:
    return {
        "HyperParameterTuningJobName": row["name"],
        "HyperParameterTuningJobArn": row["arn"],
        "HyperParameterTuningJobStatus": row["status"],
        "Strategy": row["strategy"],
        "CreationTime": to_datetime(row["created_ms"]),
        "HyperParameterTuningEndTime": _time(row["ended_ms"]),
        "LastModifiedTime": to_datetime(row["modified_ms"]),
        "TrainingJobStatusCounters": _counters(row, _TRAINING_COUNTERS),
        "ObjectiveStatusCounters": _counters(row, _OBJECTIVE_COUNTERS),
        "ResourceLimits": row["config"]["ResourceLimits"],
    }


def _training_summary(row: Row, tuning_job: Row) -> dict[str, Any]:
    objective = objective_of(tuning_job["config"], tuning_job["definition"])
    final = None
    if row["objective"] is not None:
        final = {
            "Type": objective["Type"],
            "MetricName": objective["MetricName"],
            "Value": row["objective"],
        }
    return {
        "TrainingJobDefinitionName": tuning_job["definition"].get("DefinitionName"),
        "TrainingJobName": row["name"],
        "TrainingJobArn": row["arn"],
        "TuningJobName": tuning_job["name"],
        "CreationTime": to_datetime(row["created_ms"]),
        "TrainingStartTime": _time(row["started_ms"]),
        "TrainingEndTime": _time(row["ended_ms"]),
        "TrainingJobStatus": row["status"],
        "TunedHyperParameters": row["hyperparameters"],
        "FailureReason": row["failure_reason"],
        "FinalHyperParameterTuningJobObjectiveMetric": final,
        "ObjectiveStatus": row["objective_status"],
    }


def _training_description(row: Row, tuning_job: Row) -> dict[str, Any]:
    definition = _described_definition(tuning_job["definition"])
    specification = definition["AlgorithmSpecification"]
    ended = row["ended_ms"]
    seconds = None
    if ended is not None and row["started_ms"] is not None:
        # The API has whole seconds, at least one.
        seconds = max(1, round((ended - row["started_ms"]) / 1000))
    metrics = [
        {"MetricName": name, "Value": value, "Timestamp": to_datetime(ended)}
        for name, value in (row["metrics"] or {}).items()
    ]
    return {
        "TrainingJobName": row["name"],
        "TrainingJobArn": row["arn"],
        "TuningJobArn": tuning_job["arn"],
        "ModelArtifacts": {"S3ModelArtifacts": model_uri(definition, row["name"])},
        "TrainingJobStatus": row["status"],
        "SecondaryStatus": _secondary_status(row),
        "FailureReason": row["failure_reason"],
        "HyperParameters": {**definition["StaticHyperParameters"], **row["hyperparameters"]},
        "AlgorithmSpecification": dict(specification),
        "RoleArn": definition["RoleArn"],
        "InputDataConfig": definition.get("InputDataConfig"),
        "OutputDataConfig": definition["OutputDataConfig"],
        "ResourceConfig": definition.get("ResourceConfig"),
        "VpcConfig": definition.get("VpcConfig"),
        "StoppingCondition": definition["StoppingCondition"],
        "CreationTime": to_datetime(row["created_ms"]),
        "TrainingStartTime": _time(row["started_ms"]),
        "TrainingEndTime": _time(ended),
        "LastModifiedTime": to_datetime(row["modified_ms"]),
        "SecondaryStatusTransitions": _transitions(row),
        "FinalMetricDataList": metrics or None,
        "EnableNetworkIsolation": definition.get("EnableNetworkIsolation", False),
        "EnableInterContainerTrafficEncryption": definition.get(
            "EnableInterContainerTrafficEncryption", False
        ),
        "EnableManagedSpotTraining": definition.get("EnableManagedSpotTraining", False),
        "CheckpointConfig": definition.get("CheckpointConfig"),
        "TrainingTimeInSeconds": seconds,
        "BillableTimeInSeconds": seconds,
        "Environment": definition.get("Environment"),
    }


def _secondary_status(row: Row) -> str:
    if row["ended_ms"] is not None:
        return str(row["secondary_status"])
    return "Stopping" if row["status"] == "Stopping" else "Training"


def _transitions(row: Row) -> list[dict[str, Any]]:
    """Return the phases of a training job; here it goes from starting to training at once."""
    steps = [("Starting", row["created_ms"])]
    if row["started_ms"] is not None:
        steps.append(("Training", row["started_ms"]))
    if row["stopping_ms"] is not None:
        steps.append(("Stopping", row["stopping_ms"]))
    if row["ended_ms"] is not None:
        steps.append((_secondary_status(row), row["ended_ms"]))
    ends = [start for _, start in steps[1:]] + [row["ended_ms"]]
    return [
        {
            "Status": status,
            "StartTime": to_datetime(start),
            "EndTime": _time(end),
            # The SageMaker SDK 2 reads it without looking whether it is there.
            "StatusMessage": _STATUS_MESSAGES[status],
        }
        for (status, start), end in zip(steps, ends, strict=True)
    ]
