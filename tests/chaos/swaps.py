"""Versions of the real model change under load: nobody is refused, and nothing is left behind."""

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import grpc
import numpy as np
from bench.contestants import Load, Server, send
from bench.workloads import MODEL, W1
from harken.v1 import encoder_pb2 as pb
from harken_client.load.pacer import ClosedLoop, OpenLoop
from support.calls import ids, stub, vector
from support.releases import look, release, withdraw
from support.server import RunningServer, running_server

SHARE = 0.8
"""Of the maximum, which is sent meanwhile."""

SETTLED = 10
"""Swaps after which memory is what it stays."""

_PROBE_S = 10.0
_LOAD_S = 20.0
_REST = 4
_BOUND = 1e-5


@dataclass(frozen=True)
class Swaps:
    """What happened.

    calls, failed      of the load, from before the first swap until after the last
    took_s             of each swap: from the release until the new version was the default and the old one gone
    worst_s            the longest call
    wrong              vectors of a new version that were not those of the first
    rss_growth_bytes   the most after one of the last three, over the most after one of the first eleven
    """

    rate_per_s: float
    calls: int
    failed: Counter[str]
    took_s: list[float]
    worst_s: float
    wrong: int
    rss_growth_bytes: float


def swaps(models: Path, folder: Path, count: int, every_s: float) -> Swaps:
    """Release `count` versions, one each `every_s` or, where one takes long, so that a fifth of the time is theirs.

    Blocks for all of that.
    """
    bundle, releases = models / MODEL / "1", folder / "releases"
    releases.mkdir()
    release(bundle, releases, 1, MODEL)
    # On a slow machine calls wait for long; none may be ended for that.
    options = ("--state-dir", str(folder), "--max-request-s", "300")
    with running_server(releases, *options) as server, ThreadPoolExecutor(1) as pool:
        contestant = Server(server.target, server.process.pid)
        rate = SHARE * send(contestant, W1, ClosedLoop(64), offset=0, duration_s=_PROBE_S, warmup_s=1.0).per_s
        expected = _vector(server)
        done = Event()

        def load() -> Iterator[Load]:
            for seed in itertools.count(1):
                if done.is_set():
                    return
                pacer = OpenLoop(rate, seed)
                yield send(contestant, W1, pacer, offset=1024 * seed, duration_s=_LOAD_S, warmup_s=0.0)

        loading = pool.submit(lambda: list(load()))
        took_s, rss_bytes, wrong = [], [], 0
        for number in range(count):
            took_s.append(_swap(server, bundle, releases, number + 2))
            time.sleep(max(every_s - took_s[-1], _REST * took_s[-1]))
            wrong += bool(np.abs(_vector(server) - expected).max() > _BOUND)
            rss_bytes.append(server.total("harken_memory_bytes", kind="rss"))
        done.set()
        loads = loading.result()
    grown_bytes = max(rss_bytes[-3:]) - max(rss_bytes[: SETTLED + 1])
    longest_s = max(max(one.latencies_s(), default=0.0) for one in loads)
    failed = sum((Counter(one.failures) for one in loads), Counter[str]())
    return Swaps(rate, sum(len(one.calls) for one in loads), failed, took_s, longest_s, wrong, grown_bytes)


def _vector(server: RunningServer) -> "np.typing.NDArray[np.float32]":
    (result,) = stub(server.target).Encode(pb.EncodeRequest(inputs=ids([101, 7592, 2088, 102]))).results
    return vector(result)


def _swap(server: RunningServer, bundle: Path, releases: Path, version: int) -> float:
    """Release it, and take the one before away once it is the default. Returns the seconds."""
    encoder = stub(server.target)

    def serves(*versions: int) -> bool:
        try:
            served = encoder.ListModels(pb.ListModelsRequest()).models
        except grpc.RpcError:
            return False
        return [info.version for info in served] == list(versions)

    began_s = time.monotonic()
    release(bundle, releases, version, MODEL)
    look(server)
    server.wait_until(f"version {version}", lambda: serves(version - 1, version), timeout_s=120)
    withdraw(releases, version - 1, MODEL)
    look(server)
    server.wait_until(f"the end of version {version - 1}", lambda: serves(version), timeout_s=120)
    return time.monotonic() - began_s
