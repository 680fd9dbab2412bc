"""grpc.health.v1 without its package.

The request is one string and the answer one enum, each in field 1, so the wrapper
types of protobuf are the same bytes on the wire.
"""

import asyncio
import time
from collections.abc import AsyncGenerator

import grpc
from google.protobuf.wrappers_pb2 import StringValue, UInt32Value

from harken_client.connection import Connection
from harken_client.errors import DeadlineExceeded, Unavailable, from_rpc
from harken_client.retry import Deadline

_STATUSES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
# Between two Watches where the server ends each at once, as it does while it drains.
_WATCH_PAUSE_S = 0.1


def _status(message: UInt32Value) -> str:
    return _STATUSES[message.value] if message.value < len(_STATUSES) else "UNKNOWN"


async def check(connection: Connection, service: str, deadline: Deadline) -> str:
    """SERVING, NOT_SERVING or UNKNOWN. Raises ModelNotFound if the server knows no such service."""
    method = connection.channel.unary_unary(
        "/grpc.health.v1.Health/Check", StringValue.SerializeToString, UInt32Value.FromString
    )
    return _status(await connection.call(method, StringValue(value=service), deadline))


async def watch(connection: Connection, service: str, timeout_s: float | None = None) -> AsyncGenerator[str, None]:
    """The status now and at each change, until the server ends the watch. Raises HarkenError.

    Waits for a server that is not there yet.
    """
    method = connection.channel.unary_stream(
        "/grpc.health.v1.Health/Watch", StringValue.SerializeToString, UInt32Value.FromString
    )
    call = method(StringValue(value=service), timeout=timeout_s, metadata=connection.metadata, wait_for_ready=True)
    try:
        async for message in call:
            yield _status(message)
    except grpc.aio.AioRpcError as rpc_error:
        raise from_rpc(rpc_error) from rpc_error
    finally:
        call.cancel()


async def wait_serving(connection: Connection, service: str, deadline: Deadline) -> None:
    """Return once the service is SERVING. Raises DeadlineExceeded with the last status seen."""
    last = "no answer"
    while (remaining_s := deadline.remaining_s(time.monotonic())) > 0:
        statuses = watch(connection, service, remaining_s)
        try:
            async for status in statuses:
                if status == "SERVING":
                    return
                last = status
        except (DeadlineExceeded, Unavailable):
            pass  # the loop looks at the deadline by itself
        finally:
            await statuses.aclose()
        await asyncio.sleep(min(_WATCH_PAUSE_S, deadline.remaining_s(time.monotonic())))
    raise DeadlineExceeded(f"{connection.target} was not ready in time; last status: {last}")
