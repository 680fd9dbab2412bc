"""Every mix at every number in flight, harken against both baselines and the limit: `make bench-all`

Prints the grid, writes build/bench/grid.json and draws docs/throughput.svg. A ratio fails nothing: figures depend
on the machine. Exit code 1 says only that a cell could not be measured, and then nothing is drawn.
"""

import argparse
import json
import signal
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import machine, plot, workloads
from bench.bars import wide_console
from bench.batching import ALL
from bench.hall import BUILD, Hall
from bench.measure import BURSTS, QUICK, Measure, Pace, disturbed
from bench.pairs import quartiles
from bench.workloads import MIXES, Mix
from rich.table import Table

IN_FLIGHT = (1, 16, 64, 256)
SERVERS = ("harken", "one by one", "fixed batches")
PLOT = Path("docs/throughput.svg")
PACE = Pace(rounds=3, repeats=2)


@dataclass(frozen=True)
class Cell:
    """One mix at one number in flight: the sequences a second of each round, by who ran."""

    mix: str
    in_flight: int
    per_s: Mapping[str, list[float]]
    disturbed: int

    def median(self, name: str) -> float:
        return statistics.median(self.per_s[name])

    def ahead(self, of: str) -> float:
        """The median of harken over `of`, round by round."""
        return quartiles([mine / his for mine, his in zip(self.per_s["harken"], self.per_s[of], strict=True)])[1]


@dataclass(frozen=True)
class Line:
    """What the engine alone reaches for a mix, whatever is in flight: the best policy that knows all sequences."""

    mix: str
    policy: str
    per_s: list[float]


def cell(measure: Measure, mix: Mix, in_flight: int) -> Cell:
    """Measure one, in turns."""
    hall = measure.hall
    runs = {
        "harken": measure.closed(hall.harken, mix, in_flight),
        "one by one": measure.closed(hall.single, mix, in_flight),
        "fixed batches": measure.closed(hall.fixed, mix, in_flight, longer=BURSTS),
    }
    rounds = measure.in_turns(runs)
    per_s = {name: [one.runs[name] for one in rounds] for name in SERVERS}
    return Cell(mix.name, in_flight, per_s, disturbed(rounds))


def line(measure: Measure, mix: Mix) -> Line:
    """Measure the limit of one mix."""
    limit = measure.hall.limit
    ceiling = measure.ceiling(limit, mix, ALL)
    rounds = measure.in_turns({"limit": measure.whole(limit, mix, ceiling.policy, ceiling.per_s)})
    return Line(mix.name, str(ceiling.policy), [one.runs["limit"] for one in rounds])


def table(cells: list[Cell], lines: list[Line]) -> Table:
    drawn = Table(
        title="sequences a second, medians, and harken over the baselines; client and server share the cores",
        title_justify="left",
    )
    ratios = ("over one by one", "over fixed batches", "disturbed")
    for column in ("mix", "in flight", *SERVERS, "limit", *ratios):
        drawn.add_column(column)
    limits = {one.mix: statistics.median(one.per_s) for one in lines}
    for one in cells:
        ahead = [(one.ahead("one by one"), 1.0), (one.ahead("fixed batches"), _least_over_fixed(one))]
        drawn.add_row(
            one.mix, str(one.in_flight), *(f"{one.median(name):.1f}" for name in SERVERS), f"{limits[one.mix]:.1f}",
            *(f"[{'green' if ratio >= least else 'red'}]{ratio:.2f}" for ratio, least in ahead), str(one.disturbed),
            end_section=one.in_flight == IN_FLIGHT[-1],
        )  # fmt: skip
    return drawn


def _least_over_fixed(one: Cell) -> float:
    return 3.5 if (one.mix, one.in_flight) == ("W1", 64) else 1.0


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are stopped on the way out
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--rows", default="W1,W2,W3", help="mixes, of %(default)s; the plot is drawn of all only")
    parser.add_argument("--quick", action="store_true", help="short rounds, no plot: to see that it works")
    arguments = parser.parse_args()
    names = arguments.rows.split(",")
    if unknown := sorted(set(names) - {mix.name for mix in MIXES}):
        parser.error(f"{unknown[0]!r} is none of {', '.join(mix.name for mix in MIXES)}")
    mixes = [mix for mix in MIXES if mix.name in names]
    pace = QUICK if arguments.quick else PACE
    console = wide_console()
    started_s = time.monotonic()
    with console.status("starting") as status, Hall(arguments.models) as hall:
        measure = Measure(hall, pace, status.update)
        lines = [line(measure, mix) for mix in mixes]
        cells: list[Cell] = []
        failed: dict[str, str] = {}
        for mix in mixes:
            for in_flight in IN_FLIGHT:
                place = f"{mix.name} at {in_flight}"
                try:
                    cells.append(cell(measure, mix, in_flight))
                except ValueError as error:
                    failed[place] = str(error)
                console.print(f"{place}: {failed.get(place, 'measured')} ({time.monotonic() - started_s:.0f} s)")
    BUILD.mkdir(parents=True, exist_ok=True)
    path = BUILD / "grid.json"
    content = {
        "machine": machine.description(),
        "seed": workloads.SEED,
        "lengths": {mix.name: mix.lengths for mix in mixes},
        "pace": asdict(pace),
        "cells": [asdict(one) for one in cells],
        "limits": [asdict(one) for one in lines],
        "not measured": failed,
    }
    path.write_text(json.dumps(content, indent=2) + "\n")
    console.print(table(cells, lines))
    for name, value in machine.description().items():
        console.print(f"{name}: {value}", highlight=False)
    console.print(f"{(time.monotonic() - started_s) / 60:.1f} minutes; all figures: {path}")
    if failed:
        sys.exit(f"not measured: {'; '.join(f'{place}: {why}' for place, why in failed.items())}")
    if not arguments.quick and len(mixes) == len(MIXES):
        plot.draw(path, PLOT)
        console.print(f"drawn: {PLOT}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
