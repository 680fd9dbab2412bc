"""Running a grid of batch shapes at the start: it warms every lane, and measures what a batch costs."""

from collections.abc import Callable, Iterator, Sequence
from threading import Event, Lock
from typing import Final

import numpy as np

from harken_server.execution.collate import collate
from harken_server.execution.engine import SENTENCE, Runner
from harken_server.execution.lanes import Clock, Lane

_LENGTHS: Final = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_PASSES: Final = 3


def calibrate(
    runner: Runner,
    lanes: Sequence[Lane],
    max_length: int,
    most_sequences: int,
    most_tokens: int,
    limit_s: float,
    clock: Clock,
) -> dict[tuple[int, int], float]:
    """Seconds of the fastest run for each (batch, padded length) of a grid.

    All lanes run at the same time, as they will under load, so that they share caches and memory as they will then.
    The grid goes from small to large and ends at `most_tokens` tokens, or when `limit_s` is over; its smallest
    cell always runs. Raises EngineError if the model does not run.
    """
    cells = list(_grid(max_length, most_sequences, most_tokens))
    seconds: dict[tuple[int, int], float] = {}
    errors: list[Exception] = []
    lock = Lock()
    ends_s = clock() + limit_s

    def work() -> None:
        try:
            # Whole passes, not repeats of a cell: a neighbour that disturbs one run of a cell is gone in the next.
            for batch, length in cells * _PASSES:
                if clock() > ends_s and seconds:
                    return
                rows = collate([np.ones(length, np.int64)] * batch)
                started_s = clock()
                runner.run(rows, (SENTENCE,))
                took_s = clock() - started_s
                with lock:
                    seconds[batch, length] = min(took_s, seconds.get((batch, length), took_s))
        except Exception as error:  # noqa: BLE001 - crosses from the lane's thread to the caller, who raises it
            errors.append(error)

    _on_all(lanes, work)
    if errors:
        raise errors[0]
    return seconds


def _grid(max_length: int, most_sequences: int, most_tokens: int) -> Iterator[tuple[int, int]]:
    lengths = [length for length in _LENGTHS if length < max_length] + [max_length]
    batches = [2**k for k in range(17) if 2**k <= most_sequences]
    cells = [(batch, length) for batch in batches for length in lengths]
    # A single sequence is always allowed, however long.
    allowed = [(batch, length) for batch, length in cells if batch == 1 or batch * length <= most_tokens]
    yield from sorted(allowed, key=lambda cell: (cell[0] * cell[1], cell[0]))


def _on_all(lanes: Sequence[Lane], work: Callable[[], None]) -> None:
    done = [Event() for _ in lanes]
    for lane, event in zip(lanes, done, strict=True):

        def run(event: Event = event) -> None:
            work()
            event.set()

        lane.call(run)
    for event in done:
        event.wait()
