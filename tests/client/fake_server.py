"""A real gRPC server with a fake encoder: deterministic vectors, scripted refusals, a memory of its calls."""

import asyncio
import hashlib
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
import numpy as np
from google.protobuf import any_pb2, duration_pb2
from google.rpc import (  # type: ignore[import-untyped]  # googleapis-common-protos has no py.typed
    error_details_pb2,
    status_pb2,
)
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harken.v1 import debug_pb2, debug_pb2_grpc, encoder_pb2_grpc
from harken.v1 import encoder_pb2 as pb
from numpy.typing import NDArray

HIDDEN = 8
MAX_LENGTH = 16
MAX_UNANSWERED = 256


@dataclass(frozen=True)
class Refusal:
    """What a server may say instead of an answer."""

    code: grpc.StatusCode
    message: str = "refused"
    reason: str = ""
    retry_after_s: float | None = None
    pushback_ms: int | None = None
    fields: tuple[str, ...] = ()

    def status(self) -> Any:
        details: list[Any] = []
        if self.reason:
            details.append(error_details_pb2.ErrorInfo(reason=self.reason, domain="harken"))
        if self.retry_after_s is not None:
            delay = duration_pb2.Duration()
            delay.FromMilliseconds(round(1000 * self.retry_after_s))
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        if self.fields:
            violations = [
                error_details_pb2.BadRequest.FieldViolation(field=name, description=f"{name} is bad")
                for name in self.fields
            ]
            details.append(error_details_pb2.BadRequest(field_violations=violations))
        packed = []
        for detail in details:
            packed.append(any_pb2.Any())
            packed[-1].Pack(detail)
        return status_pb2.Status(code=self.code.value[0], message=self.message, details=packed)

    async def abort(self, context: Any) -> NoReturn:
        trailers: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", self.status().SerializeToString())]
        if self.pushback_ms is not None:
            trailers.append(("grpc-retry-pushback-ms", str(self.pushback_ms)))
        await context.abort(self.code, self.message, tuple(trailers))
        raise AssertionError("abort raises")


DRAINING = Refusal(grpc.StatusCode.UNAVAILABLE, "draining", "DRAINING", retry_after_s=0.01, pushback_ms=10)
BUSY = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "backlog full", "BACKLOG_FULL", retry_after_s=0.01, pushback_ms=10)
BAD = Refusal(grpc.StatusCode.INVALID_ARGUMENT, "bad input", "BAD_INPUT", fields=("inputs[0].text",))

MODEL = pb.ModelInfo(
    name="tiny",
    version=3,
    is_default=True,
    hidden_size=HIDDEN,
    max_length=MAX_LENGTH,
    vocab_size=500,
    layers=2,
    heads=2,
    accepts_text=True,
    precision="fp32",
    device="cpu",
    bundle_sha256="ab" * 32,
    weights_source="random",
    weights_license="Apache-2.0",
)


def vector(content: str | tuple[int, ...]) -> NDArray[np.float32]:
    """float32 [HIDDEN]: what the fake answers for a text, or for token ids."""
    digest = hashlib.sha256(repr(content).encode()).digest()
    return np.frombuffer(digest, np.uint8)[:HIDDEN].astype(np.float32)


def length_of(message: pb.Input) -> int:
    return len(message.token_ids.ids) if message.WhichOneof("content") == "token_ids" else len(message.text.split()) + 2


