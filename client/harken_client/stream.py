"""Bulk encoding over EncodeStream: bounded memory, every input answered exactly once.

    source -feed-> outbox -write-> [server] -read-> results -> the caller
                     ^ refused for now, or left unanswered |
                     +-------------------------------------+

`window` bounds the inputs between the source and the caller, wherever they stand.
Only the caller makes room, so a slow caller slows the source.
"""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from harken.v1 import encoder_pb2 as pb

from harken_client import wire
from harken_client.calls import CallLimits
from harken_client.checks import checked_text
from harken_client.connection import Connection
from harken_client.errors import (
    DeadlineExceeded,
    HarkenError,
    InternalError,
    InvalidInput,
    Unavailable,
    from_rpc,
    placed,
)
from harken_client.source import StreamInput, identified
from harken_client.values import StreamResult

MAX_WINDOW = 256
"""The server reads no further while this many inputs are unanswered."""

# A server that ends a stream politely but too early is asked again after this long.
_EARLY_END_PAUSE_S = 0.2

# What grpcio says in place of the server's status where the server ended the stream under a
# write (grpc/grpc#36066). The status is lost.
_STATUS_LOST = "Internal error from Core"

_Call: TypeAlias = "grpc.aio.StreamStreamCall[pb.EncodeStreamRequest, pb.EncodeStreamResponse]"


@dataclass(slots=True)
class _Pending:
    position: int
    id: str
    message: pb.Input
    refused_since_s: float = math.inf


