"""An allocation that fails: the batch is split, the budget falls and comes back, and everybody gets one answer."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import count
from threading import Event

import numpy as np
import pytest
from harken_server.errors import ComputeFailed, NoMemory
from harken_server.execution.batcher import Batcher
from harken_server.execution.collate import Buffers, PaddedBatch
from harken_server.execution.engine import SENTENCE, EngineError, Halt, OutOfMemory, Outputs
from harken_server.execution.history import History
from harken_server.execution.lanes import Lane, run_batch
from harken_server.execution.pending import Outcome, Pending, Stamps
from harken_server.execution.results import Results
from harken_server.execution.served import Served
from harken_server.scheduling.admission import Capacity
from harken_server.scheduling.backlog import Backlog
from harken_server.scheduling.companions import Limits
from harken_server.scheduling.cost import CostSurface
from harken_server.scheduling.deadline import Deadline
from harken_server.scheduling.memory import DOUBLES_S, MemoryModel
from harken_server.scheduling.waiting import Priority
from harken_server.telemetry.metrics import Metrics
from hypothesis import given, settings
from hypothesis import strategies as st

MODEL = ("m", 1)
POISON = 666


class SmallMachine:
    """An engine whose runs find no memory over `most_tokens`, padding included."""

    def __init__(self, most_tokens: int) -> None:
        self.most_tokens = most_tokens
        self.ran: list[tuple[int, ...] | str] = []

    def shrink(self) -> None:
        self.ran.append("shrink")

    def run(self, batch: PaddedBatch, outputs: Sequence[str], halt: Halt | None = None) -> Outputs:
        self.ran.append(batch.ids.shape)
        if batch.ids.size > self.most_tokens:
            raise OutOfMemory("no memory")
        if (batch.ids == POISON).any():
            raise EngineError("poison")
        return {name: batch.ids[:, :1].astype(np.float32) for name in outputs}


def pending(first: int, length: int, settled: Callable[[Pending], None] = lambda _: None) -> Pending:
    return Pending(
        length=length, deadline=Deadline(1e9), priority=Priority.INTERACTIVE, flow=object(), arrived_s=0.0,
        ids=np.full(length, first, np.int64), outputs=(SENTENCE,), stamps=Stamps(0.0, 0.0), on_settled=settled,
    )  # fmt: skip


def vector(outcome: Outcome) -> list[float]:
    assert isinstance(outcome, Mapping), outcome
    listed: list[float] = outcome[SENTENCE].tolist()
    return listed


def test_a_batch_without_memory_is_halved_after_a_shrink_until_it_fits() -> None:
    machine = SmallMachine(most_tokens=20)
    ran = run_batch(machine, [pending(index, 10) for index in range(8)], count(0.0).__next__, Buffers())
    assert [vector(outcome) for outcome in ran.outcomes] == [[float(index)] for index in range(8)]
    assert list(ran.short) == [(8, 10), (4, 10), (4, 10)]
    half = [(4, 10), "shrink", (2, 10), (2, 10)]
    assert machine.ran == [(8, 10), "shrink", *half, *half]
    assert ran.compute_s == 0.0  # a time of parts would teach the cost surface nonsense


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from([1, POISON]), st.integers(1, 40)), min_size=1, max_size=30))
def test_only_who_finds_no_memory_alone_is_told_so(rows: list[tuple[int, int]]) -> None:
    ran = run_batch(SmallMachine(most_tokens=30), [pending(*row) for row in rows], count(0.0).__next__, Buffers())
    for (first, length), outcome in zip(rows, ran.outcomes, strict=True):
        if length > 30:
            assert isinstance(outcome, NoMemory)
        elif first == POISON:
            assert outcome == ComputeFailed("ENGINE_FAILED")
        else:
            assert vector(outcome) == [1.0]
    assert all(rows * padded_length > 30 for rows, padded_length in ran.short)


class Server:
    """A batcher over one machine and one lane: a token is predicted to take a byte, and may take a thousand in all."""

    def __init__(self, machine: SmallMachine, lanes: int) -> None:
        self.now_s = 0.0
        self.died: list[BaseException] = []
        self.answers: list[tuple[int, object]] = []
        self.settled = asyncio.Event()
        self.metrics = Metrics()
        self.lanes = [Lane(str(index), self.clock) for index in range(lanes)]
        self.batcher = Batcher(
            Capacity(1000, 100_000), self.metrics, History(0), Results(0), self.clock, self.died.append
        )
        cheap_together = CostSurface({(batch, 1): 1.0 for batch in (1, 64)})
        self.backlog: Backlog[Pending] = Backlog(cheap_together, MemoryModel(1, 0))
        self.batcher.serve(MODEL, Served([machine] * lanes, None, self.backlog, self.metrics.for_model("m", 1)))

    def clock(self) -> float:
        return self.now_s

    def submit(self, *lengths: int) -> None:
        self.batcher.submit(MODEL, [pending(length, length, self._settled) for length in lengths])

    async def answered(self, sequences: int) -> list[tuple[int, object]]:
        async with asyncio.timeout(30):
            while len(self.answers) < sequences:
                self.settled.clear()
                await self.settled.wait()
        return sorted(self.answers, key=lambda answer: answer[0])

    def counted(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, {"model": "m", **labels})

    def _settled(self, pending: Pending) -> None:
        outcome = pending.outcome
        self.answers.append((pending.length, outcome if isinstance(outcome, Exception) else "vector"))
        self.settled.set()


@asynccontextmanager
async def serving(machine: SmallMachine, lanes: int = 1, budget_bytes: int = 1000) -> AsyncIterator[Server]:
    server = Server(machine, lanes)
    server.batcher.open(server.lanes, None, Limits(64, 1000, budget_bytes))
    yield server
    assert server.died == []
    for lane in server.lanes:
        lane.stop()


async def test_the_budget_falls_below_what_failed_and_comes_back_with_time() -> None:
    async with serving(SmallMachine(most_tokens=200)) as server:
        server.submit(*range(10, 42))  # the first 31 tokens alone, or a batch of all
        assert all(outcome == "vector" for _, outcome in await server.answered(32))
        failures = server.counted("harken_out_of_memory_total")
        assert failures is not None
        assert failures >= 1
        lowered = server.batcher.present_budget_bytes()
        assert 41 <= lowered < 0.8 * 1000
        assert server.batcher.memory_budget_bytes == 1000
        server.now_s += DOUBLES_S
        assert server.batcher.present_budget_bytes() == pytest.approx(2 * lowered, abs=1)
        server.now_s += 10 * DOUBLES_S
        assert server.batcher.present_budget_bytes() == 1000
        assert server.counted("harken_finished_total", outcome="answered") == 32


async def test_batches_stay_within_the_lowered_budget() -> None:
    machine = SmallMachine(most_tokens=200)
    async with serving(machine) as server:
        server.submit(*[40] * 24)
        await server.answered(24)
        lowered = server.batcher.present_budget_bytes()
        machine.ran.clear()
        server.submit(*[40] * 24)
        await server.answered(48)
        assert machine.ran
        assert all(not isinstance(shape, str) and shape[0] * shape[1] <= lowered for shape in machine.ran)


async def test_a_sequence_without_memory_is_tried_again_and_then_refused_while_others_go_on() -> None:
    machine = SmallMachine(most_tokens=50)
    async with serving(machine) as server:
        server.submit(10, 60, 20)
        answers = await server.answered(3)
        assert [answers[0], answers[1]] == [(10, "vector"), (20, "vector")]
        assert isinstance(answers[2][1], NoMemory)
        assert machine.ran.count((1, 60)) == 2
        assert server.counted("harken_finished_total", outcome="failed") == 1
        assert server.counted("harken_accepted_total") == 3


async def test_a_sequence_that_others_left_no_memory_for_runs_when_they_are_done() -> None:
    class Shared(SmallMachine):
        """Its first run holds all memory until it is let go."""

        def __init__(self) -> None:
            super().__init__(most_tokens=1000)
            self.is_held, self.let_go = Event(), Event()

        def run(self, batch: PaddedBatch, outputs: Sequence[str], halt: Halt | None = None) -> Outputs:
            if not self.is_held.is_set():
                self.is_held.set()
                assert self.let_go.wait(30)
            elif not self.let_go.is_set():
                raise OutOfMemory("the other lane has it")
            return super().run(batch, outputs, halt)

    machine = Shared()
    async with serving(machine, lanes=2) as server:
        server.submit(40)
        assert await asyncio.to_thread(machine.is_held.wait, 30)
        server.submit(41)
        async with asyncio.timeout(30):
            while not server.backlog.sequences:  # noqa: ASYNC110 - a backlog tells nobody
                await asyncio.sleep(0.001)
        # 81 were tried at once: from now on these two run one after the other.
        assert server.batcher.present_budget_bytes() < 81
        # Even when the budget is whole again nothing is tried in vain beside the one that has the memory.
        server.now_s += 10 * DOUBLES_S
        server.submit(1)
        assert server.backlog.sequences == 2
        assert server.counted("harken_out_of_memory_total") == 1
        machine.let_go.set()
        assert await server.answered(3) == [(1, "vector"), (40, "vector"), (41, "vector")]


async def test_the_budget_never_falls_below_a_sequence_that_was_accepted() -> None:
    machine = SmallMachine(most_tokens=5)
    async with serving(machine) as server:
        server.submit(900, *[6] * 10)
        answers = await server.answered(11)
        assert [type(outcome) for _, outcome in answers] == [NoMemory] * 11
        assert server.batcher.present_budget_bytes() >= 900
        machine.most_tokens = 1000
        server.submit(900)
        assert (await server.answered(12))[-1][0] == 900
