"""Where a batch runs: on a narrow lane or the wide one, now or when a lane that still runs is done."""

import pytest
from harken_server.scheduling.backlog import Backlog
from harken_server.scheduling.cost import CostSurface
from harken_server.scheduling.deadline import Deadline
from harken_server.scheduling.lanes import Lanes
from harken_server.scheduling.memory import MemoryModel
from harken_server.scheduling.policy import Start, Wait, decide
from harken_server.scheduling.waiting import Priority, Waiting
from hypothesis import given
from hypothesis import strategies as st
from support.backlogs import LIMITS, backlog_of, waiting


def wide_backlog(wide_ms: dict[int, float], *lengths: int) -> Backlog[Waiting]:
    """One millisecond a token on a narrow lane, `wide_ms` by length on the wide one."""
    narrow = CostSurface({(1, length): 0.001 * length for length in wide_ms})
    wide = CostSurface({(1, length): 0.001 * ms for length, ms in wide_ms.items()})
    backlog: Backlog[Waiting] = Backlog(narrow, MemoryModel(1, 0), wide)
    for length in lengths:
        backlog.add(waiting(length))
    return backlog


@pytest.mark.parametrize(
    ("lengths", "lane"),
    [([100], 2), ([10], 0), ([100, 100], 0)],
    ids=["alone and sooner", "alone, but no sooner", "as many as there are lanes"],
)
def test_what_is_alone_goes_wide_where_that_is_sooner(lengths: list[int], lane: int) -> None:
    decision = decide({"model": wide_backlog({10: 12.0, 100: 60.0}, *lengths)}, Lanes(2, wide=True), LIMITS, 0.0)
    assert isinstance(decision, Start)
    assert (decision.lane, decision.wide, len(decision.batch)) == (lane, lane == 2, 1)
    assert decision.predicted_s == pytest.approx(0.060 if decision.wide else 0.001 * lengths[0])


def test_nothing_goes_wide_beside_a_running_batch_nor_without_a_wide_lane_or_a_surface_of_it() -> None:
    busy = Lanes(2, wide=True)
    busy.start(0, 0.0, 1.0)
    alone = {"model": wide_backlog({100: 60.0}, 100)}
    for backlogs, lanes in ((alone, busy), (alone, Lanes(2)), ({"model": backlog_of(100)}, Lanes(2, wide=True))):
        decision = decide(backlogs, lanes, LIMITS, 0.0)
        assert isinstance(decision, Start)
        assert not decision.wide


def test_while_the_wide_lane_runs_nothing_starts() -> None:
    lanes = Lanes(2, wide=True)
    lanes.start(2, 0.0, 1.0)
    assert decide({"model": wide_backlog({100: 60.0}, 100)}, lanes, LIMITS, 0.0) == Wait()


@pytest.mark.parametrize(("come_per_s", "wide"), [(0, True), (20, True), (25, False), (200, False)])
def test_nothing_goes_wide_where_more_would_wait_for_it_than_it_gains(come_per_s: int, wide: bool) -> None:
    # 40 ms sooner, by 60 ms of all cores: whoever comes meanwhile waits for 30 of them on average.
    lanes = Lanes(2, wide=True)
    for second in range(20):
        lanes.start(0, float(second), 1.0)
        lanes.arrived(come_per_s // 2, Priority.INTERACTIVE, float(second))
        lanes.done(0, second + 0.5)
        lanes.arrived(1000, Priority.INTERACTIVE, 100.0)  # while nothing runs
    decision = decide({"model": wide_backlog({100: 60.0}, 100)}, lanes, LIMITS, 20.0)
    assert isinstance(decision, Start)
    assert decision.wide == wide


def test_two_models_that_wait_share_the_narrow_lanes() -> None:
    backlogs = {name: wide_backlog({100: 60.0}, 100) for name in ("first", "second")}
    decision = decide(backlogs, Lanes(2, wide=True), LIMITS, 0.0)
    assert isinstance(decision, Start)
    assert not decision.wide


@given(st.integers(1, 4), st.booleans(), st.lists(st.integers(-1, 5), max_size=30))
def test_lanes_never_take_more_cores_than_there_are(narrow: int, wide: bool, moves: list[int]) -> None:
    """A lane with a prepared batch is done with both, another one is started; what may not be changes nothing."""
    lanes = Lanes(narrow, wide)
    running: set[int] = set()
    for lane in moves:
        if lane in running:
            if lane < narrow:
                lanes.start(lane, 0.0, 1.0)
                with pytest.raises(ValueError, match="not free"):
                    lanes.start(lane, 0.0, 1.0)
                lanes.done(lane, 0.0)
                assert lane not in lanes.free
            lanes.done(lane, 0.0)
            running.remove(lane)
            continue
        with pytest.raises(ValueError, match="runs nothing"):
            lanes.done(lane, 0.0)
        exists = 0 <= lane < narrow or (wide and lane == narrow)
        if exists and (not running or (lane < narrow and narrow not in running)):
            lanes.start(lane, 0.0, 1.0)
            running.add(lane)
        else:
            with pytest.raises(ValueError, match="not free"):
                lanes.start(lane, 0.0, 1.0)
        assert sorted(lanes.free) == ([] if narrow in running else sorted(set(range(narrow)) - running))
        assert lanes.all_free == (not running)


def busy_lanes(*ends_s: float) -> Lanes:
    lanes = Lanes(len(ends_s), wide=True)
    for lane, end_s in enumerate(ends_s):
        lanes.start(lane, 0.0, end_s)
    return lanes


def test_where_much_waits_a_batch_is_prepared_for_the_lane_that_is_done_first() -> None:
    lanes, backlog = busy_lanes(0.9, 0.4), backlog_of(*[100] * 50)
    decision = decide({"model": backlog}, lanes, LIMITS, 0.1)
    assert isinstance(decision, Start)
    assert (decision.lane, decision.wide, decision.closed_by) == (1, False, "cost")
    backlog.start(list(decision.batch))
    lanes.start(1, 0.1, decision.predicted_s)
    # With it the second lane ends after the first one.
    assert decision.predicted_s > 0.5
    assert lanes.first_done(0.2) == (0, 0.9)
    lanes.start(0, 0.2, 0.1)
    # The first lane ends first, with the batch that waits for it: nothing more is bound to a lane.
    assert lanes.first_done(0.3) is None
    assert decide({"model": backlog}, lanes, LIMITS, 0.3) == Wait()
    lanes.done(0, 0.9)
    assert lanes.first_done(0.9) == (0, 1.0)


@pytest.mark.parametrize("lengths", [[100] * 7, [500, 5] * 3], ids=["little waits", "little that is alike"])
def test_where_a_batch_may_get_better_nothing_is_prepared(lengths: list[int]) -> None:
    assert decide({"model": backlog_of(*lengths)}, busy_lanes(0.9, 0.4), LIMITS, 0.1) == Wait()


def test_what_is_prepared_meets_deadlines_from_when_its_lane_is_done() -> None:
    backlog = backlog_of()
    for _ in range(50):
        backlog.add(waiting(100, deadline=Deadline(1.0)))  # one alone takes 0.15 s, a second one 0.1 more
    soon = decide({"model": backlog}, busy_lanes(0.1, 0.9), LIMITS, 0.0)
    later = decide({"model": backlog}, busy_lanes(0.6, 0.9), LIMITS, 0.0)
    assert isinstance(soon, Start)
    assert isinstance(later, Start)
    assert (len(later.batch), later.closed_by) == (3, "deadline")
    assert len(later.batch) < len(soon.batch)
