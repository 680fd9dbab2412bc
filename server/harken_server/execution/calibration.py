"""Running a grid of batch shapes at the start: it warms every lane, and measures what a batch costs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from threading import Event
from typing import Final

import numpy as np

from harken_server.execution.collate import Buffers, collate
from harken_server.execution.engine import SENTENCE, OutOfMemory, Runner
from harken_server.execution.lanes import Clock, Lane, shrink

Seconds = dict[tuple[int, int], float]
"""By (batch, padded length)."""

_LENGTHS: Final = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_PASSES: Final = 3
_MORE_PASSES: Final = 2
# A known surface holds if its cells differ from a fresh pass by one factor, and that is near 1.
_AGREEMENT: Final = 1.3
# A clock that is throttled, or a neighbour, slows everything alike for a while; the scale is there for that.
_MOST_FACTOR: Final = 3.0
_AGREEING_SHARE: Final = 0.8
# A larger batch, or a longer one, that took this much less than a smaller one is noise, not a cliff.
_SENSELESS: Final = 0.8
_SENSELESS_SHARE: Final = 0.1


@dataclass(frozen=True)
class Grid:
    """The shapes that are measured: powers of two, from small to large."""

    max_length: int
    most_sequences: int
    most_tokens: int
    """Of a batch of several; a single sequence is always allowed, however long."""
    fits: Callable[[int, int], bool] = lambda batch, padded_length: True
    """Whether all lanes may run such a batch at the same time, as the budget of memory is."""

    def cells(self) -> list[tuple[int, int]]:
        """(batch, padded length), the fewest tokens first."""
        lengths = [length for length in _LENGTHS if length < self.max_length] + [self.max_length]
        batches = [2**k for k in range(17) if 2**k <= self.most_sequences]
        cells = [(batch, length) for batch in batches for length in lengths]
        allowed = [(batch, length) for batch, length in cells if batch == 1 or batch * length <= self.most_tokens]
        smallest, *others = sorted(allowed, key=lambda cell: (cell[0] * cell[1], cell[0]))
        return [smallest, *(cell for cell in others if self.fits(*cell))]


@dataclass(frozen=True)
class Calibrated:
    """What batches cost here."""

    seconds: Seconds
    scale: float
    """What they take now over `seconds`."""
    known: bool
    """Whether a known surface was found to hold."""
    noisy: bool
    """Whether the measurements make no sense even when repeated; they are smoothed then."""


def calibrate(
    runners: Sequence[Runner],
    lanes: Sequence[Lane],
    grid: Grid,
    known: Seconds | None,
    limit_s: float,
    clock: Clock,
    *,
    alone: bool = True,
) -> Calibrated:
    """Measure the grid, or find in one pass over it that a known surface still holds. runners[i] runs on lanes[i].

    A cell counts as its fastest run. All lanes run at the same time, as they will under load, so that they share
    caches and memory as they will then. Ends when `limit_s` is over; the smallest cell always runs. A cell for which
    there is no memory is left out. Unless `alone`, the lanes run the batches of requests between any two cells. Raises
    EngineError if the model does not run.
    """
    ends_s = clock() + limit_s
    of_lanes: list[Seconds] = [{} for _ in lanes]

    def measure(passes: int) -> Seconds:
        # Whole passes, not repeats of a cell: a neighbour that disturbs one run of a cell is gone in the next.
        cells = grid.cells() * passes
        parts = list(zip(runners, of_lanes, strict=True))
        for step in [cells] if alone else [[cell] for cell in cells]:
            on_all(lanes, [partial(_measure, runner, step, its_own, ends_s, clock) for runner, its_own in parts])
        measured = {cell for its_own in of_lanes for cell in its_own}
        return {cell: min(its_own[cell] for its_own in of_lanes if cell in its_own) for cell in measured}

    seconds = measure(1)
    if known is not None:
        scale = _agreement(seconds, known)
        if scale is not None:
            return Calibrated(known, scale, known=True, noisy=False)
    seconds = measure(_PASSES - 1)
    if _senseless(seconds):
        seconds = measure(_MORE_PASSES)
    return Calibrated(seconds, 1.0, known=False, noisy=_senseless(seconds))


def _measure(runner: Runner, cells: Sequence[tuple[int, int]], seconds: Seconds, ends_s: float, clock: Clock) -> None:
    """One lane's part, into its own `seconds`."""
    for batch, length in cells:
        if clock() > ends_s and seconds:
            return
        rows = collate([np.ones(length, np.int64)] * batch, Buffers())
        started_s = clock()
        try:
            runner.run(rows, (SENTENCE,))
        except OutOfMemory:
            if not seconds:
                raise
            shrink(runner)
            continue
        took_s = clock() - started_s
        seconds[batch, length] = min(took_s, seconds.get((batch, length), took_s))


def _agreement(seconds: Seconds, known: Seconds) -> float | None:
    """The one factor by which `seconds` differ from `known`; None if they differ by more than one."""
    ratios = [took_s / known[cell] for cell, took_s in seconds.items() if cell in known]
    if len(ratios) < len(seconds):
        return None
    scale = median(ratios)
    agreeing = sum(1 / _AGREEMENT <= ratio / scale <= _AGREEMENT for ratio in ratios)
    holds = 1 / _MOST_FACTOR <= scale <= _MOST_FACTOR and agreeing >= _AGREEING_SHARE * len(ratios)
    return scale if holds else None


def _senseless(seconds: Mapping[tuple[int, int], float]) -> bool:
    """Whether many cells take clearly less than one that is smaller in one axis and equal in the other."""
    fallen = sum(
        any(
            took_s < _SENSELESS * smaller_s
            for (smaller_batch, smaller_length), smaller_s in seconds.items()
            if (smaller_batch == batch and smaller_length < length)
            or (smaller_length == length and smaller_batch < batch)
        )
        for (batch, length), took_s in seconds.items()
    )
    return fallen > _SENSELESS_SHARE * len(seconds)


def on_all(lanes: Sequence[Lane], works: Sequence[Callable[[], None]]) -> None:
    """Run works[i] on lanes[i], all at once, and wait. Raises what one of them raised."""
    done = [Event() for _ in lanes]
    errors: list[Exception] = []
    for lane, work, event in zip(lanes, works, done, strict=True):

        def run(work: Callable[[], None] = work, event: Event = event) -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - crosses from the lane's thread to the caller, who raises it
                errors.append(error)
            event.set()

        lane.call(run)
    for event in done:
        event.wait()
    if errors:
        raise errors[0]
