"""The command `harken`, as a process."""

import json
import re
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from client.command import COMMAND, harken
from client.fake_server import BAD, FakeEncoder, free_port, serving, vector
from grpc_health.v1 import health_pb2


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def record(index: int, text: str, **more: object) -> dict[str, object]:
    row = [float(x) for x in vector(text)]
    return {"index": index, "vector": row, "tokens": len(text.split()) + 2, "truncated": False} | more


def rows(texts: list[str]) -> np.ndarray[Any, Any]:
    return np.stack([vector(text) for text in texts])


def test_texts_as_arguments_become_json_lines(target: str) -> None:
    finished = harken("encode", "first text", "second", "--server", target)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert records(finished.stdout) == [record(0, "first text"), record(1, "second")]


def test_lines_of_standard_input_are_encoded(target: str) -> None:
    finished = harken("encode", "--server", target, stdin="a b\r\nüml\n")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert records(finished.stdout) == [record(0, "a b"), record(1, "üml")]


def test_token_vectors_are_written_as_rows(target: str) -> None:
    finished = harken("encode", "a", "--tokens", "--server", target)
    assert records(finished.stdout) == [record(0, "a", vector=[[float(x) for x in vector("a")]] * 3)]


def test_jsonl_input_carries_ids_and_token_ids(target: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"id": "x", "text": "a"}\n{"ids": [5, 6]}\n{"id": 7, "text": "b"}')
    finished = harken("encode", "-i", tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl", "-s", target)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")
    ids = {"vector": [float(x) for x in vector((5, 6))], "tokens": 2}
    assert records((tmp_path / "out.jsonl").read_text()) == [
        record(0, "a", id="x"),
        record(1, "", **ids),
        record(2, "b", id="7"),
    ]


