"""Servers on loopback that take what notifiers send: mail, and Slack's API and webhooks."""

from __future__ import annotations

import asyncio
import email
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope


@dataclass
class Mailbox:
    """Mail that was received, and the Airflow connection that leads here."""

    port: int
    mails: list[EmailMessage] = field(default_factory=list)
    recipients: list[list[str]] = field(default_factory=list)

    @property
    def connection(self) -> str:
        """The connection as JSON, for ``AIRFLOW_CONN_<ID>``."""
        extra = {"disable_ssl": True, "disable_tls": True, "from_email": "airflow@example.com"}
        return json.dumps({"conn_type": "smtp", "host": "127.0.0.1", "port": self.port, "extra": extra})

    async def handle_DATA(self, server: Any, session: Any, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd
        """Keep a mail; aiosmtpd calls it."""
        assert isinstance(envelope.content, bytes)
        mail = email.message_from_bytes(envelope.content, policy=default)
        assert isinstance(mail, EmailMessage)
        self.recipients.append([str(one) for one in envelope.rcpt_tos])
        self.mails.append(mail)
        return "250 OK"


@contextmanager
def smtp_server() -> Iterator[Mailbox]:
    """Receive mail on a free port of loopback, in a thread of its own."""
    loop = asyncio.new_event_loop()
    mailbox = Mailbox(port=0)
    server = loop.run_until_complete(
        loop.create_server(lambda: SMTP(mailbox, hostname="localhost", loop=loop), "127.0.0.1", 0)
    )
    mailbox.port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever, name="smtp-server")
    thread.start()
    try:
        yield mailbox
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        _finish(loop)


def _finish(loop: asyncio.AbstractEventLoop) -> None:
    """Let the connections' tasks end before their loop does."""
    for task in asyncio.all_tasks(loop):
        task.cancel()
        loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


@dataclass
class SlackServer:
    """What was posted, each with its path and authorisation; ``refuse`` makes it answer with that error."""

    url: str
    posts: list[dict[str, Any]] = field(default_factory=list)
    refuse: str | None = None


@contextmanager
def slack_server() -> Iterator[SlackServer]:
    """Play ``chat.postMessage`` and incoming webhooks on a free port of loopback."""
    slack = SlackServer(url="")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            slack.posts.append(
                {"path": self.path, "authorization": self.headers.get("Authorization"), **body}
            )
            if self.path.startswith("/api/"):
                answer: dict[str, Any] = {"ok": slack.refuse is None}
                if slack.refuse is not None:
                    answer["error"] = slack.refuse
                self._answer(200, json.dumps(answer), "application/json")
            else:
                self._answer(200 if slack.refuse is None else 404, slack.refuse or "ok", "text/plain")

        def _answer(self, status: int, text: str, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing on standard error."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    slack.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="slack-server")
    thread.start()
    try:
        yield slack
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
