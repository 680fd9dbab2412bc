"""The HTTP edge on a real server: OpenAI's form, text-embeddings-inference's, and the Open Inference Protocol's."""

import base64
import json
import re
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from harken_client import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from support.calls import different
from support.server import RunningServer, running_server
from support.web import Replied, call, post

MODEL = "all-MiniLM-L6-v2"
EMBEDDINGS = "/v1/embeddings"
INFER = f"/v2/models/{MODEL}/infer"


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


def test_models_are_listed(minilm_server: RunningServer) -> None:
    body = call(minilm_server, "GET", "/v1/models").json
    assert [model["id"] for model in body["data"]] == [MODEL]


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


def infer_request(**more: Any) -> dict[str, Any]:
    tensor = {"name": "input_ids", "datatype": "INT64", "shape": [2, 3], "data": [[101, 7592, 102], [101, 102, 0]]}
    mask = {"name": "attention_mask", "datatype": "INT64", "shape": [2, 3], "data": [1, 1, 1, 1, 1, 0]}
    return {"inputs": [tensor, mask], **more}


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
    assert statistics["inference_count"] == minilm_server.total("harken_finished_total", outcome="answered")
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


@pytest.mark.parametrize(
    ("body", "status", "param", "code", "message"),
    [
        (b"{", 400, None, "not_json", "the body is not the JSON that is needed"),
        (b"[1]", 400, None, "not_json", "a JSON object is needed, and this is a list"),
        (b"\xff", 400, None, "not_json", "the body is not the JSON that is needed"),
        (b'{"input": NaN}', 400, None, "not_json", "the body is not the JSON that is needed"),
        (b"[" * 100_000, 400, None, "not_json", "the body is not the JSON that is needed"),
        ({}, 400, "input", "missing", "input: must have at least one element"),
        ({"input": []}, 400, "input", "missing", "input: must have at least one element"),
        ({"input": ""}, 400, "input", "no_tokens", "input: is empty"),
        ({"input": ["a", ""]}, 400, "input[1]", "no_tokens", "input[1]: is empty"),
        ({"input": ["a", 7]}, 400, "input[1]", "bad_value", "input[1]: is 7, which is not a text or a list of"),
        ({"input": {"a": 1}}, 400, "input", "bad_value", "input: is an object of 1, which is not a text, token ids"),
        ({"input": [[1, "a"]]}, 400, "input", "bad_value", "input: is a list of 2, which is not a text or a list"),
        ({"input": [1 << 80]}, 400, None, "", ""),
        ({"input": [101, 99999]}, 400, "input[1]", "token_out_of_range", "input[1]: is 99999, outside"),
        ({"input": "word " * 600}, 400, "input", "context_length_exceeded", "input: has 602 tokens, over"),
        ({"input": "a", "model": "other"}, 404, None, "model_not_found", "model: 'other' is not served here"),
        ({"input": "a", "model": 7}, 400, "model", "bad_value", "model: is 7, which is not the name of a model"),
        ({"input": "a", "encoding_format": "x"}, 400, "encoding_format", "bad_value", "encoding_format: is 'x'"),
        ({"input": "a", "dimensions": 1.5}, 400, "dimensions", "bad_value", "dimensions: is 1.5"),
        ({"input": "a", "stream": True}, 400, "stream", "unknown_name", "stream: 'stream' is none of input"),
        ({"input": ["a"] * 1025}, 400, "input", "too_many", "input: has 1025 elements, over the limit of 1024"),
        (b'{"input": "\\ud800"}', 400, None, "", ""),
    ],
)
def test_openai_errors(
    minilm_server: RunningServer, body: Any, status: int, param: str | None, code: str, message: str
) -> None:
    replied = post(minilm_server, EMBEDDINGS, body)
    error = replied.json["error"]
    assert replied.status == status
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    if code:
        assert (error["param"], error["code"]) == (param, code)
    assert message in error["message"]
    assert replied.headers["x-should-retry"] == "false"
    assert post(minilm_server, EMBEDDINGS, {"input": "still here"}).status == 200


