"""A connection over HTTP: uvicorn's, with limits on what a client may send before it asks anything, and on when."""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

TRANSPORT: Final = "harken.transport"
"""Of a request's scope: so that a connection whose client does not read can be cut."""

HEAD_BYTES: Final = 64 << 10
"""Most bytes of a request's line and headers together."""

HEAD_S: Final = 10.0
"""A connection must have asked for something by then, and the headers of each later request must be complete."""

_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: 73\r\n\r\n"
    b'{"error": "the request line and headers exceed the limit of 65536 bytes"}'
)


class Connection(HttpToolsProtocol):
    """One client's. `most` of them may be open; further ones are closed as they come."""

    most: int

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._in_head = True
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """See asyncio.Protocol."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.abort()
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._head_is_there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol. What is larger than a request's head may be is never kept."""
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
                self.transport.write(_TOO_LARGE)
                self.transport.close()

    def on_message_begin(self) -> None:
        """The parser has the first byte of a request."""
        super().on_message_begin()
        self.scope[TRANSPORT] = self.transport  # type: ignore[typeddict-unknown-key]  # ours, and named so
        if not self._in_head:
            self._in_head, self._head_bytes = True, 0
            self._await_head()

    def on_headers_complete(self) -> None:
        """The parser has all headers of a request."""
        self._head_is_there()
        super().on_headers_complete()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_S, self.transport.abort)

    def _head_is_there(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
