"""What one server, or several together, did between two scrapes. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harken_client.load.scrape import Histogram, Metrics, between, together

_ACCEPTED = "harken_accepted_total"
_STARTED = "process_start_time_seconds"


@dataclass(frozen=True, slots=True)
class Period:
    """Two scrapes of one server, `seconds` apart. `model`: all that follows is of this one; empty: of all."""

    before: Metrics
    after: Metrics
    seconds: float
    model: str = ""

    def rate(self, name: str, **labels: str) -> float:
        """How fast a counter rose, a second."""
        return (self.after.value(name, **labels) - self.before.value(name, **labels)) / self.seconds

    def rate_of_model(self, name: str, **labels: str) -> float:
        return self.rate(name, **labels, **self._only)

    def histogram(self, name: str) -> Histogram:
        """What was observed meanwhile."""
        return between(self.before.histogram(name, **self._only), self.after.histogram(name, **self._only))

    def now(self, name: str, **labels: str) -> float:
        """A gauge."""
        return self.after.value(name, **labels)

    def now_of_model(self, name: str) -> float:
        return self.after.value(name, **self._only)

    @property
    def _only(self) -> dict[str, str]:
        return {"model": self.model} if self.model else {}


@dataclass(frozen=True, slots=True)
class Figures:
    """Rates are a second; times, seconds. None where nothing was observed."""

    sequences: float
    calls: float
    refused: float
    failed: float
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    waiting: float
    waiting_tokens: float
    wait_s: float
    """Predicted, of whoever would come now; of several servers the longest."""
    batches: float
    batch_sequences: float | None
    batch_length: float | None
    """Padded, the mean over the sequences."""
    padding_share: float | None
    closed_by: Mapping[str, float]
    """Share of the batches by why they were no larger, the largest first."""
    rss_bytes: float
    batch_bytes: float
    budget_bytes: float
    gpu_used_bytes: float
    gpu_total_bytes: float
    lanes: Mapping[str, float] = field(default_factory=dict)
    """By name, the share of the time in which it was busy. Empty for several servers."""

    @property
    def busy_share(self) -> float | None:
        """Of the narrow lanes; the wide one is all of them."""
        narrow = [share for name, share in self.lanes.items() if name != "wide"]
        return sum(narrow) / len(narrow) + self.lanes.get("wide", 0.0) if narrow else None


def is_server(metrics: Metrics) -> bool:
    """Whether these are the metrics of a harken server."""
    return metrics.has(_ACCEPTED)


def models_of(metrics: Metrics) -> list[str]:
    """The models that it has counted anything for, by name."""
    return [model for model in metrics.labels(_ACCEPTED, "model") if model]


def restarted(before: Metrics, after: Metrics) -> bool:
    """Whether the one counts from another start than the other, so that their difference tells nothing."""
    return before.value(_STARTED) != after.value(_STARTED) or after.value(_ACCEPTED) < before.value(_ACCEPTED)


def figures_of(periods: Sequence[Period]) -> Figures:
    """Of one server or more, together."""

    def rate(name: str, **labels: str) -> float:
        return sum(period.rate_of_model(name, **labels) for period in periods)

    def histogram(name: str) -> Histogram:
        return together(period.histogram(name) for period in periods)

    def now(name: str, **labels: str) -> float:
        return sum(period.now(name, **labels) for period in periods)

    duration, rows = histogram("harken_request_duration_seconds"), histogram("harken_batch_sequences")
    tokens = histogram("harken_batch_padded_tokens")
    real, padding = rate("harken_tokens_total", kind="real"), rate("harken_tokens_total", kind="padding")
    return Figures(
        sequences=rate("harken_finished_total", outcome="answered"),
        calls=rate("harken_requests_total"),
        refused=rate("harken_rejected_total"),
        failed=rate("harken_finished_total", outcome="failed"),
        p50_s=duration.quantile(0.50),
        p95_s=duration.quantile(0.95),
        p99_s=duration.quantile(0.99),
        waiting=sum(period.now_of_model("harken_backlog_sequences") for period in periods),
        waiting_tokens=sum(period.now_of_model("harken_backlog_tokens") for period in periods),
        wait_s=max((_wait_s(period.after) for period in periods), default=0.0),
        batches=rate("harken_batches_total"),
        batch_sequences=rows.mean,
        batch_length=tokens.total / rows.total if rows.total else None,
        padding_share=padding / (real + padding) if real + padding else None,
        closed_by=_closed_by(periods),
        rss_bytes=now("harken_memory_bytes", kind="rss"),
        batch_bytes=now("harken_memory_bytes", kind="predicted_batch"),
        budget_bytes=now("harken_memory_bytes", kind="budget"),
        gpu_used_bytes=now("harken_memory_bytes", kind="gpu_used"),
        gpu_total_bytes=now("harken_memory_bytes", kind="gpu_total"),
        lanes=_lanes(periods[0]) if len(periods) == 1 else {},
    )


def _wait_s(metrics: Metrics) -> float:
    """It is the same for every model: they share the lanes."""
    name = "harken_predicted_wait_seconds"
    return max((metrics.value(name, model=model) for model in metrics.labels(name, "model")), default=0.0)


def _closed_by(periods: Sequence[Period]) -> dict[str, float]:
    name = "harken_batches_total"
    reasons = {reason for period in periods for reason in period.after.labels(name, "closed_by")}
    rates = {why: sum(period.rate_of_model(name, closed_by=why) for period in periods) for why in sorted(reasons)}
    whole = sum(rates.values())
    found = {why: rate / whole for why, rate in rates.items() if rate > 0.0}
    return dict(sorted(found.items(), key=lambda one: -one[1]))


def _lanes(period: Period) -> dict[str, float]:
    name = "harken_engine_busy_seconds_total"
    lanes = sorted(period.after.labels(name, "lane"), key=lambda lane: (not lane.isdecimal(), lane.zfill(6)))
    return {lane: min(max(period.rate(name, lane=lane), 0.0), 1.0) for lane in lanes}
