"""Overload: three times what the server can bear, for minutes, each call with a deadline of 250 ms."""

import statistics
from dataclasses import dataclass

import numpy as np
from bench.contestants import Load, Server, send
from bench.workloads import W1
from harken_client.load.pacer import ClosedLoop, OpenLoop
from support.server import RunningServer

DEADLINE_S = 0.25
TIMES = 3.0
BELOW = (0.7, 0.8, 0.9)
"""Of the maximum: among them is the best goodput below saturation."""

CALM_S = 12.0
"""So long the same calls are made before the overload and after it, at half of the maximum."""
SETTLED_S = 2.0
"""By then after its end all is as before: of later calls the p99 is compared."""


@dataclass(frozen=True)
class Overload:
    """What happened.

    goodput_ratio      answers in time, over the best below saturation
    refused_s          median time until the server said that it has too much to do
    rss_growth_bytes   from the start of the overload to its end
    before_s, after_s  p99 of the same calls before it, and from SETTLED_S after its end on
    """

    rate_per_s: float
    calls: int
    answered: int
    refused: int
    goodput_per_s: float
    goodput_ratio: float
    refused_s: float
    rss_growth_bytes: float
    before_s: float
    after_s: float


def overload(running: RunningServer, duration_s: float, probe_s: float) -> Overload:
    """Measure the maximum, then the best below it, then what three times as much does. Blocks for all of that."""
    server = Server(running.target, running.process.pid)

    def at(share: float, seed: int, seconds: float, warmup_s: float = 1.0) -> Load:
        pacer = OpenLoop(share * maximum, seed)
        return send(server, W1, pacer, offset=1024 * seed, duration_s=seconds, warmup_s=warmup_s, deadline_s=DEADLINE_S)

    maximum = send(server, W1, ClosedLoop(64), offset=0, duration_s=probe_s, warmup_s=1.0).per_s
    best = max(at(share, seed, probe_s).goodput_per_s(DEADLINE_S) for seed, share in enumerate(BELOW, 1))
    before = at(0.5, 4, CALM_S, warmup_s=0.0)
    rss_bytes = running.total("harken_memory_bytes", kind="rss")
    over = at(TIMES, 5, duration_s)
    grown = running.total("harken_memory_bytes", kind="rss") - rss_bytes
    after = at(0.5, 4, CALM_S, warmup_s=0.0)
    return Overload(
        rate_per_s=TIMES * maximum,
        calls=len(over.calls),
        answered=len(over.latencies_s()),
        refused=len(over.refusals_s()),
        goodput_per_s=over.goodput_per_s(DEADLINE_S),
        goodput_ratio=over.goodput_per_s(DEADLINE_S) / best,
        refused_s=statistics.median(over.refusals_s() or [DEADLINE_S]),
        rss_growth_bytes=grown,
        before_s=settled_p99_s(before),
        after_s=settled_p99_s(after),
    )


def settled_p99_s(load: Load) -> float:
    """Of all calls but those of the first SETTLED_S. One that was refused, or too late, took all of its time."""
    calls = [call for call in load.calls if call.intended_s >= SETTLED_S]
    return float(np.percentile([call.latency_s if call.sequences else DEADLINE_S for call in calls], 99))
