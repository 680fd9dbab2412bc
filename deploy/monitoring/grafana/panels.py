"""The panels of the dashboard: what each asks of Prometheus, and what it tells.

tests/deploy/test_dashboard.py runs every query against a server and provokes what it shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Query:
    """`legend` may name labels, as {{model}}."""

    promql: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """A graph over time. `unit` is one of Grafana's; `line`: where a dashed line stands, if anywhere."""

    title: str
    unit: str
    description: str
    queries: Sequence[Query]
    width: int = 8
    line: float | None = None
    stacked: bool = False
    kind: str = "timeseries"


# A deployment. Where a label is missing, as namespace without Kubernetes, All matches that too.
OF_JOB: Final = 'namespace=~"$namespace", job=~"$job"'
# stable or canary, from the PodMonitor of deploy/k8s. What rules record is of both together.
OF_TRACK: Final = f'{OF_JOB}, track=~"$track"'


def selected(*more: str) -> str:
    """Selects the servers that are chosen on the page, `more` of their series."""
    return ", ".join((OF_TRACK, 'instance=~"$instance"', *more))


OF_MODEL: Final = 'model=~"$model"'


def _rate(name: str, *more: str, by: str = "", of_model: bool = True) -> str:
    labels = selected(*([OF_MODEL] if of_model else []), *more)
    return f"sum{f' by ({by}) ' if by else ''}(rate({name}{{{labels}}}[$__rate_interval]))"


def _quantiles(name: str, *quantiles: float) -> list[Query]:
    buckets = _rate(f"{name}_bucket", by="le")
    return [Query(f"histogram_quantile({q}, {buckets})", f"p{100 * q:g}") for q in quantiles]


def _mean(name: str, *more: str, by: str = "") -> str:
    sums, counts = _rate(f"{name}_sum", *more, by=by), _rate(f"{name}_count", *more, by=by)
    return f"{sums} / {counts}"


def _burn_rates(of: str, may: float) -> list[Query]:
    windows = ("5m", "1h", "6h")
    return [
        Query(f"harken:{of}:ratio_rate{window}{{{OF_JOB}}} / {may}", f"{{{{namespace}}}} {{{{job}}}} {window}")
        for window in windows
    ]


_BUSY: Final = "harken_engine_busy_seconds_total"
_NARROW_BUSY: Final = _rate(_BUSY, 'lane!="wide"', of_model=False)
_WIDE_BUSY: Final = _rate(_BUSY, 'lane="wide"', of_model=False)
_LANES_BUSY: Final = f"{_NARROW_BUSY} / sum(harken_lanes{{{selected()}}}) + ({_WIDE_BUSY} or vector(0))"

_OFFERED: Final = _rate("harken_offered_work_seconds_total")
_CERTIFICATE_END: Final = f"min by (file) (harken_certificate_expiry_timestamp_seconds{{{selected()}}})"
_OF_BATCHES: Final = selected('kind=~"predicted_batch|budget"')
_PADDING: Final = _rate("harken_tokens_total", 'kind="padding"')

