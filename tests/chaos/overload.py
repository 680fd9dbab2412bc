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

WINDOW_S = 0.5
"""Of the time after the load, in which a p99 is looked at."""
CALM_S = 10.0
"""So long the same calls are made before the overload and after it, at half of the maximum."""


@dataclass(frozen=True)
class Overload:
    """What happened.

    goodput_ratio      answers in time, over the best below saturation
    refused_s          median time until the server said that it has too much to do
    rss_growth_bytes   from the start of the overload to its end
    recovery_s         from its end until the p99 was what it had been for the same calls before; inf if it never was
    """

    rate_per_s: float
    calls: int
    answered: int
    refused: int
    goodput_per_s: float
    goodput_ratio: float
    refused_s: float
    rss_growth_bytes: float
    recovery_s: float


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
        recovery_s=recovery_s(before, after),
    )


def recovery_s(before: Load, after: Load) -> float:
    """When the first window ends from which on no p99 is over the worst of any window before, or near the deadline.

    A window has a few dozen calls, so its p99 is its slowest call: one long sequence behind another makes it, with or
    without an overload. So the worst of the same calls before is what is normal, and a tenth more.
    """
    normal_s = min(1.1 * max(_windows(before)), 0.9 * DEADLINE_S)
    calm = [p99_s <= normal_s for p99_s in _windows(after)]
    late = len(calm) - next((number for number, good in enumerate(reversed(calm)) if not good), len(calm))
    return (late + 1) * WINDOW_S if late < len(calm) else float("inf")


def _windows(load: Load) -> list[float]:
    """The p99 of each window. A call that was refused, or too late, counts as one that took all of its time."""
    latencies: dict[int, list[float]] = {}
    for call in load.calls:
        window = latencies.setdefault(int(call.intended_s / WINDOW_S), [])
        window.append(call.latency_s if call.sequences else DEADLINE_S)
    return [_p99_s(window) for _, window in sorted(latencies.items())]


def _p99_s(latencies_s: list[float]) -> float:
    return float(np.percentile(latencies_s, 99)) if latencies_s else DEADLINE_S
