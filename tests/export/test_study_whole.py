"""The whole study in its smallest form: every figure is on the page, and equal figures give equal files."""

import json
import shutil
from pathlib import Path

import pytest
from harken_export.study import recall
from harken_export.study.__main__ import PARTS, Scale, main, study
from harken_export.study.parallelism import Sizes
from harken_export.study.training import Course

SMALLEST = Scale(
    course=Course(
        distances=(8, 16), steps=6, examined_sequences=32, layers=1, heads=2, hidden_size=16, max_distance=16
    ),
    seeds=(0, 1),
    served=Sizes(layers=1, heads=2, hidden_size=32, vocab_size=50, lengths=(8, 16, 32, 64), repeats=2, warmup_s=0.2),
    cost_lengths=(16, 64, 256, 512, 1024),
    sentences=4,
)


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    docs = tmp_path_factory.mktemp("docs")
    study(docs, set(PARTS), 1, SMALLEST)
    return docs


def test_the_page_has_every_plot_and_every_claim(docs: Path) -> None:
    page = (docs / "attention.md").read_text()
    assert sorted(path.stem for path in (docs / "attention").glob("*.svg")) == sorted(PARTS)
    for part in PARTS:
        assert f"](attention/{part}.svg)" in page
    assert page.count("## ") == len(PARTS) == 6
    assert page.count("| holds |") + page.count("| **does not hold** |") > 20
    # A hole in the template.
    assert "{" not in page


def test_a_claim_that_does_not_hold_says_so_in_its_plot(docs: Path) -> None:
    # After three steps nobody has learned anything.
    plot = (docs / "attention" / "recall.svg").read_text()
    assert "DOES NOT HOLD: recall, taught gradually: attention answers at every distance" in plot
    assert "**does not hold**" in (docs / "attention.md").read_text()


def test_plots_are_small_and_white(docs: Path) -> None:
    for path in (docs / "attention").glob("*.svg"):
        content = path.read_text()
        assert len(content) < 700_000, path.name
        assert "fill: #ffffff" in content[:3000], path.name
        assert "<dc:date>" not in content


def test_drawn_again_from_the_same_figures_nothing_changes(docs: Path) -> None:
    files = {path: path.read_bytes() for path in docs.rglob("*") if path.is_file()}
    study(docs, set(), 1, SMALLEST)
    assert {path: path.read_bytes() for path in docs.rglob("*") if path.is_file()} == files


def test_the_page_says_where_its_figures_were_measured_not_where_it_was_drawn(
    docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(docs, tmp_path / "docs")
    page = (docs / "attention.md").read_text()
    assert page.count("Machine: ") == 1
    monkeypatch.setattr("harken_export.study.__main__.about", lambda: {"machine": "another", "versions": "9"})
    study(tmp_path / "docs", set(), 1, SMALLEST)
    assert (tmp_path / "docs" / "attention.md").read_text() == page
    study(tmp_path / "docs", {"cost"}, 1, SMALLEST)
    page = (tmp_path / "docs" / "attention.md").read_text()
    assert "Of cost: Machine: another. Versions: 9." in page
    assert "Of recall, gradients, parallelism, masking, heads: Machine: " in page


def test_every_network_has_its_figures(docs: Path) -> None:
    runs = json.loads((docs / "attention" / "recall.json").read_text())["runs"]
    # Both tasks: gradually, and directly at 8 alone.
    assert len(runs) == 2 * 2 * 2 * 3
    assert [run["architecture"] for run in runs[:6]] == ["attention", "attention", "lstm", "lstm", "gru", "gru"]
    found = recall.accuracies({"runs": runs}, "recall", "gradually", "lstm")
    assert {distance: len(shares) for distance, shares in found.items()} == {8: 2, 16: 2}
    assert list(found) == [8, 16]
    assert all(0 <= share <= 1 for run in runs for share in run["accuracy"].values())


def test_an_unknown_part_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--only", "cost,depth"])
    assert ended.value.code == 2
    assert (
        "--only: depth is none of recall, gradients, parallelism, cost, masking, heads, none" in capsys.readouterr().err
    )


def test_a_part_that_was_never_measured_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--docs", str(tmp_path), "--only", "recall,gradients,parallelism,cost,heads"])
    assert ended.value.code == 2
    assert (
        f"without masking, {tmp_path / 'attention' / 'masking.json'} must be there already" in capsys.readouterr().err
    )
