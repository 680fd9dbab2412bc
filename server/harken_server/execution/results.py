"""Vectors that were computed, kept for whoever asks for the same again."""

from collections import OrderedDict
from typing import Final

from harken_server.execution.pending import Vectors

# Of a key, an array's head and the places of both in the order.
_ENTRY_BYTES: Final = 512


class Results:
    """At most so many bytes of them; the one that was asked for longest ago goes first. Belongs to the event loop."""

    def __init__(self, limit_bytes: int) -> None:
        """`limit_bytes`: 0 keeps nothing."""
        self._limit_bytes: Final = limit_bytes
        self._vectors: Final[OrderedDict[bytes, Vectors]] = OrderedDict()
        self.size_bytes = 0

    @property
    def kept(self) -> bool:
        """Whether anything is ever kept."""
        return self._limit_bytes > 0

    def find(self, key: bytes) -> Vectors | None:
        """What was computed for a key, as long as it is kept."""
        vectors = self._vectors.get(key)
        if vectors is not None:
            self._vectors.move_to_end(key)
        return vectors

    def keep(self, key: bytes, vectors: Vectors) -> None:
        """Keep a copy, for what is given may be a row of its whole batch; unless it is too large."""
        if key in self._vectors or _size_bytes(vectors) > self._limit_bytes:
            return
        self._vectors[key] = {name: vector.copy() for name, vector in vectors.items()}
        self.size_bytes += _size_bytes(vectors)
        while self.size_bytes > self._limit_bytes:
            _, oldest = self._vectors.popitem(last=False)
            self.size_bytes -= _size_bytes(oldest)


def _size_bytes(vectors: Vectors) -> int:
    return _ENTRY_BYTES + sum(vector.nbytes for vector in vectors.values())
