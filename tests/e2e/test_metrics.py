"""/metrics tells the truth: it adds up, it is complete, and it knows what became of everybody."""

import json
import re
import subprocess
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path

import grpc
import pytest
from chaos.poison import poisoned
from harken.v1 import encoder_pb2 as pb
from harken_server.telemetry.metrics import SLO_OUTCOMES
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from support.calls import different, ids, refused, stub, text
from support.server import BIN, RunningServer, running_server
from support.web import call as http_call
from support.web import post as http_post

MODEL = "all-MiniLM-L6-v2"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


def finished(server: RunningServer, outcome: str) -> float:
    return server.total("harken_finished_total", outcome=outcome)


def adds_up(server: RunningServer) -> bool:
    return server.total("harken_accepted_total") == server.total("harken_finished_total")


def wait_until_idle(server: RunningServer) -> None:
    server.wait_until("idle lanes", lambda: server.total("harken_memory_bytes", kind="predicted_batch") == 0)


def test_stages_and_edge_sum_to_the_calls_durations(minilm_models: Path) -> None:
    with running_server(minilm_models, "--warmup-s", "1") as server:
        encoder = stub(server.target)
        for index in range(40):
            encoder.Encode(pb.EncodeRequest(inputs=text("word " * (index + 1))))
        for message in encoder.EncodeStream(
            pb.EncodeStreamRequest(input=pb.StreamInput(id=str(index), input=ids([101, 999 + index, 102])[0]))
            for index in range(40)
        ):
            assert message.result.tokens == 3
        stages = {
            stage: server.total("harken_stage_duration_seconds_sum", stage=stage)
            for stage in ("tokenize", "queue", "collate", "compute", "scatter", "edge")
        }
        assert min(stages.values()) > 0.0
        duration_s = server.total("harken_request_duration_seconds_sum")
        assert sum(stages.values()) == pytest.approx(duration_s, abs=1e-6)
        assert server.total("harken_stage_duration_seconds_count", stage="edge") == 80
        assert server.total("harken_requests_total", method="Encode", code="OK", model=MODEL) == 40
        assert server.total("harken_request_duration_seconds_count") == 80
        assert server.total("harken_batch_sequences_sum") == 80
        real = server.total("harken_tokens_total", kind="real")
        padding = server.total("harken_tokens_total", kind="padding")
        assert real == server.total("harken_sequence_length_tokens_sum")
        assert real + padding == server.total("harken_batch_padded_tokens_sum")
        assert adds_up(server)


def test_every_metric_of_the_docs_is_there_and_labels_are_closed(minilm_server: RunningServer) -> None:
    encoder = stub(minilm_server.target)
    encoder.Encode(pb.EncodeRequest(inputs=text("one")))
    with pytest.raises(grpc.RpcError):
        encoder.Encode(pb.EncodeRequest(model="\U0001f600" * 10, inputs=text("one")))
    samples = minilm_server.metrics()
    names = {sample.split("{")[0] for sample in samples}
    for expected in (
        "harken_requests_total", "harken_accepted_total", "harken_finished_total",
        "harken_request_duration_seconds_bucket", "harken_stage_duration_seconds_bucket",
        "harken_batch_sequences_bucket", "harken_batch_padded_tokens_bucket",
        "harken_sequence_length_tokens_bucket", "harken_tokens_total", "harken_backlog_sequences",
        "harken_backlog_tokens", "harken_predicted_wait_seconds", "harken_rejected_total", "harken_memory_bytes",
        "harken_engine_busy_seconds_total", "harken_model_info", "harken_cost_error_ratio_bucket",
        "harken_batches_total", "harken_offered_work_seconds_total", "harken_scheduler_seconds_total",
        "harken_out_of_memory_total", "harken_tenant_tokens_total", "harken_shared_total", "harken_cache_hits_total",
        "harken_cache_misses_total", "harken_cache_bytes",
    ):  # fmt: skip
        assert expected in names
    assert not any("\U0001f600" in sample for sample in samples)
    kinds = {sample.split('kind="')[1].split('"')[0] for sample in samples if sample.startswith("harken_memory_bytes")}
    # Without a GPU its readings are absent, not zero.
    own = {"predicted_batch", "budget", "predicted_attend", "attend_peak", "attend_budget"}
    assert kinds == {"rss", "rss_peak", "limit", "left", *own}
    assert "harken_gpu_utilization_ratio" not in names
    assert minilm_server.total("harken_memory_bytes", kind="rss") > 100e6
    limit_bytes = minilm_server.total("harken_memory_bytes", kind="limit")
    assert 0 < minilm_server.total("harken_memory_bytes", kind="left") < limit_bytes
    assert minilm_server.total("harken_ready") == 1
    assert minilm_server.total("harken_lanes", state="working") >= 1
    assert minilm_server.total("harken_lanes", state="stalled") == 0
    assert minilm_server.total("harken_engine_busy_seconds_total") > 0
    bounds = sorted(
        float(sample.split('le="')[1].split('"')[0])
        for sample in samples
        if sample.startswith("harken_stage_duration_seconds_bucket") and 'stage="queue"' in sample
    )
    assert bounds[0] == 0.0001
    assert 0.25 in bounds


