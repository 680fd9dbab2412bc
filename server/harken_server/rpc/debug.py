"""The service harken.v1.Debug: what the server did lately, for whoever operates it."""

import asyncio
from typing import Final

import grpc
from harken.v1 import debug_pb2, encoder_pb2

from harken_server.errors import TurnedOff
from harken_server.execution.history import Batch, History
from harken_server.rpc.calls import Call, Calls, Context
from harken_server.rpc.listener import Handlers
from harken_server.rpc.wire import parse
from harken_server.scheduling.waiting import Priority

SERVICE: Final = "harken.v1.Debug"

WHY: Final = {
    "cost": "the next in length would have cost more than it saved",
    "limit": "one more would have exceeded max_batch_sequences, max_batch_tokens, or the free memory",
    "lanes": "the others were left to the other free lanes",
    "deadline": "one more would have made a member miss its deadline",
    "age": "others who are late were not to be overtaken by one more",
    "bulk": "with one more, bulk work would have held up the interactive work that keeps coming for too long",
    "solitary": "it, or whoever is left, has to run alone, as a deterministic call asks",
    "tenants": "the others are of tenants that have had more than their shares",
    "backlog": "nobody else waited",
}
"""In words, why a batch was closed."""

_DEFAULT_LAST: Final = 20
# Beside its bytes an element of a repeated field has a tag, and its size in at most 5.
_ELEMENT_BYTES: Final = 6

_PRIORITIES: Final = {
    Priority.INTERACTIVE: encoder_pb2.PRIORITY_INTERACTIVE,
    Priority.BULK: encoder_pb2.PRIORITY_BULK,
}
_OUTCOMES: Final = {
    "answered": debug_pb2.MEMBER_OUTCOME_ANSWERED,
    "failed": debug_pb2.MEMBER_OUTCOME_FAILED,
    "expired": debug_pb2.MEMBER_OUTCOME_EXPIRED,
    "cancelled": debug_pb2.MEMBER_OUTCOME_CANCELLED,
    "waits_again": debug_pb2.MEMBER_OUTCOME_WAITS_AGAIN,
}


class Debug:
    """Handlers that take and give raw bytes."""

    def __init__(self, history: History, calls: Calls, max_message_bytes: int) -> None:
        self._history: Final = history
        self._calls: Final = calls
        self._max_message_bytes: Final = max_message_bytes

    def handlers(self) -> Handlers:
        """What a gRPC server registers."""
        return {"ExplainBatches": grpc.unary_unary_rpc_method_handler(self.explain_batches)}

    async def explain_batches(self, raw: bytes, context: Context) -> bytes:
        """ExplainBatches(ExplainBatchesRequest) -> ExplainBatchesResponse."""

        async def work(_: Call) -> bytes:
            request = parse(debug_pb2.ExplainBatchesRequest, raw, self._max_message_bytes)
            if not self._history.most_batches:
                raise TurnedOff("debug_batches")
            return (await self._explained(request.last or _DEFAULT_LAST)).SerializeToString()

        return await self._calls.answer("ExplainBatches", context, work)

    async def _explained(self, last: int) -> debug_pb2.ExplainBatchesResponse:
        now_s = self._calls.clock()
        # An answer calls its flows 1, 2, 3: numbers that last would tell how much others call.
        flows: dict[object, int] = {}
        newest_first: list[debug_pb2.Batch] = []
        left_bytes = self._max_message_bytes
        for batch in self._history.last(last):
            message = _message(batch, now_s, flows)
            left_bytes -= message.ByteSize() + _ELEMENT_BYTES
            if left_bytes < 0:
                break
            newest_first.append(message)
            # Thousands of batches take tens of milliseconds, in which others' requests must not wait.
            await asyncio.sleep(0)
        return debug_pb2.ExplainBatchesResponse(batches=reversed(newest_first))


def _message(batch: Batch, now_s: float, flows: dict[object, int]) -> debug_pb2.Batch:
    """`flows`: what the answer calls each flow; grows."""
    name, version = batch.model
    return debug_pb2.Batch(
        number=batch.number,
        age_ns=_ns(now_s - batch.ended_s),
        model=name,
        version=version,
        lane=batch.lane,
        closed_by=batch.closed_by,
        why=WHY[batch.closed_by],
        sequences=batch.sequences,
        real_tokens=batch.real_tokens,
        padded_length=batch.padded_length,
        predicted_ns=_ns(batch.predicted_s),
        alone_ns=_ns(batch.alone_s),
        compute_ns=_ns(batch.compute_s),
        lane_ns=_ns(batch.lane_s),
        split=batch.split,
        answered=batch.answered,
        failed=batch.failed,
        left=batch.sequences - batch.answered - batch.failed - batch.waits_again,
        waits_again=batch.waits_again,
        members=[
            debug_pb2.BatchMember(
                length=member.length,
                waited_ns=_ns(member.waited_s),
                priority=_PRIORITIES[member.priority],
                flow=flows.setdefault(member.flow, len(flows) + 1),
                outcome=_OUTCOMES[member.outcome],
            )
            for member in batch.members
        ],
    )


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
