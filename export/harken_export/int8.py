"""The encoder with its linear layers in 8-bit integers, so that a sequence's vector does not depend on its batch.

Each token's activations are quantised by a scale of their own, taken over the last axis, and each output channel's
weights by one of theirs: y = s[t] * w[n] * sum_k (q[t, k] - zero) * v[k, n], q in uint8 and v in int8. Nothing is
shared between the tokens of a batch. A large operator pass costs as much as a fifth of a product, so there are few:
QuantizeLinear and DequantizeLinear along the token axis scale, round and convert in one pass each; query, key and
value share one quantisation; and what softmax or the next product can absorb is folded away (`QuantizedAttention`).

The letters are model.py's, and T = B L, the tokens of the batch with their padding.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .model import Encoder, FeedForward, Layer, SelfAttention, mean_pool, padding_bias

# ONNX Runtime's signed-activation kernels are many times slower, hence uint8 with its middle as zero.
MIDDLE = 128
# gelu is never below -0.17: nearly all levels are for what is positive, as long as scale * zero reaches that far.
GELU_ZERO, GELU_MINIMUM = 16, 0.17
# A token of zeros must not divide by zero.
MIN_SCALE = 1e-8


class Quantize(torch.autograd.Function):
    """uint8 round(x / scale) + zero, at most 255. float32 [T, K], scale float32 [T], zero uint8 [T] -> [T, K]."""

    @staticmethod
    def forward(_: Any, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return ((x / scale[:, None]).round() + zero[:, None]).clamp(0, 255).to(torch.uint8)

    @staticmethod
    def symbolic(graph: Any, x: Any, scale: Any, zero: Any) -> Any:
        """As one ONNX operator."""
        return graph.op("QuantizeLinear", x, scale, zero, axis_i=0)


class Product(torch.autograd.Function):
    """scale * (x - zero) @ weight. uint8 [T, K], float32 [T], int8 [K, N], a uint8 number -> float32 [T, N]."""

    @staticmethod
    def forward(_: Any, x: Tensor, scale: Tensor, weight: Tensor, zero: int) -> Tensor:
        # float64 holds every sum exactly, as int32 does in ONNX Runtime.
        return ((x.double() - zero) @ weight.double()).float() * scale[:, None]

    @staticmethod
    def symbolic(graph: Any, x: Any, scale: Any, weight: Any, zero: int) -> Any:
        """As two ONNX operators, the second of which converts and scales."""
        zero_point = graph.op("Constant", value_t=torch.tensor(zero, dtype=torch.uint8))
        return graph.op("DequantizeLinear", graph.op("MatMulInteger", x, weight, zero_point), scale, axis_i=0)


def quantized(x: Tensor, scale: Tensor, zero: int) -> Tensor:
    zeros = torch.full_like(scale, zero, dtype=torch.uint8)
    output: Tensor = Quantize.apply(x, scale, zeros)  # type: ignore[no-untyped-call]  # torch's apply has no types
    return output


def product(x: Tensor, scale: Tensor, weight: Tensor, zero: int) -> Tensor:
    output: Tensor = Product.apply(x, scale, weight, zero)  # type: ignore[no-untyped-call]  # torch's apply has no types
    return output


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [N, K] -> int8 [K, N] and the scale float32 [N] of each output channel."""
    scale = (weight.abs().amax(1) / 127).clamp(min=MIN_SCALE)
    return (weight / scale[:, None]).round().to(torch.int8).T.contiguous(), scale


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [T, K] -> uint8 [T, K] with its zero at MIDDLE, and the scale float32 [T] of each token."""
    # Two reductions: they only read, where the absolute value would write a third array.
    largest = torch.maximum(x.amax(1), -x.amin(1))
    scale = (largest * (1 / 127)).clamp(min=MIN_SCALE)
    return quantized(x, scale, MIDDLE), scale


def quantize_gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of gelu: float32 [T, K] -> uint8 [T, K] with its zero at GELU_ZERO, and the scale float32 [T]."""
    scale = (x.amax(1) * (1 / (255 - GELU_ZERO))).clamp(min=GELU_MINIMUM / GELU_ZERO)
    return quantized(x, scale, GELU_ZERO), scale


class QuantizedLinear(nn.Module):
    """x W^T + b of tokens that are quantised already: uint8 [T, K] and scale float32 [T] -> float32 [T, N]."""

    weight: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, zero: int = MIDDLE) -> None:
        super().__init__()
        quantized, scale = quantize_weight(weight)
        self.register_buffer("weight", quantized)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", bias / scale)
        self.zero = zero

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        # Added before it is scaled: ONNX Runtime would fuse a bias just before gelu, into something slower.
        return (product(x, scale, self.weight, self.zero) + self.shift) * self.scale


