"""Probes of memory, on the host and on the GPU. What cannot be told is absent, never zero."""

import os
from importlib import import_module
from pathlib import Path
from typing import Any, Final

_KIB: Final = 1024
_STATUS: Final = Path("/proc/self/status")


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

    def utilization_ratio(self) -> float | None:
        """0 to 1; None where NVML does not tell."""
        try:
            return float(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu) / 100.0
        except self._nvml.NVMLError:
            return None
