"""The one simulator: arrivals, lanes and a clock that jumps, around the very `decide` that the server runs."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import count
from typing import Final, Literal, Protocol

from harken_server.scheduling.backlog import Backlog
from harken_server.scheduling.companions import Limits
from harken_server.scheduling.deadline import Deadline
from harken_server.scheduling.lanes import Lanes
from harken_server.scheduling.policy import Start, Wait, decide
from harken_server.scheduling.waiting import ANYBODY, Priority, Tenant, Waiting

Outcome = Literal["answered", "expired", "cancelled"]
Decision = Start[str, "Simulated"] | Wait
Policy = Callable[[Mapping[str, Backlog["Simulated"]], Lanes, Limits, float], Decision]

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
    tenant: Tenant = ANYBODY
    twin: bytes | None = None
    solitary: bool = False
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
    riders: "list[Simulated]" = field(default_factory=list)
    """Who wanted the same, and shares its outcome."""
    started_s: float | None = None
    ended_s: float | None = None


class Record(Protocol):
    """What a simulation is told of, in the order in which it happens."""

    def arrived(self, sequence: Simulated) -> None:
        """It waits from now on."""

    def started(self, start: Start[str, Simulated], running_bytes: int) -> None:
        """A batch was given to its lane; `running_bytes` is the predicted memory of all that run or are prepared."""

    def ended(self, sequence: Simulated) -> None:
        """Its last outcome is new."""


@dataclass
class Simulation:
    """The record that keeps everything."""

    sequences: list[Simulated] = field(default_factory=list)
    """In the order of arrival."""
    batches: list[Start[str, Simulated]] = field(default_factory=list)
    ended_s: float = 0.0
    peak_bytes: int = 0
    """Most predicted memory of batches that ran or were prepared at the same time."""

    def arrived(self, sequence: Simulated) -> None:
        """Keep it."""
        self.sequences.append(sequence)

    def started(self, start: Start[str, Simulated], running_bytes: int) -> None:
        """Keep it."""
        self.batches.append(start)
        self.peak_bytes = max(self.peak_bytes, running_bytes)

    def ended(self, sequence: Simulated) -> None:
        """The run lasted at least until now."""
        assert sequence.ended_s is not None
        self.ended_s = sequence.ended_s

    def answered_per_s(self) -> float:
        """Throughput over the whole run."""
        return sum(sequence.outcomes == ["answered"] for sequence in self.sequences) / self.ended_s

    def latencies_s(self, lengths: range = range(1 << 30)) -> list[float]:
        """Of everyone answered whose length lies in `lengths`, sorted."""
        return sorted(
            sequence.ended_s - sequence.arrived_s
            for sequence in self.sequences
            if sequence.ended_s is not None and sequence.outcomes == ["answered"] and sequence.length in lengths
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
    backlog: Backlog[Simulated],
    limits: Limits,
    lanes: Lanes,
    *,
    record: Record,
    policy: Policy = decide,
    took_s: Callable[[Start[str, Simulated]], float] | None = None,
    follow: Callable[[float], Arrival | None] = lambda _: None,
) -> None:
    """Run until nothing is left. `arrivals` come in the order of time, and are asked for one by one.

    `took_s(start)` is what a batch really takes, which the backlog's cost surface learns from; without it, every batch
    takes what was predicted. `follow(now_s)` is asked for a further arrival whenever a sequence ends: a closed loop.
    """
    _World(iter(arrivals), backlog, limits, lanes, record, policy, took_s, follow).run()


class _World:
    def __init__(
        self,
        arrivals: Iterator[Arrival],
        backlog: Backlog[Simulated],
        limits: Limits,
        lanes: Lanes,
        record: Record,
        policy: Policy,
        took_s: Callable[[Start[str, Simulated]], float] | None,
        follow: Callable[[float], Arrival | None],
    ) -> None:
        self._arrivals: Final = arrivals
        self._backlog: Final = backlog
        self._limits: Final = limits
        self._lanes: Final = lanes
        self._record: Final = record
        self._policy: Final = policy
        self._took_s: Final = took_s
        self._follow: Final = follow
        self._running: Final[set[int]] = set()
        self._prepared: Final[dict[int, Start[str, Simulated]]] = {}
        self._running_bytes = 0
        self._events: Final[list[tuple[float, int, Callable[[float], None]]]] = []
        self._order: Final = count()

    def run(self) -> None:
        self._next_arrival(0.0)
        while self._events:
            now_s, _, happen = heappop(self._events)
            happen(now_s)
            if self._lanes.free:
                self._pump(now_s)

    def _next_arrival(self, not_before_s: float) -> None:
        arrival = next(self._arrivals, None)
        if arrival is None:
            return
        if arrival.at_s < not_before_s:
            raise ValueError("arrivals must come in the order of time")

        def happen(now_s: float) -> None:
            self._next_arrival(now_s)
            self._arrive(arrival)

        self._at(arrival.at_s, happen)

    def _arrive(self, arrival: Arrival) -> None:
        sequence = Simulated(
            length=arrival.length,
            deadline=Deadline(arrival.at_s + arrival.deadline_s),
            priority=arrival.priority,
            flow=arrival.flow if arrival.flow is not None else object(),
            arrived_s=arrival.at_s,
            arrival=arrival,
            tenant=arrival.tenant,
            twin=arrival.twin,
            solitary=arrival.solitary,
        )
        self._record.arrived(sequence)
        self._lanes.arrived(1, arrival.priority, arrival.at_s)
        self._backlog.add(sequence)
        if arrival.cancel_s < _NEVER_S:
            self._at(arrival.at_s + arrival.cancel_s, lambda now_s: self._cancel(sequence, now_s))

    def _at(self, moment_s: float, happen: Callable[[float], None]) -> None:
        heappush(self._events, (moment_s, next(self._order), happen))

    def _cancel(self, sequence: Simulated, now_s: float) -> None:
        prepared = sequence.started_s is None and not sequence.outcomes
        if self._backlog.remove(sequence) or prepared:
            self._end(sequence, "cancelled", now_s)

    def _pump(self, now_s: float) -> None:
        while True:
            limits = replace(self._limits, memory_bytes=self._limits.memory_bytes - self._running_bytes)
            start = self._policy({_MODEL: self._backlog}, self._lanes, limits, now_s)
            if not isinstance(start, Start):
                return
            expired = [sequence for sequence in start.batch if sequence.deadline.passed(now_s)]
            for sequence in expired:
                self._backlog.remove(sequence)
                self._end(sequence, "expired", now_s)
            if not expired:
                self._start(start, now_s)

    def _start(self, start: Start[str, Simulated], now_s: float) -> None:
        for rider, member in self._backlog.start(list(start.batch)):
            member.riders.append(rider)
        self._lanes.start(start.lane, now_s, start.predicted_s, start.bulk, start.model)
        self._running_bytes += start.predicted_bytes
        self._record.started(start, self._running_bytes)
        if start.lane in self._running:
            self._prepared[start.lane] = start
        else:
            self._run(start, now_s)

    def _run(self, start: Start[str, Simulated], now_s: float) -> None:
        """It begins on its lane. Who went away, or is too late, since it was prepared, is not computed."""
        rides = []
        for sequence in start.batch:
            for one in (sequence, *sequence.riders):
                if one.deadline.passed(now_s) and not one.outcomes:
                    self._end(one, "expired", now_s)
                if not one.outcomes:
                    one.started_s = now_s
            if not all(one.outcomes for one in (sequence, *sequence.riders)):
                rides.append(sequence)
        self._running.add(start.lane)
        start = replace(start, batch=rides)
        took_s = 0.0
        if rides:
            took_s = self._took_s(start) if self._took_s else start.predicted_s
        self._at(now_s + took_s, lambda now_s: self._ran(start, took_s, now_s))

    def _ran(self, start: Start[str, Simulated], took_s: float, now_s: float) -> None:
        self._running.remove(start.lane)
        self._running_bytes -= start.predicted_bytes
        self._lanes.done(start.lane, now_s)
        if start.lane in self._prepared:
            self._run(self._prepared.pop(start.lane), now_s)
        if self._took_s and start.batch:
            longest = max(sequence.length for sequence in start.batch)
            self._backlog.learn(start.wide, len(start.batch), longest, took_s)
        for sequence in start.batch:
            for one in (sequence, *sequence.riders):
                if not one.outcomes:
                    self._end(one, "answered", now_s)
        self._pump(now_s)

    def _end(self, sequence: Simulated, outcome: Outcome, now_s: float) -> None:
        sequence.outcomes.append(outcome)
        sequence.ended_s = now_s
        self._record.ended(sequence)
        following = self._follow(now_s)
        if following is not None:
            self._at(following.at_s, lambda _: self._arrive(following))
