"""The Open Inference Protocol over gRPC, as any client would call it, against the own protocol."""

import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from harken.oip import inference_pb2 as pb
from harken.v1 import encoder_pb2
from harken_client import Client
from support.calls import different, stub
from support.hanging import HANGS, hanging_engine
from support.inference import (
    MODEL,
    SENTENCE,
    Tensor,
    arrays,
    asks,
    infer,
    oip,
    own,
    raw,
    refusal,
    refusal_of,
    right_padded,
    text_tensor,
    typed_ids,
)
from support.server import RunningServer, running_server
from support.web import INFER, post

ROWS = [[101, 7592, 102], [101, 7592, 2088, 2003, 102], [101, 102]]
TEXTS = ["hello", "a longer sentence than the other one", "x"]


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
    request.parameters["timeout"].int64_param = 120_000_000
    assert infer(minilm_server, request)["sentence_embedding"].shape == (1, 384)


def test_a_timeout_that_has_passed_is_no_full_server_whatever_waits(tiny_models: Path, tmp_path: Path) -> None:
    request = pb.ModelInferRequest(model_name="tiny", inputs=[typed_ids([101, 102])])
    request.parameters["timeout"].int64_param = 1
    environment, held = hanging_engine(tmp_path)
    options = ("--lanes", "1", "--no-wide-lane", "--stall-min-s", "600")
    with (
        running_server(tiny_models, *options, environment=environment) as server,
        ThreadPoolExecutor() as others,
        Client(server.target, timeout_s=120) as client,
    ):
        waiting = [others.submit(client.encode, [[HANGS], *different(60, 100)]) for _ in range(2)]
        server.wait_until("work", lambda: server.total("harken_accepted_total") == 122)
        assert {refusal(server, request).code for _ in range(20)} == {"DEADLINE_EXCEEDED"}
        ids = {"name": "input_ids", "datatype": "INT64", "shape": [1, 2], "data": [101, 102]}
        body = {"inputs": [ids], "parameters": {"timeout": 1}}
        replies = [post(server, INFER.replace(MODEL, "tiny"), body) for _ in range(20)]
        assert {replied.status for replied in replies} == {504}
        assert not any(future.done() for future in waiting)
        held.unlink()
        assert [len(future.result()) for future in waiting] == [61, 61]


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


def test_the_own_protocol_still_works_beside_it(minilm_server: RunningServer) -> None:
    request = encoder_pb2.EncodeRequest(inputs=[encoder_pb2.Input(text="a")])
    assert stub(minilm_server.target).Encode(request).results[0].tokens == 3
