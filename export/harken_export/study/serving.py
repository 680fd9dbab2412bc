"""A real server in a process of its own, asked over gRPC."""

import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import IO

import grpc
import numpy as np
from harken.v1.encoder_pb2 import EncodeRequest, EncodeResponse, Input, TokenIds
from harken.v1.encoder_pb2_grpc import EncoderStub

COMMAND = (sys.executable, "-c", "from harken_server.app import main; main()")
STARTS_WITHIN_S = 180.0


class ServerEnded(Exception):
    """The server did not come up. The message is the end of its log."""


@contextmanager
def server(models_dir: Path, *options: str) -> Iterator[EncoderStub]:
    """Serve the bundles in `models_dir` until the block ends. Raises ServerEnded."""
    with TemporaryDirectory() as state_dir:
        ports = [f"--{edge}-port=0" for edge in ("grpc", "metrics", "health")]
        arguments = [
            *COMMAND,
            "--models",
            str(models_dir),
            "--device",
            "cpu",
            "--no-http",
            *ports,
            "--log-format",
            "json",
        ]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HARKEN_")}
        process = subprocess.Popen(  # noqa: S603 - this project's own command
            [*arguments, "--state-dir", state_dir, "--drain-delay-s", "0", *options],
            env=inherited,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        log = Log(process.stderr)
        try:
            with grpc.insecure_channel(f"127.0.0.1:{log.wait_for_port()}") as channel:
                yield EncoderStub(channel)
        finally:
            process.terminate()
            process.wait()
            log.close()


class Log:
    """What the server writes, read to its end by a thread of its own: a full pipe would stop the server."""

    def __init__(self, lines: IO[str]) -> None:
        self._lines = lines
        self._last: deque[str] = deque(maxlen=5)
        self._port: int | None = None
        self._settled = Event()
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for_port(self) -> int:
        """The gRPC port, once the server serves. Raises ServerEnded."""
        self._settled.wait(STARTS_WITHIN_S)
        if self._port is None:
            raise ServerEnded("".join(self._last))
        return self._port

    def close(self) -> None:
        """Once the server has ended."""
        self._reader.join()
        self._lines.close()

    def _read(self) -> None:
        for line in self._lines:
            self._last.append(line)
            if '"event": "serving"' in line:
                self._port = json.loads(line)["grpc_port"]
                self._settled.set()
        self._settled.set()


def ask(stub: EncoderStub, model: str, ids: np.ndarray[tuple[int], np.dtype[np.int64]]) -> tuple[float, EncodeResponse]:
    """Encode one sequence. Seconds from the call to the answer, and the answer."""
    request = EncodeRequest(model=model, inputs=[Input(token_ids=TokenIds(ids=ids.tolist()))])
    began_s = time.perf_counter()
    response = stub.Encode(request, timeout=120)
    return time.perf_counter() - began_s, response
