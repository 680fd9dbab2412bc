"""The decision: which lane starts which batch, now.

Whoever's turn it is leads. Its companions are its neighbours in length, for a batch costs its longest row
times its size; they join while that saves time against everyone running alone, within the limits.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeVar

from harken_server.scheduling.backlog import Backlog
from harken_server.scheduling.lanes import Lanes
from harken_server.scheduling.waiting import Waiting

W = TypeVar("W", bound=Waiting)
M = TypeVar("M", bound=Hashable)

_PATIENCE: Final = 8
"""How many companions may join without a gain before the search ends: surfaces have steps."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What no batch may exceed. A sequence that alone exceeds `padded_tokens` still runs, alone."""

    sequences: int
    padded_tokens: int
    memory_bytes: int
    """What the running batches leave of the budget."""


ClosedBy = Literal["cost", "limit", "lanes", "backlog"]
"""Why a batch is no larger: it would cost more, exceed a limit, leave other free lanes idle, or no more waits."""


@dataclass(frozen=True, slots=True)
class Start(Generic[M, W]):
    """Start this batch on this lane, now."""

    lane: int
    wide: bool
    """Whether that is the wide lane, so that the cost is that of the backlog's wide surface."""
    model: M
    batch: Sequence[W]
    predicted_s: float
    predicted_bytes: int
    closed_by: ClosedBy


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can start before something arrives, or a lane is done."""


def decide(backlogs: Mapping[M, Backlog[W]], lanes: Lanes, limits: Limits, now_s: float) -> Start[M, W] | Wait:
    """The next batch to start. Changes nothing: the caller takes the batch out with `Backlog.start`."""
    free = lanes.free
    if not free:
        return Wait()
    leaders = [(leader, model) for model, backlog in backlogs.items() if (leader := backlog.leader(now_s))]
    if not leaders:
        return Wait()
    # Across models the one who waited longest leads: turns of different models do not compare.
    leader, model = min(leaders, key=lambda entry: (entry[0].priority, entry[0].arrived_s))
    backlog = backlogs[model]
    if backlog.memory.batch_bytes(1, leader.length) > limits.memory_bytes:
        # The memory that running batches hold comes back; a leader is never overtaken for its size.
        return Wait()
    wide = len(leaders) == 1 and _goes_wide(backlog, leader, lanes)
    # A batch that empties the backlog beside an idle lane would make its members wait for one another.
    share = 1 if wide else -(-backlog.sequences // len(free))
    batch, closed_by = companions(backlog, leader, limits, share)
    padded_length = max(waiting.length for waiting in batch)
    return Start(
        lane=lanes.narrow if wide else free[0],
        wide=wide,
        model=model,
        batch=batch,
        predicted_s=backlog.surface(wide).seconds(len(batch), padded_length),
        predicted_bytes=backlog.memory.batch_bytes(len(batch), padded_length),
        closed_by=closed_by,
    )


def companions(backlog: Backlog[W], leader: W, limits: Limits, share: int) -> tuple[list[W], ClosedBy]:
    """The leader and those who ride with it, at most `share` in all; and why there are no more.

    The batch grows by whichever neighbour in length fits better; of its prefixes the one is taken that saves most:
    whose members would, alone, cost the largest multiple of what they cost together. (Seconds per real token would
    hold a short companion for worthless, although alone it costs far more than its tokens.)
    """
    cost = backlog.cost
    shorter, longer = backlog.not_longer(leader), backlog.longer(leader)
    below, above = next(shorter, None), next(longer, None)
    batch, padded_length, alone_s = [leader], leader.length, cost.seconds(1, leader.length)
    best, best_saving = 1, 1.0
    most = min(share, limits.sequences)
    closed_by: ClosedBy = "limit" if limits.sequences <= share else "lanes"
    while len(batch) < most and len(batch) - best < _PATIENCE:
        savings: list[tuple[float, W]] = []
        for candidate in (below, above):
            if candidate is not None:
                length = max(padded_length, candidate.length)
                if _fits(backlog, len(batch) + 1, length, limits):
                    together_s = cost.seconds(len(batch) + 1, length)
                    savings.append(((alone_s + cost.seconds(1, candidate.length)) / together_s, candidate))
        if not savings:
            closed_by = "backlog" if below is None and above is None else "limit"
            break
        saving, chosen = max(savings, key=lambda entry: entry[0])
        if chosen is below:
            below = next(shorter, None)
        else:
            above = next(longer, None)
        batch.append(chosen)
        padded_length = max(padded_length, chosen.length)
        alone_s += cost.seconds(1, chosen.length)
        if saving > best_saving:
            best, best_saving = len(batch), saving
    if best < len(batch):
        return batch[:best], "cost"
    return batch, "backlog" if len(batch) == backlog.sequences else closed_by


def _fits(backlog: Backlog[W], batch: int, padded_length: int, limits: Limits) -> bool:
    return (
        batch * padded_length <= limits.padded_tokens
        and backlog.memory.batch_bytes(batch, padded_length) <= limits.memory_bytes
    )


def _goes_wide(backlog: Backlog[W], leader: W, lanes: Lanes) -> bool:
    """Whether so little waits that narrow lanes would idle, and the leader is done sooner on all cores."""
    return (
        lanes.wide is not None
        and backlog.wide_cost is not None
        and lanes.all_free
        and backlog.sequences < lanes.narrow
        and backlog.wide_cost.seconds(1, leader.length) < backlog.cost.seconds(1, leader.length)
    )
