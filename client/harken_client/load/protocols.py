"""The protocols that a load can be sent over, by name."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeAlias

from harken_client.client import DEFAULT_MAX_MESSAGE_BYTES
from harken_client.connection import Connection
from harken_client.load.oip import OipSender
from harken_client.load.openai import OpenAiSender, connections
from harken_client.load.sender import EncodeSender, Sender
from harken_client.security import Tls, key_for
from harken_client.values import ModelInfo, Output

ProtocolName: TypeAlias = Literal["harken", "oip", "openai"]


@asynccontextmanager
async def connected(
    protocol: ProtocolName,
    target: str,
    http_url: str,
    info: ModelInfo,
    output: Output,
    *,
    tls: Tls = Tls(),  # noqa: B008 - it is frozen
    api_key: str | None = None,
) -> AsyncGenerator[Sender[Any], None]:
    """Its sender, to `target` (host:port) over gRPC, or to `http_url`. Only "harken" heeds `output`.

    `api_key` as AsyncClient takes it. Raises BadKey, and OSError where a file of `tls` cannot be used.
    """
    if protocol == "openai":
        async with connections(http_url, tls, api_key) as http:
            yield OpenAiSender(http, info.name)
        return
    credentials = tls.credentials()
    connection = Connection(
        target,
        max_message_bytes=DEFAULT_MAX_MESSAGE_BYTES,
        max_attempts=1,
        credentials=credentials,
        api_key=key_for(target, api_key, in_the_open=credentials is None),
    )
    try:
        if protocol == "oip":
            yield OipSender(connection, info.name, info.version)
        else:
            yield EncodeSender(connection, info.name, info.version, output)
    finally:
        await connection.close()
