"""What an operator does in the folder of models, and what a server that runs makes of it."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import support.server
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harken.oip import inference_pb2 as oip_pb
from harken.v1 import encoder_pb2 as pb
from support.calls import ids, refused, stub
from support.inference import oip, typed_ids
from support.open_stream import OpenStream
from support.releases import look, pin, release, release_broken, withdraw
from support.server import RunningServer, failed_start, running_server

WATCHING = ("--watch-models-s", "0.05")


@pytest.fixture
def models(tiny_models: Path, tmp_path: Path) -> Path:
    """A folder of one's own with tiny/1."""
    release(tiny_models / "tiny" / "1", tmp_path, 1)
    return tmp_path


@pytest.fixture
def server(models: Path) -> Iterator[RunningServer]:
    """It looks into the folder all the time."""
    with running_server(models, *WATCHING) as running:
        yield running


def versions(server: RunningServer) -> dict[int, bool]:
    """Those that are served, and whether each is the default."""
    listed = stub(server.target).ListModels(pb.ListModelsRequest()).models
    return {info.version: info.is_default for info in listed if info.name == "tiny"}


def answered_by(server: RunningServer, version: int = 0) -> int:
    """The version that answers a call for `version`."""
    return stub(server.target).Encode(pb.EncodeRequest(inputs=ids([5]), model="tiny", version=version)).version


def health(server: RunningServer, name: str) -> str:
    """Of a model or a version."""
    with grpc.insecure_channel(server.target) as channel:
        service: Any = health_pb2_grpc.HealthStub(channel)
        status = service.Check(health_pb2.HealthCheckRequest(service=name)).status
    return health_pb2.HealthCheckResponse.ServingStatus.Name(status)


def changes(server: RunningServer, change: str) -> float:
    """How many there were so far."""
    return server.total("harken_model_changes_total", change=change)


def served_infos(server: RunningServer) -> list[str]:
    """The versions of harken_model_info."""
    return sorted(
        sample.split('version="')[1].split('"')[0]
        for sample in server.metrics()
        if sample.startswith("harken_model_info{")
    )


def refusals(server: RunningServer) -> list[str]:
    """What the log says was refused, and why."""
    return [line["why"] for line in server.log if line["event"] == "model not loaded"]


def health_known(server: RunningServer, name: str) -> bool:
    """Whether the server has heard of this model."""
    try:
        return health(server, name) == "SERVING"
    except grpc.RpcError:
        return False


def test_a_new_version_is_served_and_becomes_the_default_without_anybody_asking(
    server: RunningServer, tiny_models: Path, models: Path
) -> None:
    release(tiny_models / "tiny" / "1", models, 2)
    server.wait_until("version 2", lambda: versions(server) == {1: False, 2: True})
    assert (answered_by(server), answered_by(server, 1)) == (2, 1)
    server.wait_until("its health", lambda: health(server, "tiny/2") == "SERVING")
    assert (served_infos(server), changes(server, "loaded")) == (["1", "2"], 1)


def test_a_version_that_is_gone_from_the_folder_is_unloaded(
    server: RunningServer, tiny_models: Path, models: Path
) -> None:
    release(tiny_models / "tiny" / "1", models, 2)
    server.wait_until("version 2", lambda: 2 in versions(server))
    withdraw(models, 1)
    server.wait_until("the end of version 1", lambda: versions(server) == {2: True})
    with pytest.raises(grpc.RpcError) as error:
        answered_by(server, 1)
    assert refused(error.value).code == "NOT_FOUND"
    assert (health(server, "tiny"), health(server, "tiny/1")) == ("SERVING", "NOT_SERVING")
    assert (served_infos(server), changes(server, "unloaded")) == (["2"], 1)


def test_without_a_watch_the_folder_is_looked_at_when_a_signal_asks(tiny_models: Path, models: Path) -> None:
    with running_server(models) as server:
        release(tiny_models / "tiny" / "1", models, 2)
        look(server)
        server.wait_until("version 2", lambda: versions(server) == {1: False, 2: True})


def test_a_broken_bundle_is_refused_once_and_the_old_one_serves_on(
    server: RunningServer, tiny_models: Path, models: Path
) -> None:
    release_broken(tiny_models / "tiny" / "1", models, 2)
    server.wait_until("the refusal", lambda: changes(server, "refused") == 1)
    # Whoever takes the old one away counts on the new one, so the old one stays.
    withdraw(models, 1)
    release(tiny_models / "tiny" / "1", models, 1, name="other")
    server.wait_until("a later look", lambda: health_known(server, "other"))
    assert (versions(server), answered_by(server)) == ({1: True}, 1)
    shutil.rmtree(models / "tiny" / "2")
    release(tiny_models / "tiny" / "1", models, 2)
    server.wait_until("the mended one", lambda: versions(server) == {2: True})
    server.wait_until("the log", lambda: bool(refusals(server)))
    assert len(refusals(server)) == 1
    assert "tiny/2/model.onnx: sha256" in refusals(server)[0]
    assert changes(server, "refused") == 1


def test_a_folder_that_is_being_copied_is_not_looked_into(
    server: RunningServer, tiny_models: Path, models: Path
) -> None:
    copied = models / "tiny" / "2"
    copied.mkdir()
    shutil.copy(tiny_models / "tiny" / "1" / "model.onnx", copied)
    release(tiny_models / "tiny" / "1", models, 3)
    server.wait_until("a later look", lambda: 3 in versions(server))
    assert changes(server, "refused") == 0


def test_a_lost_folder_takes_no_model_along(server: RunningServer, models: Path) -> None:
    models.rename(models.with_name("elsewhere"))
    server.wait_until("the warning", lambda: bool(refusals(server)))
    assert (versions(server), answered_by(server)) == ({1: True}, 1)


def _fails(command: list[str]) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode != 0


@pytest.fixture
def closable(tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Such a folder in which a server cannot enter what is closed: as root it could, so it runs as another user."""
    if os.getuid() == 0:
        another = ["setpriv", "--reuid=65534", "--clear-groups", *support.server.COMMAND]
        if shutil.which("setpriv") is None or _fails([*another, "--help"]):
            pytest.skip("no other user can run a server here")
        monkeypatch.setattr(support.server, "COMMAND", another)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        for name in ("tiny", "zwei"):
            release(tiny_models / "tiny" / "1", Path(folder), 1, name)
        yield Path(folder)


def test_what_may_not_be_entered_is_told_and_stops_nothing_else(tiny_models: Path, closable: Path) -> None:
    with running_server(closable, *WATCHING, "--state-dir", os.devnull) as server:
        closed = closable / "tiny" / "2"
        closed.mkdir()
        closed.chmod(0)
        release(tiny_models / "tiny" / "1", closable, 3)
        server.wait_until("a later version", lambda: 3 in versions(server))
        server.wait_until("the refusal", lambda: f"{closed / 'bundle.json'}: Permission denied" in refusals(server))
        closed.rmdir()
        release(tiny_models / "tiny" / "1", closable, 2)
        server.wait_until("the version that was closed", lambda: 2 in versions(server))

        before = len(refusals(server))
        for mode in (0o000, 0o711, 0o744):
            (closable / "zwei").chmod(mode)
            server.wait_until("the refusal", lambda before=before: len(refusals(server)) > before)
            assert f"{closable / 'zwei'}: Permission denied" in refusals(server)[before:]
            assert health(server, "zwei") == "SERVING"
            (closable / "zwei").chmod(0o755)
            server.wait_until("its end", lambda: server.total("harken_refused_bundles", model="zwei") == 0)
            before = len(refusals(server))
        assert not [line for line in server.log if line.get("level") == "error"]


def test_a_pin_makes_an_older_version_the_default_and_a_higher_pin_takes_it_back(
    server: RunningServer, tiny_models: Path, models: Path
) -> None:
    release(tiny_models / "tiny" / "1", models, 2)
    server.wait_until("version 2", lambda: versions(server) == {1: False, 2: True})
    pin(models, "1\n")
    server.wait_until("the rollback", lambda: versions(server) == {1: True, 2: False})
    assert (answered_by(server), answered_by(server, 2)) == (1, 2)
    info = stub(server.target).GetModel(pb.GetModelRequest(model="tiny")).model
    assert (info.version, info.is_default) == (1, True)
    with oip(server) as service:
        assert service.ModelInfer(oip_pb.ModelInferRequest(inputs=[typed_ids([5])])).model_version == "1"
    # A release does not move what is pinned.
    release(tiny_models / "tiny" / "1", models, 3)
    server.wait_until("version 3", lambda: versions(server) == {1: True, 2: False, 3: False})
    pin(models, "2")
    server.wait_until("the next pin", lambda: versions(server) == {1: False, 2: True, 3: False})
    (models / "tiny" / "default").unlink()
    server.wait_until("the highest", lambda: versions(server) == {1: False, 2: False, 3: True})


@pytest.mark.parametrize(
    ("content", "why"), [("soon", "'soon' is no version"), ("", "'' is no version"), ("7", "pins version 7")]
)
def test_a_pin_that_cannot_hold_changes_nothing(
    server: RunningServer, tiny_models: Path, models: Path, content: str, why: str
) -> None:
    pin(models, content)
    server.wait_until("the refusal", lambda: changes(server, "refused") == 1)
    release(tiny_models / "tiny" / "1", models, 2)
    server.wait_until("version 2", lambda: versions(server) == {1: True, 2: False})
    server.wait_until("the log", lambda: bool(refusals(server)))
    assert why in refusals(server)[0]


def test_a_start_with_a_broken_version_serves_the_others_unless_it_is_pinned(tiny_models: Path, models: Path) -> None:
    release_broken(tiny_models / "tiny" / "1", models, 2)
    with running_server(models) as server:
        assert versions(server) == {1: True}
        server.wait_until("the refusal", lambda: changes(server, "refused") == 1)
        (why,) = refusals(server)
        assert "tiny/2/model.onnx: sha256" in why
        withdraw(models, 2)
        release(tiny_models / "tiny" / "1", models, 2)
        look(server)
        server.wait_until("version 2", lambda: versions(server) == {1: False, 2: True})
    withdraw(models, 2)
    release_broken(tiny_models / "tiny" / "1", models, 2)
    pin(models, "2")
    ports = ("--grpc-port", "0", "--metrics-port", "0", "--http-port", "0")
    code, line = failed_start(["--models", str(models), "--device", "cpu", *ports])
    assert (code, line.count("\n")) == (2, 0)
    assert "tiny/2/model.onnx: sha256" in line


@pytest.mark.parametrize(("content", "why"), [("2", "pins version 2, which cannot be served"), ("-1", "is no version")])
def test_a_start_with_a_pin_that_cannot_hold_is_refused_in_one_line(models: Path, content: str, why: str) -> None:
    pin(models, content)
    ports = ("--grpc-port", "0", "--metrics-port", "0", "--http-port", "0")
    code, line = failed_start(["--models", str(models), "--device", "cpu", *ports])
    assert (code, line.count("\n")) == (2, 0)
    assert "tiny/default: " in line
    assert why in line


def test_of_many_versions_the_highest_are_kept_and_the_pinned_one(tiny_models: Path, models: Path) -> None:
    bundle = tiny_models / "tiny" / "1"
    release(bundle, models, 2)
    release(bundle, models, 3)
    with running_server(models, *WATCHING, "--keep-versions", "1") as server:
        assert versions(server) == {3: True}
        release_broken(bundle, models, 4)
        server.wait_until("the refusal", lambda: changes(server, "refused") == 1)
        assert versions(server) == {3: True}
        pin(models, "1")
        server.wait_until("the pinned one beside it", lambda: versions(server) == {1: True, 3: False})
        (models / "tiny" / "default").unlink()
        release(bundle, models, 5)
        server.wait_until("the newest alone", lambda: versions(server) == {5: True})


def test_a_pin_holds_from_the_start(tiny_models: Path, models: Path) -> None:
    release(tiny_models / "tiny" / "1", models, 2)
    pin(models, "1")
    with running_server(models) as server:
        assert versions(server) == {1: True, 2: False}


def test_a_stream_that_named_a_version_keeps_it_until_it_ends(
    server: RunningServer, tiny_models: Path, models: Path
) -> None:
    with OpenStream(server, version=1) as stream:
        assert stream.answer(ids([5])[0]).HasField("embedding")
        release(tiny_models / "tiny" / "1", models, 2)
        withdraw(models, 1)
        server.wait_until("the end of version 1", lambda: versions(server) == {2: True})
        assert stream.answer(ids([6])[0]).HasField("embedding")
        with oip(server) as service:
            states = {one.version: one.state for one in service.RepositoryIndex(oip_pb.RepositoryIndexRequest()).models}
        assert states == {"1": "UNLOADING", "2": "READY"}

    def state_of_1() -> bool:
        with oip(server) as service:
            index = service.RepositoryIndex(oip_pb.RepositoryIndexRequest()).models
        return "1" in {one.version for one in index}

    server.wait_until("its memory back", lambda: not state_of_1())


def test_what_a_client_unloaded_stays_so_until_a_client_loads_it(tiny_models: Path, models: Path) -> None:
    with running_server(models, *WATCHING, "--model-control") as server, oip(server) as service:
        service.RepositoryModelUnload(oip_pb.RepositoryModelUnloadRequest(model_name="tiny"))
        release(tiny_models / "tiny" / "1", models, 1, name="other")
        server.wait_until("a later look", lambda: health_known(server, "other"))
        assert versions(server) == {}
        service.RepositoryModelLoad(oip_pb.RepositoryModelLoadRequest(model_name="tiny"))
        assert versions(server) == {1: True}


def test_sigterm_while_a_version_is_loaded_ends_with_zero(tiny_models: Path, models: Path) -> None:
    with running_server(models) as server:
        for version in range(2, 12):
            release(tiny_models / "tiny" / "1", models, version)
        look(server)
        server.wait_until("the first of them", lambda: len(versions(server)) > 1)
        server.terminate()
        assert server.wait_exit() == 0
        assert server.log[-1]["event"] == "stopped"
