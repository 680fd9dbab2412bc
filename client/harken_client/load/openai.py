"""A load over HTTP in the form of OpenAI's API: POST /v1/embeddings of token ids, base64 as its package asks for it."""

import asyncio
import json
import time
from collections.abc import Sequence

import httpx2

from harken_client.errors import (
    DeadlineExceeded,
    HarkenError,
    InternalError,
    InvalidInput,
    ModelNotFound,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from harken_client.load.sender import Answer
from harken_client.retry import Deadline
from harken_client.security import Tls, bearer, key_for
from harken_client.values import Input

_KINDS: dict[int, type[HarkenError]] = {
    400: InvalidInput,
    401: Unauthenticated,
    403: PermissionDenied,
    404: ModelNotFound,
    413: InvalidInput,
    429: Overloaded,
    503: Unavailable,
    504: DeadlineExceeded,
}


class OpenAiSender:
    """POST /v1/embeddings. `connections` are to the server's HTTP."""

    def __init__(self, connections: httpx2.AsyncClient, model: str) -> None:
        self._connections = connections
        self._model = model

    def message(self, inputs: Sequence[Input]) -> bytes:
        return json.dumps({"model": self._model, "input": list(inputs), "encoding_format": "base64"}).encode()

    async def send(self, message: bytes, deadline: Deadline) -> Answer:
        headers = {"content-type": "application/json"}
        try:
            async with asyncio.timeout(deadline.remaining_s(time.monotonic())):
                response = await self._connections.post("/v1/embeddings", content=message, headers=headers)
        except TimeoutError:
            raise DeadlineExceeded("no answer in time") from None
        except httpx2.RequestError as error:
            raise Unavailable(f"{self._connections.base_url}: {error or type(error).__name__}") from error
        if response.status_code != httpx2.codes.OK:
            raise _refusal(response)
        try:
            content = response.json()
            return Answer(len(content["data"]), int(content["usage"]["prompt_tokens"]))
        except (ValueError, KeyError, TypeError):
            raise InternalError("an answer in another form than OpenAI's", reason="UNREADABLE") from None


def _refusal(response: httpx2.Response) -> HarkenError:
    """As the server tells it. The status alone where something else answers, a proxy say."""
    status = response.status_code
    error = _KINDS.get(status, InternalError)(f"HTTP {status}", reason=f"HTTP_{status}")
    try:
        told = response.json()["error"]
        error.message, error.reason = str(told["message"]), str(told["code"])
        error.retry_after_s = int(response.headers["retry-after-ms"]) / 1000
    except (ValueError, KeyError, TypeError):
        pass
    return error


def connections(url: str, tls: Tls, api_key: str | None) -> httpx2.AsyncClient:
    """As many as there are calls under way. Belongs to the event loop in which it is first used.

    Raises OSError if `url` is none, or a file of TLS cannot be used; BadKey as key_for.
    """
    try:
        scheme = httpx2.URL(url).scheme
    except httpx2.InvalidURL:
        scheme = ""
    if scheme not in ("http", "https"):
        raise OSError(f"{url} is no http address")
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    headers = dict(bearer(key_for(url, api_key, in_the_open=scheme == "http")))
    # The deadline of each call is the only limit in time; and what a proxy takes is not the server's.
    return httpx2.AsyncClient(
        base_url=url, headers=headers, verify=tls.context(), limits=limits, timeout=None, trust_env=False
    )