def test_prometheus_own_parser_and_linter_accept_the_page(minilm_server: RunningServer) -> None:
    page = "\n".join(f"{name} {value}" for name, value in minilm_server.metrics().items())
    assert len(list(text_string_to_metric_families(page + "\n"))) > 10


def test_a_caller_that_goes_away_frees_its_places_at_once_and_counts_as_cancelled(minilm_server: RunningServer) -> None:
    before = finished(minilm_server, "cancelled")
    call = stub(minilm_server.target).Encode.future(pb.EncodeRequest(inputs=ids(*different(500, 512))), timeout=120)
    minilm_server.wait_until("the call", lambda: minilm_server.total("harken_backlog_sequences") > 400)
    assert minilm_server.total("harken_backlog_tokens") > 400 * 512
    assert minilm_server.total("harken_predicted_wait_seconds") > 1.0
    call.cancel()
    minilm_server.wait_until("an empty backlog", lambda: minilm_server.total("harken_backlog_sequences") == 0, 5.0)
    minilm_server.wait_until("the count", lambda: adds_up(minilm_server))
    assert finished(minilm_server, "cancelled") > before + 400
    assert minilm_server.total("harken_requests_total", method="Encode", code="CANCELLED") >= 1


def test_a_passed_deadline_is_told_from_a_cancel_and_never_computed(minilm_server: RunningServer) -> None:
    before = {name: finished(minilm_server, name) for name in ("expired", "cancelled", "answered")}
    for timeout_s in (0.1, 0.5, 1.3):
        # Beside work that runs it would be refused at the door.
        wait_until_idle(minilm_server)
        with pytest.raises(grpc.RpcError) as error:
            stub(minilm_server.target).Encode(pb.EncodeRequest(inputs=ids(*different(500, 512))), timeout=timeout_s)
        assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    minilm_server.wait_until("the count", lambda: adds_up(minilm_server))
    assert finished(minilm_server, "cancelled") == before["cancelled"]
    assert finished(minilm_server, "expired") > before["expired"]
    assert minilm_server.total("harken_backlog_sequences") == 0


def test_the_docs_name_only_metrics_that_are_there(minilm_server: RunningServer) -> None:
    stub(minilm_server.target).Encode(pb.EncodeRequest(inputs=text("one")))
    with pytest.raises(grpc.RpcError):
        stub(minilm_server.target).Encode(pb.EncodeRequest())
    there = {sample.split("{")[0] for sample in minilm_server.metrics()}
    there |= {name.removesuffix("_bucket") for name in there}
    # What the machine cannot tell is absent.
    absent = {"harken_gpu_utilization_ratio", "harken_certificate_expiry_timestamp_seconds"}
    told = set(re.findall(r"harken_[a-z_]+", PAGE.read_text())) - absent
    assert len(told) > 20
    assert sorted(told - there) == []


