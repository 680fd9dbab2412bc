"""One request over HTTP and its one answer: limits, deadline, disconnect, and the form in which errors are said."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Final, Protocol

import grpc
import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from harken_server.errors import BadValue, Expired, InvalidRequest, NotJson, TooManyBytes
from harken_server.rpc.calls import REQUEST_ID, Call, Calls, Refused
from harken_server.rpc.status import Answer
from harken_server.service import Answers, Service

JSON: Final = "application/json"

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
    """What is sent back. `answers`: what the service holds until then."""

    content: bytes
    answers: Answers | None = None
    media_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


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

    async def answer(self, request: Request, method: str, form: Form, work: Work) -> ASGIApp:
        """Read the body, do the work, and say how it ended. The work is cancelled if the client goes away."""
        call = self.calls.begin(method, None, request.headers.get(REQUEST_ID, ""))
        reply: Reply | None = None

        async def read_and_work(call: Call) -> Reply:
            body = await self._body(request, call)
            return await _unless_gone(request, work(call, body))

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
        answers = reply.answers if reply else None

        async def send_it(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                # A client that never reads would keep the answer for ever.
                async with asyncio.timeout(self._max_request_s):
                    await response(scope, receive, send)
            except TimeoutError:
                raise ConnectionError("the client does not read its answer") from None
            finally:
                if answers is not None:
                    self.service.sent(answers.size_bytes)
                self.calls.ended()

        return send_it

    async def _body(self, request: Request, call: Call) -> bytes:
        """The whole body. Raises InvalidRequest over the limit, and Expired if it comes too slowly."""
        encoding = request.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise InvalidRequest((BadValue("content-encoding", repr(encoding), "identity: bodies come as they are"),))
        limit_bytes = self._max_message_bytes
        chunks: list[bytes] = []
        size_bytes = 0
        try:
            async with asyncio.timeout(call.deadline.remaining_s(self.calls.clock())):
                async for chunk in request.stream():
                    size_bytes += len(chunk)
                    if size_bytes > limit_bytes:
                        break
                    chunks.append(chunk)
        except TimeoutError:
            raise Expired(call.deadline.by_cap) from None
        except ClientDisconnect:
            request.scope[_GONE] = True
            raise asyncio.CancelledError from None
        if size_bytes > limit_bytes:
            announced = request.headers.get("content-length", "")
            size_bytes = max(size_bytes, int(announced) if announced.isdecimal() else 0)
            await _discard(request)
            raise InvalidRequest((TooManyBytes("", size_bytes, limit_bytes),))
        return b"".join(chunks)


def parse_json(body: bytes) -> dict[str, Any]:
    """The object that a body holds. Raises InvalidRequest."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest((NotJson("", str(error)),)) from None
    if not isinstance(value, dict):
        raise InvalidRequest((NotJson("", f"a JSON object is needed, and this is {_KINDS[type(value)]}"),))
    return value


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
    if status == 413:
        response.headers["connection"] = "close"
    return response
