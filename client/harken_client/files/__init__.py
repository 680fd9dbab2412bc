"""Inputs from files, and results into files that an interrupted run can take up again."""

from pathlib import Path
from typing import BinaryIO

from harken_client.files.base import BadFile, Inputs, Sink
from harken_client.files.inputs import from_lines, from_texts
from harken_client.files.jsonl import JsonLines
from harken_client.files.npy import NpyRows
from harken_client.files.part import Run

INPUT_SUFFIXES = (".txt", ".jsonl")
OUTPUT_SUFFIXES = (".npy", ".jsonl")

__all__ = [
    "INPUT_SUFFIXES",
    "OUTPUT_SUFFIXES",
    "BadFile",
    "Inputs",
    "Run",
    "Sink",
    "from_lines",
    "from_texts",
    "open_sink",
]


def open_sink(path: Path | None, stdout: BinaryIO, run: Run, *, width: int, resume: bool) -> Sink:
    """By the suffix of the output; JSON lines on `stdout` without one. `width` is the length of a vector.

    Raises BadFile if there is nothing to resume, or another run left it.
    """
    if path is None:
        return JsonLines(stdout)
    if path.suffix == ".npy":
        return NpyRows(path, run, width, resume=resume)
    return JsonLines.open(path, run, resume=resume)
