"""A batch on its lane: padding, bisection, and vectors that are not finite."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from threading import Semaphore

import numpy as np
import pytest
from harken_server.errors import Abandoned, ComputeFailed, Expired
from harken_server.execution.batcher import Batcher
from harken_server.execution.collate import Buffers, PaddedBatch, collate
from harken_server.execution.engine import SENTENCE, TOKENS, EngineError, Halt, Outputs
from harken_server.execution.history import History
from harken_server.execution.lanes import Lane, run_batch
from harken_server.execution.pending import Pending, Stamps
from harken_server.execution.results import Results
from harken_server.execution.served import Served
from harken_server.scheduling.admission import Capacity
from harken_server.scheduling.backlog import Backlog
from harken_server.scheduling.companions import Limits
from harken_server.scheduling.cost import CostSurface
from harken_server.scheduling.deadline import Deadline
from harken_server.scheduling.memory import MemoryModel
from harken_server.scheduling.waiting import Priority
from harken_server.telemetry.metrics import Metrics
from hypothesis import given, settings
from hypothesis import strategies as st

POISON, NAN, BUG = 666, 777, 888


class FakeRunner:
    """Answers each row with its own first id; fails on a batch that holds a poisoned row, as an engine would."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []

    def shrink(self) -> None:
        self.batches.append(())

    def run(self, batch: PaddedBatch, outputs: Sequence[str], halt: Halt | None = None) -> Outputs:
        self.batches.append(batch.lengths)
        if (batch.ids == POISON).any():
            raise EngineError("poison")
        if (batch.ids == BUG).any():
            raise ZeroDivisionError
        rows = batch.ids[:, :1].astype(np.float32)
        rows[batch.ids[:, 0] == NAN] = np.nan
        tokens = np.repeat(rows[:, None], batch.ids.shape[1], axis=1)
        return {name: rows if name == SENTENCE else tokens for name in outputs}


def pending(*ids: int, output: str = SENTENCE) -> Pending:
    return Pending(
        length=len(ids), deadline=Deadline(1e9), priority=Priority.INTERACTIVE, flow=object(), arrived_s=0.0,
        ids=np.array(ids, np.int64), outputs=(output,), stamps=Stamps(0.0, 0.0), on_settled=lambda _: None,
    )  # fmt: skip


def value(outcome: object) -> list[object]:
    """The one array of an outcome, as a list."""
    assert isinstance(outcome, Mapping), outcome
    (vectors,) = outcome.values()
    listed: list[object] = vectors.tolist()
    return listed


def ticks() -> Iterator[float]:
    return (float(moment) for moment in count())


