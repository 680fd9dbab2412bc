"""Calls of the protocols of others, as own_calls.py."""

import asyncio
import base64
import json
from contextlib import suppress
from random import Random
from typing import Any

import grpc
import numpy as np
from harken.oip import inference_pb2
from soak.edges import CODES, Edges
from soak.inputs import BOUND, PLAIN_BOUND, Known, Pool, Wrong, close, unit
from support.inference import arrays, asks, raw, right_padded, text_tensor, typed_ids
from support.web import EMBEDDINGS, INFER, infer_request

_IDS = np.array([[101, 7592, 102]])
_BAD_INFER = (
    (inference_pb2.ModelInferRequest(), "INVALID_ARGUMENT"),
    (asks(raw("input_ids", _IDS), outputs=["logits"]), "INVALID_ARGUMENT"),
    (asks(raw("input_ids", _IDS), model_name="other"), "NOT_FOUND"),
    (inference_pb2.ModelInferRequest(inputs=[typed_ids([1, 2], shape=[1, 3])]), "INVALID_ARGUMENT"),
    (asks(raw("input_ids", _IDS), raw("attention_mask", np.array([[1, 0, 1]]))), "INVALID_ARGUMENT"),
)
_BAD_POSTS: tuple[tuple[str, Any, int], ...] = (
    (EMBEDDINGS, b"{", 400),
    (EMBEDDINGS, {"input": ["a", ""]}, 400),
    (EMBEDDINGS, {"input": [101, 99999]}, 400),
    (EMBEDDINGS, {"input": "word " * 600}, 400),
    (EMBEDDINGS, {"input": "a", "model": "other"}, 404),
    (EMBEDDINGS, {"input": "a", "stream": True}, 400),
    ("/embed", {"inputs": ""}, 400),
    ("/embed", {"inputs": 7}, 422),
    ("/embed", {"inputs": ["a"] * 1025}, 413),
    (INFER, infer_request(outputs=[{"name": "logits"}]), 400),
    (INFER, infer_request(parameters={"priority": 9}), 400),
    ("/v1/nothing", {}, 404),
)


async def infer(edges: Edges, pool: Pool, random: Random, timeout_s: float) -> str:
    """ModelInfer of token ids, raw with a mask, or of texts."""
    known, request = _infer_request(pool, random)
    _check_arrays(await edges.inference.ModelInfer(request, timeout=timeout_s), known)
    return "OK"


async def infer_stream(edges: Edges, pool: Pool, random: Random, timeout_s: float) -> str:
    """ModelStreamInfer: answers in the order of the requests."""
    asked = [_infer_request(pool, random) for _ in range(random.randint(1, 4))]
    call = edges.inference.ModelStreamInfer(iter([request for _, request in asked]), timeout=timeout_s)
    answers = [answer async for answer in call]
    if len(answers) != len(asked):
        raise Wrong(f"ModelStreamInfer: {len(answers)} answers to {len(asked)} requests")
    for answer, (known, _) in zip(answers, asked, strict=True):
        if answer.error_message:
            raise Wrong(f"ModelStreamInfer: {answer.error_message}")
        _check_arrays(answer.infer_response, known)
    return "OK"


