"""The Dockerfile, rehearsed: each instruction runs, and the images are used as an engine would run them."""

import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from harken_client import Client
from support.image import Image, built, running
from support.server import RunningServer
from support.tools import REPOSITORY, tool

DOCKERFILE = REPOSITORY / "deploy" / "docker" / "Dockerfile"
SENTENCE = "A man is eating food."

Found = Callable[[str, object], None]

# Whichever test comes first waits for the build, which downloads what the lock names, and PyTorch.
pytestmark = pytest.mark.timeout(1500)


def megabytes(folder: Path) -> int:
    return sum(os.lstat(Path(at) / name).st_size for at, _, names in os.walk(folder) for name in names) // 1_000_000


def lint(name: str, *arguments: str | Path) -> tuple[int, str]:
    """Exit code, and what a linter found."""
    done = subprocess.run([tool(name), *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="session")
def cpu() -> Iterator[Image]:
    """The target cpu with the real model in it. The first build takes minutes, the next ones seconds."""
    with built("cpu", "REVISION=rehearsal") as image:
        yield image


@pytest.fixture(scope="session")
def client() -> Iterator[Image]:
    """The target client: the command `harken`."""
    with built("client", "REVISION=rehearsal") as image:
        yield image


@pytest.fixture
def mountable(tiny_models: Path, tmp_path: Path) -> Path:
    """The tiny model, where other users may read it."""
    models = shutil.copytree(tiny_models, tmp_path / "models")
    models.chmod(0o755)
    return models


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    assert lint("hadolint", "--failure-threshold", "style", DOCKERFILE) == (0, "")


def test_shellcheck_finds_nothing_in_the_scripts_of_the_rehearsal() -> None:
    assert lint("shellcheck", *sorted((REPOSITORY / "tests" / "deploy").glob("*.sh"))) == (0, "")


def test_dockerfile_makefile_and_pyproject_name_the_same_versions() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    arguments = dict(re.findall(r"^ARG (\w+)=(.*)$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE))
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert arguments["VERSION"] == project["version"]
    assert arguments["TORCH"] in project["optional-dependencies"]["export-base"]
    assert f"WEIGHTS := {arguments['WEIGHTS']}\n" in makefile


def test_the_image_says_how_it_is_run(cpu: Image, record_property: Found) -> None:
    uid, gid = cpu.user.split(":")
    assert int(uid) > 0
    assert int(gid) > 0
    assert cpu.config["Entrypoint"] == ["harken-server"]
    assert cpu.config["ExposedPorts"].keys() == {f"{port}/tcp" for port in (8000, 8001, 8002, 8003)}
    assert cpu.config["StopSignal"] == "SIGTERM"
    assert cpu.config["Healthcheck"]["Test"][0] == "CMD"
    labels = cpu.config["Labels"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.revision"] == "rehearsal"
    record_property("found", f"user {cpu.user}, built in {cpu.built_s:.0f} s")


def test_neither_compiler_nor_torch_nor_cache_nor_index_is_in_the_image(cpu: Image, record_property: Found) -> None:
    programs = {
        name
        for folder in ("bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin", "opt/harken/bin")
        for name in os.listdir(cpu.root / folder)
    }
    assert programs & {"cc", "gcc", "c++", "g++", "clang", "ld", "as", "make", "rustc", "go"} == set()
    assert {"harken-server", "python"} <= programs
    assert programs & {"harken", "harken-export"} == set(), "their libraries are not in it"
    (packages,) = (cpu.root / "opt/harken/lib").glob("python3.*/site-packages")
    assert {"torch", "onnx", "pip"} & {path.name for path in packages.iterdir()} == set()
    for cache in ("root/.cache", "var/cache/pip"):
        assert not (cpu.root / cache).exists(), "of pip, or onnxruntime's identifier of the machine"
    # The place of a secret stays behind, empty.
    configuration = cpu.root / "etc/pip.conf"
    assert not configuration.exists() or configuration.read_bytes() == b""
    own, model = megabytes(cpu.root / "opt/harken"), megabytes(cpu.root / "models")
    record_property("found", f"over the base {own + model} MB: libraries and harken {own}, the model {model}")


def test_nothing_in_the_image_can_be_changed_by_its_user(cpu: Image) -> None:
    uid, gid = map(int, cpu.user.split(":"))
    changeable = []
    for folder in ("opt/harken", "models", "usr", "etc", "var/lib/harken"):
        for at, _, names in os.walk(cpu.root / folder):
            for path in (Path(at), *(Path(at) / name for name in names)):
                about = path.lstat()
                if not path.is_symlink() and (about.st_uid == uid or about.st_gid == gid or about.st_mode & 0o002):
                    changeable.append(path.relative_to(cpu.root).as_posix())
    assert changeable == ["var/lib/harken"]


def test_it_serves_with_a_read_only_root_and_no_capability_and_drains(
    cpu: Image, client: Image, minilm_server: RunningServer, tmp_path: Path, record_property: Found
) -> None:
    with Client(minilm_server.target) as here:
        expected = here.encode([SENTENCE])[0]
    tmp_path.chmod(0o777)
    with running(cpu, mounts=[f"{tmp_path}:/var/lib/harken"]) as container:
        assert not container.is_healthy(), "healthy before it can have loaded"
        ready_s = container.wait_healthy()
        status = container.status()
        assert status["Uid"].split() == [cpu.user.split(":")[0]] * 4
        assert (int(status["CapEff"], 16), int(status["CapBnd"], 16), status["NoNewPrivs"]) == (0, 0, "1")
        written = container.execute(["touch", "/opt/harken/x", "/models/x", "/etc/x"])
        assert written.stderr.count("Read-only file system") == 3
        missing_torch = container.execute(["python", "-c", "import torch"])
        assert "No module named 'torch'" in missing_torch.stderr
        arguments = ["encode", SENTENCE, "--server", "127.0.0.1:8001"]
        with running(client, arguments=arguments, beside=container) as command:
            assert command.process.wait(30) == 0, command.log
            there = json.loads(command.log)["vector"]
        assert list((tmp_path / "surfaces").glob("*.json")), "the measured costs are kept on the volume"
        assert container.stop() == 0
        assert '"event": "stopped"' in container.log.splitlines()[-1]
    # The bundle was exported in the build, and this one here: by other builds of PyTorch's, it may be.
    np.testing.assert_allclose(there, expected, atol=1e-5, rtol=0)
    record_property("found", f"healthy after {ready_s:.0f} s")


def test_a_bundle_that_is_mounted_takes_the_place_of_the_one_baked_in(cpu: Image, mountable: Path) -> None:
    program = "from harken_client import Client; print(*(one.name for one in Client('127.0.0.1:8001').models()))"
    with running(cpu, mounts=[f"{mountable}:/models:ro"]) as container:
        container.wait_healthy()
        assert container.execute(["python", "-c", program]).stdout.split() == ["tiny"]
    # It serves as well where nothing is mounted to write to.
    assert "the cost surface cannot be kept" in container.log
    mountable.chmod(0o700)
    with running(cpu, mounts=[f"{mountable}:/models:ro"]) as container:
        assert container.process.wait(30) == 2
    assert container.log.splitlines()[-1] == (
        "harken-server: error: /models: user 10001, who runs this server, may not read it"
    )


@pytest.mark.parametrize("bundle", ["own", "none"])
def test_the_bundle_in_it_may_be_ones_own_or_none(minilm_models: Path, bundle: str) -> None:
    with built(f"bundle-{bundle}") as stage:
        there = sorted(path.relative_to(stage.root) for path in (stage.root / "models").rglob("*") if path.is_file())
        here = sorted(path.relative_to(minilm_models.parent) for path in minilm_models.rglob("*") if path.is_file())
        assert there == (here if bundle == "own" else [])
        for path in there:
            about = (stage.root / path).stat()
            assert (about.st_uid, about.st_mode & 0o777) in ((0, 0o644), (0, 0o755))


def test_the_gpu_image_lacks_nothing_but_the_drivers_library(mountable: Path, record_property: Found) -> None:
    if os.environ.get("GPU_IMAGE") != "1":
        pytest.skip("it downloads 1.5 GB and takes minutes: GPU_IMAGE=1 asks for it")
    with built("gpu", "BUNDLE=none") as gpu:
        models = f"{mountable}:/models:ro"
        with running(gpu, mounts=[models]) as container:
            if container.process.wait(60) == 0:
                pytest.skip("here is a GPU, which the namespaces of this test do not hide")
        assert "libcuda.so.1: cannot open shared object file" in container.log
        assert container.log.splitlines()[-1].startswith("harken-server: error: CUDA: ")
        with running(gpu, mounts=[models], environment={"HARKEN_DEVICE": "cpu"}) as container:
            container.wait_healthy()
            assert container.stop() == 0
        record_property("found", f"over the base {megabytes(gpu.root / 'opt')} MB, built in {gpu.built_s:.0f} s")
