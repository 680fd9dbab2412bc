"""The cost surface: what was measured is returned, what was not is sensible."""

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
