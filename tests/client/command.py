"""The command `harken` as a process, as tests run it."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

COMMAND = [sys.executable, "-c", "from harken_client.cli import main; main()"]


def harken(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return finished([*COMMAND, *map(str, arguments)], stdin)


def finished(
    command: list[str], stdin: str = "", environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`environment`: what it holds beside this process's own."""
    return subprocess.run(
        command,
        input=stdin,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
