"""The decision: which lane starts which batch, now.

Whoever's turn it is leads. Its companions are its neighbours in length, for a batch costs its longest row
times its size; they join while that saves time against everyone running alone, within the limits.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from math import inf
from typing import Final, Generic, Literal, TypeVar

from harken_server.scheduling.backlog import Backlog
from harken_server.scheduling.lanes import Lanes
from harken_server.scheduling.turns import BULK_AGE_S
from harken_server.scheduling.waiting import Priority, Waiting

W = TypeVar("W", bound=Waiting)
M = TypeVar("M", bound=Hashable)

_PATIENCE: Final = 8
"""How many companions may join without a gain before the search ends: surfaces have steps."""

_HOPELESS: Final = 0.93
"""The search ends at once where a companion lets the saving fall below this share of the most: steps are smaller."""

_DEEP: Final = 4
"""How many must wait for each lane, for a batch to be prepared while all of them run."""

_NEARLY: Final = 0.99
"""The smallest batch that saves this share of the most is taken: the rest of the gain would make everybody wait."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What no batch may exceed. A sequence that alone exceeds `padded_tokens` still runs, alone."""

    sequences: int
    padded_tokens: int
    memory_bytes: int
    """What the running batches leave of the budget."""


ClosedBy = Literal["cost", "limit", "lanes", "deadline", "age", "backlog"]
"""Why a batch is no larger: more would save nothing, exceed a limit, leave other free lanes idle, make a member miss
its deadline, ride before those who are late, or no more waits."""


