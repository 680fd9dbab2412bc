"""Ragged rows to one padded batch, and its mask."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

PADDING_ID: Final = 0


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Rows of one length. B rows, L the longest. Holds until its buffers take another batch."""

    ids: npt.NDArray[np.int64]
    """int64 [B, L]"""
    mask: npt.NDArray[np.int64]
    """int64 [B, L]; 1 is a real token, 0 is padding."""
    lengths: tuple[int, ...]
    """True length of each row, [B]"""


class Buffers:
    """The memory of one lane's batches, as large as the largest so far: each batch takes the place of the last one."""

    def __init__(self) -> None:
        self._flat: npt.NDArray[np.int64] = np.empty((2, 0), np.int64)

    def of(self, rows: int, length: int) -> npt.NDArray[np.int64]:
        """int64 [2, rows, length] of anything."""
        size = rows * length
        if self._flat.shape[1] < size:
            self._flat = np.empty((2, size), np.int64)
        return self._flat[:, :size].reshape(2, rows, length)


def collate(rows: Sequence[npt.NDArray[np.int64]], buffers: Buffers) -> PaddedBatch:
    """Pad ragged rows on the right, in these buffers. Raises ValueError without rows, or where a row has no token."""
    lengths = tuple([len(row) for row in rows])
    if not lengths or min(lengths) == 0:
        raise ValueError(f"a batch needs rows with at least one token each, not {lengths}")
    padded_length = max(lengths)
    ids, mask = buffers.of(len(rows), padded_length)
    ids.fill(PADDING_ID)
    for i, row in enumerate(rows):
        ids[i, : lengths[i]] = row
    np.less(np.arange(padded_length), np.array(lengths)[:, None], out=mask, casting="unsafe")
    return PaddedBatch(ids, mask, lengths)
