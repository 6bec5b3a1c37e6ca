"""The operations that the embedded AMT offers: from checked parameters to a result in the API's terms."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local import channels, json_text
from airflow_amt.local import store as tables
from airflow_amt.local.clock import to_datetime, to_milliseconds
from airflow_amt.local.engine import Engine
from airflow_amt.local.metrics import read_live_metrics
from airflow_amt.local.protocol import AwsError, Encoded, encode
from airflow_amt.local.search import MAX_TRAINING_JOBS, Evaluation, Prior
from airflow_amt.local.store import DamagedRowError, Row, StateNotWrittenError, Store, derived
from airflow_amt.local.trainer import model_uri, place_problems, resource_config_of
from airflow_amt.local.tuning_run import objective_of
from airflow_amt.service_model import listed_as_aws_does, service_model
from airflow_amt.text import shown_value
from airflow_amt.tuning.criteria import ObjectiveType
from airflow_amt.tuning.request import (
    DEFAULT_MAX_TRAINING_SECONDS,
    check_documented_rules,
    check_training_job,
    search_space_size,
    tag_problems,
    training_job_definitions,
)
from airflow_amt.tuning.warm_start import check_warm_start, launched_training_jobs, prior_evaluations

logger = logging.getLogger(__name__)

#: Quotas of an AWS account (developer guide, "Resource limits for automatic model tuning"), at what they
#: can be raised to.
MAX_CONCURRENT_TUNING_JOBS = 100
MAX_PARALLEL_TRAINING_JOBS = 100
MAX_TAGS = 50
DEFAULT_PAGE = 10
#: Of the log of a running training job so much is searched for its latest metrics.
LIVE_BYTES = 32 * 1024

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _WarmStart:
    """What a tuning job learns from its parents, and the name of their best training job."""

    prior: Prior | None = None
    best: str | None = None
    #: Training jobs of the parents, which count against the quota.
    launched: int = 0

    def stored(self) -> list[list[Any]] | None:
        """Return the evaluations as the store keeps them."""
        if self.prior is None:
            return None
        return [[dict(one.hyperparameters), one.objective] for one in self.prior.evaluations]


class Operations:
    """Answers calls.

    :param engine: what runs the tuning jobs.
    :param store: the state that calls are answered from; the engine's own if left out.
    """

    def __init__(self, engine: Engine, store: Store | None = None) -> None:
        self._engine = engine
        self._store = engine.store if store is None else store
        self._handlers: Mapping[str, Callable[[str, Mapping[str, Any]], Mapping[str, Any]]] = {
            "CreateHyperParameterTuningJob": self._create_tuning_job,
            "DescribeHyperParameterTuningJob": self._describe_tuning_job,
            "ListHyperParameterTuningJobs": self._list_tuning_jobs,
            "StopHyperParameterTuningJob": self._stop_tuning_job,
            "DeleteHyperParameterTuningJob": self._delete_tuning_job,
            "ListTrainingJobsForHyperParameterTuningJob": self._list_tuned_training_jobs,
            "CreateTrainingJob": self._create_training_job,
            "DescribeTrainingJob": self._describe_training_job,
            "ListTrainingJobs": self._list_training_jobs,
            "StopTrainingJob": self._stop_training_job,
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
        try:
            return self._handlers[operation](region, params)
        except StateNotWrittenError as error:
            raise AwsError("ServiceUnavailable", str(error), 503) from None
        except OperationalError as error:
            why = f"The state in {self._store.state_dir} cannot be read: {error.orig}. Call again."
            raise AwsError("ServiceUnavailable", why, 503) from None
        except DamagedRowError as error:
            raise AwsError("InternalFailure", str(error), 500) from None

    # --- tuning jobs -----------------------------------------------------------------------------

    def _create_tuning_job(self, region: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        problems = check_documented_rules(params, builtin_algorithms=False) or self._not_offered(params)
        if problems:
            raise AwsError("ValidationException", listed_as_aws_does(problems))
        name, config = params["HyperParameterTuningJobName"], params["HyperParameterTuningJobConfig"]
        definitions = training_job_definitions(params)
        warm_start = self._warm_start(region, params)
        try:
            self._engine.check(config, definitions, warm_start.prior)
        except AmtFieldError as error:
            raise AwsError("ValidationException", listed_as_aws_does([error])) from None
        tags = _new_tags({}, params.get("Tags") or [])
        existing = self._store.tuning_job(region, name)
        if existing is not None:
            raise AwsError(
                "ResourceInUse",
                "Hyperparameter tuning job names must be unique within an AWS account and region, but "
                f"{existing['arn']} exists already ({existing['status']})",
            )
        wanted = config["ResourceLimits"].get("MaxNumberOfTrainingJobs")
        if config["Strategy"] == "Grid":
            wanted = search_space_size(params)
        self._check_quotas(region, config, wanted or 0, warm_start.launched)
        account = self._engine.options.account
        arn = f"arn:aws:sagemaker:{region}:{account}:hyper-parameter-tuning-job/{name.lower()}"
        self._engine.create(
            region=region,
            name=name,
            arn=arn,
            tags=tags,
            config=config,
            definitions=[definition for _, definition in definitions],
            values={
                "definition_as_list": params.get("TrainingJobDefinitions") is not None,
                "autotune": params.get("Autotune"),
                "warm_start": params.get("WarmStartConfig"),
                "prior": warm_start.stored(),
                "parents_best": warm_start.best,
            },
        )
        return {"HyperParameterTuningJobArn": arn}

    def _warm_start(self, region: str, params: Mapping[str, Any]) -> _WarmStart:
        """Return what a tuning job can learn from the parents of its warm start.

        :raises AwsError: a parent does not exist, has not ended or does not fit.
        """
        warm_start = params.get("WarmStartConfig")
        if warm_start is None:
            return _WarmStart()
        rows = {
            parent["HyperParameterTuningJobName"]: self._store.tuning_job(
                region, parent["HyperParameterTuningJobName"]
            )
            for parent in warm_start["ParentHyperParameterTuningJobs"]
        }
        parents = {
            name: None
            if row is None
            else self._description(
                row, row["config"], [_described_definition(definition) for definition in row["definitions"]]
            )
            for name, row in rows.items()
        }
        problems = check_warm_start(params, parents)
        if problems:
            raise AwsError("ValidationException", listed_as_aws_does(problems))
        known = []
        best: Row | None = None
        objective = objective_of(
            params["HyperParameterTuningJobConfig"], training_job_definitions(params)[0][1]
        )
        objective_type = ObjectiveType(objective["Type"])
        for name, row in rows.items():
            description = parents[name]
            if row is None or description is None:
                raise RuntimeError(f"the parent {name!r} was accepted but does not exist")
            jobs = self._store.training_jobs_of(row["id"])
            known.append((description, [_training_summary(job, row) for job in jobs]))
            for job in jobs:
                if job["name"] == row["best"] and objective_type.better(
                    job["objective"], None if best is None else best["objective"]
                ):
                    best = job
        evaluations = [
            Evaluation(hyperparameters=combination, objective=value)
            for combination, value in prior_evaluations(params, known)
        ]
        transfer = warm_start["WarmStartType"] == "TransferLearning"
        return _WarmStart(
            prior=Prior(evaluations=evaluations, transfer=transfer),
            best=best["name"] if best is not None and not transfer else None,
            launched=sum(launched_training_jobs(description) for description, _ in known),
        )

    def _check_quotas(
        self, region: str, config: Mapping[str, Any], training_jobs: int, launched_by_parents: int
    ) -> None:
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
                launched_by_parents,
                training_jobs,
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
        return self._description(
            row, derived(row, "config", _encoded_config), derived(row, "definitions", _encoded_definitions)
        )

    def _description(self, row: Row, config: Any, definitions: Sequence[Any]) -> dict[str, Any]:
        """Return the answer that describes a tuning job.

        :param config: its configuration, which may be encoded.
        :param definitions: the definitions of its training jobs, which may be encoded.
        """
        ended = row["ended_ms"]
        now = self._engine.clock.now_ms()
        best = self._store.training_job(row["region"], row["best"]) if row["best"] else None
        return {
            "HyperParameterTuningJobName": row["name"],
            "HyperParameterTuningJobArn": row["arn"],
            "HyperParameterTuningJobConfig": config,
            "TrainingJobDefinition": None if row["definition_as_list"] else definitions[0],
            "TrainingJobDefinitions": definitions if row["definition_as_list"] else None,
            "HyperParameterTuningJobStatus": row["status"],
            "CreationTime": to_datetime(row["created_ms"]),
            "HyperParameterTuningEndTime": _time(ended),
            "LastModifiedTime": to_datetime(row["modified_ms"]),
            "TrainingJobStatusCounters": _counters(row, _TRAINING_COUNTERS),
            "ObjectiveStatusCounters": _counters(row, _OBJECTIVE_COUNTERS),
            "BestTrainingJob": None if best is None else _encoded_training_summary(best, row),
            "OverallBestTrainingJob": self._overall_best(row, best),
            "WarmStartConfig": row["warm_start"],
            "Autotune": row["autotune"],
            "FailureReason": row["failure_reason"] if row["status"] == "Failed" else None,
            "TuningJobCompletionDetails": {
                "NumberOfTrainingJobsObjectiveNotImproving": row["not_improving"],
                "ConvergenceDetectedTime": _time(row["converged_ms"]),
            },
            "ConsumedResources": {
                "RuntimeInSeconds": ((now if ended is None else ended) - row["created_ms"]) // 1000
            },
        }

    def _overall_best(self, row: Row, best: Row | None) -> Encoded | None:
        """Return the best training job of a tuning job and its parents.

        Only for a warm start with identical data and algorithm, as the API documents.
        """
        if row["warm_start"] is None or row["warm_start"]["WarmStartType"] != "IdenticalDataAndAlgorithm":
            return None
        parents_best = (
            self._store.training_job(row["region"], row["parents_best"]) if row["parents_best"] else None
        )
        objective_type = ObjectiveType(objective_of(row["config"], row["definitions"][0])["Type"])
        if parents_best is not None and objective_type.better(
            parents_best["objective"], None if best is None else best["objective"]
        ):
            parent = self._store.tuning_job_by_id(parents_best["tuning_job_id"])
            return _encoded_training_summary(parents_best, parent)
        return None if best is None else _encoded_training_summary(best, row)

    def _delete_tuning_job(self, region: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        row = self._tuning_job(region, params)
        if row["status"] in tables.GOING_ON:
            raise AwsError(
                "ValidationException",
                f"The hyperparameter tuning job {row['name']} is not in a terminal state ({row['status']}): "
                "stop it, and delete it once it has ended",
            )
        with self._store.transaction():
            self._store.delete_tuning_job(row)
        return {}

    def _list_tuning_jobs(self, region: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        table = tables.tuning_jobs
        conditions = [table.c.region == region, ~table.c.deleted, *_filters(params, table)]
        column = {"Name": table.c.name, "Status": table.c.status, "CreationTime": table.c.created_ms}[
            params.get("SortBy") or "Name"
        ]
        rows, token = self._page(params, region, column, table.c.id, conditions, self._store.list_tuning_jobs)
        return {
            "HyperParameterTuningJobSummaries": _readable(
                rows, lambda row: derived(row, "summary", _encoded_summary)
            ),
            "NextToken": token,
        }

    def _stop_tuning_job(self, region: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        row = self._tuning_job(region, params)
        if row["status"] not in tables.GOING_ON:
            raise AwsError(
                "ValidationException",
                f"The request was rejected because the hyperparameter tuning job {row['name']} is already in "
                f"status {row['status']}: only one that is InProgress can be stopped",
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

    def _list_tuned_training_jobs(self, region: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
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
            "TrainingJobSummaries": _readable(rows, lambda row: _encoded_training_summary(row, tuning_job)),
            "NextToken": token,
        }

    def _not_offered(self, params: Mapping[str, Any]) -> list[AmtFieldError]:
        """List what AMT offers and the embedded AMT does not: refused, because ignoring it would mislead."""
        return [
            problem
            for path, definition in training_job_definitions(params)
            for problem in self._impossible(definition, f"{path}.")
        ]

    def _impossible(self, definition: Mapping[str, Any], prefix: str) -> list[AmtFieldError]:
        found = channels.problems(definition, prefix)
        return found + place_problems(self._engine.places, self._engine.storage, definition, prefix)

    def _create_training_job(self, region: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        name = params["TrainingJobName"]
        problems = check_training_job(params) or self._impossible(params, "")
        if problems:
            raise AwsError("ValidationException", listed_as_aws_does(problems))
        try:
            plan = self._engine.training_plan({key: params[key] for key in params if key != "Tags"})
        except AmtFieldError as error:
            raise AwsError("ValidationException", listed_as_aws_does([error])) from None
        tags = _new_tags({}, params.get("Tags") or [])
        existing = self._store.training_job(region, name)
        if existing is not None:
            raise AwsError(
                "ResourceInUse",
                "Training job names must be unique within an AWS account and region, but "
                f"{existing['arn']} exists already ({existing['status']})",
            )
        return {"TrainingJobArn": self._engine.create_training_job(region, plan, tags)}

    def _describe_training_job(self, region: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        row = self._training_job(region, params)
        if row["tuning_job_id"] is None:
            return self._training_description(row, None)
        return self._training_description(row, self._store.tuning_job_by_id(row["tuning_job_id"]))

    def _training_description(self, row: Row, tuning_job: Row | None) -> dict[str, Any]:
        if tuning_job is None:
            definition = row["request"]
            hyperparameters = definition.get("HyperParameters")
        else:
            definition = tuning_job["definitions"][row["definition_index"]]
            hyperparameters = {**definition["StaticHyperParameters"], **row["hyperparameters"]}
        echoed = _described_definition(definition)
        members = _describe_training_members()
        started, ended = row["started_ms"], row["ended_ms"]
        seconds = None
        if ended is not None and started is not None:
            # The API has whole seconds, at least one.
            seconds = max(1, round((ended - started) / 1000))
        metrics, read_ms = row["metrics"], ended
        if ended is None:
            metrics, read_ms = self._live_metrics(row), self._engine.clock.now_ms()
        return {
            **{key: value for key, value in echoed.items() if key in members},
            "TrainingJobName": row["name"],
            "TrainingJobArn": row["arn"],
            "TuningJobArn": None if tuning_job is None else tuning_job["arn"],
            "ModelArtifacts": {"S3ModelArtifacts": model_uri(definition, row["name"])},
            "TrainingJobStatus": row["status"],
            "SecondaryStatus": row["transitions"][-1][0],
            "FailureReason": row["failure_reason"],
            "HyperParameters": hyperparameters,
            "AlgorithmSpecification": dict(definition.get("AlgorithmSpecification") or {}) or None,
            "ResourceConfig": resource_config_of(definition) or None,
            "StoppingCondition": definition.get("StoppingCondition")
            or {"MaxRuntimeInSeconds": DEFAULT_MAX_TRAINING_SECONDS},
            "CreationTime": to_datetime(row["created_ms"]),
            "TrainingStartTime": _time(started),
            "TrainingEndTime": _time(ended),
            "LastModifiedTime": to_datetime(row["modified_ms"]),
            "SecondaryStatusTransitions": _transitions(row),
            "FinalMetricDataList": [
                {"MetricName": name, "Value": value, "Timestamp": _time(read_ms)}
                for name, value in (metrics or {}).items()
            ]
            or None,
            "EnableNetworkIsolation": definition.get("EnableNetworkIsolation", False),
            "EnableInterContainerTrafficEncryption": definition.get(
                "EnableInterContainerTrafficEncryption", False
            ),
            "EnableManagedSpotTraining": definition.get("EnableManagedSpotTraining", False),
            "TrainingTimeInSeconds": seconds,
            "BillableTimeInSeconds": seconds,
        }

    def _live_metrics(self, row: Row) -> Mapping[str, float]:
        """Return the latest metrics of a training job that runs, from the end of its log."""
        training = self._engine.trainings.get(row["id"])
        if training is None:
            return {}
        return read_live_metrics(training.spec.log, training.plan.metrics, most=LIVE_BYTES)

    def _list_training_jobs(self, region: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        table = tables.training_jobs
        conditions = [table.c.region == region, *_filters(params, table)]
        for field in ("WarmPoolStatusEquals", "TrainingPlanArnEquals"):
            if params.get(field):
                # There are neither warm pools nor training plans here.
                conditions.append(sa.false())
        column = {"Name": table.c.name, "Status": table.c.status, "CreationTime": table.c.created_ms}[
            params.get("SortBy") or "CreationTime"
        ]
        rows, token = self._page(
            params, region, column, table.c.id, conditions, self._store.list_training_jobs
        )
        return {
            "TrainingJobSummaries": _readable(
                rows,
                lambda row: encode(
                    "TrainingJobSummary",
                    {
                        "TrainingJobName": row["name"],
                        "TrainingJobArn": row["arn"],
                        "CreationTime": to_datetime(row["created_ms"]),
                        "TrainingEndTime": _time(row["ended_ms"]),
                        "LastModifiedTime": to_datetime(row["modified_ms"]),
                        "TrainingJobStatus": row["status"],
                        "SecondaryStatus": row["transitions"][-1][0],
                    },
                ),
            ),
            "NextToken": token,
        }

    def _stop_training_job(self, region: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        row = self._training_job(region, params)
        if row["status"] not in tables.GOING_ON:
            raise AwsError(
                "ValidationException",
                # AWS's words, which clients look for.
                f"The request was rejected because the training job is in status {row['status']}: "
                f"only one that is InProgress can be stopped, which {row['name']} is not",
            )
        self._engine.stop_training_job(row)
        return {}

    def _training_job(self, region: str, params: Mapping[str, Any]) -> Row:
        name = params["TrainingJobName"]
        row = self._store.training_job(region, name)
        if row is None:
            # Not the ResourceNotFound of the service model: AWS answers this, and its clients rely on it (as
            # the Amazon provider's operators do where they look whether a training job exists).
            raise AwsError(
                "ValidationException", f"Requested resource not found: training job {name} in {region}"
            )
        return row

    # --- tags ------------------------------------------------------------------------------------

    def _add_tags(self, region: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        arn = self._existing_arn(params)
        tags = _new_tags(self._store.tags_of(arn), params["Tags"])
        with self._store.transaction():
            self._store.set_tags(arn, tags)
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
        with self._store.transaction():
            self._store.set_tags(arn, kept)
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
        query = _fingerprint(params, region, key.table.name)
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


def _readable(rows: Sequence[Row], make: Callable[[Row], Any]) -> list[Any]:
    """Return what is made of each row; those that are damaged are left out of a list, and logged."""
    made = []
    for row in rows:
        try:
            made.append(make(row))
        except DamagedRowError as error:
            logger.error("Left out of a list: %s", error)
        except (LookupError, TypeError, ValueError):  # JSON of another form
            logger.exception("Left out of a list: row %s, job %s", row["id"], row.get("name"))
    return made


def _fingerprint(params: Mapping[str, Any], region: str, table: str) -> str:
    """Return what identifies a query whose pages belong together."""
    relevant = {
        key: str(value) for key, value in sorted(params.items()) if key not in ("NextToken", "MaxResults")
    }
    return hashlib.sha256(json.dumps([region, table, relevant]).encode()).hexdigest()[:16]


def _write_token(query: str, value: Any, key: int) -> str:
    return base64.urlsafe_b64encode(json.dumps([query, value, key]).encode()).decode()


def _read_token(token: str, query: str) -> tuple[Any, int]:
    try:
        decoded = json_text.read(base64.urlsafe_b64decode(token.encode("ascii")))
        of_query, value, key = decoded
        if of_query != query or not isinstance(value, (str, int, float)) or not isinstance(key, int):
            raise ValueError
        if any(isinstance(one, int) and abs(one) >= 2**63 for one in (value, key)):
            raise ValueError
    except (ValueError, TypeError):
        raise AwsError(
            "ValidationException",
            "NextToken: this token was not given out for this query; use the token of the page before, and "
            "the same filters and order",
        ) from None
    return value, key


def _new_tags(present: Mapping[str, str], added: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the tags after some were added.

    :raises AwsError: reserved keys, a key twice in one call, or too many tags.
    """
    problems = list(tag_problems(added))
    if problems:
        raise AwsError("ValidationException", listed_as_aws_does(problems))
    merged = {**present, **{tag["Key"]: tag["Value"] for tag in added}}
    if len(merged) > MAX_TAGS:
        raise AwsError(
            "ValidationException",
            f"Tags: a resource has {MAX_TAGS} tags at most; this would be {len(merged)}",
        )
    return merged


