"""Traces over OTLP: what a collector gets, and that nobody waits for one."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import pytest
from harken.v1 import encoder_pb2 as pb
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from support.calls import different, ids, stub, text
from support.collector import Collector, attributes, collector
from support.server import RunningServer, failed_start, running_server
from support.web import post

STAGES = ["edge", "tokenize", "queue", "collate", "compute", "scatter", "edge"]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, NOT_SAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}


@contextmanager
def traced(models: Path, *options: str, **environment: str) -> Iterator[tuple[RunningServer, Collector]]:
    """A server, and the collector that it sends its traces to."""
    with collector() as collecting:
        arguments = ("--warmup-s", "1", "--trace-endpoint", collecting.endpoint, *options)
        with running_server(models, *arguments, environment={**SOON, **environment}) as server:
            yield server, collecting


def encode(server: RunningServer, *sequences: list[int], traceparent: str = "") -> None:
    metadata = (("traceparent", traceparent),) if traceparent else None
    stub(server.target).Encode(pb.EncodeRequest(inputs=ids(*sequences)), metadata=metadata)


def links(span: Span) -> list[bytes]:
    return [link.span_id for link in span.links]


def check_stages(collecting: Collector, request: Span) -> None:
    """They follow one another without a gap, within the request."""
    stages = collecting.children(request)
    assert [stage.name for stage in stages] == STAGES
    assert all(one.end_time_unix_nano == next.start_time_unix_nano for one, next in pairwise(stages))
    assert stages[0].start_time_unix_nano == request.start_time_unix_nano
    assert stages[-1].end_time_unix_nano <= request.end_time_unix_nano
    assert {stage.trace_id for stage in stages} == {request.trace_id}


def test_a_call_is_a_span_in_its_callers_trace_with_stages_and_a_link_to_its_batch(tiny_models: Path) -> None:
    with traced(tiny_models, "--trace-ratio", "0", OTEL_SERVICE_NAME="of-the-test") as (server, collecting):
        encode(server, *different(3, 20), traceparent=SAMPLED)
        (request,) = collecting.wait_for(1, "Encode")
        (batch, *_) = batches = collecting.wait_for(1, "batch")
    assert request.trace_id.hex() == TRACE
    assert request.parent_span_id.hex() == PARENT
    assert request.kind == Span.SPAN_KIND_SERVER
    assert attributes(request.attributes) == {
        "rpc.system": "grpc", "rpc.method": "Encode", "harken.code": "OK", "harken.model": "tiny",
        "harken.version": 1, "harken.sequences": 3, "harken.tokens": 60,
    }  # fmt: skip
    check_stages(collecting, request)
    assert sorted(links(request)) == sorted(one.span_id for one in batches)
    assert links(batch) == [request.span_id]
    assert batch.trace_id != request.trace_id
    of_batch = attributes(batch.attributes)
    assert sum(attributes(one.attributes)["harken.batch.sequences"] for one in batches) == 3
    assert of_batch["harken.batch.padded_length"] == 20
    assert of_batch["harken.batch.predicted_s"] > 0
    assert {name for name in of_batch if not name.startswith("harken.batch.")} == {
        "harken.model", "harken.version", "harken.lane"
    }  # fmt: skip
    # The engine ran within the stage.
    compute = next(stage for stage in collecting.children(request) if stage.name == "compute")
    assert batches[-1].start_time_unix_nano <= compute.start_time_unix_nano
    assert compute.end_time_unix_nano <= max(one.end_time_unix_nano for one in batches)
    assert collecting.resource["service.name"] == "of-the-test"


def test_the_caller_decides_and_the_ratio_for_those_without_a_trace(tiny_models: Path) -> None:
    with traced(tiny_models, "--trace-ratio", "0") as (server, collecting):
        encode(server, [7, 8])
        encode(server, [7, 9], traceparent=NOT_SAMPLED)
        encode(server, [7, 10], traceparent=SAMPLED)
        server.terminate()
        assert server.wait_exit() == 0
        assert len(collecting.wait_for(1, "Encode")) == 1  # a drain sends what is left
    with traced(tiny_models, "--trace-ratio", "1") as (server, collecting):
        encode(server, [7, 8])
        encode(server, [7, 9], traceparent=NOT_SAMPLED)
        encode(server, [7, 10], traceparent="00-no-trace-01")
        encode(server, [7, 11], traceparent=SAMPLED)
        server.terminate()
        assert server.wait_exit() == 0
        requests = collecting.wait_for(3, "Encode")
        assert [request.parent_span_id.hex() for request in requests] == ["", "", PARENT]
        assert len({request.trace_id for request in requests}) == 3


def test_over_http_too(tiny_models: Path) -> None:
    with traced(tiny_models, "--trace-ratio", "0") as (server, collecting):
        assert post(server, "/v1/embeddings", {"input": [7, 8]}, {"traceparent": SAMPLED}).status == 200
        inputs = [{"name": "input_ids", "datatype": "INT64", "shape": [1, 2], "data": [7, 9]}]
        path = "/v2/models/tiny/infer"
        assert post(server, path, {"inputs": inputs}, {"traceparent": SAMPLED}).status == 200
        (openai,) = collecting.wait_for(1, "POST /v1/embeddings")
        (infer,) = collecting.wait_for(1, "POST /v2/models/infer")
        for request in (openai, infer):
            assert request.parent_span_id.hex() == PARENT
            check_stages(collecting, request)
            assert len(links(request)) == 1
    told = attributes(openai.attributes)
    assert (told["http.request.method"], told["http.route"]) == ("POST", "/v1/embeddings")


def test_of_a_stream_an_input_now_and_then_has_a_span(tiny_models: Path) -> None:
    count = 400
    messages = [pb.EncodeStreamRequest(input=pb.StreamInput(input=one)) for one in ids([], *different(count - 1, 8))]
    with traced(tiny_models, "--trace-ratio", "0") as (server, collecting):
        answers = stub(server.target).EncodeStream(iter(messages), metadata=(("traceparent", SAMPLED),))
        assert sum(1 for _ in answers) == count
        (stream,) = collecting.wait_for(1, "EncodeStream")
        inputs = collecting.children(stream)
    assert 1 <= len(inputs) < count / 2
    assert {one.name for one in inputs} == {"input"}
    begins = [one.start_time_unix_nano for one in inputs]
    assert all(later - earlier >= 0.099e9 for earlier, later in pairwise(begins))
    assert attributes(inputs[0].attributes) == {"harken.code": "INVALID_ARGUMENT"}


def test_how_it_ended_is_told_and_only_the_servers_own_faults_are_errors(tiny_models: Path) -> None:
    with traced(tiny_models, "--trace-ratio", "1") as (server, collecting):
        with pytest.raises(grpc.RpcError):
            encode(server, [])
        with pytest.raises(grpc.RpcError):
            stub(server.target).Encode(pb.EncodeRequest(inputs=ids([7])), timeout=1e-4)
        refused = collecting.wait_for(1, "Encode")[0]
    assert attributes(refused.attributes)["harken.code"] == "INVALID_ARGUMENT"
    assert refused.status.code == Status.STATUS_CODE_UNSET
    assert collecting.children(refused) == []


def test_nothing_of_what_a_caller_wrote_is_sent(minilm_models: Path) -> None:
    written = {
        "x-request-id": "its-very-own-id", "tracestate": "vendor=its-very-own-state", "authorization": "Bearer its-key"
    }  # fmt: skip
    with traced(minilm_models, "--trace-ratio", "0") as (server, collecting):
        encoder = stub(server.target)
        metadata = (*written.items(), ("traceparent", SAMPLED))
        encoder.Encode(pb.EncodeRequest(inputs=text("confidential words")), metadata=metadata)
        with pytest.raises(grpc.RpcError):
            encoder.Encode(pb.EncodeRequest(model="no such model", inputs=text("confidential")), metadata=metadata)
        requests = collecting.wait_for(2, "Encode")
    assert all(request.trace_state == "" for request in requests)
    sent = b"".join(span.SerializeToString() for span in collecting.spans)
    for piece in (b"confidential", b"its-very-own", b"its-key", b"no such model", b"127.0.0.1"):
        assert piece not in sent


def test_a_log_line_names_the_trace(tiny_models: Path) -> None:
    with traced(tiny_models, "--trace-ratio", "0", "--access-log-ratio", "1") as (server, _):
        encode(server, [7, 8], traceparent=SAMPLED)
        encode(server, [7, 9])
        server.wait_until("two lines", lambda: len([line for line in server.log if line["event"] == "call"]) == 2)
        named, other = [line for line in server.log if line["event"] == "call"]
    assert named["trace_id"] == TRACE
    assert "trace_id" not in other


def test_calls_are_answered_while_the_collector_is_away_and_traces_are_sent_once_it_is_back(tiny_models: Path) -> None:
    with collector() as first:
        target = first.target
    small = {**SOON, "OTEL_BSP_MAX_QUEUE_SIZE": "32", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "8"}
    arguments = ("--warmup-s", "1", "--trace-endpoint", f"http://{target}", "--trace-ratio", "1")
    with running_server(tiny_models, *arguments, environment=small) as server:
        for sequence in different(100, 8):  # far more than the queue holds
            encode(server, sequence)
        assert server.total("harken_requests_total", method="Encode", code="OK") == 100
        server.wait_until("the warning", lambda: "traces are not taken" in events(server), 60)
        with collector(target) as again:
            server.wait_until("the end of it", lambda: "traces are taken again" in events(server), 60)
            encode(server, [7, 8, 9], traceparent=SAMPLED)
            again.wait_until(lambda: [span for span in again.spans if span.trace_id.hex() == TRACE], 1)
        lines = [line for line in server.log if line["event"].startswith("traces are")]
        assert all(isinstance(line.get("level"), str) for line in server.log)  # nobody else writes lines
    assert [line["level"] for line in lines[:2]] == ["warning", "info"]
    assert lines[1]["lost_spans"] > 0


class Stuck(Collector):
    """It takes a call, and says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.leave = threading.Event()

    def Export(self, request: Any, context: object) -> Any:  # noqa: N802 - gRPC's name
        """See Collector."""
        self.leave.wait(60)
        return super().Export(request, context)


