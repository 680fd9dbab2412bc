"""What is told of attention maps. All of it is computed on a lane's thread, from one sequence's maps.

The letters of every shape: N layers, K heads, L tokens; n and k of them that were chosen. A map's row i is how much
token i attends to each token j: A[i, j] >= 0, and each row adds up to 1 (Vaswani et al., Attention Is All You Need,
NeurIPS 2017).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from harken_server.execution.pending import Vectors

ATTENTIONS: Final = "attentions"
MAPS: Final = "maps"
MEAN: Final = "mean"
ROLLOUT: Final = "rollout"
RECEIVED: Final = "received"
ENTROPY: Final = "entropy"
LINKS: Final = "links"
LINK_WEIGHTS: Final = "link_weights"

CONTRIBUTIONS: Final = "contributions"

Float32 = npt.NDArray[np.float32]
Sizes = dict[str, int]
"""How many numbers there are of each of the names above, of those that there are."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What to tell of the attention within a text.

    layers, heads   what all but rollout is of, in order
    top_k           links of each token; 0: none
    """

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    maps: bool = False
    mean: bool = False
    rollout: bool = False
    received: bool = False
    entropy: bool = False
    top_k: int = 0

    @property
    def anything(self) -> bool:
        """Whether the maps have to be computed."""
        return self.maps or self.mean or self.rollout or self.received or self.entropy or self.top_k > 0

    def sizes(self, length: int) -> Sizes:
        """Of what is told of a text of so many tokens; links count with their weights."""
        layers, heads, square = len(self.layers), len(self.heads), length * length
        sizes = {
            MAPS: layers * heads * square * self.maps,
            MEAN: layers * square * self.mean,
            ROLLOUT: square * self.rollout,
            RECEIVED: layers * heads * length * self.received,
            ENTROPY: layers * heads * self.entropy,
            LINKS: 2 * layers * length * min(self.top_k, length),
        }
        return {name: size for name, size in sizes.items() if size}

    def of(self, computed: Vectors) -> Vectors:
        """What was asked for, by name, of attentions float32 [N, K, L, L]. It keeps nothing else alive."""
        whole: Float32 = computed[ATTENTIONS]
        told: dict[str, npt.NDArray[Any]] = {}
        if self.rollout:
            told[ROLLOUT] = rollout(whole)
        # Layer by layer, and the maps straight to their place: a copy of all of them would be a third one in memory.
        chosen = [whole[layer] for layer in self.layers]
        heads = list(self.heads)
        if self.received:
            told[RECEIVED] = np.stack([received(maps[heads]) for maps in chosen])
        if self.entropy:
            told[ENTROPY] = np.stack([entropies(maps, self.heads) for maps in chosen])
        if self.mean or self.top_k:
            means = np.stack([maps[heads].mean(axis=0) for maps in chosen])
            if self.top_k:
                linked = [links(mean, self.top_k) for mean in means]
                told[LINKS], told[LINK_WEIGHTS] = (np.stack(parts) for parts in zip(*linked, strict=True))
            if self.mean:
                told[MEAN] = means
        if self.maps:
            told[MAPS] = np.empty((len(chosen), len(heads), *whole.shape[2:]), np.float32)
            for place, maps in zip(told[MAPS], chosen, strict=True):
                for n, head in enumerate(heads):
                    place[n] = maps[head]
        return told


def rollout(maps: Float32) -> Float32:
    """Attention rollout, [N, K, L, L] -> [L, L]; row i is how much of token i comes from each token of the input.

    The product, the last layer first, of 0.5 A + 0.5 I: A is the mean over a layer's heads, I stands for what passes it
    by (Abnar and Zuidema, Quantifying Attention Flow in Transformers, ACL 2020, section 3). Its rows add up to 1, as
    those of its factors do.
    """
    length = maps.shape[-1]
    identity = np.eye(length, dtype=np.float32)
    rolled = identity
    for heads in maps:
        factor = 0.5 * heads.mean(axis=0) + 0.5 * identity
        # Each product would carry the rounding of the rows before it.
        rolled = (factor / factor.sum(axis=1, keepdims=True)) @ rolled
    return rolled


def received(maps: Float32) -> Float32:
    """How much attention each token gets: the mean over the rows. [k, L, L] -> [k, L], which adds up to 1.

    As the averages of Clark et al., What Does BERT Look At?, BlackboxNLP 2019, section 3.
    """
    means: Float32 = maps.mean(axis=1)
    return means


def entropies(maps: Float32, heads: Sequence[int]) -> Float32:
    """The mean over the rows of -sum_j A[i, j] ln A[i, j], of some heads of [K, L, L]: [k], in nats, from 0 to ln L.

    Clark et al. 2019, section 3.3: how broad a head's attention is.
    """
    # Head by head: the logarithms of all of them would take as much memory again as the maps.
    return np.array([_entropy(maps[head]) for head in heads], np.float32)


def _entropy(rows: Float32) -> float:
    # 0 ln 0 is 0.
    logarithms = np.log(rows, out=np.zeros_like(rows), where=rows > 0.0)
    return float(-np.einsum("ij,ij->", rows, logarithms, dtype=np.float64) / len(rows))


def links(means: Float32, most: int) -> tuple[npt.NDArray[np.uint32], Float32]:
    """Whom each token attends to most: [..., L, L] -> tokens uint32 and weights float32, [..., L, min(most, L)] each.

    The strongest first; of equals the earlier token.
    """
    most = min(most, means.shape[-1])
    order = np.argsort(-means, axis=-1, kind="stable")[..., :most]
    return order.astype(np.uint32), np.take_along_axis(means, order, axis=-1)


def contributions(tokens: Float32, others: Float32) -> Float32:
    """What each pair of tokens adds to the cosine of two mean-pooled texts. [n, H], [m, H] -> [n, m].

    The mean is linear and the dot product bilinear, so with h_i and g_j the token vectors

        cos(mean h, mean g) = sum_ij h_i . g_j / (n m |mean h| |mean g|)

    exactly; element i, j is its term, and all of them add up to the similarity. No gradient is taken: it tells where in
    the last layer the similarity lies, after the layers have mixed the tokens, not which input words brought it there.
    BiLRP (Eberle et al., Building and Interpreting Deep Similarity Models, TPAMI 2022; of Transformers: Vasileiou and
    Eberle, Explaining Text Similarity in Transformer Models, NAACL 2024) carries the same terms on through the layers.
    """
    h, g = tokens.astype(np.float64), others.astype(np.float64)
    scale = len(h) * len(g) * max(float(np.linalg.norm(h.mean(axis=0)) * np.linalg.norm(g.mean(axis=0))), _LEAST_NORM)
    added = np.empty((len(h), len(g)), np.float32)
    # Some rows at a time: all terms in float64 would take twice the memory of the answer again.
    for first in range(0, len(h), _ROWS):
        added[first : first + _ROWS] = (h[first : first + _ROWS] / scale) @ g.T
    return added


_LEAST_NORM: Final = 1e-12
_ROWS: Final = 256
