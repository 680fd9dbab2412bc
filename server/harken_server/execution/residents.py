"""The models that the batcher serves, and how long each stays: while calls ask for it, or batches of it run."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from harken_server.execution.pending import Pending
from harken_server.execution.served import ModelKey, Served
from harken_server.scheduling.backlog import Backlog


class Residents:
    """Belongs to the event loop's thread; `backlogs` and `versions` are read by the thread of the metrics, too."""

    def __init__(self, busy: Callable[[], set[ModelKey]], gone: Callable[[ModelKey], None]) -> None:
        """`busy` tells of which models batches run, or are prepared to; `gone` is told of each that is let go of."""
        self._busy: Final = busy
        self._gone: Final = gone
        self._served: Final[dict[ModelKey, Served]] = {}
        self.backlogs: Final[dict[ModelKey, Backlog[Pending]]] = {}
        self.ordinary: Final[dict[ModelKey, Backlog[Pending]]] = {}
        """Of them those whose batches may run beside any other."""
        # Callers of each, and those to be let go of once nobody asks for them and nothing of theirs runs.
        self._users: Final[Counter[ModelKey]] = Counter()
        self._leaving: Final[set[ModelKey]] = set()

    def add(self, key: ModelKey, served: Served) -> None:
        """Take sequences for this model from now on."""
        self._served[key] = served
        self.backlogs[key] = served.backlog
        if not served.apart:
            self.ordinary[key] = served.backlog

    def __getitem__(self, key: ModelKey) -> Served:
        """What runs for this model."""
        return self._served[key]

    def __contains__(self, key: ModelKey) -> bool:
        """Whether sequences are taken for this model."""
        return key in self._served

    def __iter__(self) -> Iterator[Served]:
        return iter(self._served.values())

    def versions(self, name: str) -> list[Backlog[Pending]]:
        """The backlogs of all versions of a model."""
        return [backlog for key, backlog in list(self.backlogs.items()) if key[0] == name]

    @contextmanager
    def using(self, key: ModelKey) -> Iterator[None]:
        """While a call asks for this model, it stays."""
        self._users[key] += 1
        try:
            yield
        finally:
            self._users[key] -= 1
            self.let_go()

    def retire(self, key: ModelKey) -> None:
        """Let go of this model as soon as nobody uses it; nobody new may ask for it from now on."""
        self._leaving.add(key)
        self.let_go()

    def keep(self, key: ModelKey) -> None:
        """If this model was to be let go of, it is not any more."""
        self._leaving.discard(key)

    def leaving(self) -> list[ModelKey]:
        """Those that were retired and are still in use."""
        return list(self._leaving)

    def let_go(self) -> None:
        """Let go of those that are leaving and that nobody uses any more."""
        if not self._leaving:
            return
        busy = self._busy()
        for key in [key for key in self._leaving if not self._users[key] and key not in busy]:
            self._leaving.discard(key)
            del self._served[key], self.backlogs[key], self._users[key]
            self.ordinary.pop(key, None)
            self._gone(key)
