"""The last batches, kept to be explained: who rode with whom, and why no more did."""

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from harken_server.execution.lanes import Ran
from harken_server.execution.pending import Outcome, Pending, outcome_label
from harken_server.scheduling.cost import CostSurface
from harken_server.scheduling.policy import Start
from harken_server.scheduling.waiting import Priority

MOST_MEMBERS: Final = 64
"""How many members of one batch are kept; the rest are only counted."""


class Member(NamedTuple):
    """One who rode. Nothing of what it said, nor of who said it: a kept batch keeps no call alive, and no vector."""

    length: int
    waited_s: float
    """From the backlog's door until its lane came to it."""
    priority: Priority
    flow: object
    outcome: str
    """As in the label of harken_finished_total, or `waits_again`."""


class Batch(NamedTuple):
    """A batch that came back."""

    number: int
    """1 is the first since the start."""
    ended_s: float
    model: tuple[str, int]
    """Name and version."""
    lane: str
    """Its name: a number, or wide."""
    closed_by: str
    sequences: int
    real_tokens: int
    padded_length: int
    predicted_s: float
    """From its start until its lane was free again; of that `lane_s` is the measured one."""
    alone_s: float
    """Predicted, had each of them run alone, one after another."""
    compute_s: float
    """In the engine; 0 if the batch was split."""
    lane_s: float
    split: bool
    answered: int
    failed: int
    waits_again: int
    members: Sequence[Member]
    """The first of them, at most MOST_MEMBERS. members[0] led."""


class History:
    """A ring of the last batches. Belongs to the event loop's thread."""

    def __init__(self, most_batches: int) -> None:
        """`most_batches`: how many are kept; 0 keeps none."""
        self.most_batches: Final = most_batches
        self._batches: Final[deque[Batch]] = deque(maxlen=most_batches)
        self._number = 0

    def last(self, count: int) -> list[Batch]:
        """The newest, at most `count`; the newest first."""
        return [batch for batch, _ in zip(reversed(self._batches), range(count), strict=False)]

    def add(
        self, start: Start[tuple[str, int], Pending], ran: Ran, cost: CostSurface, took_s: float, ended_s: float
    ) -> None:
        """Keep a batch that came back; who is not settled by now waits again. `cost`: what it was chosen by."""
        if not self.most_batches:
            return
        self._number += 1
        lengths = [pending.length for pending in ran.pendings]
        sequences, padded_length = len(lengths), max(lengths)
        # By the surface's ratio alone, so that what the scale has learned since the decision does not enter.
        alone_s = sum([cost.seconds(1, length) for length in lengths])
        saving = alone_s / cost.seconds(sequences, padded_length)
        outcomes = [_label(pending.outcome) for pending in ran.pendings]
        self._batches.append(
            Batch(
                number=self._number,
                ended_s=ended_s,
                model=start.model,
                lane="wide" if start.wide else str(start.lane),
                closed_by=start.closed_by,
                sequences=sequences,
                real_tokens=sum(lengths),
                padded_length=padded_length,
                predicted_s=start.predicted_s,
                alone_s=start.predicted_s * saving,
                compute_s=ran.compute_s,
                lane_s=took_s,
                split=sequences > 1 and ran.compute_s == 0.0 and not ran.stalled,
                answered=outcomes.count("answered"),
                failed=outcomes.count("failed"),
                waits_again=outcomes.count("waits_again"),
                members=[
                    Member(
                        pending.length,
                        pending.stamps.taken_s - pending.stamps.queued_s,
                        pending.priority,
                        pending.flow,
                        outcome,
                    )
                    for pending, outcome in zip(ran.pendings[:MOST_MEMBERS], outcomes, strict=False)
                ],
            )
        )


def _label(outcome: Outcome | None) -> str:
    return "waits_again" if outcome is None else outcome_label(outcome)
