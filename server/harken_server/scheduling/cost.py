"""What a batch costs: a measured surface of seconds(batch, padded length).

Attention makes a sequence's cost c0 + c1 L + c2 L^2, caches make cliffs in it, and a batch pays its longest
row on every row. No polynomial fits that well, so the surface is a table: interpolated linearly between its
points, extrapolated (in length by the last slope, in rows in proportion), monotone in each axis, and scaled by
what really runs.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Final

_LEAST_SCALE: Final = 0.05
_MOST_SCALE: Final = 50.0


class CostSurface:
    """Seconds that one lane needs for a batch of B rows padded to L tokens."""

    def __init__(self, seconds: Mapping[tuple[int, int], float], scale: float = 1.0) -> None:
        """`seconds[B, L]` measured; holes are filled. `scale`: what batches take now over that.

        Raises ValueError without at least one positive cell.
        """
        if not seconds or min(seconds.values()) <= 0.0:
            raise ValueError("a cost surface needs at least one cell, and every cell above 0 s")
        self._batches: Final = sorted({batch for batch, _ in seconds})
        self._lengths: Final = sorted({length for _, length in seconds})
        self._table: Final = _monotone(seconds, self._batches, self._lengths)
        self._scale = scale
        self._share_s: Final[dict[int, float]] = {}
        # At most batch sizes times lengths, so some ten thousand; a decision asks for a hundred of them.
        self._cells: Final[dict[tuple[int, int], float]] = {}

    @property
    def scale(self) -> float:
        """What running batches took over what the table predicts, smoothed. 1 where nothing ran."""
        return self._scale

    def seconds(self, batch: int, padded_length: int) -> float:
        """Predicted seconds for `batch` rows of `padded_length` tokens, padding included."""
        return self._scale * self._table_s(batch, padded_length)

    def alone_s(self, length: int) -> float:
        """What a sequence of this length costs alone. Unscaled seconds."""
        return self._table_s(1, length)

    def share_s(self, length: int) -> float:
        """The least that a sequence of this length costs, riding in its best batch of equals. Unscaled seconds."""
        share_s = self._share_s.get(length)
        if share_s is None:
            share_s = min(self._table_s(batch, length) / batch for batch in self._batches)
            self._share_s[length] = share_s
        return share_s

    def learn(self, batch: int, padded_length: int, took_s: float, weight: float = 0.05) -> None:
        """Let the scale follow a batch that ran. `weight` is how much one batch counts."""
        ratio = took_s / self._table_s(batch, padded_length)
        ratio = min(max(ratio, _LEAST_SCALE), _MOST_SCALE)
        self._scale += weight * (ratio - self._scale)

    def _table_s(self, batch: int, padded_length: int) -> float:
        cached_s = self._cells.get((batch, padded_length))
        if cached_s is None:
            cached_s = self._interpolated_s(batch, padded_length)
            self._cells[batch, padded_length] = cached_s
        return cached_s

    def _interpolated_s(self, batch: int, padded_length: int) -> float:
        row, down = _cell(self._batches, batch)
        column, right = _cell(self._lengths, padded_length)
        # Below the first length the slope may lead under zero, and beyond the last one rows may cross.
        least_s = 0.1 * self._table[0][0]
        at_s = list(accumulate((_between(values, column, right) for values in self._table), max, initial=least_s))[1:]
        if batch > self._batches[-1]:
            return at_s[-1] * batch / self._batches[-1]
        return _between(at_s, row, max(down, 0.0))


def _cell(axis: Sequence[int], at: int) -> tuple[int, float]:
    """The cell of `axis` that holds `at`, and where in it, 0 to 1; outside that where the axis ends."""
    if len(axis) == 1:
        return 0, at / axis[0] - 1.0
    index = min(max(bisect_right(axis, at) - 1, 0), len(axis) - 2)
    return index, (at - axis[index]) / (axis[index + 1] - axis[index])


def _between(values: Sequence[float], index: int, fraction: float) -> float:
    """The value at that fraction between two neighbours; in proportion where there is only one."""
    if len(values) == 1:
        return values[0] * (1.0 + fraction)
    return values[index] + fraction * (values[index + 1] - values[index])


def _monotone(
    seconds: Mapping[tuple[int, int], float], batches: Sequence[int], lengths: Sequence[int]
) -> list[list[float]]:
    """The full table, never falling along either axis. Noise is lifted, holes take their neighbours' slope."""
    table: list[list[float]] = []
    for i, batch in enumerate(batches):
        row: list[float] = []
        for j, length in enumerate(lengths):
            value = seconds.get((batch, length))
            if value is None:
                # Not measured (too large to be worth it): in proportion to the tokens of the nearest cell.
                if i:
                    value = table[i - 1][j] * batch / batches[i - 1]
                elif j:
                    value = row[j - 1] * length / lengths[j - 1]
                else:
                    nearest = min(seconds, key=lambda cell: cell[0] * cell[1])
                    value = seconds[nearest]
            if i:
                value = max(value, table[i - 1][j])
            if j:
                value = max(value, row[j - 1])
            row.append(value)
        table.append(row)
    return table
