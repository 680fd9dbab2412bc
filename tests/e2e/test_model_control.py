"""Models loaded and unloaded by clients, and what is served of which folder."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harken.oip import inference_pb2 as pb
from harken_client import Client
from support.calls import ids
from support.inference import (
    MODEL,
    infer,
    oip,
    refusal,
    refusal_of,
    typed_ids,
)
from support.open_stream import OpenStream
from support.server import RunningServer, running_server


def logged(server: RunningServer, event: str) -> list[dict[str, Any]]:
    """The lines of this event so far."""
    return [line for line in server.log if line["event"] == event]


def test_models_are_not_changed_by_clients_unless_the_operator_allows_it(minilm_server: RunningServer) -> None:
    with oip(minilm_server) as service:
        for method, request in (
            (service.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name=MODEL)),
            (service.RepositoryModelUnload, pb.RepositoryModelUnloadRequest(model_name=MODEL)),
        ):
            wrong = refusal_of(method, request)
            assert (wrong.code, wrong.reason) == ("UNIMPLEMENTED", "TURNED_OFF")
            assert "model_control" in wrong.message


def test_a_model_is_unloaded_and_loaded_while_others_serve(tiny_models: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(tiny_models / "tiny", tmp_path / name)
        manifest = tmp_path / name / "1" / "bundle.json"
        manifest.write_text(manifest.read_text().replace('"name": "tiny"', f'"name": "{name}"', 1))
    with running_server(tmp_path, "--model-control") as server, oip(server) as service:
        assert "model_repository" in service.ServerMetadata(pb.ServerMetadataRequest()).extensions
        two = pb.ModelInferRequest(model_name="two", inputs=[typed_ids([1, 2, 3])])
        before = infer(server, two)["sentence_embedding"]
        service.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="two"))
        assert refusal(server, two).code == "NOT_FOUND"
        assert not service.ModelReady(pb.ModelReadyRequest(name="two")).ready
        states = {one.name: one.state for one in service.RepositoryIndex(pb.RepositoryIndexRequest()).models}
        assert states == {"one": "READY", "two": "UNAVAILABLE"}
        ready = service.RepositoryIndex(pb.RepositoryIndexRequest(ready=True)).models
        assert [one.name for one in ready] == ["one"]
        health: Any = health_pb2_grpc.HealthStub(grpc.insecure_channel(server.target))
        assert health.Check(health_pb2.HealthCheckRequest(service="two")).status == 2
        assert infer(server, pb.ModelInferRequest(inputs=[typed_ids([1])]))  # the only one needs no name
        # KServe's own protocol has the name in the first field.
        service.RepositoryModelLoad(pb.RepositoryModelLoadRequest(repository_name="two"))
        np.testing.assert_array_equal(infer(server, two)["sentence_embedding"], before)
        assert health.Check(health_pb2.HealthCheckRequest(service="two")).status == 1
        for other in ("no", "../one", "one/1", f"{tmp_path}/one", "."):
            asked = pb.RepositoryModelLoadRequest(model_name=other)
            assert refusal_of(service.RepositoryModelLoad, asked).code == "NOT_FOUND"
        smuggled = pb.RepositoryModelLoadRequest(
            model_name="two", parameters={"file:1/model.onnx": pb.InferParameter(string_param="x")}
        )
        assert refusal_of(service.RepositoryModelLoad, smuggled).code == "INVALID_ARGUMENT"


def test_a_new_version_inherits_what_the_old_one_costs(tiny_models: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_models / "tiny", tmp_path / "tiny")
    with running_server(tmp_path, "--model-control") as server, oip(server) as service:
        shutil.copytree(tmp_path / "tiny" / "1", tmp_path / "tiny" / "2")
        manifest = tmp_path / "tiny" / "2" / "bundle.json"
        manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 2', 1))
        service.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="tiny"))
        # The log comes by another way than the answer, and may be later.
        server.wait_until("its log line", lambda: len(logged(server, "model ready")) == 2)
        ready = logged(server, "model ready")
        assert [(line["model"], line["costs"]) for line in ready[1:]] == [("tiny/2", "inherited")]
        assert ready[1]["warmup_s"] < ready[0]["warmup_s"] + 1
        request = pb.ModelInferRequest(inputs=[typed_ids([1, 2])])
        assert service.ModelInfer(request).model_version == "2"
        request.model_version = "1"
        assert service.ModelInfer(request).model_version == "1"
        assert list(service.ModelMetadata(pb.ModelMetadataRequest(name="tiny")).versions) == ["1", "2"]


def test_a_stream_that_named_a_version_gets_its_vectors_whatever_else_is_served(tiny_models: Path) -> None:
    with running_server(tiny_models, "--model-control") as server, oip(server) as service:
        with OpenStream(server, version=1) as stream:
            given = ids([5] * 100)[0]
            before = stream.answer(given)
            service.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="tiny"))
            after = stream.answer(given)
        assert (after.tokens, after.truncated, after.embedding) == (100, False, before.embedding)


def test_only_bundles_that_a_digest_names_are_served(tiny_models: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_models / "tiny", tmp_path / "tiny")
    manifest = tmp_path / "tiny" / "1" / "bundle.json"
    digest = "sha256:" + hashlib.sha256(manifest.read_bytes()).hexdigest()
    with running_server(tmp_path, "--model-control", "--bundle-digest", digest) as server, oip(server) as service:
        shutil.copytree(tmp_path / "tiny" / "1", tmp_path / "tiny" / "2")
        other = tmp_path / "tiny" / "2" / "bundle.json"
        other.write_text(other.read_text().replace('"version": 1', '"version": 2', 1))
        wrong = refusal_of(service.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name="tiny"))
        assert wrong.code == "FAILED_PRECONDITION"
        assert "which bundle_digest does not name" in wrong.message
        assert infer(server, pb.ModelInferRequest(inputs=[typed_ids([1])]))


def test_a_damaged_bundle_is_not_loaded_and_the_others_serve_on(tiny_models: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_models / "tiny", tmp_path / "tiny")
    with running_server(tmp_path, "--model-control") as server, oip(server) as service:
        shutil.copytree(tiny_models / "tiny" / "1", tmp_path / "tiny" / "2")
        wrong = refusal_of(service.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name="tiny"))
        assert (wrong.code, wrong.reason) == ("FAILED_PRECONDITION", "LOAD_FAILED")
        assert "is tiny/1, but lies in tiny/2" in wrong.message
        assert infer(server, pb.ModelInferRequest(inputs=[typed_ids([1])]))
        index = {one.version: one for one in service.RepositoryIndex(pb.RepositoryIndexRequest()).models}
        assert (index["1"].state, index["2"].state) == ("READY", "UNAVAILABLE")
        assert "but lies in" in index["2"].reason


def test_a_single_bundle_is_served_under_the_name_that_it_is_given(tiny_models: Path) -> None:
    alone = tiny_models / "tiny" / "1"
    with running_server(alone, "--model-name", "my-model") as server, oip(server) as service:
        assert service.ModelReady(pb.ModelReadyRequest(name="my-model", version="1")).ready
        with Client(server.target) as client:
            assert client.encode([[1, 2]], model="my-model", version=1)[0].shape == (32,)
    with running_server(alone) as server, oip(server) as service:
        assert service.ModelReady(pb.ModelReadyRequest(name="tiny", version="1")).ready


def test_a_folder_that_is_gone_is_said(tiny_models: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_models / "tiny", tmp_path / "models" / "tiny")
    with running_server(tmp_path / "models", "--model-control") as server, oip(server) as service:
        (tmp_path / "models").rename(tmp_path / "elsewhere")
        wrong = refusal_of(service.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name="tiny"))
        assert (wrong.code, wrong.reason) == ("FAILED_PRECONDITION", "LOAD_FAILED")
        assert [one.state for one in service.RepositoryIndex(pb.RepositoryIndexRequest()).models] == ["READY"]
        assert infer(server, pb.ModelInferRequest(inputs=[typed_ids([1])]))
