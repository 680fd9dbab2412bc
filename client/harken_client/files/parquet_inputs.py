"""Inputs that are a column of a Parquet file."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from harken_client.files.base import BadFile, Inputs, edges_sha256
from harken_client.source import StreamInput

# Rows decoded at a time: as many as are in flight.
_BATCH_ROWS = 256
# A row group may be the whole file, so its pages are read as they are needed.
_BUFFER_BYTES = 1 << 20
# The length of the footer, and the format's name.
_TAIL_BYTES = 8
# pyarrow names the file in none of them.
_UNREADABLE = (ValueError, OSError, pa.ArrowException)


def from_parquet(path: Path, *, column: str = "", id_column: str = "") -> Inputs:
    """One input for each row: a string is a text, a list of integers token ids, a null an input that fails.

    Without `column` it is `text`, else `ids`, else the only column of strings, else the only one of
    lists of integers. Raises BadFile if that, or a column that is named, is not there or of another type.
    """
    if not path.is_file():
        raise BadFile(f"{path} is {'no regular file' if path.exists() else 'not there'}")
    with _open(path) as file:
        schema, total = file.schema_arrow, file.metadata.num_rows
    fields = [field for field in schema if not id_column or field.name != id_column]
    column = column or _default(path, fields)
    _checked(path, schema, column, _is_input, "strings or lists of integers")
    id_type = ""
    if id_column:
        id_type = _checked(path, schema, id_column, _is_id, "strings or integers")
    read = partial(_read, path, column, id_column)
    return Inputs(read, total, path.stat().st_size, _sha256(path), column, id_column, id_type)


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, buffer_size=_BUFFER_BYTES)
    except _UNREADABLE as error:
        raise BadFile(f"{path}: {error}") from error


def _sha256(path: Path) -> str:
    """The footer is in it, with the columns' sizes; alone it is the same for texts of one length, extremes aside."""
    with path.open("rb") as file:
        file.seek(-_TAIL_BYTES, os.SEEK_END)
        footer_bytes = int.from_bytes(file.read(4), "little")
    return edges_sha256(path, _TAIL_BYTES + footer_bytes)


def _read(path: Path, column: str, id_column: str, start: int) -> Iterator[StreamInput]:
    with _open(path) as file:
        first = 0
        while first < file.num_row_groups and start >= (rows := file.metadata.row_group(first).num_rows):
            start -= rows
            first += 1
        columns = [column, id_column] if id_column else [column]
        groups = range(first, file.num_row_groups)
        try:
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=groups, columns=columns):
                wanted = batch.slice(start)
                start = max(0, start - batch.num_rows)
                names = wanted[id_column].to_pylist() if id_column else repeat(None)
                for name, value in zip(names, wanted[column].to_pylist(), strict=False):
                    yield ("" if name is None else str(name)), value
        except _UNREADABLE as error:
            raise BadFile(f"{path}: column {column!r}: {error}") from error


def _default(path: Path, fields: list[pa.Field]) -> str:
    for named in ("text", "ids"):
        if any(field.name == named for field in fields):
            return named
    for fits in (_is_text, _is_token_ids):
        names = [field.name for field in fields if fits(field.type)]
        if len(names) == 1:
            return str(names[0])
    if not (fitting := [field for field in fields if _is_input(field.type)]):
        raise BadFile(f"{path} has no column of strings or lists of integers, but {_told(fields)}")
    raise BadFile(f"{path} has several columns that could be meant: say --column, one of {_told(fitting)}")


def _checked(path: Path, schema: pa.Schema, name: str, fits: Callable[[Any], bool], wanted: str) -> str:
    """Arrow's name of the column's type, where it is a column once and of a type that fits."""
    found = schema.get_all_field_indices(name)
    if len(found) != 1:
        raise BadFile(f"{path} has {len(found)} columns named {name!r}, not one: {_told(list(schema))}")
    kind = schema.field(found[0]).type
    if not fits(kind):
        raise BadFile(f"{path}: column {name!r} is {kind}, not {wanted}")
    return "string" if types.is_dictionary(kind) or types.is_string_view(kind) else str(kind)


def _told(fields: list[pa.Field]) -> str:
    names = [f"{field.name!r} ({field.type})" for field in fields]
    return ", ".join(names[:16]) + (f" and {len(names) - 16} more" if len(names) > 16 else "")


def _is_text(kind: pa.DataType) -> bool:
    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_token_ids(kind: pa.DataType) -> bool:
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(is_list and types.is_integer(kind.value_type))


def _is_input(kind: pa.DataType) -> bool:
    return _is_text(kind) or _is_token_ids(kind)


def _is_id(kind: pa.DataType) -> bool:
    return _is_text(kind) or bool(types.is_integer(kind))
