"""The listener of /metrics: a thread for each scrape, which nobody holds for long, and only so many of them."""

import io
import socket
import socketserver
from contextlib import suppress
from threading import Lock, Thread
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

_SCRAPE_S: Final = 10.0
"""Longest that a connection may say nothing, or not read."""

_MOST_CONNECTIONS: Final = 64


class Scrapes:
    """Serves a registry over HTTP, on threads of its own."""

    def __init__(self, registry: CollectorRegistry, listen: str, port: int) -> None:
        """Raises OSError."""
        family, _, _, _, address = socket.getaddrinfo(listen, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        kind = type("_OfFamily", (_Server,), {"address_family": family})
        self._server: Final[_Server] = kind(address[:2], _Scrape)
        self._server.set_app(make_wsgi_app(registry))
        self.port: Final = self._server.server_port
        Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def stop(self) -> None:
        """Close the port. Blocks for a moment."""
        self._server.shutdown()
        self._server.server_close()


class _Scrape(WSGIRequestHandler):
    """One connection, which asks once."""

    timeout = _SCRAPE_S

    def log_message(self, *_: Any) -> None:
        """Say nothing: who scrapes is no event."""

    def get_stderr(self) -> Any:
        """A reader that goes away, or does not read, is none either."""
        return io.StringIO()


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        self._lock: Final = Lock()
        # In the order in which they came.
        self._open: Final[dict[socket.socket, None]] = {}
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        """See socketserver. Beyond the limit the oldest ends: a scrape takes a moment, so it has had its time."""
        with self._lock:
            self._open[request] = None
            oldest = next(iter(self._open)) if len(self._open) > _MOST_CONNECTIONS else None
        if oldest is not None:
            self._forget(oldest)
            with suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """See socketserver: a connection is over."""
        self._forget(request)
        super().shutdown_request(request)

    def handle_error(self, *_: Any) -> None:
        """See socketserver, whose lines are no JSON, and name the caller's address."""

    def _forget(self, request: socket.socket) -> None:
        with self._lock:
            self._open.pop(request, None)
