"""The engine on real graphs: padding that changes nothing, errors with a name, and wheels that exclude each other."""

import subprocess
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from harken_server.execution import engine as engine_module
from harken_server.execution.collate import Buffers, PaddedBatch, collate
from harken_server.execution.engine import (
    SENTENCE,
    TOKENS,
    DeviceOptions,
    DeviceUnavailable,
    Engine,
    EngineError,
    check_installation,
    cuda_is_built_in,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

INPUTS = ("input_ids", "attention_mask")


@pytest.fixture(scope="module")
def minilm(minilm_models: Path) -> Engine:
    return Engine((minilm_models / "all-MiniLM-L6-v2" / "1" / "model.onnx").read_bytes(), DeviceOptions("cpu"))


@pytest.fixture(scope="module")
def tiny(tiny_models: Path) -> Engine:
    return Engine((tiny_models / "tiny" / "1" / "model.onnx").read_bytes(), DeviceOptions("cpu"))


def with_garbage(batch: PaddedBatch, vocab_size: int, seed: int) -> PaddedBatch:
    garbage = np.random.default_rng(seed).integers(0, vocab_size, batch.ids.shape)
    return replace(batch, ids=np.where(batch.mask == 1, batch.ids, garbage))


def test_garbage_in_the_padded_cells_changes_nothing(minilm: Engine) -> None:
    rng = np.random.default_rng(0)
    batch = collate([rng.integers(0, 30522, length) for length in (1, 7, 40, 128, 512)], Buffers())
    clean = minilm.run(batch, (SENTENCE, TOKENS))
    dirty = minilm.run(with_garbage(batch, 30522, seed=1), (SENTENCE, TOKENS))
    np.testing.assert_allclose(dirty[SENTENCE], clean[SENTENCE], atol=1e-6, rtol=0)
    for row, length in enumerate(batch.lengths):
        np.testing.assert_allclose(dirty[TOKENS][row, :length], clean[TOKENS][row, :length], atol=1e-5, rtol=0)


@settings(max_examples=25)
@given(st.lists(st.integers(1, 128), min_size=1, max_size=12), st.integers(0, 2**32 - 1))
def test_a_sequence_alone_and_in_any_batch_agree(tiny: Engine, lengths: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, 1000, length) for length in lengths]
    together = tiny.run(with_garbage(collate(rows, Buffers()), 1000, seed), (SENTENCE, TOKENS))
    for index, row in enumerate(rows):
        alone = tiny.run(collate([row], Buffers()), (SENTENCE, TOKENS))
        np.testing.assert_allclose(together[SENTENCE][index], alone[SENTENCE][0], atol=1e-5, rtol=0)
        np.testing.assert_allclose(together[TOKENS][index, : len(row)], alone[TOKENS][0], atol=1e-4, rtol=0)


def test_only_what_is_asked_for_comes_back(tiny: Engine) -> None:
    batch = collate([np.array([1, 2, 3])], Buffers())
    assert set(tiny.run(batch, (SENTENCE,))) == {SENTENCE}
    both = tiny.run(batch, (TOKENS, SENTENCE))
    assert (both[SENTENCE].shape, both[TOKENS].shape) == ((1, 32), (1, 3, 32))
    assert both[SENTENCE].dtype == both[TOKENS].dtype == np.float32


def test_what_onnx_runtime_refuses_is_one_error_and_the_session_goes_on(tiny: Engine) -> None:
    with pytest.raises(EngineError):
        tiny.run(collate([np.array([10_000_000])], Buffers()), (SENTENCE,))
    assert np.isfinite(tiny.run(collate([np.array([1])], Buffers()), (SENTENCE,))[SENTENCE]).all()


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from harken_server.execution.collate import Buffers, collate
from harken_server.execution.engine import SENTENCE, DeviceOptions, Engine, EngineError, OutOfMemory

model, limit_of, limit_bytes = Path(sys.argv[1]).read_bytes(), sys.argv[2], 128 << 20
engine = Engine(model, DeviceOptions("cpu", memory_limit_bytes=limit_bytes if limit_of == "arena" else 0))
long = collate([np.full(384, 101)], Buffers())
alone = engine.run(long, (SENTENCE,))[SENTENCE]
if limit_of == "process":
    mapped_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped_bytes + limit_bytes,) * 2)
for _ in range(2):
    try:
        engine.run(collate([np.full(512, 101)] * 16, Buffers()), (SENTENCE,))
    except OutOfMemory as error:
        print(error)
try:
    engine.run(collate([np.array([10_000_000])], Buffers()), (SENTENCE,))
except EngineError as error:
    assert not isinstance(error, OutOfMemory), error
