"""The cost surface: what was measured is returned, what was not is sensible."""

from collections.abc import Callable
from statistics import mean, median

import numpy as np
import pytest
from harken_server.scheduling.cost import CostSurface
from hypothesis import given
from hypothesis import strategies as st

cells = st.dictionaries(
    st.tuples(st.sampled_from([1, 2, 4, 8, 16]), st.sampled_from([4, 16, 64, 256])),
    st.floats(1e-4, 1.0),
    min_size=1,
)


def test_measured_cells_are_returned_and_between_them_it_is_linear() -> None:
    cost = CostSurface({(1, 10): 1.0, (1, 20): 3.0, (4, 10): 2.0, (4, 20): 6.0})
    assert cost.seconds(1, 10) == 1.0
    assert cost.seconds(4, 20) == 6.0
    assert cost.seconds(1, 15) == 2.0
    assert cost.seconds(2, 10) == pytest.approx(1.0 + 1.0 / 3.0)


def test_beyond_the_grid_lengths_go_on_by_their_last_slope_and_rows_in_proportion() -> None:
    cost = CostSurface({(1, 10): 1.0, (1, 20): 3.0, (4, 10): 2.0, (4, 20): 6.0})
    assert cost.seconds(1, 30) == 5.0
    assert cost.seconds(6, 10) == 3.0


def test_one_cell_is_taken_in_proportion() -> None:
    cost = CostSurface({(2, 10): 1.0})
    assert cost.seconds(4, 10) == 2.0
    assert cost.seconds(2, 40) == 4.0


def test_noise_is_lifted_so_that_more_never_costs_less() -> None:
    cost = CostSurface({(1, 10): 1.0, (1, 20): 0.5, (2, 10): 0.9, (2, 20): 2.0})
    assert [cost.seconds(1, 20), cost.seconds(2, 10)] == [1.0, 1.0]


@given(cells)
def test_it_is_positive_and_monotone_everywhere(measured: dict[tuple[int, int], float]) -> None:
    cost = CostSurface(measured)
    for batch in (1, 2, 3, 7, 16, 40):
        by_length = [cost.seconds(batch, length) for length in (1, 4, 10, 16, 100, 256, 512)]
        assert by_length[0] > 0.0
        assert by_length == pytest.approx(sorted(by_length))
    for length in (1, 16, 100, 512):
        by_batch = [cost.seconds(batch, length) for batch in (1, 2, 3, 7, 16, 40)]
        assert by_batch == pytest.approx(sorted(by_batch))


def test_the_scale_follows_a_machine_that_turned_slower_within_fifty_batches() -> None:
    cost = CostSurface({(1, 10): 1.0})
    for _ in range(50):
        cost.learn(1, 10, took_s=3.0)
    assert cost.scale == pytest.approx(3.0, rel=0.1)
    assert cost.seconds(1, 10) == pytest.approx(3.0, rel=0.1)


def test_the_share_is_that_of_the_best_batch_of_equals() -> None:
    cost = CostSurface({(1, 10): 1.0, (4, 10): 2.0, (8, 10): 8.0})
    assert cost.share_s(10) == 0.5


@pytest.mark.parametrize("cells", [{}, {(1, 1): 0.0}, {(1, 1): -1.0}])
def test_a_surface_without_a_positive_cell_is_refused(cells: dict[tuple[int, int], float]) -> None:
    with pytest.raises(ValueError, match="at least one cell"):
        CostSurface(cells)


def cliff_s(batch: int, length: int) -> float:
    """A machine whose cache ends at 700 tokens a batch, and whose kernels are twice as slow from 90 tokens a row on."""
    slow = (2.0 if length >= 90 else 1.0) * (1.5 if batch * length > 700 else 1.0)
    return slow * (0.001 + 1e-4 * batch * length + 1e-7 * batch * length * length)


GRID = [(batch, length) for batch in (1, 2, 4, 8, 16) for length in (4, 8, 16, 32, 64, 128, 256, 512)]


