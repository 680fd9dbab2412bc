"""One frame: tables that fit into 80 columns and 24 lines. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from harken_client.top.figures import Figures

_LEVELS = "▁▂▃▄▅▆▇█"
_NOTHING = "-"
_FULL = 0.9
# Lines beside those of the servers: the title, three headings with a blank line before each, the totals of two.
_OTHER_LINES = 9
_TABLES = 3
_MORE_OF_TROUBLE = 2
_NAME_WIDTH = 21
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True, slots=True)
class Row:
    """A server; or why it has no figures."""

    name: str
    figures: Figures | None
    trouble: str


def frame(rows: Sequence[Row], together: Figures | None, interval_s: float, height: int) -> RenderableType:
    """All servers, and a line for them together. Of more than `height` lines hold, the first."""
    shown = rows[: max((height - _OTHER_LINES) // _TABLES, 1)]
    more = f", {len(rows) - len(shown)} more are only in the sums" if len(shown) < len(rows) else ""
    up = sum(row.figures is not None for row in rows)
    troubled = sum(row.figures is None for row in shown)
    wraps = _OTHER_LINES + _TABLES * len(shown) + _MORE_OF_TROUBLE * troubled <= height
    title = Text(f"harken top: {up} of {len(rows)} up, over the last {interval_s:g} s{more}", style="bold")
    sums = [Row("together", together, "")] if together else []
    return Group(
        title, Text(), _traffic([*shown, *sums]), Text(), _work([*shown, *sums]), Text(), _machine(shown, wraps=wraps)
    )


def _traffic(rows: Sequence[Row]) -> Table:
    def cells(figures: Figures) -> list[str]:
        return [
            _number(figures.sequences), _number(figures.calls), _bad(figures.refused), _bad(figures.failed),
            _time(figures.p50_s), _time(figures.p95_s), _time(figures.p99_s),
        ]  # fmt: skip

    return _table(("seq/s", "calls/s", "refused/s", "failed/s", "p50", "p95", "p99"), rows, cells)


def _work(rows: Sequence[Row]) -> Table:
    def cells(figures: Figures) -> list[str]:
        shape = _NOTHING
        if figures.batch_sequences is not None and figures.batch_length is not None:
            shape = f"{figures.batch_sequences:.1f}x{figures.batch_length:.0f}"
        why = [_plain(f"{why} {100 * share:.0f}%") for why, share in figures.closed_by.items()]
        return [
            _number(figures.waiting), _time(figures.wait_s), _number(figures.batches), shape,
            _percent(figures.padding_share), why[0] if why else _NOTHING,
        ]  # fmt: skip

    return _table(("waiting", "wait", "batches/s", "shape", "padding", "closed by"), rows, cells)


def _machine(rows: Sequence[Row], *, wraps: bool) -> Table:
    """`wraps`: there are lines for the whole of what is wrong; else its end is cut."""
    table = _table(("memory", "batches/budget", "busy"), [], lambda _: [])
    table.add_column("lanes, or what is wrong", no_wrap=not wraps, overflow="ellipsis", ratio=1)
    for row in rows:
        if row.figures is None:
            table.add_row(f"[red]{_plain(row.name)}[/]", *[_NOTHING] * 3, f"[red]{_plain(row.trouble)}[/]")
        else:
            table.add_row(_plain(row.name), *_machine_cells(row.figures))
    return table


def _machine_cells(figures: Figures) -> list[str]:
    memory, batches = figures.rss_bytes, f"{_size(figures.batch_bytes)}/{_size(figures.budget_bytes)}"
    if figures.gpu_total_bytes:
        memory = figures.gpu_used_bytes
    busy = figures.busy_share
    style = "yellow" if (busy or 0.0) >= _FULL else "green"
    narrow = "".join(_level(share) for name, share in figures.lanes.items() if name != "wide")
    wide = f" wide {_level(figures.lanes['wide'])}" if "wide" in figures.lanes else ""
    return [_size(memory), batches, _percent(busy), f"[{style}]{narrow}{wide}[/]"]


def _table(headings: Sequence[str], rows: Sequence[Row], cells: Callable[[Figures], list[str]]) -> Table:
    table = Table(box=None, pad_edge=False, expand=True, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("server", width=_NAME_WIDTH, no_wrap=True, overflow="ellipsis")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        if row.figures is None:
            table.add_row(f"[red]{_plain(row.name)}[/]", *[_NOTHING] * len(headings))
        else:
            table.add_row(_plain(row.name), *cells(row.figures))
    return table


def _plain(text: str) -> str:
    """What others wrote: no markup, and nothing that a terminal obeys."""
    return escape("".join(character if character.isprintable() else "?" for character in text))


def _level(share: float) -> str:
    """A lane, as high as it is busy."""
    return _LEVELS[min(int(share * len(_LEVELS)), len(_LEVELS) - 1)]


def _number(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _bad(value: float) -> str:
    return f"[red]{_number(value)}[/]" if value else _number(value)


def _percent(share: float | None) -> str:
    return _NOTHING if share is None else f"{100 * share:.0f} %"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return _NOTHING
    if seconds < 1.0:
        return f"{1000 * seconds:.1f} ms" if seconds < 0.1 else f"{1000 * seconds:.0f} ms"
    return f"{seconds:.1f} s"


def _size(size_bytes: float) -> str:
    unit = 0
    while size_bytes >= 1000 and unit < len(_UNITS) - 1:
        size_bytes, unit = size_bytes / 1024, unit + 1
    return f"{size_bytes:.3g} {_UNITS[unit]}"
