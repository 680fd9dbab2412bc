"""A collector of traces: a real gRPC server of OTLP's TraceService, in this process."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.target = ""
        self.spans: list[Span] = []
        self.resource: dict[str, Any] = {}
        self.calls = 0

    @property
    def endpoint(self) -> str:
        """As the setting trace_endpoint has it."""
        return f"http://{self.target}"

    def Export(self, request: trace_service_pb2.ExportTraceServiceRequest, context: object) -> Any:  # noqa: N802 - gRPC's name
        """See the protocol."""
        self.calls += 1
        for of_resource in request.resource_spans:
            self.resource = attributes(of_resource.resource.attributes)
            for of_scope in of_resource.scope_spans:
                self.spans += of_scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait_for(self, count: int, name: str, timeout_s: float = 30.0) -> list[Span]:
        """The spans of this name, once there are so many."""
        return self.wait_until(lambda: [span for span in self.spans if span.name == name], count, timeout_s)

    def children(self, parent: Span) -> list[Span]:
        """In the order of their beginnings."""
        found = [span for span in self.spans if span.parent_span_id == parent.span_id]
        return sorted(found, key=lambda span: (span.start_time_unix_nano, span.end_time_unix_nano))

    def wait_until(self, find: Callable[[], list[Span]], count: int, timeout_s: float = 30.0) -> list[Span]:
        """What `find` finds, once it is so many."""
        ends_s = time.monotonic() + timeout_s
        while len(found := find()) < count:
            assert time.monotonic() < ends_s, f"{len(found)} spans of {count} came: {[s.name for s in self.spans]}"
            time.sleep(0.02)
        return found


@contextmanager
def collector(target: str = "127.0.0.1:0", servicer: Collector | None = None) -> Iterator[Collector]:
    """One that listens."""
    servicer = servicer or Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]  # has no types
    port = server.add_insecure_port(target)
    servicer.target = f"127.0.0.1:{port}"
    server.start()
    try:
        yield servicer
    finally:
        server.stop(0).wait()


def attributes(pairs: Any) -> dict[str, Any]:
    """As a dictionary of Python's values."""

    def value(pair: KeyValue) -> Any:
        return getattr(pair.value, pair.value.WhichOneof("value") or "string_value")

    return {pair.key: value(pair) for pair in pairs}
