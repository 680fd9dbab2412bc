"""A Docker engine that makes nothing: it tells what it was asked to make. For what Docker Compose checks only then."""

import json
import re
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

_API: Final = "1.51"
_VERSION: Final = {"ApiVersion": _API, "MinAPIVersion": "1.24", "Version": "28.3.0", "Os": "linux", "Arch": "amd64"}
_IMAGE: Final = {"Id": f"sha256:{'1' * 64}", "Os": "linux", "Architecture": "amd64", "Config": {}}


class Engine(socketserver.ThreadingUnixStreamServer):
    """Has every image, and nothing else."""

    daemon_threads = True

    def __init__(self, socket: Path) -> None:
        super().__init__(str(socket), _Answers)
        self.host: Final = f"unix://{socket}"
        """As DOCKER_HOST has it."""
        self.containers: Final[dict[str, Any]] = {}
        """What each was to be, by its name."""

    def answer(self, method: str, path: str, query: str, body: Any) -> tuple[int, Any]:
        """(status, body), as the engine's API has them."""
        if name := re.fullmatch(r"/containers/([^/]+)/json", path):
            made = self.containers.get(name[1])
            if made is not None:
                state = {"Status": "created", "Running": False}
                rest = {"Created": "2026-01-01T00:00:00Z", "NetworkSettings": {"Networks": {}}, "Mounts": []}
                return 200, {"Id": name[1], "Name": f"/{name[1]}", "State": state, "Config": made, **rest}
        if path == "/containers/create":
            name_of = re.search("name=([^&]+)", query)
            assert name_of is not None
            self.containers[name_of[1]] = body
            return 201, {"Id": name_of[1], "Warnings": []}
        if path == "/volumes/create":
            return 201, {"Name": body["Name"], "Driver": "local", "Mountpoint": "/", "Scope": "local"}
        if path == "/networks/create":
            return 201, {"Id": "network"}
        if re.fullmatch("/images/.+/json", path):
            return 200, _IMAGE
        known: dict[str, Any] = {
            "/_ping": "OK", "/version": _VERSION, "/info": {"OSType": "linux"}, "/volumes": {"Volumes": []},
            "/containers/json": [], "/networks": [], "/images/json": [],
        }  # fmt: skip
        return (200, known[path]) if path in known else (404, {"message": f"no {method} {path}"})


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Engine

    def log_message(self, *_: object) -> None:
        """Nothing: its caller has no address that could be told."""

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, _, query = re.sub(r"^/v[\d.]+", "", self.path).partition("?")
        status, answer = self.server.answer(self.command, path, query, json.loads(body) if body else None)
        content = json.dumps(answer).encode()
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": len(content), "API-Version": _API}
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_POST = do_HEAD = _any  # noqa: N815 - http.server's names


@contextmanager
def docker_engine() -> Iterator[Engine]:
    """One that listens on a socket; in a folder whose name is short, since a socket's may not be long."""
    with TemporaryDirectory() as folder, Engine(Path(folder) / "engine") as engine:
        thread = threading.Thread(target=engine.serve_forever, daemon=True)
        thread.start()
        try:
            yield engine
        finally:
            engine.shutdown()
            thread.join()