def errors(
    cost: CostSurface,
    true_s: Callable[[int, int], float],
    batches: int,
    *,
    learns: bool,
    seed: int,
    lengths: range = range(1000),
) -> list[float]:
    """Of batches of a mixed load with a tenth of noise, in their order: how far each prediction was from the truth."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(batches):
        length = int(np.clip(40 * random.lognormal(0.0, 0.866), 3, 512))
        batch = min(1 + int(random.exponential(2.5)), 16)
        took_s = true_s(batch, length) * random.lognormal(0.0, 0.1)
        if length in lengths:
            found.append(abs(cost.seconds(batch, length) / true_s(batch, length) - 1.0))
        if learns:
            cost.learn(batch, length, took_s)
    return found


def test_cells_are_learned_from_what_runs_where_the_truth_has_cliffs_between_the_points() -> None:
    cost = CostSurface({cell: cliff_s(*cell) for cell in GRID})
    at_the_cliff = range(65, 128)
    before = errors(cost, cliff_s, 2000, learns=False, seed=1, lengths=at_the_cliff)
    errors(cost, cliff_s, 6000, learns=True, seed=2)
    after = errors(cost, cliff_s, 2000, learns=False, seed=1, lengths=at_the_cliff)
    assert median(before) > 0.1
    assert median(after) < 0.06
    assert mean(after) < 0.6 * mean(before)
    # With batches that take a tenth more or less each time, the rest is known as well as before.
    assert median(errors(cost, cliff_s, 2000, learns=False, seed=1)) < 0.04


def test_a_surface_that_was_measured_wrongly_is_learned_anew() -> None:
    """Short ones at half, long ones at twice the truth: no one scale can mend that."""
    cost = CostSurface({(b, n): cliff_s(b, n) * (0.5 if n < 64 else 2.0) for b, n in GRID})
    before = errors(cost, cliff_s, 500, learns=True, seed=1)[200:]
    after = errors(cost, cliff_s, 8000, learns=True, seed=2)[-1000:]
    assert median(before) > 0.2
    assert median(after) < 0.1


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 600), st.floats(1e-6, 100.0)), max_size=200))
def test_whatever_is_learned_it_stays_positive_bounded_and_monotone(ran: list[tuple[int, int, float]]) -> None:
    cost = CostSurface({cell: cliff_s(*cell) for cell in GRID})
    measured = {(b, n): cost.seconds(b, n) for b in (1, 3, 16) for n in (4, 100, 512)}
    shares = [cost.share_s(length) for length in (4, 100, 512)]
    for batch, length, took_s in ran:
        cost.learn(batch, length, took_s)
    for cell, before_s in measured.items():
        assert before_s / 3.01 <= cost.seconds(*cell) / cost.scale
    for batch in (1, 3, 16):
        by_length = [cost.seconds(batch, length) for length in (4, 64, 100, 512)]
        assert by_length == pytest.approx(sorted(by_length))
    for length, share_s in zip((4, 100, 512), shares, strict=True):
        assert share_s / 3.01 <= cost.share_s(length) <= cost.seconds(1, length) / cost.scale * 1.0001


def test_a_machine_that_turns_ten_times_slower_is_followed_within_fifty_batches_of_a_mixed_load() -> None:
    cost = CostSurface({cell: cliff_s(*cell) for cell in GRID})
    errors(cost, cliff_s, 500, learns=True, seed=1)
    slowed = errors(cost, lambda batch, length: 10.0 * cliff_s(batch, length), 150, learns=True, seed=2)
    assert median(slowed[:10]) > 0.5
    assert median(slowed[50:100]) < 0.2
    assert median(slowed[100:]) < 0.1


def test_the_scale_of_a_lane_that_never_runs_drifts_after_the_others() -> None:
    cost = CostSurface({(1, 10): 1.0}, scale=8.0)
    for _ in range(500):
        cost.relax(1.0)
    assert cost.scale == pytest.approx(1.0, abs=0.1)
