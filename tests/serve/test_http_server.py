"""The socket that a server listens at."""

from __future__ import annotations

import socket
from pathlib import Path

from chogori.serve.http_server import listen
from chogori.serve.settings import ServeSettings


def test_connections_send_small_pieces_at_once(tmp_path: Path) -> None:
    """Nagle's algorithm would hold the end of every response, and tokens of a stream, until a delayed
    acknowledgement comes: 40 ms each."""
    for host in ("127.0.0.1", "localhost"):
        with listen(ServeSettings(host=host, port=0, data_dir=tmp_path)) as listening:
            client = socket.create_connection(listening.getsockname()[:2], timeout=10)
            connection, _ = listening.accept()
            with client, connection:
                assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
