"""What all bidirectional streams have in common: each is read only as fast as it is answered."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Final

import grpc

from harken_server.errors import Expired, NotReady, StreamTooOld
from harken_server.rpc.calls import Call, Calls, Context
from harken_server.service import Service
from harken_server.telemetry.tracing import Trace

MOST_ID_BYTES: Final = 256
"""Of an id that a client gives a message, to find its answer by."""


class Streams:
    """The open streams, so that a drain can make them stop reading."""

    def __init__(self, max_unanswered: int, max_request_s: float, max_age_s: float) -> None:
        self.max_unanswered: Final = max_unanswered
        self.max_request_s: Final = max_request_s
        self.max_age_s: Final = max_age_s
        """0: no limit."""
        self._open: Final[set[Stream]] = set()
        self.draining = False

    def add(self, stream: "Stream") -> None:
        """A stream has begun."""
        self._open.add(stream)

    def remove(self, stream: "Stream") -> None:
        """A stream has ended."""
        self._open.discard(stream)

    def drain(self) -> None:
        """Let every stream answer what it has read, then end as UNAVAILABLE, from which a client resumes elsewhere."""
        self.draining = True
        for stream in self._open:
            stream.stop_reading()


class Stream(ABC):
    """One stream. At most `max_unanswered` of its messages are read and unanswered at any time."""

    in_order: bool
    """Whether answers leave in the order of the messages, or each as soon as it is ready."""

    def __init__(self, service: Service, calls: Calls, streams: Streams, call: Call, context: Context) -> None:
        self.service: Final = service
        self.calls: Final = calls
        self.streams: Final = streams
        self.call: Final = call
        self._context: Final = context
        self._places: Final = asyncio.Semaphore(streams.max_unanswered)
        # What is ready to leave or, in order, comes next; None is the end.
        self._answers: Final[asyncio.Queue[asyncio.Task[tuple[bytes, int]] | None]] = asyncio.Queue()
        self._answering: Final[set[asyncio.Task[tuple[bytes, int]]]] = set()
        self._reader: asyncio.Task[None] | None = None

    def opens(self, _: bytes) -> bool:
        """Whether the first message is about the stream itself, and has no answer. Raises a Refusal of the stream."""
        return False

    def most_unanswered(self) -> int:
        """How many messages may be unanswered, once the stream is open: at most as many as every stream may have."""
        return self.streams.max_unanswered

    @abstractmethod
    async def answer(self, raw: bytes, index: int) -> tuple[bytes, int]:
        """The answer to a message, and the bytes that the service holds until it is written. Raises nothing."""

    async def run(self) -> None:
        """Read, answer, write, until both sides are done. Raises a Refusal that ends the whole stream."""
        self.streams.add(self)
        self._reader = asyncio.create_task(self._read())
        self._reader.add_done_callback(lambda _: self._end_if_done())
        if self.streams.draining:
            self.stop_reading()
        age_s = self.streams.max_age_s
        too_old = asyncio.get_running_loop().call_later(age_s, self.stop_reading) if age_s else None
        try:
            await self._write()
            if not self._reader.cancelled():
                self._reader.result()
        finally:
            if too_old is not None:
                too_old.cancel()
            self.streams.remove(self)
            await _cancel({self._reader, *self._answering})
            while not self._answers.empty():
                self._let_go(self._answers.get_nowait())
        if self._reader.cancelled():
            if self.streams.draining:
                raise NotReady("draining", retry_after_s=1.0)
            # Nothing is to be waited for: the next stream is as welcome as this one was.
            raise StreamTooOld(self.streams.max_age_s, retry_after_s=0.0)

    def traced(self, received_s: float) -> Trace | None:
        """The trace of a message that came then, if it has one of its own."""
        return None if self.call.trace is None else self.call.trace.child(received_s)

    def ended(self, trace: Trace | None, code: grpc.StatusCode) -> None:
        """A message is answered, so."""
        if trace is not None:
            trace.end(code.name, self.calls.clock())

    def stop_reading(self) -> None:
        """Take no further message; what was read is still answered."""
        if self._reader is not None:
            self._reader.cancel()

    async def _write(self) -> None:
        while (answering := await self._answers.get()) is not None:
            try:
                message, _ = await answering
                async with asyncio.timeout(self.streams.max_request_s):
                    await self._context.write(message)
            except TimeoutError:
                # A client that sends and never reads would keep its places for ever.
                raise Expired(by_cap=True) from None
            except grpc.aio.InternalError:
                # What gRPC makes of a write whose caller is gone.
                raise asyncio.CancelledError from None
            finally:
                self._let_go(answering)
            self._places.release()

    def _let_go(self, answering: asyncio.Task[tuple[bytes, int]] | None) -> None:
        if answering is not None and answering.done() and not answering.cancelled():
            _, held_bytes = answering.result()
            self.service.sent(held_bytes)

    async def _read(self) -> None:
        first, index = True, 0
        while True:
            await self._places.acquire()
            raw = await self._context.read()
            if raw is grpc.aio.EOF:
                return
            if first and self.opens(raw):
                # Large answers: fewer of them fill as much memory as a message may.
                for _ in range(self.streams.max_unanswered - self.most_unanswered()):
                    await self._places.acquire()
                self._places.release()
            else:
                answering = asyncio.create_task(self.answer(raw, index))
                index += 1
                self._answering.add(answering)
                if self.in_order:
                    self._answers.put_nowait(answering)
                answering.add_done_callback(self._answered)
            first = False

    def _answered(self, answering: asyncio.Task[tuple[bytes, int]]) -> None:
        self._answering.discard(answering)
        if not self.in_order:
            self._answers.put_nowait(answering)
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._reader is not None and self._reader.done() and not self._answering:
            self._answers.put_nowait(None)


async def _cancel(tasks: Collection[asyncio.Task[None] | asyncio.Task[tuple[bytes, int]]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
