"""Bundles and the repository."""

import hashlib
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from harken.v1 import bundle_pb2
from harken_server.errors import AmbiguousModel, InvalidRequest, ModelNotFound
from harken_server.models.bundle import BundleError, Found, read_attention, read_bundle, signature
from harken_server.models.repository import Model, Repository, find_bundles, kept

SEEDS = Path(__file__).parents[1] / "fuzz" / "seeds" / "tokenizer"


def test_a_pooling_that_is_not_known_is_refused(tiny_models: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_models / "tiny", tmp_path / "tiny")
    manifest = tmp_path / "tiny" / "1" / "bundle.json"
    manifest.write_text(manifest.read_text().replace('"mean"', '"sum"'))
    with pytest.raises(BundleError, match="pooling 'sum' is none of mean, cls, max"):
        read_bundle(Found(tmp_path / "tiny" / "1", "tiny", 1))


def test_heads_that_do_not_divide_the_hidden_size_are_refused(tiny_models: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_models / "tiny", tmp_path / "tiny")
    manifest = tmp_path / "tiny" / "1" / "bundle.json"
    manifest.write_text(manifest.read_text().replace('"heads": 2', '"heads": 2147483647'))
    with pytest.raises(BundleError, match="hidden_size 32 is no multiple of heads 2147483647"):
        read_bundle(Found(tmp_path / "tiny" / "1", "tiny", 1))


def repository(*versions: tuple[str, int]) -> Repository:
    models = Repository()
    for name, version in versions:
        models.add(Model(bundle_pb2.Bundle(name=name, version=version), "0" * 64, None, "cpu"))
    return models


def test_the_default_version_is_the_highest() -> None:
    models = repository(("a", 2), ("a", 10), ("a", 9))
    assert models.find("", 0).key == ("a", 10)
    assert models.find("a", 9).key == ("a", 9)
    assert [model.key for model in models] == [("a", 2), ("a", 9), ("a", 10)]


def test_a_pinned_version_is_the_default_until_it_is_let_go_or_gone() -> None:
    models = repository(("a", 1), ("a", 2), ("a", 3))
    models.pin("a", 1)
    assert models.find("a", 0).key == ("a", 1)
    models.pin("a", 2)
    models.remove(("a", 2))
    assert models.find("a", 0).key == ("a", 3)
    models.pin("a", 1)
    models.pin("a", None)
    assert models.find("a", 0).key == ("a", 3)


@pytest.mark.parametrize(
    ("keep", "pinned", "expected"),
    [(0, None, {1, 2, 3}), (2, None, {2, 3}), (1, 1, {1, 3}), (1, 3, {3}), (9, 7, {1, 2, 3})],
)
def test_the_highest_versions_are_kept_and_the_pinned_one(keep: int, pinned: int | None, expected: set[int]) -> None:
    assert kept([2, 3, 1], keep, pinned) == expected


def test_what_is_not_there_is_told_with_what_is() -> None:
    models = repository(("a", 2), ("b", 1))
    with pytest.raises(ModelNotFound) as error:
        models.find("a", 3)
    assert (error.value.models, error.value.versions) == (("a", "b"), (2,))
    with pytest.raises(InvalidRequest) as ambiguous:
        models.find("", 0)
    assert ambiguous.value.problems == (AmbiguousModel("model", ("a", "b")),)


def test_only_folders_of_a_name_and_a_number_are_bundles(tmp_path: Path) -> None:
    for folder in ("b/2", "a/10", "a/9", ".a.tmp/1", "a/latest", "a/0", "a/08", "a/1234567890", "a/\u0663"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "c").write_text("")
    assert [(found.name, found.version) for found in find_bundles(tmp_path, "")] == [("a", 9), ("a", 10), ("b", 2)]


