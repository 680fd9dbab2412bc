"""What users of KServe's InferenceGRPCClient do, with the unmodified package: `python kserve_grpc.py TARGET < WHAT`."""

import asyncio
import json
import sys
from typing import Any

import numpy as np
from kserve import InferInput, InferRequest  # type: ignore[import-not-found]  # is in its own environment only
from kserve.inference_client import InferenceGRPCClient  # type: ignore[import-not-found]  # is in its own environment only

MODEL = "all-MiniLM-L6-v2"


def request(rows: list[list[int]], raw: bool) -> Any:
    length = max(map(len, rows))
    tensors = []
    for name, padding in (("input_ids", rows), ("attention_mask", [[1] * len(row) for row in rows])):
        values = np.array([[*row, *[0] * (length - len(row))] for row in padding], np.int64)
        tensor = InferInput(name, list(values.shape), "INT64")
        tensor.set_data_from_numpy(values, binary_data=raw)
        tensors.append(tensor)
    return InferRequest(model_name=MODEL, infer_inputs=tensors)


def text(texts: list[str]) -> Any:
    tensor = InferInput("text", [len(texts)], "BYTES", data=texts)
    return InferRequest(model_name=MODEL, infer_inputs=[tensor])


def sentences(response: Any) -> list[Any]:
    (output,) = [output for output in response.outputs if output.name == "sentence_embedding"]
    vectors: list[Any] = output.as_numpy().astype(float).tolist()
    return vectors


async def found(target: str, rows: list[list[int]], texts: list[str]) -> dict[str, Any]:
    client = InferenceGRPCClient(target)
    try:
        return {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model_ready": await client.is_model_ready(MODEL),
            "raw": sentences(await client.infer(request(rows, raw=True))),
            "typed": sentences(await client.infer(request(rows, raw=False))),
            "text": sentences(await client.infer(text(texts))),
            "alone": [sentences(await client.infer(request([row], raw=True)))[0] for row in rows],
        }
    finally:
        await client.close()


def main() -> None:
    asked = json.load(sys.stdin)
    json.dump(asyncio.run(found(sys.argv[1], asked["rows"], asked["texts"])), sys.stdout)


if __name__ == "__main__":
    main()
