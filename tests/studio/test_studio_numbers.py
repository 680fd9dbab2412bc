"""The arithmetic of the page, as its browser does it, against NumPy's."""

import base64
import json
from bisect import bisect_left
from typing import Any

import numpy as np
import pytest
from studio.browser import Open, Opened
from support.server import RunningServer


@pytest.fixture
def page(studio: RunningServer, opened: Open) -> Opened:
    one = opened(studio)
    one.done("#texts-said")
    return one


def run(page: Opened, expression: str, argument: Any = None) -> Any:
    """An expression with what numbers.js exports as `n`, and the argument as `given`."""
    script = f"async given => {{ const n = await import('/studio/numbers.js'); return JSON.stringify({expression}) }}"
    return json.loads(page.page.evaluate(script, argument))


def test_percentiles_lie_in_the_bucket_of_the_true_ones(page: Opened) -> None:
    seconds = np.random.default_rng(7).lognormal(-4, 1, 500)
    bounds = [float(bound) for bound in 0.0001 * 1.5 ** np.arange(33)]
    counts = [0] * (len(bounds) + 1)
    for value in seconds:
        counts[bisect_left(bounds, value)] += 1
    for q in (0.5, 0.95, 0.99):
        told = run(page, f"n.quantile(given.bounds, given.counts, {q})", {"bounds": bounds, "counts": counts})
        true = float(np.quantile(seconds, q, method="inverted_cdf"))
        assert bisect_left(bounds, told) == bisect_left(bounds, true)
    assert run(page, "n.quantile([1, 2], [0, 0, 0], 0.5)") is None
    assert run(page, "n.quantile([1, 2], [0, 0, 3], 0.5)") == 2
    assert run(page, "n.quantile([1, 2], [4, 0, 0], 0.5)") == 0.5


def test_vectors_cosines_and_the_order_of_neighbours(page: Opened) -> None:
    vectors = np.random.default_rng(1).normal(size=(5, 16)).astype("<f4")
    vectors[3] = vectors[1]
    vectors[4] = 0
    told = run(page, "n.cosines(given.map(n.vector))", [base64.b64encode(one.tobytes()).decode() for one in vectors])
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    np.testing.assert_allclose(told, unit @ unit.T, atol=1e-6)
    assert run(page, "n.nearest([0.1, 0.9, 0.5, 0.9, -1], 0)") == [1, 3, 2, 4]


def test_figures_are_written_in_the_unit_that_suits_them(page: Opened) -> None:
    for expression, said in (
        ("n.seconds(0.00123)", "1.2 ms"), ("n.seconds(0.0456)", "46 ms"), ("n.seconds(2.5)", "2.50 s"),
        ("n.seconds(null)", "\u2013"), ("n.bytes(3 * 2 ** 20)", "3 MiB"), ("n.bytes(2 ** 31)", "2.00 GiB"),
        ("n.count(1234.4)", "1,234"), ("n.count(7.25)", "7.3"), ("n.many(1, 'token')", "1 token"),
        ("n.many(2000, 'token')", "2,000 tokens"), ("n.percent(0.126)", "13 %"),
    ):  # fmt: skip
        assert run(page, expression) == said
