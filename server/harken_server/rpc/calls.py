"""What every call has in common: its clock, its count, its one answer, and what it means when it ends early."""

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import grpc
import structlog

from harken_server import errors
from harken_server.attend import Attended
from harken_server.models.repository import Model
from harken_server.rpc import objective
from harken_server.rpc.api_keys import AUTHORIZATION, ApiKeys, digest_of
from harken_server.rpc.load_report import LoadReports
from harken_server.rpc.status import Answer, answer, bug
from harken_server.rpc.tenants import TENANT, Tenants
from harken_server.rpc.traces import size_of, tell
from harken_server.scheduling.deadline import Deadline
from harken_server.scheduling.waiting import ANYBODY, Tenant
from harken_server.telemetry.logs import NO_ACCESS_LOG, AccessLog, Logged
from harken_server.telemetry.metrics import Metrics
from harken_server.telemetry.statistics import Statistics
from harken_server.telemetry.tracing import TRACEPARENT, Trace, Tracing
from harken_server.values import NO_LIMITS, Account, Answers

log = structlog.get_logger()

T = TypeVar("T")

REQUEST_ID: Final = "x-request-id"
"""The name of the metadata, or header, that a caller may give an id in, and in which it comes back."""
_REQUEST_ID: Final = re.compile(r"[!-~]{1,128}")
_MOMENT_S: Final = 0.1
_PARKED_S: Final = 0.5
"""Longest that a refusal is held back."""
_NOT_REJECTED: Final = (errors.StreamTooOld, errors.Expired, errors.Abandoned, errors.ComputeFailed, errors.NoMemory)
"""What ends a call by its own deadline, by its caller, or after it was accepted."""

ADMIN: Final = frozenset(
    {
        "RepositoryModelLoad", "RepositoryModelUnload", "ExplainBatches", "Settings",
        "POST /v2/repository/models/load", "POST /v2/repository/models/unload", "GET /studio/live",
    }
)  # fmt: skip
"""Methods for whoever operates the server: where keys are in use, they need an admin's."""
KEYLESS: Final = frozenset(
    {"ServerLive", "ServerReady", "GET /v2/health/live", "GET /v2/health/ready", "GET /health"}
)  # fmt: skip
"""Methods that tell no more than health does, to balancers that have no keys."""

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(eq=False)
class Call:
    """One call, as it is accounted for."""

    number: int
    """Unique in this process; its flow in the backlog, which may be remembered after the call itself is gone."""
    method: str
    received_s: float
    deadline: Deadline
    request_id: str
    """The caller's, or one that was made: what its answer, its error and the log have in common."""
    given_tenant: str
    digest: str
    """Of the API key that came with it, if any did."""
    account: Account = NO_LIMITS
    """Whose limits hold for it, once that is known."""
    tenant: Tenant = ANYBODY
    """Who asks, once that is known."""
    model: str = ""
    """The served model it is about, once that is known; nothing else may become a label."""
    statistics: Statistics | None = None
    """Of the model version that it asks to compute, once that is known."""
    trace: Trace | None = None
    """Its span, if it is traced."""
    logged: Logged = ""
    sequences: int = 0
    """How many were answered, and `tokens` of them; counted only if it is logged."""
    tokens: int = 0
    inputs_failed: bool = False
    """Whether the server failed on some of the inputs of a call that is answered."""

    def add(self, size: tuple[int, int]) -> None:
        """So many sequences, and tokens of them, are answered."""
        self.sequences, self.tokens = self.sequences + size[0], self.tokens + size[1]

    @property
    def names(self) -> dict[str, str]:
        """What leads to it from a log line, or from a bucket of a histogram."""
        request_id = {"request_id": self.request_id}
        return request_id if self.trace is None else {"trace_id": self.trace.trace_id, **request_id}


