"""What the setting `studio` adds to the HTTP port."""

from starlette.routing import Route

from harken_server.execution.history import History
from harken_server.rpc.web.exchange import Exchanges
from harken_server.rpc.web.studio.files import Files
from harken_server.rpc.web.studio.live import Live
from harken_server.rpc.web.studio.tokens import TokensOf


def routes(exchanges: Exchanges, history: History) -> list[Route]:
    """The page at `/`, its files, and the two calls that only it has."""
    files, live, tokens = Files(exchanges), Live(exchanges, history), TokensOf(exchanges)
    return [
        Route("/", files.file),
        Route("/studio/live", live.live),
        Route("/studio/tokens", tokens.tokens, methods=["POST"]),
        Route("/studio/{name}", files.file),
    ]
