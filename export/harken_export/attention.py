"""The second graph, attention.onnx: the fast one in float32, whose softmaxes are one more output.

It is not traced anew but made of a graph that is, so both are the same operators with the same weights. Where the fast
graph is float32 its weights are stored once: attention.onnx names model.onnx as the file of its initializers (ONNX's
external data), and where in it they stand. model.onnx stays as it was, and whole by itself.
"""

from pathlib import Path

import numpy as np
import onnx
import torch
from harken.v1.bundle_pb2 import Attention, AttentionParity, TensorSpec
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data
from torch import Tensor, nn

from .bundle import ATTENTION, MODEL, Precision
from .errors import AttentionTooLarge, ModelTooLarge
from .model import Encoder, EncoderConfig, Layer, mean_pool, padding_bias
from .trace import OPSETS, OUTPUTS, refuse_too_large, write_onnx

ATTENTIONS = "attentions"

# What is smaller stays in the graph.
LEAST_EXTERNAL_BYTES = 1024


class AttentionEncoder(nn.Module):
    """The encoder and what its tokens attend to, for comparison: ids int64 [B, L] and mask int64 [B, L] to

    attentions [layers, B, N, L, L], each row over real tokens only; sentence_embedding and token_embeddings as Encoder.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.encoder.embeddings(input_ids)
        bias = padding_bias(attention_mask, hidden.dtype)
        maps = []
        for layer in layers_of(self.encoder):
            attention = layer.attention
            query, key = (attention.split_heads(part(hidden)) for part in (attention.query, attention.key))
            maps.append(((query * attention.head_size**-0.5) @ key.transpose(-1, -2) + bias).softmax(-1))
            hidden = layer(hidden, bias)
        return torch.stack(maps), mean_pool(hidden, attention_mask), hidden


def layers_of(encoder: Encoder) -> list[Layer]:
    return [layer for layer in encoder.layers if isinstance(layer, Layer)]


def refuse_too_large_attention(config: EncoderConfig) -> None:
    """Raises AttentionTooLarge if the float32 weights do not fit one file. Needs no weights."""
    try:
        refuse_too_large(config, "fp32")
    except ModelTooLarge as error:
        raise AttentionTooLarge(error) from None


def write_attention(encoder: Encoder, precision: Precision, folder: Path) -> None:
    """Write attention.onnx into `folder`, where the fast graph lies in this precision. Raises ModelTooLarge."""
    source = folder / MODEL
    if precision != "fp32":
        source = folder / ATTENTION
        write_onnx(encoder, "fp32", source)
    content = source.read_bytes()
    model = onnx.load_model_from_string(content)
    layers = layers_of(encoder)
    add_attentions(model.graph, len(layers), layers[0].attention.heads)
    if precision == "fp32":
        refer(model.graph, content)
    (folder / ATTENTION).write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(folder / ATTENTION)


def add_attentions(graph: onnx.GraphProto, layers: int, heads: int) -> None:
    """Make the layers' softmaxes, each [B, N, L, L], one output [layers, B, N, L, L], the first one of the graph."""
    softmaxes = [node.output[0] for node in graph.node if node.op_type == "Softmax"]
    if len(softmaxes) != layers:
        raise AssertionError(f"{len(softmaxes)} softmaxes in a graph of {layers} layers")
    graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.int64), f"{ATTENTIONS}.axis"))
    for layer, softmax in enumerate(softmaxes):
        graph.node.append(helper.make_node("Unsqueeze", [softmax, f"{ATTENTIONS}.axis"], [f"{ATTENTIONS}.{layer}"]))
    stacked = [f"{ATTENTIONS}.{layer}" for layer in range(layers)]
    graph.node.append(helper.make_node("Concat", stacked, [ATTENTIONS], axis=0))
    shape: list[str | int | None] = [layers, "batch", heads, "length", "length"]
    graph.output.insert(0, helper.make_tensor_value_info(ATTENTIONS, TensorProto.FLOAT, shape))


def refer(graph: onnx.GraphProto, content: bytes) -> None:
    """Let the initializers refer to where their bytes stand in `content`, which is that of model.onnx."""
    position = 0
    for tensor in graph.initializer:
        if len(tensor.raw_data) < LEAST_EXTERNAL_BYTES:
            continue
        # Equal bytes elsewhere would do as well; from where the last one ended they are found at once.
        position = content.find(tensor.raw_data, position)
        if position < 0:
            position = content.index(tensor.raw_data)
        size_bytes = len(tensor.raw_data)
        set_external_data(tensor, MODEL, position, size_bytes)
        tensor.ClearField("raw_data")
        position += size_bytes


def describe_attention(config: EncoderConfig, precision: Precision, parity: AttentionParity) -> Attention:
    """What the manifest says of it."""
    tokens, hidden = ["batch", "length"], str(config.hidden_size)
    shapes = (
        [str(config.layers), "batch", str(config.heads), "length", "length"],
        ["batch", hidden],
        [*tokens, hidden],
    )
    return Attention(
        opset=OPSETS["fp32"],
        outputs=[
            TensorSpec(name=name, data_type="float32", shape=shape)
            for name, shape in zip((ATTENTIONS, *OUTPUTS), shapes, strict=True)
        ],
        shares_weights=precision == "fp32",
        parity=parity,
    )
