"""Counters and histograms of one thread: the event loop's.

Every sequence is observed in eight histograms. prometheus-client's own take a lock and walk the buckets for each, 4 us;
these do a binary search, 0.5 us. They show themselves through its Collector, so that its registry and its exposition
stay the only ones.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Final, Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

Child = TypeVar("Child")


class _Instrument(Collector, Generic[Child]):
    """A metric and its children, one for each set of label values."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._name: Final = name
        self._documentation: Final = documentation
        self._label_names: Final = labels
        self._children: Final[dict[tuple[str, ...], Child]] = {}
        if not labels:
            self.labels()
        registry.register(self)

    def labels(self, *values: str) -> Child:
        """The child with these label values, in the order of their names."""
        child = self._children.get(values)
        if child is None:
            self._children[values] = child = self._make()
        return child

    def items(self) -> Iterable[tuple[tuple[str, ...], Child]]:
        """Every child, by its label values."""
        return self._children.items()

    def _make(self) -> Child:
        raise NotImplementedError

    def describe(self) -> Iterable[Metric]:
        """Its name, so that the registry refuses a second one without collecting."""
        return self.collect()

    def collect(self) -> Iterable[Metric]:
        """What prometheus-client asks for at a scrape, from a thread of its own."""
        raise NotImplementedError


class Count:
    """A number that only rises."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Add `amount`, which is never below 0."""
        self.value += amount


class Counter(_Instrument[Count]):
    """Shown as NAME_total."""

    def _make(self) -> Count:
        return Count()

    def collect(self) -> Iterable[Metric]:
        """See Collector."""
        family = CounterMetricFamily(self._name, self._documentation, labels=self._label_names)
        for values, child in list(self._children.items()):
            family.add_metric(values, child.value)
        yield family


class Distribution:
    """How many observations fell into each bucket, and their sum."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value


class Histogram(_Instrument[Distribution]):
    """Buckets with these upper bounds, and one above them all."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._bounds: Final = [float(bound) for bound in buckets]
        self._names: Final = [floatToGoString(bound) for bound in (*self._bounds, float("inf"))]  # type: ignore[no-untyped-call]  # has no types
        super().__init__(name, documentation, labels, registry)

    def _make(self) -> Distribution:
        return Distribution(self._bounds)

    def collect(self) -> Iterable[Metric]:
        """See Collector."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._label_names)
        for values, child in list(self._children.items()):
            cumulative = accumulate(child.counts)
            family.add_metric(values, list(zip(self._names, cumulative, strict=True)), child.sum)
        yield family
