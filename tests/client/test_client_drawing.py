"""The page and the picture of an Attention: whole, small enough, and deaf to what texts try."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harken_client import Attention, Pair
from harken_client.attention.picture import figure_of

ATTACKS = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!--<script>",
    "]]></script>",
    "</style><svg onload=alert(1)>",
    '"><iframe srcdoc="<script>parent.alert(1)</script>">',
    "${alert(1)}`",
    "\u2028alert(1)\u2029",
    "{data}{script}",
    "&lt;/script&gt;<b>&amp;",
]


def attention_of(tokens: list[str], layers: int = 2, heads: int = 3, **more: Any) -> Attention:
    length = len(tokens)
    scores = np.random.default_rng(0).random((layers, heads, length, length), np.float32)
    maps = scores / scores.sum(-1, keepdims=True)
    return Attention(
        text=" ".join(tokens), tokens=tuple(tokens), ids=np.arange(length), offsets=None, truncated=False,
        layers=tuple(range(layers)), heads=tuple(range(heads)), model="tiny", version=3, maps=maps,
        rollout=maps.mean((0, 1)), entropy=np.ones((layers, heads), np.float32), **more,
    )  # fmt: skip


def pair_of(tokens: list[str], rows: int) -> Pair:
    terms = np.random.default_rng(1).normal(size=(rows, len(tokens))).astype(np.float32)
    return Pair(float(terms.sum()), terms, " ".join(tokens), tuple(tokens), np.arange(len(tokens)), None, False)


class Elements(HTMLParser):
    """Every tag, with its attributes and the text right inside."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], str]] = []
        self._inside = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), ""))
        self._inside = True

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            tag, attributes, text = self.found[-1]
            self.found[-1] = (tag, attributes, text + data)

    def of(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attributes, text) for name, attributes, text in self.found if name == tag]


def data_of(page: str) -> Any:
    (content,) = [text for attributes, text in Elements(page).of("script") if attributes.get("id") == "data"]
    return json.loads(content)


def test_whatever_a_text_holds_the_page_has_the_same_elements_and_runs_its_own_script_only() -> None:
    harmless = attention_of(["a"] * len(ATTACKS), pair=pair_of(["b"] * len(ATTACKS), len(ATTACKS)))
    attacked = attention_of(ATTACKS, pair=pair_of(ATTACKS, len(ATTACKS)))
    attacked = replace(attacked, model=ATTACKS[0])
    plain, page = Elements(harmless.html()), Elements(attacked.html())
    assert [(tag, attributes) for tag, attributes, _ in page.found] == [
        (tag, attributes) for tag, attributes, _ in plain.found
    ]
    assert data_of(attacked.html())["tokens"] == ATTACKS
    assert data_of(attacked.html())["pair"]["tokens"] == ATTACKS
    scripts = page.of("script")
    assert [attributes for attributes, _ in scripts] == [{"type": "application/json", "id": "data"}, {}]
    assert scripts[1] == plain.of("script")[1]


