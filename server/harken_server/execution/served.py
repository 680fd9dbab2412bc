"""A model version that the batcher runs, and what is counted of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from harken_server.execution.engine import Runner
from harken_server.execution.lanes import Ran
from harken_server.execution.pending import Outcome, Pending, outcome_label
from harken_server.scheduling.backlog import Backlog
from harken_server.scheduling.policy import Start
from harken_server.telemetry.metrics import ModelMetrics

ModelKey = tuple[str, int]
"""Name and version."""


@dataclass(frozen=True)
class Served:
    """A model that the batcher runs."""

    runners: Sequence[Runner]
    """runners[i] is what narrow lane i runs; they may all be the same."""
    wide_runner: Runner | None
    """What the wide lane runs; None where it does not pay, or there is none."""
    backlog: Backlog[Pending]
    metrics: ModelMetrics
    apart: bool = False
    """Whether its batches take nothing of the memory budget of all others, having one of their own; then no two
    batches of such models run at a time."""

    def settle(self, pending: Pending, outcome: Outcome) -> None:
        """Give it its outcome, and count that, unless it has one."""
        if not pending.settle(outcome):
            return
        self.metrics.finished[outcome_label(outcome)].inc()
        if not isinstance(outcome, Exception):
            self.metrics.statistics.sequences += 1
            stages, stamps = self.metrics.stages, pending.stamps
            stages["tokenize"].observe(stamps.queued_s - stamps.received_s)
            stages["queue"].observe(stamps.taken_s - stamps.queued_s)
            stages["collate"].observe(stamps.collated_s - stamps.taken_s)
            stages["compute"].observe(stamps.computed_s - stamps.collated_s)
            stages["scatter"].observe(stamps.scattered_s - stamps.computed_s)

    def count(self, start: Start[ModelKey, Pending], ran: Ran, took_s: float) -> None:
        """A batch of it ran, and its costs follow.

        `took_s`: from its start until its lane was free again, which is what the next one has to wait for.
        """
        rows = len(ran.pendings)
        real = sum(pending.length for pending in ran.pendings)
        padded_length = max(pending.length for pending in ran.pendings)
        metrics = self.metrics
        metrics.batches[start.closed_by].inc()
        metrics.batch_sequences.observe(rows)
        metrics.batch_padded_tokens.observe(rows * padded_length)
        metrics.tokens_real.inc(real)
        metrics.tokens_padding.inc(rows * padded_length - real)
        if ran.compute_s > 0.0:
            if rows == len(start.batch):
                metrics.cost_error.observe(abs(start.predicted_s / took_s - 1.0))
            self.backlog.learn(start.wide, rows, padded_length, took_s)
