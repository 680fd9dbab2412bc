"""The ring of the last batches: what it keeps, what it lets go, and what it says of each."""

import gc
import weakref
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pytest
from harken_server.errors import Abandoned, ComputeFailed, Expired
from harken_server.execution.history import MOST_MEMBERS, Batch, History, Member
from harken_server.execution.lanes import Ran
from harken_server.execution.pending import Outcome, Pending, Stamps
from harken_server.rpc.debug import WHY
from harken_server.scheduling.companions import ClosedBy
from harken_server.scheduling.cost import CostSurface
from harken_server.scheduling.deadline import Deadline
from harken_server.scheduling.policy import Start
from harken_server.scheduling.waiting import Priority
from harken_server.telemetry.metrics import CLOSED_BY

# A row costs 1 s for 10 tokens and 2 s for 20; two rows of 20 tokens cost 3 s.
COST = CostSurface({(1, 10): 1.0, (1, 20): 2.0, (2, 10): 1.5, (2, 20): 3.0})
VECTOR = {"sentence": np.zeros(4, np.float32)}


def settled(length: int, outcome: Outcome | None = VECTOR, flow: object = 1, bulk: bool = False) -> Pending:
    pending = Pending(
        length=length, deadline=Deadline(1e9), priority=Priority.BULK if bulk else Priority.INTERACTIVE, flow=flow,
        arrived_s=1.0, ids=np.zeros(length, np.int64), outputs=("sentence",), stamps=Stamps(0.5, 1.0, taken_s=1.25),
        on_settled=lambda _: None,
    )  # fmt: skip
    if outcome is not None:
        pending.settle(outcome)
    return pending


def add(history: History, batch: Sequence[Pending], compute_s: float = 3.5, predicted_s: float = 3.0) -> None:
    start = Start(
        lane=1, wide=False, model=("m", 2), batch=batch, predicted_s=predicted_s, predicted_bytes=100, closed_by="cost"
    )  # fmt: skip
    history.add(
        start,
        Ran(batch, [VECTOR] * len(batch), compute_s, busy_s=3.8, ended_s=8.9, expired=()),
        COST,
        took_s=4.0,
        ended_s=9.0,
    )


def test_a_batch_is_told_with_its_leader_first_and_its_cost_beside_everyone_alone() -> None:
    history = History(4)
    add(history, [settled(20, flow=7), settled(10, flow=8, bulk=True)])
    assert history.last(10) == [
        Batch(
            number=1, ended_s=9.0, model=("m", 2), lane="1", closed_by="cost", sequences=2, real_tokens=30,
            padded_length=20, predicted_s=3.0, alone_s=3.0, compute_s=3.5, lane_s=4.0, split=False,
            answered=2, failed=0, waits_again=0,
            members=[
                Member(20, 0.25, Priority.INTERACTIVE, 7, "answered"),
                Member(10, 0.25, Priority.BULK, 8, "answered"),
            ],
        )
    ]  # fmt: skip


def test_what_everyone_alone_would_take_is_told_at_the_scale_of_the_prediction() -> None:
    history = History(4)
    # Twice the surface's own seconds: the scale was 2 when this was predicted, and is 1 again.
    add(history, [settled(20), settled(20)], predicted_s=6.0)
    add(history, [settled(10)], predicted_s=2.0)
    alone, together = history.last(2)
    assert (together.predicted_s, together.alone_s) == (6.0, 8.0)
    assert (alone.predicted_s, alone.alone_s) == (2.0, 2.0)


def test_each_member_has_its_own_end_and_the_counts_agree() -> None:
    history = History(4)
    failures = [ComputeFailed("ENGINE_FAILED"), ComputeFailed("NOT_FINITE")]
    ends = [VECTOR, *failures, Expired(by_cap=False), Abandoned(), None]
    add(history, [settled(10, end) for end in ends], compute_s=0.0)
    (batch,) = history.last(1)
    assert [member.outcome for member in batch.members] == [
        "answered", "failed", "failed", "expired", "cancelled", "waits_again",
    ]  # fmt: skip
    assert (batch.sequences, batch.answered, batch.failed, batch.waits_again, batch.split) == (6, 1, 2, 1, True)


def test_one_that_fails_alone_was_not_split() -> None:
    history = History(4)
    add(history, [settled(10, ComputeFailed("ENGINE_FAILED"))], compute_s=0.0)
    (batch,) = history.last(1)
    assert (batch.split, batch.failed) == (False, 1)


def test_the_newest_stay_and_come_first() -> None:
    history = History(3)
    for _ in range(5):
        add(history, [settled(10)])
    assert [batch.number for batch in history.last(100)] == [5, 4, 3]
    assert [batch.number for batch in history.last(2)] == [5, 4]
    assert history.last(0) == []


def test_a_ring_of_none_keeps_none() -> None:
    history = History(0)
    add(history, [settled(10)])
    assert history.last(100) == []


def test_members_beyond_the_limit_are_counted_and_not_kept() -> None:
    history = History(1)
    failing = [settled(10, ComputeFailed("ENGINE_FAILED")) for _ in range(2)]
    add(history, [settled(20)] + [settled(10) for _ in range(2 * MOST_MEMBERS)] + failing)
    (batch,) = history.last(1)
    assert len(batch.members) == MOST_MEMBERS
    assert batch.members[0].length == 20
    assert (batch.sequences, batch.answered, batch.failed) == (2 * MOST_MEMBERS + 3, 2 * MOST_MEMBERS + 1, 2)
    assert batch.real_tokens == 20 + 10 * (2 * MOST_MEMBERS + 2)


def test_neither_vectors_nor_token_ids_nor_callers_are_kept_alive() -> None:
    history = History(1)
    vector = np.zeros(4, np.float32)
    pending = settled(10, {"sentence": vector})
    gone: list[weakref.ref[Any]] = [weakref.ref(vector), weakref.ref(pending.ids), weakref.ref(pending.on_settled)]
    add(history, [pending])
    del vector, pending
    gc.collect()
    assert [reference() for reference in gone] == [None, None, None]


@pytest.mark.parametrize("why", sorted({*get_args(ClosedBy), *CLOSED_BY}))
def test_every_reason_for_closing_a_batch_has_a_sentence(why: str) -> None:
    assert WHY[why]
