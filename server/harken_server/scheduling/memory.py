"""What a batch needs in memory, and how much the running batches may take."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import ceil
from typing import Final

MARGIN: Final = 1.25
"""Predicted over measured: an arena that other shapes have cut into pieces holds more than a fresh one."""
# An allocator that does not give back what the last shape took makes the next one look small.
_LEAST_SHARE: Final = 0.25

_LOWERED: Final = 0.8
DOUBLES_S: Final = 60.0
"""A lowered budget doubles in this time."""


class MemoryModel:
    """Peak bytes of a batch beside the weights: B rows of r(L) bytes each.

    Without measurements r(L) = m1 L + m2 L^2. The linear term is the activations of one layer (queries, keys,
    values, context, feed-forward), the quadratic one the scores and their softmax. Layers reuse each other's memory,
    so depth does not count. The formula counts everything as alive at once, and so lies above what is measured.
    """

    def __init__(
        self, bytes_per_token: int, bytes_per_token_squared: int, rows: Sequence[tuple[int, float]] = ()
    ) -> None:
        """`rows`: (L, r(L)) as measured, rising in both."""
        self._bytes_per_token: Final = bytes_per_token
        self._bytes_per_token_squared: Final = bytes_per_token_squared
        # r(L) is linear between these.
        self._lengths: Final = [0, *(length for length, _ in rows)]
        self._rows: Final = [0.0, *(row_bytes for _, row_bytes in rows)]
        # A decision asks for the same lengths again and again.
        self._row_bytes: Final[dict[int, float]] = {}

    @classmethod
    def of_encoder(cls, hidden: int, intermediate: int, heads: int, bytes_per_value: int) -> "MemoryModel":
        """From the encoder's dimensions and the width of a value in bytes."""
        return cls(
            bytes_per_token=bytes_per_value * (8 * hidden + 3 * intermediate),
            bytes_per_token_squared=bytes_per_value * 3 * heads,
        )

    def measured(self, peaks: Mapping[tuple[int, int], int]) -> "MemoryModel":
        """This model with r(L) from measured peaks, bytes by (batch, padded length).

        At least `MARGIN` times each of them. Beyond the longest it follows the last slope, but not under the formula.
        """
        rows: dict[int, float] = {}
        for (batch, length), peak_bytes in peaks.items():
            believed_bytes = max(peak_bytes, _LEAST_SHARE * self.batch_bytes(batch, length))
            rows[length] = max(rows.get(length, 0.0), MARGIN * believed_bytes / batch)
        lengths = sorted(rows)
        rising = accumulate((rows[length] for length in lengths), max)
        return MemoryModel(
            self._bytes_per_token, self._bytes_per_token_squared, list(zip(lengths, rising, strict=True))
        )

    def batch_bytes(self, batch: int, padded_length: int) -> int:
        """Predicted peak bytes for `batch` rows of `padded_length` tokens."""
        row_bytes = self._row_bytes.get(padded_length)
        if row_bytes is None:
            row_bytes = self._row_bytes[padded_length] = self._row(padded_length)
        return ceil(batch * row_bytes)

    def _row(self, length: int) -> float:
        formula = float(length * self._bytes_per_token + length * length * self._bytes_per_token_squared)
        if len(self._lengths) == 1:
            return formula
        right = min(bisect_left(self._lengths, length), len(self._lengths) - 1)
        fraction = (length - self._lengths[right - 1]) / (self._lengths[right] - self._lengths[right - 1])
        row_bytes = self._rows[right - 1] + fraction * (self._rows[right] - self._rows[right - 1])
        return row_bytes if length <= self._lengths[-1] else max(row_bytes, formula)


class MemoryBudget:
    """How much the running batches may take: what is configured; less after a failed allocation; then ever more again.

    A failure shows that the machine gave less than was believed, and nothing shows when that ends. So the budget
    grows back by itself, doubling every `DOUBLES_S`; if it grows too far, one more batch is split.
    """

    def __init__(self, configured_bytes: int) -> None:
        self.configured_bytes: Final = configured_bytes
        self._least_bytes = 0
        self._lowered_bytes = configured_bytes
        self._lowered_s = 0.0

    def keep_room(self, sequence_bytes: int) -> None:
        """Never fall under what this one sequence is predicted to need: it was accepted, so it must run some time."""
        self._least_bytes = max(self._least_bytes, min(sequence_bytes, self.configured_bytes))

    def bytes(self, now_s: float) -> int:
        """The budget at this moment."""
        doublings = min(max(now_s - self._lowered_s, 0.0) / DOUBLES_S, 64.0)
        grown_bytes = max(self._lowered_bytes, self._least_bytes) * 2.0**doublings
        return self.configured_bytes if grown_bytes >= self.configured_bytes else int(grown_bytes)

    def lower(self, tried_bytes: int, now_s: float) -> None:
        """An allocation failed while running batches were predicted to need `tried_bytes` in all."""
        self._lowered_bytes = max(int(_LOWERED * min(tried_bytes, self.bytes(now_s))), 1)
        self._lowered_s = now_s
