"""The bars of docs/performance.md: `make bench-limit`, or some of them: ROWS=w1-64,w2-64 QUICK=1 make bench-limit

Prints a table and writes build/bench/limit.json. A bar that is not met, or void, fails nothing: figures depend on the
machine. Exit code 1 says only that a row could not be measured.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import grpc
from bench import attending, closed_loop, machine, mixed, open_loop, workloads
from bench.hall import BUILD, Hall
from bench.measure import QUICK, Measure, Pace
from bench.pairs import FOREIGN_LIMIT, Outcome, quartiles
from rich.console import Console
from rich.table import Table

ROWS: dict[str, Callable[[Measure], list[Outcome]]] = {
    "w1-256": closed_loop.w1_256,
    "w1-64": closed_loop.w1_64,
    "w1-1": closed_loop.w1_1,
    "w2-64": closed_loop.w2_64,
    "w3-64": closed_loop.w3_64,
    "w3-half": open_loop.w3_half,
    "w1-tail": open_loop.w1_tail,
    "overload": open_loop.overload,
    "w1-bulk": mixed.w1_bulk,
    "attend": attending.attend,
}
"""In this order: the open loops take their rates from the closed ones."""

COLOURS = {"met": "green", "not met": "red", "void": "yellow"}


def wide_console() -> Console:
    """Lines are never broken, nor is a table squeezed where nobody watches."""
    return Console(soft_wrap=True, width=None if sys.stdout.isatty() else 150)


def table(outcomes: list[Outcome]) -> Table:
    """A line for each bar."""
    drawn = Table(title="the bars; client and server share the cores", title_justify="left")
    for column in ("", "workload", "in flight", "what", "bar", "median", "quartiles", ""):
        drawn.add_column(column, no_wrap=column != "what")
    for number, outcome in enumerate(outcomes, 1):
        bar = outcome.bar
        bound = f"{'>=' if bar.at_least else '<='} {bar.bound:g}{bar.unit}"
        first, median, third = (f"{value:.3g}" for value in quartiles(outcome.values))
        drawn.add_row(
            str(number), bar.workload, bar.in_flight, bar.wants, bound, median, f"{first} .. {third}",
            f"[{COLOURS[outcome.verdict]}]{outcome.verdict}",
        )  # fmt: skip
    return drawn


def notes(outcomes: list[Outcome]) -> Iterator[str]:
    """What each line of the table was made of, and what speaks against it."""
    for number, outcome in enumerate(outcomes, 1):
        parts = [outcome.note]
        if outcome.void:
            parts.append(f"[yellow]VOID, nothing is claimed: {outcome.void}[/]")
        if outcome.disturbed:
            over = f"others took over {100 * FOREIGN_LIMIT:g} % of the CPU in {outcome.disturbed} rounds"
            parts.append(f"[yellow]{over}, repeats or not[/]")
        yield f"{number:3}  {'; '.join(parts)}"


def report(outcomes: list[Outcome], failed: dict[str, str], pace: Pace, spent_s: float) -> dict[str, object]:
    """All that was measured, for a program."""
    rows = [
        {**asdict(one), "quartiles": quartiles(one.values), "verdict": one.verdict, "values": list(one.values)}
        for one in outcomes
    ]
    lengths = {mix.name: mix.lengths for mix in workloads.MIXES}
    return {
        "machine": machine.description(),
        "seed": workloads.SEED,
        "lengths": lengths,
        "pace": asdict(pace),
        "spent_s": spent_s,
        "bars": rows,
        "not measured": failed,
    }


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are stopped on the way out
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--rows", default=",".join(ROWS), help="of %(default)s")
    parser.add_argument("--quick", action="store_true", help="two short rounds: to see that it works, not how well")
    arguments = parser.parse_args()
    rows = arguments.rows.split(",")
    if unknown := [name for name in rows if name not in ROWS]:
        parser.error(f"{unknown[0]!r} is none of {', '.join(ROWS)}")
    pace = QUICK if arguments.quick else Pace()
    console = wide_console()
    outcomes: list[Outcome] = []
    failed: dict[str, str] = {}
    started_s = time.monotonic()
    with console.status("starting") as status, Hall(arguments.models) as hall:
        current = ""

        def say(line: str) -> None:
            status.update(f"{current}: {line}")

        measure = Measure(hall, pace, say)
        for current in (name for name in ROWS if name in rows):
            row_s = time.monotonic()
            try:
                outcomes += ROWS[current](measure)
            except (ValueError, ArithmeticError, RuntimeError, subprocess.SubprocessError, grpc.RpcError) as error:
                failed[current] = f"{type(error).__name__}: {error}"
            console.print(f"{current}: {failed.get(current, 'measured')} ({time.monotonic() - row_s:.0f} s)")
    spent_s = time.monotonic() - started_s
    BUILD.mkdir(parents=True, exist_ok=True)
    path = BUILD / "limit.json"
    path.write_text(json.dumps(report(outcomes, failed, pace, spent_s), indent=2) + "\n")
    console.print(table(outcomes))
    for note in notes(outcomes):
        console.print(note, highlight=False)
    for name, value in machine.description().items():
        console.print(f"{name}: {value}", highlight=False)
    lengths = "; ".join(f"{mix.name} {mix.lengths}" for mix in workloads.MIXES)
    console.print(f"lengths: {lengths}; seed {workloads.SEED}; one sequence of token ids a call", highlight=False)
    console.print(f"{spent_s / 60:.1f} minutes; all figures: {path}")
    if arguments.quick:
        console.print("[yellow]quick: two short rounds say that it works, and nothing of how well")
    if failed:
        sys.exit(f"not measured: {'; '.join(f'{name}: {why}' for name, why in failed.items())}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
