"""Traces over OTLP (gRPC), by OpenTelemetry's SDK. Only imported where tracing is on.

A request's stages become spans once it is answered, from the moments that its metrics are made of. The SDK samples,
queues (what exceeds the queue is lost) and sends on a thread of its own: nobody waits for a collector. What is sent of
a request is figures and names of the server's own; nothing that a caller wrote but the two ids in its `traceparent`.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from random import random
from threading import Thread
from typing import Final, cast

import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    Link,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from harken_server.telemetry.tracing import STAGES, TRACEPARENT, BatchSpan, Trace

log = structlog.get_logger()

_SCOPE: Final = "harken"
_NS: Final = 1_000_000_000
_INPUT_EVERY_S: Final = 0.1
"""How often an input of a stream has a span."""
_MOST_LINKS: Final = 64
"""Of a call to batches, and of a batch to calls."""
_CLOSE_S: Final = 2.0

_FAULTS: Final = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""What OpenTelemetry's conventions call an error of a server; of all others the caller decides whether they are."""

_PROPAGATOR: Final = TraceContextTextMapPropagator()


class Otlp:
    """Belongs to the event loop's thread, but for what the SDK does behind it."""

    def __init__(self, endpoint: str, ratio: float, version: str, clock: Callable[[], float]) -> None:
        """`endpoint`: http(s)://HOST:PORT of a collector. `ratio`: of the requests whose caller has no trace.

        Raises ValueError if a variable of OpenTelemetry's own cannot be used.
        """
        self._ratio: Final = ratio
        self._clock: Final = clock
        # Its lines are no JSON, and some hold what a caller sent; with a full queue each span would make one.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL + 1)
        own = {SERVICE_NAME: "harken", SERVICE_VERSION: version}
        resource = Resource.create({**own, **OTELResourceDetector().detect().attributes})
        self._exporter: Final = _Told(OTLPSpanExporter(endpoint=endpoint), endpoint)
        self._processor: Final = BatchSpanProcessor(self._exporter)
        # Who is traced is drawn before it is asked: it takes twenty times as long to say no.
        provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False)
        provider.add_span_processor(self._processor)
        self._tracer: Final = provider.get_tracer(_SCOPE, version)

    def request(self, method: str, traceparent: str, began_s: float) -> Trace | None:
        """See Tracing."""
        # Not with its `tracestate`: that is a caller's text.
        parent = _PROPAGATOR.extract({TRACEPARENT: traceparent}, Context()) if traceparent else Context()
        caller = get_current_span(parent).get_span_context()
        if not (caller.trace_flags.sampled if caller.is_valid else random() < self._ratio):  # noqa: S311 - as the log's
            return None
        since_ns = time.time_ns() - round(self._clock() * _NS)
        span = self._tracer.start_span(
            method, parent, SpanKind.SERVER, _method(method), start_time=since_ns + round(began_s * _NS)
        )
        return _Request(self._tracer, span, since_ns)

    def batch(
        self, riders: Sequence[Trace], began_s: float, ended_s: float, figures: Mapping[str, str | int | float]
    ) -> BatchSpan:
        """See Tracing."""
        since_ns = time.time_ns() - round(self._clock() * _NS)
        links = [Link(context) for context in _distinct(cast(_Request, rider).context for rider in riders)]
        begins_ns = since_ns + round(began_s * _NS)
        span = self._tracer.start_span("batch", Context(), SpanKind.INTERNAL, _named(figures), links, begins_ns)
        span.end(since_ns + round(ended_s * _NS))
        return span.get_span_context()

    def close(self) -> None:
        """See Tracing."""
        # With the collector away the SDK would wait for it, for longer than a drain may take.
        sending = Thread(target=self._processor.shutdown, name="last-traces", daemon=True)
        sending.start()
        sending.join(_CLOSE_S)
        if sending.is_alive():
            self._exporter.shutdown()


class _Request:
    """See Trace."""

    __slots__ = ("_next_s", "_since_ns", "_span", "_tracer")

    def __init__(self, tracer: Tracer, span: Span, since_ns: int) -> None:
        """`since_ns`: when the server's clock was 0, since 1970."""
        self._tracer = tracer
        self._span = span
        self._since_ns = since_ns
        self._next_s = 0.0

    @property
    def context(self) -> SpanContext:
        """What links name it by."""
        return self._span.get_span_context()

    @property
    def trace_id(self) -> str:
        """See Trace."""
        return f"{self.context.trace_id:032x}"

    def answered(
        self, moments_s: Sequence[float], batches: Iterable[BatchSpan], figures: Mapping[str, str | int]
    ) -> None:
        """See Trace."""
        self._span.set_attributes(_named(figures))
        for context in _distinct(cast(SpanContext, batch) for batch in batches):
            self._span.add_link(context)
        within = set_span_in_context(self._span, Context())
        for stage, (from_s, until_s) in zip(STAGES, pairwise(moments_s), strict=True):
            span = self._tracer.start_span(stage, within, start_time=self._ns(from_s))
            span.end(self._ns(until_s))

    def end(self, code: str, ended_s: float) -> None:
        """See Trace."""
        self._span.set_attribute("harken.code", code)
        if code in _FAULTS:
            self._span.set_status(StatusCode.ERROR)
        self._span.end(self._ns(ended_s))

    def child(self, began_s: float) -> Trace | None:
        """See Trace."""
        if began_s < self._next_s:
            return None
        self._next_s = began_s + _INPUT_EVERY_S
        within = set_span_in_context(self._span, Context())
        span = self._tracer.start_span("input", within, start_time=self._ns(began_s))
        return _Request(self._tracer, span, self._since_ns)

    def _ns(self, moment_s: float) -> int:
        return self._since_ns + round(moment_s * _NS)


class _Told(SpanExporter):
    """Tells of a collector that does not take what it is sent, and once more when it does again."""

    def __init__(self, exporter: SpanExporter, endpoint: str) -> None:
        self._exporter: Final = exporter
        self._endpoint: Final = endpoint
        self._lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See SpanExporter."""
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            if self._lost:
                log.info("traces are taken again", endpoint=self._endpoint, lost_spans=self._lost)
            self._lost = 0
            return result
        if not self._lost:
            log.warning("traces are not taken", endpoint=self._endpoint)
        self._lost += len(spans)
        return result

    def shutdown(self) -> None:
        """See SpanExporter."""
        self._exporter.shutdown()


def _distinct(contexts: Iterable[SpanContext]) -> list[SpanContext]:
    """Each once, and no more than a span shall have links."""
    return list({context.span_id: context for context in contexts}.values())[:_MOST_LINKS]


def _named(figures: Mapping[str, str | int | float]) -> dict[str, str | int | float]:
    return {f"harken.{name}": value for name, value in figures.items()}


@cache
def _method(method: str) -> Mapping[str, str]:
    """Attributes by OpenTelemetry's conventions. There are as many methods as the server has."""
    verb, _, route = method.partition(" ")
    if route:
        return {"http.request.method": verb, "http.route": route}
    return {"rpc.system": "grpc", "rpc.method": method}
