"""Triton's perf_analyzer, unmodified: load in a closed and in an open loop, over gRPC."""

import csv
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.contract import BUILD
from support.server import RunningServer

MODEL = "all-MiniLM-L6-v2"
ROOT = BUILD / "perf_analyzer" / "debian"
INSIDE = "/tmp"  # noqa: S108 - of the Debian that is its own

pytestmark = pytest.mark.skipif(not (ROOT / "perf_analyzer").exists(), reason="perf_analyzer is not set up")


def perf_analyzer(server: RunningServer, *options: str) -> list[dict[str, Any]]:
    """The rows of its report, one for each level of load."""
    report = ROOT / "tmp" / "report.csv"
    report.unlink(missing_ok=True)
    command: list[str] = ["chroot", str(ROOT), "/perf_analyzer", "-m", MODEL, "-i", "grpc", "-u", server.target]
    command += [
        "--measurement-interval",
        "1500",
        "--max-trials",
        "4",
        "--stability-percentage",
        "1000",
        "-f",
        f"{INSIDE}/report.csv",
    ]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": INSIDE}
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=240, env=environment, check=False
    )
    assert report.exists(), done.stdout + done.stderr
    with report.open() as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(scope="module")
def sequences() -> Iterator[str]:
    """Its own form of input: sequences of many lengths."""
    lengths = np.random.default_rng(1).integers(4, 200, 64)
    ids = np.random.default_rng(2)
    data = [
        {"input_ids": {"content": ids.integers(1000, 30000, length).tolist(), "shape": [int(length)]}}
        for length in lengths
    ]
    path = ROOT / "tmp" / f"sequences-{os.getpid()}.json"
    path.write_text(json.dumps({"data": data}))
    yield f"{INSIDE}/{path.name}"
    path.unlink()


def test_sequences_of_any_length_in_a_closed_loop(minilm_server: RunningServer, sequences: str) -> None:
    before = minilm_server.total("harken_finished_total", outcome="answered")
    rows = perf_analyzer(minilm_server, "--input-data", sequences, "--concurrency-range", "1:5:4")
    # It lists the slower one first.
    assert sorted(row["Concurrency"] for row in rows) == ["1", "5"]
    assert all(float(row["Inferences/Second"]) > 0 for row in rows)
    # What the server says of its stages came from ModelStatistics.
    assert all(float(row["Server Compute Infer"]) > 0 for row in rows)
    assert minilm_server.total("harken_finished_total", outcome="answered") > before
    assert minilm_server.total("harken_finished_total", outcome="failed") == 0


def test_sequences_of_any_length_in_an_open_loop(minilm_server: RunningServer, sequences: str) -> None:
    rows = perf_analyzer(minilm_server, "--input-data", sequences, "--request-rate-range", "10:20:10")
    assert [float(row["Request Rate"]) for row in rows] == [10, 20]


@pytest.mark.parametrize("options", [["-b", "1"], ["-b", "4"], ["--streaming"]], ids=["one", "batch", "stream"])
def test_a_fixed_shape(minilm_server: RunningServer, options: list[str], tmp_path: Path) -> None:
    content = [101, *[2000] * 38, 102]
    path = ROOT / "tmp" / f"fixed-{os.getpid()}.json"
    path.write_text(json.dumps({"data": [{"input_ids": {"content": content, "shape": [40]}}]}))
    rows = perf_analyzer(minilm_server, "--input-data", f"{INSIDE}/{path.name}", "--concurrency-range", "2", *options)
    assert float(rows[0]["Inferences/Second"]) > 0


def test_what_it_makes_up_itself_is_refused_by_name(minilm_server: RunningServer) -> None:
    # Told no values it sends every input that there is, and text excludes token ids.
    shapes = ["--shape", "input_ids:40", "--shape", "attention_mask:40", "--input-data", "zero"]
    with pytest.raises(AssertionError, match=r"inputs\[2\].name: cannot be given together with input_ids"):
        perf_analyzer(minilm_server, *shapes, "--concurrency-range", "2")
