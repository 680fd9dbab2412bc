"""The images of deploy/docker without an engine: built by tests/deploy/rehearse_image.sh, run by run_image.sh there."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from support.tools import REPOSITORY, missing, tool

SCRIPTS = REPOSITORY / "tests" / "deploy"
FOLDER = REPOSITORY / "build" / "deploy" / "image"
"""The base, the layers and pip's downloads, kept from run to run; git ignores it."""


@dataclass(frozen=True)
class Image:
    """A built image: what it says of itself, and its files, in a folder of their own that nobody else changes."""

    target: str
    root: Path
    built_s: float

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """User, Env, Entrypoint, Cmd, Healthcheck, Labels and so on, as engines name them."""
        inspected = json.loads((FOLDER / f"{self.target}.json").read_text(encoding="utf-8"))
        config: Mapping[str, Any] = inspected["Docker"]["config"]
        return config

    @property
    def user(self) -> str:
        """As UID:GID."""
        return str(self.config["User"])

    def command(self, command: Sequence[str], environment: Mapping[str, str]) -> list[str]:
        """`command` with the image's environment and no other; `environment` overrides it."""
        changes = [f"{name}={value}" for name, value in environment.items()]
        return ["/usr/bin/env", "-i", "--chdir", self.config["WorkingDir"], *self.config["Env"], *changes, *command]


@dataclass(frozen=True)
class Container:
    """A process that runs in an image, as the first of its namespaces."""

    image: Image
    process: subprocess.Popen[bytes]
    pid: int
    log_file: Path

    def execute(self, command: Sequence[str], timeout_s: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Run a command beside it, as `docker exec` does."""
        uid, gid = self.image.user.split(":")
        return subprocess.run(
            [
                *("nsenter", "--target", str(self.pid), "--mount", "--net", "--pid", "--ipc", "--uts", "--root"),
                *("setpriv", "--reuid", uid, "--regid", gid, "--clear-groups", "--no-new-privs"),
                *("--bounding-set", "-all", "--inh-caps", "-all", "--"),
                *self.image.command(command, {}),
            ],
            capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def is_healthy(self) -> bool:
        """Run the image's health check, once."""
        kind, *command = self.image.config["Healthcheck"]["Test"]
        assert kind == "CMD"
        return self.execute(command).returncode == 0

    def wait_healthy(self, timeout_s: float = 120.0) -> float:
        """Ask each second, as an engine would. Returns after how many seconds it was healthy."""
        begun_s = time.monotonic()
        while not self.is_healthy():
            assert self.process.poll() is None, f"it ended with {self.process.returncode}: {self.log}"
            assert time.monotonic() - begun_s < timeout_s, f"not healthy within {timeout_s} s"
            time.sleep(1)
        return time.monotonic() - begun_s

    def stop(self, timeout_s: float = 60.0) -> int:
        """Send the image's stop signal. Returns the exit code."""
        os.kill(self.pid, getattr(signal, self.image.config["StopSignal"]))
        return self.process.wait(timeout_s)

    @property
    def log(self) -> str:
        """All that it has written to stdout and stderr."""
        return self.log_file.read_text(encoding="utf-8")

    def status(self) -> Mapping[str, str]:
        """What the kernel says of the process: Uid, CapEff, NoNewPrivs and so on."""
        return _status(self.pid)


@contextmanager
def built(target: str, *arguments: str) -> Iterator[Image]:
    """Build a target with these build arguments (NAME=VALUE), or take it from the layers that are there."""
    if os.getuid() != 0:
        missing("the rehearsal of the image needs root: it makes a root folder and enters it")
    for program in ("buildah", "mmdebstrap", "unshare", "nsenter", "setpriv", "ip"):
        tool(program)
    begun_s = time.monotonic()
    done = subprocess.run(
        [SCRIPTS / "rehearse_image.sh", FOLDER, target, *arguments],
        capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-8000:]}"
    root = Path(done.stdout.strip().splitlines()[-1])
    try:
        yield Image(target, root, time.monotonic() - begun_s)
    finally:
        # Where layers lie over one another the root is a mount, and `rm -r build` would stumble over it.
        if root.is_mount():
            subprocess.run(["umount", root], check=True)
        # buildah mounts the folder of the layers over itself; while another image lies below it, that one's end has it.
        subprocess.run(["umount", FOLDER / "overlay" / "overlay"], capture_output=True, check=False)


@contextmanager
def running(
    image: Image,
    mounts: Sequence[str] = (),
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    beside: Container | None = None,
) -> Iterator[Container]:
    """Start what the image's entrypoint says, with a read-only root and without any capability.

    `mounts` are FOLDER:PLACE or FOLDER:PLACE:ro. `beside` is one whose network it shares.
    """
    command = image.command([*image.config["Entrypoint"], *arguments], environment or {})
    network = ["nsenter", "--target", str(beside.pid), "--net"] if beside else ["unshare", "--net"]
    log_file = FOLDER / f"{image.target}.log"
    with (
        log_file.open("wb") as log,
        subprocess.Popen(
            [
                *(*network, "unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"),
                *(str(SCRIPTS / "run_image.sh"), str(image.root), image.user, *mounts, "--", *command),
            ],
            stdout=log, stderr=log,
        ) as process,
    ):  # fmt: skip
        first = None
        try:
            first = _first_process(process, image.user, log_file)
            yield Container(image, process, first, log_file)
        finally:
            # The kernel forgets whom to end with its parent when a process becomes another user.
            if first is not None:
                with suppress(ProcessLookupError):
                    os.kill(first, signal.SIGKILL)
            process.kill()


def _first_process(process: subprocess.Popen[bytes], user: str, log_file: Path) -> int:
    """The child of `process`, once it has become the image's user."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    ends_s = time.monotonic() + 10
    while time.monotonic() < ends_s:
        assert process.poll() is None, f"it ended with {process.returncode}: {log_file.read_text(encoding='utf-8')}"
        for pid in map(int, children.read_text().split()):
            if _status(pid)["Uid"].split()[0] == user.split(":", maxsplit=1)[0]:
                return pid
        time.sleep(0.02)
    raise AssertionError("it did not start within 10 s")


def _status(pid: int) -> Mapping[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
