"""Versions are swapped under load: nobody is refused, and nothing is left behind."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
from harken.v1 import encoder_pb2 as pb
from support.calls import different, ids, stub
from support.open_stream import OpenStream
from support.releases import release, withdraw
from support.server import RunningServer, running_server

CALLERS = 2
WATCHING = ("--watch-models-s", "0.02")


@contextmanager
def calls(server: RunningServer) -> Iterator[list[int]]:
    """Constant calls meanwhile, each at once after the one before; the version that answered each."""
    answered: list[int] = []
    stop = threading.Event()

    def caller(seed: int) -> None:
        encoder = stub(server.target)
        inputs = ids(*different(20 + seed, 8 + 4 * seed)[-4:])
        while not stop.is_set():
            response = encoder.Encode(pb.EncodeRequest(inputs=inputs), timeout=60)
            assert all(result.HasField("embedding") for result in response.results)
            answered.append(response.version)

    with ThreadPoolExecutor(CALLERS) as pool:
        running = [pool.submit(caller, seed) for seed in range(CALLERS)]
        try:
            yield answered
        finally:
            stop.set()
        for one in running:
            one.result()  # raises what a call raised


def swap(server: RunningServer, bundle: Path, models: Path, version: int) -> None:
    """Release a version, and take the one before away once it is the default."""
    release(bundle, models, version)
    encoder = stub(server.target)
    server.wait_until(
        f"version {version}",
        lambda: encoder.GetModel(pb.GetModelRequest(model="tiny")).model.version == version,
        timeout_s=60,
    )
    withdraw(models, version - 1)
    server.wait_until(
        f"the end of version {version - 1}",
        lambda: [info.version for info in encoder.ListModels(pb.ListModelsRequest()).models] == [version],
        timeout_s=60,
    )


def test_no_call_fails_and_a_stream_goes_on_while_versions_are_swapped(tiny_models: Path, tmp_path: Path) -> None:
    bundle = tiny_models / "tiny" / "1"
    release(bundle, tmp_path, 1)
    with running_server(tmp_path, *WATCHING) as server:
        with calls(server) as answered, OpenStream(server) as stream:
            for version in range(2, 22):
                swap(server, bundle, tmp_path, version)
                assert stream.answer(ids([version])[0]).HasField("embedding")
                server.wait_until("calls of this version", lambda version=version: version in answered)
        assert server.total("harken_rejected_total") == 0
        assert server.total("harken_finished_total", outcome="answered") == server.total("harken_accepted_total")
        assert set(answered) >= set(range(2, 22))


def test_a_hundred_swaps_leave_nothing_behind(tiny_models: Path, tmp_path: Path) -> None:
    bundle = tiny_models / "tiny" / "1"
    release(bundle, tmp_path, 1)
    with running_server(tmp_path, *WATCHING, "--debug-batches", "4") as server:
        process = psutil.Process(server.process.pid)

        def left() -> tuple[int, int, int, int]:
            """MiB of memory, descriptors, threads, series of metrics."""
            return (
                process.memory_info().rss >> 20, process.num_fds(), process.num_threads(), len(server.metrics()),
            )  # fmt: skip

        with calls(server) as answered:
            for version in range(2, 12):
                swap(server, bundle, tmp_path, version)
            early = left()
            for version in range(12, 102):
                swap(server, bundle, tmp_path, version)
            late = left()
            server.wait_until("a call of the last version", lambda: 101 in answered)
        rss_mib, descriptors, threads, series = (after - before for before, after in zip(early, late, strict=True))
        # A version that stays takes 3 MiB, so 90 of them 270; a connection takes a descriptor.
        assert rss_mib < 32
        assert descriptors < 10
        assert threads < 10
        assert series == 0
