"""Signatures against botocore's signer, and what is no signature."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from urllib.parse import quote, urlsplit

import boto3
import pytest
from botocore.auth import HmacV1QueryAuth, S3SigV4Auth, S3SigV4QueryAuth, SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from airflow_amt.local import signatures
from airflow_amt.local.signatures import Request, SignatureError

HOST = "127.0.0.1:4566"
KEY, SECRET = "AMTKEY", "secret/+x"
SIGNER = Credentials(KEY, SECRET)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
HEADER = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=20)


def secret_of(key: str) -> str | None:
    return SECRET if key == KEY else None


def sent(request: AWSRequest) -> Request:
    """Return a request as it goes over the wire."""
    parts = urlsplit(request.url)
    headers = {name.lower().encode(): str(value).strip().encode() for name, value in request.headers.items()}
    headers.setdefault(b"host", parts.netloc.encode())
    return Request(request.method, parts.path.encode() or b"/", parts.query.encode(), headers)


def check(request: Request, body: bytes = b"", now: float | None = None) -> signatures.Claim:
    authorization = request.headers.get(b"authorization", b"")
    claim = signatures.claim_of(authorization, request.query)
    assert claim is not None
    payload = signatures.payload_hash(claim.signer, request.headers) or sha256(body).hexdigest()
    signatures.check(claim, request, payload, secret_of, time.time() if now is None else now)
    return claim


def refusal(request: Request, body: bytes = b"", now: float | None = None) -> str:
    with pytest.raises(SignatureError) as refused:
        check(request, body, now)
    return refused.value.code


def signed_call(body: bytes = b"{}", headers: Mapping[str, str] | None = None) -> AWSRequest:
    target = {"X-Amz-Target": "SageMaker.ListTrainingJobs", **(headers or {})}
    request = AWSRequest("POST", f"http://{HOST}/", target, body)
    SigV4Auth(SIGNER, "sagemaker", "eu-west-1").add_auth(request)
    return request


def with_header(request: Request, name: bytes, value: bytes | None) -> Request:
    headers = {other: kept for other, kept in request.headers.items() if other != name}
    if value is not None:
        headers[name] = value
    return Request(request.method, request.path, request.query, headers)


@given(body=st.binary(max_size=200), value=HEADER)
def test_what_botocore_signs_for_sagemaker_is_right(body: bytes, value: str) -> None:
    claim = check(sent(signed_call(body, {"X-Own": value})), body)
    assert (claim.signer.access_key_id, claim.signer.region, claim.signer.service) == (
        KEY,
        "eu-west-1",
        "sagemaker",
    )


@pytest.mark.parametrize(
    ("name", "signed", "sent_as"),
    [
        ("X-Own", "a  b", [b"a  b"]),
        ("X-Own", "a b", [b" a \t b  "]),
        ("X-Own", "1,2", [b"1 ", b"2"]),
        ("x-%b", "%b %d %", [b"%b %d %"]),
    ],
)
def test_headers_are_signed_in_one_form(name: str, signed: str, sent_as: list[bytes]) -> None:
    request = sent(signed_call(b"{}", {name: signed}))
    pairs = [pair for pair in request.headers.items() if pair[0] != name.lower().encode()]
    headers = signatures.joined([*pairs, *((name.lower().encode(), value) for value in sent_as)])
    check(request._replace(headers=headers), b"{}")
    other = signatures.joined([*pairs, (name.lower().encode(), b"another")])
    assert refusal(request._replace(headers=other), b"{}") == "SignatureDoesNotMatch"


@pytest.mark.parametrize(
    "name", [b"authorization", b"host", b"origin", b"x-amz-target", b"x-amz-date", b"x-amz-content-sha256"]
)
def test_of_a_header_that_decides_there_is_one(name: bytes) -> None:
    with pytest.raises(SignatureError, match=f"there are two {name.decode()} headers"):
        signatures.joined([(name, b"a"), (b"x-own", b"1"), (name, b"a")])


@given(key=TEXT, options=st.dictionaries(TEXT.filter(bool), TEXT, max_size=4), body=st.binary(max_size=50))
def test_what_botocore_signs_for_s3_is_right(key: str, options: dict[str, str], body: bytes) -> None:
    query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in options.items())
    url = f"http://{HOST}/bucket/{quote(key, safe='/~')}" + (f"?{query}" if query else "")
    request = AWSRequest("PUT", url, {}, body)
    S3SigV4Auth(SIGNER, "s3", "us-east-1").add_auth(request)
    check(sent(request), body)
    # The same query, written less carefully.
    loose = sent(request)
    check(Request(loose.method, loose.path, loose.query.replace(b"%2F", b"/"), loose.headers), body)


@given(key=TEXT, life=st.integers(1, 604_800))
def test_what_botocore_presigns_is_right_while_it_lives(key: str, life: int) -> None:
    request = AWSRequest("GET", f"http://{HOST}/bucket/{quote(key, safe='/~')}?partNumber=1", {})
    S3SigV4QueryAuth(SIGNER, "s3", "us-east-1", expires=life).add_auth(request)
    now = time.time()
    check(sent(request), now=now + life - 2)
    assert refusal(sent(request), now=now + life + 2) == "RequestExpired"


def test_what_botocore_presigns_for_other_services_is_right() -> None:
    """As ``aws eks get-token`` does with STS: the body, which is empty, is signed."""
    request = AWSRequest("GET", f"http://{HOST}/?Action=GetCallerIdentity&Version=2011-06-15", {})
    SigV4QueryAuth(SIGNER, "sts", "us-east-1", expires=60).add_auth(request)
    assert check(sent(request)).signer.service == "sts"
    assert refusal(sent(request), b"another body") == "SignatureDoesNotMatch"


@given(key=TEXT, life=st.integers(2, 604_800))
def test_what_botocore_presigns_in_version_2_is_right_while_it_lives(key: str, life: int) -> None:
    url = f"http://{HOST}/bucket/{quote(key, safe='/~')}?response-content-type=text%2Fx&versionId=1"
    request = AWSRequest("GET", url, {})
    HmacV1QueryAuth(SIGNER, expires=life).add_auth(request)
    now = time.time()
    assert check(sent(request), now=now).signer.version == 2
    assert refusal(sent(request), now=now + life + 2) == "RequestExpired"
    other = sent(request)
    assert refusal(Request("PUT", other.path, other.query, other.headers), now=now) == "SignatureDoesNotMatch"


@pytest.mark.parametrize("operation", ["list_objects_v2", "head_bucket", "get_bucket_location"])
def test_what_boto3_presigns_for_a_bucket_is_right(operation: str) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{HOST}",
        region_name="us-east-1",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
    )
    url = urlsplit(client.generate_presigned_url(operation, {"Bucket": "data"}))
    method = "HEAD" if operation == "head_bucket" else "GET"
    check(Request(method, url.path.encode(), url.query.encode(), {b"host": HOST.encode()}))


@pytest.mark.parametrize(
    "changed",
    [
        Request("GET", b"/", b"", {}),
        Request("POST", b"/other", b"", {}),
        Request("POST", b"/", b"a=b", {}),
    ],
    ids=["method", "path", "query"],
)
def test_a_changed_request_is_refused(changed: Request) -> None:
    request = sent(signed_call())
    changed = Request(changed.method, changed.path, changed.query, request.headers)
    assert refusal(changed, b"{}") == "SignatureDoesNotMatch"


def test_a_changed_body_is_refused() -> None:
    assert refusal(sent(signed_call(b"{}")), b'{"MaxResults": 1}') == "SignatureDoesNotMatch"


def test_what_is_added_to_a_query_is_never_left_out_of_the_signature() -> None:
    request = sent(signed_call())
    assert refusal(request._replace(query=b"X-Amz-Signature=x"), b"{}") == "SignatureDoesNotMatch"


def test_bytes_that_are_no_text_are_not_all_the_same() -> None:
    request = AWSRequest("GET", f"http://{HOST}/bucket/?prefix=%FF", {})
    S3SigV4Auth(SIGNER, "s3", "us-east-1").add_auth(request)
    check(sent(request))
    for other in (b"prefix=%FE", b"prefix=%EF%BF%BD"):
        assert refusal(sent(request)._replace(query=other)) == "SignatureDoesNotMatch"


def test_headers_may_be_text_of_any_language() -> None:
    text = "Å à 漢"
    check(sent(signed_call(headers={"X-Own": text})), b"{}")


@pytest.mark.parametrize(("path", "more"), [(b"/bucket/key", b"&%61cl"), (b"/bucket/key#x", b"")])
def test_version_2_signs_paths_and_sub_resources_however_they_are_written(path: bytes, more: bytes) -> None:
    request = AWSRequest("GET", f"http://{HOST}/bucket/key", {})
    HmacV1QueryAuth(SIGNER).add_auth(request)
    right = sent(request)
    check(right)
    assert refusal(right._replace(path=path, query=right.query + more)) == "SignatureDoesNotMatch"


@pytest.mark.parametrize("name", [b"x-amz-target", b"host", b"x-amz-date"])
def test_a_changed_or_missing_header_is_refused(name: bytes) -> None:
    request = sent(signed_call())
    assert refusal(with_header(request, name, b"20260101T000000Z"), b"{}") in (
        "SignatureDoesNotMatch",
        "IncompleteSignature",
    )
    assert refusal(with_header(request, name, None), b"{}") == "IncompleteSignature"


def test_aws_headers_that_are_not_signed_are_refused() -> None:
    """Whoever sees a signed call cannot make another operation of it."""
    request = AWSRequest("POST", f"http://{HOST}/", {}, b"{}")
    SigV4Auth(SIGNER, "sagemaker", "eu-west-1").add_auth(request)
    stolen = with_header(sent(request), b"x-amz-target", b"SageMaker.CreateTrainingJob")
    assert refusal(stolen, b"{}") == "IncompleteSignature"


@pytest.mark.parametrize("minutes", [-16, 16])
def test_old_signatures_and_those_of_the_future_are_refused(minutes: int) -> None:
    request = sent(signed_call())
    assert refusal(request, b"{}", time.time() + 60 * minutes) == "RequestExpired"
    check(request, b"{}", time.time() + 60 * minutes * 14 / 16)


def test_another_key_and_another_secret_are_refused() -> None:
    for key, secret, code in (
        ("AMTOTHER", SECRET, "InvalidAccessKeyId"),
        (KEY, "x", "SignatureDoesNotMatch"),
    ):
        request = AWSRequest("POST", f"http://{HOST}/", {}, b"{}")
        SigV4Auth(Credentials(key, secret), "sagemaker", "eu-west-1").add_auth(request)
        assert refusal(sent(request), b"{}") == code


@pytest.mark.parametrize("payload", ["UNSIGNED-PAYLOAD", "STREAMING-UNSIGNED-PAYLOAD-TRAILER", "0" * 63, ""])
def test_a_body_that_is_not_signed_is_for_s3_only(payload: str) -> None:
    request = sent(signed_call(headers={"X-Amz-Content-SHA256": payload}))
    assert refusal(request, b"{}") == "IncompleteSignature"


SCOPE = f"{datetime.now(UTC):%Y%m%d}/us-east-1/sagemaker/aws4_request"


@pytest.mark.parametrize(
    "authorization",
    [
        "Bearer x",
        "AWS4-HMAC-SHA256",
        "AWS4-HMAC-SHA256 " + "Credential=" * 300,
        "AWS4-HMAC-SHA256 " + "Credential=" * 5000,
        f"AWS4-HMAC-SHA256 Credential=k/{SCOPE}",
        f"AWS4-HMAC-SHA256 Credential=k/{SCOPE}, SignedHeaders=host",
        "AWS4-HMAC-SHA256 Credential=k/1/r/s, SignedHeaders=host, Signature=x",
        "AWS4-HMAC-SHA256 Credential=k/1/../sagemaker/aws4_request, SignedHeaders=host, Signature=x",
        "AWS4-HMAC-SHA256 Credential=k/1/²/sagemaker/aws4_request, SignedHeaders=host, Signature=x",
        "AWS AMTKEY:c2lnbmF0dXJl",
        f"AWS4-HMAC-SHA256 Credential=k/{SCOPE}, Credential=k/{SCOPE}, SignedHeaders=host, Signature=x",
        f"AWS4-HMAC-SHA256 Credential=k/{SCOPE}, SignedHeaders=host;host, Signature=x",
    ],
)
def test_what_is_no_signature(authorization: str) -> None:
    with pytest.raises(SignatureError) as refused:
        signatures.claim_of(authorization.encode("latin-1"), b"")
    assert refused.value.code == "IncompleteSignature"
    assert len(refused.value.message) < 400


@pytest.mark.parametrize(
    "query",
    [
        b"X-Amz-Signature=1",
        b"AWSAccessKeyId=1",
        b"X-Amz-Signature=" + b"&a=b" * 10_000,
        b"X-Amz-Signature=1&X-Amz-Credential=%ff&X-Amz-SignedHeaders=",
    ],
)
def test_what_is_no_presigned_address(query: bytes) -> None:
    with pytest.raises(SignatureError) as refused:
        signatures.claim_of(b"", query)
    assert refused.value.code == "IncompleteSignature"


@given(
    authorization=st.one_of(st.binary(max_size=300), st.binary().map(b"AWS4-HMAC-SHA256 ".__add__)),
    query=st.binary(),
)
def test_any_junk_is_read_or_refused(authorization: bytes, query: bytes) -> None:
    def read() -> None:
        claim = signatures.claim_of(authorization, query)
        if claim is not None:
            request = Request("GET", b"/", query, {b"host": HOST.encode()})
            signatures.check(claim, request, "", secret_of, time.time())
            raise AssertionError(f"junk is accepted: {claim}")

    with contextlib.suppress(SignatureError):
        read()
