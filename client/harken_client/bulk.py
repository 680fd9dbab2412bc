"""A run of `harken encode`: inputs through one stream into a sink, in order and in bounded memory."""

import os
import sys
from collections.abc import Iterator
from contextlib import aclosing, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from harken_client.client import AsyncClient
from harken_client.errors import moved
from harken_client.files import BadFile, Inputs, Run, only_run, open_sink
from harken_client.values import Chunking, Output, Pooling, StreamResult


@dataclass(frozen=True, slots=True)
class Options:
    """What `encode_stream` is asked for; `chunk`: what the chunks of a long text give, None where it is not cut."""

    output: Output
    truncate: bool
    dimensions: int | None
    normalize: bool | None
    pooling: Pooling | None
    chunk: Literal["mean", "all"] | None
    overlap_tokens: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """Inputs that failed, `failed_before` of them in a run that this one resumed; the first of the others, in words."""

    failed: int
    failed_before: int
    first: str

    def __str__(self) -> str:
        earlier = f", {self.failed_before} of them in an earlier run" if self.failed_before else ""
        return f"{self.failed} inputs failed{earlier}{self.first}"


async def encode(
    client: AsyncClient, inputs: Inputs, output: Path | None, options: Options, *, resume: bool
) -> Outcome:
    """Encode all inputs into a file, or onto stdout.

    Raises BadFile for an input that cannot be read, an output that another run writes, or a part that
    is not this run's; HarkenError for what ends the stream; OSError. What was answered until then is
    kept in the part.
    """
    with only_run(output):
        return await _encode(client, inputs, output, options, resume=resume)


async def _encode(
    client: AsyncClient, inputs: Inputs, output: Path | None, options: Options, *, resume: bool
) -> Outcome:
    info = await client.model()
    run = Run(
        model=info.name,
        version=info.version,
        bundle_sha256=info.bundle_sha256,
        input_bytes=inputs.size_bytes,
        input_sha256=inputs.sha256,
        column=inputs.column,
        id_column=inputs.id_column,
        **asdict(options),
    )
    width = options.dimensions or info.hidden_size
    sink = open_sink(output, sys.stdout.buffer, run, width=width, id_type=inputs.id_type, resume=resume)
    done, failed, first = sink.done, sink.failed, ""
    with closing(sink), _progress(inputs.total, done, shown=output is not None) as bar:
        # One model version for the whole run, whatever the server loads meanwhile.
        stream = client.encode_stream(
            inputs.read(done),
            model=info.name,
            version=info.version,
            output=options.output,
            truncate=options.truncate,
            dimensions=options.dimensions,
            normalize=options.normalize,
            pooling=options.pooling,
            chunking=Chunking(options.overlap_tokens, options.chunk) if options.chunk else None,
        )
        async with aclosing(stream):
            async for streamed in stream:
                result = _in_file(streamed, done)
                sink.write(result)
                bar.advance(bar.task_ids[0])
                if result.error is not None:
                    failed += 1
                    first = first or f"; input {result.index}: {result.error}"
        sink.finish()
    return Outcome(failed, sink.failed, first)


def _in_file(result: StreamResult, done: int) -> StreamResult:
    """A result of the stream in the positions of the file, of which `done` inputs came before."""
    error = None if result.error is None else moved(result.error, done)
    return replace(result, index=done + result.index, error=error)


def check_apart(source: Path | None, output: Path | None, *, stdin: bool) -> None:
    """Raises BadFile if the output is a directory or the input."""
    if output is None:
        return
    if output.is_dir():
        raise BadFile(f"{output} is a directory")
    if not output.exists():
        return
    same = source.samefile(output) if source else stdin and os.path.samestat(os.fstat(0), output.stat())
    if same:
        raise BadFile(f"{output} is the input as well as the output")


@contextmanager
def _progress(total: int | None, done: int, *, shown: bool) -> Iterator[Progress]:
    columns = (TextColumn("encoding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as bar:
        bar.add_task("", total=total, completed=done)
        yield bar
