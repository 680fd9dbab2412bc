"""`make soak`: half an hour of mixed calls and swaps on a real server, and whether anything grew.

    PYTHONPATH=tests python -m soak.run --models models [--minutes 2] [--docs docs]

Ends with 1 if an answer was lost or wrong, or memory, descriptors, threads or series of metrics are not flat.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from bench import machine
from chaos.exactly_once import unsettled
from harken_client import HarkenError
from soak.edges import Edges, opened
from soak.inputs import Pool
from soak.report import Report, console_table, verdicts
from soak.samples import Sampler, totals
from soak.swaps import Swaps
from soak.traffic import TIMEOUT_S, Traffic
from support.server import RunningServer, running_server
from support.web import MODEL

LOAD = 0.4
"""Of what the machine answers when callers ask without a pause."""
_CAPACITY_S = 10.0
_WARM_SWAPS = 6
"""So many until what versions leave in the C library's heaps is used again, and no longer grows."""
_ROUND_S = (12.0, 60.0)
"""Of a round at least and at most: one swap in the middle of calls, then a rest with every connection closed."""
_ROUNDS, _LEAST_ROUNDS = 20, 8
_LEVELS = ("debug", "info", "warning")
"""Of log lines that are none of a bug; what has no level came from somebody else."""
_OPTIONS = ("--model-control", "--result-cache-bytes", "65536", "--max-request-s", str(TIMEOUT_S))


async def soak(server: RunningServer, swaps: Swaps, sampler: Sampler, minutes: float, seed: int) -> Report:
    """All of it."""
    async with opened(server) as edges:
        pool = await Pool.learned(edges.client, seed)
        traffic = Traffic(pool, seed)
        for _ in range(_WARM_SWAPS):
            await traffic.each_kind_once(edges)
            await swaps.swap(edges, both_s=0.0)
        rate_per_s = LOAD * await traffic.capacity_per_s(edges, _CAPACITY_S)
    round_s = min(max(60 * minutes / _ROUNDS, _ROUND_S[0]), _ROUND_S[1])
    before = machine.cpu_times()
    sampler.started_s = before.at_s
    # Where a swap takes long a curve needs its points all the same.
    while time.monotonic() - sampler.started_s < 60 * minutes or len(sampler.resting) < _LEAST_ROUNDS:
        sampler.works(True)
        async with opened(server) as edges:
            await _round(edges, traffic, swaps, rate_per_s, round_s)
        sampler.works(False)
        await asyncio.to_thread(sampler.rest)
    return Report(
        seed=seed,
        minutes=minutes,
        rate_per_s=rate_per_s,
        swaps=swaps.version - 1,
        tally=traffic.tally,
        busy=sampler.busy,
        resting=sampler.resting,
        foreign_share=machine.foreign_share(before, machine.cpu_times(), machine.cores()),
    )


async def _round(edges: Edges, traffic: Traffic, swaps: Swaps, rate_per_s: float, round_s: float) -> None:
    done = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        watches = [tasks.create_task(_watch(edges, traffic, name)) for name in ("", MODEL, f"{MODEL}/{swaps.version}")]
        tasks.create_task(traffic.run(edges, rate_per_s, done))
        ends_s = time.monotonic() + round_s
        await asyncio.sleep(round_s / 4)
        await swaps.swap(edges, both_s=round_s / 8)
        await asyncio.sleep(max(0.0, ends_s - time.monotonic()))
        done.set()
        for watch in watches:
            watch.cancel()


async def _watch(edges: Edges, traffic: Traffic, service: str) -> None:
    """The model is served all the time, and only a version may end."""
    with suppress(HarkenError):
        async for status in edges.client.watch_health(service):
            if status != "SERVING" and "/" not in service:
                traffic.tally.wrong.append(f"health of {service!r} was {status}")


def after(server: RunningServer, report: Report) -> None:
    """What the server counted, and how it ends."""
    report.unsettled = unsettled(server)
    report.outcomes = totals(server, "harken_finished_total", "outcome")
    report.codes = totals(server, "harken_requests_total", "code")
    server.terminate()
    report.exit_code = server.wait_exit()
    report.log = [str(line) for line in server.log if line.get("exception") or line.get("level") not in _LEVELS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--docs", type=Path, help="where the report is written, soak.md and soak.svg")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="harken-soak-") as folder:
        models = Path(folder) / "models"
        models.mkdir()
        swaps = Swaps(arguments.models / MODEL / "1", models)
        with running_server(models, *_OPTIONS, "--state-dir", folder) as server:
            sampler = Sampler(server)
            try:
                report = asyncio.run(soak(server, swaps, sampler, arguments.minutes, arguments.seed))
            finally:
                sampler.stop()
            after(server, report)
    console_table(report)
    if arguments.docs:
        # Only who draws needs what draws.
        from soak.page import write  # noqa: PLC0415

        write(report, arguments.docs)
    if broken := [one for one in verdicts(report) if not one.holds]:
        sys.exit("; ".join(f"{one.what}: {one.found}" for one in broken))


if __name__ == "__main__":
    main()
