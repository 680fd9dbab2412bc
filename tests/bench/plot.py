"""Draws the grid that was measured last: `python -m bench.plot build/bench/grid.json docs/throughput.svg`"""

import json
import statistics
import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

STYLES = {
    "harken": {"color": "#0b6e4f", "marker": "o", "linewidth": 2.2},
    "one by one": {"color": "#3b6fb6", "marker": "s", "linewidth": 1.4},
    "fixed batches": {"color": "#b5532a", "marker": "^", "linewidth": 1.4},
}


def draw(grid: Path, svg: Path) -> None:
    """One panel for each mix: throughput against the number in flight."""
    content = json.loads(grid.read_text())
    # The same figures give the same bytes, so that the file's history shows changes of figures only.
    with mpl.rc_context({"svg.hashsalt": "harken", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(9.5, 3.4), layout="constrained")
        for axes, limit in zip(figure.subplots(1, len(content["limits"])), content["limits"], strict=True):
            mix = limit["mix"]
            cells = [cell for cell in content["cells"] if cell["mix"] == mix]
            for name, style in STYLES.items():
                medians = [statistics.median(cell["per_s"][name]) for cell in cells]
                axes.plot([cell["in_flight"] for cell in cells], medians, label=name, **style)
            axes.axhline(statistics.median(limit["per_s"]), color="black", linestyle="--", linewidth=1, label="limit")
            axes.set_xscale("log", base=4)
            axes.set_xticks([cell["in_flight"] for cell in cells], [str(cell["in_flight"]) for cell in cells])
            axes.set_ylim(bottom=0)
            axes.set_title(f"{mix}: {content['lengths'][mix]}", fontsize=8)
            axes.set_xlabel("in flight")
            axes.grid(alpha=0.3)
        figure.axes[0].set_ylabel("sequences/s")
        figure.axes[0].legend(loc="lower right", fontsize=8)
        figure.savefig(svg, metadata={"Date": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
