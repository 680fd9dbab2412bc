"""What batches take: by formula, as a probe tells it, and as the real model takes it."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from harken_server.execution.calibration import Grid
from harken_server.execution.collate import PaddedBatch
from harken_server.execution.engine import SENTENCE, TOKENS, EngineError, Halt, OutOfMemory, Outputs
from harken_server.execution.lanes import Lane
from harken_server.execution.peaks import measure_peaks, shapes
from harken_server.scheduling.memory import MemoryModel
from harken_server.telemetry import memory
from harken_server.telemetry.memory import HostGrowth

MIB = 1 << 20
FORMULA = MemoryModel(bytes_per_token=MIB, bytes_per_token_squared=0)
GRID = Grid(max_length=20, most_sequences=4, most_tokens=32)
# Of GRID: one row and the largest batch of each length, if they take 4 MiB or more.
WANTED = [(2, 16), (4, 8), (1, 20), (1, 16), (4, 4), (1, 8), (1, 4)]


class Machine:
    """An engine and its probe: a run takes half of what the formula says, and a shrink gives it back."""

    def __init__(self, fails: Mapping[tuple[int, ...], Exception] | None = None) -> None:
        self.held_bytes = 0
        self.fails = fails or {}
        self.ran: list[tuple[int, ...]] = []
        self.now_s = 0.0

    def shrink(self) -> None:
        self.held_bytes = 0

    def run(self, batch: PaddedBatch, outputs: Sequence[str], halt: Halt | None = None) -> Outputs:
        assert set(outputs) == {SENTENCE, TOKENS}
        self.ran.append(batch.ids.shape)
        self.now_s += 1.0
        if batch.ids.shape in self.fails:
            raise self.fails[batch.ids.shape]
        self.held_bytes = max(self.held_bytes, batch.ids.size * MIB // 2)
        return {name: np.zeros((1, 1), np.float32) for name in outputs}

    def begin(self) -> None:
        assert not self.held_bytes

    def bytes(self) -> int:
        return self.held_bytes

    def clock(self) -> float:
        return self.now_s


@pytest.fixture
def lane() -> Iterator[Lane]:
    lane = Lane("0", time.monotonic)
    yield lane
    lane.stop()


def true_peaks() -> dict[tuple[int, int], int]:
    return {(batch, length): batch * length * MIB // 2 for batch, length in WANTED}


def peaks_of(
    machine: Machine, lane: Lane, known: Mapping[tuple[int, int], int] | None = None, limit_s: float = 60.0
) -> Mapping[tuple[int, int], int]:
    return measure_peaks(machine, lane, shapes(GRID, FORMULA), machine, known or {}, limit_s, machine.clock)


def test_one_row_and_the_largest_batch_of_each_length_are_measured_the_greatest_first() -> None:
    assert shapes(GRID, FORMULA) == WANTED
    assert shapes(GRID, MemoryModel(MIB // 2, 0)) == [(2, 16), (4, 8), (1, 20), (1, 16), (4, 4), (1, 8)]
    assert shapes(GRID, MemoryModel(1, 1)) == []


def test_each_shape_is_measured_from_an_engine_that_gave_everything_back(lane: Lane) -> None:
    assert peaks_of(Machine(), lane) == true_peaks()


def test_known_peaks_hold_if_the_greatest_takes_no_more(lane: Lane) -> None:
    machine = Machine()
    known = {shape: 2 * peak_bytes for shape, peak_bytes in true_peaks().items()}
    assert peaks_of(machine, lane, known) == known
    assert machine.ran == WANTED[:1]


@pytest.mark.parametrize(
    "known",
    [{shape: peak // 2 for shape, peak in true_peaks().items()}, {(2, 16): 16 * MIB}],
    ids=["too small", "another grid"],
)
def test_known_peaks_that_no_longer_hold_are_measured_anew(lane: Lane, known: dict[tuple[int, int], int]) -> None:
    machine = Machine()
    assert peaks_of(machine, lane, known) == true_peaks()
    assert machine.ran == WANTED


def test_a_shape_that_finds_no_memory_is_left_out_and_predicted_by_formula_if_it_is_longer(lane: Lane) -> None:
    peaks = peaks_of(Machine(fails={(2, 16): OutOfMemory("no"), (1, 20): OutOfMemory("no")}), lane)
    assert peaks == {shape: peak for shape, peak in true_peaks().items() if shape not in {(2, 16), (1, 20)}}
    assert FORMULA.measured(peaks).batch_bytes(1, 20) == 20 * MIB
    assert FORMULA.measured(peaks).batch_bytes(1, 16) == 10 * MIB


def test_the_time_limit_ends_it_after_the_greatest(lane: Lane) -> None:
    assert list(peaks_of(Machine(), lane, limit_s=1.5)) == WANTED[:2]
    assert peaks_of(Machine(), lane, limit_s=-1.0) == {}
    assert peaks_of(Machine(), lane, true_peaks(), limit_s=-1.0) == true_peaks()


def test_an_engine_that_fails_otherwise_is_an_error(lane: Lane) -> None:
    with pytest.raises(EngineError, match="no kernel"):
        peaks_of(Machine(fails={(4, 8): EngineError("no kernel")}), lane)


def test_the_grid_leaves_out_what_does_not_fit_but_never_its_smallest_cell() -> None:
    small = Grid(20, 4, 32, fits=lambda batch, length: batch * length <= 8)
    assert small.cells() == [(1, 4), (1, 8), (2, 4)]
    assert Grid(20, 4, 32, fits=lambda batch, length: False).cells() == [(1, 4)]


def test_a_measurement_far_under_the_formula_is_not_believed() -> None:
    assert FORMULA.measured({(4, 8): 0}).batch_bytes(4, 8) == 10 * MIB


PROBED = """
import json
import numpy as np
from harken_server.telemetry.memory import HostGrowth

