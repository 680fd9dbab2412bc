"""The command `harken load`."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from harken_client.client import DEFAULT_TARGET
from harken_client.command import (
    ModelOption,
    ServerOption,
    check_writable,
    client_of,
    fail,
    finite,
    run_to_end,
    tls_of,
)
from harken_client.load import protocols, report, runner, scrape, summary, workload
from harken_client.load.pacer import ClosedLoop, OpenLoop

# Where a server has them unless it was told otherwise.
_HTTP_PORT, _METRICS_PORT = 8000, 8002

# Distinct sequences of a load run; a longer run sends them again.
_POOL = 8192


def load(
    context: typer.Context,
    concurrency: Annotated[
        int | None, typer.Option(help="Closed loop: calls always under way; 16 without --rate.", min=1)
    ] = None,
    rate_per_s: Annotated[
        float | None,
        typer.Option("--rate", help="Open loop: calls a second, as a Poisson process.", min=0.001, callback=finite),
    ] = None,
    lengths: Annotated[
        str, typer.Option(help=f"{workload.FORMS}; a file holds one length, or one text, a line.")
    ] = "lognormal:median=40,p99=300",
    inputs_per_call: Annotated[int, typer.Option(help="Inputs in one call.", min=1, max=1024)] = 1,
    text: Annotated[bool, typer.Option("--text", help="Send texts instead of token ids.")] = False,
    tokens: Annotated[bool, typer.Option("--tokens", help="Ask for one vector for each token.")] = False,
    duration_s: Annotated[float, typer.Option("--duration", help="Measured time, s.", min=0.1, callback=finite)] = 10.0,
    warmup_s: Annotated[
        float, typer.Option("--warmup", help="Time before it, not measured, s.", min=0, callback=finite)
    ] = 2.0,
    deadline_ms: Annotated[int, typer.Option(help="Deadline of each call.", min=1)] = 30_000,
    seed: Annotated[int, typer.Option(help="The same seed sends the same.", min=0)] = 0,
    protocol: Annotated[
        protocols.ProtocolName,
        typer.Option(help="harken; oip, Open Inference over gRPC; openai, /v1/embeddings over HTTP, in base64."),
    ] = "harken",
    http_url: Annotated[
        str,
        typer.Option("--http", help="The server's HTTP, for openai; by default port 8000 of the host of --server."),
    ] = "",
    metrics_url: Annotated[
        str,
        typer.Option("--metrics", help="The server's metrics, or none; by default port 8002 of the host of --server."),
    ] = "",
    json_file: Annotated[str, typer.Option("--json", help="Write the report as JSON; - is stdout.")] = "",
    model: ModelOption = "",
    server: ServerOption = DEFAULT_TARGET,
) -> None:
    """Send load, and report latency, throughput and what the server did with it."""
    if concurrency is not None and rate_per_s is not None:
        fail(2, "--concurrency (closed loop) and --rate (open loop) exclude one another")
    if protocol != "harken" and (text or tokens):
        fail(2, f"--protocol {protocol} sends token ids and gets sentence vectors: no --text or --tokens")
    if http_url and protocol != "openai":
        fail(2, f"--http is for --protocol openai, not {protocol}")
    if json_file not in ("", "-"):
        check_writable(Path(json_file))
    http_url = http_url or scrape.url_beside(server, _HTTP_PORT, "https" if tls_of(context).ca else "http")
    metrics_url = metrics_url or scrape.url_beside(server, _METRICS_PORT) + "/metrics"
    plan = runner.Plan(
        pacer=ClosedLoop(concurrency or 16) if rate_per_s is None else OpenLoop(rate_per_s, seed),
        duration_s=duration_s,
        warmup_s=warmup_s,
        deadline_s=deadline_ms / 1000,
        inputs_per_call=inputs_per_call,
        output="tokens" if tokens else "sentence",
    )

    async def read_metrics() -> scrape.Metrics | None:
        if metrics_url == "none":
            return None
        try:
            return await asyncio.to_thread(scrape.scrape, metrics_url)
        except OSError:
            return None

    async def run() -> tuple[report.Report, str]:
        async with client_of(context, server, model=model) as client:
            info = await client.model()
        try:
            work = workload.build(
                lengths,
                count=_POOL,
                seed=seed,
                vocab_size=info.vocab_size,
                max_length=info.max_length,
                text=text,
            )
        except (ValueError, OSError) as error:
            fail(2, error)
        if protocol != "harken" and isinstance(work.inputs[0], str):
            fail(2, f"--protocol {protocol} sends token ids, and {lengths} holds texts")
        async with protocols.connected(protocol, server, http_url, info, plan.output, tls=tls_of(context)) as sender:
            done = await runner.run(sender, runner.messages(sender, work, plan), plan, read_metrics)
        of_client, of_server, reason = summary.figures(done, plan, info.name)
        return report.Report(report.setup_of(server, protocol, info, plan, work), of_client, of_server), reason

    result, reason = run_to_end(run())
    if reason and metrics_url != "none":
        print(f"harken: {metrics_url} {reason}, so the server's side is not told", file=sys.stderr)
    if json_file == "-":
        print(result.json())
    else:
        report.render(result, Console())
        if json_file:
            try:
                Path(json_file).write_text(result.json() + "\n", encoding="utf-8")
            except OSError as error:
                fail(2, error)
    client = result.client
    if client.latency.p50_s is None:
        fail(1, "no call was answered")
    if 2 * client.failed_calls > client.calls:
        fail(1, f"{client.failed_calls} of {client.calls} calls failed")
