"""When calls are sent, and how long they took. Pure: no clock, no sleep.

Latency counts from the moment a call was meant to be sent. A generator that falls
behind therefore shows in the latency, and every late send is told, none is dropped
(Gil Tene, "How not to measure latency": coordinated omission).
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

LATE_S = 0.005
"""A send this long after its moment is late. An event loop's timers are good to about 1 ms."""


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """`concurrency` calls are always under way: each end of one is the moment of the next."""

    concurrency: int


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Calls come at their own times, whether or not the server keeps up: a Poisson process."""

    rate_per_s: float
    seed: int

    def sends_s(self, until_s: float) -> Iterator[float]:
        """Moments of sending in seconds from the start, ascending, all below `until_s`."""
        gaps = random.Random(self.seed)  # noqa: S311 - a schedule that can be repeated, no secret
        moment_s = gaps.expovariate(self.rate_per_s)
        while moment_s < until_s:
            yield moment_s
            moment_s += gaps.expovariate(self.rate_per_s)


@dataclass(frozen=True, slots=True)
class Call:
    """One call that has ended. Moments in seconds from the start of the run.

    sequences, tokens   what was answered
    failures            how often each error occurred, by code and reason; a call or its inputs
    """

    intended_s: float
    sent_s: float
    finished_s: float
    sequences: int
    tokens: int
    failures: tuple[str, ...] = ()

    @property
    def latency_s(self) -> float:
        return self.finished_s - self.intended_s

    @property
    def late_s(self) -> float:
        return self.sent_s - self.intended_s
