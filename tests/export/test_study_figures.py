"""What turns measurements into laws and into claims: it finds what is known to be there, and admits what is not."""

from typing import Any

import numpy as np
import pytest
import torch
from harken_export import checkpoints
from harken_export.checkpoints import Checkpoint
from harken_export.study import cost, gradients, heads, masking, parallelism, recall
from harken_export.study.fits import exponent, quadratic
from harken_export.study.recurrent import RECURRENCES
from harken_export.study.sentences import EXAMPLE, english
from harken_export.study.tasks import TASKS
from harken_export.study.training import ARCHITECTURES, Course, make_network, rate_share, train
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertModel

LENGTHS, STATES = cost.LENGTHS, ("untrained", "trained")
SHORT = Course(distances=(8, 16, 32), steps=3, examined_sequences=32, heads=2, hidden_size=16, max_distance=32)


@given(power=st.floats(0.1, 3), factor=st.floats(1e-9, 1e9))
def test_a_power_law_gives_its_exponent_back(power: float, factor: float) -> None:
    assert exponent(LENGTHS, [factor * n**power for n in LENGTHS]) == pytest.approx(power, rel=1e-6)


@given(
    constant=st.floats(1e-4, 1e-2),
    linear=st.floats(1e-5, 1e-3),
    crossover=st.floats(100, 4000),
    seed=st.integers(0, 99),
)
def test_a_quadratic_gives_its_terms_back_through_noise(
    constant: float, linear: float, crossover: float, seed: int
) -> None:
    square = linear / crossover
    noise = np.random.default_rng(seed).normal(1, 0.001, len(LENGTHS))
    values = [(constant + linear * n + square * n * n) * one for n, one in zip(LENGTHS, noise, strict=True)]
    c, a, b = quadratic(LENGTHS, values)
    assert a == pytest.approx(linear, rel=0.2)
    assert b == pytest.approx(square, rel=0.2)
    fitted = np.array([c + a * n + b * n * n for n in LENGTHS])
    np.testing.assert_allclose(fitted, values, rtol=0.01)


def test_no_term_is_negative_and_a_missing_one_is_zero() -> None:
    assert quadratic(LENGTHS, [3.0 * n for n in LENGTHS]) == pytest.approx((0, 3, 0), abs=1e-9)
    bent = quadratic(LENGTHS, [n**0.5 for n in LENGTHS])
    assert min(bent) >= 0


def test_a_layer_of_attention_is_measured_and_its_memory_rises(tmp_path: Any) -> None:
    result = cost.measure((16, 64, 256, 512, 1024), hidden_size=32, heads=8)
    points = result["points"]
    assert [point["length"] for point in points] == [16, 64, 256, 512, 1024]
    assert all(point["seconds"] > 0 for point in points)
    # The scores alone: heads x L x L floats.
    assert points[-1]["bytes"] > 8 * 1024 * 1024 * 4
    assert result["memory"]["b"] > 8 * 4
    assert result["textbook_crossover"] == 192


def costs(power: float) -> dict[str, Any]:
    values = [1e-6 * n**power for n in LENGTHS]
    law = cost.law(LENGTHS, values)
    return {"points": [{"length": n} for n in LENGTHS], "time": law, "memory": law, "textbook_crossover": 2304}


def test_what_is_linear_is_not_called_quadratic() -> None:
    assert [claim.holds for claim in cost.claims(costs(1.0))] == [False, False, False, False]
    assert [claim.holds for claim in cost.claims(costs(2.0))][:3] == [True, True, True]
    assert cost.claims(costs(1.0))[0].line.startswith("DOES NOT HOLD: the time grows with the square")


def test_what_is_said_of_a_cost_fits_its_figures() -> None:
    linear, square = (cost.claims(costs(power))[1] for power in (1.0, 2.0))
    assert (linear.holds, square.holds) == (False, True)
    assert linear.found.endswith("what grows slower rules")
    assert "rules" not in square.found


def gained(exponent_of_attention: float, cores: int) -> dict[str, Any]:
    lengths, per_token = (8, 64, 512), {"attention": 0.1, "lstm": 0.2, "gru": 0.2}
    return {
        "points": {name: [{"length": n, "compute_ms": ms * n} for n in lengths] for name, ms in per_token.items()},
        "threads": {name: {"cores": cores, "one_ms": 2.0, "all_ms": 1.0} for name in per_token},
        "exponents": {"attention": exponent_of_attention, "lstm": 1.0, "gru": 1.0},
    }


