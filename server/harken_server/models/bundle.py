"""A bundle on disk, read and checked: nothing of it is used before its hash matches its manifest."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf import json_format
from harken.v1 import bundle_pb2

MANIFEST: Final = "bundle.json"
MODEL: Final = "model.onnx"
TOKENIZER: Final = "tokenizer.json"
FORMAT: Final = 1
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

_MANIFEST_LIMIT_BYTES: Final = 4 << 20


class BundleError(Exception):
    """A bundle that cannot be served. The message is one line and names the file and what is wrong with it."""


@dataclass(frozen=True)
class Bundle:
    """A checked bundle. `model` and `tokenizer` are the very bytes that were hashed."""

    manifest: bundle_pb2.Bundle
    sha256: str
    """Of the manifest, in hex; it covers every other file by its hash."""
    model: bytes
    tokenizer: bytes | None


def read_bundle(folder: Path) -> Bundle:
    """Read `folder` (NAME/VERSION), checking every hash. Raises BundleError."""
    raw = _read(folder, MANIFEST, _MANIFEST_LIMIT_BYTES)
    manifest = bundle_pb2.Bundle()
    try:
        json_format.Parse(raw, manifest)
    except json_format.ParseError as error:
        raise BundleError(f"{folder / MANIFEST}: not a bundle manifest: {error}") from error
    except UnicodeDecodeError as error:
        raise BundleError(f"{folder / MANIFEST}: not UTF-8") from error
    except RecursionError as error:
        raise BundleError(f"{folder / MANIFEST}: nested too deeply") from error
    _check_manifest(folder, manifest)
    contents = {file.name: _read_hashed(folder, file) for file in manifest.files}
    if MODEL not in contents:
        raise BundleError(f"{folder / MANIFEST}: names no file {MODEL}")
    return Bundle(
        manifest=manifest,
        sha256=hashlib.sha256(raw).hexdigest(),
        model=contents[MODEL],
        tokenizer=contents.get(TOKENIZER),
    )


def _check_manifest(folder: Path, manifest: bundle_pb2.Bundle) -> None:
    where = folder / MANIFEST
    if manifest.format != FORMAT:
        raise BundleError(f"{where}: format {manifest.format} is not known to this server (it knows {FORMAT})")
    if (manifest.name, str(manifest.version)) != (folder.parent.name, folder.name):
        raise BundleError(
            f"{where}: is {manifest.name}/{manifest.version}, but lies in {folder.parent.name}/{folder.name}"
        )
    for field in ("layers", "heads", "hidden_size", "intermediate_size", "vocab_size", "max_length"):
        if getattr(manifest, field) < 1:
            raise BundleError(f"{where}: {field} is missing")
    inputs = {spec.name for spec in manifest.inputs}
    outputs = {spec.name for spec in manifest.outputs}
    if inputs != {"input_ids", "attention_mask"}:
        raise BundleError(f"{where}: inputs are {sorted(inputs)}, not input_ids and attention_mask")
    if not {"sentence_embedding", "token_embeddings"} <= outputs:
        raise BundleError(f"{where}: outputs are {sorted(outputs)}, without sentence_embedding and token_embeddings")


def _read_hashed(folder: Path, file: bundle_pb2.BundleFile) -> bytes:
    if not NAME.fullmatch(file.name):
        raise BundleError(f"{folder / MANIFEST}: {file.name!r} is not a plain file name")
    content = _read(folder, file.name, file.size_bytes)
    sha256 = hashlib.sha256(content).hexdigest()
    if len(content) != file.size_bytes or sha256 != file.sha256:
        raise BundleError(
            f"{folder / file.name}: sha256 {sha256[:12]} of {len(content)} bytes, "
            f"but {MANIFEST} says {file.sha256[:12]} of {file.size_bytes}: corrupted, or changed after the export"
        )
    return content


def _read(folder: Path, name: str, limit_bytes: int) -> bytes:
    path = folder / name
    if path.is_symlink() and folder.resolve() not in path.resolve().parents:
        raise BundleError(f"{path}: is a link that leads out of the bundle")
    try:
        with path.open("rb") as file:
            content = file.read(limit_bytes + 1)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror or error}") from error
    if len(content) > limit_bytes:
        raise BundleError(f"{path}: larger than {limit_bytes} bytes")
    return content
