"""What a soak found: whether it holds, as a table for a person, and as docs/soak.md with its curves."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from soak.flat import WARM_UP, Growth, Point, growth
from soak.samples import Sample
from soak.traffic import Tally

MIB = 1 << 20
ALLOWED_MIB, ALLOWED_SHARE = 32.0, 0.05
"""How far memory may grow once warm: the greater of the two, the latter of what it was by then."""
ALLOWED_COUNT = 3.0
"""Descriptors, threads: a connection may be about to close, a thread of a pool about to end."""
ALLOWED_SERIES = 0.02
"""Of the series of metrics: a label may have a value for the first time late, a version may leave none."""

_JUDGED_ROUNDS = 20
"""Memory under load varies by hundreds of MiB, as batches and versions come and go: so many rounds make a trend."""


@dataclass
class Report:
    """A whole run."""

    seed: int
    minutes: float
    rate_per_s: float
    swaps: int
    tally: Tally
    busy: list[Sample]
    resting: list[Sample]
    unsettled: str = ""
    outcomes: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    log: list[str] = field(default_factory=list)
    exit_code: int = 0
    foreign_share: float = 0.0
    """Of all cores, what neither idled nor worked for the soak."""

    @property
    def until_s(self) -> float:
        """When the last rest was."""
        return self.resting[-1].at_s

    def at_rest(self, value: Callable[[Sample], float]) -> list[Point]:
        """A curve with one point for each rest."""
        return [Point(one.at_s, value(one)) for one in self.resting]

    def under_load(self, value: Callable[[Sample], float]) -> list[Point]:
        """A curve with one point for each round: the median, since two versions are loaded for a part of it."""
        points, begins_s = [], 0.0
        for rest in self.resting:
            values = [value(one) for one in self.busy if begins_s <= one.at_s < rest.at_s]
            points.append(Point((begins_s + rest.at_s) / 2, statistics.median(values)))
            begins_s = rest.at_s
        return points

    def rest_at(self, share: float) -> Sample:
        """The first rest when so much of the time was over."""
        return next(one for one in self.resting if one.at_s >= share * self.until_s)

    @property
    def probes_ms(self) -> tuple[float, float, float]:
        """The median, the 99th percentile and the longest of the answers of grpc.health.v1 under load."""
        median, p99, longest = np.percentile([1000 * one.probe_s for one in self.busy], [50, 99, 100])
        return float(median), float(p99), float(longest)


@dataclass(frozen=True)
class Verdict:
    """Something that has to hold, and what was found."""

    what: str
    holds: bool
    found: str


def verdicts(report: Report) -> list[Verdict]:
    """Everything that a soak is about."""
    tally = report.tally
    failed = sum(ends[code] for ends in tally.ends.values() for code in ("INTERNAL", "UNKNOWN"))
    failed += report.codes["INTERNAL"] + report.codes["UNKNOWN"]
    open_calls = tally.begun - tally.ended + tally.lost
    finished = ", ".join(f"{count:,} {outcome}" for outcome, count in report.outcomes.most_common())
    return [
        Verdict("calls without an end", not open_calls, str(open_calls)),
        Verdict("wrong answers or ends", not tally.wrong, "; ".join([str(len(tally.wrong)), *tally.wrong[:5]])),
        Verdict("INTERNAL, UNKNOWN", not failed, str(failed)),
        Verdict("accepted = answered, failed, expired, cancelled", not report.unsettled, report.unsettled or finished),
        Verdict("errors and exceptions in the log", not report.log, "; ".join([str(len(report.log)), *report.log[:5]])),
        Verdict("exit code after SIGTERM", report.exit_code == 0, str(report.exit_code)),
        *_flat(report),
    ]  # fmt: skip


def _flat(report: Report) -> Iterator[Verdict]:
    warm = report.rest_at(WARM_UP)
    memory = max(ALLOWED_MIB, ALLOWED_SHARE * rss_mib(warm))
    if len(report.resting) >= _JUDGED_ROUNDS:
        busy = growth(report.under_load(rss_mib), report.until_s)
        yield _verdict("memory under load, MiB", busy, busy.trend, memory)
    for what, value, allowed in (
        ("memory at rest, MiB", rss_mib, memory),
        ("descriptors at rest", _descriptors, ALLOWED_COUNT),
        ("threads at rest", _threads, ALLOWED_COUNT),
        ("series of metrics", _series, ALLOWED_SERIES * warm.series),
    ):
        found = growth(report.at_rest(value), report.until_s)
        yield _verdict(what, found, found.worst, allowed)
    kept = [one.versions for one in report.resting if len(one.versions) != 1]
    yield Verdict("versions at rest, of one", not kept, str(kept or 1))


def _verdict(what: str, found: Growth, counts: float, allowed: float) -> Verdict:
    told = f"trend {found.trend:+.1f}, last quarter over the second {found.rise:+.1f}; allowed {allowed:.1f}"
    return Verdict(f"growth of {what}", counts < allowed, told)


def rss_mib(sample: Sample) -> float:
    """Resident memory."""
    return sample.rss_bytes / MIB


def _descriptors(sample: Sample) -> float:
    return sample.descriptors


def _threads(sample: Sample) -> float:
    return sample.threads


def _series(sample: Sample) -> float:
    return sample.series


def console_table(report: Report) -> None:
    """On stdout."""
    drawn = Table("what", "found", title=f"soak: {load(report)}", title_justify="left")
    for one in verdicts(report):
        drawn.add_row(one.what, f"[{'green' if one.holds else 'red'}]{escape(one.found)}")
    Console(width=150).print(drawn)


def load(report: Report) -> str:
    """In words."""
    calls = f"{report.tally.begun:,} calls, {report.rate_per_s:.1f} a second"
    return f"{report.until_s / 60:.1f} minutes, {calls}, {report.swaps} swaps"
