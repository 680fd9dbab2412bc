"""What every call has in common: its clock, its count, its one answer, and what it means when it ends early."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, TypeVar
from uuid import uuid4

import grpc
import structlog

from harken_server import errors
from harken_server.rpc.status import Answer, answer, bug
from harken_server.scheduling.deadline import Deadline
from harken_server.service import Answers
from harken_server.telemetry.metrics import Metrics

log = structlog.get_logger()

T = TypeVar("T")

_MOMENT_S: Final = 0.1
_NOT_REJECTED: Final = (errors.Expired, errors.Abandoned, errors.ComputeFailed, errors.NoMemory)
"""What ends a call by its own deadline, by its caller, or after it was accepted."""
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(eq=False)
class Call:
    """One call, as it is accounted for."""

    number: int
    """Unique in this process; its flow in the backlog, which may be remembered after the call itself is gone."""
    method: str
    received_s: float
    deadline: Deadline
    model: str = ""
    """The served model it is about, once that is known; nothing else may become a label."""

    @cached_property
    def request_id(self) -> str:
        """What the log and an answer whose cause is in the server have in common. Most calls never need one."""
        return uuid4().hex


class Calls:
    """Counts every call in and out, and turns whatever ends it into a status. Belongs to the event loop's thread."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float], max_request_s: float) -> None:
        self.clock: Final = clock
        self.metrics: Final = metrics
        self._max_request_s: Final = max_request_s
        self._open = 0
        self._began = 0
        self._idle: Final = asyncio.Event()
        self._idle.set()

    def deadline(self, context: Context) -> Deadline:
        """The moment after which nobody waits for this call."""
        return Deadline.after(context.time_remaining(), self._max_request_s, self.clock())

    async def answer(self, method: str, context: Context, work: Callable[[Call], Awaitable[T]]) -> T:
        """Do a call's work. Whatever it raises ends in one status, counted once; a bug ends in INTERNAL."""
        self._began += 1
        call = Call(self._began, method, self.clock(), self.deadline(context))
        self._open += 1
        self._idle.clear()
        # Not when the handler returns: its answer is on its way only then.
        when_done(context, self._ended)
        try:
            result = await work(call)
            self._count(call, grpc.StatusCode.OK)
            return result
        except errors.Refusal as refusal:
            refused = answer(refusal, call.request_id)
            if refused.code is grpc.StatusCode.INTERNAL:
                log.error("call failed", method=method, reason=refused.reason, request_id=call.request_id)
            self.rejected(call.model, refusal, refused.reason)
            await self._abort(call, context, refused)
        except asyncio.CancelledError:
            # gRPC cancels the handler both when the caller goes away and when the deadline passes.
            expired = call.deadline.explains_cancel(self.clock())
            self._count(call, grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED)
            raise
        except Exception:
            log.exception("call failed", method=method, request_id=call.request_id)
            await self._abort(call, context, bug(call.request_id))
        raise AssertionError("abort raises")

    def rejected(self, model: str, refusal: errors.Refusal, reason: str) -> None:
        """Count a call, or an input of a stream, if it was refused before it was accepted."""
        if not isinstance(refusal, _NOT_REJECTED):
            self.metrics.rejected.labels(model, reason).inc()

    def answered(self, call: Call, received_s: float, answers: Answers) -> None:
        """Observe the duration of a call, and what of it was outside the stages."""
        now_s = self.clock()
        stamps = max((answer.stamps for answer in answers.answers), key=lambda stamps: stamps.scattered_s)
        self.metrics.request_duration.labels(call.model, call.method).observe(now_s - received_s)
        edge_s = (now_s - received_s) - (stamps.scattered_s - stamps.received_s)
        self.metrics.stage_duration.labels(call.model, "edge").observe(edge_s)

    async def quiet(self) -> None:
        """Until no call is open, and none has begun for a moment: what has arrived may not have been picked up yet."""
        began = -1
        while began != self._began:
            began = self._began
            await self._idle.wait()
            await asyncio.sleep(_MOMENT_S)

    def _ended(self) -> None:
        self._open -= 1
        if not self._open:
            self._idle.set()

    def _count(self, call: Call, code: grpc.StatusCode) -> None:
        self.metrics.requests.labels(call.model, call.method, code.name).inc()

    async def _abort(self, call: Call, context: Context, refused: Answer) -> None:
        # Counted first: a client that never reads keeps the status from leaving until it goes away.
        self._count(call, refused.code)
        await context.abort(refused.code, refused.status.message, refused.trailers())


def when_done(context: Context, act: Callable[[], None]) -> None:
    """Once the call is over: its answer has left, or nobody is there to take it."""
    callback: Any = lambda _: act()  # noqa: E731 - the stubs give the callback a type that no function has
    context.add_done_callback(callback)
