"""The hook for AWS's price list: the calls to the Pricing API that this provider makes.

It imports no Airflow, so that the command line can use it where there is none. In a task, give it the session
of a connection: ``AwsPriceList("eu-west-1", session=AwsBaseHook(aws_conn_id=...).get_session())``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.hooks.errors import aws_error, from_client_error
from airflow_amt.hooks.patience import attempt
from airflow_amt.tuning.price_list import FAMILY, FAMILY_FIELD, REGION_FIELD, SERVICE_CODE

if TYPE_CHECKING:
    import boto3

_OPERATION = "GetProducts"
#: Largest page (Pricing API, ``MaxResults``).
_PAGE = 100
_REGION = re.compile(r"[a-z]{2,}(-[a-z]+)+-\d+")

_FIXES = {
    "NoCredentialsError": "give credentials: a profile, or environment variables",
    "PartialCredentialsError": "give both parts of the access key",
}


class AwsPriceList:
    """Reads the products of SageMaker in one region from AWS's price list (IAM: ``pricing:GetProducts``).

    :param region: whose prices are wanted. The endpoint is in another one: few regions have one.
    :param session: boto3's; by default one of ``profile``.
    :param profile: of the AWS configuration.
    :param endpoint_url: in place of AWS's own endpoint.
    :raises AmtFieldError: the region is none, or AWS has no endpoint for it; there is no such profile; the
        URL is none.
    :raises AmtAwsError: the AWS configuration of this process cannot be used.
    """

    def __init__(
        self,
        region: str,
        *,
        session: boto3.Session | None = None,
        profile: str | None = None,
        endpoint_url: str | None = None,
    ) -> None:
        from botocore.exceptions import BotoCoreError, ProfileNotFound

        if not _REGION.fullmatch(region):
            raise AmtFieldError("region", region, "an AWS region, as eu-west-1", "correct it")
        self.region = region
        self.endpoint_url = endpoint_url
        try:
            if session is None:
                import boto3

                session = boto3.Session(profile_name=profile)
            self.endpoint_region = _endpoint_region(session, region)
            self._client = session.client(
                "pricing", region_name=self.endpoint_region, endpoint_url=endpoint_url
            )
        except ProfileNotFound as error:
            raise AmtFieldError(
                "profile", profile, "a profile of the AWS configuration", "check its spelling"
            ) from error
        except BotoCoreError as error:
            raise self._not_sent(error) from error
        except ValueError as error:  # botocore's way to refuse an endpoint's URL
            raise AmtFieldError(
                "endpoint_url", endpoint_url, f"a URL ({error})", "give one with http:// or https://"
            ) from error

    def products(self) -> Iterator[Any]:
        """Iterate over the products of instances of SageMaker in the region, all pages (``GetProducts``).

        :raises AmtAwsError: AWS refuses, or does not answer.
        """
        page: dict[str, Any] = {
            "ServiceCode": SERVICE_CODE,
            "FormatVersion": "aws_v1",
            "MaxResults": _PAGE,
            "Filters": [
                {"Type": "TERM_MATCH", "Field": REGION_FIELD, "Value": self.region},
                {"Type": "TERM_MATCH", "Field": FAMILY_FIELD, "Value": FAMILY},
            ],
        }
        while True:
            answer = attempt(lambda: self._call(page))
            yield from answer.get("PriceList") or ()
            if not answer.get("NextToken"):
                return
            page["NextToken"] = answer["NextToken"]

    def _call(self, page: dict[str, Any]) -> dict[str, Any]:
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        try:
            answer: dict[str, Any] = self._client.get_products(**page)
        except ClientError as error:
            raise from_client_error(_OPERATION, error) from error
        except (BotoCoreError, ResponseParserError) as error:
            raise self._not_sent(error) from error
        return answer

    def _not_sent(self, error: Exception) -> Exception:
        code = type(error).__name__
        fix = _FIXES.get(code, "see whether the endpoint can be reached from here, and the AWS configuration")
        where = self.endpoint_url or f"the Pricing API in {getattr(self, 'endpoint_region', 'no region yet')}"
        return aws_error(_OPERATION, code, f"{str(error).rstrip('.')} ({where}). Fix: {fix}.")


def _endpoint_region(session: boto3.Session, region: str) -> str:
    """Return the region whose Pricing endpoint answers for a region: of the same partition, and near.

    :raises AmtFieldError: AWS has none in the partition.
    """
    from botocore.exceptions import UnknownRegionError

    try:
        partition = session.get_partition_for_region(region)
    except UnknownRegionError as error:
        raise AmtFieldError(
            "region", region, "a region of a partition that botocore knows", "check its spelling"
        ) from error
    hosts: list[str] = session.get_available_regions("pricing", partition_name=partition)
    if not hosts:
        raise AmtFieldError(
            "region",
            region,
            f"a region whose partition ({partition}) has an endpoint of the Pricing API",
            "take the prices of this region from AWS's public price list by hand",
        )
    if region in hosts:
        return region
    continent = region.partition("-")[0]
    near = [host for host in hosts if host.startswith(f"{continent}-")]
    return (near or [host for host in hosts if host.startswith("us-")] or hosts)[0]
