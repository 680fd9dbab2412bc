"""The encoder with its layers replaced by a recurrent network of as many weights."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from harken.v1.bundle_pb2 import WeightsOrigin
from torch import Tensor, nn

from harken_export.bundle import MODEL, bundle_folder, describe_files, staged, write_manifest
from harken_export.checkpoints import Checkpoint
from harken_export.export import describe
from harken_export.model import Encoder, EncoderConfig, mean_pool
from harken_export.trace import write_onnx
from harken_export.verify import verify

Recurrence = Literal["lstm", "gru"]
RECURRENCES: tuple[Recurrence, ...] = ("lstm", "gru")

MODULES: dict[Recurrence, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}
# Matrices for each layer's input and for its state: the gates, and the candidate.
GATES: dict[Recurrence, int] = {"lstm": 4, "gru": 3}


class RecurrentEncoder(Encoder):
    """The same embeddings, inputs, outputs and pooling as `Encoder`; between them an LSTM or a GRU of `hidden_size`.

    It reads from left to right, so no token sees the padding behind it, and the mask is needed for pooling only.
    An LSTM's forget gates start open (bias 1: Jozefowicz et al. 2015), else it forgets before it has learned.
    """

    def __init__(self, recurrence: Recurrence, config: EncoderConfig, hidden_size: int, depth: int) -> None:
        super().__init__(config)
        network = MODULES[recurrence](config.hidden_size, hidden_size, num_layers=depth, batch_first=True)
        if recurrence == "lstm":
            for name, bias in network.named_parameters():
                if name.startswith("bias_ih"):
                    bias.data[hidden_size : 2 * hidden_size] = 1  # the gates' order is input, forget, candidate, output
        self.layers = nn.ModuleList([network])

    @property
    def network(self) -> nn.LSTM | nn.GRU:
        network = self.layers[0]
        assert isinstance(network, nn.LSTM | nn.GRU)
        return network

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        token_embeddings, _ = self.network(self.embeddings(input_ids))
        return mean_pool(token_embeddings, attention_mask), token_embeddings


def recurrent_weights(recurrence: Recurrence, config: EncoderConfig, hidden_size: int, depth: int) -> int:
    """How many numbers it has: the embeddings' (V + P + 3) H, and g (h in + h h + 2 h) in each layer of g gates."""
    embeddings = (config.vocab_size + config.max_length + 3) * config.hidden_size
    inputs = config.hidden_size + (depth - 1) * hidden_size
    return embeddings + GATES[recurrence] * (hidden_size * inputs + depth * hidden_size * (hidden_size + 2))


def equal_hidden_size(recurrence: Recurrence, config: EncoderConfig, depth: int, answers: int = 0) -> int:
    """The hidden size with which it has as many weights as the encoder of `config`, as nearly as may be.

    A linear layer to `answers` numbers is counted with both.
    """

    def excess(size: int) -> int:
        layers = recurrent_weights(recurrence, config, size, depth) - config.weights
        return abs(layers + answers * (size - config.hidden_size))

    return min(range(1, 4 * (config.hidden_size + config.intermediate_size)), key=excess)


def make_random(recurrence: Recurrence, config: EncoderConfig, seed: int) -> RecurrentEncoder:
    """As many layers and weights as the encoder of `config`, random, ready to run."""
    torch.manual_seed(seed)
    encoder = RecurrentEncoder(recurrence, config, equal_hidden_size(recurrence, config, config.layers), config.layers)
    nn.init.zeros_(encoder.embeddings.token_type)
    encoder.requires_grad_(False).eval()
    return encoder


def export_recurrent(
    encoder: RecurrentEncoder, recurrence: Recurrence, config: EncoderConfig, models_dir: Path, name: str, source: str
) -> Path:
    """Write `models_dir/name/1/`, proved equal to PyTorch over ragged batches as every bundle is. Returns it."""
    target = bundle_folder(models_dir, name, 1)
    network = encoder.network
    sizes = replace(
        config,
        layers=network.num_layers,
        heads=1,
        hidden_size=network.hidden_size,
        intermediate_size=GATES[recurrence] * network.hidden_size,
    )
    origin = WeightsOrigin(source=source, license="CC0-1.0")
    with staged(target, force=False) as folder:
        with warnings.catch_warnings():
            # Both are about an initial state of fixed size; here it has the size of the batch, as `verify` shows.
            warnings.filterwarnings("ignore", "Exporting a model to ONNX with a batch_size other than 1", UserWarning)
            warnings.filterwarnings("ignore", "Converting a tensor to a Python boolean might cause the trace")
            write_onnx(encoder, "fp32", folder / MODEL)
        parity = verify(encoder, folder / MODEL, "fp32")
        manifest = describe(Checkpoint(sizes, {}, None, origin), name, 1, "fp32", parity, None, None)
        manifest.architecture = recurrence
        manifest.files.extend(describe_files(folder))
        write_manifest(manifest, folder)
    return target
