"""One request over HTTP and its one answer: limits, deadline, disconnect, and the form in which errors are said."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from math import ceil
from typing import Any, Final, Protocol

import grpc
import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from harken_server.errors import (
    BacklogFull,
    BadValue,
    Expired,
    InvalidRequest,
    NotJson,
    NotReady,
    Problem,
    TooManyBytes,
    UnknownName,
)
from harken_server.rpc.api_keys import AUTHORIZATION, digest_of
from harken_server.rpc.calls import REQUEST_ID, Call, Calls, Refused, one_of
from harken_server.rpc.status import Answer
from harken_server.rpc.tenants import TENANT
from harken_server.rpc.web.connection import TRANSPORT
from harken_server.service import Service
from harken_server.telemetry.tracing import TRACEPARENT
from harken_server.values import MAX_PROBLEMS, Answers

JSON: Final = "application/json"

_PIECE_BYTES: Final = 64 << 10
# So many of the largest bodies may be on their way at a time.
_BODIES: Final = 16
_DRAIN_S: Final = 0.5
_MOST_DIGITS: Final = 12
_SHOWN: Final = 80

# A client that still sends what was refused hears the answer only once it listens.
_LINGER_S: Final = 2.0
_GONE: Final = "harken.gone"
_KINDS: Final = {
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a bool",
    type(None): "null",
}

STATUS: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
"""Of HTTP for each code that a refusal may have."""


@dataclass(frozen=True)
class Reply:
    """What is sent back. `answers`: what of it the service holds already; `held_bytes`: all that it then holds."""

    content: bytes
    answers: Answers | None = None
    media_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    held_bytes: int = 0


class Form(Protocol):
    """How a protocol says that something went wrong."""

    def error(self, status: int, answer: Answer) -> tuple[int, dict[str, Any]]:
        """The status and the JSON of it."""
        ...


Work = Callable[[Call, bytes], Awaitable[Reply]]


class Exchanges:
    """Belongs to the event loop's thread."""

    def __init__(self, service: Service, calls: Calls, max_message_bytes: int, max_request_s: float) -> None:
        self.service: Final = service
        self.calls: Final = calls
        self._max_message_bytes: Final = max_message_bytes
        self._max_request_s: Final = max_request_s
        # Of bodies that are not complete yet.
        self._body_bytes = 0
        self._most_body_bytes: Final = _BODIES * max_message_bytes
        self._reading: Final[set[asyncio.Timeout]] = set()
        self._draining = False

    async def answer(self, request: Request, method: str, form: Form, work: Work) -> ASGIApp:
        """Read the body, do the work, and say how it ended. The work is cancelled if the client goes away."""
        digest = digest_of(given(request, AUTHORIZATION))
        traceparent = given(request, TRACEPARENT) if self.calls.tracing is not None else ""
        call = self.calls.begin(method, None, given(request, REQUEST_ID), given(request, TENANT), digest, traceparent)
        reply: Reply | None = None

        async def read_and_work(call: Call) -> Reply:
            body = await self._body(request, call)
            return self._hold(await _unless_gone(request, work(call, body)))

        try:
            reply = await self.calls.run(call, read_and_work)
            response = Response(reply.content, 200, reply.headers, reply.media_type)
        except Refused as refused:
            response = _refused(form, refused.answer)
        except asyncio.CancelledError:
            if not request.scope.get(_GONE):
                self.calls.ended()
                raise
            response = Response(status_code=STATUS[grpc.StatusCode.CANCELLED])
        response.headers[REQUEST_ID] = call.request_id

        async def send_it(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                # A client that never reads would keep the answer for ever.
                async with asyncio.timeout(self._max_request_s):
                    await _send(response, send)
            except TimeoutError:
                scope[TRANSPORT].abort()
            finally:
                if reply is not None:
                    self.service.sent(reply.held_bytes)
                self.calls.ended()

        return send_it

    def drain(self) -> None:
        """What has not come yet is not accepted any more."""
        self._draining = True
        for reading in self._reading:
            reading.reschedule(asyncio.get_running_loop().time() + _DRAIN_S)

    def _hold(self, reply: Reply) -> Reply:
        """Count what an answer takes until it is sent: text takes more than the vectors did. Raises BacklogFull."""
        held_bytes = reply.answers.size_bytes if reply.answers else 0
        more_bytes = len(reply.content) - held_bytes
        if more_bytes > 0:
            try:
                self.service.hold(more_bytes)
            except BacklogFull:
                self.service.sent(held_bytes)
                raise
            held_bytes += more_bytes
        return replace(reply, held_bytes=held_bytes)

    async def _body(self, request: Request, call: Call) -> bytes:
        """The whole body. Raises InvalidRequest over the limit, and Expired if it comes too slowly."""
        encoding = request.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise InvalidRequest((BadValue("content-encoding", repr(encoding), "identity: bodies come as they are"),))
        limit_bytes = self._max_message_bytes
        chunks: list[bytes] = []
        size_bytes = 0
        reading = asyncio.timeout(call.deadline.remaining_s(self.calls.clock()))
        self._reading.add(reading)
        try:
            async with reading:
                async for chunk in request.stream():
                    size_bytes += len(chunk)
                    self._body_bytes += len(chunk)
                    if size_bytes > limit_bytes:
                        break
                    if self._body_bytes > self._most_body_bytes:
                        raise BacklogFull(
                            self._body_bytes - len(chunk), len(chunk), self._most_body_bytes, "bytes of requests", 1.0
                        )
                    chunks.append(chunk)
        except TimeoutError:
            raise NotReady("draining", 1.0) if self._draining else Expired(call.deadline.by_cap) from None
        except ClientDisconnect:
            request.scope[_GONE] = True
            raise asyncio.CancelledError from None
        finally:
            self._body_bytes -= size_bytes
            self._reading.discard(reading)
        if size_bytes > limit_bytes:
            announced = request.headers.get("content-length", "")[:_MOST_DIGITS]
            size_bytes = max(size_bytes, int(announced) if announced.isdecimal() else 0)
            chunks.clear()
            await _discard(request)
            raise InvalidRequest((TooManyBytes("", size_bytes, limit_bytes),))
        return b"".join(chunks)


def given(request: Request, name: str) -> str:
    """The value of a header, empty if it is not there. Of several see `one_of`."""
    return one_of(request.headers.getlist(name))


def parse_json(body: bytes) -> dict[str, Any]:
    """The object that a body holds. Raises InvalidRequest."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest((NotJson("", str(error)),)) from None
    if not isinstance(value, dict):
        raise InvalidRequest((NotJson("", f"a JSON object is needed, and this is {_KINDS[type(value)]}"),))
    return value


def shown(value: object) -> str:
    """A value of a body, briefly: whatever its size and depth, it is looked at once."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object of {len(value)}"
    return repr(value[:_SHOWN] if isinstance(value, str) else value)


def unknown_names(given: Mapping[str, object], known: tuple[str, ...]) -> list[Problem]:
    """A problem for each name that is none of `known`, as many as an answer tells."""
    return [UnknownName(name[:_SHOWN], name, known) for name in islice(given.keys() - known, MAX_PROBLEMS)]


def to_json(value: object) -> bytes:
    """With NumPy's arrays and numbers as JSON has them."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


async def _unless_gone(request: Request, work: Awaitable[Reply]) -> Reply:
    """The work's result; cancels it, and itself, as soon as the client goes away."""
    working = asyncio.ensure_future(work)
    listening = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((working, listening), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            request.scope[_GONE] = True
            working.cancel()
        return await working
    finally:
        working.cancel()
        listening.cancel()


async def _send(response: Response, send: Send) -> None:
    """In pieces: each waits until those before it are on their way, so that this ends nearly when all of it is."""
    body = memoryview(response.body)
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    for start in range(0, len(body), _PIECE_BYTES):
        await send({"type": "http.response.body", "body": bytes(body[start : start + _PIECE_BYTES]), "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _discard(request: Request) -> None:
    """Read on for a moment: a client that still sends hears no answer."""
    with suppress(TimeoutError, ClientDisconnect, RuntimeError):
        async with asyncio.timeout(_LINGER_S):
            async for _ in request.stream():
                pass


def _refused(form: Form, answer: Answer) -> Response:
    status = STATUS[answer.code]
    if answer.reason == "TOO_MANY_BYTES" and not answer.field:
        status = 413
    status, content = form.error(status, answer)
    response = Response(to_json(content), status, media_type=JSON)
    if answer.retry_after_s is not None:
        # Whole seconds are all that the standard has; the openai package reads the other one first.
        response.headers["retry-after"] = str(max(ceil(answer.retry_after_s), 1))
        response.headers["retry-after-ms"] = str(max(round(answer.retry_after_s * 1e3), 1))
    else:
        response.headers["x-should-retry"] = "false"
    if status == 401:
        response.headers["www-authenticate"] = "Bearer"
    if status == 413:
        response.headers["connection"] = "close"
    return response
