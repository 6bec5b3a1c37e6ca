"""The hook for tuning jobs: every call to SageMaker that this provider makes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
from botocore.exceptions import BotoCoreError, ClientError
from botocore.loaders import Loader, create_loader
from botocore.parsers import ResponseParserError

from airflow_amt.exceptions import AmtAccessDeniedError, AmtAwsError, AmtValidationError
from airflow_amt.hooks.errors import CallSource, from_botocore_error, from_client_error, is_refusal
from airflow_amt.hooks.patience import attempt, bearing_briefly
from airflow_amt.tuning import TrainingJobResult, TuningJobStatus, TuningOutcome, infer_outcome
from airflow_amt.tuning.naming import STOPPED_BY_TAG, from_tag_list, to_tag_list
from airflow_amt.tuning.stops import PolicyStop, Stop

if TYPE_CHECKING:
    import boto3

#: Largest page of both List operations (SageMaker API, ``MaxResults``).
_PAGE = 100

#: Domains of AWS's endpoints (AWS documentation, "AWS service endpoints" and "Dual stack endpoints").
_AWS_DOMAINS = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws", ".api.amazonwebservices.com.cn")

#: HTTP status from which on AWS may have done what it answers with an error to.
_SERVER_FAULT = 500

#: Waits, in seconds, for somebody else who stops the same job and precedes: to record it, or to withdraw.
_CLAIM_WAITS = (0.25, 0.5, 1.0, 2.0, 4.0)

#: Waits, in seconds, for the stopper of a job to put itself on record: longer than it may wait for others.
_SETTLE_WAITS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)

_STOPPED = TuningJobStatus.STOPPED.value
_STOP_STATUSES = (TuningJobStatus.STOPPING.value, _STOPPED)

_BOTOCORE_ERRORS = (BotoCoreError, ResponseParserError)


@cache
def _loader(data_path: str | None) -> Loader:
    return create_loader(data_path)


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

    def get_session(self, *args: Any, **kwargs: Any) -> boto3.session.Session:
        """Return a session as ``AwsBaseHook`` does, which shares the service models with others.

        A model of SageMaker takes 20 MB, and each session would read its own.
        """
        session = super().get_session(*args, **kwargs)
        inner = session._session
        # As the session's own loader would: people may have models of their own (AWS_DATA_PATH).
        inner.register_component("data_loader", _loader(inner.get_config_variable("data_path")))
        return session

    @property
    def other_endpoint(self) -> str | None:
        """URL of the SageMaker endpoint if that is not AWS's own, as with the embedded AMT; else ``None``."""
        url = str(self.conn.meta.endpoint_url)
        host = urlsplit(url).hostname or ""
        return None if host.endswith(_AWS_DOMAINS) else url

    def build(self, operation: str = "DescribeHyperParameterTuningJob") -> None:
        """Build the client, which may already call AWS, to assume a role.

        :param operation: for which, for the error.
        :raises AmtAwsError: it cannot be built: no region, no credentials, a role that may not be assumed.
        """
        self._translated(operation, lambda: self.conn)

    def close(self) -> None:
        """Close what connections to AWS its client keeps open, if it has one; it can be used again.

        A client's own ``close`` leaves that to the garbage collector: urllib3 2 closes a pool of connections
        when nothing refers to it, and botocore leaves cycles behind that do, for each attempt that failed
        (seen with botocore 1.44: a dropped connection). In a process that idles they stay for long.
        """
        client = vars(self).get("conn")
        if client is None:
            return
        session = getattr(getattr(client, "_endpoint", None), "http_session", None)
        proxies = getattr(session, "_proxy_managers", None) or {}
        for manager in (getattr(session, "_manager", None), *proxies.values()):
            pools = getattr(manager, "pools", None) or {}
            for key in pools.keys():  # noqa: SIM118 - it cannot be iterated over
                pool = pools.get(key)
                if pool is not None:
                    pool.close()
        client.close()

    def has_connection_of(self, other: AmtHook) -> bool:
        """Say whether another hook was built from the same settings of its Airflow connection."""

        def settings(hook: AmtHook) -> tuple[Any, ...]:
            config = hook.conn_config
            return (config.conn_id, config.login, config.password, config.extra_config)

        return settings(self) == settings(other)

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

    def list_tuning_jobs_page(
        self, token: str | None = None, **filters: Any
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Return one page of summaries of tuning jobs, and the token of the next page, if there is one.

        :param token: of this page; ``None`` for the first.
        :param filters: as for :meth:`list_tuning_jobs`.
        """
        return self._page(
            "list_hyper_parameter_tuning_jobs", "HyperParameterTuningJobSummaries", filters, token
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

    def stop_tuning_job(
        self,
        name: str,
        *,
        stopped_by: str,
        detail: str | None = None,
        requested_by: str | None = None,
        policy: PolicyStop | None = None,
    ) -> bool:
        """Stop a tuning job if it is in progress, and leave in its tags who did it.

        An intent is written before the stop call, and the record after AWS accepted it
        (:mod:`airflow_amt.tuning.stops`). AWS may accept the calls of several, so between the two the job is
        read once more: whoever finds it no longer in progress then leaves it to the others, and of those who
        do not, each sees the intents of all, and the record is that of the one who precedes. A call of ours
        whose answer was lost is told from somebody else's by its intent, also when this is called again, by
        another process. A refusal to tag is logged and does not keep the job from being stopped. If the stop
        is refused, the intent is withdrawn.

        :param name: the tuning job.
        :param stopped_by: ``operator``, ``policy``, ``on_kill``, ``deadline`` or ``reaper``.
        :param detail: why, for people; cut to what a tag can hold.
        :param requested_by: who asks for it: a task instance, a person.
        :param policy: which policy demands it, and its evidence.
        :return: whether the caller stopped it, with this call or one before whose answer was lost; ``False``
            if it was over or stopping already.
        :raises AmtResourceNotFoundError: there is no such tuning job.
        """
        stop = Stop(stopped_by=stopped_by, detail=detail, requested_by=requested_by, policy=policy)
        description = self.describe_tuning_job(name)
        arn = str(description["HyperParameterTuningJobArn"])
        status = description.get("HyperParameterTuningJobStatus")
        if status != TuningJobStatus.IN_PROGRESS.value:
            self.log.info("Tuning job %s is %s: there is nothing to stop.", name, status)
            return status in _STOP_STATUSES and self._settle_lost_answer(name, arn, stop)
        tagged = self._add_intent(name, arn, stop)
        if tagged:
            status = self._status_or_withdraw(name, arn, stop)
            if status != TuningJobStatus.IN_PROGRESS.value:
                self.log.info("Tuning job %s is %s meanwhile: there is nothing to stop.", name, status)
                self._withdraw_intent(name, arn, stop)
                return False
        try:
            self._call_stop(name)
        except _StopRefusedError as refusal:
            if isinstance(refusal.error, AmtValidationError):
                status = self.describe_tuning_job(name).get("HyperParameterTuningJobStatus")
                if status in _STOP_STATUSES and refusal.answer_lost:
                    # An attempt before this one was accepted: by now the job is no longer in progress.
                    return self._claim(name, arn, stop)
                if status != TuningJobStatus.IN_PROGRESS.value:
                    # It ended, or somebody else stopped it, between the two calls.
                    if tagged:
                        self._withdraw_intent(name, arn, stop)
                    return False
            if tagged and is_refusal(refusal.error) and not refusal.answer_lost:
                self._withdraw_intent(name, arn, stop)
            raise refusal.error from None
        self.log.info("Tuning job %s is being stopped (%s).", name, stopped_by)
        return self._claim(name, arn, stop)

    def record_stop(self, arn: str, stop: Stop) -> None:
        """Make sure that a stop that AWS accepted is on record; one that is there already stays.

        :raises AmtAwsError: the tags cannot be read or written now.
        """
        tags = self.tags(arn)
        if tags is not None and STOPPED_BY_TAG not in tags:
            self.add_tags(arn, stop.tags())

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
        if arn and not known_stop and description.get("HyperParameterTuningJobStatus") == _STOPPED:
            tags = self._settled_tags(str(arn), tags)
        if known_stop:
            tags = {**(tags or {}), **known_stop}
        try:
            training_jobs = [TrainingJobResult.from_summary(one) for one in self.list_training_jobs(name)]
        except AmtAccessDeniedError as error:
            self.log.warning("The training jobs of %s cannot be listed: %s", name, error)
            training_jobs = []
        return infer_outcome(description, training_jobs=training_jobs, tags=tags)

    def _pages(self, method: str, member: str, params: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        token: str | None = None
        while True:
            items, token = self._page(method, member, params, token)
            yield from items
            if token is None:
                return

    def _page(
        self, method: str, member: str, params: Mapping[str, Any], token: str | None
    ) -> tuple[list[dict[str, Any]], str | None]:
        following = {} if token is None else {"NextToken": token}
        answer = self._call(method, **{"MaxResults": _PAGE, **params, **following})
        return list(answer.get(member) or ()), answer.get("NextToken") or None

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        return attempt(lambda: self._call_once(method, **params))

    def _call_once(self, method: str, **params: Any) -> dict[str, Any]:
        operation = "".join(word.capitalize() for word in method.split("_"))
        # The first use builds the client.
        answer: dict[str, Any] = self._translated(operation, lambda: getattr(self.conn, method)(**params))
        return answer

    def _translated(self, operation: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except ClientError as error:
            raise from_client_error(error.operation_name, error) from error
        except _BOTOCORE_ERRORS as error:
            raise from_botocore_error(operation, error, self._source()) from error

    def _call_stop(self, name: str) -> None:
        """Make the stop call.

        :raises _StopRefusedError: the last attempt failed.
        """
        lost: list[object] = []
        caller = threading.get_ident()

        def look(response: Any = None, caught_exception: Any = None, **_: Any) -> None:
            # The client may be shared: other threads may be stopping other jobs.
            if threading.get_ident() != caller:
                return
            # botocore repeats what failed; of a call that AWS may have accepted, the answer is lost.
            if caught_exception is not None or (
                response is not None and response[0].status_code >= _SERVER_FAULT
            ):
                lost.append(caught_exception or response)

        def call() -> None:
            try:
                self._call_once("stop_hyper_parameter_tuning_job", HyperParameterTuningJobName=name)
            except AmtAwsError as error:
                if not is_refusal(error):
                    lost.append(error)
                raise

        event = "needs-retry.sagemaker.StopHyperParameterTuningJob"
        self.build("StopHyperParameterTuningJob")
        events = self.conn.meta.events
        events.register(event, look)
        try:
            attempt(call)
        except AmtAwsError as error:
            raise _StopRefusedError(error, answer_lost=bool(lost)) from error
        finally:
            events.unregister(event, look)

    def _add_intent(self, name: str, arn: str, stop: Stop) -> bool:
        try:
            # Once: stopping does not wait for the tag.
            self._call_once("add_tags", ResourceArn=arn, Tags=to_tag_list(stop.intent()))
        except AmtAwsError as error:
            self.log.warning(
                "Tuning job %s is stopped without a tag that says so beforehand; if this process ends now, "
                "it will look as if somebody else had stopped it: %s",
                name,
                error,
            )
            # Without an answer it may be there.
            return not is_refusal(error)
        return True

    def _status_or_withdraw(self, name: str, arn: str, stop: Stop) -> str:
        """Return the job's status after the intent was written, which is withdrawn if that cannot be read."""
        try:
            return str(self.describe_tuning_job(name).get("HyperParameterTuningJobStatus"))
        except AmtAwsError:
            self._withdraw_intent(name, arn, stop)
            raise

    def _record(self, arn: str, stop: Stop) -> None:
        """Write the record of a stop that AWS accepted."""
        try:
            with bearing_briefly(self.log):
                self._call("add_tags", ResourceArn=arn, Tags=to_tag_list(stop.tags()))
        except AmtAwsError as error:
            # The intent says the same; whoever stopped the job knows it anyway.
            self.log.warning("That %s was stopped cannot be recorded in its tags: %s", arn, error)

    def _claim(self, name: str, arn: str, stop: Stop) -> bool:
        """Record a stop that AWS accepted, unless it is somebody else's; return whether it is the caller's.

        Whoever else has written an intent, and precedes, has stopped the job too, or withdraws: that is
        waited for, and not for ever, since it may have died.
        """
        with bearing_briefly(self.log):
            for wait in (*_CLAIM_WAITS, None):
                unread = False
                try:
                    tags = self.tags(arn) or {}
                except AmtAwsError as error:
                    self.log.warning("Who else stops tuning job %s cannot be read: %s", name, error)
                    tags, unread = {}, True
                if STOPPED_BY_TAG in tags:
                    if stop.recorded_in(tags):
                        return True
                    self.log.info(
                        "Tuning job %s is stopped by somebody else as well, who is on record.", name
                    )
                    self._withdraw_intent(name, arn, stop)
                    return False
                if wait is None or not (unread or any(one.precedes(stop) for one in Stop.intents(tags))):
                    break
                time.sleep(wait)
        self._record(arn, stop)
        return True

    def _settle_lost_answer(self, name: str, arn: str, stop: Stop) -> bool:
        """Record the caller's own stop, made before, of which it never heard that AWS accepted it."""
        if stop.requested_by is None:
            return False
        tags = self.tags(arn) or {}
        intended = stop.own_intent(tags)
        if STOPPED_BY_TAG in tags or intended is None:
            return False
        return self._claim(name, arn, intended)

    def _settled_tags(self, arn: str, tags: dict[str, str] | None) -> dict[str, str] | None:
        """Return a stopped job's tags once its stopper has put itself on record, which it is about to do."""
        for wait in _SETTLE_WAITS:
            if tags is None or STOPPED_BY_TAG in tags or Stop.intended(tags) is None:
                break
            time.sleep(wait)
            tags = self.tags(arn)
        return tags

    def _withdraw_intent(self, name: str, arn: str, stop: Stop) -> None:
        # Else a stop by somebody else would be put down to this provider.
        try:
            with bearing_briefly(self.log):
                self._call("delete_tags", ResourceArn=arn, TagKeys=list(stop.intent_keys()))
        except AmtAwsError as error:
            self.log.warning(
                "Tuning job %s was not stopped by this task, yet its tags (%s) say that it was to be, and "
                "cannot be removed: if somebody else stops it, it will look as if this provider had: %s",
                name,
                ", ".join(stop.intent_keys()),
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


class _StopRefusedError(Exception):
    """A stop call failed.

    :param error: the error of its last attempt.
    :param answer_lost: whether an attempt may have been accepted, its answer lost.
    """

    def __init__(self, error: AmtAwsError, *, answer_lost: bool) -> None:
        super().__init__(error)
        self.error = error
        self.answer_lost = answer_lost
