"""Skips this folder, with a reason, where no GPU can be used."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from harken_server.execution.engine import DeviceOptions, DeviceUnavailable, Engine, cuda_is_built_in
from support.bundles import export_bundle
from support.server import RunningServer, running_server


@pytest.fixture(scope="session")
def gpu(tiny_models: Path) -> None:
    if not cuda_is_built_in():
        pytest.skip("onnxruntime is built without CUDA; install harken[server-gpu] where a GPU is")
    try:
        Engine((tiny_models / "tiny" / "1" / "model.onnx").read_bytes(), DeviceOptions("cuda"))
    except DeviceUnavailable as error:
        pytest.skip(f"no usable GPU: {error}")


@pytest.fixture(scope="session")
def gpu_models(gpu: None, minilm_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real model in fp32 and in fp16."""
    models = tmp_path_factory.mktemp("gpu-models")
    shutil.copytree(minilm_models / "all-MiniLM-L6-v2", models / "all-MiniLM-L6-v2")
    export_bundle("minilm", "--models", str(models), "--precision", "fp16")
    return models


@pytest.fixture(scope="session")
def gpu_server(gpu_models: Path) -> Iterator[RunningServer]:
    with running_server(gpu_models, "--device", "cuda") as server:
        yield server
