"""The parity and load tests of the CPU, on a GPU: the same lines of the engine, another device."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from harken.v1 import encoder_pb2 as pb
from harken_server.execution.collate import Buffers, collate
from harken_server.execution.engine import SENTENCE, TOKENS, DeviceOptions, Engine
from support.calls import ids, stub, vector
from support.server import RunningServer

# Of sentence vectors against the CPU in fp32, and of a sequence alone against any batch, on one device.
BOUNDS = {"all-MiniLM-L6-v2": (1e-4, 1e-5), "all-MiniLM-L6-v2-fp16": (2e-3, 1e-3)}
LENGTHS = (1, 2, 7, 16, 40, 128, 300, 512)


def rows(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 30522, length) for length in LENGTHS]


@pytest.mark.parametrize("name", BOUNDS)
def test_the_gpu_computes_what_the_cpu_computes_alone_and_in_a_batch(gpu_models: Path, name: str) -> None:
    reference = Engine((gpu_models / "all-MiniLM-L6-v2" / "1" / "model.onnx").read_bytes(), DeviceOptions("cpu"))
    engine = Engine((gpu_models / name / "1" / "model.onnx").read_bytes(), DeviceOptions("cuda"))
    against_cpu, against_alone = BOUNDS[name]
    batch = collate(rows(0), Buffers())
    together = engine.run(batch, (SENTENCE, TOKENS))
    np.testing.assert_allclose(
        together[SENTENCE], reference.run(batch, (SENTENCE,))[SENTENCE], atol=against_cpu, rtol=0
    )
    for index, row in enumerate(rows(0)):
        alone = engine.run(collate([row], Buffers()), (SENTENCE,))[SENTENCE][0]
        np.testing.assert_allclose(together[SENTENCE][index], alone, atol=against_alone, rtol=0)


@pytest.mark.parametrize("name", BOUNDS)
def test_load_is_answered_rightly_and_counted(gpu_server: RunningServer, name: str) -> None:
    encoder = stub(gpu_server.target)
    inputs = [ids([int(token) for token in row]) for row in rows(1)]
    alone = [vector(encoder.Encode(pb.EncodeRequest(model=name, inputs=one)).results[0]) for one in inputs]
    with ThreadPoolExecutor(32) as pool:
        calls = [index % len(inputs) for index in range(2000)]
        answers = pool.map(
            lambda index: vector(encoder.Encode(pb.EncodeRequest(model=name, inputs=inputs[index])).results[0]), calls
        )
        for index, answer in zip(calls, answers, strict=True):
            np.testing.assert_allclose(answer, alone[index], atol=BOUNDS[name][1], rtol=0)
    assert gpu_server.total("harken_finished_total", model=name, outcome="answered") >= 2000
    assert gpu_server.total("harken_accepted_total") == gpu_server.total("harken_finished_total")


def test_the_gpu_is_named_and_measured(gpu_server: RunningServer) -> None:
    assert {model.device for model in stub(gpu_server.target).ListModels(pb.ListModelsRequest()).models} == {"cuda"}
    assert gpu_server.total("harken_memory_bytes", kind="gpu_total", device="cuda:0") > 0
    assert gpu_server.total("harken_memory_bytes", kind="gpu_used", device="cuda:0") > 0
    assert "harken_gpu_utilization_ratio{" in "".join(gpu_server.metrics())
