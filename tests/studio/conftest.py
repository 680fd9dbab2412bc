"""A real browser before a real server. What the page says in its console as an error fails the test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from studio.browser import Browsing, Open, Opened, browsing
from support.server import RunningServer, running_server
from support.tools import REPOSITORY

PICTURES = REPOSITORY / "build" / "studio" / "pictures"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browsing]:
    """One browser for all tests; skips where there is none."""
    with browsing() as browser:
        yield browser


@pytest.fixture(scope="session")
def studio(minilm_models: Path) -> Iterator[RunningServer]:
    """A server with its studio, for all tests that leave it as it was."""
    with running_server(minilm_models, "--studio", "--warmup-s", "1") as server:
        yield server


@pytest.fixture
def opened(chromium: Browsing) -> Iterator[Open]:
    """Open a server's studio: `opened(server, "live", dark=True)`; see Browsing.open."""
    with ExitStack() as stack:
        opened_all: list[Opened] = []

        def open_it(server: RunningServer, view: str = "texts", **how: Any) -> Opened:
            one = stack.enter_context(chromium.open(server, view, **how))
            opened_all.append(one)
            return one

        yield open_it
        for one in opened_all:
            assert one.wrong == [], one.wrong


@pytest.fixture
def picture(request: pytest.FixtureRequest) -> Callable[[Opened, str], None]:
    """Keep a picture for whoever wants to look at the page."""

    def keep(one: Opened, name: str) -> None:
        PICTURES.mkdir(parents=True, exist_ok=True)
        one.page.screenshot(path=PICTURES / f"{name}.png", full_page=True)

    return keep
