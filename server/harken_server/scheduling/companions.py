"""Who rides with the leader of a batch: its neighbours in length, for a batch costs its longest row times its size."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, takewhile
from math import inf
from typing import Final, Literal, TypeVar

from harken_server.scheduling.backlog import Backlog
from harken_server.scheduling.waiting import Priority, Waiting

W = TypeVar("W", bound=Waiting)

_PATIENCE: Final = 8
"""How many companions may join without a gain before the search ends: surfaces have steps."""

_HOPELESS: Final = 0.93
"""The search ends at once where a companion lets the saving fall below this share of the most: steps are smaller."""

_NEARLY: Final = 0.99
"""The smallest batch that saves this share of the most is taken: the rest of the gain would make everybody wait."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What no batch may exceed. A sequence that alone exceeds `padded_tokens` still runs, alone."""

    sequences: int
    padded_tokens: int
    memory_bytes: int
    """What the running batches leave of the budget."""
    bulk_s: float = inf
    """Of a batch with bulk work in it, while interactive work keeps coming. Alone, a sequence may take longer."""


ClosedBy = Literal["cost", "limit", "lanes", "deadline", "age", "bulk", "tenants", "solitary", "backlog"]
"""Why a batch is no larger: more would save nothing, exceed a limit, leave other free lanes idle, make a member miss
its deadline, ride before those who are late, let bulk work hold up interactive work for too long, give a tenant more
than its share, it or whoever is left has to run alone, or no more waits."""


def companions(
    backlog: Backlog[W], leader: W, limits: Limits, share: int, begins_s: float, bulk_s: float
) -> tuple[list[W], ClosedBy]:
    """The leader and those who ride with it, at most `share` in all; and why there are no more.

    The batch grows by whichever neighbour in length fits better; of its prefixes the smallest is taken that saves
    nearly most: whose members would, alone, cost the largest multiple of what they cost together. (Seconds per real
    token would hold a short companion for worthless, although alone it costs far more than its tokens.) It ends before
    the deadline of each member that could meet it. `begins_s` is when its lane is free, `bulk_s` how long the batch may
    take if there is bulk work in it.
    """
    most = 1 if leader.solitary else min(share, limits.sequences)
    closed_by: ClosedBy = "solitary" if leader.solitary else "limit" if limits.sequences <= share else "lanes"
    table_s, scale, batch_bytes = backlog.cost.table_s, backlog.cost.scale, backlog.memory.batch_bytes
    batch, padded_length, alone_s = [leader], leader.length, leader.alone_s
    bulk, bulk_end_s = Priority.BULK, begins_s + bulk_s
    has_bulk = leader.priority is bulk
    least_end_s = begins_s + scale * table_s(1, leader.length)
    # Who wants the same as a member rides for nothing.
    taken: set[object] = {leader.twin or leader}
    sides, nobody_more = _neighbours(backlog, leader, limits, least_end_s, taken)
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
            elif ends_s > bulk_end_s and (has_bulk or candidate.priority is bulk):
                blocked_by, candidates[side] = "bulk", None
            elif (its_saving := (alone_s + candidate.alone_s) / together_s) > saving:
                chosen, saving, chosen_side = candidate, its_saving, side
                if candidate.length == padded_length:
                    break  # nobody fits better than an equal
        if chosen is None:
            closed_by = blocked_by
            break
        taken.add(chosen.twin or chosen)
        candidates[chosen_side] = next(sides[chosen_side], None)
        batch.append(chosen)
        has_bulk |= chosen.priority is bulk
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
    return batch, "backlog" if len(batch) == backlog.distinct else closed_by


def _neighbours(
    backlog: Backlog[W], leader: W, limits: Limits, ends_s: float, taken: set[object]
) -> tuple[list[Iterator[W]], ClosedBy]:
    """Who may ride along, the nearest first, in each direction; and what keeps all others out.

    `ends_s` is when the leader would be done alone: with whom it would be too late then waits for another batch.
    `taken` grows with the batch: its members, by what they have in common with others if they do.
    """
    late = backlog.late(leader)
    if next(late, None) is leader and (second := next(late, None)):
        # Whoever rode out of turn would make the others who are late wait longer still.
        others = takewhile(lambda waiting: not waiting.solitary, chain((second,), late))
        return [(waiting for waiting in others if waiting.twin not in taken)], "age"
    nearest = 4 * limits.sequences
    sides = islice(backlog.not_longer(leader), nearest), islice(backlog.longer(leader), nearest)
    nobody_more: ClosedBy = "tenants" if backlog.shared_out else "solitary" if backlog.solitary else "deadline"
    return [
        (
            waiting
            for waiting in side
            if waiting.deadline.at_s >= ends_s and waiting.twin not in taken and not waiting.solitary
        )
        for side in sides
    ], nobody_more
