"""Which models are served, changed while the server runs: by clients, or as the folder says."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import structlog

from harken_server.errors import LoadFailed, ModelNotFound
from harken_server.execution.engine import DeviceUnavailable
from harken_server.execution.loading import Loader
from harken_server.execution.served import ModelKey
from harken_server.models.bundle import BundleError, Found, being_copied, signature
from harken_server.models.repository import Repository, kept
from harken_server.telemetry.metrics import Metrics

log = structlog.get_logger()

State = Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]

_PIN: Final = 0
"""Where a version stands: the file that names the default. No bundle has this version."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A model version in the folder, or served."""

    name: str
    version: int
    state: State
    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Why something in the folder is not served, and what it was like."""

    signature: object
    why: str


class Control:
    """Changes one model at a time. Belongs to the event loop's thread."""

    def __init__(
        self,
        loader: Loader,
        repository: Repository,
        metrics: Metrics,
        allowed: bool,
        keep: int,
        on_change: Callable[[Sequence[str], bool], Awaitable[None]],
    ) -> None:
        """`keep`: see the setting keep_versions. `on_change(names, served)`: NAME, or NAME/VERSION, is or is not."""
        self.allowed: Final = allowed
        """Whether clients may load and unload."""
        self._loader: Final = loader
        self._repository: Final = repository
        self._metrics: Final = metrics
        self._keep: Final = keep
        self._on_change: Final = on_change
        self._one_at_a_time: Final = asyncio.Lock()
        self._loading: ModelKey | None = None
        self._refused: Final[dict[ModelKey, Refused]] = {}
        # What clients unloaded stays so, whatever the folder holds.
        self._unloaded: Final[set[str]] = set()

    @property
    def busy(self) -> bool:
        """Whether something is being loaded."""
        return self._one_at_a_time.locked()

    def refuse(self, whys: Mapping[ModelKey, str]) -> None:
        """These could not be loaded at the start. They are tried again at the next look."""
        for key, why in whys.items():
            self._refuse(key, None, why)

    async def index(self) -> list[Entry]:
        """Every bundle in the folder, and every version that is served."""
        served = {model.key for model in self._repository}
        leaving = set(self._loader.leaving())
        try:
            found = {(one.name, one.version) for one in await asyncio.to_thread(self._loader.found)}
        except BundleError:
            found = set()  # the folder is empty, or gone: what is served is served
        keys = served | leaving | found
        return [self._entry(key, served, leaving) for key in sorted(keys)]

    def _entry(self, key: ModelKey, served: set[ModelKey], leaving: set[ModelKey]) -> Entry:
        if key in served:
            return Entry(*key, "READY", "")
        if key in leaving:
            return Entry(*key, "UNLOADING", "")
        if key == self._loading:
            return Entry(*key, "LOADING", "")
        refused = self._refused.get(key)
        return Entry(*key, "UNAVAILABLE", refused.why if refused else "not loaded")

    async def load(self, name: str) -> None:
        """Serve of this model what its folder holds.

        Raises ModelNotFound if that is nothing, LoadFailed if something cannot be served; the rest is.
        """
        # Whoever asked may leave; sessions are half made then, and threads cannot be stopped.
        await asyncio.shield(self._load(name))

    async def _load(self, name: str) -> None:
        async with self._one_at_a_time:
            try:
                found = [one for one in await asyncio.to_thread(self._loader.found) if one.name == name]
            except BundleError as error:
                raise LoadFailed(name, str(error)) from None
            if not found:
                raise self._not_found(name)
            self._unloaded.discard(name)
            self._forget_refusals(key for key in self._refused if key[0] == name)
            problems = await self._follow(name, found)
            if problems:
                raise LoadFailed(name, problems[0])

    async def unload(self, name: str) -> None:
        """Take nothing more for this model; its memory comes back once what was accepted is answered.

        Raises ModelNotFound if it is not served.
        """
        async with self._one_at_a_time:
            versions = self._repository.versions(name)
            if not versions:
                raise self._not_found(name)
            self._unloaded.add(name)
            await self._unload(name, versions)

    async def refresh(self, anew: bool) -> None:
        """Serve what the folder holds by now. `anew`: try what was refused although it has not changed."""
        async with self._one_at_a_time:
            try:
                found = await asyncio.to_thread(self._complete)
            except BundleError as error:
                # A volume that was lost for a moment must not take the models along.
                self._refuse(("", _PIN), None, str(error))
                return
            names = {one.name for one in found}
            gone = {model.manifest.name for model in self._repository} - names - self._unloaded
            closed = {
                name: why for name in gone if (why := await asyncio.to_thread(self._loader.cannot_look_into, name))
            }
            present = {(one.name, one.version) for one in found} | {(name, _PIN) for name in names | closed.keys()}
            self._forget_refusals(key for key in self._refused if anew or key not in present)
            for name, why in closed.items():
                # As a folder of models that is lost: what may still be there must not be unloaded.
                self._refuse((name, _PIN), None, why)
            for name in sorted((names | gone) - self._unloaded - closed.keys()):
                await self._follow(name, [one for one in found if one.name == name])

    def _complete(self) -> list[Found]:
        """The bundles in the folder, without those that are being copied; blocks. Raises BundleError without any."""
        found = self._loader.found()
        return [one for one in found if not being_copied(one.folder)] or found

    async def _follow(self, name: str, found: Sequence[Found]) -> list[str]:
        """Serve of this model what its folder holds. Returns why something of it cannot be, one line each."""
        problems: list[str] = []
        pinned = await self._pinned(name, problems)
        self._hold_default(name, pinned)
        loadable = {one.version: one for one in found}
        while missing := self._wanted(name, loadable, pinned) - set(self._repository.versions(name)):
            # The future default comes first, so that the default changes once.
            version = pinned if pinned in missing else max(missing)
            why = await self._try(loadable[version])
            self._hold_default(name, pinned)
            if why:
                problems.append(why)
                del loadable[version]
            else:
                await self._on_change([name, f"{name}/{version}"], True)
        if pinned is not None and pinned not in self._repository.versions(name):
            problems.append(self._refuse((name, _PIN), pinned, str(self._loader.cannot_pin(name, pinned))))
        refused = self._refused.get((name, _PIN))
        if refused and refused.why not in problems:
            self._forget_refusals([(name, _PIN)])
        surplus = sorted(set(self._repository.versions(name)) - self._wanted(name, loadable, pinned))
        # Who takes an old bundle away counts on the new one: as long as that is refused, the old one serves on.
        if surplus and not problems:
            await self._unload(name, surplus)
        return problems

    def _wanted(self, name: str, loadable: Iterable[int], pinned: int | None) -> set[int]:
        """The versions to serve: of those in the folder that can be; and the pinned one, as long as it is served."""
        still = {version for version in self._repository.versions(name) if version == pinned}
        return kept(set(loadable), self._keep, pinned) | still

    async def _pinned(self, name: str, problems: list[str]) -> int | None:
        """The version to be the default, None for the highest. A file that says none changes nothing."""
        try:
            pinned = await asyncio.to_thread(self._loader.pinned, name)
        except BundleError as error:
            problems.append(self._refuse((name, _PIN), None, str(error)))
            return self._repository.default_version(name) if self._repository.versions(name) else None
        return pinned

    def _hold_default(self, name: str, pinned: int | None) -> None:
        """Pin what is to be pinned or, until that is served, what is the default now."""
        versions = self._repository.versions(name)
        if versions:
            default = self._repository.default_version(name)
            self._repository.pin(name, default if pinned is not None and pinned not in versions else pinned)
            if self._repository.default_version(name) != default:
                log.info("default version", model=name, version=self._repository.default_version(name), before=default)

    async def _try(self, found: Found) -> str:
        """Load a bundle. Returns why it cannot be served, or nothing; what has not changed is not tried again."""
        key = found.name, found.version
        if key in self._loader.leaving():
            return f"{found.name}/{found.version}: is still being unloaded; what it accepted is not answered yet"
        present = await asyncio.to_thread(signature, found)
        refused = self._refused.get(key)
        if refused and refused.signature == present:
            return refused.why
        self._loading = key
        try:
            await self._loader.load_version(found)
        except (BundleError, DeviceUnavailable) as error:
            return self._refuse(key, present, str(error))
        finally:
            self._loading = None
        self._forget_refusals([key])
        self._metrics.model_changes.labels(found.name, "loaded").inc()
        return ""

    def _refuse(self, key: ModelKey, present: object, why: str) -> str:
        """Say and count it, once."""
        if self._refused.get(key) != (refused := Refused(present, why)):
            self._refused[key] = refused
            self._metrics.model_changes.labels(key[0], "refused").inc()
            self._show_refused(key[0])
            log.warning("model not loaded", model=key[0], why=why)
        return why

    def _forget_refusals(self, keys: Iterable[ModelKey]) -> None:
        for key in list(keys):
            if self._refused.pop(key, None):
                self._show_refused(key[0])

    def _show_refused(self, name: str) -> None:
        self._metrics.refused_bundles.labels(name).set(sum(key[0] == name for key in self._refused))

    async def _unload(self, name: str, versions: Sequence[int]) -> None:
        left = set(self._repository.versions(name)) - set(versions)
        await self._on_change([*([] if left else [name]), *[f"{name}/{version}" for version in versions]], False)
        for version in versions:
            self._loader.unload_version(name, version)
            self._metrics.model_changes.labels(name, "unloaded").inc()
        log.info("model unloaded", model=name, versions=list(versions))

    def _not_found(self, name: str) -> ModelNotFound:
        return ModelNotFound(name, 0, tuple(sorted({model.manifest.name for model in self._repository})), ())
