"""What an operator does in the folder of models: releases a version, takes one back, pins one."""

import json
import os
import shutil
import signal
from pathlib import Path

from support.server import RunningServer


def release(bundle: Path, models: Path, version: int, name: str = "tiny") -> None:
    """Put a copy of `bundle` there as NAME/VERSION, whole or not at all."""
    staged = models / f".{name}.{version}"
    shutil.copytree(bundle, staged)
    manifest = json.loads((staged / "bundle.json").read_text())
    (staged / "bundle.json").write_text(json.dumps({**manifest, "name": name, "version": version}))
    (models / name).mkdir(exist_ok=True)
    staged.rename(models / name / str(version))


def release_broken(bundle: Path, models: Path, version: int, name: str = "tiny") -> None:
    """Put a copy there whose graph is not what its manifest says."""
    release(bundle, models, version, name)
    with (models / name / str(version) / "model.onnx").open("ab") as file:
        file.write(b"\0")


def withdraw(models: Path, version: int, name: str = "tiny") -> None:
    """Take a version away, whole at once."""
    gone = models / f".{name}.{version}.gone"
    (models / name / str(version)).rename(gone)
    shutil.rmtree(gone)


def pin(models: Path, content: str, name: str = "tiny") -> None:
    """Write the file that names the default, atomically."""
    staged = models / name / ".default"
    staged.write_text(content)
    os.replace(staged, models / name / "default")


def look(server: RunningServer) -> None:
    """Ask the server to follow the folder."""
    server.process.send_signal(signal.SIGHUP)
