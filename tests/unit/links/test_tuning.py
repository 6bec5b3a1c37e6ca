from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from airflow_amt.links.tuning import URL_ATTRIBUTE, AmtTuningJobLink, console_url

JOB = "000000000000:hyper-parameter-tuning-job/churn-model"


@pytest.mark.parametrize(
    ("arn", "url"),
    [
        (
            f"arn:aws:sagemaker:eu-west-1:{JOB}",
            "https://eu-west-1.console.aws.amazon.com/sagemaker/home?region=eu-west-1#/hyper-tuning-jobs/churn-model",
        ),
        (
            f"arn:aws-cn:sagemaker:cn-north-1:{JOB}",
            "https://cn-north-1.console.amazonaws.cn/sagemaker/home?region=cn-north-1#/hyper-tuning-jobs/churn-model",
        ),
        (
            f"arn:aws-us-gov:sagemaker:us-gov-west-1:{JOB}",
            "https://us-gov-west-1.console.amazonaws-us-gov.com/sagemaker/home?region=us-gov-west-1"
            "#/hyper-tuning-jobs/churn-model",
        ),
        (f"arn:aws-iso:sagemaker:us-iso-east-1:{JOB}", None),
        ("churn-model", None),
        ("", None),
    ],
)
def test_the_console_page_follows_partition_and_region(arn: str, url: str | None) -> None:
    assert console_url(arn) == url


def test_the_link_is_what_the_operator_found() -> None:
    link = AmtTuningJobLink()
    operator = SimpleNamespace(**{URL_ATTRIBUTE: "https://example.test/job"})
    key: Any = None
    assert link.get_link(operator, ti_key=key) == "https://example.test/job"
    assert link.get_link(SimpleNamespace(), ti_key=key) == ""
    assert link.xcom_key == "_link_AmtTuningJobLink"
