"""Bundles, exported as a user would."""

import subprocess
import sys


def export_bundle(*arguments: str) -> None:
    """Run `harken-export` with these arguments."""
    command = [sys.executable, "-c", "from harken_export.cli import main; main()", *arguments]
    subprocess.run(command, check=True, capture_output=True)
