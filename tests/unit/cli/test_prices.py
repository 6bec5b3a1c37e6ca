"""``airflow-amt prices`` with real boto3 over HTTP against a small Pricing endpoint on loopback."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest

from airflow_amt.cli.main import main
from airflow_amt.exceptions import AmtFieldError, AmtRequestError
from airflow_amt.hooks.pricing import AwsPriceList
from airflow_amt.tuning.costs import PriceTable
from airflow_amt.tuning.price_list import price_table, training_price
from tests.unit.requests import create_request

ROOT = Path(__file__).parents[3]
REGION = "eu-west-1"
DEFINITION = "TrainingJobDefinition"


def product(
    usage: str,
    *prices: str,
    region: str = REGION,
    currency: str = "USD",
    unit: str = "Hrs",
    term: str = "OnDemand",
    published: str = "2026-11-20T00:00:00Z",
    **attributes: str,
) -> dict[str, Any]:
    """A product as the price list has it; several prices are tiers."""
    sku = f"SKU{abs(hash((usage, prices))):X}"[:16]
    dimensions = {
        f"{sku}.JRTCKXETXF.{number}": {
            "unit": unit,
            "beginRange": str(number),
            "endRange": "Inf",
            "description": f"${price} per {unit}",
            "pricePerUnit": {currency: price},
            "appliesTo": [],
        }
        for number, price in enumerate(prices)
    }
    return {
        "product": {
            "productFamily": "ML Instance",
            "sku": sku,
            "attributes": {
                "regionCode": region,
                "usagetype": usage,
                "servicecode": "AmazonSageMaker",
                "locationType": "AWS Region",
                **attributes,
            },
        },
        "serviceCode": "AmazonSageMaker",
        "terms": {
            term: {
                f"{sku}.JRTCKXETXF": {"priceDimensions": dimensions, "effectiveDate": "2026-11-01T00:00:00Z"}
            }
        },
        "version": "20261120000000",
        "publicationDate": published,
    }


PRODUCTS = [
    product("EU-Host:ml.m5.large", "9.0", component="Hosting", instanceName="ml.m5.large"),
    product("EU-Train:ml.m5.large", "0.1230000000", component="Training", instanceName="ml.m5.large"),
    product("EU-SpotTraining:ml.m5.large", "0.01", component="SpotTraining"),
    product("EU-TrainWarmPool:ml.m5.large", "0.2"),
    product("EU-Train:ml.m5.large", "5.0", region="us-east-1"),
    product("EU-Train:ml.m5.large", "0.05", term="Reserved"),
    product("EU-Train:ml.p3.2xlarge", "4.131"),
    product("EU-Train:ml.c5.xlarge", "0.23", published="2026-11-21T00:00:00Z"),
    product("EU-Train:ml.c5.xlarge", "0.25"),
    product("EU-Train:ml.c5.xlarge", "0.23"),
    product("EU-Train:VolumeUsage.gp2", "0.154", unit="GB-Mo"),
]


class Endpoint:
    """A Pricing endpoint: pages of products that match TERM_MATCH filters.

    :param products: all it has.
    :param page: products a page, whatever is asked for, so that few products make several pages.
    """

    def __init__(self, products: list[dict[str, Any]], page: int) -> None:
        self.products = products
        self.page = page
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.refusals: list[tuple[int, str]] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.headers.append(dict(self.headers.items()))
                status, answer = endpoint.answer(self.headers["X-Amz-Target"], body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/x-amz-json-1.1")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                """Stay quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, target: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.requests.append(body)
        if target != "AWSPriceListService.GetProducts":
            return 400, {"__type": "UnknownOperationException", "Message": target}
        if self.refusals:
            status, code = self.refusals.pop(0)
            return status, {"__type": code, "Message": "not today"}
        matching = [one for one in self.products if all(matches(one, each) for each in body["Filters"])]
        start = int(body.get("NextToken", 0))
        end = start + min(self.page, body["MaxResults"])
        more = {"NextToken": str(end)} if end < len(matching) else {}
        listed = [json.dumps(one) for one in matching[start:end]]
        return 200, {"FormatVersion": "aws_v1", "PriceList": listed, **more}


