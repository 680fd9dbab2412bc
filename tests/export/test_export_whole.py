"""From weights to a bundle that describes itself truly."""

import json
from hashlib import sha256
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]  # ships no types
import pytest
import torch
from google.protobuf import json_format
from harken.v1.bundle_pb2 import Bundle, BundleFile, TensorSpec, WeightsOrigin
from harken_export import checkpoints, export, verify
from harken_export.attention import describe_attention
from harken_export.bundle import Precision
from harken_export.checkpoints import Checkpoint
from harken_export.errors import BundleExists, ParityFailed
from harken_export.export import export_bundle
from harken_export.model import Encoder
from harken_export.trace import write_onnx
from harken_export.verify_attention import verify_attention
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel


def read_manifest(folder: Path) -> Bundle:
    return json_format.Parse((folder / "bundle.json").read_bytes(), Bundle())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_manifest_says_what_is_in_the_folder(folder: Path, tmp_path: Path, precision: Precision) -> None:
    checkpoint = checkpoints.from_folder(folder)
    bundle = export_bundle(checkpoint, tmp_path / "models", "tiny", 7, precision=precision)
    assert bundle == tmp_path / "models" / "tiny" / "7"
    assert sorted(path.name for path in bundle.iterdir()) == [
        "attention.onnx",
        "bundle.json",
        "model.onnx",
        "tokenizer.json",
    ]
    manifest = read_manifest(bundle)
    model, tokenizer = (bundle / "model.onnx").read_bytes(), (bundle / "tokenizer.json").read_bytes()
    attention = (bundle / "attention.onnx").read_bytes()
    assert manifest == Bundle(
        format=1,
        name="tiny",
        version=7,
        architecture="bert",
        layers=2,
        heads=2,
        hidden_size=32,
        intermediate_size=64,
        vocab_size=100,
        max_length=40,
        pooling="mean",
        normalized=True,
        precision=precision,
        graph="trace",
        opset=17,
        inputs=[
            TensorSpec(name="input_ids", data_type="int64", shape=["batch", "length"]),
            TensorSpec(name="attention_mask", data_type="int64", shape=["batch", "length"]),
        ],
        outputs=[
            TensorSpec(name="sentence_embedding", data_type="float32", shape=["batch", "32"]),
            TensorSpec(name="token_embeddings", data_type="float32", shape=["batch", "length", "32"]),
        ],
        files=[
            BundleFile(name="attention.onnx", sha256=sha256(attention).hexdigest(), size_bytes=len(attention)),
            BundleFile(name="model.onnx", sha256=sha256(model).hexdigest(), size_bytes=len(model)),
            BundleFile(name="tokenizer.json", sha256=sha256(tokenizer).hexdigest(), size_bytes=len(tokenizer)),
        ],
        weights=WeightsOrigin(
            source="checkpoint tiny-bert",
            license="unknown",
            sha256=sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        ),
        parity=verify.verify(checkpoint.encoder(), bundle / "model.onnx", precision),
        attention=describe_attention(
            checkpoint.config, precision, verify_attention(checkpoint.encoder(), bundle, precision)
        ),
        made_with={
            "harken": metadata.version("harken"),
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
            "torch": torch.__version__,
        },
    )


def test_two_exports_give_the_same_bytes(tiny: Checkpoint, tmp_path: Path) -> None:
    first, second = (export_bundle(tiny, tmp_path / part, "tiny") for part in ("first", "second"))
    assert {path.name: path.read_bytes() for path in first.iterdir()} == {
        path.name: path.read_bytes() for path in second.iterdir()
    }
    assert sorted(path.name for path in first.iterdir()) == ["attention.onnx", "bundle.json", "model.onnx"]


def test_a_graph_that_fails_parity_is_never_published(
    tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_other_weights(encoder: Encoder, precision: Precision, path: Path) -> None:
        write_onnx(checkpoints.random(tiny.config, seed=1).encoder(), precision, path)

    monkeypatch.setattr(export, "write_onnx", write_other_weights)
    with pytest.raises(ParityFailed, match="parity failed in case 'one token alone': max abs of sentence vectors is"):
        export_bundle(tiny, tmp_path, "tiny")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "step",
    ["write_onnx", "verify", "write_attention", "verify_attention", "describe", "describe_files", "write_manifest"],
)
def test_a_failure_in_any_step_leaves_nothing(
    tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(export, step, fail)
    with pytest.raises(OSError, match="no space left"):
        export_bundle(tiny, tmp_path, "tiny")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_version_costs_no_work(tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_bundle(tiny, tmp_path, "tiny")
    monkeypatch.delattr(export, "write_onnx")
    with pytest.raises(BundleExists):
        export_bundle(tiny, tmp_path, "tiny")


def test_force_replaces_a_bundle(tiny: Checkpoint, tmp_path: Path) -> None:
    export_bundle(tiny, tmp_path, "tiny")
    bundle = export_bundle(checkpoints.random(tiny.config, seed=5), tmp_path, "tiny", force=True)
    assert read_manifest(bundle).weights.source == "random, seed 5"


def test_a_saved_bert_and_its_tokenizer_give_the_same_vectors_from_the_bundle(tmp_path: Path) -> None:
    words = {"[PAD]": 0, "[UNK]": 1, "a": 2, "clever": 3, "fox": 4, "runs": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))  # noqa: S106 - no password but a word
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=8)
    torch.manual_seed(0)
    bert = BertModel(
        BertConfig(
            num_hidden_layers=2,
            num_attention_heads=2,
            hidden_size=16,
            intermediate_size=32,
            vocab_size=6,
            max_position_embeddings=12,
            initializer_range=0.1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    bert.save_pretrained(tmp_path / "saved")
    tokenizer.save(str(tmp_path / "saved" / "tokenizer.json"))

    bundle = export_bundle(checkpoints.from_folder(tmp_path / "saved"), tmp_path / "models", "fox")

    encoding = Tokenizer.from_file(str(bundle / "tokenizer.json")).encode("a clever fox runs")
    assert encoding.ids == [2, 3, 4, 5]
    ids = torch.tensor([encoding.ids])
    session = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    sentence, tokens = session.run(None, {"input_ids": ids.numpy(), "attention_mask": np.ones((1, 4), np.int64)})
    with torch.no_grad():
        expected = bert(input_ids=ids).last_hidden_state
    np.testing.assert_allclose(tokens, expected.numpy(), atol=1e-5, rtol=0)
    np.testing.assert_allclose(sentence, torch.nn.functional.normalize(expected.mean(1)).numpy(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_minilm_passes_in_both_precisions(minilm: Checkpoint, tmp_path: Path, precision: Precision) -> None:
    bundle = export_bundle(minilm, tmp_path, "minilm", precision=precision)
    manifest = read_manifest(bundle)
    assert manifest.parity.max_abs <= {"fp32": 1e-5, "fp16": 1e-3}[precision]
    assert manifest.parity.batch_max_abs <= {"fp32": 1e-5, "fp16": 1e-3}[precision]
    assert manifest.max_length == 512
    assert json.loads((bundle / "tokenizer.json").read_bytes())["truncation"] is None
