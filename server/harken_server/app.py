"""The composition root: load, warm up, serve, drain."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

import structlog
import uvloop
from prometheus_client import disable_created_metrics, start_http_server

from harken_server.execution.batcher import Batcher, Served
from harken_server.execution.calibration import calibrate
from harken_server.execution.engine import (
    Device,
    DeviceOptions,
    DeviceUnavailable,
    Engine,
    EngineError,
    check_installation,
    cuda_is_built_in,
    runtime_version,
)
from harken_server.execution.lanes import Lane
from harken_server.execution.pending import Pending
from harken_server.execution.tokenizing import Tokenizing
from harken_server.models.bundle import Bundle, BundleError, read_bundle
from harken_server.models.repository import Model, Repository, find_bundles
from harken_server.models.tokenizer import Tokenizer
from harken_server.rpc import encoder
from harken_server.rpc.calls import Calls
from harken_server.rpc.encoder import Encoder
from harken_server.rpc.server import Health, add_reflection, bind, make_server
from harken_server.rpc.stream import Streams
from harken_server.scheduling.admission import Capacity
from harken_server.scheduling.backlog import Backlog
from harken_server.scheduling.cost import CostSurface
from harken_server.scheduling.memory import MemoryModel
from harken_server.scheduling.policy import Limits
from harken_server.service import Limits as ServiceLimits
from harken_server.service import Service
from harken_server.settings import BadSettings, Settings, load
from harken_server.telemetry import logs
from harken_server.telemetry.machine import Cgroups, usable_cores, usable_memory_bytes
from harken_server.telemetry.memory import DeviceMemory
from harken_server.telemetry.metrics import Metrics

log = structlog.get_logger()

_BATCH_TOKENS: Final[dict[Device, int]] = {"cpu": 1024, "cuda": 32768}
# Of activations: int8 keeps them in float32 between its products.
_BYTES_PER_VALUE: Final = {"fp32": 4, "fp16": 2, "int8": 4}

CLOCK: Final = time.monotonic


class CannotStart(Exception):
    """Something that the operator must mend before the server can start. One line."""


@dataclass(frozen=True)
class Ports:
    """Where a server listens, once it does."""

    grpc: int
    metrics: int


class App:
    """One server in this process. Belongs to its event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings: Final = settings
        self._metrics: Final = Metrics()
        self._repository: Final = Repository()
        self._batcher: Final = Batcher(
            Capacity(settings.max_backlog_sequences, settings.max_backlog_tokens), self._metrics, CLOCK, _die
        )
        self._tokenizing: Final = Tokenizing(settings.tokenize_threads, settings.max_tokenize_bytes)
        self._service: Final = Service(
            self._repository,
            self._batcher,
            self._tokenizing,
            ServiceLimits(settings.max_inputs, settings.max_text_bytes, settings.max_message_bytes),
            CLOCK,
        )
        self._streams: Final = Streams(settings.max_stream_unanswered, settings.max_request_s)
        self._calls: Final = Calls(self._metrics, CLOCK, settings.max_request_s)
        self._server: Final = make_server(settings)
        self._health: Final = Health(self._server)
        self._lanes: list[Lane] = []

    async def start(self) -> Ports:
        """Listen, as NOT_SERVING; load and warm up; then SERVING. Raises CannotStart."""
        settings = self._settings
        try:
            self._metrics_server, _ = start_http_server(settings.metrics_port, settings.listen, self._metrics.registry)
        except (OSError, ValueError) as error:
            raise CannotStart(
                f"cannot listen on {settings.listen}:{settings.metrics_port} for metrics: {error}"
            ) from error
        try:
            grpc_port = bind(self._server, settings)
        except OSError as error:
            raise CannotStart(
                f"cannot listen on {settings.listen}:{settings.grpc_port} for gRPC: {error.strerror or error}"
            ) from error
        edge = Encoder(self._service, self._calls, self._streams, settings.max_message_bytes)
        self._server.add_generic_rpc_handlers((edge.handler(),))
        if settings.reflection:
            add_reflection(self._server, [encoder.SERVICE])
        await self._health.set(["", encoder.SERVICE], serving=False)
        await self._server.start()
        ports = Ports(grpc_port, self._metrics_server.server_port)
        log.info("listening", listen=settings.listen, grpc_port=ports.grpc, metrics_port=ports.metrics)
        await self._load()
        models = [f"{name}/{version}" for name, version in (model.key for model in self._repository)]
        self._service.state = "serving"
        names = {model.manifest.name for model in self._repository}
        await self._health.set(["", encoder.SERVICE, *sorted(names), *models], serving=True)
        log.info("serving", models=models, grpc_port=ports.grpc, metrics_port=ports.metrics)
        return ports

    async def drain(self) -> None:
        """NOT_SERVING at once; go on accepting for a while; then refuse, finish what was accepted, and stop."""
        settings = self._settings
        log.info("draining", accepting_for_s=settings.drain_delay_s)
        await self._health.drain()
        await asyncio.sleep(settings.drain_delay_s)
        self._service.state = "draining"
        self._streams.drain()
        stopping = asyncio.create_task(self._server.stop(settings.max_request_s + 1.0))
        await self._calls.idle()
        # An open health Watch or reflection stream would hold the stop for its whole grace.
        await self._server.stop(0)
        await stopping
        self._tokenizing.stop()
        for lane in self._lanes:
            lane.stop()
        self._metrics_server.shutdown()
        self._metrics_server.server_close()
        log.info("stopped")

    async def _load(self) -> None:
        settings = self._settings
        cgroups = Cgroups()
        cores, memory = usable_cores(cgroups), usable_memory_bytes(cgroups)
        log.info(
            "machine",
            cores=cores.amount, cores_by=cores.by, memory_bytes=memory.amount, memory_by=memory.by,
            onnxruntime=runtime_version(),
        )  # fmt: skip
        try:
            folders = find_bundles(settings.models)
            wanted: str = settings.device
            for folder in folders:
                bundle = await asyncio.to_thread(read_bundle, folder)
                engine, device = await asyncio.to_thread(_make_engine, bundle, settings, wanted)
                wanted = device  # all models run where the first one does
                if not self._lanes:
                    lanes = settings.lanes or (cores.amount if device == "cpu" else 1)
                    self._lanes = [Lane(index, CLOCK) for index in range(lanes)]
                    log.info("device", device=device, lanes=lanes)
                await self._add(bundle, engine, device)
        except (BundleError, DeviceUnavailable) as error:
            raise CannotStart(str(error)) from error
        budget_bytes = settings.memory_budget_bytes or usable_memory_bytes(cgroups).amount // 2
        self._metrics.watch_memory(
            budget_bytes, self._batcher.predicted_batch_bytes, _device_memory(settings) if device == "cuda" else None
        )
        self._batcher.open(self._lanes, Limits(settings.max_batch_sequences, self._batch_tokens(device), budget_bytes))

    async def _add(self, bundle: Bundle, engine: Engine, device: Device) -> None:
        settings, manifest = self._settings, bundle.manifest
        name = f"{manifest.name}/{manifest.version}"
        started_s = CLOCK()
        tokenizer = None
        try:
            if bundle.tokenizer is not None:
                tokenizer = Tokenizer(bundle.tokenizer, manifest.max_length)
            seconds = await asyncio.to_thread(
                calibrate, engine, self._lanes, manifest.max_length,
                settings.max_batch_sequences, self._batch_tokens(device), settings.warmup_s, CLOCK,
            )  # fmt: skip
        except EngineError as error:
            raise BundleError(f"{name}: does not run: {error}") from error
        memory = MemoryModel.of_encoder(
            manifest.hidden_size, manifest.intermediate_size, manifest.heads, _BYTES_PER_VALUE[manifest.precision]
        )
        backlog: Backlog[Pending] = Backlog(CostSurface(seconds), memory)
        model = Model(manifest, bundle.sha256, tokenizer, device)
        self._batcher.serve(model.key, Served(engine, backlog, self._metrics.for_model(manifest.name)))
        self._repository.add(model)
        self._metrics.model_info.labels(
            manifest.name, str(manifest.version), manifest.precision, device, bundle.sha256[:12]
        ).set(1)
        log.info("model ready", model=name, shapes=len(seconds), warmup_s=round(CLOCK() - started_s, 3))

    def _batch_tokens(self, device: Device) -> int:
        return self._settings.max_batch_tokens or _BATCH_TOKENS[device]


