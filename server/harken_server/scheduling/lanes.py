"""Which lanes may start a batch now, such that they never want more cores than there are."""

from collections.abc import Sequence
from typing import Final


class Lanes:
    """`narrow` lanes of one core each and, if `wide`, one lane of all of these cores: never both kinds at once."""

    def __init__(self, narrow: int, wide: bool = False) -> None:
        """Narrow lanes are numbered from 0; the wide one comes after them."""
        self.narrow: Final = narrow
        self.wide: Final = narrow if wide else None
        """The wide lane's number; None if there is none."""
        self._idle: Final = list(range(narrow))
        self._wide_runs = False

    @property
    def free(self) -> Sequence[int]:
        """The narrow lanes that may start a batch now."""
        return () if self._wide_runs else self._idle

    @property
    def all_free(self) -> bool:
        """Whether nothing runs; only then may the wide lane start a batch."""
        return len(self._idle) == self.narrow and not self._wide_runs

    def start(self, lane: int) -> None:
        """A batch starts on `lane`. Raises ValueError if it would take a core that is taken."""
        if lane == self.wide and self.all_free:
            self._wide_runs = True
        elif lane in self.free:
            self._idle.remove(lane)
        else:
            raise ValueError(f"lane {lane} is not free")

    def done(self, lane: int) -> None:
        """The batch on `lane` ended. Raises ValueError if none ran there."""
        if lane == self.wide and self._wide_runs:
            self._wide_runs = False
        elif 0 <= lane < self.narrow and lane not in self._idle:
            self._idle.append(lane)
        else:
            raise ValueError(f"lane {lane} runs nothing")
