"""Results as lines of JSON."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO, Self

from harken_client.errors import HarkenError
from harken_client.files.part import Part, Run
from harken_client.values import StreamResult


class JsonLines:
    """One JSON object for each input, on one line. A file is FILE.part until it is complete."""

    def __init__(self, file: BinaryIO) -> None:
        """Writes to a file that belongs to somebody else and stays open, such as standard output."""
        self.done = self.failed = 0
        self._file = file
        self._part: Part | None = None

    @classmethod
    def open(cls, path: Path, run: Run, *, resume: bool) -> Self:
        """Keeps the complete lines of a part that is resumed, and drops the torn one after them.

        Raises BadFile if the file is complete, or another run left the part.
        """
        part = Part(path)
        part.begin(run, resume=resume)
        file = part.rows.open("r+b")
        sink = cls(file)
        sink._part = part
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
        record: dict[str, object] = {"index": result.index}
        if result.id:
            record["id"] = result.id
        if result.encoding is not None:
            record["vector"] = result.encoding.vector.tolist()
            record["tokens"] = result.encoding.tokens
            record["truncated"] = result.encoding.truncated
            if result.encoding.chunks:
                record["chunks"] = [asdict(chunk) for chunk in result.encoding.chunks]
        else:
            record["error"] = error_record(result.error)
        self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")

    def finish(self) -> None:
        """Give the file its name."""
        self._file.flush()
        if self._part is not None:
            self._part.finish(self._file)

    def close(self) -> None:
        if self._part is None:
            self._file.flush()
        else:
            self._file.close()


def error_record(error: HarkenError | None) -> dict[str, str]:
    """How a failure stands in a file."""
    assert error is not None
    # A path that is no UTF-8 may stand in it.
    message = str(error).encode(errors="backslashreplace").decode()
    return {"code": error.code.name, "reason": error.reason, "message": message}
