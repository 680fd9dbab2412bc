"""The machine: who took its CPU, and what it is."""

import os
import platform
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil

_STAT = Path("/proc/stat")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Places in the cpu line of /proc/stat, proc_stat(5). Interrupts are left out: most are the loopback's, so our own,
# yet are counted for no process. What the hypervisor gave to others (steal) is in.
_USER, _NICE, _SYSTEM, _STEAL = 0, 1, 2, 7


@dataclass(frozen=True)
class CpuTimes:
    """At one moment of the monotonic clock: CPU seconds of the whole machine, and of this process and its children."""

    at_s: float
    machine_s: float
    own_s: float


def busy_s(stat: str, ticks_per_s: int) -> float:
    """CPU seconds in which any core was not idle, from the text of /proc/stat. Raises ValueError if it is none."""
    name, *fields = stat.splitlines()[0].split() if stat else [""]
    if name != "cpu" or len(fields) <= _STEAL:
        raise ValueError("this is not /proc/stat")
    return sum(int(fields[place]) for place in (_USER, _NICE, _SYSTEM, _STEAL)) / ticks_per_s


def foreign_share(before: CpuTimes, after: CpuTimes, cores: int) -> float:
    """The share, 0 to 1, of all cores that neither idled nor worked for the bench between two moments."""
    foreign_s = (after.machine_s - before.machine_s) - (after.own_s - before.own_s)
    # Clock ticks of 10 ms round either way: a small negative is none.
    return max(0.0, foreign_s / (cores * (after.at_s - before.at_s)))


def process_s(pid: int) -> float:
    """CPU seconds of one process so far."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def cpu_times() -> CpuTimes:
    """Now. Children that have ended meanwhile are missing: start and stop none between two looks."""
    own_s = process_s(os.getpid())
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            own_s += process_s(child.pid)
    return CpuTimes(time.monotonic(), busy_s(_STAT.read_text(), _TICKS_PER_S), own_s)


def cores() -> int:
    """Of the machine, whether or not this process may use them."""
    return os.cpu_count() or 1


def usable_cores() -> int:
    """What this process may use: as many lanes and threads does everybody get."""
    return len(os.sched_getaffinity(0))


def description() -> dict[str, str]:
    """What a reader needs to compare."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    families = [line.partition(":")[2].strip() for line in lines if line.startswith(("cpu family", "model\t"))]
    return {
        "cpu": f"{names[0] if names else platform.processor()} (family, model {', '.join(families[:2])})",
        "cores": f"{cores()}, of which {usable_cores()} usable: so many lanes of one thread each",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("harken", "onnxruntime", "grpcio", "numpy")),
    }
