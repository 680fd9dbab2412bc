"""Measuring at the start what batches take: the peak of memory over what an idle engine holds."""

from collections.abc import Callable, Mapping
from typing import Final, Protocol

import numpy as np

from harken_server.execution.calibration import Grid, on_all
from harken_server.execution.collate import Buffers, collate
from harken_server.execution.engine import SENTENCE, TOKENS, OutOfMemory, Runner
from harken_server.execution.lanes import Clock, Lane
from harken_server.scheduling.memory import MemoryModel

Shape = tuple[int, int]
"""Batch and padded length."""
Peaks = Mapping[Shape, int]
"""Bytes by shape."""

# Smaller ones drown in what the rest of the process does meanwhile.
_LEAST_BYTES: Final = 4 << 20
# What a known peak may be exceeded by and still hold.
_AGREEMENT: Final = 1.1


class Growth(Protocol):
    """A probe of memory. Both may raise RuntimeError."""

    def begin(self) -> None:
        """Measure from here."""
        ...

    def bytes(self) -> int:
        """The peak since then, over what was held then."""
        ...


def shapes(grid: Grid, formula: MemoryModel) -> list[Shape]:
    """Which are measured: of each length one row and the largest batch, the greatest first; none that is tiny.

    Rows add up, and lengths in between are interpolated, so these bound everything.
    """
    largest: dict[int, int] = {}
    for batch, length in grid.cells():
        largest[length] = max(batch, largest.get(length, 1))
    ends = {(batch, length) for length, most in largest.items() for batch in (1, most)}
    wanted = [shape for shape in ends if formula.batch_bytes(*shape) >= _LEAST_BYTES]
    return sorted(wanted, key=lambda shape: (formula.batch_bytes(*shape), shape[1]), reverse=True)


def measure_peaks(
    runner: Runner, lane: Lane, wanted: list[Shape], growth: Growth, known: Peaks, limit_s: float, clock: Clock
) -> Peaks:
    """Measure each shape alone on one lane, with all outputs, and after the engine gave back what the last one took.

    `known` is returned as it is if it has every wanted shape and the greatest still takes no more. Ends when `limit_s`
    is over; a shape that finds no memory is left out. Raises EngineError or RuntimeError.
    """
    ends_s = clock() + limit_s
    peaks: dict[Shape, int] = {}

    def measure(some: list[Shape]) -> Callable[[], None]:
        def work() -> None:
            for batch, length in some:
                if clock() > ends_s:
                    return
                rows = collate([np.ones(length, np.int64)] * batch, Buffers())
                runner.shrink()
                growth.begin()
                try:
                    runner.run(rows, (SENTENCE, TOKENS))
                except OutOfMemory:
                    continue
                peaks[batch, length] = growth.bytes()

        return work

    if not set(wanted) <= known.keys():
        on_all([lane], [measure(wanted)])
        return peaks
    on_all([lane], [measure(wanted[:1])])
    if all(peak_bytes <= _AGREEMENT * known[shape] for shape, peak_bytes in peaks.items()):
        return known
    on_all([lane], [measure(wanted[1:])])
    return peaks
