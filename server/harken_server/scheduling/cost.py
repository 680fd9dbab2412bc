"""What a batch costs: a measured surface of seconds(batch, padded length).

Attention makes a sequence's cost c0 + c1 L + c2 L^2, caches make cliffs in it, and a batch pays its longest
row on every row. No polynomial fits that well, so the surface is a table: interpolated linearly between its
points, extrapolated (in length by the last slope, in rows in proportion), and monotone in each axis.

Two things are learned from what really runs: fast, one scale for all cells (a slow neighbour, a throttled clock); and
slowly, a bounded correction of each point, shared out among the four around a batch as the interpolation weighs them.
Between the measured points lie further ones, which only learn: so cliffs between those are found.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from math import exp, log
from typing import Final

_LEAST_SCALE: Final = 0.05
_MOST_SCALE: Final = 50.0

_RATE: Final = 0.05
"""How much of a batch's error a point that lies right there takes over."""

_MOST_ERROR: Final = 0.3
"""As a logarithm: more than this of one error is an accident, or a change of scale."""

_MOST_CORRECTION: Final = log(3.0)

_APPLY_EVERY: Final = 64
"""Batches between two uses of what was learned: each makes all interpolated cells be computed anew."""

_NOTICEABLE: Final = 0.01
"""Corrections that change no point by this share are not worth that."""


