"""Scheduling policies on the simulator, over one cost surface: `PYTHONPATH=tests python tests/bench/policies.py`

Three workloads (W1: lognormal, median 40, p99 300, cap 512; W2: all 32; W3: 90 % of 16, 10 % of 400), each as a
closed loop of N in flight, and open, Poisson, at a share of what one by one can bear. The surface is the one that a
server kept (HARKEN_STATE_DIR), or the one measured in docs/performance.md.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from harken_server.planning.simulate import Arrival, Policy, Simulated, Simulation, simulate
from harken_server.scheduling.backlog import Backlog
from harken_server.scheduling.companions import Limits
from harken_server.scheduling.cost import CostSurface
from harken_server.scheduling.lanes import Lanes
from harken_server.scheduling.memory import MemoryModel
from harken_server.scheduling.policy import Start, Wait, decide
from rich.console import Console
from rich.table import Table

MEASURED_MS = {
    4: (2.39, 1.21, 0.80, 0.70, 0.64, 0.67), 8: (2.34, 1.56, 1.34, 1.27, 1.30, 1.29),
    16: (3.02, 2.72, 2.55, 2.55, 2.48, 2.46), 32: (5.53, 5.06, 5.16, 5.09, 4.95, 5.05),
    64: (10.2, 10.4, 10.5, 10.2, 10.5, 10.7), 128: (22.1, 21.7, 21.3, 21.7, 22.6), 256: (47.9, 46.9, 48.9, 51.4),
    512: (111.0, 119.0, 129.0),
}  # fmt: skip
"""Of each length: milliseconds a sequence in batches of 1, 2, 4, 8, 16, 32."""

WIDE_OVER_NARROW = {4: 0.65, 16: 0.65, 32: 0.59, 64: 0.60, 128: 0.57, 256: 0.54, 512: 0.51, 1024: 0.50, 4096: 0.50}
"""By padded tokens of a batch: its time on two cores over that on one beside a busy neighbour, measured."""

LIMITS = Limits(sequences=64, padded_tokens=1 << 20, memory_bytes=1 << 50)

SHORT, LONG = range(65), range(256, 513)


@dataclass(frozen=True)
class Surfaces:
    """What batches cost on a narrow lane and on the wide one."""

    narrow: Mapping[tuple[int, int], float]
    wide: Mapping[tuple[int, int], float]

    @classmethod
    def read(cls, path: Path | None) -> "Surfaces":
        """The file that a server kept, or the measured ones."""
        if path is not None:
            narrow = {(batch, length): s for batch, length, s in json.loads(path.read_text())["seconds"]}
        else:
            narrow = {(2**k, n): 2**k * ms / 1000 for n, row in MEASURED_MS.items() for k, ms in enumerate(row)}
        tokens, ratios = list(WIDE_OVER_NARROW), list(WIDE_OVER_NARROW.values())
        wide = {cell: seconds * float(np.interp(cell[0] * cell[1], tokens, ratios)) for cell, seconds in narrow.items()}
        return cls(narrow, wide)

    def backlog(self, wide: bool) -> Backlog[Simulated]:
        """An empty one, that has learned nothing."""
        return Backlog(CostSurface(self.narrow), MemoryModel(0, 0), CostSurface(self.wide) if wide else None)


@dataclass(frozen=True)
class Contender:
    """A policy, and whether it has the wide lane."""

    policy: Policy
    wide: bool = False


def start(backlog: Backlog[Simulated], lane: int, batch: Sequence[Simulated]) -> Start[str, Simulated]:
    """Whatever a policy chose, as a decision."""
    longest = max(member.length for member in batch)
    return Start(lane, False, "simulated", batch, backlog.cost.seconds(len(batch), longest), 0, "limit")


def first_come(most: int, padded_tokens: int, window: int = 0) -> Policy:
    """The order of arrival, up to a number and a token budget; or sorted by length within a window of arrivals."""

    def policy(
        backlogs: Mapping[str, Backlog[Simulated]], lanes: Lanes, limits: Limits, now_s: float
    ) -> Start[str, Simulated] | Wait:
        backlog = backlogs["simulated"]
        if not lanes.free or not backlog.sequences:
            return Wait()
        waiting = sorted(backlog, key=lambda member: member.serial)
        first = waiting[0]
        if window:
            waiting = sorted(waiting[:window], key=lambda member: (abs(member.length - first.length), member.serial))
        batch: list[Simulated] = []
        for member in waiting[:most]:
            longest = max(member.length, *(other.length for other in batch), 0)
            if batch and (len(batch) + 1) * longest > padded_tokens:
                break
            batch.append(member)
        return start(backlog, lanes.free[0], batch)

    return policy


CONTENDERS = {
    "one by one": Contender(first_come(1, 1 << 20)),
    "first come, batches of 32": Contender(first_come(32, 1 << 20)),
    "first come, 512 tokens": Contender(first_come(32, 512)),
    "windows of 64, sorted, 512 tokens": Contender(first_come(32, 512, window=64)),
    "harken, narrow lanes": Contender(decide),
    "harken": Contender(decide, wide=True),
}


def workload(name: str, sequences: int, seed: int) -> list[int]:
    """Lengths in tokens."""
    random = np.random.default_rng(seed)
    if name == "W1":
        lengths = np.clip(np.round(40 * np.exp(0.866 * random.standard_normal(sequences))), 3, 512)
    elif name == "W2":
        lengths = np.full(sequences, 32)
    else:
        lengths = np.where(random.random(sequences) < 0.1, 400, 16)
    return [int(length) for length in lengths]


def closed(contender: Contender, surfaces: Surfaces, lengths: Sequence[int], in_flight: int) -> Simulation:
    """So many in flight, each followed by the next."""
    rest = iter(lengths)

    def follow(now_s: float) -> Arrival | None:
        length = next(rest, None)
        return None if length is None else Arrival(now_s, length)

    first = [Arrival(0.0, next(rest)) for _ in range(in_flight)]
    simulation = Simulation()
    simulate(
        first, surfaces.backlog(contender.wide), LIMITS, Lanes(2, contender.wide),
        policy=contender.policy, follow=follow, record=simulation,
    )  # fmt: skip
    return simulation


def one_by_one_per_s(surfaces: Surfaces, lengths: Sequence[int]) -> float:
    """What two lanes bear one by one."""
    cost = CostSurface(surfaces.narrow)
    return 2 * len(lengths) / sum(cost.seconds(1, length) for length in lengths)


def opened(contender: Contender, surfaces: Surfaces, lengths: Sequence[int], load: float, seed: int) -> Simulation:
    """Poisson, at `load` of what two lanes bear one by one."""
    gaps = np.random.default_rng(seed).exponential(1 / (load * one_by_one_per_s(surfaces, lengths)), len(lengths))
    arrivals = (Arrival(float(at_s), length) for at_s, length in zip(np.cumsum(gaps), lengths, strict=True))
    simulation = Simulation()
    simulate(
        arrivals, surfaces.backlog(contender.wide), LIMITS, Lanes(2, contender.wide),
        policy=contender.policy, record=simulation,
    )  # fmt: skip
    return simulation


def runs(
    contender: Contender, surfaces: Surfaces, lengths: Sequence[int], seed: int
) -> Iterator[tuple[str, Simulation, float]]:
    """Each load: its name, what happened, and the microseconds that simulating a sequence took."""
    for in_flight in (1, 16, 64, 256):
        began_s = time.process_time()
        simulation = closed(contender, surfaces, lengths, in_flight)
        yield f"{in_flight} in flight", simulation, 1e6 * (time.process_time() - began_s) / len(lengths)
    for load in (0.5, 0.75):
        began_s = time.process_time()
        simulation = opened(contender, surfaces, lengths, load, seed)
        yield f"open, {load:.0%}", simulation, 1e6 * (time.process_time() - began_s) / len(lengths)


def ms(latencies_s: Sequence[float]) -> str:
    """p50 and p99 in milliseconds."""
    if not latencies_s:
        return "-"
    p50, p99 = 1000 * np.percentile(latencies_s, [50, 99])
    return f"{p50:.3g}, {p99:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--surface", type=Path, help="a file that a server kept in its state folder")
    parser.add_argument("--workloads", nargs="+", default=["W1", "W2", "W3"], choices=["W1", "W2", "W3"])
    parser.add_argument("--policies", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--sequences", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    surfaces = Surfaces.read(arguments.surface)
    console = Console(width=150)
    for name in arguments.workloads:
        lengths = workload(name, arguments.sequences, arguments.seed)
        table = Table(
            "policy", "load", "sequences/s", "p50, p99 ms", f"to {SHORT[-1]} tokens", f"from {LONG[0]} on",
            "padding", "mean batch", "us a sequence", title=name,
        )  # fmt: skip
        for policy in arguments.policies:
            for load, simulation, spent_us in runs(CONTENDERS[policy], surfaces, lengths, arguments.seed):
                table.add_row(
                    policy, load, f"{simulation.answered_per_s():.1f}", ms(simulation.latencies_s()),
                    ms(simulation.latencies_s(SHORT)), ms(simulation.latencies_s(LONG)),
                    f"{simulation.padding_share():.1%}", f"{simulation.mean_batch():.2f}", f"{spent_us:.0f}",
                )  # fmt: skip
            table.add_section()
        console.print(table)


if __name__ == "__main__":
    main()
