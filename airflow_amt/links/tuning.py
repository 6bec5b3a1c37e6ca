"""The link to a tuning job in the AWS console."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk.types import TaskInstanceKey

#: Console domains of the partitions (AWS documentation, "AWS service endpoints" and each partition's guide).
_CONSOLE_DOMAINS = {
    "aws": "console.aws.amazon.com",
    "aws-cn": "console.amazonaws.cn",
    "aws-us-gov": "console.amazonaws-us-gov.com",
}

#: Parts of an ARN: arn:partition:service:region:account:resource.
_ARN_PARTS = 6

#: Attribute in which an operator or sensor keeps the URL once it knows it.
URL_ATTRIBUTE = "_tuning_job_url"


def console_url(arn: str) -> str | None:
    """Return the console page of a tuning job.

    :param arn: ARN of the tuning job; partition, region and name are taken from it.
    :return: the URL; ``None`` for a partition without a known console, or something that is no ARN.
    """
    parts = arn.split(":", _ARN_PARTS - 1)
    if len(parts) != _ARN_PARTS or parts[1] not in _CONSOLE_DOMAINS or "/" not in parts[5]:
        return None
    partition, region, name = parts[1], parts[3], parts[5].split("/", 1)[1]
    return (
        f"https://{region}.{_CONSOLE_DOMAINS[partition]}/sagemaker/home"
        f"?region={quote(region)}#/hyper-tuning-jobs/{quote(name)}"
    )


class AmtTuningJobLink(BaseOperatorLink):
    """A button on the task that opens its tuning job in the AWS console.

    Operators push the URL under :attr:`xcom_key` as soon as they know it, so that the button works while
    the task is deferred; Airflow asks :meth:`get_link` again in the task's process when the task ends.
    """

    @property
    def name(self) -> str:
        """Label of the button."""
        return "Tuning job"

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:
        """Return the URL that the operator found, or an empty string if it has not come that far."""
        return getattr(operator, URL_ATTRIBUTE, None) or ""
