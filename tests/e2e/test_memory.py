"""Memory on a real server: a burst gives back what it took, and an allocation that fails costs nobody their answer."""

import json
import os
import resource
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import psutil
import pytest
from harken.v1 import encoder_pb2 as pb
from support.calls import Refused, ids, refused_result, stub, text, vector
from support.server import RunningServer, running_server

MIB = 1 << 20
MODEL = "all-MiniLM-L6-v2"


def rss(server: RunningServer) -> float:
    return server.total("harken_memory_bytes", kind="rss")


def budget(server: RunningServer) -> float:
    return server.total("harken_memory_bytes", kind="budget")


def rows(lengths: Sequence[int]) -> list[list[int]]:
    rng = np.random.default_rng(7)
    return [rng.integers(1000, 30000, length).tolist() for length in lengths]


def answers(server: RunningServer, sequences: Sequence[list[int]]) -> list[npt.NDArray[np.float32] | Refused]:
    """One call each, all at once."""
    encoder = stub(server.target)

    def call(sequence: list[int]) -> npt.NDArray[np.float32] | Refused:
        (result,) = encoder.Encode(pb.EncodeRequest(inputs=ids(sequence))).results
        return refused_result(result) if result.HasField("error") else vector(result)

    with ThreadPoolExecutor(len(sequences)) as pool:
        return list(pool.map(call, sequences))


def test_a_burst_of_long_sequences_gives_back_what_it_took(minilm_models: Path) -> None:
    with running_server(minilm_models) as server:
        encoder = stub(server.target)
        encoder.Encode(pb.EncodeRequest(inputs=ids(*rows([20] * 8))))
        before = rss(server)
        # Two of them are a batch, and each lane runs one: so the peak is some 100 MiB higher.
        encoder.Encode(pb.EncodeRequest(inputs=ids(*rows([512] * 32))))
        token_vectors = pb.EncodeOptions(output=pb.OUTPUT_TOKENS)
        encoder.Encode(pb.EncodeRequest(inputs=ids(*rows([512] * 20)), options=token_vectors))
        assert server.total("harken_memory_bytes", kind="rss_peak") > 1.15 * before
        server.wait_until("memory to go back", lambda: rss(server) < 1.15 * before)


def test_what_a_call_held_goes_with_it_and_not_only_when_the_collector_comes(
    minilm_models: Path, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import gc; gc.disable()")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    vectors = pb.EncodeRequest(inputs=ids([101] * 300), options=pb.EncodeOptions(output=pb.OUTPUT_TOKENS))
    bad = pb.EncodeRequest(inputs=text(*["a" * 100_000] * 10, ""))
    with running_server(minilm_models, environment={"PYTHONPATH": path}) as server:
        encoder = stub(server.target)

        def calls(count: int) -> None:
            for _ in range(count):
                encoder.Encode(vectors)
                with pytest.raises(grpc.RpcError):
                    encoder.Encode(bad)

        calls(5)
        before = rss(server)
        # The answers have 0.5 MB each, the refused requests 1 MB.
        calls(60)
        assert rss(server) - before < 30 * MIB


def test_measured_peaks_are_kept_and_a_file_without_them_gets_them(minilm_models: Path, tmp_path: Path) -> None:
    options = (
        "--no-wide-lane",
        "--state-dir",
        str(tmp_path),
        "--warmup-s",
        "100",
    )  # a limit that even a slow machine does not reach

    def kept() -> tuple[Path, dict[str, Any]]:
        with running_server(minilm_models, *options) as server:
            ready = next(line for line in server.log if line["event"] == "model ready")
            assert ready["memory"] == "measured"
        (file,) = (tmp_path / "surfaces").iterdir()
        return file, json.loads(file.read_text())

    def peak_bytes(content: dict[str, Any]) -> dict[tuple[int, int], int]:
        return {(batch, length): peak for batch, length, peak in content["peak_bytes"]}

    file, first = kept()
    peaks = peak_bytes(first)
    assert {length for _, length in peaks} >= {64, 128, 256, 512}
    file.write_text(json.dumps({key: value for key, value in first.items() if key != "peak_bytes"}))
    _, second = kept()
    assert peak_bytes(second).keys() == peaks.keys()
    greatest = max(peaks, key=lambda shape: peaks[shape])
    assert peak_bytes(second)[greatest] == pytest.approx(peaks[greatest], rel=0.1)
    # Known ones are taken as they are.
    marked = {**second, "peak_bytes": [[batch, length, 2 * peak] for (batch, length), peak in peaks.items()]}
    file.write_text(json.dumps(marked))
    _, third = kept()
    assert peak_bytes(third) == {shape: 2 * peak for shape, peak in peaks.items()}


def test_batches_that_find_no_memory_are_split_and_everybody_is_answered(minilm_models: Path) -> None:
    # Beside the weights the arena has room for one long sequence, and two lanes want one each. The budget is wrong.
    limits = ("--no-wide-lane", "--cpu-memory-limit-bytes", str(84 * MIB), "--memory-budget-bytes", str(2048 * MIB))
    sequences = rows([512] * 30 + [300] * 10 + [16] * 20)
    with running_server(minilm_models, *limits, "--lanes", "2", "--warmup-s", "1", "--max-request-s", "120") as server:
        assert budget(server) == 2048 * MIB
        found = answers(server, sequences)
        failures = server.total("harken_out_of_memory_total", model=MODEL)
        assert failures >= 1
        lowered = budget(server)
        assert lowered < 1024 * MIB
        server.wait_until("the budget to come back", lambda: budget(server) > 1.01 * lowered)
        for sequence, together in list(zip(sequences, found, strict=True))[::5]:
            (alone,) = answers(server, [sequence])
            assert isinstance(together, np.ndarray)
            assert isinstance(alone, np.ndarray)
            np.testing.assert_allclose(together, alone, atol=1e-5, rtol=0)
        assert not [answer for answer in found if isinstance(answer, Refused)]
        assert server.total("harken_finished_total") == server.total("harken_finished_total", outcome="answered")
        assert server.total("harken_accepted_total") == server.total("harken_finished_total")


def test_a_sequence_for_which_there_is_no_memory_is_told_when_to_try_again(minilm_models: Path) -> None:
    # Beside the weights there is room for a batch of some 200 tokens.
    limits = ("--no-wide-lane", "--cpu-memory-limit-bytes", str(52 * MIB), "--memory-budget-bytes", str(1024 * MIB))
    with running_server(minilm_models, *limits, "--warmup-s", "1") as server:
        found = answers(server, rows([512, 16, 16]))
        assert found[0] == Refused(
            "RESOURCE_EXHAUSTED", "the server has no memory for this input at present", "OUT_OF_MEMORY", (), 1.0
        )
        assert not isinstance(found[1], Refused)
        assert not isinstance(found[2], Refused)
        # It was tried twice.
        tried = [line["padded_length"] for line in server.log if line["event"] == "no memory for a batch"]
        assert tried.count(512) >= 2
        assert server.total("harken_finished_total", outcome="failed") == 1
        assert server.total("harken_accepted_total") == server.total("harken_finished_total") == 3


def mapped_bytes(server: RunningServer) -> int:
    """All of its address space."""
    mapped: int = psutil.Process(server.process.pid).memory_info().vms
    return mapped


@contextmanager
def address_space(server: RunningServer, more_bytes: int) -> Iterator[None]:
    """The process may map so much more than it has now, as `ulimit -v` would have it."""
    pid = server.process.pid
    _, hard = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (mapped_bytes(server) + more_bytes, hard))
    yield
    resource.prlimit(pid, resource.RLIMIT_AS, (hard, hard))


