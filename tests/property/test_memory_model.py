"""What must always hold of the predicted memory of a batch, and of the budget."""

from harken_server.scheduling.memory import DOUBLES_S, MARGIN, MemoryBudget, MemoryModel
from hypothesis import given
from hypothesis import strategies as st

GIB = 1 << 30
FORMULA = MemoryModel(1000, 10)

shapes = st.tuples(st.integers(1, 64), st.integers(1, 512))
peaks = st.dictionaries(shapes, st.integers(0, GIB), min_size=1, max_size=12)
amounts = st.integers(1, 64 * GIB)
moments = st.floats(0.0, 1e6)


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


failures = st.lists(st.tuples(st.floats(0.0, 300.0), amounts), max_size=30)


@given(amounts, amounts, failures)
def test_a_budget_stays_between_what_is_configured_and_one_accepted_sequence(
    configured: int, sequence: int, failed: list[tuple[float, int]]
) -> None:
    budget, now_s = MemoryBudget(configured), 0.0
    budget.keep_room(sequence)
    least = min(sequence, configured)
    for pause_s, tried in failed:
        now_s += pause_s
        before = budget.bytes(now_s)
        budget.lower(tried, now_s)
        assert least <= budget.bytes(now_s) <= max(least, 0.8 * min(tried, before), 1)
    assert budget.bytes(now_s) <= configured


@given(amounts, amounts, moments, st.floats(0.0, 1e4), st.floats(0.0, 1e4))
def test_a_lowered_budget_grows_with_time_alone_until_it_is_whole(
    configured: int, tried: int, now_s: float, sooner_s: float, later_s: float
) -> None:
    budget = MemoryBudget(configured)
    budget.lower(tried, now_s)
    sooner_s, later_s = sorted((sooner_s, later_s))
    assert budget.bytes(now_s + sooner_s) <= budget.bytes(now_s + later_s) <= configured
    lowered = budget.bytes(now_s)
    assert budget.bytes(now_s + 2 * DOUBLES_S) >= min(configured, 3.9 * lowered)
    # From a single byte to 64 GiB it doubles 36 times.
    assert budget.bytes(now_s + 37 * DOUBLES_S) == configured
