"""An accepted sequence, from the door to its one answer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from harken_server.errors import Abandoned, ComputeFailed, Expired, NoMemory, Refusal
from harken_server.scheduling.waiting import Waiting
from harken_server.telemetry.tracing import BatchSpan, Trace

Vectors = Mapping[str, npt.NDArray[Any]]
"""By the name of the output: sentence_embedding float32 [H], token_embeddings float32 [length, H]; of an Attend what
reductions.py names."""

Outcome = Vectors | Refusal

_NS: Final = 1_000_000_000
_TAKEN: Final = Abandoned()


@dataclass(slots=True)
class Stamps:
    """Moments of one sequence on the monotonic clock. Each ends one stage and begins the next."""

    received_s: float
    queued_s: float
    taken_s: float = 0.0
    collated_s: float = 0.0
    computed_s: float = 0.0
    scattered_s: float = 0.0
    batch: BatchSpan | None = None
    """Names the batch that it rode in, if anybody in it was traced."""

    def follow(self, other: "Stamps") -> None:
        """It was computed with the other one."""
        self.taken_s, self.collated_s = other.taken_s, other.collated_s
        self.computed_s, self.scattered_s = other.computed_s, other.scattered_s
        self.batch = other.batch

    def found(self, now_s: float) -> None:
        """Nothing had to be computed."""
        self.taken_s = self.collated_s = self.computed_s = self.scattered_s = now_s

    def moments_ns(self) -> tuple[int, int, int, int, int, int]:
        """All six in nanoseconds: from one to the next is tokenize, queue, collate, compute, scatter."""
        return (
            round(self.received_s * _NS), round(self.queued_s * _NS), round(self.taken_s * _NS),
            round(self.collated_s * _NS), round(self.computed_s * _NS), round(self.scattered_s * _NS),
        )  # fmt: skip


@dataclass(eq=False, slots=True)
class Pending(Waiting):
    """A sequence with its tokens, its moments, and the one who waits for its outcome."""

    ids: npt.NDArray[np.int64]
    """int64 [length]"""
    outputs: tuple[str, ...]
    """Which of the engine's outputs it wants."""
    stamps: Stamps
    on_settled: Callable[["Pending"], None]
    reduce: Callable[[Vectors], Vectors] | None = None
    """What becomes of what was computed for it, still on the lane's thread; None: that is its outcome."""
    key: bytes | None = None
    """Of all that its vectors follow from, where they may be kept or shared."""
    trace: Trace | None = None
    """Of the request that it is of, if that is traced."""
    outcome: Outcome | None = field(default=None, init=False)
    riders: "list[Pending]" = field(default_factory=list, init=False)
    """Those that want the same, and share what is computed for it: none of them waits by itself any more."""
    found_no_memory_alone: bool = field(default=False, init=False)
    """Whether there was none for it although nothing else ran: it gets one more chance."""

    def expecting(self) -> "list[Pending]":
        """Of it and its riders, those that have no outcome yet."""
        return [one for one in (self, *self.riders) if one.outcome is None]

    def settle(self, outcome: Outcome) -> bool:
        """Give it its one outcome. Returns False, and changes nothing, if it has one already."""
        if self.outcome is not None:
            return False
        self.outcome = outcome
        self.on_settled(self)
        return True

    def take(self) -> Outcome:
        """Its outcome, which it lets go of: orders forget who left only later, and a vector holds its whole batch's."""
        if self.outcome is None:
            raise AssertionError("a call ends only when each of its sequences has an outcome")
        outcome, self.outcome = self.outcome, _TAKEN
        return outcome


def outcome_label(outcome: Outcome) -> str:
    """The value of harken_finished_total's label."""
    match outcome:
        case Expired():
            return "expired"
        case Abandoned():
            return "cancelled"
        case ComputeFailed() | NoMemory():
            return "failed"
        case Refusal():
            raise AssertionError(f"{outcome!r} cannot end an accepted sequence")
        case _:
            return "answered"
