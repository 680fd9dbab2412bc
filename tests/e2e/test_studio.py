"""The studio's part of the HTTP port: off unless asked for, its files strict, its two calls behind the same door."""

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harken_server.rpc.web.studio.files import PAGE
from harken_server.rpc.web.studio.live import MOST_BATCHES
from support.api_keys import KeyFile
from support.server import RunningServer, running_server
from support.web import EMBEDDINGS, call, post

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = sorted(path.name for path in PAGE.iterdir())
TOKENS, LIVE = "/studio/tokens", "/studio/live"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


@pytest.fixture(scope="module")
def server(minilm_models: Path) -> Iterator[RunningServer]:
    with running_server(minilm_models, "--studio", "--warmup-s", "1", "--max-inputs", "20") as running:
        yield running


def embed(server: RunningServer, *lengths: int) -> None:
    for length in lengths:
        assert post(server, EMBEDDINGS, {"input": [101] * length}).status == 200


def live(server: RunningServer, after: int = 0) -> Any:
    replied = call(server, "GET", f"{LIVE}?after={after}")
    assert replied.status == 200
    return replied.json


def test_it_is_off_unless_it_is_asked_for(tiny_server: RunningServer) -> None:
    for path in ("/", "/studio/index.html", "/studio/main.js", LIVE):
        assert call(tiny_server, "GET", path).status == 404, path
    assert post(tiny_server, TOKENS, {"texts": ["a"]}).status == 404


