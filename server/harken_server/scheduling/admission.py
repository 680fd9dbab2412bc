"""The door: what may wait, and how long it would."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeVar

from harken_server.errors import BacklogFull
from harken_server.scheduling.backlog import Backlog
from harken_server.scheduling.waiting import Waiting

W = TypeVar("W", bound=Waiting)

_LEAST_RETRY_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much may wait, over all models."""

    sequences: int
    tokens: int


def admit(backlogs: Iterable[Backlog[W]], lengths: list[int], capacity: Capacity, lanes: int, running_s: float) -> None:
    """Let `lengths` in, all or none. Raises BacklogFull, which says when there will be room for as many.

    `running_s` is the predicted rest of what the lanes run now, in lane seconds.
    """
    sequences, tokens, work_s = 0, 0, 0.0
    for backlog in backlogs:
        sequences += backlog.sequences
        tokens += backlog.tokens
        work_s += backlog.work_s
    for waiting, asked, limit, unit in (
        (sequences, len(lengths), capacity.sequences, "sequences"),
        (tokens, sum(lengths), capacity.tokens, "tokens"),
    ):
        excess = waiting + asked - limit
        if excess > 0:
            # The share of the present work that must be done before the excess fits.
            drained = min(excess / waiting, 1.0) if waiting else 1.0
            retry_after_s = max((work_s * drained + running_s) / lanes, _LEAST_RETRY_S)
            raise BacklogFull(waiting, asked, limit, unit, retry_after_s)  # type: ignore[arg-type]  # the tuple widens the literals


def predicted_wait_s(backlogs: Iterable[Backlog[W]], lanes: int, running_s: float) -> float:
    """Seconds until a sequence that came last would start, were everything served in the order of arrival."""
    return (sum(backlog.work_s for backlog in backlogs) + running_s) / lanes
