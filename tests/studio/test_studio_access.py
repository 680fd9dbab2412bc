"""Everybody can use the page: axe-core finds nothing serious, in light and dark, at a desk and on a phone."""

from collections.abc import Callable
from typing import Any

import pytest
from studio.browser import DESKTOP, PHONE, Open, Opened
from support.server import RunningServer

VIEWS = ["texts", "attention", "live"]


def ready(one: Opened, view: str) -> None:
    if view == "live":
        one.page.wait_for_selector("#tiles .figure")
        one.page.click("summary")
    else:
        one.done(f"#{view}-said")


def serious(one: Opened) -> list[dict[str, Any]]:
    """What axe-core finds, but for what it calls minor or moderate."""
    from axe_playwright_python.sync_playwright import Axe  # noqa: PLC0415 - only the extra `browser` has it

    response = Axe().run(one.page).response
    assert len(response["passes"]) > 10
    return [
        {"rule": found["id"], "help": found["help"], "where": [node["target"] for node in found["nodes"]][:5]}
        for found in response["violations"]
        if found["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_nothing_serious(
    studio: RunningServer, opened: Open, picture: Callable[..., None], view: str, size: tuple[int, int], dark: bool
) -> None:
    one = opened(studio, view, size=size, dark=dark, axe=True)
    ready(one, view)
    assert serious(one) == []
    assert one.overflow() <= 0
    picture(one, f"{view}-{'phone' if size == PHONE else 'desktop'}-{'dark' if dark else 'light'}")


def test_axe_would_find_something(studio: RunningServer, opened: Open) -> None:
    one = opened(studio, axe=True)
    one.done("#texts-said")
    one.page.evaluate("document.querySelector('label[for=texts-input]').remove()")
    one.page.evaluate("document.querySelector('.hint').style.color = '#ddd'")
    assert {found["rule"] for found in serious(one)} >= {"label", "color-contrast"}


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_has_its_landmarks_one_heading_its_place_in_the_address_and_no_motion_where_none_is_wanted(
    studio: RunningServer, opened: Open, view: str
) -> None:
    one = opened(studio, view)
    ready(one, view)
    assert (
        one.page.locator("main").count() == one.page.locator("nav").count() == one.page.locator("header").count() == 1
    )
    assert one.page.locator("h1:visible").all_inner_texts() == [view.title()]
    assert one.page.locator("nav [aria-current=page]").all_inner_texts() == [view.title()]
    still = "(style => style.transitionDuration === '0s' && style.animationName === 'none')(getComputedStyle(one))"
    assert one.page.evaluate(f"[...document.querySelectorAll('*')].every(one => {still})")
    # Back is back.
    other = "texts" if view == "live" else "live"
    one.page.click(f"nav >> text={other.title()}")
    one.until(f"!document.querySelector('#view-{other}').hidden")
    one.page.go_back()
    one.until(f"!document.querySelector('#view-{view}').hidden")


@pytest.mark.parametrize("view", VIEWS)
def test_what_is_touched_on_a_phone_is_large_enough(studio: RunningServer, opened: Open, view: str) -> None:
    one = opened(studio, view, size=PHONE, has_touch=True, is_mobile=True)
    ready(one, view)
    touched = "[...document.querySelectorAll('button, nav a, select, textarea, summary')]"
    boxes = f"{touched}.filter(one => one.checkVisibility()).map(one => one.getBoundingClientRect())"
    small = one.page.evaluate(f"{boxes}.filter(box => box.width < 24 || box.height < 24).length")
    assert small == 0
    assert one.overflow() <= 0


def test_in_the_narrowest_window_no_name_of_a_view_breaks(studio: RunningServer, opened: Open) -> None:
    one = opened(studio, size=(320, 640))
    ready(one, "texts")
    lines = "[...document.querySelectorAll('nav a')].map(one => one.getClientRects()[0].height)"
    assert max(one.page.evaluate(lines)) < 45
    assert one.overflow() <= 0
