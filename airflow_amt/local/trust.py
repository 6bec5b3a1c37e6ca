"""Who may call: the outermost part of the server, which lets through what the server's user has signed.

Three questions, in this order: does the request name this server (``Host``; a web page whose name was
rebound to loopback does not), does it come from a web page (``Origin``, ``Sec-Fetch-Site``), and is it signed
with the server's credentials (:mod:`airflow_amt.local.signatures`)? What fails one is answered here, and
nothing behind this part sees it.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from xml.sax.saxutils import escape

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from airflow_amt.local import signatures
from airflow_amt.local.credentials import DEFAULT_REGION, Credentials
from airflow_amt.local.signatures import Headers, SignatureError, Signer

logger = logging.getLogger(__name__)

#: Larger requests are refused, but of S3; the largest legal create request is far below.
LARGEST_REQUEST = 4 * 1024 * 1024
#: Largest object that is sent in one request of S3 (S3 user guide, "Uploading objects"): 5 GB.
LARGEST_OBJECT = 5 * 1024**3
#: Where the gate leaves who has signed a request, in its ASGI scope.
SIGNER = "airflow_amt.signer"

_HINT = (
    "Use the access key that 'airflow-amt local credentials' prints, with the --state-dir of the server "
    "(in tests: running().client(), .environment() or .connection())."
)
#: Browsers give a stored page no origin then, so its scripts cannot call the server.
_HARDENING = [
    (b"content-security-policy", b"sandbox"),
    (b"x-content-type-options", b"nosniff"),
]
#: Error codes of services with a JSON protocol, by those of S3.
_JSON_CODES = {
    "AccessDenied": "AccessDeniedException",
    "InvalidAccessKeyId": "UnrecognizedClientException",
    "MissingAuthenticationToken": "MissingAuthenticationTokenException",
    "SignatureDoesNotMatch": "InvalidSignatureException",
}
#: A name of 253 characters and a port; longer ones are no names.
_LONGEST_HOST = 260
#: ``Sec-Fetch-Site`` of requests that no other site has made.
_OWN_SITES = (b"none", b"same-origin")
_LOG_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustOptions:
    """Who may call.

    :param credentials: what calls are signed with; ``None`` lets every caller in.
    :param hosts: names and addresses by which clients may call the server, beside those of loopback.
    :param secret_of: returns the secret of further access keys, ``None`` for those it does not know.
    """

    credentials: Credentials | None
    hosts: Collection[str] = ()
    secret_of: Callable[[str], str | None] = field(default=lambda _: None)


class RefusedError(Exception):
    """A request is not let through.

    :param status: HTTP status.
    :param code: AWS's error code.
    :param message: what is wrong and how to mend it.
    :param body_read: whether the body of the request has been read.
    """

    def __init__(self, status: int, code: str, message: str, *, body_read: bool = False) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.code = code
        self.message = message
        self.body_read = body_read


class Gate:
    """Lets requests through to an application.

    :param application: what is behind.
    :param options: who may call.
    :param now: tells seconds since the epoch.
    """

    def __init__(
        self, application: ASGIApp, options: TrustOptions, now: Callable[[], float] = time.time
    ) -> None:
        self._application = application
        self._options = options
        self._now = now
        hosts = frozenset(host.lower().removesuffix(".") for host in options.hosts)
        self._is_own = lru_cache(maxsize=64)(partial(_own_host, hosts=hosts))
        self._refusals = _Refusals()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on: the interface of ASGI."""
        if scope["type"] != "http":
            raise RuntimeError(f"the server offers no {scope['type']}")
        try:
            headers = _take_headers(scope)
            self._check_head(scope, headers)
            receive = await self._check_signature(scope, headers, receive)
        except (RefusedError, TooLargeError) as error:
            if isinstance(error, TooLargeError):
                error = RefusedError(413, "RequestEntityTooLarge", f"{error}.", body_read=True)
            self._refusals.note(scope, error)
            await _refuse(scope, receive, send, error)
            return
        except ClientGoneError:
            return

        if scope["method"] == "POST":
            # Only forms of pages show such an answer, and those are refused.
            await self._application(scope, receive, send)
            return

        async def send_hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HARDENING]
            await send(message)

        await self._application(scope, receive, send_hardened)

    def _check_head(self, scope: Scope, headers: Headers) -> None:
        """Check who is called, and from where."""
        host, origin = headers.get(b"host", b""), headers.get(b"origin")
        server = (scope.get("server") or ("",))[0]
        if len(host) > _LONGEST_HOST or not self._is_own(host, server):
            raise RefusedError(
                403,
                "AccessDenied",
                f"The Host header {_shown(host)} is none of this server's names. Start it with "
                "--allowed-host NAME to call it by that name.",
            )
        if (origin is not None and origin.lower() != b"http://" + host.lower()) or (
            headers.get(b"sec-fetch-site", b"none") not in _OWN_SITES
        ):
            raise RefusedError(
                403, "AccessDenied", f"The web page {_shown(origin)} may not call this server: no page may."
            )

    async def _check_signature(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        """Check the signature; return what the application receives the body from."""
        asks = self._options.credentials is not None
        query: bytes = scope["query_string"]
        try:
            claim = signatures.claim_of(headers.get(b"authorization", b""), query)
        except SignatureError as error:
            if asks:
                raise _refused(error) from None
            claim = None
        scope[SIGNER] = None if claim is None else claim.signer
        if not asks:
            return receive
        if claim is None:
            raise RefusedError(403, "MissingAuthenticationToken", f"The request is not signed. {_HINT}")
        signer = claim.signer
        if signer.service != "sagemaker" and headers.get(b"x-amz-target", b"").startswith(b"SageMaker."):
            raise RefusedError(
                403, "SignatureDoesNotMatch", f"Credential names the service {signer.service}, not sagemaker."
            )
        request = signatures.Request(scope["method"], scope["raw_path"], query, headers)
        digest, chunks = hashlib.sha256(), None
        try:
            payload = signatures.payload_hash(signer, headers)
            if payload is None:
                chunks = await read_chunks(receive, LARGEST_REQUEST, digest.update)
            # Before the body is read, which may be large, where that can be.
            signatures.check(claim, request, payload or digest.hexdigest(), self._secret_of, self._now())
        except SignatureError as error:
            raise _refused(error, body_read=chunks is not None) from None
        if payload is not None and signatures.is_hash(payload):
            chunks = await read_chunks(
                receive, LARGEST_OBJECT if signer.service == "s3" else LARGEST_REQUEST, digest.update
            )
            if digest.hexdigest() != payload:
                raise RefusedError(
                    400,
                    "XAmzContentSHA256Mismatch",
                    "The body is not the one that was signed: send it again.",
                    body_read=True,
                )
        return receive if chunks is None else replayed(chunks, receive)

    def _secret_of(self, access_key_id: str) -> str | None:
        own = self._options.credentials
        if own is not None and access_key_id == own.access_key_id:
            return own.secret_access_key
        return self._options.secret_of(access_key_id)


def _take_headers(scope: Scope) -> dict[bytes, bytes]:
    """Return the headers by name, and leave their list in the scope as the application may see it.

    That is a copy: uvicorn appends the trailers of a chunked body to its own after the signature is checked.
    Names with underscores are left out: WSGI cannot tell x_amz_acl from x-amz-acl, and only one is checked.

    :raises RefusedError: there are two of which there may be only one.
    """
    pairs: list[tuple[bytes, bytes]] = list(scope["headers"])
    headers = dict(pairs)
    if b"_" in b"".join(headers) or len(headers) < len(pairs):
        pairs = [pair for pair in pairs if b"_" not in pair[0]]
        try:
            headers = signatures.joined(pairs)
        except SignatureError as error:
            raise RefusedError(403, error.code, error.message) from None
    scope["headers"] = pairs
    return headers


def region_of(scope: Scope) -> str:
    """Return the region that a request was signed for, ``us-east-1`` if it was not signed."""
    signer: Signer | None = scope.get(SIGNER)
    return DEFAULT_REGION if signer is None else signer.region


def _host_name(host: bytes) -> str | None:
    """Return the name in a ``Host`` header, without its port; ``None`` unless there is exactly one."""
    text = host.decode("latin-1").lower()
    name, separator, port = text.rpartition(":")
    if text.endswith("]") or not separator:
        name, port = text, "0"
    if not (port.isascii() and port.isdecimal()) or "," in name:
        return None
    return name.removeprefix("[").removesuffix("]").removesuffix(".") or None


def _own_host(host: bytes, address: str, hosts: frozenset[str]) -> bool:
    """Whether a ``Host`` header names this server.

    An address cannot be rebound: only pages from there, and so from this server, have it as their origin.

    :param address: the one that the client has connected to.
    :param hosts: further names.
    """
    name = _host_name(host)
    if name is None:
        return False
    if name == "localhost" or name.endswith(".localhost") or name in hosts:
        return True
    try:
        return ipaddress.ip_address(name).is_loopback or name == address
    except ValueError:
        return False


class ClientGoneError(Exception):
    """The client closed its connection before its request was complete."""


class TooLargeError(Exception):
    """A body is larger than it may be; the text says how large that is."""


async def read_chunks(
    receive: Receive, most: int, note: Callable[[bytes], object] | None = None
) -> list[bytes]:
    """Return the body of a request, in at least one part.

    :param most: bytes that it may have.
    :param note: is told each part.
    :raises ClientGoneError: the client closed its connection before it was complete.
    :raises TooLargeError: it has more bytes.
    """
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > most:
            raise TooLargeError(f"The request is larger than {most} bytes")
        chunks.append(chunk)
        if note is not None:
            note(chunk)
        if not message.get("more_body", False):
            return chunks


def replayed(chunks: list[bytes], receive: Receive) -> Receive:
    """Return what gives a body that was read before, and then goes on."""
    left = chunks[::-1]

    async def replay() -> Message:
        if not left:
            return await receive()
        chunk = left.pop()
        return {"type": "http.request", "body": chunk, "more_body": bool(left)}

    return replay


def _refused(error: SignatureError, *, body_read: bool = False) -> RefusedError:
    return RefusedError(403, error.code, f"{error.message} {_HINT}", body_read=body_read)


def _shown(text: bytes | None) -> str:
    return "(none)" if text is None else ascii(text.decode("latin-1")[:100])


async def _refuse(scope: Scope, receive: Receive, send: Send, refusal: RefusedError) -> None:
    """Answer in the protocol that the client speaks, once it has sent what it has to say."""
    headers = dict(scope["headers"])
    content_type = headers.get(b"content-type", b"")
    if headers.get(b"x-amz-target"):
        kind = b"application/x-amz-json-1.1"
        code = _JSON_CODES.get(refusal.code, refusal.code)
        content = {"__type": code, "message": refusal.message, "Message": refusal.message}
        body = json.dumps(content).encode()
    else:
        kind = b"application/xml"
        text = f"<Error><Code>{refusal.code}</Code><Message>{escape(refusal.message)}</Message></Error>"
        if content_type.startswith(b"application/x-www-form-urlencoded"):
            text = f"<ErrorResponse>{text}</ErrorResponse>"
        body = f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode()
    if not refusal.body_read:
        # A client that is cut off while it sends does not read why.
        with contextlib.suppress(TooLargeError, ClientGoneError):
            await read_chunks(receive, LARGEST_REQUEST)
    answered = [
        (b"content-type", kind),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *_HARDENING,
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": answered})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


class _Refusals:
    """Logs what is refused, a line a second at most: anybody can make refusals."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._last = -_LOG_SECONDS
        self._unlogged = 0

    def note(self, scope: Mapping[str, object], refusal: RefusedError) -> None:
        now = self._monotonic()
        if now - self._last < _LOG_SECONDS:
            self._unlogged += 1
            return
        more = f" ({self._unlogged} more since the last of these lines)" if self._unlogged else ""
        logger.warning(
            "Refused a caller: %s: %s %s%s",
            refusal.code,
            refusal.message,
            f"{scope['method']} {ascii(scope['path'])[:100]}",
            more,
        )
        self._last, self._unlogged = now, 0
