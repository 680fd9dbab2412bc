"""The decision, the backlog and the door: pure, so every moment here is a number of our choice."""

import gc
import weakref
from dataclasses import replace
from random import Random

import pytest
from harken_server.errors import BacklogFull, DeadlineUnreachable
from harken_server.scheduling.admission import DOUBT, Capacity, admit, meet_deadline, predicted_wait_s
from harken_server.scheduling.backlog import Backlog
from harken_server.scheduling.companions import Limits
from harken_server.scheduling.cost import CostSurface
from harken_server.scheduling.deadline import Deadline
from harken_server.scheduling.lanes import BULK_SHARE, Lanes
from harken_server.scheduling.memory import MemoryModel
from harken_server.scheduling.policy import Start, Wait, decide
from harken_server.scheduling.turns import AGE
from harken_server.scheduling.waiting import Priority, Waiting
from hypothesis import given, settings
from hypothesis import strategies as st
from support.backlogs import LIMITS, backlog_of, waiting


def started(backlog: Backlog[Waiting], free_lanes: int = 1, limits: Limits = LIMITS, now_s: float = 0.0) -> list[int]:
    decision = decide({"model": backlog}, Lanes(free_lanes), limits, now_s)
    assert isinstance(decision, Start)
    backlog.start(list(decision.batch))
    return [member.length for member in decision.batch]


def test_whoever_is_due_leads_and_its_neighbours_in_length_ride_along() -> None:
    assert started(backlog_of(500, 41, 40, 42, 490)) == [42, 41, 40]


def test_it_starts_at_once_with_whatever_waits() -> None:
    assert started(backlog_of(17)) == [17]


def test_nothing_waits_or_no_lane_is_free() -> None:
    busy = Lanes(1)
    busy.start(0, 0.0, 1.0)
    assert decide({"model": backlog_of()}, Lanes(1), LIMITS, 0.0) == Wait()
    assert decide({"model": backlog_of(5)}, busy, LIMITS, 0.0) == Wait()
    assert decide({}, Lanes(1), LIMITS, 0.0) == Wait()


def test_where_a_batch_costs_no_less_than_its_members_everyone_goes_alone() -> None:
    flat = CostSurface({(batch, length): 0.001 * batch * length for batch in (1, 64) for length in (1, 512)})
    backlog: Backlog[Waiting] = Backlog(flat, MemoryModel(1, 0))
    for length in (10, 12, 14):
        backlog.add(waiting(length))
    assert sorted(started(backlog) for _ in range(3)) == [[10], [12], [14]]


def test_equals_fill_a_batch_up_to_each_limit() -> None:
    assert len(started(backlog_of(*[10] * 100, overhead_s=10.0))) == 64
    assert len(started(backlog_of(*[10] * 100, overhead_s=10.0), limits=replace(LIMITS, sequences=7))) == 7
    assert len(started(backlog_of(*[10] * 100, overhead_s=10.0), limits=replace(LIMITS, padded_tokens=55))) == 5
    assert len(started(backlog_of(*[10] * 100, overhead_s=10.0), limits=replace(LIMITS, memory_bytes=45))) == 4


def test_one_longer_than_the_token_limit_runs_alone() -> None:
    assert started(backlog_of(300, 300), limits=replace(LIMITS, padded_tokens=100)) == [300]


def test_a_leader_waits_for_the_memory_that_running_batches_hold() -> None:
    backlog = backlog_of(300, 299)
    assert decide({"model": backlog}, Lanes(1), replace(LIMITS, memory_bytes=200), 0.0) == Wait()


def test_free_lanes_share_what_waits() -> None:
    backlog = backlog_of(10, 10, 10, 10)
    assert started(backlog, free_lanes=2) == [10, 10]
    assert started(backlog, free_lanes=1) == [10, 10]


def test_a_thousand_of_one_call_do_not_hold_up_the_one_of_another() -> None:
    backlog = backlog_of(overhead_s=0.0001)
    bulk = object()
    for _ in range(1000):
        backlog.add(waiting(100, flow=bulk))
    one_at_a_time = replace(LIMITS, sequences=1)
    assert started(backlog, limits=one_at_a_time) == [100]
    backlog.add(waiting(7))
    assert 7 in started(backlog, limits=one_at_a_time) + started(backlog, limits=one_at_a_time)


def test_a_large_call_goes_on_while_single_ones_keep_coming() -> None:
    backlog = backlog_of(overhead_s=0.0001)
    bulk = object()
    for _ in range(10):
        backlog.add(waiting(100, flow=bulk))
    one_at_a_time = replace(LIMITS, sequences=1)
    served = 0
    for _ in range(40):
        while backlog.sequences < 12:
            backlog.add(waiting(90))
        served += started(backlog, limits=one_at_a_time) == [100]
    assert served >= 3


