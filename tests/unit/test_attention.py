"""Attention graphs beside other work: one run at a time, a budget of their own, let go of and loaded again."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from harken_server.errors import BacklogFull, LoadFailed, NoMemory
from harken_server.execution.attention import AttendBudget, Attentions, attention_key, is_attention
from harken_server.execution.batcher import Batcher
from harken_server.execution.collate import PaddedBatch
from harken_server.execution.engine import SENTENCE, Halt, OutOfMemory, Outputs
from harken_server.execution.history import History
from harken_server.execution.lanes import Lane
from harken_server.execution.pending import Pending, Stamps
from harken_server.execution.results import Results
from harken_server.execution.served import ModelKey, Served
from harken_server.models.bundle import Found, read_bundle
from harken_server.models.repository import Model
from harken_server.scheduling.admission import Capacity
from harken_server.scheduling.backlog import Backlog
from harken_server.scheduling.companions import Limits
from harken_server.scheduling.cost import CostSurface
from harken_server.scheduling.deadline import Deadline
from harken_server.scheduling.memory import MemoryModel
from harken_server.scheduling.waiting import Priority
from harken_server.sources import load
from harken_server.telemetry.metrics import Metrics
from hypothesis import given
from hypothesis import strategies as st

TINY = ("tiny", 1)


class Machine:
    """Counts how many of its runs overlap. Some find no memory."""

    def __init__(self, takes_s: float = 0.0) -> None:
        self.takes_s = takes_s
        self.has_memory = True
        self.running = self.most_running = self.runs = 0
        self._lock = threading.Lock()

    def shrink(self) -> None:
        pass

    def run(self, batch: PaddedBatch, outputs: Sequence[str], halt: Halt | None = None) -> Outputs:
        with self._lock:
            self.running += 1
            self.runs += 1
            self.most_running = max(self.most_running, self.running)
        time.sleep(self.takes_s)
        with self._lock:
            self.running -= 1
        if not self.has_memory:
            raise OutOfMemory("no memory")
        return {name: np.ones((len(batch.lengths), 1), np.float32) for name in outputs}


class Server:
    def __init__(self, lanes: int) -> None:
        self.metrics, self.died = Metrics(), list[BaseException]()
        self.lanes = [Lane(str(index), time.monotonic) for index in range(lanes)]
        self.batcher = Batcher(
            Capacity(1000, 100_000), self.metrics, History(0), Results(0), time.monotonic, self.died.append
        )

    def serve(self, key: ModelKey, machine: Machine, apart: bool) -> None:
        cost = CostSurface({(batch, length): 0.001 * batch * length for batch in (1, 8) for length in (1, 64)})
        memory = MemoryModel(0 if apart else 1, 0)
        backlog: Backlog[Pending] = Backlog(cost, memory)
        metrics = self.metrics.for_model(*key)
        self.batcher.serve(key, Served([machine] * len(self.lanes), None, backlog, metrics, apart=apart))

    def submit(self, key: ModelKey, count: int, priority: Priority, settled: Callable[[Pending], None]) -> None:
        pendings = [
            Pending(
                length=5, deadline=Deadline(1e9), priority=priority, flow=object(), arrived_s=0.0,
                ids=np.ones(5, np.int64), outputs=(SENTENCE,), stamps=Stamps(0.0, 0.0), on_settled=settled,
                solitary=priority is Priority.BULK,
            )
            for _ in range(count)
        ]  # fmt: skip
        self.batcher.submit(key, pendings)


@asynccontextmanager
async def serving(lanes: int) -> AsyncIterator[Server]:
    server = Server(lanes)
    server.batcher.open(server.lanes, None, Limits(8, 1000, 1000))
    yield server
    assert server.died == []
    for lane in server.lanes:
        lane.stop()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 - what is awaited tells nobody
            await asyncio.sleep(0.002)


async def test_no_two_of_them_run_at_a_time_whatever_models_they_are_of_and_others_run_beside() -> None:
    async with serving(lanes=3) as server:
        attention, ordinary, ended = Machine(0.01), Machine(0.01), list[Pending]()
        server.serve(("a+attention", 1), attention, apart=True)
        server.serve(("b+attention", 1), attention, apart=True)
        server.serve(("a", 1), ordinary, apart=False)
        for key in (("a+attention", 1), ("b+attention", 1)):
            server.submit(key, 6, Priority.BULK, ended.append)
        for _ in range(12):
            server.submit(("a", 1), 2, Priority.INTERACTIVE, ended.append)
        await until(lambda: len(ended) == 36)
        assert (attention.runs, attention.most_running) == (12, 1)
        assert ordinary.most_running >= 2


async def test_a_run_without_memory_is_refused_and_takes_nothing_from_the_others() -> None:
    async with serving(lanes=1) as server:
        machine, ended = Machine(), list[object]()
        server.serve(("a+attention", 1), machine, apart=True)
        machine.has_memory = False
        server.submit(("a+attention", 1), 1, Priority.BULK, lambda pending: ended.append(pending.outcome))
        await until(lambda: bool(ended))
        assert isinstance(ended[0], NoMemory)
        assert server.batcher.present_budget_bytes() == server.batcher.memory_budget_bytes == 1000
        labels = {"model": "a+attention"}
        assert server.metrics.registry.get_sample_value("harken_out_of_memory_total", labels) == 1


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 120)), max_size=12), st.data())
def test_answers_and_the_one_that_runs_never_exceed_the_budget(
    asked: list[tuple[int, int]], data: st.DataObject
) -> None:
    budget = AttendBudget(200)
    open_ones: list[tuple[ExitStack, int, int]] = []
    for answer_bytes, run_bytes in asked:
        before = budget.predicted_bytes
        entered = ExitStack()
        full: BacklogFull | None = None
        try:
            entered.enter_context(budget.holding(answer_bytes, run_bytes))
            open_ones.append((entered, answer_bytes, run_bytes))
        except BacklogFull as refused:
            full = refused
        if full is not None:
            assert budget.predicted_bytes == before == full.waiting
            assert full.asked == max(answer_bytes, run_bytes)
        answers = sum(answer for _, answer, _ in open_ones)
        for _, answer, runs in open_ones:
            assert answers - answer + max(runs, answer) <= budget.predicted_bytes <= 200
        assert budget.peak_bytes >= budget.predicted_bytes
        leaves = data.draw(st.integers(-len(open_ones), len(open_ones) - 1)) if open_ones else -1
        if leaves >= 0:
            open_ones.pop(leaves)[0].close()
    for entered, _, _ in open_ones:
        entered.close()
    assert budget.predicted_bytes == 0


def test_no_bundle_can_be_called_as_a_graph_is() -> None:
    assert attention_key(TINY) == ("tiny+attention", 1)
    assert is_attention(attention_key(TINY))
    assert not is_attention(TINY)


@asynccontextmanager
async def loading(folder: Path, idle_s: float = 0.0, **changes: int) -> AsyncIterator[tuple[Server, Attentions, Model]]:
    """`changes`: what the manifest is made to say."""
    bundle = read_bundle(Found(folder, "tiny", 1))
    for name, value in changes.items():
        setattr(bundle.manifest, name, value)
    async with serving(lanes=1) as server:
        settings = load(["--attend-idle-s", str(idle_s)], {})
        attentions = Attentions(settings, server.batcher, server.metrics, AttendBudget(1 << 30), time.monotonic)
        server.serve(TINY, Machine(), apart=False)
        yield server, attentions, Model(bundle.manifest, bundle.sha256, None, "cpu", folder)
        attentions.stop()


async def test_who_asks_at_the_same_time_shares_a_load_which_one_that_leaves_does_not_end(tiny_models: Path) -> None:
    async with loading(tiny_models / "tiny" / "1") as (server, attentions, model):
        first, second = (asyncio.create_task(attentions.loaded(model)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await second
        assert attention_key(TINY) in server.batcher.models
        assert first.cancelled()


async def test_it_stays_while_it_is_used_and_goes_after_its_idle_time(tiny_models: Path) -> None:
    async with loading(tiny_models / "tiny" / "1", idle_s=0.1) as (server, attentions, model):
        with attentions.using(model) as key:
            await attentions.loaded(model)
            await asyncio.sleep(0.3)
            assert key in server.batcher.models
        await until(lambda: key not in server.batcher.models)
        with attentions.using(model) as key:
            await attentions.loaded(model)
            assert key in server.batcher.models


async def test_a_graph_that_is_none_of_its_manifest_is_refused(tiny_models: Path) -> None:
    async with loading(tiny_models / "tiny" / "1", heads=4) as (server, attentions, model):
        for _ in range(2):
            with pytest.raises(LoadFailed, match="tiny"):
                await attentions.loaded(model)
        assert attention_key(TINY) not in server.batcher.models


async def test_one_whose_model_was_unloaded_meanwhile_is_not_served(tiny_models: Path) -> None:
    async with loading(tiny_models / "tiny" / "1") as (server, attentions, model):
        task = asyncio.create_task(attentions.loaded(model))
        await asyncio.sleep(0)
        server.batcher.models.retire(TINY)
        await task
        assert attention_key(TINY) not in server.batcher.models


async def test_one_that_comes_after_its_version_was_retired_goes_with_whoever_asked(tiny_models: Path) -> None:
    async with loading(tiny_models / "tiny" / "1") as (server, attentions, model):
        models = server.batcher.models
        with models.using(TINY), attentions.using(model) as key:
            task = asyncio.create_task(attentions.loaded(model))
            await asyncio.sleep(0)
            models.retire(TINY)
            attentions.let_go(key)
            await task
            await attentions.loaded(model)
            assert key in models
        assert key not in models
        assert TINY not in models
