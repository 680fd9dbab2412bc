"""Attention in the page: the maps are the client's, and reached by pointer, by keys and in words."""

import re
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
from harken_client import Client
from harken_client.attention import Attention
from studio.browser import PHONE, QUICK, Open, Opened
from support.server import RunningServer, running_server

TEXT = "The animal didn't cross the street because it was too tired."


def attended(server: RunningServer) -> tuple[Attention, np.ndarray]:
    """What the client gets, and its maps."""
    with Client(server.target) as client:
        attention = client.attend(TEXT)
    assert attention.maps is not None
    return attention, attention.maps


def entropy_of(rows: np.ndarray) -> float:
    """In nats, the mean over the rows."""
    return float(-(rows * np.log(np.maximum(rows, 1e-30))).sum(axis=1).mean())


def look(one: Opened, text: str, other: str = "") -> None:
    one.done("#attention-said")
    one.page.fill("#attention-input", text)
    one.page.fill("#attention-other", other)
    one.page.click("#attention-form [type=submit]")
    one.done("#attention-said")


def choose(one: Opened, name: str) -> None:
    """Choose a head, a mean or the rollout, and wait until it is shown."""
    one.page.locator(f"#heads [aria-label='{name}'], #heads [aria-label^='{name}:']").check()
    one.says("#map-of", name)


def cell(one: Opened) -> tuple[int, int, float]:
    """Which cell of the map the line below it tells, counted from 0, and its weight."""
    found = re.search(r"\((\d+)\) to “.*” \((\d+)\): ([0-9.]+)$", one.text("#map-point"))
    assert found is not None
    return int(found[1]), int(found[2]), float(found[3])


def test_a_map_is_the_clients_at_each_cell(studio: RunningServer, opened: Open, picture: Callable[..., None]) -> None:
    truth, maps = attended(studio)
    one = opened(studio, "attention")
    look(one, TEXT)
    assert one.page.locator("#words button").all_inner_texts() == list(truth.tokens)
    for layer, head in ((0, 0), (3, 7), (5, 11)):
        choose(one, f"layer {layer}, head {head}")
        one.page.locator("#map").focus()
        one.page.keyboard.press("Home")
        for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowUp", "ArrowLeft"):
            one.page.keyboard.press(key)
        one.until("document.querySelector('#map-point').textContent.includes('(1) to')")
        i, j, weight = cell(one)
        assert (i, j) == (1, 2)
        assert weight == pytest.approx(float(maps[layer, head, i, j]), abs=6e-5)
        one.page.evaluate("document.activeElement.blur()")
    assert one.page.locator("#heads thead th").all_inner_texts() == [*map(str, range(12)), "mean"]
    assert one.page.locator("#heads tbody th").all_inner_texts() == [f"layer {layer}" for layer in range(6)]
    told = one.page.locator("#heads tbody tr").nth(3).locator("input").nth(7).get_attribute("title")
    assert float(str(told).rpartition(" ")[2]) == pytest.approx(entropy_of(maps[3, 7]), abs=0.006)
    picture(one, "attention")


def test_means_and_the_rollout_can_be_chosen(studio: RunningServer, opened: Open) -> None:
    truth, maps = attended(studio)
    one = opened(studio, "attention")
    look(one, TEXT)
    for label, values in (
        ("layer 1, the mean of its heads", maps[1].mean(axis=0)),
        ("the rollout over all layers", np.asarray(truth.rollout)),
    ):
        choose(one, label)
        one.page.locator("#map").focus()
        i, j, weight = cell(one)
        assert weight == pytest.approx(float(values[i, j]), abs=6e-5)
        one.page.evaluate("document.activeElement.blur()")


def test_a_token_that_is_pointed_at_shows_what_it_attends_to(
    studio: RunningServer, opened: Open, picture: Callable[..., None]
) -> None:
    truth, maps = attended(studio)
    one = opened(studio, "attention")
    look(one, TEXT)
    choose(one, "layer 0, head 1")
    one.page.locator("#words button").nth(2).hover()
    assert one.text("#words-said") == "“animal” (2) attends most to"
    row = maps[0, 1, 2]
    order = np.argsort(-row, kind="stable")[:8]
    told = [item.rpartition(" ") for item in one.page.locator("#words-links li").all_inner_texts()]
    assert [word for word, _, _ in told] == [truth.tokens[index] for index in order]
    np.testing.assert_allclose([float(weight) for _, _, weight in told], row[order], atol=6e-4)
    arcs = sum(1 for index in order if index != 2 and row[index] >= 0.02)
    assert one.page.locator("#words path").count() == arcs > 0
    picture(one, "attention-arcs")
    # By keys it is the same.
    one.page.locator("#words button").first.focus()
    one.page.keyboard.press("ArrowRight")
    assert one.text("#words-said") == "“the” (1) attends most to"


def test_of_two_texts_the_pairs_add_up_to_their_similarity(
    studio: RunningServer, opened: Open, picture: Callable[..., None]
) -> None:
    texts = ("A cat sleeps.", "A kitten naps on the sofa.")
    with Client(studio.target) as client:
        pair = client.attend(*texts).pair
    assert pair is not None
    one = opened(studio, "attention")
    look(one, *texts)
    assert f"Their cosine is {pair.similarity:.3f}." in one.text("#pair-said")
    best = one.page.locator("#pair-top li").first.inner_text()
    assert float(best.rpartition(" ")[2]) == pytest.approx(float(pair.contributions.max()), abs=6e-5)
    one.page.locator("#pair-map").focus()
    assert one.text("#pair-point").endswith(f": {pair.contributions[0, 0]:.4f}")
    picture(one, "attention-pair")
    look(one, texts[0])
    assert not one.page.locator("#pair").is_visible()


