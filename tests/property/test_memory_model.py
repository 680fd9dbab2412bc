"""What must always hold of the predicted memory of a batch."""

from harken_server.scheduling.memory import MARGIN, MemoryModel
from hypothesis import given
from hypothesis import strategies as st

GIB = 1 << 30
FORMULA = MemoryModel(1000, 10)

shapes = st.tuples(st.integers(1, 64), st.integers(1, 512))
peaks = st.dictionaries(shapes, st.integers(0, GIB), min_size=1, max_size=12)


@given(peaks)
def test_no_prediction_is_under_what_was_measured_with_its_margin(measured: dict[tuple[int, int], int]) -> None:
    model = FORMULA.measured(measured)
    for (batch, length), peak_bytes in measured.items():
        assert model.batch_bytes(batch, length) >= MARGIN * peak_bytes * (1 - 1e-12)


@given(peaks, shapes, shapes)
def test_more_rows_and_longer_ones_never_take_less(
    measured: dict[tuple[int, int], int], one: tuple[int, int], other: tuple[int, int]
) -> None:
    model = FORMULA.measured(measured)
    (least_batch, batch), (least_length, length) = sorted((one[0], other[0])), sorted((one[1], other[1]))
    assert 0 < model.batch_bytes(least_batch, least_length) <= model.batch_bytes(batch, length)


@given(peaks, st.integers(1, 512))
def test_beyond_the_longest_that_was_measured_the_formula_is_the_least(
    measured: dict[tuple[int, int], int], more: int
) -> None:
    length = max(length for _, length in measured) + more
    assert FORMULA.measured(measured).batch_bytes(3, length) >= FORMULA.batch_bytes(3, length)
