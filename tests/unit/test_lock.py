"""deploy/*.lock: what is installed is what was tried, and each file of it is known by its hash."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
ENTRY = re.compile(r"^([a-z0-9._-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE)


def entries_of(lock: str) -> dict[str, str]:
    """Versions by name; every package has its hashes."""
    text = (DEPLOY / lock).read_text()
    entries = {name: locked for name, locked, _ in ENTRY.findall(text)}
    assert len(entries) == len(re.findall("==", text))
    return entries


def tried() -> dict[str, str]:
    """Versions by name, of deploy/constraints.txt."""
    pinned = re.findall(r"^([\w.-]+)==(\S+)$", (DEPLOY / "constraints.txt").read_text(), re.MULTILINE)
    return {name.lower().replace("_", "-"): version for name, version in pinned}


def test_every_package_is_locked_by_hash_at_the_version_that_was_tried() -> None:
    entries, constraints = entries_of("server.lock"), tried()
    assert {name: constraints.get(name) for name in entries} == entries
    assert {name: version(name) for name in entries} == entries
    assert {"onnxruntime", "grpcio", "protobuf", "numpy", "tokenizers", "uvicorn"} <= entries.keys()
    assert "torch" not in entries


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("server.lock", ("server-base", "server", "tracing")),
        ("server-gpu.lock", ("server-base", "server-gpu", "tracing")),
        ("client.lock", ("client", "cli")),
    ],
)
def test_every_requirement_is_locked_and_no_lock_says_other_than_the_constraints(
    lock: str, extras: tuple[str, ...]
) -> None:
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]
    required = [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]
    names = {re.split(r"[\[<>=]", one)[0].lower() for one in required if not one.startswith("harken[")}
    entries, constraints = entries_of(lock), tried()
    assert names - entries.keys() == set()
    assert {name: constraints.get(name, version) for name, version in entries.items()} == entries


def test_a_gpu_server_is_a_cpu_server_with_another_runtime() -> None:
    cpu, gpu = entries_of("server.lock"), entries_of("server-gpu.lock")
    assert cpu.pop("onnxruntime") == gpu.pop("onnxruntime-gpu")
    assert {name: version for name, version in gpu.items() if not name.startswith("nvidia-")} == cpu
