"""Traces as the rest of the server sees them. Who is not traced has None in their place; otlp.py sends them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

TRACEPARENT: Final = "traceparent"
"""The metadata, or the header, in which a caller says what trace it is in (W3C Trace Context)."""

STAGES: Final = ("edge", "tokenize", "queue", "collate", "compute", "scatter", "edge")
"""What a request spends its time on, in this order. The edge is where it comes in and where its answer goes out."""

BatchSpan = object
"""Names the span of a batch; nothing else is to be known of it."""


class Trace(Protocol):
    """The span of a request that is traced. Moments are seconds of the server's clock."""

    @property
    def trace_id(self) -> str:
        """32 hex digits."""
        ...

    def answered(
        self, moments_s: Sequence[float], batches: Iterable[BatchSpan], figures: Mapping[str, str | int]
    ) -> None:
        """Its stages, each from one of the moments to the next; the batches that it rode in; and what it was."""
        ...

    def end(self, code: str, ended_s: float) -> None:
        """It is over. `code` is gRPC's name for how."""
        ...

    def child(self, began_s: float) -> "Trace | None":
        """For an input of a stream. None if the stream had one a moment ago: its inputs may be millions."""
        ...


class Tracing(Protocol):
    """Says which requests are traced."""

    def request(self, method: str, traceparent: str, began_s: float) -> Trace | None:
        """A request has come. `traceparent`: as its caller gave it, or empty."""
        ...

    def batch(
        self, riders: Sequence[Trace], began_s: float, ended_s: float, figures: Mapping[str, str | int | float]
    ) -> BatchSpan:
        """A batch ran, and these rode in it."""
        ...

    def close(self) -> None:
        """Send what is left, as far as that can be done in a moment. Blocks."""
        ...
