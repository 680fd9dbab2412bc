"""The unmodified clients of others, each in an environment that `make contract` has set up."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import numpy.typing as npt
from harken_client import Client

from support.server import RunningServer

CLIENTS = Path(__file__).parents[1] / "contract" / "clients"
BUILD = Path(__file__).resolve().parents[2] / "build" / "contract"

ROWS = [[101, 7592, 102], [101, *range(2000, 2040), 102], [101, 7592, 2088, 2003, 102], [101, *range(3000, 3300), 102]]
TEXTS = ["hello", "a longer sentence than the other one", "zażółć gęślą jaźń"]


def run_client(environment: str, script: str, *arguments: str, rows: Sequence[Sequence[int]] = ROWS) -> Any:
    """What the script of `clients/` prints, run by the Python of its environment."""
    python = BUILD / environment / "bin" / "python"
    assert python.exists(), f"{python} is missing: run make contract"
    done = subprocess.run(
        [python, CLIENTS / script, *arguments],
        input=json.dumps({"rows": rows, "texts": TEXTS}), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def close(got: Any, expected: Sequence[npt.NDArray[np.float32]]) -> None:
    """Within the published bound."""
    np.testing.assert_allclose(np.array(got), np.stack(expected), rtol=0, atol=1e-5)


def equal(got: Any, expected: Sequence[npt.NDArray[np.float32]]) -> None:
    """To the bit."""
    np.testing.assert_array_equal(np.array(got, np.float32), np.stack(expected))


@contextmanager
def load(server: RunningServer) -> Iterator[None]:
    """Others, with sequences of all lengths, all the while."""
    over = Event()

    def go(seed: int) -> None:
        lengths = np.random.default_rng(seed)
        with Client(server.target) as client:
            while not over.is_set():
                client.encode([[1] * int(length) for length in lengths.integers(1, 200, 4)])

    threads = [Thread(target=go, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
