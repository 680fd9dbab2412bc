"""The page's own files: read once at the start, and served without a key, since they hold nothing of anybody."""

from hashlib import sha256
from pathlib import Path
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from harken_server.rpc.calls import REQUEST_ID
from harken_server.rpc.web.exchange import Exchanges, given

PAGE: Final = Path(__file__).parent / "page"

_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # Text cannot become markup even by a mistake of the page's own: innerHTML and its like raise.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""The Content-Security-Policy: nothing from elsewhere, nothing inline, nowhere to send anything but here."""

_HEADERS: Final = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Asked for each time, and sent only if it is another one: a page goes with its server.
    "cache-control": "no-cache",
}


class Files:
    """The routes."""

    def __init__(self, exchanges: Exchanges) -> None:
        self._exchanges: Final = exchanges
        # No name that comes in a request ever becomes a path.
        self._files: Final = {
            path.name: (path.read_bytes(), _TYPES[path.suffix]) for path in PAGE.iterdir() if path.suffix in _TYPES
        }

    async def file(self, request: Request) -> Response:
        """GET / and GET /studio/NAME. Raises HTTPException 404."""
        name = request.path_params.get("name", "index.html")
        if name not in self._files:
            raise HTTPException(404)
        content, media_type = self._files[name]
        tag = f'"{sha256(content).hexdigest()[:32]}"'
        request_id = self._exchanges.calls.request_id(given(request, REQUEST_ID))
        headers = {**_HEADERS, "etag": tag, REQUEST_ID: request_id}
        if given(request, "if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=media_type)
