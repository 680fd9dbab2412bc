"""The recurrent encoders are as large as the one with attention, are bundles like it, and are served like it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from harken.v1.encoder_pb2 import EncodeRequest
from harken_export.errors import ParityFailed
from harken_export.model import EncoderConfig
from harken_export.study.parallelism import Sizes, export_all
from harken_export.study.recurrent import (
    RECURRENCES,
    Recurrence,
    RecurrentEncoder,
    equal_hidden_size,
    export_recurrent,
    make_random,
    recurrent_weights,
)
from harken_export.study.tasks import TASKS
from harken_export.study.training import ARCHITECTURES, Course, make_network, parameters
from harken_export.trace import write_onnx
from support.calls import ids, stub, vector
from support.server import running_server

TINY = EncoderConfig(layers=2, heads=2, hidden_size=32, intermediate_size=64, vocab_size=100, max_length=40)


def random_encoder(recurrence: Recurrence, config: EncoderConfig = TINY) -> RecurrentEncoder:
    return make_random(recurrence, config, seed=0)


@pytest.mark.parametrize("task", TASKS)
def test_all_networks_of_the_study_have_as_many_weights_within_two_per_cent(task: str) -> None:
    config = Course().config(TASKS[task])
    counts = {name: parameters(make_network(name, config, seed=0)) for name in ARCHITECTURES}
    assert max(counts.values()) < 1.02 * min(counts.values()), counts


@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_so_have_those_that_are_served(recurrence: Recurrence) -> None:
    config = Sizes().config
    size = equal_hidden_size(recurrence, config, config.layers)
    assert recurrent_weights(recurrence, config, size, config.layers) == pytest.approx(config.weights, rel=0.02)


@pytest.mark.parametrize("recurrence", RECURRENCES)
@pytest.mark.parametrize("depth", [1, 3])
def test_the_formula_counts_what_pytorch_has(recurrence: Recurrence, depth: int) -> None:
    encoder = RecurrentEncoder(recurrence, TINY, 23, depth)
    assert parameters(encoder) == recurrent_weights(recurrence, TINY, 23, depth)


@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_padding_does_not_reach_real_tokens(recurrence: Recurrence) -> None:
    encoder = random_encoder(recurrence)
    row = torch.randint(0, 100, (1, 9), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(9) < 5).long()[None]
    alone, tokens = encoder(row[:, :5], torch.ones(1, 5, dtype=torch.int64))
    padded, padded_tokens = encoder(row, mask)
    torch.testing.assert_close(padded, alone)
    torch.testing.assert_close(padded_tokens[:, :5], tokens)


def test_an_lstm_starts_with_open_forget_gates() -> None:
    network = random_encoder("lstm").network
    size = network.hidden_size
    for layer in range(network.num_layers):
        bias = network.get_parameter(f"bias_ih_l{layer}")
        assert (bias[size : 2 * size] == 1).all()
        assert not (bias[:size] == 1).any()


@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_a_graph_that_computes_something_else_is_no_bundle(
    recurrence: Recurrence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_another(encoder: RecurrentEncoder, precision: str, path: Path) -> None:
        write_onnx(encoder, "fp32", path)
        encoder.network.get_parameter("weight_hh_l1")[0, 0] += 0.5

    monkeypatch.setattr("harken_export.study.recurrent.write_onnx", write_another)
    with pytest.raises(ParityFailed):
        export_recurrent(random_encoder(recurrence), recurrence, TINY, tmp_path, recurrence, "random")
    assert not any(path.name == "bundle.json" for path in tmp_path.rglob("*"))


def test_one_server_serves_all_three_and_answers_what_pytorch_does(tmp_path: Path) -> None:
    sizes = Sizes(layers=2, heads=2, hidden_size=32, vocab_size=100, lengths=(8, 40))
    counts = export_all(sizes.config, tmp_path)
    assert max(counts.values()) < 1.02 * min(counts.values()), counts
    for recurrence in RECURRENCES:
        manifest = json.loads((tmp_path / recurrence / "1" / "bundle.json").read_text())
        assert manifest["architecture"] == recurrence
        assert manifest["parity"]["max_abs"] < 1e-5
        assert len(manifest["parity"]["cases"]) == 6

    random = np.random.default_rng(1)
    rows = [random.integers(0, 100, length).tolist() for length in (1, 40, 3, 17)]
    with running_server(tmp_path, "--warmup-s", "0.2") as server:
        encoder = stub(server.target)
        for recurrence in RECURRENCES:
            expected = random_encoder(recurrence, sizes.config)
            answers = encoder.Encode(EncodeRequest(model=recurrence, inputs=ids(*rows))).results
            for row, answer in zip(rows, answers, strict=True):
                sentence, _ = expected(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.int64))
                np.testing.assert_allclose(vector(answer), sentence[0].numpy(), atol=1e-5, rtol=0)
