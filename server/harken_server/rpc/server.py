"""The gRPC server itself: its limits, and the services beside the encoder: health and reflection."""

import socket
from collections.abc import Sequence
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from harken_server.rpc.listener import make_listener
from harken_server.settings import Settings

# Beyond a message over the limit that we answer ourselves, with details, gRPC refuses in its own words.
_HARD_LIMIT: Final = 2
HANDSHAKE_MS: Final = 5_000
"""Longest that a connection may take to say its first."""
SILENT_MS: Final = 60_000
ANSWER_MS: Final = 20_000
"""A connection that says nothing is pinged after the first, and given up the second later."""
_METADATA_BYTES: Final = 8192
# For the last answers and the status of a stream, after all that it may take.
_ENDING_S: Final = 1.0


def make_server(settings: Settings) -> grpc.aio.Server:
    """A server with the settings' limits, and nothing registered."""
    return make_listener(
        [
            *_age_limits(settings),
            *_idle_limit(settings),
            ("grpc.max_concurrent_streams", settings.max_streams_per_connection),
            # Else a peer that vanished without a word keeps its connection, and its streams, for hours.
            ("grpc.keepalive_time_ms", SILENT_MS),
            ("grpc.keepalive_timeout_ms", ANSWER_MS),
            # The least of a message's metadata that is refused, and the most that is taken: as by default, but told.
            ("grpc.max_metadata_size", _METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", 2 * _METADATA_BYTES),
            ("grpc.so_reuseport", int(settings.so_reuseport)),
            ("grpc.max_receive_message_length", _HARD_LIMIT * settings.max_message_bytes),
            # An answer's size is checked before it is computed.
            ("grpc.max_send_message_length", -1),
            ("grpc.max_allowed_incoming_connections", settings.max_connections),
            # Whoever connects and says nothing gives the place back.
            ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
            ("grpc.http2.min_ping_interval_without_data_ms", round(settings.min_ping_interval_s * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
            # By default a burst of over 1,000 calls that are not yet picked up fails as CANCELLED.
            ("grpc.server.max_pending_requests", 1 << 20),
            ("grpc.server.max_pending_requests_hard_limit", 1 << 20),
        ]
    )


def _idle_limit(settings: Settings) -> list[tuple[str, int]]:
    idle_s = settings.max_connection_idle_s
    return [("grpc.max_connection_idle_ms", round(idle_s * 1000))] if idle_s else []


def _age_limits(settings: Settings) -> list[tuple[str, int]]:
    age_s = settings.max_connection_age_s
    if not age_s:
        return []
    # A stream may begin on a connection that is about to be too old, and read its last input when it is so itself.
    grace_s = age_s + settings.max_request_s + _ENDING_S
    return [
        ("grpc.max_connection_age_ms", round(age_s * 1000)),
        ("grpc.max_connection_age_grace_ms", round(grace_s * 1000)),
    ]


def bind(
    server: grpc.aio.Server,
    listen: str,
    port: int,
    shared: bool = False,
    credentials: grpc.ServerCredentials | None = None,
) -> int:
    """Bind a port, `shared` with other processes or not; returns it, any free one if it is 0.

    Without credentials it is plain text.

    Raises OSError if it cannot be bound.
    """
    host = f"[{listen}]" if ":" in listen else listen
    _try_bind(listen, port, shared)
    try:
        if credentials is not None:
            return server.add_secure_port(f"{host}:{port}", credentials)
        return server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise OSError("in use, or not an address of this machine") from error


def _try_bind(listen: str, port: int, shared: bool) -> None:
    """gRPC does not say why it cannot bind, and logs lines of its own; the system says it in one word."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        listen, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        probe.bind(address)


class Health:
    """grpc.health.v1: "" for the server, one name for each service, and one for each model (NAME, and NAME/VERSION)."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._servicer: Final = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def set(self, names: Sequence[str], serving: bool) -> None:
        """Say for each name whether it serves."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in names:
            await self._servicer.set(name, status)

    async def drain(self) -> None:
        """Everything is NOT_SERVING from now on, whatever is set later."""
        await self._servicer.enter_graceful_shutdown()


def add_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Let clients list these services and read their messages."""
    reflection.enable_server_reflection([*services, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
