"""The bars of the open loop: calls come at their own times, and latency counts from when they were meant to be sent."""

import statistics
from collections.abc import Callable

from bench.batching import ALL
from bench.contestants import Load, one_at_a_time
from bench.measure import Measure, disturbed, median, outcome, p99
from bench.pairs import Bar, Outcome
from bench.workloads import MAX_LENGTH, W1, W3, W3_LONG, W3_SHORT, every
from harken_client.load.pacer import OpenLoop

DEADLINE_S = 0.25
BELOW = (0.7, 0.8, 0.9)
"""Of the maximum: among them is the best rate below saturation."""


def w3_half(measure: Measure) -> list[Outcome]:
    """W3 at half of the own maximum: what the long ones cost the short ones."""
    server, limit = measure.hall.harken, measure.hall.limit
    rate = 0.5 * measure.maximum(W3)

    def bound(_: int) -> float:
        alone_s = statistics.median(one_at_a_time(server, every(W3_SHORT), 0, 100))
        return 3 * alone_s + statistics.median(limit.each_s(every(W3_LONG), 0, 5))

    loads: list[Load] = []

    def short_p99(offset: int) -> float:
        loads.append(measure.load(server, W3, OpenLoop(rate, offset), offset))
        return p99(loads[-1].latencies_s(W3_SHORT))

    rounds = measure.in_turns({"bound": bound, "p99": short_p99})
    bar = Bar("W3 open", f"{rate:.0f}/s", "p99 of the short over (3x alone + a 400 run)", 1.0, at_least=False)
    note = f"p99 {1000 * median(rounds, 'p99'):.1f} ms, bound {1000 * median(rounds, 'bound'):.1f} ms; {_late(loads)}"
    return [outcome(bar, rounds, lambda run: run["p99"] / run["bound"], "", note)]


def w1_tail(measure: Measure) -> list[Outcome]:
    """W1 at 0.75 of the rate of one by one in-process: the tail against the longest sequence alone."""
    server, limit = measure.hall.harken, measure.hall.limit
    rate = 0.75 * measure.ceiling(limit, W1, ALL).one_by_one_per_s
    loads: list[Load] = []

    def longest(_: int) -> float:
        return statistics.median(limit.each_s(every(MAX_LENGTH), 0, 7))

    def all_p99(offset: int) -> float:
        loads.append(measure.load(server, W1, OpenLoop(rate, offset), offset))
        return p99(loads[-1].latencies_s())

    rounds = measure.in_turns({"longest": longest, "p99": all_p99})
    bar = Bar("W1 open", f"{rate:.0f}/s", "p99 over the longest alone", 1.5, at_least=False)
    tail_ms, longest_ms = (1000 * median(rounds, name) for name in ("p99", "longest"))
    note = f"p99 {tail_ms:.0f} ms, longest {longest_ms:.0f} ms; {_late(loads)}"
    return [outcome(bar, rounds, lambda run: run["p99"] / run["longest"], "", note)]


def overload(measure: Measure) -> list[Outcome]:
    """W1 at three times the maximum, 250 ms each: what is still answered in time, and how soon the rest is refused."""
    server = measure.hall.harken
    maximum = measure.maximum(W1)

    def at(share: float) -> Callable[[int], Load]:
        pace_per_s = share * maximum
        return lambda offset: measure.load(server, W1, OpenLoop(pace_per_s, offset), offset, deadline_s=DEADLINE_S)

    tried = {share: at(share)(0).goodput_per_s(DEADLINE_S) for share in BELOW}
    best = max(tried, key=lambda share: tried[share])
    if not tried[best]:
        raise ValueError(f"nothing was answered within {DEADLINE_S} s at {', '.join(map(str, BELOW))} of the maximum")
    rounds = measure.in_turns({"below": at(best), "over": at(3)})
    over = [one.runs["over"] for one in rounds]
    sent = sum(len(load.calls) for load in over)
    answered = sum(len(load.latencies_s()) for load in over)
    refused = sum(len(load.refusals_s()) for load in over)
    in_time = {
        name: statistics.median(one.runs[name].goodput_per_s(DEADLINE_S) for one in rounds) for name in rounds[0].runs
    }
    in_flight = f"{3 * maximum:.0f}/s"
    return [
        outcome(
            Bar("W1 overload", in_flight, "goodput over the best below saturation", 0.9),
            rounds,
            lambda run: run["over"].goodput_per_s(DEADLINE_S) / run["below"].goodput_per_s(DEADLINE_S),
            "",
            f"in time {in_time['over']:.0f}/s, and {in_time['below']:.0f}/s at {best:g} of {maximum:.0f}/s",
        ),
        Outcome(
            Bar("W1 overload", in_flight, "refused after", 5.0, at_least=False, unit="ms"),
            # A server that never refuses lets its callers wait for as long as they can.
            [1000 * statistics.median(load.refusals_s() or [DEADLINE_S]) for load in over],
            "",
            f"{answered} answered, {refused} refused, {sent - answered - refused} too late; {_late(over)}",
            disturbed(rounds),
        ),
    ]


def _late(loads: list[Load]) -> str:
    return f"{sum(load.late_sends for load in loads)} of {sum(len(load.calls) for load in loads)} sent late"
