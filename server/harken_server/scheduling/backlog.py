"""Everything that waits for one model, in two orders: by turn (who leads) and by length (who rides along)."""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import Final, Generic, TypeVar

from harken_server.scheduling.cost import CostSurface
from harken_server.scheduling.memory import MemoryModel
from harken_server.scheduling.turns import Turns
from harken_server.scheduling.waiting import Priority, Waiting

W = TypeVar("W", bound=Waiting)


class Backlog(Generic[W]):
    """The sequences that wait for one model. Every operation is O(log n) or better."""

    def __init__(self, cost: CostSurface, memory: MemoryModel, wide_cost: CostSurface | None = None) -> None:
        """`cost` is that of a narrow lane, `wide_cost` that of the wide one; None: this model never goes wide."""
        self.cost: Final = cost
        self.wide_cost: Final = wide_cost
        self.memory: Final = memory
        self._turns: Final[Turns[W]] = Turns()
        # Of each length, in the order of turns.
        self._by_length: Final[dict[int, list[tuple[float, int, W]]]] = {}
        self._lengths: Final[list[int]] = []
        self._serial = 0
        self._sequences = 0
        self._tokens = 0
        # Unscaled seconds, by priority.
        self._work_s: Final = dict.fromkeys(Priority, 0.0)

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

    def urgent_s(self, priority: Priority) -> float:
        """Predicted lane seconds of what is at least so urgent."""
        if priority is Priority.BULK:
            return self.work_s
        return self._work_s[Priority.INTERACTIVE] * self.cost.scale

    def surface(self, wide: bool) -> CostSurface:
        """What batches cost on the wide lane, or on a narrow one. Raises ValueError if this model never goes wide."""
        if not wide:
            return self.cost
        if self.wide_cost is None:
            raise ValueError("no cost surface of the wide lane")
        return self.wide_cost

    def learn(self, wide: bool, batch: int, padded_length: int, took_s: float) -> None:
        """A batch ran: the surface of its lane follows it, and the other one's scale drifts after."""
        ran = self.surface(wide)
        ran.learn(batch, padded_length, took_s)
        other = self.cost if wide else self.wide_cost
        if other is not None:
            other.relax(ran.scale)

    def ahead_s(self, sequences: int, priority: Priority) -> float:
        """Predicted lane seconds of what is served before the last of `sequences` of a new flow.

        Fair turns serve as many of each other flow, at most; bulk comes after everything.
        """
        if priority is Priority.BULK:
            return self.work_s
        fair_s = self._turns.turn_work_s(Priority.INTERACTIVE) * sequences
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
        waiting.alone_s = self.cost.alone_s(waiting.length)
        waiting.waits = True
        self._turns.add(waiting)
        self._change(waiting, 1)
        bucket = self._by_length.get(waiting.length)
        if bucket is None:
            self._by_length[waiting.length] = bucket = []
            insort(self._lengths, waiting.length)
        place = bisect_left(bucket, (waiting.turn_s, waiting.serial))
        self._turns.queue(waiting, bucket[place - 1][2] if place else None)
        bucket.insert(place, (waiting.turn_s, waiting.serial, waiting))

    def remove(self, waiting: W) -> bool:
        """Take a sequence out, wherever it stands. Returns False if it does not wait here."""
        if not waiting.waits:
            return False
        waiting.waits = False
        self._turns.remove(waiting)
        self._change(waiting, -1)
        bucket = self._by_length[waiting.length]
        del bucket[bisect_left(bucket, (waiting.turn_s, waiting.serial))]
        if not bucket:
            del self._by_length[waiting.length]
            del self._lengths[bisect_left(self._lengths, waiting.length)]
        return True

    def start(self, batch: Sequence[W]) -> None:
        """Take a batch out to run it. Raises ValueError if somebody in it does not wait."""
        if not all(waiting.waits for waiting in batch):
            raise ValueError("a batch may only hold what waits")
        self._turns.start(batch)
        for waiting in batch:
            self.remove(waiting)

    def leader(self, now_s: float) -> W | None:
        """Whose turn it is. None if nobody waits."""
        return self._turns.leader(now_s)

    def late(self) -> Iterator[W]:
        """Those who were overtaken for too long; the first of them leads, and none but them may ride along."""
        return self._turns.late()

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

    def _change(self, waiting: W, sign: int) -> None:
        """Count a sequence in or out."""
        self._sequences += sign
        self._tokens += sign * waiting.length
        self._work_s[waiting.priority] += sign * waiting.share_s
        if not self._sequences:
            # Sums of floats drift; an empty backlog holds no work.
            self._work_s.update(dict.fromkeys(Priority, 0.0))
