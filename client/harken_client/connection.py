"""One channel to one server, and the one way in which calls are made over it."""

import asyncio
import random
import time
from typing import TypeVar

import grpc
from google.protobuf.message import Message
from harken.v1 import debug_pb2_grpc, encoder_pb2_grpc

from harken_client.errors import DeadlineExceeded, HarkenError, from_rpc
from harken_client.retry import Deadline, retry_delay_s

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


def channel_options(max_message_bytes: int) -> list[tuple[str, int]]:
    return [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        # retry.py is the only mechanism that repeats a call.
        ("grpc.enable_retries", 0),
        # Clients of one process must not share a connection, nor its flow control.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 0),
        # A server that restarts is found again soon.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]


class Connection:
    """Belongs to the event loop in which it is made."""

    def __init__(
        self,
        target: str,
        *,
        max_message_bytes: int,
        max_attempts: int,
        credentials: grpc.ChannelCredentials | None,
    ) -> None:
        options = channel_options(max_message_bytes)
        self.target = target
        self.max_attempts = max_attempts
        self.channel = (
            grpc.aio.insecure_channel(target, options)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, options)
        )
        self.stub: encoder_pb2_grpc.EncoderAsyncStub = encoder_pb2_grpc.EncoderStub(self.channel)
        self.debug: debug_pb2_grpc.DebugAsyncStub = debug_pb2_grpc.DebugStub(self.channel)

    async def close(self) -> None:
        await self.channel.close()

    async def call(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[Request, Response]",
        request: Request,
        deadline: Deadline,
    ) -> Response:
        """Call until it succeeds, may not be repeated, or the deadline comes. Raises HarkenError."""
        unreached = 0
        error: HarkenError = DeadlineExceeded("no time was left to make the call")
        while True:
            remaining_s = deadline.remaining_s(time.monotonic())
            if remaining_s <= 0:
                # grpcio may take a timeout of 0 for one that has not passed. An earlier refusal says more.
                raise error
            try:
                return await method(request, timeout=remaining_s)
            except grpc.aio.AioRpcError as rpc_error:
                error = from_rpc(rpc_error)
                unreached = unreached + 1 if error.retry_after_s is None else 0
                delay_s = self.retry_delay_s(error, unreached)
                if delay_s is None or delay_s >= deadline.remaining_s(time.monotonic()):
                    raise error from rpc_error
            await asyncio.sleep(delay_s)

    def retry_delay_s(self, error: HarkenError, unreached: int) -> float | None:
        """Seconds to wait after a failed attempt, or None to give up. The deadline is the caller's affair.

        unreached   attempts in a row, this one included, that the server did not invite to repeat
        """
        # A connection that broke leaves the channel idle; only one that was never made leaves it so.
        refused = self.channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE
        connected = error.code is not grpc.StatusCode.UNAVAILABLE or not refused
        jitter = random.random()  # noqa: S311 - spreads retries in time, guards nothing
        return retry_delay_s(error, unreached, max_attempts=self.max_attempts, connected=connected, jitter=jitter)
