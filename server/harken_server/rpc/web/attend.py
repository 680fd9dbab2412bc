"""POST /v1/attend: Attend as one JSON document, for pages; a page asks for the maps that it shows."""

import asyncio
import base64
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson
from starlette.requests import Request
from starlette.types import ASGIApp

from harken_server.attend import Attend, Attended, largest
from harken_server.errors import AnswerTooLarge, BadValue, InvalidRequest, NoContent, Problem
from harken_server.execution.reductions import LINK_WEIGHTS, LINKS, Sizes, Wish
from harken_server.models.tokenizer import Tokens
from harken_server.rpc.attend import names_of, options_of, wish_of
from harken_server.rpc.calls import Call
from harken_server.rpc.fields import without_kinds
from harken_server.rpc.web.exchange import Exchanges, Form, Reply, parse_json, shown, to_json, unknown_names
from harken_server.rpc.web.inputs import input_of
from harken_server.values import Truncate

_FLAGS: Final = ("maps", "mean", "rollout", "received", "entropy")
_NUMBERS: Final = ("layers", "heads")
_FIELDS: Final = ("model", "version", "input", "other", "truncate", "encoding_format", "top_k", *_NUMBERS, *_FLAGS)
_FORMATS: Final = ("float", "base64")
_TRUNCATES: Final[dict[object, Truncate]] = {
    None: "refuse",
    False: "refuse",
    True: "right",
    "right": "right",
    "left": "left",
}
_MOST: Final = 2**32 - 1

_NUMBER_BYTES: Final = {"float": 16, "base64": 6}
"""Most that a float32 takes in JSON: nine digits, sign, point, exponent and comma; in base64 it is 5.33."""
_PIECE: Final = 16384
"""Numbers that are written at a time: others' requests do not wait for a whole answer."""


class AttendPage:
    """The route. Errors are said in the form of its neighbours below /v1/."""

    def __init__(self, exchanges: Exchanges, door: Attend, form: Form, max_message_bytes: int) -> None:
        self._exchanges: Final = exchanges
        self._door: Final = door
        self._form: Final = form
        self._max_message_bytes: Final = max_message_bytes

    async def attend(self, request: Request) -> ASGIApp:
        """POST /v1/attend."""

        async def work(call: Call, body: bytes) -> Reply:
            return await self._attend(call, parse_json(body))

        return await self._exchanges.answer(request, "POST /v1/attend", self._form, work)

    async def _attend(self, call: Call, body: dict[str, Any]) -> Reply:
        # Null is what is not given.
        given = {name: value for name, value in body.items() if value is not None}
        problems: list[Problem] = unknown_names(given, _FIELDS)
        _check(given, problems)
        if problems:
            raise InvalidRequest(tuple(problems))
        encoding: str = given.get("encoding_format", "float")
        truncate = _TRUNCATES[given.get("truncate")]
        calls, door = self._exchanges.calls, self._door
        model = door.service.find(given.get("model", ""), given.get("version", 0))
        call.model = model.manifest.name
        options = options_of(call, truncate)
        door.check(model, options, call.deadline, calls.clock(), "other" in given)
        flags = {name: given.get(name, False) for name in _FLAGS}
        asked = Wish((), (), **flags, top_k=given.get("top_k", 0))
        wish = wish_of(model.manifest, given.get("layers", ()), given.get("heads", ()), asked)
        names = [name for name in ("input", "other") if name in given]
        longest = door.service.max_length
        inputs = [input_of(given[name], name, longest, truncate == "left") for name in names]

        def check_sizes(sizes: Sizes) -> None:
            size_bytes = sum(sizes.values()) * _NUMBER_BYTES[encoding]
            if size_bytes > self._max_message_bytes:
                field = largest(sizes, names)
                raise InvalidRequest((AnswerTooLarge(field, size_bytes, self._max_message_bytes, maps=True),))

        started_s = calls.clock()
        try:
            async with door.answer(
                model, options, wish, inputs, names, call.deadline, started_s, check_sizes
            ) as attended:
                content = await _content(attended, encoding)
                calls.attended(call, attended)
        except InvalidRequest as invalid:
            raise without_kinds(invalid) from None
        return Reply(content)


