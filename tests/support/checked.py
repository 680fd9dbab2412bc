"""A record of a simulation that keeps counts only, and fails at the first thing that must never happen."""

from collections import deque
from dataclasses import dataclass

from harken_server.planning.simulate import Simulated
from harken_server.scheduling.companions import Limits
from harken_server.scheduling.cost import CostSurface
from harken_server.scheduling.policy import Start
from harken_server.scheduling.turns import AGE
from harken_server.scheduling.waiting import Priority


@dataclass(frozen=True, slots=True)
class _Then:
    """When a sequence became the first of its flow, in alone seconds."""

    firsts_s: float
    """Of the firsts of all interactive flows, itself among them."""
    started_s: float
    """Of everything that had started."""


class Checked:
    """Everybody ends once; no limit is exceeded; nothing expired runs; nobody interactive is overtaken for ever.

    The last one: between a sequence's becoming the first of its flow and its start, at most AGE + 1 times the work of
    all flows' firsts starts, and one batch; work is what each would take alone.
    """

    def __init__(self, cost: CostSurface, limits: Limits) -> None:
        self._cost = cost
        self._limits = limits
        self._open: set[Simulated] = set()
        self._lines: dict[object, deque[Simulated]] = {}
        self._first: dict[Simulated, _Then] = {}
        self._firsts_s = self._started_s = self._largest_batch_s = 0.0
        self.answered = self.expired = self.cancelled = self.batches = 0
        self.most_overtaken = 0.0
        """The most work that started before somebody, over what the firsts were then."""

    def arrived(self, sequence: Simulated) -> None:
        self._open.add(sequence)
        if sequence.priority is Priority.INTERACTIVE:
            line = self._lines.setdefault(sequence.flow, deque())
            line.append(sequence)
            if len(line) == 1:
                self._becomes_first(sequence)

    def started(self, start: Start[str, Simulated], running_bytes: int) -> None:
        self.batches += 1
        longest = max(member.length for member in start.batch)
        assert running_bytes <= self._limits.memory_bytes
        assert len(start.batch) <= self._limits.sequences
        assert len(start.batch) == 1 or len(start.batch) * longest <= self._limits.padded_tokens
        batch_s = sum(self._alone_s(member) for member in start.batch)
        self._largest_batch_s = max(self._largest_batch_s, batch_s)
        for member in start.batch:
            assert member in self._open
            then = self._first.get(member)
            if then is not None:
                overtaken_s = self._started_s - then.started_s
                assert overtaken_s <= (AGE + 1.0) * then.firsts_s + self._largest_batch_s + 1e-6
                self.most_overtaken = max(self.most_overtaken, overtaken_s / then.firsts_s)
        self._started_s += batch_s
        for member in start.batch:
            self._leave(member)

    def ended(self, sequence: Simulated) -> None:
        (outcome,) = sequence.outcomes
        if outcome == "answered":
            assert sequence.started_s is not None
            assert not sequence.deadline.passed(sequence.started_s)
        self._open.remove(sequence)
        self._leave(sequence)
        self.answered += outcome == "answered"
        self.expired += outcome == "expired"
        self.cancelled += outcome == "cancelled"

    def finish(self) -> None:
        """Nobody is left without an answer."""
        assert not self._open

    def _alone_s(self, sequence: Simulated) -> float:
        return self._cost.alone_s(sequence.length)

    def _becomes_first(self, sequence: Simulated) -> None:
        self._firsts_s += self._alone_s(sequence)
        self._first[sequence] = _Then(self._firsts_s, self._started_s)

    def _leave(self, sequence: Simulated) -> None:
        line = self._lines.get(sequence.flow)
        if not line or sequence not in line:
            return
        if line[0] is not sequence:
            line.remove(sequence)
            return
        line.popleft()
        del self._first[sequence]
        self._firsts_s -= self._alone_s(sequence)
        if line:
            self._becomes_first(line[0])
        else:
            del self._lines[sequence.flow]
