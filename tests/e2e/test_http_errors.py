"""What is wrong over HTTP is named in the form of its path, with its status, and is never a bug."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.server import RunningServer
from support.web import EMBEDDINGS, INFER, call, infer_request, post


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
        ({"inputs": ["a", [1, 2]]}, 422, "Tokenizer", "inputs: is texts and token ids, which is not a list of one or"),
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
            {"inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [2, 3], "data": [[1, 2], [1, 2, 3, 4]]}]},
            400,
            "inputs[0].data: is nested in another way, which is not flat, or lists of lists as the shape [2, 3] says",
        ),
        (
            {"inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [1, 4], "data": [[1, 2], [3, 4]]}]},
            400,
            "inputs[0].data: is nested in another way, which is not flat, or lists of lists as the shape [1, 4] says",
        ),
        (
            {"inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [1, 2], "data": [[[1, 2]]]}]},
            400,
            "inputs[0].data: is nested in another way, which is not flat, or lists of lists as the shape [1, 2] says",
        ),
        (
            {"inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [2, 2], "data": [[1, 2], 3, 4]}]},
            400,
            "inputs[0].data: is nested in another way, which is not flat, or lists of lists as the shape [2, 2] says",
        ),
        (
            {"inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [2, 1], "data": [[1], []]}]},
            400,
            "inputs[0].data: is nested in another way, which is not flat, or lists of lists as the shape [2, 1] says",
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


def test_null_is_what_is_not_given(minilm_server: RunningServer) -> None:
    body = {"inputs": "a", "truncate": None, "normalize": None, "prompt_name": None, "dimensions": None}
    assert post(minilm_server, "/embed", body).status == 200


def test_what_is_not_served_is_said_in_the_form_of_its_path(minilm_server: RunningServer) -> None:
    assert call(minilm_server, "GET", "/").json["error"].startswith("/ is not served here; served: /v1/embeddings")
    chat = post(minilm_server, "/v1/chat/completions", {})
    assert (chat.status, chat.json["error"]["code"]) == (404, "not_served")
    for method, path, allowed in (("GET", EMBEDDINGS, "POST"), ("PUT", "/embed", "POST"), ("DELETE", INFER, "POST")):
        replied = call(minilm_server, method, path)
        assert (replied.status, replied.headers["allow"]) == (405, allowed)
        error = replied.json["error"]
        message = error["message"] if isinstance(error, dict) else error
        assert message == f"{method} is not served for {path}; served: POST"
    assert call(minilm_server, "POST", "/info").headers["allow"] == "GET, HEAD"
    assert post(minilm_server, "/embed_all", {}).json["error_type"] == "Validation"


@pytest.mark.parametrize("path", [EMBEDDINGS, "/embed", INFER])
def test_a_slash_too_many_is_another_path_and_not_served(minilm_server: RunningServer, path: str) -> None:
    replied = post(minilm_server, f"{path}/", {"input": "a"})
    error = replied.json["error"]
    message = error["message"] if isinstance(error, dict) else error
    assert (replied.status, "location" in replied.headers) == (404, False)
    assert message.startswith(f"{path}/ is not served here")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["input", "inputs", "outputs", "parameters", "model", "dimensions", "encoding_format", "truncate", "id",
     "name", "datatype", "shape", "data"]
)  # fmt: skip


@settings(max_examples=150)
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
