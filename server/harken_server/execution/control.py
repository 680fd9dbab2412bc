"""Which models are served, changed while the server runs."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import structlog

from harken_server.errors import LoadFailed, ModelNotFound
from harken_server.execution.engine import DeviceUnavailable
from harken_server.execution.loading import Loader
from harken_server.models.bundle import BundleError
from harken_server.models.repository import Repository

log = structlog.get_logger()

State = Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A model version in the folder, or served."""

    name: str
    version: int
    state: State
    reason: str


class Control:
    """Loads and unloads one model at a time. Belongs to the event loop's thread."""

    def __init__(
        self,
        loader: Loader,
        repository: Repository,
        allowed: bool,
        on_change: Callable[[str, Sequence[int], bool], Awaitable[None]],
    ) -> None:
        """`on_change(name, versions, served)` follows each change."""
        self.allowed: Final = allowed
        """Whether clients may load and unload."""
        self._loader: Final = loader
        self._repository: Final = repository
        self._on_change: Final = on_change
        self._one_at_a_time: Final = asyncio.Lock()
        self._loading: str | None = None
        self._failures: Final[dict[str, str]] = {}

    async def index(self) -> list[Entry]:
        """Every bundle in the folder, and every version that is served."""
        served = {model.key for model in self._repository}
        leaving = set(self._loader.leaving())
        try:
            found = set(await asyncio.to_thread(self._loader.found))
        except BundleError:
            found = set()  # the folder is empty, or gone: what is served is served
        keys = served | leaving | found
        return [self._entry(name, version, served, leaving) for name, version in sorted(keys)]

    def _entry(self, name: str, version: int, served: set[tuple[str, int]], leaving: set[tuple[str, int]]) -> Entry:
        if (name, version) in served:
            return Entry(name, version, "READY", "")
        if (name, version) in leaving:
            return Entry(name, version, "UNLOADING", "")
        if self._loading == name:
            return Entry(name, version, "LOADING", "")
        return Entry(name, version, "UNAVAILABLE", self._failures.get(name, "not loaded"))

    async def load(self, name: str) -> None:
        """Serve every version of this model in the folder that is not served yet.

        Raises ModelNotFound without any, LoadFailed if one cannot be served; those before it are.
        """
        # Whoever asked may leave; sessions are half made then, and threads cannot be stopped.
        await asyncio.shield(self._load(name))

    async def _load(self, name: str) -> None:
        async with self._one_at_a_time:
            try:
                found = [key for key in await asyncio.to_thread(self._loader.found) if key[0] == name]
            except BundleError as error:
                raise LoadFailed(name, str(error)) from None
            if not found:
                raise ModelNotFound(name, 0, tuple(sorted({model.manifest.name for model in self._repository})), ())
            self._loading = name
            try:
                for key in found:
                    await self._loader.load_version(*key)
                self._failures.pop(name, None)
            except (BundleError, DeviceUnavailable) as error:
                self._failures[name] = str(error)
                log.warning("model not loaded", model=name, why=str(error))
                raise LoadFailed(name, str(error)) from None
            finally:
                self._loading = None
                versions = self._repository.versions(name)
                if versions:
                    await self._on_change(name, versions, True)

    async def unload(self, name: str) -> None:
        """Take nothing more for this model; its memory comes back once what was accepted is answered.

        Raises ModelNotFound if it is not served.
        """
        async with self._one_at_a_time:
            versions = self._repository.versions(name)
            if not versions:
                raise ModelNotFound(name, 0, tuple(sorted({model.manifest.name for model in self._repository})), ())
            await self._on_change(name, versions, False)
            for version in versions:
                self._loader.unload_version(name, version)
            log.info("model unloaded", model=name, versions=list(versions))
