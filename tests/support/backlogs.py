"""Backlogs on a machine of our choice, for tests of the pure core."""

from harken_server.scheduling.backlog import Backlog
from harken_server.scheduling.companions import Limits
from harken_server.scheduling.cost import CostSurface
from harken_server.scheduling.deadline import Deadline
from harken_server.scheduling.memory import MemoryModel
from harken_server.scheduling.waiting import Priority, Waiting

LIMITS = Limits(sequences=64, padded_tokens=4096, memory_bytes=1 << 40)
NEVER = Deadline(1e9)


def surface(overhead_s: float) -> CostSurface:
    """A machine with a fixed cost a batch and one millisecond a padded token."""
    return CostSurface(
        {(batch, length): overhead_s + 0.001 * batch * length for batch in (1, 64) for length in (1, 512)}
    )


def backlog_of(*lengths: int, overhead_s: float = 0.05) -> Backlog[Waiting]:
    backlog: Backlog[Waiting] = Backlog(surface(overhead_s), MemoryModel(1, 0))
    for moment, length in enumerate(lengths):
        backlog.add(waiting(length, arrived_s=float(moment)))
    return backlog


def waiting(
    length: int,
    arrived_s: float = 0.0,
    flow: object = None,
    bulk: bool = False,
    deadline: Deadline = NEVER,
    twin: bytes | None = None,
) -> Waiting:
    priority = Priority.BULK if bulk else Priority.INTERACTIVE
    return Waiting(length, deadline, priority, flow if flow is not None else object(), arrived_s, twin=twin)
