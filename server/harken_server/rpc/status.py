"""Typed refusals to google.rpc statuses: the only place that knows codes, and that speaks to a person."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # ships no types

from harken_server import errors

DOMAIN: Final = "harken"

_MOST_BYTES: Final = 400
_MOST_DIMENSIONS: Final = 8
_MOST_VIOLATIONS: Final = 16
_MASKS: Final = {
    "value": "has an element that is neither 0 nor 1",
    "empty": "has no 1: a sequence needs at least one token",
    "holes": "has a 0 between two 1: padding may only stand at the ends",
}
_LESS_OF_MAPS: Final = {
    "maps": "ask for fewer layers and heads",
    "mean": "ask for fewer layers",
    "received": "ask for fewer layers and heads",
    "entropy": "ask for fewer layers and heads",
    "top_k": "ask for a smaller top_k, or fewer layers",
}
"""What to do about an answer of Attend that is too large, by what makes it so; else it is the texts."""
_PUSHBACK: Final = "grpc-retry-pushback-ms"
_DETAILS: Final = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class Answer:
    """A refusal as gRPC says it."""

    code: grpc.StatusCode
    reason: str
    """Stable, for machines: the ErrorInfo's reason, and the value of harken_rejected_total's label."""
    status: status_pb2.Status
    field: str
    """The first one at fault, if any."""
    retry_after_s: float | None
    """None: the same request will never succeed, or was the caller's to end."""

    def trailers(self, remaining_s: float | None) -> tuple[tuple[str, str | bytes], ...]:
        """The trailing metadata that carries the details, and tells gRPC's own retries when.

        `remaining_s` is the caller's time (None: no deadline). gRPC would wait past it, and the caller would learn only
        that it is over: where the pause takes all of it, the word to gRPC is never.
        """
        after_s = self.retry_after_s
        if after_s is None or (remaining_s is not None and after_s >= remaining_s):
            pushback_ms = -1
        else:
            pushback_ms = max(round(after_s * 1000), 1)
        return ((_PUSHBACK, str(pushback_ms)), (_DETAILS, self.status.SerializeToString()))


def answer(refusal: errors.Refusal, request_id: str) -> Answer:
    """What the caller gets for a refusal. `request_id` is its call's."""
    violations = [
        error_details_pb2.BadRequest.FieldViolation(
            field=problem.field, description=_cut(_sentence(problem), 200), reason=_reason(problem)
        )
        for problem in (refusal.problems[:_MOST_VIOLATIONS] if isinstance(refusal, errors.InvalidRequest) else ())
    ]
    return _answer(_describe(refusal), violations, request_id)


def bug(request_id: str) -> Answer:
    """For an exception that nobody foresaw: INTERNAL, and nothing of the inside."""
    return _answer((grpc.StatusCode.INTERNAL, "BUG", "the server failed", {}, None), [], request_id)


_Description = tuple[grpc.StatusCode, str, str, dict[str, str], float | None]


def _answer(
    description: _Description, violations: Sequence[error_details_pb2.BadRequest.FieldViolation], request_id: str
) -> Answer:
    code, reason, message, metadata, retry_after_s = description
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)]
    if violations:
        details.append(error_details_pb2.BadRequest(field_violations=violations))
    if retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    details.append(error_details_pb2.RequestInfo(request_id=request_id))
    if code is grpc.StatusCode.INTERNAL:
        message = f"{message} (request {request_id})"
    status = status_pb2.Status(code=code.value[0], message=_cut(message))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return Answer(code, reason, status, violations[0].field if violations else "", retry_after_s)


