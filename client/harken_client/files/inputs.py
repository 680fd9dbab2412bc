"""Inputs that are lines: .txt, .jsonl and standard input."""

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

from harken_client.checks import checked_text
from harken_client.files.base import Inputs, edges_sha256
from harken_client.source import StreamInput, Unreadable


def from_texts(texts: Sequence[str]) -> Inputs:
    """The texts themselves."""
    return Inputs(lambda start: iter(texts[start:]), total=len(texts))


def from_lines(path: Path | None) -> Inputs:
    """One input for each line of a .txt or .jsonl file, or of standard input as text.

    A line of .jsonl is {"text": "..."} or {"ids": [101, ...]}, with an optional "id". A line that is not what it
    should be is an input that fails. Raises OSError if the file cannot be read.
    """
    # A pipe gives its lines only once.
    lasting = path is not None and not path.is_fifo()
    return Inputs(
        partial(_read, path),
        total=_count_lines(path) if path is not None and lasting else None,
        size_bytes=path.stat().st_size if path is not None and lasting else None,
        sha256=edges_sha256(path) if path is not None and lasting else "",
        id_type="string" if _is_json(path) else "",
    )


def _is_json(path: Path | None) -> bool:
    return path is not None and path.suffix == ".jsonl"


def _read(path: Path | None, start: int) -> Iterator[StreamInput]:
    # Standard input without sys.stdin, whose lock a thread that still reads would hold at the end.
    with open(0, "rb", closefd=False) if path is None else path.open("rb") as file:
        name = "<stdin>" if path is None else str(path)
        parse = _from_json if _is_json(path) else _from_text
        for number, line in enumerate(file, 1):
            if number <= start:
                continue
            try:
                yield parse(line.rstrip(b"\r\n").decode("utf-8-sig" if number == 1 else "utf-8"))
            except ValueError as error:
                yield Unreadable(f"{name}:{number}: {error}")


def _from_text(line: str) -> StreamInput:
    return line


def _from_json(line: str) -> StreamInput:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error
    if not isinstance(record, dict) or ("text" in record) == ("ids" in record):
        raise ValueError('not an object with either "text" or "ids"')
    name = checked_text('"id"', str(record.get("id", "")))
    if "text" in record:
        if not isinstance(record["text"], str):
            raise ValueError('"text" is not a string')
        return name, record["text"]
    ids = record["ids"]
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise ValueError('"ids" is not a list of integers')
    return name, ids


def _count_lines(path: Path) -> int:
    """Lines of a file, the last one with or without its end."""
    lines, last = 0, b"\n"
    with path.open("rb") as file:
        for chunk in _chunks(file):
            lines += chunk.count(b"\n")
            last = chunk
    return lines + (not last.endswith(b"\n"))


def _chunks(file: BinaryIO) -> Iterable[bytes]:
    while chunk := file.read(1 << 20):
        yield chunk
