"""`python -m harken_server.health`, the health check of the image."""

import os
import subprocess
import sys

import pytest
from support.server import RunningServer


def health(*arguments: str, **environment: str) -> tuple[int, str]:
    """Exit code, and what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "harken_server.health", *arguments],
        env=os.environ | environment, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    return done.returncode, (done.stdout + done.stderr).strip()


def test_it_ends_with_0_only_if_the_server_takes_requests(tiny_server: RunningServer) -> None:
    port = str(tiny_server.health_port)
    assert health("--port", port) == (0, "SERVING")
    assert health("--port", port, "--liveness") == (0, "SERVING")
    # Where nobody listens.
    assert health("--port", "1") == (1, "UNAVAILABLE")
    # Where somebody does who is no harken, or not the listener for probes.
    assert health("--port", str(tiny_server.metrics_port))[0] == 1


def test_it_asks_where_the_servers_own_settings_say(tiny_server: RunningServer) -> None:
    port = str(tiny_server.health_port)
    for listen in ("0.0.0.0", "127.0.0.1", "localhost"):  # noqa: S104 - it is where a server listens
        assert health(HARKEN_HEALTH_PORT=port, HARKEN_LISTEN=listen) == (0, "SERVING")
    # A proxy is for what lies beyond this machine.
    assert health(HARKEN_HEALTH_PORT=port, http_proxy="http://127.0.0.1:1", no_proxy="") == (0, "SERVING")


@pytest.mark.parametrize("arguments", [["--port", "0"], ["--port", "x"], ["--port", "65536"], ["--ready"]])
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    code, said = health(*arguments)
    assert code == 2
    assert arguments[-1] in said
