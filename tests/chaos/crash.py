"""The process is killed under load, again and again, and started anew: callers get through."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

import numpy as np
from harken_client import Client, HarkenError
from support.server import RunningServer, running_server

CALLERS = 8


@dataclass
class Crashes:
    """What callers saw of it, each with a deadline of a minute."""

    answered: int = 0
    failed: list[str] = field(default_factory=list)
    wrong: int = 0
    ready_s: list[float] = field(default_factory=list)
    """From each kill until the next process served."""


def crashes(models: Path, state: Path, times: int, between_s: float) -> Crashes:
    """Kill a server `times` times while callers ask it; a new one on the same port takes its place each time."""
    seen, done = Crashes(), Event()
    with ExitStack() as servers:
        start = _starter(servers, models, state)
        server = start(0)
        # A restart takes longer than attempts that follow one another.
        with Client(server.target, wait_for_ready=True) as client:
            expected = client.encode([[5, 6, 7, 8]])

            def ask() -> None:
                while not done.is_set():
                    try:
                        vectors = client.encode([[5, 6, 7, 8]], timeout_s=60)
                    except HarkenError as error:
                        seen.failed.append(str(error))
                    else:
                        seen.answered += 1
                        seen.wrong += bool(np.abs(vectors - expected).max() > 1e-5)

            callers = [Thread(target=ask) for _ in range(CALLERS)]
            for caller in callers:
                caller.start()
            for _ in range(times):
                time.sleep(between_s)
                killed_s = time.monotonic()
                server.process.kill()
                server.process.wait()
                server = start(server.grpc_port)
                seen.ready_s.append(time.monotonic() - killed_s)
            time.sleep(between_s)
            done.set()
            for caller in callers:
                caller.join()
    return seen


def _starter(servers: ExitStack, models: Path, state: Path) -> Callable[[int], RunningServer]:
    def start(port: int) -> RunningServer:
        options = ("--grpc-port", str(port), "--state-dir", str(state))
        return servers.enter_context(running_server(models, *options))

    return start
