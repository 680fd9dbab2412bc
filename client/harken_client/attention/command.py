"""The command `harken attend`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from harken_client.attention.picture import NoPlot
from harken_client.attention.table import summary_table
from harken_client.attention.values import AttendOptions, Attention
from harken_client.client import DEFAULT_TARGET, DEFAULT_TIMEOUT_S
from harken_client.command import (
    ModelOption,
    ServerOption,
    TimeoutOption,
    check_writable,
    client_of,
    fail,
    run_to_end,
)


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
