"""Runs in turns, A B B A, and what their ratios say. Pure: the caller says what a run is, and what disturbed it."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

FOREIGN_LIMIT = 0.05
"""Of the machine's CPU time; a run in which others took more says little."""


@dataclass(frozen=True)
class Round(Generic[T]):
    """Each contestant once, one right after the other.

    foreign   the share of the machine that others took, in the run in which it was largest
    repeats   how often it was run again before
    """

    runs: Mapping[str, T]
    foreign: float
    repeats: int

    @property
    def disturbed(self) -> bool:
        return self.foreign > FOREIGN_LIMIT


def interleave(
    turns: Sequence[Sequence[str]], run: Callable[[str, int], tuple[T, float]], repeats: int
) -> list[Round[T]]:
    """Run the contestants of each round: every other round backwards, so that a drift falls on all alike.

    `run(name, number of the round)` returns what came of it and the share of the machine that others took. A
    disturbed round is run again, all of it, until `repeats` of all rounds together are used up; of its tries the one
    with least disturbance stays.
    """
    rounds = []
    for number, names in enumerate(turns):
        order = list(names) if number % 2 == 0 else list(reversed(names))
        tries: list[Round[T]] = []
        while not tries or (tries[-1].disturbed and repeats > 0):
            repeats -= bool(tries)
            results = {name: run(name, number) for name in order}
            foreign = max(share for _, share in results.values())
            tries.append(Round({name: result for name, (result, _) in results.items()}, foreign, len(tries)))
        best = min(tries, key=lambda tried: tried.foreign)
        rounds.append(Round(best.runs, best.foreign, len(tries) - 1))
    return rounds


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The first quartile, the median and the third, interpolated between values. Raises ValueError without any."""
    if not values:
        raise ValueError("no value has no quartiles")
    if len(values) == 1:
        return values[0], values[0], values[0]
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, median, third


@dataclass(frozen=True)
class Bar:
    """What a median must reach (`at_least`), or must not exceed."""

    workload: str
    in_flight: str
    wants: str
    bound: float
    at_least: bool = True
    unit: str = ""


@dataclass(frozen=True)
class Outcome:
    """A bar and what was measured.

    void        why nothing may be claimed, or ""
    note        what the figures were made of
    disturbed   rounds among them in which others took more than FOREIGN_LIMIT, repeats or not
    """

    bar: Bar
    values: Sequence[float]
    void: str = ""
    note: str = ""
    disturbed: int = 0

    @property
    def met(self) -> bool:
        _, median, _ = quartiles(self.values)
        return median >= self.bar.bound if self.bar.at_least else median <= self.bar.bound

    @property
    def verdict(self) -> str:
        if self.void:
            return "void"
        return "met" if self.met else "not met"
