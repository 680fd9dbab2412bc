"""One file, both axes open, the types as promised, and the form that was measured as fastest."""

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime  # type: ignore[import-untyped]  # ships no types
import pytest
import torch
from harken_export import trace
from harken_export.bundle import Precision
from harken_export.checkpoints import Checkpoint
from harken_export.errors import ModelTooLarge
from harken_export.trace import write_onnx


@pytest.mark.parametrize(
    ("precision", "weight_type"), [("fp32", onnx.TensorProto.FLOAT), ("fp16", onnx.TensorProto.FLOAT16)]
)
def test_the_graph_takes_ids_and_mask_and_gives_float32(
    tiny: Checkpoint, tmp_path: Path, precision: Precision, weight_type: int
) -> None:
    write_onnx(tiny.encoder(), precision, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [(put.name, put.type, put.shape) for put in (*session.get_inputs(), *session.get_outputs())] == [
        ("input_ids", "tensor(int64)", ["batch", "length"]),
        ("attention_mask", "tensor(int64)", ["batch", "length"]),
        ("sentence_embedding", "tensor(float)", ["batch", 32]),
        ("token_embeddings", "tensor(float)", ["batch", "length", 32]),
    ]
    model = onnx.load(tmp_path / "model.onnx")
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", trace.OPSETS[precision])]
    assert {weight.data_type for weight in model.graph.initializer if weight.dims} == {weight_type}
    assert not any(node.doc_string for node in model.graph.node)


def test_tracing_leaves_the_encoder_as_it_was(tiny: Checkpoint, tmp_path: Path) -> None:
    encoder = tiny.encoder()
    write_onnx(encoder, "fp16", tmp_path / "model.onnx")
    torch.testing.assert_close(dict(encoder.state_dict()), dict(tiny.state), atol=0, rtol=0)


def test_onnx_runtime_does_not_fuse_the_slow_way(tiny: Checkpoint, tmp_path: Path) -> None:
    # On CPUs SkipLayerNormalization is slower than the Add and LayerNormalization that it replaces; the
    # reshapes must become constant, or 40 small nodes compute shapes.
    write_onnx(tiny.encoder(), "fp32", tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
    nodes = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    layers = tiny.config.layers
    kinds = ("LayerNormalization", "SkipLayerNormalization", "Softmax", "Reshape", "Concat", "Where")
    assert {kind: nodes[kind] for kind in kinds} == {
        "LayerNormalization": 2 * layers + 1,
        "SkipLayerNormalization": 0,
        "Softmax": layers,
        "Reshape": 4 * layers,
        "Concat": 0,
        "Where": 0,
    }


def test_a_model_that_one_file_cannot_hold_is_refused(
    tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size_bytes = 4 * sum(tensor.numel() for tensor in tiny.state.values())
    monkeypatch.setattr(trace, "MAX_WEIGHTS_BYTES", size_bytes - 1)
    with pytest.raises(ModelTooLarge) as refusal:
        write_onnx(tiny.encoder(), "fp32", tmp_path / "model.onnx")
    assert (refusal.value.size_bytes, refusal.value.limit_bytes) == (size_bytes, size_bytes - 1)
    assert list(tmp_path.iterdir()) == []
    write_onnx(tiny.encoder(), "fp16", tmp_path / "model.onnx")
