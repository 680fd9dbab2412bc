"""Fixtures that more than one folder of tests uses: real bundles, and a real server over each."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from support.bundles import export_bundle
from support.server import RunningServer, running_server

REPOSITORY = Path(__file__).resolve().parents[1]


# How long an example takes is the machine's affair.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def minilm_models() -> Path:
    """The folder of the real model, exported once for all runs, as `make demo` does."""
    models = REPOSITORY / "models"
    export_bundle("minilm", "--models", str(models), "--if-missing")
    return models


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model so small that the engine takes no time: 2 layers, 2 heads, hidden 32, 1000 ids, 128 long."""
    models = tmp_path_factory.mktemp("models")
    export_bundle(
        "random", "--models", str(models), "--name", "tiny",
        "--layers", "2", "--heads", "2", "--hidden", "32", "--vocab", "1000", "--max-length", "128",
    )  # fmt: skip
    return models


@pytest.fixture(scope="session")
def minilm_server(minilm_models: Path) -> Iterator[RunningServer]:
    """One server over the real model for all tests that leave it as it was."""
    with running_server(minilm_models) as server:
        yield server


@pytest.fixture(scope="session")
def tiny_server(tiny_models: Path) -> Iterator[RunningServer]:
    """One server over the tiny model for all tests that leave it as it was."""
    with running_server(tiny_models) as server:
        yield server
