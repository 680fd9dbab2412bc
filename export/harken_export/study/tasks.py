"""Two tasks whose answers lie a known number of tokens back: associative recall and copy.

A distance is in tokens. Every sequence of a task at one distance has the same form, so a batch needs no padding.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Examples:
    """ids int64 [B, L]; answers int64 [B, A]: what the last A positions of each row have to give."""

    ids: Tensor
    answers: Tensor


class Task(Protocol):
    """What a network is trained on."""

    name: ClassVar[str]
    shortest: ClassVar[int]
    """The least distance that the form allows."""
    vocab_size: ClassVar[int]
    chance: ClassVar[float]
    """Accuracy of the best guess that does not know which token the answer stands beside, 0 to 1."""

    def length(self, distance: int) -> int:
        """Tokens of a sequence."""
        ...

    def draw(self, sequences: int, distance: int, generator: Generator) -> Examples:
        """New examples."""
        ...


class AssociativeRecall:
    """Four tokens, each of which joins a key with a value; `distance` random other tokens; the keys, in another order.

    At each key of the end its value is asked for (Graves et al. 2014, section 4.3; with every key asked, as by
    Arora et al. 2023). From an answer to its question it is `distance` tokens and up to 6 more. An id is a key, or
    the pair of a key and a value, or another; an answer is the value's number.
    """

    name: ClassVar[str] = "recall"
    shortest: ClassVar[int] = 0
    pairs: ClassVar[int] = 4
    keys: ClassVar[int] = 4
    values: ClassVar[int] = 8
    others: ClassVar[int] = 8
    vocab_size: ClassVar[int] = keys + keys * values + others
    # One of the values that the sequence holds.
    chance: ClassVar[float] = 1 / pairs

    def length(self, distance: int) -> int:
        return 2 * self.pairs + distance

    def draw(self, sequences: int, distance: int, generator: Generator) -> Examples:
        keys = shuffled(sequences, self.keys, generator)[:, : self.pairs]
        # All values differ, so that chance is the same in each sequence.
        values = shuffled(sequences, self.values, generator)[:, : self.pairs]
        pairs = self.keys + keys * self.values + values
        others = self.vocab_size - self.others + torch.randint(self.others, (sequences, distance), generator=generator)
        order = shuffled(sequences, self.pairs, generator)
        return Examples(torch.cat([pairs, others, keys.gather(1, order)], dim=1), values.gather(1, order))


class Copy:
    """Eight symbols; blanks; eight marks, at each of which the symbol `distance` tokens before is asked for.

    The copying problem of Hochreiter and Schmidhuber 1997 as Arjovsky et al. 2016 (section 5.1) have it.
    """

    name: ClassVar[str] = "copy"
    symbols: ClassVar[int] = 8
    alphabet: ClassVar[int] = 8
    shortest: ClassVar[int] = symbols
    vocab_size: ClassVar[int] = alphabet + 2
    chance: ClassVar[float] = 1 / alphabet

    def length(self, distance: int) -> int:
        return self.symbols + distance

    def draw(self, sequences: int, distance: int, generator: Generator) -> Examples:
        symbols = torch.randint(self.alphabet, (sequences, self.symbols), generator=generator)
        blanks = torch.full((sequences, distance - self.symbols), self.alphabet)
        marks = torch.full((sequences, self.symbols), self.alphabet + 1)
        return Examples(torch.cat([symbols, blanks, marks], dim=1), symbols)


TASKS: dict[str, Task] = {task.name: task for task in (AssociativeRecall(), Copy())}


def shuffled(rows: int, size: int, generator: Generator) -> Tensor:
    """A random order of 0 to size - 1 in each row. int64 [rows, size]."""
    return torch.rand(rows, size, generator=generator).argsort(1)
