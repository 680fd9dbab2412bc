"""Bundles, exported as a user would; and copies whose graph is another."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx


def export_bundle(*arguments: str) -> None:
    """Run `harken-export` with these arguments."""
    command = [sys.executable, "-c", "from harken_export.cli import main; main()", *arguments]
    subprocess.run(command, check=True, capture_output=True)


def write_changed(bundle: Path, models: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    """Write a changed copy of a bundle's folder into `models`, by the same name and version, hashes made anew.

    It takes token ids only, and has no attention graph.
    """
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest.pop("attention", None)
    model = onnx.load(str(bundle / "model.onnx"))
    change(model)
    content = model.SerializeToString()
    file = {"name": "model.onnx", "sha256": hashlib.sha256(content).hexdigest(), "size_bytes": str(len(content))}
    folder = models / str(manifest["name"]) / str(manifest["version"])
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(content)
    (folder / "bundle.json").write_text(json.dumps({**manifest, "files": [file]}))
