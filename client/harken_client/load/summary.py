"""The figures of a run: the client's own, and the server's where its metrics were read. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harken_client.load.pacer import LATE_S, Call
from harken_client.load.runner import Plan, Run
from harken_client.load.scrape import Histogram, Metrics, between

STAGES = ("tokenize", "queue", "collate", "compute", "scatter", "edge")
_ACCEPTED = "harken_accepted_total"
_STARTED = "process_start_time_seconds"
# All that of_server subtracts. A start of the server lets them fall.
_COUNTERS = frozenset(
    {_ACCEPTED, "harken_tokens_total"}
    | {
        f"{name}_{part}"
        for name in ("harken_batch_sequences", "harken_stage_duration_seconds")
        for part in ("bucket", "sum", "count")
    }
)
_WINDOWS = 3
_AGREEMENT = 0.10


@dataclass(frozen=True, slots=True)
class Spread:
    """Of a time, in seconds; None where nothing was observed."""

    mean_s: float | None
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    max_s: float | None = None


@dataclass(frozen=True, slots=True)
class ClientFigures:
    """What the client saw. Warm-up is out.

    calls                 meant to be sent in the measured period, however long they took
    failed_calls          those of them that answered no sequence
    sequences_per_s, tokens_per_s   answered within the measured period
    windows_per_s         sequences/s in each third of the period
    steady                whether the windows agree within 10 %; if not, measure for longer
    errors                by code and reason
    late_sends            sent 5 ms or more after their moment; they count like all others
    """

    calls: int
    failed_calls: int
    sequences_per_s: float
    tokens_per_s: float
    latency: Spread
    windows_per_s: list[float]
    steady: bool
    errors: dict[str, int]
    late_sends: int
    latest_send_s: float


@dataclass(frozen=True, slots=True)
class ServerFigures:
    """What the server counted in the measured period; its memory at the end."""

    mean_batch_sequences: float | None
    padding_share: float | None
    stages: dict[str, Spread]
    rss_bytes: float
    rss_peak_bytes: float


def of_client(calls: Sequence[Call], plan: Plan) -> ClientFigures:
    measured = [call for call in calls if plan.warmup_s <= call.intended_s < plan.until_s]
    finished = [call for call in calls if plan.warmup_s <= call.finished_s < plan.until_s]
    window_s = plan.duration_s / _WINDOWS
    windows = [0.0] * _WINDOWS
    for call in finished:
        place = min(int((call.finished_s - plan.warmup_s) / window_s), _WINDOWS - 1)
        windows[place] += call.sequences / window_s
    sequences_per_s = sum(windows) / _WINDOWS
    late = [call.late_s for call in measured if call.late_s >= LATE_S]
    return ClientFigures(
        calls=len(measured),
        failed_calls=sum(not call.sequences for call in measured),
        sequences_per_s=sequences_per_s,
        tokens_per_s=sum(call.tokens for call in finished) / plan.duration_s,
        latency=_latency([call.latency_s for call in measured if call.sequences]),
        windows_per_s=windows,
        steady=bool(finished) and max(windows) - min(windows) <= _AGREEMENT * sequences_per_s,
        errors=dict(Counter(name for call in measured for name in call.failures).most_common()),
        late_sends=len(late),
        latest_send_s=max(late, default=0.0),
    )


def of_server(before: Metrics, after: Metrics, model: str) -> ServerFigures:
    def counted(name: str, **labels: str) -> float:
        return after.value(name, model=model, **labels) - before.value(name, model=model, **labels)

    def observed(name: str, **labels: str) -> Histogram:
        earlier = before.histogram(name, model=model, **labels)
        return between(earlier, after.histogram(name, model=model, **labels))

    real = counted("harken_tokens_total", kind="real")
    padding = counted("harken_tokens_total", kind="padding")
    return ServerFigures(
        mean_batch_sequences=observed("harken_batch_sequences").mean,
        padding_share=padding / (real + padding) if real + padding else None,
        stages={stage: _of_histogram(observed("harken_stage_duration_seconds", stage=stage)) for stage in STAGES},
        rss_bytes=after.value("harken_memory_bytes", kind="rss"),
        rss_peak_bytes=after.value("harken_memory_bytes", kind="rss_peak"),
    )


def unusable(before: Metrics | None, after: Metrics | None, model: str) -> str:
    """Why the difference of two scrapes tells nothing, or ""."""
    if before is None or after is None:
        return "did not answer"
    if not (before.has(_ACCEPTED) and after.has(_ACCEPTED)):
        return f"is not a harken server's: it has no {_ACCEPTED}"
    started = (before.value(_STARTED), after.value(_STARTED))
    if started[0] != started[1] or after.fell_since(before, _COUNTERS, model=model):
        return "counts from another start than before: the server restarted, or there are several"
    return ""


def figures(run: Run, plan: Plan, model: str) -> tuple[ClientFigures, ServerFigures | None, str]:
    """The client's side, the server's, and why there is none."""
    server = None
    reason = unusable(run.before, run.after, model)
    if not reason:
        assert run.before is not None
        assert run.after is not None
        server = of_server(run.before, run.after, model)
    return of_client(run.calls, plan), server, reason


def _latency(latencies_s: list[float]) -> Spread:
    if not latencies_s:
        return Spread(None, None, None, None)
    p50_s, p95_s, p99_s = (float(p) for p in np.percentile(latencies_s, [50, 95, 99]))
    return Spread(sum(latencies_s) / len(latencies_s), p50_s, p95_s, p99_s, max(latencies_s))


def _of_histogram(histogram: Histogram) -> Spread:
    return Spread(histogram.mean, histogram.quantile(0.50), histogram.quantile(0.95), histogram.quantile(0.99))
