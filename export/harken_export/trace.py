"""PyTorch to one ONNX file, weights inside, with batch and length left open.

The form of the graph was chosen by measuring (tests/bench/graph_forms.py).
"""

import copy
import warnings
from pathlib import Path

import onnx
import torch

from .bundle import Precision
from .errors import ModelTooLarge
from .int8 import quantize
from .model import Encoder, EncoderConfig

GRAPH = "trace"
# 20 has Gelu: int8's does not match the pattern that ONNX Runtime would fuse, and its parts take three times as long.
OPSETS: dict[Precision, int] = {"fp32": 17, "fp16": 17, "int8": 20}
INPUTS = ("input_ids", "attention_mask")
OUTPUTS = ("sentence_embedding", "token_embeddings")

# A protobuf message ends at 2 GiB; the graph around the weights needs far less than the rest.
MAX_WEIGHTS_BYTES = 2**31 - 2**24


def refuse_too_large(config: EncoderConfig, precision: Precision) -> None:
    """Raises ModelTooLarge if an encoder of these sizes does not fit one ONNX file. Needs no weights."""
    refuse_size(config.weights * (2 if precision == "fp16" else 4))


def refuse_size(size_bytes: int) -> None:
    if size_bytes > MAX_WEIGHTS_BYTES:
        raise ModelTooLarge(size_bytes, MAX_WEIGHTS_BYTES)


def write_onnx(encoder: Encoder, precision: Precision, path: Path) -> None:
    """Write the encoder as ONNX. `encoder` is float32 and stays so. Raises ModelTooLarge above 2 GB.

    fp16 means weights and arithmetic in half; layer norm and softmax sum in float32 inside ONNX Runtime's
    kernels, pooling and the outputs are float32. int8 is QuantizedEncoder's form.
    """
    if precision == "fp16":
        encoder = copy.deepcopy(encoder).half()
    elif precision == "int8":
        encoder = quantize(encoder)
    refuse_size(sum(weight.numel() * weight.element_size() for weight in encoder.state_dict().values()))

    input_ids = torch.tensor([[1, 2, 3], [4, 5, 0]]) % encoder.embeddings.word.num_embeddings
    attention_mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    open_axes = {0: "batch", 1: "length"}
    with warnings.catch_warnings(), torch.no_grad():
        # Chosen knowingly: without a session config the new exporter's graph is slower on CPUs (docs/export.md).
        warnings.filterwarnings("ignore", "You are using the legacy TorchScript-based", DeprecationWarning)
        # Raised inside torch by its own call of setup_onnx_logging.
        warnings.filterwarnings("ignore", "The feature will be removed", DeprecationWarning)
        torch.onnx.export(
            encoder,
            (input_ids, attention_mask),
            path,
            dynamo=False,
            opset_version=OPSETS[precision],
            input_names=INPUTS,
            output_names=OUTPUTS,
            dynamic_axes={
                "input_ids": open_axes,
                "attention_mask": open_axes,
                "sentence_embedding": {0: "batch"},
                "token_embeddings": open_axes,
            },
        )
    onnx.checker.check_model(path)
