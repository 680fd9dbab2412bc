"""A bundle whose engine answers at once: what a call costs beside the model."""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
from bench.workloads import MODEL
from onnx import TensorProto, helper, numpy_helper


def graph(hidden_size: int) -> onnx.ModelProto:
    """The encoder's inputs and outputs, and zeros of the right shapes between them."""

    def zeros(output: str, *shape: str) -> list[onnx.NodeProto]:
        return [
            helper.make_node("Concat", list(shape), [f"{output}_shape"], axis=0),
            helper.make_node("ConstantOfShape", [f"{output}_shape"], [output]),
        ]

    nodes = [
        helper.make_node("Shape", ["input_ids"], ["batch"], start=0, end=1),
        helper.make_node("Shape", ["input_ids"], ["length"], start=1, end=2),
        *zeros("sentence_embedding", "batch", "hidden"),
        *zeros("token_embeddings", "batch", "length", "hidden"),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
        for name in ("input_ids", "attention_mask")
    ]
    outputs = [
        helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", hidden_size]),
        helper.make_tensor_value_info("token_embeddings", TensorProto.FLOAT, ["batch", "length", hidden_size]),
    ]
    hidden = numpy_helper.from_array(np.array([hidden_size], np.int64), "hidden")
    return helper.make_model(
        helper.make_graph(nodes, "null", inputs, outputs, [hidden]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def write(like: Path, models: Path) -> None:
    """Write MODEL/1 into `models`: the manifest of the bundle `like`, whose model does nothing."""
    manifest = json.loads((like / "bundle.json").read_text())
    manifest.pop("attention", None)
    content = graph(manifest["hidden_size"]).SerializeToString()
    file = {"name": "model.onnx", "sha256": hashlib.sha256(content).hexdigest(), "size_bytes": str(len(content))}
    folder = models / MODEL / "1"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(content)
    (folder / "bundle.json").write_text(json.dumps({**manifest, "name": MODEL, "version": 1, "files": [file]}))
