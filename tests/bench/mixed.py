"""The bars of interactive calls beside a bulk stream: what it costs them, and what they leave it."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.contestants import Load
from bench.hall import Hall
from bench.measure import Measure, disturbed, p99
from bench.pairs import Bar, Outcome
from bench.workloads import MAX_LENGTH, W1, every
from harken_client.load.pacer import OpenLoop

SHARE = 0.2
"""Of the maximum, what interactive calls ask for."""


class Meter:
    """Answers of the bulk stream over time."""

    def __init__(self, hall: Hall) -> None:
        self._bulk = hall.bulk
        self.per_s = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """The stream runs meanwhile, and `per_s` is known afterwards."""
        self._bulk.ask("begin")
        try:
            before = self._bulk.ask("count")
            yield
            after = self._bulk.ask("count")
        finally:
            self._bulk.ask("end")
        self.per_s = (after["answered"] - before["answered"]) / (after["at_s"] - before["at_s"])


def w1_bulk(measure: Measure) -> list[Outcome]:
    """W1 in an open loop at 20 % of the maximum, alone and beside a bulk stream of 100,000."""
    server, meter = measure.hall.harken, Meter(measure.hall)
    rate = SHARE * measure.maximum(W1)
    loads: list[Load] = []

    def interactive(offset: int) -> float:
        loads.append(measure.load(server, W1, OpenLoop(rate, offset), offset, longer=2.0))
        return p99(loads[-1].latencies_s())

    def longest(_: int) -> float:
        return statistics.median(measure.hall.limit.each_s(every(MAX_LENGTH), 0, 5))

    def bulk_alone(_: int) -> float:
        with meter.running():
            time.sleep(measure.pace.run_s)
        return meter.per_s

    def both(offset: int) -> tuple[float, float]:
        with meter.running():
            tail_s = interactive(offset)
        return tail_s, meter.per_s

    rounds = measure.in_turns(
        {
            "alone": lambda offset: (interactive(offset), 0.0),
            "bulk": lambda offset: (0.0, bulk_alone(offset)),
            "both": both,
            "longest": lambda offset: (longest(offset), 0.0),
        }
    )
    runs = [one.runs for one in rounds]
    tails = {name: 1000 * statistics.median(run[name][0] for run in runs) for name in ("alone", "both", "longest")}
    bulk = {name: statistics.median(run[name][1] for run in runs) for name in ("bulk", "both")}
    late = f"{sum(load.late_sends for load in loads)} of {sum(len(load.calls) for load in loads)} sent late"
    return [
        Outcome(
            Bar("W1 + bulk", f"{rate:.0f}/s", "p99 over (2x alone + the longest alone)", 1.0, at_least=False),
            [run["both"][0] / (2 * run["alone"][0] + run["longest"][0]) for run in runs],
            "",
            f"p99 {tails['both']:.0f} ms, alone {tails['alone']:.0f}, longest {tails['longest']:.0f}; {late}",
            disturbed(rounds),
        ),
        Outcome(
            Bar("W1 + bulk", f"{rate:.0f}/s", "bulk over what interactive calls leave", 0.85),
            [run["both"][1] / (run["bulk"][1] - rate) for run in runs],
            "",
            f"bulk {bulk['both']:.1f}/s, alone {bulk['bulk']:.1f}, of which {rate:.1f} are taken",
            disturbed(rounds),
        ),
    ]