@pytest.mark.parametrize("name", ["", *FILES])
def test_each_file_comes_with_a_policy_that_lets_nothing_else_in(server: RunningServer, name: str) -> None:
    path = f"/studio/{name}" if name else "/"
    replied = call(server, "GET", path)
    assert replied.status == 200
    assert replied.body == (PAGE / (name or "index.html")).read_bytes()
    assert replied.headers["content-type"].startswith(TYPES[Path(name or "index.html").suffix])
    policy = dict(part.strip().partition(" ")[::2] for part in replied.headers["content-security-policy"].split(";"))
    assert policy == {
        "default-src": "'none'", "script-src": "'self'", "style-src": "'self'", "img-src": "'self'",
        "connect-src": "'self'", "base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'", "trusted-types": "'none'",
    }  # fmt: skip
    assert replied.headers["x-content-type-options"] == "nosniff"
    assert replied.headers["referrer-policy"] == "no-referrer"
    assert "x-request-id" in replied.headers
    # A second look costs a few bytes.
    again = call(server, "GET", path, headers={"if-none-match": replied.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    assert "content-security-policy" in again.headers


def test_the_page_has_nothing_inline_and_nothing_from_elsewhere() -> None:
    page = (PAGE / "index.html").read_text()
    assert re.findall(r"<script(?![^>]*\bsrc=)", page) + re.findall(r"<style|\sstyle=|\son\w+=", page) == []
    linked = re.findall(r'(?:src|href)="([^"#]+)"', page)
    assert {Path(path).name for path in linked} <= set(FILES)
    modules = {name for name in FILES if name.endswith(".js")}
    imported = {"main.js"}
    for name in modules:
        source = (PAGE / name).read_text()
        imported |= set(re.findall(r'from "\./(\w+\.js)"', source))
        for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "localStorage",
                          "sessionStorage", "document.cookie", "Function("):  # fmt: skip
            assert forbidden not in source, name
    assert imported == modules
    everything = "".join((PAGE / name).read_text() for name in FILES)
    assert set(re.findall(r"https?://[^\s\"']+", everything)) == {"http://www.w3.org/2000/svg"}


@pytest.mark.parametrize(
    "path", ["/studio/", "/studio/no.js", "/studio/../files.py", "/studio/..%2ffiles.py", "/studio/%2e%2e/files.py",
             "/studio//etc/passwd", "/studio/main.js/", "/studio/files.py"],
)  # fmt: skip
def test_a_name_is_never_a_path(server: RunningServer, path: str) -> None:
    assert call(server, "GET", path).status == 404
    assert post(server, "/studio/main.js", {}).status == 405


def test_the_wheel_brings_the_page_along(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*command, "-w", str(tmp_path), str(REPOSITORY)], check=True, timeout=120, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {f"harken_server/rpc/web/studio/page/{name}" for name in FILES} <= held


def test_tokens_are_those_that_the_model_reads(server: RunningServer) -> None:
    text = "The \U0001f63a cat's unhappiness\u202e."
    replied = post(server, TOKENS, {"texts": [text, "one"]})
    assert replied.status == 200
    assert (replied.json["model"], replied.json["version"]) == ("all-MiniLM-L6-v2", 1)
    first, second = replied.json["texts"]
    assert (first["tokens"][0], first["tokens"][-1]) == ("[CLS]", "[SEP]")
    assert second["tokens"] == ["[CLS]", "one", "[SEP]"]
    assert (second["ids"], second["places"]) == ([101, 2028, 102], [[0, 0], [0, 3], [0, 0]])
    # In characters, not in bytes, nor in the halves of them that JavaScript counts.
    assert [text[start:end] for start, end in first["places"]][2:5] == ["\U0001f63a", "cat", "'"]
    assert (first["length"], first["counted_all"]) == (len(first["ids"]), True)
    by_ids = post(server, EMBEDDINGS, {"input": [first["ids"]]}).json["data"][0]["embedding"]
    by_text = post(server, EMBEDDINGS, {"input": [text]}).json["data"][0]["embedding"]
    np.testing.assert_allclose(by_ids, by_text, atol=1e-6)


def test_what_is_cut_off_is_told(server: RunningServer) -> None:
    longer, much_longer = (post(server, TOKENS, {"texts": ["word " * n]}).json for n in (1000, 50_000))
    limit = longer["max_length"]
    assert (len(longer["texts"][0]["ids"]), longer["texts"][0]["length"]) == (limit, 1002)
    assert longer["texts"][0]["places"][-2] == [5 * (limit - 3), 5 * (limit - 3) + 4]
    assert longer["texts"][0]["counted_all"]
    assert not much_longer["texts"][0]["counted_all"]
    assert much_longer["texts"][0]["length"] > limit


@pytest.mark.parametrize(
    ("body", "reason", "said"),
    [
        (b"{", "NOT_JSON", "JSON"),
        ({"texts": "a"}, "BAD_VALUE", "texts: is 'a', which is not a list of texts"),
        ({"texts": []}, "MISSING", "texts: must have at least one element"),
        ({"texts": ["a", 7]}, "BAD_VALUE", "texts[1]: is 7, which is not a text"),
        ({"texts": ["a"] * 21}, "TOO_MANY", "texts: has 21 elements, over the limit of 20"),
        ({"texts": ["a", ""]}, "NO_TOKENS", "texts[1]: is empty"),
        ({"texts": ["a" * 300_000]}, "TOO_MANY_BYTES", "texts[0]: has 300000 bytes, over the limit of 262144"),
        (b'{"texts":["\\ud800"]}', "NOT_JSON", "surrogate"),
        ({"texts": ["a"], "model": 7}, "BAD_VALUE", "model: is 7, which is not the name of a model"),
        ({"texts": ["a"], "more": 1}, "UNKNOWN_NAME", "more: 'more' is none of texts, model"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_texts_is_said_by_field_value_and_limit(
    server: RunningServer, body: Any, reason: str, said: str
) -> None:
    replied = post(server, TOKENS, body)
    assert (replied.status, replied.json["reason"]) == (400, reason)
    assert said in replied.json["error"]


def test_an_unknown_model_and_one_without_a_tokenizer_take_no_texts(server: RunningServer, tiny_models: Path) -> None:
    assert post(server, TOKENS, {"texts": ["a"], "model": "no"}).status == 404
    with running_server(tiny_models, "--studio", "--warmup-s", "0.5", "--max-message-bytes", "4096") as tiny:
        replied = post(tiny, TOKENS, {"texts": ["a"]})
        assert (replied.status, replied.json["reason"]) == (400, "TEXT_NOT_ACCEPTED")
        assert post(tiny, TOKENS, {"texts": ["a" * 5000]}).status == 413


def test_tokens_that_would_exceed_an_answer_are_refused(minilm_models: Path) -> None:
    with running_server(minilm_models, "--studio", "--warmup-s", "0.5", "--max-message-bytes", "4096") as small:
        replied = post(small, TOKENS, {"texts": ["a b c d e f g h"] * 11})
        assert (replied.status, replied.json["reason"]) == (400, "ANSWER_TOO_LARGE")
        assert post(small, TOKENS, {"texts": ["a b c d e f g h"] * 10}).status == 200


def test_live_tells_what_the_metrics_tell(server: RunningServer) -> None:
    embed(server, 3, 40, 100)
    post(server, EMBEDDINGS, {"input": [101], "model": "no"})
    now = live(server)
    assert now["condition"] == "serving"
    assert now["finished"]["answered"] == server.total("harken_finished_total", outcome="answered")
    assert sum(now["rejected"].values()) == server.total("harken_rejected_total")
    assert now["tokens"]["real"] == server.total("harken_tokens_total", kind="real")
    assert sum(now["duration"]["counts"]) == server.total("harken_request_duration_seconds_count")
    below = [bound for bound in now["duration"]["bounds"] if bound <= 0.25]
    told = sum(now["duration"]["counts"][: len(below)])
    assert told == server.total("harken_request_duration_seconds_bucket", le="0.25")
    queue_s = server.total("harken_stage_duration_seconds_sum", stage="queue")
    assert now["stages_s"]["queue"] == pytest.approx(queue_s)
    assert now["backlog"] == {"sequences": 0, "tokens": 0, "predicted_wait_s": 0}
    assert now["memory_bytes"]["budget"] == server.total("harken_memory_bytes", kind="budget")
    assert set(now["lanes_busy_s"]) == {
        sample.split('"')[1] for sample in server.metrics() if sample.startswith("harken_engine_busy_seconds_total")
    }


def test_batches_are_told_once_and_the_newest_of_many(server: RunningServer) -> None:
    embed(server, 7, 9)
    batches = live(server)["batches"]
    assert [batch["padded_length"] for batch in batches[-2:]] == [7, 9]
    assert batches[-1]["lengths"] == [9]
    number = batches[-1]["number"]
    assert live(server, number)["batches"] == []
    embed(server, 11)
    assert [batch["number"] for batch in live(server, number)["batches"]] == [number + 1]
    embed(server, *range(1, MOST_BATCHES + 3))
    told = live(server, number)["batches"]
    assert (len(told), told[-1]["padded_length"]) == (MOST_BATCHES, MOST_BATCHES + 2)
    for after in ("-1", "x", "1" * 16, ""):
        replied = call(server, "GET", f"{LIVE}?after={after}")
        assert (replied.status, replied.json["reason"]) == (400, "BAD_VALUE")


def test_no_text_no_id_and_no_name_of_a_caller_is_told(minilm_models: Path) -> None:
    with running_server(minilm_models, "--studio", "--warmup-s", "0.5", "--trust-tenants") as server:
        secret = {"input": ["confidential merger"]}
        assert post(server, EMBEDDINGS, secret, {"harken-tenant": "acme-corporation"}).status == 200
        told = json.dumps(live(server))
        assert '"lengths": [' in told
        for word in ("confidential", "merger", "acme", "127.0.0.1", "18777"):
            assert word not in told


def test_where_no_batches_are_kept_the_rest_is_told(tiny_models: Path) -> None:
    with running_server(tiny_models, "--studio", "--debug-batches", "0") as server:
        embed_tiny = post(server, EMBEDDINGS, {"input": [5, 6]})
        assert embed_tiny.status == 200
        now = live(server)
        assert now["batches"] is None
        assert now["finished"]["answered"] == 1


def test_with_keys_the_files_are_free_and_everything_else_needs_one(minilm_models: Path, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    keys.write(plain="", admin="admin = true", elsewhere='models = ["other"]')
    with running_server(minilm_models, "--studio", "--warmup-s", "0.5", *keys.options) as server:
        for name in ("/", "/studio/main.js"):
            assert call(server, "GET", name).status == 200
        texts = {"texts": ["one"]}
        for shown, status in (({}, 401), ({"authorization": "Bearer " + "w" * 43}, 401)):
            replied = post(server, TOKENS, texts, shown)
            assert (replied.status, replied.headers["www-authenticate"]) == (status, "Bearer")
            assert call(server, "GET", LIVE, headers=shown).status == status
        assert post(server, TOKENS, texts, keys.bearer("plain")).status == 200
        refused = post(server, TOKENS, texts, keys.bearer("elsewhere"))
        assert (refused.status, refused.json["reason"]) == (403, "MODEL_FORBIDDEN")
        refused = call(server, "GET", LIVE, headers=keys.bearer("plain"))
        assert (refused.status, refused.json["reason"]) == (403, "ADMIN_ONLY")
        assert call(server, "GET", LIVE, headers=keys.bearer("admin")).status == 200
