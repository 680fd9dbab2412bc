"""What the core knows of a sequence: how long it is, how urgent, and whose."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from harken_server.scheduling.deadline import Deadline


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who asks. Tenants that ask at the same time share the lanes, in tokens, as their weights say."""

    name: str = ""
    weight: float = 1.0
    queue: str = ""
    """Whose share it is: its own name, or what those have in common who have none of their own."""


ANYBODY: Final = Tenant()


class Priority(IntEnum):
    """Of one tenant, interactive work leads before bulk work, which keeps a small share of the lanes."""

    INTERACTIVE = 0
    BULK = 1


@dataclass(eq=False, slots=True)
class Waiting:
    """One sequence in the backlog. The shell adds what it needs by inheriting."""

    length: int
    """In tokens, special tokens included."""
    deadline: Deadline
    priority: Priority
    flow: object
    """The call or stream that it belongs to. Flows share the lanes evenly, whatever their sizes."""
    arrived_s: float
    tenant: Tenant = field(default=ANYBODY, kw_only=True)
    twin: bytes | None = field(default=None, kw_only=True)
    """Those who have it in common want the very same computed, so it is computed once. None: it has no equal."""
    solitary: bool = field(default=False, kw_only=True)
    """Whether it has to run alone, and on a narrow lane: it has no twin, and never rides with anybody."""
    turn_s: float = field(default=0.0, init=False)
    """Its place among the flows, in virtual seconds of work; given by the backlog."""
    due_s: float = field(default=0.0, init=False)
    """Its place in the order of leading, in virtual seconds of work; given by the backlog."""
    share_s: float = field(default=0.0, init=False)
    """Its part of the predicted work, in unscaled seconds; given by the backlog."""
    alone_s: float = field(default=0.0, init=False)
    """What it would cost alone, in unscaled seconds; given by the backlog."""
    waits: bool = field(default=False, init=False)
    """Whether it stands in a backlog now."""
    serial: int = field(default=0, init=False)
    """Unique; breaks ties in the order of arrival; given by the backlog."""