def _tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def _filters(params: Mapping[str, Any], table: sa.Table) -> list[sa.ColumnElement[bool]]:
    """Return the conditions that the filters of a list operation stand for."""
    conditions: list[sa.ColumnElement[bool]] = []
    if params.get("NameContains"):
        conditions.append(sa.func.instr(table.c.name_key, params["NameContains"].lower()) > 0)
    if params.get("StatusEquals"):
        conditions.append(table.c.status == params["StatusEquals"])
    for prefix, column in (("CreationTime", table.c.created_ms), ("LastModifiedTime", table.c.modified_ms)):
        after, before = params.get(f"{prefix}After"), params.get(f"{prefix}Before")
        if after is not None:
            conditions.append(column > _wire_ms(after))
        if before is not None:
            conditions.append(column < _wire_ms(before))
    return conditions


def _time(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else to_datetime(milliseconds)


def _wire_ms(moment: datetime | str) -> int:
    """Return a time of a request in milliseconds; the protocol says a number, some clients send text."""
    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment)
        except ValueError:
            raise AwsError("SerializationException", f"{shown_value(moment)} is not a time") from None
    # Without a zone it is UTC; by the zone of this machine, the first year would be no time.
    return to_milliseconds(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


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


def _encoded_config(row: Row) -> Encoded:
    return encode("HyperParameterTuningJobConfig", row["config"])


def _encoded_definitions(row: Row) -> list[Encoded]:
    return [
        encode("HyperParameterTrainingJobDefinition", _described_definition(definition))
        for definition in row["definitions"]
    ]


def _encoded_summary(row: Row) -> Encoded:
    return encode("HyperParameterTuningJobSummary", _tuning_summary(row))


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


def _encoded_training_summary(row: Row, tuning_job: Row) -> Encoded:
    # Of its tuning job, a summary holds nothing but what never changes.
    return derived(
        row,
        "summary",
        lambda one: encode("HyperParameterTrainingJobSummary", _training_summary(one, tuning_job)),
    )


def _training_summary(row: Row, tuning_job: Row) -> dict[str, Any]:
    definition = tuning_job["definitions"][row["definition_index"]]
    objective = objective_of(tuning_job["config"], definition)
    final = None
    if row["objective"] is not None:
        final = {
            "Type": objective["Type"],
            "MetricName": objective["MetricName"],
            "Value": row["objective"],
        }
    return {
        "TrainingJobDefinitionName": definition.get("DefinitionName"),
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


@functools.cache
def _describe_training_members() -> frozenset[str]:
    """Return the members of a description that repeat the request as it is."""
    shape = service_model().operation_model("DescribeTrainingJob").output_shape
    return frozenset() if shape is None else frozenset(shape.members)


#: What SageMaker says of each phase.
_PHASE_MESSAGES = {
    "Starting": "Preparing the instances for training",
    "Downloading": "Downloading input data",
    "Training": "Training in progress",
    "Restarting": "Restarting after an internal error",
    "Stopping": "Stopping the training job",
    "Uploading": "Uploading generated training model",
    "Completed": "Training job completed",
    "Failed": "Training job failed",
    "Stopped": "Training job stopped",
    "MaxRuntimeExceeded": "Training job runtime exceeded MaxRuntimeInSeconds provided",
}


def _transitions(row: Row) -> list[dict[str, Any]]:
    """Return the phases of a training job, each with its time and what it means."""
    steps = row["transitions"]
    ends = [start for _, start in steps[1:]] + [row["ended_ms"]]
    return [
        {
            "Status": status,
            "StartTime": to_datetime(start),
            "EndTime": _time(end),
            # The SageMaker SDK 2 reads it without looking whether it is there.
            "StatusMessage": _PHASE_MESSAGES[status],
        }
        for (status, start), end in zip(steps, ends, strict=True)
    ]
