"""The encoder: BERT (Devlin et al. 2019) with mean pooling, written as its equations.

The letters of every shape in this file:

    B  sequences in the batch            N  attention heads
    L  padded length, in tokens          D  size of one head, D = H / N
    H  hidden size                       F  size of the feed-forward layer
    V  size of the vocabulary            P  longest length, in tokens
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .errors import InvalidConfig


@dataclass(frozen=True)
class EncoderConfig:
    """The sizes of an encoder. Raises InvalidConfig if they describe none."""

    layers: int
    heads: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    max_length: int
    layer_norm_epsilon: float = 1e-12

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "hidden_size", "intermediate_size", "vocab_size", "max_length"):
            if getattr(self, name) < 1:
                raise InvalidConfig(f"{name} is {getattr(self, name)}, it must be at least 1")
        if self.hidden_size % self.heads:
            raise InvalidConfig(f"hidden_size {self.hidden_size} is not divisible by heads {self.heads}")

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.heads

    @property
    def weights(self) -> int:
        """How many numbers the encoder has: (V + P + 3) H, and 4 H^2 + 9 H + 2 H F + F in each layer."""
        hidden, feed_forward = self.hidden_size, self.intermediate_size
        layer = 4 * hidden * hidden + 9 * hidden + 2 * hidden * feed_forward + feed_forward
        return (self.vocab_size + self.max_length + 3) * hidden + self.layers * layer


class Embeddings(nn.Module):
    """Word + position + token type 0, then layer norm. ids [B, L] -> hidden [B, L, H]."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position = nn.Embedding(config.max_length, config.hidden_size)
        self.token_type = nn.Parameter(torch.empty(config.hidden_size))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)

    def forward(self, input_ids: Tensor) -> Tensor:
        # A sum of constants: ONNX Runtime folds it at load. The brackets keep it one.
        place = (self.position.weight + self.token_type)[: input_ids.shape[1]]
        hidden: Tensor = self.norm(self.word(input_ids) + place)
        return hidden


class SelfAttention(nn.Module):
    """softmax(Q K^T / sqrt(D) + bias) V for each head (Vaswani et al. 2017, section 3.2).

    hidden [B, L, H] and the bias [B, 1, 1, L] of `padding_bias` -> [B, L, H].
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads, self.head_size = config.heads, config.head_size
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        query = self.split_heads(self.query(hidden))
        key = self.split_heads(self.key(hidden))
        value = self.split_heads(self.value(hidden))

        # The query is scaled, not the scores: in float16 unscaled scores may overflow.
        scores = (query * self.head_size**-0.5) @ key.transpose(-1, -2) + bias  # [B, N, L, L]
        heads = scores.softmax(-1) @ value
        output: Tensor = self.output(self.join_heads(heads))
        return output

    def split_heads(self, hidden: Tensor) -> Tensor:
        batch, length, _ = hidden.shape
        return hidden.view(batch, length, self.heads, self.head_size).transpose(1, 2)  # [B, N, L, D]

    def join_heads(self, heads: Tensor) -> Tensor:
        batch, _, length, _ = heads.shape
        return heads.transpose(1, 2).reshape(batch, length, self.heads * self.head_size)  # [B, L, H]


class FeedForward(nn.Module):
    """W2 gelu(W1 x), gelu(x) = x/2 (1 + erf(x / sqrt 2)), at each token. [B, L, H] -> [B, L, H]."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.down(nn.functional.gelu(self.up(hidden)))
        return output


class Layer(nn.Module):
    """Attention, then feed-forward; after each its input is added and the sum is normalised."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        hidden = self.attention_norm(hidden + self.attention(hidden, bias))
        hidden = self.feed_forward_norm(hidden + self.feed_forward(hidden))
        return hidden


class Encoder(nn.Module):
    """ids int64 [B, L] and attention mask int64 [B, L] (1 is a real token) to two float32 outputs:

    sentence_embedding [B, H], the mean over the real tokens, of length 1 (zero for a row without any);
    token_embeddings [B, L, H], the last hidden state, not normalised; its padded cells mean nothing.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.embeddings(input_ids)
        bias = padding_bias(attention_mask, hidden.dtype)
        for layer in self.layers:
            hidden = layer(hidden, bias)
        # Sums over hundreds of tokens: float32 whatever the precision of the layers.
        token_embeddings = hidden.float()
        return mean_pool(token_embeddings, attention_mask), token_embeddings


def padding_bias(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What attention scores get added so that padding weighs nothing. int64 [B, L] -> [B, 1, 1, L].

    Half the dtype's minimum and not -inf: after softmax both give exactly 0 beside a real token, but a row
    without any gives equal weights instead of NaN, and no score added to it can overflow.
    """
    padding = 1 - attention_mask[:, None, None, :].to(dtype)  # [B, 1, 1, L]
    return padding * (torch.finfo(dtype).min / 2)


def mean_pool(token_embeddings: Tensor, attention_mask: Tensor) -> Tensor:
    """The mean over real tokens, scaled to length 1. float32 [B, L, H], int64 [B, L] -> float32 [B, H]."""
    mask = attention_mask.unsqueeze(-1).to(token_embeddings.dtype)  # [B, L, 1]
    mean = (token_embeddings * mask).sum(1) / mask.sum(1).clamp(min=1)
    return nn.functional.normalize(mean, dim=-1)
