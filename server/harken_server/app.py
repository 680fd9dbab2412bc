"""The composition root: load, warm up, serve, drain."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import Final, NoReturn

import structlog
import uvloop
from prometheus_client import disable_created_metrics

from harken_server.attend import Attend
from harken_server.execution.attention import AttendBudget, Attentions
from harken_server.execution.batcher import Batcher
from harken_server.execution.control import Control
from harken_server.execution.engine import DeviceUnavailable, check_installation
from harken_server.execution.following import Following
from harken_server.execution.history import History
from harken_server.execution.keys import Keys
from harken_server.execution.loading import Loader
from harken_server.execution.results import Results
from harken_server.execution.tokenizing import Tokenizing
from harken_server.execution.watchdog import Watchdog
from harken_server.models.bundle import BundleError
from harken_server.models.repository import Repository
from harken_server.reader import Reader
from harken_server.rpc import admin, debug, encoder
from harken_server.rpc.admin import Admin
from harken_server.rpc.api_keys import ApiKeys
from harken_server.rpc.calls import Calls
from harken_server.rpc.certificates import Certificates
from harken_server.rpc.debug import Debug
from harken_server.rpc.encoder import Encoder
from harken_server.rpc.files import BadFile, follow
from harken_server.rpc.load_report import LoadReports
from harken_server.rpc.oip import inference
from harken_server.rpc.oip.inference import Inference
from harken_server.rpc.probes import Probes
from harken_server.rpc.server import Health, add_reflection, bind, make_server
from harken_server.rpc.stream import Streams
from harken_server.rpc.tenants import Tenants
from harken_server.rpc.web.exchange import Exchanges
from harken_server.rpc.web.server import Web
from harken_server.scheduling.admission import Capacity
from harken_server.service import Service
from harken_server.settings import BadSettings, Settings
from harken_server.sources import load
from harken_server.telemetry import logs
from harken_server.telemetry.logs import AccessLog
from harken_server.telemetry.metrics import Metrics
from harken_server.telemetry.scrapes import Scrapes
from harken_server.telemetry.tracing import Tracing
from harken_server.values import Limits

log = structlog.get_logger()

# How long a drain answers new calls with a refusal, while they keep coming, before it closes the connections.
_REFUSING_S: Final = 0.5

# For what is computed and on its way to a slow reader; with a Watch open all of it passes.
_SENDING_S: Final = 0.5

CLOCK: Final = time.monotonic

_SERVICES: Final = (encoder.SERVICE, debug.SERVICE, admin.SERVICE, inference.SERVICE)


class CannotStart(Exception):
    """Something that the operator must mend before the server can start. One line."""


@dataclass(frozen=True)
class Ports:
    """Where a server listens, once it does."""

    grpc: int
    http: int | None
    metrics: int
    health: int


class App:
    """One server in this process. Belongs to its event loop."""

    def __init__(self, settings: Settings) -> None:
        """Raises BadFile, CannotStart."""
        self._settings: Final = settings
        self._metrics: Final = Metrics()
        self._repository: Final = Repository()
        self._history: Final = History(settings.debug_batches)
        results = Results(settings.result_cache_bytes)
        self._metrics.cache_size.set_function(lambda: results.size_bytes)
        self._tracing: Final = _tracing(settings)
        self._batcher: Final = Batcher(
            Capacity(settings.max_backlog_sequences, settings.max_backlog_tokens),
            self._metrics,
            self._history,
            results,
            CLOCK,
            _die,
            Watchdog(asyncio.get_running_loop().call_later, settings.stall_factor, settings.stall_min_s),
            self._on_works,
            self._tracing,
        )
        self._metrics.ready.set_function(lambda: float(self._service.ready))
        self._tokenizing: Final = Tokenizing(settings.tokenize_threads, settings.max_tokenize_bytes)
        limits = Limits(
            settings.max_inputs, settings.max_text_bytes, settings.max_message_bytes, settings.max_unsent_bytes
        )
        self._service: Final = Service(
            self._repository,
            self._batcher,
            Reader(self._batcher, self._tokenizing, limits, CLOCK),
            limits,
            Keys(shared=settings.share_identical, kept=results.kept),
            CLOCK,
        )
        self._streams: Final = Streams(
            settings.max_stream_unanswered, settings.max_request_s, settings.max_connection_age_s
        )
        self._keys: Final = ApiKeys(settings.api_keys, CLOCK) if settings.api_keys else None
        tenants = Tenants(settings.trust_tenants and self._keys is None, settings.weights_by_tenant)
        access_log = AccessLog(settings.access_log_ratio)
        self._calls: Final = Calls(
            self._metrics, tenants, CLOCK, settings.max_request_s, self._keys, access_log, self._tracing,
            LoadReports(self._metrics, lambda: self._batcher.lanes, CLOCK) if settings.load_reports else None,
        )  # fmt: skip
        self._server: Final = make_server(settings)
        self._web: Web | None = None
        self._health: Final = Health(self._server)
        self._probes: Final = Probes()
        self._draining = False
        self._following_files: Final[list[asyncio.Task[NoReturn]]] = []
        self._attentions: Final = Attentions(settings, self._batcher, self._metrics, AttendBudget(), CLOCK)
        self._attend: Final = Attend(self._service, self._batcher, self._attentions, settings.attend, CLOCK)
        self._loader: Final = Loader(settings, self._repository, self._batcher, self._attentions, self._metrics, CLOCK)
        self._control: Final = Control(
            self._loader,
            self._repository,
            self._metrics,
            settings.model_control,
            settings.keep_versions,
            self._health.set,
        )
        self._following: Final = Following(self._control, settings.watch_models_s)

    async def start(self) -> Ports:
        """Listen, as NOT_SERVING; load and warm up; then SERVING. Raises CannotStart, BadFile."""
        settings = self._settings
        if self._keys is not None:
            self._follow(self._keys)
        certificates = self._certificates()
        try:
            self._scrapes = Scrapes(self._metrics.registry, settings.listen, settings.metrics_port)
        except (OSError, ValueError) as error:
            raise CannotStart(
                f"cannot listen on {settings.listen}:{settings.metrics_port} for metrics: {error}"
            ) from error
        try:
            health_port = await self._probes.start(settings)
        except OSError as error:
            raise CannotStart(
                f"cannot listen on {settings.listen}:{settings.health_port} for health: {error.strerror or error}"
            ) from error
        try:
            credentials = certificates.credentials() if certificates else None
            grpc_port = bind(self._server, settings.listen, settings.grpc_port, settings.so_reuseport, credentials)
        except OSError as error:
            raise CannotStart(
                f"cannot listen on {settings.listen}:{settings.grpc_port} for gRPC: {error.strerror or error}"
            ) from error
        http_port = await self._start_web(certificates)
        edge = Encoder(self._service, self._attend, self._calls, self._streams, settings.max_message_bytes)
        debug_edge = Debug(self._history, self._calls, settings.max_message_bytes)
        inference_edge = Inference(self._service, self._calls, self._streams, self._control, settings.max_message_bytes)
        admin_edge = Admin(settings, self._calls)
        handlers = (edge.handlers(), debug_edge.handlers(), admin_edge.handlers(), inference_edge.handlers())
        for service, methods in zip(_SERVICES, handlers, strict=True):
            self._server.add_registered_method_handlers(service, methods)
        if settings.reflection:
            add_reflection(self._server, _SERVICES)
        await self._health.set(["", *_SERVICES], serving=False)
        await self._server.start()
        ports = Ports(grpc_port, http_port, self._scrapes.port, health_port)
        log.info(
            "listening",
            listen=settings.listen, grpc_port=ports.grpc, http_port=ports.http, metrics_port=ports.metrics,
            health_port=ports.health,
        )  # fmt: skip
        try:
            self._control.refuse(await self._loader.load())
        except (BundleError, DeviceUnavailable) as error:
            raise CannotStart(str(error)) from error
        self._service.state = "serving"
        names = sorted({model.manifest.name for model in self._repository})
        models = [f"{name}/{version}" for name, version in (model.key for model in self._repository)]
        await self._health.set([*names, *models, "", *_SERVICES], serving=True)
        await self._probes.set(ready=True)
        self._follower = asyncio.create_task(self._following.run())
        log.info(
            "serving",
            models=models, grpc_port=ports.grpc, http_port=ports.http, metrics_port=ports.metrics,
            health_port=ports.health,
        )  # fmt: skip
        return ports

    def _certificates(self) -> Certificates | None:
        """None is plain text. Raises BadFile."""
        settings = self._settings
        if not (settings.tls_certificate or settings.tls_key or settings.tls_client_ca):
            return None
        certificates = Certificates(settings)
        self._follow(certificates)
        for file in certificates.ends_s:
            end_s = partial(lambda name: certificates.ends_s.get(name, float("nan")), file)
            self._metrics.certificate_expiry.labels(file).set_function(end_s)
        return certificates

    def _follow(self, files: Certificates | ApiKeys) -> None:
        self._following_files.append(asyncio.create_task(follow(files.paths, files.contents, files.use)))

    async def _start_web(self, certificates: Certificates | None) -> int | None:
        settings = self._settings
        if not settings.http:
            return None
        exchanges = Exchanges(self._service, self._calls, settings.max_message_bytes, settings.max_request_s)
        tls = certificates.context() if certificates else None
        self._web = Web(exchanges, self._attend, self._control, self._history, settings, tls)
        try:
            return await self._web.start()
        except OSError as error:
            where = f"{settings.listen}:{settings.http_port}"
            raise CannotStart(f"cannot listen on {where} for HTTP: {error.strerror or error}") from error

    def look_for_models(self) -> None:
        """Serve what the folder holds by now; while the server starts: once it serves."""
        self._following.ask()

    @property
    def loading(self) -> bool:
        """Whether a model is being loaded beside those that are served."""
        return self._control.busy

    def _on_works(self, works: bool) -> None:
        """Health follows whether any lane works; while models load, or in a drain, nobody asks for that."""
        log.info("a lane works again" if works else "no lane works")
        self._saying = asyncio.create_task(self._say_works(works))

    async def _say_works(self, works: bool) -> None:
        keys = [model.key for model in self._repository]
        names = [*{name for name, _ in keys}, *(f"{name}/{version}" for name, version in keys)]
        await self._health.set([*names, "", *_SERVICES], works)
        await self._probes.set(ready=works and not self._draining)

    async def drain(self) -> None:
        """NOT_SERVING at once; go on accepting for a while; then refuse, finish what was accepted, and stop."""
        settings = self._settings
        log.info("draining", accepting_for_s=settings.drain_delay_s)
        self._draining = self._service.leaving = True
        self._following.stop()
        await self._health.drain()
        await self._probes.set(ready=False)
        await asyncio.sleep(settings.drain_delay_s)
        self._streams.drain()
        # What they have read is accepted; its tasks may not have begun yet, and none of it may be refused.
        await asyncio.sleep(0)
        self._service.state = "draining"
        # Refused calls get their status from a server that is still up; one that stops cancels what it has not begun.
        with suppress(TimeoutError):
            await asyncio.wait_for(self._calls.quiet(), _REFUSING_S)
        await self._calls.park()
        stopping = asyncio.create_task(self._server.stop(settings.max_request_s + 1.0))
        await asyncio.sleep(0)
        self._calls.release()
        if self._web is not None:
            self._web.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._calls.quiet(), settings.max_request_s + 1.0)
        # An open health Watch or reflection stream would hold the stop for its whole grace.
        await self._server.stop(_SENDING_S)
        await stopping
        if self._web is not None:
            await self._web.stop()
        self._tokenizing.stop()
        self._attentions.stop()
        self._loader.stop()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        self._scrapes.stop()
        for follower in self._following_files:
            follower.cancel()
        # The last: whoever asks whether a process that drains is alive must not restart it.
        await self._probes.stop()
        log.info("stopped")


def _tracing(settings: Settings) -> Tracing | None:
    """None traces nobody. Raises CannotStart."""
    if not settings.trace_endpoint:
        return None
    try:
        otlp = import_module("harken_server.telemetry.otlp")
    except ModuleNotFoundError as error:
        raise CannotStart(f"trace_endpoint needs {error.name}: pip install 'harken[tracing]'") from error
    try:
        tracing: Tracing = otlp.Otlp(settings.trace_endpoint, settings.trace_ratio, version("harken"), CLOCK)
    except ValueError as error:
        raise CannotStart(f"tracing, by OTEL_ variables of the environment: {error}") from error
    log.info("tracing", endpoint=settings.trace_endpoint, ratio=settings.trace_ratio)
    return tracing


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
    loop.add_signal_handler(signal.SIGHUP, app.look_for_models)
    starting = asyncio.create_task(app.start())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        log.info("stopped while loading")
        os._exit(0)  # a thread is deep in the runtime, and nothing was accepted
    starting.result()
    await stopping
    await app.drain()
    if app.loading:
        os._exit(0)  # as above


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The command `harken-server`. Exits with 0 after a drain, with 2 if the server cannot start as asked."""
    try:
        settings = load(sys.argv[1:] if arguments is None else arguments, os.environ)
        check_installation()
        logs.configure(settings.log_level, settings.log_format)
        disable_created_metrics()  # type: ignore[no-untyped-call]  # has no types
        uvloop.run(_serve(settings))
    except (BadSettings, BadFile, CannotStart, DeviceUnavailable) as error:
        sys.stderr.write(f"harken-server: error: {error}\n")
        sys.stderr.flush()
        # Lanes that started already are daemon threads.
        os._exit(2)
    sys.exit(0)
