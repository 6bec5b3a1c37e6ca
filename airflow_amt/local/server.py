"""The HTTP server of the embedded AMT: an ASGI application on uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uvicorn
from sqlalchemy.exc import OperationalError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local import credentials, faults, protocol, s3_view, state_folder
from airflow_amt.local.clock import AmtClock
from airflow_amt.local.engine import Engine, EngineOptions
from airflow_amt.local.operations import Operations
from airflow_amt.local.request_log import Call, RequestLog, tuning_job_of
from airflow_amt.local.snapshots import Snapshots
from airflow_amt.local.state_folder import DATABASE
from airflow_amt.local.storage import FolderStorage
from airflow_amt.local.store import Store
from airflow_amt.local.training_environment import base_environment, reachable
from airflow_amt.local.trust import (
    LARGEST_REQUEST,
    ClientGoneError,
    Gate,
    TooLargeError,
    TrustOptions,
    read_chunks,
    region_of,
)
from airflow_amt.service_model import service_model

logger = logging.getLogger(__name__)

#: Most bytes of a request line and headers that do not end.
LARGEST_HEAD = 64 * 1024
#: Where the faults setting is read (GET), replaced (PUT) and emptied (DELETE) while the server runs.
FAULTS_PATH = "/_amt/faults"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """What the server is started with.

    :param host: address to listen on; loopback unless asked otherwise.
    :param port: port, 0 for any free one.
    :param allowed_hosts: further names and addresses by which clients may call the server.
    :param any_caller: ask no caller for a signature.
    :param clock_rate: AMT seconds per real second.
    :param engine: see :class:`EngineOptions`.
    :param with_aws: serve S3, STS, IAM and CloudWatch Logs too; needs the extra ``local-aws``.
    :param pass_env: variables of the server's environment that training processes get too.
    :param request_log: where a line is written for each call (:mod:`airflow_amt.local.request_log`).
    :param until_stdin_closes: end as well when standard input closes: the sign, for a parent that holds
        the other end of a pipe, that the parent is gone.
    """

    host: str = "127.0.0.1"
    port: int = 0
    allowed_hosts: Sequence[str] = ()
    any_caller: bool = False
    clock_rate: float = 1.0
    engine: EngineOptions
    with_aws: bool = False
    pass_env: Sequence[str] = ()
    request_log: Path | None = None
    until_stdin_closes: bool = False


class Application:
    """SageMaker's JSON protocol at ``/``, the faults setting, and a read-only view of S3 below it.

    Calls are answered here in plain ASGI, as most of what the server does is to answer small ones; the rest
    is a Starlette application.

    :param engine: what runs the tuning jobs.
    :param request_log: gets each call of SageMaker's API.
    """

    def __init__(self, engine: Engine, request_log: RequestLog | None = None) -> None:
        self.connections = Connections()
        self._request_log = request_log
        self._engine = engine
        self._operations = Operations(engine)
        self._injector = engine.options.faults
        self._snapshots = Snapshots(engine.store)
        # Only a folder is shown, as an S3 server shows itself.
        view = s3_view.routes(engine.places) if isinstance(engine.storage, FolderStorage) else []
        self._rest = Starlette(
            routes=[
                Route(FAULTS_PATH, self._get_faults, methods=["GET"]),
                Route(FAULTS_PATH, self._put_faults, methods=["PUT"]),
                Route(FAULTS_PATH, self._delete_faults, methods=["DELETE"]),
                *view,
            ]
        )

    def start(self) -> None:
        """Begin to misbehave, if asked to; needs a running event loop."""
        self._snapshots.keep(self._injector.longest_staleness)

    def close(self) -> None:
        """End what :meth:`start` began."""
        self._snapshots.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request: the interface of ASGI."""
        if scope["type"] != "http" or scope["path"] != "/":
            await self._rest(scope, receive, send)
            return
        if scope["method"] != "POST":
            await Response(status_code=405, headers={"Allow": "POST"})(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request_id = _request_id()
        call = None
        if self._request_log is not None:
            call = Call(user_agent=headers.get(b"user-agent", b"").decode("latin-1") or None)
        status, kind = 200, None
        try:
            target = headers.get(b"x-amz-target", b"").decode("latin-1")
            answer = await self._answer(target, region_of(scope), receive, request_id, call)
        except protocol.AwsError as error:
            status, kind, answer = error.status, error.code, error.body()
        except ClientGoneError:
            # Nobody is left to read an answer.
            self._note(call, None, None)
            return
        except faults.DropConnectionError:
            self._note(call, None, None)
            await self._drop(scope, receive)
            return
        self._note(call, status, kind)
        await _send(send, status, answer, request_id, kind)

    def _note(self, call: Call | None, status: int | None, error: str | None) -> None:
        if call is not None and self._request_log is not None:
            call.status, call.error = status, error
            self._request_log.write(call)

    async def _answer(
        self,
        target: str,
        region: str,
        receive: Receive,
        request_id: str,
        call: Call | None,
    ) -> bytes:
        operation = "unknown"
        try:
            operation = protocol.operation_of(target)
            if call is not None:
                call.operation = operation
            body = b"".join(await read_chunks(receive, LARGEST_REQUEST))
            if call is not None:
                call.region, call.tuning_job = region, tuning_job_of(body)
            if self._injector.faults.rules:
                return await self._answer_badly(operation, region, body, call)
            answer = _carry_out(self._operations, operation, region, body)
            if call is not None:
                call.carried_out = True
            return answer
        except protocol.AwsError as error:
            logger.info("%s refused: %s: %s", operation, error.code, error.message)
            raise
        except TooLargeError as error:
            # As the gate says it, which reads what is signed.
            raise protocol.AwsError("RequestEntityTooLarge", f"{error}.", 413) from None
        except (ClientGoneError, faults.DropConnectionError):
            raise
        except Exception:
            logger.exception("%s failed, request %s", operation, request_id)
            raise protocol.AwsError(
                "InternalFailure",
                f"The embedded AMT failed; its log says why (request {request_id}). This is a bug.",
                500,
            ) from None

    async def _answer_badly(self, operation: str, region: str, body: bytes, call: Call | None) -> bytes:
        """Answer a call while faults are asked for."""
        met = None if call is None else call.faults
        wait = self._injector.before(operation, region, met)
        if wait:
            try:
                await asyncio.sleep(wait)
            except asyncio.CancelledError:
                # The server ends, and does not wait for calls that it only holds up.
                raise faults.DropConnectionError from None
        operations = self._operations
        age = self._injector.staleness(operation, met)
        if age is not None:
            operations = Operations(self._engine, self._snapshots.aged(age))
        try:
            answer = _carry_out(operations, operation, region, body)
        except protocol.AwsError:
            # That the call was refused is nothing that the client gets to know then.
            self._injector.after(operation, met)
            raise
        if call is not None:
            call.carried_out = True
        self._injector.after(operation, met)
        return answer

    async def _drop(self, scope: Scope, receive: Receive) -> None:
        """Close the connection of a request, which then gets no answer."""
        connection = self.connections.get(tuple(scope["client"]))
        if isinstance(connection, asyncio.Transport):
            connection.abort()
        # The server may end while this waits, and cancels it then: nothing is left to be done.
        with contextlib.suppress(asyncio.CancelledError):
            while (await receive())["type"] != "http.disconnect":
                pass

    async def _get_faults(self, _: Request) -> Response:
        return _json({**self._injector.faults.as_dict(), "applied": self._injector.applied}, 200)

    async def _put_faults(self, request: Request) -> Response:
        try:
            new = faults.Faults.from_json(
                b"".join(await read_chunks(request.receive, faults.LARGEST_SETTING))
            )
        except (AmtFieldError, TooLargeError) as error:
            return _json({"message": str(error)}, 400)
        except ClientGoneError:
            return Response(status_code=400)  # nobody is left to read it
        return self._set_faults(new)

    async def _delete_faults(self, _: Request) -> Response:
        return self._set_faults(faults.Faults())

    def _set_faults(self, new: faults.Faults) -> Response:
        logger.info("Faults: %s", new.as_dict())
        self._injector.set(new)
        self._snapshots.keep(self._injector.longest_staleness)
        return _json(new.as_dict(), 200)


def beside(sagemaker: ASGIApp, others: ASGIApp) -> ASGIApp:
    """Return an application that gives SageMaker's requests to one application and the rest to another."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        ours = (
            scope["type"] != "http"
            or scope["path"] == FAULTS_PATH
            or any(
                name == b"x-amz-target" and value.startswith(protocol.TARGET_PREFIX.encode())
                for name, value in scope["headers"]
            )
        )
        await (sagemaker if ours else others)(scope, receive, send)

    return application


def _carry_out(operations: Operations, operation: str, region: str, body: bytes) -> bytes:
    if operation not in operations.names:
        raise protocol.AwsError(
            "UnknownOperationException",
            f"The embedded AMT does not offer {operation}. It offers {', '.join(sorted(operations.names))}.",
        )
    params = protocol.read_request(operation, body)
    return protocol.write_answer(operation, operations.call(operation, region, params))


def _request_id() -> str:
    """Return a random UUID; Python's own costs a tenth of a small call."""
    digits = os.urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


async def _send(send: Send, status: int, body: bytes, request_id: str, error: str | None) -> None:
    headers = [
        (b"content-type", protocol.CONTENT_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"x-amzn-requestid", request_id.encode()),
    ]
    if error is not None:
        headers.append((b"x-amzn-errortype", error.encode("ascii", "replace")))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _json(content: Mapping[str, Any], status: int) -> Response:
    return Response(json.dumps(content), status, media_type="application/json")


_HEAD_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
)