def test_the_policy_of_the_page_allows_its_script_and_style_by_hash_and_nothing_else() -> None:
    page = Elements(attention_of(["a", "b"]).html())
    (policy,) = [attributes["content"] for attributes, _ in page.of("meta") if "http-equiv" in attributes]
    assert policy is not None

    def digest(content: str) -> str:
        return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()

    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules == {
        "default-src": "'none'",
        "script-src": f"'{digest(page.of('script')[1][1])}'",
        "style-src": f"'{digest(page.of('style')[0][1])}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    for tag, attributes, _ in page.found:
        assert not {"src", "href", "style"} & set(attributes), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", attention_of(["a"]).html())


def test_in_a_notebook_it_stands_in_a_sandbox_of_its_own() -> None:
    attention = attention_of(ATTACKS)
    (frame,) = Elements(attention._repr_html_()).found
    tag, attributes, text = frame
    assert (tag, text) == ("iframe", "")
    assert attributes["sandbox"] == "allow-scripts"
    assert attributes["srcdoc"] == attention.html()
    assert html.escape(attention.html()) in attention._repr_html_()


def test_weights_are_kept_to_a_byte() -> None:
    attention = attention_of(["a", "b", "c"])
    assert attention.maps is not None
    raw = np.frombuffer(base64.b64decode(data_of(attention.html())["maps"]), np.uint8).reshape(attention.maps.shape)
    np.testing.assert_allclose((raw / 255.0) ** 2, attention.maps, atol=0.004)


def test_a_notebook_keeps_means_where_maps_are_large_and_the_file_keeps_all(tmp_path: Path) -> None:
    attention = attention_of(["word"] * 512, layers=6, heads=4)
    framed = data_of(html.unescape(attention._repr_html_()))
    assert framed["maps"] is None
    assert len(framed["mean"]) == 4 * 6 * 512 * 512 / 3
    assert "save('attention.html')" in framed["note"]
    assert len(attention._repr_html_()) < 9 << 20
    attention.save(tmp_path / "a.html")
    assert len(data_of((tmp_path / "a.html").read_text(encoding="utf-8"))["maps"]) == 4 * 24 * 512 * 512 / 3


def test_a_picture_is_a_png_of_all_heads_also_of_512_tokens_of_any_script(tmp_path: Path) -> None:
    for name, attention in (
        ("short", attention_of(["$x^2$", "_", "<b>", "日本"])),
        ("long", attention_of(["word"] * 512)),
        ("pair", attention_of(["a", "b"], pair=pair_of(["c", "d", "e"], 2))),
        ("one", replace(attention_of(["a", "b"]), maps=None)),
    ):
        path = tmp_path / f"{name}.png"
        attention.save(path)
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 10_000


def test_a_picture_says_what_rows_columns_and_heads_are() -> None:
    def words(attention: Attention) -> tuple[str, str, str]:
        above, heads = figure_of(attention).subfigs
        return above.axes[0].get_ylabel(), above.axes[0].get_xlabel(), heads.get_suptitle()

    darkest = "each named layer.head; darkest: 99.5th percentile of the head's own weights"
    assert words(attention_of(["a", "b"])) == ("token", "attended to", f"attention heads, {darkest}")
    assert words(attention_of(["a", "b"], pair=pair_of(["c"], 2))) == (
        "first text", "second text", f"attention heads, of the first text, {darkest}",
    )  # fmt: skip
    pair = pair_of(["c"], 2)
    takes = replace(pair, contributions=-pair.contributions)
    assert words(attention_of(["a", "b"], pair=takes))[1] == (
        "second text: blue adds to the similarity, red takes from it"
    )


def test_in_a_picture_of_a_long_text_no_head_is_blank() -> None:
    attention = attention_of(["word"] * 512)
    assert attention.maps is not None
    # All on one token, of which a smaller picture might leave out the column; and each on all alike.
    attention.maps[0, 0] = np.eye(512, dtype=np.float32)[509]
    attention.maps[0, 1] = 1 / 512
    drawn = [axes.images[0] for axes in figure_of(attention).subfigs[1].axes]
    for image in drawn:
        shades = np.asarray(image.norm(image.get_array()))
        assert len(shades) <= 100
        assert shades.max() >= 1.0
    column = np.asarray(drawn[0].norm(drawn[0].get_array()))[:, -1]
    assert (column == 1.0).all()


def test_nothing_to_draw_and_other_endings_are_told(tmp_path: Path) -> None:
    nothing = replace(attention_of(["a"]), maps=None, rollout=None)
    with pytest.raises(ValueError, match="no map to draw"):
        nothing.save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"written to \.html or \.png, not a\.svg"):
        nothing.save(tmp_path / "a.svg")
    assert data_of(nothing.html())["maps"] is None


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no chromium here to open the page with")
def test_a_browser_draws_it_and_nothing_that_a_text_tries_runs(tmp_path: Path) -> None:
    assert BROWSER is not None
    attention_of(ATTACKS, pair=pair_of(ATTACKS, len(ATTACKS))).save(tmp_path / "a.html")
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    command += ["--virtual-time-budget=3000", "--dump-dom", f"file://{tmp_path}/a.html"]
    drawn = Elements(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout)
    tokens = [text for attributes, text in drawn.of("span") if (attributes.get("class") or "") == "token"]
    assert tokens == ATTACKS * 2
    assert len(drawn.of("button")) == 6
    assert len(drawn.of("path")) == 5, "arcs of the first token's strongest links"
    (status,) = [text for attributes, text in drawn.of("p") if attributes.get("id") == "status"]
    assert "similarity of the two texts" in status
    assert len(drawn.of("script")) == 2
    hints = {attributes.get("id"): text for attributes, text in drawn.of("p") if attributes.get("class") == "hint"}
    for name in ("tokens-hint", "map-hint"):
        assert "add to the similarity" in hints[name]
        assert "attend" not in hints[name], "terms of a similarity are no attention"
    assert ({"id": "whose"}, "Of the first text. ") in drawn.of("span")