def test_a_link_out_of_the_bundle_is_refused(tiny_models: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "tiny" / "1"
    bundle.mkdir(parents=True)
    for file in (tiny_models / "tiny" / "1").iterdir():
        (bundle / file.name).write_bytes(file.read_bytes())
    assert read_bundle(Found(bundle, "tiny", 1)).manifest.name == "tiny"
    outside = tmp_path / "outside.onnx"
    (bundle / "model.onnx").rename(outside)
    (bundle / "model.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match="leads out of the bundle"):
        read_bundle(Found(bundle, "tiny", 1))


def test_the_attention_graph_is_read_anew_and_refused_if_it_or_its_weights_have_changed(
    tiny_models: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tiny" / "1"
    shutil.copytree(tiny_models / "tiny" / "1", folder)
    manifest = read_bundle(Found(folder, "tiny", 1)).manifest
    graph, weights = read_attention(folder, manifest)
    assert graph == (folder / "attention.onnx").read_bytes()
    assert weights == {"model.onnx": (folder / "model.onnx").read_bytes()}
    for name in ("attention.onnx", "model.onnx"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(BundleError, match=f"{name}: sha256 .* changed after the export"):
            read_attention(folder, manifest)
        with pytest.raises(BundleError, match=f"{name}: sha256"):
            read_bundle(Found(folder, "tiny", 1))
        (folder / name).unlink()
        (folder / name).symlink_to(tiny_models / "tiny" / "1" / name)
        with pytest.raises(BundleError, match="is a link that leads out of the bundle"):
            read_attention(folder, manifest)
        (folder / name).unlink()
        (folder / name).write_bytes(content)


def test_a_manifest_names_the_attention_graph_and_describes_it_or_neither(tiny_models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tiny" / "1"
    shutil.copytree(tiny_models / "tiny" / "1", folder)
    whole = json.loads((folder / "bundle.json").read_text())
    without_file = {**whole, "files": [file for file in whole["files"] if file["name"] != "attention.onnx"]}
    undescribed = {name: value for name, value in whole.items() if name != "attention"}
    for manifest in (without_file, undescribed):
        (folder / "bundle.json").write_text(json.dumps(manifest))
        with pytest.raises(BundleError, match=r"attention\.onnx is described, or among the files, but not both"):
            read_bundle(Found(folder, "tiny", 1))
    without_file.pop("attention")
    (folder / "bundle.json").write_text(json.dumps(without_file))
    assert not read_bundle(Found(folder, "tiny", 1)).manifest.HasField("attention")


def test_a_version_or_a_model_that_is_a_link_out_of_the_folder_is_refused(tiny_models: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    (models / "linked").mkdir(parents=True)
    (models / "linked" / "1").symlink_to(tiny_models / "tiny" / "1")
    (models / "tiny").symlink_to(tiny_models / "tiny")
    for name in ("linked", "tiny"):
        with pytest.raises(BundleError, match=f"{name}/1: is a link that leads out of {models}"):
            read_bundle(Found(models / name / "1", name, 1))
    # Within the folder, and the folder itself, as volumes of Kubernetes have it.
    (models / "tiny").unlink()
    shutil.copytree(tiny_models / "tiny", models / ".data" / "tiny")
    (models / "tiny").symlink_to(".data/tiny")
    (tmp_path / "mounted").symlink_to(models)
    assert read_bundle(Found(tmp_path / "mounted" / "tiny" / "1", "tiny", 1)).manifest.name == "tiny"


def test_a_bundle_that_no_digest_names_is_refused_before_it_is_read(tiny_models: Path) -> None:
    found = Found(tiny_models / "tiny" / "1", "tiny", 1)
    sha256 = hashlib.sha256((found.folder / "bundle.json").read_bytes()).hexdigest()
    assert read_bundle(found, {sha256, "0" * 64}).sha256 == sha256
    with pytest.raises(BundleError, match=f"has sha256:{sha256}, which bundle_digest does not name"):
        read_bundle(found, {"0" * 64})


def test_the_bytes_that_were_hashed_are_the_bytes_that_are_kept(tiny_models: Path) -> None:
    bundle = read_bundle(Found(tiny_models / "tiny" / "1", "tiny", 1))
    (model,) = [file for file in bundle.manifest.files if file.name == "model.onnx"]
    assert np.frombuffer(bundle.model, np.uint8).size == model.size_bytes
    assert bundle.tokenizer is None


def test_a_refused_bundle_is_another_once_its_files_were_written_replaced_or_given_to_others(
    tiny_models: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tiny" / "1"
    shutil.copytree(tiny_models / "tiny" / "1", folder)
    found, model = Found(folder, "tiny", 1), folder / "model.onnx"
    seen = [signature(found)]
    assert signature(found) == seen[0]
    for change in (
        lambda: model.chmod(0o600),
        lambda: model.write_bytes(model.read_bytes()),
        lambda: shutil.copy(model, folder / "copy"),
        lambda: (folder / "copy").replace(model),
    ):
        time.sleep(0.05)  # the clock of files moves by up to 10 ms at a time
        change()
        assert signature(found) not in seen
        seen.append(signature(found))
