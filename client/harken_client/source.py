"""The inputs of a stream, from wherever they come, as one asynchronous iterator of (id, input)."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from harken_client.values import Input

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands where an input could not be read: it fails, and the others go on."""

    why: str


StreamInput: TypeAlias = Input | tuple[str, Input] | Unreadable
"""An input, or a pair of the caller's id and an input."""

_READ_AHEAD = 64


def identified(value: StreamInput) -> tuple[str, Input | Unreadable]:
    """Tell a pair (id, input) from an input: only a pair is a tuple that starts with a text."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        return value
    return "", value


async def iterate(values: AsyncIterable[T] | Iterable[T]) -> AsyncGenerator[T, None]:
    """Iterate over anything without ever holding the event loop.

    A sequence is at hand. Any other plain iterable, a file or a generator, may wait at each
    step, so a thread of its own runs it, at most 64 values ahead.
    """
    if isinstance(values, AsyncIterable):
        async for value in values:
            yield value
    elif isinstance(values, Sequence):
        for value in values:
            yield value
    else:
        async with aclosing(_in_thread(iter(values))) as read:
            async for value in read:
                yield value


async def _in_thread(values: Iterator[T]) -> AsyncGenerator[T, None]:
    loop = asyncio.get_running_loop()
    # A value each, then at the end the exception that ended the iteration, or None.
    arrived: deque[tuple[T] | BaseException | None] = deque()
    room = threading.Semaphore(_READ_AHEAD)
    wake = asyncio.Event()
    waits = left = False

    def tell(event: tuple[T] | BaseException | None) -> None:
        arrived.append(event)
        # Waking a loop costs a system call, so only one that waits is woken.
        if waits and not left:
            loop.call_soon_threadsafe(wake.set)

    def run() -> None:
        try:
            for value in values:
                room.acquire()
                if left:
                    return
                tell((value,))
            tell(None)
        except BaseException as error:  # noqa: BLE001 - whatever ends the iteration is raised to its reader
            tell(error)

    # A daemon, so that a read that never returns cannot hold the process at its exit.
    threading.Thread(target=run, name="harken-source", daemon=True).start()
    try:
        while True:
            waits = True
            while not arrived:
                await wake.wait()
                wake.clear()
            waits = False
            event = arrived.popleft()
            if event is None:
                return
            if isinstance(event, BaseException):
                raise event
            room.release()
            yield event[0]
    finally:
        left = True
        room.release()
