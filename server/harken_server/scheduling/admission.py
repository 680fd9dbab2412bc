"""The door: what may wait, and how long it would."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from math import inf
from typing import Final, Literal, TypeVar

from harken_server.errors import BacklogFull, DeadlineUnreachable
from harken_server.scheduling.backlog import Backlog
from harken_server.scheduling.deadline import Deadline
from harken_server.scheduling.waiting import ANYBODY, Priority, Tenant, Waiting

W = TypeVar("W", bound=Waiting)

_LEAST_RETRY_S: Final = 0.01
DOUBT: Final = 0.15
"""The share of itself that a prediction may fall short: shorter ones that come later go first, batches take longer."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much may wait, over all models."""

    sequences: int
    tokens: int


def admit(
    backlogs: Collection[Backlog[W]],
    sequences: int,
    tokens: int,
    capacity: Capacity,
    lanes: int,
    running_s: Callable[[], float],
) -> None:
    """Let a call of so many sequences and tokens in. Raises BacklogFull, which says when there will be room for it.

    `running_s()` is the predicted rest of what the lanes run now, in lane seconds.
    """
    sequences_waiting = sum([backlog.sequences for backlog in backlogs])
    tokens_waiting = sum([backlog.tokens for backlog in backlogs])
    if sequences_waiting + sequences > capacity.sequences:
        unit: Literal["sequences", "tokens"] = "sequences"
        waiting, asked, limit = sequences_waiting, sequences, capacity.sequences
    elif tokens_waiting + tokens > capacity.tokens:
        unit = "tokens"
        waiting, asked, limit = tokens_waiting, tokens, capacity.tokens
    else:
        return
    # The share of the present work that must be done before the excess fits.
    drained = min((waiting + asked - limit) / waiting, 1.0) if waiting else 1.0
    work_s = sum(backlog.work_s for backlog in backlogs)
    retry_after_s = max((work_s * drained + running_s()) / lanes, _LEAST_RETRY_S)
    raise BacklogFull(waiting, asked, limit, unit, retry_after_s)


def meet_deadline(
    backlog: Backlog[W],
    lengths: list[int],
    priority: Priority,
    deadline: Deadline,
    now_s: float,
    lanes: int,
    running_s: float,
    others: Collection[Backlog[W]] = (),
    tenant: Tenant = ANYBODY,
) -> None:
    """Raises DeadlineUnreachable if a new flow of `lengths` is predicted to be done after its deadline.

    `others`: of other models, which have lane time evenly with this one, interactive work before bulk.
    """
    cost = backlog.cost
    work_s = sum(cost.share_s(length) for length in lengths) * cost.scale
    own_s = max(work_s / lanes, cost.seconds(1, max(lengths)))
    ahead_s = backlog.ahead_s(len(lengths), priority, tenant, work_s)
    even_s = inf if priority is Priority.BULK else ahead_s + work_s
    others_s = sum(min(other.urgent_s(priority), even_s) for other in others)
    waits_s = (ahead_s + others_s + running_s) / lanes
    remaining_s = deadline.remaining_s(now_s)
    predicted_s = (waits_s + own_s) * (1.0 + DOUBT)
    late_s = predicted_s - remaining_s
    if late_s > 0.0:
        raise DeadlineUnreachable(predicted_s, remaining_s, retry_after_s=max(min(late_s, waits_s), _LEAST_RETRY_S))


def predicted_wait_s(backlogs: Iterable[Backlog[W]], lanes: int, running_s: float) -> float:
    """Seconds until a sequence that came last would start, were everything served in the order of arrival."""
    return (sum(backlog.work_s for backlog in backlogs) + running_s) / lanes
