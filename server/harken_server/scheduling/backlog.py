"""Everything that waits for one model, in two orders: by turn (who leads) and by length (who rides along).

Turns are start-time fair queueing between flows (Goyal et al., SIGCOMM 1996, with virtual time advanced by
work served over flows waiting): the hundredth sequence of one call comes after the first of a hundred others.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Final, Generic, TypeVar

from harken_server.scheduling.cost import CostSurface
from harken_server.scheduling.memory import MemoryModel
from harken_server.scheduling.waiting import Priority, Waiting

W = TypeVar("W", bound=Waiting)

BULK_AGE_S: Final = 2.0
"""Bulk work older than this leads before interactive work."""


@dataclass(slots=True)
class _Flow:
    """What of one call or stream waits."""

    next_turn_s: float
    sequences: int = 0
    work_s: float = 0.0


class Backlog(Generic[W]):
    """The sequences that wait for one model. Every operation is O(log n) or better."""

    def __init__(self, cost: CostSurface, memory: MemoryModel, wide_cost: CostSurface | None = None) -> None:
        """`cost` is that of a narrow lane, `wide_cost` that of the wide one; None: this model never goes wide."""
        self.cost: Final = cost
        self.wide_cost: Final = wide_cost
        self.memory: Final = memory
        self._turns: Final[dict[Priority, list[tuple[float, int, W]]]] = {p: [] for p in Priority}
        # Of each length, in the order of turns.
        self._by_length: Final[dict[int, list[tuple[float, int, W]]]] = {}
        self._lengths: Final[list[int]] = []
        self._flows: Final[dict[object, _Flow]] = {}
        self._virtual_s = 0.0
        self._latest_turn_s: Final = dict.fromkeys(Priority, 0.0)
        self._serial = 0
        self._sequences = 0
        self._tokens = 0
        # Unscaled seconds, by priority: of everybody, and of one average sequence of each flow.
        self._work_s: Final = dict.fromkeys(Priority, 0.0)
        self._turn_work_s: Final = dict.fromkeys(Priority, 0.0)

    @property
    def sequences(self) -> int:
        """How many wait."""
        return self._sequences

    @property
    def tokens(self) -> int:
        """Their real tokens."""
        return self._tokens

    @property
    def work_s(self) -> float:
        """Predicted lane seconds to compute all of them."""
        return sum(self._work_s.values()) * self.cost.scale

    def surface(self, wide: bool) -> CostSurface:
        """What batches cost on the wide lane, or on a narrow one. Raises ValueError if this model never goes wide."""
        if not wide:
            return self.cost
        if self.wide_cost is None:
            raise ValueError("no cost surface of the wide lane")
        return self.wide_cost

    def ahead_s(self, sequences: int, priority: Priority) -> float:
        """Predicted lane seconds of what is served before the last of `sequences` of a new flow.

        Fair turns serve as many of each other flow, at most; bulk comes after everything.
        """
        if priority is Priority.BULK:
            return self.work_s
        fair_s = self._turn_work_s[Priority.INTERACTIVE] * sequences
        return min(self._work_s[Priority.INTERACTIVE], fair_s) * self.cost.scale

    def __contains__(self, waiting: W) -> bool:
        return waiting.waits

    def __iter__(self) -> Iterator[W]:
        """Everybody who waits, by length."""
        for length in self._lengths:
            yield from (waiting for _, _, waiting in self._by_length[length])

    def add(self, waiting: W) -> None:
        """Let a sequence wait."""
        self._serial += 1
        waiting.serial = self._serial
        waiting.share_s = self.cost.share_s(waiting.length)
        flow = self._flows.get(waiting.flow)
        now_s = self._turn_now_s(waiting)
        if flow is None:
            self._flows[waiting.flow] = flow = _Flow(next_turn_s=now_s)
        waiting.turn_s = max(now_s, flow.next_turn_s)
        flow.next_turn_s = waiting.turn_s + waiting.share_s
        self._change(waiting, flow, 1)
        entry = (waiting.turn_s, waiting.serial, waiting)
        heappush(self._turns[waiting.priority], entry)
        bucket = self._by_length.get(waiting.length)
        if bucket is None:
            self._by_length[waiting.length] = bucket = []
            insort(self._lengths, waiting.length)
        insort(bucket, entry)
        waiting.waits = True

    def remove(self, waiting: W) -> bool:
        """Take a sequence out, wherever it stands. Returns False if it does not wait here."""
        if not waiting.waits:
            return False
        waiting.waits = False
        bucket = self._by_length[waiting.length]
        del bucket[bisect_left(bucket, (waiting.turn_s, waiting.serial))]
        if not bucket:
            del self._by_length[waiting.length]
            del self._lengths[bisect_left(self._lengths, waiting.length)]
        flow = self._flows[waiting.flow]
        self._change(waiting, flow, -1)
        if not flow.sequences:
            del self._flows[waiting.flow]
        self._compact(self._turns[waiting.priority])
        return True

    def start(self, batch: list[W]) -> None:
        """Take a batch out to run it: virtual time advances by its work over the flows that shared it."""
        flows = len(self._flows)
        work_s = 0.0
        for waiting in batch:
            work_s += waiting.share_s
            if not self.remove(waiting):
                raise ValueError("a batch may only hold what waits")
        self._virtual_s += work_s / flows

    def leader(self, now_s: float) -> W | None:
        """Whose turn it is: interactive before bulk, unless the bulk has waited too long. None if nobody waits."""
        interactive = self._head(Priority.INTERACTIVE)
        bulk = self._head(Priority.BULK)
        if interactive is None or bulk is None:
            return interactive or bulk
        return bulk if now_s - bulk.arrived_s > BULK_AGE_S else interactive

    def not_longer(self, leader: W) -> Iterator[W]:
        """The others from the leader's length downwards; among equals by turn."""
        for index in range(bisect_left(self._lengths, leader.length), -1, -1):
            for _, _, waiting in self._by_length[self._lengths[index]]:
                if waiting is not leader:
                    yield waiting

    def longer(self, leader: W) -> Iterator[W]:
        """The others above the leader's length, upwards; among equals by turn."""
        for index in range(bisect_left(self._lengths, leader.length) + 1, len(self._lengths)):
            yield from (waiting for _, _, waiting in self._by_length[self._lengths[index]])

    def _turn_now_s(self, waiting: W) -> float:
        """The turn of a flow that comes now.

        Virtual time, but at most one turn behind whoever leads: neighbours in length ride out of turn, so that some
        flows lag behind virtual time, and a newcomer must not wait until all of them have caught up. Never before
        whoever came earlier: among single calls turns are the order of arrival.
        """
        priority = waiting.priority
        head = self._head(priority)
        turn_s = self._virtual_s if head is None else min(self._virtual_s, head.turn_s + head.share_s)
        self._latest_turn_s[priority] = max(self._latest_turn_s[priority], turn_s)
        return self._latest_turn_s[priority]

    def _change(self, waiting: W, flow: _Flow, sign: int) -> None:
        """Count a sequence in or out."""
        priority = waiting.priority
        self._sequences += sign
        self._tokens += sign * waiting.length
        self._work_s[priority] += sign * waiting.share_s
        if flow.sequences:
            self._turn_work_s[priority] -= flow.work_s / flow.sequences
        flow.sequences += sign
        flow.work_s += sign * waiting.share_s
        if flow.sequences:
            self._turn_work_s[priority] += flow.work_s / flow.sequences
        if not self._sequences:
            # Sums of floats drift; an empty backlog holds no work.
            self._work_s.update(dict.fromkeys(Priority, 0.0))
            self._turn_work_s.update(dict.fromkeys(Priority, 0.0))

    def _head(self, priority: Priority) -> W | None:
        turns = self._turns[priority]
        while turns and turns[0][2] not in self:
            heappop(turns)
        return turns[0][2] if turns else None

    def _compact(self, turns: list[tuple[float, int, W]]) -> None:
        """Forget entries of those who left, before they outnumber the ones who wait."""
        if len(turns) > 2 * self._sequences + 64:
            turns[:] = [entry for entry in turns if entry[2] in self]
            heapify(turns)
