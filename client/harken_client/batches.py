"""Batches for a person, and for a program: as a table, and as lines of JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.markup import escape
from rich.table import Table

from harken_client.values import Batch, BatchMember


def json_line(batch: Batch) -> str:
    """Every field, and the shares that follow from them."""
    return json.dumps({**asdict(batch), "padding_share": batch.padding_share, "saved_share": batch.saved_share})


def table(batches: Sequence[Batch]) -> Table:
    """A row for each batch, in the order given. `batches` is one answer of the server: its flows are compared."""
    made = Table("batch", "who rode, and why no more", "what it took", show_lines=True, caption="* led the batch")
    made.columns[0].no_wrap = True
    made.columns[2].no_wrap = True
    for batch in batches:
        made.add_row(_name(batch), _riders(batch), _cost(batch))
    return made


def _name(batch: Batch) -> str:
    return f"{batch.number}, lane {batch.lane}\n{_time(batch.age_s)} ago\n{escape(batch.model)}/{batch.version}"


def _riders(batch: Batch) -> str:
    """Lengths, the leader's marked, a line for each call; and what came of it."""
    flows: dict[int, list[BatchMember]] = {}
    for member in batch.members:
        flows.setdefault(member.flow, []).append(member)
    lines = [f"{batch.sequences} sequences" if batch.sequences > 1 else "one sequence"]
    lines += [_flow(flow, members, batch.members[0]) for flow, members in flows.items()]
    if batch.sequences > len(batch.members):
        lines.append(f"and {batch.sequences - len(batch.members)} more")
    fates = [("failed", batch.failed), ("left while it ran", batch.left), ("wait again", batch.waits_again)]
    told = ", ".join(f"{count} {fate}" for fate, count in fates if count)
    if told:
        lines.append(told)
    if batch.split:
        lines.append("the engine failed on them together, so the batch was split")
    lines.append(f"{batch.closed_by}: {batch.why}")
    return "\n".join(lines)


def _flow(flow: int, members: Sequence[BatchMember], leader: BatchMember) -> str:
    lengths = " ".join(f"{member.length}{'*' if member is leader else ''}" for member in members)
    least_s, most_s = min(member.waited_s for member in members), max(member.waited_s for member in members)
    waited = _time(most_s) if _time(least_s) == _time(most_s) else f"{_time(least_s)} to {_time(most_s)}"
    bulk = " (bulk)" if members[0].priority == "bulk" else ""
    return f"call {flow}{bulk}: {lengths}, waited {waited}"


def _cost(batch: Batch) -> str:
    lines = [f"padded to {batch.padded_length}, {100 * batch.padding_share:.0f} % padding"]
    lines.append(f"predicted {_time(batch.predicted_s)}")
    lines.append(f"took {_time(batch.lane_s)}")
    if batch.sequences > 1:
        lines.append(f"alone {_time(batch.alone_s)}, saves {100 * batch.saved_share:.0f} %")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    if seconds < 1.0:
        return f"{seconds * 1000:.1f} ms"
    return f"{seconds:.1f} s" if seconds < 100.0 else f"{seconds / 60:.0f} min"
