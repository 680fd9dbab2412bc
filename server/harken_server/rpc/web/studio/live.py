"""GET /studio/live: what the metrics say now, and the last batches, for a page that asks each second.

It tells no more than /metrics and ExplainBatches do, and asks for an admin's key as the latter does.
"""

import re
import secrets
from typing import Any, Final

from prometheus_client import Gauge
from starlette.requests import Request
from starlette.types import ASGIApp

from harken_server.errors import BadValue, InvalidRequest
from harken_server.execution.history import Batch, History
from harken_server.rpc.calls import Call
from harken_server.rpc.debug import WHY
from harken_server.rpc.status import Answer
from harken_server.rpc.web.exchange import Exchanges, Reply, to_json
from harken_server.telemetry.instruments import Counter, Histogram
from harken_server.telemetry.metrics import STAGES

MOST_BATCHES: Final = 48
"""How many of the last batches one answer tells."""


class Live:
    """The route, and its form of errors. Belongs to the event loop's thread, as what it reads does."""

    def __init__(self, exchanges: Exchanges, history: History) -> None:
        self._exchanges: Final = exchanges
        self._history: Final = history
        # Counts and numbers begin anew with each process.
        self._run: Final = secrets.token_hex(8)

    async def live(self, request: Request) -> ASGIApp:
        """GET /studio/live, with `after`: the number of the last batch that the caller has."""

        async def work(_: Call, __: bytes) -> Reply:
            after = request.query_params.get("after", "0")
            if not re.fullmatch(r"[0-9]{1,15}", after):
                raise InvalidRequest((BadValue("after", repr(after[:80]), "the number of a batch"),))
            return Reply(to_json(self._content(int(after))))

        return await self._exchanges.answer(request, "GET /studio/live", self, work)

    def error(self, status: int, answer: Answer) -> tuple[int, dict[str, Any]]:
        """See Form."""
        return status, {"error": answer.status.message, "reason": answer.reason}

    def _content(self, after: int) -> dict[str, Any]:
        """Counts since the start: whoever asks twice has the difference."""
        metrics, now_s = self._exchanges.calls.metrics, self._exchanges.calls.clock()
        stages = metrics.stage_duration.items()
        new = [batch for batch in self._history.last(MOST_BATCHES) if batch.number > after]
        return {
            "run": self._run,
            "time_s": now_s,
            "condition": self._exchanges.service.condition,
            "finished": _by(metrics.finished, 1),
            "rejected": _by(metrics.rejected, 1),
            "tokens": _by(metrics.tokens, 1),
            "duration": _distribution(metrics.request_duration),
            "stages_s": {stage: sum(one.sum for labels, one in stages if labels[1] == stage) for stage in STAGES},
            "backlog": {
                "sequences": _sum(metrics.backlog_sequences),
                "tokens": _sum(metrics.backlog_tokens),
                # Each model's is that of the whole server.
                "predicted_wait_s": max(_values(metrics.predicted_wait), default=0.0),
            },
            "memory_bytes": metrics.memory_bytes(),
            "lanes_busy_s": _by(metrics.engine_busy, 0),
            "batches": [_described(batch, now_s) for batch in reversed(new)] if self._history.most_batches else None,
        }


def _by(counter: Counter, label: int) -> dict[str, float]:
    """Its sums by the value of one label, given by its position."""
    sums: dict[str, float] = {}
    for labels, count in counter.items():
        sums[labels[label]] = sums.get(labels[label], 0.0) + count.value
    return sums


def _values(gauge: Gauge) -> list[float]:
    return [sample.value for family in gauge.collect() for sample in family.samples]


def _sum(gauge: Gauge) -> float:
    return sum(_values(gauge))


def _distribution(histogram: Histogram) -> dict[str, Any]:
    """Over all labels; counts[i] fell below bounds[i], and not below the one before. The last one has no bound."""
    counts = [0] * (len(histogram.bounds) + 1)
    for _, one in histogram.items():  # noqa: PERF102 - it is no dict
        counts = [left + right for left, right in zip(counts, one.counts, strict=True)]
    return {"bounds": histogram.bounds, "counts": counts}


def _described(batch: Batch, now_s: float) -> dict[str, Any]:
    """Neither a text nor an id, nor whose they were, nor which of them came in one call."""
    name, version = batch.model
    return {
        "number": batch.number,
        "age_s": now_s - batch.ended_s,
        "model": f"{name}/{version}",
        "lane": batch.lane,
        "why": WHY[batch.closed_by],
        "sequences": batch.sequences,
        "real_tokens": batch.real_tokens,
        "padded_length": batch.padded_length,
        "lane_s": batch.lane_s,
        "failed": batch.failed,
        "lengths": [member.length for member in batch.members],
    }
