"""Our counters and histograms show on the page what prometheus-client's own would."""

import time

import prometheus_client
import pytest
from harken_server.telemetry.instruments import Counter, Histogram
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics

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


def exemplars(registry: CollectorRegistry) -> dict[str, tuple[dict[str, str], float]]:
    """By the bucket's bound, as whoever reads the page of OpenMetrics finds them."""
    page: str = generate_openmetrics(registry).decode()  # type: ignore[no-untyped-call]  # has no types
    (family,) = openmetrics(page)  # type: ignore[no-untyped-call]  # as above
    for sample in family.samples:
        if sample.exemplar is not None:
            assert abs(float(sample.exemplar.timestamp or 0.0) - time.time()) < 60
    return {
        sample.labels["le"]: (sample.exemplar.labels, sample.exemplar.value)
        for sample in family.samples
        if sample.exemplar is not None
    }


def test_a_bucket_shows_the_last_observation_that_has_an_exemplar() -> None:
    registry = CollectorRegistry()
    histogram = Histogram("h_seconds", "What it is.", ("model",), BUCKETS, registry).labels("m")
    histogram.observe(0.3, {"request_id": "first"})
    histogram.observe(0.4, {"trace_id": "0" * 32, "request_id": "last"})
    histogram.observe(0.2)
    histogram.observe(2e6, {"request_id": "slowest"})
    assert exemplars(registry) == {
        "0.5": ({"trace_id": "0" * 32, "request_id": "last"}, 0.4),
        "+Inf": ({"request_id": "slowest"}, 2e6),
    }
    # Scrapers that ask for the older format get none.
    assert "#" not in "".join(line for line in page(registry) if not line.startswith("#"))


def test_labels_that_openmetrics_has_no_room_for_or_that_need_an_escape_are_left_out() -> None:
    registry = CollectorRegistry()
    histogram = Histogram("h_seconds", "What it is.", (), BUCKETS, registry).labels()
    histogram.observe(0.0, {"trace_id": "0" * 32, "request_id": 'quo"te'})
    histogram.observe(0.3, {"trace_id": "0" * 32, "request_id": "x" * 79})
    histogram.observe(0.7, {"trace_id": "0" * 32, "request_id": "x" * 78})
    histogram.observe(1.5, {"request_id": "x" * 119})
    histogram.observe(3.0, {"request_id": "x" * 118})
    assert exemplars(registry) == {
        "0.0001": ({"trace_id": "0" * 32}, 0.0),
        "0.5": ({"trace_id": "0" * 32}, 0.3),
        "1.0": ({"trace_id": "0" * 32, "request_id": "x" * 78}, 0.7),
        "1e+06": ({"request_id": "x" * 118}, 3.0),
    }
