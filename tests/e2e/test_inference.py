"""The Open Inference Protocol over gRPC, on a real server: what it answers, and what bad input gets."""

import shutil
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harken.oip import inference_pb2 as pb
from harken.oip import inference_pb2_grpc
from harken.v1 import encoder_pb2
from harken_client import Client
from support.calls import Refused, different, refused, stub
from support.server import RunningServer, running_server

MODEL = "all-MiniLM-L6-v2"
ROWS = [[101, 7592, 102], [101, 7592, 2088, 2003, 102], [101, 102]]
TEXTS = ["hello", "a longer sentence than the other one", "x"]
Message = pb.ModelInferRequest
Tensor = Message.InferInputTensor
SENTENCE = Message.InferRequestedOutputTensor(name="sentence_embedding")


@contextmanager
def oip(server: RunningServer) -> Iterator[inference_pb2_grpc.GRPCInferenceServiceStub]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.target, options) as channel:
        yield inference_pb2_grpc.GRPCInferenceServiceStub(channel)


def infer(server: RunningServer, request: pb.ModelInferRequest) -> dict[str, npt.NDArray[Any]]:
    with oip(server) as service:
        return arrays(service.ModelInfer(request, timeout=30))


def arrays(response: pb.ModelInferResponse) -> dict[str, npt.NDArray[Any]]:
    dtypes = {"FP32": "<f4", "FP16": "<f2"}
    assert len(response.outputs) == len(response.raw_output_contents)
    return {
        output.name: np.frombuffer(raw, dtypes[output.datatype]).reshape(output.shape)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


def right_padded(rows: Sequence[Sequence[int]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    length = max(map(len, rows))
    ids = np.array([[*row, *[0] * (length - len(row))] for row in rows], np.int64)
    mask = np.array([[1] * len(row) + [0] * (length - len(row)) for row in rows], np.int64)
    return ids, mask


def raw(name: str, values: npt.NDArray[Any]) -> tuple[Tensor, bytes]:
    datatype = {"int64": "INT64", "int32": "INT32"}[str(values.dtype)]
    return Tensor(name=name, datatype=datatype, shape=values.shape), values.tobytes()


def asks(*tensors: tuple[Tensor, bytes], outputs: Sequence[str] = (), **fields: Any) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(
        inputs=[tensor for tensor, _ in tensors],
        raw_input_contents=[content for _, content in tensors],
        outputs=[Message.InferRequestedOutputTensor(name=name) for name in outputs],
        **fields,
    )


def text_tensor(*texts: str) -> Tensor:
    contents = pb.InferTensorContents(bytes_contents=[text.encode() for text in texts])
    return Tensor(name="text", datatype="BYTES", shape=[len(texts)], contents=contents)


def typed_ids(*rows: list[int], shape: Sequence[int] | None = None, datatype: str = "INT64") -> Tensor:
    flat = [token for row in rows for token in row]
    contents = pb.InferTensorContents(int64_contents=flat)
    if datatype != "INT64":
        contents = pb.InferTensorContents(int_contents=flat)
    return Tensor(name="input_ids", datatype=datatype, shape=shape or [len(rows), len(rows[0])], contents=contents)


def own(server: RunningServer, rows: Sequence[Sequence[int]] | Sequence[str], output: Any = "sentence") -> list[Any]:
    with Client(server.target) as client:
        return list(client.encode([row if isinstance(row, str) else list(row) for row in rows], output=output))


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_that_the_mask_names_changes_nothing(minilm_server: RunningServer, side: str, dtype: type) -> None:
    ids, mask = right_padded(ROWS)
    if side == "left":
        ids = np.array([np.roll(row, len(row) - sum(ones)) for row, ones in zip(ids, mask, strict=True)])
        mask = mask[:, ::-1].copy()
    ids[mask == 0] = 999  # nobody may read it
    got = infer(minilm_server, asks(raw("input_ids", ids.astype(dtype)), raw("attention_mask", mask.astype(dtype))))
    assert got["sentence_embedding"].shape == (3, 384)
    np.testing.assert_allclose(got["sentence_embedding"], own(minilm_server, ROWS), atol=1e-5)
    assert got["token_embeddings"].shape == (3, 5, 384)
    for row, vectors in enumerate(own(minilm_server, ROWS, "tokens")):
        np.testing.assert_allclose(got["token_embeddings"][row][mask[row] == 1], vectors, atol=1e-5)
        assert not got["token_embeddings"][row][mask[row] == 0].any()


def test_without_a_mask_every_token_is_real(minilm_server: RunningServer) -> None:
    rows = [[101, 7592, 102], [101, 0, 102]]
    got = infer(minilm_server, asks(raw("input_ids", np.array(rows)), outputs=["sentence_embedding"]))
    assert list(got) == ["sentence_embedding"]
    np.testing.assert_allclose(got["sentence_embedding"], own(minilm_server, rows), atol=1e-5)


def test_typed_contents_are_as_good_as_raw_ones(minilm_server: RunningServer) -> None:
    for datatype in ("INT64", "INT32"):
        request = pb.ModelInferRequest(inputs=[typed_ids([101, 7592, 102], datatype=datatype)])
        got = infer(minilm_server, request)
        np.testing.assert_allclose(got["sentence_embedding"], own(minilm_server, [[101, 7592, 102]]), atol=1e-5)


def test_text_comes_typed_or_raw_in_one_dimension_or_two(minilm_server: RunningServer) -> None:
    expected = own(minilm_server, TEXTS)
    content = b"".join(struct.pack("<I", len(text)) + text.encode() for text in TEXTS)
    tensor = Tensor(name="text", datatype="BYTES", shape=[3, 1])
    for request in (pb.ModelInferRequest(inputs=[text_tensor(*TEXTS)]), asks((tensor, content))):
        got = infer(minilm_server, request)
        np.testing.assert_allclose(got["sentence_embedding"], expected, atol=1e-5)
        lengths = [len(vectors) for vectors in own(minilm_server, TEXTS, "tokens")]
        assert got["token_embeddings"].shape == (3, max(lengths), 384)
        assert [int(np.count_nonzero(row.any(axis=1))) for row in got["token_embeddings"]] == lengths


def test_half_precision_where_it_is_asked_for(minilm_server: RunningServer) -> None:
    request = pb.ModelInferRequest(inputs=[text_tensor("hello")], outputs=[SENTENCE])
    full = infer(minilm_server, request)["sentence_embedding"]
    request.parameters["output_datatype"].string_param = "FP16"
    half = infer(minilm_server, request)["sentence_embedding"]
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, full.astype(np.float16))


def test_each_row_alone_is_the_same_to_the_bit_as_the_own_protocol_alone(minilm_server: RunningServer) -> None:
    for row in ROWS:
        got = infer(minilm_server, asks(raw("input_ids", np.array([row])), outputs=["sentence_embedding"]))
        np.testing.assert_array_equal(got["sentence_embedding"], own(minilm_server, [row]))


def test_the_answer_names_its_model_and_its_request(minilm_server: RunningServer) -> None:
    with oip(minilm_server) as service:
        request = pb.ModelInferRequest(
            id="seven", model_name=MODEL, model_version="1", inputs=[text_tensor("a")],
            parameters={"triton_enable_empty_final_response": pb.InferParameter(bool_param=True)},
        )  # fmt: skip
        response = service.ModelInfer(request)
    assert (response.model_name, response.model_version, response.id) == (MODEL, "1", "seven")
    assert response.parameters["triton_final_response"].bool_param


def test_the_timeout_parameter_is_a_deadline(minilm_server: RunningServer) -> None:
    request = pb.ModelInferRequest(inputs=[typed_ids([101] * 512)])
    request.parameters["timeout"].int64_param = 1000
    assert refusal(minilm_server, request).code in ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
    request.parameters["timeout"].int64_param = 10_000_000
    assert infer(minilm_server, request)["sentence_embedding"].shape == (1, 384)


def test_the_priority_parameter_reaches_the_scheduler(tiny_models: Path) -> None:
    with running_server(tiny_models) as server:
        for level, wanted in ((None, "interactive"), (0, "interactive"), (1, "interactive"), (2, "bulk")):
            request = pb.ModelInferRequest(inputs=[typed_ids([1, 2, 3])])
            if level is not None:
                request.parameters["priority"].uint64_param = level
            infer(server, request)
            with Client(server.target) as client:
                assert client.explain_batches(1)[0].members[0].priority == wanted


def test_long_input_is_refused_or_cut_when_asked_to(minilm_server: RunningServer) -> None:
    request = pb.ModelInferRequest(inputs=[typed_ids([101] * 600)], outputs=[SENTENCE])
    wrong = refusal(minilm_server, request)
    assert (wrong.reason, wrong.fields) == ("SEQUENCE_TOO_LONG", ("inputs[0].contents[0]",))
    request.parameters["truncate"].bool_param = True
    got = infer(minilm_server, request)["sentence_embedding"]
    np.testing.assert_allclose(got, own(minilm_server, [[101] * 512]), atol=1e-5)


def test_what_the_server_and_the_model_say_of_themselves(minilm_server: RunningServer) -> None:
    with oip(minilm_server) as service:
        assert service.ServerLive(pb.ServerLiveRequest()).live
        assert service.ServerReady(pb.ServerReadyRequest()).ready
        assert service.ModelReady(pb.ModelReadyRequest(name=MODEL, version="1")).ready
        assert not service.ModelReady(pb.ModelReadyRequest(name=MODEL, version="2")).ready
        assert not service.ModelReady(pb.ModelReadyRequest(name="none")).ready
        server = service.ServerMetadata(pb.ServerMetadataRequest())
        assert server.name == "harken"
        assert set(server.extensions) == {"model_configuration", "schedule_policy", "parameters", "statistics"}
        model = service.ModelMetadata(pb.ModelMetadataRequest(name=MODEL))
        assert (model.name, list(model.versions), model.platform) == (MODEL, ["1"], "onnx_onnxv1")
        assert [(one.name, one.datatype, list(one.shape)) for one in [*model.inputs, *model.outputs]] == [
            ("input_ids", "INT64", [-1, -1]),
            ("attention_mask", "INT64", [-1, -1]),
            ("text", "BYTES", [-1, 1]),
            ("sentence_embedding", "FP32", [-1, 384]),
            ("token_embeddings", "FP32", [-1, -1, 384]),
        ]
        config = service.ModelConfig(pb.ModelConfigRequest(name=MODEL)).config
        assert (config.max_batch_size, [list(one.dims) for one in config.input]) == (1024, [[-1], [-1], [1]])
        assert [list(one.dims) for one in config.output] == [[384], [-1, 384]]
        index = service.RepositoryIndex(pb.RepositoryIndexRequest()).models
        assert [(one.name, one.version, one.state) for one in index] == [(MODEL, "1", "READY")]


def test_statistics_are_those_of_the_counters(tiny_models: Path) -> None:
    with running_server(tiny_models) as server, oip(server) as service:
        for rows in (1, 3, 5):
            infer(server, pb.ModelInferRequest(inputs=[typed_ids(*different(rows, 3))]))
        own(server, [[1, 2], [3, 4]])
        requests = [pb.ModelInferRequest(inputs=[typed_ids([1, 2])]), pb.ModelInferRequest()]
        answers = list(service.ModelStreamInfer(iter(requests)))
        assert [bool(answer.error_message) for answer in answers] == [False, True]
        refusal(server, pb.ModelInferRequest(inputs=[typed_ids([5000])]))
        (statistics,) = service.ModelStatistics(pb.ModelStatisticsRequest()).model_stats
        assert (statistics.name, statistics.version) == ("tiny", "1")
        stats = statistics.inference_stats
        assert statistics.inference_count == server.total("harken_finished_total", outcome="answered") == 12
        assert statistics.execution_count == server.total("harken_batches_total")
        assert stats.success.count == server.total("harken_request_duration_seconds_count") == 5
        assert stats.success.ns == pytest.approx(1e9 * server.total("harken_request_duration_seconds_sum"), rel=1e-6)
        assert stats.fail.count == 2
        assert sum(one.compute_infer.count for one in statistics.batch_stats) == statistics.execution_count
        assert sum(one.batch_size * one.compute_infer.count for one in statistics.batch_stats) == 12
        assert stats.queue.count == stats.compute_infer.count == 5
        parts_ns = stats.queue.ns + stats.compute_input.ns + stats.compute_infer.ns + stats.compute_output.ns
        assert 0 < parts_ns <= stats.success.ns
        assert statistics.last_inference > 1.7e12
        assert refusal_of(service.ModelStatistics, pb.ModelStatisticsRequest(name="none")).code == "NOT_FOUND"


def test_a_stream_answers_in_order_and_outlives_a_bad_request(minilm_server: RunningServer) -> None:
    def requests() -> Iterator[pb.ModelInferRequest]:
        for number in range(40):
            words = "word " * (400 if number % 8 == 0 else 3)
            yield pb.ModelInferRequest(id=str(number), inputs=[] if number == 5 else [text_tensor(words)])

    with oip(minilm_server) as service:
        answers = list(service.ModelStreamInfer(requests(), timeout=60))
    assert [answer.infer_response.id for answer in answers] == [str(number) for number in range(40)]
    wrong = [answer for answer in answers if answer.error_message]
    assert [answer.infer_response.id for answer in wrong] == ["5"]
    assert wrong[0].error_message == "inputs: must have at least one element, and has none"
    assert arrays(answers[4].infer_response)["sentence_embedding"].shape == (1, 384)


def test_a_drain_ends_a_stream_after_what_was_read(tiny_models: Path) -> None:
    with running_server(tiny_models) as server, oip(server) as service:
        asked = iter([pb.ModelInferRequest(id="1", inputs=[typed_ids([1, 2])])])

        def requests() -> Iterator[pb.ModelInferRequest]:
            yield from asked
            server.wait_exit()

        answers = service.ModelStreamInfer(requests(), timeout=60)
        assert next(answers).infer_response.id == "1"
        server.terminate()
        with pytest.raises(grpc.RpcError) as error:
            next(answers)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        assert server.wait_exit() == 0


def refusal_of(method: Any, request: Any) -> Refused:
    with pytest.raises(grpc.RpcError) as error:
        method(request, timeout=30)
    return refused(error.value)


def refusal(server: RunningServer, request: pb.ModelInferRequest) -> Refused:
    with oip(server) as service:
        return refusal_of(service.ModelInfer, request)


IDS = np.array([[101, 7592, 102]])
BOTH = asks(raw("input_ids", IDS))
BOTH.inputs[0].contents.int64_contents.append(1)
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
            "'sequence_id' is none of priority, timeout, truncate, output_datatype, triton_enable_empty_final_response",
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


def test_models_are_not_changed_by_clients_unless_the_operator_allows_it(minilm_server: RunningServer) -> None:
    with oip(minilm_server) as service:
        for method, request in (
            (service.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name=MODEL)),
            (service.RepositoryModelUnload, pb.RepositoryModelUnloadRequest(model_name=MODEL)),
        ):
            wrong = refusal_of(method, request)
            assert (wrong.code, wrong.reason) == ("UNIMPLEMENTED", "TURNED_OFF")
            assert "model_control" in wrong.message


def test_a_model_is_unloaded_and_loaded_while_others_serve(tiny_models: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(tiny_models / "tiny", tmp_path / name)
        manifest = tmp_path / name / "1" / "bundle.json"
        manifest.write_text(manifest.read_text().replace('"name": "tiny"', f'"name": "{name}"', 1))
    with running_server(tmp_path, "--model-control") as server, oip(server) as service:
        assert "model_repository" in service.ServerMetadata(pb.ServerMetadataRequest()).extensions
        two = pb.ModelInferRequest(model_name="two", inputs=[typed_ids([1, 2, 3])])
        before = infer(server, two)["sentence_embedding"]
        service.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="two"))
        assert refusal(server, two).code == "NOT_FOUND"
        assert not service.ModelReady(pb.ModelReadyRequest(name="two")).ready
        states = {one.name: one.state for one in service.RepositoryIndex(pb.RepositoryIndexRequest()).models}
        assert states == {"one": "READY", "two": "UNAVAILABLE"}
        ready = service.RepositoryIndex(pb.RepositoryIndexRequest(ready=True)).models
        assert [one.name for one in ready] == ["one"]
        health: Any = health_pb2_grpc.HealthStub(grpc.insecure_channel(server.target))
        assert health.Check(health_pb2.HealthCheckRequest(service="two")).status == 2
        assert infer(server, pb.ModelInferRequest(inputs=[typed_ids([1])]))  # the only one needs no name
        # KServe's own protocol has the name in the first field.
        service.RepositoryModelLoad(pb.RepositoryModelLoadRequest(repository_name="two"))
        np.testing.assert_array_equal(infer(server, two)["sentence_embedding"], before)
        assert health.Check(health_pb2.HealthCheckRequest(service="two")).status == 1
        assert (
            refusal_of(service.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name="no")).code == "NOT_FOUND"
        )
        smuggled = pb.RepositoryModelLoadRequest(
            model_name="two", parameters={"file:1/model.onnx": pb.InferParameter(string_param="x")}
        )
        assert refusal_of(service.RepositoryModelLoad, smuggled).code == "INVALID_ARGUMENT"


