"""What users of tritonclient do, with the unmodified package: `python triton_grpc.py TARGET < WHAT` prints what came.

Runs in an environment of its own: in one process with harken.oip its messages would be there twice.
"""

import asyncio
import json
import sys
import time
from queue import Queue
from typing import Any

import numpy as np
import tritonclient.grpc as triton  # type: ignore[import-not-found]  # is in its own environment only
import tritonclient.grpc.aio as triton_aio  # type: ignore[import-not-found]  # is in its own environment only
from tritonclient.utils import InferenceServerException  # type: ignore[import-not-found]  # is in its own environment only

MODEL = "all-MiniLM-L6-v2"


def ids_and_mask(rows: list[list[int]]) -> list[Any]:
    length = max(map(len, rows))
    ids = np.array([[*row, *[0] * (length - len(row))] for row in rows], np.int64)
    mask = np.array([[1] * len(row) + [0] * (length - len(row)) for row in rows], np.int64)
    inputs = []
    for name, values in (("input_ids", ids), ("attention_mask", mask)):
        tensor = triton.InferInput(name, values.shape, "INT64")
        tensor.set_data_from_numpy(values)
        inputs.append(tensor)
    return inputs


def text(texts: list[str]) -> list[Any]:
    tensor = triton.InferInput("text", [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[one.encode()] for one in texts], dtype=np.object_))
    return [tensor]


def sentences(result: Any) -> list[Any]:
    vectors: list[Any] = result.as_numpy("sentence_embedding").astype(float).tolist()
    return vectors


def infer(client: Any, rows: list[list[int]], texts: list[str]) -> dict[str, Any]:
    whole = client.infer(MODEL, ids_and_mask(rows))
    wanted = [triton.InferRequestedOutput("sentence_embedding")]
    parts = {"priority": 2, "timeout": 20_000_000, "request_id": "seven"}
    chosen = client.infer(MODEL, ids_and_mask(rows), outputs=wanted, model_version="1", **parts)
    half = client.infer(MODEL, text(texts), outputs=wanted, parameters={"output_datatype": "FP16"})
    return {
        "ids": sentences(whole),
        "token_shape": list(whole.as_numpy("token_embeddings").shape),
        "chosen": sentences(chosen),
        "chosen_outputs": [output.name for output in chosen.get_response().outputs],
        "chosen_id": chosen.get_response().id,
        "text": sentences(client.infer(MODEL, text(texts))),
        "half": str(half.as_numpy("sentence_embedding").dtype),
        "alone": [sentences(client.infer(MODEL, ids_and_mask([row])))[0] for row in rows],
    }


def async_infer(client: Any, rows: list[list[int]]) -> list[Any]:
    answers: Queue[tuple[Any, Any]] = Queue()
    for row in rows:
        client.async_infer(
            MODEL, ids_and_mask([row]), lambda result, error: answers.put((result, error)), request_id="a"
        )
    got = [answers.get(timeout=60) for _ in rows]
    assert not any(error for _, error in got), got
    return [sentences(result)[0] for result, _ in got]


def stream(client: Any, rows: list[list[int]]) -> dict[str, Any]:
    answers: Queue[tuple[Any, Any]] = Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number, row in enumerate(rows):
        client.async_stream_infer(MODEL, ids_and_mask([row]), request_id=str(number))
    client.async_stream_infer(MODEL, text([""]), request_id="bad")
    client.async_stream_infer(MODEL, ids_and_mask([rows[0]]), request_id="last", enable_empty_final_response=True)
    got = [answers.get(timeout=60) for _ in range(len(rows) + 2)]
    client.stop_stream()
    return {
        "vectors": [sentences(result)[0] for result, error in got if not error],
        "ids": [result.get_response().id for result, error in got if not error],
        "errors": [str(error) for _, error in got if error],
        "final": got[-1][0].get_response().parameters["triton_final_response"].bool_param,
    }


def described(client: Any) -> dict[str, Any]:
    as_json = {"as_json": True}
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(MODEL, "1"),
        "other_ready": client.is_model_ready("none"),
        "server": client.get_server_metadata(**as_json),
        "model": client.get_model_metadata(MODEL, **as_json),
        "config": client.get_model_config(MODEL, **as_json),
        "index": client.get_model_repository_index(**as_json),
        "statistics": client.get_inference_statistics(MODEL, **as_json),
    }


def errors(client: Any) -> dict[str, str]:
    def error(*arguments: Any, **options: Any) -> str:
        try:
            client.infer(*arguments, **options)
        except InferenceServerException as raised:
            return f"{raised.status()} {raised.message()}"
        return "no error"

    wrong = triton.InferInput("input_ids", [1, 2], "INT64")
    wrong.set_data_from_numpy(np.array([[1, 99999]]))
    started_s = time.monotonic()
    late = error(MODEL, text(["word " * 500]), parameters={"truncate": True}, client_timeout=0.001)
    return {
        "model": error("none", text(["a"])),
        "vocabulary": error(MODEL, [wrong]),
        "output": error(MODEL, text(["a"]), outputs=[triton.InferRequestedOutput("logits")]),
        "classes": error(
            MODEL, text(["a"]), outputs=[triton.InferRequestedOutput("sentence_embedding", class_count=2)]
        ),
        "sequence": error(MODEL, text(["a"]), sequence_id=3, sequence_start=True),
        "late": late,
        "late_after_s": str(time.monotonic() - started_s),
    }


async def with_aio(target: str, rows: list[list[int]]) -> list[Any]:
    async with triton_aio.InferenceServerClient(target) as client:
        results = await asyncio.gather(*(client.infer(MODEL, ids_and_mask([row])) for row in rows))
        return [sentences(result)[0] for result in results]


def main() -> None:
    target, asked = sys.argv[1], json.load(sys.stdin)
    rows, texts = asked["rows"], asked["texts"]
    client = triton.InferenceServerClient(target)
    found = {
        "infer": infer(client, rows, texts),
        "async": sorted(async_infer(client, rows)),
        "stream": stream(client, rows),
        "aio": asyncio.run(with_aio(target, rows)),
        "errors": errors(client),
        "described": described(client),
    }
    client.close()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
