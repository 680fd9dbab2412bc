"""Which lanes may start a batch now, such that they never want more cores than there are."""

from collections.abc import Sequence
from math import exp
from typing import Final

_MEMORY_S: Final = 1.0
"""Of running, over which what has come is remembered."""


class Lanes:
    """`narrow` lanes of one core each and, if `wide`, one lane of all of these cores: never both kinds at once."""

    def __init__(self, narrow: int, wide: bool = False) -> None:
        """Narrow lanes are numbered from 0; the wide one comes after them."""
        self.narrow: Final = narrow
        self.wide: Final = narrow if wide else None
        """The wide lane's number; None if there is none."""
        self._idle: Final = list(range(narrow))
        self._wide_runs = False
        # Fading sums: sequences that came while something ran, and for how long something ran.
        self._came = 0.0
        self._ran_s = 0.0
        self._since_s = 0.0

    @property
    def free(self) -> Sequence[int]:
        """The narrow lanes that may start a batch now."""
        return () if self._wide_runs else self._idle

    @property
    def all_free(self) -> bool:
        """Whether nothing runs; only then may the wide lane start a batch."""
        return len(self._idle) == self.narrow and not self._wide_runs

    @property
    def come_per_s(self) -> float:
        """Sequences that come in each second in which something runs: whoever waits for an answer sends none."""
        return self._came / self._ran_s if self._ran_s else 0.0

    def arrived(self, sequences: int) -> None:
        """So many came, just now."""
        if not self.all_free:
            self._came += sequences

    def start(self, lane: int, now_s: float) -> None:
        """A batch starts on `lane`. Raises ValueError if it would take a core that is taken."""
        self._pass(now_s)
        if lane == self.wide and self.all_free:
            self._wide_runs = True
        elif lane in self.free:
            self._idle.remove(lane)
        else:
            raise ValueError(f"lane {lane} is not free")

    def done(self, lane: int, now_s: float) -> None:
        """The batch on `lane` ended. Raises ValueError if none ran there."""
        self._pass(now_s)
        if lane == self.wide and self._wide_runs:
            self._wide_runs = False
        elif 0 <= lane < self.narrow and lane not in self._idle:
            self._idle.append(lane)
        else:
            raise ValueError(f"lane {lane} runs nothing")

    def _pass(self, now_s: float) -> None:
        """Time has passed since a batch last started or ended."""
        if not self.all_free:
            elapsed_s = now_s - self._since_s
            fading = exp(-elapsed_s / _MEMORY_S)
            self._came *= fading
            self._ran_s = (self._ran_s + elapsed_s) * fading
        self._since_s = now_s
