"""Ragged rows to one padded batch, and its mask."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

PADDING_ID: Final = 0


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Rows of one length. B rows, L the longest."""

    ids: npt.NDArray[np.int64]
    """int64 [B, L]"""
    mask: npt.NDArray[np.int64]
    """int64 [B, L]; 1 is a real token, 0 is padding."""
    lengths: tuple[int, ...]
    """True length of each row, [B]"""


def collate(rows: Sequence[npt.NDArray[np.int64]]) -> PaddedBatch:
    """Pad ragged rows on the right. Raises ValueError without rows, or where a row has no token."""
    lengths = tuple(len(row) for row in rows)
    if not lengths or min(lengths) == 0:
        raise ValueError(f"a batch needs rows with at least one token each, not {lengths}")
    padded_length = max(lengths)
    ids = np.full((len(rows), padded_length), PADDING_ID, np.int64)
    mask = np.zeros((len(rows), padded_length), np.int64)
    for i, row in enumerate(rows):
        ids[i, : lengths[i]] = row
        mask[i, : lengths[i]] = 1
    return PaddedBatch(ids, mask, lengths)
