"""POST /embed, GET /info and GET /health, in the form of text-embeddings-inference."""

from importlib.metadata import version as distribution_version
from typing import Any, Final

from starlette.requests import Request
from starlette.types import ASGIApp

from harken_server.errors import BadValue, InvalidRequest, NotReady
from harken_server.execution.finishing import Finish
from harken_server.rpc.calls import Call
from harken_server.rpc.status import Answer
from harken_server.rpc.web.exchange import Exchanges, Reply, parse_json, shown, to_json, unknown_names
from harken_server.rpc.web.inputs import encode, values_of
from harken_server.settings import Settings
from harken_server.values import Truncate

_FIELDS: Final = ("inputs", "truncate", "normalize", "truncation_direction", "dimensions")
_DIRECTIONS: Final = ("right", "left")
_ERRORS: Final = {
    400: (413, "Validation"),
    413: (413, "Validation"),
    401: (401, "Validation"),
    403: (403, "Validation"),
    404: (404, "Validation"),
    429: (429, "Overloaded"),
    503: (503, "Unhealthy"),
}
"""Status and kind of error there, for each of our statuses; else it is the backend's."""
_EMPTY: Final = ("NO_TOKENS", "MISSING")
_UNREADABLE: Final = ("NOT_JSON", "BAD_VALUE", "UNKNOWN_NAME", "NOT_UTF8")


class Embed:
    """The routes, and their form of errors. They mean the only model, or the first by name."""

    def __init__(self, exchanges: Exchanges, settings: Settings) -> None:
        self._exchanges: Final = exchanges
        self._settings: Final = settings

    async def embed(self, request: Request) -> ASGIApp:
        """POST /embed."""

        async def work(call: Call, body: bytes) -> Reply:
            # As there, null is what is not given.
            given = {name: value for name, value in parse_json(body).items() if value is not None}
            problems = unknown_names(given, _FIELDS)

            def flag(name: str, default: bool) -> bool:
                value = given.get(name)
                if value is not None and type(value) is not bool:
                    problems.append(BadValue(name, shown(value), "true or false"))
                return default if value is None else bool(value)

            truncate, normalize = flag("truncate", False), flag("normalize", True)
            direction = given.get("truncation_direction") or "right"
            if not isinstance(direction, str) or direction.lower() not in _DIRECTIONS:
                problems.append(BadValue("truncation_direction", shown(direction), f"one of {', '.join(_DIRECTIONS)}"))
            dimensions = given.get("dimensions")
            if dimensions is not None and type(dimensions) is not int:
                problems.append(BadValue("dimensions", shown(dimensions), "a number of dimensions"))
            if problems:
                raise InvalidRequest(tuple(problems))
            values = values_of(given.get("inputs"), "inputs")
            service = self._exchanges.service
            model = service.find(_only(service.models()), 0)
            side: Truncate = "left" if direction.lower() == "left" else "right"
            finish = Finish(normalize, dimensions)
            encoded = await encode(
                self._exchanges, call, model, values, "inputs", side if truncate else "refuse", finish
            )
            return Reply(to_json(encoded.vectors), encoded.answers)

        return await self._exchanges.answer(request, "POST /embed", self, work)

    async def info(self, request: Request) -> ASGIApp:
        """GET /info."""

        async def work(_: Call, __: bytes) -> Reply:
            service = self._exchanges.service
            manifest = (model := service.find(_only(service.models()), 0)).manifest
            described = {
                "model_id": manifest.name,
                "model_sha": model.sha256,
                "model_dtype": {"fp32": "float32", "fp16": "float16"}.get(manifest.precision, manifest.precision),
                "model_type": {"embedding": {"pooling": manifest.pooling}},
                "max_concurrent_requests": self._settings.max_backlog_sequences,
                "max_input_length": manifest.max_length,
                "max_batch_tokens": self._settings.max_batch_tokens or None,
                "max_batch_requests": self._settings.max_batch_sequences,
                "max_client_batch_size": service.limits.inputs,
                "auto_truncate": False,
                "tokenization_workers": self._settings.tokenize_threads,
                "version": distribution_version("harken"),
            }
            return Reply(to_json(described))

        return await self._exchanges.answer(request, "GET /info", self, work)

    async def health(self, request: Request) -> ASGIApp:
        """GET /health: whether it takes requests."""

        async def work(_: Call, __: bytes) -> Reply:
            if not self._exchanges.service.ready:
                raise NotReady("loading" if self._exchanges.service.state == "loading" else "draining", 1.0)
            return Reply(b"", media_type="text/plain")

        return await self._exchanges.answer(request, "GET /health", self, work)

    def error(self, status: int, answer: Answer) -> tuple[int, dict[str, Any]]:
        """See Form."""
        if answer.reason in _EMPTY:
            said = (400, "Empty")
        elif answer.reason in _UNREADABLE:
            said = (422, "Tokenizer")
        else:
            said = _ERRORS.get(status, (status, "Backend"))
        return said[0], {"error": answer.status.message, "error_type": said[1]}


def _only(models: Any) -> str:
    """The protocol names no model."""
    return min((model.manifest.name for model, _ in models), default="")