def test_a_new_version_inherits_what_the_old_one_costs(tiny_models: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_models / "tiny", tmp_path / "tiny")
    with running_server(tmp_path, "--model-control") as server, oip(server) as service:
        shutil.copytree(tmp_path / "tiny" / "1", tmp_path / "tiny" / "2")
        manifest = tmp_path / "tiny" / "2" / "bundle.json"
        manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 2', 1))
        service.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="tiny"))
        ready = [line for line in server.log if line["event"] == "model ready"]
        assert [(line["model"], line["costs"]) for line in ready[1:]] == [("tiny/2", "inherited")]
        assert ready[1]["warmup_s"] < ready[0]["warmup_s"] + 1
        request = pb.ModelInferRequest(inputs=[typed_ids([1, 2])])
        assert service.ModelInfer(request).model_version == "2"
        request.model_version = "1"
        assert service.ModelInfer(request).model_version == "1"
        assert list(service.ModelMetadata(pb.ModelMetadataRequest(name="tiny")).versions) == ["1", "2"]


def test_a_damaged_bundle_is_not_loaded_and_the_others_serve_on(tiny_models: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_models / "tiny", tmp_path / "tiny")
    with running_server(tmp_path, "--model-control") as server, oip(server) as service:
        shutil.copytree(tiny_models / "tiny" / "1", tmp_path / "tiny" / "2")
        wrong = refusal_of(service.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name="tiny"))
        assert (wrong.code, wrong.reason) == ("FAILED_PRECONDITION", "LOAD_FAILED")
        assert "is tiny/1, but lies in tiny/2" in wrong.message
        assert infer(server, pb.ModelInferRequest(inputs=[typed_ids([1])]))
        index = {one.version: one for one in service.RepositoryIndex(pb.RepositoryIndexRequest()).models}
        assert (index["1"].state, index["2"].state) == ("READY", "UNAVAILABLE")
        assert "but lies in" in index["2"].reason