def _check(given: dict[str, Any], problems: list[Problem]) -> None:
    """Adds what is wrong with each field by itself."""
    if "input" not in given:
        problems.append(NoContent("input"))
    odd = [name for name in _FLAGS if type(given.get(name, False)) is not bool]
    problems += [BadValue(name, shown(given[name]), "true or false") for name in odd]
    for name in ("version", "top_k"):
        number = given.get(name, 0)
        if type(number) is not int or not 0 <= number <= _MOST:
            problems.append(BadValue(name, shown(number), f"a whole number from 0 to {_MOST}"))
    for name in _NUMBERS:
        numbers = given.get(name, [])
        if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
            problems.append(BadValue(name, shown(numbers), "a list of whole numbers, counted from 0"))
    if not isinstance(given.get("model", ""), str):
        problems.append(BadValue("model", shown(given["model"]), "the name of a model"))
    encoding = given.get("encoding_format", "float")
    if not isinstance(encoding, str) or encoding not in _FORMATS:
        problems.append(BadValue("encoding_format", shown(encoding), f"one of {', '.join(_FORMATS)}"))
    truncate = given.get("truncate")
    if not isinstance(truncate, str | bool | None) or truncate not in _TRUNCATES:
        problems.append(BadValue("truncate", shown(truncate), "true, false, right or left"))


async def _content(attended: Attended, encoding: str) -> bytes:
    manifest, wish, told = attended.model.manifest, attended.wish, attended.told
    fields: dict[str, bytes] = {
        "model": to_json(manifest.name),
        "version": to_json(manifest.version),
        "layers": to_json(wish.layers),
        "heads": to_json(wish.heads),
    }
    for name, tokens in zip(("input", "other"), attended.texts, strict=False):
        fields[name] = to_json(_text(tokens, names_of(attended, tokens)))
    for name, array in told.items():
        if name not in (LINKS, LINK_WEIGHTS):
            fields[name] = await _array(array, encoding)
    if LINKS in told:
        # Positions are positions, whatever the form of numbers.
        tokens_json, weights_json = await _numbers(told[LINKS]), await _array(told[LINK_WEIGHTS], encoding)
        fields[LINKS] = b'{"tokens":' + tokens_json + b',"weights":' + weights_json + b"}"
    if attended.contributions is not None:
        fields["similarity"] = to_json(attended.similarity)
        fields["contributions"] = await _array(attended.contributions, encoding)
    return b"{" + b",".join(to_json(name) + b":" + value for name, value in fields.items()) + b"}"


def _text(tokens: Tokens, names: list[str]) -> dict[str, Any]:
    text: dict[str, Any] = {"tokens": names, "ids": tokens.ids, "truncated": tokens.full_length > len(tokens.ids)}
    if tokens.places is not None:
        text["offsets"] = np.ascontiguousarray(tokens.places)
    return text


async def _array(array: npt.NDArray[Any], encoding: str) -> bytes:
    """Nested lists; or {"shape": [...], "data": float32 little-endian in base64}."""
    if encoding == "float":
        return await _numbers(array)
    raw = np.ascontiguousarray(array, "<f4").reshape(-1).view(np.uint8)
    step = 12 * _PIECE  # of threes, so that pieces need no padding between them
    pieces = []
    for start in range(0, len(raw), step):
        pieces.append(base64.b64encode(raw[start : start + step].data))
        await asyncio.sleep(0)
    return b'{"shape":' + to_json(array.shape) + b',"data":"' + b"".join(pieces) + b'"}'


async def _numbers(array: npt.NDArray[Any]) -> bytes:
    if array.size <= _PIECE or array.ndim == 1:
        await asyncio.sleep(0)
        return orjson.dumps(np.ascontiguousarray(array), option=orjson.OPT_SERIALIZE_NUMPY)
    return b"[" + b",".join([await _numbers(part) for part in array]) + b"]"
