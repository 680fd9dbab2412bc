"""Texts in the page: compared, listed by nearness, and shown as the model reads them."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from harken_client import Client
from studio.browser import PHONE, QUICK, Open, Opened
from support.server import RunningServer, running_server

TEXTS = ("The cat sleeps.", "A kitten is napping.", "Interest rates rose.", "The central bank raised its rate.")


def cosines(server: RunningServer, texts: tuple[str, ...]) -> np.ndarray:
    with Client(server.target) as client:
        vectors = client.encode(list(texts))
    return np.asarray(vectors @ vectors.T)


def matrix(one: Opened) -> np.ndarray:
    rows = one.page.locator("#matrix tbody tr")
    return np.array([[float(cell) for cell in row.locator("td").all_inner_texts()] for row in rows.all()])


def test_the_examples_are_compared_at_once(studio: RunningServer, opened: Open, picture: Callable[..., None]) -> None:
    one = opened(studio)
    one.done("#texts-said")
    assert one.text("#texts-said").startswith("8 texts, ")
    assert one.text("#health-said") == "serving"
    assert one.page.title() == "Texts - harken studio"
    picture(one, "texts")


def test_similarities_are_those_of_the_client_and_neighbours_stand_in_their_order(
    studio: RunningServer, opened: Open
) -> None:
    one = opened(studio)
    one.compare(*TEXTS)
    truth = cosines(studio, TEXTS)
    np.testing.assert_allclose(matrix(one), truth, atol=0.0051)
    for chosen in (0, 2):
        one.page.locator("#matrix tbody button").nth(chosen).click()
        order = [index for index in np.argsort(-truth[chosen]) if index != chosen]
        assert one.page.locator("#nearest .name").all_inner_texts() == [TEXTS[index] for index in order]
        scores = [float(score) for score in one.page.locator("#nearest .score").all_inner_texts()]
        np.testing.assert_allclose(scores, truth[chosen][order], atol=0.0051)
        assert one.text("#nearest-of") == TEXTS[chosen]
    # A neighbour may be chosen in turn.
    one.page.locator("#nearest button").first.click()
    assert one.text("#nearest-of") == TEXTS[3]


def test_a_text_is_shown_as_the_model_reads_it(studio: RunningServer, opened: Open) -> None:
    one = opened(studio)
    one.compare("unhappiness \U0001f63a", "two")
    words = one.page.locator("#tokens bdi").all_inner_texts()
    assert words == ["[CLS]", "un", "##ha", "##pp", "##iness", "[UNK]", "[SEP]"]
    first = one.page.locator("#tokens li").nth(5)
    assert first.get_attribute("title") == "id 100, characters 12 to 13"
    assert not one.page.locator("#tokens small").nth(5).is_visible()
    one.page.check("#tokens-ids")
    assert one.page.locator("#tokens small").nth(5).inner_text() == "100"
    assert one.text("#tokens-said").startswith("7 tokens of at most ")
    assert not one.page.locator("#tokens-cut").is_visible()


def test_what_is_cut_off_is_marked_and_the_rest_is_compared(studio: RunningServer, opened: Open) -> None:
    one = opened(studio)
    one.compare("word " * 600 + "the end", "\U0001f63a " * 8000 + "far away", "short")
    assert one.text("#texts-said").endswith("; 2 texts cut off.")
    cut = one.text("#tokens-cut")
    assert "Cut off: " in cut
    assert "at least" not in cut
    assert cut.endswith("word the end")
    one.page.locator("#matrix tbody button").nth(1).click()
    assert "Cut off: at least " in one.text("#tokens-cut")
    assert "characters more" in one.text("#tokens-cut")
    assert np.diag(matrix(one)) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("size", [(1280, 900), PHONE, (320, 640)])
def test_forty_texts_fit_any_window(studio: RunningServer, opened: Open, size: tuple[int, int]) -> None:
    one = opened(studio, size=size)
    one.compare(*[f"{'Text' if number % 3 else 'A longer text, with the'} number {number}" for number in range(40)])
    assert matrix(one).shape == (40, 40)
    assert one.overflow() <= 0
    # No figure breaks into two lines.
    lines = "(range => [...document.querySelectorAll('#matrix td[data-at]')].map(cell => "
    lines += "(range.selectNodeContents(cell), range.getClientRects().length)))(document.createRange())"
    assert set(one.page.evaluate(lines)) == {1}
    one.compare("w" * 3000, "two")
    assert one.overflow() <= 0


def test_no_text_is_no_error_and_blank_lines_may_part_them(studio: RunningServer, opened: Open) -> None:
    one = opened(studio)
    one.done("#texts-said")
    one.page.click("text=Clear")
    assert one.text("#texts-said").startswith("There is no text yet")
    assert not one.page.locator("#texts-results").is_visible()
    one.page.fill("#texts-input", "one\ntwo\n  \n\nthree\n")
    one.page.check("input[value=paragraphs]")
    one.page.press("#texts-input", "Control+Enter")
    one.done("#texts-said")
    assert one.text("#texts-said").startswith("2 texts, ")


def test_the_servers_error_is_shown_with_its_field_and_limit(minilm_models: Path, opened: Open) -> None:
    with running_server(minilm_models, *QUICK, "--max-inputs", "9", "--max-text-bytes", "100") as server:
        one = opened(server, forgiven="400 .Bad Request")
        one.done("#texts-said")
        one.compare(*"abcdefghij")
        assert one.text("#texts-said") == "The server refuses: texts: has 10 elements, over the limit of 9"
        assert not one.page.locator("#texts-results").is_visible(), "the examples' matrix below what was refused"
        one.compare("a", "b" * 101)
        assert one.text("#texts-said") == "The server refuses: texts[1]: has 101 bytes, over the limit of 100"
        one.compare("a", "b")
        assert one.text("#texts-said").startswith("2 texts, ")
        assert one.page.locator("#texts-results").is_visible()


def test_with_the_server_gone_no_result_of_before_stays_below_the_error(minilm_models: Path, opened: Open) -> None:
    with running_server(minilm_models, *QUICK) as server:
        one = opened(server, forgiven="ERR_|Failed to fetch")
        one.done("#texts-said")
        assert one.page.locator("#texts-results").is_visible()
        server.process.kill()
        server.process.wait()
        one.compare("a", "b")
        assert "wrong" in str(one.page.get_attribute("#texts-said", "class"))
        assert not one.page.locator("#texts-results").is_visible()


def test_a_server_that_returns_with_another_model_is_asked_for_that(
    minilm_models: Path, tmp_path: Path, opened: Open
) -> None:
    copytree(minilm_models / "all-MiniLM-L6-v2" / "1", tmp_path / "renamed" / "1")
    manifest = tmp_path / "renamed" / "1" / "bundle.json"
    manifest.write_text(manifest.read_text().replace('"all-MiniLM-L6-v2"', '"renamed"'))
    with ExitStack() as stack:
        server = stack.enter_context(running_server(minilm_models, *QUICK))
        one = opened(server, forgiven="ERR_|Failed to fetch|Failed to load resource")
        one.done("#texts-said")
        server.process.kill()
        server.wait_exit()
        stack.enter_context(running_server(tmp_path, *QUICK, "--http-port", str(server.http_port)))
        one.compare("a", "b")
        assert "'all-MiniLM-L6-v2' is not served here; served: renamed" in one.text("#texts-said")
        one.until("document.querySelector('#texts-model').value === 'renamed'")
        one.compare("a", "b")
        assert one.text("#texts-said").endswith(" by renamed.")


def test_everything_can_be_done_by_keyboard(studio: RunningServer, opened: Open) -> None:
    one = opened(studio)
    one.done("#texts-said")
    keyboard, focus = one.page.keyboard, "document.activeElement"
    keyboard.press("Tab")
    assert one.page.evaluate(f"{focus}.className") == "skip"
    keyboard.press("Enter")
    keyboard.press("Tab")
    assert one.page.evaluate(f"{focus}.id") == "texts-input"
    keyboard.press("Control+A")
    keyboard.type("The cat sleeps.\nA kitten naps.\nRates rose.")
    keyboard.press("Control+Enter")
    one.until("document.querySelectorAll('#matrix tbody tr').length === 3")
    one.page.focus("#matrix")
    keyboard.press("Tab")
    keyboard.press("Tab")
    keyboard.press("Enter")
    assert one.text("#nearest-of") == "A kitten naps."
    # The focus stays where it was, and is to be seen.
    assert "A kitten naps." in one.page.evaluate(f"{focus}.textContent")
    assert one.page.evaluate(f"getComputedStyle({focus}).outlineStyle") == "solid"
