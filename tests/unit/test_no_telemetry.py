"""The runtime tells its maker nothing of what is served or exported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def left_behind(home: Path, module: str, **environment: str) -> list[str]:
    """The files in a fresh home once a process that imports `module` has ended."""
    home.mkdir()
    inherited = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    subprocess.run(
        [sys.executable, "-c", f"import {module}"], env=inherited | {"HOME": str(home)} | environment, check=True
    )
    return sorted(path.name for path in home.rglob("*") if path.is_file())


@pytest.mark.parametrize("module", ["harken_server.execution.engine", "harken_export.verify"])
def test_no_identifier_and_no_report_is_written(tmp_path: Path, module: str) -> None:
    # It stays silent on machines that it knows for CI's; so this one must be another for the test to mean something.
    if "deviceid" not in left_behind(tmp_path / "runtime", "onnxruntime"):
        pytest.skip("onnxruntime reports nothing here by itself")
    assert left_behind(tmp_path / "ours", module) == []
    assert "deviceid" in left_behind(tmp_path / "asked", module, ORT_DISABLE_TELEMETRY="0"), "whoever wants it may"
