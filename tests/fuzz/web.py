"""The HTTP edge: whatever is sent, its answer has a status of ours, and no status is 500."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Final

from fuzz.edges import Edges, plain, with_keys
from fuzz.edits import edited
from starlette.types import Message
from uvicorn.server import ServerState

_POSTS: Final = (
    "/v1/embeddings", "/embed", "/v2/models/tiny/infer", "/v2/models/tiny/versions/1/infer", "/v2/repository/index",
    "/v2/repository/models/tiny/load", "/v2/repository/models/tiny/unload", "/v1/attend",
    "/studio/tokens",
)  # fmt: skip
_RIGHT: Final[Sequence[tuple[str, Any]]] = (
    ("/v1/embeddings", {"model": "tiny", "input": ["a", [1, 2]], "encoding_format": "base64", "dimensions": 4}),
    ("/embed", {"inputs": [[1, 2], "a"], "truncate": True, "normalize": False, "truncation_direction": "Left"}),
    (
        "/v2/models/tiny/infer",
        {
            "id": "x",
            "parameters": {"priority": 1, "timeout": 9, "output_datatype": "FP16", "binary_data_output": True},
            "inputs": [
                {"name": "input_ids", "datatype": "INT64", "shape": [2, 2], "data": [[1, 2], [3, 0]]},
                {"name": "attention_mask", "datatype": "INT32", "shape": [2, 2], "data": [1, 1, 1, 0]},
            ],
            "outputs": [{"name": "token_embeddings", "parameters": {"binary_data": False}}],
        },
    ),
    (
        "/v2/models/tiny/infer",
        {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2, 1], "data": ["a", "b"]}]},
    ),
    (
        "/v1/attend",
        {
            "model": "tiny",
            "version": 1,
            "input": "a b",
            "other": [1, 2],
            "truncate": "left",
            "layers": [2, 0],
            "heads": [1],
            "maps": True,
            "mean": True,
            "rollout": True,
            "received": True,
            "entropy": True,
            "top_k": 2,
            "encoding_format": "base64",
        },
    ),
    ("/studio/tokens", {"model": "tiny", "texts": ["a b", "c"]}),
)
_STATUSES: Final = (200, 400, 401, 404, 413, 422, 429)


def body(data: bytes) -> None:
    """The first byte is the route, the next two how much of the rest is JSON before binary data (0: all of it).

    From 128 on the first byte is that of a right body, and the rest are edits of it.
    """
    path, raw = _POSTS[(data[0] if data else 0) % len(_POSTS)], data[3:]
    if data and data[0] >= 128:
        path, right = _RIGHT[data[0] % len(_RIGHT)]
        data, raw = b"", edited(right, data[1:])
    json_bytes = int.from_bytes(data[1:3], "big")
    headers = [(b"inference-header-content-length", b"%d" % json_bytes)] if json_bytes else []
    _check(*_asked(plain(), path, headers, raw))


def headers(data: bytes) -> None:
    """Lines `name: value` of a request whose body is fine; of a server without keys, and of one with them."""
    given = [line.partition(b":")[::2] for line in data.split(b"\n")[:16]]
    lowered = [(name.strip().lower(), value.strip()) for name, value in given]
    for edges in (plain(), with_keys()):
        _check(*_asked(edges, "/v2/models/tiny/infer", lowered, _FINE))


def connection(data: bytes) -> None:
    """What comes over a connection, in two pieces."""
    edges = plain()
    transport = _Transport()
    with edges.no_bug():
        edges.loop.run_until_complete(_talk(edges, transport, data))
    assert b"HTTP/1.1 500" not in transport.written, bytes(transport.written)


_FINE: Final = json.dumps(
    {"inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [1, 2], "data": [5, 6]}]}
).encode()


def _asked(edges: Edges, path: str, headers: list[tuple[bytes, bytes]], raw: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to a POST."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def ask() -> None:
        arriving: asyncio.Queue[Message] = asyncio.Queue()
        arriving.put_nowait({"type": "http.request", "body": raw, "more_body": False})
        scope = {
            "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": headers, "http_version": "1.1", "scheme": "http", "root_path": "",
        }  # fmt: skip
        await edges.config.loaded_app(scope, arriving.get, send)

    with edges.no_bug():
        edges.loop.run_until_complete(ask())
    return sent[0]["status"], b"".join(message["body"] for message in sent[1:])


def _check(status: int, answer: bytes) -> None:
    assert status in _STATUSES, (status, answer)
    if status != 200:
        assert json.loads(answer)["error"], answer


async def _talk(edges: Edges, transport: "_Transport", data: bytes) -> None:
    state = ServerState()
    kind: Any = edges.config.http_protocol_class
    protocol = kind(config=edges.config, server_state=state, app_state={}, _loop=edges.loop)
    protocol.connection_made(transport)
    for piece in (data[: len(data) // 2], data[len(data) // 2 :]):
        if piece and not transport.is_closing():
            protocol.data_received(piece)
        await asyncio.sleep(0)
    protocol.connection_lost(None)
    while state.tasks:
        await asyncio.wait(state.tasks)


class _Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: Final = bytearray()
        self._closing = False

    def get_extra_info(self, _: str, default: Any = None) -> Any:
        return default

    def write(self, data: Any) -> None:
        self.written.extend(data)

    def can_write_eof(self) -> bool:
        return False

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True

    abort = close

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass
