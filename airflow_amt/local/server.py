"""The HTTP server of the embedded AMT: a Starlette application on uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local import protocol, s3_view
from airflow_amt.local.clock import AmtClock
from airflow_amt.local.engine import Engine, EngineOptions
from airflow_amt.local.operations import Operations
from airflow_amt.local.storage import FolderStorage, Storage
from airflow_amt.local.store import Store
from airflow_amt.service_model import service_model

logger = logging.getLogger(__name__)

#: Larger requests are refused; the largest legal create request is far below.
LARGEST_REQUEST = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """What the server is started with.

    :param host: address to listen on; loopback unless asked otherwise.
    :param port: port, 0 for any free one.
    :param clock_rate: AMT seconds per real second.
    :param engine: see :class:`EngineOptions`.
    :param with_aws: serve S3, STS, IAM and CloudWatch Logs too; needs the extra ``local-aws``.
    :param until_stdin_closes: end as well when standard input closes: the sign, for a parent that holds
        the other end of a pipe, that the parent is gone.
    """

    host: str = "127.0.0.1"
    port: int = 0
    clock_rate: float = 1.0
    engine: EngineOptions
    with_aws: bool = False
    until_stdin_closes: bool = False


def create_app(operations: Operations, storage: Storage) -> Starlette:
    """Return the application: SageMaker's JSON protocol at ``/``, a read-only view of S3 below it.

    :param storage: where ``s3://`` is; only a folder is shown, as an S3 server shows itself.
    """

    async def endpoint(request: Request) -> Response:
        request_id = str(uuid.uuid4())
        operation = "unknown"
        try:
            operation = protocol.operation_of(request.headers.get("x-amz-target"))
            body = await _read_body(request)
            answer = _answer(operations, operation, request.headers.get("authorization"), body)
            return _response(answer, 200, request_id)
        except protocol.AwsError as error:
            logger.info("%s refused: %s: %s", operation, error.code, error.message)
            return _response(error.body(), error.status, request_id)
        except ClientDisconnect:
            # Nobody is left to read an answer.
            return Response(status_code=400)
        except Exception:
            logger.exception("%s failed, request %s", operation, request_id)
            failure = protocol.AwsError(
                "InternalFailure",
                f"The embedded AMT failed; its log says why (request {request_id}). This is a bug.",
                500,
            )
            return _response(failure.body(), failure.status, request_id)

    view = s3_view.routes(storage.root) if isinstance(storage, FolderStorage) else []
    return Starlette(routes=[Route("/", endpoint, methods=["POST"]), *view])


def beside(sagemaker: ASGIApp, others: ASGIApp) -> ASGIApp:
    """Return an application that gives SageMaker's requests to one application and the rest to another."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        ours = scope["type"] != "http" or any(
            name == b"x-amz-target" and value.startswith(protocol.TARGET_PREFIX.encode())
            for name, value in scope["headers"]
        )
        await (sagemaker if ours else others)(scope, receive, send)

    return application


def _answer(operations: Operations, operation: str, authorization: str | None, body: bytes) -> bytes:
    if operation not in operations.names:
        raise protocol.AwsError(
            "UnknownOperationException",
            f"The embedded AMT does not offer {operation}. It offers {', '.join(sorted(operations.names))}.",
        )
    params = protocol.read_request(operation, body)
    result = operations.call(operation, protocol.region_of(authorization), params)
    return protocol.write_answer(operation, result)


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_REQUEST:
            raise protocol.AwsError(
                "SerializationException", f"The request is larger than {LARGEST_REQUEST} bytes"
            )
    return bytes(body)


def _response(body: bytes, status: int, request_id: str) -> Response:
    return Response(body, status, headers={"x-amzn-RequestId": request_id}, media_type=protocol.CONTENT_TYPE)


class _Server(uvicorn.Server):
    """uvicorn, but signals are handled by this module and readiness is announced."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce()


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket.

    :raises AmtFieldError: the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(256)
    except (OSError, OverflowError) as error:
        listener.close()
        raise AmtFieldError(
            "host and port",
            f"{host}:{port}",
            f"an address of this machine that is free ({error})",
            "choose another port, or 0 for any free one",
        ) from None
    return listener


def is_loopback(host: str) -> bool:
    """Whether a host name or address cannot be reached from another machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(options: ServerOptions, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM, SIGINT or, if asked for, the end of standard input; leave no process behind.

    :param announce: called with the endpoint's address once requests are answered.
    :raises AmtFieldError: an option cannot be used (address, state folder).
    """
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(options.host, options.port))
        store = Store(options.engine.state_dir)
        stack.callback(store.close)
        clock = AmtClock(options.clock_rate, last_seen_ms=store.last_seen_ms())
        # Loaded now, so that the first request is not the slow one.
        service_model()
        asyncio.run(_serve(options, listener, store, clock, announce))


async def _serve(
    options: ServerOptions,
    listener: socket.socket,
    store: Store,
    clock: AmtClock,
    announce: Callable[[str], None],
) -> None:
    engine = Engine(store, clock, options.engine)
    host, port = listener.getsockname()[:2]
    endpoint = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    application: ASGIApp = create_app(Operations(engine), engine.storage)
    if options.with_aws:
        # Here, and not at the top: who does not ask for it pays nothing for it.
        from airflow_amt.local import aws

        application = beside(
            application,
            aws.create_asgi_app(
                s3_root=options.engine.s3_root,
                training_jobs=options.engine.state_dir / "training-jobs",
                account=options.engine.account,
            ),
        )
        aws.announce(os.environ, endpoint)
    config = uvicorn.Config(
        application,
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        # Clients keep connections in pools; ending those early only makes them retry.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=2,
    )
    server = _Server(config, lambda: announce(endpoint))

    def end() -> None:
        server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    if options.until_stdin_closes:
        await loop.connect_read_pipe(lambda: _EndOfInput(end), sys.stdin)
    try:
        engine.start()
        await server.serve(sockets=[listener])
    finally:
        await engine.close()
        engine.storage.close()


class _EndOfInput(asyncio.Protocol):
    """Calls back when standard input closes."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback

    def eof_received(self) -> None:
        self._callback()

    def connection_lost(self, exc: Exception | None) -> None:
        self._callback()
