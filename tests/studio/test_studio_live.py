"""The server at work in the page: its figures are true, its batches are drawn, and it says when nobody answers."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Thread

import pytest
from harken_client import Client
from studio.browser import PHONE, QUICK, Open, Opened
from support.api_keys import KeyFile
from support.server import RunningServer, running_server


@contextmanager
def load(server: RunningServer, callers: int = 6) -> Iterator[None]:
    """Mixed lengths, without a pause."""
    over = False

    def call(number: int) -> None:
        with Client(server.target) as client, suppress(Exception):
            turn = number
            while not over:
                client.encode([[101] + [1000 + turn % 7000] * ((turn * 37) % 90 + 1) for turn in range(turn, turn + 5)])
                turn += 5 * callers

    with ExitStack() as stack:
        for number in range(callers):
            thread = Thread(target=call, args=(1 + 5 * number,))
            thread.start()
            stack.callback(thread.join)
        try:
            yield
        finally:
            over = True


def figure(one: Opened, name: str) -> float:
    text = one.page.locator("#tiles > div", has=one.page.get_by_text(name, exact=True)).locator(".figure").inner_text()
    return float(re.sub(r"[^0-9.]", "", text) or 0)


def painted(one: Opened, canvas: int) -> set[str]:
    """Which of the two colours of batches stand on a canvas."""
    return set(one.page.evaluate(
        """index => {
          const canvas = document.querySelectorAll("#batches canvas")[index];
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          const style = getComputedStyle(document.documentElement);
          const found = [];
          for (const name of ["accent", "padding"]) {
            const hex = style.getPropertyValue(`--${name}`).trim();
            const rgb = [1, 3, 5].map(start => parseInt(hex.slice(start, start + 2), 16));
            const is = at => data[at + 3] > 200 && rgb.every((value, index) => Math.abs(value - data[at + index]) < 12);
            for (let at = 0; at < data.length; at += 4) if (is(at)) { found.push(name); break }
          }
          return found;
        }""", canvas,
    ))  # fmt: skip


def drawn(one: Opened) -> list[set[str]]:
    return [painted(one, index) for index in range(one.page.locator("#batches canvas").count())]


def percentiles_s(one: Opened) -> list[float]:
    tile = one.page.locator("#tiles > div", has=one.page.get_by_text("Time of a call", exact=True)).inner_text()
    return [float(value) * (1e-3 if unit == "ms" else 1) for value, unit in re.findall(r"([0-9.]+) (ms|s)\b", tile)]


def since_the_start(one: Opened) -> float:
    return float(one.page.locator("#tiles .more").first.inner_text().split()[0].replace(",", ""))


@pytest.mark.parametrize(("size", "dark"), [((1280, 900), False), (PHONE, True)])
def test_under_load_the_figures_move_and_batches_are_drawn_with_their_padding(
    studio: RunningServer, opened: Open, picture: Callable[..., None], size: tuple[int, int], dark: bool
) -> None:
    with load(studio):
        one = opened(studio, "live", size=size, dark=dark)
        one.until("document.querySelectorAll('#batches-rows tr').length === 48")
        before = studio.total("harken_finished_total", outcome="answered")
        one.page.wait_for_timeout(3_000)
        told = since_the_start(one)
        # It asks each second.
        assert before <= told <= studio.total("harken_finished_total", outcome="answered")
        rate = figure(one, "Answered")
        assert rate > 0
        assert figure(one, "Tokens") > rate
        p50_s, p95_s, p99_s = percentiles_s(one)
        assert 0 < p50_s <= p95_s <= p99_s
        assert figure(one, "Memory") > 0
        assert one.page.locator("#lanes dt").all_inner_texts()[0] == "lane 0"
        studio.wait_until("a padded batch", lambda: {"accent", "padding"} in drawn(one))
        line = one.page.locator("#tiles polyline").first.get_attribute("points")
        assert len(set(re.findall(r",([0-9.]+)", line))) > 2
        picture(one, f"live-{size[0]}{'-dark' if dark else ''}")
        assert one.overflow() <= 0


def test_a_batch_is_told_by_pointer_by_keys_and_in_the_table(studio: RunningServer, opened: Open) -> None:
    with Client(studio.target) as client:
        client.encode([[101] * 10, [102] * 12, [103] * 50])
        last = client.explain_batches()[-1]
    one = opened(studio, "live")
    one.page.wait_for_selector("#batches canvas")
    told = f"Batch {last.number} of all-MiniLM-L6-v2/1: "
    lane = "wide" if last.lane == "wide" else f"lane {last.lane}"
    canvas = one.page.locator(f"#batches canvas[aria-label^='Batches of {lane},']")
    canvas.hover(position={"x": 5, "y": 14})
    assert one.text("#batches-point").startswith(told)
    canvas.focus()
    one.page.keyboard.press("ArrowLeft")
    assert one.text("#batches-point").startswith(told)
    assert one.text("#batches-point").endswith(".")
    one.page.click("summary")
    cells = one.page.locator("#batches-rows tr").first.locator("td").all_inner_texts()
    assert cells[:4] == [str(last.number), last.lane, str(last.sequences), str(last.padded_length)]


def test_it_can_be_paused_and_asks_only_while_it_is_seen(studio: RunningServer, opened: Open) -> None:
    one = opened(studio, "live")
    asked: list[str] = []
    one.page.on("request", lambda request: asked.append(request.url) if "/studio/live" in request.url else None)
    one.page.wait_for_timeout(2_500)
    assert 1 <= len(asked) <= 4
    one.page.click("text=Pause")
    assert one.page.get_attribute("#live-pause", "aria-pressed") == "true"
    asked.clear()
    one.page.wait_for_timeout(1_500)
    assert asked == []
    one.page.click("text=Pause")
    one.page.click("nav >> text=Texts")
    one.page.wait_for_timeout(300)
    asked.clear()
    one.page.wait_for_timeout(1_500)
    assert asked == []


def test_where_nothing_runs_and_where_no_batches_are_kept_it_says_so(tiny_models: Path, opened: Open) -> None:
    with running_server(tiny_models, *QUICK) as server:
        assert "No batch has run yet" in batches_of(opened(server, "live", forgiven="ERR_"))
    with running_server(tiny_models, *QUICK, "--debug-batches", "0") as server:
        assert "debug_batches is 0" in batches_of(opened(server, "live"))


def batches_of(one: Opened) -> str:
    one.page.wait_for_selector("#batches p")
    return one.text("#batches")


def test_a_batch_that_two_answers_tell_is_shown_once(tiny_models: Path, opened: Open) -> None:
    with running_server(tiny_models, *QUICK) as server:
        with Client(server.target) as client:
            client.encode([[5] * 20])
        one = opened(server, "live")
        one.page.wait_for_selector("#batches canvas")
        one.page.click("#live-pause")
        told = one.page.evaluate("fetch('/studio/live').then(answer => answer.json())")["batches"]
        assert len(told) == 1
        shown = one.page.evaluate(
            """async told => {
              const { startBatches } = await import("/studio/batches.js");
              const batches = startBatches();
              for (const _ of [1, 2]) batches.show(told);
              return document.querySelectorAll("#batches-rows tr").length;
            }""", told,
        )  # fmt: skip
        assert shown == 1


def test_a_server_that_goes_away_is_said_to_and_its_return_is_noticed(
    tiny_models: Path, opened: Open, picture: Callable[..., None]
) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(running_server(tiny_models, *QUICK))
        port = server.http_port
        with Client(server.target) as client:
            client.encode([[5] * 20, [6] * 30])
        one = opened(server, "live", forgiven="ERR_|503 .Service Unavailable")
        one.page.wait_for_selector("#batches canvas")
        server.process.kill()
        one.says("#live-said", "does not answer")
        one.says("#health-said", "the server does not answer")
        picture(one, "live-away")
        assert one.page.locator("#live-figures").is_visible()
        one.page.click("nav >> text=Texts")
        one.page.click("#texts-form [type=submit]")
        one.says("#texts-said", "does not answer")
        one.page.click("nav >> text=Live")
        server.wait_exit()
        stack.enter_context(running_server(tiny_models, *QUICK, "--http-port", str(port)))
        one.says("#health-said", "serving")
        one.says("#live-said", "")
        # It counts anew, and what the old one ran is not shown as its.
        assert "No batch has run yet" in batches_of(one)


def test_a_key_is_asked_for_and_kept_nowhere_but_in_the_page(
    minilm_models: Path, tmp_path: Path, opened: Open, picture: Callable[..., None]
) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    keys.write(plain="", admin="admin = true")
    with running_server(minilm_models, *QUICK, *keys.options) as server:
        one = opened(server, forgiven="Failed to load resource")
        one.page.wait_for_selector("#key[open]")
        picture(one, "key")
        assert one.page.evaluate("document.activeElement.id") == "key-input"
        one.page.fill("#key-input", "w" * 43)
        one.page.keyboard.press("Enter")
        one.says("#key-said", "not known")
        one.page.fill("#key-input", keys.keys["plain"])
        one.page.keyboard.press("Enter")
        one.page.wait_for_selector("#matrix td")
        assert not one.page.locator("#key").is_visible()
        one.page.click("nav >> text=Live")
        one.says("#live-said", "no admin key")
        one.page.click("text=Use another key")
        one.page.fill("#key-input", keys.keys["admin"])
        one.page.click("text=Use it")
        one.page.wait_for_selector("#tiles .figure")
        kept = one.page.evaluate(
            "async () => JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href, "
            "(await indexedDB.databases()).length, document.documentElement.outerHTML, history.state])"
        )
        assert not any(key in kept for key in keys.keys.values())
        one.page.reload()
        one.page.wait_for_selector("#key[open]")


def test_whoever_gives_no_key_is_told_what_the_server_says(tiny_models: Path, tmp_path: Path, opened: Open) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    keys.write(plain="")
    with running_server(tiny_models, *QUICK, *keys.options) as server:
        one = opened(server, "live", forgiven="401 .Unauthorized")
        one.page.wait_for_selector("#key[open]")
        one.page.keyboard.press("Escape")
        one.says("#live-said", "an API key is needed")
        assert one.page.locator("#live-key").is_visible()
