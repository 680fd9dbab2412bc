"""What a request of the Open Inference Protocol means: each row of its inputs is a sequence of its own.

Padding that the mask names is taken off before the scheduler sees a sequence, and put back around token vectors.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

import numpy as np
import numpy.typing as npt

from harken_server.errors import (
    BadValue,
    GivenTwice,
    InvalidRequest,
    Missing,
    NotTogether,
    Problem,
    Refusal,
    TokenOutOfRange,
    TooManyBytes,
    UnknownName,
)
from harken_server.execution.engine import SENTENCE, TOKENS
from harken_server.models.repository import Model
from harken_server.rpc.calls import Call
from harken_server.rpc.fields import without_kinds
from harken_server.rpc.oip.tensors import integers, real_tokens, texts
from harken_server.rpc.oip.values import InputTensor, OutputTensor, Parameter, Request, Response
from harken_server.rpc.stream import MOST_ID_BYTES
from harken_server.scheduling.deadline import Deadline
from harken_server.scheduling.waiting import Priority
from harken_server.service import Service
from harken_server.telemetry.tracing import Trace
from harken_server.values import MAX_PROBLEMS, Answers, Input, Options, TokenIds

INPUT_IDS: Final = "input_ids"
ATTENTION_MASK: Final = "attention_mask"
TEXT: Final = "text"
OUTPUTS: Final = (SENTENCE, TOKENS)

PRIORITY_LEVELS: Final = (Priority.INTERACTIVE, Priority.BULK)
"""From the most urgent, 1, to the least. 0 is the default: the first."""

FINAL: Final = "triton_final_response"
_WANTS_FINAL: Final = "triton_enable_empty_final_response"
_PARAMETERS: Final = ("priority", "timeout", "truncate", "output_datatype", "deterministic", _WANTS_FINAL)
_DATATYPES: Final[dict[str, type[np.floating]]] = {"FP32": np.float32, "FP16": np.float16}
_MOST_VERSION_DIGITS: Final = 9


@dataclass(frozen=True, slots=True)
class _Asked:
    """The parameters of a request."""

    priority: Priority
    timeout_s: float | None
    truncate: bool
    datatype: str
    deterministic: bool
    wants_final: bool


@dataclass(frozen=True, slots=True)
class _Rows:
    """The inputs, a row each. `placed`: where in rows of `padded_length` the real tokens stand; None: at the start."""

    inputs: Sequence[Input]
    names: Sequence[str]
    padded_length: int
    placed: Sequence[slice] | None


async def infer(
    service: Service,
    request: Request,
    model: Model,
    call: Call,
    deadline: Deadline,
    started_s: float,
    trace: Trace | None,
) -> tuple[Response, Answers]:
    """Answer a request. Raises a Refusal; whoever gets the answer says `sent` of its bytes.

    `trace`: the call's, or that of one request of a stream.
    """
    _check_id(request.id)
    asked = _asked(request.parameters)
    wanted = _outputs(request)
    rows = _rows(request.inputs, model, service)
    if asked.timeout_s is not None:
        deadline = deadline.at_most(asked.timeout_s, started_s)
    options = Options(
        model=model.manifest.name,
        version=model.manifest.version,
        outputs=wanted,
        truncate="right" if asked.truncate else "refuse",
        priority=asked.priority,
        tenant=call.tenant,
        account=call.account,
        flow=call.number,
        trace=trace,
        deterministic=asked.deterministic,
        padded_length=rows.padded_length,
    )
    try:
        answers = await service.encode(model, options, rows.inputs, rows.names, deadline, started_s)
    except InvalidRequest as invalid:
        raise _with_padding(without_kinds(invalid), rows) from None
    try:
        outputs = [_tensor(name, answers, rows, asked.datatype) for name in wanted]
    except Refusal:
        service.sent(answers.size_bytes)
        raise
    parameters = {FINAL: True} if asked.wants_final else {}
    manifest = model.manifest
    return Response(manifest.name, manifest.version, request.id, parameters, outputs), answers


UNLOADING: Final = ("unload_dependents",)
"""Parameters of an unload that Triton's clients always send. No model depends on another one here."""


def check_parameters(given: Iterable[str], known: Collection[str]) -> None:
    """Triton's `config` and `file:` bring a model's contents along, past every check of a bundle.

    Raises InvalidRequest for whatever is not `known`.
    """
    for name in sorted(set(given) - set(known)):
        raise InvalidRequest((BadValue(f"parameters.{name}", "given", "supported: bundles come from the folder"),))


def version_of(text: str, field: str) -> int:
    """A version as the protocol has it: digits, or nothing for the default (0). Raises InvalidRequest."""
    if not text:
        return 0
    if not (text.isascii() and text.isdecimal() and len(text) <= _MOST_VERSION_DIGITS and int(text) > 0):
        raise InvalidRequest((BadValue(field, repr(text), "a version: a number from 1 on"),))
    return int(text)


def _check_id(request_id: str) -> None:
    id_bytes = len(request_id.encode())
    if id_bytes > MOST_ID_BYTES:
        raise InvalidRequest((TooManyBytes("id", id_bytes, MOST_ID_BYTES),))


