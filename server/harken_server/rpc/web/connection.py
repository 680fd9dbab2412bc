"""A connection over HTTP: uvicorn's, with limits on what a client may send before it asks anything, and on when."""

import asyncio
import json
import secrets
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from harken_server.rpc.calls import REQUEST_ID

TRANSPORT: Final = "harken.transport"
"""Of a request's scope: so that a connection whose client does not read can be cut."""

HEAD_BYTES: Final = 64 << 10
"""Most bytes of a request's line, headers and trailers together."""

HEAD_S: Final = 10.0
"""A TLS handshake must be over by then, a connection have asked for something as long after, and the headers of each
later request must be complete; so must a body that was answered before it was."""

_BETWEEN: Final = len(": \r\n")

# A client that still sends hears the answer only once it listens.
_LINGER_S: Final = 2.0


class _HeadTooLarge(Exception):
    """The parser ends with it."""


class Connection(HttpToolsProtocol):
    """One client's. `most` of them may be open; further ones are closed as they come."""

    most: int

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._in_head = True
        # Of the message: what the parser has told, and what it may hold without having told anything since.
        self._head_bytes = 0
        self._untold_bytes = 0
        self._refused = False
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
        """See asyncio.Protocol."""
        if self._refused:
            return
        self._untold_bytes += len(data)
        super().data_received(data)
        if self._untold_bytes > HEAD_BYTES:
            self._refuse_head()

    def send_400_response(self, msg: str) -> None:
        """The parser has raised."""
        if self._head_bytes > HEAD_BYTES:
            self._refuse_head()
        else:
            self._refuse("400 Bad Request", "what came is no HTTP/1.1 request")

    def on_message_begin(self) -> None:
        """The parser has the first byte of a request."""
        super().on_message_begin()
        self.scope[TRANSPORT] = self.transport  # type: ignore[typeddict-unknown-key]  # ours, and named so
        self._head_bytes = 0
        if not self._in_head:
            self._in_head = True
            self._await_head()

    def on_url(self, url: bytes) -> None:
        """The parser has a piece of the path and query. Raises _HeadTooLarge."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """The parser has a header or, after the body, a trailer: which nobody reads. Raises _HeadTooLarge."""
        self._count(len(name) + len(value) + _BETWEEN)
        if self._in_head:
            super().on_header(name, value)

    def on_chunk_header(self) -> None:
        """The parser has the line before a piece of a body, or before the trailers."""
        self._untold_bytes = 0

    def on_body(self, body: bytes) -> None:
        """The parser has a piece of a body."""
        self._untold_bytes = 0
        super().on_body(body)

    def on_headers_complete(self) -> None:
        """The parser has all headers of a request."""
        self._untold_bytes = 0
        self._head_is_there()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The parser has all of a request."""
        self._head_is_there()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer has been handed to the transport."""
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body and not self.transport.is_closing():
            # Answered before its body was there, and nobody waits for the rest: it has as long as the next head.
            self._await_head()

    def _count(self, head_bytes: int) -> None:
        self._untold_bytes = 0
        self._head_bytes += head_bytes
        if self._head_bytes > HEAD_BYTES:
            raise _HeadTooLarge

    def _refuse_head(self) -> None:
        said = f"the request line, headers and trailers exceed the limit of {HEAD_BYTES} bytes"
        self._refuse("431 Request Header Fields Too Large", said)

    def _refuse(self, status: str, error: str) -> None:
        """Say what is wrong with what is no request, and hear no more."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self._head_is_there()
        cycle = self.cycle
        answering = cycle is not None and not cycle.response_complete
        if answering and not cycle.more_body:
            # What came before is fine, and is answered first; the connection ends with it.
            cycle.keep_alive = False
            return
        # Within another answer nothing can be said.
        if not (answering and (cycle.response_started or self.pipeline)):
            content = json.dumps({"error": error})
            head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n"
            head += f"{REQUEST_ID}: {secrets.token_hex(6)}\r\nconnection: close\r\n\r\n"
            self.transport.write((head + content).encode())
        if answering or not self.transport.can_write_eof():
            self.transport.close()
        else:
            self.transport.write_eof()
            self.loop.call_later(_LINGER_S, self.transport.close)

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_S, self.transport.abort)

    def _head_is_there(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
