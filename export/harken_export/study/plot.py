"""The plots, each below its claims: `svg` text that is the same for the same figures."""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import cost, gradients, heads, masking, parallelism, recall
from .claims import Claim
from .tasks import TASKS
from .training import ARCHITECTURES, NAMES, Architecture

COLORS = {"attention": "#0b6e4f", "lstm": "#3b6fb6", "gru": "#b5532a"}
MARKERS = {"attention": "o", "lstm": "s", "gru": "^"}
WIDTH = 9.5


def save(figure: Figure, claims: Sequence[Claim], svg: Path) -> None:
    """Write it on white, so that it reads in a dark page too, with what holds and what does not below it."""
    lines = [line for claim in claims for line in textwrap.wrap(claim.line, 135, subsequent_indent="    ")]
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=7.5)
    # No date, and ids from a fixed salt: the file changes where a figure does.
    figure.savefig(svg, metadata={"Date": None}, facecolor="white")


def drawing(height: float, claims: Sequence[Claim]) -> Figure:
    return Figure(figsize=(WIDTH, height + 0.16 * len(claims)), layout="constrained")


def style(name: Architecture) -> dict[str, Any]:
    return {"color": COLORS[name], "marker": MARKERS[name], "markersize": 4, "label": NAMES[name]}


def by_length(axes: Axes, lengths: Sequence[int], label: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.minorticks_off()
    axes.set_xlabel(label)
    axes.grid(alpha=0.3)


def draw_recall(result: dict[str, Any], svg: Path) -> None:
    """Accuracy by distance: the mean of the seeds, and from the worst to the best of them."""
    claims = recall.all_claims(result)
    figure = drawing(5.6, claims)
    grid = figure.subplots(len(TASKS), len(recall.TEACHINGS), sharex=True, sharey=True)
    for axes, (task, taught) in zip(grid.flat, recall.TAUGHT, strict=True):
        for name in ARCHITECTURES:
            found = recall.accuracies(result, task, taught, name)
            axes.plot(list(found), [mean(shares) for shares in found.values()], **style(name))
            low, high = ([end(shares) for shares in found.values()] for end in (min, max))
            axes.fill_between(list(found), low, high, color=COLORS[name], alpha=0.15, linewidth=0)
        axes.axhline(result["chance"][task], color="black", linestyle=":", linewidth=1, label="chance")
        by_length(axes, result["distances"], "distance, tokens")
        axes.set_title({"recall": "associative recall", "copy": "copy"}[task] + f", taught {taught}", fontsize=9)
        axes.set_ylim(0, 1.03)
    for axes in grid[:, 0]:
        axes.set_ylabel("right answers")
    figure.axes[0].legend(fontsize=8, loc="lower left")
    save(figure, claims, svg)


def draw_gradients(result: dict[str, Any], svg: Path) -> None:
    """Path length; what is left of the gradient, untrained and trained."""
    claims = gradients.claims(result)
    figure = drawing(3.4, claims)
    path, untrained, trained = figure.subplots(1, 3)
    for name in ARCHITECTURES:
        steps = [result["paths"][name][str(distance)] for distance in result["distances"]]
        path.plot(result["distances"], steps, **style(name))
        for axes, state in ((untrained, "untrained"), (trained, "trained")):
            ratios = gradients.ratios(result, name, state)
            axes.plot(result["distances"], [gradients.typical(seeds) for seeds in ratios.values()], **style(name))
            low, high = ([end(seeds) for seeds in ratios.values()] for end in (min, max))
            axes.fill_between(result["distances"], low, high, color=COLORS[name], alpha=0.15, linewidth=0)
    path.set_title("operations in between")
    untrained.set_title("gradient, untrained")
    trained.set_title("gradient, trained to copy")
    for axes in (path, untrained, trained):
        by_length(axes, result["distances"], "distance, tokens")
        axes.set_yscale("log")
    # Or a log scale of less than a decade would make much of little.
    trained.set_ylim(min(1e-2, trained.get_ylim()[0]), max(10, trained.get_ylim()[1]))
    untrained.set_ylabel("of the far token / of its own")
    path.legend(fontsize=8)
    save(figure, claims, svg)


def draw_parallelism(result: dict[str, Any], svg: Path) -> None:
    """Milliseconds of a sequence by its length."""
    claims = parallelism.claims(result)
    figure = drawing(3.4, claims)
    whole, single = figure.subplots(1, 2)
    lengths = result["sizes"]["lengths"]
    for name in ARCHITECTURES:
        points = result["points"][name]
        whole.plot(lengths, [point["call_ms"] for point in points], linestyle=":", color=COLORS[name])
        whole.plot(lengths, [point["compute_ms"] for point in points], **style(name))
        single.plot(lengths, [1e3 * point["compute_ms"] / point["length"] for point in points], **style(name))
    whole.set_ylabel("ms a sequence (dotted: at the caller)")
    single.set_ylabel("us a token")
    for axes in (whole, single):
        by_length(axes, lengths, "length, tokens")
        axes.set_yscale("log")
    whole.legend(fontsize=8)
    save(figure, claims, svg)


def draw_cost(result: dict[str, Any], svg: Path) -> None:
    """Time and memory by length, with the fit and its terms."""
    claims = cost.claims(result)
    figure = drawing(3.4, claims)
    panels = (("time", "seconds", 0.0, 1e3, "ms"), ("memory", "bytes", cost.LEAST_BYTES, 2.0**-20, "MiB"))
    for axes, (law, field, least, scale, unit) in zip(figure.subplots(1, 2), panels, strict=True):
        points = [point for point in result["points"] if point[field] >= least]
        lengths = np.array([point["length"] for point in points])
        measured = scale * np.array([point[field] for point in points])
        constant, linear, square = (scale * result[law][term] for term in ("c", "a", "b"))
        axes.plot(lengths, measured, "o", color="black", markersize=4, label="measured")
        axes.plot(lengths, linear * lengths, color=COLORS["lstm"], linewidth=1.3, label="a L")
        axes.plot(lengths, square * lengths**2, color=COLORS["gru"], linewidth=1.3, label="b L²")
        law_at = constant + linear * lengths + square * lengths**2
        axes.plot(lengths, law_at, color=COLORS["attention"], linewidth=1.3, label="c + a L + b L²")
        if result[law]["crossover"]:
            axes.axvline(result[law]["crossover"], color="black", linestyle="--", linewidth=1, label="a L = b L²")
        if law == "time":
            textbook = result["textbook_crossover"]
            axes.axvline(textbook, color="gray", linestyle=":", linewidth=1.3, label="6 H: equal operations")
        by_length(axes, [n for n in lengths if n & (n - 1) == 0], "length, tokens")
        axes.set_yscale("log")
        axes.set_ylim(measured.min() / 3, measured.max() * 2)
        axes.set_ylabel(unit)
        axes.set_title(f"{law}, one layer, H = {result['hidden_size']}")
        axes.legend(fontsize=7)
    save(figure, claims, svg)


def draw_masking(result: dict[str, Any], svg: Path) -> None:
    """The damage that padding does, by how much there is."""
    claims = masking.claims(result)
    figure = drawing(3.4, claims)
    cosines, difference = figure.subplots(1, 2)
    colors = dict(zip(masking.WAYS, ("#0b6e4f", "#3b6fb6", "#b5532a", "#7a3b8f"), strict=True))
    for way, color in colors.items():
        points = result["points"][way]
        amounts = [point["padding"] for point in points]
        cosines.plot(amounts, [point["mean_cosine"] for point in points], "o-", color=color, markersize=4, label=way)
        cosines.plot(amounts, [point["worst_cosine"] for point in points], ":", color=color, linewidth=1)
        values = [max(point["max_abs"], 1e-9) for point in points]
        difference.plot(amounts, values, "o-", color=color, markersize=4, label=way)
    cosines.set_ylabel("cosine to the unpadded (dotted: worst)")
    difference.set_ylabel("largest difference (0 drawn as 1e-9)")
    difference.set_yscale("log")
    for axes in (cosines, difference):
        axes.set_xscale("symlog", base=2, linthresh=1)
        axes.set_xticks(amounts, [str(amount) for amount in amounts])
        axes.set_xlim(-0.3, 1.4 * amounts[-1])
        axes.minorticks_off()
        axes.set_xlabel("padded cells")
        axes.grid(alpha=0.3)
    cosines.legend(fontsize=8)
    save(figure, claims, svg)


def draw_heads(result: dict[str, Any], svg: Path) -> None:
    """Layer by head where the attention goes; and four heads on one sentence."""
    claims = heads.claims(result)
    figure = drawing(7.4, claims)
    grid = figure.add_gridspec(2, 1, height_ratios=[4, 3.4])
    upper, lower = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    panels = {**{kind: result["shares"][kind] for kind in heads.KINDS}, "breadth": result["breadth"]}
    moves = [
        [word - place for word, place in zip(*rows, strict=True)]
        for rows in zip(result["follows_word"], result["follows_place"], strict=True)
    ]
    for axes, (name, values) in zip(
        upper.subplots(2, 4).flat, [*panels.items(), ("moves with the words", moves)], strict=True
    ):
        matrix(axes, values, 1.0 if name != "moves with the words" else 0.6, name)
        axes.set_xticks([0.5, len(values[0]) - 0.5], ["0", str(len(values[0]) - 1)])
        axes.set_yticks([0.5, len(values) - 0.5], ["0", str(len(values) - 1)])
    upper.supylabel("layer", fontsize=8)
    tokens = result["example"]["tokens"]
    for axes, (name, shown) in zip(
        lower.subplots(1, len(result["example"]["maps"])), result["example"]["maps"].items(), strict=True
    ):
        matrix(axes, shown["map"], 1.0, f"{name}: {heads.name_of(shown['layer'], shown['head'])}")
        places = [place + 0.5 for place in range(len(tokens))]
        axes.set_xticks(places, tokens, rotation=90, fontsize=5)
        axes.set_yticks(places, tokens, fontsize=5)
    save(figure, claims, svg)


def matrix(axes: Axes, values: list[list[float]], most: float, title: str) -> None:
    axes.pcolormesh(values, cmap="Greens", vmin=0, vmax=most)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=8)
    axes.tick_params(length=0)


DRAWINGS: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "recall": draw_recall,
    "gradients": draw_gradients,
    "parallelism": draw_parallelism,
    "cost": draw_cost,
    "masking": draw_masking,
    "heads": draw_heads,
}


def draw(name: str, result: dict[str, Any], svg: Path) -> None:
    """One plot."""
    with mpl.rc_context({"svg.hashsalt": "harken", "svg.fonttype": "none", "font.size": 9}):
        DRAWINGS[name](result, svg)
