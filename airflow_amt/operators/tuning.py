"""The operator that starts a tuning job, waits for it and says why it ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from airflow.sdk import BaseOperator

from airflow_amt import _compat
from airflow_amt._tasks import (
    CONNECTION_FIELDS,
    NAME_KEY,
    TuningJobTask,
    parse_seconds,
    resumed_state,
)
from airflow_amt.exceptions import (
    AmtAwsError,
    AmtFieldError,
    AmtJobExistsError,
    AmtRequestError,
    AmtResourceInUseError,
    AmtResourceNotFoundError,
)
from airflow_amt.links.tuning import AmtTuningJobLink
from airflow_amt.task_exceptions import (
    AmtOwnJobEndedError,
    AmtTaskKilled,
    AmtTuningJobFailed,
    AmtTuningJobStopped,
    AmtTuningJobTimeout,
)
from airflow_amt.tuning import (
    CompletionCriteria,
    Owner,
    TuningJobStatus,
    TuningProgress,
    derive_job_name,
    estimated_max_compute,
)
from airflow_amt.tuning.naming import TAG_PREFIX, ownership_tags, to_tag_list
from airflow_amt.tuning.request import training_job_definitions
from airflow_amt.watch.polling import TuningJobReader, Verdict, patiently

if TYPE_CHECKING:
    from airflow.sdk import Context

#: Version of the dict that the operator returns when it does not wait.
STARTED_VERSION = 1

_Checked = TypeVar("_Checked")

_CREATE = "CreateHyperParameterTuningJob"
_NAME = "HyperParameterTuningJobName"
_CONFIG = "HyperParameterTuningJobConfig"
_S3_OPERATIONS = "S3Operations"

#: Jobs that one task instance may have started, one a retry, before something is clearly wrong.
_MOST_GENERATIONS = 1000

#: How long ``on_kill`` holds up the process: Airflow kills it about 9 s after it asked (measured, 3.3.2).
_ON_KILL_SECONDS = 5.0
_ON_KILL_REST_SECONDS = 20.0


class WaitingOperator(TuningJobTask, BaseOperator):
    """Base of the operators that wait for a tuning job to be over: in a loop or deferred.

    A subclass sets ``check_interval`` and ``deferrable`` and defines ``execute_complete``.
    """

    check_interval: Any
    deferrable: bool
    # Set by on_kill, which a signal handler calls in the middle of anything.
    _killed: bool = False

    def wait(
        self,
        context: Context,
        name: str,
        *,
        deadline: datetime | None,
        stop_on_kill: bool,
        state: dict[str, Any],
    ) -> Verdict:
        """Wait until the tuning job is over or the deadline is; deferrable tasks defer after one read.

        :param state: what ``execute_complete`` needs, JSON-safe; name and deadline are added.
        :raises AmtTaskKilled: the task was killed meanwhile.
        :raises AmtAwsError: the job cannot be read.
        """
        interval = self._interval()
        reader = TuningJobReader(
            lambda: self.hook.describe_tuning_job(name),
            interval_seconds=interval,
            deadline=deadline,
            log=self.log,
        )
        while True:
            reading = reader.read()
            if reading.progress is not None:
                self.publish_link(context, reading.progress.arn)
            if reading.verdict is not Verdict.WAIT:
                return reading.verdict
            if self.deferrable:
                # No timeout here: when it expires, Airflow fails the task without asking the operator,
                # and the job runs on. The deadline travels with the trigger instead.
                self.defer(
                    trigger=self.build_trigger(
                        name,
                        check_interval=interval,
                        deadline=deadline,
                        stop_on_kill=stop_on_kill,
                        state=state,
                    ),
                    method_name="execute_complete",
                )
            self._sleep(reading.delay_seconds)
            self.raise_if_killed(name)

    def raise_if_killed(self, name: str | None) -> None:
        """Stop waiting after ``on_kill``; Airflow's SIGTERM alone would let the task poll on."""
        if self._killed:
            raise AmtTaskKilled(name, self.after_kill())

    def after_kill(self) -> str:
        """Say what was done about the tuning job."""
        return "the tuning job is left as it is"

    def on_kill(self) -> None:
        """End the waiting."""
        self._killed = True

    def _interval(self) -> float:
        return parse_seconds("check_interval", self.check_interval, at_least=0.1)

    def _sleep(self, seconds: float) -> None:
        # In slices: a signal handler's flag does not wake a longer sleep.
        until = time.monotonic() + seconds
        while not self._killed and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.5))


