"""What can go wrong, as exceptions.

    HarkenError               any failed call, and the base of the rest
    ├── InvalidInput          INVALID_ARGUMENT    the input can never succeed as it stands
    ├── ModelNotFound         NOT_FOUND           the server holds no such model or version
    ├── FailedPrecondition    FAILED_PRECONDITION the model, as it is served, cannot do this
    ├── Unauthenticated       UNAUTHENTICATED     no key, or a wrong one
    ├── PermissionDenied      PERMISSION_DENIED   the key is not for this model, or not for this call
    ├── Overloaded            RESOURCE_EXHAUSTED  too much work waits, or a message is too large
    ├── DeadlineExceeded      DEADLINE_EXCEEDED   no answer in time
    ├── Unavailable           UNAVAILABLE         not there, not ready, or draining
    ├── Cancelled             CANCELLED           given up before it was answered
    └── InternalError         INTERNAL            the server's fault, and every other code

The server says by itself whether the same request may succeed later: then, and
only then, `retry_after_s` is a number.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import grpc
from google.protobuf.message import DecodeError
from google.rpc import (  # type: ignore[import-untyped]  # googleapis-common-protos has no py.typed
    error_details_pb2,
    status_pb2,
)

_DETAILS_KEY = "grpc-status-details-bin"
_INDEX = re.compile(r"\binputs\[(\d+)\]")
# What the server calls an input of a stream: it is the message's only one.
_INPUT = re.compile(r"\binputs\[\d+\]|\binput\.input\b")


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of the request that is wrong. `field` is a path such as `inputs[17].text`."""

    field: str
    description: str


class HarkenError(Exception):
    """A call, or one input of a call, that failed.

    code            the gRPC status code
    message         what happened, for a person
    reason          stable name of the cause (google.rpc.ErrorInfo), or ""
    evidence        the numbers behind it (ErrorInfo.metadata)
    violations      the fields that are wrong (google.rpc.BadRequest)
    retry_after_s   seconds after which the server invites the same request again; None: it does not
    index           position of the failed input among the inputs given, or None
    """

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        evidence: Mapping[str, str] = MappingProxyType({}),
        violations: Iterable[FieldViolation] = (),
        retry_after_s: float | None = None,
        index: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.evidence = dict(evidence)
        self.violations = tuple(violations)
        self.retry_after_s = retry_after_s
        self.index = _first_index(self.violations) if index is None else index

    def __str__(self) -> str:
        parts = [self.message]
        parts += [f"{v.field}: {v.description}" for v in self.violations if v.description not in self.message]
        reason = f" ({self.reason})" if self.reason not in ("", self.code.name) else ""
        return f"{self.code.name}{reason}: {'; '.join(parts)}"


class InvalidInput(HarkenError):
    """The input can never succeed as it stands."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class ModelNotFound(HarkenError):
    """The server holds no such model or version."""

    code = grpc.StatusCode.NOT_FOUND


class FailedPrecondition(HarkenError):
    """The model, as it is served, cannot do this: for attention maps its bundle needs an attention graph, say."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class Unauthenticated(HarkenError):
    """The server wants a key, or another key."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(HarkenError):
    """The key is known, and not for this model, or not for this call."""

    code = grpc.StatusCode.PERMISSION_DENIED


class Overloaded(HarkenError):
    """Too much work waits, the key has its limit, or a message is larger than one side takes."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class DeadlineExceeded(HarkenError):
    """No answer in time."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Unavailable(HarkenError):
    """The server is not there, not ready, or draining."""

    code = grpc.StatusCode.UNAVAILABLE


class Cancelled(HarkenError):
    """The call was given up before it was answered."""

    code = grpc.StatusCode.CANCELLED


class InternalError(HarkenError):
    """The server's fault, or a code that no other class stands for."""

    code = grpc.StatusCode.INTERNAL


_CODES: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
_CLASSES: Mapping[grpc.StatusCode, type[HarkenError]] = {
    kind.code: kind
    for kind in (
        InvalidInput,
        ModelNotFound,
        FailedPrecondition,
        Unauthenticated,
        PermissionDenied,
        Overloaded,
        DeadlineExceeded,
        Unavailable,
        Cancelled,
        InternalError,
    )
}


def from_status(status: status_pb2.Status) -> HarkenError:
    """The exception for one google.rpc.Status. Details that cannot be read are left out."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    info = _Details.of(status)
    error = _CLASSES.get(code, InternalError)(
        status.message or code.name.lower().replace("_", " "),
        reason=info.reason.reason,
        evidence=info.reason.metadata,
        violations=[FieldViolation(v.field, v.description) for v in info.bad_request.field_violations],
        retry_after_s=info.retry_after_s,
    )
    error.code = code
    return error


def from_rpc(error: grpc.RpcError) -> HarkenError:
    """The exception for a call that ended with another status than OK. Reads google.rpc details from the trailers."""
    # Both of grpcio's kinds of RpcError are also a grpc.Call; the base class promises nothing.
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    trailers = dict(error.trailing_metadata() or ())
    status = _status_in(trailers.get(_DETAILS_KEY))
    if status is None or status.code != error.code().value[0]:
        status = status_pb2.Status(code=error.code().value[0], message=error.details() or "")
    return from_status(status)


def moved(error: HarkenError, by: int) -> HarkenError:
    """Tell a call's error in the caller's positions: `inputs[3]` becomes `inputs[3 + by]`."""
    return _rewritten(error, lambda text: _INDEX.sub(lambda found: f"inputs[{int(found[1]) + by}]", text))


def placed(error: HarkenError, index: int) -> HarkenError:
    """Tell the error of one input in the caller's position, whatever the call's own was."""
    error = _rewritten(error, lambda text: _INPUT.sub(f"inputs[{index}]", text))
    error.index = index
    return error


def _rewritten(error: HarkenError, rewrite: Callable[[str], str]) -> HarkenError:
    """Changes and returns `error`."""
    error.message = rewrite(error.message)
    error.args = (error.message,)
    error.violations = tuple(FieldViolation(rewrite(v.field), rewrite(v.description)) for v in error.violations)
    error.index = _first_index(error.violations)
    return error


@dataclass(slots=True)
class _Details:
    reason: error_details_pb2.ErrorInfo
    bad_request: error_details_pb2.BadRequest
    retry_after_s: float | None

    @classmethod
    def of(cls, status: status_pb2.Status) -> "_Details":
        details = cls(error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), None)
        retry = error_details_pb2.RetryInfo()
        for packed in status.details:
            try:
                packed.Unpack(details.reason)
                packed.Unpack(details.bad_request)
                if packed.Unpack(retry):
                    details.retry_after_s = max(0.0, retry.retry_delay.ToTimedelta().total_seconds())
            except DecodeError:
                continue
        return details


def _first_index(violations: Iterable[FieldViolation]) -> int | None:
    found = (_INDEX.search(violation.field) for violation in violations)
    return next((int(match[1]) for match in found if match), None)


def _status_in(packed: str | bytes | None) -> status_pb2.Status | None:
    if not isinstance(packed, bytes):
        return None
    try:
        return status_pb2.Status.FromString(packed)
    except DecodeError:
        return None
