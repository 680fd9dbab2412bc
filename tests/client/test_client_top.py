"""`harken top` as a process, over real servers."""

import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue

from client.command import COMMAND, harken
from client.fake_server import free_port
from harken_client import Client
from support.calls import different
from support.server import RunningServer, running_server


@contextmanager
def load(server: RunningServer) -> Iterator[None]:
    """Calls without end, four sequences each."""
    stop = threading.Event()

    def call() -> None:
        with Client(server.target) as client:
            while not stop.is_set():
                client.encode(different(4, 20))

    caller = threading.Thread(target=call)
    caller.start()
    try:
        yield
    finally:
        stop.set()
        caller.join()


def row(frame: str, name: str, table: int) -> list[str]:
    """The cells of a server in one of the three tables."""
    return [line.split() for line in frame.splitlines() if line.startswith(name)][table]


def test_one_frame_shows_what_each_server_does(tiny_models: Path) -> None:
    with running_server(tiny_models) as busy, running_server(tiny_models) as idle, load(busy):
        names = [f"127.0.0.1:{server.metrics_port}" for server in (busy, idle)]
        finished = harken("top", "--once", "--interval", "1", *names)
        before = busy.total("harken_finished_total", outcome="answered")
    assert (finished.returncode, finished.stderr) == (0, "")
    frame = finished.stdout
    assert frame.startswith("harken top: 2 of 2 up, over the last 1 s\n")
    assert "\x1b" not in frame  # it is no terminal
    sequences, calls, refused, failed = map(float, row(frame, names[0], 0)[1:5])
    assert 0 < sequences <= before
    assert 0.8 * 4 * calls <= sequences <= 1.2 * 4 * calls + 8
    assert (refused, failed) == (0.0, 0.0)
    assert row(frame, names[0], 0)[6] == "ms"
    assert re.search(r" \d\.\dx20 +0 % ", next(line for line in frame.splitlines() if "x20" in line))
    assert row(frame, names[1], 0)[1:] == ["0.0", "0.0", "0.0", "0.0", "-", "-", "-"]
    assert row(frame, "together", 0)[1] == row(frame, names[0], 0)[1]
    assert row(frame, names[1], 2)[2] in ("MiB", "GiB")


def test_a_server_that_goes_is_down_and_comes_back(tiny_models: Path) -> None:
    port = free_port()
    name, options = f"127.0.0.1:{port}", ("--metrics-port", str(port))
    with subprocess.Popen(
        [*COMMAND, "top", "--interval", "0.2", name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines: SimpleQueue[str] = SimpleQueue()

        def read() -> None:
            for line in process.stdout or ():
                lines.put(line)

        threading.Thread(target=read, daemon=True).start()

        def wait_for(piece: str) -> None:
            try:
                while piece not in lines.get(timeout=60):
                    pass
            except Empty:
                raise AssertionError(f"{piece!r} was not shown") from None

        wait_for("down: Connection refused")
        for _ in range(2):
            with running_server(tiny_models, *options):
                wait_for("1 of 1 up")
            wait_for("0 of 1 up")
            wait_for("down: Connection refused")
        process.terminate()
        assert process.wait(30) != 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_server_that_is_down_is_told_by_the_exit_code(tiny_server: RunningServer) -> None:
    up, down = f"127.0.0.1:{tiny_server.metrics_port}", f"127.0.0.1:{free_port()}"
    finished = harken("top", "--once", "--interval", "0.1", up, down)
    assert finished.returncode == 1
    assert finished.stdout.startswith("harken top: 1 of 2 up")
    assert "together" not in finished.stdout
    # Something else listens there.
    finished = harken("top", "--once", "--interval", "0.1", f"127.0.0.1:{tiny_server.grpc_port}")
    assert finished.returncode == 1
    finished = harken("top", "--once", "--interval", "0.1", "--model", "nosuch", up)
    assert finished.returncode == 1
    assert "has no model nosuch" in finished.stdout
    # Named twice, it counts once.
    finished = harken("top", "--once", "--interval", "0.1", "--model", "tiny", up, f"http://{up}/metrics")
    assert (finished.returncode, finished.stdout[:22]) == (0, "harken top: 1 of 1 up,")
    assert "together" not in finished.stdout
    finished = harken("top", "--once", "ftp://somewhere")
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr == "harken: 'ftp://somewhere' is no http address, and no HOST or HOST:PORT\n"
