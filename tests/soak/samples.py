"""What is looked at from outside while a server works, and when it rests."""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.server import RunningServer

INTERVAL_S = 2.0
_SETTLED_S = 2.5
"""A server that has nothing to do gives its unused memory back after one second."""
_SETTLES_WITHIN_S = 30.0


@dataclass(frozen=True)
class Sample:
    """The process at a moment from the start.

    probe_s    how long grpc.health.v1 took to answer: the event loop, and whoever had the cores
    descriptors  without those of connections that are open at both ends
    versions   of the model, as harken_model_info tells
    """

    at_s: float
    rss_bytes: int
    descriptors: int
    threads: int
    series: int
    versions: tuple[int, ...]
    probe_s: float


@dataclass
class Sampler:
    """Looks every INTERVAL_S, from a thread of its own, until it is stopped."""

    server: RunningServer
    started_s: float = field(default_factory=time.monotonic)
    busy: list[Sample] = field(default_factory=list)
    resting: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._process = psutil.Process(self.server.process.pid)
        self._channel = grpc.insecure_channel(f"127.0.0.1:{self.server.health_port}")
        # The stubs know no methods of this stub.
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)
        self._works, self._stopped = threading.Event(), threading.Event()
        self._looking = threading.Lock()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def works(self, works: bool) -> None:
        """Whether the server has work, and is looked at all the time."""
        (self._works.set if works else self._works.clear)()

    def rest(self) -> Sample:
        """One look once nothing changes any more. Blocks until then."""
        with self._looking:
            ends_s = time.monotonic() + _SETTLES_WITHIN_S
            time.sleep(_SETTLED_S)
            before = self._look()
            while True:
                time.sleep(_SETTLED_S / 2)
                now = self._look()
                still = (before.descriptors, before.threads) == (now.descriptors, now.threads)
                if (still and abs(before.rss_bytes - now.rss_bytes) < 1 << 20) or time.monotonic() > ends_s:
                    self.resting.append(now)
                    return now
                before = now

    def stop(self) -> None:
        """The end."""
        self._stopped.set()
        self._works.set()
        self._thread.join()
        self._channel.close()

    def _run(self) -> None:
        while self._works.wait() and not self._stopped.is_set():
            with self._looking:
                self.busy.append(self._look())
            self._stopped.wait(INTERVAL_S)

    def _look(self) -> Sample:
        with self._process.oneshot():
            rss_bytes, threads = self._process.memory_info().rss, self._process.num_threads()
        # A connection that is open at both ends is its client's to close; one whose client is gone counts.
        connections = self._process.net_connections("tcp")
        held = sum(connection.status == psutil.CONN_ESTABLISHED for connection in connections)
        descriptors = self._process.num_fds() - held
        asked_s = time.perf_counter()
        request = health_pb2.HealthCheckRequest(service="liveness")
        self._health.Check(request, timeout=60, wait_for_ready=True)
        probe_s = time.perf_counter() - asked_s
        names = [name for name, value in self.server.metrics().items() if value or "model_info" not in name]
        versions = sorted(
            int(name.split('version="')[1].split('"')[0]) for name in names if "harken_model_info" in name
        )
        at_s = time.monotonic() - self.started_s
        return Sample(at_s, rss_bytes, descriptors, threads, len(names), tuple(versions), probe_s)


def totals(server: RunningServer, name: str, label: str) -> Counter[str]:
    """A counter of the server by one of its labels."""
    counted: Counter[str] = Counter()
    for sample, value in server.metrics().items():
        if sample.split("{")[0] == name:
            counted[sample.split(f'{label}="')[1].split('"')[0]] += int(value)
    return counted