def led_by(backlogs: dict[str, Backlog[Waiting]], lanes: Lanes, now_s: float) -> int:
    decision = decide(backlogs, lanes, LIMITS, now_s)
    assert isinstance(decision, Start)
    return decision.batch[0].length


@pytest.mark.parametrize("models", [1, 2])
def test_interactive_leads_before_bulk_until_the_bulk_is_paid_for(models: int) -> None:
    first, last = backlog_of(), backlog_of()
    backlogs = {"first": first, "last": last}
    first.add(waiting(400, bulk=True))
    (first if models == 1 else last).add(waiting(5))
    lanes = Lanes(2)
    due_s = first.cost.seconds(1, 400) / (BULK_SHARE * 2)
    assert led_by(backlogs, lanes, due_s - 0.01) == 5
    assert led_by(backlogs, lanes, due_s) == 400
    # A batch of it that ran before has to be paid for first.
    lanes.start(0, 100.0, 3.0, bulk=True)
    assert led_by(backlogs, lanes, 100.0 + 3.0 / (BULK_SHARE * 2) - 0.01) == 5
    assert led_by(backlogs, lanes, 100.0 + 3.0 / (BULK_SHARE * 2)) == 400


def test_across_models_the_one_leads_that_the_lanes_did_least_for_and_else_who_waited_longest() -> None:
    first, second = backlog_of(), backlog_of()
    first.add(waiting(10, arrived_s=5.0))
    second.add(waiting(20, arrived_s=4.0))
    backlogs, lanes = {"first": first, "second": second}, Lanes(2)

    def leads(now_s: float) -> str:
        decision = decide(backlogs, lanes, LIMITS, now_s)
        assert isinstance(decision, Start)
        return decision.model

    assert leads(6.0) == "second"
    lanes.start(0, 6.0, 0.1, model="second")
    assert leads(6.0) == "first"
    lanes.start(1, 6.0, 0.3, model="first")
    lanes.done(1, 6.3)
    assert leads(6.3) == "second"
    # What is long past counts for little.
    lanes.start(1, 9.0, 0.1, model="second")
    lanes.done(1, 9.1)
    assert leads(9.1) == "first"
    lanes.forget("second")
    assert leads(9.1) == "second"


def test_who_leaves_frees_its_place_at_once() -> None:
    backlog = backlog_of()
    member = waiting(30)
    backlog.add(member)
    assert (backlog.sequences, backlog.tokens) == (1, 30)
    assert backlog.work_s > 0.0
    assert backlog.remove(member)
    assert (backlog.sequences, backlog.tokens, backlog.work_s) == (0, 0, 0.0)
    assert not backlog.remove(member)
    assert backlog.leader(Priority.INTERACTIVE) is None


def test_a_batch_of_someone_who_left_is_a_bug() -> None:
    backlog = backlog_of(10)
    with pytest.raises(ValueError, match="only hold what waits"):
        backlog.start([waiting(10)])


def test_a_full_backlog_refuses_with_the_predicted_wait() -> None:
    backlog = backlog_of(100, 100, 100, overhead_s=0.0001)
    admit([backlog], 1, 100, Capacity(sequences=4, tokens=400), lanes=2, running_s=lambda: 0.0)
    with pytest.raises(BacklogFull) as refused:
        admit([backlog], 2, 200, Capacity(sequences=4, tokens=10_000), lanes=2, running_s=lambda: 0.0)
    full = refused.value
    assert (full.waiting, full.asked, full.limit, full.unit) == (3, 2, 4, "sequences")
    # A third of some 0.3 s of work on two lanes.
    assert full.retry_after_s == pytest.approx(0.05, rel=0.1)
    with pytest.raises(BacklogFull) as refused:
        admit([backlog], 1, 101, Capacity(sequences=9, tokens=400), lanes=2, running_s=lambda: 0.0)
    assert (refused.value.unit, refused.value.asked) == ("tokens", 101)


def test_the_predicted_wait_is_the_work_over_the_lanes() -> None:
    backlog = backlog_of(100, 100, overhead_s=0.0001)
    assert predicted_wait_s([backlog], lanes=2, running_s=0.4) == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize(
    ("remaining_s", "expected"), [(None, Deadline(40.0, by_cap=True)), (31.0, Deadline(40.0, by_cap=True))]
)
def test_the_cap_holds_for_calls_with_no_deadline_or_a_later_one(remaining_s: float | None, expected: Deadline) -> None:
    assert Deadline.after(remaining_s, cap_s=30.0, now_s=10.0) == expected