@pytest.mark.parametrize(
    ("body", "status", "kind", "message"),
    [
        (b"{", 422, "Tokenizer", "the body is not the JSON that is needed"),
        ({}, 400, "Empty", "inputs: must have at least one element"),
        ({"inputs": ""}, 400, "Empty", "inputs: is empty"),
        ({"inputs": 7}, 422, "Tokenizer", "inputs: is 7, which is not"),
        ({"inputs": "a", "truncate": 1}, 422, "Tokenizer", "truncate: is 1, which is not true or false"),
        ({"inputs": "a", "truncation_direction": "up"}, 422, "Tokenizer", "truncation_direction: is 'up'"),
        ({"inputs": ["a"] * 1025}, 413, "Validation", "inputs: has 1025 elements, over the limit of 1024"),
    ],
)
def test_embed_errors(minilm_server: RunningServer, body: Any, status: int, kind: str, message: str) -> None:
    replied = post(minilm_server, "/embed", body)
    assert (replied.status, replied.json["error_type"]) == (status, kind)
    assert message in replied.json["error"]


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"inputs": "x"}, 400, "inputs: is 'x', which is not a list of objects"),
        ({"id": 7}, 400, "id: is 7, which is not a string"),
        ({"outputs": [{"name": "logits"}]}, 400, "outputs[0].name: 'logits' is none of"),
        ({"parameters": {"priority": 9}}, 400, "parameters.priority: is 9"),
        ({"parameters": {"x": [1]}}, 400, "parameters: is an object of 1, which is not an object of strings"),
        ({"inputs": [{"name": "input_ids", "datatype": "INT64", "shape": "x"}]}, 400, "inputs[0].shape: is 'x'"),
        (
            {"inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [1, 2], "data": [1, 1.5]}]},
            400,
            "inputs[0].data: is 1.5, which is not an integer of INT64",
        ),
        (
            {"inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [1, 2], "data": [1]}]},
            400,
            "inputs[0].data: has 1 elements, which is not what the shape [1, 2] says",
        ),
        (
            {"inputs": [{"name": "input_ids", "datatype": "INT32", "shape": [1, 1], "data": [1 << 40]}]},
            400,
            "which is not an integer of INT32",
        ),
        (
            {"inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [1, 1],
                         "parameters": {"binary_data_size": 8}}]},
            400,
            "inputs[0].parameters.binary_data_size: is 8",
        ),
    ],
)  # fmt: skip
def test_open_inference_errors(minilm_server: RunningServer, change: Any, status: int, message: str) -> None:
    replied = post(minilm_server, INFER, {**infer_request(), **change})
    assert replied.status == status
    assert message in replied.json["error"]
    assert list(replied.json) == ["error"]


def test_what_is_not_served_is_said_in_the_form_of_its_path(minilm_server: RunningServer) -> None:
    assert call(minilm_server, "GET", "/").json["error"].startswith("/ is not served here; served: /v1/embeddings")
    chat = post(minilm_server, "/v1/chat/completions", {})
    assert (chat.status, chat.json["error"]["code"]) == (404, "not_served")
    for method, path, allowed in (("GET", EMBEDDINGS, "POST"), ("PUT", "/embed", "POST"), ("DELETE", INFER, "POST")):
        replied = call(minilm_server, method, path)
        assert (replied.status, replied.headers["allow"]) == (405, allowed)
        error = replied.json["error"]
        message = error["message"] if isinstance(error, dict) else error
        assert message == f"{method} is not served for {path}; POST is"


def test_a_body_over_the_limit_is_refused_and_others_go_on(minilm_server: RunningServer) -> None:
    with Client(minilm_server.target) as client:
        replied = post(minilm_server, EMBEDDINGS, b" " * (100 << 20))
        assert client.encode(["a"])[0].shape == (384,)
    assert replied.status == 413
    assert "has 104857600 bytes, over the limit of 16777216" in replied.json["error"]["message"]
    assert post(minilm_server, EMBEDDINGS, b"x", {"content-encoding": "gzip"}).status == 400


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (EMBEDDINGS, b'{"input":[' + b",".join([b"[]"] * 2_000_000) + b"]}", "input"),
        (EMBEDDINGS, b'{"input":[' + b",".join([b'""'] * 2_000_000) + b"]}", "input"),
        (EMBEDDINGS, b"{" + b",".join(b'"%d":1' % one for one in range(800_000)) + b"}", ""),
        (INFER, b'{"parameters":{' + b",".join(b'"%d":1' % one for one in range(800_000)) + b"}}", "parameters"),
        (
            INFER,
            b'{"inputs":[{"name":"input_ids","datatype":"INT64","shape":[1,1],"data":['
            + b",".join([b"[]"] * 2_000_000)
            + b"]}]}",
            "inputs[0].data",
        ),
    ],
    ids=["empty lists", "empty texts", "unknown fields", "parameters", "nested data"],
)
def test_millions_of_elements_are_refused_without_a_look_at_each(
    minilm_server: RunningServer, path: str, body: bytes, field: str
) -> None:
    slowest_s, over = 0.0, False

    def look() -> None:
        nonlocal slowest_s
        while not over:
            began_s = time.monotonic()
            assert call(minilm_server, "GET", "/healthz").status == 200
            slowest_s = max(slowest_s, time.monotonic() - began_s)

    looking = Thread(target=look)
    looking.start()
    try:
        replied = post(minilm_server, path, body)
    finally:
        over = True
        looking.join()
    assert replied.status == 400
    error = replied.json["error"]
    assert field in (error["message"] if isinstance(error, dict) else error)
    assert len(replied.body) < 2000