@dataclass
class FakeEncoder(encoder_pb2_grpc.EncoderServicer, debug_pb2_grpc.DebugServicer):
    """Answers every input, but for what the script below says."""

    refuse_calls: list[Refusal] = field(default_factory=list)
    """One for each of the next Encode calls."""
    refuse_on_call: dict[int, Refusal] = field(default_factory=dict)
    """By the number of the Encode call, from 1."""
    refuse_streams_after: list[tuple[int, Refusal | None]] = field(default_factory=list)
    """For each of the next streams: end it after so many answers, so (None: OK, but early)."""
    refuse_texts: dict[str, Refusal] = field(default_factory=dict)
    """Texts that always fail."""
    refuse_texts_once: dict[str, Refusal] = field(default_factory=dict)
    """Texts that fail the first time."""
    delay_s: float = 0.0
    """Before the answer to an Encode call."""
    pace_s: float = 0.0
    """Before each answer of a stream."""
    stall_streams: bool = False
    """Streams read and never answer."""

    serving_status: int = health_pb2.HealthCheckResponse.SERVING

    real_tokens: int = 0
    padding_tokens: int = 0
    """As if each Encode call were a batch."""

    batches: list[debug_pb2.Batch] | Refusal = field(default_factory=list)
    """What it explains, or why it does not."""

    explained: list[int] = field(default_factory=list)
    """How many batches each call asked for."""
    calls: list[pb.EncodeRequest] = field(default_factory=list)
    called_s: list[float] = field(default_factory=list)
    """When each of them came."""
    tenants: dict[str, str] = field(default_factory=dict)
    authorizations: dict[str, str] = field(default_factory=dict)
    """Who asked last, by method; "" is nobody."""
    attends: list[Refusal | list[pb.AttendResponse]] = field(default_factory=list)
    """For each of the next Attend calls: its messages, or why there are none."""
    attended: list[pb.AttendRequest] = field(default_factory=list)
    similarities: list[pb.SimilarityRequest] = field(default_factory=list)
    models_asked: int = 0
    streams: int = 0
    opened: list[pb.StreamOpen] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    most_unanswered: int = 0
    health: grpc_health.aio.HealthServicer = field(default_factory=grpc_health.aio.HealthServicer)

    def result(self, message: pb.Input, options: pb.EncodeOptions) -> pb.Result:
        refusal = self.refuse_texts_once.pop(message.text, None) or self.refuse_texts.get(message.text)
        if refusal is not None:
            self.refused[message.text] += 1
            return pb.Result(error=refusal.status())
        ids = tuple(message.token_ids.ids)
        row = vector(ids or message.text)
        length = length_of(message)
        if length > MAX_LENGTH and options.truncation != pb.TRUNCATION_RIGHT:
            return pb.Result(error=BAD.status())
        tokens = min(length, MAX_LENGTH)
        rows = np.tile(row, (tokens, 1)) if options.output == pb.OUTPUT_TOKENS else row
        return pb.Result(
            embedding=pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, shape=rows.shape, data=rows.tobytes()),
            tokens=tokens,
            truncated=length > MAX_LENGTH,
            timings=pb.Timings(tokenize_ns=1, queue_ns=2, collate_ns=3, compute_ns=4, scatter_ns=5, total_ns=15),
        )

    async def Attend(  # noqa: N802 - the contract's name
        self, request: pb.AttendRequest, context: Any
    ) -> AsyncIterator[pb.AttendResponse]:
        self.attended.append(request)
        answer = self.attends.pop(0)
        if isinstance(answer, Refusal):
            await answer.abort(context)
        for message in answer:
            yield message

    async def Encode(self, request: pb.EncodeRequest, context: Any) -> pb.EncodeResponse:  # noqa: N802 - the contract's name
        self.calls.append(request)
        self.called_s.append(time.monotonic())
        if refusal := self.refuse_on_call.get(len(self.calls)):
            await refusal.abort(context)
        if self.refuse_calls:
            await self.refuse_calls.pop(0).abort(context)
        if request.model not in ("", MODEL.name):
            await Refusal(grpc.StatusCode.NOT_FOUND, f"no model {request.model}", "MODEL_NOT_FOUND").abort(context)
        await asyncio.sleep(self.delay_s)
        results = [self.result(message, request.options) for message in request.inputs]
        lengths = [result.tokens for result in results]
        self.real_tokens += sum(lengths)
        self.padding_tokens += max(lengths) * len(lengths) - sum(lengths)
        return pb.EncodeResponse(model=MODEL.name, version=MODEL.version, results=results, total_ns=20)

    async def EncodeStream(  # noqa: N802 - the contract's name
        self, request_iterator: AsyncIterator[pb.EncodeStreamRequest], context: Any
    ) -> AsyncIterator[pb.EncodeStreamResponse]:
        self.streams += 1
        last, refusal = self.refuse_streams_after.pop(0) if self.refuse_streams_after else (-1, None)
        opening = pb.StreamOpen()
        unanswered: list[tuple[int, pb.StreamInput]] = []
        room = asyncio.Semaphore(MAX_UNANSWERED)
        arrived = asyncio.Event()
        ended = False

        async def read() -> None:
            nonlocal ended
            index = 0
            async for message in request_iterator:
                if message.HasField("open"):
                    opening.CopyFrom(message.open)
                    self.opened.append(message.open)
                    continue
                await room.acquire()
                unanswered.append((index, message.input))
                self.most_unanswered = max(self.most_unanswered, len(unanswered))
                index += 1
                arrived.set()
            ended = True
            arrived.set()

        reader = asyncio.create_task(read())
        answers = 0
        try:
            while True:
                while not unanswered and not ended:
                    arrived.clear()
                    await arrived.wait()
                if self.stall_streams:
                    await asyncio.sleep(60)
                if answers == last:
                    if refusal is not None:
                        await refusal.abort(context)
                    return
                if not unanswered:
                    return
                await asyncio.sleep(self.pace_s)
                # Any order: the newest and the oldest by turns.
                index, given = unanswered.pop(-1 if answers % 3 else 0)
                room.release()
                answers += 1
                result = self.result(given.input, opening.options)
                if result.HasField("embedding"):
                    self.answered[given.input.text] += 1
                yield pb.EncodeStreamResponse(index=index, id=given.id, result=result)
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def Similarity(self, request: pb.SimilarityRequest, context: Any) -> pb.SimilarityResponse:  # noqa: N802 - the contract's name
        self.similarities.append(request)
        return pb.SimilarityResponse(model=MODEL.name, version=1, matches=[pb.Match(index=1, score=0.5)])

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:  # noqa: N802 - the contract's name
        return pb.ListModelsResponse(models=[MODEL])

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:  # noqa: N802 - the contract's name
        self.models_asked += 1
        if request.model not in ("", MODEL.name):
            await Refusal(grpc.StatusCode.NOT_FOUND, f"no model {request.model}", "MODEL_NOT_FOUND").abort(context)
        return pb.GetModelResponse(model=MODEL)

    async def ExplainBatches(  # noqa: N802 - the contract's name
        self, request: debug_pb2.ExplainBatchesRequest, context: Any
    ) -> debug_pb2.ExplainBatchesResponse:
        self.explained.append(request.last)
        if isinstance(self.batches, Refusal):
            await self.batches.abort(context)
        return debug_pb2.ExplainBatchesResponse(batches=self.batches[-request.last :])