def test_where_the_system_gives_no_memory_short_ones_are_answered_and_so_is_all_that_follows(
    minilm_models: Path,
) -> None:
    limits = ("--no-wide-lane", "--lanes", "1", "--memory-budget-bytes", str(2048 * MIB), "--warmup-s", "1")
    # The C library keeps address space for each thread, in which a batch would find room.
    one_arena = {"MALLOC_ARENA_MAX": "1"}
    long, short = rows([512])[0], rows([16] * 8)
    with running_server(minilm_models, *limits, environment=one_arena) as server:
        answers(server, short)
        idle_bytes = mapped_bytes(server)
        alone = answers(server, [*short, long])
        server.wait_until("unused memory to go back", lambda: mapped_bytes(server) <= idle_bytes + 4 * MIB)
        # The long one takes 36 MiB.
        with address_space(server, 12 * MIB):
            found = answers(server, [long, *short])
            again = answers(server, short)
        assert isinstance(found[0], Refused)
        assert (found[0].code, found[0].reason) == ("RESOURCE_EXHAUSTED", "OUT_OF_MEMORY")
        for one, expected in zip([*found[1:], *again], alone[:8] * 2, strict=True):
            np.testing.assert_allclose(np.asarray(one), np.asarray(expected), atol=1e-5, rtol=0)
        assert server.total("harken_out_of_memory_total", model=MODEL) >= 2
        assert budget(server) < 1024 * MIB
        # The very session takes it as soon as there is memory.
        (after,) = answers(server, [long])
        np.testing.assert_allclose(np.asarray(after), np.asarray(alone[8]), atol=1e-5, rtol=0)
        assert server.total("harken_accepted_total") == server.total("harken_finished_total") == 35
        assert server.total("harken_finished_total", outcome="failed") == 1


@pytest.mark.parametrize(
    ("options", "sessions"),
    [((), 2), (("--lane-sessions", "shared"), 1), (("--cpu-memory-limit-bytes", "500000000"), 1)],
    ids=["by itself", "shared", "where the arena is limited"],
)
def test_each_lane_has_a_session_of_its_own_where_that_is_affordable(
    minilm_models: Path, options: tuple[str, ...], sessions: int
) -> None:
    with running_server(minilm_models, "--lanes", "2", "--no-wide-lane", "--warmup-s", "1", *options) as server:
        ready = next(line for line in server.log if line["event"] == "model ready")
        assert ready["sessions"] == sessions
        assert len(stub(server.target).Encode(pb.EncodeRequest(inputs=ids(*[[101, 102]] * 8))).results) == 8
