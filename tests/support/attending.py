"""Attend as any gRPC client would call it."""

import base64
from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np
import pytest
from harken.v1 import encoder_pb2 as pb

from support.calls import Refused, ids, refused, stub, text
from support.server import RunningServer
from support.web import Replied, post

ATTEND = "/v1/attend"
EVERYTHING = {"maps": True, "mean": True, "rollout": True, "received": True, "entropy": True, "top_k": 3}


def attend(
    server: RunningServer, given: str | list[int], metadata: Mapping[str, str] | None = None, timeout_s: float = 60.0,
    **more: Any,
) -> list[pb.AttendResponse]:  # fmt: skip
    """Every message of an answer."""
    (message,) = text(given) if isinstance(given, str) else ids(given)
    request = pb.AttendRequest(input=message, **more)
    pairs = tuple((metadata or {}).items())
    return list(stub(server.target).Attend(request, metadata=pairs, timeout=timeout_s))


def attend_refused(server: RunningServer, given: str | list[int], **more: Any) -> Refused:
    """What a call that must fail says."""
    with pytest.raises(grpc.RpcError) as error:
        attend(server, given, **more)
    return refused(error.value)


def posted(server: RunningServer, body: dict[str, Any], headers: Mapping[str, str] | None = None) -> Replied:
    """The same over HTTP."""
    return post(server, ATTEND, body, headers)


def array(given: Any) -> Any:
    """An array of a JSON answer, in either form."""
    if isinstance(given, dict):
        return np.frombuffer(base64.b64decode(given["data"]), "<f4").reshape(given["shape"])
    return np.array(given, np.float32)
