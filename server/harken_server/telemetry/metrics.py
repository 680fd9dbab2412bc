"""Every metric of the server, in one place. Names are Prometheus' own style: base units, closed label sets."""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from harken_server.telemetry.instruments import Counter, Histogram
from harken_server.telemetry.machine import Cgroups, nearest_memory_limit
from harken_server.telemetry.memory import DeviceMemory, host_memory_bytes
from harken_server.telemetry.statistics import Statistics

STAGES: Final = ("tokenize", "queue", "collate", "compute", "scatter", "edge")
CLOSED_BY: Final = ("cost", "limit", "lanes", "deadline", "age", "bulk", "tenants", "solitary", "backlog")
OUTCOMES: Final = ("answered", "failed", "expired", "cancelled")
CHANGES: Final = ("loaded", "unloaded", "refused")
SLO_OUTCOMES: Final = ("served", "unavailable", "caller")
OVERLOAD: Final = ("BACKLOG_FULL", "DEADLINE_UNREACHABLE")
"""Reasons of refusals that mean too much is asked. Their series begin at 0, so that `rate` sees the first one too."""

# 0.1 ms to 43 s, each bucket 1.5 times the one before; and 0.25 s, the objective that the docs state.
_SECONDS: Final = sorted([float(f"{0.0001 * 1.5**k:.3g}") for k in range(33)] + [0.25])
_ERRORS: Final = [0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0, 5.0, 10.0]
_POWERS: Final = [2**k for k in range(16)]


