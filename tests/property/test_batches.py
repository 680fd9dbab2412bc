"""What must hold of every schedule, whatever arrives, leaves or expires: on the simulator's virtual clock."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from random import Random

from harken_server.planning.simulate import Arrival, Simulation, simulate
from harken_server.scheduling.backlog import Backlog
from harken_server.scheduling.companions import Limits
from harken_server.scheduling.cost import CostSurface
from harken_server.scheduling.lanes import BULK_SHARE, Lanes
from harken_server.scheduling.memory import MemoryModel
from harken_server.scheduling.waiting import Priority
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checked import Checked

MEMORY = MemoryModel(10, 1)
LIMITS = Limits(sequences=8, padded_tokens=600, memory_bytes=MEMORY.batch_bytes(2, 512))
LANES = 2
NEVER_S = float("inf")

arrivals = st.lists(
    st.builds(
        Arrival,
        at_s=st.floats(0.0, 2.0),
        length=st.integers(1, 512),
        flow=st.sampled_from([None, "a", "b"]),
        priority=st.sampled_from(Priority),
        solitary=st.sampled_from([False, False, True]),
        deadline_s=st.one_of(st.just(NEVER_S), st.floats(0.0, 2.0)),
        cancel_s=st.one_of(st.just(NEVER_S), st.floats(0.0, 1.0)),
    ),
    min_size=1,
    max_size=80,
).map(lambda plan: sorted(plan, key=lambda arrival: arrival.at_s))


def cost(speed: float = 1.0) -> CostSurface:
    """One millisecond a batch, and what its tokens take at `speed`."""
    return CostSurface(
        {(b, n): 0.001 + (2e-5 * b * n + 2e-8 * b * n * n) / speed for b in (1, 2, 4, 8) for n in (1, 16, 64, 256, 512)}
    )


COST = cost()


def run(plan: list[Arrival], wide: bool = False) -> Simulation:
    wide_cost = cost(speed=1.8) if wide else None
    simulation = Simulation()
    simulate(plan, Backlog(cost(), MEMORY, wide_cost), LIMITS, Lanes(LANES, wide), record=simulation)
    return simulation


@settings(max_examples=100)
@given(arrivals, st.booleans())
def test_each_sequence_ends_exactly_once_and_as_it_should(plan: list[Arrival], wide: bool) -> None:
    for sequence in run(plan, wide).sequences:
        (outcome,) = sequence.outcomes
        assert sequence.ended_s is not None
        if outcome == "answered":
            assert sequence.started_s is not None
            assert not sequence.deadline.passed(sequence.started_s)
            assert sequence.started_s <= sequence.arrived_s + sequence.arrival.cancel_s
        else:
            assert sequence.started_s is None
            assert outcome != "expired" or sequence.deadline.passed(sequence.ended_s)
            assert outcome != "cancelled" or sequence.arrival.cancel_s < NEVER_S


@settings(max_examples=100)
@given(arrivals, st.booleans())
def test_no_batch_exceeds_a_limit_nor_all_together_the_memory(plan: list[Arrival], wide: bool) -> None:
    simulation = run(plan, wide)
    for batch in simulation.batches:
        longest = max(member.length for member in batch.batch)
        assert len(set(map(id, batch.batch))) == len(batch.batch) <= LIMITS.sequences
        assert len(batch.batch) == 1 or len(batch.batch) * longest <= LIMITS.padded_tokens
        assert batch.predicted_bytes == MEMORY.batch_bytes(len(batch.batch), longest)
    assert simulation.peak_bytes <= LIMITS.memory_bytes


@settings(max_examples=100)
@given(arrivals, st.booleans())
def test_who_has_to_run_alone_does_so_and_on_a_narrow_lane(plan: list[Arrival], wide: bool) -> None:
    simulation = run([replace(arrival, at_s=arrival.at_s / 20) for arrival in plan], wide)
    for batch in simulation.batches:
        if any(member.solitary for member in batch.batch):
            assert (len(batch.batch), batch.wide, batch.batch[0].riders) == (1, False, [])
            assert batch.closed_by in ("solitary", "backlog")


@settings(max_examples=100)
@given(arrivals, st.booleans())
def test_no_lane_idles_while_anything_that_fits_waits(plan: list[Arrival], wide: bool) -> None:
    """Work-conserving: whoever came to two free lanes started there and then."""
    simulation = run(plan, wide)
    busy = [(member.started_s, member.ended_s) for batch in simulation.batches for member in batch.batch]
    for sequence in simulation.sequences:
        if sequence.started_s is not None and sequence.started_s > sequence.arrived_s:
            at_s = sequence.arrived_s
            assert any(s is not None and e is not None and s <= at_s <= e for s, e in busy)


@settings(max_examples=20)
@given(st.integers(1, 512), st.integers(16, 512), st.booleans())
def test_nobody_starves_in_three_times_the_load_that_the_lanes_can_bear(odd: int, common: int, bulk: bool) -> None:
    lone = Arrival(0.5, odd, priority=Priority.BULK if bulk else Priority.INTERACTIVE)
    gap_s = cost().share_s(common) / LANES / 3
    crowd = [Arrival(index * gap_s, common) for index in range(int(3.5 / gap_s))]
    plan = sorted([lone, *crowd], key=lambda arrival: arrival.at_s)
    (first,) = (sequence for sequence in run(plan).sequences if sequence.arrival is lone)
    assert first.started_s is not None
    # An interactive one waits for what came before it (1 s of work for two lanes); a bulk one until it is paid for.
    paid_s = cost().seconds(1, odd) / (BULK_SHARE * LANES)
    assert first.started_s - first.arrived_s <= (paid_s if bulk else 1.0) + 0.5


@settings(max_examples=20)
@given(st.integers(1, 8), st.lists(st.integers(1, 512), min_size=1, max_size=40), st.integers(1, 512))
def test_a_single_call_waits_for_about_two_batches_of_each_large_one(
    calls: int, lengths: list[int], single: int
) -> None:
    """However many calls of hundreds wait, and whatever rode out of turn before."""
    large = [Arrival(0.0, length, flow=call) for call in range(calls) for length in (lengths * 400)[:400]]
    simulation = run([*large, Arrival(0.2, single, flow="single")])
    lone = simulation.sequences[-1]
    assert lone.started_s is not None
    before = [
        batch
        for batch in simulation.batches
        if batch.batch[0].started_s is not None and 0.2 < batch.batch[0].started_s < lone.started_s
    ]
    # A turn is worth one share of its own; the shorter the others, the more of them make one turn.
    turns = sum(member.share_s for batch in before for member in batch.batch)
    longest_s = max(member.share_s for member in simulation.sequences)
    assert turns <= 3 * (calls + LIMITS.sequences) * longest_s


@settings(max_examples=50)
@given(st.lists(st.sampled_from([5, 6, 500]), min_size=2, max_size=60))
def test_single_calls_have_their_turns_in_the_order_of_arrival_and_equals_lead_in_it(lengths: list[int]) -> None:
    """Whatever their lengths: turns must not make a short one overtake a long one for ever."""
    simulation = run([Arrival(0.003 * index, length) for index, length in enumerate(lengths)])
    turns = [sequence.turn_s for sequence in simulation.sequences]
    assert turns == sorted(turns)
    for length in lengths:
        dues = [sequence.due_s for sequence in simulation.sequences if sequence.length == length]
        assert dues == sorted(dues)


def checked(plan: Iterable[Arrival], wide: bool = False) -> Checked:
    record = Checked(COST, LIMITS)
    wide_cost = cost(speed=1.8) if wide else None
    simulate(plan, Backlog(cost(), MEMORY, wide_cost), LIMITS, Lanes(LANES, wide), record=record)
    record.finish()
    return record


@settings(max_examples=100)
@given(arrivals, st.booleans())
def test_nobody_is_overtaken_by_more_than_a_multiple_of_what_waited_before_it(plan: list[Arrival], wide: bool) -> None:
    """Of the firsts of all flows when it became one of them; arrivals are fast, so that there is who overtakes."""
    checked([replace(arrival, at_s=arrival.at_s / 4) for arrival in plan], wide)


@settings(max_examples=20)
@given(st.integers(200, 512), st.integers(5, 20), st.integers(1, 3))
def test_short_ones_that_never_end_do_not_starve_a_long_one(long: int, short: int, many: int) -> None:
    gap_s = COST.seconds(1, short) / LANES / 2
    crowd = [Arrival(index * gap_s, short) for index in range(int(0.4 / gap_s))]
    longs = [Arrival(0.02, long) for _ in range(many)]
    checked(sorted([*crowd, *longs], key=lambda arrival: arrival.at_s))


def test_what_must_always_hold_does_so_for_twenty_thousand_at_more_than_the_lanes_can_bear() -> None:
    random = Random(1)  # noqa: S311 - a load, not a secret

    def arrivals() -> Iterator[Arrival]:
        at_s = 0.0
        for _ in range(20_000):
            at_s += random.expovariate(2.0 * LANES / COST.seconds(1, 64))
            yield Arrival(
                at_s,
                length=random.choice([8, 16, 32, 64, 200]),
                flow=random.choice([None, None, "a", "b"]),
                priority=random.choice([Priority.INTERACTIVE, Priority.INTERACTIVE, Priority.BULK]),
                solitary=random.random() < 0.1,
                deadline_s=random.choice([NEVER_S, 0.05, 1.0]),
                cancel_s=random.choice([NEVER_S, NEVER_S, NEVER_S, 0.1]),
            )

    record = checked(arrivals(), wide=True)
    assert record.answered + record.expired + record.cancelled == 20_000
    assert min(record.answered, record.expired, record.cancelled) > 100
    assert record.most_overtaken > 1.0
