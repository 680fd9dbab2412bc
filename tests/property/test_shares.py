"""Who gets how much, whatever arrives: tenants by their weights, bulk work beside interactive work, equals once."""

from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from harken_server.planning.simulate import Arrival, Simulation, simulate
from harken_server.scheduling.backlog import Backlog
from harken_server.scheduling.companions import Limits
from harken_server.scheduling.cost import CostSurface
from harken_server.scheduling.lanes import BULK_SHARE, Lanes
from harken_server.scheduling.memory import MemoryModel
from harken_server.scheduling.tenants import AHEAD_TOKENS
from harken_server.scheduling.waiting import Priority, Tenant, Waiting
from hypothesis import given, settings
from hypothesis import strategies as st
from support.backlogs import backlog_of, waiting

LANES = 2
LIMITS = Limits(sequences=8, padded_tokens=600, memory_bytes=1 << 40)
LIGHT, HEAVY, OTHER = Tenant("light", 1.0, "light"), Tenant("heavy", 3.0, "heavy"), Tenant("other", 0.5, "other")


def cost() -> CostSurface:
    """One millisecond a batch, and some twenty microseconds a token."""
    return CostSurface(
        {(b, n): 0.001 + 2e-5 * b * n + 2e-8 * b * n * n for b in (1, 2, 4, 8) for n in (1, 16, 64, 256, 512)}
    )


def run(plan: list[Arrival], limits: Limits = LIMITS) -> Simulation:
    simulation = Simulation()
    ordered = sorted(plan, key=lambda arrival: arrival.at_s)
    simulate(ordered, Backlog(cost(), MemoryModel(10, 1)), limits, Lanes(LANES), record=simulation)
    return simulation


def flood(tenant: Tenant, lengths: list[int], priority: Priority, flow: str | None) -> list[Arrival]:
    return [Arrival(0.0, length, flow=flow, priority=priority, tenant=tenant) for length in (lengths * 100)[:100]]


floods = st.tuples(
    st.lists(st.integers(1, 512), min_size=1, max_size=8), st.sampled_from(Priority), st.sampled_from([None, "one"])
)


@settings(max_examples=30)
@given(st.tuples(floods, floods, floods))
def test_tenants_that_wait_all_along_are_served_tokens_by_their_weights(
    asked: tuple[tuple[list[int], Priority, str | None], ...],
) -> None:
    """Whatever their lengths and priorities, and in however many calls: a long sequence counts as what it is."""
    tenants = (LIGHT, HEAVY, OTHER)
    plan = [arrival for tenant, what in zip(tenants, asked, strict=True) for arrival in flood(tenant, *what)]
    waiting = Counter(arrival.tenant.queue for arrival in plan)
    served = dict.fromkeys(waiting, 0.0)
    batch_tokens = max(LIMITS.padded_tokens, 512) / min(tenant.weight for tenant in tenants)
    for batch in run(plan).batches:
        for member in batch.batch:
            waiting[member.tenant.queue] -= 1
            if member.started_s == 0.0:
                continue  # the lanes were taken before everybody was there
            served[member.tenant.queue] += member.length / member.tenant.weight
        if min(waiting.values()) == 0:
            return
        assert max(served.values()) - min(served.values()) <= AHEAD_TOKENS + batch_tokens


@settings(max_examples=30)
@given(st.lists(st.integers(1, 512), min_size=1, max_size=8), st.integers(1, 512), st.sampled_from(Priority))
def test_who_comes_beside_a_flood_of_another_tenant_does_not_wait_for_it(
    lengths: list[int], single: int, priority: Priority
) -> None:
    """Not even if it is bulk work, and the flood interactive: for what the lanes run, and for a tenant's lead."""
    at_s = 0.05
    late = Arrival(at_s, single, tenant=LIGHT, priority=priority)
    simulation = run([*flood(OTHER, lengths, Priority.INTERACTIVE, None), late])
    (alone,) = (sequence for sequence in simulation.sequences if sequence.arrival is late)
    assert alone.started_s is not None
    between = [
        member.length
        for batch in simulation.batches
        for member in batch.batch
        if member.tenant is OTHER and member.started_s is not None and at_s < member.started_s < alone.started_s
    ]
    # Beside its lead: a batch that exceeds it, and those that were prepared before.
    assert sum(between) <= AHEAD_TOKENS * OTHER.weight + (1 + LANES) * max(LIMITS.padded_tokens, 512)


def test_a_tenant_that_paused_has_saved_nothing_up() -> None:
    """While it was away the other one was served for seconds; now both get the same."""
    before = [Arrival(0.0, 100, tenant=LIGHT) for _ in range(500)]
    both = [Arrival(1.0, 100, tenant=tenant) for _ in range(200) for tenant in (LIGHT, replace(OTHER, weight=1.0))]
    simulation = run([*before, *both])
    served = Counter(
        member.tenant.name
        for batch in simulation.batches
        for member in batch.batch
        if member.started_s is not None and 1.0 < member.started_s < 1.3
    )
    assert abs(served["light"] - served["other"]) * 100 <= AHEAD_TOKENS + LIMITS.padded_tokens


