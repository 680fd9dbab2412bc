"""How the limit batches: it knows every sequence beforehand, and no call waits for it. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

WINDOW = 64
TOKENS = (256, 512, 1024)


@dataclass(frozen=True)
class Policy:
    """One by one; or sorted by length into batches of at most so many tokens with padding.

    tokens    most tokens in a batch, a longer sequence runs alone; 0 is one by one
    window    only so many neighbours in the order of arrival are sorted; 0 is all
    """

    tokens: int = 0
    window: int = 0

    def __str__(self) -> str:
        if not self.tokens:
            return "one by one"
        return f"{f'windows of {self.window}' if self.window else 'all'} sorted into {self.tokens} tokens"

    def batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """Positions in `lengths`, each once, batch by batch in the order in which they run."""
        if not self.tokens:
            return [[index] for index in range(len(lengths))]
        window = self.window or max(len(lengths), 1)
        return [
            batch
            for start in range(0, len(lengths), window)
            for batch in self._cut(lengths, range(start, min(start + window, len(lengths))))
        ]

    def _cut(self, lengths: Sequence[int], members: range) -> Iterator[list[int]]:
        # Longest first: the lanes then end together, and a batch's first member is what its others are padded to.
        ordered = sorted(members, key=lambda index: -lengths[index])
        batch: list[int] = []
        for index in ordered:
            if batch and (len(batch) + 1) * lengths[batch[0]] > self.tokens:
                yield batch
                batch = []
            batch.append(index)
        yield batch


ONE_BY_ONE = Policy()
ALL = (ONE_BY_ONE, *(Policy(tokens) for tokens in TOKENS))
"""What may be done by one who knows all sequences. One by one is among it: a limit must not be lower than that."""

WINDOWS = (ONE_BY_ONE, *(Policy(tokens, WINDOW) for tokens in TOKENS))
"""What may be done by one who sees the next WINDOW sequences."""