def test_a_deadline_is_told_from_a_cancel_although_the_callers_timer_rings_first() -> None:
    deadline = Deadline.after(1.0, cap_s=30.0, now_s=10.0)
    assert deadline.remaining_s(10.25) == 0.75
    assert not deadline.passed(10.999)
    assert deadline.explains_cancel(10.99)
    assert not deadline.explains_cancel(10.9)
    cap = Deadline.after(None, cap_s=30.0, now_s=0.0)
    assert not cap.explains_cancel(29.99)
    # The timer of an event loop may ring a millisecond early.
    assert cap.explains_cancel(29.999)


def test_what_is_ahead_of_one_more_is_one_turn_of_every_flow() -> None:
    backlog = backlog_of(overhead_s=0.0001)
    bulk = object()
    for _ in range(100):
        backlog.add(waiting(100, flow=bulk))
    backlog.add(waiting(50))
    backlog.add(waiting(400, bulk=True))
    one_s, other_s, low_s = (backlog.cost.share_s(length) for length in (100, 50, 400))
    assert backlog.ahead_s(1, Priority.INTERACTIVE) == pytest.approx(one_s + other_s)
    assert backlog.ahead_s(3, Priority.INTERACTIVE) == pytest.approx(3 * (one_s + other_s))
    assert backlog.ahead_s(1000, Priority.INTERACTIVE) == pytest.approx(100 * one_s + other_s)
    assert backlog.ahead_s(1, Priority.BULK) == pytest.approx(100 * one_s + other_s + low_s) == backlog.work_s


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 512), st.booleans()), max_size=40), st.randoms())
def test_the_sums_of_a_backlog_are_those_of_who_waits(arrivals: list[tuple[int, int, bool]], random: Random) -> None:
    backlog = backlog_of()
    here = []
    for number, length, bulk in arrivals:
        here.append(waiting(length, flow=(number, bulk), bulk=bulk))
        backlog.add(here[-1])
        if random.random() < 0.4:
            assert backlog.remove(here.pop(random.randrange(len(here))))
    flows: dict[object, list[float]] = {}
    for member in here:
        flows.setdefault(member.flow, []).append(backlog.cost.share_s(member.length))
    bulk_flows = {member.flow for member in here if member.priority is Priority.BULK}
    interactive = [shares for flow, shares in flows.items() if flow not in bulk_flows]
    assert backlog.sequences == len(here)
    assert backlog.tokens == sum(member.length for member in here)
    assert backlog.work_s == pytest.approx(sum(map(sum, flows.values())))
    assert backlog.ahead_s(1, Priority.INTERACTIVE) == pytest.approx(
        sum(sum(shares) / len(shares) for shares in interactive), abs=1e-9
    )


def test_a_deadline_that_what_waits_makes_impossible_is_refused_with_a_time_to_retry() -> None:
    backlog = backlog_of(*[100] * 20, overhead_s=0.0001)
    ahead_s = backlog.work_s / 2

    def ask(remaining_s: float) -> None:
        meet_deadline(
            backlog, [50], Priority.INTERACTIVE, Deadline(7.0 + remaining_s), now_s=7.0, lanes=2, running_s=0.0
        )

    predicted_s = (ahead_s + backlog.cost.seconds(1, 50)) * (1.0 + DOUBT)
    ask(predicted_s + 0.001)
    with pytest.raises(DeadlineUnreachable) as refused:
        ask(0.5)
    assert refused.value.remaining_s == pytest.approx(0.5)
    assert refused.value.predicted_s == pytest.approx(predicted_s)
    assert refused.value.retry_after_s == pytest.approx(predicted_s - 0.5)


def test_what_waits_for_other_models_is_ahead_as_well_but_for_as_long_as_the_own_at_most() -> None:
    flooded = backlog_of(*[100] * 20, overhead_s=0.0001)

    def ask(own: Backlog[Waiting], deadline_s: float, priority: Priority = Priority.INTERACTIVE) -> None:
        meet_deadline(own, [50], priority, Deadline(deadline_s), 0.0, lanes=2, running_s=0.0, others=[flooded])

    empty, busy = backlog_of(overhead_s=0.0001), backlog_of(*[100] * 20, overhead_s=0.0001)
    ask(empty, flooded.work_s / 4)
    with pytest.raises(DeadlineUnreachable):
        ask(empty, flooded.work_s / 4, Priority.BULK)
    ask(busy, flooded.work_s * 1.3)
    with pytest.raises(DeadlineUnreachable):
        ask(busy, flooded.work_s)
    flooded.add(waiting(100, bulk=True))
    assert flooded.urgent_s(Priority.INTERACTIVE) < flooded.urgent_s(Priority.BULK) == pytest.approx(flooded.work_s)