def test_nor_are_cores_said_to_be_busy_that_are_not_there_or_not_busy() -> None:
    (*_, busy), (*_, idle) = (parallelism.claims(gained(power, 16)) for power in (0.9, 0.1))
    assert (busy.holds, idle.holds) == (False, True)
    assert "16 cores are busy" in busy.found
    assert "busy" not in idle.found


def test_a_gradient_that_rises_is_not_said_to_fall() -> None:
    paths = {name: {"8": 20, "512": 20 if name == "attention" else 1280} for name in ARCHITECTURES}
    norms = {"8": [1.0, 1.0], "512": [3.0, 1.0]}
    runs = [{"architecture": name, "state": state, "norms": norms} for name in ARCHITECTURES for state in STATES]
    claims = gradients.claims({"distances": [8, 512], "paths": paths, "runs": runs})
    assert [claim.holds for claim in claims] == [True] * 5 + [False] * 4
    assert all(claim.found == "at 512 tokens it is 3 of what it is at 8" for claim in claims[3:])


def recalls(accuracy: dict[str, list[float]]) -> dict[str, Any]:
    runs = [
        {
            "task": "copy",
            "taught": "directly",
            "architecture": name,
            "accuracy": dict(zip(("8", "512"), shares, strict=True)),
        }
        for name, shares in accuracy.items()
    ]
    return {"runs": runs}


def test_a_network_that_never_learned_has_not_lost_anything_with_distance() -> None:
    result = recalls({"attention": [1.0, 0.4], "lstm": [1.0, 0.2], "gru": [0.3, 0.2]})
    attention, lstm, gru = recall.claims(result, "copy", "directly")
    assert (attention.holds, lstm.holds, gru.holds) == (False, True, False)
    assert "below 95% at 512" in attention.found
    assert "not even that near was learned" in gru.found


def test_nor_has_one_that_answers_at_every_distance() -> None:
    result = recalls({"attention": [1.0, 1.0], "lstm": [1.0, 0.99], "gru": [1.0, 0.4]})
    attention, lstm, gru = recall.claims(result, "copy", "directly")
    assert (attention.holds, lstm.holds, gru.holds) == (True, False, True)
    assert "it answers when far, too" in lstm.found


def test_who_answers_near_is_held_to_the_same_bar_as_attention_and_a_little_less_is_no_loss() -> None:
    result = recalls({"attention": [0.94, 1.0], "lstm": [0.94, 0.1], "gru": [0.96, 0.89]})
    attention, lstm, gru = recall.claims(result, "copy", "directly")
    assert (attention.holds, lstm.holds, gru.holds) == (False, False, False)
    assert "not even that near was learned" in lstm.found
    assert "far it answers less often" in gru.found
    assert "(95%)" in attention.text
    assert "(95%), and not when far (below 50%)" in gru.text


def test_training_is_the_same_twice_and_lowers_the_loss() -> None:
    course = Course(distances=(8,), steps=150, examined_sequences=64, layers=1, heads=2, hidden_size=32)
    once, again = (train("lstm", TASKS["copy"], 3, course) for _ in range(2))
    assert (once.accuracy, once.loss) == (again.accuracy, again.loss)
    assert once.loss < 2.0 < np.log(8) + 0.1
    assert once.accuracy[8] > TASKS["copy"].chance + 0.05


def test_the_learning_rate_rises_and_falls_to_zero() -> None:
    shares = [rate_share(step / 1000) for step in range(1001)]
    assert max(shares) == pytest.approx(1, abs=0.02)
    assert shares.index(max(shares)) == pytest.approx(50, abs=2)
    assert 0 < shares[0] < 0.05
    assert shares[-1] == 0


def test_the_path_through_attention_is_constant_and_the_others_grow() -> None:
    config = SHORT.config(TASKS["copy"])
    paths: dict[str, dict[int, int]] = {
        name: gradients.path_lengths(name, config, SHORT.distances) for name in ARCHITECTURES
    }
    assert len(set(paths["attention"].values())) == 1
    # An LSTM's memory is multiplied by a gate and added to; a GRU's state is mixed: h' = n + z (h - n).
    for lengths, per_token in ((paths["lstm"], 2), (paths["gru"], 3)):
        assert (lengths[16] - lengths[8], lengths[32] - lengths[16]) == (8 * per_token, 16 * per_token)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_gradient_is_what_a_small_change_does(name: Any) -> None:
    network = make_network(name, SHORT.config(TASKS["copy"]), seed=0).double().requires_grad_(False)
    ids = TASKS["copy"].draw(2, 8, torch.Generator().manual_seed(0)).ids
    at = torch.tensor([9, 15])
    gradient = gradients.input_gradient(network, ids, at, torch.Generator().manual_seed(5))
    direction = torch.randn(
        2, network.answer.in_features, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )
    direction = direction / direction.norm(dim=1, keepdim=True)
    step = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)

    def moved(by: float) -> float:
        handle = network.encoder.embeddings.register_forward_hook(lambda _, __, output: output + by * step)
        _, tokens = network.encoder(ids, torch.ones_like(ids))
        handle.remove()
        return float((tokens[torch.arange(2), at].double() * direction).sum())

    # The encoder's last step gives float32.
    assert float((gradient * step).sum()) == pytest.approx((moved(1e-2) - moved(-1e-2)) / 2e-2, rel=1e-2)