def deep(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize("field", ["input", "model", "encoding_format", "dimensions", "user"])
def test_deep_json_is_no_bug(minilm_server: RunningServer, field: str) -> None:
    for depth in (100, 900, 1000, 1020):
        replied = post(minilm_server, EMBEDDINGS, b'{"input":"a","%s":%s}' % (field.encode(), deep(depth)))
        assert replied.status in (200, 400)
    for body in (b'{"inputs":%s}', b'{"inputs":"a","truncation_direction":%s}', b'{"inputs":[%s]}'):
        assert post(minilm_server, "/embed", body % deep(1000)).status == 422
    tensor = b'{"inputs":[{"name":"text","datatype":"BYTES","shape":[1],"data":[%s]}],"parameters":{"a":%s}}'
    assert post(minilm_server, INFER, tensor % (deep(500), b"1")).status == 400
    assert post(minilm_server, INFER, tensor % (b"1", deep(900))).status == 400
    assert post(minilm_server, INFER, b"{}", {"Inference-Header-Content-Length": "0" * 12 + "9" * 5000}).status == 400


def test_a_head_is_limited_in_bytes_and_in_time(tiny_server: RunningServer) -> None:
    for head in (b"GET /healthz HTTP/1.1\r\nx: ", b"GET /"):
        with connected(tiny_server) as large:
            with suppress(ConnectionError):
                for _ in range(64):
                    large.sendall(head if _ == 0 else b"a" * (64 << 10))
            with suppress(ConnectionError):
                assert large.recv(4096).startswith(b"HTTP/1.1 431 ")
    with connected(tiny_server) as silent, connected(tiny_server) as half:
        half.sendall(b"GET /healthz HTTP/1.1\r\nx: ")
        began_s = time.monotonic()
        for waiting in (silent, half):
            with suppress(ConnectionError):
                assert waiting.recv(1) == b""
        assert time.monotonic() - began_s < 25
    assert call(tiny_server, "GET", "/healthz").status == 200


def test_connections_over_the_limit_are_closed_and_the_others_go_on(tiny_models: Path) -> None:
    with running_server(tiny_models, "--max-connections", "5") as server, ExitStack() as stack:
        kept = [stack.enter_context(connected(server)) for _ in range(5)]
        time.sleep(0.2)
        with pytest.raises((ConnectionError, HTTPException)):
            call(server, "GET", "/healthz")
        kept[0].sendall(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
        assert kept[0].recv(4096).startswith(b"HTTP/1.1 200 ")
        kept.pop().close()
        server.wait_until("its place", lambda: call_or_none(server) is not None)


def call_or_none(server: RunningServer) -> Replied | None:
    try:
        return call(server, "GET", "/healthz")
    except (ConnectionError, HTTPException):
        return None


def test_answers_that_nobody_reads_are_bounded_and_let_go(tiny_models: Path) -> None:
    options = ["--max-unsent-bytes", str(40 << 20), "--max-request-s", "5"]
    with running_server(tiny_models, *options) as server, connected(server) as unread:
        ids = np.ones((1000, 100), np.int64).tobytes()
        tensor = {"name": "input_ids", "datatype": "INT64", "shape": [1000, 100],
                  "parameters": {"binary_data_size": len(ids)}}  # fmt: skip
        header = json.dumps({"inputs": [tensor], "outputs": [{"name": "token_embeddings"}]}).encode()
        length = {"inference-header-content-length": str(len(header))}
        lines = ["POST /v2/models/tiny/infer HTTP/1.1", "host: a", f"content-length: {len(header) + len(ids)}"]
        lines += [f"{name}: {value}" for name, value in length.items()]
        unread.sendall("\r\n".join([*lines, "", ""]).encode() + header + ids)
        server.wait_until("its answer", lambda: server.total("harken_finished_total", outcome="answered") == 1000)
        path = "/v2/models/tiny/infer"
        # 12.8 MB of vectors are some 35 MB of text, and nobody reads them.
        server.wait_until("the bound", lambda: post(server, path, header + ids, length).status == 429)
        assert post(server, EMBEDDINGS, {"input": [1, 2]}).status == 200
        server.wait_until("its end", lambda: post(server, path, header + ids, length).status == 200)
        assert [line for line in server.log if line.get("level") not in ("info", None)] == []


def test_whoever_polls_does_not_hold_a_drain(tiny_models: Path) -> None:
    with running_server(tiny_models, "--max-request-s", "20", "--drain-delay-s", "0.2") as server:
        over = False

        def poll() -> None:
            while not over:
                with suppress(OSError, HTTPException):
                    call(server, "GET", "/v2/health/ready")

        polling = Thread(target=poll)
        polling.start()
        try:
            with connected(server) as half:
                half.sendall(b"POST /embed HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{")
                time.sleep(0.3)
                began_s = time.monotonic()
                server.terminate()
                assert server.wait_exit() == 0
                assert time.monotonic() - began_s < 10
        finally:
            over = True
            polling.join()


def test_a_slow_reader_gets_all_of_its_answer_in_a_drain(tiny_models: Path) -> None:
    with running_server(tiny_models) as server, connected(server) as slow:
        body = json.dumps({"input": [[1] * 10] * 1000, "model": "tiny"}).encode()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        server.wait_until("its end", lambda: server.total("harken_finished_total", outcome="answered") == 1000)
        server.terminate()
        received = b""
        while piece := slow.recv(8 << 10):
            received += piece
            time.sleep(0.01)
        head, _, content = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert len(json.loads(content)["data"]) == 1000
        assert server.wait_exit() == 0


@contextmanager
def connected(server: RunningServer) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=30) as connection:
        yield connection


def test_a_slow_body_ends_with_its_time(tiny_models: Path) -> None:
    with running_server(tiny_models, "--max-request-s", "1") as server, connected(server) as slow:
        slow.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{")
        assert post(server, EMBEDDINGS, {"input": [1, 2]}).status == 200
        assert slow.recv(4096).startswith(b"HTTP/1.1 504 ")


def test_who_goes_away_is_not_computed(tiny_models: Path) -> None:
    with running_server(tiny_models, "--max-batch-sequences", "1") as server:
        body = json.dumps({"input": different(1000, 128)}).encode()
        with connected(server) as going:
            head = f"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n"
            going.sendall(head.encode() + body)
            server.wait_until("its acceptance", lambda: server.total("harken_accepted_total") == 1000)
            going.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.wait_until("its end", lambda: server.total("harken_finished_total") == 1000)
        assert server.total("harken_finished_total", outcome="cancelled") > 0
        assert server.total("harken_requests_total", method="POST /v1/embeddings", code="CANCELLED") == 1


def test_a_full_backlog_says_when_to_come_again(tiny_models: Path) -> None:
    with running_server(tiny_models, "--max-backlog-tokens", "4000", "--max-batch-sequences", "1") as server:
        refused: list[Replied] = []

        def ask() -> None:
            for _ in range(20):
                replied = post(server, EMBEDDINGS, {"input": different(20, 128)})
                if replied.status != 200:
                    refused.append(replied)

        threads = [Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert refused
        assert {replied.status for replied in refused} == {429}
        error = refused[0].json["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert int(refused[0].headers["retry-after"]) >= 1
        assert int(refused[0].headers["retry-after-ms"]) >= 1
        assert "x-should-retry" not in refused[0].headers


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


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["input", "inputs", "outputs", "parameters", "model", "dimensions", "encoding_format", "truncate", "id",
     "name", "datatype", "shape", "data"]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([EMBEDDINGS, "/embed", "/v2/models/tiny/infer", "/v2/repository/index"]),
    st.binary(max_size=30)
    | st.dictionaries(FIELDS, JSON_VALUES | st.lists(st.dictionaries(FIELDS, JSON_VALUES, max_size=4), max_size=3)).map(
        lambda value: json.dumps(value).encode()
    ),
)
def test_whatever_is_sent_gets_an_answer_of_the_form_and_never_a_bug(
    tiny_server: RunningServer, path: str, body: bytes
) -> None:
    replied = post(tiny_server, path, body)
    assert replied.status in (200, 400, 404, 413, 422)
    if replied.status != 200:
        assert "error" in replied.json


def test_the_server_had_no_bug(tiny_server: RunningServer) -> None:
    assert [line for line in tiny_server.log if line.get("level") == "error"] == []