def _make_engine(bundle: Bundle, settings: Settings, device: str) -> tuple[Engine, Device]:
    """A bundle's engine on the device that was asked for, or on the one that the first bundle got."""
    if device != "cpu":
        try:
            if not cuda_is_built_in():
                raise DeviceUnavailable(
                    "CUDA: the installed onnxruntime is built without it; install harken[server-gpu]"
                )
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
    return _engine(bundle, DeviceOptions("cpu")), "cpu"


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


def _die(error: BaseException) -> None:
    """The batcher failed: nothing would be answered any more, so nobody may go on believing in this process."""
    log.critical("the batcher failed", error=repr(error), exc_info=error)
    os._exit(70)


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(1)  # the second signal: at once
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    app = App(settings)
    starting = asyncio.create_task(app.start())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        log.info("stopped while loading")
        os._exit(0)  # a thread is deep in the runtime, and nothing was accepted
    starting.result()
    await stopping
    await app.drain()


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The command `harken-server`. Exits with 0 after a drain, with 2 if the server cannot start as asked."""
    try:
        settings = load(sys.argv[1:] if arguments is None else arguments, os.environ)
        check_installation()
        logs.configure(settings.log_level, settings.log_format)
        disable_created_metrics()  # type: ignore[no-untyped-call]  # has no types
        uvloop.run(_serve(settings))
    except (BadSettings, CannotStart, DeviceUnavailable) as error:
        sys.stderr.write(f"harken-server: error: {error}\n")
        sys.stderr.flush()
        # Lanes that started already are daemon threads.
        os._exit(2)
    sys.exit(0)
