"""What this process may use of the machine: cores and memory, by affinity and by cgroup, version 1 or 2."""

import os
import platform
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

# Version 1 writes "no limit" as the largest page-aligned number.
_UNLIMITED_BYTES: Final = 1 << 60


@dataclass(frozen=True, slots=True)
class Usable:
    """An amount, and what set it."""

    amount: int
    by: str


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """What may be used, how much of that is left, and what set it."""

    limit_bytes: int
    left_bytes: int
    by: str


@dataclass(frozen=True)
class Cgroups:
    """The cgroup folders of this process, from its own up to the root, read from /proc."""

    proc: Path = Path("/proc/self")

    def cpu_quota(self) -> tuple[float, str] | None:
        """The least CPU quota on the way up, in cores, and its file. None without one."""
        quotas: list[tuple[float, str]] = []
        for folder in self._folders("cpu"):
            for name, parse in (("cpu.max", _cores_v2), ("cpu.cfs_quota_us", _cores_v1)):
                cores = parse(folder / name)
                if cores is not None:
                    quotas.append((cores, str(folder / name)))
        return min(quotas, default=None)

    def memory_left_bytes(self) -> tuple[int, str] | None:
        """The least of limit less use on the way up, in bytes, and its file. None without a limit."""
        return min(((limit.left_bytes, limit.by) for limit in self.memory_limits()), default=None)

    def memory_limits(self) -> Iterator[MemoryLimit]:
        """Each limit on the way up; `by` is its file."""
        for folder in self._folders("memory"):
            for limit_name, used_name in (
                ("memory.max", "memory.current"),
                ("memory.limit_in_bytes", "memory.usage_in_bytes"),
            ):
                limit, used = _number(folder / limit_name), _number(folder / used_name)
                if limit is not None and used is not None and limit < _UNLIMITED_BYTES:
                    reclaimable = _inactive_file_bytes(folder / "memory.stat")
                    yield MemoryLimit(limit, max(limit - used + reclaimable, 0), str(folder / limit_name))

    def _folders(self, controller: str) -> Iterator[Path]:
        """This process' folder in the hierarchy of `controller` (version 1, and the unified one), and its parents."""
        try:
            memberships = (self.proc / "cgroup").read_text().splitlines()
            mounts = (self.proc / "mountinfo").read_text().splitlines()
        except OSError:
            return
        for mount in mounts:
            fields = mount.split(" ")
            separator = fields.index("-")
            root, mount_point, kind = fields[3], Path(fields[4]), fields[separator + 1]
            options = fields[separator + 3].split(",")
            if kind == "cgroup2":
                wanted = ""
            elif kind == "cgroup" and controller in options:
                wanted = controller
            else:
                continue
            for membership in memberships:
                _, controllers, path = membership.split(":", 2)
                if wanted in controllers.split(","):
                    yield from _upwards(mount_point, root, path)


def usable_cores(cgroups: Cgroups) -> Usable:
    """The least of the CPU affinity and the cgroup's quota (rounded down), at least 1."""
    affinity = len(os.sched_getaffinity(0))
    quota = cgroups.cpu_quota()
    if quota is not None and quota[0] < affinity:
        return Usable(max(int(quota[0]), 1), quota[1])
    return Usable(affinity, "affinity")


def usable_memory_bytes(cgroups: Cgroups) -> Usable:
    """The least of what the machine has free and of the cgroup's limit less what is in use."""
    free = psutil.virtual_memory().available
    left = cgroups.memory_left_bytes()
    if left is not None and left[0] < free:
        return Usable(*left)
    return Usable(free, "free memory of the machine")


def nearest_memory_limit(cgroups: Cgroups) -> MemoryLimit:
    """The limit of which the smallest share is left: the machine's memory, a cgroup's, or RLIMIT_AS of the process."""
    machine = psutil.virtual_memory()
    limits = [MemoryLimit(machine.total, machine.available, "memory of the machine"), *cgroups.memory_limits()]
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY:
        left = address_space - psutil.Process().memory_info().vms
        limits.append(MemoryLimit(address_space, max(left, 0), "RLIMIT_AS"))
    return min(limits, key=lambda limit: limit.left_bytes / max(limit.limit_bytes, 1))


def processor_name() -> str:
    """The processor's own name for itself, as far as the system tells."""
    for line in (_read(Path("/proc/cpuinfo")) or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def _upwards(mount_point: Path, root: str, path: str) -> Iterator[Path]:
    # Inside a container the mount may show a part of the hierarchy only: `root` is what lies at its top.
    inside = Path(path).relative_to(root) if Path(path).is_relative_to(root) else Path(path.lstrip("/"))
    if ".." in inside.parts:
        inside = Path()
    folder = mount_point / inside
    if not folder.exists():
        folder = mount_point
    while True:
        yield folder
        if folder == mount_point:
            return
        folder = folder.parent


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text is not None and text.lstrip("-").isdigit() else None


def _cores_v2(path: Path) -> float | None:
    text = _read(path)
    if text is None:
        return None
    quota, period = text.split()
    return None if quota == "max" else int(quota) / int(period)


def _cores_v1(path: Path) -> float | None:
    quota, period = _number(path), _number(path.with_name("cpu.cfs_period_us"))
    return None if quota is None or period is None or quota <= 0 else quota / period


def _inactive_file_bytes(path: Path) -> int:
    """Page cache that the kernel drops before it refuses memory; a limit's `use` counts it."""
    stat = dict(line.split(" ", 1) for line in (_read(path) or "").splitlines() if " " in line)
    # Version 1 counts children only in the totals.
    return int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
