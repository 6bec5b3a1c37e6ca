"""AWS Signature Version 4: who signed a request, and whether the signature is right.

Source: "Signature Version 4 signing process" and, of S3, "Authenticating Requests" (AWS documentation).
botocore only signs. To verify with its signer would cost more than the rest of a call, so this is written
out; a property test holds it against botocore's signer. What boto3 presigns for S3 by default is of version
2, which is rare enough to be left to botocore.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import SplitResult, parse_qsl, quote, unquote_to_bytes

ALGORITHM = "AWS4-HMAC-SHA256"
#: Longest ``Authorization`` header, and longest query that is looked at.
LONGEST_AUTHORIZATION = 4096
LONGEST_QUERY = 16 * 1024
#: Most seconds between a signature's time and now, as AWS has it.
MOST_SKEW = 15 * 60
#: Longest life of a presigned address (S3 user guide: seven days).
LONGEST_LIFE = 7 * 24 * 3600

_PAYLOAD_HEADER = b"x-amz-content-sha256"
#: Bodies that are not part of the signature; S3 alone has them.
_UNSIGNED_PAYLOADS = ("UNSIGNED-PAYLOAD", "STREAMING-")
#: Headers that decide who calls, from where, and what for: of two, others might read the other one.
_SINGLE = frozenset(
    (
        b"authorization",
        b"host",
        b"origin",
        b"sec-fetch-site",
        b"x-amz-content-sha256",
        b"x-amz-date",
        b"x-amz-target",
    )
)
_DATE_FORMAT = "%Y%m%dT%H%M%SZ"
_HASH = re.compile(r"[0-9a-f]{64}")

#: Values by name in lower case; those of a name that occurs more than once are joined by commas.
Headers = Mapping[bytes, bytes]


class SignatureError(Exception):
    """A request is not signed as it must be.

    :param code: AWS's error code.
    :param message: what is wrong and how to mend it.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Signer:
    """Who a request says has signed it, and for what; the same in many requests.

    :param access_key_id: whose secret the signature was made with.
    :param region: the AWS region.
    :param service: the AWS service, as ``sagemaker``.
    :param date: the day of the signature: ``20260131``.
    :param signed_headers: names of the headers that it covers; empty in version 2.
    :param presigned: whether the signature is in the query.
    :param version: 4 or 2.
    :param canonical: the canonical request, with ``%b`` for method, path, query, each signed header, and the
        hash of the body.
    :param scope: the credential scope: ``date/region/service/aws4_request``.
    """

    access_key_id: str
    region: str
    service: str
    date: str = ""
    signed_headers: tuple[bytes, ...] = ()
    presigned: bool = False
    version: int = 4
    canonical: bytes = b""
    scope: bytes = b""


class Claim(NamedTuple):
    """What a request says about its signature."""

    signer: Signer
    signature: bytes


class Request(NamedTuple):
    """What of a request is signed, beside its body.

    :param method: HTTP method.
    :param path: path as it was sent, without the query.
    :param query: query as it was sent.
    :param headers: its headers.
    """

    method: str
    path: bytes
    query: bytes
    headers: Headers


