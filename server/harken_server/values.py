"""What goes through the one door behind all edges: what is asked, and what became of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from harken_server.errors import Problem
from harken_server.execution.finishing import Finish
from harken_server.execution.pending import Outcome, Stamps
from harken_server.models.repository import Model
from harken_server.models.tokenizer import Ids, Places
from harken_server.scheduling.waiting import Priority, Tenant
from harken_server.telemetry.tracing import Trace


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Token ids as they were given."""

    ids: Ids
    """int64, as many as the longest model takes: the first ones, or the last where the beginning is cut."""
    full_length: int
    """How many were given."""


Input = str | TokenIds | Problem
"""A text, token ids, or what the edge already found wrong with it."""

Truncate = Literal["refuse", "right", "left"]
"""What becomes of an input that is longer than the model: nothing, or it loses its end, or its beginning."""

Chunks = Literal["mean", "all"]
"""What a text's chunks give: one vector, their mean, or a vector each."""

MAX_PROBLEMS: Final = 16
"""How many fields at fault one answer names."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may send, and what an answer may hold."""

    inputs: int
    text_bytes: int
    answer_bytes: int
    unsent_bytes: int
    """Of all answers that are computed, or will be, and have not left."""


class Account(Protocol):
    """Whose limits hold for a call."""

    def check(self, model: str) -> None:
        """Raises a Refusal if it may not use this model, or not now."""

    def spend(self, tokens: int) -> None:
        """So many were accepted."""


class _NoLimits:
    def check(self, model: str) -> None:
        pass

    def spend(self, tokens: int) -> None:
        pass


NO_LIMITS: Final[Account] = _NoLimits()


@dataclass(frozen=True, slots=True)
class Options:
    """What holds for all inputs of a call."""

    model: str
    version: int
    outputs: tuple[str, ...]
    """Names of vectors: sentence_embedding, token_embeddings."""
    truncate: Truncate
    priority: Priority
    tenant: Tenant
    account: Account
    flow: object
    """The call or stream; flows share the lanes evenly."""
    trace: Trace | None
    """Of the call, or of the input of a stream, if that is traced."""
    finish: Finish = Finish()  # noqa: RUF009 - it is frozen
    chunks: Chunks | None = None
    """Of texts that are longer than the model; None: see truncate."""
    overlap_tokens: int = 0
    """Of neighbouring chunks."""
    places: bool = False
    """Whether an answer says where the tokens of its text stand."""
    deterministic: bool = False
    """Whether each sequence runs alone, on a narrow lane, and anew: the same bits whatever else is in flight."""
    padded_length: int | None = None
    """None: token vectors leave as they are. Else the edge pads those of each input to the longest, or to this."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a text that was a sequence of its own: its first character, the first one after it, its tokens."""

    start: int
    end: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one input."""

    outcome: Outcome
    """The vectors that were asked for (with chunks="all" one for each chunk: [chunks, D]), or the refusal."""
    tokens: int
    truncated: bool
    stamps: Stamps
    """Of several chunks, those of the last one."""
    chunks: Sequence[Chunk] = ()
    places: Places | None = None


@dataclass(frozen=True, slots=True)
class Answers:
    """What became of a call: answers[i] is of inputs[i]."""

    model: Model
    answers: Sequence[Answer]
    size_bytes: int
    """Held until the edge says `sent`."""
