"""Shares: tenants that wait at the same time get of the lanes, in tokens, what their weights say.

Weighted fair queueing over tokens: each tenant has a count of what it was served over its weight, and whoever waits and
has the least is the furthest behind. A tenant may be ahead of that one by `AHEAD_TOKENS`, so that neighbours in length
ride together whoever sent them, and so that priorities hold between tenants who take no more than their shares; one
that is further ahead neither leads nor rides until the others have caught up. So over any time in which some tenants
wait all along, their served tokens over their weights differ by that, and a batch. A tenant that comes back after a
pause has saved nothing up: it begins level with the one furthest behind.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import Final, Generic, TypeVar

from harken_server.scheduling.turns import Turns
from harken_server.scheduling.waiting import Priority, Waiting

W = TypeVar("W", bound=Waiting)

AHEAD_TOKENS: Final = 1024.0
"""By how much a tenant may be ahead of the one furthest behind: about a batch on the CPU. Over its weight."""


class TenantQueue(Generic[W]):
    """What of one tenant waits, in two orders: by turn (who leads) and by length (who rides along)."""

    def __init__(self) -> None:
        self.turns: Final[Turns[W]] = Turns()
        self.served_tokens = 0.0
        """Over its weight; only differences between those who wait mean anything."""
        self.weight = 1.0
        self.sequences = 0
        # Of each length, in the order of turns.
        self._by_length: Final[dict[int, list[tuple[float, int, W]]]] = {}
        self._lengths: Final[list[int]] = []
        # Unscaled seconds, by priority.
        self.work_s: Final = dict.fromkeys(Priority, 0.0)

    def __iter__(self) -> Iterator[W]:
        """Everybody who waits, by length."""
        for length in self._lengths:
            yield from (waiting for _, _, waiting in self._by_length[length])

    def add(self, waiting: W, work_s: float) -> None:
        """Let a sequence wait that adds so much work."""
        self.weight = waiting.tenant.weight
        self.turns.add(waiting)
        self.sequences += 1
        self.work_s[waiting.priority] += work_s
        bucket = self._by_length.get(waiting.length)
        if bucket is None:
            self._by_length[waiting.length] = bucket = []
            insort(self._lengths, waiting.length)
        place = bisect_left(bucket, (waiting.turn_s, waiting.serial))
        self.turns.queue(waiting, bucket[place - 1][2] if place else None)
        bucket.insert(place, (waiting.turn_s, waiting.serial, waiting))

    def remove(self, waiting: W, work_s: float) -> None:
        """Forget a sequence whose `waits` is already False, and so much work with it."""
        self.turns.remove(waiting)
        self.sequences -= 1
        self.work_s[waiting.priority] -= work_s
        if not self.sequences:
            # Sums of floats drift; where nobody waits there is no work.
            self.work_s.update(dict.fromkeys(Priority, 0.0))
        bucket = self._by_length[waiting.length]
        del bucket[bisect_left(bucket, (waiting.turn_s, waiting.serial))]
        if not bucket:
            del self._by_length[waiting.length]
            del self._lengths[bisect_left(self._lengths, waiting.length)]

    def start(self, batch: Sequence[W]) -> None:
        """Some of this tenant's start; they still wait."""
        self.turns.start(batch)
        self.served_tokens += sum(waiting.length for waiting in batch) / self.weight

    def not_longer(self, leader: W) -> Iterator[W]:
        """The others from the leader's length downwards; among equals by turn."""
        for index in range(bisect_left(self._lengths, leader.length + 1) - 1, -1, -1):
            for _, _, waiting in self._by_length[self._lengths[index]]:
                if waiting is not leader:
                    yield waiting

    def longer(self, leader: W) -> Iterator[W]:
        """Those above the leader's length, upwards; among equals by turn."""
        for index in range(bisect_left(self._lengths, leader.length + 1), len(self._lengths)):
            yield from (waiting for _, _, waiting in self._by_length[self._lengths[index]])


def entitled(queues: Sequence[TenantQueue[W]]) -> list[TenantQueue[W]]:
    """Of those where somebody waits: who may lead and ride now, the furthest behind first."""
    if not queues:
        return []
    behind = sorted(queues, key=lambda queue: queue.served_tokens)
    return [queue for queue in behind if queue.served_tokens <= behind[0].served_tokens + AHEAD_TOKENS]
