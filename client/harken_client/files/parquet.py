"""Results as the rows of a Parquet file."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from harken_client.files.jsonl import error_record
from harken_client.files.part import Part, Run, remove, sync
from harken_client.values import StreamResult

# Of these rows those that are not yet a file are encoded again after a kill, and all of them are held in memory.
GROUP_ROWS = 4096
_ERROR = pa.struct([("code", pa.string()), ("reason", pa.string()), ("message", pa.string())])


class ParquetRows:
    """One row for each input: `id` if there are ids, `index`, `vector`, `tokens`, `truncated`, `error`.

    A Parquet file can be read only once its end is written. So FILE.part is a folder of files of up
    to 4096 rows, each named by the index of its first row, and each whole: it is renamed into place.
    In the end they are joined, a row group of each:

        join     FILE.part/joined is written        the files are still there: it is joined again
        commit   FILE.part/joined becomes FILE.joined      from here on the run is complete
        settle   FILE.part goes, FILE.joined becomes FILE, FILE.part.json goes

    What a kill left to settle is settled at the next start.
    """

    def __init__(self, path: Path, run: Run, width: int, *, id_type: str, resume: bool) -> None:
        """`width` is the length of a vector; `id_type` what Arrow calls the type of the ids, "" without ids.

        Raises BadFile if the file is complete, or another run left the part.
        """
        self._part = Part(path)
        self._joined = path.with_name(path.name + ".joined")
        if self._joined.exists():
            self._settle()
        self._part.begin(run, resume=resume, folder=True)
        self._width = width
        # Whose vectors they are can be read in the file.
        self._schema = _schema(width, id_type).with_metadata({"harken": run.json()})
        self._waiting: list[StreamResult] = []
        self.done = self.failed = 0
        for group in self._groups():
            self.done += group.metadata.num_rows
            self.failed += _failures(group.metadata)
        self._written = self.done

    def write(self, result: StreamResult) -> None:
        self._waiting.append(result)
        if len(self._waiting) == GROUP_ROWS:
            self._write_group()

    def finish(self) -> None:
        """Join the groups, and give the file its name."""
        self._write_group()
        unfinished = self._part.rows / "joined"
        with unfinished.open("wb") as file:
            with _writer(file, self._schema) as writer:
                for group in self._groups():
                    writer.write_table(group.read())
            sync(file)
        os.replace(unfinished, self._joined)
        self._settle()

    def close(self) -> None:
        self._write_group()

    def _settle(self) -> None:
        remove(self._part.rows)
        os.replace(self._joined, self._part.path)
        self._part.record.unlink(missing_ok=True)

    def _groups(self) -> Iterator[pq.ParquetFile]:
        start = 0
        while (path := self._group_at(start)).exists():
            with pq.ParquetFile(path) as group:
                yield group
                start += group.metadata.num_rows

    def _group_at(self, start: int) -> Path:
        return self._part.rows / f"{start:012}.parquet"

    def _write_group(self) -> None:
        if not self._waiting:
            return
        unfinished = self._part.rows / "group"
        with unfinished.open("wb") as file:
            with _writer(file, self._schema) as writer:
                writer.write_table(self._table(self._waiting))
            sync(file)
        os.replace(unfinished, self._group_at(self._written))
        self._written += len(self._waiting)
        self._waiting = []

    def _table(self, results: list[StreamResult]) -> pa.Table:
        vectors = np.zeros((len(results), self._width), np.float32)
        for row, result in zip(vectors, results, strict=True):
            if result.encoding is not None:
                row[:] = result.encoding.vector
        encodings = [result.encoding for result in results]
        failed = pa.array([encoding is None for encoding in encodings])
        columns = {
            "index": [result.index for result in results],
            "vector": pa.FixedSizeListArray.from_arrays(vectors.ravel(), self._width, mask=failed),
            "tokens": [encoding and encoding.tokens for encoding in encodings],
            "truncated": [encoding and encoding.truncated for encoding in encodings],
            "error": [result.error and error_record(result.error) for result in results],
        }
        if "id" in self._schema.names:
            ids = pa.array([result.id or None for result in results], pa.string())
            columns["id"] = ids.cast(self._schema.field("id").type)
        return pa.table(columns, self._schema)


def _schema(width: int, id_type: str) -> pa.Schema:
    fields = [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("vector", pa.list_(pa.float32(), width)),
        pa.field("tokens", pa.int32()),
        pa.field("truncated", pa.bool_()),
        pa.field("error", _ERROR),
    ]
    return pa.schema([pa.field("id", pa.type_for_alias(id_type)), *fields] if id_type else fields)


def _writer(file: object, schema: pa.Schema) -> pq.ParquetWriter:
    # Vectors hardly shrink and their extremes tell nothing; how many errors are null is asked for at a resume.
    return pq.ParquetWriter(
        file, schema, compression="zstd", use_dictionary=False, write_statistics=["id", "index", "error.code"]
    )


def _failures(metadata: pq.FileMetaData) -> int:
    """Rows whose error is not null, by the statistics alone."""
    statistics = metadata.row_group(0).column(metadata.schema.names.index("code")).statistics
    return int(metadata.num_rows - statistics.null_count)
