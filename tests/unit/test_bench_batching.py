"""How the limit batches: every sequence once, within the tokens, within the window."""

import pytest
from bench.batching import ALL, ONE_BY_ONE, WINDOW, WINDOWS, Policy
from hypothesis import given
from hypothesis import strategies as st

lengths_drawn = st.lists(st.integers(1, 512), max_size=300)


@pytest.mark.parametrize("policy", sorted({*ALL, *WINDOWS}, key=str), ids=str)
@given(lengths=lengths_drawn)
def test_every_sequence_runs_once_and_no_batch_exceeds_its_tokens(policy: Policy, lengths: list[int]) -> None:
    batches = policy.batches(lengths)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(batches)
    for batch in batches:
        padded = len(batch) * max(lengths[index] for index in batch)
        assert len(batch) == 1 or padded <= policy.tokens


@given(lengths=lengths_drawn)
def test_a_window_takes_only_neighbours_in_the_order_of_arrival(lengths: list[int]) -> None:
    batches = Policy(256, WINDOW).batches(lengths)
    windows = [{index // WINDOW for index in batch} for batch in batches]
    assert all(len(window) == 1 for window in windows)
    order = [next(iter(window)) for window in windows]
    assert order == sorted(order)


def test_sorted_batches_hold_neighbours_in_length_longest_first() -> None:
    assert Policy(tokens=20).batches([5, 10, 4, 30, 9]) == [[3], [1, 4], [0, 2]]


def test_windows_are_sorted_each_for_itself() -> None:
    assert Policy(tokens=20, window=2).batches([5, 10, 4, 30, 9]) == [[1, 0], [3], [2], [4]]


def test_one_by_one_keeps_the_order_of_arrival() -> None:
    assert ONE_BY_ONE.batches([5, 10, 4]) == [[0], [1], [2]]


def test_names_say_what_is_done() -> None:
    assert [str(policy) for policy in (ONE_BY_ONE, Policy(256), Policy(512, 64))] == [
        "one by one",
        "all sorted into 256 tokens",
        "windows of 64 sorted into 512 tokens",
    ]
