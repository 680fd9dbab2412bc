"""Debian's Chromium, driven by playwright."""

import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from support.server import RunningServer
from support.tools import missing

DESKTOP, PHONE = (1280, 900), (390, 844)
WAIT_S = 30.0
QUICK = ("--studio", "--warmup-s", "0.5", "--lanes", "1", "--no-wide-lane")
"""Options of a server that is there for one test."""


@dataclass
class Opened:
    """A page of its own, with nothing kept from any other."""

    page: Any
    wrong: list[str] = field(default_factory=list)
    """What the console had as an error, what was thrown and not caught, and each request to elsewhere."""

    def text(self, selector: str) -> str:
        """What stands in the one element of this selector."""
        return str(self.page.locator(selector).inner_text())

    def compare(self, *texts: str) -> None:
        """Type texts, one a line, and wait for what the page makes of them."""
        # The examples are compared first.
        self.done("#texts-said")
        self.page.fill("#texts-input", "\n".join(texts))
        self.page.click("#texts-form [type=submit]")
        self.done("#texts-said")

    def done(self, said: str) -> None:
        """Until a place for words says something that is no `Asking ...`."""
        self.until(f"(said => said && !said.endsWith('…'))(document.querySelector('{said}').textContent)")

    def says(self, selector: str, text: str) -> None:
        """Until what stands in the one element of this selector has `text` in it; empty: until it has nothing."""
        said = f"document.querySelector('{selector}').textContent"
        self.until(f"{said}.includes({text!r})" if text else f"!{said}")

    def until(self, holds: str) -> None:
        """Until an expression is true. Playwright's own wait compiles strings, which the policy stops."""
        ends_s = time.monotonic() + WAIT_S
        while not self.page.evaluate(holds):
            assert time.monotonic() < ends_s, f"{holds} is not true after {WAIT_S} s"
            time.sleep(0.05)

    def overflow(self) -> int:
        """By how many pixels the page is wider than its window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


Open = Callable[..., Opened]
"""Of the fixture `opened`: a server, and what Browsing.open takes."""


class Browsing:
    """The browser."""

    def __init__(self, browser: Any) -> None:
        self._browser = browser

    @contextmanager
    def open(
        self, server: RunningServer, view: str = "texts", *, size: tuple[int, int] = DESKTOP, dark: bool = False,
        axe: bool = False, forgiven: str = "", **context: Any,
    ) -> Iterator[Opened]:  # fmt: skip
        """Open a view. `axe` lets its script in; the pattern `forgiven` is of errors of the test's own making."""
        home = f"http://127.0.0.1:{server.http_port}"
        held = self._browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
            bypass_csp=axe,
            reduced_motion="reduce",
            **context,
        )
        held.set_default_timeout(1e3 * WAIT_S)
        page = held.new_page()
        opened = Opened(page)

        def on_console(message: Any) -> None:
            if message.type in ("error", "warning") and not (forgiven and re.search(forgiven, message.text)):
                opened.wrong.append(f"{message.type}: {message.text}")

        def on_request(request: Any) -> None:
            if not request.url.startswith((home, "data:")):
                opened.wrong.append(f"asked {request.url}")

        def on_failed(request: Any) -> None:
            # What the policy stops has not left.
            if request.failure == "csp":
                opened.wrong.remove(f"asked {request.url}")

        page.on("console", on_console)
        page.on("pageerror", lambda error: opened.wrong.append(f"thrown: {error}"))
        page.on("request", on_request)
        page.on("requestfailed", on_failed)
        page.goto(f"{home}/#{view}")
        try:
            yield opened
        finally:
            held.close()


@contextmanager
def browsing() -> Iterator[Browsing]:
    """Start it. The test is `missing` it where it is not there."""
    path = shutil.which("chromium")
    if path is None:
        missing("chromium is not installed: tests/studio/setup.sh installs it, as root on Debian")
    try:
        from playwright.sync_api import sync_playwright  # noqa: PLC0415 - only the extra `browser` has it
    except ImportError:
        missing("playwright is not installed: make studio-check installs it")
    with sync_playwright() as playwright:
        # Its own sandbox does not start for root, nor in many containers; it meets nothing but our own page.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield Browsing(browser)
        browser.close()