def test_a_single_argument_that_ends_as_a_file_is_that_file(target: str, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a\nb c\n")
    finished = harken("encode", tmp_path / "in.txt", "-s", target)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert records(finished.stdout) == [record(0, "a"), record(1, "b c")]


def test_npy_output_has_one_row_per_line(target: str, tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(500)]
    (tmp_path / "in.txt").write_text("\n".join(texts))
    finished = harken("encode", "-i", tmp_path / "in.txt", "-o", tmp_path / "out.npy", "-s", target)
    assert (finished.returncode, finished.stderr) == (0, "")
    encoded = np.load(tmp_path / "out.npy")
    assert encoded.dtype == np.float32
    np.testing.assert_array_equal(encoded, rows(texts))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.npy"]


def test_failed_inputs_are_told_and_stop_nothing(fake: FakeEncoder, target: str, tmp_path: Path) -> None:
    fake.refuse_texts = {"bad": BAD}
    (tmp_path / "in.txt").write_text("a\nbad\nc\n")
    to_json = harken("encode", "-i", tmp_path / "in.txt", "-s", target)
    to_npy = harken("encode", "-i", tmp_path / "in.txt", "-o", tmp_path / "out.npy", "-s", target)
    message = "INVALID_ARGUMENT (BAD_INPUT): bad input; inputs[1].text: inputs[1].text is bad"
    for finished in (to_json, to_npy):
        assert (finished.returncode, finished.stderr) == (1, f"harken: 1 inputs failed; input 1: {message}\n")
    error = {"code": "INVALID_ARGUMENT", "reason": "BAD_INPUT", "message": message}
    assert records(to_json.stdout) == [record(0, "a"), {"index": 1, "error": error}, record(2, "c")]
    encoded = np.load(tmp_path / "out.npy")
    np.testing.assert_array_equal(encoded, np.stack([vector("a"), np.full(8, np.nan), vector("c")]))


@pytest.mark.parametrize("output", ["out.npy", "out.jsonl", "out.parquet"])
def test_a_complete_output_is_not_resumed(output: str, target: str, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a\n")
    arguments: list[str | Path] = ["encode", "-i", tmp_path / "in.txt", "-o", tmp_path / output, "-s", target]
    assert harken(*arguments).returncode == 0
    finished = harken(*arguments, "--resume")
    assert finished.returncode == 2
    assert finished.stderr == f"harken: {tmp_path}/{output} is complete; there is nothing to resume\n"


@pytest.mark.parametrize("output", ["out.npy", "out.jsonl"])
def test_a_wrong_input_does_not_cost_the_output(output: str, target: str, tmp_path: Path) -> None:
    (tmp_path / output).write_text("precious")
    (tmp_path / f"{output}.part").write_text("half")
    finished = harken("encode", "-i", tmp_path / "none.txt", "-o", tmp_path / output, "-s", target)
    assert finished.returncode == 2
    assert finished.stderr == f"harken: [Errno 2] No such file or directory: '{tmp_path}/none.txt'\n"
    assert (tmp_path / output).read_text() == "precious"
    assert (tmp_path / f"{output}.part").read_text() == "half"


def test_the_old_output_stays_until_the_new_one_is_complete(fake: FakeEncoder, target: str, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("precious")
    (tmp_path / "in.txt").write_text("a\n" * 10_000)
    fake.pace_s = 0.01
    arguments = ["encode", "-i", str(tmp_path / "in.txt"), "-o", str(tmp_path / "out.jsonl"), "-s", target]
    running = subprocess.Popen([*COMMAND, *arguments])
    while not fake.answered:
        assert running.poll() is None
        time.sleep(0.01)
    running.terminate()
    assert running.wait(60) != 0
    assert (tmp_path / "out.jsonl").read_text() == "precious"


def test_an_output_that_is_the_input_or_a_directory_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "a"}\n')
    (tmp_path / "link.jsonl").symlink_to(source)
    (tmp_path / "dir.npy").mkdir()
    # No server is needed to say so.
    for name, fault in (
        ("in.jsonl", "is the input as well as the output"),
        ("link.jsonl", "is the input as well as the output"),
        ("dir.npy", "is a directory"),
    ):
        finished = harken("encode", "-i", source, "-o", tmp_path / name, "-s", "127.0.0.1:1")
        assert (finished.returncode, finished.stderr) == (2, f"harken: {tmp_path / name} {fault}\n")
    with source.open() as stdin:
        command = [*COMMAND, "encode", "-o", str(source), "-s", "127.0.0.1:1"]
        piped = subprocess.run(command, stdin=stdin, capture_output=True, text=True, timeout=60, check=False)
    assert (piped.returncode, piped.stderr) == (2, f"harken: {source} is the input as well as the output\n")
    given = harken("encode", "a", "-o", tmp_path / "dir.npy", "-s", "127.0.0.1:1")
    assert (given.returncode, given.stderr) == (2, f"harken: {tmp_path}/dir.npy is a directory\n")
    assert source.read_text() == '{"text": "a"}\n'


def test_a_reader_that_leaves_early_is_no_traceback(target: str) -> None:
    running = subprocess.Popen(
        [*COMMAND, "encode", "-s", target],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdin is not None
    assert running.stdout is not None
    assert running.stderr is not None
    writer = threading.Thread(target=_write_and_close, args=(running.stdin, "text\n" * 5000))
    writer.start()
    assert json.loads(running.stdout.readline())["index"] == 0
    running.stdout.close()
    assert running.wait(30) == 1
    assert running.stderr.read() == ""
    running.stderr.close()
    writer.join()


def _write_and_close(pipe: IO[str], text: str) -> None:
    with suppress(BrokenPipeError), pipe:
        pipe.write(text)


def test_ctrl_c_ends_with_130_and_no_word(target: str) -> None:
    running = subprocess.Popen(
        [*COMMAND, "encode", "-s", target],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdin is not None
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdin.write("a\n" * 200)
    running.stdin.flush()
    assert json.loads(running.stdout.readline())["index"] == 0  # it runs, and waits for more lines
    running.send_signal(signal.SIGINT)
    assert running.wait(30) == 130
    assert running.stderr.read() == ""
    for pipe in (running.stdin, running.stdout, running.stderr):
        pipe.close()


def test_a_server_that_is_not_there_is_one_line_and_1() -> None:
    finished = harken("models", "--server", f"127.0.0.1:{free_port()}")
    assert (finished.returncode, finished.stdout) == (1, "")
    assert re.match("harken: UNAVAILABLE: .*Failed to connect", finished.stderr)
    assert finished.stderr.count("\n") == 1


def test_an_error_of_the_server_is_one_line_and_1(target: str) -> None:
    finished = harken("encode", "a", "--model", "huge", "--server", target)
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr == "harken: NOT_FOUND (MODEL_NOT_FOUND): no model huge\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "a", "-o", "x.csv"], "--output ends in .npy, .jsonl or .parquet, not as x.csv"),
        (["encode", "-i", "x.csv"], "--input ends in .txt, .jsonl or .parquet, not as x.csv"),
        (["encode", "a", "-i", "x.txt"], "texts come as arguments or from --input, not both"),
        (["encode", "a", "--resume"], "--resume needs a file of inputs and --output, the same as before"),
        (["encode", "a", "-o", "x.npy", "--tokens"], "--tokens gives each input its own shape: write .jsonl"),
        (["encode", "a", "-o", "x.parquet", "--tokens"], "--tokens gives each input its own shape: write .jsonl"),
        (
            ["encode", "-i", "x.txt", "--id-column", "id"],
            "--column and --id-column are of an input that ends in .parquet",
        ),
        (
            ["encode", "mistyped.parquet"],
            "there is no file mistyped.parquet; a text that ends so is given as a line of stdin",
        ),
        (["health", "--watch", "--wait", "1"], "--watch and --wait exclude one another"),
        (
            ["load", "--concurrency", "1", "--rate", "1"],
            "--concurrency (closed loop) and --rate (open loop) exclude one another",
        ),
    ],
)
def test_wrong_usage_is_one_line_and_2(arguments: list[str], message: str) -> None:
    finished = harken(*arguments)
    assert (finished.returncode, finished.stdout, finished.stderr) == (2, "", f"harken: {message}\n")


def test_a_line_that_is_not_what_it_should_be_fails_alone_and_is_named(target: str, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"words": 1}\n{"text": "\xff"}\n{"text": "\\ud800"}\n{"text": "b"}\n')
    finished = harken("encode", "-i", path, "-s", target)
    assert finished.returncode == 1
    first = f'INVALID_ARGUMENT (INPUT_UNREADABLE): {path}:2: not an object with either "text" or "ids"'
    assert finished.stderr == f"harken: 3 inputs failed; input 1: {first}\n"
    rows = [json.loads(line) for line in finished.stdout.splitlines()]
    assert ["vector" in row for row in rows] == [True, False, False, False, True]
    assert f"{path}:3: 'utf-8' codec can't decode" in rows[2]["error"]["message"]
    assert "half of a character" in rows[3]["error"]["message"]
    assert harken("encode", "-i", path, "-o", tmp_path / "out.npy", "-s", target).returncode == 1
    assert np.isnan(np.load(tmp_path / "out.npy")[:, 0]).tolist() == [False, True, True, True, False]
    missing = harken("encode", "-i", tmp_path / "none.txt", "-s", target)
    assert missing.returncode == 2
    assert missing.stderr == f"harken: [Errno 2] No such file or directory: '{tmp_path}/none.txt'\n"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"ids": "abc"}', '"ids" is not a list of integers'),
        ('{"ids": [1, true]}', '"ids" is not a list of integers'),
        ('{"text": [1, 2]}', '"text" is not a string'),
        ("[" * 100_000, "JSON that is nested too deeply"),
    ],
)
def test_a_line_that_is_no_input_is_named(line: str, fault: str, target: str, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "a"}\n' + line + "\n")
    finished = harken("encode", "-i", path, "-s", target)
    told = f"harken: 1 inputs failed; input 1: INVALID_ARGUMENT (INPUT_UNREADABLE): {path}:2: {fault}\n"
    assert (finished.returncode, finished.stderr) == (1, told)


