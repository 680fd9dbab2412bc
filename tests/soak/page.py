"""docs/soak.md and docs/soak.svg."""

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from bench import machine
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from soak.flat import WARM_UP
from soak.report import Report, load, rss_mib, verdicts
from soak.samples import Sample
from soak.traffic import FATES, KINDS, UNDER_WAY

_CODES = {
    "OK": "answered", "left": "caller left", "DEADLINE_EXCEEDED": "too late", "RESOURCE_EXHAUSTED": "refused for now",
    "INVALID_ARGUMENT": "bad input", "NOT_FOUND": "not found",
}  # fmt: skip


def write(report: Report, docs: Path) -> None:
    """Both."""
    draw(report, docs / "soak.svg")
    (docs / "soak.md").write_text(_page(report))


def draw(report: Report, svg: Path) -> None:
    """Memory, descriptors and threads over time, under load and at rest."""
    # The same figures give the same bytes, so that the file's history shows changes of figures only.
    with mpl.rc_context({"svg.hashsalt": "harken", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(9.5, 5.4), layout="constrained")
        memory, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        _curve(memory, report, "memory", "#0b6e4f", rss_mib)
        _curve(counts, report, "descriptors", "#3b6fb6", lambda one: one.descriptors)
        _curve(counts, report, "threads", "#b5532a", lambda one: one.threads)
        memory.set_ylabel("resident memory, MiB")
        counts.set_ylabel("descriptors, threads")
        counts.set_xlabel("minutes")
        for axes in (memory, counts):
            axes.set_ylim(bottom=0)
            axes.axvline(WARM_UP * report.until_s / 60, color="black", linestyle=":", linewidth=1)
            axes.grid(alpha=0.3)
            axes.legend(loc="lower right", fontsize=8, ncols=2)
        figure.savefig(svg, metadata={"Date": None})


def _curve(axes: Axes, report: Report, name: str, color: str, value: Callable[[Sample], float]) -> None:
    for samples, kind, style in (
        (report.busy, "under load", {"linewidth": 0.7, "alpha": 0.6}),
        (report.resting, "at rest", {"marker": "o", "markersize": 3.5, "linewidth": 1.6}),
    ):
        minutes = [one.at_s / 60 for one in samples]
        axes.plot(minutes, [value(one) for one in samples], color=color, label=f"{name} {kind}", **style)


def _page(report: Report) -> str:
    tally, told = report.tally, machine.description()
    rests = {share: report.rest_at(share) for share in (WARM_UP, 0.5, 1.0)}
    median_ms, p99_ms, longest_ms = report.probes_ms
    found = [[one.what, one.found if one.holds else f"{one.found} (**broken**)"] for one in verdicts(report)]
    health = f"median {median_ms:.1f}, p99 {p99_ms:.0f}, longest {longest_ms:.0f}"
    looks: list[tuple[str, Callable[[Sample], float]]] = [
        ("memory, MiB", rss_mib),
        ("descriptors", lambda one: one.descriptors),
        ("threads", lambda one: one.threads),
        ("series of metrics", lambda one: one.series),
    ]
    at_rest = [[name, *(f"{value(one):.0f}" for one in rests.values())] for name, value in looks]
    calls = [[kind.name, *(f"{tally.ends[kind.name][code]:,}" for code in _CODES)] for kind in KINDS]
    return _PAGE.format(
        load=load(report),
        seed=report.seed,
        machine=f"{told['cpu']}; cores: {told['cores']}; {told['system']}; {told['versions']}",
        foreign=f"{report.foreign_share:.0%}",
        under_way=UNDER_WAY,
        late=tally.late,
        fates=len(FATES),
        found=_table(["", ""], [*found, ["health answered under load, ms", health]]),
        at_rest=_table(["at rest, after", *(f"{share:.0%} of the time" for share in rests)], at_rest),
        calls=_table(["calls", *_CODES.values()], calls),
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


_PAGE = """# Soak

Mixed calls for half an hour on one server over the real model, while versions are swapped: whether an answer was
lost or wrong, and whether memory, descriptors, threads or series of metrics grew. This page is written by `make soak`;
`make soak MINUTES=2` is the short form, which every commit has to pass.

{load}; seed {seed}. Calls and swaps of the start are counted too.
Machine: {machine}.
Client and server share the cores; others took {foreign} of them meanwhile.

![memory, descriptors and threads over time](soak.svg)

## What is done

- First each of 200 inputs (1 to 512 tokens, the logarithm of the length uniform; half of them texts) is encoded alone,
  `deterministic`, as a sentence and as its tokens. Every later answer is held against that, whatever its edge, its
  form and its version: vectors of length 1 within 1e-5, others within 1e-4, fewer
  bits within their rounding.
- Calls come at their own times (Poisson), at 0.4 of what the machine answers when 8 callers ask without a pause.
  At most {under_way} are under way, so that a slow machine has a slower load, not a longer backlog;
  {late} calls waited for that.
- Where a call allows it, one in {fates} is left by its caller in the middle, and one in {fates} has a deadline that
  passes.
- A round is a minute of this, with one swap in its middle: a version is released by a rename, by turns at SIGHUP and
  by RepositoryModelLoad; both are served for a while; the old one is retired. Three health Watches are open, and
  /metrics is scraped every 2 s.
- Then all connections are closed, and the server is looked at once it rests: what is there then depends on no load.

## What was found

{found}

Trend: the median slope of all pairs of points after the first fifth of the time (Theil-Sen), times what is left of it;
a point for each rest or, under load, the median of each round. Memory may grow by 32 MiB or 5 %, whichever is more.
Before the clock starts there are 6 swaps, after which what versions leave in the C library's heaps is used again.
`tests/soak/test_flat.py` holds that the rule notices a leak.

{at_rest}

{calls}

A stream counts once. Bad input has to be refused with its own code; some of a stream's inputs are bad too, and are
told so in their places. `refused for now` are deadlines which the server saw that it could not meet.
"""
