"""The one simulator: arrivals, lanes and a clock that jumps, around the very `decide` that the server runs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import count
from typing import Final, Literal

from harken_server.scheduling.backlog import Backlog
from harken_server.scheduling.cost import CostSurface
from harken_server.scheduling.deadline import Deadline
from harken_server.scheduling.memory import MemoryModel
from harken_server.scheduling.policy import Limits, Start, Wait, decide
from harken_server.scheduling.waiting import Priority, Waiting

Outcome = Literal["answered", "expired", "cancelled"]
Decision = Start[str, "Simulated"] | Wait
Policy = Callable[[Mapping[str, Backlog["Simulated"]], Sequence[int], Limits, float], Decision]

_MODEL: Final = "simulated"
_NEVER_S: Final = float("inf")


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of one sequence."""

    at_s: float
    length: int
    flow: object = None
    """None: a flow of its own."""
    priority: Priority = Priority.INTERACTIVE
    deadline_s: float = _NEVER_S
    """After its arrival."""
    cancel_s: float = _NEVER_S
    """When its caller goes away, after its arrival."""


@dataclass(eq=False, slots=True)
class Simulated(Waiting):
    """A simulated sequence, and what became of it."""

    arrival: Arrival
    outcomes: list[Outcome] = field(default_factory=list)
    """Each thing that ended it: exactly one, or the core has a bug."""
    started_s: float | None = None
    ended_s: float | None = None


@dataclass
class Simulation:
    """What happened."""

    sequences: list[Simulated] = field(default_factory=list)
    batches: list[Start[str, Simulated]] = field(default_factory=list)
    ended_s: float = 0.0
    peak_bytes: int = 0
    """Most predicted memory of batches that ran at the same time."""

    def answered_per_s(self) -> float:
        """Throughput over the whole run."""
        return sum(sequence.outcomes == ["answered"] for sequence in self.sequences) / self.ended_s

    def latencies_s(self) -> list[float]:
        """Of everyone answered, sorted."""
        return sorted(
            sequence.ended_s - sequence.arrived_s
            for sequence in self.sequences
            if sequence.ended_s is not None and sequence.outcomes == ["answered"]
        )

    def padding_share(self) -> float:
        """Padding over all tokens computed."""
        real = sum(member.length for batch in self.batches for member in batch.batch)
        padded = sum(len(batch.batch) * max(member.length for member in batch.batch) for batch in self.batches)
        return 1.0 - real / padded if padded else 0.0

    def mean_batch(self) -> float:
        """Sequences a batch."""
        return sum(len(batch.batch) for batch in self.batches) / len(self.batches) if self.batches else 0.0


def simulate(
    arrivals: Iterable[Arrival],
    cost: CostSurface,
    memory: MemoryModel,
    limits: Limits,
    lanes: int,
    *,
    policy: Policy = decide,
    took_s: Callable[[int, int], float] | None = None,
    follow: Callable[[float], Arrival | None] = lambda _: None,
) -> Simulation:
    """Run until nothing is left.

    `took_s(batch, padded_length)` is what a batch really takes; by default what `cost` predicts. `follow(now_s)` is
    asked for a further arrival whenever a sequence ends: a closed loop.
    """
    world = _World(cost, memory, limits, lanes, policy, took_s or cost.seconds, follow)
    for arrival in arrivals:
        world.arrive(arrival)
    world.run()
    return world.result


class _World:
    def __init__(
        self,
        cost: CostSurface,
        memory: MemoryModel,
        limits: Limits,
        lanes: int,
        policy: Policy,
        took_s: Callable[[int, int], float],
        follow: Callable[[float], Arrival | None],
    ) -> None:
        self._backlog: Final[Backlog[Simulated]] = Backlog(cost, memory)
        self._limits: Final = limits
        self._policy: Final = policy
        self._took_s: Final = took_s
        self._follow: Final = follow
        self._free: Final = list(range(lanes))
        self._running: Final[dict[int, Start[str, Simulated]]] = {}
        self._events: Final[list[tuple[float, int, Callable[[float], None]]]] = []
        self._order: Final = count()
        self.result: Final = Simulation()

    def run(self) -> None:
        while self._events:
            now_s, _, happen = heappop(self._events)
            happen(now_s)
            self._pump(now_s)
            self.result.ended_s = now_s

    def arrive(self, arrival: Arrival) -> None:
        sequence = Simulated(
            length=arrival.length,
            deadline=Deadline(arrival.at_s + arrival.deadline_s),
            priority=arrival.priority,
            flow=arrival.flow if arrival.flow is not None else object(),
            arrived_s=arrival.at_s,
            arrival=arrival,
        )
        self.result.sequences.append(sequence)
        self._at(arrival.at_s, lambda _: self._backlog.add(sequence))
        if arrival.cancel_s < _NEVER_S:
            self._at(arrival.at_s + arrival.cancel_s, lambda now_s: self._cancel(sequence, now_s))

    def _at(self, moment_s: float, happen: Callable[[float], None]) -> None:
        heappush(self._events, (moment_s, next(self._order), happen))

    def _cancel(self, sequence: Simulated, now_s: float) -> None:
        if self._backlog.remove(sequence):
            self._end(sequence, "cancelled", now_s)

    def _pump(self, now_s: float) -> None:
        while True:
            held_bytes = sum(start.predicted_bytes for start in self._running.values())
            limits = replace(self._limits, memory_bytes=self._limits.memory_bytes - held_bytes)
            start = self._policy({_MODEL: self._backlog}, self._free, limits, now_s)
            if not isinstance(start, Start):
                return
            expired = [sequence for sequence in start.batch if sequence.deadline.passed(now_s)]
            for sequence in expired:
                self._backlog.remove(sequence)
                self._end(sequence, "expired", now_s)
            if not expired:
                self._start(start, now_s)

    def _start(self, start: Start[str, Simulated], now_s: float) -> None:
        self._backlog.start(list(start.batch))
        for sequence in start.batch:
            sequence.started_s = now_s
        self._free.remove(start.lane)
        self._running[start.lane] = start
        self.result.batches.append(start)
        held_bytes = sum(running.predicted_bytes for running in self._running.values())
        self.result.peak_bytes = max(self.result.peak_bytes, held_bytes)
        padded_length = max(sequence.length for sequence in start.batch)
        self._at(now_s + self._took_s(len(start.batch), padded_length), lambda now_s: self._ran(start, now_s))

    def _ran(self, start: Start[str, Simulated], now_s: float) -> None:
        del self._running[start.lane]
        self._free.append(start.lane)
        for sequence in start.batch:
            self._end(sequence, "answered", now_s)

    def _end(self, sequence: Simulated, outcome: Outcome, now_s: float) -> None:
        sequence.outcomes.append(outcome)
        sequence.ended_s = now_s
        following = self._follow(now_s)
        if following is not None:
            self.arrive(following)
