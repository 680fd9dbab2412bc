"""Our counters and histograms show on the page what prometheus-client's own would."""

import prometheus_client
import pytest
from harken_server.telemetry.instruments import Counter, Histogram
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

BUCKETS = [0.0001, 0.5, 1, 2, 1e6]
LABELS = st.sampled_from(["a", 'quo"te', "new\nline", ""])


def page(registry: CollectorRegistry) -> list[str]:
    """Without the moments of creation, which the server turns off."""
    lines = generate_latest(registry).decode().splitlines()
    return sorted(line for line in lines if "_created" not in line)


@given(st.lists(st.tuples(LABELS, st.floats(0, 1e7) | st.sampled_from([float(bound) for bound in BUCKETS]))))
def test_the_page_is_that_of_the_library(observations: list[tuple[str, float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    histogram = Histogram("h_seconds", "What it is.", ("model",), BUCKETS, ours)
    counter = Counter("c", "What it is.", ("model",), ours)
    their_histogram = prometheus_client.Histogram(
        "h_seconds", "What it is.", ("model",), buckets=BUCKETS, registry=theirs
    )
    their_counter = prometheus_client.Counter("c", "What it is.", ("model",), registry=theirs)
    for label, value in observations:
        histogram.labels(label).observe(value)
        their_histogram.labels(label).observe(value)
        counter.labels(label).inc(value)
        their_counter.labels(label).inc(value)
    assert page(ours) == page(theirs)


def test_without_labels_the_metric_shows_as_zero_from_the_start() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    Counter("c", "What it is.", (), ours)
    prometheus_client.Counter("c", "What it is.", registry=theirs)
    assert page(ours) == page(theirs)


def test_one_name_is_registered_once() -> None:
    registry = CollectorRegistry()
    Counter("c", "What it is.", ("model",), registry)
    with pytest.raises(ValueError, match="Duplicated"):
        Counter("c", "What else it is.", ("model",), registry)
