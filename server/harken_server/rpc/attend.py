"""Attend: what is asked of attention, and its answer, a summary and then the maps, some rows a message."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Final

import grpc
import numpy as np
import numpy.typing as npt
from harken.v1 import bundle_pb2, encoder_pb2

from harken_server.attend import Attend, Attended
from harken_server.errors import (
    AnswerTooLarge,
    BadValue,
    Expired,
    InvalidRequest,
    NoContent,
    OutOfRange,
    Problem,
    TooMany,
)
from harken_server.execution.engine import TOKENS
from harken_server.execution.reductions import ENTROPY, LINK_WEIGHTS, LINKS, MAPS, MEAN, RECEIVED, ROLLOUT, Sizes, Wish
from harken_server.models.tokenizer import Tokens
from harken_server.rpc.calls import Call, Calls, Context
from harken_server.rpc.convert import input_of, set_float32, set_timings, truncate_of
from harken_server.rpc.wire import parse
from harken_server.scheduling.waiting import Priority
from harken_server.values import Options, Truncate

_PART_BYTES: Final = 256 << 10
"""Of a message of rows or links: so that writing one takes the event loop no time that others would notice."""
_SUMMARY_BYTES: Final = 3 << 20
"""Of the numbers in a summary: with the tokens of two texts it stays below the 4 MiB that gRPC clients take unasked."""


async def attend(
    door: Attend, calls: Calls, call: Call, raw: bytes, context: Context, max_message_bytes: int, max_request_s: float
) -> None:
    """Attend(AttendRequest) -> stream AttendResponse. Raises a Refusal."""
    request = parse(encoder_pb2.AttendRequest, raw, max_message_bytes)
    truncate = truncate_of("truncation", request.truncation)
    model = door.service.find(request.model, request.version)
    call.model = model.manifest.name
    options = options_of(call, truncate)
    pair = request.HasField("other")
    door.check(model, options, call.deadline, calls.clock(), pair)
    if not request.HasField("input"):
        raise InvalidRequest((NoContent("input"),))
    wish = wish_of(
        model.manifest,
        request.layers,
        request.heads,
        Wish((), (), request.maps, request.mean, request.rollout, request.received, request.entropy, request.top_k),
    )
    messages, names = [request.input, *([request.other] if pair else [])], ["input", "other"][: 1 + pair]
    longest = door.service.max_length
    given = [input_of(message, name, longest, truncate) for message, name in zip(messages, names, strict=True)]

    started_s = calls.clock()
    async with door.answer(model, options, wish, given, names, call.deadline, started_s, check_summary) as attended:
        maps, links = list(_maps(attended)), list(_links(attended))
        arrays = [rows for _, rows in maps] + [weights for _, _, weights in links]
        summary = _summary(attended, sum(len(_firsts(rows)) for rows in arrays))
        calls.attended(call, attended)
        try:
            # A client that never reads would keep the memory for ever.
            async with asyncio.timeout(max_request_s):
                await context.write(encoder_pb2.AttendResponse(summary=summary).SerializeToString())
                for of, rows in maps:
                    for first in _firsts(rows):
                        await context.write(_rows_part(of, rows, first))
                for layer, tokens, weights in links:
                    for first in _firsts(weights):
                        await context.write(_links_part(layer, tokens, weights, first))
        except TimeoutError:
            raise Expired(by_cap=True) from None
        except grpc.aio.InternalError:
            # What gRPC makes of a write whose caller is gone.
            raise asyncio.CancelledError from None


def check_summary(sizes: Sizes) -> None:
    """The summary is one message. Raises InvalidRequest if what is told in it would be too large for that."""
    size_bytes = 4 * (sizes.get(RECEIVED, 0) + sizes.get(ENTROPY, 0))
    if size_bytes > _SUMMARY_BYTES:
        raise InvalidRequest((AnswerTooLarge(RECEIVED, size_bytes, _SUMMARY_BYTES, maps=True),))


def options_of(call: Call, truncate: Truncate) -> Options:
    """What an Attend has in common with an Encode."""
    return Options(
        model="",
        version=0,
        outputs=(TOKENS,),
        truncate=truncate,
        priority=Priority.BULK,
        tenant=call.tenant,
        account=call.account,
        flow=call.number,
        trace=call.trace,
        places=True,
    )


def wish_of(manifest: bundle_pb2.Bundle, layers: Sequence[int], heads: Sequence[int], wish: Wish) -> Wish:
    """`wish` of these layers and heads, none given meaning all. Raises InvalidRequest if the model has them not."""
    problems: list[Problem] = []

    def chosen(field: str, given: Sequence[int], there: int) -> tuple[int, ...]:
        if len(given) > there:
            problems.append(TooMany(field, len(given), there))
            return ()
        for index, number in enumerate(given):
            if not 0 <= number < there:
                problems.append(OutOfRange(f"{field}[{index}]", number, 0, there - 1))
            elif number in given[:index]:
                problems.append(BadValue(f"{field}[{index}]", str(number), "given once"))
        return tuple(sorted(given)) or tuple(range(there))

    layers, heads = chosen("layers", layers, manifest.layers), chosen("heads", heads, manifest.heads)
    if problems:
        raise InvalidRequest(tuple(problems))
    return Wish(layers, heads, wish.maps, wish.mean, wish.rollout, wish.received, wish.entropy, wish.top_k)


def _summary(attended: Attended, parts: int) -> encoder_pb2.AttendSummary:
    manifest, wish, told = attended.model.manifest, attended.wish, attended.told
    summary = encoder_pb2.AttendSummary(
        model=manifest.name,
        version=manifest.version,
        layers=wish.layers,
        heads=wish.heads,
        similarity=attended.similarity,
        parts=parts,
    )
    for message, tokens in zip((summary.input, summary.other), attended.texts, strict=False):
        _set_text(message, tokens, names_of(attended, tokens))
    for name, tensor in ((RECEIVED, summary.received), (ENTROPY, summary.entropy)):
        if name in told:
            set_float32(tensor, told[name])
    if attended.stamps is not None:
        set_timings(summary.timings, attended.stamps)
    return summary


def names_of(attended: Attended, tokens: Tokens) -> list[str]:
    """As the model's vocabulary writes them; none where it has no tokenizer."""
    tokenizer = attended.model.tokenizer
    return tokenizer.names(tokens.ids) if tokenizer else []


