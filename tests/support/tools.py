"""Other people's programs that the checks of deploy/ run: where they are, and what becomes of a test without them."""

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TOOLS = REPOSITORY / "build" / "deploy" / "bin"
"""Where tests/deploy/setup.sh puts the tools from PyPI."""


def tool(name: str) -> str:
    """Path of a program, of `TOOLS` or of PATH. Without it the test is `missing` it."""
    path = shutil.which(name, path=f"{TOOLS}:{os.environ['PATH']}:/usr/sbin:/sbin")
    if path is None:
        missing(f"{name} is not installed: tests/deploy/setup.sh installs it, as root on Debian")
    return path


def missing(why: str) -> NoReturn:
    """End this test as skipped, or as failed with STRICT=1 in the environment."""
    if os.environ.get("STRICT") == "1":
        pytest.fail(f"STRICT=1, and {why}", pytrace=False)
    pytest.skip(why)
