"""Tensors as they travel to rows: of token ids, of a mask, of texts. Each raises InvalidRequest."""

import struct
from math import prod
from typing import Final, NoReturn

import numpy as np
import numpy.typing as npt

from harken_server.errors import (
    BadMask,
    BadValue,
    InvalidRequest,
    NotUtf8,
    Problem,
    ShapeDisagrees,
    TooMany,
    WrongDatatype,
    WrongShape,
)
from harken_server.rpc.oip.values import InputTensor

_Integer = np.dtype[np.int64] | np.dtype[np.int32]
INTEGERS: Final[dict[str, _Integer]] = {"INT64": np.dtype("<i8"), "INT32": np.dtype("<i4")}
TEXT: Final = "BYTES"

_LENGTH: Final = struct.Struct("<I")


def integers(tensor: InputTensor, most_rows: int) -> npt.NDArray[np.int64]:
    """int64 [B, L] of a tensor that is INT64 or INT32 [B, L], B at least 1 and at most `most_rows`."""
    dtype = INTEGERS.get(tensor.datatype)
    if dtype is None:
        _refuse(WrongDatatype(f"{tensor.field}.datatype", tensor.datatype, tuple(INTEGERS)))
    shape = tensor.shape
    if len(shape) != 2 or min(shape) < 0:
        _refuse(WrongShape(f"{tensor.field}.shape", shape, "[batch, length]"))
    _check_rows(tensor, most_rows)
    if isinstance(tensor.content, bytes):
        if len(tensor.content) != prod(shape) * dtype.itemsize:
            _refuse(ShapeDisagrees(tensor.content_field, shape, len(tensor.content), "bytes"))
        flat: npt.NDArray[np.signedinteger] = np.frombuffer(tensor.content, dtype)
    else:
        if len(tensor.content) != prod(shape):
            _refuse(ShapeDisagrees(tensor.content_field, shape, len(tensor.content), "elements"))
        flat = _array(tensor, dtype)
    rows: npt.NDArray[np.int64] = flat.reshape(shape).astype(np.int64, copy=False)
    return rows


def texts(tensor: InputTensor, most_rows: int) -> list[str]:
    """The texts of a tensor that is BYTES [B] or [B, 1], B at least 1 and at most `most_rows`."""
    if tensor.datatype != TEXT:
        _refuse(WrongDatatype(f"{tensor.field}.datatype", tensor.datatype, (TEXT,)))
    shape = tensor.shape
    if not 1 <= len(shape) <= 2 or min(shape) < 0 or shape[1:] not in ((), (1,)):
        _refuse(WrongShape(f"{tensor.field}.shape", shape, "[batch] or [batch, 1]"))
    _check_rows(tensor, most_rows)
    elements = _split(tensor) if isinstance(tensor.content, bytes) else tensor.content
    if len(elements) != prod(shape):
        _refuse(ShapeDisagrees(tensor.content_field, shape, len(elements), "elements"))
    decoded: list[str] = []
    problems: list[Problem] = []
    for index, element in enumerate(elements):
        field = f"{tensor.content_field}[{index}]"
        try:
            decoded.append(_text(element, field))
        except UnicodeError:
            problems.append(NotUtf8(field))
    if problems:
        raise InvalidRequest(tuple(problems[:16]))
    return decoded


def real_tokens(mask: InputTensor, ids_shape: tuple[int, ...], most_rows: int) -> list[slice]:
    """Of each row, where its real tokens stand: a run of ones, with zeros before or after it."""
    if mask.shape != ids_shape:
        _refuse(WrongShape(f"{mask.field}.shape", mask.shape, f"{list(ids_shape)} as that of input_ids"))
    values = integers(mask, most_rows)
    wrong = ((values != 0) & (values != 1)).any(axis=1)
    if wrong.any():
        _refuse(BadMask(mask.content_field, int(wrong.argmax()), "value"))
    counts = values.sum(axis=1)
    if not counts.all():
        _refuse(BadMask(mask.content_field, int((counts == 0).argmax()), "empty"))
    first = values.argmax(axis=1)
    last = values.shape[1] - values[:, ::-1].argmax(axis=1)
    holes = last - first != counts
    if holes.any():
        _refuse(BadMask(mask.content_field, int(holes.argmax()), "holes"))
    return [slice(int(begin), int(end)) for begin, end in zip(first, last, strict=True)]


def _check_rows(tensor: InputTensor, most_rows: int) -> None:
    rows = tensor.shape[0]
    if rows > most_rows:
        _refuse(TooMany(f"{tensor.field}.shape", rows, most_rows))
    if not rows:
        _refuse(WrongShape(f"{tensor.field}.shape", tensor.shape, "one of at least one row"))


def _array(tensor: InputTensor, dtype: _Integer) -> npt.NDArray[np.signedinteger]:
    """Elements to an array. JSON has numbers of any size and kind; protobuf has those of the datatype's own."""
    try:
        given = np.array(tensor.content)
        if given.dtype.kind in "iu" or not given.size:
            limits = np.iinfo(dtype)
            if not given.size or (given.min() >= limits.min and given.max() <= limits.max):
                return given.astype(dtype)
    except (ValueError, OverflowError):
        pass
    wrong = next((one for one in tensor.content if type(one) is not int or abs(one) >= 1 << 31), tensor.content[0])
    _refuse(BadValue(tensor.content_field, _shown(wrong), f"an integer of {tensor.datatype}"))


def _split(tensor: InputTensor) -> list[bytes]:
    """The elements of BYTES in its raw form; no more of them than the shape says are read."""
    raw = tensor.content
    assert isinstance(raw, bytes)
    elements: list[bytes] = []
    position = 0
    while position < len(raw) and len(elements) < prod(tensor.shape):
        end = position + _LENGTH.size
        if end > len(raw):
            break
        (size_bytes,) = _LENGTH.unpack_from(raw, position)
        position = end + size_bytes
        elements.append(raw[end:position])
    if position != len(raw):
        _refuse(ShapeDisagrees(tensor.content_field, tensor.shape, len(raw), "bytes"))
    return elements


def _text(element: object, field: str) -> str:
    match element:
        case bytes():
            return element.decode()
        case str():
            element.encode()  # JSON can escape halves of characters, which are no text
            return element
        case _:
            _refuse(BadValue(field, _shown(element), "a text"))


def _refuse(problem: Problem) -> NoReturn:
    raise InvalidRequest((problem,))


def _shown(element: object) -> str:
    """Briefly: JSON may have anything in place of an element, of any size and depth."""
    if isinstance(element, str):
        return repr(element[:80])
    return repr(element) if isinstance(element, int | float | None) else f"{type(element).__name__}"