def matches(one: dict[str, Any], wanted: dict[str, str]) -> bool:
    assert wanted["Type"] == "TERM_MATCH"
    described = one["product"]
    return wanted["Value"] in (described["attributes"].get(wanted["Field"]), described.get(wanted["Field"]))


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint(PRODUCTS, page=2)
    thread = threading.Thread(target=made.server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield made
    finally:
        made.server.shutdown()
        thread.join()
        made.server.server_close()


def run(endpoint: Endpoint, *options: str) -> int:
    return main(["prices", "--region", REGION, "--endpoint-url", endpoint.url, *options])


def test_the_table_has_what_training_costs_of_all_pages(
    endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(endpoint) == 0
    shown = capsys.readouterr()
    table = json.loads(shown.out)
    assert table["per_hour"] == {"ml.c5.xlarge": 0.25, "ml.m5.large": 0.123, "ml.p3.2xlarge": 4.131}
    assert (table["currency"], table["spot_discount"]) == ("USD", 0.0)
    assert table["source"] == (
        f"AWS price list, training on demand in {REGION}, published 2026-11-21T00:00:00Z"
    )
    assert datetime.fromisoformat(table["at"]).tzinfo is not None
    assert PriceTable.parse(table).per_hour == table["per_hour"]
    # Of several products with different prices the dearest counts, and that is said; equal ones are one.
    assert "ml.c5.xlarge has several prices (0.23, 0.25)" in shown.err
    assert "ml.m5.large" not in shown.err
    # Ten products of the region in pages of two.
    assert [one.get("NextToken") for one in endpoint.requests] == [None, "2", "4", "6", "8"]
    assert all(one["ServiceCode"] == "AmazonSageMaker" for one in endpoint.requests)
    # Signed for the region that has the endpoint, not for that of the prices.
    assert "/eu-central-1/pricing/aws4_request" in endpoint.headers[0]["Authorization"]


def test_only_the_types_named_and_those_of_a_request(
    endpoint: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "request.json"
    path.write_text(json.dumps(create_request()))
    options = ["--instance-type", "ml.p3.2xlarge", "--request", str(path), "--spot-discount", "0.6"]
    assert run(endpoint, *options) == 0
    shown = capsys.readouterr()
    table = json.loads(shown.out)
    assert table["per_hour"] == {"ml.m5.large": 0.123, "ml.p3.2xlarge": 4.131}
    assert table["spot_discount"] == 0.6
    assert shown.err == ""


def test_the_file_that_is_written_is_read_by_plan(
    endpoint: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request, prices = tmp_path / "request.json", tmp_path / "prices.json"
    request.write_text(json.dumps(create_request()))
    prices.write_text("the old one")
    assert run(endpoint, "--request", str(request), "--output", str(prices)) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", f"1 price written to {prices}\n")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["prices.json", "request.json"]
    assert stat.S_IMODE(prices.stat().st_mode) == stat.S_IMODE(request.stat().st_mode)
    assert main(["plan", str(request), "--prices", str(prices), "--max-cost", "0.5"]) == 1
    assert "at most 0.51 USD" in capsys.readouterr().out


def test_where_no_file_can_be_written_none_is_left(
    endpoint: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "prices.json"
    taken.mkdir()
    assert run(endpoint, "--output", str(taken)) == 2
    assert f"--output: '{taken}'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [taken]


def test_types_without_a_price_are_all_named_and_nothing_is_written(
    endpoint: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "prices.json"
    types = ["ml.m5.largest", "ml.m5.large", "ml.z9.large"]
    options = [word for kind in types for word in ("--instance-type", kind)]
    assert run(endpoint, *options, "--output", str(output)) == 2
    shown = capsys.readouterr()
    assert "2 problems" in shown.err
    assert "'ml.m5.largest'" in shown.err
    assert "there are ml.m5.large." in shown.err
    assert "'ml.z9.large'" in shown.err
    assert not output.exists()


def test_a_region_without_training_is_named(endpoint: Endpoint, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prices", "--region", "eu-south-2", "--endpoint-url", endpoint.url]) == 2
    assert "region: 'eu-south-2'" in capsys.readouterr().err


def test_a_refusal_of_aws_is_told(endpoint: Endpoint, capsys: pytest.CaptureFixture[str]) -> None:
    endpoint.refusals.append((400, "AccessDeniedException"))
    assert run(endpoint) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "GetProducts was refused with AccessDeniedException: not today" in shown.err


def test_throttling_is_borne(endpoint: Endpoint, capsys: pytest.CaptureFixture[str]) -> None:
    endpoint.refusals.append((400, "ThrottlingException"))
    assert run(endpoint, "--instance-type", "ml.m5.large") == 0
    assert json.loads(capsys.readouterr().out)["per_hour"] == {"ml.m5.large": 0.123}


def test_an_endpoint_that_does_not_answer_is_told(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert main(["prices", "--region", REGION, "--endpoint-url", "http://127.0.0.1:9"]) == 1
    told = capsys.readouterr().err
    assert "GetProducts got no answer: EndpointConnectionError" in told
    assert "http://127.0.0.1:9" in told


def test_missing_credentials_are_told(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert run(endpoint) == 1
    assert "Fix: give credentials: a profile, or environment variables." in capsys.readouterr().err
    assert endpoint.requests == []


def test_the_profile_gives_the_credentials(
    endpoint: Endpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    credentials = tmp_path / "credentials"
    credentials.write_text("[billing]\naws_access_key_id = AKIDBILLING\naws_secret_access_key = secret\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    assert run(endpoint, "--profile", "billing") == 0
    assert "Credential=AKIDBILLING/" in endpoint.headers[0]["Authorization"]
    capsys.readouterr()
    assert run(endpoint, "--profile", "nobody") == 2
    assert "profile: 'nobody'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--region", "Ireland"], "region: 'Ireland'"),
        (["--region", "xx-nowhere-1"], "region: 'xx-nowhere-1'"),
        (["--region", "us-gov-west-1"], "region: 'us-gov-west-1'"),
        (["--spot-discount", "1"], "--spot-discount: 1.0"),
        (["--spot-discount", "nan"], "--spot-discount: nan"),
        (["--endpoint-url", "nowhere"], "endpoint_url: 'nowhere'"),
        (["--request", "missing.json"], "REQUEST.json: 'missing.json'"),
        (["--output", "/missing/folder/prices.json"], "--output: '/missing/folder/prices.json'"),
    ],
)
def test_an_option_that_cannot_be_used_is_named(
    options: list[str], named: str, endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(endpoint, *options) == 2
    assert named in capsys.readouterr().err


def test_a_request_without_instance_types_is_no_use(
    endpoint: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "request.json"
    path.write_text(json.dumps(create_request(TrainingJobDefinition__ResourceConfig=None)))
    assert run(endpoint, "--request", str(path)) == 2
    assert "a request with instance types" in capsys.readouterr().err
    assert endpoint.requests == []


def test_a_session_of_a_connection_can_be_given(endpoint: Endpoint) -> None:
    session = boto3.Session(aws_access_key_id="AKIDAIRFLOW", aws_secret_access_key="secret")
    products = list(AwsPriceList(REGION, session=session, endpoint_url=endpoint.url).products())
    assert len(products) == 10
    assert "Credential=AKIDAIRFLOW/" in endpoint.headers[0]["Authorization"]


@pytest.mark.parametrize(
    ("region", "host"),
    [
        ("eu-west-1", "eu-central-1"),
        ("eu-central-1", "eu-central-1"),
        ("us-west-2", "us-east-1"),
        ("sa-east-1", "us-east-1"),
        ("ap-northeast-1", "ap-south-1"),
        ("cn-north-1", "cn-northwest-1"),
    ],
)
def test_the_endpoint_is_one_of_the_same_partition(region: str, host: str) -> None:
    assert AwsPriceList(region).endpoint_region == host


# --- the reading of products -------------------------------------------------------------------------


def test_the_dearest_tier_counts() -> None:
    found = training_price(product("Train:ml.m5.large", "0.3", "0.2"), region=REGION)
    assert found is not None
    assert (found.instance_type, found.per_hour) == ("ml.m5.large", 0.3)


def test_other_currencies_are_kept() -> None:
    products = [product("CNN1-Train:ml.m5.large", "0.8", currency="CNY", region="cn-north-1")]
    assert price_table(products, region="cn-north-1").prices.currency == "CNY"
    products.append(product("CNN1-Train:ml.c5.large", "0.8", region="cn-north-1"))
    with pytest.raises(AmtRequestError, match="CNY, USD"):
        price_table(products, region="cn-north-1")


@pytest.mark.parametrize("price", ["", "free", "NaN", "-1"])
def test_what_is_no_price_is_left_out(price: str) -> None:
    assert training_price(product("EU-Train:ml.m5.large", price), region=REGION) is None


def test_parts_that_are_missing_make_no_price() -> None:
    whole = product("EU-Train:ml.m5.large", "0.3")
    assert training_price(whole, region=REGION) is not None
    for part in ("product", "terms"):
        assert training_price({**whole, part: None}, region=REGION) is None
        assert (
            training_price({key: value for key, value in whole.items() if key != part}, region=REGION) is None
        )


@pytest.mark.parametrize("junk", ["", "{", "[]", "null"])
def test_what_is_no_product_is_an_error(junk: str) -> None:
    with pytest.raises(AmtFieldError, match="PriceList"):
        training_price(junk, region=REGION)


def test_it_needs_no_airflow() -> None:
    code = "import sys, airflow_amt.hooks.pricing, airflow_amt.cli.prices; print('airflow' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "False\n"