@settings(max_examples=30)
@given(
    st.lists(st.integers(1, 512), min_size=1, max_size=8),
    st.lists(st.integers(1, 512), min_size=1, max_size=8),
    st.sampled_from([0.001, 0.005, 0.02]),
)
def test_no_batch_with_bulk_work_takes_longer_than_its_cap_while_interactive_work_comes(
    bulk: list[int], interactive: list[int], cap_s: float
) -> None:
    many = flood(Tenant(), bulk, Priority.BULK, "stream")
    few = [Arrival(0.02 * index, length) for index, length in enumerate((interactive * 40)[:40])]
    simulation = run([*few, *many], replace(LIMITS, bulk_s=cap_s))
    capped = 0
    for batch in simulation.batches:
        if any(member.priority is Priority.BULK for member in batch.batch) and len(batch.batch) > 1:
            started_s = batch.batch[0].started_s
            assert started_s is not None
            if started_s <= 0.02 * 39 + 1.0:
                assert batch.predicted_s <= cap_s + 1e-9
                capped += 1
    if cap_s == 0.02 and max(bulk) <= 64:
        assert capped


def test_bulk_work_goes_on_beside_more_interactive_work_than_the_lanes_can_bear() -> None:
    """It gets about its share of their time, and no more."""
    gap_s = cost().share_s(50) / LANES / 2
    crowd = [Arrival(index * gap_s, 50) for index in range(int(2.0 / gap_s))]
    simulation = run([*crowd, *flood(Tenant(), [50], Priority.BULK, "stream")])
    begun = [batch for batch in simulation.batches if 0.5 < (batch.batch[0].started_s or 0.0) < 1.9]
    led = sum(batch.predicted_s for batch in begun if batch.bulk)
    assert 0.5 * BULK_SHARE <= led / sum(batch.predicted_s for batch in begun) <= 1.5 * BULK_SHARE


twins = st.lists(
    st.tuples(
        st.sampled_from([None, "a", "b", "c"]), st.floats(0.0, 0.2), st.sampled_from(Priority),
        st.one_of(st.just(float("inf")), st.floats(0.0, 0.1)), st.one_of(st.just(float("inf")), st.floats(0.0, 0.1)),
    ),
    min_size=1, max_size=60,
)  # fmt: skip


@settings(max_examples=100)
@given(twins)
def test_equals_that_wait_together_are_computed_once_and_each_ends_once(
    plan: list[tuple[str | None, float, Priority, float, float]],
) -> None:
    lengths = {None: 40, "a": 30, "b": 200, "c": 41}
    simulation = run(
        [
            Arrival(
                at_s, lengths[name], priority=priority, twin=name.encode() if name else None,
                deadline_s=deadline_s, cancel_s=cancel_s,
            )
            for name, at_s, priority, deadline_s, cancel_s in plan
        ]
    )  # fmt: skip
    for sequence in simulation.sequences:
        (outcome,) = sequence.outcomes
        assert (outcome == "answered") == (sequence.started_s is not None)
        if outcome == "answered":
            assert not sequence.deadline.passed(sequence.started_s or 0.0)
    for batch in simulation.batches:
        named = [member.twin for member in batch.batch if member.twin is not None]
        assert len(set(named)) == len(named)
    # Nobody waits on whose equal has begun: of the members of batches, none came before the one before it began.
    members = [member for batch in simulation.batches for member in batch.batch]
    for member in members:
        for other in members:
            if other.twin == member.twin is not None and other.started_s is not None and member.started_s is not None:
                assert not other.started_s < member.started_s or member.arrived_s >= other.started_s


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=30), st.randoms())
def test_equals_weigh_on_the_backlog_as_one(named: list[tuple[str, bool]], random: Random) -> None:
    backlog: Backlog[Waiting] = backlog_of()
    here: list[Waiting] = []
    for name, bulk in named:
        here.append(waiting(10 * ord(name), bulk=bulk, twin=name.encode()))
        backlog.add(here[-1])
        if random.random() < 0.4:
            assert backlog.remove(here.pop(random.randrange(len(here))))
    distinct = {(member.twin, member.priority): backlog.cost.share_s(member.length) for member in here}
    assert (backlog.sequences, backlog.distinct) == (len(here), len(distinct))
    assert backlog.work_s == pytest.approx(sum(distinct.values()))
    if here:
        equals = [member for member in here if member.twin == here[0].twin]
        assert backlog.start([here[0]]) == [(equal, here[0]) for equal in sorted(equals[1:], key=_order)]
        assert backlog.sequences == len(here) - len(equals)


def _order(member: Waiting) -> tuple[Priority, int]:
    return member.priority, member.serial
