"""What `attend` gives: arrays, and an object that draws itself.

The letters of every shape: n chosen layers, k chosen heads, L tokens; M tokens of a second text.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from harken_client.values import Timings, Truncate


class AttendOptions(TypedDict, total=False):
    """What to tell of the attention within a text.

    layers, heads   which ones, counted from 0, each once; None: all. Rollout is of all of them all the same
    maps            whether to tell each chosen layer's and head's map
    mean            of each chosen layer, the mean over the chosen heads
    rollout         attention rollout (Abnar and Zuidema 2020)
    received        how much attention each token gets
    entropy         how spread the attention of each head is
    top_k           the so many tokens that each token attends to most; 0: none
    truncate        what a text that is too long becomes
    """

    layers: list[int] | None
    heads: list[int] | None
    maps: bool
    mean: bool
    rollout: bool
    received: bool
    entropy: bool
    top_k: int
    truncate: Truncate


@dataclass(frozen=True, slots=True, eq=False)
class Links:
    """The tokens that each token attends to most, of each chosen layer's mean; the strongest first.

    tokens    uint32 [n, L, top_k], positions
    weights   float32 [n, L, top_k]
    """

    tokens: NDArray[np.uint32]
    weights: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A second text, and what each pair of tokens adds to the similarity of the two.

    similarity      the cosine of the two texts' sentence vectors
    contributions   float32 [L, M], which adds up to it
    text, tokens, ids, offsets, truncated   of the second text, as in Attention
    """

    similarity: float
    contributions: NDArray[np.float32]
    text: str | None
    tokens: tuple[str, ...]
    ids: NDArray[np.int64]
    offsets: NDArray[np.uint32] | None
    truncated: bool


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    """What the tokens of a text attend to. What was not asked for is None. In a notebook it draws itself.

    text        as it was given; None for token ids
    tokens      as the model's vocabulary writes them; none where it has no tokenizer
    ids         int64 [L], special tokens included
    offsets     uint32 [L, 2]: the first character of each token in the text, and the first one after it; 0 and 0
                of special tokens; None for token ids
    truncated   whether the text was longer than the model and lost a part
    layers, heads   those that were chosen
    maps        float32 [n, k, L, L]: [layer, head, i, j] is how much token i attends to token j; each row adds up to 1
    mean        float32 [n, L, L]
    rollout     float32 [L, L]
    received    float32 [n, k, L], the mean over the rows
    entropy     float32 [n, k], in nats, from 0 to ln L
    timings     None where nothing of attention was asked for
    """

    text: str | None
    tokens: tuple[str, ...]
    ids: NDArray[np.int64]
    offsets: NDArray[np.uint32] | None
    truncated: bool
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    model: str
    version: int
    maps: NDArray[np.float32] | None = None
    mean: NDArray[np.float32] | None = None
    rollout: NDArray[np.float32] | None = None
    received: NDArray[np.float32] | None = None
    entropy: NDArray[np.float32] | None = None
    links: Links | None = None
    pair: Pair | None = None
    timings: Timings | None = None

    def map(self, layer: int, head: int) -> NDArray[np.float32]:
        """One map, float32 [L, L], by the numbers of its layer and head. Raises ValueError if it was not asked for."""
        if self.maps is None or layer not in self.layers or head not in self.heads:
            raise ValueError(f"the map of layer {layer}, head {head} was not asked for")
        one: NDArray[np.float32] = self.maps[self.layers.index(layer), self.heads.index(head)]
        return one

    def html(self) -> str:
        """A page by itself: heat maps of each head, links between tokens, a gallery of heads. It loads nothing."""
        from harken_client.attention.page import document  # noqa: PLC0415 - most callers want arrays alone

        return document(self)

    def save(self, path: str | Path) -> None:
        """Write the page, or with matplotlib a picture, as `path` ends: .html or .png. Raises ValueError else."""
        path = Path(path)
        if path.suffix.lower() == ".html":
            path.write_text(self.html(), encoding="utf-8")
        elif path.suffix.lower() == ".png":
            from harken_client.attention.picture import save_png  # noqa: PLC0415 - as above

            save_png(self, path)
        else:
            raise ValueError(f"a drawing is written to .html or .png, not {path.name}")

    def _repr_html_(self) -> str:
        from harken_client.attention.page import frame  # noqa: PLC0415 - as above

        return frame(self)

    def __repr__(self) -> str:
        drawn: dict[str, Any] = {"maps": self.maps, "mean": self.mean, "rollout": self.rollout}
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in drawn.items() if array is not None)
        return f"<Attention of {len(self.ids)} tokens by {self.model}/{self.version}: {shapes or 'no maps'}>"
