"""Raw HTTP requests to an embedded AMT, signed or not, well formed or not."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from airflow_amt.local import RunningServer

#: So much of an answer is read, and one byte more if there is more.
LARGEST_ANSWER = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One HTTP request; ``raw`` replaces all else, and ``half`` closes the connection before its end."""

    service: str = "sagemaker"
    method: str = "POST"
    target: str = "/"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    signed: bool = True
    raw: bytes | None = None
    half: bool = False

    def wire(self, server: RunningServer) -> bytes:
        """Return the bytes that are sent."""
        if self.raw is not None:
            return self.raw
        host = urlsplit(server.endpoint).netloc
        headers = {"Host": host, "Content-Length": str(len(self.body)), "Connection": "close", **self.headers}
        if self.signed:
            headers.update(self._signature(server, headers))
        head = [
            f"{self.method} {self.target} HTTP/1.1",
            *(f"{key}: {value}" for key, value in headers.items()),
        ]
        content = "\r\n".join([*head, "", ""]).encode("utf-8", "surrogatepass") + self.body
        return content[: len(content) // 2] if self.half else content

    def _signature(self, server: RunningServer, headers: Mapping[str, str]) -> dict[str, str]:
        given = getattr(server, "credentials", None)
        key, secret = (given.access_key_id, given.secret_access_key) if given else ("embedded", "embedded")
        request = AWSRequest(
            method=self.method,
            url=server.endpoint + quote(self.target, safe="/?&=%", errors="replace"),
            data=self.body,
            headers={
                name: headers[name] for name in ("Host", "X-Amz-Target", "Content-Type") if name in headers
            },
        )
        SigV4Auth(Credentials(key, secret), self.service, "us-east-1").add_auth(request)
        signed = dict(request.headers.items())
        return {name: signed[name] for name in ("Authorization", "X-Amz-Date") if name not in headers}


def exchange(server: RunningServer, request: Request, timeout: float) -> tuple[int | None, bytes]:
    """Send a request; return status and content, ``None`` if the server closed the connection."""
    address = urlsplit(server.endpoint)
    with socket.create_connection((address.hostname, address.port), timeout=timeout) as connection:
        try:
            content = request.wire(server)
            if request.raw is not None or request.half:
                # The server may rightly wait for more.
                connection.settimeout(0.2)
            connection.sendall(content)
            answer = http.client.HTTPResponse(connection, method=request.method)
            answer.begin()
            return answer.status, answer.read(LARGEST_ANSWER + 1)
        except TimeoutError:
            if request.raw is None and not request.half:
                raise
            return None, b""
        except (OSError, http.client.HTTPException):
            return None, b""
