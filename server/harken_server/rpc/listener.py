"""A gRPC server that nobody can end by what stands in a request's path.

gRPC's own loop reads the path of a method that it does not know as UTF-8, outside of the call; one byte that is none
ends the loop, and with it the server and all that it was answering. Here such a path is never read: methods are
registered with gRPC's core, which compares bytes, and everything else is one unknown method.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Final, cast

import grpc
from grpc._cython import cygrpc
from grpc.aio._server import Server

Handlers = Mapping[str, Any]
"""The handlers of a service, by the names of its methods."""


def make_listener(options: Sequence[tuple[str, int]]) -> grpc.aio.Server:
    """As grpc.aio.server makes one, of registered methods only."""
    listener: Any = _Listener(options)
    return cast(grpc.aio.Server, listener)


class _Listener(Server):
    def __init__(self, options: Sequence[tuple[str, int]]) -> None:
        self._loop = cygrpc.get_working_loop()
        self._server = _Core(self._loop, tuple(options))

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Nothing: who adds a service in generated code registers its methods as well, and only those count."""


class _Core(cygrpc.AioServer):  # type: ignore[misc]  # has no types
    def __init__(self, loop: asyncio.AbstractEventLoop, options: tuple[tuple[str, int], ...]) -> None:
        super().__init__(loop, None, (), (), options, None)
        self._event_loop: Final = loop
        self._handlers: Final[dict[str, Any]] = {}
        self._calls: Final[set[asyncio.Task[None]]] = set()

    def add_registered_method_handlers(self, method_handlers: Handlers) -> None:
        super().add_registered_method_handlers(method_handlers)
        self._handlers.update(method_handlers)

    def _make_request_call_future(self, method: bytes | None) -> asyncio.Task[None]:
        """What the loop waits for; None is whatever is not registered. It ends only with the server."""
        request = self._request_call if method is None else partial(self._request_registered_call, method)
        return self._event_loop.create_task(self._take("" if method is None else method.decode(), request))

    async def _take(self, name: str, request: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        found = _Found(self._handlers.get(name))
        while True:
            state = await request()
            answering = cygrpc._handle_rpc(name, found, (), state, self._event_loop, False)
            call = self._event_loop.create_task(cygrpc._schedule_rpc_coro(answering, state, self._event_loop, name))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)


class _Found:
    """What a method's name was resolved to. None ends a call as UNIMPLEMENTED."""

    def __init__(self, handler: Any) -> None:
        self._handler: Final = handler

    def resolve_handler(self, _: grpc.HandlerCallDetails) -> Any:
        return self._handler
