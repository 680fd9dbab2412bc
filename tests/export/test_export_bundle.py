"""A bundle is there whole or not at all."""

import errno
import os
import stat
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from google.protobuf import json_format
from harken.v1.bundle_pb2 import Bundle, BundleFile
from harken_export import bundle
from harken_export.bundle import bundle_folder, describe_files, staged, write_manifest
from harken_export.errors import BundleExists, InvalidBundleName


def tree(folder: Path) -> dict[str, str]:
    """Every file below, by its path."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def put(target: Path, content: str, *, force: bool = False) -> None:
    with staged(target, force=force) as folder:
        (folder / "model.onnx").write_text(content)


def failing(function: Callable[..., None], on_call: int) -> Callable[..., None]:
    calls = 0

    def wrapped(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == on_call:
            raise OSError(errno.EIO, "the disk is gone")
        function(*arguments)

    return wrapped


def test_a_bundle_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "models" / "name" / "1"
    with staged(target, force=False) as folder:
        (folder / "model.onnx").write_text("graph")
        assert not target.parent.exists()
        assert folder.parent == tmp_path / "models"
        assert folder.name.startswith(".name.tmp-")
    assert tree(tmp_path / "models") == {"name/1/model.onnx": "graph"}


def test_every_reader_may_read_it(tmp_path: Path) -> None:
    put(tmp_path / "name" / "1", "graph")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "name").rglob("*")}
    assert modes == {"1": 0o755, "model.onnx": 0o644}


def test_a_failure_in_the_block_leaves_nothing(tmp_path: Path) -> None:
    def half() -> None:
        with staged(tmp_path / "name" / "1", force=False) as folder:
            (folder / "model.onnx").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("step", "on_call"), [("fsync", 1), ("fsync", 2), ("rename", 1)])
def test_a_failure_of_the_disk_leaves_no_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, on_call: int
) -> None:
    monkeypatch.setattr(os, step, failing(getattr(os, step), on_call))
    with pytest.raises(OSError, match="the disk is gone"):
        put(tmp_path / "name" / "1", "graph")
    assert tree(tmp_path) == {}


def test_an_existing_bundle_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "name" / "1"
    put(target, "old")
    with pytest.raises(BundleExists) as refusal:
        put(target, "new")
    assert str(refusal.value) == f"{target} exists already: use --force to replace it, or another --version"
    assert tree(tmp_path) == {"name/1/model.onnx": "old"}


def test_force_replaces_an_existing_bundle_and_touches_no_other(tmp_path: Path) -> None:
    put(tmp_path / "name" / "1", "old")
    put(tmp_path / "name" / "2", "second")
    put(tmp_path / "name" / "1", "new", force=True)
    assert tree(tmp_path) == {"name/1/model.onnx": "new", "name/2/model.onnx": "second"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["name"]


def test_a_swap_that_fails_keeps_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "name" / "1"
    put(target, "old")
    # 1: refused, the place is taken; 2: the old one aside; 3: the new one in.
    monkeypatch.setattr(os, "rename", failing(os.rename, on_call=3))
    with pytest.raises(OSError, match="the disk is gone"):
        put(target, "new", force=True)
    assert tree(tmp_path) == {"name/1/model.onnx": "old"}


def test_of_two_exports_at_once_one_wins(tmp_path: Path) -> None:
    target = tmp_path / "name" / "1"

    def slow() -> None:
        with staged(target, force=False) as folder:
            (folder / "model.onnx").write_text("slow")
            put(target, "fast")

    with pytest.raises(BundleExists):
        slow()
    assert tree(tmp_path) == {"name/1/model.onnx": "fast"}


def test_of_two_forced_exports_at_once_the_last_wins(tmp_path: Path) -> None:
    target = tmp_path / "name" / "1"
    put(target, "old")
    with staged(target, force=True) as folder:
        (folder / "model.onnx").write_text("slow")
        put(target, "fast", force=True)
    assert tree(tmp_path) == {"name/1/model.onnx": "slow"}


@pytest.mark.parametrize("name", ["", ".hidden", "-x", "a/b", "..", "a b", "ä", "x" * 129, "a\n"])
def test_a_name_that_no_folder_should_have_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidBundleName, match="must be 1 to 128 letters"):
        bundle_folder(tmp_path, name, 1)


@pytest.mark.parametrize("version", [0, -1, 2**32])
def test_a_version_that_is_no_uint32_is_refused(tmp_path: Path, version: int) -> None:
    with pytest.raises(InvalidBundleName, match=f"the version {version} must be from 1 to 4294967295"):
        bundle_folder(tmp_path, "name", version)


def test_other_names_and_versions_are_folders(tmp_path: Path) -> None:
    assert bundle_folder(tmp_path, "all-MiniLM_L6.v2", 2**32 - 1) == tmp_path / "all-MiniLM_L6.v2" / "4294967295"
    assert bundle_folder(tmp_path, "x" * 128, 1) == tmp_path / ("x" * 128) / "1"


def test_files_are_described_by_hash_and_size(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    (tmp_path / "model.onnx").write_bytes(b"graph")
    assert describe_files(tmp_path) == [
        BundleFile(name="model.onnx", sha256=sha256(b"graph").hexdigest(), size_bytes=5),
        BundleFile(name="tokenizer.json", sha256=sha256(b"{}").hexdigest(), size_bytes=2),
    ]


def test_the_manifest_is_sorted_json_that_reads_back(tmp_path: Path) -> None:
    manifest = Bundle(format=1, name="näme", made_with={"torch": "2", "onnx": "1"}, hidden_size=3)
    write_manifest(manifest, tmp_path)
    text = (tmp_path / bundle.MANIFEST).read_text(encoding="utf-8")
    assert text == (
        '{\n  "format": 1,\n  "hidden_size": 3,\n  "made_with": {\n    "onnx": "1",\n    "torch": "2"\n  },\n'
        '  "name": "näme"\n}\n'
    )
    assert json_format.Parse(text, Bundle()) == manifest


def test_what_a_killed_export_left_is_swept_after_an_hour(tmp_path: Path) -> None:
    def leave(folder: str, age_s: float) -> None:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.onnx").write_text("half")
        for path in (tmp_path / folder / "model.onnx", tmp_path / folder):
            os.utime(path, (time.time() - age_s, time.time() - age_s))

    leave(".name.tmp-abcdef_1", 3700)
    leave(".name.tmp-abcdef_2", 3500)
    leave(".name.tmp-abcdef_3", 3700)
    (tmp_path / ".name.tmp-abcdef_3" / "model.onnx").write_text("still written to")
    leave(".name.tmp-abcdef_4.old", 3700)
    leave(".other.tmp-abcdef_5", 3700)
    leave(".name.tmp-x.tmp-abcdef_6", 3700)
    put(tmp_path / "name" / "1", "graph")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".name.tmp-abcdef_2",
        ".name.tmp-abcdef_3",
        ".name.tmp-abcdef_4.old",
        ".name.tmp-x.tmp-abcdef_6",
        ".other.tmp-abcdef_5",
        "name",
    ]


def test_sigterm_in_the_middle_of_a_swap_keeps_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "name" / "1"
    put(target, "old")
    rename = os.rename

    def rename_then_end(source: Path, destination: Path) -> None:
        rename(source, destination)
        if source == target:
            raise SystemExit(143)

    monkeypatch.setattr(os, "rename", rename_then_end)
    with pytest.raises(SystemExit):
        put(target, "new", force=True)
    assert tree(tmp_path) == {"name/1/model.onnx": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["name"]
