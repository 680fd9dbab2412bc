"""The second graph: the maps of transformers, the vectors of the fast graph, and the weights stored once."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]  # ships no types
import pytest
import torch
from export.test_export_model import ragged
from export.test_export_whole import read_manifest
from harken_export import attention, checkpoints, cli
from harken_export.bundle import Precision
from harken_export.checkpoints import Checkpoint
from harken_export.errors import AttentionTooLarge, ParityFailed
from harken_export.export import export_bundle
from harken_export.trace import INPUTS
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import BertModel

TINY = ["random", "--layers", "2", "--heads", "2", "--hidden", "8", "--vocab", "50", "--max-length", "16"]
Outputs = dict[str, NDArray[np.float32]]


@pytest.fixture(scope="module")
def tiny_bundle(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundle(tiny, tmp_path_factory.mktemp("models"), "tiny")


def run(
    bundle: Path, file: str, lengths: list[int], vocab_size: int, seed: int = 1
) -> tuple[NDArray[np.int64], Outputs]:
    """The mask and the outputs, by name."""
    ids, mask = (tensor.numpy() for tensor in ragged(lengths, vocab_size, seed))
    session = onnxruntime.InferenceSession(bundle / file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return mask, dict(zip(names, session.run(names, dict(zip(INPUTS, (ids, mask), strict=True))), strict=True))


def test_its_weights_are_those_in_model_onnx_and_stored_once(minilm_models: Path) -> None:
    bundle = minilm_models / "all-MiniLM-L6-v2" / "1"
    content = (bundle / "model.onnx").read_bytes()
    assert (bundle / "attention.onnx").stat().st_size < 0.002 * len(content)
    graph = onnx.load(bundle / "attention.onnx", load_external_data=False).graph
    whole = {tensor.name: tensor.raw_data for tensor in onnx.load_model_from_string(content).graph.initializer}
    shared = 0
    for tensor in graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            assert len(tensor.raw_data) < attention.LEAST_EXTERNAL_BYTES
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        assert place["location"] == "model.onnx"
        start, size_bytes = int(place["offset"]), int(place["length"])
        assert content[start : start + size_bytes] == whole[tensor.name]
        shared += size_bytes
    assert shared > 0.99 * len(content)
    manifest = read_manifest(bundle)
    assert manifest.attention.shares_weights
    assert [(output.name, list(output.shape)) for output in manifest.attention.outputs] == [
        ("attentions", ["6", "batch", "12", "length", "length"]),
        ("sentence_embedding", ["batch", "384"]),
        ("token_embeddings", ["batch", "length", "384"]),
    ]


def test_minilms_maps_are_those_of_transformers_and_its_vectors_those_of_the_fast_graph(minilm_models: Path) -> None:
    bundle, lengths = minilm_models / "all-MiniLM-L6-v2" / "1", [128, 1, 30, 7, 77]
    mask, outputs = run(bundle, "attention.onnx", lengths, 30522)
    _, fast = run(bundle, "model.onnx", lengths, 30522)
    assert list(outputs) == ["attentions", "sentence_embedding", "token_embeddings"]
    real = mask.astype(bool)
    np.testing.assert_allclose(outputs["sentence_embedding"], fast["sentence_embedding"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(outputs["token_embeddings"][real], fast["token_embeddings"][real], atol=1e-5, rtol=0)

    bert = BertModel.from_pretrained(checkpoints.minilm_folder(), attn_implementation="eager")
    ids, tensor = ragged(lengths, 30522, 1)
    with torch.no_grad():
        expected = torch.stack(bert(input_ids=ids, attention_mask=tensor, output_attentions=True).attentions).numpy()
    assert outputs["attentions"].shape == expected.shape == (6, 5, 12, 128, 128)
    for row, length in enumerate(lengths):
        ours, theirs = outputs["attentions"][:, row, :, :length], expected[:, row, :, :length]
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)


@settings(max_examples=40)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), seed=st.integers(0, 2**32 - 1))
def test_rows_of_real_tokens_add_up_to_1_and_give_nothing_to_padding(
    tiny_bundle: Path, lengths: list[int], seed: int
) -> None:
    _, outputs = run(tiny_bundle, "attention.onnx", lengths, 100, seed)
    for row, length in enumerate(lengths):
        maps = outputs["attentions"][:, row, :, :length]
        np.testing.assert_allclose(maps.sum(-1), 1.0, atol=1e-5, rtol=0)
        assert not maps[..., length:].any()
        assert maps.min() >= 0.0


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_another_precision_carries_float32_weights_and_states_what_it_differs_by(
    tiny: Checkpoint, tmp_path: Path, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So tiny an encoder loses more than a certificate allows.
    monkeypatch.setattr("harken_export.export.certify", lambda *_: None)
    bundle = export_bundle(tiny, tmp_path / "models", "tiny", precision=precision)
    manifest = read_manifest(bundle)
    assert not manifest.attention.shares_weights
    model = onnx.load(bundle / "attention.onnx", load_external_data=False)
    assert {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 2} == {onnx.TensorProto.FLOAT}
    parity = manifest.attention.parity
    assert parity.attentions_max_abs < 1e-5
    assert parity.sentence_max_abs < 1e-5
    assert 1e-7 < parity.fast_max_abs < 0.1
    assert 0.9 < parity.fast_min_cosine < 1.0
    # It needs no other file.
    (bundle / "model.onnx").unlink()
    run(bundle, "attention.onnx", [3, 5], 100)


def test_the_manifest_has_its_figures_and_the_fast_graph_is_what_it_was_without(
    tiny: Checkpoint, tiny_bundle: Path, tmp_path: Path
) -> None:
    parity = read_manifest(tiny_bundle).attention.parity
    assert (parity.bound_max_abs, parity.bound_fast_max_abs, parity.padding_max) == (1e-4, 1e-5, 0.0)
    assert 0.0 < parity.attentions_max_abs < 1e-5
    assert parity.row_sum_max_abs < 1e-6
    assert parity.fast_max_abs < 1e-6
    assert parity.fast_min_cosine > 0.999999
    without = export_bundle(tiny, tmp_path, "tiny", attention=False)
    assert sorted(path.name for path in without.iterdir()) == ["bundle.json", "model.onnx"]
    assert not read_manifest(without).HasField("attention")
    assert (without / "model.onnx").read_bytes() == (tiny_bundle / "model.onnx").read_bytes()


def test_maps_that_are_others_are_never_published(
    tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = attention.add_attentions

    def in_another_order(graph: onnx.GraphProto, layers: int, heads: int) -> None:
        stack(graph, layers, heads)
        graph.node[-1].input[:] = reversed(graph.node[-1].input)

    monkeypatch.setattr(attention, "add_attentions", in_another_order)
    with pytest.raises(ParityFailed, match="attentions_max_abs of the attention graph"):
        export_bundle(tiny, tmp_path, "tiny")
    assert list(tmp_path.iterdir()) == []


def test_float32_weights_that_one_file_cannot_hold_are_refused_by_name(
    tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size_bytes = 4 * sum(tensor.numel() for tensor in tiny.state.values())
    monkeypatch.setattr("harken_export.trace.MAX_WEIGHTS_BYTES", size_bytes - 1)
    with pytest.raises(AttentionTooLarge, match="leave it out by --no-attention"):
        export_bundle(tiny, tmp_path, "tiny", precision="fp16")
    export_bundle(tiny, tmp_path, "tiny", precision="fp16", attention=False)


def test_if_missing_adds_the_graph_to_random_weights_of_the_same_seed_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["random", "--models", str(tmp_path), "--vocab", "64", "--max-length", "16", "--if-missing"]
    assert cli.run([*arguments, "--no-attention"]) == 0
    bundle = tmp_path / "random" / "1"
    before = (bundle / "model.onnx").read_bytes()
    assert cli.run([*arguments, "--seed", "1"]) == 0
    assert "is not known to hold these weights" in capsys.readouterr().out.splitlines()[-1]
    assert not (bundle / "attention.onnx").exists()
    assert cli.run(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{bundle} is ready"
    assert (bundle / "attention.onnx").is_file()
    assert (bundle / "model.onnx").read_bytes() == before


def test_if_missing_adds_the_graph_to_the_same_weights_and_leaves_others_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    arguments = ["checkpoint", str(folder), "--models", str(models), "--if-missing"]
    assert cli.run([*arguments, "--no-attention"]) == 0
    bundle = models / "tiny-bert" / "1"
    before = (bundle / "model.onnx").read_bytes()
    assert cli.run([*arguments, "--no-attention"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{bundle} is there"
    assert cli.run(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{bundle} is there, but has no attention.onnx"
    assert lines[-1] == f"{bundle} is ready"
    assert (bundle / "attention.onnx").is_file()
    assert (bundle / "model.onnx").read_bytes() == before
    assert cli.run(arguments) == 0
    assert capsys.readouterr().out.splitlines() == [f"{bundle} is there"]

    content = json.loads((bundle / "bundle.json").read_text())
    content["weights"]["sha256"] = "0" * 64
    del content["attention"]
    (bundle / "bundle.json").write_text(json.dumps(content))
    assert cli.run(arguments) == 0
    said = f"{bundle} is not known to hold these weights, and stays as it is: --force replaces it"
    assert capsys.readouterr().out.splitlines()[-1] == said
    assert json.loads((bundle / "bundle.json").read_text()) == content
