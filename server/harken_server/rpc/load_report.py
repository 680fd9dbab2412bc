"""ORCA load reports: how loaded this server is, in the trailers of unary gRPC answers (gRFC A51).

A balancer that reads them, such as gRPC's weighted_round_robin (gRFC A58), weighs a server by the requests a second
that it answers over its utilization. That is here what the cost model predicts of everything that was asked, refused
or not, over what the lanes can do: it rises with the lengths of the inputs, and past 1 where processor time cannot.
"""

from collections.abc import Callable
from math import exp
from typing import Final

from harken.v1 import load_report_pb2

from harken_server.telemetry.metrics import Metrics

TRAILER: Final = "endpoint-load-metrics-bin"

_SMOOTHED_S: Final = 5.0
"""Time constant of the rates: a client weighs anew every second, and single batches shall not show."""
_KEPT_S: Final = 0.1
"""How long a report is repeated before another is made."""
_ERRORS: Final = frozenset({"UNKNOWN", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "INTERNAL", "DEADLINE_EXCEEDED"})
"""Codes that say something of the server, and not of the request."""


class LoadReports:
    """Makes them from what is counted anyway. Belongs to the event loop's thread."""

    def __init__(self, metrics: Metrics, lanes: Callable[[], int], clock: Callable[[], float]) -> None:
        self._metrics: Final = metrics
        self._lanes: Final = lanes
        self._clock: Final = clock
        self._made_s = clock()
        self._totals = (0.0, 0.0, 0.0)
        self._rates = (0.0, 0.0, 0.0)
        self._trailers: tuple[tuple[str, bytes], ...] = ()

    def trailers(self) -> tuple[tuple[str, bytes], ...]:
        """What goes into the trailing metadata of an answer that leaves now."""
        now_s = self._clock()
        since_s = now_s - self._made_s
        if since_s >= _KEPT_S or not self._trailers:
            self._made_s = now_s
            if since_s > 0.0:
                self._learn(since_s)
            requests, errors, work = self._rates
            report = load_report_pb2.LoadReport(
                rps_fractional=requests, eps=errors, application_utilization=work / max(self._lanes(), 1)
            )
            self._trailers = ((TRAILER, report.SerializeToString()),)
        return self._trailers

    def _learn(self, since_s: float) -> None:
        """Each rate moves towards that of the last `since_s`."""
        totals = self._count()
        share = 1.0 - exp(-since_s / _SMOOTHED_S)
        requests, errors, work = (
            rate + share * ((now - before) / since_s - rate)
            for rate, now, before in zip(self._rates, totals, self._totals, strict=True)
        )
        self._totals, self._rates = totals, (requests, errors, work)

    def _count(self) -> tuple[float, float, float]:
        """Requests, those of them that ended in errors, and seconds of work, since the server started."""
        requests = errors = 0.0
        for (_, _, code), count in self._metrics.requests.items():
            requests += count.value
            errors += count.value if code in _ERRORS else 0.0
        return requests, errors, sum(count.value for _, count in self._metrics.offered_work.items())