def _asked(parameters: Mapping[str, Parameter]) -> _Asked:
    problems: list[Problem] = []

    def value(name: str, default: Parameter, kind: type, fits: range | tuple[object, ...], wanted: str) -> Parameter:
        given = parameters.get(name, default)
        # True is an int to Python, and no number to anybody else.
        if type(given) is not kind or given not in fits:
            problems.append(BadValue(f"parameters.{name}", repr(given), wanted))
            return default
        return given

    unknown = islice((name for name in parameters if name not in _PARAMETERS), MAX_PROBLEMS)
    problems += [UnknownName("parameters", name, _PARAMETERS) for name in unknown]
    levels = range(len(PRIORITY_LEVELS) + 1)
    both = (False, True)
    level = value("priority", 0, int, levels, f"a level from 1, the most urgent, to {levels[-1]}; 0 is the default")
    timeout_us = value("timeout", 0, int, range(1 << 63), "microseconds from 1 on; 0 is none")
    truncate = value("truncate", False, bool, both, "a bool")
    datatype = value("output_datatype", "FP32", str, tuple(_DATATYPES), f"one of {', '.join(_DATATYPES)}")
    deterministic = value("deterministic", False, bool, both, "a bool")
    wants_final = value(_WANTS_FINAL, False, bool, both, "a bool")
    if problems:
        raise InvalidRequest(tuple(problems))
    priority = PRIORITY_LEVELS[max(int(level) - 1, 0)]
    timeout_s = int(timeout_us) / 1e6 or None
    return _Asked(priority, timeout_s, bool(truncate), str(datatype), bool(deterministic), bool(wants_final))


def _outputs(request: Request) -> tuple[str, ...]:
    problems: list[Problem] = []
    wanted: list[str] = []
    for index, output in enumerate(request.outputs):
        field = f"outputs[{index}]"
        if output.name not in OUTPUTS:
            problems.append(UnknownName(f"{field}.name", output.name, OUTPUTS))
        elif output.name in wanted:
            problems.append(GivenTwice(f"{field}.name", output.name))
        problems += [UnknownName(f"{field}.parameters", name, ()) for name in output.parameters]
        wanted.append(output.name)
    if problems:
        raise InvalidRequest(tuple(problems))
    return tuple(wanted) or OUTPUTS


def _rows(tensors: Sequence[InputTensor], model: Model, service: Service) -> _Rows:
    known = (INPUT_IDS, ATTENTION_MASK) if model.tokenizer is None else (INPUT_IDS, ATTENTION_MASK, TEXT)
    named: dict[str, InputTensor] = {}
    problems: list[Problem] = []
    for tensor in tensors:
        if tensor.name not in known:
            problems.append(UnknownName(f"{tensor.field}.name", tensor.name, known))
        elif tensor.name in named:
            problems.append(GivenTwice(f"{tensor.field}.name", tensor.name))
        problems += [UnknownName(f"{tensor.field}.parameters", name, ()) for name in tensor.parameters]
        named[tensor.name] = tensor
    text, ids, mask = named.get(TEXT), named.get(INPUT_IDS), named.get(ATTENTION_MASK)
    other = ids or mask
    if text and other:
        problems.append(NotTogether(f"{text.field}.name", other.name))
    if mask and not ids and not text:
        problems.append(BadValue("inputs", "attention_mask alone", "input_ids, with or without it, or text"))
    if not tensors:
        problems.append(Missing("inputs"))
    if problems:
        raise InvalidRequest(tuple(problems))
    most = service.limits.inputs
    if text:
        given = texts(text, most)
        return _Rows(given, [f"{text.content_field}[{row}]" for row in range(len(given))], 0, None)
    assert ids is not None
    return _of_ids(ids, mask, service)


def _of_ids(ids: InputTensor, mask: InputTensor | None, service: Service) -> _Rows:
    values = integers(ids, service.limits.inputs)
    names = [f"{ids.content_field}[{row}]" for row in range(len(values))]
    placed = real_tokens(mask, ids.shape, service.limits.inputs) if mask else None
    real = [row[where] for row, where in zip(values, placed, strict=True)] if placed else list(values)
    # None beyond the longest model's length is ever computed.
    longest = service.max_length
    return _Rows([TokenIds(row[:longest], len(row)) for row in real], names, values.shape[1], placed)


def _with_padding(invalid: InvalidRequest, rows: _Rows) -> InvalidRequest:
    """The service has not seen the padding, and counts positions without it."""
    if not rows.placed:
        return invalid
    start = {name: where.start for name, where in zip(rows.names, rows.placed, strict=True)}
    problems: list[Problem] = []
    for problem in invalid.problems:
        if isinstance(problem, TokenOutOfRange):
            name = problem.field.removesuffix(f"[{problem.position}]")
            position = start[name] + problem.position
            problems.append(replace(problem, field=f"{name}[{position}]", position=position))
        else:
            problems.append(problem)
    return InvalidRequest(tuple(problems))


def _tensor(name: str, answers: Answers, rows: _Rows, datatype: str) -> OutputTensor:
    """Raises the Refusal of a sequence that failed: there is one answer for all of them."""
    vectors: list[npt.NDArray[np.float32]] = []
    for answer in answers.answers:
        if isinstance(answer.outcome, Refusal):
            raise answer.outcome
        vectors.append(answer.outcome[name])
    dtype = _DATATYPES[datatype]
    if name == SENTENCE:
        return OutputTensor(name, datatype, np.stack(vectors).astype(dtype, copy=False))
    padded_length = max(rows.padded_length, *map(len, vectors))
    padded = np.zeros((len(vectors), padded_length, vectors[0].shape[1]), dtype)
    for row, vector in enumerate(vectors):
        start = rows.placed[row].start if rows.placed else 0
        padded[row, start : start + len(vector)] = vector
    return OutputTensor(name, datatype, padded)
