"""Who notices a run that takes far longer than it was predicted to."""

from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

MOST_HANGING: Final = 3
"""How many threads at a time may hang in the engine before the process had better start anew: each keeps its memory,
and maybe a core."""

_QUARTERS: Final = 4


class EngineHangs(Exception):
    """More threads than `MOST_HANGING` hang in the engine."""


class Timer(Protocol):
    """What `Later` gives."""

    def cancel(self) -> None:
        """Do not call any more."""
        ...


Later = Callable[[float, Callable[[], None]], Timer]
"""Call something so many seconds from now: an event loop's `call_later`."""


class Watchdog:
    """At most one run a lane is watched. Belongs to the event loop.

    A limit passes in quarters. A process that stands still, and its lanes with it, so loses one of them at most, and
    its runs have the others to end in.
    """

    def __init__(self, later: Later, factor: float = 20.0, min_s: float = 10.0) -> None:
        """A run stalls after `factor` times what was predicted for it, and not before `min_s`."""
        self._later: Final = later
        self._factor: Final = factor
        self._min_s: Final = min_s
        self._timers: Final[dict[int, Timer]] = {}

    def watch(
        self, lane: int, predicted_s: float, on_stalled: Callable[[], None], on_hanging: Callable[[], None]
    ) -> None:
        """Until the lane is `done`: tell when its run stalls, and if it still runs a quarter of the limit later."""
        quarter_s = max(self._factor * predicted_s, self._min_s) / _QUARTERS
        self._wait(lane, quarter_s, [on_hanging, on_stalled, *[_nothing] * (_QUARTERS - 1)])

    def done(self, lane: int) -> None:
        """The lane's run is over, or nobody waits for it any more."""
        self._timers.pop(lane).cancel()

    def _wait(self, lane: int, quarter_s: float, steps: list[Callable[[], None]]) -> None:
        """Take one step after each quarter, from the last to the first."""
        self._timers[lane] = self._later(quarter_s, partial(self._tick, lane, quarter_s, steps))

    def _tick(self, lane: int, quarter_s: float, steps: list[Callable[[], None]]) -> None:
        step = steps.pop()
        if steps:
            self._wait(lane, quarter_s, steps)
        step()


def _nothing() -> None:
    """It may still end."""
