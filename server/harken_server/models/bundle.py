"""A bundle on disk, read and checked: nothing of it is used before its hash matches its manifest."""

import hashlib
import os
import re
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf import json_format
from harken.v1 import bundle_pb2

MANIFEST: Final = "bundle.json"
MODEL: Final = "model.onnx"
ATTENTION: Final = "attention.onnx"
TOKENIZER: Final = "tokenizer.json"
FORMAT: Final = 1
# The recurrent ones are of `make study`: to compare with, served by the same server.
ARCHITECTURES: Final = ("bert", "lstm", "gru")
PRECISIONS: Final = ("fp32", "fp16", "int8")
POOLINGS: Final = ("mean", "cls", "max")
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

_MANIFEST_LIMIT_BYTES: Final = 4 << 20


class BundleError(Exception):
    """A bundle that cannot be served. The message is one line and names the file and what is wrong with it."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


@dataclass(frozen=True)
class Found:
    """A folder with a bundle, and what it is served as.

    alone   the folder itself was given, not one that holds NAME/VERSION: whatever the bundle calls itself
    """

    folder: Path
    name: str
    version: int
    alone: bool = False


@dataclass(frozen=True)
class Bundle:
    """A checked bundle. `model` and `tokenizer` are the very bytes that were hashed."""

    folder: Path
    manifest: bundle_pb2.Bundle
    sha256: str
    """Of the manifest, in hex; it covers every other file by its hash."""
    model: bytes
    tokenizer: bytes | None


def name_of(folder: Path) -> str:
    """What a bundle calls itself. Raises BundleError."""
    name = _parse(folder, read_file(folder, MANIFEST, _MANIFEST_LIMIT_BYTES)).name
    if not NAME.fullmatch(name):
        raise BundleError(f"{folder / MANIFEST}: name {name!r} is no name of a model")
    return name


def read_bundle(found: Found, digests: Collection[str] = ()) -> Bundle:
    """Read a bundle, checking every hash. Raises BundleError.

    `digests`: of the manifests that may be served, SHA-256 in hex; none allows all.
    """
    folder = found.folder
    _check_place(found)
    raw = read_file(folder, MANIFEST, _MANIFEST_LIMIT_BYTES)
    sha256 = hashlib.sha256(raw).hexdigest()
    if digests and sha256 not in digests:
        raise BundleError(f"{folder / MANIFEST}: has sha256:{sha256}, which bundle_digest does not name")
    manifest = _parse(folder, raw)
    if found.alone:
        manifest.name, manifest.version = found.name, found.version
    _check_manifest(found, manifest)
    kept: dict[str, bytes] = {}
    for file in manifest.files:
        content = _read_hashed(folder, file)
        if file.name in (MODEL, TOKENIZER):
            kept[file.name] = content
    return Bundle(
        folder=folder,
        manifest=manifest,
        sha256=sha256,
        model=kept[MODEL],
        tokenizer=kept.get(TOKENIZER),
    )


def read_attention(folder: Path, manifest: bundle_pb2.Bundle) -> tuple[bytes, Mapping[str, bytes]]:
    """The attention graph of a bundle that was checked, and the files that its weights lie in; blocks.

    They are read anew, and what they hash to must still be what the manifest said. Raises BundleError.
    """
    files = {file.name: file for file in manifest.files}
    weights = {MODEL: _read_hashed(folder, files[MODEL])} if manifest.attention.shares_weights else {}
    return _read_hashed(folder, files[ATTENTION]), weights


def being_copied(folder: Path) -> bool:
    """Whether its manifest is not there yet; one that cannot be looked at is, and whoever reads it says why; blocks."""
    try:
        os.stat(folder / MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def signature(found: Found) -> object:
    """Equal as long as no file of the bundle was written, replaced, or given to other users; blocks."""
    try:
        with os.scandir(found.folder) as entries:
            states = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
    except OSError as error:
        return str(error)
    return sorted((name, state.st_ino, state.st_size, state.st_ctime_ns) for name, state in states)


def _check_place(found: Found) -> None:
    """Links within the folder of models are an operator's; what leads out of it may be anybody's."""
    if found.alone:
        return
    try:
        models = found.folder.parent.parent.resolve(strict=True)
        if models not in found.folder.resolve(strict=True).parents:
            raise BundleError(f"{found.folder}: is a link that leads out of {models}")
    except OSError as error:
        raise BundleError(f"{found.folder}: {error.strerror or error}") from error


def _parse(folder: Path, raw: bytes) -> bundle_pb2.Bundle:
    manifest = bundle_pb2.Bundle()
    try:
        json_format.Parse(raw, manifest)
    except json_format.ParseError as error:
        raise BundleError(f"{folder / MANIFEST}: not a bundle manifest: {error}") from error
    except UnicodeDecodeError as error:
        raise BundleError(f"{folder / MANIFEST}: not UTF-8") from error
    except RecursionError as error:
        raise BundleError(f"{folder / MANIFEST}: nested too deeply") from error
    return manifest


def _check_manifest(found: Found, manifest: bundle_pb2.Bundle) -> None:
    where = found.folder / MANIFEST
    if manifest.format != FORMAT:
        raise BundleError(f"{where}: format {manifest.format} is not known to this server (it knows {FORMAT})")
    if (manifest.name, manifest.version) != (found.name, found.version):
        raise BundleError(f"{where}: is {manifest.name}/{manifest.version}, but lies in {found.name}/{found.version}")
    _check_kinds(where, manifest)
    names = [file.name for file in manifest.files]
    for name in names:
        if not NAME.fullmatch(name):
            raise BundleError(f"{where}: {name!r} is not a plain file name")
    if len(set(names)) < len(names):
        raise BundleError(f"{where}: names a file twice")
    if MODEL not in names:
        raise BundleError(f"{where}: names no file {MODEL}")
    if manifest.HasField("attention") != (ATTENTION in names):
        raise BundleError(f"{where}: {ATTENTION} is described, or among the files, but not both")
    for field in ("layers", "heads", "hidden_size", "intermediate_size", "vocab_size", "max_length"):
        if getattr(manifest, field) < 1:
            raise BundleError(f"{where}: {field} is missing")
    if manifest.hidden_size % manifest.heads:
        raise BundleError(f"{where}: hidden_size {manifest.hidden_size} is no multiple of heads {manifest.heads}")
    inputs = {spec.name for spec in manifest.inputs}
    outputs = {spec.name for spec in manifest.outputs}
    if inputs != {"input_ids", "attention_mask"}:
        raise BundleError(f"{where}: inputs are {sorted(inputs)}, not input_ids and attention_mask")
    if not {"sentence_embedding", "token_embeddings"} <= outputs:
        raise BundleError(f"{where}: outputs are {sorted(outputs)}, without sentence_embedding and token_embeddings")


def _check_kinds(where: Path, manifest: bundle_pb2.Bundle) -> None:
    for field, known in (("architecture", ARCHITECTURES), ("precision", PRECISIONS), ("pooling", POOLINGS)):
        if getattr(manifest, field) not in known:
            raise BundleError(f"{where}: {field} {getattr(manifest, field)!r} is none of {', '.join(known)}")


def _read_hashed(folder: Path, file: bundle_pb2.BundleFile) -> bytes:
    content = read_file(folder, file.name, file.size_bytes)
    sha256 = hashlib.sha256(content).hexdigest()
    if len(content) != file.size_bytes or sha256 != file.sha256:
        raise BundleError(
            f"{folder / file.name}: sha256 {sha256[:12]} of {len(content)} bytes, "
            f"but {MANIFEST} says {file.sha256[:12]} of {file.size_bytes}: corrupted, or changed after the export"
        )
    return content


def read_file(folder: Path, name: str, limit_bytes: int) -> bytes:
    """At most `limit_bytes` and one more of a regular file in `folder`. Raises BundleError."""
    path = folder / name
    try:
        if path.is_symlink() and folder.resolve() not in path.resolve(strict=True).parents:
            raise BundleError(f"{path}: is a link that leads out of the bundle")
        # Not blocking: whoever puts a pipe there must not make the start wait for ever.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BundleError(f"{path}: is not a regular file")
            if status.st_size > limit_bytes and name == MANIFEST:
                raise BundleError(f"{path}: larger than {limit_bytes} bytes")
            return file.read(min(limit_bytes, status.st_size) + 1)
    except RuntimeError as error:
        raise BundleError(f"{path}: is a link to itself") from error
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror or error}") from error
