"""The server's side of a run: what its /metrics counted between two moments."""

import http.client
import math
import re
import urllib.request
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from itertools import pairwise

_LINE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")
_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Sample:
    name: str
    labels: dict[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of observations. `buckets` are (upper bound, observations up to it), bounds ascending."""

    buckets: tuple[tuple[float, float], ...]
    total: float
    count: float

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None

    def quantile(self, share: float) -> float | None:
        """Within its bucket linearly, as PromQL's histogram_quantile; None without observations."""
        rank = share * self.count
        for (low, below), (high, up_to) in pairwise(((0.0, 0.0), *self.buckets)):
            if up_to >= rank and up_to > below:
                return low if math.isinf(high) else low + (high - low) * (rank - below) / (up_to - below)
        return None


class Metrics:
    """What one scrape saw."""

    def __init__(self, samples: list[Sample]) -> None:
        self._samples = samples

    def value(self, name: str, **labels: str) -> float:
        """Sum over the samples that have these labels; 0 without any."""
        return sum(sample.value for sample in self._matching(name, labels))

    def histogram(self, name: str, **labels: str) -> Histogram:
        buckets: dict[float, float] = {}
        for sample in self._matching(f"{name}_bucket", labels):
            bound = float(sample.labels.get("le", "inf"))
            buckets[bound] = buckets.get(bound, 0.0) + sample.value
        return Histogram(
            tuple(sorted(buckets.items())),
            self.value(f"{name}_sum", **labels),
            self.value(f"{name}_count", **labels),
        )

    def labels(self, name: str, label: str) -> list[str]:
        """The values that a label has in the samples of this name, each once, in order."""
        return sorted({sample.labels[label] for sample in self._matching(name, {}) if label in sample.labels})

    def has(self, name: str) -> bool:
        return any(sample.name == name for sample in self._samples)

    def fell_since(self, earlier: "Metrics", names: Set[str], **labels: str) -> bool:
        """Whether a sample of one of these counters is lower than it was, or gone."""
        now = {(s.name, frozenset(s.labels.items())): s.value for s in self._samples}
        return any(
            now.get((sample.name, frozenset(sample.labels.items())), 0.0) < sample.value
            for name in names
            for sample in earlier._matching(name, labels)
        )

    def _matching(self, name: str, labels: dict[str, str]) -> Iterator[Sample]:
        return (s for s in self._samples if s.name == name and labels.items() <= s.labels.items())


def between(before: Histogram, after: Histogram) -> Histogram:
    """What was observed after `before` and up to `after`."""
    earlier = dict(before.buckets)
    return Histogram(
        tuple((bound, count - earlier.get(bound, 0.0)) for bound, count in after.buckets),
        after.total - before.total,
        after.count - before.count,
    )


def together(histograms: Iterable[Histogram]) -> Histogram:
    """What any of them observed. All have the same bounds, or none."""
    buckets: dict[float, float] = {}
    total = count = 0.0
    for histogram in histograms:
        total, count = total + histogram.total, count + histogram.count
        for bound, up_to in histogram.buckets:
            buckets[bound] = buckets.get(bound, 0.0) + up_to
    return Histogram(tuple(sorted(buckets.items())), total, count)


def parse(text: str) -> Metrics:
    """Read the Prometheus text format; comments, and lines that are none of it, are passed over."""
    samples = []
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        labels = {name: _ESCAPE.sub(_unescape, value) for name, value in _LABEL.findall(match[2] or "")}
        value, bound = _number(match[3]), _number(labels.get("le", "+Inf"))
        # A gauge without a value is NaN, and no sum is one with it.
        if value is not None and bound is not None and math.isfinite(value):
            samples.append(Sample(match[1], labels, value))
    return Metrics(samples)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return None if math.isnan(number) else number


def _unescape(found: re.Match[str]) -> str:
    return "\n" if found[1] == "n" else found[1]


def scrape(url: str) -> Metrics:
    """Blocks for at most some seconds. Raises OSError if nothing that can be read answers at `url`."""
    if not url.startswith(("http://", "https://")):
        raise OSError(f"{url} is no http address")
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:  # noqa: S310 - http or https, checked
            return parse(response.read().decode())
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(f"{url} cannot be read: {error}") from error


def url_beside(target: str, port: int, scheme: str = "http") -> str:
    """On `port` of the host of `target` (host:port)."""
    if target.startswith("unix:"):
        return f"{scheme}://127.0.0.1:{port}"
    address = re.sub(r"^(dns|ipv4|ipv6):(//[^/]*/)?", "", target)
    # An address of IPv6 stands in brackets before its port.
    host = address if address.endswith("]") else address.rpartition(":")[0] or address
    return f"{scheme}://{host}:{port}"
