"""What is asked again on top of gRPC's own retries, and until when a call may last. Pure: no clock, no sleep.

gRPC goes first (channel.py): it makes up to `max_attempts` attempts in a row and passes on how the last one ended. If
that was a server's invitation to ask again (google.rpc.RetryInfo), there is a server, which a restart may keep busy for
longer than any count: its caller's deadline alone ends the asking. Every round begins after the server's own delay, as
each attempt of gRPC's does, so both layers together ask no faster than one of them. A connection that broke when the
answer had begun is made up for by ours as well, as often as gRPC's would. Any other failure is final: gRPC has tried it
as often as it may.
"""

from dataclasses import dataclass

from harken_client.errors import HarkenError

# As gRPC's own backoff between connects (channel.py), which a stream does not have.
_RECONNECT_S = 0.2
_MOST_RECONNECT_S = 2.0
# Clients that were refused in one moment must not come back in one moment.
_JITTER = 0.25
# A server that says 0 s must not be asked as fast as the network goes.
_LEAST_PAUSE_S = 0.01


# What is much longer gRPC takes for a moment that has passed.
_MOST_TIMEOUT_S = 1e9


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock, in seconds."""

    at_s: float

    @classmethod
    def after(cls, timeout_s: float, now_s: float) -> "Deadline":
        """Raises ValueError unless timeout_s is finite and above 0: no call waits for ever."""
        return cls(now_s + checked_timeout_s(timeout_s))

    def remaining_s(self, now_s: float) -> float:
        return max(0.0, self.at_s - now_s)


def checked_timeout_s(timeout_s: float) -> float:
    if not isinstance(timeout_s, int | float) or not 0 < timeout_s <= _MOST_TIMEOUT_S:
        raise ValueError(f"timeout_s is a number of seconds above 0, at most {_MOST_TIMEOUT_S:g}, not {timeout_s!r}")
    return float(timeout_s)


def invited_delay_s(error: HarkenError, jitter: float) -> float | None:
    """Seconds until the server wants the same request again, or None if it does not.

    jitter   a random number in [0, 1)
    """
    if error.retry_after_s is None:
        return None
    return max(error.retry_after_s, _LEAST_PAUSE_S) * (1 + _JITTER * jitter)


def reconnect_delay_s(failures: int, jitter: float) -> float:
    """Seconds until the next stream, after so many in a row (at least 1) whose connection failed or broke."""
    return min(_RECONNECT_S * 2.0 ** (failures - 1), _MOST_RECONNECT_S) * (1 + _JITTER * jitter)
