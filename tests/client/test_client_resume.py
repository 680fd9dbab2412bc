"""`harken encode` killed with SIGKILL, and resumed: nothing lost, nothing twice, nothing mixed."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from client.command import finished
from client.fake_server import BAD, MODEL, FakeEncoder, Refusal, vector
from harken.v1 import encoder_pb2 as pb
from harken_client.files import BadFile, open_inputs
from harken_client.files.base import edges_sha256

from client import fake_server

SMALL_GROUPS = """
from harken_client.cli import main
from harken_client.files import parquet
parquet.GROUP_ROWS = 100
"""
"""So that little is much."""

KILLED_BEFORE_A_STEP = """
import os, signal, sys
left = int(sys.argv.pop(1))
def count(event, arguments):
    global left
    if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir") and (
        # What goes with its folder is named without it.
        "out." in str(arguments[0]) or event in ("os.remove", "os.rmdir")
    ):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(count)
"""
"""SIGKILL before so many-th change of what is on the disk."""

OUTPUTS = pytest.mark.parametrize("output", ["out.parquet", "out.npy", "out.jsonl"])


def command(*arguments: str | Path, before: str = "", step: int | None = None) -> list[str]:
    code = SMALL_GROUPS + before + "main()"
    return [sys.executable, "-c", code, *([] if step is None else [str(step)]), "encode", *map(str, arguments)]


def written(path: Path) -> list[Any]:
    """The rows of an output, whatever it is."""
    if path.suffix == ".parquet":
        rows: list[Any] = pq.read_table(path).to_pylist()
        return rows
    if path.suffix == ".npy":
        return [list(map(repr, row)) for row in np.load(path).tolist()]  # a NaN is equal to no other
    return [json.loads(line) for line in path.read_text().splitlines()]


def make_input(path: Path, rows: int) -> Path:
    texts = [None if i % 97 == 5 else "bad" if i % 89 == 7 else f"text {i}" for i in range(rows)]
    pq.write_table(pa.table({"text": texts, "key": range(rows)}), path, row_group_size=700)
    return path


def kill_at(fake: FakeEncoder, answers: int, process: "subprocess.Popen[bytes]") -> None:
    before = fake.answered.total()
    while fake.answered.total() - before < answers:
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()


@OUTPUTS
def test_a_run_killed_at_random_moments_writes_what_an_uninterrupted_one_does(
    output: str, fake: FakeEncoder, target: str, tmp_path: Path
) -> None:
    fake.refuse_texts = {"bad": BAD}
    source = make_input(tmp_path / "in.parquet", 3000)
    arguments = ["--id-column", "key", "-s", target]
    whole = finished(command(source, "-o", tmp_path / f"whole.{output}", *arguments))
    assert (whole.returncode, whole.stderr[:27]) == (1, "harken: 65 inputs failed; i")

    rng = np.random.default_rng(7)
    for answers in rng.integers(1, 400, 4):
        kill_at(fake, int(answers), subprocess.Popen(command(source, "-o", tmp_path / output, *arguments, "--resume")))
        assert not (tmp_path / output).exists()
    # At the last of them 100 or more are on the disk: at most 256 are under way, and fewer than 200 wait to be written.
    kill_at(fake, 600, subprocess.Popen(command(source, "-o", tmp_path / output, *arguments, "--resume")))
    fake.answered.clear()
    resumed = finished(command(source, "-o", tmp_path / output, *arguments, "--resume"))

    assert resumed.returncode == 1
    assert resumed.stderr.startswith("harken: 65 inputs failed, ")
    assert fake.answered.total() <= 2900
    assert written(tmp_path / output) == written(tmp_path / f"whole.{output}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet", output, f"whole.{output}"]


@OUTPUTS
def test_a_run_killed_before_any_step_on_the_disk_can_be_resumed(output: str, target: str, tmp_path: Path) -> None:
    source = make_input(tmp_path / "in.parquet", 150)
    arguments: list[str | Path] = [source, "-o", tmp_path / output, "-s", target]
    assert finished(command(*arguments)).returncode == 1
    expected = written(tmp_path / output)
    (tmp_path / output).unlink()
    for step in range(1, 100):
        killed = finished(command(*arguments, before=KILLED_BEFORE_A_STEP, step=step))
        if killed.returncode != -signal.SIGKILL:
            break
        resumed = finished(command(*arguments, "--resume"))
        complete = f"harken: {tmp_path / output} is complete; there is nothing to resume\n"
        assert resumed.stderr.startswith("harken: 2 inputs failed") or resumed.stderr == complete
        assert written(tmp_path / output) == expected
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet", output]
        (tmp_path / output).unlink()
    assert step > (15 if output == "out.parquet" else 4)


def begun(arguments: list[str | Path]) -> None:
    """A run killed when it has its part, and has written nothing into it."""
    assert finished(command(*arguments, before=KILLED_BEFORE_A_STEP, step=6)).returncode == -signal.SIGKILL


@OUTPUTS
def test_a_part_of_another_run_is_refused_by_name(
    output: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": ["a"], "title": ["b"]}), source)
    arguments: list[str | Path] = [source, "-o", tmp_path / output, "-s", target, "--resume"]
    begun(arguments)

    next_version = pb.ModelInfo()
    next_version.CopyFrom(MODEL)
    next_version.version = 4
    monkeypatch.setattr(fake_server, "MODEL", next_version)
    other = finished(command(*arguments, "--dimensions", "4", "--column", "title"))
    assert other.returncode == 2
    then_had, now_has = "version=3, dimensions=None, column=text", "version=4, dimensions=4, column=title"
    assert other.stderr == (
        f"harken: {tmp_path}/{output}.part was begun with {then_had}, not {now_has}; without --resume it begins anew\n"
    )

    anew = finished(command(*arguments[:-1]))
    assert (anew.returncode, anew.stderr) == (0, "")
    assert len(written(tmp_path / output)) == 1


def test_an_input_of_another_size_is_not_resumed(target: str, tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("a\n")
    arguments: list[str | Path] = [source, "-o", tmp_path / "out.npy", "-s", target, "--resume"]
    begun(arguments)
    source.write_text("a\nb\n")
    grown = finished(command(*arguments))
    assert grown.returncode == 2
    assert "out.npy.part was begun with input_bytes=2, input_sha256=" in grown.stderr
    assert "not input_bytes=4" in grown.stderr


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet"])
def test_an_input_of_the_same_size_and_other_contents_is_not_resumed(suffix: str, target: str, tmp_path: Path) -> None:
    def write(path: Path, middle: str) -> Path:
        texts = ["a", middle, "z"]
        if suffix == ".parquet":
            pq.write_table(pa.table({"text": texts}), path)
        else:
            lines = texts if suffix == ".txt" else [json.dumps({"text": text}) for text in texts]
            path.write_text("".join(f"{line}\n" for line in lines))
        return path

    source = write(tmp_path / f"in{suffix}", "one")
    arguments: list[str | Path] = [source, "-o", tmp_path / "out.npy", "-s", target, "--resume"]
    begun(arguments)
    size_bytes = source.stat().st_size
    assert write(source, "two").stat().st_size == size_bytes
    other = finished(command(*arguments))
    assert other.returncode == 2
    assert "out.npy.part was begun with input_sha256=" in other.stderr

    write(source, "one")  # the same again, at another time
    same = finished(command(*arguments))
    assert (same.returncode, same.stderr) == (0, "")


def test_a_file_is_told_by_its_first_mib_and_its_last_or_a_longer_tail(tmp_path: Path) -> None:
    mib = 1 << 20
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(bytes(5 * mib))

    def noticed(place: int, least_tail_bytes: int = 0) -> bool:
        contents = bytearray(5 * mib)
        contents[place] = 1
        other.write_bytes(contents)
        return edges_sha256(path, least_tail_bytes) != edges_sha256(other, least_tail_bytes)

    assert [noticed(place) for place in (0, mib - 1, mib, 4 * mib - 1, 4 * mib)] == [True, True, False, False, True]
    assert [noticed(place, 2 * mib) for place in (3 * mib - 1, 3 * mib)] == [False, True]
    assert noticed(2 * mib, 9 * mib)


def test_a_part_of_which_nothing_is_known_counts_for_nothing(target: str, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a\n")
    (tmp_path / "out.jsonl.part").write_text('{"index": 0, "vector": [1.0]}\n')
    (tmp_path / "out.jsonl.part.json").write_text("")
    done = finished(command(tmp_path / "in.txt", "-o", tmp_path / "out.jsonl", "-s", target, "--resume"))
    assert (done.returncode, done.stderr) == (0, "")
    assert [line["vector"] for line in written(tmp_path / "out.jsonl")] == [[float(x) for x in vector("a")]]


def test_row_groups_that_are_done_are_not_decoded(tmp_path: Path) -> None:
    source = make_input(tmp_path / "in.parquet", 3000)
    inputs = open_inputs(source, id_column="key")
    whole = list(inputs.read(0))
    chunk = pq.read_metadata(source).row_group(0).column(0)
    with source.open("r+b") as file:
        file.seek(chunk.dictionary_page_offset or chunk.data_page_offset)
        file.write(b"\xff" * chunk.total_compressed_size)
    with pytest.raises(BadFile, match="column 'text': "):
        list(inputs.read(699))
    assert list(inputs.read(700)) == whole[700:]
    assert list(inputs.read(1500)) == whole[1500:]


def test_a_run_that_ends_early_by_itself_keeps_all_that_was_answered(
    fake: FakeEncoder, target: str, tmp_path: Path
) -> None:
    # Under a write gRPC loses the status of a stream, which is then taken up again; the second one is quiet.
    failure = Refusal(grpc.StatusCode.INTERNAL)
    fake.refuse_streams_after = [(60, failure), (0, failure)]
    (tmp_path / "in.txt").write_text("".join(f"text {i}\n" for i in range(90)))
    arguments: list[str | Path] = [tmp_path / "in.txt", "-o", tmp_path / "out.parquet", "-s", target]
    assert finished(command(*arguments)).returncode == 1
    kept = pq.read_table(tmp_path / "out.parquet.part").num_rows
    assert kept > 0
    fake.refuse_streams_after.clear()
    fake.answered.clear()
    assert finished(command(*arguments, "--resume")).returncode == 0
    assert fake.answered.total() == 90 - kept
    assert [row["index"] for row in written(tmp_path / "out.parquet")] == list(range(90))


@pytest.mark.parametrize("suffix", [".npy", ".jsonl", ".parquet"])
def test_a_second_run_into_the_same_output_is_refused_and_the_first_is_itself(
    fake: FakeEncoder, target: str, tmp_path: Path, suffix: str
) -> None:
    fake.pace_s = 0.01
    output = tmp_path / f"out{suffix}"
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("".join(f"{name} {number}\n" for number in range(200)))

    def arguments(name: str) -> list[str | Path]:
        return [tmp_path / f"{name}.txt", "-o", output, "-s", target]

    first = subprocess.Popen(command(*arguments("a")), stderr=subprocess.PIPE, text=True)
    while not fake.answered:
        time.sleep(0.01)
    for more in ([], ["--resume"]):
        second = finished(command(*arguments("b"), *more))
        assert (second.returncode, second.stderr) == (2, f"harken: another run is writing {output}\n")
    _, told = first.communicate(timeout=60)
    assert (first.returncode, told) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt", output.name]
    assert all(text.startswith("a ") for text in fake.answered)
    # One that was killed leaves its lock behind, and nobody minds.
    output.with_name(output.name + ".lock").touch()
    assert finished(command(*arguments("b"))).returncode == 0
