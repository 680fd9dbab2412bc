"""POST /v1/embeddings and GET /v1/models, in the form of OpenAI's API: whoever uses its clients points them here."""

import base64
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp

from harken_server.errors import BadValue, InvalidRequest
from harken_server.execution.finishing import Finish
from harken_server.rpc.calls import Call
from harken_server.rpc.status import Answer
from harken_server.rpc.web.exchange import Exchanges, Reply, parse_json, shown, to_json, unknown_names
from harken_server.rpc.web.inputs import Encoded, encode, values_of

_FIELDS: Final = ("input", "model", "encoding_format", "dimensions", "user")
_FORMATS: Final = ("float", "base64")
_TYPES: Final = {404: "invalid_request_error", 429: "rate_limit_error"}
_CODES: Final = {
    "KEY_MISSING": "invalid_api_key",
    "KEY_UNKNOWN": "invalid_api_key",
    "KEY_LIMIT": "rate_limit_exceeded",
    "MODEL_NOT_FOUND": "model_not_found",
    "SEQUENCE_TOO_LONG": "context_length_exceeded",
    "BACKLOG_FULL": "rate_limit_exceeded",
    "DEADLINE_UNREACHABLE": "rate_limit_exceeded",
}
"""Where OpenAI has a word of its own for it; else it is ours."""


class OpenAi:
    """The routes, and their form of errors."""

    def __init__(self, exchanges: Exchanges) -> None:
        self._exchanges: Final = exchanges

    async def embeddings(self, request: Request) -> ASGIApp:
        """POST /v1/embeddings."""

        async def work(call: Call, body: bytes) -> Reply:
            given = parse_json(body)
            problems = unknown_names(given, _FIELDS)
            name = given.get("model", "")
            if not isinstance(name, str):
                problems.append(BadValue("model", shown(name), "the name of a model"))
            encoding = given.get("encoding_format") or "float"
            if not isinstance(encoding, str) or encoding not in _FORMATS:
                problems.append(BadValue("encoding_format", shown(encoding), f"one of {', '.join(_FORMATS)}"))
            dimensions = given.get("dimensions")
            if dimensions is not None and type(dimensions) is not int:
                problems.append(BadValue("dimensions", shown(dimensions), "a number of dimensions"))
            if problems:
                raise InvalidRequest(tuple(problems))
            values = values_of(given.get("input"), "input")
            model = self._exchanges.service.find(name, 0)
            finish = Finish(dimensions=dimensions)
            encoded = await encode(self._exchanges, call, model, values, "input", "refuse", finish)
            return Reply(_content(model.manifest.name, encoded, encoding), encoded.answers)

        return await self._exchanges.answer(request, "POST /v1/embeddings", self, work)

    async def models(self, request: Request) -> ASGIApp:
        """GET /v1/models."""

        async def work(_: Call, __: bytes) -> Reply:
            names = sorted({model.manifest.name for model, _ in self._exchanges.service.models()})
            return Reply(to_json({"object": "list", "data": [_described(name) for name in names]}))

        return await self._exchanges.answer(request, "GET /v1/models", self, work)

    async def model(self, request: Request) -> ASGIApp:
        """GET /v1/models/NAME. A name may have slashes, as those of others do: it is none here, and no path either."""
        name = request.path_params["name"]
        if not name:
            raise HTTPException(404)

        async def work(_: Call, __: bytes) -> Reply:
            return Reply(to_json(_described(self._exchanges.service.find(name, 0).manifest.name)))

        return await self._exchanges.answer(request, "GET /v1/models", self, work)

    def error(self, status: int, answer: Answer) -> tuple[int, dict[str, Any]]:
        """See Form."""
        kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        code = _CODES.get(answer.reason, answer.reason.lower())
        error = {"message": answer.status.message, "type": kind, "param": answer.field or None, "code": code}
        return status, {"error": error}


def _described(name: str) -> dict[str, Any]:
    # Nobody has said when a bundle was made.
    return {"id": name, "object": "model", "created": 0, "owned_by": "harken"}


def _content(model: str, encoded: Encoded, encoding: str) -> bytes:
    entries = [
        {
            "object": "embedding",
            "index": index,
            "embedding": _base64(vector) if encoding == "base64" else vector,
        }
        for index, vector in enumerate(encoded.vectors)
    ]
    tokens = sum(answer.tokens for answer in encoded.answers.answers)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return to_json({"object": "list", "data": entries, "model": model, "usage": usage})


def _base64(vector: npt.NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4", copy=False).tobytes()).decode()
