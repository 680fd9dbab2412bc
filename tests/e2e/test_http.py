"""The HTTP edge on a real server: OpenAI's form, text-embeddings-inference's, and the Open Inference Protocol's."""

import base64
import json
import re
import time
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import numpy.typing as npt
from harken_client import Client
from support.calls import different
from support.server import RunningServer, running_server
from support.web import EMBEDDINGS, INFER, MODEL, Replied, call, infer_request, post


def own(server: RunningServer, *inputs: Any) -> npt.NDArray[np.float32]:
    with Client(server.target) as client:
        vectors: list[npt.NDArray[np.float32]] = list(client.encode(list(inputs)))
        return np.stack(vectors)


def test_openai_takes_text_and_token_ids_alone_and_in_lists(minilm_server: RunningServer) -> None:
    ids = [101, 7592, 102]
    for given_, inputs in (
        ("hello", ["hello"]),
        (["hello", "a longer text"], ["hello", "a longer text"]),
        (ids, [ids]),
        ([ids, [101, 102]], [ids, [101, 102]]),
    ):
        replied = post(minilm_server, EMBEDDINGS, {"model": MODEL, "input": given_})
        assert replied.status == 200
        body = replied.json
        assert (body["object"], body["model"]) == ("list", MODEL)
        assert [entry["index"] for entry in body["data"]] == list(range(len(inputs)))
        np.testing.assert_allclose([e["embedding"] for e in body["data"]], own(minilm_server, *inputs), atol=1e-5)
        assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > 0


def test_openai_base64_is_little_endian_float32(minilm_server: RunningServer) -> None:
    body = post(minilm_server, EMBEDDINGS, {"input": "hello", "encoding_format": "base64"}).json
    got = np.frombuffer(base64.b64decode(body["data"][0]["embedding"]), "<f4")
    np.testing.assert_array_equal(got, own(minilm_server, "hello")[0])


def test_fewer_dimensions_are_the_first_ones_renormalised(minilm_server: RunningServer) -> None:
    whole = own(minilm_server, "hello")[0]
    cut = whole[:128] / np.linalg.norm(whole[:128])
    body = post(minilm_server, EMBEDDINGS, {"input": "hello", "dimensions": 128}).json
    np.testing.assert_allclose(body["data"][0]["embedding"], cut, atol=1e-6)
    np.testing.assert_allclose(
        post(minilm_server, "/embed", {"inputs": "hello", "dimensions": 128}).json[0], cut, atol=1e-6
    )
    for dimensions in (0, 385, -1):
        wrong = post(minilm_server, EMBEDDINGS, {"input": "hello", "dimensions": dimensions})
        assert wrong.status == 400
        assert wrong.json["error"]["message"] == f"dimensions: is {dimensions}, which is not from 1 to the model's 384"


def test_models_are_listed_and_described_alone(minilm_server: RunningServer) -> None:
    body = call(minilm_server, "GET", "/v1/models").json
    assert [model["id"] for model in body["data"]] == [MODEL]
    assert call(minilm_server, "GET", f"/v1/models/{MODEL}").json == body["data"][0]
    for unknown in ("other", "sentence-transformers/all-MiniLM-L6-v2", f"{MODEL}/"):
        replied = call(minilm_server, "GET", f"/v1/models/{unknown}")
        assert (replied.status, replied.json["error"]["code"]) == (404, "model_not_found")
        assert replied.json["error"]["message"] == f"model: {unknown!r} is not served here; served: {MODEL}"
    assert call(minilm_server, "GET", "/v1/models/").json["error"]["code"] == "not_served"


def test_embed_normalises_unless_told_otherwise(minilm_server: RunningServer) -> None:
    unit = np.array(post(minilm_server, "/embed", {"inputs": ["hello", "other"]}).json)
    np.testing.assert_allclose(unit, own(minilm_server, "hello", "other"), atol=1e-5)
    plain = np.array(post(minilm_server, "/embed", {"inputs": ["hello", "other"], "normalize": False}).json)
    lengths = np.linalg.norm(plain, axis=1, keepdims=True)
    assert (np.abs(lengths - 1) > 0.1).all()
    np.testing.assert_allclose(plain / lengths, unit, atol=1e-5)
    with Client(minilm_server.target) as client:
        tokens = client.encode(["hello"], output="tokens")[0]
    np.testing.assert_allclose(plain[0], tokens.mean(axis=0), atol=1e-5)


def test_embed_truncates_the_end_or_the_beginning(minilm_server: RunningServer) -> None:
    words = "".join(f" {word}" for word in ["alpha"] * 300 + ["beta"] * 300)
    refused = post(minilm_server, "/embed", {"inputs": words})
    assert refused.status == 413
    assert refused.json["error_type"] == "Validation"
    with Client(minilm_server.target) as client:
        beginning = client.encode(["alpha " * 300 + "beta " * 210])[0]
        end = client.encode(["alpha " * 210 + "beta " * 300])[0]
    right = post(minilm_server, "/embed", {"inputs": words, "truncate": True}).json[0]
    left = post(minilm_server, "/embed", {"inputs": words, "truncate": True, "truncation_direction": "Left"}).json[0]
    np.testing.assert_allclose(right, beginning, atol=1e-5)
    np.testing.assert_allclose(left, end, atol=1e-5)
    ids = [101, *range(2000, 2600)]
    cut = {"inputs": ids, "truncate": True, "truncation_direction": "left"}
    np.testing.assert_allclose(post(minilm_server, "/embed", cut).json[0], own(minilm_server, ids[-512:])[0], atol=1e-5)


