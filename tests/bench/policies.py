"""Scheduling policies on the simulator, over one cost surface: `PYTHONPATH=tests python tests/bench/policies.py`

A closed loop of N sequences in flight, lengths lognormal (median 40, p99 300, cap 512), two lanes. The surface is
the one that a server kept (HARKEN_STATE_DIR), or the one measured in docs/performance.md.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from harken_server.planning.simulate import Arrival, Policy, Simulated, simulate
from harken_server.scheduling.backlog import Backlog
from harken_server.scheduling.cost import CostSurface
from harken_server.scheduling.memory import MemoryModel
from harken_server.scheduling.policy import Limits, Start, Wait, decide
from rich.console import Console
from rich.table import Table

MEASURED_MS = {
    4: (2.39, 1.21, 0.80, 0.70, 0.64, 0.67), 8: (2.34, 1.56, 1.34, 1.27, 1.30, 1.29),
    16: (3.02, 2.72, 2.55, 2.55, 2.48, 2.46), 32: (5.53, 5.06, 5.16, 5.09, 4.95, 5.05),
    64: (10.2, 10.4, 10.5, 10.2, 10.5, 10.7), 128: (22.1, 21.7, 21.3, 21.7, 22.6), 256: (47.9, 46.9, 48.9, 51.4),
    512: (111.0, 119.0, 129.0),
}  # fmt: skip
"""Of each length: milliseconds a sequence in batches of 1, 2, 4, 8, 16, 32."""

LIMITS = Limits(sequences=64, padded_tokens=1 << 20, memory_bytes=1 << 50)


def surface(path: Path | None) -> CostSurface:
    """The cost surface of a file that a server kept, or the measured one."""
    if path is not None:
        kept = json.loads(path.read_text())["seconds"]
        return CostSurface({(batch, length): seconds for batch, length, seconds in kept})
    return CostSurface(
        {(2**k, length): 2**k * ms / 1000 for length, row in MEASURED_MS.items() for k, ms in enumerate(row)}
    )


def start(backlog: Backlog[Simulated], lane: int, batch: Sequence[Simulated]) -> Start[str, Simulated]:
    """Whatever a policy chose, as a decision."""
    longest = max(member.length for member in batch)
    return Start(lane, "simulated", batch, backlog.cost.seconds(len(batch), longest), 0, "limit")


def first_come(most: int, padded_tokens: int, window: int = 0) -> Policy:
    """The order of arrival, up to a number and a token budget; or sorted by length within a window of arrivals."""

    def policy(
        backlogs: Mapping[str, Backlog[Simulated]], free: Sequence[int], limits: Limits, now_s: float
    ) -> Start[str, Simulated] | Wait:
        backlog = backlogs["simulated"]
        if not free or not backlog.sequences:
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
        return start(backlog, free[0], batch)

    return policy


POLICIES: dict[str, Policy] = {
    "one by one": first_come(1, 1 << 20),
    "first come, batches of 32": first_come(32, 1 << 20),
    "first come, 512 tokens": first_come(32, 512),
    "windows of 64, sorted, 512 tokens": first_come(32, 512, window=64),
    "harken": decide,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--surface", type=Path, help="a file that a server kept in its state folder")
    parser.add_argument("--sequences", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    random = np.random.default_rng(arguments.seed)
    lengths = np.clip(np.round(40 * np.exp(0.866 * random.standard_normal(arguments.sequences))), 3, 512).astype(int)
    table = Table("policy", "in flight", "sequences/s", "p50 ms", "p99 ms", "padding", "mean batch", "us a sequence")
    for in_flight in (4, 16, 64, 256):
        for name, policy in POLICIES.items():
            rest = iter(lengths.tolist())

            def follow(now_s: float, rest: Iterator[int] = rest) -> Arrival | None:
                length = next(rest, None)
                return None if length is None else Arrival(now_s, length)

            began_s = time.perf_counter()
            first = [Arrival(0.0, next(rest)) for _ in range(in_flight)]
            simulation = simulate(
                first, surface(arguments.surface), MemoryModel(0, 0), LIMITS, 2, policy=policy, follow=follow
            )
            spent_us = 1e6 * (time.perf_counter() - began_s) / len(simulation.sequences)
            p50, p99 = np.percentile(simulation.latencies_s(), [50, 99])
            table.add_row(
                name, str(in_flight), f"{simulation.answered_per_s():.1f}", f"{1000 * p50:.0f}", f"{1000 * p99:.0f}",
                f"{100 * simulation.padding_share():.1f} %", f"{simulation.mean_batch():.2f}", f"{spent_us:.0f}",
            )  # fmt: skip
        table.add_section()
    Console().print(table)


if __name__ == "__main__":
    main()
