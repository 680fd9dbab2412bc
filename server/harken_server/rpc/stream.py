"""EncodeStream: one bidirectional stream, read only as fast as it is answered."""

import asyncio
from collections.abc import Collection
from typing import Final

import grpc
import structlog
from harken.v1 import encoder_pb2

from harken_server.errors import (
    Expired,
    InvalidRequest,
    NoContent,
    NotReady,
    NotUtf8,
    OutOfPlace,
    Refusal,
    TooManyBytes,
)
from harken_server.execution.engine import TOKENS
from harken_server.rpc.calls import Call, Calls, Context
from harken_server.rpc.convert import input_of, options_of, set_result
from harken_server.rpc.status import Answer, answer, bug
from harken_server.rpc.wire import parse, readable_text
from harken_server.service import Service

log = structlog.get_logger()

_MOST_ID_BYTES: Final = 256
_INPUT: Final = "input.input"


class Streams:
    """The open streams, so that a drain can make them stop reading."""

    def __init__(self, max_unanswered: int, max_request_s: float) -> None:
        self.max_unanswered: Final = max_unanswered
        self.max_request_s: Final = max_request_s
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


class Stream:
    """One stream. At most `max_unanswered` of its inputs are read and unanswered at any time."""

    def __init__(
        self, service: Service, calls: Calls, streams: Streams, call: Call, context: Context, max_message_bytes: int
    ) -> None:
        self._service: Final = service
        self._calls: Final = calls
        self._streams: Final = streams
        self._call: Final = call
        self._context: Final = context
        self._max_message_bytes: Final = max_message_bytes
        self._places: Final = asyncio.Semaphore(streams.max_unanswered)
        # Each with the bytes that it holds until it is written; None is the end.
        self._answers: Final[asyncio.Queue[tuple[bytes, int] | None]] = asyncio.Queue()
        self._answering: Final[set[asyncio.Task[None]]] = set()
        self._options = options_of(encoder_pb2.StreamOpen(), flow=call.number)
        self._index = 0
        self._reader: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Read, answer, write, until both sides are done. Raises a Refusal that ends the whole stream."""
        self._streams.add(self)
        self._reader = asyncio.create_task(self._read())
        self._reader.add_done_callback(lambda _: self._end_if_done())
        if self._streams.draining:
            self.stop_reading()
        try:
            await self._write()
            if not self._reader.cancelled():
                self._reader.result()
        finally:
            self._streams.remove(self)
            await _cancel({self._reader, *self._answering})
            while not self._answers.empty():
                entry = self._answers.get_nowait()
                self._service.sent(entry[1] if entry else 0)
        if self._reader.cancelled():
            raise NotReady("draining", retry_after_s=1.0)

    def stop_reading(self) -> None:
        """Take no further input; what was read is still answered."""
        if self._reader is not None:
            self._reader.cancel()

    async def _write(self) -> None:
        while (entry := await self._answers.get()) is not None:
            message, held_bytes = entry
            try:
                async with asyncio.timeout(self._streams.max_request_s):
                    await self._context.write(message)
            except TimeoutError:
                # A client that sends and never reads would keep its places for ever.
                raise Expired(by_cap=True) from None
            except grpc.aio.InternalError:
                # What gRPC makes of a write whose caller is gone.
                raise asyncio.CancelledError from None
            finally:
                self._service.sent(held_bytes)
            self._places.release()

    async def _read(self) -> None:
        first = True
        while True:
            await self._places.acquire()
            raw = await self._context.read()
            if raw is grpc.aio.EOF:
                return
            if first and self._open(raw):
                # Answers of one vector for each token are large: fewer of them fill as much memory as a message may.
                for _ in range(self._streams.max_unanswered - self._most_unanswered()):
                    await self._places.acquire()
                self._places.release()
            else:
                task = asyncio.create_task(self._answer(raw, self._index))
                self._index += 1
                self._answering.add(task)
                task.add_done_callback(self._answered)
            first = False

    def _open(self, raw: bytes) -> bool:
        """Whether the first message is `open`; then it holds for the stream. Raises InvalidRequest, ModelNotFound."""
        try:
            message = parse(encoder_pb2.EncodeStreamRequest, raw, self._max_message_bytes)
        except InvalidRequest as invalid:
            if any(isinstance(problem, NotUtf8) and problem.field.startswith("open.") for problem in invalid.problems):
                raise
            return False
        if message.WhichOneof("message") != "open":
            return False
        self._options = options_of(message.open, flow=self._call.number)
        self._call.model = self._service.find(self._options.model, self._options.version).manifest.name
        return True

    def _most_unanswered(self) -> int:
        """How many inputs may be unanswered in this stream."""
        if self._options.output != TOKENS:
            return self._streams.max_unanswered
        manifest = self._service.find(self._options.model, self._options.version).manifest
        answer_bytes = manifest.max_length * manifest.hidden_size * 4
        return min(self._streams.max_unanswered, max(1, self._max_message_bytes // answer_bytes))

    async def _answer(self, raw: bytes, index: int) -> None:
        received_s = self._calls.clock()
        response = encoder_pb2.EncodeStreamResponse(index=index)
        try:
            message = self._input(raw, response)
            given = input_of(message.input, _INPUT, self._service.max_length)
            deadline = self._call.deadline.within(self._streams.max_request_s, received_s)
            started_s = self._calls.clock()
            model = self._service.find(self._options.model, self._options.version)
            self._call.model = model.manifest.name
            answers = await self._service.encode(model, self._options, [given], [_INPUT], deadline, started_s)
            set_result(response.result, answers.answers[0], self._call)
            self._answers.put_nowait((response.SerializeToString(), answers.size_bytes))
            self._calls.answered(self._call, received_s, answers)
        except Refusal as refusal:
            refused = answer(refusal, self._call.request_id)
            self._calls.rejected(self._call.model, refusal, refused.reason)
            self._refuse(response, refused)
        except Exception:
            log.exception("input failed", request_id=self._call.request_id)
            self._refuse(response, bug(self._call.request_id))

    def _refuse(self, response: encoder_pb2.EncodeStreamResponse, refused: Answer) -> None:
        response.result.error.CopyFrom(refused.status)
        self._answers.put_nowait((response.SerializeToString(), 0))

    def _input(self, raw: bytes, response: encoder_pb2.EncodeStreamResponse) -> encoder_pb2.StreamInput:
        """The input that the bytes hold; its id goes into the response once it is known. Raises InvalidRequest."""
        try:
            message = parse(encoder_pb2.EncodeStreamRequest, raw, self._max_message_bytes)
        except InvalidRequest:
            response.id = readable_text(encoder_pb2.EncodeStreamRequest, raw, ("input", "id"))
            raise
        kind = message.WhichOneof("message")
        if kind != "input":
            raise InvalidRequest((OutOfPlace("open") if kind == "open" else NoContent("input"),))
        id_bytes = len(message.input.id.encode())
        if id_bytes > _MOST_ID_BYTES:
            raise InvalidRequest((TooManyBytes("input.id", id_bytes, _MOST_ID_BYTES),))
        response.id = message.input.id
        return message.input

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._answering.discard(task)
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._reader is not None and self._reader.done() and not self._answering:
            self._answers.put_nowait(None)


async def _cancel(tasks: Collection[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
