"""The hook for tuning jobs: every call to SageMaker that this provider makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from airflow_amt.exceptions import AmtAccessDeniedError, AmtAwsError, AmtValidationError
from airflow_amt.hooks.errors import CallSource, from_botocore_error, from_client_error, is_refusal
from airflow_amt.hooks.patience import attempt
from airflow_amt.tuning import TrainingJobResult, TuningJobStatus, TuningOutcome, infer_outcome
from airflow_amt.tuning.naming import (
    STOPPED_BY_TAG,
    STOPPED_DETAIL_TAG,
    from_tag_list,
    tag_value,
    to_tag_list,
)

#: Largest page of both List operations (SageMaker API, ``MaxResults``).
_PAGE = 100

#: Domains of AWS's endpoints (AWS documentation, "AWS service endpoints" and "Dual stack endpoints").
_AWS_DOMAINS = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws", ".api.amazonwebservices.com.cn")

_BOTOCORE_ERRORS = (BotoCoreError, ResponseParserError)


class AmtHook(AwsBaseHook):
    """Create, watch and stop tuning jobs.

    Connection type ``aws``, the Amazon provider's own; another endpoint comes from the connection's extra
    ``{"service_config": {"sagemaker": {"endpoint_url": ...}}}``. Errors of AWS, and of
    botocore before or instead of an answer, are raised as :class:`airflow_amt.exceptions.AmtAwsError` and
    its subclasses.

    Takes the arguments of ``AwsBaseHook``: ``aws_conn_id``, ``region_name``, ``verify`` and ``config``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["client_type"] = "sagemaker"
        super().__init__(*args, **kwargs)

    @property
    def other_endpoint(self) -> str | None:
        """URL of the SageMaker endpoint if that is not AWS's own, as with the embedded AMT; else ``None``."""
        url = str(self.conn.meta.endpoint_url)
        host = urlsplit(url).hostname or ""
        return None if host.endswith(_AWS_DOMAINS) else url

    def create_tuning_job(self, request: Mapping[str, Any]) -> str:
        """Create a tuning job (``CreateHyperParameterTuningJob``).

        :param request: the request as boto3 takes it; it is not checked here.
        :return: the ARN.
        :raises AmtResourceInUseError: the name is taken.
        """
        return str(self._call("create_hyper_parameter_tuning_job", **request)["HyperParameterTuningJobArn"])

    def describe_tuning_job(self, name: str) -> dict[str, Any]:
        """Describe a tuning job (``DescribeHyperParameterTuningJob``).

        :raises AmtResourceNotFoundError: there is none of this name.
        """
        return self._call("describe_hyper_parameter_tuning_job", HyperParameterTuningJobName=name)

    def list_tuning_jobs(self, **filters: Any) -> Iterator[dict[str, Any]]:
        """Iterate over the summaries of tuning jobs, all pages (``ListHyperParameterTuningJobs``).

        :param filters: the operation's own parameters: ``NameContains``, ``StatusEquals``, ``SortBy``, ...
        """
        yield from self._pages(
            "list_hyper_parameter_tuning_jobs", "HyperParameterTuningJobSummaries", filters
        )

    def list_training_jobs(self, name: str, *, status: str | None = None) -> Iterator[dict[str, Any]]:
        """Iterate over a tuning job's training jobs, all pages.

        Source: ``ListTrainingJobsForHyperParameterTuningJob``.

        :param name: the tuning job.
        :param status: only training jobs of this ``TrainingJobStatus``.
        """
        filters: dict[str, Any] = {"HyperParameterTuningJobName": name}
        if status is not None:
            filters["StatusEquals"] = status
        yield from self._pages(
            "list_training_jobs_for_hyper_parameter_tuning_job", "TrainingJobSummaries", filters
        )

    def describe_training_job(self, name: str) -> dict[str, Any]:
        """Describe a training job (``DescribeTrainingJob``).

        :raises AmtAwsError: there is none of this name (AWS answers ``ValidationException``), or another
            error.
        """
        return self._call("describe_training_job", TrainingJobName=name)

    def tags(self, arn: str) -> dict[str, str] | None:
        """Read the tags of a tuning job (``ListTags``); ``None`` if that is not permitted."""
        try:
            return from_tag_list(self._pages("list_tags", "Tags", {"ResourceArn": arn}))
        except AmtAccessDeniedError as error:
            self.log.warning("The tags of %s cannot be read: %s", arn, error)
            return None

    def add_tags(self, arn: str, tags: Mapping[str, str]) -> bool:
        """Add tags to a tuning job (``AddTags``), over those of the same keys.

        :return: whether it was permitted; a refusal is logged.
        """
        try:
            self._call("add_tags", ResourceArn=arn, Tags=to_tag_list(tags))
        except AmtAccessDeniedError as error:
            self.log.warning("The tags %s of %s cannot be written: %s", ", ".join(tags), arn, error)
            return False
        return True

    def stop_tuning_job(self, name: str, *, stopped_by: str, detail: str | None = None) -> bool:
        """Stop a tuning job if it is in progress, and leave in its tags who did it.

        The tags come first, so that whoever sees the job stopped can also see why. A refusal to tag is
        logged and does not keep the job from being stopped. If the stop is refused, the tags are removed
        again; without an answer they stay, because the stop may have been made.

        :param name: the tuning job.
        :param stopped_by: ``operator``, ``policy``, ``on_kill``, ``deadline`` or ``reaper``.
        :param detail: why, for people; cut to what a tag can hold.
        :return: whether this call stopped it; ``False`` if it was over or stopping already.
        :raises AmtResourceNotFoundError: there is no such tuning job.
        """
        description = self.describe_tuning_job(name)
        if not _is_in_progress(description):
            self.log.info(
                "Tuning job %s is %s: there is nothing to stop.",
                name,
                description.get("HyperParameterTuningJobStatus"),
            )
            return False
        arn = str(description["HyperParameterTuningJobArn"])
        tags = stop_tags(stopped_by, detail)
        tagged = False
        try:
            # Once: stopping does not wait for the tag.
            self._call_once("add_tags", ResourceArn=arn, Tags=to_tag_list(tags))
            tagged = True
        except AmtAwsError as error:
            self.log.warning(
                "Tuning job %s is stopped without a tag that says by whom, so it will look as if somebody "
                "else had stopped it: %s",
                name,
                error,
            )
        try:
            self._call("stop_hyper_parameter_tuning_job", HyperParameterTuningJobName=name)
        except AmtAwsError as error:
            if isinstance(error, AmtValidationError) and not _is_in_progress(self.describe_tuning_job(name)):
                # It ended between the two calls.
                return False
            if tagged and is_refusal(error):
                self._remove_stop_tags(name, arn, tags)
            raise
        self.log.info("Tuning job %s is being stopped (%s).", name, stopped_by)
        return True

    def expand_role(self, role: str, region_name: str | None = None) -> str:
        """Return the ARN of a role that is given by name (``iam:GetRole``); an ARN is returned as it is."""
        try:
            return str(super().expand_role(role, region_name))
        except ClientError as error:
            raise from_client_error(error.operation_name, error) from error
        except _BOTOCORE_ERRORS as error:
            raise from_botocore_error("GetRole", error, self._source("iam")) from error

    def outcome(self, name: str, *, known_stop: Mapping[str, str] | None = None) -> TuningOutcome:
        """Read all that tells why a tuning job ended, and infer it.

        :param name: the tuning job.
        :param known_stop: stop tags (:func:`stop_tags`) that the caller knows to be true because it stopped
            the job itself, in case they could not be written.
        """
        description = self.describe_tuning_job(name)
        arn = description.get("HyperParameterTuningJobArn")
        tags = self.tags(arn) if arn else None
        if known_stop:
            tags = {**(tags or {}), **known_stop}
        try:
            training_jobs = [TrainingJobResult.from_summary(one) for one in self.list_training_jobs(name)]
        except AmtAccessDeniedError as error:
            self.log.warning("The training jobs of %s cannot be listed: %s", name, error)
            training_jobs = []
        return infer_outcome(description, training_jobs=training_jobs, tags=tags)

    def _pages(self, method: str, member: str, params: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        page = {"MaxResults": _PAGE, **params}
        while True:
            answer = self._call(method, **page)
            yield from answer.get(member) or ()
            if not answer.get("NextToken"):
                return
            page["NextToken"] = answer["NextToken"]

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        return attempt(lambda: self._call_once(method, **params))

    def _call_once(self, method: str, **params: Any) -> dict[str, Any]:
        try:
            # The first use builds the client, which may already call AWS, to assume a role.
            answer: dict[str, Any] = getattr(self.conn, method)(**params)
        except ClientError as error:
            raise from_client_error(error.operation_name, error) from error
        except _BOTOCORE_ERRORS as error:
            operation = "".join(word.capitalize() for word in method.split("_"))
            raise from_botocore_error(operation, error, self._source()) from error
        return answer

    def _remove_stop_tags(self, name: str, arn: str, tags: Mapping[str, str]) -> None:
        # Else a later stop by somebody else would be put down to this provider.
        try:
            self._call_once("delete_tags", ResourceArn=arn, TagKeys=list(tags))
        except AmtAwsError as error:
            self.log.warning(
                "Tuning job %s was not stopped, yet its tags (%s) say that it was, and cannot be removed: if "
                "somebody else stops it, it will look as if this provider had: %s",
                name,
                ", ".join(tags),
                error,
            )

    def _source(self, service: str = "sagemaker") -> CallSource:
        # From what was built so far: building may be what failed.
        built = vars(self)
        config, client = built.get("conn_config"), built.get("conn")
        region = client.meta.region_name if client else config.region_name if config else self._region_name
        return CallSource(
            # An empty id means no connection to AwsBaseHook, as None does.
            conn_id=self.aws_conn_id or None,
            conn_found=config is None or bool(config),
            region=region,
            service=service,
        )


def stop_tags(stopped_by: str, detail: str | None = None) -> dict[str, str]:
    """Return the tags that say who stopped a tuning job and why."""
    tags = {STOPPED_BY_TAG: tag_value(stopped_by)}
    if detail:
        tags[STOPPED_DETAIL_TAG] = tag_value(detail)
    return tags


def _is_in_progress(description: Mapping[str, Any]) -> bool:
    return description.get("HyperParameterTuningJobStatus") == TuningJobStatus.IN_PROGRESS.value
