"""SIGTERM in each state of a server, under load: no accepted call fails, and the exit code is 0."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
from harken.v1 import encoder_pb2 as pb
from harken_client import Client
from support.calls import ids, stub
from support.releases import look, release
from support.server import RunningServer, running_server
from support.web import call


@contextmanager
def callers(server: RunningServer) -> Iterator[Counter[str]]:
    """Calls over and over, until the port is closed; how each of them ended."""
    ends: Counter[str] = Counter()
    stop = threading.Event()

    def ask(seed: int) -> None:
        encoder = stub(server.target)
        while not stop.is_set():
            try:
                encoder.Encode(pb.EncodeRequest(inputs=ids([5 + seed] * (1 + seed * 9))), timeout=30)
                ends["OK"] += 1
            except grpc.RpcError as error:
                ends[error.code().name] += 1
                time.sleep(0.01)

    with ThreadPoolExecutor(8) as pool:
        for seed in range(8):
            pool.submit(ask, seed)
        try:
            yield ends
        finally:
            stop.set()


def logged(server: RunningServer, event: str) -> bool:
    return any(line["event"] == event for line in server.log)


def test_while_it_starts_and_while_it_warms_up(minilm_models: Path, tmp_path: Path) -> None:
    for event in ("listening", "warming up"):
        # Costs that are not known take seconds to measure.
        state = tmp_path / event
        with running_server(minilm_models, "--state-dir", str(state), wait=False) as server, callers(server) as ends:
            server.wait_until(event, lambda event=event, server=server: logged(server, event))
            server.wait_until("calls", lambda ends=ends: ends.total() > 20)
            server.terminate()
            assert server.wait_exit() == 0
        assert set(ends) == {"UNAVAILABLE"}
        assert not logged(server, "serving")


def test_while_a_version_is_loaded(minilm_models: Path, tmp_path: Path) -> None:
    name = "all-MiniLM-L6-v2"
    release(minilm_models / name / "1", tmp_path, 1, name)
    with running_server(tmp_path, "--warmup-s", "1", "--drain-delay-s", "0.5") as server, callers(server) as ends:
        server.wait_until("calls", lambda: ends["OK"] > 50)
        release(minilm_models / name / "1", tmp_path, 2, name)
        look(server)
        server.wait_until("the load", lambda: sum(line["event"] == "warming up" for line in server.log) == 2)
        server.terminate()
        assert server.wait_exit() == 0
    assert set(ends) == {"OK", "UNAVAILABLE"}


def test_within_the_delay_nobody_is_refused(tiny_models: Path) -> None:
    with running_server(tiny_models, "--drain-delay-s", "3") as server, callers(server) as ends:
        server.wait_until("calls", lambda: ends["OK"] > 50)
        server.terminate()
        server.wait_until("the drain", lambda: logged(server, "draining"))
        before = ends["OK"]
        for path in ("/readyz", "/v2/health/ready", "/health"):
            assert call(server, "GET", path).status == 503
        time.sleep(1.5)
        assert set(ends) == {"OK"}
        assert ends["OK"] > before
        assert server.wait_exit() == 0
    assert set(ends) == {"OK", "UNAVAILABLE"}


def test_a_second_signal_ends_it_at_once_and_a_client_goes_on_at_the_next_server(tiny_models: Path) -> None:
    with running_server(tiny_models, "--drain-delay-s", "60") as server:
        target, port = server.target, str(server.grpc_port)
        with Client(target, timeout_s=60) as client:
            results = client.encode_stream([[number % 900] for number in range(500)])
            answered = [next(results).index for _ in range(10)]
            server.terminate()
            server.wait_until("the drain", lambda: logged(server, "draining"))
            server.terminate()
            assert server.wait_exit(10) == 1
            with running_server(tiny_models, "--grpc-port", port):
                answered += [result.index for result in results]
    assert sorted(answered) == list(range(500))
