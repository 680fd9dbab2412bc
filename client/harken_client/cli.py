"""The command `harken`.

Ends with 0; 1 after an error of the server or of an input; 2 after wrong usage; 130 after Ctrl-C.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from harken_client import batches, bulk, files
from harken_client.attention.picture import NoPlot
from harken_client.attention.table import summary_table
from harken_client.attention.values import AttendOptions, Attention
from harken_client.checks import MOST_COUNTED
from harken_client.client import (
    DEFAULT_TARGET,
    DEFAULT_TIMEOUT_S,
    MOST_EXPLAINED,
)
from harken_client.command import (
    ModelOption,
    ServerOption,
    TimeoutOption,
    check_writable,
    client_of,
    fail,
    finite,
    leave_stdout,
    run_to_end,
    tls_of,
)
from harken_client.load import protocols, report, runner, scrape, summary, workload
from harken_client.load.pacer import ClosedLoop, OpenLoop
from harken_client.security import Tls
from harken_client.security import make_key as new_key
from harken_client.top.command import top

# Where a server has them unless it was told otherwise.
_HTTP_PORT, _METRICS_PORT = 8000, 8002

# Distinct sequences of a load run; a longer run sends them again.
_POOL = 8192

app = typer.Typer(
    name="harken",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    try:
        app()
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            leave_stdout()
            raise SystemExit(1) from None


@app.callback()
def connection(
    context: typer.Context,
    ca: Annotated[
        Path | None, typer.Option("--tls-ca", help="PEM file with the CA of the server's certificate; turns TLS on.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option("--tls-certificate", help="PEM file with your own, where the server asks for one.")
    ] = None,
    key: Annotated[Path | None, typer.Option("--tls-key", help="PEM file with its private key.")] = None,
) -> None:
    """Client of the harken encoder server. What stands here comes before the command; HARKEN_API_KEY holds the key."""
    try:
        context.obj = Tls(ca, certificate, key)
    except ValueError as error:
        fail(2, f"--tls-ca, --tls-certificate, --tls-key: {error}")


@app.command()
def encode(
    context: typer.Context,
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="Texts, or one file as for --input; without either, lines of stdin."),
    ] = None,
    input_file: Annotated[
        Path | None,
        typer.Option(
            "--input",
            "-i",
            help='.txt, a text a line; .jsonl, {"text": ...} or {"ids": [...]} a line; or .parquet, a row each. '
            "A line that is none fails as an input that the server refuses; the others are encoded.",
        ),
    ] = None,
    column: Annotated[
        str,
        typer.Option(
            help="Of .parquet: strings, or lists of token ids. By default text, else ids, "
            "else the only one of strings, else the only one of lists of integers."
        ),
    ] = "",
    id_column: Annotated[
        str, typer.Option(help="Of .parquet: strings or integers that stand beside the vectors as id.")
    ] = "",
    output_file: Annotated[
        Path | None,
        typer.Option("--output", "-o", help=".npy, .jsonl or .parquet; without it JSON lines on stdout."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run left --output.")] = False,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut inputs that are too long, do not refuse them.")
    ] = False,
    chunk: Annotated[
        Literal["mean", "all"] | None,
        typer.Option("--chunk", help="Cut texts that are too long into chunks; give their mean, or all their vectors."),
    ] = None,
    overlap_tokens: Annotated[
        int,
        typer.Option(
            "--overlap-tokens", help="With --chunk: what two neighbours have in common.", min=0, max=MOST_COUNTED
        ),
    ] = 0,
    tokens: Annotated[bool, typer.Option("--tokens", help="One vector for each token.")] = False,
    dimensions: Annotated[
        int | None,
        typer.Option("--dimensions", help="The first so many dimensions, normalised again.", min=1, max=MOST_COUNTED),
    ] = None,
    normalize: Annotated[
        bool | None,
        typer.Option("--normalize/--no-normalize", help="Vectors of length 1, or not; else as the model does."),
    ] = None,
    pooling: Annotated[
        Literal["mean", "cls", "max"] | None,
        typer.Option("--pooling", help="Of the token vectors; else as the model does."),
    ] = None,
    model: ModelOption = "",
    server: ServerOption = DEFAULT_TARGET,
    timeout_s: TimeoutOption = DEFAULT_TIMEOUT_S,
) -> None:
    """Encode texts or token ids, in order and in bounded memory."""
    input_file, texts = _named_file(texts, input_file)
    output_suffix = output_file.suffix if output_file is not None else ""
    if output_file is not None and output_suffix not in files.OUTPUT_SUFFIXES:
        fail(2, f"--output ends in .npy, .jsonl or .parquet, not as {output_file.name}")
    if input_file is not None and input_file.suffix not in files.INPUT_SUFFIXES:
        fail(2, f"--input ends in .txt, .jsonl or .parquet, not as {input_file.name}")
    if texts and input_file is not None:
        fail(2, "texts come as arguments or from --input, not both")
    if (column or id_column) and (input_file is None or input_file.suffix != ".parquet"):
        fail(2, "--column and --id-column are of an input that ends in .parquet")
    if resume and (output_file is None or input_file is None):
        fail(2, "--resume needs a file of inputs and --output, the same as before")
    if tokens and (dimensions is not None or normalize is not None or pooling is not None):
        fail(2, "--tokens gives token vectors as they are: no --dimensions, --normalize or --pooling")
    if tokens and output_suffix in (".npy", ".parquet"):
        fail(2, "--tokens gives each input its own shape: write .jsonl")
    if chunk and (truncate or tokens):
        fail(2, "--chunk takes the place of --truncate, and is not of --tokens")
    if overlap_tokens and not chunk:
        fail(2, "--overlap-tokens goes with --chunk")
    if chunk == "all" and output_suffix in (".npy", ".parquet"):
        fail(2, "--chunk all gives each text its own shape: write .jsonl")

    async def run() -> bulk.Outcome:
        # Before the output is touched: a wrong input must not cost what it holds.
        inputs = files.from_texts(texts) if texts else files.open_inputs(input_file, column=column, id_column=id_column)
        bulk.check_apart(input_file, output_file, stdin=not texts)
        async with client_of(context, server, model=model, timeout_s=timeout_s, bulk=True) as client:
            options = bulk.Options(
                "tokens" if tokens else "sentence", truncate, dimensions, normalize, pooling, chunk, overlap_tokens
            )
            return await bulk.encode(client, inputs, output_file, options, resume=resume)

    outcome = run_to_end(run())
    if outcome.failed:
        fail(1, outcome)


def _named_file(texts: list[str] | None, input_file: Path | None) -> tuple[Path | None, list[str] | None]:
    """A single argument that ends as a file of inputs is one; a name mistyped must not be encoded as a text."""
    if input_file is not None or not texts or len(texts) > 1 or not texts[0].endswith(files.INPUT_SUFFIXES):
        return input_file, texts
    # For a Path a name that is too long is an error.
    if not os.path.exists(texts[0]):
        fail(2, f"there is no file {texts[0]}; a text that ends so is given as a line of stdin")
    return Path(texts[0]), None


@app.command()
def attend(
    context: typer.Context,
    text: Annotated[str, typer.Argument(help="The text to look into.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Where to draw: .html, or .png with the extra `plot`. Without it: a table."),
    ] = None,
    other: Annotated[
        str | None, typer.Option("--other", help="A second text: what tokens add to the similarity of the two.")
    ] = None,
    layer: Annotated[
        list[int] | None, typer.Option("--layer", help="Of this layer only, from 0; may be repeated.", min=0)
    ] = None,
    head: Annotated[
        list[int] | None, typer.Option("--head", help="Of this head only, from 0; may be repeated.", min=0)
    ] = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut texts that are too long, do not refuse them.")
    ] = False,
    model: ModelOption = "",
    server: ServerOption = DEFAULT_TARGET,
    timeout_s: TimeoutOption = DEFAULT_TIMEOUT_S,
) -> None:
    """Draw what the tokens of a text attend to: heat maps of each head, arcs between tokens, a gallery of heads."""
    if out is not None and out.suffix.lower() not in (".html", ".png"):
        fail(2, f"--out ends in .html or .png, not as {out.name}")
    if out is not None:
        check_writable(out)

    async def run() -> Attention:
        async with client_of(context, server, model=model, timeout_s=timeout_s) as client:
            options: AttendOptions = {"layers": layer or None, "heads": head or None, "truncate": truncate}
            if out is None:
                options = {**options, "top_k": 3}
            return await client.attend(text, other, **options)

    attention = run_to_end(run())
    if out is None:
        Console().print(summary_table(attention))
        return
    try:
        attention.save(out)
    except NoPlot as error:
        fail(2, error)
    except OSError as error:
        fail(2, f"{out} cannot be written: {error.strerror or error}")
    counts = {"token": len(attention.ids), "layer": len(attention.layers), "head": len(attention.heads)}
    print(f"{out}: " + ", ".join(f"{count} {name}{'s' * (count != 1)}" for name, count in counts.items()))


@app.command()
def models(
    context: typer.Context, server: ServerOption = DEFAULT_TARGET, timeout_s: TimeoutOption = DEFAULT_TIMEOUT_S
) -> None:
    """List the model versions that the server holds."""

    async def run() -> None:
        async with client_of(context, server, timeout_s=timeout_s) as client:
            columns = ("model", "default", "hidden", "max length", "text", "precision", "device")
            table = Table(*columns, box=None, pad_edge=False)
            table.columns[0].no_wrap = True
            for info in await client.models():
                table.add_row(
                    f"{info.name}/{info.version}",
                    "yes" if info.is_default else "",
                    str(info.hidden_size),
                    str(info.max_length),
                    "yes" if info.accepts_text else "no",
                    info.precision,
                    info.device,
                )
            Console().print(table)

    run_to_end(run())


@app.command()
def health(
    context: typer.Context,
    service: Annotated[str, typer.Option(help="Service to ask for; the whole server by default.")] = "",
    wait_s: Annotated[
        float | None,
        typer.Option("--wait", help="Wait up to so many seconds for SERVING.", min=0.001, callback=finite),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Print each change until Ctrl-C.")] = False,
    server: ServerOption = DEFAULT_TARGET,
    timeout_s: TimeoutOption = DEFAULT_TIMEOUT_S,
) -> None:
    """Print the server's health. Ends with 0 only if it is SERVING."""
    if watch and wait_s is not None:
        fail(2, "--watch and --wait exclude one another")

    async def run() -> str:
        status = "UNKNOWN"
        async with client_of(context, server, timeout_s=timeout_s) as client:
            if watch:
                async for status in client.watch_health(service):
                    print(status, flush=True)
                return status
            if wait_s is not None:
                await client.wait_ready(wait_s, service=service)
            status = await client.health(service)
            print(status)
            return status

    if run_to_end(run()) != "SERVING":
        raise typer.Exit(1)


