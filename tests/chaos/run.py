"""`make chaos`: faults on real servers, and what became of each promise.

    PYTHONPATH=tests python -m chaos.run --models models [--short]

Ends with 1 if anything was lost or wrong. Figures of overload depend on the machine and fail nothing.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from chaos.bad_input import BadCallers, with_tokenizer
from chaos.crash import crashes
from chaos.drain import drain
from chaos.exactly_once import Callers, unsettled
from chaos.overload import DEADLINE_S, SETTLED_S, TIMES, overload
from chaos.poison import poisoned
from chaos.swaps import SETTLED, SHARE, swaps
from rich.console import Console
from rich.table import Table
from support.bundles import export_bundle
from support.server import running_server

TINY = ("--name", "tiny", "--layers", "2", "--heads", "2", "--hidden", "32", "--vocab", "1000", "--max-length", "128")


@dataclass(frozen=True)
class Row:
    """A promise, and what was seen of it."""

    promise: str
    load: str
    faults: str
    lost: int
    wrong: int
    recovery: str
    notes: tuple[str, ...] = ()

    @property
    def kept(self) -> bool:
        """Whether nothing was lost, and nothing wrong."""
        return not self.lost and not self.wrong


def exactly_once(tiny: Path, folder: Path, requests: int, seed: int) -> Row:
    """Each request ends once, and rightly, and the counters add up."""
    poison = poisoned(tiny / "tiny" / "1", folder / "poisoned")
    with running_server(poison.models, "--state-dir", str(folder)) as server:
        callers = Callers(server, poison, seed)
        asyncio.run(callers.run(requests))
        tally, open_ends = callers.tally, unsettled(server)
        bugs = [str(line) for line in server.log if line.get("exception")]
    faults = ", ".join(f"{count:,} {name}" for name, count in sorted(tally.faults.items()) if name != "none")
    ends = ", ".join(f"{count:,} {end}" for end, count in tally.ends.most_common())
    wrong = [*tally.wrong, *([open_ends] if open_ends else []), *bugs]
    return Row(
        "exactly one answer", f"{tally.requests:,} inputs", f"{faults}, {tally.ends['INTERNAL']:,} poisoned",
        tally.lost, len(wrong), "-", (f"seed {seed}; {ends}", *wrong[:10]),
    )  # fmt: skip


def bad_input(tiny: Path, folder: Path, requests: int, seed: int) -> Row:
    """Nothing that is sent is more than refused, and what is good is answered as if it were alone."""
    models = with_tokenizer(tiny / "tiny" / "1", folder / "texts")
    with running_server(models, "--state-dir", str(folder)) as server:
        callers = BadCallers(server, requests, seed)
        asyncio.run(callers.run())
        seen, open_ends = callers.seen, unsettled(server)
        internal = server.total("harken_requests_total", code="INTERNAL")
        bugs = [str(line) for line in server.log if line.get("exception") or line.get("level") in ("error", "critical")]
        dead = server.process.poll() is not None
    wrong = [*seen.wrong, *([open_ends] if open_ends else []), *bugs]
    wrong += [f"{internal:.0f} calls ended with INTERNAL"] if internal else []
    wrong += ["the process ended"] if dead else []
    kinds = ", ".join(f"{count:,} {name}" for name, count in sorted(seen.kinds.items()) if name != "good")
    ends = ", ".join(f"{count:,} {end}" for end, count in seen.ends.most_common())
    return Row(
        "bad input", f"{seen.malformed:,} malformed, {seen.good:,} good", kinds,
        seen.lost, len(wrong), "-", (f"seed {seed}; {ends}", *wrong[:10]),
    )  # fmt: skip


def crash(models: Path, folder: Path, times: int, model: str) -> Row:
    """Callers get through although the process dies."""
    seen = crashes(models, folder, times, between_s=1.0)
    recovery = f"ready {max(seen.ready_s):.1f} s after the kill"
    return Row(
        f"a crash, {model}", f"{seen.answered:,} calls", f"{times} SIGKILL", len(seen.failed), seen.wrong, recovery,
        tuple(seen.failed[:5]),
    )  # fmt: skip


def drains(tiny: Path, folder: Path, times: int) -> Row:
    """A server that is told to end answers what it accepted."""
    seen = [drain(tiny, folder, delay_s=0.2 * number) for number in range(times)]
    calls = sum(one.ends.total() for one in seen)
    codes = sum(one.exit_code != 0 for one in seen)
    return Row(
        "drain", f"{calls:,} calls", f"{times} SIGTERM", sum(one.lost for one in seen), codes,
        f"ended {max(one.took_s for one in seen):.1f} s after it", tuple(str(dict(one.ends)) for one in seen),
    )  # fmt: skip


def swapped(models: Path, folder: Path, count: int, every_s: float) -> Row:
    """Versions of the real model come and go."""
    seen = swaps(models, folder, count, every_s)
    return Row(
        "versions change", f"{seen.calls:,} calls at {seen.rate_per_s:.0f}/s, {SHARE:g} of the maximum",
        f"{count} swaps", seen.failed.total(), seen.wrong,
        f"longest call {seen.worst_s:.1f} s",
        (
            f"a swap took {min(seen.took_s):.1f} to {max(seen.took_s):.1f} s; memory "
            f"{seen.rss_growth_bytes / 2**20:+.0f} MiB since the first {SETTLED + 1}", *map(str, seen.failed.items()),
        ),
    )  # fmt: skip


def overloaded(models: Path, folder: Path, duration_s: float, probe_s: float) -> Row:
    """Three times too much: what is still answered in time."""
    with running_server(models, "--state-dir", str(folder)) as server:
        seen = overload(server, duration_s, probe_s)
        open_ends = unsettled(server)
    return Row(
        "overload", f"{seen.calls:,} calls at {seen.rate_per_s:.0f}/s, {TIMES:g} times the maximum, {duration_s:g} s",
        f"deadlines of {1000 * DEADLINE_S:.0f} ms",
        0, int(bool(open_ends)),
        f"p99 {1000 * seen.after_s:.0f} ms from {SETTLED_S:g} s after it on, {1000 * seen.before_s:.0f} ms before",
        (
            f"goodput {seen.goodput_per_s:.0f}/s, {seen.goodput_ratio:.2f} of the best below saturation (bar 0.9); "
            f"refused after {1000 * seen.refused_s:.1f} ms (bar 5); memory {seen.rss_growth_bytes / 2**20:+.0f} MiB; "
            f"{seen.answered:,} answered, {seen.refused:,} refused", *([open_ends] if open_ends else []),
        ),
    )  # fmt: skip


def rows(models: Path, folder: Path, short: bool, seed: int) -> Iterator[Row]:
    """One after the other."""
    tiny = folder / "tiny"
    export_bundle("random", "--models", str(tiny), *TINY)
    yield exactly_once(tiny, folder, 3_000 if short else 100_000, seed)
    yield bad_input(tiny, folder, 1_000 if short else 10_000, seed)
    yield crash(tiny, folder, 1 if short else 10, "a small model")
    yield drains(tiny, folder, 2 if short else 5)
    if not short:
        yield crash(models, folder, 3, "the real model")
        yield swapped(models, folder, count=100, every_s=4.0)
        yield overloaded(models, folder, duration_s=300.0, probe_s=10.0)


def table(done: list[Row]) -> Table:
    """A line for each promise."""
    drawn = Table("promise", "load", "faults injected", "lost", "wrong", "worst recovery", title="chaos")
    for row in done:
        colour = "green" if row.kept else "red"
        drawn.add_row(
            row.promise, row.load, row.faults, f"[{colour}]{row.lost}", f"[{colour}]{row.wrong}", row.recovery
        )
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--short", action="store_true", help="few faults, no swaps, no overload")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 150)
    done: list[Row] = []
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="harken-chaos-") as folder:
        for row in rows(arguments.models, Path(folder), arguments.short, arguments.seed):
            done.append(row)
            console.print(f"{row.promise}: {'kept' if row.kept else 'BROKEN'}")
            for note in row.notes:
                console.print(f"  {note}", highlight=False)
    console.print(table(done))
    console.print(f"{(time.monotonic() - started_s) / 60:.1f} minutes")
    if not all(row.kept for row in done):
        sys.exit(1)


if __name__ == "__main__":
    main()
