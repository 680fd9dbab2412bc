"""When a curve is flat. Pure, so that a test can show that a leak is noticed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WARM_UP = 0.2
"""The share of the time in which anything may grow."""


@dataclass(frozen=True)
class Point:
    """A value at a moment from the start."""

    at_s: float
    value: float


@dataclass(frozen=True)
class Growth:
    """How a curve rises once warm.

    trend   the median slope of all pairs of points (Theil-Sen) times the time from the warm-up to the end
    rise    the maximum of the last quarter over that of the second
    """

    trend: float
    rise: float

    @property
    def worst(self) -> float:
        """The greater of the two."""
        return max(self.trend, self.rise)


def growth(points: Sequence[Point], until_s: float) -> Growth:
    """Of a curve over 0 to `until_s`. Raises ValueError if the second or the last quarter has no point."""
    at_s, values = np.array([(one.at_s, one.value) for one in points]).T
    second = values[(at_s >= until_s / 4) & (at_s < until_s / 2)]
    last = values[at_s >= until_s * 3 / 4]
    if not len(second) or not len(last):
        raise ValueError(f"{len(points)} points are too few for a curve of {until_s:g} s")
    warm = at_s >= WARM_UP * until_s
    earlier, later = np.triu_indices(int(warm.sum()), k=1)
    at_s, values = at_s[warm], values[warm]
    slopes_per_s = (values[later] - values[earlier]) / (at_s[later] - at_s[earlier])
    return Growth(float(np.median(slopes_per_s)) * (1 - WARM_UP) * until_s, float(last.max() - second.max()))
