"""Exactly one answer: whatever callers and the engine do, each request ends once, and rightly, and the counters add up.

Unary calls, streams, the Open Inference Protocol and HTTP at once, over one server. Faults are drawn by chance from a
seed: cancels, deadlines, connections that break, bad input, token ids on which the engine fails.
"""

import asyncio
import base64
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

import grpc
import numpy as np
import numpy.typing as npt
from chaos.poison import Poisoned
from harken.oip import inference_pb2
from harken.v1 import encoder_pb2 as pb
from harken.v1 import encoder_pb2_grpc
from support.server import RunningServer

Fault = Literal["none", "cancel", "deadline", "break"]

FAULTS: tuple[Fault, ...] = ("none", "none", "none", "none", "cancel", "deadline", "break")
WORKERS = 48
LOST_S = 60.0
"""A call that has not ended by then has no answer."""
BOUND = 1e-5

_ENDS: dict[Fault, set[str]] = {
    "none": set(),
    "cancel": {"CANCELLED"},
    "break": {"CANCELLED"},
    # It may be refused at the door, as one that cannot be met.
    "deadline": {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"},
}
_INFER = "/inference.GRPCInferenceService/ModelInfer"
_POOL = 400


@dataclass(frozen=True)
class Input:
    """A sequence, and how it has to end: a code, "OK" with this vector."""

    ids: list[int]
    code: str
    vector: npt.NDArray[np.float32] | None = None


@dataclass
class Tally:
    """What the callers saw, counted in inputs."""

    seed: int
    ends: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lost: int = 0

    @property
    def requests(self) -> int:
        """How many have ended, one way or the other."""
        return self.ends.total() + self.lost


class Callers:
    """Many of them at once, until so many inputs were sent. Belongs to its event loop."""

    def __init__(self, server: RunningServer, poison: Poisoned, seed: int) -> None:
        self._server = server
        self._poison = poison
        self._random = Random(seed)  # noqa: S311 - draws faults, guards nothing
        self._good: list[Input] = []
        self.tally = Tally(seed)

    async def run(self, requests: int) -> None:
        """Send until `requests` inputs have ended."""
        async with grpc.aio.insecure_channel(self._server.target) as channel:
            await self._learn(encoder_pb2_grpc.EncoderStub(channel))
            kinds: list[Callable[[grpc.aio.Channel], Awaitable[None]]] = [
                self._unary, self._unary, self._unary, self._infer, self._web, self._stream,
            ]  # fmt: skip

            async def worker() -> None:
                while self.tally.requests < requests:
                    kind = self._random.choice(kinds)
                    try:
                        async with asyncio.timeout(LOST_S):
                            await kind(channel)
                    except TimeoutError:
                        self.tally.lost += 1

            await asyncio.gather(*[worker() for _ in range(WORKERS)])

    async def _learn(self, encoder: Any) -> None:
        """What each sequence of the pool gives, alone and undisturbed."""
        for _ in range(_POOL):
            ids = [self._random.randrange(self._poison.nan) for _ in range(self._random.choice([1, 3, 8, 20, 60, 120]))]
            request = pb.EncodeRequest(inputs=[pb.Input(token_ids=pb.TokenIds(ids=ids))])
            (result,) = (await encoder.Encode(request)).results
            self._good.append(Input(ids, "OK", np.frombuffer(result.embedding.data, "<f4")))

    def _draw(self, bad: bool = True) -> Input:
        """One of the pool or, now and then, poison or bad input; bad input is bad for its whole call."""
        good = self._random.choice(self._good)
        chance = self._random.random()
        if chance < 0.03:
            return Input([*good.ids[:50], self._poison.fails], "INTERNAL")
        if chance < 0.05:
            return Input([self._poison.nan, *good.ids[:50]], "INTERNAL")
        if bad and chance < 0.07:
            return Input(self._random.choice([[], [5000], [7] * 200]), "INVALID_ARGUMENT")
        return good

    def _ended(self, inputs: int, end: str, allowed: set[str], what: str) -> None:
        self.tally.ends[end] += inputs
        if end not in allowed:
            self.tally.wrong.append(f"{what}: ended with {end}, not with {' or '.join(sorted(allowed))}")

    def _answered(self, one: Input, code: str, vector: npt.NDArray[np.float32] | None, what: str) -> None:
        self._ended(1, code, {one.code}, f"{what} of {one.ids[:8]}")
        if vector is not None and one.vector is not None and np.abs(vector - one.vector).max() > BOUND:
            self.tally.wrong.append(f"{what} of {one.ids[:8]}: another vector")

    async def _unary(self, channel: grpc.aio.Channel) -> None:
        inputs = [self._draw() for _ in range(self._random.choice([1, 1, 2, 6]))]
        bad = any(one.code == "INVALID_ARGUMENT" for one in inputs)
        request = pb.EncodeRequest(inputs=[pb.Input(token_ids=pb.TokenIds(ids=one.ids)) for one in inputs])
        fault, allowed = self._fault(bad)
        async with _channel(self._server, channel, fault) as used:
            call = encoder_pb2_grpc.EncoderStub(used).Encode(request, timeout=self._timeout_s(fault))
            try:
                response = await self._disturbed(call, used, fault)
            except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
                self._ended(len(inputs), _code(error), allowed, "Encode")
                return
        if bad or len(response.results) != len(inputs):
            self.tally.wrong.append(f"Encode: {len(response.results)} answers to {[one.ids[:3] for one in inputs]}")
        for one, result in zip(inputs, response.results, strict=True):
            self._answered(one, *_of(result), "Encode")

    async def _infer(self, channel: grpc.aio.Channel) -> None:
        one = self._draw()
        kind = inference_pb2.ModelInferRequest
        request = kind(
            model_name="tiny",
            inputs=[kind.InferInputTensor(name="input_ids", datatype="INT64", shape=[1, len(one.ids)])],
            outputs=[kind.InferRequestedOutputTensor(name="sentence_embedding")],
            raw_input_contents=[np.array(one.ids, "<i8").tobytes()],
        )
        fault, allowed = self._fault(bad=False)
        async with _channel(self._server, channel, fault) as used:
            method: Any = used.unary_unary(_INFER, kind.SerializeToString, inference_pb2.ModelInferResponse.FromString)
            try:
                response = await self._disturbed(method(request, timeout=self._timeout_s(fault)), used, fault)
            except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
                self._ended(1, _code(error), (allowed - {"OK"}) | {one.code}, "ModelInfer")
                return
        self._answered(one, "OK", np.frombuffer(response.raw_output_contents[0], "<f4"), "ModelInfer")

    async def _web(self, _: grpc.aio.Channel) -> None:
        one = self._draw()
        body = json.dumps({"model": "tiny", "input": one.ids, "encoding_format": "base64"}).encode()
        head = b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        breaks = self._random.random() < 0.2
        reader, writer = await asyncio.open_connection("127.0.0.1", self._server.http_port)
        try:
            writer.write(head + (body[: self._random.randrange(len(body) + 1)] if breaks else body))
            if breaks:
                self.tally.faults["break"] += 1
                await asyncio.sleep(self._random.random() * 0.01)
                self.tally.ends["left"] += 1
                return
            raw = await reader.read()
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        status = int(raw.split(b" ", 2)[1])
        code = {200: "OK", 400: "INVALID_ARGUMENT", 429: "RESOURCE_EXHAUSTED", 500: "INTERNAL"}.get(status, str(status))
        vector = None
        if code == "OK":
            (answer,) = json.loads(raw.split(b"\r\n\r\n", 1)[1])["data"]
            vector = np.frombuffer(base64.b64decode(answer["embedding"]), "<f4")
        self._answered(one, code, vector, "HTTP")

    async def _stream(self, channel: grpc.aio.Channel) -> None:
        inputs = [self._draw() for _ in range(self._random.randrange(1, 40))]
        leaves_after = self._random.randrange(len(inputs)) if self._random.random() < 0.3 else len(inputs)

        async def messages() -> Any:
            for one in inputs:
                yield pb.EncodeStreamRequest(input=pb.StreamInput(input=pb.Input(token_ids=pb.TokenIds(ids=one.ids))))

        call = encoder_pb2_grpc.EncoderStub(channel).EncodeStream(messages())
        seen: set[int] = set()
        async for response in call:
            if response.index in seen:
                self.tally.wrong.append(f"EncodeStream: two answers to input {response.index}")
            seen.add(response.index)
            self._answered(inputs[response.index], *_of(response.result), "EncodeStream")
            if len(seen) > leaves_after:
                self.tally.faults["cancel"] += 1
                call.cancel()
                break
        if leaves_after == len(inputs) and len(seen) != len(inputs):
            self.tally.wrong.append(f"EncodeStream: {len(seen)} answers to {len(inputs)} inputs")
        self.tally.ends["left"] += len(inputs) - len(seen)

    def _fault(self, bad: bool) -> tuple[Fault, set[str]]:
        """What happens to the call, and with which codes it may end as a whole."""
        fault = self._random.choice(FAULTS)
        self.tally.faults[fault] += 1
        ends = {"none": set(), "cancel": {"CANCELLED"}, "deadline": {"DEADLINE_EXCEEDED"}, "break": {"CANCELLED"}}[
            fault
        ]
        allowed = {"INVALID_ARGUMENT"} if bad else {"OK"}
        # A deadline may be refused at the door, as one that cannot be met.
        return fault, allowed | ends | ({"RESOURCE_EXHAUSTED"} if fault == "deadline" else set())

    def _timeout_s(self, fault: Fault) -> float:
        return self._random.uniform(0.001, 0.03) if fault == "deadline" else LOST_S

    async def _disturbed(self, call: Any, channel: grpc.aio.Channel, fault: Fault) -> Any:
        if fault == "cancel":
            await asyncio.sleep(self._random.random() * 0.02)
            call.cancel()
        elif fault == "break":
            await asyncio.sleep(self._random.random() * 0.02)
            await channel.close()
        return await call


class _channel:  # noqa: N801 - used as a function
    """The channel that all share or, where it is to break, one of the call's own."""

    def __init__(self, server: RunningServer, shared: grpc.aio.Channel, fault: Fault) -> None:
        self._own = fault == "break"
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.aio.insecure_channel(server.target, options) if self._own else shared

    async def __aenter__(self) -> grpc.aio.Channel:
        return self._channel

    async def __aexit__(self, *_: object) -> None:
        if self._own:
            await self._channel.close()


def _code(error: BaseException) -> str:
    return error.code().name if isinstance(error, grpc.aio.AioRpcError) else "CANCELLED"


def _of(result: pb.Result) -> tuple[str, npt.NDArray[np.float32] | None]:
    if not result.HasField("error"):
        return "OK", np.frombuffer(result.embedding.data, "<f4")
    return {code.value[0]: code.name for code in grpc.StatusCode}[result.error.code], None


def unsettled(server: RunningServer, within_s: float = 10.0) -> str:
    """What of the counters does not add up once nobody asks any more, or ""."""
    ends_s = time.monotonic() + within_s
    while True:
        accepted = server.total("harken_accepted_total")
        ends = {
            end: server.total("harken_finished_total", outcome=end)
            for end in ("answered", "failed", "expired", "cancelled")
        }
        waits = server.total("harken_backlog_sequences")
        if accepted == sum(ends.values()) and not waits:
            return ""
        if time.monotonic() > ends_s:
            return f"{accepted:.0f} accepted, {ends} ended, {waits:.0f} wait"
        time.sleep(0.1)
