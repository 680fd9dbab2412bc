"""A real server in a process of its own, on free ports, with its log lines and its metrics."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

BIN = Path(sys.executable).parent
"""Where the installed commands are."""

STATE = tempfile.TemporaryDirectory(prefix="harken-state-")
"""What one server measures, the next one of this run need not."""

COMMAND = [sys.executable, "-m", "harken_server"]


@dataclass
class RunningServer:
    """A started server. `log` grows while it runs."""

    process: subprocess.Popen[str]
    host: str = "127.0.0.1"
    grpc_port: int = 0
    http_port: int = 0
    metrics_port: int = 0
    health_port: int = 0
    log: list[dict[str, Any]] = field(default_factory=list)

    @property
    def target(self) -> str:
        """Where its gRPC services are."""
        return f"{self.host}:{self.grpc_port}"

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its name and labels as they stand there."""
        with urllib.request.urlopen(f"http://{self.host}:{self.metrics_port}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in samples}

    def total(self, name: str, **labels: str) -> float:
        """The sum over all samples of `name` that have these labels."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(
            value
            for sample, value in self.metrics().items()
            if sample.split("{")[0] == name and all(label in sample for label in wanted)
        )

    def wait_until(self, what: str, holds: Any, timeout_s: float = 90.0) -> None:
        """Until `holds()`; fails after `timeout_s`, naming `what` was awaited."""
        ends_s = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < ends_s, f"{what} did not come within {timeout_s} s"
            time.sleep(0.02)

    def terminate(self) -> None:
        """Ask it to drain."""
        self.process.send_signal(signal.SIGTERM)

    def wait_exit(self, timeout_s: float = 60.0) -> int:
        """Its exit code."""
        return self.process.wait(timeout_s)


@contextmanager
def running_server(
    models: Path, *options: str, environment: Mapping[str, str] | None = None, wait: bool = True
) -> Iterator[RunningServer]:
    """Start a server over `models` and wait until it serves (or, without `wait`, until it listens)."""
    arguments = [
        "--models",
        str(models),
        "--grpc-port",
        "0",
        "--metrics-port",
        "0",
        "--http-port",
        "0",
        "--device",
        "cpu",
    ]
    arguments += ["--log-format", "json", *([] if "--drain-delay-s" in options else ["--drain-delay-s", "0"]), *options]
    with _process(arguments, environment) as process:
        server = RunningServer(process)
        if "--listen" in options:
            server.host = options[options.index("--listen") + 1]
        lines: Queue[str] = Queue()
        assert process.stderr is not None
        reader = Thread(target=_pump, args=(process.stderr, lines, server.log), daemon=True)
        reader.start()
        ends_s = time.monotonic() + 120
        event = "serving" if wait else "listening"
        while True:
            try:
                line = lines.get(timeout=0.5)
            except Empty:
                assert process.poll() is None, f"the server ended with {process.returncode}: {server.log}"
                assert time.monotonic() < ends_s, f"no {event!r} within 120 s: {server.log}"
                continue
            if f'"event": "{event}"' in line:
                break
        ports = json.loads(line)
        server.grpc_port, server.metrics_port = ports["grpc_port"], ports["metrics_port"]
        server.http_port, server.health_port = ports["http_port"] or 0, ports["health_port"]
        yield server


def failed_start(
    arguments: Sequence[str], environment: Mapping[str, str] | None = None, timeout_s: float = 60.0
) -> tuple[int, str]:
    """Exit code and stderr (without log lines) of a server that is expected not to start."""
    with _process([*arguments, "--log-format", "json"], environment) as process:
        _, stderr = process.communicate(timeout=timeout_s)
        lines = [line for line in stderr.splitlines() if not line.startswith('{"')]
        return process.returncode, "\n".join(lines)


@contextmanager
def _process(arguments: Sequence[str], environment: Mapping[str, str] | None) -> Iterator[subprocess.Popen[str]]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HARKEN_")}
    inherited |= {"HARKEN_STATE_DIR": STATE.name, "HARKEN_HEALTH_PORT": "0"}
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        env={**inherited, **(environment or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stderr is not None and not process.stderr.closed:
            process.stderr.close()


def _pump(stream: Any, lines: "Queue[str]", log: list[dict[str, Any]]) -> None:
    try:
        for line in stream:
            try:
                log.append(json.loads(line))
            except ValueError:
                log.append({"event": line.rstrip()})
            lines.put(line)
    except ValueError:
        return  # closed with the process
