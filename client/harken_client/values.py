"""What a caller gives and gets: plain frozen values, no protobuf."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from harken_client.errors import HarkenError

Input: TypeAlias = str | Sequence[int] | NDArray[np.integer]
"""One input: a text, or token ids exactly as the model reads them, special tokens included."""

Output: TypeAlias = Literal["sentence", "tokens"]
"""One vector for each input, or one for each of its tokens."""

Priority: TypeAlias = Literal["interactive", "bulk"]
"""Bulk rides behind interactive work, and is still bounded in age."""

MemberOutcome: TypeAlias = Literal["answered", "failed", "expired", "cancelled", "waits_again"]

Truncate: TypeAlias = bool | Literal["right", "left"]
"""What an input that is too long becomes: False, an error; True, "right": it loses its end; "left": its beginning."""

Pooling: TypeAlias = Literal["mean", "cls", "max"]
"""How a sentence vector is made of the token vectors."""

ElementType: TypeAlias = Literal["float32", "float16", "int8", "binary"]
"""Of a vector. int8: the greatest magnitude is 127; binary: a bit a dimension, packed into uint8 [dimensions / 8]."""

Vector: TypeAlias = NDArray[Any]
"""float32 [dimensions] for a sentence, or another element type where it was asked for; [tokens, hidden] for tokens."""


@dataclass(frozen=True, slots=True)
class Chunking:
    """A text that is longer than the model is cut into chunks, each of which is encoded; in place of `truncate`.

    overlap_tokens   what two neighbours have in common
    vectors          "mean": one vector a text, their mean weighted by tokens; "all": one for each chunk
    """

    overlap_tokens: int = 0
    vectors: Literal["mean", "all"] = "mean"


class VectorOptions(TypedDict, total=False):
    """What vectors shall be like; the first five are of output="sentence" only.

    dimensions     the first so many of the model's, normalised again if the whole is; None: all
    normalize      whether they have length 1; None: as the model was made
    pooling        None: as the model was made
    element_type   of the array
    chunking       of texts that are longer than the model; None: see `truncate`
    token_offsets  whether an Encoding tells where in its text each token stands; not with chunking
    deterministic  whether each input is computed alone and anew: to the bit the same on the same machine, build
                   and provider, whatever else is in flight; slower, since nothing rides together
    """

    dimensions: int | None
    normalize: bool | None
    pooling: Pooling | None
    element_type: ElementType
    chunking: Chunking | None
    token_offsets: bool
    deterministic: bool


class CallOptions(VectorOptions, total=False):
    """What every encoding call takes beside its inputs."""

    truncate: Truncate
    model: str | None
    version: int | None
    timeout_s: float | None
    priority: Priority | None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a text: the characters start to end, the latter not included; its tokens, special ones included."""

    start: int
    end: int
    tokens: int


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

    vector      float32 [dimensions], or as its element type says; [tokens, hidden] for tokens; [chunks,
                dimensions] with all vectors of chunks; read-only
    scale       of int8: what an element is multiplied by to give the value back; else 1
    tokens      number of tokens encoded, special tokens included
    truncated   whether the input was longer than the model and lost a part
    chunks      of a text, where chunking was asked for
    offsets     uint32 [tokens, 2], where they were asked for: the first character of each token in its
                text, and the first one after it; 0 and 0 of special tokens
    model, version   who answered; in a stream, who was asked ("" and 0 where left to the server)
    """

    vector: Vector
    tokens: int
    truncated: bool
    timings: Timings
    model: str
    version: int
    scale: float = 1.0
    chunks: tuple[Chunk, ...] = ()
    offsets: NDArray[np.uint32] | None = None


@dataclass(frozen=True, slots=True)
class Match:
    """A candidate of `similarity`.

    index   its position in the list
    score   the cosine between its vector and the query's, -1 to 1
    """

    index: int
    score: float


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
    attends: bool = False


@dataclass(frozen=True, slots=True)
class Setting:
    """One of a server's settings (docs/settings.md), its value as it would stand in the environment."""

    name: str
    value: str
    is_default: bool
    changeable: bool


@dataclass(frozen=True, slots=True)
class BatchMember:
    """One sequence of a batch, as the server explains it.

    length      in tokens, special tokens included
    waited_s    in the server's backlog, before the batch started
    flow        equal for members of one call or stream; otherwise it means nothing, and it holds for one answer only
    outcome     expired and cancelled: it left while the batch ran; waits_again: it rides in a later one
    """

    length: int
    waited_s: float
    priority: Priority
    flow: int
    outcome: MemberOutcome


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch that ran: who rode with whom, and why. The fields are those of harken.v1.Batch, in seconds.

    number          1 is the first since the server started
    closed_by, why  why no more joined: a stable word, and a sentence
    predicted_s     from its start until its lane was free again, as it was predicted; lane_s: as it was measured
    compute_s       of that, in the engine; 0 if it was split
    alone_s         as predicted, had each of them run alone, one after another
    split           whether the engine failed on it, so that it was halved until only those at fault failed
    members         the first one led; at most 64, `sequences` counts the rest
    """

    number: int
    age_s: float
    model: str
    version: int
    lane: str
    closed_by: str
    why: str
    sequences: int
    real_tokens: int
    padded_length: int
    predicted_s: float
    alone_s: float
    compute_s: float
    lane_s: float
    split: bool
    answered: int
    failed: int
    left: int
    waits_again: int
    members: tuple[BatchMember, ...]

    @property
    def padding_share(self) -> float:
        """Padding over all tokens computed."""
        return 1.0 - self.real_tokens / (self.sequences * self.padded_length)

    @property
    def saved_share(self) -> float:
        """Of the predicted time alone, the part that riding together was predicted to save."""
        return 1.0 - self.predicted_s / self.alone_s if self.alone_s else 0.0