growth = HostGrowth()
taken = np.ones(64 << 20, np.uint8)
readings = [growth.bytes()]
del taken
readings.append(growth.bytes())
growth.begin()
readings.append(growth.bytes())
print(json.dumps(readings))
"""


def test_the_probe_sees_memory_that_was_there_only_for_a_moment() -> None:
    # In a process of its own: here others' memory may go back meanwhile.
    probed = subprocess.run([sys.executable, "-c", PROBED], check=True, capture_output=True, text=True).stdout
    there, gone, begun = json.loads(probed)
    assert there == pytest.approx(64 * MIB, rel=0.1)
    assert gone >= 57 * MIB
    assert begun < 32 * MIB


def test_where_the_peak_cannot_be_reset_the_probe_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path / "absent" / "clear_refs")
    with pytest.raises(RuntimeError, match=r"clear_refs: No such file"):
        HostGrowth()


REAL = """
import json, sys, time
from pathlib import Path
import numpy as np
from harken_server.execution.calibration import Grid
from harken_server.execution.collate import Buffers, collate
from harken_server.execution.engine import SENTENCE, TOKENS, DeviceOptions, Engine
from harken_server.execution.lanes import Lane
from harken_server.execution.peaks import measure_peaks, shapes
from harken_server.scheduling.memory import MemoryModel
from harken_server.telemetry.memory import HostGrowth

engine = Engine(Path(sys.argv[1]).read_bytes(), DeviceOptions("cpu"))
engine.run(collate([np.ones(16, np.int64)], Buffers()), (SENTENCE, TOKENS))
formula = MemoryModel.of_encoder(hidden=384, intermediate=1536, heads=12, bytes_per_value=4)
growth, wanted = HostGrowth(), shapes(Grid(512, 64, 1024), formula)
peaks = measure_peaks(engine, Lane("0", time.monotonic), wanted, growth, {}, 120.0, time.monotonic)
assert list(peaks) == wanted
memory, found = formula.measured(peaks), []
for batch, length in [(1, 384), (2, 384), (3, 300), (5, 200), (10, 100), (20, 50), (40, 25), (60, 17), (4, 512)]:
    engine.shrink()
    growth.begin()
    engine.run(collate([np.ones(length, np.int64)] * batch, Buffers()), (SENTENCE, TOKENS))
    found.append([batch, length, growth.bytes(), memory.batch_bytes(batch, length), formula.batch_bytes(batch, length)])
print(json.dumps(found))
"""


def test_the_real_model_takes_no_more_than_predicted_and_not_much_less(minilm_models: Path) -> None:
    # In a process of its own: what this one has freed before would hide what a batch takes.
    model = minilm_models / "all-MiniLM-L6-v2" / "1" / "model.onnx"
    output = subprocess.run([sys.executable, "-c", REAL, str(model)], check=True, capture_output=True, text=True).stdout
    for batch, length, peak_bytes, predicted_bytes, by_formula_bytes in json.loads(output):
        shape = f"{batch} x {length}: {peak_bytes} bytes, predicted {predicted_bytes}, by formula {by_formula_bytes}"
        assert peak_bytes <= predicted_bytes <= 1.75 * peak_bytes, shape
        assert peak_bytes <= by_formula_bytes <= 2.5 * peak_bytes, shape