def test_control_and_enter_ask_from_either_field(studio: RunningServer, opened: Open) -> None:
    one = opened(studio, "attention")
    one.done("#attention-said")
    one.page.fill("#attention-input", "first text")
    one.page.press("#attention-input", "Control+Enter")
    one.says("#attention-said", "4 tokens")
    one.page.fill("#attention-other", "the second one")
    one.page.press("#attention-other", "Control+Enter")
    one.says("#pair-said", "Their cosine is")


def test_a_text_goes_from_the_texts_to_its_attention(studio: RunningServer, opened: Open) -> None:
    one = opened(studio)
    one.compare("first text", "the second one")
    one.page.locator("#matrix tbody button").nth(1).click()
    one.page.click("text=See its attention")
    one.until("document.querySelectorAll('#words button').length === 5")
    assert one.page.locator("#words button").all_inner_texts() == ["[CLS]", "the", "second", "one", "[SEP]"]
    assert one.page.title() == "Attention - harken studio"


@pytest.mark.parametrize("size", [(1280, 900), PHONE, (320, 640)])
def test_a_long_text_is_cut_and_drawn_whole(
    studio: RunningServer, opened: Open, picture: Callable[..., None], size: tuple[int, int]
) -> None:
    one = opened(studio, "attention", size=size)
    look(one, "<img src=x onerror='window.hit = 1'> words \u202eturned " * 100)
    assert "what is longer than the model is cut off" in one.text("#attention-said")
    assert one.page.locator("#words button").count() == 512
    assert one.overflow() <= 0
    box = one.page.locator("#map").bounding_box()
    assert box["width"] * 0.9 < box["height"] <= box["width"]
    one.page.locator("#map").hover(position={"x": box["width"] - 2, "y": 1})
    i, j, _ = cell(one)
    # Two pixels from the corner, in which a phone has several cells.
    assert (i <= 4, j >= 507) == (True, True)
    assert one.page.evaluate("window.hit") is None
    picture(one, f"attention-long-{size[0]}")


def test_where_it_is_turned_off_the_page_says_what_the_server_says(minilm_models: Path, opened: Open) -> None:
    with running_server(minilm_models, *QUICK, "--no-attend") as server:
        one = opened(server, "attention", forgiven="501 .Not Implemented")
        one.says("#attention-said", "The server refuses: turned off by the server's setting attend")
        assert not one.page.locator("#attention-results").is_visible()


def test_of_several_models_one_is_chosen_and_goes_along(minilm_models: Path, tmp_path: Path, opened: Open) -> None:
    for name in ("first", "second"):
        copytree(minilm_models / "all-MiniLM-L6-v2" / "1", tmp_path / name / "1")
        manifest = tmp_path / name / "1" / "bundle.json"
        manifest.write_text(manifest.read_text().replace('"all-MiniLM-L6-v2"', f'"{name}"'))
    with running_server(tmp_path, *QUICK) as server:
        one = opened(server)
        one.done("#texts-said")
        assert one.page.locator("#texts-model option").all_inner_texts() == ["first", "second"]
        one.page.select_option("#texts-model", "second")
        one.compare("one", "two")
        assert one.text("#texts-said").endswith(" by second.")
        one.page.click("text=See its attention")
        one.says("#attention-said", "by second.")


def test_a_map_that_cannot_be_had_leaves_the_one_that_is_shown_chosen(minilm_models: Path, opened: Open) -> None:
    with running_server(minilm_models, *QUICK) as server:
        one = opened(server, "attention", forgiven="ERR_|Failed to fetch")
        one.done("#attention-said")
        server.process.kill()
        server.process.wait()
        one.page.locator("#heads input").nth(30).check()
        one.says("#attention-said", "does not answer")
        assert one.text("#map-of") == "layer 0, head 0"
        assert one.page.locator("#heads input").nth(0).is_checked()


def test_of_a_text_whose_map_is_refused_nothing_is_shown_not_even_another_ones(
    studio: RunningServer, opened: Open
) -> None:
    one = opened(studio, "attention", forgiven="429 .Too Many Requests")
    one.done("#attention-said")
    full = {"error": {"message": "no room"}}

    def answer(route: Any) -> None:
        if "maps" in route.request.post_data_json:
            route.fulfill(status=429, json=full)
        else:
            route.continue_()

    one.page.route("**/v1/attend", answer)
    look(one, "Another text.")
    one.says("#attention-said", "The server refuses: no room")
    assert not one.page.locator("#attention-results").is_visible()


def test_of_two_long_texts_no_part_of_the_similarity_is_told_as_nothing(studio: RunningServer, opened: Open) -> None:
    one = opened(studio, "attention")
    look(one, "a river and the sea " * 80, "mountains and a river " * 80)
    parts = [float(line.split()[-1]) for line in one.page.locator("#pair-top li").all_inner_texts()]
    assert len(parts) == 12
    assert all(0 < part < 0.001 for part in parts)
    one.page.locator("#pair-map").focus()
    assert float(one.text("#pair-point").split()[-1]) != 0
