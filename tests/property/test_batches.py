"""What must hold of every schedule, whatever arrives, leaves or expires: driven on a virtual clock."""

from dataclasses import dataclass, field
from heapq import heappop, heappush

from harken_server.scheduling.backlog import BULK_AGE_S, Backlog
from harken_server.scheduling.cost import CostSurface
from harken_server.scheduling.deadline import Deadline
from harken_server.scheduling.memory import MemoryModel
from harken_server.scheduling.policy import Limits, Start, decide
from harken_server.scheduling.waiting import Priority, Waiting
from hypothesis import given, settings
from hypothesis import strategies as st

MEMORY = MemoryModel(10, 1)
LIMITS = Limits(sequences=8, padded_tokens=600, memory_bytes=MEMORY.batch_bytes(2, 512))
LANES = 2

arrivals = st.lists(
    st.fixed_dictionaries(
        {
            "gap_s": st.floats(0.0, 0.05),
            "length": st.integers(1, 512),
            "deadline_s": st.one_of(st.none(), st.floats(0.001, 2.0)),
            "cancel_s": st.one_of(st.none(), st.floats(0.0, 1.0)),
            "flow": st.integers(0, 3),
            "bulk": st.booleans(),
        }
    ),
    min_size=1,
    max_size=80,
)


@dataclass
class World:
    """Two lanes, a clock that jumps, and a record of what became of everybody."""

    backlog: Backlog[Waiting]
    events: list[tuple[float, int, str, object]] = field(default_factory=list)
    free: list[int] = field(default_factory=lambda: list(range(LANES)))
    running_bytes: dict[int, int] = field(default_factory=dict)
    outcomes: dict[int, list[str]] = field(default_factory=dict)
    waits_s: dict[int, float] = field(default_factory=dict)
    count: int = 0

    def at(self, moment_s: float, kind: str, what: object) -> None:
        self.count += 1
        heappush(self.events, (moment_s, self.count, kind, what))

    def run(self) -> None:
        while self.events:
            now_s, _, kind, what = heappop(self.events)
            if kind == "arrive":
                assert isinstance(what, Waiting)
                self.backlog.add(what)
            elif kind == "cancel":
                assert isinstance(what, Waiting)
                if self.backlog.remove(what):
                    self.outcomes.setdefault(id(what), []).append("cancelled")
            else:
                assert isinstance(what, Start)
                self.free.append(what.lane)
                del self.running_bytes[what.lane]
                for member in what.batch:
                    self.outcomes.setdefault(id(member), []).append("answered")
            self.pump(now_s)

    def pump(self, now_s: float) -> None:
        while True:
            left_bytes = LIMITS.memory_bytes - sum(self.running_bytes.values())
            limits = Limits(LIMITS.sequences, LIMITS.padded_tokens, left_bytes)
            start = decide({"model": self.backlog}, self.free, limits, now_s)
            if not isinstance(start, Start):
                # Work-conserving: with every lane free and something waiting, it starts.
                assert len(self.free) < LANES or not self.backlog.sequences
                return
            expired = [member for member in start.batch if member.deadline.passed(now_s)]
            for member in expired:
                assert self.backlog.remove(member)
                self.outcomes.setdefault(id(member), []).append("expired")
            if expired:
                continue
            self.check(start, limits)
            self.backlog.start(list(start.batch))
            self.waits_s |= {id(member): now_s - member.arrived_s for member in start.batch}
            self.free.remove(start.lane)
            self.running_bytes[start.lane] = start.predicted_bytes
            self.at(now_s + start.predicted_s, "done", start)

    def check(self, start: Start[str, Waiting], limits: Limits) -> None:
        longest = max(member.length for member in start.batch)
        assert len(set(map(id, start.batch))) == len(start.batch)
        assert len(start.batch) <= LIMITS.sequences
        assert len(start.batch) == 1 or len(start.batch) * longest <= LIMITS.padded_tokens
        assert start.predicted_bytes == MEMORY.batch_bytes(len(start.batch), longest) <= limits.memory_bytes


def cost() -> CostSurface:
    return CostSurface(
        {(b, n): 0.001 + 2e-5 * b * n + 2e-8 * b * n * n for b in (1, 2, 4, 8) for n in (1, 16, 64, 256, 512)}
    )


@settings(max_examples=150, deadline=None)
@given(arrivals)
def test_each_sequence_ends_exactly_once_and_no_batch_exceeds_a_limit(plan: list[dict[str, float]]) -> None:
    world = World(Backlog(cost(), MEMORY))
    now_s = 0.0
    everybody = []
    for entry in plan:
        now_s += entry["gap_s"]
        deadline = Deadline(1e9 if entry["deadline_s"] is None else now_s + entry["deadline_s"])
        priority = Priority.BULK if entry["bulk"] else Priority.INTERACTIVE
        member = Waiting(int(entry["length"]), deadline, priority, entry["flow"], now_s)
        everybody.append(member)
        world.at(now_s, "arrive", member)
        if entry["cancel_s"] is not None:
            world.at(now_s + entry["cancel_s"], "cancel", member)
    world.run()
    assert [len(world.outcomes[id(member)]) for member in everybody] == [1] * len(everybody)
    assert (world.backlog.sequences, world.backlog.tokens, world.backlog.work_s) == (0, 0, 0.0)
    assert sorted(world.free) == list(range(LANES))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 512), st.integers(1, 512), st.booleans())
def test_nobody_starves_in_three_times_the_load_that_the_lanes_can_bear(odd: int, common: int, bulk: bool) -> None:
    world = World(Backlog(cost(), MEMORY))
    lone = Waiting(odd, Deadline(1e9), Priority.BULK if bulk else Priority.INTERACTIVE, "lone", 0.5)
    world.at(0.5, "arrive", lone)
    gap_s = world.backlog.cost.share_s(common) / LANES / 3
    for index in range(int(5.0 / gap_s)):
        world.at(index * gap_s, "arrive", Waiting(common, Deadline(1e9), Priority.INTERACTIVE, index, index * gap_s))
    world.run()
    # An interactive one waits for what came before it (1 s of work for two lanes); a bulk one for its bound.
    assert world.waits_s[id(lone)] <= (BULK_AGE_S if bulk else 1.0) + 0.5
