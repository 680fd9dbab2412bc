"""A deadline is a moment on the monotonic clock, made once at the edge."""

from dataclasses import dataclass
from typing import Final, Self

_LEAST_SLACK_S: Final = 0.005


@dataclass(frozen=True, slots=True)
class Deadline:
    """The moment after which nobody waits for the answer."""

    at_s: float
    """On the server's monotonic clock."""
    by_cap: bool = False
    """Whether it is the server's own cap on any request, not the caller's deadline."""
    slack_s: float = _LEAST_SLACK_S
    """How much earlier a timer for it may ring. Ours: event loops round to milliseconds. The caller's own: gRPC rounds
    a timeout up, by at most 1 %, on its way here."""

    @classmethod
    def after(cls, remaining_s: float | None, cap_s: float, now_s: float) -> Self:
        """The caller's remaining time (None: no deadline), never more than the server's cap."""
        if remaining_s is None or remaining_s > cap_s:
            return cls(now_s + cap_s, by_cap=True)
        return cls(now_s + remaining_s, slack_s=max(0.02 * remaining_s, _LEAST_SLACK_S))

    def within(self, cap_s: float, now_s: float) -> "Deadline":
        """The deadline of one part of a stream that has this one, if the caller gave it: capped from now on."""
        if self.by_cap or self.at_s > now_s + cap_s:
            return Deadline(now_s + cap_s, by_cap=True)
        return self

    def at_most(self, remaining_s: float, now_s: float) -> "Deadline":
        """This one, or the moment in `remaining_s` if that is earlier: a request may have less time than its call."""
        return Deadline(now_s + remaining_s) if now_s + remaining_s < self.at_s else self

    def remaining_s(self, now_s: float) -> float:
        """Seconds left; negative once it passed."""
        return self.at_s - now_s

    def passed(self, now_s: float) -> bool:
        """Whether nobody waits any more."""
        return now_s >= self.at_s

    def explains_cancel(self, now_s: float) -> bool:
        """Whether a call that is cancelled now was ended by this deadline rather than by its caller's will."""
        return now_s >= self.at_s - self.slack_s