class CostSurface:
    """Seconds that one lane needs for a batch of B rows padded to L tokens."""

    def __init__(self, seconds: Mapping[tuple[int, int], float], scale: float = 1.0) -> None:
        """`seconds[B, L]` measured; holes are filled. `scale`: what batches take now over that.

        Raises ValueError without at least one positive cell.
        """
        if not seconds or min(seconds.values()) <= 0.0:
            raise ValueError("a cost surface needs at least one cell, and every cell above 0 s")
        batches = sorted({batch for batch, _ in seconds})
        lengths = sorted({length for _, length in seconds})
        self._batches: Final = _halved(batches)
        self._lengths: Final = _halved(_halved(lengths))
        by_length = [_at(self._lengths, lengths, row) for row in _monotone(seconds, batches, lengths)]
        by_batch = [_at(self._batches, batches, column) for column in zip(*by_length, strict=True)]
        self._measured: Final = [list(row) for row in zip(*by_batch, strict=True)]
        self._table = self._measured
        self._scale = scale
        # Of each point: the logarithm of what it takes over what was measured, and how often it was visited lately.
        self._corrections: Final = [[0.0] * len(self._lengths) for _ in self._batches]
        self._visits: Final = [[0.0] * len(self._lengths) for _ in self._batches]
        self._learned = 0
        self._share_s: Final[dict[int, float]] = {}
        # At most batch sizes times lengths, so some ten thousand; a decision asks for a hundred of them.
        self._cells: Final[dict[tuple[int, int], float]] = {}

    def inherited(self, times: float = 1.0) -> "CostSurface":
        """A surface of its own that starts with so many times what this one knows by now."""
        cells = {
            (batch, length): times * self._table[i][j]
            for i, batch in enumerate(self._batches)
            for j, length in enumerate(self._lengths)
        }
        return CostSurface(cells, self._scale)

    @property
    def scale(self) -> float:
        """What running batches took over what the table predicts, smoothed. 1 where nothing ran."""
        return self._scale

    def seconds(self, batch: int, padded_length: int) -> float:
        """Predicted seconds for `batch` rows of `padded_length` tokens, padding included."""
        return self._scale * self.table_s(batch, padded_length)

    def table_s(self, batch: int, padded_length: int) -> float:
        """`seconds`, unscaled: what a choice between batches needs."""
        cell = (batch, padded_length)
        if cell not in self._cells:
            self._cells[cell] = self._interpolated_s(batch, padded_length)
        return self._cells[cell]

    def alone_s(self, length: int) -> float:
        """What a sequence of this length costs alone. Unscaled seconds."""
        return self.table_s(1, length)

    def share_s(self, length: int) -> float:
        """The least that a sequence of this length costs, riding in its best batch of equals. Unscaled seconds."""
        share_s = self._share_s.get(length)
        if share_s is None:
            share_s = min(self.table_s(batch, length) / batch for batch in self._batches)
            self._share_s[length] = share_s
        return share_s

    def learn(self, batch: int, padded_length: int, took_s: float, weight: float = 0.05) -> None:
        """Let the scale, by `weight`, and the points around it follow a batch that ran."""
        ratio = took_s / self.table_s(batch, padded_length)
        ratio = min(max(ratio, _LEAST_SCALE), _MOST_SCALE)
        self._scale += weight * (ratio - self._scale)
        error = min(max(log(ratio / self._scale), -_MOST_ERROR), _MOST_ERROR)
        for row, column, share in self._around(batch, padded_length):
            self._corrections[row][column] += _RATE * share * error
            self._visits[row][column] += share
        self._learned += 1
        if self._learned % _APPLY_EVERY == 0:
            self._apply()

    def relax(self, scale: float, weight: float = 0.01) -> None:
        """Let the scale drift to that of another lane on the same machine, lest what never runs is never learned."""
        self._scale += weight * (scale - self._scale)

    def _apply(self) -> None:
        """Use what was learned. What all visited points have in common belongs to the scale."""
        visits = sum(map(sum, self._visits))
        common = 0.0
        for corrections, row in zip(self._corrections, self._visits, strict=True):
            common += sum(map(float.__mul__, corrections, row)) / visits
        table: list[list[float]] = []
        for i, measured in enumerate(self._measured):
            row_s: list[float] = []
            for j, measured_s in enumerate(measured):
                if self._visits[i][j] > 0.0:
                    correction = self._corrections[i][j] - common
                    self._corrections[i][j] = min(max(correction, -_MOST_CORRECTION), _MOST_CORRECTION)
                    self._visits[i][j] *= 0.9
                smaller_s = max(table[i - 1][j] if i else 0.0, row_s[j - 1] if j else 0.0)
                row_s.append(max(measured_s * exp(self._corrections[i][j]), smaller_s))
            table.append(row_s)
        changes = (
            abs(new_s / old_s - 1.0)
            for new, old in zip(table, self._table, strict=True)
            for new_s, old_s in zip(new, old, strict=True)
        )
        if max(changes) > _NOTICEABLE:
            self._scale *= exp(common)
            self._table = table
            self._cells.clear()
            self._share_s.clear()

    def _around(self, batch: int, padded_length: int) -> Iterator[tuple[int, int, float]]:
        """The points around a cell, and the share that each has in it; together 1."""
        for row, row_share in _shares(self._batches, batch):
            for column, share in _shares(self._lengths, padded_length):
                yield row, column, row_share * share

    def _interpolated_s(self, batch: int, padded_length: int) -> float:
        row, down = _cell(self._batches, batch)
        column, right = _cell(self._lengths, padded_length)
        if len(self._batches) > 1 and len(self._lengths) > 1 and 0.0 <= down <= 1.0 and 0.0 <= right <= 1.0:
            ends_s = [_between(self._table[index], column, right) for index in (row, row + 1)]
            return _between(ends_s, 0, down)
        # Below the first length the slope may lead under zero, and beyond the last one rows may cross.
        least_s = 0.1 * self._table[0][0]
        at_s = list(accumulate((_between(values, column, right) for values in self._table), max, initial=least_s))[1:]
        if batch > self._batches[-1]:
            return float(at_s[-1] * batch / self._batches[-1])
        return _between(at_s, row, max(down, 0.0))


def _halved(axis: Sequence[int]) -> list[int]:
    """The axis, and what lies half way between its neighbours."""
    return sorted({*axis, *((low + high) // 2 for low, high in pairwise(axis))})


def _at(points: Sequence[int], axis: Sequence[int], values: Sequence[float]) -> list[float]:
    """The values at further points, of those along an axis."""
    return [_between(values, *_cell(axis, at)) for at in points]


def _shares(axis: Sequence[int], at: int) -> list[tuple[int, float]]:
    """The one or two neighbours of `at` on an axis, and their shares in it."""
    if len(axis) == 1:
        return [(0, 1.0)]
    index, fraction = _cell(axis, at)
    fraction = min(max(fraction, 0.0), 1.0)
    return [(index, 1.0 - fraction), (index + 1, fraction)]


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
