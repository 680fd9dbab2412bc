"""Client of the harken encoder server.

from harken_client import Client

with Client("localhost:8001") as client:
    vectors = client.encode(["first text", "second text"])  # float32 [2, hidden]
"""

from harken_client.attention.values import Attention, Links, Pair
from harken_client.client import AsyncClient
from harken_client.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    HarkenError,
    InternalError,
    InvalidInput,
    ModelNotFound,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from harken_client.sync import Client
from harken_client.values import (
    Batch,
    BatchMember,
    Chunk,
    Chunking,
    Encoding,
    Match,
    ModelInfo,
    Setting,
    StreamResult,
    Timings,
)

__all__ = [
    "AsyncClient",
    "Attention",
    "Batch",
    "BatchMember",
    "Cancelled",
    "Chunk",
    "Chunking",
    "Client",
    "DeadlineExceeded",
    "Encoding",
    "FailedPrecondition",
    "FieldViolation",
    "HarkenError",
    "InternalError",
    "InvalidInput",
    "Links",
    "Match",
    "ModelInfo",
    "ModelNotFound",
    "Overloaded",
    "Pair",
    "PermissionDenied",
    "Setting",
    "StreamResult",
    "Timings",
    "Unauthenticated",
    "Unavailable",
]
