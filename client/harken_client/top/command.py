"""The command `harken top`."""

from typing import Annotated

import typer
from rich.console import Console

from harken_client.command import fail, finite, run_to_end
from harken_client.top.watch import Watched, metrics_url, watch


def top(
    servers: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SERVER...",
            help="HOST, HOST:PORT or URL of each server's metrics; port 8002 if none is given, and localhost.",
        ),
    ] = None,
    interval_s: Annotated[
        float, typer.Option("--interval", help="Time between two looks, s.", min=0.1, max=3600, callback=finite)
    ] = 2.0,
    once: Annotated[
        bool,
        typer.Option(
            "--once", help="Look twice, print one frame, and end: with 0 if all servers are up and have --model."
        ),
    ] = False,
    model: Annotated[str, typer.Option("--model", "-m", help="Calls, backlog and batches of this model alone.")] = "",
) -> None:
    """Show what servers do now: rates, percentiles, backlog, batches, padding, memory, lanes. Ctrl-C ends it."""
    try:
        # Who is named twice counts once.
        urls = dict.fromkeys(metrics_url(server) for server in servers or ["localhost"])
    except ValueError as error:
        fail(2, error)
    watched = [Watched(url, model) for url in urls]
    if not run_to_end(watch(watched, interval_s, once=once, console=Console())):
        raise typer.Exit(1)
