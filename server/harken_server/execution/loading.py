"""From the folders of bundles to models that are served: check, load, warm up, measure."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import structlog
from harken.v1 import bundle_pb2

from harken_server.execution.attention import Attentions, attention_key, is_attention
from harken_server.execution.batcher import Batcher
from harken_server.execution.calibration import Grid
from harken_server.execution.collate import Buffers, collate
from harken_server.execution.engine import (
    SENTENCE,
    Device,
    DeviceOptions,
    DeviceUnavailable,
    Engine,
    EngineError,
    cuda_is_built_in,
    runtime_version,
)
from harken_server.execution.lanes import Clock, Lane
from harken_server.execution.measuring import Measured, Measuring
from harken_server.execution.pending import Pending
from harken_server.execution.served import ModelKey, Served
from harken_server.execution.surfaces import Surfaces
from harken_server.models.bundle import Bundle, BundleError, Found, read_bundle
from harken_server.models.repository import (
    Model,
    Repository,
    cannot_look_into,
    chosen,
    find_bundles,
    not_there,
    pinned_version,
    pinned_versions,
)
from harken_server.models.tokenizer import Tokenizer
from harken_server.scheduling.backlog import Backlog
from harken_server.scheduling.companions import Limits
from harken_server.scheduling.cost import CostSurface
from harken_server.scheduling.memory import MemoryModel
from harken_server.settings import Settings
from harken_server.telemetry.machine import Cgroups, usable_cores, usable_memory_bytes
from harken_server.telemetry.memory import DeviceMemory
from harken_server.telemetry.metrics import Metrics

log = structlog.get_logger()

_BATCH_TOKENS: Final[dict[Device, int]] = {"cpu": 1024, "cuda": 32768}
_FREE_SHARE: Final = 0.5
"""Of free memory, for batches, unless a setting tells. Beside them grow answers that wait for their readers, messages,
texts that wait for the tokenizer, and whatever else runs on the machine."""

_ATTEND_PART: Final = 4
"""Attends may take one so many-th of what batches may, beside that, unless a setting tells."""

_SIZE: Final = ("layers", "heads", "hidden_size", "intermediate_size", "max_length", "precision")
"""What of a manifest decides its costs."""

_WEIGHTS_SHARE: Final = 0.25
"""Of the memory there is, for the weights of all models in as many sessions as there are lanes."""


class Loader:
    """Loads the bundles of the settings' folder: all at the start, single ones later. Belongs to the event loop."""

    def __init__(
        self,
        settings: Settings,
        repository: Repository,
        batcher: Batcher,
        attentions: Attentions,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._settings: Final = settings
        self._repository: Final = repository
        self._batcher: Final = batcher
        self._attentions: Final = attentions
        self._metrics: Final = metrics
        self._clock: Final = clock
        self._cgroups: Final = Cgroups()
        self._device_memory: DeviceMemory | None = None
        self._lanes: list[Lane] = []
        self._wide_lane: Lane | None = None
        self._device: Device = "cpu"
        # Weights of models whose lanes have sessions of their own, in all of these.
        self._own_bytes = 0
        self._own_by_model: Final[dict[ModelKey, int]] = {}
        self._alone = True

    async def load(self) -> Mapping[ModelKey, str]:
        """Load, warm up and serve. Returns which versions cannot be served, and why; others of their models are.

        Raises BundleError, if nothing of a model can be served or not the version that is pinned, or DeviceUnavailable,
        one line each.
        """
        settings = self._settings
        cores, memory = usable_cores(self._cgroups), usable_memory_bytes(self._cgroups)
        log.info(
            "machine",
            cores=cores.amount, cores_by=cores.by, memory_bytes=memory.amount, memory_by=memory.by,
            onnxruntime=runtime_version(),
        )  # fmt: skip
        wanted: str = settings.device
        every = self.found()
        pins = pinned_versions(settings.models, every)
        refused: dict[ModelKey, BundleError] = {}
        for found in chosen(every, settings.keep_versions, pins):
            try:
                bundle = await asyncio.to_thread(read_bundle, found, settings.digests)
                engine, device = await asyncio.to_thread(_make_engine, bundle, settings, wanted)
                wanted = self._device = device  # all models run where the first one does
                if not self._lanes:
                    self._make_lanes(device, settings.lanes or (cores.amount if device == "cpu" else 1))
                await self._serve(bundle, engine, device)
            except BundleError as error:
                refused[found.name, found.version] = error
        for (name, version), why in refused.items():
            if not self._repository.versions(name) or pins.get(name) == version:
                raise why
        for name, version in pins.items():
            self._repository.pin(name, version)
        self._alone = False
        device = self._device
        budget_bytes = self._budget_bytes(device)
        log.info("memory budget", bytes=budget_bytes, by="setting" if settings.memory_budget_bytes else "free memory")
        batcher, attend = self._batcher, self._attentions.budget
        attend.budget_bytes = settings.attend_memory_bytes or budget_bytes // _ATTEND_PART
        readings = {
            "predicted_batch": batcher.predicted_batch_bytes,
            "budget": batcher.present_budget_bytes,
            "predicted_attend": lambda: attend.predicted_bytes,
            "attend_peak": lambda: attend.peak_bytes,
            "attend_budget": lambda: attend.budget_bytes,
        }
        self._metrics.watch_memory(readings, self._device_memory)
        for model in self._repository:
            needed_bytes = batcher.memory_model(model.key).batch_bytes(1, model.manifest.max_length)
            if needed_bytes > budget_bytes:
                name = f"{model.manifest.name}/{model.manifest.version}"
                log.warning("the memory budget holds no longest sequence", model=name, bytes=needed_bytes)
        if device == "cpu" and len(self._lanes) > cores.amount:
            log.warning("more lanes than usable cores: they take turns", lanes=len(self._lanes), cores=cores.amount)
        limits = Limits(
            settings.max_batch_sequences, self._batch_tokens(device), budget_bytes, settings.bulk_batch_max_s
        )
        batcher.open(self._lanes, self._wide_lane, limits)
        return {key: str(why) for key, why in refused.items()}

    def found(self) -> list[Found]:
        """Every bundle in the folder, checked or not; blocks. Raises BundleError without any."""
        return find_bundles(self._settings.models, self._settings.model_name)

    def cannot_look_into(self, name: str) -> str | None:
        """Why nobody can say which versions of this model the folder holds, None if that can be said; blocks."""
        return cannot_look_into(self._settings.models, name)

    def pinned(self, name: str) -> int | None:
        """The version of this model that its folder makes the default; blocks. Raises BundleError if that is none."""
        return pinned_version(self._settings.models, name)

    def cannot_pin(self, name: str, version: int) -> BundleError:
        """What is said of a pinned version that is not there, or was refused."""
        return not_there(self._settings.models, name, version)

    async def load_version(self, found: Found) -> None:
        """Serve this version too, which is neither served nor leaving. Raises BundleError or DeviceUnavailable."""
        bundle = await asyncio.to_thread(read_bundle, found, self._settings.digests)
        engine, device = await asyncio.to_thread(_make_engine, bundle, self._settings, self._device)
        await self._serve(bundle, engine, device)

    def unload_version(self, name: str, version: int) -> None:
        """Serve this version no longer. It must be served."""
        model = self._repository.find(name, version)
        self._repository.remove(model.key)
        self._batcher.models.retire(model.key)
        self._attentions.let_go(attention_key(model.key))
        self._own_bytes -= self._own_by_model.pop(model.key, 0)
        self._metrics.model_info.remove(*_info(model))

    def leaving(self) -> list[ModelKey]:
        """Versions that are unloaded and still in use."""
        return [key for key in self._batcher.models.leaving() if not is_attention(key)]

    def stop(self) -> None:
        """End the lanes."""
        for lane in self._lanes:
            lane.stop()
        if self._wide_lane is not None:
            self._wide_lane.stop()

    def _make_lanes(self, device: Device, count: int) -> None:
        self._lanes = [Lane(str(index), self._clock) for index in range(count)]
        if device == "cpu" and count > 1 and self._settings.wide_lane:
            self._wide_lane = Lane("wide", self._clock)
        self._device_memory = _device_memory(self._settings) if device == "cuda" else None
        log.info("device", device=device, lanes=count, wide_lane=self._wide_lane is not None)

    async def _serve(self, bundle: Bundle, engine: Engine, device: Device) -> None:
        try:
            await self._warm_and_serve(bundle, engine, device)
        except BaseException:
            self._own_bytes -= self._own_by_model.pop((bundle.manifest.name, bundle.manifest.version), 0)
            raise

    async def _warm_and_serve(self, bundle: Bundle, engine: Engine, device: Device) -> None:
        manifest = bundle.manifest
        started_s = self._clock()
        tokenizer = None
        if bundle.tokenizer is not None:
            tokenizer = Tokenizer(bundle.tokenizer, manifest.max_length, manifest.vocab_size)
        log.info("warming up", model=f"{manifest.name}/{manifest.version}")
        engines = await asyncio.to_thread(self._engines, bundle, engine, device)
        # At the start lanes are idle, and measure.
        sibling = None if self._alone else self._sibling(manifest)
        measured, wide_engine, wide_cost = await asyncio.to_thread(self._measure, bundle, engines, device, sibling)
        backlog: Backlog[Pending] = Backlog(measured.cost, measured.memory, wide_cost)
        model = Model(manifest, bundle.sha256, tokenizer, device, bundle.folder)
        self._batcher.serve(model.key, Served(engines, wide_engine, backlog, self._metrics.for_model(*model.key)))
        self._repository.add(model)
        self._metrics.model_info.labels(*_info(model)).set(1)
        log.info(
            "model ready",
            model=f"{manifest.name}/{manifest.version}",
            shapes=measured.shapes,
            costs="inherited" if sibling else "known" if measured.seconds_known else "measured",
            memory="measured" if measured.bytes_measured else "by formula",
            sessions=len(set(engines)),
            wide=wide_engine is not None,
            warmup_s=round(self._clock() - started_s, 3),
        )

    def _engines(self, bundle: Bundle, engine: Engine, device: Device) -> Sequence[Engine]:
        """One for each narrow lane: sessions of their own, or the one that is there."""
        weights_bytes = len(self._lanes) * len(bundle.model)
        if device == "cpu" and self._own_sessions(weights_bytes):
            try:
                others = [Engine(bundle.model, _on_cpu(self._settings, threads=1)) for _ in self._lanes[1:]]
                self._own_bytes += weights_bytes
                self._own_by_model[bundle.manifest.name, bundle.manifest.version] = weights_bytes
                return [engine, *others]
            except EngineError as error:
                log.warning("lanes share a session of this model", model=bundle.manifest.name, why=str(error))
        return [engine] * len(self._lanes)

    def _own_sessions(self, weights_bytes: int) -> bool:
        settings = self._settings
        if settings.lane_sessions != "auto":
            return settings.lane_sessions == "own"
        if settings.cpu_memory_limit_bytes:
            # They would take from one limited arena, and what changes hands there would be no less.
            return False
        return self._own_bytes + weights_bytes <= _WEIGHTS_SHARE * usable_memory_bytes(self._cgroups).amount

    def _sibling(self, manifest: bundle_pb2.Bundle) -> Served | None:
        """The newest served version of this model, if it is of the same size: what it costs, the new one costs."""
        for version in reversed(self._repository.versions(manifest.name)):
            other = self._repository.find(manifest.name, version)
            if all(getattr(other.manifest, name) == getattr(manifest, name) for name in _SIZE):
                return self._batcher.models[other.key]
        return None

    def _inherit(self, bundle: Bundle, sibling: Served) -> tuple[Measured, Engine | None, CostSurface | None]:
        """Costs as the other version has them by now; the next start measures."""
        cost, wide_cost = sibling.backlog.cost.inherited(), sibling.backlog.wide_cost
        measured = Measured(cost, sibling.backlog.memory, shapes=0, seconds_known=True, bytes_measured=True)
        if sibling.wide_runner is None or wide_cost is None:
            return measured, None, None
        wide_engine = Engine(bundle.model, _on_cpu(self._settings, threads=len(self._lanes)))
        _check_shape(bundle, wide_engine)  # the first run of a session is its slowest
        return measured, wide_engine, wide_cost.inherited()

    def _measure(
        self, bundle: Bundle, engines: Sequence[Engine], device: Device, sibling: Served | None
    ) -> tuple[Measured, Engine | None, CostSurface | None]:
        """What batches cost, and the engine of the wide lane with its cost where that pays."""
        settings, manifest = self._settings, bundle.manifest
        # On the CPU activations are float32 between the products, whatever the weights are.
        bytes_per_value = 2 if manifest.precision == "fp16" and device == "cuda" else 4
        formula = MemoryModel.of_encoder(
            manifest.hidden_size, manifest.intermediate_size, manifest.heads, bytes_per_value
        )
        budget_bytes = self._budget_bytes(device)
        grid = Grid(
            manifest.max_length,
            settings.max_batch_sequences,
            self._batch_tokens(device),
            fits=lambda batch, length: len(self._lanes) * formula.batch_bytes(batch, length) <= budget_bytes,
        )
        measuring = Measuring(
            Surfaces(settings.state_dir),
            self._lanes,
            self._wide_lane,
            device,
            self._device_memory,
            settings.warmup_s,
            self._clock,
            alone=self._alone,
        )
        try:
            for engine in dict.fromkeys(engines):
                _check_shape(bundle, engine)
            if sibling is not None:
                return self._inherit(bundle, sibling)
            measured = measuring.narrow(bundle, engines, grid, formula)
        except EngineError as error:
            raise BundleError(f"{manifest.name}/{manifest.version}: does not run: {error}") from error
        if self._wide_lane is None:
            return measured, None, None
        try:
            wide_engine = Engine(bundle.model, _on_cpu(settings, threads=len(self._lanes)))
            wide_cost = measuring.wide(bundle, wide_engine, measured.cost)
        except EngineError as error:
            # There may be no memory for the weights again; everything runs on the narrow lanes as well.
            log.warning("no wide lane for this model", model=manifest.name, why=str(error))
            return measured, None, None
        return (measured, wide_engine, wide_cost) if wide_cost else (measured, None, None)

    def _budget_bytes(self, device: Device) -> int:
        """Most memory that running batches may take, as the setting or what is free now allows."""
        settings = self._settings
        if settings.memory_budget_bytes:
            return settings.memory_budget_bytes
        limit_bytes = settings.gpu_memory_limit_bytes if device == "cuda" else settings.cpu_memory_limit_bytes
        free_bytes = self._device_memory.free_bytes() if self._device_memory else None
        if free_bytes is None:
            free_bytes = usable_memory_bytes(self._cgroups).amount
        return int(_FREE_SHARE * min(free_bytes, limit_bytes or free_bytes))

    def _batch_tokens(self, device: Device) -> int:
        return self._settings.max_batch_tokens or _BATCH_TOKENS[device]


def _info(model: Model) -> tuple[str, ...]:
    """The label values of harken_model_info."""
    manifest = model.manifest
    return manifest.name, str(manifest.version), manifest.precision, model.device, model.sha256[:12]


def _check_shape(bundle: Bundle, engine: Engine) -> None:
    """A manifest that lies about its graph would fail each request in turn."""
    shape = engine.run(collate([np.zeros(1, np.int64)], Buffers()), (SENTENCE,))[SENTENCE].shape
    if shape != (1, bundle.manifest.hidden_size):
        name = f"{bundle.manifest.name}/{bundle.manifest.version}"
        raise BundleError(f"{name}: says hidden_size {bundle.manifest.hidden_size}, but its vectors have {shape[-1]}")


def _make_engine(bundle: Bundle, settings: Settings, device: str) -> tuple[Engine, Device]:
    """A bundle's engine on the device that was asked for, or on the one that the first bundle got."""
    if device != "cpu":
        try:
            if not cuda_is_built_in():
                raise DeviceUnavailable("CUDA: this onnxruntime is built without it; install harken[server-gpu]")
            options = DeviceOptions(
                "cuda",
                settings.device_id,
                memory_limit_bytes=settings.gpu_memory_limit_bytes,
                arena_extend=settings.gpu_arena_extend,
            )
            return _engine(bundle, options), "cuda"
        except DeviceUnavailable as error:
            if device == "cuda":
                raise
            log.info("no CUDA, taking the CPU", why=str(error))
    return _engine(bundle, _on_cpu(settings, threads=1)), "cpu"


def _on_cpu(settings: Settings, threads: int) -> DeviceOptions:
    return DeviceOptions("cpu", threads=threads, memory_limit_bytes=settings.cpu_memory_limit_bytes)


def _engine(bundle: Bundle, options: DeviceOptions) -> Engine:
    try:
        return Engine(bundle.model, options)
    except EngineError as error:
        raise BundleError(f"{bundle.manifest.name}/{bundle.manifest.version}: model.onnx: {error}") from error


def _device_memory(settings: Settings) -> DeviceMemory | None:
    try:
        return DeviceMemory(settings.device_id)
    except RuntimeError as error:
        log.warning("no GPU memory metrics", why=str(error))
        return None