class Connections(dict[tuple[str, int], asyncio.BaseTransport]):
    """The open connections of a server by the address of the client.

    uvicorn tells an application who a request is from, but gives it no way to close the connection.
    """

    def protocol(self) -> type[asyncio.Protocol]:
        """Return uvicorn's protocol, made to note its connections here."""
        connections = self

        class Noted(HttpToolsProtocol):
            # uvicorn's faster parser takes request lines, headers and trailers of any size.
            _bytes_without_body = 0

            def on_body(self, body: bytes) -> None:
                self._bytes_without_body = 0
                super().on_body(body)

            def on_message_complete(self) -> None:
                self._bytes_without_body = 0
                super().on_message_complete()

            def data_received(self, data: bytes) -> None:
                if self.transport.is_closing():
                    return
                self._bytes_without_body += len(data)
                super().data_received(data)
                if self._bytes_without_body > LARGEST_HEAD:
                    self.transport.write(_HEAD_TOO_LARGE)
                    self.transport.close()

            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                self._address = tuple(transport.get_extra_info("peername")[:2])
                connections[self._address] = transport
                super().connection_made(transport)

            def connection_lost(self, exc: Exception | None) -> None:
                del connections[self._address]
                super().connection_lost(exc)

        return Noted


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
    # asyncio switches Nagle's algorithm off only where the protocol is stated: without it, each answer on a
    # connection that is kept alive waits 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(256)
    except (OSError, OverflowError, ValueError) as error:
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