def test_the_server_exports_only_metrics_that_the_docs_explain(minilm_server: RunningServer) -> None:
    stub(minilm_server.target).Encode(pb.EncodeRequest(inputs=text("one")))
    rows = [line.split("|")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `harken_")]
    explained = {name for row in rows for name in re.findall(r"`(harken_[a-z_]+)`", row)}
    families = {re.sub(r"_(bucket|sum|count)$", "", sample.split("{")[0]) for sample in minilm_server.metrics()}
    # A counter's name may end as a histogram's parts do.
    assert sorted(families - explained) == []
    assert sorted(name for name in explained if PAGE.read_text().count(f"| `{name}`") > 1) == []


def judged(server: RunningServer) -> dict[str, float]:
    return {outcome: server.total("harken_slo_requests_total", outcome=outcome) for outcome in SLO_OUTCOMES}


def test_the_objective_counts_refusals_and_no_mistakes_of_callers_for_calls_and_for_inputs_of_streams(
    tiny_models: Path, tmp_path: Path
) -> None:
    bad = poisoned(tiny_models / "tiny" / "1", tmp_path)
    with running_server(bad.models, "--warmup-s", "1", "--max-backlog-sequences", "100") as server:
        assert judged(server) == {"served": 0, "unavailable": 0, "caller": 0}
        encoder = stub(server.target)

        def moved(call: Callable[[], object]) -> dict[str, float]:
            before = judged(server)
            with suppress(grpc.RpcError):
                call()
            after = judged(server)
            return {outcome: after[outcome] - before[outcome] for outcome in after if after[outcome] != before[outcome]}

        def encode(*sequences: list[int], timeout: float | None = None) -> Callable[[], object]:
            return lambda: encoder.Encode(pb.EncodeRequest(inputs=ids(*sequences)), timeout=timeout)

        assert moved(encode([5, 6], [7, 8])) == {"served": 1}
        # It is answered, and one of its inputs is not.
        assert moved(encode([5, 6], [7, bad.fails])) == {"unavailable": 1}
        assert moved(encode([5, 1000])) == {"caller": 1}
        assert moved(encode(*[[5]] * 101)) == {"caller": 1}, "more than an idle server takes"
        assert moved(lambda: http_post(server, "/embed", {"inputs": 7})) == {"caller": 1}
        assert moved(lambda: http_call(server, "GET", "/health")) == {}
        assert moved(lambda: encoder.ListModels(pb.ListModelsRequest())) == {}
        inputs = [[5, 6], [7, bad.fails], [5, 1000], [9, bad.nan], [8, 9]]
        requests = [
            pb.EncodeStreamRequest(input=pb.StreamInput(id=str(index), input=ids(sequence)[0]))
            for index, sequence in enumerate(inputs)
        ]
        stream = moved(lambda: list(encoder.EncodeStream(iter(requests))))
        assert stream == {"served": 2, "unavailable": 2, "caller": 1}
        # What alerts are about is there before anybody has been refused.
        samples = server.metrics()
        for reason in ("BACKLOG_FULL", "DEADLINE_UNREACHABLE"):
            assert samples[f'harken_rejected_total{{model="",reason="{reason}"}}'] == 0.0


def test_openmetrics_is_given_to_whoever_asks_for_it_with_exemplars(tiny_server: RunningServer) -> None:
    request = pb.EncodeRequest(inputs=ids([5, 6]))
    stub(tiny_server.target).Encode(request, metadata=(("x-request-id", "the-last-one"),))
    connection = HTTPConnection("127.0.0.1", tiny_server.metrics_port, timeout=10)
    connection.request("GET", "/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0"})
    response = connection.getresponse()
    assert str(response.getheader("content-type")).startswith("application/openmetrics-text")
    page = response.read().decode()
    connection.close()
    families = list(openmetrics(page))  # type: ignore[no-untyped-call]  # has no types
    found = [sample.exemplar for family in families for sample in family.samples if sample.exemplar is not None]
    assert {"request_id": "the-last-one"} in [exemplar.labels for exemplar in found]
    assert "the-last-one" not in "".join(tiny_server.metrics())


def test_a_deadline_that_the_backlog_makes_impossible_is_refused_at_once(minilm_models: Path) -> None:
    # However slow the machine is, none of the others is refused for being late.
    with running_server(minilm_models, "--max-request-s", "3600", "--warmup-s", "1") as server:
        encoder = stub(server.target)
        sequences = different(100, 256)
        batched = [sequences[start : start + 5] for start in range(0, 100, 5)]
        others = [encoder.Encode.future(pb.EncodeRequest(inputs=ids(*five)), timeout=3600) for five in batched]
        server.wait_until("the others", lambda: server.total("harken_backlog_sequences") > 60)
        accepted = server.total("harken_accepted_total")
        with pytest.raises(grpc.RpcError) as error:
            encoder.Encode(pb.EncodeRequest(inputs=ids([101] * 512)), timeout=0.15)
        late = refused(error.value)
        assert (late.code, late.reason) == ("RESOURCE_EXHAUSTED", "DEADLINE_UNREACHABLE")
        assert late.retry_after_s is not None
        assert server.total("harken_accepted_total") == accepted
        assert server.total("harken_offered_work_seconds_total", outcome="refused") > 0
        # With time enough the same call is taken.
        taken = encoder.Encode.future(pb.EncodeRequest(inputs=ids([101] * 512)), timeout=3600)
        server.wait_until("it", lambda: server.total("harken_accepted_total") > accepted)
        for other in others:
            other.cancel()
        assert [result.tokens for result in taken.result().results] == [512]
        server.wait_until("the count", lambda: adds_up(server))


def test_the_cap_ends_a_call_without_a_deadline(minilm_models: Path) -> None:
    with running_server(minilm_models, "--max-request-s", "2", "--warmup-s", "1") as server:
        with pytest.raises(grpc.RpcError) as error:
            stub(server.target).Encode(pb.EncodeRequest(inputs=ids(*different(1000, 512))))
        capped = refused(error.value)
        assert (capped.code, capped.reason, capped.retry_after_s) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", None)
        assert "max_request_s" in capped.message
        server.wait_until("the count", lambda: adds_up(server))
        assert finished(server, "expired") > 400


def test_a_full_backlog_refuses_at_once_with_a_time_to_retry(minilm_models: Path) -> None:
    with running_server(minilm_models, "--max-backlog-sequences", "100", "--warmup-s", "1") as server:
        encoder = stub(server.target)
        first = encoder.Encode.future(pb.EncodeRequest(inputs=ids(*different(100, 512))), timeout=120)
        server.wait_until("the first", lambda: server.total("harken_accepted_total") == 100)
        with pytest.raises(grpc.RpcError) as error:
            encoder.Encode(pb.EncodeRequest(inputs=ids(*[[101]] * 100)))
        full = refused(error.value)
        assert (full.code, full.reason) == ("RESOURCE_EXHAUSTED", "BACKLOG_FULL")
        assert full.retry_after_s is not None
        assert full.retry_after_s > 0.0
        assert full.pushback_ms is not None
        assert int(full.pushback_ms) == round(full.retry_after_s * 1000)
        with pytest.raises(grpc.RpcError) as error:
            encoder.Encode(pb.EncodeRequest(inputs=ids(*[[101]] * 101)))
        # More than the whole backlog may hold will never fit.
        assert (refused(error.value).retry_after_s, refused(error.value).pushback_ms) == (None, "-1")
        assert server.total("harken_rejected_total", reason="BACKLOG_FULL") == 2
        first.cancel()
        server.wait_until("an empty backlog", lambda: adds_up(server))
        encoder.Encode(pb.EncodeRequest(inputs=ids(*[[101]] * 100)))


def test_reflection_and_health_answer_a_go_client(minilm_server: RunningServer) -> None:
    def grpcurl(*arguments: str) -> str:
        command = [str(BIN / "grpcurl"), "-plaintext", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    services = grpcurl(minilm_server.target, "list").split()
    health_and_reflection = ["grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"]
    own = ["harken.v1.Admin", "harken.v1.Debug", "harken.v1.Encoder", "inference.GRPCInferenceService"]
    assert services == [*health_and_reflection, *own]
    assert "rpc EncodeStream" in grpcurl(minilm_server.target, "describe", "harken.v1.Encoder")
    request = json.dumps({"inputs": [{"text": "hello from go"}]})
    answer = json.loads(grpcurl("-d", request, minilm_server.target, "harken.v1.Encoder/Encode"))
    assert answer["results"][0]["tokens"] == 5
    for service in ("", *own, MODEL, f"{MODEL}/1"):
        health = grpcurl("-d", json.dumps({"service": service}), minilm_server.target, "grpc.health.v1.Health/Check")
        assert json.loads(health) == {"status": "SERVING"}
