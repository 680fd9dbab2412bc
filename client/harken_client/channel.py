"""How a channel is set up: what gRPC repeats by itself, how it spreads calls, and when it gives a connection up.

gRPC repeats a call that changes nothing, which is every unary method here: one that a server refused for now, after
the server's pushback (`grpc-retry-pushback-ms`), and one whose connection failed or broke, after a backoff. Streams
are not in its policy: what of theirs is unanswered only stream.py knows. Calls are never hedged.
"""

import json
from typing import Final

import grpc
from harken.v1 import debug_pb2, encoder_pb2

MOST_ATTEMPTS: Final = 5
"""gRPC makes no more of them, whatever a service config says."""
MOST_MESSAGE_BYTES: Final = 2**31 - 1
"""gRPC takes no larger limit."""

# Seconds from one attempt to the next where the server names no pause, as gRPC's JSON writes them.
_INITIAL_BACKOFF: Final = "0.2s"
_MAX_BACKOFF: Final = "2s"
_BACKOFF_MULTIPLIER: Final = 2
# A failed attempt takes one token, a success gives a tenth back, and at half of the most nothing is repeated: hundreds
# of calls may lose one connection at once, yet a service that stays down is asked a tenth more often, not four times.
_RETRY_THROTTLING: Final = {"maxTokens": 1000, "tokenRatio": 0.1}

_KEEPALIVE_TIME_MS: Final = 30_000
_KEEPALIVE_TIMEOUT_MS: Final = 10_000


def open_channel(
    target: str,
    *,
    max_message_bytes: int,
    max_attempts: int,
    credentials: grpc.ChannelCredentials | None,
    secret: bool = False,
) -> grpc.aio.Channel:
    """A channel to every address of `target`. max_attempts = 1 turns gRPC's retries off, its transparent ones too.

    secret   whether calls carry what a proxy must not read: without TLS none is asked then
    """
    options = [
        ("grpc.service_config", _service_config(max_attempts)),
        ("grpc.enable_http_proxy", int(credentials is not None or not secret)),
        ("grpc.enable_retries", int(max_attempts > 1)),
        # A call is repeated only while its message is kept, by default up to 256 KiB.
        ("grpc.per_rpc_retry_buffer_size", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        # Clients of one process must not share a connection, nor its flow control.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.keepalive_time_ms", _KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        # A connection that a NAT has forgotten is found out before a call is lost on it, or a quiet stream waits on it.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # A server that restarts is found again soon.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # A name is resolved again only when a connection is lost: by default not within half a minute of the last time.
        ("grpc.dns_min_time_between_resolutions_ms", 5_000),
    ]
    if credentials is None:
        return grpc.aio.insecure_channel(target, options)
    return grpc.aio.secure_channel(target, credentials, options)


def _service_config(max_attempts: int) -> str:
    config: dict[str, object] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if max_attempts > 1:
        policy = {
            "maxAttempts": max_attempts,
            "initialBackoff": _INITIAL_BACKOFF,
            "maxBackoff": _MAX_BACKOFF,
            "backoffMultiplier": _BACKOFF_MULTIPLIER,
            "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
        }
        config["methodConfig"] = [{"name": _unary_methods(), "retryPolicy": policy}]
        config["retryThrottling"] = _RETRY_THROTTLING
    return json.dumps(config)


def _unary_methods() -> list[dict[str, str]]:
    services = (encoder_pb2.DESCRIPTOR.services_by_name["Encoder"], debug_pb2.DESCRIPTOR.services_by_name["Debug"])
    ours = [
        {"service": service.full_name, "method": method.name}
        for service in services
        for method in service.methods
        if not method.client_streaming and not method.server_streaming
    ]
    return [*ours, {"service": "grpc.health.v1.Health", "method": "Check"}]
