"""What a caller gives and gets: plain frozen values, no protobuf."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from harken_client.errors import HarkenError

Input: TypeAlias = str | Sequence[int] | NDArray[np.integer]
"""One input: a text, or token ids exactly as the model reads them, special tokens included."""

Output: TypeAlias = Literal["sentence", "tokens"]
"""One vector for each input, or one for each of its tokens."""

Priority: TypeAlias = Literal["interactive", "bulk"]
"""Bulk rides behind interactive work, and is still bounded in age."""

Vector: TypeAlias = NDArray[np.float32]
"""float32 [hidden] for a sentence, [tokens, hidden] for tokens."""


@dataclass(frozen=True, slots=True)
class Timings:
    """The stages of one input on the server, in seconds; the five add up to the total."""

    tokenize_s: float
    queue_s: float
    collate_s: float
    compute_s: float
    scatter_s: float
    total_s: float


@dataclass(frozen=True, slots=True, eq=False)  # arrays do not compare to one truth
class Encoding:
    """The answer to one input.

    vector      float32 [hidden], or [tokens, hidden] where tokens were asked for; read-only
    tokens      number of tokens encoded, special tokens included
    truncated   whether the input was longer than the model and lost its end
    model, version   who answered; in a stream, who was asked ("" and 0 where left to the server)
    """

    vector: Vector
    tokens: int
    truncated: bool
    timings: Timings
    model: str
    version: int


@dataclass(frozen=True, slots=True, eq=False)
class StreamResult:
    """The outcome of one input of a stream: exactly one of `encoding` and `error` is set.

    index   position of the input in the source, from 0
    id      the id it was given with, or ""
    """

    index: int
    id: str
    encoding: Encoding | None
    error: HarkenError | None

    @property
    def vector(self) -> Vector:
        """The vector of the input. Raises the input's error if it failed."""
        if self.encoding is None:
            assert self.error is not None
            raise self.error
        return self.encoding.vector


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model version as the server describes it; the fields are those of harken.v1.ModelInfo."""

    name: str
    version: int
    is_default: bool
    hidden_size: int
    max_length: int
    vocab_size: int
    layers: int
    heads: int
    accepts_text: bool
    precision: str
    device: str
    bundle_sha256: str
    weights_source: str
    weights_license: str
