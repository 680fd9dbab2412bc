"""Inputs from files, and results into files that an interrupted run can take up again."""

import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol, Self

import numpy as np

from harken_client.errors import HarkenError
from harken_client.source import StreamInput
from harken_client.values import StreamResult


class BadFile(Exception):
    """A file that is not what it should be. The message is one line and names the place."""


def read_inputs(path: Path | None) -> Iterator[StreamInput]:
    """One input for each line of a .txt or .jsonl file, or of standard input as text.

    A line of .jsonl is {"text": "..."} or {"ids": [101, ...]}, with an optional "id".
    Raises BadFile at a line that cannot be read, OSError if the file cannot be opened.
    """
    # Standard input without sys.stdin, whose lock a thread that still reads would hold at the end.
    with open(0, "rb", closefd=False) if path is None else path.open("rb") as file:
        name = "<stdin>" if path is None else str(path)
        parse = _from_json if path is not None and path.suffix == ".jsonl" else _from_text
        for number, line in enumerate(file, 1):
            try:
                yield parse(line.rstrip(b"\r\n").decode("utf-8-sig" if number == 1 else "utf-8"))
            except ValueError as error:
                raise BadFile(f"{name}:{number}: {error}") from error


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
    name = str(record.get("id", ""))
    if "text" in record:
        if not isinstance(record["text"], str):
            raise ValueError('"text" is not a string')
        return name, record["text"]
    ids = record["ids"]
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise ValueError('"ids" is not a list of integers')
    return name, ids


class Sink(Protocol):
    """Takes results in order. `done` inputs were written by the run before, `failed` of them as failures."""

    done: int
    failed: int

    def write(self, result: StreamResult) -> None: ...

    def finish(self) -> None: ...

    def close(self) -> None: ...


def _open_part(path: Path, *, resume: bool) -> tuple[Path, BinaryIO, bool]:
    """FILE.part, which takes the name FILE when it is complete; whether it is one to go on with.

    Raises BadFile if there is nothing to resume because FILE is complete.
    """
    part = path.with_name(path.name + ".part")
    resumed = resume and part.exists()
    if resume and not resumed and path.exists():
        raise BadFile(f"{path} is complete; there is nothing to resume")
    return part, part.open("r+b" if resumed else "w+b"), resumed


def _complete(file: BinaryIO, part: Path, path: Path) -> None:
    file.flush()
    os.fsync(file.fileno())
    os.replace(part, path)


class JsonLines:
    """One JSON object for each input, on one line. A file is FILE.part until it is complete."""

    def __init__(self, file: BinaryIO) -> None:
        """Writes to a file that belongs to somebody else and stays open, such as standard output."""
        self.done = self.failed = 0
        self._file = file
        self._paths: tuple[Path, Path] | None = None

    @classmethod
    def open(cls, path: Path, *, resume: bool) -> Self:
        """Keeps the complete lines of a part that is resumed, and drops the torn one after them.

        Raises BadFile if the file is complete.
        """
        part, file, _ = _open_part(path, resume=resume)
        sink = cls(file)
        sink._paths = part, path
        end = 0
        for line in file:
            if line.endswith(b"\n"):
                sink.done += 1
                # In an id the quotes would be escaped.
                sink.failed += b'"vector": [' not in line
                end += len(line)
        file.seek(end)
        file.truncate()
        return sink

    def write(self, result: StreamResult) -> None:
        record: dict[str, object] = {"index": self.done + result.index}
        if result.id:
            record["id"] = result.id
        if result.encoding is not None:
            record["vector"] = result.encoding.vector.tolist()
            record["tokens"] = result.encoding.tokens
            record["truncated"] = result.encoding.truncated
        else:
            record["error"] = _error_record(result.error)
        self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")

    def finish(self) -> None:
        """Give the file its name."""
        self._file.flush()
        if self._paths is not None:
            _complete(self._file, *self._paths)

    def close(self) -> None:
        if self._paths is None:
            self._file.flush()
        else:
            self._file.close()


def _error_record(error: HarkenError | None) -> dict[str, str]:
    assert error is not None
    return {"code": error.code.name, "reason": error.reason, "message": str(error)}


class NpyRows:
    """A .npy of float32 [inputs, hidden], row by row; an input that failed is a row of NaN.

    Until it is complete it is FILE.part: a header, then the rows. How far it got is its size,
    whatever number of rows the header says, so it needs no other record; a torn row is dropped.
    """

    def __init__(self, path: Path, hidden_size: int, *, resume: bool) -> None:
        """Raises BadFile if the part to resume has rows of another size, or the file is complete."""
        self._path = path
        self._hidden_size = hidden_size
        self._header = _npy_header(0, hidden_size)
        self._row_bytes = 4 * hidden_size
        self._part, self._file, resumed = _open_part(path, resume=resume)
        try:
            self.done = self._repair() if resumed else 0
        except BadFile:
            self._file.close()
            raise
        self.failed = self._failures()
        self._rows = self.done
        self._file.seek(0)
        self._file.write(self._header)
        self._file.seek(0, os.SEEK_END)

    def _repair(self) -> int:
        start = self._file.read(len(self._header))
        if len(start) == len(self._header) and not _is_header_of(start, self._hidden_size):
            raise BadFile(f"{self._part} holds rows of another size than {self._hidden_size}")
        size_bytes = self._part.stat().st_size
        done = max(0, size_bytes - len(self._header)) // self._row_bytes
        self._file.truncate(min(size_bytes, len(self._header) + done * self._row_bytes))
        return done

    def _failures(self) -> int:
        if not self.done:
            return 0
        shape = (self.done, self._hidden_size)
        rows = np.memmap(self._part, "<f4", mode="r", offset=len(self._header), shape=shape)
        return int(np.isnan(rows[:, 0]).sum())

    def write(self, result: StreamResult) -> None:
        failed = result.encoding is None
        row = np.full(self._hidden_size, np.nan, np.float32) if failed else result.vector
        self._file.write(row.tobytes())
        self._rows += 1

    def finish(self) -> None:
        """Say in the header how many rows there are, and give the file its name."""
        self._file.seek(0)
        self._file.write(_npy_header(self._rows, self._hidden_size))
        _complete(self._file, self._part, self._path)

    def close(self) -> None:
        self._file.close()


def _npy_header(rows: int, hidden_size: int) -> bytes:
    """numpy pads its headers so that the number of rows can grow in place: all are of one length."""
    header = io.BytesIO()
    description = {"descr": "<f4", "fortran_order": False, "shape": (rows, hidden_size)}
    np.lib.format.write_array_header_1_0(header, description)
    return header.getvalue()


def _is_header_of(start: bytes, hidden_size: int) -> bool:
    header = io.BytesIO(start)
    try:
        if np.lib.format.read_magic(header) != (1, 0):
            return False
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(header)
    except ValueError:
        return False
    return len(shape) == 2 and shape[1] == hidden_size and dtype == np.dtype("<f4") and not fortran_order


def count_lines(path: Path) -> int:
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
