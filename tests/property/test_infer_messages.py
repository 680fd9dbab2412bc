"""Whatever a client of the Open Inference Protocol sends gets an answer or a precise refusal, and never a bug."""

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from harken.oip import inference_pb2 as pb
from hypothesis import given, settings
from hypothesis import strategies as st
from support.calls import refused
from support.server import RunningServer

METHOD = "/inference.GRPCInferenceService/ModelInfer"
NAMES = st.sampled_from(["input_ids", "attention_mask", "text", "logits", "", "sentence_embedding", "token_embeddings"])
DATATYPES = st.sampled_from(["INT64", "INT32", "BYTES", "FP32", "FP16", "BOOL", "", "int64"])
SHAPES = st.lists(st.sampled_from([-1, 0, 1, 2, 3, 200, 1 << 40]), max_size=3)
VALUES = st.one_of(
    st.builds(lambda value: pb.InferParameter(bool_param=value), st.booleans()),
    st.builds(lambda value: pb.InferParameter(int64_param=value), st.integers(-(1 << 63), (1 << 63) - 1)),
    st.builds(lambda value: pb.InferParameter(uint64_param=value), st.integers(0, (1 << 64) - 1)),
    st.builds(lambda value: pb.InferParameter(string_param=value), st.text(max_size=6)),
    st.builds(lambda value: pb.InferParameter(double_param=value), st.floats()),
    st.just(pb.InferParameter()),
)
PARAMETERS = st.dictionaries(
    st.sampled_from(["priority", "timeout", "truncate", "output_datatype", "sequence_id", ""]), VALUES, max_size=2
)
CONTENTS = st.builds(
    pb.InferTensorContents,
    int64_contents=st.lists(st.integers(-2, 1001), max_size=6),
    int_contents=st.lists(st.integers(-2, 1001), max_size=6),
    bytes_contents=st.lists(st.binary(max_size=6), max_size=3),
    fp32_contents=st.lists(st.floats(width=32), max_size=2),
)
TENSORS = st.builds(
    pb.ModelInferRequest.InferInputTensor,
    name=NAMES,
    datatype=DATATYPES,
    shape=SHAPES,
    parameters=PARAMETERS,
    contents=st.none() | CONTENTS,
)
REQUESTS = st.builds(
    pb.ModelInferRequest,
    model_name=st.sampled_from(["", "tiny", "other"]),
    model_version=st.sampled_from(["", "1", "2", "x", "9" * 400]),
    id=st.text(max_size=8),
    parameters=PARAMETERS,
    inputs=st.lists(TENSORS, max_size=3),
    outputs=st.lists(st.builds(pb.ModelInferRequest.InferRequestedOutputTensor, name=NAMES), max_size=2),
    raw_input_contents=st.lists(
        st.binary(max_size=40) | st.lists(st.integers(0, 999), max_size=4).map(lambda ids: np.array(ids).tobytes()),
        max_size=3,
    ),
)


@pytest.fixture(scope="module")
def infer(tiny_server: RunningServer) -> Iterator[Any]:
    with grpc.insecure_channel(tiny_server.target) as channel:
        yield channel.unary_unary(METHOD)


def answered(infer: Any, raw: bytes) -> bool:
    """Whether it is answered, or refused for what it holds."""
    try:
        return bool(pb.ModelInferResponse.FromString(infer(raw, timeout=30)).outputs)
    except grpc.RpcError as error:
        wrong = refused(error)
        if wrong.code == "INVALID_ARGUMENT":
            return bool(wrong.reason and wrong.fields)
        return bool(wrong.reason) and wrong.code in ("NOT_FOUND", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")


@settings(max_examples=300)
@given(REQUESTS)
def test_any_request_is_answered_or_refused_by_field(infer: Any, request_: pb.ModelInferRequest) -> None:
    assert answered(infer, request_.SerializeToString())


@settings(max_examples=200)
@given(REQUESTS, st.data())
def test_any_damaged_request_is_answered_or_refused(infer: Any, request_: pb.ModelInferRequest, data: Any) -> None:
    raw = bytearray(request_.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    assert answered(infer, bytes(raw))


def test_the_server_had_no_bug(tiny_server: RunningServer) -> None:
    assert [line for line in tiny_server.log if line.get("level") == "error"] == []
