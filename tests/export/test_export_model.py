"""The encoder computes BERT, whatever lies in the padding."""

from pathlib import Path
from typing import Any

import pytest
import torch
from harken_export import checkpoints
from harken_export.checkpoints import Checkpoint
from harken_export.errors import InvalidConfig
from harken_export.model import EncoderConfig
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import BertConfig, BertModel

Rows = st.lists(st.integers(1, 40), min_size=1, max_size=6)
Seeds = st.integers(0, 2**32 - 1)


def ragged(lengths: list[int], vocab_size: int, seed: int) -> tuple[Tensor, Tensor]:
    """ids [B, L], garbage also in the padded cells, and mask [B, L]."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocab_size, (len(lengths), max(lengths)), generator=generator)
    return ids, (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


def reference(bert: BertModel, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """What transformers gives, pooled as sentence-transformers documents it."""
    with torch.no_grad():
        tokens: Tensor = bert(input_ids=ids, attention_mask=mask).last_hidden_state
    real = mask.unsqueeze(-1).float()
    return torch.nn.functional.normalize((tokens * real).sum(1) / real.sum(1)), tokens


def assert_equals_bert(checkpoint: Checkpoint, bert: BertModel, lengths: list[int]) -> None:
    ids, mask = ragged(lengths, checkpoint.config.vocab_size, seed=1)
    sentence, tokens = checkpoint.encoder()(ids, mask)
    expected_sentence, expected_tokens = reference(bert, ids, mask)
    torch.testing.assert_close(sentence, expected_sentence, atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens[mask.bool()], expected_tokens[mask.bool()], atol=1e-5, rtol=0)


def test_minilm_equals_bert_of_transformers(minilm: Checkpoint) -> None:
    bert = BertModel.from_pretrained(checkpoints.minilm_folder())
    assert_equals_bert(minilm, bert, [512, 1, 30, 7, 128])


def test_a_random_encoder_equals_bert_of_transformers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bert = BertModel(
        BertConfig(
            num_hidden_layers=3,
            num_attention_heads=4,
            hidden_size=64,
            intermediate_size=100,
            vocab_size=200,
            max_position_embeddings=50,
            layer_norm_eps=1e-5,
            initializer_range=0.1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    bert.save_pretrained(tmp_path)
    assert_equals_bert(checkpoints.from_folder(tmp_path), bert, [50, 1, 2, 49, 17])


@settings(max_examples=40)
@given(lengths=Rows, seed=Seeds, garbage_seed=Seeds)
def test_garbage_in_padded_cells_changes_nothing(
    tiny: Checkpoint, lengths: list[int], seed: int, garbage_seed: int
) -> None:
    ids, mask = ragged(lengths, tiny.config.vocab_size, seed)
    garbage, _ = ragged(lengths, tiny.config.vocab_size, garbage_seed)
    encoder = tiny.encoder()
    sentence, tokens = encoder(ids, mask)
    other_sentence, other_tokens = encoder(torch.where(mask.bool(), ids, garbage), mask)
    torch.testing.assert_close(other_sentence, sentence, atol=0, rtol=0)
    torch.testing.assert_close(other_tokens[mask.bool()], tokens[mask.bool()], atol=0, rtol=0)


@settings(max_examples=40)
@given(lengths=Rows, seed=Seeds)
def test_a_sequence_alone_equals_itself_in_any_batch(tiny: Checkpoint, lengths: list[int], seed: int) -> None:
    ids, mask = ragged(lengths, tiny.config.vocab_size, seed)
    encoder = tiny.encoder()
    together, _ = encoder(ids, mask)
    alone = [encoder(ids[row : row + 1, :n], mask[row : row + 1, :n])[0][0] for row, n in enumerate(lengths)]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_row_without_a_real_token_gives_zeros_and_not_nan(tiny: Checkpoint, dtype: torch.dtype) -> None:
    ids, mask = ragged([3, 1], tiny.config.vocab_size, seed=0)
    mask[1] = 0
    sentence, tokens = tiny.encoder().to(dtype)(ids, mask)
    assert sentence.dtype is tokens.dtype is torch.float32
    assert sentence[1].tolist() == [0.0] * tiny.config.hidden_size
    assert tokens.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "hidden_size 32 is not divisible by heads 3"),
        ({"layers": 0}, "layers is 0, it must be at least 1"),
        ({"vocab_size": -1}, "vocab_size is -1, it must be at least 1"),
    ],
)
def test_sizes_that_describe_no_encoder_are_refused(change: dict[str, Any], message: str) -> None:
    sizes = {"layers": 2, "heads": 2, "hidden_size": 32, "intermediate_size": 64, "vocab_size": 9, "max_length": 9}
    with pytest.raises(InvalidConfig) as refusal:
        EncoderConfig(**(sizes | change))
    assert str(refusal.value) == message


def test_the_number_of_weights_follows_from_the_sizes(tiny: Checkpoint) -> None:
    assert tiny.config.weights == sum(weight.numel() for weight in tiny.encoder().parameters())
