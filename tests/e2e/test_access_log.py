"""The access log: a line for each call at debug, a share of them at info, and nothing of what they hold."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from harken.v1 import encoder_pb2 as pb
from harken_server.telemetry import logs
from support.calls import ids, stub, text
from support.server import RunningServer, running_server
from support.web import post

FIELDS = {
    "event", "level", "timestamp", "method", "model", "code", "duration_s", "sequences", "tokens", "request_id"
}  # fmt: skip


def lines(server: RunningServer) -> list[dict[str, Any]]:
    return [line for line in server.log if line["event"] == "call"]


def make_calls(server: RunningServer) -> None:
    """Six: three of one kind each, one that is refused, a stream, and one over HTTP."""
    encoder = stub(server.target)
    named = (("x-request-id", "mine-1"), ("harken-tenant", "somebody"))
    encoder.Encode(pb.EncodeRequest(inputs=[*text("secret words"), *ids([101, 1012, 102])]), metadata=named)
    encoder.ListModels(pb.ListModelsRequest())
    query = pb.Input(text="secret query")
    encoder.Similarity(pb.SimilarityRequest(query=query, candidates=text("secret", "words")))
    with pytest.raises(grpc.RpcError):
        encoder.Encode(pb.EncodeRequest(inputs=text("secret", "")))
    messages = [pb.EncodeStreamRequest(input=pb.StreamInput(input=one)) for one in text("secret " * 3, "words", "")]
    assert len(list(encoder.EncodeStream(iter(messages)))) == 3
    assert post(server, "/v1/embeddings", {"input": "secret words"}, {"authorization": "Bearer secret"}).status == 200


def check_lines(server: RunningServer, level: str) -> None:
    server.wait_until("six lines", lambda: len(lines(server)) >= 6)
    told = [(line["method"], line["code"], line["sequences"]) for line in lines(server)]
    assert sorted(told) == [
        ("Encode", "INVALID_ARGUMENT", 0), ("Encode", "OK", 2), ("EncodeStream", "OK", 2), ("ListModels", "OK", 0),
        ("POST /v1/embeddings", "OK", 1), ("Similarity", "OK", 3),
    ]  # fmt: skip
    first = lines(server)[0]
    assert (first["request_id"], first["tokens"], first["model"]) == ("mine-1", 7, "all-MiniLM-L6-v2")
    for line in lines(server):
        assert line["level"] == level
        assert set(line) == FIELDS
        assert line["duration_s"] > 0
    everything = str(server.log)
    for piece in ("secret", "words", "1012", "somebody", "127.0.0.1:"):
        assert piece not in everything


def test_every_call_has_one_line_at_debug(minilm_models: Path) -> None:
    options = ("--warmup-s", "1", "--log-level", "debug", "--access-log-ratio", "0", "--trust-tenants")
    with running_server(minilm_models, *options) as server:
        make_calls(server)
        check_lines(server, "debug")


def test_at_info_a_share_of_them_has_one(minilm_models: Path) -> None:
    with running_server(minilm_models, "--warmup-s", "1", "--access-log-ratio", "1", "--trust-tenants") as server:
        make_calls(server)
        check_lines(server, "info")
    with running_server(minilm_models, "--warmup-s", "1", "--access-log-ratio", "0") as server:
        make_calls(server)
        server.terminate()
        assert server.wait_exit() == 0
        assert lines(server) == []


@pytest.fixture
def level() -> Iterator[None]:
    """What tests after this one have."""
    yield
    logs.set_level("info")


@pytest.mark.usefixtures("level")
def test_the_share_is_what_was_set_and_follows_the_level() -> None:
    random.seed(3)
    logs.set_level("info")
    drawn = [logs.AccessLog(0.2).draw() for _ in range(10_000)]
    assert set(drawn) == {"", "info"}
    assert drawn.count("info") == pytest.approx(2000, abs=250)
    logs.set_level("warning")
    assert {logs.AccessLog(1.0).draw() for _ in range(100)} == {""}
    logs.set_level("debug")
    assert {logs.AccessLog(0.0).draw() for _ in range(100)} == {"debug"}
