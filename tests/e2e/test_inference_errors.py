"""What is wrong in the Open Inference Protocol over gRPC is named, with its status, and disturbs nobody."""

from typing import Any

import grpc
import numpy as np
import pytest
from harken.oip import inference_pb2 as pb
from support.calls import refused
from support.inference import MODEL, Tensor, asks, infer, raw, refusal, text_tensor, typed_ids
from support.server import RunningServer

IDS = np.array([[101, 7592, 102]])
BOTH = asks(raw("input_ids", IDS))
BOTH.inputs[0].contents.int64_contents.append(1)
TWO_KINDS = pb.ModelInferRequest(inputs=[typed_ids([1, 2])])
TWO_KINDS.inputs[0].contents.fp32_contents.append(1.0)
MASK = np.array([[1, 1, 1]])


def parameter(**value: Any) -> pb.ModelInferRequest:
    ((name, given),) = value.items()
    request = asks(raw("input_ids", IDS))
    request.parameters[name].CopyFrom(given)
    return request


@pytest.mark.parametrize(
    ("request_", "reason", "field", "message"),
    [
        (pb.ModelInferRequest(), "MISSING", "inputs", "must have at least one element, and has none"),
        (
            asks((Tensor(name="input_ids", datatype="FP32", shape=[1, 1]), b"1234")),
            "WRONG_DATATYPE",
            "inputs[0].datatype",
            "'FP32' is none of the datatypes that it may have: INT64, INT32",
        ),
        (
            asks((Tensor(name="input_ids", datatype="INT64", shape=[3]), IDS.tobytes())),
            "WRONG_SHAPE",
            "inputs[0].shape",
            "is [3], which is not [batch, length]",
        ),
        (
            asks((Tensor(name="input_ids", datatype="INT64", shape=[-1, -3]), IDS.tobytes())),
            "WRONG_SHAPE",
            "inputs[0].shape",
            "is [-1, -3], which is not [batch, length]",
        ),
        (
            asks((Tensor(name="input_ids", datatype="INT64", shape=[1, 4]), IDS.tobytes())),
            "SHAPE_DISAGREES",
            "raw_input_contents[0]",
            "has 24 bytes, which is not what the shape [1, 4] says",
        ),
        (
            asks((Tensor(name="input_ids", datatype="INT64", shape=[1, 1 << 62]), IDS.tobytes())),
            "SHAPE_DISAGREES",
            "raw_input_contents[0]",
            f"has 24 bytes, which is not what the shape [1, {1 << 62}] says",
        ),
        (
            asks((Tensor(name="input_ids", datatype="INT64", shape=[1 << 40, 0]), b"")),
            "TOO_MANY",
            "inputs[0].shape",
            f"has {1 << 40} elements, over the limit of 1024",
        ),
        (
            pb.ModelInferRequest(inputs=[typed_ids([1, 2], shape=[1, 3])]),
            "SHAPE_DISAGREES",
            "inputs[0].contents",
            "has 2 elements, which is not what the shape [1, 3] says",
        ),
        (BOTH, "NOT_TOGETHER", "inputs[0].contents", "cannot be given together with raw_input_contents"),
        (
            TWO_KINDS,
            "NOT_TOGETHER",
            "inputs[0].contents.fp32_contents",
            "cannot be given together with the datatype INT64",
        ),
        (
            pb.ModelInferRequest(inputs=[text_tensor("a")], raw_input_contents=[b"", b""]),
            "SHAPE_DISAGREES",
            "raw_input_contents",
            "has 2 tensors, which is not what the shape [1] says",
        ),
        (
            asks(raw("input_ids", IDS), outputs=["logits"]),
            "UNKNOWN_NAME",
            "outputs[0].name",
            "'logits' is none of sentence_embedding, token_embeddings",
        ),
        (
            asks(raw("input_ids", IDS), outputs=["token_embeddings"] * 2),
            "GIVEN_TWICE",
            "outputs[1].name",
            "'token_embeddings' is given twice",
        ),
        (
            asks(raw("token_type_ids", IDS)),
            "UNKNOWN_NAME",
            "inputs[0].name",
            "'token_type_ids' is none of input_ids, attention_mask, text",
        ),
        (
            asks(raw("input_ids", IDS), raw("input_ids", IDS)),
            "GIVEN_TWICE",
            "inputs[1].name",
            "'input_ids' is given twice",
        ),
        (
            asks(raw("input_ids", IDS), raw("attention_mask", MASK[:, :2].copy())),
            "WRONG_SHAPE",
            "inputs[1].shape",
            "is [1, 2], which is not [1, 3] as that of input_ids",
        ),
        (
            asks(raw("input_ids", IDS), raw("attention_mask", MASK * 0)),
            "BAD_MASK",
            "raw_input_contents[1]",
            "row 0 has no 1: a sequence needs at least one token",
        ),
        (
            asks(raw("input_ids", IDS), raw("attention_mask", MASK * 2)),
            "BAD_MASK",
            "raw_input_contents[1]",
            "row 0 has an element that is neither 0 nor 1",
        ),
        (
            asks(raw("input_ids", IDS), raw("attention_mask", np.array([[1, 0, 1]]))),
            "BAD_MASK",
            "raw_input_contents[1]",
            "row 0 has a 0 between two 1: padding may only stand at the ends",
        ),
        (
            asks(raw("attention_mask", MASK)),
            "BAD_VALUE",
            "inputs",
            "is attention_mask alone, which is not input_ids, with or without it, or text",
        ),
        (
            pb.ModelInferRequest(inputs=[text_tensor("a"), typed_ids([1])]),
            "NOT_TOGETHER",
            "inputs[0].name",
            "cannot be given together with input_ids",
        ),
        (
            pb.ModelInferRequest(inputs=[text_tensor("good", "")]),
            "NO_TOKENS",
            "inputs[0].contents[1]",
            "is empty: it must give at least one token",
        ),
        (
            asks((Tensor(name="text", datatype="BYTES", shape=[1]), b"\x02\0\0\0\xff\xfe")),
            "NOT_UTF8",
            "raw_input_contents[0][0]",
            "is not valid UTF-8",
        ),
        (
            asks((Tensor(name="text", datatype="BYTES", shape=[2]), b"\x01\0\0\0a")),
            "SHAPE_DISAGREES",
            "raw_input_contents[0]",
            "has 1 elements, which is not what the shape [2] says",
        ),
        (
            asks((Tensor(name="text", datatype="BYTES", shape=[1]), b"\xff\xff\xff\xffa")),
            "SHAPE_DISAGREES",
            "raw_input_contents[0]",
            "has 5 bytes, which is not what the shape [1] says",
        ),
        (
            asks(raw("input_ids", np.array([[0, 0, 101, 30522]])), raw("attention_mask", np.array([[0, 0, 1, 1]]))),
            "TOKEN_OUT_OF_RANGE",
            "raw_input_contents[0][0][3]",
            "is 30522, outside the model's vocabulary of 0 to 30521",
        ),
        (
            parameter(sequence_id=pb.InferParameter(int64_param=1)),
            "UNKNOWN_NAME",
            "parameters",
            "'sequence_id' is none of priority, timeout, truncate, output_datatype, deterministic, "
            "triton_enable_empty_final_response",
        ),
        (
            parameter(priority=pb.InferParameter(uint64_param=3)),
            "BAD_VALUE",
            "parameters.priority",
            "is 3, which is not a level from 1, the most urgent, to 2; 0 is the default",
        ),
        (
            parameter(priority=pb.InferParameter(bool_param=True)),
            "BAD_VALUE",
            "parameters.priority",
            "is True, which is not a level from 1, the most urgent, to 2; 0 is the default",
        ),
        (
            parameter(timeout=pb.InferParameter(int64_param=-1)),
            "BAD_VALUE",
            "parameters.timeout",
            "is -1, which is not microseconds from 1 on; 0 is none",
        ),
        (
            parameter(deterministic=pb.InferParameter(string_param="true")),
            "BAD_VALUE",
            "parameters.deterministic",
            "is 'true', which is not a bool",
        ),
        (
            parameter(output_datatype=pb.InferParameter(string_param="BF16")),
            "BAD_VALUE",
            "parameters.output_datatype",
            "is 'BF16', which is not one of FP32, FP16",
        ),
        (
            asks(raw("input_ids", IDS), id="x" * 257),
            "TOO_MANY_BYTES",
            "id",
            "has 257 bytes, over the limit of 256",
        ),
        (
            asks(raw("input_ids", IDS), model_version="newest"),
            "BAD_VALUE",
            "model_version",
            "is 'newest', which is not a version: a number from 1 on",
        ),
        (
            pb.ModelInferRequest(inputs=[Tensor(name="input_ids")] * 1000),
            "TOO_MANY",
            "inputs",
            "has 1000 elements, over the limit of 16",
        ),
    ],
)
def test_bad_input_is_named(
    minilm_server: RunningServer, request_: pb.ModelInferRequest, reason: str, field: str, message: str
) -> None:
    wrong = refusal(minilm_server, request_)
    assert (wrong.code, wrong.reason, wrong.fields[0]) == ("INVALID_ARGUMENT", reason, field)
    assert wrong.message.startswith(f"{field}: {message}")
    assert wrong.pushback_ms == "-1"
    assert infer(minilm_server, asks(raw("input_ids", IDS)))["sentence_embedding"].shape == (1, 384)


