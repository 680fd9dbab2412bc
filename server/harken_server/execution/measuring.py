"""What batches of a model cost on this machine, in seconds and bytes: known from an earlier start, or measured now."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from harken_server.execution.calibration import Calibrated, Grid, calibrate
from harken_server.execution.engine import Device, EngineError, Runner, runtime_version
from harken_server.execution.lanes import Clock, Lane, shrink
from harken_server.execution.peaks import Growth, Peaks, Shape, measure_peaks, shapes
from harken_server.execution.surfaces import BESIDE_BUNDLE, WIDE_BESIDE_BUNDLE, Fingerprint, Surface, Surfaces
from harken_server.models.bundle import Bundle
from harken_server.scheduling.cost import CostSurface
from harken_server.scheduling.memory import MemoryModel
from harken_server.telemetry.machine import processor_name
from harken_server.telemetry.memory import DeviceGrowth, DeviceMemory, HostGrowth

log = structlog.get_logger()

# Of the time for measuring: for seconds, and for those of the wide lane; the rest is for memory.
_SECONDS_SHARE: Final = 0.65
_WIDE_SHARE: Final = 0.1
# Of its time on one core: what all cores must take at most, at some length, for the second copy of the weights.
_CLEARLY: Final = 0.9


@dataclass(frozen=True)
class Measured:
    """What batches cost on the narrow lanes."""

    cost: CostSurface
    memory: MemoryModel
    shapes: int
    """How many were measured."""
    seconds_known: bool
    """From an earlier start."""
    bytes_measured: bool
    """Now or earlier; else they are by formula."""


class Measuring:
    """Runs batches on the lanes: idle ones, before anything is served, or between the batches of requests."""

    def __init__(
        self,
        surfaces: Surfaces,
        lanes: Sequence[Lane],
        wide_lane: Lane | None,
        device: Device,
        device_memory: DeviceMemory | None,
        limit_s: float,
        clock: Clock,
        *,
        alone: bool,
    ) -> None:
        """`limit_s`: most seconds for one model; the smallest shape always runs. `alone`: nothing is served meanwhile.

        Beside requests, memory cannot be measured, and what seconds are measured are not kept for the next start.
        """
        self._alone: Final = alone
        self._surfaces: Final = surfaces
        self._lanes: Final = lanes
        self._wide_lane: Final = wide_lane
        self._device: Final = device
        self._device_memory: Final = device_memory
        self._limit_s: Final = limit_s
        self._clock: Final = clock

    def narrow(self, bundle: Bundle, engines: Sequence[Runner], grid: Grid, formula: MemoryModel) -> Measured:
        """engines[i] on narrow lane i; bytes are by `formula` where they cannot be measured. Raises EngineError."""
        sessions = len(set(engines))
        fingerprint = {**self._fingerprint(bundle, grid, self._device), "sessions": str(sessions)}
        known = self._surfaces.find(fingerprint, bundle.folder / BESIDE_BUNDLE)
        calibrated = self._seconds(engines, self._lanes, grid, known, self._limit_s * _SECONDS_SHARE)
        limit_s = self._limit_s * (1.0 - _SECONDS_SHARE - _WIDE_SHARE)
        peaks = self._peaks(engines[0], shapes(grid, formula), known.peaks if known else {}, limit_s)
        for engine in set(engines):
            shrink(engine)  # or else what it holds unused would not count as free
        # Where nothing could be measured for want of memory, what was known of more is still known.
        kept = peaks or (known.peaks if known else {})
        self._keep(fingerprint, Surface(calibrated.seconds, kept), known)
        cost = CostSurface(calibrated.seconds, calibrated.scale)
        return Measured(cost, formula.measured(peaks), len(calibrated.seconds), calibrated.known, bool(peaks))

    def wide(self, bundle: Bundle, engine: Runner, narrow: CostSurface) -> CostSurface | None:
        """On the wide lane, one sequence at a time; None if no length is clearly faster there. Raises EngineError."""
        if self._wide_lane is None:
            return None
        grid = Grid(bundle.manifest.max_length, most_sequences=1, most_tokens=0)
        fingerprint = self._fingerprint(bundle, grid, "cpu, wide")
        known = self._surfaces.find(fingerprint, bundle.folder / WIDE_BESIDE_BUNDLE)
        calibrated = self._seconds([engine], [self._wide_lane], grid, known, self._limit_s * _WIDE_SHARE)
        shrink(engine)
        self._keep(fingerprint, Surface(calibrated.seconds, {}), known)
        cost = CostSurface(calibrated.seconds, calibrated.scale)
        lengths = [length for _, length in calibrated.seconds]
        faster = any(cost.seconds(1, length) <= _CLEARLY * narrow.seconds(1, length) for length in lengths)
        return cost if faster else None

    def _fingerprint(self, bundle: Bundle, grid: Grid, device: str) -> Fingerprint:
        return {
            "hardware": self._device_memory.name if self._device_memory else processor_name(),
            "device": device,
            "lanes": str(len(self._lanes)),
            "onnxruntime": runtime_version(),
            "bundle": bundle.sha256,
            "grid": f"{grid.max_length}, {grid.most_sequences}, {grid.most_tokens}",
        }

    def _seconds(
        self, engines: Sequence[Runner], lanes: Sequence[Lane], grid: Grid, known: Surface | None, limit_s: float
    ) -> Calibrated:
        calibrated = calibrate(
            engines, lanes, grid, known.seconds if known else None, limit_s, self._clock, alone=self._alone
        )
        if calibrated.noisy:
            log.warning("the measured costs make no sense, so they are smoothed", lanes=len(lanes))
        if known is not None and not calibrated.known:
            log.info("the known costs no longer hold, so they were measured", lanes=len(lanes))
        return calibrated

    def _peaks(self, engine: Runner, wanted: list[Shape], known: Peaks, limit_s: float) -> Peaks:
        if not wanted:
            return {}
        if not self._alone:
            return known
        try:
            return measure_peaks(engine, self._lanes[0], wanted, self._growth(), known, limit_s, self._clock)
        except (EngineError, RuntimeError) as error:
            log.warning("memory cannot be measured, so what batches take is known or by formula", why=str(error))
            return known

    def _growth(self) -> Growth:
        if self._device == "cpu":
            return HostGrowth()
        if self._device_memory is None:
            raise RuntimeError("no NVML")
        return DeviceGrowth(self._device_memory)

    def _keep(self, fingerprint: Fingerprint, surface: Surface, known: Surface | None) -> None:
        fewer = known is not None and len(surface.seconds) < len(known.seconds)
        if surface != known and self._alone and not fewer:
            self._surfaces.keep(fingerprint, surface)
