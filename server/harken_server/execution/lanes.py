"""A lane: one thread that runs one batch at a time, and nothing else."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread, get_native_id
from typing import Final

import numpy as np
import structlog

from harken_server.errors import ComputeFailed, NoMemory
from harken_server.execution.collate import Buffers, collate
from harken_server.execution.engine import TOKENS, EngineError, Halt, OutOfMemory, Runner
from harken_server.execution.pending import Outcome, Pending

log = structlog.get_logger()

_RETRY_AFTER_S: Final = 1.0
"""By then, if nothing runs, memory that large batches left behind has gone back."""

_NICER: Final = 5

_STOP_S: Final = 5.0
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Ran:
    """A batch that came back from its lane. outcomes[i] is of pendings[i]."""

    pendings: Sequence[Pending]
    """Those who were computed."""
    outcomes: Sequence[Outcome]
    compute_s: float
    """Time in the engine; 0 if the batch failed or had to be split."""
    busy_s: float
    """Time on the lane."""
    ended_s: float
    """When the lane was done with it."""
    expired: Sequence[Pending]
    """Those whose deadline came before the lane did: never computed. Who went away meanwhile is in neither."""
    short: Sequence[tuple[int, int]] = ()
    """(rows, padded length) of the batch, and of its parts, for which there was no memory, in the order of trying."""
    stalled: bool = False
    """Whether nobody waited for its end."""


_Work = SimpleQueue[Callable[[Buffers], None] | None]


class Lane:
    """Owns its thread. It runs what is started in that order; each batch comes back through `on_ran`, on its thread."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name: Final = name
        self._clock: Final = clock
        self._abandoned: Final[list[Thread]] = []
        self._work, self._thread = self._begin()

    def start(
        self, runner: Runner, pendings: Sequence[Pending], on_ran: Callable[[Ran], None], halt: Halt | None = None
    ) -> None:
        """Run a batch. Every pending gets an outcome, whatever the engine does; who sets `halt` cuts that short."""
        self._work.put(lambda buffers: on_ran(run_batch(runner, pendings, self._clock, buffers, halt)))

    def call(self, work: Callable[[], None]) -> None:
        """Run something else on the lane's thread: the warm-up."""
        self._work.put(lambda _: work())

    def replace(self) -> None:
        """Abandon the thread, which ends if ever it comes back; another one goes on with what has not begun."""
        old = self._work
        self._abandoned.append(self._thread)
        self._work, self._thread = self._begin()
        with suppress(Empty):
            while True:
                self._work.put(old.get_nowait())
        old.put(None)

    @property
    def hanging(self) -> int:
        """How many abandoned threads have not ended."""
        return sum(thread.is_alive() for thread in self._abandoned)

    def stop(self) -> None:
        """End the thread after what it runs now; one that stalls is left to the end of the process."""
        self._work.put(None)
        self._thread.join(_STOP_S)

    def _begin(self) -> tuple[_Work, Thread]:
        # Buffers of its own too: an abandoned thread may still read the old ones.
        work: _Work = SimpleQueue()
        thread = Thread(target=_loop, args=(work, Buffers()), name=f"lane-{self.name}", daemon=True)
        thread.start()
        return work, thread


def _loop(queue: _Work, buffers: Buffers) -> None:
    with suppress(OSError):
        # Of this thread alone. The event loop's work is short, and callers and other lanes wait for it.
        os.setpriority(os.PRIO_PROCESS, get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + _NICER)
    while (work := queue.get()) is not None:
        work(buffers)
        del work  # it holds the batch and its model, and the next one may be long in coming


def shrink(runner: Runner) -> None:
    """Let a runner give memory back; if it cannot, that is no reason to stop."""
    try:
        runner.shrink()
    except EngineError as error:
        log.warning("no memory was given back", error=str(error))


def run_batch(
    runner: Runner, pendings: Sequence[Pending], clock: Clock, buffers: Buffers, halt: Halt | None = None
) -> Ran:
    """Collate, compute, check. A batch that fails is halved until only the sequence at fault fails.

    Who went away, or whose deadline passed, while the batch waited for the lane is not computed. Where memory was
    short, what the engine holds unused goes back before the halves run.
    """
    started_s = clock()
    expecting = [one for pending in pendings for one in pending.expecting()]
    expired = [one for one in expecting if one.deadline.passed(started_s)]
    riding = [pending for pending in pendings if _is_wanted(pending, started_s)]
    if not riding:
        return Ran((), (), 0.0, 0.0, started_s, expired)
    for pending in riding:
        pending.stamps.taken_s = started_s
    short: list[tuple[int, int]] = []
    outcomes = _outcomes(runner, riding, clock, buffers, short, halt)
    first, last = riding[0].stamps, riding[-1].stamps
    whole = first.computed_s == last.computed_s
    ended_s = clock()
    compute_s = first.computed_s - first.collated_s if whole else 0.0
    return Ran(riding, outcomes, compute_s, ended_s - started_s, ended_s, expired, short)


def _is_wanted(pending: Pending, now_s: float) -> bool:
    return any(not one.deadline.passed(now_s) for one in pending.expecting())


def _outcomes(
    runner: Runner,
    pendings: Sequence[Pending],
    clock: Clock,
    buffers: Buffers,
    short: list[tuple[int, int]],
    halt: Halt | None,
) -> list[Outcome]:
    failure: Outcome = ComputeFailed("ENGINE_FAILED")
    try:
        return _run(runner, pendings, clock, buffers, halt)
    except (OutOfMemory, MemoryError) as error:
        padded_length = max(pending.length for pending in pendings)
        log.warning("no memory for a batch", sequences=len(pendings), padded_length=padded_length, error=str(error))
        short.append((len(pendings), padded_length))
        shrink(runner)
        failure = NoMemory(_RETRY_AFTER_S)
    except Exception as error:  # noqa: BLE001 - the lane's edge: whatever goes wrong, each sequence gets an answer
        what = str(error) if isinstance(error, EngineError) else type(error).__name__
        log.warning("batch failed", sequences=len(pendings), error=what)
    if halt and halt.is_set:
        # Nobody knows which of them it was, and a half that holds it would stall again.
        return [ComputeFailed("ENGINE_STALLED")] * len(pendings)
    if len(pendings) == 1:
        return [failure]
    middle = len(pendings) // 2
    halves = (pendings[:middle], pendings[middle:])
    return [outcome for half in halves for outcome in _outcomes(runner, half, clock, buffers, short, halt)]


def _run(
    runner: Runner, pendings: Sequence[Pending], clock: Clock, buffers: Buffers, halt: Halt | None
) -> list[Outcome]:
    batch = collate([pending.ids for pending in pendings], buffers)
    collated_s = clock()
    wanted = sorted({name for pending in pendings for name in pending.outputs})
    outputs = runner.run(batch, wanted, halt)
    computed_s = clock()
    outcomes: list[Outcome] = []
    # Nearly always all of them are; only else each is looked at.
    all_finite = all(np.isfinite(outputs[name]).all() for name in wanted)
    for row, pending in enumerate(pendings):
        pending.stamps.collated_s, pending.stamps.computed_s = collated_s, computed_s
        vectors = {name: outputs[name][row] for name in pending.outputs}
        if TOKENS in vectors:
            vectors[TOKENS] = vectors[TOKENS][: pending.length]
        finite = all_finite or all(np.isfinite(vector).all() for vector in vectors.values())
        if not finite:
            outcomes.append(ComputeFailed("NOT_FINITE"))
        else:
            outcomes.append(pending.reduce(vectors) if pending.reduce else vectors)
    return outcomes
