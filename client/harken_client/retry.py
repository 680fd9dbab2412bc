"""When a failed call may be made again, and until when a call may last. Pure: no clock, no sleep.

The server's word decides. A call is repeated only where its status carries
google.rpc.RetryInfo, and not before that delay; or where no connection was
made at all, so that no server can have seen it. A connection that broke before
the answer is not repeated: nobody knows what became of the request.

A server that asks for patience is there, so its caller's deadline alone ends the
repeating: a restart may take longer than any count. The count bounds the
attempts that reached nobody.
"""

import math
from dataclasses import dataclass

from harken_client.errors import HarkenError

_CONNECT_BACKOFF_S = 0.2
# Clients that were refused in one moment must not come back in one moment.
_JITTER = 0.25
# A server that says 0 s must not be asked as fast as the network goes.
_LEAST_PAUSE_S = 0.01


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
    if not isinstance(timeout_s, int | float) or not 0 < timeout_s < math.inf:
        raise ValueError(f"timeout_s is a finite number of seconds above 0, not {timeout_s!r}")
    return float(timeout_s)


def retry_delay_s(
    error: HarkenError, unreached: int, *, max_attempts: int, connected: bool, jitter: float
) -> float | None:
    """Seconds to wait before the next attempt, or None if there must be none.

    unreached     attempts in a row, this one included, that the server did not invite to repeat
    max_attempts  bounds those; 1 forbids every repetition
    connected     whether the call reached a server
    jitter        a random number in [0, 1)
    """
    if max_attempts == 1:
        return None
    if error.retry_after_s is not None:
        return max(error.retry_after_s, _LEAST_PAUSE_S) * (1 + _JITTER * jitter)
    if not connected and unreached < max_attempts:
        return _CONNECT_BACKOFF_S * 2.0 ** (unreached - 1) * (1 + _JITTER * jitter)
    return None
