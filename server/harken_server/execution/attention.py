"""Attention graphs: loaded when somebody asks, run as bulk work on the lanes, let go of when nobody does."""

import asyncio
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import get_native_id
from typing import Final

import numpy as np
import structlog

from harken_server.errors import BacklogFull, LoadFailed
from harken_server.execution import heap
from harken_server.execution.batcher import Batcher
from harken_server.execution.collate import Buffers, PaddedBatch, collate
from harken_server.execution.engine import DeviceOptions, DeviceUnavailable, Engine, EngineError, Halt, Outputs
from harken_server.execution.lanes import Clock
from harken_server.execution.pending import Pending
from harken_server.execution.reductions import ATTENTIONS
from harken_server.execution.served import ModelKey, Served
from harken_server.models.bundle import BundleError, read_attention
from harken_server.models.repository import Model
from harken_server.scheduling.backlog import Backlog
from harken_server.scheduling.memory import MemoryModel
from harken_server.settings import Settings
from harken_server.telemetry.metrics import Metrics

log = structlog.get_logger()

_COST_FACTOR: Final = 2.0
"""What maps cost over vectors of the same length, before any were computed; what runs corrects it."""

_NICER: Final = 10
_RETRY_S: Final = 1.0
_SUFFIX: Final = "+attention"
"""No name of a bundle has a plus in it."""


def attention_key(key: ModelKey) -> ModelKey:
    """What a model's attention graph is called beside it: in the batcher, in metrics, in explained batches."""
    name, version = key
    return name + _SUFFIX, version


def is_attention(key: ModelKey) -> bool:
    """Whether it is a name of `attention_key`'s."""
    return key[0].endswith(_SUFFIX)


def maps_bytes(layers: int, heads: int, length: int) -> int:
    """Of all maps of a sequence: float32 [layers, heads, length, length]."""
    return 4 * layers * heads * length * length


def run_bytes(layers: int, heads: int, length: int) -> int:
    """Most that a run holds: each layer's maps, and all of them once more, put together."""
    return 2 * maps_bytes(layers, heads, length)


class AttentionRunner:
    """What a lane runs. Attentions come as float32 [B, layers, heads, L, L]: a row is a sequence's, as ever."""

    def __init__(self, engine: Engine) -> None:
        self._engine: Final = engine

    def run(self, batch: PaddedBatch, outputs: Sequence[str], halt: Halt | None = None) -> Outputs:
        """See Runner."""
        computed = self._engine.run(batch, outputs, halt)
        if self._engine.device == "cuda":
            self._engine.shrink()  # there is no going without an arena there
        return {name: np.moveaxis(array, 1, 0) if name == ATTENTIONS else array for name, array in computed.items()}

    def shrink(self) -> None:
        """See Runner. Without an arena nothing is kept but small blocks."""
        heap.trim()


@dataclass(eq=False, slots=True)
class _Held:
    """An Attend from its acceptance until its answer has left. `extra_bytes`: more than that, while it runs."""

    answer_bytes: int
    extra_bytes: int


class AttendBudget:
    """How much memory Attends may take: one that runs, and the answers that wait to be computed or to be read."""

    def __init__(self, budget_bytes: int = 0) -> None:
        self.budget_bytes = budget_bytes
        """Known once the models are loaded."""
        self.peak_bytes = 0
        self._held: Final[set[_Held]] = set()

    @property
    def predicted_bytes(self) -> int:
        """What those that were accepted need at most, one of them running at a time."""
        answers = sum(held.answer_bytes for held in self._held)
        return answers + max((held.extra_bytes for held in self._held), default=0)

    @contextmanager
    def holding(self, answer_bytes: int, run_bytes: int) -> Iterator[None]:
        """Meanwhile so much is taken. Raises BacklogFull if others have taken too much of it."""
        before_bytes = self.predicted_bytes
        held = _Held(answer_bytes, max(run_bytes - answer_bytes, 0))
        self._held.add(held)
        try:
            if self.predicted_bytes > self.budget_bytes:
                asked_bytes = max(answer_bytes, run_bytes)
                raise BacklogFull(before_bytes, asked_bytes, self.budget_bytes, "bytes of attention maps", _RETRY_S)
            self.peak_bytes = max(self.peak_bytes, self.predicted_bytes)
            yield
        finally:
            self._held.discard(held)


