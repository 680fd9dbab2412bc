"""A run for a person (a table) and for a program (JSON)."""

import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version

import grpc
from rich.console import Console
from rich.table import Table

from harken_client.load.pacer import ClosedLoop, OpenLoop
from harken_client.load.protocols import ProtocolName
from harken_client.load.runner import Plan
from harken_client.load.summary import ClientFigures, ServerFigures, Spread
from harken_client.load.workload import Workload
from harken_client.values import ModelInfo

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything that a reader needs to repeat the run."""

    server: str
    protocol: ProtocolName
    model: str
    version: int
    precision: str
    device: str
    pace: str
    inputs_per_call: int
    inputs: str
    output: str
    lengths: str
    seed: int
    duration_s: float
    warmup_s: float
    deadline_s: float
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Report:
    """`server` is None where its metrics were not read."""

    setup: Setup
    client: ClientFigures
    server: ServerFigures | None

    def json(self) -> str:
        return json.dumps(asdict(self), indent=2)


def setup_of(target: str, protocol: ProtocolName, info: ModelInfo, plan: Plan, workload: Workload) -> Setup:
    return Setup(
        server=target,
        protocol=protocol,
        model=info.name,
        version=info.version,
        precision=info.precision,
        device=info.device,
        pace=_pace(plan.pacer),
        inputs_per_call=plan.inputs_per_call,
        inputs="text" if isinstance(workload.inputs[0], str) else "token ids",
        output=plan.output,
        lengths=workload.spec,
        seed=workload.seed,
        duration_s=plan.duration_s,
        warmup_s=plan.warmup_s,
        deadline_s=plan.deadline_s,
        versions={
            "harken": version("harken"),
            "grpcio": grpc.__version__,
            "python": platform.python_version(),
        },
    )


def _pace(pacer: ClosedLoop | OpenLoop) -> str:
    if isinstance(pacer, ClosedLoop):
        return f"closed loop, {pacer.concurrency} calls under way"
    return f"open loop, {pacer.rate_per_s:g} calls/s (Poisson)"


def render(report: Report, console: Console) -> None:
    table = Table(title="harken load", show_header=False, title_justify="left")
    for name, value in _rows(report):
        table.add_row(name, value)
    console.print(table)


def _rows(report: Report) -> Iterator[tuple[str, str]]:
    setup, client, server = report.setup, report.client, report.server
    yield (
        "server",
        f"{setup.server}, {setup.model}/{setup.version} {setup.precision} on {setup.device}, over {setup.protocol}",
    )
    yield "pace", f"{setup.pace}, {setup.inputs_per_call} {setup.inputs} inputs a call, {setup.output} output"
    yield "lengths", f"{setup.lengths}, seed {setup.seed}"
    yield (
        "time",
        f"{setup.duration_s:g} s after {setup.warmup_s:g} s of warm-up, deadline {setup.deadline_s:g} s",
    )
    yield "versions", ", ".join(f"{name} {number}" for name, number in setup.versions.items())
    yield "throughput", f"{client.sequences_per_s:.1f} sequences/s, {client.tokens_per_s:.0f} tokens/s"
    windows = " | ".join(f"{window:.1f}" for window in client.windows_per_s)
    agree = "agree within 10 %" if client.steady else "do NOT agree within 10 %: run for longer"
    yield "three windows", f"{windows} sequences/s, {agree}"
    yield "latency of answered calls", f"{_spread(client.latency)}, max {_ms(client.latency.max_s)}"
    errors = ", ".join(f"{count} {name}" for name, count in client.errors.items()) or "none"
    yield "errors", f"{errors}, of {client.calls} calls"
    yield "late sends", f"{client.late_sends}, the latest by {_ms(client.latest_send_s)}"
    if server is None:
        yield "the server's side", "not read"
        return
    yield "mean batch", f"{_number(server.mean_batch_sequences)} sequences"
    share = server.padding_share
    yield "padding", "-" if share is None else f"{100 * share:.1f} % of the tokens computed"
    for stage, spread in server.stages.items():
        yield f"{stage} time", _spread(spread)
    yield (
        "server memory",
        f"{server.rss_bytes / _MIB:.0f} MiB, peak {server.rss_peak_bytes / _MIB:.0f} MiB",
    )


def _spread(spread: Spread) -> str:
    figures = (("mean", spread.mean_s), ("p50", spread.p50_s), ("p95", spread.p95_s), ("p99", spread.p99_s))
    return ", ".join(f"{name} {_ms(value)}" for name, value in figures)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.2f} ms"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