@dataclass(frozen=True, slots=True)
class Start(Generic[M, W]):
    """Start this batch on this lane: now, or if it still runs, when it is done."""

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
    lane, begins_s = (free[0], now_s) if free else lanes.first_done(now_s) or (None, inf)
    if lane is None:
        return Wait()
    leaders = [(leader, model) for model, backlog in backlogs.items() if (leader := backlog.leader(now_s))]
    if not leaders:
        return Wait()
    leader, model = leaders[0]
    if len(leaders) > 1:
        # Across models the one who waited longest leads: turns of different models do not compare.
        leader, model = min(leaders, key=lambda entry: (_rank(entry[0], now_s), entry[0].arrived_s))
    backlog = backlogs[model]
    if backlog.memory.batch_bytes(1, leader.length) > limits.memory_bytes:
        # The memory that running batches hold comes back; a leader is never overtaken for its size.
        return Wait()
    if not free and backlog.sequences < _DEEP * lanes.narrow:
        # Who comes before a lane is done may deserve it more.
        return Wait()
    wide = len(leaders) == 1 and _goes_wide(backlog, leader, lanes)
    # A batch that empties the backlog beside an idle lane would make its members wait for one another.
    share = 1 if wide else -(-backlog.sequences // (len(free) or lanes.narrow))
    batch, closed_by = companions(backlog, leader, limits, share, begins_s)
    if not free and closed_by in ("lanes", "backlog"):
        # By the time that a lane is done, more may ride.
        return Wait()
    padded_length = max(waiting.length for waiting in batch)
    return Start(
        lane=lanes.narrow if wide else lane,
        wide=wide,
        model=model,
        batch=batch,
        predicted_s=backlog.surface(wide).seconds(len(batch), padded_length),
        predicted_bytes=backlog.memory.batch_bytes(len(batch), padded_length),
        closed_by=closed_by,
    )


def companions(backlog: Backlog[W], leader: W, limits: Limits, share: int, begins_s: float) -> tuple[list[W], ClosedBy]:
    """The leader and those who ride with it, at most `share` in all; and why there are no more.

    The batch grows by whichever neighbour in length fits better; of its prefixes the smallest is taken that saves
    nearly most: whose members would, alone, cost the largest multiple of what they cost together. (Seconds per real
    token would hold a short companion for worthless, although alone it costs far more than its tokens.) It ends before
    the deadline of each member that could meet it. `begins_s` is when its lane is free.
    """
    most = min(share, limits.sequences)
    closed_by: ClosedBy = "limit" if limits.sequences <= share else "lanes"
    if most == 1:
        return [leader], "backlog" if backlog.sequences == 1 else closed_by
    table_s, scale, batch_bytes = backlog.cost.table_s, backlog.cost.scale, backlog.memory.batch_bytes
    batch, padded_length, alone_s = [leader], leader.length, leader.alone_s
    least_end_s = begins_s + scale * table_s(1, leader.length)
    sides, nobody_more = _neighbours(backlog, leader, limits, least_end_s)
    candidates = [next(side, None) for side in sides]
    # Who cannot be in time even alone does not bound the batch.
    first_deadline_s = leader.deadline.at_s if leader.deadline.at_s >= least_end_s else inf
    savings, most_saving = [1.0], 1
    blocked_by: ClosedBy = nobody_more
    size = 1
    while size < most and size - most_saving < _PATIENCE:
        size += 1
        chosen, saving, chosen_side = None, 0.0, 0
        for side, candidate in enumerate(candidates):
            if candidate is None:
                continue
            length = candidate.length if candidate.length > padded_length else padded_length
            together_s = table_s(size, length)
            ends_s = begins_s + scale * together_s
            if size * length > limits.padded_tokens or batch_bytes(size, length) > limits.memory_bytes:
                blocked_by, candidates[side] = "limit", None
            elif ends_s > first_deadline_s or ends_s > candidate.deadline.at_s:
                blocked_by, candidates[side] = "deadline", None
            elif (its_saving := (alone_s + candidate.alone_s) / together_s) > saving:
                chosen, saving, chosen_side = candidate, its_saving, side
                if candidate.length == padded_length:
                    break  # nobody fits better than an equal
        if chosen is None:
            closed_by = blocked_by
            break
        candidates[chosen_side] = next(sides[chosen_side], None)
        batch.append(chosen)
        padded_length = max(padded_length, chosen.length)
        alone_s += chosen.alone_s
        first_deadline_s = min(first_deadline_s, chosen.deadline.at_s)
        savings.append(saving)
        if saving > savings[most_saving - 1]:
            most_saving = size
        elif saving < _HOPELESS * savings[most_saving - 1]:
            break
    enough = next(size for size, saving in enumerate(savings, 1) if saving >= _NEARLY * savings[most_saving - 1])
    if enough < len(batch):
        return batch[:enough], "cost"
    return batch, "backlog" if len(batch) == backlog.sequences else closed_by


def _neighbours(
    backlog: Backlog[W], leader: W, limits: Limits, ends_s: float
) -> tuple[list[Iterator[W]], Literal["age", "deadline"]]:
    """Who may ride along, the nearest first, in each direction; and what keeps all others out.

    `ends_s` is when the leader would be done alone: with whom it would be too late then waits for another batch.
    """
    late = backlog.late()
    if next(late, None) is leader and (second := next(late, None)):
        # Whoever rode out of turn would make the others who are late wait longer still.
        return [chain((second,), late)], "age"
    nearest = 4 * limits.sequences
    sides = islice(backlog.not_longer(leader), nearest), islice(backlog.longer(leader), nearest)
    return [(waiting for waiting in side if waiting.deadline.at_s >= ends_s) for side in sides], "deadline"


def _rank(leader: Waiting, now_s: float) -> Priority:
    """Bulk that waited too long is as urgent as anything, whatever model it asks for."""
    aged = leader.priority is Priority.BULK and now_s - leader.arrived_s > BULK_AGE_S
    return Priority.INTERACTIVE if aged else leader.priority


def _goes_wide(backlog: Backlog[W], leader: W, lanes: Lanes) -> bool:
    """Whether the leader gains more by all cores than others lose by waiting for it.

    Those are the ones who wait already, for the whole run, and those who are likely to come meanwhile, for half of it:
    the narrow lanes would have taken them at once.
    """
    if lanes.wide is None or backlog.wide_cost is None or not lanes.all_free or backlog.sequences > lanes.narrow:
        return False
    wide_s = backlog.wide_cost.seconds(1, leader.length)
    gain_s = backlog.cost.seconds(1, leader.length) - wide_s
    come = lanes.come_per_s * wide_s
    return gain_s > (backlog.sequences - 1 + come / 2) * wide_s
