"""Signed requests, mutated: nothing may be let in that says anything else than what was signed."""

from __future__ import annotations

import random
import time
from dataclasses import astuple, dataclass
from hashlib import sha256
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit

from botocore.auth import HmacV1Auth, HmacV1QueryAuth, S3SigV4Auth, S3SigV4QueryAuth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from airflow_amt.local import signatures
from airflow_amt.local.signatures import Claim, Request, SignatureError

KEY, SECRET = "AMTKEY", "secret/+x"
#: Parts of signatures and of requests, in each other's place.
PIECES = (
    b",", b";", b"=", b"&", b"/", b"%", b"%2F", b"%ff", b"%FF", b"+", b" ", b"#", b"?", b"\xff", b"\0", b"0",
    b"host", b"x-amz-date", b"Signature=", b"X-Amz-Signature=", b"X-Amz-Expires=604800", b"&acl", b"&%61cl",
    b"Credential=AMTKEY/", b"aws4_request", b"UNSIGNED-PAYLOAD", b"Expires=9999999999", b"2026", b"a" * 5000,
    b"../", b"&X-Amz-SignedHeaders=host", b"AWSAccessKeyId=AMTKEY&", b"x-amz-acl=public-read", b"\xc3\xa0",
)  # fmt: skip
HEADERS = (
    (b"x-amz-target", b"SageMaker.CreateTrainingJob"), (b"x-amz-acl", b"public-read"),
    (b"host", b"evil.example"), (b"content-type", b"text/html"), (b"x-amz-date", b"20260101T000000Z"),
    (b"date", b"x"), (b"user-agent", b"a"), (b"x-amz-content-sha256", b"UNSIGNED-PAYLOAD"),
    (b"x-amz-meta-\xff", b"\xff"),
)  # fmt: skip


class Sent(NamedTuple):
    """A request as it goes over the wire, without its body."""

    method: str
    path: bytes
    query: bytes
    headers: list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Case:
    """A request, the one that was signed, and the bodies of both."""

    signed: Sent
    signed_body: bytes
    sent: Sent
    body: bytes


class ForgedError(Exception):
    """Something was let in that nobody has signed, or refused that somebody has."""


def case_of(rng: random.Random) -> Case:
    """Return a signed request in which some of it is changed, or nothing."""
    signed, body = _signed(rng)
    sent, sent_body = signed, body
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        part = rng.choice(("authorization", "query", "query", "headers", "headers", "path", "method", "body"))
        if part == "query":
            sent = sent._replace(query=_changed(rng, sent.query))
        elif part == "path":
            sent = sent._replace(path=b"/" + _changed(rng, sent.path)[1:])
        elif part == "method":
            sent = sent._replace(method=rng.choice(("GET", "HEAD", "PUT", "DELETE", "get")))
        elif part == "body":
            sent_body = _changed(rng, sent_body)
        else:
            sent = sent._replace(headers=_changed_headers(rng, list(sent.headers), part))
    return Case(signed, body, sent, sent_body)


def _signed(rng: random.Random) -> tuple[Sent, bytes]:
    signer = Credentials(KEY, SECRET)
    body = rng.choice((b"", b"{}", b'{"MaxResults": 1}'))
    service = rng.choice(("sagemaker", "logs", "s3", "presigned", "presigned v2"))
    path = (
        "/" if service in ("sagemaker", "logs") else rng.choice(("/data/key", "/data/a%20b%C3%A9", "/data/"))
    )
    query = (
        "" if path == "/" else rng.choice(("", "?a=b&list-type=2", "?uploadId=%2B1&partNumber=1", "?acl="))
    )
    headers = (
        {"X-Amz-Target": "SageMaker.ListTrainingJobs", "Content-Type": "text/x  y"} if path == "/" else {}
    )
    if service == "s3":
        headers = {"x-amz-meta-a": "1  2", "Content-Type": "text/plain"}
    request = AWSRequest(rng.choice(("GET", "POST")), f"http://127.0.0.1:4566{path}{query}", headers, body)
    if service == "s3":
        S3SigV4Auth(signer, "s3", "us-east-1").add_auth(request)
    elif service == "presigned":
        S3SigV4QueryAuth(signer, "s3", "us-east-1", expires=600).add_auth(request)
    elif service == "presigned v2":
        HmacV1QueryAuth(signer, expires=600).add_auth(request)
    else:
        SigV4Auth(signer, service, "us-east-1").add_auth(request)
    parts = urlsplit(request.url)
    pairs = [(name.lower().encode(), str(value).encode()) for name, value in request.headers.items()]
    pairs = [(b"host", b"127.0.0.1:4566"), *(pair for pair in pairs if pair[0] != b"host")]
    return Sent(request.method, parts.path.encode(), parts.query.encode(), pairs), body


