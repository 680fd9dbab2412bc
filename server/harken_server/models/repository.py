"""Which model versions are served, and which one a request means."""

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harken.v1 import bundle_pb2

from harken_server.errors import AmbiguousModel, InvalidRequest, ModelNotFound
from harken_server.models.bundle import MANIFEST, NAME, BundleError, Found, name_of, read_file
from harken_server.models.tokenizer import Tokenizer

PIN: Final = "default"
"""The file in a model's folder that names the version of requests that name none."""

_PIN_LIMIT_BYTES: Final = 32
# As the protocols have it; and 08 is no second name of 8.
_VERSION: Final = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class Model:
    """One version of one model that is ready."""

    manifest: bundle_pb2.Bundle
    sha256: str
    """Of the manifest, in hex."""
    tokenizer: Tokenizer | None
    device: str
    folder: Path = Path()
    """Of the bundle."""

    @property
    def key(self) -> tuple[str, int]:
        """Name and version."""
        return self.manifest.name, self.manifest.version


class Repository:
    """The models that are ready."""

    def __init__(self) -> None:
        self._models: Final[dict[str, dict[int, Model]]] = {}
        self._pins: Final[dict[str, int]] = {}
        self.max_length = 0
        """The longest sequence that any model takes, or took: a stream may still hold one that was retired."""

    def add(self, model: Model) -> None:
        """Serve this version from now on."""
        name, version = model.key
        self._models.setdefault(name, {})[version] = model
        self.max_length = max(self.max_length, model.manifest.max_length)

    def remove(self, key: tuple[str, int]) -> None:
        """Serve this version no longer."""
        name, version = key
        del self._models[name][version]
        if self._pins.get(name) == version:
            del self._pins[name]
        if not self._models[name]:
            del self._models[name]

    def pin(self, name: str, version: int | None) -> None:
        """Make a version that is served the default; None: the highest is it, whichever that will be."""
        if version is None:
            self._pins.pop(name, None)
        else:
            assert version in self._models[name], "only what is served can answer for the others"
            self._pins[name] = version

    def versions(self, name: str) -> tuple[int, ...]:
        """Of this model, in their order; none if it is not served."""
        return tuple(sorted(self._models.get(name, ())))

    def find(self, name: str, version: int) -> Model:
        """The version that a request means: no name is the only model, version 0 is its default.

        Raises ModelNotFound, or InvalidRequest where no name is given and several models are there.
        """
        if not name:
            if not self._models:
                raise ModelNotFound(name, version, (), ())
            if len(self._models) != 1:
                raise InvalidRequest((AmbiguousModel("model", tuple(sorted(self._models))),))
            name = next(iter(self._models))
        versions = self._models.get(name, {})
        model = versions.get(version or (self.default_version(name) if versions else 0))
        if model is None:
            raise ModelNotFound(name, version, tuple(sorted(self._models)), tuple(sorted(versions)))
        return model

    def default_version(self, name: str) -> int:
        """The version of a request that names none: the pinned one, else the highest. The model must be served."""
        return self._pins.get(name) or max(self._models[name])

    def __iter__(self) -> Iterator[Model]:
        for _, versions in sorted(self._models.items()):
            for _, model in sorted(versions.items()):
                yield model


def find_bundles(models: Path, model_name: str) -> list[Found]:
    """Every NAME/VERSION folder under `models`; or `models` itself, where it is a bundle, as version 1 of `model_name`
    or, where that is empty, under its own name.

    Raises BundleError if there is none.
    """
    # Of Path's questions some raise where a folder may not be entered, and some are as if it were empty.
    if not os.path.isdir(models):
        raise BundleError(f"{models}: no such folder; `harken-export minilm --models {models}` makes a first bundle")
    if not os.access(models, os.R_OK | os.X_OK):
        raise BundleError(f"{models}: user {os.getuid()}, who runs this server, may not read it")
    if (models / MANIFEST).exists():
        return [Found(models, model_name or name_of(models), 1, alone=True)]
    if model_name:
        raise BundleError(f"{models}: model_name names a bundle that lies there itself, and {MANIFEST} does not")
    folders = [
        Found(folder, folder.parent.name, int(folder.name))
        for folder in models.glob("*/*")
        if NAME.fullmatch(folder.parent.name) and _VERSION.fullmatch(folder.name) and os.path.isdir(folder)
    ]
    if not folders:
        raise BundleError(
            f"{models}: holds no bundle that user {os.getuid()} may read (a folder NAME/VERSION with {MANIFEST}); "
            f"`harken-export minilm --models {models}` makes one"
        )
    return sorted(folders, key=lambda found: (found.name, found.version))


def cannot_look_into(models: Path, name: str) -> str | None:
    """Why nobody can say which versions a model's folder holds; None if that can be said, or it is not there."""
    folder = models / name
    try:
        os.listdir(folder)
        os.stat(os.path.join(folder, "."))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return f"{folder}: {error.strerror or error}"
    return None


def pinned_version(models: Path, name: str) -> int | None:
    """The version that the file NAME/default holds, None without that file. Raises BundleError if it is none."""
    path = models / name / PIN
    if not path.is_symlink() and not path.exists():
        return None
    text = read_file(path.parent, PIN, _PIN_LIMIT_BYTES).decode("ascii", "replace").strip()
    if not _VERSION.fullmatch(text):
        raise BundleError(f"{path}: {text[:_PIN_LIMIT_BYTES]!r} is no version, which is a number from 1")
    return int(text)


def pinned_versions(models: Path, found: Sequence[Found]) -> dict[str, int]:
    """The pins of all these models. Raises BundleError if one is no version, or none of these."""
    pins = {}
    for name in sorted({one.name for one in found if not one.alone}):
        version = pinned_version(models, name)
        if version is not None:
            if version not in [one.version for one in found if one.name == name]:
                raise not_there(models, name, version)
            pins[name] = version
    return pins


def not_there(models: Path, name: str, version: int) -> BundleError:
    """A pin of a version that cannot be served."""
    return BundleError(f"{models / name / PIN}: pins version {version}, which cannot be served")


def kept(versions: Collection[int], keep: int, pinned: int | None) -> set[int]:
    """Of these versions the `keep` highest (0: all of them), and the pinned one."""
    return {*sorted(versions)[-keep:], *(version for version in versions if version == pinned)}


def chosen(found: Sequence[Found], keep: int, pins: Mapping[str, int]) -> list[Found]:
    """Of these bundles those to serve at the start, in their order."""
    versions = {name: [one.version for one in found if one.name == name] for name in {one.name for one in found}}
    return [one for one in found if one.version in kept(versions[one.name], keep, pins.get(one.name))]