class Flow:
    """A flow that can be seen to be forgotten."""


def test_an_empty_backlog_remembers_nobody() -> None:
    backlog = backlog_of()
    flows = []
    for length in range(1, 60):
        backlog.add(waiting(length, flow=(flow := Flow())))
        flows.append(weakref.ref(flow))
    while (leader := backlog.leader(Priority.INTERACTIVE)) is not None:
        backlog.start([leader])
    del leader, flow
    gc.collect()
    assert [flow for flow in flows if flow() is not None] == []


def test_an_inherited_surface_starts_with_what_was_learned_and_goes_its_own_way() -> None:
    old = CostSurface({(batch, length): batch * length * 0.001 for batch in (1, 4, 16) for length in (8, 64)})
    for _ in range(200):
        old.learn(4, 64, 0.7)
    new = old.inherited()
    for batch, length in ((1, 8), (4, 64), (3, 30), (16, 64)):
        assert new.seconds(batch, length) == pytest.approx(old.seconds(batch, length), rel=0.02)
    new.learn(4, 64, 9.0)
    assert new.scale > old.scale


def test_a_short_one_leads_before_a_long_one_that_came_little_before_it() -> None:
    assert started(backlog_of(500, 10, overhead_s=0.0001)) == [10]


def test_those_who_are_late_lead_in_their_order_and_nobody_rides_before_them() -> None:
    backlog = backlog_of(overhead_s=0.1)
    backlog.add(long := waiting(400))
    backlog.add(waiting(401))

    def overtaken_until_late(late: int) -> int:
        """How many of 5 tokens, 0.105 s each, start before so many are late."""
        shorts = 0
        while len(list(backlog.late(long))) < late:
            backlog.add(short := waiting(5))
            backlog.start([short])
            shorts += 1
        return shorts

    # The first waits for AGE times itself, the second for AGE times both of them.
    first = overtaken_until_late(1)
    assert 0.105 * first == pytest.approx(AGE * 0.5, abs=0.105)
    assert 0.105 * (first + overtaken_until_late(2)) == pytest.approx(AGE * 1.001, abs=0.105)
    backlog.add(waiting(400))
    decision = decide({"model": backlog}, Lanes(1), LIMITS, 0.0)
    assert isinstance(decision, Start)
    assert ([member.length for member in decision.batch], decision.closed_by) == ([400, 401], "age")


def test_a_batch_ends_before_the_deadline_of_whoever_can_meet_it() -> None:
    def batch(*deadlines_s: float) -> tuple[int, str]:
        backlog = backlog_of()
        for deadline_s in deadlines_s:
            backlog.add(waiting(10, deadline=Deadline(deadline_s)))
        decision = decide({"model": backlog}, Lanes(1), LIMITS, 100.0)
        assert isinstance(decision, Start)
        return len(decision.batch), decision.closed_by

    # A batch of n takes 50 + 10 n milliseconds.
    assert batch(100.085, 200.0, 200.0, 200.0, 200.0) == (3, "deadline")
    assert batch(200.0, 200.0, 200.0, 200.0, 100.085) == (4, "deadline"), "it is left for a batch that ends in time"
    assert batch(200.0, 100.01, 200.0, 200.0) == (3, "deadline"), "too late for one of them, who does not ride"
    assert batch(100.01, 200.0, 200.0) == (3, "backlog"), "who cannot be in time even alone bounds nothing"
    assert batch(200.0, 200.0, 200.0) == (3, "backlog")


@pytest.mark.parametrize(
    ("lengths", "free_lanes", "limits", "why"),
    [
        ([10], 1, LIMITS, "backlog"),
        ([10] * 5, 1, LIMITS, "backlog"),
        ([10] * 6, 2, LIMITS, "lanes"),
        ([10] * 6, 1, replace(LIMITS, sequences=4), "limit"),
        ([10] * 6, 1, replace(LIMITS, padded_tokens=40), "limit"),
        ([300] + [1] * 10, 1, LIMITS, "cost"),
    ],
)
def test_a_batch_says_why_it_is_no_larger(lengths: list[int], free_lanes: int, limits: Limits, why: str) -> None:
    decision = decide({"model": backlog_of(*lengths)}, Lanes(free_lanes), limits, 0.0)
    assert isinstance(decision, Start)
    assert decision.closed_by == why
