"""The decision: which lane starts which batch, now.

Whoever's turn it is leads. Its companions are its neighbours in length, for a batch costs its longest row
times its size; they join while that saves time against everyone running alone, within the limits.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final, Generic, TypeVar

from harken_server.scheduling.backlog import Backlog
from harken_server.scheduling.companions import ClosedBy, Limits, companions
from harken_server.scheduling.lanes import Lanes
from harken_server.scheduling.waiting import Priority, Waiting

W = TypeVar("W", bound=Waiting)
M = TypeVar("M", bound=Hashable)

_DEEP: Final = 4
"""How many must wait for each lane, for a batch to be prepared while all of them run."""


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

    @property
    def bulk(self) -> bool:
        """Whether a bulk sequence leads it."""
        return self.batch[0].priority is Priority.BULK


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can start before something arrives, or a lane is done."""


def decide(backlogs: Mapping[M, Backlog[W]], lanes: Lanes, limits: Limits, now_s: float) -> Start[M, W] | Wait:
    """The next batch to start. Changes nothing: the caller takes the batch out with `Backlog.start`."""
    free = lanes.free
    lane, begins_s = (free[0], now_s) if free else lanes.first_done(now_s) or (None, inf)
    if lane is None:
        return Wait()
    found = _leader(backlogs, lanes, now_s)
    if found is None:
        return Wait()
    leader, model = found
    backlog = backlogs[model]
    if backlog.memory.batch_bytes(1, leader.length) > limits.memory_bytes:
        # The memory that running batches hold comes back; a leader is never overtaken for its size.
        return Wait()
    capped = lanes.interactive_seen(now_s)
    if not free and (backlog.distinct < _DEEP * lanes.narrow or (capped and leader.priority is Priority.BULK)):
        # Who comes before a lane is done may deserve it more.
        return Wait()
    wide = _goes_wide(backlogs, backlog, leader, lanes)
    # A batch that empties the backlog beside an idle lane would make its members wait for one another.
    share = 1 if wide else -(-backlog.distinct // (len(free) or lanes.narrow))
    batch, closed_by = companions(backlog, leader, limits, share, begins_s, limits.bulk_s if capped else inf)
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


def _leader(backlogs: Mapping[M, Backlog[W]], lanes: Lanes, now_s: float) -> tuple[W, M] | None:
    """Who leads, and of which model; None if nobody waits.

    Interactive work first, but for the share of the lanes that is kept for bulk work. Across models, whose turns do not
    compare, the one leads that the lanes did least for of late: whoever floods a model holds up its callers alone.
    """
    interactive = _least_served(backlogs, lanes, Priority.INTERACTIVE, now_s)
    bulk = _least_served(backlogs, lanes, Priority.BULK, now_s)
    if interactive is None or bulk is None:
        return interactive or bulk
    leader, model = interactive
    if next(backlogs[model].late(leader), None) is leader:
        return interactive
    waits, its_model = bulk
    alone_s = backlogs[its_model].cost.seconds(1, waits.length)
    return bulk if lanes.bulk_is_due(waits.arrived_s, alone_s, now_s) else interactive


def _least_served(
    backlogs: Mapping[M, Backlog[W]], lanes: Lanes, priority: Priority, now_s: float
) -> tuple[W, M] | None:
    found = [(leader, model) for model, backlog in backlogs.items() if (leader := backlog.leader(priority))]
    if len(found) < 2:
        return found[0] if found else None
    return min(found, key=lambda one: (lanes.given_s(one[1], now_s), one[0].arrived_s))


def _goes_wide(backlogs: Mapping[M, Backlog[W]], backlog: Backlog[W], leader: W, lanes: Lanes) -> bool:
    """Whether the leader gains more by all cores than others lose by waiting for it.

    Those are the ones who wait already, for the whole run, and those who are likely to come meanwhile, for half of it:
    the narrow lanes would have taken them at once.
    """
    if leader.solitary or lanes.wide is None or backlog.wide_cost is None:
        return False
    if not lanes.all_free or backlog.distinct > lanes.narrow:
        return False
    if any(other.sequences for other in backlogs.values() if other is not backlog):
        return False
    wide_s = backlog.wide_cost.seconds(1, leader.length)
    gain_s = backlog.cost.seconds(1, leader.length) - wide_s
    come = lanes.come_per_s * wide_s
    return gain_s > (backlog.distinct - 1 + come / 2) * wide_s