class _Tenants(grpc.aio.ServerInterceptor):
    """Writes down who makes which call, of any service."""

    def __init__(self, fake: FakeEncoder) -> None:
        self._fake = fake

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        metadata = dict(handler_call_details.invocation_metadata or ())
        self._fake.tenants[handler_call_details.method] = metadata.get("harken-tenant", "")
        self._fake.authorizations[handler_call_details.method] = metadata.get("authorization", "")
        return await continuation(handler_call_details)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what the fake's thread does."""
    while not condition():  # noqa: ASYNC110 - it happens in another thread
        await asyncio.sleep(0.005)


@contextmanager
def serving(fake: FakeEncoder, port: int = 0) -> Iterator[str]:
    """Serve on 127.0.0.1 from a thread of its own; yields host:port."""
    ready: list[str] = []
    up, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        server = grpc.aio.server(interceptors=[_Tenants(fake)], options=[("grpc.so_reuseport", 0)])
        encoder_pb2_grpc.add_EncoderServicer_to_server(fake, server)
        debug_pb2_grpc.add_DebugServicer_to_server(fake, server)
        health_pb2_grpc.add_HealthServicer_to_server(fake.health, server)
        await fake.health.set("", fake.serving_status)
        ready.append(f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}")
        await server.start()
        up.set()
        await asyncio.to_thread(stop.wait)
        await server.stop(0)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="fake-server")
    thread.start()
    try:
        assert up.wait(10)
        yield ready[0]
    finally:
        stop.set()
        thread.join()
