"""The bars with a number always in flight. Each function measures in turns, and gives the outcomes that it decides."""

import statistics
from collections.abc import Callable

from bench.batching import ALL, ONE_BY_ONE, WINDOWS
from bench.contestants import Load, one_at_a_time
from bench.machine import usable_cores
from bench.measure import BURSTS, Measure, disturbed, median, outcome, p99, rates
from bench.pairs import Bar, Outcome, Round
from bench.workloads import W1, W2, W3, W3_LONG, W3_SHORT
from harken_client.load.pacer import ClosedLoop

LEAST_ALL, LEAST_WINDOWS = 1.2, 1.05
"""The limit over one by one in-process: below it, batching has nothing to show here."""

LEAST_SINGLE = 0.8
"""The baseline that runs one by one over the same in-process: below it, it is no fair one."""

LEAST_COMPUTED, MOST_COMPUTED = 3.5, 5.5
"""The baseline with fixed batches on W1: computed tokens over real ones."""


def w1_256(measure: Measure) -> list[Outcome]:
    """W1 at 256 in flight against the limit with all sorted, fp32 and int8 in turns."""
    hall = measure.hall
    fp32 = measure.ceiling(hall.limit, W1, ALL)
    int8 = measure.ceiling(hall.limit_int8, W1, ALL)
    rounds = measure.in_turns(
        {
            "harken": measure.closed(hall.harken, W1, 256),
            "limit": measure.whole(hall.limit, W1, fp32.policy, fp32.per_s),
            "harken int8": measure.closed(hall.harken_int8, W1, 256),
            "limit int8": measure.whole(hall.limit_int8, W1, int8.policy, int8.per_s),
        }
    )
    measure.maxima[W1] = median(rounds, "harken")
    return [
        outcome(
            Bar("W1", "256", "of the limit, all sorted", 0.90),
            rounds,
            lambda run: run["harken"] / run["limit"],
            fp32.void(LEAST_ALL),
            f"{rates(rounds, 'harken', 'limit')}; {fp32}",
        ),
        outcome(
            Bar("W1 int8", "256", "of its own limit", 0.85),
            rounds,
            lambda run: run["harken int8"] / run["limit int8"],
            int8.void(LEAST_ALL),
            f"{rates(rounds, 'harken int8', 'limit int8')}; {int8}",
        ),
        outcome(
            Bar("W1 int8", "256", "of the fp32 server", 1.6),
            rounds,
            lambda run: run["harken int8"] / run["harken"],
            "",
            rates(rounds, "harken int8", "harken"),
        ),
    ]


def w1_64(measure: Measure) -> list[Outcome]:
    """W1 at 64 in flight against the limit in windows of 64, and against both baselines."""
    hall = measure.hall
    ceiling = measure.ceiling(hall.limit, W1, WINDOWS)
    one_by_one = measure.whole(hall.limit, W1, ONE_BY_ONE, ceiling.one_by_one_per_s)
    references = {
        "single": measure.closed(hall.single, W1, 64),
        "fixed": measure.closed(hall.fixed, W1, 64, longer=BURSTS),
        "in-process": one_by_one,
    }
    hall.fixed_tokens()
    rounds = measure.in_turns(
        {
            "harken": measure.closed(hall.harken, W1, 64),
            "limit": measure.whole(hall.limit, W1, ceiling.policy, ceiling.per_s),
        },
        references,
    )
    real, computed = hall.fixed_tokens()
    padded = computed / real
    fixed_void = "" if LEAST_COMPUTED <= padded <= MOST_COMPUTED else f"fixed batches computed {padded:.2f}x"
    share = median(rounds, "single") / median(rounds, "in-process")
    with_references = [one for one in rounds if "single" in one.runs]
    return [
        outcome(
            Bar("W1", "64", "of the limit, windows of 64", 0.95),
            rounds,
            lambda run: run["harken"] / run["limit"],
            ceiling.void(LEAST_WINDOWS),
            f"{rates(rounds, 'harken', 'limit')}; {ceiling}",
        ),
        outcome(
            Bar("W1", "64", "of fixed batches of 32", 3.5),
            with_references,
            lambda run: run["harken"] / run["fixed"],
            fixed_void,
            f"{rates(rounds, 'fixed')}, which computed {padded:.2f}x the real tokens",
        ),
        outcome(
            Bar("W1", "64", "of one by one in threads", 1.0),
            with_references,
            lambda run: run["harken"] / run["single"],
            _unfair(share),
            f"{rates(rounds, 'single', 'in-process')}, so {share:.2f} of its in-process rate",
        ),
    ]


