"""The blocking client: the asynchronous one on an event loop in a thread of its own."""

import asyncio
import concurrent.futures
import functools
import os
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import grpc

from harken_client.client import (
    DEFAULT_MAX_MESSAGE_BYTES,
    DEFAULT_TARGET,
    DEFAULT_TIMEOUT_S,
    AsyncClient,
)
from harken_client.errors import Cancelled
from harken_client.values import Priority

P = ParamSpec("P")
R = TypeVar("R")


def _blocking(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, R]],
) -> "Callable[Concatenate[Client, P], R]":
    @functools.wraps(method)
    def wait(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._wait(method(self._client, *args, **kwargs))

    return wait


def _iterating(
    method: Callable[Concatenate[AsyncClient, P], AsyncGenerator[R, None]],
) -> "Callable[Concatenate[Client, P], Iterator[R]]":
    @functools.wraps(method)
    def iterate(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        values = method(self._client, *args, **kwargs)
        end = object()
        asked: asyncio.Task[Any] | None = None

        async def following() -> R | object:
            nonlocal asked
            asked = asyncio.current_task()
            return await anext(values, end)

        async def leave() -> None:
            # After Ctrl-C the last value may still be on its way, and an iterator that runs cannot be closed.
            if asked is not None and not asked.done():
                asked.cancel()
                await asyncio.wait({asked})
            await values.aclose()

        try:
            while (value := self._wait(following())) is not end:
                yield value  # type: ignore[misc]  # `end` is out, so it is R
        finally:
            # Collected as garbage in the loop's own thread, which must not wait for itself: there `values` is
            # garbage too, and asyncio closes it.
            if not self._closed and threading.current_thread() is not self._thread:
                self._wait(leave())

    return iterate


class Client:
    """The same as AsyncClient, call for call, for code without an event loop.

        with Client("localhost:8001") as client:
            vectors = client.encode(["first text", "second text"])

    May be shared by threads. Not by processes: a client made before a fork refuses to work in
    the child, which makes its own.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        model: str = "",
        version: int = 0,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        max_inputs: int = 1024,
        tenant: str = "",
        priority: Priority = "interactive",
        max_attempts: int = 4,
        wait_for_ready: bool = False,
        credentials: grpc.ChannelCredentials | None = None,
        api_key: str | None = None,
        allow_plaintext_key: bool = False,
    ) -> None:
        self._client = AsyncClient(
            target,
            model=model,
            version=version,
            timeout_s=timeout_s,
            max_message_bytes=max_message_bytes,
            max_inputs=max_inputs,
            tenant=tenant,
            priority=priority,
            max_attempts=max_attempts,
            wait_for_ready=wait_for_ready,
            credentials=credentials,
            api_key=api_key,
            allow_plaintext_key=allow_plaintext_key,
        )
        self._process = os.getpid()
        self._closed = False
        self._closing = threading.Lock()
        self._loop = asyncio.new_event_loop()
        # A daemon, so that a client nobody closed does not hold the process.
        self._thread = threading.Thread(target=self._loop.run_forever, name="harken-client", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    encode = _blocking(AsyncClient.encode)
    encode_detailed = _blocking(AsyncClient.encode_detailed)
    encode_stream = _iterating(AsyncClient.encode_stream)
    similarity = _blocking(AsyncClient.similarity)
    attend = _blocking(AsyncClient.attend)
    models = _blocking(AsyncClient.models)
    model = _blocking(AsyncClient.model)
    explain_batches = _blocking(AsyncClient.explain_batches)
    settings = _blocking(AsyncClient.settings)
    health = _blocking(AsyncClient.health)
    watch_health = _iterating(AsyncClient.watch_health)
    wait_ready = _blocking(AsyncClient.wait_ready)

    def close(self) -> None:
        """Cancel what is under way in any thread and close the connection. Later calls raise RuntimeError."""
        with self._closing:
            if self._closed or self._process != os.getpid():
                return
            self._closed = True
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._loop.shutdown_asyncgens()  # streams that were left half read
        await self._client.close()

    def _wait(self, work: Coroutine[Any, Any, R]) -> R:
        if self._closed or self._process != os.getpid():
            work.close()
            raise RuntimeError(
                "this client is closed; make a new one"
                if self._closed
                else "this client was made before a fork; make a new one in this process"
            )
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise Cancelled("the client was closed during the call") from None
        finally:
            future.cancel()  # on Ctrl-C in this thread; nothing if the call is over
