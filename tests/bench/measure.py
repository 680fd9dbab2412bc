"""What every row is made of: runs in turns, the limit's best policy, and how long all that takes."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from bench.batching import ONE_BY_ONE, WINDOW, Policy
from bench.contestants import ENOUGH_S, Limit, Load, Server, send
from bench.hall import Hall
from bench.pairs import Bar, Outcome, Round, interleave
from bench.workloads import STRIDE, Mix
from harken_client.load.pacer import ClosedLoop, OpenLoop

T = TypeVar("T")


@dataclass(frozen=True)
class Pace:
    """How long everything takes.

    rounds             in which the contestants of a row each run once
    reference_rounds   those of them in which the baselines run as well
    trial_s            a try of one policy of the limit
    alone              calls in a block of one at a time, `alone_rounds` of them
    repeats            of disturbed rounds, in one row
    """

    rounds: int = 7
    reference_rounds: int = 2
    run_s: float = 8.0
    warmup_s: float = 1.0
    trial_s: float = 1.5
    alone: int = 250
    alone_rounds: int = 8
    repeats: int = 3


BURSTS = 2.0
"""So many times longer do fixed batches run: their answers come 32 at once, seconds apart."""

QUICK = Pace(rounds=2, reference_rounds=1, run_s=4.0, trial_s=0.5, alone=40, alone_rounds=2, repeats=0)


@dataclass(frozen=True)
class Ceiling:
    """The policy of the limit that was best in its trial, and how it compares there with one by one."""

    policy: Policy
    per_s: float
    one_by_one_per_s: float

    @property
    def gain(self) -> float:
        return self.per_s / self.one_by_one_per_s

    def void(self, least: float) -> str:
        """Why this is no limit to be measured against, or ""."""
        return "" if self.gain >= least else f"the limit is {self.gain:.2f}x one by one, not {least:g}x"

    def __str__(self) -> str:
        return f"limit: {self.policy}, {self.gain:.2f}x one by one"


class Measure:
    """Runs what a row asks for; keeps what a later row needs of an earlier one.

    say   told what goes on, a line each time
    """

    def __init__(self, hall: Hall, pace: Pace, say: Callable[[str], None]) -> None:
        self.hall = hall
        self.pace = pace
        self.maxima: dict[Mix, float] = {}
        self._say = say
        self._trials: dict[tuple[Limit, Mix], dict[Policy, float]] = {}

    def in_turns(
        self,
        runs: Mapping[str, Callable[[int], T]],
        references: Mapping[str, Callable[[int], T]] | None = None,
        rounds: int | None = None,
    ) -> list[Round[T]]:
        """A B B A over `runs`, each told the sequence to start with; `references` run in some of the rounds."""
        count = rounds or self.pace.rounds
        everyone = {**runs, **(references or {})}
        every_so_many = -(-count // self.pace.reference_rounds)
        turns = [list(everyone) if number % every_so_many == 0 else list(runs) for number in range(count)]

        def run(name: str, number: int) -> tuple[T, float]:
            result, foreign = self.hall.watched(lambda: everyone[name](number * STRIDE))
            self._say(f"round {number + 1} of {count}: {name}; others took {100 * foreign:.1f} %")
            return result, foreign

        return interleave(turns, run, self.pace.repeats)

    def load(
        self,
        server: Server,
        mix: Mix,
        pacer: ClosedLoop | OpenLoop,
        offset: int,
        *,
        deadline_s: float = ENOUGH_S,
        longer: float = 1.0,
    ) -> Load:
        """One run of load, `longer` times as long as usual.

        Raises ValueError if a call of a closed loop fails, or none is answered: its rate would say nothing.
        """
        in_flight = pacer.concurrency if isinstance(pacer, ClosedLoop) else 0
        # Many in flight take longer to come into their stride.
        warmup_s = self.pace.warmup_s * (2 if in_flight > WINDOW else 1)
        duration_s = self.pace.run_s * longer
        load = send(server, mix, pacer, offset=offset, duration_s=duration_s, warmup_s=warmup_s, deadline_s=deadline_s)
        if in_flight and (load.failures or not load.per_s):
            what = f"failed: {load.failures}" if load.failures else f"were not answered within {duration_s:g} s"
            raise ValueError(f"calls of {mix.name} at {in_flight} in flight {what}")
        return load

    def closed(self, server: Server, mix: Mix, in_flight: int, longer: float = 1.0) -> Callable[[int], float]:
        """Runs whose result is sequences a second, so many always in flight."""
        return lambda offset: self.load(server, mix, ClosedLoop(in_flight), offset, longer=longer).per_s

    def ceiling(self, limit: Limit, mix: Mix, policies: Sequence[Policy]) -> Ceiling:
        """The best of `policies`, one by one among them, each tried once for all rows."""
        known = self._trials.setdefault((limit, mix), {})
        missing = [policy for policy in policies if policy not in known]
        if missing:
            self._say(f"{mix.name}: trying {len(missing)} policies of the limit")
            known.update(limit.trials(mix, missing, self.pace.trial_s))
        best = max(policies, key=lambda policy: known[policy])
        return Ceiling(best, known[best], known[ONE_BY_ONE])

    def whole(self, limit: Limit, mix: Mix, policy: Policy, per_s: float) -> Callable[[int], float]:
        """Runs of the limit whose result is sequences a second; about `per_s` is expected."""
        seen = [per_s]

        def run(offset: int) -> float:
            # Whole windows, and a little more than the time that the others get: this run may be the fastest yet.
            count = WINDOW * math.ceil(max(seen) * self.pace.run_s * 1.05 / WINDOW)
            seen.append(limit.per_s(mix, policy, offset, count))
            return seen[-1]

        return run

    def maximum(self, mix: Mix) -> float:
        """Sequences a second of harken in a closed loop, from the row that measured it, or else from one run."""
        if mix not in self.maxima:
            self.maxima[mix] = self.load(self.hall.harken, mix, ClosedLoop(64), 0).per_s
        return self.maxima[mix]


def outcome(
    bar: Bar, rounds: Sequence[Round[T]], ratio: Callable[[Mapping[str, T]], float], void: str, note: str
) -> Outcome:
    """One ratio of each round."""
    return Outcome(bar, [ratio(one.runs) for one in rounds], void, note, disturbed(rounds))


def disturbed(rounds: Iterable[Round[T]]) -> int:
    """How many rounds stayed so, whatever was repeated."""
    return sum(one.disturbed for one in rounds)


def median(rounds: Iterable[Round[float]], name: str) -> float:
    """Over the rounds in which this contestant ran."""
    return statistics.median(one.runs[name] for one in rounds if name in one.runs)


def rates(rounds: Sequence[Round[float]], *names: str) -> str:
    """Median rates, for a note."""
    return ", ".join(f"{name} {median(rounds, name):.1f}/s" for name in names)


def p99(latencies_s: Sequence[float]) -> float:
    """Raises ValueError if no call was answered."""
    if not latencies_s:
        raise ValueError("no call was answered")
    return float(np.percentile(latencies_s, 99))
