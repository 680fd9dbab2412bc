"""Which lanes may start a batch now, such that they never want more cores than there are."""

from collections.abc import Hashable, Sequence
from math import exp, inf
from typing import Final

from harken_server.scheduling.waiting import Priority

_MEMORY_S: Final = 1.0
"""Of running, over which what has come is remembered; and of time, what each model has had."""

_SEEN_S: Final = 1.0
"""For how long interactive work that came is expected to be followed by more."""

BULK_SHARE: Final = 0.1
"""Of the lanes' time, what bulk work gets at least while it waits, however much interactive work does."""


class Lanes:
    """`narrow` lanes of one core each and, if `wide`, one lane of all of these cores: never both kinds at once.

    For a narrow lane that runs, one further batch may be prepared, which it runs next without asking anybody.
    """

    def __init__(self, narrow: int, wide: bool = False) -> None:
        """Narrow lanes are numbered from 0; the wide one comes after them."""
        self.narrow: Final = narrow
        self.wide: Final = narrow if wide else None
        """The wide lane's number; None if there is none."""
        self._idle: Final = list(range(narrow))
        # Of each narrow lane that runs: the predicted end, and how long the batch prepared for it will take.
        self._ends_s: Final[dict[int, float]] = {}
        self._prepared_s: Final[dict[int, float]] = {}
        self._wide_runs = False
        # Fading sums: sequences that came while something ran, and for how long something ran.
        self._came = 0.0
        self._ran_s = 0.0
        self._since_s = 0.0
        self._interactive_s = -inf
        # When the bulk batch that led last has been paid for by what else ran.
        self._bulk_paid_s = -inf
        # Lane seconds that each model was given, faded until the moment beside them.
        self._given_s: Final[dict[Hashable, tuple[float, float]]] = {}

    @property
    def free(self) -> Sequence[int]:
        """The narrow lanes that may start a batch now."""
        return () if self._wide_runs else self._idle

    @property
    def all_free(self) -> bool:
        """Whether nothing runs; only then may the wide lane start a batch."""
        return len(self._idle) == self.narrow and not self._wide_runs

    def first_done(self, now_s: float) -> tuple[int, float] | None:
        """While every narrow lane runs: the one that will be done first, and when. None if a batch waits there."""
        if self._idle or self._wide_runs or not self.narrow:
            return None
        ends_s = {lane: max(end_s, now_s) + self._prepared_s.get(lane, 0.0) for lane, end_s in self._ends_s.items()}
        lane = min(ends_s, key=ends_s.__getitem__)
        return None if lane in self._prepared_s else (lane, ends_s[lane])

    @property
    def come_per_s(self) -> float:
        """Sequences that come in each second in which something runs: whoever waits for an answer sends none."""
        return self._came / self._ran_s if self._ran_s else 0.0

    def arrived(self, sequences: int, priority: Priority, now_s: float) -> None:
        """So many came, just now."""
        if priority is Priority.INTERACTIVE:
            self._interactive_s = now_s
        if not self.all_free:
            self._came += sequences

    def interactive_seen(self, now_s: float) -> bool:
        """Whether interactive work came a moment ago, so that more of it is to be expected."""
        return now_s - self._interactive_s <= _SEEN_S

    def bulk_is_due(self, arrived_s: float, alone_s: float, now_s: float) -> bool:
        """Whether bulk work leads before interactive work: a sequence that came then, and takes `alone_s`."""
        return now_s >= max(self._bulk_paid_s, arrived_s + alone_s / (BULK_SHARE * self.narrow))

    def given_s(self, model: Hashable, now_s: float) -> float:
        """Lane seconds that this model was given of late: only good to compare it with another one."""
        given_s, then_s = self._given_s.get(model, (0.0, now_s))
        return given_s * exp((then_s - now_s) / _MEMORY_S)

    def forget(self, model: Hashable) -> None:
        """This model is served no more."""
        self._given_s.pop(model, None)

    def start(self, lane: int, now_s: float, predicted_s: float, bulk: bool = False, model: Hashable = None) -> None:
        """A batch of this model, which a bulk sequence leads or not, starts on `lane`, or is prepared for it.

        Raises ValueError if one is prepared, or all cores run.
        """
        self._pass(now_s)
        if bulk:
            self._bulk_paid_s = now_s + predicted_s / (BULK_SHARE * self.narrow)
        if lane == self.wide and self.all_free:
            self._wide_runs = True
        elif lane in self.free:
            self._idle.remove(lane)
            self._ends_s[lane] = now_s + predicted_s
        elif lane in self._ends_s and lane not in self._prepared_s:
            self._prepared_s[lane] = predicted_s
        else:
            raise ValueError(f"lane {lane} is not free")
        lanes = self.narrow if lane == self.wide else 1
        self._given_s[model] = self.given_s(model, now_s) + predicted_s * lanes, now_s

    def done(self, lane: int, now_s: float) -> None:
        """The batch on `lane` ended, and the prepared one runs. Raises ValueError if none ran there."""
        self._pass(now_s)
        if lane == self.wide and self._wide_runs:
            self._wide_runs = False
        elif lane in self._prepared_s:
            self._ends_s[lane] = now_s + self._prepared_s.pop(lane)
        elif lane in self._ends_s:
            del self._ends_s[lane]
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
