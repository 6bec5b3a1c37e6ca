"""A load generator that costs little: one thread, several keep-alive connections, requests made beforehand.

boto3 spends milliseconds of CPU on a call, far more than the servers that are compared here; a load made
with it would measure boto3. Each connection sends its next request when the answer to the one before is
complete.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials


def http_request(
    endpoint: str, operation: str, params: dict[str, Any], key: str = "any", secret: str = "any"
) -> bytes:
    """Return a call as the bytes that go over the wire, signed with an access key and its secret."""
    body = json.dumps(params).encode()
    request = AWSRequest(
        "POST",
        endpoint,
        {
            "Host": urlsplit(endpoint).netloc,
            "Accept-Encoding": "identity",
            "X-Amz-Target": f"SageMaker.{operation}",
            "Content-Type": "application/x-amz-json-1.1",
            "User-Agent": "airflow-amt-benchmark",
        },
        body,
    )
    SigV4Auth(Credentials(key, secret), "sagemaker", "us-east-1").add_auth(request)
    lines = [f"{name}: {value}" for name, value in request.headers.items()]
    head = ["POST / HTTP/1.1", *lines, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(head).encode() + body


@dataclass(slots=True)
class Load:
    """What a load measured.

    :param requests: answers that came, all with status 200.
    :param seconds: how long it took.
    :param bytes: length of the answers' bodies in all.
    :param latencies: seconds from sending a request to the end of its answer.
    """

    requests: int = 0
    seconds: float = 0.0
    bytes: int = 0
    latencies: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.requests / self.seconds

    def percentile_ms(self, share: float) -> float:
        """Return a percentile of the latencies in milliseconds."""
        ordered = sorted(self.latencies)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class _Connection:
    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._received = bytearray()
        self._expected: int | None = None
        self._body_at = 0
        self._closing = False
        self.sent_at = 0.0
        self.socket = self._open()

    def _open(self) -> socket.socket:
        opened = socket.create_connection(self._address, timeout=30)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return opened

    def send(self, request: bytes) -> None:
        self.sent_at = time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> bytes | None:
        """Take what has arrived; return the body once the answer is complete."""
        chunk = self.socket.recv(262_144)
        if hasattr(socket, "TCP_QUICKACK"):
            # A server that writes head and body apart would wait 40 ms for the acknowledgement otherwise;
            # it would then be the kernel's timer that is measured.
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        if not chunk:
            raise ConnectionError("the server closed a connection amid an answer")
        self._received += chunk
        if self._expected is None and not self._read_head():
            return None
        if self._expected is None or len(self._received) < self._expected:
            return None
        body = bytes(self._received[self._body_at :])
        self._received.clear()
        self._expected = None
        return body

    def _read_head(self) -> bool:
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return False
        status, *lines = bytes(self._received[:end]).split(b"\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        if b" 200 " not in status + b" ":
            raise RuntimeError(f"a request was refused: {bytes(self._received)!r}")
        self._body_at = end + 4
        self._expected = self._body_at + int(headers[b"content-length"])
        self._closing = headers.get(b"connection", b"").lower() == b"close" or status.startswith(b"HTTP/1.0")
        return True

    def reopen_if_closed(self) -> bool:
        """Open a new connection where the server keeps none open; say whether that was so."""
        if not self._closing:
            return False
        self.socket.close()
        self.socket = self._open()
        return True


def run(endpoint: str, requests: Sequence[bytes], *, seconds: float, connections: int) -> Load:
    """Send the requests over and over for a time.

    :raises RuntimeError: one was not answered with status 200.
    """
    split = urlsplit(endpoint)
    address = (str(split.hostname), int(split.port or 80))
    load = Load()
    with selectors.DefaultSelector() as selector:
        opened = [_Connection(address) for _ in range(connections)]
        try:
            _drive(selector, opened, requests, load, seconds)
        finally:
            for connection in opened:
                connection.socket.close()
    return load


def _drive(
    selector: selectors.BaseSelector,
    opened: Sequence[_Connection],
    requests: Sequence[bytes],
    load: Load,
    seconds: float,
) -> None:
    position = 0
    begin = time.perf_counter()
    for connection in opened:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        connection.send(requests[position % len(requests)])
        position += 1
    now = begin
    while now - begin < seconds:
        ready = selector.select(timeout=30)
        if not ready:
            raise RuntimeError("no answer within 30 s")
        for key, _ in ready:
            connection = key.data
            body = connection.receive()
            now = time.perf_counter()
            if body is None:
                continue
            load.requests += 1
            load.bytes += len(body)
            load.latencies.append(now - connection.sent_at)
            before = connection.socket
            if connection.reopen_if_closed():
                selector.unregister(before)
                selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.send(requests[position % len(requests)])
            position += 1
    load.seconds = now - begin
