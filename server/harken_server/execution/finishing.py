"""From what the engine computes to the sentence vector that was asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from harken.v1 import bundle_pb2

from harken_server.execution.engine import SENTENCE, TOKENS
from harken_server.execution.pending import Vectors

Pooling = Literal["mean", "cls", "max"]

_POOLINGS: Final[dict[str, Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]]] = {
    "mean": lambda tokens: tokens.mean(axis=0),
    "cls": lambda tokens: tokens[0],
    "max": lambda tokens: tokens.max(axis=0),
}
"""Token vectors float32 [length, H] to one float32 [H]."""

# Below it torch.nn.functional.normalize does not divide, and neither does the graph.
_LEAST_NORM: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Finish:
    """How a sentence vector is made of what the model gives.

    normalize   to length 1, or not; None: as the bundle does
    dimensions  the first so many, to length 1 again if the whole is (Kusupati et al., Matryoshka Representation
                Learning, NeurIPS 2022); None: all. It is up to the model how good they are
    pooling     of the token vectors; None: as the bundle does
    """

    normalize: bool | None = None
    dimensions: int | None = None
    pooling: Pooling | None = None

    def engine_outputs(self, wanted: tuple[str, ...], bundle: bundle_pb2.Bundle) -> tuple[str, ...]:
        """What the engine has to compute for `wanted`."""
        if self._from_tokens(bundle) and SENTENCE in wanted:
            return (TOKENS,)
        return wanted

    def apply(self, vectors: Vectors, wanted: tuple[str, ...], bundle: bundle_pb2.Bundle) -> Vectors:
        """`wanted` of what the engine computed."""
        if SENTENCE not in wanted or self == _AS_IT_IS:
            return vectors
        if self._from_tokens(bundle):
            sentence, is_unit = _POOLINGS[self.pooling or bundle.pooling](vectors[TOKENS]), False
        else:
            sentence, is_unit = vectors[SENTENCE], bundle.normalized
        if self.dimensions is not None and self.dimensions < len(sentence):
            sentence, is_unit = sentence[: self.dimensions], False
        if self._unit(bundle) and not is_unit:
            sentence = _unit(sentence)
        return {name: sentence if name == SENTENCE else vectors[name] for name in wanted}

    def mean(
        self, sentences: npt.NDArray[np.float32], weights: Sequence[int], bundle: bundle_pb2.Bundle
    ) -> npt.NDArray[np.float32]:
        """One sentence vector [D] of those of a text's chunks [chunks, D]: their weighted mean, as long as they are."""
        if len(sentences) == 1:
            only: npt.NDArray[np.float32] = sentences[0]
            return only
        shares = (np.array(weights) / sum(weights)).astype(np.float32)
        mean: npt.NDArray[np.float32] = shares @ sentences
        return _unit(mean) if self._unit(bundle) else mean

    def _unit(self, bundle: bundle_pb2.Bundle) -> bool:
        return bundle.normalized if self.normalize is None else self.normalize

    def _from_tokens(self, bundle: bundle_pb2.Bundle) -> bool:
        """Whether the graph's own sentence vector is of no use: what it normalised or pooled cannot be undone."""
        return (self.normalize is False and bundle.normalized) or self.pooling not in (None, bundle.pooling)


_AS_IT_IS: Final = Finish()


def _unit(vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    scaled: npt.NDArray[np.float32] = vector / max(float(np.linalg.norm(vector)), _LEAST_NORM)
    return scaled.astype(np.float32, copy=False)
