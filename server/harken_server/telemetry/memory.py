"""Probes of memory, on the host and on the GPU. What cannot be told is absent, never zero."""

import os
from importlib import import_module
from pathlib import Path
from typing import Any, Final

_KIB: Final = 1024
_STATUS: Final = Path("/proc/self/status")
_CLEAR_REFS: Final = Path("/proc/self/clear_refs")
# See proc(5): the peak of resident memory becomes what is resident now.
_RESET_PEAK: Final = "5"


def host_memory_bytes() -> dict[str, int]:
    """`rss` and `rss_peak` of this process in bytes, as far as the system tells."""
    names = {"VmRSS": "rss", "VmHWM": "rss_peak"}
    readings: dict[str, int] = {}
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return readings
    for line in lines:
        key, _, value = line.partition(":")
        if key in names:
            readings[names[key]] = int(value.split()[0]) * _KIB
    return readings


class HostGrowth:
    """How far the resident memory of this process rises. It resets `rss_peak`."""

    def __init__(self) -> None:
        """Raises RuntimeError where the system does not let the peak be reset and read."""
        self._before_bytes = 0
        self.begin()
        self.bytes()

    def begin(self) -> None:
        """Measure from here. Raises RuntimeError as above."""
        try:
            _CLEAR_REFS.write_text(_RESET_PEAK)
        except OSError as error:
            raise RuntimeError(f"{_CLEAR_REFS}: {error.strerror}") from error
        self._before_bytes = host_memory_bytes().get("rss", 0)

    def bytes(self) -> int:
        """Peak since `begin`, less what was resident then. Raises RuntimeError as above."""
        readings = host_memory_bytes()
        if "rss_peak" not in readings:
            raise RuntimeError(f"{_STATUS} tells no peak")
        return max(readings["rss_peak"] - self._before_bytes, 0)


class DeviceMemory:
    """One NVIDIA GPU through NVML."""

    def __init__(self, device_id: int) -> None:
        """Raises RuntimeError if NVML, its Python binding or the GPU is not there."""
        try:
            # Only in the extra server-gpu; its functions have no types.
            self._nvml: Any = import_module("pynvml")
            self._nvml.nvmlInit()
            self._handle: Any = self._nvml.nvmlDeviceGetHandleByIndex(device_id)
        except ImportError as error:
            raise RuntimeError("nvidia-ml-py is not installed") from error
        except self._nvml.NVMLError as error:
            raise RuntimeError(f"NVML: {error}") from error
        self.label: Final = f"cuda:{device_id}"
        name = self._nvml.nvmlDeviceGetName(self._handle)
        self.name: Final = name.decode() if isinstance(name, bytes) else str(name)

    def memory_bytes(self) -> dict[str, int]:
        """`gpu_used`, `gpu_total`, and `gpu_process` (this process alone), as far as NVML tells."""
        readings: dict[str, int] = {}
        try:
            memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
            readings["gpu_used"], readings["gpu_total"] = int(memory.used), int(memory.total)
            for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle):
                if process.pid == os.getpid() and process.usedGpuMemory is not None:
                    readings["gpu_process"] = int(process.usedGpuMemory)
        except self._nvml.NVMLError:
            pass  # some drivers and partitions answer a part only
        return readings

    def free_bytes(self) -> int | None:
        """What nobody uses; None where NVML does not tell."""
        readings = self.memory_bytes()
        if "gpu_total" not in readings:
            return None
        return readings["gpu_total"] - readings["gpu_used"]

    def utilization_ratio(self) -> float | None:
        """0 to 1; None where NVML does not tell."""
        try:
            return float(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu) / 100.0
        except self._nvml.NVMLError:
            return None


class DeviceGrowth:
    """How far this process' memory on a GPU rises. An arena keeps what it took, so that afterwards is the peak."""

    def __init__(self, device: DeviceMemory) -> None:
        """Raises RuntimeError if NVML does not tell this process from others, as in many containers."""
        self._device: Final = device
        self._before_bytes = 0
        self.begin()

    def begin(self) -> None:
        """Measure from here. Raises RuntimeError as above."""
        self._before_bytes = self._process_bytes()

    def bytes(self) -> int:
        """What came since `begin`. Raises RuntimeError as above."""
        return max(self._process_bytes() - self._before_bytes, 0)

    def _process_bytes(self) -> int:
        readings = self._device.memory_bytes()
        if "gpu_process" not in readings:
            raise RuntimeError("NVML does not tell the memory of this process")
        return readings["gpu_process"]