@app.command()
def explain_batches(
    context: typer.Context,
    last: Annotated[int, typer.Option(help="How many, at most.", min=1, max=MOST_EXPLAINED)] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON for each batch, with every member.")] = False,
    server: ServerOption = DEFAULT_TARGET,
    timeout_s: TimeoutOption = DEFAULT_TIMEOUT_S,
) -> None:
    """Print the server's last batches, the newest last: who rode with whom, and why."""

    async def run() -> None:
        async with client_of(context, server, timeout_s=timeout_s) as client:
            explained = await client.explain_batches(last)
        if as_json:
            for batch in explained:
                print(batches.json_line(batch))
        elif explained:
            Console().print(batches.table(explained))
        else:
            print("no batch has run yet")

    run_to_end(run())


@app.command()
def settings(
    context: typer.Context,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE: change it until the server's process ends; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object of all of them.")] = False,
    server: ServerOption = DEFAULT_TARGET,
    timeout_s: TimeoutOption = DEFAULT_TIMEOUT_S,
) -> None:
    """Print what the server is set to: * is not the default, + can be changed while it runs."""
    changes = dict(one.split("=", 1) for one in change or () if "=" in one)
    if len(changes) < len(change or ()):
        raise typer.BadParameter("is NAME=VALUE, each name once", param_hint="--set")

    async def run() -> None:
        async with client_of(context, server, timeout_s=timeout_s) as client:
            listed = await client.settings(changes)
        if as_json:
            print(json.dumps({setting.name: setting.value for setting in listed}))
            return
        for setting in listed:
            marks = ("" if setting.is_default else "*") + ("+" if setting.changeable else "")
            print(f"{marks:2} {setting.name}={setting.value}")

    run_to_end(run())


app.command()(top)


@app.command()
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


@app.command()
def make_key(name: Annotated[str, typer.Argument(help="Whose key it is, or what for.")]) -> None:
    """Make an API key: its entry for the server's file goes to stdout, the key itself, this once, to stderr."""
    try:
        key, entry = new_key(name)
    except ValueError as error:
        fail(2, error)
    print(entry)
    print(key, file=sys.stderr)
