"""What a round of calls opens to a server, and closes again."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import httpx2
from harken.oip import inference_pb2_grpc
from harken_client import AsyncClient
from support.server import RunningServer

CODES = {
    200: "OK", 400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 413: "INVALID_ARGUMENT", 422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED",
}  # fmt: skip
"""What HTTP's statuses mean in gRPC's words."""


@dataclass(frozen=True)
class Edges:
    """harken's own client, a bare channel, the Open Inference Protocol over it, and HTTP connections that are kept."""

    server: RunningServer
    client: AsyncClient
    channel: grpc.aio.Channel
    inference: Any
    web: httpx2.AsyncClient

    @asynccontextmanager
    async def new_client(self) -> AsyncIterator[AsyncClient]:
        """With a connection of its own, since clients share none."""
        async with AsyncClient(self.server.target) as client:
            yield client


@asynccontextmanager
async def opened(server: RunningServer) -> AsyncIterator[Edges]:
    """Until the end of the block."""
    # The limit in time is that of each call.
    web = httpx2.AsyncClient(base_url=f"http://127.0.0.1:{server.http_port}", timeout=None, trust_env=False)
    channel = grpc.aio.insecure_channel(server.target, [("grpc.use_local_subchannel_pool", 1)])
    async with AsyncClient(server.target) as client, channel, web:
        yield Edges(server, client, channel, inference_pb2_grpc.GRPCInferenceServiceStub(channel), web)