class QuantizedAttention(nn.Module):
    """What SelfAttention computes, [T, H] -> [T, H], with these parts folded away:

    the key's bias adds the same to all scores of a query, so softmax drops it; the key's weight scale and 1 / sqrt(D)
    scale the query instead; weights of softmax sum to 1, so the value's bias and weight scale pass into the output's.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    query_scale: Tensor
    query_shift: Tensor

    def __init__(self, attention: SelfAttention) -> None:
        super().__init__()
        self.heads, self.head_size = attention.heads, attention.head_size
        query, key, value, output = attention.query, attention.key, attention.value, attention.output
        # Three products over one quantisation: one of threefold width would have to be split again, which costs more.
        quantized_query, query_scale = quantize_weight(query.weight)
        quantized_key, key_scale = quantize_weight(key.weight)
        quantized_value, value_scale = quantize_weight(value.weight)
        self.register_buffer("query", quantized_query)
        self.register_buffer("key", quantized_key)
        self.register_buffer("value", quantized_value)
        self.register_buffer("query_scale", query_scale * key_scale * self.head_size**-0.5)
        self.register_buffer("query_shift", query.bias / query_scale)
        self.output = QuantizedLinear(output.weight * value_scale, output.bias + output.weight @ value.bias)

    def forward(self, hidden: Tensor, bias: Tensor, batch: int, length: int) -> Tensor:
        def split_heads(tokens: Tensor) -> Tensor:
            return tokens.view(batch, length, self.heads, self.head_size).transpose(1, 2)  # [B, N, L, D]

        x, scale = quantize_tokens(hidden)
        query, key, value = (product(x, scale, weight, MIDDLE) for weight in (self.query, self.key, self.value))
        query = (query + self.query_shift) * self.query_scale
        scores = split_heads(query) @ split_heads(key).transpose(-1, -2) + bias  # [B, N, L, L]
        heads = scores.softmax(-1) @ split_heads(value)
        joined = heads.transpose(1, 2).reshape(-1, self.heads * self.head_size)  # [T, H]
        output: Tensor = self.output(*quantize_tokens(joined))
        return output


class QuantizedFeedForward(nn.Module):
    """What FeedForward computes, [T, H] -> [T, H]."""

    def __init__(self, feed_forward: FeedForward) -> None:
        super().__init__()
        self.up = QuantizedLinear(feed_forward.up.weight, feed_forward.up.bias)
        self.down = QuantizedLinear(feed_forward.down.weight, feed_forward.down.bias, GELU_ZERO)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.down(*quantize_gelu(nn.functional.gelu(self.up(*quantize_tokens(hidden)))))
        return output


class QuantizedLayer(nn.Module):
    """What Layer computes, [T, H] -> [T, H]."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.attention = QuantizedAttention(layer.attention)
        self.attention_norm = layer.attention_norm
        self.feed_forward = QuantizedFeedForward(layer.feed_forward)
        self.feed_forward_norm = layer.feed_forward_norm

    def forward(self, hidden: Tensor, bias: Tensor, batch: int, length: int) -> Tensor:
        hidden = self.attention_norm(hidden + self.attention(hidden, bias, batch, length))
        hidden = self.feed_forward_norm(hidden + self.feed_forward(hidden))
        return hidden


class QuantizedEncoder(Encoder):
    """Inputs and outputs as Encoder's. Embeddings, layer norms, attention's own products and pooling stay float32."""

    def __init__(self, encoder: Encoder) -> None:
        nn.Module.__init__(self)
        encoder = copy.deepcopy(encoder)
        self.embeddings = encoder.embeddings
        self.layers = nn.ModuleList(QuantizedLayer(layer) for layer in encoder.layers if isinstance(layer, Layer))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        batch, length = input_ids.shape
        embedded = self.embeddings(input_ids)
        bias = padding_bias(attention_mask, embedded.dtype)
        hidden = embedded.view(-1, embedded.shape[-1])  # [T, H]
        for layer in self.layers:
            hidden = layer(hidden, bias, batch, length)
        token_embeddings = hidden.view(batch, length, -1)  # [B, L, H]
        return mean_pool(token_embeddings, attention_mask), token_embeddings


def quantize(encoder: Encoder) -> QuantizedEncoder:
    """The int8 form of a float32 `encoder`, which stays as it is. It runs in PyTorch, to the same integers."""
    with torch.no_grad():
        return QuantizedEncoder(encoder).requires_grad_(False).eval()
