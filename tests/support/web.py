"""Plain HTTP calls as any client would make them."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any

from support.server import RunningServer

MODEL = "all-MiniLM-L6-v2"
EMBEDDINGS = "/v1/embeddings"
INFER = f"/v2/models/{MODEL}/infer"
Headers = Mapping[str, str] | Iterable[tuple[str, str]]
"""As pairs a name may come twice."""


@dataclass(frozen=True)
class Replied:
    """A response, read to its end."""

    status: int
    headers: Mapping[str, str]
    """By their names in small letters."""
    body: bytes

    @property
    def json(self) -> Any:
        """The body's value."""
        return json.loads(self.body)


def call(server: RunningServer, method: str, path: str, body: Any = None, headers: Headers | None = None) -> Replied:
    """Make a request on a connection of its own; a body that is no bytes is written as JSON."""
    connection = HTTPConnection("127.0.0.1", server.http_port, timeout=30)
    try:
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        pairs = list(headers.items() if isinstance(headers, Mapping) else headers or ())
        connection.putrequest(method, path, skip_host="host" in dict(pairs))
        if raw is not None:
            pairs.append(("content-length", str(len(raw))))
        for name, value in pairs:
            connection.putheader(name, value)
        connection.endheaders(raw)
        response = connection.getresponse()
        return Replied(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


def post(server: RunningServer, path: str, body: Any, headers: Headers | None = None) -> Replied:
    """POST a body."""
    return call(server, "POST", path, body, headers)


def infer_request(**more: Any) -> dict[str, Any]:
    """A body of the Open Inference Protocol that is fine but for `more`."""
    tensor = {"name": "input_ids", "datatype": "INT64", "shape": [2, 3], "data": [[101, 7592, 102], [101, 102, 0]]}
    mask = {"name": "attention_mask", "datatype": "INT64", "shape": [2, 3], "data": [1, 1, 1, 1, 1, 0]}
    return {"inputs": [tensor, mask], **more}
