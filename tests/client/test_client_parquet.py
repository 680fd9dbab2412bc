"""`harken encode` from and into Parquet."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from client.command import COMMAND, finished, harken
from client.fake_server import BAD, FakeEncoder, vector

NULL = "INVALID_ARGUMENT (INPUT_UNREADABLE): an input is a str or a sequence of token ids (integers), not None"


def write(path: Path, row_group_size: int = 1000, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def row(index: int, content: str | tuple[int, ...], tokens: int, **more: object) -> dict[str, object]:
    values = [float(x) for x in vector(content)]
    return {"index": index, "vector": values, "tokens": tokens, "truncated": False, "error": None} | more


def test_a_parquet_becomes_one_row_for_each_input_in_order(fake: FakeEncoder, target: str, tmp_path: Path) -> None:
    fake.refuse_texts = {"bad": BAD}
    source = write(tmp_path / "in.parquet", 2, text=["a", None, "bad", "b c"], key=[7, 8, None, -1])
    done = harken("encode", source, "-o", tmp_path / "out.parquet", "--id-column", "key", "-s", target)

    refused = "INVALID_ARGUMENT (BAD_INPUT): bad input; inputs[2].text: inputs[2].text is bad"
    assert (done.returncode, done.stderr) == (1, f"harken: 2 inputs failed; input 1: {NULL}\n")
    table = pq.read_table(tmp_path / "out.parquet")
    none = {"vector": None, "tokens": None, "truncated": None}
    assert table.to_pylist() == [
        row(0, "a", 3, id=7),
        {"id": 8, "index": 1, **none}
        | {"error": {"code": "INVALID_ARGUMENT", "reason": "INPUT_UNREADABLE", "message": NULL}},
        {"id": None, "index": 2, **none}
        | {"error": {"code": "INVALID_ARGUMENT", "reason": "BAD_INPUT", "message": refused}},
        row(3, "b c", 4, id=-1),
    ]
    assert table.schema.field("id").type == pa.int64()
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 8)
    assert json.loads(table.schema.metadata[b"harken"])["model"] == "tiny"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet", "out.parquet"]


@pytest.mark.parametrize(
    ("columns", "content", "tokens"),
    [
        ({"id": ["x"], "text": ["a"]}, "a", 3),
        ({"label": [1], "sentence": ["a"]}, "a", 3),
        ({"sentence": pa.array(["a"]).dictionary_encode()}, "a", 3),
        ({"sentence": pa.array(["a"], pa.string_view())}, "a", 3),
        ({"doc": ["x"], "ids": [[5, 6]]}, (5, 6), 2),
        ({"label": [1.0], "tokens": pa.array([[5, 6]], pa.list_(pa.int32(), 2))}, (5, 6), 2),
    ],
)
def test_the_column_that_can_only_be_meant_needs_no_name(
    columns: dict[str, Any], content: str | tuple[int, ...], tokens: int, target: str, tmp_path: Path
) -> None:
    source = write(tmp_path / "in.parquet", **columns)
    done = harken("encode", source, "-s", target)
    assert (done.returncode, done.stderr) == (0, "")
    expected = row(0, content, tokens)
    del expected["error"]
    assert json.loads(done.stdout) == expected


def test_a_named_column_is_read_and_its_ids_stand_in_json_lines(target: str, tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", title=["t"], body=["a"], key=["k"])
    done = harken("encode", "-i", source, "--column", "body", "--id-column", "key", "-s", target)
    assert (done.returncode, done.stderr) == (0, "")
    line = json.loads(done.stdout)
    assert (line["id"], line["vector"]) == ("k", [float(x) for x in vector("a")])


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ([], " has several columns that could be meant: say --column, one of 'a' (string), 'b' (string)"),
        (
            ["--column", "c"],
            " has 0 columns named 'c', not one: 'a' (string), 'b' (string), 'at' (double), 'none' (null)",
        ),
        (["--column", "at"], ": column 'at' is double, not strings or lists of integers"),
        (["--column", "a", "--id-column", "at"], ": column 'at' is double, not strings or integers"),
        (["--column", "none"], ": column 'none' is null, not strings or lists of integers"),
        (["--column", "a", "--id-column", "none"], ": column 'none' is null, not strings or integers"),
    ],
)
def test_a_column_that_is_not_there_or_not_fit_is_named(
    arguments: list[str], fault: str, target: str, tmp_path: Path
) -> None:
    source = write(tmp_path / "in.parquet", a=["x"], b=["y"], at=[1.5], none=pa.nulls(1))
    done = harken("encode", source, *arguments, "-s", target)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"harken: {source}{fault}\n")


def test_a_file_without_any_column_to_encode_says_what_it_has(target: str, tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", at=[1.5])
    done = harken("encode", source, "-s", target)
    fault = "has no column of strings or lists of integers, but 'at' (double)"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"harken: {source} {fault}\n")


STRINGS = {
    "large_string": pa.large_string(),
    "string_view": pa.string_view(),
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
    "dictionary_of_large_strings": pa.dictionary(pa.int32(), pa.large_string()),
}


@pytest.mark.parametrize("kind", STRINGS)
def test_strings_of_any_kind_are_texts_and_ids(kind: str, target: str, tmp_path: Path) -> None:
    # More than one batch of rows.
    texts = [None if number == 3 else f"text {number % 7}" for number in range(600)]
    strings = pa.array(texts).cast(STRINGS[kind]) if kind != "string_view" else pa.array(texts, pa.string_view())
    source = write(tmp_path / "in.parquet", 250, text=strings, key=strings)
    done = harken("encode", source, "-o", tmp_path / "out.parquet", "--id-column", "key", "-s", target)
    assert (done.returncode, done.stderr) == (1, f"harken: 1 inputs failed; input 3: {NULL}\n")
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["id"] for row in rows] == texts
    expected = [None if text is None else [float(x) for x in vector(text)] for text in texts]
    assert [row["vector"] for row in rows] == expected


def test_a_file_that_is_no_parquet_is_one_line_and_2(target: str, tmp_path: Path) -> None:
    (tmp_path / "in.parquet").write_text("a text a line\n")
    done = harken("encode", tmp_path / "in.parquet", "-s", target)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"harken: {tmp_path}/in.parquet: Parquet magic bytes not found")


@pytest.mark.parametrize("arguments", [["in.parquet"], ["in.txt", "-o", "out.parquet"]])
def test_without_pyarrow_it_is_told_what_to_install(arguments: list[str], target: str, tmp_path: Path) -> None:
    write(tmp_path / "in.parquet", text=["a"])
    (tmp_path / "in.txt").write_text("a\n")
    without = "import sys; sys.modules['pyarrow'] = None; from harken_client.cli import main; main()"
    paths = [name if name == "-o" else str(tmp_path / name) for name in arguments]
    done = finished([sys.executable, "-c", without, "encode", *paths, "-s", target])
    assert (done.returncode, done.stderr) == (2, "harken: Parquet needs pyarrow: pip install 'harken[parquet]'\n")


def test_ids_of_jsonl_stand_in_parquet(target: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"id": "x", "text": "a"}\n{"ids": [5, 6]}\n')
    done = harken("encode", tmp_path / "in.jsonl", "-o", tmp_path / "out.parquet", "-s", target)
    assert (done.returncode, done.stderr) == (0, "")
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert rows == [row(0, "a", 3, id="x"), row(1, (5, 6), 2, id=None)]


def test_no_rows_make_a_parquet_of_no_rows(target: str, tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", text=pa.array([], pa.string()))
    done = harken("encode", source, "-o", tmp_path / "out.parquet", "-s", target)
    assert (done.returncode, done.stderr) == (0, "")
    assert pq.read_table(tmp_path / "out.parquet").to_pydict() == {
        name: [] for name in ("index", "vector", "tokens", "truncated", "error")
    }


def test_memory_does_not_grow_with_the_rows(fake: FakeEncoder, target: str, tmp_path: Path) -> None:
    rows = 30_000
    # One row group, as pyarrow writes it by itself.
    source = write(tmp_path / "in.parquet", rows, text=[f"{i} " + "x" * 1000 for i in range(rows)])
    with psutil.Popen([*COMMAND, "encode", str(source), "-o", str(tmp_path / "out.parquet"), "-s", target]) as running:
        taken_bytes = []
        for answers in (rows // 4, rows - 500):
            while fake.answered.total() < answers:
                assert running.poll() is None
                time.sleep(0.05)
            taken_bytes.append(running.memory_info().rss)
        assert running.wait(60) == 0
    table = pq.read_table(tmp_path / "out.parquet", columns=["index", "vector"])
    assert table["index"].to_pylist() == list(range(rows))
    assert not any(vectors is None for vectors in table["vector"].to_pylist())
    # Whoever kept the results, or the texts, would hold 22,000 more of them: over 20 MiB each.
    assert taken_bytes[1] - taken_bytes[0] < 12 << 20, np.array(taken_bytes) >> 20
