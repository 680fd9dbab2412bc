"""Counters and histograms of one thread: the event loop's.

Every sequence is observed in eight histograms. prometheus-client's own take a lock and walk the buckets for each, 4 us;
these do a binary search, 0.5 us. They show themselves through its Collector, so that its registry and its exposition
stay the only ones.
"""

import re
import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Final, Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

Child = TypeVar("Child")

_MOST_CHARACTERS: Final = 128
"""Of an exemplar's labels, names and values together: OpenMetrics 1.0, section Exemplars."""
_ESCAPED: Final = re.compile(r'["\\\n]')


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

    __slots__ = ("_bounds", "counts", "last", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.last: list[tuple[Mapping[str, str], float, float] | None] = [None] * (len(bounds) + 1)
        """Of each bucket the last observation that has an exemplar: its labels, its value, and when it was."""

    def observe(self, value: float, exemplar: Mapping[str, str] | None = None) -> None:
        """Count one observation. `exemplar`: labels that lead to it, as a trace's id does; see `_fitting`."""
        bucket = bisect_left(self._bounds, value)
        self.counts[bucket] += 1
        self.sum += value
        if exemplar is not None:
            self.last[bucket] = (exemplar, value, time.time())


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
        self.bounds: Final = [float(bound) for bound in buckets]
        self._names: Final = [floatToGoString(bound) for bound in (*self.bounds, float("inf"))]  # type: ignore[no-untyped-call]  # has no types
        super().__init__(name, documentation, labels, registry)

    def _make(self) -> Distribution:
        return Distribution(self.bounds)

    def collect(self) -> Iterable[Metric]:
        """See Collector."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._label_names)
        for values, child in list(self._children.items()):
            buckets = [
                (name, count, *_exemplar(last))
                for name, count, last in zip(self._names, accumulate(child.counts), child.last, strict=True)
            ]
            family.add_metric(values, buckets, child.sum)
        yield family


def _exemplar(last: tuple[Mapping[str, str], float, float] | None) -> tuple[()] | tuple[Exemplar]:
    if last is None:
        return ()
    labels, value, moment_s = last
    fitting = _fitting(labels)
    return (Exemplar(fitting, value, moment_s),) if fitting else ()


def _fitting(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels, in their order, that an exemplar has room for; one that is cut would lead nowhere.

    Nor one that needs an escape: callers choose these values, and there are readers of OpenMetrics, prometheus-client's
    for one, to whom the whole page would be wrong.
    """
    left = _MOST_CHARACTERS
    fitting = {}
    for name, value in labels.items():
        size = len(name) + len(value)
        if size <= left and not _ESCAPED.search(value):
            fitting[name] = value
            left -= size
    return fitting
