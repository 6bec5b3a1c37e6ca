"""A door in front of an embedded AMT that holds single calls of single clients, loses them or their answers.

Faults of the embedded AMT are chances and delays for everybody. A race needs more: this client's second call
waits until that client's first has been carried out. So each client (an *actor*) has an address of its own
here, and a script that is asked before a call is handed on and before its answer is handed back.
"""

from __future__ import annotations

import http.client
import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from airflow_amt.local import RunningServer

_HOP_BY_HOP = {"connection", "content-length", "transfer-encoding", "host", "expect", "date", "server"}

#: Longest time that a call is held; whoever holds it longer has lost track of it.
HELD_SECONDS = 90.0


class LostError(Exception):
    """The connection is to be closed: the call is not handed on, or its answer is not handed back."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call as it stands at the door.

    :param actor: who makes it.
    :param kind: the operation in short: :data:`KINDS`, and of ``AddTags`` what is written: ``Intent``,
        ``Record`` or ``AddTags``.
    :param number: the so-many-th call of this kind by this actor, from 1 on.
    :param status: HTTP status of the answer; 0 before there is one.
    """

    actor: str
    kind: str
    number: int
    status: int = 0


KINDS = {
    "DescribeHyperParameterTuningJob": "Describe",
    "StopHyperParameterTuningJob": "Stop",
    "ListTags": "Tags",
    "DeleteTags": "Untag",
}

Look = Callable[[Call], None]


@dataclass(frozen=True, slots=True)
class Script:
    """What is asked about an actor's calls; each may wait, or raise :class:`LostError`.

    :param before: before a call is handed on.
    :param after: after it was carried out, before its answer is handed back.
    """

    before: Look = lambda call: None
    after: Look = lambda call: None


class Gate:
    """The door, in threads of this process.

    :param server: the embedded AMT behind it.
    """

    def __init__(self, server: RunningServer) -> None:
        self._server_behind = server
        self._netloc = urlsplit(server.endpoint).netloc
        self._scripts: dict[str, Script] = {}
        self._counts: dict[str, Counter[str]] = {}
        self._lock = threading.Lock()
        gate = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                gate._serve(self)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Gate:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def address(self, actor: str) -> str:
        """Return the endpoint for one actor."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}/{actor}"

    def script(self, actor: str, script: Script) -> None:
        """Ask this about an actor's calls from now on."""
        with self._lock:
            self._scripts[actor] = script

    def counts(self, actor: str) -> Counter[str]:
        """Return how many calls of each kind an actor has made."""
        with self._lock:
            return Counter(self._counts.get(actor, {}))

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        actor = handler.path.strip("/")
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        kind = _kind(handler.headers.get("X-Amz-Target", ""), body)
        with self._lock:
            count = self._counts.setdefault(actor, Counter())
            count[kind] += 1
            call = Call(actor, kind, count[kind])
            script = self._scripts.get(actor, Script())
        try:
            script.before(call)
            status, headers, answer = self._hand_on(handler, body)
            script.after(Call(actor, kind, call.number, status))
        except LostError:
            handler.close_connection = True
            return
        # Its client may have been killed meanwhile.
        with suppress(ConnectionError):
            handler.send_response(status)
            for key, value in headers:
                if key.lower() not in _HOP_BY_HOP:
                    handler.send_header(key, value)
            handler.send_header("Content-Length", str(len(answer)))
            handler.end_headers()
            handler.wfile.write(answer)

    def _hand_on(
        self, handler: BaseHTTPRequestHandler, body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self._netloc, timeout=HELD_SECONDS)
        try:
            # Signed anew: the path of an actor is not the server's.
            left_out = (*_HOP_BY_HOP, "authorization", "x-amz-date")
            headers = {key: value for key, value in handler.headers.items() if key.lower() not in left_out}
            region = handler.headers["Authorization"].split("/")[2]
            headers = self._server_behind.signed("POST", "/", body, headers, region)
            connection.request("POST", "/", body=body, headers=headers)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        except (ConnectionError, http.client.HTTPException):
            # What the server dropped (a fault), its client gets no answer to either.
            raise LostError from None
        finally:
            connection.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Leave out what a killed client makes of its connection; anything else is an error of this file."""
        import sys

        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _kind(target: str, body: bytes) -> str:
    operation = target.rpartition(".")[2]
    if operation != "AddTags":
        return KINDS.get(operation, operation)
    keys = [str(one.get("Key")) for one in json.loads(body).get("Tags") or ()]
    if any(key.startswith("airflow-amt:stopping") for key in keys):
        return "Intent"
    return "Record" if "airflow-amt:stopped-by" in keys else "AddTags"


class Hold:
    """Holds one call until it is released.

    :param kind: of which kind.
    :param moment: ``before`` it is carried out, or ``after``.
    :param lost: whether it (or its answer) is lost when it is released.
    """

    def __init__(self, kind: str, moment: str, *, lost: bool = False) -> None:
        self.kind = kind
        self.moment = moment
        self.lost = lost
        self.held = threading.Event()
        self._released = threading.Event()

    def script(self) -> Script:
        """Return the script that holds the first such call."""
        return Script(**{self.moment: self._look})

    def release(self) -> None:
        """Let it go."""
        self._released.set()

    def _look(self, call: Call) -> None:
        if call.kind != self.kind or self.held.is_set():
            return
        self.held.set()
        self._released.wait(HELD_SECONDS)
        if self.lost:
            raise LostError


class Conductor:
    """Lets several actors' calls through one at a time, in an order that was chosen beforehand.

    At first calls pass, until each actor has come to its barrier; from then on each waits for its turn. An
    actor that makes no call when it is its turn (it is done, or sleeps) is passed over.

    :param barriers: for each actor, the kind of the call at which it waits for the others.
    :param order: whose turn it is, one actor after the other; afterwards calls pass.
    """

    #: How long an actor has to come for its turn.
    PATIENCE_SECONDS = 0.4

    def __init__(self, barriers: dict[str, str], order: Sequence[str]) -> None:
        self._barriers = barriers
        self._order = list(order)
        self._arrived: set[str] = set()
        self._turn = threading.Condition()
        self._busy = False
        #: Calls in the order in which they were carried out: actor and kind.
        self.played: list[tuple[str, str]] = []

    @property
    def complete(self) -> bool:
        """Whether all came to their barrier."""
        return len(self._arrived) == len(self._barriers)

    def script(self) -> Script:
        """Return the script of each of the actors."""
        return Script(before=self._before, after=self._after)

    def _before(self, call: Call) -> None:
        with self._turn:
            if not self.complete:
                if call.actor in self._arrived or call.kind != self._barriers[call.actor]:
                    return
                self._arrived.add(call.actor)
                self._turn.notify_all()
                if not self._turn.wait_for(lambda: self.complete, HELD_SECONDS):
                    return
            while self._order and (self._busy or self._order[0] != call.actor):
                if not self._turn.wait(self.PATIENCE_SECONDS) and not self._busy and self._order:
                    self._order.pop(0)
                    self._turn.notify_all()
            if self._order:
                self._order.pop(0)
                self._busy = True
            self.played.append((call.actor, call.kind))

    def _after(self, call: Call) -> None:
        with self._turn:
            self._busy = False
            self._turn.notify_all()