class BulkRun:
    """One run of `encode_stream`, over as many streams as it takes."""

    def __init__(
        self,
        connection: Connection,
        opening: pb.StreamOpen,
        limits: CallLimits,
        *,
        ordered: bool,
        window: int,
        timeout_s: float,
    ) -> None:
        self._connection = connection
        self._opening = opening
        self._limits = limits
        self._ordered = ordered
        self._timeout_s = timeout_s
        self._room = asyncio.Semaphore(window)
        # By position, so that what has waited longest goes first; (inf, None) ends the writing.
        self._outbox: asyncio.PriorityQueue[tuple[float, _Pending | None]] = asyncio.PriorityQueue()
        # A result, or the exception that ends the run, or None at its end.
        self._results: asyncio.Queue[StreamResult | BaseException | None] = asyncio.Queue()
        # Those that are ready before the one that comes next, by position.
        self._early: dict[int, StreamResult] = {}
        self._following = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._taken = 0
        self._settled = 0
        # The last answer that was no refusal for now; silence is counted from it.
        self._answered_s = -math.inf
        self._exhausted = False
        # An answer said that this server is going: send it nothing more.
        self._leaving = False
        # Nothing is sent before this moment, because the server asked for a pause.
        self._resume_s = 0.0
        # Since when the server owes an answer; inf while it owes none.
        self._owed_since_s = math.inf
        # The present stream has brought an answer.
        self._heard = asyncio.Event()
        # A server has spoken in this run, so there is one, and a later stream waits for it.
        self._reached = False

    def begin(self, source: AsyncGenerator[StreamInput, None]) -> None:
        """Start to read the source, and to send. Once."""
        self._tasks = [asyncio.create_task(self._report(work)) for work in (self._feed(source), self._converse())]

    async def next(self) -> StreamResult | None:
        """The next result, None after the last. Raises the source's exception, or what no new stream mends."""
        while (result := self._early.pop(self._following, None)) is None:
            event = await self._results.get()
            if event is None:
                return None
            if isinstance(event, BaseException):
                raise event
            if not self._ordered:
                self._room.release()
                return event
            self._early[event.index] = event
        self._following += 1
        self._room.release()
        return result

    async def end(self) -> None:
        """Leave it, whatever is unanswered."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _report(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except BaseException as error:  # whatever ends the work, the reader of the results must learn of it
            self._results.put_nowait(error)
            raise

    async def _feed(self, source: AsyncGenerator[StreamInput, None]) -> None:
        """Take inputs while there is room. What cannot even be written is answered here."""
        # Closed here: what is left to the collector is closed whenever, and by whichever task.
        async with aclosing(source):
            async for value in source:
                await self._room.acquire()
                position = self._taken
                self._taken += 1
                name, content = identified(value)
                try:
                    checked_text("an id", name)
                    message = wire.input_message(content)
                    self._limits.check(message, position)
                except InvalidInput as error:
                    self._settle(StreamResult(position, name, None, error))
                except (TypeError, ValueError) as error:
                    refusal = InvalidInput(str(error), reason="INPUT_UNREADABLE", index=position)
                    self._settle(StreamResult(position, name, None, refusal))
                else:
                    self._outbox.put_nowait((position, _Pending(position, name, message)))
        self._exhausted = True
        self._end_writing_if_finished()

    @property
    def _finished(self) -> bool:
        return self._exhausted and self._settled == self._taken

    def _settle(self, result: StreamResult) -> None:
        self._settled += 1
        self._results.put_nowait(result)
        self._end_writing_if_finished()

    def _end_writing_if_finished(self) -> None:
        if self._finished:
            self._outbox.put_nowait((math.inf, None))

    async def _converse(self) -> None:
        """Open streams until everything is settled. Raises the error that no new stream mends."""
        failures = 0
        refused_since_s = math.inf
        first = True
        while not self._finished:
            before = self._settled
            error = await self._one_stream(resumed=not first)
            first = False
            if self._finished:
                break
            if error is None and self._leaving:
                continue  # each refused input carries its own pause and its own bound
            if error is None:
                unanswered = self._taken - self._settled
                error = Unavailable(
                    f"the stream ended with {unanswered} inputs unanswered", retry_after_s=_EARLY_END_PAUSE_S
                )
            if self._settled != before:
                failures, refused_since_s = 0, math.inf
            refused_since_s = min(refused_since_s, time.monotonic())
            delay_s = self._connection.invited_delay_s(error)
            if delay_s is None:
                failures += 1
                if self._reached or failures < self._connection.max_attempts:
                    delay_s = self._connection.reconnect_delay_s(error, failures)
            if delay_s is None or self._too_late(delay_s, refused_since_s):
                raise error
            await asyncio.sleep(delay_s)
        self._results.put_nowait(None)

    def _too_late(self, delay_s: float, refused_since_s: float) -> bool:
        """Whether a pause would end past the longest silence, counted from the first refusal or a later answer."""
        silent_since_s = max(refused_since_s, self._answered_s)
        return time.monotonic() + delay_s >= silent_since_s + self._timeout_s

    async def _one_stream(self, *, resumed: bool) -> HarkenError | None:
        """Write and read until the stream ends; what it leaves unanswered returns to the outbox.

        Returns None where the stream ended well, or where its status was lost.
        """
        connection = self._connection
        waits = self._reached or connection.wait_for_ready
        call = connection.stub.EncodeStream(wait_for_ready=waits, metadata=connection.metadata)
        sent: dict[int, _Pending] = {}  # by position in this stream
        self._leaving = False
        self._heard.clear()
        self._owed_since_s = time.monotonic()
        reader = asyncio.create_task(self._read(call, sent))
        writer = asyncio.create_task(self._write(call, sent, resumed))
        reader.add_done_callback(lambda _: writer.cancel())
        try:
            while not reader.done():
                left_s = min(self._owed_since_s - time.monotonic(), 0.0) + self._timeout_s
                if left_s <= 0:
                    return DeadlineExceeded(f"no answer for {self._timeout_s:g} s")
                await asyncio.wait({reader, writer}, timeout=left_s, return_when=asyncio.FIRST_EXCEPTION)
                if writer.done() and not writer.cancelled():
                    writer.result()  # raises what the writer did not expect
            return reader.result()
        finally:
            reader.cancel()
            writer.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)
            call.cancel()
            for pending in sent.values():
                self._outbox.put_nowait((pending.position, pending))

    async def _write(self, call: _Call, sent: dict[int, _Pending], resumed: bool) -> None:
        index = 0
        try:
            await call.write(pb.EncodeStreamRequest(open=self._opening))
            self._owed_since_s = math.inf
            while True:
                place, pending = await self._outbox.get()
                if pending is None:
                    break
                if self._leaving:
                    self._outbox.put_nowait((place, pending))
                    break
                sent[index] = pending
                # Only answers already waited for arrive in the pause, so it cannot starve them.
                if (pause_s := self._resume_s - time.monotonic()) > 0:
                    await asyncio.sleep(pause_s)
                if len(sent) == 1:
                    self._owed_since_s = time.monotonic()
                message = pb.StreamInput(id=pending.id, input=pending.message)
                await call.write(pb.EncodeStreamRequest(input=message))
                index += 1
                if resumed:
                    # With nothing being written, the status of a stream that ends at once is not lost.
                    await self._heard.wait()
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the stream is over, and the reader learns why

    async def _read(self, call: _Call, sent: dict[int, _Pending]) -> HarkenError | None:
        try:
            async for response in call:
                pending = sent.pop(response.index, None)
                if pending is None:
                    return InternalError(f"the server answered input {response.index}, which nobody asked")
                self._owed_since_s = time.monotonic() if sent else math.inf
                self._heard.set()
                self._reached = True
                self._answer(pending, response)
        except grpc.aio.AioRpcError as rpc_error:
            if rpc_error.details() == _STATUS_LOST:
                return None
            error = from_rpc(rpc_error)
            self._reached |= error.retry_after_s is not None
            return error
        return None

    def _answer(self, pending: _Pending, response: pb.EncodeStreamResponse) -> None:
        try:
            encoding = wire.encoding(response.result, self._opening.model, self._opening.version)
        except HarkenError as error:
            pending.refused_since_s = min(pending.refused_since_s, time.monotonic())
            delay_s = self._connection.invited_delay_s(error)
            if delay_s is None or self._too_late(delay_s, pending.refused_since_s):
                failure = placed(error, pending.position)
                self._settle(StreamResult(pending.position, pending.id, None, failure))
                return
            # One refusal holds back everything: what follows would be refused as well.
            self._resume_s = max(self._resume_s, time.monotonic() + delay_s)
            self._leaving |= error.code is grpc.StatusCode.UNAVAILABLE
            self._outbox.put_nowait((pending.position, pending))
        else:
            self._answered_s = time.monotonic()
            self._settle(StreamResult(pending.position, pending.id, encoding, None))