def test_info_says_what_runs(minilm_server: RunningServer) -> None:
    info = call(minilm_server, "GET", "/info").json
    assert info["model_id"] == MODEL
    assert info["model_dtype"] == "float32"
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    assert (info["max_input_length"], info["max_client_batch_size"]) == (512, 1024)


def test_open_inference_in_json(minilm_server: RunningServer) -> None:
    body = post(minilm_server, INFER, infer_request(id="seven", outputs=[{"name": "sentence_embedding"}])).json
    assert (body["model_name"], body["model_version"], body["id"]) == (MODEL, "1", "seven")
    (output,) = body["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("sentence_embedding", "FP32", [2, 384])
    expected = own(minilm_server, [101, 7592, 102], [101, 102])
    np.testing.assert_allclose(np.reshape(output["data"], (2, 384)), expected, atol=1e-5)
    everything = post(minilm_server, f"/v2/models/{MODEL}/versions/1/infer", infer_request()).json
    assert [output["shape"] for output in everything["outputs"]] == [[2, 384], [2, 3, 384]]
    texts = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["hello"]}]}
    got = post(minilm_server, INFER, texts).json["outputs"][0]["data"]
    np.testing.assert_allclose(got, own(minilm_server, "hello")[0], atol=1e-5)


def test_open_inference_with_binary_data_both_ways(minilm_server: RunningServer) -> None:
    ids = np.array([[101, 7592, 102]], np.int64).tobytes()
    text = {
        "inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [1, 3],
                    "parameters": {"binary_data_size": len(ids)}}],
        "outputs": [{"name": "sentence_embedding", "parameters": {"binary_data": True}}],
    }  # fmt: skip
    header = json.dumps(text).encode()
    replied = post(minilm_server, INFER, header + ids, {"Inference-Header-Content-Length": str(len(header))})
    length = int(replied.headers["inference-header-content-length"])
    described = json.loads(replied.body[:length])["outputs"][0]
    assert described["parameters"] == {"binary_data_size": 1536}
    got = np.frombuffer(replied.body[length:], "<f4")
    np.testing.assert_array_equal(got, own(minilm_server, [101, 7592, 102])[0])


def test_open_inference_says_what_there_is(minilm_server: RunningServer) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", f"/v2/models/{MODEL}/ready", "/healthz", "/readyz", "/health"):
        assert call(minilm_server, "GET", path).status == 200
    assert call(minilm_server, "GET", "/v2").json["name"] == "harken"
    model = call(minilm_server, "GET", f"/v2/models/{MODEL}").json
    assert [one["name"] for one in model["inputs"]] == ["input_ids", "attention_mask", "text"]
    assert call(minilm_server, "GET", f"/v2/models/{MODEL}/config").json["max_batch_size"] == 1024
    (statistics,) = call(minilm_server, "GET", f"/v2/models/{MODEL}/stats").json["model_stats"]
    answered = minilm_server.total("harken_finished_total", outcome="answered", model=MODEL)
    assert statistics["inference_count"] == answered
    assert post(minilm_server, "/v2/repository/index", None).json == [
        {"name": MODEL, "version": "1", "state": "READY", "reason": ""}
    ]
    assert call(minilm_server, "GET", "/v2/models/none/ready").status == 404
    assert post(minilm_server, f"/v2/repository/models/{MODEL}/unload", {}).status == 501


def test_a_request_id_is_given_back_or_made(minilm_server: RunningServer) -> None:
    replied = post(minilm_server, EMBEDDINGS, {"input": "a"}, {"x-request-id": "mine-7"})
    assert replied.headers["x-request-id"] == "mine-7"
    made = [
        post(minilm_server, EMBEDDINGS, {"input": text}, headers).headers["x-request-id"]
        for headers in ({}, {"x-request-id": "x" * 129}, {"x-request-id": "a b"})
        for text in ("a", "")
    ]
    assert len(set(made)) == 6
    assert all(re.fullmatch("[0-9a-f]{12}-[0-9]+", one) for one in made)


def test_whatever_is_asked_the_answer_has_a_request_id(minilm_server: RunningServer) -> None:
    for method, path, status in (
        ("GET", "/healthz", 200),
        ("GET", "/readyz", 200),
        ("GET", "/health", 200),
        ("GET", "/", 404),
        ("GET", "//", 404),
        ("GET", "/v1/nothing", 404),
        ("DELETE", "/v1/models", 405),
        ("GET", "/embed", 405),
        ("OPTIONS", "/v2", 405),
        ("TRACE", "/healthz", 405),
    ):
        assert (replied := call(minilm_server, method, path)).status == status
        assert re.fullmatch("[0-9a-f]{12}-[0-9]+", replied.headers["x-request-id"])
        assert status == 200 or "error" in replied.json
        given = {"x-request-id": "mine-8", "host": "[", "connection": "upgrade", "upgrade": "websocket"}
        assert call(minilm_server, method, path, headers=given).headers["x-request-id"] == "mine-8"


def test_it_can_be_turned_off(tiny_models: Path) -> None:
    with running_server(tiny_models, "--no-http") as server:
        assert server.http_port == 0
        with Client(server.target) as client:
            assert client.encode([[1, 2]])[0].shape == (32,)


def test_a_drain_answers_what_was_accepted(tiny_models: Path) -> None:
    with running_server(tiny_models, "--max-batch-sequences", "1") as server:
        replies: list[Replied] = []
        asking = Thread(target=lambda: replies.append(post(server, EMBEDDINGS, {"input": different(1000, 128)})))
        asking.start()
        server.wait_until("its acceptance", lambda: server.total("harken_accepted_total") == 1000)
        began_s = time.monotonic()
        server.terminate()
        asking.join()
        assert replies[0].status == 200
        assert len(replies[0].json["data"]) == 1000
        assert server.wait_exit() == 0
        assert time.monotonic() - began_s < 20
