"""What of the machine is usable: under real cgroups where we may make them, and under written ones elsewhere."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from harken_server.telemetry.machine import Cgroups, nearest_memory_limit, usable_cores, usable_memory_bytes

MIB = 1 << 20


def world(tmp_path: Path, cgroup: str, mountinfo: str, files: dict[str, str]) -> Cgroups:
    """A /proc/self and a cgroup tree with these contents."""
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(cgroup)
    (proc / "mountinfo").write_text(mountinfo.replace("ROOT", str(tmp_path)))
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return Cgroups(proc)


V2 = "30 23 0:27 / ROOT/cg rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


def test_version_2_limits_hold_on_every_level(tmp_path: Path) -> None:
    cgroups = world(
        tmp_path,
        "0::/pods/pod1\n",
        V2,
        {
            "cg/cgroup.controllers": "cpu memory",
            "cg/pods/cpu.max": "50000 100000\n",
            "cg/pods/pod1/cpu.max": "max 100000\n",
            "cg/pods/memory.max": "max\n",
            "cg/pods/memory.current": f"{500 * MIB}\n",
            "cg/pods/pod1/memory.max": f"{100 * MIB}\n",
            "cg/pods/pod1/memory.current": f"{60 * MIB}\n",
            "cg/pods/pod1/memory.stat": f"anon 5\ninactive_file {20 * MIB}\n",
        },
    )
    assert cgroups.cpu_quota() == (0.5, f"{tmp_path}/cg/pods/cpu.max")
    assert cgroups.memory_left_bytes() == (60 * MIB, f"{tmp_path}/cg/pods/pod1/memory.max")
    nearest = nearest_memory_limit(cgroups)
    assert (nearest.limit_bytes, nearest.left_bytes) == (100 * MIB, 60 * MIB)
    assert nearest.by == f"{tmp_path}/cg/pods/pod1/memory.max"
    assert usable_cores(cgroups).amount == 1
    assert usable_memory_bytes(cgroups).amount == 60 * MIB


def test_version_1_limits_hold_and_a_container_sees_its_own_part_of_the_tree(tmp_path: Path) -> None:
    cgroups = world(
        tmp_path,
        "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n0::/\n",
        "31 30 0:28 /docker/abc ROOT/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
        "32 30 0:29 /docker/abc ROOT/memory rw - cgroup cgroup rw,memory\n",
        {
            "cpu/cpu.cfs_quota_us": "150000\n",
            "cpu/cpu.cfs_period_us": "100000\n",
            "memory/memory.limit_in_bytes": f"{64 * MIB}\n",
            "memory/memory.usage_in_bytes": f"{80 * MIB}\n",
            "memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {10 * MIB}\n",
        },
    )
    assert cgroups.cpu_quota() == (1.5, f"{tmp_path}/cpu/cpu.cfs_quota_us")
    assert cgroups.memory_left_bytes() == (0, f"{tmp_path}/memory/memory.limit_in_bytes")
    assert usable_cores(cgroups).amount == 1


def test_no_limit_and_no_proc_leave_the_machine_itself(tmp_path: Path) -> None:
    unlimited = world(
        tmp_path,
        "4:memory:/\n2:cpu:/\n",
        "31 30 0:28 / ROOT/cpu rw - cgroup cgroup rw,cpu\n32 30 0:29 / ROOT/memory rw - cgroup cgroup rw,memory\n",
        {
            "cpu/cpu.cfs_quota_us": "-1\n",
            "cpu/cpu.cfs_period_us": "100000\n",
            "memory/memory.limit_in_bytes": "9223372036854771712\n",
            "memory/memory.usage_in_bytes": "1\n",
        },
    )
    for cgroups in (unlimited, Cgroups(tmp_path / "absent")):
        assert (cgroups.cpu_quota(), cgroups.memory_left_bytes()) == (None, None)
        assert usable_cores(cgroups).amount == len(os.sched_getaffinity(0))
        assert usable_cores(cgroups).by == "affinity"
        assert 0 < usable_memory_bytes(cgroups).amount <= psutil.virtual_memory().total


def report_of_a_process(setup: str = "") -> dict[str, object]:
    """What a fresh process finds usable, after running `setup` in itself."""
    program = f"""
import json, os
{setup}
from harken_server.telemetry.machine import Cgroups, usable_cores, usable_memory_bytes
cores, memory = usable_cores(Cgroups()), usable_memory_bytes(Cgroups())
print(json.dumps([cores.amount, cores.by, memory.amount, memory.by]))
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    return dict(zip(("cores", "cores_by", "memory", "memory_by"), json.loads(done.stdout), strict=True))


@pytest.fixture
def cgroup() -> Iterator[dict[str, Path]]:
    """A fresh cgroup of our own for CPU and memory, version 1 or 2, whichever this machine has."""
    name = f"harken-test-{os.getpid()}"
    v1 = {kind: Path("/sys/fs/cgroup") / kind / name for kind in ("cpu", "memory")}
    v2 = Path("/sys/fs/cgroup") / name
    folders = v1 if v1["cpu"].parent.is_dir() else {"cpu": v2, "memory": v2}
    try:
        for folder in dict.fromkeys(folders.values()):
            folder.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    yield folders
    for folder in dict.fromkeys(folders.values()):
        folder.rmdir()


def test_a_real_cgroup_limits_cores_and_memory(cgroup: dict[str, Path]) -> None:
    try:
        if (cgroup["cpu"] / "cpu.cfs_quota_us").exists():
            (cgroup["cpu"] / "cpu.cfs_quota_us").write_text("100000")
            (cgroup["memory"] / "memory.limit_in_bytes").write_text(str(300 * MIB))
        else:
            (cgroup["cpu"] / "cpu.max").write_text("100000 100000")
            (cgroup["memory"] / "memory.max").write_text(str(300 * MIB))
    except OSError as error:
        pytest.skip(f"this cgroup has no CPU or memory controller: {error}")
    join = "\n".join(
        f"open({str(folder / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))" for folder in cgroup.values()
    )
    hold = "held = bytearray(100 << 20)"
    report = report_of_a_process(f"{join}\n{hold}")
    assert report["cores"] == 1
    assert isinstance(report["memory"], int)
    assert 100 * MIB < report["memory"] < 200 * MIB
    assert str(cgroup["memory"]) in str(report["memory_by"])
    if len(os.sched_getaffinity(0)) > 1:
        assert str(cgroup["cpu"]) in str(report["cores_by"])


def test_affinity_limits_the_cores() -> None:
    one = min(os.sched_getaffinity(0))
    report = report_of_a_process(f"os.sched_setaffinity(0, {{{one}}})")
    assert (report["cores"], report["cores_by"]) == (1, "affinity")


def test_without_a_limit_of_its_own_a_process_is_limited_by_the_machine(tmp_path: Path) -> None:
    nearest = nearest_memory_limit(world(tmp_path, "", "", {}))
    assert (nearest.limit_bytes, nearest.by) == (psutil.virtual_memory().total, "memory of the machine")
    assert 0 < nearest.left_bytes < nearest.limit_bytes


def test_the_limit_of_its_address_space_is_a_limit_too() -> None:
    code = """
import resource
from harken_server.telemetry.machine import Cgroups, nearest_memory_limit
import psutil
size = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (size + (16 << 20), resource.RLIM_INFINITY))
nearest = nearest_memory_limit(Cgroups())
print(nearest.by, nearest.limit_bytes == size + (16 << 20), 0 < nearest.left_bytes <= 16 << 20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "RLIMIT_AS True True"
