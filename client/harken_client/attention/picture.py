"""A picture of an Attention, by matplotlib, which is in the extra `plot`."""

import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from harken_client.attention.values import Attention

_LABELED: Final = 64
"""As many tokens have their names beside a map; of more every second, third, ... has."""
_HEAD_INCHES: Final = 1.1
_MAP_INCHES: Final = 7.0
_THUMB: Final = 100
"""Cells a side of a head's map, below its pixels: of more cells the strongest stand for their neighbours."""
_FULL_PERCENT: Final = 99.5
"""Of the cells of a head's map that are not drawn darkest: few must not pale all others."""
_DPI: Final = 150


class NoPlot(Exception):
    """matplotlib is not installed. One line."""


def save_png(attention: Attention, path: Path) -> None:
    """Write a PNG: the main map with its tokens, and all heads' maps below. Raises NoPlot, ValueError without a map."""
    figure = figure_of(attention)
    with warnings.catch_warnings():
        # A box stands for a letter that the font has not.
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        figure.savefig(path, dpi=_DPI, format="png")


def figure_of(attention: Attention) -> Any:
    """What is written: a matplotlib Figure. Raises as save_png does."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - an extra
        from matplotlib.figure import Figure  # noqa: PLC0415 - as above
    except ImportError:
        raise NoPlot("a .png needs matplotlib: pip install 'harken[plot]', or write .html") from None
    title, main, columns = _main(attention)
    rows = [] if attention.maps is None else list(attention.maps)
    gallery_inches = _HEAD_INCHES * len(rows)
    width_inches = max(_MAP_INCHES, _HEAD_INCHES * len(attention.heads)) + 1.0
    figure = Figure(figsize=(width_inches, _MAP_INCHES + gallery_inches + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    # "$" would begin a formula.
    figure.suptitle(f"{attention.model}/{attention.version}: {title}".replace("$", r"\$"))
    above, *below = figure.subfigures(1 + bool(rows), 1, height_ratios=[_MAP_INCHES, gallery_inches][: 1 + bool(rows)],
                                      squeeze=False)[:, 0]  # fmt: skip
    labels = ("attended to", "token") if attention.pair is None else ("second text", "first text")
    _draw(above.subplots(), main, (_names(attention), columns), labels)
    if rows:
        below[0].suptitle(_caption(attention), fontsize=8)
        grid = below[0].subplots(len(rows), len(attention.heads), squeeze=False)
        for row, maps, layer in zip(grid, rows, attention.layers, strict=True):
            for axes, one, head in zip(row, maps, attention.heads, strict=True):
                cells = np.sqrt(_pooled(one))
                full = max(float(np.percentile(cells, _FULL_PERCENT)), 1e-6)
                axes.imshow(cells, vmin=0.0, vmax=full, cmap="Blues", aspect="auto", interpolation="nearest")
                axes.set_xticks([])
                axes.set_yticks([])
                axes.set_title(f"{layer}.{head}", fontsize=6, pad=1)
    return figure


def _pooled(one: NDArray[np.float32]) -> NDArray[np.float32]:
    """A map [L, L] in at most _THUMB cells a side, each the strongest of those that it stands for."""
    side = min(len(one), _THUMB)
    edges = np.arange(side) * len(one) // side
    pooled: NDArray[np.float32] = np.maximum.reduceat(np.maximum.reduceat(one, edges, axis=0), edges, axis=1)
    return pooled


def _main(attention: Attention) -> tuple[str, NDArray[np.float32], list[str]]:
    """What is drawn large: its title, the map, the names of its columns."""
    if attention.pair is not None:
        pair = attention.pair
        names = list(pair.tokens) or [str(token) for token in pair.ids]
        return f"what tokens add to the similarity of {pair.similarity:.4f}", pair.contributions, names
    if attention.rollout is not None:
        return "rollout over all layers", attention.rollout, _names(attention)
    for array, axes in ((attention.mean, (0,)), (attention.maps, (0, 1))):
        if array is not None:
            return "mean over layers and heads", array.mean(axis=axes), _names(attention)
    raise ValueError("there is no map to draw: none was asked for")


def _names(attention: Attention) -> list[str]:
    return list(attention.tokens) or [str(token) for token in attention.ids]


def _caption(attention: Attention) -> str:
    """Of the heads' maps."""
    whose = "" if attention.pair is None else "of the first text, "
    darkest = f"{_FULL_PERCENT}th percentile of the head's own weights"
    return f"attention heads, {whose}each named layer.head; darkest: {darkest}"


def _draw(
    axes: Any, array: NDArray[np.float32], names_of: tuple[list[str], list[str]], labels: tuple[str, str]
) -> None:
    """`names_of` rows and columns; `labels` of the axes x and y."""
    (rows, columns), told = names_of, ""
    if array.min() < 0.0:
        told = ": blue adds to the similarity, red takes from it"
        most = float(np.abs(array).max())
        axes.imshow(array, cmap="RdBu", vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
    else:
        axes.imshow(np.sqrt(array), cmap="Blues", vmin=0.0, aspect="auto", interpolation="nearest")
    size = max(4.0, min(9.0, 400 / max(len(rows), len(columns))))
    for set_ticks, names, rotation in ((axes.set_yticks, rows, 0), (axes.set_xticks, columns, 90)):
        step = -(-len(names) // _LABELED)
        shown = [name.replace("$", r"\$") for name in names[::step]]
        set_ticks(range(0, len(names), step), shown, fontsize=size, rotation=rotation)
    axes.set_xlabel(labels[0] + told)
    axes.set_ylabel(labels[1])
