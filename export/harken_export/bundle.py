"""A bundle on disk: the folder `models/NAME/VERSION/`, which is there whole or not at all.

Imports no torch: the command asks here whether a bundle exists before it loads anything heavy.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from google.protobuf.json_format import MessageToDict, Parse, ParseError
from harken.v1.bundle_pb2 import Bundle, BundleFile, WeightsOrigin

from .errors import BundleExists, InvalidBundleName

Precision = Literal["fp32", "fp16", "int8"]

FORMAT = 1
MANIFEST = "bundle.json"
MODEL = "model.onnx"
ATTENTION = "attention.onnx"
TOKENIZER = "tokenizer.json"

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
MAX_VERSION = 2**32 - 1

# No export is silent for so long: whoever left a folder this old was killed.
STALE_AFTER_S = 3600


def bundle_folder(models_dir: Path, name: str, version: int) -> Path:
    """Where the bundle lives. Raises InvalidBundleName."""
    if not NAME.fullmatch(name):
        raise InvalidBundleName(
            f"the name '{name}' must be 1 to 128 letters, digits, '.', '_' or '-', the first a letter or a digit"
        )
    if not 1 <= version <= MAX_VERSION:
        raise InvalidBundleName(f"the version {version} must be from 1 to {MAX_VERSION}")
    return models_dir / name / str(version)


def refuse_existing(target: Path, *, force: bool) -> None:
    """Raises BundleExists if `target` is there, unless `force`."""
    if target.exists() and not force:
        raise BundleExists(target)


def lacks_attention(folder: Path) -> bool:
    """Whether a bundle is there that could have an attention graph of its very weights, and has none."""
    manifest = read_manifest(folder)
    return bool(manifest.weights.sha256) and not manifest.HasField("attention")


def holds_weights(folder: Path, origin: WeightsOrigin) -> bool:
    """Whether the bundle that is there was made of these weights, by their hash."""
    weights = read_manifest(folder).weights
    return bool(origin.sha256) and weights.sha256 == origin.sha256


def read_manifest(folder: Path) -> Bundle:
    """Empty if there is none, or none that can be read."""
    try:
        return Parse((folder / MANIFEST).read_bytes(), Bundle(), ignore_unknown_fields=True)
    except (OSError, ParseError, UnicodeDecodeError, RecursionError):
        return Bundle()


@contextmanager
def staged(target: Path, *, force: bool) -> Iterator[Path]:
    """A hidden folder beside NAME/ that becomes `target` when the block ends well, and vanishes when it does not.

    Raises BundleExists before the block if `target` is there, or after it if another export was faster, unless
    `force`: then it is replaced.
    """
    refuse_existing(target, force=force)
    models_dir = target.parents[1]
    models_dir.mkdir(parents=True, exist_ok=True)
    sweep(models_dir, target.parent.name, time.time() - STALE_AFTER_S)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.parent.name}.tmp-", dir=models_dir))
    try:
        yield folder
        make_durable(folder)
        publish(folder, target, force=force)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(models_dir: Path, name: str, before_s: float) -> None:
    """Remove what killed exports of this model left, if nothing in it was written since `before_s` (Unix time).

    A replaced bundle that was set aside (.old) stays: it may be the only copy.
    """
    # tempfile's eight characters: the hidden folders of the model NAME.tmp-x are not this model's.
    pattern = re.compile(re.escape(f".{name}.tmp-") + "[a-z0-9_]{8}")
    for folder in models_dir.iterdir():
        if pattern.fullmatch(folder.name):
            # Missing now: its own export, or the sweep of another, has just removed it.
            with suppress(FileNotFoundError):
                if max(path.lstat().st_mtime for path in (folder, *folder.iterdir())) < before_s:
                    shutil.rmtree(folder, ignore_errors=True)


def make_durable(folder: Path) -> None:
    """Give every file to the disk, and to every reader: the server seldom runs as the user who exported."""
    for path in folder.iterdir():
        path.chmod(0o644)
        fsync(path)
    folder.chmod(0o755)
    fsync(folder)


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(folder: Path, target: Path, *, force: bool) -> None:
    """Rename `folder` to `target`. Raises BundleExists if that is taken and not `force`."""
    target.parent.mkdir(exist_ok=True)
    replaced = Path(f"{folder}.old")
    try:
        while True:
            try:
                os.rename(folder, target)
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                if not force:
                    raise BundleExists(target) from None
            shutil.rmtree(replaced, ignore_errors=True)
            # Missing now: another export has just set it aside.
            with suppress(FileNotFoundError):
                os.rename(target, replaced)
    except BaseException:
        # A broken disk or SIGTERM between the two renames must not cost the old bundle.
        restore(replaced, target)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
    fsync(target.parent)
    fsync(target.parents[1])


def restore(replaced: Path, target: Path) -> None:
    with suppress(OSError):
        os.rename(replaced, target)


def describe_files(folder: Path) -> list[BundleFile]:
    """Name, hash and size of each file, by name."""
    return [describe_file(path) for path in sorted(folder.iterdir())]


def describe_file(path: Path) -> BundleFile:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return BundleFile(name=path.name, sha256=sha256, size_bytes=path.stat().st_size)


def write_manifest(manifest: Bundle, folder: Path) -> None:
    """The JSON form: equal manifests give equal bytes."""
    content = MessageToDict(manifest, preserving_proto_field_name=True)
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