def _describe(refusal: errors.Refusal) -> _Description:  # one case for each refusal, in the order of their tree
    code = grpc.StatusCode
    match refusal:
        case errors.InvalidRequest(problems):
            first = problems[0]
            message = f"{first.field}: {_sentence(first)}" if first.field else _sentence(first)
            if len(problems) > 1:
                message += f" (and {len(problems) - 1} more)"
            return code.INVALID_ARGUMENT, _reason(first), message, {}, None
        case errors.Unauthenticated(given=True):
            return code.UNAUTHENTICATED, "KEY_UNKNOWN", "the API key is not known here", {}, None
        case errors.Unauthenticated():
            return code.UNAUTHENTICATED, "KEY_MISSING", "an API key is needed: authorization: Bearer KEY", {}, None
        case errors.ModelForbidden(key, model):
            message = f"the key {key!r} may not use the model {model!r}"
            return code.PERMISSION_DENIED, "MODEL_FORBIDDEN", message, {"key": key, "model": _cut(model)}, None
        case errors.AdminOnly(key):
            message = f"the key {key!r} is no admin key, which this call needs"
            return code.PERMISSION_DENIED, "ADMIN_ONLY", message, {"key": key}, None
        case errors.KeyLimit(key, unit, limit, retry_after_s):
            message = f"the key {key!r} has its limit of {limit} {unit}"
            metadata = {"key": key, "limit": str(limit), "unit": unit}
            return code.RESOURCE_EXHAUSTED, "KEY_LIMIT", message, metadata, retry_after_s
        case errors.TurnedOff(setting):
            message = f"turned off by the server's setting {setting}"
            return code.UNIMPLEMENTED, "TURNED_OFF", message, {"setting": setting}, None
        case errors.CannotAttend(model, version, ""):
            message = (
                f"{model}/{version} has no attention graph: export it again with harken-export --if-missing (without "
                "--no-attention), or --force if its weights have changed; it writes attention.onnx beside "
                "model.onnx. Then load it"
            )
            metadata = {"model": _cut(model), "version": str(version)}
            return code.FAILED_PRECONDITION, "NO_ATTENTION", message, metadata, None
        case errors.CannotAttend(model, version, pooling):
            message = f"{model}/{version} has {pooling} pooling: only with mean pooling tokens add up to a similarity"
            metadata = {"model": _cut(model), "version": str(version), "pooling": pooling}
            return code.FAILED_PRECONDITION, "NOT_MEAN_POOLED", message, metadata, None
        case errors.ModelNotFound(model, version, models, versions):
            if versions:
                held = ", ".join(str(known) for known in versions)
                message = f"model: {model!r} has no version {version} here; it has {held}"
            else:
                message = f"model: {model!r} is not served here; served: {', '.join(models) or 'none'}"
            return code.NOT_FOUND, "MODEL_NOT_FOUND", message, {"model": _cut(model), "version": str(version)}, None
        case errors.LoadFailed(model, why):
            message = f"{model!r} cannot be served: {why}"
            return code.FAILED_PRECONDITION, "LOAD_FAILED", message, {"model": _cut(model)}, None
        case errors.BacklogFull(waiting, asked, limit, unit, retry_after_s):
            message = f"the backlog is full: {waiting} {unit} wait and {asked} more exceed the limit of {limit}"
            metadata = {"waiting": str(waiting), "asked": str(asked), "limit": str(limit), "unit": unit}
            # What exceeds the limit alone will not fit later either.
            return code.RESOURCE_EXHAUSTED, "BACKLOG_FULL", message, metadata, None if asked > limit else retry_after_s
        case errors.DeadlineUnreachable(predicted_s, remaining_s, retry_after_s):
            message = f"predicted to be done in {predicted_s:.3f} s, but the deadline is in {remaining_s:.3f} s"
            metadata = {"predicted_s": f"{predicted_s:.3f}", "remaining_s": f"{remaining_s:.3f}"}
            return code.RESOURCE_EXHAUSTED, "DEADLINE_UNREACHABLE", message, metadata, retry_after_s
        case errors.NotReady(state, retry_after_s):
            return code.UNAVAILABLE, f"SERVER_{state.upper()}", f"the server is {state}", {}, retry_after_s
        case errors.StreamTooOld(limit_s, retry_after_s):
            message = f"the stream is {limit_s:g} s old, the server's max_connection_age_s; send the rest on a new one"
            return code.UNAVAILABLE, "STREAM_TOO_OLD", message, {"limit_s": f"{limit_s:g}"}, retry_after_s
        case errors.Expired(by_cap):
            cap = "the server's max_request_s passed" if by_cap else "the deadline passed"
            return code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", f"{cap} before the answer was ready", {}, None
        case errors.Abandoned():
            return code.CANCELLED, "CANCELLED", "the caller went away", {}, None
        case errors.NoMemory(retry_after_s):
            message = "the server has no memory for this input at present"
            return code.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY", message, {}, retry_after_s
        case errors.ComputeFailed("NOT_FINITE"):
            return code.INTERNAL, "NOT_FINITE", "the model gave a vector that is not finite", {}, None
        case errors.ComputeFailed("ENGINE_STALLED"):
            message = "the engine did not end the batch of this input in time"
            return code.INTERNAL, "ENGINE_STALLED", message, {}, None
        case errors.ComputeFailed(reason):
            return code.INTERNAL, reason, "the engine failed on this input", {}, None
    raise AssertionError(f"a refusal without a status: {refusal!r}")


