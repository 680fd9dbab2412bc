"""Encoders to export, small enough that an export takes a fraction of a second."""

import json
from pathlib import Path

import pytest
import torch
from harken_export import checkpoints
from harken_export.checkpoints import EMBEDDING_NAMES, LAYER_NAMES, Checkpoint
from harken_export.model import EncoderConfig
from safetensors.torch import save_file

ADDED_TOKEN_SWITCHES = ("single_word", "lstrip", "rstrip", "normalized")

TINY = EncoderConfig(layers=2, heads=2, hidden_size=32, intermediate_size=64, vocab_size=100, max_length=40)


@pytest.fixture(scope="session")
def tiny() -> Checkpoint:
    return checkpoints.random(TINY, seed=0)


@pytest.fixture(scope="session")
def minilm() -> Checkpoint:
    return checkpoints.minilm()


@pytest.fixture
def folder(tiny: Checkpoint, tmp_path: Path) -> Path:
    """The tiny encoder as a Hugging Face folder, written by hand: every test may spoil its own."""
    folder = tmp_path / "tiny-bert"
    folder.mkdir()
    tensors = {theirs: tiny.state[ours].clone() for ours, theirs in EMBEDDING_NAMES.items()}
    types = tensors["embeddings.token_type_embeddings.weight"]
    tensors["embeddings.token_type_embeddings.weight"] = torch.stack([types, types + 1])
    for layer in range(TINY.layers):
        for ours, theirs in LAYER_NAMES.items():
            for kind in ("weight", "bias"):
                tensors[f"encoder.layer.{layer}.{theirs}.{kind}"] = tiny.state[f"layers.{layer}.{ours}.{kind}"].clone()
    save_file(tensors, folder / "model.safetensors")
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "num_hidden_layers": TINY.layers,
        "num_attention_heads": TINY.heads,
        "hidden_size": TINY.hidden_size,
        "intermediate_size": TINY.intermediate_size,
        "vocab_size": TINY.vocab_size,
        "max_position_embeddings": TINY.max_length,
        "layer_norm_eps": TINY.layer_norm_epsilon,
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = {
        "padding": {"strategy": {"Fixed": 128}},
        "truncation": {"max_length": 128},
        "added_tokens": [{"id": 99, "content": "[MASK]", "special": True} | dict.fromkeys(ADDED_TOKEN_SWITCHES, False)],
        "model": {
            "type": "WordPiece",
            "vocab": {"[PAD]": 0, "wörld": 1},
            "unk_token": "[PAD]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder
