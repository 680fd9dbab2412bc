"""Results as the rows of one numpy array."""

import io
import os
from pathlib import Path

import numpy as np

from harken_client.files.part import Part, Run
from harken_client.values import StreamResult


class NpyRows:
    """A .npy of float32 [inputs, width], row by row; an input that failed is a row of NaN.

    Until it is complete it is FILE.part: a header, then the rows. How far it got is its size,
    whatever number of rows the header says, so it needs no other record; a torn row is dropped.
    """

    def __init__(self, path: Path, run: Run, width: int, *, resume: bool) -> None:
        """Raises BadFile if the file is complete, or another run left the part."""
        self._part = Part(path)
        self._width = width
        self._header = _npy_header(0, width)
        self._row_bytes = 4 * width
        self._part.begin(run, resume=resume)
        self._file = self._part.rows.open("r+b")
        self.done = self._repair()
        self.failed = self._failures()
        self._rows = self.done
        self._file.seek(0)
        self._file.write(self._header)
        self._file.seek(0, os.SEEK_END)

    def _repair(self) -> int:
        size_bytes = self._part.rows.stat().st_size
        done = max(0, size_bytes - len(self._header)) // self._row_bytes
        self._file.truncate(min(size_bytes, len(self._header) + done * self._row_bytes))
        return done

    def _failures(self) -> int:
        if not self.done:
            return 0
        shape = (self.done, self._width)
        rows = np.memmap(self._part.rows, "<f4", mode="r", offset=len(self._header), shape=shape)
        return int(np.isnan(rows[:, 0]).sum())

    def write(self, result: StreamResult) -> None:
        failed = result.encoding is None
        row = np.full(self._width, np.nan, np.float32) if failed else result.vector
        self._file.write(row.tobytes())
        self._rows += 1

    def finish(self) -> None:
        """Say in the header how many rows there are, and give the file its name."""
        self._file.seek(0)
        self._file.write(_npy_header(self._rows, self._width))
        self._part.finish(self._file)

    def close(self) -> None:
        self._file.close()


def _npy_header(rows: int, width: int) -> bytes:
    """numpy pads its headers so that the number of rows can grow in place: all are of one length."""
    header = io.BytesIO()
    description = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
    np.lib.format.write_array_header_1_0(header, description)
    return header.getvalue()
