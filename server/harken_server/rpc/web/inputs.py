"""Texts and token ids as JSON has them, and the vectors for them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from harken_server.errors import BadValue, InvalidRequest, Missing, NotUtf8, Refusal, TooMany
from harken_server.execution.engine import SENTENCE
from harken_server.execution.finishing import Finish
from harken_server.models.repository import Model
from harken_server.rpc.calls import Call
from harken_server.rpc.fields import without_kinds
from harken_server.rpc.web.exchange import Exchanges, shown
from harken_server.scheduling.waiting import Priority
from harken_server.values import Answers, Input, Options, TokenIds, Truncate


@dataclass(frozen=True, slots=True)
class Encoded:
    """vectors[i], float32 [dimensions], is of the input i."""

    vectors: Sequence[npt.NDArray[np.float32]]
    answers: Answers
    """Held by the service until they are sent."""


async def encode(
    exchanges: Exchanges,
    call: Call,
    model: Model,
    values: Sequence[object],
    field: str,
    truncate: Truncate,
    finish: Finish,
) -> Encoded:
    """Encode what stands in a body's `field`. Raises a Refusal, of the first input that failed if any did."""
    service = exchanges.service
    exchanges.calls.found(call, model)
    if len(values) > service.limits.inputs:
        raise InvalidRequest((TooMany(field, len(values), service.limits.inputs),))
    names = [field] if len(values) == 1 else [f"{field}[{index}]" for index in range(len(values))]
    longest, left = service.max_length, truncate == "left"
    inputs = [input_of(value, name, longest, left) for value, name in zip(values, names, strict=True)]
    options = Options(
        model=model.manifest.name,
        version=model.manifest.version,
        outputs=(SENTENCE,),
        truncate=truncate,
        priority=Priority.INTERACTIVE,
        tenant=call.tenant,
        account=call.account,
        flow=call.number,
        trace=call.trace,
        finish=finish,
    )
    started_s = exchanges.calls.clock()
    try:
        answers = await service.encode(model, options, inputs, names, call.deadline, started_s)
    except InvalidRequest as invalid:
        problems = without_kinds(invalid).problems
        raise InvalidRequest(
            tuple(replace(one, field=field) if one.field == "inputs" else one for one in problems)
        ) from None
    vectors = []
    for answer in answers.answers:
        if isinstance(answer.outcome, Refusal):
            service.sent(answers.size_bytes)
            raise answer.outcome
        vectors.append(np.ascontiguousarray(answer.outcome[SENTENCE]))
    exchanges.calls.answered(call, call.received_s, answers, call.trace)
    return Encoded(vectors, answers)


def values_of(given: object, field: str) -> Sequence[object]:
    """A text, texts, token ids, or lists of them, as a list of inputs. Raises InvalidRequest."""
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and given:
        if len({isinstance(value, str) for value in given}) > 1 and any(isinstance(value, list) for value in given):
            raise InvalidRequest((BadValue(field, "texts and token ids", "a list of one or the other"),))
        return [given] if type(given[0]) is int else given
    if given is None or given == []:
        raise InvalidRequest((Missing(field),))
    raise InvalidRequest((BadValue(field, shown(given), "a text, token ids, or a list of either"),))


def input_of(value: object, name: str, longest: int, left: bool) -> Input:
    """One input, a text or a list of token ids; or what is wrong with it.

    Of the ids the first `longest` are kept or, with `left`, the last.
    """
    if isinstance(value, str):
        return checked_text(value, name)
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        return BadValue(name, shown(value), "a text or a list of token ids")
    try:
        return TokenIds(np.array(value[-longest:] if left else value[:longest], np.int64), len(value))
    except OverflowError:
        return BadValue(name, repr(max(value, key=abs)), "a list of token ids")


def checked_text(value: object, name: str) -> Input:
    """The text, or what is wrong with it."""
    if not isinstance(value, str):
        return BadValue(name, shown(value), "a text")
    return value if _is_text(value) else NotUtf8(name)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False  # JSON can escape halves of characters
    return True
