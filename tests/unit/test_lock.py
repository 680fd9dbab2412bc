"""deploy/server.lock: what a server installs is what was tried, and each file of it is known by its hash."""

import re
from importlib.metadata import version
from pathlib import Path

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
ENTRY = re.compile(r"^([a-z0-9._-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE)


def test_every_package_is_locked_by_hash_at_the_version_that_was_tried() -> None:
    text = (DEPLOY / "server.lock").read_text()
    entries = {name: locked for name, locked, _ in ENTRY.findall(text)}
    assert len(entries) == len(re.findall("==", text))
    tried = re.findall(r"^([\w.-]+)==(\S+)$", (DEPLOY / "constraints.txt").read_text(), re.MULTILINE)
    constraints = {name.lower().replace("_", "-"): pinned for name, pinned in tried}
    assert {name: constraints.get(name) for name in entries} == entries
    assert {name: version(name) for name in entries} == entries
    assert {"onnxruntime", "grpcio", "protobuf", "numpy", "tokenizers", "uvicorn"} <= entries.keys()
    assert "torch" not in entries
