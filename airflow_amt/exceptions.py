"""The errors of this package: fields first, prose second, all of them picklable.

::

    AmtError
    ├── AmtFieldError                    one bad field: field, value, limit, fix   (also a ValueError)
    ├── AmtRequestError                  every bad field of one request             (also a ValueError)
    ├── AmtAwsError                      AWS refused a call: operation, code, message
    │   ├── AmtResourceNotFoundError         ResourceNotFound
    │   ├── AmtResourceInUseError            ResourceInUse
    │   ├── AmtResourceLimitExceededError    ResourceLimitExceeded
    │   ├── AmtThrottledError                ThrottlingException and its kin
    │   ├── AmtValidationError               ValidationException
    │   └── AmtAccessDeniedError             AccessDeniedException and its kin
    ├── AmtDeadlineError                 not all tuning jobs of a late DAG run were stopped
    └── AmtJobExistsError                the name belongs to somebody else's tuning job
        └── AmtUnknownOwnerError             ... or whose it is cannot be told

Nothing here imports Airflow, so that the domain and the embedded AMT can raise these. The classes that
Airflow itself must recognise (``soft_fail``, retries) are in :mod:`airflow_amt.task_exceptions`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from airflow_amt.text import MOST_MESSAGE, amount, numbered, shown, shown_lines, shown_value

__all__ = [
    "AmtAccessDeniedError",
    "AmtAwsError",
    "AmtDeadlineError",
    "AmtError",
    "AmtFieldError",
    "AmtJobExistsError",
    "AmtRequestError",
    "AmtResourceInUseError",
    "AmtResourceLimitExceededError",
    "AmtResourceNotFoundError",
    "AmtThrottledError",
    "AmtUnknownOwnerError",
    "AmtValidationError",
]


class AmtError(Exception):
    """Base of every error that this package raises on purpose."""


class AmtFieldError(AmtError, ValueError):
    """One field holds a value that AMT, or this package, does not accept.

    :param field: where: an API path (``HyperParameterTuningJobConfig.ResourceLimits.MaxRuntimeInSeconds``)
        or the name of a Python argument.
    :param value: what was found there (``None`` for a missing field).
    :param limit: what would be accepted, in words.
    :param fix: what to do about it, in words.
    """

    def __init__(self, field: str, value: Any, limit: str, fix: str) -> None:
        super().__init__(field, value, limit, fix)
        self.field = field
        self.value = value
        self.limit = limit
        self.fix = fix

    def __str__(self) -> str:
        value = "a missing value" if self.value is None else shown_value(self.value)
        limit, fix = shown_lines(self.limit), shown_lines(self.fix)
        return f"{shown(self.field)}: {value} is not accepted: {limit}. Fix: {fix}."


class AmtRequestError(AmtError, ValueError):
    """A request, or an argument such as an SLA, has one or more bad fields; all are listed, nothing was done.

    :param problems: the bad fields, in the order of the request.
    """

    def __init__(self, problems: Iterable[AmtFieldError]) -> None:
        self.problems: tuple[AmtFieldError, ...] = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return f"Nothing was done. {self.problems[0]}"
        return f"Nothing was done; {amount(self.problems)} fields are wrong:{numbered(self.problems)}"


class AmtAwsError(AmtError):
    """AWS refused a call, or gave no answer to it.

    :param operation: API operation, as ``DescribeHyperParameterTuningJob``.
    :param code: AWS's error code, as ``ResourceNotFound``.
    :param message: AWS's own message, unchanged; where no answer came, ours, with what to look at.
    :param status_code: HTTP status, if an answer came.
    :param request_id: AWS's request id, for a support case.
    """

    def __init__(
        self,
        operation: str,
        code: str,
        message: str,
        status_code: int | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(operation, code, message, status_code, request_id)
        self.operation = operation
        self.code = code
        self.message = message
        self.status_code = status_code
        self.request_id = request_id

    def __str__(self) -> str:
        operation, code = shown(self.operation), shown(self.code)
        message = shown(self.message, MOST_MESSAGE)
        if self.status_code is None:
            # Nobody refused anything; whoever made the error has put a fix into its message.
            return f"{operation} got no answer: {code}: {message}"
        request = f" (request id {shown(self.request_id)})" if self.request_id else ""
        return f"{operation} was refused with {code}: {message}{request}"


class AmtResourceNotFoundError(AmtAwsError):
    """The tuning job, or what the call names, does not exist in this account and region."""


class AmtResourceInUseError(AmtAwsError):
    """The name of the tuning job is taken in this account and region."""


class AmtResourceLimitExceededError(AmtAwsError):
    """The account's quota (concurrent tuning jobs, training jobs, instances) is used up."""


class AmtThrottledError(AmtAwsError):
    """AWS's request rate limit was hit, after botocore's own retries."""


class AmtValidationError(AmtAwsError):
    """AWS found the request malformed (``ValidationException``)."""


class AmtAccessDeniedError(AmtAwsError):
    """The credentials lack a permission; the message names the IAM action."""


class AmtDeadlineError(AmtError):
    """Not every tuning job of a DAG run that missed its deadline could be judged or stopped.

    :param summary: what was done, one sentence.
    :param errors: what could not be done, one sentence each.
    """

    def __init__(self, summary: str, errors: Iterable[str]) -> None:
        self.summary = summary
        self.errors: tuple[str, ...] = tuple(errors)
        super().__init__(self.summary, self.errors)

    def __str__(self) -> str:
        return f"{shown(self.summary, MOST_MESSAGE)} {len(self.errors)} errors:{numbered(self.errors)}"


class AmtJobExistsError(AmtError):
    """A tuning job of this name exists and is not ours to adopt.

    :param name: the name of the tuning job.
    :param ours: who wants it: the ownership tags this task would have set.
    :param theirs: who has it: the ownership tags found, empty if it carries none.
    :param status: its status.
    """

    def __init__(self, name: str, ours: dict[str, str], theirs: dict[str, str], status: str) -> None:
        super().__init__(name, ours, theirs, status)
        self.name = name
        self.ours = ours
        self.theirs = theirs
        self.status = status

    def _named(self) -> str:
        return f"A tuning job named {shown_value(self.name)} exists already ({shown(self.status)})"

    def __str__(self) -> str:
        owner = _owner(self.theirs) if self.theirs else "no airflow-amt ownership tags"
        return (
            f"{self._named()} and belongs to somebody else: it has {owner}; "
            f"this task is {_owner(self.ours)}. It is not adopted. Fix: choose another "
            "HyperParameterTuningJobName, or leave the name out to get a derived one."
        )


class AmtUnknownOwnerError(AmtJobExistsError):
    """A tuning job of this name exists, and whose it is cannot be told because its tags cannot be read."""

    def __str__(self) -> str:
        return (
            f"{self._named()}, and its tags, which say whose it is, cannot be read. It is not "
            f"adopted; this task is {_owner(self.ours)}. Fix: allow sagemaker:ListTags, or leave "
            "HyperParameterTuningJobName out to get a derived name."
        )


def _owner(tags: dict[str, str]) -> str:
    pairs = ", ".join(f"{key}={value}" for key, value in sorted(tags.items()))
    return shown(pairs, MOST_MESSAGE) or "without ownership tags"
