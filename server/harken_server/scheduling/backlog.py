"""Everything that waits for one model: a queue for each tenant, and what they add up to."""

from collections.abc import Iterator, Sequence
from heapq import merge
from typing import Final, Generic, TypeVar

from harken_server.scheduling.cost import CostSurface
from harken_server.scheduling.memory import MemoryModel
from harken_server.scheduling.tenants import TenantQueue, entitled
from harken_server.scheduling.waiting import ANYBODY, Priority, Tenant, Waiting

W = TypeVar("W", bound=Waiting)


class Backlog(Generic[W]):
    """The sequences that wait for one model. Every operation is O(log n) or better."""

    def __init__(self, cost: CostSurface, memory: MemoryModel, wide_cost: CostSurface | None = None) -> None:
        """`cost` is that of a narrow lane, `wide_cost` that of the wide one; None: this model never goes wide."""
        self.cost: Final = cost
        self.wide_cost: Final = wide_cost
        self.memory: Final = memory
        # Of every tenant that ever came: what it was served is remembered over its pauses.
        self._queues: Final[dict[str, TenantQueue[W]]] = {}
        # Those in which somebody waits.
        self._waiting: Final[list[TenantQueue[W]]] = []
        # Where a tenant begins that comes when nobody waits.
        self._level_tokens = 0.0
        # Who wants the same, by serial.
        self._twins: Final[dict[tuple[bytes, Priority], dict[int, W]]] = {}
        self._serial = 0
        self._sequences = 0
        self._distinct = 0
        self._solitary = 0
        self._tokens = 0
        # Unscaled seconds, by priority.
        self._work_s: Final = dict.fromkeys(Priority, 0.0)

    @property
    def sequences(self) -> int:
        """How many wait."""
        return self._sequences

    @property
    def distinct(self) -> int:
        """How many of them want something of their own computed."""
        return self._distinct

    @property
    def solitary(self) -> int:
        """How many of them have to run alone."""
        return self._solitary

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

    def ahead_s(self, sequences: int, priority: Priority, tenant: Tenant = ANYBODY, own_s: float = 0.0) -> float:
        """Predicted lane seconds of what is served before the last of `sequences`, a new flow of `own_s` in all.

        Fair turns serve as many of each other flow of the same tenant, at most; other tenants are served meanwhile as
        their weights say; bulk comes after everything.
        """
        if priority is Priority.BULK:
            return self.work_s
        ahead_s, others = 0.0, []
        for queue in self._waiting:
            if queue is self._queues.get(tenant.queue):
                fair_s = queue.turns.turn_work_s(Priority.INTERACTIVE) * sequences
                ahead_s = min(queue.work_s[Priority.INTERACTIVE], fair_s) * self.cost.scale
            else:
                others.append(queue)
        mine_s = (ahead_s + own_s) / tenant.weight
        for queue in others:
            ahead_s += min(queue.work_s[Priority.INTERACTIVE] * self.cost.scale, mine_s * queue.weight)
        return ahead_s

    def __contains__(self, waiting: W) -> bool:
        return waiting.waits

    def __iter__(self) -> Iterator[W]:
        """Everybody who waits, by tenant and length."""
        for queue in self._waiting:
            yield from queue

    def add(self, waiting: W) -> None:
        """Let a sequence wait."""
        self._serial += 1
        waiting.serial = self._serial
        waiting.share_s = self.cost.share_s(waiting.length)
        waiting.alone_s = self.cost.alone_s(waiting.length)
        waiting.waits = True
        queue = self._queues.get(waiting.tenant.queue)
        if queue is None:
            self._queues[waiting.tenant.queue] = queue = TenantQueue()
        if not queue.sequences:
            level_tokens = min([other.served_tokens for other in self._waiting], default=self._level_tokens)
            queue.served_tokens = max(queue.served_tokens, level_tokens)
            self._waiting.append(queue)
        alone = True
        if waiting.twin is not None:
            twins = self._twins.setdefault((waiting.twin, waiting.priority), {})
            alone = not twins
            twins[waiting.serial] = waiting
        work_s = waiting.share_s if alone else 0.0
        queue.add(waiting, work_s)
        self._sequences += 1
        self._distinct += alone
        self._solitary += waiting.solitary
        self._tokens += waiting.length
        self._work_s[waiting.priority] += work_s

    def remove(self, waiting: W) -> bool:
        """Take a sequence out, wherever it stands. Returns False if it does not wait here."""
        if not waiting.waits:
            return False
        waiting.waits = False
        alone = True
        if waiting.twin is not None:
            twins = self._twins[waiting.twin, waiting.priority]
            del twins[waiting.serial]
            alone = not twins
            if alone:
                del self._twins[waiting.twin, waiting.priority]
        work_s = waiting.share_s if alone else 0.0
        queue = self._queues[waiting.tenant.queue]
        queue.remove(waiting, work_s)
        if not queue.sequences:
            self._waiting.remove(queue)
            self._level_tokens = max(self._level_tokens, queue.served_tokens)
        self._sequences -= 1
        self._distinct -= alone
        self._solitary -= waiting.solitary
        self._tokens -= waiting.length
        self._work_s[waiting.priority] -= work_s
        if not self._sequences:
            # Sums of floats drift; an empty backlog holds no work.
            self._work_s.update(dict.fromkeys(Priority, 0.0))
        return True

    def start(self, batch: Sequence[W]) -> list[tuple[W, W]]:
        """Take a batch out to run it. Raises ValueError if somebody in it does not wait.

        Who wants the same as a member is taken out as well, and shares its outcome: returns them, each with its member.
        """
        if not all(waiting.waits for waiting in batch):
            raise ValueError("a batch may only hold what waits")
        for queue in list(self._waiting):
            members = batch if len(self._waiting) == 1 else [one for one in batch if self._queue_of(one) is queue]
            if members:
                queue.start(members)
        for waiting in batch:
            self.remove(waiting)
        riders = [
            (rider, waiting) for waiting in batch if waiting.twin is not None for rider in self._same(waiting.twin)
        ]
        for rider, _ in riders:
            self.remove(rider)
        return riders

    def leader(self, priority: Priority) -> W | None:
        """Whose turn it is among those of this priority, of the tenants that may be served now."""
        for queue in self._entitled():
            if leader := queue.turns.leader(priority):
                return leader
        return None

    def late(self, leader: W) -> Iterator[W]:
        """Those of the leader's tenant who were overtaken for too long: if one leads, only they may ride along."""
        return self._queue_of(leader).turns.late()

    @property
    def shared_out(self) -> bool:
        """Whether some tenants have had so much more than others that nothing of theirs may be served now."""
        return len(self._entitled()) < len(self._waiting)

    def not_longer(self, leader: W) -> Iterator[W]:
        """The others who may be served now, from the leader's length downwards; among equals by tenant and turn."""
        sides = [queue.not_longer(leader) for queue in self._entitled()]
        return sides[0] if len(sides) == 1 else merge(*sides, key=lambda waiting: -waiting.length)

    def longer(self, leader: W) -> Iterator[W]:
        """The others who may be served now, above the leader's length, upwards; among equals by tenant and turn."""
        sides = [queue.longer(leader) for queue in self._entitled()]
        return sides[0] if len(sides) == 1 else merge(*sides, key=lambda waiting: waiting.length)

    def _entitled(self) -> Sequence[TenantQueue[W]]:
        return self._waiting if len(self._waiting) == 1 else entitled(self._waiting)

    def _same(self, twin: bytes) -> Iterator[W]:
        for priority in Priority:
            yield from self._twins.get((twin, priority), {}).values()

    def _queue_of(self, waiting: W) -> TenantQueue[W]:
        return self._queues[waiting.tenant.queue]