class AmtTuningJobOperator(WaitingOperator):
    """Start a tuning job, wait until it is over, and return why it ended.

    Purpose: a drop-in for the Amazon provider's ``SageMakerTuningOperator`` (its arguments and its
    ``config=`` work as they are) that adds typed completion criteria, a reason, and safe retries.

    How it works: the whole request is checked before any call. The job's name is derived from the task
    instance unless ``config`` gives one, and the job is tagged with its owner; a retry that finds its own
    job still in progress adopts it, and starts a new one if that is over. Name (XCom ``tuning_job_name``)
    and console link are published as soon as the job exists. However the job ends, its outcome is pushed to
    XCom as ``outcome``; if it came to its own end (:attr:`airflow_amt.tuning.TuningOutcome.succeeded`) it is
    also returned, otherwise the task fails.

    What it does not do: it does not look at the S3 URIs of ``InputDataConfig``; AMT does.

    Known limitation: while the task is deferred, ``execution_timeout`` has no effect (Airflow does not
    enforce it then); ``max_ingestion_time`` does.

    :param config: the ``CreateHyperParameterTuningJob`` request (templated); strings that a template
        rendered are turned into the API's types. ``RoleArn`` may be a role's name. The Amazon provider's
        ``S3Operations`` are run first, by that provider's hook.
    :param criteria: when AMT shall end the job: :class:`airflow_amt.tuning.CompletionCriteria` or a mapping
        of its attributes (templated). What it sets goes to its place in ``config``.
    :param aws_conn_id: connection (templated).
    :param region_name: AWS region (templated).
    :param verify: as for boto3 (templated).
    :param botocore_config: as for ``botocore.config.Config``. A deferred task stores it in the metadata
        database: keep secrets in the connection.
    :param wait_for_completion: ``False`` returns as soon as the job is created: version,
        ``tuning_job_name``, ``tuning_job_arn`` and ``status``.
    :param check_interval: seconds between two reads, 0.1 at least (templated).
    :param max_ingestion_time: seconds from the job's creation after which it is stopped and the task fails
        with :class:`airflow_amt.task_exceptions.AmtTuningJobTimeout`; ``None`` for no limit (templated).
    :param deferrable: wait in the triggerer; default ``[operators] default_deferrable``.
    :param stop_on_kill: stop the tuning job when the task is killed (marked failed or successful, cleared,
        timed out). While the task is deferred this needs Airflow 3.3.
    :param job_name_prefix: start of the derived name; default: the task id (templated).
    :raises AmtRequestError: request, criteria or times are not well formed; every bad field is named,
        nothing was sent.
    :raises AmtJobExistsError: the given name is taken.
    :raises AmtTuningJobError: the job failed or was stopped; carries the outcome.
    :raises AmtAwsError: AWS refused a call.
    """

    template_fields: Sequence[str] = (
        "config",
        "criteria",
        "check_interval",
        "max_ingestion_time",
        "job_name_prefix",
        *CONNECTION_FIELDS,
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"config": "json"}
    operator_extra_links = (AmtTuningJobLink(),)
    ui_color = "#ededed"

    def __init__(
        self,
        *,
        config: Mapping[str, Any] | str,
        criteria: CompletionCriteria | Mapping[str, Any] | None = None,
        aws_conn_id: str | None = "aws_default",
        region_name: str | None = None,
        verify: bool | str | None = None,
        botocore_config: dict[str, Any] | None = None,
        wait_for_completion: bool = True,
        check_interval: float | str = 30,
        max_ingestion_time: float | str | None = None,
        deferrable: bool = _compat.default_deferrable(),
        stop_on_kill: bool = True,
        job_name_prefix: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.criteria = criteria
        self.aws_conn_id = aws_conn_id
        self.region_name = region_name
        self.verify = verify
        self.botocore_config = botocore_config
        self.wait_for_completion = wait_for_completion
        self.check_interval = check_interval
        self.max_ingestion_time = max_ingestion_time
        self.deferrable = deferrable
        self.stop_on_kill = stop_on_kill
        self.job_name_prefix = job_name_prefix
        self._job_name: str | None = None
        self._killer: threading.Thread | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Check the request, create or adopt the tuning job, and wait for it."""
        owner = _owner(context)
        request, s3_operations, limit = self._checked(owner)
        self._warn_if_endless(request)
        created_at = datetime.now(UTC)
        name, arn, created_at = self._create_or_adopt(request, s3_operations, owner, created_at)
        self.raise_if_killed(name)
        context["ti"].xcom_push(key=NAME_KEY, value=name)
        self.publish_link(context, arn)
        if not self.wait_for_completion:
            progress = TuningProgress.from_describe(
                patiently(
                    lambda: self.hook.describe_tuning_job(name),
                    interval_seconds=self._interval(),
                    log=self.log,
                )
            )
            return {
                "version": STARTED_VERSION,
                "tuning_job_name": name,
                "tuning_job_arn": arn,
                "status": progress.status,
            }
        return self._follow(context, name, deadline=None if limit is None else created_at + limit)

    def execute_complete(
        self,
        context: Context,
        event: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Go on after the trigger fired; AWS is read again, whatever the event says."""
        name, deadline, state = resumed_state(event)
        self._job_name = name
        error = self.watch_error(name, event)
        if error is not None:
            raise error
        return self._follow(context, name, deadline=deadline, known_stop=state.get("known_stop"))

    def on_kill(self) -> None:
        """Stop the tuning job, unless ``stop_on_kill`` is off, and end the waiting."""
        super().on_kill()
        name = self._job_name
        if not self.stop_on_kill or name is None or self._killer is not None:
            return
        # In a thread: a signal handler may have interrupted this one while it held a lock that the calls
        # below need. What is not done in time goes on beside the waiting loop, which then ends.
        self._killer = threading.Thread(target=self._stop_killed, args=(name,), name="airflow-amt-on-kill")
        self._killer.start()
        self._killer.join(_ON_KILL_SECONDS)

    def after_kill(self) -> str:
        """Say what was done about the tuning job."""
        if self._killer is None:
            return super().after_kill()
        self._killer.join(_ON_KILL_REST_SECONDS)
        return "the tuning job is being stopped" if not self._killer.is_alive() else "stopping it hangs"

    def _stop_killed(self, name: str) -> None:
        try:
            self.hook.stop_tuning_job(name, stopped_by="on_kill", detail="the task was killed")
        except AmtResourceNotFoundError:
            self.log.info("Tuning job %s was not created yet.", name)
        except AmtAwsError:
            self.log.exception("Tuning job %s could not be stopped and may run on.", name)

    def _follow(
        self,
        context: Context,
        name: str,
        *,
        deadline: datetime | None,
        known_stop: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Wait until the job is over, stopping it at the deadline, and end the task."""
        while True:
            verdict = self.wait(
                context,
                name,
                deadline=deadline,
                stop_on_kill=self.stop_on_kill,
                state={"known_stop": known_stop},
            )
            if verdict is Verdict.ENDED:
                return self._finish(context, name, known_stop)
            known_stop = self._stop_at_deadline(name)
            deadline = None

    def _stop_at_deadline(self, name: str) -> dict[str, str] | None:
        from airflow_amt.hooks.tuning import stop_tags

        detail = f"max_ingestion_time of {self.max_ingestion_time} s is over"
        self.log.warning("Tuning job %s: %s; it is stopped.", name, detail)
        stopped = patiently(
            lambda: self.hook.stop_tuning_job(name, stopped_by="deadline", detail=detail),
            interval_seconds=self._interval(),
            log=self.log,
        )
        return stop_tags("deadline", detail) if stopped else None

    def _finish(self, context: Context, name: str, known_stop: dict[str, str] | None) -> dict[str, Any]:
        outcome = self.read_outcome(context, name, interval_seconds=self._interval(), known_stop=known_stop)
        result = outcome.to_dict()
        if outcome.succeeded:
            return result
        if outcome.status != TuningJobStatus.STOPPED.value:
            raise AmtTuningJobFailed(result)
        raise AmtTuningJobTimeout(result) if known_stop else AmtTuningJobStopped(result)

    def _time_limit(self) -> timedelta | None:
        limit = self.max_ingestion_time
        if limit is None or (isinstance(limit, str) and limit.strip() in ("", "None")):
            return None
        return timedelta(seconds=parse_seconds("max_ingestion_time", limit, at_least=0))

    def _checked(self, owner: Owner) -> tuple[dict[str, Any], Any, timedelta | None]:
        """Check all arguments, and list all problems at once.

        :return: the request, roles still unexpanded; the S3 operations beside it; the time limit.
        """
        problems: list[AmtFieldError] = []
        request, s3_operations = self._request(owner, problems)
        _collect(problems, self._interval)
        limit = _collect(problems, self._time_limit)
        # Two checks may find fault with one field; the first to do so is the more specific one.
        by_field: dict[str, AmtFieldError] = {}
        for problem in problems:
            by_field.setdefault(problem.field, problem)
        if by_field:
            raise AmtRequestError(by_field.values())
        return request, s3_operations, limit

    def _request(self, owner: Owner, problems: list[AmtFieldError]) -> tuple[dict[str, Any], Any]:
        """Return the request and the S3 operations beside it; add what is wrong to the problems."""
        from airflow_amt import service_model

        if not isinstance(self.config, Mapping):
            problems.append(
                AmtFieldError(
                    "config",
                    self.config,
                    "a mapping",
                    "pass a dict; a template that stands for the whole of it needs "
                    "render_template_as_native_obj=True",
                )
            )
            self._parsed_criteria(problems)
            return {}, None
        config = dict(self.config)
        s3_operations = config.pop(_S3_OPERATIONS, None)
        request = service_model.coerce(_CREATE, config)
        criteria = self._parsed_criteria(problems)
        tuning_config = request.get(_CONFIG)
        if criteria is not None and (tuning_config is None or isinstance(tuning_config, Mapping)):
            merged = _collect(problems, lambda: criteria.merge_into(tuning_config or {}))
            if merged is not None:
                request[_CONFIG] = merged
        prefix = self.job_name_prefix
        if request.get(_NAME) is None:
            request[_NAME] = derive_job_name(owner, prefix=prefix)
        elif prefix is not None:
            problems.append(
                AmtFieldError(
                    "job_name_prefix",
                    prefix,
                    f"config gives the name already ({request[_NAME]})",
                    "give one of the two",
                )
            )
        if request.get("Tags") is None or isinstance(request["Tags"], list):
            request["Tags"] = _with_tags(request.get("Tags") or [], {**owner.tags(), _GENERATION_TAG: "1"})
        problems += service_model.check_create_request(_with_sample_roles(request))
        return request, s3_operations

    def _parsed_criteria(self, problems: list[AmtFieldError]) -> CompletionCriteria | None:
        given = self.criteria
        return None if given is None else _collect(problems, lambda: CompletionCriteria.parse(given))

    def _warn_if_endless(self, request: Mapping[str, Any]) -> None:
        config = request[_CONFIG]
        limits = config["ResourceLimits"]
        if "MaxNumberOfTrainingJobs" in limits or "MaxRuntimeInSeconds" in limits:
            return
        # AMT computes the number for a grid, and with Autotune it sets the limits itself.
        if config["Strategy"] == "Grid" or "Autotune" in request:
            return
        self.log.warning(
            "Neither max_training_jobs nor max_runtime limits this tuning job: other criteria may never be "
            "met, and it may run, and cost, until AWS's quotas end it. Set one of the two in criteria."
        )

    def _create_or_adopt(
        self, request: dict[str, Any], s3_operations: Any, owner: Owner, now: datetime
    ) -> tuple[str, str, datetime]:
        """Create the job, or find the one that an earlier try created.

        :return: its name, its ARN and when it was created.
        """
        derived = isinstance(self.config, Mapping) and self.config.get(_NAME) is None
        self._expand_roles(request)
        for generation in range(1, _MOST_GENERATIONS + 1):
            if derived:
                request[_NAME] = derive_job_name(owner, prefix=self.job_name_prefix, generation=generation)
            request["Tags"] = _with_tags(request["Tags"], {_GENERATION_TAG: str(generation)})
            name = request[_NAME]
            self._job_name = name
            if s3_operations is not None and self._describe_or_none(name) is None:
                self._run_s3_operations(s3_operations)
                s3_operations = None
            try:
                arn = self.hook.create_tuning_job(request)
            except AmtResourceInUseError:
                found = self._adoptable(name, owner, derived)
                if found is None:
                    continue
                # The job's clock and this one may differ: its deadline shall not move to the future.
                return name, found.arn, min(found.created_at or now, now)
            self._log_created(name, arn, request)
            return name, arn, now
        raise AmtRequestError(
            [
                AmtFieldError(
                    "job_name_prefix",
                    self.job_name_prefix,
                    f"this task instance has started {_MOST_GENERATIONS} tuning jobs",
                    "find out why it is retried that often",
                )
            ]
        )

    def _adoptable(self, name: str, owner: Owner, derived: bool) -> TuningProgress | None:
        """Decide about a job whose name is taken.

        :return: the job, if it is ours and in progress; ``None`` if it is ours, was named by us and is over.
        :raises AmtJobExistsError: it is somebody else's.
        :raises AmtOwnJobEndedError: it is ours, has a given name, and is over.
        """
        progress = TuningProgress.from_describe(self.hook.describe_tuning_job(name))
        tags = self.hook.tags(progress.arn)
        # A derived name holds a digest of the owner: it is ours even if its tags cannot be read.
        ours = owner.owns(tags) if tags is not None else derived
        theirs = ownership_tags(tags or {})
        if not ours:
            raise AmtJobExistsError(name, owner.tags(), theirs, progress.status)
        if progress.status != TuningJobStatus.IN_PROGRESS.value:
            if not derived:
                raise AmtOwnJobEndedError(name, owner.tags(), theirs, progress.status)
            self.log.info(
                "An earlier try's tuning job %s is %s: a new one is started.", name, progress.status
            )
            return None
        self.log.info("Tuning job %s was started by an earlier try of this task: it is adopted.", name)
        return progress

    def _describe_or_none(self, name: str) -> dict[str, Any] | None:
        try:
            return self.hook.describe_tuning_job(name)
        except AmtResourceNotFoundError:
            return None

    def _run_s3_operations(self, operations: Any) -> None:
        from airflow.providers.amazon.aws.hooks.sagemaker import SageMakerHook

        self.log.info("Running the S3 operations of the config.")
        SageMakerHook(  # type: ignore[no-untyped-call]
            aws_conn_id=self.aws_conn_id,
            region_name=self.region_name,
            verify=self.verify,
            config=self.botocore_config,
        ).configure_s3_resources({_S3_OPERATIONS: deepcopy(operations)})

    def _expand_roles(self, request: dict[str, Any]) -> None:
        for definition in _definitions(request):
            role = definition.get("RoleArn")
            if isinstance(role, str) and _is_role_name(role):
                definition["RoleArn"] = self.hook.expand_role(role)

    def _log_created(self, name: str, arn: str, request: Mapping[str, Any]) -> None:
        self.log.info("Created tuning job %s (%s).", name, arn)
        compute = estimated_max_compute(request)
        if compute is not None:
            self.log.info("It may consume %s instance-seconds at most, by the guide's estimate.", compute)


_GENERATION_TAG = f"{TAG_PREFIX}generation"

#: Stands for a role that is given by name while the request is checked: the API wants an ARN.
_SAMPLE_ROLE = "arn:aws:iam::000000000000:role/"


def _collect(problems: list[AmtFieldError], check: Callable[[], _Checked]) -> _Checked | None:
    """Return what the check returns; add the problems that it raises to the list."""
    try:
        return check()
    except AmtRequestError as error:
        problems.extend(error.problems)
        return None


def _owner(context: Context) -> Owner:
    ti = context["ti"]
    map_index = ti.map_index
    return Owner(
        dag_id=ti.dag_id,
        run_id=ti.run_id,
        task_id=ti.task_id,
        map_index=-1 if map_index is None else map_index,
    )


def _with_tags(tags: Sequence[Any], ours: Mapping[str, str]) -> list[Any]:
    """Return the tags with ours in place of others of the same key."""
    kept = [tag for tag in tags if not (isinstance(tag, Mapping) and tag.get("Key") in ours)]
    return [*kept, *to_tag_list(ours)]


def _definitions(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [one for _, one in training_job_definitions(request) if isinstance(one, dict)]


def _is_role_name(role: Any) -> bool:
    """Whether a role is given by its name: an ARN always has a slash (as in the Amazon provider)."""
    return isinstance(role, str) and role != "" and "/" not in role and ":" not in role


def _with_sample_roles(request: Mapping[str, Any]) -> dict[str, Any]:
    sample = deepcopy(dict(request))
    for definition in _definitions(sample):
        if _is_role_name(definition.get("RoleArn")):
            definition["RoleArn"] = _SAMPLE_ROLE + definition["RoleArn"]
    return sample
