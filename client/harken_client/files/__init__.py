"""Inputs from files, and results into files that an interrupted run can take up again.

Parquet needs the extra `parquet`; nothing else here imports pyarrow.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from harken_client.files.base import BadFile, Inputs, Sink
from harken_client.files.inputs import from_lines, from_texts
from harken_client.files.jsonl import JsonLines
from harken_client.files.lock import only_run
from harken_client.files.npy import NpyRows
from harken_client.files.part import Run

INPUT_SUFFIXES = (".txt", ".jsonl", ".parquet")
OUTPUT_SUFFIXES = (".npy", ".jsonl", ".parquet")

__all__ = [
    "INPUT_SUFFIXES",
    "OUTPUT_SUFFIXES",
    "BadFile",
    "Inputs",
    "Run",
    "Sink",
    "from_texts",
    "only_run",
    "open_inputs",
    "open_sink",
]


def open_inputs(path: Path | None, *, column: str = "", id_column: str = "") -> Inputs:
    """What is in a file by its suffix, or in standard input as text. The columns are of .parquet only.

    Raises BadFile if it is not what its suffix says, or lacks the column; OSError if it cannot be read.
    """
    if path is None or path.suffix != ".parquet":
        return from_lines(path)
    with _pyarrow():
        from harken_client.files.parquet_inputs import from_parquet  # noqa: PLC0415 - only who needs it has pyarrow
    return from_parquet(path, column=column, id_column=id_column)


def open_sink(path: Path | None, stdout: BinaryIO, run: Run, *, width: int, id_type: str, resume: bool) -> Sink:
    """By the suffix of the output; JSON lines on `stdout` without one. `width` is the length of a vector.

    Raises BadFile if there is nothing to resume, or another run left it.
    """
    if path is None:
        return JsonLines(stdout)
    if path.suffix == ".npy":
        return NpyRows(path, run, width, resume=resume)
    if path.suffix == ".jsonl":
        return JsonLines.open(path, run, resume=resume)
    with _pyarrow():
        from harken_client.files.parquet import ParquetRows  # noqa: PLC0415 - as above
    return ParquetRows(path, run, width, id_type=id_type, resume=resume)


@contextmanager
def _pyarrow() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise BadFile("Parquet needs pyarrow: pip install 'harken[parquet]'") from error
