"""What is told of attention maps holds what its formulas say, of any maps."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from harken_server.execution import reductions
from harken_server.execution.reductions import Wish, contributions
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

Shapes = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 12))
Seeds = st.integers(0, 2**32 - 1)


def maps_of(shape: tuple[int, int, int], seed: int) -> NDArray[np.float32]:
    """float32 [N, K, L, L], rows that add up to 1; some of them all on one token, as sharp softmaxes are."""
    layers, heads, length = shape
    random = np.random.default_rng(seed)
    scores = random.normal(scale=random.choice([0.1, 3.0, 200.0]), size=(layers, heads, length, length))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    maps: NDArray[np.float32] = (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
    return maps


def everything(shape: tuple[int, int, int], top_k: int = 3) -> Wish:
    layers, heads, _ = shape
    return Wish(tuple(range(layers)), tuple(range(heads)), True, True, True, True, True, top_k)


@settings(max_examples=100)
@given(Shapes, Seeds)
def test_what_adds_up_to_1_does(shape: tuple[int, int, int], seed: int) -> None:
    told = everything(shape).of({"attentions": maps_of(shape, seed)})
    for name, axis in (("maps", -1), ("mean", -1), ("rollout", -1), ("received", -1)):
        np.testing.assert_allclose(told[name].sum(axis), 1.0, atol=1e-5, rtol=0, err_msg=name)
        assert told[name].min() >= 0.0


@settings(max_examples=100)
@given(Shapes, Seeds)
def test_rollout_is_the_product_of_the_layers_with_what_passes_them_by(shape: tuple[int, int, int], seed: int) -> None:
    maps = maps_of(shape, seed).astype(np.float64)
    expected = np.eye(shape[2])
    for heads in maps:
        expected = (0.5 * heads.mean(0) + 0.5 * np.eye(shape[2])) @ expected
    np.testing.assert_allclose(reductions.rollout(maps.astype(np.float32)), expected, atol=1e-6)


@settings(max_examples=100)
@given(Shapes, Seeds)
def test_entropy_lies_between_one_token_each_and_all_alike(shape: tuple[int, int, int], seed: int) -> None:
    maps = maps_of(shape, seed)
    told = everything(shape).of({"attentions": maps})["entropy"]
    assert told.shape == shape[:2]
    assert told.min() >= -1e-6
    assert told.max() <= np.log(shape[2]) + 1e-5
    wide = maps.astype(np.float64)
    terms = np.where(wide > 0, wide * np.log(np.where(wide > 0, wide, 1.0)), 0.0)
    np.testing.assert_allclose(told, -terms.sum(-1).mean(-1), atol=1e-5)


@settings(max_examples=100)
@given(Shapes, Seeds, st.integers(1, 20))
def test_links_are_the_strongest_in_order_and_no_more_than_there_are_tokens(
    shape: tuple[int, int, int], seed: int, top_k: int
) -> None:
    told = everything(shape, top_k).of({"attentions": maps_of(shape, seed)})
    tokens, weights, mean = told["links"], told["link_weights"], told["mean"]
    most = min(top_k, shape[2])
    assert tokens.shape == weights.shape == (shape[0], shape[2], most)
    assert (np.diff(weights, axis=-1) <= 0).all()
    np.testing.assert_array_equal(weights, np.sort(mean, axis=-1)[..., ::-1][..., :most])
    np.testing.assert_array_equal(np.take_along_axis(mean, tokens.astype(np.int64), -1), weights)


@settings(max_examples=100)
@given(Shapes, Seeds, st.data())
def test_only_what_was_chosen_and_asked_for_is_told_and_as_large_as_was_said(
    shape: tuple[int, int, int], seed: int, data: st.DataObject
) -> None:
    layers = tuple(sorted(data.draw(st.sets(st.integers(0, shape[0] - 1), min_size=1))))
    heads = tuple(sorted(data.draw(st.sets(st.integers(0, shape[1] - 1), min_size=1))))
    flags = {name: data.draw(st.booleans()) for name in ("maps", "mean", "rollout", "received", "entropy")}
    wish = Wish(layers, heads, **flags, top_k=data.draw(st.integers(0, 15)))
    maps = maps_of(shape, seed)
    told = wish.of({"attentions": maps})
    assert sum(array.nbytes for array in told.values()) == 4 * sum(wish.sizes(shape[2]).values())
    assert wish.anything == bool(told)
    assert not any(np.shares_memory(array, maps) for array in told.values()), "the whole would be kept for a part"
    if wish.maps:
        np.testing.assert_array_equal(told["maps"], maps[np.ix_(layers, heads)])
    if wish.mean:
        np.testing.assert_allclose(told["mean"], maps[np.ix_(layers, heads)].mean(1), atol=1e-6)


@settings(max_examples=100)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 64), Seeds)
def test_contributions_add_up_to_the_cosine_of_the_means(n: int, m: int, hidden: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    tokens, others = (random.normal(0.3, 1.0, (rows, hidden)).astype(np.float32) for rows in (n, m))
    a, b = tokens.astype(np.float64).mean(0), others.astype(np.float64).mean(0)
    cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    added = contributions(tokens, others)
    assert added.shape == (n, m)
    # Where the means nearly vanish the terms are large, and so is their rounding.
    assert added.sum(dtype=np.float64) == pytest.approx(cosine, abs=1e-6 * max(1.0, float(np.abs(added).sum())))


def test_means_that_vanish_give_no_similarity_and_no_nan() -> None:
    tokens = np.array([[1.0, 2.0], [-1.0, -2.0]], np.float32)
    added = contributions(tokens, np.ones((3, 2), np.float32))
    assert np.isfinite(added).all()


def peak_beside_what_stays(make: Callable[[], object]) -> int:
    """Bytes that were taken and given back again."""
    tracemalloc.start()
    try:
        made = make()
        stays, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert made is not None
    return peak - stays


@pytest.mark.parametrize("top_k", [0, 64])
def test_what_is_told_is_made_without_a_copy_of_all_maps(top_k: int) -> None:
    maps = maps_of((6, 12, 128), 0)
    whole = everything((6, 12, 128), top_k)
    layer_bytes = maps[0].nbytes
    # The maps and what is told of them are all that is predicted, beside a layer or so.
    assert peak_beside_what_stays(lambda: whole.of({"attentions": maps})) < 1.5 * layer_bytes


def test_nor_are_contributions_made_with_more_than_they_take() -> None:
    tokens = np.random.default_rng(0).normal(size=(2048, 8)).astype(np.float32)
    added = contributions(tokens, tokens)
    assert added.sum(dtype=np.float64) == pytest.approx(1.0, abs=1e-5)
    assert peak_beside_what_stays(lambda: contributions(tokens, tokens)) < 0.5 * added.nbytes
