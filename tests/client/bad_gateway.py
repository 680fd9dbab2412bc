"""A proxy that has no server: to every call over HTTP/2 it says 502, with a page, as proxies do."""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
# Of HPACK: the name that stands 8th in its static table, :status, and a value that is not kept.
_STATUS_502 = b"\x08\x03502"
_BETWEEN_S = 0.05


class BadGateway:
    """Counts the calls."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self.target = f"127.0.0.1:{listening.getsockname()[1]}"
        self.calls = 0

    def serve(self) -> None:
        """Until the socket is closed."""
        with suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as received, suppress(OSError, struct.error):
            received.read(len(_PREFACE))
            connection.sendall(_frame(_SETTINGS, 0, 0))
            while True:
                high, low, kind, flags, stream = struct.unpack(">BHBBI", received.read(9))
                received.read((high << 16) + low)
                if kind == _SETTINGS and not flags & _ACK:
                    connection.sendall(_frame(_SETTINGS, _ACK, 0))
                elif kind == _HEADERS:
                    self.calls += 1
                    connection.sendall(_frame(_HEADERS, _END_HEADERS, stream, _STATUS_502))
                    time.sleep(_BETWEEN_S)
                    connection.sendall(_frame(_DATA, _END_STREAM, stream, b"<html>502 Bad Gateway</html>"))


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">BHBBI", 0, len(payload), kind, flags, stream) + payload


@contextmanager
def bad_gateway() -> Iterator[BadGateway]:
    """One on a free port of loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        gateway = BadGateway(listening)
        threading.Thread(target=gateway.serve, daemon=True).start()
        yield gateway
