"""What all commands of `harken` have in common: options, the client, how a run ends."""

import asyncio
import math
import os
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from harken_client import files
from harken_client.client import DEFAULT_TIMEOUT_S, AsyncClient
from harken_client.errors import HarkenError
from harken_client.security import BadKey, Tls

T = TypeVar("T")


def finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


ServerOption = Annotated[str, typer.Option("--server", "-s", help="host:port of the server.")]
ModelOption = Annotated[str, typer.Option("--model", "-m", help="Model; not needed where there is only one.")]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", help="Longest wait for an answer, s.", min=0.001, callback=finite)
]


def tls_of(context: typer.Context) -> Tls:
    assert isinstance(context.obj, Tls)
    return context.obj


def client_of(
    context: typer.Context, server: str, *, model: str = "", timeout_s: float = DEFAULT_TIMEOUT_S, bulk: bool = False
) -> AsyncClient:
    try:
        return AsyncClient(
            server,
            model=model,
            timeout_s=timeout_s,
            priority="bulk" if bulk else "interactive",
            credentials=tls_of(context).credentials(),
        )
    except ValueError as error:
        fail(2, error)


def check_writable(path: Path) -> None:
    """A run must not be made for a report that then has no place."""
    if path.is_dir() or not path.parent.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        fail(2, f"{path} cannot be written")


def run_to_end(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end, or end the command with one line and its code."""
    try:
        return asyncio.run(_interruptible(work))
    except HarkenError as error:
        fail(1, error)
    except (files.BadFile, BadKey) as error:
        fail(2, error)
    except BrokenPipeError:
        leave_stdout()
        raise typer.Exit(1) from None
    except OSError as error:
        fail(2, error)
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise typer.Exit(130) from None


async def _interruptible(work: Coroutine[Any, Any, T]) -> T:
    """Let Ctrl-C wake the loop, whatever it waits for.

    The handler of asyncio.run does not: a signal that comes just before the loop falls asleep is not seen until
    something else happens.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def interrupt() -> None:
        loop.remove_signal_handler(signal.SIGINT)  # a second one ends it at once
        task.cancel()

    with suppress(NotImplementedError):  # where loops take no signals
        loop.add_signal_handler(signal.SIGINT, interrupt)
    return await work


def leave_stdout() -> None:
    """The reader of stdout has left. Without this Python complains once more at its exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def fail(code: int, message: object) -> NoReturn:
    """One line on stderr, whatever the message holds."""
    print("harken: " + " ".join(str(message).split()), file=sys.stderr)
    raise typer.Exit(code)