def test_a_collector_that_never_answers_holds_up_neither_calls_nor_a_drain(tiny_models: Path) -> None:
    stuck = Stuck()
    with collector(servicer=stuck) as collecting:
        arguments = ("--warmup-s", "1", "--trace-endpoint", collecting.endpoint, "--trace-ratio", "1")
        # It would wait for a minute.
        patient = {**SOON, "OTEL_EXPORTER_OTLP_TIMEOUT": "60"}
        with running_server(tiny_models, *arguments, environment=patient) as server:
            for sequence in different(50, 8):
                encode(server, sequence)
            server.terminate()
            assert server.wait_exit(30) == 0
        assert stuck.calls == 0
        stuck.leave.set()


def events(server: RunningServer) -> list[str]:
    return [line["event"] for line in server.log]


def test_a_start_that_cannot_trace_says_why(tiny_models: Path, tmp_path: Path) -> None:
    models = ["--models", str(tiny_models)]
    code, said = failed_start([*models, "--trace-endpoint", "collector:4317"])
    assert code == 2
    assert said.startswith("harken-server: error: trace_endpoint: ")
    # As if the extra were not installed.
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").write_text("raise ModuleNotFoundError(name='opentelemetry')")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    code, said = failed_start([*models, "--trace-endpoint", "http://127.0.0.1:1"], {"PYTHONPATH": path})
    assert (code, said) == (
        2, "harken-server: error: trace_endpoint needs opentelemetry: pip install 'harken[tracing]'"
    )  # fmt: skip
