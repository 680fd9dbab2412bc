"""Runs that do not end: who is told what, who goes on, and when the process gives up."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from threading import Event, Semaphore

import numpy as np
import pytest
from harken_server.errors import ComputeFailed
from harken_server.execution.batcher import Batcher
from harken_server.execution.collate import PaddedBatch
from harken_server.execution.engine import SENTENCE, EngineError, Halt, Outputs
from harken_server.execution.history import History
from harken_server.execution.lanes import Lane
from harken_server.execution.pending import Pending, Stamps
from harken_server.execution.results import Results
from harken_server.execution.served import Served
from harken_server.execution.watchdog import MOST_HANGING, EngineHangs, Watchdog
from harken_server.scheduling.admission import Capacity
from harken_server.scheduling.backlog import Backlog
from harken_server.scheduling.companions import Limits
from harken_server.scheduling.cost import CostSurface
from harken_server.scheduling.deadline import Deadline
from harken_server.scheduling.memory import MemoryModel
from harken_server.scheduling.waiting import Priority
from harken_server.telemetry.metrics import Metrics

MODEL = ("m", 1)
STALLED = ComputeFailed("ENGINE_STALLED")
OBEYS, HANGS = 666, 777
MIN_S = 4.0


@dataclass(eq=False)
class Alarm:
    """A timer of a test."""

    at_s: float
    call: Callable[[], None]
    is_set: bool = True

    def cancel(self) -> None:
        self.is_set = False


@dataclass
class Time:
    """It passes when the test says so."""

    now_s: float = 0.0
    alarms: list[Alarm] = field(default_factory=list)

    def clock(self) -> float:
        return self.now_s

    def later(self, delay_s: float, call: Callable[[], None]) -> Alarm:
        self.alarms.append(Alarm(self.now_s + delay_s, call))
        return self.alarms[-1]

    def sleep(self, seconds: float) -> None:
        """All at once, as it is for a process that stands still: what is due is called after it."""
        self.now_s += seconds
        due = [alarm for alarm in self.alarms if alarm.at_s <= self.now_s]
        self.alarms = [alarm for alarm in self.alarms if alarm not in due]
        for alarm in due:
            if alarm.is_set:
                alarm.call()

    def go_on(self, seconds: int) -> None:
        """Second by second."""
        for _ in range(seconds):
            self.sleep(1.0)


class Engine:
    """Some ids hold it up: until it is told to end, or until the test lets it go."""

    def __init__(self) -> None:
        self.held, self.let_go, self.runs = Semaphore(0), Event(), 0

    def shrink(self) -> None:
        pass

    def run(self, batch: PaddedBatch, outputs: Sequence[str], halt: Halt | None = None) -> Outputs:
        assert halt is not None
        self.runs += 1
        firsts = batch.ids[:, 0]
        if (firsts == OBEYS).any():
            self.held.release()
            while not halt.is_set:
                self.let_go.wait(0.001)
            raise EngineError("terminated")
        if (firsts == HANGS).any():
            self.held.release()
            assert self.let_go.wait(60)
        return {name: batch.ids[:, :1].astype(np.float32) for name in outputs}


class Server:
    """A batcher over one engine: a token takes a byte, a batch 100 ms, and stalls after `MIN_S`."""

    def __init__(self, lanes: int, wide: bool, budget_bytes: int) -> None:
        self.time, self.engine, self.metrics = Time(), Engine(), Metrics()
        self.died: list[BaseException] = []
        self.works: list[bool] = []
        self.settled: asyncio.Queue[Pending] = asyncio.Queue()
        self.history = History(8)
        self.lanes = [Lane(str(index), self.time.clock) for index in range(lanes)]
        self.wide = Lane("wide", self.time.clock) if wide else None
        self.batcher = Batcher(
            Capacity(1000, 100_000), self.metrics, self.history, Results(0), self.time.clock, self.died.append,
            Watchdog(self.time.later, factor=20.0, min_s=MIN_S), self.works.append,
        )  # fmt: skip
        cost = CostSurface({(batch, 1): 0.1 for batch in (1, 64)})
        wide_cost = CostSurface({(1, 1): 0.01}) if wide else None
        self.backlog: Backlog[Pending] = Backlog(cost, MemoryModel(1, 0), wide_cost)
        served = Served(
            [self.engine] * lanes, self.engine if wide else None, self.backlog, self.metrics.for_model("m", 1)
        )
        self.batcher.serve(MODEL, served)
        self.batcher.open(self.lanes, self.wide, Limits(64, 1000, budget_bytes))

    def submit(self, *firsts: int) -> list[Pending]:
        """Sequences of two tokens."""
        pendings = [
            Pending(
                length=2, deadline=Deadline(1e9), priority=Priority.INTERACTIVE, flow=object(), arrived_s=0.0,
                ids=np.array([first, 1], np.int64), outputs=(SENTENCE,), stamps=Stamps(0.0, 0.0),
                on_settled=self.settled.put_nowait,
            )
            for first in firsts
        ]  # fmt: skip
        self.batcher.submit(MODEL, pendings)
        return pendings

    async def hold(self, *firsts: int) -> list[Pending]:
        """Submit them, and wait until the engine is held up."""
        pendings = self.submit(*firsts)
        assert await asyncio.to_thread(self.engine.held.acquire, timeout=60)
        return pendings

    async def outcomes(self, pendings: Sequence[Pending]) -> list[object]:
        """Once each of them has been settled, and only once."""
        left = set(pendings)
        async with asyncio.timeout(60):
            while left:
                left.remove(await self.settled.get())
        return [one.outcome if isinstance(one.outcome, Exception) else "vector" for one in pendings]

    async def until(self, holds: Callable[[], bool]) -> None:
        """A lane that comes back tells nobody but the batcher."""
        async with asyncio.timeout(60):
            while not holds():  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.001)

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def serving(lanes: int = 1, wide: bool = False, budget_bytes: int = 1000) -> AsyncIterator[Server]:
    server = Server(lanes, wide, budget_bytes)
    yield server
    server.engine.let_go.set()
    for lane in [*server.lanes, *([server.wide] if server.wide else [])]:
        lane.stop()


async def test_a_run_that_stalls_is_ended_its_sequences_fail_once_and_the_lane_goes_on() -> None:
    async with serving() as server:
        blocking = await server.hold(OBEYS)
        server.time.go_on(3)
        assert server.works == []
        server.time.go_on(1)
        assert server.works == [False]
        assert not server.batcher.works
        assert await server.outcomes(blocking) == [STALLED]
        after = server.submit(1)
        assert await server.outcomes(after) == ["vector"]
        assert server.works == [False, True]
        assert server.counted("harken_stalled_total", model="m") == 1
        assert server.counted("harken_lanes_replaced_total", lane="0") == 0
        assert server.counted("harken_finished_total", model="m", outcome="failed") == 1
        assert server.counted("harken_accepted_total", model="m") == 2
        assert server.batcher.predicted_batch_bytes() == 0
        (_, batch) = server.history.last(8)
        assert (batch.failed, batch.split, batch.lane_s) == (1, False, 4.0)
        assert server.died == []


async def test_a_batch_that_stalls_is_not_halved_and_run_again() -> None:
    async with serving() as server:
        (first,) = await server.hold(HANGS)
        companions = server.submit(1, OBEYS, 2)
        server.engine.let_go.set()
        assert await server.outcomes([first]) == ["vector"]
        assert await asyncio.to_thread(server.engine.held.acquire, timeout=60)
        server.time.go_on(4)
        assert await server.outcomes(companions) == [STALLED] * 3
        await server.until(lambda: server.batcher.works)
        assert server.engine.runs == 2


async def test_where_a_run_does_not_end_another_thread_takes_the_lane_and_what_was_prepared() -> None:
    async with serving() as server:
        (held,) = await server.hold(HANGS)
        waiting = server.submit(*range(1, 9))
        server.time.go_on(4)
        assert await server.outcomes([held]) == [STALLED]
        assert server.batcher.works is False
        server.time.go_on(1)
        assert await server.outcomes(waiting) == ["vector"] * 8
        assert server.works == [False, True]
        assert server.lanes[0].hanging == 1
        # Its memory is not free before it ends; its late result changes nothing.
        assert server.batcher.predicted_batch_bytes() == 2
        server.engine.let_go.set()
        await server.until(lambda: server.batcher.predicted_batch_bytes() == 0)
        await server.until(lambda: server.lanes[0].hanging == 0)
        assert server.settled.empty()
        assert server.counted("harken_lanes_replaced_total", lane="0") == 1
        assert server.counted("harken_finished_total", model="m", outcome="failed") == 1
        assert server.counted("harken_finished_total", model="m", outcome="answered") == 8


async def test_health_follows_whether_any_lane_works() -> None:
    async with serving(lanes=2) as server:
        first = await server.hold(HANGS)
        second = await server.hold(OBEYS)
        third = server.submit(3)
        server.time.go_on(4)
        assert await server.outcomes([*first, *second]) == [STALLED, STALLED]
        assert await server.outcomes(third) == ["vector"]
        assert server.works == [False, True]
        assert server.batcher.works


async def test_one_lane_that_stalls_beside_one_that_works_costs_no_health() -> None:
    async with serving(lanes=2) as server:
        first = await server.hold(HANGS)
        server.time.go_on(4)
        assert await server.outcomes(first) == [STALLED]
        assert await server.outcomes(server.submit(1, 2)) == ["vector"] * 2
        assert server.works == []


async def test_the_wide_lane_holds_all_cores_until_it_is_replaced() -> None:
    async with serving(lanes=2, wide=True) as server:
        first = await server.hold(HANGS)
        others = server.submit(1, 2)
        server.time.go_on(4)
        assert await server.outcomes(first) == [STALLED]
        assert server.works == [False]
        assert not [one for one in others if one.outcome]
        server.time.go_on(1)
        assert await server.outcomes(others) == ["vector"] * 2
        assert server.counted("harken_lanes_replaced_total", lane="wide") == 1


async def test_what_hangs_keeps_its_memory_but_never_keeps_everybody_from_running() -> None:
    async with serving(budget_bytes=3) as server:
        held = await server.hold(HANGS)
        server.time.go_on(5)
        assert await server.outcomes(held) == [STALLED]
        assert server.batcher.predicted_batch_bytes() == 2
        assert await server.outcomes(server.submit(1)) == ["vector"]


async def test_a_process_that_stood_still_does_not_hold_its_runs_for_stalled() -> None:
    async with serving() as server:
        pendings = await server.hold(HANGS)
        server.time.sleep(1000.0)
        assert not pendings[0].outcome
        server.engine.let_go.set()
        assert await server.outcomes(pendings) == ["vector"]
        assert server.counted("harken_stalled_total", model="m") == 0


async def test_a_run_may_take_a_multiple_of_what_was_predicted() -> None:
    async with serving() as server:
        for _ in range(200):
            server.backlog.learn(False, 1, 2, 0.5)  # 20 times that are more than MIN_S
        limit_s = 20 * server.backlog.cost.seconds(1, 2)
        assert limit_s > MIN_S + 2
        pendings = await server.hold(OBEYS)
        server.time.go_on(int(limit_s) - 1)
        assert server.works == []
        server.time.go_on(6)  # each quarter ends with a second
        assert await server.outcomes(pendings) == [STALLED]


async def test_the_process_gives_up_when_too_many_threads_hang() -> None:
    async with serving() as server:
        for _ in range(MOST_HANGING + 1):
            assert server.died == []
            await server.hold(HANGS)
            server.time.go_on(5)
        assert [type(error) for error in server.died] == [EngineHangs]


async def test_threads_that_came_back_do_not_count() -> None:
    async with serving() as server:
        for _ in range(MOST_HANGING + 2):
            await server.hold(HANGS)
            server.time.go_on(5)
            server.engine.let_go.set()
            await server.until(lambda: server.lanes[0].hanging == 0)
            server.engine.let_go.clear()
        assert server.died == []


def test_a_lane_that_is_replaced_goes_on_with_what_has_not_begun() -> None:
    lane, held, let_go, done = Lane("0", lambda: 0.0), Event(), Event(), Event()

    def hang() -> None:
        held.set()
        assert let_go.wait(60)

    lane.call(hang)
    lane.call(done.set)
    assert held.wait(60)
    lane.replace()
    assert done.wait(60)
    let_go.set()
    lane.stop()


@pytest.mark.parametrize("predicted_s", [0.001, 10.0])
def test_the_limit_passes_in_quarters_and_one_more(predicted_s: float) -> None:
    time, told = Time(), list[tuple[str, float]]()
    watchdog = Watchdog(time.later, factor=2.0, min_s=MIN_S)
    watchdog.watch(
        0, predicted_s, lambda: told.append(("stalls", time.now_s)), lambda: told.append(("hangs", time.now_s))
    )
    time.go_on(50)
    limit_s = max(2.0 * predicted_s, MIN_S)
    assert told == [("stalls", limit_s), ("hangs", 1.25 * limit_s)]
    watchdog.done(0)
    watchdog.watch(0, predicted_s, lambda: told.append(("again", 0.0)), lambda: None)
    watchdog.done(0)
    time.go_on(50)
    assert len(told) == 2
