"""`harken attend` as it is typed."""

from pathlib import Path

import pytest
from client.command import harken
from support.server import RunningServer

ANIMAL = "The animal didn't cross the street because it was too tired"


def test_it_draws_a_page_and_a_picture(minilm_server: RunningServer, tmp_path: Path) -> None:
    for name, begins in (("attention.html", b"<!doctype html>"), ("attention.png", b"\x89PNG")):
        out = tmp_path / name
        ran = harken("attend", ANIMAL, "--out", str(out), "--server", minilm_server.target)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout == f"{out}: 15 tokens, 6 layers, 12 heads\n"
        assert out.read_bytes().startswith(begins)


def test_an_ending_may_be_in_capitals_and_one_is_one(minilm_server: RunningServer, tmp_path: Path) -> None:
    for name, begins in (("A.HTML", b"<!doctype html>"), ("A.PNG", b"\x89PNG")):
        out = tmp_path / name
        ran = harken("attend", "a", "--layer", "2", "--head", "0", "--out", str(out), "--server", minilm_server.target)
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"{out}: 3 tokens, 1 layer, 1 head\n", "")
        assert out.read_bytes().startswith(begins)


def test_what_cannot_be_written_in_the_end_is_told_in_words(minilm_server: RunningServer, tmp_path: Path) -> None:
    (tmp_path / "full.html").symlink_to("/dev/full")
    ran = harken("attend", "a", "--out", str(tmp_path / "full.html"), "--server", minilm_server.target)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.endswith(f"{tmp_path}/full.html cannot be written: No space left on device\n")


def test_without_a_file_it_prints_each_token_and_what_it_attends_to(minilm_server: RunningServer) -> None:
    ran = harken(
        "attend", "A [b]cat[/b] sleeps.", "--other", "A kitten naps.", "--layer", "2", "-s", minilm_server.target
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    head, *lines = ran.stdout.splitlines()
    assert "in layer 2" in head
    assert "adds to 0." in head
    assert [line.split()[0] for line in lines] == [
        "[CLS]", "a", "[", "b", "]", "cat", "[", "/", "b", "]", "sleeps", ".", "[SEP]",
    ]  # fmt: skip
    similarity = float(head.split("adds to ")[1])
    assert sum(float(line.split()[-1]) for line in lines) == pytest.approx(similarity, abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--out", "a.svg"], 2, "--out ends in .html or .png, not as a.svg"),
        (["--out", "/no/such/folder/a.html"], 2, "/no/such/folder/a.html cannot be written"),
        (["--layer", "9"], 1, "INVALID_ARGUMENT (OUT_OF_RANGE): layers[0]: is 9, outside 0 to 5"),
        (["--model", "nobody"], 1, "NOT_FOUND"),
        (["--head", "-1"], 2, ""),
    ],
)
def test_what_cannot_be_done_is_one_line(
    minilm_server: RunningServer, arguments: list[str], code: int, said: str
) -> None:
    ran = harken("attend", ANIMAL, *arguments, "-s", minilm_server.target)
    assert (ran.returncode, ran.stdout) == (code, "")
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr
