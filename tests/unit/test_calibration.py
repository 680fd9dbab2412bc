"""Measuring what batches cost, and keeping it: on a runner whose speed we choose."""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from harken_server.execution.calibration import Calibrated, Grid, Seconds, calibrate
from harken_server.execution.collate import PaddedBatch
from harken_server.execution.engine import EngineError, Halt, OutOfMemory, Outputs
from harken_server.execution.lanes import Lane
from harken_server.execution.surfaces import BESIDE_BUNDLE, Surface, Surfaces
from structlog.testing import capture_logs

GRID = Grid(max_length=20, most_sequences=4, most_tokens=32)
FINGERPRINT = {"hardware": "a processor", "bundle": "0" * 64}


class Machine:
    """A clock that only runs when batches do: a millisecond, and 0.1 more for each padded token."""

    def __init__(self, slowness: float = 1.0, disturbed: int = 0) -> None:
        self.now_s = 0.0
        self.shrunk = 0
        self.shapes: list[tuple[int, ...]] = []
        self._slowness = slowness
        self._disturbed = disturbed

    def clock(self) -> float:
        return self.now_s

    def shrink(self) -> None:
        self.shrunk += 1

    def run(self, batch: PaddedBatch, outputs: Sequence[str], halt: Halt | None = None) -> Outputs:
        self.shapes.append(batch.ids.shape)
        took_s = self._slowness * (0.001 + 0.0001 * batch.ids.size)
        # A neighbour takes the processor during the first runs.
        self.now_s += took_s * (5.0 if len(self.shapes) <= self._disturbed else 1.0)
        return {name: np.zeros((len(batch.lengths), 1), np.float32) for name in outputs}


@pytest.fixture
def lanes() -> Iterator[list[Lane]]:
    lane = Lane("0", time.monotonic)
    yield [lane]
    lane.stop()


def measured(machine: Machine, lanes: list[Lane], known: Seconds | None = None, limit_s: float = 60.0) -> Calibrated:
    return calibrate([machine] * len(lanes), lanes, GRID, known, limit_s, machine.clock)


def true_seconds(slowness: float = 1.0) -> Seconds:
    return {(batch, length): slowness * (0.001 + 0.0001 * batch * length) for batch, length in GRID.cells()}


SURFACE = Surface(true_seconds(), {(1, 20): 7, (4, 8): 9})


def test_the_grid_is_powers_of_two_up_to_its_limits_and_always_has_the_longest_alone() -> None:
    assert GRID.cells() == [(1, 4), (1, 8), (2, 4), (1, 16), (2, 8), (4, 4), (1, 20), (2, 16), (4, 8)]
    assert Grid(max_length=3, most_sequences=1, most_tokens=1).cells() == [(1, 3)]


def test_every_cell_counts_as_its_fastest_run_so_a_passing_neighbour_leaves_no_trace(lanes: list[Lane]) -> None:
    calibrated = measured(Machine(disturbed=5), lanes)
    assert calibrated.seconds == pytest.approx(true_seconds())
    assert (calibrated.known, calibrated.noisy, calibrated.scale) == (False, False, 1.0)


def test_a_known_surface_that_holds_is_taken_after_one_pass_with_its_scale(lanes: list[Lane]) -> None:
    machine = Machine(slowness=2.2)
    calibrated = measured(machine, lanes, known=true_seconds())
    assert calibrated.known
    assert calibrated.seconds == true_seconds()
    assert calibrated.scale == pytest.approx(2.2)
    assert len(machine.shapes) == len(GRID.cells())


@pytest.mark.parametrize(
    "known",
    [
        true_seconds(slowness=0.25),
        {cell: took_s * (3 if cell[0] > 1 else 1) for cell, took_s in true_seconds().items()},
        {(1, 4): 0.0014},
    ],
    ids=["slower machine", "another shape", "another grid"],
)
def test_a_known_surface_that_no_longer_holds_is_measured_anew(lanes: list[Lane], known: Seconds) -> None:
    calibrated = measured(Machine(), lanes, known=known)
    assert not calibrated.known
    assert calibrated.seconds == pytest.approx(true_seconds())


def test_the_time_limit_ends_it_but_never_before_the_first_cell(lanes: list[Lane]) -> None:
    assert set(measured(Machine(), lanes, limit_s=0.0).seconds) == {(1, 4)}
    assert len(measured(Machine(), lanes, limit_s=0.005).seconds) == 4


def test_a_surface_of_mere_noise_is_repeated_and_said(lanes: list[Lane]) -> None:
    class Random(Machine):
        def run(self, batch: PaddedBatch, outputs: Sequence[str], halt: Halt | None = None) -> Outputs:
            outcome = super().run(batch, outputs, halt)
            self.now_s += 1.0 / batch.ids.size  # the larger the faster
            return outcome

    machine = Random()
    assert measured(machine, lanes).noisy
    assert len(machine.shapes) == 5 * len(GRID.cells())


def test_a_model_that_does_not_run_is_an_error(lanes: list[Lane]) -> None:
    class Broken(Machine):
        def run(self, batch: PaddedBatch, outputs: Sequence[str], halt: Halt | None = None) -> Outputs:
            raise EngineError("no kernel")

    with pytest.raises(EngineError, match="no kernel"):
        measured(Broken(), lanes)


def test_a_cell_for_which_there_is_no_memory_is_left_out(lanes: list[Lane]) -> None:
    class Small(Machine):
        def run(self, batch: PaddedBatch, outputs: Sequence[str], halt: Halt | None = None) -> Outputs:
            if batch.ids.size > 16:
                raise OutOfMemory("no memory")
            return super().run(batch, outputs, halt)

    machine = Small()
    assert measured(machine, lanes).seconds == pytest.approx(
        {(batch, length): took_s for (batch, length), took_s in true_seconds().items() if batch * length <= 16}
    )
    assert machine.shrunk == 9  # three cells, three passes


def test_a_machine_without_memory_for_the_smallest_batch_is_an_error(lanes: list[Lane]) -> None:
    class Full(Machine):
        def run(self, batch: PaddedBatch, outputs: Sequence[str], halt: Halt | None = None) -> Outputs:
            raise OutOfMemory("no memory")

    with pytest.raises(OutOfMemory):
        measured(Full(), lanes)


def test_what_was_kept_is_found_under_the_same_fingerprint_only(tmp_path: Path) -> None:
    surfaces = Surfaces(tmp_path)
    assert surfaces.find(FINGERPRINT, tmp_path / BESIDE_BUNDLE) is None
    surfaces.keep(FINGERPRINT, SURFACE)
    assert surfaces.find(FINGERPRINT, tmp_path / BESIDE_BUNDLE) == SURFACE
    assert surfaces.find({**FINGERPRINT, "hardware": "another"}, tmp_path / BESIDE_BUNDLE) is None


def test_a_surface_beside_the_bundle_is_taken_first_unless_it_is_from_elsewhere(tmp_path: Path) -> None:
    surfaces = Surfaces(tmp_path / "state")
    surfaces.keep(FINGERPRINT, SURFACE)
    (kept,) = (tmp_path / "state" / "surfaces").iterdir()
    beside = json.loads(kept.read_text())
    beside["seconds"] = [[1, 1, 7.0]]
    (tmp_path / BESIDE_BUNDLE).write_text(json.dumps(beside))
    assert surfaces.find(FINGERPRINT, tmp_path / BESIDE_BUNDLE) == Surface({(1, 1): 7.0}, SURFACE.peaks)
    beside["fingerprint"]["hardware"] = "another"
    (tmp_path / BESIDE_BUNDLE).write_text(json.dumps(beside))
    with capture_logs() as logs:
        assert surfaces.find(FINGERPRINT, tmp_path / BESIDE_BUNDLE) == SURFACE
    assert [line["differing"] for line in logs] == [["hardware"]]


def test_a_surface_from_before_memory_was_measured_has_no_peaks(tmp_path: Path) -> None:
    content = {"fingerprint": FINGERPRINT, "seconds": [[1, 1, 7.0]]}
    (tmp_path / BESIDE_BUNDLE).write_text(json.dumps(content))
    assert Surfaces(tmp_path / "state").find(FINGERPRINT, tmp_path / BESIDE_BUNDLE) == Surface({(1, 1): 7.0}, {})


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", '{"fingerprint": {}}', '{"fingerprint": {}, "seconds": []}',
        '{"fingerprint": {}, "seconds": [[1, 1, 0]]}', '{"fingerprint": {}, "seconds": [[1, 1, NaN]]}',
        '{"fingerprint": {}, "seconds": [[1, 1, 1]], "peak_bytes": [[1, 1, -1]]}',
        '{"fingerprint": {}, "seconds": [[1, 1, 1]], "peak_bytes": [[1, 1, Infinity]]}',
        '{"fingerprint": {}, "seconds": [[1, 1, 1]], "peak_bytes": {"1": 1}}',
        '{"fingerprint": {}, "seconds": [[-1, 1, 1]]}', '{"fingerprint": {}, "seconds": [[1, 1]]}', "[" * 100_000,
        " " * (1 << 20) + "{}",
    ],
)  # fmt: skip
def test_a_damaged_surface_is_said_and_not_used(tmp_path: Path, content: str) -> None:
    (tmp_path / BESIDE_BUNDLE).write_text(content)
    with capture_logs() as logs:
        assert Surfaces(tmp_path / "state").find(FINGERPRINT, tmp_path / BESIDE_BUNDLE) is None
    assert [line["event"] for line in logs] == ["the cost surface cannot be read, so it is measured"]


def test_a_folder_that_cannot_be_written_is_one_log_line(tmp_path: Path) -> None:
    (tmp_path / "surfaces").write_text("a file where the folder should be")
    with capture_logs() as logs:
        Surfaces(tmp_path).keep(FINGERPRINT, SURFACE)
    assert [line["event"] for line in logs] == ["the cost surface cannot be kept, so the next start measures again"]
