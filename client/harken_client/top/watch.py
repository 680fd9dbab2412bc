"""The servers that are watched, and the loop that asks them."""

import asyncio
import time
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from rich.console import Console, RenderableType
from rich.live import Live

from harken_client.load.scrape import Metrics, scrape
from harken_client.top.figures import Figures, Period, figures_of, is_server, models_of, restarted
from harken_client.top.frame import Row, frame

METRICS_PORT = 8002


class Watched:
    """One server. It is asked again however often it does not answer."""

    def __init__(self, url: str, model: str) -> None:
        self.url = url
        self._model = model
        self._latest: tuple[float, Metrics] | None = None
        self._asking: asyncio.Task[None] | None = None
        self.period: Period | None = None
        """The last two answers; None while there are no two of one start."""
        self.trouble = "no answer yet"
        """Empty, or why it shows nothing."""

    @property
    def name(self) -> str:
        """Its host and port."""
        return urlsplit(self.url).netloc

    def ask(self) -> asyncio.Task[None]:
        """Scrape it, unless that is still being done."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        return self._asking

    async def _ask(self) -> None:
        try:
            metrics = await asyncio.to_thread(scrape, self.url)
        except OSError as error:
            reason = getattr(error, "reason", error)
            self._forget(f"down: {getattr(reason, 'strerror', None) or reason}")
        else:
            self.took(metrics, time.monotonic())

    def took(self, metrics: Metrics, now_s: float) -> None:
        """It answered."""
        if not is_server(metrics):
            self._forget("no metrics of a harken server")
            return
        if self._model and self._model not in (models := models_of(metrics)):
            self._forget(f"has no model {self._model}, but {', '.join(models) or 'none at all'}")
            return
        before, self._latest = self._latest, (now_s, metrics)
        self.period, self.trouble = None, "up; its rates need a second look"
        if before is not None and restarted(before[1], metrics):
            self.trouble = "restarted; its rates need a second look"
        elif before is not None:
            self.period, self.trouble = Period(before[1], metrics, now_s - before[0], self._model), ""

    def _forget(self, trouble: str) -> None:
        self._latest, self.period, self.trouble = None, None, trouble


def metrics_url(server: str) -> str:
    """`server` is a URL, or host[:port]. Raises ValueError."""
    url = server if "://" in server else f"http://{server}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{server!r} is no http address, and no HOST or HOST:PORT: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{server!r} is no http address, and no HOST or HOST:PORT")
    netloc = parts.netloc if port or "://" in server else f"{parts.netloc}:{METRICS_PORT}"
    return f"{parts.scheme}://{netloc}{parts.path if parts.path not in ('', '/') else '/metrics'}"


async def watch(servers: Sequence[Watched], interval_s: float, *, once: bool, console: Console) -> bool:
    """Show the servers until Ctrl-C, or one frame. Returns whether all of them were up in the last one."""
    if once:
        await _ask(servers, interval_s)
        await asyncio.sleep(interval_s)
        await asyncio.gather(*(server.ask() for server in servers))
        console.print(_frame(servers, interval_s, console))
        return all(server.period is not None for server in servers)
    if not console.is_terminal:
        return await _redraw(servers, interval_s, console, lambda: console.print(_frame(servers, interval_s, console)))
    with Live(console=console, screen=True, auto_refresh=False) as live:
        return await _redraw(
            servers, interval_s, console, lambda: live.update(_frame(servers, interval_s, console), refresh=True)
        )


async def _redraw(servers: Sequence[Watched], interval_s: float, console: Console, draw: Callable[[], None]) -> bool:
    while True:
        began_s = time.monotonic()
        await _ask(servers, interval_s)
        draw()
        await asyncio.sleep(max(began_s + interval_s - time.monotonic(), 0.0))


async def _ask(servers: Sequence[Watched], interval_s: float) -> None:
    """Whoever has not answered by then is shown as it was."""
    await asyncio.wait([server.ask() for server in servers], timeout=interval_s)


def _frame(servers: Sequence[Watched], interval_s: float, console: Console) -> RenderableType:
    rows = [Row(server.name, _figures(server), server.trouble) for server in servers]
    up = [server.period for server in servers if server.period is not None]
    return frame(rows, figures_of(up) if len(up) > 1 else None, interval_s, console.height)


def _figures(server: Watched) -> Figures | None:
    return None if server.period is None else figures_of([server.period])
