"""From what the engine computes to the vector that was asked for: normalised or not, and how many dimensions of it."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from harken.v1 import bundle_pb2

from harken_server.execution.engine import SENTENCE, TOKENS
from harken_server.execution.pending import Vectors

# Below it torch.nn.functional.normalize does not divide, and neither does the graph.
_LEAST_NORM: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Finish:
    """How a sentence vector is finished.

    normalize   to length 1, or not; None: as the bundle does
    dimensions  the first so many, to length 1 again if the whole is (Kusupati et al., Matryoshka Representation
                Learning, NeurIPS 2022); None: all. It is up to the model how good they are
    """

    normalize: bool | None = None
    dimensions: int | None = None

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
            sentence = vectors[TOKENS].mean(axis=0)
        else:
            sentence = vectors[SENTENCE]
            if self.normalize and not bundle.normalized:
                sentence = _unit(sentence)
        if self.dimensions is not None and self.dimensions < len(sentence):
            sentence = sentence[: self.dimensions]
            if bundle.normalized if self.normalize is None else self.normalize:
                sentence = _unit(sentence)
        return {name: sentence if name == SENTENCE else vectors[name] for name in wanted}

    def _from_tokens(self, bundle: bundle_pb2.Bundle) -> bool:
        """The graph normalises, and that cannot be undone."""
        return self.normalize is False and bundle.normalized


_AS_IT_IS: Final = Finish()


def _unit(vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    scaled: npt.NDArray[np.float32] = vector / max(float(np.linalg.norm(vector)), _LEAST_NORM)
    return scaled.astype(np.float32, copy=False)