class Metrics:
    """The server's registry and what it holds. One for each process; tests make their own."""

    def __init__(self) -> None:
        self.registry: Final = CollectorRegistry()
        self._memory: _MemoryCollector | None = None
        self.statistics: Final[dict[tuple[str, int], Statistics]] = {}
        """By name and version."""
        registry = self.registry
        self.requests: Final = Counter(
            "harken_requests",
            "Calls (of a stream: the stream) by how they ended.",
            ("model", "method", "code"),
            registry=registry,
        )
        self.accepted: Final = Counter(
            "harken_accepted", "Sequences let into the backlog.", ("model",), registry=registry
        )
        self.finished: Final = Counter(
            "harken_finished",
            "Accepted sequences by how they ended; over all outcomes it reaches harken_accepted_total.",
            ("model", "outcome"),
            registry=registry,
        )
        self.slo_requests: Final = Counter(
            "harken_slo_requests",
            "Calls that compute, and inputs of streams, by what they are to the availability objective: served, "
            "unavailable (refused, too late, failed), or an end that was the caller's (caller), which it leaves out.",
            ("model", "outcome"),
            registry=registry,
        )
        self.rejected: Final = Counter(
            "harken_rejected",
            "Calls, and inputs of streams, that were refused before they were accepted, by reason.",
            ("model", "reason"),
            registry=registry,
        )
        self.request_duration: Final = Histogram(
            "harken_request_duration_seconds",
            "From a call's arrival to its answer; of a stream, for each input.",
            ("model", "method"),
            buckets=_SECONDS,
            registry=registry,
        )
        self.stage_duration: Final = Histogram(
            "harken_stage_duration_seconds",
            "Time of each sequence in each stage; the stage edge is the rest of its call.",
            ("model", "stage"),
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_sequences: Final = Histogram(
            "harken_batch_sequences", "Sequences in a batch.", ("model",), buckets=_POWERS, registry=registry
        )
        self.batch_padded_tokens: Final = Histogram(
            "harken_batch_padded_tokens",
            "Tokens in a batch, padding included.",
            ("model",),
            buckets=_POWERS,
            registry=registry,
        )
        self.sequence_length: Final = Histogram(
            "harken_sequence_length_tokens",
            "True length of the accepted sequences.",
            ("model",),
            buckets=_POWERS,
            registry=registry,
        )
        self.tokens: Final = Counter(
            "harken_tokens", "Tokens computed: real ones, and padding.", ("model", "kind"), registry=registry
        )
        self.batches: Final = Counter(
            "harken_batches",
            "Batches by why they were no larger: it would have saved nothing (cost), exceeded a limit (limit), other "
            "free lanes shared what waited (lanes), a member would have missed its deadline (deadline), others had "
            "waited too long (age), bulk work would have held up interactive work (bulk), a tenant would have had more "
            "than its share (tenants), it or who was left has to run alone (solitary), or no more waited (backlog).",
            ("model", "closed_by"),
            registry=registry,
        )
        self.tenant_tokens: Final = Counter(
            "harken_tenant_tokens",
            "Real tokens computed, by who asked; empty: those who gave no name, or have no share of their own.",
            ("tenant",),
            registry=registry,
        )
        self.shared: Final = Counter(
            "harken_shared",
            "Accepted sequences that waited together with the very same one, and had no computation of their own.",
            ("model",),
            registry=registry,
        )
        self.cache_hits: Final = Counter(
            "harken_cache_hits", "Sequences whose vectors were kept.", ("model",), registry=registry
        )
        self.cache_misses: Final = Counter(
            "harken_cache_misses",
            "Sequences whose vectors were not kept, while result_cache_bytes is not 0.",
            ("model",),
            registry=registry,
        )
        self.cache_size: Final = Gauge(
            "harken_cache_bytes", "Memory of the vectors that are kept, of result_cache_bytes.", registry=registry
        )
        self.offered_work: Final = Counter(
            "harken_offered_work_seconds",
            "Predicted lane seconds of what callers asked for, accepted or refused for want of room or time. Over the "
            "number of lanes it is the load that the server would need to bear.",
            ("model", "outcome"),
            registry=registry,
        )
        self.scheduler: Final = Counter(
            "harken_scheduler_seconds", "Time spent on deciding who rides with whom.", (), registry=registry
        )
        self.out_of_memory: Final = Counter(
            "harken_out_of_memory",
            "Batches, and parts of them, for which an allocation failed. They are split, and the budget is lowered.",
            ("model",),
            registry=registry,
        )
        self.stalled: Final = Counter(
            "harken_stalled",
            "Batches that did not end within their limit. What they hold has failed.",
            ("model",),
            registry=registry,
        )
        self.lanes_replaced: Final = Counter(
            "harken_lanes_replaced",
            "Threads that were abandoned, since a stalled run did not end even when told to, and another took over.",
            ("lane",),
            registry=registry,
        )
        self.engine_busy: Final = Counter(
            "harken_engine_busy_seconds", "Time that a lane spent on batches.", ("lane",), registry=registry
        )
        self.backlog_sequences: Final = Gauge(
            "harken_backlog_sequences", "Sequences that wait.", ("model",), registry=registry
        )
        self.backlog_tokens: Final = Gauge(
            "harken_backlog_tokens", "Real tokens that wait.", ("model",), registry=registry
        )
        self.predicted_wait: Final = Gauge(
            "harken_predicted_wait_seconds",
            "Predicted time until a sequence that came now, and last, would start.",
            ("model",),
            registry=registry,
        )
        self.cost_scale: Final = Gauge(
            "harken_cost_scale_ratio",
            "What batches take over what was measured at the start, smoothed.",
            ("model", "version"),
            registry=registry,
        )
        self.cost_error: Final = Histogram(
            "harken_cost_error_ratio",
            "How far the predicted time of a batch, from its start until its lane was free again, was from the "
            "measured one, over the measured one.",
            ("model",),
            buckets=_ERRORS,
            registry=registry,
        )
        self.model_info: Final = Gauge(
            "harken_model_info", "1 for each model version that is served.",
            ("model", "version", "precision", "device", "bundle"), registry=registry,
        )  # fmt: skip

        self.refused_bundles: Final = Gauge(
            "harken_refused_bundles",
            "Bundles, and default files, in the folder of models that cannot be served as they are now.",
            ("model",),
            registry=registry,
        )
        self.ready: Final = Gauge(
            "harken_ready",
            "1 while requests are taken and computed; 0 while it loads or drains, or no lane works.",
            registry=registry,
        )
        self.lanes: Final = Gauge(
            "harken_lanes", "Lanes, without the wide one, by whether their run has stalled.", ("state",),
            registry=registry,
        )  # fmt: skip
        self.certificate_expiry: Final = Gauge(
            "harken_certificate_expiry_timestamp_seconds",
            "When the first certificate of the file that is in use ends, in seconds since 1970.",
            ("file",),
            registry=registry,
        )
        self.model_changes: Final = Counter(
            "harken_model_changes",
            "Model versions loaded and unloaded while the server ran, and bundles and default files refused.",
            ("model", "change"),
            registry=registry,
        )
        self._begin("")

    def _begin(self, model: str) -> None:
        """Show as 0 from the start what alerts are about."""
        for outcome in SLO_OUTCOMES:
            self.slo_requests.labels(model, outcome)
        for reason in OVERLOAD:
            self.rejected.labels(model, reason)

    def for_model(self, model: str, version: int) -> "ModelMetrics":
        """The children of one model, looked up once, and the statistics of this version."""
        self._begin(model)
        statistics = self.statistics.setdefault((model, version), Statistics())
        return ModelMetrics(self, model, version, statistics)

    def forget(self, model: str, version: int, whole_model: bool) -> None:
        """This version is gone, or with it the model: what only rises stays, or a scrape would miss the last of it."""
        self.statistics.pop((model, version), None)
        self.cost_scale.remove(model, version)
        if whole_model:
            for gauge in (self.backlog_sequences, self.backlog_tokens, self.predicted_wait):
                gauge.remove(model)

    def watch_memory(self, readings: Mapping[str, Callable[[], int]], device: DeviceMemory | None) -> None:
        """Export harken_memory_bytes (`readings`: its further kinds) and the GPU's utilisation, at each scrape."""
        self._memory = _MemoryCollector(readings, device)
        self.registry.register(self._memory)

    def memory_bytes(self) -> dict[str, int]:
        """What harken_memory_bytes tells, by its kind; nothing before `watch_memory`."""
        return self._memory.host_bytes() | self._memory.device_bytes() if self._memory else {}


class ModelMetrics:
    """One version's metrics, every label set made at the start so that it shows as zero."""

    def __init__(self, metrics: Metrics, model: str, version: int, statistics: Statistics) -> None:
        self.statistics: Final = statistics
        self.accepted: Final = metrics.accepted.labels(model)
        self.finished: Final = {outcome: metrics.finished.labels(model, outcome) for outcome in OUTCOMES}
        self.stages: Final = {stage: metrics.stage_duration.labels(model, stage) for stage in STAGES}
        self.batch_sequences: Final = metrics.batch_sequences.labels(model)
        self.batch_padded_tokens: Final = metrics.batch_padded_tokens.labels(model)
        self.sequence_length: Final = metrics.sequence_length.labels(model)
        self.tokens_real: Final = metrics.tokens.labels(model, "real")
        self.tokens_padding: Final = metrics.tokens.labels(model, "padding")
        self.batches: Final = {why: metrics.batches.labels(model, why) for why in CLOSED_BY}
        self.shared: Final = metrics.shared.labels(model)
        self.cache_hits: Final = metrics.cache_hits.labels(model)
        self.cache_misses: Final = metrics.cache_misses.labels(model)
        self.work_accepted: Final = metrics.offered_work.labels(model, "accepted")
        self.work_refused: Final = metrics.offered_work.labels(model, "refused")
        self.out_of_memory: Final = metrics.out_of_memory.labels(model)
        self.stalled: Final = metrics.stalled.labels(model)
        self.backlog_sequences: Final = metrics.backlog_sequences.labels(model)
        self.backlog_tokens: Final = metrics.backlog_tokens.labels(model)
        self.predicted_wait: Final = metrics.predicted_wait.labels(model)
        self.cost_scale: Final = metrics.cost_scale.labels(model, version)
        self.cost_error: Final = metrics.cost_error.labels(model)
        for change in CHANGES:
            metrics.model_changes.labels(model, change)
        metrics.refused_bundles.labels(model)


class _MemoryCollector(Collector):
    def __init__(self, readings: Mapping[str, Callable[[], int]], device: DeviceMemory | None) -> None:
        self._readings: Final = readings
        self._device: Final = device
        self._cgroups: Final = Cgroups()

    def host_bytes(self) -> dict[str, int]:
        nearest = nearest_memory_limit(self._cgroups)
        return {
            **host_memory_bytes(),
            "limit": nearest.limit_bytes,
            "left": nearest.left_bytes,
            **{kind: read() for kind, read in self._readings.items()},
        }

    def device_bytes(self) -> dict[str, int]:
        return self._device.memory_bytes() if self._device else {}

    def collect(self) -> Iterable[Metric]:
        memory = GaugeMetricFamily(
            "harken_memory_bytes",
            "Memory: of the process (rss, rss_peak), of the running batches (predicted_batch) and what they may "
            "take (budget), of Attends (predicted_attend, attend_peak, attend_budget), the limit that is nearest "
            "(limit) and what is left until it (left), and of the GPU. What the machine cannot tell is absent.",
            labels=("kind", "device"),
        )
        for kind, size_bytes in self.host_bytes().items():
            memory.add_metric((kind, ""), size_bytes)
        if self._device is not None:
            for kind, size_bytes in self.device_bytes().items():
                memory.add_metric((kind, self._device.label), size_bytes)
            utilization = self._device.utilization_ratio()
            if utilization is not None:
                gauge = GaugeMetricFamily(
                    "harken_gpu_utilization_ratio",
                    "Share of the last second or less in which the GPU ran a kernel.",
                    labels=("device",),
                )
                gauge.add_metric((self._device.label,), utilization)
                yield gauge
        yield memory
