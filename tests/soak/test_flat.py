"""The rule by which a soak fails notices what grows, and nothing else."""

import random
from collections.abc import Callable

import pytest
from soak.flat import Point, growth
from soak.report import MIB, Report, verdicts
from soak.samples import Sample
from soak.traffic import Tally

UNTIL_S = 1800.0
ALLOWED = 32.0


def curve(value: Callable[[float], float], seed: int) -> list[Point]:
    """Every 2 s, with noise of 20, and 250 more for a tenth of each minute, as while two versions are loaded."""
    noise = random.Random(seed)  # noqa: S311 - noise, no secret
    return [
        Point(at_s, value(at_s) + noise.gauss(0, 20) + 250 * (at_s % 60 < 6))
        for at_s in range(2, int(UNTIL_S), 2)
    ]  # fmt: skip


def at_rest(value: Callable[[float], float], seed: int) -> list[Point]:
    """Every 75 s, with little noise."""
    noise = random.Random(seed)  # noqa: S311 - noise, no secret
    return [Point(at_s, value(at_s) + noise.gauss(0, 4)) for at_s in range(75, int(UNTIL_S) + 1, 75)]


@pytest.mark.parametrize("seed", range(5))
def test_what_only_warms_up_is_flat(seed: int) -> None:
    def warms_up(at_s: float) -> float:
        return 600 + min(at_s, 300.0)

    assert growth(curve(warms_up, seed), UNTIL_S).trend < ALLOWED
    assert growth(at_rest(warms_up, seed), UNTIL_S).worst < ALLOWED


@pytest.mark.parametrize("seed", range(5))
def test_a_leak_of_a_little_every_minute_is_noticed(seed: int) -> None:
    def leaks(at_s: float) -> float:
        return 600 + 2 * (at_s // 60)

    assert growth(curve(leaks, seed), UNTIL_S).trend > ALLOWED
    found = growth(at_rest(leaks, seed), UNTIL_S)
    assert min(found.trend, found.rise) > 0.8 * ALLOWED
    assert found.worst > ALLOWED


@pytest.mark.parametrize("seed", range(5))
def test_a_jump_near_the_end_is_no_trend_and_is_noticed_all_the_same(seed: int) -> None:
    found = growth(at_rest(lambda at_s: 600 + 100 * (at_s > 1500), seed), UNTIL_S)
    assert found.trend < ALLOWED < found.rise


def test_one_descriptor_that_stays_in_each_round_is_noticed() -> None:
    found = growth([Point(at_s, 40 + at_s // 15) for at_s in range(15, 121, 15)], 120.0)
    assert found.trend == pytest.approx(0.8 * 8)


def test_a_single_peak_is_no_trend() -> None:
    points = [Point(at_s, 600 + 300 * (at_s == 300)) for at_s in range(75, 1801, 75)]
    assert growth(points, UNTIL_S).trend == 0
    assert growth(points, UNTIL_S).rise == 0


def test_too_few_points_are_no_verdict() -> None:
    with pytest.raises(ValueError, match="1 points are too few"):
        growth([Point(1.0, 600)], 120.0)


def report(**leaks: float) -> Report:
    """Of a server that leaks so much of each in every round, and is flat otherwise."""

    def sample(at_s: float, load_mib: float = 0.0) -> Sample:
        values = {"mib": 500.0 + load_mib, "descriptors": 30.0, "threads": 18.0, "series": 690.0}
        mib, *counts = (value + leaks.get(name, 0.0) * (at_s // 60) for name, value in values.items())
        descriptors, threads, series = map(int, counts)
        return Sample(at_s, int(mib * MIB), descriptors, threads, series, (1,), 0.001)

    busy = [sample(float(at_s), 200.0 + 400.0 * (10 < at_s % 60 < 20)) for at_s in range(2, int(UNTIL_S), 2)]
    resting = [sample(float(at_s)) for at_s in range(60, int(UNTIL_S) + 1, 60)]
    return Report(1, UNTIL_S / 60, 10.0, 30, Tally(), busy, resting)


@pytest.mark.parametrize(
    ("leaks", "broken"),
    [
        ({}, []),
        ({"mib": 0.5}, []),
        ({"mib": 2.0}, ["growth of memory under load, MiB", "growth of memory at rest, MiB"]),
        ({"descriptors": 0.25}, ["growth of descriptors at rest"]),
        ({"threads": 1.0}, ["growth of threads at rest"]),
        ({"series": 2.0}, ["growth of series of metrics"]),
    ],
)
def test_a_soak_breaks_by_what_leaks_and_nothing_else(leaks: dict[str, float], broken: list[str]) -> None:
    assert [one.what for one in verdicts(report(**leaks)) if not one.holds] == broken


def test_a_call_without_an_end_and_a_wrong_answer_break_it() -> None:
    lost, wrong = report(), report()
    lost.tally.begun = 1
    wrong.tally.wrong.append("Encode: off by 0.1")
    assert [one.what for one in verdicts(lost) if not one.holds] == ["calls without an end"]
    assert [one.what for one in verdicts(wrong) if not one.holds] == ["wrong answers or ends"]
