"""The WSGI application of the services beside SageMaker: which one is meant, and moto's answer."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from a2wsgi import WSGIMiddleware
from moto.backends import get_backend
from moto.core.utils import utcnow
from moto.moto_server.werkzeug_app import create_backend_app
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from airflow_amt.local import json_text
from airflow_amt.local.aws.buckets import Buckets, BucketsError, error_document
from airflow_amt.local.aws.logs import GROUP, LogsError, TrainingLogs
from airflow_amt.local.aws.roles import Roles
from airflow_amt.local.credentials import DEFAULT_REGION
from airflow_amt.local.s3 import Places
from airflow_amt.local.signatures import Signer
from airflow_amt.local.trust import (
    LARGEST_OBJECT,
    SIGNER,
    ClientGoneError,
    TooLargeError,
    read_chunks,
    replayed,
)
from airflow_amt.text import MOST_REASON, shown

logger = logging.getLogger(__name__)

Environ = dict[str, Any]
StartResponse = Callable[..., Any]

SERVICES = ("iam", "logs", "s3", "sts")

_JSON = "application/x-amz-json-1.1"
_LOGS_TARGET = "Logs_20140328."
#: Larger requests for STS, IAM and CloudWatch Logs are refused; CloudWatch's own limit is 1 MiB of events.
_LARGEST_REQUEST = 4 * 1024 * 1024
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
_READ_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def create_asgi_app(services: AwsServices) -> ASGIApp:
    """Return the ASGI application of the services beside SageMaker."""
    wsgi = WSGIMiddleware(services)

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        # First, as the middleware takes a body that was cut off for a whole one.
        try:
            chunks = await read_chunks(receive, LARGEST_OBJECT)
        except ClientGoneError:
            return
        except TooLargeError as error:
            document = error_document(BucketsError("EntityTooLarge", f"{error}."))
            await Response(document, 413, media_type="application/xml")(scope, receive, send)
            return
        await wsgi(scope, replayed(chunks, receive), send)

    return application


class AwsServices:
    """Answers the requests for S3, STS, IAM and CloudWatch Logs.

    :param places: the folder that stands for S3.
    :param training_jobs: the folder of all training jobs' folders.
    :param account: 12-digit AWS account id.
    """

    def __init__(self, *, places: Places, training_jobs: Path, account: str) -> None:
        self._account = account
        self._applications = {service: create_backend_app(service) for service in SERVICES}
        for application in self._applications.values():
            application.config["PROPAGATE_EXCEPTIONS"] = True
        self._buckets = Buckets(places, account)
        self._roles = Roles(account)
        self._logs = TrainingLogs(training_jobs, account)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        environ["wsgi.errors"] = sys.stderr
        raw_path = environ["asgi.scope"].get("raw_path") if "asgi.scope" in environ else None
        if raw_path:
            # Keys may have encoded slashes in them, which PATH_INFO does not tell from others.
            environ["RAW_URI"] = raw_path.decode("ascii")
        if environ.get("HTTP_TRANSFER_ENCODING", "").lower() == "chunked":
            environ["wsgi.input_terminated"] = True
        # By this header moto takes another account than its own default one.
        environ["HTTP_X_MOTO_ACCOUNT_ID"] = self._account
        region, service = _scope_of(environ)
        if service == "s3":
            return self._s3(environ, start_response)
        body = environ["wsgi.input"].read(_LARGEST_REQUEST + 1)
        if len(body) > _LARGEST_REQUEST:
            message = f"The request is larger than {_LARGEST_REQUEST} bytes"
            return _refuse(start_response, "SerializationException", message)
        # To be read once more by moto.
        environ["wsgi.input"] = io.BytesIO(body)
        environ["CONTENT_LENGTH"] = str(len(body))
        if service == "iam":
            answer = self._iam(body)
            if answer is not None:
                return _respond(start_response, 200, "text/xml", answer)
        if service == "logs":
            about_training = self._training_logs(environ, body, region)
            if about_training is not None:
                return _respond(start_response, *about_training)
        if service not in self._applications:
            message = (
                f"The embedded AMT does not offer {service}. It offers sagemaker, {', '.join(SERVICES)}."
            )
            return _refuse(start_response, "UnknownOperationException", message)
        return self._moto(service, environ, start_response)

    def secret_of(self, access_key_id: str) -> str | None:
        """Return the secret of a key that STS has given out for a role, or IAM for a user."""
        role = get_backend("sts")[self._account]["aws"].get_assumed_role_from_access_key(access_key_id)
        if role is not None:
            return None if role.expiration <= utcnow() else str(role.secret_access_key)
        # Copy before iterating: moto's threads change both.
        for user in list(get_backend("iam")[self._account]["aws"].users.values()):
            for key in list(user.access_keys):
                if key.access_key_id == access_key_id and key.status == "Active":
                    return str(key.secret_access_key)
        return None

    def _moto(self, service: str, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Let moto answer; what it fails at is refused.

        It reads requests trustingly: junk ends in any exception, as does what it does not offer.
        """
        try:
            answer: Iterable[bytes] = self._applications[service](environ, start_response)
        except Exception as error:
            why = shown(f"{type(error).__name__}: {error}", MOST_REASON)
            logger.warning("moto cannot answer a request for %s: %s", service, why)
            logger.debug("moto failed", exc_info=True)
            message = f"moto, which stands for {service} here, cannot answer this request: {why}"
            if service == "logs":
                return _refuse(start_response, "InvalidParameterException", message)
            document = error_document(BucketsError("InvalidRequest", message))
            return _respond(start_response, 400, "application/xml", document)
        return answer

    def _s3(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Let moto answer between two looks at the folder: what is new there, and what is to be kept."""
        started: list[Any] = []
        if environ["REQUEST_METHOD"] == "PUT" and environ.get("CONTENT_TYPE", "").startswith(_FORMS):
            # Moto would read the object as a form, and store nothing. curl says so of whatever it uploads.
            environ["CONTENT_TYPE"] = "binary/octet-stream"

        def remember(*arguments: Any) -> None:
            started[:] = arguments

        try:
            self._buckets.load(environ)
            # All of it: what is to be kept is there only when moto is done.
            chunks = _exhausted(self._moto("s3", environ, remember))
            if int(started[0].split()[0]) >= 400:
                self._buckets.undo(environ)
            elif environ["REQUEST_METHOD"] not in _READ_METHODS:
                self._buckets.keep(environ)
        except BucketsError as error:
            return _respond(start_response, 400, "application/xml", error_document(error))
        start_response(*started)
        return chunks

    def _iam(self, body: bytes) -> bytes | None:
        form = {key: values[0] for key, values in parse_qs(body.decode(errors="replace")).items()}
        return self._roles.answer(form)

    def _training_logs(self, environ: Environ, body: bytes, region: str) -> tuple[int, str, bytes] | None:
        """Answer a call that is about the log group of training jobs; ``None`` leaves it to moto."""
        operation = environ.get("HTTP_X_AMZ_TARGET", "").removeprefix(_LOGS_TARGET)
        self._logs.create_group(region)
        if not self._logs.offers(operation):
            return None
        try:
            params = json_text.read(body or b"{}")
            if not isinstance(params, dict):
                raise ValueError("it must be an object")
        except ValueError as error:
            message = f"The request is not valid JSON: {error}"
            return 400, _JSON, _error("SerializationException", message)
        group = str(params.get("logGroupName") or params.get("logGroupIdentifier") or "")
        if group != GROUP and not group.endswith(f":log-group:{GROUP}"):
            return None
        try:
            return 200, _JSON, json.dumps(self._logs.call(operation, region, params)).encode()
        except LogsError as error:
            return 400, _JSON, _error(error.code, error.message)


def _scope_of(environ: Environ) -> tuple[str, str]:
    """Return region and service that a request was signed for; unsigned ones are for S3."""
    signer: Signer | None = environ.get("asgi.scope", {}).get(SIGNER)
    return (DEFAULT_REGION, "s3") if signer is None else (signer.region, signer.service)


def _exhausted(answer: Iterable[bytes]) -> list[bytes]:
    try:
        return list(answer)
    finally:
        close = getattr(answer, "close", None)
        if close is not None:
            close()


_STATUS_LINES: Mapping[int, str] = {200: "200 OK", 400: "400 Bad Request"}


def _error(code: str, message: str) -> bytes:
    return json.dumps({"__type": code, "message": message}).encode()


def _refuse(start_response: StartResponse, code: str, message: str) -> Iterable[bytes]:
    return _respond(start_response, 400, _JSON, _error(code, message))


def _respond(start_response: StartResponse, status: int, content_type: str, body: bytes) -> Iterable[bytes]:
    headers = [("Content-Type", content_type), ("Content-Length", str(len(body)))]
    start_response(_STATUS_LINES[status], headers)
    return [body]
