"""What users of tritonclient's HTTP client do, unmodified: `python triton_http.py HOST:PORT < WHAT`."""

import json
import sys
from typing import Any

import numpy as np
import tritonclient.http as triton  # type: ignore[import-not-found]  # is in its own environment only
from tritonclient.utils import (  # type: ignore[import-not-found]  # as above
    InferenceServerException,
)

MODEL = "all-MiniLM-L6-v2"


def ids_and_mask(rows: list[list[int]], binary: bool = True) -> list[Any]:
    length = max(map(len, rows))
    ids = np.array([[*row, *[0] * (length - len(row))] for row in rows], np.int64)
    mask = np.array([[1] * len(row) + [0] * (length - len(row)) for row in rows], np.int64)
    inputs = []
    for name, values in (("input_ids", ids), ("attention_mask", mask)):
        tensor = triton.InferInput(name, values.shape, "INT64")
        tensor.set_data_from_numpy(values, binary_data=binary)
        inputs.append(tensor)
    return inputs


def text(texts: list[str]) -> list[Any]:
    tensor = triton.InferInput("text", [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[one] for one in texts], dtype=np.object_))
    return [tensor]


def sentences(result: Any) -> list[Any]:
    vectors: list[Any] = result.as_numpy("sentence_embedding").astype(float).tolist()
    return vectors


def error(client: Any, *arguments: Any, **options: Any) -> str:
    try:
        client.infer(*arguments, **options)
    except InferenceServerException as raised:
        return f"{raised.status()} {raised.message()}"
    return "no error"


def main() -> None:
    target, asked = sys.argv[1], json.load(sys.stdin)
    rows, texts = asked["rows"], asked["texts"]
    client = triton.InferenceServerClient(target, concurrency=4)
    as_json = [triton.InferRequestedOutput("sentence_embedding", binary_data=False)]
    binary = [triton.InferRequestedOutput("sentence_embedding", binary_data=True)]
    # Each holds one of the client's connections until it is read.
    waiting = [client.async_infer(MODEL, ids_and_mask([row])) for row in rows]
    read = [sentences(one.get_result())[0] for one in waiting]
    found = {
        "binary": sentences(client.infer(MODEL, ids_and_mask(rows), outputs=binary, model_version="1")),
        "json": sentences(client.infer(MODEL, ids_and_mask(rows, binary=False), outputs=as_json)),
        "all": sentences(client.infer(MODEL, ids_and_mask(rows), request_id="seven", priority=2, timeout=20_000_000)),
        "text": sentences(client.infer(MODEL, text(texts))),
        "alone": [sentences(client.infer(MODEL, ids_and_mask([row]), outputs=binary))[0] for row in rows],
        "async": read,
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(MODEL, "1"),
        "other_ready": client.is_model_ready("none"),
        "server": client.get_server_metadata(),
        "model": client.get_model_metadata(MODEL),
        "config": client.get_model_config(MODEL),
        "index": client.get_model_repository_index(),
        "statistics": client.get_inference_statistics(MODEL),
        "no_model": error(client, "none", text(["a"])),
        "no_output": error(client, MODEL, text(["a"]), outputs=[triton.InferRequestedOutput("logits")]),
        "compressed": error(client, MODEL, text(["a"]), request_compression_algorithm="gzip"),
    }
    client.close()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