class Attentions:
    """The attention graphs that are loaded. Belongs to the event loop's thread."""

    def __init__(
        self, settings: Settings, batcher: Batcher, metrics: Metrics, budget: AttendBudget, clock: Clock
    ) -> None:
        self._settings: Final = settings
        self._batcher: Final = batcher
        self._metrics: Final = metrics
        self.budget: Final = budget
        self._clock: Final = clock
        # Not asyncio's own threads: a thread that gave way once cannot be told to stop doing so.
        self._thread: Final = ThreadPoolExecutor(1, "attention", _give_way)
        self._loading: Final[dict[ModelKey, asyncio.Task[None]]] = {}
        self._resting: Final[dict[ModelKey, asyncio.TimerHandle]] = {}

    @contextmanager
    def using(self, model: Model) -> Iterator[ModelKey]:
        """Meanwhile this model's graph stays, once it is `loaded`; afterwards for attend_idle_s more."""
        key = attention_key(model.key)
        if timer := self._resting.pop(key, None):
            timer.cancel()
        try:
            with self._batcher.models.using(key):
                yield key
        finally:
            self._rest(key)

    async def loaded(self, model: Model) -> None:
        """Load it, unless it is there. Raises LoadFailed."""
        key = attention_key(model.key)
        if key in self._batcher.models:
            if model.key not in self._batcher.models.leaving():
                self._batcher.models.keep(key)
            return
        loading = self._loading.get(key)
        if loading is None:
            loading = self._loading[key] = asyncio.create_task(self._load(model, key))
            loading.add_done_callback(lambda _: self._loading.pop(key))
        # Whoever asked first may leave; others wait for it, too.
        await asyncio.shield(loading)

    async def _load(self, model: Model, key: ModelKey) -> None:
        began_s = self._clock()
        name = f"{model.manifest.name}/{model.manifest.version}"
        try:
            loop = asyncio.get_running_loop()
            engine = await loop.run_in_executor(self._thread, _make_engine, model, self._settings)
        except (BundleError, EngineError, DeviceUnavailable) as error:
            log.warning("attention graph not loaded", model=name, why=str(error))
            # Where the files lie is not for callers.
            said = "its attention graph cannot be loaded; the server's log says why"
            raise LoadFailed(model.manifest.name, said) from None
        if model.key not in self._batcher.models:
            return  # it was unloaded, and whoever asked has left
        cost = self._batcher.models[model.key].backlog.cost.inherited(_COST_FACTOR)
        served = Served(
            [AttentionRunner(engine)] * self._batcher.lanes,
            None,
            Backlog[Pending](cost, MemoryModel(0, 0)),
            self._metrics.for_model(*key),
            apart=True,
        )
        self._batcher.serve(key, served)
        self._rest(key)
        if model.key in self._batcher.models.leaving():
            # Its version was retired meanwhile; whoever asked has the graph until then.
            self.let_go(key)
        log.info("attention graph loaded", model=name, load_s=round(self._clock() - began_s, 3))

    def _rest(self, key: ModelKey) -> None:
        if timer := self._resting.pop(key, None):
            timer.cancel()
        idle_s = self._settings.attend_idle_s
        if idle_s and key in self._batcher.models:
            self._resting[key] = asyncio.get_running_loop().call_later(idle_s, self.let_go, key)

    def stop(self) -> None:
        """End the thread that loads."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def let_go(self, key: ModelKey) -> None:
        """Give the memory of a graph back, as soon as nobody uses it."""
        if timer := self._resting.pop(key, None):
            timer.cancel()
        if key in self._batcher.models:
            self._batcher.models.retire(key)


def _give_way() -> None:
    """Of this thread alone: the lanes have calls to answer."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + _NICER)


def _make_engine(model: Model, settings: Settings) -> Engine:
    """Raises BundleError, EngineError, DeviceUnavailable."""
    manifest = model.manifest
    content, weights = read_attention(model.folder, manifest)
    # Without an arena: what a run took goes back at its end, however large it was.
    options = DeviceOptions("cpu", cpu_arena=False)
    if model.device == "cuda":
        options = DeviceOptions("cuda", settings.device_id, cpu_arena=False, arena_extend=settings.gpu_arena_extend)
    engine = Engine(content, options, weights)
    tried = collate([np.zeros(1, np.int64)], Buffers())
    shape, wanted = engine.run(tried, (ATTENTIONS,))[ATTENTIONS].shape, (manifest.layers, 1, manifest.heads, 1, 1)
    if shape != wanted:
        raise BundleError(f"attention.onnx: gives attentions of the shape {shape}, not {wanted}")
    return engine
