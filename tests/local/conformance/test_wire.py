"""The connection itself."""

from __future__ import annotations

import socket

from airflow_amt.local.server import listen


def test_answers_on_a_kept_alive_connection_do_not_wait_for_acknowledgements() -> None:
    """asyncio sets TCP_NODELAY only on connections of a socket that states its protocol."""
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()) as client:
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.proto == socket.IPPROTO_TCP
        assert client.getpeername() == listener.getsockname()