class Refused(Exception):
    """A call that ends without what it asked for."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.reason)
        self.answer: Final = answer


class Calls:
    """Counts every call in and out, and turns whatever ends it into a status. Belongs to the event loop's thread."""

    def __init__(
        self,
        metrics: Metrics,
        tenants: Tenants,
        clock: Callable[[], float],
        max_request_s: float,
        keys: ApiKeys | None = None,
        access_log: AccessLog = NO_ACCESS_LOG,
        tracing: Tracing | None = None,
        load_reports: LoadReports | None = None,
    ) -> None:
        """`keys`: None lets everybody in. `tracing`: None traces nobody. `load_reports`: None makes none."""
        self.clock: Final = clock
        self.metrics: Final = metrics
        self._tenants: Final = tenants
        self._keys: Final = keys
        self._access_log: Final = access_log
        self.tracing: Final = tracing
        self._load_reports: Final = load_reports
        self._max_request_s: Final = max_request_s
        self._open = 0
        self._began = 0
        self._named = 0
        # Made ids start with it, so that those of several servers differ.
        self._prefix: Final = secrets.token_hex(6)
        self._idle: Final = asyncio.Event()
        self._idle.set()
        # While it is there, and not set, refusals of gRPC calls wait.
        self._parking: asyncio.Event | None = None

    async def answer(
        self, method: str, context: Context, work: Callable[[Call], Awaitable[T]], unary: bool = True
    ) -> T:
        """Do a gRPC call's work, and end it with one status. The trailers of `unary` calls tell the server's load."""
        metadata = context.invocation_metadata() or ()

        def given(name: str) -> str:
            return one_of([value for key, value in metadata if key == name and isinstance(value, str)])

        digest = digest_of(given(AUTHORIZATION))
        traceparent = given(TRACEPARENT) if self.tracing is not None else ""
        call = self.begin(method, context.time_remaining(), given(REQUEST_ID), given(TENANT), digest, traceparent)
        named = ((REQUEST_ID, call.request_id),)
        # Not when the handler returns: its answer is on its way only then.
        when_done(context, self.ended)
        reports = self._load_reports if unary else None
        try:
            result = await self.run(call, work)
            # In the trailers: metadata that comes before an error turns a client's retries off.
            context.set_trailing_metadata(named if reports is None else (*named, *reports.trailers()))
            return result
        except Refused as refused:
            said = refused.answer
        if self._parking is not None:
            await self._parking.wait()
        try:
            trailers = (*said.trailers(context.time_remaining()), *named, *(reports.trailers() if reports else ()))
            await context.abort(said.code, said.status.message, trailers)
        except grpc.aio.AbortError as aborted:
            # gRPC keeps it with the call, and its frames hold the call: request and all would wait for the collector.
            asyncio.get_running_loop().call_soon(aborted.with_traceback, None)
            raise
        raise AssertionError("abort raises")

    def begin(
        self, method: str, remaining_s: float | None, request_id: str, tenant: str, digest: str, traceparent: str = ""
    ) -> Call:
        """A call has come whose caller waits so long (None: for ever). Its end is `ended`, when its answer has left.

        `request_id` is the caller's, see there; so is `traceparent`, which is not read unless requests are traced.
        """
        self._began += 1
        self._open += 1
        self._idle.clear()
        now_s = self.clock()
        deadline = Deadline.after(remaining_s, self._max_request_s, now_s)
        call = Call(self._began, method, now_s, deadline, self.request_id(request_id), tenant, digest)
        call.logged = self._access_log.draw()
        if self.tracing is not None:
            call.trace = self.tracing.request(method, traceparent, now_s)
        return call

    def request_id(self, given: str) -> str:
        """The caller's; another one is made if it is empty, or could do harm in a log or a header."""
        if _REQUEST_ID.fullmatch(given):
            return given
        self._named += 1
        return f"{self._prefix}-{self._named}"

    async def run(self, call: Call, work: Callable[[Call], Awaitable[T]]) -> T:
        """Do a call's work. Whatever it raises is counted once, and ends in Refused, a bug as INTERNAL."""
        try:
            with self._known(call):
                result = await work(call)
        except errors.Refusal as refusal:
            refused = answer(refusal, call.request_id)
            if refused.code is grpc.StatusCode.INTERNAL:
                log.error("call failed", method=call.method, reason=refused.reason, **call.names)
            self.rejected(call.model, refusal, refused.reason)
            # Counted now: a client that never reads keeps the status from leaving until it goes away.
            self._count(call, refused.code, refused)
            _forget_frames(refusal)
            raise Refused(refused) from None
        except asyncio.CancelledError:
            # gRPC cancels the handler both when the caller goes away and when the deadline passes.
            expired = call.deadline.explains_cancel(self.clock())
            self._count(call, grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED)
            raise
        except Exception as error:
            log.exception("call failed", method=call.method, **call.names)
            self._count(call, grpc.StatusCode.INTERNAL)
            raise Refused(bug(call.request_id)) from error
        self._count(call, grpc.StatusCode.OK)
        return result

    @contextmanager
    def _known(self, call: Call) -> Iterator[None]:
        """Who calls is known, and one of its calls is in flight. Raises a Refusal if it may not be."""
        if self._keys is None or call.method in KEYLESS:
            call.tenant = self._tenants.find(call.given_tenant)
            yield
            return
        caller = self._keys.find(call.digest)
        call.account, call.tenant = caller, caller.tenant
        if call.method in ADMIN:
            caller.check_admin()
        with caller.one_more():
            yield

    def found(self, call: Call, model: Model) -> None:
        """The call asks this model version to compute."""
        call.model = model.manifest.name
        call.statistics = self.metrics.statistics[model.key]

    def failed(self, statistics: Statistics | None, received_s: float) -> None:
        """Count a request, whether a call or an input of a stream, that ended without an answer."""
        if statistics is not None:
            statistics.fail.add(self.clock() - received_s)

    def input_ended(self, call: Call, refused: Answer, statistics: Statistics | None, received_s: float) -> None:
        """Count an input of a stream that was refused, or failed."""
        self.metrics.slo_requests.labels(call.model, objective.of_refusal(refused)).inc()
        self.failed(statistics, received_s)

    def rejected(self, model: str, refusal: errors.Refusal, reason: str) -> None:
        """Count a call, or an input of a stream, if it was refused before it was accepted."""
        if not isinstance(refusal, _NOT_REJECTED):
            self.metrics.rejected.labels(model, reason).inc()

    def answered(self, call: Call, received_s: float, answers: Answers, trace: Trace | None) -> None:
        """Observe the duration of a call, or of an input of a stream, and what of it was outside the stages.

        `trace`: the call's, or the input's.
        """
        now_s = self.clock()
        stamps = max((answer.stamps for answer in answers.answers), key=lambda stamps: stamps.scattered_s)
        self.metrics.request_duration.labels(call.model, call.method).observe(now_s - received_s, call.names)
        failed = any(isinstance(answer.outcome, errors.Refusal) for answer in answers.answers)
        if call.method in objective.STREAMS:
            self.metrics.slo_requests.labels(call.model, "unavailable" if failed else "served").inc()
        else:
            call.inputs_failed = failed
        edge_s = (now_s - received_s) - (stamps.scattered_s - stamps.received_s)
        self.metrics.stage_duration.labels(call.model, "edge").observe(edge_s)
        if call.logged or trace is not None:
            size = size_of(answers)
            call.add(size)
            if trace is not None:
                every = [answer.stamps for answer in answers.answers]
                tell(trace, answers.model.key, size, every, (received_s, stamps, now_s))
        statistics = self.metrics.statistics.get(answers.model.key)
        if statistics is None:
            return  # this was the last that a version did
        statistics.success.add(now_s - received_s)
        statistics.queue.add(stamps.taken_s - stamps.queued_s)
        statistics.compute_input.add((stamps.queued_s - stamps.received_s) + (stamps.collated_s - stamps.taken_s))
        statistics.compute_infer.add(stamps.computed_s - stamps.collated_s)
        statistics.compute_output.add(stamps.scattered_s - stamps.computed_s)
        statistics.last_inference_s = time.time()

    def attended(self, call: Call, attended: Attended) -> None:
        """Observe the duration of an Attend, whose answer is there."""
        now_s = self.clock()
        self.metrics.request_duration.labels(call.model, call.method).observe(now_s - call.received_s, call.names)
        size = len(attended.texts), sum(len(tokens.ids) for tokens in attended.texts)
        call.add(size)
        stamps = attended.stamps
        if call.trace is not None and stamps is not None:
            tell(call.trace, attended.model.key, size, [stamps], (call.received_s, stamps, now_s))

    async def park(self) -> None:
        """Hold refusals back until `release`, and return once no call comes any more, or so few that nobody waits.

        gRPC cancels the calls that a stopping server has not picked up, and their callers do not learn that they may
        go elsewhere. Whoever waits for a refusal asks for nothing more, so there are none then.
        """
        self._parking = asyncio.Event()
        began, ends_s = -1, self.clock() + _PARKED_S
        while began != self._began and self.clock() < ends_s:
            began = self._began
            await asyncio.sleep(_MOMENT_S / 2)

    def release(self) -> None:
        """Say what was held back."""
        if self._parking is not None:
            self._parking.set()

    async def quiet(self) -> None:
        """Until no call is open, and none has begun for a moment: what has arrived may not have been picked up yet."""
        began = -1
        while began != self._began:
            began = self._began
            await self._idle.wait()
            await asyncio.sleep(_MOMENT_S)

    def ended(self) -> None:
        """A call's answer has left, or nobody is there to take it."""
        self._open -= 1
        if not self._open:
            self._idle.set()

    def _count(self, call: Call, code: grpc.StatusCode, refused: Answer | None = None) -> None:
        self.metrics.requests.labels(call.model, call.method, code.name).inc()
        outcome = objective.of_call(call.method, code, refused, call.model, call.inputs_failed)
        if outcome is not None:
            self.metrics.slo_requests.labels(call.model, outcome).inc()
        if code is not grpc.StatusCode.OK:
            self.failed(call.statistics, call.received_s)
        if call.trace is not None:
            call.trace.end(code.name, self.clock())
        if call.logged:
            duration_s = round(self.clock() - call.received_s, 6)
            self._access_log.write(
                call.logged, method=call.method, model=call.model, code=code.name, duration_s=duration_s,
                sequences=call.sequences, tokens=call.tokens, **call.names,
            )  # fmt: skip


def one_of(values: Sequence[str]) -> str:
    """What metadata, or headers, have under a name. Several are one with a space in it, so that none passes for all."""
    return ", ".join(values)


def _forget_frames(error: BaseException | None) -> None:
    """Of an error that is told, and what it came from: they hold the request, and its model, maybe in a cycle."""
    while error is not None:
        error.__traceback__ = None
        error = error.__context__


def when_done(context: Context, act: Callable[[], None]) -> None:
    """Once the call is over: its answer has left, or nobody is there to take it.

    gRPC keeps `act` in a cycle with the call, until the next collection: it shall hold little.
    """
    callback: Any = lambda _: act()  # noqa: E731 - the stubs give the callback a type that no function has
    context.add_done_callback(callback)