def test_rows_are_padded_on_the_right_and_masked() -> None:
    batch = collate([np.array([5, 6, 7]), np.array([8])], Buffers())
    np.testing.assert_array_equal(batch.ids, [[5, 6, 7], [8, 0, 0]])
    np.testing.assert_array_equal(batch.mask, [[1, 1, 1], [1, 0, 0]])
    assert batch.lengths == (3, 1)
    assert batch.ids.dtype == batch.mask.dtype == np.int64


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=9), min_size=1, max_size=9), st.integers(1, 99))
def test_buffers_in_use_again_show_nothing_of_the_last_batch(rows: list[list[int]], garbage: int) -> None:
    buffers = Buffers()
    buffers.of(7, 7).fill(garbage)
    memory = buffers.of(1, 1)
    batch = collate([np.array(row) for row in rows], buffers)
    longest = max(len(row) for row in rows)
    assert batch.ids.tolist() == [row + [0] * (longest - len(row)) for row in rows]
    assert batch.mask.tolist() == [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    if len(rows) * longest <= 49:
        assert np.shares_memory(memory, batch.ids)


@pytest.mark.parametrize("rows", [[], [np.array([1]), np.array([], np.int64)]])
def test_a_batch_without_rows_or_with_an_empty_one_is_a_bug(rows: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        collate(rows, Buffers())


def test_each_gets_its_own_row_and_its_real_tokens_only() -> None:
    batch = [pending(1, 2, 3), pending(9, output=TOKENS), pending(4, 4, output=TOKENS)]
    ran = run_batch(FakeRunner(), batch, ticks().__next__, Buffers())
    assert [value(outcome) for outcome in ran.outcomes] == [[1.0], [[9.0]], [[4.0], [4.0]]]
    assert ran.compute_s == 1.0
    assert batch[0].stamps.collated_s < batch[0].stamps.computed_s


@pytest.mark.parametrize("poison", [POISON, BUG])
@pytest.mark.parametrize("at", [0, 3, 7])
def test_a_failed_batch_is_halved_until_only_the_one_at_fault_fails(poison: int, at: int) -> None:
    runner = FakeRunner()
    ran = run_batch(
        runner, [pending(poison if index == at else index) for index in range(8)], ticks().__next__, Buffers()
    )
    assert ran.outcomes[at] == ComputeFailed("ENGINE_FAILED")
    others = [value(outcome) for index, outcome in enumerate(ran.outcomes) if index != at]
    assert others == [[float(index)] for index in range(8) if index != at]
    assert ran.compute_s == 0.0
    assert [len(lengths) for lengths in runner.batches].count(1) == 2


def test_a_vector_that_is_not_finite_is_never_sent() -> None:
    ran = run_batch(FakeRunner(), [pending(1), pending(NAN), pending(3)], ticks().__next__, Buffers())
    assert ran.outcomes[1] == ComputeFailed("NOT_FINITE")
    assert [value(ran.outcomes[0]), value(ran.outcomes[2])] == [[1.0], [3.0]]


@settings(max_examples=30)
@given(st.lists(st.sampled_from([1, 2, 3, POISON, NAN, BUG]), min_size=1, max_size=40))
def test_whatever_fails_every_sequence_gets_its_own_outcome(firsts: list[int]) -> None:
    ran = run_batch(FakeRunner(), [pending(first) for first in firsts], ticks().__next__, Buffers())
    for first, outcome in zip(firsts, ran.outcomes, strict=True):
        if first in (POISON, BUG):
            assert outcome == ComputeFailed("ENGINE_FAILED")
        elif first == NAN:
            assert outcome == ComputeFailed("NOT_FINITE")
        else:
            assert value(outcome) == [float(first)]


async def test_if_the_loop_itself_fails_the_server_is_told() -> None:
    told: list[BaseException] = []
    clock = ticks().__next__
    metrics = Metrics()
    batcher = Batcher(Capacity(10, 100), metrics, History(0), Results(0), clock, told.append)
    lane = Lane("0", clock)

    class Broken(CostSurface):
        def seconds(self, batch: int, padded_length: int) -> float:
            raise KeyError("a bug in the core")

    backlog: Backlog[Pending] = Backlog(Broken({(1, 1): 1.0}), MemoryModel(1, 1))
    batcher.serve(("m", 1), Served([FakeRunner()], None, backlog, metrics.for_model("m", 1)))
    batcher.open([lane], None, Limits(8, 100, 1 << 30))
    batcher.submit(("m", 1), [pending(1)])
    assert [type(error) for error in told] == [KeyError]
    lane.stop()


async def test_one_alone_runs_on_all_cores_and_two_run_side_by_side() -> None:
    clock = ticks().__next__
    metrics = Metrics()
    batcher = Batcher(Capacity(10, 100), metrics, History(0), Results(0), clock, lambda error: pytest.fail(repr(error)))
    narrow, wide = FakeRunner(), FakeRunner()
    memory = MemoryModel(1, 1)
    backlog: Backlog[Pending] = Backlog(CostSurface({(1, 1): 8.0}), memory, CostSurface({(1, 1): 5.0}))
    batcher.serve(("m", 1), Served([narrow] * 2, wide, backlog, metrics.for_model("m", 1)))
    lanes = [Lane(name, clock) for name in ("0", "1", "wide")]
    batcher.open(lanes[:2], lanes[2], Limits(8, 100, 1 << 30))
    for sequences in (1, 2):
        settled: asyncio.Queue[Pending] = asyncio.Queue()
        pendings = [pending(index) for index in range(sequences)]
        for each in pendings:
            each.on_settled = settled.put_nowait
        batcher.submit(("m", 1), pendings)
        for _ in pendings:
            await settled.get()
    assert wide.batches == [(1,)]
    assert narrow.batches == [(1,), (1,)]
    for lane in lanes:
        lane.stop()


def test_who_went_away_or_is_too_late_when_the_lane_comes_to_the_batch_is_not_computed() -> None:
    runner = FakeRunner()
    rides, late, away = pending(1), pending(2), pending(3)
    late.deadline = Deadline(4.0)
    away.settle(Abandoned())
    ran = run_batch(runner, [late, rides, away], iter([5.0, 6.0, 7.0, 8.0]).__next__, Buffers())
    assert (list(ran.pendings), list(ran.expired)) == ([rides], [late])
    assert runner.batches == [(1,)]
    assert rides.stamps.taken_s == 5.0
    nobody = run_batch(runner, [late, away], iter([9.0]).__next__, Buffers())
    assert (list(nobody.pendings), list(nobody.expired), nobody.busy_s) == ([], [late], 0.0)
    assert runner.batches == [(1,)]


async def test_a_prepared_batch_runs_next_less_those_who_left_and_each_is_answered_once() -> None:
    class Held(FakeRunner):
        """Every run waits until it is let go."""

        def __init__(self) -> None:
            super().__init__()
            self.runs, self.let_go = Semaphore(0), Semaphore(0)

        def run(self, batch: PaddedBatch, outputs: Sequence[str], halt: Halt | None = None) -> Outputs:
            self.runs.release()
            assert self.let_go.acquire(timeout=30)
            return super().run(batch, outputs, halt)

    now_s = 0.0
    metrics, runner = Metrics(), Held()
    lane = Lane("0", lambda: now_s)
    batcher = Batcher(
        Capacity(100, 1000), metrics, History(0), Results(0), lambda: now_s, lambda error: pytest.fail(repr(error))
    )  # fmt: skip
    cost = CostSurface({(batch, 1): 1.0 + 0.1 * batch for batch in (1, 64)})
    backlog: Backlog[Pending] = Backlog(cost, MemoryModel(1, 1))
    batcher.serve(("m", 1), Served([runner], None, backlog, metrics.for_model("m", 1)))
    batcher.open([lane], None, Limits(4, 100, 1 << 30))
    answered: asyncio.Queue[Pending] = asyncio.Queue()
    pendings = [pending(index) for index in range(40)]
    for each in pendings:
        each.on_settled = answered.put_nowait
    batcher.submit(("m", 1), pendings[:1])
    assert await asyncio.to_thread(runner.runs.acquire, timeout=30)
    batcher.submit(("m", 1), pendings[1:])
    runner.let_go.release()
    assert await answered.get() is pendings[0]  # with its end the next batch ran, and one more was prepared
    assert backlog.sequences == 39 - 4 - 4
    left, late = [each for each in pendings[5:9] if not each.waits][:2]
    batcher.withdraw(("m", 1), [left], Abandoned())
    late.deadline = Deadline(now_s - 1)
    assert await answered.get() is left
    for _ in range(10):
        runner.let_go.release()
    outcomes = [(await answered.get()).outcome for _ in range(38)]
    assert sum(isinstance(outcome, Expired) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, Mapping) for outcome in outcomes) == 37
    assert [len(lengths) for lengths in runner.batches[:3]] == [1, 4, 2]
    finished = {
        outcome: metrics.registry.get_sample_value("harken_finished_total", {"model": "m", "outcome": outcome})
        for outcome in ("answered", "expired", "cancelled")
    }
    assert finished == {"answered": 38, "expired": 1, "cancelled": 1}
    assert answered.empty()
    lane.stop()


async def test_each_narrow_lane_runs_its_own_session_and_idle_ones_all_shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harken_server.execution.batcher._IDLE_S", 0.0)
    clock = ticks().__next__
    metrics = Metrics()
    batcher = Batcher(Capacity(10, 100), metrics, History(0), Results(0), clock, lambda error: pytest.fail(repr(error)))
    runners = [FakeRunner(), FakeRunner()]
    backlog: Backlog[Pending] = Backlog(CostSurface({(1, 1): 8.0}), MemoryModel(1, 1))
    batcher.serve(("m", 1), Served(runners, None, backlog, metrics.for_model("m", 1)))
    lanes = [Lane(name, clock) for name in ("0", "1")]
    batcher.open(lanes, None, Limits(8, 100, 1 << 30))
    settled: asyncio.Queue[Pending] = asyncio.Queue()
    pendings = [pending(7), pending(8, 8)]
    for each in pendings:
        each.on_settled = settled.put_nowait
    batcher.submit(("m", 1), pendings)
    for _ in pendings:
        await settled.get()
    async with asyncio.timeout(30):
        while not all(runner.batches[-1] == () for runner in runners):  # noqa: ASYNC110 - a shrink tells nobody
            await asyncio.sleep(0.001)
    ran = [[batch for batch in runner.batches if batch] for runner in runners]
    assert sorted(ran) == [[(1,)], [(2,)]]
    for lane in lanes:
        lane.stop()


async def test_what_a_retired_version_leaves_is_given_back_though_nobody_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harken_server.execution.batcher._IDLE_S", 0.0)
    clock = ticks().__next__
    metrics = Metrics()
    batcher = Batcher(Capacity(10, 100), metrics, History(0), Results(0), clock, lambda error: pytest.fail(repr(error)))
    runners = {version: FakeRunner() for version in (1, 2)}
    for version, runner in runners.items():
        backlog: Backlog[Pending] = Backlog(CostSurface({(1, 1): 8.0}), MemoryModel(1, 1))
        batcher.serve(("m", version), Served([runner], None, backlog, metrics.for_model("m", version)))
    lane = Lane("0", clock)
    batcher.open([lane], None, Limits(8, 100, 1 << 30))

    async def until(shrunk: list[int]) -> None:
        async with asyncio.timeout(30):
            while [len(runner.batches) for runner in runners.values()] != shrunk:  # noqa: ASYNC110 - a shrink tells nobody
                await asyncio.sleep(0.001)

    await until([1, 1])  # of what a start leaves
    batcher.models.retire(("m", 1))
    await until([1, 2])
    lane.stop()
