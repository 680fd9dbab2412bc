"""FILE.part, where an output grows until it is complete, and FILE.part.json, which tells the run that fills it.

The process may be killed between any two steps:

    begin    make FILE.part, then FILE.part.json         FILE.part alone counts for nothing
    finish   FILE.part becomes FILE, FILE.part.json goes  FILE.part.json alone says nothing more
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from harken_client.files.base import BadFile


@dataclass(frozen=True, slots=True)
class Run:
    """All that decides what a run writes. A part is resumed only by a run that is equal."""

    model: str
    version: int
    bundle_sha256: str
    output: str
    truncate: bool
    dimensions: int | None
    normalize: bool | None
    pooling: str | None
    chunk: str | None
    overlap_tokens: int
    input_bytes: int | None
    input_sha256: str
    column: str
    id_column: str

    def json(self) -> str:
        return json.dumps(asdict(self))


class Part:
    """The two files beside the output."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = path.with_name(path.name + ".part")
        self.record = path.with_name(path.name + ".part.json")

    def begin(self, run: Run, *, resume: bool, folder: bool = False) -> bool:
        """Whether there are rows to go on with; otherwise `rows` is made, an empty file or a folder.

        Raises BadFile if there is nothing to resume because FILE is complete, or if another run left the part.
        """
        if resume and self.path.exists() and not self.rows.exists():
            self.record.unlink(missing_ok=True)
            raise BadFile(f"{self.path} is complete; there is nothing to resume")
        if resume and self.rows.exists() and (left := self._left()):
            self._check_equal(left, asdict(run))
            return True
        self.record.unlink(missing_ok=True)
        remove(self.rows)
        if folder:
            self.rows.mkdir()
        else:
            self.rows.touch()
        self.record.write_text(run.json() + "\n", encoding="utf-8")
        return False

    def _left(self) -> dict[str, object]:
        """What the run before wrote of itself; nothing where it was killed before it had."""
        try:
            left = json.loads(self.record.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return left if isinstance(left, dict) else {}

    def _check_equal(self, left: dict[str, object], now: dict[str, object]) -> None:
        others = [name for name, value in now.items() if left.get(name) != value]
        if others:
            then_had, now_has = (", ".join(f"{name}={run.get(name)}" for name in others) for run in (left, now))
            raise BadFile(f"{self.rows} was begun with {then_had}, not {now_has}; without --resume it begins anew")

    def finish(self, file: BinaryIO) -> None:
        """Give `file`, which is `rows`, the name of the output."""
        sync(file)
        os.replace(self.rows, self.path)
        self.record.unlink()


def sync(file: BinaryIO) -> None:
    """A name must not outlive what it names."""
    file.flush()
    os.fsync(file.fileno())


def remove(path: Path) -> None:
    """A file, or a folder and all in it, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
