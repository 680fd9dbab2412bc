"""int8 keeps its promises: near to float32, and the same vector in every batch."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]  # ships no types
import pytest
import torch
from google.protobuf import json_format
from harken.v1.bundle_pb2 import Bundle
from harken_export import certificate, checkpoints, int8
from harken_export.certificate import fitting_strata, neighbour_overlap, read_paragraphs, text_sequences
from harken_export.checkpoints import Checkpoint
from harken_export.errors import CertificateFailed
from harken_export.export import export_bundle
from harken_export.model import EncoderConfig
from harken_export.verify import Batch, cosines, make_batch, run_onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

SMALL = EncoderConfig(layers=2, heads=4, hidden_size=64, intermediate_size=128, vocab_size=1000, max_length=40)


@pytest.fixture(scope="session")
def small() -> Checkpoint:
    return checkpoints.random(SMALL, seed=0)


@pytest.fixture(scope="session", autouse=True)
def fewer_sentences() -> Iterator[None]:
    """A quarter of them: the whole certificate takes a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificate, "SENTENCES", 128)
        yield


@pytest.fixture(scope="session")
def minilm_int8(minilm: Checkpoint, fewer_sentences: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundle(minilm, tmp_path_factory.mktemp("int8"), "minilm", precision="int8")


def read_manifest(folder: Path) -> Bundle:
    return json_format.Parse((folder / "bundle.json").read_bytes(), Bundle())


def test_minilm_holds_its_bounds_and_the_manifest_says_by_how_much(minilm_int8: Path) -> None:
    manifest = read_manifest(minilm_int8)
    proof = manifest.certificate
    assert (manifest.precision, proof.sentences, proof.material) == ("int8", 128, "text")
    assert (proof.bound_mean_cosine, proof.bound_first_percentile_cosine) == (0.996, 0.98)
    assert 1 > proof.mean_cosine >= 0.996
    assert proof.mean_cosine > proof.first_percentile_cosine >= max(0.98, proof.worst_cosine)
    assert 0.8 < proof.neighbour_overlap <= 1
    assert proof.batch_min_cosine >= proof.bound_batch_min_cosine == 0.99999
    assert 0 <= proof.batch_max_abs < 1e-3
    assert [(part.shortest, part.longest, part.sentences) for part in proof.strata] == [
        (2, 8, 32), (9, 32, 32), (33, 128, 32), (129, 512, 32),
    ]  # fmt: skip
    assert min(part.worst_cosine for part in proof.strata) == proof.worst_cosine


def test_the_graph_has_standard_operators_only_and_query_key_and_value_share_a_quantisation(minilm_int8: Path) -> None:
    graph = onnx.load(minilm_int8 / "model.onnx")
    assert [opset.domain for opset in graph.opset_import] == [""]
    operators = [node.op_type for node in graph.graph.node]
    assert (operators.count("MatMulInteger"), operators.count("QuantizeLinear")) == (6 * 6, 4 * 6)
    assert "DynamicQuantizeLinear" not in operators


def test_a_model_without_tokenizer_is_certified_on_random_ids_of_lengths_that_fit(
    small: Checkpoint, tmp_path: Path
) -> None:
    proof = read_manifest(export_bundle(small, tmp_path, "small", precision="int8")).certificate
    assert (proof.sentences, proof.material) == (126, "random ids")
    assert [(part.shortest, part.longest, part.sentences) for part in proof.strata] == [
        (2, 8, 42), (9, 32, 42), (33, 40, 42),
    ]  # fmt: skip


def test_other_precisions_have_no_certificate(small: Checkpoint, tmp_path: Path) -> None:
    assert not read_manifest(export_bundle(small, tmp_path, "small")).HasField("certificate")


def test_a_wrong_weight_scale_fails_the_certificate_and_leaves_nothing(
    small: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = int8.quantize_weight

    def spoilt(weight: Tensor) -> tuple[Tensor, Tensor]:
        quantized, scale = right(weight)
        scale[0] *= 20
        return quantized, scale

    monkeypatch.setattr(int8, "quantize_weight", spoilt)
    with pytest.raises(CertificateFailed) as failure:
        export_bundle(small, tmp_path, "small", precision="int8")
    assert (failure.value.figure, failure.value.bound) == ("mean cosine", 0.996)
    assert failure.value.value < 0.996
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [0.97, float("nan")])
def test_a_figure_below_its_bound_is_named(value: float) -> None:
    certificate.hold("mean cosine", 0.98, 0.98)
    with pytest.raises(CertificateFailed, match=f"certificate failed: mean cosine is {value}, the bound is 0.98"):
        certificate.hold("mean cosine", value, 0.98)


@settings(max_examples=15)
@given(lengths=st.lists(st.integers(1, 60), min_size=2, max_size=5), seed=st.integers(0, 2**32 - 1))
def test_no_companion_and_no_garbage_in_padded_cells_changes_a_vector(
    minilm_int8: Path, lengths: list[int], seed: int
) -> None:
    session = sessions(minilm_int8)
    random = np.random.default_rng(seed)
    batch = make_batch(tuple(lengths), 30522, random)  # its padded cells hold random ids
    other = Batch(
        np.where(batch.mask, batch.ids, random.integers(0, 30522, batch.ids.shape)), batch.mask, batch.lengths
    )
    together = run_onnx(session, batch).sentence
    np.testing.assert_array_equal(run_onnx(session, other).sentence, together)
    alone = np.concatenate([run_onnx(session, batch.alone(row)).sentence for row in range(len(lengths))])
    assert min(cosines(alone, together)) >= 0.99999


def sessions(folder: Path, made: dict[Path, onnxruntime.InferenceSession] = {}) -> onnxruntime.InferenceSession:  # noqa: B006 - the cache
    if folder not in made:
        made[folder] = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return made[folder]


def test_a_row_without_a_real_token_gives_zeros_and_a_token_of_zeros_divides_by_nothing(small: Checkpoint) -> None:
    encoder = int8.quantize(small.encoder())
    sentence, tokens = encoder(torch.ones(1, 3, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.int64))
    assert not sentence.any()
    assert tokens.isfinite().all()
    x, scale = int8.quantize_tokens(torch.zeros(2, 4))
    assert (x == 128).all()
    assert (scale > 0).all()


def test_quantised_values_are_within_half_a_step() -> None:
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)) * 3
    for values, (quantized, scale), zero in (
        (x, int8.quantize_tokens(x), int8.MIDDLE),
        (gelu := torch.nn.functional.gelu(x), int8.quantize_gelu(gelu), int8.GELU_ZERO),
    ):
        error = (quantized.float() - zero) * scale[:, None] - values
        assert (error.abs() <= 0.5001 * scale[:, None]).all()


def test_texts_have_the_lengths_they_were_drawn_for(minilm: Checkpoint) -> None:
    assert minilm.tokenizer_json is not None
    sequences = text_sequences(fitting_strata(512), minilm.tokenizer_json, np.random.default_rng(0))
    lengths = np.array([len(ids) for ids in sequences])
    assert [int(((lengths >= low) & (lengths <= high)).sum()) for low, high in certificate.STRATA] == [32] * 4
    assert len({ids.tobytes() for ids in sequences}) > 120
    assert len(read_paragraphs()) > 100
    assert fitting_strata(1) == [(1, 1)]


def test_neighbours_overlap_by_the_share_that_stays() -> None:
    angles = np.arange(40) * (np.pi / 80)
    around = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert neighbour_overlap(around, around) == 1
    # Of row 0 the ten nearest become the ten that were nearest to row 39, and the other way round.
    swapped = around[[39, *range(1, 39), 0]]
    assert 0.5 < neighbour_overlap(swapped, around) < 1
