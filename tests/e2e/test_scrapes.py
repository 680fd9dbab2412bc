"""Whoever holds connections to the metrics' port without asking keeps nobody else from it."""

import socket
import struct
from contextlib import ExitStack, suppress
from pathlib import Path

from support.server import RunningServer, running_server

ASKS = b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n"


def connected(server: RunningServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.metrics_port), timeout=30)


def threads(server: RunningServer) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/task").iterdir()))


def test_silent_connections_are_no_more_than_a_limit_and_end_by_themselves(tiny_models: Path) -> None:
    with running_server(tiny_models) as server, ExitStack() as stack:
        server.metrics()
        before = threads(server)
        silent = [stack.enter_context(connected(server)) for _ in range(300)]
        # The oldest have lost their places to those that came later.
        with suppress(ConnectionError):
            assert silent[0].recv(1) == b""
        assert server.metrics()["harken_ready"] == 1.0
        assert threads(server) <= before + 70
        server.wait_until("the end of all", lambda: threads(server) <= before + 5)
        with suppress(ConnectionError):
            assert silent[-1].recv(1) == b""


def test_a_reader_that_breaks_off_is_no_line_in_the_log(tiny_models: Path) -> None:
    with running_server(tiny_models) as server:
        lines = len(server.log)
        for sent in (b"", b"GET /met", ASKS, b"\x16\x03\x01 no HTTP\r\n\r\n"):
            with connected(server) as broken:
                broken.sendall(sent)
                broken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        before = threads(server)
        with connected(server) as unread:
            unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            unread.sendall(ASKS)
            assert server.metrics()["harken_ready"] == 1.0
        server.wait_until("their end", lambda: threads(server) <= before)
        assert server.log[lines:] == []