def joined(pairs: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return headers by name, as they are signed; those of one name in their order.

    :raises SignatureError: there are two of which there may be only one.
    """
    headers: dict[bytes, bytes] = {}
    for name, raw in pairs:
        if name in headers and name in _SINGLE:
            raise _incomplete(f"there are two {name.decode()} headers")
        value = raw.strip()
        headers[name] = headers[name] + b"," + value if name in headers else value
    return headers


def claim_of(authorization: bytes, query: bytes) -> Claim | None:
    """Return who claims to have signed a request; ``None`` if nobody does.

    :param authorization: the ``Authorization`` header; empty without one.
    :param query: the query as it was sent.
    :raises SignatureError: the claim cannot be read.
    """
    if authorization:
        return _claim_of_header(authorization)
    if b"X-Amz-Signature=" in query or b"AWSAccessKeyId=" in query:
        return _claim_of_query(query)
    return None


def _claim_of_header(authorization: bytes) -> Claim:
    if len(authorization) > LONGEST_AUTHORIZATION:
        raise _incomplete(f"the Authorization header is longer than {LONGEST_AUTHORIZATION} characters")
    # The signature comes last with all clients, and what is before it is the same in many requests.
    head, found, signature = authorization.rpartition(b"Signature=")
    if not found or b"," in signature:
        raise _incomplete("the Authorization header must end with Signature=")
    return Claim(_signer_of_header(head), signature.strip())


@lru_cache(maxsize=256)
def _signer_of_header(head: bytes) -> Signer:
    algorithm, _, rest = head.decode("latin-1").partition(" ")
    if algorithm != ALGORITHM:
        raise _incomplete(f"the Authorization header must begin with {ALGORITHM}")
    parts = {}
    for part in rest.split(","):
        name, separator, value = part.strip().partition("=")
        if not name and not separator:
            continue
        if name in parts:
            raise _incomplete(f"the Authorization header has two {name[:64]}")
        parts[name] = value
    try:
        return _signer(parts["Credential"], parts["SignedHeaders"], presigned=False)
    except KeyError as error:
        raise _incomplete(f"the Authorization header has no {error.args[0]}") from None


def _claim_of_query(query: bytes) -> Claim:
    options = _options(query)
    try:
        if "X-Amz-Signature" in options:
            signer = _signer(options["X-Amz-Credential"], options["X-Amz-SignedHeaders"], presigned=True)
            return Claim(signer, options["X-Amz-Signature"].encode("latin-1", "replace"))
        signer = Signer(options["AWSAccessKeyId"], "us-east-1", "s3", presigned=True, version=2)
        return Claim(signer, options["Signature"].encode("latin-1", "replace"))
    except KeyError as error:
        raise _incomplete(f"the query has no {error.args[0]}") from None


def _signer(credential: str, signed_headers: str, *, presigned: bool) -> Signer:
    parts = credential.rsplit("/", 4)
    if len(parts) != 5 or parts[4] != "aws4_request" or not all(parts):
        raise _incomplete("Credential must be KEY/DATE/REGION/SERVICE/aws4_request")
    key, date, region, service, _ = parts
    if not (_is_label(region) and _is_label(service)):
        raise _incomplete("Credential names no region or no service")
    names = tuple(name.encode("latin-1", "replace") for name in signed_headers.split(";"))
    if b"host" not in names:
        raise _incomplete("the host is not among the signed headers")
    if len(set(names)) < len(names):
        raise _incomplete("a name is twice among the signed headers")
    canonical = [b"%b", b"%b", b"%b", *(name.replace(b"%", b"%%") + b":%b" for name in names)]
    canonical += [b"", b";".join(names).replace(b"%", b"%%"), b"%b"]
    return Signer(
        access_key_id=key,
        region=region,
        service=service,
        date=date,
        signed_headers=names,
        presigned=presigned,
        canonical=b"\n".join(canonical),
        scope=f"{date}/{region}/{service}/aws4_request".encode("latin-1", "replace"),
    )


def _is_label(text: str) -> bool:
    return len(text) <= 32 and text.isascii() and text.replace("-", "").isalnum() and text == text.lower()


def payload_hash(signer: Signer, headers: Headers) -> str | None:
    """Return what a request says about its body, ``None`` if its body has to be hashed.

    :return: a SHA-256 in hexadecimal digits, ``UNSIGNED-PAYLOAD``, or another of S3's words.
    :raises SignatureError: it says something that its service has not.
    """
    if signer.presigned and signer.service == "s3":
        return "UNSIGNED-PAYLOAD"
    said = headers.get(_PAYLOAD_HEADER)
    if said is None:
        return None
    text = said.decode("latin-1").strip()
    if is_hash(text) or (signer.service == "s3" and text.startswith(_UNSIGNED_PAYLOADS)):
        return text
    raise _incomplete("x-amz-content-sha256 must be the SHA-256 of the body in hexadecimal digits")


def is_hash(payload: str) -> bool:
    """Whether what a request says about its body is a hash."""
    return _HASH.fullmatch(payload) is not None


def check(
    claim: Claim, request: Request, payload: str, secret_of: Callable[[str], str | None], now: float
) -> None:
    """Refuse a request unless its signature is right and fresh.

    :param payload: hash of the body, or the word that says that it is not part of the signature.
    :param secret_of: returns the secret of an access key, ``None`` if there is no such key.
    :param now: seconds since the epoch.
    :raises SignatureError: see ``code``.
    """
    signer = claim.signer
    secret = secret_of(signer.access_key_id)
    if secret is None:
        raise SignatureError("InvalidAccessKeyId", "The access key is not one of this server's.")
    if signer.version == 2:
        _check_version_2(claim, request, secret, now)
        return
    values = _signed_values(signer, request.headers)
    if signer.presigned:
        options = _options(request.query)
        moment = options.get("X-Amz-Date", "").encode("latin-1", "replace")
        _check_time(signer, moment, options.get("X-Amz-Expires", ""), now)
    else:
        moment = request.headers.get(b"x-amz-date", b"").strip()
        _check_time(signer, moment, None, now)
    path = request.path or b"/"
    if signer.service != "s3" and path != b"/":
        # Services but S3 encode once more what was sent.
        path = quote(path, safe="/~").encode()
    query = _canonical_query(request.query, without="X-Amz-Signature" if signer.presigned else None)
    parts = [request.method.encode(), path, query, *values, payload.encode()]
    if not hmac.compare_digest(_signature(signer, secret, moment, parts), claim.signature):
        # Clients sign several blanks as one. Few send several, so this is tried second.
        parts[3:-1] = [b" ".join(value.split()) for value in values]
        if not hmac.compare_digest(_signature(signer, secret, moment, parts), claim.signature):
            raise _wrong()


def _signature(signer: Signer, secret: str, moment: bytes, parts: list[bytes]) -> bytes:
    """Return the signature of a request.

    :param parts: what stands in the places of the canonical request.
    """
    digest = hashlib.sha256(signer.canonical % tuple(parts)).hexdigest().encode()
    mac = _keyed(secret, signer.date, signer.region, signer.service).copy()
    mac.update(b"\n".join((ALGORITHM.encode(), moment, signer.scope, digest)))
    return mac.hexdigest().encode()


def _signed_values(signer: Signer, headers: Headers) -> list[bytes]:
    """Return the values of the signed headers.

    :raises SignatureError: one of AWS's own headers is not signed, or a signed one is missing.
    """
    for name in headers:
        if name.startswith(b"x-amz-") and name not in signer.signed_headers:
            raise _incomplete(f"the header {name[:64]!a} is not among the signed headers")
    try:
        return [headers[name] for name in signer.signed_headers]
    except KeyError:
        missing = b", ".join(name for name in signer.signed_headers if name not in headers)
        raise _incomplete(f"the signed headers must be there: {missing[:200]!a}") from None


def _canonical_query(query: bytes, *, without: str | None) -> bytes:
    if not query:
        return b""
    pairs = [(name, value) for name, _, value in _recoded(query) if name != without]
    return "&".join(f"{name}={value}" for name, value in sorted(pairs)).encode()


def _recoded(query: bytes) -> Iterator[tuple[str, str, str]]:
    """Decode what was sent, and encode it in the one way that is canonical, as AWS does."""
    for part in query.split(b"&"):
        name, separator, value = part.partition(b"=")
        yield (
            quote(unquote_to_bytes(name), safe="-_.~"),
            separator.decode(),
            quote(unquote_to_bytes(value), safe="-_.~"),
        )


def _check_time(signer: Signer, moment: bytes, life: str | None, now: float) -> None:
    """Refuse a signature that is not fresh.

    :param life: seconds that a presigned address says it lives.
    """
    # No cache for what a stranger makes up.
    signed_at = _parsed(moment) if len(moment) == 16 else None
    if signed_at is None:
        raise _incomplete("there is no X-Amz-Date like 20260131T235959Z")
    if not signer.scope.startswith(moment[:8] + b"/"):
        raise _incomplete("the date in Credential is not that of X-Amz-Date")
    seconds = MOST_SKEW
    if life is not None:
        if not (life.isascii() and life.isdecimal() and len(life) <= 6):
            raise _incomplete("X-Amz-Expires must be a number of seconds")
        seconds = min(int(life), LONGEST_LIFE)
    if not signed_at - MOST_SKEW <= now <= signed_at + seconds:
        raise _expired()


@lru_cache(maxsize=64)
def _parsed(moment: bytes) -> float | None:
    try:
        return datetime.strptime(moment.decode("ascii"), _DATE_FORMAT).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


@lru_cache(maxsize=64)
def _keyed(secret: str, date: str, region: str, service: str) -> hmac.HMAC:
    """Return what makes signatures, to be copied: it costs half as much as to begin with the key."""
    key = f"AWS4{secret}".encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.new(key, digestmod="sha256")


def _check_version_2(claim: Claim, request: Request, secret: str, now: float) -> None:
    from botocore.auth import HmacV1QueryAuth
    from botocore.compat import HTTPHeaders

    options = _options(request.query)
    expires = options.get("Expires", "")
    if not (expires.isascii() and expires.isdecimal() and len(expires) <= 12):
        raise _incomplete("Expires must be seconds since the epoch")
    if now > int(expires):
        raise _expired()
    headers = HTTPHeaders()
    for name, value in request.headers.items():
        headers[name.decode("latin-1")] = value.decode("latin-1")
    for option, value_of_option in options.items():
        # Headers that were known when the address was presigned are in its query.
        if option.startswith("x-amz-") or option in ("content-md5", "content-type"):
            headers[option] = value_of_option
    # botocore's own: the date is the expiry in a presigned address.
    signer = HmacV1QueryAuth(credentials=None)
    signer._get_date = lambda: expires
    # It knows sub-resources by names that are not encoded, unlike what is behind.
    query = "&".join(map("".join, _recoded(request.query)))
    path = request.path.decode("latin-1")
    if path.count("/") == 1 and path != "/":
        path += "/"  # a bucket, which is signed so whether or not it was sent so
    text = signer.canonical_string(request.method, SplitResult("http", "server", path, query, ""), headers)
    expected = b64encode(hmac.digest(secret.encode(), text.encode(), "sha1"))
    if not hmac.compare_digest(expected, claim.signature):
        raise _wrong()


def _options(query: bytes) -> Mapping[str, str]:
    if len(query) > LONGEST_QUERY:
        raise _incomplete(f"the query is longer than {LONGEST_QUERY} bytes")
    try:
        # A plus sign is no blank here, unlike in forms.
        pairs = parse_qsl(query.decode("latin-1").replace("+", "%2B"), keep_blank_values=True)
    except ValueError:
        raise _incomplete("the query cannot be read") from None
    return dict(pairs)


def _incomplete(what: str) -> SignatureError:
    return SignatureError("IncompleteSignature", f"The signature cannot be checked: {what}.")


def _wrong() -> SignatureError:
    return SignatureError(
        "SignatureDoesNotMatch",
        "The signature is not the one that the server's secret access key gives for this request.",
    )


def _expired() -> SignatureError:
    return SignatureError(
        "RequestExpired",
        "The signature is too old, or of the future: sign anew, or set the clock of the client.",
    )