def test_an_unknown_model_is_not_found(minilm_server: RunningServer) -> None:
    for name, version in (("none", ""), (MODEL, "2")):
        wrong = refusal(minilm_server, pb.ModelInferRequest(model_name=name, model_version=version))
        assert (wrong.code, wrong.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")


def test_an_answer_that_padding_makes_too_large_is_refused_before_it_is_computed(minilm_server: RunningServer) -> None:
    ids, mask = np.zeros((64, 512), np.int64), np.zeros((64, 512), np.int64)
    mask[:, 0] = 1
    wrong = refusal(minilm_server, asks(raw("input_ids", ids), raw("attention_mask", mask)))
    assert wrong.reason == "ANSWER_TOO_LARGE"
    small = asks(raw("input_ids", ids), raw("attention_mask", mask), outputs=["sentence_embedding"])
    assert infer(minilm_server, small)["sentence_embedding"].shape == (64, 384)


def test_many_small_parameters_are_refused_before_they_are_parsed(minilm_server: RunningServer) -> None:
    flood = b"\x22\x04\x0a\x00\x12\x00" * 100_000
    nested = pb.ModelInferRequest(inputs=[Tensor(name="input_ids")]).SerializeToString()[2:] + flood
    size = len(nested)
    varint = bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14])
    with grpc.insecure_channel(minilm_server.target) as channel:
        call: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for message, field in ((flood, "parameters"), (b"\x2a" + varint + nested, "inputs[0].parameters")):
            with pytest.raises(grpc.RpcError) as error:
                call(message, timeout=30)
            wrong = refused(error.value)
            assert (wrong.code, wrong.reason, wrong.fields) == ("INVALID_ARGUMENT", "TOO_MANY", (field,))


def test_bytes_that_are_no_text_are_named_where_parameters_are_too(minilm_server: RunningServer) -> None:
    bad_name = b'\n\x04ti\xd9y"\x0e\n\x08priority\x12\x02\x10\x01'
    bad_key = b'"\x08\n\x02\xff\xfe\x12\x02\x10\x01'
    tensor = b"*\x04\n\x02\xff\xfe"
    with grpc.insecure_channel(minilm_server.target) as channel:
        call: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for message, field in ((bad_name, "model_name"), (bad_key, "parameters[0].key"), (tensor, "inputs[0].name")):
            with pytest.raises(grpc.RpcError) as error:
                call(message, timeout=30)
            wrong = refused(error.value)
            assert (wrong.code, wrong.message) == ("INVALID_ARGUMENT", f"{field}: is not valid UTF-8")