def _set_text(message: encoder_pb2.AttendedText, tokens: Tokens, names: Sequence[str]) -> None:
    message.tokens.extend(names)
    message.ids.extend(tokens.ids.tolist())
    message.truncated = tokens.full_length > len(tokens.ids)
    if tokens.places is not None:
        message.offsets.starts.extend(tokens.places[:, 0].tolist())
        message.offsets.ends.extend(tokens.places[:, 1].tolist())


def _maps(attended: Attended) -> Iterator[tuple[encoder_pb2.AttentionRows, npt.NDArray[np.float32]]]:
    """Each map with a message that says which it is, in the order of the contract."""
    rows, wish, told = encoder_pb2.AttentionRows, attended.wish, attended.told
    if MAPS in told:
        for layer, heads in zip(wish.layers, told[MAPS], strict=True):
            for head, one in zip(wish.heads, heads, strict=True):
                yield rows(kind=encoder_pb2.MAP_KIND_HEAD, layer=layer, head=head), one
    if MEAN in told:
        for layer, one in zip(wish.layers, told[MEAN], strict=True):
            yield rows(kind=encoder_pb2.MAP_KIND_MEAN, layer=layer), one
    if ROLLOUT in told:
        yield rows(kind=encoder_pb2.MAP_KIND_ROLLOUT), told[ROLLOUT]
    if attended.contributions is not None:
        yield rows(kind=encoder_pb2.MAP_KIND_SIMILARITY), attended.contributions


def _links(attended: Attended) -> Iterator[tuple[int, npt.NDArray[np.uint32], npt.NDArray[np.float32]]]:
    """Of each chosen layer its number, and tokens and weights, [L, k] each."""
    told = attended.told
    if LINKS in told:
        yield from zip(attended.wish.layers, told[LINKS], told[LINK_WEIGHTS], strict=True)


def _firsts(rows: npt.NDArray[np.float32]) -> range:
    """The first row of each message; its step is how many rows a message has."""
    size_bytes: int = rows[0].nbytes
    return range(0, len(rows), max(_PART_BYTES // size_bytes, 1))


def _rows_part(of: encoder_pb2.AttentionRows, rows: npt.NDArray[np.float32], first: int) -> bytes:
    response = encoder_pb2.AttendResponse(rows=of)
    response.rows.first = first
    set_float32(response.rows.rows, rows[first : first + _firsts(rows).step])
    return response.SerializeToString()


def _links_part(layer: int, tokens: npt.NDArray[np.uint32], weights: npt.NDArray[np.float32], first: int) -> bytes:
    end = first + _firsts(weights).step
    response = encoder_pb2.AttendResponse(links=encoder_pb2.AttentionLinks(layer=layer, first=first))
    response.links.tokens.extend(tokens[first:end].ravel().tolist())
    set_float32(response.links.weights, weights[first:end])
    return response.SerializeToString()
