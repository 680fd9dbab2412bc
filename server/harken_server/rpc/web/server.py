"""The HTTP server itself: its routes, its port and its limits."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import Final

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from harken_server.attend import Attend
from harken_server.execution.control import Control
from harken_server.execution.history import History
from harken_server.rpc.calls import REQUEST_ID
from harken_server.rpc.web.attend import AttendPage
from harken_server.rpc.web.connection import HEAD_S, Connection
from harken_server.rpc.web.embed import Embed
from harken_server.rpc.web.exchange import Exchanges, given
from harken_server.rpc.web.oip import Oip
from harken_server.rpc.web.openai import OpenAi
from harken_server.rpc.web.studio.routes import routes as studio_routes
from harken_server.settings import Settings

_IDLE_S: Final = 75
"""How long a connection may say nothing between two requests: longer than what proxies commonly keep theirs."""


class Web:
    """Serves over HTTP on the running event loop."""

    def __init__(
        self,
        exchanges: Exchanges,
        door: Attend,
        control: Control,
        history: History,
        settings: Settings,
        tls: ssl.SSLContext | None,
    ) -> None:
        """`tls`: None is plain text."""
        self._exchanges: Final = exchanges
        self._door: Final = door
        self._history: Final = history
        self._settings: Final = settings
        _silence()
        config = uvicorn.Config(
            self._app(control),
            loop="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            # Nothing here speaks it, whatever is installed beside.
            ws="none",
            http=type("LimitedConnection", (Connection,), {"most": settings.max_connections}),
            timeout_keep_alive=_IDLE_S,
            timeout_graceful_shutdown=ceil(settings.max_request_s) + 1,
            backlog=2048,
            ssl_context_factory=None if tls is None else lambda *_: tls,
        )
        self._server: Final = _Server(config)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Listen. Returns the port. Raises OSError."""
        settings = self._settings
        family = socket.AF_INET6 if ":" in settings.listen else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if settings.so_reuseport:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listening.bind((settings.listen, settings.http_port))
        except OSError:
            listening.close()
            raise
        self._serving = asyncio.create_task(self._server.serve([listening]))
        port: int = listening.getsockname()[1]
        return port

    def close(self) -> None:
        """Close the port and idle connections; others close with their answer. Bodies that still come are refused."""
        self._server.should_exit = True
        self._exchanges.drain()

    async def stop(self) -> None:
        """After `close`, once no call is open: end what is left."""
        self._server.force_exit = True
        if self._serving is not None:
            await self._serving

    def _app(self, control: Control) -> Starlette:
        exchanges = self._exchanges
        openai = OpenAi(exchanges)
        attend = AttendPage(exchanges, self._door, openai, self._settings.max_message_bytes)
        embed = Embed(exchanges, self._settings)
        oip = Oip(exchanges, control)
        version = "/versions/{version}"
        of_model = "/v2/models/{name}"
        routes = [
            Route("/v1/embeddings", openai.embeddings, methods=["POST"]),
            Route("/v1/attend", attend.attend, methods=["POST"]),
            Route("/v1/models", openai.models),
            Route("/v1/models/{name:path}", openai.model),
            Route("/embed", embed.embed, methods=["POST"]),
            Route("/info", embed.info),
            Route("/health", embed.health),
            Route("/v2", oip.server),
            Route("/v2/health/live", oip.live),
            Route("/v2/health/ready", oip.ready),
            Route("/v2/models/stats", oip.statistics),
            *[
                Route(f"{of_model}{middle}{end}", handle, methods=[method])
                for middle in ("", version)
                for end, handle, method in (
                    ("", oip.model, "GET"),
                    ("/ready", oip.model_ready, "GET"),
                    ("/config", oip.config, "GET"),
                    ("/stats", oip.statistics, "GET"),
                    ("/infer", oip.infer, "POST"),
                )
            ],
            Route("/v2/repository/index", oip.index, methods=["POST"]),
            Route("/v2/repository/models/{name}/load", oip.load, methods=["POST"]),
            Route("/v2/repository/models/{name}/unload", oip.unload, methods=["POST"]),
            Route("/healthz", self._healthz),
            Route("/readyz", self._readyz),
            *(studio_routes(exchanges, self._history) if self._settings.studio else ()),
        ]
        app = Starlette(routes=routes, exception_handlers={404: self._no_route, 405: self._no_route})
        # A redirect would be an answer in nobody's form, and clients lose their body on it.
        app.router.redirect_slashes = False
        return app

    async def _healthz(self, request: Request) -> Response:
        return Response("ok\n", headers=self._named(request), media_type="text/plain")

    async def _readyz(self, request: Request) -> Response:
        service = self._exchanges.service
        ready = service.ready
        said = "ok\n" if ready else f"{service.condition}\n"
        return Response(said, 200 if ready else 503, self._named(request), media_type="text/plain")

    async def _no_route(self, request: Request, error: Exception) -> Response:
        """No such path, or not by this method: in the form of those whose path it is."""
        assert isinstance(error, HTTPException)
        path = request.scope["path"][:200]
        headers = self._named(request)
        if error.status_code == 405:
            headers["allow"] = ", ".join(sorted((error.headers or {})["Allow"].split(", ")))
            message = f"{request.method} is not served for {path}; served: {headers['allow']}"
        else:
            message = f"{path} is not served here; served: /v1/embeddings, /v1/attend, /embed, /v2/models/NAME/infer"
        return JSONResponse(_form_of(path, message), error.status_code, headers)

    def _named(self, request: Request) -> dict[str, str]:
        """What every answer has among its headers; for those that are no calls."""
        return {REQUEST_ID: self._exchanges.calls.request_id(given(request, REQUEST_ID))}


_EMBED: Final = ("/embed", "/info", "/rerank", "/predict", "/similarity", "/tokenize", "/decode")
"""Where text-embeddings-inference has its calls."""


def _form_of(path: str, message: str) -> dict[str, object]:
    if path.startswith("/v1/"):
        return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": "not_served"}}
    if path.startswith(_EMBED):
        return {"error": message, "error_type": "Validation"}
    return {"error": message}


def _silence() -> None:
    """uvicorn's lines are no JSON, and whoever connects can make them; what matters is logged and counted by us."""
    logger = logging.getLogger("uvicorn")
    logger.propagate = False
    logger.addHandler(logging.NullHandler())


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's own, which gives a TLS handshake a minute, and says no word of how to change it."""
        config, loop = self.config, asyncio.get_running_loop()

        def connect() -> Connection:
            connection: Connection = config.http_protocol_class(  # type: ignore[call-arg, assignment]  # it is ours
                config=config, server_state=self.server_state, app_state={}, _loop=loop
            )
            return connection

        limit_s = None if config.ssl is None else HEAD_S
        self.servers = [
            await loop.create_server(
                connect, sock=one, ssl=config.ssl, backlog=config.backlog, ssl_handshake_timeout=limit_s
            )
            for one in sockets or ()
        ]
        self.started = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The process has handlers of its own, and drains before it stops."""
        yield
