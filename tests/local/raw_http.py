"""Raw HTTP requests to an embedded AMT, signed or not, well formed or not."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote_to_bytes, urlsplit

from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from airflow_amt.local import RunningServer

SIGNATURE = b"Signature: here\r\n"
#: So much of an answer is read, and one byte more if there is more.
LARGEST_ANSWER = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One HTTP request; ``raw`` replaces all else, and ``half`` closes the connection before its end.

    It is signed unless it has an ``Authorization`` of its own. ``spoiled`` puts a text over the signature's
    header from a position on. In ``raw``, the signature of all else takes the place of :data:`SIGNATURE`.
    """

    service: str = "sagemaker"
    method: str = "POST"
    target: str = "/"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    signed: bool = True
    spoiled: tuple[int, str] | None = None
    raw: bytes | None = None
    half: bool = False

    def wire(self, server: RunningServer) -> bytes:
        """Return the bytes that are sent."""
        if self.raw is not None:
            return self.raw if SIGNATURE not in self.raw else self.raw.replace(SIGNATURE, self._lines(server))
        host = urlsplit(server.endpoint).netloc
        headers = {"Host": host, "Content-Length": str(len(self.body)), "Connection": "close", **self.headers}
        if self.signed and "Authorization" not in headers:
            headers = self._signed(server, headers)
            if self.spoiled is not None:
                start, text = self.spoiled
                right = headers["Authorization"]
                headers["Authorization"] = right[:start] + text + right[start + len(text) :]
        head = [
            f"{self.method} {self.target} HTTP/1.1",
            *(f"{key}: {value}" for key, value in headers.items()),
        ]
        content = "\r\n".join([*head, "", ""]).encode("utf-8", "surrogatepass") + self.body
        return content[: len(content) // 2] if self.half else content

    def _lines(self, server: RunningServer) -> bytes:
        signed = self._signed(server, self.headers)
        return f"Authorization: {signed['Authorization']}\r\nX-Amz-Date: {signed['X-Amz-Date']}\r\n".encode()

    def _signed(self, server: RunningServer, headers: Mapping[str, str]) -> dict[str, str]:
        # botocore signs the query as it is given, which has to be the canonical one.
        path, mark, query = self.target.partition("?")
        parts = [part.partition(b"=") for part in query.encode("utf-8", "surrogatepass").split(b"&")]
        canonical = "&".join(f"{_recoded(name)}={_recoded(value)}" for name, _, value in parts)
        request = AWSRequest(method=self.method, url=server.endpoint, data=self.body, headers=dict(headers))
        request.url += path + (f"?{canonical}" if mark else "")
        signer = (S3SigV4Auth if self.service == "s3" else SigV4Auth)(
            Credentials(server.credentials.access_key_id, server.credentials.secret_access_key),
            self.service,
            "us-east-1",
        )
        signer.add_auth(request)
        return dict(request.headers.items())


def _recoded(part: bytes) -> str:
    return quote(unquote_to_bytes(part), safe="-_.~")


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