@pytest.mark.parametrize("output", ["out.jsonl", "out.npy", "out.parquet"])
def test_half_a_character_in_an_id_or_in_the_files_name_stops_nothing(output: str, target: str, tmp_path: Path) -> None:
    path = tmp_path / "in\udcff.jsonl"  # a byte that is no UTF-8
    path.write_text('{"id": "\\ud800", "text": "a"}\n{"id": "x", "text": "b"}\n')
    finished = harken("encode", "-i", path, "-o", tmp_path / output, "-s", target)
    told = f"{tmp_path}/in\\udcff.jsonl:1: \"id\" holds half of a character, '\\ud800' at 0"
    assert finished.stderr == f"harken: 1 inputs failed; input 0: INVALID_ARGUMENT (INPUT_UNREADABLE): {told}\n"
    assert finished.returncode == 1
    assert (tmp_path / output).exists()
    if output == "out.jsonl":
        assert told in records((tmp_path / output).read_text())[0]["error"]["message"]


def test_a_model_that_is_no_utf_8_is_one_line_and_2() -> None:
    finished = harken("encode", "a", "-m", "\udcff")
    assert (finished.returncode, finished.stderr) == (2, "harken: model holds half of a character, '\\udcff' at 0\n")


@pytest.mark.parametrize("option", ["--dimensions", "--overlap-tokens"])
def test_a_number_that_no_message_holds_is_wrong_usage(option: str) -> None:
    finished = harken("encode", "a", "--chunk", "mean", option, str(1 << 32))
    assert finished.returncode == 2
    assert f"Invalid value for '{option}'" in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize(
    "arguments", [["encode", "a", "--timeout", "inf"], ["health", "--wait", "inf"], ["load", "--rate", "inf"]]
)
def test_a_number_without_an_end_is_wrong_usage(arguments: list[str]) -> None:
    finished = harken(*arguments)
    assert finished.returncode == 2
    assert "is not a finite number" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_models_are_listed(target: str) -> None:
    finished = harken("models", "-s", target)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert [line.split() for line in finished.stdout.splitlines()] == [
        ["model", "default", "hidden", "max", "length", "text", "precision", "device"],
        ["tiny/3", "yes", "8", "16", "yes", "fp32", "cpu"],
    ]


def test_health_is_0_only_if_serving(fake: FakeEncoder) -> None:
    with serving(fake) as target:
        healthy = harken("health", "-s", target)
        waited = harken("health", "--wait", "30", "-s", target)
        unknown = harken("health", "--service", "no.such", "-s", target)
    fake.serving_status = health_pb2.HealthCheckResponse.NOT_SERVING
    with serving(fake) as target:
        sick = harken("health", "-s", target)
        in_vain = harken("health", "--wait", "3", "-s", target)
    assert (healthy.returncode, healthy.stdout) == (0, "SERVING\n")
    assert (waited.returncode, waited.stdout) == (0, "SERVING\n")
    assert (sick.returncode, sick.stdout) == (1, "NOT_SERVING\n")
    assert (in_vain.returncode, in_vain.stdout) == (1, "")
    assert in_vain.stderr == f"harken: DEADLINE_EXCEEDED: {target} was not ready in time; last status: NOT_SERVING\n"
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr.startswith("harken: NOT_FOUND")
