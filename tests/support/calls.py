"""Plain gRPC calls as any client would make them, and what their errors say."""

from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from google.rpc import error_details_pb2  # type: ignore[import-untyped]  # ships no types
from grpc_status import rpc_status
from harken.v1 import encoder_pb2 as pb
from harken.v1 import encoder_pb2_grpc


@dataclass(frozen=True)
class Refused:
    """An error as a client sees it."""

    code: str
    message: str
    reason: str = ""
    fields: tuple[str, ...] = ()
    retry_after_s: float | None = None
    pushback_ms: str | None = None
    details: tuple[Any, ...] = field(default=(), compare=False)


def stub(target: str) -> encoder_pb2_grpc.EncoderStub:
    """A stub over a channel of its own."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    return encoder_pb2_grpc.EncoderStub(grpc.insecure_channel(target, options))


def text(*texts: str) -> list[pb.Input]:
    """Inputs of text."""
    return [pb.Input(text=one) for one in texts]


def ids(*sequences: list[int]) -> list[pb.Input]:
    """Inputs of token ids."""
    return [pb.Input(token_ids=pb.TokenIds(ids=one)) for one in sequences]


def different(count: int, length: int) -> list[list[int]]:
    """Token ids that even the smallest of the tests' models knows: no two sequences alike, so none is shared."""
    return [[5 + number % 900, 5 + number // 900, *[101] * length][:length] for number in range(count)]


def vector(result: pb.Result) -> npt.NDArray[np.float32]:
    """The array of a result."""
    assert not result.HasField("error"), result.error
    assert result.embedding.data_type == pb.DATA_TYPE_FLOAT32
    return np.frombuffer(result.embedding.data, "<f4").reshape(tuple(result.embedding.shape))


def refused(error: Any) -> Refused:
    """What a grpc.RpcError says, details included."""
    metadata: dict[str, Any] = dict(error.trailing_metadata() or ())
    status = rpc_status.from_call(error)
    if status is None:
        return Refused(error.code().name, error.details() or "", pushback_ms=metadata.get("grpc-retry-pushback-ms"))
    return _with_details(error.code().name, status, metadata.get("grpc-retry-pushback-ms"))


def refused_result(result: pb.Result) -> Refused:
    """What an input's own error says."""
    codes = {code.value[0]: code.name for code in grpc.StatusCode}
    return _with_details(codes[result.error.code], result.error, None)


def _with_details(code: str, status: Any, pushback_ms: str | None) -> Refused:
    reason, fields, retry_after_s, details = "", (), None, []
    for packed in status.details:
        for kind in (
            error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo,
            error_details_pb2.RequestInfo,
        ):  # fmt: skip
            detail = kind()
            if packed.Unpack(detail):
                details.append(detail)
                if kind is error_details_pb2.ErrorInfo:
                    assert detail.domain == "harken"
                    reason = detail.reason
                elif kind is error_details_pb2.BadRequest:
                    fields = tuple(violation.field for violation in detail.field_violations)
                elif kind is error_details_pb2.RetryInfo:
                    retry_after_s = detail.retry_delay.ToNanoseconds() / 1e9
    return Refused(code, status.message, reason, fields, retry_after_s, pushback_ms, tuple(details))
