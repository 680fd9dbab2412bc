"""A vector does not depend on who else was in the batch: the bounds of docs/reliability.md, by precision."""

from pathlib import Path

import numpy as np
import pytest
from harken_server.execution.collate import Buffers, collate
from harken_server.execution.engine import SENTENCE, DeviceOptions, Engine
from support.bundles import export_bundle

BOUNDS = {"fp32": 1e-5, "int8": 1e-5}
LENGTHS = (1, 2, 3, 7, 16, 33, 64, 100, 128)


def worst_difference(engine: Engine, vocab_size: int, lengths: tuple[int, ...], batches: int, seed: int) -> float:
    """Of any element of a sentence vector between the sequence alone and in batches of up to 16 of mixed lengths."""
    rng = np.random.default_rng(seed)
    worst = 0.0
    for _ in range(batches):
        rows = [rng.integers(0, vocab_size, rng.choice(lengths)) for _ in range(rng.integers(2, 17))]
        together = engine.run(collate(rows, Buffers()), (SENTENCE,))[SENTENCE]
        for row, vector in zip(rows, together, strict=True):
            alone = engine.run(collate([row], Buffers()), (SENTENCE,))[SENTENCE][0]
            worst = max(worst, float(np.abs(vector - alone).max()))
    return worst


@pytest.mark.parametrize("precision", list(BOUNDS))
def test_a_sequence_alone_and_in_any_batch_differ_by_less_than_is_published(precision: str, tmp_path: Path) -> None:
    export_bundle(
        "random", "--models", str(tmp_path), "--name", "tiny", "--precision", precision,
        "--layers", "2", "--heads", "2", "--hidden", "32", "--vocab", "1000", "--max-length", "128",
    )  # fmt: skip
    engine = Engine((tmp_path / "tiny" / "1" / "model.onnx").read_bytes(), DeviceOptions("cpu"))
    assert worst_difference(engine, 1000, LENGTHS, batches=40, seed=3) <= BOUNDS[precision]


def test_so_do_those_of_the_real_model(minilm_models: Path) -> None:
    model = (minilm_models / "all-MiniLM-L6-v2" / "1" / "model.onnx").read_bytes()
    engine = Engine(model, DeviceOptions("cpu"))
    assert worst_difference(engine, 30522, (3, 20, 64, 200), batches=4, seed=3) <= BOUNDS["fp32"]
