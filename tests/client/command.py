"""The command `harken` as a process, as tests run it."""

import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-c", "from harken_client.cli import main; main()"]


def harken(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return finished([*COMMAND, *map(str, arguments)], stdin)


def finished(command: list[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)
