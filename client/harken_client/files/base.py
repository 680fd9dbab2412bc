"""What all inputs and all outputs have in common."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from harken_client.source import StreamInput
from harken_client.values import StreamResult

_EDGE_BYTES = 1 << 20


class BadFile(Exception):
    """A file that is not what it should be. The message is one line and names the place."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Inputs in order, wherever they come from.

    read         those from a position on, the first is 0; raises BadFile where no more can be read
    total        how many there are, None where that cannot be told
    size_bytes   of the file, None where it has no size
    sha256       of what tells it from others of its size at little cost; "" where it has no size
    column, id_column   of Parquet, else ""
    id_type      what Arrow calls the type of the ids, "" where there are none
    """

    read: Callable[[int], Iterator[StreamInput]]
    total: int | None = None
    size_bytes: int | None = None
    sha256: str = ""
    column: str = ""
    id_column: str = ""
    id_type: str = ""


def edges_sha256(path: Path, least_tail_bytes: int = 0) -> str:
    """Of the first MiB and the last, or of a longer tail: tells most files from others of their size, at no cost.

    Raises OSError.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(_EDGE_BYTES))
        file.seek(max(file.tell(), path.stat().st_size - max(_EDGE_BYTES, least_tail_bytes)))
        digest.update(file.read())
    return digest.hexdigest()


class Sink(Protocol):
    """Takes results in order. `done` inputs were written by the run before, `failed` of them as failures.

    What is closed without `finish` is a part that can be resumed.
    """

    done: int
    failed: int

    def write(self, result: StreamResult) -> None: ...

    def finish(self) -> None: ...

    def close(self) -> None: ...
