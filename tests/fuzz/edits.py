"""JSON that is nearly right: edits of a value, as bytes say. Random bytes hardly ever get past a parser."""

import copy
import json
from collections.abc import Iterator
from typing import Any, Final

_VALUES: Final[tuple[Any, ...]] = (
    None, True, False, 0, 1, -1, 2, 16, 999, 1000, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1, -(1 << 63), 1.5, 1e300,
    float("nan"), float("inf"), "", "a", "\0", "1", "tiny", "\u0416\U0001f600", "[UNK]", "mean", "left", "INT32",
    "BYTES", "attention_mask", "text", [], {}, [[]], [1, 2], ["a"], {"a": 1}, [None], [{"id": 1}],
)  # fmt: skip
_EDIT_BYTES: Final = 4


def edited(value: Any, data: bytes) -> bytes:
    """The JSON of a changed copy. Each edit is four bytes: which element, what is done to it, and with which value."""
    value = [copy.deepcopy(value)]
    for start in range(0, len(data) - _EDIT_BYTES + 1, _EDIT_BYTES):
        places = list(_places(value))
        container, key = places[int.from_bytes(data[start : start + 2], "big") % len(places)]
        _edit(container, key, data[start + 2], data[start + 3], places)
        if not value:
            break
    return json.dumps(value[0] if value else None).encode()


def _edit(container: Any, key: Any, act: int, which: int, places: list[tuple[Any, Any]]) -> None:
    match act % 4:
        case 0 | 1:
            container[key] = copy.deepcopy(_VALUES[which % len(_VALUES)])
        case 2:
            del container[key]
        case _:
            other, other_key = places[which % len(places)]
            container[key] = copy.deepcopy(other[other_key])


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])
