"""Whatever a client of harken's own service sends gets an answer or a precise refusal, and never a bug."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from harken.v1 import encoder_pb2 as pb
from hypothesis import given, settings
from hypothesis import strategies as st
from support.calls import refused, refused_result
from support.server import RunningServer

ENCODE, SIMILARITY = "/harken.v1.Encoder/Encode", "/harken.v1.Encoder/Similarity"
ENUMS = st.integers(0, 5)
CHUNKING = st.builds(
    pb.Chunking, overlap_tokens=st.sampled_from([0, 1, 509, 510, (1 << 32) - 1]), vectors=st.integers(0, 3)
)
OPTIONS = st.builds(
    pb.EncodeOptions,
    output=ENUMS,
    truncation=ENUMS,
    priority=ENUMS,
    dimensions=st.sampled_from([0, 1, 8, 384, 385, (1 << 32) - 1]),
    normalize=st.none() | st.booleans(),
    pooling=ENUMS,
    data_type=ENUMS,
    chunking=st.none() | CHUNKING,
    token_offsets=st.booleans(),
    deterministic=st.booleans(),
)
# Mostly what is fine, so that the checks further in are reached.
FINE = st.builds(
    pb.EncodeOptions, truncation=st.integers(0, 3), pooling=st.integers(0, 3), data_type=st.integers(0, 4),
    chunking=st.none() | st.builds(pb.Chunking, overlap_tokens=st.integers(0, 20), vectors=st.integers(0, 2)),
)  # fmt: skip
TEXTS = st.text(max_size=8) | st.sampled_from(["\u200b", "a " * 600, "word " * 3])
IDS = st.lists(st.integers(-2, 30522) | st.sampled_from([-(1 << 63), (1 << 63) - 1]), max_size=5)
INPUTS = st.one_of(
    st.builds(pb.Input, text=TEXTS),
    st.builds(pb.Input, token_ids=st.builds(pb.TokenIds, ids=IDS)),
    st.just(pb.Input()),
    st.just(pb.Input(token_ids=pb.TokenIds(ids=[7] * 600))),
)
MODELS = st.sampled_from(["", "", "all-MiniLM-L6-v2", "other", "\U0001f600"])
VERSIONS = st.sampled_from([0, 0, 1, 2, (1 << 32) - 1])
ENCODES = st.builds(
    pb.EncodeRequest,
    model=MODELS,
    version=VERSIONS,
    options=st.none() | OPTIONS | FINE,
    inputs=st.lists(INPUTS, max_size=3),
)
SIMILARITIES = st.builds(
    pb.SimilarityRequest, model=MODELS, version=VERSIONS, options=st.none() | OPTIONS | FINE,
    query=st.none() | INPUTS, candidates=st.lists(INPUTS, max_size=3), top_k=st.sampled_from([0, 1, 9, (1 << 32) - 1]),
)  # fmt: skip

STREAM_INPUTS = st.builds(pb.StreamInput, id=st.text(max_size=4), input=INPUTS)
MESSAGES = st.lists(
    st.one_of(
        st.builds(pb.EncodeStreamRequest, input=STREAM_INPUTS),
        st.builds(pb.EncodeStreamRequest, open=st.builds(pb.StreamOpen, options=FINE)),
        st.just(pb.EncodeStreamRequest()),
    ),
    max_size=6,
)


@pytest.fixture(scope="module")
def channel(minilm_server: RunningServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(minilm_server.target) as opened:
        yield opened


def check(channel: grpc.Channel, method: str, raw: bytes, kind: Any) -> None:
    """It is answered, one result for each input, or refused for what it holds."""
    call: Any = channel.unary_unary(method)
    try:
        response = kind.FromString(call(raw, timeout=30))
    except grpc.RpcError as error:
        wrong = refused(error)
        assert wrong.reason
        assert wrong.code in ("INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED"), wrong
        assert wrong.fields or wrong.code != "INVALID_ARGUMENT", wrong
    else:
        for result in getattr(response, "results", ()):
            assert not result.HasField("error"), refused_result(result)


@settings(max_examples=200)
@given(ENCODES)
def test_any_request_is_answered_or_refused_by_field(channel: grpc.Channel, request_: pb.EncodeRequest) -> None:
    check(channel, ENCODE, request_.SerializeToString(), pb.EncodeResponse)


@settings(max_examples=100)
@given(SIMILARITIES)
def test_any_comparison_is_answered_or_refused_by_field(channel: grpc.Channel, request_: pb.SimilarityRequest) -> None:
    check(channel, SIMILARITY, request_.SerializeToString(), pb.SimilarityResponse)


@settings(max_examples=150)
@given(ENCODES, st.data())
def test_any_damaged_request_is_answered_or_refused(
    channel: grpc.Channel, request_: pb.EncodeRequest, data: st.DataObject
) -> None:
    raw = bytearray(request_.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    check(channel, ENCODE, bytes(raw), pb.EncodeResponse)


@settings(max_examples=60)
@given(MESSAGES, st.binary(max_size=8))
def test_each_message_of_a_stream_has_one_answer(
    channel: grpc.Channel, messages: list[pb.EncodeStreamRequest], garbage: bytes
) -> None:
    """But the one that opens it; bytes that are no message are answered too."""
    raw = [message.SerializeToString() for message in messages] + [garbage]
    opens = bool(messages) and messages[0].HasField("open")
    call: Any = channel.stream_stream("/harken.v1.Encoder/EncodeStream")
    try:
        answers = [pb.EncodeStreamResponse.FromString(answer) for answer in call(iter(raw), timeout=30)]
    except grpc.RpcError as error:
        wrong = refused(error)
        assert (opens, wrong.code) == (True, "INVALID_ARGUMENT"), wrong
    else:
        assert sorted(answer.index for answer in answers) == list(range(len(raw) - opens))
        for answer in answers:
            if answer.result.HasField("error"):
                assert refused_result(answer.result).code == "INVALID_ARGUMENT"


def test_the_server_had_no_bug(minilm_server: RunningServer) -> None:
    assert [line for line in minilm_server.log if line.get("level") == "error"] == []
