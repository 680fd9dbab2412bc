"""What each edge costs: the same sequences in a closed loop over gRPC, Open Inference, and OpenAI over HTTP.

    PYTHONPATH=tests .venv/bin/python tests/bench/edges.py --models models

Against the real model, and against an engine that answers at once; in turns, medians. Requests are made beforehand and
answers are only counted, so that the client costs little and the same. Fails nothing.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import orjson
from bench import null_bundle
from bench.hall import BUILD
from bench.machine import description, process_s
from bench.workloads import MODEL, W1, Mix, messages, sequences
from harken.oip import inference_pb2
from support.server import RunningServer, running_server

Send = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True)
class Figures:
    """Of one run: sequences a second, and CPU microseconds of the server a call."""

    per_s: float
    server_us: float


def own(mix: Mix) -> list[bytes]:
    """harken.v1.Encoder/Encode."""
    return [message.SerializeToString() for message in messages(mix, 0)]


def oip(mix: Mix) -> list[bytes]:
    """inference.GRPCInferenceService/ModelInfer, the sentence vectors alone."""
    kind = inference_pb2.ModelInferRequest
    return [
        kind(
            model_name=MODEL,
            inputs=[kind.InferInputTensor(name="input_ids", datatype="INT64", shape=[1, len(ids)])],
            outputs=[kind.InferRequestedOutputTensor(name="sentence_embedding")],
            raw_input_contents=[np.array(ids, "<i8").tobytes()],
        ).SerializeToString()
        for ids in sequences(mix)
    ]


def openai(mix: Mix) -> list[bytes]:
    """POST /v1/embeddings, base64 as the openai package asks for it."""
    bodies = [orjson.dumps({"model": MODEL, "input": ids, "encoding_format": "base64"}) for ids in sequences(mix)]
    head = "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: "
    return [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]


async def loop(send: Send, requests: "cycle[bytes]", until_s: float, sent: list[float]) -> None:
    """Send the next as soon as the last is answered."""
    while (now_s := time.monotonic()) < until_s:
        await send(next(requests))
        sent.append(now_s)


async def over_grpc(server: RunningServer, method: str, requests: list[bytes], count: int, duration_s: float) -> int:
    """How many were answered, `count` in flight."""
    async with grpc.aio.insecure_channel(server.target) as channel:
        call: Any = channel.unary_unary(method)

        async def send(request: bytes) -> None:
            await call(request)

        return await closed([send] * count, requests, duration_s)


async def over_http(server: RunningServer, requests: list[bytes], count: int, duration_s: float) -> int:
    """The same, each in a connection of its own."""
    streams = [await asyncio.open_connection("127.0.0.1", server.http_port) for _ in range(count)]

    def sender(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Send:
        async def send(request: bytes) -> None:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 "), head
            length = head.lower().split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0]
            await reader.readexactly(int(length))

        return send

    try:
        return await closed([sender(*stream) for stream in streams], requests, duration_s)
    finally:
        for _, writer in streams:
            writer.close()


async def closed(sends: list[Send], requests: list[bytes], duration_s: float) -> int:
    """A closed loop for each of `sends`."""
    sent: list[float] = []
    following = cycle(requests)
    until_s = time.monotonic() + duration_s
    await asyncio.gather(*(loop(send, following, until_s, sent) for send in sends))
    return len(sent)


def figures(server: RunningServer, run: Callable[[float], Awaitable[int]], duration_s: float) -> Figures:
    """One run, after a short one that warms up."""

    async def both() -> tuple[int, float, float]:
        await run(1.0)
        before_s, started_s = process_s(server.process.pid), time.monotonic()
        answered = await run(duration_s)
        return answered, time.monotonic() - started_s, process_s(server.process.pid) - before_s

    answered, took_s, cpu_s = asyncio.run(both())
    return Figures(answered / took_s, 1e6 * cpu_s / answered)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--duration", type=float, default=8.0, help="seconds of each run")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    null_models, count = BUILD / "null", arguments.concurrency
    null_bundle.write(arguments.models / MODEL / "1", null_models)
    mine, theirs, web = own(W1), oip(W1), openai(W1)
    for what, models in (("W1", arguments.models), ("W1, an engine that answers at once", null_models)):
        with running_server(models) as server:
            edges: dict[str, Callable[[float], Awaitable[int]]] = {
                "harken.v1": lambda s: over_grpc(server, "/harken.v1.Encoder/Encode", mine, count, s),
                "Open Inference, gRPC": lambda s: over_grpc(
                    server, "/inference.GRPCInferenceService/ModelInfer", theirs, count, s
                ),
                "OpenAI, HTTP": lambda s: over_http(server, web, count, s),
            }
            runs: dict[str, list[Figures]] = {name: [] for name in edges}
            for number in range(arguments.rounds):
                for name in list(edges) if number % 2 == 0 else list(reversed(edges)):
                    runs[name].append(figures(server, edges[name], arguments.duration))
        print(f"{what}, {count} in flight, {arguments.rounds} rounds of {arguments.duration:g} s:")
        for name, all_of in runs.items():
            per_s = statistics.median(one.per_s for one in all_of)
            server_us = statistics.median(one.server_us for one in all_of)
            print(f"{name:>22}  {per_s:8.1f} sequences/s  {server_us:8.0f} us of the server's CPU a call", flush=True)
    print("\n".join(f"{name}: {value}" for name, value in description().items()))


if __name__ == "__main__":
    main()