engine.shrink()
np.testing.assert_array_equal(engine.run(long, (SENTENCE,))[SENTENCE], alone)
"""


@pytest.mark.parametrize("limit_of", ["arena", "process"])
def test_an_allocation_that_fails_is_known_as_such_and_the_session_goes_on(minilm_models: Path, limit_of: str) -> None:
    # In a process of its own: either limit is for good.
    command = [sys.executable, "-c", LIMITED, str(minilm_models / "all-MiniLM-L6-v2" / "1" / "model.onnx"), limit_of]
    errors = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(errors) == 2
    assert all("while running" in error and "Status Message" not in error for error in errors)


def test_weights_in_another_file_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hash covers them, and their place could be any file that the server may read."""
    np.ones(4, np.float32).tofile(tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    for place in ("weights", str(tmp_path / "weights"), "../weights"):
        weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
        weights.external_data.add(key="location", value=place)
        weights.external_data.add(key="length", value="16")
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            [helper.make_node("Add", ["x", "w"], ["y"])], "g",
            [value("x", TensorProto.FLOAT, [4])], [value("y", TensorProto.FLOAT, [4])], [weights],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        with pytest.raises(EngineError, match=r"[Ee]xternal"):
            Engine(model.SerializeToString(), DeviceOptions("cpu"))


def test_weights_in_a_file_from_memory_are_read_there_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files lie on disk with other contents, as somebody may have exchanged them since they were hashed."""
    np.full(4, 9.0, np.float32).tofile(tmp_path / "weights")
    np.full(4, 9.0, np.float32).tofile(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    content = {"weights": np.arange(6, dtype=np.float32).tobytes()}

    def model(place: str, offset: int) -> bytes:
        weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
        for key, value in (("location", place), ("offset", str(offset)), ("length", "16")):
            weights.external_data.add(key=key, value=value)
        ids, mask = (helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "L"]) for name in INPUTS)
        graph = helper.make_graph(
            [helper.make_node("Identity", ["w"], [SENTENCE])], "g",
            [ids, mask], [helper.make_tensor_value_info(SENTENCE, TensorProto.FLOAT, [4])], [weights],
        )  # fmt: skip
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return bytes(made.SerializeToString())

    engine = Engine(model("weights", 8), DeviceOptions("cpu", cpu_arena=False), content)
    batch = collate([np.array([1])], Buffers())
    assert engine.run(batch, (SENTENCE,))[SENTENCE].tolist() == [2.0, 3.0, 4.0, 5.0]
    for place, offset in (("elsewhere", 0), ("../weights", 0), (str(tmp_path / "elsewhere"), 0), ("weights", 12)):
        with pytest.raises(EngineError):
            Engine(model(place, offset), DeviceOptions("cpu", cpu_arena=False), content)


def test_bytes_that_are_no_graph_are_an_error_of_one_line() -> None:
    with pytest.raises(EngineError) as error:
        Engine(b"not a graph", DeviceOptions("cpu"))
    assert "\n" not in str(error.value)


@pytest.mark.skipif(cuda_is_built_in(), reason="this onnxruntime is built with CUDA")
def test_cuda_without_a_gpu_is_said_not_fallen_back_from(tiny_models: Path) -> None:
    model = (tiny_models / "tiny" / "1" / "model.onnx").read_bytes()
    with pytest.raises(DeviceUnavailable, match="CUDA"):
        Engine(model, DeviceOptions("cuda"))


@pytest.mark.parametrize(
    ("installed", "refused"),
    [({"onnxruntime"}, False), ({"onnxruntime-gpu"}, False), ({"onnxruntime", "onnxruntime-gpu"}, True)],
)
def test_both_runtime_wheels_at_once_are_refused(
    monkeypatch: pytest.MonkeyPatch, installed: set[str], refused: bool
) -> None:
    def distribution(name: str) -> SimpleNamespace:
        if name not in installed:
            raise PackageNotFoundError(name)
        return SimpleNamespace(version="1.31.1")

    monkeypatch.setattr(engine_module, "distribution", distribution)
    if refused:
        with pytest.raises(DeviceUnavailable, match=r"onnxruntime 1\.31\.1 and onnxruntime-gpu 1\.31\.1 are both"):
            check_installation()
    else:
        check_installation()


def test_one_thread_and_several_give_the_same_vectors(minilm: Engine, minilm_models: Path) -> None:
    model = (minilm_models / "all-MiniLM-L6-v2" / "1" / "model.onnx").read_bytes()
    wide = Engine(model, DeviceOptions("cpu", threads=2))
    rng = np.random.default_rng(0)
    for length in (1, 40, 512):
        alone = collate([rng.integers(0, 30522, length)], Buffers())
        np.testing.assert_allclose(
            wide.run(alone, (SENTENCE,))[SENTENCE], minilm.run(alone, (SENTENCE,))[SENTENCE], atol=1e-5, rtol=0
        )