def test_a_single_bundle_is_served_under_the_name_that_it_is_given(tiny_models: Path) -> None:
    alone = tiny_models / "tiny" / "1"
    with running_server(alone, "--model-name", "my-model") as server, oip(server) as service:
        assert service.ModelReady(pb.ModelReadyRequest(name="my-model", version="1")).ready
        with Client(server.target) as client:
            assert client.encode([[1, 2]], model="my-model", version=1)[0].shape == (32,)
    with running_server(alone) as server, oip(server) as service:
        assert service.ModelReady(pb.ModelReadyRequest(name="tiny", version="1")).ready


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


def test_a_folder_that_is_gone_is_said(tiny_models: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_models / "tiny", tmp_path / "models" / "tiny")
    with running_server(tmp_path / "models", "--model-control") as server, oip(server) as service:
        (tmp_path / "models").rename(tmp_path / "elsewhere")
        wrong = refusal_of(service.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name="tiny"))
        assert (wrong.code, wrong.reason) == ("FAILED_PRECONDITION", "LOAD_FAILED")
        assert [one.state for one in service.RepositoryIndex(pb.RepositoryIndexRequest()).models] == ["READY"]
        assert infer(server, pb.ModelInferRequest(inputs=[typed_ids([1])]))


def test_the_own_protocol_still_works_beside_it(minilm_server: RunningServer) -> None:
    request = encoder_pb2.EncodeRequest(inputs=[encoder_pb2.Input(text="a")])
    assert stub(minilm_server.target).Encode(request).results[0].tokens == 3
