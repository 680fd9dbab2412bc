"""Dynamic batching as servers commonly do it. `python -m bench.baselines.fixed MODEL.onnx`

In the order of arrival, up to 32 calls or until the oldest has waited 3 ms, padded to the longest; one lane of one
thread and one session for each core. The rule is that of Triton's dynamic batcher (max_batch_size 32,
max_queue_delay_microseconds 3000): a lane that is free takes what waits as soon as the batch is full or the delay of
its oldest is over, so that under load it never waits. An event loop reads and writes, which costs less than a thread
for each call. Prints {"port": N}, and {"real_tokens": N, "computed_tokens": N} since the last for each line that it
reads; ends with its standard input.
"""

import asyncio
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
import numpy as np
import numpy.typing as npt
import uvloop
from bench.baselines import model
from bench.machine import usable_cores
from harken.v1 import encoder_pb2 as pb

MOST = 32
DELAY_S = 0.003


@dataclass(frozen=True)
class Waiting:
    ids: list[int]
    since_s: float
    vector: "asyncio.Future[npt.NDArray[np.float32]]"


class Batcher:
    """The queue and the lanes. Belongs to the event loop."""

    def __init__(self, path: str) -> None:
        self.real_tokens = self.computed_tokens = 0
        self._idle = [model.session(path) for _ in range(usable_cores())]
        self._lanes = ThreadPoolExecutor(usable_cores())
        self._free = usable_cores()
        self._queue: deque[Waiting] = deque()
        self._batches: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    async def encode(self, request: pb.EncodeRequest, _: object) -> pb.EncodeResponse:
        waiting = Waiting(model.token_ids(request), time.monotonic(), self._loop.create_future())
        self._queue.append(waiting)
        self._start()
        return model.answer(await waiting.vector, len(waiting.ids))

    def _start(self) -> None:
        """Start what is full or has waited long enough, as far as lanes are free."""
        while self._free and self._queue:
            over_in_s = self._queue[0].since_s + DELAY_S - time.monotonic()
            if len(self._queue) < MOST and over_in_s > 0:
                if self._timer is None:
                    self._timer = self._loop.call_later(over_in_s, self._delay_is_over)
                return
            batch = [self._queue.popleft() for _ in range(min(MOST, len(self._queue)))]
            self._free -= 1
            task = self._loop.create_task(self._run(batch))
            self._batches.add(task)
            task.add_done_callback(self._batches.discard)

    def _delay_is_over(self) -> None:
        self._timer = None
        self._start()

    async def _run(self, batch: list[Waiting]) -> None:
        vectors = await self._loop.run_in_executor(self._lanes, self._compute, [waiting.ids for waiting in batch])
        self.real_tokens += sum(len(waiting.ids) for waiting in batch)
        self.computed_tokens += len(batch) * max(len(waiting.ids) for waiting in batch)
        for waiting, vector in zip(batch, vectors, strict=True):
            if not waiting.vector.done():  # the caller may have left
                waiting.vector.set_result(vector)
        self._free += 1
        self._start()

    def _compute(self, sequences: list[list[int]]) -> npt.NDArray[np.float32]:
        session = self._idle.pop()
        try:
            return model.encode(session, model.padded(sequences))
        finally:
            self._idle.append(session)


async def serve(path: str) -> None:
    batcher = Batcher(path)
    method = grpc.unary_unary_rpc_method_handler(
        batcher.encode,
        request_deserializer=pb.EncodeRequest.FromString,
        response_serializer=pb.EncodeResponse.SerializeToString,
    )
    server = grpc.aio.server(handlers=[model.handler(method)], options=model.OPTIONS)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    model.tell(port=port)
    while await asyncio.to_thread(sys.stdin.readline):
        model.tell(real_tokens=batcher.real_tokens, computed_tokens=batcher.computed_tokens)
        batcher.real_tokens = batcher.computed_tokens = 0
    await server.stop(None)


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