async def bad_infer(edges: Edges, _: Pool, random: Random, timeout_s: float) -> str:
    """What is refused, with its code."""
    request, expected = random.choice(_BAD_INFER)
    try:
        await edges.inference.ModelInfer(request, timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        if error.code().name != expected:
            raise Wrong(f"ModelInfer was refused with {error.code().name}, not {expected}: {request!r:.80}") from None
        return expected
    raise Wrong(f"ModelInfer was answered: {request!r:.80}")


async def embeddings(edges: Edges, pool: Pool, random: Random, timeout_s: float) -> str:
    """OpenAI's, of texts or of token ids, as numbers or in base64, whole or cut."""
    known = pool.draw(random, 1) if random.random() < 0.5 else pool.draw_ids(random, random.randint(1, 3))
    dimensions = random.choice([None, 64])
    body: dict[str, Any] = {"input": [one.content for one in known], "encoding_format": random.choice(_ENCODINGS)}
    status, answer = await _post(edges, random, EMBEDDINGS, body | ({"dimensions": 64} if dimensions else {}))
    if status == "OK":
        for told, one in zip(answer["data"], known, strict=True):
            vector = told["embedding"]
            if isinstance(vector, str):
                vector = np.frombuffer(base64.b64decode(vector), "<f4")
            close(vector, unit(one.sentence[:dimensions]), f"{EMBEDDINGS} of {one.content!r:.40}")
    return status


async def embed(edges: Edges, pool: Pool, random: Random, timeout_s: float) -> str:
    """TEI's, normalised or not."""
    known, normalize = pool.draw(random, 1)[0], random.random() < 0.5
    # It takes texts, or token ids, one of them in a list of its own.
    inputs = known.content if isinstance(known.content, str) else [known.content]
    status, answer = await _post(edges, random, "/embed", {"inputs": inputs, "normalize": normalize})
    if status == "OK":
        expected = known.sentence if normalize else known.tokens.mean(axis=0)
        close(answer[0], expected, f"/embed of {known.content!r:.40}", BOUND if normalize else PLAIN_BOUND)
    return status


async def web_infer(edges: Edges, pool: Pool, random: Random, timeout_s: float) -> str:
    """The Open Inference Protocol over HTTP, with its deadline."""
    (one,) = pool.draw_ids(random, 1)
    tensor = {"name": "input_ids", "datatype": "INT64", "shape": [1, len(one.content)], "data": one.content}
    body = {
        "inputs": [tensor], "outputs": [{"name": "sentence_embedding"}],
        "parameters": {"timeout": max(1, int(timeout_s * 1e6))},
    }  # fmt: skip
    status, answer = await _post(edges, random, INFER, body)
    if status == "OK":
        close(answer["outputs"][0]["data"], one.sentence, f"{INFER} of {one.content!r:.40}")
    return status


async def bad_post(edges: Edges, _: Pool, random: Random, timeout_s: float) -> str:
    """What is refused, with its status."""
    path, body, expected = random.choice(_BAD_POSTS)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = await edges.web.post(path, content=content)
    if response.status_code != expected:
        raise Wrong(f"POST {path} {content!r:.60}: {response.status_code}, not {expected}")
    return CODES[expected]


async def half_a_post(edges: Edges, pool: Pool, random: Random, timeout_s: float) -> str:
    """A connection that ends before its request does."""
    (one,) = pool.draw(random, 1)
    body = json.dumps({"input": [one.content]}).encode()
    head = b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body)
    _, writer = await asyncio.open_connection("127.0.0.1", edges.server.http_port)
    writer.write((head + body)[: random.randrange(len(head) + len(body))])
    await asyncio.sleep(random.random() * 0.05)
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return "left"


_ENCODINGS = ("float", "base64")


async def _post(edges: Edges, random: Random, path: str, body: dict[str, Any]) -> tuple[str, Any]:
    """The code, and the answer; now and then the connection is not used again."""
    headers = {"connection": "close"} if random.random() < 0.1 else {}
    response = await edges.web.post(path, json=body, headers=headers)
    return CODES.get(response.status_code, str(response.status_code)), response.json()


def _infer_request(pool: Pool, random: Random) -> tuple[list[Known], inference_pb2.ModelInferRequest]:
    outputs = random.choice([("sentence_embedding",), ("sentence_embedding", "token_embeddings")])
    one = pool.draw(random, 1)[0]
    if isinstance(one.content, str):
        request = asks(outputs=outputs)
        request.inputs.append(text_tensor(one.content))
        return [one], request
    known = [one, *pool.draw_ids(random, random.randint(0, 2))]
    ids, mask = right_padded([row.content for row in known if not isinstance(row.content, str)])
    return known, asks(raw("input_ids", ids), raw("attention_mask", mask), outputs=outputs)


def _check_arrays(response: inference_pb2.ModelInferResponse, known: list[Known]) -> None:
    got = arrays(response)
    for number, one in enumerate(known):
        close(got["sentence_embedding"][number], one.sentence, f"ModelInfer of {one.content!r:.40}")
        if "token_embeddings" in got:
            tokens = got["token_embeddings"][number, : len(one.tokens)]
            close(tokens, one.tokens, f"ModelInfer, tokens of {one.content!r:.40}", PLAIN_BOUND)
