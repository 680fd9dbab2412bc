"""Health for whoever speaks neither TLS nor keys, as the kubelet's probe: a listener of its own, for nothing else."""

from typing import Final

from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from harken_server.rpc.listener import make_listener
from harken_server.rpc.server import ANSWER_MS, HANDSHAKE_MS, SILENT_MS, bind
from harken_server.settings import Settings

LIVENESS: Final = "liveness"

# The name of a service is all that a probe sends.
_MESSAGE_BYTES: Final = 4096
_MOST_CONNECTIONS: Final = 64
_MOST_STREAMS: Final = 16
"""Of a connection."""
_IDLE_MS: Final = 10_000
"""A connection without a call is closed after so long: else whoever forgot it, or means no good, keeps probes out."""


class Probes:
    """grpc.health.v1 in plain text: "" is whether requests are taken, "liveness" whether the event loop still turns."""

    def __init__(self) -> None:
        self._server: Final = make_listener(
            [
                # Of this process and no other: the kernel must not give its probes to a second server.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", _MESSAGE_BYTES),
                ("grpc.max_allowed_incoming_connections", _MOST_CONNECTIONS),
                ("grpc.max_concurrent_streams", _MOST_STREAMS),
                ("grpc.max_connection_idle_ms", _IDLE_MS),
                # Of a peer that vanished with a Watch open nothing would ever be heard.
                ("grpc.keepalive_time_ms", SILENT_MS),
                ("grpc.keepalive_timeout_ms", ANSWER_MS),
                ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
            ]
        )
        self._servicer: Final = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, self._server)

    async def start(self, settings: Settings) -> int:
        """Listen, live and not ready. Returns the port. Raises OSError."""
        port = bind(self._server, settings.listen, settings.health_port)
        await self._servicer.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        await self.set(ready=False)
        await self._server.start()
        return port

    async def set(self, ready: bool) -> None:
        """Say whether requests are taken."""
        status = health_pb2.HealthCheckResponse
        await self._servicer.set("", status.SERVING if ready else status.NOT_SERVING)

    async def stop(self) -> None:
        """End, open Watches too."""
        await self._server.stop(None)
