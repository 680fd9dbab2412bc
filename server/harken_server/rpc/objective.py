"""What a call's end is to the availability objective: the server's failing, or the caller's own doing.

docs/runbook.md states the objective. Refusals for want of room or time count against it, what a caller got wrong does
not, and neither does what the operator has set for a caller: the limits of its key.
"""

from typing import Final, Literal

import grpc

from harken_server.rpc.status import Answer

Outcome = Literal["served", "unavailable", "caller"]

COMPUTES: Final = frozenset(
    {
        "Encode", "Similarity", "EncodeStream", "ModelInfer", "ModelStreamInfer",
        "POST /v1/embeddings", "POST /embed", "POST /v2/models/infer",
    }
)  # fmt: skip
"""The methods that the objective is about. Health and metadata are asked by machines, also while the server drains."""
STREAMS: Final = frozenset({"EncodeStream", "ModelStreamInfer"})
"""Of a stream each input is judged, and not how the stream itself ends, unless by a failure before that."""

_CODE: Final = grpc.StatusCode
_UNAVAILABLE: Final = frozenset(
    {_CODE.RESOURCE_EXHAUSTED, _CODE.UNAVAILABLE, _CODE.INTERNAL, _CODE.DEADLINE_EXCEEDED, _CODE.UNKNOWN}
)
_GOES_ON_ELSEWHERE: Final = frozenset({"STREAM_TOO_OLD", "SERVER_DRAINING"})
"""How a stream ends whose client is to open another one; every input that was read has been answered."""


def of_refusal(refused: Answer) -> Outcome:
    """Of a call, or of a stream's input, that was refused or failed."""
    if refused.code not in _UNAVAILABLE or refused.reason == "KEY_LIMIT":
        return "caller"
    if refused.code is _CODE.RESOURCE_EXHAUSTED and refused.retry_after_s is None:
        return "caller"  # more than an idle server takes
    return "unavailable"


def of_call(
    method: str, code: grpc.StatusCode, refused: Answer | None, model: str, inputs_failed: bool
) -> Outcome | None:
    """Of a whole call. None: it is not judged. `model`: empty as long as the call has not said what it wants."""
    if method not in COMPUTES:
        return None
    if method in STREAMS:
        return _of_stream(code, refused)
    if code is _CODE.OK:
        return "unavailable" if inputs_failed else "served"
    if code is _CODE.DEADLINE_EXCEEDED and not model:
        return "caller"  # its request had not come by then
    if refused is not None:
        return of_refusal(refused)
    return "unavailable" if code in _UNAVAILABLE else "caller"


def _of_stream(code: grpc.StatusCode, refused: Answer | None) -> Outcome | None:
    if code is _CODE.INTERNAL:
        return "unavailable"
    if refused is None or code is _CODE.DEADLINE_EXCEEDED or refused.reason in _GOES_ON_ELSEWHERE:
        return None
    return of_refusal(refused)
