"""Runs in turns: who runs when, what is repeated, and what the ratios say."""

from collections.abc import Iterator, Sequence

import pytest
from bench.pairs import Bar, Outcome, Round, interleave, quartiles


class Log:
    """Runs that take their disturbance from a list, and number themselves."""

    def __init__(self, shares: Sequence[float] = ()) -> None:
        self.ran: list[tuple[str, int]] = []
        self._shares: Iterator[float] = iter(shares)

    def __call__(self, name: str, number: int) -> tuple[int, float]:
        self.ran.append((name, number))
        return len(self.ran), next(self._shares, 0.0)


def test_rounds_alternate_their_order() -> None:
    log = Log()
    rounds = interleave([["a", "b"]] * 3, log, repeats=0)
    assert log.ran == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert [one.runs for one in rounds] == [{"a": 1, "b": 2}, {"b": 3, "a": 4}, {"a": 5, "b": 6}]


def test_some_may_sit_out_some_rounds() -> None:
    log = Log()
    rounds = interleave([["a", "b", "c"], ["a", "b"]], log, repeats=0)
    assert [sorted(one.runs) for one in rounds] == [["a", "b", "c"], ["a", "b"]]


def test_a_disturbed_round_is_run_again_whole_and_the_quiet_one_stays() -> None:
    log = Log([0.01, 0.2, 0.01, 0.02])
    (only,) = interleave([["a", "b"]], log, repeats=3)
    assert log.ran == [("a", 0), ("b", 0)] * 2
    assert only == Round({"a": 3, "b": 4}, foreign=0.02, repeats=1)
    assert not only.disturbed


def test_repeats_are_shared_by_all_rounds_and_the_least_disturbed_try_stays() -> None:
    log = Log([0.3, 0.2, 0.4, 0.5, 0.6])
    rounds = interleave([["a"]] * 3, log, repeats=2)
    assert rounds == [
        Round({"a": 2}, foreign=0.2, repeats=2),
        Round({"a": 4}, foreign=0.5, repeats=0),
        Round({"a": 5}, foreign=0.6, repeats=0),
    ]
    assert all(one.disturbed for one in rounds)


def test_a_share_at_the_limit_is_not_disturbed() -> None:
    (only,) = interleave([["a"]], Log([0.05]), repeats=1)
    assert (only.repeats, only.disturbed) == (0, False)


def test_quartiles_are_interpolated() -> None:
    assert quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == (2.0, 3.0, 4.0)
    assert quartiles([1.0, 2.0]) == (1.25, 1.5, 1.75)
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)
    with pytest.raises(ValueError, match="quartiles"):
        quartiles([])


@pytest.mark.parametrize(
    ("bound", "at_least", "verdict"),
    [(0.9, True, "met"), (0.91, True, "not met"), (0.9, False, "met"), (0.89, False, "not met")],
)
def test_the_median_alone_decides(bound: float, at_least: bool, verdict: str) -> None:
    bar = Bar("W1", "64", "of the limit", bound, at_least)
    assert Outcome(bar, [0.1, 0.9, 5.0]).verdict == verdict


def test_a_void_outcome_claims_nothing() -> None:
    assert Outcome(Bar("W1", "64", "of the limit", 0.9), [1.0], void="the limit is none").verdict == "void"
