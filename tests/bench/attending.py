"""What Attends cost the others: the tail of vectors at half of the maximum, without and with one Attend a second."""

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import grpc
from bench.measure import Measure, median, outcome, p99
from bench.pairs import Bar, Outcome
from bench.workloads import MODEL, W1, every, part
from harken.v1 import encoder_pb2 as pb
from harken.v1 import encoder_pb2_grpc
from harken_client.load.pacer import OpenLoop

LENGTHS = (128, 512)
"""Of the texts that are attended to. The bar is of the first; longer ones are reported."""
EVERY_S = 1.0
LONGER = 2.0
"""So many times as long as usual runs each load: a tail needs calls."""


@contextmanager
def attending(target: str, length: int) -> Iterator[list[float]]:
    """Meanwhile ask for all maps once a second, and read them. Gives the seconds of each."""
    took_s: list[float] = []
    left = threading.Event()
    requests = [
        pb.AttendRequest(model=MODEL, input=pb.Input(token_ids=pb.TokenIds(ids=ids)), maps=True, rollout=True)
        for ids in part(every(length), 0, 64)
    ]

    def run() -> None:
        with grpc.insecure_channel(target) as channel:
            stub = encoder_pb2_grpc.EncoderStub(channel)
            next_s = time.monotonic()
            while not left.wait(max(next_s - time.monotonic(), 0.0)):
                next_s += EVERY_S
                began_s = time.monotonic()
                for _ in stub.Attend(requests[len(took_s) % len(requests)]):
                    pass
                took_s.append(time.monotonic() - began_s)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield took_s
    finally:
        left.set()
        thread.join()


def attend(measure: Measure) -> list[Outcome]:
    """W1 at half of the own maximum, in turns without Attends and with one a second of each length."""
    server = measure.hall.harken
    rate = 0.5 * measure.maximum(W1)
    took_s: dict[int, list[float]] = {}
    with attending(server.target, LENGTHS[0]) as loading:
        while not loading:  # the first one loads the graph
            time.sleep(0.1)

    def tail(length: int, offset: int) -> float:
        with ExitStack() as stack:
            seconds = stack.enter_context(attending(server.target, length)) if length else []
            load = measure.load(server, W1, OpenLoop(rate, offset), offset, longer=LONGER)
        took_s.setdefault(length, []).extend(seconds)
        return p99(load.latencies_s())

    rounds = measure.in_turns({str(length): partial(tail, length) for length in (0, *LENGTHS)})
    told = [f"p99 without {1000 * median(rounds, '0'):.1f} ms"]
    for length in LENGTHS:
        ratio = statistics.median(one.runs[str(length)] / one.runs["0"] for one in rounds)
        told.append(
            f"with {length} tokens {1000 * median(rounds, str(length)):.1f} ms ({ratio:.2f}x; {len(took_s[length])} "
            f"Attends, median {1000 * statistics.median(took_s[length]):.0f} ms)"
        )
    wants = f"p99 with one Attend of {LENGTHS[0]} tokens a second, over without"
    bar = Bar("W1 attend", f"{rate:.0f}/s", wants, 1.1, at_least=False)
    return [outcome(bar, rounds, lambda run: run[str(LENGTHS[0])] / run["0"], "", ", ".join(told))]