def open_state(state_dir: Path) -> tuple[Store, credentials.Credentials]:
    """Open a state folder; return its store, and what its callers sign with.

    :raises AmtFieldError: it cannot be made, written or read, or another server uses it.
    """
    try:
        with contextlib.ExitStack() as unless_read:
            store = Store(state_dir)
            unless_read.callback(store.close)
            signed_with = credentials.of_state_folder(state_dir)
            unless_read.pop_all()
        return store, signed_with
    except (OSError, OperationalError) as error:
        why = error.strerror if isinstance(error, OSError) else f"{DATABASE}: {error.orig}"
        raise AmtFieldError(
            "state-dir",
            str(state_dir),
            f"a folder that can be written, with room to do so ({why})",
            "choose another --state-dir",
        ) from None


def serve(options: ServerOptions, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM, SIGINT or, if asked for, the end of standard input; leave no process behind.

    :param announce: called with the endpoint's address once requests are answered.
    :raises AmtFieldError: an option cannot be used (address, state folder).
    """
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(options.host, options.port))
        store, signed_with = open_state(options.engine.state_dir)
        stack.callback(store.close)
        request_log = None
        if options.request_log is not None:
            request_log = RequestLog(options.request_log)
            stack.callback(request_log.close)
        clock = AmtClock(options.clock_rate, last_seen_ms=store.last_seen_ms())
        # Loaded now, so that the first request is not the slow one.
        service_model()
        asyncio.run(_serve(options, listener, store, clock, request_log, signed_with, announce))


async def _serve(
    options: ServerOptions,
    listener: socket.socket,
    store: Store,
    clock: AmtClock,
    request_log: RequestLog | None,
    signed_with: credentials.Credentials,
    announce: Callable[[str], None],
) -> None:
    host, port = listener.getsockname()[:2]
    endpoint = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    environment = base_environment(
        os.environ,
        options.pass_env,
        endpoint=endpoint,
        access_key_id=signed_with.access_key_id,
        secret_access_key=signed_with.secret_access_key,
    )
    engine = Engine(store, clock, replace(options.engine, environment=environment))
    application = Application(engine, request_log)
    served: ASGIApp = application
    secret_of: Callable[[str], str | None] = _no_secret
    if options.with_aws:
        # Here, and not at the top: who does not ask for it pays nothing for it.
        from airflow_amt.local import aws

        services = aws.AwsServices(
            places=engine.places,
            training_jobs=options.engine.state_dir / "training-jobs",
            account=options.engine.account,
        )
        served = beside(application, aws.create_asgi_app(services))
        secret_of = services.secret_of
    trust = TrustOptions(
        credentials=None if options.any_caller else signed_with,
        hosts=(options.host, *options.allowed_hosts),
        secret_of=secret_of,
    )
    state_folder.note_endpoint(options.engine.state_dir, reachable(endpoint))
    config = uvicorn.Config(
        Gate(served, trust),
        http=application.connections.protocol(),
        ws="none",
        # Nobody else's word about who the client is: connections are found by it.
        proxy_headers=False,
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
        application.start()
        await server.serve(sockets=[listener])
    finally:
        application.close()
        await engine.close()
        engine.storage.close()


def _no_secret(_: str) -> None:
    """Return the secret of a key that the server has not made: there is none."""


class _EndOfInput(asyncio.Protocol):
    """Calls back when standard input closes."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback

    def eof_received(self) -> None:
        self._callback()

    def connection_lost(self, exc: Exception | None) -> None:
        self._callback()
