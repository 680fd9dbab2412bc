"""The order of leading within a tenant: fair between flows, short before long, and nobody overtaken for ever.

Turns are start-time fair queueing between flows (Goyal et al., SIGCOMM 1996, with virtual time advanced by
work served over flows waiting): the hundredth sequence of one call comes after the first of a hundred others.

A sequence is due at its turn plus `STRETCH` times what it costs, over the flows that shared the lanes when it came: a
short one overtakes the long ones that came little before it, and a long one is overtaken only for that time. Equals
lead in the order of their turns.

Companions ride out of turn. So that this stays bounded too, the first of each flow is late once `AGE` times the work
of the firsts of all flows, as they were when it became one of them, was started before it. The late lead, in the order
in which they became so, and nobody rides before them. It follows that from the time when a sequence becomes the first
of its flow, at most (`AGE` + 1) times that work starts before it, and the batch that made it late. For let z be the
last to become a first of those who are late and lead before it: then all of them were firsts, so that together they
are no more than what z counted, and of that `AGE` times was started since, which is no more than it counted itself.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Final, Generic, TypeVar

from harken_server.scheduling.waiting import Priority, Waiting

W = TypeVar("W", bound=Waiting)

STRETCH: Final = 0.05
"""For how many times its own least cost a sequence lets shorter ones go first."""

AGE: Final = 2.0
"""How many times the work of the firsts of all flows is started before an interactive sequence is late."""

_Queue = list[tuple[float, int, W]]
"""A heap: by when, serial, who."""


@dataclass(slots=True)
class _Flow(Generic[W]):
    """What of one call or stream waits, at one priority."""

    next_turn_s: float
    sequences: int = 0
    work_s: float = 0.0
    line: deque[W] = field(default_factory=deque)
    """In the order of arrival. Who left is forgotten when it comes to the front."""


class Turns(Generic[W]):
    """Who leads next. Seconds are unscaled lane seconds. Every operation is O(log n), spread over many."""

    def __init__(self) -> None:
        self._dues: Final[dict[Priority, _Queue[W]]] = {priority: [] for priority in Priority}
        self._flows: Final[dict[tuple[Priority, object], _Flow[W]]] = {}
        self._virtual_s = 0.0
        self._latest_turn_s: Final = dict.fromkeys(Priority, 0.0)
        self._sequences = 0
        # By priority: of one average sequence of each flow.
        self._turn_work_s: Final = dict.fromkeys(Priority, 0.0)
        # What everybody started would have cost alone, and what the first of each interactive flow would.
        self._started_s = 0.0
        self._firsts_s = 0.0
        self._firsts: Final[_Queue[W]] = []
        self._late: Final[deque[W]] = deque()

    def turn_work_s(self, priority: Priority) -> float:
        """The work of one average sequence of each flow."""
        return self._turn_work_s[priority]

    def leader(self, priority: Priority) -> W | None:
        """Whose turn it is among those of this priority, the late first. None if none of them waits."""
        if priority is Priority.INTERACTIVE and (late := next(self.late(), None)):
            return late
        return self._due(priority)

    def late(self) -> Iterator[W]:
        """Those who were overtaken for too long, in the order in which they became due."""
        while self._late and not self._late[0].waits:
            self._late.popleft()
        return filter(_waits, self._late)

    def add(self, waiting: W) -> None:
        """Give a sequence its turn."""
        priority = waiting.priority
        now_s = self._turn_now_s(priority)
        flow = self._flows.get((priority, waiting.flow))
        if flow is None:
            self._flows[priority, waiting.flow] = flow = _Flow(next_turn_s=now_s)
        waiting.turn_s = max(now_s, flow.next_turn_s)
        flow.next_turn_s = waiting.turn_s + waiting.share_s
        flow.line.append(waiting)
        self._change(waiting, flow, 1)
        if flow.sequences == 1:
            self._becomes_first(waiting)

    def queue(self, waiting: W, before: W | None) -> None:
        """Let a sequence that has its turn lead when it is due; `before` has the next earlier turn of its length."""
        due_s = waiting.turn_s + STRETCH * waiting.share_s / len(self._flows)
        # Equals lead in the order of their turns, however many flows came in between.
        waiting.due_s = max(due_s, before.due_s) if before else due_s
        heappush(self._dues[waiting.priority], (waiting.due_s, waiting.serial, waiting))

    def remove(self, waiting: W) -> None:
        """Forget a sequence whose `waits` is already False."""
        priority = waiting.priority
        flow = self._flows[priority, waiting.flow]
        self._change(waiting, flow, -1)
        if flow.line[0] is waiting:
            if priority is Priority.INTERACTIVE:
                self._firsts_s -= waiting.alone_s
            while flow.line and not flow.line[0].waits:
                flow.line.popleft()
            if flow.line:
                self._becomes_first(flow.line[0])
        if not flow.sequences:
            del self._flows[priority, waiting.flow]
        _compact(self._dues[priority], self._sequences)
        _compact(self._firsts, len(self._flows))

    def start(self, batch: Sequence[W]) -> None:
        """Time goes on by a batch that starts, and whose members still wait."""
        self._virtual_s += sum(waiting.share_s for waiting in batch) / len(self._flows)
        self._started_s += sum(waiting.alone_s for waiting in batch)
        while self._firsts and self._firsts[0][0] <= self._started_s:
            self._late.append(heappop(self._firsts)[2])

    def _becomes_first(self, waiting: W) -> None:
        if waiting.priority is Priority.INTERACTIVE:
            self._firsts_s += waiting.alone_s
            late_s = self._started_s + AGE * self._firsts_s
            heappush(self._firsts, (late_s, waiting.serial, waiting))

    def _turn_now_s(self, priority: Priority) -> float:
        """The turn of a flow that comes now.

        Virtual time, but at most one turn behind whoever leads: neighbours in length ride out of turn, so that some
        flows lag behind virtual time, and a newcomer must not wait until all of them have caught up. Never before
        whoever came earlier: among single calls turns are the order of arrival.
        """
        due = self._due(priority)
        turn_s = self._virtual_s if due is None else min(self._virtual_s, due.turn_s + due.share_s)
        self._latest_turn_s[priority] = max(self._latest_turn_s[priority], turn_s)
        return self._latest_turn_s[priority]

    def _change(self, waiting: W, flow: _Flow[W], sign: int) -> None:
        """Count a sequence in or out."""
        priority = waiting.priority
        if flow.sequences:
            self._turn_work_s[priority] -= flow.work_s / flow.sequences
        self._sequences += sign
        flow.sequences += sign
        flow.work_s += sign * waiting.share_s
        if flow.sequences:
            self._turn_work_s[priority] += flow.work_s / flow.sequences
        if not self._sequences:
            # Sums of floats drift; where nobody waits there is no work, and whoever left is of no more use.
            self._turn_work_s.update(dict.fromkeys(Priority, 0.0))
            for dues in self._dues.values():
                dues.clear()
            self._firsts.clear()
            self._late.clear()

    def _due(self, priority: Priority) -> W | None:
        """Who is due first."""
        dues = self._dues[priority]
        while dues and not dues[0][2].waits:
            heappop(dues)
        return dues[0][2] if dues else None


def _waits(waiting: Waiting) -> bool:
    return waiting.waits


def _compact(heap: _Queue[W], most: int) -> None:
    """Forget entries of those who left, before they outnumber the `most` who may wait."""
    if len(heap) > 2 * most + 64:
        heap[:] = [entry for entry in heap if entry[2].waits]
        heapify(heap)
