"""The command `harken`.

Ends with 0; 1 after an error of the server or of an input; 2 after wrong usage; 130 after Ctrl-C.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from harken_client import batches, bulk, files
from harken_client.attention.command import attend
from harken_client.checks import MOST_COUNTED
from harken_client.client import DEFAULT_TARGET, DEFAULT_TIMEOUT_S, MOST_EXPLAINED
from harken_client.command import (
    ModelOption,
    ServerOption,
    TimeoutOption,
    client_of,
    fail,
    finite,
    leave_stdout,
    run_to_end,
)
from harken_client.load.command import load
from harken_client.security import Tls
from harken_client.security import make_key as new_key
from harken_client.top.command import top

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


app.command()(attend)


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


app.command()(load)


@app.command()
def make_key(name: Annotated[str, typer.Argument(help="Whose key it is, or what for.")]) -> None:
    """Make an API key: its entry for the server's file goes to stdout, the key itself, this once, to stderr."""
    try:
        key, entry = new_key(name)
    except ValueError as error:
        fail(2, error)
    print(entry)
    print(key, file=sys.stderr)