@pytest.mark.parametrize("name", RECURRENCES)
def test_no_gradient_comes_from_what_a_recurrent_network_has_not_read_yet(name: Any) -> None:
    network = make_network(name, SHORT.config(TASKS["copy"]), seed=0).double()
    ids = TASKS["copy"].draw(1, 8, torch.Generator().manual_seed(0)).ids
    gradient = gradients.input_gradient(network, ids, torch.tensor([9]), torch.Generator().manual_seed(5))
    assert (gradient[0, :10].norm(dim=1) > 0).all()
    assert not gradient[0, 10:].any()


def test_the_mask_makes_padding_harmless_and_without_it_vectors_change(minilm: Checkpoint) -> None:
    result = masking.measure(minilm, english()[:4], (0, 1, 32))
    assert all(claim.holds for claim in masking.claims(result)), masking.claims(result)
    assert result["garbage_max_abs"] < 1e-5
    for way in list(masking.WAYS)[1:]:
        assert result["points"][way][0]["max_abs"] < 1e-6
        assert result["points"][way][1]["mean_cosine"] > result["points"][way][2]["mean_cosine"]


def test_the_maps_are_those_of_an_independent_bert(minilm: Checkpoint) -> None:
    ids = torch.tensor([[101, 1996, 2214, 3899, 5555, 1996, 4937, 102]])
    bert = BertModel.from_pretrained(checkpoints.minilm_folder(), attn_implementation="eager")
    with torch.no_grad():
        expected = torch.cat(bert(ids, output_attentions=True).attentions)
    torch.testing.assert_close(heads.attention_maps(minilm.encoder(), ids), expected, atol=1e-5, rtol=0)


def test_every_cell_of_a_map_is_of_one_kind() -> None:
    kinds = heads.targets(torch.tensor([101, 7, 8, 7, 9, 102]))
    assert torch.equal(kinds.sum(0), torch.ones(4, 6))
    of = {kind: kinds[n] for n, kind in enumerate(heads.KINDS)}
    assert of["previous"].argmax(1).tolist()[1:] == [1, 2, 3]
    assert of["next"].argmax(1).tolist()[:3] == [2, 3, 4]
    assert of["delimiter"].sum(1).tolist() == [2, 2, 2, 2]
    assert of["same word"].nonzero().tolist() == [[0, 3], [2, 1]]


def test_heads_are_named_by_where_they_look() -> None:
    def result(breadth: float = 0.5, word: float = 0.0, **shares: float) -> dict[str, Any]:
        given = {kind: [[shares.get(kind.replace(" ", "_"), 0.0)]] for kind in heads.KINDS}
        return {"shares": given, "breadth": [[breadth]], "follows_word": [[word]], "follows_place": [[0.3]]}

    assert heads.kind_of(result(delimiter=0.6), 0, 0) == "delimiter"
    assert heads.kind_of(result(previous=0.6), 0, 0) == "positional"
    assert heads.kind_of(result(other_words=0.9, breadth=0.95), 0, 0) == "broad"
    assert heads.kind_of(result(other_words=0.9, word=0.8), 0, 0) == "content"
    assert heads.kind_of(result(other_words=0.9, word=0.2), 0, 0) == "mixed"
    assert heads.kind_of(result(other_words=0.9, word=0.32), 0, 0) == "mixed", "a little is chance"


def test_the_real_model_has_a_head_that_looks_at_the_token_before(minilm: Checkpoint) -> None:
    result = heads.measure(minilm, english()[:6])
    layer, head = heads.strongest(result["shares"]["previous"])
    assert result["shares"]["previous"][layer][head] > 0.8
    assert sum(heads.counts(result).values()) == 72
    total = sum(np.array(result["shares"][kind]) for kind in heads.KINDS)
    np.testing.assert_allclose(total, 1, atol=1e-5)
    assert result["example"]["sentence"] == EXAMPLE
