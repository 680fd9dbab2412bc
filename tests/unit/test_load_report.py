"""Load reports: rates that follow what is counted, at a clock of the test's own."""

import pytest
from harken.v1 import load_report_pb2
from harken_server.rpc.load_report import TRAILER, LoadReports
from harken_server.telemetry.metrics import Metrics


class Server:
    """Counts as a server would. Two lanes."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.lanes = 2
        self.metrics = Metrics()
        self.reports = LoadReports(self.metrics, lambda: self.lanes, lambda: self.now_s)

    def serve(self, seconds: float, *, calls_per_s: float, work_s: float, code: str = "OK") -> None:
        """So many calls a second, each of `work_s` predicted lane seconds."""
        for _ in range(round(seconds * 10)):
            self.now_s += 0.1
            self.metrics.requests.labels("m", "Encode", code).inc(calls_per_s / 10)
            outcome = "refused" if code == "RESOURCE_EXHAUSTED" else "accepted"
            self.metrics.offered_work.labels("m", outcome).inc(calls_per_s / 10 * work_s)
            self.read()

    def read(self) -> load_report_pb2.LoadReport:
        """The report that an answer would have now."""
        ((name, value),) = self.reports.trailers()
        assert name == TRAILER
        return load_report_pb2.LoadReport.FromString(value)


def test_rates_settle_at_what_is_served() -> None:
    server = Server()
    server.serve(60, calls_per_s=50, work_s=0.03)
    report = server.read()
    assert report.rps_fractional == pytest.approx(50, rel=1e-3)
    assert report.application_utilization == pytest.approx(0.75, rel=1e-3)  # 50 * 0.03 over two lanes
    assert report.eps == 0.0


def test_refusals_are_errors_and_work_that_was_asked_for() -> None:
    server = Server()
    server.serve(60, calls_per_s=200, work_s=0.03, code="RESOURCE_EXHAUSTED")
    report = server.read()
    assert report.eps == report.rps_fractional == pytest.approx(200, rel=1e-3)
    assert report.application_utilization == pytest.approx(3.0, rel=1e-3)
    server = Server()
    server.serve(60, calls_per_s=200, work_s=0.0, code="INVALID_ARGUMENT")
    assert server.read().eps == 0.0


def test_they_rise_and_fall_within_seconds_and_not_at_once() -> None:
    server = Server()
    server.serve(5, calls_per_s=100, work_s=0.02)
    assert server.read().application_utilization == pytest.approx(0.632, abs=0.02)
    server.now_s += 5
    assert server.read().application_utilization == pytest.approx(0.632 * 0.368, abs=0.02)
    server.now_s += 600
    idle = server.read()
    assert (idle.rps_fractional, idle.application_utilization) == pytest.approx((0.0, 0.0), abs=1e-9)


def test_between_two_answers_at_one_time_nothing_is_made_anew() -> None:
    server = Server()
    first = server.reports.trailers()
    server.metrics.requests.labels("m", "Encode", "OK").inc(1000)
    server.now_s += 0.05
    assert server.reports.trailers() is first
    server.now_s += 0.06
    assert server.reports.trailers() is not first


def test_before_there_are_lanes_it_reports_too() -> None:
    server = Server()
    server.lanes = 0
    server.serve(1, calls_per_s=10, work_s=0.0, code="UNAVAILABLE")
    assert server.read().application_utilization == 0.0
    assert server.read().eps > 0.0