def _changed(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data) + 1)
    end = min(len(data), start + rng.choice((0, 0, 1, 3, 20)))
    new = rng.choice(
        (rng.choice(PIECES), rng.choice(PIECES), b"", data[start:end] * 2, data[start:end].swapcase())
    )
    if b"&" in data and rng.random() < 0.3:
        options = data.split(b"&")
        rng.shuffle(options)
        return b"&".join(options if rng.random() < 0.5 else [*options, rng.choice(options)])
    return data[:start] + new + data[end:]


def _changed_headers(
    rng: random.Random, headers: list[tuple[bytes, bytes]], part: str
) -> list[tuple[bytes, bytes]]:
    places = [place for place, (name, _) in enumerate(headers) if part == "headers" or name == part.encode()]
    if places and rng.random() < 0.6:
        place = rng.choice(places)
        name, value = headers[place]
        headers[place] = (name, _changed(rng, value))
        if rng.random() < 0.2:
            del headers[place]
    elif part == "headers":
        headers.insert(rng.randrange(len(headers) + 1), rng.choice((*HEADERS, *headers)))
        if rng.random() < 0.3:
            rng.shuffle(headers)
    return headers


def check(case: Case) -> None:
    """Let a request in, or refuse it.

    :raises SignatureError: it is refused.
    :raises ForgedError: it is let in, and is not what was signed.
    """
    now = time.time()
    try:
        original = _let_in(case.signed, case.signed_body, now)
    except SignatureError as error:
        raise ForgedError(f"what was signed is refused: {error.message}") from error
    claim = _let_in(case.sent, case.body, now)
    if meaning(claim, case.sent, case.body) != meaning(original, case.signed, case.signed_body):
        raise ForgedError(f"let in as {claim}")


def _let_in(sent: Sent, body: bytes, now: float) -> Claim:
    request = Request(sent.method, sent.path, sent.query, signatures.joined(sent.headers))
    claim = signatures.claim_of(request.headers.get(b"authorization", b""), request.query)
    if claim is None:
        raise SignatureError("MissingAuthenticationToken", "not signed")
    hashed = sha256(body).hexdigest()
    payload = signatures.payload_hash(claim.signer, request.headers)
    signatures.check(claim, request, payload or hashed, {KEY: SECRET}.get, now)
    if payload is not None and signatures.is_hash(payload) and payload != hashed:
        raise SignatureError("XAmzContentSHA256Mismatch", "another body")
    return claim


def meaning(claim: Claim, request: Sent, body: bytes) -> Any:
    """Return all that a signature vouches for, in the one form in which equal requests are equal."""
    parts = [part.partition(b"=") for part in request.query.split(b"&")] if request.query else []
    pairs = sorted((unquote_to_bytes(name), unquote_to_bytes(value)) for name, _, value in parts)
    headers: dict[bytes, list[bytes]] = {}
    for name, value in request.headers:
        headers.setdefault(name, []).append(value)
    method = request.method
    if claim.signer.version == 2:
        # Of a query and of headers, only these are signed in version 2. Key and signature are in the claim.
        method = method.upper()
        known = {name.encode() for name in HmacV1Auth.QSAOfInterest}
        pairs = [pair for pair in pairs if pair[0] in known or pair[0].startswith(b"x-amz-")]
        names = {
            name
            for name in headers
            if name in (b"content-md5", b"content-type") or name.startswith(b"x-amz-")
        }
    else:
        pairs = [pair for pair in pairs if not claim.signer.presigned or pair[0] != b"X-Amz-Signature"]
        names = set(claim.signer.signed_headers)
    return (
        (astuple(claim.signer), claim.signature),
        method,
        request.path,
        pairs,
        {name: b",".join(b" ".join(value.split()) for value in headers[name]) for name in names},
        b"" if claim.signer.presigned else body,
    )
