"""A graph that computes something else than the PyTorch module does not pass."""

from pathlib import Path

import numpy as np
import onnxruntime  # type: ignore[import-untyped]  # ships no types
import pytest
import torch
from harken_export.bundle import Precision
from harken_export.checkpoints import Checkpoint
from harken_export.errors import ParityFailed
from harken_export.model import Encoder
from harken_export.trace import write_onnx
from harken_export.verify import BOUNDS, Batch, grid, hold, make_batch, run_onnx, verify
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

Seeds = st.integers(0, 2**32 - 1)


class Deaf(Encoder):
    """Does not hear that some tokens are padding."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(input_ids, torch.ones_like(attention_mask) + 0 * attention_mask)


class Numb(Encoder):
    """Gives right sentences and wrong tokens."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        sentence, tokens = super().forward(input_ids, attention_mask)
        return sentence, tokens * 1.001


def refusal(encoder: Encoder, path: Path, precision: Precision = "fp32") -> ParityFailed:
    with pytest.raises(ParityFailed) as failure:
        verify(encoder, path, precision)
    return failure.value


@pytest.fixture(scope="session")
def tiny_onnx(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "model.onnx"
    write_onnx(tiny.encoder(), "fp32", path)
    return path


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_faithful_graph_passes_with_its_figures(tiny: Checkpoint, tmp_path: Path, precision: Precision) -> None:
    write_onnx(tiny.encoder(), precision, tmp_path / "model.onnx")
    parity = verify(tiny.encoder(), tmp_path / "model.onnx", precision)
    bounds = BOUNDS[precision]
    assert {case.name: tuple(case.lengths) for case in parity.cases} == grid(40)
    assert parity.bound_max_abs == bounds.max_abs
    assert parity.max_abs == max(case.sentence_max_abs for case in parity.cases) <= bounds.max_abs
    assert parity.min_cosine == min(case.min_cosine for case in parity.cases) >= bounds.min_cosine
    assert 0 <= parity.batch_max_abs <= bounds.batch_max_abs
    # fp16 that differs from fp32 by nothing would be no fp16.
    assert (parity.max_abs > 1e-5) == (precision == "fp16")


def test_the_grid_has_every_kind_of_batch() -> None:
    assert grid(40) == {
        "one token alone": (1,),
        "the longest alone": (40,),
        "lengths 1 to n": tuple(range(1, 17)),
        "all of one length": (10, 10, 10, 10),
        "one long among short": (40, 1, 2, 3, 4, 5, 6, 7),
        "doubling to the longest": (1, 2, 4, 8, 16, 32, 40),
    }
    assert all(1 <= length <= 1 for lengths in grid(1).values() for length in lengths)


def test_one_changed_weight_is_found(tiny: Checkpoint, tiny_onnx: Path) -> None:
    encoder = tiny.encoder()
    encoder.get_parameter("layers.1.feed_forward.down.bias")[3] += 0.01
    failure = refusal(encoder, tiny_onnx)
    assert (failure.case, failure.figure, failure.bound) == ("one token alone", "max abs of sentence vectors", 1e-4)
    assert failure.value > 1e-4
    assert str(failure) == (
        f"parity failed in case 'one token alone': max abs of sentence vectors is {failure.value:.3g}, "
        "the bound is 0.0001"
    )


def test_wrong_tokens_behind_right_sentences_are_found(tiny: Checkpoint, tmp_path: Path) -> None:
    encoder = tiny.encoder()
    encoder.__class__ = Numb
    write_onnx(encoder, "fp32", tmp_path / "model.onnx")
    failure = refusal(tiny.encoder(), tmp_path / "model.onnx")
    assert failure.figure == "relative max abs of token vectors"
    assert failure.value == pytest.approx(1e-3, rel=0.01)


def test_a_graph_without_mask_is_found(tiny: Checkpoint, tmp_path: Path) -> None:
    deaf = tiny.encoder()
    deaf.__class__ = Deaf
    write_onnx(deaf, "fp32", tmp_path / "model.onnx")
    assert refusal(tiny.encoder(), tmp_path / "model.onnx").case == "lengths 1 to n"
    # Even where PyTorch agrees: a sequence must not depend on its companions.
    failure = refusal(deaf, tmp_path / "model.onnx")
    assert (failure.case, failure.figure) == ("one long among short", "max abs between alone and in the batch")


def test_nan_is_found(tiny: Checkpoint, tmp_path: Path) -> None:
    broken = tiny.encoder()
    broken.get_parameter("embeddings.token_type")[0] = torch.nan
    write_onnx(broken, "fp32", tmp_path / "model.onnx")
    failure = refusal(tiny.encoder(), tmp_path / "model.onnx")
    assert (failure.figure, np.isnan(failure.value)) == ("max abs of sentence vectors", True)


def test_weights_too_large_for_half_are_found(tiny: Checkpoint, tmp_path: Path) -> None:
    large = tiny.encoder()
    large.get_parameter("layers.0.feed_forward.up.weight").mul_(1e6)
    write_onnx(large, "fp16", tmp_path / "model.onnx")
    assert refusal(large, tmp_path / "model.onnx", "fp16").figure == "max abs of sentence vectors"


def test_each_bound_holds_on_its_own_side() -> None:
    hold("case", "figure", 1.0, at_most=1.0)
    hold("case", "figure", 1.0, at_least=1.0)
    with pytest.raises(ParityFailed, match=r"figure is 0\.9, the bound is 1"):
        hold("case", "figure", 0.9, at_least=1.0)


@settings(max_examples=30)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), seed=Seeds, garbage_seed=Seeds)
def test_garbage_in_padded_cells_changes_nothing_in_onnx(
    tiny: Checkpoint, tiny_onnx: Path, lengths: list[int], seed: int, garbage_seed: int
) -> None:
    session = onnxruntime.InferenceSession(tiny_onnx, providers=["CPUExecutionProvider"])
    batch = make_batch(tuple(lengths), tiny.config.vocab_size, np.random.default_rng(seed))
    garbage = np.random.default_rng(garbage_seed).integers(0, tiny.config.vocab_size, batch.ids.shape)
    real = batch.mask.astype(bool)
    spoilt = Batch(np.where(real, batch.ids, garbage), batch.mask, batch.lengths)
    vectors, others = run_onnx(session, batch), run_onnx(session, spoilt)
    np.testing.assert_array_equal(others.sentence, vectors.sentence)
    np.testing.assert_array_equal(others.tokens[real], vectors.tokens[real])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_row_without_a_real_token_gives_zeros_in_onnx(tiny: Checkpoint, tmp_path: Path, precision: Precision) -> None:
    write_onnx(tiny.encoder(), precision, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    batch = make_batch((3, 2), tiny.config.vocab_size, np.random.default_rng(0))
    batch.mask[1] = 0
    vectors = run_onnx(session, batch)
    np.testing.assert_array_equal(vectors.sentence[1], np.zeros(tiny.config.hidden_size, np.float32))
    assert np.isfinite(vectors.tokens).all()