ROWS: Final[dict[str, Sequence[Panel]]] = {
    "Objectives": [
        Panel(
            "Availability burn rate", "none",
            "How fast what may fail (0.1 %) is used up: at 1 it lasts for exactly 30 days. The fast alert "
            "is at 14.4 over an hour and at 6 over six.",
            _burn_rates("unavailable", 0.001),
            line=14.4,
        ),
        Panel(
            "Latency burn rate", "none",
            "How fast the calls that may take more than 0.25 s (1 %) are used up: at 1 they last for exactly 30 days.",
            _burn_rates("slow", 0.01),
            line=14.4,
        ),
        Panel(
            "Error budget left, of 30 days", "percentunit",
            "What is left of the calls that may fail, and of those that may be slow. Below 0 the objective is missed.",
            [
                Query(f"harken:unavailable:budget_left30d{{{OF_JOB}}}", "{{namespace}} {{job}} available"),
                Query(f"harken:slow:budget_left30d{{{OF_JOB}}}", "{{namespace}} {{job}} fast"),
            ],
            line=0.0,
        ),
        Panel(
            "Calls as the objective counts them", "reqps",
            "Calls that compute, and inputs of streams: served, unavailable (refused, too late, failed), or ended by "
            "what the caller did, which is not counted.",
            [Query(_rate("harken_slo_requests_total", by="outcome"), "{{outcome}}")],
            stacked=True,
        ),
        Panel(
            "Alerts that fire", "short",
            "How many alerts of docs/runbook.md fire now.",
            [Query(f'count(ALERTS{{alertname=~"Harken.*", alertstate="firing", {OF_JOB}}}) or vector(0)', "firing")],
        ),
        Panel(
            "Servers that are ready", "short",
            "Those that take requests and compute them: not those that load, drain or hang.",
            [Query(f"sum(harken_ready{{{selected()}}})", "ready")],
        ),
    ],
    "Traffic": [
        Panel(
            "Calls by method", "reqps",
            "Calls a second, over every protocol; of a stream the stream, once it has ended.",
            [Query(_rate("harken_requests_total", by="method"), "{{method}}")],
            stacked=True,
        ),
        Panel(
            "Calls by code", "reqps",
            "How calls ended, by gRPC's names, over HTTP too. RESOURCE_EXHAUSTED is a refusal; why stands beside it.",
            [Query(_rate("harken_requests_total", by="code"), "{{code}}")],
            stacked=True,
        ),
        Panel(
            "Refused by reason", "reqps",
            "Calls, and inputs of streams, that were refused before they were accepted. docs/metrics.md says of each "
            "reason what to do about it.",
            [Query(_rate("harken_rejected_total", by="reason"), "{{reason}}")],
            stacked=True,
        ),
        Panel(
            "Sequences by how they ended", "ops",
            "Answered is the goodput. Failed: the engine's fault. Expired, cancelled: nobody waited any more.",
            [Query(_rate("harken_finished_total", by="outcome"), "{{outcome}}")],
            stacked=True,
        ),
        Panel(
            "Tokens by tenant", "ops",
            "Real tokens computed a second, by who asked.",
            [Query(_rate("harken_tenant_tokens_total", by="tenant", of_model=False), "{{tenant}}")],
            stacked=True,
        ),
        Panel(
            "Answered without a computation of their own", "ops",
            "Sequences whose vectors were kept (`result_cache_bytes`), and those that waited with the very same one.",
            [Query(_rate("harken_cache_hits_total"), "kept"), Query(_rate("harken_shared_total"), "shared")],
            stacked=True,
        ),
    ],
    "Latency": [
        Panel(
            "Duration of calls", "s",
            "From a call's arrival to its answer, of answered calls; of streams, for each input. With exemplars a "
            "point names the request, or its trace. The line is the objective.",
            _quantiles("harken_request_duration_seconds", 0.5, 0.9, 0.99),
            line=0.25,
        ),
        Panel(
            "Mean time in each stage", "s",
            "Where the time goes. queue: too much is asked for; compute: long sequences; edge: slow readers, or a "
            "busy loop.",
            [Query(_mean("harken_stage_duration_seconds", by="stage"), "{{stage}}")],
            stacked=True,
        ),
        Panel(
            "Calls by their duration", "s",
            "How many calls a second took how long.",
            [Query(_rate("harken_request_duration_seconds_bucket", by="le"), "{{le}}")],
            kind="heatmap",
        ),
    ],
    "Batching": [
        Panel(
            "Sequences in a batch", "short",
            "On average. More is not better by itself: batches grow as far as that saves time.",
            [Query(_mean("harken_batch_sequences"), "mean")],
        ),
        Panel(
            "Share of padding", "percentunit",
            "Of the tokens computed. Above half for long, see docs/runbook.md.",
            [Query(f"{_PADDING} / {_rate('harken_tokens_total')}", "padding")],
            line=0.5,
        ),
        Panel(
            "Why batches are no larger", "percentunit",
            "The share of each reason; docs/metrics.md explains them.",
            [
                Query(
                    f'{_rate("harken_batches_total", by="closed_by")} / scalar({_rate("harken_batches_total")})',
                    "{{closed_by}}",
                )
            ],
            stacked=True,
        ),
        Panel(
            "Error of the predicted cost", "percentunit",
            "How far the predicted time of a batch was from the measured one, over the measured one.",
            _quantiles("harken_cost_error_ratio", 0.5, 0.9),
        ),
        Panel(
            "Length of the sequences", "short",
            "True tokens of what was accepted.",
            _quantiles("harken_sequence_length_tokens", 0.5, 0.99),
        ),
        Panel(
            "Tokens computed", "ops",
            "A second, real ones and padding.",
            [Query(_rate("harken_tokens_total", by="kind"), "{{kind}}")],
            stacked=True,
        ),
    ],
    "Load and scaling": [
        Panel(
            "Offered load", "percentunit",
            "Predicted lane time of what callers ask for, refused or not, over the lanes that there are: the signal to "
            "scale by. Hold it at 0.7; above 1 it cannot be borne, however long the backlog is.",
            [
                Query(f"{_OFFERED} / scalar(sum(harken_lanes{{{selected()}}}))", "offered"),
            ],
            line=0.7,
        ),
        Panel(
            "Offered work by outcome", "none",
            "In lanes: what was accepted, and what was refused for want of room or time.",
            [Query(_rate("harken_offered_work_seconds_total", by="outcome"), "{{outcome}}")],
            stacked=True,
        ),
        Panel(
            "How busy the device is", "percentunit",
            "Of a GPU, the share of time in which it ran a kernel; where there is none, how busy the lanes are.",
            [Query(f"avg(harken_gpu_utilization_ratio{{{selected()}}}) or ({_LANES_BUSY})", "busy")],
        ),
        Panel(
            "Backlog", "short",
            "Sequences that wait for a lane, by model.",
            [Query(f"sum by (model) (harken_backlog_sequences{{{selected(OF_MODEL)}}})", "{{model}}")],
            stacked=True,
        ),
        Panel(
            "Tokens that wait", "short",
            "Real tokens in the backlog.",
            [Query(f"sum by (model) (harken_backlog_tokens{{{selected(OF_MODEL)}}})", "{{model}}")],
            stacked=True,
        ),
        Panel(
            "Predicted wait", "s",
            "Until a sequence that came now, and last, would start; of the server where that is longest.",
            [Query(f"max by (model) (harken_predicted_wait_seconds{{{selected(OF_MODEL)}}})", "{{model}}")],
        ),
        Panel(
            "Lanes", "short",
            "Those that work, and those whose run does not end.",
            [Query(f"sum by (state) (harken_lanes{{{selected()}}})", "{{state}}")],
            stacked=True,
        ),
        Panel(
            "Stalls", "short",
            "Batches that did not end within their limit, and threads that were abandoned since they never ended.",
            [
                Query(f"sum(increase(harken_stalled_total{{{selected(OF_MODEL)}}}[$__rate_interval]))", "stalled"),
                Query(f"sum(increase(harken_lanes_replaced_total{{{selected()}}}[$__rate_interval]))", "replaced"),
            ],
        ),
        Panel(
            "Time spent on scheduling", "percentunit",
            "Of one core, on deciding who rides with whom; of the server that spends most.",
            [Query(f"max(rate(harken_scheduler_seconds_total{{{selected()}}}[$__rate_interval]))", "scheduling")],
        ),
    ],
    "Memory": [
        Panel(
            "Memory in use", "bytes",
            "Of each process, and of the GPU where there is one.",
            [
                Query(
                    f'harken_memory_bytes{{{selected()}, kind=~"rss|rss_peak|gpu_used|gpu_process|gpu_total"}}',
                    "{{instance}} {{kind}} {{device}}",
                )
            ],
        ),
        Panel(
            "Share of memory left", "percentunit",
            "Until the nearest limit: the machine's, a cgroup's or the process' own; and of each GPU.",
            [Query(f"harken:memory_left:ratio{{{selected()}}}", "{{instance}} {{device}}")],
            line=0.1,
        ),
        Panel(
            "Memory of batches", "bytes",
            "What the batches that run are predicted to take, and what they may: less after an allocation failed.",
            [
                Query(f"sum by (kind) (harken_memory_bytes{{{_OF_BATCHES}}})", "{{kind}}"),
            ],
        ),
        Panel(
            "Allocations that failed", "short",
            "Batches, and parts of them, for which there was no memory. They are split, and tried again.",
            [Query(f"sum(increase(harken_out_of_memory_total{{{selected(OF_MODEL)}}}[$__rate_interval]))", "failed")],
            width=12,
        ),
        Panel(
            "Memory of kept results", "bytes",
            "What the vectors that are kept take of `result_cache_bytes`.",
            [Query(f"sum(harken_cache_bytes{{{selected()}}})", "kept")],
            width=12,
        ),
    ],
    "Models": [
        Panel(
            "Versions that are served", "short",
            "How many servers serve which version.",
            [
                Query(
                    f"sum by (model, version, precision, device) (harken_model_info{{{selected(OF_MODEL)}}})",
                    "{{model}}/{{version}} {{precision}} {{device}}",
                )
            ],
        ),
        Panel(
            "Changes", "short",
            "Versions loaded and unloaded while servers ran, and what was refused.",
            [
                Query(
                    f"sum by (change) (increase(harken_model_changes_total{{{selected(OF_MODEL)}}}[$__rate_interval]))",
                    "{{change}}",
                )
            ],
        ),
        Panel(
            "Bundles that cannot be served", "short",
            "What stands in a folder of models, and is broken or does not fit.",
            [Query(f"sum by (model) (harken_refused_bundles{{{selected(OF_MODEL)}}})", "{{model}}")],
        ),
        Panel(
            "Cost against what was measured at the start", "none",
            "1: batches take what they took then. Above it the machine is slower, or busy with something else.",
            [
                Query(
                    f"avg by (model, version) (harken_cost_scale_ratio{{{selected(OF_MODEL)}}})",
                    "{{model}}/{{version}}",
                )
            ],
            width=12,
        ),
        Panel(
            "Until the certificate ends", "s",
            "Of the certificates that are in use; nothing where there is no TLS.",
            [Query(f"{_CERTIFICATE_END} - time()", "{{file}}")],
            width=12,
            line=14 * 86400,
        ),
    ],
}  # fmt: skip
