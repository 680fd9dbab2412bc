"""What the scheduler costs: CPU time a request of add, decide and start, and a long simulation whose invariants hold.

`PYTHONPATH=tests python tests/bench/scheduler_time.py [--sequences 1000000]`
"""

import argparse
import gc
import resource
import time
from collections.abc import Iterator
from itertools import cycle

import numpy as np
from bench.policies import LIMITS, Surfaces, workload
from harken_server.planning.simulate import Arrival, Simulated, simulate
from harken_server.scheduling.backlog import Backlog
from harken_server.scheduling.companions import Limits
from harken_server.scheduling.deadline import Deadline
from harken_server.scheduling.lanes import Lanes
from harken_server.scheduling.memory import MemoryModel
from harken_server.scheduling.policy import Start, decide
from harken_server.scheduling.waiting import Priority, Waiting
from rich.console import Console
from rich.table import Table
from support.checked import Checked

NEVER = Deadline(1e9)


def request_us(lengths: list[int], waiting: int, rounds: int, flows: int) -> float:
    """CPU microseconds a request, at so many that wait: the best of some rounds."""
    surfaces = Surfaces.read(None)
    backlog: Backlog[Waiting] = surfaces.backlog(wide=True)  # type: ignore[assignment]  # nothing simulated is read
    lanes = Lanes(2, wide=True)
    lanes.start(0, 0.0, 1.0)
    rest = cycle(lengths)
    of_flow = [object() for _ in range(flows)]

    def fresh(count: int) -> list[Waiting]:
        return [
            Waiting(next(rest), NEVER, Priority.INTERACTIVE, of_flow[index % flows] if flows else object(), 0.0)
            for index in range(count)
        ]

    for new in fresh(waiting):
        backlog.add(new)
    best_us = float("inf")
    for _ in range(rounds):
        served, coming = 0, iter(fresh(3000))
        began_s = time.process_time()
        while served < 2000:
            decision = decide({"model": backlog}, lanes, LIMITS, 0.0)
            assert isinstance(decision, Start)
            backlog.start(decision.batch)
            for _ in decision.batch:
                backlog.add(next(coming))
            served += len(decision.batch)
        best_us = min(best_us, 1e6 * (time.process_time() - began_s) / served)
    return best_us


def arrivals(sequences: int, seed: int) -> Iterator[Arrival]:
    """Poisson, a tenth over what the lanes bear one by one; a twentieth goes away, all have deadlines of 2 s."""
    random = np.random.default_rng(seed)
    at_s = 0.0
    for length in cycle(workload("W1", 20_000, seed)):
        at_s += float(random.exponential(1 / 216))
        leaves_s = float(random.exponential(0.2)) if random.random() < 0.05 else float("inf")
        yield Arrival(at_s, length, deadline_s=2.0, cancel_s=leaves_s)
        sequences -= 1
        if not sequences:
            return


def simulate_checked(sequences: int) -> tuple[Checked, float]:
    """The record, and the CPU seconds it took."""
    surfaces = Surfaces.read(None)
    memory = MemoryModel(1000, 10)
    limits = Limits(64, 4096, memory.batch_bytes(4, 512))
    record = Checked(surfaces.backlog(True).cost, limits)
    backlog: Backlog[Simulated] = Backlog(surfaces.backlog(True).cost, memory, surfaces.backlog(True).wide_cost)
    began_s = time.process_time()
    simulate(arrivals(sequences, 1), backlog, limits, Lanes(2, wide=True), record=record)
    record.finish()
    return record, time.process_time() - began_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=1_000_000, help="in the long simulation; 0 leaves it out")
    arguments = parser.parse_args()
    table = Table("lengths", "waiting", "flows", "us a request")
    for name in ("W1", "W2", "W3"):
        lengths = workload(name, 20_000, 1)
        for waiting in (10, 1_000, 100_000):
            for flows in (0, 8):
                gc.collect()
                us = request_us(lengths, waiting, 5, flows)
                table.add_row(name, f"{waiting:,}", str(flows or "one each"), f"{us:.1f}")
    Console().print(table)
    if arguments.sequences:
        record, spent_s = simulate_checked(arguments.sequences)
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"simulated {arguments.sequences:,}: {record.answered:,} answered, {record.expired:,} expired,"
            f" {record.cancelled:,} cancelled, {record.batches:,} batches; every invariant held,"
            f" nobody was overtaken by over {record.most_overtaken:.1f} times what waited;"
            f" {spent_s:.0f} s of CPU, {peak_mib:.0f} MiB"
        )


if __name__ == "__main__":
    main()
