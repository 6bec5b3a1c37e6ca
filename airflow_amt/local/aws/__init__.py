"""What the SDKs need of AWS beside SageMaker (``--with-aws``): S3, STS, IAM and CloudWatch Logs.

moto's applications for these services are mounted in the server's own process, so that one endpoint serves
all. The rest of this package is what makes them fit: S3 is the folder that stands for it
(:mod:`airflow_amt.local.aws.buckets`), any IAM role may be assumed by SageMaker
(:mod:`airflow_amt.local.aws.roles`), and training logs are read from the training jobs' folders
(:mod:`airflow_amt.local.aws.logs`). Needs the extra ``local-aws``; imported only when it is asked for.
"""

from __future__ import annotations

from collections.abc import MutableMapping

from airflow_amt.local.aws.services import AwsServices, create_asgi_app

__all__ = ["AwsServices", "announce", "create_asgi_app"]


def announce(environment: MutableMapping[str, str], endpoint: str) -> None:
    """Let AWS clients of training scripts find the services; what the user has set counts more.

    :param environment: the environment that training processes inherit.
    :param endpoint: the server's address.
    """
    environment.setdefault("AWS_ENDPOINT_URL", endpoint)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        environment.setdefault(name, "embedded")
