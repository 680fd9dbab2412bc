"""Tokenising, off the event loop and in slices, so that a large call does not hold up the small ones."""

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from harken_server.errors import BacklogFull
from harken_server.models.tokenizer import Reading, Tokenizer, Tokens, TooManySequences

_SLICE_CHARACTERS: Final = 16_384
# A slow tokenizer on a slow core; only the hint in a refusal depends on it.
_BYTES_PER_S: Final = 1_000_000.0


class Tokenizing:
    """A bounded queue in front of a few threads. Belongs to the event loop's thread."""

    def __init__(self, threads: int, limit_bytes: int) -> None:
        self._executor: Final = ThreadPoolExecutor(threads, thread_name_prefix="tokenize")
        self._threads: Final = threads
        self._limit_bytes: Final = limit_bytes
        self._waiting_bytes = 0

    async def encode(
        self, tokenizer: Tokenizer, texts: Sequence[str], size_bytes: int, reading: Reading, room: int
    ) -> list[list[Tokens]]:
        """The sequences of each of `texts`, together `size_bytes` long.

        Raises BacklogFull if too much text waits already, TooManySequences if they are more than `room`.
        """
        if self._waiting_bytes + size_bytes > self._limit_bytes:
            retry_after_s = max(self._waiting_bytes / _BYTES_PER_S / self._threads, 0.01)
            raise BacklogFull(self._waiting_bytes, size_bytes, self._limit_bytes, "bytes of text", retry_after_s)
        loop = asyncio.get_running_loop()
        self._waiting_bytes += size_bytes
        try:
            parts: list[list[Tokens]] = []
            sequences = 0
            for piece in _slices(texts):
                # One slice at a time: other calls' slices go in between.
                left = room - sequences
                try:
                    parts += await loop.run_in_executor(self._executor, tokenizer.encode, piece, reading, left)
                except TooManySequences as found:
                    raise TooManySequences(len(parts) + found.text, sequences + found.sequences) from None
                sequences = sum(len(part) for part in parts)
            return parts
        finally:
            self._waiting_bytes -= size_bytes

    def stop(self) -> None:
        """End the threads."""
        self._executor.shutdown(cancel_futures=True)


def _slices(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    start, characters = 0, 0
    for index, text in enumerate(texts):
        if index > start and characters + len(text) > _SLICE_CHARACTERS:
            yield texts[start:index]
            start, characters = index, 0
        characters += len(text)
    yield texts[start:]
