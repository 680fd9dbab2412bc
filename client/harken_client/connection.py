"""One channel to the servers of one name, and the one way in which calls are made over it."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
from google.protobuf.message import Message
from harken.v1 import admin_pb2_grpc, debug_pb2_grpc, encoder_pb2_grpc

from harken_client.channel import open_channel
from harken_client.errors import DeadlineExceeded, HarkenError, from_rpc
from harken_client.retry import Deadline, invited_delay_s, reconnect_delay_s
from harken_client.security import bearer

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
T = TypeVar("T")

_TENANT = "harken-tenant"

# gRPC's words where it makes no further attempt, since the head of an answer was there: for a call whose connection
# broke between that and the answer, as when a server is killed; and for a proxy's page in place of an answer.
_BROKEN = ("Stream removed", "Received http2 header with status: ")


class Connection:
    """Belongs to the event loop in which it is made. Without a tenant, or a key, its calls name none."""

    def __init__(
        self,
        target: str,
        *,
        max_message_bytes: int,
        max_attempts: int,
        credentials: grpc.ChannelCredentials | None,
        tenant: str = "",
        api_key: str = "",
        wait_for_ready: bool = False,
    ) -> None:
        self.target = target
        self.max_attempts = max_attempts
        self.wait_for_ready = wait_for_ready
        self.channel = open_channel(
            target,
            max_message_bytes=max_message_bytes,
            max_attempts=max_attempts,
            credentials=credentials,
            secret=bool(api_key),
        )
        self.metadata = (*(((_TENANT, tenant),) if tenant else ()), *bearer(api_key))
        self.stub: encoder_pb2_grpc.EncoderAsyncStub = encoder_pb2_grpc.EncoderStub(self.channel)
        self.debug: debug_pb2_grpc.DebugAsyncStub = debug_pb2_grpc.DebugStub(self.channel)
        self.admin: admin_pb2_grpc.AdminAsyncStub = admin_pb2_grpc.AdminStub(self.channel)

    async def close(self) -> None:
        await self.channel.close()

    async def call(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[Request, Response]",
        request: Request,
        deadline: Deadline,
    ) -> Response:
        """Call until it succeeds, the server does not invite it again, or the deadline comes. Raises HarkenError."""

        async def attempt(timeout_s: float) -> Response:
            return await method(request, timeout=timeout_s, metadata=self.metadata, wait_for_ready=self.wait_for_ready)

        return await self._repeated(attempt, deadline)

    async def collect(
        self,
        method: "grpc.aio.UnaryStreamMultiCallable[Request, Response]",
        request: Request,
        deadline: Deadline,
        begin: Callable[[], Callable[[Response], None]],
    ) -> None:
        """As `call`, for an answer of several messages, which each attempt hands to what `begin` gives it."""

        async def attempt(timeout_s: float) -> None:
            take = begin()
            answer = method(request, timeout=timeout_s, metadata=self.metadata, wait_for_ready=self.wait_for_ready)
            try:
                async for message in answer:
                    take(message)
            finally:
                answer.cancel()  # nothing if it is over

        await self._repeated(attempt, deadline)

    async def _repeated(self, attempt: Callable[[float], Awaitable[T]], deadline: Deadline) -> T:
        error: HarkenError = DeadlineExceeded("no time was left to make the call")
        broken = 0
        # grpcio may take a timeout of 0 for one that has not passed. An earlier refusal says more.
        while (remaining_s := deadline.remaining_s(time.monotonic())) > 0:
            try:
                return await attempt(remaining_s)
            except grpc.aio.AioRpcError as rpc_error:
                error = from_rpc(rpc_error)
                delay_s = self.invited_delay_s(error)
                if delay_s is None and (rpc_error.details() or "").startswith(_BROKEN):
                    broken += 1
                    delay_s = self.reconnect_delay_s(error, broken) if broken < self.max_attempts else None
                if delay_s is None or delay_s >= deadline.remaining_s(time.monotonic()):
                    raise error from rpc_error
            await asyncio.sleep(delay_s)
        raise error

    def invited_delay_s(self, error: HarkenError) -> float | None:
        """Seconds to wait before the same is asked again, or None to give up."""
        return None if self.max_attempts == 1 else invited_delay_s(error, _jitter())

    def reconnect_delay_s(self, error: HarkenError, failures: int) -> float | None:
        """Seconds to wait before a stream whose connection failed or broke is opened again, or None to give up.

        failures   such ends in a row, this one included; whether they are too many is the caller's affair
        """
        if self.max_attempts == 1 or error.code is not grpc.StatusCode.UNAVAILABLE:
            return None
        return reconnect_delay_s(failures, _jitter())


def _jitter() -> float:
    return random.random()  # noqa: S311 - spreads retries in time, guards nothing
