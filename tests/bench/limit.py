"""ONNX Runtime without a server around it: what the machine could do. `python -m bench.limit MODEL.onnx`

A process of its own, told by lines of JSON on its standard input, one answer each: see Limit in contestants.py.
"""

import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from threading import Lock, Thread
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort  # type: ignore[import-untyped]  # ships no types
from bench.baselines import model
from bench.batching import Policy
from bench.machine import usable_cores
from bench.workloads import Mix, part

Feed = dict[str, npt.NDArray[np.int64]]


def pass_s(sessions: Sequence[ort.InferenceSession], feeds: Sequence[Feed]) -> float:
    """Seconds in which as many lanes as sessions run all batches, each taking the next."""
    rest, lock = iter(feeds), Lock()

    def lane(session: ort.InferenceSession) -> None:
        while True:
            with lock:
                feed = next(rest, None)
            if feed is None:
                return
            model.encode(session, feed)

    lanes = [Thread(target=lane, args=(session,)) for session in sessions]
    started_s = time.perf_counter()
    for thread in lanes:
        thread.start()
    for thread in lanes:
        thread.join()
    return time.perf_counter() - started_s


def each_s(session: ort.InferenceSession, feeds: Sequence[Feed]) -> list[float]:
    """Seconds of each batch, one after the other, nothing beside it."""
    moments_s = [time.perf_counter()]
    for feed in feeds:
        model.encode(session, feed)
        moments_s.append(time.perf_counter())
    return [end_s - start_s for start_s, end_s in itertools.pairwise(moments_s)]


def main() -> None:
    # One for each lane: where lanes share one, buffers wander between the cores' caches.
    lanes = [model.session(sys.argv[1]) for _ in range(usable_cores())]
    sessions = {usable_cores(): model.session(sys.argv[1], usable_cores()), 1: lanes[0]}

    def whole(policy: dict[str, int], **which: Any) -> float:
        sequences = part_of(**which)
        batches = Policy(**policy).batches([len(sequence) for sequence in sequences])
        # Padded beforehand: the limit is what the engine can do, and no more.
        return pass_s(lanes, [model.padded([sequences[index] for index in batch]) for batch in batches])

    def each(threads: int, **which: Any) -> list[float]:
        return each_s(sessions[threads], [model.padded([sequence]) for sequence in part_of(**which)])

    commands: dict[str, Callable[..., object]] = {"whole": whole, "each": each}
    for line in sys.stdin:
        asked = json.loads(line)
        answer = commands[asked.pop("command")](**asked)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def part_of(lengths: str, offset: int, count: int) -> list[list[int]]:
    return part(Mix("", lengths), offset, count)


if __name__ == "__main__":
    main()