def w1_1(measure: Measure) -> list[Outcome]:
    """W1, one call at a time, against the engine alone on one thread and on all of them."""
    hall, count, threads = measure.hall, measure.pace.alone, usable_cores()
    server, limit = hall.harken, hall.limit
    runs: dict[str, Callable[[int], list[float]]] = {
        "harken": lambda offset: one_at_a_time(server, W1, offset, count),
        "one thread": lambda offset: limit.each_s(W1, offset, count),
        "all threads": lambda offset: limit.each_s(W1, offset, count, threads),
    }
    rounds = measure.in_turns(runs, rounds=measure.pace.alone_rounds)
    # Of every block the first calls find the caches as the neighbour left them.
    first = count // 20
    together = {name: [second for one in rounds for second in one.runs[name][first:]] for name in runs}
    faster = min(("one thread", "all threads"), key=lambda name: sum(together[name]))
    differences_ms = [
        1000 * (call_s - run_s) for call_s, run_s in zip(together["harken"], together[faster], strict=True)
    ]
    medians = ", ".join(f"{name} {1000 * statistics.median(seconds):.2f}" for name, seconds in together.items())
    bar = Bar("W1", "1", "over in-process, same sequence", 0.9, at_least=False, unit="ms")
    note = f"medians in ms: {medians}; {faster} is the faster over all"
    return [Outcome(bar, differences_ms, "", note, disturbed(rounds))]


def w2_64(measure: Measure) -> list[Outcome]:
    """W2 at 64 in flight against the limit, as it is and without what the calls themselves cost."""
    hall = measure.hall
    ceiling = measure.ceiling(hall.limit, W2, ALL)
    rounds = measure.in_turns(
        {
            "harken": measure.closed(hall.harken, W2, 64),
            "limit": measure.whole(hall.limit, W2, ceiling.policy, ceiling.per_s),
        }
    )
    calls = measure.load(hall.harken_null, W2, ClosedLoop(64), 0)
    call_s = calls.cpu_s / calls.answered
    void = ceiling.void(LEAST_ALL)
    return [
        outcome(
            Bar("W2", "64", "of the limit", 0.86),
            rounds,
            lambda run: run["harken"] / run["limit"],
            void,
            f"{rates(rounds, 'harken', 'limit')}; {ceiling}",
        ),
        outcome(
            Bar("W2", "64", "or without the calls' own CPU", 0.92),
            rounds,
            lambda run: without_calls(run["harken"], call_s, usable_cores()) / run["limit"],
            void,
            f"{1e6 * call_s:.0f} us of CPU a call, client and server, where the engine answers at once",
        ),
    ]


def w3_64(measure: Measure) -> list[Outcome]:
    """W3 at 64 in flight against the limit in windows of 64; each class's tail against one by one in threads."""
    hall = measure.hall
    harken, single, limit = hall.harken, hall.single, hall.limit
    ceiling = measure.ceiling(limit, W3, WINDOWS)
    runs: dict[str, Callable[[int], Load | float]] = {
        "harken": lambda offset: measure.load(harken, W3, ClosedLoop(64), offset),
        "limit": measure.whole(limit, W3, ceiling.policy, ceiling.per_s),
    }
    references: dict[str, Callable[[int], Load | float]] = {
        "single": lambda offset: measure.load(single, W3, ClosedLoop(64), offset)
    }
    rounds = measure.in_turns(runs, references)
    loads = {
        name: [load for one in rounds if isinstance(load := one.runs.get(name), Load)] for name in ("harken", "single")
    }
    numbers = [Round({name: _per_s(run) for name, run in one.runs.items()}, one.foreign, one.repeats) for one in rounds]
    measure.maxima[W3] = median(numbers, "harken")
    outcomes = [
        outcome(
            Bar("W3", "64", "of the limit, windows of 64", 0.95),
            numbers,
            lambda run: run["harken"] / run["limit"],
            ceiling.void(LEAST_WINDOWS),
            f"{rates(numbers, 'harken', 'limit')}; {ceiling}",
        )
    ]
    void = _unfair(median(numbers, "single") / ceiling.one_by_one_per_s)
    for tokens in (W3_SHORT, W3_LONG):
        # The baseline runs in fewer rounds: all its calls together are one figure.
        reference_s = p99([second for load in loads["single"] for second in load.latencies_s(tokens)])
        tails_s = [p99(load.latencies_s(tokens)) for load in loads["harken"]]
        bar = Bar("W3", "64", f"p99 of {tokens} tokens over one by one", 1.2, at_least=False)
        note = f"p99 {1000 * statistics.median(tails_s):.0f} ms, one by one in threads {1000 * reference_s:.0f} ms"
        outcomes.append(Outcome(bar, [tail_s / reference_s for tail_s in tails_s], void, note, disturbed(rounds)))
    return outcomes


def without_calls(per_s: float, call_s: float, cores: int) -> float:
    """The rate that a server would have if its calls cost no CPU.

    A sequence takes 1 / per_s seconds of all cores; the calls' CPU, spread over all cores, is not the engine's.
    Raises ValueError if nothing is left.
    """
    engine_s = 1 / per_s - call_s / cores
    if engine_s <= 0:
        raise ValueError(f"calls of {call_s:g} s of CPU on {cores} cores leave nothing at {per_s:g} a second")
    return 1 / engine_s


def _unfair(share: float) -> str:
    return "" if share >= LEAST_SINGLE else f"one by one reached {share:.2f} of its in-process rate"


def _per_s(run: Load | float) -> float:
    return run.per_s if isinstance(run, Load) else run