def _sentence(problem: errors.Problem) -> str:  # one case for each problem
    match problem:
        case errors.Missing():
            return "must have at least one element, and has none"
        case errors.NoContent():
            return "has neither text nor token_ids; one of them is required"
        case errors.NoTokens():
            return "is empty: it must give at least one token"
        case errors.NotUtf8():
            return "is not valid UTF-8"
        case errors.NotProtobuf(_, message, size_bytes):
            return f"the request's {size_bytes} bytes are no {message} message"
        case errors.NotJson(_, why):
            return f"the body is not the JSON that is needed: {why}"
        case errors.TooMany(_, count, limit, at_least):
            return f"has {'at least ' if at_least else ''}{count} elements, over the limit of {limit}"
        case errors.TooManyChunks(_, at_least, limit):
            return (
                f"with its chunks the call has at least {at_least} sequences, over the limit of {limit}; send fewer "
                "texts, or let chunks overlap less"
            )
        case errors.TooManyBytes("", size_bytes, limit_bytes):
            return f"the message has {size_bytes} bytes, over the limit of {limit_bytes}"
        case errors.TooManyBytes(_, size_bytes, limit_bytes):
            return f"has {size_bytes} bytes, over the limit of {limit_bytes}"
        case errors.SequenceTooLong(_, length, limit, at_least, chunks):
            tokens = f"at least {length}" if at_least else f"{length}"
            way_out = "only texts are cut into chunks" if chunks else "truncation would cut it"
            return f"has {tokens} tokens, over the model's limit of {limit}; {way_out}"
        case errors.TokenOutOfRange(_, _, token_id, vocab_size):
            return f"is {token_id}, outside the model's vocabulary of 0 to {vocab_size - 1}"
        case errors.TextNotAccepted(_, model):
            return f"the bundle of {model!r} has no tokenizer; send token_ids"
        case errors.UnknownValue(_, value, known):
            return f"is {value}, which is none of {', '.join(known)}"
        case errors.AmbiguousModel(_, models):
            return f"must be named, since several are served: {', '.join(models)}"
        case errors.AnswerTooLarge(field, size_bytes, limit_bytes, maps):
            less = _LESS_OF_MAPS.get(field, "send shorter texts") if maps else "send fewer inputs a call"
            return f"the answer would have {size_bytes} bytes, over the limit of {limit_bytes}; {less}"
        case errors.OverMemoryBudget(_, length, predicted_bytes, budget_bytes):
            return (
                f"its {length} tokens alone need {predicted_bytes} bytes of memory, over the budget of {budget_bytes}"
            )
        case errors.OverAttendBudget(_, length, layers, heads, maps_bytes, predicted_bytes, budget_bytes):
            return (
                f"its {length} tokens need {predicted_bytes} bytes of memory, over the budget attend_memory_bytes of "
                f"{budget_bytes}: twice {layers} layers x {heads} heads x {length} x {length} tokens x 4 = "
                f"{maps_bytes} bytes of maps, and what encoding takes"
            )
        case errors.UnknownName(_, name, ()):
            return f"{_cut(name, 80)!r} is not supported here"
        case errors.UnknownName(_, name, known):
            return f"{_cut(name, 80)!r} is none of {', '.join(known)}"
        case errors.GivenTwice(_, name):
            return f"{_cut(name, 80)!r} is given twice"
        case errors.NotTogether(_, other):
            return f"cannot be given together with {other}"
        case errors.WrongDatatype(_, datatype, known):
            return f"{_cut(datatype, 80)!r} is none of the datatypes that it may have: {', '.join(known)}"
        case errors.WrongShape(_, shape, wanted):
            return f"is {_shape(shape)}, which is not {wanted}"
        case errors.ShapeDisagrees(_, shape, given, unit):
            return f"has {given} {unit}, which is not what the shape {_shape(shape)} says"
        case errors.BadMask(_, row, why):
            return f"row {row} {_MASKS[why]}"
        case errors.BadValue(_, value, wanted):
            return f"is {_cut(value, 80)}, which is not {wanted}"
        case errors.OutOfRange(_, value, least, most):
            return f"is {value}, outside {least} to {most}"
        case errors.OutOfPlace():
            return "may only be the first message of a stream"
    raise AssertionError(f"a problem without a sentence: {problem!r}")


def _shape(shape: Sequence[int]) -> str:
    return f"[{', '.join(str(size) for size in shape[:_MOST_DIMENSIONS])}{', ...' if shape[_MOST_DIMENSIONS:] else ''}]"


def _reason(problem: errors.Problem) -> str:
    """TooManyBytes -> TOO_MANY_BYTES."""
    name = type(problem).__name__
    return "".join(f"_{letter}" if letter.isupper() and index else letter for index, letter in enumerate(name)).upper()


def _cut(text: str, most: int = _MOST_BYTES) -> str:
    """At most `most` bytes of UTF-8: trailers are limited to 8 KiB in all."""
    encoded = text.encode()
    return text if len(encoded) <= most else f"{encoded[: most - 3].decode(errors='ignore')}..."
