"""What the SDKs need of AWS beside SageMaker (``--with-aws``): S3, STS, IAM and CloudWatch Logs.

moto's applications for these services are mounted in the server's own process, so that one endpoint serves
all. The rest of this package is what makes them fit: S3 is the folder that stands for it
(:mod:`airflow_amt.local.aws.buckets`), any IAM role may be assumed by SageMaker
(:mod:`airflow_amt.local.aws.roles`), and training logs are read from the training jobs' folders
(:mod:`airflow_amt.local.aws.logs`). Needs the extra ``local-aws``; imported only when it is asked for.
"""

from __future__ import annotations

from airflow_amt.local.aws.services import AwsServices, create_asgi_app

__all__ = ["AwsServices", "create_asgi_app"]
